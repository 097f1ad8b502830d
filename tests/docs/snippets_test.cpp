// The shorter pieces of code that docs/ shows: each part between // [name] and // [/name] stands in a page, word for
// word (check_code.py).
#include <switchyard/switchyard.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <new>
#include <span>
#include <string>
#include <vector>

namespace sy = switchyard;

namespace {

// [own_plan]
/// A plan in arrays of the engine's: k = 1, at most `tokens` x `experts`. It has what routers ask of a plan.
struct engine_plan {
    using scalar = float;
    using space = sy::host_space;

    engine_plan(sy::index_t most_tokens, sy::index_t most_experts)
        : integers(static_cast<std::size_t>(2 * most_tokens)),
          numbers(static_cast<std::size_t>(3 * most_tokens)),
          counts(static_cast<std::size_t>(most_tokens + 4 * most_experts + 1)) {}

    void resize(sy::index_t tokens, sy::index_t experts, sy::index_t choices, sy::index_t capacity) {
        shown = {.tokens = tokens, .experts = experts, .choices = choices, .capacity = capacity};
        shown.row_bound = sy::row_bound(tokens, choices, experts, capacity);
        shown.expert = integers.data();                   // [T, k]
        shown.slot = shown.expert + tokens;               // [T, k]
        shown.gate = numbers.data();                      // [T, k]
        shown.row_maximum = shown.gate + tokens;          // [T]
        shown.row_sum = shown.row_maximum + tokens;       // [T]
        shown.order = counts.data();                      // [row_bound]
        shown.offsets = shown.order + shown.row_bound;    // [E + 1]
        shown.load_before = shown.offsets + experts + 1;  // [E]
        shown.load_after = shown.load_before + experts;   // [E]
        shown.balance_load = shown.load_after + experts;  // [E]
        shown.totals = &totals;
    }
    void made_by(const sy::plan_origin& origin) { shown.origin = origin; }
    const sy::plan_view<float>& view() const { return shown; }

    std::vector<std::int32_t> integers;  // tensors of the engine's, in life
    std::vector<float> numbers;
    std::vector<std::int64_t> counts;
    sy::plan_totals totals;
    sy::plan_view<float> shown;
};
// [/own_plan]

std::size_t bytes_given = 0;

// [own_allocator]
/// Where a plan's arrays come from: 64-byte aligned, never null.
struct engine_memory {
    using space = sy::host_space;
    static void* allocate(std::size_t bytes) {
        bytes_given += bytes;
        return ::operator new (bytes, std::align_val_t{64});
    }
    static void deallocate(void* pointer, std::size_t) noexcept { ::operator delete (pointer, std::align_val_t{64}); }
};
using engine_owned_plan = sy::basic_plan<float, engine_memory>;
// [/own_allocator]

// [own_matrix]
/// A matrix type of the engine's: column-major, with a leading dimension.
struct engine_tensor {
    float* numbers;
    sy::index_t rows, columns, leading;
};
// [/own_matrix]

/// Two types that look alike to a concept.
struct engine_array_a {
    double* numbers;
    sy::index_t rows, columns;
    using is_engine_array = void;
};
struct engine_array_b {
    double* numbers;
    sy::index_t rows, columns;
    using is_engine_array = void;
};
template <class M>
concept engine_array = requires {
    typename M::is_engine_array;
};

}  // namespace

// [own_matrix_view]
template <>
struct switchyard::view_access<engine_tensor> {
    static matrix_view<float> view(const engine_tensor& m) { return {m.numbers, m.rows, m.columns, 1, m.leading}; }
};
// [/own_matrix_view]

// [own_matrix_views]
namespace switchyard {
template <engine_array M>
struct view_access<M> {
    static matrix_view<double> view(const M& m) { return {m.numbers, m.rows, m.columns}; }
};
}  // namespace switchyard
// [/own_matrix_views]

