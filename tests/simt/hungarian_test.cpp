// `hungarian` on a kernel policy: the host's optimum on every kind of problem, in every order of threads and blocks,
// with one look at the device.
#include "simt/auction_problem.hpp"
#include "simt/sweep.hpp"
#include "support/covers.hpp"

#include <switchyard/assignment/kernel_hungarian.hpp>
#include <switchyard/backend/eigen.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <random>
#include <string>
#include <type_traits>
#include <vector>

namespace {

using namespace switchyard_test;
namespace sy = switchyard;
using assignment_tests::balanced;
using assignment_tests::draw_instance;
using assignment_tests::infinity;
using assignment_tests::instance;
using assignment_tests::score_kind;
using assignment_tests::sentence_of;
using sy::index_t;

/// The executor's policy, which counts the copies that wait, and notes how many tokens each first measure of prices
/// sees.
struct counting_policy : simt::policy {
    index_t* looks = nullptr;   ///< copies to the host
    index_t* writes = nullptr;  ///< and to the device
    std::vector<index_t>* measured = nullptr;

    template <class Kernel>
    void launch(const Kernel& kernel, index_t blocks, std::size_t shared_bytes = 0) const {
        simt::policy::launch(kernel, blocks, shared_bytes);
        if constexpr (requires { kernel.is_first; }) {
            if (kernel.is_first) measured->push_back(kernel.on.state->looked_at);
        }
    }

    void copy_to_host(void* to, const void* from, std::size_t bytes) const {
        *looks += 1;
        simt::policy::copy_to_host(to, from, bytes);
    }
    void copy_to_device(void* to, const void* from, std::size_t bytes) const {
        *writes += 1;
        simt::policy::copy_to_device(to, from, bytes);
    }
};
static_assert(sy::kernel_policy<counting_policy>);

struct found_on_device {
    sy::assignment_result result;
    std::vector<std::int32_t> experts;
    std::vector<double> prices;
    index_t looks = 0;
    index_t writes = 0;
    std::vector<index_t> measured;  ///< tokens that each search for prices saw first
    simt::traffic counted;
};

using simt::on_host;

/// Solves on the executor; rows are `padding` numbers apart beyond their own.
template <class S>
found_on_device solve_there(const instance& problem, const simt::order& order = simt::next_order(),
                            const std::vector<double>& warm = {}, const sy::hungarian& solver = {},
                            index_t padding = 0) {
    posed_there<S> there(problem, padding);
    const auto initial = simt::on_device(warm);
    there.problem.initial_prices = warm.empty() ? nullptr : initial.data();
    simt::executor device(order);
    found_on_device found;
    counting_policy on;
    on.device = &device;
    on.looks = &found.looks;
    on.writes = &found.writes;
    on.measured = &found.measured;
    sy::device_workspace<counting_policy> scratch;
    found.result = solve(on, solver, there.problem,
                         {.expert_of_token = there.experts.data(), .prices = there.prices.data()}, scratch);
    found.experts = simt::on_host(there.experts);
    found.prices = simt::on_host(there.prices);
    found.counted = device.counted();
    return found;
}

/// The same numbers, as S stores them.
template <class S>
instance as_stored(instance problem) {
    for (double& s : problem.scores.values) {
        s = static_cast<double>(sy::load_scalar(sy::store_scalar<S>(static_cast<sy::compute_t<S>>(s))));
    }
    return problem;
}

/// The optimum on the host, the same on the device, and a certificate that holds there.
void check_optimum(const instance& problem, const found_on_device& found) {
    const auto host = assignment_tests::solve_as<double>(sy::hungarian{}, problem);
    const assignment_tests::solution there{found.result, found.experts, found.prices};
    CHECK(is_valid(problem, there));
    CHECK(found.result.converged);
    CHECK(found.result.gap <= found.result.tolerance);
    CHECK(found.result.tolerance == doctest::Approx(host.result.tolerance).epsilon(1e-6));
    CHECK(std::abs(found.result.primal - host.result.primal) <= found.result.tolerance + host.result.tolerance);
    const double slack = 1e-9 * (1 + std::abs(found.result.primal));
    CHECK(is_complementary(problem, there, slack));
}

}  // namespace

