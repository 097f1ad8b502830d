// The GShard router: two experts per token, of which the second may be left out by a policy.
//
//   p = softmax(s[T, E]);  a = argmax s;  b = argmax of s without a
//   second kept    all        always
//                  none       never: one expert, weighed as if there were two
//                  random     where u < w / second_threshold                    w = p_b / D, or p_b itself
//                  threshold  where w > second_threshold
//                  sampling   always, and b = argmax of s + Gumbel without a
//   D = p_a + p_b + epsilon, or max(p_a + p_b, epsilon)
//   gates          none                 p_a, p_b
//                  before_drops         p_a / D, p_b / D
//                  after_drops          the same with D of what the policy and capacity kept: alone, a choice has 1
//                  first_before_drops   p_a / D, p_b    (what Hugging Face's NLLB does under `random`)
//
// The defaults are GShard's: random with threshold 1/2, that is 2 w > u, and gates before drops with epsilon 1e-9.
// Mesh TensorFlow has the threshold 0.2. router_of(models::nllb_moe{...}) is NLLB's. u and the Gumbel numbers are drawn
// from (seed, stream, step, token, column), in training alone: inference has a policy of its own.
//
// A second choice that the policy leaves out keeps its place and its expert in the plan, with slot -1 and gate 0, as
// one over capacity; but it asks for no slot: it is in no load, and later tokens take its place. All first choices
// take slots before any second; by gate order, tokens come by falling p_a. Balance loss and z-loss are top-k's, of
// first choices unless asked otherwise.
//
// Backward, `route_scores_backward`, is that of the gates as they are: the policy's decision, like the choice, is a
// constant. Padding has expert -1 in both choices. A token with one allowed expert has a forbidden second, gate 0.
// Needs E >= 2. Ties: the lower expert. O(T E); 3 numbers of scratch per token at most. By kernels rows are read by the
// generic device code, one thread per token; nothing waits.
//
// Lepikhin et al. 2020, "GShard", arXiv 2006.16668; NLLB Team 2022, arXiv 2207.04672.
#pragma once

#include <switchyard/backend/policy.hpp>
#include <switchyard/core/config.hpp>
#include <switchyard/core/error.hpp>
#include <switchyard/core/matrix_view.hpp>
#include <switchyard/core/rounding.hpp>
#include <switchyard/core/scalar_traits.hpp>
#include <switchyard/core/simd.hpp>
#include <switchyard/plan/capacity.hpp>
#include <switchyard/plan/plan.hpp>
#include <switchyard/plan/slots.hpp>
#include <switchyard/router/routing.hpp>
#include <switchyard/router/softmax_routing.hpp>
#include <switchyard/score/gates.hpp>
#include <switchyard/score/noise.hpp>
#include <switchyard/score/select.hpp>
#include <switchyard/score/softmax.hpp>

#include <cmath>
#include <cstdint>
#include <limits>

namespace switchyard {

/// Which second choices are kept.
enum class second_choice { all, none, random, threshold, sampling };

/// What a policy compares with its threshold.
enum class second_weight {
    share,        ///< p_b / D
    probability,  ///< p_b
};

/// When two gates are divided by their sum.
enum class pair_sum { none, before_drops, after_drops, first_before_drops };

struct gshard_router {
    second_choice second = second_choice::random;         ///< in training
    second_choice inference_second = second_choice::all;  ///< otherwise: all, none or threshold
    double second_threshold = 0.5;                        ///< > 0, of random and threshold
    second_weight compared = second_weight::share;        ///< by random and threshold
    pair_sum normalize = pair_sum::before_drops;
    gate_sum epsilon_kind = gate_sum::add;  ///< add or clamp
    double epsilon = 1e-9;                  ///< >= 0

    capacity_rule capacity{};            ///< in training; none by default
    capacity_rule inference_capacity{};  ///< otherwise
    drop_order order = drop_order::position;

    float input_jitter = 0;   ///< epsilon in [0, 1). Needs tokens
    float input_dropout = 0;  ///< rate in [0, 1). Needs tokens
    float logit_jitter = 0;   ///< epsilon in [0, 1)

