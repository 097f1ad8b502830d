#include "numeric.hpp"

#include <switchyard/reference/projection.hpp>

#include <doctest/doctest.h>

#include <cmath>
#include <set>

using namespace switchyard_test;

namespace {

const sy::noise_key key{.seed = 11, .stream = 3, .step = 5};
const sy::index_t many = 4000;

}  // namespace

TEST_CASE("reference noise: formulas of the factors") {
    CHECK(ref::jitter_factor(0.25f, 0.5f) == 1.0f);
    CHECK(ref::jitter_factor(0.25f, 0.0f) == 0.75f);
    CHECK(ref::jitter_factor(0.25f, 1.0f) == 1.25f);
    CHECK(ref::dropout_factor(0.5f, 0.25f) == 0.0);
    CHECK(ref::dropout_factor(0.5f, 0.5f) == 2.0);  // kept iff u >= rate
    CHECK(ref::gumbel(0.5f) == doctest::Approx(-std::log(std::log(2.0))).epsilon(1e-14));
}

TEST_CASE("reference noise: each purpose, token and column has its own number, drawn again the same") {
    std::set<float> seen;
    for (const auto purpose : {ref::noise_purpose::input_jitter, ref::noise_purpose::input_dropout,
                               ref::noise_purpose::gumbel_sample, ref::noise_purpose::logit_jitter}) {
        for (sy::index_t t = 0; t < 5; ++t) {
            for (sy::index_t c = 0; c < 9; ++c) {
                const float u = ref::uniform_for(key, purpose, t, c);
                seen.insert(u);
                CHECK(u == ref::uniform_for(key, purpose, t, c));
                auto with_purpose = key;
                with_purpose.purpose = static_cast<std::uint32_t>(purpose);
                CHECK(u == sy::uniform_at(with_purpose, t, c));
            }
        }
    }
    CHECK(seen.size() == 4 * 5 * 9);
}

TEST_CASE("reference noise: the numbers are those of (token, column) for the documented purposes") {
    const auto scores = gaussian(7, 5, 1);
    const auto number = [](std::uint32_t purpose, sy::index_t t, sy::index_t column) {
        auto with_purpose = key;
        with_purpose.purpose = purpose;
        return sy::uniform_at(with_purpose, t, column);
    };
    const auto sampled = ref::selection_scores({.sample_temperature = 2}, scores, key);
    for (sy::index_t t = 0; t < 7; ++t) {
        for (sy::index_t c = 0; c < 5; ++c) {
            const double jitter = static_cast<double>(ref::jitter_factor(0.25f, number(1, t, c)));
            CHECK(ref::input_factor({.input_jitter = 0.25f}, key, t, c) == jitter);
            const double dropout = ref::dropout_factor(0.5f, number(2, t, c));
            CHECK(ref::input_factor({.input_dropout = 0.5f}, key, t, c) == dropout);
            CHECK(ref::input_factor({.input_jitter = 0.25f, .input_dropout = 0.5f}, key, t, c) == jitter * dropout);
            CHECK(sampled(t, c) == doctest::Approx(scores(t, c) + 2 * ref::gumbel(number(3, t, c))).epsilon(1e-14));
            CHECK(ref::logit_factor({.logit_jitter = 0.25f}, key, t, c) ==
                  static_cast<double>(ref::jitter_factor(0.25f, number(4, t, c))));
        }
    }
}

TEST_CASE("reference noise: jitter stays in its range and keeps the mean") {
    double sum = 0;
    double smallest = 2;
    double largest = 0;
    for (sy::index_t t = 0; t < many; ++t) {
        const double factor = ref::input_factor({.input_jitter = 0.1f}, key, t, 2);
        sum += factor;
        smallest = std::min(smallest, factor);
        largest = std::max(largest, factor);
    }
    CHECK(smallest >= 0.9 - 1e-7);
    CHECK(smallest < 0.901);
    CHECK(largest <= 1.1 + 1e-7);
    CHECK(largest > 1.099);
    CHECK(sum / many == doctest::Approx(1).epsilon(0.005));  // standard error 0.0009
}

TEST_CASE("reference noise: dropout removes its share and keeps the mean") {
    double sum = 0;
    sy::index_t removed = 0;
    for (sy::index_t t = 0; t < many; ++t) {
        const double factor = ref::input_factor({.input_dropout = 0.25f}, key, t, 2);
        CHECK((factor == 0 || factor == 1 / 0.75));
        removed += factor == 0 ? 1 : 0;
        sum += factor;
    }
    CHECK(static_cast<double>(removed) / many == doctest::Approx(0.25).epsilon(0.1));
    CHECK(sum / many == doctest::Approx(1).epsilon(0.05));
}

