// GShard's routing: two experts per token, an optional second. Lepikhin et al., arXiv 2006.16668; NLLB
// Team, arXiv 2207.04672.
//
//   p = softmax(s);  a = argmax s;  b = argmax of s without a, under `sampling` of s + Gumbel without a
//   D(x) = x + epsilon, or max(x, epsilon)
//   w = p_b / D(p_a + p_b), or p_b
//   b is kept      all | none | random: u threshold < w | threshold: w > threshold | sampling: always
//   slots          all first choices before any kept second, by position or by falling p_a
//   gates          none: p | before drops: p / D(p_a + p_b) | after drops: p / D(sum of p over kept choices)
//                  first before drops: p_a / D(p_a + p_b), p_b
//
// A second choice that is not kept has slot -1 and gate 0, and is in no load; before drops, its p_b is in D all the
// same. Random numbers are given: u[T] and Gumbel numbers [T, E], or drawn from counters.
//
// Backward: with dg = 0 at choices without a slot and D' = 1, or 0 where epsilon is the larger,
//   before         dp_c = (dg_c - D' sum_j dg_j p_j / D) / D over both choices
//   after          the same over kept choices alone
//   first before   dp_a = (dg_a - D' dg_a p_a / D) / D,  dp_b = dg_b - D' dg_a p_a / D^2
#pragma once

#include <switchyard/reference/choices.hpp>
#include <switchyard/reference/losses.hpp>
#include <switchyard/reference/noise.hpp>

#include <cmath>

