// Numbers that are rounded exactly where the code says so, on every target and under every flag.
//
// Compilers fuse a * b + c into one rounding where the processor can, as GCC and nvcc do by default. If a number
// decides something, such as a jittered score, the decision would then depend on the instruction set. Under
// -fassociative-math, part of -ffast-math, they also replace (a + b) - b by a, although such code computes what the
// addition lost.
#pragma once

#include <switchyard/core/config.hpp>

namespace switchyard {
inline namespace SWITCHYARD_TARGET {

/// a * b >= 0. The comparison changes nothing and stands in the way: GCC 12 forgets its own __builtin_assoc_barrier
/// when it makes vectors of a loop.
SWITCHYARD_HD constexpr float rounded_product(float a, float b) {
    const float product = a * b;
    return product > 0.0f ? product : 0.0f;
}

/// x itself, rounded: what is computed from it is not rearranged with what it was computed from. Costs nothing.
template <class S>
SWITCHYARD_HD inline S settled(S x) {
#if (defined(__GNUC__) || defined(__clang__)) && !defined(__CUDA_ARCH__)
#if defined(__SSE2__)
    asm("" : "+x"(x));
#elif defined(__aarch64__)
    asm("" : "+w"(x));
#else
    asm("" : "+m"(x));
#endif
#endif
    return x;
}

/// a * b, rounded: not fused with an addition that follows, on any target.
template <class S>
SWITCHYARD_HD inline S rounded_times(S a, S b) {
#if defined(__CUDA_ARCH__)
    if constexpr (sizeof(S) == 4) {
        return __fmul_rn(a, b);
    } else {
        return __dmul_rn(a, b);
    }
#else
    return settled(a * b);
#endif
}

}  // namespace SWITCHYARD_TARGET
}  // namespace switchyard
