// Scores, prices and limits that make auctions stumble: every size of numbers, ties by the thousand, bad input,
// threads.
#include <switchyard/assignment/auction.hpp>
#include <switchyard/backend/eigen.hpp>

#include "assignment/instances.hpp"
#include "support/covers.hpp"
#include "support/thread_pool.hpp"

#include <algorithm>
#include <cmath>

using namespace assignment_tests;

namespace {

template <class Policy, class Scalar>
solved solve_balanced(const Policy& policy, const std::vector<Scalar>& scores, index_t tokens, index_t experts,
                      const sy::auction& solver = {}, const double* initial_prices = nullptr) {
    solved found;
    found.experts.resize(static_cast<std::size_t>(tokens));
    found.prices.resize(static_cast<std::size_t>(experts));
    sy::workspace scratch;
    const sy::assignment_problem<Scalar> problem{.scores = {scores.data(), tokens, experts},
                                                 .bounds = sy::balanced_quotas(tokens, experts),
                                                 .initial_prices = initial_prices};
    found.result = solve(policy, solver, problem, {found.experts.data(), found.prices.data()}, scratch);
    for (std::int32_t e = 0; e < experts; ++e) {
        REQUIRE(found.load(e) >= tokens / experts);
        REQUIRE(found.load(e) <= (tokens + experts - 1) / experts);
    }
    return found;
}

/// Scores s(t, e) of any kind.
template <class F>
std::vector<float> scores_by(index_t tokens, index_t experts, F&& f) {
    std::vector<float> scores(static_cast<std::size_t>(tokens * experts));
    for (index_t t = 0; t < tokens; ++t) {
        for (index_t e = 0; e < experts; ++e) {
            scores[static_cast<std::size_t>(t * experts + e)] =
                static_cast<float>(f(static_cast<double>(t), static_cast<double>(e)));
        }
    }
    return scores;
}

std::string refusal(reference::matrix scores, bounds_list lower, bounds_list upper, reference::mask_list mask = {}) {
    const instance problem{std::move(scores), std::move(lower), std::move(upper), std::move(mask)};
    return sentence_of([&] { solve_as<double>(sy::auction{}, problem); });
}

}  // namespace

TEST_CASE("auction: smallest shapes") {
    const auto solve_shape = [](index_t rows, index_t columns, bounds_list lower, bounds_list upper) {
        return solve_as<float>(sy::auction{}, {reference::matrix(rows, columns, 0.5), lower, upper, {}});
    };
    CHECK(solve_shape(0, 3, {0, 0, 0}, {1, 1, 1}).result.converged);
    CHECK(solve_shape(0, 0, {}, {}).result.converged);
    CHECK(solve_shape(0, 0, {}, {}).result.primal == 0);
    CHECK(solve_shape(1, 1, {1}, {1}).experts == std::vector<std::int32_t>{0});
    CHECK(solve_shape(5, 1, {0}, {9}).experts == std::vector<std::int32_t>(5, 0));
    CHECK(solve_shape(5, 1, {5}, {5}).result.primal == 2.5);
    CHECK(solve_shape(2, 5, {0, 0, 0, 0, 0}, {0, 1, 0, 0, 1}).result.primal == 1.0);
    const instance few{{{1, 5, 2, 0}, {1, 5, 4, 0}}, {0, 0, 0, 0}, {1, 1, 1, 1}, {}};
    CHECK(solve_as<float>(sy::auction{}, few).experts == std::vector<std::int32_t>{1, 2});
    const instance padded{
        {{1, 0}, {no_number, infinity}, {2, 0}, {-infinity, -infinity}}, {1, 1}, {1, 1}, {1, 0, 1, 0}};
    CHECK(solve_as<double>(sy::auction{}, padded).experts == std::vector<std::int32_t>{1, -1, 0, -1});
    const instance nothing{{{no_number, 1}, {1, no_number}}, {0, 0}, {4, 4}, {0, 0}};
    CHECK(solve_as<double>(sy::auction{}, nothing).experts == std::vector<std::int32_t>{-1, -1});
}

