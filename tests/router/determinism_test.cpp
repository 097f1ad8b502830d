// The same bits for every thread count, policy and alignment of the buffers.
#include "support/backends.hpp"
#include "support/routed.hpp"

#include <switchyard/assignment/auction.hpp>
#include <switchyard/dispatch/combine.hpp>
#include <switchyard/dispatch/dispatch.hpp>
#include <switchyard/router/base.hpp>
#include <switchyard/router/recipe.hpp>
#include <switchyard/router/route.hpp>
#include <switchyard/router/switch.hpp>
#include <switchyard/router/top_k.hpp>

#include <doctest/doctest.h>

#include <cstring>
#include <vector>

using namespace switchyard_test;

namespace {

/// Bytes in the order they were added.
struct bytes {
    std::string all;

    template <class T>
    void add(const T* numbers, index_t count) {
        all.append(reinterpret_cast<const char*>(numbers), static_cast<std::size_t>(count) * sizeof(T));
    }
    template <class S>
    void add(const sy::plan_view<S>& plan) {
        const index_t positions = plan.tokens * plan.choices;
        add(plan.expert, positions);
        add(plan.slot, positions);
        add(plan.gate, positions);
        add(plan.offsets, plan.experts + 1);
        add(plan.order, plan.totals->kept);
        add(plan.load_before, plan.experts);
        add(plan.load_after, plan.experts);
        add(&plan.totals->load_balancing_loss, 1);
        add(&plan.totals->z_loss, 1);
    }
};

/// Numbers that begin `offset` elements after a multiple of 64 bytes.
template <class S>
struct shifted {
    sy::buffer<S> memory;
    sy::matrix_view<S> view;

    shifted(index_t rows, index_t columns, index_t offset)
        : memory(rows * columns + offset), view(memory.data() + offset, rows, columns) {}
    shifted(const ref::matrix& numbers, index_t offset) : shifted(numbers.rows, numbers.columns, offset) {
        for (index_t i = 0; i < numbers.values.length(); ++i) view.data[i] = static_cast<S>(numbers.values[i]);
    }
};

/// A training step: everything it leaves behind, as bytes. All buffers begin `offset` elements beside a cache line.
template <class S, class Policy, class Router>
std::string step(const Policy& policy, const Router& router, index_t k, const ref::mask_list& mask, index_t offset,
                 index_t tokens, index_t experts, index_t width) {
    const shifted<S> scores(gaussian_scores(tokens, experts, 1), offset);
    const shifted<S> x(gaussian_scores(tokens, width, 2), offset);
    const shifted<S> d_y(gaussian_scores(tokens, width, 3), offset);
    const shifted<S> d_gates(tokens, k, offset);
    const shifted<S> d_scores(tokens, experts, offset);
    const shifted<S> rows(tokens * k, width, offset);
    const shifted<S> d_rows(tokens * k, width, offset);
    const shifted<S> y(tokens, width, offset);
    const shifted<S> d_x(tokens, width, offset);
    sy::plan<S> plan;
    sy::workspace scratch;
    route_scores(policy, router, scores.view, training_with(mask), plan, scratch);
    sy::dispatch(policy, plan, x.view, rows.view);
    sy::combine(policy, plan, rows.view, y.view);
    sy::combine_backward(policy, plan, rows.view, d_y.view, d_rows.view, d_gates.view);
    sy::dispatch_backward(policy, plan, d_rows.view, d_x.view);
    route_scores_backward(policy, router, plan, scores.view, d_gates.view, d_scores.view, scratch);
    bytes result;
    result.add(plan.view());
    result.add(rows.view.data, plan.kept() * width);
    result.add(y.view.data, tokens * width);
    result.add(d_rows.view.data, plan.kept() * width);
    result.add(d_gates.view.data, tokens * k);
    result.add(d_x.view.data, tokens * width);
    result.add(d_scores.view.data, tokens * experts);
    return result.all;
}

template <class S, class Router>
void check_policies(const Router& router, index_t k, const ref::mask_list& mask, index_t tokens, index_t experts,
                    index_t width) {
    const auto want = step<S>(sy::seq, router, k, mask, 0, tokens, experts, width);
    for_each_policy(
        [&](const auto& policy) { CHECK((step<S>(policy, router, k, mask, 0, tokens, experts, width) == want)); });
}

template <class S, class Router>
void check_alignments(const Router& router, index_t k, index_t tokens, index_t experts, index_t width) {
    const auto want = step<S>(sy::seq, router, k, {}, 0, tokens, experts, width);
    for (index_t offset = 1; offset <= 15; ++offset) {
        if (step<S>(sy::seq, router, k, {}, offset, tokens, experts, width) != want) FAIL_CHECK("offset " << offset);
    }
}

const sy::switch_router switch_with_everything{
    .order = sy::drop_order::gate, .sample_temperature = 1, .logit_jitter = 0.1f, .z_weight = 0.01};
const sy::top_k_router top_k_with_everything{.k = 3,
                                             .renormalize = true,
                                             .capacity = {.factor = 0.8},
                                             .logit_jitter = 0.1f,
                                             .balance = sy::balance_count::all,
                                             .z_weight = 0.01};

/// Every part of a recipe, with biases of 60 experts.
sy::recipe_router<> recipe_with_everything(sy::score_function score) {
    static const std::vector<float> bias = [] {
        std::vector<float> made;
        for (int e = 0; e < 60; ++e) made.push_back(static_cast<float>(e * 37 % 60) / 60 - 0.5f);
        return made;
    }();
    return {.k = 6,
            .logit_bias = {bias.data(), 60},
            .score = score,
            .selection_bias = {bias.data(), 60},
            .groups = {.count = 6, .kept = 3},
            .normalize = sy::gate_sum::add,
            .epsilon = 1e-20,
            .scale = 2.5,
            .capacity = {.factor = 0.8},
            .logit_jitter = 0.1f,
            .balance_weight = 0.01,
            .z_weight = 0.01};
}

}  // namespace

