// What routing's kernels cost: launches, and bytes of device memory beside what no routing can do without, which is to
// read every score (and choice, and gradient) once and to write every result once. Counted by the executor; README and
// docs/gpu.md state the same budget.
#define SWITCHYARD_TEST_DEVICE "simt/device.hpp"
#include "../../bench/model_shapes.hpp"
#include "thrust/device.hpp"

#include <switchyard/backend/eigen.hpp>
#include <switchyard/router/kernel_routing.hpp>
#include <switchyard/router/recipe.hpp>

#include <doctest/doctest.h>

#include <algorithm>

using namespace switchyard_test;

namespace {

struct shape {
    index_t tokens, experts, choices;
};

struct cost {
    std::int64_t launches = 0;
    double bytes = 0;       ///< read and written
    double compulsory = 0;  ///< of them, what must be
    double share() const { return bytes / compulsory; }
};

cost cost_of(const simt::executor& executor, std::int64_t compulsory) {
    const auto counted = executor.counted();
    return {counted.launches, static_cast<double>(counted.loaded + counted.stored), static_cast<double>(compulsory)};
}

template <class T>
struct routed_once {
    simt::executor executor;
    simt::policy on{&executor};
    sy::matrix<T, simt::memory> scores;
    sy::basic_plan<sy::compute_t<T>, simt::memory> plan;
    sy::basic_workspace<simt::memory> scratch;
    cost forward;

    template <class Router>
    routed_once(const Router& router, const shape& of, bool is_training)
        : scores(sy::copy_to_device(on, stored<T>(gaussian_scores(of.tokens, of.experts, 1)))) {
        const auto mode = is_training ? sy::run_mode(sy::training{}) : sy::run_mode(sy::inference{});
        executor.reset();
        using sy::route_scores;
        route_scores(on, router, scores, mode, plan, scratch);
        const auto kept = sy::copy_to_host(on, plan).kept();
        const index_t size = sizeof(T);
        // Scores; expert, slot, gate; row -> choice; offsets and loads; statistics; totals.
        index_t bytes = of.tokens * of.experts * size + of.tokens * of.choices * 12 + kept * 8 + (of.experts + 1) * 8 +
                        of.experts * 16 + static_cast<index_t>(sizeof(sy::plan_totals));
        if (is_training) bytes += of.experts * 8 + of.tokens * 8;
        forward = cost_of(executor, bytes);
    }

    template <class Router>
    cost backward(const Router& router) {
        const index_t choices = plan.view().choices;
        const sy::matrix<float, simt::memory> d_gates =
            sy::copy_to_device(on, gaussian<float>(plan.view().tokens, choices, 3));
        sy::matrix<T, simt::memory> d_scores(scores.rows(), scores.columns());
        executor.reset();
        sy::route_scores_backward(on, router, plan, scores, d_gates, d_scores, scratch);
        // Scores and their gradients; statistics; expert, slot and d_gates of each choice; gradients of those dropped
        // need not be read.
        const index_t dropped = scores.rows() * choices - sy::copy_to_host(on, plan).kept();
        return cost_of(executor, scores.rows() * scores.columns() * 2 * static_cast<index_t>(sizeof(T)) +
                                     scores.rows() * 8 + scores.rows() * choices * 12 - dropped * 4);
    }
};

/// What docs/gpu.md says that is moved beside what must: choices once more, and the counters of all blocks of tokens.
double moved_besides(const shape& of, index_t score_bytes) {
    const index_t more = of.choices > 1 ? 4 * of.choices : 0;
    const index_t counters = of.experts * (16 * of.choices + more + 16);
    const index_t rows =
        sy::detail::kernel_block_rows(of.tokens, of.experts * score_bytes + 20 * of.choices + 8, counters, 64, 1024);
    return static_cast<double>(4 * of.tokens * of.choices + (of.tokens + rows - 1) / rows * counters);
}

void check_forward(const cost& forward, const shape& of, index_t score_bytes) {
    CHECK(forward.launches == 3);
    CHECK(forward.share() >= 1.0);
    CHECK(forward.bytes <= 1.03 * forward.compulsory + moved_besides(of, score_bytes));
}

template <class T, class Router>
void check_costs(const Router& router, const shape& of) {
    CAPTURE(of.tokens);
    CAPTURE(of.experts);
    CAPTURE(of.choices);
    routed_once<T> training(router, of, true);
    check_forward(training.forward, of, sizeof(T));
    const cost backward = training.backward(router);
    CHECK(backward.launches == 1);
    CHECK(backward.share() >= 1.0);
    CHECK(backward.share() <= 1.05);
    const routed_once<T> inference(router, of, false);
    check_forward(inference.forward, of, sizeof(T));
}

/// A part of one's own: keys that the library does not have, in a router of one's own.
struct own_router {
    index_t k = 1;
    bool* has_strayed = nullptr;  ///< set where keys are asked for of no token
};
template <class S>
struct own_keys {
    index_t tokens;
    bool* has_strayed;

