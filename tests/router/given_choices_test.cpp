// Choices made elsewhere: a router's own, replayed, give its plan and gradients bit by bit; others those of the
// formula.
#include "reference/numeric.hpp"
#include "support/backends.hpp"
#include "support/routed.hpp"
#include "support/score_gradient.hpp"

#include <switchyard/plan/choices.hpp>
#include <switchyard/router/given_choices.hpp>
#include <switchyard/router/recipe.hpp>
#include <switchyard/router/route.hpp>
#include <switchyard/router/route_choices.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <set>
#include <vector>

using namespace switchyard_test;
using ids_matrix = sy::matrix<std::int32_t>;

namespace {

template <class S>
ids_matrix ids_of(const sy::plan<S>& plan) {
    ids_matrix ids(plan.tokens(), plan.choices());
    for (index_t i = 0; i < plan.tokens() * plan.choices(); ++i) ids.data()[i] = plan.view().expert[i];
    return ids;
}

ids_matrix ids_from(const ref::integers& table) {
    ids_matrix ids(table.rows, table.columns);
    for (index_t i = 0; i < table.rows * table.columns; ++i) {
        ids.data()[i] = static_cast<std::int32_t>(table.values[i]);
    }
    return ids;
}

}  // namespace

TEST_CASE_TEMPLATE("given choices: a router's own, replayed, give its plan and gradients bit by bit", S, float,
                   double) {
    const std::vector<float> bias{0.5f, -1, 0, 2, 0.25f, 0, -0.5f, 1, 0, 0.75f, -2, 0.1f};
    const auto mask = draw_mask(150, 3);
    for (const auto sum : {sy::gate_sum::none, sy::gate_sum::add, sy::gate_sum::clamp, sy::gate_sum::norm}) {
        for (const auto score : {sy::score_function::softmax, sy::score_function::sigmoid}) {
            for (const int forbidden : {0, 300}) {
                sy::recipe_router<> router{.k = 4,
                                           .softcap = 2,
                                           .score = score,
                                           .selection_bias = {bias.data(), 12},
                                           .groups = {.count = 4, .kept = 3},
                                           .normalize = sum,
                                           .epsilon = sum == sy::gate_sum::norm ? 0 : 0.25,
                                           .scale = 2,
                                           .capacity = {.factor = 0.8},
                                           .balance_weight = 0.1,
                                           .balance = sy::balance_count::all,
                                           .z_weight = 0.1};
                const auto scores = draw_scores(score_kind::gaussian, 150, 12, 5, forbidden);
                const auto made = routed<S>(router, scores, training_with(mask));
                const auto ids = ids_of(made);
                const auto d_gates = gaussian_scores(150, 4, 6);
                const auto d_made = routed_backward(router, made, scores, d_gates);
                router.choices = ids.view();
                const auto again = routed<S>(router, scores, training_with(mask));
                CHECK(experts_of(again.view()) == experts_of(made.view()));
                CHECK(slots_of(again.view()) == slots_of(made.view()));
                CHECK(difference(gates_of(again.view()), gates_of(made.view())) <= (sizeof(S) == 4 ? 1e-6 : 1e-14));
                CHECK(again.load_balancing_loss() == made.load_balancing_loss());
                CHECK(again.z_loss() == made.z_loss());
                CHECK(difference(routed_backward(router, again, scores, d_gates), d_made) == 0);
            }
        }
    }
}

TEST_CASE("given choices: what is no expert, what is forbidden, and gradients by central differences") {
    const ids_matrix ids = ids_from({{2, 0, -1}, {1, 7, -1}, {-1, -1, -1}, {3, 2, 1}, {0, 1, 2}});
    auto scores = gaussian_scores(5, 4, 2);
    scores(3, 2) = never;
    sy::recipe_router<> router{.k = 3, .normalize = sy::gate_sum::add, .choices = ids.view()};
    const auto plan = routed<double>(router, scores);
    CHECK(experts_of(plan.view()) == ref::integers{{2, 0, -1}, {1, -1, -1}, {-1, -1, -1}, {3, 2, 1}, {0, 1, 2}});
    CHECK(slots_of(plan.view()) == ref::integers{{0, 1, -1}, {0, -1, -1}, {-1, -1, -1}, {0, -1, 2}, {0, 1, 1}});
    CHECK(plan.gate()(1, 0) == 1);
    CHECK(plan.gate()(3, 1) == 0);
    const double own = std::exp(scores(0, 2)) / (std::exp(scores(0, 2)) + std::exp(scores(0, 0)));
    CHECK(plan.gate()(0, 0) == doctest::Approx(own).epsilon(1e-14));
    for (const auto sum : {sy::gate_sum::none, sy::gate_sum::add, sy::gate_sum::norm}) {
        for (const auto score :
             {sy::score_function::softmax, sy::score_function::sigmoid, sy::score_function::sqrt_softplus}) {
            router.normalize = sum;
            router.norm_power = 2;
            router.score = score;
            router.balance_weight = 0.5;
            router.z_weight = 0.5;
            CHECK(score_gradient_error(router, scores, gaussian_scores(5, 3, 4)) < 1e-8);
        }
    }
    sy::recipe_router<> other{.k = 2, .choices = ids.view()};
    CHECK(sentence_of([&] { routed<float>(other, scores); }) == "choices are 5 x 3 for 5 tokens and k = 2");
    other.k = 3;
    CHECK(sentence_of([&] { routed<float>(other, gaussian_scores(6, 4, 1)); }) ==
          "choices are 5 x 3 for 6 tokens and k = 3");
}

