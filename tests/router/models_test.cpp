// Routers by a model's configuration: those of recorded models have the settings that gave the model's own answers
// (router/recipe_test.cpp), and the others do what the model's own formula says, restated here in plain double.
#include "support/backends.hpp"
#include "support/recorded_models.hpp"
#include "support/routed.hpp"

#include <switchyard/backend/eigen.hpp>
#include <switchyard/reference/softmax.hpp>
#include <switchyard/router/models.hpp>
#include <switchyard/router/route.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <functional>
#include <numeric>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

using namespace switchyard_test;
namespace models = sy::models;

namespace {

using doubles = std::vector<double>;

/// The first setting in which a router differs from that of a recorded model. Biases: whether there is one.
std::string difference(const sy::recipe_router<>& made, const ref::recipe_router& want) {
    if (made.k != want.k) return "k";
    if (static_cast<int>(made.score) != static_cast<int>(want.score)) return "score";
    if (static_cast<int>(made.key) != static_cast<int>(want.key)) return "key";
    if ((made.selection_bias.data != nullptr) == want.selection_bias.empty()) return "selection_bias";
    if (made.logit_bias.data != nullptr) return "logit_bias";  // gpt-oss's is in the recorded scores
    if (made.groups.choose() != ref::has_groups(want)) return "groups";
    if (made.groups.choose() && (made.groups.count != want.groups.count || made.groups.kept != want.groups.kept ||
                                 made.groups.summed != want.groups.summed ||
                                 static_cast<int>(made.groups.masked) != static_cast<int>(want.groups.masked))) {
        return "groups";
    }
    if (static_cast<int>(made.normalize) != static_cast<int>(want.normalize)) return "normalize";
    if (made.norm_power != want.norm_power) return "norm_power";
    if (made.logit_multiplier != want.logit_multiplier) return "logit_multiplier";
    if (made.softcap != want.softcap) return "softcap";
    if ((made.expert_scale.data != nullptr) == want.expert_scale.empty()) return "expert_scale";
    if (made.normalize != sy::gate_sum::none && made.epsilon != want.epsilon) return "epsilon";
    if (made.rowless != sy::rowless_experts{want.identity_experts, want.zero_experts}) return "rowless";
    return made.scale == want.scale ? "" : "scale";
}

doubles softmax(const doubles& s) { return ref::softmax(ref::list<double>(s.begin(), s.end())); }

doubles sigmoids(const doubles& s) {
    doubles p;
    for (const double score : s) p.push_back(ref::sigmoid(score));
    return p;
}

doubles plus(doubles a, const std::vector<float>& b) {
    for (std::size_t e = 0; e < a.size(); ++e) a[e] += static_cast<double>(b[e]);
    return a;
}

/// A row's choices are those of the largest keys, and its gates value / divisor(sum of the chosen values) * scale.
void check(const sy::recipe_router<>& router, const doubles& scores, const doubles& keys, const doubles& values,
           double scale, const std::function<double(double)>& divisor) {
    std::vector<index_t> order(scores.size());
    std::iota(order.begin(), order.end(), index_t{0});
    std::stable_sort(order.begin(), order.end(), [&](index_t a, index_t b) {
        return keys[static_cast<std::size_t>(a)] > keys[static_cast<std::size_t>(b)];
    });
    order.resize(static_cast<std::size_t>(router.k));
    double sum = 0;
    for (const index_t e : order) sum += values[static_cast<std::size_t>(e)];

    ref::matrix row(1, static_cast<index_t>(scores.size()));
    std::copy(scores.begin(), scores.end(), row.values.begin());
    const auto plan = sy::route_scores(sy::seq, router, stored<double>(row), sy::inference{});
    for (std::size_t c = 0; c < order.size(); ++c) {
        const auto at = static_cast<index_t>(c);
        CHECK(plan.expert()(0, at) == order[c]);
        CHECK(plan.gate()(0, at) ==
              doctest::Approx(scale * values[static_cast<std::size_t>(order[c])] / divisor(sum)).epsilon(1e-12));
    }
}

const doubles scores{0.3, -1.2, 2.1, 0.9, -0.4, 1.7, 0.2, -2.0};
const std::vector<float> some_bias{0.25f, 0.5f, -0.75f, 0.125f, 1.0f, -0.5f, 0.0f, 1.5f};
const sy::expert_numbers<> given{some_bias.data(), 8};

}  // namespace

