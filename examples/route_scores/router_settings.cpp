// What the options come to: the settings of the library's routers.
#include "options.hpp"

#include <algorithm>
#include <optional>

namespace study {
namespace {

/// The weight of a token's choices is a softmax over them, whose sum is 1 before what it is divided by.
void weigh_after(sy::recipe_router<>& router, bool normalizes, double epsilon, epsilon_kind kind) {
    router.key = sy::key_source::score;
    router.normalize = sy::gate_sum::add;
    router.epsilon = 0;
    if (normalizes) router.scale /= kind == epsilon_kind::add ? 1 + epsilon : std::max(1.0, epsilon);
}

/// A preset's groups keep what is not said anew.
void take_groups(const top_k_options& given, sy::expert_groups& groups) {
    if (given.groups) {
        groups.count = *given.groups;
        if (*given.groups == 1) groups.kept = 1;
        if (given.is_plain()) groups.summed = 1;
    }
    if (given.groups_kept) groups.kept = *given.groups_kept;
    if (given.group_score) {
        groups.summed = *given.group_score == group_score_kind::max        ? 1
                        : *given.group_score == group_score_kind::top2_sum ? 2
                                                                           : given.group_score_count.value_or(0);
    }
    if (given.group_mask) groups.masked = *given.group_mask;
    if (given.one_each) groups.one_each = true;
}

/// Whether weights are a softmax over the chosen, by --softmax, the model's own way or noisy_top_k's.
bool weighs_after(const top_k_options& given, sy::score_function score, router_kind which) {
    if (which == router_kind::noisy_top_k && given.is_plain() && !given.softmax && !given.score) return true;
    if (given.softmax) return *given.softmax == sy::softmax_order::after;
    return given.model.is_after && score == sy::score_function::softmax;
}

/// What weights are divided by, and whether they are a softmax over the chosen.
void take_gates(const top_k_options& given, sy::recipe_router<>& router, router_kind which) {
    const bool is_after = weighs_after(given, router.score, which);
    const bool is_given = given.normalize || given.renormalize;
    const normalize_kind kind = given.normalize.value_or(normalize_kind::sum);
    if (given.model.is_after) router.normalize = sy::gate_sum::none;  // its sum is that of the softmax
    const bool clamps =
        given.epsilon.value_or(router.normalize == sy::gate_sum::clamp ? epsilon_kind::clamp : epsilon_kind::add) ==
        epsilon_kind::clamp;
    if (is_given) {
        router.normalize = kind == normalize_kind::none     ? sy::gate_sum::none
                           : kind == normalize_kind::p_norm ? sy::gate_sum::norm
                                                            : sy::gate_sum::add;
        if (kind != normalize_kind::sum) router.epsilon = 0;
    }
    if (clamps && router.normalize == sy::gate_sum::add) router.normalize = sy::gate_sum::clamp;
    if (!clamps && router.normalize == sy::gate_sum::clamp) router.normalize = sy::gate_sum::add;
    if (given.normalize_epsilon) router.epsilon = *given.normalize_epsilon;
    if (given.norm_power) router.norm_power = *given.norm_power;
    if (!is_after) return;
    sy::require(router.score == sy::score_function::softmax,
                "--softmax after needs --score softmax, and the model's is ", name_of(scores_by_name, router.score));
    sy::require(router.normalize != sy::gate_sum::norm, "--softmax after and --normalize p_norm exclude each other");
    const bool sums = router.normalize == sy::gate_sum::add || router.normalize == sy::gate_sum::clamp;
    weigh_after(router, sums, router.epsilon, clamps ? epsilon_kind::clamp : epsilon_kind::add);
}

}  // namespace

sy::recipe_router<> recipe_of(const options& asked, router_kind which, std::optional<index_t> given_k) {
    const top_k_options& given = asked.top_k;
    sy::recipe_router<> router = given.model.router;
    const auto take = [](const auto& from, auto& to) {
        if (from) to = *from;
    };
    take(given.k, router.k);
    if (given_k) router.k = *given_k;
    take(given.logit_multiplier, router.logit_multiplier);
    take(given.softcap, router.softcap);
    take(given.score, router.score);
    take(given.bias_on, router.key);
    take_groups(given, router.groups);
    take(given.scale, router.scale);
    if (given.rowless) router.rowless = {.identity = *given.rowless};
    take_gates(given, router, which);

    if (router.groups.one_each && !given.k) router.k = router.groups.count;
    if (is_given_choices(which)) router.groups = {};
    if (finds_bias(which)) router.key = sy::key_source::score;
    router.capacity = router.inference_capacity = capacity_rule_of(asked, router_kind::top_k);
    router.order = asked.drop_order;
    router.logit_jitter = noise_of(asked, router_kind::top_k).scale;
    const bool counts_first = asked.balance_count == count_kind::first && !router.groups.one_each;
    router.balance = counts_first ? sy::balance_count::first : sy::balance_count::all;
    router.balance_weight = asked.has_own_balance() ? 0 : asked.balance_weight;
    if (asked.balance_count == count_kind::all_undivided) router.balance_weight *= static_cast<double>(router.k);
    router.z_weight = asked.z_weight;
    return router;
}

index_t shared_experts_of(const options& asked) { return recipe_of(asked).rowless.shared; }

bool weighs_after(const options& asked, router_kind router) {
    return weighs_after(asked.top_k, asked.top_k.score.value_or(asked.top_k.model.router.score), router);
}

namespace {

/// What the routers of two choices have in common.
template <class Router>
void take_common(const options& asked, router_kind which, Router& router) {
    if (asked.capacity_factor || asked.capacity) {
        router.capacity = router.inference_capacity = capacity_rule_of(asked, which);
    }
    if (asked.drop_order != sy::drop_order::position) router.order = asked.drop_order;
    router.logit_jitter = noise_of(asked, which).scale;
    router.balance = asked.balance_count == count_kind::first ? sy::balance_count::first : sy::balance_count::all;
    router.balance_weight = asked.has_own_balance() ? 0 : asked.balance_weight;
    if (asked.balance_count == count_kind::all_undivided) router.balance_weight *= 2;
    router.z_weight = asked.z_weight;
}

}  // namespace

sy::gshard_router gshard_of(const options& asked) {
    sy::gshard_router router = asked.top_k.model.gshard.value_or(sy::gshard_router{});
    const auto take = [](const auto& from, auto& to) {
        if (from) to = *from;
    };
    take(asked.own.second, router.second);
    take(asked.own.second_threshold, router.second_threshold);
    take(asked.own.second_compared, router.compared);
    take(asked.own.pair_sum, router.normalize);
    take(asked.top_k.normalize_epsilon, router.epsilon);
    if (asked.top_k.epsilon) {
        router.epsilon_kind = *asked.top_k.epsilon == epsilon_kind::add ? sy::gate_sum::add : sy::gate_sum::clamp;
    }
    take_common(asked, router_kind::gshard, router);
    return router;
}

sy::sparse_mixer_router sparse_mixer_of(const options& asked) {
    sy::sparse_mixer_router router = asked.top_k.model.sparse_mixer.value_or(sy::sparse_mixer_router{});
    if (asked.own.mixer_epsilon) router.epsilon = *asked.own.mixer_epsilon;
    if (asked.own.off_peak) router.off_peak = *asked.own.off_peak;
    take_common(asked, router_kind::sparse_mixer, router);
    return router;
}

double temperature_of(const options& asked, router_kind router) {
    return asked.own.temperature.value_or(router == router_kind::sinkhorn ? 1 : 0.07);
}

index_t rounds_of(const options& asked, router_kind router) {
    return asked.own.rounds.value_or(router == router_kind::sinkhorn ? 30 : 1);
}

bool has_constant_gates(const sy::recipe_router<>& router) {
    return router.k == 1 && router.rowless.shared == 0 && router.normalize != sy::gate_sum::none && router.epsilon == 0;
}

bool has_loss(const options& asked, router_kind router, loss_kind loss) {
    const bool is_of_devices = loss == loss_kind::device_balance || loss == loss_kind::communication_balance;
    return !is_of_devices || (chooses_by_keys(router) && recipe_of(asked, router).groups.count > 1);
}

sy::capacity_rule capacity_rule_of(const options& asked, router_kind router) {
    sy::capacity_rule rule{.factor = asked.capacity_factor,
                           .number = asked.capacity,
                           .rounding = asked.capacity_rounding,
                           .minimum = asked.capacity_minimum,
                           .multiple = asked.capacity_multiple};
    if (router == router_kind::switch_router && !rule.factor && !rule.number) {
        rule.factor = 1.25;
    }
    return rule;
}

noise_setting noise_of(const options& asked, router_kind router) {
    const bool adds_it = router == router_kind::switch_router ||
                         ((is_recipe(router) || is_pair(router)) && asked.noise == noise_kind::logit_jitter);
    if (!adds_it || asked.noise == noise_kind::none) {
        return {};
    }
    return {asked.noise, static_cast<float>(noise_scale_of(asked))};
}

double noise_scale_of(const options& asked) {
    return asked.noise_scale.value_or(asked.noise == noise_kind::sample ? 1.0 : 0.01);
}

}  // namespace study
