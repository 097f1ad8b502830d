// Good prices: what `hungarian` finds before its exact part, so that little is left to do there.
//
// The prices that settle all tokens within the quotas minimise D (assignment.hpp), a convex function of E numbers. A
// sample of some tokens per expert already tells most about them. A set of rows is a sample, the tokens that are still
// in question, or all tokens. Small sets are copied side by side; large ones are looked at where they lie, since a copy
// would be no nearer. Two ways to prices for a set:
//
//   start    from nothing: tokens bid for places, each expert keeps the best bids its share of places holds, and the
//            lowest bid it keeps is its price. Coarse steps, then finer ones.
//   refine   from prices that are roughly right: Newton's method. Where tokens are nearly tied between two experts,
//            their number for a small difference of the prices, counted within a band of margins, is how many move when
//            that difference changes: a graph Laplacian L on the experts, and L step = load - goal. A step that does
//            not help is halved.
//
// Nothing here decides anything: whatever the prices, the exact part stays exact. So all of it may be cut short, and
// computes in the scores' own compute type. Counts are integers and sums run in the order of blocks: the same prices
// for every number of threads.
#pragma once

#include <switchyard/assignment/assignment.hpp>
#include <switchyard/assignment/detail/margins.hpp>
#include <switchyard/backend/policy.hpp>
#include <switchyard/core/config.hpp>
#include <switchyard/core/simd.hpp>
#include <switchyard/core/workspace.hpp>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>