TEST_CASE("determinism: thread counts 1, 2, 3, 8 and a pool give the bits of the calling thread") {
    check_policies<float>(switch_with_everything, 1, draw_mask(3001, 5), 3001, 60, 33);
    check_policies<double>(switch_with_everything, 1, {}, 1100, 8, 16);
    check_policies<float>(top_k_with_everything, 3, draw_mask(2000, 6), 2000, 100, 40);
    check_policies<double>(top_k_with_everything, 3, {}, 1100, 7, 5);
    check_policies<float>(sy::switch_router{.capacity = {.factor = 0.9}, .no_token_left_behind = 3}, 1, {}, 1100, 9, 5);
    check_policies<float>(sy::base_router<>{}, 1, draw_mask(3001, 7), 3001, 24, 33);
    check_policies<double>(sy::base_router<>{}, 1, {}, 1100, 7, 5);
    check_policies<float>(sy::base_router<sy::auction>{}, 1, {}, 1100, 7, 5);
    check_policies<float>(recipe_with_everything(sy::score_function::sigmoid), 6, draw_mask(2000, 8), 2000, 60, 9);
    check_policies<float>(recipe_with_everything(sy::score_function::softmax), 6, {}, 2000, 60, 9);
    // Large enough to be written past the cache.
    check_policies<float>(sy::top_k_router{}, 2, {}, 4200, 16, 520);
    covers<operation("Switch, forward"), operation("Switch, backward"), operation("top-k, forward"),
           operation("top-k, backward"), operation("BASE, training by the exact solver"),
           operation("BASE, training by the auction"), operation("BASE, backward"), operation("recipe, forward"),
           operation("recipe, backward")>(sy::par);
    covers<operation("logit jitter"), operation("sampling"), operation("load-balancing loss and its gradient"),
           operation("z-loss and its gradient"), operation("capacity and slots, drops by position"),
           operation("drops by gate"), operation("no token left behind")>(sy::par);
    covers<operation("dispatch"), operation("dispatch, backward"), operation("combine"),
           operation("combine, backward")>(sy::par);
}

TEST_CASE("determinism: buffers 1 to 15 elements beside a cache line") {
    check_alignments<float>(switch_with_everything, 1, 700, 60, 33);
    check_alignments<float>(sy::switch_router{}, 1, 700, 64, 32);
    check_alignments<double>(switch_with_everything, 1, 300, 17, 9);
    check_alignments<float>(top_k_with_everything, 3, 700, 100, 40);
    check_alignments<double>(top_k_with_everything, 3, 300, 33, 16);
    check_alignments<float>(sy::base_router<>{}, 1, 700, 19, 33);
    check_alignments<float>(recipe_with_everything(sy::score_function::sqrt_softplus), 6, 300, 60, 9);
    check_alignments<double>(sy::base_router<>{}, 1, 300, 9, 16);
}

TEST_CASE("determinism: large buffers, written past the cache or not, hold the same bits") {
    const auto want = step<float>(sy::seq, sy::top_k_router{}, 2, {}, 0, 4200, 16, 520);
    CHECK((step<float>(sy::seq, sy::top_k_router{}, 2, {}, 1, 4200, 16, 520) == want));
    CHECK((step<float>(sy::seq, sy::top_k_router{}, 2, {}, 8, 4200, 16, 520) == want));
}

TEST_CASE("determinism: a workspace and a plan that have seen other shapes change nothing") {
    sy::plan<float> used;
    sy::workspace scratch;
    for (const index_t experts : {100, 3, 64}) {
        const auto scores = stored<float>(gaussian_scores(900, experts, 4));
        sy::plan<float> fresh;
        sy::workspace empty;
        sy::route_scores(sy::seq, sy::switch_router{}, scores, training_with(), used, scratch);
        sy::route_scores(sy::seq, sy::switch_router{}, scores, training_with(), fresh, empty);
        bytes a;
        bytes b;
        a.add(used.view());
        b.add(fresh.view());
        CHECK((a.all == b.all));
    }
}

TEST_CASE("determinism: from tokens, every policy and alignment") {
    const auto tokens = [](const auto& policy, index_t offset) {
        const shifted<float> x(gaussian_scores(1300, 37, 1), offset);
        const shifted<float> w(gaussian_scores(37, 20, 2), offset);
        const shifted<float> d_gates(gaussian_scores(1300, 1, 3), offset);
        const shifted<float> d_x(1300, 37, offset);
        const shifted<float> d_w(37, 20, offset);
        const sy::switch_router router{.input_jitter = 0.1f, .input_dropout = 0.1f};
        sy::plan<float> plan;
        sy::workspace scratch;
        sy::route(policy, router, x.view, w.view, training_with(), plan, scratch);
        sy::route_backward(policy, router, plan, x.view, w.view, d_gates.view, d_x.view, d_w.view, scratch);
        bytes result;
        result.add(plan.view());
        result.add(d_x.view.data, 1300 * 37);
        result.add(d_w.view.data, 37 * 20);
        return result.all;
    };
    const auto want = tokens(sy::seq, 0);
    for_each_policy([&](const auto& policy) { CHECK((tokens(policy, 0) == want)); });
    covers<operation("input jitter and dropout")>(sy::par);
    for (index_t offset = 1; offset <= 15; ++offset) {
        if (tokens(sy::seq, offset) != want) FAIL_CHECK("offset " << offset);
    }
}
