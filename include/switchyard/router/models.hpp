// Routers of models by their configuration: the fields are those of a model's config.json, and their defaults those of
// its configuration class, so that what a file leaves out is as the model has it.
//
//   const auto router = router_of(models::deepseek_v3{.n_group = 8, .topk_group = 4}, {bias.data(), 256});
//   route(par, router, x, w, plan, workspace);
//
// Each is a recipe_router (router/recipe.hpp) with that model's settings and nothing else: the caller sets capacity,
// noise and losses on it. The second argument is the model's bias, where it has one: the checkpoint's
// e_score_correction_bias or expert_bias, [E] floats, or for gpt-oss the bias of the router's linear layer. The router
// keeps its address. For a device: an expert_numbers<cuda_space>, or router_of<cuda_space>(models::mixtral{}).
//
// A model without a struct of its own takes that of a relative, with every field set: defaults are those of the model
// that the struct is named after. docs/router/models.md has the table, and says what is particular about each model.
//
// Field names and defaults: the configuration classes of transformers 5.23; where one has no default, the first
// release.
#pragma once

#include <switchyard/core/config.hpp>
#include <switchyard/core/matrix_view.hpp>
#include <switchyard/plan/capacity.hpp>
#include <switchyard/plan/slots.hpp>
#include <switchyard/router/gshard.hpp>
#include <switchyard/router/recipe.hpp>
#include <switchyard/router/softmax_routing.hpp>
#include <switchyard/router/sparse_mixer.hpp>
#include <switchyard/score/gates.hpp>
#include <switchyard/score/groups.hpp>
#include <switchyard/score/keys.hpp>
#include <switchyard/score/score_function.hpp>

#include <concepts>
#include <optional>

