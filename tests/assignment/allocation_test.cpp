// After the first call for a shape, `hungarian` allocates nothing: every allocation of this program is counted.
#include "assignment/instances.hpp"
#include "support/count_allocations.hpp"

using namespace assignment_tests;

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
        if (kind == score_kind::gaussian) CHECK(before > before_first);  // the counter counts
    }
}
