// The recipe router: a router as its settings say it. The routers of DeepSeek-V3 and its relatives, gpt-oss, Llama 4,
// Mixtral, Qwen and most other open models are this one with other settings: router/models.hpp makes them.
//
//   s = cap(m scores[T, E] + logit_bias)    score/softcap.hpp          m = logit_multiplier, cap = softcap
//   v = score(s)                    score/score_function.hpp           softmax, sigmoid or sqrt-softplus
//   key = v or s, + selection_bias  score/keys.hpp, score/groups.hpp   within the best groups of experts
//   experts = the k largest keys, best first; equal keys: the lower expert
//   gate_c = scale v_c / D          score/gates.hpp                    D = 1, sum + epsilon or max(sum, epsilon)
//            times expert_scale[e]  router/finished_gates.hpp          or D = a p-norm
//
// Without selection_bias and with all groups kept the key is the score s. The selection bias never enters a gate. A
// score of -infinity forbids its expert before any bias, and has gradient 0. The scale is applied once, here; nothing
// behind the router applies one. Llama 4 weighs its experts' input: dispatch with `apply_gates`, combine without.
//
// With `groups.one_each` the experts are the best of every group (Pangu Pro). With `choices` they are given, and the
// rest is as above (router/given_choices.hpp): replay, hash layers. With `rowless` the last columns are identity or
// zero experts, which take no rows (router/rowless.hpp): LongCat-Flash.
//
// losses: load balancing and z-loss, both on softmax(s) whatever the values are; both are off unless asked for. The
// bias that balances without a loss is moved by `update_bias` (router/bias_update.hpp).
//
// Slots, capacity, noise, ties, errors and costs are those of top_k_router (router/top_k.hpp). Backward, d_gates[T, k]
// and the losses -> d_scores[T, E], is `route_scores_backward` of router/softmax_routing.hpp; the gradient of
// logit_bias is the sum of d_scores over the tokens, divided by the multiplier. The expert scale gets none here.
#pragma once

#include <switchyard/core/config.hpp>
#include <switchyard/core/error.hpp>
#include <switchyard/core/matrix_view.hpp>
#include <switchyard/core/overlap.hpp>
#include <switchyard/plan/capacity.hpp>
#include <switchyard/plan/plan.hpp>
#include <switchyard/plan/slots.hpp>
#include <switchyard/router/finished_gates.hpp>
#include <switchyard/router/given_choices.hpp>
#include <switchyard/router/routing.hpp>
#include <switchyard/router/softmax_routing.hpp>
#include <switchyard/score/gates.hpp>
#include <switchyard/score/groups.hpp>
#include <switchyard/score/keys.hpp>
#include <switchyard/score/score_function.hpp>

#include <cmath>
#include <cstdint>

namespace switchyard {

template <class Space = host_space>
struct recipe_router {
    index_t k = 1;                ///< 1..E, and no more than the experts of the kept groups
    double logit_multiplier = 1;  ///< > 0
    expert_numbers<Space> logit_bias{};
    double softcap = 0;  ///< > 0; 0: none

    score_function score = score_function::softmax;
    key_source key = key_source::value;
    expert_numbers<Space> selection_bias{};
    expert_groups groups{};

    gate_sum normalize = gate_sum::none;
    double norm_power = 1;  ///< > 0; with gate_sum::norm
    double epsilon = 0;     ///< >= 0, added to the sum or its least value; 0 with gate_sum::norm
    double scale = 1;       ///< finite
    expert_numbers<Space> expert_scale{};

    capacity_rule capacity{};            ///< in training; none by default
    capacity_rule inference_capacity{};  ///< otherwise
    drop_order order = drop_order::position;
    rowless_experts rowless{};  ///< of the E columns the last ones, which take no rows; shared ones come behind the k

    float input_jitter = 0;   ///< epsilon in [0, 1). Needs tokens
    float input_dropout = 0;  ///< rate in [0, 1). Needs tokens
    float logit_jitter = 0;   ///< epsilon in [0, 1)

    double balance_weight = 0;
    balance_count balance = balance_count::first;
    double z_weight = 0;
    bad_scores bad = bad_scores::error;

