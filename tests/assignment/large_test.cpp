// Hundreds and thousands of experts: beyond most_tabled (detail/price_search.hpp) Newton's steps keep no table of pairs
// of experts, and lists of candidates stay nearly empty. What the solvers return is judged by plain loops of its own.
#include <switchyard/assignment/auction.hpp>

#include "assignment/instances.hpp"

#include <algorithm>
#include <cmath>

using namespace assignment_tests;

namespace {

struct shape {
    index_t tokens, experts;
};

/// Tokens in clusters, a few of them large, which is what loads grow unequal from: s = x w^T, x = centre + noise.
std::vector<float> clustered_scores(shape size, unsigned seed) {
    constexpr index_t width = 8;
    const std::vector<float> weights = gaussian_scores(width, size.experts, seed);  // [width, E]
    const index_t clusters = 4 * size.experts;
    const std::vector<float> centres = gaussian_scores(clusters, width, seed + 1);
    const std::vector<float> noise = gaussian_scores(size.tokens, width, seed + 2);
    std::mt19937_64 random(seed + 3);
    std::uniform_real_distribution<double> uniform;
    std::vector<float> scores(static_cast<std::size_t>(size.tokens * size.experts));
    for (index_t t = 0; t < size.tokens; ++t) {
        // Zipf's law: cluster c has about 1 / (c + 1) as many tokens as the first.
        const auto cluster = static_cast<index_t>(std::pow(static_cast<double>(clusters), uniform(random))) - 1;
        float* const row = scores.data() + t * size.experts;
        for (index_t i = 0; i < width; ++i) {
            const float x = centres[static_cast<std::size_t>(cluster * width + i)] +
                            0.7F * noise[static_cast<std::size_t>(t * width + i)];
            const float* const weight = weights.data() + i * size.experts;
            for (index_t e = 0; e < size.experts; ++e) row[e] += x * weight[e];
        }
    }
    return scores;
}

template <class Solver>
solved solve_balanced(const std::vector<float>& scores, shape size, const Solver& solver) {
    solved found;
    found.experts.resize(static_cast<std::size_t>(size.tokens));
    found.prices.resize(static_cast<std::size_t>(size.experts));
    sy::workspace scratch;
    const sy::assignment_problem<float> problem{.scores = {scores.data(), size.tokens, size.experts},
                                                .bounds = sy::balanced_quotas(size.tokens, size.experts)};
    found.result = solve(sy::seq, solver, problem, {found.experts.data(), found.prices.data()}, scratch);
    return found;
}

/// What plain loops find in an assignment and its prices.
struct judgement {
    double primal = 0;
    double magnitude = 0;       ///< sum_t |s[t, a(t)]|
    double gap = 0;             ///< what tokens would rather have, and what experts' bounds leave of their prices
    double largest_regret = 0;  ///< of a token
    double largest_waste = 0;   ///< price of an expert that is not at the bound its sign asks for
};

judgement judge(const std::vector<float>& scores, shape size, const solved& found) {
    judgement made;
    std::vector<index_t> load(found.prices.size());
    for (index_t t = 0; t < size.tokens; ++t) {
        const index_t own = found.experts[static_cast<std::size_t>(t)];
        REQUIRE(own >= 0);
        REQUIRE(own < size.experts);
        load[static_cast<std::size_t>(own)] += 1;
        const float* const row = scores.data() + t * size.experts;
        double best = -infinity;
        for (index_t e = 0; e < size.experts; ++e) {
            best = std::max(best, static_cast<double>(row[e]) - found.prices[static_cast<std::size_t>(e)]);
        }
        const double regret = best - (static_cast<double>(row[own]) - found.prices[static_cast<std::size_t>(own)]);
        made.primal += static_cast<double>(row[own]);
        made.magnitude += std::abs(static_cast<double>(row[own]));
        made.gap += regret;
        made.largest_regret = std::max(made.largest_regret, regret);
    }
    const index_t lower = size.tokens / size.experts;
    const index_t upper = lower + (size.tokens % size.experts == 0 ? 0 : 1);
    for (std::size_t e = 0; e < load.size(); ++e) {
        REQUIRE(load[e] >= lower);
        REQUIRE(load[e] <= upper);
        const double price = found.prices[e];
        const index_t missing = (price > 0 ? upper : lower) - load[e];
        made.gap += price * static_cast<double>(missing);
        if (missing != 0) made.largest_waste = std::max(made.largest_waste, std::abs(price));
    }
    return made;
}

/// The certificate, and complementary slackness up to `slack` for each token and expert.
judgement require_certified(const std::vector<float>& scores, shape size, const solved& found, double slack) {
    const judgement truth = judge(scores, size, found);
    const double digits = 1e-12 * truth.magnitude;
    REQUIRE(found.result.converged);
    REQUIRE(found.result.tokens == size.tokens);
    REQUIRE(std::abs(found.result.primal - truth.primal) <= digits);
    REQUIRE(std::abs(found.result.gap - truth.gap) <= digits);
    REQUIRE(std::abs(found.result.dual - (truth.primal + truth.gap)) <= 2 * digits);
    REQUIRE(truth.gap <= found.result.tolerance + digits);
    REQUIRE(truth.largest_regret <= slack);
    REQUIRE(truth.largest_waste <= slack);
    return truth;
}

}  // namespace

TEST_CASE("hungarian and auction: hundreds of experts, with Newton's steps on lists of pairs") {
    const shape size{12'000, 600};
    const auto scores = clustered_scores(size, 40);
    const solved exact = solve_balanced(scores, size, sy::hungarian{});
    const judgement best = require_certified(scores, size, exact, 1e-9);
    CHECK(exact.result.tolerance == doctest::Approx(1e-9 * best.magnitude + 1e-12));
    CHECK(exact.result.repairs == 0);
    CHECK(exact.result.steps > 0);
    CHECK(exact.result.iterations <= size.tokens / 16);  // so good are the prices that few tokens wait for a path

    const solved bid = solve_balanced(scores, size, sy::auction{});
    const judgement near = require_certified(scores, size, bid, bid.result.gap);
    CHECK(near.primal <= best.primal + exact.result.tolerance);
    CHECK(best.primal <= near.primal + near.gap + 1e-12 * best.magnitude);
}

TEST_CASE("hungarian: thousands of experts, two tokens each") {
    const shape size{8'192, 4'096};
    const auto scores = clustered_scores(size, 44);
    const solved found = solve_balanced(scores, size, sy::hungarian{});
    const judgement best = require_certified(scores, size, found, 1e-9);
    CHECK(found.result.tolerance == doctest::Approx(1e-9 * best.magnitude + 1e-12));
    CHECK(found.result.repairs == 0);
    CHECK(found.result.iterations > 0);  // there is something to solve
}
