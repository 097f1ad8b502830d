// The exact solver by kernels on a GPU: the optimum that the host finds, certified on the device, and the same at every
// call.
#include "assignment/instances.hpp"
#include "thrust/device.hpp"

#include <switchyard/assignment/kernel_hungarian.hpp>

#include <cmath>
#include <vector>

using assignment_tests::draw_instance;
using assignment_tests::instance;
using assignment_tests::solution;
using namespace switchyard_test;

namespace {

solution solve_there(const instance& problem, device_scratch& scratch) {
    const index_t rows = problem.scores.rows, experts = problem.scores.columns;
    const auto scores = sy::copy_to_device(device, stored<float>(problem.scores));
    const device_mask mask(problem.mask);
    sy::buffer<std::int32_t, device_memory> expert(rows, memory_of(device));
    sy::buffer<double, device_memory> prices(experts, memory_of(device));
    const sy::device_assignment_problem<float, device_space> posed{
        .scores = sy::const_view(scores.view()), .bounds = problem.bounds(), .mask = mask.get()};
    solution found;
    found.result = solve(device, sy::hungarian{}, posed, {expert.data(), prices.data()}, scratch);
    found.experts.resize(static_cast<std::size_t>(rows));
    found.prices.resize(static_cast<std::size_t>(experts));
    device.copy_to_host(found.experts.data(), expert.data(), found.experts.size() * sizeof(std::int32_t));
    device.copy_to_host(found.prices.data(), prices.data(), found.prices.size() * sizeof(double));
    return found;
}

}  // namespace

TEST_CASE("exact assignment on a GPU: the worked example") {
    device_scratch scratch(memory_of(device));
    const instance problem{{{1, 0}, {.9, .3}, {.8, .6}, {.7, .05}}, {2, 2}, {2, 2}, {}};
    const solution found = solve_there(problem, scratch);
    CHECK(found.experts == std::vector<std::int32_t>{0, 1, 1, 0});
    CHECK(found.result.primal == doctest::Approx(2.6));
    CHECK(found.result.converged);
}

TEST_CASE("exact assignment on a GPU: the host's optimum on scores of every kind") {
    device_scratch scratch(memory_of(device));
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
