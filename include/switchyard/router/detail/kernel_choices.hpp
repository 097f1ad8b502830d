// What a row chooses, in the registers of a lane group: the selections of router/softmax_pass.hpp.
//
//   pick(here, group, select, token, scores, mine, room, maximum)   takes the choices; `maximum` receives the row's
//   pick_by_keys(.., scores, mine, room, maximum, sum)              the same by keys that are not the scores
//   gate_of(here, group, select, picked, maximum, sum)              the gate of this thread's choice, from its score
//
// The thread of rank c has choice number c; ranks of k and above have nothing of use. Decisions are the CPU's: on raw
// scores, equal ones by the lower expert.
#pragma once

#include <switchyard/backend/lane_group.hpp>
#include <switchyard/core/config.hpp>
#include <switchyard/core/simd.hpp>
#include <switchyard/router/detail/kernel_best.hpp>
#include <switchyard/router/detail/kernel_groups.hpp>
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

template <class Here, class Group, class S, class Storage, int V, int Size>
SWITCHYARD_DEVICE scored_column<S> pick(Here& here, Group& group, const select_best<S>&, index_t, const S (&scores)[V],
                                        const row_pieces<Storage, V, Size>& mine, const best_room<S>&, S& maximum) {
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
                                        const S (&scores)[V], const row_pieces<Storage, V, Size>& mine,
                                        const best_room<S>&, S& maximum) {
    maximum = group.highest(here, highest_of_pieces(scores));
    scored_column<S> best{lowest<S>(), no_column};
    S drawn[V];
    unrolled<V>([&](int j) { drawn[j] = scores[j]; });
    by_fours(drawn, [&](int first, S(&four)[4]) {
        for_held_uniform(for_purpose(select.noise, noise_purpose::sampling), token, mine, first, [&](int m, float u) {
            const S score = select.perturbed(four[m], u);
            if (four[m] > lowest<S>() && (score > best.score || best.column == no_column)) {
                best = {score, mine.column(first + m)};
            }
        });
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

template <class Here, class Group, class S, class Storage, int V, int Size>
SWITCHYARD_DEVICE scored_column<S> pick(Here& here, Group& group, const select_list<S>& select, index_t,
                                        const S (&scores)[V], const row_pieces<Storage, V, Size>& mine,
                                        const best_room<S>& room, S& maximum) {
    S open[V];
    unrolled<V>([&](int j) { open[j] = scores[j]; });
    if (!mine.is_whole()) {
        unrolled<V>([&](int j) { open[j] = mine.holds(j) ? open[j] : taken<S>(); });
    }
    return take_best(here, group, static_cast<int>(select.k), open, mine, room, maximum);
}

/// The choices by keys that are not the scores, from a row that can be routed.
template <class Here, class Group, class S, class Keys, class Storage, int V, int Size>
SWITCHYARD_DEVICE scored_column<S> pick_by_keys(Here& here, Group& group, const select_list<S, Keys>& select,
                                                index_t token, const S (&scores)[V],
                                                const row_pieces<Storage, V, Size>& mine, const best_room<S>& room,
                                                S maximum, S sum) {
    S keys[V];
    unrolled<V>([&](int j) { keys[j] = scores[j]; });
    by_fours(keys, [&](int first, S(&four)[4]) {
        with_constant_settings(select.keys, [&](const auto& its) {
            unrolled<4>([&](int m) {
                const int column = mine.column(first + m);
                const bool is_held = column < mine.columns;
                const pack<S, 1> score{four[m]};
                const auto key = its.template operator()<1>(token, is_held ? column : 0, score, maximum, sum);
                four[m] = is_held ? allowed_key(score, key).v : taken<S>();
            });
        });
    });
    const expert_groups groups = groups_of(select.keys);
    if (groups.choose()) {
        keep_groups(here, group, groups, keys, mine);
    }
    S highest_key = lowest<S>();
    return take_best(here, group, static_cast<int>(select.k), keys, mine, room, highest_key);
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
