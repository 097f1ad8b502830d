// Slots on a device: the verbs of plan/slots.hpp, with the same integers.
//
// Choices are listed in the order in which they take slots (all first choices before any second; tokens by position or
// gate) and sorted by expert, stably. An expert's choices are then adjacent, and a choice's slot is its place among
// them. No atomics, so nothing depends on the order of threads. No token left behind takes one sort per round.
//
// O(T k) work per pass of the sort, O(E log(T k)) for the bounds. Scratch from the workspace; Thrust's sort and its
// scan over E offsets take temporary memory from the execution policy (backend/thrust.hpp). Nothing is read on the
// host.
#pragma once

#include <switchyard/backend/device.hpp>
#include <switchyard/core/config.hpp>
#include <switchyard/core/simd.hpp>
#include <switchyard/core/sizes.hpp>
#include <switchyard/core/workspace.hpp>
#include <switchyard/plan/plan.hpp>
#include <switchyard/plan/slots.hpp>

#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

namespace switchyard {
inline namespace SWITCHYARD_TARGET {

namespace detail {

/// A number that rises as the gate falls: that of both zeros is the same, and that of NaN is -infinity's. Unsigned,
/// since Thrust 3.0's CPU sort puts negative int32 behind positive ones.
template <class S>
struct gate_keys {
    using key = std::make_unsigned_t<typename float_bits<S>::type>;
    const S* gate;
    index_t choices;
    key* keys;
    std::int64_t* priority;

    SWITCHYARD_HD void operator()(index_t token) const {
        constexpr S none = -std::numeric_limits<S>::infinity();
        constexpr key zero = static_cast<key>(~key{0}) >> 1;
        const S x = gate[token * choices] >= none ? gate[token * choices] : none;
        keys[token] = x > S(0) ? zero - bits_of(x) : x < S(0) ? bits_of(x) : zero;
        priority[token] = token;
    }

  private:
    /// Rises with the distance from 0; above those of all positive numbers for negative ones.
    SWITCHYARD_HD static key bits_of(S x) {
        key bits;
        std::memcpy(&bits, &x, sizeof bits);
        return bits;
    }
};

/// The line of requests for slots: the i-th asks for expert[i] (E: for none) on behalf of position[i] of the plan.
struct request_line {
    std::int32_t* expert;
    std::int64_t* position;
    std::int64_t* start;  ///< [E + 1]: where each expert's requests begin, once sorted
    index_t count;
    index_t experts;
};

template <class Memory>
request_line take_line(index_t count, index_t experts, basic_workspace<Memory>& scratch) {
    return {scratch.template take<std::int32_t>(count), scratch.template take<std::int64_t>(count),
            scratch.template take<std::int64_t>(experts + 1), count, experts};
}

/// start[e] = requests for experts below e.
struct find_starts {
    request_line line;

    SWITCHYARD_HD void operator()(index_t expert) const {
        index_t low = 0;
        index_t high = line.count;
        while (low < high) {
            const index_t middle = low + (high - low) / 2;
            if (line.expert[middle] < expert) {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        line.start[expert] = low;
    }
};

template <device_policy Policy>
void sort_line(const Policy& policy, const request_line& line, device_workspace<Policy>& scratch) {
    // As unsigned numbers, so that one instance of the sort serves experts and gates.
    policy.sort_by_key(reinterpret_cast<std::uint32_t*>(line.expert), line.position, line.count, scratch);
    for_each_index(policy, line.experts + 1, find_starts{line});
}

/// Tokens by falling gate of the first choice, lower token first; null for token order.
template <device_policy Policy, class S, class Space>
const std::int64_t* priority_of(const Policy& policy, const plan_view<S, Space>& plan, drop_order order,
                                device_workspace<Policy>& scratch) {
    if (order == drop_order::position || plan.tokens == 0) {
        return nullptr;
    }
    const gate_keys<S> line{plan.gate, plan.choices, scratch.template take<typename gate_keys<S>::key>(plan.tokens),
                            scratch.template take<std::int64_t>(plan.tokens)};
    for_each_index(policy, plan.tokens, line);
    policy.sort_by_key(line.keys, line.priority, plan.tokens, scratch);
    return line.priority;
}

/// Every choice, in the order in which choices take slots.
template <class S, class Space>
struct line_up_choices {
    plan_view<S, Space> plan;
    request_line line;
    const std::int64_t* priority;

    SWITCHYARD_HD void operator()(index_t i) const {
        const index_t place = i % plan.tokens;
        const index_t token = priority != nullptr ? priority[place] : place;
        const index_t position = token * plan.choices + i / plan.tokens;
        const std::int32_t code = plan.expert[position];
        line.expert[i] = code >= 0 ? code : static_cast<std::int32_t>(plan.experts);
        line.position[i] = position;
    }
};

/// Loads of an expert; offsets[e + 1] holds its rows until they are summed up.
template <class S, class Space>
struct count_loads {
    plan_view<S, Space> plan;
    request_line line;
    balance_count balance;

    SWITCHYARD_HD void operator()(index_t expert) const {
        const index_t start = line.start[expert];
        const index_t load = line.start[expert + 1] - start;
        plan.load_before[expert] = load;
        plan.load_after[expert] = load < plan.capacity ? load : plan.capacity;
        plan.offsets[expert + 1] = plan.load_after[expert];
        if (expert == 0) {
            plan.offsets[0] = 0;
        }
        plan.balance_load[expert] = balance == balance_count::all ? load : first_choices(start, load);
    }

  private:
    /// First choices stand before all others.
    SWITCHYARD_HD index_t first_choices(index_t start, index_t load) const {
        index_t low = 0;
        index_t high = load;
        while (low < high) {
            const index_t middle = low + (high - low) / 2;
            if (line.position[start + middle] % plan.choices == 0) {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        return low;
    }
};

/// Slot and row of the i-th request of the sorted line.
template <class S, class Space>
struct hand_out_slots {
    plan_view<S, Space> plan;
    request_line line;

    SWITCHYARD_HD void operator()(index_t i) const {
        const std::int32_t expert = line.expert[i];
        const index_t position = line.position[i];
        if (expert < plan.experts) {
            const index_t slot = i - line.start[expert];
            if (slot < plan.capacity) {
                plan.slot[position] = static_cast<std::int32_t>(slot);
                plan.order[plan.offsets[expert] + slot] = position;
                return;
            }
        }
        plan.expert[position] = decoded_choice(plan.expert[position]);
        plan.slot[position] = -1;
        plan.gate[position] = S(0);
    }
};

/// Tokens that are not padding among fold_rows of them.
struct count_tokens_of_block {
    const std::int32_t* expert;  ///< encoded or decoded
    index_t tokens;
    index_t choices;
    std::int64_t* count;

    SWITCHYARD_HD void operator()(index_t block) const {
        std::int64_t here = 0;
        for (index_t t = block * fold_rows; t < (block + 1) * fold_rows && t < tokens; ++t) {
            here += expert[t * choices] != padding_choice ? 1 : 0;
        }
        count[block] = here;
    }
};

/// What the plan counts in all. `counted` is null where there are no tokens.
template <class S, class Space>
struct total_up {
    plan_view<S, Space> plan;
    const std::int64_t* counted;

    SWITCHYARD_HD void operator()(index_t) const {
        plan.totals->kept = plan.offsets[plan.experts];
        plan.totals->counted_tokens = counted != nullptr ? *counted : 0;
    }
};

/// offsets[e + 1] = rows of expert e, until they are summed up.
template <class S, class Space>
struct count_rows_in_blocks {
    plan_view<S, Space> plan;

    SWITCHYARD_HD void operator()(index_t expert) const {
        plan.offsets[expert + 1] = plan.rows_for(plan.load_after[expert]);
        if (expert == 0) {
            plan.offsets[0] = 0;
        }
    }
};

/// order = -1 in the padding: an expert has less than a block of it.
template <class S, class Space>
struct mark_padding {
    plan_view<S, Space> plan;

    SWITCHYARD_HD void operator()(index_t i) const {
        const index_t expert = i / (plan.row_block - 1);
        const index_t row = plan.offsets[expert] + plan.load_after[expert] + i % (plan.row_block - 1);
        if (row < plan.offsets[expert + 1]) {
            plan.order[row] = -1;
        }
    }
};

}  // namespace detail

/// offsets from load_after, and order in the padding, for any row_block.
template <device_policy Policy, class S>
void pad_offsets(const Policy& policy, const plan_view<S, policy_space<Policy>>& plan,
                 device_workspace<Policy>& scratch) {
    for_each_index(policy, plan.experts, detail::count_rows_in_blocks<S, policy_space<Policy>>{plan});
    policy.inclusive_sum(plan.offsets, plan.experts + 1, scratch);
    for_each_index(policy, product_of_sizes("padding rows", plan.experts, plan.row_block - 1),
                   detail::mark_padding<S, policy_space<Policy>>{plan});
}

namespace detail {

/// Offsets from the rows of each expert, and the totals.
template <device_policy Policy, class S, class Space>
void finish_counts(const Policy& policy, const plan_view<S, Space>& plan, device_workspace<Policy>& scratch) {
    policy.inclusive_sum(plan.offsets, plan.experts + 1, scratch);
    const index_t blocks = folded(plan.tokens);
    std::int64_t* counted = nullptr;
    if (blocks > 0) {
        counted = scratch.template take<std::int64_t>(blocks);
        for_each_index(policy, blocks, count_tokens_of_block{plan.expert, plan.tokens, plan.choices, counted});
        counted = fold(policy, counted, blocks, index_t{1}, plus{}, scratch);
    }
    for_each_index(policy, 1, total_up<S, Space>{plan, counted});
    if (plan.row_block > 1) {
        pad_offsets(policy, plan, scratch);
    }
}

}  // namespace detail

/// Gives every choice of the plan its slot.
template <device_policy Policy, class S>
void place_choices(const Policy& policy, const plan_view<S, policy_space<Policy>>& plan, const slot_settings& settings,
                   device_workspace<Policy>& scratch) {
    using space = policy_space<Policy>;
    if (!plan.has_rows()) {
        detail::decode_choices(policy, plan);
        return;
    }
    const auto scope = scratch.open();
    const index_t positions = plan.tokens * plan.choices;
    const std::int64_t* const priority = detail::priority_of(policy, plan, settings.order, scratch);
    const detail::request_line line = detail::take_line(positions, plan.experts, scratch);
    for_each_index(policy, positions, detail::line_up_choices<S, space>{plan, line, priority});
    detail::sort_line(policy, line, scratch);
    for_each_index(policy, plan.experts, detail::count_loads<S, space>{plan, line, settings.balance});
    detail::finish_counts(policy, plan, scratch);
    for_each_index(policy, positions, detail::hand_out_slots<S, space>{plan, line});
}

namespace detail {

/// Every token without a row, its first choice dropped.
template <class S, class Space>
struct start_rounds {
    plan_view<S, Space> plan;
    const std::int32_t* candidates;
    const S* candidate_gates;
    index_t rounds;

    SWITCHYARD_HD void operator()(index_t token) const {
        plan.expert[token] = decoded_choice(candidates[token * rounds]);
        plan.slot[token] = -1;
        plan.gate[token] = candidate_gates[token * rounds];
    }
};

/// What the tokens still without a row ask for in a round.
template <class S, class Space>
struct line_up_round {
    plan_view<S, Space> plan;
    request_line line;
    const std::int64_t* priority;
    const std::int32_t* candidates;
    index_t rounds;
    index_t round;

    SWITCHYARD_HD void operator()(index_t i) const {
        const index_t token = priority != nullptr ? priority[i] : i;
        const std::int32_t code = candidates[token * rounds + round];
        line.expert[i] = plan.slot[token] < 0 && code >= 0 ? code : static_cast<std::int32_t>(plan.experts);
        line.position[i] = token;
    }
};

/// Rows for the requests of a round, behind those of earlier rounds.
template <class S, class Space>
struct hand_out_round {
    plan_view<S, Space> plan;
    request_line line;
    const S* candidate_gates;
    index_t rounds;
    index_t round;

    SWITCHYARD_HD void operator()(index_t i) const {
        const std::int32_t expert = line.expert[i];
        if (expert < plan.experts) {
            const index_t token = line.position[i];
            const index_t slot = (round > 0 ? plan.load_after[expert] : 0) + (i - line.start[expert]);
            if (slot < plan.capacity) {
                plan.expert[token] = expert;
                plan.slot[token] = static_cast<std::int32_t>(slot);
                plan.gate[token] = candidate_gates[token * rounds + round];
            }
        }
    }
};

/// Loads after a round; the first one's requests are the loads before capacity.
template <class S, class Space>
struct count_round {
    plan_view<S, Space> plan;
    request_line line;
    index_t round;

    SWITCHYARD_HD void operator()(index_t expert) const {
        const index_t asked = line.start[expert + 1] - line.start[expert];
        if (round == 0) {
            plan.load_before[expert] = asked;
            plan.balance_load[expert] = asked;
        }
        const index_t load = (round > 0 ? plan.load_after[expert] : 0) + asked;
        plan.load_after[expert] = load < plan.capacity ? load : plan.capacity;
        plan.offsets[expert + 1] = plan.load_after[expert];
        if (expert == 0) {
            plan.offsets[0] = 0;
        }
    }
};

/// Rows in expert order, and gates of dropped tokens 0.
template <class S, class Space>
struct order_rows {
    plan_view<S, Space> plan;

    SWITCHYARD_HD void operator()(index_t token) const {
        if (plan.slot[token] >= 0) {
            plan.order[plan.offsets[plan.expert[token]] + plan.slot[token]] = token;
        } else {
            plan.gate[token] = S(0);
        }
    }
};

}  // namespace detail

/// No token left behind: see plan/slots.hpp.
template <device_policy Policy, class S>
void place_choices_in_rounds(const Policy& policy, const plan_view<S, policy_space<Policy>>& plan,
                             const std::int32_t* candidates, const S* candidate_gates, index_t rounds,
                             const slot_settings& settings, device_workspace<Policy>& scratch) {
    using space = policy_space<Policy>;
    const auto scope = scratch.open();
    for_each_index(policy, plan.tokens, detail::start_rounds<S, space>{plan, candidates, candidate_gates, rounds});
    const std::int64_t* const priority = detail::priority_of(policy, plan, settings.order, scratch);
    const detail::request_line line = detail::take_line(plan.tokens, plan.experts, scratch);
    for (index_t round = 0; round < rounds; ++round) {
        for_each_index(policy, plan.tokens,
                       detail::line_up_round<S, space>{plan, line, priority, candidates, rounds, round});
        detail::sort_line(policy, line, scratch);
        for_each_index(policy, plan.tokens,
                       detail::hand_out_round<S, space>{plan, line, candidate_gates, rounds, round});
        for_each_index(policy, plan.experts, detail::count_round<S, space>{plan, line, round});
    }
    detail::finish_counts(policy, plan, scratch);
    for_each_index(policy, plan.tokens, detail::order_rows<S, space>{plan});
}

}  // namespace SWITCHYARD_TARGET
}  // namespace switchyard
