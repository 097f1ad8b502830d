// Gradients of the library's double path by central differences of
//   total = sum gates * weights + load-balancing loss + z-loss
// away from ties, so that choices stay what they are.
#include "reference/numeric.hpp"
#include "support/routed.hpp"
#include "support/score_gradient.hpp"

#include <switchyard/dispatch/combine.hpp>
#include <switchyard/dispatch/dispatch.hpp>
#include <switchyard/router/route.hpp>
#include <switchyard/router/switch.hpp>
#include <switchyard/router/top_k.hpp>

#include <doctest/doctest.h>

#include <cmath>

using namespace switchyard_test;

namespace {

const ref::mask_list some_padding{1, 1, 0, 1, 1, 1, 1, 0, 1, 1, 1, 1};

double total(const sy::plan<double>& plan, const ref::matrix& weights) {
    return inner(gates_of(plan.view()), weights) + plan.load_balancing_loss() + plan.z_loss();
}

template <class Router>
double score_gradient_error(const Router& router, index_t k, const ref::matrix& scores, const ref::mask_list& mask) {
    return switchyard_test::score_gradient_error(router, scores, gaussian(scores.rows, k, 99), mask);
}

/// Gradients of tokens and weights.
template <class Router>
void check_projection_gradients(const Router& router, index_t k, const ref::mask_list& mask) {
    const auto x = gaussian(12, 10, 1);
    const auto w = gaussian(10, 5, 2);
    const auto weights = gaussian(12, k, 99);
    const auto route_at = [&](const ref::matrix& tokens, const ref::matrix& matrix) {
        sy::plan<double> plan;
        sy::workspace scratch;
        sy::route(sy::seq, router, stored<double>(tokens), stored<double>(matrix), training_with(mask), plan, scratch);
        return plan;
    };
    const auto plan = route_at(x, w);
    sy::workspace scratch;
    sy::matrix<double> d_x(12, 10);
    sy::matrix<double> d_w(10, 5);
    sy::route_backward(sy::seq, router, plan, stored<double>(x), stored<double>(w), stored<double>(weights), d_x, d_w,
                       scratch);
    const auto by_x = numeric_gradient([&](const ref::matrix& at) { return total(route_at(at, w), weights); }, x);
    const auto by_w = numeric_gradient([&](const ref::matrix& at) { return total(route_at(x, at), weights); }, w);
    CHECK(difference(ref::matrix_from(sy::const_view(d_x.view())), by_x) < 1e-8);
    CHECK(difference(ref::matrix_from(sy::const_view(d_w.view())), by_w) < 1e-8);
}

}  // namespace

TEST_CASE("gradient: switch, every term and option") {
    // Weights far above the papers', so that an error in a loss's gradient shows.
    sy::switch_router router{.capacity = {.factor = 0.8}, .balance_weight = 0.7, .z_weight = 0.3};
    auto scores = gaussian(12, 5, 3);
    SUBCASE("gates and losses") { CHECK(score_gradient_error(router, 1, scores, {}) < 1e-8); }
    SUBCASE("gates alone") {
        router.balance_weight = router.z_weight = 0;
        CHECK(score_gradient_error(router, 1, scores, {}) < 1e-8);
    }
    SUBCASE("mask") { CHECK(score_gradient_error(router, 1, scores, some_padding) < 1e-8); }
    SUBCASE("batch priority") {
        router.order = sy::drop_order::gate;
        CHECK(score_gradient_error(router, 1, scores, some_padding) < 1e-8);
    }
    SUBCASE("no token left behind") {
        router.no_token_left_behind = 3;
        CHECK(score_gradient_error(router, 1, scores, {}) < 1e-8);
    }
    SUBCASE("logit jitter and sampling") {
        router.logit_jitter = 0.4f;
        router.sample_temperature = 1.5f;
        CHECK(score_gradient_error(router, 1, scores, some_padding) < 1e-8);
    }
    SUBCASE("forbidden experts") {
        scores(1, 0) = scores(1, 2) = scores(4, 3) = never;
        for (index_t e = 0; e < 5; ++e) scores(6, e) = never;
        CHECK(score_gradient_error(router, 1, scores, {}) < 1e-8);
    }
    SUBCASE("more experts than a pack holds") { CHECK(score_gradient_error(router, 1, gaussian(9, 37, 4), {}) < 1e-8); }
}

