// The library's plan against the reference's: integers exactly, gates and losses to what the compute type can give.
// Comparisons return a sentence about the first difference, empty if there is none, so that they read the same in
// doctest's CHECK and in a property.
#pragma once

#include "support/scores.hpp"

#include <switchyard/plan/plan.hpp>
#include <switchyard/reference/gshard.hpp>
#include <switchyard/reference/recipe.hpp>
#include <switchyard/reference/sparse_mixer.hpp>
#include <switchyard/reference/switch_router.hpp>
#include <switchyard/reference/top_k.hpp>
#include <switchyard/router/gshard.hpp>
#include <switchyard/router/recipe.hpp>
#include <switchyard/router/sparse_mixer.hpp>
#include <switchyard/router/switch.hpp>
#include <switchyard/router/top_k.hpp>

#include <cmath>
#include <limits>
#include <sstream>
#include <string>

namespace switchyard_test {

/// How far the library may be from the reference, by the type it computes in.
template <class S>
struct tolerance {
    static constexpr double epsilon = std::numeric_limits<S>::epsilon();
    static constexpr double gate = 16 * epsilon;      ///< relative, for gates not far below 1
    static constexpr double loss = 24 * epsilon;      ///< relative
    static constexpr double gradient = 32 * epsilon;  ///< of the largest term
};

/// A gate is exp(s - m) / sum: rounding s - m costs |ln gate| ulps, and below exp(smallest exponent) it is 0.
template <class S>
bool is_gate(double got, double want) {
    if (got == want) return true;
    if (want < 0) return is_gate<S>(-got, -want);  // a scale may be negative
    if (want < (sizeof(S) == 4 ? 1e-33 : 1e-300)) return got >= 0 && got < 1e-32;
    return std::abs(got - want) <= want * (tolerance<S>::gate + tolerance<S>::epsilon * std::abs(std::log(want)));
}

inline bool is_close(double got, double want, double relative) {
    return got == want || std::abs(got - want) <= relative * std::abs(want);
}

/// "expert of (token 3, choice 0): 1, not 2".
template <class... Parts>
std::string said(const Parts&... parts) {
    std::ostringstream sentence;
    sentence.precision(17);
    (sentence << ... << parts);
    return sentence.str();
}

/// Experts and slots as tables of the reference.
template <class S>
ref::integers experts_of(const sy::plan_view<S>& plan) {
    ref::integers copy(plan.tokens, plan.choices);
    for (index_t i = 0; i < copy.values.length(); ++i) copy.values[i] = plan.expert[i];
    return copy;
}
template <class S>
ref::integers slots_of(const sy::plan_view<S>& plan) {
    ref::integers copy(plan.tokens, plan.choices);
    for (index_t i = 0; i < copy.values.length(); ++i) copy.values[i] = plan.slot[i];
    return copy;
}
template <class S>
ref::matrix gates_of(const sy::plan_view<S>& plan) {
    ref::matrix copy(plan.tokens, plan.choices);
    for (index_t i = 0; i < copy.values.length(); ++i) copy.values[i] = static_cast<double>(plan.gate[i]);
    return copy;
}
inline ref::list<index_t> list_of(const std::int64_t* numbers, index_t count) {
    ref::list<index_t> copy;
    copy.assign(numbers, numbers + count);
    return copy;
}

namespace detail {

inline std::string list_mismatch(const char* name, const std::int64_t* got, const ref::list<index_t>& want) {
    for (index_t i = 0; i < want.length(); ++i) {
        if (got[i] != want[i]) return said(name, "[", i, "] is ", got[i], ", not ", want[i]);
    }
    return "";
}

}  // namespace detail

/// Everything that follows from choices and slots alone: integers, exact.
template <class S>
std::string integer_mismatch(const sy::plan_view<S>& plan, const ref::plan& want) {
    if (plan.tokens != want.tokens() || plan.experts != want.experts_count || plan.choices != want.choices()) {
        return said("shape ", plan.tokens, " x ", plan.experts, " x ", plan.choices);
    }
    if (plan.capacity != want.capacity) return said("capacity is ", plan.capacity, ", not ", want.capacity);
    for (index_t i = 0; i < want.experts.values.length(); ++i) {
        const auto where = said(" of (token ", i / plan.choices, ", choice ", i % plan.choices, ") is ");
        if (plan.expert[i] != want.experts.values[i]) {
            return said("expert", where, plan.expert[i], ", not ", want.experts.values[i]);
        }
        if (plan.slot[i] != want.slots.values[i]) {
            return said("slot", where, plan.slot[i], ", not ", want.slots.values[i]);
        }
    }
    if (plan.totals->kept != want.kept()) return said("kept is ", plan.totals->kept, ", not ", want.kept());
    if (plan.totals->kept > plan.row_bound) return said("kept ", plan.totals->kept, " is above ", plan.row_bound);
    for (const auto& sentence : {detail::list_mismatch("offsets", plan.offsets, want.offsets),
                                 detail::list_mismatch("order", plan.order, want.order),
                                 detail::list_mismatch("load_before", plan.load_before, want.load_before),
                                 detail::list_mismatch("load_after", plan.load_after, want.load_after)}) {
        if (!sentence.empty()) return sentence;
    }
    return "";
}

/// Gates and losses.
template <class S>
std::string number_mismatch(const sy::plan_view<S>& plan, const ref::plan& want) {
    for (index_t i = 0; i < want.gates.values.length(); ++i) {
        const auto got = static_cast<double>(plan.gate[i]);
        if (!is_gate<S>(got, want.gates.values[i])) {
            return said("gate of (token ", i / plan.choices, ", choice ", i % plan.choices, ") is ", got, ", not ",
                        want.gates.values[i]);
        }
    }
    // Both sum over the tokens, in different orders.
    const double allowed = tolerance<S>::loss + static_cast<double>(plan.tokens) * 0x1p-53;
    if (!is_close(plan.totals->load_balancing_loss, want.load_balancing_loss, allowed)) {
        return said("load-balancing loss is ", plan.totals->load_balancing_loss, ", not ", want.load_balancing_loss);
    }
    // logsumexp may cancel to about 0, where only its absolute error is small.
    const double z = plan.totals->z_loss;
    if (std::abs(z - want.z_loss) > allowed * (std::abs(want.z_loss) + std::sqrt(std::abs(want.z_loss)))) {
        return said("z-loss is ", z, ", not ", want.z_loss);
    }
    return "";
}

template <class S>
std::string mismatch(const sy::plan_view<S>& plan, const ref::plan& want) {
    const auto sentence = integer_mismatch(plan, want);
    return sentence.empty() ? number_mismatch(plan, want) : sentence;
}
template <class S>
std::string mismatch(const sy::plan<S>& plan, const ref::plan& want) {
    return mismatch(plan.view(), want);
}

/// Tables of numbers, to `allowed` times the largest of them (at least `scale`).
inline std::string table_mismatch(const ref::matrix& got, const ref::matrix& want, double allowed, double scale = 0) {
    if (got.rows != want.rows || got.columns != want.columns) {
        return said("shape ", got.rows, " x ", got.columns, ", not ", want.rows, " x ", want.columns);
    }
    double largest = scale;
    for (const double number : want.values) largest = std::max(largest, std::abs(number));
    for (index_t i = 0; i < want.values.length(); ++i) {
        if (!(std::abs(got.values[i] - want.values[i]) <= allowed * largest)) {
            return said("(", i / want.columns, ", ", i % want.columns, ") is ", got.values[i], ", not ",
                        want.values[i]);
        }
    }
    return "";
}

/// The reference's settings for the library's.
inline ref::capacity_rule reference_of(const sy::capacity_rule& rule) {
    return {.factor = rule.factor,
            .number = rule.number,
            .rounding = static_cast<ref::rounding>(rule.rounding),
            .minimum = rule.minimum,
            .multiple = rule.multiple,
            .count_choices = rule.counts_choices};
}

/// Noise and losses, which training alone has.
template <class Router, class Reference>
void take_training_terms(const Router& r, Reference& same) {
    same.noise = {r.input_jitter, r.input_dropout, r.logit_jitter, 0};
    if constexpr (requires { r.sample_temperature; }) same.noise.sample_temperature = r.sample_temperature;
    same.balance_weight = r.balance_weight;
    same.z_weight = r.z_weight;
}

inline ref::switch_router reference_of(const sy::switch_router& r, bool is_training) {
    ref::switch_router same{.capacity = reference_of(is_training ? r.capacity : r.inference_capacity),
                            .order = static_cast<ref::drop_order>(r.order),
                            .no_token_left_behind = std::max<index_t>(1, r.no_token_left_behind),
                            .balance_weight = 0};
    if (is_training) take_training_terms(r, same);
    return same;
}

inline ref::top_k_router reference_of(const sy::top_k_router& r, bool is_training) {
    ref::top_k_router same{.k = r.k,
                           .softmax = static_cast<ref::softmax_place>(r.softmax),
                           .renormalize = r.renormalize,
                           .count = static_cast<ref::balance_count>(r.balance),
                           .capacity = reference_of(is_training ? r.capacity : r.inference_capacity),
                           .order = static_cast<ref::drop_order>(r.order),
                           .balance_weight = 0};
    if (is_training) take_training_terms(r, same);
    return same;
}

inline ref::list<double> list_of(const sy::expert_numbers<>& numbers) {
    ref::list<double> copy;
    if (numbers.data != nullptr) copy.assign(numbers.data, numbers.data + numbers.size);
    return copy;
}

inline ref::recipe_router reference_of(const sy::recipe_router<>& r, bool is_training) {
    ref::recipe_router same{.k = r.k,
                            .score = static_cast<ref::score_function>(r.score),
                            .logit_multiplier = r.logit_multiplier,
                            .logit_bias = list_of(r.logit_bias),
                            .softcap = r.softcap,
                            .key = static_cast<ref::key_source>(r.key),
                            .selection_bias = list_of(r.selection_bias),
                            .groups = {.count = r.groups.count,
                                       .kept = r.groups.kept,
                                       .summed = r.groups.summed,
                                       .masked = static_cast<ref::group_mask>(r.groups.masked),
                                       .one_each = r.groups.one_each},
                            .normalize = static_cast<ref::gate_sum>(r.normalize),
                            .norm_power = r.norm_power,
                            .epsilon = r.epsilon,
                            .scale = r.scale,
                            .expert_scale = list_of(r.expert_scale),
                            .capacity = reference_of(is_training ? r.capacity : r.inference_capacity),
                            .order = static_cast<ref::drop_order>(r.order),
                            .count = static_cast<ref::balance_count>(r.balance),
                            .identity_experts = r.rowless.identity,
                            .zero_experts = r.rowless.zero,
                            .shared_experts = r.rowless.shared};
    if (is_training) take_training_terms(r, same);
    return same;
}

inline ref::gshard_router reference_of(const sy::gshard_router& r, bool is_training) {
    ref::gshard_router same{.second = static_cast<ref::second_choice>(is_training ? r.second : r.inference_second),
                            .second_threshold = r.second_threshold,
                            .compared = static_cast<ref::second_weight>(r.compared),
                            .normalize = static_cast<ref::pair_sum>(r.normalize),
                            .clamps = r.epsilon_kind == sy::gate_sum::clamp,
                            .epsilon = r.epsilon,
                            .capacity = reference_of(is_training ? r.capacity : r.inference_capacity),
                            .order = static_cast<ref::drop_order>(r.order),
                            .count = static_cast<ref::balance_count>(r.balance),
                            .balance_weight = 0};
    if (is_training) take_training_terms(r, same);
    return same;
}

inline ref::sparse_mixer_router reference_of(const sy::sparse_mixer_router& r, bool is_training) {
    ref::sparse_mixer_router same{.epsilon = r.epsilon,
                                  .off_peak = r.off_peak,
                                  .capacity = reference_of(is_training ? r.capacity : r.inference_capacity),
                                  .order = static_cast<ref::drop_order>(r.order),
                                  .count = static_cast<ref::balance_count>(r.balance),
                                  .balance_weight = 0};
    if (is_training) take_training_terms(r, same);
    return same;
}

/// The sentence of the error that a call raises, empty if none.
template <class Call>
std::string sentence_of(Call&& call) {
    try {
        call();
    } catch (const sy::error& e) {
        return e.what();
    }
    return "";
}

}  // namespace switchyard_test
