// Importance loss: worked numbers, the reference, gradients by differences, policies, errors.
#include "support/backends.hpp"
#include "support/compare.hpp"

#include <switchyard/balance/importance_loss.hpp>
#include <switchyard/plan/choices.hpp>
#include <switchyard/reference/score_loss.hpp>
#include <switchyard/router/route.hpp>
#include <switchyard/router/top_k.hpp>

#include <doctest/doctest.h>

#include <cmath>
#include <cstdint>
#include <vector>

using namespace switchyard_test;

namespace {

using list = std::vector<double>;

double variation(const list& x, double* d_x = nullptr) {
    return sy::squared_variation(1, x.data(), static_cast<index_t>(x.size()), d_x);
}

template <class Policy, class Plan>
list importance_of(const Policy& policy, const Plan& plan, index_t experts) {
    list importance(static_cast<std::size_t>(experts));
    sy::workspace scratch;
    sy::write_importance(policy, plan, experts, importance.data(), scratch);
    return importance;
}

}  // namespace

TEST_CASE("importance loss: worked numbers of the squared variation") {
    CHECK(variation({2, 2, 2}) == 0);
    CHECK(variation({3, 0, 0}) == doctest::Approx(2));  // E - 1
    CHECK(variation({1, 3}) == doctest::Approx(0.25));  // 1 / 4
    CHECK(variation({0, 0, 0}) == 0);
    CHECK(sy::squared_variation(0.1, list{1, 3}.data(), 2) == doctest::Approx(0.025));
}

TEST_CASE("importance loss: the gradient of the squared variation by differences") {
    const list x{0.5, 2, 1.25, 0, 3};
    list d_x(5);
    variation(x, d_x.data());
    for (std::size_t e = 0; e < x.size(); ++e) {
        list moved = x;
        moved[e] += 1e-6;
        const double above = variation(moved);
        moved[e] -= 2e-6;
        CHECK(d_x[e] == doctest::Approx((above - variation(moved)) / 2e-6).epsilon(1e-7));
    }
    list none(3, 1);
    variation({0, 0, 0}, none.data());
    CHECK(none == list{0, 0, 0});
}

TEST_CASE("importance loss: the reference's sums, of plans with padding and drops, on every policy") {
    const auto mask = draw_mask(700, 3);
    const auto scores = stored<float>(gaussian_scores(700, 8, 4));
    const sy::top_k_router router{.k = 2, .capacity = {.factor = 0.7}};
    const auto plan = sy::route_scores(sy::seq, router, scores, sy::training{.mask = mask_of(mask)});
    REQUIRE(plan.kept() < 1000);
    const auto gates = ref::matrix_from(plan.gate());
    const auto want = ref::importance_of(experts_of(plan.view()), gates, 8);
    const list got = importance_of(sy::seq, plan, 8);
    for (index_t e = 0; e < 8; ++e) CHECK(got[static_cast<std::size_t>(e)] == doctest::Approx(want[e]).epsilon(1e-13));
    CHECK(variation(got) == doctest::Approx(ref::squared_variation(want)));
    for_each_policy([&](const auto& policy) { CHECK(importance_of(policy, plan, 8) == got); });
}

TEST_CASE("importance loss: the gradient of gates by differences") {
    const std::vector<std::int32_t> chosen{0, 2, 1, -1, 2, 0, 3, 1};
    const std::vector<double> weights{.75, .25, 1, 0, .5, .5, .9, .3};
    const auto ids = sy::view_of(std::span(chosen), 4, 2);
    const auto loss_of = [&](const std::vector<double>& gates) {
        const auto plan = sy::plan_from_choices(sy::seq, ids, sy::view_of(std::span(gates), 4, 2), 5);
        return variation(importance_of(sy::seq, plan, 5));
    };
    const auto plan = sy::plan_from_choices(sy::seq, ids, sy::view_of(std::span(weights), 4, 2), 5);
    list d_importance(5);
    variation(importance_of(sy::seq, plan, 5), d_importance.data());
    auto d_gates = stored<double>(ref::matrix(4, 2, 7));
    sy::importance_loss_backward(sy::seq, plan, 5, d_importance.data(), d_gates);
    auto added = stored<double>(ref::matrix(4, 2, 7));
    sy::importance_loss_backward(sy::seq, plan, 5, d_importance.data(), added, {.scale = -2, .adds = true});
    for (std::size_t i = 0; i < weights.size(); ++i) {
        auto moved = weights;
        moved[i] += 1e-6;
        const double above = loss_of(moved);
        moved[i] -= 2e-6;
        const double numeric = chosen[i] < 0 ? 0 : (above - loss_of(moved)) / 2e-6;
        CHECK(d_gates.data()[i] == doctest::Approx(numeric).epsilon(1e-6));
        CHECK(added.data()[i] == doctest::Approx(7 - 2 * d_gates.data()[i]));
    }
}

TEST_CASE("importance loss: no tokens, and errors") {
    const auto plan = sy::plan_from_choices(sy::seq, sy::matrix<std::int32_t>(0, 2), 3);
    CHECK(importance_of(sy::seq, plan, 3) == list{0, 0, 0});
    CHECK(sentence_of([] { sy::squared_variation(std::nan(""), list{1}.data(), 1); }) == "weight = nan must be finite");
    CHECK(sentence_of([] { sy::squared_variation(1, list{}.data(), 0); }) == "E = 0 numbers do not vary");
    const sy::plan<float> empty;
    CHECK(sentence_of([&] { importance_of(sy::seq, empty, 3); }).starts_with("the plan is empty"));
}

TEST_CASE("importance loss: the page's example") {
    const auto scores = stored<float>(gaussian_scores(64, 8, 12));
    const sy::index_t experts = 8;
    const auto plan = sy::route_scores(sy::seq, sy::top_k_router{.k = 2}, scores, sy::training{});
    sy::matrix<float> d_gates = stored<float>(ref::matrix(64, 2));
    // [importance]
    std::vector<double> importance(8);
    std::vector<double> d_importance(8);
    sy::workspace scratch;
    sy::write_importance(sy::seq, plan, experts, importance.data(), scratch);
    const double loss = sy::squared_variation(0.1, importance.data(), experts, d_importance.data());
    // Into the gradient of the gates, which the router's backward takes to the scores.
    sy::importance_loss_backward(sy::seq, plan, experts, d_importance.data(), d_gates, {.adds = true});
    // [/importance]
    CHECK(loss > 0);
    CHECK(d_gates(0, 0) != 0);
}
