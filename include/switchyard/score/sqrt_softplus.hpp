// Square root of softplus: v = sqrt(log(1 + exp(s))), d v / d s = sigmoid(s) / (2 v).
//
// It grows like sqrt(s) where sigmoid saturates. DeepSeek-V4 chooses and weighs by it. It is bitwise identical on every
// target and at every width: products are rounded, never fused. v = 0 at -infinity and wherever e^s is 0 in the type;
// the derivative there, which is infinite in the formula's limit, is 0.
#pragma once

#include <switchyard/core/config.hpp>
#include <switchyard/core/simd.hpp>
#include <switchyard/score/sigmoid.hpp>

namespace switchyard {
inline namespace SWITCHYARD_TARGET {

namespace detail {

/// log(1 + e) for 0 <= e <= 1, as 2 artanh(e / (2 + e)): a series in z^2 <= 1/9.
template <class S, int W>
SWITCHYARD_HD SWITCHYARD_ALWAYS_INLINE pack<S, W> log_one_plus(pack<S, W> e) {
    using P = pack<S, W>;
    constexpr int terms = sizeof(S) == 4 ? 8 : 17;
    const P z = e / (P::all(S(2)) + e);
    const P square = rounded_times(z, z);
    P series = P::all(S(1.0 / (2 * terms - 1)));
    for (int i = terms - 2; i >= 0; --i) {
        series = rounded_times(series, square) + P::all(S(1.0 / (2 * i + 1)));
    }
    return P::all(S(2)) * rounded_times(z, series);
}

}  // namespace detail

template <class S, int W>
SWITCHYARD_HD SWITCHYARD_ALWAYS_INLINE pack<S, W> sqrt_softplus(pack<S, W> score) {
    using P = pack<S, W>;
    const P zero = P::all(S(0));
    const P e = exp_nonpositive_rounded(min(zero - score, score));
    return square_root(max(score, zero) + detail::log_one_plus(e));
}

/// The derivative, from the score.
template <class S, int W>
SWITCHYARD_HD pack<S, W> sqrt_softplus_derivative(pack<S, W> score) {
    using P = pack<S, W>;
    const P v = sqrt_softplus(score);
    return where(above(v, P::all(S(0))), sigmoid(score) / (v + v), P::all(S(0)));
}

template <class S>
SWITCHYARD_HD S sqrt_softplus(S score) {
    return sqrt_softplus(pack<S, 1>{score}).v;
}
template <class S>
SWITCHYARD_HD S sqrt_softplus_derivative(S score) {
    return sqrt_softplus_derivative(pack<S, 1>{score}).v;
}

}  // namespace SWITCHYARD_TARGET
}  // namespace switchyard
