// Moving rows by kernels: the verbs of dispatch/rows.hpp for a policy that runs them (backend/kernel.hpp).
//
//   verb                  launches   device memory read                                   and written
//   gather_rows           1          choices, tokens' rows that have a row                kept rows
//   sum_rows              1          choices, kept rows, and `out` to accumulate          tokens' rows
//   gather_and_dot_rows   1          choices, kept rows, tokens' rows that have a row     kept rows, d_gates
//   sum_and_dot_rows      1 (k <= 32, else 2)   choices, kept rows, tokens' rows          tokens' rows, d_gates
//   dot_rows              1          choices, kept rows, tokens' rows                     d_gates
//
// Each number moves once, in any of them; `choices` are expert, slot and gate of each choice and 8 bytes of offsets for
// each kept one. The first two verbs cut rows of more than 512 numbers in parts, which look choices up once each (256
// for double, 128 where numbers move one by one). Beyond 32 choices the dot products read a token's row once for every
// 32. Accesses have 16 bytes where, for each matrix of the call, the data pointer is aligned to it, columns lie next to
// each other, and width and row stride are whole accesses; otherwise all move number by number.
//
// Sums over choices are the CPU backend's: in their order, in the compute type. Dot products add in an order that the
// shape alone gives. No atomics, no shared memory, no scratch; nothing is read on the host, and `order` is not read.
#pragma once

#include <switchyard/backend/kernel.hpp>
#include <switchyard/core/config.hpp>
#include <switchyard/core/matrix_view.hpp>
#include <switchyard/dispatch/detail/kernel_dots.hpp>
#include <switchyard/dispatch/detail/kernel_lanes.hpp>
#include <switchyard/dispatch/detail/kernel_moves.hpp>
#include <switchyard/dispatch/device_rows.hpp>
#include <switchyard/dispatch/dispatch.hpp>
#include <switchyard/plan/plan.hpp>

#include <algorithm>
#include <type_traits>

