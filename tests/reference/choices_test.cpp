#include <switchyard/reference/choices.hpp>

#include <doctest/doctest.h>

#include <cmath>

namespace ref = switchyard::reference;

TEST_CASE("reference choices: falling score, equal scores by rising index") {
    CHECK(ref::ranked_experts({1, 3, 3, 2}) == ref::list<switchyard::index_t>{1, 2, 3, 0});
    CHECK(ref::ranked_experts({0, -0.0, 0}) == ref::list<switchyard::index_t>{0, 1, 2});
    const auto equal = ref::ranked_experts(ref::filled(40, 1.5));  // long enough for an unstable sort to show
    for (switchyard::index_t e = 0; e < 40; ++e) CHECK(equal[e] == e);
    CHECK(ref::top_k_experts({{5, 5}, {1, 2}}, 1, {}) == ref::integers{{0}, {1}});
    CHECK(ref::top_k_experts({{5, 5}, {1, 2}}, 2, {0, 1}) == ref::integers{{-1, -1}, {1, 0}});
}

TEST_CASE("reference choices: scores that differ below the precision of their probabilities still decide") {
    // Both probabilities round to 0.5 in double.
    const ref::matrix scores{{0, 1e-17}};
    REQUIRE(ref::softmax_rows(scores)(0, 0) == ref::softmax_rows(scores)(0, 1));
    CHECK(ref::top_k_experts(scores, 1, {})(0, 0) == 1);
}

TEST_CASE("reference choices: forbidden experts come last and are not allowed") {
    const ref::matrix scores{{-ref::infinity, -ref::infinity, 1}};
    const auto experts = ref::top_k_experts(scores, 3, {});
    CHECK(experts == ref::integers{{2, 0, 1}});
    CHECK(ref::allowed_choices(experts, scores) == ref::integers{{2, -1, -1}});
}

TEST_CASE("reference choices: bad scores are refused with their place") {
    const auto refuse = ref::unroutable::refused;
    CHECK_THROWS_WITH_AS(ref::require_scores({{0, 1}, {2, NAN}}, {}, refuse),
                         "the score of token 1 and expert 1 is NaN", switchyard::error);
    CHECK_THROWS_WITH_AS(ref::require_scores({{0, ref::infinity}, {2, NAN}}, {}, refuse),
                         "the score of token 0 and expert 1 is +infinity", switchyard::error);
    CHECK_NOTHROW(ref::require_scores({{0, 1}, {2, NAN}}, {1, 0}, refuse));  // padding is not looked at
    CHECK_NOTHROW(ref::require_scores(ref::forbid_nan({{0, 1}, {2, NAN}}), {}, refuse));
    const ref::matrix nowhere{{-ref::infinity, -ref::infinity}};
    CHECK_THROWS_WITH_AS(ref::require_scores(nowhere, {}, refuse),
                         "token 0 is forbidden to every expert, and nothing can be dropped here", switchyard::error);
    CHECK_NOTHROW(ref::require_scores(nowhere, {}, ref::unroutable::dropped));
    CHECK_THROWS_AS(ref::require_scores(ref::matrix(2, 0), {}, refuse), switchyard::error);
    CHECK_THROWS_AS(ref::require_scores({{0, 1}}, {1, 1}, refuse), switchyard::error);
    CHECK_THROWS_AS(ref::top_k_experts({{0, 1}}, 0, {}), switchyard::error);
    CHECK_THROWS_AS(ref::top_k_experts({{0, 1}}, 3, {}), switchyard::error);
}
