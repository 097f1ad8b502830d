// Two experts drawn in turn: against plain loops, the recorded answers of PhiMoE's own code in evaluation and training,
// and central differences where backward is the gradient of what forward computes.
#include "reference/numeric.hpp"
#include "support/backends.hpp"
#include "support/routed.hpp"
#include "support/score_gradient.hpp"

#include <switchyard/router/models.hpp>
#include <switchyard/router/route.hpp>
#include <switchyard/router/sparse_mixer.hpp>

#include <doctest/doctest.h>

#include <cmath>
#include <span>

using namespace switchyard_test;

namespace {

#include "recorded/phimoe.inc"

}  // namespace

TEST_CASE("sparse mixer: PhiMoE's own answers at inference, forward and backward") {
    const auto check = [](double noise, const ref::matrix& logits, const ref::integers& choices,
                          const ref::matrix& weights, const ref::matrix& d_weights, const ref::matrix& d_logits) {
        auto router = sy::router_of(sy::models::phimoe{.router_jitter_noise = noise});
        const auto plan = routed<float>(router, logits, sy::inference{});
        CHECK(experts_of(plan.view()) == choices);
        CHECK(difference(gates_of(plan.view()), weights) < 1e-6);
        // In training with off_peak = 1 gates are those of inference at the experts that were drawn.
        const ref::sparse_mixer_router same{.epsilon = noise};
        const auto made = ref::route_scores(same, logits);
        CHECK(made.experts == choices);
        CHECK(difference(made.gates, weights) < 1e-6);
        CHECK(difference(ref::route_scores_backward(same, made, logits, d_weights), d_logits) < 2e-6);
    };
    check(0.01, table_of<double>(phimoe_default_logits, 16), table_of<index_t>(phimoe_default_choices, 2),
          table_of<double>(phimoe_default_weights, 2), table_of<double>(phimoe_default_d_weights, 2),
          table_of<double>(phimoe_default_d_logits, 16));
    check(0.3, table_of<double>(phimoe_wide_logits, 16), table_of<index_t>(phimoe_wide_choices, 2),
          table_of<double>(phimoe_wide_weights, 2), table_of<double>(phimoe_wide_d_weights, 2),
          table_of<double>(phimoe_wide_d_logits, 16));
}

TEST_CASE("sparse mixer: PhiMoE's own training step, with its random numbers") {
    const auto logits = table_of<double>(phimoe_train_logits, 16);
    const auto choices = table_of<index_t>(phimoe_train_choices, 2);
    const auto d_weights = table_of<double>(phimoe_train_d_weights, 2);
    const auto d_logits = table_of<double>(phimoe_train_d_logits, 16);
    const ref::mixer_draws drawn{
        .gumbel = {table_of<double>(phimoe_train_gumbel_1, 16), table_of<double>(phimoe_train_gumbel_2, 16)},
        .uniform = {table_of<double>(phimoe_train_uniform_1, 1), table_of<double>(phimoe_train_uniform_2, 1)}};
    const ref::sparse_mixer_router same{.epsilon = 0.3, .off_peak = 0.3333};
    const auto want = ref::route_scores(same, logits, {}, drawn, {});
    CHECK(want.experts == choices);
    CHECK(difference(want.gates, table_of<double>(phimoe_train_weights, 2)) < 1e-6);
    CHECK(difference(ref::route_scores_backward(same, want, logits, d_weights), d_logits) < 2e-6);

    // The library's backward at the experts that the package drew.
    const auto router = sy::router_of(sy::models::phimoe{.router_jitter_noise = 0.3});
    auto plan = routed<float>(router, logits);
    for (index_t i = 0; i < choices.values.length(); ++i) {
        plan.view().expert[i] = static_cast<std::int32_t>(choices.values[i]);
    }
    CHECK(difference(routed_backward(router, plan, logits, d_weights), d_logits) < 2e-6);
}

TEST_CASE_TEMPLATE("sparse mixer: against plain loops, forward and backward", S, float, double) {
    const auto mask = draw_mask(150, 3);
    const auto d_gates = gaussian_scores(150, 2, 6);
    for (const double epsilon : {0.0, 0.01, 0.4, 1e6}) {
        for (const int forbidden : {0, 400, 900}) {
            CAPTURE(epsilon);
            CAPTURE(forbidden);
            sy::sparse_mixer_router router{.epsilon = epsilon,
                                           .capacity = {.factor = 0.9},
                                           .inference_capacity = {.factor = 1.5},
                                           .balance_weight = 0.1,
                                           .z_weight = 0.1};
            const auto scores = draw_scores(score_kind::gaussian, 150, 9, 5, forbidden);
            CHECK(routing_mismatch<S>(router, scores, mask) == "");
            CHECK(routing_mismatch<S>(router, scores, mask, false) == "");
            CHECK(backward_mismatch<S>(router, scores, d_gates, mask) == "");
            router.balance = sy::balance_count::all;
            router.logit_jitter = 0.1f;
            CHECK(backward_mismatch<S>(router, scores, d_gates, mask) == "");
        }
    }
}

