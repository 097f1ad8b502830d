#include "numeric.hpp"

#include <switchyard/reference/switch_router.hpp>
#include <switchyard/reference/top_k.hpp>

#include <doctest/doctest.h>

#include <cmath>

using namespace switchyard_test;
using indices = ref::list<sy::index_t>;
using ref::balance_count;
using ref::softmax_place;

namespace {

const double never = -ref::infinity;
const sy::noise_key key{.seed = 7, .stream = 1, .step = 2};

/// Logits whose softmax has easy numbers.
const ref::matrix worked_scores = logarithm({{0.5, 0.3, 0.2}, {0.2, 0.6, 0.2}, {0.1, 0.6, 0.3}});

double total(const ref::plan& made, const ref::matrix& weights) {
    return inner(made.gates, weights) + made.load_balancing_loss + made.z_loss;
}

void check_gradients(const ref::top_k_router& router, const ref::matrix& scores, const ref::mask_list& mask,
                     const ref::maybe_noise& noise) {
    const auto weights = gaussian(scores.rows, router.k, 99);
    const auto made = ref::route_scores(router, scores, mask, noise);
    const auto numeric = numeric_gradient(
        [&](const ref::matrix& at) { return total(ref::route_scores(router, at, mask, noise), weights); }, scores);
    CHECK(difference(ref::route_scores_backward(router, made, scores, weights, mask, noise), numeric) < 1e-8);
}

}  // namespace

TEST_CASE("reference top-k: softmax before, plain and renormalised, and after") {
    const auto before = ref::route_scores(ref::top_k_router{.k = 2}, worked_scores);
    CHECK(before.experts == ref::integers{{0, 1}, {1, 0}, {1, 2}});  // token 1: experts 0 and 2 tie
    CHECK(difference(before.gates, {{0.5, 0.3}, {0.6, 0.2}, {0.6, 0.3}}) < 1e-15);
    CHECK(before.slots == ref::integers{{0, 2}, {0, 1}, {1, 0}});  // choice-major
    CHECK(before.offsets == indices{0, 2, 5, 6});
    CHECK(before.order == indices{0, 3, 2, 4, 1, 5});
    CHECK(before.load_before == indices{2, 3, 1});

    const ref::matrix normal{{0.5 / 0.8, 0.3 / 0.8}, {0.75, 0.25}, {0.6 / 0.9, 0.3 / 0.9}};
    CHECK(difference(ref::route_scores(ref::top_k_router{.k = 2, .renormalize = true}, worked_scores).gates, normal) <
          1e-15);
    CHECK(difference(ref::route_scores(ref::top_k_router{.k = 2, .softmax = softmax_place::after}, worked_scores).gates,
                     normal) < 1e-15);
}

TEST_CASE("reference top-k: the balance loss counts first choices or all k divided by k") {
    // P = (0.8, 1.5, 0.7) / 3.
    const auto first = ref::route_scores(ref::top_k_router{.k = 2, .balance_weight = 1}, worked_scores);
    CHECK(first.load_balancing_loss == doctest::Approx(3 * (1 * 0.8 + 2 * 1.5) / 9).epsilon(1e-14));
    const auto all =
        ref::route_scores(ref::top_k_router{.k = 2, .count = balance_count::all, .balance_weight = 1}, worked_scores);
    CHECK(all.load_balancing_loss == doctest::Approx(3 * (2 * 0.8 + 3 * 1.5 + 1 * 0.7) / 18).epsilon(1e-14));
}

TEST_CASE("reference top-k: capacity counts the choices, gates are normalised over dropped ones too") {
    const ref::top_k_router router{.k = 2, .renormalize = true, .capacity = {.factor = 0.5}};
    const auto made = ref::route_scores(router, worked_scores);
    CHECK(made.capacity == 1);  // 3 x 2 x 0.5 / 3
    CHECK(made.slots == ref::integers{{0, -1}, {0, -1}, {-1, 0}});
    CHECK(difference(made.gates, {{0.5 / 0.8, 0}, {0.75, 0}, {0, 0.3 / 0.9}}) < 1e-15);
    CHECK(made.load_before == indices{2, 3, 1});
    CHECK(made.load_after == indices{1, 1, 1});

    const ref::top_k_router by_gate{.k = 2, .capacity = {.number = 1}, .order = ref::drop_order::gate};
    const auto priority = ref::route_scores(by_gate, logarithm({{0.5, 0.3, 0.2}, {0.1, 0.6, 0.3}, {0.1, 0.7, 0.2}}));
    CHECK(priority.slots == ref::integers{{0, -1}, {-1, -1}, {0, 0}});
}

TEST_CASE("reference top-k: k = 1 is Switch") {
    const auto scores = gaussian(30, 6, 1);
    const ref::capacity_rule capacity{.factor = 1.0};
    const auto one = ref::route_scores(ref::top_k_router{.k = 1, .capacity = capacity, .z_weight = 1}, scores);
    const auto other = ref::route_scores(ref::switch_router{.capacity = capacity, .z_weight = 1}, scores);
    CHECK(one.experts == other.experts);
    CHECK(one.slots == other.slots);
    CHECK(one.gates == other.gates);
    CHECK(one.order == other.order);
    CHECK(one.load_balancing_loss == other.load_balancing_loss);
    CHECK(one.z_loss == other.z_loss);
}

TEST_CASE("reference top-k: k = 1 with softmax after has gate 1 and no gradient from it") {
    const ref::top_k_router router{.k = 1, .softmax = softmax_place::after, .balance_weight = 0};
    const auto scores = gaussian(4, 3, 1);
    const auto made = ref::route_scores(router, scores);
    CHECK(made.gates == ref::matrix(4, 1, 1.0));
    CHECK(ref::route_scores_backward(router, made, scores, ref::matrix(4, 1, 3.0)) == ref::matrix(4, 3));
}

