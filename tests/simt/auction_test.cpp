// The price pass, the auction's rounds by kernels and `async_auction`, on the executor, in every order of threads.
#include "simt/auction_problem.hpp"
#include "simt/sweep.hpp"
#include "support/covers.hpp"

#include <switchyard/assignment/kernel_auction.hpp>
#include <switchyard/backend/eigen.hpp>
#include <switchyard/plan/device_plan.hpp>
#include <switchyard/router/kernel_base.hpp>
#include <switchyard/router/route.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <random>
#include <string>
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

using simt::on_device;
using simt::on_host;

}  // namespace

TEST_CASE_TEMPLATE("the price pass: experts, margins and loads, each score read once", S, float, double, Eigen::half,
                   Eigen::bfloat16) {
    using C = sy::compute_t<S>;
    using namespace sy::detail;
    std::mt19937_64 random(1);
    for (const auto& shape : std::vector<std::pair<index_t, index_t>>{
             {1, 1}, {70, 3}, {300, 8}, {129, 64}, {65, 100}, {40, 256}, {17, 1000}}) {
        const index_t rows = shape.first;
        const index_t experts = shape.second;
        const auto problem = draw_instance(score_kind::quarters, rows, experts, 30, rows % 2 == 0, random);
        posed_there<S> there(problem, rows % 3);
        std::vector<C> price(static_cast<std::size_t>(experts));
        for (C& p : price) p = C(0.25) * static_cast<C>(static_cast<int>(random() % 9) - 4);
        if (experts > 2) price[2] = std::numeric_limits<C>::infinity();
        auto prices = on_device(price);
        sy::buffer<C, simt::memory> largest(1);
        largest.data()[0] = 1;
        sy::device_workspace<simt::policy> scratch;
        simt::for_each_order([&](simt::executor& device) {
            const simt::policy on{&device};
            const auto scope = scratch.open();
            auto search = price_search_on_device<C>::take(rows, experts, pass_blocks<S>(rows, experts), scratch);
            std::fill_n(search.looked.load, experts, 0);
            std::fill_n(search.looked.bins, margin_bins, 0);
            *search.looked.bad_rows = none_bad;
            device.reset();
            run_price_pass<simt::policy, S>(on, {there.problem.scores}, there.problem.mask, 1,
                                            {prices.data(), largest.data()}, search.looked);
            std::vector<std::int32_t> load(static_cast<std::size_t>(experts), 0);
            std::int32_t bad = none_bad;
            index_t seen = 0;
            for (index_t t = 0; t < rows; ++t) {
                CAPTURE(t);
                const bool is_token = sy::reference::is_token(problem.mask, t);
                std::int32_t best = -1, next = -1;
                const auto margin = [&](index_t e) {
                    return static_cast<C>(problem.scores(t, e)) - price[static_cast<std::size_t>(e)];
                };
                for (std::int32_t e = 0; e < experts; ++e) {
                    if (margin(e) > (best < 0 ? -std::numeric_limits<C>::infinity() : margin(best))) {
                        next = best;
                        best = e;
                    } else if (margin(e) > (next < 0 ? -std::numeric_limits<C>::infinity() : margin(next))) {
                        next = e;
                    }
                }
                CHECK(search.looked.expert[t] == (is_token ? best : not_a_token));
                CHECK(search.looked.next[t] == (is_token ? next : -1));
                if (!is_token) continue;
                if (best < 0) {
                    bad = std::min(bad, static_cast<std::int32_t>(t));
                    continue;
                }
                seen += 1;
                load[static_cast<std::size_t>(best)] += 1;
                if (next < 0) {
                    CHECK(search.looked.margin[t] == std::numeric_limits<C>::infinity());
                } else {
                    CHECK(search.looked.margin[t] <= margin(best) - margin(next));
                    CHECK(search.looked.margin[t] >= margin(best) - margin(next) - C(1e-5));
                }
            }
            CHECK(std::equal(load.begin(), load.end(), search.looked.load));
            CHECK(*search.looked.bad_rows == bad);
            index_t binned = 0;
            for (index_t b = 0; b < margin_bins; ++b) binned += search.looked.bins[b];
            CHECK(binned == seen);
            CHECK(device.counted().launches == 1);
        });
    }
}

