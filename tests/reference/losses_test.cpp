#include "numeric.hpp"

#include <switchyard/reference/losses.hpp>

#include <doctest/doctest.h>

#include <cmath>

using namespace switchyard_test;

namespace {

const ref::matrix p{{0.7, 0.3}, {0.6, 0.4}, {0.2, 0.8}, {0.9, 0.1}};
const ref::integers chosen{{0}, {0}, {1}, {0}};

}  // namespace

TEST_CASE("reference losses: the worked balance loss") {
    const auto f = ref::choice_shares(ref::count_choices(chosen, 2, ref::balance_count::first), 4);
    CHECK(f == ref::list<double>{0.75, 0.25});
    const auto means = ref::mean_probabilities(p, 4);
    CHECK(means[0] == doctest::Approx(0.6).epsilon(1e-15));
    CHECK(means[1] == doctest::Approx(0.4).epsilon(1e-15));
    CHECK(ref::load_balancing_loss(1, f, means) == doctest::Approx(1.1).epsilon(1e-14));
    CHECK(ref::load_balancing_loss(0.01, f, means) == doctest::Approx(0.011).epsilon(1e-14));
}

TEST_CASE("reference losses: uniform shares and probabilities give the weight") {
    CHECK(ref::load_balancing_loss(0.01, {0.25, 0.25, 0.25, 0.25}, {0.25, 0.25, 0.25, 0.25}) == 0.01);
    // That is not a lower bound.
    CHECK(ref::load_balancing_loss(0.01, {1, 0}, {0.1, 0.9}) < 0.01);
}

TEST_CASE("reference losses: first choices over N, or all k over k N") {
    const ref::integers two{{0, 1}, {0, 2}, {-1, -1}, {1, 0}};  // one row of padding
    CHECK(ref::count_choices(two, 3, ref::balance_count::first) == ref::list<sy::index_t>{2, 1, 0});
    CHECK(ref::count_choices(two, 3, ref::balance_count::all) == ref::list<sy::index_t>{3, 2, 1});
    CHECK(ref::choice_shares({3, 2, 1}, 6) == ref::list<double>{0.5, 2.0 / 6, 1.0 / 6});
}

TEST_CASE("reference losses: the worked z-loss") {
    CHECK(ref::z_loss(1, {{0, 0}}, {}) == doctest::Approx(0.480453).epsilon(1e-6));
    CHECK(ref::z_loss(0.001, {{0, 0}, {0, 0}}, {}) == doctest::Approx(0.000480453).epsilon(1e-6));
    // It is a function of logits: probabilities would always have logsumexp(log p) = 0.
    CHECK(ref::z_loss(1, logarithm(p), {}) == doctest::Approx(0).epsilon(1e-15));
    // Without any token allowed anywhere the sum is empty; the denominator still counts the token.
    CHECK(ref::z_loss(1, {{0, 0}, {-ref::infinity, -ref::infinity}}, {}) ==
          doctest::Approx(0.480453 / 2).epsilon(1e-6));
}

TEST_CASE("reference losses: padding counts in nothing") {
    const ref::matrix scores{{0, 0}, {NAN, 1e9}, {0, 0}};
    const ref::mask_list mask{1, 0, 1};
    CHECK(ref::z_loss(1, scores, mask) == ref::z_loss(1, {{0, 0}, {0, 0}}, {}));
    CHECK(ref::mean_probabilities(ref::softmax_rows(scores, mask), 2) == ref::list<double>{0.5, 0.5});
    CHECK(ref::z_loss_backward(1, scores, mask)(1, 1) == 0);
    CHECK(ref::load_balancing_loss_backward(1, {0.5, 0.5}, mask, 3) == ref::matrix{{0.5, 0.5}, {0, 0}, {0.5, 0.5}});
}

TEST_CASE("reference losses: no tokens, no loss, no NaN") {
    const ref::matrix none(0, 3);
    const ref::matrix padding{{1, 2, 3}};
    for (const auto& [scores, mask] : {std::pair{none, ref::mask_list{}}, std::pair{padding, ref::mask_list{0}}}) {
        CHECK(ref::z_loss(1, scores, mask) == 0);
        const auto means = ref::mean_probabilities(ref::softmax_rows(scores, mask), 0);
        CHECK(ref::load_balancing_loss(1, ref::choice_shares({0, 0, 0}, 0), means) == 0);
        CHECK(ref::z_loss_backward(1, scores, mask) == ref::matrix(scores.rows, 3));
        CHECK(ref::load_balancing_loss_backward(1, {0, 0, 0}, mask, scores.rows) == ref::matrix(scores.rows, 3));
    }
}

TEST_CASE("reference losses: gradients by central differences") {
    auto scores = gaussian(6, 4, 1);
    scores(3, 1) = -ref::infinity;
    for (sy::index_t e = 0; e < 4; ++e) scores(5, e) = -ref::infinity;
    const ref::mask_list mask{1, 1, 0, 1, 1, 1};
    const auto z = numeric_gradient([&](const ref::matrix& at) { return ref::z_loss(0.3, at, mask); }, scores);
    CHECK(difference(ref::z_loss_backward(0.3, scores, mask), z) < 1e-8);

    const ref::list<double> f{0.5, 0.25, 0.25, 0};
    const auto loss = [&](const ref::matrix& at) {
        return ref::load_balancing_loss(0.3, f, ref::mean_probabilities(at, 5));
    };
    auto probabilities = ref::softmax_rows(scores, mask);
    auto numeric = numeric_gradient(loss, probabilities);
    for (sy::index_t e = 0; e < 4; ++e) numeric(2, e) = 0;  // padding has no p to differentiate by
    CHECK(difference(ref::load_balancing_loss_backward(0.3, f, mask, 6), numeric) < 1e-8);
}
