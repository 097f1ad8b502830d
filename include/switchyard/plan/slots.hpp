// Slots: which row of its expert a choice takes, and which choices find no row.
//
// Choices take slots in order: all first choices before any second (Lepikhin et al. 2020), and within a choice by token
// position, or by falling gate of the token's first choice with the lower token first (batch priority: Riquelme et al.
// 2021, arXiv 2106.05974). Gates below 0, which a scale makes, come after 0 by their values; -0 is 0; NaN, from scores
// that were not checked, counts as -infinity. slot = number of earlier choices of the same expert; kept iff slot <
// capacity. All integer arithmetic: the same on every backend, policy and thread count (by gate order: for equal
// gates).
//
// Input is the plan's `expert` with each choice encoded: e >= 0 asks for a slot; `forbidden_choice(e)` names expert e,
// which the token must not use, and takes none; `absent_choice` is none of a token that may have others, and
// `padding_choice` none of one that does not count, where it is the first. Output: slot, offsets, order,
// loads, kept, counted tokens, gates of dropped choices set to 0, and `expert` decoded.
//
// O(T k + blocks E k) time. Scratch from the workspace only.
#pragma once

#include <switchyard/backend/policy.hpp>
#include <switchyard/core/config.hpp>
#include <switchyard/core/simd.hpp>
#include <switchyard/core/sizes.hpp>
#include <switchyard/core/workspace.hpp>
#include <switchyard/plan/plan.hpp>

#include <algorithm>
#include <cstdint>
#include <limits>

