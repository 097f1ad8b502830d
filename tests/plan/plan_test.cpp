#include "support/backends.hpp"
#include "support/compare.hpp"

#include <switchyard/dispatch/combine.hpp>
#include <switchyard/dispatch/dispatch.hpp>
#include <switchyard/plan/plan.hpp>
#include <switchyard/plan/slots.hpp>
#include <switchyard/plan/statistics.hpp>
#include <switchyard/router/base.hpp>
#include <switchyard/router/route.hpp>
#include <switchyard/router/switch.hpp>
#include <switchyard/router/top_k.hpp>

#include <doctest/doctest.h>

#include <array>
#include <limits>
#include <type_traits>
#include <utility>
#include <vector>

using namespace switchyard_test;

static_assert(std::is_trivially_copyable_v<sy::plan_view<float>>);
static_assert(!std::is_copy_constructible_v<sy::plan<float>> && std::is_nothrow_move_constructible_v<sy::plan<float>>);
static_assert(sy::plan_like<sy::plan<float>> && sy::plan_like<sy::plan_view<double>> && !sy::plan_like<int>);

TEST_CASE("plan: resize shapes every array, keeps memory when it shrinks, and bounds the rows") {
    sy::plan<float> plan;
    plan.resize(10, 4, 2, 3);
    CHECK(plan.tokens() == 10);
    CHECK(plan.experts() == 4);
    CHECK(plan.choices() == 2);
    CHECK(plan.capacity() == 3);
    CHECK(plan.row_bound() == 12);
    CHECK(plan.gate().rows == 10);
    CHECK(plan.gate().columns == 2);
    const auto* const experts = plan.view().expert;
    const auto* const offsets = plan.view().offsets;
    const auto* const order = plan.view().order;
    plan.resize(3, 2, 1, sy::unlimited);
    CHECK(plan.view().expert == experts);
    CHECK(plan.view().offsets == offsets);
    CHECK(plan.view().order == order);
    CHECK(plan.row_bound() == 3);
    // Arrays do not overlap.
    CHECK(plan.view().load_before == plan.view().offsets + 3);
    CHECK(plan.view().load_after == plan.view().load_before + 2);
    CHECK(plan.view().balance_load == plan.view().load_after + 2);
    CHECK(plan.view().row_sum == plan.view().row_maximum + 3);
}

TEST_CASE("plan: moving takes the arrays along") {
    sy::plan<double> plan;
    plan.resize(5, 3, 1, 2);
    plan.view().gate[4] = 0.5;
    const auto* const gates = plan.view().gate;
    sy::plan<double> moved = std::move(plan);
    CHECK(moved.view().gate == gates);
    CHECK(moved.gate()(4, 0) == 0.5);
}

namespace {

constexpr const char* no_plan =
    "the plan is empty: it was never made, or moved from, or the call that was to make it failed";

/// Everything that reads a plan refuses this one, for `tokens` tokens.
void check_refused(const sy::plan<float>& plan, index_t tokens) {
    const sy::matrix<float> x(tokens, 4);
    const sy::matrix<float> gates(tokens, 1);
    sy::matrix<float> rows(2 * tokens, 4);
    sy::matrix<float> y(tokens, 4);
    sy::matrix<float> d_gates(tokens, 1);
    CHECK(!plan.finished());
    CHECK(plan.kept() == 0);
    CHECK(plan.offset(0) == 0);
    CHECK_THROWS_WITH_AS(sy::dispatch(sy::seq, plan, x), no_plan, sy::error);
    CHECK_THROWS_WITH_AS(sy::dispatch(sy::seq, plan, x, rows), no_plan, sy::error);
    CHECK_THROWS_WITH_AS(sy::dispatch_backward(sy::seq, plan, rows, y), no_plan, sy::error);
    CHECK_THROWS_WITH_AS(sy::dispatch_backward(sy::seq, plan, x, rows, y, d_gates), no_plan, sy::error);
    CHECK_THROWS_WITH_AS(sy::combine(sy::seq, plan, rows), no_plan, sy::error);
    CHECK_THROWS_WITH_AS(sy::combine(sy::seq, plan, rows, y), no_plan, sy::error);
    CHECK_THROWS_WITH_AS(sy::combine_backward(sy::seq, plan, rows, x), no_plan, sy::error);
    CHECK_THROWS_WITH_AS(sy::route_scores_backward(sy::seq, sy::switch_router{}, plan, x, gates), no_plan, sy::error);
    CHECK_THROWS_WITH_AS(sy::route_backward(sy::seq, sy::switch_router{}, plan, x, sy::matrix<float>(4, 4), gates),
                         no_plan, sy::error);
    CHECK_THROWS_WITH_AS(sy::statistics(plan), no_plan, sy::error);
}

}  // namespace

