// Noisy top-k gating: noise that the router learns, and the loss that evens out loads. Shazeer et al., "Outrageously
// Large Neural Networks", arXiv 1701.06538.
//
//   h_te = s_te + N_te sigma_te,   sigma_te = log(1 + exp(n_te)) + least_deviation,  N standard normal
//   the router: top-k of h, softmax over the k chosen h (top_k.hpp, softmax after)
//   load_e = sum_t Phi((s_te - r_te) / sigma_te)   r_te the (k+1)-th largest of h_t if e is in the top k, else the k-th
//   loss   = weight CV^2(load),   CV^2(v) = variance / (mean^2 + 1e-10)
//
// Where there is no (k+1)-th, or it is -infinity, Phi is 1. Padding and experts with s = -infinity count nowhere.
//
// Backward: d s = d h, d n = d h N sigmoid(n). Of the loss: through Phi, sigma and the threshold r, which is h of the
// expert that holds it.
#pragma once

#include <switchyard/reference/choices.hpp>
#include <switchyard/reference/recipe.hpp>
#include <switchyard/reference/score_loss.hpp>

#include <cmath>

namespace switchyard::reference::inline SWITCHYARD_TARGET {

/// The standard normal number of (token, column): Box and Muller, from two of four counters' words.
inline double normal_number(noise_key key, index_t token, index_t column) {
    key.purpose = 8;
    const index_t pair = column / 2 * 2;
    const double radius = std::sqrt(-2 * std::log(static_cast<double>(uniform_at(key, token, pair))));
    const double angle = 2 * std::acos(-1.0) * static_cast<double>(uniform_at(key, token, pair + 1));
    return radius * (column % 2 == 0 ? std::cos(angle) : std::sin(angle));
}

struct score_noise {
    noise_key key = {};
    double least_deviation = 1e-2;
};

inline double deviation_of(const score_noise& noise, double noise_score) {
    return softplus(noise_score) + noise.least_deviation;
}

inline matrix noisy_scores(const score_noise& noise, const matrix& scores, const matrix& noise_scores) {
    matrix noisy = scores;
    for (index_t t = 0; t < scores.rows; ++t) {
        for (index_t e = 0; e < scores.columns; ++e) {
            noisy(t, e) += normal_number(noise.key, t, e) * deviation_of(noise, noise_scores(t, e));
        }
    }
    return noisy;
}

/// The gradients of scores and noise scores.
struct noisy_gradients {
    matrix d_scores;
    matrix d_noise_scores;
};

inline noisy_gradients noisy_scores_backward(const score_noise& noise, const matrix& noise_scores,
                                             const matrix& d_noisy) {
    noisy_gradients gradients{d_noisy, d_noisy};
    for (index_t t = 0; t < d_noisy.rows; ++t) {
        for (index_t e = 0; e < d_noisy.columns; ++e) {
            gradients.d_noise_scores(t, e) *= normal_number(noise.key, t, e) * sigmoid(noise_scores(t, e));
        }
    }
    return gradients;
}

/// Which expert's noisy score is the threshold of an expert; -1: there is none.
inline index_t threshold_holder(const matrix& noisy, index_t t, index_t e, index_t k) {
    const auto ranked = ranked_experts(row_of(noisy, t));
    index_t rank = 0;
    while (ranked[rank] != e) rank += 1;
    const index_t place = rank < k ? k : k - 1;
    return place < noisy.columns && noisy(t, ranked[place]) != -infinity ? ranked[place] : -1;
}

/// load[E].
inline list<double> smooth_loads(const score_noise& noise, const matrix& scores, const matrix& noise_scores,
                                 const matrix& noisy, index_t k, const mask_list& mask) {
    auto loads = filled(scores.columns, 0.0);
    for (index_t t = 0; t < scores.rows; ++t) {
        for (index_t e = 0; e < scores.columns; ++e) {
            if (!is_token(mask, t) || scores(t, e) == -infinity) continue;
            const index_t holder = threshold_holder(noisy, t, e, k);
            const double sigma = deviation_of(noise, noise_scores(t, e));
            loads[e] += holder < 0 ? 1 : 0.5 * std::erfc(-(scores(t, e) - noisy(t, holder)) / sigma / std::sqrt(2.0));
        }
    }
    return loads;
}

inline list<double> squared_variation_backward(const list<double>& numbers) {
    const auto count = static_cast<double>(numbers.length());
    double mean = 0;
    for (const double number : numbers) mean += number / count;
    const double divisor = mean * mean + 1e-10;
    const double value = squared_variation(numbers);
    auto d_numbers = numbers;
    for (double& number : d_numbers)
        number = 2 * (number - mean) / count / divisor - value * 2 * mean / count / divisor;
    return d_numbers;
}

inline double load_loss(const score_noise& noise, const matrix& scores, const matrix& noise_scores, const matrix& noisy,
                        index_t k, double weight, const mask_list& mask) {
    return weight * squared_variation(smooth_loads(noise, scores, noise_scores, noisy, k, mask));
}

inline noisy_gradients load_loss_backward(const score_noise& noise, const matrix& scores, const matrix& noise_scores,
                                          const matrix& noisy, index_t k, double weight, const mask_list& mask) {
    noisy_gradients gradients{matrix(scores.rows, scores.columns), matrix(scores.rows, scores.columns)};
    matrix d_noisy(scores.rows, scores.columns);
    const auto d_loads = squared_variation_backward(smooth_loads(noise, scores, noise_scores, noisy, k, mask));
    for (index_t t = 0; t < scores.rows; ++t) {
        for (index_t e = 0; e < scores.columns; ++e) {
            if (!is_token(mask, t) || scores(t, e) == -infinity) continue;
            const index_t holder = threshold_holder(noisy, t, e, k);
            if (holder < 0) continue;
            const double sigma = deviation_of(noise, noise_scores(t, e));
            const double x = (scores(t, e) - noisy(t, holder)) / sigma;
            const double d_x = weight * d_loads[e] * std::exp(-x * x / 2) / std::sqrt(2 * std::acos(-1.0));
            gradients.d_scores(t, e) += d_x / sigma;
            d_noisy(t, holder) -= d_x / sigma;
            gradients.d_noise_scores(t, e) -= d_x * x / sigma * sigmoid(noise_scores(t, e));
        }
    }
    const auto through_noise = noisy_scores_backward(noise, noise_scores, d_noisy);
    for (index_t i = 0; i < d_noisy.values.length(); ++i) {
        gradients.d_scores.values[i] += through_noise.d_scores.values[i];
        gradients.d_noise_scores.values[i] += through_noise.d_noise_scores.values[i];
    }
    return gradients;
}

}  // namespace switchyard::reference::inline SWITCHYARD_TARGET