TEST_CASE("models: the settings that gave the recorded models' answers") {
    const std::vector<float> any(48);
    const sy::expert_numbers<> some{any.data(), 48};
    const auto made = [&](std::string_view name) -> sy::recipe_router<> {
        if (name == "DBRX") return sy::router_of(models::dbrx{.moe_top_k = 4});
        if (name == "DBRX, p = 2")
            return sy::router_of(models::dbrx{.moe_top_k = 4, .moe_normalize_expert_weights = 2});
        if (name.starts_with("DBRX"))
            return sy::router_of(models::dbrx{.moe_top_k = 4, .moe_normalize_expert_weights = 0});
        if (name == "Gemma 4") return sy::router_of(models::gemma4{}, some);
        if (name == "Laguna") return sy::router_of(models::laguna{}, some);
        if (name.starts_with("Laguna")) {
            return sy::router_of(models::laguna{.moe_router_logit_softcapping = 1.5, .moe_routed_scaling_factor = 2.5},
                                 some);
        }
        if (name.starts_with("DeepSeek-V2")) {
            return sy::router_of(models::deepseek_v2{
                .num_experts_per_tok = 6, .n_group = 8, .topk_group = 3, .routed_scaling_factor = 16});
        }
        if (name == "DeepSeek-V3, not normalised")
            return sy::router_of(models::deepseek_v3{.norm_topk_prob = false}, some);
        if (name == "DeepSeek-V3, one group") {
            return sy::router_of(models::deepseek_v3{.n_group = 1, .topk_group = 1, .routed_scaling_factor = 1}, some);
        }
        if (name.starts_with("DeepSeek-V3")) return sy::router_of(models::deepseek_v3{}, some);
        if (name.starts_with("DeepSeek-V4")) return sy::router_of(models::deepseek_v4{}, some);
        if (name.starts_with("gpt-oss")) return sy::router_of(models::gpt_oss{});  // its bias is in the recorded logits
        if (name == "Llama 4") return sy::router_of(models::llama4{});
        if (name.starts_with("Llama 4")) return sy::router_of(models::llama4{.num_experts_per_tok = 2});
        if (name.starts_with("LongCat")) return sy::router_of(models::longcat_flash{.zero_expert_num = 16}, some);
        if (name.starts_with("Mixtral")) return sy::router_of(models::mixtral{});
        if (name == "Qwen3") return sy::router_of(models::qwen3_moe{.norm_topk_prob = true});
        return sy::router_of(models::qwen3_moe{});
    };
    int compared = 0;
    for (const recorded_case& model : recorded_models()) {
        if (std::string_view(model.name).starts_with("torchtitan")) continue;  // no model's
        CAPTURE(model.name);
        CHECK(difference(made(model.name), model.router) == "");
        ++compared;
    }
    CHECK(compared == 22);
}

