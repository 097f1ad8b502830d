// After the first call for a shape, solvers allocate nothing: every allocation of this program is counted.
#include <switchyard/assignment/auction.hpp>

#include "assignment/instances.hpp"
#include "support/count_allocations.hpp"
#include "support/thread_pool.hpp"

using namespace assignment_tests;

namespace {

/// Takes a step, and then three with other scores of the same shape, which must allocate nothing. Returns how often the
/// first one allocated.
template <class Step>
long allocations_of_first(const Step& step, instance& problem, std::mt19937_64& random) {
    const long before_first = allocations;
    step();
    const long before = allocations;
    for (int i = 0; i < 3; ++i) {
        // Other scores of the same shape, other tokens padded, even ones whose sizes need their prices repaired.
        for (double& score : problem.scores.values) {
            if (score > -infinity)
                score = i < 2 ? -score : score * std::pow(10.0, static_cast<int>(random() % 41) - 20);
        }
        problem.mask[i] ^= 1;
        const auto result = step();
        CHECK(result.tokens > 0);
    }
    const long after = allocations;
    CHECK(after == before);
    return before - before_first;
}

}  // namespace

TEST_CASE("hungarian: nothing is allocated after the first call for a shape") {
    std::mt19937_64 random(9);
    sy::workspace scratch;
    for (const score_kind kind : {score_kind::gaussian, score_kind::binary, score_kind::skewed}) {
        const index_t tokens = 2500, experts = 17;
        instance problem = draw_instance(kind, tokens, experts, 20, true, random);
        problem.lower = reference::filled<index_t>(experts, 0);
        problem.upper = reference::filled<index_t>(experts, tokens / experts + 5);
        std::vector<std::int32_t> found(static_cast<std::size_t>(tokens));
        std::vector<double> prices(static_cast<std::size_t>(experts));
        const auto step = [&] {
            return solve(sy::seq, sy::hungarian{}, problem.posed(problem.scores.values.data()),
                         {found.data(), prices.data()}, scratch);
        };
        const long of_first = allocations_of_first(step, problem, random);
        if (kind == score_kind::gaussian) CHECK(of_first > 0);  // the counter counts
    }
}

TEST_CASE("hungarian: nothing is allocated after the first call for a shape, with two experts per token or threads") {
    switchyard_test::thread_pool pool(3);  // allocates nothing itself
    const auto check = [](const auto& policy, const sy::hungarian& solver, index_t tokens, index_t choices) {
        INFO("sampling ", solver.sampling, ", ", tokens, " tokens, k = ", choices);
        const index_t experts = 17;
        std::mt19937_64 random(11);
        instance problem = draw_instance(score_kind::skewed, tokens, experts, 20, true, random);
        for (index_t t = 0; t < tokens; ++t) problem.scores(t, t % 16) = problem.scores(t, 16) = 0;  // two at least
        std::vector<std::int32_t> found(static_cast<std::size_t>(tokens * choices));
        std::vector<double> prices(static_cast<std::size_t>(experts));
        sy::workspace scratch;
        const auto step = [&] {
            auto posed = problem.posed(problem.scores.values.data());
            posed.choices = choices;
            posed.bounds = sy::capacity_quotas(tokens * choices / experts + 5, experts);
            return solve(policy, solver, posed, {found.data(), prices.data()}, scratch);
        };
        const long of_first = allocations_of_first(step, problem, random);
        CHECK(of_first > 0);  // the counter counts
    };
    check(sy::seq, {}, 2500, 2);
    const index_t many = sy::detail::scores_worth_threads / 17 + 1;  // certificates of all scores run on threads, too
    for (const index_t choices : {index_t{1}, index_t{2}}) check(sy::par_on(pool), {}, many, choices);
    check(sy::par_on(pool), {.sampling = 0}, many, 1);
}

TEST_CASE("auction: nothing is allocated after the first call for a shape") {
    std::mt19937_64 random(10);
    sy::workspace scratch;
    for (const index_t choices : {index_t{1}, index_t{2}}) {
        const index_t tokens = 2500, experts = 17;
        instance problem = draw_instance(score_kind::gaussian, tokens, experts, 20, true, random);
        for (index_t t = 0; t < tokens; ++t) problem.scores(t, t % 16) = problem.scores(t, 16) = 0;  // two at least
        std::vector<std::int32_t> found(static_cast<std::size_t>(tokens * choices));
        std::vector<double> prices(static_cast<std::size_t>(experts));
        const auto step = [&](const sy::auction& solver, const double* initial_prices) {
            auto posed = problem.posed(problem.scores.values.data(), initial_prices);
            posed.choices = choices;
            posed.bounds = sy::capacity_quotas(tokens * choices / experts + 5, experts);
            return solve(sy::seq, solver, posed, {found.data(), prices.data()}, scratch);
        };
        step({}, nullptr);
        const long before = allocations;
        for (int i = 0; i < 4; ++i) {
            // Other scores of the same shape, other tokens padded, warm, and cut short.
            for (double& score : problem.scores.values) {
                if (score > -infinity)
                    score = i % 2 == 0 ? -score : score * std::pow(10.0, static_cast<int>(random() % 3));
            }
            problem.mask[i] = 0;
            const auto result = step({.most_rounds = i == 3 ? 2 : 0}, i == 1 ? prices.data() : nullptr);
            CHECK(result.tokens > 0);
            CHECK(result.converged == (i < 3));
        }
        const long after = allocations;
        CHECK(after == before);
    }
}