TEST_CASE("sparse mixer: gradients by central differences, with off_peak = 1") {
    const auto scores = gaussian_scores(7, 5, 2);
    const auto weights = gaussian_scores(7, 2, 4);
    const sy::sparse_mixer_router router{
        .epsilon = 0.6, .off_peak = 1, .capacity = {.number = 3}, .balance_weight = 0.5, .z_weight = 0.5};
    CHECK(score_gradient_error(router, scores, weights) < 1e-8);
}

TEST_CASE("sparse mixer: draws follow the softmax over the near ones, off the peak at a third but for a quarter") {
    const index_t tokens = 30000;
    ref::matrix scores(tokens, 4);
    for (index_t t = 0; t < tokens; ++t) {
        scores(t, 0) = 2;
        scores(t, 1) = 2 - std::log(2.0);  // (2 - 1.307) / 2 = 0.35
        scores(t, 2) = 0.5;                // 0.75: too far
        scores(t, 3) = never;
    }
    const auto plan = routed<double>(sy::sparse_mixer_router{.epsilon = 0.25}, scores);
    double at_one = 0;
    double whole = 0;
    for (index_t t = 0; t < tokens; ++t) {
        const auto e = plan.view().expert[t * 2];
        REQUIRE(e <= 1);
        if (e == 0) {
            CHECK(plan.view().gate[t * 2] == doctest::Approx(2. / 3));
            // The next peak is 1.307, from which 0.5 is too far.
            CHECK(plan.view().expert[t * 2 + 1] == 1);
            CHECK(plan.view().gate[t * 2 + 1] == 1);
            continue;
        }
        at_one += 1;
        const double gate = plan.view().gate[t * 2];
        whole += gate > 0.3 ? 1 : 0;
        CHECK((gate == doctest::Approx(1. / 3) || gate == doctest::Approx(1. / 9)));
    }
    CHECK(std::abs(at_one / static_cast<double>(tokens) - 1. / 3) < 0.01);
    CHECK(std::abs(whole / at_one - 0.25) < 0.02);
}

TEST_CASE("sparse mixer: policies agree") {
    const auto scores = gaussian_scores(333, 24, 5);
    const sy::sparse_mixer_router router{.epsilon = 0.3, .capacity = {.factor = 0.9}, .balance_weight = 0.1};
    const auto want = routed<float>(router, scores);
    const auto d_gates = gaussian_scores(333, 2, 7);
    const auto d_want = routed_backward(router, want, scores, d_gates);
    sy::workspace scratch;
    for_each_policy([&](const auto& policy) {
        sy::plan<float> made;
        sy::route_scores(policy, router, stored<float>(scores), training_with(), made, scratch);
        covers<operation("SparseMixer")>(policy);
        CHECK(experts_of(made.view()) == experts_of(want.view()));
        CHECK(difference(gates_of(made.view()), gates_of(want.view())) == 0);
        const auto d_scores =
            sy::route_scores_backward(policy, router, made, stored<float>(scores), stored<float>(d_gates));
        CHECK(difference(ref::matrix_from(sy::const_view(d_scores.view())), d_want) == 0);
    });
}

TEST_CASE("sparse mixer: sentences") {
    const auto scores = gaussian_scores(4, 3, 1);
    CHECK(sentence_of([&] { routed<float>(sy::sparse_mixer_router{}, gaussian_scores(4, 1, 1)); }) ==
          "E = 1 expert: two draws need at least 2");
    CHECK(sentence_of([&] { routed<float>(sy::sparse_mixer_router{.epsilon = -1}, scores); }) ==
          "epsilon = -1 must be finite and not negative");
    CHECK(sentence_of([&] { routed<float>(sy::sparse_mixer_router{}, scores, sy::training{}); }) ==
          "training::stream is not set, and experts are drawn: give each layer a stream of its own, since layers with "
          "the same one share their noise");
    CHECK(sentence_of([&] { routed<float>(sy::sparse_mixer_router{.off_peak = INFINITY}, scores); }) ==
          "off_peak = inf must be finite");
}