TEST_CASE("given choices: a token without an id is padding, in losses, too") {
    const auto scores = gaussian_scores(6, 4, 3);
    const ids_matrix ids = ids_from({{-1, -1}, {1, 0}, {-1, 9}, {9, -7}, {3, -1}, {0, 2}});
    sy::recipe_router<> router{.k = 2, .balance_weight = 1, .z_weight = 1, .choices = ids.view()};
    const auto bare = routed<double>(router, scores);
    const auto masked = routed<double>(router, scores, training_with({0, 1, 0, 0, 1, 1}));
    CHECK(experts_of(bare.view()) == ref::integers{{-1, -1}, {1, 0}, {-1, -1}, {-1, -1}, {3, -1}, {0, 2}});
    CHECK(bare.load_balancing_loss() == masked.load_balancing_loss());
    CHECK(bare.z_loss() == masked.z_loss());
    CHECK(bare.kept() == 5);
    double z = 0;
    for (const index_t t : {1, 4, 5}) {
        double sum = 0;
        for (index_t e = 0; e < 4; ++e) sum += std::exp(scores(t, e));
        z += std::log(sum) * std::log(sum) / 3;
    }
    CHECK(bare.z_loss() == doctest::Approx(z).epsilon(1e-12));
    const auto d_gates = gaussian_scores(6, 2, 5);
    CHECK(difference(routed_backward(router, bare, scores, d_gates),
                     routed_backward(router, masked, scores, d_gates)) == 0);
}

