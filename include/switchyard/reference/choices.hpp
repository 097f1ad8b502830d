// Choices: which experts a token picks, best first.
//
//   ranked(s_t) = experts by falling score; equal scores: the lower index first
//   argmax is its first entry, top-k its first k
//
// Decisions are taken on raw scores, never on rounded probabilities: two probabilities may round to the same number
// where the scores differ.
//
// NaN and +inf in a score are errors. -inf forbids an expert to a token. A forbidden expert may still be listed, when
// fewer than k are allowed, but such a choice is never kept and counts in no load. Padding rows are not looked at; all
// their choices are -1.
#pragma once

#include <switchyard/reference/softmax.hpp>

#include <algorithm>
#include <cmath>

namespace switchyard::reference::inline SWITCHYARD_TARGET {

/// Whether scores may forbid everything to a token: where drops are legal it is dropped, elsewhere it is an error.
enum class unroutable { dropped, refused };

/// Whether a token has no expert it may go to.
inline bool is_unroutable(const matrix& scores, index_t token) { return maximum(row_of(scores, token)) == -infinity; }

/// Fails at the first score of a token (in row order) that no router may use.
inline void require_scores(const matrix& scores, const mask_list& mask, unroutable tokens_without_expert) {
    require(scores.columns >= 1, "scores have ", scores.columns, " columns; there must be at least one expert");
    require_mask(mask, scores.rows);
    for (index_t t = 0; t < scores.rows; ++t) {
        if (!is_token(mask, t)) continue;
        for (index_t e = 0; e < scores.columns; ++e) {
            require(!std::isnan(scores(t, e)), "the score of token ", t, " and expert ", e, " is NaN");
            require(scores(t, e) != infinity, "the score of token ", t, " and expert ", e, " is +infinity");
        }
        require(tokens_without_expert == unroutable::dropped || !is_unroutable(scores, t), "token ", t,
                " is forbidden to every expert, and nothing can be dropped here");
    }
}

/// The scores with NaN read as -inf, for callers who want a bad score to forbid rather than to fail.
inline matrix forbid_nan(const matrix& scores) {
    matrix read = scores;
    for (double& score : read.values) {
        if (std::isnan(score)) score = -infinity;
    }
    return read;
}

/// All experts by falling score, equal scores by rising index.
inline list<index_t> ranked_experts(const list<double>& scores) {
    auto experts = filled<index_t>(scores.length(), 0);
    for (index_t e = 0; e < scores.length(); ++e) experts[e] = e;
    std::stable_sort(experts.begin(), experts.end(), [&](index_t a, index_t b) { return scores[a] > scores[b]; });
    return experts;
}

/// The best k experts of every token, best first; -1 in padding rows.
inline integers top_k_experts(const matrix& scores, index_t k, const mask_list& mask) {
    require(k >= 1 && k <= scores.columns, "k = ", k, " must lie in 1..E = ", scores.columns);
    integers experts(scores.rows, k, -1);
    for (index_t t = 0; t < scores.rows; ++t) {
        if (!is_token(mask, t)) continue;
        const auto ranked = ranked_experts(row_of(scores, t));
        for (index_t c = 0; c < k; ++c) experts(t, c) = ranked[c];
    }
    return experts;
}

/// The choices that may be kept and counted: the expert, or -1 where the row is padding or the expert is forbidden.
inline integers allowed_choices(const integers& experts, const matrix& scores) {
    integers allowed = experts;
    for (index_t t = 0; t < experts.rows; ++t) {
        for (index_t c = 0; c < experts.columns; ++c) {
            const index_t e = experts(t, c);
            if (e >= 0 && scores(t, e) == -infinity) allowed(t, c) = -1;
        }
    }
    return allowed;
}

}  // namespace switchyard::reference::inline SWITCHYARD_TARGET
