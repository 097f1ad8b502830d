// Exploration noise, all of it from counters: (seed, stream, step, token, column) -> value, the same on every thread.
//
//   input jitter     x *= U[1 - eps, 1 + eps) elementwise, on a copy of the router's input, eps = 1e-2 (Fedus et al.
//                    2021, arXiv 2101.03961)
//   input dropout    x = 0 with probability rate, else x / (1 - rate), on the same copy (rate = 0.1)
//   sampling         expert = argmax(s + temperature * Gumbel); the gate stays the unperturbed probability
//   logit jitter     s *= U[1 - eps, 1 + eps): for callers that have only scores. It is not the paper's; the jittered
//                    scores feed choice, gates and losses.
//
// The factors of jitter and dropout are bitwise identical on every target; Gumbel numbers are as good as its logarithm.
#pragma once

#include <switchyard/core/config.hpp>
#include <switchyard/core/philox.hpp>
#include <switchyard/core/rounding.hpp>

#include <cmath>
#include <cstdint>

namespace switchyard {
inline namespace SWITCHYARD_TARGET {

/// The library's own uses of random numbers: part of the counter, so that they never share any.
enum class noise_purpose : std::uint32_t {
    input_jitter = 1,
    input_dropout = 2,
    sampling = 3,
    logit_jitter = 4,
    initialisation = 5,
    choices = 6,
    second_choice = 7,
    noisy_scores = 8,
    draws = 9,
    midpoints = 10,
};

/// The same key for another purpose.
SWITCHYARD_HD constexpr noise_key for_purpose(noise_key key, noise_purpose purpose) {
    key.purpose = static_cast<std::uint32_t>(purpose);
    return key;
}

/// Uniform in [1 - eps, 1 + eps), bitwise identical on every target.
template <class S>
SWITCHYARD_HD constexpr S jitter_factor(float u, float epsilon) {
    return static_cast<S>(1.0f - epsilon + rounded_product(2.0f * epsilon, u));
}

/// 0 or 1 / (1 - rate).
template <class S>
SWITCHYARD_HD constexpr S dropout_factor(float u, float rate) {
    return u < rate ? S(0) : S(1) / (S(1) - static_cast<S>(rate));
}

/// Standard Gumbel.
template <class S>
SWITCHYARD_HD S gumbel(float u) {
    return -std::log(-std::log(static_cast<S>(u)));
}

/// Calls f(i, u) with the uniform number of column first + i, for i in 0 .. count; first is a multiple of 4: one Philox
/// call serves four columns.
template <class F>
SWITCHYARD_HD void for_each_uniform(const noise_key& key, index_t token, index_t first, index_t count, F&& f) {
    for (index_t start = 0; start < count; start += 4) {
        const philox_words words = noise_words(key, token, (first + start) / 4);
        for (index_t lane = 0; lane < 4 && start + lane < count; ++lane) {
            f(start + lane, uniform(word_at(words, lane)));
        }
    }
}

/// All columns of a row.
template <class F>
SWITCHYARD_HD void for_each_uniform(const noise_key& key, index_t token, index_t columns, F&& f) {
    for_each_uniform(key, token, index_t{0}, columns, static_cast<F&&>(f));
}

/// What is done to the router's copy of the tokens before projection.
struct input_noise {
    float jitter = 0;   ///< epsilon in [0, 1)
    float dropout = 0;  ///< rate in [0, 1)
    noise_key key{};

    constexpr bool active() const { return jitter != 0 || dropout != 0; }
};

/// values[i] *= the noise factor of column first + i, for i in 0 .. count; first is a multiple of 4. Jitter first, then
/// dropout. Also what backward multiplies gradients with.
template <class S>
SWITCHYARD_HD void apply_input_noise(const input_noise& noise, index_t token, index_t first, S* values, index_t count) {
    if (noise.jitter != 0) {
        for_each_uniform(for_purpose(noise.key, noise_purpose::input_jitter), token, first, count,
                         [&](index_t i, float u) { values[i] *= jitter_factor<S>(u, noise.jitter); });
    }
    if (noise.dropout != 0) {
        for_each_uniform(for_purpose(noise.key, noise_purpose::input_dropout), token, first, count,
                         [&](index_t i, float u) { values[i] *= dropout_factor<S>(u, noise.dropout); });
    }
}

}  // namespace SWITCHYARD_TARGET
}  // namespace switchyard
