#include "support/backends.hpp"
#include "support/rows.hpp"

#include <switchyard/backend/eigen.hpp>
#include <switchyard/dispatch/dispatch.hpp>

#include <doctest/doctest.h>

#include <cmath>

using namespace switchyard_test;

TEST_CASE("dispatch: worked by hand") {
    // Experts 0, 0, 1, 0 with two rows each: token 3 is dropped.
    const ref::matrix scores{{1, 0}, {1, 0}, {0, 1}, {1, 0}};
    const auto plan = routed<float>(sy::top_k_router{.k = 1, .capacity = {.number = 2}}, scores);
    const auto rows = sy::dispatch(sy::seq, plan, stored<float>({{1, 2}, {3, 4}, {5, 6}, {7, 8}}));
    CHECK(table_of(rows) == ref::matrix{{1, 2}, {3, 4}, {5, 6}});
    sy::matrix<float> d_x(4, 2);
    sy::dispatch_backward(sy::seq, plan, stored<float>({{10, 20}, {30, 40}, {50, 60}}), d_x);
    CHECK(table_of(d_x) == ref::matrix{{10, 20}, {30, 40}, {50, 60}, {0, 0}});
}

TEST_CASE_TEMPLATE("dispatch: every width, with and without gates, against the reference", S, float, double) {
    for (const index_t width : {1, 2, 3, 7, 8, 15, 16, 17, 31, 33, 64, 100, 130}) {
        for (const index_t k : {1, 2, 5}) {
            const auto mask = draw_mask(90, 1);
            const auto [plan, want] = random_plan<S>(90, 7, k, 0.8, static_cast<std::uint64_t>(width), mask);
            auto x = gaussian_scores(90, width, 2);
            const auto clean = x;
            for (index_t t = 0; t < 90; ++t) {
                if (mask[t] == 0) x(t, width - 1) = NAN;  // padding: never reaches anything
            }
            const auto rows = sy::dispatch(sy::seq, plan, stored<S>(x));
            CHECK(rows.rows() == want.kept());
            CHECK(table_mismatch(table_of(rows), ref::dispatch(want, clean), 0) == "");
            const auto weighed = sy::dispatch(sy::seq, plan, stored<S>(x), {.apply_gates = true});
            CHECK(table_mismatch(table_of(weighed), ref::dispatch(want, clean, ref::gates_weigh::input),
                                 tolerance<S>::epsilon) == "");

            const auto d_rows = gaussian_scores(want.kept(), width, 3);
            sy::matrix<S> d_x(90, width);
            sy::dispatch_backward(sy::seq, plan, stored<S>(d_rows), d_x);
            CHECK(table_mismatch(table_of(d_x), ref::dispatch_backward(want, clean, d_rows).d_x,
                                 tolerance<S>::gradient) == "");
            sy::matrix<S> d_gates(90, k);
            sy::dispatch_backward(sy::seq, plan, stored<S>(x), stored<S>(d_rows), d_x, d_gates);
            const auto gradients = ref::dispatch_backward(want, clean, d_rows, ref::gates_weigh::input);
            CHECK(table_mismatch(table_of(d_x), gradients.d_x, tolerance<S>::gradient) == "");
            CHECK(table_mismatch(table_of(d_gates), gradients.d_gates, tolerance<S>::gradient, 10) == "");
        }
    }
    covers<operation("dispatch"), operation("dispatch, backward")>(sy::seq);
}

TEST_CASE("dispatch: rows beyond the kept ones are not touched; the bound always suffices") {
    const auto [plan, want] = random_plan<float>(100, 6, 2, 0.7, 4);
    const index_t bound = plan.row_bound();
    REQUIRE(bound > plan.kept() - 1);
    auto rows = filled_matrix<float>(bound + 3, 9, 7);
    sy::dispatch(sy::seq, plan, stored<float>(gaussian_scores(100, 9, 5)), rows);
    for (index_t r = plan.kept(); r < bound + 3; ++r) {
        for (index_t d = 0; d < 9; ++d) CHECK(rows(r, d) == 7);
    }
}

