// Top-k routing: every token goes to its k best experts. Shazeer et al., "Outrageously Large Neural Networks", arXiv
// 1701.06538 (softmax after); Lepikhin et al., "GShard", arXiv 2006.16668 (softmax before, renormalised).
//
//   choices e_1 .. e_k   the k experts of highest score, by falling score
//   gates, before        g_c = p_{e_c}, p = softmax over all experts; renormalised: g_c = p_{e_c} / sum_j p_{e_j}
//   gates, after         g = softmax(s_{e_1}, .., s_{e_k})
//   slots                choice-major: all first choices before any second; kept while slot < C
//   loss                 weight E sum_e f_e P_e, f from first choices / N or all choices / (k N), before capacity
//
// Gates are normalised over all k choices, dropped or not, and a dropped choice's gate is then 0 in the plan. With k =
// 1 `after` and `renormalize` make every gate 1, without gradient.
//
// Backward: with dg = 0 at dropped choices,
//   before               dp_{e_c} = dg_c;  renormalised: dp_{e_c} = (dg_c - sum_j g_j dg_j) / sum_j p_{e_j}
//   after                ds_{e_c} = g_c (dg_c - sum_j g_j dg_j)
// plus the losses', and through softmax's Jacobian.
#pragma once

#include <switchyard/reference/choices.hpp>
#include <switchyard/reference/losses.hpp>
#include <switchyard/reference/projection.hpp>

