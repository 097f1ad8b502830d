// SparseMixer: two experts drawn in turn, each from a softmax over the experts near the best one that is left.
//
//   A = { e : not (m - s_e) / max(|s_e|, m) > 2 epsilon },  m = max_e s_e    s = scores[T, E], over experts not yet
//   drawn q = softmax of s over A expert = argmax over A of s + Gumbel in training, argmax of s at inference gate =
//   q_expert, in training times off_peak unless the draw is the argmax or a uniform number is above 3/4
//
// twice, the second time without the first's expert. Gates do not sum to 1. Drawing explores; the midpoint rule, Heun's
// of third order, makes the gradient that of the expectation. Backward has a formula of its own, for each draw with the
// A and q of its turn, with h = d_gate of a choice that has a slot:
//
//   d s_e += h q_expert ([e = expert] - q_e)    over A; nothing elsewhere, and without the factor off_peak
//
// At inference that is the gradient of the gates. Losses are top-k's: of the softmax over all experts, of first choices
// unless asked otherwise. A token with one allowed expert has a forbidden second, gate 0. Padding has expert -1 in both
// choices. Needs E >= 2. Ties: the lower expert. Random numbers from (seed, stream, step, token, column).
//
// O(T E). By kernels rows are read by the generic device code, one thread per token; nothing waits.
//
// Liu, Gao, Chen 2023, "Sparse Backpropagation for MoE Training", arXiv 2310.00811; Liu et al. 2024, "GRIN", arXiv
// 2409.12136. PhiMoE: router_of(models::phimoe{...}), whose code has 0.3333 in the place of 1/3.
#pragma once

#include <switchyard/backend/policy.hpp>
#include <switchyard/core/bits.hpp>
#include <switchyard/core/config.hpp>
#include <switchyard/core/error.hpp>
#include <switchyard/core/matrix_view.hpp>
#include <switchyard/core/philox.hpp>
#include <switchyard/core/rounding.hpp>
#include <switchyard/core/scalar_traits.hpp>
#include <switchyard/core/simd.hpp>
#include <switchyard/plan/capacity.hpp>
#include <switchyard/plan/plan.hpp>
#include <switchyard/plan/slots.hpp>
#include <switchyard/router/routing.hpp>
#include <switchyard/router/softmax_routing.hpp>
#include <switchyard/score/noise.hpp>
#include <switchyard/score/select.hpp>
#include <switchyard/score/softmax.hpp>

#include <cmath>
#include <cstdint>

namespace switchyard {

struct sparse_mixer_router {
    double epsilon = 0.01;     ///< >= 0: how near the best a drawn expert lies, half of it
    double off_peak = 1. / 3;  ///< finite: the factor of a gate away from the peak

    capacity_rule capacity{};            ///< in training; none by default
    capacity_rule inference_capacity{};  ///< otherwise
    drop_order order = drop_order::position;

    float input_jitter = 0;   ///< epsilon in [0, 1). Needs tokens
    float input_dropout = 0;  ///< rate in [0, 1). Needs tokens
    float logit_jitter = 0;   ///< epsilon in [0, 1)