TEST_CASE("auction: costs are minimised") {
    const std::vector<float> costs{1, 2, 3, 1, 2, 5, std::numeric_limits<float>::infinity(), 1};
    std::vector<std::int32_t> experts(4);
    sy::workspace scratch;
    const sy::assignment_problem<float> problem{
        .scores = {costs.data(), 4, 2}, .bounds = sy::balanced_quotas(4, 2), .goal = sy::objective::minimise};
    const auto found = solve(sy::seq, sy::auction{}, problem, {experts.data()}, scratch);
    CHECK(experts == std::vector<std::int32_t>{0, 1, 0, 1});
    CHECK(found.primal == 5);
    CHECK(found.dual <= 5);
    CHECK(found.dual >= 5 - found.tolerance);
    CHECK(found.converged);
}

TEST_CASE("auction: narrow storage, any stride, the same assignment") {
    const index_t tokens = 200, experts = 12;
    auto scores = gaussian_scores(tokens, experts, 3);
    for (float& s : scores) s = static_cast<float>(static_cast<Eigen::bfloat16>(s));
    const solved expected = solve_balanced(sy::seq, scores, tokens, experts);
    const std::vector<Eigen::bfloat16> narrow(scores.begin(), scores.end());
    CHECK(solve_balanced(sy::seq, narrow, tokens, experts).experts == expected.experts);
    std::vector<float> memory(static_cast<std::size_t>(3 * tokens * experts), std::numeric_limits<float>::quiet_NaN());
    const auto check_strides = [&](index_t row_stride, index_t column_stride, index_t origin) {
        sy::matrix_view<float> view(memory.data() + origin, tokens, experts, row_stride, column_stride);
        for (index_t t = 0; t < tokens; ++t) {
            for (index_t e = 0; e < experts; ++e) view(t, e) = scores[static_cast<std::size_t>(t * experts + e)];
        }
        std::vector<std::int32_t> found(static_cast<std::size_t>(tokens));
        sy::workspace scratch;
        const sy::assignment_problem<float> problem{.scores = view, .bounds = sy::balanced_quotas(tokens, experts)};
        solve(sy::seq, sy::auction{}, problem, {.expert_of_token = found.data()}, scratch);
        CHECK(found == expected.experts);
    };
    check_strides(experts, 1, 0);
    check_strides(1, tokens, 0);
    check_strides(experts + 5, 1, 3);
    check_strides(2 * experts, 2, 1);
    check_strides(-experts, 1, (tokens - 1) * experts);
}

TEST_CASE("auction: ties cost little more than other scores") {
    const index_t tokens = 16'000, experts = 16;
    const auto bids_of = [&](const std::vector<float>& scores) {
        const solved found = solve_balanced(sy::seq, scores, tokens, experts);
        CHECK(found.result.converged);
        return found.result.passes;
    };
    const index_t usual = bids_of(gaussian_scores(tokens, experts, 5));
    CHECK(usual <= 8);
    CHECK(bids_of(scores_by(tokens, experts, [](double, double) { return 1.5; })) <= usual);
    CHECK(bids_of(scores_by(tokens, experts, [](double t, double e) {
              return std::round(3 * std::sin(0.7 * t * (1 + e)));
          })) <= 10 * usual);
    // Every token the same; thousands of copies of 37.
    CHECK(bids_of(scores_by(tokens, experts, [](double, double e) { return std::sin(1.7 * e); })) <= 20 * usual);
    CHECK(bids_of(scores_by(tokens, experts, [](double t, double e) {
              return std::sin(3.1 * std::fmod(t, 37) * (1 + e));
          })) <= 10 * usual);
    auto one_best = gaussian_scores(tokens, experts, 6);
    for (index_t t = 0; t < tokens; ++t) one_best[static_cast<std::size_t>(t * experts + 5)] += 1000;
    CHECK(bids_of(one_best) <= 10 * usual);
}

