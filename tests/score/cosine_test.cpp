// Cosine scores: worked numbers, plain loops, gradients by central differences to every input, policies and padding.
#include "reference/numeric.hpp"
#include "support/backends.hpp"
#include "support/routed.hpp"

#include <switchyard/router/top_k.hpp>
#include <switchyard/score/cosine.hpp>

#include <doctest/doctest.h>

#include <cmath>

using namespace switchyard_test;

namespace {

ref::matrix product(const ref::matrix& a, const ref::matrix& b) {
    ref::matrix c(a.rows, b.columns);
    for (index_t i = 0; i < a.rows; ++i) {
        for (index_t j = 0; j < b.columns; ++j) {
            for (index_t k = 0; k < a.columns; ++k) c(i, j) += a(i, k) * b(k, j);
        }
    }
    return c;
}

double length_of(const ref::matrix& m, index_t row, double epsilon) {
    double squares = 0;
    for (index_t j = 0; j < m.columns; ++j) squares += m(row, j) * m(row, j);
    return std::max(std::sqrt(squares), epsilon);
}

/// As plain loops.
ref::matrix cosines(const ref::matrix& u, const ref::matrix& w, double temperature, double epsilon = 1e-12) {
    ref::matrix scores(u.rows, w.rows);
    for (index_t t = 0; t < u.rows; ++t) {
        for (index_t e = 0; e < w.rows; ++e) {
            for (index_t j = 0; j < u.columns; ++j) scores(t, e) += u(t, j) * w(e, j);
            scores(t, e) /= length_of(u, t, epsilon) * length_of(w, e, epsilon) * temperature;
        }
    }
    return scores;
}

template <class S>
ref::matrix table_of(const sy::matrix<S>& numbers) {
    return ref::matrix_from(sy::const_view(numbers.view()));
}

}  // namespace

TEST_CASE("cosine scores: worked") {
    sy::workspace scratch;
    sy::matrix<double> scores(2, 2);
    sy::cosine_scores(sy::seq, stored<double>({{3, 4}, {0, 2}}), stored<double>({{1, 0}, {5, 5}}), {.temperature = 0.5},
                      scores, scratch);
    CHECK(difference(table_of(scores), {{1.2, 2 * 7 / std::sqrt(50)}, {0, std::sqrt(2)}}) < 1e-14);
}

TEST_CASE_TEMPLATE("cosine scores: against plain loops, with and without projection, short rows, padding", S, float,
                   double) {
    const double allowed = sizeof(S) == 4 ? 1e-5 : 1e-13;
    auto x = gaussian_scores(70, 12, 1);
    const auto p = gaussian_scores(12, 5, 2);
    auto w = gaussian_scores(9, 5, 3);
    for (index_t j = 0; j < 12; ++j) x(4, j) = 0;
    for (index_t j = 0; j < 5; ++j) w(2, j) *= 1e-3;
    sy::workspace scratch;
    sy::matrix<S> scores(70, 9);
    for (const double epsilon : {1e-12, 0.1}) {
        const auto u = product(x, p);
        sy::cosine_scores(sy::seq, stored<S>(u), stored<S>(w), {.epsilon = epsilon}, scores, scratch);
        CHECK(difference(table_of(scores), cosines(u, w, 0.07, epsilon)) < allowed * 15);
        sy::cosine_scores(sy::seq, stored<S>(x), stored<S>(p), stored<S>(w), {.epsilon = epsilon}, scores, scratch);
        CHECK(difference(table_of(scores), cosines(u, w, 0.07, epsilon)) < allowed * 15);
    }
    const auto mask = draw_mask(70, 3);
    auto holed = x;
    for (index_t t = 0; t < 70; ++t) {
        for (index_t j = 0; j < 12; ++j) holed(t, j) = ref::is_token(mask, t) ? x(t, j) : NAN;
    }
    sy::cosine_scores(sy::seq, stored<S>(holed), stored<S>(p), stored<S>(w), {.mask = mask_of(mask)}, scores, scratch);
    const auto want = cosines(product(x, p), w, 0.07);
    for (index_t t = 0; t < 70; ++t) {
        for (index_t e = 0; e < 9; ++e) {
            const double number = ref::is_token(mask, t) ? want(t, e) : 0;
            CHECK(std::abs(static_cast<double>(scores(t, e)) - number) < allowed * 15);
        }
    }
}

TEST_CASE("cosine scores: gradients of x, P, w and temperature, by central differences") {
    const auto x = gaussian_scores(6, 7, 1);
    const auto p = gaussian_scores(7, 3, 2);
    auto w = gaussian_scores(4, 3, 3);
    for (index_t j = 0; j < 3; ++j) w(1, j) *= 1e-2;  // shorter than epsilon
    const auto weights = gaussian_scores(6, 4, 4);
    const double temperature = 0.3;
    const double epsilon = 0.1;
    const auto total = [&](const ref::matrix& at_x, const ref::matrix& at_p, const ref::matrix& at_w, double tau) {
        return inner(cosines(product(at_x, at_p), at_w, tau, epsilon), weights);
    };
    sy::workspace scratch;
    sy::matrix<double> d_x(6, 7);
    sy::matrix<double> d_p(7, 3);
    sy::matrix<double> d_w(4, 3);
    double d_temperature = 0;
    sy::cosine_scores_backward(sy::seq, stored<double>(x), stored<double>(p), stored<double>(w),
                               {.temperature = temperature, .epsilon = epsilon}, stored<double>(weights), d_x, d_p, d_w,
                               &d_temperature, scratch);
    CHECK(difference(table_of(d_x), numeric_gradient([&](const auto& at) { return total(at, p, w, temperature); }, x)) <
          1e-7);
    CHECK(difference(table_of(d_p), numeric_gradient([&](const auto& at) { return total(x, at, w, temperature); }, p)) <
          1e-7);
    CHECK(difference(table_of(d_w), numeric_gradient([&](const auto& at) { return total(x, p, at, temperature); }, w)) <
          1e-6);
    const double numeric = (total(x, p, w, temperature + 1e-6) - total(x, p, w, temperature - 1e-6)) / 2e-6;
    CHECK(d_temperature == doctest::Approx(numeric).epsilon(1e-6));
}

