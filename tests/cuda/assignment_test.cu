// Balanced assignment by kernels on a GPU: the exact solver finds the host's optimum, the auction that nobody waits for
// keeps within its certificate, also inside a CUDA graph, and BASE trains with both. The same at every call.
#include "assignment/instances.hpp"
#include "thrust/device.hpp"

#include <switchyard/assignment/kernel_auction.hpp>
#include <switchyard/assignment/kernel_hungarian.hpp>
#include <switchyard/router/kernel_base.hpp>
#include <switchyard/router/route.hpp>

#include <cmath>
#include <vector>

using assignment_tests::balanced;
using assignment_tests::draw_instance;
using assignment_tests::instance;
using assignment_tests::solution;
using namespace switchyard_test;

namespace {

/// A problem in the GPU's memory, and room for what is found.
struct posed_there {
    sy::matrix<float, device_memory> scores;
    device_mask mask;
    sy::buffer<std::int32_t, device_memory> expert;
    sy::buffer<double, device_memory> prices;
    sy::buffer<sy::assignment_result, device_memory> found;
    sy::device_assignment_problem<float, device_space> problem;

    explicit posed_there(const instance& from)
        : scores(sy::copy_to_device(device, stored<float>(from.scores))),
          mask(from.mask),
          expert(from.scores.rows, sy::memory_of(device)),
          prices(from.scores.columns, sy::memory_of(device)),
          found(1, sy::memory_of(device)),
          problem{.scores = sy::const_view(scores.view()), .bounds = from.bounds(), .mask = mask.get()} {}

    sy::assignment_arrays arrays() { return {expert.data(), prices.data()}; }

    /// Experts and prices; the result is the caller's to fill in.
    solution on_host() const {
        solution copy;
        copy.experts.resize(static_cast<std::size_t>(expert.size()));
        copy.prices.resize(static_cast<std::size_t>(prices.size()));
        device.copy_to_host(copy.experts.data(), expert.data(), copy.experts.size() * sizeof(std::int32_t));
        device.copy_to_host(copy.prices.data(), prices.data(), copy.prices.size() * sizeof(double));
        return copy;
    }
    sy::assignment_result certificate() const {
        sy::assignment_result copy;
        device.copy_to_host(&copy, found.data(), sizeof copy);
        return copy;
    }
};

solution solve_there(const instance& problem, device_scratch& scratch) {
    posed_there there(problem);
    const auto result = solve(device, sy::hungarian{}, there.problem, there.arrays(), scratch);
    solution found = there.on_host();
    found.result = result;
    return found;
}

/// Within the quotas, and a gap that bounds the distance from the optimum.
void check_certified(const instance& problem, const solution& found) {
    const solution best = assignment_tests::solve_as<float>(sy::hungarian{}, problem);
    CHECK(is_valid(problem, found));
    CHECK(found.result.gap >= 0);
    CHECK(found.result.primal <= best.result.primal + best.result.tolerance);
    CHECK(found.result.primal + found.result.gap >= best.result.primal - best.result.tolerance);
}

}  // namespace

TEST_CASE("exact assignment on a GPU: the worked example") {
    device_scratch scratch(sy::memory_of(device));
    const instance problem{{{1, 0}, {.9, .3}, {.8, .6}, {.7, .05}}, {2, 2}, {2, 2}, {}};
    const solution found = solve_there(problem, scratch);
    CHECK(found.experts == std::vector<std::int32_t>{0, 1, 1, 0});
    CHECK(found.result.primal == doctest::Approx(2.6));
    CHECK(found.result.converged);
}

