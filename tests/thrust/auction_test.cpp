// The auction on Thrust: valid, within its promise of the optimum that the CPU's exact solver finds, and the same at
// every call.
#include "assignment/instances.hpp"
#include "thrust/device.hpp"

#include <switchyard/assignment/device_auction.hpp>

#include <algorithm>
#include <cmath>

using assignment_tests::draw_instance;
using assignment_tests::infinity;
using assignment_tests::instance;
using assignment_tests::is_valid;
using assignment_tests::sentence_of;
using assignment_tests::solution;
using assignment_tests::sum_of_ranges;
using kind = assignment_tests::score_kind;
using switchyard_test::covers;
using switchyard_test::device;
using switchyard_test::device_mask;
using switchyard_test::device_memory;
using switchyard_test::device_scratch;
using switchyard_test::operation;
using switchyard_test::said;
namespace sy = switchyard;
namespace reference = sy::reference;
using sy::index_t;

namespace {

/// How a problem is given: everything that the instance does not say.
struct manner {
    index_t choices = 1;
    bool as_costs = false;
    bool by_columns = false;
    const std::vector<double>* prices = nullptr;
};

solution solve_there(const sy::auction& solver, const instance& problem, device_scratch& scratch,
                     const manner& how = {}) {
    const index_t rows = problem.scores.rows, experts = problem.scores.columns;
    sy::matrix<float> host = how.by_columns ? sy::matrix<float>(experts, rows) : sy::matrix<float>(rows, experts);
    for (index_t t = 0; t < rows; ++t) {
        for (index_t e = 0; e < experts; ++e) {
            const auto score = static_cast<float>(how.as_costs ? -problem.scores(t, e) : problem.scores(t, e));
            host.data()[how.by_columns ? e * rows + t : t * experts + e] = score;
        }
    }
    const auto scores = sy::copy_to_device(device, host);
    const auto view = sy::const_view(how.by_columns ? sy::transposed(scores.view()) : scores.view());
    const device_mask mask(problem.mask);
    sy::buffer<std::int32_t, device_memory> expert(rows * how.choices);
    sy::buffer<double, device_memory> prices(experts);
    if (how.prices != nullptr) prices = sy::copy_to_device(device, std::span(*how.prices));
    const sy::device_assignment_problem<float, device_memory::space> posed{
        .scores = view,
        .bounds = problem.bounds(),
        .mask = mask.get(),
        .choices = how.choices,
        .goal = how.as_costs ? sy::objective::minimise : sy::objective::maximise,
        .initial_prices = how.prices != nullptr ? prices.data() : nullptr};
    solution found;
    found.result = solve(device, solver, posed, {expert.data(), prices.data()}, scratch);
    found.experts.resize(static_cast<std::size_t>(rows * how.choices));
    found.prices.resize(static_cast<std::size_t>(experts));
    if (rows > 0) {
        device.copy_to_host(found.experts.data(), expert.data(), found.experts.size() * sizeof(std::int32_t));
    }
    device.copy_to_host(found.prices.data(), prices.data(), found.prices.size() * sizeof(double));
    return found;
}

/// What is wrong with a solution, in the light of the optimum.
std::string fault_of(const instance& problem, const solution& found, double best) {
    double magnitude = 0;
    for (index_t t = 0; t < problem.scores.rows; ++t) {
        const auto e = found.experts[static_cast<std::size_t>(t)];
        if (e >= 0) magnitude += std::abs(problem.scores(t, e));
    }
    const auto& result = found.result;
    const double digits = 1e-12 * magnitude;
    if (!is_valid(problem, found)) return "not an assignment within the bounds";
    if (!result.converged) return said("a gap of ", result.gap, ", not ", result.tolerance);
    if (result.gap < 0 || result.gap > result.tolerance) return said("a gap of ", result.gap);
    if (best < result.primal - digits) return said("better than the optimum, ", best, ": ", result.primal);
    if (best > result.primal + result.gap + digits) return said("optimum ", best, " above ", result.dual);
    // The certificate again, by plain loops.
    const double slack = result.gap + 1e-9 * magnitude / std::max(1.0, static_cast<double>(result.tokens)) + 1e-12;
    if (!assignment_tests::is_complementary(problem, found, slack)) return "prices that prove nothing";
    return "";
}

std::string fault_of(const sy::auction& solver, const instance& problem, device_scratch& scratch) {
    solution exact;
    const std::string refused =
        sentence_of([&] { exact = assignment_tests::solve_as<float>(sy::hungarian{}, problem); });
    solution found;
    const std::string sentence = sentence_of([&] { found = solve_there(solver, problem, scratch); });
    if (sentence != "" || refused != "") {
        // Proofs may name other sets; both must have one.
        const bool same = refused != "" && sentence.substr(0, 24) == refused.substr(0, 24);
        return same ? "" : said("'", sentence, "' instead of '", refused, "'");
    }
    return fault_of(problem, found, exact.result.primal);
}

}  // namespace