namespace switchyard {
inline namespace SWITCHYARD_TARGET {
namespace detail {

/// The loads a set of rows should have: bounds, scaled to the share of all tokens it is.
struct load_goals {
    double* lower;  // [E]
    double* upper;  // [E]

    /// Where the load of expert e should be, given its price and what it is.
    double at(index_t e, double price, double load) const {
        if (price > 0) return upper[e];
        if (price < 0) return lower[e];
        return std::clamp(load, lower[e], upper[e]);
    }
    bool tied(index_t e) const { return lower[e] == upper[e]; }
};

/// How far to refine prices.
struct refinement {
    double enough = 0;             ///< places beyond the goals that are as good as none
    bool looked = false;           ///< the last look was one at these prices: it need not be made again
    bool until_paths_pay = false;  ///< no further than looks are cheaper than shortest paths
    int most_steps = 12;
};
struct refined {
    index_t steps = 0;  ///< that helped
    index_t looks = 0;  ///< at all rows of the set
};

template <class S>
class price_search {
  public:
    using compute = compute_t<S>;
    static constexpr int width = native_width<compute>;

    /// Memory for all tokens, and for sets of up to `most_rows` of them.
    price_search(const score_source<S>& scores, const quotas& bounds, index_t tokens, index_t choices,
                 index_t most_rows, workspace& scratch)
        : source_{scores},
          bounds_(bounds),
          tokens_(tokens),
          choices_(choices),
          experts_(scores.experts()),
          room_(source_.direct() ? std::min(most_rows * experts_, worth_copying) : most_rows * experts_),
          values_(scratch.take<compute>(room_)),
          margin_(scratch.take<compute>(tokens)),
          score_(scratch.take<compute>(tokens * choices)),
          expert_(scratch.take<std::int32_t>(tokens * choices)),
          next_(scratch.take<std::int32_t>(tokens)),
          rounded_(scratch.take<compute>(experts_)),
          goals_{scratch.take<double>(experts_), scratch.take<double>(experts_)},
          fixed_(scratch.take<index_t>(experts_)),
          load_(scratch.take<index_t>(experts_)),
          blocks_(scratch.take<block_sums>(block_count(tokens))),
          block_load_(scratch.take<std::int32_t>(block_count(tokens) * experts_)),
          block_row_(scratch.take<compute>((2 * block_count(tokens) + 1) * row_room())),
          step_(scratch.take<double>(experts_)),
          from_(scratch.take<double>(experts_)),
          residual_(scratch.take<double>(experts_)),
          direction_(scratch.take<double>(experts_)),
          product_(scratch.take<double>(experts_)),
          degree_(scratch.take<double>(experts_)),
          pairs_(scratch.take<torn_pair>(experts_ <= most_tabled ? experts_ * experts_ / 2 : tokens)),
          table_(scratch.take<std::int32_t>(experts_ <= most_tabled ? experts_ * experts_ : 0)),
          bids_(scratch.take<bid>(most_rows + experts_)),
          first_bid_(scratch.take<index_t>(experts_ + 1)),
          bid_count_(scratch.take<index_t>(experts_)),
          open_(scratch.take<std::int32_t>(most_rows)) {}

    /// The set is a sample of the tokens.
    template <class Policy>
    void take_sample(const Policy& policy, const std::int32_t* rows, index_t count) {
        take(policy, rows, count);
        std::fill_n(fixed_, experts_, index_t{0});
        set_goals(static_cast<double>(count) / static_cast<double>(tokens_));
    }
    /// The set is all tokens.
    void take_all(const std::int32_t* rows) {
        copied_ = false;
        set_ = rows;
        count_ = tokens_;
        std::fill_n(fixed_, experts_, index_t{0});
        set_goals(1.0);
    }

    /// The set is what is left of all tokens without those with margins of at least `band`, which make `fixed` loads
    /// [E]. The last look holds for it, too.
    template <class Policy>
    void keep_below(const Policy& policy, double band, const std::int32_t* rows, const index_t* fixed);
    template <class Policy>
    double look(const Policy& policy, const double* price);
    void start(double* price);
    template <class Policy>
    refined refine(const Policy& policy, double* price, const refinement& wanted);
    double spread() const;
    double excess(const double* price) const;

    // What the last look found.
    const compute* margins() const { return margin_; }       ///< [count]
    const std::int32_t* experts() const { return expert_; }  ///< [count, k]
    const compute* scores() const { return score_; }         ///< [count, k]: theirs
    const index_t* loads() const { return load_; }           ///< [E]
    index_t count() const { return count_; }
    index_t suspect() const { return suspect_; }  ///< first row that may be unusable, -1: none
    /// A margin that about `wanted` rows of the set stay below, all of the same size included; infinity: all do.
    double band_for(index_t wanted) const;

  private:
    static constexpr index_t most_tabled = 512;
    static constexpr index_t worth_copying = 256 * 1024;  // scores that a copy keeps in the second cache
    static constexpr index_t scores_ahead = 1024;         // to be called into the cache while others are looked at
    struct torn_pair {
        std::int32_t first, second;
        double weight;
    };
    struct bid {
        compute level;
        std::int32_t row;
        friend bool operator<(const bid& a, const bid& b) {  // the lowest bid on top of a heap, the last of equal ones
            return a.level > b.level || (a.level == b.level && a.row < b.row);
        }
    };

    /// How good prices are for the set.
    struct outcome {
        double value = 0;   ///< the part of D that depends on the prices
        double excess = 0;  ///< places beyond the goals
    };
    /// What a look at a block of rows adds up.
    struct block_sums {
        double value;
        index_t suspect;
    };

    /// Numbers that scratch for a row takes.
    index_t row_room() const { return (experts_ + width - 1) / width * width; }
    /// Row i of the set; `scratch` is for one that does not lie ready.
    const compute* row(index_t i, compute* scratch) const {
        return copied_ ? values_ + i * experts_ : source_.row(set_[i], scratch);
    }
    template <class Policy>
    void take(const Policy& policy, const std::int32_t* rows, index_t count) {
        copied_ = count * experts_ <= room_;
        set_ = rows;
        count_ = count;
        if (!copied_) return;
        const index_t per_block = rows_per_block(count);
        policy.parallel_for(block_count(count), [&](index_t b) {
            for (index_t i = b * per_block; i < std::min(count, (b + 1) * per_block); ++i) {
                source_.copy(rows[i], values_ + i * experts_);
            }
        });
    }
    void set_goals(double share);
    static double value_of(compute score, compute price) {
        return static_cast<double>(score) - static_cast<double>(price);
    }
    rounded_prices<compute> rounded(const double* price) { return round_prices(price, experts_, rounded_); }
    void look_at_block(index_t b, index_t first, index_t last, const rounded_prices<compute>& prices);
    void share_out_tied(const rounded_prices<compute>& prices);
    template <class Policy>
    outcome try_prices(const Policy& policy, double* price);
    double value_at(const double* price) const;
    void move(double part, double furthest, double* price) const;
    template <class Policy>
    bool search_line(const Policy& policy, double furthest, double worth, double* price, outcome& now, index_t& looks);
    double step_band(index_t torn) const;
    index_t torn_pairs(double band);
    void solve_step(const double* price, index_t pair_count);
    void bid_once(std::int32_t i, compute step, const rounded_prices<compute>& prices, index_t& open_count);

    compute_rows<S> source_;
    quotas bounds_;
    index_t tokens_;
    index_t choices_;
    index_t experts_;
    bool copied_ = true;
    const std::int32_t* set_ = nullptr;  // [count]: the rows in the set
    index_t count_ = 0;
    index_t suspect_ = -1;
    double part_ = 1;       // of a Newton step, to try first
    double sum_ = 0;        // of the last look: scores of the chosen experts less their prices
    index_t room_;          // for scores that are copied
    compute* values_;       // [count, E], if copied
    compute* margin_;       // [count]
    compute* score_;        // [count, k]: of the chosen experts
    std::int32_t* expert_;  // [count, k]
    std::int32_t* next_;    // [count]: the expert after the last choice
    compute* rounded_;      // [E]: prices as looks read them
    load_goals goals_;
    index_t* fixed_;            // [E]: loads of tokens that are not in the set
    index_t* load_;             // [E]: of all
    block_sums* blocks_;        // [blocks]
    std::int32_t* block_load_;  // [blocks, E]
    compute* block_row_;        // [blocks, 2, E rounded up] scratch
    double* step_;              // [E]
    double* from_;              // [E]: prices before a step
    double* residual_;          // [E]
    double* direction_;         // [E]
    double* product_;           // [E]
    double* degree_;            // [E]
    torn_pair* pairs_;
    std::int32_t* table_;  // [E, E] tokens nearly tied between two experts
    bid* bids_;            // a heap for each expert
    index_t* first_bid_;   // [E + 1]
    index_t* bid_count_;   // [E]
    std::int32_t* open_;   // rows without a place
};

/// Bounds that are (nearly) equal leave no room for the sign of a price to say anything: then the goal is one number.
template <class S>
void price_search<S>::set_goals(double share) {
    double lower_sum = 0;
    double upper_sum = 0;
    const auto upper = [&](index_t e) { return std::min(bounds_.upper(e), tokens_); };
    for (index_t e = 0; e < experts_; ++e) {
        lower_sum += static_cast<double>(bounds_.lower(e));
        upper_sum += static_cast<double>(upper(e));
    }
    const double places = static_cast<double>(tokens_ * choices_);
    const double part = upper_sum > lower_sum ? (places - lower_sum) / (upper_sum - lower_sum) : 0.0;
    for (index_t e = 0; e < experts_; ++e) {
        const auto lower = static_cast<double>(bounds_.lower(e));
        const double freedom = static_cast<double>(upper(e)) - lower;
        const bool nearly_equal = freedom <= std::max(1.0, 0.02 * static_cast<double>(upper(e)));
        goals_.lower[e] = share * (nearly_equal ? lower + part * freedom : lower);
        goals_.upper[e] = nearly_equal ? goals_.lower[e] : share * (lower + freedom);
    }
}

/// Rows first .. last of block b.
template <class S>
void price_search<S>::look_at_block(index_t b, index_t first, index_t last, const rounded_prices<compute>& prices) {
    std::int32_t* const loads = block_load_ + b * experts_;
    compute* const copy = block_row_ + 2 * b * row_room();
    std::fill_n(loads, experts_, 0);
    block_sums sums{0, -1};
    const index_t ahead = std::max<index_t>(1, scores_ahead / experts_);
    for (index_t i = first; i < last; ++i) {
        if (!copied_ && i + ahead < last) source_.call_in(set_[i + ahead]);
        std::int32_t* const chosen = expert_ + i * choices_;
        const compute* const scores = row(i, copy);
        const auto wish = choices_ == 1 ? wish_of<width, true>(scores, prices, experts_)
                                        : wish_of<width>(scores, prices, experts_, choices_, chosen, copy + row_room());
        next_[i] = wish.next;
        margin_[i] = wish.margin;
        if (!wish.usable) {
            sums.suspect = sums.suspect < 0 ? set_[i] : sums.suspect;
            std::fill_n(chosen, choices_, -1);
        } else if (choices_ == 1) {
            chosen[0] = wish.expert;
            score_[i] = scores[wish.expert];
            if (wish.margin > 0) loads[wish.expert] += 1;
            sums.value += value_of(score_[i], prices.price[wish.expert]);
        } else {
            for (index_t c = 0; c < choices_; ++c) {
                loads[chosen[c]] += 1;
                score_[i * choices_ + c] = scores[chosen[c]];
                sums.value += value_of(scores[chosen[c]], prices.price[chosen[c]]);
            }
        }
    }
    blocks_[b] = sums;
}

/// All rows at these prices: choices, margins and loads. Returns value_at them.
template <class S>
template <class Policy>
double price_search<S>::look(const Policy& policy, const double* price) {
    const auto prices = rounded(price);
    const index_t per_block = rows_per_block(count_);
    const index_t blocks = block_count(count_);
    policy.parallel_for(
        blocks, [&](index_t b) { look_at_block(b, b * per_block, std::min(count_, (b + 1) * per_block), prices); });
    sum_ = 0;
    suspect_ = -1;
    std::copy_n(fixed_, experts_, load_);
    for (index_t b = 0; b < blocks; ++b) {
        sum_ += blocks_[b].value;
        suspect_ = suspect_ < 0 ? blocks_[b].suspect : suspect_;
        for (index_t e = 0; e < experts_; ++e) load_[e] += block_load_[b * experts_ + e];
    }
    if (choices_ == 1) share_out_tied(prices);
    return value_at(price);
}

/// The part of D that depends on the prices, the last look having been made at these.
template <class S>
double price_search<S>::value_at(const double* price) const {
    double value = sum_;
    for (index_t e = 0; e < experts_; ++e) {
        if (price[e] == std::numeric_limits<double>::infinity()) continue;
        value += price[e] * (goals_.at(e, price[e], 0) - static_cast<double>(fixed_[e]));
    }
    return value;
}

/// The rest of the set, with what the last look found for it.
template <class S>
template <class Policy>
void price_search<S>::keep_below(const Policy& policy, double band, const std::int32_t* rows, const index_t* fixed) {
    index_t kept = 0;
    sum_ = 0;
    for (index_t i = 0; i < count_; ++i) {
        if (static_cast<double>(margin_[i]) >= band) continue;
        margin_[kept] = margin_[i];
        next_[kept] = next_[i];
        for (index_t c = 0; c < choices_; ++c) {
            const std::int32_t e = expert_[i * choices_ + c];
            expert_[kept * choices_ + c] = e;
            score_[kept * choices_ + c] = score_[i * choices_ + c];
            if (e >= 0) sum_ += value_of(score_[i * choices_ + c], rounded_[e]);
        }
        ++kept;
    }
    take(policy, rows, kept);
    std::copy_n(fixed, experts_, fixed_);
    set_goals(1.0);
}

/// Rows that several experts suit equally count where most room is.
template <class S>
void price_search<S>::share_out_tied(const rounded_prices<compute>& prices) {
    using P = pack<compute, width>;
    constexpr compute infinity = std::numeric_limits<compute>::infinity();
    compute* const rooms = block_row_ + row_room();
    compute* const tied_rooms = rooms + row_room();
    const auto room = [&](index_t e) { return static_cast<compute>(goals_.upper[e] - static_cast<double>(load_[e])); };
    for (index_t e = 0; e < row_room(); ++e) rooms[e] = e < experts_ ? room(e) : -infinity;
    for (index_t i = 0; i < count_; ++i) {
        if (expert_[i] < 0 || margin_[i] > 0) continue;
        const compute* const scores = row(i, block_row_);
        const compute reference = reference_of(scores);
        const compute best = (scores[expert_[i]] - reference) - prices.price[expert_[i]];
        // As good as the best, or nearly: safe_margin of nothing is what rounding makes, negative.
        const P enough = P::all(best + safe_margin(best, best, prices.largest));
        for (index_t e = 0; e < experts_; e += width) {
            const index_t n = experts_ - e;
            const P score = n >= width ? P::load(scores + e) : P::load_first(scores + e, n, -infinity);
            const P price = n >= width ? P::load(prices.price + e) : P::load_first(prices.price + e, n, compute(0));
            at_least_or((score - P::all(reference)) - price, enough, P::load(rooms + e), P::all(-infinity))
                .store(tied_rooms + e);
        }
        const index_t roomiest = place_of_largest<width>(tied_rooms, experts_);
        expert_[i] = static_cast<std::int32_t>(roomiest);
        score_[i] = scores[roomiest];
        load_[roomiest] += 1;
        rooms[roomiest] = room(roomiest);
    }
}

/// Places taken beyond the goals.
template <class S>
double price_search<S>::excess(const double* price) const {
    double sum = 0;
    for (index_t e = 0; e < experts_; ++e) {
        const auto load = static_cast<double>(load_[e]);
        sum += std::abs(load - goals_.at(e, price[e], load));
    }
    return sum / 2;
}

template <class S>
double price_search<S>::band_for(index_t wanted) const {
    // Margins by size, eight bins to a power of two; bin 0 holds those of nothing.
    constexpr int bins = 2048;
    constexpr int last_finite = 2039;
    std::int32_t counts[bins] = {};
    for (index_t i = 0; i < count_; ++i) {
        const auto bits = std::bit_cast<std::uint32_t>(static_cast<float>(margin_[i]));
        counts[margin_[i] > 0 ? bits >> 20 : 0] += 1;
    }
    std::uint32_t bin = 0;
    for (index_t below = counts[0]; bin < last_finite && below < wanted; below += counts[bin]) ++bin;
    return static_cast<double>(std::bit_cast<float>((bin + 1) << 20));
}

}  // namespace detail
}  // namespace SWITCHYARD_TARGET
}  // namespace switchyard
