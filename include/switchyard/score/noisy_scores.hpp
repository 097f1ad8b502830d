// Noisy scores: what noisy top-k gating chooses by and weighs. Any router takes them in the place of scores.
//
//   h_te = s_te + N_te sigma_te,   sigma_te = log(1 + exp(n_te)) + least_deviation
//
// scores s[T, E] and noise_scores n[T, E] are two products of the tokens, x W and x W_noise. N is standard normal, by
// Box and Muller from (seed, stream, step, token, column): the same numbers for any number of threads, as good as the
// machine's logarithm and cosine. For training; at inference the scores are routed as they are.
//
//   noisy_scores(policy, s, n, settings, h);                                  top_k_router{.k = 4, .softmax =
//   route_scores(policy, router, h, training{...}, plan, scratch);               softmax_order::after,
//   route_scores_backward(policy, router, plan, h, d_gates, d_h, scratch);       .balance_weight = 0}
//   noisy_scores_backward(policy, n, settings, d_h, d_s, d_n);
//
//   d s = d h,   d n_te = d h_te N_te sigmoid(n_te)
//
// A score of -infinity stays so and has gradient 0 where its router gives it 0; noise scores are finite or -infinity,
// which is no noise but the least. All are [T, E] of any storage type and strides; h may be s, and d_s may be d_h, the
// same view; otherwise outputs lie apart. Padding is noisy like the rest. O(T E), nothing allocated, nothing waits.
// The loss that evens out loads by these scores: balance/load_loss.hpp.
//
// Shazeer et al. 2017, "Outrageously Large Neural Networks", arXiv 1701.06538.
#pragma once

#include <switchyard/backend/policy.hpp>
#include <switchyard/core/arguments.hpp>
#include <switchyard/core/config.hpp>
#include <switchyard/core/error.hpp>
#include <switchyard/core/matrix_view.hpp>
#include <switchyard/core/overlap.hpp>
#include <switchyard/core/philox.hpp>
#include <switchyard/core/rounding.hpp>
#include <switchyard/core/scalar_traits.hpp>
#include <switchyard/core/simd.hpp>
#include <switchyard/core/stored.hpp>
#include <switchyard/score/noise.hpp>
#include <switchyard/score/sigmoid.hpp>
#include <switchyard/score/sqrt_softplus.hpp>

#include <cmath>

