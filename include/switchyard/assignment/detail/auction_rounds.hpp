// The rounds of an auction: the tokens with open places bid at the prices as they stand, all at once (Jacobi's order),
// then the experts take the best bids, and those who lost their places bid in a later round.
//
// A round takes the tokens that have waited longest, an eighth of all at most: in rounds of all tokens, most would bid
// at prices that the others' bids make obsolete. Bids are found in blocks by any number of threads; experts take them
// in the order of the round, on the calling thread: the result is the same for every policy.
#pragma once

#include <switchyard/assignment/detail/auction_bids.hpp>
#include <switchyard/assignment/detail/auction_market.hpp>
#include <switchyard/assignment/detail/pass_threads.hpp>
#include <switchyard/assignment/detail/score_rows.hpp>
#include <switchyard/backend/policy.hpp>
#include <switchyard/core/config.hpp>
#include <switchyard/core/scalar_traits.hpp>
#include <switchyard/core/workspace.hpp>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <limits>
#include <type_traits>

namespace switchyard {
inline namespace SWITCHYARD_TARGET {
namespace detail {

/// What an auction may still take: counted over all its phases.
struct auction_budget {
    using clock = std::chrono::steady_clock;
    index_t rounds_left = 0;
    bool has_deadline = false;
    clock::time_point deadline{};
    index_t bids_unchecked = 0;
    bool spent = false;

    /// Takes a round of so many bids; false where there is none left.
    bool take_round(index_t bids) {
        spent = spent || rounds_left == 0;
        if (spent) return false;
        rounds_left -= 1;
        bids_unchecked += bids;
        if (has_deadline && bids_unchecked >= 256) {
            bids_unchecked = 0;
            spent = clock::now() >= deadline;
        }
        return !spent;
    }
};

template <class S>
class auction_rounds {
  public:
    using narrow = compute_t<S>;

    auction_rounds(const score_source<S>& scores, index_t tokens, index_t choices, double score_span,
                   double largest_size, workspace& scratch)
        : scores_(scores),
          experts_(scores.experts()),
          choices_(choices),
          span_(score_span),
          largest_size_(largest_size),
          market_(experts_, tokens * choices, scratch) {
        expert_of_ = scratch.take<std::int32_t>(tokens * choices);
        waiting_ = scratch.take<std::int32_t>(tokens);
        is_waiting_ = scratch.take<std::uint8_t>(tokens);
        room_ = std::min(tokens, std::clamp(tokens / 8, tokens_per_round, most_tokens_per_round));
        bidders_ = scratch.take<std::int32_t>(room_);
        bid_expert_ = scratch.take<std::int32_t>(room_ * choices);
        bid_level_ = scratch.take<double>(room_ * choices);
        row_room_ = padded_row(experts_);
        prices_ = scratch.take<double>(row_room_);
        narrow_prices_ = scratch.take<narrow>(row_room_);
        block_rows_ = scratch.take<double>(2 * row_room_ * blocks_of(room_));
    }

    /// Auctions the places of the experts to rows[0 .. tokens), from the prices of the market. Returns false where the
    /// budget was spent before all were placed, or bids beyond `most_bids`.
    template <class Policy, class Bounds>
    bool run(const Policy& policy, const std::int32_t* rows, index_t tokens, Bounds&& bounds, double step,
             index_t most_bids, auction_budget& budget) {
        rows_ = rows;
        tokens_ = tokens;
        step_ = step;
        market_.open(tokens * choices_, bounds);
        std::fill_n(expert_of_, tokens * choices_, -1);
        first_ = 0;
        count_ = 0;
        std::fill_n(is_waiting_, tokens, std::uint8_t{0});
        for (index_t i = 0; i < tokens; ++i) wait(static_cast<std::int32_t>(i));
        // Rounding of narrow numbers must be small beside the step; prices seldom leave four times the scores' span.
        constexpr double rounding = std::numeric_limits<narrow>::epsilon();
        constexpr double most = std::numeric_limits<narrow>::max() / 16;  // a margin beyond that would look forbidden
        const double sizes = largest_size_ + 4 * span_;
        const bool may_be_narrow = rounding * sizes <= step / 32 && sizes < most && step > smallest_step;
        shifts_rows_ = std::numeric_limits<double>::epsilon() * largest_size_ > step / 32;
        for (index_t bids = 0; count_ > 0;) {
            const index_t bidders = std::min(count_, room_);
            if (bids > most_bids || !budget.take_round(bidders)) return false;
            for (index_t i = 0; i < bidders; ++i) bidders_[i] = next_waiting();
            if (may_be_narrow) {
                find_bids<narrow>(policy, narrow_prices_, bidders);
            } else {
                find_bids<double>(policy, prices_, bidders);
            }
            take_bids(bidders);
            bids += bidders;
            rounds_ += 1;
            bids_ += bidders;
        }
        return true;
    }

    /// Prices counted from the market's zero: the water level, or where all places are taken the lowest price.
    void count_prices_from_market() {
        double* const prices = market_.prices();
        const double zero = market_.has_dummies() ? market_.water() : *std::min_element(prices, prices + experts_);
        for (index_t e = 0; e < experts_; ++e) prices[e] -= std::isfinite(zero) ? zero : 0.0;
    }

    double* prices() { return market_.prices(); }
    const std::int32_t* experts_of_places() const { return expert_of_; }
    /// f(row, experts) for each token of the last auction: its row of the scores, and k experts or -1.
    template <class F>
    void for_each_token(F&& f) const {
        for (index_t i = 0; i < tokens_; ++i) f(rows_[i], expert_of_ + i * choices_);
    }

    index_t rounds() const { return rounds_; }
    index_t bids() const { return bids_; }

  private:
    // Prices that smaller steps add up to may be lost in narrow numbers.
    static constexpr double smallest_step = 1e-30;
    static constexpr index_t tokens_per_round = 2048;
    static constexpr index_t most_tokens_per_round = 8192;
    static constexpr index_t tokens_per_block = 64;

    static index_t blocks_of(index_t bidders) { return (bidders + tokens_per_block - 1) / tokens_per_block; }

    void wait(std::int32_t token) {
        if (is_waiting_[token] != 0) return;
        is_waiting_[token] = 1;
        index_t last = first_ + count_++;
        if (last >= tokens_) last -= tokens_;
        waiting_[last] = token;
    }

    std::int32_t next_waiting() {
        const std::int32_t token = waiting_[first_];
        is_waiting_[token] = 0;
        first_ = first_ + 1 == tokens_ ? 0 : first_ + 1;
        count_ -= 1;
        return token;
    }

    template <class Real, class Policy>
    void find_bids(const Policy& policy, Real* prices, index_t bidders) {
        const double* const exact = market_.prices();
        for (index_t e = 0; e < experts_; ++e) prices[e] = static_cast<Real>(exact[e]);
        std::fill(prices + experts_, prices + row_room_, Real(0));
        const auto find_block = [&](index_t b) {
            Real* const copy = reinterpret_cast<Real*>(block_rows_ + 2 * row_room_ * b);
            const index_t last = std::min(bidders, (b + 1) * tokens_per_block);
            for (index_t i = b * tokens_per_block; i < last; ++i) {
                if (i + 8 < last) call_in(rows_[bidders_[i + 8]]);
                if (choices_ == 1) {
                    find_bid(i, prices, copy, copy + row_room_);
                } else {
                    find_several_bids(i, prices, copy, copy + row_room_);
                }
            }
        };
        for_blocks_of_scores(policy, bidders * experts_, blocks_of(bidders), find_block);
    }

    SWITCHYARD_ALWAYS_INLINE void call_in(index_t row) const {
        if (scores_.scores.column_stride != 1) return;
        const S* const from = scores_.scores.row(row);
        constexpr index_t line = 64 / static_cast<index_t>(sizeof(S));
        for (index_t e = 0; e < std::min(experts_, 16 * line); e += line) __builtin_prefetch(from + e);
    }

    template <class Real>
    const Real* read(index_t row, Real* copy) const {
        if constexpr (std::is_same_v<Real, double>) {
            if (shifts_rows_) return shifted_row_of(scores_, row, copy);
        }
        return row_of(scores_, row, copy);
    }

    /// The level of a bid that leaves the token with the margin of the next best expert, less the step.
    double level_for(double score, double price, double next_margin) const {
        // Where there is no next best, whatever others may pay is too little: they are outbid in steps of the span.
        const double level = std::max(price, std::min(score - next_margin, price + span_)) + step_;
        return level > price ? level : std::nextafter(price, std::numeric_limits<double>::infinity());
    }

    template <class Real>
    void find_bid(index_t bidder, const Real* prices, Real* copy, Real* margins) {
        const std::int32_t token = bidders_[bidder];
        const Real* const row = read(rows_[token], copy);
        const best_two<Real> found = find_best_two(row, prices, experts_, token % experts_, margins);
        bid_expert_[bidder] = static_cast<std::int32_t>(found.expert);
        bid_level_[bidder] = level_for(static_cast<double>(row[found.expert]), market_.prices()[found.expert],
                                       static_cast<double>(found.second));
    }

    /// k experts per token: the best for its open places, of those it has not, against the best that it leaves.
    template <class Real>
    void find_several_bids(index_t bidder, const Real* prices, Real* copy, Real* margins) {
        constexpr Real lowest = -std::numeric_limits<Real>::infinity();
        const std::int32_t token = bidders_[bidder];
        const Real* const row = read(rows_[token], copy);
        find_margins(row, prices, experts_, margins);
        index_t open = 0;
        for (index_t j = 0; j < choices_; ++j) {
            const std::int32_t held = expert_of_[token * choices_ + j];
            if (held < 0) {
                open += 1;
            } else {
                margins[held] = lowest;
            }
        }
        std::int32_t* const experts = bid_expert_ + bidder * choices_;
        Real next = lowest;
        for (index_t j = 0; j <= open; ++j) {
            next = highest_margin(margins, experts_);
            if (j == open) break;
            const index_t best = position_of(margins, experts_, next, token % experts_);
            experts[j] = static_cast<std::int32_t>(best);
            margins[best] = lowest;
        }
        std::fill(experts + open, experts + choices_, -1);
        for (index_t j = 0; j < open; ++j) {
            const std::int32_t e = experts[j];
            bid_level_[bidder * choices_ + j] =
                level_for(static_cast<double>(row[e]), market_.prices()[e], static_cast<double>(next));
        }
    }

    void take_bids(index_t bidders) {
        const auto outbid = [this](std::int32_t place) {
            expert_of_[place] = -1;
            wait(static_cast<std::int32_t>(choices_ == 1 ? place : place / choices_));
        };
        for (index_t i = 0; i < bidders; ++i) {
            const index_t places = bidders_[i] * choices_;
            for (index_t j = 0, b = i * choices_; j < choices_; ++j) {
                if (expert_of_[places + j] >= 0) continue;
                const std::int32_t e = bid_expert_[b];
                if (e < 0) break;
                const auto place = static_cast<std::int32_t>(places + j);
                expert_of_[place] = e;
                market_.bid(place, e, bid_level_[b], outbid);
                ++b;
            }
        }
        market_.raise_water(outbid);
    }

    score_source<S> scores_;
    index_t experts_;
    index_t choices_;
    double span_;
    double largest_size_;
    auction_market market_;
    const std::int32_t* rows_ = nullptr;  // which rows of the scores the tokens are
    index_t tokens_ = 0;
    double step_ = 0;
    bool shifts_rows_ = false;  // in double, scores are too large for the step
    index_t first_ = 0;         // in waiting_
    index_t count_ = 0;
    index_t rounds_ = 0;
    index_t bids_ = 0;
    index_t room_ = 0;          // bidders a round, at most
    index_t row_room_ = 0;      // numbers of a padded row
    std::int32_t* expert_of_;   // [T, k], -1 where a place is open: who owns what
    std::int32_t* waiting_;     // [T]: a ring
    std::uint8_t* is_waiting_;  // [T]
    std::int32_t* bidders_;     // [room]
    std::int32_t* bid_expert_;  // [room, k]
    double* bid_level_;         // [room, k]
    double* prices_;            // [padded E]
    narrow* narrow_prices_;     // [padded E]
    double* block_rows_;        // [blocks, 2, padded E]
};

}  // namespace detail
}  // namespace SWITCHYARD_TARGET
}  // namespace switchyard
