// The arrays of switchyard/formats/ against plain loops, on every policy; by hand where an example says more; what is
// read back; in any layout; and what is refused.
#include "support/formats.hpp"
#include "support/backends.hpp"
#include "support/count_allocations.hpp"

#include <doctest/doctest.h>

#include <limits>

using namespace switchyard_test;

TEST_CASE("formats: the plain loops', on every policy, for any shape, capacity and block") {
    for (const index_t tokens : {0, 1, 9, 50, 300}) {
        for (const auto& shape :
             {std::pair<index_t, index_t>{1, 1}, {1, 7}, {2, 8}, {3, 40}, {6, 6}, {4, 12}, {2, 64}}) {
            const index_t k = shape.first;
            const index_t experts = shape.second;
            const auto from = random_given(tokens, k, experts, static_cast<std::uint64_t>(tokens * k));
            for (const index_t capacity : {index_t{0}, tokens / 4 + 1, sy::unlimited}) {
                for (const index_t block : {1, 2, 16}) {
                    CAPTURE(tokens);
                    CAPTURE(experts);
                    CAPTURE(capacity);
                    CAPTURE(block);
                    sy::workspace scratch;
                    CHECK(all_formats_difference(sy::seq, from, capacity, block, scratch, block == 2 ? 3 : 0) == "");
                }
            }
        }
    }
    // More tokens than a block of work holds, on threads.
    for (const std::uint64_t absent : {0, 1, 8}) {
        const auto from = random_given(9001, 2, 12, 7, absent);
        for_each_policy([&](const auto& policy) {
            sy::workspace scratch;
            CHECK(all_formats_difference(policy, from, 1000, 16, scratch) == "");
        });
    }
}

TEST_CASE("formats: all tokens at one expert, and one token with every expert") {
    given_choices one(5000, 1, 9);
    std::fill_n(one.ids.data(), 5000, std::int64_t{4});
    const auto every = random_given(1, 64, 64, 5, 0);
    for_each_policy([&](const auto& policy) {
        sy::workspace scratch;
        CHECK(all_formats_difference(policy, one, sy::unlimited, 128, scratch) == "");
        CHECK(all_formats_difference(policy, one, 77, 1, scratch) == "");
        CHECK(all_formats_difference(policy, every, sy::unlimited, 128, scratch) == "");
        covers<operation("formats")>(policy);
    });
}

#if defined(COUNTED_BY_SANITIZER) || defined(__GLIBC__)

namespace {

/// A pool that has the calling thread run blocks from the last to the first.
struct in_reverse {
    template <class F>
    void parallel_for(index_t blocks, F&& f) const {
        for (index_t b = blocks - 1; b >= 0; --b) f(b);
    }
};

}  // namespace

TEST_CASE("formats: after the first step of a shape nothing is allocated") {
    const auto from = random_given(5000, 2, 8, 1);
    const auto plan = sy::plan_from_choices(sy::seq, from.ids, from.gates, 8, {.capacity = {.number = 900}});
    sy::workspace scratch;
    sy::matrix<std::int32_t> rows(1, 10000), experts(1, 10000), offsets(1, 5001), map(5000, 17), counts(1, 8),
        one(1, 1), masked(8, 900), choices(5000, 2), ranks(1, 4);
    sy::matrix<std::uint8_t> bytes(5000, 8), bits(5000, 1), in_rank(5000, 4);
    sy::matrix<float> weights_of(5000, 2), dense(5000, 8), entries(1, 10000);
    const auto write_all = [&](const auto& policy) {
        sy::write_row_experts(policy, plan, experts);
        sy::write_row_choices(policy, plan, rows);
        sy::write_row_tokens(policy, plan, rows);
        sy::write_choice_rows(policy, plan, choices);
        sy::write_aligned_blocks(policy, plan, rows, experts, one);
        sy::write_bins(policy, plan, 128, counts);
        sy::write_masked(policy, plan, masked, counts);
        sy::write_ids(policy, plan, choices);
        sy::write_weights(policy, plan, weights_of);
        sy::write_packed_choices(policy, plan, choices);
        sy::write_routing_map(policy, plan, bytes);
        sy::write_routing_bits(policy, plan, bits);
        sy::write_routing_weights(policy, plan, dense);
        sy::write_row_map(policy, plan, map);
        sy::write_rank_layout(policy, plan, 4, ranks, in_rank, scratch);
        sy::write_token_lists(policy, plan, offsets, rows, experts, entries, scratch);
        sy::sort_rows_by_token(policy, plan, scratch);
    };
    const auto allocated = [&](const auto& policy) {
        write_all(policy);
        const long before = allocations;
        write_all(policy);
        return allocations - before;
    };
    CHECK(allocated(sy::seq) == 0);
    in_reverse pool;  // threads that start meanwhile would be counted
    CHECK(allocated(sy::par_on(pool)) == 0);
}

