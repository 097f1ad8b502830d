// What the arrays of switchyard/formats/ cost beside memcpy of as many bytes as they have.
//
//   ./formats_bench --benchmark_enable_random_interleaving=true --benchmark_repetitions=9
//       --benchmark_report_aggregates_only=true
//
// Rows are `<function>_<policy>/<tokens>/<experts>/<k>`, and `<function>_memcpy` copies the bytes that the function
// writes, on one thread. `sort_rows_by_token`, `lay_out` and top_k's route, which the plan comes from, stand beside
// them without a memcpy. Compare medians of one run only. The plan keeps every choice of Gaussian scores, in blocks of
// 16; one_hot is of 512 tokens. Outputs are written again and again, so small ones stay in cache, as do memcpy's.
#include "eigen_baseline.hpp"

#include <switchyard/switchyard.hpp>

#include <benchmark/benchmark.h>

#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

namespace sy = switchyard;
using sy::index_t;

namespace {

constexpr index_t block = 16;

struct size {
    index_t tokens, experts, k;
};

struct routed {
    sy::plan<float> plan;
    sy::workspace scratch;

    explicit routed(const size& s) {
        plan.set_row_block(block);
        sy::route_scores(sy::seq, sy::top_k_router{.k = s.k}, bench::gaussian(s.tokens, s.experts), sy::inference{},
                         plan, scratch);
    }
};

std::string name_of(const std::string& function, const std::string& policy, const size& s) {
    return function + "_" + policy + "/" + std::to_string(s.tokens) + "/" + std::to_string(s.experts) + "/" +
           std::to_string(s.k);
}

template <class F>
void add(const std::string& name, const F& f) {
    benchmark::RegisterBenchmark(name.c_str(), f)->UseRealTime()->Unit(benchmark::kMicrosecond);
}

void add_memcpy(const std::string& function, const size& s, index_t bytes) {
    add(name_of(function, "memcpy", s), [=](benchmark::State& state) {
        const std::vector<char> from(static_cast<std::size_t>(bytes), 1);
        std::vector<char> to(from.size(), 2);
        for (auto _ : state) {
            std::memcpy(to.data(), from.data(), to.size());
            benchmark::ClobberMemory();
        }
        state.SetBytesProcessed(state.iterations() * bytes);
    });
}

/// write(policy, made) on one thread and on all, and memcpy of as many bytes.
template <class Outputs, class Write>
void add_format(const std::string& function, const size& s, index_t bytes, const Outputs& outputs, const Write& write) {
    const auto with = [=](const std::string& policy_name, const auto& policy) {
        add(name_of(function, policy_name, s), [=](benchmark::State& state) {
            routed made(s);
            auto out = outputs();
            write(policy, made, out);  // its pages are there from now on, as memcpy's are
            for (auto _ : state) {
                write(policy, made, out);
                benchmark::ClobberMemory();
            }
            state.SetBytesProcessed(state.iterations() * bytes);
        });
    };
    with("seq", sy::seq);
#if defined(_OPENMP)
    with("par", sy::par);
#endif
    if (bytes > 0) {
        add_memcpy(function, s, bytes);
    }
}

/// One table of T.
template <class T, class Write>
void add_table(const std::string& function, const size& s, index_t rows, index_t columns, const Write& write) {
    add_format(
        function, s, rows * columns * static_cast<index_t>(sizeof(T)), [=] { return sy::matrix<T>(rows, columns); },
        write);
}

void add_size(const size& s) {
    const auto [tokens, experts, k] = s;
    const index_t choices = tokens * k;
    const auto blocks = sy::aligned_block_sizes(tokens, k, experts, block);
    const index_t rows = sy::row_bound(tokens, k, experts, sy::unlimited, block);
    using number = std::int32_t;
    add_table<number>("row_experts", s, 1, rows, [](const auto& policy, routed& made, auto& out) {
        sy::write_row_experts(policy, made.plan, out);
    });
    add_table<number>("row_choices", s, 1, rows, [](const auto& policy, routed& made, auto& out) {
        sy::write_row_choices(policy, made.plan, out);
    });
    add_table<number>("row_tokens", s, 1, rows, [](const auto& policy, routed& made, auto& out) {
        sy::write_row_tokens(policy, made.plan, out);
    });
    add_table<number>("choice_rows", s, tokens, k, [](const auto& policy, routed& made, auto& out) {
        sy::write_choice_rows(policy, made.plan, out);
    });
    struct aligned {
        sy::matrix<number> ids, experts, count;
    };
    add_format(
        "aligned_blocks", s, 4 * (blocks.ids + blocks.blocks + 1),
        [=] {
            return aligned{sy::matrix<number>(1, blocks.ids), sy::matrix<number>(1, blocks.blocks),
                           sy::matrix<number>(1, 1)};
        },
        [](const auto& policy, routed& made, aligned& out) {
            sy::write_aligned_blocks(policy, made.plan, out.ids, out.experts, out.count);
        });
    add_table<number>("ends", s, 1, experts, [](const auto& policy, routed& made, auto& out) {
        sy::write_counts(policy, made.plan, sy::plan_counts::ends, out);
    });
    add_table<number>("bins", s, 1, experts,
                      [](const auto& policy, routed& made, auto& out) { sy::write_bins(policy, made.plan, 128, out); });
    const index_t most = choices / experts * 5 / 4;  // Gaussian scores: loads are near the mean
    struct masked {
        sy::matrix<number> choices, counts;
    };
    add_format(
        "masked", s, 4 * (experts * most + experts),
        [=, e = experts] {
            return masked{sy::matrix<number>(e, most), sy::matrix<number>(1, e)};
        },
        [](const auto& policy, routed& made, masked& out) {
            sy::write_masked(policy, made.plan, out.choices, out.counts);
        });
    add_table<std::int64_t>("ids", s, tokens, k,
                            [](const auto& policy, routed& made, auto& out) { sy::write_ids(policy, made.plan, out); });
    add_table<number>("ids_int32", s, tokens, k, [](const auto& policy, routed& made, auto& out) {
        sy::write_ids(policy, made.plan, out, {.none = 0});
    });
    add_table<float>("weights", s, tokens, k,
                     [](const auto& policy, routed& made, auto& out) { sy::write_weights(policy, made.plan, out); });
    add_table<number>("packed_choices", s, tokens, k, [](const auto& policy, routed& made, auto& out) {
        sy::write_packed_choices(policy, made.plan, out);
    });
    add_table<std::uint8_t>("routing_map", s, tokens, experts, [](const auto& policy, routed& made, auto& out) {
        sy::write_routing_map(policy, made.plan, out);
    });
    add_table<std::uint8_t>(
        "routing_bits", s, tokens, (experts + 7) / 8,
        [](const auto& policy, routed& made, auto& out) { sy::write_routing_bits(policy, made.plan, out); });
    add_table<float>("routing_weights", s, tokens, experts, [](const auto& policy, routed& made, auto& out) {
        sy::write_routing_weights(policy, made.plan, out);
    });
    add_table<number>("row_map", s, tokens, 2 * experts + 1,
                      [](const auto& policy, routed& made, auto& out) { sy::write_row_map(policy, made.plan, out); });
    struct ranked {
        sy::matrix<number> counts;
        sy::matrix<std::uint8_t> marks;
    };
    add_format(
        "rank_layout", s, 8 * tokens + 4 * 8,
        [t = tokens] {
            return ranked{sy::matrix<number>(1, 8), sy::matrix<std::uint8_t>(t, 8)};
        },
        [](const auto& policy, routed& made, ranked& out) {
            sy::write_rank_layout(policy, made.plan, 8, out.counts, out.marks, made.scratch);
        });
    struct listed {
        sy::matrix<number> offsets, rows, experts;
        sy::matrix<float> weights;
    };
    add_format(
        "token_lists", s, 4 * (tokens + 1 + 3 * choices),
        [=, t = tokens] {
            return listed{sy::matrix<number>(1, t + 1), sy::matrix<number>(1, choices), sy::matrix<number>(1, choices),
                          sy::matrix<float>(1, choices)};
        },
        [](const auto& policy, routed& made, listed& out) {
            sy::write_token_lists(policy, made.plan, out.offsets, out.rows, out.experts, out.weights, made.scratch);
        });
    const auto nothing = [] { return 0; };
    add_format("sort_rows_by_token", s, 0, nothing,
               [](const auto& policy, routed& made, int) { sy::sort_rows_by_token(policy, made.plan, made.scratch); });
    add_format("lay_out", s, 0, nothing,
               [](const auto& policy, routed& made, int) { sy::lay_out(policy, made.plan, block, made.scratch); });
}

}  // namespace

int main(int argc, char** argv) {
    add_size({65536, 64, 2});
    add_size({4096, 256, 8});
    const size few{512, 64, 2};
    add_table<float>(
        "combine_weights", few, few.tokens, few.experts * 64,
        [](const auto& policy, routed& made, auto& out) { sy::write_combine_weights(policy, made.plan, out); });
    benchmark::Initialize(&argc, argv);
    if (benchmark::ReportUnrecognizedArguments(argc, argv)) {
        return 2;
    }
    benchmark::RunSpecifiedBenchmarks();
    benchmark::Shutdown();
    return 0;
}
