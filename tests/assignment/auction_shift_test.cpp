// A token's scores matter by their differences: what an auction promises and finds is the same for shifted scores.
#include <switchyard/assignment/auction.hpp>

#include "assignment/instances.hpp"

#include <numeric>

using namespace assignment_tests;

namespace {

struct answer {
    sy::assignment_result result;
    std::vector<std::int32_t> experts;
};

template <class Scalar>
answer auctioned(const std::vector<Scalar>& scores, index_t tokens, index_t experts, index_t choices = 1,
                 sy::auction solver = {}) {
    answer made;
    made.experts.resize(static_cast<std::size_t>(tokens * choices));
    sy::workspace scratch;
    const sy::assignment_problem<Scalar> problem{.scores = {scores.data(), tokens, experts},
                                                 .bounds = sy::balanced_quotas(tokens * choices, experts),
                                                 .choices = choices};
    made.result = solve(sy::seq, solver, problem, {made.experts.data(), nullptr}, scratch);
    return made;
}

/// N(0, 1) in steps of 1/1024: a shift by a power of two, or by 1e12, is exact in double.
std::vector<double> gaussian(index_t tokens, index_t experts) {
    std::mt19937_64 random(31);
    std::normal_distribution<double> normal;
    std::vector<double> scores(static_cast<std::size_t>(tokens * experts));
    for (double& s : scores) s = std::round(1024 * normal(random)) / 1024;
    return scores;
}

}  // namespace

TEST_CASE("auction: N(0, 1) + 1e12 is as near to the best as N(0, 1)") {
    const index_t tokens = 1000, experts = 8;
    std::mt19937_64 random(30);
    std::normal_distribution<double> normal;
    std::vector<double> raised(static_cast<std::size_t>(tokens * experts));
    for (double& s : raised) s = normal(random) + 1e12;  // rounded there to steps of 2^-13
    std::vector<double> centred = raised;
    for (double& s : centred) s -= 1e12;
    sy::workspace scratch;
    std::vector<std::int32_t> expert(static_cast<std::size_t>(tokens));
    const auto best = solve(sy::seq, sy::hungarian{},
                            sy::assignment_problem<double>{.scores = {centred.data(), tokens, experts},
                                                           .bounds = sy::balanced_quotas(tokens, experts)},
                            {expert.data(), nullptr}, scratch);
    const answer found = auctioned(raised, tokens, experts);
    double score = 0;
    for (index_t t = 0; t < tokens; ++t) {
        score += centred[static_cast<std::size_t>(t * experts + found.experts[static_cast<std::size_t>(t)])];
    }
    CHECK(found.result.tolerance > 0.4);
    CHECK(found.result.tolerance < 0.5);  // 0.0005 times 1,000 times sqrt(7/8)
    CHECK(found.result.converged);
    CHECK(best.primal - score <= found.result.gap + 1e-9);
    CHECK(best.primal - score <= 0.5);
    // As exact as can be.
    const answer exact = auctioned(raised, tokens, experts, 1, {.gap_per_token = 0});
    CHECK(exact.result.tolerance < 1e-5);
    CHECK(exact.result.converged);
}

TEST_CASE("auction: shifted scores have the same tolerance, and are as good") {
    const index_t tokens = 600, experts = 6;
    const auto scores = gaussian(tokens, experts);
    for (const index_t choices : {1, 2}) {
        for (const double gap : {0.0005, 0.0}) {
            const sy::auction solver{.gap_per_token = gap};
            const answer expected = auctioned(scores, tokens, experts, choices, solver);
            CHECK(expected.result.converged);
            for (const double shift : {1e3, -1048576.0, 1e12}) {
                for (const bool alike : {true, false}) {
                    INFO("k = ", choices, ", shifted by ", shift, alike ? "" : ", some tokens");
                    std::vector<double> raised = scores;
                    for (index_t i = 0; i < tokens * experts; ++i) {
                        if (alike || i / experts % 3 == 0) raised[static_cast<std::size_t>(i)] += shift;
                    }
                    const answer found = auctioned(raised, tokens, experts, choices, solver);
                    CHECK(found.result.tolerance == doctest::Approx(expected.result.tolerance).epsilon(1e-12));
                    CHECK(found.result.converged);
                    double score = 0, wanted = 0;
                    for (index_t i = 0; i < tokens * choices; ++i) {
                        const index_t row = i / choices * experts;
                        score += scores[static_cast<std::size_t>(row + found.experts[static_cast<std::size_t>(i)])];
                        wanted += scores[static_cast<std::size_t>(row + expected.experts[static_cast<std::size_t>(i)])];
                    }
                    CHECK(std::abs(score - wanted) <= found.result.gap + expected.result.gap + 1e-6);
                }
            }
        }
    }
}

TEST_CASE_TEMPLATE("auction: optimal is converged where the chosen scores are 0", Scalar, float, double) {
    const index_t size = 300;
    std::vector<Scalar> scores(static_cast<std::size_t>(size * size), -std::numeric_limits<Scalar>::infinity());
    for (index_t t = 0; t < size; ++t) {
        scores[static_cast<std::size_t>(t * size + t)] = 0;
        if (t + 1 < size) scores[static_cast<std::size_t>(t * size + t + 1)] = 100;
    }
    const answer found = auctioned(scores, size, size, 1, {.gap_per_token = 0});
    std::vector<std::int32_t> diagonal(static_cast<std::size_t>(size));
    std::iota(diagonal.begin(), diagonal.end(), 0);
    CHECK(found.experts == diagonal);
    CHECK(found.result.primal == 0);
    CHECK(found.result.tolerance == doctest::Approx(1e-9 * 299 * 100 + 1e-12));
    CHECK(found.result.converged);
}

TEST_CASE("auction: tokens that do not care, however large their scores") {
    std::vector<double> scores(64 * 4);
    for (std::size_t i = 0; i < scores.size(); ++i) scores[i] = static_cast<double>(i / 4) * 1e6;
    const answer found = auctioned(scores, 64, 4);
    CHECK(found.result.gap <= 1e-12);
    CHECK(found.result.tolerance == 1e-12);
    CHECK(found.result.converged);
}
