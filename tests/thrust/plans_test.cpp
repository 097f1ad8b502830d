// What is done with plans on a device policy: plans from choices, row blocks, counts, the rest of row buffers, saved
// plans and choices alone, against plain loops and the CPU backend; plans that were not finished, as the host knows
// them.
#include "support/choices.hpp"
#include "support/property.hpp"
#include "thrust/device.hpp"

#include <switchyard/dispatch/zero_rest.hpp>
#include <switchyard/plan/choices.hpp>
#include <switchyard/plan/counts.hpp>
#include <switchyard/plan/layout.hpp>
#include <switchyard/router/route_choices.hpp>
#include <switchyard/router/saved_plan.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <limits>

using namespace switchyard_test;

namespace {

constexpr float not_a_number = std::numeric_limits<float>::quiet_NaN();
constexpr const char* no_plan =
    "the plan is empty: it was never made, or moved from, or the call that was to make it failed";

template <class T>
sy::matrix<T> filled(index_t rows, index_t columns, T number) {
    sy::matrix<T> made(rows, columns);
    std::fill_n(made.data(), rows * columns, number);
    return made;
}

template <class T>
auto on_device(const sy::matrix<T>& from) {
    return sy::copy_to_device(device, from);
}

/// Everything that moves rows, in a buffer with 2 rows too many that holds NaN wherever there is no choice.
std::string moves_difference(const device_plan<float>& plan, const plain_plan& want, index_t k) {
    const index_t tokens = plan.tokens();
    const index_t rows = plan.row_bound() + 2;
    const index_t width = 8;
    const auto x = whole_numbers(tokens, width, 1);
    auto outputs = filled(rows, width, not_a_number);
    const auto numbers = whole_numbers(rows, width, 2);
    for (index_t r = 0; r < want.rows(); ++r) {
        for (index_t j = 0; j < width && want.order[static_cast<std::size_t>(r)] >= 0; ++j)
            outputs(r, j) = numbers(r, j);
    }
    const auto d_y = whole_numbers(tokens, width, 3);
    const plain_rows moved(want, tokens, k, rows, x, outputs, d_y);
    const auto device_x = on_device(x);
    const auto device_outputs = on_device(outputs);
    const auto device_d_y = on_device(d_y);

    auto out = on_device(filled(rows, width, not_a_number));
    sy::dispatch(device, plan, device_x, out);
    const auto touched = sy::copy_to_host(device, out);
    for (index_t r = 0; r < rows; ++r) {
        const bool has_choice = r < want.rows() && want.order[static_cast<std::size_t>(r)] >= 0;
        if (std::isnan(touched(r, 0)) == has_choice) return said("dispatch wrote row ", r, " or left it out");
    }
    sy::zero_rest(device, plan, out);
    auto sentence = number_difference("rows", sy::copy_to_host(device, out), moved.dispatched);
    sy::matrix<float, device_memory> y(tokens, width);
    sy::combine(device, plan, device_outputs, y);
    if (sentence.empty()) sentence = number_difference("y", sy::copy_to_host(device, y), moved.y);
    sy::dispatch_backward(device, plan, device_outputs, y);
    if (sentence.empty()) sentence = number_difference("d_x", sy::copy_to_host(device, y), moved.d_x);
    const auto d = sy::combine_backward(device, plan, device_outputs, device_d_y);
    if (sentence.empty()) sentence = number_difference("d_rows", sy::copy_to_host(device, d.d_rows), moved.d_rows);
    if (sentence.empty()) sentence = number_difference("d_gates", sy::copy_to_host(device, d.d_gates), moved.d_gates);
    return sentence;
}

/// A plan of choices in blocks, laid out again, and back.
std::string plan_difference(const given_choices& from, index_t capacity, index_t row_block, device_scratch& scratch) {
    const auto ids = on_device(from.ids);
    const auto narrow = on_device(from.narrow_ids());
    const auto gates = on_device(from.gates);
    const sy::choice_settings settings{.capacity = {.number = capacity}};
    device_plan<float> plan;
    const plain_plan want(from, capacity, row_block);
    plan.set_row_block(row_block);
    sy::plan_from_choices(device, ids, gates, from.experts, settings, plan, scratch);
    sy::check(device, plan);
    auto sentence = plain_difference(sy::copy_to_host(device, plan).view(), want);
    if (sentence.empty()) sentence = moves_difference(plan, want, from.k);
    sy::lay_out(device, plan, 5, scratch);
    if (sentence.empty()) {
        sentence = plain_difference(sy::copy_to_host(device, plan).view(), plain_plan(from, capacity, 5));
    }
    sy::plan_from_choices(device, narrow, gates, from.experts, settings, plan, scratch);  // keeps the block of 5
    sy::lay_out(device, plan, 1, scratch);
    const plain_plan dense(from, capacity);
    if (sentence.empty()) sentence = plain_difference(sy::copy_to_host(device, plan).view(), dense);
    if (sentence.empty()) sentence = moves_difference(plan, dense, from.k);
    return sentence;
}

}  // namespace

