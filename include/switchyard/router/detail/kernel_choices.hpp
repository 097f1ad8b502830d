// What a row chooses, in the registers of a lane group: the selections of router/softmax_pass.hpp.
//
//   pick(here, group, select, token, scores, mine, maximum)   takes the choices; `maximum` receives the row's
//   pick_by_keys(.., scores, mine, maximum, sum)              the same by keys that are not the scores
//   gate_of(here, group, select, picked, maximum, sum)        the gate of this thread's choice, from its score
//
// The thread of rank c has choice number c; ranks of k and above have nothing of use. Decisions are the CPU's: on raw
// scores, equal ones by the lower expert.
#pragma once

#include <switchyard/backend/lane_group.hpp>
#include <switchyard/core/config.hpp>
#include <switchyard/core/simd.hpp>
#include <switchyard/router/detail/kernel_pieces.hpp>
#include <switchyard/router/softmax_pass.hpp>
#include <switchyard/score/gates.hpp>
#include <switchyard/score/noise.hpp>
#include <switchyard/score/softmax.hpp>

#include <cstdint>
#include <limits>

namespace switchyard {
inline namespace SWITCHYARD_TARGET {
namespace detail {

/// One choice in each of the first k threads of a group (score/gates.hpp).
template <class Here, class Group, class S>
struct choices_of_lanes {
    using number = pack<S, 1>;
    static constexpr bool are_values = false;
    Here& here;
    Group& group;
    bool is_choice;  ///< this thread's
    S& score;
    S gradient;

    template <class F>
    SWITCHYARD_DEVICE number map(const F& f) const {
        score = f(number{score}, number{gradient}).v;
        return {own()};
    }
    template <class F>
    SWITCHYARD_DEVICE number sum_of(const F& f) const {
        const S own = f(number{score}, number{gradient}).v;
        return {group.sum(here, is_choice ? own : S(0))};
    }
    SWITCHYARD_DEVICE number sum() const { return {group.sum(here, own())}; }
    SWITCHYARD_DEVICE number largest() const { return {group.highest(here, is_choice ? score : lowest<S>())}; }

  private:
    SWITCHYARD_DEVICE S own() const { return is_choice ? score : S(0); }
};

/// A softmax's choices where their columns lie, as bits; values stay, and what they become takes the gradients' place.
template <class Here, class Group, class S, int V>
struct choices_of_columns {
    using number = pack<S, 1>;
    static constexpr bool are_values = true;
    Here& here;
    Group& group;
    std::uint32_t chosen;
    const S (&value)[V];
    S (&gradient)[V];

    template <class F>
    SWITCHYARD_DEVICE number map(const F& f) const {
        S own = S(0);
        unrolled<V>([&](int j) {
            gradient[j] = (chosen >> j & 1u) != 0 ? f(number{value[j]}, number{gradient[j]}).v : S(0);
            own += gradient[j];
        });
        return {own};
    }
    template <class F>
    SWITCHYARD_DEVICE number sum_of(const F& f) const {
        S own = S(0);
        unrolled<V>([&](int j) { own += (chosen >> j & 1u) != 0 ? f(number{value[j]}, number{gradient[j]}).v : S(0); });
        return {group.sum(here, own)};
    }
};

/// A column of the row where nothing was found: only in rows that nobody checked.
template <class S>
SWITCHYARD_HD scored_column<S> in_range(const scored_column<S>& picked) {
    return {picked.score, picked.column == no_column ? 0 : picked.column};
}

template <class Here, class Group, class S, class Storage, int V, int Size>
SWITCHYARD_DEVICE scored_column<S> pick(Here& here, Group& group, const select_best<S>&, index_t, const S (&scores)[V],
                                        const row_pieces<Storage, V, Size>& mine, S& maximum) {
    const auto best = best_of_row(here, group, scores, mine);
    maximum = best.score;
    return in_range(best);
}
template <class Here, class Group, class S>
SWITCHYARD_DEVICE S gate_of(Here&, Group&, const select_best<S>&, const scored_column<S>&, S, S) {
    return S(0);  // one thread per row does that, when all rows are done
}

template <class Here, class Group, class S, class Storage, int V, int Size>
SWITCHYARD_DEVICE scored_column<S> pick(Here& here, Group& group, const select_sampled<S>& select, index_t token,
                                        const S (&scores)[V], const row_pieces<Storage, V, Size>& mine, S& maximum) {
    maximum = group.highest(here, highest_of_pieces(scores));
    scored_column<S> best{lowest<S>(), no_column};
    for_each_held_uniform(for_purpose(select.noise, noise_purpose::sampling), token, mine, [&](int j, float u) {
        const S score = select.perturbed(scores[j], u);
        if (scores[j] > lowest<S>() && (score > best.score || best.column == no_column)) {
            best = {score, mine.column(j)};
        }
    });
    best = in_range(group.best(here, best));
    // The unperturbed score, from the thread that has it: a sum with zeros is exact.
    const std::uint32_t bit = mine.bit_of(best.column);
    S score = S(0);
    unrolled<V>([&](int j) { score = (bit >> j & 1u) != 0 ? scores[j] : score; });
    return {group.sum(here, score), best.column};
}
template <class Here, class Group, class S>
SWITCHYARD_DEVICE S gate_of(Here&, Group&, const select_sampled<S>&, const scored_column<S>& picked, S maximum, S sum) {
    return softmax_value(picked.score, maximum, sum);
}

/// What is taken, or is none of a row's numbers: neither maximum nor comparison finds it.
template <class S>
SWITCHYARD_HD constexpr S taken() {
    return std::numeric_limits<S>::quiet_NaN();
}

/// The k best of a row's keys, number c to the thread of rank c; `highest_key` receives the first. `open` is used up.
template <class Here, class Group, class S, class Storage, int V, int Size>
SWITCHYARD_DEVICE scored_column<S> take_best(Here& here, Group& group, int k, S (&open)[V],
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

template <class Here, class Group, class S, class Storage, int V, int Size>
SWITCHYARD_DEVICE scored_column<S> pick(Here& here, Group& group, const select_list<S>& select, index_t,
                                        const S (&scores)[V], const row_pieces<Storage, V, Size>& mine, S& maximum) {
    S open[V];
    unrolled<V>([&](int j) { open[j] = scores[j]; });
    if (!mine.is_whole()) {
        unrolled<V>([&](int j) { open[j] = mine.holds(j) ? open[j] : taken<S>(); });
    }
    return take_best(here, group, static_cast<int>(select.k), open, mine, maximum);
}

/// f(j, whether the j-th number's column lies in first .. first + count).
template <class S, int V, int Size, class F>
SWITCHYARD_DEVICE void for_each_within(const row_pieces<S, V, Size>& mine, int first, int count, const F& f) {
    const int from = mine.first_column() - first;
    unrolled<V>([&](int j) { f(j, static_cast<unsigned>(from + mine.distance(j)) < static_cast<unsigned>(count)); });
}

/// The groups that a row keeps, as bits, from its keys (score/groups.hpp).
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

/// The choices by keys that are not the scores, from a row that can be routed.
template <class Here, class Group, class S, class Keys, class Storage, int V, int Size>
SWITCHYARD_DEVICE scored_column<S> pick_by_keys(Here& here, Group& group, const select_list<S, Keys>& select,
                                                index_t token, const S (&scores)[V],
                                                const row_pieces<Storage, V, Size>& mine, S maximum, S sum) {
    const expert_groups groups = groups_of(select.keys);
    S keys[V];
    unrolled<V>([&](int j) {
        keys[j] = taken<S>();
        if (mine.holds(j)) {
            const pack<S, 1> score{scores[j]};
            keys[j] =
                allowed_key(score, select.keys.template operator()<1>(token, mine.column(j), score, maximum, sum)).v;
        }
    });
    if (groups.choose()) {
        const std::uint64_t kept = best_groups(here, group, groups, keys, mine);
        const int size = mine.columns / static_cast<int>(groups.count);
        const S masked = groups.masked == group_mask::zero ? S(0) : taken<S>();
        for (int g = 0; g < groups.count; ++g) {
            const bool is_masked = (kept >> g & 1u) == 0;
            for_each_within(mine, g * size, size, [&](int j, bool is_inside) {
                keys[j] = is_masked && is_inside && keys[j] != lowest<S>() ? masked : keys[j];
            });
        }
    }
    S highest_key = lowest<S>();
    return take_best(here, group, static_cast<int>(select.k), keys, mine, highest_key);
}

template <class Here, class Group, class S, class Keys>
SWITCHYARD_DEVICE S gate_of(Here& here, Group& group, const select_list<S, Keys>& select,
                            const scored_column<S>& picked, S maximum, S sum) {
    S gate = picked.score;
    select.weigh(choices_of_lanes<Here, Group, S>{here, group, group.rank(here) < select.k, gate, S(0)},
                 pack<S, 1>{maximum}, pack<S, 1>{sum});
    return gate;
}

}  // namespace detail
}  // namespace SWITCHYARD_TARGET
}  // namespace switchyard
