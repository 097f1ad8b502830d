// Routing in one line, and what the reference says to it.
#pragma once

#include "support/compare.hpp"
#include "support/covers.hpp"

#include <switchyard/backend/policy.hpp>
#include <switchyard/core/workspace.hpp>

namespace switchyard_test {

/// The noise of every training run here.
inline constexpr sy::noise_key training_noise{.seed = 7, .stream = 1, .step = 2};

inline sy::training training_with(const ref::mask_list& mask = {}) {
    return {.seed = training_noise.seed,
            .stream = training_noise.stream,
            .step = training_noise.step,
            .mask = mask_of(mask)};
}

template <class S, class Router>
sy::plan<S> routed(const Router& router, const ref::matrix& scores, const sy::run_mode& mode = training_with()) {
    sy::plan<S> plan;
    sy::workspace scratch;
    route_scores(sy::seq, router, stored<S>(scores), mode, plan, scratch);
    return plan;
}

/// d_scores for the weights `d_gates` of the gates, and the losses.
template <class S, class Router>
ref::matrix routed_backward(const Router& router, const sy::plan<S>& plan, const ref::matrix& scores,
                            const ref::matrix& d_gates, const sy::backward_settings& settings = {}) {
    sy::workspace scratch;
    sy::matrix<S> d_scores(scores.rows, scores.columns);
    route_scores_backward(sy::seq, router, plan, stored<S>(scores), stored<S>(d_gates), d_scores, scratch, settings);
    return ref::matrix_from(sy::const_view(d_scores.view()));
}

/// What the reference makes of the same scores. By gate order two gates that are equal but for rounding would make
/// tokens change places: `gates_as` is the type whose gates the order is taken from, the library's own, from a run that
/// keeps everything.
template <class S, class Router>
ref::plan reference_plan(const Router& router, const ref::matrix& scores, const ref::mask_list& mask = {},
                         bool is_training = true) {
    const auto noise = is_training ? ref::maybe_noise(training_noise) : ref::maybe_noise();
    const auto same = reference_of(router, is_training);
    auto want = ref::route_scores(same, scores, mask, noise);
    if (router.order == sy::drop_order::position) return want;

    Router keeps_all = router;
    keeps_all.order = sy::drop_order::position;
    keeps_all.capacity = keeps_all.inference_capacity = {.number = scores.rows};
    auto mode = sy::run_mode(training_with(mask));
    if (!is_training) mode = sy::run_mode(sy::inference{.mask = mask_of(mask)});
    const auto all = routed<S>(keeps_all, scores, mode);
    auto all_gates = same;
    all_gates.order = ref::drop_order::position;
    all_gates.capacity = {.number = scores.rows};
    const auto kept_all = ref::route_scores(all_gates, scores, mask, noise);

    const ref::matrix logits = ref::noisy_scores(same.noise, scores, noise);
    auto top = ref::filled(scores.rows, 0.0);
    for (index_t t = 0; t < scores.rows; ++t) top[t] = static_cast<double>(all.gate()(t, 0));
    want.experts = kept_all.experts;
    want.gates = kept_all.gates;
    const auto placed = ref::choices_with_rows(ref::allowed_choices(kept_all.experts, logits), want.experts_count);
    want.slots =
        ref::take_slots(placed, want.experts_count, want.capacity, ref::token_order(ref::drop_order::gate, top));
    ref::index_kept_choices(want);
    for (index_t i = 0; i < want.experts.values.length(); ++i) {
        if (want.experts.values[i] >= want.experts_count) want.gates.values[i] = kept_all.gates.values[i];
    }
    return want;
}

/// Routes and compares with the reference.
template <class S, class Router>
std::string routing_mismatch(const Router& router, const ref::matrix& scores, const ref::mask_list& mask = {},
                             bool is_training = true) {
    auto mode = sy::run_mode(training_with(mask));
    if (!is_training) mode = sy::run_mode(sy::inference{.mask = mask_of(mask)});
    return mismatch(routed<S>(router, scores, mode), reference_plan<S>(router, scores, mask, is_training));
}

/// The library's gradients against the reference's, for the same plan.
template <class S, class Router>
std::string backward_mismatch(const Router& router, const ref::matrix& scores, const ref::matrix& d_gates,
                              const ref::mask_list& mask = {}) {
    const auto plan = routed<S>(router, scores, training_with(mask));
    const auto want = ref::route_scores_backward(reference_of(router, true), reference_plan<S>(router, scores, mask),
                                                 scores, d_gates, mask, training_noise);
    // Terms of size up to the largest weight times a gate cancel.
    double scale = 1e-3;
    for (const double weight : d_gates.values) scale = std::max(scale, std::abs(weight));
    return table_mismatch(routed_backward(router, plan, scores, d_gates), want, tolerance<S>::gradient, scale);
}

/// Whether the reference's choice by perturbed scores is so near a tie that float may choose otherwise.
inline bool is_near_tie(const ref::matrix& perturbed, index_t token, double gap) {
    const auto row = ref::row_of(perturbed, token);
    const auto ranked = ref::ranked_experts(row);
    return ranked.length() > 1 && row[ranked[0]] - row[ranked[1]] <= gap * (1 + std::abs(row[ranked[0]]));
}

}  // namespace switchyard_test
