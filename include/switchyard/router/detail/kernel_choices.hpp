// What a row chooses, in the registers of a lane group: the selections of router/softmax_pass.hpp.
//
//   pick(here, group, select, token, scores, mine, maximum)   takes the choices; `maximum` receives the row's
//   gate_of(here, group, select, picked, maximum, sum)        the gate of this thread's choice
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
    Here& here;
    Group& group;
    bool is_choice;  ///< this thread's
    S& score;
    S gradient;

    template <class F>
    SWITCHYARD_DEVICE void map(const F& f) const {
        score = f(number{score}, number{gradient}).v;
    }
    template <class F>
    SWITCHYARD_DEVICE number sum_of(const F& f) const {
        const S own = f(number{score}, number{gradient}).v;
        return {group.sum(here, is_choice ? own : S(0))};
    }
    SWITCHYARD_DEVICE number sum() const { return {group.sum(here, is_choice ? score : S(0))}; }
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
    return S(0);  // a thread a row does that, when all rows are done
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

template <class Here, class Group, class S, class Storage, int V, int Size>
SWITCHYARD_DEVICE scored_column<S> pick(Here& here, Group& group, const select_list<S>& select, index_t,
                                        const S (&scores)[V], const row_pieces<Storage, V, Size>& mine, S& maximum) {
    // What is taken, or lies beyond the row, is no number, so that neither maximum nor comparison finds it.
    constexpr S taken = std::numeric_limits<S>::quiet_NaN();
    S open[V];
    unrolled<V>([&](int j) { open[j] = scores[j]; });
    if (!mine.is_whole()) {
        unrolled<V>([&](int j) { open[j] = mine.holds(j) ? open[j] : taken; });
    }
    scored_column<S> picked{lowest<S>(), 0};
    const int k = static_cast<int>(select.k);
    for (int c = 0; c < k; ++c) {
        const auto best = in_range(best_of_row(here, group, open, mine));
        maximum = c == 0 ? best.score : maximum;
        picked = c == mine.rank ? best : picked;
        const int distance = best.column - mine.first_column();
        unrolled<V>([&](int j) { open[j] = distance == mine.distance(j) ? taken : open[j]; });
    }
    return picked;
}
template <class Here, class Group, class S>
SWITCHYARD_DEVICE S gate_of(Here& here, Group& group, const select_list<S>& select, const scored_column<S>& picked,
                            S maximum, S sum) {
    S gate = picked.score;
    select.rule.weigh(choices_of_lanes<Here, Group, S>{here, group, group.rank(here) < select.k, gate, S(0)},
                      pack<S, 1>{maximum}, pack<S, 1>{sum});
    return gate;
}

}  // namespace detail
}  // namespace SWITCHYARD_TARGET
}  // namespace switchyard