TEST_CASE("auction: scores of every size") {
    const index_t tokens = 500, experts = 9;
    const auto scores = gaussian_scores(tokens, experts, 8);
    const solved expected = solve_balanced(sy::seq, scores, tokens, experts);
    for (const int exponent : {-1000, -600, -100, 100, 600, 900}) {
        std::vector<double> scaled(scores.begin(), scores.end());
        for (double& s : scaled) s = std::ldexp(s, exponent);
        const solved found = solve_balanced(sy::seq, scaled, tokens, experts);
        CHECK(found.result.converged);
        if (exponent > 0)
            CHECK(found.result.tolerance == doctest::Approx(std::ldexp(expected.result.tolerance, exponent)));
    }
    // Tiny differences on a large offset.
    std::vector<double> raised(scores.begin(), scores.end());
    for (double& s : raised) s = 1e6 + 1e-3 * s;
    const solved found = solve_balanced(sy::seq, raised, tokens, experts);
    CHECK(found.result.converged);
    CHECK(std::abs(found.result.primal - 5e8 - 1e-3 * expected.result.primal) <=
          2e-3 * expected.result.tolerance + found.result.tolerance);
    std::mt19937_64 random(9);
    for (int i = 0; i < 2000; ++i) {
        instance problem = draw_instance(score_kind::gaussian, 6, 4, i % 3 == 0 ? 100 : 0, false, random);
        std::uniform_real_distribution<double> digits(-30, 30);
        for (double& score : problem.scores.values) {
            if (score > -infinity) score = (score > 0 ? 1 : -1) * std::pow(10.0, digits(random));
        }
        const auto best = reference::best_of_all(problem.scores, problem.lower, problem.upper);
        INFO(problem);
        solution made;
        const std::string sentence = sentence_of([&] { made = solve_as<double>(sy::auction{}, problem); });
        REQUIRE((sentence == "") == best.feasible);
        if (!best.feasible) continue;
        REQUIRE(is_valid(problem, made));
        REQUIRE(made.result.converged);
        REQUIRE(best.total_score <= made.result.primal + made.result.gap + 1e-3 * made.result.tolerance);
    }
}

TEST_CASE("auction: warm prices save time, absurd ones cost some") {
    const index_t tokens = 8'001, experts = 20;
    const auto scores = gaussian_scores(tokens, experts, 2);
    const solved cold = solve_balanced(sy::seq, scores, tokens, experts);
    const solved warm = solve_balanced(sy::seq, scores, tokens, experts, {}, cold.prices.data());
    CHECK(warm.result.converged);
    CHECK(warm.result.steps == 1);
    CHECK(warm.result.iterations < cold.result.iterations);
    const auto start_from = [&](auto&& price) {
        std::vector<double> prices(static_cast<std::size_t>(experts));
        for (int e = 0; e < experts; ++e) prices[static_cast<std::size_t>(e)] = price(e);
        const solved found = solve_balanced(sy::seq, scores, tokens, experts, {}, prices.data());
        CHECK(found.result.converged);
        CHECK(found.result.passes <= cold.result.passes + 8);
    };
    start_from([&](int e) { return 1e4 * cold.prices[static_cast<std::size_t>(e)]; });
    start_from([&](int e) { return -cold.prices[static_cast<std::size_t>(e)]; });
    start_from([&](int e) { return 1e300 * (e % 3 - 1); });
    start_from([&](int e) { return e % 2 == 0 ? no_number : infinity; });
    start_from([&](int) { return -infinity; });
    start_from([&](int e) { return 1e-310 * e; });
    start_from([&](int e) { return 1e6 + 0.1 * e; });
}

