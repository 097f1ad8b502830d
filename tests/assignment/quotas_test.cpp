#include <switchyard/assignment/quotas.hpp>

#include "assignment/instances.hpp"

#include <limits>
#include <type_traits>
#include <vector>

using namespace assignment_tests;

static_assert(std::is_trivially_copyable_v<sy::quotas>);

TEST_CASE("quotas: balanced ones are the floor and the ceiling of T/E") {
    const auto bounds = [](index_t tokens, index_t experts) {
        const sy::quotas q = sy::balanced_quotas(tokens, experts);
        CHECK(q.experts == experts);
        return std::pair{q.lower(experts - 1), q.upper(0)};
    };
    CHECK(bounds(12, 4) == std::pair<index_t, index_t>{3, 3});
    CHECK(bounds(13, 4) == std::pair<index_t, index_t>{3, 4});
    CHECK(bounds(3, 4) == std::pair<index_t, index_t>{0, 1});
    CHECK(bounds(0, 4) == std::pair<index_t, index_t>{0, 0});
    CHECK(bounds(7, 1) == std::pair<index_t, index_t>{7, 7});
    for (index_t tokens = 0; tokens < 40; ++tokens) {
        for (index_t experts = 1; experts < 12; ++experts) {
            CHECK_NOTHROW(sy::require_quotas(sy::balanced_quotas(tokens, experts), tokens));
        }
    }
}

TEST_CASE("quotas: capacities, fixed loads and intervals") {
    const sy::quotas capacity = sy::capacity_quotas(5, 3);
    CHECK(capacity.lower(2) == 0);
    CHECK(capacity.upper(2) == 5);
    const std::vector<index_t> lower{1, 2}, upper{4, 2};
    const sy::quotas interval = sy::bounded_quotas(lower, upper);
    CHECK(interval.experts == 2);
    CHECK(interval.lower(1) == 2);
    CHECK(interval.upper(0) == 4);
    const sy::quotas fixed = sy::fixed_quotas(upper);
    CHECK(fixed.lower(0) == 4);
    CHECK(fixed.upper(0) == 4);
}

TEST_CASE("quotas: with a mask, tokens are what is not padding") {
    const std::vector<std::uint8_t> bytes{1, 0, 7, 0, 1};
    CHECK(sy::count_tokens({bytes.data(), 5}, 5) == 3);
    CHECK(sy::count_tokens({}, 5) == 5);
}

TEST_CASE("quotas: impossible ones are refused with a sentence") {
    const auto refused = [](std::vector<index_t> lower, std::vector<index_t> upper, index_t tokens) {
        return sentence_of([&] { sy::require_quotas(sy::bounded_quotas(lower, upper), tokens); });
    };
    const index_t huge = std::numeric_limits<index_t>::max();
    CHECK(refused({0, -1}, {1, 1}, 2) == "the lower quota of expert 1 is -1: it must not be negative");
    CHECK(refused({0, 3}, {1, 2}, 2) == "the lower quota of expert 1, 3, is above its upper quota, 2");
    CHECK(refused({1, 2, 1}, {9, 9, 9}, 3) ==
          "the lower quotas of experts 0..2 add up to more than the 3 tokens there are");
    CHECK(refused({0, 0}, {1, 2}, 4) == "the upper quotas of the 2 experts add up to 3: too few for 4 tokens");
    CHECK(refused({}, {}, 1) == "the upper quotas of the 0 experts add up to 0: too few for 1 tokens");
    CHECK(refused({}, {}, 0) == "");
    CHECK(refused({1, 2}, {1, 2}, 3) == "");
    // Sums that would overflow.
    CHECK(refused({0, 0, 0}, {huge, huge, huge}, 3) == "");
    CHECK(refused({huge, huge}, {huge, huge}, 3) ==
          "the lower quotas of experts 0..0 add up to more than the 3 tokens there are");
    CHECK(sentence_of([] { sy::balanced_quotas(3, 0); }) ==
          "experts = 0 must be at least 1: there is nothing to balance over");
    CHECK(sentence_of([] { sy::balanced_quotas(-1, 2); }) == "tokens = -1 must not be negative");
    const std::vector<index_t> two{1, 1}, three{1, 1, 1};
    CHECK(sentence_of([&] { sy::bounded_quotas(two, three); }) ==
          "lower and upper quotas must be given for the same experts, not for 2 and 3");
}