TEST_CASE("docs: the kinds of arguments") {
    // [arguments]
    std::vector<float> numbers(6 * 4, 1.0f);
    const sy::switch_router router;

    const Eigen::MatrixXf matrix = Eigen::MatrixXf::Random(6, 4);
    auto a = sy::route_scores(sy::seq, router, matrix);             // Eigen: matrices, maps, blocks, any order
    auto b = sy::route_scores(sy::seq, router, matrix.topRows(3));  // without a copy
    auto c = sy::route_scores(sy::seq, router, sy::view_of(std::span(numbers), 6, 4));  // row-major numbers
    auto d = sy::route_scores(sy::seq, router, sy::matrix_view<const float>(numbers.data(), 6, 3, 4, 1));  // strides
    // [/arguments]
    CHECK(a.tokens() == 6);
    CHECK(b.tokens() == 3);
    CHECK(c.kept() == 6);  // all scores tie: expert 0, which has no limit at inference
    CHECK(d.experts() == 3);
    const engine_tensor tensor{numbers.data(), 6, 4, 6};
    CHECK(sy::route_scores(sy::seq, router, tensor).experts() == 4);
    std::vector<double> wide(6 * 4, 1.0);
    CHECK(sy::route_scores(sy::seq, router, engine_array_a{wide.data(), 6, 4}).experts() == 4);
    CHECK(sy::route_scores(sy::seq, router, engine_array_b{wide.data(), 4, 6}).experts() == 6);
}

TEST_CASE("docs: a loop that allocates nothing after its first step") {
    const Eigen::MatrixXf scores = Eigen::MatrixXf::Random(100, 8);
    const Eigen::MatrixXf d_gates = Eigen::MatrixXf::Ones(100, 1);
    Eigen::MatrixXf d_scores(100, 8);
    const sy::switch_router router{.logit_jitter = 1e-2f};
    // [loop]
    sy::plan<float> plan;
    sy::workspace scratch;
    for (std::uint32_t step = 0; step < 3; ++step) {
        route_scores(sy::seq, router, scores, sy::training{.seed = 7, .stream = 0, .step = step}, plan, scratch);
        route_scores_backward(sy::seq, router, plan, scores, d_gates, d_scores, scratch, {.loss_scale = 0.5});
    }
    // [/loop]
    CHECK(plan.kept() > 0);
    CHECK(d_scores.allFinite());
}

TEST_CASE("docs: a plan in an engine's own arrays, and from its own allocator") {
    const Eigen::MatrixXf scores = Eigen::MatrixXf::Random(50, 5);
    const sy::switch_router router;
    const auto expected = sy::route_scores(sy::seq, router, scores, sy::training{});
    sy::workspace scratch;

    engine_plan borrowed(50, 5);
    route_scores(sy::seq, router, scores, sy::training{}, borrowed, scratch);
    CHECK(borrowed.totals.kept == expected.kept());
    CHECK(std::memcmp(borrowed.shown.slot, expected.view().slot, 50 * sizeof(std::int32_t)) == 0);
    const Eigen::MatrixXf x = Eigen::MatrixXf::Random(50, 3);
    CHECK(sy::as_eigen(sy::dispatch(sy::seq, borrowed.view(), x)) == sy::as_eigen(sy::dispatch(sy::seq, expected, x)));

    // From tokens: the scores are not kept, and backward finds them again.
    const Eigen::MatrixXf w = Eigen::MatrixXf::Random(3, 5);
    const auto whole = sy::route(sy::seq, router, x, w, sy::training{});
    sy::route(sy::seq, router, x, w, sy::training{}, borrowed, scratch);
    CHECK(std::memcmp(borrowed.shown.slot, whole.view().slot, 50 * sizeof(std::int32_t)) == 0);
    const Eigen::MatrixXf d_gates = Eigen::MatrixXf::Random(50, 1);
    const auto gradients = sy::route_backward(sy::seq, router, whole, x, w, d_gates);
    Eigen::MatrixXf d_x(50, 3), d_w(3, 5);
    sy::route_backward(sy::seq, router, borrowed, x, w, d_gates, d_x, d_w, scratch);
    CHECK(d_x == sy::as_eigen(gradients.d_x));
    CHECK(d_w == sy::as_eigen(gradients.d_w));

    engine_owned_plan owned;
    route_scores(sy::seq, router, scores, sy::training{}, owned, scratch);
    CHECK(owned.kept() == expected.kept());
    CHECK(bytes_given > 0);
}

