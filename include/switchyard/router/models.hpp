// Routers of models by their configuration: the fields are those of a model's config.json, and their defaults those of
// its configuration class or its first release, so that what a file leaves out is as the model has it.
//
//   const auto router = router_of(models::deepseek_v3{.n_group = 8, .topk_group = 4}, {bias.data(), 256});
//   route(par, router, x, w, plan, workspace);
//
// Each is a recipe_router (router/recipe.hpp) with that model's settings, nothing else: capacity, noise and losses are
// the caller's to set on it. The second argument is the model's bias, where it has one: the checkpoint's
// e_score_correction_bias or expert_bias, [E] floats, or for gpt-oss the bias of the router's linear layer. The router
// keeps its address. docs/router/models.md says what is particular about each model, and where implementations differ.
//
// Field names and defaults: the configuration classes of transformers 5.23.
#pragma once

#include <switchyard/core/config.hpp>
#include <switchyard/router/recipe.hpp>
#include <switchyard/score/gates.hpp>
#include <switchyard/score/groups.hpp>
#include <switchyard/score/keys.hpp>
#include <switchyard/score/score_function.hpp>

namespace switchyard {

namespace models {

/// Mixtral, MiniMax-M1, Granite, JetMoE, Aria: a softmax over the chosen.
struct mixtral {
    index_t num_experts_per_tok = 2;
};

/// Qwen2-MoE (4 experts), Qwen3-MoE, Qwen3-Next, OLMoE (8).
struct qwen3_moe {
    index_t num_experts_per_tok = 8;
    bool norm_topk_prob = false;
};

struct jamba {
    index_t num_experts_per_tok = 2;
};

/// The bias is that of the router's linear layer.
struct gpt_oss {
    index_t num_experts_per_tok = 4;
};

/// The gates belong on the experts' input: dispatch with them, combine without.
struct llama4 {
    index_t num_experts_per_tok = 1;
};

/// `n_group` = 1 is topk_method "greedy", others are "group_limited_greedy". norm_topk_prob is in its files, but its
/// code does not read it.
struct deepseek_v2 {
    index_t num_experts_per_tok = 6;
    index_t n_group = 1;
    index_t topk_group = 1;
    double routed_scaling_factor = 1;
};

/// DeepSeek-V3, V3.2, Bailing (Ling), and with one group GLM-4.5, GLM-5, Kimi-Linear, dots1, Nemotron-H, EXAONE-MoE,
/// Solar-Open, MiMo-V2-Flash.
struct deepseek_v3 {
    index_t num_experts_per_tok = 8;
    index_t n_group = 8;
    index_t topk_group = 4;
    double routed_scaling_factor = 2.5;
    bool norm_topk_prob = true;
};

/// The layers that choose by their scores; those that choose by token id take a table: plan_from_choices.
struct deepseek_v4 {
    index_t num_experts_per_tok = 6;
    score_function scoring_func = score_function::sqrt_softplus;
    double routed_scaling_factor = 1.5;
};

struct mistral4 {
    index_t num_experts_per_tok = 4;
    index_t n_group = 1;
    index_t topk_group = 1;
    double routed_scaling_factor = 1;
    bool norm_topk_prob = true;
};

struct ernie4_5_moe {
    index_t moe_k = 6;
    double moe_norm_min = 1e-12;
};

/// E is n_routed_experts + zero_expert_num; choices of the latter take rows like any other.
struct longcat_flash {
    index_t moe_topk = 12;
    double routed_scaling_factor = 6;
};

/// M2, and M3 with its factor.
struct minimax_m2 {
    index_t num_experts_per_tok = 8;
    double routed_scaling_factor = 1;
};

struct hy_v3 {
    index_t num_experts_per_tok = 8;
    double router_scaling_factor = 2.826;
};

/// The bias is added to the scores, before the sigmoid.
struct kolibri1 {
    index_t num_experts_per_tok = 6;
    bool norm_topk_prob = false;
};

struct lfm2_moe {
    index_t num_experts_per_tok = 4;
    bool norm_topk_prob = true;
    double routed_scaling_factor = 1;
};

}  // namespace models

inline namespace SWITCHYARD_TARGET {

namespace detail {

/// `k` experts by softmax, divided by their sum or not.
constexpr recipe_router<> softmax_recipe(index_t k, bool normalizes) {
    return {.k = k, .normalize = normalizes ? gate_sum::add : gate_sum::none};
}

/// DeepSeek-V3's form with any score function: a bias of the choice, and a sum with 1e-20.
template <class Space>
constexpr recipe_router<Space> biased_recipe(index_t k, score_function score, const expert_numbers<Space>& bias,
                                             bool normalizes, double scale) {
    return {.k = k,
            .score = score,
            .selection_bias = bias,
            .normalize = normalizes ? gate_sum::add : gate_sum::none,
            .epsilon = normalizes ? 1e-20 : 0,
            .scale = scale};
}

}  // namespace detail

constexpr recipe_router<> router_of(const models::mixtral& model) {
    return detail::softmax_recipe(model.num_experts_per_tok, true);
}
constexpr recipe_router<> router_of(const models::qwen3_moe& model) {
    return detail::softmax_recipe(model.num_experts_per_tok, model.norm_topk_prob);
}
constexpr recipe_router<> router_of(const models::jamba& model) {
    return detail::softmax_recipe(model.num_experts_per_tok, false);
}
template <class Space = host_space>
constexpr recipe_router<Space> router_of(const models::gpt_oss& model, const expert_numbers<Space>& bias = {}) {
    return {.k = model.num_experts_per_tok, .logit_bias = bias, .normalize = gate_sum::add};
}
constexpr recipe_router<> router_of(const models::llama4& model) {
    return {.k = model.num_experts_per_tok, .score = score_function::sigmoid};
}
constexpr recipe_router<> router_of(const models::deepseek_v2& model) {
    return {.k = model.num_experts_per_tok,
            .groups = {.count = model.n_group, .kept = model.topk_group, .summed = 1, .masked = group_mask::zero},
            .scale = model.routed_scaling_factor};
}
template <class Space = host_space>
constexpr recipe_router<Space> router_of(const models::deepseek_v3& model,
                                         const expert_numbers<Space>& e_score_correction_bias = {}) {
    auto router = detail::biased_recipe(model.num_experts_per_tok, score_function::sigmoid, e_score_correction_bias,
                                        model.norm_topk_prob, model.routed_scaling_factor);
    router.groups = {.count = model.n_group, .kept = model.topk_group, .summed = 2};
    return router;
}
template <class Space = host_space>
constexpr recipe_router<Space> router_of(const models::deepseek_v4& model,
                                         const expert_numbers<Space>& e_score_correction_bias = {}) {
    return detail::biased_recipe(model.num_experts_per_tok, model.scoring_func, e_score_correction_bias, true,
                                 model.routed_scaling_factor);
}
constexpr recipe_router<> router_of(const models::mistral4& model) {
    auto router = detail::biased_recipe(model.num_experts_per_tok, score_function::softmax, expert_numbers<>{},
                                        model.norm_topk_prob, model.routed_scaling_factor);
    router.groups = {.count = model.n_group, .kept = model.topk_group, .summed = 2, .masked = group_mask::zero};
    return router;
}
template <class Space = host_space>
constexpr recipe_router<Space> router_of(const models::ernie4_5_moe& model,
                                         const expert_numbers<Space>& e_score_correction_bias = {}) {
    return {.k = model.moe_k,
            .selection_bias = e_score_correction_bias,
            .normalize = gate_sum::clamp,
            .epsilon = model.moe_norm_min};
}
template <class Space = host_space>
constexpr recipe_router<Space> router_of(const models::longcat_flash& model,
                                         const expert_numbers<Space>& e_score_correction_bias = {}) {
    return detail::biased_recipe(model.moe_topk, score_function::softmax, e_score_correction_bias, false,
                                 model.routed_scaling_factor);
}
template <class Space = host_space>
constexpr recipe_router<Space> router_of(const models::minimax_m2& model,
                                         const expert_numbers<Space>& e_score_correction_bias = {}) {
    auto router = detail::biased_recipe(model.num_experts_per_tok, score_function::sigmoid, e_score_correction_bias,
                                        true, model.routed_scaling_factor);
    router.epsilon = 0;
    return router;
}
template <class Space = host_space>
constexpr recipe_router<Space> router_of(const models::hy_v3& model, const expert_numbers<Space>& expert_bias = {}) {
    return detail::biased_recipe(model.num_experts_per_tok, score_function::sigmoid, expert_bias, true,
                                 model.router_scaling_factor);
}
template <class Space = host_space>
constexpr recipe_router<Space> router_of(const models::kolibri1& model,
                                         const expert_numbers<Space>& e_score_correction_bias = {}) {
    return {.k = model.num_experts_per_tok,
            .score = score_function::sigmoid,
            .key = key_source::score,
            .selection_bias = e_score_correction_bias,
            .normalize = model.norm_topk_prob ? gate_sum::add : gate_sum::none};
}
template <class Space = host_space>
constexpr recipe_router<Space> router_of(const models::lfm2_moe& model, const expert_numbers<Space>& expert_bias = {}) {
    auto router = detail::biased_recipe(model.num_experts_per_tok, score_function::sigmoid, expert_bias,
                                        model.norm_topk_prob, model.routed_scaling_factor);
    router.epsilon = model.norm_topk_prob ? 1e-6 : 0;
    return router;
}

}  // namespace SWITCHYARD_TARGET
}  // namespace switchyard
