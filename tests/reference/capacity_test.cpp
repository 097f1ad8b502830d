#include <switchyard/reference/capacity.hpp>

#include <doctest/doctest.h>

#include <cmath>

namespace ref = switchyard::reference;
using ref::capacity_for;
using ref::rounding;

TEST_CASE("reference capacity: 100 x 1.1 / 5 is 22 under every rounding") {
    REQUIRE(100 * 1.1 / 5 > 22);  // the trap
    for (const auto how : {rounding::floor, rounding::round, rounding::ceil}) {
        CHECK(capacity_for({.factor = 1.1, .rounding = how}, 100, 5, 1) == 22);
    }
    REQUIRE(100 * 0.29 < 29);  // the same trap from below
    CHECK(capacity_for({.factor = 0.29}, 100, 1, 1) == 29);
}

TEST_CASE("reference capacity: rounding, half to even") {
    const auto at = [](double factor, rounding how) {
        return capacity_for({.factor = factor, .rounding = how}, 1, 1, 1);
    };
    CHECK(at(2.5, rounding::floor) == 2);
    CHECK(at(2.5, rounding::round) == 2);
    CHECK(at(3.5, rounding::round) == 4);
    CHECK(at(2.4, rounding::round) == 2);
    CHECK(at(2.6, rounding::round) == 3);
    CHECK(at(2.1, rounding::ceil) == 3);
    CHECK(at(0.5, rounding::round) == 0);
    CHECK(at(1.5, rounding::round) == 2);
    CHECK(at(2.9, rounding::floor) == 2);
    CHECK(at(1e-12, rounding::ceil) == 1);  // 1e-9 is relative: this is not 0
    CHECK(at(0, rounding::ceil) == 0);
}

TEST_CASE("reference capacity: choices, minimum, multiple") {
    CHECK(capacity_for({.factor = 1.25}, 64, 8, 2) == 20);
    CHECK(capacity_for({.factor = 1.25, .count_choices = false}, 64, 8, 2) == 10);
    CHECK(capacity_for({.factor = 1.0, .minimum = 4}, 8, 8, 1) == 4);
    CHECK(capacity_for({.factor = 1.0, .minimum = 5, .multiple = 4}, 8, 8, 1) == 8);
    CHECK(capacity_for({.factor = 1.0, .multiple = 4}, 8, 1, 1) == 8);
    CHECK(capacity_for({.factor = 0, .multiple = 4}, 8, 1, 1) == 0);
    CHECK(capacity_for({.factor = 100}, 8, 2, 1) == 400);  // above T is legal
    CHECK(capacity_for({.factor = 1}, 0, 4, 1) == 0);
    CHECK(capacity_for({.number = 7}, 8, 2, 1) == 7);
    CHECK(capacity_for({.number = 0}, 8, 2, 1) == 0);
    CHECK(capacity_for({}, 8, 2, 1) == ref::unlimited);
    CHECK(capacity_for({.factor = 1.0}, 3'000'000'000, 2, 2) == 3'000'000'000);  // beyond 32 bits
    CHECK(capacity_for({.factor = 1e300}, 8, 2, 1) == ref::unlimited);           // beyond 64 bits
    CHECK(capacity_for({.factor = 3, .multiple = ref::unlimited - 1}, 8, 2, 1) == ref::unlimited - 1);
    CHECK(capacity_for({.factor = 1e15, .multiple = 8'000'000'000'000'000'000}, 8'500, 1, 1) == ref::unlimited);
}

TEST_CASE("reference capacity: bad rules are refused") {
    for (const double factor : {-0.5, double(NAN), double(INFINITY)}) {
        CHECK_THROWS_AS(capacity_for({.factor = factor}, 8, 2, 1), switchyard::error);
    }
    CHECK_THROWS_AS(capacity_for({.number = -1}, 8, 2, 1), switchyard::error);
    CHECK_THROWS_AS(capacity_for({.factor = 1, .multiple = 0}, 8, 2, 1), switchyard::error);
    CHECK_THROWS_AS(capacity_for({.factor = 1, .minimum = -1}, 8, 2, 1), switchyard::error);
    CHECK_THROWS_AS(capacity_for({.factor = 1, .number = 1}, 8, 2, 1), switchyard::error);
    CHECK_THROWS_AS(capacity_for({.factor = 1}, 8, 0, 1), switchyard::error);
}
