// What a token bids, as a row program: its best experts at the prices, and by how much they beat the next.
//
// Bids are found in the scores' compute type where its rounding is small beside the auction's step, else in double;
// the packs are those of core/simd.hpp. Equal experts are taken in turn, beginning at one that depends on the token:
// thousands of equal tokens then bid for different experts.
#pragma once

#include <switchyard/assignment/detail/score_rows.hpp>
#include <switchyard/core/bits.hpp>
#include <switchyard/core/config.hpp>
#include <switchyard/core/simd.hpp>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <type_traits>

namespace switchyard {
inline namespace SWITCHYARD_TARGET {
namespace detail {

/// Numbers a row of E takes where packs read it whole.
inline index_t padded_row(index_t experts) { return (experts + 63) / 64 * 64; }

/// Where `margin` stands among the margins [padded_row(E)]: at or after `turn` if it does, else anywhere.
template <class Real>
index_t position_of(const Real* margins, index_t experts, Real margin, index_t turn) {
    constexpr int W = native_width<Real>;
    using numbers = pack<Real, W>;
    const numbers wanted = numbers::all(margin);
    const auto equal_from = [&](index_t e) { return equal_bits(numbers::load(margins + e), wanted); };
    index_t e = turn / W * W;
    std::uint32_t bits = equal_from(e) & (~std::uint32_t{0} << (turn - e));
    while (bits == 0) {
        e += W;
        if (e >= experts) e = 0;
        bits = equal_from(e);
    }
    return e + first_bit(bits);
}

/// The largest of the margins [padded_row(E)], which end in -inf.
template <class Real>
Real highest_margin(const Real* margins, index_t experts) {
    constexpr int W = native_width<Real>;
    using numbers = pack<Real, W>;
    numbers most = numbers::load(margins);
    for (index_t e = W; e < experts; e += W) most = max(most, numbers::load(margins + e));
    return highest(most);
}

/// margins[e] = row[e] - prices[e], then -inf up to padded_row(E); prices have so many numbers, too.
template <class Real>
void find_margins(const Real* row, const Real* prices, index_t experts, Real* margins) {
    constexpr int W = native_width<Real>;
    using numbers = pack<Real, W>;
    index_t e = 0;
    for (; e + W <= experts; e += W) (numbers::load(row + e) - numbers::load(prices + e)).store(margins + e);
    if (e == experts) return;
    const numbers rest = numbers::load_first(row + e, experts - e, -std::numeric_limits<Real>::infinity());
    (rest - numbers::load(prices + e)).store(margins + e);
}

/// The best expert of a row at the prices, and the margins (score - price) of the best and of the next.
template <class Real>
struct best_two {
    index_t expert;
    Real best;
    Real second;
};

/// Precondition: some margin is above -inf. `margins` [padded_row(E)] is scratch.
template <class Real>
best_two<Real> find_best_two(const Real* row, const Real* prices, index_t experts, index_t turn, Real* margins) {
    constexpr int W = native_width<Real>;
    using numbers = pack<Real, W>;
    constexpr Real infinity = std::numeric_limits<Real>::infinity();
    numbers first = numbers::all(-infinity);
    numbers second = first;
    index_t e = 0;
    const auto look = [&](numbers scores) {
        const numbers here = scores - numbers::load(prices + e);
        here.store(margins + e);
        second = max(second, min(first, here));
        first = max(first, here);
    };
    for (; e + W <= experts; e += W) look(numbers::load(row + e));
    if (e < experts) look(numbers::load_first(row + e, experts - e, -infinity));
    const Real best = highest(first);
    const bool tie = count_bits(equal_bits(first, numbers::all(best))) > 1;
    const Real next =
        tie ? best : std::max(highest(second), highest(replaced(first, numbers::all(best), numbers::all(-infinity))));
    return {position_of(margins, experts, best, next == best ? turn : 0), best, next};
}

/// A token's row as numbers of type Real: where the caller's lie so already there, else in `copy`.
template <class Real, class S>
const Real* row_of(const score_source<S>& source, index_t token, Real* copy) {
    const S* const from = source.scores.row(token);
    const index_t stride = source.scores.column_stride;
    if constexpr (std::is_same_v<Real, S>) {
        if (stride == 1 && !source.are_costs) return from;
    }
    const Real sign = source.are_costs ? Real(-1) : Real(1);
    if (stride == 1) {
        for (index_t e = 0; e < source.experts(); ++e) copy[e] = sign * static_cast<Real>(load_scalar(from[e]));
    } else {
        for (index_t e = 0; e < source.experts(); ++e) {
            copy[e] = sign * static_cast<Real>(load_scalar(from[e * stride]));
        }
    }
    return copy;
}

/// The same in double, less the row's highest score: margins then keep the digits that the scores' size would cost
/// them.
template <class S>
const double* shifted_row_of(const score_source<S>& source, index_t token, double* copy) {
    source.read_row(token, copy);
    subtract(copy, source.experts(), largest_of(copy, source.experts()));
    return copy;
}

}  // namespace detail
}  // namespace SWITCHYARD_TARGET
}  // namespace switchyard