namespace switchyard {

/// Who takes slots first.
enum class drop_order {
    position,  ///< rising token index
    gate,      ///< falling gate of the first choice, then rising token index
};

/// What the load-balancing loss counts.
enum class balance_count {
    first,  ///< first choices (Switch, GShard)
    all,    ///< all k choices, divided by k (Megatron-Core)
};

struct slot_settings {
    drop_order order = drop_order::position;
    balance_count balance = balance_count::first;
};

inline constexpr std::int32_t padding_choice = -1;

/// No choice, of a token that counts all the same.
inline constexpr std::int32_t absent_choice = std::numeric_limits<std::int32_t>::min();

/// Expert e, chosen but not usable: it keeps its place in the list of choices and gets no slot.
SWITCHYARD_HD SWITCHYARD_ALWAYS_INLINE constexpr std::int32_t forbidden_choice(index_t expert) {
    return static_cast<std::int32_t>(-2 - expert);
}
/// The expert of an encoded choice; -1 where it is none.
SWITCHYARD_HD SWITCHYARD_ALWAYS_INLINE constexpr std::int32_t decoded_choice(std::int32_t code) {
    return code >= -1 ? code : code == absent_choice ? -1 : -2 - code;
}

inline namespace SWITCHYARD_TARGET {

namespace detail {

/// A choice without a slot: decoded, and its gate 0 where it has no usable expert.
template <class S, class Space>
struct decode_choice {
    plan_view<S, Space> plan;

    SWITCHYARD_HD void operator()(index_t position) const {
        const std::int32_t code = plan.expert[position];
        if (code < 0) {
            plan.expert[position] = decoded_choice(code);
            plan.gate[position] = S(0);
        }
    }
};

/// Gates of choices that need no slot, which giving out slots takes away. `experts` have rows.
template <class S>
struct give_gate_back {
    const std::int32_t* expert;
    const S* kept;
    index_t experts;
    S* gate;

    SWITCHYARD_HD void operator()(index_t position) const {
        if (expert[position] >= experts) gate[position] = kept[position];
    }
};

/// All choices decoded, on any policy.
template <class Policy, class S, class Space>
void decode_choices(const Policy& policy, const plan_view<S, Space>& plan) {
    for_each_index(policy, plan.tokens * plan.choices, decode_choice<S, Space>{plan});
}

}  // namespace detail

/// Up to this many tokens are placed by plain loops on the calling thread: one block would hold them anyway.
inline constexpr index_t few_tokens = 256;

/// Counts of choices by block of tokens: [blocks, k, E]. Filled by a row pass while its choices are in cache, or by
/// `count_choices`; `place_choices` turns counts into first slots.
struct choice_counts {
    std::int32_t* count = nullptr;
    std::int64_t* tokens = nullptr;  ///< [blocks] tokens that are not padding
    index_t blocks = 0;
    index_t block_rows = 1;
    index_t stride = 0;  ///< k * E
};

/// Blocks of tokens for work that keeps `columns` counters per block: at least 256 rows and columns / 4, so that the
/// counters never outweigh the choices.
constexpr index_t rows_per_block(index_t rows, index_t columns) {
    return std::max(rows_per_block(rows), (columns + 3) / 4);
}

template <class S>
choice_counts take_choice_counts(const plan_view<S>& plan, workspace& scratch) {
    choice_counts counts;
    counts.block_rows = rows_per_block(plan.tokens, plan.experts);
    counts.blocks = std::max<index_t>(1, (plan.tokens + counts.block_rows - 1) / counts.block_rows);
    counts.stride = plan.choices * plan.experts;
    counts.count = scratch.take<std::int32_t>(product_of_sizes("counters", counts.blocks, counts.stride));
    counts.tokens = scratch.take<std::int64_t>(counts.blocks);
    return counts;
}

/// Calls f(position, c) for the choices of one block of tokens: position = token * k + c. `priority` maps place in line
/// to token; null is token order.
template <class S, class F>
void for_each_choice(const plan_view<S>& plan, const choice_counts& counts, index_t block, const std::int32_t* priority,
                     const F& f) {
    const index_t first = block * counts.block_rows;
    const index_t last = std::min(plan.tokens, first + counts.block_rows);
    if (plan.choices == 1 && priority == nullptr) {  // Switch: a plain loop, 7 % of the whole call
        for (index_t token = first; token < last; ++token) {
            f(token, index_t{0});
        }
        return;
    }
    for (index_t place = first; place < last; ++place) {
        const index_t start = (priority != nullptr ? priority[place] : place) * plan.choices;
        for (index_t c = 0; c < plan.choices; ++c) {
            f(start + c, c);
        }
    }
}

/// Counts the choices of one block.
template <class S>
void count_choices(const plan_view<S>& plan, const choice_counts& counts, index_t block, const std::int32_t* priority) {
    std::int32_t* const count = counts.count + block * counts.stride;
    std::fill(count, count + counts.stride, 0);
    index_t tokens = 0;
    for_each_choice(plan, counts, block, priority,
                    [&tokens, count, expert = plan.expert, experts = plan.experts](index_t position, index_t c) {
                        const std::int32_t code = expert[position];
                        tokens += c == 0 && code != padding_choice ? 1 : 0;
                        if (code >= 0) [[likely]] {
                            ++count[c * experts + code];
                        }
                    });
    counts.tokens[block] = tokens;
}

namespace detail {

/// offsets from load_after where rows come in blocks, and order in the padding.
template <class S>
void pad_offsets(const plan_view<S>& plan) {
    std::int64_t start = 0;
    for (index_t e = 0; e < plan.experts; ++e) {
        plan.offsets[e] = start;
        const std::int64_t end = start + plan.rows_for(plan.load_after[e]);
        std::fill(plan.order + start + plan.load_after[e], plan.order + end, -1);
        start = end;
    }
    plan.offsets[plan.experts] = start;
}

/// offsets and kept from load_after.
template <class S>
void scan_offsets(const plan_view<S>& plan) {
    const index_t experts = plan.experts;
    // Four at a time, so that the chain of additions is a quarter as long: it is what a decoding step waits for.
    std::int64_t start = 0;
    index_t e = 0;
    for (; e + 4 <= experts; e += 4) {
        const std::int64_t* const load = plan.load_after + e;
        const std::int64_t two = load[0] + load[1];
        plan.offsets[e] = start;
        plan.offsets[e + 1] = start + load[0];
        plan.offsets[e + 2] = start + two;
        plan.offsets[e + 3] = start + (two + load[2]);
        start += two + (load[2] + load[3]);
    }
    for (; e < experts; ++e) {
        plan.offsets[e] = start;
        start += plan.load_after[e];
    }
    plan.offsets[experts] = start;
    plan.totals->kept = start;
    if (plan.row_block > 1) {
        pad_offsets(plan);
    }
}

/// load_after, offsets and kept from load_before.
template <class S>
void scan_loads(const plan_view<S>& plan) {
    const index_t experts = plan.experts;
    if (plan.capacity == unlimited) {
        std::copy(plan.load_before, plan.load_before + experts, plan.load_after);
    } else {
        for (index_t e = 0; e < experts; ++e) {
            plan.load_after[e] = std::min<std::int64_t>(plan.load_before[e], plan.capacity);
        }
    }
    scan_offsets(plan);
}

/// order from slots and offsets.
template <class S>
void fill_order(const plan_view<S>& plan) {
    for (index_t position = 0; position < plan.tokens * plan.choices; ++position) {
        if (plan.slot[position] >= 0) {
            plan.order[plan.row_of(position)] = position;
        }
    }
}

/// Few tokens (decoding): the loops as one would write them, without counters per block and choice.
template <class S>
void place_few(const plan_view<S>& plan, balance_count balance, const std::int32_t* priority) {
    const index_t k = plan.choices;
    std::fill(plan.load_before, plan.load_before + plan.experts, 0);
    std::int64_t tokens = 0;
    for (index_t c = 0; c < k; ++c) {
        for (index_t place = 0; place < plan.tokens; ++place) {
            const index_t position = (priority != nullptr ? priority[place] : place) * k + c;
            const std::int32_t code = plan.expert[position];
            tokens += c == 0 && code != padding_choice ? 1 : 0;
            const std::int64_t slot = code >= 0 ? plan.load_before[code]++ : plan.capacity;
            plan.slot[position] = slot < plan.capacity ? static_cast<std::int32_t>(slot) : -1;
            if (plan.slot[position] < 0) {
                plan.expert[position] = decoded_choice(code);
                plan.gate[position] = S(0);
            }
        }
        if (plan.origin.training && (c == 0 || (c + 1 == k && balance == balance_count::all))) {
            std::copy(plan.load_before, plan.load_before + plan.experts, plan.balance_load);
        }
    }
    plan.totals->counted_tokens = tokens;
    scan_loads(plan);
    fill_order(plan);
}

/// Loads, offsets and, in place of each count, the first slot of its block and choice.
template <class S>
void scan_counts(const plan_view<S>& plan, const choice_counts& counts, balance_count balance) {
    const index_t experts = plan.experts;
    std::fill(plan.load_before, plan.load_before + experts, 0);
    for (index_t c = 0; c < plan.choices; ++c) {
        for (index_t b = 0; b < counts.blocks; ++b) {
            std::int32_t* const count = counts.count + b * counts.stride + c * experts;
            for (index_t e = 0; e < experts; ++e) {
                const std::int32_t here = count[e];
                count[e] = static_cast<std::int32_t>(plan.load_before[e]);
                plan.load_before[e] += here;
            }
        }
        if (plan.origin.training && (c == 0 || (c + 1 == plan.choices && balance == balance_count::all))) {
            std::copy(plan.load_before, plan.load_before + experts, plan.balance_load);
        }
    }
    scan_loads(plan);
    plan.totals->counted_tokens = 0;
    for (index_t b = 0; b < counts.blocks; ++b) {
        plan.totals->counted_tokens += counts.tokens[b];
    }
}

/// Hands out the slots of one block, whose counts are now first slots.
template <class S>
void place_block(const plan_view<S>& plan, const choice_counts& counts, index_t block, const std::int32_t* priority) {
    std::int32_t* const next = counts.count + block * counts.stride;
    for_each_choice(plan, counts, block, priority, [next, p = plan](index_t position, index_t c) {
        const std::int32_t code = p.expert[position];
        if (code >= 0) [[likely]] {
            const std::int32_t slot = next[c * p.experts + code]++;
            if (slot < p.capacity) [[likely]] {
                std::int64_t* const row = p.order + p.offsets[code] + slot;
                p.slot[position] = slot;
                *row = position;
                call_in_to_write(row + 16);  // k E places grow at once: no hardware foresees that many
                return;
            }
        }
        p.expert[position] = decoded_choice(code);
        p.slot[position] = -1;
        p.gate[position] = S(0);
    });
}

/// Tokens by falling gate of the first choice, lower token first.
template <class S>
const std::int32_t* gate_priority(const plan_view<S>& plan, workspace& scratch) {
    auto* const priority = scratch.take<std::int32_t>(plan.tokens);
    for (index_t t = 0; t < plan.tokens; ++t) {
        priority[t] = static_cast<std::int32_t>(t);
    }
    const S* const gate = plan.gate;
    const index_t k = plan.choices;
    std::sort(priority, priority + plan.tokens, [gate, k](std::int32_t a, std::int32_t b) {
        constexpr S none = -std::numeric_limits<S>::infinity();
        const S x = gate[a * k] >= none ? gate[a * k] : none;
        const S y = gate[b * k] >= none ? gate[b * k] : none;
        return x > y || (x == y && a < b);
    });
    return priority;
}

}  // namespace detail

/// offsets from load_after, and order in the padding, for any row_block.
template <host_policy Policy, class S>
void pad_offsets(const Policy&, const plan_view<S>& plan, workspace&) {
    detail::pad_offsets(plan);
}

/// Gives every choice of the plan its slot; where a plan has no rows, choices are decoded and no more. `counts` are
/// those of the plan's choices in token order, if a row pass made them already.
template <host_policy Policy, class S>
void place_choices(const Policy& policy, const plan_view<S>& plan, const slot_settings& settings, workspace& scratch,
                   const choice_counts* counts = nullptr) {
    if (!plan.has_rows()) {
        detail::decode_choices(policy, plan);
        return;
    }
    const auto scope = scratch.open();
    const std::int32_t* const priority =
        settings.order == drop_order::gate ? detail::gate_priority(plan, scratch) : nullptr;
    if (plan.tokens <= few_tokens) {
        detail::place_few(plan, settings.balance, priority);
        return;
    }
    choice_counts own;
    if (counts == nullptr || priority != nullptr) {
        own = take_choice_counts(plan, scratch);
        policy.parallel_for(own.blocks, [&](index_t b) { count_choices(plan, own, b, priority); });
        counts = &own;
    }
    detail::scan_counts(plan, *counts, settings.balance);
    policy.parallel_for(counts->blocks, [&](index_t b) { detail::place_block(plan, *counts, b, priority); });
}

/// No token left behind (Fedus et al. 2021, appendix B): `candidates` [T, rounds] hold each token's encoded choices,
/// best first, and `candidate_gates` their gates. In round i the tokens still without a row try their i-th choice while
/// that expert has room. The plan has k = 1; a token that finds no room keeps its first choice, dropped. `balance_load`
/// counts first choices and `load_before` too. Sequential in the rounds and over tokens: O(T rounds).
template <host_policy Policy, class S>
void place_choices_in_rounds(const Policy&, const plan_view<S>& plan, const std::int32_t* candidates,
                             const S* candidate_gates, index_t rounds, const slot_settings& settings,
                             workspace& scratch) {
    const auto scope = scratch.open();
    const index_t experts = plan.experts;
    for (index_t t = 0; t < plan.tokens; ++t) {
        plan.gate[t] = candidate_gates[t * rounds];
    }
    const std::int32_t* const priority =
        settings.order == drop_order::gate ? detail::gate_priority(plan, scratch) : nullptr;
    std::fill(plan.load_before, plan.load_before + experts, 0);
    std::fill(plan.load_after, plan.load_after + experts, 0);
    plan.totals->counted_tokens = 0;
    for (index_t t = 0; t < plan.tokens; ++t) {
        const std::int32_t code = candidates[t * rounds];
        plan.totals->counted_tokens += code != padding_choice ? 1 : 0;
        if (code >= 0) {
            ++plan.load_before[code];
        }
        plan.expert[t] = decoded_choice(code);
        plan.slot[t] = -1;
    }
    if (plan.origin.training) {
        std::copy(plan.load_before, plan.load_before + experts, plan.balance_load);
    }
    for (index_t round = 0; round < rounds; ++round) {
        for (index_t place = 0; place < plan.tokens; ++place) {
            const index_t t = priority != nullptr ? priority[place] : place;
            const std::int32_t code = candidates[t * rounds + round];
            if (plan.slot[t] < 0 && code >= 0 && plan.load_after[code] < plan.capacity) {
                plan.expert[t] = code;
                plan.slot[t] = static_cast<std::int32_t>(plan.load_after[code]++);
                plan.gate[t] = candidate_gates[t * rounds + round];
            }
        }
    }
    for (index_t t = 0; t < plan.tokens; ++t) {
        if (plan.slot[t] < 0) {
            plan.gate[t] = S(0);
        }
    }
    detail::scan_offsets(plan);
    detail::fill_order(plan);
}

}  // namespace SWITCHYARD_TARGET
}  // namespace switchyard