TEST_CASE("gradient: top-k, every term and option") {
    sy::top_k_router router{.k = 3, .capacity = {.factor = 0.8}, .balance_weight = 0.7, .z_weight = 0.3};
    auto scores = gaussian(12, 6, 5);
    SUBCASE("softmax before") { CHECK(score_gradient_error(router, 3, scores, some_padding) < 1e-8); }
    SUBCASE("renormalised, with choices that capacity drops") {
        router.renormalize = true;
        CHECK(score_gradient_error(router, 3, scores, some_padding) < 1e-8);
    }
    SUBCASE("softmax after") {
        router.softmax = sy::softmax_order::after;
        CHECK(score_gradient_error(router, 3, scores, {}) < 1e-8);
    }
    SUBCASE("the loss counts all choices") {
        router.balance = sy::balance_count::all;
        CHECK(score_gradient_error(router, 3, scores, {}) < 1e-8);
    }
    SUBCASE("logit jitter, renormalised") {
        router.logit_jitter = 0.4f;
        router.renormalize = true;
        CHECK(score_gradient_error(router, 3, scores, some_padding) < 1e-8);
    }
    SUBCASE("k = E") {
        router.k = 6;
        CHECK(score_gradient_error(router, 6, scores, {}) < 1e-8);
        router.renormalize = true;
        CHECK(score_gradient_error(router, 6, scores, {}) < 1e-8);
    }
    SUBCASE("forbidden experts among the choices") {
        scores(1, 0) = scores(1, 2) = scores(1, 3) = scores(1, 4) = scores(4, 3) = never;
        router.renormalize = true;
        CHECK(score_gradient_error(router, 3, scores, {}) < 1e-8);
        router.renormalize = false;
        CHECK(score_gradient_error(router, 3, scores, {}) < 1e-8);
    }
}

TEST_CASE("gradient: what stands in the gradient of a dropped gate is not read") {
    const sy::top_k_router router{.k = 2, .renormalize = true, .capacity = {.number = 2}};
    const auto scores = gaussian(12, 4, 6);
    const auto plan = routed<double>(router, scores, training_with(some_padding));
    auto weights = gaussian(12, 2, 7);
    const auto want = routed_backward(router, plan, scores, weights);
    index_t dropped = 0;
    for (index_t i = 0; i < weights.values.length(); ++i) {
        if (plan.view().slot[i] < 0) {
            weights.values[i] = NAN;
            ++dropped;
        }
    }
    CHECK(dropped > 8);
    CHECK(difference(routed_backward(router, plan, scores, weights), want) == 0);
}

TEST_CASE("gradient: from tokens to weights, with input noise") {
    sy::switch_router router{.capacity = {.factor = 0.8}, .balance_weight = 0.7, .z_weight = 0.3};
    SUBCASE("plain") { check_projection_gradients(router, 1, {}); }
    SUBCASE("mask") { check_projection_gradients(router, 1, some_padding); }
    SUBCASE("input jitter") {
        router.input_jitter = 0.3f;
        check_projection_gradients(router, 1, some_padding);
    }
    SUBCASE("input jitter and dropout") {
        router.input_jitter = 0.3f;
        router.input_dropout = 0.2f;
        check_projection_gradients(router, 1, {});
    }
    SUBCASE("top-k") {
        check_projection_gradients(
            sy::top_k_router{.k = 2, .renormalize = true, .input_jitter = 0.2f, .balance_weight = 0.7, .z_weight = 0.3},
            2, some_padding);
    }
}

