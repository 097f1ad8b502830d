// Experts without rows: routing against worked numbers, the reference in plain loops and central differences; what
// counts them and what does not; the same router with rows for all.
#include "reference/numeric.hpp"
#include "support/backends.hpp"
#include "support/recorded_models.hpp"
#include "support/routed.hpp"

#include <switchyard/balance/balance_loss.hpp>
#include <switchyard/dispatch/combine.hpp>
#include <switchyard/dispatch/dispatch.hpp>
#include <switchyard/plan/choices.hpp>
#include <switchyard/plan/layout.hpp>
#include <switchyard/plan/statistics.hpp>
#include <switchyard/router/bias_state.hpp>
#include <switchyard/router/models.hpp>
#include <switchyard/router/recipe.hpp>
#include <switchyard/router/route.hpp>
#include <switchyard/router/route_choices.hpp>
#include <switchyard/router/saved_plan.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <iterator>
#include <span>
#include <vector>

using namespace switchyard_test;
namespace models = sy::models;
using sy::gate_sum;
using sy::score_function;

namespace {

using recipe = sy::recipe_router<>;

constexpr score_function every_function[] = {score_function::softmax, score_function::sigmoid,
                                             score_function::sqrt_softplus};

std::vector<float> spread(index_t experts, index_t step) {
    std::vector<float> numbers;
    for (index_t e = 0; e < experts; ++e) numbers.push_back(static_cast<float>(e * step % experts) / 64 - 0.375f);
    return numbers;
}

sy::expert_numbers<> numbers_of(const std::vector<float>& list) {
    return {list.data(), static_cast<index_t>(list.size())};
}

template <class S>
void check(const recipe& router, const ref::matrix& scores, const ref::mask_list& mask = {}) {
    CHECK(routing_mismatch<S>(router, scores, mask) == "");
    CHECK(routing_mismatch<S>(router, scores, mask, false) == "");
    CHECK(backward_mismatch<S>(router, scores, gaussian_scores(scores.rows, router.k, 8), mask) == "");
}

}  // namespace

TEST_CASE("rowless: worked numbers") {
    // ln of 1, 2, 4 and 1: probabilities are eighths. Columns 2 and 3 are an identity and a zero expert.
    const double two = std::log(2.0);
    const double four = std::log(4.0);
    const auto scores = ref::matrix{{0, two, four, 0}, {four, 0, two, 0}, {0, 0, two, four}, {four, two, 0, 0}};
    const recipe router{.k = 2,
                        .capacity = {.number = 1},
                        .rowless = {.identity = 1, .zero = 1},
                        .balance_weight = 1,
                        .balance = sy::balance_count::all};
    const auto plan = routed<double>(router, scores);
    CHECK(plan.experts() == 2);
    CHECK(plan.view().origin.rowless == sy::rowless_experts{1, 1});
    CHECK(experts_of(plan.view()) == ref::integers{{2, 1}, {0, 2}, {3, 2}, {0, 1}});
    // Expert 0 has room for token 1 alone, and expert 1 for token 0.
    CHECK(slots_of(plan.view()) == ref::integers{{-1, 0}, {0, -1}, {-1, -1}, {-1, -1}});
    const ref::matrix gates{{0.5, 0.25}, {0.5, 0.25}, {0, 0.25}, {0, 0}};
    CHECK(difference(gates_of(plan.view()), gates) < 1e-15);
    CHECK(plan.kept() == 2);
    CHECK(list_of(plan.view().load_before, 2) == ref::list<index_t>{2, 2});
    CHECK(list_of(plan.view().load_after, 2) == ref::list<index_t>{1, 1});
    CHECK(list_of(plan.view().offsets, 3) == ref::list<index_t>{0, 1, 2});
    CHECK(list_of(plan.view().order, 2) == ref::list<index_t>{2, 1});
    CHECK(plan.totals().counted_tokens == 4);
    // E = 2 experts with rows, f = 2 / 8 each, P = (1 + 4 + 1 + 4) / 32 and (2 + 1 + 1 + 2) / 32.
    CHECK(plan.load_balancing_loss() == doctest::Approx(2 * 0.25 * (10.0 + 6.0) / 32).epsilon(1e-14));
    for (const auto& [t, c] : {std::pair{0, 0}, {1, 1}, {2, 1}}) CHECK(plan.view().adds_token(t * 2 + c));
    for (const auto& [t, c] : {std::pair{0, 1}, {1, 0}, {2, 0}, {3, 0}, {3, 1}}) {
        CHECK(!plan.view().adds_token(t * 2 + c));
    }
    // What is combined: of token 3 nothing, of token 2 a quarter of itself.
    const sy::matrix<double> x = stored<double>({{1}, {10}, {100}, {1000}});
    const auto rows = sy::dispatch(sy::seq, plan, x);
    const auto y = sy::combine(sy::seq, plan, rows, sy::identity_of{x});
    CHECK(y(0, 0) == doctest::Approx(0.75).epsilon(1e-15));
    CHECK(y(1, 0) == doctest::Approx(7.5).epsilon(1e-15));
    CHECK(y(2, 0) == doctest::Approx(25).epsilon(1e-15));
    CHECK(y(3, 0) == 0);
}

