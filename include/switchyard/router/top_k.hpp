// The top-k router: each token goes to its k best experts.
//
//   s = scores[T, E]; experts = the k largest scores, best first
//   softmax before: gate_c = softmax(s)[expert_c]; with renormalize, divided by their sum over the k choices
//   softmax after:  gate = softmax over the k chosen scores (the same numbers as before + renormalize)
//
// Slots are choice-major: all first choices before any second. Without a capacity nothing is dropped. The balance loss
// uses the full softmax and counts first choices, or all k divided by k. Renormalised gates are not renormalised again
// over what capacity keeps.
//
// k = 1 with normalised gates makes every gate 1 and gives the router no gradient: an error in training.
// Backward, d_gates[T, k] and the losses -> d_scores[T, E], is `route_scores_backward` of router/softmax_routing.hpp.
// O(T (E + k)) time. Ties go to the lower expert. CPU policies throw `error`. Nothing is allocated after the first step
// of a shape, and nothing synchronises.
// Shazeer et al. 2017, arXiv 1701.06538; Jiang et al. 2024, "Mixtral of Experts", arXiv 2401.04088 (softmax after);
// Qwen and DeepSeek-V2 take the softmax before; Megatron-Core has both.
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

/// Which scores the softmax runs over.
enum class softmax_order {
    before,  ///< over all experts, then the k largest
    after,   ///< over the k largest scores
};

struct top_k_router {
    index_t k = 2;  ///< 1..E
    softmax_order softmax = softmax_order::before;
    bool renormalize = false;  ///< softmax before: divide by the sum over the k choices

    capacity_rule capacity{};            ///< in training; none by default
    capacity_rule inference_capacity{};  ///< otherwise
    drop_order order = drop_order::position;

    float input_jitter = 0;   ///< epsilon in [0, 1). Needs tokens
    float input_dropout = 0;  ///< rate in [0, 1). Needs tokens
    float logit_jitter = 0;   ///< epsilon in [0, 1)

    double balance_weight = 1e-2;
    balance_count balance = balance_count::first;
    double z_weight = 0;
    bad_scores bad = bad_scores::error;
};

template <>
inline constexpr bool is_library_router<top_k_router> = true;

inline namespace SWITCHYARD_TARGET {

constexpr bool normalizes(const top_k_router& r) { return r.renormalize || r.softmax == softmax_order::after; }

constexpr std::uint64_t fingerprint_of(const top_k_router& r) {
    return fingerprint('k', r.k, normalizes(r), r.logit_jitter, r.input_jitter, r.input_dropout, r.balance_weight,
                       static_cast<int>(r.balance), r.z_weight);
}

/// Fails, with a message, where a setting is out of range.
inline void require_settings(const top_k_router& r, index_t experts, const run_mode& mode) {
    require(r.k >= 1 && r.k <= experts, "k = ", r.k, " must lie in 1..E = ", experts);
    require_noise(r, mode);
    require_weights({{"balance_weight", r.balance_weight}, {"z_weight", r.z_weight}});
    require(!(mode.is_training && r.k == 1 && normalizes(r)),
            "k = 1 with normalised gates makes every gate 1 and leaves the router no gradient: use softmax before, "
            "without renormalize");
}

inline softmax_settings softmax_settings_of(const top_k_router& r, index_t capacity) {
    return {.slots = {.order = r.order, .balance = r.balance},
            .balance_weight = r.balance_weight,
            .z_weight = r.z_weight,
            .bad = r.bad,
            .may_drop = capacity != unlimited,
            .gates = {.sum = normalizes(r) ? gate_sum::add : gate_sum::none}};
}

/// scores[T, E] -> plan with k choices. The plan's arrays must not overlap the scores.
template <class Policy, class Scores, class Plan, class Workspace>
void route_scores(const Policy& policy, const top_k_router& router, const Scores& scores, const run_mode& mode,
                  Plan& plan, Workspace& scratch) {
    using S = typename Plan::scalar;
    const auto choose = [&](const auto& source, const softmax_settings& settings, const auto& made) {
        if (router.k == 1 && !normalizes(router)) {  // Switch: the argmax that its row pass finds anyway
            route_softmax(policy, source, mode, made, settings, scratch, select_best<S>{made.expert, made.gate});
        } else {
            route_softmax(policy, source, mode, made, settings, scratch,
                          select_list<S>{made.expert, made.gate, made.experts, router.k, {settings.gates}});
        }
    };
    route_by_rows(policy, router, router.k, scores, mode, plan, scratch, choose);
}

}  // namespace SWITCHYARD_TARGET
}  // namespace switchyard
