#include "assignment/instances.hpp"
#include "support/covers.hpp"
#include "support/thread_pool.hpp"

#include <iostream>

using namespace assignment_tests;

namespace {

/// Settings that take every way through the solver.
const sy::hungarian all_settings[] = {
    {}, {.candidates = 1, .sampling = 0}, {.candidates = 1, .sampling = 2}, {.candidates = 3, .sampling = 3}};

template <class Scalar>
void require_optimal(const instance& problem, const sy::hungarian& solver, const reference::assignment& best) {
    solution found;
    const std::string sentence = sentence_of([&] { found = solve_as<Scalar>(solver, problem); });
    if (!best.feasible) {
        RC_ASSERT(sentence.find("the quotas cannot be met") == 0);
        return;
    }
    RC_ASSERT(sentence == "");
    RC_ASSERT(is_valid(problem, found));
    RC_ASSERT(found.result.converged);
    RC_ASSERT(found.result.repairs == 0);  // on scores like these, paths alone end at prices that prove it
    RC_ASSERT(found.result.gap >= 0.0);
    RC_ASSERT(found.result.gap <= found.result.tolerance);
    RC_ASSERT(std::abs(found.result.primal - best.total_score) <= found.result.tolerance);
    RC_ASSERT(is_complementary(problem, found, found.result.tolerance));
}

}  // namespace

TEST_CASE_TEMPLATE("hungarian: the worked example", Scalar, float, double) {
    const instance problem{{{1, 0}, {.9, .3}, {.8, .6}, {.7, .05}}, {2, 2}, {2, 2}, {}};
    for (const auto& solver : all_settings) {
        const solution found = solve_as<Scalar>(solver, problem);
        CHECK(found.experts == std::vector<std::int32_t>{0, 1, 1, 0});
        CHECK(found.result.primal == doctest::Approx(2.6));
        CHECK(found.result.converged);
        CHECK(found.result.tokens == 4);
    }
}

TEST_CASE_TEMPLATE("hungarian: equals brute force on tiny instances of every kind", Scalar, float, double) {
    CHECK(holds("brute force", 4000, [] {
        const instance problem = any_instance(6, 4);
        const auto best = reference::best_of_all(problem.scores, problem.lower, problem.upper, problem.mask);
        RC_LOG() << problem;
        for (const auto& solver : all_settings) require_optimal<Scalar>(problem, solver, best);
    }));
}

TEST_CASE_TEMPLATE("hungarian: equals the textbook on instances of some size", Scalar, float, double) {
    CHECK(holds("textbook", 300, [] {
        const instance problem = any_instance(40, 10);
        const auto best = reference::best_by_augmenting(problem.scores, problem.lower, problem.upper, problem.mask);
        RC_LOG() << problem;
        for (const auto& solver : all_settings) require_optimal<Scalar>(problem, solver, best);
    }));
    switchyard_test::covers<switchyard_test::operation("exact assignment")>(sy::seq);
}

TEST_CASE("hungarian: certified and complementary at some thousand tokens, whatever the settings") {
    std::mt19937_64 random(11);
    for (int kind = 0; kind < static_cast<int>(score_kind::count); ++kind) {
        for (int i = 0; i < 6; ++i) {
            const instance problem = draw_instance(static_cast<score_kind>(kind), 2000 + 300 * i, 8 + 7 * i,
                                                   i % 2 == 0 ? 0 : 60, i % 3 == 2, random);
            INFO("kind ", kind, " case ", i);
            double expected = 0;
            for (const auto& solver : all_settings) {
                const solution found = solve_as<float>(solver, problem);
                REQUIRE(found.result.converged);
                REQUIRE(found.result.repairs == 0);
                REQUIRE(is_valid(problem, found));
                REQUIRE(is_complementary(problem, found, 1e-8));
                REQUIRE(found.result.dual == doctest::Approx(found.result.primal).epsilon(1e-9));
                if (&solver == &all_settings[0]) expected = found.result.primal;
                REQUIRE(std::abs(found.result.primal - expected) <= 2 * found.result.tolerance);
            }
        }
    }
}

TEST_CASE("hungarian: of the experts that may take one more, the best ones do") {
    // Three tokens for two experts: two places at expert 1 are worth 3 + 2, two at expert 0 only 3 + 1.
    const instance problem{{{1, 2}, {0, 3}, {1, 0}}, {1, 1}, {2, 2}, {}};
    const solution found = solve_as<float>(sy::hungarian{}, problem);
    CHECK(found.experts == std::vector<std::int32_t>{1, 1, 0});
    CHECK(found.result.primal == 6);
}

