// Routing by kernels: the verbs of router/softmax_routing.hpp for a policy that runs them (backend/kernel.hpp).
//
//   route_softmax            3 launches: rows, totals, slots; 1 for up to 64 tokens of up to 256 experts and 32
//   choices,
//                            without noise, row blocks and gates that need a pass of their own. Reads each score once
//                            and writes the plan once; beside that it reads each choice back once, and moves 32 bytes
//                            per expert (16 more for each further choice) for every block of tokens
//   route_softmax_backward   1 launch: reads scores, statistics, choices and d_gates once, writes d_scores once
//
// Scores in float, half, bfloat16 or double, with any strides: rows of whole, aligned vectors are read 16 bytes at a
// time. Up to 1,024 experts a row lies in the registers of at most a warp, beyond in those of a thread block, up to
// 4,096 experts and 512 choices; with noise or a bias 256 experts are the border, with keys of their own 512. What is
// beyond, drop order by gate, no token left behind and selections of one's own (keys of one's own are not) are the
// generic device code's (router/device_routing.hpp).
//
// Decisions and counts are the CPU backend's. Sums have a fixed order that depends on the shape alone. Scratch from the
// workspace; nothing is read on the host.
#pragma once

#include <switchyard/backend/kernel.hpp>
#include <switchyard/backend/lane_group.hpp>
#include <switchyard/core/config.hpp>
#include <switchyard/core/workspace.hpp>
#include <switchyard/plan/kernel_slots.hpp>
#include <switchyard/plan/plan.hpp>
#include <switchyard/router/detail/kernel_backward.hpp>
#include <switchyard/router/detail/kernel_choices.hpp>
#include <switchyard/router/detail/kernel_forward.hpp>
#include <switchyard/router/device_routing.hpp>
#include <switchyard/router/routing.hpp>
#include <switchyard/router/softmax_pass.hpp>
#include <switchyard/router/softmax_routing.hpp>

#include <algorithm>
#include <cstdint>
#include <type_traits>

