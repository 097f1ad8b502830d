// What all routers share: the run they are in, what they do with bad scores, and the row pass over a softmax.
//
//   route_scores(policy, router, scores[T, E], training{.seed = 7, .step = n}, plan, workspace)
//
// is written by every router; router/route.hpp adds the allocating form, the form from tokens, and backward through the
// projection. Without `training{}` a run is inference: no noise, no losses, nothing kept for backward.
#pragma once

#include <switchyard/backend/policy.hpp>
#include <switchyard/core/arguments.hpp>
#include <switchyard/core/config.hpp>
#include <switchyard/core/error.hpp>
#include <switchyard/core/matrix_view.hpp>
#include <switchyard/core/rounding.hpp>
#include <switchyard/core/row_blocks.hpp>
#include <switchyard/core/scalar_traits.hpp>
#include <switchyard/core/simd.hpp>
#include <switchyard/plan/plan.hpp>
#include <switchyard/score/noise.hpp>
#include <switchyard/score/softcap.hpp>

#include <bit>
#include <cmath>
#include <cstdint>
#include <initializer_list>
#include <limits>
#include <optional>
#include <type_traits>

namespace switchyard {

/// A training step: noise as the router's settings say, losses, and a plan that backward can use.
struct training {
    std::uint64_t seed = 0;
    /// Identifies the layer: layers with the same stream share noise. A router that has noise refuses a step without
    /// one.
    std::optional<std::uint32_t> stream{};
    std::uint32_t step = 0;
    token_mask mask{};  ///< [T], 0 marks padding
};

/// Inference: decisions without noise.
struct inference {
    token_mask mask{};
};

/// Either of the two, as routers take it.
struct run_mode {
    bool is_training = false;
    noise_key noise{};
    token_mask mask{};
    index_t width = 0;        ///< D where the scores were made from tokens; set by `route`
    bool has_stream = false;  ///< of noise

