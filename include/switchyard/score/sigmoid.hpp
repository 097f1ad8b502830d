// Sigmoid gate: g = 1 / (1 + exp(-s)), d g / d s = g (1 - g). BASE weighs experts with it.
//
// In float32 it saturates above |s| of about 17, where gates tie although scores do not: decisions are taken on scores.
#pragma once

#include <switchyard/core/config.hpp>
#include <switchyard/core/simd.hpp>

namespace switchyard {
inline namespace SWITCHYARD_TARGET {

template <class S>
SWITCHYARD_HD S sigmoid(S score) {
    // e^-|s| never overflows.
    const S e = exp_nonpositive(score > S(0) ? -score : score);
    return score > S(0) ? S(1) / (S(1) + e) : e / (S(1) + e);
}

/// The derivative, from the score: no digits are lost where the gate is near 1.
template <class S>
SWITCHYARD_HD S sigmoid_derivative(S score) {
    const S e = exp_nonpositive(score > S(0) ? -score : score);
    return e / ((S(1) + e) * (S(1) + e));
}

}  // namespace SWITCHYARD_TARGET
}  // namespace switchyard
