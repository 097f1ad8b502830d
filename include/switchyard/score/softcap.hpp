// Soft cap: a score s becomes cap tanh(s / cap), between -cap and cap; d / d s = 1 - (what it became / cap)^2.
//
// Scores well below the cap hardly change, and large ones stop growing. Laguna, Gemma 2 and Grok cap logits in this
// way. -infinity stays -infinity and forbids its expert as everywhere. +infinity and NaN stay, too, and are refused.
// Results are bitwise identical on every target and at every width: products are rounded, never fused.
#pragma once

#include <switchyard/core/config.hpp>
#include <switchyard/core/simd.hpp>

#include <limits>

namespace switchyard {
inline namespace SWITCHYARD_TARGET {

namespace detail {

/// tanh(x), to about 3 ulp. With y = -2 |x| it is -(e^y - 1) / (e^y + 1): near 0, where the difference would lose its
/// digits, e^y - 1 is a series.
template <class S, int W>
SWITCHYARD_HD SWITCHYARD_ALWAYS_INLINE pack<S, W> hyperbolic_tangent(pack<S, W> x) {
    using P = pack<S, W>;
    constexpr int terms = sizeof(S) == 4 ? 10 : 19;
    const P zero = P::all(S(0));
    const P one = P::all(S(1));
    const P y = min(x + x, zero - (x + x));
    const P near_zero = max(y, P::all(S(-0.75)));
    P series = one;
    for (int i = terms; i > 1; --i) {
        series = rounded_times(rounded_times(near_zero, series), P::all(S(1.0 / i))) + one;
    }
    const P less_one =
        where(above(y, P::all(S(-0.75))), rounded_times(near_zero, series), exp_nonpositive_rounded(y) - one);
    const P size = (zero - less_one) / (less_one + P::all(S(2)));
    return where(above(zero, x), zero - size, size);
}

}  // namespace detail

/// The score under a cap > 0.
template <class S, int W>
SWITCHYARD_HD SWITCHYARD_ALWAYS_INLINE pack<S, W> softcap(pack<S, W> score, S cap) {
    using P = pack<S, W>;
    const P most = P::all(std::numeric_limits<S>::max());
    const P capped = rounded_times(P::all(cap), detail::hyperbolic_tangent(score / P::all(cap)));
    const P or_low = where(above(P::all(S(0)) - most, score), score, capped);
    return where(above(score, most), score, or_low);
}

/// The derivative, from what the score became; 0 where that is not below the cap.
template <class S, int W>
SWITCHYARD_HD SWITCHYARD_ALWAYS_INLINE pack<S, W> softcap_derivative(pack<S, W> capped, S cap) {
    using P = pack<S, W>;
    const P part = capped / P::all(cap);
    const P size = max(part, P::all(S(0)) - part);
    return where(above(P::all(S(1)), size), P::all(S(1)) - rounded_times(size, size), P::all(S(0)));
}

}  // namespace SWITCHYARD_TARGET
}  // namespace switchyard