    constexpr run_mode() = default;
    // Implicit, so that a call reads route(seq, router, x, w, training{...}).
    // NOLINTNEXTLINE(google-explicit-constructor)
    SWITCHYARD_ALWAYS_INLINE constexpr run_mode(const training& t)
        : is_training(true),
          noise{t.seed, t.stream.value_or(0), t.step, 0},
          mask(t.mask),
          has_stream(t.stream.has_value()) {}
    // NOLINTNEXTLINE(google-explicit-constructor)
    SWITCHYARD_ALWAYS_INLINE constexpr run_mode(const inference& i) : mask(i.mask) {}
};

/// What happens to NaN and +infinity in scores. -infinity is never bad: it forbids an expert for a token.
enum class bad_scores {
    error,       ///< an error that names the first (token, expert); where work is asynchronous, a status in the plan
    forbid_nan,  ///< NaN counts as -infinity; +infinity is still an error
    unchecked,   ///< nothing is promised except that experts are in range
};

/// Settings of backward.
struct backward_settings {
    double loss_scale = 1;  ///< gradient of the total with respect to the auxiliary losses
};

/// The library's own routers, whose route_scores are found in its namespace.
template <class Router>
inline constexpr bool is_library_router = false;

inline namespace SWITCHYARD_TARGET {

/// Fingerprint of settings: a hash of their values, one multiplication each (decoding steps compute it too).
template <class... Values>
constexpr std::uint64_t fingerprint(const Values&... values) {
    std::uint64_t hash = 0xcbf29ce484222325u;
    const auto mix = [&hash](std::uint64_t word) {
        hash = (hash ^ word) * 0x9e3779b97f4a7c15u;
        hash ^= hash >> 32;
    };
    const auto word_of = [](const auto& value) {
        if constexpr (std::is_floating_point_v<std::remove_cvref_t<decltype(value)>>) {
            return std::bit_cast<std::uint64_t>(static_cast<double>(value));
        } else {
            return static_cast<std::uint64_t>(value);
        }
    };
    (mix(word_of(values)), ...);
    return hash;
}

/// Scores as rows of compute scalars: converted, made contiguous, and changed on the way where asked for:
///   (multiplier s + bias_e), under the cap, times the jitter.
template <class Storage, class Space>
struct score_rows {
    using compute = compute_t<Storage>;
    matrix_view<const Storage, Space> scores;
    float logit_jitter = 0;
    noise_key noise{};
    const compute* bias = nullptr;  ///< [E padded to 16 numbers], or null
    compute multiplier = compute(1);
    compute cap = compute(0);  ///< 0: none

    /// Whether scores are other numbers than those of the matrix.
    SWITCHYARD_HD bool changes_scores() const {
        return logit_jitter != 0 || bias != nullptr || multiplier != compute(1) || cap != compute(0);
    }
    /// Rows can be read where they lie.
    SWITCHYARD_HD bool direct() const {
        return std::is_same_v<Storage, compute> && !changes_scores() && scores.rows_contiguous();
    }
    /// The row of a token: in place, or in `scratch` (E numbers).
    SWITCHYARD_HD const compute* row(index_t token, compute* scratch) const {
        if constexpr (std::is_same_v<Storage, compute>) {
            if (direct()) {
                return scores.row(token);
            }
        }
        for (index_t e = 0; e < scores.columns; ++e) {
            scratch[e] = load_scalar(scores(token, e));
        }
        change<1>(token, scratch);
        return scratch;
    }
    /// Rows first .. first + count as `row` gives them, `stride` numbers apart: a multiple of W, and at least E.
    template <int W>
    void rows(index_t first, index_t count, compute* out, index_t stride) const {
        load_rows<W>(scores, first, count, out, stride);
        for (index_t i = 0; i < count && changes_scores(); ++i) {
            change<W>(first + i, out + i * stride);
        }
    }
    /// gradient[e] of score e of `row` becomes that of the matrix's number.
    SWITCHYARD_HD void pull_back(index_t token, const compute* row, compute* gradient) const {
        if (logit_jitter != 0) {
            for_each_jitter(token, [&](index_t e, compute factor) {
                gradient[e] = pulled_back(gradient[e] * factor, row[e] / factor);
            });
        } else if (multiplier != compute(1) || cap != compute(0)) {
            for (index_t e = 0; e < scores.columns; ++e) {
                gradient[e] = pulled_back(gradient[e], row[e]);
            }
        }
    }
    /// One score of that row.
    SWITCHYARD_HD compute at(index_t token, index_t expert) const {
        return changed(token, expert, load_scalar(scores(token, expert)));
    }
    /// A number of the matrix as the score that it becomes.
    SWITCHYARD_HD compute changed(index_t token, index_t expert, compute score) const {
        using P = pack<compute, 1>;
        const compute quiet = before_jitter(P{score}, P{bias != nullptr ? bias[expert] : compute(0)}).v;
        return logit_jitter == 0
                   ? quiet
                   : quiet *
                         jitter_factor<compute>(
                             uniform_at(for_purpose(noise, noise_purpose::logit_jitter), token, expert), logit_jitter);
    }
    /// Numbers of the matrix as scores without jitter; `added` are their experts' biases.
    template <int W>
    SWITCHYARD_HD SWITCHYARD_ALWAYS_INLINE pack<compute, W> before_jitter(pack<compute, W> score,
                                                                          pack<compute, W> added) const {
        using P = pack<compute, W>;
        if (multiplier != compute(1)) {
            score = rounded_times(score, P::all(multiplier));
        }
        if (bias != nullptr) {
            score = score + added;
        }
        return cap != compute(0) ? softcap(score, cap) : score;
    }
    /// The gradient of a number of the matrix, from that of its score without jitter.
    SWITCHYARD_HD compute pulled_back(compute gradient, compute score) const {
        if (cap != compute(0)) {
            gradient *= softcap_derivative(pack<compute, 1>{score}, cap).v;
        }
        return gradient * multiplier;
    }

  private:
    template <class F>
    SWITCHYARD_HD void for_each_jitter(index_t token, const F& f) const {
        for_each_uniform(for_purpose(noise, noise_purpose::logit_jitter), token, scores.columns,
                         [&](index_t e, float u) { f(e, jitter_factor<compute>(u, logit_jitter)); });
    }
    /// A row of whole packs.
    template <int W>
    SWITCHYARD_HD void change(index_t token, compute* row) const {
        using P = pack<compute, W>;
        for (index_t e = 0; e < scores.columns; e += W) {
            before_jitter(P::load(row + e), bias != nullptr ? P::load(bias + e) : P::all(compute(0))).store(row + e);
        }
        if (logit_jitter != 0) {
            for_each_jitter(token, [&](index_t e, compute factor) { row[e] *= factor; });
        }
    }
};

template <class Storage, class Space>
score_rows<Storage, Space> score_rows_of(const matrix_view<const Storage, Space>& scores, float logit_jitter,
                                         const noise_key& noise) {
    return {.scores = scores, .logit_jitter = logit_jitter, .noise = noise};
}

/// Fails, with a message, unless the memory and the scalars of a call match.
template <class Policy, class Scores, class Plan>
constexpr void require_memory() {
    using space = typename Policy::memory::space;
    static_assert(std::is_same_v<space, typename detail::input_type<Scores>::space>,
                  "switchyard: the scores do not lie in the memory this policy works in (host views for CPU policies, "
                  "device views for device policies)");
    static_assert(std::is_same_v<space, typename Plan::space>,
                  "switchyard: the plan does not lie in the memory this policy works in");
    static_assert(std::is_same_v<compute_t<detail::number_of<Scores>>, typename Plan::scalar>,
                  "switchyard: a plan holds gates in the compute type of its scores: float for float, half and "
                  "bfloat16, double for double");
}

/// Checks that hold for every router.
template <class Policy, class View>
void require_scores(const View& scores, const token_mask& mask) {
    require(scores.rows >= 0 && scores.columns >= 0, "scores have the shape ", scores.rows, " x ", scores.columns);
    require(scores.columns >= 1, "scores have E = 0 experts: there must be at least one");
    require(scores.data != nullptr || scores.rows == 0, "scores are a null pointer");
    require(scores.rows < std::numeric_limits<std::int32_t>::max(), "T = ", scores.rows,
            " tokens: a plan numbers slots in 32 bits, split the batch");
    require(scores.columns < std::numeric_limits<std::int32_t>::max() / 2, "E = ", scores.columns,
            " experts are too many");
    require_mask<Policy>(mask, scores.rows);
}

/// A setting and its name, for error messages.
template <class T>
struct named_setting {
    const char* name;
    T value;
};

/// Loss weights are finite.
inline void require_weights(std::initializer_list<named_setting<double>> settings) {
    for (const auto& setting : settings) {
        require(std::isfinite(setting.value), setting.name, " = ", setting.value, " must be finite");
    }
}

/// The gradient of the losses is a number.
inline void require_settings(const backward_settings& backward) {
    require_weights({{"loss_scale", backward.loss_scale}});
}

/// Noise of the kinds that routers share, and `other` where one has more: rates lie in [0, 1), noise on the input needs
/// the input, and all noise needs a stream of numbers of the layer's own.
template <class Router>
void require_noise(const Router& router, const run_mode& mode, const named_setting<float>& other = {"", 0}) {
    const named_setting<float> noise[] = {{"input_jitter", router.input_jitter},
                                          {"input_dropout", router.input_dropout},
                                          {"logit_jitter", router.logit_jitter},
                                          other};
    for (const auto& setting : noise) {
        require(&setting == &noise[3] || (setting.value >= 0 && setting.value < 1), setting.name, " = ", setting.value,
                " must lie in [0, 1)");
    }
    if (!mode.is_training) return;
    require(mode.width != 0 || (router.input_jitter == 0 && router.input_dropout == 0),
            "input_jitter and input_dropout act on tokens, and only scores were given: use route(), or logit_jitter");
    for (const auto& setting : noise) {
        require(mode.has_stream || setting.value == 0, "training::stream is not set, and ", setting.name, " = ",
                setting.value,
                " draws noise: give each layer a stream of its own, since layers with the same one share their noise");
    }
}

constexpr plan_origin origin_of(const run_mode& mode, std::uint64_t settings) {
    return {.settings = settings, .training = mode.is_training, .width = mode.width, .noise = mode.noise};
}

/// Raises the error for a row whose scores cannot be routed.
template <class Source>
[[noreturn]] void fail_bad_row(const Source& source, index_t token, plan_status status, bad_scores bad) {
    if (status == plan_status::unroutable) {
        fail("token ", token, " has every expert forbidden (-infinity) and may not be dropped");
    }
    for (index_t e = 0; e < source.scores.columns; ++e) {
        const double score = static_cast<double>(load_scalar(source.scores(token, e)));
        if ((std::isnan(score) && bad != bad_scores::forbid_nan) || score == std::numeric_limits<double>::infinity()) {
            fail("scores[", token, ", ", e, "] is ", std::isnan(score) ? "NaN" : "+infinity",
                 ": a score must be finite, or -infinity to forbid an expert");
        }
    }
    fail("scores of token ", token, " leave the range of their type after the router's noise, bias or multiplier");
}

}  // namespace SWITCHYARD_TARGET
}  // namespace switchyard
