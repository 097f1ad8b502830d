// How many launches it takes to make plans and what belongs to them: docs/gpu.md says so. What they compute is in
// thrust/plans_test.cpp, which runs on the executor, too.
#include "simt/executor.hpp"
#include "support/choices.hpp"

#include <switchyard/formats/aligned_blocks.hpp>
#include <switchyard/formats/by_token.hpp>
#include <switchyard/formats/choices.hpp>
#include <switchyard/formats/masked.hpp>
#include <switchyard/formats/ranks.hpp>
#include <switchyard/formats/routing_map.hpp>
#include <switchyard/formats/rows.hpp>

#include <doctest/doctest.h>

using namespace switchyard_test;

namespace {

/// Launches of a call that works in memory it has worked in before.
template <class Call>
auto launches_of(simt::executor& executor, const Call& call) {
    executor.reset();
    call();
    return executor.counted().launches;
}

}  // namespace

TEST_CASE("plans: launches") {
    simt::executor executor;
    const simt::policy on{&executor};
    sy::basic_workspace<simt::memory> scratch;
    sy::basic_plan<float, simt::memory> plan;
    const auto scores = sy::copy_to_device(on, stored<float>(gaussian_scores(5000, 8, 1)));
    const sy::top_k_router router{.k = 2};
    const auto route = [&] { sy::route_scores(on, router, scores, sy::training{}, plan, scratch); };
    CHECK(launches_of(executor, route) == 3);
    plan.set_row_block(16);
    CHECK(launches_of(executor, route) == 6);
    CHECK(launches_of(executor, [&] { sy::lay_out(on, plan, 8, scratch); }) == 4);
    sy::matrix<float, simt::memory> rows(plan.row_bound(), 4);
    CHECK(launches_of(executor, [&] { sy::zero_rest(on, plan, rows); }) == 1);
    sy::matrix<std::int32_t, simt::memory> counts(1, 8);
    CHECK(launches_of(executor, [&] { sy::write_counts(on, plan, sy::plan_counts::ends, counts); }) == 1);
    sy::matrix<std::int32_t, simt::memory> experts(1, plan.row_bound() / 8);
    CHECK(launches_of(executor, [&] { sy::write_block_experts(on, plan, experts); }) == 1);

    // Formats.
    CHECK(launches_of(executor, [&] { sy::sort_rows_by_token(on, plan, scratch); }) == 7);
    sy::matrix<std::int32_t, simt::memory> list(1, plan.row_bound()), count(1, 1), map(5000, 17), masked(8, 5000);
    sy::matrix<std::int32_t, simt::memory> offsets(1, 5001), entries(1, 10000), ids_of(5000, 2), ranks(1, 4);
    sy::matrix<std::uint8_t, simt::memory> bits(5000, 1), in_rank(5000, 4);
    sy::matrix<float, simt::memory> gates_of(1, 10000);
    CHECK(launches_of(executor, [&] { sy::write_row_choices(on, plan, list); }) == 1);
    CHECK(launches_of(executor, [&] { sy::write_ids(on, plan, ids_of); }) == 1);
    CHECK(launches_of(executor, [&] { sy::write_routing_bits(on, plan, bits); }) == 1);
    CHECK(launches_of(executor, [&] { sy::write_row_map(on, plan, map); }) == 2);
    CHECK(launches_of(executor, [&] { sy::write_masked(on, plan, masked, counts); }) == 2);
    CHECK(launches_of(executor, [&] { sy::write_aligned_blocks(on, plan, list, experts, count); }) == 3);
    CHECK(launches_of(executor, [&] { sy::write_rank_layout(on, plan, 4, ranks, in_rank, scratch); }) == 4);
    CHECK(launches_of(executor,
                      [&] { sy::write_token_lists(on, plan, offsets, entries, entries, gates_of, scratch); }) == 6);

    plan.set_row_block(1);
    const auto given = random_given(5000, 2, 8, 1);
    const auto ids = sy::copy_to_device(on, given.ids);
    const auto gates = sy::copy_to_device(on, given.gates);
    const auto choose = [&](bool may_repeat) {
        return [&, may_repeat] { sy::plan_from_choices(on, ids, gates, 8, {.may_repeat = may_repeat}, plan, scratch); };
    };
    CHECK(launches_of(executor, choose(true)) == 5);
    CHECK(launches_of(executor, choose(false)) == 9);  // 5,000 tokens are folded to 79, 2 and 1
    sy::matrix<float, simt::memory> weights(5000, 2);
    sy::matrix<std::int32_t, simt::memory> chosen(5000, 2);
    CHECK(launches_of(executor, [&] { sy::route_choices(on, router, scores, {}, chosen, weights, scratch); }) == 3);
}
