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

#include <switchyard/core/arguments.hpp>
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
template <class Policy, class Plan, class Rows, class Tokens>
void combine(const Policy& policy, const Plan& plan, const Rows& rows, Tokens&& y,
             const combine_settings& settings = {}) {
    const auto& p = view_of_plan(plan);
    const auto in = detail::input_view(rows);
    const auto out = detail::output_view(y);
    detail::require_tokens<Policy>("y", p, out);
    detail::require_rows<Policy>("rows", p, in, out.columns);
    require_apart<Policy>("y", out, "rows", in);
    sum_rows(policy, p, settings.apply_gates, settings.accumulate, in, out);
}

/// Allocates y[T, D].
template <class Policy, class Plan, class Rows>
auto combine(const Policy& policy, const Plan& plan, const Rows& rows) {
    matrix<detail::number_of<Rows>, typename Policy::memory> y(view_of_plan(plan).tokens,
                                                               detail::input_view(rows).columns, memory_of(policy));
    combine(policy, plan, rows, y);
    return y;
}

/// Writes d_rows (rows of kept choices only: `zero_rest` zeroes the others) and d_gates[T, k]: not those where gates
/// are not applied here, as in y.
template <class Policy, class Plan, class Rows, class Tokens, class DRows, class Gates>
void combine_backward(const Policy& policy, const Plan& plan, const Rows& rows, const Tokens& d_y, DRows&& d_rows,
                      Gates&& d_gates, const combine_settings& settings = {}) {
    const auto& p = view_of_plan(plan);
    const auto in = detail::input_view(rows);
    const auto out = detail::input_view(d_y);
    const auto to_rows = detail::output_view(d_rows);
    const auto to_gates = detail::output_view(d_gates);
    detail::require_tokens<Policy>("d_y", p, out);
    detail::require_rows<Policy>("rows", p, in, out.columns);
    detail::require_rows<Policy>("d_rows", p, to_rows, out.columns);
    detail::require_gates<Policy>(p, to_gates);
    require_apart<Policy>("d_rows", to_rows, "d_y", out);
    require_apart_or_same<Policy>("d_rows", to_rows, "rows", in);
    if (!settings.apply_gates) {
        gather_rows(policy, p, false, out, to_rows);
    } else {
        require_apart<Policy>("d_gates", to_gates, "rows", in, "d_y", out, "d_rows", to_rows, "the plan's gates",
                              detail::gates_of(p));
        gather_and_dot_rows(policy, p, in, out, to_rows, to_gates);
    }
}

/// Allocates both gradients in the compute type; every number of them is written.
template <class Policy, class Plan, class Rows, class Tokens>
auto combine_backward(const Policy& policy, const Plan& plan, const Rows& rows, const Tokens& d_y) {
    using memory = typename Policy::memory;
    const auto& p = view_of_plan(plan);
    const auto in = detail::input_view(rows);
    combine_gradients<matrix<compute_t<detail::number_of<Rows>>, memory>,
                      matrix<std::remove_cvref_t<decltype(*p.gate)>, memory>>
        gradients{{in.rows, in.columns, memory_of(policy)}, {p.tokens, p.choices, memory_of(policy)}};
    combine_backward(policy, plan, rows, d_y, gradients.d_rows, gradients.d_gates);
    zero_rest(policy, plan, gradients.d_rows);
    return gradients;
}

}  // namespace SWITCHYARD_TARGET
}  // namespace switchyard
