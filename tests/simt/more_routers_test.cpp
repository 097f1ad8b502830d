// GShard, SparseMixer, one expert of every group, cosine scores and noisy top-k on the executor: the generic device
// code for policies that run kernels.
#include "simt/routing_problem.hpp"
#include "thrust/composed_routers.hpp"

using namespace routing_tests;

TEST_CASE("more routers on the executor: the CPU backend's decisions, gates, losses and gradients") {
    CHECK(more_routers_difference(simt::policy{&next_executor()}) == "");
    CHECK(cosine_difference(simt::policy{&next_executor()}) == "");
    CHECK(noisy_difference(simt::policy{&next_executor()}) == "");
    covers<operation("GShard"), operation("SparseMixer"), operation("noisy scores and load loss"),
           operation("cosine scores")>(simt::policy{});
}