TEST_CASE_TEMPLATE("the optimum on every kind of scores, shape, mask and bounds", S, float, double) {
    std::mt19937_64 random(11);
    for (int kind = 0; kind < static_cast<int>(score_kind::count); ++kind) {
        for (const auto& shape :
             std::vector<std::pair<index_t, index_t>>{{1, 1}, {7, 1}, {3, 8}, {64, 4}, {130, 7}, {257, 16}, {96, 33}}) {
            const index_t rows = shape.first;
            const index_t experts = shape.second;
            for (const int forbidden : {0, 60}) {
                const bool masked = (rows + kind) % 2 == 0;
                auto problem = draw_instance(static_cast<score_kind>(kind), rows, experts, forbidden, masked, random);
                if (forbidden > 0) {
                    const auto why = sentence_of([&] { assignment_tests::solve_as<S>(sy::hungarian{}, problem); });
                    CHECK(why == sentence_of([&] { solve_there<S>(problem); }));
                    if (!why.empty()) continue;
                }
                CAPTURE(kind);
                CAPTURE(rows);
                CAPTURE(experts);
                check_optimum(problem, solve_there<S>(problem));
            }
        }
    }
    covers<operation("exact assignment")>(simt::policy{});
}

TEST_CASE_TEMPLATE("where most tokens are fixed on the device: one look, with prices to begin with and without", S,
                   float, double, Eigen::half, Eigen::bfloat16) {
    std::mt19937_64 random(12);
    const auto kind = std::is_same_v<S, Eigen::bfloat16> ? score_kind::gaussian : score_kind::skewed;
    const auto problem = as_stored<S>(balanced(draw_instance(kind, 4000, 8, 0, false, random)));
    const auto found = solve_there<S>(problem);
    check_optimum(problem, found);
    if (!std::is_same_v<S, Eigen::bfloat16>) {
        CHECK(found.looks == 1);
        CHECK(found.writes == 0);
    }
    std::vector<double> warm = found.prices;
    for (double& p : warm) p += 0.02 * std::normal_distribution<double>()(random);
    const auto again = solve_there<S>(problem, simt::next_order(), warm);
    check_optimum(problem, again);
    if (!std::is_same_v<S, Eigen::bfloat16>) {
        CHECK(again.looks == 1);
        CHECK(again.writes == 0);
        CHECK(again.counted.launches < found.counted.launches);
    }
}

TEST_CASE("launches and bytes, as docs/assignment/device.md has them") {
    std::mt19937_64 random(20);
    const index_t rows = 8192;
    const index_t experts = 16;
    const auto problem = balanced(draw_instance(score_kind::skewed, rows, experts, 0, false, random));
    const auto cold = solve_there<float>(problem);
    CHECK(cold.looks == 1);
    CHECK(cold.counted.launches <= 105);
    const auto warm = solve_there<float>(problem, simt::next_order(), cold.prices);
    CHECK(warm.looks == 1);
    CHECK(warm.counted.launches <= 40);
    // Good prices: a look, perhaps a step, and the look that narrows down.
    const auto scores = static_cast<double>(rows * experts * 4);
    CHECK(static_cast<double>(warm.counted.loaded) <= 6 * scores);
    CHECK(static_cast<double>(cold.counted.loaded) <= 18 * scores);
}

TEST_CASE("prices to begin with may be anything") {
    std::mt19937_64 random(13);
    const auto problem = balanced(draw_instance(score_kind::gaussian, 2500, 4, 0, true, random));
    for (const auto& warm : std::vector<std::vector<double>>{{1e30, -1e30, 0, 5},
                                                             {infinity, 0, 0, 0},
                                                             {assignment_tests::no_number, 1, 2, 3},
                                                             {0.5, 0.5, 0.5, 0.5},
                                                             {100, 0, 0, 0}}) {
        check_optimum(problem, solve_there<float>(problem, simt::next_order(), warm));
    }
}