TEST_CASE("auction on Thrust: shifted scores have the same tolerance; optimal is converged") {
    device_scratch scratch;
    std::mt19937_64 random(17);
    std::normal_distribution<double> normal;
    instance problem{reference::matrix(96, 4), {24, 24, 24, 24}, {24, 24, 24, 24}, {}};
    for (double& s : problem.scores.values) s = std::round(64 * normal(random)) / 64;
    instance raised = problem;  // exact in float
    for (index_t t = 0; t < 96; t += 3) {
        for (index_t e = 0; e < 4; ++e) raised.scores(t, e) += 65536;
    }
    for (const double gap : {0.0005, 0.0}) {
        const solution expected = solve_there({.gap_per_token = gap}, problem, scratch);
        const solution found = solve_there({.gap_per_token = gap}, raised, scratch);
        CHECK(found.result.tolerance == expected.result.tolerance);
        CHECK(found.result.converged);
        CHECK(found.experts == expected.experts);
        if (gap == 0) CHECK(found.result.tolerance == doctest::Approx(1e-9 * sum_of_ranges(problem) + 1e-12));
    }
    instance stairs{reference::matrix(60, 60), {}, {}, {}};
    for (double& s : stairs.scores.values) s = -assignment_tests::infinity;
    stairs.lower = stairs.upper = reference::filled<index_t>(60, 1);
    for (index_t t = 0; t < 60; ++t) {
        stairs.scores(t, t) = 0;
        if (t + 1 < 60) stairs.scores(t, t + 1) = 100;
    }
    const solution found = solve_there({.gap_per_token = 0}, stairs, scratch);
    CHECK(found.result.primal == 0);
    CHECK(found.result.tolerance == doctest::Approx(1e-9 * 59 * 100 + 1e-12));
    CHECK(found.result.converged);
}

TEST_CASE("auction on Thrust: the worked example") {
    device_scratch scratch;
    const instance problem{{{1, 0}, {.9, .3}, {.8, .6}, {.7, .05}}, {2, 2}, {2, 2}, {}};
    const solution found = solve_there(sy::auction{}, problem, scratch);
    CHECK(found.experts == std::vector<std::int32_t>{0, 1, 1, 0});
    CHECK(found.result.primal == doctest::Approx(2.6));
    CHECK(found.result.converged);
}

TEST_CASE("auction on Thrust: as the page shows it") {
    using Policy = switchyard_test::device_policy;
    const auto& policy = device;
    const index_t T = 40, E = 4;
    const auto scores = sy::copy_to_device(device, switchyard_test::gaussian<float>(T, E, 3));
    // [auction]
    sy::device_workspace<Policy> scratch;
    sy::device_buffer<Policy, std::int32_t> expert(T);
    sy::device_buffer<Policy, double> prices(E);
    const sy::device_assignment_problem<float, Policy::memory::space> problem{.scores = scores.view(),
                                                                              .bounds = sy::balanced_quotas(T, E)};
    const auto found = solve(policy, sy::auction{}, problem, {expert.data(), prices.data()}, scratch);
    // found.gap <= found.tolerance: certified on the device from all scores, and read back
    // [/auction]
    CHECK(found.converged);
    CHECK(found.tokens == 40);
    CHECK(found.gap <= found.tolerance);
}

TEST_CASE("auction on Thrust: small instances of every kind, bounds, mask and forbidden pairs") {
    device_scratch scratch;
    std::mt19937_64 random(51);
    for (int i = 0; i < 240; ++i) {
        CAPTURE(i);
        const auto drawn = static_cast<kind>(i % static_cast<int>(kind::count));
        const auto rows = static_cast<index_t>(random() % 12);
        const auto experts = static_cast<index_t>(1 + random() % 5);
        const instance problem = draw_instance(drawn, rows, experts, i % 3 == 0 ? 60 : 0, i % 4 == 0, random);
        CAPTURE(problem);
        CHECK(fault_of(sy::auction{.gap_per_token = i % 2 == 0 ? 0.0005 : 0.05}, problem, scratch) == "");
    }
    covers<operation("auction")>(device);
}