namespace switchyard {
inline namespace SWITCHYARD_TARGET {

namespace detail {

/// f(V) with the numbers of a piece that every view allows, as a constant.
template <class F, class... Views>
void with_piece(const F& f, const Views&... views) {
    constexpr int widest = widest_piece<typename Views::value_type...>;
    if ((has_pieces<widest>(views) && ...)) {
        f(std::integral_constant<int, widest>{});
    } else {
        f(std::integral_constant<int, 1>{});
    }
}

template <beside_dots beside, class Policy, class S, class Space, class A, class B, class Out, class G>
void launch_dots(const Policy& policy, const plan_view<S, Space>& plan, const matrix_view<const A, Space>& rows,
                 const matrix_view<const B, Space>& tokens, const matrix_view<Out, Space>& out,
                 const matrix_view<G, Space>& d_gates) {
    const auto launch = [&]<int V>(std::integral_constant<int, V>) {
        const index_t lanes = std::min<index_t>(warp_lanes, plan.choices);
        const auto share = share_lanes<V>(plan.tokens, tokens.columns, sizeof(A), lanes, false);
        policy.launch(
            dot_kernel<S, Space, A, B, Out, G, V, beside>{share, choice_rows_of(plan, beside != beside_dots::nothing),
                                                          rows, tokens, out, d_gates},
            share.blocks());
    };
    if constexpr (beside == beside_dots::nothing) {
        with_piece(launch, rows, tokens);
    } else {
        with_piece(launch, rows, tokens, out);
    }
}

}  // namespace detail

/// out[r] = w_r * in[token of r] for the kept rows; rows beyond are not touched.
template <kernel_policy Policy, class S, class In, class Out>
void gather_rows(const Policy& policy, const plan_view<S, policy_space<Policy>>& plan, bool weigh,
                 const matrix_view<const In, policy_space<Policy>>& in,
                 const matrix_view<Out, policy_space<Policy>>& out) {
    using space = policy_space<Policy>;
    if (plan.tokens == 0 || in.columns == 0) {
        return;
    }
    const auto launch = [&]<int V, bool Weighed>(std::integral_constant<int, V>, std::bool_constant<Weighed>) {
        const auto share = detail::share_lanes<V>(plan.tokens, in.columns, std::max(sizeof(In), sizeof(Out)), 1, true);
        const auto choices = detail::choice_rows_of(plan, Weighed);
        policy.launch(detail::gather_kernel<S, space, In, Out, V, Weighed>{share, choices, in, out}, share.blocks());
    };
    detail::with_piece([&](auto piece) { weigh ? launch(piece, std::true_type{}) : launch(piece, std::false_type{}); },
                       in, out);
}

/// out[t] (+)= sum_c w_tc * in[row of (t, c)].
template <kernel_policy Policy, class S, class In, class Out>
void sum_rows(const Policy& policy, const plan_view<S, policy_space<Policy>>& plan, bool weigh, bool accumulate,
              const matrix_view<const In, policy_space<Policy>>& in,
              const matrix_view<Out, policy_space<Policy>>& out) {
    using space = policy_space<Policy>;
    if (plan.tokens == 0 || out.columns == 0) {
        return;
    }
    detail::with_piece(
        [&]<int V>(std::integral_constant<int, V>) {
            const auto share =
                detail::share_lanes<V>(plan.tokens, out.columns, std::max(sizeof(In), sizeof(Out)), 1, true);
            policy.launch(detail::sum_kernel<S, space, In, Out, V>{share, detail::choice_rows_of(plan, weigh),
                                                                   accumulate, in, out},
                          share.blocks());
        },
        in, out);
}

/// d_gate[t, c] = rows[row of (t, c)] . tokens[t], and 0 for dropped choices.
template <kernel_policy Policy, class S, class A, class B, class G>
void dot_rows(const Policy& policy, const plan_view<S, policy_space<Policy>>& plan,
              const matrix_view<const A, policy_space<Policy>>& rows,
              const matrix_view<const B, policy_space<Policy>>& tokens,
              const matrix_view<G, policy_space<Policy>>& d_gates) {
    if (plan.tokens > 0) {
        detail::launch_dots<detail::beside_dots::nothing>(policy, plan, rows, tokens,
                                                          matrix_view<B, policy_space<Policy>>{}, d_gates);
    }
}

/// Both backward halves of combine: d_gate[t, c] = rows[row of (t, c)] . tokens[t], and out[r] = gate * tokens[token of
/// r]. `out` may be `rows`.
template <kernel_policy Policy, class S, class A, class B, class Out, class G>
void gather_and_dot_rows(const Policy& policy, const plan_view<S, policy_space<Policy>>& plan,
                         const matrix_view<const A, policy_space<Policy>>& rows,
                         const matrix_view<const B, policy_space<Policy>>& tokens,
                         const matrix_view<Out, policy_space<Policy>>& out,
                         const matrix_view<G, policy_space<Policy>>& d_gates) {
    if (plan.tokens > 0) {
        detail::launch_dots<detail::beside_dots::weighed_tokens>(policy, plan, rows, tokens, out, d_gates);
    }
}

/// Both backward halves of dispatch with gates: out[t] = sum_c gate * rows[row of (t, c)], and d_gate[t, c] = rows[row
/// of (t, c)] . tokens[t].
template <kernel_policy Policy, class S, class A, class B, class Out, class G>
void sum_and_dot_rows(const Policy& policy, const plan_view<S, policy_space<Policy>>& plan,
                      const matrix_view<const A, policy_space<Policy>>& rows,
                      const matrix_view<const B, policy_space<Policy>>& tokens,
                      const matrix_view<Out, policy_space<Policy>>& out,
                      const matrix_view<G, policy_space<Policy>>& d_gates) {
    if (plan.choices > warp_lanes) {
        sum_rows(policy, plan, true, false, rows, out);
        dot_rows(policy, plan, rows, tokens, d_gates);
    } else if (plan.tokens > 0) {
        detail::launch_dots<detail::beside_dots::summed_rows>(policy, plan, rows, tokens, out, d_gates);
    }
}

}  // namespace SWITCHYARD_TARGET
}  // namespace switchyard