    SWITCHYARD_HD static bool needs_row_sum() { return false; }
    template <int W>
    SWITCHYARD_HD sy::pack<S, W> operator()(index_t token, index_t, sy::pack<S, W> score, S, S) const {
        if (has_strayed != nullptr && (token < 0 || token >= tokens)) *has_strayed = true;
        return sy::pack<S, W>::all(S(0)) - score * score;  // the scores nearest to 0
    }
};
sy::softmax_settings softmax_settings_of(const own_router&, index_t) { return {}; }
std::uint64_t fingerprint_of(const own_router& router) { return sy::fingerprint('o', router.k); }
void require_settings(const own_router&, index_t, const sy::run_mode&) {}
template <class Policy, class Scores, class Plan, class Workspace>
void route_scores(const Policy& policy, const own_router& router, const Scores& scores, const sy::run_mode& mode,
                  Plan& plan, Workspace& scratch) {
    using S = typename Plan::scalar;
    const auto choose = [&](const auto& source, const sy::softmax_settings& settings, const auto& made) {
        sy::route_softmax(
            policy, source, mode, made, settings, scratch,
            sy::select_list<S, own_keys<S>>{
                made.expert, made.gate, made.experts, router.k, {settings.gates}, {made.tokens, router.has_strayed}});
    };
    sy::route_by_rows(policy, router, router.k, scores, mode, plan, scratch, choose);
}

sy::top_k_router list_of(index_t k) { return {.k = k, .renormalize = true, .z_weight = 1e-3}; }

}  // namespace

TEST_CASE("traffic: Switch and top-k, three launches, and choices and counters beside what must move") {
    const sy::switch_router single{.z_weight = 1e-3};
    for (const shape& of : {shape{4096, 64, 1}, shape{2048, 256, 1}, shape{4096, 8, 1}, shape{300, 1024, 1}}) {
        check_costs<float>(single, of);
    }
    for (const index_t k : {2, 8}) {
        check_costs<float>(list_of(k), {4096, 64, k});
        check_costs<float>(list_of(k), {2048, 256, k});
    }
    check_costs<Eigen::bfloat16>(single, {4096, 64, 1});
    check_costs<Eigen::bfloat16>(list_of(2), {2048, 256, 2});
    check_costs<float>(single, {300, 4096, 1});
}

// Fewer tokens than these are spread over a device whatever their counters take.
TEST_CASE("traffic: what routing moves besides is within 0.15 of what must move, for many tokens") {
    for (const index_t experts : {64, 256, 1024}) {
        for (const index_t choices : {1, 2, 8}) {
            CAPTURE(experts);
            CAPTURE(choices);
            const shape of{choices == 1 ? 16384 : 131072, experts, choices};
            const double compulsory = static_cast<double>(of.tokens * (4 * experts + 20 * choices + 8));
            CHECK(moved_besides(of, 4) <= 0.15 * compulsory);
        }
    }
}

TEST_CASE("traffic: keys of one's own run in the same kernels, and read no more than the chosen scores besides") {
    for (const shape& of : {shape{4096, 64, 2}, shape{2048, 256, 8}}) {
        CAPTURE(of.experts);
        const own_router router{.k = of.choices};
        routed_once<float> made(router, of, true);
        const auto chosen = static_cast<double>(4 * of.tokens * of.choices);
        CHECK(made.forward.launches == 3);
        CHECK(made.forward.bytes <= 1.03 * made.forward.compulsory + moved_besides(of, 4) + chosen);
        // The same decisions as on the CPU.
        sy::plan<float> want;
        sy::workspace scratch;
        const auto scores = stored<float>(gaussian_scores(of.tokens, of.experts, 1));
        route_scores(sy::seq, router, scores, sy::training{}, want, scratch);
        const auto got = sy::copy_to_host(made.on, made.plan);
        index_t different = 0;
        for (index_t i = 0; i < of.tokens * of.choices; ++i) {
            different += got.view().expert[i] == want.view().expert[i] ? 0 : 1;
        }
        CHECK(different == 0);
        const cost backward = made.backward(router);
        CHECK(backward.launches == 1);
        CHECK(backward.share() <= 1.05);
    }
}

