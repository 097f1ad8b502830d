// The pass over all scores that makes an exact assignment cheap: it separates the many tokens whose experts are certain
// from the few that a small change of prices could move.
//
// One pass over every token at prices p finds its best experts and a safe margin (margins.hpp). A token with a margin
// of at least a band h is *fixed*: it keeps its experts. The rest, the *candidates*, are a balanced assignment of their
// own, with the quotas that the fixed tokens leave.
//
// Once the candidates are solved, at prices p', the fixed tokens are checked. Token t is still right at expert a if its
// margin is at least  (p'_a - p_a) - min_e (p'_e - p_e),  the price rise of a compared with the smallest price rise.
// This needs no score. The few tokens with less margin are checked once more; those that prefer another expert are
// *freed*: they become candidates, and the candidates are solved again. No other fixed token has a regret, so the
// certificate needs only the scores of candidates, and the sum of the fixed tokens' scores, which the passes computed.
#pragma once

#include <switchyard/assignment/assignment.hpp>
#include <switchyard/assignment/detail/certificate.hpp>
#include <switchyard/assignment/detail/price_search.hpp>
#include <switchyard/backend/policy.hpp>
#include <switchyard/core/config.hpp>
#include <switchyard/core/workspace.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

namespace switchyard {
inline namespace SWITCHYARD_TARGET {
namespace detail {

template <class S>
class narrowing {
  public:
    using compute = compute_t<S>;

    narrowing(const score_source<S>& scores, const std::int32_t* rows, index_t tokens, index_t choices,
              std::int32_t* expert_of_token, workspace& scratch)
        : scores_(scores),
          rows_(rows),
          tokens_(tokens),
          choices_(choices),
          experts_(scores.experts()),
          expert_(expert_of_token),
          candidates_(scratch.take<std::int32_t>(tokens)),
          margin_(scratch.take<compute>(scores.tokens())),
          look_(scratch.take<std::uint8_t>(scores.tokens())),
          load_(scratch.take<index_t>(experts_)),
          fixed_(scratch.take<index_t>(experts_)),
          sums_(scratch.take<block_certificate>(block_count(tokens))),
          block_rows_(scratch.take<double>(2 * block_count(tokens) * experts_)),
          price_(scratch.take<double>(most_looks * experts_)),
          dearer_(scratch.take<double>(most_looks * experts_)) {}

    void begin();
    void fix(const price_search<S>& looked, double band, const double* price);
    index_t free(const double* price);
    index_t free_crowded(const quotas& bounds);
    template <class Policy>
    assignment_result certify(const Policy& policy, const quotas& bounds, const double* price);

    /// Tokens, as rows of the scores, that are not fixed.
    const std::int32_t* candidates() const { return candidates_; }
    index_t candidate_count() const { return candidate_count_; }
    /// [E] loads that the fixed tokens make.
    const index_t* fixed_loads() const { return fixed_; }

  private:
    static constexpr index_t most_looks = 2;  // that fix tokens, since begin()

    double* price_at(index_t look) const { return price_ + look * experts_; }
    double* dearer_since(index_t look) const { return dearer_ + look * experts_; }
    void free_token(std::int32_t row);
    double margin_needed(index_t look, const std::int32_t* chosen) const;

    score_source<S> scores_;
    const std::int32_t* rows_;  // [tokens]
    index_t tokens_;
    index_t choices_;
    index_t experts_;
    std::int32_t* expert_;      // [T, k], the caller's
    std::int32_t* candidates_;  // [tokens]
    index_t candidate_count_ = 0;
    compute* margin_;     // [T]: of fixed tokens
    std::uint8_t* look_;  // [T]: which look fixed a token, from 1; 0: it is a candidate
    index_t looks_ = 0;   // that fixed tokens
    double band_[most_looks] = {};
    accurate_sum primal_;  // of fixed tokens
    double magnitude_ = 0;
    index_t* load_;            // [E] of all tokens
    index_t* fixed_;           // [E]
    block_certificate* sums_;  // [blocks]
    double* block_rows_;       // [blocks, 2, E] scratch
    double* price_;            // [looks, E]: prices the looks were made at
    double* dearer_;           // [looks, E]: by how much each expert has become so since, more than others
};

/// Everything is in question: the next look is to be at all tokens.
template <class S>
void narrowing<S>::begin() {
    std::copy_n(rows_, tokens_, candidates_);
    candidate_count_ = tokens_;
    looks_ = 0;
    primal_ = {};
    magnitude_ = 0;
}

/// Writes the experts that a look at the candidates found, and fixes those with a margin of at least `band`, but none
/// that was freed since. `price` [E] is what the look was made at.
template <class S>
void narrowing<S>::fix(const price_search<S>& looked, double band, const double* price) {
    const index_t before = candidate_count_;
    candidate_count_ = 0;
    std::copy_n(looked.loads(), experts_, fixed_);
    std::copy_n(price, experts_, price_at(looks_));
    band_[looks_] = band;
    looks_ += 1;
    double magnitude = 0;
    accurate_sum primal[4];  // several at once, since each waits for itself
    for (index_t i = 0; i < looked.count(); ++i) {
        const std::int32_t row = candidates_[i];
        const std::int32_t* const found = looked.experts() + i * choices_;
        for (index_t c = 0; c < choices_; ++c) expert_[row * choices_ + c] = found[c];
        margin_[row] = looked.margins()[i];
        if (static_cast<double>(margin_[row]) >= band) {
            look_[row] = static_cast<std::uint8_t>(looks_);
            for (index_t c = 0; c < choices_; ++c) {
                const auto score = static_cast<double>(looked.scores()[i * choices_ + c]);
                primal[i % 4].add(score);
                magnitude += std::abs(score);
            }
        } else {
            look_[row] = 0;
            candidates_[candidate_count_++] = row;
            for (index_t c = 0; c < choices_; ++c) fixed_[found[c]] -= 1;
        }
    }
    for (const accurate_sum& part : primal) primal_.add(part.value());
    magnitude_ += magnitude;
    for (index_t i = looked.count(); i < before; ++i) {  // freed since the look
        const std::int32_t row = candidates_[i];
        candidates_[candidate_count_++] = row;
        for (index_t c = 0; c < choices_; ++c) fixed_[expert_[row * choices_ + c]] -= 1;
    }
}

/// The margin at a look that a token needed to be right at these experts now.
template <class S>
double narrowing<S>::margin_needed(index_t look, const std::int32_t* chosen) const {
    double most = 0;
    for (index_t c = 0; c < choices_; ++c) most = std::max(most, dearer_since(look)[chosen[c]]);
    return most;
}

/// Makes candidates of the fixed tokens that would rather be elsewhere at these prices. Returns how many.
template <class S>
index_t narrowing<S>::free(const double* price) {
    constexpr double infinity = std::numeric_limits<double>::infinity();
    double most_needed[most_looks];
    bool enough = true;
    for (index_t look = 0; look < looks_; ++look) {
        double least = infinity;
        for (index_t e = 0; e < experts_; ++e) {
            // A closed expert stays as dear as it was.
            dearer_since(look)[e] = price_at(look)[e] == infinity ? infinity : price[e] - price_at(look)[e];
            least = std::min(least, dearer_since(look)[e]);
        }
        most_needed[look] = 0;
        for (index_t e = 0; e < experts_; ++e) {
            dearer_since(look)[e] -= least;
            if (price_at(look)[e] < infinity) most_needed[look] = std::max(most_needed[look], dearer_since(look)[e]);
        }
        enough = enough && band_[look] >= most_needed[look];
    }
    if (enough) return 0;
    const index_t before = candidate_count_;
    for (index_t i = 0; i < tokens_; ++i) {
        const std::int32_t row = rows_[i];
        if (look_[row] == 0) continue;
        const index_t look = look_[row] - 1;
        const auto margin = static_cast<double>(margin_[row]);
        const std::int32_t* const chosen = expert_ + row * choices_;
        if (margin >= most_needed[look] || margin >= margin_needed(look, chosen)) continue;
        scores_.read_row(row, block_rows_);
        if (regret(block_rows_, experts_, chosen, choices_, price, block_rows_ + experts_) <= 0) continue;
        free_token(row);
    }
    return candidate_count_ - before;
}

/// Makes candidates of all tokens fixed at experts that have more of them than their upper bounds. Returns how many.
template <class S>
index_t narrowing<S>::free_crowded(const quotas& bounds) {
    const index_t before = candidate_count_;
    for (index_t e = 0; e < experts_; ++e) load_[e] = fixed_[e] - std::min(bounds.upper(e), tokens_);
    for (index_t i = 0; i < tokens_; ++i) {
        const std::int32_t row = rows_[i];
        if (look_[row] == 0) continue;
        const std::int32_t* const chosen = expert_ + row * choices_;
        if (std::any_of(chosen, chosen + choices_, [&](std::int32_t e) { return load_[e] > 0; })) free_token(row);
    }
    return candidate_count_ - before;
}

template <class S>
void narrowing<S>::free_token(std::int32_t row) {
    look_[row] = 0;
    candidates_[candidate_count_++] = row;
    for (index_t c = 0; c < choices_; ++c) {
        const std::int32_t e = expert_[row * choices_ + c];
        const double score = scores_(row, e);
        fixed_[e] -= 1;
        primal_.add(-score);
        magnitude_ -= std::abs(score);
    }
}

/// The certificate of the assignment at prices at which no fixed token has a regret.
template <class S>
template <class Policy>
assignment_result narrowing<S>::certify(const Policy& policy, const quotas& bounds, const double* price) {
    const index_t per_block = rows_per_block(candidate_count_);
    const index_t blocks = block_count(candidate_count_);
    policy.parallel_for(blocks, [&](index_t b) {
        double* const row = block_rows_ + 2 * b * experts_;
        const index_t first = b * per_block;
        sums_[b] = certify_tokens<exactness::of_scores>(
            scores_, std::min(candidate_count_, first + per_block) - first,
            [&](index_t i) { return candidates_[first + i]; }, choices_, expert_, price, row, row + experts_);
    });
    accurate_sum primal = primal_, gap;
    double magnitude = magnitude_;
    for (index_t b = 0; b < blocks; ++b) {
        primal.add(sums_[b].primal);
        magnitude += sums_[b].magnitude;
        gap.add(sums_[b].regretted);
    }
    std::copy_n(fixed_, experts_, load_);
    for (index_t i = 0; i < candidate_count_ * choices_; ++i) {
        load_[expert_[candidates_[i / choices_] * choices_ + i % choices_]] += 1;
    }
    return finish_certificate(bounds, tokens_, load_, price, primal.value(), magnitude, gap);
}

}  // namespace detail
}  // namespace SWITCHYARD_TARGET
}  // namespace switchyard
