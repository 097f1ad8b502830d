// Sinkhorn's bias against plain loops in double; what it evens out, hostile scores, policies, settings.
#include "support/backends.hpp"
#include "support/routed.hpp"

#include <switchyard/router/recipe.hpp>
#include <switchyard/router/sinkhorn.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

using namespace switchyard_test;

namespace {

using numbers = std::vector<float>;

/// The transport plan after so many rounds, by the formula: its column sums over the mean, and the bias.
struct plain_sinkhorn {
    std::vector<double> share;
    std::vector<double> bias;
};

plain_sinkhorn plain_rounds(const ref::matrix& scores, double temperature, index_t rounds, const ref::mask_list& mask) {
    const index_t experts = scores.columns;
    std::vector<double> g(static_cast<std::size_t>(experts));
    std::vector<double> share;
    for (index_t round = 0; round <= rounds; ++round) {
        std::vector<double> sum(g.size());
        double mass = 0;
        for (index_t t = 0; t < scores.rows; ++t) {
            double top = never;
            for (index_t e = 0; e < experts; ++e) {
                top = std::max(top, scores(t, e) / temperature + g[static_cast<std::size_t>(e)]);
            }
            if (top == never || !ref::is_token(mask, t)) continue;
            double all = 0;
            for (index_t e = 0; e < experts; ++e) {
                all += std::exp(scores(t, e) / temperature + g[static_cast<std::size_t>(e)] - top);
            }
            for (std::size_t e = 0; e < g.size(); ++e) {
                sum[e] += std::exp(scores(t, static_cast<index_t>(e)) / temperature + g[e] - top) / all;
            }
            mass += 1;
        }
        share.clear();
        for (const double s : sum) share.push_back(s * static_cast<double>(experts) / mass);
        if (round == rounds) break;
        for (std::size_t e = 0; e < g.size(); ++e) {
            if (sum[e] > 0) g[e] -= std::log(share[e]);
        }
    }
    double mean = 0;
    double open = 0;
    for (std::size_t e = 0; e < g.size(); ++e) {
        if (share[e] > 0) mean += g[e];
        if (share[e] > 0) open += 1;
    }
    for (std::size_t e = 0; e < g.size(); ++e) g[e] = (g[e] - (share[e] > 0 ? mean / open : 0)) * temperature;
    return {share, g};
}

/// Scores of which some experts are liked by everybody.
ref::matrix skewed(index_t tokens, index_t experts, std::uint64_t seed) {
    auto scores = gaussian_scores(tokens, experts, seed);
    for (index_t t = 0; t < tokens; ++t) {
        for (index_t e = 0; e < experts; ++e) scores(t, e) += e % 3 == 0 ? 1.5 : 0;
    }
    return scores;
}

template <class S, class Policy>
sy::sinkhorn_report run(const Policy& policy, const ref::matrix& scores, const sy::sinkhorn_settings& settings,
                        const ref::mask_list& mask, numbers& bias) {
    sy::workspace scratch;
    return sy::sinkhorn_bias(policy, stored<S>(scores), settings, mask_of(mask), bias.data(), scratch);
}

}  // namespace

TEST_CASE_TEMPLATE("sinkhorn: rounds as plain loops take them", S, float, double) {
    for (const index_t experts : {1, 2, 7, 16, 33}) {
        for (const index_t tokens : {1, 40, 700}) {
            for (const double temperature : {1.0, 0.3, 3.0}) {
                for (const index_t rounds : {1, 2, 9}) {
                    const auto scores = skewed(tokens, experts, 3);
                    const auto mask = tokens == 40 ? draw_mask(tokens, 4) : ref::mask_list{};
                    const auto want = plain_rounds(scores, temperature, rounds, mask);
                    numbers bias(static_cast<std::size_t>(experts));
                    const auto report = run<S>(
                        sy::seq, scores, {.temperature = temperature, .rounds = rounds, .tolerance = 0}, mask, bias);
                    CHECK(report.rounds <= rounds);
                    for (std::size_t e = 0; e < bias.size(); ++e) {
                        CHECK(std::abs(static_cast<double>(bias[e]) - want.bias[e]) < 2e-5 * temperature);
                    }
                }
            }
        }
    }
}

