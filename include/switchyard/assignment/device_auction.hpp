// `auction` on a device: scores, mask, experts and prices stay in the device's memory.
//
//   device_workspace<Policy> scratch;
//   const device_assignment_problem<float, Policy::memory::space> problem{
//       .scores = scores.view(), .bounds = balanced_quotas(T, E)};
//   const auto found = solve(policy, auction{}, problem, {.expert_of_token = experts.data()}, scratch);
//
// The problem, its certificate and the promise are those of assignment.hpp and auction.hpp: gap <= tolerance, whatever
// the bounds. The assignment is in general another one than a CPU policy's, since here all open tokens bid at once; it
// is the same at every call, on every system of Thrust, bit by bit, as far as the systems' arithmetic is the same
// (an FMA in a sum of squares may change the standard deviation's last bits, and with it the steps).
//
// Where what is: `scores`, `mask`, `initial_prices` and what `assignment_arrays` names in the policy's memory; arrays
// of bounds on the host. Bids, levels and prices are doubles for any storage type.
//
// What waits: the calling thread enqueues rounds, and reads the number of open tokens once every four. Where few are
// left (detail/device_auction_fill.hpp), it reads a number for each attempt to place them, and two for the certificate;
// the first pass takes two more. On return everything is finished.
//
// What runs on the host, after a copy of all scores there: problems with k > 1 (they are solved there), scores that are
// bad (for the error message), the search for a proof where forbidden pairs keep an auction from ending, and
// the completion of an assignment where a limit of the settings was met before any phase ended. These allocate.
//
// Time: a round is a pass of the open tokens over their scores, two stable sorts of T keys, and some passes over T and
// E; tens to hundreds of rounds, thousands where experts are many and tokens few. Memory from the workspace: about 100
// bytes per token. Thrust's sorts allocate more: see backend/thrust.hpp.
#pragma once

#include <switchyard/assignment/assignment.hpp>
#include <switchyard/assignment/auction.hpp>
#include <switchyard/assignment/detail/completion.hpp>
#include <switchyard/assignment/detail/device_auction_phases.hpp>
#include <switchyard/assignment/quotas.hpp>
#include <switchyard/backend/device.hpp>
#include <switchyard/core/config.hpp>
#include <switchyard/core/matrix_view.hpp>
#include <switchyard/core/memory.hpp>
#include <switchyard/core/sizes.hpp>
#include <switchyard/core/workspace.hpp>

#include <algorithm>
#include <cstdint>
#include <limits>

