// Routers of released models at their own sizes, for benchmarks and tests.
#pragma once

#include <switchyard/router/models.hpp>

namespace bench {

namespace sy = switchyard;
using sy::index_t;

/// The most experts of a model below.
inline constexpr index_t most_model_experts = 768;

/// f(name, experts, router) for each. `numbers`, one for each of `most_model_experts`, stand for the biases and scales
/// of experts, in the memory of the routers.
template <class Space = sy::host_space, class F>
void for_each_model(const float* numbers, const F& f) {
    namespace models = sy::models;
    const auto some = [numbers](index_t experts) { return sy::expert_numbers<Space>{numbers, experts}; };
    f("mixtral_8x7b", 8, sy::router_of<Space>(models::mixtral{.num_experts_per_tok = 2}));
    f("jamba", 16, sy::router_of<Space>(models::jamba{.num_experts_per_tok = 2}));
    f("dbrx", 16, sy::router_of<Space>(models::dbrx{.moe_top_k = 4}));
    f("ernie4_5", 64, sy::router_of(models::ernie4_5_moe{.moe_k = 6}, some(64)));
    f("llama4_maverick", 128, sy::router_of<Space>(models::llama4{.num_experts_per_tok = 1}));
    f("gpt_oss_120b", 128, sy::router_of(models::gpt_oss{.num_experts_per_tok = 4}, some(128)));
    f("qwen3_235b", 128, sy::router_of<Space>(models::qwen3_moe{.num_experts_per_tok = 8, .norm_topk_prob = true}));
    f("gemma4", 128, sy::router_of(models::gemma4{.top_k_experts = 8}, some(128)));
    f("deepseek_v2", 160,
      sy::router_of<Space>(
          models::deepseek_v2{.num_experts_per_tok = 6, .n_group = 8, .topk_group = 3, .routed_scaling_factor = 16}));
    f("deepseek_v3", 256, sy::router_of(models::deepseek_v3{}, some(256)));
    f("minimax_m2", 256, sy::router_of(models::minimax_m2{.num_experts_per_tok = 8}, some(256)));
    f("deepseek_v4", 384, sy::router_of(models::deepseek_v4{.num_experts_per_tok = 6}, some(384)));
    f("kimi_k2", 384, sy::router_of(models::deepseek_v3{.n_group = 1, .topk_group = 1}, some(384)));
    f("qwen3_next", 512, sy::router_of<Space>(models::qwen3_next{}));
    f("longcat_flash", 768, sy::router_of(models::longcat_flash{}, some(768)));
}

}  // namespace bench