TEST_CASE("bytes of the price pass: the scores once, and what it writes") {
    using namespace sy::detail;
    const index_t rows = 4096;
    const index_t experts = 64;
    const auto scores = on_device(assignment_tests::gaussian_scores(rows, experts, 3));
    sy::device_workspace<simt::policy> scratch;
    const auto scope = scratch.open();
    simt::executor device;
    const simt::policy on{&device};
    auto search = price_search_on_device<float>::take(rows, experts, pass_blocks<float>(rows, experts), scratch);
    begin_price_steps(on, search, {.is_balanced = true}, {}, static_cast<const double*>(nullptr));
    device.reset();
    run_price_pass<simt::policy, float>(on, {{scores.data(), rows, experts}}, {}, 1, search.passed, search.looked);
    const double compulsory = rows * experts * 4 + rows * 12;
    CHECK(static_cast<double>(device.counted().loaded + device.counted().stored) <= 1.15 * compulsory);
    CHECK(static_cast<double>(device.counted().loaded + device.counted().stored) >= compulsory);
    CHECK(device.counted().launches == 1);
}

TEST_CASE_TEMPLATE("bids of lane groups are the generic ones, bit by bit, in as many launches", S, float, double,
                   Eigen::bfloat16) {
    std::mt19937_64 random(2);
    for (int kind = 0; kind < static_cast<int>(score_kind::count); kind += simt::sweep_step) {
        const auto problem =
            draw_instance(static_cast<score_kind>(kind), 40 + kind, 5 + kind, 20, kind % 2 == 0, random);
        const auto run = [&](auto make, simt::traffic& counted) {
            posed_there<S> there(problem);
            simt::executor device(simt::all_orders[static_cast<std::size_t>(kind) % std::size(simt::all_orders)]);
            const auto on = make(simt::policy{&device});
            sy::device_workspace<simt::policy> scratch;
            std::string why = sentence_of([&] {
                *there.found.data() =
                    solve(on, sy::auction{}, there.problem,
                          {.expert_of_token = there.experts.data(), .prices = there.prices.data()}, scratch);
            });
            counted = device.counted();
            return std::pair(why, there.solution());
        };
        simt::traffic with, without;
        const auto mine = run([](simt::policy p) { return p; }, with);
        const auto generic = run([](simt::policy p) { return sy::without_kernels(p); }, without);
        CHECK(mine.first == generic.first);
        if (!mine.first.empty()) continue;
        CHECK(mine.second.experts == generic.second.experts);
        CHECK(mine.second.prices == generic.second.prices);
        CHECK(mine.second.result.gap == generic.second.result.gap);
        CHECK(with.launches == without.launches);
    }
}

