// Quantile balancing: the bias that would have given each expert the same number of choices.
//
//   alpha_t = (k + 1)-th largest of s_te + bias_e over the experts       what an expert must beat at token t
//   q_e     = (T k / E + 1)-th largest of s_te - alpha_t over the tokens
//   bias_e <- ema bias_e - (1 - ema) q_e, minus the mean of all
//
// s[T, E] is what the bias is added to: the scores themselves for a router whose `key` is `key_source::score`, the
// values of the score function otherwise. A step is one of coordinate descent on the dual of balanced assignment. Where
// it no longer moves, loads are even except for tokens whose k-th and (k + 1)-th keys have become equal: a vertex of
// the dual has E - 1 of them.
//
//   balancing_quantiles(policy, scores, k, bias, q, scratch);  // q[E] of a micro-batch, by the bias that routed it
//   ...                                                        // the caller's: the mean over micro-batches and ranks
//   update_bias_by_quantiles(policy, q, E, ema, bias);
//
// Scores [4, 2], k = 1, bias 0: (3, 0), (2, 0), (1, 0), (0, 1) choose expert 0 three times. alpha = 0 0 0 0; T k / E =
// 2, so q is the third largest of 3 2 1 0 and of 0 0 0 1: (1, 0). The bias becomes (-1, 0) minus its mean, (-0.5, 0.5):
// token 2 is now such a tie, which goes to the lower expert.
//
// Exact, by selection and not by bins: bitwise identical on any number of threads and on every device. Scores must be
// finite (no forbidden experts, no padding) and T k a multiple of E. A device cannot report scores that are not finite,
// and changes nothing then. On CPUs O(T E), with T + 16 T + 512 E numbers of scratch at most; on devices
// router/device_quantile.hpp. Nothing waits.
// Megatron-Core's `quantile_balancing` has these equations, with beta = -bias.
#pragma once

#include <switchyard/backend/policy.hpp>
#include <switchyard/core/arguments.hpp>
#include <switchyard/core/config.hpp>
#include <switchyard/core/error.hpp>
#include <switchyard/core/matrix_view.hpp>
#include <switchyard/core/rounding.hpp>
#include <switchyard/core/scalar_traits.hpp>
#include <switchyard/core/sizes.hpp>
#include <switchyard/core/stored.hpp>
#include <switchyard/core/workspace.hpp>
#include <switchyard/router/softmax_routing.hpp>

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <span>
#include <type_traits>

