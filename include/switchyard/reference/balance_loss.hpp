// Balance losses as plain loops: weight E mean_b sum_e f_be P_be, with a choice of what f counts, of what p is, and of
// the sequences b that tokens belong to.
//
//   p[T, E]     softmax of the scores, or values of a score function, divided by the row's sum or not
//   f_be        counted choices of sequence b that name e, divided by those of a token times the sequence's tokens
//   P_be        the mean of p_te over the sequence's tokens
//
// Choices of no expert (-1), of one that is forbidden to the token, and of padding count nowhere. Sequences without
// tokens are left out of the mean. Choices have no gradient.
#pragma once

#include <switchyard/reference/losses.hpp>
#include <switchyard/reference/recipe.hpp>

#include <cmath>

namespace switchyard::reference::inline SWITCHYARD_TARGET {

enum class choice_count { first, all, all_undivided };
enum class balance_probability { softmax, normalized, raw };
enum class balance_unit { expert, device, communication };

struct balance_loss_settings {
    double weight = 1;
    choice_count count = choice_count::first;
    score_function score = score_function::softmax;
    balance_probability probability = balance_probability::softmax;
    balance_unit unit = balance_unit::expert;
    index_t devices = 1;
    index_t devices_per_token = 1;
    bool divides_by_mean_tokens = false;  ///< every sequence by the mean of their tokens, not by its own
};

/// The score function that p is made of.
inline score_function function_of(const balance_loss_settings& settings) {
    return settings.probability == balance_probability::softmax ? score_function::softmax : settings.score;
}

/// Whether p sums to 1.
inline bool is_divided(const balance_loss_settings& settings) {
    return function_of(settings) == score_function::softmax || settings.probability != balance_probability::raw;
}

/// p of a row; zeros where every expert is forbidden.
inline list<double> loss_probabilities(const list<double>& row, const balance_loss_settings& settings) {
    auto p = filled(row.length(), 0.0);
    double highest = -infinity;
    for (const double score : row) highest = score > highest ? score : highest;
    if (highest == -infinity) return p;
    double sum = 0;
    for (index_t e = 0; e < row.length(); ++e) {
        switch (function_of(settings)) {
            case score_function::softmax:
                p[e] = std::exp(row[e] - highest);
                break;
            case score_function::sigmoid:
                p[e] = 1 / (1 + std::exp(-row[e]));
                break;
            case score_function::sqrt_softplus:
                p[e] = std::sqrt(row[e] > 0 ? row[e] + std::log1p(std::exp(-row[e])) : std::log1p(std::exp(row[e])));
                break;
        }
        sum += p[e];
    }
    for (double& value : p) value = !is_divided(settings) ? value : sum > 0 ? value / sum : 0;
    return p;
}

/// d_row from d_p.
inline list<double> loss_probabilities_backward(const list<double>& row, const list<double>& d_p,
                                                const balance_loss_settings& settings) {
    auto raw = settings;
    raw.probability = balance_probability::raw;
    raw.score = function_of(settings);
    const auto p = loss_probabilities(row, settings);
    const auto v = loss_probabilities(row, raw);
    auto d_row = filled(row.length(), 0.0);
    double dot = 0;
    double sum = 0;
    for (index_t e = 0; e < row.length(); ++e) {
        dot += d_p[e] * p[e];
        sum += v[e];
    }
    for (index_t e = 0; e < row.length(); ++e) {
        if (row[e] == -infinity) continue;
        if (function_of(settings) == score_function::softmax) {
            d_row[e] = p[e] * (d_p[e] - dot);
            continue;
        }
        const double slope = raw.score == score_function::sigmoid
                                 ? v[e] * (1 - v[e])
                                 : (v[e] > 0 ? 1 / (1 + std::exp(-row[e])) / (2 * v[e]) : 0);
        d_row[e] = is_divided(settings) ? (sum > 0 ? slope * (d_p[e] - dot) / sum : 0) : slope * d_p[e];
    }
    return d_row;
}

/// The sequence of each row: rows offsets[b] .. offsets[b + 1] are sequence b. Empty offsets: one sequence.
inline list<index_t> sequences_of(const list<index_t>& offsets, index_t rows) {
    auto sequence = filled<index_t>(rows, 0);
    for (index_t b = 0; b + 1 < offsets.length(); ++b) {
        for (index_t t = offsets[b]; t < offsets[b + 1]; ++t) sequence[t] = b;
    }
    return sequence;
}

/// Counts [B, E] of choices, sums [B, E] of p, and the tokens of each sequence.
struct balance_sums {
    matrix counts;
    matrix probabilities;
    list<double> tokens;
    double counted_per_token = 1;
};

/// `choices` [T, k]: experts, -1 for none. A choice without a slot may be passed as -1, for counts after drops.
inline balance_sums sums_for_balance(const matrix& scores, const integers& choices,
                                     const balance_loss_settings& settings, const list<index_t>& offsets,
                                     const mask_list& mask) {
    const index_t sequences = offsets.empty() ? 1 : offsets.length() - 1;
    const index_t experts = scores.columns;
    const index_t group = settings.unit == balance_unit::expert ? 1 : experts / settings.devices;
    balance_sums sums{matrix(sequences, experts), matrix(sequences, experts), filled(sequences, 0.0), 1};
    if (settings.count == choice_count::all) sums.counted_per_token = static_cast<double>(choices.columns);
    if (settings.unit == balance_unit::communication) {
        sums.counted_per_token = static_cast<double>(group * settings.devices_per_token);
    }
    const auto sequence = sequences_of(offsets, scores.rows);
    for (index_t t = 0; t < scores.rows; ++t) {
        if (!is_token(mask, t)) continue;
        const index_t b = sequence[t];
        sums.tokens[b] += 1;
        const auto p = loss_probabilities(row_of(scores, t), settings);
        for (index_t e = 0; e < experts; ++e) sums.probabilities(b, e) += p[e];
        auto was_sent = filled<index_t>(experts / group, 0);
        for (index_t c = 0; c < (settings.count == choice_count::first ? 1 : choices.columns); ++c) {
            const index_t e = choices(t, c);
            if (e < 0 || scores(t, e) == -infinity) continue;
            if (settings.unit == balance_unit::communication && was_sent[e / group] != 0) continue;
            was_sent[e / group] = 1;
            for (index_t member = e / group * group; member < (e / group + 1) * group; ++member) {
                sums.counts(b, member) += settings.unit == balance_unit::device ? 1 / static_cast<double>(group) : 1;
            }
        }
    }
    return sums;
}

/// d loss / d p_te of a token of sequence b, in row b; `loss` is set to the loss.
inline matrix balance_of_sums(const balance_sums& sums, const balance_loss_settings& settings, double& loss) {
    const index_t sequences = sums.counts.rows;
    const index_t experts = sums.counts.columns;
    matrix d_p(sequences, experts);
    double all_tokens = 0;
    double counting = 0;
    for (const double n : sums.tokens) {
        all_tokens += n;
        counting += n > 0 ? 1 : 0;
    }
    if (settings.divides_by_mean_tokens) counting = static_cast<double>(sequences);
    loss = 0;
    for (index_t b = 0; b < sequences; ++b) {
        const double n = settings.divides_by_mean_tokens ? all_tokens / static_cast<double>(sequences) : sums.tokens[b];
        if (n == 0) continue;
        for (index_t e = 0; e < experts; ++e) {
            const double f = sums.counts(b, e) / (sums.counted_per_token * n);
            d_p(b, e) = settings.weight * static_cast<double>(experts) * f / n / counting;
            loss += d_p(b, e) * sums.probabilities(b, e);
        }
    }
    return d_p;
}

inline double balance_loss(const matrix& scores, const integers& choices, const balance_loss_settings& settings,
                           const list<index_t>& offsets = {}, const mask_list& mask = {}) {
    double loss = 0;
    balance_of_sums(sums_for_balance(scores, choices, settings, offsets, mask), settings, loss);
    return loss;
}

/// Its gradient with respect to the scores, zeros in padding rows.
inline matrix balance_loss_backward(const matrix& scores, const integers& choices,
                                    const balance_loss_settings& settings, const list<index_t>& offsets = {},
                                    const mask_list& mask = {}) {
    double loss = 0;
    const auto d_p = balance_of_sums(sums_for_balance(scores, choices, settings, offsets, mask), settings, loss);
    const auto sequence = sequences_of(offsets, scores.rows);
    matrix d_scores(scores.rows, scores.columns);
    for (index_t t = 0; t < scores.rows; ++t) {
        if (!is_token(mask, t)) continue;
        const auto d_row = loss_probabilities_backward(row_of(scores, t), row_of(d_p, sequence[t]), settings);
        for (index_t e = 0; e < scores.columns; ++e) d_scores(t, e) = d_row[e];
    }
    return d_scores;
}

}  // namespace switchyard::reference::inline SWITCHYARD_TARGET