TEST_CASE("auctions on a device: shifted scores have the same tolerance, and are as good") {
    std::mt19937_64 random(12);
    std::normal_distribution<double> normal;
    instance problem = balanced(draw_instance(score_kind::gaussian, 120, 6, 0, false, random));
    for (double& s : problem.scores.values) s = std::round(1024 * normal(random)) / 1024;
    instance raised = problem;  // 1e12 for some tokens, exactly
    for (index_t t = 0; t < 120; t += 2) {
        for (index_t e = 0; e < 6; ++e) raised.scores(t, e) += 1e12;
    }
    const double ranges = 1e-9 * assignment_tests::sum_of_ranges(problem) + 1e-12;
    const auto best = assignment_tests::solve_as<double>(sy::hungarian{}, problem).result.primal;
    const auto score_of = [&](const assignment_tests::solution& found) {
        double score = 0;
        for (index_t t = 0; t < 120; ++t) score += problem.scores(t, found.experts[static_cast<std::size_t>(t)]);
        return score;
    };
    const auto run = [&](const instance& from, auto make, const sy::auction& solver) {
        posed_there<double> there(from);
        simt::executor device;
        const auto on = make(simt::policy{&device});
        sy::device_workspace<simt::policy> scratch;
        *there.found.data() = solve(on, solver, there.problem,
                                    {.expert_of_token = there.experts.data(), .prices = there.prices.data()}, scratch);
        return there.solution();
    };
    for (const double gap : {0.0005, 0.0}) {
        const sy::auction solver{.gap_per_token = gap};
        const auto check = [&](auto make) {
            const auto expected = run(problem, make, solver);
            const auto found = run(raised, make, solver);
            CHECK(found.result.tolerance == doctest::Approx(expected.result.tolerance).epsilon(1e-12));
            if (gap == 0) CHECK(found.result.tolerance == doctest::Approx(ranges).epsilon(1e-12));
            CHECK(expected.result.converged);
            CHECK(found.result.converged);
            CHECK(best - score_of(found) <= found.result.gap + 1e-9);
        };
        check([](simt::policy p) { return p; });
        check([](simt::policy p) { return sy::without_kernels(p); });
    }
    for (const instance& each : {problem, raised}) {
        const auto found = solve_async<double>(each);
        CHECK(found.result.tolerance == doctest::Approx(ranges).epsilon(1e-12));
        CHECK(found.result.converged == (found.result.gap <= found.result.tolerance));
        CHECK(best - score_of(found) <= found.result.gap + 1e-9);
    }
}

TEST_CASE_TEMPLATE("async_auction: within the quotas and certified, whatever the scores", S, float, double) {
    std::mt19937_64 random(3);
    for (int kind = 0; kind < static_cast<int>(score_kind::count); kind += simt::sweep_step) {
        for (const auto& shape : std::vector<std::pair<index_t, index_t>>{{1, 1}, {7, 1}, {3, 8}, {64, 4}, {200, 9}}) {
            const index_t rows = shape.first;
            const index_t experts = shape.second;
            CAPTURE(kind);
            CAPTURE(rows);
            CAPTURE(experts);
            const auto problem = draw_instance(static_cast<score_kind>(kind), rows, experts, 0, false, random);
            check_certified(problem, solve_async<S>(problem));
            const auto masked = balanced(draw_instance(static_cast<score_kind>(kind), rows, experts, 0, true, random));
            check_certified(masked, solve_async<S>(masked, {.sample_steps = 0, .price_steps = 0, .rounds = 1}));
        }
    }
    covers<operation("auction without waiting")>(simt::policy{});
}

TEST_CASE("async_auction: as good as its step, where it has the rounds") {
    std::mt19937_64 random(4);
    for (const auto kind : {score_kind::gaussian, score_kind::skewed, score_kind::quarters}) {
        const auto problem = balanced(draw_instance(kind, 1200, 8, 0, false, random));
        const auto best = assignment_tests::solve_as<float>(sy::hungarian{}, problem);
        const auto found = solve_async<float>(problem, {.rounds = 200});
        check_certified(problem, found);
        CHECK(found.result.gap <= 1200 * 0.001);
        CHECK(best.result.primal - found.result.primal <= found.result.gap);
    }
}