namespace switchyard {
inline namespace SWITCHYARD_TARGET {

namespace detail {

/// alpha[T]; the first token with a score that is not finite, or T.
template <class Policy, class Storage, class S>
index_t find_thresholds(const Policy& policy, const matrix_view<const Storage>& scores, index_t k, const float* bias,
                        S* alpha, workspace& scratch) {
    const index_t block = rows_per_block(scores.rows);
    const index_t blocks = block_count(scores.rows);
    const auto scope = scratch.open();
    S* const keys = scratch.take<S>(product_of_sizes("keys", blocks, scores.columns));
    index_t* const bad = scratch.take<index_t>(blocks);
    policy.parallel_for(blocks, [&](index_t b) {
        S* const row = keys + b * scores.columns;
        bad[b] = scores.rows;
        for (index_t t = b * block; t < std::min(scores.rows, (b + 1) * block); ++t) {
            bool is_good = true;
            for (index_t e = 0; e < scores.columns; ++e) {
                const S score = load_as<S>(scores(t, e));
                is_good = is_good && std::isfinite(score);
                row[e] = score + static_cast<S>(bias[e]);
            }
            if (!is_good) {
                bad[b] = std::min(bad[b], t);
                continue;
            }
            std::nth_element(row, row + k, row + scores.columns, std::greater<>());
            alpha[t] = row[k];
        }
    });
    return *std::min_element(bad, bad + blocks);
}

/// 0 without a sign, since selections find either of two equal zeros.
template <class S>
SWITCHYARD_HD float quantile_of(S x) {
    return x == S(0) ? 0.0f : static_cast<float>(x);
}

/// Experts whose columns are gathered at once: a cache line of floats.
inline constexpr index_t gathered_columns = 16;

template <class Policy, class Storage, class S>
void select_quantiles(const Policy& policy, const matrix_view<const Storage>& scores, index_t rank, const S* alpha,
                      float* q, workspace& scratch) {
    const index_t tokens = scores.rows;
    const index_t block = rows_per_block(tokens);
    const auto scope = scratch.open();
    S* const columns = scratch.take<S>(product_of_sizes("numbers", gathered_columns, tokens));
    for (index_t first = 0; first < scores.columns; first += gathered_columns) {
        const index_t count = std::min(gathered_columns, scores.columns - first);
        policy.parallel_for(block_count(tokens), [&](index_t b) {
            for (index_t t = b * block; t < std::min(tokens, (b + 1) * block); ++t) {
                for (index_t e = 0; e < count; ++e) {
                    columns[e * tokens + t] = load_as<S>(scores(t, first + e)) - alpha[t];
                }
            }
        });
        policy.parallel_for(count, [&](index_t e) {
            S* const column = columns + e * tokens;
            std::nth_element(column, column + rank, column + tokens, std::greater<>());
            q[first + e] = quantile_of(column[rank]);
        });
    }
}

struct move_biases_by_quantiles {
    const float* q;
    index_t experts;
    double ema;
    float* bias;

    SWITCHYARD_HD void operator()(index_t) const {
        double sum = 0;
        for (index_t e = 0; e < experts; ++e) {
            if (!is_finite(q[e]) || !is_finite(bias[e])) {
                return;  // a CPU has refused it before
            }
            sum += moved(e);
        }
        const double mean = sum / static_cast<double>(experts);
        for (index_t e = 0; e < experts; ++e) {
            bias[e] = static_cast<float>(moved(e) - mean);
        }
    }

    SWITCHYARD_HD static bool is_finite(float x) {
        const float size = x < 0.0f ? -x : x;
        return size <= std::numeric_limits<float>::max();
    }
    SWITCHYARD_HD double moved(index_t e) const {
        return rounded_times(ema, static_cast<double>(bias[e])) - rounded_times(1 - ema, static_cast<double>(q[e]));
    }
};

}  // namespace detail

/// The overload for CPUs; that for devices: router/device_quantile.hpp.
template <class Policy, class Storage>
requires host_policy<Policy>
void find_quantiles(const Policy& policy, const matrix_view<const Storage>& scores, index_t k, const float* bias,
                    float* q, workspace& scratch) {
    auto* const alpha = scratch.take<compute_t<Storage>>(scores.rows);
    const index_t bad = detail::find_thresholds(policy, scores, k, bias, alpha, scratch);
    require(bad == scores.rows, "a score of token ", bad,
            " is not finite: quantile balancing knows neither forbidden experts nor padding");
    detail::select_quantiles(policy, scores, scores.rows * k / scores.columns, alpha, q, scratch);
}

/// scores[T, E], k in 1..E - 1, the bias[E] they were routed by -> q[E], all in the policy's memory.
template <class Policy, class Scores, class Space, class Workspace>
void balancing_quantiles(const Policy& policy, const Scores& scores, index_t k, const expert_numbers<Space>& bias,
                         std::span<float> q, Workspace& scratch) {
    const auto s = detail::token_view(scores);
    using view = std::remove_const_t<decltype(s)>;
    require_space<Policy, view, matrix_view<const float, Space>>();
    require(s.rows >= 1, "no tokens have no quantiles");
    require(k >= 1 && k < s.columns, "k = ", k, " must lie in 1..E - 1 = ", s.columns - 1, " for quantile balancing");
    require(bias.data != nullptr && bias.size == s.columns, "bias has ", bias.size, " numbers for E = ", s.columns,
            " experts");
    require(static_cast<index_t>(q.size()) == s.columns, "q has room for ", q.size(), " numbers; E = ", s.columns);
    const index_t choices = product_of_sizes("choices", s.rows, k);
    require(choices % s.columns == 0, "T k = ", choices, " choices cannot be shared evenly by E = ", s.columns,
            " experts, as quantile balancing asks");
    const auto scope = scratch.open();
    find_quantiles(policy, s, k, bias.data, q.data(), scratch);
}

/// q[E] and bias[E] in the policy's memory; ema in [0, 1). In double, rounded once. O(E), nothing allocated; on a
/// device one launch of one thread, without a wait; q that is not finite is an error on CPUs and moves nothing on a
/// device.
template <class Policy>
void update_bias_by_quantiles(const Policy& policy, const float* q, index_t experts, double ema, float* bias) {
    require(ema >= 0 && ema < 1, "ema = ", ema, " must lie in [0, 1)");
    require(experts >= 1, "E = ", experts, " experts have no biases");
    require(q != nullptr && bias != nullptr, "q and bias must not be null");
    if constexpr (host_policy<Policy>) {
        for (index_t e = 0; e < experts; ++e) {
            require(std::isfinite(q[e]), "q of expert ", e, " is ", q[e], ": it must be finite");
            require(std::isfinite(bias[e]), "the bias of expert ", e, " is ", bias[e], ": it must be finite");
        }
    }
    for_each_index(policy, 1, detail::move_biases_by_quantiles{q, experts, ema, bias});
}

}  // namespace SWITCHYARD_TARGET
}  // namespace switchyard
