// Zeroes the rows of a buffer in expert order that hold no kept choice: the padding of row blocks, and rows beyond the
// last expert's.
//
//   dispatch(policy, plan, x, rows);  zero_rest(policy, plan, rows);      // rows[R, D], R >= what the plan needs
//
// For buffers that are kept from step to step, or sized by row_bound, and read as a whole: products over whole tiles,
// gradients of the experts' weights, frameworks with static shapes. Nothing of an earlier step is seen in them.
// O(R) looks at rows and writes of the rest, on every policy; nothing is allocated, nothing synchronises.
#pragma once

#include <switchyard/backend/policy.hpp>
#include <switchyard/core/config.hpp>
#include <switchyard/core/error.hpp>
#include <switchyard/core/matrix_view.hpp>
#include <switchyard/core/scalar_traits.hpp>
#include <switchyard/plan/plan.hpp>

#include <type_traits>

namespace switchyard {
inline namespace SWITCHYARD_TARGET {

namespace detail {

/// Number i % columns of row i / columns.
template <class S, class Space, class T>
struct zero_number_of_rest {
    plan_view<S, Space> plan;
    matrix_view<T, Space> rows;

    SWITCHYARD_HD void operator()(index_t i) const {
        if (!plan.has_choice(i / rows.columns)) {
            rows(i / rows.columns, i % rows.columns) = store_scalar<T>(compute_t<T>(0));
        }
    }
};

}  // namespace detail

/// rows[r] = 0 wherever no kept choice has row r.
template <class Policy, class Plan, matrix_like Rows>
void zero_rest(const Policy& policy, const Plan& plan, Rows&& rows) {
    const auto& p = view_of_plan(plan);
    const auto out = as_view(rows);
    using view = std::remove_cvref_t<decltype(p)>;
    using number = scalar_of<Rows>;
    require_space<Policy, view, decltype(out)>();
    require_finished(p);
    const detail::zero_number_of_rest<typename view::scalar, typename view::space, number> zero{p, out};
    if constexpr (host_policy<Policy>) {
        // A dense plan's rest is one piece at the end: what has a choice need not be looked at.
        const index_t first = p.row_block == 1 && p.offsets[p.experts] < out.rows ? p.offsets[p.experts]
                              : p.row_block == 1                                  ? out.rows
                                                                                  : 0;
        constexpr index_t grain = 64;
        policy.parallel_for((out.rows - first + grain - 1) / grain, [&](index_t b) {
            const index_t start = first + b * grain;
            for (index_t r = start; r < out.rows && r < start + grain; ++r) {
                if (!p.has_choice(r)) {
                    for (index_t j = 0; j < out.columns; ++j) {
                        out(r, j) = store_scalar<number>(compute_t<number>(0));
                    }
                }
            }
        });
    } else {
        for_each_index(policy, out.rows * out.columns, zero);
    }
}

}  // namespace SWITCHYARD_TARGET
}  // namespace switchyard