namespace switchyard {

struct noisy_score_settings {
    noise_key noise{};              ///< seed, stream and step: a layer's own stream, a step's own number
    double least_deviation = 1e-2;  ///< >= 0, finite
};

inline namespace SWITCHYARD_TARGET {

namespace detail {

/// log(1 + exp(s)).
template <class S>
SWITCHYARD_HD S softplus(S score) {
    using P = pack<S, 1>;
    const P e = exp_nonpositive_rounded(min(P{S(0) - score}, P{score}));
    return (score > S(0) ? score : S(0)) + log_one_plus(e).v;
}

/// Standard normal numbers of columns 4 group .. 4 group + 3.
template <class S>
struct four_normals {
    S number[4];

    SWITCHYARD_HD four_normals(const noise_key& key, index_t token, index_t group) {
        const philox_words words = noise_words(for_purpose(key, noise_purpose::noisy_scores), token, group);
        for (int half = 0; half < 2; ++half) {
            const S radius = std::sqrt(S(-2) * std::log(static_cast<S>(uniform(word_at(words, 2 * half)))));
            const S angle = S(6.283185307179586) * static_cast<S>(uniform(word_at(words, 2 * half + 1)));
            number[2 * half] = rounded_times(radius, std::cos(angle));
            number[2 * half + 1] = rounded_times(radius, std::sin(angle));
        }
    }
};

template <class S>
SWITCHYARD_HD S normal_of(const noise_key& key, index_t token, index_t column) {
    return four_normals<S>(key, token, column / 4).number[column % 4];
}

/// Four columns of a token.
template <class S, class ScoreStorage, class NoiseStorage, class OutStorage, class Space>
struct add_score_noise {
    matrix_view<const ScoreStorage, Space> scores;
    matrix_view<const NoiseStorage, Space> noise_scores;
    matrix_view<OutStorage, Space> out;
    noise_key noise;
    S least;

    SWITCHYARD_HD void operator()(index_t i) const {
        const index_t groups = (scores.columns + 3) / 4;
        const index_t token = i / groups;
        const index_t first = i % groups * 4;
        const four_normals<S> normal(noise, token, first / 4);
        for (index_t lane = 0; lane < 4 && first + lane < scores.columns; ++lane) {
            const index_t e = first + lane;
            const S deviation = softplus(load_as<S>(noise_scores(token, e))) + least;
            out(token, e) = store_scalar<OutStorage>(static_cast<compute_t<OutStorage>>(
                load_as<S>(scores(token, e)) + rounded_times(normal.number[lane], deviation)));
        }
    }
};

template <class S, class NoiseStorage, class InStorage, class ScoreStorage, class OutStorage, class Space>
struct split_score_gradient {
    matrix_view<const NoiseStorage, Space> noise_scores;
    matrix_view<const InStorage, Space> d_noisy;
    matrix_view<ScoreStorage, Space> d_scores;
    matrix_view<OutStorage, Space> d_noise_scores;
    noise_key noise;

    SWITCHYARD_HD void operator()(index_t i) const {
        const index_t groups = (noise_scores.columns + 3) / 4;
        const index_t token = i / groups;
        const index_t first = i % groups * 4;
        const four_normals<S> normal(noise, token, first / 4);
        for (index_t lane = 0; lane < 4 && first + lane < noise_scores.columns; ++lane) {
            const index_t e = first + lane;
            const S d = load_as<S>(d_noisy(token, e));
            const S slope = sigmoid(load_as<S>(noise_scores(token, e)));
            d_noise_scores(token, e) = store_scalar<OutStorage>(
                static_cast<compute_t<OutStorage>>(rounded_times(d * normal.number[lane], slope)));
            d_scores(token, e) = store_scalar<ScoreStorage>(static_cast<compute_t<ScoreStorage>>(d));
        }
    }
};

inline void require_settings(const noisy_score_settings& settings) {
    require(settings.least_deviation >= 0 && std::isfinite(settings.least_deviation),
            "least_deviation = ", settings.least_deviation, " must be finite and not negative");
}

}  // namespace detail

/// scores[T, E], noise_scores[T, E] -> noisy[T, E].
template <class Policy, class Scores, class NoiseScores, class Out>
void noisy_scores(const Policy& policy, const Scores& scores, const NoiseScores& noise_scores,
                  const noisy_score_settings& settings, Out&& noisy) {
    const auto s = detail::token_view(scores);
    const auto n = detail::token_view(noise_scores);
    const auto out = detail::output_view(noisy);
    using s_view = std::remove_const_t<decltype(s)>;
    using n_view = std::remove_const_t<decltype(n)>;
    using out_view = std::remove_const_t<decltype(out)>;
    using S = compute_t<typename s_view::value_type>;
    require_space<Policy, s_view, n_view, out_view>();
    detail::require_settings(settings);
    require((s.data != nullptr && n.data != nullptr) || s.size() == 0, "scores and noise_scores must not be null");
    require_same_shape("noise_scores", n, "scores", s);
    require_same_shape("noisy", out, "scores", s);
    require_apart_or_same<Policy>("noisy", out, "scores", s);
    require_apart<Policy>("noisy", out, "noise_scores", n);
    for_each_index(policy, s.rows * ((s.columns + 3) / 4),
                   detail::add_score_noise<S, typename s_view::value_type, typename n_view::value_type,
                                           typename out_view::value_type, typename s_view::space>{
                       s, n, out, settings.noise, static_cast<S>(settings.least_deviation)});
}

/// d_noisy[T, E] -> d_scores[T, E], d_noise_scores[T, E], with the settings of the forward call.
template <class Policy, class NoiseScores, class In, class OutScores, class OutNoise>
void noisy_scores_backward(const Policy& policy, const NoiseScores& noise_scores, const noisy_score_settings& settings,
                           const In& d_noisy, OutScores&& d_scores, OutNoise&& d_noise_scores) {
    const auto n = detail::token_view(noise_scores);
    const auto in = detail::token_view(d_noisy);
    const auto out = detail::output_view(d_scores);
    const auto out_noise = detail::output_view(d_noise_scores);
    using n_view = std::remove_const_t<decltype(n)>;
    using in_view = std::remove_const_t<decltype(in)>;
    using out_view = std::remove_const_t<decltype(out)>;
    using noise_view = std::remove_const_t<decltype(out_noise)>;
    require_space<Policy, n_view, in_view, out_view, noise_view>();
    detail::require_settings(settings);
    require_same_shape("d_noisy", in, "noise_scores", n);
    require_same_shape("d_scores", out, "noise_scores", n);
    require_same_shape("d_noise_scores", out_noise, "noise_scores", n);
    require_apart_or_same<Policy>("d_scores", out, "d_noisy", in);
    require_apart<Policy>("d_scores", out, "noise_scores", n, "d_noise_scores", out_noise);
    require_apart<Policy>("d_noise_scores", out_noise, "d_noisy", in, "noise_scores", n);
    using S = compute_t<typename in_view::value_type>;
    for_each_index(policy, n.rows * ((n.columns + 3) / 4),
                   detail::split_score_gradient<S, typename n_view::value_type, typename in_view::value_type,
                                                typename out_view::value_type, typename noise_view::value_type,
                                                typename n_view::space>{n, in, out, out_noise, settings.noise});
}

}  // namespace SWITCHYARD_TARGET
}  // namespace switchyard
