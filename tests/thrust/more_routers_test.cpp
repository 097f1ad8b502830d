// GShard, SparseMixer, one expert of every group, cosine scores and noisy top-k on Thrust, against the CPU backend.
#include "thrust/composed_routers.hpp"

#include <doctest/doctest.h>

using namespace switchyard_test;

TEST_CASE("more routers on Thrust: the CPU backend's decisions, gates, losses and gradients") {
    CHECK(more_routers_difference(device) == "");
    CHECK(cosine_difference(device) == "");
    CHECK(noisy_difference(device) == "");
    covers<operation("GShard"), operation("SparseMixer"), operation("noisy scores and load loss"),
           operation("cosine scores")>(device);
}
