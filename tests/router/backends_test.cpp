// Every CPU backend: Eigen row-major and column-major, block, map, raw pointer and span x calling thread, OpenMP
// threads and a pool x float, double, half and bfloat16. The same numbers in another layout or on another thread are
// the same plan.
#include "support/backends.hpp"
#include "support/routed.hpp"

#include <switchyard/backend/eigen.hpp>
#include <switchyard/dispatch/combine.hpp>
#include <switchyard/dispatch/dispatch.hpp>
#include <switchyard/reference/dispatch.hpp>
#include <switchyard/router/switch.hpp>
#include <switchyard/router/top_k.hpp>

#include <doctest/doctest.h>

using namespace switchyard_test;

namespace {

/// What storing a gradient costs.
template <class Storage>
constexpr double storage_epsilon = 0;
template <>
constexpr double storage_epsilon<Eigen::half> = 0x1p-10;
template <>
constexpr double storage_epsilon<Eigen::bfloat16> = 0x1p-7;

index_t router_choices(const sy::switch_router&) { return 1; }
index_t router_choices(const sy::top_k_router& router) { return router.k; }

/// Routes, and goes back, with every policy of a backend.
template <class B, class Router>
void check_routing(const Router& router, const ref::matrix& wanted_scores, const ref::mask_list& mask) {
    using storage = typename B::storage;
    using compute = typename B::compute;
    const auto rounded = rounded_to<storage>(wanted_scores);
    const auto d_gates = rounded_to<storage>(gaussian_scores(rounded.rows, router_choices(router), 8));
    const auto want = ref::route_scores(reference_of(router, true), rounded, mask);
    const auto d_want = ref::route_scores_backward(reference_of(router, true), want, rounded, d_gates, mask);
    typename B::template layout<storage> scores(rounded);
    typename B::template layout<storage> weights(d_gates);
    B::each_policy([&](const auto& policy) {
        sy::plan<compute> plan;
        sy::workspace scratch;
        sy::route_scores(policy, router, scores.argument(), training_with(mask), plan, scratch);
        CHECK(mismatch(plan, want) == "");
        typename B::template layout<storage> d_scores(ref::matrix(rounded.rows, rounded.columns, 3.0));
        sy::route_scores_backward(policy, router, plan, scores.argument(), weights.argument(), d_scores.argument(),
                                  scratch);
        CHECK(table_mismatch(numbers_of(d_scores), d_want, tolerance<compute>::gradient + storage_epsilon<storage>,
                             1.0) == "");
        CHECK(d_scores.gaps_intact());
    });
    CHECK((numbers_of(scores) == rounded));
    CHECK(scores.gaps_intact());
}

/// Dispatch, combine and their backward, numbers exact in every type so that sums are, too.
template <class B>
void check_rows(index_t width) {
    using storage = typename B::storage;
    using compute = typename B::compute;
    const auto scores = gaussian_scores(300, 6, 3);
    const sy::top_k_router router{.k = 2, .capacity = {.factor = 0.8}};
    const auto plan = routed<compute>(router, scores);
    auto want = ref::route_scores(reference_of(router, true), scores);
    for (index_t i = 0; i < want.gates.values.length(); ++i) {
        if (want.gates.values[i] == 0) continue;
        want.gates.values[i] = i % 2 == 0 ? 0.5 : 0.25;
        plan.view().gate[i] = static_cast<compute>(want.gates.values[i]);
    }
    const auto small = [](index_t rows, index_t columns, std::uint64_t seed) {
        return draw_scores(score_kind::small_integers, rows, columns, seed);
    };
    const auto x = small(300, width, 1);
    const auto outputs = small(want.kept(), width, 2);
    const auto d_y = small(300, width, 3);
    typename B::template layout<storage> tokens(x);
    typename B::template layout<storage> expert_rows(outputs);
    typename B::template layout<storage> d_tokens(d_y);
    const auto gradients = ref::combine_backward(want, outputs, d_y);
    B::each_policy([&](const auto& policy) {
        typename B::template layout<storage> rows(ref::matrix(want.kept() + 2, width, 7.0));
        sy::dispatch(policy, plan, tokens.argument(), rows.argument());
        auto dispatched = ref::dispatch(want, x);
        dispatched.values.resize(static_cast<std::size_t>((want.kept() + 2) * width), 7.0);  // untouched beyond
        dispatched.rows += 2;
        CHECK(table_mismatch(numbers_of(rows), dispatched, 0) == "");
        CHECK(rows.gaps_intact());

        typename B::template layout<storage> y(ref::matrix(300, width, 1.0));
        sy::combine(policy, plan, expert_rows.argument(), y.argument(), {.accumulate = true});
        ref::matrix onto(300, width, 1.0);
        ref::combine_onto(want, outputs, ref::gates_weigh::output, onto);
        CHECK(table_mismatch(numbers_of(y), onto, 0) == "");
        sy::combine(policy, plan, expert_rows.argument(), y.argument());
        CHECK(table_mismatch(numbers_of(y), ref::combine(want, outputs), 0) == "");
        CHECK(y.gaps_intact());

        typename B::template layout<storage> d_rows(ref::matrix(want.kept(), width, 7.0));
        typename B::template layout<storage> d_gates(ref::matrix(300, 2, 7.0));
        sy::combine_backward(policy, plan, expert_rows.argument(), d_tokens.argument(), d_rows.argument(),
                             d_gates.argument());
        CHECK(table_mismatch(numbers_of(d_rows), gradients.d_expert_output, 0) == "");
        CHECK(table_mismatch(numbers_of(d_gates), gradients.d_gates, 0) == "");
        typename B::template layout<storage> d_x(ref::matrix(300, width, 7.0));
        sy::dispatch_backward(policy, plan, expert_rows.argument(), d_x.argument());
        CHECK(table_mismatch(numbers_of(d_x), ref::dispatch_backward(want, x, outputs).d_x, 0) == "");
        CHECK(d_x.gaps_intact());
    });
}

}  // namespace

TEST_CASE_TEMPLATE_DEFINE("backends: switch, forward and backward", B, switch_on) {
    check_routing<B>(sy::switch_router{.z_weight = 0.01}, draw_scores(score_kind::gaussian, 530, 11, 1, 20),
                     draw_mask(530, 1));
}
TEST_CASE_TEMPLATE_APPLY(switch_on, every_backend);

TEST_CASE_TEMPLATE_DEFINE("backends: top-k, forward and backward", B, top_k_on) {
    check_routing<B>(sy::top_k_router{.k = 3, .renormalize = true, .capacity = {.factor = 0.9}, .z_weight = 0.01},
                     draw_scores(score_kind::gaussian, 530, 18, 2), draw_mask(530, 2));
}
TEST_CASE_TEMPLATE_APPLY(top_k_on, every_backend);

TEST_CASE_TEMPLATE_DEFINE("backends: dispatch, combine and their backward", B, rows_on) {
    check_rows<B>(1);
    check_rows<B>(19);
}
TEST_CASE_TEMPLATE_APPLY(rows_on, every_backend);
