// The phases of an auction on a device: the host enqueues rounds and reads one number now and then.
//
// All tokens without a place bid in every round, and every round sorts all rows: O(rows E) at most, and two sorts. The
// host waits once every few rounds, for the number of tokens still open. Where they are few, they take what is free
// (device_auction_fill.hpp), and the host waits for the certificate of that.
#pragma once

#include <switchyard/assignment/assignment.hpp>
#include <switchyard/assignment/detail/auction_phases.hpp>
#include <switchyard/assignment/detail/auction_rounds.hpp>
#include <switchyard/assignment/detail/device_auction_fill.hpp>
#include <switchyard/assignment/detail/device_auction_market.hpp>
#include <switchyard/assignment/detail/device_auction_sums.hpp>
#include <switchyard/backend/device.hpp>
#include <switchyard/core/config.hpp>
#include <switchyard/core/workspace.hpp>

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

/// The bids of all rows. Kernels have their own (kernel_auction.hpp).
template <device_policy Policy, class S, class Space>
void make_bids(const Policy& policy, index_t rows, const bid_of_row<S, Space>& bids) {
    for_each_index(policy, rows, bids);
}

template <device_policy Policy, class S>
class device_auction_phases {
  public:
    using space = policy_space<Policy>;

    /// How a phase, or all of them, came to an end.
    enum class outcome { placed, too_long, budget_spent };