namespace switchyard {
inline namespace SWITCHYARD_TARGET {

namespace detail {

/// Sources and selections that the kernels know.
template <class Source>
inline constexpr bool is_score_rows = false;
template <class Storage, class Space>
inline constexpr bool is_score_rows<score_rows<Storage, Space>> = true;

template <class Select>
inline constexpr bool is_kernel_selection = false;
template <class S>
inline constexpr bool is_kernel_selection<select_best<S>> = true;
template <class S>
inline constexpr bool is_kernel_selection<select_sampled<S>> = true;
template <class S, class Keys>
inline constexpr bool is_kernel_selection<select_list<S, Keys>> = true;

inline constexpr index_t most_group_experts = 1024;
inline constexpr index_t most_group_choices = 32;
inline constexpr index_t most_kernel_choices = 512;
/// What every device gives a block without being asked.
inline constexpr std::size_t shared_memory_of_block = 48 * 1024;

template <class S, class Space>
bool kernels_route(const plan_view<S, Space>& plan) {
    return kernels_place(plan, slot_settings{}) && plan.choices <= most_kernel_choices;
}

/// Experts without rows are counted by the kernels as all others: not where gates of dropped ones would be lost, nor
/// where the balance loss would count them.
template <class S, class Space>
bool kernels_count(const plan_view<S, Space>& plan, const softmax_settings& settings) {
    const bool balances = plan.origin.training && settings.balance_weight != 0;
    return settings.rowless == 0 || (plan.capacity == unlimited && !balances);
}

/// Calls f(group, V, is_noisy): who shares a row, how many of its numbers each thread holds, and whether there is noise
/// to draw. A thread of the group has a choice, so there are at least k. Fewer threads with more numbers each need
/// fewer steps from thread to thread; each is a kernel of its own. Noise is what costs where there is any, and fewer
/// kernels do.
template <class S, class F>
void with_row_group(index_t experts, index_t choices, bool is_noisy, const F& f) {
    const auto lanes = [&]<int Lanes, int V>(std::integral_constant<int, Lanes>, std::integral_constant<int, V> numbers,
                                             auto noisy) { f(lane_group<Lanes>{}, numbers, noisy); };
    constexpr std::true_type noisy;
    constexpr std::false_type quiet;
    constexpr std::integral_constant<int, 2> two;
    constexpr std::integral_constant<int, 4> four;
    constexpr std::integral_constant<int, 8> eight;
    constexpr std::integral_constant<int, 16> sixteen;
    constexpr std::integral_constant<int, 32> warp;
    if (is_noisy) {
        if (experts <= 64 && choices <= 8) {
            lanes(eight, eight, noisy);
        } else if (experts <= 256 && choices <= most_group_choices) {
            lanes(warp, eight, noisy);
        } else {
            f(block_group<S>{}, eight, noisy);
        }
        return;
    }
    if (experts <= 8 && choices <= 2) {
        lanes(two, four, quiet);
    } else if (experts <= 64 && choices <= 4) {
        lanes(four, sixteen, quiet);
    } else if (experts <= 64 && choices <= 8) {
        lanes(eight, eight, quiet);
    } else if (experts > most_group_experts || choices > most_group_choices) {
        f(block_group<S>{}, eight, quiet);
    } else if (experts <= 128 && choices <= 8) {
        lanes(eight, sixteen, quiet);
    } else if (experts <= 256 && choices <= 16) {
        lanes(sixteen, sixteen, quiet);
    } else if (experts <= 512) {
        lanes(warp, sixteen, quiet);
    } else {
        lanes(warp, warp, quiet);
    }
}

/// The same for keys that are not the scores: their kernels may draw noise, too, and have threads enough for most rows'
/// candidates (kernel_best.hpp).
template <class S, class F>
void with_key_group(index_t experts, index_t choices, const F& f) {
    constexpr std::true_type noisy;
    constexpr std::integral_constant<int, 8> eight;
    constexpr std::integral_constant<int, 16> sixteen;
    if (experts <= 64 && choices <= 8) {
        f(lane_group<8>{}, eight, noisy);
    } else if (experts <= 256 && choices <= 16) {
        f(lane_group<16>{}, sixteen, noisy);
    } else if (experts <= 512 && choices <= most_group_choices) {
        f(lane_group<warp_lanes>{}, sixteen, noisy);
    } else {
        f(block_group<S>{}, eight, noisy);
    }
}

/// Tokens of a block of the forward kernel: see kernel_block_rows. Bytes per row: its scores, and the plan's share.
template <class Kernel, class Group>
index_t forward_block_rows(const Group& group, index_t tokens, index_t experts, index_t choices, index_t score_bytes,
                           index_t levels) {
    index_t most = most_block_rows;
    while (Kernel::room(experts, levels, most) > shared_memory_of_block) {
        most /= 2;
    }
    const index_t row_bytes = experts * score_bytes + 20 * choices + 8;
    const index_t counter_bytes = experts * (16 * choices + (choices > 1 ? 4 * choices : 0) + 16);
    return kernel_block_rows(tokens, row_bytes, counter_bytes, std::min<index_t>(most, group.count(Kernel::threads)),
                             most);
}

/// Routing of a few tokens by one block: what the three kernels do, one after the other.
template <class Forward, class Finish, class HandOut>
struct few_tokens_kernel {
    static constexpr int threads = Forward::threads;
    static_assert(Finish::threads == threads && HandOut::threads == threads);
    Forward forward;
    Finish finish;
    HandOut hand_out;

    template <kernel_thread Here>
    SWITCHYARD_DEVICE void operator()(Here& here) const {
        forward(here);
        here.sync();
        finish.run_alone(here);
        here.sync();
        hand_out(here);
    }
};

/// What any device gives a block that asks for it: Turing's.
inline constexpr std::size_t most_shared_memory = 64 * 1024;

/// Tokens that one block routes in less time than three launches take.
inline constexpr index_t most_few_tokens = 64;
inline constexpr index_t most_few_experts = 256;

/// Rows, totals, slots.
template <class Policy, class Storage, class Space, class S, class Workspace, class Select, class Group, int V,
          bool IsNoisy>
void launch_forward(const Policy& policy, const score_rows<Storage, Space>& source, const run_mode& mode,
                    const plan_view<S, Space>& made, const softmax_settings& settings, Workspace& scratch,
                    const Select& select, const Group& group, std::integral_constant<int, V>,
                    std::bool_constant<IsNoisy>) {
    using kernel = forward_kernel<Storage, Space, Select, V, Group, IsNoisy>;
    constexpr int few_warps = finish_threads / warp_lanes;
    using few_kernel = forward_kernel<Storage, Space, Select, 8, lane_group<warp_lanes>, false, finish_threads>;
    using hand_out = hand_out_kernel<S, Space, few_warps>;
    using finish = finish_counts_kernel<S, Space, softmax_totals<S>>;
    const auto scope = scratch.open();
    plan_view<S, Space> plan = made;
    if (!made.has_rows()) {  // what the second kernel counts all the same
        plan.offsets = scratch.template take<std::int64_t>(plan.experts + 1);
        plan.load_before = scratch.template take<std::int64_t>(plan.experts);
        plan.load_after = scratch.template take<std::int64_t>(plan.experts);
    }
    constexpr bool may_be_few = !IsNoisy || selects_by_keys<Select>;
    const index_t levels = histogram_levels(plan.experts, plan.choices);
    const int few_levels = hand_out::levels_for(plan.experts, plan.choices);
    const std::size_t few_room = few_kernel::room(plan.experts, levels, most_few_tokens) + finish::room() +
                                 hand_out::room(plan.experts, few_levels);
    const bool is_few = may_be_few && !source.changes_scores() && made.has_rows() && plan.row_block == 1 &&
                        plan.tokens <= most_few_tokens && plan.experts <= most_few_experts &&
                        plan.choices <= most_group_choices && !settings.finish.is_needed() &&
                        few_room <= most_shared_memory;
    const index_t rows = is_few ? most_few_tokens
                                : forward_block_rows<kernel>(group, plan.tokens, plan.experts, plan.choices,
                                                             static_cast<index_t>(sizeof(Storage)), levels);
    const block_counts counts = take_block_counts(plan, rows, scratch);
    const bool balances = mode.is_training && settings.balance_weight != 0;
    const bool squares = mode.is_training && settings.z_weight != 0;
    const block_facts<S> facts{
        .bad = scratch.template take<std::int32_t>(counts.blocks),
        .unroutable = scratch.template take<std::int32_t>(counts.blocks),
        .squares = squares ? scratch.template take<double>(counts.blocks) : nullptr,
        .probabilities = balances ? scratch.template take<S>(counts.blocks * plan.experts) : nullptr};
    const softmax_totals<S> totals{.facts = facts,
                                   .row_blocks = counts.blocks,
                                   .experts = plan.experts,
                                   .column_sums = scratch.template take<double>(plan.experts),
                                   .totals = plan.totals,
                                   .balance_weight = settings.balance_weight,
                                   .counted_choices = balance_of(plan, settings).counted_choices,
                                   .z_weight = settings.z_weight,
                                   .may_drop = settings.may_drop};
    const auto rows_by = [&]<class Kernel>(std::type_identity<Kernel>, const auto& its_group) {
        return Kernel{source,
                      mode.mask,
                      settings.bad,
                      select,
                      plan,
                      counts,
                      facts,
                      static_cast<int>(levels),
                      has_vectors<Kernel::pieces::vector>(source.scores),
                      its_group};
    };
    if constexpr (may_be_few) {
        if (is_few) {
            policy.launch(
                few_tokens_kernel<few_kernel, finish, hand_out>{
                    rows_by(std::type_identity<few_kernel>{}, lane_group<warp_lanes>{}),
                    finish{plan, counts, settings.slots.balance, totals}, hand_out{plan, counts, few_levels}},
                1, few_room);
            return;
        }
    }
    policy.launch(rows_by(std::type_identity<kernel>{}, group), counts.blocks,
                  kernel::room(plan.experts, levels, rows));
    finish_gates(policy, plan, settings.finish);  // before those of dropped choices are 0
    finish_counts_by_block(policy, plan, counts, settings.slots.balance, totals);
    if (made.has_rows()) {
        hand_out_slots_by_block(policy, plan, counts, scratch);
    } else {
        decode_choices(policy, made);
    }
}

/// The gradient of every score.
template <class Policy, class Storage, class Space, class S, class GateStorage, class Out, class Group, int V,
          bool IsNoisy>
void launch_backward(const Policy& policy, const score_rows<Storage, Space>& source, const plan_view<S, Space>& plan,
                     const matrix_view<const GateStorage, Space>& d_gates, const matrix_view<Out, Space>& d_scores,
                     const softmax_settings& settings, const backward_settings& backward, const Group& group,
                     std::integral_constant<int, V>, std::bool_constant<IsNoisy>) {
    using kernel = backward_kernel<Storage, Space, GateStorage, Out, V, Group, IsNoisy>;
    // About as many blocks as run at the same time, each with several rounds of rows: loads of the next are under way.
    constexpr index_t usual_blocks = 256;
    const index_t round = group.count(kernel::threads);
    const index_t share = std::max<index_t>(64, (plan.tokens + usual_blocks - 1) / usual_blocks);
    const index_t rows = std::min<index_t>((share + round - 1) / round * round, 512);
    // The kernel multiplies by all columns, and the loss has a factor of the experts with rows.
    const double balance_weight = settings.rowless == 0 ? settings.balance_weight
                                                        : settings.balance_weight / static_cast<double>(plan.experts) *
                                                              static_cast<double>(plan.experts - settings.rowless);
    policy.launch(kernel{.source = source,
                         .plan = plan,
                         .d_gates = d_gates,
                         .d_scores = d_scores,
                         .rule = {settings.gates},
                         .needs_probabilities = settings.needs_probabilities(),
                         .balance_weight = balance_weight,
                         .counted_choices = balance_of(plan, settings).counted_choices,
                         .loss_scale = backward.loss_scale,
                         .z_weight = settings.z_weight * backward.loss_scale,
                         .block_rows = rows,
                         .in_vectors = has_vectors<kernel::pieces::vector>(source.scores),
                         .out_vectors = has_vectors<out_vector<Out, typename kernel::pieces>>(d_scores),
                         .group = group},
                  (plan.tokens + rows - 1) / rows, kernel::room(plan.experts, plan.choices, rows));
}

}  // namespace detail

/// Forward: see router/softmax_routing.hpp.
template <kernel_policy Policy, class Source, class S, class Space, class Workspace, class Select>
void route_softmax(const Policy& policy, const Source& source, const run_mode& mode, const plan_view<S, Space>& plan,
                   const softmax_settings& settings, Workspace& scratch, const Select& select) {
    if constexpr (detail::is_score_rows<Source> && detail::is_kernel_selection<Select>) {
        if (detail::kernels_route(plan) && detail::kernels_count(plan, settings) &&
            settings.slots.order == drop_order::position) {
            constexpr bool is_sampled = std::is_same_v<Select, select_sampled<S>>;
            const auto launch = [&]<class Noisy>(const auto& group, auto numbers, Noisy noisy) {
                if constexpr (Noisy::value || !is_sampled) {
                    detail::launch_forward(policy, source, mode, plan, settings, scratch, select, group, numbers,
                                           noisy);
                }
            };
            if constexpr (selects_by_keys<Select>) {
                detail::with_key_group<S>(plan.experts, plan.choices, launch);
            } else {
                detail::with_row_group<S>(plan.experts, plan.choices, is_sampled || source.changes_scores(), launch);
            }
            return;
        }
    }
    route_softmax(without_kernels(policy), source, mode, plan, settings, scratch, select);
}

/// Backward: see router/softmax_routing.hpp.
template <kernel_policy Policy, class Source, class S, class Space, class Gates, class Scores, class Workspace>
void route_softmax_backward(const Policy& policy, const Source& source, const plan_view<S, Space>& plan,
                            const Gates& d_gates, const Scores& d_scores, const softmax_settings& settings,
                            const backward_settings& backward, Workspace& scratch) {
    if constexpr (detail::is_score_rows<Source>) {
        // A softmax's choices are told apart by their columns.
        const bool may_be_one = settings.may_repeat && settings.gates.is_softmax();
        if (detail::kernels_route(plan) && !may_be_one) {
            const auto launch = [&](const auto& group, auto numbers, auto noisy) {
                detail::launch_backward(policy, source, plan, d_gates, d_scores, settings, backward, group, numbers,
                                        noisy);
            };
            detail::with_row_group<S>(plan.experts, plan.choices, source.changes_scores(), launch);
            return;
        }
    }
    route_softmax_backward(without_kernels(policy), source, plan, d_gates, d_scores, settings, backward, scratch);
}

}  // namespace SWITCHYARD_TARGET
}  // namespace switchyard