TEST_CASE_TEMPLATE("rowless: every part against the reference, forward and backward", S, float, double) {
    int turn = 0;
    for (const index_t columns : {2, 5, 16, 48, 257}) {
        for (const index_t k : {1, 2, 6, 12}) {
            for (const auto function : every_function) {
                for (const auto sum : {gate_sum::none, gate_sum::add, gate_sum::clamp, gate_sum::norm}) {
                    if (k > columns) continue;
                    ++turn;
                    recipe router{.k = k, .score = function, .normalize = sum};
                    if (sum == gate_sum::add || sum == gate_sum::clamp) router.epsilon = 0.25;
                    if (sum == gate_sum::norm && k == 1) continue;
                    router.scale = turn % 2 == 0 ? 1 : 2.5;
                    router.rowless.identity = turn % 3 == 0 ? 0 : columns / 3 + (columns < 3 ? 1 : 0);
                    router.rowless.zero = turn % 3 == 1 ? 0 : columns / 5;
                    const auto scales = spread(columns, 3);
                    if (turn % 5 == 0) router.expert_scale = numbers_of(scales);
                    const auto bias = spread(columns, 7);
                    if (turn % 2 == 0 && sizeof(S) == 8) router.selection_bias = numbers_of(bias);
                    if (columns % 4 == 0 && turn % 4 < 2 && sizeof(S) == 8 && k <= columns / 2) {
                        router.groups = {.count = 4, .kept = 2};
                    }
                    if (turn % 3 != 1) router.capacity = {.factor = 0.7};
                    if (turn % 4 == 0) router.z_weight = 0.01;
                    if (turn % 5 < 3) router.balance_weight = 0.02;
                    if (turn % 2 == 0) router.balance = sy::balance_count::all;
                    if (turn % 7 == 0 && turn % 5 != 0) router.order = sy::drop_order::gate;
                    constexpr index_t counts[] = {1, 3, 50, 600};
                    const index_t tokens = counts[turn % 4];
                    const int forbidden = turn % 3 == 0 ? 60 : 0;
                    if (forbidden > 0) router.capacity = {.number = 1 + tokens / 4};
                    router.inference_capacity = router.capacity;
                    const auto scores =
                        draw_scores(score_kind::gaussian, tokens, columns, static_cast<std::uint64_t>(turn), forbidden);
                    CAPTURE(columns);
                    CAPTURE(k);
                    CAPTURE(static_cast<int>(function));
                    CAPTURE(static_cast<int>(sum));
                    CAPTURE(turn);
                    check<S>(router, scores, turn % 2 == 0 ? draw_mask(tokens, 5) : ref::mask_list{});
                }
            }
        }
    }
    CHECK(turn > 150);
    check<S>(recipe{.k = 2, .rowless = {.identity = 3}}, ref::matrix(0, 8));
    check<S>(recipe{.k = 2, .capacity = {.factor = 1.0}, .rowless = {.identity = 3}}, gaussian_scores(40, 8, 1),
             ref::filled<std::uint8_t>(40, 0));
}

TEST_CASE("rowless: hostile scores") {
    for (int kind = 0; kind < static_cast<int>(score_kind::count); ++kind) {
        for (const int forbidden : {0, 120}) {
            CAPTURE(kind);
            CAPTURE(forbidden);
            recipe router{.k = 4, .capacity = {.factor = 0.8}, .rowless = {.identity = 4, .zero = 2}};
            router.inference_capacity = router.capacity;
            const auto scores = draw_scores(static_cast<score_kind>(kind), 60, 12, 5, forbidden);
            CHECK(routing_mismatch<float>(router, scores, draw_mask(60, 6)) == "");
            router.normalize = gate_sum::add;
            CHECK(routing_mismatch<double>(router, scores) == "");
        }
    }
}

