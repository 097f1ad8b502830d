// The certificate: what it says must be true for any assignment and any prices, good or bad.
#include <switchyard/assignment/assignment.hpp>
#include <switchyard/assignment/detail/certificate.hpp>

#include "assignment/instances.hpp"

#include <algorithm>

using namespace assignment_tests;

namespace {

sy::assignment_result certificate(const instance& problem, const std::vector<std::int32_t>& experts,
                                  const std::vector<double>& prices) {
    sy::workspace scratch;
    const sy::matrix_view<const double> view(problem.scores.values.data(), problem.scores.rows, problem.scores.columns);
    return sy::detail::certify(sy::seq, sy::detail::score_source<double>{view}, problem.bounds(), 1, experts.data(),
                               prices.data(), scratch);
}

}  // namespace

static_assert(sy::assignment_solver<sy::hungarian>);
static_assert(!sy::assignment_solver<int>);
static_assert(std::is_trivially_copyable_v<sy::assignment_result>);

TEST_CASE("certificate: worked by hand") {
    const instance problem{{{1, 0}, {.9, .3}, {.8, .6}, {.7, .05}}, {2, 2}, {2, 2}, {}};
    // At prices (.6, 0): best margins .4, .3, .6, .1; 2 (.6) + 2 (0) = 1.2 for the quotas; D = 1.4 + 1.2 = 2.6.
    const auto optimal = certificate(problem, {0, 1, 1, 0}, {.6, 0});
    CHECK(optimal.primal == doctest::Approx(2.6));
    CHECK(optimal.dual == doctest::Approx(2.6));
    CHECK(optimal.gap <= 1e-15);
    CHECK(optimal.converged);
    CHECK(optimal.tokens == 4);
    CHECK(optimal.tolerance == doctest::Approx(1e-9 * 2.6 + 1e-12));
    // Tokens 0 and 1 swapped between the experts: 0 + .9 + .6 + .7 = 2.2.
    const auto worse = certificate(problem, {1, 0, 1, 0}, {.6, 0});
    CHECK(worse.primal == doctest::Approx(2.2));
    CHECK(worse.gap == doctest::Approx(.4));
    CHECK_FALSE(worse.converged);
    // The optimum again, at prices that do not show it: D(0) = 1 + .9 + .8 + .7 = 3.4.
    const auto unproven = certificate(problem, {0, 1, 1, 0}, {0, 0});
    CHECK(unproven.primal == doctest::Approx(2.6));
    CHECK(unproven.dual == doctest::Approx(3.4));
    CHECK(unproven.gap == doctest::Approx(.8));
    CHECK_FALSE(unproven.converged);
}

TEST_CASE("certificate: bounds enter with the side their price points to") {
    // One token at expert 0; expert 1 may hold 0..3, expert 0 holds 1..2.
    const instance problem{{{2, 1}}, {1, 0}, {2, 3}, {}};
    // Price +.5 at expert 0 pays for 2 places (the bound beyond the one token counts as 1), -.25 at expert 1 for none.
    const auto result = certificate(problem, {0}, {.5, -.25});
    CHECK(result.dual == doctest::Approx(std::max(2 - .5, 1 + .25) + .5));
    CHECK(result.gap == doctest::Approx(0));
}

TEST_CASE("certificate: primal + gap bounds the optimum from above for any assignment and any prices") {
    std::mt19937_64 random(7);
    std::normal_distribution<double> normal;
    int proven = 0, tested = 0;
    for (int i = 0; i < 4000; ++i) {
        const auto kind = static_cast<score_kind>(random() % static_cast<int>(score_kind::count));
        instance problem = draw_instance(kind, 1 + static_cast<index_t>(random() % 5),
                                         1 + static_cast<index_t>(random() % 3), i % 3 == 0 ? 80 : 0, false, random);
        if (i % 4 == 0) {  // sizes of all kinds
            for (double& score : problem.scores.values) score *= std::pow(10.0, static_cast<int>(random() % 61) - 30);
        }
        const auto best = reference::best_of_all(problem.scores, problem.lower, problem.upper);
        if (!best.feasible) continue;
        // Another assignment within the quotas: the best for other scores.
        instance other = problem;
        for (double& score : other.scores.values) score += score > -infinity ? normal(random) : 0.0;
        const auto some = reference::best_of_all(other.scores, problem.lower, problem.upper);
        const std::vector<std::int32_t> experts(some.experts.begin(), some.experts.end());
        std::vector<double> prices(static_cast<std::size_t>(problem.scores.columns));
        const double scale = i % 2 == 0 ? 1.0 : 1e20;
        for (double& p : prices) p = scale * normal(random);
        const auto result = certificate(problem, experts, prices);
        INFO(problem);
        REQUIRE(result.gap >= 0);
        double score = 0, magnitude = 0;
        for (index_t t = 0; t < problem.scores.rows; ++t) {
            score += problem.scores(t, some.experts[t]);
            magnitude += std::abs(problem.scores(t, some.experts[t]));
        }
        REQUIRE(std::abs(result.primal - score) <= 1e-14 * magnitude);
        REQUIRE(best.total_score <= result.primal + result.gap * (1 + 1e-12) + 1e-14 * magnitude);
        REQUIRE(result.converged == (result.gap <= result.tolerance));
        proven += result.converged ? 1 : 0;
        tested += 1;
    }
    CHECK(tested > 3000);
    CHECK(proven < tested / 2);  // by chance, mostly where one expert is all there is
}

TEST_CASE("certificate: differences that large prices would swallow are seen") {
    // Both margins are 1e28 in double; the token would gain 1.7e7 at expert 1.
    const instance problem{{{1e-21, 1.7e7}}, {1, 0}, {1, 1}, {}};
    const auto result = certificate(problem, {0}, {-7.8e28, -7.8e28});
    CHECK(result.gap >= 1.7e7);
    CHECK(result.gap == doctest::Approx(7.8e28 * 0 + 1.7e7));
    CHECK_FALSE(result.converged);
}
