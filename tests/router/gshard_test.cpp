// Two experts per token, the second left out by a policy: against plain loops, the recorded answers of NLLB's own code,
// central differences, and what the policies say of themselves.
#include "reference/numeric.hpp"
#include "support/backends.hpp"
#include "support/routed.hpp"
#include "support/score_gradient.hpp"

#include <switchyard/router/gshard.hpp>
#include <switchyard/router/models.hpp>
#include <switchyard/router/route.hpp>
#include <switchyard/router/route_choices.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <span>
#include <vector>

using namespace switchyard_test;

namespace {

#include "recorded/nllb_moe.inc"

constexpr sy::second_choice every_policy[] = {sy::second_choice::all, sy::second_choice::none,
                                              sy::second_choice::random, sy::second_choice::threshold,
                                              sy::second_choice::sampling};
constexpr sy::pair_sum every_sum[] = {sy::pair_sum::none, sy::pair_sum::before_drops, sy::pair_sum::after_drops,
                                      sy::pair_sum::first_before_drops};

/// One of NLLB's answers.
struct nllb_case {
    const char* name;
    ref::gshard_router router;
    std::span<const float> logits;
    std::span<const short> choices;
    std::span<const float> weights, d_weights, d_logits;
    std::span<const float> gumbel{}, uniform{};
};

std::vector<nllb_case> nllb_cases() {
    const ref::gshard_router nllb{.compared = ref::second_weight::probability,
                                  .clamps = true,
                                  .epsilon = 0x1p-23,
                                  .capacity = {.number = 4},
                                  .balance_weight = 0};
    auto all_before = nllb;
    all_before.second = ref::second_choice::all;
    auto all_after = all_before;
    all_after.normalize = ref::pair_sum::after_drops;
    all_after.order = ref::drop_order::gate;
    auto random_before = nllb;
    random_before.normalize = ref::pair_sum::first_before_drops;
    auto random_after = nllb;
    random_after.normalize = ref::pair_sum::after_drops;
    auto sampling = all_before;
    sampling.second = ref::second_choice::sampling;
    sampling.capacity = {.number = 12};
    return {{"all, before", all_before, nllb_all_before_position_train_4_logits,
             nllb_all_before_position_train_4_choices, nllb_all_before_position_train_4_weights,
             nllb_all_before_position_train_4_d_weights, nllb_all_before_position_train_4_d_logits},
            {"all, after, by priority", all_after, nllb_all_after_priority_train_4_logits,
             nllb_all_after_priority_train_4_choices, nllb_all_after_priority_train_4_weights,
             nllb_all_after_priority_train_4_d_weights, nllb_all_after_priority_train_4_d_logits},
            {"random, before: the second as it is",
             random_before,
             nllb_random_before_position_train_4_logits,
             nllb_random_before_position_train_4_choices,
             nllb_random_before_position_train_4_weights,
             nllb_random_before_position_train_4_d_weights,
             nllb_random_before_position_train_4_d_logits,
             {},
             nllb_random_before_position_train_4_uniform},
            {"random, after",
             random_after,
             nllb_random_after_position_train_4_logits,
             nllb_random_after_position_train_4_choices,
             nllb_random_after_position_train_4_weights,
             nllb_random_after_position_train_4_d_weights,
             nllb_random_after_position_train_4_d_logits,
             {},
             nllb_random_after_position_train_4_uniform},
            {"sampling, before", sampling, nllb_sampling_before_position_train_None_logits,
             nllb_sampling_before_position_train_None_choices, nllb_sampling_before_position_train_None_weights,
             nllb_sampling_before_position_train_None_d_weights, nllb_sampling_before_position_train_None_d_logits,
             nllb_sampling_before_position_train_None_gumbel}};
}

/// Where a choice has a row: its expert, else -1.
ref::integers kept_experts(const ref::integers& experts, const ref::integers& slots) {
    ref::integers kept = experts;
    for (index_t i = 0; i < kept.values.length(); ++i) {
        if (slots.values[i] < 0) kept.values[i] = -1;
    }
    return kept;
}

}  // namespace

