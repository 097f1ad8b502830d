// Counts of bits, for the host and for kernels.
//
// Not std::popcount and std::countr_zero: nvcc 13 with --expt-relaxed-constexpr accepts libstdc++'s in kernels without
// a warning and miscompiles them (popcount of 64 bits to nothing at all, countr_zero to a constant).
#pragma once

#include <switchyard/core/config.hpp>

#include <bit>
#include <concepts>

namespace switchyard {
inline namespace SWITCHYARD_TARGET {

/// How many bits are set.
template <std::unsigned_integral T>
SWITCHYARD_HD constexpr int count_bits(T bits) {
#if defined(__CUDA_ARCH__)
    return sizeof(T) == 8 ? __popcll(bits) : __popc(static_cast<unsigned>(bits));
#else
    return std::popcount(bits);
#endif
}

/// The lowest set bit; the width of T where there is none.
template <std::unsigned_integral T>
SWITCHYARD_HD constexpr int first_bit(T bits) {
#if defined(__CUDA_ARCH__)
    return bits == 0 ? static_cast<int>(8 * sizeof(T))
                     : (sizeof(T) == 8 ? __ffsll(static_cast<long long>(bits)) : __ffs(static_cast<int>(bits))) - 1;
#else
    return std::countr_zero(bits);
#endif
}

}  // namespace SWITCHYARD_TARGET
}  // namespace switchyard
