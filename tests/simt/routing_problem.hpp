// What the tests of routing's kernels share: scores that lie in device memory in several ways, and a router's plan and
// gradients on the executor against those of the CPU backend.
#pragma once

#define SWITCHYARD_TEST_DEVICE "simt/device.hpp"
#include "simt/sweep.hpp"
#include "thrust/device.hpp"

#include <switchyard/backend/eigen.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <initializer_list>
#include <iterator>
#include <vector>

namespace routing_tests {

using namespace switchyard_test;

template <class T>
using on_device = sy::matrix_view<T, simt::device_space>;

/// How scores lie in memory.
enum class lie { dense, shifted, gaps, columns_first };
inline constexpr lie every_lie[] = {lie::dense, lie::shifted, lie::gaps, lie::columns_first};

/// A table in device memory: at an address that no vector fits, with gaps between numbers, or column by column.
template <class T>
struct placed {
    sy::buffer<T, simt::memory> numbers;
    index_t rows, columns;
    lie how;

    placed(index_t r, index_t c, lie as) : rows(r), columns(c), how(as) {
        numbers.resize(std::max<index_t>(1, 2 * (r + 1) * (c + 3)));
    }
    placed(const ref::matrix& table, lie as) : placed(table.rows, table.columns, as) {
        const auto to = view();
        for (index_t i = 0; i < rows; ++i) {
            for (index_t j = 0; j < columns; ++j) {
                to(i, j) = sy::store_scalar<T>(static_cast<sy::compute_t<T>>(table(i, j)));
            }
        }
    }
    on_device<T> view() const {
        switch (how) {
            case lie::shifted:
                return {numbers.data() + 1, rows, columns, columns + 3, 1};
            case lie::gaps:
                return {numbers.data(), rows, columns, 2 * columns + 1, 2};
            case lie::columns_first:
                return {numbers.data(), rows, columns, 1, rows + 1};
            default:
                return {numbers.data(), rows, columns};
        }
    }
};

/// The same numbers for the CPU backend: what is left of them when stored as T.
template <class T>
sy::matrix<T> on_host(const ref::matrix& table) {
    return stored<T>(table);
}

template <class S>
std::string close_numbers(const sy::plan<S>& got, const sy::plan<S>& want) {
    for (index_t i = 0; i < want.tokens() * want.choices(); ++i) {
        const auto x = static_cast<double>(got.view().gate[i]);
        const auto y = static_cast<double>(want.view().gate[i]);
        if (!is_gate<S>(x, y)) return said("gate ", i, " is ", x, ", on the CPU ", y);
    }
    if (!is_close(got.load_balancing_loss(), want.load_balancing_loss(), 2 * tolerance<S>::loss)) {
        return said("balance loss ", got.load_balancing_loss(), ", on the CPU ", want.load_balancing_loss());
    }
    const double z = want.z_loss();
    if (!(std::abs(got.z_loss() - z) <= 2 * tolerance<S>::loss * (std::abs(z) + std::sqrt(std::abs(z))))) {
        return said("z-loss ", got.z_loss(), ", on the CPU ", z);
    }
    return "";
}

/// Everything that a router may be given.
struct problem {
    ref::matrix scores;
    ref::mask_list mask{};
    bool is_training = true;
    lie how = lie::dense;
};

/// One block routes a few tokens of rows that fit a warp, where there is no noise to draw; else rows, totals and slots
/// are a launch each.
template <class Router>
int routing_launches(const Router& router, const problem& in, index_t choices) {
    bool is_noisy = false;
    if constexpr (requires { router.logit_jitter; }) is_noisy = is_noisy || router.logit_jitter != 0;
    if constexpr (requires { router.sample_temperature; }) is_noisy = is_noisy || router.sample_temperature != 0;
    const bool is_few = in.scores.rows <= 64 && in.scores.columns <= 256 && choices <= 32;
    return is_few && !(is_noisy && in.is_training) ? 1 : 3;
}

/// Routes and goes back on both backends; a sentence about the first difference.
template <class T, class Router>
std::string difference(simt::executor& executor, const Router& router, const problem& in) {
    using S = sy::compute_t<T>;
    const simt::policy on{&executor};
    const placed<T> scores(in.scores, in.how);
    const sy::matrix<T> host_scores = on_host<T>(in.scores);
    const device_mask device_padding(in.mask);
    const auto mode = [&](const sy::token_mask& mask) {
        return in.is_training ? sy::run_mode(sy::training{.seed = 5, .stream = 1, .step = 9, .mask = mask})
                              : sy::run_mode(sy::inference{mask});
    };
    sy::plan<S> want;
    sy::workspace host_scratch;
    sy::route_scores(sy::seq, router, host_scores, mode(mask_of(in.mask)), want, host_scratch);

    sy::basic_plan<S, simt::memory> made;
    sy::basic_workspace<simt::memory> scratch;
    executor.reset();
    sy::route_scores(on, router, sy::const_view(scores.view()), mode(device_padding.get()), made, scratch);
    const int launches = routing_launches(router, in, want.choices());
    if (executor.counted().launches != launches) return said(executor.counted().launches, " launches of forward");
    sy::check(on, made);
    const auto got = sy::copy_to_host(on, made);
    std::string sentence = decision_difference(got, want);
    if (sentence.empty()) sentence = close_numbers(got, want);
    if (!sentence.empty() || !in.is_training) return sentence;
    sentence = array_difference("row_maximum", got.view().row_maximum, want.view().row_maximum, in.scores.rows);
    if (!sentence.empty()) return sentence;

    const ref::matrix gradients = gaussian_scores(in.scores.rows, want.choices(), 3);
    const placed<S> d_gates(gradients, in.how);
    const placed<T> d_scores(in.scores.rows, in.scores.columns, in.how);
    executor.reset();
    sy::route_scores_backward(on, router, made, sy::const_view(scores.view()), sy::const_view(d_gates.view()),
                              d_scores.view(), scratch, {.loss_scale = 3});
    if (in.scores.rows > 0 && executor.counted().launches != 1) return "not one launch of backward";
    sy::matrix<T> host_d_scores(in.scores.rows, in.scores.columns);
    sy::route_scores_backward(sy::seq, router, want, host_scores, on_host<S>(gradients), host_d_scores, host_scratch,
                              {.loss_scale = 3});
    const auto out = sy::copy_to_host(on, d_scores.view());
    // Terms of the size of d_gates, and of the balance loss's gradient, cancel; numbers stored narrow are rounded once
    // more.
    const double rounding = sizeof(T) == 2 ? 0x1p-7 : 0;
    const double tokens = std::max(1.0, static_cast<double>(want.totals().counted_tokens));
    const double terms = 1 + 3 * router.balance_weight * static_cast<double>(in.scores.columns) / tokens;
    return matrix_difference(out, host_d_scores, tolerance<S>::gradient + rounding, terms);
}

template <class T, class Router>
void check_in_every_order(const Router& router, const problem& in) {
    simt::for_each_order([&](simt::executor& executor) {
        CAPTURE(executor.order().name());
        CHECK(difference<T>(executor, router, in) == "");
    });
}

/// An executor of the next order, for many inputs.
inline simt::executor& next_executor() {
    static std::vector<simt::executor> executors(std::begin(simt::all_orders), std::end(simt::all_orders));
    return executors[static_cast<std::size_t>(&simt::next_order() - std::begin(simt::all_orders))];
}

inline sy::top_k_router list_router(index_t k) {
    return {.k = k, .renormalize = k > 1, .capacity = {.factor = 1.1}, .z_weight = 1e-3};
}

inline std::vector<index_t> sweep(std::initializer_list<index_t> all) { return simt::sweep<index_t>(all); }

}  // namespace routing_tests
