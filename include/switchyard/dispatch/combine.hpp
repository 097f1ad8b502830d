// Combine: y[t] = sum_c gate[t, c] * rows[row of (t, c)], choices in order; a token none of whose choices was kept gets
// zeros.
//
// rows[R, D] (expert outputs in expert order, R >= offsets[E]) -> y[T, D]. Rows without a kept choice are not read.
// `accumulate` adds onto y instead; `apply_gates = false` sums unweighted, for plans whose gates were applied to the
// experts' input.
//
// Identity experts (plan/plan.hpp) give back their input, so combine asks for it: the tokens x[T, D]. Their choices add
// gate * x[t], in choice order among the kept ones.
//
//   combine(policy, plan, rows, identity_of{x}, y);
//   combine_backward(policy, plan, rows, identity_of{x}, d_y, d_rows, d_gates, d_x);
//
// Without x a plan with identity experts is refused, chosen or not; zero experts add nothing and need none. Their gates
// are not applied to their input: apply_gates = false is refused, too.
//
// Backward: d_rows[r] = gate * d_y[token of r], d_gates[t, c] = rows[row of (t, c)] . d_y[t], 0 for dropped choices.
// For identity choices whose gate is not 0 d_gates[t, c] = x[t] . d_y[t], and d_x[t] = d_y[t] times the sum of their
// gates: what combine adds to the gradient of x, beside that of dispatch; all of d_x is written, zeros where a token
// has none. O(kept D). Nothing is allocated by the forms that write into given views; nothing synchronises.
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
#include <switchyard/dispatch/identity_rows.hpp>
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

/// The same where identity experts have a part.
template <class Rows, class Gates, class Tokens>
struct combine_gradients_with_x {
    Rows d_rows;    ///< of the shape of rows; 0 in rows without a kept choice
    Gates d_gates;  ///< [T, k]
    Tokens d_x;     ///< [T, D]
};

/// The tokens x[T, D], as what identity experts give back.
template <class Tokens>
struct identity_of {
    const Tokens& x;
};
template <class Tokens>
identity_of(const Tokens&) -> identity_of<Tokens>;

template <class T>
inline constexpr bool is_identity_of = false;
template <class Tokens>
inline constexpr bool is_identity_of<identity_of<Tokens>> = true;

