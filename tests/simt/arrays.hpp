// Arrays of numbers to the executor's memory, and back.
#pragma once

#include "simt/memory.hpp"

#include <switchyard/core/memory.hpp>

#include <algorithm>
#include <vector>

namespace switchyard_test::simt {

template <class T>
switchyard::buffer<T, memory> on_device(const std::vector<T>& numbers) {
    switchyard::buffer<T, memory> copy(static_cast<switchyard::index_t>(numbers.size()));
    std::copy(numbers.begin(), numbers.end(), copy.data());
    return copy;
}

template <class T>
std::vector<T> on_host(const switchyard::buffer<T, memory>& numbers) {
    return {numbers.begin(), numbers.end()};
}

}  // namespace switchyard_test::simt