TEST_CASE("dispatch: large outputs, written past the cache, at any address") {
    // 8 MiB and more.
    const auto [plan, want] = random_plan<float>(4300, 16, 1, {}, 6);
    const auto x = gaussian_scores(4300, 513, 7);
    const auto expected = ref::dispatch(want, x);
    for (const index_t offset : {0, 1, 16}) {
        sy::buffer<float> memory(4300 * 528 + offset);
        for (const index_t stride : {index_t{513}, index_t{528}}) {
            const sy::matrix_view<float> rows(memory.data() + offset, 4300, 513, stride, 1);
            sy::dispatch(sy::seq, plan, stored<float>(x), rows);
            CHECK((ref::matrix_from(sy::const_view(rows)) == expected));
        }
    }
}

TEST_CASE("dispatch: storage types copy their bits, and convert where they differ") {
    const auto [plan, want] = random_plan<float>(50, 5, 2, 0.9, 8);
    const auto x = rounded_to<Eigen::bfloat16>(gaussian_scores(50, 11, 9));
    const auto rows = sy::dispatch(sy::seq, plan, stored<Eigen::bfloat16>(x));
    sy::matrix<float> wide(plan.kept(), 11);
    sy::dispatch(sy::seq, plan, stored<Eigen::bfloat16>(x), wide);
    CHECK(table_of(rows) == ref::dispatch(want, x));
    CHECK(table_of(wide) == ref::dispatch(want, x));
    sy::matrix<Eigen::half> narrow(plan.kept(), 11);
    sy::dispatch(sy::seq, plan, stored<double>(x), narrow);
    CHECK(table_mismatch(table_of(narrow), ref::dispatch(want, x), 0x1p-10) == "");
}

TEST_CASE("dispatch: nothing to move") {
    const auto none = routed<float>(sy::top_k_router{.k = 1}, ref::matrix(0, 3));
    CHECK(sy::dispatch(sy::seq, none, sy::matrix<float>(0, 5)).rows() == 0);
    const auto dropped = routed<float>(sy::top_k_router{.k = 1, .capacity = {.number = 0}}, ref::matrix(4, 3));
    CHECK(sy::dispatch(sy::seq, dropped, sy::matrix<float>(4, 5)).rows() == 0);
    auto d_x = filled_matrix<float>(4, 5, 7);
    sy::dispatch_backward(sy::seq, dropped, sy::matrix<float>(0, 5), d_x);
    CHECK(table_of(d_x) == ref::matrix(4, 5));
    const auto [plan, want] = random_plan<float>(10, 3, 2, {}, 1);
    CHECK(sy::dispatch(sy::seq, plan, sy::matrix<float>(10, 0)).columns() == 0);
}

TEST_CASE("dispatch: a plan_view is as good as the plan") {
    const auto [plan, want] = random_plan<float>(10, 3, 2, {}, 1);
    const auto x = stored<float>(gaussian_scores(10, 4, 2));
    CHECK(table_of(sy::dispatch(sy::seq, plan.view(), x)) == table_of(sy::dispatch(sy::seq, plan, x)));
}

TEST_CASE("dispatch: every rule broken is named") {
    const auto [plan, want] = random_plan<float>(10, 3, 2, {}, 1);
    sy::matrix<float> x(10, 4);
    sy::matrix<float> rows(20, 4);
    sy::matrix<float> d_gates(10, 2);
    sy::matrix<float> nine(9, 4);
    sy::matrix<float> few(19, 4);
    sy::matrix<float> wide(20, 5);
    sy::matrix<float> one_gate(10, 1);
    const auto& p = plan;
    CHECK(sentence_of([&] { sy::dispatch(sy::seq, p, nine, rows); }) ==
          "x has 9 rows; the plan was made for 10 tokens");
    CHECK(sentence_of([&] { sy::dispatch(sy::seq, p, x, few); }) == "rows has 19 rows; the plan needs 20");
    CHECK(sentence_of([&] { sy::dispatch(sy::seq, p, x, wide); }) == "rows has rows of 5 numbers; tokens have 4");
    CHECK(sentence_of([&] { sy::dispatch_backward(sy::seq, p, rows, nine); }) ==
          "d_x has 9 rows; the plan was made for 10 tokens");
    CHECK(sentence_of([&] { sy::dispatch_backward(sy::seq, p, few, x); }) == "d_rows has 19 rows; the plan needs 20");
    CHECK(sentence_of([&] { sy::dispatch_backward(sy::seq, p, x, rows, nine, d_gates); }) ==
          "d_x is 9 x 4; x is 10 x 4");
    CHECK(sentence_of([&] { sy::dispatch_backward(sy::seq, p, x, rows, x, one_gate); }) ==
          "d_gates is 10 x 1; the plan has 10 tokens x 2 choices");
}