TEST_CASE("gshard: the reference gives what NLLB's own code answered, with its random numbers") {
    for (const auto& model : nllb_cases()) {
        CAPTURE(model.name);
        const auto logits = table_of<double>(model.logits, 8);
        ref::second_draws drawn{ref::filled(48, 0.0), ref::matrix(48, 8)};
        if (!model.uniform.empty()) drawn.uniform = table_of<double>(model.uniform, 1).values;
        if (!model.gumbel.empty()) drawn.gumbel = table_of<double>(model.gumbel, 8);
        const auto made = ref::route_scores(model.router, logits, {}, drawn, {});
        CHECK(kept_experts(made.experts, made.slots) == table_of<index_t>(model.choices, 2));
        CHECK(difference(made.gates, table_of<double>(model.weights, 2)) < 1e-6);
        const auto d_logits =
            ref::route_scores_backward(model.router, made, logits, table_of<double>(model.d_weights, 2));
        CHECK(difference(d_logits, table_of<double>(model.d_logits, 8)) < 2e-6);
    }
}

TEST_CASE("gshard: the library gives what NLLB's own code answered") {
    const auto cases = nllb_cases();
    for (const index_t i : {0, 1}) {
        const auto& model = cases[static_cast<std::size_t>(i)];
        const auto router = sy::router_of(sy::models::nllb_moe{.num_experts = 8,
                                                               .expert_capacity = 4,
                                                               .normalize_router_prob_before_dropping = i == 0,
                                                               .batch_prioritized_routing = i == 1});
        const auto logits = table_of<double>(model.logits, 8);
        const auto plan = routed<float>(router, logits);
        CHECK(kept_experts(experts_of(plan.view()), slots_of(plan.view())) == table_of<index_t>(model.choices, 2));
        CHECK(difference(gates_of(plan.view()), table_of<double>(model.weights, 2)) < 1e-6);
        const auto d_logits = routed_backward(router, plan, logits, table_of<double>(model.d_weights, 2));
        CHECK(difference(d_logits, table_of<double>(model.d_logits, 8)) < 2e-6);
    }
}

TEST_CASE("gshard: NLLB's settings become its router's") {
    sy::models::nllb_moe model{.num_experts = 8, .moe_eval_capacity_token_fraction = 0.15};
    auto router = sy::router_of(model);
    CHECK(sy::capacity_of(router.inference_capacity, 48, 2, 8) == 8);  // ceil(0.15 x 48)
    CHECK(sy::capacity_of(router.capacity, 48, 2, 8) == 64);
    CHECK(router.normalize == sy::pair_sum::after_drops);
    // Without a number: 2 ceil(T / E).
    sy::models::nllb_moe free = model;
    free.expert_capacity.reset();
    for (const index_t tokens : {0, 1, 7, 8, 9, 12, 16, 47, 48, 49, 301}) {
        CAPTURE(tokens);
        CHECK(sy::capacity_of(sy::router_of(free).capacity, tokens, 2, 8) == 2 * ((tokens + 7) / 8));
        CHECK(sy::capacity_of(sy::router_of(free).inference_capacity, tokens, 2, 8) ==
              sy::capacity_of(router.inference_capacity, tokens, 2, 8));
    }
    free.moe_eval_capacity_token_fraction = 0;
    CHECK(sy::capacity_of(sy::router_of(free).inference_capacity, 49, 2, 8) == 14);
    model.moe_eval_capacity_token_fraction = 0;
    CHECK(sy::capacity_of(sy::router_of(model).inference_capacity, 48, 2, 8) == 64);
    model.normalize_router_prob_before_dropping = true;
    CHECK(sy::router_of(model).normalize == sy::pair_sum::before_drops);
    model.second_expert_policy = sy::second_choice::random;
    CHECK(sy::router_of(model).normalize == sy::pair_sum::first_before_drops);
}