TEST_CASE("docs: padding and 16-bit storage") {
    const sy::switch_router router{.capacity = {.factor = 1.0}};
    // [mask]
    const std::array<std::uint8_t, 4> real{1, 1, 0, 1};  // token 2 is padding
    const sy::token_mask mask{real.data(), 4};
    const Eigen::MatrixXf scores = Eigen::MatrixXf::Random(4, 2);
    auto plan = sy::route_scores(sy::seq, router, scores, sy::training{.mask = mask});
    // [/mask]
    CHECK(plan.expert()(2, 0) == -1);
    CHECK(plan.slot()(2, 0) == -1);
    CHECK(plan.gate()(2, 0) == 0);
    CHECK(plan.totals().counted_tokens == 3);

    // [half]
    const Eigen::Matrix<Eigen::bfloat16, Eigen::Dynamic, Eigen::Dynamic> stored = scores.cast<Eigen::bfloat16>();
    sy::plan<float> narrow = sy::route_scores(sy::seq, router, stored);  // computed in float, gates in float
    // [/half]
    CHECK(narrow.tokens() == 4);
}

TEST_CASE("docs: error messages") {
    // [errors]
    Eigen::MatrixXf scores = Eigen::MatrixXf::Zero(3, 2);
    scores(1, 0) = std::numeric_limits<float>::quiet_NaN();
    std::string message;
    try {
        sy::route_scores(sy::seq, sy::switch_router{}, scores);
    } catch (const sy::error& fault) {
        message = fault.what();
    }
    // [/errors]
    CHECK(message == "scores[1, 0] is NaN: a score must be finite, or -infinity to forbid an expert");
}

TEST_CASE("docs: the exact balanced assignment") {
    const Eigen::MatrixXf table = Eigen::MatrixXf::Random(40, 4);
    const sy::matrix_view<const float> scores = sy::as_view(table);
    const sy::index_t T = scores.rows;
    const sy::index_t E = scores.columns;
    // [assignment]
    sy::workspace scratch;  // kept between calls: after the first, nothing is allocated
    std::vector<std::int32_t> expert(static_cast<std::size_t>(T));
    std::vector<double> prices(static_cast<std::size_t>(E));
    const sy::assignment_problem<float> problem{.scores = scores, .bounds = sy::balanced_quotas(T, E)};
    const auto found = solve(sy::seq, sy::hungarian{}, problem, {expert.data(), prices.data()}, scratch);
    // found.primal        the sum of scores
    // found.gap           nothing better by more than this exists; found.converged: it is below found.tolerance
    // [/assignment]
    CHECK(found.converged);
    CHECK(std::count(expert.begin(), expert.end(), 3) == 10);
}

TEST_CASE("docs: choices made elsewhere") {
    const Eigen::MatrixXf x = Eigen::MatrixXf::Random(3, 4);
    // [choices]
    const std::vector<std::int64_t> chosen{0, 2, 1, -1, 2, 0};  // [T, k] = [3, 2]; -1: no row here
    const std::vector<float> weights{.75f, .25f, 1.0f, 0.0f, .5f, .5f};
    const auto ids = sy::view_of(std::span(chosen), 3, 2);
    const auto gates = sy::view_of(std::span(weights), 3, 2);
    auto plan = sy::plan_from_choices(sy::seq, ids, gates, 3, {.capacity = {.factor = 1.25}});  // E = 3
    auto rows = sy::dispatch(sy::seq, plan, x);  // 5 rows; then the experts, and combine
    // [/choices]
    CHECK(rows.rows() == 5);
    CHECK(plan.capacity() == 2);
    CHECK(plan.expert()(1, 1) == -1);
    CHECK(plan.offset(1) == 2);  // expert 0 has the first choice of token 0 and the second of token 2
    CHECK(rows(1, 0) == x(2, 0));
    const auto y = sy::combine(sy::seq, plan, rows);
    CHECK(sy::as_eigen(y).isApprox(x));
}

