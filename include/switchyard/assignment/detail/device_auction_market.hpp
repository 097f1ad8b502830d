// The auction's market on a device: row programs and per-expert programs around two stable sorts a round.
//
// Prices, dummies and the water level are those of auction_market.hpp, which explains them; here experts take the bids
// of a round all at once. Tokens that hold or want a place are lined up by expert, the lowest level first, the later
// token first of equal ones. Those beyond the upper bound lose their places. Then the water rises as far as the dummies
// need it, for all experts at once: tokens beyond lower bounds leave in the order of their levels.
//
//   line of expert e:  | lost | may be flooded | must stay |     the last upper_e are kept, the last lower_e must stay
#pragma once

#include <switchyard/assignment/quotas.hpp>
#include <switchyard/backend/device.hpp>
#include <switchyard/core/config.hpp>
#include <switchyard/core/matrix_view.hpp>
#include <switchyard/core/scalar_traits.hpp>
#include <switchyard/plan/device_slots.hpp>

#include <cstdint>
#include <cstring>
#include <limits>

namespace switchyard {
inline namespace SWITCHYARD_TARGET {
namespace detail {

/// Scores in a device's memory as the auction sees them: to be maximised.
template <class S, class Space>
struct device_scores {
    matrix_view<const S, Space> scores;
    bool are_costs = false;
    const double* highest = nullptr;  ///< [T]: a token's highest score; null: not known

    SWITCHYARD_HD double operator()(index_t token, index_t expert) const {
        const auto score = static_cast<double>(load_scalar(scores(token, expert)));
        return are_costs ? -score : score;
    }
};

/// What a row of the scores is in the market besides the expert whose place it holds.
inline constexpr std::int32_t open_token = -1;
inline constexpr std::int32_t not_a_token = -2;

/// What there is once: in the device's memory, too.
struct market_state {
    double water;       ///< the dummies' level
    index_t floodable;  ///< tokens beyond their experts' lower bounds
    index_t flooded;    ///< of these, the lowest so many lose their places
    index_t missing;    ///< tokens that lower bounds are short of: device_auction_fill.hpp
};

/// Everything the programs below work on, in the device's memory; trivially copyable.
struct device_market {
    static constexpr double infinity = std::numeric_limits<double>::infinity();

    index_t rows;
    index_t experts;
    index_t dummies;
    const index_t* lower;    ///< [E]
    const index_t* upper;    ///< [E], at most T + 1
    std::int32_t* expert;    ///< [rows]: whose place a row holds, or one of the two above
    double* level;           ///< [rows]: what it bid for that
    double* price;           ///< [E]
    double* ask;             ///< [E]: where prices of this phase began
    index_t* load;           ///< [E]
    std::int64_t* by_ask;    ///< [E]: experts by rising ask
    std::int64_t* seats;     ///< [E]: places that dummies may have at the first so many experts of these
    std::uint64_t* key;      ///< [max(rows, E)]: what is sorted by
    std::int64_t* rank;      ///< [rows]: of floodable tokens, their place in the order of leaving, from 1
    std::int64_t* count;     ///< [rows]
    std::int64_t* by_level;  ///< [rows]: rows by rising level
    std::int64_t* leaving;   ///< [rows]: floodable tokens by rising level
    request_line line;       ///< rows by expert, then by rising level
    market_state* state;

    /// The part of an expert's line that keeps its places before the flood, and that which must keep them.
    SWITCHYARD_HD index_t first_kept(index_t e) const {
        const index_t start = line.start[e];
        const index_t end = line.start[e + 1];
        return end - start > upper[e] ? end - upper[e] : start;
    }
    SWITCHYARD_HD index_t first_safe(index_t e) const {
        const index_t first = first_kept(e);
        const index_t end = line.start[e + 1];
        return end - first > lower[e] ? end - lower[e] : first;
    }
};

/// Rises with a number; never the largest one.
SWITCHYARD_HD inline std::uint64_t rising_key(double x) {
    std::uint64_t bits = 0;
    std::memcpy(&bits, &x, sizeof bits);
    constexpr std::uint64_t sign = std::uint64_t{1} << 63;
    return (bits & sign) != 0 ? ~bits : bits | sign;
}

/// Nobody holds a place, and asks are the present prices.
struct open_rows {
    device_market market;
    token_mask mask;

    SWITCHYARD_HD void operator()(index_t t) const { market.expert[t] = mask(t) ? open_token : not_a_token; }
};
struct open_experts {
    device_market market;

    SWITCHYARD_HD void operator()(index_t e) const {
        // Prices of places that do not exist are infinite.
        market.ask[e] = market.price[e];
        market.by_ask[e] = e;
        market.key[e] = rising_key(market.price[e]);
        if (e == 0) *market.state = {-device_market::infinity, 0, 0, 0};
    }
};

/// A token without a place bids for its best expert at the prices. Equal experts are taken in turn, from one that
/// depends on the token.
template <class S, class Space>
struct bid_of_row {
    device_market market;
    device_scores<S, Space> scores;
    double span;
    double step;

    SWITCHYARD_HD void operator()(index_t t) const {
        if (market.expert[t] != open_token) return;
        const double origin = scores.highest[t];  // scores less their highest keep digits that their size would cost
        double best = -device_market::infinity;
        double second = best;
        index_t chosen = -1;
        for (index_t e = 0; e < market.experts; ++e) {
            const double margin = scores(t, e) - origin - market.price[e];
            if (margin > best) {
                second = best;
                best = margin;
                chosen = e;
            } else if (margin > second) {
                second = margin;
            }
        }
        if (chosen < 0) return;  // no place it may have, at any price
        if (second == best) chosen = next_equal(t, origin, best);
        const double price = market.price[chosen];
        // Where there is no next best, whatever others may pay is too little: they are outbid in steps of the span.
        const double most = price + span;
        const double fair = scores(t, chosen) - origin - second;
        double level = fair < most ? fair : most;
        level = (level > price ? level : price) + step;
        if (!(level > price)) level = price + (price < 0 ? -price : price) * 4.5e-16;  // the step was lost to rounding
        market.expert[t] = static_cast<std::int32_t>(chosen);
        market.level[t] = level;
    }

  private:
    SWITCHYARD_HD index_t next_equal(index_t t, double origin, double best) const {
        index_t e = t % market.experts;
        while (!(scores(t, e) - origin - market.price[e] == best)) e = e + 1 == market.experts ? 0 : e + 1;
        return e;
    }
};

/// Rows in the order in which equal levels leave: later ones first.
struct line_up_levels {
    device_market market;

    SWITCHYARD_HD void operator()(index_t i) const {
        const index_t t = market.rows - 1 - i;
        market.by_level[i] = t;
        market.key[i] = market.expert[t] >= 0 ? rising_key(market.level[t]) : ~std::uint64_t{0};
    }
};
struct line_up_experts {
    device_market market;

    SWITCHYARD_HD void operator()(index_t i) const {
        const index_t t = market.by_level[i];
        market.line.position[i] = t;
        market.line.expert[i] = market.expert[t] >= 0 ? market.expert[t] : static_cast<std::int32_t>(market.experts);
    }
};

/// Rows beyond their experts' upper bounds lose their places; of the others, those that may be flooded are marked.
struct take_best_bids {
    device_market market;

    SWITCHYARD_HD void operator()(index_t i) const {
        const index_t t = market.line.position[i];
        const std::int32_t e = market.line.expert[i];
        market.rank[t] = 0;
        if (e == market.experts) return;
        const bool kept = i >= market.first_kept(e);
        if (!kept) market.expert[t] = open_token;
        market.rank[t] = kept && i < market.first_safe(e) ? 1 : 0;
    }
};

/// Marks in the order of levels, to be summed up.
struct marks_by_level {
    device_market market;

    SWITCHYARD_HD void operator()(index_t i) const { market.count[i] = market.rank[market.by_level[i]]; }
};
struct rank_by_level {
    device_market market;

    SWITCHYARD_HD void operator()(index_t i) const {
        const index_t t = market.by_level[i];
        if (market.rank[t] != 0) {
            market.rank[t] = market.count[i];
            market.leaving[market.count[i] - 1] = t;
        }
        if (i + 1 == market.rows) market.state->floodable = market.count[i];
    }
};

/// Places for dummies at the expert that is i-th by its ask, to be summed up.
struct seats_by_ask {
    device_market market;

    SWITCHYARD_HD void operator()(index_t i) const {
        const index_t e = market.by_ask[i];
        const index_t kept = market.line.start[e + 1] - market.first_kept(e);
        const index_t upper = market.upper[e];
        market.seats[i] = upper - (kept > market.lower[e] ? kept : market.lower[e]);
    }
};

/// The lowest water level, not below the present one, at which dummies have seats enough, and how many rows that costs
/// their places. One thread, O(log(rows) log(E)).
struct raise_water {
    device_market market;

    SWITCHYARD_HD void operator()(index_t) const {
        market_state& state = *market.state;
        const double before = state.water;
        index_t low = first_not_below(before);
        index_t high = state.floodable;
        if (seats_at(before) + low >= market.dummies) {
            state.flooded = low;
            return;
        }
        // Between these: how many must leave, the water being at the last one's level.
        while (low < high) {
            const index_t middle = low + (high - low) / 2;
            const bool enough = middle > 0 && seats_at(higher(before, level_of(middle - 1))) + middle >= market.dummies;
            if (enough) {
                high = middle;
            } else {
                low = middle + 1;
            }
        }
        // Here `high` may be all of them without that being enough. An ask on the way may save the last one.
        const bool enough = high > 0 && seats_at(higher(before, level_of(high - 1))) + high >= market.dummies;
        const index_t leave = enough ? high - 1 : high;
        const index_t next = first_ask_with(market.dummies - leave);
        const bool by_ask = next < market.experts && (!enough || ask_of(next) <= level_of(high - 1));
        state.flooded = by_ask ? leave : high;
        const double risen = by_ask ? ask_of(next) : high > 0 ? level_of(high - 1) : before;
        state.water = higher(before, risen);
    }

  private:
    SWITCHYARD_HD static double higher(double a, double b) { return a > b ? a : b; }
    SWITCHYARD_HD double level_of(index_t i) const { return market.level[market.leaving[i]]; }
    SWITCHYARD_HD double ask_of(index_t i) const { return market.ask[market.by_ask[i]]; }

    /// Floodable rows whose level is below the water: these leave in any case.
    SWITCHYARD_HD index_t first_not_below(double water) const {
        index_t low = 0;
        index_t high = market.state->floodable;
        while (low < high) {
            const index_t middle = low + (high - low) / 2;
            if (level_of(middle) < water) {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        return low;
    }

    /// Seats at experts whose ask the water has reached, before any row leaves.
    SWITCHYARD_HD index_t seats_at(double water) const {
        index_t low = 0;
        index_t high = market.experts;
        while (low < high) {
            const index_t middle = low + (high - low) / 2;
            if (ask_of(middle) <= water) {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        return low > 0 ? market.seats[low - 1] : 0;
    }

    /// The first expert by ask with which there are so many seats.
    SWITCHYARD_HD index_t first_ask_with(index_t wanted) const {
        index_t low = 0;
        index_t high = market.experts;
        while (low < high) {
            const index_t middle = low + (high - low) / 2;
            if (market.seats[middle] < wanted) {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        return low;
    }
};

/// Flooded rows lose their places.
struct leave_flooded {
    device_market market;

    SWITCHYARD_HD void operator()(index_t t) const {
        if (market.rank[t] != 0 && market.rank[t] <= market.state->flooded) market.expert[t] = open_token;
    }
};

/// Load and price of an expert after a round.
struct settle_expert {
    device_market market;

    SWITCHYARD_HD void operator()(index_t e) const {
        const index_t end = market.line.start[e + 1];
        const index_t first = first_dry(e);
        const index_t load = end - first;
        const double lowest = load > 0 ? market.level[market.line.position[first]] : device_market::infinity;
        const double ask = market.ask[e];
        const double water = market.state->water;
        market.load[e] = load;
        if (load == market.upper[e]) {
            market.price[e] = lowest;  // infinite if there is no place
        } else if (load < market.lower[e]) {
            market.price[e] = ask;
        } else {
            const double empty = ask > water ? ask : water;
            market.price[e] = lowest < empty ? lowest : empty;
        }
    }

  private:
    /// Where the rows begin that keep their places, flood or not: the flooded ones have the lowest levels.
    SWITCHYARD_HD index_t first_dry(index_t e) const {
        index_t low = market.first_kept(e);
        if (market.dummies == 0) return low;
        index_t high = market.first_safe(e);
        while (low < high) {
            const index_t middle = low + (high - low) / 2;
            if (market.rank[market.line.position[middle]] <= market.state->flooded) {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        return low;
    }
};

/// 1 for a token without a place, to be summed up.
struct is_open {
    device_market market;

    SWITCHYARD_HD void operator()(index_t t) const { market.count[t] = market.expert[t] == open_token ? 1 : 0; }
};

}  // namespace detail
}  // namespace SWITCHYARD_TARGET
}  // namespace switchyard