TEST_CASE("auction: the same bits for every policy and any number of threads") {
    std::mt19937_64 random(10);
    for (const index_t choices : {index_t{1}, index_t{3}}) {
        for (const score_kind kind : {score_kind::skewed, score_kind::quarters, score_kind::duplicated_rows}) {
            const index_t tokens = 3'000, experts = 260;
            REQUIRE(2048 * experts >= sy::detail::scores_worth_threads);  // rounds large enough for threads
            const instance problem = draw_instance(kind, tokens, experts, 10, true, random);
            const std::vector<float> scores(problem.scores.values.begin(), problem.scores.values.end());
            const auto solve_on = [&](const auto& policy) {
                solution found;
                found.experts.resize(static_cast<std::size_t>(tokens * choices));
                found.prices.resize(static_cast<std::size_t>(experts));
                sy::workspace scratch;
                auto posed = problem.posed(scores.data());
                posed.choices = choices;
                posed.bounds = sy::capacity_quotas(problem.tokens() * choices * 9 / (8 * experts), experts);
                found.result =
                    solve(policy, sy::auction{}, posed, {found.experts.data(), found.prices.data()}, scratch);
                return found;
            };
            const solution expected = solve_on(sy::seq);
            CHECK(expected.result.converged);
            const auto same = [&](const auto& policy) {
                const solution found = solve_on(policy);
                CHECK(found.experts == expected.experts);
                CHECK(found.prices == expected.prices);
                CHECK(found.result.gap == expected.result.gap);
                CHECK(found.result.iterations == expected.result.iterations);
            };
            for (const int threads : {1, 2, 3, 8}) {
                same(sy::par_on(sy::openmp{.threads = threads}));
                switchyard_test::thread_pool pool(threads);
                same(sy::par_on(pool));
            }
        }
    }
    switchyard_test::covers<switchyard_test::operation("auction")>(sy::par);
}