#endif

TEST_CASE("formats: what masks and capacities leave out: a token without rows, a dropped choice") {
    // E 3, k 2, C 1: token 0 at 0 and 2, token 1 masked out, token 2 at 0 (dropped) and 1, token 3 at 2 (dropped).
    given_choices from(4, 2, 3);
    const std::int64_t ids[] = {0, 2, -1, -1, 0, 1, 2, -1};
    const float gates[] = {.75f, .25f, .5f, .5f, .5f, .25f, 1.0f, 0.0f};
    std::copy(std::begin(ids), std::end(ids), from.ids.data());
    std::copy(std::begin(gates), std::end(gates), from.gates.data());
    sy::plan<float> plan;
    sy::workspace scratch;
    plan.set_row_block(2);
    sy::plan_from_choices(sy::seq, from.ids, from.gates, 3, {.capacity = {.number = 1}}, plan, scratch);
    compared<sy::seq_policy> compare(sy::seq);
    // All first choices come before any second: expert 2 goes to token 3, and token 0's second choice is dropped.
    auto choices = blank<std::int64_t>(sy::seq, 4, 2);
    sy::write_ids(sy::seq, plan, choices);
    compare("ids", choices, int_list{0, -1, -1, -1, -1, 1, 2, -1});
    sy::write_ids(sy::seq, plan, choices, {.none = 0});
    compare("valid ids", choices, int_list{0, 0, 0, 0, 0, 1, 2, 0});
    sy::write_choice_rows(sy::seq, plan, choices);
    compare("rows of choices", choices, int_list{0, -1, -1, -1, -1, 2, 4, -1});
    auto gate = blank<double>(sy::seq, 4, 2);
    sy::write_weights(sy::seq, plan, gate);
    compare("weights", gate, float_list{.75f, 0, 0, 0, 0, .25f, 1, 0});
    auto map = blank<bool>(sy::seq, 4, 3);
    sy::write_routing_map(sy::seq, plan, map);
    compare("map", map, int_list{1, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1});
    auto row_map = blank<std::int32_t>(sy::seq, 4, 7);
    sy::write_row_map(sy::seq, plan, row_map);
    compare("row map", row_map, int_list{0, -1, -1, 0, -1, -1, 1, -1, -1, -1, -1, -1, -1, 0,
                                         2, -1, -1, 1, -1, -1, 1, 4,  -1, -1, 2,  -1, -1, 1});
    auto rows = blank<std::int32_t>(sy::seq, 1, 6);
    sy::write_row_experts(sy::seq, plan, rows);
    compare("experts", rows, int_list{0, -1, 1, -1, 2, -1});
    auto offsets = blank<std::int32_t>(sy::seq, 1, 5);
    auto entries = blank<std::int32_t>(sy::seq, 1, 3);
    auto entry_experts = blank<std::int64_t>(sy::seq, 1, 3);
    auto entry_weights = blank<float>(sy::seq, 3, 1);
    sy::write_token_lists(sy::seq, plan, offsets, entries, entry_experts, entry_weights, scratch);
    compare("offsets", offsets, int_list{0, 1, 1, 2, 3});
    compare("rows", entries, int_list{0, 2, 4});
    auto per_rank = blank<std::int64_t>(sy::seq, 1, 3);
    auto in_rank = blank<bool>(sy::seq, 4, 3);
    sy::write_rank_layout(sy::seq, plan, 3, per_rank, in_rank, scratch);
    compare("per rank", per_rank, int_list{1, 1, 1});
    compare("in rank", in_rank, int_list{1, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1});
    auto one_hot = blank<float>(sy::seq, 4, 3);
    sy::write_one_hot(sy::seq, plan, one_hot);
    compare("one hot", one_hot, int_list{1, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1});
    CHECK(compare.difference() == "");
}