TEST_CASE("async_auction: forbidden pairs are avoided where they can be, and noted where not") {
    std::mt19937_64 random(5);
    int clean = 0;
    for (int i = 0; i < 12; ++i) {
        const auto problem = balanced(draw_instance(score_kind::gaussian, 64, 4, 40, false, random));
        const auto found = solve_async<float>(problem, {.rounds = 60});
        std::vector<index_t> load(4, 0);
        bool uses_forbidden = false;
        for (index_t t = 0; t < 64; ++t) {
            const auto e = found.experts[static_cast<std::size_t>(t)];
            REQUIRE(e >= 0);
            load[static_cast<std::size_t>(e)] += 1;
            uses_forbidden = uses_forbidden || problem.scores(t, e) == -infinity;
        }
        CHECK(load == std::vector<index_t>(4, 16));
        CHECK(uses_forbidden == (found.result.gap == infinity));
        clean += uses_forbidden ? 0 : 1;
    }
    CHECK(clean >= 10);
}

TEST_CASE("async_auction: the same bits in every order, costs, rows with room behind them") {
    std::mt19937_64 random(6);
    const auto problem = balanced(draw_instance(score_kind::skewed, 700, 6, 0, true, random));
    simt::traffic traffic;
    const sy::async_auction solver;
    const auto first = solve_async<float>(problem, solver, simt::next_order(), 0, &traffic);
    CHECK(traffic.launches <= 4 * (solver.sample_steps + solver.price_steps) + 5 * solver.rounds + 34);
    check_certified(problem, first);
    for (const simt::order& order : simt::all_orders) {
        simt::traffic counted;
        const auto found = solve_async<float>(problem, {}, order, 0, &counted);
        CHECK(found.experts == first.experts);
        CHECK(found.prices == first.prices);
        CHECK(found.result.gap == first.result.gap);
        CHECK(counted == traffic);
    }
    const auto padded = solve_async<float>(problem, {}, simt::next_order(), 3);
    check_certified(problem, padded);
}

TEST_CASE("async_auction: settings and shapes it refuses") {
    std::mt19937_64 random(7);
    const auto problem = balanced(draw_instance(score_kind::gaussian, 16, 4, 0, false, random));
    CHECK(sentence_of([&] { solve_async<float>(problem, {.rounds = 0}); }) ==
          "async_auction::rounds = 0 must be in 1..100000");
    CHECK(sentence_of([&] { solve_async<float>(problem, {.step = -1}); }) ==
          "async_auction::step = -1 must be a number from 0 on");
    auto wrong = problem;
    wrong.lower[0] = 5;
    CHECK(sentence_of([&] { solve_async<float>(wrong); }) != "");
}

TEST_CASE("async_auction: bounds that a mask leaves unmet are noted, and what can never be met is refused") {
    const index_t beyond = index_t{1} << 40;
    std::mt19937_64 random(9);
    for (const auto& bounds : std::vector<std::pair<index_t, index_t>>{{2, 2}, {beyond, beyond}, {0, 0}}) {
        // One token is left of four, and none of these can be met.
        instance problem;
        problem.scores = sy::reference::matrix(4, 2);
        problem.mask = {0, 1, 0, 0};
        problem.lower = {bounds.first, bounds.first};
        problem.upper = {bounds.second, bounds.second};
        const auto found = solve_async<float>(problem);
        CHECK(found.result.gap == infinity);
        CHECK(found.result.dual == infinity);
        CHECK(!found.result.converged);
        CHECK(found.experts[0] == -1);
        CHECK((found.experts[1] >= 0) == (bounds.second > 0));
    }
    // As far as they can be met, they are: an upper bound of more than there are tokens means all of them.
    auto problem = draw_instance(score_kind::gaussian, 200, 5, 0, true, random);
    for (index_t e = 0; e < 5; ++e) {
        problem.lower[e] = e == 1 ? problem.tokens() : 0;
        problem.upper[e] = beyond;
    }
    check_certified(problem, solve_async<float>(problem));
    problem.lower[0] = 1;  // one more than there are tokens
    const auto unmet = solve_async<float>(problem);
    CHECK(unmet.result.gap == infinity);
    CHECK(!unmet.result.converged);

    problem.lower[0] = -1;
    CHECK(sentence_of([&] { solve_async<float>(problem); }) ==
          "the lower quota of expert 0 is -1: it must not be negative");
    problem.lower[0] = 0;
    problem.lower[3] = 4;
    problem.upper[3] = 3;
    CHECK(sentence_of([&] { solve_async<float>(problem); }) ==
          "the lower quota of expert 3, 4, is above its upper quota, 3");
}