    double balance_weight = 0;
    balance_count balance = balance_count::first;
    double z_weight = 0;
    bad_scores bad = bad_scores::error;
};

template <>
inline constexpr bool is_library_router<sparse_mixer_router> = true;

inline namespace SWITCHYARD_TARGET {

constexpr std::uint64_t fingerprint_of(const sparse_mixer_router& r) {
    return fingerprint('m', r.epsilon, r.logit_jitter, r.input_jitter, r.input_dropout, r.balance_weight,
                       static_cast<int>(r.balance), r.z_weight);
}

/// Fails with an error message where a setting is out of range.
inline void require_settings(const sparse_mixer_router& r, index_t experts, const run_mode& mode) {
    require(experts >= 2, "E = ", experts, " expert: two draws need at least 2");
    require(r.epsilon >= 0 && std::isfinite(r.epsilon), "epsilon = ", r.epsilon, " must be finite and not negative");
    require_noise(r, mode);
    require(!mode.is_training || mode.has_stream,
            "training::stream is not set, and experts are drawn: give each layer a stream of its own, since layers "
            "with the same one share their noise");
    require_weights({{"off_peak", r.off_peak}, {"balance_weight", r.balance_weight}, {"z_weight", r.z_weight}});
}

inline softmax_settings softmax_settings_of(const sparse_mixer_router& r, index_t capacity) {
    return {.slots = {.order = r.order, .balance = r.balance},
            .balance_weight = r.balance_weight,
            .z_weight = r.z_weight,
            .bad = r.bad,
            .may_drop = capacity != unlimited};
}

namespace detail {

/// exp(s - m) in A, 0 elsewhere. What is infinity or 0 by itself is no number here, which is near: -infinity has the
/// exponential 0 all the same, and where all of these scores are 0, all are in A.
template <class S, int W>
SWITCHYARD_HD pack<S, W> near_exponentials(pack<S, W> score, S most, S limit) {
    using P = pack<S, W>;
    const P peak = P::all(most);
    const P size = max(max(score, P::all(S(0)) - score), peak);
    const P far = P::all(limit);
    return where(above((peak - score) / size, far), P::all(S(0)), exp_nonpositive<S, W>(score - peak));
}

/// The experts that one draw is from, and their softmax.
template <class S, int W>
struct mixer_turn {
    const S* left;   ///< [padded E] scores, -infinity where an expert is gone
    S* exponential;  ///< [padded E] of s - most, 0 outside A
    index_t peak = -1;
    S sum = 0;  ///< of the exponentials

    /// `limit` is 2 epsilon.
    SWITCHYARD_HD mixer_turn(const S* scores, index_t experts, S limit, S* room) : left(scores), exponential(room) {
        using P = pack<S, W>;
        P maxima = P::all(lowest<S>());
        for (index_t j = 0; j < experts; j += W) maxima = max(maxima, P::load(left + j));
        const S most = highest(maxima);
        if (!(most > lowest<S>())) return;
        P sums = P::all(S(0));
        for (index_t j = 0; j < experts; j += W) {
            const P score = P::load(left + j);
            const std::uint32_t found = equal_bits(score, P::all(most));
            peak = peak < 0 && found != 0 ? j + first_bit(found) : peak;
            const P near = settled(near_exponentials(score, most, limit));
            near.store(exponential + j);
            sums = sums + near;
        }
        sum = total(sums);
    }
    /// An expert whose exponential is 0 in the type is never drawn.
    SWITCHYARD_HD bool has(index_t e) const { return exponential[e] > S(0); }
    SWITCHYARD_HD S share(index_t e) const { return exponential[e] / sum; }
};

/// A copy of a row, padded with -infinity.
template <int W, class S>
SWITCHYARD_HD void copy_padded(const S* row, index_t experts, S* to) {
    for (index_t e = 0; e < padded<W>(experts); ++e) to[e] = e < experts ? usable(row[e]) : lowest<S>();
}

template <class S>
struct select_two_draws {
    static constexpr bool needs_best = false;
    std::int32_t* expert;  ///< [T, 2]
    S* gate;               ///< [T, 2]
    index_t experts;
    S limit;
    S off_peak;
    bool draws;
    noise_key noise;

    template <int W>
    SWITCHYARD_HD index_t scratch_size() const {
        return 2 * padded<W>(experts);
    }
    template <int W>
    SWITCHYARD_HD void choose(index_t token, const S* row, S, S, index_t, pack<S, W>, S* left) const {
        index_t taken = -1;
        copy_padded<W>(row, experts, left);
        for (index_t turn = 0; turn < 2; ++turn) {
            const mixer_turn<S, W> from(left, experts, limit, left + padded<W>(experts));
            if (from.peak < 0) {  // one expert was allowed
                expert[token * 2 + turn] = forbidden_choice(taken == 0 ? 1 : 0);
                gate[token * 2 + turn] = S(0);
                continue;
            }
            taken = draws ? draw(from, token, turn) : from.peak;
            if (taken < 0) taken = from.peak;  // unchecked scores compare with nothing
            expert[token * 2 + turn] = static_cast<std::int32_t>(taken);
            const bool is_whole = !draws || taken == from.peak ||
                                  uniform_at(for_purpose(noise, noise_purpose::midpoints), token, turn) > 0.75f;
            gate[token * 2 + turn] = from.share(taken) * (is_whole ? S(1) : off_peak);
            left[taken] = lowest<S>();
        }
    }
    SWITCHYARD_HD void padding(index_t token) const { give_none(token, padding_choice, padding_choice); }
    SWITCHYARD_HD void forbid_all(index_t token) const { give_none(token, forbidden_choice(0), forbidden_choice(1)); }

  private:
    SWITCHYARD_HD void give_none(index_t token, std::int32_t first, std::int32_t second) const {
        expert[token * 2] = first;
        expert[token * 2 + 1] = second;
        gate[token * 2] = gate[token * 2 + 1] = S(0);
    }
    /// By groups of four columns, which share their random numbers; none are made for experts that are not near.
    template <int W>
    SWITCHYARD_HD index_t draw(const mixer_turn<S, W>& from, index_t token, index_t turn) const {
        const noise_key key = for_purpose(noise, noise_purpose::draws);
        const index_t groups = padded<4>(experts) / 4;
        index_t drawn = -1;
        S highest_score = 0;
        for (index_t group = 0; group < groups; ++group) {
            const index_t last = group * 4 + 4 < experts ? group * 4 + 4 : experts;
            bool is_near = false;
            for (index_t e = group * 4; e < last; ++e) is_near = is_near || from.has(e);
            if (!is_near) continue;
            const philox_words words = noise_words(key, token, turn * groups + group);
            for (index_t e = group * 4; e < last; ++e) {
                if (!from.has(e)) continue;
                const S perturbed = from.left[e] + gumbel<S>(uniform(word_at(words, e % 4)));
                if (drawn < 0 || perturbed > highest_score) {
                    highest_score = perturbed;
                    drawn = e;
                }
            }
        }
        return drawn;
    }
};

/// The row program of backward.
template <class Source, class S, class Space, class GateStorage, class ScoreStorage>
struct mixer_backward_pass {
    Source source;
    plan_view<S, Space> plan;
    matrix_view<const GateStorage, Space> d_gates;
    matrix_view<ScoreStorage, Space> d_scores;
    S limit;
    const S* balance_gradient;  ///< [padded E] a_e, or null
    double z_weight;            ///< loss scale included

    template <int W>
    SWITCHYARD_HD index_t scratch_size() const {
        return 4 * padded<W>(plan.experts);
    }
    template <int W>
    SWITCHYARD_HD void run(index_t first, index_t last, S* scratch) const {
        const index_t length = padded<W>(plan.experts);
        S* const left = scratch + 2 * length;
        for (index_t token = first; token < last; ++token) {
            const S* const row = source.row(token, scratch + length);
            add_losses(token, row, scratch);
            copy_padded<W>(row, plan.experts, left);
            for (index_t turn = 0; turn < 2 && plan.row_sum[token] > S(0); ++turn) {
                add_turn<W>(token, turn, left, scratch);
            }
            source.pull_back(token, row, scratch);
            for (index_t e = 0; e < plan.experts; ++e) {
                d_scores(token, e) = store_scalar<ScoreStorage>(static_cast<compute_t<ScoreStorage>>(scratch[e]));
            }
        }
    }

  private:
    /// gradient = that of the losses.
    SWITCHYARD_HD void add_losses(index_t token, const S* row, S* gradient) const {
        const S sum = plan.row_sum[token];
        const bool has_losses = sum > S(0) && (balance_gradient != nullptr || z_weight != 0);
        S weighted = 0;
        for (index_t e = 0; e < plan.experts; ++e) {
            gradient[e] = has_losses ? softmax_value(usable(row[e]), plan.row_maximum[token], sum) : S(0);
            weighted += balance_gradient != nullptr ? rounded_times(gradient[e], balance_gradient[e]) : S(0);
        }
        if (!has_losses) return;
        const double z = z_weight != 0 ? z_loss_gradient(z_weight, row_logsumexp(plan.row_maximum[token], sum),
                                                         plan.totals->counted_tokens)
                                       : 0.0;
        const S shift = static_cast<S>(z) - weighted;
        for (index_t e = 0; e < plan.experts; ++e) {
            gradient[e] *= (balance_gradient != nullptr ? balance_gradient[e] : S(0)) + shift;
            gradient[e] = settled(gradient[e]);
        }
    }
    /// Adds a draw's, and takes its expert out.
    template <int W>
    SWITCHYARD_HD void add_turn(index_t token, index_t turn, S* left, S* gradient) const {
        const index_t position = token * 2 + turn;
        const std::int32_t drawn = plan.expert[position];
        if (drawn < 0 || !(left[drawn] > lowest<S>())) return;
        if (plan.slot[position] >= 0) {
            const mixer_turn<S, W> from(left, plan.experts, limit, left + padded<W>(plan.experts));
            const S weight = static_cast<S>(load_scalar(d_gates(token, turn))) * from.share(drawn);
            for (index_t e = 0; e < plan.experts; ++e) {
                gradient[e] -= rounded_times(weight, from.share(e));
            }
            gradient[drawn] += weight;
        }
        left[drawn] = lowest<S>();
    }
};

}  // namespace detail

/// scores[T, E] -> plan with 2 choices. The plan's arrays lie apart from the scores.
template <class Policy, class Scores, class Plan, class Workspace>
void route_scores(const Policy& policy, const sparse_mixer_router& router, const Scores& scores, const run_mode& mode,
                  Plan& plan, Workspace& scratch) {
    using S = typename Plan::scalar;
    const auto choose = [&](const auto& source, const softmax_settings& settings, const auto& made) {
        route_softmax(
            policy, source, mode, made, settings, scratch,
            detail::select_two_draws<S>{made.expert, made.gate, made.experts, static_cast<S>(2 * router.epsilon),
                                        static_cast<S>(router.off_peak), mode.is_training, mode.noise});
    };
    route_by_rows(policy, router, 2, scores, mode, plan, scratch, choose);
}

/// Backward behind its checks.
template <class Policy, class Source, class S, class Space, class GateStorage, class ScoreStorage, class Workspace>
void differentiate_router(const Policy& policy, const sparse_mixer_router& router, const Source& source,
                          const plan_view<S, Space>& plan, const matrix_view<const GateStorage, Space>& d_gates,
                          const matrix_view<ScoreStorage, Space>& d_scores, const softmax_settings& settings,
                          const backward_settings& backward, Workspace& scratch) {
    S* const balance_gradient = detail::take_balance_gradient(policy, plan, settings, backward, scratch);
    const detail::mixer_backward_pass<Source, S, Space, GateStorage, ScoreStorage> pass{
        source,
        plan,
        d_gates,
        d_scores,
        static_cast<S>(2 * router.epsilon),
        balance_gradient,
        settings.z_weight * backward.loss_scale};
    run_rows(policy, pass, plan.tokens, balance_gradient, scratch);
}

}  // namespace SWITCHYARD_TARGET
}  // namespace switchyard
