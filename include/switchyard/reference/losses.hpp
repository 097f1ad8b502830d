// Auxiliary losses of the scores: balance and size. N is the number of tokens (padding rows do not count).
//
//   load balancing   weight E sum_e f_e P_e     f_e = share of choices that name e, before capacity
//                                               P_e = mean over tokens of p_te, p = softmax(s)
//                    d loss / d p_te = weight E f_e / N;  f is a count and has no gradient
//                    Equals `weight` when f and P are uniform. Switch, arXiv 2101.03961; weight 0.01
//   z                weight mean_t z_t^2        z_t = logsumexp(s_t)
//                    d loss / d s_te = weight 2 z_t p_te / N
//                    Keeps scores small. ST-MoE, arXiv 2202.08906; weight 0.001
//
// f counts first choices (divided by N; Switch, GShard) or all k choices (divided by k N): an option. A token that is
// forbidden to every expert counts in N, but adds nothing to f, P or the sum of z_t^2.
#pragma once

#include <switchyard/reference/slots.hpp>
#include <switchyard/reference/softmax.hpp>

namespace switchyard::reference::inline SWITCHYARD_TARGET {

enum class balance_count { first, all };

/// How many choices name each expert: first ones or all. `wanted` has -1 for padding and forbidden choices.
inline list<index_t> count_choices(const integers& wanted, index_t experts, balance_count which) {
    if (which == balance_count::all) return count_experts(wanted, experts);
    auto counts = filled<index_t>(experts, 0);
    for (index_t t = 0; t < wanted.rows; ++t) {
        if (wanted(t, 0) >= 0) counts[wanted(t, 0)] += 1;
    }
    return counts;
}

/// f: those counts over `total`, which is N for first choices and k N for all.
inline list<double> choice_shares(const list<index_t>& counts, index_t total) {
    auto shares = filled(counts.length(), 0.0);
    if (total == 0) return shares;
    for (index_t e = 0; e < counts.length(); ++e) {
        shares[e] = static_cast<double>(counts[e]) / static_cast<double>(total);
    }
    return shares;
}

/// P: the mean probability of each expert over the tokens. Rows of padding hold zeros.
inline list<double> mean_probabilities(const matrix& probabilities, index_t tokens) {
    auto means = filled(probabilities.columns, 0.0);
    if (tokens == 0) return means;
    for (index_t t = 0; t < probabilities.rows; ++t) {
        for (index_t e = 0; e < probabilities.columns; ++e) means[e] += probabilities(t, e);
    }
    for (double& mean : means) mean /= static_cast<double>(tokens);
    return means;
}

/// weight E sum_e f_e P_e; 0 without tokens.
inline double load_balancing_loss(double weight, const list<double>& shares, const list<double>& means) {
    double sum = 0;
    for (index_t e = 0; e < shares.length(); ++e) sum += shares[e] * means[e];
    return weight * static_cast<double>(shares.length()) * sum;
}

/// Its gradient with respect to p, zeros in padding rows.
inline matrix load_balancing_loss_backward(double weight, const list<double>& shares, const mask_list& mask,
                                           index_t rows) {
    const index_t experts = shares.length();
    const index_t tokens = count_tokens(mask, rows);
    matrix d_probabilities(rows, experts);
    for (index_t t = 0; t < rows; ++t) {
        if (!is_token(mask, t)) continue;
        for (index_t e = 0; e < experts; ++e) {
            d_probabilities(t, e) = weight * static_cast<double>(experts) * shares[e] / static_cast<double>(tokens);
        }
    }
    return d_probabilities;
}

/// weight mean_t logsumexp(s_t)^2; 0 without tokens.
inline double z_loss(double weight, const matrix& scores, const mask_list& mask) {
    double sum = 0;
    for (index_t t = 0; t < scores.rows; ++t) {
        if (!is_token(mask, t)) continue;
        const double z = logsumexp(row_of(scores, t));
        if (z != -infinity) sum += z * z;
    }
    const index_t tokens = count_tokens(mask, scores.rows);
    return tokens == 0 ? 0 : weight * sum / static_cast<double>(tokens);
}

/// Its gradient with respect to the scores.
inline matrix z_loss_backward(double weight, const matrix& scores, const mask_list& mask) {
    const auto tokens = static_cast<double>(count_tokens(mask, scores.rows));
    matrix d_scores(scores.rows, scores.columns);
    for (index_t t = 0; t < scores.rows; ++t) {
        if (!is_token(mask, t)) continue;
        const double z = logsumexp(row_of(scores, t));
        if (z == -infinity) continue;
        const auto d_row = logsumexp_backward(softmax(row_of(scores, t)), weight * 2 * z / tokens);
        for (index_t e = 0; e < scores.columns; ++e) d_scores(t, e) = d_row[e];
    }
    return d_scores;
}

}  // namespace switchyard::reference::inline SWITCHYARD_TARGET
