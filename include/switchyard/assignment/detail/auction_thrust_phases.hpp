// The phases of an auction on a Thrust policy: the host enqueues rounds and reads one number now and then.
//
// All tokens without a place bid in every round, and every round sorts all rows: O(rows E) at most, and two sorts. The
// host waits once every few rounds, for the number of tokens still open, and once a phase, for the certificate.
#pragma once

#include <switchyard/assignment/assignment.hpp>
#include <switchyard/assignment/detail/auction_phases.hpp>
#include <switchyard/assignment/detail/auction_rounds.hpp>
#include <switchyard/assignment/detail/auction_thrust_market.hpp>
#include <switchyard/assignment/detail/auction_thrust_sums.hpp>
#include <switchyard/backend/thrust.hpp>
#include <switchyard/core/config.hpp>
#include <switchyard/core/workspace.hpp>

#include <thrust/scan.h>
#include <thrust/sort.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

namespace switchyard {
inline namespace SWITCHYARD_TARGET {
namespace detail {

/// Prices that anybody gave, made numbers of the scores' size; 0 where none were given.
struct begin_prices {
    const double* given;
    double furthest;
    double* price;

    SWITCHYARD_HD void operator()(index_t e) const {
        const double x = given != nullptr ? given[e] : 0.0;
        price[e] = !(x == x) ? 0.0 : x > furthest ? furthest : x < -furthest ? -furthest : x;
    }
};

/// Bounds for all experts where they are one pair.
struct fill_bounds {
    index_t lower_of_all;
    index_t upper_of_all;
    index_t most;
    bool are_given;
    index_t* lower;
    index_t* upper;

    SWITCHYARD_HD void operator()(index_t e) const {
        if (!are_given) {
            lower[e] = lower_of_all;
            upper[e] = upper_of_all;
        }
        upper[e] = upper[e] < most ? upper[e] : most;
    }
};

template <class Exec, class Memory, class S>
class thrust_auction_phases {
  public:
    using space = typename Memory::space;

    /// How a phase, or all of them, came to an end.
    enum class outcome { placed, too_long, budget_spent };

    thrust_auction_phases(const thrust_policy<Exec, Memory>& policy, const device_scores<S, space>& scores,
                          const quotas& bounds, const token_mask& mask, const auction_scores& facts, index_t tokens,
                          std::int32_t* expert_of_token, basic_workspace<Memory>& scratch)
        : policy_(policy),
          scores_(scores),
          mask_(mask),
          facts_(facts),
          tokens_(tokens),
          expert_of_token_(expert_of_token),
          scratch_(scratch) {
        const index_t rows = scores.scores.rows;
        const index_t experts = scores.scores.columns;
        market_ = {.rows = rows,
                   .experts = experts,
                   .dummies = -tokens,
                   .lower = nullptr,  // both below
                   .upper = nullptr,
                   .expert = scratch.template take<std::int32_t>(rows),
                   .level = scratch.template take<double>(rows),
                   .price = scratch.template take<double>(experts),
                   .ask = scratch.template take<double>(experts),
                   .load = scratch.template take<index_t>(experts),
                   .by_ask = scratch.template take<std::int64_t>(experts),
                   .seats = scratch.template take<std::int64_t>(experts),
                   .key = scratch.template take<std::uint64_t>(std::max(rows, experts)),
                   .rank = scratch.template take<std::int64_t>(rows),
                   .count = scratch.template take<std::int64_t>(rows),
                   .by_level = scratch.template take<std::int64_t>(rows),
                   .leaving = scratch.template take<std::int64_t>(rows),
                   .line = take_line(rows, experts, scratch),
                   .state = scratch.template take<market_state>(1)};
        prices_ = scratch.template take<double>(experts);
        // T + 1 places are never full.
        const index_t most = tokens + 1;
        for (index_t e = 0; e < experts; ++e) market_.dummies += std::min(bounds.upper(e), most);
        auto* const lower = scratch.template take<index_t>(experts);
        auto* const upper = scratch.template take<index_t>(experts);
        const bool are_given = bounds.lower_bounds != nullptr;
        if (are_given) {
            Memory::copy_to_device(policy.exec, lower, bounds.lower_bounds, bytes_of<index_t>(experts));
            Memory::copy_to_device(policy.exec, upper, bounds.upper_bounds, bytes_of<index_t>(experts));
        }
        for_each_index(policy, experts,
                       fill_bounds{bounds.lower_of_all, bounds.upper_of_all, most, are_given, lower, upper});
        market_.lower = lower;
        market_.upper = upper;
    }

    /// Runs until the goal is reached or the budget is spent. `stuck()` is called when a phase takes unusually long.
    template <class Stuck>
    outcome run(const auction_goal& goal, const double* initial_prices, auction_budget& budget, Stuck&& stuck) {
        const double first_goal = std::max(20 * goal.last_step, noise());
        double step = first_goal;
        if (initial_prices != nullptr) {
            begin(initial_prices);
            const outcome warm = phase(step, rounds_of_warm_start, budget, stuck);
            if (warm == outcome::budget_spent) return finished();
            if (warm == outcome::too_long) initial_prices = nullptr;
        }
        if (initial_prices == nullptr) {
            begin(nullptr);
            step = std::max(goal.last_step, facts_.deviation / 2);
        }
        for (bool is_first = initial_prices == nullptr;; is_first = false) {
            if (!is_first) {
                if (placed_) {
                    const double wanted = std::max(goal.gap, result_.tolerance);
                    if (result_.gap <= wanted || step <= goal.last_step) return outcome::placed;
                    // Prices are off by about the step: a far smaller one would take far longer.
                    const double fitting = step * wanted / (2 * result_.gap);
                    const double next = std::clamp(fitting, step / 32, step / 4);
                    step = std::max(goal.last_step, step > first_goal ? std::max(step / 5, first_goal) : next);
                }
            }
            const bool is_small = step < facts_.span();
            const outcome made = phase(step, is_small ? rounds_of_small_step : no_limit, budget, stuck);
            if (made == outcome::budget_spent) return finished();
            if (made == outcome::too_long) step *= 8;
        }
    }

    /// The certificate of the last phase that placed all tokens; theirs are the caller's experts and prices().
    const assignment_result& result() const { return result_; }
    const double* prices() const { return prices_; }
    /// Those of this moment.
    const double* present_prices() const { return market_.price; }
    index_t rounds() const { return rounds_; }
    index_t phases() const { return phases_; }

  private:
    static constexpr index_t no_limit = std::numeric_limits<index_t>::max();
    static constexpr index_t rounds_of_warm_start = 512;
    static constexpr index_t rounds_of_small_step = 8192;
    static constexpr index_t rounds_till_stuck = 256;
    static constexpr index_t rounds_between_reads = 4;

    outcome finished() const { return placed_ ? outcome::placed : outcome::budget_spent; }

    /// How far prices are off, roughly: smaller steps are for nothing.
    double noise() const {
        return facts_.deviation * 0.05 * std::sqrt(static_cast<double>(market_.experts) / static_cast<double>(tokens_));
    }

    void begin(const double* given) {
        for_each_index(policy_, market_.experts, begin_prices{given, 4 * facts_.span(), market_.price});
    }

    /// One auction from the present prices, until all tokens have places.
    template <class Stuck>
    outcome phase(double step, index_t most_rounds, auction_budget& budget, Stuck&& stuck) {
        phases_ += 1;
        for_each_index(policy_, market_.rows, open_rows{market_, mask_});
        for_each_index(policy_, market_.experts, open_experts{market_});
        if (market_.dummies > 0) {
            thrust::stable_sort_by_key(policy_.exec, market_.key, market_.key + market_.experts, market_.by_ask);
        }
        take_bids();  // nobody's: the dummies find places
        for (index_t round = 0; round < most_rounds; ++round) {
            if (!budget.take_round(tokens_)) return outcome::budget_spent;
            rounds_ += 1;
            for_each_index(policy_, market_.rows, bid_of_row<S, space>{market_, scores_, facts_.span(), step});
            take_bids();
            if (round == rounds_till_stuck) stuck();
            if (round % rounds_between_reads == 0 && count_open() == 0) {
                keep();
                return outcome::placed;
            }
        }
        return outcome::too_long;
    }

    void take_bids() {
        const index_t rows = market_.rows;
        for_each_index(policy_, rows, line_up_levels{market_});
        thrust::stable_sort_by_key(policy_.exec, market_.key, market_.key + rows, market_.by_level);
        for_each_index(policy_, rows, line_up_experts{market_});
        sort_line(policy_, market_.line);
        for_each_index(policy_, rows, take_best_bids{market_});
        if (market_.dummies > 0) {
            for_each_index(policy_, rows, marks_by_level{market_});
            thrust::inclusive_scan(policy_.exec, market_.count, market_.count + rows, market_.count);
            for_each_index(policy_, rows, rank_by_level{market_});
            for_each_index(policy_, market_.experts, seats_by_ask{market_});
            thrust::inclusive_scan(policy_.exec, market_.seats, market_.seats + market_.experts, market_.seats);
            for_each_index(policy_, 1, raise_water{market_});
            for_each_index(policy_, rows, leave_flooded{market_});
        }
        for_each_index(policy_, market_.experts, settle_expert{market_});
    }

    index_t count_open() {
        const auto scope = scratch_.open();
        for_each_index(policy_, market_.rows, is_open{market_});
        return read_from(policy_, fold(policy_, market_.count, market_.rows, index_t{1}, plus{}, scratch_));
    }

    /// Keeps the assignment and its prices, and certifies them.
    void keep() {
        const auto scope = scratch_.open();
        const index_t rows = market_.rows;
        const index_t experts = market_.experts;
        for_each_index(policy_, rows, hand_out_experts{market_, expert_of_token_});
        for_each_index(policy_, 1, count_prices{market_, facts_.span(), prices_});
        auto* const terms = scratch_.template take<device_certificate>(std::max(rows, experts));
        for_each_index(policy_, rows, certify_row<S, space>{market_, scores_, prices_, terms});
        device_certificate found = read_from(policy_, fold(policy_, terms, rows, index_t{1}, plus{}, scratch_));
        for_each_index(policy_, experts, certify_expert{market_, prices_, terms});
        found = found + read_from(policy_, fold(policy_, terms, experts, index_t{1}, plus{}, scratch_));
        result_.tokens = tokens_;
        result_.primal = found.primal;
        result_.gap = found.gap;
        result_.dual = found.primal + found.gap;
        result_.tolerance = 1e-9 * found.magnitude + 1e-12;
        placed_ = true;
    }

    const thrust_policy<Exec, Memory>& policy_;
    device_scores<S, space> scores_;
    token_mask mask_;
    auction_scores facts_;
    index_t tokens_;
    std::int32_t* expert_of_token_;
    basic_workspace<Memory>& scratch_;
    device_market market_;
    double* prices_;  // [E], of the certificate
    assignment_result result_;
    bool placed_ = false;
    index_t rounds_ = 0;
    index_t phases_ = 0;
};

}  // namespace detail
}  // namespace SWITCHYARD_TARGET
}  // namespace switchyard
