// Plans from saved arrays: backward on them is backward on the plan they were saved from, bit by bit, and what does not
// fit is refused.
#include "support/backends.hpp"
#include "support/choices.hpp"

#include <switchyard/dispatch/combine.hpp>
#include <switchyard/dispatch/dispatch.hpp>
#include <switchyard/router/base.hpp>
#include <switchyard/router/recipe.hpp>
#include <switchyard/router/route.hpp>
#include <switchyard/router/saved_plan.hpp>
#include <switchyard/router/switch.hpp>
#include <switchyard/router/top_k.hpp>

#include <doctest/doctest.h>

#include <cstdint>
#include <vector>

using namespace switchyard_test;

namespace {

/// Copies of the arrays, as a framework keeps them between its calls, in memory that forward knew nothing of.
struct kept_arrays {
    std::vector<std::int32_t> expert, slot;
    std::vector<float> gate, row_maximum, row_sum;
    std::vector<std::int64_t> offsets, order, balance_load;
    sy::plan_totals totals;
    sy::saved_plan<float> saved;

    explicit kept_arrays(const sy::plan<float>& plan) : totals(plan.totals()), saved(sy::saved_arrays_of(plan)) {
        const auto keep = [](auto& list, const auto*& array, index_t count) {
            list.assign(array, array + count);
            array = list.data();
        };
        const index_t positions = plan.tokens() * plan.choices();
        keep(expert, saved.expert, positions);
        keep(slot, saved.slot, positions);
        keep(gate, saved.gate, positions);
        keep(offsets, saved.offsets, plan.experts() + 1);
        keep(order, saved.order, plan.rows());
        keep(balance_load, saved.balance_load, plan.experts());
        keep(row_maximum, saved.row_maximum, plan.tokens());
        keep(row_sum, saved.row_sum, plan.tokens());
        saved.totals = &totals;
    }
    kept_arrays(const kept_arrays&) = delete;
    kept_arrays& operator=(const kept_arrays&) = delete;
};

constexpr sy::training step{.seed = 7, .stream = 2, .step = 3};

template <class Router>
void check_saved(const Router& router, index_t row_block) {
    const auto scores = stored<float>(gaussian_scores(300, 6, 1));
    const auto x = whole_numbers(300, 5, 2);
    sy::plan<float> plan;
    sy::workspace scratch;
    plan.set_row_block(row_block);
    sy::route_scores(sy::seq, router, scores, step, plan, scratch);
    const kept_arrays kept(plan);
    const auto d_gates = stored<float>(gaussian_scores(300, plan.choices(), 3));
    const auto rows = sy::dispatch(sy::seq, plan, x);
    const auto d = sy::combine_backward(sy::seq, plan, rows, x);
    const auto d_scores = sy::route_scores_backward(sy::seq, router, plan, scores, d_gates, {.loss_scale = 3});
    sy::route_scores(sy::seq, router, stored<float>(gaussian_scores(500, 6, 9)), step, plan, scratch);  // overwritten

    for_each_policy([&](const auto& policy) {
        const auto again = sy::plan_from_saved(router, step, kept.saved);
        CHECK(number_difference("rows", sy::dispatch(policy, again, x), rows) == "");
        const auto d_again = sy::combine_backward(policy, again, rows, x);
        CHECK(number_difference("d_rows", d_again.d_rows, d.d_rows) == "");
        CHECK(number_difference("d_gates", d_again.d_gates, d.d_gates) == "");
        CHECK(number_difference("d_scores",
                                sy::route_scores_backward(policy, router, again, scores, d_gates, {.loss_scale = 3}),
                                d_scores) == "");
    });
}

}  // namespace