TEST_CASE("hungarian: always the same assignment, whatever the workspace was used for before") {
    std::mt19937_64 random(3);
    const instance problem = draw_instance(score_kind::quarters, 500, 12, 30, true, random);
    const instance another = draw_instance(score_kind::gaussian, 900, 31, 0, false, random);
    const std::vector<float> scores(problem.scores.values.begin(), problem.scores.values.end());
    const std::vector<float> others(another.scores.values.begin(), another.scores.values.end());
    const solution first = solve_as<float>(sy::hungarian{}, problem);
    sy::workspace scratch;
    std::vector<std::int32_t> experts(500), elsewhere(900);
    std::vector<double> prices(12);
    for (int i = 0; i < 3; ++i) {
        solve(sy::seq, sy::hungarian{}, another.posed(others.data()), {elsewhere.data()}, scratch);
        solve(sy::seq, sy::hungarian{}, problem.posed(scores.data()), {experts.data(), prices.data()}, scratch);
        CHECK(experts == first.experts);
        CHECK(prices == first.prices);
    }
}

TEST_CASE("hungarian: prices may be read and written in place") {
    std::mt19937_64 random(4);
    const instance problem = draw_instance(score_kind::gaussian, 600, 9, 0, false, random);
    solution found = solve_as<float>(sy::hungarian{}, problem);
    const std::vector<float> scores(problem.scores.values.begin(), problem.scores.values.end());
    sy::workspace scratch;
    const auto again = solve(sy::seq, sy::hungarian{}, problem.posed(scores.data(), found.prices.data()),
                             {found.experts.data(), found.prices.data()}, scratch);
    CHECK(again.converged);
    CHECK(again.primal == doctest::Approx(found.result.primal));
}

TEST_CASE("hungarian: the same bits for every number of threads") {
    std::mt19937_64 random(6);
    switchyard_test::thread_pool pool(3);
    const auto check_threads = [&](const sy::hungarian& solver, const instance& problem, index_t choices) {
        INFO("k = ", choices);
        const index_t tokens = problem.scores.rows, experts = problem.scores.columns;
        const std::vector<float> scores(problem.scores.values.begin(), problem.scores.values.end());
        const auto solve_on = [&](const auto& policy) {
            solution found;
            found.experts.resize(static_cast<std::size_t>(tokens * choices));
            found.prices.resize(static_cast<std::size_t>(experts));
            auto posed = problem.posed(scores.data());
            posed.choices = choices;
            if (choices > 1) posed.bounds = sy::capacity_quotas(tokens * choices * 9 / (8 * experts), experts);
            sy::workspace scratch;
            found.result = solve(policy, solver, posed, {found.experts.data(), found.prices.data()}, scratch);
            return found;
        };
        const solution want = solve_on(sy::seq);
        CHECK(want.result.converged);
        const auto check = [&](const auto& policy) {
            const solution found = solve_on(policy);
            CHECK(found.experts == want.experts);
            CHECK(found.prices == want.prices);
            CHECK(found.result.primal == want.result.primal);
            CHECK(found.result.gap == want.result.gap);
            CHECK(found.result.iterations == want.result.iterations);
        };
        for (const int threads : {1, 2, 3, 8}) check(sy::par_on(sy::openmp{.threads = threads}));
        check(sy::par_on(pool));
    };
    for (int kind = 0; kind < static_cast<int>(score_kind::count); ++kind) {
        INFO("kind ", kind);
        const instance problem = draw_instance(static_cast<score_kind>(kind), 6000, 24, 0, false, random);
        for (const index_t choices : {index_t{1}, index_t{3}}) check_threads({}, problem, choices);
    }
    // All tokens at once: the certificate is then of all scores, and they are enough for threads.
    const instance large = draw_instance(score_kind::skewed, 6000, 88, 0, false, random);
    REQUIRE(large.scores.rows * large.scores.columns >= sy::detail::scores_worth_threads);
    for (const index_t choices : {index_t{1}, index_t{3}}) check_threads({.sampling = 0}, large, choices);
    switchyard_test::covers<switchyard_test::operation("exact assignment")>(sy::par);
}

TEST_CASE("hungarian: a limit leaves an assignment within the quotas, and says how far from the best it may be") {
    std::mt19937_64 random(8);
    for (const index_t rows : {index_t{60}, index_t{5000}}) {
        const instance problem = draw_instance(score_kind::skewed, rows, 16, 20, true, random);
        const solution best = solve_as<float>(sy::hungarian{}, problem);
        REQUIRE(best.result.converged);
        index_t stopped = 0;
        for (index_t limit = 1; limit < 2 * best.result.iterations + 2; limit += 1 + limit / 4) {
            for (const sy::hungarian& solver :
                 {sy::hungarian{.most_iterations = limit}, sy::hungarian{.sampling = 0, .most_iterations = limit}}) {
                const solution found = solve_as<float>(solver, problem);
                CHECK(is_valid(problem, found));
                CHECK(found.result.gap >= best.result.primal - found.result.primal - best.result.tolerance);
                CHECK(found.result.dual >= best.result.primal - best.result.tolerance);
                stopped += found.result.converged ? 0 : 1;
            }
        }
        CHECK(stopped > 0);
        const solution hurried = solve_as<float>(sy::hungarian{.sampling = 0, .time_limit = 1e-9}, problem);
        CHECK(is_valid(problem, hurried));
        CHECK(!hurried.result.converged);
    }
}
