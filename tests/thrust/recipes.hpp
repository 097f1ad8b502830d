// A recipe router on the device and on the CPU: biases in the memory of each, plans and gradients compared.
#pragma once

#include "thrust/device.hpp"

#include <switchyard/dispatch/combine.hpp>
#include <switchyard/router/bias_state.hpp>
#include <switchyard/router/bias_update.hpp>
#include <switchyard/router/given_choices.hpp>
#include <switchyard/router/recipe.hpp>

#include <algorithm>
#include <span>
#include <string>
#include <vector>

namespace switchyard_test {

/// Which numbers of experts a recipe has.
struct recipe_biases {
    std::vector<float> logit{};
    std::vector<float> selection{};
    std::vector<float> scale{};
};

/// Numbers for E experts, different from each other and exact in float.
inline std::vector<float> spread_bias(index_t experts, index_t step) {
    std::vector<float> bias;
    for (index_t e = 0; e < experts; ++e) bias.push_back(static_cast<float>(e * step % experts) / 64 - 0.375f);
    return bias;
}

/// The same settings for both: set(router) makes all but the biases.
struct both_recipes {
    recipe_biases biases;
    sy::buffer<float, device_memory> logit, selection, scale;
    sy::matrix<std::int32_t> ids{};
    sy::buffer<std::int32_t, device_memory> ids_there{};
    sy::recipe_router<> host{};
    sy::recipe_router<device_space> there{};

