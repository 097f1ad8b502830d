// Sigmoid: v = 1 / (1 + exp(-s)), d v / d s = v (1 - v).
//
// Some routers choose by it, with a bias added, so it is bitwise identical on every target and at every width: products
// are rounded, never fused. In float32 it saturates above |s| of about 17, where values tie although scores do not.
// Without a bias, decisions therefore use scores. BASE and Llama 4 weigh experts with it; DeepSeek-V3 also chooses by
// it.
#pragma once

#include <switchyard/core/config.hpp>
#include <switchyard/core/simd.hpp>

namespace switchyard {
inline namespace SWITCHYARD_TARGET {

template <class S, int W>
SWITCHYARD_HD SWITCHYARD_ALWAYS_INLINE pack<S, W> sigmoid(pack<S, W> score) {
    using P = pack<S, W>;
    const P zero = P::all(S(0));
    const P one = P::all(S(1));
    // e^-|s| never overflows. NaN stays what it is.
    const P e = exp_nonpositive_rounded(min(zero - score, score));
    return where(above(score, zero), one, e) / (one + e);
}

/// The derivative, from the score: no digits are lost where the value is near 1.
template <class S, int W>
SWITCHYARD_HD pack<S, W> sigmoid_derivative(pack<S, W> score) {
    using P = pack<S, W>;
    const P e = exp_nonpositive_rounded(min(P::all(S(0)) - score, score));
    const P sum = P::all(S(1)) + e;
    return e / (sum * sum);
}

template <class S>
SWITCHYARD_HD S sigmoid(S score) {
    return sigmoid(pack<S, 1>{score}).v;
}
template <class S>
SWITCHYARD_HD S sigmoid_derivative(S score) {
    return sigmoid_derivative(pack<S, 1>{score}).v;
}

}  // namespace SWITCHYARD_TARGET
}  // namespace switchyard
