// The groups of experts that a row keeps (score/groups.hpp), for a row that lies in the registers of a lane group.
//
// Where a group is a power of two of the pieces that threads hold, and at most two of its keys are summed, neighbours
// combine their best two in pairs, and each thread counts how many groups come before those of its own pieces. Other
// groups are scored one after the other by the whole row.
#pragma once

#include <switchyard/backend/kernel.hpp>
#include <switchyard/backend/lane_group.hpp>
#include <switchyard/core/config.hpp>
#include <switchyard/core/simd.hpp>
#include <switchyard/router/detail/kernel_best.hpp>
#include <switchyard/router/detail/kernel_pieces.hpp>
#include <switchyard/score/groups.hpp>

#include <cstdint>

namespace switchyard {
inline namespace SWITCHYARD_TARGET {
namespace detail {

/// f(j, whether the j-th number's column lies in first .. first + count).
template <class S, int V, int Size, class F>
SWITCHYARD_DEVICE void for_each_within(const row_pieces<S, V, Size>& mine, int first, int count, const F& f) {
    const int from = mine.first_column() - first;
    unrolled<V>([&](int j) { f(j, static_cast<unsigned>(from + mine.distance(j)) < static_cast<unsigned>(count)); });
}

/// The groups that a row keeps, as bits, from its keys.
template <class Here, class Group, class S, class Storage, int V, int Size>
SWITCHYARD_DEVICE std::uint64_t best_groups(Here& here, Group& group, const expert_groups& groups, const S (&keys)[V],
                                            const row_pieces<Storage, V, Size>& mine) {
    // A thread has the scores of the groups rank, rank + Size, ...
    constexpr int each = Size < expert_groups::most ? expert_groups::most / Size : 1;
    const int size = mine.columns / static_cast<int>(groups.count);
    S scores[each];
    unrolled<each>([&](int i) { scores[i] = taken<S>(); });
    for (int g = 0; g < groups.count; ++g) {
        S open[V];
        for_each_within(mine, g * size, size,
                        [&](int j, bool is_inside) { open[j] = is_inside ? keys[j] : taken<S>(); });
        S sum = lowest<S>();
        for (int i = 0; i < groups.summed && i < size; ++i) {
            const auto best = best_of_row(here, group, open, mine);
            const bool is_counted = best.score > lowest<S>();
            sum = !is_counted ? sum : i == 0 ? best.score : sum + best.score;
            const int distance = best.column - mine.first_column();
            unrolled<V>([&](int j) { open[j] = distance == mine.distance(j) ? taken<S>() : open[j]; });
        }
        unrolled<each>([&](int i) { scores[i] = g == mine.rank + i * Size ? sum : scores[i]; });
    }
    std::uint64_t kept = 0;
    for (int i = 0; i < groups.kept; ++i) {
        scored_column<S> best{taken<S>(), no_column};
        unrolled<each>([&](int m) {
            const int g = mine.rank + m * Size;
            const bool is_open = g < groups.count && (kept >> g & 1u) == 0;
            const bool is_first = best.column == no_column;
            best = is_open && (is_first || scores[m] > best.score) ? scored_column<S>{scores[m], g} : best;
        });
        // Groups without an allowed expert are open, too: a thread without a group is behind them.
        const S own = best.column == no_column ? lowest<S>() : best.score;
        best = group.best(here, scored_column<S>{own, best.column});
        kept |= std::uint64_t{1} << best.column;
    }
    return kept;
}

/// The pieces of a row's groups: `lanes` neighbours hold a group, `deep` pieces each.
struct group_shape {
    int lanes;
    int deep;
    int beside;  ///< groups whose pieces lie side by side

    SWITCHYARD_DEVICE int group_of(int piece, int rank) const { return piece / deep * beside + rank / lanes; }
};

/// Scores of the groups that this thread's pieces belong to.
template <class Here, class S, class Storage, int V, int Size, int Pieces = V / row_pieces<Storage, V, Size>::piece>
SWITCHYARD_DEVICE void score_own_groups(Here& here, const group_shape& shape, index_t summed, const S (&keys)[V],
                                        const row_pieces<Storage, V, Size>&, S (&scores)[Pieces]) {
    using number = pack<S, 1>;
    using best = best_keys<number, 2>;
    constexpr int piece = row_pieces<Storage, V, Size>::piece;
    best of[Pieces];
    unrolled<Pieces>([&](int i) {
        of[i] = best::none();
        unrolled<piece>([&](int m) { of[i].insert(number{keys[i * piece + m]}); });
    });
    for (int distance = 1; distance < shape.lanes; distance *= 2) {
        unrolled<Pieces>([&](int i) {
            const best other{
                {{here.shuffle_xor(of[i].key[0].v, distance)}, {here.shuffle_xor(of[i].key[1].v, distance)}}};
            of[i] = both(of[i], other);
        });
    }
    for_each_power<Pieces>([&](auto step) {
        if (step < shape.deep) {
            best before[Pieces];
            unrolled<Pieces>([&](int i) { before[i] = of[i]; });
            unrolled<Pieces>([&](int i) { of[i] = both(before[i], before[(i ^ step) % Pieces]); });
        }
    });
    unrolled<Pieces>([&](int i) { scores[i] = of[i].sum(summed).v; });
}

/// Keys outside the kept groups become what the groups' mask says, where the groups have a shape.
template <class Here, class S, class Storage, int V, int Size>
SWITCHYARD_DEVICE void keep_shaped_groups(Here& here, const expert_groups& groups, const group_shape& shape, S masked,
                                          S (&keys)[V], const row_pieces<Storage, V, Size>& mine) {
    constexpr int piece = row_pieces<Storage, V, Size>::piece;
    constexpr int pieces = V / piece;
    S scores[pieces];
    score_own_groups(here, shape, groups.summed, keys, mine, scores);
    const int first_lane = here.thread() % warp_lanes - mine.rank;
    int before[pieces];  // groups that come before this thread's
    unrolled<pieces>([&](int i) { before[i] = 0; });
    unrolled<pieces>([&](int i) {
        for (int at = 0; at < shape.beside && i % shape.deep == 0; ++at) {
            const int other = shape.group_of(i, at * shape.lanes);
            const S score = here.shuffle(scores[i], first_lane + at * shape.lanes);
            unrolled<pieces>([&](int m) {
                const bool is_before =
                    score > scores[m] || (score == scores[m] && other < shape.group_of(m, mine.rank));
                before[m] += is_before && other < groups.count ? 1 : 0;
            });
        }
    });
    unrolled<V>([&](int j) { keys[j] = before[j / piece] >= groups.kept && keys[j] > lowest<S>() ? masked : keys[j]; });
}

/// Keys outside a row's kept groups become what the groups' mask says: 0, or what nothing finds.
template <class Here, class Group, class S, class Storage, int V, int Size>
SWITCHYARD_DEVICE void keep_groups(Here& here, Group& group, const expert_groups& groups, S (&keys)[V],
                                   const row_pieces<Storage, V, Size>& mine) {
    constexpr int piece = row_pieces<Storage, V, Size>::piece;
    const int size = mine.columns / static_cast<int>(groups.count);
    const S masked = groups.masked == group_mask::zero ? S(0) : taken<S>();
    if constexpr (!Group::is_block) {
        const int each = size / piece;  // pieces of a group
        if (size % piece == 0 && (each & (each - 1)) == 0 && groups.summed <= 2) {
            const int lanes = each < Size ? each : Size;
            keep_shaped_groups(here, groups, {lanes, each / lanes, Size / lanes}, masked, keys, mine);
            return;
        }
    }
    const std::uint64_t kept = best_groups(here, group, groups, keys, mine);
    for (int g = 0; g < groups.count; ++g) {
        const bool is_masked = (kept >> g & 1u) == 0;
        for_each_within(mine, g * size, size, [&](int j, bool is_inside) {
            keys[j] = is_masked && is_inside && keys[j] != lowest<S>() ? masked : keys[j];
        });
    }
}

}  // namespace detail
}  // namespace SWITCHYARD_TARGET
}  // namespace switchyard
