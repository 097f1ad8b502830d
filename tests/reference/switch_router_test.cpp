#include "numeric.hpp"

#include <switchyard/reference/switch_router.hpp>

#include <doctest/doctest.h>

#include <cmath>

using namespace switchyard_test;
using indices = ref::list<sy::index_t>;

namespace {

const double never = -ref::infinity;

/// Logits whose softmax is the worked table.
const ref::matrix worked_scores = logarithm({{0.7, 0.3}, {0.6, 0.4}, {0.2, 0.8}, {0.9, 0.1}});

const sy::noise_key key{.seed = 7, .stream = 1, .step = 2};

/// What backward differentiates: weighted gates plus both losses.
double total(const ref::plan& made, const ref::matrix& weights) {
    return inner(made.gates, weights) + made.load_balancing_loss + made.z_loss;
}

/// Checks the gradients of the scores and, from tokens, of x and w.
void check_gradients(const ref::switch_router& router, const ref::matrix& x, const ref::matrix& w,
                     const ref::mask_list& mask, const ref::maybe_noise& noise) {
    const auto weights = gaussian(x.rows, 1, 99);
    const auto scores = ref::project(router.noise, x, w, mask, noise);
    const auto made = ref::route_scores(router, scores, mask, noise);
    const auto by_scores = numeric_gradient(
        [&](const ref::matrix& at) { return total(ref::route_scores(router, at, mask, noise), weights); }, scores);
    CHECK(difference(ref::route_scores_backward(router, made, scores, weights, mask, noise), by_scores) < 1e-8);

    const auto gradients = ref::route_backward(router, made, x, w, weights, mask, noise);
    const auto by_x = numeric_gradient(
        [&](const ref::matrix& at) { return total(ref::route(router, at, w, mask, noise), weights); }, x);
    const auto by_w = numeric_gradient(
        [&](const ref::matrix& at) { return total(ref::route(router, x, at, mask, noise), weights); }, w);
    CHECK(difference(gradients.d_x, by_x) < 1e-8);
    CHECK(difference(gradients.d_w, by_w) < 1e-8);
}

}  // namespace

TEST_CASE("reference switch: the worked example") {
    const auto made = ref::route_scores(ref::switch_router{.capacity = {.factor = 1.0}}, worked_scores);
    CHECK(made.capacity == 2);
    CHECK(made.experts == ref::integers{{0}, {0}, {1}, {0}});
    CHECK(made.slots == ref::integers{{0}, {1}, {0}, {-1}});
    CHECK(difference(made.gates, {{0.7}, {0.6}, {0.8}, {0}}) < 1e-15);
    CHECK(made.offsets == indices{0, 2, 3});
    CHECK(made.order == indices{0, 1, 2});
    CHECK(made.load_before == indices{3, 1});
    CHECK(made.load_after == indices{2, 1});
    CHECK(made.load_balancing_loss == doctest::Approx(0.011).epsilon(1e-14));
    CHECK(made.z_loss == 0);
}

TEST_CASE("reference switch: batch priority drops the least sure token") {
    const ref::switch_router router{.capacity = {.number = 2}, .order = ref::drop_order::gate};
    const auto made = ref::route_scores(router, worked_scores);
    CHECK(made.slots == ref::integers{{1}, {-1}, {0}, {0}});
    CHECK(made.order == indices{3, 0, 2});
    CHECK(made.load_balancing_loss == doctest::Approx(0.011).epsilon(1e-14));  // counts before capacity
}

TEST_CASE("reference switch: no token left behind places the token that had none") {
    const ref::switch_router router{.capacity = {.number = 2}, .no_token_left_behind = 2};
    const auto made = ref::route_scores(router, worked_scores);
    CHECK(made.experts == ref::integers{{0}, {0}, {1}, {1}});
    CHECK(made.slots == ref::integers{{0}, {1}, {0}, {1}});
    CHECK(difference(made.gates, {{0.7}, {0.6}, {0.8}, {0.1}}) < 1e-15);
    CHECK(made.load_before == indices{3, 1});
    CHECK(made.load_after == indices{2, 2});
    CHECK(made.load_balancing_loss == doctest::Approx(0.011).epsilon(1e-14));
    // Without room anywhere a token keeps its first choice, dropped.
    const auto full =
        ref::route_scores(ref::switch_router{.capacity = {.number = 1}, .no_token_left_behind = 2}, worked_scores);
    CHECK(full.experts == ref::integers{{0}, {0}, {1}, {0}});
    CHECK(full.slots == ref::integers{{0}, {-1}, {0}, {-1}});
    CHECK_THROWS_AS(ref::route_scores(ref::switch_router{.no_token_left_behind = 3}, worked_scores), sy::error);
    CHECK_THROWS_AS(ref::route_scores(ref::switch_router{.no_token_left_behind = 0}, worked_scores), sy::error);
}