TEST_CASE("BASE by kernels: exact with one wait, asynchronous with none, bad scores in the status") {
    std::mt19937_64 random(8);
    const auto problem = balanced(draw_instance(score_kind::gaussian, 600, 8, 0, true, random));
    posed_there<float> there(problem);
    simt::executor device;
    policy_without_waits quiet;
    quiet.device = &device;
    const simt::policy on{&device};
    sy::device_workspace<simt::policy> scratch;
    const sy::training mode{.mask = there.problem.mask};
    const auto best = assignment_tests::solve_as<float>(sy::hungarian{}, problem);
    const auto score_of = [&](const auto& plan) {
        double score = 0;
        for (index_t t = 0; t < 600; ++t) {
            const auto e = plan.view().expert[t];
            CHECK((e < 0) == !sy::reference::is_token(problem.mask, t));
            score += e < 0 ? 0.0 : problem.scores(t, e);
        }
        return score;
    };
    sy::basic_plan<float, simt::memory> plan;
    sy::expert_prices prices;
    for (int step = 0; step < 2; ++step) {
        route_scores(on, sy::base_router<>{.prices = &prices}, there.problem.scores, mode, plan, scratch);
        CHECK(score_of(plan) == doctest::Approx(best.result.primal).epsilon(1e-9));
        CHECK(totals_of(on, plan).status == sy::plan_status::good);
        CHECK(prices.of_expert.size() == 8);
    }
    sy::buffer<double, simt::memory> kept(8);
    std::fill_n(kept.data(), 8, 0.0);
    const sy::base_router<sy::async_auction> router{.solver = {.prices = kept.data(), .found = there.found.data()}};
    for (int step = 0; step < 2; ++step) {
        route_scores(quiet, router, there.problem.scores, mode, plan, scratch);
        CHECK(score_of(plan) <= best.result.primal + best.result.tolerance);
        CHECK(score_of(plan) >= best.result.primal - there.found.data()->gap - best.result.tolerance);
        CHECK(there.found.data()->gap <= 600 * 0.001);
        CHECK(totals_of(on, plan).status == sy::plan_status::good);
        CHECK(totals_of(on, plan).kept == problem.tokens());
    }
    index_t token = 400;
    while (!sy::reference::is_token(problem.mask, token)) ++token;
    there.scores.data()[token * 8 + 3] = std::numeric_limits<float>::quiet_NaN();
    route_scores(quiet, router, there.problem.scores, mode, plan, scratch);
    CHECK(totals_of(on, plan).status == sy::plan_status::bad_score);
    CHECK(totals_of(on, plan).status_token == token);
    CHECK(there.found.data()->gap == infinity);
    CHECK(sentence_of([&] { check(on, plan); }) != "");
    CHECK(sentence_of([&] { route_scores(on, sy::base_router<>{}, there.problem.scores, mode, plan, scratch); }) ==
          "scores[" + std::to_string(token) + ", 3] is NaN");
    for (index_t e = 0; e < 8; ++e) there.scores.data()[token * 8 + e] = -std::numeric_limits<float>::infinity();
    route_scores(quiet, router, there.problem.scores, mode, plan, scratch);
    CHECK(totals_of(on, plan).status == sy::plan_status::unroutable);
    CHECK(totals_of(on, plan).status_token == token);
    CHECK(sentence_of([&] {
              route_scores(on, sy::base_router<sy::async_auction>{.prices = &prices}, there.problem.scores, mode, plan,
                           scratch);
          }) != "");
    covers<operation("BASE, training by the exact solver"), operation("BASE, training without waiting")>(on);
}
