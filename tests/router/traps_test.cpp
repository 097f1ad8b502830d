// Where implementations of the same router differ, or have gone wrong, one test each: what holds here.
#include "reference/numeric.hpp"
#include "support/routed.hpp"

#include <switchyard/formats/choices.hpp>
#include <switchyard/formats/routing_map.hpp>
#include <switchyard/router/bias_update.hpp>
#include <switchyard/router/given_choices.hpp>
#include <switchyard/router/models.hpp>
#include <switchyard/router/recipe.hpp>
#include <switchyard/router/top_k.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

using namespace switchyard_test;
namespace models = sy::models;
using sy::gate_sum;
using sy::score_function;

namespace {

using recipe = sy::recipe_router<>;

const double ln3 = std::log(3.0);
const double ln4 = std::log(4.0);
const ref::matrix worked{{ln3, 0, ln4}};  // probabilities 3/8, 1/8, 1/2

sy::expert_numbers<> numbers_of(const std::vector<float>& list) {
    return {list.data(), static_cast<index_t>(list.size())};
}

template <class S, class Router>
double gate_of(const Router& router, const ref::matrix& scores, index_t choice = 0) {
    return static_cast<double>(routed<S>(router, scores, sy::inference{}).gate()(0, choice));
}

template <class Router>
std::int32_t expert_of(const Router& router, const ref::matrix& scores, index_t choice = 0) {
    return routed<float>(router, scores, sy::inference{}).expert()(0, choice);
}

double sigmoid_of(double s) { return 1 / (1 + std::exp(-s)); }

}  // namespace

TEST_CASE("trap: a softmax over all experts or over the chosen, by model") {
    CHECK(gate_of<double>(sy::router_of(models::jamba{.num_experts_per_tok = 2}), worked) == doctest::Approx(0.5));
    CHECK(gate_of<double>(sy::router_of(models::jamba{.num_experts_per_tok = 2}), worked, 1) == doctest::Approx(0.375));
    CHECK(gate_of<double>(sy::router_of(models::mixtral{.num_experts_per_tok = 2}), worked) ==
          doctest::Approx(4.0 / 7));
    CHECK(gate_of<double>(sy::router_of(models::mixtral{.num_experts_per_tok = 2}), worked, 1) ==
          doctest::Approx(3.0 / 7));
}

TEST_CASE("trap: the bias is in the choice and not in the weight: p = (.5, .3, .2), bias (0, 0, .4)") {
    const std::vector<float> bias{0, 0, 0.4f};
    const auto scores = logarithm({{0.5, 0.3, 0.2}});
    const recipe router{.k = 1, .selection_bias = numbers_of(bias)};
    CHECK(expert_of(router, scores) == 2);
    CHECK(gate_of<double>(router, scores) == doctest::Approx(0.2));
}

TEST_CASE("trap: a bias of another model family is not dropped") {
    const std::vector<float> bias{0, 9, 0};
    const auto given = numbers_of(bias);
    CHECK(expert_of(sy::router_of(models::ernie4_5_moe{.moe_k = 1}, given), worked) == 1);
    CHECK(expert_of(sy::router_of(models::longcat_flash{.moe_topk = 1, .zero_expert_num = 0}, given), worked) == 1);
    CHECK(expert_of(sy::router_of(models::minimax_m2{.num_experts_per_tok = 1}, given), worked) == 1);
}

TEST_CASE("trap: a bias keeps digits that 16 bits lose") {
    // bfloat16 rounds both to 1.0, and the lower expert would win.
    const std::vector<float> bias{1.0f, 1.001f};
    CHECK(expert_of(recipe{.k = 1, .score = score_function::sigmoid, .selection_bias = numbers_of(bias)},
                    {{0.0, 0.0}}) == 1);
}

