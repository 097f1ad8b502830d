// The Switch router: each token goes to its best expert, weighted by that expert's probability.
//
//   s = scores[T, E], p = softmax(s), expert = argmax s, gate = p[expert] (not renormalised: it would be 1 and have no
//   gradient). Slots in order of position or gate, up to capacity; a dropped token's output is 0, so the residual
//   carries it. losses: load balancing (balance/load_balancing_loss.hpp) and z-loss (balance/z_loss.hpp), weights
//   included.
//
// At inference nothing is dropped by default: with a factor, a few tokens among many experts get a capacity of 0, and
// decoding would lose them all. Without a capacity, a token with every expert forbidden is an error; with a capacity it
// is dropped. In training the minimum of 1 serves small batches.
//
// Exploration, in training only: input jitter or input dropout on the router's copy of the tokens (never on what
// experts receive), sampling (expert = argmax(s + temperature * Gumbel), gate unperturbed), or, for callers that have
// only scores, logit jitter. All are off by default; the paper trains with input_jitter = 1e-2.
//
// Backward, d_gates[T, 1] and the losses -> d_scores[T, E], is `route_scores_backward` of router/softmax_routing.hpp.
// O(T E) time. CPU policies throw `error` on bad scores and settings. After the first step of a shape nothing is
// allocated, and nothing synchronises. Ties go to the lower expert.
// Fedus, Zoph, Shazeer 2021, "Switch Transformers", arXiv 2101.03961.
#pragma once

#include <switchyard/core/config.hpp>
#include <switchyard/core/error.hpp>
#include <switchyard/core/matrix_view.hpp>
#include <switchyard/core/overlap.hpp>
#include <switchyard/plan/capacity.hpp>
#include <switchyard/plan/plan.hpp>
#include <switchyard/plan/slots.hpp>
#include <switchyard/router/routing.hpp>
#include <switchyard/router/softmax_routing.hpp>

#include <cmath>
#include <cstdint>

namespace switchyard {

struct switch_router {
    capacity_rule capacity{.factor = 1.25, .minimum = 1};  ///< in training
    capacity_rule inference_capacity{};                    ///< otherwise; none by default, the paper's factor is 2.0
    drop_order order = drop_order::position;

    float input_jitter = 0;        ///< epsilon in [0, 1); the paper's is 1e-2. Needs tokens
    float input_dropout = 0;       ///< rate in [0, 1); the paper's is 0.1. Needs tokens
    float sample_temperature = 0;  ///< >= 0; 0 takes the argmax
    float logit_jitter = 0;        ///< epsilon in [0, 1)

    double balance_weight = 1e-2;
    double z_weight = 0;               ///< ST-MoE uses 1e-3
    index_t no_token_left_behind = 0;  ///< rounds: unplaced tokens try their i-th choice; 0 is off
    bad_scores bad = bad_scores::error;
};

template <>
inline constexpr bool is_library_router<switch_router> = true;

inline namespace SWITCHYARD_TARGET {

constexpr std::uint64_t fingerprint_of(const switch_router& r) {
    return fingerprint('s', r.sample_temperature, r.logit_jitter, r.input_jitter, r.input_dropout, r.balance_weight,
                       r.z_weight, r.no_token_left_behind);
}

/// Fails, with a message, where a setting is out of range.
inline void require_settings(const switch_router& r, index_t experts, const run_mode& mode) {
    require_noise(r, mode, {"sample_temperature", r.sample_temperature});
    require_weights({{"balance_weight", r.balance_weight}, {"z_weight", r.z_weight}});
    require(r.sample_temperature >= 0 && std::isfinite(r.sample_temperature),
            "sample_temperature = ", r.sample_temperature, " must be finite and not negative");
    require(r.no_token_left_behind >= 0 && r.no_token_left_behind <= experts,
            "no_token_left_behind = ", r.no_token_left_behind, " must lie in 0..E = ", experts);
    require(r.no_token_left_behind == 0 || r.sample_temperature == 0,
            "no_token_left_behind and sample_temperature exclude each other: further choices are not sampled");
}

inline softmax_settings softmax_settings_of(const switch_router& r, index_t capacity) {
    return {.slots = {.order = r.order},
            .balance_weight = r.balance_weight,
            .z_weight = r.z_weight,
            .bad = r.bad,
            .may_drop = capacity != unlimited,
            .rounds = r.no_token_left_behind};
}

/// scores[T, E] -> plan, k = 1. The plan's arrays must not overlap the scores.
template <class Policy, class Scores, class Plan, class Workspace>
void route_scores(const Policy& policy, const switch_router& router, const Scores& scores, const run_mode& mode,
                  Plan& plan, Workspace& scratch) {
    using S = typename Plan::scalar;
    const auto choose = [&](const auto& source, const softmax_settings& settings, const auto& made) {
        const select_best<S> best{made.expert, made.gate};
        if (router.no_token_left_behind > 0) {
            route_softmax_in_rounds(policy, source, mode, made, settings, scratch);
        } else if (mode.is_training && router.sample_temperature > 0) {
            route_softmax(policy, source, mode, made, settings, scratch,
                          select_sampled<S>{best, made.experts, router.sample_temperature, mode.noise});
        } else {
            route_softmax(policy, source, mode, made, settings, scratch, best);
        }
    };
    route_by_rows(policy, router, 1, scores, mode, plan, scratch, choose);
}

}  // namespace SWITCHYARD_TARGET
}  // namespace switchyard
