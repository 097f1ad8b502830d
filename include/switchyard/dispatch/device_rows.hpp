// Moving rows on a device: the verbs of dispatch/rows.hpp. One thread per element on a GPU (neighbours in a row are
// neighbours in memory), one per row on CPU systems. Sums over a token's choices in their order, without atomics. How
// many rows were kept is read where the plan lies: threads beyond it do nothing.
#pragma once

#include <switchyard/backend/device.hpp>
#include <switchyard/core/config.hpp>
#include <switchyard/core/matrix_view.hpp>
#include <switchyard/core/scalar_traits.hpp>
#include <switchyard/core/simd.hpp>
#include <switchyard/dispatch/identity_rows.hpp>
#include <switchyard/plan/plan.hpp>

#include <type_traits>

namespace switchyard {
inline namespace SWITCHYARD_TARGET {

namespace detail {

/// Columns one thread moves.
template <device_policy Policy>
constexpr index_t columns_a_thread(index_t width) {
    return Policy::most_lanes == 256 && width > 1 ? width : 1;
}

template <class S, class Space, class In, class Out>
struct gather_part {
    plan_view<S, Space> plan;
    bool weigh;
    matrix_view<const In, Space> in;
    matrix_view<Out, Space> out;
    index_t columns;  ///< of one thread

    SWITCHYARD_HD void operator()(index_t i) const {
        const index_t parts = in.columns / columns;
        const index_t row = i / parts;
        if (row >= plan.offsets[plan.experts]) {
            return;
        }
        const std::int64_t position = plan.order[row];
        if (position < 0) {
            return;  // padding
        }
        const index_t token = plan.token_of(position);
        const index_t first = i % parts * columns;
        const compute_t<In> weight = weigh ? static_cast<compute_t<In>>(plan.gate[position]) : compute_t<In>(1);
        for (index_t j = first; j < first + columns; ++j) {
            if constexpr (std::is_same_v<In, Out>) {
                out(row, j) = weigh ? store_scalar<Out>(weight * load_scalar(in(token, j))) : in(token, j);
            } else {
                out(row, j) = store_scalar<Out>(static_cast<compute_t<Out>>(weight * load_scalar(in(token, j))));
            }
        }
    }
};

template <class S, class Space, class In, class Out>
struct sum_part {
    plan_view<S, Space> plan;
    bool weigh;
    bool accumulate;
    matrix_view<const In, Space> in;
    matrix_view<Out, Space> out;
    index_t columns;  ///< of one thread

    SWITCHYARD_HD void operator()(index_t i) const {
        using C = compute_t<Out>;
        using P = pack<C, 1>;
        const index_t parts = out.columns / columns;
        const index_t token = i / parts;
        const index_t first = i % parts * columns;
        for (index_t j = first; j < first + columns; ++j) {
            P sum{accumulate ? load_scalar(out(token, j)) : C(0)};
            for (index_t c = token * plan.choices; c < (token + 1) * plan.choices; ++c) {
                const index_t row = plan.row_of(c);
                if (row >= 0) {
                    const P weight{weigh ? static_cast<C>(plan.gate[c]) : C(1)};
                    sum = multiply_add(weight, P{static_cast<C>(load_scalar(in(row, j)))}, sum);
                }
            }
            out(token, j) = store_scalar<Out>(sum.v);
        }
    }
};

template <class S, class Space, class A, class B, class G>
struct dot_choice {
    plan_view<S, Space> plan;
    matrix_view<const A, Space> rows;
    matrix_view<const B, Space> tokens;
    matrix_view<G, Space> d_gates;

    SWITCHYARD_HD void operator()(index_t position) const {
        const index_t token = plan.token_of(position);
        const index_t row = plan.row_of(position);
        using P = pack<compute_t<A>, 1>;
        P sum{0};
        for (index_t j = 0; row >= 0 && j < tokens.columns; ++j) {
            const P number{load_scalar(rows(row, j))};
            sum = multiply_add(number, P{static_cast<compute_t<A>>(load_scalar(tokens(token, j)))}, sum);
        }
        d_gates(token, position % plan.choices) = store_scalar<G>(static_cast<compute_t<G>>(sum.v));
    }
};

}  // namespace detail

/// out[r] = w_r * in[token of r] for the kept rows; rows beyond are not touched.
template <device_policy Policy, class S, class In, class Out>
void gather_rows(const Policy& policy, const plan_view<S, policy_space<Policy>>& plan, bool weigh,
                 const matrix_view<const In, policy_space<Policy>>& in,
                 const matrix_view<Out, policy_space<Policy>>& out) {
    const index_t columns = detail::columns_a_thread<Policy>(in.columns);
    for_each_index(policy, plan.row_bound * (in.columns / columns),
                   detail::gather_part<S, policy_space<Policy>, In, Out>{plan, weigh, in, out, columns});
}

/// out[t] (+)= sum_c w_tc * in[row of (t, c)].
template <device_policy Policy, class S, class In, class Out>
void sum_rows(const Policy& policy, const plan_view<S, policy_space<Policy>>& plan, bool weigh, bool accumulate,
              const matrix_view<const In, policy_space<Policy>>& in,
              const matrix_view<Out, policy_space<Policy>>& out) {
    const index_t columns = detail::columns_a_thread<Policy>(out.columns);
    for_each_index(policy, plan.tokens * (out.columns / columns),
                   detail::sum_part<S, policy_space<Policy>, In, Out>{plan, weigh, accumulate, in, out, columns});
}

/// d_gate[t, c] = rows[row of (t, c)] . tokens[t], and 0 for dropped choices.
template <device_policy Policy, class S, class A, class B, class G>
void dot_rows(const Policy& policy, const plan_view<S, policy_space<Policy>>& plan,
              const matrix_view<const A, policy_space<Policy>>& rows,
              const matrix_view<const B, policy_space<Policy>>& tokens,
              const matrix_view<G, policy_space<Policy>>& d_gates) {
    for_each_index(policy, plan.tokens * plan.choices,
                   detail::dot_choice<S, policy_space<Policy>, A, B, G>{plan, rows, tokens, d_gates});
}

/// Both backward halves of combine: d_gate[t, c] = rows[row of (t, c)] . tokens[t], then out[r] = gate * tokens[token
/// of r]. `out` may be `rows`.
template <device_policy Policy, class S, class A, class B, class Out, class G>
void gather_and_dot_rows(const Policy& policy, const plan_view<S, policy_space<Policy>>& plan,
                         const matrix_view<const A, policy_space<Policy>>& rows,
                         const matrix_view<const B, policy_space<Policy>>& tokens,
                         const matrix_view<Out, policy_space<Policy>>& out,
                         const matrix_view<G, policy_space<Policy>>& d_gates) {
    dot_rows(policy, plan, rows, tokens, d_gates);
    gather_rows(policy, plan, true, tokens, out);
}

/// Both backward halves of dispatch with gates: out[t] = sum_c gate * rows[row of (t, c)], and d_gate[t, c] = rows[row
/// of (t, c)] . tokens[t].
template <device_policy Policy, class S, class A, class B, class Out, class G>
void sum_and_dot_rows(const Policy& policy, const plan_view<S, policy_space<Policy>>& plan,
                      const matrix_view<const A, policy_space<Policy>>& rows,
                      const matrix_view<const B, policy_space<Policy>>& tokens,
                      const matrix_view<Out, policy_space<Policy>>& out,
                      const matrix_view<G, policy_space<Policy>>& d_gates) {
    sum_rows(policy, plan, true, false, rows, out);
    dot_rows(policy, plan, rows, tokens, d_gates);
}

/// out[t] (+)= sum_c gate * (in[row of (t, c)], or tokens[t]).
template <device_policy Policy, class S, class In, class X, class Out>
void sum_rows_and_tokens(const Policy& policy, const plan_view<S, policy_space<Policy>>& plan, bool accumulate,
                         const matrix_view<const In, policy_space<Policy>>& in,
                         const matrix_view<const X, policy_space<Policy>>& tokens,
                         const matrix_view<Out, policy_space<Policy>>& out) {
    const index_t columns = detail::columns_a_thread<Policy>(out.columns);
    for_each_index(
        policy, plan.tokens * (out.columns / columns),
        detail::sum_part_with_tokens<S, policy_space<Policy>, In, X, Out>{plan, accumulate, in, tokens, out, columns});
}

/// d_gate and d_tokens of choices that add their token.
template <device_policy Policy, class S, class X, class Y, class G, class Out>
void dot_and_scale_tokens(const Policy& policy, const plan_view<S, policy_space<Policy>>& plan,
                          const matrix_view<const X, policy_space<Policy>>& tokens,
                          const matrix_view<const Y, policy_space<Policy>>& d_y,
                          const matrix_view<G, policy_space<Policy>>& d_gates,
                          const matrix_view<Out, policy_space<Policy>>& d_tokens) {
    for_each_index(policy, plan.tokens * plan.choices,
                   detail::dot_token<S, policy_space<Policy>, X, Y, G>{plan, tokens, d_y, d_gates});
    const index_t columns = detail::columns_a_thread<Policy>(d_tokens.columns);
    for_each_index(policy, plan.tokens * (d_tokens.columns / columns),
                   detail::scale_part<S, policy_space<Policy>, Y, Out>{plan, d_y, d_tokens, columns});
}

}  // namespace SWITCHYARD_TARGET
}  // namespace switchyard
