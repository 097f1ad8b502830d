// The pass over all scores that makes an exact assignment cheap: it tells apart the many tokens whose experts are
// settled from the few that a small change of prices could move.
//
// One look at every token at prices p leaves its best experts and a safe margin (margins.hpp). Tokens with a margin of
// at least a band h keep these experts at all prices that have not moved apart by more than h since: they are fixed,
// and no score of theirs is looked at again, not even by the certificate. The rest, the *candidates*, are a balanced
// assignment of their own, with what the fixed tokens leave of the quotas.
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
#include <utility>

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
          load_(scratch.take<index_t>(experts_)),
          fixed_(scratch.take<index_t>(experts_)),
          sums_(scratch.take<double>(2 * block_count(tokens))),
          block_rows_(scratch.take<double>(2 * block_count(tokens) * experts_)) {}

    void begin();
    void fix(const price_search<S>& looked, double band);
    template <class Policy>
    assignment_result certify(const Policy& policy, const quotas& bounds, const double* price);

    /// Tokens, as rows of the scores, that are not fixed.
    const std::int32_t* candidates() const { return candidates_; }
    index_t candidate_count() const { return candidate_count_; }
    /// [E] loads that the fixed tokens make.
    const index_t* fixed_loads() const { return fixed_; }

  private:
    template <class Policy, class OfOne>
    std::pair<double, double> add_up(const Policy& policy, index_t count, OfOne&& of_one);

    score_source<S> scores_;
    const std::int32_t* rows_;  // [tokens]
    index_t tokens_;
    index_t choices_;
    index_t experts_;
    std::int32_t* expert_;      // [T, k], the caller's
    std::int32_t* candidates_;  // [tokens]
    index_t candidate_count_ = 0;
    index_t* load_;       // [E] of all tokens
    index_t* fixed_;      // [E]
    double* sums_;        // [blocks, 2]
    double* block_rows_;  // [blocks, 2, E] scratch
};

/// Everything is in question: the next look is to be at all tokens.
template <class S>
void narrowing<S>::begin() {
    std::copy_n(rows_, tokens_, candidates_);
    candidate_count_ = tokens_;
}

/// Writes the experts that a look at the candidates found, and fixes those with a margin of at least `band`.
template <class S>
void narrowing<S>::fix(const price_search<S>& looked, double band) {
    const index_t before = candidate_count_;
    candidate_count_ = 0;
    std::copy_n(looked.loads(), experts_, fixed_);
    for (index_t i = 0; i < before; ++i) {
        const std::int32_t row = candidates_[i];
        const std::int32_t* const found = looked.experts() + i * choices_;
        for (index_t c = 0; c < choices_; ++c) expert_[row * choices_ + c] = found[c];
        if (static_cast<double>(looked.margins()[i]) >= band) continue;
        candidates_[candidate_count_++] = row;
        for (index_t c = 0; c < choices_; ++c) fixed_[found[c]] -= 1;
    }
}

/// Two sums over `count` things, block by block: the same for every policy.
template <class S>
template <class Policy, class OfOne>
std::pair<double, double> narrowing<S>::add_up(const Policy& policy, index_t count, OfOne&& of_one) {
    const index_t per_block = rows_per_block(count);
    const index_t blocks = block_count(count);
    policy.parallel_for(blocks, [&](index_t b) {
        accurate_sum first, second;
        for (index_t i = b * per_block; i < std::min(count, (b + 1) * per_block); ++i) of_one(b, i, first, second);
        sums_[2 * b] = first.value();
        sums_[2 * b + 1] = second.value();
    });
    accurate_sum first, second;
    for (index_t b = 0; b < blocks; ++b) {
        first.add(sums_[2 * b]);
        second.add(sums_[2 * b + 1]);
    }
    return {first.value(), second.value()};
}

/// The certificate of the assignment at prices that have not moved apart by more than the band: fixed tokens have no
/// regret.
template <class S>
template <class Policy>
assignment_result narrowing<S>::certify(const Policy& policy, const quotas& bounds, const double* price) {
    const auto of_token = [&](index_t, index_t i, accurate_sum& primal, accurate_sum& magnitude) {
        for (index_t c = 0; c < choices_; ++c) {
            const double score = scores_(rows_[i], expert_[rows_[i] * choices_ + c]);
            primal.add(score);
            magnitude.add(std::abs(score));
        }
    };
    const auto of_candidate = [&](index_t b, index_t i, accurate_sum& regretted, accurate_sum&) {
        double* const row = block_rows_ + 2 * b * experts_;
        scores_.read_row(candidates_[i], row);
        regretted.add(regret(row, experts_, expert_ + candidates_[i] * choices_, choices_, price, row + experts_));
    };
    const auto [primal, magnitude] = add_up(policy, tokens_, of_token);
    const double regretted = add_up(policy, candidate_count_, of_candidate).first;
    accurate_sum gap;
    gap.add(regretted);
    std::copy_n(fixed_, experts_, load_);
    for (index_t i = 0; i < candidate_count_ * choices_; ++i) {
        load_[expert_[candidates_[i / choices_] * choices_ + i % choices_]] += 1;
    }
    return finish_certificate(bounds, tokens_, load_, price, primal, magnitude, gap);
}

}  // namespace detail
}  // namespace SWITCHYARD_TARGET
}  // namespace switchyard