TEST_CASE("trap: a bias cannot bring back a forbidden expert") {
    const std::vector<float> bias{0, 0, 100};
    for (const auto score : {score_function::softmax, score_function::sigmoid, score_function::sqrt_softplus}) {
        const recipe router{.k = 1, .score = score, .selection_bias = numbers_of(bias)};
        CHECK(expert_of(router, {{1, 2, never}}) == 1);
    }
}

TEST_CASE("trap: the scale is applied once: with and without normalisation, with one choice, by one model or another") {
    for (const auto rule : {gate_sum::none, gate_sum::add, gate_sum::clamp}) {
        for (const index_t k : {index_t{1}, index_t{2}}) {
            recipe router{.k = k, .score = score_function::sigmoid, .normalize = rule};
            if (rule == gate_sum::clamp) router.epsilon = 0.1;
            recipe scaled = router;
            scaled.scale = 2.5;
            CHECK(gate_of<double>(scaled, worked) == doctest::Approx(2.5 * gate_of<double>(router, worked)));
        }
    }
    const std::vector<float> bias(8);
    const ref::matrix scores{{1, 2, 0, -1, 0.5, -2, 3, 1.5}};
    const auto v3 = sy::router_of(models::deepseek_v3{.num_experts_per_tok = 2,
                                                      .n_group = 1,
                                                      .topk_group = 1,
                                                      .routed_scaling_factor = 2.5,
                                                      .norm_topk_prob = false},
                                  numbers_of(bias));
    CHECK(gate_of<double>(v3, scores) == doctest::Approx(2.5 * sigmoid_of(3)));
}

TEST_CASE("trap: what a sum of small sigmoids is divided by") {
    const ref::matrix tiny{{-30, -31}};
    recipe router{.k = 2, .score = score_function::sigmoid, .normalize = gate_sum::add};
    const double larger = 1 / (1 + std::exp(-1.0));
    CHECK(gate_of<float>(router, tiny) == doctest::Approx(larger).epsilon(1e-6));
    router.epsilon = 1e-20;
    CHECK(gate_of<float>(router, tiny) == doctest::Approx(larger).epsilon(1e-6));
    router.normalize = gate_sum::clamp;
    CHECK(gate_of<float>(router, tiny) == doctest::Approx(larger).epsilon(1e-6));
    router.epsilon = 6.1e-5;  // llama.cpp's
    CHECK(gate_of<float>(router, tiny) == doctest::Approx(sigmoid_of(-30) / 6.1e-5).epsilon(1e-6));
    // Both sigmoids are 0 in float: a half each, or nothing, but never NaN.
    router.normalize = gate_sum::add;
    router.epsilon = 0;
    CHECK(gate_of<float>(router, {{-200, -200}}) == 0);
    const auto plan = routed<float>(router, {{-200, -200}});
    const auto d = routed_backward<float>(router, plan, {{-200, -200}}, {{1, -1}});
    CHECK(d(0, 0) == 0);
    CHECK(d(0, 1) == 0);
}

TEST_CASE("trap: where probabilities underflow, the order is that of the scores") {
    const recipe router{.k = 3};
    const auto plan = routed<float>(router, {{0, -300, 200, -200}}, sy::inference{});
    CHECK(experts_of(plan.view()) == ref::integers{{2, 0, 3}});
    CHECK(plan.gate()(0, 2) == 0);
}

TEST_CASE("trap: square roots have a slope at 0 that nothing forbidden sees") {
    const recipe router{.k = 2, .score = score_function::sqrt_softplus, .capacity = {.number = 9}};
    const ref::matrix scores{{1, never, 0.5}};
    const auto plan = routed<double>(router, scores);
    const auto d = routed_backward<double>(router, plan, scores, {{1, 1}});
    CHECK(d(0, 1) == 0);
    CHECK(std::isfinite(d(0, 0)));
    CHECK(d(0, 0) > 0);
}

