// The arrays of switchyard/formats/ beside those that packages made or document (support/recorded_formats.hpp), to the
// last number.
#include "support/formats.hpp"
#include "support/recorded_formats.hpp"

#include <doctest/doctest.h>

#include <iterator>

using namespace switchyard_test;
using narrow = std::int32_t;

namespace {

/// What is wrong with `rows` x `columns` numbers of T that `write` wrote; nothing where a set has no such array.
template <class T, class Recorded, class Write>
std::string recorded_difference(const char* name, index_t rows, index_t columns, std::span<const Recorded> want,
                                const Write& write) {
    if (want.empty()) return "";
    auto got = blank<T>(sy::seq, rows, columns);
    write(got);
    using W = std::conditional_t<std::is_same_v<Recorded, float>, float, std::int64_t>;
    return table_difference(name, sy::seq, got, std::vector<W>(want.begin(), want.end()));
}

/// Their plan, whose rows stand by token.
sy::plan<float> plan_of(const recorded_format& set, index_t block, sy::workspace& scratch) {
    given_choices from(set.tokens, set.k, set.experts);
    std::copy(set.ids.begin(), set.ids.end(), from.ids.data());
    if (!set.weights.empty()) std::copy(set.weights.begin(), set.weights.end(), from.gates.data());
    sy::plan<float> plan;
    plan.set_row_block(block);
    sy::plan_from_choices(sy::seq, from.ids, from.gates, set.experts, {}, plan, scratch);
    sy::sort_rows_by_token(sy::seq, plan, scratch);
    return plan;
}

void check_lists(const recorded_format& set, const sy::plan<float>& plan) {
    const index_t rows = plan.rows();
    const auto counts = [&](const char* name, recorded_format::shorts want, sy::plan_counts kind) {
        CHECK(recorded_difference<narrow>(name, 1, static_cast<index_t>(want.size()), want,
                                          [&](auto& out) { sy::write_counts(sy::seq, plan, kind, out); }) == "");
    };
    counts("grouped_mm offs", set.offs, sy::plan_counts::ends);
    counts("offsets", set.offsets, sy::plan_counts::offsets);
    const auto bins = [&](const char* name, recorded_format::shorts want, index_t block) {
        CHECK(recorded_difference<narrow>(name, 1, set.experts, want,
                                          [&](auto& out) { sy::write_bins(sy::seq, plan, block, out); }) == "");
    };
    bins("bins", set.bins, 1);
    bins("padded bins", set.padded_bins, 128);
    const auto choices = [&](auto& out) { sy::write_row_choices(sy::seq, plan, out); };
    CHECK(recorded_difference<narrow>("order", 1, rows, set.order, choices) == "");
    CHECK(recorded_difference<std::int64_t>("sorted choices", 1, rows, set.sorted_choices, choices) == "");
    CHECK(recorded_difference<narrow>("sorted experts", 1, rows, set.sorted_experts,
                                      [&](auto& out) { sy::write_row_experts(sy::seq, plan, out); }) == "");
    CHECK(recorded_difference<narrow>("sorted indices", 1, rows, set.sorted_indices,
                                      [&](auto& out) { sy::write_row_tokens(sy::seq, plan, out); }) == "");
    // The weights of rows are those of their choices.
    CHECK(recorded_difference<float>("permuted probs", 1, rows, set.permuted_probs, [&](auto& out) {
              sy::matrix<narrow> of_rows(1, rows);
              choices(of_rows);
              for (index_t r = 0; r < rows; ++r) out(0, r) = plan.view().gate[of_rows(0, r)];
          }) == "");
}

void check_tables(const recorded_format& set, const sy::plan<float>& plan) {
    const index_t T = set.tokens, k = set.k, E = set.experts;
    CHECK(recorded_difference<narrow>("rows of choices", T, k, set.rows,
                                      [&](auto& out) { sy::write_choice_rows(sy::seq, plan, out); }) == "");
    CHECK(recorded_difference<narrow>("ids", T, k, set.ids, [&](auto& out) { sy::write_ids(sy::seq, plan, out); }) ==
          "");
    CHECK(recorded_difference<float>("weights", T, k, set.weights,
                                     [&](auto& out) { sy::write_weights(sy::seq, plan, out); }) == "");
    CHECK(recorded_difference<narrow>("row id map", T, 2 * E + 1, set.row_map,
                                      [&](auto& out) { sy::write_row_map(sy::seq, plan, out); }) == "");
    CHECK(recorded_difference<std::uint8_t>("bitmap", T, (E + 7) / 8, set.bits,
                                            [&](auto& out) { sy::write_routing_bits(sy::seq, plan, out); }) == "");
    CHECK(recorded_difference<bool>("routing map", T, E, set.routing_map,
                                    [&](auto& out) { sy::write_routing_map(sy::seq, plan, out); }) == "");
    CHECK(recorded_difference<float>("probs", T, E, set.probs,
                                     [&](auto& out) { sy::write_routing_weights(sy::seq, plan, out); }) == "");
}

}  // namespace

