// The auction against trying everything, against the exact solver, and on scores that make auctions stumble.
#include <switchyard/assignment/auction.hpp>

#include <switchyard/backend/eigen.hpp>

#include "assignment/instances.hpp"
#include "support/thread_pool.hpp"

#include <bit>
#include <chrono>
#include <cmath>
#include <iostream>

using namespace assignment_tests;

namespace {

const double no_number = std::numeric_limits<double>::quiet_NaN();

instance any_instance(index_t most_rows, index_t most_experts) {
    const auto kind = static_cast<score_kind>(
        *rc::gen::resize(rc::kNominalSize, rc::gen::inRange(0, static_cast<int>(score_kind::count))));
    const auto rows = *rc::gen::resize(rc::kNominalSize, rc::gen::inRange<index_t>(0, most_rows + 1));
    const auto experts = *rc::gen::resize(rc::kNominalSize, rc::gen::inRange<index_t>(1, most_experts + 1));
    const auto forbidden = *rc::gen::element(0, 0, 40, 150, 230);
    const auto with_mask = *rc::gen::element(false, false, true);
    std::mt19937_64 random(*rc::gen::arbitrary<std::uint32_t>());
    return draw_instance(kind, rows, experts, forbidden, with_mask, random);
}

/// std over the scores of tokens that are not forbidden, by plain loops.
double deviation_of(const instance& problem) {
    double count = 0, sum = 0, squares = 0;
    const auto each = [&](auto&& f) {
        for (index_t t = 0; t < problem.scores.rows; ++t) {
            for (index_t e = 0; e < problem.scores.columns && reference::is_token(problem.mask, t); ++e) {
                if (problem.scores(t, e) > -infinity) f(problem.scores(t, e));
            }
        }
    };
    each([&](double s) { count += 1, sum += s; });
    each([&](double s) { squares += (s - sum / count) * (s - sum / count); });
    return count > 0 ? std::sqrt(squares / count) : 0;
}

/// What the auction promises of an assignment, and the reference knows of the best.
void require_within_bound(const instance& problem, const sy::auction& solver, const solution& found, double best) {
    const double promised = solver.gap_per_token * deviation_of(problem) * static_cast<double>(problem.tokens());
    double magnitude = 0;
    for (index_t t = 0; t < problem.scores.rows; ++t) {
        const auto e = found.experts[static_cast<std::size_t>(t)];
        if (e >= 0) magnitude += std::abs(problem.scores(t, e));
    }
    const double tolerance = std::max(promised, 1e-9 * magnitude + 1e-12);
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

/// Scores [T, E] as they are, balanced.
struct solved {
    sy::assignment_result result;
    std::vector<std::int32_t> experts;
    std::vector<double> prices;
};

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
        const auto load = std::count(found.experts.begin(), found.experts.end(), e);
        REQUIRE(load >= tokens / experts);
        REQUIRE(load <= (tokens + experts - 1) / experts);
    }
    return found;
}

std::vector<float> gaussian_scores(index_t tokens, index_t experts, unsigned seed) {
    std::mt19937_64 random(seed);
    std::normal_distribution<float> normal;
    std::vector<float> scores(static_cast<std::size_t>(tokens * experts));
    for (float& s : scores) s = normal(random);
    return scores;
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
        sy::detail::certify(scores, sy::balanced_quotas(4, 2), 1, experts.data(), rounds.prices(), scratch);
    CHECK(found.primal == doctest::Approx(2.6));
    CHECK(found.dual == doctest::Approx(2.61));
    CHECK(found.gap == doctest::Approx(0.01));
}

TEST_CASE("auction: as the page shows it") {
    const auto numbers = gaussian_scores(40, 4, 21);
    const sy::matrix_view<const float> scores{numbers.data(), 40, 4};
    const index_t T = scores.rows, E = scores.columns;
    // [auction]
    sy::workspace scratch;  // kept between calls: after the first, nothing is allocated
    std::vector<std::int32_t> expert(static_cast<std::size_t>(T));
    std::vector<double> prices(static_cast<std::size_t>(E));
    const sy::assignment_problem<float> problem{.scores = scores, .bounds = sy::balanced_quotas(T, E)};
    const auto found =
        solve(sy::seq, sy::auction{.gap_per_token = 0.0005}, problem, {expert.data(), prices.data()}, scratch);
    // found.tolerance  what was promised: 0.0005 std(scores) T
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

TEST_CASE("auction: several experts a token, within the bound of the best") {
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
            const index_t tokens = 5'000, experts = 24;
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
