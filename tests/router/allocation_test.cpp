// After the first step of a shape a training loop allocates nothing: malloc and its kin, aligned_alloc, posix_memalign
// and operator new are counted over the steps that follow.
#include "support/backends.hpp"
#include "support/count_allocations.hpp"
#include "support/routed.hpp"

#include <switchyard/dispatch/combine.hpp>
#include <switchyard/dispatch/dispatch.hpp>
#include <switchyard/plan/statistics.hpp>
#include <switchyard/router/base.hpp>
#include <switchyard/router/bias_state.hpp>
#include <switchyard/router/bias_update.hpp>
#include <switchyard/router/recipe.hpp>
#include <switchyard/router/route.hpp>
#include <switchyard/router/switch.hpp>
#include <switchyard/router/top_k.hpp>

#include <doctest/doctest.h>

#include <cstdint>
#include <span>
#include <vector>

using namespace switchyard_test;

#if defined(COUNTED_BY_SANITIZER) || defined(__GLIBC__)

namespace {

template <class F>
long allocations_of(const F& f) {
    const long before = allocations;
    f();
    return allocations - before;
}

/// Buffers of a training loop over a layer.
struct layer_buffers {
    sy::plan<float> plan;
    sy::workspace scratch;
    sy::matrix<float> x, w, scores, d_y, rows, d_rows, y, d_x, d_w, d_gates, d_scores;

    layer_buffers(index_t tokens, index_t width, index_t experts, index_t k)
        : x(stored<float>(gaussian_scores(tokens, width, 1))),
          w(stored<float>(gaussian_scores(width, experts, 2))),
          scores(stored<float>(gaussian_scores(tokens, experts, 3))),
          d_y(stored<float>(gaussian_scores(tokens, width, 4))),
          rows(tokens * k, width),
          d_rows(tokens * k, width),
          y(tokens, width),
          d_x(tokens, width),
          d_w(width, experts),
          d_gates(tokens, k),
          d_scores(tokens, experts) {}

    template <class Policy, class Router>
    void step_from_scores(const Policy& policy, const Router& router, std::uint32_t step) {
        sy::route_scores(policy, router, scores, sy::training{.stream = 0, .step = step}, plan, scratch);
        move_rows(policy);
        sy::route_scores_backward(policy, router, plan, scores, d_gates, d_scores, scratch);
    }
    template <class Policy, class Router>
    void step_from_tokens(const Policy& policy, const Router& router, std::uint32_t step) {
        sy::route(policy, router, x, w, sy::training{.stream = 0, .step = step}, plan, scratch);
        move_rows(policy);
        sy::route_backward(policy, router, plan, x, w, d_gates, d_x, d_w, scratch);
    }
    template <class Policy>
    void move_rows(const Policy& policy) {
        sy::dispatch(policy, plan, x, rows);
        sy::combine(policy, plan, rows, y);
        sy::combine_backward(policy, plan, rows, d_y, d_rows, d_gates);
        sy::dispatch_backward(policy, plan, d_rows, d_x);
    }
};

/// Allocations of steps 2 to 6, from scores and from tokens.
template <class Router>
void check_steps(Router router, index_t k, index_t tokens, index_t experts) {
    for_each_policy([&](const auto& policy) {
        layer_buffers layer(tokens, 40, experts, k);
        layer.step_from_scores(policy, router, 0);
        CHECK(allocations_of([&] {
                  for (std::uint32_t step = 1; step < 6; ++step) layer.step_from_scores(policy, router, step);
              }) == 0);
    });
    if constexpr (requires { router.input_jitter; }) router.input_jitter = 0.01f;
    for_each_policy([&](const auto& policy) {
        layer_buffers layer(tokens, 40, experts, k);
        layer.step_from_tokens(policy, router, 0);
        CHECK(allocations_of([&] {
                  for (std::uint32_t step = 1; step < 6; ++step) layer.step_from_tokens(policy, router, step);
              }) == 0);
    });
}

}  // namespace

TEST_CASE("allocation: the counter sees every way to allocate") {
    volatile std::size_t size = 100;
    void* keep[7] = {};
    CHECK(allocations_of([&] { keep[0] = std::malloc(size); }) >= 1);
#if !defined(COUNTED_BY_THREAD_SANITIZER)  // whose hook is not told of these two
    CHECK(allocations_of([&] { keep[1] = std::aligned_alloc(64, 2 * 64); }) >= 1);
    CHECK(allocations_of([&] { keep[2] = posix_memalign(&keep[2], 64, size) == 0 ? keep[2] : nullptr; }) >= 1);
#endif
    CHECK(allocations_of([&] { keep[3] = std::calloc(size, 2); }) >= 1);
    for (void* pointer : keep) std::free(pointer);
    CHECK(allocations_of([&] { ::operator delete(::operator new(size)); }) >= 1);
    CHECK(allocations_of(
              [&] { ::operator delete (::operator new (size, std::align_val_t{64}), std::align_val_t{64}); }) >= 1);
    CHECK(allocations_of([&] { sy::matrix<float> m(3, static_cast<index_t>(size)); }) >= 1);
    CHECK(allocations_of([] {}) == 0);
}

TEST_CASE("allocation: a training loop with BASE allocates in its first step alone, prices kept or not") {
    check_steps(sy::base_router<>{}, 1, 1500, 24);
    sy::expert_prices prices;
    check_steps(sy::base_router<>{.prices = &prices}, 1, 1500, 24);
}

TEST_CASE("allocation: a training loop with Switch allocates in its first step alone") {
    check_steps(sy::switch_router{.z_weight = 0.01}, 1, 1500, 60);
    check_steps(sy::switch_router{.order = sy::drop_order::gate, .sample_temperature = 1, .logit_jitter = 0.1f}, 1, 700,
                16);
    check_steps(sy::switch_router{.no_token_left_behind = 3}, 1, 700, 16);
}