TEST_CASE("exact assignment on a GPU: the host's optimum on scores of every kind") {
    device_scratch scratch(sy::memory_of(device));
    std::mt19937_64 random(61);
    for (int i = 0; i < 4 * static_cast<int>(assignment_tests::score_kind::count); ++i) {
        CAPTURE(i);
        const auto drawn = static_cast<assignment_tests::score_kind>(i / 4);
        const index_t rows = i % 2 == 0 ? 300 : 6000, experts = i % 4 < 2 ? 7 : 64;
        const instance problem = draw_instance(drawn, rows, experts, 0, i % 3 == 0, random);
        const solution host = assignment_tests::solve_as<float>(sy::hungarian{}, problem);
        const solution found = solve_there(problem, scratch);
        CHECK(is_valid(problem, found));
        CHECK(found.result.converged);
        CHECK(std::abs(found.result.primal - host.result.primal) <= found.result.tolerance + host.result.tolerance);
        const double slack = 1e-9 * (1 + std::abs(found.result.primal));
        CHECK(is_complementary(problem, found, slack));
        const solution again = solve_there(problem, scratch);
        CHECK(again.experts == found.experts);
        CHECK(again.prices == found.prices);
    }
    covers<operation("exact assignment")>(device);
}

TEST_CASE("auction without waiting on a GPU: certified on scores of every kind, and as it was inside a CUDA graph") {
    device_scratch scratch(sy::memory_of(device));
    std::mt19937_64 random(62);
    for (int i = 0; i < static_cast<int>(assignment_tests::score_kind::count); ++i) {
        CAPTURE(i);
        const auto drawn = static_cast<assignment_tests::score_kind>(i);
        const instance problem = balanced(draw_instance(drawn, 3000, 16, 0, i % 2 == 0, random));
        posed_there there(problem);
        const sy::async_auction solver{.found = there.found.data()};
        solve(device, solver, there.problem, there.arrays(), scratch);
        solution found = there.on_host();
        found.result = there.certificate();
        check_certified(problem, found);

        cudaGraph_t graph = nullptr;
        REQUIRE(cudaStreamBeginCapture(device.stream, cudaStreamCaptureModeThreadLocal) == cudaSuccess);
        solve(device, solver, there.problem, there.arrays(), scratch);
        REQUIRE(cudaStreamEndCapture(device.stream, &graph) == cudaSuccess);
        cudaGraphExec_t runnable = nullptr;
        REQUIRE(cudaGraphInstantiate(&runnable, graph, 0) == cudaSuccess);
        REQUIRE(cudaMemsetAsync(there.expert.data(), 0xFF, 3000 * sizeof(std::int32_t), device.stream) == cudaSuccess);
        REQUIRE(cudaGraphLaunch(runnable, device.stream) == cudaSuccess);
        const solution replayed = there.on_host();
        CHECK(replayed.experts == found.experts);
        CHECK(replayed.prices == found.prices);
        cudaGraphExecDestroy(runnable);
        cudaGraphDestroy(graph);
    }
    covers<operation("auction without waiting")>(device);
}

TEST_CASE("BASE on a GPU: trained exactly, and without waiting") {
    device_scratch scratch(sy::memory_of(device));
    std::mt19937_64 random(63);
    const instance problem = balanced(draw_instance(assignment_tests::score_kind::skewed, 3000, 16, 0, true, random));
    posed_there there(problem);
    const auto best = assignment_tests::solve_as<float>(sy::hungarian{}, problem).result;
    const auto score_of = [&](const device_plan<float>& plan) {
        sy::check(device, plan);
        const auto copy = sy::copy_to_host(device, plan);
        CHECK(copy.kept() == problem.tokens());
        double score = 0;
        for (index_t t = 0; t < 3000; ++t) {
            const auto e = copy.view().expert[t];
            CHECK((e >= 0) == sy::reference::is_token(problem.mask, t));
            score += e < 0 ? 0.0 : problem.scores(t, e);
        }
        return score;
    };
    device_plan<float> plan(sy::memory_of(device));
    const sy::training mode{.mask = there.mask.get()};
    sy::route_scores(device, sy::base_router{}, there.scores, mode, plan, scratch);
    CHECK(score_of(plan) == doctest::Approx(best.primal).epsilon(1e-9));
    const sy::base_router<sy::async_auction> without_waiting{.solver = {.found = there.found.data()}};
    sy::route_scores(device, without_waiting, there.scores, mode, plan, scratch);
    const double score = score_of(plan);
    CHECK(score <= best.primal + best.tolerance);
    CHECK(score >= best.primal - there.certificate().gap - best.tolerance);
    covers<operation("BASE, training by the exact solver"), operation("BASE, training without waiting")>(device);
}
