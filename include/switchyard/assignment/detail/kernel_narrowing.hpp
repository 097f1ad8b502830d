// The tokens that small changes of prices could move, taken from the device to the host in one copy.
//
// After a price pass over all tokens, those with a safe margin of at least a band stay at their best experts: they are
// fixed, and their part of the certificate is summed up here. The band is as wide as lets about as many tokens through
// as the exact solver may need, and no more than there is room for. The others, the candidates, go into a *parcel* in
// the order of their rows:
//
//   header | prices [E] | loads of the fixed tokens [E] | rows [room] | scores [room, E]
//
// whose size does not depend on what is found, so that one copy brings all of it. Launches: band, fixed tokens, running
// sum of the candidates (1 or 3), their rows, their scores, header.
#pragma once

#include <switchyard/assignment/detail/kernel_price_pass.hpp>
#include <switchyard/assignment/detail/kernel_price_steps.hpp>
#include <switchyard/assignment/detail/kernel_rows.hpp>
#include <switchyard/backend/device.hpp>
#include <switchyard/backend/kernel.hpp>
#include <switchyard/backend/lane_group.hpp>
#include <switchyard/core/bits.hpp>
#include <switchyard/core/config.hpp>
#include <switchyard/core/workspace.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>

namespace switchyard {
inline namespace SWITCHYARD_TARGET {
namespace detail {

/// What there is once in a parcel.
struct parcel_header {
    double band;              ///< fixed tokens have at least this margin
    double primal;            ///< sum of the fixed tokens' scores
    double magnitude;         ///< and of their sizes
    double excess;            ///< places taken beyond the goals at the prices
    std::int64_t candidates;  ///< more than there is room for: the scores are not here
    std::int32_t tokens;      ///< rows that are not padding
    std::int32_t bad_row;     ///< the first that cannot be used, none_bad if there is none
};

/// Where a parcel's parts lie, on the device or in its copy.
template <class S>
struct parcel {
    parcel_header* header;
    double* price;       ///< [E]
    std::int32_t* load;  ///< [E]
    std::int32_t* row;   ///< [room]
    S* score;            ///< [room, E]
    index_t experts;
    index_t room;

    static index_t bytes(index_t experts, index_t room) {
        return part<parcel_header>(1) + part<double>(experts) + part<std::int32_t>(experts) + part<std::int32_t>(room) +
               part<S>(room * experts);
    }
    static parcel at(std::byte* from, index_t experts, index_t room) {
        parcel made{};
        made.experts = experts;
        made.room = room;
        made.header = next_part<parcel_header>(from, 1);
        made.price = next_part<double>(from, experts);
        made.load = next_part<std::int32_t>(from, experts);
        made.row = next_part<std::int32_t>(from, room);
        made.score = next_part<S>(from, room * experts);
        return made;
    }

  private:
    template <class T>
    static index_t part(index_t count) {
        return (count * static_cast<index_t>(sizeof(T)) + 63) / 64 * 64;
    }
    template <class T>
    static T* next_part(std::byte*& from, index_t count) {
        T* const taken = reinterpret_cast<T*>(from);
        from += part<T>(count);
        return taken;
    }
};

/// The band, for about `wanted` candidates and never more than the room if that can be; prices; loads of nothing. One
/// block.
template <class S>
struct choose_band {
    using C = compute_t<S>;
    static constexpr int threads = 256;
    price_search_on_device<C> on;
    parcel<S> to;
    index_t spare;   ///< candidates an expert gets beyond those that the excess asks for
    bool takes_all;  ///< every token that has a choice is a candidate

    static std::size_t shared_bytes() {
        return shared_room<double>(threads / warp_lanes) + shared_room<std::int32_t>(threads + 1);
    }

    template <kernel_thread Here>
    SWITCHYARD_DEVICE void operator()(Here& here) const {
        double* const room = here.template shared<double>(threads / warp_lanes);
        std::int32_t* const bin_room = here.template shared<std::int32_t>(threads + 1);
        const double excess = takes_all ? 0.0 : here.load(&on.state->excess);
        const index_t wanted = static_cast<index_t>(12 * excess) + spare * on.experts;
        index_t bin = last_finite_bin;
        if (!takes_all) {
            bin = find_bin(here, on.looked.bins, wanted < to.room ? wanted : to.room, bin_room);
            double through = 0;
            for (index_t b = here.thread(); b <= bin; b += threads) {
                through += static_cast<double>(here.load(on.looked.bins + b));
            }
            through = fold_block_again<threads>(here, through, room, add{});
            if (through > static_cast<double>(to.room) && bin > 0) bin -= 1;
        }
        for (index_t e = here.thread(); e < on.experts; e += threads) {
            here.store(to.price + e, here.load(on.price + e));
            here.store(to.load + e, 0);
        }
        if (here.thread() == 0) {
            here.store(&to.header->band, edge_of(bin));
            here.store(&to.header->excess, excess);
            here.store(&to.header->tokens, here.load(&on.state->tokens));
            here.store(&to.header->bad_row, here.load(&on.state->bad_row));
        }
    }
};

/// Whether a token has a margin of less than the band. NaN, where scores differ by more than a float can hold, counts.
template <class C>
SWITCHYARD_HD bool is_candidate(std::int32_t expert, C margin, double band) {
    return expert >= 0 && !(static_cast<double>(margin) >= band);
}

/// Tokens that a block below goes through.
inline constexpr index_t narrowed_rows_a_block = 1024;
inline index_t narrowed_blocks(index_t rows) { return (rows + narrowed_rows_a_block - 1) / narrowed_rows_a_block; }

/// Every token's best expert, to the caller; the fixed tokens' loads and sums, and how many candidates there are.
template <class S, class Space>
struct fix_tokens {
    using C = compute_t<S>;
    static constexpr int threads = 256;
    price_search_on_device<C> on;
    device_scores<S, Space> source;
    parcel<S> to;
    std::int32_t* expert_of_token;
    std::int64_t* candidates;  ///< [blocks]
    double* sums;              ///< [blocks, 2]

    static std::size_t shared_bytes(index_t experts) {
        return shared_room<double>(threads / warp_lanes) + shared_room<std::int32_t>(experts);
    }

    template <kernel_thread Here>
    SWITCHYARD_DEVICE void operator()(Here& here) const {
        double* const room = here.template shared<double>(threads / warp_lanes);
        std::int32_t* const load = here.template shared<std::int32_t>(on.experts);
        for (index_t e = here.thread(); e < on.experts; e += threads) load[e] = 0;
        here.sync();
        const double band = here.load(&to.header->band);
        double primal = 0;
        double magnitude = 0;
        double found = 0;
        for (index_t j = here.thread(); j < narrowed_rows_a_block; j += threads) {
            const index_t t = here.block() * narrowed_rows_a_block + j;
            if (t >= on.rows) break;
            const std::int32_t e = here.load(on.looked.expert + t);
            here.store(expert_of_token + t, e >= 0 ? e : -1);
            if (is_candidate(e, here.load(on.looked.margin + t), band)) {
                found += 1;
            } else if (e >= 0) {
                const auto s =
                    static_cast<double>(load_scalar(here.load(source.scores.row(t) + e * source.scores.column_stride)));
                primal += source.are_costs ? -s : s;
                magnitude += s < 0 ? -s : s;
                here.atomic_add(load + e, 1);
            }
        }
        primal = fold_block_again<threads>(here, primal, room, add{});
        magnitude = fold_block_again<threads>(here, magnitude, room, add{});
        found = fold_block_again<threads>(here, found, room, add{});
        for (index_t e = here.thread(); e < on.experts; e += threads) {
            if (load[e] != 0) here.atomic_add(to.load + e, load[e]);
        }
        if (here.thread() == 0) {
            here.store(sums + 2 * here.block(), primal);
            here.store(sums + 2 * here.block() + 1, magnitude);
            here.store(candidates + here.block(), static_cast<std::int64_t>(found));
        }
    }
};

/// The candidates' rows, in order: one warp goes through a block's tokens. And the header's sums, by the first block.
template <class S>
struct list_candidates {
    using C = compute_t<S>;
    static constexpr int threads = warp_lanes;
    price_search_on_device<C> on;
    parcel<S> to;
    const std::int64_t* candidates;  ///< [blocks], summed up
    const double* sums;              ///< [blocks, 2]

    template <kernel_thread Here>
    SWITCHYARD_DEVICE void operator()(Here& here) const {
        const double band = here.load(&to.header->band);
        index_t next = here.block() > 0 ? here.load(candidates + here.block() - 1) : 0;
        for (index_t j = 0; j < narrowed_rows_a_block; j += threads) {
            const index_t t = here.block() * narrowed_rows_a_block + j + here.thread();
            const bool is_one =
                t < on.rows && is_candidate(here.load(on.looked.expert + t), here.load(on.looked.margin + t), band);
            const std::uint32_t lanes = here.ballot(is_one);
            const index_t place = next + count_bits(lanes & ((std::uint32_t{1} << here.thread()) - 1));
            if (is_one && place < to.room) here.store(to.row + place, static_cast<std::int32_t>(t));
            next += count_bits(lanes);
        }
        if (here.block() == 0) add_up(here);
    }

  private:
    template <class Here>
    SWITCHYARD_DEVICE void add_up(Here& here) const {
        double primal = 0;
        double magnitude = 0;
        for (index_t b = here.thread(); b < here.blocks(); b += threads) {
            primal += here.load(sums + 2 * b);
            magnitude += here.load(sums + 2 * b + 1);
        }
        for (int distance = warp_lanes / 2; distance > 0; distance /= 2) {
            primal += here.shuffle_xor(primal, distance);
            magnitude += here.shuffle_xor(magnitude, distance);
        }
        if (here.thread() == 0) {
            here.store(&to.header->primal, primal);
            here.store(&to.header->magnitude, magnitude);
            here.store(&to.header->candidates, here.load(candidates + here.blocks() - 1));
        }
    }
};

/// The candidates' scores, side by side: a warp a row.
template <class S, class Space, int V>
struct gather_candidates {
    static constexpr int threads = 256;
    matrix_view<const S, Space> scores;
    parcel<S> to;

    template <kernel_thread Here>
    SWITCHYARD_DEVICE void operator()(Here& here) const {
        const index_t i = here.block() * (threads / warp_lanes) + here.thread() / warp_lanes;
        const index_t count = here.load(&to.header->candidates);
        if (i < count && count <= to.room) copy_row(here, scores.row(here.load(to.row + i)), to.score + i * to.experts);
    }

  private:
    template <class Here>
    SWITCHYARD_DEVICE void copy_row(Here& here, const S* from, S* row) const {
        const int lane = here.thread() % warp_lanes;
        if constexpr (V > 1) {
            for (index_t e = lane * V; e + V <= to.experts; e += warp_lanes * V) {
                here.store_vector(row + e, here.template load_vector<V>(from + e));
            }
        }
        const index_t whole = V > 1 ? to.experts / V * V : 0;
        for (index_t e = whole + lane; e < to.experts; e += warp_lanes) {
            here.store(row + e, here.load(from + e * scores.column_stride));
        }
    }
};

/// Fills the parcel after a price pass over all tokens, and the caller's experts with what each token would choose.
template <kernel_policy Policy, class S, class C>
void fill_parcel(const Policy& policy, const price_search_on_device<C>& on,
                 const device_scores<S, policy_space<Policy>>& source, const parcel<S>& to, index_t spare,
                 bool takes_all, std::int32_t* expert_of_token, device_workspace<Policy>& scratch) {
    using space = policy_space<Policy>;
    const auto scope = scratch.open();
    const index_t blocks = narrowed_blocks(on.rows);
    auto* const candidates = scratch.template take<std::int64_t>(blocks);
    auto* const sums = scratch.template take<double>(2 * blocks);
    policy.launch(choose_band<S>{on, to, spare, takes_all}, 1, choose_band<S>::shared_bytes());
    policy.launch(fix_tokens<S, space>{on, source, to, expert_of_token, candidates, sums}, blocks,
                  fix_tokens<S, space>::shared_bytes(on.experts));
    policy.inclusive_sum(candidates, blocks, scratch);
    policy.launch(list_candidates<S>{on, to, candidates, sums}, blocks);
    const bool is_aligned = has_aligned_rows(source.scores) && to.experts * static_cast<index_t>(sizeof(S)) % 16 == 0;
    const index_t gathered = (to.room + 7) / 8;
    if (is_aligned) {
        policy.launch(gather_candidates<S, space, widest_vector<S>>{source.scores, to}, gathered);
    } else {
        policy.launch(gather_candidates<S, space, 1>{source.scores, to}, gathered);
    }
}

}  // namespace detail
}  // namespace SWITCHYARD_TARGET
}  // namespace switchyard
