// What the routers of models cost at the models' own sizes, beside plain top-k of the same sizes.
//
//   ./models_bench --benchmark_enable_random_interleaving=true --benchmark_repetitions=9
//       --benchmark_report_aggregates_only=true
//
// Rows are `<model>_<what>_seq/<tokens>/<experts>/<k>` on one thread, scores Gaussian. `route` is a step of inference
// from scores to a plan without drops; `backward` brings the gradient of the gates, without losses, back to the scores.
// `top_k` stands for a softmax over all experts, k of them chosen by score. Compare medians of one run only.
#include "eigen_baseline.hpp"
#include "model_shapes.hpp"

#include <switchyard/switchyard.hpp>

#include <benchmark/benchmark.h>

#include <algorithm>
#include <random>
#include <string>
#include <utility>
#include <vector>

namespace sy = switchyard;
using sy::index_t;

namespace {

constexpr index_t tokens = 65536;

template <class Router>
void route(benchmark::State& state, const Router& router, index_t experts) {
    const auto scores = bench::gaussian(tokens, experts);
    sy::plan<float> plan;
    sy::workspace scratch;
    for (auto _ : state) {
        sy::route_scores(sy::seq, router, scores, sy::inference{}, plan, scratch);
        benchmark::ClobberMemory();
    }
    state.SetItemsProcessed(state.iterations() * tokens);
}

template <class Router>
void backward(benchmark::State& state, const Router& router, index_t experts) {
    const auto scores = bench::gaussian(tokens, experts);
    sy::plan<float> plan;
    sy::workspace scratch;
    sy::route_scores(sy::seq, router, scores, sy::training{}, plan, scratch);
    const auto d_gates = bench::gaussian(tokens, plan.choices());
    sy::matrix<float> d_scores(tokens, experts);
    for (auto _ : state) {
        sy::route_scores_backward(sy::seq, router, plan, scores, d_gates, d_scores, scratch);
        benchmark::ClobberMemory();
    }
    state.SetItemsProcessed(state.iterations() * tokens);
}

template <class Router>
void add(const std::string& name, index_t experts, const Router& router) {
    const std::string size =
        "_seq/" + std::to_string(tokens) + "/" + std::to_string(experts) + "/" + std::to_string(router.k);
    const auto row = [&](const std::string& what, auto f) {
        benchmark::RegisterBenchmark((name + what + size).c_str(), [=](auto& state) { f(state, router, experts); })
            ->UseRealTime()
            ->Unit(benchmark::kMillisecond);
    };
    row("_route", [](auto& state, const auto& r, index_t e) { route(state, r, e); });
    row("_backward", [](auto& state, const auto& r, index_t e) { backward(state, r, e); });
}

}  // namespace

int main(int argc, char** argv) {
    std::vector<float> numbers(bench::most_model_experts);
    std::mt19937_64 random(3);
    std::normal_distribution<float> normal(0, 0.05f);
    for (float& number : numbers) number = normal(random);
    std::vector<std::pair<index_t, index_t>> plain;
    bench::for_each_model(numbers.data(), [&](const char* name, index_t experts, const sy::recipe_router<>& router) {
        add(name, experts, router);
        const std::pair size(experts, router.k);
        if (std::find(plain.begin(), plain.end(), size) == plain.end()) {
            add("top_k", experts, sy::top_k_router{.k = router.k, .balance_weight = 0});
            plain.push_back(size);
        }
    });
    benchmark::Initialize(&argc, argv);
    if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 2;
    benchmark::RunSpecifiedBenchmarks();
    benchmark::Shutdown();
    return 0;
}
