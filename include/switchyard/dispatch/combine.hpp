// Combine: y[t] = sum_c gate[t, c] * rows[row of (t, c)], choices in order; a token none of whose choices was kept gets
// zeros.
//
// rows[R, D] (expert outputs in expert order, R >= offsets[E]) -> y[T, D]. Rows without a kept choice are not read.
// `accumulate` adds onto y instead; `apply_gates = false` sums unweighted, for plans whose gates were applied to the
// experts' input.
//
// Backward: d_rows[r] = gate * d_y[token of r], d_gates[t, c] = rows[row of (t, c)] . d_y[t], 0 for dropped choices.
// O(kept D). Nothing is allocated by the forms that write into given views; nothing synchronises.
//
// d_rows may be rows, the same view of the same numbers: the expert output's gradient then replaces it. Otherwise
// outputs lie apart from inputs, from each other and from the plan's arrays: an output that shares memory with another
// matrix of the call is an error, on every policy.
#pragma once

#include <switchyard/core/config.hpp>
#include <switchyard/core/matrix_view.hpp>
#include <switchyard/core/memory.hpp>
#include <switchyard/core/overlap.hpp>
#include <switchyard/dispatch/dispatch.hpp>
#include <switchyard/dispatch/rows.hpp>
#include <switchyard/plan/plan.hpp>

namespace switchyard {

struct combine_settings {
    bool apply_gates = true;
    bool accumulate = false;  ///< y += instead of y =
};

/// Gradients of combine.
template <class Rows, class Gates>
struct combine_gradients {
    Rows d_rows;    ///< of the shape of rows; 0 in rows without a kept choice
    Gates d_gates;  ///< [T, k]
};

inline namespace SWITCHYARD_TARGET {

/// Writes into y.
template <class Policy, class Plan, matrix_like Rows, matrix_like Tokens>
void combine(const Policy& policy, const Plan& plan, const Rows& rows, Tokens&& y,
             const combine_settings& settings = {}) {
    const auto& p = view_of_plan(plan);
    const auto out = as_view(y);
    detail::require_tokens<Policy>("y", p, out);
    detail::require_rows<Policy>("rows", p, as_view(rows), out.columns);
    require_apart<Policy>("y", out, "rows", as_view(rows));
    sum_rows(policy, p, settings.apply_gates, settings.accumulate, const_view(as_view(rows)), out);
}

/// Allocates y[T, D].
template <class Policy, class Plan, matrix_like Rows>
auto combine(const Policy& policy, const Plan& plan, const Rows& rows) {
    matrix<scalar_of<Rows>, typename Policy::memory> y(view_of_plan(plan).tokens, as_view(rows).columns,
                                                       memory_of(policy));
    combine(policy, plan, rows, y);
    return y;
}

/// Writes d_rows (rows of kept choices only: `zero_rest` zeroes the others) and d_gates[T, k]: not those where gates
/// are not applied here, as in y.
template <class Policy, class Plan, matrix_like Rows, matrix_like Tokens, matrix_like DRows, matrix_like Gates>
void combine_backward(const Policy& policy, const Plan& plan, const Rows& rows, const Tokens& d_y, DRows&& d_rows,
                      Gates&& d_gates, const combine_settings& settings = {}) {
    const auto& p = view_of_plan(plan);
    const auto out = const_view(as_view(d_y));
    detail::require_tokens<Policy>("d_y", p, out);
    detail::require_rows<Policy>("rows", p, as_view(rows), out.columns);
    detail::require_rows<Policy>("d_rows", p, as_view(d_rows), out.columns);
    detail::require_gates<Policy>(p, as_view(d_gates));
    require_apart<Policy>("d_rows", as_view(d_rows), "d_y", out);
    require_apart_or_same<Policy>("d_rows", as_view(d_rows), "rows", as_view(rows));
    if (!settings.apply_gates) {
        gather_rows(policy, p, false, out, as_view(d_rows));
    } else {
        require_apart<Policy>("d_gates", as_view(d_gates), "rows", as_view(rows), "d_y", out, "d_rows", as_view(d_rows),
                              "the plan's gates", detail::gates_of(p));
        gather_and_dot_rows(policy, p, const_view(as_view(rows)), out, as_view(d_rows), as_view(d_gates));
    }
}

/// Allocates both gradients; every number of them is written.
template <class Policy, class Plan, matrix_like Rows, matrix_like Tokens>
auto combine_backward(const Policy& policy, const Plan& plan, const Rows& rows, const Tokens& d_y) {
    using memory = typename Policy::memory;
    const auto& p = view_of_plan(plan);
    combine_gradients<matrix<scalar_of<Rows>, memory>, matrix<std::remove_cvref_t<decltype(*p.gate)>, memory>>
        gradients{{as_view(rows).rows, as_view(rows).columns, memory_of(policy)},
                  {p.tokens, p.choices, memory_of(policy)}};
    combine_backward(policy, plan, rows, d_y, gradients.d_rows, gradients.d_gates);
    zero_rest(policy, plan, gradients.d_rows);
    return gradients;
}

}  // namespace SWITCHYARD_TARGET
}  // namespace switchyard
