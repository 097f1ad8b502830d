// Row blocks: each expert's rows begin at a multiple of a block. Worked by hand, against plain loops, on every policy;
// the padding is never read, never written, and zeroed by zero_rest. Counts for others, in 32 bits.
#include "support/backends.hpp"
#include "support/choices.hpp"

#include <switchyard/dispatch/combine.hpp>
#include <switchyard/dispatch/dispatch.hpp>
#include <switchyard/plan/choices.hpp>
#include <switchyard/plan/counts.hpp>
#include <switchyard/plan/layout.hpp>
#include <switchyard/router/route.hpp>
#include <switchyard/router/switch.hpp>
#include <switchyard/router/top_k.hpp>

#include <doctest/doctest.h>

#include <cstring>
#include <limits>

using namespace switchyard_test;

namespace {

constexpr float not_a_number = std::numeric_limits<float>::quiet_NaN();

/// One choice a token: counts (2, 3, 0, 6, 8) of five experts.
given_choices worked() {
    given_choices made(19, 1, 5);
    index_t token = 0;
    for (const auto& [expert, count] : {std::pair{0, 2}, {1, 3}, {3, 6}, {4, 8}}) {
        for (int i = 0; i < count; ++i) made.ids(token++, 0) = expert;
    }
    return made;
}

template <class T>
sy::matrix<T> filled(index_t rows, index_t columns, T number) {
    sy::matrix<T> made(rows, columns);
    std::fill_n(made.data(), rows * columns, number);
    return made;
}

/// Rows of 0 where `want` has no choice, and `rest` there.
sy::matrix<float> with_rest(const sy::matrix<float>& rows, const plain_plan& want, float rest) {
    sy::matrix<float> made(rows.rows(), rows.columns());
    for (index_t r = 0; r < rows.rows(); ++r) {
        const bool has_choice = r < want.rows() && want.order[static_cast<std::size_t>(r)] >= 0;
        for (index_t j = 0; j < rows.columns(); ++j) made(r, j) = has_choice ? rows(r, j) : rest;
    }
    return made;
}

/// The same bits, NaN included.
bool same_bits(const sy::matrix<float>& a, const sy::matrix<float>& b) {
    return a.rows() == b.rows() && a.columns() == b.columns() &&
           (a.rows() * a.columns() == 0 ||
            std::memcmp(a.data(), b.data(), static_cast<std::size_t>(a.rows() * a.columns()) * sizeof(float)) == 0);
}

/// Everything that moves rows by a plan with padding, in buffers with 3 rows too many. Padding is NaN in what is read,
/// and must be so still in what is written.
template <class Policy>
void check_moves(const Policy& policy, const sy::plan<float>& plan, const plain_plan& want, index_t k) {
    const index_t tokens = plan.tokens();
    for (const index_t width : {1, 7, 32}) {
        CAPTURE(width);
        const index_t rows = plan.row_bound() + 3;
        const auto x = whole_numbers(tokens, width, 1);
        const auto outputs = with_rest(whole_numbers(rows, width, 2), want, not_a_number);
        const auto d_y = whole_numbers(tokens, width, 3);
        const plain_rows moved(want, tokens, k, rows, x, outputs, d_y);

        auto out = filled<float>(rows, width, not_a_number);
        sy::dispatch(policy, plan, x, out);
        CHECK(same_bits(out, with_rest(moved.dispatched, want, not_a_number)));
        sy::zero_rest(policy, plan, out);
        CHECK(number_difference("rows", out, moved.dispatched) == "");
        // Column by column, and weighed: rows are gate * x, as combine's backward makes them of d_y.
        Eigen::MatrixXf columns = Eigen::MatrixXf::Constant(rows, width, not_a_number);
        sy::dispatch(policy, plan, d_y, columns, {.apply_gates = true});
        sy::zero_rest(policy, plan, columns);
        CHECK(columns == sy::as_eigen(moved.d_rows));

        sy::matrix<float> y(tokens, width);
        sy::combine(policy, plan, outputs, y);
        CHECK(number_difference("y", y, moved.y) == "");
        sy::matrix<float> d_x(tokens, width);
        sy::dispatch_backward(policy, plan, outputs, d_x);
        CHECK(number_difference("d_x", d_x, moved.d_x) == "");
        auto d_rows = filled<float>(rows, width, not_a_number);
        sy::matrix<float> d_gates(tokens, k);
        sy::combine_backward(policy, plan, outputs, d_y, d_rows, d_gates);
        CHECK(same_bits(d_rows, with_rest(moved.d_rows, want, not_a_number)));
        CHECK(number_difference("d_gates", d_gates, moved.d_gates) == "");
        // The allocating forms have no number that nobody wrote.
        const auto d = sy::combine_backward(policy, plan, outputs, d_y);
        CHECK(number_difference("d_rows", d.d_rows, moved.d_rows) == "");
        const auto allocated = sy::dispatch(policy, plan, x);
        CHECK(allocated.rows() == want.rows());
        CHECK(number_difference("rows", allocated,
                                plain_rows(want, tokens, k, want.rows(), x, outputs, d_y).dispatched) == "");
    }
}

}  // namespace