TEST_CASE("formats: a token that names an expert twice has two rows, and one mark") {
    given_choices from(2, 3, 4);
    const std::int64_t ids[] = {3, 1, 3, 0, -1, 1};
    const float gates[] = {.5f, .25f, .125f, 1.0f, 0.0f, .5f};
    std::copy(std::begin(ids), std::end(ids), from.ids.data());
    std::copy(std::begin(gates), std::end(gates), from.gates.data());
    sy::plan<float> plan;
    sy::workspace scratch;
    sy::plan_from_choices(sy::seq, from.ids, from.gates, 4, {.may_repeat = true}, plan, scratch);
    const plain_plan as_taken(from, sy::unlimited);
    CHECK(formats_difference(sy::seq, plan, {as_taken, 2, 3, 4, 1}, scratch, 1) == "");
}

TEST_CASE("formats: round trips") {
    for (const index_t capacity : {index_t{30}, sy::unlimited}) {
        const auto from = random_given(300, 3, 10, 4);
        const auto plan = sy::plan_from_choices(sy::seq, from.ids, from.gates, 10, {.capacity = {.number = capacity}});
        const auto same_plan = [&](const sy::plan<float>& again) {
            const auto& a = again.view();
            const auto& b = plan.view();
            for (index_t i = 0; i < 900; ++i) {
                if (a.slot[i] != b.slot[i] || a.gate[i] != b.gate[i]) return false;
                if (b.slot[i] >= 0 && a.expert[i] != b.expert[i]) return false;
            }
            return std::equal(a.order, a.order + a.offsets[10], b.order) &&
                   std::equal(a.offsets, a.offsets + 11, b.offsets);
        };
        // Ids and weights: the plan of the kept choices.
        sy::matrix<std::int32_t> ids(300, 3), packed(300, 3), rows(300, 3);
        sy::matrix<float> gates(300, 3);
        sy::write_ids(sy::seq, plan, ids);
        sy::write_weights(sy::seq, plan, gates);
        CHECK(same_plan(sy::plan_from_choices(sy::seq, ids, gates, 10)));
        // Packed: gates here are multiples of 1/4, which bfloat16 holds.
        sy::write_packed_choices(sy::seq, plan, packed);
        for (index_t i = 0; i < 900; ++i) {
            const auto bits = static_cast<std::uint32_t>(packed.data()[i]);
            ids.data()[i] = packed.data()[i] >> 16;
            gates.data()[i] = std::bit_cast<float>(bits << 16);
        }
        CHECK(same_plan(sy::plan_from_choices(sy::seq, ids, gates, 10)));
        // Rows of choices and choices of rows are inverse.
        sy::matrix<std::int64_t> choices(1, plan.row_bound());
        sy::write_choice_rows(sy::seq, plan, rows);
        sy::write_row_choices(sy::seq, plan, choices);
        for (index_t r = 0; r < plan.rows(); ++r) CHECK(rows.data()[choices(0, r)] == r);
        // The row map names the same rows.
        sy::matrix<std::int32_t> map(300, 21);
        sy::write_row_map(sy::seq, plan, map);
        for (index_t t = 0; t < 300; ++t) {
            for (index_t j = 0; j < map(t, 20); ++j) CHECK(choices(0, map(t, j)) / 3 == t);
        }
    }
}

TEST_CASE("formats: rows stay sorted by token, and the same plan is dispatched") {
    const auto from = random_given(500, 4, 9, 6);
    auto plan = sy::plan_from_choices(sy::seq, from.ids, from.gates, 9, {.capacity = {.number = 100}});
    sy::workspace scratch;
    const auto expert = std::vector<std::int32_t>(plan.view().expert, plan.view().expert + 2000);
    const auto asked = std::vector<std::int64_t>(plan.view().load_before, plan.view().load_before + 9);
    const auto counted = plan.totals().counted_tokens;
    sy::sort_rows_by_token(sy::seq, plan, scratch);
    CHECK(list_difference("expert", plan.view().expert, expert) == "");
    CHECK(list_difference("asked", plan.view().load_before, asked) == "");
    CHECK(plan.totals().counted_tokens == counted);
    CHECK(plan.finished());
    for (index_t e = 0; e < 9; ++e) {
        CHECK(std::is_sorted(plan.view().order + plan.offset(e), plan.view().order + plan.offset(e + 1)));
    }
    sy::lay_out(sy::seq, plan, 16, scratch);
    CHECK(plain_difference(plan.view(), sorted_by_token(plain_plan(from, 100, 16))) == "");
}

