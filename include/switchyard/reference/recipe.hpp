// A router made of named parts: score, key, groups, gate. With the right parts it is the router of most open models:
// DeepSeek-V3 (arXiv 2412.19437) and its relatives, DeepSeek-V4, gpt-oss, Llama 4, Mixtral, Qwen3, ...
//
//   logits    l = (logit_multiplier s + logit_bias), c tanh(l / c) with a softcap c, times the logit jitter
//   scores    v = softmax(l) over all experts, or per expert sigmoid(l) or sqrt(log(1 + exp(l)))
//   keys      the logit itself; with a selection bias or groups: (v or l) + selection_bias
//   groups    E experts in `count` equal runs; the score of a group is the sum of its `summed` best keys. The `kept`
//             best groups stay, equal ones by rising index; keys outside become -inf, or 0
//   choices   the k experts of largest key, by falling key, equal keys by rising index; or, with one_each, the expert
//   of
//             largest key in each of k groups, in their order
//   gates     g_c = scale v_c / D, D = 1 | sum_c v_c + epsilon | max(sum_c v_c, epsilon) | (sum_c v_c^p)^(1/p);
//             times expert_scale of the expert
//   slots     choice-major: all first choices before any second; kept while slot < C
//   losses    of softmax(l), whatever the score is; f from first choices / N or all choices / (k N), before capacity
//
// The selection bias moves choices only: gates come from unbiased scores, and the bias has no gradient. It is trained
// by `updated_bias` (Wang et al., "Auxiliary-Loss-Free Load Balancing", arXiv 2408.15664).
//
// A score of -inf forbids its expert before any bias: its key is -inf, neither a bias nor a zero mask lifts it, and its
// gradient is 0. A forbidden expert is no part of its group's score. Where fewer than k experts have a key above -inf,
// the list is filled up with experts whose logit is -inf, in index order, never with those of other groups: kept groups
// have k experts, so that there are enough. Such a choice has v = 0, gate 0, no slot and no load. Where D is 0, all
// gates of the token are 0, without gradient.
//
// Sampling adds its Gumbel noise to the keys, before groups are compared.
//
// The last columns may be experts without rows: identity experts, which give back their input, then zero experts, which
// give nothing, then shared experts, which are not chosen but the last choices of every token. They are scored, chosen
// and weighed as all others, but that v = 0 for zero experts; then they have no slot, no load and no capacity, and keep
// their gate. f and the sum of the balance loss are those of experts with rows, P of the softmax of all columns.
//
// Backward: with dg = 0 at dropped choices, elsewhere times expert_scale, and D'_c = dD / dv_c (0, 1, or
// (v_c / D)^(p - 1); 1 where sum = epsilon in max(sum, epsilon)),
//   dv_{e_c} = scale (dg_c - D'_c sum_j dg_j v_j / D) / D
// then through the score; plus the losses through softmax's Jacobian and logsumexp; times the logit jitter; through
// the softcap, 1 - (l / c)^2; times the multiplier.
#pragma once

#include <switchyard/reference/choices.hpp>
#include <switchyard/reference/losses.hpp>
#include <switchyard/reference/projection.hpp>

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>