TEST_CASE("row blocks: counts (2, 3, 0, 6, 8) in blocks of 4 have 24 rows, of experts 0 1 3 3 4 4") {
    const auto from = worked();
    sy::plan<float> plan;
    sy::workspace scratch;
    plan.set_row_block(4);
    sy::plan_from_choices(sy::seq, from.ids, from.gates, 5, {}, plan, scratch);
    CHECK(plan.row_block() == 4);
    CHECK(plan.kept() == 19);
    CHECK(plan.rows() == 24);
    CHECK(plan.row_bound() == 32);  // 5 experts with a choice each, and (19 - 5) / 4 more blocks: 8
    const std::vector<std::int64_t> offsets{0, 4, 8, 8, 16, 24};
    CHECK(list_difference("offsets", plan.view().offsets, offsets) == "");
    CHECK(plain_difference(plan.view(), plain_plan(from, sy::unlimited, 4)) == "");
    auto experts = filled<std::int32_t>(8, 1, 77);
    sy::write_block_experts(sy::seq, plan, experts);
    const std::vector<std::int32_t> of_blocks{0, 1, 3, 3, 4, 4, -1, -1};
    CHECK(list_difference("expert of block", experts.data(), of_blocks) == "");
    const std::vector<std::int64_t> of_six{0, 1, 3, 3, 4, 4};
    auto wide = filled<std::int64_t>(1, 6, 77);
    sy::write_block_experts(sy::seq, plan, wide);
    CHECK(list_difference("expert of block", wide.data(), of_six) == "");
    CHECK_THROWS_WITH_AS(sy::write_block_experts(sy::seq, plan, sy::matrix<std::int32_t>(1, 5).view()),
                         "the experts of blocks have room for 5 blocks of 4 rows; the plan has 24 rows", sy::error);
    check_moves(sy::seq, plan, plain_plan(from, sy::unlimited, 4), 1);
}

TEST_CASE("row blocks: row_bound is what the worst batch takes, and not more") {
    // Every way to give n choices to E experts, for small numbers.
    for (index_t experts = 1; experts <= 3; ++experts) {
        for (index_t tokens = 0; tokens <= 6; ++tokens) {
            for (const index_t capacity : {index_t{0}, index_t{1}, index_t{2}, index_t{3}, index_t{5}, sy::unlimited}) {
                for (const index_t block : {1, 2, 3, 4, 7}) {
                    index_t most = 0;
                    for (index_t a = 0; a <= tokens; ++a) {
                        for (index_t b = 0; a + b <= tokens && b <= (experts > 1 ? tokens : 0); ++b) {
                            const index_t loads[] = {a, b, experts > 2 ? tokens - a - b : 0};
                            index_t rows = 0;
                            for (const index_t load : loads) {
                                rows += (std::min(load, capacity) + block - 1) / block * block;
                            }
                            most = std::max(most, rows);
                        }
                    }
                    CAPTURE(experts);
                    CAPTURE(tokens);
                    CAPTURE(capacity);
                    CAPTURE(block);
                    CHECK(sy::row_bound(tokens, 1, experts, capacity, block) == most);
                }
            }
        }
    }
    CHECK(sy::row_bound(1000, 2, 8, sy::unlimited, 1) == 2000);
    CHECK_THROWS_WITH_AS(sy::row_bound(10, 2, 4, 3, 0), "row_block = 0 must be at least 1", sy::error);
    CHECK_THROWS_AS(sy::row_bound(index_t{1} << 31, 8, 1 << 20, sy::unlimited, index_t{1} << 60), sy::error);
}

TEST_CASE("row blocks: set before or laid out after, against plain loops, on every policy") {
    for (const index_t tokens : {0, 1, 9, 256, 700}) {
        for (const auto& shape : {std::pair<index_t, index_t>{1, 1}, {2, 8}, {3, 40}, {6, 6}}) {
            const index_t k = shape.first;
            const index_t experts = shape.second;
            const auto from = random_given(tokens, k, experts, static_cast<std::uint64_t>(tokens * k));
            for (const index_t capacity : {index_t{0}, tokens / 4 + 1, sy::unlimited}) {
                for (const index_t block : {1, 2, 16, 100}) {
                    CAPTURE(tokens);
                    CAPTURE(experts);
                    CAPTURE(capacity);
                    CAPTURE(block);
                    const sy::choice_settings settings{.capacity = {.number = capacity}};
                    const plain_plan want(from, capacity, block);
                    for_each_policy([&](const auto& policy) {
                        sy::plan<float> plan;
                        sy::workspace scratch;
                        plan.set_row_block(block);
                        sy::plan_from_choices(policy, from.ids, from.gates, experts, settings, plan, scratch);
                        CHECK(plain_difference(plan.view(), want) == "");
                        sy::lay_out(policy, plan, 5, scratch);
                        CHECK(plain_difference(plan.view(), plain_plan(from, capacity, 5)) == "");
                        sy::lay_out(policy, plan, 1, scratch);
                        CHECK(plain_difference(plan.view(), plain_plan(from, capacity)) == "");
                        sy::lay_out(policy, plan, block, scratch);
                        CHECK(plain_difference(plan.view(), want) == "");
                        CHECK(plan.finished());
                        check_moves(policy, plan, want, k);
                    });
                }
            }
        }
    }
}

