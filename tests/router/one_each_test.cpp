// One expert of every group: against plain loops, worked numbers, central differences, and what is even by itself.
#include "reference/numeric.hpp"
#include "support/backends.hpp"
#include "support/routed.hpp"
#include "support/score_gradient.hpp"

#include <switchyard/router/models.hpp>
#include <switchyard/router/recipe.hpp>

#include <doctest/doctest.h>

#include <vector>

using namespace switchyard_test;

TEST_CASE("one of each group: Pangu's router, worked") {
    const ref::matrix scores = logarithm({{.1, .3, .2, .4}, {.25, .25, .05, .45}});
    const std::vector<float> scale{1, 2, 3, 4};
    const auto router =
        sy::router_of(sy::models::pangu_pro_moe{.num_experts_per_tok = 2}, sy::expert_numbers<>{scale.data(), 4});
    const auto plan = routed<double>(router, scores);
    CHECK(experts_of(plan.view()) == ref::integers{{1, 3}, {0, 3}});  // equal ones: the lower
    CHECK(difference(gates_of(plan.view()), {{.6, 1.6}, {.25, 1.8}}) < 1e-14);
}

TEST_CASE_TEMPLATE("one of each group: against plain loops, forward and backward", S, float, double) {
    const auto mask = draw_mask(150, 3);
    const auto bias = std::vector<float>{0.5f, -1, 0, 2, 0.25f, 0, -0.5f, 1, 0, 0.75f, -2, 0.1f};
    for (const index_t k : {1, 3, 4, 12}) {
        for (const bool biased : {false, true}) {
            for (const auto score : {sy::score_function::softmax, sy::score_function::sigmoid}) {
                for (const int forbidden : {0, 500}) {
                    CAPTURE(k);
                    CAPTURE(biased);
                    CAPTURE(forbidden);
                    sy::recipe_router<> router{.k = k,
                                               .score = score,
                                               .groups = {.count = k, .one_each = true},
                                               .normalize = biased ? sy::gate_sum::add : sy::gate_sum::none,
                                               .epsilon = biased ? 0.1 : 0,
                                               .scale = 2,
                                               .capacity = {.factor = 0.9},
                                               .balance_weight = 0.1,
                                               .balance = sy::balance_count::all,
                                               .z_weight = 0.1};
                    if (biased) router.selection_bias = {bias.data(), 12};
                    const auto scores = draw_scores(score_kind::gaussian, 150, 12, 5, forbidden);
                    CHECK(routing_mismatch<S>(router, scores, mask) == "");
                    CHECK(backward_mismatch<S>(router, scores, gaussian_scores(150, k, 6), mask) == "");
                }
            }
        }
    }
}

TEST_CASE("one of each group: gradients by central differences; loads of groups are even") {
    const auto scores = gaussian_scores(9, 6, 2);
    const auto weights = gaussian_scores(9, 3, 4);
    const sy::recipe_router<> router{.k = 3,
                                     .groups = {.count = 3, .one_each = true},
                                     .balance_weight = 0.5,
                                     .balance = sy::balance_count::all,
                                     .z_weight = 0.5};
    const auto made = routed<double>(router, scores);
    CHECK(score_gradient_error(router, scores, weights) < 1e-8);
    for (index_t g = 0; g < 3; ++g) {
        CHECK(made.view().load_before[2 * g] + made.view().load_before[2 * g + 1] == 9);
    }
}

TEST_CASE("one of each group: policies agree; sentences") {
    const auto scores = gaussian_scores(333, 24, 5);
    const sy::recipe_router<> router{.k = 8, .groups = {.count = 8, .one_each = true}};
    const auto want = routed<float>(router, scores);
    sy::workspace scratch;
    for_each_policy([&](const auto& policy) {
        sy::plan<float> made;
        sy::route_scores(policy, router, stored<float>(scores), training_with(), made, scratch);
        CHECK(experts_of(made.view()) == experts_of(want.view()));
        CHECK(difference(gates_of(made.view()), gates_of(want.view())) == 0);
    });
    CHECK(sentence_of([&] {
              routed<float>(sy::recipe_router<>{.k = 2, .groups = {.count = 8, .one_each = true}}, scores);
          }) == "k = 2 must be groups.count = 8, since a token takes one expert of each group");
    CHECK(sentence_of([&] {
              routed<float>(sy::recipe_router<>{.k = 8, .groups = {.count = 8, .one_each = true}, .balance_weight = 1},
                            scores);
          }) == "groups.one_each makes first choices those of the first group: a balance loss must count all choices");
}