TEST_CASE("formats: outputs of any layout, and nothing between their numbers is written") {
    const auto from = random_given(40, 2, 9, 8);
    const auto plan = sy::plan_from_choices(sy::seq, from.ids, from.gates, 9);
    const plain_plan made(from, sy::unlimited);
    const plain_formats want{made, 40, 2, 9, 1};
    // Every second number of a table that is stored column by column.
    const auto check = [&](index_t rows, index_t columns, const auto& numbers_of, const auto& write, auto gap) {
        using T = decltype(gap);
        std::vector<T> all(at(2 * rows * columns), gap);
        write(sy::matrix_view<T>(all.data(), rows, columns, 2, 2 * rows));
        for (index_t i = 0; i < rows; ++i) {
            for (index_t j = 0; j < columns; ++j) {
                CHECK(all[at(2 * (j * rows + i))] == static_cast<T>(numbers_of[at(i * columns + j)]));
                CHECK(all[at(2 * (j * rows + i) + 1)] == gap);
            }
        }
    };
    const std::int32_t n = 77;
    check(
        80, 1, want.row_choices(80), [&](auto out) { sy::write_row_choices(sy::seq, plan, out); }, n);
    check(
        1, 80, want.row_experts(80), [&](auto out) { sy::write_row_experts(sy::seq, plan, out); }, n);
    check(
        40, 2, want.choice_rows(), [&](auto out) { sy::write_choice_rows(sy::seq, plan, out); }, n);
    check(
        40, 2, want.ids(-1), [&](auto out) { sy::write_ids(sy::seq, plan, out); }, std::int64_t{77});
    check(
        40, 2, want.packed(-1), [&](auto out) { sy::write_packed_choices(sy::seq, plan, out); }, n);
    check(
        40, 2, made.gate, [&](auto out) { sy::write_weights(sy::seq, plan, out); }, 77.0);
    check(
        40, 9, want.map(), [&](auto out) { sy::write_routing_map(sy::seq, plan, out); }, std::uint8_t{77});
    check(
        40, 2, want.bits(), [&](auto out) { sy::write_routing_bits(sy::seq, plan, out); }, std::uint8_t{77});
    check(
        40, 9, want.dense_weights(), [&](auto out) { sy::write_routing_weights(sy::seq, plan, out); }, 77.0f);
    check(
        40, 19, want.row_map(), [&](auto out) { sy::write_row_map(sy::seq, plan, out); }, n);
    check(
        40, 9 * 40, want.slots(40, true), [&](auto out) { sy::write_combine_weights(sy::seq, plan, out); }, 77.0f);
    sy::matrix<std::int32_t> counts(9, 1);
    check(
        9, 40, want.masked(40), [&](auto out) { sy::write_masked(sy::seq, plan, out, counts); }, n);
    sy::workspace scratch;
    sy::matrix<std::int32_t> ranks(3, 1);
    check(
        40, 3, want.in_rank(3), [&](auto out) { sy::write_rank_layout(sy::seq, plan, 3, ranks, out, scratch); },
        std::uint8_t{77});
}

