// Outputs of routing that are inputs: right where the contract says so, in every layout and storage, and refused
// elsewhere.
#include "support/backends.hpp"
#include "support/rows.hpp"

#include <switchyard/assignment/auction.hpp>
#include <switchyard/router/base.hpp>
#include <switchyard/router/route.hpp>
#include <switchyard/router/switch.hpp>
#include <switchyard/router/top_k.hpp>

#include <doctest/doctest.h>

using namespace switchyard_test;

namespace {

/// d_scores in place of the scores: the numbers of the call that writes elsewhere, on every policy.
template <class B, class Router>
void check_scores_in_place(const Router& router, index_t choices, const ref::matrix& table,
                           const ref::mask_list& mask) {
    using layout = typename B::template layout<typename B::storage>;
    layout scores(table);
    const auto plan = sy::route_scores(sy::seq, router, scores.argument(), training_with(mask));
    layout d_gates(gaussian_scores(table.rows, choices, 6));
    sy::workspace scratch;
    B::each_policy([&](const auto& policy) {
        layout elsewhere(ref::matrix(table.rows, table.columns, 9.0));
        route_scores_backward(policy, router, plan, scores.argument(), d_gates.argument(), elsewhere.argument(),
                              scratch);
        layout both(table);
        route_scores_backward(policy, router, plan, both.argument(), d_gates.argument(), both.argument(), scratch);
        CHECK(table_of_view(both.view()) == table_of_view(elsewhere.view()));
        CHECK(both.gaps_intact());
    });
}

std::string must_lie_apart(const char* output, const char* input) {
    return said(output, " shares memory with ", input, ": it must lie apart");
}

}  // namespace

TEST_CASE_TEMPLATE_DEFINE("aliasing: d_scores = scores", B, scores_in_place) {
    const auto mask = draw_mask(300, 4);
    const auto table = draw_scores(score_kind::gaussian, 300, 11, 3, 20);
    check_scores_in_place<B>(sy::switch_router{.logit_jitter = 0.1f, .z_weight = 0.01}, 1, table, mask);
    check_scores_in_place<B>(sy::top_k_router{.k = 3, .renormalize = true, .capacity = {.factor = 0.9}}, 3, table,
                             mask);
    check_scores_in_place<B>(sy::base_router<>{}, 1, table, mask);
}
TEST_CASE_TEMPLATE_APPLY(scores_in_place, every_backend);

TEST_CASE_TEMPLATE_DEFINE("aliasing: BASE in place, by hand", B, base_in_place) {
    using layout = typename B::template layout<typename B::storage>;
    layout scores(ref::matrix{{2, 0}, {0, 2}});
    const auto plan = sy::route_scores(sy::seq, sy::base_router<>{}, scores.argument(), sy::training{});
    layout d_gates(ref::matrix(2, 1, 1.0));
    sy::workspace scratch;
    route_scores_backward(sy::seq, sy::base_router<>{}, plan, scores.argument(), d_gates.argument(), scores.argument(),
                          scratch);
    const auto d_scores = table_of_view(scores.view());
    // sigmoid'(2); bfloat16 has 8 bits.
    CHECK(d_scores(0, 0) == doctest::Approx(0.104994).epsilon(0x1p-8));
    CHECK(d_scores(1, 1) == doctest::Approx(0.104994).epsilon(0x1p-8));
    CHECK(d_scores(0, 1) == 0);
    CHECK(d_scores(1, 0) == 0);
}
TEST_CASE_TEMPLATE_APPLY(base_in_place, every_backend);

TEST_CASE_TEMPLATE_DEFINE("aliasing: d_x = x, and every other output that is an input", B, tokens_in_place) {
    using layout = typename B::template layout<typename B::storage>;
    // As many experts as numbers in a token and as tokens, so that every shape fits.
    const auto numbers = gaussian_scores(6, 6, 1);
    const auto weights = gaussian_scores(6, 6, 2);
    const sy::top_k_router router{.k = 6, .input_jitter = 0.1f, .input_dropout = 0.2f};
    layout x(numbers), w(weights), d_gates(gaussian_scores(6, 6, 3));
    auto plan = sy::route(sy::seq, router, x.argument(), w.argument(), training_with());
    layout d_x(ref::matrix(6, 6)), d_w(ref::matrix(6, 6));
    sy::workspace scratch;
    const auto backward = [&](const auto& on, auto& its_x, auto& its_d_x, auto& its_d_w) {
        route_backward(on, router, plan, its_x.argument(), w.argument(), d_gates.argument(), its_d_x.argument(),
                       its_d_w.argument(), scratch);
    };
    B::each_policy([&](const auto& policy) {
        backward(policy, x, d_x, d_w);
        layout both(numbers), again(ref::matrix(6, 6));
        backward(policy, both, both, again);
        CHECK(table_of_view(both.view()) == table_of_view(d_x.view()));
        CHECK(table_of_view(again.view()) == table_of_view(d_w.view()));
        CHECK(both.gaps_intact());

        CHECK(sentence_of([&] { backward(policy, x, w, d_w); }) == must_lie_apart("d_x", "w"));
        CHECK(sentence_of([&] { backward(policy, x, d_gates, d_w); }) == must_lie_apart("d_x", "d_gates"));
        CHECK(sentence_of([&] { backward(policy, x, d_x, x); }) == must_lie_apart("d_w", "x"));
        CHECK(sentence_of([&] { backward(policy, x, d_x, w); }) == must_lie_apart("d_w", "w"));
        CHECK(sentence_of([&] { backward(policy, x, d_x, d_gates); }) == must_lie_apart("d_w", "d_gates"));
        CHECK(sentence_of([&] { backward(policy, x, d_x, d_x); }) == must_lie_apart("d_w", "d_x"));
        CHECK(sentence_of([&] {
                  route_backward(policy, router, plan, x.argument(), w.argument(), d_gates.argument(),
                                 plan.scores().view(), d_w.argument(), scratch);
              }) == must_lie_apart("d_x", "plan.scores()"));
        CHECK(sentence_of([&] {
                  route_backward(policy, router, plan, x.argument(), w.argument(), d_gates.argument(), d_x.argument(),
                                 plan.scores().view(), scratch);
              }) == must_lie_apart("d_w", "plan.scores()"));
    });
    CHECK(table_of_view(x.view()) == rounded_to<typename B::storage>(numbers));
    CHECK(table_of_view(w.view()) == rounded_to<typename B::storage>(weights));
}
TEST_CASE_TEMPLATE_APPLY(tokens_in_place, every_backend);

