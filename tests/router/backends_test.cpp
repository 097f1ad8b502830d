// Every CPU backend: Eigen row-major and column-major, block, map, raw pointer and span x calling thread, OpenMP
// threads and a pool x float, double, half and bfloat16. The same numbers in another layout or on another thread are
// the same plan.
#include "support/backends.hpp"
#include "support/routed.hpp"

#include <switchyard/backend/eigen.hpp>
#include <switchyard/dispatch/combine.hpp>
#include <switchyard/dispatch/dispatch.hpp>
#include <switchyard/reference/dispatch.hpp>
#include <switchyard/router/route.hpp>
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

/// One router on one policy: views alone, so that nothing here is compiled once a layout.
template <class Policy, class Router, class S>
void check_routing(const Policy& policy, const Router& router, sy::matrix_view<S> scores, sy::matrix_view<S> d_gates,
                   sy::matrix_view<S> d_scores, const ref::mask_list& mask, const ref::plan& want) {
    sy::plan<sy::compute_t<S>> plan;
    sy::workspace scratch;
    route_scores(policy, router, scores, training_with(mask), plan, scratch);
    CHECK(mismatch(plan, want) == "");
    route_scores_backward(policy, router, plan, scores, d_gates, d_scores, scratch);
}

/// Every policy of a backend, forward and backward.
template <class B, class Router>
void check_backend(const Router& router, const ref::matrix& wanted_scores, const ref::mask_list& mask) {
    using storage = typename B::storage;
    using layout = typename B::template layout<storage>;
    const auto rounded = rounded_to<storage>(wanted_scores);
    const auto d_gates = rounded_to<storage>(gaussian_scores(rounded.rows, router_choices(router), 8));
    const auto same = reference_of(router, true);
    const auto want = ref::route_scores(same, rounded, mask);
    const auto d_want = ref::route_scores_backward(same, want, rounded, d_gates, mask);
    const double allowed = tolerance<typename B::compute>::gradient + storage_epsilon<storage>;
    layout scores(rounded);
    layout weights(d_gates);
    B::each_policy([&](const auto& policy) {
        layout d_scores(ref::matrix(rounded.rows, rounded.columns, 3.0));
        check_routing(policy, router, scores.view(), weights.view(), d_scores.view(), mask, want);
        CHECK(table_mismatch(table_of_view(d_scores.view()), d_want, allowed, 1.0) == "");
        CHECK(d_scores.gaps_intact());
    });
    CHECK((table_of_view(scores.view()) == rounded));
    CHECK(scores.gaps_intact());
}

/// What the rows' tests need of the reference, computed once.
struct row_tables {
    ref::plan want;
    ref::matrix x, outputs, d_y, dispatched, combined, onto;
    ref::combine_gradients gradients;
    ref::matrix d_x;
};

/// Numbers exact in every type, so that sums are, too.
row_tables draw_rows(index_t width) {
    row_tables tables;
    const auto scores = gaussian_scores(300, 6, 3);
    tables.want = ref::route_scores(ref::top_k_router{.k = 2, .capacity = {.factor = 0.8}}, scores);
    auto& want = tables.want;
    for (index_t i = 0; i < want.gates.values.length(); ++i) {
        want.gates.values[i] = want.slots.values[i] < 0 ? 0 : i % 2 == 0 ? 0.5 : 0.25;
    }
    const auto small = [&](index_t rows, std::uint64_t seed) {
        return draw_scores(score_kind::small_integers, rows, width, seed);
    };
    tables.x = small(300, 1);
    tables.outputs = small(want.kept(), 2);
    tables.d_y = small(300, 3);
    tables.dispatched = ref::dispatch(want, tables.x);
    tables.dispatched.values.resize(static_cast<std::size_t>((want.kept() + 2) * width), 7.0);  // untouched beyond
    tables.dispatched.rows += 2;
    tables.combined = ref::combine(want, tables.outputs);
    tables.onto = ref::matrix(300, width, 1.0);
    ref::combine_onto(want, tables.outputs, ref::gates_weigh::output, tables.onto);
    tables.gradients = ref::combine_backward(want, tables.outputs, tables.d_y);
    tables.d_x = ref::dispatch_backward(want, tables.x, tables.outputs).d_x;
    return tables;
}