    template <class Set>
    both_recipes(const Set& set, const recipe_biases& given = {})
        : biases(given),
          logit(sy::copy_to_device(device, std::span<const float>(biases.logit))),
          selection(sy::copy_to_device(device, std::span<const float>(biases.selection))),
          scale(sy::copy_to_device(device, std::span<const float>(biases.scale))) {
        set(host);
        set(there);
        const auto hang = [](const auto& from, auto& host_bias, const auto& buffer, auto& device_bias) {
            if (from.empty()) return;
            host_bias = {from.data(), static_cast<index_t>(from.size())};
            device_bias = {buffer.data(), buffer.size()};
        };
        hang(biases.logit, host.logit_bias, logit, there.logit_bias);
        hang(biases.selection, host.selection_bias, selection, there.selection_bias);
        hang(biases.scale, host.expert_scale, scale, there.expert_scale);
    }
    /// Choices made elsewhere, by chance, some of which are none.
    void give_choices(index_t tokens, index_t experts) {
        ids = sy::matrix<std::int32_t>(tokens, host.k);
        sy::random_choices(sy::seq, experts, {.seed = 9}, ids);
        for (index_t t = 0; t < tokens; t += 5) ids.data()[t * host.k + host.k - 1] = -1;
        for (index_t t = 3; t < tokens; t += 7) ids.data()[t * host.k + host.k - 1] = ids.data()[t * host.k];  // twice
        for (index_t t = 0; t < tokens; t += 7) ids.data()[t * host.k] = -1;
        for (index_t c = 0; tokens > 3 && c < host.k; ++c) ids.data()[3 * host.k + c] = -1;
        hang_choices();
    }
    /// The ids as the choices of both.
    void hang_choices() {
        const auto count = static_cast<std::size_t>(ids.rows() * ids.columns());
        ids_there = sy::copy_to_device(device, std::span<const std::int32_t>(ids.data(), count));
        host.choices = ids.view();
        there.choices = {ids_there.data(), ids.rows(), ids.columns()};
    }
    both_recipes(const both_recipes&) = delete;
    both_recipes& operator=(const both_recipes&) = delete;
};

/// A bias that is loaded, moved by a plan's loads and by quantiles, and read again: the bits of the CPU's.
template <class Policy, class Plan>
std::string bias_difference(const Policy& on, const Plan& made, const sy::plan<float>& want) {
    const index_t experts = want.experts();
    const auto saved = spread_bias(experts, 7);
    const auto loaded = sy::view_of(std::span(saved), 1, experts);
    for (const auto rule : {sy::bias_rule::centred_sign, sy::bias_rule::quantile}) {
        const sy::bias_settings settings{.rule = rule, .rate = 0.01f, .ema = 0.3, .loads = sy::plan_counts::kept};
        sy::bias_state host(sy::seq, experts, settings);
        sy::bias_state there(on, experts, settings);
        std::copy(saved.begin(), saved.end(), host.view().data);
        sy::copy_to_device(on, loaded, there.view());
        if (rule == sy::bias_rule::quantile) {
            const auto q = sy::copy_to_device(on, std::span<const float>(saved));
            host.update_by_quantiles(sy::seq, saved);
            there.update_by_quantiles(on, std::span<const float>(q.data(), saved.size()));
        } else {
            host.update(sy::seq, want);
            there.update(on, made);
        }
        const auto moved = sy::copy_to_host(on, there.view());
        const auto sentence = array_difference("bias_state", moved.data(), host.view().data, experts);
        if (!sentence.empty()) return sentence;
    }
    return "";
}

/// Routes on both, and in training goes back and calls then(made, want); a sentence about the first difference. `scale`
/// is that of the gates.
template <class Policy, class Host, class There, class Then>
std::string router_difference(const Policy& on, const Host& host, const There& there, const ref::matrix& table,
                              const ref::mask_list& mask, bool is_training, double scale, const Then& then) {
    const auto scores = stored<float>(table);
    const auto device_scores = sy::copy_to_device(on, scores);
    const device_mask padding(mask);
    const auto mode = [&](const sy::token_mask& live) {
        return is_training ? sy::run_mode(sy::training{.seed = 5, .stream = 1, .step = 9, .mask = live})
                           : sy::run_mode(sy::inference{live});
    };
    sy::plan<float> want;
    sy::workspace host_scratch;
    sy::route_scores(sy::seq, host, scores, mode(mask_of(mask)), want, host_scratch);
    device_plan<float> made;
    device_scratch scratch;
    sy::route_scores(on, there, device_scores, mode(padding.get()), made, scratch);
    sy::check(on, made);
    const auto got = sy::copy_to_host(on, made);
    const auto sentence = decision_difference(got, want);
    if (!sentence.empty()) return sentence;
    for (index_t i = 0; i < want.tokens() * want.choices(); ++i) {
        const double x = got.view().gate[i];
        const double y = want.view().gate[i];
        if (!is_gate<float>(x, y)) return said("gate ", i, " is ", x, ", on the CPU ", y);
    }
    if (!is_close(got.load_balancing_loss(), want.load_balancing_loss(), 2 * tolerance<float>::loss)) {
        return said("balance loss ", got.load_balancing_loss(), ", on the CPU ", want.load_balancing_loss());
    }
    const double z = want.z_loss();
    if (!(std::abs(got.z_loss() - z) <= 2 * tolerance<float>::loss * (std::abs(z) + std::sqrt(std::abs(z))))) {
        return said("z-loss ", got.z_loss(), ", on the CPU ", z);
    }
    if (!is_training) return "";

    const auto d_gates = gaussian<float>(want.tokens(), want.choices(), 3);
    const auto d_want = sy::route_scores_backward(sy::seq, host, want, scores, d_gates, {.loss_scale = 3});
    sy::matrix<float, device_memory> d_scores(want.tokens(), table.columns);
    sy::route_scores_backward(on, there, made, device_scores, sy::copy_to_device(on, d_gates), d_scores, scratch,
                              {.loss_scale = 3});
    // Terms of the size of d_gates times the scale cancel.
    const auto backward =
        matrix_difference(sy::copy_to_host(on, d_scores), d_want, tolerance<float>::gradient, 1 + std::abs(scale));
    if (!backward.empty()) return "d_scores: " + backward;
    // In place of the scores: the same numbers.
    auto in_place = sy::copy_to_device(on, scores);
    sy::route_scores_backward(on, there, made, in_place, sy::copy_to_device(on, d_gates), in_place, scratch,
                              {.loss_scale = 3});
    const auto same = matrix_difference(sy::copy_to_host(on, in_place), sy::copy_to_host(on, d_scores), 0, 1);
    if (!same.empty()) return "d_scores in place of the scores: " + same;
    return then(made, want);
}

/// A router without memory of its own, on both.
template <class Policy, class Router>
std::string same_router_difference(const Policy& on, const Router& router, const ref::matrix& table,
                                   const ref::mask_list& mask, bool is_training) {
    return router_difference(on, router, router, table, mask, is_training, 1,
                             [](const auto&, const auto&) { return std::string(); });
}

/// A recipe on both; in training a bias is moved, too.
template <class Policy>
std::string recipe_difference(const Policy& on, const both_recipes& routers, const ref::matrix& table,
                              const ref::mask_list& mask, bool is_training) {
    const auto move_bias = [&](const auto& made, const auto& want) -> std::string {
        std::vector<float> bias(static_cast<std::size_t>(want.experts()), 0.5f);
        auto device_bias = sy::copy_to_device(on, std::span<const float>(bias));
        sy::update_bias(sy::seq, want, 0.01f, bias.data(), sy::bias_rule::centred_sign);
        sy::update_bias(on, made, 0.01f, device_bias.data(), sy::bias_rule::centred_sign);
        std::vector<float> moved(bias.size());
        on.copy_to_host(moved.data(), device_bias.data(), moved.size() * sizeof(float));
        const auto in_array = array_difference("bias", moved.data(), bias.data(), want.experts());
        return in_array.empty() ? bias_difference(on, made, want) : in_array;
    };
    return router_difference(on, routers.host, routers.there, table, mask, is_training, routers.host.scale, move_bias);
}

/// Gates that are a softmax over chosen scores which lie far below the row's maximum: a bias has them chosen, or they
/// are given. Calls f(routers, table, mask).
template <class F>
void for_each_far_choice(index_t experts, index_t k, const F& f) {
    constexpr index_t tokens = 40;
    std::vector<float> bias;
    for (index_t e = 0; e < experts; ++e) bias.push_back(e % 4 == 3 ? 0.0f : 2048.0f);
    auto table = gaussian_scores(tokens, experts, 8);
    for (index_t t = 0; t < tokens; ++t) {
        constexpr double distances[] = {0, 60, 64, 80, 87, 104, 300, 600};
        for (index_t e = 0; e < experts; ++e) {
            // The keys are exact.
            table(t, e) = std::round(table(t, e) * 64) / 64 - (e % 4 == 3 ? 0 : distances[t % 8]);
        }
    }
    for (const bool balances : {false, true}) {
        const auto set = [&](auto& router) {
            router.k = k;
            router.key = sy::key_source::score;
            router.normalize = balances ? sy::gate_sum::clamp : sy::gate_sum::add;
            router.scale = 1.5;
            router.capacity = sy::capacity_rule{.factor = 0.9};
            if (balances) router.balance_weight = 0.02;
            if (balances) router.z_weight = 0.01;
        };
        const both_recipes keyed(set, {.selection = bias});
        f(keyed, table, draw_mask(tokens, 6));
        both_recipes noisy(
            [&](auto& router) {
                set(router);
                router.softcap = 4000;
            },
            {.selection = bias});
        f(noisy, table, ref::mask_list{});
        both_recipes given(set);
        given.ids = sy::matrix<std::int32_t>(tokens, k);
        for (index_t t = 0; t < tokens; ++t) {
            for (index_t c = 0; c < k; ++c)
                given.ids.data()[t * k + c] =
                    static_cast<std::int32_t>((c + t) / 3 * 4 + (c + t) % 3) % static_cast<std::int32_t>(experts);
        }
        given.hang_choices();
        f(given, table, draw_mask(tokens, 6));
    }
}

/// Combine with identity experts, forward and backward, of both plans: a sentence about the first difference.
template <class Policy>
std::string identity_difference(const Policy& on, const both_recipes& routers, const ref::matrix& table,
                                const ref::mask_list& mask, index_t width) {
    const auto scores = stored<float>(table);
    const device_mask padding(mask);
    sy::plan<float> want;
    sy::workspace host_scratch;
    sy::route_scores(sy::seq, routers.host, scores, sy::inference{mask_of(mask)}, want, host_scratch);
    device_plan<float> made;
    device_scratch scratch;
    sy::route_scores(on, routers.there, sy::copy_to_device(on, scores), sy::inference{padding.get()}, made, scratch);
    const auto x = gaussian<float>(table.rows, width, 1);
    const auto rows = gaussian<float>(made.row_bound(), width, 2);
    const auto d_y = gaussian<float>(table.rows, width, 3);
    const auto there_x = sy::copy_to_device(on, x);
    const auto there_rows = sy::copy_to_device(on, rows);
    const double allowed = 4 * tolerance<float>::gradient;
    const auto y = sy::combine(on, made, there_rows, sy::identity_of{there_x});
    const auto sentence =
        matrix_difference(sy::copy_to_host(on, y), sy::combine(sy::seq, want, rows, sy::identity_of{x}), allowed, 1);
    if (!sentence.empty()) return "y: " + sentence;
    const auto d = sy::combine_backward(on, made, there_rows, sy::identity_of{there_x}, sy::copy_to_device(on, d_y));
    const auto d_want = sy::combine_backward(sy::seq, want, rows, sy::identity_of{x}, d_y);
    const auto in_rows = matrix_difference(sy::copy_to_host(on, d.d_rows), d_want.d_rows, allowed, 1);
    if (!in_rows.empty()) return "d_rows: " + in_rows;
    const auto in_x = matrix_difference(sy::copy_to_host(on, d.d_x), d_want.d_x, allowed, 1);
    if (!in_x.empty()) return "d_x: " + in_x;
    const auto in_gates = matrix_difference(sy::copy_to_host(on, d.d_gates), d_want.d_gates, allowed, 10);
    return in_gates.empty() ? "" : "d_gates: " + in_gates;
}

/// Routers with experts that take no rows: with and without what makes kernels leave forward to the generic code.
template <class F>
void for_each_rowless_recipe(const F& f) {
    for (const bool limited : {false, true}) {
        for (const bool balances : {false, true}) {
            for (const bool with_keys : {false, true}) {
                f(both_recipes(
                    [&](auto& router) {
                        router.k = with_keys ? 6 : 3;
                        router.score = sy::score_function::sigmoid;
                        router.normalize = balances ? sy::gate_sum::norm : sy::gate_sum::add;
                        router.norm_power = 2;
                        router.epsilon = balances ? 0 : 1e-20;
                        router.scale = 2.5;
                        router.capacity = sy::capacity_rule{.number = 1000};
                        if (limited) router.capacity = sy::capacity_rule{.factor = 0.7};
                        if (!limited && !balances) router.capacity = sy::capacity_rule{};
                        if (balances) router.balance_weight = 0.1;
                        router.z_weight = 1e-3;
                        router.rowless = sy::rowless_experts{.identity = 7, .zero = with_keys ? 2 : 0};
                    },
                    {.selection = with_keys ? spread_bias(24, 7) : std::vector<float>{}}));
                f(both_recipes(
                    [&](auto& router) {
                        router.k = with_keys ? 6 : 3;
                        router.score = sy::score_function::sigmoid;
                        if (with_keys) router.groups = sy::expert_groups{.count = 2, .kept = 1};
                        router.normalize = sy::gate_sum::add;
                        router.scale = 8;
                        router.capacity = sy::capacity_rule{.number = 1000};
                        if (limited) router.capacity = sy::capacity_rule{.factor = 0.7};
                        if (balances) router.balance_weight = 0.1;
                        router.balance = sy::balance_count::all;
                        router.rowless = sy::rowless_experts{.shared = 2};
                    },
                    {.selection = with_keys ? spread_bias(22, 7) : std::vector<float>{}}));
            }
        }
    }
}

}  // namespace switchyard_test