TEST_CASE_TEMPLATE("gshard: every policy, sum and epsilon, against plain loops, forward and backward", S, float,
                   double) {
    const auto mask = draw_mask(120, 3);
    const auto d_gates = gaussian_scores(120, 2, 6);
    for (const auto policy : every_policy) {
        for (const auto sum : every_sum) {
            for (const auto kind : {sy::gate_sum::add, sy::gate_sum::clamp}) {
                for (const int forbidden : {0, 400}) {
                    const bool by_share = kind == sy::gate_sum::add;
                    sy::gshard_router router{
                        .second = policy,
                        .second_threshold = 0.3,
                        .compared = by_share ? sy::second_weight::share : sy::second_weight::probability,
                        .normalize = sum,
                        .epsilon_kind = kind,
                        .epsilon = by_share ? 0.01 : 0.4,
                        .capacity = {.factor = 0.9},
                        .inference_capacity = {.factor = 1.2},
                        .balance_weight = 0.1,
                        .z_weight = 0.1};
                    CAPTURE(static_cast<int>(policy));
                    CAPTURE(static_cast<int>(sum));
                    CAPTURE(forbidden);
                    const auto scores = draw_scores(score_kind::gaussian, 120, 9, 5, forbidden);
                    CHECK(routing_mismatch<S>(router, scores, mask) == "");
                    CHECK(backward_mismatch<S>(router, scores, d_gates, mask) == "");
                    router.balance = sy::balance_count::all;
                    CHECK(backward_mismatch<S>(router, scores, d_gates, mask) == "");
                    router.inference_second =
                        sum == sy::pair_sum::none ? sy::second_choice::none : sy::second_choice::threshold;
                    CHECK(routing_mismatch<S>(router, scores, mask, false) == "");
                }
            }
        }
    }
}

TEST_CASE("gshard: gradients by central differences, of the library's own losses and gates") {
    const auto scores = gaussian_scores(7, 5, 2);
    const auto weights = gaussian_scores(7, 2, 4);
    for (const auto policy : {sy::second_choice::all, sy::second_choice::random, sy::second_choice::sampling}) {
        for (const auto sum : every_sum) {
            const sy::gshard_router router{.second = policy,
                                           .normalize = sum,
                                           .epsilon = 0.05,
                                           .capacity = {.number = 3},
                                           .balance_weight = 0.5,
                                           .z_weight = 0.5};
            CHECK(score_gradient_error(router, scores, weights) < 1e-8);
        }
    }
}

TEST_CASE("gshard: what the policy leaves out has no row, no load and gate 0, and is in the sum before drops") {
    // p = 0.8, 0.2: shares as they are.
    const ref::matrix scores = logarithm({{.8, .2}, {.2, .8}, {.4, .6}});
    sy::gshard_router router{.second = sy::second_choice::threshold, .second_threshold = 0.25, .epsilon = 0};
    const auto before = routed<double>(router, scores);
    CHECK(experts_of(before.view()) == ref::integers{{0, 1}, {1, 0}, {1, 0}});
    CHECK(slots_of(before.view()) == ref::integers{{0, -1}, {0, -1}, {1, 1}});
    CHECK(difference(gates_of(before.view()), {{.8, 0}, {.8, 0}, {.6, .4}}) < 1e-14);
    CHECK(before.view().load_before[0] == 2);
    CHECK(before.kept() == 4);
    router.normalize = sy::pair_sum::after_drops;
    CHECK(difference(gates_of(routed<double>(router, scores).view()), {{1, 0}, {1, 0}, {.6, .4}}) < 1e-14);
    router.normalize = sy::pair_sum::none;
    router.second = sy::second_choice::none;
    CHECK(difference(gates_of(routed<double>(router, scores).view()), {{.8, 0}, {.8, 0}, {.6, 0}}) < 1e-14);
    const auto [ids, gates] = sy::route_choices(sy::seq, sy::gshard_router{.epsilon = 0}, stored<double>(scores));
    CHECK(ids(2, 1) == 0);
    CHECK(gates(2, 1) == doctest::Approx(.4));
}

