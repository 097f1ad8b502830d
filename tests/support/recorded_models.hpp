// What the code of published models answers, for comparison with any router made of parts: logits with a fixed seed,
// and the experts, weights and gradients that the model's own module made of them, in float32.
//
//   logits[T, E]     what the score function is given: the product of the router's weight, linear bias included;
//                    -infinity forbids (cases "forbidden")
//   choices[T, k]    the experts of each token, by rising index: the modules return them in no order. Where fewer
//                    than k are allowed, the forbidden ones among them are arbitrary, and have weight 0
//   weights[T, k]    the weight of each of these choices, all factors included
//   d_weights[T, k]  numbers that stand for the gradient of the weights
//   d_logits[T, E]   the gradient of the logits that the module's backward made of them
//
// Packages and classes stand in tests/recorded/*.inc. At the edge of each choice, of experts and of groups, keys differ
// by 9e-5 or more, so that rounding in float32 decides none.
#pragma once

#include <switchyard/reference/recipe.hpp>

#include <algorithm>
#include <cstddef>
#include <limits>
#include <span>
#include <vector>

namespace switchyard_test {

/// The arrays above, row by row.
struct recorded_answers {
    std::span<const float> logits;
    std::span<const short> choices;
    std::span<const float> weights;
    std::span<const float> d_weights;
    std::span<const float> d_logits;
};

namespace recorded {

inline constexpr float never = -std::numeric_limits<float>::infinity();

#include "../recorded/dbrx.inc"
#include "../recorded/deepseek_v2.inc"
#include "../recorded/deepseek_v3.inc"
#include "../recorded/deepseek_v4.inc"
#include "../recorded/gemma4.inc"
#include "../recorded/gpt_oss.inc"
#include "../recorded/inkling.inc"
#include "../recorded/laguna.inc"
#include "../recorded/llama4.inc"
#include "../recorded/longcat_flash.inc"
#include "../recorded/megatron.inc"
#include "../recorded/mixtral.inc"
#include "../recorded/qwen3_moe.inc"
#include "../recorded/torchtitan.inc"

}  // namespace recorded

/// One router of a model, with its settings and its answers.
struct recorded_case {
    const char* name;
    switchyard::index_t experts;  ///< E
    switchyard::reference::recipe_router router;
    recorded_answers answers;