TEST_CASE("plan: one that was never made, was shaped only or moved from is empty, and says so") {
    sy::plan<float> plan;
    check_refused(plan, 0);
    check_refused(plan, 6);
    plan.resize(6, 4, 1, sy::unlimited);
    check_refused(plan, 6);
    const auto scores = stored<float>(gaussian_scores(6, 4, 1));
    sy::workspace scratch;
    sy::route_scores(sy::seq, sy::switch_router{}, scores, sy::training{}, plan, scratch);
    CHECK(plan.finished());
    sy::plan<float> moved = std::move(plan);
    CHECK(moved.finished());
    CHECK(moved.kept() > 0);
    check_refused(plan, 6);  // NOLINT(bugprone-use-after-move)
    CHECK(plan.tokens() == 0);
    plan = std::move(moved);
    CHECK(plan.finished());
    check_refused(moved, 6);  // NOLINT(bugprone-use-after-move)
    sy::route_scores(sy::seq, sy::switch_router{}, scores, sy::training{}, moved, scratch);
    CHECK(mismatch(moved, ref::route_scores(reference_of(sy::switch_router{}, true), gaussian_scores(6, 4, 1))) == "");
    // A view of nothing has no arrays at all.
    CHECK_THROWS_WITH_AS(sy::dispatch(sy::seq, sy::plan_view<float>{}, sy::matrix<float>(0, 4)), no_plan, sy::error);
}

TEST_CASE("plan: one whose route threw is empty, whatever threw, on every policy") {
    const auto with_nan = [] {
        auto bad = stored<float>(gaussian_scores(3000, 4, 2));
        bad(2999, 3) = std::numeric_limits<float>::quiet_NaN();
        return bad;
    }();
    const auto good = stored<float>(gaussian_scores(6, 4, 1));
    const auto tokens = stored<float>(gaussian_scores(6, 4, 3));
    for_each_policy([&](const auto& policy) {
        const auto check = [&](index_t count, const auto& failing) {
            sy::plan<float> plan;
            sy::workspace scratch;
            sy::route_scores(policy, sy::switch_router{}, good, sy::training{}, plan, scratch);
            CHECK(sy::dispatch(policy, plan, tokens).rows() == plan.kept());
            CHECK_THROWS_AS(failing(plan, scratch), sy::error);
            check_refused(plan, count);
            sy::route_scores(policy, sy::switch_router{}, good, sy::training{}, plan, scratch);
            CHECK(plan.finished());
        };
        const auto scores_fail = [&](const auto& router, const sy::matrix<float>& scores) {
            return [&, router](sy::plan<float>& plan, sy::workspace& scratch) {
                sy::route_scores(policy, router, scores, sy::training{}, plan, scratch);
            };
        };
        check(3000, scores_fail(sy::switch_router{}, with_nan));
        check(3000, scores_fail(sy::top_k_router{.k = 2}, with_nan));
        check(3000, scores_fail(sy::base_router<>{}, with_nan));
        // Settings that are refused before the plan has a new shape: it is not the plan of the step before, either.
        check(6, scores_fail(sy::switch_router{.z_weight = std::numeric_limits<double>::infinity()}, good));
        check(6, scores_fail(sy::top_k_router{.k = 5}, good));
        check(6, scores_fail(sy::base_router<>{}, sy::matrix<float>(6, 0)));
        check(6, [&](sy::plan<float>& plan, sy::workspace& scratch) {  // x and w that do not fit together
            sy::route(policy, sy::switch_router{}, tokens, sy::matrix<float>(5, 4), sy::training{}, plan, scratch);
        });
    });
}