TEST_CASE("rowless: without capacity, the router with rows for all has the same choices, gates and gradients") {
    const auto scores = draw_scores(score_kind::gaussian, 700, 24, 4, 100);
    const auto mask = draw_mask(700, 2);
    const auto bias = spread(24, 7);
    for (const auto function : every_function) {
        recipe router{.k = 5,
                      .score = function,
                      .selection_bias = numbers_of(bias),
                      .normalize = gate_sum::add,
                      .epsilon = 1e-20,
                      .scale = 2.5,
                      .capacity = {.number = 10000},
                      .z_weight = 0.1};
        const auto all = routed<float>(router, scores, training_with(mask));
        router.rowless = {.identity = 9};
        for (const auto& capacity : {sy::capacity_rule{.number = 10000}, sy::capacity_rule{.number = sy::unlimited}}) {
            router.capacity = capacity;
            const auto some = routed<float>(router, scores, training_with(mask));
            CHECK(experts_of(some.view()) == experts_of(all.view()));
            CHECK(difference(gates_of(some.view()), gates_of(all.view())) == 0);
            CHECK(list_of(some.view().load_before, 15) == list_of(all.view().load_before, 15));
            CHECK(some.kept() == all.offset(15));
            CHECK(some.z_loss() == all.z_loss());
            for (index_t i = 0; i < 700 * 5; ++i) {
                const bool is_rowless = all.view().expert[i] >= 15;
                if (some.view().slot[i] != (is_rowless ? -1 : all.view().slot[i])) FAIL("slot of choice ", i);
            }
            const auto d_gates = gaussian_scores(700, 5, 9);
            const auto d_some = routed_backward(router, some, scores, d_gates);
            recipe with_rows = router;
            with_rows.rowless = {};
            with_rows.capacity = {.number = 10000};
            CHECK(difference(d_some, routed_backward(with_rows, all, scores, d_gates)) == 0);
        }
    }
}

TEST_CASE("rowless: gradients by central differences, through combine") {
    const auto x = gaussian_scores(20, 3, 5);
    const auto weights = gaussian_scores(20, 3, 6);
    for (const auto function : every_function) {
        for (const auto sum : {gate_sum::none, gate_sum::add, gate_sum::norm}) {
            for (const index_t capacity : {4, 1000}) {
                CAPTURE(static_cast<int>(function));
                CAPTURE(static_cast<int>(sum));
                auto scores = gaussian_scores(20, 9, 3);
                scores(4, 8) = never;
                for (index_t e = 2; e < 9; ++e) scores(7, e) = never;  // two experts are left of three
                const recipe router{.k = 3,
                                    .score = function,
                                    .normalize = sum,
                                    .norm_power = sum == gate_sum::norm ? 2.0 : 1.0,
                                    .capacity = {.number = capacity},
                                    .rowless = {.identity = 3, .zero = 1},
                                    .balance_weight = 0.5,
                                    .z_weight = 0.5};
                const auto plan = routed<double>(router, scores);
                // Expert e with rows doubles its input, and adds e.
                const auto rows_of = [&](const sy::plan<double>& made, const ref::matrix& tokens) {
                    auto rows = sy::dispatch(sy::seq, made, stored<double>(tokens));
                    for (index_t e = 0; e < made.experts(); ++e) {
                        for (index_t r = made.offset(e); r < made.offset(e + 1); ++r) {
                            for (index_t j = 0; j < 3; ++j) rows(r, j) = 2 * rows(r, j) + static_cast<double>(e);
                        }
                    }
                    return rows;
                };
                const auto value = [&](const ref::matrix& at, const ref::matrix& tokens) {
                    const auto made = routed<double>(router, at);
                    const auto input = stored<double>(tokens);
                    const auto y = sy::combine(sy::seq, made, rows_of(made, tokens), sy::identity_of{input});
                    return inner(ref::matrix_from(sy::const_view(y.view())), weights) + made.load_balancing_loss() +
                           made.z_loss();
                };
                const auto input = stored<double>(x);
                auto d = sy::combine_backward(sy::seq, plan, rows_of(plan, x), sy::identity_of{input},
                                              stored<double>(weights));
                const auto d_scores =
                    routed_backward(router, plan, scores, ref::matrix_from(sy::const_view(d.d_gates.view())));
                CHECK(difference(d_scores,
                                 numeric_gradient([&](const ref::matrix& at) { return value(at, x); }, scores)) < 1e-7);
                for (index_t i = 0; i < d.d_rows.rows() * 3; ++i) d.d_rows.data()[i] *= 2;
                const auto through_rows = sy::dispatch_backward(sy::seq, plan, d.d_rows);
                ref::matrix d_x(20, 3);
                for (index_t i = 0; i < 60; ++i) d_x.values[i] = d.d_x.data()[i] + through_rows.data()[i];
                CHECK(difference(d_x, numeric_gradient([&](const ref::matrix& at) { return value(scores, at); }, x)) <
                      1e-7);
            }
        }
    }
}

