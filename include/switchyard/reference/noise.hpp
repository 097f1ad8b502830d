// Exploration: noise that lets a token meet experts it would not pick by itself. In training only.
//
//   input jitter    x_td *= 1 - eps + 2 eps u          on a copy of the router's input    (Switch, eps = 0.01)
//   input dropout   x_td *= (u >= rate) / (1 - rate)   on a copy of the router's input
//   logit jitter    s_te *= 1 - eps + 2 eps u          on the scores, for callers without x
//   sample          the choice is made by s_te + temperature * G, G = -log(-log u) (Gumbel); nothing else sees G
//
// What experts receive is never jittered. u = u(token, column) is uniform in (0, 1) and comes from Philox: a pure
// function of seed, stream, step, purpose, token and column, so backward draws the same numbers again instead of
// storing them. u and the jitter factor are float32 whatever the scores are, as in the library, so that both use the
// same ones.
//
// Fedus, Zoph, Shazeer, "Switch Transformers", arXiv 2101.03961. Gumbel-max sampling: adding Gumbel noise to logits
// and taking the maximum draws from their softmax.
#pragma once

#include <switchyard/core/philox.hpp>
#include <switchyard/core/rounding.hpp>
#include <switchyard/reference/softmax.hpp>

#include <cmath>
#include <cstdint>
#include <optional>

namespace switchyard::reference::inline SWITCHYARD_TARGET {

/// What a draw is for; goes into noise_key::purpose, so that no two uses share numbers.
enum class noise_purpose : std::uint32_t {
    input_jitter = 1,
    input_dropout = 2,
    gumbel_sample = 3,
    logit_jitter = 4,
    initialisation = 5,
};

/// Which noise a router adds in training. All zero: none.
struct exploration {
    float input_jitter = 0;        ///< eps in 0 <= eps < 1
    float input_dropout = 0;       ///< rate in 0 <= rate < 1
    float logit_jitter = 0;        ///< eps in 0 <= eps < 1
    float sample_temperature = 0;  ///< of the Gumbel noise; 0 takes the argmax
};

/// Seed, stream and step of the noise, or nothing at inference. The purpose is set here.
using maybe_noise = std::optional<noise_key>;

inline void require_valid(const exploration& settings) {
    require(settings.input_jitter >= 0 && settings.input_jitter < 1, "input_jitter = ", settings.input_jitter,
            " must lie in 0 <= eps < 1");
    require(settings.input_dropout >= 0 && settings.input_dropout < 1, "input_dropout = ", settings.input_dropout,
            " must lie in 0 <= rate < 1");
    require(settings.logit_jitter >= 0 && settings.logit_jitter < 1, "logit_jitter = ", settings.logit_jitter,
            " must lie in 0 <= eps < 1");
    require(settings.sample_temperature >= 0 && std::isfinite(settings.sample_temperature),
            "sample_temperature = ", settings.sample_temperature, " must be finite and not negative");
}

/// The uniform number of (token, column) for one purpose.
inline float uniform_for(noise_key key, noise_purpose purpose, index_t token, index_t column) {
    key.purpose = static_cast<std::uint32_t>(purpose);
    return uniform_at(key, token, column);
}

/// 1 - eps + 2 eps u, in float, each step rounded.
inline float jitter_factor(float eps, float u) { return 1.0f - eps + rounded_product(2.0f * eps, u); }

/// 0 with probability `rate`, else what keeps the mean.
inline double dropout_factor(float rate, float u) { return u >= rate ? 1.0 / (1.0 - static_cast<double>(rate)) : 0.0; }

/// A standard Gumbel number.
inline double gumbel(float u) { return -std::log(-std::log(static_cast<double>(u))); }

/// What the router's copy of x[token, column] is multiplied by.
inline double input_factor(const exploration& settings, const maybe_noise& noise, index_t token, index_t column) {
    double factor = 1;
    if (!noise) return factor;
    if (settings.input_jitter > 0) {
        const float u = uniform_for(*noise, noise_purpose::input_jitter, token, column);
        factor *= static_cast<double>(jitter_factor(settings.input_jitter, u));
    }
    if (settings.input_dropout > 0) {
        const float u = uniform_for(*noise, noise_purpose::input_dropout, token, column);
        factor *= dropout_factor(settings.input_dropout, u);
    }
    return factor;
}

/// What the score s[token, expert] is multiplied by.
inline double logit_factor(const exploration& settings, const maybe_noise& noise, index_t token, index_t expert) {
    if (!noise || settings.logit_jitter == 0) return 1;
    const float u = uniform_for(*noise, noise_purpose::logit_jitter, token, expert);
    return static_cast<double>(jitter_factor(settings.logit_jitter, u));
}

/// The router's own copy of x, with noise. Padding rows are not read; they become zeros.
inline matrix noisy_input(const exploration& settings, const matrix& x, const mask_list& mask,
                          const maybe_noise& noise) {
    matrix copy(x.rows, x.columns);
    for (index_t t = 0; t < x.rows; ++t) {
        if (!is_token(mask, t)) continue;
        for (index_t d = 0; d < x.columns; ++d) copy(t, d) = x(t, d) * input_factor(settings, noise, t, d);
    }
    return copy;
}

/// The gradient of x from that of its noisy copy: the same factors again.
inline matrix noisy_input_backward(const exploration& settings, const matrix& d_copy, const maybe_noise& noise) {
    matrix d_x = d_copy;
    for (index_t t = 0; t < d_x.rows; ++t) {
        for (index_t d = 0; d < d_x.columns; ++d) d_x(t, d) *= input_factor(settings, noise, t, d);
    }
    return d_x;
}

/// The scores that choice, gates and losses see. (-inf times a positive factor is -inf: forbidden stays forbidden.)
inline matrix noisy_scores(const exploration& settings, const matrix& scores, const maybe_noise& noise) {
    matrix noisy = scores;
    for (index_t t = 0; t < scores.rows; ++t) {
        for (index_t e = 0; e < scores.columns; ++e) noisy(t, e) *= logit_factor(settings, noise, t, e);
    }
    return noisy;
}

/// The gradient of the scores from that of the noisy ones.
inline matrix noisy_scores_backward(const exploration& settings, const matrix& d_noisy, const maybe_noise& noise) {
    return noisy_scores(settings, d_noisy, noise);  // the same factors
}

/// The numbers that choices are ranked by: the scores, plus Gumbel noise where the router samples.
inline matrix selection_scores(const exploration& settings, const matrix& scores, const maybe_noise& noise) {
    if (!noise || settings.sample_temperature == 0) return scores;
    matrix perturbed = scores;
    for (index_t t = 0; t < scores.rows; ++t) {
        for (index_t e = 0; e < scores.columns; ++e) {
            if (scores(t, e) == -infinity) continue;  // no noise lifts a ban
            const float u = uniform_for(*noise, noise_purpose::gumbel_sample, t, e);
            perturbed(t, e) += static_cast<double>(settings.sample_temperature) * gumbel(u);
        }
    }
    return perturbed;
}

}  // namespace switchyard::reference::inline SWITCHYARD_TARGET
