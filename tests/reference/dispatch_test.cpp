#include "numeric.hpp"

#include <switchyard/reference/dispatch.hpp>
#include <switchyard/reference/switch_router.hpp>
#include <switchyard/reference/top_k.hpp>

#include <doctest/doctest.h>

#include <cmath>
#include <vector>

using namespace switchyard_test;
using ref::gates_weigh;

namespace {

const sy::noise_key key{.seed = 7, .stream = 1, .step = 2};

/// Applies expert e's own matrix to its rows.
ref::matrix apply_experts(const ref::plan& made, const ref::matrix& rows, const std::vector<ref::matrix>& experts) {
    ref::matrix output(rows.rows, experts[0].columns);
    for (sy::index_t e = 0; e < made.experts_count; ++e) {
        for (sy::index_t r = made.offsets[e]; r < made.offsets[e + 1]; ++r) {
            for (sy::index_t j = 0; j < output.columns; ++j) {
                for (sy::index_t i = 0; i < rows.columns; ++i) {
                    output(r, j) += rows(r, i) * experts[static_cast<std::size_t>(e)](i, j);
                }
            }
        }
    }
    return output;
}

}  // namespace

TEST_CASE("reference dispatch and combine: Switch by hand, a dropped token gets zeros") {
    const ref::switch_router router{.capacity = {.number = 1}};
    const auto made = ref::route_scores(router, logarithm({{0.75, 0.25}, {0.5, 0.5}, {0.2, 0.8}}));
    const ref::matrix x{{1, 2}, {3, 4}, {5, 6}};
    const auto rows = ref::dispatch(made, x);
    CHECK(rows == ref::matrix{{1, 2}, {5, 6}});
    const auto y = ref::combine(made, {{4, 8}, {10, 20}});
    CHECK(difference(y, {{3, 6}, {0, 0}, {8, 16}}) < 1e-14);
    ref::matrix residual = x;
    ref::combine_onto(made, {{4, 8}, {10, 20}}, gates_weigh::output, residual);
    CHECK(difference(residual, {{4, 8}, {3, 4}, {13, 22}}) < 1e-14);

    CHECK(difference(ref::dispatch(made, x, gates_weigh::input), {{0.75, 1.5}, {4, 4.8}}) < 1e-14);
    CHECK(ref::combine(made, {{4, 8}, {10, 20}}, gates_weigh::input) == ref::matrix{{4, 8}, {0, 0}, {10, 20}});
}

TEST_CASE("reference dispatch and combine: identity experts give back the sum of gates times x") {
    const auto scores = gaussian(20, 5, 1);
    const auto x = gaussian(20, 3, 2);
    const auto made = ref::route_scores(ref::top_k_router{.k = 3, .renormalize = true}, scores);
    for (const auto weighed : {gates_weigh::output, gates_weigh::input}) {
        CHECK(difference(ref::combine(made, ref::dispatch(made, x, weighed), weighed), x) < 1e-14);
    }
}

TEST_CASE("reference dispatch and combine: jitter never reaches what experts receive") {
    const auto x = gaussian(20, 3, 2);
    const ref::switch_router router{.capacity = {}, .noise = {.input_jitter = 0.5f, .input_dropout = 0.5f}};
    const auto made = ref::route(router, x, gaussian(3, 4, 3), {}, key);
    const auto rows = ref::dispatch(made, x);
    for (sy::index_t r = 0; r < made.kept(); ++r) {
        for (sy::index_t d = 0; d < 3; ++d) CHECK(rows(r, d) == x(made.order[r], d));
    }
}

TEST_CASE("reference dispatch and combine: nothing kept, no tokens, no columns") {
    const auto none = ref::route_scores(ref::switch_router{.capacity = {.number = 0}}, gaussian(4, 2, 1));
    CHECK(ref::dispatch(none, gaussian(4, 3, 1)) == ref::matrix(0, 3));
    CHECK(ref::combine(none, ref::matrix(0, 3)) == ref::matrix(4, 3));
    CHECK(ref::dispatch_backward(none, gaussian(4, 3, 1), ref::matrix(0, 3)).d_x == ref::matrix(4, 3));
    const auto empty = ref::route_scores(ref::switch_router{}, ref::matrix(0, 2));
    CHECK(ref::combine(empty, ref::matrix(0, 3)) == ref::matrix(0, 3));
    CHECK(ref::dispatch(ref::route_scores(ref::switch_router{.capacity = {}}, gaussian(4, 2, 1)), ref::matrix(4, 0)) ==
          ref::matrix(4, 0));
}