TEST_CASE("docs: row blocks, and counts for others") {
    std::vector<std::int32_t> chosen;
    for (const auto& [expert, count] : {std::pair{0, 2}, {1, 3}, {3, 6}, {4, 8}}) {
        chosen.insert(chosen.end(), static_cast<std::size_t>(count), expert);
    }
    const auto ids = sy::view_of(std::span(chosen), 19, 1);
    const sy::index_t width = 4;
    const Eigen::MatrixXf x = Eigen::MatrixXf::Ones(19, width);
    sy::matrix<float> rows;
    sy::workspace scratch;
    // [row_blocks]
    sy::plan<float> plan;
    plan.set_row_block(4);
    sy::plan_from_choices(sy::seq, ids, 5, {}, plan, scratch);  // loads 2, 3, 0, 6, 8: offsets 0 4 8 8 16 24
    std::vector<std::int32_t> experts(static_cast<std::size_t>(plan.row_bound() / 4));
    sy::write_block_experts(sy::seq, plan,
                            sy::view_of(std::span(experts), 1, plan.row_bound() / 4));  // 0 1 3 3 4 4 -1 -1
    rows.resize(plan.row_bound(), width);
    sy::dispatch(sy::seq, plan, x, rows);
    sy::zero_rest(sy::seq, plan, rows);  // padding, and what an earlier step left
    // [/row_blocks]
    CHECK(experts == std::vector<std::int32_t>{0, 1, 3, 3, 4, 4, -1, -1});
    CHECK(plan.rows() == 24);
    CHECK(sy::as_eigen(rows).sum() == 19 * width);
    // [counts]
    std::vector<std::int32_t> ends(5);  // torch's grouped_mm: inclusive offsets without the 0
    sy::write_counts(sy::seq, plan, sy::plan_counts::ends, sy::view_of(std::span(ends), 1, 5));
    // [/counts]
    CHECK(ends == std::vector<std::int32_t>{4, 8, 8, 16, 24});
}

TEST_CASE("docs: formats") {
    const sy::index_t T = 6, k = 2, E = 4;
    const Eigen::MatrixXf scores = Eigen::MatrixXf::Random(T, E);
    const sy::top_k_router router{.k = k};
    sy::plan<float> plan;
    sy::workspace scratch;
    // [formats]
    plan.set_row_block(16);  // vLLM's block; 128 for DeepGEMM
    sy::route_scores(sy::seq, router, scores, sy::inference{}, plan, scratch);
    sy::sort_rows_by_token(sy::seq, plan, scratch);  // where arrays are compared with a framework's
    const auto sizes = sy::aligned_block_sizes(T, k, E, 16);
    sy::matrix<std::int32_t> sorted_ids(1, sizes.ids), block_experts(1, sizes.blocks), padded_count(1, 1);
    sy::write_aligned_blocks(sy::seq, plan, sorted_ids, block_experts, padded_count);
    // [/formats]
    CHECK(sizes.ids == 72);
    CHECK(sizes.blocks == 5);
    CHECK(padded_count(0, 0) == plan.rows());
    CHECK(sorted_ids(0, 71) == T * k);
    // [dispatch_layout]
    sy::matrix<std::int64_t> ids(T, k);  // DeepEP's topk_idx, -1 where a choice was dropped
    sy::matrix<float> weights(T, k);
    sy::matrix<std::int32_t> per_rank(1, 2), per_expert(1, E);
    sy::matrix<bool> in_rank(T, 2);
    sy::write_ids(sy::seq, plan, ids);
    sy::write_weights(sy::seq, plan, weights);
    sy::write_rank_layout(sy::seq, plan, 2, per_rank, in_rank, scratch);  // 2 ranks of 2 experts each
    sy::write_counts(sy::seq, plan, sy::plan_counts::kept, per_expert);
    // [/dispatch_layout]
    CHECK(per_expert(0, 0) + per_expert(0, 1) + per_expert(0, 2) + per_expert(0, 3) == T * k);
    CHECK(per_rank(0, 0) + per_rank(0, 1) >= T);
}