TEST_CASE("reference switch: padding rows take no slot and count in nothing") {
    ref::matrix scores(6, 2);
    ref::mask_list mask{0, 1, 1, 0, 1, 1};
    sy::index_t token = 0;
    for (sy::index_t t = 0; t < 6; ++t) {
        for (sy::index_t e = 0; e < 2; ++e) scores(t, e) = mask[t] != 0 ? worked_scores(token, e) : NAN;
        token += mask[t] != 0 ? 1 : 0;
    }
    const ref::switch_router router{.capacity = {.factor = 1.0}, .z_weight = 0.5};
    const auto made = ref::route_scores(router, scores, mask);
    CHECK(made.capacity == 3);  // counts all six rows
    CHECK(made.experts == ref::integers{{-1}, {0}, {0}, {-1}, {1}, {0}});
    CHECK(made.slots == ref::integers{{-1}, {0}, {1}, {-1}, {0}, {2}});
    CHECK(made.gates(0, 0) == 0);
    CHECK(made.load_before == indices{3, 1});
    CHECK(made.load_balancing_loss == doctest::Approx(0.011).epsilon(1e-14));
    CHECK(made.z_loss == doctest::Approx(0).epsilon(1e-15));
    const auto d = ref::route_scores_backward(router, made, scores, ref::matrix(6, 1, 1.0), mask);
    for (const double number : d.values) CHECK(std::isfinite(number));
    CHECK(d(0, 0) == 0);
}

TEST_CASE("reference switch: a token forbidden everywhere is dropped, or an error without a capacity") {
    const ref::matrix scores{{never, 2}, {never, never}, {1, 0}};
    const ref::switch_router router{.capacity = {.number = 3}, .balance_weight = 1, .z_weight = 1};
    const auto made = ref::route_scores(router, scores);
    CHECK(made.experts == ref::integers{{1}, {0}, {0}});
    CHECK(made.slots == ref::integers{{0}, {-1}, {0}});
    CHECK(made.gates(0, 0) == 1);
    CHECK(made.gates(1, 0) == 0);
    CHECK(made.load_before == indices{1, 1});
    // f = (1/3, 1/3), P = (p, 1 + 1 - p) / 3 with p = sigmoid(1): all of it divided by three tokens.
    CHECK(made.load_balancing_loss == doctest::Approx(2.0 * (1.0 / 3) * (2.0 / 3)).epsilon(1e-14));
    const double z = std::log(std::exp(1.0) + 1);
    CHECK(made.z_loss == doctest::Approx((4 + z * z) / 3).epsilon(1e-14));
    CHECK_THROWS_AS(ref::route_scores(ref::switch_router{.capacity = {}}, scores), sy::error);
    // No-token-left-behind cannot place it either, nor put a token on an expert it is forbidden.
    const ref::switch_router tries{.capacity = {.number = 1}, .no_token_left_behind = 2};
    const auto tried = ref::route_scores(tries, ref::matrix{{never, 2}, {never, 1}, {never, never}});
    CHECK(tried.experts == ref::integers{{1}, {1}, {0}});
    CHECK(tried.slots == ref::integers{{0}, {-1}, {-1}});
}

TEST_CASE("reference switch: hostile shapes") {
    const ref::switch_router router;
    SUBCASE("no tokens") {
        const auto made = ref::route_scores(router, ref::matrix(0, 3));
        CHECK(made.offsets == indices{0, 0, 0, 0});
        CHECK(made.order.empty());
        CHECK(made.load_balancing_loss == 0);
        CHECK(ref::route_scores_backward(router, made, ref::matrix(0, 3), ref::matrix(0, 1)) == ref::matrix(0, 3));
    }
    SUBCASE("one expert") {
        const auto made = ref::route_scores(ref::switch_router{.capacity = {.factor = 1}}, gaussian(5, 1, 1));
        CHECK(made.kept() == 5);
        CHECK(made.gates == ref::matrix(5, 1, 1.0));
        CHECK(made.load_balancing_loss == doctest::Approx(0.01));
    }
    SUBCASE("all tokens to one expert") {
        ref::matrix scores(9, 4);
        for (sy::index_t t = 0; t < 9; ++t) scores(t, 2) = 1;
        const auto made = ref::route_scores(ref::switch_router{.capacity = {.number = 5}}, scores);
        CHECK(made.order == indices{0, 1, 2, 3, 4});
        CHECK(made.slots(5, 0) == -1);
        CHECK(made.offsets == indices{0, 0, 0, 5, 5});
    }
    SUBCASE("equal scores go to expert 0") {
        const auto made = ref::route_scores(ref::switch_router{.capacity = {.number = 9}}, ref::matrix(3, 4, 0.5));
        CHECK(made.experts == ref::integers{{0}, {0}, {0}});
    }
    SUBCASE("capacity above T, and 0") {
        CHECK(ref::route_scores(ref::switch_router{.capacity = {.factor = 100}}, worked_scores).kept() == 4);
        CHECK(ref::route_scores(ref::switch_router{.capacity = {.factor = 0}}, worked_scores).kept() == 0);
        CHECK(ref::route_scores(ref::switch_router{.capacity = {.number = 0}}, worked_scores).gates ==
              ref::matrix(4, 1));
    }
    SUBCASE("padding alone") {
        const auto made = ref::route_scores(router, ref::matrix{{NAN, 0}, {0, NAN}}, {0, 0});
        CHECK(made.kept() == 0);
        CHECK(made.load_balancing_loss == 0);
        CHECK(made.experts == ref::integers{{-1}, {-1}});
    }
    SUBCASE("refused") {
        CHECK_THROWS_AS(ref::route_scores(router, ref::matrix{{0, NAN}}), sy::error);
        CHECK_THROWS_AS(ref::route_scores(router, ref::matrix{{0, ref::infinity}}), sy::error);
        CHECK_THROWS_AS(ref::route_scores(router, worked_scores, {1, 1}), sy::error);
        const auto made = ref::route_scores(router, worked_scores);
        CHECK_THROWS_AS(ref::route_scores_backward(router, made, worked_scores, ref::matrix(4, 2)), sy::error);
        CHECK_THROWS_AS(ref::route_scores_backward(router, made, ref::matrix(3, 2), ref::matrix(4, 1)), sy::error);
    }
}

