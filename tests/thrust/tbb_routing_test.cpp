// The same routing on TBB. Compiled for TBB alone.
#include "thrust/device.hpp"

#include <doctest/doctest.h>

using namespace switchyard_test;

TEST_CASE("Thrust on TBB: Switch and top-k decide as the CPU backend does") {
    const auto scores = gaussian<float>(3000, 20, 1);
    const auto device_scores = sy::copy_to_device(device, scores);
    const auto decide = [&](const auto& router) {
        const auto made = sy::route_scores(device, router, device_scores, sy::training{});
        sy::check(device, made);
        return decision_difference(sy::copy_to_host(device, made),
                                   sy::route_scores(sy::seq, router, scores, sy::training{}));
    };
    CHECK(decide(sy::switch_router{}) == "");
    CHECK(decide(sy::switch_router{.no_token_left_behind = 3}) == "");
    CHECK(decide(sy::top_k_router{.k = 4, .capacity = {.factor = 0.9}}) == "");
}