TEST_CASE("allocation: a training loop with top-k allocates in its first step alone") {
    check_steps(sy::top_k_router{.k = 8, .renormalize = true, .capacity = {.factor = 1.0}, .z_weight = 0.01}, 8, 700,
                128);
    check_steps(sy::top_k_router{.k = 12}, 12, 300, 20);
}

TEST_CASE("allocation: a training loop with a recipe allocates in its first step alone, its bias moved or not") {
    std::vector<float> bias(128);
    const sy::recipe_router<> recipe{.k = 8,
                                     .score = sy::score_function::sigmoid,
                                     .selection_bias = {bias.data(), 128},
                                     .groups = {.count = 8, .kept = 4},
                                     .normalize = sy::gate_sum::add,
                                     .epsilon = 1e-20,
                                     .capacity = {.factor = 1.0}};
    check_steps(recipe, 8, 700, 128);
    layer_buffers layer(700, 40, 128, 8);
    layer.step_from_scores(sy::seq, recipe, 0);
    CHECK(allocations_of([&] {
              for (std::uint32_t step = 1; step < 6; ++step) {
                  sy::update_bias(sy::seq, layer.plan, 0.01f, bias.data());
                  layer.step_from_scores(sy::seq, recipe, step);
              }
          }) == 0);
}

TEST_CASE("allocation: a training loop with experts without rows allocates in its first step alone") {
    sy::recipe_router<> recipe{.k = 8,
                               .score = sy::score_function::sigmoid,
                               .normalize = sy::gate_sum::add,
                               .capacity = {.factor = 1.0},
                               .rowless = {.zero = 32},
                               .balance_weight = 0.01};
    check_steps(recipe, 8, 700, 128);
    recipe.k = 6;
    recipe.rowless = {.shared = 2};
    check_steps(recipe, 8, 700, 128);
}

TEST_CASE("allocation: statistics and updates of a bias allocate nothing, but for the scratch of the first quantiles") {
    layer_buffers layer(640, 40, 128, 8);
    layer.step_from_scores(sy::seq, sy::top_k_router{.k = 8}, 0);
    sy::bias_state signs(sy::seq, 128);
    sy::bias_state bias(sy::seq, 128, {.rule = sy::bias_rule::quantile});
    const auto scores = stored<float>(gaussian_scores(640, 128, 1));
    std::vector<sy::choice_statistics> choices(8);
    std::vector<double> quantiles(3);
    const std::vector<double> at{.25, .5, .75};
    const std::span<const std::int64_t> loads(layer.plan.view().load_after, 128);
    const auto look = [&] {
        static_cast<void>(sy::statistics(layer.plan));
        sy::statistics_of_choices(sy::par, layer.plan, choices);
        static_cast<void>(sy::gate_entropy(sy::par, layer.plan));
        static_cast<void>(sy::churn(sy::par, layer.plan, layer.plan));
        signs.update(sy::seq, layer.plan);
        bias.update(sy::par, scores, 8, layer.scratch);
        sy::load_quantiles(loads, at, quantiles, layer.scratch);
    };
    look();
    CHECK(allocations_of(look) == 0);
    CHECK(quantiles[1] > 0);
}

namespace {

/// A pool without threads that counts who would have woken them.
struct counting_pool {
    int calls = 0;

    template <class F>
    void parallel_for(index_t blocks, F&& f) {
        calls += 1;
        for (index_t b = 0; b < blocks; ++b) f(b);
    }
};

}  // namespace

TEST_CASE("allocation: decoding wakes no thread") {
    layer_buffers layer(4096, 40, 256, 8);
    counting_pool pool;
    const auto route = [&](index_t tokens) {
        const sy::matrix_view<const float> some(layer.scores.data(), tokens, 256);
        sy::route_scores(sy::par_on(pool), sy::top_k_router{.k = 8}, some, sy::inference{}, layer.plan, layer.scratch);
        return pool.calls;
    };
    CHECK(route(1) == 0);
    CHECK(route(32) == 0);
    CHECK(route(4096) > 0);
}

TEST_CASE("allocation: decoding sizes, and smaller shapes after larger ones") {
    layer_buffers layer(64, 40, 128, 8);
    const sy::top_k_router router{.k = 8};
    const auto decode = [&](index_t tokens) {
        const sy::matrix_view<const float> some(layer.scores.data(), tokens, 128);
        sy::route_scores(sy::par_on(sy::openmp{.threads = 2}), router, some, sy::inference{}, layer.plan,
                         layer.scratch);
    };
    decode(64);
    CHECK(allocations_of([&] {
              for (const index_t tokens : {1, 32, 3, 64, 1}) decode(tokens);
          }) == 0);
}

TEST_CASE("allocation: storage that is converted on the way allocates nothing either") {
    const auto scores = stored<Eigen::bfloat16>(gaussian_scores(700, 30, 1));
    const auto d_gates = stored<Eigen::half>(gaussian_scores(700, 2, 2));
    sy::matrix<Eigen::bfloat16> d_scores(700, 30);
    sy::plan<float> plan;
    sy::workspace scratch;
    const auto step = [&] {
        sy::route_scores(sy::seq, sy::top_k_router{}, scores, sy::training{}, plan, scratch);
        sy::route_scores_backward(sy::seq, sy::top_k_router{}, plan, scores, d_gates, d_scores, scratch);
    };
    step();
    CHECK(allocations_of([&] {
              for (int i = 0; i < 3; ++i) step();
          }) == 0);
}

#endif