TEST_CASE("reference noise: sampling at temperature 1 draws from the softmax") {
    // Shares of 4,000 draws: standard error below 0.008.
    const ref::matrix p{{0.6, 0.3, 0.1, 0}};
    ref::matrix scores(many, 4);
    for (sy::index_t t = 0; t < many; ++t) {
        for (sy::index_t e = 0; e < 4; ++e) scores(t, e) = std::log(p(0, e));
    }
    const auto perturbed = ref::selection_scores({.sample_temperature = 1}, scores, key);
    ref::matrix share(1, 4);
    for (sy::index_t t = 0; t < many; ++t) {
        sy::index_t best = 0;
        for (sy::index_t e = 1; e < 4; ++e) best = perturbed(t, e) > perturbed(t, best) ? e : best;
        share(0, best) += 1.0 / many;
    }
    CHECK(difference(share, p) < 0.03);
    CHECK(share(0, 3) == 0);  // a forbidden expert is never drawn
}

TEST_CASE("reference noise: none at inference, none at size 0") {
    const auto x = gaussian(4, 3, 1);
    const ref::exploration all{
        .input_jitter = 0.1f, .input_dropout = 0.1f, .logit_jitter = 0.1f, .sample_temperature = 1};
    CHECK(ref::noisy_input(all, x, {}, {}) == x);
    CHECK(ref::noisy_scores(all, x, {}) == x);
    CHECK(ref::selection_scores(all, x, {}) == x);
    CHECK(ref::noisy_input({}, x, {}, key) == x);
    CHECK(ref::noisy_scores({}, x, key) == x);
    CHECK(ref::selection_scores({}, x, key) == x);
    CHECK_FALSE(ref::noisy_input(all, x, {}, key) == x);
    CHECK_FALSE(ref::noisy_scores(all, x, key) == x);
    CHECK_FALSE(ref::selection_scores(all, x, key) == x);
}

TEST_CASE("reference noise: bad sizes are refused") {
    for (const float bad : {-0.1f, 1.0f, NAN, INFINITY}) {
        CHECK_THROWS_AS(ref::require_valid({.input_jitter = bad}), sy::error);
        CHECK_THROWS_AS(ref::require_valid({.input_dropout = bad}), sy::error);
        CHECK_THROWS_AS(ref::require_valid({.logit_jitter = bad}), sy::error);
    }
    for (const float bad : {-0.1f, NAN, INFINITY}) {
        CHECK_THROWS_AS(ref::require_valid({.sample_temperature = bad}), sy::error);
    }
}

TEST_CASE("reference projection: gradients of x and w by central differences, with noise") {
    const auto x = gaussian(6, 5, 2);
    const auto w = gaussian(5, 3, 3);
    const auto weights = gaussian(6, 3, 4);
    const ref::exploration noise{.input_jitter = 0.2f, .input_dropout = 0.3f};
    const ref::mask_list mask{1, 1, 0, 1, 1, 1};
    auto d_scores = weights;
    for (sy::index_t e = 0; e < 3; ++e) d_scores(2, e) = 0;  // as every router leaves padding rows
    const auto gradients = ref::project_backward(noise, x, w, mask, key, d_scores);
    const auto d_x = numeric_gradient(
        [&](const ref::matrix& at) { return inner(weights, ref::project(noise, at, w, mask, key)); }, x);
    const auto d_w = numeric_gradient(
        [&](const ref::matrix& at) { return inner(weights, ref::project(noise, x, at, mask, key)); }, w);
    CHECK(difference(gradients.d_x, d_x) < 1e-8);
    CHECK(difference(gradients.d_w, d_w) < 1e-8);
}

TEST_CASE("reference projection: what padding rows hold is not read") {
    auto x = gaussian(3, 4, 5);
    x(1, 2) = NAN;
    const auto w = gaussian(4, 2, 6);
    const ref::mask_list mask{1, 0, 1};
    const auto scores = ref::project({}, x, w, mask, {});
    CHECK(scores(1, 0) == 0);
    const auto gradients = ref::project_backward({}, x, w, mask, {}, ref::matrix{{1, 2}, {0, 0}, {3, 4}});
    for (const double number : gradients.d_w.values) CHECK(std::isfinite(number));
    CHECK_THROWS_AS(ref::project({}, x, ref::transpose(w), mask, {}), sy::error);
}