/// The five calls that move rows, on one policy.
template <class Policy, class Plan, class S>
void move_rows(const Policy& policy, const Plan& plan, sy::matrix_view<S> x, sy::matrix_view<S> outputs,
               sy::matrix_view<S> d_y, sy::matrix_view<S> rows, sy::matrix_view<S> y, sy::matrix_view<S> onto,
               sy::matrix_view<S> d_rows, sy::matrix_view<S> d_gates, sy::matrix_view<S> d_x) {
    sy::dispatch(policy, plan, x, rows);
    sy::combine(policy, plan, outputs, y);
    sy::combine(policy, plan, outputs, onto, {.accumulate = true});
    sy::combine_backward(policy, plan, outputs, d_y, d_rows, d_gates);
    sy::dispatch_backward(policy, plan, outputs, d_x);
}

template <class B>
void check_rows(const row_tables& tables) {
    using layout = typename B::template layout<typename B::storage>;
    const index_t width = tables.x.columns;
    const auto& want = tables.want;
    const auto plan =
        routed<typename B::compute>(sy::top_k_router{.k = 2, .capacity = {.factor = 0.8}}, gaussian_scores(300, 6, 3));
    for (index_t i = 0; i < want.gates.values.length(); ++i) {
        plan.view().gate[i] = static_cast<typename B::compute>(want.gates.values[i]);
    }
    layout x(tables.x);
    layout outputs(tables.outputs);
    layout d_y(tables.d_y);
    B::each_policy([&](const auto& policy) {
        layout rows(ref::matrix(want.kept() + 2, width, 7.0));
        layout y(ref::matrix(300, width, 1.0));
        layout onto(ref::matrix(300, width, 1.0));
        layout d_rows(ref::matrix(want.kept(), width, 7.0));
        layout d_gates(ref::matrix(300, 2, 7.0));
        layout d_x(ref::matrix(300, width, 7.0));
        move_rows(policy, plan, x.view(), outputs.view(), d_y.view(), rows.view(), y.view(), onto.view(), d_rows.view(),
                  d_gates.view(), d_x.view());
        CHECK((table_of_view(rows.view()) == tables.dispatched));
        CHECK((table_of_view(y.view()) == tables.combined));
        CHECK((table_of_view(onto.view()) == tables.onto));
        CHECK((table_of_view(d_rows.view()) == tables.gradients.d_expert_output));
        CHECK((table_of_view(d_gates.view()) == tables.gradients.d_gates));
        CHECK((table_of_view(d_x.view()) == tables.d_x));
        for (layout* const written : {&rows, &y, &onto, &d_rows, &d_gates, &d_x}) CHECK(written->gaps_intact());
    });
}

}  // namespace

TEST_CASE_TEMPLATE_DEFINE("backends: switch, forward and backward", B, switch_on) {
    check_backend<B>(sy::switch_router{.z_weight = 0.01}, draw_scores(score_kind::gaussian, 530, 11, 1, 20),
                     draw_mask(530, 1));
}
TEST_CASE_TEMPLATE_APPLY(switch_on, every_backend);

TEST_CASE_TEMPLATE_DEFINE("backends: top-k, forward and backward", B, top_k_on) {
    check_backend<B>(sy::top_k_router{.k = 3, .renormalize = true, .capacity = {.factor = 0.9}, .z_weight = 0.01},
                     draw_scores(score_kind::gaussian, 530, 18, 2), draw_mask(530, 2));
}
TEST_CASE_TEMPLATE_APPLY(top_k_on, every_backend);

TEST_CASE_TEMPLATE_DEFINE("backends: dispatch, combine and their backward", B, rows_on) {
    for (const index_t width : {1, 19}) check_rows<B>(draw_rows(width));
}
TEST_CASE_TEMPLATE_APPLY(rows_on, every_backend);

TEST_CASE_TEMPLATE("backends: containers are arguments as they are", L, row_major, column_major, block, map,
                   raw_pointer, span) {
    using layout = typename L::template layout<float>;
    const auto table = gaussian_scores(40, 7, 3);
    layout scores(table);
    layout d_scores(ref::matrix(40, 7));
    const auto plan = sy::route_scores(sy::seq, sy::switch_router{}, scores.argument(), training_with());
    CHECK(mismatch(plan, ref::route_scores(reference_of(sy::switch_router{}, true), table)) == "");
    sy::workspace scratch;
    sy::route_scores_backward(sy::seq, sy::switch_router{}, plan, scores.argument(),
                              layout(ref::matrix(40, 1, 1.0)).argument(), d_scores.argument(), scratch);
    CHECK(table_mismatch(table_of_view(d_scores.view()),
                         routed_backward(sy::switch_router{}, plan, table, ref::matrix(40, 1, 1.0)), 0) == "");
    layout y(ref::matrix(40, 7));
    sy::combine(sy::seq, plan, sy::dispatch(sy::seq, plan, scores.argument()), y.argument());
    CHECK(y.gaps_intact());
}
