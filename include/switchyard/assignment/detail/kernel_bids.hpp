// Jacobi rounds of an auction by kernels: all open tokens bid at once, every expert keeps its best bids. 5 launches.
//
//   bid_rows         a group of lanes for each token without a place: its best expert at the prices, and how much it
//                    bids
//   place_choices    3 launches (plan/kernel_slots.hpp): tokens by expert, in their order
//   keep_best_bids   a block for each expert: the bids it has places for, found digit by digit; the others are open
//                    again
//
// Steps grow from round to round: a token that bids late is further from its best expert, but ever fewer do, and what
// they may lose is their own steps alone, since prices only rise.
//
// Levels are doubles; equal ones are kept in the order of tokens. An expert that is full asks its lowest kept bid, any
// other what it asked before. Equally good experts are taken in turn, from one that depends on the token.
#pragma once

#include <switchyard/assignment/detail/kernel_rows.hpp>
#include <switchyard/backend/device.hpp>
#include <switchyard/backend/kernel.hpp>
#include <switchyard/backend/lane_group.hpp>
#include <switchyard/core/bits.hpp>
#include <switchyard/core/config.hpp>
#include <switchyard/core/matrix_view.hpp>
#include <switchyard/core/workspace.hpp>
#include <switchyard/plan/kernel_slots.hpp>
#include <switchyard/plan/plan.hpp>

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <limits>