TEST_CASE("row blocks: large rows, which are written past the cache, and an expert with all of them") {
    given_choices from(3000, 1, 4);
    for (index_t t = 0; t < 3000; ++t) from.ids(t, 0) = 2;
    from.ids(17, 0) = 0;
    const plain_plan want(from, sy::unlimited, 128);
    sy::plan<float> plan;
    sy::workspace scratch;
    plan.set_row_block(128);
    sy::plan_from_choices(sy::seq, from.ids, from.gates, 4, {}, plan, scratch);
    const index_t width = 1024;
    const auto x = whole_numbers(3000, width, 1);
    const auto outputs = with_rest(whole_numbers(want.rows(), width, 2), want, not_a_number);
    const auto d_y = whole_numbers(3000, width, 3);
    const plain_rows moved(want, 3000, 1, want.rows(), x, outputs, d_y);
    auto rows = filled<float>(want.rows(), width, not_a_number);
    sy::dispatch(sy::seq, plan, x, rows);
    CHECK(same_bits(rows, with_rest(moved.dispatched, want, not_a_number)));
    sy::dispatch(sy::seq, plan, d_y, rows, {.apply_gates = true});
    CHECK(same_bits(rows, with_rest(moved.d_rows, want, not_a_number)));
    sy::matrix<float> d_gates(3000, 1);
    sy::combine_backward(sy::seq, plan, outputs, d_y, rows, d_gates);
    CHECK(same_bits(rows, with_rest(moved.d_rows, want, not_a_number)));
    CHECK(number_difference("d_gates", d_gates, moved.d_gates) == "");
}

TEST_CASE("row blocks: every router gives a plan that has them, and backward through it is the dense plan's") {
    const auto scores = stored<float>(gaussian_scores(500, 7, 1));
    const auto check = [&](const auto& router) {
        const auto dense = sy::route_scores(sy::seq, router, scores, sy::training{});
        sy::plan<float> padded;
        sy::workspace scratch;
        padded.set_row_block(8);
        sy::route_scores(sy::seq, router, scores, sy::training{}, padded, scratch);
        CHECK(padded.kept() == dense.kept());
        CHECK(padded.load_balancing_loss() == dense.load_balancing_loss());
        const auto& a = padded.view();
        const auto& b = dense.view();
        for (index_t e = 0; e < 7; ++e) {
            CHECK(a.offsets[e] % 8 == 0);
            CHECK(a.offsets[e + 1] - a.offsets[e] == (b.load_after[e] + 7) / 8 * 8);
        }
        for (index_t i = 0; i < 500 * dense.choices(); ++i) {
            CHECK(a.slot[i] == b.slot[i]);
            CHECK((a.slot[i] < 0 || a.order[a.row_of(i)] == i));
        }
        const auto x = stored<float>(gaussian_scores(500, 9, 2));
        const auto y = sy::combine(sy::seq, padded, sy::dispatch(sy::seq, padded, x));
        CHECK(number_difference("y", y, sy::combine(sy::seq, dense, sy::dispatch(sy::seq, dense, x))) == "");
        const auto d_gates = stored<float>(gaussian_scores(500, dense.choices(), 3));
        CHECK(number_difference("d_scores", sy::route_scores_backward(sy::seq, router, padded, scores, d_gates),
                                sy::route_scores_backward(sy::seq, router, dense, scores, d_gates)) == "");
    };
    check(sy::switch_router{});
    check(sy::switch_router{.no_token_left_behind = 3});
    check(sy::switch_router{.order = sy::drop_order::gate});
    check(sy::top_k_router{.k = 3, .capacity = {.factor = 1.0}});
}