TEST_CASE("auction on Thrust: larger instances, balanced and with room to spare") {
    device_scratch scratch;
    std::mt19937_64 random(52);
    for (const auto drawn : {kind::gaussian, kind::skewed, kind::quarters, kind::binary, kind::duplicated_rows}) {
        for (const index_t experts : {7, 16}) {
            CAPTURE(static_cast<int>(drawn));
            CAPTURE(experts);
            instance problem = draw_instance(drawn, 600, experts, experts == 7 ? 0 : 40, experts == 16, random);
            const index_t tokens = problem.tokens();
            const auto set_bounds = [&](const sy::quotas& bounds) {
                for (index_t e = 0; e < experts; ++e) {
                    problem.lower[e] = bounds.lower(e);
                    problem.upper[e] = bounds.upper(e);
                }
            };
            set_bounds(sy::balanced_quotas(tokens, experts));
            CHECK(fault_of(sy::auction{}, problem, scratch) == "");
            set_bounds(sy::capacity_quotas(tokens / experts * 5 / 4 + 1, experts));
            CHECK(fault_of(sy::auction{}, problem, scratch) == "");
            problem.upper[0] = 0;  // an expert that takes nobody, one that takes anybody, one that must take many
            problem.upper[1] = 10 * tokens;
            problem.lower[2] = problem.upper[2];
            CHECK(fault_of(sy::auction{}, problem, scratch) == "");
        }
    }
}

TEST_CASE("auction on Thrust: the last few of many tokens take what is free") {
    device_scratch scratch;
    std::mt19937_64 random(57);
    index_t rounds = 0;
    for (const index_t room : {0, 1, 5}) {
        CAPTURE(room);
        instance problem = draw_instance(kind::gaussian, 6000, 32, 30, false, random);
        problem.lower = reference::filled<index_t>(32, room == 5 ? 150 : 187);
        problem.upper = reference::filled<index_t>(32, 188 + room);
        CHECK(fault_of(sy::auction{}, problem, scratch) == "");
        if (room < 5) rounds += solve_there(sy::auction{}, problem, scratch).result.iterations;
    }
    CHECK(rounds < 160);  // 192 until the last one has bid
}

TEST_CASE("auction on Thrust: ties spread at once") {
    device_scratch scratch;
    instance problem;
    problem.scores = reference::matrix(1000, 16);
    for (index_t i = 0; i < 16000; ++i) problem.scores(i / 16, i % 16) = 1.5;
    problem.lower = reference::filled<index_t>(16, 62);
    problem.upper = reference::filled<index_t>(16, 63);
    const solution found = solve_there(sy::auction{}, problem, scratch);
    CHECK(fault_of(problem, found, 1500) == "");
    CHECK(found.result.iterations <= 4);
}

TEST_CASE("auction on Thrust: any prices to begin with, costs, strides, and the same again") {
    device_scratch scratch;
    std::mt19937_64 random(53);
    std::normal_distribution<double> normal;
    for (int i = 0; i < 32; ++i) {
        CAPTURE(i);
        const instance problem =
            draw_instance(static_cast<kind>(i % static_cast<int>(kind::count)), 40, 6, 0, false, random);
        const double best = assignment_tests::solve_as<float>(sy::hungarian{}, problem).result.primal;
        const solution cold = solve_there(sy::auction{}, problem, scratch);
        REQUIRE(fault_of(problem, cold, best) == "");
        std::vector<double> prices(6);
        const double size = i % 4 == 0 ? 1e300 : i % 4 == 1 ? 30.0 : 0.1;
        for (double& price : prices) price = random() % 5 == 0 ? std::nan("") : size * normal(random);
        CHECK(fault_of(problem, solve_there(sy::auction{}, problem, scratch, {.prices = &prices}), best) == "");
        CHECK(fault_of(problem, solve_there(sy::auction{}, problem, scratch, {.prices = &cold.prices}), best) == "");
        device_scratch fresh;
        const solution strided = solve_there(sy::auction{}, problem, fresh, {.by_columns = true});
        CHECK(strided.experts == cold.experts);
        CHECK(strided.prices == cold.prices);
        CHECK(strided.result.gap == cold.result.gap);
        const solution costs = solve_there(sy::auction{}, problem, scratch, {.as_costs = true});
        CHECK(costs.experts == cold.experts);
        CHECK(costs.result.primal == -cold.result.primal);
    }
}