TEST_CASE("formats: weights in 16 bits are the nearest, and the packed ones the same") {
    const float hard[] = {1.00390625f, 1.01171875f, .3333333f, 1e-40f, 3.4e38f, -0.0f, 65504.0f, 1.0f / 3};
    given_choices from(8, 1, 3);
    for (index_t t = 0; t < 8; ++t) {
        from.ids(t, 0) = t % 3;
        from.gates(t, 0) = hard[t];
    }
    const auto plan = sy::plan_from_choices(sy::seq, from.ids, from.gates, 3);
    Eigen::Matrix<Eigen::bfloat16, Eigen::Dynamic, 1> stored(8, 1);
    sy::write_weights(sy::seq, plan, stored);
    sy::matrix<std::int32_t> packed(8, 1);
    sy::write_packed_choices(sy::seq, plan, packed);
    for (index_t t = 0; t < 8; ++t) {
        const auto nearest = static_cast<Eigen::bfloat16>(hard[t]);
        CHECK(std::bit_cast<std::uint16_t>(stored(t)) == std::bit_cast<std::uint16_t>(nearest));
        CHECK((packed(t, 0) & 0xffff) == std::bit_cast<std::uint16_t>(nearest));
        CHECK((packed(t, 0) >> 16) == t % 3);
    }
    CHECK(sy::detail::bfloat16_bits(std::numeric_limits<float>::quiet_NaN()) == 0x7fc0u);
    CHECK(sy::detail::bfloat16_bits(-std::numeric_limits<float>::infinity()) == 0xff80u);
    // A plan in double: rounded to float, and then.
    const auto wide = sy::plan_from_choices(sy::seq, from.ids, sy::matrix<double>(8, 1).view(), 3);
    std::fill_n(wide.view().gate, 8, 1.0 / 3);
    sy::write_packed_choices(sy::seq, wide, packed);
    CHECK(packed(4, 0) == (1 << 16) + 0x3eab);
}