    matrix_view<const std::int32_t, Space> choices{};  ///< [T, k] made elsewhere; null: the router chooses
};

template <class Space>
inline constexpr bool is_library_router<recipe_router<Space>> = true;

inline namespace SWITCHYARD_TARGET {

/// A p-norm is taken when the gates are finished.
template <class Space>
constexpr gate_settings gate_settings_of(const recipe_router<Space>& r) {
    if (r.normalize == gate_sum::norm) {
        return {.function = r.score};
    }
    return {.function = r.score, .sum = r.normalize, .epsilon = r.epsilon, .scale = r.scale};
}

template <class Space>
constexpr gate_finish gate_finish_of(const recipe_router<Space>& r) {
    const bool is_norm = r.normalize == gate_sum::norm;
    return {.power = is_norm ? r.norm_power : 0,
            .sum = is_norm ? gate_sum::norm : gate_sum::none,
            .scale = r.scale,
            .expert_scale = r.expert_scale.data};
}

/// Numbers of experts are state between steps, and not part of the fingerprint.
template <class Space>
constexpr std::uint64_t fingerprint_of(const recipe_router<Space>& r) {
    return fingerprint('r', r.k, static_cast<int>(r.score), static_cast<int>(r.normalize), r.epsilon, r.scale,
                       r.logit_bias.data != nullptr, r.logit_jitter, r.input_jitter, r.input_dropout, r.balance_weight,
                       static_cast<int>(r.balance), r.z_weight, r.logit_multiplier, r.softcap, r.norm_power,
                       r.expert_scale.data != nullptr, r.rowless.identity, r.rowless.zero, r.rowless.shared);
}

/// Whether scores themselves are the keys.
template <class Space>
constexpr bool has_raw_keys(const recipe_router<Space>& r) {
    return r.selection_bias.data == nullptr && !r.groups.choose();
}

/// Fails, with a message, where a setting is out of range.
template <class Space>
void require_settings(const recipe_router<Space>& r, index_t experts, const run_mode& mode) {
    require_rowless(r.rowless, experts);
    const index_t choosable = experts - r.rowless.shared;
    require(r.k >= 1 && r.k <= choosable, "k = ", r.k, " must lie in 1..E = ", choosable);
    if (r.choices.data == nullptr) {
        require_groups(r.groups, choosable, r.k);
        require(!r.groups.one_each || r.balance_weight == 0 || r.balance == balance_count::all,
                "groups.one_each makes first choices those of the first group: a balance loss must count all choices");
    }
    require(r.rowless.shared == 0 || r.score != score_function::softmax, "rowless.shared = ", r.rowless.shared,
            " experts need values that are no softmax, which is of all columns");
    const auto require_numbers = [](const char* name, const expert_numbers<Space>& numbers, index_t count) {
        require(numbers.data == nullptr || numbers.size == count, name, " has ", numbers.size,
                " numbers for E = ", count, " experts");
    };
    require_numbers("logit_bias", r.logit_bias, experts);
    require_numbers("selection_bias", r.selection_bias, choosable);
    require_numbers("expert_scale", r.expert_scale, experts);
    const auto require_positive = [](const char* name, double x) {
        require(x > 0 && std::isfinite(x), name, " = ", x, " must be finite and more than 0");
    };
    require_positive("logit_multiplier", r.logit_multiplier);
    if (r.softcap != 0) require_positive("softcap", r.softcap);
    require_positive("norm_power", r.norm_power);
    require(r.epsilon >= 0 && std::isfinite(r.epsilon), "epsilon = ", r.epsilon, " must be finite and not negative");
    require(r.normalize != gate_sum::norm || r.epsilon == 0, "epsilon = ", r.epsilon,
            " must be 0 with gate_sum::norm, which divides by the norm alone");
    require_weights({{"scale", r.scale}, {"balance_weight", r.balance_weight}, {"z_weight", r.z_weight}});
    require_noise(r, mode);
    require(!(mode.is_training && r.k == 1 && r.rowless.shared == 0 && r.normalize != gate_sum::none && r.epsilon == 0),
            "k = 1 with normalised gates makes every gate the scale and leaves the router no gradient: use normalize = "
            "gate_sum::none");
}

template <class Space>
softmax_settings softmax_settings_of(const recipe_router<Space>& r, index_t capacity) {
    return {.slots = {.order = r.order, .balance = r.balance},
            .balance_weight = r.balance_weight,
            .z_weight = r.z_weight,
            .bad = r.bad,
            .may_drop = capacity != unlimited,
            .gates = gate_settings_of(r),
            .finish = gate_finish_of(r),
            .may_repeat = r.choices.data != nullptr};
}

namespace detail {

/// A token's own choices, and the shared experts behind them; none of padding.
template <class Space>
struct add_shared_choices {
    matrix_view<const std::int32_t, Space> own;
    std::int32_t* ids;
    index_t shared;
    index_t first_shared;

    SWITCHYARD_HD void operator()(index_t token) const {
        const index_t k = own.columns;
        std::int32_t* const list = ids + token * (k + shared);
        bool has_own = false;
        for (index_t c = 0; c < k; ++c) {
            const std::int32_t id = own(token, c);
            list[c] = id >= 0 && id < first_shared ? id : -1;
            has_own = has_own || list[c] >= 0;
        }
        for (index_t c = 0; c < shared; ++c) list[k + c] = has_own ? static_cast<std::int32_t>(first_shared + c) : -1;
    }
};

/// The choices of a router with shared experts, [T, k + shared] in scratch: `select` makes the k of its own from the
/// other columns, which are not weighed there.
template <class Policy, class Space, class Source, class S, class Workspace, class Select>
matrix_view<const std::int32_t, Space> choices_with_shared(const Policy& policy, const recipe_router<Space>& router,
                                                           Source source, const run_mode& mode,
                                                           const plan_view<S, Space>& plan, Workspace& scratch,
                                                           const Select& select) {
    const index_t k = router.k;
    const index_t shared = router.rowless.shared;
    const index_t first_shared = plan.experts - shared;
    std::int32_t* const ids = scratch.template take<std::int32_t>(plan.tokens * (k + shared));
    matrix_view<const std::int32_t, Space> own = router.choices;
    if (own.data == nullptr) {
        plan_view<S, Space> choices;
        choices.tokens = plan.tokens;
        choices.experts = first_shared;
        choices.choices = k;
        choices.expert = scratch.template take<std::int32_t>(plan.tokens * k);
        choices.gate = scratch.template take<S>(plan.tokens * k);
        choices.totals = scratch.template take<plan_totals>(1);
        source.scores.columns = first_shared;
        run_mode choosing = mode;
        choosing.is_training = false;
        select(source, softmax_settings{.bad = router.bad, .gates = {.function = router.score}}, choices, choosing,
               own);
        own = {choices.expert, plan.tokens, k};
    }
    for_each_index(policy, plan.tokens, add_shared_choices<Space>{own, ids, shared, first_shared});
    return {ids, plan.tokens, k + shared};
}

}  // namespace detail

/// scores[T, E] -> plan with k choices. The plan's arrays must not overlap the scores.
template <class Policy, class Space, class Scores, class Plan, class Workspace>
void route_scores(const Policy& policy, const recipe_router<Space>& router, const Scores& scores, const run_mode& mode,
                  Plan& plan, Workspace& scratch) {
    using S = typename Plan::scalar;
    const auto select = [&](const auto& source, const softmax_settings& settings, const auto& made, const run_mode& how,
                            const matrix_view<const std::int32_t, Space>& given) {
        const auto with = [&](const auto& selection) {
            route_softmax(policy, source, how, made, settings, scratch, selection);
        };
        if (given.data != nullptr) {
            with(select_given<S, Space>{made.expert, made.gate, given, made.experts, {settings.gates}});
        } else if (router.groups.one_each) {
            // Order by any of the functions is order by score, where nothing is added.
            const biased_keys<S> keys{.function = router.score,
                                      .source = router.selection_bias.data != nullptr ? router.key : key_source::score,
                                      .bias = detail::padded_numbers<S>(policy, router.selection_bias, scratch)};
            with(select_one_each<S>{made.expert, made.gate, made.experts, router.k, {settings.gates}, keys});
        } else if (!has_raw_keys(router)) {
            const biased_keys<S> keys{.function = router.score,
                                      .source = router.key,
                                      .bias = detail::padded_numbers<S>(policy, router.selection_bias, scratch),
                                      .groups = router.groups};
            with(
                select_list<S, biased_keys<S>>{made.expert, made.gate, made.experts, router.k, {settings.gates}, keys});
        } else if (router.k == 1) {  // the argmax that the row pass finds anyway
            with(select_best<S>{made.expert, made.gate, {settings.gates}});
        } else {
            with(select_list<S>{made.expert, made.gate, made.experts, router.k, {settings.gates}});
        }
    };
    const auto choose = [&](const auto& source, const softmax_settings& settings, const auto& made) {
        require(router.choices.data == nullptr ||
                    (router.choices.rows == made.tokens && router.choices.columns == router.k),
                "choices are ", router.choices.rows, " x ", router.choices.columns, " for ", made.tokens,
                " tokens and k = ", router.k);
        const auto scope = scratch.open();
        if (router.rowless.shared == 0) {
            select(source, settings, made, mode, router.choices);
        } else {
            select(source, settings, made, mode,
                   detail::choices_with_shared(policy, router, source, mode, made, scratch, select));
        }
    };
    route_by_rows(policy, router, router.k + router.rowless.shared, scores, mode, plan, scratch, choose);
}

}  // namespace SWITCHYARD_TARGET
}  // namespace switchyard
