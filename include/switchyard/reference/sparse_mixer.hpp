// SparseMixer's routing: two experts drawn in turn. Liu, Gao, Chen, arXiv 2310.00811; Liu et al., "GRIN", arXiv
// 2409.12136; PhiMoE.
//
//   for turn 1, 2, over the experts that are not drawn yet:
//     m = max s;  A = experts with (m - s_e) / max(|s_e|, m) <= 2 epsilon;  q = softmax over A of s
//     expert = argmax over A of s + Gumbel; at inference the argmax of s
//     gate = q_expert, times off_peak where the draw is not the argmax and u <= 3/4 (training)
//
// Backward: d s_e += d_gate q_expert ([e = expert] - q_e) over A, without off_peak; plus the losses, which are of the
// softmax over all experts.
#pragma once

#include <switchyard/reference/choices.hpp>
#include <switchyard/reference/losses.hpp>
#include <switchyard/reference/noise.hpp>

#include <algorithm>
#include <cmath>
#include <optional>

namespace switchyard::reference::inline SWITCHYARD_TARGET {

struct sparse_mixer_router {
    double epsilon = 0.01;
    double off_peak = 1. / 3;
    capacity_rule capacity = {};
    exploration noise = {};
    drop_order order = drop_order::position;
    balance_count count = balance_count::first;
    double balance_weight = 0;
    double z_weight = 0;
};

/// The random numbers of both turns, a matrix for each.
struct mixer_draws {
    list<matrix> gumbel;   ///< [T, E]
    list<matrix> uniform;  ///< [T, 1]
};

/// From counters.
inline mixer_draws draw_mixer(noise_key key, index_t tokens, index_t experts) {
    mixer_draws drawn{filled(2, matrix()), filled(2, matrix())};
    for (index_t turn = 0; turn < 2; ++turn) {
        drawn.gumbel[turn] = matrix(tokens, experts);
        drawn.uniform[turn] = matrix(tokens, 1);
        for (index_t t = 0; t < tokens; ++t) {
            key.purpose = 9;
            for (index_t e = 0; e < experts; ++e) {
                drawn.gumbel[turn](t, e) = gumbel(uniform_at(key, t, turn * ((experts + 3) / 4 * 4) + e));
            }
            key.purpose = 10;
            drawn.uniform[turn](t, 0) = static_cast<double>(uniform_at(key, t, turn));
        }
    }
    return drawn;
}

/// q of one turn, 0 outside A; `taken` is -1 in the first. All 0: no expert is left.
inline list<double> mixer_shares(const sparse_mixer_router& router, const list<double>& scores, index_t taken) {
    auto left = scores;
    if (taken >= 0) left[taken] = -infinity;
    const double highest = maximum(left);
    if (highest == -infinity) return filled(scores.length(), 0.0);
    for (index_t e = 0; e < left.length(); ++e) {
        const double distance = highest - left[e];
        const double size = std::max(std::abs(left[e]), highest);
        if (left[e] != -infinity && distance / size > 2 * router.epsilon) left[e] = -infinity;
    }
    return reference::softmax(left);
}

/// Routes by scores s[T, E]. Without `drawn` as at inference.
inline plan route_scores(const sparse_mixer_router& router, const matrix& scores, const mask_list& mask,
                         const std::optional<mixer_draws>& drawn, const maybe_noise& noise) {
    const index_t rows = scores.rows;
    const index_t experts = scores.columns;
    require(experts >= 2, "E = ", experts, ": two draws need at least 2");
    plan made{.experts_count = experts, .capacity = capacity_for(router.capacity, rows, experts, 2)};
    require_scores(scores, mask, made.capacity == unlimited ? unroutable::refused : unroutable::dropped);
    const matrix logits = noisy_scores(router.noise, scores, noise);
    made.experts = integers(rows, 2, -1);
    made.gates = matrix(rows, 2);
    auto top = filled(rows, 0.0);
    for (index_t t = 0; t < rows; ++t) {
        if (!is_token(mask, t)) continue;
        index_t taken = -1;
        for (index_t turn = 0; turn < 2; ++turn) {
            const auto shares = mixer_shares(router, row_of(logits, t), taken);
            index_t peak = -1;
            index_t chosen = -1;
            double best = -infinity;
            for (index_t e = 0; e < experts; ++e) {
                if (shares[e] == 0) continue;
                if (peak < 0 || logits(t, e) > logits(t, peak)) peak = e;
                const double perturbed = logits(t, e) + (drawn ? drawn->gumbel[turn](t, e) : 0);
                if (chosen < 0 || perturbed > best) {
                    chosen = e;
                    best = perturbed;
                }
            }
            if (chosen < 0) {
                made.experts(t, turn) = taken == 0 || (taken < 0 && turn == 1) ? 1 : 0;
                continue;
            }
            const bool is_whole = !drawn || chosen == peak || drawn->uniform[turn](t, 0) > 0.75;
            made.experts(t, turn) = chosen;
            made.gates(t, turn) = shares[chosen] * (is_whole ? 1 : router.off_peak);
            taken = chosen;
        }
        top[t] = made.gates(t, 0);
    }
    const integers wanted = allowed_choices(made.experts, logits);
    made.slots = take_slots(wanted, experts, made.capacity, token_order(router.order, top));
    made.load_before = count_experts(wanted, experts);
    index_kept_choices(made);

    const index_t tokens = count_tokens(mask, rows);
    const index_t per_token = router.count == balance_count::first ? 1 : 2;
    const auto shares = choice_shares(count_choices(wanted, experts, router.count), per_token * tokens);
    const matrix p = softmax_rows(logits, mask);
    made.load_balancing_loss = load_balancing_loss(router.balance_weight, shares, mean_probabilities(p, tokens));
    made.z_loss = z_loss(router.z_weight, logits, mask);
    return made;
}

/// In training, with the numbers of the counters, or at inference.
inline plan route_scores(const sparse_mixer_router& router, const matrix& scores, const mask_list& mask = {},
                         const maybe_noise& noise = {}) {
    std::optional<mixer_draws> drawn;
    if (noise) drawn = draw_mixer(*noise, scores.rows, scores.columns);
    return route_scores(router, scores, mask, drawn, noise);
}

/// The gradient of the scores from that of the gates, with the gradients of both losses added.
inline matrix route_scores_backward(const sparse_mixer_router& router, const plan& made, const matrix& scores,
                                    const matrix& d_gates, const mask_list& mask = {}, const maybe_noise& noise = {}) {
    require_plan_of(made, scores);
    const index_t tokens = count_tokens(mask, scores.rows);
    const matrix logits = noisy_scores(router.noise, scores, noise);
    const matrix p = softmax_rows(logits, mask);
    const matrix d_kept = kept_gradients(made, d_gates);
    const integers wanted = allowed_choices(made.experts, logits);
    const index_t per_token = router.count == balance_count::first ? 1 : 2;
    const auto shares = choice_shares(count_choices(wanted, scores.columns, router.count), per_token * tokens);
    const matrix d_balance =
        softmax_rows_backward(p, load_balancing_loss_backward(router.balance_weight, shares, mask, scores.rows));
    matrix d_logits = z_loss_backward(router.z_weight, logits, mask);
    for (index_t i = 0; i < d_logits.values.length(); ++i) d_logits.values[i] += d_balance.values[i];
    for (index_t t = 0; t < scores.rows; ++t) {
        if (!is_token(mask, t)) continue;
        index_t taken = -1;
        for (index_t turn = 0; turn < 2 && wanted(t, turn) >= 0; ++turn) {
            const auto q = mixer_shares(router, row_of(logits, t), taken);
            taken = wanted(t, turn);
            for (index_t e = 0; e < scores.columns; ++e) {
                d_logits(t, e) += d_kept(t, turn) * q[taken] * ((e == taken ? 1 : 0) - q[e]);
            }
        }
    }
    return noisy_scores_backward(router.noise, d_logits, noise);
}

}  // namespace switchyard::reference::inline SWITCHYARD_TARGET
