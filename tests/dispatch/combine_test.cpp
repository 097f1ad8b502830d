#include "support/backends.hpp"
#include "support/rows.hpp"

#include <switchyard/backend/eigen.hpp>
#include <switchyard/dispatch/combine.hpp>

#include <doctest/doctest.h>

#include <cmath>

using namespace switchyard_test;

TEST_CASE("combine: worked by hand") {
    const ref::matrix scores{{1, 0}, {1, 0}, {0, 1}, {1, 0}};
    auto plan = routed<float>(sy::top_k_router{.k = 1, .capacity = {.number = 2}}, scores);
    for (index_t t = 0; t < 3; ++t) plan.view().gate[t] = 0.5f;
    const auto outputs = stored<float>({{10, 20}, {30, 40}, {50, 60}});
    CHECK(table_of(sy::combine(sy::seq, plan, outputs)) == ref::matrix{{5, 10}, {15, 20}, {25, 30}, {0, 0}});
    auto y = filled_matrix<float>(4, 2, 1);
    sy::combine(sy::seq, plan, outputs, y, {.accumulate = true});
    CHECK(table_of(y) == ref::matrix{{6, 11}, {16, 21}, {26, 31}, {1, 1}});
    sy::combine(sy::seq, plan, outputs, y, {.apply_gates = false});
    CHECK(table_of(y) == ref::matrix{{10, 20}, {30, 40}, {50, 60}, {0, 0}});
    const auto [d_rows, d_gates] =
        sy::combine_backward(sy::seq, plan, outputs, stored<float>({{1, 0}, {0, 1}, {1, 1}, {9, 9}}));
    CHECK(table_of(d_rows) == ref::matrix{{0.5, 0}, {0, 0.5}, {0.5, 0.5}});
    CHECK(table_of(d_gates) == ref::matrix{{10}, {40}, {110}, {0}});
}

TEST_CASE_TEMPLATE("combine: every width and k, forward and backward, against the reference", S, float, double) {
    // k above 8: sums are made in groups of 8.
    for (const index_t k : {1, 2, 3, 7, 8, 9, 15, 16, 17, 20}) {
        for (const index_t width : {1, 3, 8, 16, 17, 33, 100}) {
            for (const std::optional<double> factor : {std::optional<double>{}, std::optional<double>{0.6}}) {
                const auto mask = factor ? draw_mask(60, 1) : ref::mask_list{};
                const auto [plan, want] =
                    random_plan<S>(60, 20, k, factor, static_cast<std::uint64_t>(width + k), mask);
                const auto outputs = gaussian_scores(want.kept(), width, 2);
                CHECK(table_mismatch(table_of(sy::combine(sy::seq, plan, stored<S>(outputs))),
                                     ref::combine(want, outputs), tolerance<S>::gradient) == "");

                auto y = filled_matrix<S>(60, width, 0.5);
                ref::matrix onto(60, width, 0.5);
                sy::combine(sy::seq, plan, stored<S>(outputs), y, {.apply_gates = false, .accumulate = true});
                ref::combine_onto(want, outputs, ref::gates_weigh::input, onto);
                CHECK(table_mismatch(table_of(y), onto, tolerance<S>::gradient) == "");

                auto d_y = gaussian_scores(60, width, 3);
                const auto gradients = ref::combine_backward(want, outputs, d_y);
                for (index_t t = 0; t < 60; ++t) {
                    if (!ref::is_token(mask, t)) d_y(t, 0) = NAN;  // padding: never reaches anything
                }
                const auto [d_rows, d_gates] = sy::combine_backward(sy::seq, plan, stored<S>(outputs), stored<S>(d_y));
                CHECK(table_mismatch(table_of(d_rows), gradients.d_expert_output, tolerance<S>::gradient) == "");
                CHECK(table_mismatch(table_of(d_gates), gradients.d_gates, tolerance<S>::gradient, 10) == "");
            }
        }
    }
    covers<operation("combine"), operation("combine, backward")>(sy::seq);
}

TEST_CASE("combine: without gates there is no gate gradient to write") {
    const auto [plan, want] = random_plan<double>(30, 5, 2, 0.8, 3);
    const auto outputs = gaussian_scores(want.kept(), 6, 2);
    const auto d_y = gaussian_scores(30, 6, 3);
    sy::matrix<double> d_rows(want.kept(), 6);
    auto d_gates = filled_matrix<double>(30, 2, 7);
    sy::combine_backward(sy::seq, plan, stored<double>(outputs), stored<double>(d_y), d_rows, d_gates,
                         {.apply_gates = false});
    CHECK(table_of(d_rows) == ref::combine_backward(want, outputs, d_y, ref::gates_weigh::input).d_expert_output);
    CHECK(table_of(d_gates) == ref::matrix(30, 2, 7.0));
}