    device_auction_phases(const Policy& policy, const device_scores<S, space>& scores, const quotas& bounds,
                          const token_mask& mask, const auction_scores& facts, index_t tokens,
                          std::int32_t* expert_of_token, device_workspace<Policy>& scratch)
        : policy_(policy),
          scores_(scores),
          mask_(mask),
          facts_(facts),
          tokens_(tokens),
          expert_of_token_(expert_of_token),
          scratch_(scratch) {
        const index_t rows = scores.scores.rows;
        const index_t experts = scores.scores.columns;
        market_ = device_market{.rows = rows,
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
        found_prices_ = scratch.template take<double>(experts);
        filled_ = market_;
        filled_.expert = scratch.template take<std::int32_t>(rows);
        filled_.load = scratch.template take<index_t>(experts);
        // T + 1 places are never full.
        const index_t most = tokens + 1;
        for (index_t e = 0; e < experts; ++e) market_.dummies += std::min(bounds.upper(e), most);
        auto* const lower = scratch.template take<index_t>(experts);
        auto* const upper = scratch.template take<index_t>(experts);
        const bool are_given = bounds.lower_bounds != nullptr;
        if (are_given) {
            policy.copy_to_device(lower, bounds.lower_bounds, bytes_of<index_t>(experts));
            policy.copy_to_device(upper, bounds.upper_bounds, bytes_of<index_t>(experts));
        }
        for_each_index(policy, experts,
                       fill_bounds{bounds.lower_of_all, bounds.upper_of_all, most, are_given, lower, upper});
        market_.lower = filled_.lower = lower;
        market_.upper = filled_.upper = upper;
        filled_.dummies = market_.dummies;
    }

    /// Runs until the goal is reached or the budget is spent. `stuck()` is called when a phase takes unusually long.
    template <class Stuck>
    outcome run(const auction_goal& goal, const double* initial_prices, auction_budget& budget, Stuck&& stuck) {
        goal_ = goal;
        first_goal_ = std::max(20 * goal.last_step, noise());
        step_ = first_goal_;
        outcome made = outcome::too_long;
        if (initial_prices != nullptr) {
            begin(initial_prices);
            made = phase(rounds_of_warm_start, budget, stuck);
        }
        index_t most_rounds = rounds_of_small_step;
        const auto next_phase = [&] {
            const bool is_small = step_ < facts_.span();
            made = phase(is_small ? most_rounds : no_limit, budget, stuck);
        };
        if (made == outcome::too_long) {
            begin(nullptr);
            step_ = std::max(goal.last_step, facts_.deviation / 2);
            next_phase();
        }
        for (;; next_phase()) {
            if (made == outcome::budget_spent) return placed_ ? outcome::placed : made;
            if (made == outcome::placed) {
                if (is_good(result_) || step_ <= goal.last_step) return made;
                step_ = next_step();
            } else {
                // A step that is too small for prices so far off would take forever: a larger one goes on from there.
                step_ *= 8;
                most_rounds *= 2;
            }
        }
    }

    /// The best certificate so far; its are the caller's experts and prices().
    const assignment_result& result() const { return result_; }
    const double* prices() const { return prices_; }
    /// Those of this moment.
    const double* present_prices() const { return market_.price; }
    index_t rounds() const { return rounds_; }
    index_t phases() const { return phases_; }
    index_t certificates() const { return certificates_; }

  private:
    static constexpr index_t no_limit = std::numeric_limits<index_t>::max();
    static constexpr index_t rounds_of_warm_start = 512;
    static constexpr index_t rounds_of_small_step = 8192;
    static constexpr index_t rounds_till_stuck = 256;
    static constexpr index_t rounds_between_reads = 4;
    static constexpr index_t rounds_to_fill = 8;
    static constexpr index_t tokens_of_a_straggler = 256;  // fewer open tokens than one in so many are few

    /// How far prices are off, roughly: smaller steps are for nothing.
    double noise() const {
        return facts_.deviation * 0.05 * std::sqrt(static_cast<double>(market_.experts) / static_cast<double>(tokens_));
    }

    void begin(const double* given) {
        for_each_index(policy_, market_.experts, begin_prices{given, 4 * facts_.span(), market_.price});
    }

    bool is_good(const assignment_result& found) const { return found.gap <= std::max(goal_.gap, found.tolerance); }

    /// Prices are off by about the step: a far smaller one would take far longer.
    double next_step() const {
        if (step_ > first_goal_) return std::max(step_ / 5, first_goal_);
        const double fitting = step_ * std::max(goal_.gap, result_.tolerance) / (2 * last_gap_);
        return std::max(goal_.last_step, std::clamp(fitting, step_ / 32, step_ / 4));
    }

    /// One auction from the present prices, until all tokens have places, or few have none and what these can do is
    /// good enough. With steps that only look for prices, it ends when few have none in any case.
    template <class Stuck>
    outcome phase(index_t most_rounds, auction_budget& budget, Stuck&& stuck) {
        phases_ += 1;
        for_each_index(policy_, market_.rows, open_rows{market_, mask_});
        for_each_index(policy_, market_.experts, open_experts{market_});
        if (market_.dummies > 0) {
            policy_.sort_by_key(market_.key, market_.by_ask, market_.experts, scratch_);
        }
        take_bids();  // nobody's: the dummies find places
        index_t few = tokens_ / tokens_of_a_straggler;
        for (index_t round = 0; round < most_rounds; ++round) {
            if (!budget.take_round(tokens_)) return outcome::budget_spent;
            rounds_ += 1;
            make_bids(policy_, market_.rows, bid_of_row<S, space>{market_, scores_, facts_.span(), step_});
            take_bids();
            if (round == rounds_till_stuck) stuck();
            if (round % rounds_between_reads != 0) continue;
            const index_t open = count_open(market_);
            if (open > few) continue;
            const bool is_filled = fill(open);
            if (open == 0 || (is_filled && (is_good(result_) || step_ > first_goal_))) {
                for_each_index(policy_, market_.experts, copy_prices{found_prices_, market_.price});
                return outcome::placed;
            }
            few = open / 2;
        }
        return outcome::too_long;
    }

    /// Rows by expert, the lowest levels first.
    void line_up(const device_market& market) {
        for_each_index(policy_, market.rows, line_up_levels{market});
        policy_.sort_by_key(market.key, market.by_level, market.rows, scratch_);
        for_each_index(policy_, market.rows, line_up_experts{market});
        sort_line(policy_, market.line, scratch_);
    }

    void take_bids() {
        const index_t rows = market_.rows;
        line_up(market_);
        for_each_index(policy_, rows, take_best_bids{market_});
        if (market_.dummies > 0) {
            for_each_index(policy_, rows, marks_by_level{market_});
            policy_.inclusive_sum(market_.count, rows, scratch_);
            for_each_index(policy_, rows, rank_by_level{market_});
            for_each_index(policy_, market_.experts, seats_by_ask{market_});
            policy_.inclusive_sum(market_.seats, market_.experts, scratch_);
            for_each_index(policy_, 1, raise_water{market_});
            for_each_index(policy_, rows, leave_flooded{market_});
        }
        for_each_index(policy_, market_.experts, settle_expert{market_});
    }

    index_t count_open(const device_market& market) {
        const auto scope = scratch_.open();
        for_each_index(policy_, market.rows, is_open{market});
        return read_from(policy_, fold(policy_, market.count, market.rows, index_t{1}, plus{}, scratch_));
    }

    /// Gives open tokens what is free, certifies the assignment at the present prices, and keeps the best one. False
    /// where it is none: they did not find places, or lower bounds are not met.
    bool fill(index_t open) {
        for_each_index(policy_, market_.rows, copy_rows{market_, filled_});
        for_each_index(policy_, market_.experts, copy_loads{market_, filled_});
        for (index_t round = 0; open > 0 && round < rounds_to_fill; ++round) {
            for_each_index(policy_, 1, count_missing{filled_});
            for_each_index(policy_, filled_.rows, ask_for_room<S, space>{filled_, scores_});
            line_up(filled_);
            for_each_index(policy_, filled_.rows, take_askers{filled_});
            for_each_index(policy_, filled_.experts, settle_room{filled_});
            open = count_open(filled_);
        }
        for_each_index(policy_, 1, count_missing{filled_});
        if (open > 0 || read_from(policy_, filled_.state).missing > 0) return false;
        const assignment_result found = certificate();
        last_gap_ = found.gap;
        if (placed_ && found.gap >= result_.gap) return true;
        result_ = found;
        placed_ = true;
        for_each_index(policy_, filled_.rows, hand_out_experts{filled_, expert_of_token_});
        for_each_index(policy_, filled_.experts, copy_prices{found_prices_, prices_});
        return true;
    }

    /// The certificate of the filled market.
    assignment_result certificate() {
        const auto scope = scratch_.open();
        const index_t rows = filled_.rows;
        const index_t experts = filled_.experts;
        certificates_ += 1;
        for_each_index(policy_, 1, count_prices{filled_, facts_.span(), found_prices_});
        auto* const terms = scratch_.template take<device_certificate>(rows);
        auto* const others = scratch_.template take<device_certificate>(experts);
        for_each_index(policy_, rows, certify_row<S, space>{filled_, scores_, found_prices_, terms});
        for_each_index(policy_, experts, certify_expert{filled_, found_prices_, others});
        const device_certificate found =
            read_from(policy_, fold(policy_, terms, rows, index_t{1}, plus{}, scratch_)) +
            read_from(policy_, fold(policy_, others, experts, index_t{1}, plus{}, scratch_));
        assignment_result result;
        result.tokens = tokens_;
        result.primal = found.primal;
        result.gap = found.gap;
        result.dual = found.primal + found.gap;
        result.tolerance = 1e-9 * found.magnitude + 1e-12;
        return result;
    }

    const Policy& policy_;
    device_scores<S, space> scores_;
    token_mask mask_;
    auction_scores facts_;
    index_t tokens_;
    std::int32_t* expert_of_token_;
    device_workspace<Policy>& scratch_;
    device_market market_;
    device_market filled_;  // shares all but the rows' experts and the loads
    double* found_prices_;  // [E], of the last certificate
    double* prices_;        // [E], of the best one
    auction_goal goal_;
    double step_ = 0;
    double first_goal_ = 0;     // steps above it only look for prices
    double last_gap_ = 0;       // of the last certificate, 0 before
    assignment_result result_;  // the best
    bool placed_ = false;       // there is one
    index_t certificates_ = 0;
    index_t rounds_ = 0;
    index_t phases_ = 0;
};

}  // namespace detail
}  // namespace SWITCHYARD_TARGET
}  // namespace switchyard
