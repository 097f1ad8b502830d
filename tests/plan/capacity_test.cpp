#include "support/compare.hpp"

#include <switchyard/plan/capacity.hpp>
#include <switchyard/plan/plan.hpp>

#include <doctest/doctest.h>

#include <limits>

using namespace switchyard_test;

namespace {

constexpr auto rounded_down = sy::capacity_rounding::floor;
constexpr auto rounded_half_even = sy::capacity_rounding::round;
constexpr auto rounded_up = sy::capacity_rounding::ceil;

index_t by_factor(double factor, sy::capacity_rounding rounding, index_t tokens, index_t choices, index_t experts) {
    return sy::capacity_of({.factor = factor, .rounding = rounding}, tokens, choices, experts);
}

}  // namespace

TEST_CASE("capacity: the paper's formula by default") {
    CHECK(sy::capacity_of({.factor = 1.25}, 100, 1, 8) == 15);  // 15.625
    CHECK(sy::capacity_of({.factor = 1.0}, 4, 1, 2) == 2);
    CHECK(sy::capacity_of({.factor = 2.0}, 65'536, 1, 64) == 2048);
}

TEST_CASE("capacity: roundings, half to even") {
    CHECK(by_factor(1.0, rounded_down, 11, 1, 4) == 2);  // 2.75
    CHECK(by_factor(1.0, rounded_half_even, 11, 1, 4) == 3);
    CHECK(by_factor(1.0, rounded_up, 9, 1, 4) == 3);  // 2.25
    CHECK(by_factor(1.0, rounded_half_even, 5, 1, 2) == 2);
    CHECK(by_factor(1.0, rounded_half_even, 7, 1, 2) == 4);
    CHECK(by_factor(1.0, rounded_half_even, 1, 1, 2) == 0);
}

TEST_CASE("capacity: 100 x 1.1 / 5 is 22 under every rounding") {
    for (const auto rounding : {rounded_down, rounded_half_even, rounded_up}) {
        CHECK(by_factor(1.1, rounding, 100, 1, 5) == 22);
        CHECK(by_factor(0.7, rounding, 10, 1, 1) == 7);     // 7.000000000000001
        CHECK(by_factor(0.29, rounding, 100, 1, 1) == 29);  // 28.999999999999996
    }
    CHECK(by_factor(22.000001 / 20, rounded_up, 100, 1, 5) == 23);  // not that near
    CHECK(by_factor(1e-12, rounded_up, 1, 1, 1) == 1);              // relative to the value: 1e-12 is not 0
}

TEST_CASE("capacity: k counts, unless told otherwise") {
    CHECK(sy::capacity_of({.factor = 1.0}, 10, 2, 5) == 4);
    CHECK(sy::capacity_of({.factor = 1.0, .counts_choices = false}, 10, 2, 5) == 2);
}

TEST_CASE("capacity: first the minimum, then up to the multiple") {
    CHECK(sy::capacity_of({.factor = 1.0, .minimum = 4}, 8, 1, 8) == 4);   // Mesh TensorFlow
    CHECK(sy::capacity_of({.factor = 1.0, .multiple = 4}, 8, 1, 8) == 4);  // V-MoE
    CHECK(sy::capacity_of({.factor = 1.0, .minimum = 5, .multiple = 4}, 8, 1, 8) == 8);
    CHECK(sy::capacity_of({.factor = 1.0, .minimum = 3, .multiple = 4}, 40, 1, 8) == 8);
    CHECK(sy::capacity_of({.factor = 0.0, .multiple = 4}, 40, 1, 8) == 0);
}

TEST_CASE("capacity: a number is taken as given; nothing given is no limit") {
    CHECK(sy::capacity_of({.number = 5}, 3, 2, 7) == 5);
    CHECK(sy::capacity_of({.number = 0}, 3, 2, 7) == 0);
    CHECK(sy::capacity_of({.number = 5, .minimum = 7, .multiple = 4}, 3, 2, 7) == 5);
    constexpr index_t large = (index_t{1} << 60) + 1;  // no double holds it
    CHECK(sy::capacity_of({.number = large}, 3, 2, 7) == large);
    CHECK(sy::capacity_of({}, 3, 2, 7) == sy::unlimited);
    CHECK(sy::capacity_of({.factor = 1e300}, 3, 2, 7) == sy::unlimited);
    CHECK(sy::capacity_of({.factor = 100}, 4, 1, 2) == 200);  // above T is legal
    CHECK(sy::capacity_of({.factor = 1.25}, 0, 1, 4) == 0);
}

TEST_CASE("capacity: every rule broken is named") {
    const auto sentence = [](const sy::capacity_rule& rule) {
        return sentence_of([&] { (void)sy::capacity_of(rule, 8, 1, 2); });
    };
    CHECK(sentence({.factor = 1.0, .number = 2}) == "a capacity has a factor or a number, not both");
    CHECK(sentence({.number = -1}) == "capacity = -1 must not be negative");
    CHECK(sentence({.factor = -0.5}) == "capacity factor = -0.5 must be finite and not negative");
    CHECK(sentence({.factor = NAN}).find("must be finite") != std::string::npos);
    CHECK(sentence({.factor = INFINITY}) == "capacity factor = inf must be finite and not negative");
    CHECK(sentence({.factor = 1.0, .minimum = -2}) == "capacity minimum = -2 must not be negative");
    CHECK(sentence({.factor = 1.0, .multiple = 0}) == "capacity multiple = 0 must be at least 1");
}

TEST_CASE("capacity: the same as the reference over a grid") {
    int compared = 0;
    for (const double factor : {0.0, 0.1, 0.3, 0.5, 0.7, 1.0, 1.1, 1.25, 1.5, 2.0, 2.3, 1e3}) {
        for (const auto rounding : {rounded_down, rounded_half_even, rounded_up}) {
            for (const index_t experts : {1, 2, 3, 5, 7, 8, 60, 64, 100, 256}) {
                for (const index_t tokens : {0, 1, 2, 5, 9, 63, 100, 1000, 65'536, 100'003}) {
                    for (const bool counts : {true, false}) {
                        const index_t k = 1 + tokens % 3;
                        const sy::capacity_rule rule{.factor = factor,
                                                     .rounding = rounding,
                                                     .minimum = tokens % 5,
                                                     .multiple = 1 + experts % 4,
                                                     .counts_choices = counts};
                        const index_t want = ref::capacity_for(reference_of(rule), tokens, experts, k);
                        if (sy::capacity_of(rule, tokens, k, experts) != want) {
                            FAIL_CHECK("factor " << factor << ", T " << tokens << ", E " << experts << ", k " << k);
                        }
                        ++compared;
                    }
                }
            }
        }
    }
    CHECK(compared == 12 * 3 * 10 * 10 * 2);
}

TEST_CASE("row_bound: min(T k, E C), without overflow") {
    CHECK(sy::row_bound(10, 2, 4, 3) == 12);
    CHECK(sy::row_bound(10, 2, 4, 5) == 20);
    CHECK(sy::row_bound(10, 2, 4, 6) == 20);
    CHECK(sy::row_bound(10, 2, 3, 6) == 18);
    CHECK(sy::row_bound(10, 2, 3, 7) == 20);
    CHECK(sy::row_bound(10, 2, 4, 0) == 0);
    CHECK(sy::row_bound(0, 1, 4, 7) == 0);
    CHECK(sy::row_bound(10, 2, 4, sy::unlimited) == 20);
    CHECK(sy::row_bound(index_t{1} << 31, 8, 1 << 20, index_t{1} << 50) == index_t{1} << 34);
}