TEST_CASE("models: the others do what their own formula says") {
    const doubles p = softmax(scores);
    const doubles v = sigmoids(scores);
    const auto none = [](double) { return 1.0; };
    const auto sum = [](double s) { return s; };

    check(sy::router_of(models::jamba{}), scores, scores, p, 1, none);
    check(sy::router_of(models::ernie4_5_moe{.moe_k = 3}, given), scores, plus(p, some_bias), p, 1, sum);
    check(sy::router_of(models::ernie4_5_moe{.moe_k = 3, .moe_norm_min = 0.9}, given), scores, plus(p, some_bias), p, 1,
          [](double s) { return std::max(s, 0.9); });
    check(sy::router_of(models::minimax_m2{.num_experts_per_tok = 3}, given), scores, plus(v, some_bias), v, 1, sum);
    check(sy::router_of(models::minimax_m3{}, given), scores, plus(v, some_bias), v, 2, sum);
    check(sy::router_of(models::hy_v3{.num_experts_per_tok = 4}, given), scores, plus(v, some_bias), v, 2.826, sum);
    check(sy::router_of(models::afmoe{.route_scale = 2.5}, given), scores, plus(v, some_bias), v, 2.5, sum);
    check(sy::router_of(models::glm4_moe{.num_experts_per_tok = 4, .routed_scaling_factor = 1.5}, given), scores,
          plus(v, some_bias), v, 1.5, sum);
    check(sy::router_of(models::step3p7{.num_experts_per_tok = 3, .moe_router_scaling_factor = 3}, given), scores,
          plus(v, some_bias), v, 3, sum);
    check(sy::router_of(models::inkling2{.num_experts_per_tok = 3}, given), scores, plus(v, some_bias), v, 8, sum);
    check(sy::router_of(models::flint{.num_experts_per_tok = 3}), scores, scores, v, 1, sum);
    check(sy::router_of(models::flint{.num_experts_per_tok = 3, .norm_topk_prob = false}), scores, scores, v, 1, none);
    check(sy::router_of(models::cohere2_moe{}), scores, scores, p, 1, sum);
    check(sy::router_of(models::cohere2_moe{.expert_selection_fn = sy::score_function::sigmoid}), scores, scores, v, 1,
          sum);
    check(
        sy::router_of(models::cohere2_moe{.expert_selection_fn = sy::score_function::sigmoid, .norm_topk_prob = false}),
        scores, scores, v, 1, none);
    check(sy::router_of(models::hunyuan_v1_moe{.moe_topk = 3}), scores, scores, p, 1, sum);
    doubles multiplied = scores;
    for (double& s : multiplied) s *= 0.25;
    const doubles mv = sigmoids(multiplied);
    check(sy::router_of(
              models::muse_spark{.num_experts_per_tok = 3, .output_multiplier = 0.25, .routed_scaling_factor = 1.5},
              given),
          scores, plus(mv, some_bias), mv, 1.5, sum);
    check(sy::router_of(models::aria{}), scores, scores, p, 1, sum);
    check(sy::router_of(models::qwen2_moe{}), scores, scores, p, 1, none);
    check(sy::router_of(models::qwen3_next{.num_experts_per_tok = 3}), scores, scores, p, 1, sum);
    check(sy::router_of(models::lfm2_moe{.routed_scaling_factor = 1.7}, given), scores, plus(v, some_bias), v, 1.7,
          [](double s) { return s + 1e-6; });
    check(sy::router_of(models::lfm2_moe{.norm_topk_prob = false}), scores, scores, v, 1, none);
    check(sy::router_of(models::kolibri1{.num_experts_per_tok = 3}, given), scores, plus(scores, some_bias), v, 1,
          none);
    check(sy::router_of(models::kolibri1{.num_experts_per_tok = 3, .norm_topk_prob = true}, given), scores,
          plus(scores, some_bias), v, 1, sum);
    check(sy::router_of(models::mistral4{}), scores, scores, p, 1, sum);
    // Zaya: the probability of all columns; the last expert has no weight.
    const std::vector<float> balancing{-9, -9, -9, 0, 0, 0, 0, -9};
    check(sy::router_of(models::zaya{}, {balancing.data(), 8}), scores, plus(p, balancing), p, 1, none);
    const auto skipped = sy::route_scores(sy::seq, sy::router_of(models::zaya{}, given),
                                          stored<double>(ref::matrix{{0, 0, 0, 0, 0, 0, 0, 5}}), sy::inference{});
    CHECK(skipped.experts() == 7);
    CHECK(skipped.expert()(0, 0) == 7);
    CHECK(skipped.slot()(0, 0) == -1);
    CHECK(skipped.gate()(0, 0) == 0);
    CHECK(skipped.kept() == 0);
    // What is too small to be seen in these gates.
    CHECK(sy::router_of(models::minimax_m2{}).epsilon == 0);
    CHECK(sy::router_of(models::minimax_m3{}).epsilon == 0);
    CHECK(sy::router_of(models::step3p7{}).epsilon == 0);
    CHECK(sy::router_of(models::muse_spark{}).epsilon == 1e-15);
    CHECK(sy::router_of(models::axk2{.n_group = 8, .topk_group = 4}, given).groups.masked == sy::group_mask::zero);
    for (const double epsilon : {sy::router_of(models::hy_v3{}).epsilon, sy::router_of(models::afmoe{}).epsilon,
                                 sy::router_of(models::glm4_moe{}).epsilon, sy::router_of(models::mistral4{}).epsilon,
                                 sy::router_of(models::axk2{}).epsilon, sy::router_of(models::inkling2{}).epsilon}) {
        CHECK(epsilon == 1e-20);
    }
    // Groups {0, 1}, {2, 3}, {4, 5}, {6, 7} by the sum of both: the second and the third stay, the others' keys are 0.
    doubles kept = p;
    kept[0] = kept[1] = kept[6] = kept[7] = 0;
    check(sy::router_of(models::mistral4{.n_group = 4, .topk_group = 2, .routed_scaling_factor = 1.5}), scores, kept, p,
          1.5, sum);
}