namespace switchyard::reference::inline SWITCHYARD_TARGET {

enum class score_function { softmax, sigmoid, sqrt_softplus };

/// What the selection bias is added to, and groups are compared by.
enum class key_source { score, logit };

/// What becomes of the keys outside the kept groups: -infinity, or 0.
enum class group_mask { forbidden, zero };

/// What gates are divided by: 1, sum + epsilon, max(sum, epsilon), or the p-norm.
enum class gate_sum { none, add, clamp, norm };

struct expert_groups {
    index_t count = 1;   ///< groups of E / count experts each, by index
    index_t kept = 1;    ///< how many of them a token may choose from; kept = count: no restriction
    index_t summed = 2;  ///< how many of its best keys make a group's score; 1: its largest key
    group_mask masked = group_mask::forbidden;
    bool one_each = false;  ///< one expert of every group, in their order, instead; k = count
};

struct recipe_router {
    index_t k = 1;
    score_function score = score_function::softmax;
    double logit_multiplier = 1;
    list<double> logit_bias = {};  ///< [E], or empty: none. Part of the logits: choices, gates and losses see it
    double softcap = 0;            ///< 0: none
    key_source key = key_source::score;
    list<double> selection_bias = {};  ///< [E], or empty: none. Choices see it, nothing else
    expert_groups groups = {};
    gate_sum normalize = gate_sum::none;
    double norm_power = 1;  ///< p of gate_sum::norm
    double epsilon = 0;
    double scale = 1;                ///< of all gates; applied once, normalised or not
    list<double> expert_scale = {};  ///< [E], or empty: none
    capacity_rule capacity = {};     ///< unlimited: nothing is dropped
    exploration noise = {};
    drop_order order = drop_order::position;
    double balance_weight = 0;
    balance_count count = balance_count::first;
    double z_weight = 0;
    index_t identity_experts = 0;  ///< without rows, behind those that have some
    index_t zero_experts = 0;      ///< and behind these
    index_t shared_experts = 0;    ///< and behind these: the last choices of every token, behind k of its own
};

/// How many of the columns have rows.
inline index_t experts_with_rows(const recipe_router& router, index_t columns) {
    return columns - router.identity_experts - router.zero_experts - router.shared_experts;
}

/// The choices that take rows; -1 elsewhere.
inline integers choices_with_rows(integers wanted, index_t experts) {
    for (index_t& e : wanted.values) {
        if (e >= experts) e = -1;
    }
    return wanted;
}

/// Whether an expert has a value: zero experts have none.
inline bool has_value(const recipe_router& router, index_t expert, index_t columns) {
    const index_t end = columns - router.shared_experts;
    return expert >= 0 && (expert < end - router.zero_experts || expert >= end);
}

/// The first columns of a matrix.
inline matrix narrowed(const matrix& wide, index_t columns) {
    matrix narrow(wide.rows, columns);
    for (index_t t = 0; t < wide.rows; ++t) {
        for (index_t e = 0; e < columns; ++e) narrow(t, e) = wide(t, e);
    }
    return narrow;
}

/// Choices with all shared experts behind a token's own; -1 in padding rows.
inline integers with_shared(const integers& own, index_t shared, index_t columns, const mask_list& mask) {
    integers all(own.rows, own.columns + shared, -1);
    for (index_t t = 0; t < own.rows; ++t) {
        if (!is_token(mask, t)) continue;
        for (index_t c = 0; c < own.columns; ++c) all(t, c) = own(t, c);
        for (index_t c = 0; c < shared; ++c) all(t, own.columns + c) = columns - shared + c;
    }
    return all;
}

/// The same with columns of zeros behind.
inline matrix widened(const matrix& narrow, index_t columns) {
    matrix wide(narrow.rows, columns);
    for (index_t t = 0; t < narrow.rows; ++t) {
        for (index_t e = 0; e < narrow.columns; ++e) wide(t, e) = narrow(t, e);
    }
    return wide;
}

/// Whether tokens are restricted to some of the groups.
inline bool has_groups(const recipe_router& router) {
    return !router.groups.one_each && router.groups.kept < router.groups.count;
}

inline void require_bias(const char* name, const list<double>& bias, index_t experts) {
    require(bias.empty() || bias.length() == experts, name, " has ", bias.length(), " numbers; there are ", experts,
            " experts");
    for (index_t e = 0; e < bias.length(); ++e) {
        require(std::isfinite(bias[e]), name, " of expert ", e, " = ", bias[e], " must be finite");
    }
}

inline void require_valid(const recipe_router& router, index_t experts) {
    const index_t choosable = experts - router.shared_experts;
    require(router.k >= 1 && router.k <= choosable, "k = ", router.k, " must lie in 1..E = ", choosable);
    require_bias("logit_bias", router.logit_bias, experts);
    require_bias("selection_bias", router.selection_bias, choosable);
    require_bias("expert_scale", router.expert_scale, experts);
    require(std::isfinite(router.logit_multiplier) && router.logit_multiplier > 0,
            "logit_multiplier = ", router.logit_multiplier, " must be finite and more than 0");
    require(std::isfinite(router.softcap) && router.softcap >= 0, "softcap = ", router.softcap,
            " must be finite, and more than 0, or 0 for none");
    require(std::isfinite(router.norm_power) && router.norm_power > 0, "norm_power = ", router.norm_power,
            " must be finite and more than 0");
    require(router.normalize != gate_sum::norm || router.epsilon == 0, "epsilon = ", router.epsilon,
            " must be 0 with a norm");
    const expert_groups& groups = router.groups;
    require(groups.count >= 1 && choosable % groups.count == 0, "groups.count = ", groups.count,
            " must divide E = ", choosable);
    require(groups.kept >= 1 && groups.kept <= groups.count, "groups.kept = ", groups.kept,
            " must lie in 1..groups.count = ", groups.count);
    require(groups.summed >= 1, "groups.summed = ", groups.summed, " must be at least 1");
    const bool has_all = groups.one_each || groups.masked == group_mask::zero;
    const index_t eligible = has_all ? choosable : groups.kept * (choosable / groups.count);
    require(!groups.one_each || router.k == groups.count, "k = ", router.k, " must be groups.count = ", groups.count);
    require(router.k <= eligible, "k = ", router.k, " is more than the ", eligible, " experts of the kept groups");
    require(std::isfinite(router.epsilon) && router.epsilon >= 0, "epsilon = ", router.epsilon,
            " must be finite and not negative");
    require(std::isfinite(router.scale), "scale = ", router.scale, " must be finite");
    require(router.identity_experts >= 0 && router.zero_experts >= 0, "experts without rows must not be negative");
    require(experts_with_rows(router, experts) >= 1, "at least one expert must have rows");
    require_valid(router.noise);
}

/// log(1 + exp(logit)); the exponent is never positive, so nothing overflows.
inline double softplus(double logit) {
    return logit > 0 ? logit + std::log1p(std::exp(-logit)) : std::log1p(std::exp(logit));
}

/// The scores of one token; 0 where a logit is -inf.
inline list<double> scores_of_token(score_function score, const list<double>& logits) {
    if (score == score_function::softmax) return reference::softmax(logits);
    auto values = filled(logits.length(), 0.0);
    for (index_t e = 0; e < logits.length(); ++e) {
        values[e] = score == score_function::sigmoid ? sigmoid(logits[e]) : std::sqrt(softplus(logits[e]));
    }
    return values;
}

/// The gradient of a token's logits from that of its scores `values`.
inline list<double> scores_of_token_backward(score_function score, const list<double>& logits,
                                             const list<double>& values, const list<double>& d_values) {
    if (score == score_function::softmax) return softmax_backward(values, d_values);
    auto d_logits = filled(logits.length(), 0.0);
    for (index_t e = 0; e < logits.length(); ++e) {
        if (values[e] == 0) continue;  // forbidden or underflown: the slope's limit is 0
        d_logits[e] = score == score_function::sigmoid ? sigmoid_backward(values[e], d_values[e])
                                                       : d_values[e] * sigmoid(logits[e]) / (2 * values[e]);
    }
    return d_logits;
}

/// The logits before their jitter: multiplied, biased, capped. -infinity stays what it is.
inline matrix quiet_logits(const recipe_router& router, const matrix& scores) {
    matrix logits = scores;
    for (index_t t = 0; t < scores.rows; ++t) {
        for (index_t e = 0; e < scores.columns; ++e) {
            double& logit = logits(t, e);
            logit *= router.logit_multiplier;
            if (!router.logit_bias.empty()) logit += router.logit_bias[e];
            if (router.softcap != 0 && logit != -infinity) logit = router.softcap * std::tanh(logit / router.softcap);
        }
    }
    return logits;
}

/// The logits.
inline matrix biased_logits(const recipe_router& router, const matrix& scores, const maybe_noise& noise) {
    return noisy_scores(router.noise, quiet_logits(router, scores), noise);
}

/// The gradient of the scores from that of the logits before their jitter.
inline matrix quiet_logits_backward(const recipe_router& router, const matrix& scores, const matrix& d_logits) {
    const matrix logits = quiet_logits(router, scores);
    matrix d_scores = d_logits;
    for (index_t i = 0; i < d_scores.values.length(); ++i) {
        const double part = router.softcap != 0 ? logits.values[i] / router.softcap : 0;
        d_scores.values[i] *= scores.values[i] == -infinity ? 0 : (1 - part * part) * router.logit_multiplier;
    }
    return d_scores;
}

/// The score of a group: the sum of its best keys in falling order, forbidden ones left out. -inf: all are forbidden.
inline double group_score(list<double> keys, index_t summed) {
    std::sort(keys.begin(), keys.end(), [](double a, double b) { return a > b; });
    if (keys[0] == -infinity) return -infinity;
    double sum = 0;
    for (index_t i = 0; i < keys.length() && i < summed && keys[i] != -infinity; ++i) sum += keys[i];
    return sum;
}

/// The keys of one token, masked outside its best groups.
inline list<double> keep_best_groups(const expert_groups& groups, list<double> keys) {
    const index_t size = keys.length() / groups.count;
    auto group_scores = filled(groups.count, 0.0);
    for (index_t g = 0; g < groups.count; ++g) {
        auto members = filled(size, 0.0);
        for (index_t i = 0; i < size; ++i) members[i] = keys[g * size + i];
        group_scores[g] = group_score(members, groups.summed);
    }
    const auto ranked_groups = ranked_experts(group_scores);  // equal ones by rising index
    for (index_t rank = groups.kept; rank < groups.count; ++rank) {
        for (index_t i = 0; i < size; ++i) {
            double& key = keys[ranked_groups[rank] * size + i];
            if (key != -infinity) key = groups.masked == group_mask::zero ? 0 : -infinity;
        }
    }
    return keys;
}

/// The keys that choices are ranked by, [T, E]; -inf where no choice may fall.
inline matrix choice_keys(const recipe_router& router, const matrix& logits, const mask_list& mask,
                          const maybe_noise& noise) {
    matrix keys = logits;
    const bool biased = !router.selection_bias.empty();
    if (!biased && !has_groups(router)) return selection_scores(router.noise, keys, noise);
    for (index_t t = 0; t < logits.rows; ++t) {
        if (!is_token(mask, t)) continue;
        const auto values = scores_of_token(router.score, row_of(logits, t));
        for (index_t e = 0; e < logits.columns; ++e) {
            if (logits(t, e) == -infinity) continue;  // forbidden before any bias
            if (router.key == key_source::score) keys(t, e) = values[e];
            if (biased) keys(t, e) += router.selection_bias[e];
            keys(t, e) = std::max(keys(t, e), -std::numeric_limits<double>::max());  // a sum that overflows is no ban
        }
    }
    keys = selection_scores(router.noise, keys, noise);
    if (!has_groups(router)) return keys;
    for (index_t t = 0; t < logits.rows; ++t) {
        if (!is_token(mask, t)) continue;
        const auto kept = keep_best_groups(router.groups, row_of(keys, t));
        for (index_t e = 0; e < logits.columns; ++e) keys(t, e) = kept[e];
    }
    return keys;
}

/// The k experts of largest key, [T, k], filled up with forbidden ones in index order; -1 in padding rows.
inline integers experts_of_largest_key(const matrix& keys, const matrix& logits, index_t k, const mask_list& mask) {
    integers experts = top_k_experts(keys, k, mask);
    for (index_t t = 0; t < keys.rows; ++t) {
        if (!is_token(mask, t)) continue;
        index_t forbidden = 0;
        for (index_t c = 0; c < k; ++c) {
            if (keys(t, experts(t, c)) != -infinity) continue;
            while (logits(t, forbidden) != -infinity) forbidden += 1;
            experts(t, c) = forbidden;
            forbidden += 1;
        }
    }
    return experts;
}

/// The expert of largest key of each of k groups; the first of a group where all are forbidden; -1 in padding rows.
inline integers best_of_each_group(const matrix& keys, index_t k, const mask_list& mask) {
    integers experts(keys.rows, k, -1);
    const index_t size = keys.columns / k;
    for (index_t t = 0; t < keys.rows; ++t) {
        for (index_t g = 0; is_token(mask, t) && g < k; ++g) {
            index_t best = g * size;
            for (index_t e = best; e < (g + 1) * size; ++e) best = keys(t, e) > keys(t, best) ? e : best;
            experts(t, g) = best;
        }
    }
    return experts;
}

/// The gates of a token's k choices as if none were dropped, and what backward needs of them.
struct recipe_gates {
    list<double> values;     ///< v_c, unbiased; 0 at forbidden choices
    double denominator = 1;  ///< D
    list<double> slopes;     ///< D'_c
    list<double> factors;    ///< the scale, times that of the expert
    list<double> gates;
};

/// `scores` are those of all experts, `wanted` has -1 at forbidden choices.
inline recipe_gates gates_of_token(const recipe_router& router, const list<double>& scores, const integers& wanted,
                                   index_t t) {
    const index_t k = wanted.columns;
    recipe_gates token{.values = filled(k, 0.0),
                       .slopes = filled(k, 0.0),
                       .factors = filled(k, router.scale),
                       .gates = filled(k, 0.0)};
    double sum = 0;
    double largest = 0;
    for (index_t c = 0; c < k; ++c) {
        if (has_value(router, wanted(t, c), scores.length())) {
            token.values[c] = scores[wanted(t, c)];
            if (!router.expert_scale.empty()) token.factors[c] *= router.expert_scale[wanted(t, c)];
        }
        sum += token.values[c];
        largest = std::max(largest, token.values[c]);
    }
    if (router.normalize == gate_sum::add) {
        token.denominator = sum + router.epsilon;
        token.slopes = filled(k, 1.0);
    } else if (router.normalize == gate_sum::clamp) {
        token.denominator = sum >= router.epsilon ? sum : router.epsilon;
        token.slopes = filled(k, sum >= router.epsilon ? 1.0 : 0.0);
    } else if (router.normalize == gate_sum::norm) {
        double powers = 0;
        for (const double value : token.values)
            powers += largest > 0 ? std::pow(value / largest, router.norm_power) : 0;
        token.denominator = largest * std::pow(powers, 1 / router.norm_power);
        for (index_t c = 0; c < k && token.denominator > 0; ++c) {
            const double part = token.values[c] / token.denominator;
            token.slopes[c] = part > 0 ? std::pow(part, router.norm_power - 1) : 0;
        }
    }
    if (token.denominator == 0) return token;
    for (index_t c = 0; c < k; ++c) token.gates[c] = token.factors[c] * (token.values[c] / token.denominator);
    return token;
}

/// The gradient of the values of a token's choices from that of its gates.
inline list<double> gates_of_token_backward(const recipe_gates& token, const list<double>& d_gates) {
    auto d_values = filled(d_gates.length(), 0.0);
    if (token.denominator == 0) return d_values;
    double weighted_sum = 0;
    for (index_t c = 0; c < d_gates.length(); ++c) {
        weighted_sum += token.factors[c] * d_gates[c] * (token.values[c] / token.denominator);
    }
    for (index_t c = 0; c < d_gates.length(); ++c) {
        d_values[c] = (token.factors[c] * d_gates[c] - token.slopes[c] * weighted_sum) / token.denominator;
    }
    return d_values;
}

/// How many choices f divides by: N first ones, or k N.
inline index_t counted_choices(const recipe_router& router, index_t tokens) {
    return router.count == balance_count::first ? tokens : router.k * tokens;
}

/// Routes by scores s[T, E]. `noise` is given in training only.
inline plan route_scores(const recipe_router& router, const matrix& scores, const mask_list& mask = {},
                         const maybe_noise& noise = {}) {
    const index_t rows = scores.rows;
    require(scores.columns >= 1, "scores have ", scores.columns, " columns; there must be at least one expert");
    require_valid(router, scores.columns);
    const index_t experts = experts_with_rows(router, scores.columns);
    plan made{.experts_count = experts,
              .identity_experts = router.identity_experts,
              .zero_experts = router.zero_experts,
              .shared_experts = router.shared_experts,
              .capacity = capacity_for(router.capacity, rows, scores.columns - router.shared_experts, router.k)};
    require_scores(scores, mask, made.capacity == unlimited ? unroutable::refused : unroutable::dropped);

    // Scores to choices and gates.
    const matrix logits = biased_logits(router, scores, noise);
    const matrix choosable = narrowed(logits, scores.columns - router.shared_experts);
    const matrix keys = choice_keys(router, choosable, mask, noise);
    const integers own = router.groups.one_each ? best_of_each_group(keys, router.k, mask)
                                                : experts_of_largest_key(keys, choosable, router.k, mask);
    made.experts = with_shared(own, router.shared_experts, scores.columns, mask);
    const integers wanted = allowed_choices(made.experts, logits);
    made.gates = matrix(rows, made.choices());
    auto top_gates = filled(rows, 0.0);
    for (index_t t = 0; t < rows; ++t) {
        if (!is_token(mask, t)) continue;
        const auto gates = gates_of_token(router, scores_of_token(router.score, row_of(logits, t)), wanted, t).gates;
        for (index_t c = 0; c < made.choices(); ++c) made.gates(t, c) = gates[c];
        top_gates[t] = gates[0];
    }

    // Choices to slots.
    const integers placed = choices_with_rows(wanted, experts);
    const matrix gates = made.gates;
    made.slots = take_slots(placed, experts, made.capacity, token_order(router.order, top_gates));
    made.load_before = count_experts(placed, experts);
    index_kept_choices(made);
    for (index_t i = 0; i < gates.values.length(); ++i) {
        if (made.experts.values[i] >= experts) made.gates.values[i] = gates.values[i];
    }

    const index_t tokens = count_tokens(mask, rows);
    const auto shares = choice_shares(count_choices(placed, experts, router.count), counted_choices(router, tokens));
    const matrix p = softmax_rows(logits, mask);
    made.load_balancing_loss = load_balancing_loss(router.balance_weight, shares, mean_probabilities(p, tokens));
    made.z_loss = z_loss(router.z_weight, logits, mask);
    return made;
}

/// The gradient of the scores from that of the gates, with the gradients of both losses added.
inline matrix route_scores_backward(const recipe_router& router, const plan& made, const matrix& scores,
                                    const matrix& d_gates, const mask_list& mask = {}, const maybe_noise& noise = {}) {
    require_plan_of(made, scores);
    require_valid(router, scores.columns);
    const matrix logits = biased_logits(router, scores, noise);
    const matrix d_kept = kept_gradients(made, d_gates);
    const integers wanted = allowed_choices(made.experts, logits);

    // Losses.
    const matrix p = softmax_rows(logits, mask);
    const index_t tokens = count_tokens(mask, scores.rows);
    const integers placed = choices_with_rows(wanted, made.experts_count);
    const auto shares =
        choice_shares(count_choices(placed, made.experts_count, router.count), counted_choices(router, tokens));
    const matrix d_p = load_balancing_loss_backward(router.balance_weight, shares, mask, scores.rows);
    matrix d_logits = softmax_rows_backward(p, widened(d_p, scores.columns));
    const matrix d_z = z_loss_backward(router.z_weight, logits, mask);
    for (index_t i = 0; i < d_logits.values.length(); ++i) d_logits.values[i] += d_z.values[i];

    // Gates.
    for (index_t t = 0; t < scores.rows; ++t) {
        if (!is_token(mask, t)) continue;
        const auto values = scores_of_token(router.score, row_of(logits, t));
        const auto d_chosen = gates_of_token_backward(gates_of_token(router, values, wanted, t), row_of(d_kept, t));
        auto d_values = filled(scores.columns, 0.0);
        for (index_t c = 0; c < made.choices(); ++c) {
            if (has_value(router, wanted(t, c), scores.columns)) d_values[wanted(t, c)] = d_chosen[c];
        }
        const auto d_token = scores_of_token_backward(router.score, row_of(logits, t), values, d_values);
        for (index_t e = 0; e < scores.columns; ++e) d_logits(t, e) += d_token[e];
    }
    return quiet_logits_backward(router, scores, noisy_scores_backward(router.noise, d_logits, noise));
}

/// The gradient of logit_bias, [E], from that of the scores: every token's logits had the bias added, and the scores
/// the multiplier.
inline list<double> logit_bias_gradient(const matrix& d_scores, const mask_list& mask = {},
                                        double logit_multiplier = 1) {
    require_mask(mask, d_scores.rows);
    auto d_bias = filled(d_scores.columns, 0.0);
    for (index_t t = 0; t < d_scores.rows; ++t) {
        if (!is_token(mask, t)) continue;
        for (index_t e = 0; e < d_scores.columns; ++e) d_bias[e] += d_scores(t, e) / logit_multiplier;
    }
    return d_bias;
}

/// Routes tokens x[T, D] by the router's weights w[D, E].
inline plan route(const recipe_router& router, const matrix& x, const matrix& w, const mask_list& mask = {},
                  const maybe_noise& noise = {}) {
    return reference::route_scores(router, reference::project(router.noise, x, w, mask, noise), mask, noise);
}

/// The gradients of x and w from that of the gates, losses included.
inline projection_gradients route_backward(const recipe_router& router, const plan& made, const matrix& x,
                                           const matrix& w, const matrix& d_gates, const mask_list& mask = {},
                                           const maybe_noise& noise = {}) {
    const matrix scores = reference::project(router.noise, x, w, mask, noise);
    const matrix d_scores = reference::route_scores_backward(router, made, scores, d_gates, mask, noise);
    return reference::project_backward(router.noise, x, w, mask, noise, d_scores);
}

/// How the selection bias follows the loads. `sign`: DeepSeek-V3, Megatron-Core, OLMo-core. `centred_sign`: torchtitan,
/// which keeps the sum of the biases.
enum class bias_rule { sign, centred_sign };

/// The selection bias after a step: b_e + rate sign(mean load - load_e), sign(0) = 0; centred: less the mean of these
/// steps. The signs are exact, since E times a load is compared with the sum of all.
inline list<double> updated_bias(const list<double>& bias, const list<index_t>& loads, double rate, bias_rule rule) {
    require(bias.length() == loads.length(), "a bias of ", bias.length(), " numbers does not fit ", loads.length(),
            " loads");
    require(std::isfinite(rate), "rate = ", rate, " must be finite");
    const index_t experts = bias.length();
    index_t total = 0;
    for (const index_t load : loads) total += load;
    auto signs = filled(experts, 0.0);
    double mean_sign = 0;
    for (index_t e = 0; e < experts; ++e) {
        const index_t scaled = product_of_sizes("choices", loads[e], experts);
        signs[e] = scaled < total ? 1 : scaled > total ? -1 : 0;
        mean_sign += signs[e] / static_cast<double>(experts);
    }
    auto updated = bias;
    for (index_t e = 0; e < experts; ++e) {
        updated[e] += rate * (rule == bias_rule::centred_sign ? signs[e] - mean_sign : signs[e]);
    }
    return updated;
}

/// What quantile balancing asks of each expert: with alpha_t the (k + 1)-th largest of s_te + b_e over the experts, the
/// (T k / E + 1)-th largest of s_te - alpha_t over the tokens.
inline list<double> balancing_quantiles(const matrix& scores, index_t k, const list<double>& bias) {
    require(bias.length() == scores.columns, "a bias of ", bias.length(), " numbers does not fit ", scores.columns,
            " experts");
    require(k >= 1 && k < scores.columns, "k = ", k, " must lie in 1..E - 1 = ", scores.columns - 1);
    require(scores.rows * k % scores.columns == 0, scores.rows * k, " choices cannot be shared evenly by ",
            scores.columns, " experts");
    const auto largest_first = [](list<double> numbers) {
        std::sort(numbers.begin(), numbers.end(), std::greater<>());
        return numbers;
    };
    matrix differences = scores;
    for (index_t t = 0; t < scores.rows; ++t) {
        list<double> keys;
        for (index_t e = 0; e < scores.columns; ++e) keys.push_back(scores(t, e) + bias[e]);
        const double alpha = largest_first(keys)[k];
        for (index_t e = 0; e < scores.columns; ++e) differences(t, e) -= alpha;
    }
    list<double> quantiles;
    for (index_t e = 0; e < scores.columns; ++e) {
        list<double> column;
        for (index_t t = 0; t < scores.rows; ++t) column.push_back(differences(t, e));
        quantiles.push_back(largest_first(column)[scores.rows * k / scores.columns]);
    }
    return quantiles;
}

/// ema b_e - (1 - ema) q_e, less the mean of all.
inline list<double> quantile_bias(const list<double>& bias, const list<double>& quantiles, double ema) {
    auto updated = bias;
    double mean = 0;
    for (index_t e = 0; e < bias.length(); ++e) {
        updated[e] = ema * bias[e] - (1 - ema) * quantiles[e];
        mean += updated[e] / static_cast<double>(bias.length());
    }
    for (double& number : updated) number -= mean;
    return updated;
}

}  // namespace switchyard::reference::inline SWITCHYARD_TARGET