TEST_CASE("recorded: lists by row, by expert and by token, masks and maps of dense rows") {
    sy::workspace scratch;
    for (const auto& set : recorded_formats()) {
        CAPTURE(set.name);
        const auto plan = plan_of(set, 1, scratch);
        check_lists(set, plan);
        check_tables(set, plan);
        // A token's list is its row of the rows of choices, -1 left out.
        if (set.rows.empty()) continue;
        int_list want;
        std::copy_if(set.rows.begin(), set.rows.end(), std::back_inserter(want), [](short row) { return row >= 0; });
        auto offsets = blank<narrow>(sy::seq, 1, set.tokens + 1);
        auto rows = blank<narrow>(sy::seq, 1, plan.rows());
        auto experts = blank<narrow>(sy::seq, 1, plan.rows());
        auto gates = blank<float>(sy::seq, 1, plan.rows());
        sy::write_token_lists(sy::seq, plan, offsets, rows, experts, gates, scratch);
        CHECK(table_difference("rows by token", sy::seq, rows, want) == "");
    }
}

TEST_CASE("recorded: blocks of vLLM, 16 and 64") {
    sy::workspace scratch;
    const auto check = [&](const sy::plan<float>& plan, recorded_format::shorts ids, recorded_format::shorts experts,
                           recorded_format::shorts count) {
        if (ids.empty()) return;
        const auto sizes = sy::aligned_block_sizes(plan.tokens(), plan.choices(), plan.experts(), plan.row_block());
        auto sorted_ids = blank<narrow>(sy::seq, 1, sizes.ids);
        auto block_experts = blank<narrow>(sy::seq, 1, sizes.blocks);
        auto padded_count = blank<narrow>(sy::seq, 1, 1);
        sy::write_aligned_blocks(sy::seq, plan, sorted_ids, block_experts, padded_count);
        CHECK(table_difference("ids", sy::seq, sorted_ids, int_list(ids.begin(), ids.end())) == "");
        CHECK(table_difference("experts", sy::seq, block_experts, int_list(experts.begin(), experts.end())) == "");
        CHECK(table_difference("count", sy::seq, padded_count, int_list(count.begin(), count.end())) == "");
    };
    for (const auto& set : recorded_formats()) {
        CAPTURE(set.name);
        auto plan = plan_of(set, 16, scratch);
        check(plan, set.vllm16_ids, set.vllm16_experts, set.vllm16_count);
        sy::lay_out(sy::seq, plan, 64, scratch);
        check(plan, set.vllm64_ids, set.vllm64_experts, set.vllm64_count);
    }
}

TEST_CASE("recorded: DeepGEMM's rows in blocks of 128") {
    sy::workspace scratch;
    for (const auto& set : recorded_formats()) {
        CAPTURE(set.name);
        const auto plan = plan_of(set, 128, scratch);
        CHECK(recorded_difference<narrow>("m_indices", 1, plan.rows(), set.m_indices,
                                          [&](auto& out) { sy::write_row_experts(sy::seq, plan, out); }) == "");
        CHECK(recorded_difference<narrow>("psum, aligned", 1, set.experts, set.psum_aligned, [&](auto& out) {
                  sy::write_counts(sy::seq, plan, sy::plan_counts::ends, out);
              }) == "");
        CHECK(recorded_difference<narrow>("psum, actual", 1, set.experts, set.psum_actual, [&](auto& out) {
                  sy::write_counts(sy::seq, plan, sy::plan_counts::kept_ends, out);
              }) == "");
        // The row of each choice in expert order.
        CHECK(recorded_difference<narrow>("rows of sorted choices", 1, plan.kept(), set.row_of_sorted, [&](auto& out) {
                  sy::matrix<narrow> rows(set.tokens, set.k);
                  sy::write_choice_rows(sy::seq, plan, rows);
                  for (std::size_t i = 0; i < set.order.size(); ++i) out.data()[i] = rows.data()[set.order[i]];
              }) == "");
    }
}

