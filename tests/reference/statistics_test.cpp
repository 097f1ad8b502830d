#include <switchyard/reference/statistics.hpp>

#include <doctest/doctest.h>

#include <cmath>

namespace ref = switchyard::reference;

TEST_CASE("reference statistics: even, one-sided and empty loads") {
    const auto even = ref::statistics_of({3, 3, 3, 3});
    CHECK(even.coefficient_of_variation == 0);
    CHECK(even.max_over_mean == 1);
    CHECK(even.entropy == doctest::Approx(std::log(4.0)).epsilon(1e-14));

    const auto one = ref::statistics_of({0, 12, 0, 0});
    CHECK(one.coefficient_of_variation == doctest::Approx(std::sqrt(3.0)).epsilon(1e-14));  // sqrt(E - 1)
    CHECK(one.max_over_mean == 4);
    CHECK(one.entropy == 0);

    const auto none = ref::statistics_of({0, 0});
    CHECK(none.coefficient_of_variation == 0);
    CHECK(none.max_over_mean == 0);
    CHECK(none.entropy == 0);
    CHECK(ref::statistics_of({}).max_over_mean == 0);
}

TEST_CASE("reference statistics: worked numbers") {
    // Loads 3 and 1: mean 2, deviations 1 and 1, shares 3/4 and 1/4.
    const auto skewed = ref::statistics_of({3, 1});
    CHECK(skewed.coefficient_of_variation == 0.5);
    CHECK(skewed.max_over_mean == 1.5);
    CHECK(skewed.entropy == doctest::Approx(-0.75 * std::log(0.75) - 0.25 * std::log(0.25)).epsilon(1e-14));
}

TEST_CASE("reference statistics: dropped share counts listed choices, padding none") {
    ref::plan made{.experts_count = 2};
    made.experts = {{0, 1}, {0, 1}, {-1, -1}};
    made.slots = {{0, 0}, {-1, 1}, {-1, -1}};
    made.load_before = {2, 2};
    made.load_after = {1, 2};
    const auto found = ref::statistics(made);
    CHECK(found.kept == 3);
    CHECK(found.dropped == 1);
    CHECK(found.dropped_share == 0.25);
    CHECK(found.before.max_over_mean == 1);
    CHECK(found.after.max_over_mean == doctest::Approx(4.0 / 3).epsilon(1e-14));
    CHECK(ref::statistics(ref::plan{}).dropped_share == 0);
}
