// Projection on a device: scores = noise(x) W and its backward, the verbs of score/projection.hpp.
//
// One thread per element of the result, each sum in a fixed order. It is there so that routing from tokens runs
// wherever Thrust does; on a GPU an engine's own matrix product is many times faster: make the scores with it and call
// route_scores. O(T D E). Scratch from the workspace; nothing is read on the host.
#pragma once

#include <switchyard/backend/device.hpp>
#include <switchyard/core/config.hpp>
#include <switchyard/core/matrix_view.hpp>
#include <switchyard/core/scalar_traits.hpp>
#include <switchyard/core/workspace.hpp>
#include <switchyard/score/noise.hpp>

namespace switchyard {
inline namespace SWITCHYARD_TARGET {

namespace detail {

/// Columns of a row that share a Philox call, and so a thread.
inline constexpr index_t noise_group = 4;

/// The router's copy of the tokens: in S, with noise, padding as zeros.
template <class Storage, class S, class Space, class IsToken>
struct copy_tokens {
    matrix_view<const Storage, Space> x;
    input_noise noise;
    IsToken is_token;
    S* copy;  ///< [T, D]

    SWITCHYARD_HD void operator()(index_t i) const {
        const index_t groups = (x.columns + noise_group - 1) / noise_group;
        const index_t token = i / groups;
        const index_t first = i % groups * noise_group;
        const index_t count = x.columns - first < noise_group ? x.columns - first : noise_group;
        const bool real = is_token(token);
        S value[noise_group];
        for (index_t j = 0; j < count; ++j) {
            value[j] = real ? static_cast<S>(load_scalar(x(token, first + j))) : S(0);
        }
        apply_input_noise(noise, token, first, value, count);
        for (index_t j = 0; j < count; ++j) {
            copy[token * x.columns + first + j] = value[j];
        }
    }
};

/// scores[t, e] = tokens[t] . w[., e]
template <class W, class S, class Space>
struct project_element {
    const S* tokens;
    matrix_view<const W, Space> w;
    matrix_view<S, Space> scores;

    SWITCHYARD_HD void operator()(index_t i) const {
        const index_t token = i / w.columns;
        const index_t expert = i % w.columns;
        S sum = 0;
        for (index_t j = 0; j < w.rows; ++j) {
            sum += tokens[token * w.rows + j] * static_cast<S>(load_scalar(w(j, expert)));
        }
        scores(token, expert) = sum;
    }
};

/// partial[p, j, e] = sum over the tokens of part p of tokens[t, j] d_scores[t, e]
template <class S, class Space>
struct weight_gradient_part {
    const S* tokens;
    matrix_view<const S, Space> d_scores;
    index_t width;
    index_t tokens_a_part;
    S* partial;

    SWITCHYARD_HD void operator()(index_t i) const {
        const index_t experts = d_scores.columns;
        const index_t expert = i % experts;
        const index_t j = i / experts % width;
        const index_t first = i / experts / width * tokens_a_part;
        S sum = 0;
        for (index_t t = first; t < first + tokens_a_part && t < d_scores.rows; ++t) {
            sum += tokens[t * width + j] * d_scores(t, expert);
        }
        partial[i] = sum;
    }
};

template <class S, class DW, class Space>
struct write_weight_gradient {
    const S* sum;  ///< null where there are no tokens
    matrix_view<DW, Space> d_w;

    SWITCHYARD_HD void operator()(index_t i) const {
        d_w(i / d_w.columns, i % d_w.columns) =
            store_scalar<DW>(sum != nullptr ? static_cast<compute_t<DW>>(sum[i]) : compute_t<DW>(0));
    }
};

/// d_x[t, j] = (d_scores[t] . w[j]) * noise factor
template <class W, class S, class DX, class Space>
struct token_gradient {
    matrix_view<const W, Space> w;
    input_noise noise;
    matrix_view<const S, Space> d_scores;
    matrix_view<DX, Space> d_x;

    SWITCHYARD_HD void operator()(index_t i) const {
        const index_t groups = (d_x.columns + noise_group - 1) / noise_group;
        const index_t token = i / groups;
        const index_t first = i % groups * noise_group;
        const index_t count = d_x.columns - first < noise_group ? d_x.columns - first : noise_group;
        S value[noise_group];
        for (index_t j = 0; j < count; ++j) {
            S sum = 0;
            for (index_t e = 0; e < w.columns; ++e) {
                sum += d_scores(token, e) * static_cast<S>(load_scalar(w(first + j, e)));
            }
            value[j] = sum;
        }
        apply_input_noise(noise, token, first, value, count);
        for (index_t j = 0; j < count; ++j) {
            d_x(token, first + j) = store_scalar<DX>(static_cast<compute_t<DX>>(value[j]));
        }
    }
};

template <class S, device_policy Policy, class X, class IsToken>
S* copy_tokens_of(const Policy& policy, const matrix_view<const X, policy_space<Policy>>& x, const input_noise& noise,
                  const IsToken& is_token, device_workspace<Policy>& scratch) {
    S* const copy = scratch.template take<S>(x.size());
    for_each_index(policy, x.rows * ((x.columns + noise_group - 1) / noise_group),
                   copy_tokens<X, S, policy_space<Policy>, IsToken>{x, noise, is_token, copy});
    return copy;
}

/// Tokens that one thread sums up in the gradient of the weights: all of them where the weights alone keep the device
/// busy, fewer where they are small. A function of the shape alone.
constexpr index_t tokens_a_part(index_t tokens, index_t weights) {
    constexpr index_t enough = index_t{1} << 18;
    const index_t parts = weights < enough ? enough / (weights > 0 ? weights : 1) : 1;
    const index_t each = (tokens + parts - 1) / parts;
    return each > fold_rows ? each : fold_rows;
}

}  // namespace detail

/// scores[T, E] = noise(x) W; rows for which is_token(t) is false count as zeros.
template <device_policy Policy, class X, class W, class S, class IsToken>
void project(const Policy& policy, const matrix_view<const X, policy_space<Policy>>& x,
             const matrix_view<const W, policy_space<Policy>>& w, const input_noise& noise, const IsToken& is_token,
             const matrix_view<S, policy_space<Policy>>& scores, device_workspace<Policy>& scratch) {
    const auto scope = scratch.open();
    const S* const tokens = detail::copy_tokens_of<S>(policy, x, noise, is_token, scratch);
    for_each_index(policy, scores.size(), detail::project_element<W, S, policy_space<Policy>>{tokens, w, scores});
}

/// d_x[T, D] and d_w[D, E] from d_scores[T, E], whose padding rows are 0.
template <device_policy Policy, class X, class W, class S, class DX, class DW, class IsToken>
void project_backward(const Policy& policy, const matrix_view<const X, policy_space<Policy>>& x,
                      const matrix_view<const W, policy_space<Policy>>& w, const input_noise& noise,
                      const IsToken& is_token, const matrix_view<const S, policy_space<Policy>>& d_scores,
                      const matrix_view<DX, policy_space<Policy>>& d_x,
                      const matrix_view<DW, policy_space<Policy>>& d_w, device_workspace<Policy>& scratch) {
    using space = policy_space<Policy>;
    const auto scope = scratch.open();
    const S* const tokens = detail::copy_tokens_of<S>(policy, x, noise, is_token, scratch);
    const index_t each = detail::tokens_a_part(x.rows, w.size());
    const index_t parts = (x.rows + each - 1) / each;
    S* sum = nullptr;
    if (parts > 0) {
        sum = scratch.template take<S>(parts * w.size());
        for_each_index(policy, parts * w.size(),
                       detail::weight_gradient_part<S, space>{tokens, d_scores, x.columns, each, sum});
        sum = detail::fold(policy, sum, parts, w.size(), detail::plus{}, scratch);
    }
    for_each_index(policy, w.size(), detail::write_weight_gradient<S, DW, space>{sum, d_w});
    for_each_index(policy, x.rows * ((x.columns + detail::noise_group - 1) / detail::noise_group),
                   detail::token_gradient<W, S, DX, space>{w, noise, d_scores, d_x});
}

}  // namespace SWITCHYARD_TARGET
}  // namespace switchyard