TEST_CASE("recorded: DeepEP's layout on 2 and 4 ranks, and of 2 nodes") {
    sy::workspace scratch;
    for (const auto& set : recorded_formats()) {
        CAPTURE(set.name);
        const auto plan = plan_of(set, 1, scratch);
        const auto check = [&](index_t ranks, recorded_format::shorts per_rank, recorded_format::shorts in_rank) {
            if (per_rank.empty()) return;
            auto counts = blank<narrow>(sy::seq, 1, ranks);
            auto marks = blank<bool>(sy::seq, set.tokens, ranks);
            sy::write_rank_layout(sy::seq, plan, ranks, counts, marks, scratch);
            CHECK(table_difference("per rank", sy::seq, counts, int_list(per_rank.begin(), per_rank.end())) == "");
            if (in_rank.empty()) return;
            CHECK(table_difference("in rank", sy::seq, marks, int_list(in_rank.begin(), in_rank.end())) == "");
        };
        check(2, set.per_rank_2, set.in_rank_2);
        check(4, set.per_rank_4, set.in_rank_4);
        check(2, set.per_node_2, {});
        CHECK(recorded_difference<narrow>("per expert", 1, set.experts, set.per_expert, [&](auto& out) {
                  sy::write_counts(sy::seq, plan, sy::plan_counts::kept, out);
              }) == "");
    }
}

TEST_CASE("recorded: the packages' own examples") {
    sy::workspace scratch;
    // Transformer Engine's, whose map becomes ids in rising order; its last token has none.
    const std::span<const short> map(recorded::formats_te_example_routing_map);
    given_choices from(5, 3, 3);
    for (index_t i = 0; i < 15; ++i) from.ids.data()[i] = map[at(i)] != 0 ? i % 3 : -1;
    const auto plan = sy::plan_from_choices(sy::seq, from.ids, 3);
    sy::sort_rows_by_token(sy::seq, plan, scratch);
    const std::span<const short> row_map(recorded::formats_te_example_row_id_map);
    CHECK(recorded_difference<narrow>("row id map", 5, 7, row_map,
                                      [&](auto& out) { sy::write_row_map(sy::seq, plan, out); }) == "");
    CHECK(recorded_difference<bool>("routing map", 5, 3, map,
                                    [&](auto& out) { sy::write_routing_map(sy::seq, plan, out); }) == "");
    // vLLM's: 4 experts, blocks of 4, and the entries in use.
    given_choices four(4, 3, 4);
    const std::span<const short> ids(recorded::formats_vllm_example_topk_ids);
    std::copy(ids.begin(), ids.end(), four.ids.data());
    sy::plan<float> blocks;
    blocks.set_row_block(4);
    sy::plan_from_choices(sy::seq, four.ids, 4, {}, blocks, scratch);
    sy::sort_rows_by_token(sy::seq, blocks, scratch);
    auto experts = blank<narrow>(sy::seq, 1, 4);
    auto count = blank<narrow>(sy::seq, 1, 1);
    const std::span<const short> sorted(recorded::formats_vllm_example_sorted_token_ids);
    CHECK(recorded_difference<narrow>("sorted ids", 1, 16, sorted, [&](auto& out) {
              sy::write_aligned_blocks(sy::seq, blocks, out, experts, count);
          }) == "");
    CHECK(table_difference("experts", sy::seq, experts, int_list{0, 1, 2, 3}) == "");
    CHECK(table_difference("count", sy::seq, count, int_list{16}) == "");
}