TEST_CASE("plans: from choices and in blocks, the plain loops', for any choices and capacities") {
    device_scratch scratch;
    CHECK(holds("plans on a device are the plain loops'", 60, [&] {
        const index_t experts = whole(1, 20);
        const auto from = random_given(whole(0, 300), whole(1, std::min<long>(experts, 4)), experts, any_seed(),
                                       static_cast<std::uint64_t>(one_of(0, 1, 8)));
        const auto sentence = plan_difference(from, coin() ? sy::unlimited : whole(0, 40), one_of(1, 2, 16), scratch);
        if (!sentence.empty()) RC_FAIL(sentence);
    }));
}

TEST_CASE("plans: many tokens, all at one expert, more choices than a warp, no gates") {
    device_scratch scratch;
    CHECK(plan_difference(random_given(5000, 2, 7, 1), 900, 64, scratch) == "");
    given_choices one(3000, 1, 6);
    std::fill_n(one.ids.data(), 3000, std::int64_t{4});
    CHECK(plan_difference(one, sy::unlimited, 16, scratch) == "");
    CHECK(plan_difference(random_given(200, 40, 40, 2, 0), 150, 8, scratch) == "");
    const auto from = random_given(50, 2, 4, 3);
    const auto plan = sy::plan_from_choices(device, on_device(from.ids), 4);
    auto weightless = random_given(50, 2, 4, 3);
    std::fill_n(weightless.gates.data(), 100, 1.0f);
    CHECK(plain_difference(sy::copy_to_host(device, plan).view(), plain_plan(weightless, sy::unlimited)) == "");
}

TEST_CASE("plans: a token that names an expert twice is a status, unless it may") {
    for (const index_t token : {0, 2999, 1500}) {
        auto from = random_given(3000, 3, 8, 5);
        from.ids(token, 0) = from.ids(token, 2) = 7;
        from.ids(token, 1) = -1;
        const auto ids = on_device(from.ids);
        const auto gates = on_device(from.gates);
        const auto plan = sy::plan_from_choices(device, ids, gates, 8);
        const std::string sentence =
            said("ids of token ", token,
                 " name an expert twice: without choice_settings::may_repeat each may be named once");
        CHECK_THROWS_WITH_AS(sy::check(device, plan), sentence.c_str(), sy::error);
        const auto twice = sy::plan_from_choices(device, ids, gates, 8, {.may_repeat = true});
        sy::check(device, twice);
        CHECK(plain_difference(sy::copy_to_host(device, twice).view(), plain_plan(from, sy::unlimited)) == "");
    }
}

TEST_CASE("plans: counts for others, and the experts of blocks: counts (2, 3, 0, 6, 8), blocks of 4") {
    given_choices from(19, 1, 5);
    index_t token = 0;
    for (const auto& [expert, count] : {std::pair{0, 2}, {1, 3}, {3, 6}, {4, 8}}) {
        for (int i = 0; i < count; ++i) from.ids(token++, 0) = expert;
    }
    device_scratch scratch;
    device_plan<float> plan;
    plan.set_row_block(4);
    sy::plan_from_choices(device, on_device(from.ids), 5, {.capacity = {.number = 6}}, plan, scratch);
    const auto check = [&](sy::plan_counts kind, const std::vector<std::int32_t>& want) {
        sy::matrix<std::int32_t, device_memory> narrow(1, static_cast<index_t>(want.size()));
        sy::write_counts(device, plan, kind, narrow);
        CHECK(list_difference("count", sy::copy_to_host(device, narrow).data(), want) == "");
        sy::matrix<std::int64_t, device_memory> wide(static_cast<index_t>(want.size()), 1);
        sy::write_counts(device, plan, kind, wide);
        CHECK(list_difference("count", sy::copy_to_host(device, wide).data(), want) == "");
    };
    check(sy::plan_counts::asked, {2, 3, 0, 6, 8});
    check(sy::plan_counts::kept, {2, 3, 0, 6, 6});
    check(sy::plan_counts::rows, {4, 4, 0, 8, 8});
    check(sy::plan_counts::offsets, {0, 4, 8, 8, 16, 24});
    check(sy::plan_counts::ends, {4, 8, 8, 16, 24});
    sy::matrix<std::int32_t, device_memory> experts(1, plan.row_bound() / 4);
    sy::write_block_experts(device, plan, experts);
    const std::vector<std::int32_t> of_blocks{0, 1, 3, 3, 4, 4, -1, -1};
    REQUIRE(experts.columns() == 8);
    CHECK(list_difference("expert of block", sy::copy_to_host(device, experts).data(), of_blocks) == "");
}