TEST_CASE("reference dispatch and combine: shapes that do not fit are refused") {
    const auto made = ref::route_scores(ref::switch_router{.capacity = {}}, gaussian(4, 2, 1));
    CHECK_THROWS_WITH_AS(ref::dispatch(made, ref::matrix(3, 2)), "x has 3 rows; the plan has 4 tokens", sy::error);
    CHECK_THROWS_AS(ref::combine(made, ref::matrix(3, 2)), sy::error);
    CHECK_THROWS_AS(ref::combine_backward(made, ref::matrix(4, 2), ref::matrix(4, 3)), sy::error);
    CHECK_THROWS_AS(ref::dispatch_backward(made, ref::matrix(4, 2), ref::matrix(4, 3)), sy::error);
    ref::matrix y(4, 3);
    CHECK_THROWS_AS(ref::combine_onto(made, ref::matrix(4, 2), gates_weigh::output, y), sy::error);
}

TEST_CASE("reference dispatch and combine: gradients of x, expert outputs and gates by central differences") {
    const auto scores = gaussian(10, 4, 1);
    const auto made = ref::route_scores(ref::top_k_router{.k = 2, .capacity = {.factor = 0.8}}, scores);
    REQUIRE(made.kept() < 20);
    const auto x = gaussian(10, 3, 2);
    const auto output = gaussian(made.kept(), 3, 3);
    const auto d_y = gaussian(10, 3, 4);
    const auto d_rows = gaussian(made.kept(), 3, 5);
    for (const auto weighed : {gates_weigh::output, gates_weigh::input}) {
        const auto back = ref::combine_backward(made, output, d_y, weighed);
        const auto by_output = numeric_gradient(
            [&](const ref::matrix& at) { return inner(d_y, ref::combine(made, at, weighed)); }, output);
        CHECK(difference(back.d_expert_output, by_output) < 1e-8);

        const auto forth = ref::dispatch_backward(made, x, d_rows, weighed);
        const auto by_x =
            numeric_gradient([&](const ref::matrix& at) { return inner(d_rows, ref::dispatch(made, at, weighed)); }, x);
        CHECK(difference(forth.d_x, by_x) < 1e-8);

        const auto with_gates = [&](const ref::matrix& gates) {
            auto changed = made;
            changed.gates = gates;
            return changed;
        };
        const auto by_gates_of_y = numeric_gradient(
            [&](const ref::matrix& at) { return inner(d_y, ref::combine(with_gates(at), output, weighed)); },
            made.gates);
        const auto by_gates_of_rows = numeric_gradient(
            [&](const ref::matrix& at) { return inner(d_rows, ref::dispatch(with_gates(at), x, weighed)); },
            made.gates);
        CHECK(difference(back.d_gates, by_gates_of_y) < 1e-8);
        CHECK(difference(forth.d_gates, by_gates_of_rows) < 1e-8);
    }
}

TEST_CASE("reference: a whole layer, tokens to output, by central differences") {
    const auto x = gaussian(9, 4, 1);
    const auto w = gaussian(4, 3, 2);
    const std::vector<ref::matrix> experts{gaussian(4, 4, 3), gaussian(4, 4, 4), gaussian(4, 4, 5)};
    const auto d_y = gaussian(9, 4, 6);
    const ref::top_k_router router{
        .k = 2, .capacity = {.factor = 0.8}, .noise = {.input_jitter = 0.3f}, .balance_weight = 0.7, .z_weight = 0.3};
    for (const auto weighed : {gates_weigh::output, gates_weigh::input}) {
        const auto loss = [&](const ref::matrix& tokens, const ref::matrix& weights) {
            const auto made = ref::route(router, tokens, weights, {}, key);
            const auto output = apply_experts(made, ref::dispatch(made, tokens, weighed), experts);
            return inner(d_y, ref::combine(made, output, weighed)) + made.load_balancing_loss + made.z_loss;
        };
        // Backward, piece by piece: combine, experts, dispatch, router.
        const auto made = ref::route(router, x, w, {}, key);
        REQUIRE(made.kept() < 18);
        const auto output = apply_experts(made, ref::dispatch(made, x, weighed), experts);
        const auto after = ref::combine_backward(made, output, d_y, weighed);
        std::vector<ref::matrix> experts_transposed;
        for (const auto& expert : experts) experts_transposed.push_back(ref::transpose(expert));
        const auto d_rows = apply_experts(made, after.d_expert_output, experts_transposed);
        const auto before = ref::dispatch_backward(made, x, d_rows, weighed);
        auto d_gates = after.d_gates;
        for (sy::index_t i = 0; i < d_gates.values.length(); ++i) d_gates.values[i] += before.d_gates.values[i];
        auto [d_x, d_w] = ref::route_backward(router, made, x, w, d_gates, {}, key);
        for (sy::index_t i = 0; i < d_x.values.length(); ++i) d_x.values[i] += before.d_x.values[i];

        CHECK(difference(d_x, numeric_gradient([&](const ref::matrix& at) { return loss(at, w); }, x)) < 1e-7);
        CHECK(difference(d_w, numeric_gradient([&](const ref::matrix& at) { return loss(x, at); }, w)) < 1e-7);
    }
}