TEST_CASE("ties without end: equal scores and copies of few tokens") {
    std::mt19937_64 random(14);
    auto problem = balanced(draw_instance(score_kind::gaussian, 3000, 4, 0, false, random));
    for (index_t t = 0; t < 3000; ++t) {
        for (index_t e = 0; e < 4; ++e) problem.scores(t, e) = problem.scores(t % 3, e);
    }
    check_optimum(problem, solve_there<float>(problem));
    for (double& s : problem.scores.values) s = 0.25;
    check_optimum(problem, solve_there<float>(problem));
}

TEST_CASE("scores from forbidden to nearly 1e38, in float: what a float cannot tell apart is left to the host") {
    std::mt19937_64 random(15);
    auto problem = balanced(draw_instance(score_kind::gaussian, 1500, 3, 40, false, random));
    for (index_t t = 0; t < 1500; t += 7) problem.scores(t, t % 3) = (t % 2 == 0 ? 1 : -1) * 3e38f;
    const auto host = assignment_tests::solve_as<double>(sy::hungarian{}, problem);
    const auto found = solve_there<float>(problem);
    CHECK(is_valid(problem, {found.result, found.experts, found.prices}));
    CHECK(std::abs(found.result.primal - host.result.primal) <= found.result.tolerance + host.result.tolerance);
}

TEST_CASE("the same bits in every order of threads and blocks") {
    std::mt19937_64 random(16);
    const auto problem = balanced(draw_instance(score_kind::skewed, 2100, 4, 20, true, random));
    const auto first = solve_there<float>(problem);
    check_optimum(problem, first);
    for (const simt::order& order : simt::all_orders) {
        const auto found = solve_there<float>(problem, order);
        CHECK(found.experts == first.experts);
        CHECK(found.prices == first.prices);
        CHECK(found.result.gap == first.result.gap);
        CHECK(found.result.primal == first.result.primal);
        CHECK(found.counted == first.counted);
    }
}

TEST_CASE("rows with room behind them, and costs") {
    std::mt19937_64 random(17);
    const auto problem = balanced(draw_instance(score_kind::gaussian, 1400, 6, 0, false, random));
    const auto found = solve_there<float>(problem);
    for (const index_t padding : {1, 2, 10}) {
        const auto padded = solve_there<float>(problem, simt::next_order(), {}, {}, padding);
        check_optimum(problem, padded);
        CHECK(std::abs(padded.result.primal - found.result.primal) <= found.result.tolerance);
    }
    sy::buffer<float, simt::memory> costs(1400 * 6);
    for (index_t i = 0; i < costs.size(); ++i) {
        costs.data()[i] = -static_cast<float>(problem.scores.values[i]);
    }
    simt::executor device;
    const simt::policy on{&device};
    sy::buffer<std::int32_t, simt::memory> expert(1400);
    sy::device_workspace<simt::policy> scratch;
    const sy::device_assignment_problem<float, simt::device_space> posed{
        .scores = {costs.data(), 1400, 6}, .bounds = problem.bounds(), .goal = sy::objective::minimise};
    const auto cheapest = solve(on, sy::hungarian{}, posed, {.expert_of_token = expert.data()}, scratch);
    CHECK(cheapest.converged);
    CHECK(std::abs(cheapest.primal + found.result.primal) <= found.result.tolerance);
    CHECK(cheapest.dual <= cheapest.primal);
    CHECK(on_host(expert) == found.experts);
}

TEST_CASE("bad scores and bounds are the host's errors") {
    std::mt19937_64 random(18);
    const auto good = balanced(draw_instance(score_kind::gaussian, 1400, 4, 0, false, random));
    const auto host = [](const instance& problem) {
        return sentence_of([&] { assignment_tests::solve_as<float>(sy::hungarian{}, problem); });
    };
    const auto there = [](const instance& problem) { return sentence_of([&] { solve_there<float>(problem); }); };
    for (const double bad : {assignment_tests::no_number, infinity}) {
        auto problem = good;
        problem.scores(1203, 2) = bad;
        problem.scores(1201, 3) = bad;
        CHECK(host(problem) != "");
        CHECK(there(problem) == host(problem));
    }
    auto problem = good;
    for (index_t e = 0; e < 4; ++e) problem.scores(700, e) = -infinity;
    CHECK(there(problem) == host(problem));
    problem = good;
    problem.lower[1] = 1000;
    problem.upper[1] = 1000;
    CHECK(there(problem) == host(problem));
    for (index_t t = 0; t < 1400; ++t) {
        for (index_t e = 2; e < 4; ++e) {
            if (t % 3 != 0) problem.scores(t, e) = -infinity;
        }
    }
    problem.lower = problem.upper = good.upper;
    CHECK(host(problem) != "");
    CHECK(there(problem) == host(problem));
}

