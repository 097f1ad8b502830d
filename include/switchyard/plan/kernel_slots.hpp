// Slots by kernels: the verb of plan/slots.hpp for a policy that runs them (backend/kernel.hpp), with the same
// integers.
//
//   place_choices    3 launches: choices are counted by block of tokens, the counts summed up over the blocks, and each
//                    block hands out the slots of its tokens in order. Where rows come in blocks (plan.row_block), 3
//                    more (5 beyond 4,095 experts) lay the experts' rows out before
//
// A slot is its block's first one of that expert and level, plus the choice's rank among the block's: 32 tokens at a
// time vote who has the same expert, so that no rank depends on which thread came first. O(T k) device memory read and
// written, and k E counters for each block of tokens.
//
// Drop order by gate and no token left behind are the generic device code's (plan/device_slots.hpp).
#pragma once

#include <switchyard/backend/kernel.hpp>
#include <switchyard/backend/lane_group.hpp>
#include <switchyard/core/bits.hpp>
#include <switchyard/core/config.hpp>
#include <switchyard/core/workspace.hpp>
#include <switchyard/plan/detail/kernel_counts.hpp>
#include <switchyard/plan/device_slots.hpp>
#include <switchyard/plan/plan.hpp>
#include <switchyard/plan/slots.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>

