// Finished gates: what a few routers do to the gates of a row pass, token by token, before slots are assigned.
//
//   g_c = u_c                                                    no sum
//   g_c = scale u_c / D,  D = (sum_j u_j^p)^(1/p)                the p-norm of a token's k gates (DBRX, OLMo-core)
//                         D = sum_j u_j + epsilon, or max(sum_j u_j, epsilon), where some values are 0:
//   u_c = 0 for zero experts (router/rowless.hpp)                (MoE++, AdaMoE, Zaya)
//   times expert_scale[e_c], a learned number per expert         (Gemma 4)
//
// u_c is what the rule of score/gates.hpp made; with a sum that is the value itself. D = 0 gives gates 0 and no
// gradient, and a D so small that gradients of values leave the range of the type (1e-36 in float) none either.
// Backward, with h_c the gradient of g_c times expert_scale[e_c], and D'_c = (u_c / D)^(p - 1), or 1 where D moves with
// the sum, else 0:
//
//   d u_c = scale / D (h_c - D'_c m),   m = sum_j h_j u_j / D;     without a sum: d u_c = h_c
//
// Powers other than 1 and 2 are those of the machine's own `pow`, and may differ in the last bits between CPUs and
// GPUs. It is a separate pass over k numbers per token: routers without it do not pay for it.
#pragma once

#include <switchyard/backend/policy.hpp>
#include <switchyard/core/config.hpp>
#include <switchyard/core/matrix_view.hpp>
#include <switchyard/core/rounding.hpp>
#include <switchyard/core/scalar_traits.hpp>
#include <switchyard/core/simd.hpp>
#include <switchyard/plan/plan.hpp>
#include <switchyard/plan/slots.hpp>
#include <switchyard/score/gates.hpp>
#include <switchyard/score/score_function.hpp>
#include <switchyard/score/select.hpp>
#include <switchyard/score/softmax.hpp>

#include <cmath>
#include <cstdint>

namespace switchyard {

struct gate_finish {
    double power = 0;                     ///< p > 0, of gate_sum::norm
    gate_sum sum = gate_sum::none;        ///< none: gates stay as they are
    double epsilon = 0;                   ///< of gate_sum::add and clamp
    double scale = 1;                     ///< with a sum
    const float* expert_scale = nullptr;  ///< [E], in the memory of the plan; or null
    index_t first_zero = 0;               ///< from this expert on values are 0; 0: none are

