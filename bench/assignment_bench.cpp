// What an exact balanced assignment costs, beside softmax with top-1 and beside a network simplex, in one binary.
//
//   ./assignment_bench --heavy --recorded scores.npy --benchmark_enable_random_interleaving=true
//       --benchmark_repetitions=9 --benchmark_report_aggregates_only=true --benchmark_filter='/65536/64/'
//
// Rows are `<solver>_<policy>/<tokens>/<experts>/<scores>`; kinds of scores: assignment_scores.hpp. Compare medians of
// one run only. Scores are float32; every expert takes T / E tokens, or one more where E does not divide T. Outputs and
// workspace are prepared: a solver has run once on the scores before it is timed. `drifted` starts from the prices of
// the same solver on the scores before their drift; all others start cold. `par` runs on OpenMP with the machine's
// threads.
//
//   --heavy            also the rows that take seconds each or GiB: LEMON beyond 4096 tokens,
//                      1048576 x 64 and 65536 x 2048
//   --recorded FILE    also rows of the scores in a .npy file, of a trained router for instance (float64 is rounded)
//
// Counters, of the last run: gap (the certificate: how far the optimum can be above), gap_per_token_std (gap divided by
// T and the standard deviation of the scores), solver_iterations, passes, steps (assignment.hpp), workspace_MiB.
//
// Baselines: lemon_network_simplex (lemon_baseline.hpp; building is not timed), eigen_softmax_argmax (as in
// routing_bench).
#include "assignment_scores.hpp"
#include "eigen_baseline.hpp"
#include "lemon_baseline.hpp"

#include "npy.hpp"

#include <switchyard/assignment/auction.hpp>
#include <switchyard/switchyard.hpp>

#include <benchmark/benchmark.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <limits>
#include <set>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

namespace sy = switchyard;
using bench::row_major;
using bench::score_key;
using sy::index_t;

