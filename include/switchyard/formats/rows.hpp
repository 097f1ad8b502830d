// What each row of a plan is: lists by row, for consumers that gather rows themselves or run grouped products on them.
//
//   write_row_experts(policy, plan, out);    // the expert, -1 in padding: DeepGEMM's m_indices, MegaBlocks' bin_ids
//   write_row_choices(policy, plan, out);    // token * k + choice: ScatterMoE's sorted_scattered_idxs, SonicMoE's
//                                            // s_scatter_idx, MegaBlocks' indices
//   write_row_tokens(policy, plan, out);     // the token: SonicMoE's x_gather_idx
//   write_choice_rows(policy, plan, out);    // and back, [T, k]: the row of a choice, SonicMoE's s_reverse_scatter_idx
//
// Rows are those of dispatch: expert by expert in blocks of `row_block` (plan/layout.hpp), within an expert by rising
// slot. Padding rows, and what a list has beyond all rows, are -1; so is the row of a choice that has none, because it
// was dropped or its id was -1. DeepGEMM's contiguous layout is a plan with a row_block of 128, whose padding rows
// `zero_rest` zeroes.
//
// Lists are a row or a column of int32 or int64 numbers: at least row_bound (on the CPU: as many as there are rows).
// O(rows), on every policy; nothing is allocated, nothing synchronises. Outputs must not overlap the plan.
#pragma once

#include <switchyard/backend/policy.hpp>
#include <switchyard/core/config.hpp>
#include <switchyard/core/error.hpp>
#include <switchyard/core/matrix_view.hpp>
#include <switchyard/formats/detail/outputs.hpp>
#include <switchyard/plan/counts.hpp>
#include <switchyard/plan/plan.hpp>

#include <cstdint>

namespace switchyard {
inline namespace SWITCHYARD_TARGET {

namespace detail {

/// The expert of each row of a range, which is found for the first one and then gone on from.
template <class S, class Space, class T>
struct write_row_expert {
    plan_view<S, Space> plan;
    number_list<T, Space> out;

    SWITCHYARD_HD void fill(index_t first, index_t last, T number) const {
        for (index_t row = first; row < last; ++row) {
            out[row] = number;
        }
    }
    SWITCHYARD_HD void operator()(index_t first, index_t last) const {
        index_t expert = expert_at(plan, first);
        index_t row = first;
        for (; row < last && expert < plan.experts; ++expert) {
            const index_t kept_end = plan.offsets[expert] + plan.load_after[expert];
            const index_t end = plan.offsets[expert + 1] < last ? plan.offsets[expert + 1] : last;
            const index_t middle = kept_end < row ? row : kept_end < end ? kept_end : end;
            fill(row, middle, static_cast<T>(expert));
            fill(middle, end, T(-1));
            row = row < end ? end : row;
        }
        fill(row, last, T(-1));
    }
};

/// What stands in `order`, or its token, and a number where there is no choice.
template <class S, class Space, class T, bool AsToken>
struct write_row_choice {
    plan_view<S, Space> plan;
    number_list<T, Space> out;
    T none;
    quotient token;

    SWITCHYARD_HD void operator()(index_t first, index_t last) const {
        const index_t rows = plan.offsets[plan.experts];
        const index_t middle = rows < first ? first : rows < last ? rows : last;
        const std::int64_t* const order = plan.order;
        for (index_t row = first; row < middle; ++row) {
            const std::int64_t position = order[row];
            const index_t number = AsToken ? token.of(static_cast<std::uint64_t>(position)) : position;
            out[row] = position < 0 ? none : static_cast<T>(number);
        }
        for (index_t row = middle; row < last; ++row) {
            out[row] = none;
        }
    }
};

template <class S, class Space, class T>
struct write_choice_row {
    plan_view<S, Space> plan;
    choice_table<T, Space> out;

    SWITCHYARD_HD void operator()(index_t first, index_t last) const {
        for (index_t position = first; position < last; ++position) {
            out[position] = static_cast<T>(row_or_none(plan, position));
        }
    }
};

template <bool AsToken, class Policy, class View, class List>
void write_rows(const Policy& policy, const char* name, const View& p, const List& list,
                std::remove_cvref_t<decltype(list[0])> none) {
    using number = decltype(none);
    const index_t rows = rows_to_write<Policy>(p);
    require(list.count >= rows, name, " has room for ", list.count, " rows; the plan has ", rows);
    require_holds<number>(name, AsToken ? p.tokens : std::max(p.row_bound, p.tokens * p.choices));
    for_each_range(policy, list.count,
                   write_row_choice<typename View::scalar, typename View::space, number, AsToken>{
                       p, list, none, quotient::by(p.choices, p.tokens * p.choices)});
}

}  // namespace detail

/// out[row] = its expert; -1 in padding and beyond all rows.
template <class Policy, class Plan, matrix_like Out>
void write_row_experts(const Policy& policy, const Plan& plan, Out&& out) {
    const auto& p = detail::plan_to_write<Policy, view_type<Out>>(plan);
    using view = detail::plan_view_of<Plan>;
    const auto list = detail::number_list_of("the experts of rows", as_view(out));
    const index_t rows = detail::rows_to_write<Policy>(p);
    require(list.count >= rows, "the experts of rows have room for ", list.count, " rows; the plan has ", rows);
    detail::for_each_range(
        policy, list.count,
        detail::write_row_expert<typename view::scalar, typename view::space, scalar_of<Out>>{p, list});
}

/// out[row] = token * k + choice; -1 in padding and beyond all rows.
template <class Policy, class Plan, matrix_like Out>
void write_row_choices(const Policy& policy, const Plan& plan, Out&& out) {
    const auto& p = detail::plan_to_write<Policy, view_type<Out>>(plan);
    const auto list = detail::number_list_of("the choices of rows", as_view(out));
    detail::write_rows<false>(policy, "the choices of rows", p, list, scalar_of<Out>(-1));
}

/// out[row] = its token; -1 in padding and beyond all rows.
template <class Policy, class Plan, matrix_like Out>
void write_row_tokens(const Policy& policy, const Plan& plan, Out&& out) {
    const auto& p = detail::plan_to_write<Policy, view_type<Out>>(plan);
    const auto list = detail::number_list_of("the tokens of rows", as_view(out));
    detail::write_rows<true>(policy, "the tokens of rows", p, list, scalar_of<Out>(-1));
}

/// out[token, choice] = its row; -1 where it has none. `out` is [T, k].
template <class Policy, class Plan, matrix_like Out>
void write_choice_rows(const Policy& policy, const Plan& plan, Out&& out) {
    const auto& p = detail::plan_to_write<Policy, view_type<Out>>(plan);
    using view = detail::plan_view_of<Plan>;
    using number = scalar_of<Out>;
    detail::require_integers<number>();
    const auto table = detail::choice_table_of("the rows of choices", p, as_view(out));
    detail::require_holds<number>("the rows of choices", p.row_bound);
    detail::for_each_range(policy, p.tokens * p.choices,
                           detail::write_choice_row<typename view::scalar, typename view::space, number>{p, table});
}

}  // namespace SWITCHYARD_TARGET
}  // namespace switchyard
