// Scores to probabilities and gates, and their gradients.
//
//   softmax     p_e = exp(s_e) / sum_i exp(s_i)             ds_e = p_e (dp_e - sum_i p_i dp_i)
//   logsumexp   z = log sum_i exp(s_i)                      ds_e = dz p_e
//   sigmoid     g = 1 / (1 + exp(-s))                       ds = dg g (1 - g)
//
// Steps: subtract the row's maximum m first, since exp overflows in double above 709 (in float above 88) and both
// formulas only depend on differences: exp(s_e - m) lies in (0, 1] and the largest term is exactly 1.
//
// A score of -inf forbids: its probability is 0. A row with every expert forbidden has no softmax: its probabilities
// are all 0 here, and its logsumexp is -inf.
#pragma once

#include <switchyard/reference/matrix.hpp>

#include <cmath>
#include <limits>

namespace switchyard::reference::inline SWITCHYARD_TARGET {

constexpr double infinity = std::numeric_limits<double>::infinity();

/// The largest of some numbers, -inf for none.
inline double maximum(const list<double>& numbers) {
    double largest = -infinity;
    for (const double number : numbers) largest = number > largest ? number : largest;
    return largest;
}

/// log sum exp of some scores.
inline double logsumexp(const list<double>& scores) {
    const double largest = maximum(scores);
    if (largest == -infinity) return -infinity;
    double sum = 0;
    for (const double score : scores) sum += std::exp(score - largest);
    return largest + std::log(sum);
}

/// The softmax of some scores.
inline list<double> softmax(const list<double>& scores) {
    const double largest = maximum(scores);
    auto probabilities = filled(scores.length(), 0.0);
    if (largest == -infinity) return probabilities;
    double sum = 0;
    for (index_t e = 0; e < scores.length(); ++e) {
        probabilities[e] = std::exp(scores[e] - largest);
        sum += probabilities[e];
    }
    for (double& p : probabilities) p /= sum;
    return probabilities;
}

/// The gradient of the scores from that of their softmax.
inline list<double> softmax_backward(const list<double>& probabilities, const list<double>& d_probabilities) {
    double weighted_sum = 0;
    for (index_t e = 0; e < probabilities.length(); ++e) weighted_sum += probabilities[e] * d_probabilities[e];
    auto d_scores = filled(probabilities.length(), 0.0);
    for (index_t e = 0; e < probabilities.length(); ++e) {
        d_scores[e] = probabilities[e] * (d_probabilities[e] - weighted_sum);
    }
    return d_scores;
}

/// The gradient of the scores from that of their logsumexp.
inline list<double> logsumexp_backward(const list<double>& probabilities, double d_logsumexp) {
    auto d_scores = filled(probabilities.length(), 0.0);
    for (index_t e = 0; e < probabilities.length(); ++e) d_scores[e] = d_logsumexp * probabilities[e];
    return d_scores;
}

/// The sigmoid of a score; the exponent is never positive, so nothing overflows.
inline double sigmoid(double score) {
    if (score >= 0) return 1.0 / (1.0 + std::exp(-score));
    return std::exp(score) / (1.0 + std::exp(score));
}

/// The gradient of the score from that of its sigmoid `gate`.
inline double sigmoid_backward(double gate, double d_gate) { return d_gate * gate * (1.0 - gate); }

/// One row of a matrix.
inline list<double> row_of(const matrix& m, index_t row) {
    auto copy = filled(m.columns, 0.0);
    for (index_t column = 0; column < m.columns; ++column) copy[column] = m(row, column);
    return copy;
}

/// The softmax of every row; rows that are padding get zeros.
inline matrix softmax_rows(const matrix& scores, const mask_list& mask = {}) {
    matrix probabilities(scores.rows, scores.columns);
    for (index_t t = 0; t < scores.rows; ++t) {
        if (!is_token(mask, t)) continue;
        const auto p = softmax(row_of(scores, t));
        for (index_t e = 0; e < scores.columns; ++e) probabilities(t, e) = p[e];
    }
    return probabilities;
}

/// The gradient of all scores from that of their softmax.
inline matrix softmax_rows_backward(const matrix& probabilities, const matrix& d_probabilities) {
    matrix d_scores(probabilities.rows, probabilities.columns);
    for (index_t t = 0; t < probabilities.rows; ++t) {
        const auto d_row = softmax_backward(row_of(probabilities, t), row_of(d_probabilities, t));
        for (index_t e = 0; e < probabilities.columns; ++e) d_scores(t, e) = d_row[e];
    }
    return d_scores;
}

}  // namespace switchyard::reference::inline SWITCHYARD_TARGET