namespace switchyard {

/// What a solver on a device is given: see assignment_problem.
template <class S, class Space>
struct device_assignment_problem {
    matrix_view<const S, Space> scores;      ///< [T, E]: any storage type and strides
    quotas bounds{};                         ///< on the experts' loads; arrays of them on the host
    token_mask mask{};                       ///< [T], on the device
    index_t choices = 1;                     ///< k > 1: solved on the host
    objective goal = objective::maximise;    ///< minimise: the scores are costs, and +inf forbids
    const double* initial_prices = nullptr;  ///< [E], on the device; or null
};

inline namespace SWITCHYARD_TARGET {
namespace detail {

/// A device's problem, copied to the host.
template <class S>
struct problem_on_host {
    matrix<S> scores;
    buffer<std::uint8_t> mask;
    buffer<double> prices;
    buffer<std::int32_t> experts;
    assignment_problem<S> problem;

    template <device_policy Policy>
    problem_on_host(const Policy& policy, const device_assignment_problem<S, policy_space<Policy>>& given,
                    const double* initial_prices)
        : scores(copy_to_host(policy, given.scores)),
          mask(given.mask.data != nullptr ? given.scores.rows : 0),
          prices(given.scores.columns),
          experts(product_of_sizes("choices", given.scores.rows, given.choices)) {
        if (mask.size() > 0) {
            policy.copy_to_host(mask.data(), given.mask.data, bytes_of<std::uint8_t>(mask.size()));
        }
        if (initial_prices != nullptr) {
            policy.copy_to_host(prices.data(), initial_prices, bytes_of<double>(prices.size()));
        }
        problem = assignment_problem<S>{.scores = scores.view(),
                                        .bounds = given.bounds,
                                        .mask = {mask.size() > 0 ? mask.data() : nullptr, mask.size()},
                                        .choices = given.choices,
                                        .goal = given.goal,
                                        .initial_prices = initial_prices != nullptr ? prices.data() : nullptr};
    }
};

/// The CPU's auction, with copies there and back.
template <device_policy Policy, class S>
assignment_result solve_on_host(const Policy& policy, const auction& solver,
                                const device_assignment_problem<S, policy_space<Policy>>& given,
                                const double* initial_prices, const assignment_arrays& out) {
    const problem_on_host<S> copy(policy, given, initial_prices);
    workspace scratch;
    const assignment_result result = solve(
        seq, solver, copy.problem, {.expert_of_token = copy.experts.data(), .prices = copy.prices.data()}, scratch);
    if (copy.experts.size() > 0) {
        policy.copy_to_device(out.expert_of_token, copy.experts.data(), bytes_of<std::int32_t>(copy.experts.size()));
    }
    if (out.prices != nullptr && copy.prices.size() > 0) {
        policy.copy_to_device(out.prices, copy.prices.data(), bytes_of<double>(copy.prices.size()));
    }
    return result;
}

/// Fails with a proof where forbidden pairs leave no assignment within the bounds.
template <device_policy Policy, class S>
void require_feasible(const Policy& policy, const device_assignment_problem<S, policy_space<Policy>>& given) {
    const problem_on_host<S> copy(policy, given, nullptr);
    const score_source<S> scores{copy.problem.scores, given.goal == objective::minimise};
    const index_t experts = given.bounds.experts;
    workspace scratch;
    const auto scope = scratch.open();
    auto* const concerned = scratch.take<std::uint8_t>(experts);
    std::fill_n(copy.experts.data(), copy.experts.size(), -1);
    const auto made = complete_assignment(scores, given.bounds, copy.problem.mask, given.choices, true,
                                          copy.experts.data(), concerned, scratch);
    if (!made.complete) fail_infeasible(made, experts, given.choices, concerned);
}

/// As require_problem, for what can be said without looking at the mask.
template <class Policy, class S, class Space>
void require_device_problem(const device_assignment_problem<S, Space>& problem, const assignment_arrays& out) {
    // The same checks, of the shapes alone: with a mask, quotas are checked once tokens have been counted.
    const assignment_problem<S> shapes{
        .scores = {nullptr, problem.scores.rows, problem.scores.columns},
        .bounds = {.experts = problem.bounds.experts, .upper_of_all = std::numeric_limits<index_t>::max()},
        .choices = problem.choices};
    require_mask_memory<Policy>(problem.mask);
    require(problem.mask.data == nullptr || problem.mask.size == problem.scores.rows, "a mask of ", problem.mask.size,
            " bytes does not fit ", problem.scores.rows, " tokens");
    require((problem.bounds.lower_bounds == nullptr) == (problem.bounds.upper_bounds == nullptr),
            "quotas need both arrays of bounds or none");
    require_problem(shapes, out);
    require_arrays_apart<Policy>(problem.scores, problem.choices, problem.initial_prices, out);
}

}  // namespace detail

/// An assignment of tokens to experts within the quotas, and close to the best.
template <device_policy Policy, class S>
assignment_result solve(const Policy& policy, const auction& solver,
                        const device_assignment_problem<S, policy_space<Policy>>& problem, const assignment_arrays& out,
                        device_workspace<Policy>& scratch) {
    const auto begun = detail::auction_budget::clock::now();
    detail::require_settings(solver);
    detail::require_device_problem<Policy>(problem, out);
    const index_t experts = problem.scores.columns;
    const auto scope = scratch.open();
    auto* const highest = scratch.template take<double>(problem.scores.rows);
    const detail::device_scores<S, policy_space<Policy>> scores{problem.scores, problem.goal == objective::minimise,
                                                                highest};
    detail::auction_scores facts;
    const detail::device_range range =
        detail::look_at_device_scores(policy, scores, problem.mask, highest, facts, scratch);
    require_quotas(problem.bounds, range.tokens, problem.choices);
    if (range.bad > 0 || problem.choices > 1 || range.tokens == 0) {
        return detail::solve_on_host(policy, solver, problem, problem.initial_prices, out);
    }

    const detail::auction_goal goal = detail::goal_of(solver, facts, range.tokens, 1);
    detail::auction_budget budget = detail::budget_of(solver, begun);
    using phases_type = detail::device_auction_phases<Policy, S>;
    phases_type phases(policy, scores, problem.bounds, problem.mask, facts, range.tokens, out.expert_of_token, scratch);
    bool is_feasible = !facts.forbidden;
    const auto stuck = [&] {
        if (!is_feasible) detail::require_feasible(policy, problem);
        is_feasible = true;
    };
    const auto ended = phases.run(goal, problem.initial_prices, budget, stuck);
    assignment_result result;
    if (ended == phases_type::outcome::placed) {
        result = phases.result();
        result.tolerance = std::max(result.tolerance, goal.gap);
        result.converged = result.gap <= result.tolerance;
        if (scores.are_costs) {
            result.primal = -result.primal;
            result.dual = -result.dual;
        }
        if (out.prices != nullptr) {
            for_each_index(policy, experts, detail::copy_prices{phases.prices(), out.prices});
        }
    } else {
        // One round of bids at the prices reached, and the rest is filled up.
        const auction last{.gap_per_token = solver.gap_per_token, .most_rounds = 1};
        result = detail::solve_on_host(policy, last, problem, phases.present_prices(), out);
    }
    result.iterations = phases.rounds();
    result.steps = phases.phases();
    result.passes = 2 + phases.phases() + phases.certificates();  // later rounds are a few tokens'
    return result;
}

}  // namespace SWITCHYARD_TARGET
}  // namespace switchyard
