// The beginning and the end of an auction that nobody on the host looks at: steps and quotas to begin with; places for
// tokens that are left over, the certificate, and what is wrong with the scores, all written to the device's memory.
#pragma once

#include <switchyard/assignment/assignment.hpp>
#include <switchyard/assignment/detail/kernel_bids.hpp>
#include <switchyard/assignment/detail/kernel_certificate.hpp>
#include <switchyard/assignment/detail/kernel_price_steps.hpp>
#include <switchyard/assignment/detail/kernel_rows.hpp>
#include <switchyard/backend/device.hpp>
#include <switchyard/backend/kernel.hpp>
#include <switchyard/backend/lane_group.hpp>
#include <switchyard/core/bits.hpp>
#include <switchyard/core/config.hpp>
#include <switchyard/plan/plan.hpp>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>

namespace switchyard {
inline namespace SWITCHYARD_TARGET {
namespace detail {

/// A lane's part of a row's sums about its first score.
template <class C>
struct moments_in_row {
    double reference = 0;
    double count = 0;
    double sum = 0;
    double squares = 0;

    SWITCHYARD_DEVICE void begin(C first) { reference = static_cast<double>(first); }
    SWITCHYARD_DEVICE void take(index_t, C score) {
        if (!is_usable_score(score) || score == -std::numeric_limits<C>::infinity()) return;
        const double distance = static_cast<double>(score) - reference;
        count += 1;
        sum += distance;
        squares += distance * distance;
    }
};

/// Squares of scores about their rows' means, and how many: of some rows. `primal` and `tokens` of a block's sums.
template <class S, class Space, int V>
struct spread_of_rows {
    static constexpr int threads = row_groups::threads;
    using C = compute_t<S>;
    row_reader<S, Space, V> reader;
    token_mask mask;
    row_groups shares;  ///< of the rows looked at
    index_t stride;
    certified_sums* sums;  ///< [blocks]

    template <kernel_thread Here>
    SWITCHYARD_DEVICE void operator()(Here& here) const {
        double* const room = here.template shared<double>(threads / warp_lanes);
        const group_lane mine = group_lane::of(here, shares);
        const index_t first = here.block() * shares.rows_a_block;
        double squares = 0;
        double count = 0;
        for (index_t offset = 0; offset < shares.rows_a_block; offset += shares.groups()) {
            const index_t i = first + offset + mine.group;
            const index_t t = i < shares.rows ? sampled_row(i, stride) : 0;
            const bool is_token = i < shares.rows && (mask.data == nullptr || here.load(mask.data + t) != 0);
            moments_in_row<C> row;
            reader.read(here, mine, is_token, t, row);
            for (int distance = mine.lanes / 2; distance > 0; distance /= 2) {
                row.count += here.shuffle_xor(row.count, distance);
                row.sum += here.shuffle_xor(row.sum, distance);
                row.squares += here.shuffle_xor(row.squares, distance);
            }
            if (mine.is_leader && row.count > 0) {
                const double about_mean = row.squares - row.sum * row.sum / row.count;
                squares += about_mean > 0 ? about_mean : 0.0;
                count += row.count;
            }
        }
        squares = fold_block_again<threads>(here, squares, room, add{});
        count = fold_block_again<threads>(here, count, room, add{});
        if (here.thread() == 0) {
            here.store(&sums[here.block()].primal, squares);
            here.store(&sums[here.block()].tokens, count);
            here.store(&sums[here.block()].magnitude, 0.0);
            here.store(&sums[here.block()].regretted, 0.0);
        }
    }
};

/// Nobody has a place, prices are those found, and steps are known. Any number of blocks; the first does what there is
/// once.
template <class C, class Space>
struct open_market {
    static constexpr int threads = 256;
    kernel_market<Space> market;
    price_search_on_device<C> on;
    const certified_sums* spread;  ///< null: not known
    double step;                   ///< in spreads
    index_t rounds;
    std::int32_t* unroutable;

    template <kernel_thread Here>
    SWITCHYARD_DEVICE void operator()(Here& here) const {
        const index_t t = here.block() * threads + here.thread();
        if (t < market.rows) here.store(market.line.expert + t, -1);
        if (here.block() > 0) return;  // no thread of this block goes on
        for (index_t e = here.thread(); e < market.experts; e += threads) {
            here.store(market.price + e, here.load(on.price + e));
            here.store(market.load + e, index_t{0});
        }
        for (index_t r = here.thread(); r <= rounds; r += threads) here.store(market.dropped + r, r == 0 ? 1 : 0);
        if (here.thread() == 0) {
            const double squares = here.load(&spread->primal);
            const double count = here.load(&spread->tokens);
            const double deviation = count > 0 ? std::sqrt(squares / count) : 0.0;
            const bool is_finite = deviation <= std::numeric_limits<double>::max();
            here.store(&market.steps->spread, is_finite ? deviation : 0.0);
            here.store(&market.steps->step, is_finite ? step * deviation : 0.0);
            here.store(&market.steps->most, is_finite ? 16 * deviation : 0.0);
            here.store(unroutable, none_bad);
        }
    }
};

/// How many tokens each expert shall have: as many as want it at the first prices, within the bounds, and all tokens
/// together. What is too much or too little is settled in the order of experts. One block.
template <class C, class Space>
struct choose_quotas {
    static constexpr int threads = 256;
    kernel_market<Space> market;
    price_search_on_device<C> on;

    static std::size_t shared_bytes(index_t experts) {
        return 3 * shared_room<std::int32_t>(experts) + shared_room<double>(threads / warp_lanes);
    }

    template <kernel_thread Here>
    SWITCHYARD_DEVICE void operator()(Here& here) const {
        auto* const quota = here.template shared<std::int32_t>(market.experts);
        auto* const up = here.template shared<std::int32_t>(market.experts);
        auto* const down = here.template shared<std::int32_t>(market.experts);
        double* const room = here.template shared<double>(threads / warp_lanes);
        double sum = 0;
        for (index_t e = here.thread(); e < market.experts; e += threads) {
            const index_t lower = here.load(on.lower + e);
            const index_t upper = here.load(on.upper + e);
            const index_t load = here.load(market.line.offsets + e + 1) - here.load(market.line.offsets + e);
            const index_t wanted = load < lower ? lower : load > upper ? upper : load;
            quota[e] = static_cast<std::int32_t>(wanted);
            up[e] = static_cast<std::int32_t>(upper - wanted);
            down[e] = static_cast<std::int32_t>(wanted - lower);
            sum += static_cast<double>(wanted);
        }
        sum = fold_block_again<threads>(here, sum, room, add{});
        if (here.thread() == 0) {
            index_t missing = here.load(&on.state->tokens) - static_cast<index_t>(sum);
            for (index_t e = 0; e < market.experts && missing != 0; ++e) {
                const index_t most = missing > 0 ? up[e] : down[e];
                const index_t size = missing > 0 ? missing : -missing;
                const index_t moved = size < most ? size : most;
                quota[e] += static_cast<std::int32_t>(missing > 0 ? moved : -moved);
                missing += missing > 0 ? -moved : moved;
            }
        }
        here.sync();
        for (index_t e = here.thread(); e < market.experts; e += threads) {
            here.store(market.quota + e, static_cast<index_t>(quota[e]));
        }
    }
};

inline constexpr index_t rows_a_warp = 1024;

/// Open tokens of each block of rows. A warp a block.
template <class Space>
struct count_left_over {
    static constexpr int threads = warp_lanes;
    kernel_market<Space> market;
    std::int64_t* count;  ///< [blocks]

    template <kernel_thread Here>
    SWITCHYARD_DEVICE void operator()(Here& here) const {
        index_t open = 0;
        for (index_t j = here.thread(); j < rows_a_warp; j += threads) {
            const index_t t = here.block() * rows_a_warp + j;
            open += count_bits(here.ballot(t < market.rows && market.is_open(here, t)));
        }
        if (here.thread() == 0) here.store(count + here.block(), open);
    }
};

struct count_free_places {
    static constexpr int threads = 256;
    const index_t* quota;
    const index_t* load;
    std::int64_t* free_places;
    index_t experts;

    template <kernel_thread Here>
    SWITCHYARD_DEVICE void operator()(Here& here) const {
        const index_t e = here.block() * threads + here.thread();
        if (e < experts) here.store(free_places + e, here.load(quota + e) - here.load(load + e));
    }
};

/// The i-th open token takes the i-th free place, and all experts go to the caller. A warp a block of rows.
template <class S, class Space>
struct place_left_over {
    static constexpr int threads = warp_lanes;
    kernel_market<Space> market;
    device_scores<S, Space> source;
    const std::int64_t* count;        ///< [blocks], summed up
    const std::int64_t* free_places;  ///< [E], summed up
    std::int32_t* unroutable;         ///< the lowest row that has only a forbidden place
    std::int32_t* expert_of_token;

    template <kernel_thread Here>
    SWITCHYARD_DEVICE void operator()(Here& here) const {
        index_t next = here.block() > 0 ? here.load(count + here.block() - 1) : 0;
        for (index_t j = 0; j < rows_a_warp; j += threads) {
            const index_t t = here.block() * rows_a_warp + j + here.thread();
            const bool is_row = t < market.rows;
            const bool is_open = is_row && market.is_open(here, t);
            const std::uint32_t lanes = here.ballot(is_open);
            const index_t place = next + count_bits(lanes & ((std::uint32_t{1} << here.thread()) - 1));
            next += count_bits(lanes);
            if (is_open) {
                here.store(expert_of_token + t, expert_of_place(here, t, place));
            } else if (is_row) {
                here.store(expert_of_token + t, here.load(market.line.expert + t));
            }
        }
    }

  private:
    template <class Here>
    SWITCHYARD_DEVICE std::int32_t expert_of_place(Here& here, index_t t, index_t place) const {
        index_t low = 0;
        index_t high = market.experts;
        while (low < high) {
            const index_t middle = low + (high - low) / 2;
            if (here.load(free_places + middle) <= place) {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        if (low == market.experts) {  // the bounds hold too few
            here.atomic_min(unroutable, static_cast<std::int32_t>(t));
            return -1;
        }
        const auto score = load_scalar(here.load(source.scores.row(t) + low * source.scores.column_stride));
        constexpr auto infinity = std::numeric_limits<decltype(score + score)>::infinity();
        if (score == (source.are_costs ? infinity : -infinity)) {
            here.atomic_min(unroutable, static_cast<std::int32_t>(t));
        }
        return static_cast<std::int32_t>(low);
    }
};

/// Prices counted from where the bounds' part of the gap is least, the result, and the status. Where a score cannot be
/// used, or tokens do not fit the bounds, nothing is certified. One block.
template <class S, class Space>
struct write_result {
    static constexpr int threads = 256;
    using C = compute_t<S>;
    kernel_market<Space> market;
    price_search_on_device<C> on;
    device_scores<S, Space> source;
    const certified_sums* sums;
    const std::int32_t* load;  ///< [E]: of what was handed out
    const std::int32_t* unroutable;
    double* prices;             ///< [E]; or null
    assignment_result* result;  ///< or null
    plan_totals* totals;        ///< whose status is written; or null

    static std::size_t shared_bytes(index_t experts) {
        return shared_room<double>(experts) + shared_room<double>(threads / warp_lanes);
    }

    template <kernel_thread Here>
    SWITCHYARD_DEVICE void operator()(Here& here) const {
        double* const price = here.template shared<double>(market.experts);
        double* const room = here.template shared<double>(threads / warp_lanes);
        for (index_t e = here.thread(); e < market.experts; e += threads) price[e] = here.load(market.price + e);
        here.sync();
        const double zero = least_gap_price(here, price, room);
        double terms = 0;
        for (index_t e = here.thread(); e < market.experts; e += threads) {
            terms += bound_term(here, e, price[e] - zero);
            if (prices != nullptr) here.store(prices + e, price[e] - zero);
        }
        terms = fold_block_again<threads>(here, terms, room, add{});
        const plan_status status = status_of(here, room);
        if (here.thread() == 0) write(here, terms, status);
    }

  private:
    /// Tokens that experts with prices above and below a price may take more and could lose: D falls as long as these
    /// above weigh more. The lowest price at which it does not fall any more.
    template <class Here>
    SWITCHYARD_DEVICE double least_gap_price(Here& here, const double* price, double* room) const {
        double best = std::numeric_limits<double>::infinity();
        for (index_t e = here.thread(); e < market.experts; e += threads) {
            double slope = 0;
            for (index_t f = 0; f < market.experts; ++f) {
                const auto held = static_cast<index_t>(here.load(load + f));
                slope += static_cast<double>(price[f] <= price[e] ? held - here.load(on.lower + f)
                                                                  : held - here.load(on.upper + f));
            }
            if (slope >= 0 && price[e] < best) best = price[e];
        }
        best = fold_block_again<threads>(here, best, room, lower_of{});
        return best < std::numeric_limits<double>::infinity() ? best : 0.0;
    }

    /// What an expert's load is short of, at its price. An expert without places has none.
    template <class Here>
    SWITCHYARD_DEVICE double bound_term(Here& here, index_t e, double price) const {
        const index_t upper = here.load(on.upper + e);
        if (upper == 0) return 0;
        const index_t bound = price > 0 ? upper : here.load(on.lower + e);
        return price * static_cast<double>(bound - here.load(load + e));
    }

    /// Of the first row that cannot be used: whether a score is none, or all of them forbid.
    template <class Here>
    SWITCHYARD_DEVICE plan_status status_of(Here& here, double* room) const {
        const std::int32_t bad = here.load(on.looked.bad_rows);
        double found = 0;
        for (index_t e = here.thread(); bad != none_bad && e < market.experts; e += threads) {
            const C raw = load_scalar(here.load(source.scores.row(bad) + e * source.scores.column_stride));
            if (!is_usable_score(source.are_costs ? -raw : raw)) found = 1;
        }
        found = fold_block_again<threads>(here, found, room, higher_of{});
        if (found > 0) return plan_status::bad_score;
        return bad != none_bad || here.load(unroutable) != none_bad ? plan_status::unroutable : plan_status::good;
    }

    template <class Here>
    SWITCHYARD_DEVICE void write(Here& here, double terms, plan_status status) const {
        const std::int32_t bad = here.load(on.looked.bad_rows);
        if (totals != nullptr) {
            here.store(&totals->status, status);
            here.store(&totals->status_token,
                       status == plan_status::good
                           ? index_t{-1}
                           : static_cast<index_t>(bad != none_bad ? bad : here.load(unroutable)));
        }
        if (result == nullptr) return;
        const bool holds = status == plan_status::good && here.load(&on.state->fits) != 0;
        const double gap = holds ? here.load(&sums->regretted) + terms : std::numeric_limits<double>::infinity();
        const double primal = here.load(&sums->primal);
        const double tolerance = 1e-9 * here.load(&sums->magnitude) + 1e-12;
        const double sign = source.are_costs ? -1.0 : 1.0;
        here.store(&result->tokens, static_cast<index_t>(here.load(&sums->tokens)));
        here.store(&result->primal, sign * primal);
        here.store(&result->dual, sign * (primal + gap));
        here.store(&result->gap, gap);
        here.store(&result->tolerance, tolerance);
        here.store(&result->converged, holds && gap <= tolerance);
        here.store(&result->iterations, index_t{0});
        here.store(&result->passes, index_t{0});
        here.store(&result->steps, index_t{0});
        here.store(&result->repairs, index_t{0});
    }
};

}  // namespace detail
}  // namespace SWITCHYARD_TARGET
}  // namespace switchyard
