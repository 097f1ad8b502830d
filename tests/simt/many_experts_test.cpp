// Assignment by kernels where experts are many: beyond 512 Newton's method has no table of torn tokens, and from some
// 3,000 in double a block needs more shared memory than devices give without being asked.
#include "simt/auction_problem.hpp"
#include "simt/sweep.hpp"

#include <switchyard/assignment/kernel_hungarian.hpp>

#include <random>

using namespace switchyard_test;
using assignment_tests::balanced;
using assignment_tests::draw_instance;
using assignment_tests::score_kind;

TEST_CASE("many experts: steps without a table of torn tokens find prices that leave less to bid for" *
          doctest::skip(simt::sweep_step > 1)) {
    std::mt19937_64 random(1);
    const auto problem = balanced(draw_instance(score_kind::gaussian, 2080, 520, 0, false, random));
    const auto without = solve_async<float>(problem, {.sample_steps = 0, .price_steps = 0, .rounds = 1});
    const auto with = solve_async<float>(problem, {.sample_steps = 0, .price_steps = 12, .rounds = 1});
    check_certified(problem, without);
    check_certified(problem, with);
    CHECK(with.result.gap < 0.6 * without.result.gap);
}

TEST_CASE_TEMPLATE("many experts: 4,096 of them, in more shared memory than is given without asking", S, float,
                   double) {
    std::mt19937_64 random(2);
    for (const bool masked : {false, true}) {
        const auto problem = balanced(draw_instance(score_kind::gaussian, 24, 4096, 0, masked, random));
        check_certified(problem, solve_async<S>(problem, {.sample_steps = 1, .price_steps = 2, .rounds = 2}));
    }
    const auto problem = balanced(draw_instance(score_kind::gaussian, 24, 4096, 0, false, random));
    posed_there<S> there(problem);
    simt::executor device(simt::next_order());
    sy::device_workspace<simt::policy> scratch;
    solve(simt::policy{&device}, sy::async_auction{.sample_steps = 0, .price_steps = 1, .rounds = 1}, there.problem,
          {.expert_of_token = there.experts.data()}, scratch);
    if (sizeof(S) == 8) CHECK(device.peak_shared_bytes() > 48 * 1024);
}

TEST_CASE("many experts: the exact solver's kernels") {
    std::mt19937_64 random(3);
    for (const sy::index_t experts : {520, 4096}) {
        CAPTURE(experts);
        const auto problem = balanced(draw_instance(score_kind::gaussian, 30, experts, 0, false, random));
        posed_there<double> there(problem);
        simt::executor device(simt::next_order());
        sy::device_workspace<simt::policy> scratch;
        const auto result = solve(simt::policy{&device}, sy::hungarian{}, there.problem,
                                  {.expert_of_token = there.experts.data(), .prices = there.prices.data()}, scratch);
        const auto best = assignment_tests::solve_as<double>(sy::hungarian{}, problem);
        CHECK(result.converged);
        CHECK(result.primal == doctest::Approx(best.result.primal).epsilon(1e-9));
        CHECK(is_valid(problem, {result, simt::on_host(there.experts), simt::on_host(there.prices)}));
    }
}
