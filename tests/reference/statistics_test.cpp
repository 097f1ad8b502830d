#include <switchyard/reference/statistics.hpp>

#include <doctest/doctest.h>

#include <cmath>

namespace ref = switchyard::reference;

TEST_CASE("reference statistics: even, one-sided and empty loads") {
    const auto even = ref::statistics_of({3, 3, 3, 3});
    CHECK(even.coefficient_of_variation == 0);
    CHECK(even.max_over_mean == 1);
    CHECK(even.max_violation == 0);
    CHECK(even.effective_experts == doctest::Approx(4).epsilon(1e-14));
    CHECK(even.dead_share == 0);
    CHECK(even.entropy == doctest::Approx(std::log(4.0)).epsilon(1e-14));

    const auto one = ref::statistics_of({0, 12, 0, 0});
    CHECK(one.coefficient_of_variation == doctest::Approx(std::sqrt(3.0)).epsilon(1e-14));  // sqrt(E - 1)
    CHECK(one.max_over_mean == 4);
    CHECK(one.entropy == 0);
    CHECK(one.effective_experts == 1);
    CHECK(one.dead_share == .75);
    CHECK(one.sample_coefficient_of_variation == doctest::Approx(2).epsilon(1e-14));  // sqrt(E)
    CHECK(ref::statistics_of({5}).sample_coefficient_of_variation == 0);

    const auto none = ref::statistics_of({0, 0});
    CHECK(none.coefficient_of_variation == 0);
    CHECK(none.max_over_mean == 0);
    CHECK(none.entropy == 0);
    CHECK(none.effective_experts == 0);
    CHECK(none.dead_share == 0);
    CHECK(none.max_violation == 0);
    CHECK(ref::statistics_of({}).max_over_mean == 0);
}

TEST_CASE("reference statistics: worked numbers") {
    // Loads 3 and 1: mean 2, deviations 1 and 1, shares 3/4 and 1/4.
    const auto skewed = ref::statistics_of({3, 1});
    CHECK(skewed.coefficient_of_variation == 0.5);
    CHECK(skewed.max_over_mean == 1.5);
    CHECK(skewed.max_violation == .5);
    CHECK(skewed.sample_coefficient_of_variation == doctest::Approx(std::sqrt(2.0) / 2).epsilon(1e-14));
    CHECK(ref::load_quantile({4, 3, 0, 1}, .5) == 2);
    CHECK(ref::load_quantile({4, 3, 0, 1}, .75) == 3.25);
    CHECK(ref::load_quantile({4, 3, 0, 1}, 0) == 0);
    CHECK(ref::load_quantile({4, 3, 0, 1}, 1) == 4);
    CHECK(skewed.entropy == doctest::Approx(-0.75 * std::log(0.75) - 0.25 * std::log(0.25)).epsilon(1e-14));
}

TEST_CASE("reference statistics: dropped share counts choices before capacity, padding none") {
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

TEST_CASE("reference statistics: choices, gates and changes") {
    ref::plan made{.experts_count = 3};
    made.experts = {{0, 1}, {0, 2}, {0, 1}, {-1, -1}};
    made.slots = {{0, 0}, {1, -1}, {-1, 1}, {-1, -1}};  // 2 is forbidden to token 1, 0 is full for token 2
    made.gates = {{.5, .5}, {.25, 0}, {0, .5}, {0, 0}};
    made.load_before = {3, 2, 0};
    made.load_after = {2, 2, 0};
    CHECK(ref::statistics_of_choice(made, 0).asked == 3);
    CHECK(ref::statistics_of_choice(made, 0).dropped == 1);
    CHECK(ref::statistics_of_choice(made, 1).asked == 2);
    CHECK(ref::statistics_of_choice(made, 1).dropped == 0);
    CHECK(ref::gate_entropy(made) == doctest::Approx(std::log(2.0) / 3).epsilon(1e-14));
    CHECK(ref::gate_entropy(ref::plan{}) == 0);

    ref::plan later = made;
    later.experts = {{1, 0}, {0, 1}, {2, -1}, {-1, -1}};  // the same, one of two, all
    CHECK(ref::churn(made, made) == 0);
    CHECK(ref::churn(made, later) == doctest::Approx(1.5 / 3).epsilon(1e-14));
    CHECK(ref::churn(ref::plan{}, ref::plan{}) == 0);
}
