// The phases of an auction: which tokens take part, by how much bids are raised, and when it is good enough.
//
// An auction with step eps ends with every token within eps of its best expert, whatever prices it began with; it takes
// the longer the smaller eps is and the farther those prices are off. So the first phases have large steps and few
// tokens: every 8th of every 8th, to find about where prices belong; each begins with the prices of the one before. The
// last phases have all tokens. After each of these the certificate is looked at: usually most tokens are exactly where
// they want to be, and the gap is good enough long before the step at which it must be.
#pragma once

#include <switchyard/assignment/assignment.hpp>
#include <switchyard/assignment/detail/auction_rounds.hpp>
#include <switchyard/assignment/detail/auction_scores.hpp>
#include <switchyard/assignment/detail/certificate.hpp>
#include <switchyard/assignment/detail/completion.hpp>
#include <switchyard/assignment/detail/sample.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

namespace switchyard {
inline namespace SWITCHYARD_TARGET {
namespace detail {

/// What an auction is to reach.
struct auction_goal {
    double gap = 0;        ///< good enough
    double last_step = 0;  ///< the step at which T k eps is that gap
};

template <class Policy, class S>
class auction_phases {
  public:
    auction_phases(const Policy& policy, const score_source<S>& scores, const assignment_problem<S>& problem,
                   const auction_scores& facts, index_t tokens, std::int32_t* expert_of_token, workspace& scratch)
        : policy_(policy),
          scores_(scores),
          bounds_(problem.bounds),
          mask_(problem.mask),
          choices_(problem.choices),
          facts_(facts),
          tokens_(tokens),
          expert_of_token_(expert_of_token),
          scratch_(scratch),
          rounds_(scores, tokens, problem.choices, facts.span(), facts.largest_size(), scratch) {
        rows_ = scratch.take<std::int32_t>(tokens);
        sample_ = scratch.take<std::int32_t>(tokens / sampling);
        prices_ = scratch.take<double>(bounds_.experts);
        index_t seen = 0;
        for (index_t t = 0; t < scores.tokens(); ++t) {
            if (mask_(t)) rows_[seen++] = static_cast<std::int32_t>(t);
        }
        // What `complete` may need is there from the first call on.
        const auto scope = scratch.open();
        scratch.take<std::uint8_t>(bounds_.experts);
        assignment_completer<S>(scores_, bounds_, mask_, choices_, facts_.forbidden, expert_of_token_, scratch);
    }

    /// Runs until the goal is reached or the budget is spent, and certifies what it then has. `initial_prices` or null.
    assignment_result run(const auction_goal& goal, const double* initial_prices, auction_budget& budget) {
        first_goal_ = std::max(20 * goal.last_step, noise(tokens_));
        if (!begin_warm(initial_prices, budget)) begin_cold(goal, budget);
        if (!placed_) return complete();
        for (;;) {
            const assignment_result found = certificate(prices_);
            const double wanted = std::max(goal.gap, found.tolerance);
            if (budget.spent || found.gap <= wanted || step_ <= goal.last_step) return found;
            // Prices are off by about the step: a far smaller one would take far longer.
            const double fitting = step_ * wanted / (2 * found.gap);
            step_ = std::max(goal.last_step, std::clamp(fitting, step_ / 32, step_ / 4));
            phase(rows_, tokens_, step_, no_limit, budget);
        }
    }

    /// Prices of the certificate.
    const double* prices() const { return prices_; }
    index_t rounds() const { return rounds_.rounds(); }
    index_t phases() const { return phases_; }
    /// How often the scores were looked at, in passes over all of them.
    index_t passes() const { return certificates_ + (tokens_ == 0 ? 0 : (rounds_.bids() + tokens_ - 1) / tokens_); }

  private:
    static constexpr index_t no_limit = std::numeric_limits<index_t>::max();
    static constexpr index_t sampling = 8;             // how many times fewer tokens a sample has
    static constexpr index_t tokens_of_an_expert = 8;  // on average, in the smallest sample

    /// How far the prices of so many tokens are off, roughly: smaller steps are for nothing.
    double noise(index_t tokens) const {
        if (tokens == 0) return 0;
        return facts_.deviation * 0.05 *
               std::sqrt(static_cast<double>(bounds_.experts) / static_cast<double>(tokens * choices_));
    }

    /// One auction. Where it ends within its limits and has all tokens, theirs is the assignment now.
    bool phase(const std::int32_t* rows, index_t tokens, double step, index_t most_bids, auction_budget& budget) {
        const auto bounds = [&](index_t e, index_t& lower, index_t& upper) {
            const index_t most = std::min(bounds_.upper(e), tokens_ + 1);  // T + 1: never full
            lower = tokens == tokens_ ? bounds_.lower(e) : bounds_.lower(e) * tokens / tokens_;
            upper = tokens == tokens_ ? most : (most * tokens + tokens_ - 1) / tokens_;
        };
        phases_ += 1;
        const bool done = rounds_.run(policy_, rows, tokens, bounds, step, most_bids, budget);
        rounds_.count_prices_from_market();
        if (!done || tokens < tokens_) return done;
        for (index_t i = 0; i < tokens_; ++i) {
            std::copy_n(rounds_.experts_of_places() + i * choices_, choices_, expert_of_token_ + rows_[i] * choices_);
        }
        keep_prices();
        placed_ = true;
        return true;
    }

    /// The prices of this moment for the certificate. An expert without places costs more than any token would pay.
    void keep_prices() {
        double dearest = 0;
        for (index_t e = 0; e < bounds_.experts; ++e) {
            prices_[e] = rounds_.prices()[e];
            if (std::isfinite(prices_[e])) dearest = std::max(dearest, prices_[e]);
        }
        for (index_t e = 0; e < bounds_.experts; ++e) {
            if (!std::isfinite(prices_[e])) prices_[e] = dearest + facts_.span();
        }
    }

    /// Prices given may be anything: where they do not lead to an end soon, they are dropped.
    bool begin_warm(const double* initial_prices, auction_budget& budget) {
        if (initial_prices == nullptr) return false;
        const double furthest = 4 * facts_.span();
        for (index_t e = 0; e < bounds_.experts; ++e) {
            const double price = initial_prices[e];
            rounds_.prices()[e] = std::isnan(price) ? 0.0 : std::clamp(price, -furthest, furthest);
        }
        step_ = first_goal_;
        return phase(rows_, tokens_, step_, 4 * tokens_ * choices_, budget) || budget.spent;
    }

    void begin_cold(const auction_goal& goal, auction_budget& budget) {
        std::fill_n(rounds_.prices(), bounds_.experts, 0.0);
        step_ = std::max(goal.last_step, facts_.deviation / 2);
        index_t stride = 1;
        while (tokens_ * choices_ / (stride * sampling) >= tokens_of_an_expert * bounds_.experts &&
               tokens_ / (stride * sampling) > 0) {
            stride *= sampling;
        }
        for (; stride > 1; stride /= sampling) price_by_sample(stride, goal, budget);
        while (!budget.spent) {
            // A step that is too small for prices so far off would take forever: a larger one goes on from there.
            const bool is_small = step_ < facts_.span();
            const bool done = phase(rows_, tokens_, step_, is_small ? 32 * tokens_ * choices_ : no_limit, budget);
            if (done && step_ <= first_goal_) return;
            step_ = done ? std::max(step_ / 5, first_goal_) : step_ * 8;
        }
    }

    /// Prices from every stride-th token.
    void price_by_sample(index_t stride, const auction_goal& goal, auction_budget& budget) {
        const index_t size = sample_rows(rows_, tokens_, stride, sample_);
        const double least = std::max(20 * goal.last_step, noise(size));
        for (step_ = std::max(step_, least); !budget.spent; step_ = std::max(step_ / 5, least)) {
            std::copy_n(rounds_.prices(), bounds_.experts, prices_);
            if (!phase(sample_, size, step_, 64 * size * choices_, budget)) {
                // What all tokens can do may be impossible for some of them: nothing is learnt from that.
                std::copy_n(prices_, bounds_.experts, rounds_.prices());
                return;
            }
            if (step_ <= least) return;
        }
    }

    assignment_result certificate(const double* prices) {
        certificates_ += 1;
        return certify<exactness::of_ranges>(policy_, scores_, bounds_, choices_, expert_of_token_, prices, scratch_);
    }

    /// The budget was spent before all tokens were placed: what is open is filled up.
    assignment_result complete() {
        const auto scope = scratch_.open();
        auto* const concerned = scratch_.take<std::uint8_t>(bounds_.experts);
        for (index_t i = 0; i < tokens_ * choices_; ++i) {
            expert_of_token_[rows_[i / choices_] * choices_ + i % choices_] = -1;
        }
        rounds_.for_each_token([&](index_t row, const std::int32_t* experts) {
            std::copy_n(experts, choices_, expert_of_token_ + row * choices_);
        });
        keep_prices();
        fill_by_price();
        const completion_result made = complete_assignment(scores_, bounds_, mask_, choices_, facts_.forbidden,
                                                           expert_of_token_, concerned, scratch_);
        if (!made.complete) fail_infeasible(made, bounds_.experts, choices_, concerned);
        return certificate(prices_);
    }

    /// Gives open places to the experts with room that are best at the prices.
    void fill_by_price() {
        const auto scope = scratch_.open();
        auto* const room = scratch_.take<index_t>(bounds_.experts);
        auto* const margins = scratch_.take<double>(bounds_.experts);
        for (index_t e = 0; e < bounds_.experts; ++e) room[e] = bounds_.upper(e);
        for (index_t i = 0; i < tokens_ * choices_; ++i) {
            const std::int32_t e = expert_of_token_[rows_[i / choices_] * choices_ + i % choices_];
            if (e >= 0) room[e] -= 1;
        }
        for (index_t i = 0; i < tokens_; ++i) {
            std::int32_t* const experts = expert_of_token_ + rows_[i] * choices_;
            if (*std::min_element(experts, experts + choices_) >= 0) continue;
            constexpr double infinity = std::numeric_limits<double>::infinity();
            scores_.read_row(rows_[i], margins);
            for (index_t e = 0; e < bounds_.experts; ++e)
                margins[e] = room[e] > 0 ? margins[e] - prices_[e] : -infinity;
            for (index_t j = 0; j < choices_; ++j) {
                if (experts[j] >= 0) margins[experts[j]] = -infinity;
            }
            for (index_t j = 0; j < choices_; ++j) {
                double* const best = std::max_element(margins, margins + bounds_.experts);
                if (experts[j] >= 0 || *best == -infinity) continue;
                experts[j] = static_cast<std::int32_t>(best - margins);
                room[experts[j]] -= 1;
                *best = -infinity;
            }
        }
    }

    const Policy& policy_;
    score_source<S> scores_;
    quotas bounds_;
    token_mask mask_;
    index_t choices_;
    auction_scores facts_;
    index_t tokens_;
    std::int32_t* expert_of_token_;  // [rows, k], the caller's
    workspace& scratch_;
    auction_rounds<S> rounds_;
    double step_ = 0;
    double first_goal_ = 0;  // the step of the first phase with all tokens that may be the last
    bool placed_ = false;    // expert_of_token_ and prices_ are those of a phase that ended
    index_t phases_ = 0;
    index_t certificates_ = 0;
    std::int32_t* rows_;    // [T]: which rows are tokens
    std::int32_t* sample_;  // [T / 8]
    double* prices_;        // [E]
};

}  // namespace detail
}  // namespace SWITCHYARD_TARGET
}  // namespace switchyard