inline namespace SWITCHYARD_TARGET {

namespace detail {

/// Without x nothing can be combined for identity experts.
template <class Plan>
void require_no_identity(const Plan& plan) {
    require(plan.origin.rowless.identity == 0, "the plan has ", plan.origin.rowless.identity,
            " identity experts, which give back their tokens: pass identity_of{x}, or call them zero experts");
}

inline void require_gates_applied(const combine_settings& settings) {
    require(settings.apply_gates,
            "apply_gates = false has no place for identity experts, whose gates are applied here");
}

}  // namespace detail

/// Writes into y.
template <class Policy, class Plan, class Rows, class Tokens>
requires(!is_identity_of<std::remove_cvref_t<Tokens>>) void combine(const Policy& policy, const Plan& plan,
                                                                    const Rows& rows, Tokens&& y,
                                                                    const combine_settings& settings = {}) {
    const auto& p = view_of_plan(plan);
    const auto in = detail::input_view(rows);
    const auto out = detail::output_view(y);
    detail::require_tokens<Policy>("y", p, out);
    detail::require_rows<Policy>("rows", p, in, out.columns);
    detail::require_no_identity(p);
    require_apart<Policy>("y", out, "rows", in);
    sum_rows(policy, p, settings.apply_gates, settings.accumulate, in, out);
}

/// Writes into y, with the tokens of identity choices.
template <class Policy, class Plan, class Rows, class X, class Tokens>
void combine(const Policy& policy, const Plan& plan, const Rows& rows, const identity_of<X>& identity, Tokens&& y,
             const combine_settings& settings = {}) {
    const auto& p = view_of_plan(plan);
    const auto in = detail::input_view(rows);
    const auto x = detail::input_view(identity.x);
    const auto out = detail::output_view(y);
    detail::require_tokens<Policy>("y", p, out);
    detail::require_rows<Policy>("rows", p, in, out.columns);
    detail::require_tokens<Policy>("x", p, x);
    require_same_shape("y", out, "x", x);
    detail::require_gates_applied(settings);
    require_apart<Policy>("y", out, "rows", in, "x", x);
    sum_rows_and_tokens(policy, p, settings.accumulate, in, x, out);
}

/// Allocates y[T, D].
template <class Policy, class Plan, class Rows>
auto combine(const Policy& policy, const Plan& plan, const Rows& rows) {
    matrix<detail::number_of<Rows>, typename Policy::memory> y(view_of_plan(plan).tokens,
                                                               detail::input_view(rows).columns, memory_of(policy));
    combine(policy, plan, rows, y);
    return y;
}

/// Allocates y[T, D], with the tokens of identity choices.
template <class Policy, class Plan, class Rows, class X>
auto combine(const Policy& policy, const Plan& plan, const Rows& rows, const identity_of<X>& identity) {
    matrix<detail::number_of<Rows>, typename Policy::memory> y(view_of_plan(plan).tokens,
                                                               detail::input_view(rows).columns, memory_of(policy));
    combine(policy, plan, rows, identity, y);
    return y;
}

/// Writes d_rows (rows of kept choices only: `zero_rest` zeroes the others) and d_gates[T, k]: not those where gates
/// are not applied here, as in y.
template <class Policy, class Plan, class Rows, class Tokens, class DRows, class Gates>
requires(!is_identity_of<Tokens>) void combine_backward(const Policy& policy, const Plan& plan, const Rows& rows,
                                                        const Tokens& d_y, DRows&& d_rows, Gates&& d_gates,
                                                        const combine_settings& settings = {}) {
    const auto& p = view_of_plan(plan);
    const auto in = detail::input_view(rows);
    const auto out = detail::input_view(d_y);
    const auto to_rows = detail::output_view(d_rows);
    const auto to_gates = detail::output_view(d_gates);
    detail::require_tokens<Policy>("d_y", p, out);
    detail::require_rows<Policy>("rows", p, in, out.columns);
    detail::require_rows<Policy>("d_rows", p, to_rows, out.columns);
    detail::require_gates<Policy>(p, to_gates);
    detail::require_no_identity(p);
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

/// Writes d_rows (rows of kept choices only), d_gates[T, k] and d_x[T, D]; x is that of combine.
template <class Policy, class Plan, class Rows, class X, class Tokens, class DRows, class Gates, class DX>
void combine_backward(const Policy& policy, const Plan& plan, const Rows& rows, const identity_of<X>& identity,
                      const Tokens& d_y, DRows&& d_rows, Gates&& d_gates, DX&& d_x,
                      const combine_settings& settings = {}) {
    const auto& p = view_of_plan(plan);
    const auto in = detail::input_view(rows);
    const auto x = detail::input_view(identity.x);
    const auto out = detail::input_view(d_y);
    const auto to_rows = detail::output_view(d_rows);
    const auto to_gates = detail::output_view(d_gates);
    const auto to_x = detail::output_view(d_x);
    detail::require_tokens<Policy>("d_y", p, out);
    detail::require_rows<Policy>("rows", p, in, out.columns);
    detail::require_rows<Policy>("d_rows", p, to_rows, out.columns);
    detail::require_gates<Policy>(p, to_gates);
    detail::require_tokens<Policy>("x", p, x);
    detail::require_tokens<Policy>("d_x", p, to_x);
    require_same_shape("d_y", out, "x", x);
    require_same_shape("d_x", to_x, "x", x);
    detail::require_gates_applied(settings);
    require_apart<Policy>("d_rows", to_rows, "d_y", out, "x", x);
    require_apart_or_same<Policy>("d_rows", to_rows, "rows", in);
    require_apart<Policy>("d_gates", to_gates, "rows", in, "d_y", out, "d_rows", to_rows, "the plan's gates",
                          detail::gates_of(p), "x", x);
    require_apart<Policy>("d_x", to_x, "rows", in, "d_y", out, "d_rows", to_rows, "d_gates", to_gates,
                          "the plan's gates", detail::gates_of(p), "x", x);
    gather_and_dot_rows(policy, p, in, out, to_rows, to_gates);
    dot_and_scale_tokens(policy, p, x, out, to_gates, to_x);
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

/// Allocates all three gradients in the compute type; every number of them is written.
template <class Policy, class Plan, class Rows, class X, class Tokens>
auto combine_backward(const Policy& policy, const Plan& plan, const Rows& rows, const identity_of<X>& identity,
                      const Tokens& d_y) {
    using memory = typename Policy::memory;
    const auto& p = view_of_plan(plan);
    const auto in = detail::input_view(rows);
    combine_gradients_with_x<matrix<compute_t<detail::number_of<Rows>>, memory>,
                             matrix<std::remove_cvref_t<decltype(*p.gate)>, memory>,
                             matrix<compute_t<detail::number_of<X>>, memory>>
        gradients{{in.rows, in.columns, memory_of(policy)},
                  {p.tokens, p.choices, memory_of(policy)},
                  {p.tokens, in.columns, memory_of(policy)}};
    combine_backward(policy, plan, rows, identity, d_y, gradients.d_rows, gradients.d_gates, gradients.d_x);
    zero_rest(policy, plan, gradients.d_rows);
    return gradients;
}

}  // namespace SWITCHYARD_TARGET
}  // namespace switchyard
