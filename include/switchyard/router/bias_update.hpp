// Balancing by bias: after a step, experts that got too few choices become easier to choose, and the others harder.
//
//   d_e = rate sign(mean load - load_e), sign(0) = 0        bias_e += d_e, or d_e - mean d
//
// `load_e` counts choices before capacity: those of the step's plan, whatever its gates, or an array of the caller,
// summed over ranks or micro-batches. Centred steps keep the biases' sum (torchtitan); plain ones are DeepSeek-V3's and
// Megatron's. O(E), no allocation; on a device one launch of one thread, without a wait.
// `bias_state` (router/bias_state.hpp) owns the biases and applies their rule.
// Wang et al. 2024, "Auxiliary-Loss-Free Load Balancing Strategy for Mixture-of-Experts", arXiv 2408.15664, rate 1e-3.
#pragma once

#include <switchyard/backend/policy.hpp>
#include <switchyard/core/config.hpp>
#include <switchyard/core/error.hpp>
#include <switchyard/plan/plan.hpp>

#include <cmath>
#include <cstdint>

namespace switchyard {

enum class bias_rule {
    sign,
    centred_sign,  ///< minus the mean of the step
    quantile,      ///< by scores instead of loads: router/quantile_bias.hpp
};

inline namespace SWITCHYARD_TARGET {

namespace detail {

struct move_biases {
    const std::int64_t* load;
    index_t experts;
    float rate;
    bias_rule rule;
    float* bias;

    SWITCHYARD_HD void operator()(index_t) const {
        std::int64_t total = 0;
        for (index_t e = 0; e < experts; ++e) {
            total += load[e];
        }
        // In integers: sign(total / E - load_e).
        std::int64_t signs = 0;
        for (index_t e = 0; e < experts; ++e) {
            signs += sign(total - load[e] * experts);
        }
        const float mean =
            rule == bias_rule::centred_sign ? rate * static_cast<float>(signs) / static_cast<float>(experts) : 0.0f;
        for (index_t e = 0; e < experts; ++e) {
            bias[e] += rate * static_cast<float>(sign(total - load[e] * experts)) - mean;
        }
    }

    SWITCHYARD_HD static int sign(std::int64_t x) { return x > 0 ? 1 : x < 0 ? -1 : 0; }
};

}  // namespace detail

/// Updates bias[E], in the policy's memory, by load[E].
template <class Policy>
void update_bias(const Policy& policy, const std::int64_t* load, index_t experts, float rate, float* bias,
                 bias_rule rule = bias_rule::sign) {
    require(std::isfinite(rate), "rate = ", rate, " must be finite");
    require(rule != bias_rule::quantile, "bias_rule::quantile moves by quantiles of scores, not by loads");
    require(experts >= 1, "E = ", experts, " experts have no biases");
    require(load != nullptr && bias != nullptr, "load and bias must not be null");
    for_each_index(policy, 1, detail::move_biases{load, experts, rate, rule, bias});
}

/// The same by the loads of a step's plan.
template <class Policy, class Plan>
void update_bias(const Policy& policy, const Plan& plan, float rate, float* bias, bias_rule rule = bias_rule::sign) {
    const auto& made = view_of_plan(plan);
    require_finished(made);
    require(made.has_rows(), "the plan has choices alone, and no loads");
    update_bias(policy, made.load_before, made.experts, rate, bias, rule);
}

}  // namespace SWITCHYARD_TARGET
}  // namespace switchyard