namespace switchyard::reference::inline SWITCHYARD_TARGET {

enum class softmax_place { before, after };

struct top_k_router {
    index_t k = 2;
    softmax_place softmax = softmax_place::before;
    bool renormalize = false;  ///< with softmax before; after, the gates sum to 1 anyway
    balance_count count = balance_count::first;
    capacity_rule capacity = {};  ///< unlimited: nothing is dropped
    exploration noise = {};
    drop_order order = drop_order::position;
    double balance_weight = 0.01;
    double z_weight = 0;
};

/// The numbers of row t at the chosen experts.
inline list<double> at_choices(const matrix& numbers, const integers& experts, index_t t) {
    auto chosen = filled(experts.columns, 0.0);
    for (index_t c = 0; c < experts.columns; ++c) chosen[c] = numbers(t, experts(t, c));
    return chosen;
}

inline double sum_of(const list<double>& numbers) {
    double sum = 0;
    for (const double number : numbers) sum += number;
    return sum;
}

/// The gates of all k choices of a token, as if none were dropped.
inline list<double> gates_of_token(const top_k_router& router, const matrix& logits, const matrix& p,
                                   const integers& experts, index_t t) {
    if (router.softmax == softmax_place::after) return reference::softmax(at_choices(logits, experts, t));
    auto gates = at_choices(p, experts, t);
    const double sum = sum_of(gates);
    if (router.renormalize && sum > 0) {  // 0: every expert is forbidden
        for (double& gate : gates) gate /= sum;
    }
    return gates;
}

/// How many choices f divides by: N first ones, or k N.
inline index_t counted_choices(const top_k_router& router, index_t tokens) {
    return router.count == balance_count::first ? tokens : router.k * tokens;
}

/// Routes by scores s[T, E]. `noise` is given in training only.
inline plan route_scores(const top_k_router& router, const matrix& scores, const mask_list& mask = {},
                         const maybe_noise& noise = {}) {
    const index_t rows = scores.rows;
    const index_t experts = scores.columns;
    require_valid(router.noise);
    plan made{.experts_count = experts, .capacity = capacity_for(router.capacity, rows, experts, router.k)};
    require_scores(scores, mask, made.capacity == unlimited ? unroutable::refused : unroutable::dropped);

    // Scores to choices and gates.
    const matrix logits = noisy_scores(router.noise, scores, noise);
    const matrix p = softmax_rows(logits, mask);
    made.experts = top_k_experts(selection_scores(router.noise, logits, noise), router.k, mask);
    made.gates = matrix(rows, router.k);
    auto top_gates = filled(rows, 0.0);
    for (index_t t = 0; t < rows; ++t) {
        if (!is_token(mask, t)) continue;
        const auto gates = gates_of_token(router, logits, p, made.experts, t);
        for (index_t c = 0; c < router.k; ++c) made.gates(t, c) = gates[c];
        top_gates[t] = gates[0];
    }

    // Choices to slots.
    const integers wanted = allowed_choices(made.experts, logits);
    made.slots = take_slots(wanted, experts, made.capacity, token_order(router.order, top_gates));
    made.load_before = count_experts(wanted, experts);
    index_kept_choices(made);

    const index_t tokens = count_tokens(mask, rows);
    const auto shares = choice_shares(count_choices(wanted, experts, router.count), counted_choices(router, tokens));
    made.load_balancing_loss = load_balancing_loss(router.balance_weight, shares, mean_probabilities(p, tokens));
    made.z_loss = z_loss(router.z_weight, logits, mask);
    return made;
}

/// The gradient of the scores from that of the gates, with the gradients of both losses added.
inline matrix route_scores_backward(const top_k_router& router, const plan& made, const matrix& scores,
                                    const matrix& d_gates, const mask_list& mask = {}, const maybe_noise& noise = {}) {
    require_plan_of(made, scores);
    const index_t tokens = count_tokens(mask, scores.rows);
    const matrix logits = noisy_scores(router.noise, scores, noise);
    const matrix p = softmax_rows(logits, mask);
    const matrix d_kept = kept_gradients(made, d_gates);
    const integers wanted = allowed_choices(made.experts, logits);

    const auto shares =
        choice_shares(count_choices(wanted, scores.columns, router.count), counted_choices(router, tokens));
    matrix d_p = load_balancing_loss_backward(router.balance_weight, shares, mask, scores.rows);
    matrix d_logits = z_loss_backward(router.z_weight, logits, mask);

    for (index_t t = 0; t < scores.rows; ++t) {
        if (!is_token(mask, t)) continue;
        const auto gates = gates_of_token(router, logits, p, made.experts, t);
        auto d_token = row_of(d_kept, t);
        if (router.softmax == softmax_place::after) {
            d_token = softmax_backward(gates, d_token);
            for (index_t c = 0; c < router.k; ++c) d_logits(t, made.experts(t, c)) += d_token[c];
            continue;
        }
        const double sum = sum_of(at_choices(p, made.experts, t));
        if (router.renormalize && sum > 0) {
            double weighted_sum = 0;
            for (index_t c = 0; c < router.k; ++c) weighted_sum += gates[c] * d_token[c];
            for (double& d_gate : d_token) d_gate = (d_gate - weighted_sum) / sum;
        }
        for (index_t c = 0; c < router.k; ++c) d_p(t, made.experts(t, c)) += d_token[c];
    }

    const matrix d_softmax = softmax_rows_backward(p, d_p);
    for (index_t i = 0; i < d_logits.values.length(); ++i) d_logits.values[i] += d_softmax.values[i];
    return noisy_scores_backward(router.noise, d_logits, noise);
}

/// Routes tokens x[T, D] by the router's weights w[D, E].
inline plan route(const top_k_router& router, const matrix& x, const matrix& w, const mask_list& mask = {},
                  const maybe_noise& noise = {}) {
    return reference::route_scores(router, reference::project(router.noise, x, w, mask, noise), mask, noise);
}

/// The gradients of x and w from that of the gates, losses included.
inline projection_gradients route_backward(const top_k_router& router, const plan& made, const matrix& x,
                                           const matrix& w, const matrix& d_gates, const mask_list& mask = {},
                                           const maybe_noise& noise = {}) {
    const matrix scores = reference::project(router.noise, x, w, mask, noise);
    const matrix d_scores = reference::route_scores_backward(router, made, scores, d_gates, mask, noise);
    return reference::project_backward(router.noise, x, w, mask, noise, d_scores);
}

}  // namespace switchyard::reference::inline SWITCHYARD_TARGET
