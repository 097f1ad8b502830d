// Products of sizes: rows x columns, tokens x choices, count x bytes. A product that no index_t holds is an error that
// names both factors. It never wraps to a small size.
#pragma once

#include <switchyard/core/config.hpp>
#include <switchyard/core/error.hpp>

#include <cstddef>
#include <limits>

namespace switchyard {
inline namespace SWITCHYARD_TARGET {

/// a * b for sizes; `what` names what is counted, for the error message.
constexpr index_t product_of_sizes(const char* what, index_t a, index_t b) {
    if ((a | b) >> 31 == 0) {
        return a * b;
    }
    if (a < 0 || b < 0) {
        fail(a, " x ", b, " ", what, ": a size must not be negative");
    }
    if (b != 0 && a > std::numeric_limits<index_t>::max() / b) {
        fail(a, " x ", b, " ", what, " are more than a size can count, which is 2^63 - 1");
    }
    return a * b;
}

/// The bytes of `count` elements.
template <class T>
constexpr std::size_t bytes_of(index_t count) {
    return static_cast<std::size_t>(product_of_sizes("bytes", count, static_cast<index_t>(sizeof(T))));
}

}  // namespace SWITCHYARD_TARGET
}  // namespace switchyard
