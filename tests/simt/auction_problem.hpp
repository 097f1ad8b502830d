// Problems of assignment in the executor's memory, the auction that nobody waits for, and what its result must be.
#pragma once

#include "assignment/instances.hpp"
#include "simt/arrays.hpp"
#include "simt/executor.hpp"

#include <switchyard/assignment/kernel_auction.hpp>
#include <switchyard/backend/eigen.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

namespace switchyard_test {

namespace sy = switchyard;

using assignment_tests::infinity;
using assignment_tests::instance;
using sy::index_t;

/// Refuses to wait: what is asynchronous runs with it.
struct policy_without_waits : simt::policy {
    void copy_to_host(void*, const void*, std::size_t) const { throw simt::error("a wait for the device"); }
    void copy_to_device(void*, const void*, std::size_t) const { throw simt::error("a copy to the device"); }
};
static_assert(sy::kernel_policy<policy_without_waits>);

/// A problem in the executor's memory.
template <class S>
struct posed_there {
    sy::buffer<S, simt::memory> scores;
    sy::buffer<std::uint8_t, simt::memory> mask;
    sy::buffer<std::int32_t, simt::memory> experts;
    sy::buffer<double, simt::memory> prices;
    sy::buffer<sy::assignment_result, simt::memory> found;
    sy::device_assignment_problem<S, simt::device_space> problem;

    explicit posed_there(const instance& from, index_t padding = 0)
        : scores(from.scores.rows * (from.scores.columns + padding)),
          mask(simt::on_device(std::vector<std::uint8_t>(from.mask.begin(), from.mask.end()))),
          experts(from.scores.rows),
          prices(from.scores.columns),
          found(1) {
        const index_t rows = from.scores.rows;
        const index_t columns = from.scores.columns;
        for (index_t t = 0; t < rows; ++t) {
            for (index_t e = 0; e < columns; ++e) {
                scores.data()[t * (columns + padding) + e] =
                    sy::store_scalar<S>(static_cast<sy::compute_t<S>>(from.scores(t, e)));
            }
        }
        problem = {.scores = {scores.data(), rows, columns, columns + padding, 1},
                   .bounds = from.bounds(),
                   .mask = {from.mask.empty() ? nullptr : mask.data(), from.mask.length(), true}};
    }
    assignment_tests::solution solution() const {
        return {*found.data(), simt::on_host(experts), simt::on_host(prices)};
    }
};

template <class S>
assignment_tests::solution solve_async(const instance& problem, sy::async_auction solver = {},
                                       const simt::order& order = simt::next_order(), index_t padding = 0,
                                       simt::traffic* counted = nullptr) {
    posed_there<S> there(problem, padding);
    simt::executor device(order);
    policy_without_waits on;
    on.device = &device;
    solver.found = there.found.data();
    sy::device_workspace<policy_without_waits> scratch;
    solve(on, solver, there.problem, {.expert_of_token = there.experts.data(), .prices = there.prices.data()}, scratch);
    if (counted != nullptr) *counted = device.counted();
    return there.solution();
}

/// The gap at these prices by plain loops, as assignment.hpp defines it.
inline double gap_of(const instance& problem, const assignment_tests::solution& found) {
    double gap = 0;
    std::vector<index_t> load(static_cast<std::size_t>(problem.scores.columns), 0);
    const auto price = [&](index_t e) { return found.prices[static_cast<std::size_t>(e)]; };
    for (index_t t = 0; t < problem.scores.rows; ++t) {
        const auto own = found.experts[static_cast<std::size_t>(t)];
        if (own < 0) continue;
        load[static_cast<std::size_t>(own)] += 1;
        double best = -infinity;
        for (index_t e = 0; e < problem.scores.columns; ++e) best = std::max(best, problem.scores(t, e) - price(e));
        gap += best - (problem.scores(t, own) - price(own));
    }
    for (index_t e = 0; e < problem.scores.columns; ++e) {
        const auto upper = std::min(problem.upper[e], problem.tokens());
        if (upper == 0) continue;
        const auto bound = price(e) > 0 ? upper : problem.lower[e];
        gap += price(e) * static_cast<double>(bound - load[static_cast<std::size_t>(e)]);
    }
    return gap;
}

/// Within the quotas, and the gap is what it should be: an upper bound on the distance from the best.
inline void check_certified(const instance& problem, const assignment_tests::solution& found) {
    CHECK(is_valid(problem, found));
    double size = 1;
    for (const double s : problem.scores.values) size = std::max(size, std::isfinite(s) ? std::abs(s) : 0.0);
    CHECK(found.result.gap == doctest::Approx(gap_of(problem, found)).epsilon(1e-9).scale(size));
    CHECK(found.result.dual == doctest::Approx(found.result.primal + found.result.gap).epsilon(1e-12));
    const auto best = assignment_tests::solve_as<double>(sy::hungarian{}, problem);
    CHECK(found.result.primal <= best.result.primal + best.result.tolerance);
    CHECK(found.result.dual >= best.result.primal - best.result.tolerance);
}

}  // namespace switchyard_test