    switchyard::index_t tokens() const { return static_cast<switchyard::index_t>(answers.logits.size()) / experts; }
};

/// Recorded numbers as a table of the reference.
template <class T, class Recorded>
switchyard::reference::table<T> recorded_table(std::span<const Recorded> numbers, switchyard::index_t columns) {
    switchyard::reference::table<T> table(static_cast<switchyard::index_t>(numbers.size()) / columns, columns);
    std::copy(numbers.begin(), numbers.end(), table.values.begin());
    return table;
}

/// Numbers of the choices as [T, E], 0 at experts that are no choice: the same for any order of the choices.
inline switchyard::reference::matrix recorded_by_expert(const recorded_case& model, std::span<const float> numbers) {
    const switchyard::index_t k = model.router.k;
    switchyard::reference::matrix by_expert(model.tokens(), model.experts);
    for (switchyard::index_t i = 0; i < model.tokens() * k; ++i) {
        const auto at = static_cast<std::size_t>(i);
        by_expert(i / k, model.answers.choices[at]) = static_cast<double>(numbers[at]);
    }
    return by_expert;
}

/// Recorded numbers as a list of the reference.
inline switchyard::reference::list<double> recorded_list(std::span<const float> numbers) {
    switchyard::reference::list<double> list;
    list.assign(numbers.begin(), numbers.end());
    return list;
}

/// All cases.
inline std::vector<recorded_case> recorded_models() {
    namespace ref = switchyard::reference;
    using ref::gate_sum;
    using ref::score_function;
    const ref::expert_groups four_of_eight{.count = 8, .kept = 4, .summed = 2};

    const ref::recipe_router dbrx{.k = 4, .normalize = gate_sum::norm};
    ref::recipe_router dbrx_p2 = dbrx;
    dbrx_p2.norm_power = 2;
    const ref::recipe_router deepseek_v2{
        .k = 6, .groups = {.count = 8, .kept = 3, .summed = 1, .masked = ref::group_mask::zero}, .scale = 16};
    const ref::recipe_router deepseek_v3{.k = 8,
                                         .score = score_function::sigmoid,
                                         .selection_bias = recorded_list(recorded::deepseek_v3_default_bias),
                                         .groups = four_of_eight,
                                         .normalize = gate_sum::add,
                                         .epsilon = 1e-20,
                                         .scale = 2.5};
    ref::recipe_router deepseek_v3_raw = deepseek_v3;
    deepseek_v3_raw.selection_bias = recorded_list(recorded::deepseek_v3_raw_bias);
    deepseek_v3_raw.normalize = gate_sum::none;
    ref::recipe_router deepseek_v3_one_group = deepseek_v3;
    deepseek_v3_one_group.selection_bias = recorded_list(recorded::deepseek_v3_one_group_bias);
    deepseek_v3_one_group.groups = {};
    deepseek_v3_one_group.scale = 1;
    ref::recipe_router deepseek_v3_negative = deepseek_v3;
    deepseek_v3_negative.selection_bias = recorded_list(recorded::deepseek_v3_negative_bias_bias);
    const ref::recipe_router deepseek_v4{.k = 6,
                                         .score = score_function::sqrt_softplus,
                                         .selection_bias = recorded_list(recorded::deepseek_v4_default_bias),
                                         .normalize = gate_sum::add,
                                         .epsilon = 1e-20,
                                         .scale = 1.5};
    const ref::recipe_router gemma4{
        .k = 8, .normalize = gate_sum::add, .expert_scale = recorded_list(recorded::gemma4_default_per_expert_scale)};
    const ref::recipe_router gpt_oss{.k = 4, .key = ref::key_source::logit, .normalize = gate_sum::add};
    const ref::recipe_router laguna{.k = 8,
                                    .score = score_function::sigmoid,
                                    .selection_bias = recorded_list(recorded::laguna_default_bias),
                                    .normalize = gate_sum::add};
    ref::recipe_router laguna_capped = laguna;
    laguna_capped.softcap = 1.5;
    laguna_capped.selection_bias = recorded_list(recorded::laguna_softcap_bias);
    laguna_capped.scale = 2.5;
    const ref::recipe_router llama4{.k = 1, .score = score_function::sigmoid, .key = ref::key_source::logit};
    const ref::recipe_router llama4_k2{.k = 2, .score = score_function::sigmoid, .key = ref::key_source::logit};
    const ref::recipe_router longcat{.k = 12,
                                     .selection_bias = recorded_list(recorded::longcat_flash_default_bias),
                                     .scale = 6,
                                     .identity_experts = 16};
    const ref::recipe_router mixtral{.k = 2, .normalize = gate_sum::add};
    const ref::recipe_router qwen3_raw{.k = 8};
    const ref::recipe_router qwen3_norm{.k = 8, .normalize = gate_sum::add};
    const ref::recipe_router torchtitan{.k = 6,
                                        .selection_bias = recorded_list(recorded::torchtitan_softmax_bias),
                                        .groups = four_of_eight,
                                        .normalize = gate_sum::add,
                                        .epsilon = 1e-20,
                                        .scale = 2.5};

    return {
        {"DBRX", 16, dbrx, recorded::dbrx_p1},
        {"DBRX, p = 2", 16, dbrx_p2, recorded::dbrx_p2},
        {"DBRX, not normalised", 16, {.k = 4}, recorded::dbrx_raw},
        {"DeepSeek-V2, groups by their maximum", 32, deepseek_v2, recorded::deepseek_v2_groups},
        {"DeepSeek-V3", 32, deepseek_v3, recorded::deepseek_v3_default},
        {"DeepSeek-V3, not normalised", 32, deepseek_v3_raw, recorded::deepseek_v3_raw},
        {"DeepSeek-V3, one group", 32, deepseek_v3_one_group, recorded::deepseek_v3_one_group},
        {"DeepSeek-V3, negative keys", 32, deepseek_v3_negative, recorded::deepseek_v3_negative_bias},
        {"DeepSeek-V4", 32, deepseek_v4, recorded::deepseek_v4_default},
        {"Gemma 4", 32, gemma4, recorded::gemma4_default},
        {"gpt-oss", 32, gpt_oss, recorded::gpt_oss_default},
        {"gpt-oss, forbidden", 32, gpt_oss, recorded::gpt_oss_default_forbidden},
        {"Laguna", 32, laguna, recorded::laguna_default},
        {"Laguna, softcap", 32, laguna_capped, recorded::laguna_softcap},
        {"Llama 4", 16, llama4, recorded::llama4_default},
        {"Llama 4, k = 2", 16, llama4_k2, recorded::llama4_k2},
        {"Llama 4, k = 2, forbidden", 16, llama4_k2, recorded::llama4_k2_forbidden},
        {"LongCat-Flash", 48, longcat, recorded::longcat_flash_default},
        {"Mixtral", 8, mixtral, recorded::mixtral_default},
        {"Mixtral, forbidden", 8, mixtral, recorded::mixtral_default_forbidden},
        {"Qwen3, not normalised", 32, qwen3_raw, recorded::qwen3_moe_raw},
        {"Qwen3", 32, qwen3_norm, recorded::qwen3_moe_norm},
        {"torchtitan, softmax with bias and groups", 32, torchtitan, recorded::torchtitan_softmax},
    };
}

}  // namespace switchyard_test
