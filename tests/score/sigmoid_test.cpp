#include "support/compare.hpp"

#include <switchyard/reference/softmax.hpp>
#include <switchyard/score/sigmoid.hpp>

#include <doctest/doctest.h>

#include <cmath>
#include <limits>

using namespace switchyard_test;

TEST_CASE_TEMPLATE("sigmoid: a few ulp over the whole line, and its derivative keeps its digits near 1", S, float,
                   double) {
    double worst = 0;
    double worst_derivative = 0;
    for (double x = -80; x <= 80; x += 0.0137) {
        const S score = static_cast<S>(x);
        const auto exact = static_cast<double>(score);
        const double want = ref::sigmoid(exact);
        const double e = std::exp(-std::abs(exact));
        const double derivative = e / ((1 + e) * (1 + e));
        worst = std::max(worst, std::abs(static_cast<double>(sy::sigmoid(score)) - want) / want);
        worst_derivative = std::max(
            worst_derivative, std::abs(static_cast<double>(sy::sigmoid_derivative(score)) - derivative) / derivative);
    }
    CHECK(worst < 4 * std::numeric_limits<S>::epsilon());
    CHECK(worst_derivative < 6 * std::numeric_limits<S>::epsilon());
}

TEST_CASE_TEMPLATE("sigmoid: special values", S, float, double) {
    constexpr S infinite = std::numeric_limits<S>::infinity();
    CHECK(sy::sigmoid(S(0)) == S(0.5));
    CHECK(sy::sigmoid(-S(0)) == S(0.5));
    CHECK(sy::sigmoid(infinite) == S(1));
    CHECK(sy::sigmoid(-infinite) == S(0));
    CHECK(sy::sigmoid(std::numeric_limits<S>::max()) == S(1));
    CHECK(std::isnan(sy::sigmoid(std::numeric_limits<S>::quiet_NaN())));
    CHECK(sy::sigmoid_derivative(S(0)) == S(0.25));
    CHECK(sy::sigmoid_derivative(infinite) == S(0));
    CHECK(sy::sigmoid_derivative(-infinite) == S(0));
}
