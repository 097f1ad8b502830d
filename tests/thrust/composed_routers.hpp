// The routers that are composed of generic verbs, on the device and on the CPU.
#pragma once

#include "thrust/recipes.hpp"

#include <switchyard/balance/load_loss.hpp>
#include <switchyard/router/gshard.hpp>
#include <switchyard/router/sparse_mixer.hpp>
#include <switchyard/score/cosine.hpp>
#include <switchyard/score/noisy_scores.hpp>

#include <string>
#include <vector>

namespace switchyard_test {

/// Each of them with settings that use all of it; a sentence about the first difference.
template <class Policy>
std::string more_routers_difference(const Policy& on) {
    const auto table = draw_scores(score_kind::gaussian, 150, 24, 5, 20);
    const auto mask = draw_mask(150, 6);
    const auto both = [&](const auto& router) {
        const auto trained = same_router_difference(on, router, table, mask, true);
        return trained.empty() ? same_router_difference(on, router, table, {}, false) : trained;
    };
    for (const auto sum : {sy::pair_sum::none, sy::pair_sum::before_drops, sy::pair_sum::after_drops,
                           sy::pair_sum::first_before_drops}) {
        for (const auto second : {sy::second_choice::all, sy::second_choice::random, sy::second_choice::sampling}) {
            const auto sentence = both(sy::gshard_router{.second = second,
                                                         .inference_second = sy::second_choice::threshold,
                                                         .second_threshold = 0.4,
                                                         .normalize = sum,
                                                         .capacity = {.factor = 0.9},
                                                         .inference_capacity = {.factor = 0.9},
                                                         .z_weight = 0.01});
            if (!sentence.empty()) return "gshard: " + sentence;
        }
    }
    const auto mixed = both(sy::sparse_mixer_router{.epsilon = 0.3,
                                                    .capacity = {.factor = 0.9},
                                                    .inference_capacity = {.factor = 0.9},
                                                    .balance_weight = 0.1,
                                                    .z_weight = 0.01});
    if (!mixed.empty()) return "sparse mixer: " + mixed;

    const both_recipes one_each(
        [](auto& router) {
            router.k = 8;
            router.score = sy::score_function::sigmoid;
            router.groups = sy::expert_groups{.count = 8, .one_each = true};
            router.normalize = sy::gate_sum::add;
            router.capacity = router.inference_capacity = sy::capacity_rule{.factor = 0.9};
        },
        {.selection = spread_bias(24, 7), .scale = spread_bias(24, 5)});
    const auto grouped = recipe_difference(on, one_each, table, mask, true);
    return grouped.empty() ? recipe_difference(on, one_each, table, {}, false) : grouped;
}

/// Cosine scores and their gradients.
template <class Policy>
std::string cosine_difference(const Policy& on) {
    const auto x = stored<float>(gaussian_scores(150, 12, 1));
    const auto p = stored<float>(gaussian_scores(12, 6, 2));
    const auto w = stored<float>(gaussian_scores(10, 6, 3));
    const auto d_s = stored<float>(gaussian_scores(150, 10, 4));
    const auto padding = draw_mask(150, 5);
    const device_mask padding_there(padding);
    sy::matrix<float> s(150, 10);
    sy::matrix<float> d_x(150, 12);
    sy::matrix<float> d_p(12, 6);
    sy::matrix<float> d_w(10, 6);
    double d_temperature = 0;
    sy::workspace host_scratch;
    const sy::cosine_settings settings{.temperature = 0.5, .mask = mask_of(padding)};
    sy::cosine_scores(sy::seq, x, p, w, settings, s, host_scratch);
    sy::cosine_scores_backward(sy::seq, x, p, w, settings, d_s, d_x, d_p, d_w, &d_temperature, host_scratch);

    const auto x_there = sy::copy_to_device(on, x);
    const auto p_there = sy::copy_to_device(on, p);
    const auto w_there = sy::copy_to_device(on, w);
    const sy::cosine_settings settings_there{.temperature = 0.5, .mask = padding_there.get()};
    sy::matrix<float, device_memory> s_there(150, 10);
    sy::matrix<float, device_memory> d_x_there(150, 12);
    sy::matrix<float, device_memory> d_p_there(12, 6);
    sy::matrix<float, device_memory> d_w_there(10, 6);
    sy::buffer<double, device_memory> d_temperature_there;
    d_temperature_there.resize(1);
    device_scratch scratch;
    sy::cosine_scores(on, x_there, p_there, w_there, settings_there, s_there, scratch);
    sy::cosine_scores_backward(on, x_there, p_there, w_there, settings_there, sy::copy_to_device(on, d_s), d_x_there,
                               d_p_there, d_w_there, d_temperature_there.data(), scratch);
    double got = 0;
    on.copy_to_host(&got, d_temperature_there.data(), sizeof got);
    if (!is_close(got, d_temperature, 1e-4)) return said("d_temperature is ", got, ", on the CPU ", d_temperature);
    const auto scores = matrix_difference(sy::copy_to_host(on, s_there), s, 1e-5, 2);
    if (!scores.empty()) return "scores: " + scores;
    const auto tokens = matrix_difference(sy::copy_to_host(on, d_x_there), d_x, 1e-5, 10);
    if (!tokens.empty()) return "d_x: " + tokens;
    const auto projection = matrix_difference(sy::copy_to_host(on, d_p_there), d_p, 1e-5, 100);
    if (!projection.empty()) return "d_p: " + projection;
    return matrix_difference(sy::copy_to_host(on, d_w_there), d_w, 1e-5, 100);
}

/// Noisy scores, the load loss and all their gradients. Functions of the machine may differ in their last bits.
template <class Policy>
std::string noisy_difference(const Policy& on) {
    const index_t tokens = 300;
    const index_t experts = 10;
    const auto s = stored<float>(gaussian_scores(tokens, experts, 1));
    const auto n = stored<float>(gaussian_scores(tokens, experts, 2));
    const auto d_h = stored<float>(gaussian_scores(tokens, experts, 3));
    const auto padding = draw_mask(tokens, 4);
    const sy::noisy_score_settings noise{.noise = {.seed = 5, .stream = 1, .step = 9}};
    const sy::load_loss_settings settings{.k = 3, .noisy = noise, .mask = mask_of(padding)};
    sy::matrix<float> h(tokens, experts);
    sy::matrix<float> d_s(tokens, experts);
    sy::matrix<float> d_n(tokens, experts);
    std::vector<double> load(static_cast<std::size_t>(experts) + 1);
    sy::workspace host_scratch;
    sy::noisy_scores(sy::seq, s, n, noise, h);
    sy::load_loss(sy::seq, s, n, h, settings, load.data(), &load[10], host_scratch);
    sy::noisy_scores_backward(sy::seq, n, noise, d_h, d_s, d_n);
    sy::load_loss_backward(sy::seq, s, n, h, settings, load.data(), d_s, d_n, host_scratch);

    const auto s_there = sy::copy_to_device(on, s);
    const auto n_there = sy::copy_to_device(on, n);
    const device_mask padding_there(padding);
    auto settings_there = settings;
    settings_there.mask = padding_there.get();
    sy::matrix<float, device_memory> h_there(tokens, experts);
    sy::matrix<float, device_memory> d_s_there(tokens, experts);
    sy::matrix<float, device_memory> d_n_there(tokens, experts);
    sy::buffer<double, device_memory> load_there;
    load_there.resize(experts + 1);
    device_scratch scratch;
    sy::noisy_scores(on, s_there, n_there, noise, h_there);
    sy::load_loss(on, s_there, n_there, h_there, settings_there, load_there.data(), load_there.data() + experts,
                  scratch);
    sy::noisy_scores_backward(on, n_there, noise, sy::copy_to_device(on, d_h), d_s_there, d_n_there);
    sy::load_loss_backward(on, s_there, n_there, h_there, settings_there, load_there.data(), d_s_there, d_n_there,
                           scratch);
    std::vector<double> got(load.size());
    on.copy_to_host(got.data(), load_there.data(), got.size() * sizeof(double));
    for (std::size_t e = 0; e < got.size(); ++e) {
        if (!is_close(got[e], load[e], 1e-5)) return said("load[", e, "] is ", got[e], ", on the CPU ", load[e]);
    }
    const auto noisy = matrix_difference(sy::copy_to_host(on, h_there), h, 1e-6, 4);
    if (!noisy.empty()) return "noisy: " + noisy;
    const auto scores = matrix_difference(sy::copy_to_host(on, d_s_there), d_s, 1e-6, 4);
    if (!scores.empty()) return "d_scores: " + scores;
    return matrix_difference(sy::copy_to_host(on, d_n_there), d_n, 1e-6, 8);
}

}  // namespace switchyard_test