TEST_CASE("docs: a plan from saved arrays, and choices alone") {
    const Eigen::MatrixXf scores = Eigen::MatrixXf::Random(6, 4);
    const Eigen::MatrixXf d_gates = Eigen::MatrixXf::Random(6, 2);
    Eigen::MatrixXf d_scores(6, 4);
    const sy::top_k_router router{.k = 2, .logit_jitter = 1e-2f, .balance_weight = 1e-2};
    sy::plan<float> plan;
    sy::workspace scratch;
    // [saved]
    // Forward. What is saved lies in the plan's arrays: copy it, or let a plan of your own have them in tensors.
    route_scores(sy::seq, router, scores, sy::training{.seed = 7, .stream = 1, .step = 3}, plan, scratch);
    const sy::saved_plan<float> saved = sy::saved_arrays_of(plan);
    // Backward, with the same router and step. Other settings are refused.
    const auto again = sy::plan_from_saved(router, sy::training{.seed = 7, .stream = 1, .step = 3}, saved);
    route_scores_backward(sy::seq, router, again, scores, d_gates, d_scores, scratch);
    // [/saved]
    CHECK(d_scores == sy::as_eigen(sy::route_scores_backward(sy::seq, router, plan, scores, d_gates)));

    // [choices_alone]
    std::vector<std::int32_t> ids(6 * 2);  // [T, k], dense
    std::vector<float> gates(6 * 2);
    sy::route_choices(sy::seq, sy::top_k_router{.k = 2, .renormalize = true}, scores, sy::inference{},
                      sy::view_of(std::span(ids), 6, 2), sy::view_of(std::span(gates), 6, 2), scratch);
    // [/choices_alone]
    CHECK(gates[0] + gates[1] == doctest::Approx(1));
    CHECK(ids[10] == plan.expert()(5, 0));
}

TEST_CASE("docs: statistics of loads, choices and gates") {
    const sy::top_k_router router{.k = 2, .renormalize = true, .capacity = {.factor = 1.0}};
    const Eigen::MatrixXf before = Eigen::MatrixXf::Random(12, 4);
    const Eigen::MatrixXf after = before + .2f * Eigen::MatrixXf::Random(12, 4);
    const auto earlier = route_scores(sy::seq, router, before, sy::training{});
    const auto plan = route_scores(sy::seq, router, after, sy::training{});
    // [metrics]
    const sy::plan_statistics load = sy::statistics(plan);  // before capacity
    const std::span kept(plan.view().load_after, 4);
    const sy::load_statistics rows = sy::statistics_of_loads(kept);  // any loads: summed over layers, ranks, steps
    const double median = sy::load_quantile(kept, .5);
    std::vector<sy::choice_statistics> choices(2);
    sy::statistics_of_choices(sy::par, plan, choices);         // choices[0] of all first choices
    const double sharpness = sy::gate_entropy(sy::par, plan);  // 0 .. ln k
    const double moved = sy::churn(sy::par, earlier, plan);    // 0 .. 1
    // [/metrics]
    CHECK(load.max_violation >= rows.max_violation);
    CHECK(median <= 6);
    CHECK(choices[0].dropped + choices[1].dropped == load.dropped);
    CHECK(sharpness > 0);
    CHECK(sharpness < .6932);
    CHECK(moved >= 0);
    CHECK(moved < 1);
}

TEST_CASE("docs: the bias that balances, as an object") {
    const Eigen::MatrixXf scores = Eigen::MatrixXf::Random(30, 4) + Eigen::RowVector4f(3, 2, 1, 0).replicate(30, 1);
    sy::workspace scratch;
    // [bias]
    sy::bias_state bias(sy::par, 4, {.rule = sy::bias_rule::centred_sign, .rate = 1e-3f});  // E = 4 zeros
    const sy::recipe_router<> router{
        .k = 2, .score = sy::score_function::sigmoid, .selection_bias = bias.numbers(), .normalize = sy::gate_sum::add};
    const auto plan = sy::route_scores(sy::par, router, scores, sy::training{});
    bias.update(sy::par, plan);  // the next step sees it

    sy::bias_state quantiles(sy::par, 4, {.rule = sy::bias_rule::quantile, .ema = .9});
    quantiles.update(sy::par, scores, 2, scratch);  // for a router with key_source::score

    const auto numbers = bias.view();  // [1, E], to be saved
    std::vector<float> saved(numbers.data, numbers.data + 4);
    // [/bias]
    CHECK(saved[0] < 0);
    CHECK(saved[3] > 0);
    CHECK(quantiles.view()(0, 0) < quantiles.view()(0, 3));
}