TEST_CASE("gshard: random keeps a second choice as often as its share says, and draws anew in every step") {
    const index_t tokens = 20000;
    ref::matrix scores(tokens, 2);
    for (index_t t = 0; t < tokens; ++t) scores(t, 0) = std::log(4.0);  // share of the second: 0.2
    const sy::gshard_router router{.second_threshold = 0.5};
    const auto kept = [&](std::uint32_t step) {
        return routed<float>(router, scores, sy::training{.seed = 1, .stream = 2, .step = step}).kept() - tokens;
    };
    CHECK(std::abs(static_cast<double>(kept(0)) / static_cast<double>(tokens) - 0.4) < 0.01);
    CHECK(kept(0) == kept(0));
    CHECK(kept(0) != kept(1));
}

TEST_CASE("gshard: sampled seconds are drawn from the softmax over the others") {
    const index_t tokens = 30000;
    ref::matrix scores(tokens, 3);
    for (index_t t = 0; t < tokens; ++t) {
        scores(t, 0) = 5;
        scores(t, 1) = std::log(3.0);
    }
    const auto plan = routed<float>(sy::gshard_router{.second = sy::second_choice::sampling}, scores);
    index_t ones = 0;
    for (index_t t = 0; t < tokens; ++t) ones += plan.view().expert[t * 2 + 1] == 1 ? 1 : 0;
    CHECK(std::abs(static_cast<double>(ones) / static_cast<double>(tokens) - 0.75) < 0.01);
}

TEST_CASE("gshard: policies and layouts agree") {
    const auto scores = gaussian_scores(333, 24, 5);
    const sy::gshard_router router{.normalize = sy::pair_sum::after_drops, .capacity = {.factor = 0.9}};
    const auto want = routed<float>(router, scores);
    const auto d_gates = gaussian_scores(333, 2, 7);
    const auto d_want = routed_backward(router, want, scores, d_gates);
    sy::workspace scratch;
    for_each_policy([&](const auto& policy) {
        sy::plan<float> made;
        sy::route_scores(policy, router, stored<float>(scores), training_with(), made, scratch);
        covers<operation("GShard")>(policy);
        CHECK(experts_of(made.view()) == experts_of(want.view()));
        CHECK(slots_of(made.view()) == slots_of(want.view()));
        CHECK(difference(gates_of(made.view()), gates_of(want.view())) == 0);
        const auto d_scores =
            sy::route_scores_backward(policy, router, made, stored<float>(scores), stored<float>(d_gates));
        CHECK(difference(ref::matrix_from(sy::const_view(d_scores.view())), d_want) == 0);
    });
}

TEST_CASE("gshard: sentences") {
    const auto scores = gaussian_scores(4, 3, 1);
    CHECK(sentence_of([&] { routed<float>(sy::gshard_router{}, gaussian_scores(4, 1, 1)); }) ==
          "E = 1 expert: a second choice needs at least 2");
    CHECK(sentence_of([&] { routed<float>(sy::gshard_router{.second_threshold = 0}, scores); }) ==
          "second_threshold = 0 must be finite and more than 0");
    CHECK(sentence_of([&] { routed<float>(sy::gshard_router{.epsilon_kind = sy::gate_sum::norm}, scores); }) ==
          "epsilon_kind must be gate_sum::add or gate_sum::clamp");
    CHECK(sentence_of([&] {
              routed<float>(sy::gshard_router{.inference_second = sy::second_choice::random}, scores);
          }) == "inference_second draws noise, which inference has none of: use all, none or threshold");
    CHECK(sentence_of([&] { routed<float>(sy::gshard_router{}, scores, sy::training{}); }) ==
          "training::stream is not set, and the second choice draws noise: give each layer a stream of its own, since "
          "layers with the same one share their noise");
    const auto made = routed<float>(sy::gshard_router{}, scores);
    CHECK(sentence_of([&] {
              routed_backward(sy::gshard_router{.epsilon = 1}, made, scores, gaussian_scores(4, 2, 1));
          }) == "the plan was made by a router with other settings");
}