TEST_CASE_TEMPLATE("aliasing: scores, d_scores and the plan", Router, sy::switch_router, sy::top_k_router,
                   sy::base_router<>) {
    Router router;
    if constexpr (requires { router.k; }) router.k = 1;
    // One expert: d_gates and d_scores have one shape.
    const auto table = gaussian_scores(8, 1, 1);
    auto scores = stored<float>(table);
    auto d_gates = stored<float>(ref::matrix(8, 1, 1.0));
    auto plan = sy::route_scores(sy::seq, router, scores, sy::training{});
    sy::workspace scratch;
    CHECK(sentence_of([&] { route_scores_backward(sy::seq, router, plan, scores, d_gates, d_gates, scratch); }) ==
          must_lie_apart("d_scores", "d_gates"));
    const sy::matrix_view<float> first(scores.data(), 7, 1), shifted(scores.data() + 1, 7, 1);
    auto seven = sy::route_scores(sy::seq, router, first, sy::training{});
    const auto seven_gates = stored<float>(ref::matrix(7, 1, 1.0));
    CHECK(sentence_of([&] { route_scores_backward(sy::seq, router, seven, first, seven_gates, shifted, scratch); }) ==
          "d_scores shares memory with scores and is another view: it must be the same view, or lie apart");
    // Scores that lie where the plan's gates do.
    const sy::matrix_view<float> gates(plan.view().gate, 8, 1);
    CHECK(sentence_of([&] { route_scores(sy::seq, router, gates, sy::training{}, plan, scratch); }) ==
          must_lie_apart("the plan's gates", "scores"));
    // Tokens and weights that lie where the plan keeps its scores.
    const sy::top_k_router from_tokens{.k = 2};
    sy::plan<float> kept;
    const auto w = stored<float>(gaussian_scores(4, 4, 2));
    sy::route(sy::seq, from_tokens, stored<float>(gaussian_scores(4, 4, 3)), w, sy::training{}, kept, scratch);
    CHECK(sentence_of([&] { sy::route(sy::seq, from_tokens, kept.scores(), w, sy::training{}, kept, scratch); }) ==
          must_lie_apart("plan.scores()", "x"));
    CHECK(sentence_of([&] { sy::route(sy::seq, from_tokens, w, kept.scores(), sy::training{}, kept, scratch); }) ==
          must_lie_apart("plan.scores()", "w"));
}

TEST_CASE_TEMPLATE("aliasing: a solver's prices may be the initial ones, and nothing else", Solver, sy::hungarian,
                   sy::auction) {
    const auto table = gaussian_scores(40, 4, 1);
    std::vector<double> memory(200);
    const sy::matrix_view<double> scores(memory.data(), 40, 4);
    fill_view(scores, table);
    std::vector<std::int32_t> experts(40), again(40);
    std::vector<double> prices(4), initial(5, 0.25);
    sy::workspace scratch;
    const auto solve_with = [&](const double* from, std::int32_t* to, double* prices_to) {
        const sy::assignment_problem<double> problem{
            .scores = scores, .bounds = sy::balanced_quotas(40, 4), .initial_prices = from};
        return solve(sy::seq, Solver{}, problem, {to, prices_to}, scratch);
    };
    const auto apart = solve_with(initial.data(), experts.data(), prices.data());
    const auto in_place = solve_with(initial.data(), again.data(), initial.data());
    CHECK(again == experts);
    CHECK(in_place.dual == apart.dual);
    for (std::size_t e = 0; e < 4; ++e) CHECK(initial[e] == prices[e]);

    CHECK(sentence_of([&] { solve_with(initial.data(), experts.data(), initial.data() + 1); }) ==
          "the array of prices shares memory with initial_prices and is another view: it must be the same view, or lie "
          "apart");
    CHECK(sentence_of([&] { solve_with(nullptr, experts.data(), memory.data() + 156); }) ==
          must_lie_apart("the array of prices", "scores"));
    auto* const inside = reinterpret_cast<std::int32_t*>(memory.data() + 10);
    CHECK(sentence_of([&] { solve_with(nullptr, inside, prices.data()); }) ==
          must_lie_apart("expert_of_token", "scores"));
    auto* const on_prices = reinterpret_cast<std::int32_t*>(memory.data() + 170);
    CHECK(sentence_of([&] { solve_with(nullptr, on_prices, memory.data() + 172); }) ==
          must_lie_apart("expert_of_token", "prices"));
    CHECK(sentence_of([&] { solve_with(memory.data() + 172, on_prices, prices.data()); }) ==
          must_lie_apart("expert_of_token", "initial_prices"));
}
