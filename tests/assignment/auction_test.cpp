// The auction against trying everything, against the exact solver, and on its own example.
#include <switchyard/assignment/auction.hpp>

#include "assignment/instances.hpp"
#include "support/covers.hpp"

#include <bit>
#include <cmath>
#include <iostream>

using namespace assignment_tests;

namespace {

/// Deviation of the scores that are not forbidden from their tokens' means, by plain loops.
double deviation_of(const instance& problem) {
    double all = 0, squares = 0;
    for (index_t t = 0; t < problem.scores.rows; ++t) {
        double count = 0, sum = 0;
        const auto each = [&](auto&& f) {
            for (index_t e = 0; e < problem.scores.columns && reference::is_token(problem.mask, t); ++e) {
                if (problem.scores(t, e) > -infinity) f(problem.scores(t, e));
            }
        };
        each([&](double s) { count += 1, sum += s; });
        each([&](double s) { squares += (s - sum / count) * (s - sum / count); });
        all += count;
    }
    return all > 0 ? std::sqrt(squares / all) : 0;
}

/// What the auction promises of an assignment, and the reference knows of the best.
void require_within_bound(const instance& problem, const sy::auction& solver, const solution& found, double best) {
    const double promised = solver.gap_per_token * deviation_of(problem) * static_cast<double>(problem.tokens());
    double magnitude = 0;
    for (index_t t = 0; t < problem.scores.rows; ++t) {
        const auto e = found.experts[static_cast<std::size_t>(t)];
        if (e >= 0) magnitude += std::abs(problem.scores(t, e));
    }
    const double tolerance = std::max(promised, 1e-9 * sum_of_ranges(problem) + 1e-12);
    RC_ASSERT(is_valid(problem, found));
    RC_ASSERT(found.result.converged);
    RC_ASSERT(std::abs(found.result.tolerance - tolerance) <= 1e-9 * tolerance);
    RC_ASSERT(found.result.gap >= 0.0);
    RC_ASSERT(found.result.gap <= found.result.tolerance);
    const double digits = 1e-12 * magnitude;
    RC_ASSERT(best >= found.result.primal - digits);
    RC_ASSERT(best <= found.result.primal + found.result.gap + digits);
    RC_ASSERT(found.result.dual >= best - digits);
    // Complementary slackness: the auction's bound holds for each token, and for experts exactly.
    RC_ASSERT(is_complementary(
        problem, found,
        found.result.gap + 1e-9 * magnitude / std::max(1.0, static_cast<double>(problem.tokens())) + 1e-12));
}

/// The best of all ways to give tokens t and after k different experts each, -inf if there is none.
double best_of_sets(const instance& problem, index_t choices, index_t t, std::vector<index_t>& load) {
    const index_t experts = problem.scores.columns;
    if (t == problem.scores.rows) {
        for (index_t e = 0; e < experts; ++e) {
            const index_t here = load[static_cast<std::size_t>(e)];
            if (here < problem.lower[e] || here > problem.upper[e]) return -infinity;
        }
        return 0;
    }
    double best = -infinity;
    for (std::uint32_t set = 0; set < 1u << experts; ++set) {
        if (std::popcount(set) != choices) continue;
        double score = 0;
        for (index_t e = 0; e < experts; ++e) {
            if ((set >> e & 1) == 0) continue;
            score += problem.scores(t, e);
            load[static_cast<std::size_t>(e)] += 1;
        }
        if (score > -infinity) best = std::max(best, score + best_of_sets(problem, choices, t + 1, load));
        for (index_t e = 0; e < experts; ++e) load[static_cast<std::size_t>(e)] -= set >> e & 1;
    }
    return best;
}

}  // namespace

TEST_CASE_TEMPLATE("auction: the worked example", Scalar, float, double) {
    const instance problem{{{1, 0}, {.9, .3}, {.8, .6}, {.7, .05}}, {2, 2}, {2, 2}, {}};
    const solution found = solve_as<Scalar>(sy::auction{}, problem);
    CHECK(found.experts == std::vector<std::int32_t>{0, 1, 1, 0});
    CHECK(found.result.primal == doctest::Approx(2.6));
    CHECK(found.result.converged);
    CHECK(found.result.gap <= 4 * 0.0005 * deviation_of(problem));
    CHECK(found.result.tokens == 4);
}