TEST_CASE("plan_view: row_of and token_of") {
    std::array<std::int32_t, 4> expert{1, 0, 1, 0};
    std::array<std::int32_t, 4> slot{0, 0, -1, 1};
    std::array<std::int64_t, 3> offsets{0, 2, 3};
    sy::plan_view<float> plan;
    plan.tokens = 2;
    plan.experts = 2;
    plan.choices = 2;
    plan.expert = expert.data();
    plan.slot = slot.data();
    plan.offsets = offsets.data();
    CHECK(plan.row_of(0) == 2);
    CHECK(plan.row_of(1) == 0);
    CHECK(plan.row_of(2) == -1);
    CHECK(plan.row_of(3) == 1);
    CHECK(plan.token_of(3) == 1);
}

/// An engine's own tensors in a plan_view, wrapped as routers take plans.
struct borrowed_plan {
    using scalar = float;
    using space = sy::host_space;
    std::vector<std::int32_t> expert, slot;
    std::vector<float> gate, statistics;
    std::vector<std::int64_t> counts, order;
    sy::plan_totals totals;
    sy::plan_view<float> shown;

    void resize(index_t tokens, index_t experts, index_t choices, index_t capacity) {
        const auto positions = static_cast<std::size_t>(tokens * choices);
        expert.resize(positions);
        slot.resize(positions);
        gate.resize(positions);
        order.resize(positions);
        statistics.resize(2 * static_cast<std::size_t>(tokens));
        counts.resize(4 * static_cast<std::size_t>(experts) + 1);
        shown.tokens = tokens;
        shown.experts = experts;
        shown.choices = choices;
        shown.capacity = capacity;
        shown.row_bound = sy::row_bound(tokens, choices, experts, capacity);
        shown.expert = expert.data();
        shown.slot = slot.data();
        shown.gate = gate.data();
        shown.order = order.data();
        shown.row_maximum = statistics.data();
        shown.row_sum = statistics.data() + tokens;
        shown.offsets = counts.data();
        shown.load_before = shown.offsets + experts + 1;
        shown.load_after = shown.load_before + experts;
        shown.balance_load = shown.load_after + experts;
        shown.totals = &totals;
    }
    void made_by(const sy::plan_origin& origin) { shown.origin = origin; }
    sy::plan_view<float>& view() { return shown; }
    const sy::plan_view<float>& view() const { return shown; }
};

TEST_CASE("plan_view: a router fills arrays that belong to somebody else") {
    const auto scores = gaussian_scores(50, 5, 1);
    const sy::switch_router router;
    borrowed_plan plan;
    sy::workspace scratch;
    sy::route_scores(sy::seq, router, stored<float>(scores), sy::training{}, plan, scratch);
    CHECK(mismatch(plan.shown, ref::route_scores(reference_of(router, true), scores)) == "");
}

TEST_CASE("plan: one plan for steps of different shapes") {
    sy::plan<float> plan;
    sy::workspace scratch;
    const sy::switch_router router;
    for (const auto& [tokens, experts] : {std::pair<index_t, index_t>{300, 8}, {7, 64}, {0, 3}, {600, 2}, {1, 1}}) {
        const auto scores = gaussian_scores(tokens, experts, 3);
        sy::route_scores(sy::seq, router, stored<float>(scores), sy::training{}, plan, scratch);
        CHECK(mismatch(plan, ref::route_scores(reference_of(router, true), scores)) == "");
    }
}
