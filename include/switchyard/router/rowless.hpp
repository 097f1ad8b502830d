// Routing with experts that take no rows: identity (copy), zero and shared experts, the last Z columns of the scores.
//
//   recipe_router<> router{.k = 12, .scale = 6, .rowless = {.identity = 256}};      // LongCat-Flash: E = 512, Z = 256
//   route_scores(policy, router, scores, mode, plan, scratch);                       // scores[T, E + Z]
//   combine(policy, plan, rows, identity_of{x}, y);                                  // dispatch/combine.hpp
//
// They are scored, biased, chosen and weighed as all others: a softmax, groups, a bias, numbers of experts and gates
// that are divided by their sum see E + Z columns. Only the value of a zero expert is 0: its gate is 0, and it has no
// part in what the others are divided by (MoE++ and AdaMoE divide by the sum over the others; Zaya by nothing). What
// comes after the gates does not: the plan is one of E experts, in which their choices have slot -1, keep their gate
// and are counted nowhere (plan/plan.hpp). So no capacity drops them, and a capacity from a factor is the even share of
// all columns.
//
// The load-balancing loss is E sum_e f_e P_e over the experts with rows, with their loads and their probabilities of
// the softmax over all columns; the z-loss is that of all columns. A selection bias is moved by loads, of experts with
// rows (router/bias_state.hpp).
//
// Shared experts (Inkling) are the last columns, too, and are not chosen: every token has them as its last choices, k +
// S in all, behind the k of its own. They have a part in what gates are divided by, and keep their share; combine adds
// nothing for them, since their output is the caller's, who runs them on every token. Selection bias and groups are of
// the other columns, and so is the even share of a capacity. The choice is a pass of its own; values are no softmax.
//
// Backward gives all scores a gradient: the gate of a choice without a row counts as that of a kept one, unless it is
// 0, as those of forbidden choices are.
//
// How: rows are routed to E + Z experts by what routes them anyway, on every policy; then the last Z lose what they
// were given. That costs a pass over the choices, 32 (E + Z) bytes of scratch, and as many numbers as choices in
// backward; with a capacity or row blocks more, and with a capacity or a balance loss kernels leave forward to the
// generic device code.
#pragma once

#include <switchyard/backend/policy.hpp>
#include <switchyard/core/config.hpp>
#include <switchyard/core/error.hpp>
#include <switchyard/core/sizes.hpp>
#include <switchyard/plan/capacity.hpp>
#include <switchyard/plan/plan.hpp>
#include <switchyard/plan/slots.hpp>

#include <cstdint>

