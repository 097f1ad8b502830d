// Launches and bytes of dispatch, combine and their backward by kernels, counted by the executor: never less than what
// any program must move, never more than 1.15 times that.
//
// What must move: each number that the results depend on is read once, each result written once. Tokens' rows are read
// once however many choices they have; of dropped choices only the slot is read; offsets once for each expert in use;
// the choices either by token (expert, slot, offsets) or by row (order), whichever is less.
#include "simt/rows.hpp"

#include <doctest/doctest.h>

#include <map>
#include <set>
#include <string>

using namespace switchyard_test;

namespace {

constexpr double most = 1.15;

template <class S>
struct counts {
    std::int64_t kept = 0;
    std::int64_t tokens_with_rows = 0;
    std::int64_t indices = 0;  ///< bytes

    explicit counts(const sy::plan<S>& plan) : kept(plan.kept()) {
        std::set<std::int32_t> experts;
        for (index_t t = 0; t < plan.tokens(); ++t) {
            bool has_row = false;
            for (index_t c = 0; c < plan.choices(); ++c) {
                if (plan.slot()(t, c) >= 0) {
                    has_row = true;
                    experts.insert(plan.expert()(t, c));
                }
            }
            tokens_with_rows += has_row ? 1 : 0;
        }
        const auto by_token =
            4 * plan.tokens() * plan.choices() + 4 * kept + 8 * static_cast<std::int64_t>(experts.size());
        indices = std::min(by_token, 8 * kept + 8);
    }
};

/// The largest ratios of bytes moved to bytes that must move, by verb.
std::map<std::string, double> largest;

/// One launch, at least what must move, and at most 1.15 times that.
void expect(const std::string& what, simt::executor& executor, std::int64_t must_load, std::int64_t must_store) {
    CAPTURE(what);
    const auto counted = executor.counted();
    const double ratio =
        static_cast<double>(counted.loaded + counted.stored) / static_cast<double>(must_load + must_store);
    CHECK(counted.launches == 1);
    CHECK(counted.loaded >= must_load);
    CHECK(counted.stored == must_store);
    CHECK(ratio >= 1);
    CHECK(ratio <= most);
    largest[what] = std::max(largest[what], ratio);
    executor.reset();
}

/// What was seen, for docs/gpu.md.
void say_largest() {
    for (const auto& [what, ratio] : largest) MESSAGE(what, ": at most ", ratio, " of what must move");
    largest.clear();
}

/// A training step's verbs over one plan, tokens and rows stored as T.
template <class S, class T>
void check_budget(index_t tokens, index_t experts, index_t k, index_t width, double factor,
                  layout how = layout::dense) {
    CAPTURE(tokens);
    CAPTURE(k);
    CAPTURE(width);
    CAPTURE(sizeof(T));
    const auto plan = random_plan<S>(tokens, experts, k, factor, 3, {}).plan;
    const auto made = on_device(plan);
    const counts<S> must(plan);
    const std::int64_t row = width * static_cast<std::int64_t>(sizeof(T));
    const std::int64_t gates = must.kept * static_cast<std::int64_t>(sizeof(S));
    const std::int64_t d_gates_bytes = tokens * k * static_cast<std::int64_t>(sizeof(S));
    const std::int64_t rows_bytes = must.kept * row;
    const std::int64_t tokens_read = must.tokens_with_rows * row;

    const laid_out<T> x(how, tokens, width), y(how, tokens, width);
    const laid_out<T> rows(how, plan.row_bound(), width), out(how, plan.row_bound(), width);
    const laid_out<S> d_gates(layout::dense, tokens, k);
    x.fill(gaussian_scores(tokens, width, 1));
    y.fill(gaussian_scores(tokens, width, 1));
    rows.fill(gaussian_scores(plan.row_bound(), width, 2));

    simt::executor executor;
    const simt::policy on{&executor};
    sy::dispatch(on, made, x.view(), out.view());
    expect("dispatch", executor, must.indices + tokens_read, rows_bytes);
    sy::dispatch(on, made, x.view(), out.view(), {.apply_gates = true});
    expect("dispatch with gates", executor, must.indices + gates + tokens_read, rows_bytes);
    sy::combine(on, made, rows.view(), y.view());
    expect("combine", executor, must.indices + gates + rows_bytes, tokens * row);
    sy::combine(on, made, rows.view(), y.view(), {.accumulate = true});
    expect("combine onto", executor, must.indices + gates + rows_bytes + tokens_read, tokens_read);
    sy::combine_backward(on, made, rows.view(), x.view(), out.view(), d_gates.view());
    expect("combine backward", executor, must.indices + gates + rows_bytes + tokens_read, rows_bytes + d_gates_bytes);
    sy::dispatch_backward(on, made, rows.view(), y.view());
    expect("dispatch backward", executor, must.indices + rows_bytes, tokens * row);
    sy::dispatch_backward(on, made, x.view(), rows.view(), y.view(), d_gates.view());
    expect("dispatch backward with gates", executor, must.indices + gates + rows_bytes + tokens_read,
           tokens * row + d_gates_bytes);
}

}  // namespace