TEST_CASE("trap: the loss takes a softmax of the scores, once") {
    // Twice would give 0.9609 here.
    recipe router{.k = 1, .balance_weight = 1};
    const auto plan = routed<double>(router, worked);
    CHECK(plan.totals().load_balancing_loss == doctest::Approx(3 * 0.5));
}

TEST_CASE("trap: noise is of training alone") {
    const sy::top_k_router noisy{.k = 1, .logit_jitter = 0.9f};
    const auto scores = draw_scores(score_kind::gaussian, 50, 8, 5);
    const auto calm = routed<float>(sy::top_k_router{.k = 1}, scores, sy::inference{});
    const auto plan = routed<float>(noisy, scores, sy::inference{});
    CHECK(experts_of(plan.view()) == experts_of(calm.view()));
    CHECK(experts_of(routed<float>(noisy, scores).view()) != experts_of(calm.view()));
}

TEST_CASE("trap: replayed choices are weighed by the scores now, have gradients, and count wherever they stand") {
    const std::vector<std::int32_t> ids{0, 1, 2, 3, 0, 1};
    const auto scores = draw_scores(score_kind::gaussian, 3, 4, 9);
    const recipe router{.k = 2, .score = score_function::sigmoid, .choices = {ids.data(), 3, 2, 2, 1}};
    const auto plan = routed<double>(router, scores);
    CHECK(plan.kept() == 6);
    for (index_t t = 0; t < 3; ++t) {
        for (index_t c = 0; c < 2; ++c) {
            const std::int32_t e = ids[static_cast<std::size_t>(2 * t + c)];
            CHECK(plan.expert()(t, c) == e);
            CHECK(plan.gate()(t, c) == doctest::Approx(sigmoid_of(scores(t, e))));
        }
    }
    const auto d = routed_backward<double>(router, plan, scores, {{1, 1}, {1, 1}, {1, 1}});
    for (index_t e = 0; e < 4; ++e) CHECK((d(1, e) != 0) == (e >= 2));
}

TEST_CASE("trap: a choice of an identity or a zero expert is no row of expert 0, and no load of it") {
    const ref::matrix scores{{0, 1, 5, 4}, {3, 0, 4, 0}, {2, 1, 0, 0}};
    for (const sy::rowless_experts rowless : {sy::rowless_experts{.identity = 2}, sy::rowless_experts{.zero = 2}}) {
        const auto plan = routed<float>(recipe{.k = 2, .rowless = rowless}, scores);
        CHECK(experts_of(plan.view()) == ref::integers{{2, 3}, {2, 0}, {0, 1}});
        CHECK(list_of(plan.view().load_before, 2) == ref::list<index_t>{2, 1});
        CHECK(list_of(plan.view().order, 3) == ref::list<index_t>{4, 3, 5});
        sy::matrix<std::int64_t> ids(3, 2);
        sy::matrix<float> weights(3, 2);
        sy::matrix<std::uint8_t> map(3, 2);
        sy::write_ids(sy::seq, plan, ids);
        sy::write_weights(sy::seq, plan, weights);
        sy::write_routing_map(sy::seq, plan, map);
        const std::int64_t want_ids[] = {-1, -1, -1, 0, 0, 1};
        const std::uint8_t want_map[] = {0, 0, 1, 0, 1, 1};
        CHECK(std::equal(want_ids, want_ids + 6, ids.data()));
        CHECK(std::equal(want_map, want_map + 6, map.data()));
        for (index_t i = 0; i < 6; ++i) CHECK((weights.data()[i] != 0) == (want_ids[i] >= 0));
    }
}

TEST_CASE("trap: loads of 40,840 and 41,080 are on both sides of their mean") {
    // Counts in bfloat16 would be equal.
    const std::vector<std::int64_t> loads{40840, 41080};
    std::vector<float> bias(2);
    sy::update_bias(sy::seq, loads.data(), 2, 0.001f, bias.data());
    CHECK(bias[0] == doctest::Approx(0.001));
    CHECK(bias[1] == doctest::Approx(-0.001));
}