    SWITCHYARD_HD SWITCHYARD_ALWAYS_INLINE constexpr bool is_needed() const {
        return sum != gate_sum::none || expert_scale != nullptr || first_zero != 0;
    }
    SWITCHYARD_HD SWITCHYARD_ALWAYS_INLINE constexpr bool has_value(index_t expert) const {
        return expert >= 0 && (first_zero == 0 || expert < first_zero);
    }
};

inline namespace SWITCHYARD_TARGET {

namespace detail {

template <class S>
SWITCHYARD_HD S raised(S x, double power) {
    if (power == 0) return S(1);
    if (power == 1) return x;
    if (power == 2) return rounded_times(x, x);
    return static_cast<S>(std::pow(x, static_cast<S>(power)));
}

/// The p-norm of k numbers >= 0, in units of the largest, so that no power leaves the range.
template <class S>
SWITCHYARD_HD S norm_of(const S* u, index_t k, double power) {
    S largest = 0;
    for (index_t c = 0; c < k; ++c) largest = u[c] > largest ? u[c] : largest;
    if (!(largest > S(0))) return S(0);
    S sum = 0;
    for (index_t c = 0; c < k; ++c) sum += raised(u[c] / largest, power);
    if (power == 2) return largest * std::sqrt(sum);
    return power == 1 ? largest * sum : largest * static_cast<S>(std::pow(sum, static_cast<S>(1 / power)));
}

/// What the values are divided by, and what it gains for each, as a part of it: 1, or (u / D)^(p - 1).
template <class S>
struct gate_denominator {
    S value = 0;
    bool moves = true;  ///< with the values

    SWITCHYARD_HD gate_denominator(const gate_finish& finish, const S* u, index_t k) {
        if (finish.sum == gate_sum::norm) {
            value = norm_of(u, k, finish.power);
            return;
        }
        for (index_t c = 0; c < k; ++c) value += u[c];
        const auto epsilon = static_cast<S>(finish.epsilon);
        moves = finish.sum == gate_sum::add || value >= epsilon;
        value = finish.sum == gate_sum::add ? value + epsilon : value >= epsilon ? value : epsilon;
    }
    SWITCHYARD_HD S slope(const gate_finish& finish, S part) const {
        if (!moves || !(part > S(0))) return S(0);
        return finish.sum == gate_sum::norm ? raised(part, finish.power - 1) : S(1);
    }
};

/// A token's gates, finished in place.
template <class S, class Space>
struct finish_token {
    plan_view<S, Space> plan;
    gate_finish finish;

    SWITCHYARD_HD void operator()(index_t token) const {
        const index_t k = plan.choices;
        S* const gate = plan.gate + token * k;
        const std::int32_t* const expert = plan.expert + token * k;
        for (index_t c = 0; c < k && finish.first_zero != 0; ++c) {
            gate[c] = finish.has_value(decoded_choice(expert[c])) ? gate[c] : S(0);
        }
        if (finish.sum != gate_sum::none) {
            const S norm = gate_denominator<S>(finish, gate, k).value;
            for (index_t c = 0; c < k; ++c) {
                gate[c] = norm > S(0) ? gate[c] / norm * static_cast<S>(finish.scale) : S(0);
            }
        }
        for (index_t c = 0; c < k && finish.expert_scale != nullptr; ++c) {
            gate[c] = expert[c] >= 0 ? gate[c] * static_cast<S>(finish.expert_scale[expert[c]]) : S(0);
        }
    }
};

/// out[t, c] = the gradient of u_c, from that of the finished gate; 0 for choices without a slot.
template <class Source, class S, class Space, class GateStorage>
struct unfinish_token {
    Source source;
    plan_view<S, Space> plan;
    matrix_view<const GateStorage, Space> d_gates;
    gate_finish finish;
    score_function function;
    S* out;
    S* values;  ///< [T, k] of scratch with a sum, or null

    SWITCHYARD_HD void operator()(index_t token) const {
        const index_t k = plan.choices;
        const std::int32_t* const expert = plan.expert + token * k;
        S* const d = out + token * k;
        for (index_t c = 0; c < k; ++c) {
            d[c] = plan.slot[token * k + c] >= 0 ? static_cast<S>(load_scalar(d_gates(token, c))) : S(0);
            if (finish.expert_scale != nullptr && expert[c] >= 0) {
                d[c] *= static_cast<S>(finish.expert_scale[expert[c]]);
            }
        }
        if (finish.sum != gate_sum::none) {
            through_sum(token, expert, d);
        }
    }

  private:
    SWITCHYARD_HD void through_sum(index_t token, const std::int32_t* expert, S* d) const {
        const index_t k = plan.choices;
        S* const u = values + token * k;
        for (index_t c = 0; c < k; ++c) u[c] = finish.has_value(expert[c]) ? value(token, expert[c]) : S(0);
        const gate_denominator<S> denominator(finish, u, k);
        const S norm = denominator.value;
        S mean = 0;
        for (index_t c = 0; c < k && norm > S(0); ++c) mean += rounded_times(d[c], u[c] / norm);
        bool is_held = norm > S(0);
        for (index_t c = 0; c < k && is_held; ++c) {
            const S share = rounded_times(denominator.slope(finish, u[c] / norm), mean);
            d[c] = (d[c] - share) / norm * static_cast<S>(finish.scale);
            is_held = d[c] - d[c] == S(0);
        }
        for (index_t c = 0; c < k && !is_held; ++c) d[c] = S(0);
    }
    /// What the row pass gave as this choice's gate.
    SWITCHYARD_HD S value(index_t token, index_t expert) const {
        using N = pack<S, 1>;
        const S score = usable(source.at(token, expert));
        if (function != score_function::softmax) return value_of(function, N{score}, N{score}).v;
        return plan.row_sum[token] > S(0) ? softmax_value(score, plan.row_maximum[token], plan.row_sum[token]) : S(0);
    }
};

}  // namespace detail

/// Finishes the gates of all tokens.
template <class Policy, class S, class Space>
void finish_gates(const Policy& policy, const plan_view<S, Space>& plan, const gate_finish& finish) {
    if (finish.is_needed()) {
        for_each_index(policy, plan.tokens, detail::finish_token<S, Space>{plan, finish});
    }
}

}  // namespace SWITCHYARD_TARGET
}  // namespace switchyard