TEST_CASE("combine: dropped tokens get zeros, also from rows that hold NaN beyond the kept ones") {
    const auto plan = routed<float>(sy::top_k_router{.k = 2, .capacity = {.number = 1}}, ref::matrix(50, 3));
    auto outputs = filled_matrix<float>(plan.row_bound() + 5, 17, 2);
    for (index_t r = plan.kept(); r < outputs.rows(); ++r) {
        for (index_t d = 0; d < 17; ++d) outputs(r, d) = NAN;
    }
    auto y = filled_matrix<float>(50, 17, NAN);
    sy::combine(sy::seq, plan, outputs, y);
    for (index_t t = 0; t < 50; ++t) {
        for (index_t d = 0; d < 17; ++d) {
            const float want = t == 0 ? 2 * (plan.gate()(0, 0) + plan.gate()(0, 1)) : 0;
            if (!(y(t, d) == doctest::Approx(want))) FAIL_CHECK("token " << t << ": " << y(t, d));
        }
    }
}

TEST_CASE("combine: large outputs, written past the cache, at any address") {
    const auto [plan, want] = random_plan<float>(4300, 16, 2, 0.9, 6);
    auto exact = want;
    for (index_t i = 0; i < exact.gates.values.length(); ++i) {
        exact.gates.values[i] = exact.slots.values[i] >= 0 ? 0.5 : 0;
        plan.view().gate[i] = static_cast<float>(exact.gates.values[i]);
    }
    const auto outputs = draw_scores(score_kind::small_integers, want.kept(), 513, 7);
    const auto expected = ref::combine(exact, outputs);
    const auto rows = stored<float>(outputs);
    for (const index_t offset : {0, 1, 16}) {
        sy::buffer<float> memory(4300 * 528 + offset);
        for (const index_t stride : {index_t{513}, index_t{528}}) {
            const sy::matrix_view<float> y(memory.data() + offset, 4300, 513, stride, 1);
            sy::combine(sy::seq, plan, rows, y);
            CHECK((ref::matrix_from(sy::const_view(y)) == expected));
        }
    }
}

TEST_CASE("combine: half and bfloat16 are summed in float and rounded once") {
    auto [plan, want] = random_plan<float>(40, 12, 12, {}, 8);
    const auto outputs = rounded_to<Eigen::bfloat16>(gaussian_scores(want.kept(), 9, 9));
    const auto expected = ref::combine(want, outputs);
    // bfloat16 keeps 8 bits: half a unit is 2^-9 of the number; sums in bfloat16 would be off by several.
    const auto y = table_of(sy::combine(sy::seq, plan, stored<Eigen::bfloat16>(outputs)));
    index_t rounded_once = 0;
    for (index_t i = 0; i < y.values.length(); ++i) {
        rounded_once += std::abs(y.values[i] - expected.values[i]) <= 0x1.01p-8 * std::abs(expected.values[i]) + 1e-6;
    }
    CHECK(rounded_once == y.values.length());
    sy::matrix<float> wide(40, 9);
    sy::combine(sy::seq, plan, stored<Eigen::bfloat16>(outputs), wide);
    CHECK(table_mismatch(table_of(wide), expected, tolerance<float>::gradient) == "");
}

TEST_CASE("combine: nothing to sum") {
    const auto none = routed<float>(sy::top_k_router{.k = 1}, ref::matrix(0, 3));
    CHECK(sy::combine(sy::seq, none, sy::matrix<float>(0, 5)).rows() == 0);
    const auto dropped = routed<float>(sy::top_k_router{.k = 1, .capacity = {.number = 0}}, ref::matrix(4, 3));
    CHECK(table_of(sy::combine(sy::seq, dropped, sy::matrix<float>(0, 5))) == ref::matrix(4, 5));
    const auto [d_rows, d_gates] =
        sy::combine_backward(sy::seq, dropped, sy::matrix<float>(0, 5), filled_matrix<float>(4, 5, NAN));
    CHECK(table_of(d_gates) == ref::matrix(4, 1));
}

TEST_CASE("combine: every rule broken is named") {
    const auto [plan, want] = random_plan<float>(10, 3, 2, {}, 1);
    const auto& p = plan;
    sy::matrix<float> y(10, 4);
    sy::matrix<float> rows(20, 4);
    sy::matrix<float> nine(9, 4);
    sy::matrix<float> few(19, 4);
    sy::matrix<float> wide(20, 5);
    sy::matrix<float> d_gates(10, 2);
    sy::matrix<float> d_gates_short(9, 2);
    CHECK(sentence_of([&] { sy::combine(sy::seq, p, rows, nine); }) == "y has 9 rows; the plan was made for 10 tokens");
    CHECK(sentence_of([&] { sy::combine(sy::seq, p, few, y); }) == "rows has 19 rows; the plan needs 20");
    CHECK(sentence_of([&] { sy::combine(sy::seq, p, wide, y); }) == "rows has rows of 5 numbers; tokens have 4");
    CHECK(sentence_of([&] { sy::combine_backward(sy::seq, p, rows, nine, rows, d_gates); }) ==
          "d_y has 9 rows; the plan was made for 10 tokens");
    CHECK(sentence_of([&] { sy::combine_backward(sy::seq, p, rows, y, few, d_gates); }) ==
          "d_rows has 19 rows; the plan needs 20");
    CHECK(sentence_of([&] { sy::combine_backward(sy::seq, p, rows, y, wide, d_gates); }) ==
          "d_rows has rows of 5 numbers; tokens have 4");
    CHECK(sentence_of([&] { sy::combine_backward(sy::seq, p, rows, y, rows, d_gates_short); }) ==
          "d_gates is 9 x 2; the plan has 10 tokens x 2 choices");
}