namespace switchyard {
inline namespace SWITCHYARD_TARGET {
namespace detail {

/// What bids depend on besides prices; found on the device.
struct bid_steps {
    double spread;  ///< standard deviation of a token's scores
    double step;    ///< least that a bid is above what the token's next best expert is worth to it
    double most;    ///< and the most, where there is no next best
};

/// An auction's state, in the device's memory.
template <class Space>
struct kernel_market {
    index_t rows;
    index_t experts;
    token_mask mask;
    index_t* quota;         ///< [E]
    index_t* load;          ///< [E]
    double* price;          ///< [E]
    std::uint64_t* key;     ///< [rows]: rises with the bid
    std::int32_t* dropped;  ///< [rounds + 1]: tokens that lost, or found, no place in a round; the first is not 0
    bid_steps* steps;
    plan_view<float, Space> line;  ///< expert: who holds a place or bids for one, -1: nobody; order: lined up

    template <class Here>
    SWITCHYARD_DEVICE bool is_open(Here& here, index_t t) const {
        return here.load(line.expert + t) < 0 && (mask.data == nullptr || here.load(mask.data + t) != 0);
    }

    template <class Memory>
    static kernel_market take(index_t rows, index_t experts, index_t rounds, const token_mask& mask,
                              basic_workspace<Memory>& scratch) {
        kernel_market made{};
        made.rows = rows;
        made.experts = experts;
        made.mask = mask;
        made.quota = scratch.template take<index_t>(experts);
        made.load = scratch.template take<index_t>(experts);
        made.price = scratch.template take<double>(experts);
        made.key = scratch.template take<std::uint64_t>(rows);
        made.dropped = scratch.template take<std::int32_t>(rounds + 1);
        made.steps = scratch.template take<bid_steps>(1);
        auto& line = made.line;
        line.tokens = rows;
        line.experts = experts;
        line.row_bound = rows;
        line.expert = scratch.template take<std::int32_t>(rows);
        line.slot = scratch.template take<std::int32_t>(rows);
        line.gate = scratch.template take<float>(rows);
        line.order = scratch.template take<std::int64_t>(rows);
        line.offsets = scratch.template take<std::int64_t>(4 * experts + 1);
        line.load_before = line.offsets + experts + 1;
        line.load_after = line.load_before + experts;
        line.balance_load = line.load_after + experts;
        line.totals = scratch.template take<plan_totals>(1);
        return made;
    }
};

/// A level that rising_key made a key.
SWITCHYARD_HD inline double level_of_key(std::uint64_t key) {
    constexpr std::uint64_t sign = std::uint64_t{1} << 63;
    return std::bit_cast<double>((key & sign) != 0 ? key ^ sign : ~key);
}

/// A lane's part of a row at prices in shared memory: its two best experts, numbered from the token's own first one.
template <class C>
struct bid_in_row {
    const double* price;
    const std::uint8_t* has_room;  ///< [E]; null: any expert will do
    index_t experts;
    index_t first;
    double origin = 0;  ///< what scores are counted from
    two_best<double> found{};

    SWITCHYARD_DEVICE void begin(C) {}
    SWITCHYARD_DEVICE void take(index_t e, C score) {
        if (has_room != nullptr && has_room[e] == 0) return;
        if (!is_usable_score(score)) return;
        found.see(e >= first ? e - first : e + experts - first, static_cast<double>(score) - origin - price[e]);
    }
    /// Undoes the numbering.
    SWITCHYARD_DEVICE index_t expert() const {
        const index_t e = found.expert + first;
        return e >= experts ? e - experts : e;
    }
};

/// Tokens without a place bid. `fills`: they ask for what is free, below all bids, and the nearly tied ones last.
template <class S, class Space, int V>
struct bid_rows {
    static constexpr int threads = row_groups::threads;
    using C = compute_t<S>;
    row_reader<S, Space, V> reader;
    row_groups shares;
    kernel_market<Space> market;
    index_t round;   ///< from 1
    double stretch;  ///< of the step
    bool fills;

    static std::size_t shared_bytes(index_t experts) {
        return shared_room<double>(experts) + shared_room<std::uint8_t>(experts);
    }

    template <kernel_thread Here>
    SWITCHYARD_DEVICE void operator()(Here& here) const {
        double* const price = here.template shared<double>(market.experts);
        auto* const has_room = here.template shared<std::uint8_t>(market.experts);
        if (here.load(market.dropped + round - 1) == 0) return;  // no thread goes on: all have places
        for (index_t e = here.thread(); e < market.experts; e += threads) {
            price[e] = here.load(market.price + e);
            has_room[e] = !fills || here.load(market.load + e) < here.load(market.quota + e) ? 1 : 0;
        }
        here.sync();
        const group_lane mine = group_lane::of(here, shares);
        const index_t begin = here.block() * shares.rows_a_block;
        for (index_t offset = 0; offset < shares.rows_a_block; offset += shares.groups()) {
            const index_t t = begin + offset + mine.group;
            const std::int32_t wants = mine.is_leader && t < shares.rows && market.is_open(here, t) ? 1 : 0;
            const bool is_open = here.shuffle(wants, mine.first) != 0;
            if (!here.any(is_open)) {
                if (fills && mine.is_leader && t < shares.rows) here.store(market.key + t, ~std::uint64_t{0});
                continue;
            }
            bid_in_row<C> row{price, fills ? has_room : nullptr, market.experts, t % market.experts};
            reader.read(here, mine, is_open, t, row);
            row.found.gather(here, mine.lanes);
            if (mine.is_leader && is_open) {
                bid(here, t, row, price);
            } else if (fills && mine.is_leader && t < shares.rows) {
                here.store(market.key + t, ~std::uint64_t{0});
            }
        }
    }

  private:
    template <class Here>
    SWITCHYARD_DEVICE void bid(Here& here, index_t t, const bid_in_row<C>& row, const double* price) const {
        if (row.found.expert < 0) {
            here.atomic_add(market.dropped + round, 1);
            return;
        }
        const index_t e = row.expert();
        const double most = here.load(&market.steps->most);
        double ahead = row.found.first - row.found.second;  // infinity, if there is no next best
        ahead = ahead < most ? ahead : most;
        here.store(market.line.expert + t, static_cast<std::int32_t>(e));
        if (fills) {
            here.store(market.key + t, std::bit_cast<std::uint64_t>(ahead) >> 1);
        } else {
            here.store(market.key + t, rising_key(price[e] + ahead + stretch * here.load(&market.steps->step)));
        }
    }
};

/// Each expert keeps as many of the best bids as it has places. One block per expert.
template <class Space>
struct keep_best_bids {
    static constexpr int threads = 256;
    kernel_market<Space> market;
    index_t round;
    bool fills;

    static std::size_t shared_bytes() {
        return shared_room<std::int32_t>(256) + shared_room<std::int64_t>(2) +
               shared_room<std::int32_t>(threads / warp_lanes);
    }

    template <kernel_thread Here>
    SWITCHYARD_DEVICE void operator()(Here& here) const {
        auto* const counts = here.template shared<std::int32_t>(256);
        auto* const chosen = here.template shared<std::int64_t>(2);
        auto* const warp_counts = here.template shared<std::int32_t>(threads / warp_lanes);
        if (here.load(market.dropped + round - 1) == 0) return;  // no thread goes on
        const index_t e = here.block();
        const index_t first = here.load(market.line.offsets + e);
        const index_t last = here.load(market.line.offsets + e + 1);
        const index_t quota = here.load(market.quota + e);
        const index_t bids = last - first;
        // Nothing below would change anything. And no thread may read the load, which the first one stores here with no
        // barrier between.
        if (bids == 0 || bids < quota) {
            if (here.thread() == 0) here.store(market.load + e, bids);
            return;
        }
        if (round > 1 && bids == here.load(market.load + e)) return;  // nobody new: the block is done
        std::uint64_t lowest = 0;                                     // of the keys kept
        if (quota > 0) lowest = find_lowest(here, first, last, quota, counts, chosen);
        if (quota < bids) drop_others(here, first, last, quota, lowest, quota > 0 ? chosen[1] : 0, warp_counts);
        if (here.thread() == 0) {
            here.store(market.load + e, quota);
            if (!fills && quota > 0) here.store(market.price + e, level_of_key(lowest));
            if (quota < bids) here.atomic_add(market.dropped + round, static_cast<std::int32_t>(bids - quota));
        }
    }

  private:
    template <class Here>
    SWITCHYARD_DEVICE std::uint64_t key_at(Here& here, index_t i) const {
        return here.load(market.key + here.load(market.line.order + i));
    }

    /// The kept-th largest key, from its highest digit down; chosen[1]: how many keys equal to it are kept.
    template <class Here>
    SWITCHYARD_DEVICE std::uint64_t find_lowest(Here& here, index_t first, index_t last, index_t kept,
                                                std::int32_t* counts, std::int64_t* chosen) const {
        std::uint64_t prefix = 0;
        std::int64_t wanted = kept;
        for (int shift = 56; shift >= 0; shift -= 8) {
            counts[here.thread()] = 0;
            here.sync();
            for (index_t i = first + here.thread(); i < last; i += threads) {
                const std::uint64_t key = key_at(here, i);
                const bool is_like = shift == 56 || (key ^ prefix) >> (shift + 8) == 0;
                if (is_like) here.atomic_add(counts + ((key >> shift) & 255u), 1);
            }
            here.sync();
            if (here.thread() < warp_lanes) choose_digit(here, counts, wanted, chosen);
            here.sync();
            prefix |= static_cast<std::uint64_t>(chosen[0]) << shift;
            wanted = chosen[1];
        }
        return prefix;
    }

    /// The digit from which on, downwards, the wanted-th key is found, and how many are wanted of it. One warp: each
    /// lane has eight digits, the first lane the highest.
    template <class Here>
    SWITCHYARD_DEVICE void choose_digit(Here& here, const std::int32_t* counts, std::int64_t wanted,
                                        std::int64_t* chosen) const {
        const int highest = 255 - 8 * here.thread();
        std::int32_t mine = 0;
        for (int d = highest; d > highest - 8; --d) mine += counts[d];
        std::int32_t through = mine;
        for (int distance = 1; distance < warp_lanes; distance *= 2) {
            const std::int32_t other = here.shuffle_up(through, distance);
            through += here.thread() >= distance ? other : 0;
        }
        std::int64_t left = wanted - (through - mine);
        if (left > 0 && wanted <= through) {
            int digit = highest;
            while (left > counts[digit]) left -= counts[digit--];
            chosen[0] = digit;
            chosen[1] = left;
        }
    }

    /// All below `lowest` lose, and of those equal to it all but the first `equal`; none is kept where none can be.
    template <class Here>
    SWITCHYARD_DEVICE void drop_others(Here& here, index_t first, index_t last, index_t kept, std::uint64_t lowest,
                                       std::int64_t equal, std::int32_t* warp_counts) const {
        std::int64_t seen = 0;
        const int lane = here.thread() % warp_lanes;
        const int warp = here.thread() / warp_lanes;
        for (index_t start = first; start < last; start += threads) {
            const index_t i = start + here.thread();
            const std::uint64_t key = i < last ? key_at(here, i) : 0;
            const bool is_equal = i < last && kept > 0 && key == lowest;
            const std::uint32_t lanes = here.ballot(is_equal);
            if (lane == 0) warp_counts[warp] = count_bits(lanes);
            here.sync();
            std::int64_t before = seen + count_bits(lanes & ((std::uint32_t{1} << lane) - 1));
            for (int other = 0; other < threads / warp_lanes; ++other) {
                before += other < warp ? warp_counts[other] : 0;
                seen += warp_counts[other];
            }
            const bool is_kept = kept > 0 && (key > lowest || (is_equal && before < equal));
            if (i < last && !is_kept) here.store(market.line.expert + here.load(market.line.order + i), -1);
            here.sync();
        }
    }
};

/// How much longer than the first a round's step is: twice for each four rounds before it, up to 1024 times.
inline double stretch_of(index_t round) {
    return static_cast<double>(index_t{1} << std::min<index_t>((round - 1) / 4, 10));
}

/// One round: 5 launches.
template <kernel_policy Policy, class S, class AfterLineUp>
void run_bids(const Policy& policy, const device_scores<S, policy_space<Policy>>& source,
              const kernel_market<policy_space<Policy>>& market, index_t round, bool fills,
              device_workspace<Policy>& scratch, const AfterLineUp& after_line_up) {
    using space = policy_space<Policy>;
    with_row_reader(source, [&]<int V>(const row_reader<S, space, V>& reader) {
        using kernel = bid_rows<S, space, V>;
        const row_groups shares = row_groups::of(market.rows, market.experts, V);
        policy.launch(kernel{reader, shares, market, round, stretch_of(round), fills}, shares.blocks(),
                      kernel::shared_bytes(market.experts));
    });
    place_choices(policy, market.line, slot_settings{}, scratch);
    after_line_up();
    policy.launch(keep_best_bids<space>{market, round, fills}, market.experts, keep_best_bids<space>::shared_bytes());
}

}  // namespace detail
}  // namespace SWITCHYARD_TARGET
}  // namespace switchyard