TEST_CASE("cosine scores: policies agree bit by bit, a router runs on them, padding has no gradient") {
    const auto x = stored<float>(gaussian_scores(300, 16, 1));
    const auto p = stored<float>(gaussian_scores(16, 6, 2));
    const auto w = stored<float>(gaussian_scores(10, 6, 3));
    const auto mask = draw_mask(300, 3);
    const auto run = [&](const auto& policy) {
        const sy::cosine_settings settings{.mask = mask_of(mask)};
        sy::matrix<float> scores(300, 10);
        sy::matrix<float> d_x(300, 16);
        sy::matrix<float> d_p(16, 6);
        sy::matrix<float> d_w(10, 6);
        double d_temperature = 0;
        sy::workspace scratch;
        sy::plan<float> plan;
        sy::cosine_scores(policy, x, p, w, settings, scores, scratch);
        const sy::top_k_router router{.k = 2};
        sy::route_scores(policy, router, scores, training_with(mask), plan, scratch);
        const auto d_gates = stored<float>(gaussian_scores(300, 2, 5));
        sy::matrix<float> d_scores(300, 10);
        sy::route_scores_backward(policy, router, plan, scores, d_gates, d_scores, scratch);
        sy::cosine_scores_backward(policy, x, p, w, settings, d_scores, d_x, d_p, d_w, &d_temperature, scratch);
        for (index_t t = 0; t < 300; ++t) {
            for (index_t j = 0; j < 16 && !ref::is_token(mask, t); ++j) CHECK(d_x(t, j) == 0);
        }
        ref::list<double> all = table_of(d_x).values;
        for (const auto& m : {table_of(d_p), table_of(d_w)}) all.insert(all.end(), m.values.begin(), m.values.end());
        all.push_back(d_temperature);
        return all;
    };
    const auto want = run(sy::seq);
    for_each_policy([&](const auto& policy) {
        CHECK(run(policy) == want);
        covers<operation("cosine scores")>(policy);
    });
}

TEST_CASE("cosine scores: sentences") {
    const auto u = stored<float>(gaussian_scores(4, 3, 1));
    const auto w = stored<float>(gaussian_scores(5, 2, 1));
    sy::matrix<float> scores(4, 5);
    sy::workspace scratch;
    CHECK(sentence_of([&] { sy::cosine_scores(sy::seq, u, w, {}, scores, scratch); }) ==
          "w is 5 x 2: it must have d = 3 columns, the width of what it is compared with");
    CHECK(sentence_of([&] { sy::cosine_scores(sy::seq, u, u, {}, scores, scratch); }) ==
          "scores is 4 x 5 for T = 4 tokens and E = 4 experts");
    sy::matrix<float> square(4, 4);
    CHECK(sentence_of([&] { sy::cosine_scores(sy::seq, u, u, {.temperature = 0}, square, scratch); }) ==
          "temperature = 0 must be finite and more than 0");
}

TEST_CASE("cosine scores: what stands in the gradient of padding reaches nothing") {
    const auto u = stored<double>(gaussian_scores(3, 4, 1));
    const auto w = stored<double>(gaussian_scores(5, 4, 2));
    const std::vector<std::uint8_t> counts{1, 0, 1};
    const sy::cosine_settings settings{.mask = {counts.data(), 3}};
    auto d_scores = stored<double>(gaussian_scores(3, 5, 3));
    sy::workspace scratch;
    const auto gradients = [&] {
        sy::matrix<double> d_u(3, 4);
        sy::matrix<double> d_w(5, 4);
        sy::cosine_scores_backward(sy::seq, u, w, settings, d_scores, d_u, d_w, nullptr, scratch);
        for (index_t j = 0; j < 4; ++j) CHECK(d_u(1, j) == 0);
        return std::vector<double>(d_w.data(), d_w.data() + 20);
    };
    const auto want = gradients();
    for (index_t e = 0; e < 5; ++e) d_scores(1, e) = NAN;
    CHECK(gradients() == want);

    // Through a projection: a mask of another size, and outputs that are one.
    const auto x = stored<double>(gaussian_scores(3, 4, 4));
    const auto p = stored<double>(gaussian_scores(4, 4, 5));
    sy::matrix<double> scores(3, 5);
    const auto forward = [&](const sy::token_mask& mask) {
        sy::cosine_scores(sy::seq, x, p, w, {.mask = mask}, scores, scratch);
    };
    CHECK_THROWS_AS(forward({counts.data(), 2}), sy::error);
    sy::matrix<double> d_x(3, 4);
    sy::matrix<double> d_p(4, 4);
    CHECK_THROWS_AS(sy::cosine_scores_backward(sy::seq, x, p, stored<double>(gaussian_scores(5, 4, 6)), {}, d_scores,
                                               d_x, d_p, d_p, nullptr, scratch),
                    sy::error);
    CHECK_THROWS_AS(
        sy::cosine_scores(sy::seq, stored<float>(gaussian_scores(3, 4, 1)), stored<float>(gaussian_scores(5, 4, 2)),
                          {.epsilon = 1e-46}, sy::matrix<float>(3, 5), scratch),
        sy::error);
}
