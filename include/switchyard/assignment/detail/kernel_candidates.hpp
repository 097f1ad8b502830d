// The host's part of an exact assignment on a device: a parcel of candidates (kernel_narrowing.hpp), solved by
// `hungarian` on one thread with what the fixed tokens leave of the quotas, and the certificate of all tokens.
//
// Fixed tokens have no regret as long as no two prices have moved apart by more than the band; the certificate adds
// their scores, which the device summed up, to the candidates' terms. Closed experts (upper quota 0) have no terms, as
// long as no token prefers them at their prices: the device finds such prices afterwards, from all tokens.
#pragma once

#include <switchyard/assignment/assignment.hpp>
#include <switchyard/assignment/detail/certificate.hpp>
#include <switchyard/assignment/detail/completion.hpp>
#include <switchyard/assignment/detail/kernel_narrowing.hpp>
#include <switchyard/assignment/hungarian.hpp>
#include <switchyard/assignment/quotas.hpp>
#include <switchyard/core/config.hpp>
#include <switchyard/core/workspace.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

namespace switchyard {
inline namespace SWITCHYARD_TARGET {
namespace detail {

/// Where the host's part writes.
struct host_outcome {
    enum class kind {
        solved,     ///< and the certificate holds for all tokens
        stopped,    ///< a limit of the settings was met: complete, and to be certified
        too_narrow  ///< the prices moved too far, or the fixed tokens are in the way
    };
    kind made = kind::too_narrow;
    assignment_result result;
};

/// The candidates on the host: solved with what the fixed tokens leave of the quotas.
template <class S>
class candidates_on_host {
  public:
    candidates_on_host(const hungarian& solver, const quotas& bounds, objective goal, const parcel<S>& given,
                       workspace& scratch)
        : solver_(solver),
          bounds_(bounds),
          given_(given),
          header_(*given.header),
          count_(header_.candidates),
          experts_(given.experts),
          scores_{{given.score, count_, experts_}, goal == objective::minimise},
          scratch_(scratch),
          lower_(scratch.take<index_t>(experts_)),
          upper_(scratch.take<index_t>(experts_)),
          load_(scratch.take<index_t>(experts_)),
          price_(scratch.take<double>(experts_)),
          row_(scratch.take<double>(2 * experts_)),
          expert_(scratch.take<std::int32_t>(count_)) {
        std::copy_n(given_.price, experts_, price_);
    }

    host_outcome run() {
        host_outcome outcome;
        if (!reduce_bounds()) return outcome;
        assignment_result reduced;
        if (count_ > 0) {
            const assignment_problem<S> problem{
                .scores = scores_.scores,
                .bounds = {.experts = experts_, .lower_bounds = lower_, .upper_bounds = upper_},
                .goal = scores_.are_costs ? objective::minimise : objective::maximise,
                .initial_prices = given_.price};
            if (!is_feasible()) return outcome;
            reduced = solve(seq, solver_, problem, {.expert_of_token = expert_, .prices = price_}, scratch_);
            if (scores_.are_costs) reduced.primal = -reduced.primal;
            price_full_experts();
        } else {
            count_from_market();
        }
        outcome.result = certify();
        outcome.result.iterations = reduced.iterations;
        outcome.result.repairs = reduced.repairs;
        const bool holds = moved_apart() <= header_.band;
        if (holds && outcome.result.converged) {
            outcome.made = host_outcome::kind::solved;
        } else if (count_ > 0 && !reduced.converged && (solver_.most_iterations > 0 || solver_.time_limit > 0)) {
            outcome.made = host_outcome::kind::stopped;
        }
        return outcome;
    }

    /// [candidates]
    const std::int32_t* experts() const { return expert_; }
    /// [E]; of closed experts only after kernel_closed.hpp has looked at all tokens.
    const double* prices() const { return price_; }

  private:
    /// The candidates' own bounds. False: the fixed tokens alone are too many somewhere, or too few can follow.
    bool reduce_bounds() {
        index_t least = 0;
        index_t most = 0;
        for (index_t e = 0; e < experts_; ++e) {
            const index_t fixed = given_.load[e];
            const index_t upper = std::min<index_t>(bounds_.upper(e), header_.tokens);
            if (fixed > upper) return false;
            lower_[e] = std::max<index_t>(0, bounds_.lower(e) - fixed);
            upper_[e] = upper - fixed;
            least += lower_[e];
            most += upper_[e];
        }
        return least <= count_ && count_ <= most;
    }

    /// Whether forbidden pairs leave an assignment of the candidates: if not, others may have to move.
    bool is_feasible() {
        bool forbidden = false;
        for (index_t i = 0; i < count_ && !forbidden; ++i) {
            scores_.read_row(i, row_);
            for (index_t e = 0; e < experts_; ++e) {
                forbidden = forbidden || row_[e] == -std::numeric_limits<double>::infinity();
            }
        }
        if (!forbidden) return true;
        const auto scope = scratch_.open();
        auto* const concerned = scratch_.take<std::uint8_t>(experts_);
        std::fill_n(expert_, count_, -1);
        const quotas reduced{.experts = experts_, .lower_bounds = lower_, .upper_bounds = upper_};
        return complete_assignment(scores_, reduced, token_mask{}, 1, true, expert_, concerned, scratch_).complete;
    }

    /// Experts that the fixed tokens fill have a price from nobody: as near as can be to what they had, and so high
    /// that no candidate prefers them.
    void price_full_experts() {
        double least = std::numeric_limits<double>::infinity();
        double most = -least;
        for (index_t e = 0; e < experts_; ++e) {
            if (upper_[e] == 0 || !std::isfinite(given_.price[e])) continue;
            least = std::min(least, price_[e] - given_.price[e]);
            most = std::max(most, price_[e] - given_.price[e]);
        }
        const double shift = least <= most ? least + (most - least) / 2 : 0.0;
        for (index_t e = 0; e < experts_; ++e) {
            if (upper_[e] > 0) continue;
            const bool is_closed = std::min<index_t>(bounds_.upper(e), header_.tokens) == 0;
            if (is_closed) continue;  // its price depends on all tokens: kernel_closed.hpp
            double price = given_.price[e] + shift;
            if (bounds_.lower(e) < given_.load[e]) price = std::max(price, 0.0);
            for (index_t i = 0; i < count_; ++i) {
                const double margin = scores_(i, expert_[i]) - price_[expert_[i]];
                price =
                    std::max(price, std::nextafter(scores_(i, e) - margin, std::numeric_limits<double>::infinity()));
            }
            price_[e] = price;
        }
    }

    /// Without candidates, prices are those given, counted from one at which bounds leave freedom.
    void count_from_market() {
        double highest_open = -std::numeric_limits<double>::infinity();
        double lowest_free = std::numeric_limits<double>::infinity();
        for (index_t e = 0; e < experts_; ++e) {
            if (given_.load[e] < std::min<index_t>(bounds_.upper(e), header_.tokens)) {
                highest_open = std::max(highest_open, given_.price[e]);
            }
            if (given_.load[e] > bounds_.lower(e)) lowest_free = std::min(lowest_free, given_.price[e]);
        }
        const double market = std::isfinite(highest_open) ? highest_open : std::isfinite(lowest_free) ? lowest_free : 0;
        for (index_t e = 0; e < experts_; ++e)
            price_[e] = std::isfinite(given_.price[e]) ? given_.price[e] - market : 0;
    }

    /// By how much the difference of two prices has changed at most, closed experts left out.
    double moved_apart() const {
        double least = std::numeric_limits<double>::infinity();
        double most = -least;
        for (index_t e = 0; e < experts_; ++e) {
            if (!std::isfinite(given_.price[e])) continue;
            least = std::min(least, price_[e] - given_.price[e]);
            most = std::max(most, price_[e] - given_.price[e]);
        }
        return most > least ? most - least : 0.0;
    }

    assignment_result certify() {
        accurate_sum primal, magnitude, gap;
        primal.add(header_.primal);
        magnitude.add(header_.magnitude);
        for (index_t e = 0; e < experts_; ++e) load_[e] = given_.load[e];
        for (index_t i = 0; i < count_; ++i) {
            scores_.read_row(i, row_);
            primal.add(row_[expert_[i]]);
            magnitude.add(std::abs(row_[expert_[i]]));
            gap.add(regret(row_, experts_, expert_[i], price_, row_ + experts_));
            load_[expert_[i]] += 1;
        }
        return finish_certificate(bounds_, header_.tokens, load_, price_, primal.value(), magnitude.value(), gap);
    }

    const hungarian& solver_;
    const quotas& bounds_;
    parcel<S> given_;
    parcel_header header_;
    index_t count_;
    index_t experts_;
    score_source<S> scores_;  // [candidates, E]
    workspace& scratch_;
    index_t* lower_;        // [E]: of the candidates
    index_t* upper_;        // [E]
    index_t* load_;         // [E]: of all tokens
    double* price_;         // [E]
    double* row_;           // [2, E] scratch
    std::int32_t* expert_;  // [candidates]
};

}  // namespace detail
}  // namespace SWITCHYARD_TARGET
}  // namespace switchyard
