// Routing's row programs on a device: the verbs of router/softmax_routing.hpp.
//
// One thread per row (or a few consecutive rows), with packs of width 1: the arithmetic is the CPU's, its sums are in
// another order. Choices are taken on raw scores and are the CPU's. Column sums of the probabilities, the z-loss and
// what is wrong with scores are summed in fixed blocks and a fixed order, so they are bitwise identical on every run.
//
// Bad scores are noted in the plan's status, where `check` (plan/device_plan.hpp) finds them; nothing is read on the
// host. Scratch from the workspace: at most two numbers per score, less for many rows.
#pragma once

#include <switchyard/backend/device.hpp>
#include <switchyard/balance/load_balancing_loss.hpp>
#include <switchyard/balance/z_loss.hpp>
#include <switchyard/core/config.hpp>
#include <switchyard/core/workspace.hpp>
#include <switchyard/plan/device_slots.hpp>
#include <switchyard/plan/plan.hpp>
#include <switchyard/router/routing.hpp>
#include <switchyard/router/softmax_pass.hpp>
#include <switchyard/router/softmax_routing.hpp>

#include <cstdint>

namespace switchyard {
inline namespace SWITCHYARD_TARGET {

namespace detail {

/// A row program in the rows of one thread.
template <class Pass, class S>
struct run_softmax_lane {
    Pass pass;
    lanes rows;
    index_t room;
    S* scratch;
    row_events* events;

    SWITCHYARD_HD void operator()(index_t lane) const {
        row_events mine;
        pass.template run<1, 1>(rows.first(lane), rows.last(lane), scratch + lane * room, nullptr, mine);
        events[lane] = mine;
    }
};

template <class Pass, class S>
struct run_plain_lane {
    Pass pass;
    lanes rows;
    index_t room;
    S* scratch;

    SWITCHYARD_HD void operator()(index_t lane) const {
        pass.template run<1>(rows.first(lane), rows.last(lane), scratch + lane * room);
    }
};

/// The first events of two runs of rows, one behind the other.
struct earlier_events {
    SWITCHYARD_HD row_events operator()(const row_events& a, const row_events& b) const { return earlier(a, b); }
};

/// What a CPU policy throws, as a status. `events` is null where there are no rows.
struct note_events {
    plan_totals* totals;
    const row_events* events;
    bool may_drop;

    SWITCHYARD_HD void operator()(index_t) const {
        const row_outcome outcome = events != nullptr ? outcome_of(*events, may_drop) : row_outcome{};
        totals->status = outcome.status;
        totals->status_token = outcome.token;
    }
};

/// Folds the events of all lanes and notes them in the plan.
template <device_policy Policy, class Plan>
void note(const Policy& policy, const Plan& plan, row_events* events, index_t count, bool may_drop,
          device_workspace<Policy>& scratch) {
    const row_events* const first =
        count > 0 ? fold(policy, events, count, index_t{1}, earlier_events{}, scratch) : nullptr;
    for_each_index(policy, 1, note_events{plan.totals, first, may_drop});
}

/// partial[b, e] = sum over the rows of block b of p_te, from what the row program kept of each row.
template <class Source, class S>
struct sum_probabilities {
    Source source;
    const S* row_maximum;
    const S* row_sum;
    double* partial;

    SWITCHYARD_HD void operator()(index_t i) const {
        const index_t experts = source.scores.columns;
        const index_t expert = i % experts;
        const index_t first = i / experts * fold_rows;
        const index_t last = first + fold_rows < source.scores.rows ? first + fold_rows : source.scores.rows;
        double sum = 0;
        for (index_t token = first; token < last; ++token) {
            // Padding and rows that are not used have the sum 0; NaN where it is allowed counts as -infinity.
            if (row_sum[token] > S(0)) {
                sum += static_cast<double>(
                    softmax_value(usable(source.at(token, expert)), row_maximum[token], row_sum[token]));
            }
        }
        partial[i] = sum;
    }
};

template <class T>
struct copy_elements {
    const T* from;
    T* to;

    SWITCHYARD_HD void operator()(index_t i) const { to[i] = from != nullptr ? from[i] : T(0); }
};

/// The row program over all rows, the column sums it leaves, and the plan's status.
template <device_policy Policy, class Pass, class S, class Space>
void run_pass(const Policy& policy, const Pass& pass, const plan_view<S, Space>& plan, bool may_drop,
              double* column_sums, device_workspace<Policy>& scratch) {
    const auto scope = scratch.open();
    const lanes rows = lanes_of<Policy>(plan.tokens);
    const index_t room = pass.template scratch_size<1, 1>();
    row_events* const events = scratch.template take<row_events>(rows.count);
    for_each_index(policy, rows.count,
                   run_softmax_lane<Pass, S>{pass, rows, room, scratch.template take<S>(rows.count * room), events});
    note(policy, plan, events, rows.count, may_drop, scratch);
    if (column_sums == nullptr) {
        return;
    }
    const index_t blocks = folded(plan.tokens);
    double* sums = nullptr;
    if (blocks > 0) {
        sums = scratch.template take<double>(blocks * plan.experts);
        for_each_index(policy, blocks * plan.experts,
                       sum_probabilities<decltype(pass.source), S>{pass.source, pass.row_maximum, pass.row_sum, sums});
        sums = fold(policy, sums, blocks, plan.experts, plus{}, scratch);
    }
    for_each_index(policy, plan.experts, copy_elements<double>{sums, column_sums});
}

}  // namespace detail

/// Row pass and slots.
template <device_policy Policy, class Pass, class S>
void route_rows(const Policy& policy, const Pass& pass, const plan_view<S, policy_space<Policy>>& plan,
                const softmax_settings& settings, double* column_sums, device_workspace<Policy>& scratch) {
    detail::run_pass(policy, pass, plan, settings.may_drop, column_sums, scratch);
    finish_gates(policy, plan, settings.finish);
    detail::place_beside_rowless(policy, plan, settings.rowless, scratch,
                                 [&] { place_choices(policy, plan, settings.slots, scratch); });
}

/// Row pass that lists candidates, and slots in rounds.
template <device_policy Policy, class Pass, class S>
void route_rows_in_rounds(const Policy& policy, const Pass& pass, const plan_view<S, policy_space<Policy>>& plan,
                          const softmax_settings& settings, double* column_sums, device_workspace<Policy>& scratch) {
    detail::run_pass(policy, pass, plan, settings.may_drop, column_sums, scratch);
    place_choices_in_rounds(policy, plan, pass.select.expert, pass.select.gate, settings.rounds, settings.slots,
                            scratch);
}

/// A row program without reductions over all rows.
template <device_policy Policy, class Pass, class S>
void run_rows(const Policy& policy, const Pass& pass, index_t tokens, S*, device_workspace<Policy>& scratch) {
    const auto scope = scratch.open();
    const detail::lanes rows = detail::lanes_of<Policy>(tokens);
    const index_t room = pass.template scratch_size<1>();
    for_each_index(policy, rows.count,
                   detail::run_plain_lane<Pass, S>{pass, rows, room, scratch.template take<S>(rows.count * room)});
}

namespace detail {

/// Squares of logsumexp over fold_rows rows.
template <class S, class Space>
struct sum_squared_logsumexp {
    plan_view<S, Space> plan;
    double* partial;

    SWITCHYARD_HD void operator()(index_t block) const {
        double sum = 0;
        for (index_t t = block * fold_rows; t < (block + 1) * fold_rows && t < plan.tokens; ++t) {
            sum += squared_logsumexp(plan.row_maximum[t], plan.row_sum[t]);
        }
        partial[block] = sum;
    }
};

}  // namespace detail

/// Both losses. The status is the row pass's.
template <device_policy Policy, class S>
void finish_losses(const Policy& policy, const plan_view<S, policy_space<Policy>>& plan,
                   const softmax_settings& settings, const double* column_sums, device_workspace<Policy>& scratch) {
    using space = policy_space<Policy>;
    const auto scope = scratch.open();
    const index_t blocks = detail::folded(plan.tokens);
    double* squares = nullptr;
    if (plan.origin.training && settings.z_weight != 0 && blocks > 0) {
        squares = scratch.template take<double>(blocks);
        for_each_index(policy, blocks, detail::sum_squared_logsumexp<S, space>{plan, squares});
        squares = detail::fold(policy, squares, blocks, index_t{1}, detail::plus{}, scratch);
    }
    for_each_index(policy, 1, detail::write_losses<S, space>{plan, settings, column_sums, squares});
}

}  // namespace SWITCHYARD_TARGET
}  // namespace switchyard