namespace switchyard {

namespace models {

/// And MiniMax-M1, Granite, JetMoE: a softmax over the chosen.
struct mixtral {
    index_t num_experts_per_tok = 2;
};
struct aria {
    index_t moe_topk = 2;
};

struct qwen2_moe {
    index_t num_experts_per_tok = 4;
    bool norm_topk_prob = false;
};
/// And OLMoE. Qwen3.5 always normalises.
struct qwen3_moe {
    index_t num_experts_per_tok = 8;
    bool norm_topk_prob = false;
};
struct qwen3_next {
    index_t num_experts_per_tok = 10;
    bool norm_topk_prob = true;
};

struct jamba {
    index_t num_experts_per_tok = 2;
};
struct hunyuan_v1_moe {
    index_t moe_topk = 1;
};

/// Not a recipe: a gshard_router, whose capacities are the model's too. In training expert_capacity, or, where it is
/// none (a file's null), 2 ceil(T / E) of the batch's tokens, where its own code keeps that of the first batch; at
/// inference the fraction of all tokens, rounded up, where that is above 0.
/// There every second choice is kept: its own code draws under "random" and "sampling" at inference, too.
struct nllb_moe {
    index_t num_experts = 128;
    std::optional<index_t> expert_capacity = 64;
    second_choice second_expert_policy = second_choice::all;  ///< all, random or sampling
    bool normalize_router_prob_before_dropping = false;
    bool batch_prioritized_routing = false;
    double moe_eval_capacity_token_fraction = 1;
};

/// Not a recipe: a sparse_mixer_router. Two experts, as its code takes no other number. Its code weighs draws away from
/// the peak by 0.3333.
struct phimoe {
    double router_jitter_noise = 0.01;
};

/// The gates are divided by their p-norm, p = moe_normalize_expert_weights; 0 for a file's null: not at all.
struct dbrx {
    index_t moe_top_k = 1;
    double moe_normalize_expert_weights = 1;
};

/// The best expert of each of num_experts_per_tok groups. The second argument is the router's router_scale.
struct pangu_pro_moe {
    index_t num_experts_per_tok = 8;
};

/// And Diffusion Gemma. The second argument is the router's per_expert_scale. Scores are the product of its own norm
/// and scale of the tokens, which are the caller's.
struct gemma4 {
    index_t top_k_experts = 8;
};

/// expert_selection_fn: "softmax" over the chosen, or "sigmoid".
struct cohere2_moe {
    index_t num_experts_per_tok = 2;
    score_function expert_selection_fn = score_function::softmax;
    bool norm_topk_prob = true;  ///< with sigmoid; a softmax over the chosen has the sum 1
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

/// And V3.2, Bailing (Ling).
struct deepseek_v3 {
    index_t num_experts_per_tok = 8;
    index_t n_group = 8;
    index_t topk_group = 4;
    double routed_scaling_factor = 2.5;
    bool norm_topk_prob = true;
};

/// GLM-4.5, and GLM-5, Kimi-Linear, dots1, Nemotron-H, EXAONE-MoE, Solar-Open, MiMo-V2-Flash: DeepSeek-V3's router,
/// mostly with one group.
struct glm4_moe {
    index_t num_experts_per_tok = 8;
    index_t n_group = 1;
    index_t topk_group = 1;
    double routed_scaling_factor = 1;
    bool norm_topk_prob = true;
};

/// The layers that choose by their scores; those that choose by token id take a table: table_choices. Its code does
/// not read norm_topk_prob, and always normalises.
struct deepseek_v4 {
    index_t num_experts_per_tok = 6;
    score_function scoring_func = score_function::sqrt_softplus;
    double routed_scaling_factor = 1.5;
};

/// A.X-K2: with groups, keys outside them are 0.
struct axk2 {
    index_t num_experts_per_tok = 8;
    index_t n_group = 1;
    index_t topk_group = 1;
    double routed_scaling_factor = 2.5;
    bool norm_topk_prob = true;
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

/// The last zero_expert_num of the scores' columns are identity experts.
struct longcat_flash {
    index_t moe_topk = 12;
    double routed_scaling_factor = 6;
    index_t zero_expert_num = 256;
};
/// Behind its experts there is one that does nothing.
struct zaya {
    index_t num_experts_per_tok = 1;
};

struct minimax_m2 {
    index_t num_experts_per_tok = 8;
};
struct minimax_m3 {
    index_t num_experts_per_tok = 4;
    double routed_scaling_factor = 2;
};

struct step3p7 {
    index_t num_experts_per_tok = 8;
    double moe_router_scaling_factor = 1;
};
/// Behind its experts there are shared ones, which are not chosen and have their share of the weights.
struct inkling {
    index_t num_experts_per_tok = 6;
    double route_scale = 8;
    index_t n_shared_experts = 2;
    double global_scale = 1;  ///< the checkpoint's, learned
};
struct inkling2 {
    index_t num_experts_per_tok = 8;
    score_function scoring_func = score_function::sigmoid;
    double route_scale = 8;
};
/// Its logits are multiplied first.
struct muse_spark {
    index_t num_experts_per_tok = 8;
    double output_multiplier = 0.1767766952966369;
    double routed_scaling_factor = 1;
};
/// Its logits are capped first, where the softcap is not 0. A score of -infinity forbids here; its own code makes it
/// the cap's negative.
struct laguna {
    index_t num_experts_per_tok = 8;
    double moe_router_logit_softcapping = 0;
    double moe_routed_scaling_factor = 1;
};
struct flint {
    index_t num_experts_per_tok = 6;
    bool norm_topk_prob = true;
};

struct hy_v3 {
    index_t num_experts_per_tok = 8;
    double router_scaling_factor = 2.826;
};
struct afmoe {
    index_t num_experts_per_tok = 6;
    double route_scale = 1;
};

struct lfm2_moe {
    index_t num_experts_per_tok = 4;
    bool norm_topk_prob = true;
    double routed_scaling_factor = 1;
};

/// The bias is added to the scores, before the sigmoid.
struct kolibri1 {
    index_t num_experts_per_tok = 6;
    bool norm_topk_prob = false;
};

}  // namespace models

inline namespace SWITCHYARD_TARGET {

namespace detail {

/// Models that differ in their defaults alone.
template <class Model, class... Listed>
concept one_of = (std::same_as<Model, Listed> || ...);

/// A softmax, its chosen values divided by their sum or not.
template <class Space>
constexpr recipe_router<Space> softmax_recipe(index_t k, bool normalizes) {
    return {.k = k, .normalize = normalizes ? gate_sum::add : gate_sum::none};
}

/// A bias of the choice, and a sum with an epsilon.
template <class Space>
constexpr recipe_router<Space> biased_recipe(index_t k, score_function score, const expert_numbers<Space>& bias,
                                             bool normalizes, double epsilon, double scale) {
    return {.k = k,
            .score = score,
            .selection_bias = bias,
            .normalize = normalizes ? gate_sum::add : gate_sum::none,
            .epsilon = normalizes ? epsilon : 0,
            .scale = scale};
}

/// DeepSeek-V3's form, from the fields that its relatives share.
template <class Space, class Model>
constexpr recipe_router<Space> grouped_recipe(const Model& model, score_function score, group_mask masked,
                                              const expert_numbers<Space>& bias) {
    auto router =
        biased_recipe(model.num_experts_per_tok, score, bias, model.norm_topk_prob, 1e-20, model.routed_scaling_factor);
    router.groups = expert_groups{.count = model.n_group, .kept = model.topk_group, .summed = 2, .masked = masked};
    return router;
}

}  // namespace detail

template <class Space = host_space>
constexpr recipe_router<Space> router_of(const models::mixtral& model) {
    return detail::softmax_recipe<Space>(model.num_experts_per_tok, true);
}
template <class Space = host_space>
constexpr recipe_router<Space> router_of(const models::aria& model) {
    return detail::softmax_recipe<Space>(model.moe_topk, true);
}
template <class Space = host_space, detail::one_of<models::qwen2_moe, models::qwen3_moe, models::qwen3_next> Model>
constexpr recipe_router<Space> router_of(const Model& model) {
    return detail::softmax_recipe<Space>(model.num_experts_per_tok, model.norm_topk_prob);
}
template <class Space = host_space>
constexpr recipe_router<Space> router_of(const models::jamba& model) {
    return detail::softmax_recipe<Space>(model.num_experts_per_tok, false);
}
template <class Space = host_space>
constexpr recipe_router<Space> router_of(const models::hunyuan_v1_moe& model) {
    return detail::softmax_recipe<Space>(model.moe_topk, true);
}
constexpr gshard_router router_of(const models::nllb_moe& model) {
    const bool is_random = model.second_expert_policy == second_choice::random;
    const double fraction = model.moe_eval_capacity_token_fraction;
    capacity_rule capacity{.number = model.expert_capacity};
    if (!model.expert_capacity) {  // twice the share of an expert, rounded up before
        capacity =
            capacity_rule{.factor = 2, .rounding = capacity_rounding::ceil, .multiple = 2, .counts_choices = false};
    }
    gshard_router router{.second = model.second_expert_policy,
                         .compared = second_weight::probability,
                         .normalize = !model.normalize_router_prob_before_dropping ? pair_sum::after_drops
                                      : is_random                                  ? pair_sum::first_before_drops
                                                                                   : pair_sum::before_drops,
                         .epsilon_kind = gate_sum::clamp,
                         .epsilon = 0x1p-23,
                         .capacity = capacity,
                         .inference_capacity = capacity,
                         .order = model.batch_prioritized_routing ? drop_order::gate : drop_order::position,
                         .balance_weight = 0};
    if (fraction > 0) {
        router.inference_capacity = capacity_rule{.factor = fraction * static_cast<double>(model.num_experts),
                                                  .rounding = capacity_rounding::ceil,
                                                  .counts_choices = false};
    }
    return router;
}
constexpr sparse_mixer_router router_of(const models::phimoe& model) {
    return {.epsilon = model.router_jitter_noise, .off_peak = 0.3333};
}
template <class Space = host_space>
constexpr recipe_router<Space> router_of(const models::dbrx& model) {
    const double power = model.moe_normalize_expert_weights;
    return {.k = model.moe_top_k,
            .normalize = power == 0 ? gate_sum::none : gate_sum::norm,
            .norm_power = power == 0 ? 1 : power};
}
template <class Space = host_space>
constexpr recipe_router<Space> router_of(const models::gemma4& model,
                                         const expert_numbers<Space>& per_expert_scale = {}) {
    return {.k = model.top_k_experts, .normalize = gate_sum::add, .expert_scale = per_expert_scale};
}
template <class Space = host_space>
constexpr recipe_router<Space> router_of(const models::pangu_pro_moe& model,
                                         const expert_numbers<Space>& router_scale = {}) {
    return {.k = model.num_experts_per_tok,
            .groups = {.count = model.num_experts_per_tok, .one_each = true},
            .expert_scale = router_scale};
}
template <class Space = host_space>
constexpr recipe_router<Space> router_of(const models::cohere2_moe& model) {
    const bool normalizes = model.norm_topk_prob || model.expert_selection_fn == score_function::softmax;
    return {.k = model.num_experts_per_tok,
            .score = model.expert_selection_fn,
            .normalize = normalizes ? gate_sum::add : gate_sum::none};
}
template <class Space = host_space>
constexpr recipe_router<Space> router_of(const models::gpt_oss& model, const expert_numbers<Space>& bias = {}) {
    return {.k = model.num_experts_per_tok, .logit_bias = bias, .key = key_source::score, .normalize = gate_sum::add};
}
template <class Space = host_space>
constexpr recipe_router<Space> router_of(const models::llama4& model) {
    return {.k = model.num_experts_per_tok, .score = score_function::sigmoid, .key = key_source::score};
}
template <class Space = host_space>
constexpr recipe_router<Space> router_of(const models::deepseek_v2& model) {
    return {.k = model.num_experts_per_tok,
            .groups = {.count = model.n_group, .kept = model.topk_group, .summed = 1, .masked = group_mask::zero},
            .scale = model.routed_scaling_factor};
}
template <class Space = host_space, detail::one_of<models::deepseek_v3, models::glm4_moe> Model>
constexpr recipe_router<Space> router_of(const Model& model,
                                         const expert_numbers<Space>& e_score_correction_bias = {}) {
    return detail::grouped_recipe(model, score_function::sigmoid, group_mask::forbidden, e_score_correction_bias);
}
template <class Space = host_space>
constexpr recipe_router<Space> router_of(const models::deepseek_v4& model,
                                         const expert_numbers<Space>& e_score_correction_bias = {}) {
    return detail::biased_recipe(model.num_experts_per_tok, model.scoring_func, e_score_correction_bias, true, 1e-20,
                                 model.routed_scaling_factor);
}
template <class Space = host_space>
constexpr recipe_router<Space> router_of(const models::mistral4& model) {
    return detail::grouped_recipe(model, score_function::softmax, group_mask::zero, expert_numbers<Space>{});
}
template <class Space = host_space>
constexpr recipe_router<Space> router_of(const models::axk2& model,
                                         const expert_numbers<Space>& e_score_correction_bias = {}) {
    return detail::grouped_recipe(model, score_function::sigmoid, group_mask::zero, e_score_correction_bias);
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
    auto router = detail::biased_recipe(model.moe_topk, score_function::softmax, e_score_correction_bias, false, 0,
                                        model.routed_scaling_factor);
    router.rowless = rowless_experts{.identity = model.zero_expert_num};
    return router;
}
/// `balancing_biases` are the checkpoint's.
template <class Space = host_space>
constexpr recipe_router<Space> router_of(const models::zaya& model,
                                         const expert_numbers<Space>& balancing_biases = {}) {
    auto router =
        detail::biased_recipe(model.num_experts_per_tok, score_function::softmax, balancing_biases, false, 0, 1);
    router.rowless = rowless_experts{.zero = 1};
    return router;
}
template <class Space = host_space>
constexpr recipe_router<Space> router_of(const models::minimax_m2& model,
                                         const expert_numbers<Space>& e_score_correction_bias = {}) {
    return detail::biased_recipe(model.num_experts_per_tok, score_function::sigmoid, e_score_correction_bias, true, 0,
                                 1);
}
template <class Space = host_space>
constexpr recipe_router<Space> router_of(const models::minimax_m3& model,
                                         const expert_numbers<Space>& e_score_correction_bias = {}) {
    return detail::biased_recipe(model.num_experts_per_tok, score_function::sigmoid, e_score_correction_bias, true, 0,
                                 model.routed_scaling_factor);
}
template <class Space = host_space>
constexpr recipe_router<Space> router_of(const models::step3p7& model,
                                         const expert_numbers<Space>& e_score_correction_bias = {}) {
    return detail::biased_recipe(model.num_experts_per_tok, score_function::sigmoid, e_score_correction_bias, true, 0,
                                 model.moe_router_scaling_factor);
}
template <class Space = host_space>
constexpr recipe_router<Space> router_of(const models::inkling& model,
                                         const expert_numbers<Space>& e_score_correction_bias = {}) {
    auto router = detail::biased_recipe(model.num_experts_per_tok, score_function::sigmoid, e_score_correction_bias,
                                        true, 0, model.route_scale * model.global_scale);
    router.rowless = rowless_experts{.shared = model.n_shared_experts};
    return router;
}
template <class Space = host_space>
constexpr recipe_router<Space> router_of(const models::inkling2& model,
                                         const expert_numbers<Space>& e_score_correction_bias = {}) {
    return detail::biased_recipe(model.num_experts_per_tok, model.scoring_func, e_score_correction_bias, true, 1e-20,
                                 model.route_scale);
}
template <class Space = host_space>
constexpr recipe_router<Space> router_of(const models::muse_spark& model,
                                         const expert_numbers<Space>& e_score_correction_bias = {}) {
    auto router = detail::biased_recipe(model.num_experts_per_tok, score_function::sigmoid, e_score_correction_bias,
                                        true, 1e-15, model.routed_scaling_factor);
    router.logit_multiplier = model.output_multiplier;
    return router;
}
template <class Space = host_space>
constexpr recipe_router<Space> router_of(const models::laguna& model,
                                         const expert_numbers<Space>& e_score_correction_bias = {}) {
    auto router = detail::biased_recipe(model.num_experts_per_tok, score_function::sigmoid, e_score_correction_bias,
                                        true, 0, model.moe_routed_scaling_factor);
    router.softcap = model.moe_router_logit_softcapping;
    return router;
}
template <class Space = host_space>
constexpr recipe_router<Space> router_of(const models::flint& model) {
    return {.k = model.num_experts_per_tok,
            .score = score_function::sigmoid,
            .normalize = model.norm_topk_prob ? gate_sum::add : gate_sum::none};
}
template <class Space = host_space>
constexpr recipe_router<Space> router_of(const models::hy_v3& model, const expert_numbers<Space>& expert_bias = {}) {
    return detail::biased_recipe(model.num_experts_per_tok, score_function::sigmoid, expert_bias, true, 1e-20,
                                 model.router_scaling_factor);
}
template <class Space = host_space>
constexpr recipe_router<Space> router_of(const models::afmoe& model, const expert_numbers<Space>& expert_bias = {}) {
    return detail::biased_recipe(model.num_experts_per_tok, score_function::sigmoid, expert_bias, true, 1e-20,
                                 model.route_scale);
}
template <class Space = host_space>
constexpr recipe_router<Space> router_of(const models::lfm2_moe& model, const expert_numbers<Space>& expert_bias = {}) {
    return detail::biased_recipe(model.num_experts_per_tok, score_function::sigmoid, expert_bias, model.norm_topk_prob,
                                 1e-6, model.routed_scaling_factor);
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

}  // namespace SWITCHYARD_TARGET
}  // namespace switchyard
