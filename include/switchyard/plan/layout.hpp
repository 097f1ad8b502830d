// Changes the rows of a finished plan: each expert's rows begin at a multiple of a block, or, with a block of 1, follow
// each other without padding again; or an expert's rows are sorted by token.
//
//   lay_out(policy, plan, 16, scratch);       // offsets, order, row_bound; experts, slots, gates and loads stay
//   write_block_experts(policy, plan, out);   // out[i] = the expert of rows 16 i .. 16 i + 15, -1 beyond all rows
//   sort_rows_by_token(policy, plan, scratch);   // within each expert by rising token * k + choice
//
// Choices (2, 3, 0, 6, 8) of five experts in blocks of 4 have 24 rows: the experts of the blocks are 0 1 3 3 4 4.
// `basic_plan::set_row_block` before routing gives the same plan, and saves a pass over the choices. Rows of an earlier
// layout are not moved: dispatch follows.
//
// A plan's rows are in the order in which slots were taken, all first choices before any second. Frameworks sort
// flattened ids, which puts a token's second choice before the next token's first. Products do not depend on the order,
// but comparing arrays with those of a framework, or using rows that it moved, does. Kept choices, gates and counts do
// not change.
#pragma once

#include <switchyard/backend/policy.hpp>
#include <switchyard/core/config.hpp>
#include <switchyard/core/error.hpp>
#include <switchyard/core/matrix_view.hpp>
#include <switchyard/plan/counts.hpp>
#include <switchyard/plan/plan.hpp>
#include <switchyard/plan/slots.hpp>

#include <cstdint>
#include <limits>
#include <type_traits>

namespace switchyard {
inline namespace SWITCHYARD_TARGET {

namespace detail {

/// order of a choice's row.
template <class S, class Space>
struct order_choice {
    plan_view<S, Space> plan;

    SWITCHYARD_HD void operator()(index_t position) const {
        if (plan.slot[position] >= 0) {
            plan.order[plan.row_of(position)] = position;
        }
    }
};

template <class S, class Space, class T>
struct write_block_expert {
    plan_view<S, Space> plan;
    number_list<T, Space> out;

    SWITCHYARD_HD void operator()(index_t block) const {
        const index_t row = block * plan.row_block;
        out[block] = static_cast<T>(row < plan.offsets[plan.experts] ? expert_at(plan, row) : -1);
    }
};

/// What place_choices sees of a plan whose kept choices it sorts: each choice a token of its own.
template <class S, class Space>
struct name_kept_choice {
    plan_view<S, Space> plan;
    std::int32_t* code;

    SWITCHYARD_HD void operator()(index_t position) const {
        code[position] = plan.slot[position] < 0 ? padding_choice : plan.expert[position];
    }
};

}  // namespace detail

/// Gives a plan another block, >= 1. Allocates where `order` had not that many rows before; O(T k + E). What throws
/// leaves the plan empty.
template <class Policy, class Plan, class Workspace>
void lay_out(const Policy& policy, Plan& plan, index_t row_block, Workspace& scratch) {
    using view = std::remove_cvref_t<decltype(view_of_plan(plan))>;
    require_space<Policy, view>();
    require_finished(plan.view());
    const plan_origin origin = plan.view().origin;
    plan.set_row_block(row_block);
    const view& made = plan.view();
    const auto scope = scratch.open();
    pad_offsets(policy, made, scratch);
    for_each_index(policy, made.tokens * made.choices,
                   detail::order_choice<typename view::scalar, typename view::space>{made});
    plan.made_by(origin);
}

/// Sorts each expert's rows by rising token * k + choice: slots and order change, and nothing else. As much work as
/// assigning slots, O(T k), with the same scratch and, on Thrust, the same memory of its sorts. T k < 2^31. The rows of
/// a plan in which this throws are undefined.
template <class Policy, class Plan, class Workspace>
void sort_rows_by_token(const Policy& policy, const Plan& plan, Workspace& scratch) {
    const auto& p = view_of_plan(plan);
    using view = std::remove_cvref_t<decltype(p)>;
    require_space<Policy, view>();
    require_finished(p);
    const index_t positions = p.tokens * p.choices;
    require(positions < std::numeric_limits<std::int32_t>::max(), "the plan has ", positions,
            " choices: slots by token are numbered in 32 bits, split the batch");
    const auto scope = scratch.open();
    view each = p;
    each.tokens = positions;
    each.choices = 1;
    each.origin = {};
    each.expert = scratch.template take<std::int32_t>(positions);
    each.gate = scratch.template take<typename view::scalar>(positions);  // choices without rows may keep theirs
    each.load_before = scratch.template take<std::int64_t>(2 * p.experts);
    each.balance_load = each.load_before + p.experts;
    each.totals = scratch.template take<plan_totals>(1);
    for_each_index(policy, positions,
                   detail::name_kept_choice<typename view::scalar, typename view::space>{p, each.expert});
    place_choices(policy, each, slot_settings{}, scratch);
}

/// out[i] = the expert that owns rows i * row_block .. (i + 1) * row_block, and -1 beyond all rows. `out` is a row or a
/// column of int32 or int64 numbers, at least row_bound / row_block of them (on the CPU: as many as there are blocks).
/// O(blocks log E); nothing is allocated.
template <class Policy, class Plan, matrix_like Out>
void write_block_experts(const Policy& policy, const Plan& plan, Out&& out) {
    const auto& p = view_of_plan(plan);
    using view = std::remove_cvref_t<decltype(p)>;
    require_space<Policy, view, view_type<Out>>();
    require_finished(p);
    const auto list = detail::number_list_of("the experts of blocks", as_view(out));
    const index_t rows = detail::rows_to_write<Policy>(p);
    require(list.count * p.row_block >= rows, "the experts of blocks have room for ", list.count, " blocks of ",
            p.row_block, " rows; the plan has ", rows, " rows");
    for_each_index(policy, list.count,
                   detail::write_block_expert<typename view::scalar, typename view::space, scalar_of<Out>>{p, list});
}

}  // namespace SWITCHYARD_TARGET
}  // namespace switchyard
