// Kernels that use each operation of the contract once, and lay out what it gave so that a test can say what is right.
#pragma once

#include <switchyard/backend/kernel.hpp>

namespace switchyard_test::simt {

/// Which thread had its turn, in order: each takes the next place, then waits for its warp, as many rounds as asked
/// for. (No kernel of the library may take places so.)
struct turn_of_thread {
    static constexpr int threads = 64;
    std::int32_t* count;      // 0 at first
    std::int32_t* thread_at;  // blocks x rounds x threads, in the order of turns
    int rounds;

    template <switchyard::kernel_thread Here>
    SWITCHYARD_DEVICE void operator()(Here& here) const {
        for (int round = 0; round < rounds; ++round) {
            if (round > 0) here.shuffle(1, 0);
            const std::int32_t place = here.atomic_add(count, 1);
            here.store(thread_at + place, static_cast<std::int32_t>(here.block() * threads + here.thread()));
        }
    }
};

/// What a lane gets from shuffles of `x`, 4 x 32 numbers a warp: of lane (lane * 7 + 3) % 32, of lane ^ distance, of
/// lane - distance, and the sum of the lanes up to this one.
template <class T>
struct shuffles {
    static constexpr int threads = 64;
    const T* x;  // threads
    T* to;       // 4 x threads
    int distance;

    template <switchyard::kernel_thread Here>
    SWITCHYARD_DEVICE void operator()(Here& here) const {
        const int t = here.thread();
        const int lane = t % switchyard::warp_lanes;
        const T mine = here.load(x + t);
        here.store(to + t, here.shuffle(mine, (lane * 7 + 3) % switchyard::warp_lanes));
        here.store(to + threads + t, here.shuffle_xor(mine, distance));
        here.store(to + 2 * threads + t, here.shuffle_up(mine, distance));
        T sum = mine;
        for (int step = 1; step < switchyard::warp_lanes; step *= 2) {
            const T lower = here.shuffle_up(sum, step);
            if (lane >= step) sum = static_cast<T>(sum + lower);
        }
        here.store(to + 3 * threads + t, sum);
    }
};

/// ballot and match of each thread's key, and whether any lane's key is `wanted`.
struct votes {
    static constexpr int threads = 96;
    const std::int32_t* key;
    std::uint32_t* odd;
    std::uint32_t* equal;
    std::int32_t* found;
    std::int32_t wanted;

    template <switchyard::kernel_thread Here>
    SWITCHYARD_DEVICE void operator()(Here& here) const {
        const int t = here.thread();
        const std::int32_t mine = here.load(key + t);
        here.store(odd + t, here.ballot((mine & 1) != 0));
        here.store(equal + t, here.match(mine));
        here.store(found + t, here.any(mine == wanted) ? 1 : 0);
    }
};

/// Sorts each block's numbers by a bitonic network in shared memory: as many barriers as such a network has steps.
template <int Threads>
struct block_sort {
    static constexpr int threads = Threads;
    std::int32_t* numbers;  // blocks x threads

    template <switchyard::kernel_thread Here>
    SWITCHYARD_DEVICE void operator()(Here& here) const {
        const int t = here.thread();
        std::int32_t* const at = here.template shared<std::int32_t>(threads);
        std::int32_t* const own = numbers + here.block() * threads + t;
        at[t] = here.load(own);
        for (int size = 2; size <= threads; size *= 2) {
            for (int distance = size / 2; distance > 0; distance /= 2) {
                here.sync();
                const int other = t ^ distance;
                const bool upwards = (t & size) == 0;
                if (other > t && (at[t] > at[other]) == upwards) {
                    const std::int32_t held = at[t];
                    at[t] = at[other];
                    at[other] = held;
                }
            }
        }
        here.sync();
        here.store(own, at[t]);
    }
};

/// Turns 32 x 32 numbers of each warp over in shared memory; only the warp waits.
struct warp_transpose {
    static constexpr int threads = 64;
    const float* from;  // warps x 32 x 32
    float* to;

    template <switchyard::kernel_thread Here>
    SWITCHYARD_DEVICE void operator()(Here& here) const {
        constexpr int lanes = switchyard::warp_lanes;
        float* const all = here.template shared<float>(threads / lanes * lanes * lanes);
        const int warp = here.thread() / lanes;
        const int lane = here.thread() % lanes;
        float* const tile = all + warp * lanes * lanes;
        const switchyard::index_t first = (here.block() * (threads / lanes) + warp) * lanes * lanes;
        for (int i = 0; i < lanes; ++i) tile[lane * lanes + i] = here.load(from + first + lane * lanes + i);
        here.sync_warp();
        for (int i = 0; i < lanes; ++i) here.store(to + first + lane * lanes + i, tile[i * lanes + lane]);
    }
};

/// How often each key occurs and where it does first, counted in shared memory and then in device memory.
struct histogram {
    static constexpr int threads = 64;
    static constexpr int keys = 8;
    const std::int32_t* key;
    std::uint32_t* often;  // 0 at first
    std::int64_t* first;   // large at first
    switchyard::index_t count;

    template <switchyard::kernel_thread Here>
    SWITCHYARD_DEVICE void operator()(Here& here) const {
        std::int32_t* const in_block = here.template shared<std::int32_t>(keys);
        const int t = here.thread();
        if (t < keys) in_block[t] = 0;
        here.sync();
        const switchyard::index_t i = here.block() * threads + t;
        if (i < count) {
            const std::int32_t mine = here.load(key + i);
            here.atomic_add(in_block + mine, 1);
            here.atomic_min(first + mine, i);
        }
        here.sync();
        if (t < keys) here.atomic_add(often + t, static_cast<std::uint32_t>(in_block[t]));
    }
};

/// Copies `count` vectors of N numbers.
template <class T, int N>
struct copy_vectors {
    static constexpr int threads = 32;
    const T* from;
    T* to;
    int count;

    template <switchyard::kernel_thread Here>
    SWITCHYARD_DEVICE void operator()(Here& here) const {
        for (int i = here.thread(); i < count; i += threads) {
            here.store_vector(to + i * N, here.template load_vector<N>(from + i * N));
        }
    }
};

/// What shared memory holds before anybody writes, as bytes; then writes it.
struct read_shared_junk {
    static constexpr int threads = 32;
    std::int32_t* to;  // blocks x 2 x threads

    template <switchyard::kernel_thread Here>
    SWITCHYARD_DEVICE void operator()(Here& here) const {
        const int t = here.thread();
        std::uint8_t* const odd_sized = here.template shared<std::uint8_t>(33);
        std::int32_t* const numbers = here.template shared<std::int32_t>(threads);
        std::int32_t* const mine = to + (here.block() * threads + t) * 2;
        here.store(mine, odd_sized[t]);
        here.store(mine + 1, numbers[t]);
        odd_sized[t] = 1;
        numbers[t] = 1;
    }
};

}  // namespace switchyard_test::simt