TEST_CASE("a limit stops the host's part: complete, and certified on the device") {
    std::mt19937_64 random(19);
    const auto problem = balanced(draw_instance(score_kind::gaussian, 2000, 4, 0, false, random));
    const auto found = solve_there<float>(problem, simt::next_order(), {3, -2, 1, 0}, {.most_iterations = 1});
    CHECK(is_valid(problem, {found.result, found.experts, found.prices}));
    const auto best = solve_there<float>(problem);
    CHECK(found.result.primal <= best.result.primal + best.result.tolerance);
    CHECK(found.result.dual >= best.result.primal - best.result.tolerance);
    CHECK(found.result.converged == (found.result.gap <= found.result.tolerance));
}

namespace {

/// Tokens like experts more or less, and some expert is closed to all of them.
instance with_closed(index_t rows, index_t experts, const std::vector<index_t>& closed, std::mt19937_64& random) {
    auto problem = draw_instance(score_kind::gaussian, rows, experts, 0, rows % 2 == 0, random);
    const auto is_closed = [&](index_t e) { return std::find(closed.begin(), closed.end(), e) != closed.end(); };
    const index_t open = experts - static_cast<index_t>(closed.size());
    for (index_t e = 0; e < experts; ++e) {
        problem.lower[e] = is_closed(e) ? 0 : problem.tokens() / open;
        problem.upper[e] = is_closed(e) ? 0 : problem.tokens() / open + 1;
    }
    return problem;
}

/// The prices of closed experts are those of the host's rule at the other prices: the lowest at which no token prefers
/// the expert.
void check_closed_prices(const instance& problem, const found_on_device& found) {
    for (index_t e = 0; e < problem.scores.columns; ++e) {
        if (problem.upper[e] > 0) continue;
        double least = 0;
        for (index_t t = 0; t < problem.scores.rows; ++t) {
            const auto own = found.experts[static_cast<std::size_t>(t)];
            if (own < 0) continue;
            const double margin = problem.scores(t, own) - found.prices[static_cast<std::size_t>(own)];
            least = std::max(least, std::nextafter(problem.scores(t, e) - margin, infinity));
        }
        CHECK(found.prices[static_cast<std::size_t>(e)] == least);
    }
}

}  // namespace

TEST_CASE("prices of closed experts prove the optimum: no token prefers them, fixed ones included") {
    instance one;
    one.scores = sy::reference::matrix(1, 2);
    one.scores(0, 1) = 5;
    one.lower = one.upper = {1, 0};
    const auto alone = solve_there<float>(one);
    check_optimum(one, alone);
    check_closed_prices(one, alone);
    CHECK(alone.prices[1] - alone.prices[0] > 4.999);

    std::mt19937_64 random(21);
    for (const auto& closed : std::vector<std::vector<index_t>>{{1}, {0, 3}, {0, 1, 2, 3, 4}}) {
        const index_t rows = 2600 + static_cast<index_t>(closed.size());
        auto problem = as_stored<float>(with_closed(rows, 6, closed, random));
        // A token that nothing moves from its expert likes a closed one more than any candidate does.
        for (index_t t = 1000; t < 1004; ++t) {
            problem.scores(t, 5) = 50;
            problem.scores(t, closed[0]) = 70;
        }
        const auto found = solve_there<float>(problem);
        check_optimum(problem, found);
        check_closed_prices(problem, found);
        CHECK(found.looks == 1);
        CHECK(found.writes == 0);
        const auto warm = solve_there<float>(problem, simt::next_order(), found.prices);
        check_optimum(problem, warm);
        check_closed_prices(problem, warm);
        // A limit: the certificate that the device makes is at these prices, too.
        const auto stopped = solve_there<float>(problem, simt::next_order(), {}, {.most_iterations = 1});
        CHECK(is_valid(problem, {stopped.result, stopped.experts, stopped.prices}));
        check_closed_prices(problem, stopped);
        CHECK(stopped.result.primal <= found.result.primal + found.result.tolerance);
        CHECK(stopped.result.dual >= found.result.primal - found.result.tolerance);
    }
    // Where no token is left everybody is closed, and worth nothing.
    auto nobody = draw_instance(score_kind::gaussian, 40, 3, 0, true, random);
    for (index_t t = 0; t < 40; ++t) nobody.mask[t] = 0;
    for (index_t e = 0; e < 3; ++e) nobody.lower[e] = nobody.upper[e] = 0;
    CHECK(solve_there<float>(nobody).prices == std::vector<double>(3, 0.0));
}