TEST_CASE("sinkhorn: a converged bias evens out probabilities, and loads") {
    for (const double temperature : {1.0, 0.1, 0.02}) {
        const auto scores = skewed(2000, 12, 5);
        numbers bias(12);
        const sy::sinkhorn_settings settings{.temperature = temperature, .rounds = 20000, .tolerance = 1e-3};
        const auto report = run<double>(sy::seq, scores, settings, {}, bias);
        CAPTURE(temperature);
        CHECK(report.residual <= 1e-3);
        CHECK(report.rounds < 20000);
        auto moved = scores;
        for (index_t t = 0; t < 2000; ++t) {
            for (index_t e = 0; e < 12; ++e) moved(t, e) += static_cast<double>(bias[static_cast<std::size_t>(e)]);
        }
        for (const double share : plain_rounds(moved, temperature, 0, {}).share) CHECK(std::abs(share - 1) < 2e-3);
        double sum = 0;
        for (const float b : bias) sum += static_cast<double>(b);
        CHECK(std::abs(sum) < 1e-5);
        const auto imbalance = [&](const sy::recipe_router<>& router) {
            const auto plan = routed<float>(router, scores);
            const auto* const load = plan.view().load_before;
            return static_cast<double>(*std::max_element(load, load + 12)) * 12 / 2000;
        };
        sy::recipe_router<> router{.k = 1, .score = sy::score_function::sigmoid, .key = sy::key_source::score};
        CHECK(imbalance(router) > 1.9);
        router.selection_bias = {bias.data(), 12};
        CHECK(imbalance(router) < (temperature == 1 ? 1.3 : temperature < 0.05 ? 1.03 : 1.1));
        // From there the next step's is near.
        numbers warm = bias;
        const auto next = skewed(2000, 12, 6);
        numbers cold(12);
        const auto from_cold = run<double>(sy::seq, next, settings, {}, cold);
        auto goes_on = settings;
        goes_on.starts_warm = true;
        const auto from_warm = run<double>(sy::seq, next, goes_on, {}, warm);
        CHECK(from_warm.rounds < from_cold.rounds);
        for (std::size_t e = 0; e < 12; ++e) CHECK(std::abs(warm[e] - cold[e]) < 0.02f);
    }
}

TEST_CASE("sinkhorn: forbidden experts, empty rows, extreme temperatures and sizes") {
    auto scores = draw_scores(score_kind::gaussian, 200, 9, 3, 400);
    for (index_t t = 0; t < 200; ++t) scores(t, 4) = never;
    for (index_t e = 0; e < 9; ++e) scores(17, e) = never;
    numbers bias(9);
    auto report = run<float>(sy::seq, scores, {.rounds = 500, .tolerance = 1e-3}, {}, bias);
    CHECK(bias[4] == 0);
    CHECK(std::isfinite(report.residual));
    for (const float b : bias) CHECK(std::isfinite(b));
    // Far beyond what exp(s / temperature) can hold.
    for (const double temperature : {1e-3, 1e-40, 1e30}) {
        auto wide = gaussian_scores(64, 8, 2);
        for (double& score : wide.values) score *= 40;
        numbers cold(8);
        if (temperature == 1e-40) {  // its inverse is beyond float
            CHECK(sentence_of([&] { run<float>(sy::seq, wide, {.temperature = temperature}, {}, cold); }) ==
                  "temperature = 1e-40: its inverse is beyond the type of the scores");
            continue;
        }
        report = run<float>(sy::seq, wide, {.temperature = temperature, .rounds = 50}, {}, cold);
        for (const float b : cold) CHECK(std::isfinite(b));
        CHECK(std::isfinite(report.residual));
    }
    numbers none(3);
    report = run<float>(sy::seq, ref::matrix(0, 3), {}, {}, none);
    CHECK(report.rounds == 1);
    CHECK(report.residual == 0);
    CHECK((none == numbers(3)));
    run<float>(sy::seq, gaussian_scores(5, 3, 1), {}, ref::filled<std::uint8_t>(5, 0), none);
    CHECK((none == numbers(3)));
}

TEST_CASE("sinkhorn: the same bits on every policy and from every layout") {
    const auto scores = skewed(3000, 40, 9);
    numbers want(40);
    const sy::sinkhorn_settings settings{.temperature = 0.5, .rounds = 12};
    const auto told = run<float>(sy::seq, scores, settings, {}, want);
    sy::workspace scratch;
    for_each_policy([&](const auto& policy) {
        numbers bias(40);
        const auto report = run<float>(policy, scores, settings, {}, bias);
        CHECK(bias == want);
        CHECK(report.residual == told.residual);
        numbers by_columns(40);
        sy::sinkhorn_bias(policy, column_major::layout<float>(scores).view(), settings, {}, by_columns.data(), scratch);
        CHECK(by_columns == want);
    });
}

TEST_CASE("sinkhorn: every rule broken is named") {
    auto scores = gaussian_scores(4, 3, 1);
    numbers bias(3);
    const auto sentence = [&](const sy::sinkhorn_settings& settings, float* to) {
        return sentence_of([&] {
            sy::workspace scratch;
            sy::sinkhorn_bias(sy::seq, stored<float>(scores), settings, {}, to, scratch);
        });
    };
    CHECK(sentence({.temperature = 0}, bias.data()) == "temperature = 0 must be finite and more than 0");
    CHECK(sentence({.temperature = NAN}, bias.data()).find("temperature = ") == 0);
    CHECK(sentence({.rounds = 0}, bias.data()) == "rounds = 0 must be at least 1");
    CHECK(sentence({.tolerance = -1}, bias.data()) == "tolerance = -1 must not be negative");
    CHECK(sentence({.tolerance = NAN}, bias.data()).find("tolerance = ") == 0);
    CHECK(sentence({}, nullptr) == "the bias is a null pointer");
    scores(2, 1) = NAN;
    CHECK(sentence({}, bias.data()).find("scores[2, 1] is NaN") == 0);
    CHECK(sentence({.bad = sy::bad_scores::forbid_nan}, bias.data()) == "");
}
