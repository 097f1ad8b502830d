#include "numeric.hpp"

#include <switchyard/reference/softmax.hpp>

#include <doctest/doctest.h>

#include <cmath>

using namespace switchyard_test;

TEST_CASE("reference softmax: worked numbers") {
    const auto p = ref::softmax({std::log(0.7), std::log(0.3)});
    CHECK(p[0] == doctest::Approx(0.7).epsilon(1e-15));
    CHECK(p[1] == doctest::Approx(0.3).epsilon(1e-15));
    CHECK(ref::logsumexp({0, 0}) == doctest::Approx(std::log(2.0)).epsilon(1e-15));
    CHECK(ref::sigmoid(0) == 0.5);
    CHECK(ref::sigmoid(std::log(3.0)) == doctest::Approx(0.75).epsilon(1e-15));
}

TEST_CASE("reference softmax: large, small and forbidden scores") {
    CHECK(ref::softmax({1000, 1000}) == ref::list<double>{0.5, 0.5});
    CHECK(ref::softmax({-1e300, 0}) == ref::list<double>{0, 1});
    CHECK(ref::logsumexp({1e6, 1e6}) == doctest::Approx(1e6 + std::log(2.0)).epsilon(1e-15));
    CHECK(ref::softmax({-ref::infinity, 3}) == ref::list<double>{0, 1});
    CHECK(ref::softmax({-ref::infinity, -ref::infinity}) == ref::list<double>{0, 0});
    CHECK(ref::logsumexp({-ref::infinity, -ref::infinity}) == -ref::infinity);
    CHECK(ref::softmax({-7}) == ref::list<double>{1});
    CHECK(ref::sigmoid(1e4) == 1);
    CHECK(ref::sigmoid(-1e4) == 0);
    CHECK(ref::sigmoid(-40) > 0);
    CHECK(ref::sigmoid(-ref::infinity) == 0);
}

TEST_CASE("reference softmax: padding rows get zeros whatever they hold") {
    const ref::matrix scores{{0, 0}, {NAN, ref::infinity}};
    CHECK(ref::softmax_rows(scores, {1, 0}) == ref::matrix{{0.5, 0.5}, {0, 0}});
}

TEST_CASE("reference softmax, logsumexp and sigmoid: gradients by central differences") {
    const auto scores = gaussian(5, 7, 1);
    const auto weights = gaussian(5, 7, 2);
    const auto numeric =
        numeric_gradient([&](const ref::matrix& s) { return inner(weights, ref::softmax_rows(s)); }, scores);
    CHECK(difference(ref::softmax_rows_backward(ref::softmax_rows(scores), weights), numeric) < 1e-8);

    const ref::matrix row{{0.3, -1.2, 2.0, -ref::infinity}};
    const auto z = numeric_gradient([](const ref::matrix& s) { return 1.7 * ref::logsumexp(ref::row_of(s, 0)); }, row);
    const auto d = ref::logsumexp_backward(ref::softmax(ref::row_of(row, 0)), 1.7);
    for (sy::index_t e = 0; e < 4; ++e) CHECK(d[e] == doctest::Approx(z(0, e)).epsilon(1e-8));

    for (const double s : {-3.0, 0.0, 0.5, 4.0}) {
        const auto g =
            numeric_gradient([](const ref::matrix& at) { return 2.5 * ref::sigmoid(at(0, 0)); }, ref::matrix{{s}});
        CHECK(ref::sigmoid_backward(ref::sigmoid(s), 2.5) == doctest::Approx(g(0, 0)).epsilon(1e-8));
    }
}