TEST_CASE("plan_from_saved: backward is that of the plan the arrays were saved from") {
    for (const index_t row_block : {1, 16}) {
        check_saved(sy::switch_router{.logit_jitter = 0.01f, .z_weight = 1e-3}, row_block);
        check_saved(sy::top_k_router{.k = 2, .renormalize = true, .capacity = {.factor = 1.0}, .balance_weight = 1e-2},
                    row_block);
        check_saved(sy::base_router<>{}, row_block);
        const std::vector<float> bias{0.5f, -0.25f, 0, 0.125f, 0, -1};
        sy::recipe_router<> recipe{.k = 2,
                                   .score = sy::score_function::sigmoid,
                                   .selection_bias = {bias.data(), 6},
                                   .groups = {.count = 3, .kept = 2},
                                   .normalize = sy::gate_sum::add,
                                   .epsilon = 1e-20,
                                   .scale = 2.5,
                                   .capacity = {.factor = 1.0}};
        check_saved(recipe, row_block);
        recipe.logit_bias = recipe.selection_bias;
        recipe.balance_weight = recipe.z_weight = 1e-2;
        check_saved(recipe, row_block);
    }
}

TEST_CASE("plan_from_saved: other settings, another mode and other scores are refused") {
    const auto scores = stored<float>(gaussian_scores(40, 6, 1));
    const auto gates = stored<float>(gaussian_scores(40, 1, 2));
    const sy::switch_router router{.z_weight = 1e-3};
    sy::switch_router other = router;
    other.z_weight = 2e-3;
    const auto plan = sy::route_scores(sy::seq, router, scores, step);
    kept_arrays kept(plan);
    const auto refuses = [&](const sy::plan_view<float>& view, const sy::switch_router& by, const auto& from,
                             const char* sentence) {
        CHECK_THROWS_WITH_AS(sy::route_scores_backward(sy::seq, by, view, from, gates), sentence, sy::error);
    };
    const char* const settings = "the plan was made by a router with other settings";
    refuses(sy::plan_from_saved(router, step, kept.saved), other, scores, settings);
    CHECK_THROWS_WITH_AS(sy::plan_from_saved(other, step, kept.saved),
                         "the saved plan was made by a router with other settings", sy::error);
    // Without the number that was saved, the router given is taken at its word, and backward holds it to that.
    kept.saved.settings = 0;
    refuses(sy::plan_from_saved(other, step, kept.saved), router, scores, settings);
    refuses(sy::plan_from_saved(router, sy::inference{}, kept.saved), router, scores,
            "the plan was made by inference; backward needs one made with training{}");
    auto changed = stored<float>(gaussian_scores(40, 6, 1));
    for (index_t e = 0; e < 6; ++e) changed(0, e) += 1;
    CHECK_THROWS_AS(
        sy::route_scores_backward(sy::seq, router, sy::plan_from_saved(router, step, kept.saved), changed, gates),
        sy::error);
    CHECK_THROWS_AS(sy::saved_arrays_of(sy::plan<float>{}), sy::error);
}

TEST_CASE("plan_from_saved: arrays that are missing, and shapes that cannot be") {
    const auto plan = sy::route_scores(sy::seq, sy::switch_router{}, stored<float>(gaussian_scores(9, 3, 1)), step);
    const auto whole = sy::saved_arrays_of(plan);
    const auto refuses = [&](const auto& spoil, const char* sentence) {
        auto saved = whole;
        spoil(saved);
        CHECK_THROWS_WITH_AS(sy::plan_from_saved(sy::switch_router{}, step, saved), sentence, sy::error);
    };
    refuses([](auto& saved) { saved.expert = nullptr; }, "the saved plan has no array expert");
    refuses([](auto& saved) { saved.slot = nullptr; }, "the saved plan has no array slot");
    refuses([](auto& saved) { saved.offsets = nullptr; }, "the saved plan has no array offsets");
    refuses([](auto& saved) { saved.row_block = 0; }, "row_block = 0 must be at least 1");
    refuses([](auto& saved) { saved.tokens = -1; }, "a saved plan cannot have -1 tokens, 3 experts and 1 choices");
    // No tokens: no arrays of tokens.
    const auto none = sy::route_scores(sy::seq, sy::switch_router{}, sy::matrix<float>(0, 3), step);
    const auto again = sy::plan_from_saved(sy::switch_router{}, step, sy::saved_arrays_of(none));
    CHECK(sy::dispatch(sy::seq, again, sy::matrix<float>(0, 4)).rows() == 0);
}