TEST_CASE("prices of many closed experts" * doctest::skip(simt::sweep_step > 1)) {
    std::mt19937_64 random(22);
    auto many = as_stored<double>(draw_instance(score_kind::skewed, 13100, 300, 0, false, random));
    for (index_t e = 0; e < 300; ++e) {
        many.lower[e] = 0;
        many.upper[e] = e >= 20 ? 0 : 700;
    }
    const auto found = solve_there<double>(many);
    check_optimum(many, found);
    check_closed_prices(many, found);
}

TEST_CASE("a further parcel begins with counts of its own") {
    // More ties than the first two parcels have room for.
    instance problem;
    problem.scores = sy::reference::matrix(8192, 4);
    problem.lower = problem.upper = {2048, 2048, 2048, 2048};
    const auto found = solve_there<float>(problem);
    check_optimum(problem, found);
    CHECK(found.looks == 3);
    CHECK(found.measured == std::vector<index_t>{1024, 8192, 8192});
}

TEST_CASE("limits are of all parcels together") {
    // Prices so far off that the first parcel is too narrow for what they turn out to be.
    std::mt19937_64 random(0);
    const auto problem = balanced(draw_instance(score_kind::gaussian, 1500, 4, 0, false, random));
    std::vector<double> warm;
    for (int e = 0; e < 4; ++e) warm.push_back(3 * std::normal_distribution<double>()(random));
    const auto free = solve_there<float>(problem, simt::next_order(), warm);
    check_optimum(problem, free);
    CHECK(free.looks == 2);
    // One iteration is used up in the first parcel; one less than there are, in the second. Two more looks certify.
    const auto first = solve_there<float>(problem, simt::next_order(), warm, {.most_iterations = 1});
    CHECK(first.looks == 3);
    CHECK(first.result.iterations == 1);
    const index_t most = free.result.iterations - 1;
    const auto second = solve_there<float>(problem, simt::next_order(), warm, {.most_iterations = most});
    CHECK(second.looks == 4);
    CHECK(second.result.iterations == most);
    // No time at all: complete, at the first parcel.
    const auto none = solve_there<float>(problem, simt::next_order(), warm, {.time_limit = 1e-9});
    CHECK(none.looks == 3);
    for (const auto* found : {&first, &second, &none}) {
        CHECK(is_valid(problem, {found->result, found->experts, found->prices}));
        CHECK(found->result.dual >= free.result.primal - free.result.tolerance);
    }
}

TEST_CASE("random problems have the host's optimum") {
    CHECK(assignment_tests::holds("hungarian on kernels", 60, [] {
        const auto problem = assignment_tests::any_instance(90, 9);
        const auto why = sentence_of([&] { assignment_tests::solve_as<float>(sy::hungarian{}, problem); });
        if (!why.empty()) {
            RC_ASSERT(sentence_of([&] { solve_there<float>(problem); }) == why);
            return;
        }
        const auto host = assignment_tests::solve_as<float>(sy::hungarian{}, problem);
        const auto found = solve_there<float>(problem);
        RC_ASSERT(is_valid(problem, {found.result, found.experts, found.prices}));
        RC_ASSERT(std::abs(found.result.primal - host.result.primal) <= found.result.tolerance + host.result.tolerance);
    }));
}
