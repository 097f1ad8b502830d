// Route, dispatch, combine and their backward inside a CUDA graph: captured once, replayed, with nothing allocated and
// nothing read back in between; and the result is the same as without a graph.
#include "thrust/device.hpp"

#include <doctest/doctest.h>

#include <vector>

using namespace switchyard_test;

namespace {

constexpr index_t tokens = 1024;
constexpr index_t experts = 64;
constexpr index_t width = 96;
constexpr index_t choices = 2;

/// Everything a step reads and writes.
struct step {
    device_plan<float> plan{memory_of(device)};
    device_scratch scratch{memory_of(device)};
    sy::matrix<float, device_memory> scores, x, rows, y, d_rows, d_gates, d_x, d_scores;

    step()
        : scores(sy::copy_to_device(device, gaussian<float>(tokens, experts, 1))),
          x(sy::copy_to_device(device, gaussian<float>(tokens, width, 2))),
          rows(tokens * choices, width, memory_of(device)),
          y(tokens, width, memory_of(device)),
          d_rows(tokens * choices, width, memory_of(device)),
          d_gates(tokens, choices, memory_of(device)),
          d_x(tokens, width, memory_of(device)),
          d_scores(tokens, experts, memory_of(device)) {
        // [reserve]
        scratch.reserve(sy::workspace_size<sy::cuda>([&](const auto& policy, auto& room) {
            route_scores(policy, router(), scores, mode(), plan, room);  // launches nothing here
        }));
        // [/reserve]
    }

    static sy::top_k_router router() { return {.k = choices, .capacity = {.factor = 1.0}, .z_weight = 1e-3}; }
    static sy::run_mode mode() { return sy::training{.seed = 3, .step = 4}; }

    void run() {
        route_scores(device, router(), scores, mode(), plan, scratch);
        dispatch(device, plan, x, rows);
        combine(device, plan, rows, y);
        combine_backward(device, plan, rows, y, d_rows, d_gates);
        dispatch_backward(device, plan, d_rows, d_x);
        route_scores_backward(device, router(), plan, scores, d_gates, d_scores, scratch);
    }

    std::vector<float> results() const {
        std::vector<float> all;
        const auto add = [&all](const auto& numbers) {
            const auto copy = sy::copy_to_host(device, numbers);
            all.insert(all.end(), copy.data(), copy.data() + copy.rows() * copy.columns());
        };
        add(y);
        add(d_x);
        add(d_scores);
        add(d_gates);
        return all;
    }
};

}  // namespace

TEST_CASE("a whole step can be captured and replayed") {
    step plain;
    plain.run();
    const std::vector<float> want = plain.results();

    step captured;
    captured.run();  // grows what has no size query
    cudaGraph_t graph = nullptr;
    REQUIRE(cudaStreamBeginCapture(device.stream, cudaStreamCaptureModeThreadLocal) == cudaSuccess);
    captured.run();
    REQUIRE(cudaStreamEndCapture(device.stream, &graph) == cudaSuccess);
    cudaGraphExec_t runnable = nullptr;
    REQUIRE(cudaGraphInstantiate(&runnable, graph, 0) == cudaSuccess);
    REQUIRE(cudaMemsetAsync(captured.y.data(), 0xFF, sizeof(float) * tokens * width, device.stream) == cudaSuccess);
    for (int replay = 0; replay < 3; ++replay) {
        REQUIRE(cudaGraphLaunch(runnable, device.stream) == cudaSuccess);
    }
    sy::check(device, captured.plan);
    CHECK(captured.results() == want);
    covers<operation("a step in a CUDA graph")>(device);
    cudaGraphExecDestroy(runnable);
    cudaGraphDestroy(graph);
}
