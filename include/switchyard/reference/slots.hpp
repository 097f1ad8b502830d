// Slots: which of an expert's rows a choice gets, and which choices are dropped.
//
//   slot(t, c) = how many choices took a place in that expert before; kept while slot < C
//
// Who comes first:
//   by position    tokens in their order                                            (Switch, arXiv 2101.03961)
//   by gate        tokens by falling top gate, equal gates by rising index          (batch priority, arXiv 2106.05974)
// With several choices per token, all first choices take slots before any second (choice-major; GShard, arXiv
// 2006.16668).
//
// No-token-left-behind (Switch, appendix): in round i = 1 .. k_max the tokens that have no place yet try their i-th
// choice, in drop order, while that expert has room. A token gets at most one place.
//
// All of it is integer arithmetic. `wanted` holds experts, and -1 for choices that may take no slot: padding,
// forbidden.
#pragma once

#include <switchyard/reference/plan.hpp>

#include <algorithm>

namespace switchyard::reference::inline SWITCHYARD_TARGET {

enum class drop_order { position, gate };

/// The order in which tokens take slots.
inline list<index_t> token_order(drop_order by, const list<double>& top_gates) {
    auto tokens = filled<index_t>(top_gates.length(), 0);
    for (index_t t = 0; t < tokens.length(); ++t) tokens[t] = t;
    if (by == drop_order::gate) {
        std::stable_sort(tokens.begin(), tokens.end(),
                         [&](index_t a, index_t b) { return top_gates[a] > top_gates[b]; });
    }
    return tokens;
}

/// The slot of every wanted choice, -1 where it has none.
inline integers take_slots(const integers& wanted, index_t experts, index_t capacity, const list<index_t>& tokens) {
    integers slots(wanted.rows, wanted.columns, -1);
    auto taken = filled<index_t>(experts, 0);
    for (index_t c = 0; c < wanted.columns; ++c) {
        for (const index_t t : tokens) {
            const index_t e = wanted(t, c);
            if (e < 0 || taken[e] == capacity) continue;
            slots(t, c) = taken[e];
            taken[e] += 1;
        }
    }
    return slots;
}

/// One place a token: its expert and slot, and which of its choices (0 first) that was. Unplaced: slot and choice -1.
struct placements {
    list<index_t> choice;
    list<index_t> slot;
};

/// No-token-left-behind: the columns of `wanted` are the rounds.
inline placements leave_no_token_behind(const integers& wanted, index_t experts, index_t capacity,
                                        const list<index_t>& tokens) {
    placements placed{filled<index_t>(wanted.rows, -1), filled<index_t>(wanted.rows, -1)};
    auto taken = filled<index_t>(experts, 0);
    for (index_t round = 0; round < wanted.columns; ++round) {
        for (const index_t t : tokens) {
            const index_t e = wanted(t, round);
            if (placed.slot[t] >= 0 || e < 0 || taken[e] == capacity) continue;
            placed.choice[t] = round;
            placed.slot[t] = taken[e];
            taken[e] += 1;
        }
    }
    return placed;
}

/// How many entries name each expert; entries of -1 name none.
inline list<index_t> count_experts(const integers& choices, index_t experts) {
    auto counts = filled<index_t>(experts, 0);
    for (const index_t e : choices.values) {
        if (e >= 0) counts[e] += 1;
    }
    return counts;
}

/// Fills load_after, offsets and order of a plan, and clears the gates of dropped choices.
inline void index_kept_choices(plan& made) {
    made.load_after = filled<index_t>(made.experts_count, 0);
    for (index_t t = 0; t < made.tokens(); ++t) {
        for (index_t c = 0; c < made.choices(); ++c) {
            if (made.keeps(t, c)) {
                made.load_after[made.experts(t, c)] += 1;
            } else {
                made.gates(t, c) = 0;
            }
        }
    }
    made.offsets = filled<index_t>(made.experts_count + 1, 0);
    for (index_t e = 0; e < made.experts_count; ++e) made.offsets[e + 1] = made.offsets[e] + made.load_after[e];
    made.order = filled<index_t>(made.offsets[made.experts_count], -1);
    for (index_t t = 0; t < made.tokens(); ++t) {
        for (index_t c = 0; c < made.choices(); ++c) {
            if (made.keeps(t, c)) made.order[made.row(t, c)] = t * made.choices() + c;
        }
    }
}

}  // namespace switchyard::reference::inline SWITCHYARD_TARGET
