// What routing costs beside what it is made of, in one binary.
//
//   ./routing_bench --benchmark_enable_random_interleaving=true --benchmark_repetitions=9
//       --benchmark_report_aggregates_only=true --benchmark_filter='/65536/64(/|$)'
//
// switch_route and top_k_train are a training step (losses, statistics for backward), switch_infer and top_k_route
// inference (decoding sizes among them); `_columns` are column-major scores, `_bfloat16` and `_half` row-major ones in
// 16 bits. Rows are `<operation>_<policy>/<tokens>/<experts>`, with /k for top-k. Compare medians of one run only. All
// operations write into prepared buffers. sinkhorn_round is one round of sinkhorn_bias; gshard_route and
// sparse_mixer_route are a training step, one_each_route is inference; noisy_scores and load_loss are forward. Rows
// that move are also `_by_columns` (column-major), `_bfloat16` and
// `_half`, with sizes /<tokens>/<experts>/<k>/<columns>. Scores are Gaussian (fixed seed); rows of tokens have 512
// float32 numbers; dispatch and combine use balanced random experts and drop nothing. `par` runs on OpenMP with the
// machine's threads.
//
// Baselines: eigen_softmax_argmax (softmax and argmax with Eigen's row expressions), exp_sum (Eigen's sum of exp over
// the matrix: one exponential a score is the least any softmax pays), read_scores (their sum), copy_rows (memcpy of the
// bytes that dispatch moves), memcpy_rows (the same rows permuted, one memcpy a row), eigen_product (scores = x W with
// Eigen).
#include "eigen_baseline.hpp"

#include <switchyard/switchyard.hpp>

#include <benchmark/benchmark.h>
#include <Eigen/Dense>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <random>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

namespace sy = switchyard;
using bench::gaussian;
using bench::row_major;
using sy::index_t;

