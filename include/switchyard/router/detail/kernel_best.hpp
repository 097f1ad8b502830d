// The k best keys of a row that lies in the registers of a lane group.
//
// At least k keys of a row are not below the k-th highest of its threads' own maxima. Where the threads are twice the
// choices, hardly more are: about 11 of 256 for 8 choices and 16 threads. Those are the candidates. They go through
// shared memory to a thread each, which sort them. Rows with more candidates than threads, of equal keys most of them,
// are taken from choice by choice, and so is every row of groups that are smaller.
#pragma once

#include <switchyard/backend/kernel.hpp>
#include <switchyard/backend/lane_group.hpp>
#include <switchyard/core/config.hpp>
#include <switchyard/router/detail/kernel_pieces.hpp>

#include <cstdint>
#include <limits>

namespace switchyard {
inline namespace SWITCHYARD_TARGET {
namespace detail {

/// A key on its way from thread to thread: one access to shared memory.
template <class S>
struct alignas(2 * sizeof(S)) best_candidate {
    S key;
    std::int32_t column;
};

/// Shared memory of a group for as many candidates as it has threads, and whether its row counts.
template <class S>
struct best_room {
    best_candidate<S>* candidates;
    bool is_live;
};

/// Groups of fewer threads take choices one by one.
inline constexpr int least_sorting_threads = 8;

/// A column of the row where nothing was found: only in rows that nobody checked.
template <class S>
SWITCHYARD_HD scored_column<S> in_range(const scored_column<S>& picked) {
    return {picked.score, picked.column == no_column ? 0 : picked.column};
}

/// What is taken, or is none of a row's numbers: neither maximum nor comparison finds it.
template <class S>
SWITCHYARD_HD constexpr S taken() {
    return std::numeric_limits<S>::quiet_NaN();
}

/// Sorts what the threads of a group have, the best to rank 0, by Batcher's bitonic network. `other(x, distance)` is
/// the x of the thread of rank ^ distance; is_better(a, b) says that a comes before b.
template <int Size, class T, class Other, class IsBetter>
SWITCHYARD_DEVICE T sorted_over_lanes(T x, int rank, const Other& other, const IsBetter& is_better) {
    for_each_power<Size>([&](auto half) {
        for_each_power<2 * decltype(half)::value>([&](auto step) {
            constexpr int distance = decltype(half)::value / decltype(step)::value;
            const T theirs = other(x, distance);
            const bool takes_better = ((rank & distance) == 0) == ((rank & 2 * half) == 0);
            x = is_better(theirs, x) == takes_better ? theirs : x;
        });
    });
    return x;
}

/// The choices one by one: the best, then the best of the others. `open` is used up.
template <class Here, class Group, class S, class Storage, int V, int Size>
SWITCHYARD_DEVICE scored_column<S> take_one_by_one(Here& here, Group& group, int k, S (&open)[V],
                                                   const row_pieces<Storage, V, Size>& mine, S& highest_key) {
    scored_column<S> picked{lowest<S>(), 0};
    for (int c = 0; c < k; ++c) {
        const auto best = in_range(best_of_row(here, group, open, mine));
        highest_key = c == 0 ? best.score : highest_key;
        picked = c == mine.rank ? best : picked;
        const int distance = best.column - mine.first_column();
        unrolled<V>([&](int j) { open[j] = distance == mine.distance(j) ? taken<S>() : open[j]; });
    }
    return picked;
}

/// The k best of a row's keys, number c to the thread of rank c; `highest_key` receives the first. `open` is used up.
template <class Here, class Group, class S, class Storage, int V, int Size>
SWITCHYARD_DEVICE scored_column<S> take_best(Here& here, Group& group, int k, S (&open)[V],
                                             const row_pieces<Storage, V, Size>& mine, const best_room<S>& room,
                                             S& highest_key) {
    if constexpr (!Group::is_block && Size >= least_sorting_threads) {
        if (2 * k <= Size) {
            const int first_lane = here.thread() % warp_lanes - mine.rank;
            const S maximum = sorted_over_lanes<Size>(
                highest_of_pieces(open), mine.rank, [&](S x, int distance) { return here.shuffle_xor(x, distance); },
                [](S a, S b) { return a > b; });
            highest_key = here.shuffle(maximum, first_lane);
            const S bound = here.shuffle(maximum, first_lane + k - 1);
            std::int32_t count = 0;
            unrolled<V>([&](int j) { count += open[j] >= bound ? 1 : 0; });
            std::int32_t through = count;  // candidates up to this thread's last
            for (int distance = 1; distance < Size; distance *= 2) {
                const std::int32_t before = here.shuffle_up(through, distance);
                through += mine.rank >= distance ? before : 0;
            }
            const std::int32_t total = here.shuffle(through, first_lane + Size - 1);
            if (!group.any_nearby(here, room.is_live && total > Size)) {
                here.sync_warp();  // the candidates of the row before have been read
                best_candidate<S>* to = room.candidates + (through - count);
                unrolled<V>([&](int j) {
                    if (room.is_live && open[j] >= bound) {
                        *to++ = {open[j], mine.column(j)};
                    }
                });
                here.sync_warp();
                scored_column<S> own{lowest<S>(), no_column};
                if (room.is_live && mine.rank < total) {
                    const best_candidate<S> candidate = room.candidates[mine.rank];
                    own = {candidate.key, candidate.column};
                }
                return in_range(sorted_over_lanes<Size>(
                    own, mine.rank,
                    [&](const scored_column<S>& x, int distance) {
                        return scored_column<S>{here.shuffle_xor(x.score, distance),
                                                here.shuffle_xor(x.column, distance)};
                    },
                    [](const scored_column<S>& a, const scored_column<S>& b) {
                        return a.score > b.score || (a.score == b.score && a.column < b.column);
                    }));
            }
        }
    }
    return take_one_by_one(here, group, k, open, mine, highest_key);
}

}  // namespace detail
}  // namespace SWITCHYARD_TARGET
}  // namespace switchyard
