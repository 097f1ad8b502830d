// What identity experts give back, in combine and its backward: the loops under `identity_of` (dispatch/combine.hpp).
//
//   sum_rows_and_tokens   out[t] (+)= sum_c gate * (in[row of (t, c)], or tokens[t] where the choice adds its token)
//   dot_and_scale_tokens  d_gate[t, c] = tokens[t] . d_y[t] where the choice adds its token; other gates are not
//   touched
//                         d_tokens[t] = (sum of these choices' gates) * d_y[t]; 0 where there are none
//
// Choices in order. On the CPU rows of one storage that lie contiguously move as in combine without identity experts,
// and any others number by number, with bitwise identical results. On devices one thread has an element of a sum, and
// one a dot product.
#pragma once

#include <switchyard/backend/policy.hpp>
#include <switchyard/core/config.hpp>
#include <switchyard/core/matrix_view.hpp>
#include <switchyard/core/scalar_traits.hpp>
#include <switchyard/core/simd.hpp>
#include <switchyard/core/stored.hpp>
#include <switchyard/dispatch/detail/contiguous_rows.hpp>
#include <switchyard/dispatch/rows.hpp>
#include <switchyard/plan/plan.hpp>

#include <algorithm>
#include <cstddef>
#include <type_traits>

namespace switchyard {
inline namespace SWITCHYARD_TARGET {

namespace detail {

template <class S, class Space, class In, class X, class Out>
struct sum_part_with_tokens {
    plan_view<S, Space> plan;
    bool accumulate;
    matrix_view<const In, Space> in;
    matrix_view<const X, Space> tokens;
    matrix_view<Out, Space> out;
    index_t columns;  ///< of one call

    SWITCHYARD_HD void operator()(index_t i) const {
        const index_t parts = out.columns / columns;
        const index_t token = i / parts;
        const index_t first = i % parts * columns;
        for (index_t j = first; j < first + columns; ++j) {
            out(token, j) = store_scalar<Out>(sum(token, j));
        }
    }

    SWITCHYARD_HD compute_t<Out> sum(index_t token, index_t j) const {
        using C = compute_t<Out>;
        using P = pack<C, 1>;
        bool is_begun = accumulate;
        P sum{accumulate ? load_scalar(out(token, j)) : C(0)};
        for (index_t c = token * plan.choices; c < (token + 1) * plan.choices; ++c) {
            const index_t row = plan.row_of(c);
            if (row < 0 && !plan.adds_token(c)) continue;
            const P number{row >= 0 ? static_cast<C>(load_scalar(in(row, j)))
                                    : static_cast<C>(load_scalar(tokens(token, j)))};
            const P weight{static_cast<C>(plan.gate[c])};
            sum = is_begun ? multiply_add(weight, number, sum) : weight * number;
            is_begun = true;
        }
        return sum.v;
    }
};

/// The gates of a token's choices that add it, and whether there are any.
template <class S>
struct token_gates {
    S sum = 0;
    bool found = false;

    template <class Space>
    SWITCHYARD_HD token_gates(const plan_view<S, Space>& plan, index_t token) {
        for (index_t c = token * plan.choices; c < (token + 1) * plan.choices; ++c) {
            if (!plan.adds_token(c)) continue;
            sum += plan.gate[c];
            found = true;
        }
    }
};

template <class S, class Space, class Y, class Out>
struct scale_part {
    plan_view<S, Space> plan;
    matrix_view<const Y, Space> d_y;
    matrix_view<Out, Space> out;
    index_t columns;  ///< of one call

    SWITCHYARD_HD void operator()(index_t i) const {
        using C = compute_t<Out>;
        const index_t parts = out.columns / columns;
        const index_t token = i / parts;
        const index_t first = i % parts * columns;
        const token_gates<S> gates(plan, token);
        const auto weight = static_cast<C>(gates.sum);
        for (index_t j = first; j < first + columns; ++j) {
            out(token, j) = store_scalar<Out>(gates.found ? weight * static_cast<C>(load_scalar(d_y(token, j))) : C(0));
        }
    }
};

template <class S, class Space, class X, class Y, class G>
struct dot_token {
    plan_view<S, Space> plan;
    matrix_view<const X, Space> tokens;
    matrix_view<const Y, Space> d_y;
    matrix_view<G, Space> d_gates;

    SWITCHYARD_HD void operator()(index_t position) const {
        if (!plan.adds_token(position)) return;
        const index_t token = plan.token_of(position);
        using P = pack<compute_t<X>, 1>;
        P sum{0};
        for (index_t j = 0; j < tokens.columns; ++j) {
            const P number{load_scalar(tokens(token, j))};
            sum = multiply_add(number, P{static_cast<compute_t<X>>(load_scalar(d_y(token, j)))}, sum);
        }
        d_gates(token, position % plan.choices) = store_scalar<G>(static_cast<compute_t<G>>(sum.v));
    }
};

/// Numbers first, first + 1, ... of a row, as many as a register holds; zeros behind the last.
template <class C, class T>
wide<C> load_of_any_row(const matrix_view<const T>& view, index_t row, index_t first) {
    constexpr auto width = static_cast<std::size_t>(wide<C>::width);
    alignas(64) C numbers[width];
    for (std::size_t i = 0; i < width; ++i) {
        const index_t j = first + static_cast<index_t>(i);
        numbers[i] = j < view.columns ? load_as<C>(view(row, j)) : C(0);
    }
    return wide<C>::load(numbers);
}

/// a[row] . b[row], as `dot` has it for contiguous rows.
template <class C, class A, class B>
C dot_of_any_rows(const matrix_view<const A>& a, const matrix_view<const B>& b, index_t row) {
    using P = wide<C>;
    constexpr index_t W = P::width;
    P sum[4] = {P::all(0), P::all(0), P::all(0), P::all(0)};
    const auto add = [&](P& to, index_t first) {
        to = multiply_add(load_of_any_row<C>(a, row, first), load_of_any_row<C>(b, row, first), to);
    };
    index_t j = 0;
    for (; j + 4 * W <= a.columns; j += 4 * W) {
        for (index_t i = 0; i < 4; ++i) {
            add(sum[i], j + i * W);
        }
    }
    for (; j < a.columns; j += W) {
        add(sum[0], j);
    }
    return total((sum[0] + sum[1]) + (sum[2] + sum[3]));
}

}  // namespace detail

/// out[t] (+)= sum_c gate * (in[row of (t, c)], or tokens[t]).
template <host_policy Policy, class S, class In, class X, class Out>
void sum_rows_and_tokens(const Policy& policy, const plan_view<S>& plan, bool accumulate,
                         const matrix_view<const In>& in, const matrix_view<const X>& tokens,
                         const matrix_view<Out>& out) {
    const index_t row_bytes = out.columns * static_cast<index_t>(sizeof(Out));
    if constexpr (std::is_same_v<In, X>) {
        if (in.rows_contiguous() && tokens.rows_contiguous() && out.rows_contiguous()) {
            detail::sum_contiguous_rows(policy, detail::choice_sum<S, In>{plan, true, in, tokens}, accumulate, out);
            return;
        }
    }
    const detail::sum_part_with_tokens<S, host_space, In, X, Out> part{
        plan, accumulate, in, tokens, out, std::max<index_t>(out.columns, 1)};
    detail::for_each_block_of_rows(policy, out.columns > 0 ? plan.tokens : 0, row_bytes, false,
                                   [&](index_t first, index_t last, bool, index_t) {
                                       for (index_t token = first; token < last; ++token) part(token);
                                   });
}

/// d_gate and d_tokens of choices that add their token.
template <host_policy Policy, class S, class X, class Y, class G, class Out>
void dot_and_scale_tokens(const Policy& policy, const plan_view<S>& plan, const matrix_view<const X>& tokens,
                          const matrix_view<const Y>& d_y, const matrix_view<G>& d_gates,
                          const matrix_view<Out>& d_tokens) {
    using C = compute_t<X>;
    const index_t width = d_y.columns;
    const bool is_contiguous = tokens.rows_contiguous() && d_y.rows_contiguous() && d_tokens.rows_contiguous();
    const auto dot_of = [&](index_t token) {
        return is_contiguous ? detail::dot<C>(tokens.row(token), d_y.row(token), width)
                             : detail::dot_of_any_rows<C>(tokens, d_y, token);
    };
    const detail::scale_part<S, host_space, Y, Out> scale{plan, d_y, d_tokens, std::max<index_t>(width, 1)};
    detail::for_each_block_of_rows(
        policy, plan.tokens, width * static_cast<index_t>(sizeof(Out)), false,
        [&](index_t first, index_t last, bool, index_t) {
            for (index_t token = first; token < last; ++token) {
                bool is_found = false;
                C product = 0;
                for (index_t c = 0; c < plan.choices; ++c) {
                    if (!plan.adds_token(token * plan.choices + c)) continue;
                    if (!is_found) product = dot_of(token);
                    is_found = true;
                    d_gates(token, c) = detail::store_as<G>(product);
                }
                if (!is_contiguous) {
                    if (width > 0) scale(token);
                    continue;
                }
                using D = compute_t<Out>;
                const auto weight = detail::wide<D>::all(static_cast<D>(detail::token_gates<S>(plan, token).sum));
                detail::write_row<D>(d_tokens.row(token), width, false, [&](index_t j, index_t lanes) {
                    return is_found ? detail::load_some<D>(d_y.row(token) + j, lanes) * weight
                                    : detail::wide<D>::all(D(0));
                });
            }
        });
}

}  // namespace SWITCHYARD_TARGET
}  // namespace switchyard
