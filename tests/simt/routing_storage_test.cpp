// Routing's kernels with scores stored as double, half and bfloat16. A file of its own: it is the same source compiled
// three times more, which takes minutes under a sanitizer, and is left out there.
#include "simt/routing_problem.hpp"

using namespace routing_tests;

TEST_CASE("routing kernels: what scores are stored as, in every way they may lie") {
    for (const lie how : every_lie) {
        CAPTURE(static_cast<int>(how));
        for (const index_t experts : sweep({64, 3, 300, 1200, 16})) {
            CAPTURE(experts);
            const index_t tokens = experts > 1000 ? 9 : 70;
            // What narrow types can hold, so that both backends see the same numbers.
            const ref::matrix table = rounded_to<Eigen::bfloat16>(gaussian_scores(tokens, experts, 7));
            const problem in{table, draw_mask(tokens, 8), true, how};
            const sy::switch_router single{.z_weight = 1e-3};
            const sy::switch_router jittered{.logit_jitter = 0.02f};
            CHECK(difference<double>(next_executor(), single, in) == "");
            CHECK(difference<Eigen::bfloat16>(next_executor(), single, in) == "");
            CHECK(difference<Eigen::half>(next_executor(), jittered, in) == "");
            CHECK(difference<double>(next_executor(), list_router(3), in) == "");
            CHECK(difference<Eigen::bfloat16>(next_executor(), list_router(3), in) == "");
            CHECK(difference<Eigen::half>(next_executor(), list_router(3), in) == "");
        }
    }
}