namespace {

constexpr index_t width = 512;

using column_major = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::ColMajor>;
using row_major_bfloat16 = Eigen::Matrix<Eigen::bfloat16, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
using row_major_half = Eigen::Matrix<Eigen::half, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

/// Experts and choices of published models, and Switch's.
struct shape {
    index_t experts, k;
};
constexpr shape shapes[] = {{8, 2},   {32, 4},  {64, 1},  {64, 6},  {128, 4},
                            {128, 8}, {160, 6}, {256, 8}, {384, 8}, {512, 10}};

/// The same Gaussian scores for every row of a size, made once.
const row_major& scores_of(index_t tokens, index_t experts) {
    static std::map<std::pair<index_t, index_t>, row_major> made;
    row_major& scores = made[{tokens, experts}];
    if (scores.size() == 0) {
        scores = gaussian(tokens, experts);
    }
    return scores;
}

/// Numbers to move: what they are does not matter, and Gaussian ones would take longer to make than to move.
template <class Matrix = row_major>
Matrix numbered(index_t rows, index_t columns) {
    Matrix numbers(rows, columns);
    for (index_t i = 0; i < numbers.size(); ++i) {
        numbers.data()[i] = static_cast<typename Matrix::Scalar>(static_cast<float>(i % 251));
    }
    return numbers;
}

/// Scores whose best expert is a balanced random one: t % E, shuffled.
row_major balanced(index_t tokens, index_t experts) {
    row_major scores = row_major::Zero(tokens, experts);
    std::vector<index_t> expert(static_cast<std::size_t>(tokens));
    for (index_t t = 0; t < tokens; ++t) {
        expert[static_cast<std::size_t>(t)] = t % experts;
    }
    std::shuffle(expert.begin(), expert.end(), std::mt19937_64(7));
    for (index_t t = 0; t < tokens; ++t) {
        scores(t, expert[static_cast<std::size_t>(t)]) = 1;
    }
    return scores;
}

void count(benchmark::State& state, index_t tokens, index_t bytes) {
    state.SetItemsProcessed(state.iterations() * tokens);
    state.SetBytesProcessed(state.iterations() * bytes);
}

template <class Scores = row_major, class Policy, class Router>
void route(benchmark::State& state, const Policy& policy, const Router& router, const sy::run_mode& mode,
           index_t tokens, index_t experts) {
    const Scores scores = scores_of(tokens, experts).cast<typename Scores::Scalar>();
    sy::plan<float> plan;
    sy::workspace scratch;
    for (auto _ : state) {
        sy::route_scores(policy, router, scores, mode, plan, scratch);
        benchmark::DoNotOptimize(plan.view().order);
        benchmark::ClobberMemory();
    }
    count(state, tokens, tokens * experts * static_cast<index_t>(sizeof(typename Scores::Scalar)));
}

/// From tokens [T, width], whose storage is that of X.
template <class X, class Policy>
void route_tokens(benchmark::State& state, const Policy& policy, index_t tokens, index_t experts) {
    const X x = numbered(tokens, width).cast<typename X::Scalar>();
    const X w = gaussian(width, experts, 2).cast<typename X::Scalar>();
    sy::plan<float> plan;
    sy::workspace scratch;
    for (auto _ : state) {
        sy::route(policy, sy::switch_router{}, x, w, sy::training{}, plan, scratch);
        benchmark::ClobberMemory();
    }
    count(state, tokens, tokens * width * static_cast<index_t>(sizeof(typename X::Scalar)));
}

/// One round of Sinkhorn, from a bias that is not 0.
template <class Policy>
void sinkhorn_round(benchmark::State& state, const Policy& policy, index_t tokens, index_t experts) {
    const row_major& scores = scores_of(tokens, experts);
    std::vector<float> bias(static_cast<std::size_t>(experts), 0.0f);
    sy::workspace scratch;
    const sy::sinkhorn_settings settings{.rounds = 1, .tolerance = 0, .starts_warm = true};
    for (auto _ : state) {
        benchmark::DoNotOptimize(sy::sinkhorn_bias(policy, scores, settings, {}, bias.data(), scratch));
        benchmark::ClobberMemory();
    }
    count(state, tokens, tokens * experts * static_cast<index_t>(sizeof(float)));
}

/// The noise of noisy top-k, and its load loss forward.
template <class Policy>
void add_noise(benchmark::State& state, const Policy& policy, index_t tokens, index_t experts, bool has_loss) {
    const row_major& scores = scores_of(tokens, experts);
    row_major noisy(tokens, experts);
    std::vector<double> load(static_cast<std::size_t>(experts) + 1);
    sy::workspace scratch;
    const sy::load_loss_settings settings{.k = 2};
    sy::noisy_scores(policy, scores, scores, settings.noisy, noisy);
    for (auto _ : state) {
        if (has_loss) {
            sy::load_loss(policy, scores, scores, noisy, settings, load.data(), load.data() + experts, scratch);
        } else {
            sy::noisy_scores(policy, scores, scores, settings.noisy, noisy);
        }
        benchmark::ClobberMemory();
    }
    count(state, tokens, tokens * experts * static_cast<index_t>(sizeof(float)));
}

template <class Scores = row_major, class Policy, class Router>
void route_backward(benchmark::State& state, const Policy& policy, const Router& router, index_t tokens,
                    index_t experts) {
    const Scores scores = scores_of(tokens, experts).cast<typename Scores::Scalar>();
    sy::plan<float> plan;
    sy::workspace scratch;
    sy::route_scores(policy, router, scores, sy::training{}, plan, scratch);
    const row_major d_gates = gaussian(tokens, plan.choices(), 2);
    Scores d_scores(tokens, experts);
    for (auto _ : state) {
        sy::route_scores_backward(policy, router, plan, scores, d_gates, d_scores, scratch);
        benchmark::ClobberMemory();
    }
    count(state, tokens, 2 * tokens * experts * static_cast<index_t>(sizeof(typename Scores::Scalar)));
}

template <class Policy>
void project(benchmark::State& state, const Policy& policy, index_t tokens, index_t experts) {
    const row_major x = numbered(tokens, width);
    const row_major w = gaussian(width, experts, 2);
    sy::matrix<float> scores(tokens, experts);
    sy::workspace scratch;
    for (auto _ : state) {
        sy::project(policy, sy::const_view(sy::as_view(x)), sy::const_view(sy::as_view(w)), sy::input_noise{},
                    sy::token_mask{}, scores.view(), scratch);
        benchmark::ClobberMemory();
    }
    count(state, tokens, tokens * (width + experts) * 4);
}

/// Sizes of rows to move.
struct moved_size {
    index_t tokens, experts, k = 1, columns = width;