TEST_CASE("given choices: ids of none keep their place, the first one, too") {
    const ids_matrix ids =
        ids_from({{-1, 2, 0}, {1, 7, 3}, {-1, -1, 1}, {-1, 0, -1}, {-1, -1, -1}, {0, -1, 2}, {9, 2, 1}});
    auto scores = gaussian_scores(7, 4, 2);
    scores(6, 2) = never;
    for (index_t e = 0; e < 4; ++e) scores(3, e) = never;
    sy::recipe_router<> router{.k = 3,
                               .normalize = sy::gate_sum::add,
                               .capacity = {.number = 2},
                               .balance_weight = 0.5,
                               .z_weight = 0.5,
                               .choices = ids.view()};
    const auto plan = routed<double>(router, scores);
    CHECK(experts_of(plan.view()) ==
          ref::integers{{-1, 2, 0}, {1, -1, 3}, {-1, -1, 1}, {-1, 0, -1}, {-1, -1, -1}, {0, -1, 2}, {-1, 2, 1}});
    // First choices, then second, then third ones: expert 1 has no third row.
    CHECK(slots_of(plan.view()) ==
          ref::integers{{-1, 0, 1}, {0, -1, 0}, {-1, -1, 1}, {-1, -1, -1}, {-1, -1, -1}, {0, -1, 1}, {-1, -1, -1}});
    CHECK(plan.totals().counted_tokens == 6);
    CHECK(plan.kept() == 7);
    CHECK(plan.gate()(0, 0) == 0);
    CHECK(plan.gate()(2, 2) == 1);
    const double own = std::exp(scores(0, 2)) / (std::exp(scores(0, 2)) + std::exp(scores(0, 0)));
    CHECK(plan.gate()(0, 1) == doctest::Approx(own).epsilon(1e-14));
    // The same slots, kept and gates, where a plan is made of the choices.
    for (const auto order : {sy::drop_order::position, sy::drop_order::gate}) {
        router.order = order;
        scores = gaussian_scores(7, 4, 2);
        const auto made = routed<double>(router, scores);
        CHECK(score_gradient_error(router, scores, gaussian_scores(7, 3, 4)) < 1e-8);
        sy::matrix<double> gates(7, 3);
        router.capacity = {};
        const auto whole = routed<double>(router, scores);
        router.capacity = {.number = 2};
        std::copy(whole.view().gate, whole.view().gate + 21, gates.data());
        sy::plan<double> plain;
        sy::workspace scratch;
        sy::plan_from_choices(sy::seq, ids, gates, 4, {.capacity = {.number = 2}, .order = order}, plain, scratch);
        CHECK(slots_of(plain.view()) == slots_of(made.view()));
        CHECK(difference(gates_of(plain.view()), gates_of(made.view())) == 0);
        // Choices alone.
        sy::matrix<std::int32_t> chosen(7, 3);
        sy::matrix<double> weighed(7, 3);
        router.capacity = {};
        sy::route_choices(sy::seq, router, stored<double>(scores), sy::inference{}, chosen, weighed, scratch);
        CHECK(std::equal(chosen.data(), chosen.data() + 21, made.view().expert));
        router.capacity = {.number = 2};
    }
    // From tokens: such a token has a gradient, padding has none, whatever it holds.
    auto x = gaussian_scores(7, 5, 6);
    const auto w = gaussian_scores(5, 4, 7);
    const sy::recipe_router<> simple{.k = 3, .choices = ids.view()};
    const auto from_x = sy::route(sy::seq, simple, stored<double>(x), stored<double>(w), sy::training{});
    const auto d = gaussian_scores(7, 3, 8);
    const auto back =
        sy::route_backward(sy::seq, simple, from_x, stored<double>(x), stored<double>(w), stored<double>(d));
    const auto d_x = numeric_gradient(
        [&](const ref::matrix& at) {
            const auto there = sy::route(sy::seq, simple, stored<double>(at), stored<double>(w), sy::training{});
            return inner(gates_of(there.view()), d);
        },
        x);
    double largest = 0;
    for (index_t i = 0; i < 35; ++i) largest = std::max(largest, std::abs(back.d_x.data()[i] - d_x.values[i]));
    CHECK(largest < 1e-8);
    CHECK(back.d_x.data()[2 * 5] != 0);
    CHECK(back.d_x.data()[4 * 5] == 0);
}

TEST_CASE("given choices: policies and layouts agree") {
    ids_matrix ids(333, 3);
    sy::random_choices(sy::seq, 24, {.seed = 3}, ids);
    const auto scores = gaussian_scores(333, 24, 5);
    const sy::recipe_router<> router{.k = 3,
                                     .score = sy::score_function::sigmoid,
                                     .normalize = sy::gate_sum::add,
                                     .capacity = {.factor = 0.9},
                                     .balance_weight = 0.1,
                                     .choices = ids.view()};
    const auto want = routed<float>(router, scores);
    sy::workspace scratch;
    for_each_policy([&](const auto& policy) {
        ids_matrix here(333, 3);
        sy::random_choices(policy, 24, {.seed = 3}, here);
        CHECK(std::equal(here.data(), here.data() + 999, ids.data()));
        for (const bool by_columns : {false, true}) {
            sy::plan<float> plan;
            if (by_columns) {
                sy::route_scores(policy, router, column_major::layout<float>(scores).view(), training_with(), plan,
                                 scratch);
            } else {
                sy::route_scores(policy, router, row_major::layout<float>(scores).view(), training_with(), plan,
                                 scratch);
            }
            CHECK(experts_of(plan.view()) == experts_of(want.view()));
            CHECK(slots_of(plan.view()) == slots_of(want.view()));
            CHECK(difference(gates_of(plan.view()), gates_of(want.view())) == 0);
            CHECK(plan.load_balancing_loss() == want.load_balancing_loss());
        }
        covers<operation("choices made elsewhere")>(policy);
    });
}

