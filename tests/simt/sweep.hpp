// Cases that a test goes through one after the other: fewer of them under a sanitizer, which takes its time.
#pragma once

#include "simt/sanitizers.hpp"

#include <switchyard/core/config.hpp>

#include <initializer_list>
#include <vector>

namespace switchyard_test::simt {

inline constexpr switchyard::index_t sweep_step = sanitizer::thread || sanitizer::address ? 3 : 1;

/// All of them; under a sanitizer the first of each three.
template <class T>
std::vector<T> sweep(std::initializer_list<T> all) {
    std::vector<T> some;
    for (auto i = all.begin(); i < all.end(); i += sweep_step) some.push_back(*i);
    return some;
}

}  // namespace switchyard_test::simt
