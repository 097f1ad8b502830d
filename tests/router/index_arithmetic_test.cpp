// T * E and distances above 2^31: index arithmetic is 64-bit. Strided views and lazily mapped memory need no such
// memory.
#include "support/routed.hpp"

#include <switchyard/dispatch/combine.hpp>
#include <switchyard/dispatch/dispatch.hpp>
#include <switchyard/reference/dispatch.hpp>
#include <switchyard/router/switch.hpp>
#include <switchyard/router/top_k.hpp>

#include <doctest/doctest.h>

#include <vector>

#if defined(__linux__)
#include "support/address_space.hpp"
#endif

using namespace switchyard_test;

namespace {

constexpr index_t two_to_31 = index_t{1} << 31;

#if defined(__linux__)
/// Address space whose pages exist once they are written.
struct lazy_memory : address_space<sy::seq_policy> {
    explicit lazy_memory(index_t count) : address_space(static_cast<std::size_t>(count) * sizeof(float)) {}
    float* numbers() const { return static_cast<float*>(data()); }
};
#endif

}  // namespace

TEST_CASE("index arithmetic: one row of scores for 2^31 / E tokens and more") {
    // Row stride 0; almost all rows are padding, so that nothing has to be computed for them.
    constexpr index_t experts = 4096;
    constexpr index_t tokens = two_to_31 / experts + 77;
    static_assert(tokens * experts > two_to_31);
    const auto row = gaussian_scores(1, experts, 1);
    const auto one = stored<float>(row);
    const sy::matrix_view<const float> scores(one.data(), tokens, experts, 0, 1);
    auto mask = ref::filled<std::uint8_t>(tokens, 0);
    const index_t last = tokens - 1;
    for (const index_t t : {index_t{0}, tokens / 2, last}) mask[t] = 1;
    const auto want =
        ref::ranked_experts(ref::row_of(ref::matrix_from(sy::matrix_view<const float>(one.data(), 1, experts)), 0));
    const sy::top_k_router router{.k = 2};
    sy::plan<float> plan;
    sy::workspace scratch;
    sy::route_scores(sy::seq, router, scores, training_with(mask), plan, scratch);
    CHECK(plan.kept() == 6);
    CHECK(plan.totals().counted_tokens == 3);
    for (const index_t t : {index_t{0}, tokens / 2, last}) {
        CHECK(plan.expert()(t, 0) == want[0]);
        CHECK(plan.expert()(t, 1) == want[1]);
    }
    CHECK(plan.slot()(last, 0) == 2);
    CHECK(plan.view().order[plan.offset(want[1]) + 2] == last * 2 + 1);
    CHECK(plan.load_balancing_loss() > 0);
}

#if defined(__linux__)
TEST_CASE("index arithmetic: scores of 2^31 numbers and more, each row in its own place") {
    constexpr index_t experts = 4096;
    constexpr index_t tokens = two_to_31 / experts + 77;
    const lazy_memory memory(tokens * experts);
    REQUIRE(memory.numbers() != nullptr);
    const sy::matrix_view<float> scores(memory.numbers(), tokens, experts);
    auto mask = ref::filled<std::uint8_t>(tokens, 0);
    const index_t used[] = {0, tokens / 2, tokens - 2, tokens - 1};
    for (int i = 0; i < 4; ++i) {
        mask[used[i]] = 1;
        // Written by plain pointer arithmetic of its own.
        memory.numbers()[static_cast<std::size_t>(used[i]) * experts + 1000 + static_cast<std::size_t>(i)] = 5;
    }
    sy::plan<float> plan;
    sy::workspace scratch;
    sy::route_scores(sy::seq, sy::switch_router{.capacity = {}}, scores, training_with(mask), plan, scratch);
    for (int i = 0; i < 4; ++i) CHECK(plan.expert()(used[i], 0) == 1000 + i);
    CHECK(plan.kept() == 4);
    // The last row's bad score is found and named.
    scores(tokens - 1, 4000) = INFINITY;
    CHECK(sentence_of([&] {
              sy::route_scores(sy::seq, sy::switch_router{}, scores, training_with(mask), plan, scratch);
          }) == said("scores[", tokens - 1,
                     ", 4000] is +infinity: a score must be finite, or -infinity to forbid an "
                     "expert"));
}

TEST_CASE("index arithmetic: rows and columns further apart than 2^31 elements, forward and backward") {
    constexpr index_t stride = two_to_31 + 12'345;
    const lazy_memory memory(3 * stride);
    const lazy_memory gradients(3 * stride);
    REQUIRE(memory.numbers() != nullptr);
    REQUIRE(gradients.numbers() != nullptr);
    const auto table = gaussian_scores(3, 3, 5);
    const auto d_gates = gaussian_scores(3, 1, 6);
    const sy::switch_router router{.capacity = {.number = 2}, .z_weight = 0.1};
    const auto want = ref::route_scores(reference_of(router, true), table);
    const auto d_want = ref::route_scores_backward(reference_of(router, true), want, table, d_gates);
    for (const bool by_rows : {true, false}) {
        const auto row_stride = by_rows ? stride : 5;
        const auto column_stride = by_rows ? 1 : stride;
        const sy::matrix_view<float> scores(memory.numbers(), 3, 3, row_stride, column_stride);
        const sy::matrix_view<float> d_scores(gradients.numbers(), 3, 3, row_stride, column_stride);
        for (index_t t = 0; t < 3; ++t) {
            for (index_t e = 0; e < 3; ++e) {
                memory.numbers()[static_cast<std::size_t>(t * row_stride + e * column_stride)] =
                    static_cast<float>(table(t, e));
            }
        }
        sy::plan<float> plan;
        sy::workspace scratch;
        sy::route_scores(sy::seq, router, scores, training_with(), plan, scratch);
        CHECK(mismatch(plan, want) == "");
        sy::route_scores_backward(sy::seq, router, plan, scores, stored<float>(d_gates), d_scores, scratch);
        CHECK(table_mismatch(ref::matrix_from(sy::const_view(d_scores)), d_want, tolerance<float>::gradient, 1) == "");
    }
}

TEST_CASE("index arithmetic: dispatch and combine over rows further apart than 2^31 elements") {
    constexpr index_t stride = two_to_31 + 4'321;
    const lazy_memory tokens(4 * stride);
    const lazy_memory experts(4 * stride);
    REQUIRE(tokens.numbers() != nullptr);
    REQUIRE(experts.numbers() != nullptr);
    const auto scores = gaussian_scores(4, 3, 5);
    const auto x = gaussian_scores(4, 20, 6);
    const auto plan = routed<float>(sy::switch_router{.capacity = {}}, scores);
    const auto want = ref::route_scores(reference_of(sy::switch_router{.capacity = {}}, true), scores);
    const sy::matrix_view<float> in(tokens.numbers(), 4, 20, stride, 1);
    const sy::matrix_view<float> rows(experts.numbers(), 4, 20, stride, 1);
    for (index_t t = 0; t < 4; ++t) {
        for (index_t d = 0; d < 20; ++d) in(t, d) = static_cast<float>(x(t, d));
    }
    sy::dispatch(sy::seq, plan, in, rows);
    CHECK(table_mismatch(ref::matrix_from(sy::const_view(rows)), ref::dispatch(want, x), 0) == "");
    sy::combine(sy::seq, plan, rows, in);
    CHECK(table_mismatch(ref::matrix_from(sy::const_view(in)), ref::combine(want, ref::dispatch(want, x)),
                         tolerance<float>::gradient) == "");
}
#endif
