// A product that is rounded before anything is added to it, on every target.
//
// Compilers fuse a * b + c into one rounding where the processor can, as GCC and nvcc do unless told otherwise. Where a
// number decides something, such as a jittered score, that would make the decision depend on the instruction set.
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

}  // namespace SWITCHYARD_TARGET
}  // namespace switchyard