TEST_CASE("auction: the worked example, bid by bid") {
    const std::vector<double> numbers{1, 0, .9, .3, .8, .6, .7, .05};
    const sy::detail::score_source<double> scores{{numbers.data(), 4, 2}};
    const std::vector<std::int32_t> rows{0, 1, 2, 3};
    sy::workspace scratch;
    const auto scope = scratch.open();
    sy::detail::auction_rounds<double> rounds(scores, 4, 1, 1.0, 1.0, scratch);
    std::fill_n(rounds.prices(), 2, 0.0);
    sy::detail::auction_budget budget{.rounds_left = 100};
    const auto two_places = [](index_t, index_t& lower, index_t& upper) { lower = upper = 2; };
    CHECK(rounds.run(sy::seq, rows.data(), 4, two_places, 0.01, 100, budget));
    CHECK(rounds.rounds() == 2);
    CHECK(rounds.bids() == 6);
    CHECK(rounds.prices()[0] == doctest::Approx(0.66));
    CHECK(rounds.prices()[1] == doctest::Approx(0.07));
    rounds.count_prices_from_market();
    CHECK(rounds.prices()[0] == doctest::Approx(0.59));
    CHECK(rounds.prices()[1] == 0);
    const std::vector<std::int32_t> experts(rounds.experts_of_places(), rounds.experts_of_places() + 4);
    CHECK(experts == std::vector<std::int32_t>{0, 1, 1, 0});
    const auto found =
        sy::detail::certify(sy::seq, scores, sy::balanced_quotas(4, 2), 1, experts.data(), rounds.prices(), scratch);
    CHECK(found.primal == doctest::Approx(2.6));
    CHECK(found.dual == doctest::Approx(2.61));
    CHECK(found.gap == doctest::Approx(0.01));
}

TEST_CASE("auction: as the page shows it") {
    std::mt19937_64 random(21);
    std::normal_distribution<float> normal;
    std::vector<float> numbers(160);
    for (float& s : numbers) s = normal(random);
    const sy::matrix_view<const float> scores{numbers.data(), 40, 4};
    const index_t T = scores.rows, E = scores.columns;
    // [auction]
    sy::workspace scratch;  // kept between calls: after the first, nothing is allocated
    std::vector<std::int32_t> expert(static_cast<std::size_t>(T));
    std::vector<double> prices(static_cast<std::size_t>(E));
    const sy::assignment_problem<float> problem{.scores = scores, .bounds = sy::balanced_quotas(T, E)};
    const auto found =
        solve(sy::seq, sy::auction{.gap_per_token = 0.0005}, problem, {expert.data(), prices.data()}, scratch);
    // found.tolerance  what was promised: 0.0005 T standard deviations of a token's scores
    // found.gap        what was proved: no assignment scores more than found.primal + found.gap
    // [/auction]
    CHECK(found.converged);
    CHECK(found.gap <= found.tolerance);
    CHECK(std::count(expert.begin(), expert.end(), 3) == 10);
}

TEST_CASE_TEMPLATE("auction: within its bound of the best on tiny instances of every kind", Scalar, float, double) {
    CHECK(holds("brute force", 4000, [] {
        const instance problem = any_instance(6, 4);
        const auto best = reference::best_of_all(problem.scores, problem.lower, problem.upper, problem.mask);
        RC_LOG() << problem;
        for (const double gap : {0.0005, 0.05, 0.0}) {
            const sy::auction solver{.gap_per_token = gap};
            solution found;
            const std::string sentence = sentence_of([&] { found = solve_as<Scalar>(solver, problem); });
            if (!best.feasible) {
                RC_ASSERT(sentence.find("the quotas cannot be met") == 0);
                return;
            }
            RC_ASSERT(sentence == "");
            require_within_bound(problem, solver, found, best.total_score);
        }
    }));
    switchyard_test::covers<switchyard_test::operation("auction")>(sy::seq);
}

