// Kernels with one mistake each, and the same kernels without: `Right` says which. Tests show that the executor, or a
// sanitizer under it, catches every mistake.
#pragma once

#include <switchyard/backend/kernel.hpp>

namespace switchyard_test::simt {

/// What each warp puts into shared memory, read by the warp below it. A shuffle between the two keeps warps that have
/// equal turns in step, so that without the barrier a warp must run ahead to find nothing there.
template <bool Right>
struct read_next_warp {
    static constexpr int threads = 128;
    std::int32_t* to;  // a number a warp

    template <switchyard::kernel_thread Here>
    SWITCHYARD_DEVICE void operator()(Here& here) const {
        constexpr int warps = threads / switchyard::warp_lanes;
        std::int32_t* const of_warp = here.template shared<std::int32_t>(warps);
        const int warp = here.thread() / switchyard::warp_lanes;
        const int lane = here.thread() % switchyard::warp_lanes;
        if (lane == 0) of_warp[warp] = 10 * warp;
        here.shuffle_xor(lane, 1);
        if constexpr (Right) here.sync();
        if (lane == 0) here.store(to + warp, of_warp[(warp + 1) % warps]);
    }
};

/// What each lane puts into shared memory, read by the lane above it.
template <bool Right>
struct read_lower_lane {
    static constexpr int threads = 32;
    std::int32_t* to;  // a number a lane

    template <switchyard::kernel_thread Here>
    SWITCHYARD_DEVICE void operator()(Here& here) const {
        std::int32_t* const of_lane = here.template shared<std::int32_t>(threads);
        const int lane = here.thread();
        of_lane[lane] = 10 * lane;
        if constexpr (Right) here.sync_warp();
        here.store(to + lane, lane > 0 ? of_lane[lane - 1] : 0);
    }
};

/// Each thread's place among those of its kind: counted in order, or taken from an atomic, whoever comes first.
template <bool Right>
struct rank_in_kind {
    static constexpr int threads = 32;
    std::int32_t* taken;  // a number a kind, 0 at first
    std::int32_t* to;     // a number a thread

    template <switchyard::kernel_thread Here>
    SWITCHYARD_DEVICE void operator()(Here& here) const {
        const int lane = here.thread();
        const int kind = lane % 3;
        if constexpr (Right) {
            const std::uint32_t before = here.match(kind) & ((1u << lane) - 1);
            std::int32_t rank = 0;
            for (std::uint32_t left = before; left != 0; left &= left - 1) ++rank;
            here.store(to + lane, rank);
        } else {
            here.store(to + lane, here.atomic_add(taken + kind, 1));
        }
    }
};

/// The sum of what all blocks found, by the block that ends last.
template <bool Fenced>
struct last_block_sums {
    static constexpr int threads = 64;
    std::int32_t* of_thread;  // blocks x threads
    std::int32_t* done;       // 0 at first
    std::int32_t* sum;

    template <switchyard::kernel_thread Here>
    SWITCHYARD_DEVICE void operator()(Here& here) const {
        std::int32_t* const is_last = here.template shared<std::int32_t>(1);
        here.store(of_thread + here.block() * threads + here.thread(), static_cast<std::int32_t>(here.block() + 1));
        here.sync();
        if (here.thread() == 0) {
            if constexpr (Fenced) here.fence();
            *is_last = here.atomic_add(done, 1) == here.blocks() - 1 ? 1 : 0;
            if constexpr (Fenced) here.fence();
        }
        here.sync();
        if (*is_last == 0) return;
        std::int32_t mine = 0;
        for (switchyard::index_t b = 0; b < here.blocks(); ++b) {
            mine += here.load(of_thread + b * threads + here.thread());
        }
        here.atomic_add(sum, mine);
    }
};

/// A count of blocks: each adds one.
template <bool Right>
struct count_blocks {
    static constexpr int threads = 32;
    std::int32_t* count;

    template <switchyard::kernel_thread Here>
    SWITCHYARD_DEVICE void operator()(Here& here) const {
        if (here.thread() != 0) return;
        if constexpr (Right) {
            here.atomic_add(count, 1);
        } else {
            here.store(count, here.load(count) + 1);
        }
    }
};

/// Fills two pieces of shared memory with `shared` numbers each, and stores `device` numbers.
struct write_numbers {
    static constexpr int threads = 32;
    float* to;
    int shared;
    int device;
    int pieces_of = 32;  // what was asked for

    template <switchyard::kernel_thread Here>
    SWITCHYARD_DEVICE void operator()(Here& here) const {
        float* const low = here.template shared<float>(pieces_of);
        float* const high = here.template shared<float>(pieces_of);
        for (int i = here.thread(); i < shared; i += threads) low[i] = high[i] = 1.0f;
        for (int i = here.thread(); i < device; i += threads) here.store(to + i, 1.0f);
    }
};

}  // namespace switchyard_test::simt
