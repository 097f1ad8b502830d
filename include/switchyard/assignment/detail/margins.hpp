// What a token wants at given prices: its best experts, and by how much it prefers them to all others.
//
//   d_e = (s_te - r_t) - p_e        r_t: one score of the token, so that a large offset costs no digits
//   margin = k-th largest d - (k+1)-th largest d
//
// Computed in the scores' own compute type, float for float: this is what solvers do to every score of a problem, and
// should cost about as much as reading it. The margin returned is *safe*: less all that rounding can have added. A
// token with a safe margin of h keeps its k best experts, exactly, as long as no two prices have moved apart by more
// than h; one with none (h <= 0) may be tied.
#pragma once

#include <switchyard/assignment/detail/score_rows.hpp>
#include <switchyard/core/bits.hpp>
#include <switchyard/core/config.hpp>
#include <switchyard/core/scalar_traits.hpp>
#include <switchyard/core/simd.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

namespace switchyard {
inline namespace SWITCHYARD_TARGET {
namespace detail {

/// A score source's rows in compute type C: in place where they lie so, else copied.
template <class S>
struct compute_rows {
    using compute = compute_t<S>;
    score_source<S> source;

    bool direct() const { return std::is_same_v<S, compute> && source.scores.column_stride == 1 && !source.are_costs; }
    /// The row of a token: in place, or in `scratch` (E numbers).
    const compute* row(index_t token, compute* scratch) const {
        if constexpr (std::is_same_v<S, compute>) {
            if (direct()) return source.scores.row(token);
        }
        copy(token, scratch);
        return scratch;
    }
    /// Calls the row of a token into the cache: it will be asked for soon.
    SWITCHYARD_ALWAYS_INLINE void call_in(index_t token) const {
        constexpr index_t line = 64 / static_cast<index_t>(sizeof(S));
        if (source.scores.column_stride != 1) return;
        const S* const from = source.scores.row(token);
        for (index_t e = 0; e < source.experts(); e += line) {
            pack<compute, native_width<compute>>::call_in(reinterpret_cast<const compute*>(from + e));
        }
    }
    void copy(index_t token, compute* to) const {
        const compute sign = source.are_costs ? compute(-1) : compute(1);
        for (index_t e = 0; e < source.experts(); ++e) to[e] = sign * load_scalar(source.scores(token, e));
    }
};

/// What one token wants.
template <class C>
struct token_wish {
    C value;              ///< the k-th largest d
    C margin;             ///< safe
    std::int32_t expert;  ///< the k-th best: the lowest of equal ones
    std::int32_t next;    ///< the (k+1)-th best, -1 if there is none
    bool usable;          ///< no score is NaN, +inf or too large, and k experts are allowed
};

/// Prices as passes read them: [E], rounded to the compute type.
template <class C>
struct rounded_prices {
    const C* price;
    C largest;  ///< in size, of the finite ones
};

/// Prices in compute type, in `rounded`. An infinite price closes an expert; what is not a number counts as 0.
template <class C>
rounded_prices<C> round_prices(const double* price, index_t experts, C* rounded) {
    constexpr double most = static_cast<double>(std::numeric_limits<C>::max() / 16);
    C largest = 0;
    for (index_t e = 0; e < experts; ++e) {
        if (price[e] == std::numeric_limits<double>::infinity()) {
            rounded[e] = std::numeric_limits<C>::infinity();
            continue;
        }
        rounded[e] = std::isnan(price[e]) ? C(0) : static_cast<C>(std::clamp(price[e], -most, most));
        largest = std::max(largest, std::abs(rounded[e]));
    }
    return {rounded, largest};
}

/// Both ends of the numbers solvers take.
template <class C>
constexpr C largest_usable() {
    return sizeof(C) == 4 ? std::numeric_limits<C>::max() : static_cast<C>(largest_score);
}

/// value - next, less what rounding may have added to it: each d is off by at most one unit in the last place of d and
/// of the price.
template <class C>
C safe_margin(C value, C next, C largest_price) {
    constexpr C infinity = std::numeric_limits<C>::infinity();
    constexpr C rounding = 2 * std::numeric_limits<C>::epsilon();
    if (next == -infinity) {  // all others are forbidden, or out of the range of C, where nobody can tell
        return std::abs(value) + largest_price < std::numeric_limits<C>::max() / 16 ? infinity : C(0);
    }
    return (value - next) - rounding * (std::abs(value) + std::abs(next) + largest_price);
}

/// A token's reference score.
template <class C>
C reference_of(const C* row) {
    return row[0] > -std::numeric_limits<C>::infinity() ? row[0] : C(0);
}

/// The best expert (k = 1), W at a time. `Next`: whether the second best is wanted, and not only its d.
template <int W, bool Next, class C>
token_wish<C> wish_of(const C* row, const rounded_prices<C>& prices, index_t experts) {
    using P = pack<C, W>;
    constexpr C infinity = std::numeric_limits<C>::infinity();
    constexpr auto all_bits = static_cast<std::uint32_t>((std::uint64_t{1} << W) - 1);
    const P reference = P::all(reference_of(row));
    const P limit = P::all(largest_usable<C>());
    const P lowest = P::all(-infinity);
    P first = lowest;
    P second = lowest;
    std::uint32_t usable = all_bits;
    const auto look = [&](P score, P price) {
        usable &= at_least_bits(limit, score);
        if constexpr (sizeof(C) == 8) {
            usable &= at_least_bits(score, P::all(-largest_usable<C>())) | equal_bits(score, lowest);
        }
        const P d = (score - reference) - price;
        second = max(second, min(first, d));
        first = max(first, d);
    };
    const index_t whole = experts / W * W;
    for (index_t e = 0; e < whole; e += W) look(P::load(row + e), P::load(prices.price + e));
    if (whole < experts) {
        look(P::load_first(row + whole, experts - whole, -infinity),
             P::load_first(prices.price + whole, experts - whole, C(0)));
    }
    const C best = highest(first);
    const P all_best = P::all(best);
    const bool tied = count_bits(equal_bits(first, all_best)) > 1;
    const C next = tied ? best : highest(max(second, replaced(first, all_best, lowest)));

    token_wish<C> wish{best, safe_margin(best, next, prices.largest), -1, -1, usable == all_bits && best > -infinity};
    if (!wish.usable) return wish;
    // Where they are: 64 experts at a time, without a branch on which of them it is.
    const P all_next = P::all(next);
    const bool wants_next = Next && next > -infinity;
    for (index_t e = 0; e < experts && (wish.expert < 0 || (wants_next && wish.next < 0)); e += 64) {
        std::uint64_t is_best = 0;
        std::uint64_t is_next = 0;
        for (index_t i = 0; i < 64 && e + i < experts; i += W) {
            const index_t at = e + i;
            const P score = at < whole ? P::load(row + at) : P::load_first(row + at, experts - at, -infinity);
            const P price = at < whole ? P::load(prices.price + at) : P::load_first(prices.price + at, experts - at, 0);
            const P d = (score - reference) - price;
            is_best |= std::uint64_t{equal_bits(d, all_best)} << i;
            if constexpr (Next) is_next |= std::uint64_t{equal_bits(d, all_next)} << i;
        }
        if (wish.expert < 0 && is_best != 0) {
            wish.expert = static_cast<std::int32_t>(e + first_bit(is_best));
            if (next == best) is_next &= is_next - 1;  // the tied one that comes first is the best
        }
        if constexpr (Next) {
            if (wants_next && wish.next < 0 && is_next != 0) {
                wish.next = static_cast<std::int32_t>(e + first_bit(is_next));
            }
        }
    }
    return wish;
}

/// Where the largest of `count` numbers is, the first of equal ones; they lie at a multiple of W, -inf up to the next.
template <int W, class C>
index_t place_of_largest(const C* numbers, index_t count) {
    using P = pack<C, W>;
    P largest = P::load(numbers);
    for (index_t i = W; i < count; i += W) largest = max(largest, P::load(numbers + i));
    const P all_largest = P::all(highest(largest));
    for (index_t first = 0; first < count; first += 64) {
        std::uint64_t bits = 0;
        for (index_t i = 0; i < 64 && first + i < count; i += W) {
            bits |= std::uint64_t{equal_bits(P::load(numbers + first + i), all_largest)} << i;
        }
        if (bits != 0) return first + first_bit(bits);
    }
    return 0;
}

/// The k best experts, best first, into `chosen`. `margins` is scratch for E numbers, rounded up to a multiple of W.
template <int W, class C>
token_wish<C> wish_of(const C* row, const rounded_prices<C>& prices, index_t experts, index_t choices,
                      std::int32_t* chosen, C* margins) {
    using P = pack<C, W>;
    constexpr C infinity = std::numeric_limits<C>::infinity();
    constexpr auto all_bits = static_cast<std::uint32_t>((std::uint64_t{1} << W) - 1);
    const P reference = P::all(reference_of(row));
    const P limit = P::all(largest_usable<C>());
    const P lowest = P::all(-infinity);
    std::uint32_t usable = all_bits;
    for (index_t e = 0; e < experts; e += W) {
        const bool is_whole = e + W <= experts;
        const P score = is_whole ? P::load(row + e) : P::load_first(row + e, experts - e, -infinity);
        const P price = is_whole ? P::load(prices.price + e) : P::load_first(prices.price + e, experts - e, C(0));
        usable &= at_least_bits(limit, score) &
                  (at_least_bits(score, P::all(-largest_usable<C>())) | equal_bits(score, lowest));
        ((score - reference) - price).store(margins + e);
    }
    token_wish<C> wish{C(0), infinity, -1, -1, usable == all_bits};
    for (index_t c = 0; c <= choices && wish.usable; ++c) {
        const index_t e = place_of_largest<W>(margins, experts);
        if (c < choices && margins[e] > -infinity) {
            chosen[c] = static_cast<std::int32_t>(e);
            wish.expert = chosen[c];
            wish.value = margins[e];
        } else if (c < choices) {
            wish.usable = false;
        } else {
            wish.next = margins[e] > -infinity ? static_cast<std::int32_t>(e) : -1;
            wish.margin = safe_margin(wish.value, margins[e], prices.largest);
        }
        margins[e] = -infinity;
    }
    return wish;
}

}  // namespace detail
}  // namespace SWITCHYARD_TARGET
}  // namespace switchyard
