// The certificate of an assignment on a device: a look at all scores by groups of lanes, and its sums in a fixed order.
//
//   certify_rows    rows: scores, sizes and regrets, in double; loads (counted with atomics). 2 launches, and one that
//                   clears the loads
//
// A token's regret is what its best expert has over the one it got, differences kept exact as in assignment.hpp.
#pragma once

#include <switchyard/assignment/detail/certificate.hpp>
#include <switchyard/assignment/detail/device_auction_sums.hpp>
#include <switchyard/assignment/detail/kernel_rows.hpp>
#include <switchyard/backend/device.hpp>
#include <switchyard/backend/kernel.hpp>
#include <switchyard/backend/lane_group.hpp>
#include <switchyard/core/config.hpp>
#include <switchyard/core/workspace.hpp>

#include <cstddef>
#include <cstdint>
#include <limits>

namespace switchyard {
inline namespace SWITCHYARD_TARGET {
namespace detail {

/// What all tokens add up to.
struct certified_sums {
    double primal;
    double magnitude;
    double regretted;
    double tokens;
};

/// By how much a lane's part of a row has something better.
template <class C>
struct regret_in_row {
    const double* price;
    double own_score;
    double own_price;
    double regret = 0;
    C low = std::numeric_limits<C>::infinity();  // of the scores that are not forbidden
    C high = -std::numeric_limits<C>::infinity();

    SWITCHYARD_DEVICE void begin(C) {}
    SWITCHYARD_DEVICE void take(index_t e, C score) {
        if (score == -std::numeric_limits<C>::infinity()) return;
        low = score < low ? score : low;
        high = score > high ? score : high;
        const double ahead = exact_difference(static_cast<double>(score), price[e], own_score, own_price);
        regret = ahead > regret ? ahead : regret;
    }
};

template <exactness Exact, class S, class Space, int V>
struct certify_rows_kernel {
    static constexpr int threads = row_groups::threads;
    using C = compute_t<S>;
    row_reader<S, Space, V> reader;
    row_groups shares;
    const std::int32_t* expert_of_token;
    const double* price;   ///< [E]
    certified_sums* sums;  ///< [blocks]
    std::int32_t* load;    ///< [E], added to

    static std::size_t shared_bytes(index_t experts) {
        return shared_room<double>(experts) + shared_room<std::int32_t>(experts) +
               shared_room<double>(threads / warp_lanes);
    }

    template <kernel_thread Here>
    SWITCHYARD_DEVICE void operator()(Here& here) const {
        const index_t experts = reader.experts();
        double* const shared_price = here.template shared<double>(experts);
        std::int32_t* const loads = here.template shared<std::int32_t>(experts);
        double* const room = here.template shared<double>(threads / warp_lanes);
        for (index_t e = here.thread(); e < experts; e += threads) {
            shared_price[e] = here.load(price + e);
            loads[e] = 0;
        }
        here.sync();
        certified_sums mine_sums{0, 0, 0, 0};
        const group_lane mine = group_lane::of(here, shares);
        const index_t first = here.block() * shares.rows_a_block;
        for (index_t offset = 0; offset < shares.rows_a_block; offset += shares.groups()) {
            const index_t t = first + offset + mine.group;
            std::int32_t own = -1;
            double score = 0;
            if (mine.is_leader && t < shares.rows) {
                own = here.load(expert_of_token + t);
                if (own >= 0) score = static_cast<double>(reader.score(here, t, own));
            }
            own = here.shuffle(own, mine.first);
            score = here.shuffle(score, mine.first);
            regret_in_row<C> row{shared_price, score, own >= 0 ? shared_price[own] : 0.0};
            reader.read(here, mine, own >= 0, t, row);
            for (int distance = mine.lanes / 2; distance > 0; distance /= 2) {
                const double other = here.shuffle_xor(row.regret, distance);
                row.regret = other > row.regret ? other : row.regret;
                if constexpr (Exact == exactness::of_ranges) {
                    const C low = here.shuffle_xor(row.low, distance);
                    const C high = here.shuffle_xor(row.high, distance);
                    row.low = low < row.low ? low : row.low;
                    row.high = high > row.high ? high : row.high;
                }
            }
            if (mine.is_leader && own >= 0) {
                here.atomic_add(loads + own, 1);
                mine_sums.primal += score;
                if constexpr (Exact == exactness::of_ranges) {
                    // A row whose experts are all forbidden has none; its result holds nothing.
                    mine_sums.magnitude +=
                        row.high >= row.low ? static_cast<double>(row.high) - static_cast<double>(row.low) : 0.0;
                } else {
                    mine_sums.magnitude += score < 0 ? -score : score;
                }
                mine_sums.regretted += row.regret;
                mine_sums.tokens += 1;
            }
        }
        write(here, mine_sums, loads, room);
    }

  private:
    template <class Here>
    SWITCHYARD_DEVICE void write(Here& here, const certified_sums& mine, const std::int32_t* loads,
                                 double* room) const {
        const double primal = fold_block_again<threads>(here, mine.primal, room, add{});
        const double magnitude = fold_block_again<threads>(here, mine.magnitude, room, add{});
        const double regretted = fold_block_again<threads>(here, mine.regretted, room, add{});
        const double tokens = fold_block_again<threads>(here, mine.tokens, room, add{});
        if (here.thread() == 0) {
            certified_sums* const to = sums + here.block();
            here.store(&to->primal, primal);
            here.store(&to->magnitude, magnitude);
            here.store(&to->regretted, regretted);
            here.store(&to->tokens, tokens);
        }
        for (index_t e = here.thread(); e < reader.experts(); e += threads) {
            if (loads[e] != 0) here.atomic_add(load + e, loads[e]);
        }
    }
};

/// Sums of the blocks, in order: one block.
struct add_certified {
    static constexpr int threads = 256;
    const certified_sums* from;  ///< [blocks]
    index_t blocks;
    certified_sums* to;

    template <kernel_thread Here>
    SWITCHYARD_DEVICE void operator()(Here& here) const {
        double* const room = here.template shared<double>(threads / warp_lanes);
        certified_sums mine{0, 0, 0, 0};
        for (index_t b = here.thread(); b < blocks; b += threads) {
            mine.primal += here.load(&from[b].primal);
            mine.magnitude += here.load(&from[b].magnitude);
            mine.regretted += here.load(&from[b].regretted);
            mine.tokens += here.load(&from[b].tokens);
        }
        mine.primal = fold_block_again<threads>(here, mine.primal, room, add{});
        mine.magnitude = fold_block_again<threads>(here, mine.magnitude, room, add{});
        mine.regretted = fold_block_again<threads>(here, mine.regretted, room, add{});
        mine.tokens = fold_block_again<threads>(here, mine.tokens, room, add{});
        if (here.thread() == 0) {
            here.store(&to->primal, mine.primal);
            here.store(&to->magnitude, mine.magnitude);
            here.store(&to->regretted, mine.regretted);
            here.store(&to->tokens, mine.tokens);
        }
    }
};

struct clear_loads {
    static constexpr int threads = 256;
    std::int32_t* load;
    index_t experts;

    template <kernel_thread Here>
    SWITCHYARD_DEVICE void operator()(Here& here) const {
        for (index_t e = here.thread(); e < experts; e += threads) here.store(load + e, 0);
    }
};

/// Sums over all tokens at prices [E], and the experts' loads. `magnitude` is what Exact says (certificate.hpp).
template <exactness Exact, kernel_policy Policy, class S>
void certify_rows(const Policy& policy, const device_scores<S, policy_space<Policy>>& source,
                  const std::int32_t* expert_of_token, const double* price, certified_sums* sums, std::int32_t* load,
                  device_workspace<Policy>& scratch) {
    const auto scope = scratch.open();
    const index_t experts = source.scores.columns;
    policy.launch(clear_loads{load, experts}, 1);
    with_row_reader(source, [&]<int V>(const row_reader<S, policy_space<Policy>, V>& reader) {
        using kernel = certify_rows_kernel<Exact, S, policy_space<Policy>, V>;
        const row_groups shares = row_groups::of(source.scores.rows, experts, V);
        auto* const partial = scratch.template take<certified_sums>(shares.blocks());
        policy.launch(kernel{reader, shares, expert_of_token, price, partial, load}, shares.blocks(),
                      kernel::shared_bytes(experts));
        policy.launch(add_certified{partial, shares.blocks(), sums}, 1,
                      shared_room<double>(add_certified::threads / warp_lanes));
    });
}

}  // namespace detail
}  // namespace SWITCHYARD_TARGET
}  // namespace switchyard