namespace switchyard::reference::inline SWITCHYARD_TARGET {

enum class second_choice { all, none, random, threshold, sampling };
enum class second_weight { share, probability };
enum class pair_sum { none, before_drops, after_drops, first_before_drops };

struct gshard_router {
    second_choice second = second_choice::random;
    double second_threshold = 0.5;
    second_weight compared = second_weight::share;
    pair_sum normalize = pair_sum::before_drops;
    bool clamps = false;  ///< max(sum, epsilon), not sum + epsilon
    double epsilon = 1e-9;
    capacity_rule capacity = {};
    exploration noise = {};
    drop_order order = drop_order::position;
    balance_count count = balance_count::first;
    double balance_weight = 0.01;
    double z_weight = 0;
};

/// The random numbers of second choices.
struct second_draws {
    list<double> uniform;  ///< [T], of `random`
    matrix gumbel;         ///< [T, E], of `sampling`
};

/// From counters.
inline second_draws draw_seconds(noise_key key, index_t tokens, index_t experts) {
    second_draws drawn{filled(tokens, 0.0), matrix(tokens, experts)};
    for (index_t t = 0; t < tokens; ++t) {
        key.purpose = 7;
        drawn.uniform[t] = static_cast<double>(uniform_at(key, t, 0));
        for (index_t e = 0; e < experts; ++e) {
            drawn.gumbel(t, e) = gumbel(uniform_for(key, noise_purpose::gumbel_sample, t, e));
        }
    }
    return drawn;
}

/// D, and its slope.
inline double pair_divisor(const gshard_router& router, double sum) {
    return router.clamps ? (sum > router.epsilon ? sum : router.epsilon) : sum + router.epsilon;
}
inline double pair_slope(const gshard_router& router, double sum) {
    return router.clamps && sum < router.epsilon ? 0 : 1;
}

/// The two experts of every token; -1 in padding.
inline integers pair_of_experts(const gshard_router& router, const matrix& logits, const mask_list& mask,
                                const second_draws& drawn) {
    integers experts = top_k_experts(logits, 2, mask);
    if (router.second != second_choice::sampling) return experts;
    for (index_t t = 0; t < logits.rows; ++t) {
        if (!is_token(mask, t)) continue;
        index_t best = -1;
        for (index_t e = 0; e < logits.columns; ++e) {
            if (e == experts(t, 0) || logits(t, e) == -infinity) continue;
            if (best < 0 || logits(t, e) + drawn.gumbel(t, e) > logits(t, best) + drawn.gumbel(t, best)) best = e;
        }
        if (best >= 0) experts(t, 1) = best;
    }
    return experts;
}

/// Whether the policy keeps a second choice.
inline bool keeps_second(const gshard_router& router, double first, double second, double uniform) {
    const double divisor = pair_divisor(router, first + second);
    const double weight = router.compared == second_weight::share ? (divisor > 0 ? second / divisor : 0) : second;
    if (router.second == second_choice::random) return uniform * router.second_threshold < weight;
    if (router.second == second_choice::threshold) return weight > router.second_threshold;
    return router.second != second_choice::none;
}

/// Routes by scores s[T, E]. `drawn` is what the policies draw; `noise` that of the logits, in training only.
inline plan route_scores(const gshard_router& router, const matrix& scores, const mask_list& mask,
                         const second_draws& drawn, const maybe_noise& noise) {
    const index_t rows = scores.rows;
    const index_t experts = scores.columns;
    require(experts >= 2, "E = ", experts, ": a second choice needs at least 2");
    plan made{.experts_count = experts, .capacity = capacity_for(router.capacity, rows, experts, 2)};
    require_scores(scores, mask, made.capacity == unlimited ? unroutable::refused : unroutable::dropped);
    const matrix logits = noisy_scores(router.noise, scores, noise);
    const matrix p = softmax_rows(logits, mask);
    made.experts = pair_of_experts(router, logits, mask, drawn);
    made.gates = matrix(rows, 2);
    integers wanted = allowed_choices(made.experts, logits);
    auto top = filled(rows, 0.0);
    for (index_t t = 0; t < rows; ++t) {
        if (!is_token(mask, t)) continue;
        for (index_t c = 0; c < 2; ++c) made.gates(t, c) = p(t, made.experts(t, c));
        top[t] = made.gates(t, 0);
        if (!keeps_second(router, made.gates(t, 0), made.gates(t, 1), drawn.uniform[t])) wanted(t, 1) = -1;
    }
    made.slots = take_slots(wanted, experts, made.capacity, token_order(router.order, top));
    made.load_before = count_experts(wanted, experts);
    for (index_t t = 0; t < rows && router.normalize != pair_sum::none; ++t) {
        const bool after = router.normalize == pair_sum::after_drops;
        double sum = 0;
        for (index_t c = 0; c < 2; ++c) sum += !after || made.keeps(t, c) ? made.gates(t, c) : 0;
        const double divisor = pair_divisor(router, sum);
        for (index_t c = 0; c < 2; ++c) {
            if (c == 1 && router.normalize == pair_sum::first_before_drops) continue;
            made.gates(t, c) = divisor > 0 ? made.gates(t, c) / divisor : 0;
        }
    }
    index_kept_choices(made);

    const index_t tokens = count_tokens(mask, rows);
    const index_t per_token = router.count == balance_count::first ? 1 : 2;
    const auto shares = choice_shares(count_choices(wanted, experts, router.count), per_token * tokens);
    made.load_balancing_loss = load_balancing_loss(router.balance_weight, shares, mean_probabilities(p, tokens));
    made.z_loss = z_loss(router.z_weight, logits, mask);
    return made;
}

/// In training: with the numbers of the counters.
inline plan route_scores(const gshard_router& router, const matrix& scores, const mask_list& mask = {},
                         const maybe_noise& noise = {}) {
    const auto drawn = noise ? draw_seconds(*noise, scores.rows, scores.columns)
                             : second_draws{filled(scores.rows, 0.0), matrix(scores.rows, scores.columns)};
    return route_scores(router, scores, mask, drawn, noise);
}

/// The gradient of the scores from that of the gates, with the gradients of both losses added.
inline matrix route_scores_backward(const gshard_router& router, const plan& made, const matrix& scores,
                                    const matrix& d_gates, const mask_list& mask = {}, const maybe_noise& noise = {}) {
    require_plan_of(made, scores);
    const index_t tokens = count_tokens(mask, scores.rows);
    const matrix logits = noisy_scores(router.noise, scores, noise);
    const matrix p = softmax_rows(logits, mask);
    const matrix d_kept = kept_gradients(made, d_gates);
    const index_t per_token = router.count == balance_count::first ? 1 : 2;
    // A token's choices over capacity count in the loss, those that a policy left out do not: the loads before tell the
    // two apart for all choices together, and first choices are never left out.
    const auto counts = router.count == balance_count::all
                            ? made.load_before
                            : count_choices(allowed_choices(made.experts, logits), scores.columns, router.count);
    matrix d_p =
        load_balancing_loss_backward(router.balance_weight, choice_shares(counts, per_token * tokens), mask, p.rows);
    matrix d_logits = z_loss_backward(router.z_weight, logits, mask);
    for (index_t t = 0; t < scores.rows; ++t) {
        if (!is_token(mask, t)) continue;
        double value[2];
        double d_value[2];
        double sum = 0;
        for (index_t c = 0; c < 2; ++c) {
            const bool counts_here = router.normalize != pair_sum::after_drops || made.keeps(t, c);
            value[c] = counts_here ? p(t, made.experts(t, c)) : 0;
            d_value[c] = d_kept(t, c);
            sum += value[c];
        }
        const double divisor = pair_divisor(router, sum);
        const double slope = pair_slope(router, sum);
        if (router.normalize == pair_sum::first_before_drops) {
            const double shared = slope * d_value[0] * value[0] / (divisor * divisor);
            d_value[0] = d_value[0] / divisor - shared;
            d_value[1] -= shared;
        } else if (router.normalize != pair_sum::none) {
            const double mean = divisor > 0 ? slope * (d_value[0] * value[0] + d_value[1] * value[1]) / divisor : 0;
            for (index_t c = 0; c < 2; ++c) {
                const bool counts_here = router.normalize != pair_sum::after_drops || made.keeps(t, c);
                d_value[c] = counts_here && divisor > 0 ? (d_value[c] - mean) / divisor : 0;
            }
        }
        for (index_t c = 0; c < 2; ++c) {
            if (logits(t, made.experts(t, c)) != -infinity) d_p(t, made.experts(t, c)) += d_value[c];
        }
    }
    const matrix d_softmax = softmax_rows_backward(p, d_p);
    for (index_t i = 0; i < d_logits.values.length(); ++i) d_logits.values[i] += d_softmax.values[i];
    return noisy_scores_backward(router.noise, d_logits, noise);
}

}  // namespace switchyard::reference::inline SWITCHYARD_TARGET