TEST_CASE("auction: cut short, it gives a complete assignment and says how good it is") {
    std::mt19937_64 random(14);
    for (const bool forbidding : {false, true}) {
        instance problem = draw_instance(score_kind::skewed, 3'000, 12, forbidding ? 40 : 0, true, random);
        const index_t tokens = problem.tokens();
        problem.lower = reference::filled<index_t>(12, tokens / 12 - 20);
        problem.upper = reference::filled<index_t>(12, tokens / 12 + 30);
        const solution exact = solve_as<float>(sy::hungarian{}, problem);
        const solution whole = solve_as<float>(sy::auction{.gap_per_token = 0}, problem);
        CHECK(whole.result.converged);
        double gap_before = infinity;
        index_t unfinished = 0;
        for (index_t rounds = 1; rounds < 2 * whole.result.iterations; rounds *= 2) {
            const solution found = solve_as<float>(sy::auction{.gap_per_token = 0, .most_rounds = rounds}, problem);
            CHECK(is_valid(problem, found));
            CHECK(found.result.iterations <= rounds);
            CHECK(found.result.gap >= exact.result.primal - found.result.primal - exact.result.tolerance);
            CHECK(found.result.dual == doctest::Approx(found.result.primal + found.result.gap));
            CHECK(found.result.converged == (found.result.gap <= found.result.tolerance));
            if (found.result.converged) continue;
            unfinished += 1;
            gap_before = std::min(gap_before, found.result.gap);
        }
        CHECK(unfinished >= 3);
        CHECK(gap_before < 0.01 * std::abs(exact.result.primal));  // phases that ended are not lost
        const solution hurried = solve_as<float>(sy::auction{.gap_per_token = 0, .time_limit = 1e-9}, problem);
        CHECK(is_valid(problem, hurried));
        CHECK_FALSE(hurried.result.converged);
        CHECK(solve_as<float>(sy::auction{.time_limit = 1e9}, problem).result.converged);
        CHECK(solve_as<float>(sy::auction{.time_limit = infinity}, problem).result.converged);
        CHECK(solve_as<float>(sy::auction{.most_rounds = 0}, problem).result.converged);
    }
}

TEST_CASE("auction: what cannot be solved is refused") {
    const double x = -infinity;
    CHECK(refusal({{1, 2, 3}, {1, 2, no_number}, {infinity, 0, 0}}, {0, 0, 0}, {9, 9, 9}) == "scores[1, 2] is NaN");
    CHECK(refusal({{no_number, 2, 3}, {1, 2, 0}}, {0, 0, 0}, {9, 9, 9}) == "scores[0, 0] is NaN");
    CHECK(refusal({{1, 2, 3}, {1, infinity, no_number}}, {0, 0, 0}, {9, 9, 9}) == "scores[1, 1] is +infinity");
    CHECK(refusal({{1, 2}, {x, x}}, {0, 0}, {9, 9}) ==
          "token 1 has every expert forbidden: all its scores are -infinity");
    CHECK(refusal({{no_number}}, {0}, {0}) == "the upper quotas of the 1 experts add up to 0: too few for 1 tokens");
    CHECK(refusal({{1, x}, {1, x}, {1, 1}}, {0, 0}, {1, 3}) ==
          "the quotas cannot be met: 2 tokens (the first is 0) are allowed only on expert 0, which may take at most 1");
    CHECK(refusal({{1, x, x}, {1, 1, 1}, {1, x, x}}, {0, 1, 1}, {3, 3, 3}) ==
          "the quotas cannot be met: experts 1, 2 must take at least 2 tokens, and only 1 tokens are allowed there");
    CHECK(refusal({{1, 1}, {1, x}}, {0, 0}, {0, 2}) ==
          "the quotas cannot be met: 1 tokens (the first is 1) are allowed only on expert 0, which may take at most 0");
    const instance one{{{1.0}}, {1}, {1}, {}};
    const auto refused = [&](const sy::auction& solver) { return sentence_of([&] { solve_as<float>(solver, one); }); };
    CHECK(refused({.gap_per_token = -1}) == "auction::gap_per_token = -1 must be a number from 0 on");
    CHECK(refused({.gap_per_token = no_number}) == "auction::gap_per_token = nan must be a number from 0 on");
    CHECK(refused({.most_rounds = -1}) == "auction::most_rounds = -1 must not be negative");
    CHECK(refused({.time_limit = -0.5}) == "auction::time_limit = -0.5 must not be negative");
    CHECK(refused({.gap_per_token = 0}) == "");
}

TEST_CASE("auction: forbidden pairs that confine tokens to few experts end, whatever that costs in prices") {
    // Chains: tokens t mod E may take two neighbouring experts only, the last ones one only.
    const index_t experts = 30, tokens = 300;
    reference::matrix scores(tokens, experts, -infinity);
    std::mt19937_64 random(15);
    std::normal_distribution<double> normal;
    for (index_t t = 0; t < tokens; ++t) {
        const index_t e = t % experts;
        scores(t, e) = normal(random);
        if (e + 1 < experts) scores(t, e + 1) = 5 + normal(random);
    }
    instance problem{scores, reference::filled<index_t>(experts, 10), reference::filled<index_t>(experts, 10), {}};
    const solution found = solve_as<double>(sy::auction{}, problem);
    CHECK(is_valid(problem, found));
    CHECK(found.result.converged);
    for (index_t t = 0; t < tokens; ++t) CHECK(found.experts[static_cast<std::size_t>(t)] == t % experts);
}

TEST_CASE("auction: a score near the end of float's range is not mistaken for a forbidden one") {
    const double lowest = -3.3999999521443642e+38;
    instance problem{reference::matrix(8, 2), {0, 0}, {6, 6}, {}};
    for (index_t t = 0; t < 8; ++t) {
        problem.scores(t, 0) = t < 4 ? 8 : t < 6 ? 0 : -infinity;
        problem.scores(t, 1) = t < 4 ? 12 : t < 6 ? 0 : lowest;
    }
    const solution found = solve_as<float>(sy::auction{}, problem);
    CHECK(is_valid(problem, found));
}