TEST_CASE("rowless: zero experts have gate 0, and no part in what others are divided by") {
    // Probabilities are eighths: 1, 2, 4 of expert 0, an identity and a zero expert, and 1 of a zero expert.
    const ref::matrix scores{{0, std::log(2.0), std::log(4.0), 0}, {std::log(4.0), std::log(2.0), 0, 0}};
    const auto gates = [&](recipe router) {
        router.rowless = {.identity = 1, .zero = 2};
        router.k = 3;
        return gates_of(routed<double>(router, scores).view());
    };
    const auto near = [](const ref::matrix& got, const ref::matrix& want) { return difference(got, want) < 1e-15; };
    CHECK(near(gates({}), {{0, 0.25, 0.125}, {0.5, 0.25, 0}}));
    CHECK(near(gates({.normalize = gate_sum::add}), {{0, 2.0 / 3, 1.0 / 3}, {2.0 / 3, 1.0 / 3, 0}}));
    CHECK(
        near(gates({.normalize = gate_sum::add, .epsilon = 0.125, .scale = 2}), {{0, 1, 0.5}, {8.0 / 7, 4.0 / 7, 0}}));
    CHECK(near(gates({.normalize = gate_sum::clamp, .epsilon = 0.5}), {{0, 0.5, 0.25}, {2.0 / 3, 1.0 / 3, 0}}));
    const double five = std::sqrt(5.0);
    CHECK(near(gates({.normalize = gate_sum::norm, .norm_power = 2}),
               {{0, 2 / five, 1 / five}, {2 / five, 1 / five, 0}}));
    // A token of zero experts alone has gates 0, and no gradient.
    const recipe router{.k = 2, .normalize = gate_sum::add, .rowless = {.identity = 1, .zero = 2}};
    const ref::matrix nothing{{0, 0, 5, 4}};
    const auto plan = routed<double>(router, nothing);
    CHECK(difference(gates_of(plan.view()), ref::matrix{{0, 0}}) == 0);
    CHECK(difference(routed_backward(router, plan, nothing, {{1, 2}}), ref::matrix{{0, 0, 0, 0}}) == 0);
}

TEST_CASE("rowless: policies, layouts and row blocks agree") {
    const auto scores = gaussian_scores(1000, 20, 5);
    for (const bool limited : {false, true}) {
        recipe router{.k = 4, .rowless = {.identity = 5, .zero = 1}, .balance_weight = 0.1};
        if (limited) router.capacity = {.factor = 0.9};
        const auto want = routed<float>(router, scores);
        const auto d_gates = gaussian_scores(1000, 4, 3);
        const auto d_want = routed_backward(router, want, scores, d_gates);
        sy::workspace scratch;
        for_each_policy([&](const auto& policy) {
            for (const index_t block : {1, 8}) {
                sy::plan<float> plan;
                plan.set_row_block(block);
                sy::route_scores(policy, router, column_major::layout<float>(scores).view(), training_with(), plan,
                                 scratch);
                CHECK(experts_of(plan.view()) == experts_of(want.view()));
                CHECK(slots_of(plan.view()) == slots_of(want.view()));
                CHECK(difference(gates_of(plan.view()), gates_of(want.view())) == 0);
                CHECK(plan.load_balancing_loss() == want.load_balancing_loss());
                CHECK(plan.kept() == want.kept());
                for (index_t e = 0; e < 14; ++e) {
                    const index_t load = plan.view().load_after[e];
                    CHECK(plan.offset(e + 1) - plan.offset(e) == (load + block - 1) / block * block);
                    for (index_t r = plan.offset(e); r < plan.offset(e + 1); ++r) {
                        const std::int64_t position = plan.view().order[r];
                        const bool is_right = r - plan.offset(e) >= load ? position == -1
                                                                         : plan.view().expert[position] == e &&
                                                                               plan.view().row_of(position) == r;
                        if (!is_right) FAIL("row ", r, " of expert ", e);
                    }
                }
                sy::matrix<float> d_scores(1000, 20);
                sy::route_scores_backward(policy, router, plan, stored<float>(scores), stored<float>(d_gates), d_scores,
                                          scratch);
                CHECK(difference(ref::matrix_from(sy::const_view(d_scores.view())), d_want) == 0);
            }
        });
    }
}

TEST_CASE("rowless: loads, statistics, biases and choices alone") {
    const auto scores = gaussian_scores(300, 12, 7);
    auto bias = spread(12, 5);
    const recipe router{.k = 3, .selection_bias = numbers_of(bias), .rowless = {.identity = 4}};
    const auto plan = routed<float>(router, scores);
    index_t real = 0;
    for (index_t i = 0; i < 900; ++i) real += plan.view().expert[i] < 8 ? 1 : 0;
    CHECK(real > 300);
    CHECK(real < 800);
    const auto found = sy::statistics(plan);
    CHECK(found.asked == real);
    CHECK(found.kept == real);
    CHECK(found.dropped == 0);
    CHECK(plan.kept() == real);
    std::vector<sy::choice_statistics> by_choice(3);
    sy::statistics_of_choices(sy::seq, plan, by_choice);
    CHECK(by_choice[0].asked + by_choice[1].asked + by_choice[2].asked == real);
    CHECK(by_choice[0].rowless + by_choice[1].rowless + by_choice[2].rowless == 900 - real);
    // A bias of all columns, of which those with rows move.
    sy::bias_state state(sy::seq, 12, {.rate = 0.5f, .rowless = 4});
    state.update(sy::seq, plan);
    for (index_t e = 0; e < 12; ++e) {
        const index_t load = e < 8 ? plan.view().load_before[e] * 8 : real;
        CHECK(state.view()(0, e) == (load < real ? 0.5f : load > real ? -0.5f : 0.0f));
    }
    // Choices alone name the same experts, with the same gates.
    const auto [ids, gates] = sy::route_choices(sy::seq, router, stored<float>(scores));
    CHECK(std::equal(ids.data(), ids.data() + 900, plan.view().expert));
    CHECK(std::equal(gates.data(), gates.data() + 900, plan.view().gate));
}