TEST_CASE("auction: whatever prices it begins with, its bound holds") {
    CHECK(holds("any prices", 3000, [] {
        const instance problem = any_instance(6, 4);
        const auto best = reference::best_of_all(problem.scores, problem.lower, problem.upper, problem.mask);
        if (!best.feasible) return;
        std::mt19937_64 random(*rc::gen::arbitrary<std::uint32_t>());
        std::normal_distribution<double> normal;
        std::vector<double> prices(static_cast<std::size_t>(problem.scores.columns));
        const double size = *rc::gen::element(1e-3, 0.3, 2.0, 50.0, 1e300);
        for (double& price : prices) price = random() % 9 == 0 ? no_number : size * normal(random);
        RC_LOG() << problem;
        const sy::auction solver{.gap_per_token = *rc::gen::element(0.0005, 0.1)};
        require_within_bound(problem, solver, solve_as<double>(solver, problem, prices.data()), best.total_score);
    }));
}

TEST_CASE("auction: several experts per token, within the bound of the best") {
    std::mt19937_64 random(41);
    int feasible = 0, infeasible = 0;
    for (int i = 0; i < 6000; ++i) {
        const auto rows = static_cast<index_t>(1 + random() % 4);
        const auto experts = static_cast<index_t>(2 + random() % 4);
        const auto choices = static_cast<index_t>(1 + random() % static_cast<std::uint64_t>(experts));
        const auto kind = static_cast<score_kind>(random() % static_cast<std::uint64_t>(score_kind::count));
        instance problem = draw_instance(kind, rows, experts, i % 3 == 0 ? 60 : 0, false, random);
        bool enough = true;
        for (index_t t = 0; t < rows; ++t) {
            index_t allowed = 0;
            for (index_t e = 0; e < experts; ++e) allowed += problem.scores(t, e) > -infinity ? 1 : 0;
            enough &= allowed >= choices;
        }
        if (!enough) continue;
        for (index_t e = 0; e < experts; ++e) problem.lower[e] = problem.upper[e] = 0;
        for (index_t placed = 0; placed < rows * choices;) {
            const auto e = static_cast<index_t>(random() % static_cast<std::uint64_t>(experts));
            if (problem.lower[e] == rows) continue;
            problem.lower[e] += 1;
            placed += 1;
        }
        for (index_t e = 0; e < experts; ++e) {
            problem.upper[e] = problem.lower[e] + static_cast<index_t>(random() % 3);
            problem.lower[e] -= std::min(problem.lower[e], static_cast<index_t>(random() % 3));
        }
        INFO(problem, " k = ", choices);
        std::vector<index_t> load(static_cast<std::size_t>(experts), 0);
        const double best = best_of_sets(problem, choices, 0, load);

        std::vector<std::int32_t> found(static_cast<std::size_t>(rows * choices), 99);
        std::vector<double> prices(static_cast<std::size_t>(experts));
        sy::workspace scratch;
        auto posed = problem.posed(problem.scores.values.data());
        posed.choices = choices;
        sy::assignment_result result;
        const sy::auction solver{.gap_per_token = i % 2 == 0 ? 0.0005 : 0.05};
        const std::string sentence = sentence_of([&] {
            result = solve(sy::seq, solver, posed, {found.data(), prices.data()}, scratch);
        });
        if (best == -infinity) {
            REQUIRE(sentence.find("the quotas cannot be met") == 0);
            infeasible += 1;
            continue;
        }
        REQUIRE(sentence == "");
        feasible += 1;
        std::fill(load.begin(), load.end(), 0);
        double score = 0;
        for (index_t t = 0; t < rows; ++t) {
            std::uint32_t set = 0;
            for (index_t j = 0; j < choices; ++j) {
                const auto e = found[static_cast<std::size_t>(t * choices + j)];
                REQUIRE(e >= 0);
                REQUIRE(e < experts);
                REQUIRE((set >> e & 1) == 0);
                set |= 1u << e;
                load[static_cast<std::size_t>(e)] += 1;
                score += problem.scores(t, e);
                if (j > 0) {  // best first
                    REQUIRE(problem.scores(t, e) <=
                            problem.scores(t, found[static_cast<std::size_t>(t * choices + j - 1)]));
                }
            }
        }
        for (index_t e = 0; e < experts; ++e) {
            REQUIRE(load[static_cast<std::size_t>(e)] >= problem.lower[e]);
            REQUIRE(load[static_cast<std::size_t>(e)] <= problem.upper[e]);
        }
        const double digits =
            1e-9 * (std::abs(score) + std::abs(best)) + 1e-6 * (kind == score_kind::large_offset ? 1 : 0);
        REQUIRE(result.primal == doctest::Approx(score));
        REQUIRE(result.converged);
        REQUIRE(best >= result.primal - digits);
        REQUIRE(best <= result.primal + result.gap + digits);
    }
    CHECK(feasible > 3000);
    CHECK(infeasible > 20);
}