TEST_CASE("rows by kernels: launches and bytes of rows from 256 bytes to 16 KiB") {
    for (const index_t k : {1, 2, 8}) {
        check_budget<float, float>(600, 32, k, 64, 1.25);
        check_budget<float, Eigen::bfloat16>(600, 32, k, 128, 1.25);
        check_budget<float, float>(60, 8, k, 1024, 1.25);
        check_budget<float, Eigen::bfloat16>(60, 8, k, 2048, 1.0);
        check_budget<float, float>(20, 8, k, 4096, 1.0);
    }
    say_largest();
}

TEST_CASE("rows by kernels: half of the choices dropped, and rows that no vector fits") {
    check_budget<float, float>(500, 16, 2, 128, 0.5);
    check_budget<float, Eigen::bfloat16>(500, 16, 8, 256, 0.5);
    check_budget<float, float>(60, 8, 2, 1001, 1.0);
    check_budget<float, float>(60, 8, 8, 512, 1.0, layout::misaligned);
    check_budget<float, Eigen::bfloat16>(60, 8, 8, 1000, 1.0, layout::misaligned);
    check_budget<double, double>(60, 8, 4, 300, 1.0);
    check_budget<float, Eigen::bfloat16>(600, 32, 1, 64, 1.25);
    check_budget<float, Eigen::bfloat16>(600, 32, 8, 64, 1.25);
    say_largest();
}

TEST_CASE("rows by kernels: tokens without rows are not read, rows beyond the kept ones neither") {
    const auto plan = routed<float>(sy::top_k_router{.k = 2, .capacity = {.number = 0}}, gaussian_scores(100, 4, 1));
    const auto made = on_device(plan);
    const laid_out<float> x(layout::dense, 100, 64), rows(layout::dense, 1, 64), d_gates(layout::dense, 100, 2);
    simt::executor executor;
    const simt::policy on{&executor};
    const std::int64_t choices = 100 * 2;
    sy::dispatch(on, made, x.view(), rows.view());
    CHECK(executor.counted() == simt::traffic{.launches = 1, .loaded = 8 * choices, .stored = 0});
    executor.reset();
    sy::combine(on, made, rows.view(), x.view());
    CHECK(executor.counted() == simt::traffic{.launches = 1, .loaded = 12 * choices, .stored = 100 * 256});
    executor.reset();
    sy::combine(on, made, rows.view(), x.view(), {.accumulate = true});
    CHECK(executor.counted() == simt::traffic{.launches = 1, .loaded = 12 * choices, .stored = 0});
    executor.reset();
    sy::combine_backward(on, made, rows.view(), x.view(), rows.view(), d_gates.view());
    CHECK(executor.counted() == simt::traffic{.launches = 1, .loaded = 12 * choices, .stored = 4 * choices});
}

TEST_CASE("rows by kernels: more choices than lanes take a second launch in dispatch's backward alone") {
    const auto plan = random_plan<float>(6, 40, 40, {}, 1, {}).plan;
    const auto made = on_device(plan);
    const laid_out<float> x(layout::dense, 6, 64), rows(layout::dense, 240, 64), d_gates(layout::dense, 6, 40);
    simt::executor executor;
    const simt::policy on{&executor};
    const auto launches = [&] {
        const auto counted = executor.counted().launches;
        executor.reset();
        return counted;
    };
    sy::dispatch(on, made, x.view(), rows.view());
    CHECK(launches() == 1);
    sy::combine(on, made, rows.view(), x.view());
    CHECK(launches() == 1);
    sy::combine_backward(on, made, rows.view(), x.view(), rows.view(), d_gates.view());
    CHECK(launches() == 1);
    const laid_out<float> d_x(layout::dense, 6, 64);
    sy::dispatch_backward(on, made, x.view(), rows.view(), d_x.view(), d_gates.view());
    CHECK(launches() == 2);
}
