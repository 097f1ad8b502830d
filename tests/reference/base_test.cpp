#include "numeric.hpp"

#include <switchyard/reference/base.hpp>

#include <doctest/doctest.h>

#include <cmath>

using namespace switchyard_test;
using indices = ref::list<sy::index_t>;

namespace {

const double never = -ref::infinity;
const ref::matrix worked_scores{{1, 0}, {0.9, 0.3}, {0.8, 0.6}, {0.7, 0.05}};

double logistic(double s) { return 1 / (1 + std::exp(-s)); }

}  // namespace

TEST_CASE("reference base: the worked example, balanced in training, greedy at inference") {
    // Of the six balanced assignments the best has total score 2.6: tokens 0 and 3 to expert 0.
    const auto made = ref::route_scores(ref::base_router{.assignment = indices{0, 1, 1, 0}}, worked_scores);
    CHECK(made.experts == ref::integers{{0}, {1}, {1}, {0}});
    CHECK(made.slots == ref::integers{{0}, {0}, {1}, {1}});
    CHECK(made.order == indices{0, 3, 1, 2});
    CHECK(made.load_before == indices{2, 2});
    CHECK(difference(made.gates, {{logistic(1)}, {logistic(0.3)}, {logistic(0.6)}, {logistic(0.7)}}) < 1e-15);
    CHECK(made.load_balancing_loss == 0);
    CHECK(made.z_loss == 0);

    const auto greedy = ref::route_scores(ref::base_router{}, worked_scores);
    CHECK(greedy.experts == ref::integers{{0}, {0}, {0}, {0}});
    CHECK(greedy.load_after == indices{4, 0});
    CHECK(greedy.capacity == ref::unlimited);
    CHECK(greedy.gates(2, 0) == doctest::Approx(logistic(0.8)).epsilon(1e-15));
}

TEST_CASE("reference base: what is no assignment is refused") {
    const auto with = [](indices assignment) { return ref::base_router{.assignment = assignment}; };
    CHECK_THROWS_AS(ref::route_scores(with({0, 1, 1}), worked_scores), sy::error);
    CHECK_THROWS_WITH_AS(ref::route_scores(with({0, 1, 2, 0}), worked_scores),
                         "token 2 is assigned to expert 2, which must lie in 0..1", sy::error);
    CHECK_THROWS_AS(ref::route_scores(with({0, 1, -1, 0}), worked_scores), sy::error);
    CHECK_THROWS_AS(ref::route_scores(with({1}), ref::matrix{{0, never}}), sy::error);
    CHECK_THROWS_AS(ref::route_scores(with({0}), ref::matrix{{never, never}}), sy::error);
    CHECK_THROWS_AS(ref::route_scores(ref::base_router{}, ref::matrix{{never, never}}), sy::error);
    CHECK_THROWS_AS(ref::route_scores(ref::base_router{}, ref::matrix{{NAN, 0}}), sy::error);
}

TEST_CASE("reference base: padding, no tokens, ties") {
    const auto made =
        ref::route_scores(ref::base_router{.assignment = indices{-7, 1, 0}}, {{NAN, 0}, {1, 2}, {0, 0}}, {0, 1, 1});
    CHECK(made.experts == ref::integers{{-1}, {1}, {0}});
    CHECK(made.gates(0, 0) == 0);
    CHECK(made.order == indices{2, 1});
    CHECK(ref::route_scores(ref::base_router{}, ref::matrix(0, 2)).offsets == indices{0, 0, 0});
    CHECK(ref::route_scores(ref::base_router{.assignment = indices{}}, ref::matrix(0, 2)).kept() == 0);
    CHECK(ref::route_scores(ref::base_router{}, {{3, 3}}).experts(0, 0) == 0);
    // Saturated gates do not tie: the choice is made on scores.
    CHECK(ref::route_scores(ref::base_router{}, {{100, 101}}).experts(0, 0) == 1);
}

TEST_CASE("reference base: the centroids learn through the gate alone, by central differences") {
    const auto x = gaussian(6, 4, 1);
    const auto w = gaussian(3, 4, 2);  // centroids: E x D
    const auto weights = gaussian(6, 1, 3);
    const ref::mask_list mask{1, 1, 1, 0, 1, 1};
    for (const bool training : {false, true}) {
        ref::base_router router;
        if (training) router.assignment = indices{2, 1, 0, 0, 0, 1};
        const auto made = ref::route(router, x, w, mask);
        const auto total = [&](const ref::matrix& tokens, const ref::matrix& centroids) {
            return inner(weights, ref::route(router, tokens, centroids, mask).gates);
        };
        const auto gradients = ref::route_backward(made, x, w, weights, mask);
        const auto by_x = numeric_gradient([&](const ref::matrix& at) { return total(at, w); }, x);
        const auto by_w = numeric_gradient([&](const ref::matrix& at) { return total(x, at); }, w);
        CHECK(difference(gradients.d_x, by_x) < 1e-8);
        CHECK(difference(gradients.d_w, by_w) < 1e-8);
    }
}
