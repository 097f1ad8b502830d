#include <switchyard/reference/assignment.hpp>

#include "assignment/instances.hpp"

using namespace assignment_tests;

TEST_CASE("reference assignment: the worked example, both ways") {
    const reference::matrix scores{{1, 0}, {.9, .3}, {.8, .6}, {.7, .05}};
    const bounds_list two{2, 2};
    const bounds_list experts{0, 1, 1, 0};
    for (const auto& best :
         {reference::best_of_all(scores, two, two), reference::best_by_augmenting(scores, two, two)}) {
        CHECK(best.feasible);
        CHECK(best.total_score == doctest::Approx(2.6));
        CHECK(best.experts == experts);
    }
}

TEST_CASE("reference assignment: a lower bound is met whatever it costs") {
    const reference::matrix scores{{5, -1e9}, {5, -2e9}};
    const auto best = reference::best_by_augmenting(scores, {0, 1}, {2, 2});
    CHECK(best.experts == bounds_list{1, 0});
    CHECK(best.total_score == 5 - 1e9);
}

TEST_CASE("reference assignment: no place, no assignment") {
    const reference::matrix scores{{1, -infinity}, {2, -infinity}};
    CHECK_FALSE(reference::best_of_all(scores, {0, 0}, {1, 2}).feasible);
    CHECK_FALSE(reference::best_by_augmenting(scores, {0, 0}, {1, 2}).feasible);
    CHECK_FALSE(reference::best_of_all(scores, {0, 1}, {2, 2}).feasible);
    CHECK_FALSE(reference::best_by_augmenting(scores, {0, 1}, {2, 2}).feasible);
}

TEST_CASE("reference assignment: augmenting paths find what trying everything finds") {
    std::mt19937_64 random(42);
    int feasible = 0;
    for (int i = 0; i < 3000; ++i) {
        const auto kind = static_cast<score_kind>(random() % static_cast<int>(score_kind::count));
        const auto rows = static_cast<index_t>(random() % 7);
        const auto experts = static_cast<index_t>(1 + random() % 4);
        const instance problem = draw_instance(kind, rows, experts, i % 3 == 0 ? 100 : 0, i % 4 == 0, random);
        const auto expected = reference::best_of_all(problem.scores, problem.lower, problem.upper, problem.mask);
        const auto found = reference::best_by_augmenting(problem.scores, problem.lower, problem.upper, problem.mask);
        INFO(problem);
        REQUIRE(found.feasible == expected.feasible);
        if (!expected.feasible) continue;
        feasible += 1;
        REQUIRE(found.total_score == doctest::Approx(expected.total_score).epsilon(1e-9));
    }
    CHECK(feasible > 2000);
    CHECK(feasible < 3000);
}