TEST_CASE("traffic: gates of a sigmoid have a gradient at the chosen scores alone, and no other score is read") {
    for (const index_t experts : {64, 256}) {
        simt::executor executor;
        const simt::policy on{&executor};
        const index_t tokens = 1024;
        const sy::matrix<float, simt::memory> scores = sy::copy_to_device(on, gaussian<float>(tokens, experts, 1));
        sy::basic_plan<float, simt::memory> plan;
        sy::basic_workspace<simt::memory> scratch;
        const sy::recipe_router<simt::device_space> router{.k = 2, .score = sy::score_function::sigmoid};
        sy::route_scores(on, router, scores, sy::training{}, plan, scratch);
        const sy::matrix<float, simt::memory> d_gates = sy::copy_to_device(on, gaussian<float>(tokens, 2, 3));
        sy::matrix<float, simt::memory> d_scores(tokens, experts);
        executor.reset();
        sy::route_scores_backward(on, router, plan, scores, d_gates, d_scores, scratch);
        const cost backward = cost_of(executor, tokens * (4 * experts + 2 * 16));
        CHECK(backward.launches == 1);
        CHECK(backward.share() <= 1.05);
    }
}

TEST_CASE("traffic: strided scores cost no more bytes") {
    simt::executor executor;
    const simt::policy on{&executor};
    const index_t tokens = 512;
    const index_t experts = 32;
    const sy::matrix<float, simt::memory> dense = sy::copy_to_device(on, gaussian<float>(tokens, experts, 1));
    const sy::matrix<float, simt::memory> turned = sy::copy_to_device(on, gaussian<float>(experts, tokens, 1));
    sy::basic_plan<float, simt::memory> plan;
    sy::basic_workspace<simt::memory> scratch;
    const auto bytes_of = [&](const auto& scores) {
        executor.reset();
        sy::route_scores(on, sy::switch_router{.capacity = {}}, scores, sy::training{}, plan, scratch);
        return executor.counted().loaded + executor.counted().stored;
    };
    CHECK(bytes_of(sy::transposed(sy::as_view(turned))) == bytes_of(dense));
}

TEST_CASE("traffic: keys are asked for of the batch's tokens alone") {
    for (const shape& of :
         {shape{1, 8, 1}, shape{37, 40, 4}, shape{65, 64, 8}, shape{65, 300, 20}, shape{70, 1100, 2}}) {
        CAPTURE(of.tokens);
        bool has_strayed = false;
        const routed_once<float> made(own_router{.k = of.choices, .has_strayed = &has_strayed}, of, true);
        CHECK(!has_strayed);
        CHECK(made.plan.tokens() == of.tokens);
    }
}

TEST_CASE("traffic: a few tokens in one launch, where a block has the memory on every device") {
    for (const index_t k : {2, 8, 11, 16, 32}) {
        CAPTURE(k);
        const shape of{40, 256, k};
        const routed_once<float> made(list_of(k), of, true);
        CHECK(made.forward.launches == 1);
        CHECK(made.executor.peak_shared_bytes() <= 64 * 1024);
        const routed_once<double> wide(list_of(k), of, true);
        CHECK(wide.forward.launches == (k < 11 ? 1 : 3));
        CHECK(wide.executor.peak_shared_bytes() <= 64 * 1024);
        const routed_once<double> by_keys(own_router{.k = k}, of, true);
        CHECK(by_keys.executor.peak_shared_bytes() <= 64 * 1024);
    }
}

TEST_CASE("traffic: blocks need no more shared memory than every device gives") {
    for (const shape& of :
         {shape{3000, 64, 8}, shape{700, 1024, 12}, shape{600, 1024, 32}, shape{40, 4096, 8}, shape{300, 256, 64}}) {
        CAPTURE(of.experts);
        CAPTURE(of.choices);
        routed_once<float> made(list_of(of.choices), of, true);
        CHECK(made.executor.peak_shared_bytes() <= 48 * 1024);
        made.backward(list_of(of.choices));
        CHECK(made.executor.peak_shared_bytes() <= 48 * 1024);
        const routed_once<double> wide(sy::switch_router{}, {of.tokens, of.experts, 1}, true);
        CHECK(wide.executor.peak_shared_bytes() <= 48 * 1024);
    }
}

TEST_CASE("traffic: launches of the routers of models at their own sizes") {
    sy::buffer<float, simt::memory> numbers(bench::most_model_experts);
    std::fill_n(numbers.data(), bench::most_model_experts, 0.5f);
    int in_one = 0;
    bench::for_each_model<simt::memory::space>(
        numbers.data(), [&](const char* name, index_t experts, const auto& router) {
            CAPTURE(name);
            routed_once<float> made(router, {128, experts, router.k}, true);
            const int finish = gate_finish_of(router).is_needed() ? 1 : 0;
            const int rowless = router.rowless.count() > 0 ? 1 : 0;
            CHECK(made.forward.launches == 3 + finish + 2 * rowless);
            CHECK(made.backward(router).launches == 1 + finish + rowless);
            const bool is_one = finish + rowless == 0 && experts <= 256 && router.logit_bias.data == nullptr &&
                                router.logit_multiplier == 1 && router.softcap == 0;
            if (is_one) {
                CHECK(routed_once<float>(router, {32, experts, router.k}, true).forward.launches == 1);
                ++in_one;
            }
        });
    CHECK(in_one >= 3);
}