TEST_CASE("auction on Thrust: what the host does") {
    device_scratch scratch;
    std::mt19937_64 random(54);
    instance problem = draw_instance(kind::gaussian, 60, 5, 0, true, random);
    const index_t tokens = problem.tokens();
    const auto bounds = [&](index_t lower, index_t upper) {
        problem.lower = reference::filled<index_t>(5, lower);
        problem.upper = reference::filled<index_t>(5, upper);
    };
    // Several experts per token.
    bounds(0, tokens);
    const solution two = solve_there(sy::auction{}, problem, scratch, {.choices = 2});
    CHECK(two.result.converged);
    CHECK(two.result.tokens == tokens);
    for (index_t t = 0; t < 60; ++t) {
        const std::int32_t* const experts = two.experts.data() + 2 * t;
        CHECK((experts[0] >= 0) == reference::is_token(problem.mask, t));
        CHECK((experts[0] < 0 || experts[0] != experts[1]));
    }
    // A limit that no phase can meet: complete all the same, and the gap is a bound.
    bounds(tokens / 5, tokens / 5 + 1);
    const double best = assignment_tests::solve_as<float>(sy::hungarian{}, problem).result.primal;
    const solution cut = solve_there(sy::auction{.most_rounds = 1}, problem, scratch);
    CHECK(is_valid(problem, cut));
    CHECK(cut.result.primal + cut.result.gap >= best - 1e-9);
    CHECK(cut.result.converged == (cut.result.gap <= cut.result.tolerance));
    // A proof.
    for (index_t t = 0; t < 60; ++t) problem.scores(t, 3) = -infinity;
    CHECK(sentence_of([&] { solve_there(sy::auction{}, problem, scratch); }).find("the quotas cannot be met") == 0);
    // Bad scores.
    problem.scores(7, 1) = std::nan("");
    problem.mask[7] = 1;
    CHECK(sentence_of([&] { solve_there(sy::auction{}, problem, scratch); }) == "scores[7, 1] is NaN");
    problem.lower[0] = 61;
    CHECK(sentence_of([&] { solve_there(sy::auction{}, problem, scratch); }).find("the lower quota of expert 0, 61") ==
          0);
}

TEST_CASE("auction on Thrust: no row, no token, and a workspace that stays as it is") {
    device_scratch scratch;
    instance nothing;
    nothing.scores = reference::matrix(0, 3);
    nothing.lower = nothing.upper = reference::filled<index_t>(3, 0);
    CHECK(solve_there(sy::auction{}, nothing, scratch).result.converged);
    std::mt19937_64 random(55);
    instance padding = draw_instance(kind::gaussian, 4, 3, 0, false, random);
    padding.mask = reference::filled<std::uint8_t>(4, 0);
    padding.lower = padding.upper = reference::filled<index_t>(3, 0);
    CHECK(solve_there(sy::auction{}, padding, scratch).experts == std::vector<std::int32_t>(4, -1));
    const instance problem = draw_instance(kind::skewed, 300, 8, 0, false, random);
    solve_there(sy::auction{}, problem, scratch);
    const index_t held = scratch.size();
    solve_there(sy::auction{}, problem, scratch);
    CHECK(scratch.size() == held);
}

TEST_CASE("auction on Thrust: BASE trains balanced, and close to the best") {
    device_scratch scratch;
    std::mt19937_64 random(56);
    for (const bool with_mask : {false, true}) {
        const instance drawn = draw_instance(kind::skewed, 500, 12, 0, with_mask, random);
        const index_t tokens = drawn.tokens();
        sy::matrix<float> host(500, 12);
        for (index_t i = 0; i < 6000; ++i) host.data()[i] = static_cast<float>(drawn.scores(i / 12, i % 12));
        const device_mask mask(drawn.mask);
        switchyard_test::device_plan<float> plan;
        sy::expert_prices prices;
        const sy::base_router<sy::auction> router{.prices = &prices};
        for (int step = 0; step < 2; ++step) {  // the second from the first one's prices
            sy::route_scores(device, router, sy::copy_to_device(device, host), sy::training{.mask = mask.get()}, plan,
                             scratch);
            sy::check(device, plan);
            CHECK(prices.of_expert.size() == 12);
        }
        const auto made = sy::copy_to_host(device, plan);
        const auto exact = sy::route_scores(sy::seq, sy::base_router{}, host, sy::training{.mask = drawn.padding()});
        const auto& got = made.view();
        CHECK(got.totals->kept == tokens);
        double score = 0, best = 0;
        for (index_t t = 0; t < 500; ++t) {
            const bool is_token = reference::is_token(drawn.mask, t);
            REQUIRE((got.slot[t] >= 0) == is_token);
            if (!is_token) continue;
            const float chosen = host.data()[t * 12 + got.expert[t]];
            CHECK(got.gate[t] == doctest::Approx(1 / (1 + std::exp(-static_cast<double>(chosen)))));
            score += static_cast<double>(chosen);
            best += static_cast<double>(host.data()[t * 12 + exact.view().expert[t]]);
        }
        for (index_t e = 0; e < 12; ++e) {
            CHECK(got.load_after[e] >= tokens / 12);
            CHECK(got.load_after[e] <= tokens / 12 + 1);
        }
        CHECK(score <= best + 1e-6);
        CHECK(score >= best - 0.002 * static_cast<double>(tokens));  // 0.0005 std, std below 3
    }
    covers<operation("BASE, training by the auction")>(device);
}