TEST_CASE("plans: routers give plans in blocks, as on the CPU, and backward is that of the dense plan") {
    device_scratch scratch;
    sy::workspace host_scratch;
    const auto check = [&](const auto& router, index_t tokens, index_t experts) {
        const auto scores = gaussian<float>(tokens, experts, 1);
        const auto device_scores = on_device(scores);
        sy::plan<float> want;
        device_plan<float> made, dense;
        want.set_row_block(8);
        made.set_row_block(8);
        const sy::training step{.seed = 1, .step = 2};
        sy::route_scores(sy::seq, router, scores, step, want, host_scratch);
        sy::route_scores(device, router, device_scores, step, made, scratch);
        sy::route_scores(device, router, device_scores, step, dense, scratch);
        const auto copy = sy::copy_to_host(device, made);
        CHECK(decision_difference(copy, want) == "");
        CHECK(copy.rows() == want.rows());
        CHECK(array_difference("order", copy.view().order, want.view().order, want.rows()) == "");
        CHECK(sy::totals_of(device, made).load_balancing_loss == sy::totals_of(device, dense).load_balancing_loss);
        const auto d_gates = on_device(gaussian<float>(tokens, want.choices(), 3));
        const auto d = sy::route_scores_backward(device, router, made, device_scores, d_gates);
        const auto d_dense = sy::route_scores_backward(device, router, dense, device_scores, d_gates);
        CHECK(number_difference("d_scores", sy::copy_to_host(device, d), sy::copy_to_host(device, d_dense)) == "");
    };
    for (const index_t tokens : {0, 1, 100, 700}) {
        check(sy::switch_router{}, tokens, 8);
        check(sy::switch_router{.no_token_left_behind = 2}, tokens, 8);
        check(sy::switch_router{.order = sy::drop_order::gate}, tokens, 5);
        check(sy::top_k_router{.k = 3, .capacity = {.factor = 1.0}}, tokens, 20);
    }
}

TEST_CASE("plans: backward on saved arrays is backward on the plan they were saved from") {
    device_scratch scratch;
    const auto scores = on_device(gaussian<float>(200, 6, 1));
    const auto d_gates = on_device(gaussian<float>(200, 2, 2));
    const sy::top_k_router router{.k = 2, .balance_weight = 1e-2};
    const sy::training step{.seed = 1, .step = 2};
    const auto plan = sy::route_scores(device, router, scores, step);
    const auto again = sy::plan_from_saved(router, step, sy::saved_arrays_of(plan));
    const auto want = sy::route_scores_backward(device, router, plan, scores, d_gates);
    const auto got = sy::route_scores_backward(device, router, again, scores, d_gates);
    CHECK(number_difference("d_scores", sy::copy_to_host(device, got), sy::copy_to_host(device, want)) == "");
    const sy::top_k_router other{.k = 2, .balance_weight = 2e-2};
    CHECK_THROWS_WITH_AS(sy::route_scores_backward(device, other, again, scores, d_gates),
                         "the plan was made by a router with other settings", sy::error);
    CHECK_THROWS_AS(sy::plan_from_saved(other, step, sy::saved_arrays_of(plan)), sy::error);
}

