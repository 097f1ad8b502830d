#include "support/compare.hpp"
#include "support/covers.hpp"

#include <switchyard/plan/statistics.hpp>
#include <switchyard/reference/statistics.hpp>
#include <switchyard/router/top_k.hpp>

#include <doctest/doctest.h>

#include <cmath>

using namespace switchyard_test;

namespace {

sy::plan<double> routed(const sy::top_k_router& router, const ref::matrix& scores, const ref::mask_list& mask = {}) {
    sy::plan<double> plan;
    sy::workspace scratch;
    sy::route_scores(sy::seq, router, stored<double>(scores), sy::training{.mask = mask_of(mask)}, plan, scratch);
    return plan;
}

}  // namespace

TEST_CASE("statistics: worked by hand") {
    // Loads 3 and 1 before a capacity of 2.
    const ref::matrix scores{{1, 0}, {1, 0}, {0, 1}, {1, 0}};
    const auto s = sy::statistics(routed({.k = 1, .capacity = {.number = 2}}, scores));
    CHECK(s.asked == 4);
    CHECK(s.kept == 3);
    CHECK(s.dropped == 1);
    CHECK(s.dropped_share == 0.25);
    CHECK(s.coefficient_of_variation == 0.5);  // deviations of 1 from a mean of 2
    CHECK(s.max_over_mean == 1.5);
    CHECK(s.entropy == doctest::Approx(-0.75 * std::log(0.75) - 0.25 * std::log(0.25)).epsilon(1e-14));
}

TEST_CASE("statistics: balanced, collapsed and empty plans") {
    const auto balanced = sy::statistics(routed({.k = 1}, {{1, 0}, {0, 1}, {1, 0}, {0, 1}}));
    CHECK(balanced.coefficient_of_variation == 0);
    CHECK(balanced.max_over_mean == 1);
    CHECK(balanced.entropy == doctest::Approx(std::log(2.0)).epsilon(1e-14));
    const auto collapsed = sy::statistics(routed({.k = 1}, ref::matrix(8, 4)));
    CHECK(collapsed.max_over_mean == 4);
    CHECK(collapsed.entropy == 0);
    CHECK(collapsed.coefficient_of_variation == doctest::Approx(std::sqrt(3.0)).epsilon(1e-14));
    const auto empty = sy::statistics(routed({.k = 1}, ref::matrix(0, 4)));
    CHECK(empty.asked == 0);
    CHECK(empty.dropped_share == 0);
    CHECK(empty.entropy == 0);
    CHECK(empty.max_over_mean == 0);
}

TEST_CASE("statistics: padding and forbidden choices ask for nothing") {
    const auto s = sy::statistics(
        routed({.k = 2, .capacity = {.number = 5}}, {{1, never}, {0, 1}, {never, never}, {5, 5}}, {1, 1, 1, 0}));
    CHECK(s.asked == 3);
    CHECK(s.kept == 3);
    CHECK(s.dropped == 0);
}

TEST_CASE("statistics: the same as the reference on random plans, from a plan or its view") {
    for (const index_t experts : {2, 7, 60}) {
        const sy::top_k_router router{.k = 2, .capacity = {.factor = 0.8}};
        const auto scores = gaussian_scores(500, experts, 5);
        const auto plan = routed(router, scores);
        const auto s = sy::statistics(plan.view());
        const auto want = ref::statistics(ref::route_scores(reference_of(router, true), scores));
        CHECK(s.kept == want.kept);
        CHECK(s.dropped == want.dropped);
        CHECK(s.dropped > 0);
        CHECK(s.dropped_share == doctest::Approx(want.dropped_share).epsilon(1e-14));
        CHECK(s.coefficient_of_variation == doctest::Approx(want.before.coefficient_of_variation).epsilon(1e-13));
        CHECK(s.max_over_mean == doctest::Approx(want.before.max_over_mean).epsilon(1e-13));
        CHECK(s.entropy == doctest::Approx(want.before.entropy).epsilon(1e-13));
        CHECK(sy::statistics(plan).kept == s.kept);
    }
    covers<operation("statistics")>(sy::seq);
}
