// The certificate of an assignment (assignment.hpp), in blocks of tokens that threads share.
//
// Sums are of blocks first, then of these in order: bitwise identical for every policy.
#pragma once

#include <switchyard/assignment/assignment.hpp>
#include <switchyard/assignment/detail/pass_threads.hpp>
#include <switchyard/assignment/detail/score_rows.hpp>
#include <switchyard/assignment/quotas.hpp>
#include <switchyard/backend/policy.hpp>
#include <switchyard/core/config.hpp>
#include <switchyard/core/workspace.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>

namespace switchyard {
inline namespace SWITCHYARD_TARGET {
namespace detail {

/// The certificate of an assignment with these loads [E], whose tokens' sums are known; `gap` begins with their
/// regrets.
inline assignment_result finish_certificate(const quotas& bounds, index_t tokens, const index_t* load,
                                            const double* prices, double primal, double magnitude, accurate_sum gap) {
    for (index_t e = 0; e < bounds.experts; ++e) {
        const index_t bound = prices[e] > 0 ? std::min(bounds.upper(e), tokens) : bounds.lower(e);
        gap.add(prices[e] * static_cast<double>(bound - load[e]));
    }
    assignment_result result;
    result.tokens = tokens;
    result.primal = primal;
    result.gap = gap.value();
    result.dual = primal + result.gap;
    result.tolerance = 1e-9 * magnitude + 1e-12;
    result.converged = result.gap <= result.tolerance;
    return result;
}

/// What the tolerance of a certificate is measured by.
enum class exactness {
    of_scores,  ///< sum_t |s[t, a(t)]|
    of_ranges,  ///< k sum_t (highest - lowest score of t that is not forbidden): the same for shifted scores
};

/// What some tokens add to the certificate.
struct block_certificate {
    index_t tokens = 0;
    double primal = 0;
    double magnitude = 0;
    double regretted = 0;
};

/// Of tokens of_number(0 .. count - 1), those without an expert left out. `row` and `margins` are scratch.
template <exactness Exact, class S, class OfNumber>
block_certificate certify_tokens(const score_source<S>& scores, index_t count, OfNumber&& of_number, index_t choices,
                                 const std::int32_t* expert_of_token, const double* prices, double* row,
                                 double* margins) {
    accurate_sum primal, magnitude, regretted;
    block_certificate made;
    for (index_t i = 0; i < count; ++i) {
        const index_t t = of_number(i);
        const std::int32_t* const chosen = expert_of_token + t * choices;
        if (chosen[0] < 0) continue;
        made.tokens += 1;
        scores.read_row(t, row);
        for (index_t c = 0; c < choices; ++c) {
            primal.add(row[chosen[c]]);
            if (Exact == exactness::of_scores) magnitude.add(std::abs(row[chosen[c]]));
        }
        if constexpr (Exact == exactness::of_ranges) {
            const row_facts facts = facts_of(row, scores.experts());
            magnitude.add(static_cast<double>(choices) * (facts.highest - facts.lowest));
            // With several experts per token, margins are compared after rounding: far from 0 that would lose digits.
            if (choices > 1) subtract(row, scores.experts(), facts.highest);
        }
        regretted.add(regret(row, scores.experts(), chosen, choices, prices, margins));
    }
    made.primal = primal.value();
    made.magnitude = magnitude.value();
    made.regretted = regretted.value();
    return made;
}

/// The certificate of an assignment [T, choices] within the quotas at `prices`: primal, dual, gap and tolerance. O(T
/// E).
template <exactness Exact = exactness::of_scores, class Policy, class S>
assignment_result certify(const Policy& policy, const score_source<S>& scores, const quotas& bounds, index_t choices,
                          const std::int32_t* expert_of_token, const double* prices, workspace& scratch) {
    const auto scope = scratch.open();
    const index_t experts = scores.experts();
    const index_t rows = rows_per_block(scores.tokens());
    const index_t blocks = block_count(scores.tokens());
    auto* const load = scratch.take<index_t>(experts);
    auto* const found = scratch.take<block_certificate>(blocks);
    auto* const block_rows = scratch.take<double>(2 * blocks * experts);
    for_blocks_of_scores(policy, scores.tokens() * experts, blocks, [&](index_t b) {
        double* const row = block_rows + 2 * b * experts;
        const index_t first = b * rows;
        found[b] = certify_tokens<Exact>(
            scores, std::min(scores.tokens(), first + rows) - first, [&](index_t i) { return first + i; }, choices,
            expert_of_token, prices, row, row + experts);
    });
    index_t tokens = 0;
    accurate_sum primal, magnitude, gap;
    for (index_t b = 0; b < blocks; ++b) {
        tokens += found[b].tokens;
        primal.add(found[b].primal);
        magnitude.add(found[b].magnitude);
        gap.add(found[b].regretted);
    }
    std::fill_n(load, experts, index_t{0});
    for (index_t i = 0; i < scores.tokens() * choices; ++i) {
        if (expert_of_token[i] >= 0) load[expert_of_token[i]] += 1;
    }
    return finish_certificate(bounds, tokens, load, prices, primal.value(), magnitude.value(), gap);
}

}  // namespace detail
}  // namespace SWITCHYARD_TARGET
}  // namespace switchyard