TEST_CASE("rowless: a saved plan has them, and a router with others does not take it") {
    const auto scores = gaussian_scores(50, 9, 7);
    const auto d_gates = gaussian_scores(50, 2, 1);
    const recipe router{.k = 2, .rowless = {.identity = 2, .zero = 1}, .balance_weight = 0.1};
    const auto plan = routed<float>(router, scores);
    const auto mode = sy::run_mode(training_with());
    const auto again = sy::plan_from_saved(router, mode, sy::saved_arrays_of(plan));
    CHECK(again.origin == plan.view().origin);
    sy::workspace scratch;
    sy::matrix<float> d_scores(50, 9);
    sy::route_scores_backward(sy::seq, router, again, stored<float>(scores), stored<float>(d_gates), d_scores, scratch);
    CHECK(difference(ref::matrix_from(sy::const_view(d_scores.view())),
                     routed_backward(router, plan, scores, d_gates)) == 0);
    recipe other = router;
    other.rowless = {.identity = 3};
    CHECK(sentence_of([&] { routed_backward(other, plan, scores, d_gates); }) ==
          "the plan was made by a router with other settings");
    CHECK(sentence_of([&] { routed_backward(router, plan, gaussian_scores(50, 6, 1), d_gates); }) ==
          "the plan was made for 50 tokens x 9 experts, not for 50 x 6");
}

TEST_CASE_TEMPLATE("rowless: shared experts against the reference, forward and backward", S, float, double) {
    int turn = 0;
    for (const index_t columns : {3, 10, 34}) {
        for (const index_t k : {1, 2, 6}) {
            for (const auto function : {score_function::sigmoid, score_function::sqrt_softplus}) {
                for (const auto sum : {gate_sum::none, gate_sum::add, gate_sum::clamp, gate_sum::norm}) {
                    ++turn;
                    recipe router{.k = k, .score = function, .normalize = sum};
                    router.rowless.shared = columns == 3 ? 1 : 2;
                    if (k > columns - router.rowless.shared) continue;
                    if (sum == gate_sum::add || sum == gate_sum::clamp) router.epsilon = turn % 2 == 0 ? 0.25 : 0;
                    router.scale = turn % 2 == 0 ? 1 : 8;
                    const auto scales = spread(columns, 3);
                    if (turn % 5 == 0) router.expert_scale = numbers_of(scales);
                    const auto bias = spread(columns - router.rowless.shared, 7);
                    if (turn % 2 == 0 && sizeof(S) == 8) router.selection_bias = numbers_of(bias);
                    if (columns > 4 && turn % 4 < 2 && sizeof(S) == 8 && k <= columns / 4) {
                        router.groups = {.count = 4, .kept = 2};
                    }
                    if (turn % 3 != 1) router.capacity = {.factor = 0.7};
                    if (turn % 4 == 0) router.z_weight = 0.01;
                    if (turn % 5 < 3) router.balance_weight = 0.02;
                    if (turn % 2 == 0) router.balance = sy::balance_count::all;
                    if (turn % 7 == 0 && turn % 5 != 0) router.order = sy::drop_order::gate;
                    constexpr index_t counts[] = {1, 3, 50, 600};
                    const index_t tokens = counts[turn % 4];
                    const int forbidden = turn % 3 == 0 ? 60 : 0;
                    if (forbidden > 0) router.capacity = {.number = 1 + tokens / 4};
                    router.inference_capacity = router.capacity;
                    const auto scores =
                        draw_scores(score_kind::gaussian, tokens, columns, static_cast<std::uint64_t>(turn), forbidden);
                    CAPTURE(columns);
                    CAPTURE(k);
                    CAPTURE(static_cast<int>(sum));
                    CAPTURE(turn);
                    const auto mask = turn % 2 == 0 ? draw_mask(tokens, 5) : ref::mask_list{};
                    const auto d_gates = gaussian_scores(tokens, k + router.rowless.shared, 8);
                    CHECK(routing_mismatch<S>(router, scores, mask) == "");
                    CHECK(routing_mismatch<S>(router, scores, mask, false) == "");
                    CHECK(backward_mismatch<S>(router, scores, d_gates, mask) == "");
                }
            }
        }
    }
    CHECK(turn == 72);
}

