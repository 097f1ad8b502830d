// Switch routing: every token goes to one expert. Fedus, Zoph, Shazeer, "Switch Transformers: Scaling to Trillion
// Parameter Models with Simple and Efficient Sparsity", arXiv 2101.03961.
//
//   s = x' W              x' a copy of x, jittered in training
//   p_t = softmax(s_t)
//   expert_t = argmax_e s_te, or argmax_e (s_te + temperature * Gumbel) when sampling
//   gate_t = p_t,expert   not renormalised: a weight of 1 would have no gradient
//   slot_t = earlier tokens of the same expert; kept while slot < C = floor(T F / E), at least 1
//   loss = weight E sum_e f_e P_e, f_e = share of first choices before capacity, P_e = mean_t p_te   (+ z-loss)
//
// No-token-left-behind (k_max > 1): a token whose expert is full tries its second choice, then its third, ...; its gate
// is then that choice's p. f still counts first choices.
//
// Backward: dL/dp_te = [e = expert_t and kept] d_gate_t + weight E f_e / N; then softmax's Jacobian; plus z-loss on s;
// times the logit jitter.
//
// Steps of a forward pass: noise, softmax, choices, slots, loads, losses: one call each below.
#pragma once

#include <switchyard/reference/choices.hpp>
#include <switchyard/reference/losses.hpp>
#include <switchyard/reference/projection.hpp>

namespace switchyard::reference::inline SWITCHYARD_TARGET {

struct switch_router {
    capacity_rule capacity{.factor = 1.25, .minimum = 1};
    exploration noise = {};
    drop_order order = drop_order::position;
    index_t no_token_left_behind = 1;  ///< k_max: how many choices a token may try
    double balance_weight = 0.01;
    double z_weight = 0;
};

/// Routes by scores s[T, E]. `noise` is given in training only.
inline plan route_scores(const switch_router& router, const matrix& scores, const mask_list& mask = {},
                         const maybe_noise& noise = {}) {
    const index_t rows = scores.rows;
    const index_t experts = scores.columns;
    require_valid(router.noise);
    plan made{.experts_count = experts, .capacity = capacity_for(router.capacity, rows, experts, 1)};
    require_scores(scores, mask, made.capacity == unlimited ? unroutable::refused : unroutable::dropped);
    require(router.no_token_left_behind >= 1 && router.no_token_left_behind <= experts,
            "no_token_left_behind = ", router.no_token_left_behind, " must lie in 1..E = ", experts);

    // Scores to probabilities and ranked choices.
    const matrix logits = noisy_scores(router.noise, scores, noise);
    const matrix p = softmax_rows(logits, mask);
    const integers ranked =
        top_k_experts(selection_scores(router.noise, logits, noise), router.no_token_left_behind, mask);
    const integers wanted = allowed_choices(ranked, logits);

    // Choices to slots.
    auto top_gates = filled(rows, 0.0);
    for (index_t t = 0; t < rows; ++t) top_gates[t] = is_token(mask, t) ? p(t, ranked(t, 0)) : 0;
    const placements placed =
        leave_no_token_behind(wanted, experts, made.capacity, token_order(router.order, top_gates));

    // The plan: the choice that found a place, or the first one, dropped.
    made.experts = integers(rows, 1, -1);
    made.slots = integers(rows, 1, -1);
    made.gates = matrix(rows, 1);
    for (index_t t = 0; t < rows; ++t) {
        if (!is_token(mask, t)) continue;
        const bool found = placed.choice[t] >= 0;
        made.experts(t, 0) = found ? ranked(t, placed.choice[t]) : ranked(t, 0);
        made.slots(t, 0) = placed.slot[t];
        made.gates(t, 0) = p(t, made.experts(t, 0));
    }
    made.load_before = count_choices(wanted, experts, balance_count::first);
    index_kept_choices(made);

    const index_t tokens = count_tokens(mask, rows);
    made.load_balancing_loss = load_balancing_loss(router.balance_weight, choice_shares(made.load_before, tokens),
                                                   mean_probabilities(p, tokens));
    made.z_loss = z_loss(router.z_weight, logits, mask);
    return made;
}

/// The gradient of the scores from that of the gates, with the gradients of both losses added.
inline matrix route_scores_backward(const switch_router& router, const plan& made, const matrix& scores,
                                    const matrix& d_gates, const mask_list& mask = {}, const maybe_noise& noise = {}) {
    require_plan_of(made, scores);
    const matrix logits = noisy_scores(router.noise, scores, noise);
    const matrix p = softmax_rows(logits, mask);
    const matrix d_kept = kept_gradients(made, d_gates);

    const auto shares = choice_shares(made.load_before, count_tokens(mask, scores.rows));
    matrix d_p = load_balancing_loss_backward(router.balance_weight, shares, mask, scores.rows);
    for (index_t t = 0; t < scores.rows; ++t) {
        if (made.keeps(t, 0)) d_p(t, made.experts(t, 0)) += d_kept(t, 0);
    }
    matrix d_logits = softmax_rows_backward(p, d_p);
    const matrix d_z = z_loss_backward(router.z_weight, logits, mask);
    for (index_t i = 0; i < d_logits.values.length(); ++i) d_logits.values[i] += d_z.values[i];
    return noisy_scores_backward(router.noise, d_logits, noise);
}

/// Routes tokens x[T, D] by the router's weights w[D, E].
inline plan route(const switch_router& router, const matrix& x, const matrix& w, const mask_list& mask = {},
                  const maybe_noise& noise = {}) {
    return reference::route_scores(router, reference::project(router.noise, x, w, mask, noise), mask, noise);
}

/// The gradients of x and w from that of the gates, losses included.
inline projection_gradients route_backward(const switch_router& router, const plan& made, const matrix& x,
                                           const matrix& w, const matrix& d_gates, const mask_list& mask = {},
                                           const maybe_noise& noise = {}) {
    const matrix scores = reference::project(router.noise, x, w, mask, noise);
    const matrix d_scores = reference::route_scores_backward(router, made, scores, d_gates, mask, noise);
    return reference::project_backward(router.noise, x, w, mask, noise, d_scores);
}

}  // namespace switchyard::reference::inline SWITCHYARD_TARGET
