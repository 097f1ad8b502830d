#include "support/compare.hpp"
#include "support/covers.hpp"

#include <switchyard/backend/eigen.hpp>
#include <switchyard/score/initialisation.hpp>

#include <doctest/doctest.h>

#include <cmath>
#include <Eigen/Core>

using namespace switchyard_test;

namespace {

const sy::noise_key key{.seed = 42, .stream = 3};

}  // namespace

TEST_CASE("truncated normal: mean 0, the deviation of a cut normal, nothing beyond two deviations") {
    constexpr index_t count = 400 * 250;
    sy::matrix<double> w(400, 250);
    sy::initialise(sy::truncated_normal{}, key, w);
    const double deviation = std::sqrt(0.1 / 400);
    double largest = 0;
    double sum = 0;
    double squares = 0;
    for (index_t i = 0; i < count; ++i) {
        largest = std::max(largest, std::abs(w.data()[i]));
        sum += w.data()[i];
        squares += w.data()[i] * w.data()[i];
    }
    CHECK(largest <= 2 * deviation);
    CHECK(largest > 1.99 * deviation);
    // Five standard deviations of the mean. Variance of a normal cut at 2: 1 - 4 phi(2) / (2 Phi(2) - 1).
    const double variance = 0.7737413035499232 * deviation * deviation;
    CHECK(std::abs(sum / count) < 5 * std::sqrt(variance / count));
    CHECK(squares / count == doctest::Approx(variance).epsilon(0.02));
    covers<operation("initialisation")>(sy::seq);
}

TEST_CASE("truncated normal: the numbers depend on seed, stream and place, not on layout or step") {
    Eigen::MatrixXf by_columns(20, 7);
    sy::matrix<float> by_rows(20, 7);
    const auto differences = [&](const sy::noise_key& other) {
        sy::initialise(sy::truncated_normal{}, other, by_rows);
        index_t different = 0;
        for (index_t i = 0; i < 20; ++i) {
            for (index_t j = 0; j < 7; ++j) different += by_rows(i, j) != by_columns(i, j) ? 1 : 0;
        }
        return different;
    };
    sy::initialise(sy::truncated_normal{}, key, by_columns);
    CHECK(differences({.seed = 42, .stream = 3, .step = 9}) == 0);
    CHECK(differences({.seed = 43, .stream = 3}) == 140);
    CHECK(differences({.seed = 42, .stream = 4}) == 140);
    sy::initialise(sy::truncated_normal{.scale = 0}, key, by_rows);
    for (index_t i = 0; i < 140; ++i) CHECK(by_rows.data()[i] == 0);
}

TEST_CASE("orthogonal: columns, or rows where there are more columns, are orthonormal times the gain") {
    const auto gram_error = [](const sy::orthogonal& settings, index_t rows, index_t columns) {
        sy::matrix<double> w(rows, columns);
        sy::initialise(settings, key, w);
        const auto table = ref::matrix_from(sy::const_view(w.view()));
        const auto turned = ref::transpose(table);
        const auto gram = rows >= columns ? ref::matmul(turned, table) : ref::matmul(table, turned);
        ref::matrix wanted(gram.rows, gram.columns);
        for (index_t i = 0; i < gram.rows; ++i) wanted(i, i) = settings.gain * settings.gain;
        return table_mismatch(gram, wanted, 1e-13);
    };
    CHECK(gram_error({}, 30, 8) == "");
    CHECK(gram_error({}, 8, 30) == "");
    CHECK(gram_error({}, 16, 16) == "");
    CHECK(gram_error({}, 1, 5) == "");
    CHECK(gram_error({}, 5, 1) == "");
    CHECK(gram_error({}, 64, 63) == "");
    CHECK(gram_error({.gain = 2}, 9, 4) == "");
    CHECK(sy::orthogonal{}.gain == 0.1);
}

TEST_CASE("initialisation: nothing to fill, and rules broken") {
    Eigen::MatrixXf none(0, 4);
    CHECK_NOTHROW(sy::initialise(sy::truncated_normal{}, key, none));
    CHECK_NOTHROW(sy::initialise(sy::orthogonal{}, key, none));
    Eigen::MatrixXf w(2, 2);
    CHECK(sentence_of([&] { sy::initialise(sy::truncated_normal{.scale = -1}, key, w); }) ==
          "scale = -1 must be finite and not negative");
    CHECK(sentence_of([&] { sy::initialise(sy::orthogonal{.gain = INFINITY}, key, w); }) ==
          "gain = inf must be finite");
}