TEST_CASE("formats: arguments that do not fit are refused with their name, value and rule") {
    const auto from = random_given(10, 2, 6, 1, 0);
    sy::plan<float> plan;
    sy::workspace scratch;
    plan.set_row_block(4);
    sy::plan_from_choices(sy::seq, from.ids, from.gates, 6, {}, plan, scratch);
    using ints = sy::matrix<std::int32_t>;
    using bytes = sy::matrix<std::uint8_t>;
    using floats = sy::matrix<float>;
    const auto says = [](const char* sentence, const auto& call) { CHECK_THROWS_WITH_AS(call(), sentence, sy::error); };
    const std::string rows = said(plan.rows());

    says(("the experts of rows have room for 3 rows; the plan has " + rows).c_str(),
         [&] { sy::write_row_experts(sy::seq, plan, ints(1, 3)); });
    says(("the choices of rows has room for 3 rows; the plan has " + rows).c_str(),
         [&] { sy::write_row_choices(sy::seq, plan, ints(3, 1)); });
    says(("the tokens of rows has room for 3 rows; the plan has " + rows).c_str(),
         [&] { sy::write_row_tokens(sy::seq, plan, ints(3, 1)); });
    says("the experts of rows is 2 x 3; it must be one row or one column",
         [&] { sy::write_row_experts(sy::seq, plan, ints(2, 3)); });
    says("the rows of choices is 10 x 3; it must be 10 x 2",
         [&] { sy::write_choice_rows(sy::seq, plan, ints(10, 3)); });
    says("block = 0 must be at least 1", [&] { (void)sy::aligned_block_sizes(10, 2, 6, 0); });
    says("block = 0 must be at least 1", [&] { sy::write_bins(sy::seq, plan, 0, ints(1, 6)); });
    says("bins has room for 5 numbers; there are 6", [&] { sy::write_bins(sy::seq, plan, 2, ints(1, 5)); });
    says(("block_experts has room for 1 blocks of 4 rows; the plan has " + rows + " rows").c_str(),
         [&] { sy::write_aligned_blocks(sy::seq, plan, ints(1, 99), ints(1, 1), ints(1, 1)); });
    says(("sorted_ids has room for 9 rows; the plan has " + rows).c_str(),
         [&] { sy::write_aligned_blocks(sy::seq, plan, ints(1, 9), ints(1, 99), ints(1, 1)); });
    says("padded_count has 2 numbers; it must have 1",
         [&] { sy::write_aligned_blocks(sy::seq, plan, ints(1, 99), ints(1, 99), ints(1, 2)); });
    says("expert_map has 5 numbers; there are 6 experts",
         [&] { sy::write_aligned_blocks(sy::seq, plan, ints(1, 99), ints(1, 99), ints(1, 1), ints(1, 5)); });
    says("choices is 5 x 10; it must be 6 x 10", [&] { sy::write_masked(sy::seq, plan, ints(5, 10), ints(1, 6)); });
    says("counts has room for 5 numbers; there are 6",
         [&] { sy::write_masked(sy::seq, plan, ints(6, 10), ints(1, 5)); });
    says("choices has room for 0 rows per expert; the plan has up to 5",
         [&] { sy::write_masked(sy::seq, plan, ints(6, 0), ints(1, 6)); });
    says("none = 6 must be -1 or an expert of the plan's 6",
         [&] { sy::write_ids(sy::seq, plan, ints(10, 2), {.none = 6}); });
    says("ids is 2 x 10; it must be 10 x 2", [&] { sy::write_ids(sy::seq, plan, ints(2, 10)); });
    says("weights is 1 x 20; it must be 10 x 2", [&] { sy::write_weights(sy::seq, plan, floats(1, 20)); });
    says("the routing map is 10 x 5; it must be 10 x 6", [&] { sy::write_routing_map(sy::seq, plan, bytes(10, 5)); });
    says("the routing bits is 10 x 2; it must be 10 x 1", [&] { sy::write_routing_bits(sy::seq, plan, bytes(10, 2)); });
    says("the row map is 10 x 12; it must be 10 x 13", [&] { sy::write_row_map(sy::seq, plan, ints(10, 12)); });
    says("ranks = 4 must be at least 1 and divide E = 6",
         [&] { sy::write_rank_layout(sy::seq, plan, 4, ints(1, 4), bytes(10, 4), scratch); });
    says("ranks = 0 must be at least 1 and divide E = 6",
         [&] { sy::write_rank_layout(sy::seq, plan, 0, ints(1, 0), bytes(10, 0), scratch); });
    says("tokens_per_rank has room for 3 numbers; there are 2 ranks",
         [&] { sy::write_rank_layout(sy::seq, plan, 2, ints(1, 3), bytes(10, 2), scratch); });
    says("offsets has room for 10 numbers; there are 11",
         [&] { sy::write_token_lists(sy::seq, plan, ints(1, 10), ints(1, 20), ints(1, 20), floats(1, 20), scratch); });
    says("rows has room for 19 entries; the plan has 20",
         [&] { sy::write_token_lists(sy::seq, plan, ints(1, 11), ints(1, 19), ints(1, 20), floats(1, 20), scratch); });
    says("experts has room for 21 entries; rows for 20",
         [&] { sy::write_token_lists(sy::seq, plan, ints(1, 11), ints(1, 20), ints(1, 21), floats(1, 20), scratch); });
    says("dispatch has 61 columns; they must be a multiple of E = 6",
         [&] { sy::write_one_hot(sy::seq, plan, floats(10, 61)); });
    says("combine has room for 1 rows per expert; the plan has up to 5",
         [&] { sy::write_combine_weights(sy::seq, plan, floats(10, 6)); });
    // More than 32 bits hold, and a plan that is none.
    sy::plan_view<float> large = plan.view();
    large.row_bound = index_t{1} << 31;
    says("the choices of rows may hold 2147483648, which int32 cannot",
         [&] { sy::write_row_choices(sy::seq, large, ints(1, 99)); });
    says("padded_count may hold 2147483648, which int32 cannot",
         [&] { sy::write_aligned_blocks(sy::seq, large, ints(1, 99), ints(1, 99), ints(1, 1)); });
    says("the row map may hold 2147483648, which int32 cannot",
         [&] { sy::write_row_map(sy::seq, large, ints(10, 13)); });
    large = plan.view();
    large.experts = 40000;
    says("the plan has 40000 experts; 16 bits of a packed choice name 32768 at most",
         [&] { sy::write_packed_choices(sy::seq, large, ints(10, 2)); });
    large = plan.view();
    large.tokens = index_t{1} << 30;
    says("the plan has 2147483648 choices: slots by token are numbered in 32 bits, split the batch",
         [&] { sy::sort_rows_by_token(sy::seq, large, scratch); });
    CHECK_THROWS_AS(sy::write_row_experts(sy::seq, sy::plan<float>{}, ints(1, 0)), sy::error);
    CHECK_THROWS_AS(sy::write_ids(sy::seq, sy::plan<float>{}, ints(0, 1)), sy::error);
    // A token with more choices than experts has no place in a row map.
    sy::plan<float> repeated;
    given_choices twice(1, 2, 1);
    twice.ids(0, 0) = twice.ids(0, 1) = 0;
    sy::plan_from_choices(sy::seq, twice.ids, twice.gates, 1, {.may_repeat = true}, repeated, scratch);
    says("the row map has room for 1 rows per token; the plan has 2 choices",
         [&] { sy::write_row_map(sy::seq, repeated, ints(1, 3)); });
}