TEST_CASE("rowless: Inkling's experts, weights and gradients are those of its own code") {
    const std::vector<float> bias(std::begin(recorded::inkling_bias), std::end(recorded::inkling_bias));
    const auto router = sy::router_of(
        models::inkling{.global_scale = static_cast<double>(recorded::inkling_global_scale[0])}, numbers_of(bias));
    const auto logits = recorded_table<double>(std::span<const float>(recorded::inkling_logits), 34);
    const auto choices = recorded_table<index_t>(std::span<const short>(recorded::inkling_choices), 6);
    const auto weights = recorded_table<double>(std::span<const float>(recorded::inkling_weights), 6);
    const auto shared = recorded_table<double>(std::span<const float>(recorded::inkling_shared_weights), 2);
    const auto d_weights = recorded_table<double>(std::span<const float>(recorded::inkling_d_weights), 6);
    const auto plan = routed<float>(router, logits);
    CHECK(plan.experts() == 32);
    CHECK(plan.choices() == 8);
    ref::matrix d_gates(logits.rows, 8);
    for (index_t t = 0; t < logits.rows; ++t) {
        for (index_t i = 0; i < 6; ++i) {
            index_t found = -1;
            for (index_t c = 0; c < 6; ++c) found = plan.expert()(t, c) == choices(t, i) ? c : found;
            REQUIRE(found >= 0);
            CHECK(plan.slot()(t, found) >= 0);
            CHECK(static_cast<double>(plan.gate()(t, found)) == doctest::Approx(weights(t, i)).epsilon(1e-6));
            d_gates(t, found) = d_weights(t, i);
        }
        for (index_t c = 0; c < 2; ++c) {
            CHECK(plan.expert()(t, 6 + c) == 32 + c);
            CHECK(plan.slot()(t, 6 + c) == -1);
            CHECK(static_cast<double>(plan.gate()(t, 6 + c)) == doctest::Approx(shared(t, c)).epsilon(1e-6));
        }
    }
    CHECK(table_mismatch(routed_backward(router, plan, logits, d_gates),
                         recorded_table<double>(std::span<const float>(recorded::inkling_d_logits), 34), 2e-6,
                         8) == "");
    // Nothing of them is combined: what they run on is the caller's.
    const auto rows = stored<float>(gaussian_scores(plan.kept(), 3, 1));
    const auto y = sy::combine(sy::seq, plan, rows);
    const auto x = stored<float>(gaussian_scores(logits.rows, 3, 2));
    const auto same = sy::combine(sy::seq, plan, rows, sy::identity_of{x});
    CHECK(std::equal(y.data(), y.data() + y.rows() * 3, same.data()));
    // Given choices are those of the token's own; the shared ones come behind them.
    recipe replay = router;
    sy::matrix<std::int32_t> ids(logits.rows, 6);
    for (index_t t = 0; t < logits.rows; ++t) {
        for (index_t c = 0; c < 6; ++c) ids.data()[t * 6 + c] = plan.expert()(t, c);
    }
    replay.choices = ids.view();
    const auto again = routed<float>(replay, logits);
    CHECK(experts_of(again.view()) == experts_of(plan.view()));
    CHECK(difference(gates_of(again.view()), gates_of(plan.view())) == 0);
}

TEST_CASE("rowless: a plan of the same choices and gates") {
    const auto scores = draw_scores(score_kind::gaussian, 300, 12, 7, 60);
    const auto mask = draw_mask(300, 3);
    for (const index_t capacity : {index_t{20}, index_t{1000}}) {
        const recipe router{.k = 3, .capacity = {.number = capacity}, .rowless = {.identity = 3, .zero = 2}};
        const auto made = routed<float>(router, scores, training_with(mask));
        recipe keeps_all = router;
        keeps_all.capacity = {.number = 1000};
        const auto all = routed<float>(keeps_all, scores, training_with(mask));
        sy::matrix<std::int64_t> ids(300, 3);
        sy::matrix<float> gates(300, 3);
        for (index_t i = 0; i < 900; ++i) {
            const bool is_forbidden = all.view().slot[i] < 0 && all.view().gate[i] == 0 && all.view().expert[i] < 7;
            ids.data()[i] = is_forbidden ? -1 : all.view().expert[i];
            gates.data()[i] = all.view().gate[i];
        }
        const auto plan = sy::plan_from_choices(
            sy::seq, ids, gates, 7, {.capacity = {.number = capacity}, .rowless = {.identity = 3, .zero = 2}});
        CHECK(plan.view().origin.rowless == router.rowless);
        CHECK(slots_of(plan.view()) == slots_of(made.view()));
        CHECK(difference(gates_of(plan.view()), gates_of(made.view())) == 0);
        CHECK(list_of(plan.view().load_before, 7) == list_of(made.view().load_before, 7));
        CHECK(plan.kept() == made.kept());
        for (index_t i = 0; i < 900; ++i) {
            if (ids.data()[i] >= 0) CHECK(plan.view().expert[i] == made.view().expert[i]);
            CHECK(plan.view().adds_token(i) == made.view().adds_token(i));
        }
    }
    const sy::matrix<std::int32_t> two = [] {
        sy::matrix<std::int32_t> ids(1, 3);
        ids.data()[0] = 4;
        ids.data()[1] = 4;
        ids.data()[2] = 5;
        return ids;
    }();
    const auto twice = sy::plan_from_choices(sy::seq, two, 4, {.rowless = {.identity = 1}});
    CHECK(experts_of(twice.view()) == ref::integers{{4, 4, -1}});
    CHECK(difference(gates_of(twice.view()), ref::matrix{{1, 1, 0}}) == 0);
    CHECK(sentence_of([&] { sy::plan_from_choices(sy::seq, two, 4, {.rowless = {.zero = -1}}); }) ==
          "rowless experts are 0 identity, -1 zero and 0 shared ones: none may be negative");
}