    index_t bytes(index_t matrices, index_t scalar) const { return matrices * tokens * columns * scalar; }
};

/// A plan that keeps everything, tokens, rows in expert order, and gradients: what moving rows needs.
template <class Matrix>
struct moved {
    sy::plan<float> plan;
    Matrix x, rows, y, d_rows;
    row_major d_gates;

    explicit moved(const moved_size& size) {
        sy::workspace scratch;
        if (size.k == 1) {
            sy::route_scores(sy::seq, sy::switch_router{.capacity = {}}, balanced(size.tokens, size.experts),
                             sy::training{}, plan, scratch);
        } else {
            sy::route_scores(sy::seq, sy::top_k_router{.k = size.k}, gaussian(size.tokens, size.experts),
                             sy::training{}, plan, scratch);
        }
        x = numbered<Matrix>(size.tokens, size.columns);
        y = x;
        rows = numbered<Matrix>(size.tokens * size.k, size.columns);
        d_rows = rows;
        d_gates.resize(size.tokens, size.k);
    }
};

/// Moves rows again and again; `matrices` of the tokens' size are read or written.
template <class Matrix, class Move>
void move_rows(benchmark::State& state, const moved_size& size, index_t matrices, const Move& move) {
    moved<Matrix> m(size);
    for (auto _ : state) {
        move(m);
        benchmark::ClobberMemory();
    }
    count(state, size.tokens, size.bytes(matrices, sizeof(typename Matrix::Scalar)));
}

template <class Matrix, class Policy>
void dispatch(benchmark::State& state, const Policy& policy, const moved_size& size) {
    move_rows<Matrix>(state, size, 1 + size.k, [&](auto& m) { sy::dispatch(policy, m.plan, m.x, m.rows); });
}

template <class Matrix, class Policy>
void combine(benchmark::State& state, const Policy& policy, const moved_size& size) {
    move_rows<Matrix>(state, size, 1 + size.k, [&](auto& m) { sy::combine(policy, m.plan, m.rows, m.y); });
}

template <class Matrix, class Policy>
void dispatch_backward(benchmark::State& state, const Policy& policy, const moved_size& size) {
    move_rows<Matrix>(state, size, 1 + size.k, [&](auto& m) { sy::dispatch_backward(policy, m.plan, m.rows, m.x); });
}

/// Of rows that were weighted with their gates.
template <class Matrix, class Policy>
void gated_dispatch_backward(benchmark::State& state, const Policy& policy, const moved_size& size) {
    move_rows<Matrix>(state, size, 2 * (1 + size.k),
                      [&](auto& m) { sy::dispatch_backward(policy, m.plan, m.x, m.rows, m.y, m.d_gates); });
}

template <class Matrix, class Policy>
void combine_backward(benchmark::State& state, const Policy& policy, const moved_size& size) {
    move_rows<Matrix>(state, size, 1 + 2 * size.k,
                      [&](auto& m) { sy::combine_backward(policy, m.plan, m.rows, m.y, m.d_rows, m.d_gates); });
}

void eigen_softmax_argmax(benchmark::State& state, index_t tokens, index_t experts) {
    const row_major scores = gaussian(tokens, experts);
    bench::eigen_softmax_argmax softmax_argmax(tokens, experts);
    for (auto _ : state) {
        softmax_argmax(scores);
        benchmark::ClobberMemory();
    }
    count(state, tokens, tokens * experts * 4);
}

void exp_sum(benchmark::State& state, index_t tokens, index_t experts) {
    const row_major scores = gaussian(tokens, experts);
    for (auto _ : state) {
        benchmark::DoNotOptimize(scores.array().exp().sum());
    }
    count(state, tokens, tokens * experts * 4);
}

void read_scores(benchmark::State& state, index_t tokens, index_t experts) {
    const row_major scores = gaussian(tokens, experts);
    for (auto _ : state) {
        benchmark::DoNotOptimize(scores.sum());
    }
    count(state, tokens, tokens * experts * 4);
}

/// memcpy of everything, in the pieces the policy works on.
template <class Policy>
void copy_rows(benchmark::State& state, const Policy& policy, index_t tokens) {
    const row_major x = numbered(tokens, width);
    row_major rows = x;
    const index_t blocks = std::is_same_v<Policy, sy::seq_policy> ? 1 : std::min<index_t>(tokens, 64);
    const index_t each = (tokens + blocks - 1) / blocks;
    for (auto _ : state) {
        policy.parallel_for(blocks, [&](index_t b) {
            const index_t first = std::min(tokens, b * each);
            const index_t last = std::min(tokens, first + each);
            std::memcpy(rows.data() + first * width, x.data() + first * width,
                        static_cast<std::size_t>((last - first) * width) * sizeof(float));
        });
        benchmark::ClobberMemory();
    }
    count(state, tokens, 2 * tokens * width * 4);
}

void memcpy_rows(benchmark::State& state, index_t tokens, index_t experts) {
    moved<row_major> m({tokens, experts});
    for (auto _ : state) {
        for (index_t r = 0; r < tokens; ++r) {
            std::memcpy(m.rows.row(r).data(), m.x.row(m.plan.view().order[r]).data(), width * sizeof(float));
        }
        benchmark::ClobberMemory();
    }
    count(state, tokens, 2 * tokens * width * 4);
}

void eigen_product(benchmark::State& state, index_t tokens, index_t experts) {
    const row_major x = numbered(tokens, width);
    const row_major w = gaussian(width, experts, 2);
    row_major scores(tokens, experts);
    for (auto _ : state) {
        scores.noalias() = x * w;
        benchmark::ClobberMemory();
    }
    count(state, tokens, tokens * (width + experts) * 4);
}

/// Registers one row; f runs with the state.
template <class F>
void add(const std::string& operation, const std::string& policy, std::initializer_list<index_t> sizes, F f) {
    std::string name = operation + "_" + policy;
    for (const index_t size : sizes) {
        name += "/" + std::to_string(size);
    }
    benchmark::RegisterBenchmark(name.c_str(), f)->UseRealTime()->Unit(benchmark::kMillisecond);
}

template <class T>
using row_major_of = Eigen::Matrix<T, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

/// The moves of rows that lie in such matrices.
template <class Matrix, class Policy>
void add_moves(const std::string& storage, const std::string& name, const Policy& policy,
               std::initializer_list<index_t> sizes, const moved_size& size) {
    add("dispatch" + storage, name, sizes, [=](auto& s) { dispatch<Matrix>(s, policy, size); });
    add("combine" + storage, name, sizes, [=](auto& s) { combine<Matrix>(s, policy, size); });
    add("dispatch_backward" + storage, name, sizes, [=](auto& s) { dispatch_backward<Matrix>(s, policy, size); });
    add("gated_dispatch_backward" + storage, name, sizes,
        [=](auto& s) { gated_dispatch_backward<Matrix>(s, policy, size); });
    add("combine_backward" + storage, name, sizes, [=](auto& s) { combine_backward<Matrix>(s, policy, size); });
}

template <class Policy>
void add_policy(const std::string& name, const Policy& policy) {
    const sy::switch_router switch_router{};
    for (const index_t e : {8, 32, 60, 64, 100, 128, 160, 256, 384, 512, 1024}) {
        const index_t t = 65536;
        add("switch_route", name, {t, e}, [=](auto& s) { route(s, policy, switch_router, sy::training{}, t, e); });
    }
    for (const index_t e : {64, 256}) {
        const index_t t = 65536;
        add("switch_route_backward", name, {t, e}, [=](auto& s) { route_backward(s, policy, switch_router, t, e); });
        add("project", name, {t, e}, [=](auto& s) { project(s, policy, t, e); });
    }
    add("sinkhorn_round", name, {65536, 64}, [=](auto& s) { sinkhorn_round(s, policy, 65536, 64); });
    add("gshard_route", name, {65536, 64},
        [=](auto& s) { route(s, policy, sy::gshard_router{}, sy::training{.stream = 0}, 65536, 64); });
    add("sparse_mixer_route", name, {65536, 64},
        [=](auto& s) { route(s, policy, sy::sparse_mixer_router{}, sy::training{.stream = 0}, 65536, 64); });
    add("one_each_route", name, {65536, 64, 8}, [=](auto& s) {
        const sy::recipe_router<> router{.k = 8, .groups = {.count = 8, .one_each = true}};
        route(s, policy, router, sy::inference{}, 65536, 64);
    });
    add("noisy_scores", name, {65536, 64}, [=](auto& s) { add_noise(s, policy, 65536, 64, false); });
    add("load_loss", name, {65536, 64, 2}, [=](auto& s) { add_noise(s, policy, 65536, 64, true); });
    for (const index_t t : {1, 32, 512, 65536}) {
        const sy::top_k_router router{.k = 8};
        add("top_k_route", name, {t, 256, 8}, [=](auto& s) { route(s, policy, router, sy::inference{}, t, 256); });
    }
    for (const index_t k : {2, 4, 32}) {
        const sy::top_k_router router{.k = k};
        add("top_k_route", name, {65536, 64, k},
            [=](auto& s) { route(s, policy, router, sy::inference{}, 65536, 64); });
    }
    add("top_k_route_backward", name, {65536, 256, 8},
        [=](auto& s) { route_backward(s, policy, sy::top_k_router{.k = 8}, 65536, 256); });
    for (const index_t t : {512, 65536}) {
        add_moves<row_major>("", name, policy, {t, 64}, {t, 64});
        add("copy_rows", name, {t, 64}, [=](auto& s) { copy_rows(s, policy, t); });
    }
    add("combine", name, {65536, 64, 2}, [=](auto& s) { combine<row_major>(s, policy, {65536, 64, 2}); });
    // The last number is that of a row's columns. 65536 tokens: columns a power of two apart.
    for (const index_t t : {65536, 65600}) {
        add_moves<row_major>("", name, policy, {t, 64, 1, 256}, {t, 64, 1, 256});
        add_moves<Eigen::MatrixXf>("_by_columns", name, policy, {t, 64, 1, 256}, {t, 64, 1, 256});
    }
    add_moves<row_major>("", name, policy, {4096, 64, 2, width}, {4096, 64, 2, width});
    add_moves<row_major_of<Eigen::bfloat16>>("_bfloat16", name, policy, {4096, 64, 2, width}, {4096, 64, 2, width});
    add_moves<row_major_of<Eigen::half>>("_half", name, policy, {4096, 64, 2, width}, {4096, 64, 2, width});
}

/// Shapes of published models, and scores in other layouts and storage, on one thread.
void add_shapes() {
    const index_t t = 65536;
    const sy::switch_router switch_router{};
    for (const index_t e : {8, 32, 64, 128, 160, 256, 384, 512}) {
        add("switch_infer", "seq", {t, e}, [=](auto& s) { route(s, sy::seq, switch_router, sy::inference{}, t, e); });
    }
    for (const auto [e, k] : shapes) {
        const sy::top_k_router router{.k = k};
        add("top_k_train", "seq", {t, e, k}, [=, e = e](auto& s) { route(s, sy::seq, router, sy::training{}, t, e); });
        add("top_k_renormalize", "seq", {t, e, k}, [=, e = e](auto& s) {
            route(s, sy::seq, sy::top_k_router{.k = router.k, .renormalize = true}, sy::inference{}, t, e);
        });
        if (e != 256) {  // add_policy has it
            add("top_k_route", "seq", {t, e, k},
                [=, e = e](auto& s) { route(s, sy::seq, router, sy::inference{}, t, e); });
        }
    }
    // DeepSeek-V3's: sigmoid, a selection bias, the best 4 of 8 groups by their two best experts, normalised gates.
    static const std::vector<float> bias = [] {
        std::vector<float> numbers(256);
        for (std::size_t i = 0; i < numbers.size(); ++i) numbers[i] = 0.001f * static_cast<float>(i * 37 % 101);
        return numbers;
    }();
    const sy::recipe_router<> groups{.k = 8,
                                     .score = sy::score_function::sigmoid,
                                     .selection_bias = {bias.data(), 256},
                                     .groups = {.count = 8, .kept = 4},
                                     .normalize = sy::gate_sum::add,
                                     .epsilon = 1e-20,
                                     .scale = 2.5};
    for (const index_t tokens : {1, 32, 65536}) {
        add("groups_route", "seq", {tokens, 256, 8},
            [=](auto& s) { route(s, sy::seq, groups, sy::inference{}, tokens, 256); });
    }
    add("groups_route_backward", "seq", {t, 256, 8}, [=](auto& s) { route_backward(s, sy::seq, groups, t, 256); });
    for (const index_t tokens : {1, 65536}) {
        add("base_greedy_route", "seq", {tokens, 64},
            [=](auto& s) { route(s, sy::seq, sy::base_router<>{}, sy::inference{}, tokens, 64); });
    }
    const index_t e = 64;
    const auto add_storage = [=]<class Scores>(const std::string& storage) {
        add("switch_route_" + storage, "seq", {t, e},
            [=](auto& s) { route<Scores>(s, sy::seq, switch_router, sy::training{}, t, e); });
        add("switch_route_backward_" + storage, "seq", {t, e},
            [=](auto& s) { route_backward<Scores>(s, sy::seq, switch_router, t, e); });
        add("top_k_route_" + storage, "seq", {t, e, 6},
            [=](auto& s) { route<Scores>(s, sy::seq, sy::top_k_router{.k = 6}, sy::inference{}, t, e); });
        add("route_tokens_" + storage, "seq", {16384, e}, [=](auto& s) { route_tokens<Scores>(s, sy::seq, 16384, e); });
    };
    add_storage.template operator()<column_major>("columns");
    add_storage.template operator()<row_major_bfloat16>("bfloat16");
    add_storage.template operator()<row_major_half>("half");
    add("route_tokens", "seq", {16384, e}, [=](auto& s) { route_tokens<row_major>(s, sy::seq, 16384, e); });
}

}  // namespace

int main(int argc, char** argv) {
    add_policy("seq", sy::seq);
    add_shapes();
#if defined(_OPENMP)
    add_policy("par", sy::par);
#endif
    for (const index_t e : {64, 256}) {
        const index_t t = 65536;
        add("eigen_softmax_argmax", "seq", {t, e}, [=](auto& s) { eigen_softmax_argmax(s, t, e); });
        add("exp_sum", "seq", {t, e}, [=](auto& s) { exp_sum(s, t, e); });
        add("read_scores", "seq", {t, e}, [=](auto& s) { read_scores(s, t, e); });
        add("eigen_product", "seq", {t, e}, [=](auto& s) { eigen_product(s, t, e); });
    }
    for (const index_t t : {512, 65536}) {
        add("memcpy_rows", "seq", {t, 64}, [=](auto& s) { memcpy_rows(s, t, 64); });
    }
    benchmark::Initialize(&argc, argv);
    if (benchmark::ReportUnrecognizedArguments(argc, argv)) {
        return 2;
    }
    benchmark::RunSpecifiedBenchmarks();
    benchmark::Shutdown();
    return 0;
}