TEST_CASE("row blocks: a plan is empty once its block is set, and stays so where that fails") {
    const auto from = worked();
    auto plan = sy::plan_from_choices(sy::seq, from.ids, from.gates, 5);
    sy::workspace scratch;
    CHECK_THROWS_WITH_AS(plan.set_row_block(0), "row_block = 0 must be at least 1", sy::error);
    CHECK(plan.finished());
    CHECK_THROWS_AS(sy::lay_out(sy::seq, plan, -3, scratch), sy::error);
    CHECK(plan.finished());
    plan.set_row_block(2);
    CHECK(!plan.finished());
    CHECK_THROWS_AS(sy::lay_out(sy::seq, plan, 3, scratch), sy::error);
    sy::plan<float> moved = std::move(plan);
    CHECK(moved.row_block() == 2);
    CHECK(plan.row_block() == 1);  // NOLINT(bugprone-use-after-move)
}

TEST_CASE("zero_rest: beyond the kept rows of a dense plan, in any storage and layout") {
    // Two rows of an expert with a limit, in a buffer of 8 (F6: none of its numbers may be what was there).
    given_choices from(8, 1, 4);
    for (index_t t = 0; t < 8; ++t) from.ids(t, 0) = 0;
    const auto plan = sy::plan_from_choices(sy::seq, from.ids, from.gates, 4, {.capacity = {.number = 2}});
    CHECK(plan.row_bound() == 8);
    const auto rows = filled<float>(8, 3, 1.0f);
    const auto d = sy::combine_backward(sy::seq, plan, rows, rows);
    CHECK(d.d_rows.rows() == 8);
    for (index_t r = 0; r < 8; ++r) CHECK(d.d_rows(r, 2) == (r < 2 ? 1.0f : 0.0f));
    Eigen::Matrix<Eigen::half, Eigen::Dynamic, Eigen::Dynamic> columns(8, 3);
    columns.setConstant(Eigen::half(1));
    sy::zero_rest(sy::seq, plan, columns);
    for (index_t r = 0; r < 8; ++r) CHECK(static_cast<float>(columns(r, 1)) == (r < 2 ? 1.0f : 0.0f));
    // Fewer rows than there are, and none at all.
    auto one = filled<float>(1, 3, 1.0f);
    sy::zero_rest(sy::seq, plan, one);
    CHECK(one(0, 0) == 1);
    sy::zero_rest(sy::seq, plan, sy::matrix<float>(0, 3).view());
    CHECK_THROWS_AS(sy::zero_rest(sy::seq, sy::plan<float>{}, one), sy::error);
}

TEST_CASE("write_counts: every kind, int32 and int64, a row or a column") {
    const auto from = worked();
    sy::plan<float> plan;
    sy::workspace scratch;
    plan.set_row_block(4);
    sy::plan_from_choices(sy::seq, from.ids, from.gates, 5, {.capacity = {.number = 6}}, plan, scratch);
    const auto check = [&](sy::plan_counts kind, const std::vector<std::int64_t>& want) {
        const auto count = static_cast<index_t>(want.size());
        for_each_policy([&](const auto& policy) {
            auto narrow = filled<std::int32_t>(count, 2, 77);
            sy::write_counts(policy, plan, kind, sy::matrix_view<std::int32_t>(narrow.data(), count, 1, 2, 1));
            for (index_t i = 0; i < count; ++i) {
                CHECK(narrow(i, 0) == want[static_cast<std::size_t>(i)]);
                CHECK(narrow(i, 1) == 77);
            }
            auto wide = filled<std::int64_t>(1, count, 77);
            sy::write_counts(policy, plan, kind, wide);
            CHECK(list_difference("count", wide.data(), want) == "");
        });
        CHECK_THROWS_AS(sy::write_counts(sy::seq, plan, kind, sy::matrix<std::int32_t>(1, count + 1).view()),
                        sy::error);
    };
    check(sy::plan_counts::asked, {2, 3, 0, 6, 8});
    check(sy::plan_counts::kept, {2, 3, 0, 6, 6});
    check(sy::plan_counts::rows, {4, 4, 0, 8, 8});
    check(sy::plan_counts::offsets, {0, 4, 8, 8, 16, 24});
    check(sy::plan_counts::ends, {4, 8, 8, 16, 24});
    CHECK_THROWS_WITH_AS(sy::write_counts(sy::seq, plan, sy::plan_counts::ends, sy::matrix<std::int32_t>(5, 2).view()),
                         "counts is 5 x 2; it must be one row or one column", sy::error);
    CHECK_THROWS_AS(
        sy::write_counts(sy::seq, sy::plan<float>{}, sy::plan_counts::ends, sy::matrix<std::int32_t>(0, 1).view()),
        sy::error);
    // More than 32 bits may have to hold.
    sy::plan_view<float> large = plan.view();
    large.row_bound = index_t{1} << 31;
    CHECK_THROWS_WITH_AS(sy::write_counts(sy::seq, large, sy::plan_counts::ends, sy::matrix<std::int32_t>(5, 1).view()),
                         "the plan may count up to 2147483648 choices, which int32 cannot hold", sy::error);
}