namespace {

bench::score_store store;

void count(benchmark::State& state, const score_key& key) {
    state.SetItemsProcessed(state.iterations() * key.tokens);
    state.SetBytesProcessed(state.iterations() * key.tokens * key.experts * 4);
}

void count_gap(benchmark::State& state, double gap, const score_key& key, double deviation) {
    state.counters["gap"] = gap;
    // Of equal scores any assignment is the best: their gap is nothing, and so is their deviation.
    const double scale = static_cast<double>(key.tokens) * deviation;
    state.counters["gap_per_token_std"] = scale > 0 ? gap / scale : gap;
}

template <class Policy, class Solver>
void assign(benchmark::State& state, const Policy& policy, const Solver& solver, const score_key& key) {
    const auto set = store.get(key);
    std::vector<std::int32_t> experts(static_cast<std::size_t>(key.tokens));
    std::vector<double> prices(static_cast<std::size_t>(key.experts)), start(prices.size());
    sy::workspace scratch;
    sy::assignment_problem<float> problem{.scores = {set->scores.data(), key.tokens, key.experts},
                                          .bounds = sy::balanced_quotas(key.tokens, key.experts)};
    if (key.kind == "drifted") {
        const auto before = store.get({key.tokens, key.experts, "skewed"});
        sy::assignment_problem<float> undrifted = problem;
        undrifted.scores = {before->scores.data(), key.tokens, key.experts};
        solve(policy, solver, undrifted, {experts.data(), start.data()}, scratch);
        problem.initial_prices = start.data();
    }
    // Twice before the clock runs: the first call learns how much memory it takes, the second is the first to touch it.
    auto found = solve(policy, solver, problem, {experts.data(), prices.data()}, scratch);
    found = solve(policy, solver, problem, {experts.data(), prices.data()}, scratch);
    bool converged = found.converged;
    for (auto _ : state) {
        found = solve(policy, solver, problem, {experts.data(), prices.data()}, scratch);
        converged = found.converged && converged;
        benchmark::ClobberMemory();
    }
    // The time of a solver that did not do what it is for is no time to compare.
    if (!converged) state.SkipWithError("the certified gap is above the tolerance");
    count(state, key);
    count_gap(state, found.gap, key, set->deviation);
    state.counters["solver_iterations"] = static_cast<double>(found.iterations);
    state.counters["passes"] = static_cast<double>(found.passes);
    state.counters["steps"] = static_cast<double>(found.steps);
    state.counters["workspace_MiB"] = static_cast<double>(scratch.size()) / (1 << 20);
}

/// The gap of an assignment at prices, for quotas that every load is within: what tokens would rather have. At fixed
/// loads prices of any sign cost nothing.
double gap_of(const row_major& scores, const std::vector<std::int32_t>& chosen, const std::vector<double>& prices) {
    const auto price = [&](index_t e) { return prices[static_cast<std::size_t>(e)]; };
    std::vector<index_t> load(prices.size());
    double gap = 0;
    for (index_t t = 0; t < scores.rows(); ++t) {
        const index_t own = chosen[static_cast<std::size_t>(t)];
        if (own < 0) return std::numeric_limits<double>::infinity();
        load[static_cast<std::size_t>(own)] += 1;
        double best = -std::numeric_limits<double>::infinity();
        for (index_t e = 0; e < scores.cols(); ++e) {
            best = std::max(best, static_cast<double>(scores(t, e)) - price(e));
        }
        gap += best - (static_cast<double>(scores(t, own)) - price(own));
    }
    const sy::quotas bounds = sy::balanced_quotas(scores.rows(), scores.cols());
    for (index_t e = 0; e < scores.cols(); ++e) {
        const index_t bound = price(e) > 0 ? bounds.upper(e) : bounds.lower(e);
        gap += price(e) * static_cast<double>(bound - load[static_cast<std::size_t>(e)]);
    }
    return gap;
}

void lemon_network_simplex(benchmark::State& state, const score_key& key) {
    const auto set = store.get(key);
    bench::lemon_network_simplex network(set->scores);
    bool optimal = true;
    for (auto _ : state) {
        optimal = network.run() && optimal;
    }
    if (!optimal) state.SkipWithError("LEMON found no optimum");
    count(state, key);
    count_gap(state, gap_of(set->scores, network.expert_of_token(), network.prices()), key, set->deviation);
}

void eigen_softmax_argmax(benchmark::State& state, const score_key& key) {
    const auto set = store.get(key);
    bench::eigen_softmax_argmax softmax_argmax(key.tokens, key.experts);
    softmax_argmax(set->scores);
    for (auto _ : state) {
        softmax_argmax(set->scores);
        benchmark::ClobberMemory();
    }
    count(state, key);
}

/// Registers one row, once; f runs with the state.
template <class F>
void add(const std::string& solver, const std::string& policy, const score_key& key, F f) {
    static std::set<std::string> registered;
    const std::string name = solver + "_" + policy + key.name();
    if (!registered.insert(name).second) return;
    benchmark::RegisterBenchmark(name.c_str(), f)->UseRealTime()->Unit(benchmark::kMillisecond);
}

template <class Solver>
void add_solver(const std::string& name, const Solver& solver, const score_key& key) {
    add(name, "seq", key, [=](auto& state) { assign(state, sy::seq, solver, key); });
#if defined(_OPENMP)
    add(name, "par", key, [=](auto& state) { assign(state, sy::par, solver, key); });
#endif
}

/// Every solver, and the baselines, on these scores. LEMON is asked where it takes less than a second, or --heavy.
void add_rows(const score_key& key, bool heavy) {
    constexpr index_t most_for_lemon = index_t{1} << 25;  // pairs: beyond them its arcs alone take GiB
    add_solver("hungarian", sy::hungarian{}, key);
    add_solver("auction", sy::auction{}, key);
    add("eigen_softmax_argmax", "seq", key, [=](auto& state) { eigen_softmax_argmax(state, key); });
    const index_t pairs = key.tokens * key.experts;
    if (pairs <= 4096 * 64 || (heavy && pairs <= most_for_lemon)) {
        add("lemon_network_simplex", "seq", key, [=](auto& state) { lemon_network_simplex(state, key); });
    }
}

/// A file's scores, or why there are none.
std::string read_recorded(const std::string& path, score_key& key) {
    const auto table = study::read_scores(path);
    row_major scores;
    std::visit(
        [&](const auto& numbers) {
            const auto view = sy::as_view(numbers);
            scores.resize(view.rows, view.columns);
            for (index_t t = 0; t < view.rows; ++t) {
                for (index_t e = 0; e < view.columns; ++e) scores(t, e) = static_cast<float>(view(t, e));
            }
        },
        table);
    if (scores.size() == 0) return path + ": there are no scores in it";
    key = {scores.rows(), scores.cols(), "recorded"};
    store.set_recorded(std::move(scores));
    return "";
}

struct options {
    bool heavy = false;
    std::string recorded;
};

/// Takes our own options out of the arguments.
bool take_options(int& argc, char** argv, options& chosen) {
    int kept = 1;
    for (int i = 1; i < argc; ++i) {
        const std::string_view argument = argv[i];
        if (argument == "--heavy") {
            chosen.heavy = true;
        } else if (argument == "--recorded") {
            if (i + 1 == argc) return false;
            chosen.recorded = argv[++i];
        } else {
            argv[kept++] = argv[i];
        }
    }
    argc = kept;
    return true;
}

void add_all(bool heavy) {
    for (const char* const kind : {"gaussian", "skewed", "quantized", "equal", "drifted"}) {
        add_rows({65536, 64, kind}, heavy);
    }
    for (const index_t tokens : {256, 1024, 4096, 16384}) add_rows({tokens, 64, "skewed"}, heavy);
    add_rows({65536, 16, "skewed"}, heavy);
    add_rows({65536, 256, "skewed"}, heavy);
    add_rows({16384, 1024, "skewed"}, heavy);
    if (!heavy) return;
    for (const char* const kind : {"gaussian", "quantized", "equal", "drifted"}) {
        add_rows({65536, 256, kind}, heavy);
        add_rows({16384, 1024, kind}, heavy);
    }
    add_rows({1048576, 64, "skewed"}, heavy);
    add_rows({65536, 2048, "skewed"}, heavy);
}

}  // namespace

int main(int argc, char** argv) {
    options chosen;
    if (!take_options(argc, argv, chosen)) {
        std::fprintf(stderr, "assignment_bench: --recorded needs the path of a .npy file\n");
        return 2;
    }
    if (chosen.recorded.empty() || !std::filesystem::exists(chosen.recorded)) {
        std::fprintf(stderr, "assignment_bench: no recorded scores%s%s: their rows are left out\n",
                     chosen.recorded.empty() ? " (--recorded FILE)" : " at ", chosen.recorded.c_str());
    } else {
        score_key key;
        std::string problem;
        try {
            problem = read_recorded(chosen.recorded, key);
        } catch (const sy::error& e) {
            problem = e.what();
        }
        if (!problem.empty()) {
            std::fprintf(stderr, "assignment_bench: %s\n", problem.c_str());
            return 2;
        }
        add_rows(key, chosen.heavy);
        add_rows({key.tokens, key.experts, "skewed"}, chosen.heavy);  // what recorded scores are compared with
    }
    add_all(chosen.heavy);
    benchmark::Initialize(&argc, argv);
    if (benchmark::ReportUnrecognizedArguments(argc, argv)) {
        return 2;
    }
    benchmark::RunSpecifiedBenchmarks();
    benchmark::Shutdown();
    return 0;
}