TEST_CASE("random choices: different experts, every set about as often, other steps others") {
    for (const index_t k : {1, 2, 3, 5, 6}) {
        ids_matrix ids(20000, k);
        sy::random_choices(sy::seq, 6, {.seed = 1, .step = 4}, ids);
        std::vector<index_t> count(6);
        std::vector<index_t> sets(64);
        for (index_t t = 0; t < 20000; ++t) {
            std::set<std::int32_t> seen;
            index_t bits = 0;
            for (index_t c = 0; c < k; ++c) {
                REQUIRE(ids.view()(t, c) >= 0);
                REQUIRE(ids.view()(t, c) < 6);
                seen.insert(ids.view()(t, c));
                bits |= index_t{1} << ids.view()(t, c);
                ++count[static_cast<std::size_t>(ids.view()(t, c))];
            }
            ++sets[static_cast<std::size_t>(bits)];
            REQUIRE(static_cast<index_t>(seen.size()) == k);
        }
        for (const index_t n : count)
            CHECK(std::abs(static_cast<double>(n) / (20000.0 * static_cast<double>(k) / 6) - 1) < 0.06);
        const double choose[] = {0, 6, 15, 20, 15, 6, 1};
        for (const index_t n : sets) {
            if (n > 0) CHECK(std::abs(static_cast<double>(n) / (20000.0 / choose[k]) - 1) < 0.15);
        }
        CHECK(static_cast<double>(std::count_if(sets.begin(), sets.end(), [](index_t n) { return n > 0; })) ==
              choose[k]);
    }
    // Every expert is as often in every place.
    ids_matrix lists(20000, 4);
    sy::random_choices(sy::seq, 5, {.seed = 2}, lists);
    for (index_t c = 0; c < 4; ++c) {
        for (std::int32_t e = 0; e < 5; ++e) {
            index_t n = 0;
            for (index_t t = 0; t < 20000; ++t) n += lists.view()(t, c) == e ? 1 : 0;
            CHECK(std::abs(static_cast<double>(n) / 4000 - 1) < 0.1);
        }
    }
    ids_matrix one(100, 2);
    ids_matrix other(100, 2);
    sy::random_choices(sy::seq, 50, {.seed = 1, .step = 4}, one);
    sy::random_choices(sy::seq, 50, {.seed = 1, .step = 5}, other);
    CHECK(!std::equal(one.data(), one.data() + 200, other.data()));
}

TEST_CASE("round robin: loads differ by one at most, also where a batch goes on") {
    for (const index_t experts : {1, 3, 7, 8}) {
        for (index_t k = 1; k <= experts; ++k) {
            std::vector<index_t> load(static_cast<std::size_t>(experts));
            for (const index_t first : {0, 13}) {
                ids_matrix ids(first == 0 ? 13 : 9, k);
                sy::round_robin_choices(sy::seq, experts, first, ids);
                for (index_t t = 0; t < ids.rows(); ++t) {
                    std::set<std::int32_t> seen;
                    for (index_t c = 0; c < k; ++c) seen.insert(ids.view()(t, c));
                    CHECK(static_cast<index_t>(seen.size()) == k);
                    for (const std::int32_t e : seen) ++load[static_cast<std::size_t>(e)];
                }
            }
            const auto [low, high] = std::minmax_element(load.begin(), load.end());
            CHECK(*high - *low <= 1);
        }
    }
}

TEST_CASE("table of choices: rows by token id, none outside, and what is refused") {
    const ids_matrix table = ids_from({{0, 1}, {2, 3}, {1, 0}});
    const std::int64_t tokens[] = {2, 0, 3, -1, 1};
    ids_matrix ids(5, 2);
    const sy::matrix_view<const std::int64_t> list(tokens, 5, 1);
    sy::table_choices(sy::seq, table, list, ids);
    const std::int32_t want[] = {1, 0, 0, 1, -1, -1, -1, -1, 2, 3};
    CHECK(std::equal(want, want + 10, ids.data()));
    const sy::matrix_view<const std::int64_t> row(tokens, 1, 5);
    sy::table_choices(sy::seq, table, row, ids);
    CHECK(std::equal(want, want + 10, ids.data()));
    ids_matrix wide(5, 3);
    CHECK(sentence_of([&] { sy::table_choices(sy::seq, table, list, wide); }) ==
          "the table has k = 2 experts per token, ids have 3");
    ids_matrix few(4, 2);
    CHECK(sentence_of([&] { sy::table_choices(sy::seq, table, list, few); }) == "tokens are 5 x 1 for T = 4 tokens");
    CHECK(sentence_of([&] { sy::random_choices(sy::seq, 1, {}, ids); }) == "k = 2 must lie in 1..E = 1");
    CHECK(sentence_of([&] { sy::random_choices(sy::seq, 0, {}, ids); }) == "E = 0 experts: there must be at least one");
    CHECK(sentence_of([&] { sy::round_robin_choices(sy::seq, 4, -1, ids); }) ==
          "first_token = -1 must not be negative");
}