namespace {

/// A layer: every expert e maps its rows r to tanh((e + 1) r), and total = sum y * d_y.
struct layer {
    sy::dispatch_settings in{};
    sy::combine_settings out{};

    static double expert_of(const sy::plan<double>& plan, index_t row) {
        const auto& p = plan.view();
        return 0.3 * (1.0 + static_cast<double>(p.expert[p.order[row]]));
    }
    double value(const sy::plan<double>& plan, const ref::matrix& x, const ref::matrix& d_y) const {
        auto rows = sy::dispatch(sy::seq, plan, stored<double>(x), in);
        for (index_t r = 0; r < rows.rows(); ++r) {
            for (index_t d = 0; d < rows.columns(); ++d) rows(r, d) = std::tanh(expert_of(plan, r) * rows(r, d));
        }
        sy::matrix<double> y(x.rows, x.columns);
        sy::combine(sy::seq, plan, rows, y, out);
        return inner(ref::matrix_from(sy::const_view(y.view())), d_y);
    }
    /// d_x and d_gates.
    std::pair<ref::matrix, ref::matrix> backward(const sy::plan<double>& plan, const ref::matrix& x,
                                                 const ref::matrix& d_y) const {
        auto rows = sy::dispatch(sy::seq, plan, stored<double>(x), in);
        sy::matrix<double> inputs(rows.rows(), rows.columns());
        std::copy(rows.data(), rows.data() + rows.rows() * rows.columns(), inputs.data());
        for (index_t r = 0; r < rows.rows(); ++r) {
            for (index_t d = 0; d < rows.columns(); ++d) rows(r, d) = std::tanh(expert_of(plan, r) * rows(r, d));
        }
        sy::matrix<double> d_rows(rows.rows(), rows.columns());
        sy::matrix<double> d_gates(x.rows, plan.choices());
        sy::matrix<double> d_x(x.rows, x.columns);
        sy::combine_backward(sy::seq, plan, rows, stored<double>(d_y), d_rows, d_gates, out);
        for (index_t r = 0; r < rows.rows(); ++r) {
            for (index_t d = 0; d < rows.columns(); ++d) {
                d_rows(r, d) *= expert_of(plan, r) * (1 - rows(r, d) * rows(r, d));
            }
        }
        if (in.apply_gates) {
            sy::dispatch_backward(sy::seq, plan, stored<double>(x), d_rows, d_x, d_gates);
        } else {
            sy::dispatch_backward(sy::seq, plan, d_rows, d_x);
        }
        return {ref::matrix_from(sy::const_view(d_x.view())), ref::matrix_from(sy::const_view(d_gates.view()))};
    }
};

void check_layer(const layer& moe) {
    const auto scores = gaussian(12, 5, 8);
    const auto x = gaussian(12, 7, 9);
    const auto d_y = gaussian(12, 7, 10);
    const sy::top_k_router router{.k = 2, .capacity = {.factor = 0.8}, .balance_weight = 0};
    const auto plan = routed<double>(router, scores, training_with(some_padding));
    const auto [d_x, d_gates] = moe.backward(plan, x, d_y);
    const auto by_x = numeric_gradient([&](const ref::matrix& at) { return moe.value(plan, at, d_y); }, x);
    CHECK(difference(d_x, by_x) < 1e-8);
    // Through gates to the scores: the whole layer's gradient.
    const auto by_scores = numeric_gradient(
        [&](const ref::matrix& at) {
            return moe.value(routed<double>(router, at, training_with(some_padding)), x, d_y);
        },
        scores);
    CHECK(difference(routed_backward(router, plan, scores, d_gates), by_scores) < 1e-8);
}

}  // namespace

TEST_CASE("gradient: a whole layer, gates on the experts' output") { check_layer({}); }

TEST_CASE("gradient: a whole layer, gates on the experts' input") {
    check_layer({.in = {.apply_gates = true}, .out = {.apply_gates = false}});
}