TEST_CASE_TEMPLATE("auction: within its bound on instances of some size", Scalar, float, double) {
    CHECK(holds("textbook", 300, [] {
        const instance problem = any_instance(40, 10);
        const auto best = reference::best_by_augmenting(problem.scores, problem.lower, problem.upper, problem.mask);
        if (!best.feasible) return;
        RC_LOG() << problem;
        for (const double gap : {0.0005, 0.02}) {
            const sy::auction solver{.gap_per_token = gap};
            require_within_bound(problem, solver, solve_as<Scalar>(solver, problem), best.total_score);
        }
    }));
}

TEST_CASE("auction: agrees with the exact solver at some thousand tokens") {
    std::mt19937_64 random(12);
    for (int kind = 0; kind < static_cast<int>(score_kind::count); ++kind) {
        for (int i = 0; i < 6; ++i) {
            const instance problem = draw_instance(static_cast<score_kind>(kind), 2000 + 300 * i, 8 + 7 * i,
                                                   i % 2 == 0 ? 0 : 60, i % 3 == 2, random);
            INFO("kind ", kind, " case ", i);
            const solution exact = solve_as<float>(sy::hungarian{}, problem);
            const solution found = solve_as<float>(sy::auction{}, problem);
            REQUIRE(is_valid(problem, found));
            REQUIRE(found.result.converged);
            REQUIRE(found.result.primal <= exact.result.primal + exact.result.tolerance);
            REQUIRE(found.result.primal >= exact.result.primal - found.result.tolerance);
            REQUIRE(found.result.dual >= exact.result.primal - exact.result.tolerance);
            // From its own prices, and those of the exact solver: nothing changes but the time.
            for (const auto& prices : {found.prices, exact.prices}) {
                const solution again = solve_as<float>(sy::auction{}, problem, prices.data());
                REQUIRE(again.result.converged);
                REQUIRE(again.result.primal >= exact.result.primal - again.result.tolerance);
            }
        }
    }
}

TEST_CASE("auction: prices carried over leave no expert dear and empty") {
    // A forward auction whose prices only rise leaves expert 0, which began at 5, without a token: 10 in all, where 30
    // is possible. The dummies are what makes the others rise until it is worth its price.
    reference::matrix scores(10, 2, 0.0);
    for (index_t t = 0; t < 10; ++t) {
        scores(t, 0) = 3 + 0.01 * static_cast<double>(t);
        scores(t, 1) = 1;
    }
    const instance problem{scores, {0, 0}, {12, 20}, {}};
    const std::vector<double> prices{5, 0};
    const solution found = solve_as<double>(sy::auction{}, problem, prices.data());
    CHECK(found.result.primal == doctest::Approx(30.45));
    CHECK(found.result.converged);
    CHECK(found.prices[0] <= found.result.tolerance);
}

TEST_CASE("auction: capacities with room to spare, from prices of any size") {
    std::mt19937_64 random(13);
    std::normal_distribution<double> normal;
    for (int i = 0; i < 40; ++i) {
        instance problem =
            draw_instance(i % 2 == 0 ? score_kind::gaussian : score_kind::skewed, 600, 10, 0, false, random);
        const double room = i % 4 == 0 ? 1.05 : i % 4 == 1 ? 1.25 : i % 4 == 2 ? 2.0 : 10.0;
        problem.lower = reference::filled<index_t>(10, i % 3 == 0 ? 20 : 0);
        problem.upper = reference::filled<index_t>(10, static_cast<index_t>(60 * room));
        const solution exact = solve_as<float>(sy::hungarian{}, problem);
        std::vector<double> prices(10);
        for (double& price : prices) price = 0.05 * std::pow(4.0, i % 5) * normal(random);
        for (const double gap : {0.0005, 0.02}) {
            const solution found = solve_as<float>(sy::auction{.gap_per_token = gap}, problem, prices.data());
            REQUIRE(is_valid(problem, found));
            REQUIRE(found.result.converged);
            REQUIRE(found.result.primal >= exact.result.primal - found.result.tolerance);
            REQUIRE(is_complementary(problem, found, found.result.gap + 1e-9));
        }
    }
}
