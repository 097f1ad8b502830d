// Lane groups: the threads of a kernel that work on one row together.
//
//   lane_group<L>   L neighbouring lanes of a warp, a power of two: several rows per warp where rows are short
//   block_group     all threads of a block: long rows
//
// Both have the same members, so that a row program is written once:
//
//   group.size()                       threads of the group
//   group.count(threads)               groups of a block
//   group.rank(here), number(here)     place in the group, place of the group in the block
//   group.sum(here, x)                 of all, in a fixed order: identical in every thread
//   group.highest(here, x)             the largest of all, to every thread; NaN is none of them
//   group.lowest(here, column)         the smallest of all, to every thread
//   group.best(here, score, column)    the highest score, equal ones by the lower column, to every thread
//   group.any(here, condition)         whether it holds in a thread of the group
//   group.any_nearby(here, condition)  the same for all groups that must run in step with this one
//
// Every thread of the block takes part in every one of them, threads without a row included.
#pragma once

#include <switchyard/backend/kernel.hpp>
#include <switchyard/core/config.hpp>

#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <type_traits>
#include <utility>

namespace switchyard {
inline namespace SWITCHYARD_TARGET {

/// f(0), f(1), ... f(N - 1), each with a constant: arrays indexed by it stay in registers.
template <int N, class F>
SWITCHYARD_DEVICE SWITCHYARD_ALWAYS_INLINE void unrolled(F&& f) {
    [&]<int... I>(std::integer_sequence<int, I...>) { (f(std::integral_constant<int, I>{}), ...); }
    (std::make_integer_sequence<int, N>{});
}

/// Calls f(first, four) with the numbers first .. first + 3 of an array in registers, for each four of it: one after
/// the other by the same code, where four copies of it would not fit a cache of instructions.
template <int V, class S, class F>
SWITCHYARD_DEVICE void by_fours(S (&x)[V], const F& f) {
    static_assert(V % 4 == 0);
#if defined(__CUDA_ARCH__)
#pragma unroll 1
#endif
    for (int first = 0; first < V; first += 4) {
        S four[4];
        unrolled<4>([&](int m) { four[m] = x[m]; });
        f(first, four);
        unrolled<V - 4>([&](int j) { x[j] = x[j + 4]; });
        unrolled<4>([&](int m) { x[V - 4 + m] = four[m]; });
    }
}

/// f(1), f(2), f(4), ... below N, a power of two, each with a constant.
template <int N, int First = 1, class F>
SWITCHYARD_DEVICE SWITCHYARD_ALWAYS_INLINE void for_each_power(F&& f) {
    if constexpr (First < N) {
        f(std::integral_constant<int, First>{});
        for_each_power<N, 2 * First>(f);
    }
}

/// Calls take(i, load(i)) for i = first, first + step, ... below `last`, with `Each` loads under way at a time. What
/// `take` writes does not hold up loads.
template <int Each, class Load, class Take>
SWITCHYARD_DEVICE void load_ahead(index_t first, index_t last, index_t step, const Load& load, const Take& take) {
    for (index_t start = first; start < last; start += Each * step) {
        decltype(load(start)) loaded[Each];
        unrolled<Each>([&](int i) {
            const index_t at = start + i * step;
            loaded[i] = at < last ? load(at) : decltype(load(start)){};
        });
        unrolled<Each>([&](int i) {
            const index_t at = start + i * step;
            if (at < last) {
                take(at, loaded[i]);
            }
        });
    }
}

/// Bytes of shared memory that `count` numbers take, with what aligns those after them.
template <class T>
constexpr std::size_t shared_room(index_t count) {
    return (static_cast<std::size_t>(count) * sizeof(T) + 15) / 16 * 16;
}

/// The first of equally high scores; columns are above 0 and below `no_column`.
inline constexpr std::int32_t no_column = 0x7FFFFFFF;

/// A score and its column.
template <class S>
struct scored_column {
    S score;
    std::int32_t column;
};

template <class S>
SWITCHYARD_HD constexpr scored_column<S> better(const scored_column<S>& a, const scored_column<S>& b) {
    return b.score > a.score || (b.score == a.score && b.column < a.column) ? b : a;
}

namespace detail {

/// x of all `Lanes` neighbours, combined in pairs: the halves of the group first.
template <int Lanes, class Here, class T, class Combine>
SWITCHYARD_DEVICE T fold_lanes(Here& here, T x, const Combine& combine) {
    if constexpr (Lanes > 1) {
        return fold_lanes<Lanes / 2>(here, combine(x, here.shuffle_xor(x, Lanes / 2)), combine);
    } else {
        return x;
    }
}

template <int Lanes, class Here, class S>
SWITCHYARD_DEVICE scored_column<S> best_of_lanes(Here& here, const scored_column<S>& mine) {
    if constexpr (Lanes > 1) {
        const scored_column<S> other{here.shuffle_xor(mine.score, Lanes / 2), here.shuffle_xor(mine.column, Lanes / 2)};
        return best_of_lanes<Lanes / 2>(here, better(mine, other));
    } else {
        return mine;
    }
}

struct add {
    template <class T>
    SWITCHYARD_HD T operator()(T a, T b) const {
        return a + b;
    }
};

struct lower_of {
    template <class T>
    SWITCHYARD_HD T operator()(T a, T b) const {
        return b < a ? b : a;
    }
};

struct higher_of {
    template <class T>
    SWITCHYARD_HD T operator()(T a, T b) const {
        return b > a ? b : a;
    }
};

/// The larger of two scores, and the other of NaN and a score: one instruction.
struct higher_score {
    template <class S>
    SWITCHYARD_DEVICE S operator()(S a, S b) const {
        return std::fmax(a, b);
    }
};

/// A number's bits as an integer of the same order; the larger of two zeros is +0.
SWITCHYARD_DEVICE inline std::int32_t key_of_number(float x) {
    const auto bits = std::bit_cast<std::int32_t>(x);
    return bits ^ (bits >> 31 & 0x7fffffff);
}
SWITCHYARD_DEVICE inline float number_of_key(std::int32_t key) {
    return std::bit_cast<float>(key ^ (key >> 31 & 0x7fffffff));
}

/// x of all threads of the block, combined in a fixed order; every thread has the result. `room` holds a number for
/// each warp and is free again after the next sync.
template <int Threads, class Here, class T, class Combine>
SWITCHYARD_DEVICE T fold_block(Here& here, T x, T* room, const Combine& combine) {
    x = fold_lanes<warp_lanes>(here, x, combine);
    if (here.thread() % warp_lanes == 0) {
        room[here.thread() / warp_lanes] = x;
    }
    here.sync();
    T all = room[0];
    for (int warp = 1; warp < Threads / warp_lanes; ++warp) {
        all = combine(all, room[warp]);
    }
    return all;
}

/// The same in a `room` that may still be read: threads meet twice.
template <int Threads, class Here, class T, class Combine>
SWITCHYARD_DEVICE T fold_block_again(Here& here, T x, T* room, const Combine& combine) {
    here.sync();
    return fold_block<Threads>(here, x, room, combine);
}

}  // namespace detail

/// `Lanes` neighbouring lanes, a power of two.
template <int Lanes>
struct lane_group {
    static_assert(Lanes >= 1 && Lanes <= warp_lanes && (Lanes & (Lanes - 1)) == 0);
    static constexpr bool is_block = false;
    static constexpr int lanes = Lanes;

    static constexpr std::size_t room(int) { return 0; }
    template <class Here>
    SWITCHYARD_DEVICE void begin(Here&, int) {}

    SWITCHYARD_HD static constexpr int size() { return lanes; }
    SWITCHYARD_HD static constexpr int count(int threads) { return threads / lanes; }
    template <class Here>
    SWITCHYARD_DEVICE int rank(Here& here) const {
        return here.thread() & (lanes - 1);
    }
    template <class Here>
    SWITCHYARD_DEVICE int number(Here& here) const {
        return here.thread() / lanes;
    }
    template <class Here, class S>
    SWITCHYARD_DEVICE S sum(Here& here, S x) const {
        return detail::fold_lanes<lanes>(here, x, detail::add{});
    }
    template <class Here, class S>
    SWITCHYARD_DEVICE S highest(Here& here, S x) const {
        if constexpr (lanes == warp_lanes && std::is_same_v<S, float>) {
            return detail::number_of_key(here.highest_of_warp(detail::key_of_number(x)));
        } else {
            return detail::fold_lanes<lanes>(here, x, detail::higher_score{});
        }
    }
    template <class Here>
    SWITCHYARD_DEVICE std::int32_t lowest(Here& here, std::int32_t x) const {
        if constexpr (lanes == warp_lanes) {
            return here.lowest_of_warp(x);
        } else {
            return detail::fold_lanes<lanes>(here, x, detail::lower_of{});
        }
    }
    template <class Here, class S>
    SWITCHYARD_DEVICE scored_column<S> best(Here& here, scored_column<S> mine) const {
        return detail::best_of_lanes<lanes>(here, mine);
    }
    template <class Here>
    SWITCHYARD_DEVICE bool any(Here& here, bool condition) const {
        const std::uint32_t lane = static_cast<std::uint32_t>(here.thread()) % warp_lanes;
        const std::uint32_t first = lane & ~static_cast<std::uint32_t>(lanes - 1);
        const std::uint32_t mine = (lanes == warp_lanes ? ~0u : (1u << lanes) - 1u) << first;
        return (here.ballot(condition) & mine) != 0;
    }
    template <class Here>
    SWITCHYARD_DEVICE bool any_nearby(Here& here, bool condition) const {
        return here.any(condition);
    }
};

/// All threads of a block. Results pass through shared memory, in two places in turn, so that one sync a result will
/// do.
template <class S>
struct block_group {
    static constexpr bool is_block = true;
    S* number_of_warp = nullptr;
    std::int32_t* word_of_warp = nullptr;
    int threads = 0;
    int turn = 0;

    static constexpr std::size_t room(int threads) {
        return shared_room<S>(2 * threads / warp_lanes) + shared_room<std::int32_t>(2 * threads / warp_lanes);
    }
    template <class Here>
    SWITCHYARD_DEVICE void begin(Here& here, int block_threads) {
        threads = block_threads;
        number_of_warp = here.template shared<S>(2 * threads / warp_lanes);
        word_of_warp = here.template shared<std::int32_t>(2 * threads / warp_lanes);
        turn = 0;
    }

    SWITCHYARD_HD int size() const { return threads; }
    SWITCHYARD_HD int count(int) const { return 1; }
    template <class Here>
    SWITCHYARD_DEVICE int rank(Here& here) const {
        return here.thread();
    }
    template <class Here>
    SWITCHYARD_DEVICE int number(Here&) const {
        return 0;
    }
    template <class Here>
    SWITCHYARD_DEVICE S sum(Here& here, S x) {
        return fold(here, x, number_of_warp, detail::add{});
    }
    template <class Here>
    SWITCHYARD_DEVICE S highest(Here& here, S x) {
        return fold(here, x, number_of_warp, detail::higher_score{});
    }
    template <class Here>
    SWITCHYARD_DEVICE std::int32_t lowest(Here& here, std::int32_t x) {
        return fold(here, x, word_of_warp, detail::lower_of{});
    }
    template <class Here>
    SWITCHYARD_DEVICE scored_column<S> best(Here& here, scored_column<S> mine) {
        const int place = next_place();
        mine = detail::best_of_lanes<warp_lanes>(here, mine);
        if (here.thread() % warp_lanes == 0) {
            number_of_warp[place + here.thread() / warp_lanes] = mine.score;
            word_of_warp[place + here.thread() / warp_lanes] = mine.column;
        }
        here.sync();
        for (int warp = 0; warp < warps(); ++warp) {
            mine = better(mine, scored_column<S>{number_of_warp[place + warp], word_of_warp[place + warp]});
        }
        return mine;
    }
    template <class Here>
    SWITCHYARD_DEVICE bool any(Here& here, bool condition) {
        return fold(here, std::int32_t{condition ? 1 : 0}, word_of_warp, detail::higher_of{}) != 0;
    }
    template <class Here>
    SWITCHYARD_DEVICE bool any_nearby(Here& here, bool condition) {
        return any(here, condition);
    }

  private:
    template <class Here, class T, class Combine>
    SWITCHYARD_DEVICE T fold(Here& here, T x, T* of_warp, const Combine& combine) {
        const int place = next_place();
        x = detail::fold_lanes<warp_lanes>(here, x, combine);
        if (here.thread() % warp_lanes == 0) {
            of_warp[place + here.thread() / warp_lanes] = x;
        }
        here.sync();
        T all = of_warp[place];
        for (int warp = 1; warp < warps(); ++warp) {
            all = combine(all, of_warp[place + warp]);
        }
        return all;
    }

    SWITCHYARD_HD int warps() const { return threads / warp_lanes; }
    SWITCHYARD_HD int next_place() {
        turn ^= 1;
        return turn * warps();
    }
};

/// Threads of a group in a block of so many.
template <class Group, int Threads>
inline constexpr int group_threads = [] {
    if constexpr (Group::is_block) {
        return Threads;
    } else {
        return Group::lanes;
    }
}();

}  // namespace SWITCHYARD_TARGET
}  // namespace switchyard