    double balance_weight = 1e-2;
    balance_count balance = balance_count::first;
    double z_weight = 0;
    bad_scores bad = bad_scores::error;
};

template <>
inline constexpr bool is_library_router<gshard_router> = true;

inline namespace SWITCHYARD_TARGET {

constexpr std::uint64_t fingerprint_of(const gshard_router& r) {
    return fingerprint('g', static_cast<int>(r.normalize), static_cast<int>(r.epsilon_kind), r.epsilon, r.logit_jitter,
                       r.input_jitter, r.input_dropout, r.balance_weight, static_cast<int>(r.balance), r.z_weight);
}

/// Fails with an error message where a setting is out of range.
inline void require_settings(const gshard_router& r, index_t experts, const run_mode& mode) {
    require(experts >= 2, "E = ", experts, " expert: a second choice needs at least 2");
    require(r.second_threshold > 0 && std::isfinite(r.second_threshold), "second_threshold = ", r.second_threshold,
            " must be finite and more than 0");
    require(r.epsilon_kind == gate_sum::add || r.epsilon_kind == gate_sum::clamp,
            "epsilon_kind must be gate_sum::add or gate_sum::clamp");
    require(r.epsilon >= 0 && std::isfinite(r.epsilon), "epsilon = ", r.epsilon, " must be finite and not negative");
    require(r.inference_second != second_choice::random && r.inference_second != second_choice::sampling,
            "inference_second draws noise, which inference has none of: use all, none or threshold");
    require_noise(r, mode);
    require(
        !mode.is_training || mode.has_stream ||
            (r.second != second_choice::random && r.second != second_choice::sampling),
        "training::stream is not set, and the second choice draws noise: give each layer a stream of its own, since "
        "layers with the same one share their noise");
    require_weights({{"balance_weight", r.balance_weight}, {"z_weight", r.z_weight}});
}

/// Gates of the row pass are the probabilities themselves: they are divided when slots are given out.
inline softmax_settings softmax_settings_of(const gshard_router& r, index_t capacity) {
    return {.slots = {.order = r.order, .balance = r.balance},
            .balance_weight = r.balance_weight,
            .z_weight = r.z_weight,
            .bad = r.bad,
            .may_drop = capacity != unlimited};
}

namespace detail {

/// What two probabilities are divided by.
template <class S>
struct pair_divisor {
    gate_sum kind;
    S epsilon;

    SWITCHYARD_HD S of(S sum) const { return kind == gate_sum::add ? sum + epsilon : sum > epsilon ? sum : epsilon; }
    /// d D / d sum.
    SWITCHYARD_HD S slope(S sum) const { return kind == gate_sum::clamp && sum < epsilon ? S(0) : S(1); }
};

/// The two best; a second that the policy leaves out is noted as forbidden, which asks for no slot.
template <class S>
struct select_pair {
    static constexpr bool needs_best = false;
    std::int32_t* expert;  ///< [T, 2]
    S* gate;               ///< [T, 2]
    S* divisor;            ///< [T]
    index_t experts;
    second_choice policy;
    second_weight compared;
    double threshold;
    pair_divisor<S> divided;
    noise_key noise;

    template <int W>
    SWITCHYARD_HD void choose(index_t token, const S* row, S maximum, S sum, index_t, pack<S, W> column_maxima,
                              S* scratch) const {
        S* const p = gate + token * 2;
        std::int32_t* const choice = expert + token * 2;
        select_top_k<W>(row, experts, 2, column_maxima, p, choice, scratch);
        if (policy == second_choice::sampling) {
            sample_second(token, row, p, choice);
        }
        const bool is_allowed = p[1] > lowest<S>();
        p[0] = softmax_value(p[0], maximum, sum);
        p[1] = is_allowed ? softmax_value(p[1], maximum, sum) : S(0);
        divisor[token] = divided.of(p[0] + p[1]);
        if (!is_allowed || !keeps(token, p[1])) {
            choice[1] = forbidden_choice(choice[1]);
        }
    }
    SWITCHYARD_HD void padding(index_t token) const { give_none(token, padding_choice, padding_choice); }
    SWITCHYARD_HD void forbid_all(index_t token) const { give_none(token, forbidden_choice(0), forbidden_choice(1)); }

  private:
    SWITCHYARD_HD void give_none(index_t token, std::int32_t first, std::int32_t second) const {
        expert[token * 2] = first;
        expert[token * 2 + 1] = second;
        gate[token * 2] = gate[token * 2 + 1] = S(0);
        divisor[token] = S(1);
    }
    SWITCHYARD_HD bool keeps(index_t token, S p) const {
        const S weight = compared == second_weight::probability ? p : p / divisor[token];
        const auto level = static_cast<S>(threshold);
        if (policy == second_choice::random) {
            const float u = uniform_at(for_purpose(noise, noise_purpose::second_choice), token, 0);
            return rounded_times(static_cast<S>(u), level) < weight;
        }
        return policy == second_choice::threshold ? weight > level : policy != second_choice::none;
    }
    SWITCHYARD_HD void sample_second(index_t token, const S* row, S* score, std::int32_t* choice) const {
        index_t chosen = -1;
        S highest_score = 0;
        for_each_uniform(for_purpose(noise, noise_purpose::sampling), token, experts, [&](index_t e, float u) {
            const S perturbed = row[e] + gumbel<S>(u);
            if (e != choice[0] && row[e] > lowest<S>() && (chosen < 0 || perturbed > highest_score)) {
                highest_score = perturbed;
                chosen = e;
            }
        });
        if (chosen >= 0) {
            choice[1] = static_cast<std::int32_t>(chosen);
            score[1] = row[chosen];
        }
    }
};

/// A token's probabilities become gates. Those of choices without a slot are 0 by now.
template <class S, class Space>
struct divide_pair {
    plan_view<S, Space> plan;
    const S* divisor;  ///< [T]
    pair_sum normalize;
    pair_divisor<S> divided;

    SWITCHYARD_HD void operator()(index_t token) const {
        S* const gate = plan.gate + token * 2;
        const S over = normalize == pair_sum::after_drops ? divided.of(gate[0] + gate[1]) : divisor[token];
        gate[0] = over > S(0) ? gate[0] / over : S(0);
        if (normalize != pair_sum::first_before_drops) {
            gate[1] = over > S(0) ? gate[1] / over : S(0);
        }
    }
};

/// The gradients of a token's probabilities from those of its gates.
template <class Source, class S, class Space, class GateStorage>
struct undivide_pair {
    Source source;
    plan_view<S, Space> plan;
    matrix_view<const GateStorage, Space> d_gates;
    pair_sum normalize;
    pair_divisor<S> divided;
    S* out;  ///< [T, 2]

    SWITCHYARD_HD void operator()(index_t token) const {
        S* const d = out + token * 2;
        S p[2];
        bool counts[2];
        for (index_t c = 0; c < 2; ++c) {
            const bool has_slot = plan.slot[token * 2 + c] >= 0;
            d[c] = has_slot ? static_cast<S>(load_scalar(d_gates(token, c))) : S(0);
            counts[c] = normalize != pair_sum::after_drops || has_slot;
            p[c] = counts[c] ? probability(token, plan.expert[token * 2 + c]) : S(0);
        }
        if (normalize == pair_sum::none) {
            return;
        }
        const S sum = p[0] + p[1];
        const S over = divided.of(sum);
        const S factor = over > S(0) ? S(1) / over : S(0);
        const bool divides_second = normalize != pair_sum::first_before_drops;
        S mean = rounded_times(d[0], p[0] * factor);
        mean += divides_second ? rounded_times(d[1], p[1] * factor) : S(0);
        mean *= divided.slope(sum);
        const S shared = counts[1] ? mean : S(0);
        d[0] = counts[0] ? (d[0] - mean) * factor : S(0);
        d[1] = divides_second ? (d[1] - shared) * factor : d[1] - rounded_times(shared, factor);
    }

  private:
    SWITCHYARD_HD S probability(index_t token, index_t expert) const {
        const S sum = plan.row_sum[token];
        return expert >= 0 && sum > S(0) ? softmax_value(usable(source.at(token, expert)), plan.row_maximum[token], sum)
                                         : S(0);
    }
};

}  // namespace detail

/// scores[T, E] -> plan with 2 choices. The plan's arrays lie apart from the scores.
template <class Policy, class Scores, class Plan, class Workspace>
void route_scores(const Policy& policy, const gshard_router& router, const Scores& scores, const run_mode& mode,
                  Plan& plan, Workspace& scratch) {
    using S = typename Plan::scalar;
    const auto choose = [&](const auto& source, const softmax_settings& settings, const auto& made) {
        const detail::pair_divisor<S> divided{router.epsilon_kind, static_cast<S>(router.epsilon)};
        S* const divisor = scratch.template take<S>(made.tokens);
        const detail::select_pair<S> selection{made.expert,
                                               made.gate,
                                               divisor,
                                               made.experts,
                                               mode.is_training ? router.second : router.inference_second,
                                               router.compared,
                                               router.second_threshold,
                                               divided,
                                               mode.noise};
        route_softmax(policy, source, mode, made, settings, scratch, selection);
        if (router.normalize != pair_sum::none) {
            for_each_index(policy, made.tokens,
                           detail::divide_pair<S, typename Plan::space>{made, divisor, router.normalize, divided});
        }
    };
    route_by_rows(policy, router, 2, scores, mode, plan, scratch, choose);
}

/// Backward behind its checks.
template <class Policy, class Source, class S, class Space, class GateStorage, class Scores, class Workspace>
void differentiate_router(const Policy& policy, const gshard_router& router, const Source& source,
                          const plan_view<S, Space>& plan, const matrix_view<const GateStorage, Space>& d_gates,
                          const Scores& d_scores, const softmax_settings& settings, const backward_settings& backward,
                          Workspace& scratch) {
    S* const d_values = scratch.template take<S>(plan.tokens * 2);
    for_each_index(
        policy, plan.tokens,
        detail::undivide_pair<Source, S, Space, GateStorage>{
            source, plan, d_gates, router.normalize, {router.epsilon_kind, static_cast<S>(router.epsilon)}, d_values});
    route_softmax_backward(policy, source, detail::with_dropped_choices(plan),
                           matrix_view<const S, Space>{d_values, plan.tokens, 2, 2, 1}, d_scores, settings, backward,
                           scratch);
}

}  // namespace SWITCHYARD_TARGET
}  // namespace switchyard