TEST_CASE("rowless: the page's example") {
    const sy::matrix<float> scores = stored<float>(gaussian_scores(20, 12, 1));
    const sy::matrix<float> x = stored<float>(gaussian_scores(20, 5, 2));
    const std::vector<float> list(12);
    const sy::expert_numbers<> bias{list.data(), 12};
    const auto experts = [](const sy::plan<float>&, sy::matrix<float> rows) { return rows; };
    const sy::matrix<float> d_y = stored<float>(gaussian_scores(20, 5, 3));
    // [rowless]
    // scores[T, 8 + 4]: the last four of twelve experts are the identity.
    const auto router =
        sy::router_of(sy::models::longcat_flash{.moe_topk = 3, .routed_scaling_factor = 1, .zero_expert_num = 4}, bias);
    const auto plan = sy::route_scores(sy::par, router, scores, sy::training{});  // of 8 experts
    const auto rows = experts(plan, sy::dispatch(sy::par, plan, x));              // kept choices of these
    const auto y = sy::combine(sy::par, plan, rows, sy::identity_of{x});          // and the tokens of the others

    const auto [d_rows, d_gates, d_x] = sy::combine_backward(sy::par, plan, rows, sy::identity_of{x}, d_y);
    const auto d_scores = sy::route_scores_backward(sy::par, router, plan, scores, d_gates);
    // [/rowless]
    CHECK(plan.experts() == 8);
    CHECK(y.rows() == 20);
    CHECK(d_rows.rows() == rows.rows());
    CHECK(d_scores.columns() == 12);
    index_t kept = 0;
    index_t added = 0;
    for (index_t i = 0; i < 60; ++i) {
        kept += plan.view().slot[i] >= 0 ? 1 : 0;
        added += plan.view().adds_token(i) ? 1 : 0;
    }
    CHECK(kept == plan.kept());
    CHECK(kept + added == 60);
    CHECK(added > 0);
    // Every expert is the identity here, so y is the token times the sum of its gates.
    for (index_t t = 0; t < 20; ++t) {
        const float sum = plan.gate()(t, 0) + plan.gate()(t, 1) + plan.gate()(t, 2);
        for (index_t j = 0; j < 5; ++j) CHECK(y(t, j) == doctest::Approx(sum * x(t, j)).epsilon(1e-5));
    }
    CHECK(d_x.columns() == 5);
}

TEST_CASE("rowless: the balance loss as a function of its own counts experts with rows alone") {
    const auto scores = gaussian_scores(300, 12, 7);
    for (const auto count : {sy::choice_count::first, sy::choice_count::all}) {
        const recipe router{
            .k = 3,
            .rowless = {.identity = 4},
            .balance_weight = 0.5,
            .balance = count == sy::choice_count::first ? sy::balance_count::first : sy::balance_count::all};
        const auto plan = routed<double>(router, scores);
        const sy::balance_loss_settings settings{.weight = 0.5 * 8 / 12, .count = count};
        sy::matrix<double> sums(1, sy::balance_columns(12));
        sy::workspace scratch;
        sy::write_balance_sums(sy::seq, stored<double>(scores), plan, settings, sy::token_sequences<>{}, sums, scratch);
        CHECK(sy::balance_loss(settings, sums) == doctest::Approx(plan.load_balancing_loss()).epsilon(1e-12));
        sy::matrix<double> d_scores(300, 12);
        sy::balance_loss_backward(sy::seq, stored<double>(scores), settings, sy::token_sequences<>{}, sums, d_scores,
                                  scratch);
        CHECK(difference(ref::matrix_from(sy::const_view(d_scores.view())),
                         routed_backward(router, plan, scores, ref::matrix(300, 3))) < 1e-12);
    }
}

