// Losses of scores alone and of gates, as plain loops. p[T, E] and P_e = mean_t p_te are those of balance_loss.hpp, p
// of values divided by their sum; H(p) = -sum p ln p.
//
//   entropy              -H(P)                     sigma-MoE
//   mutual information   mean_t H(p_t) - H(P)      ModuleFormer
//   importance           CV^2(sum of gates of each expert), CV^2(x) = var(x) / (mean(x)^2 + 1e-10)    Shazeer et al.
//   2017
//
// Each is the mean over sequences that have tokens. The z-loss is in losses.hpp.
#pragma once

#include <switchyard/reference/balance_loss.hpp>

#include <cmath>

namespace switchyard::reference::inline SWITCHYARD_TARGET {

/// sum p ln p
inline double negative_entropy(const list<double>& p) {
    double sum = 0;
    for (const double x : p) sum += x > 0 ? x * std::log(x) : 0;
    return sum;
}

/// -H(P), or mean_t H(p_t) - H(P) `with_rows`.
inline double entropy_loss(double weight, const matrix& scores, score_function score, bool with_rows,
                           const list<index_t>& offsets = {}, const mask_list& mask = {}) {
    const balance_loss_settings settings{.score = score, .probability = balance_probability::normalized};
    const integers none(scores.rows, 1, -1);
    const auto sums = sums_for_balance(scores, none, settings, offsets, mask);
    const auto sequence = sequences_of(offsets, scores.rows);
    double loss = 0;
    double counting = 0;
    for (index_t b = 0; b < sums.tokens.length(); ++b) {
        if (sums.tokens[b] == 0) continue;
        counting += 1;
        auto means = row_of(sums.probabilities, b);
        for (double& mean : means) mean /= sums.tokens[b];
        loss += negative_entropy(means);
        for (index_t t = 0; t < scores.rows && with_rows; ++t) {
            if (sequence[t] != b || !is_token(mask, t)) continue;
            loss -= negative_entropy(loss_probabilities(row_of(scores, t), settings)) / sums.tokens[b];
        }
    }
    return counting == 0 ? 0 : weight * loss / counting;
}

/// Its gradient with respect to the scores, zeros in padding rows.
inline matrix entropy_loss_backward(double weight, const matrix& scores, score_function score, bool with_rows,
                                    const list<index_t>& offsets = {}, const mask_list& mask = {}) {
    const balance_loss_settings settings{.score = score, .probability = balance_probability::normalized};
    const integers none(scores.rows, 1, -1);
    const auto sums = sums_for_balance(scores, none, settings, offsets, mask);
    const auto sequence = sequences_of(offsets, scores.rows);
    double counting = 0;
    for (const double n : sums.tokens) counting += n > 0 ? 1 : 0;
    matrix d_scores(scores.rows, scores.columns);
    for (index_t t = 0; t < scores.rows; ++t) {
        if (!is_token(mask, t)) continue;
        const index_t b = sequence[t];
        const auto p = loss_probabilities(row_of(scores, t), settings);
        auto d_p = filled(scores.columns, 0.0);
        for (index_t e = 0; e < scores.columns; ++e) {
            if (p[e] == 0) continue;
            d_p[e] = std::log(sums.probabilities(b, e) / sums.tokens[b]) + 1;
            if (with_rows) d_p[e] -= std::log(p[e]) + 1;
            d_p[e] *= weight / counting / sums.tokens[b];
        }
        const auto d_row = loss_probabilities_backward(row_of(scores, t), d_p, settings);
        for (index_t e = 0; e < scores.columns; ++e) d_scores(t, e) = d_row[e];
    }
    return d_scores;
}

/// var(x) / (mean(x)^2 + 1e-10)
inline double squared_variation(const list<double>& x) {
    const auto count = static_cast<double>(x.length());
    double mean = 0;
    double variance = 0;
    for (const double number : x) mean += number / count;
    for (const double number : x) variance += (number - mean) * (number - mean) / count;
    return variance / (mean * mean + 1e-10);
}

/// The sum of the gates of each expert; gates of no expert (-1) count nowhere.
inline list<double> importance_of(const integers& experts_of_choices, const matrix& gates, index_t experts) {
    auto importance = filled(experts, 0.0);
    for (index_t t = 0; t < gates.rows; ++t) {
        for (index_t c = 0; c < gates.columns; ++c) {
            const index_t e = experts_of_choices(t, c);
            if (e >= 0) importance[e] += gates(t, c);
        }
    }
    return importance;
}

}  // namespace switchyard::reference::inline SWITCHYARD_TARGET
