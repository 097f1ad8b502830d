// Route, dispatch, combine and their backward inside a CUDA graph: captured the first time it runs, with a workspace
// that was given room beforehand and nothing else, and replayed. The graph is kernels and nothing but kernels: nothing
// allocated, nothing copied, nothing read back in between. The result is the same as without a graph.
#include "thrust/device.hpp"

#include <doctest/doctest.h>

#include <vector>

using namespace switchyard_test;

namespace {

constexpr index_t tokens = 1024;
constexpr index_t experts = 64;
constexpr index_t width = 96;

/// A step's numbers, on the host.
class gathered {
  public:
    template <class... Matrices>
    explicit gathered(const Matrices&... from) {
        (add(from), ...);
    }
    friend bool operator==(const gathered&, const gathered&) = default;

  private:
    template <class Matrix>
    void add(const Matrix& numbers) {
        const auto copy = sy::copy_to_host(device, numbers);
        all_.insert(all_.end(), copy.data(), copy.data() + copy.rows() * copy.columns());
    }
    std::vector<float> all_;
};

/// Everything a step from scores reads and writes. Its workspace has room for the step before the first one.
template <class Router>
struct step_from_scores {
    Router route_by;
    index_t choices;
    device_plan<float> plan{memory_of(device)};
    device_scratch scratch{memory_of(device)};
    sy::matrix<float, device_memory> scores, x, rows, y, d_rows, d_gates, d_x, d_scores;

    explicit step_from_scores(const Router& router_of_step, index_t choices_of_step = 1)
        : route_by(router_of_step),
          choices(choices_of_step),
          scores(sy::copy_to_device(device, gaussian<float>(tokens, experts, 1))),
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
        scratch.reserve(sy::workspace_size<sy::cuda>([&](const auto& policy, auto& room) {
            route_scores_backward(policy, router(), plan, scores, d_gates, d_scores, room);
        }));
    }

    const Router& router() const { return route_by; }
    static sy::run_mode mode() { return sy::training{.seed = 3, .stream = 0, .step = 4}; }

    void run() {
        route_scores(device, router(), scores, mode(), plan, scratch);
        dispatch(device, plan, x, rows);
        combine(device, plan, rows, y);
        combine_backward(device, plan, rows, y, d_rows, d_gates);
        dispatch_backward(device, plan, d_rows, d_x);
        route_scores_backward(device, router(), plan, scores, d_gates, d_scores, scratch);
    }
    gathered results() const { return gathered(y, d_x, d_scores, d_gates); }
};

/// The same from tokens: with the projection to scores, and its backward.
struct step_from_tokens {
    device_plan<float> plan{memory_of(device)};
    device_scratch scratch{memory_of(device)};
    sy::matrix<float, device_memory> x, w, rows, y, d_rows, d_gates, d_x, d_w;

    step_from_tokens()
        : x(sy::copy_to_device(device, gaussian<float>(tokens, width, 2))),
          w(sy::copy_to_device(device, gaussian<float>(width, experts, 3))),
          rows(tokens, width, memory_of(device)),
          y(tokens, width, memory_of(device)),
          d_rows(tokens, width, memory_of(device)),
          d_gates(tokens, 1, memory_of(device)),
          d_x(tokens, width, memory_of(device)),
          d_w(width, experts, memory_of(device)) {
        scratch.reserve(sy::workspace_size<sy::cuda>([&](const auto& policy, auto& room) {
            route(policy, router(), x, w, mode(), plan, room);
            route_backward(policy, router(), plan, x, w, d_gates, d_x, d_w, room);
        }));
    }

    static sy::switch_router router() { return {.input_jitter = 0.01f}; }
    static sy::run_mode mode() { return sy::training{.seed = 3, .stream = 0, .step = 4}; }

    void run() {
        route(device, router(), x, w, mode(), plan, scratch);
        dispatch(device, plan, x, rows);
        combine(device, plan, rows, y);
        combine_backward(device, plan, rows, y, d_rows, d_gates);
        route_backward(device, router(), plan, x, w, d_gates, d_x, d_w, scratch);
    }
    gathered results() const { return gathered(y, d_x, d_w, d_gates); }
};

/// Kernels of a graph; -1 where something else is in it, such as an allocation or a copy.
index_t kernels_alone(cudaGraph_t graph) {
    std::size_t count = 0;
    REQUIRE(cudaGraphGetNodes(graph, nullptr, &count) == cudaSuccess);
    std::vector<cudaGraphNode_t> nodes(count);
    REQUIRE(cudaGraphGetNodes(graph, nodes.data(), &count) == cudaSuccess);
    for (const cudaGraphNode_t node : nodes) {
        cudaGraphNodeType kind{};
        REQUIRE(cudaGraphNodeGetType(node, &kind) == cudaSuccess);
        if (kind != cudaGraphNodeTypeKernel) return -1;
    }
    return static_cast<index_t>(count);
}

/// `captured` has never run: what it needs beyond what was reserved would be in the graph, or make the workspace grow.
/// Returns the number of kernels. The kernels themselves were loaded by a step of its own, `plain`.
template <class Step>
index_t check_capture(Step& plain, Step& captured) {
    plain.run();
    const gathered want = plain.results();

    const index_t reserved = captured.scratch.size();
    cudaGraph_t graph = nullptr;
    REQUIRE(cudaStreamBeginCapture(device.stream, cudaStreamCaptureModeThreadLocal) == cudaSuccess);
    captured.run();
    REQUIRE(cudaStreamEndCapture(device.stream, &graph) == cudaSuccess);
    CHECK(captured.scratch.size() == reserved);
    const index_t kernels = kernels_alone(graph);
    CHECK(kernels > 0);
    cudaGraphExec_t runnable = nullptr;
    REQUIRE(cudaGraphInstantiate(&runnable, graph, 0) == cudaSuccess);
    REQUIRE(cudaMemsetAsync(captured.y.data(), 0xFF, sizeof(float) * tokens * width, device.stream) == cudaSuccess);
    for (int replay = 0; replay < 3; ++replay) {
        REQUIRE(cudaGraphLaunch(runnable, device.stream) == cudaSuccess);
    }
    sy::check(device, captured.plan);
    CHECK((captured.results() == want));
    cudaGraphExecDestroy(runnable);
    cudaGraphDestroy(graph);
    return kernels;
}

}  // namespace

TEST_CASE("a whole step can be captured with room reserved, and replayed: eight kernels") {
    const sy::top_k_router router{.k = 2, .capacity = {.factor = 1.0}, .z_weight = 1e-3};
    step_from_scores plain(router, 2), captured(router, 2);
    CHECK(check_capture(plain, captured) == 8);
    covers<operation("a step in a CUDA graph")>(device);
}

TEST_CASE("a step of BASE, trained without waiting, can be captured with room reserved") {
    const sy::base_router<sy::async_auction> router;
    step_from_scores plain(router), captured(router);
    check_capture(plain, captured);
}

TEST_CASE("a step from tokens can be captured with room reserved") {
    step_from_tokens plain, captured;
    check_capture(plain, captured);
}