TEST_CASE("models: the page's example") {
    const auto routed = [](const Eigen::MatrixXf& x, const Eigen::MatrixXf& w, const Eigen::VectorXf& bias) {
        // [models]
        // From config.json and the checkpoint: x[T, D], w[D, E], bias[E].
        const sy::models::deepseek_v3 config{
            .num_experts_per_tok = 8, .n_group = 8, .topk_group = 4, .routed_scaling_factor = 2.5};
        auto router = sy::router_of(config, {bias.data(), bias.size()});
        router.capacity = {.factor = 1.5};  // not the model's
        auto plan = sy::route(sy::par, router, x, w);
        // [/models]
        return plan;
    };
    const auto plan =
        routed(Eigen::MatrixXf::Random(5, 16), Eigen::MatrixXf::Random(16, 64), Eigen::VectorXf::Zero(64));
    for (index_t t = 0; t < 5; ++t) {
        double sum = 0;
        for (index_t c = 0; c < 8; ++c) sum += static_cast<double>(plan.gate()(t, c));
        CHECK(sum == doctest::Approx(2.5));
    }
}

TEST_CASE("models: a bias of the scores, and settings beyond the model's") {
    auto router = sy::router_of(models::gpt_oss{.num_experts_per_tok = 2}, given);
    CHECK(router.logit_bias.data == some_bias.data());
    CHECK(router.selection_bias.data == nullptr);
    router.capacity = {.factor = 1.25};
    router.balance_weight = 0.9;
    const doubles biased = plus(scores, some_bias);
    check(router, scores, biased, softmax(biased), 1, [](double s) { return s; });

    static_assert(sy::router_of(models::deepseek_v3{}).groups.kept == 4);
}

namespace {

struct elsewhere {};
template <class... Models>
constexpr bool go_elsewhere =
    (std::is_same_v<decltype(sy::router_of<elsewhere>(Models{})), sy::recipe_router<elsewhere>> && ...);

// In any memory, with a bias or without.
static_assert(
    go_elsewhere<models::mixtral, models::aria, models::qwen2_moe, models::qwen3_moe, models::qwen3_next, models::jamba,
                 models::hunyuan_v1_moe, models::dbrx, models::gemma4, models::cohere2_moe, models::axk2,
                 models::step3p7, models::inkling2, models::muse_spark, models::laguna, models::flint, models::gpt_oss,
                 models::llama4, models::deepseek_v2, models::deepseek_v3, models::glm4_moe, models::deepseek_v4,
                 models::mistral4, models::ernie4_5_moe, models::longcat_flash, models::zaya, models::minimax_m2,
                 models::minimax_m3, models::hy_v3, models::afmoe, models::lfm2_moe, models::kolibri1>);
static_assert(std::is_same_v<decltype(sy::router_of(models::deepseek_v4{}, sy::expert_numbers<elsewhere>{})),
                             sy::recipe_router<elsewhere>>);

}  // namespace