namespace switchyard {
inline namespace SWITCHYARD_TARGET {

/// A router's setting; none for routers without it.
template <class Router>
constexpr rowless_experts rowless_of(const Router& router) {
    if constexpr (requires { router.rowless; }) {
        return router.rowless;
    } else {
        return {};
    }
}

/// At least one expert of `columns` has rows.
inline void require_rowless(const rowless_experts& rowless, index_t columns) {
    require(rowless.identity >= 0, "rowless.identity = ", rowless.identity, " must not be negative");
    require(rowless.zero >= 0, "rowless.zero = ", rowless.zero, " must not be negative");
    require(rowless.shared >= 0, "rowless.shared = ", rowless.shared, " must not be negative");
    require(rowless.shared == 0 || rowless.identity + rowless.zero == 0, "rowless.shared = ", rowless.shared,
            " experts exclude identity and zero experts");
    require(rowless.shared < columns, "rowless.shared = ", rowless.shared, " must lie in 0..E - 1 = ", columns - 1);
    require(rowless.identity < columns && rowless.zero < columns - rowless.identity, "rowless experts are ",
            rowless.identity, " identity and ", rowless.zero, " zero ones of ", columns,
            " columns: at least one expert must have rows");
}

namespace detail {

/// The plan as one of all columns, for passes that know no others: arrays of experts lie in scratch.
template <class S, class Space, class Workspace>
plan_view<S, Space> widened(const plan_view<S, Space>& plan, Workspace& scratch) {
    plan_view<S, Space> wide = plan;
    wide.experts = plan.experts + plan.origin.rowless.count();
    wide.origin.rowless = {};
    if (plan.has_rows()) {
        wide.row_bound = row_bound(plan.tokens, plan.choices, wide.experts, plan.capacity, plan.row_block);
        wide.offsets = scratch.template take<std::int64_t>(4 * wide.experts + 1);
        wide.load_before = wide.offsets + wide.experts + 1;
        wide.load_after = wide.load_before + wide.experts;
        wide.balance_load = wide.load_after + wide.experts;
        if (wide.row_bound > plan.row_bound) {
            wide.order = scratch.template take<std::int64_t>(wide.row_bound);
        }
    }
    return wide;
}

template <class S, class Space>
struct take_slot_away {
    plan_view<S, Space> plan;

    SWITCHYARD_HD void operator()(index_t position) const {
        if (plan.is_rowless(plan.expert[position])) plan.slot[position] = -1;
    }
};

/// Arrays of experts, of which the first are those of a wide plan.
template <class S, class Space>
struct take_first_counts {
    plan_view<S, Space> wide;
    plan_view<S, Space> plan;

    SWITCHYARD_HD void operator()(index_t e) const {
        plan.offsets[e] = wide.offsets[e];
        if (e < plan.experts) {
            plan.load_before[e] = wide.load_before[e];
            plan.load_after[e] = wide.load_after[e];
            if (plan.origin.training) plan.balance_load[e] = wide.balance_load[e];
        } else {
            for (index_t rowless = e; rowless < wide.experts; ++rowless) {
                plan.totals->kept -= wide.load_after[rowless];
            }
        }
    }
};

template <class S, class Space>
struct take_first_rows {
    plan_view<S, Space> wide;
    plan_view<S, Space> plan;

    SWITCHYARD_HD void operator()(index_t row) const {
        if (row < wide.offsets[plan.experts]) plan.order[row] = wide.order[row];
    }
};

/// The plan from the wide one: its experts with rows are the first.
template <class Policy, class S, class Space>
void narrow(const Policy& policy, const plan_view<S, Space>& wide, const plan_view<S, Space>& plan) {
    if (!plan.has_rows()) return;
    for_each_index(policy, plan.tokens * plan.choices, take_slot_away<S, Space>{plan});
    for_each_index(policy, plan.experts + 1, take_first_counts<S, Space>{wide, plan});
    if (wide.order != plan.order) {
        for_each_index(policy, plan.row_bound, take_first_rows<S, Space>{wide, plan});
    }
}

/// Gates of choices that need no slot, and 0 elsewhere. `experts` have rows.
template <class S>
struct keep_gate {
    const std::int32_t* expert;
    const S* gate;
    index_t experts;
    S* kept;

    SWITCHYARD_HD void operator()(index_t position) const {
        kept[position] = expert[position] >= experts ? gate[position] : S(0);
    }
};

/// Calls place(), which zeroes the gates that find no slot; those of the last `rowless` experts of a plan of all
/// columns are as before. Forbidden ones are encoded before it, and not among them.
template <class Policy, class S, class Space, class Workspace, class Place>
void place_beside_rowless(const Policy& policy, const plan_view<S, Space>& plan, index_t rowless, Workspace& scratch,
                          const Place& place) {
    if (rowless == 0 || plan.capacity == unlimited) {
        place();
        return;
    }
    const auto scope = scratch.open();
    const index_t positions = plan.tokens * plan.choices;
    const index_t experts = plan.experts - rowless;
    S* const kept = scratch.template take<S>(positions);
    for_each_index(policy, positions, keep_gate<S>{plan.expert, plan.gate, experts, kept});
    place();
    for_each_index(policy, positions, give_gate_back<S>{plan.expert, kept, experts, plan.gate});
}

/// A slot where backward is to read the gradient of a gate.
template <class S, class Space>
struct give_slot {
    plan_view<S, Space> plan;
    std::int32_t* slot;

    SWITCHYARD_HD void operator()(index_t position) const {
        const bool is_live = plan.is_rowless(plan.expert[position]) && plan.gate[position] != S(0);
        slot[position] = is_live ? 0 : plan.slot[position];
    }
};

template <class S, class Space>
struct widen_balance_load {
    plan_view<S, Space> plan;
    std::int64_t* load;

    SWITCHYARD_HD void operator()(index_t e) const { load[e] = e < plan.experts ? plan.balance_load[e] : 0; }
};

/// The plan as one of all columns, for backward, which reads no offsets, rows and loads but those of the balance loss.
template <class Policy, class S, class Space, class Workspace>
plan_view<S, Space> widened_for_backward(const Policy& policy, const plan_view<S, Space>& plan, bool balances,
                                         Workspace& scratch) {
    plan_view<S, Space> wide = plan;
    if (plan.origin.rowless.count() == 0) return wide;
    const index_t positions = plan.tokens * plan.choices;
    wide.experts = plan.experts + plan.origin.rowless.count();
    wide.origin.rowless = {};
    wide.slot = scratch.template take<std::int32_t>(positions);
    for_each_index(policy, positions, give_slot<S, Space>{plan, wide.slot});
    if (balances) {
        wide.balance_load = scratch.template take<std::int64_t>(wide.experts);
        for_each_index(policy, wide.experts, widen_balance_load<S, Space>{plan, wide.balance_load});
    }
    return wide;
}

}  // namespace detail

}  // namespace SWITCHYARD_TARGET
}  // namespace switchyard