namespace switchyard {
inline namespace SWITCHYARD_TARGET {

namespace detail {

/// Experts beyond which a block's counters do not fit shared memory.
inline constexpr index_t most_kernel_experts = 4096;

/// Hands out the slots of a block of tokens: a warp takes a level, its tokens in order.
template <class S, class Space, int Warps>
struct hand_out_kernel {
    static constexpr int threads = Warps * warp_lanes;
    /// Offsets of fewer experts are read once for the block, those of more when a choice needs one.
    static constexpr index_t most_kept_offsets = 1024;
    plan_view<S, Space> plan;
    block_counts counts;
    int levels;  ///< at once

    static int levels_for(index_t experts, index_t choices) {
        constexpr index_t bytes = 46 * 1024;
        const index_t kept = experts <= most_kept_offsets ? experts * 8 : 0;
        return static_cast<int>(std::min({choices, index_t{Warps}, (bytes - kept) / (experts * 4)}));
    }
    static std::size_t room(index_t experts, int levels) {
        return shared_room<std::int64_t>(experts <= most_kept_offsets ? experts : 0) +
               shared_room<std::int32_t>(experts * levels);
    }

    template <kernel_thread Here>
    SWITCHYARD_DEVICE void operator()(Here& here) const {
        const bool keeps = plan.experts <= most_kept_offsets;
        auto* const offsets = here.template shared<std::int64_t>(keeps ? plan.experts : 0);
        auto* const next = here.template shared<std::int32_t>(plan.experts * levels);
        if (keeps) {
            load_ahead<8>(
                here.thread(), plan.experts, threads, [&](index_t expert) { return here.load(plan.offsets + expert); },
                [&](index_t expert, std::int64_t offset) { offsets[expert] = offset; });
        }
        here.sync();
        const int warp = here.thread() / warp_lanes;
        for (index_t c = warp; warp < levels && c < plan.choices; c += levels) {
            place_level(here, c, keeps ? offsets : nullptr, next + warp * plan.experts);
        }
    }

  private:
    template <class Here>
    SWITCHYARD_DEVICE void place_level(Here& here, index_t c, const std::int64_t* offsets, std::int32_t* next) const {
        const int lane = here.thread() % warp_lanes;
        const std::uint32_t lower = (1u << lane) - 1;
        const index_t first = here.block() * counts.block_rows;
        const index_t last = first + counts.block_rows < plan.tokens ? first + counts.block_rows : plan.tokens;
        const auto code_of = [&](index_t token) {
            return token < last ? here.load(plan.expert + token * plan.choices + c) : padding_choice;
        };
        std::int32_t code = code_of(first + lane);  // under way while the counts are read
        here.sync_warp();
        const std::int32_t* const before = counts.count + here.block() * counts.columns + c * plan.experts;
        const std::int32_t* const earlier = counts.earlier != nullptr ? counts.earlier + c * plan.experts : nullptr;
        load_ahead<8>(
            lane, plan.experts, warp_lanes,
            [&](index_t expert) {
                return here.load(before + expert) + (earlier != nullptr ? here.load(earlier + expert) : 0);
            },
            [&](index_t expert, std::int32_t slot) { next[expert] = slot; });
        here.sync_warp();
        for (index_t start = first; start < last; start += warp_lanes) {
            const index_t token = start + lane;
            const std::int32_t next_code = code_of(token + warp_lanes);
            const std::uint32_t same = here.match(code);
            const int rank = count_bits(same & lower);
            const std::int32_t slot = code >= 0 ? next[code] + rank : 0;
            here.sync_warp();
            if (code >= 0 && rank == 0) {
                next[code] = slot + count_bits(same);
            }
            here.sync_warp();
            if (token < last) {
                place(here, token * plan.choices + c, code, slot, offsets);
            }
            code = next_code;
        }
    }

    template <class Here>
    SWITCHYARD_DEVICE void place(Here& here, index_t position, std::int32_t code, std::int32_t slot,
                                 const std::int64_t* offsets) const {
        const bool is_kept = code >= 0 && slot < plan.capacity;
        here.store(plan.slot + position, is_kept ? slot : -1);
        if (is_kept) {
            const std::int64_t start = offsets != nullptr ? offsets[code] : here.load(plan.offsets + code);
            here.store(plan.order + start + slot, position);
            return;
        }
        here.store(plan.gate + position, S(0));
        if (code < padding_choice) {
            here.store(plan.expert + position, decoded_choice(code));
        }
    }
};

template <int Warps, class Policy, class S, class Space>
void launch_hand_out(const Policy& policy, const plan_view<S, Space>& plan, const block_counts& counts) {
    using kernel = hand_out_kernel<S, Space, Warps>;
    const int levels = kernel::levels_for(plan.experts, plan.choices);
    policy.launch(kernel{plan, counts, levels}, counts.blocks, kernel::room(plan.experts, levels));
}

/// Slots of all choices, from summed up counts: 1 launch, and those of `pad_offsets` where rows come in blocks.
template <class Policy, class S, class Space, class Workspace>
void hand_out_slots_by_block(const Policy& policy, const plan_view<S, Space>& plan, const block_counts& counts,
                             Workspace& scratch) {
    if (plan.row_block > 1) {
        pad_offsets(policy, plan, scratch);
    }
    if (plan.choices == 1) {
        launch_hand_out<1>(policy, plan, counts);
    } else if (plan.choices == 2) {
        launch_hand_out<2>(policy, plan, counts);
    } else {
        launch_hand_out<8>(policy, plan, counts);
    }
}

/// Sums up counts and makes totals of them: 1 launch.
template <class Policy, class S, class Space, class Extra>
void finish_counts_by_block(const Policy& policy, const plan_view<S, Space>& plan, const block_counts& counts,
                            balance_count balance, const Extra& extra) {
    using kernel = finish_counts_kernel<S, Space, Extra>;
    policy.launch(kernel{plan, counts, balance, extra}, kernel::blocks_of_counts(counts.columns) + extra.blocks(),
                  kernel::room());
}

/// Whether the kernels place a plan's choices.
template <class S, class Space>
bool kernels_place(const plan_view<S, Space>& plan, const slot_settings& settings) {
    constexpr index_t most_counters = index_t{1} << 20;
    return settings.order == drop_order::position && plan.experts <= most_kernel_experts &&
           plan.choices * plan.experts <= most_counters;
}

}  // namespace detail

/// Gives every choice of the plan its slot.
template <kernel_policy Policy, class S>
void place_choices(const Policy& policy, const plan_view<S, policy_space<Policy>>& plan, const slot_settings& settings,
                   device_workspace<Policy>& scratch) {
    if (!plan.has_rows() || !detail::kernels_place(plan, settings)) {
        place_choices(without_kernels(policy), plan, settings, scratch);
        return;
    }
    const auto scope = scratch.open();
    const index_t rows = detail::kernel_block_rows(plan.tokens, 24 * plan.choices, 20 * plan.choices * plan.experts,
                                                   256, detail::most_block_rows);
    const detail::block_counts counts = detail::take_block_counts(plan, rows, scratch);
    const auto experts = static_cast<int>(plan.experts);
    const auto levels = static_cast<int>(detail::histogram_levels(plan.experts, plan.choices));
    policy.launch(
        detail::count_choices_kernel{plan.expert, plan.tokens, experts, static_cast<int>(plan.choices), levels, counts},
        counts.blocks, detail::count_choices_kernel::room(experts, levels));
    detail::finish_counts_by_block(policy, plan, counts, settings.balance, detail::no_more_totals{});
    detail::hand_out_slots_by_block(policy, plan, counts, scratch);
}

}  // namespace SWITCHYARD_TARGET
}  // namespace switchyard
