// How many tokens each expert must and may take: lower_e <= load_e <= upper_e.
//
// `quotas` is a view, by value: either one pair of bounds for every expert, or two arrays [E] that must outlive it.
// Every kind of balance is a case of it:
//
//   balanced_quotas(tokens, experts)     floor(T/E) <= load_e <= ceil(T/E); which experts take one more is the solver's
//                                        choice (BASE; T < E gives 0 or 1)
//   capacity_quotas(capacity, experts)   0 <= load_e <= C
//   fixed_quotas(loads)                  load_e = loads[e]
//   bounded_quotas(lower, upper)         anything
//
// T counts the tokens that are to be placed: with a mask, `count_tokens(mask, rows)`. Where each token gets k experts,
// T k places are shared out: `balanced_quotas(T * k, experts)`.
//
// A solver checks before any work (`require_quotas`): 0 <= lower_e <= upper_e, lower_e <= T, and sum lower <= T k <=
// sum upper. Bounds above T mean T; they never overflow.
#pragma once

#include <switchyard/core/config.hpp>
#include <switchyard/core/error.hpp>
#include <switchyard/core/matrix_view.hpp>
#include <switchyard/core/sizes.hpp>

#include <algorithm>
#include <span>

namespace switchyard {

/// Bounds on every expert's load. Null arrays: the same bounds for all.
struct quotas {
    index_t experts = 0;
    const index_t* lower_bounds = nullptr;
    const index_t* upper_bounds = nullptr;
    index_t lower_of_all = 0;
    index_t upper_of_all = 0;

    SWITCHYARD_ALWAYS_INLINE constexpr index_t lower(index_t expert) const {
        return lower_bounds == nullptr ? lower_of_all : lower_bounds[expert];
    }
    SWITCHYARD_ALWAYS_INLINE constexpr index_t upper(index_t expert) const {
        return upper_bounds == nullptr ? upper_of_all : upper_bounds[expert];
    }
};

inline namespace SWITCHYARD_TARGET {

/// The same number of tokens for every expert, or one more where E does not divide T.
inline quotas balanced_quotas(index_t tokens, index_t experts) {
    require(tokens >= 0, "tokens = ", tokens, " must not be negative");
    require(experts >= 1, "experts = ", experts, " must be at least 1: there is nothing to balance over");
    return {.experts = experts,
            .lower_of_all = tokens / experts,
            .upper_of_all = tokens / experts + (tokens % experts != 0 ? 1 : 0)};
}

/// At most `capacity` tokens per expert, and no lower bound.
inline quotas capacity_quotas(index_t capacity, index_t experts) {
    return {.experts = experts, .lower_of_all = 0, .upper_of_all = capacity};
}

/// Bounds of each expert.
inline quotas bounded_quotas(std::span<const index_t> lower, std::span<const index_t> upper) {
    require(lower.size() == upper.size(), "lower and upper quotas must be given for the same experts, not for ",
            lower.size(), " and ", upper.size());
    return {.experts = static_cast<index_t>(lower.size()), .lower_bounds = lower.data(), .upper_bounds = upper.data()};
}

/// Exactly loads[e] tokens for each expert.
inline quotas fixed_quotas(std::span<const index_t> loads) { return bounded_quotas(loads, loads); }

/// How many of the rows are tokens.
inline index_t count_tokens(const token_mask& mask, index_t rows) {
    if (mask.data == nullptr) return rows;
    index_t tokens = 0;
    for (index_t t = 0; t < rows; ++t) tokens += mask(t) ? 1 : 0;
    return tokens;
}

/// Fails unless the quotas can hold exactly `tokens` tokens, each at `choices` different experts.
inline void require_quotas(const quotas& bounds, index_t tokens, index_t choices = 1) {
    const index_t places = product_of_sizes("places", tokens, choices);
    const char* const what = choices == 1 ? " tokens" : " places";
    index_t least = 0;
    index_t most = 0;
    for (index_t e = 0; e < bounds.experts; ++e) {
        const index_t lower = bounds.lower(e);
        const index_t upper = bounds.upper(e);
        require(lower >= 0, "the lower quota of expert ", e, " is ", lower, ": it must not be negative");
        require(lower <= upper, "the lower quota of expert ", e, ", ", lower, ", is above its upper quota, ", upper);
        require(choices == 1 || lower <= tokens, "the lower quota of expert ", e, ", ", lower, ", is more than the ",
                tokens, " tokens there are");
        require(lower <= places - least, "the lower quotas of experts 0..", e, " add up to more than the ", places,
                what, " there are");
        least += lower;
        most += std::min({upper, tokens, places - most});
    }
    require(most >= places, "the upper quotas of the ", bounds.experts, " experts add up to ", most, ": too few for ",
            places, what);
}

}  // namespace SWITCHYARD_TARGET
}  // namespace switchyard