TEST_CASE("plans: choices alone are those of a plan") {
    device_scratch scratch;
    const auto check = [&](const auto& router, const sy::matrix<float>& numbers, index_t k) {
        const auto scores = on_device(numbers);
        const auto plan = sy::copy_to_host(device, sy::route_scores(device, router, scores));
        sy::matrix<std::int32_t, device_memory> ids(numbers.rows(), k);
        sy::matrix<float, device_memory> gates(numbers.rows(), k);
        sy::buffer<sy::plan_totals, device_memory> totals(1, sy::memory_of(device));
        sy::route_choices(device, router, scores, {}, ids, gates, scratch, totals.data());
        sy::plan_totals status;
        device.copy_to_host(&status, totals.data(), sizeof status);
        CHECK(status.status == plan.totals().status);
        CHECK(array_difference("id", sy::copy_to_host(device, ids).data(), plan.view().expert, numbers.rows() * k) ==
              "");
        CHECK(array_difference("gate", sy::copy_to_host(device, gates).data(), plan.view().gate, numbers.rows() * k) ==
              "");
    };
    for (const index_t tokens : {0, 1, 100, 700}) {
        auto scores = gaussian<float>(tokens, 20, 1);
        check(sy::switch_router{}, scores, 1);
        check(sy::base_router<>{}, scores, 1);
        check(sy::top_k_router{.k = 3, .order = sy::drop_order::gate}, scores, 3);
        for (index_t t = 0; t < tokens; ++t) {
            for (index_t e = 0; e < 18; ++e) scores(t, e) = -std::numeric_limits<float>::infinity();
        }
        check(sy::top_k_router{.k = 4}, scores, 4);
    }
    auto bad = gaussian<float>(100, 4, 1);
    bad(99, 2) = not_a_number;
    sy::matrix<std::int32_t, device_memory> ids(100, 1);
    sy::matrix<float, device_memory> gates(100, 1);
    sy::buffer<sy::plan_totals, device_memory> totals(1, sy::memory_of(device));
    sy::route_choices(device, sy::switch_router{}, on_device(bad), {}, ids, gates, scratch, totals.data());
    sy::plan_totals status;
    device.copy_to_host(&status, totals.data(), sizeof status);
    CHECK_THROWS_WITH_AS(sy::raise_status(status),
                         "a score of token 99 is NaN or +infinity: a score must be finite, or -infinity to forbid an "
                         "expert",
                         sy::error);
}

TEST_CASE("plans: one that was never made, moved from, or refused on the host is empty, and says so") {
    device_scratch scratch;
    const auto scores = on_device(gaussian<float>(6, 4, 1));
    const auto x = on_device(gaussian<float>(6, 5, 2));
    const auto gates = on_device(gaussian<float>(6, 1, 2));
    sy::matrix<float, device_memory> rows(6, 5);
    sy::matrix<float, device_memory> y(6, 5);
    const auto refused = [&](const device_plan<float>& plan) {
        CHECK(!plan.finished());
        CHECK_THROWS_WITH_AS(sy::dispatch(device, plan, x), no_plan, sy::error);
        CHECK_THROWS_WITH_AS(sy::dispatch(device, plan, x, rows), no_plan, sy::error);
        CHECK_THROWS_WITH_AS(sy::combine(device, plan, rows, y), no_plan, sy::error);
        CHECK_THROWS_WITH_AS(sy::route_scores_backward(device, sy::switch_router{}, plan, scores, gates), no_plan,
                             sy::error);
        CHECK_THROWS_WITH_AS(sy::check(device, plan), no_plan, sy::error);
        CHECK_THROWS_WITH_AS(sy::totals_of(device, plan), no_plan, sy::error);
        CHECK_THROWS_WITH_AS(sy::copy_to_host(device, plan), no_plan, sy::error);
        CHECK_THROWS_WITH_AS(sy::zero_rest(device, plan, rows), no_plan, sy::error);
    };
    device_plan<float> plan;
    refused(plan);
    const auto route = [&](const auto& router) {
        sy::route_scores(device, router, scores, sy::training{}, plan, scratch);
    };
    route(sy::switch_router{});
    device_plan<float> moved = std::move(plan);
    CHECK(moved.finished());
    refused(plan);  // NOLINT(bugprone-use-after-move)
    route(sy::switch_router{});
    CHECK(plan.finished());
    CHECK_THROWS_AS(route(sy::top_k_router{.k = 5}), sy::error);
    refused(plan);
    route(sy::switch_router{});
    CHECK_THROWS_AS(route(sy::switch_router{.z_weight = not_a_number}), sy::error);
    refused(plan);
    route(sy::switch_router{});
    CHECK_THROWS_AS(
        sy::route(device, sy::switch_router{}, x, on_device(gaussian<float>(4, 4, 1)), sy::training{}, plan, scratch),
        sy::error);
    refused(plan);
    // What is found on the device is a status: the plan is whole, and `check` says what is wrong with it.
    auto bad = gaussian<float>(6, 4, 1);
    bad(5, 0) = not_a_number;
    sy::route_scores(device, sy::switch_router{}, on_device(bad), sy::training{}, plan, scratch);
    CHECK(plan.finished());
    CHECK_THROWS_AS(sy::check(device, plan), sy::error);
}
