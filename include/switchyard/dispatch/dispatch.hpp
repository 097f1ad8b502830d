// Dispatch: every kept choice's token, in expert order. rows[r] = x[token of r]; expert e owns rows offsets[e] ..
// offsets[e + 1].
//
// x[T, D] -> rows[R, D] with R >= offsets[E]; rows that hold no kept choice are not touched (`zero_rest` zeroes them;
// the allocating form does), so a buffer of plan.row_bound() rows always suffices and nothing has to be read back. With
// `apply_gates` the expert's input is weighted: rows[r] = gate * x[token].
//
// Backward: d_x[t] = sum_c d_rows[row of (t, c)], choices in order, weighted with the gates if they were applied, and
// then d_gates[t, c] = d_rows[row] . x[t]. No atomics: the plan's token-major inverse gives each sum a fixed order.
// O(kept D). Nothing is allocated by the forms that write into given views; nothing synchronises.
//
// Outputs must not overlap inputs, each other or the plan's arrays: an output that shares memory with another matrix of
// the call is an error, on every policy.
#pragma once

#include <switchyard/core/arguments.hpp>
#include <switchyard/core/config.hpp>
#include <switchyard/core/error.hpp>
#include <switchyard/core/matrix_view.hpp>
#include <switchyard/core/memory.hpp>
#include <switchyard/core/overlap.hpp>
#include <switchyard/dispatch/rows.hpp>
#include <switchyard/dispatch/zero_rest.hpp>
#include <switchyard/plan/plan.hpp>

namespace switchyard {

struct dispatch_settings {
    bool apply_gates = false;  ///< weigh the experts' input instead of their output
};

inline namespace SWITCHYARD_TARGET {

namespace detail {

/// Rows in expert order must have room for the plan's; where those cannot be counted here, for the most there may be.
template <class Policy, class Plan, class Rows>
void require_rows(const char* name, const Plan& plan, const Rows& rows, index_t width) {
    require_space<Policy, Plan, Rows>();
    require(rows.columns == width, name, " has rows of ", rows.columns, " numbers; tokens have ", width);
    index_t needed = plan.row_bound;
    if constexpr (host_policy<Policy>) {
        needed = plan.offsets[plan.experts];
    }
    require(rows.rows >= needed, name, " has ", rows.rows, " rows; the plan needs ", needed);
}

template <class Policy, class Plan, class Tokens>
void require_tokens(const char* name, const Plan& plan, const Tokens& tokens) {
    require_space<Policy, Plan, Tokens>();
    require_finished(plan);
    require(tokens.rows == plan.tokens, name, " has ", tokens.rows, " rows; the plan was made for ", plan.tokens,
            " tokens");
}

template <class Policy, class Plan, class Gates>
void require_gates(const Plan& plan, const Gates& d_gates) {
    require_space<Policy, Gates>();
    require_gate_shape(plan, d_gates);
}

}  // namespace detail

/// Writes the rows into `rows`.
template <class Policy, class Plan, class Tokens, class Rows>
requires(!std::is_same_v<std::remove_cvref_t<Rows>, dispatch_settings>) void dispatch(
    const Policy& policy, const Plan& plan, const Tokens& x, Rows&& rows, const dispatch_settings& settings = {}) {
    const auto& p = view_of_plan(plan);
    const auto in = detail::input_view(x);
    const auto out = detail::output_view(rows);
    detail::require_tokens<Policy>("x", p, in);
    detail::require_rows<Policy>("rows", p, out, in.columns);
    require_apart<Policy>("rows", out, "x", in);
    gather_rows(policy, p, settings.apply_gates, in, out);
}

/// Allocates: rows[offsets[E], D] on the CPU, rows[row_bound, D] where that cannot be read without waiting. Rows
/// without a choice are 0.
template <class Policy, class Plan, class Tokens>
auto dispatch(const Policy& policy, const Plan& plan, const Tokens& x, const dispatch_settings& settings = {}) {
    const auto& p = view_of_plan(plan);
    const auto in = detail::input_view(x);
    detail::require_tokens<Policy>("x", p, in);
    matrix<detail::number_of<Tokens>, typename Policy::memory> rows(memory_of(policy));
    if constexpr (host_policy<Policy>) {
        rows.resize(p.offsets[p.experts], in.columns);
    } else {
        rows.resize(p.row_bound, in.columns);
    }
    dispatch(policy, plan, x, rows, settings);
    zero_rest(policy, plan, rows);
    return rows;
}

/// d_x[T, D] from d_rows, for gates not applied to the experts' input.
template <class Policy, class Plan, class Rows, class Tokens>
void dispatch_backward(const Policy& policy, const Plan& plan, const Rows& d_rows, Tokens&& d_x) {
    const auto& p = view_of_plan(plan);
    const auto in = detail::input_view(d_rows);
    const auto out = detail::output_view(d_x);
    detail::require_tokens<Policy>("d_x", p, out);
    detail::require_rows<Policy>("d_rows", p, in, out.columns);
    require_apart<Policy>("d_x", out, "d_rows", in);
    sum_rows(policy, p, false, false, in, out);
}

/// Allocates d_x[T, D] in the compute type, for gates not applied to the experts' input.
template <class Policy, class Plan, class Rows>
auto dispatch_backward(const Policy& policy, const Plan& plan, const Rows& d_rows) {
    matrix<compute_t<detail::number_of<Rows>>, typename Policy::memory> d_x(
        view_of_plan(plan).tokens, detail::input_view(d_rows).columns, memory_of(policy));
    dispatch_backward(policy, plan, d_rows, d_x);
    return d_x;
}

/// d_x[T, D] and d_gates[T, k] from d_rows and x, for `apply_gates`.
template <class Policy, class Plan, class Input, class Rows, class Tokens, class Gates>
void dispatch_backward(const Policy& policy, const Plan& plan, const Input& x, const Rows& d_rows, Tokens&& d_x,
                       Gates&& d_gates) {
    const auto& p = view_of_plan(plan);
    const auto in = detail::input_view(x);
    const auto from = detail::input_view(d_rows);
    const auto out = detail::output_view(d_x);
    const auto gates = detail::output_view(d_gates);
    detail::require_tokens<Policy>("x", p, in);
    require_same_shape("d_x", out, "x", in);
    detail::require_rows<Policy>("d_rows", p, from, in.columns);
    detail::require_gates<Policy>(p, gates);
    require_apart<Policy>("d_x", out, "x", in, "d_rows", from);
    require_apart<Policy>("d_gates", gates, "x", in, "d_rows", from, "d_x", out, "the plan's gates",
                          detail::gates_of(p));
    sum_and_dot_rows(policy, p, from, in, out, gates);
}

}  // namespace SWITCHYARD_TARGET
}  // namespace switchyard