TEST_CASE("rowless: refusals") {
    const auto scores = gaussian_scores(5, 4, 1);
    const auto sentence = [&](const sy::rowless_experts& rowless) {
        return sentence_of([&] { routed<float>(recipe{.k = 2, .rowless = rowless}, scores); });
    };
    CHECK(sentence({.identity = -1}) == "rowless.identity = -1 must not be negative");
    CHECK(sentence({.zero = -2}) == "rowless.zero = -2 must not be negative");
    CHECK(sentence({.identity = 3, .zero = 1}) ==
          "rowless experts are 3 identity and 1 zero ones of 4 columns: at least one expert must have rows");
    CHECK(sentence({.identity = 4}) ==
          "rowless experts are 4 identity and 0 zero ones of 4 columns: at least one expert must have rows");
    CHECK(sentence({.identity = 2, .zero = 1}).empty());
    CHECK(sentence({.shared = -1}) == "rowless.shared = -1 must not be negative");
    CHECK(sentence({.shared = 4}) == "rowless.shared = 4 must lie in 0..E - 1 = 3");
    CHECK(sentence({.identity = 1, .shared = 1}) == "rowless.shared = 1 experts exclude identity and zero experts");
    CHECK(sentence({.shared = 1}) ==
          "rowless.shared = 1 experts need values that are no softmax, which is of all columns");
    CHECK(sentence_of([&] {
              routed<float>(recipe{.k = 3, .score = score_function::sigmoid, .rowless = {.shared = 2}}, scores);
          }) == "k = 3 must lie in 1..E = 2");
}

TEST_CASE("rowless: rows sorted by token leave gates, the sum of combine and gradients as they are") {
    const auto scores = stored<double>(gaussian_scores(40, 7, 3));
    const sy::recipe_router<> router{.k = 3, .rowless = {.identity = 2}};
    sy::plan<double> plan;
    sy::workspace scratch;
    sy::route_scores(sy::seq, router, scores, training_with(), plan, scratch);
    const auto x = stored<double>(gaussian_scores(40, 5, 4));
    const auto d_gates = stored<double>(gaussian_scores(40, 3, 5));
    const auto step = [&] {
        const auto rows = sy::dispatch(sy::seq, plan, x);
        const auto y = sy::combine(sy::seq, plan, rows, sy::identity_of{x});
        const auto d_scores = sy::route_scores_backward(sy::seq, router, plan, scores, d_gates);
        std::vector<double> all(plan.gate().data, plan.gate().data + 120);
        all.insert(all.end(), y.data(), y.data() + 200);
        all.insert(all.end(), d_scores.data(), d_scores.data() + 280);
        return all;
    };
    const auto before = step();
    sy::sort_rows_by_token(sy::seq, plan, scratch);
    CHECK(step() == before);
}

TEST_CASE("rowless: a plan of given choices has the router's capacity, and ids that there are") {
    const auto scores = stored<double>(gaussian_scores(64, 6, 3));
    const sy::recipe_router<> router{.k = 2, .capacity = {.factor = 1.0}, .rowless = {.identity = 2}};
    const auto plan = sy::route_scores(sy::seq, router, scores, training_with());
    const auto replayed =
        sy::plan_from_choices(sy::seq, plan.expert(), plan.gate(), 4, {.capacity = {.factor = 1.0}, .rowless = {2}});
    CHECK(replayed.view().capacity == plan.view().capacity);
    CHECK(plan.view().capacity == 21);
    CHECK_THROWS_AS(
        sy::plan_from_choices(sy::seq, plan.expert(), plan.gate(), 4, {.rowless = {.identity = index_t{1} << 40}}),
        sy::error);
}

TEST_CASE("rowless: values that are tiny beside a zero expert's have gates, and no infinite gradient") {
    const sy::recipe_router<> router{.k = 3, .normalize = sy::gate_sum::add, .scale = 6, .rowless = {.zero = 1}};
    const ref::matrix scores{{-84.0, -84.5, -90.0, 0.0}};
    const auto plan = routed<float>(router, scores);
    CHECK(plan.gate()(0, 1) + plan.gate()(0, 2) == doctest::Approx(6));
    const auto d = routed_backward<float>(router, plan, scores, {{1, 20, -20}});
    for (index_t e = 0; e < 4; ++e) CHECK(std::isfinite(d(0, e)));
}

TEST_CASE("rowless: the loss of all choices counts a token's own, not its shared experts") {
    const auto scores = gaussian_scores(50, 6, 9);
    const sy::recipe_router<> router{.k = 2,
                                     .score = sy::score_function::sigmoid,
                                     .rowless = {.shared = 1},
                                     .balance_weight = 1,
                                     .balance = sy::balance_count::all};
    const auto plan = routed<double>(router, scores);
    const sy::balance_loss_settings settings{.weight = 5.0 / 6, .count = sy::choice_count::all};
    sy::matrix<double> sums(1, sy::balance_columns(6));
    sy::workspace scratch;
    sy::write_balance_sums(sy::seq, stored<double>(scores), plan, settings, sy::token_sequences<>{}, sums, scratch);
    CHECK(sy::balance_loss(settings, sums) == doctest::Approx(plan.load_balancing_loss()).epsilon(1e-12));
}
