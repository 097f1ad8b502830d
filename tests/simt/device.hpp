// The device of tests/thrust/*_test.cpp when they run on the executor, in the order that the environment's
// SWITCHYARD_SIMT_ORDER names: forward, reverse, random, random2, greedy or greedy_last.
#pragma once

#include "simt/executor.hpp"

#include <switchyard/kernels.hpp>

#include <cstdlib>
#include <stdexcept>
#include <string>

namespace switchyard_test {

inline simt::order order_of_tests() {
    const char* const given = std::getenv("SWITCHYARD_SIMT_ORDER");
    if (given == nullptr) return {};
    constexpr const char* names[] = {"forward", "reverse", "random", "random2", "greedy", "greedy_last"};
    for (std::size_t i = 0; i < std::size(names); ++i) {
        if (std::string(given) == names[i]) return simt::all_orders[i];
    }
    throw std::invalid_argument(std::string("SWITCHYARD_SIMT_ORDER is ") + given + ", which is no order");
}

inline simt::executor executor_of_tests{order_of_tests()};
inline const simt::policy device{&executor_of_tests};

}  // namespace switchyard_test