TEST_CASE("reference top-k: forbidden experts are listed last and never kept") {
    const ref::matrix scores{{never, 1, never}, {2, 1, 0}};
    for (const auto place : {softmax_place::before, softmax_place::after}) {
        const ref::top_k_router router{.k = 3, .softmax = place, .renormalize = place == softmax_place::before};
        const auto made = ref::route_scores(router, scores);
        CHECK(made.experts == ref::integers{{1, 0, 2}, {0, 1, 2}});
        CHECK(made.slots == ref::integers{{0, -1, -1}, {0, 1, 0}});
        CHECK(made.gates(0, 0) == 1);
        CHECK(made.gates(0, 1) == 0);
        CHECK(made.load_before == indices{1, 2, 1});
        CHECK(made.load_after == made.load_before);
    }
}

TEST_CASE("reference top-k: a token forbidden everywhere is dropped, or an error without a capacity") {
    const ref::matrix scores{{never, never, never}, {2, 1, 0}};
    for (const auto place : {softmax_place::before, softmax_place::after}) {
        const ref::top_k_router router{.k = 2,
                                       .softmax = place,
                                       .renormalize = true,
                                       .capacity = {.number = 2},
                                       .balance_weight = 1,
                                       .z_weight = 1};
        const auto made = ref::route_scores(router, scores);
        CHECK(made.experts == ref::integers{{0, 1}, {0, 1}});
        CHECK(made.slots == ref::integers{{-1, -1}, {0, 0}});
        CHECK(made.gates(0, 0) == 0);
        CHECK(made.load_before == indices{1, 1, 0});
        CHECK(std::isfinite(made.load_balancing_loss));
        const auto d = ref::route_scores_backward(router, made, scores, ref::matrix(2, 2, 1.0));
        for (const double number : d.values) CHECK(std::isfinite(number));
        CHECK_THROWS_AS(ref::route_scores(ref::top_k_router{.k = 2, .softmax = place}, scores), sy::error);
    }
}

TEST_CASE("reference top-k: hostile shapes") {
    for (const sy::index_t k : {-1, 0, 4}) {
        CHECK_THROWS_AS(ref::route_scores(ref::top_k_router{.k = k}, worked_scores), sy::error);
    }
    CHECK(ref::route_scores(ref::top_k_router{.k = 3}, worked_scores).kept() == 9);
    CHECK(ref::route_scores(ref::top_k_router{.k = 2}, ref::matrix(0, 3)).offsets == indices{0, 0, 0, 0});
    const auto padding = ref::route_scores(ref::top_k_router{.k = 2}, worked_scores, {0, 0, 0});
    CHECK(padding.experts == ref::integers(3, 2, -1));
    CHECK(padding.load_balancing_loss == 0);
    const auto equal = ref::route_scores(ref::top_k_router{.k = 2}, ref::matrix(2, 4, 3.0));
    CHECK(equal.experts == ref::integers{{0, 1}, {0, 1}});
    CHECK(equal.gates == ref::matrix(2, 2, 0.25));
}

TEST_CASE("reference top-k: gradients by central differences") {
    auto scores = gaussian(10, 6, 21);
    scores(4, 1) = never;
    const ref::mask_list mask{1, 1, 0, 1, 1, 1, 1, 0, 1, 1};
    for (const auto count : {balance_count::first, balance_count::all}) {
        for (const sy::index_t k : {1, 2, 3, 5}) {
            for (const bool drops : {false, true}) {
                CAPTURE(k);
                CAPTURE(drops);
                ref::top_k_router router{.k = k, .count = count, .balance_weight = 0.7, .z_weight = 0.3};
                if (drops) router.capacity.factor = 0.7;
                check_gradients(router, scores, mask, {});
                router.renormalize = true;
                check_gradients(router, scores, mask, {});
                router.softmax = softmax_place::after;
                check_gradients(router, scores, mask, {});
                router.order = ref::drop_order::gate;
                router.noise = {.logit_jitter = 0.4f, .sample_temperature = 0.5f};
                check_gradients(router, scores, mask, key);
            }
        }
    }
}

TEST_CASE("reference top-k: all k = E choices forbidden but one still has exact gradients") {
    ref::matrix scores(1, 4, never);
    scores(0, 2) = 0.3;
    for (const bool renormalize : {false, true}) {
        check_gradients({.k = 4, .renormalize = renormalize, .balance_weight = 0.7, .z_weight = 0.3}, scores, {}, {});
    }
}

TEST_CASE("reference top-k: from tokens, gradients of x and w by central differences") {
    const auto x = gaussian(9, 5, 1);
    const auto w = gaussian(5, 4, 2);
    const auto weights = gaussian(9, 2, 3);
    const ref::top_k_router router{.k = 2,
                                   .renormalize = true,
                                   .capacity = {.factor = 1.0},
                                   .noise = {.input_jitter = 0.3f},
                                   .balance_weight = 0.7,
                                   .z_weight = 0.3};
    const auto made = ref::route(router, x, w, {}, key);
    const auto gradients = ref::route_backward(router, made, x, w, weights, {}, key);
    const auto by_x =
        numeric_gradient([&](const ref::matrix& at) { return total(ref::route(router, at, w, {}, key), weights); }, x);
    const auto by_w =
        numeric_gradient([&](const ref::matrix& at) { return total(ref::route(router, x, at, {}, key), weights); }, w);
    CHECK(difference(gradients.d_x, by_x) < 1e-8);
    CHECK(difference(gradients.d_w, by_w) < 1e-8);
}