TEST_CASE("reference switch: sampling moves the choice, the gate stays the unperturbed probability") {
    const auto scores = gaussian(200, 5, 4);
    ref::switch_router router{.capacity = {}, .noise = {.sample_temperature = 2}};
    const auto made = ref::route_scores(router, scores, {}, key);
    const auto p = ref::softmax_rows(scores);
    const auto plain = ref::route_scores(router, scores);
    sy::index_t moved = 0;
    for (sy::index_t t = 0; t < 200; ++t) {
        moved += made.experts(t, 0) != plain.experts(t, 0) ? 1 : 0;
        CHECK(made.gates(t, 0) == p(t, made.experts(t, 0)));
    }
    CHECK(moved > 50);
    CHECK(made.z_loss == plain.z_loss);
}

TEST_CASE("reference switch: logit jitter feeds choice, gates and losses") {
    const auto scores = gaussian(50, 5, 4);
    ref::switch_router router{.capacity = {}, .noise = {.logit_jitter = 0.5f}, .z_weight = 1};
    const auto made = ref::route_scores(router, scores, {}, key);
    const auto jittered = ref::noisy_scores(router.noise, scores, key);
    const auto expected = ref::route_scores(router, jittered);  // without noise
    CHECK(made.experts == expected.experts);
    CHECK(made.gates == expected.gates);
    CHECK(made.load_balancing_loss == expected.load_balancing_loss);
    CHECK(made.z_loss == expected.z_loss);
    CHECK(made.z_loss != ref::route_scores(router, scores).z_loss);
}

TEST_CASE("reference switch: gradients by central differences") {
    // Wide enough that no token loses all its columns to dropout: its scores would tie, where no gradient exists.
    const auto x = gaussian(12, 10, 1);
    const auto w = gaussian(10, 4, 2);
    const ref::mask_list mask{1, 1, 0, 1, 1, 1, 1, 0, 1, 1, 1, 1};
    // Weights far above the papers', so that an error in a loss's gradient shows.
    ref::switch_router router{.capacity = {.factor = 0.8}, .balance_weight = 0.7, .z_weight = 0.3};
    SUBCASE("plain") { check_gradients(router, x, w, {}, {}); }
    SUBCASE("gates alone") {
        router.balance_weight = 0;
        router.z_weight = 0;
        check_gradients(router, x, w, {}, {});
    }
    SUBCASE("mask") { check_gradients(router, x, w, mask, {}); }
    SUBCASE("batch priority") {
        router.order = ref::drop_order::gate;
        check_gradients(router, x, w, mask, {});
    }
    SUBCASE("no token left behind") {
        router.no_token_left_behind = 3;
        check_gradients(router, x, w, mask, {});
    }
    SUBCASE("input noise") {
        router.noise = {.input_jitter = 0.3f, .input_dropout = 0.2f};
        check_gradients(router, x, w, mask, key);
    }
    SUBCASE("logit jitter and sampling") {
        router.noise = {.logit_jitter = 0.4f, .sample_temperature = 1.5f};
        check_gradients(router, x, w, mask, key);
    }
}

TEST_CASE("reference switch: gradients with forbidden experts, and dropped gates' gradients are ignored") {
    auto scores = gaussian(8, 4, 3);
    scores(1, 0) = scores(1, 2) = scores(4, 3) = never;
    for (sy::index_t e = 0; e < 4; ++e) scores(6, e) = never;
    const ref::switch_router router{.capacity = {.number = 2}, .balance_weight = 0.7, .z_weight = 0.3};
    const auto made = ref::route_scores(router, scores);
    auto weights = gaussian(8, 1, 5);
    const auto numeric =
        numeric_gradient([&](const ref::matrix& at) { return total(ref::route_scores(router, at), weights); }, scores);
    sy::index_t dropped = 0;
    for (sy::index_t t = 0; t < 8; ++t) {
        if (made.keeps(t, 0)) continue;
        weights(t, 0) = NAN;
        dropped += 1;
    }
    CHECK(dropped >= 1);
    CHECK(difference(ref::route_scores_backward(router, made, scores, weights), numeric) < 1e-8);
}
