// `auction`: the balanced assignment by bidding, within a bound of the best that it promises and proves.
//
// The problem, the result and what certifies it: assignment.hpp; bounds on the loads: quotas.hpp.
//
//   workspace scratch;
//   std::vector<std::int32_t> experts(T);
//   const assignment_problem<float> problem{.scores = scores, .bounds = balanced_quotas(T, E)};
//   const auto found = solve(seq, auction{}, problem, {.expert_of_token = experts.data()}, scratch);
//   // found.gap: nothing better by more than this exists; found.tolerance: what was promised
//
// Method (Bertsekas 1979, 1988; Bertsekas and Castanon 1989, 1992; BASE uses one, Lewis et al., arXiv 2103.16716):
// tokens bid for places at experts. A bid makes the expert as good for the token as its next best expert, and adds a
// step eps. It takes the cheapest place of the expert, whose token bids again elsewhere. At the end every token is
// within eps of its best expert at the prices, so the sum is within T k eps of the best. Places that may stay empty are
// held by dummies (detail/auction_market.hpp): with them the bound holds for any bounds on the loads and any prices to
// start from, those of larger steps or of samples (detail/auction_phases.hpp), or given (`initial_prices`).
//
// Method and code that decide are independent of `hungarian`, so each checks the other. Both draw samples, complete
// what is left open, prove that nothing fits and add up certificates with the same code (detail/sample.hpp,
// completion.hpp, certificate.hpp), which tests judge by plain loops of their own.
//
// Promise: gap <= tolerance = gap_per_token std(s) T, or what counts as exact if that is more. std is of the scores
// that are not forbidden about their tokens' means; exact is 1e-9 k sum_t (the range of t's scores that are not
// forbidden) + 1e-12. Neither changes when all scores of a token are shifted. The promise holds unless a limit of the
// settings was met first (`converged` false; the assignment is still complete and its gap certified), or a token's
// scores differ by more digits than a double has.
//
// Scores: any storage type and strides; bids in the compute type or double, certified in double. Bad scores, tokens
// with too few experts, and bounds that cannot be met are errors before any bid, as in `hungarian`.
//
// Time: one pass over the scores to begin with and one for each certificate, and O(E) per bid: T bids and usually few
// more per phase, two to five phases. Identical tokens raise prices eps by eps; `most_rounds` and `time_limit` bound
// it. Memory from the workspace: about 40 bytes per place. Nothing is allocated after the first call for a shape. The
// first pass, the bids of large rounds and the certificates are shared among the policy's threads; the result is
// bitwise identical for every CPU policy, except where a time limit stops it. On a Thrust policy: device_auction.hpp.
//
// `iterations` of the result counts rounds of bids, `steps` phases.
#pragma once

#include <switchyard/assignment/assignment.hpp>
#include <switchyard/assignment/detail/auction_phases.hpp>
#include <switchyard/assignment/detail/auction_scores.hpp>
#include <switchyard/assignment/detail/completion.hpp>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>

namespace switchyard {

/// Settings of the auction.
struct auction {
    /// How far a token may be from the best on average, in standard deviations of a token's scores. 0: as exact as
    /// `hungarian`.
    double gap_per_token = 0.0005;
    /// Stops after so many rounds, all phases together; 0: never. The result is the same at every call.
    index_t most_rounds = 1'000'000;
    /// Stops after so many seconds; 0: never.
    double time_limit = 0;
};

inline namespace SWITCHYARD_TARGET {
namespace detail {

inline void require_settings(const auction& solver) {
    require(solver.gap_per_token >= 0 && std::isfinite(solver.gap_per_token),
            "auction::gap_per_token = ", solver.gap_per_token, " must be a number from 0 on");
    require(solver.most_rounds >= 0, "auction::most_rounds = ", solver.most_rounds, " must not be negative");
    require(solver.time_limit >= 0, "auction::time_limit = ", solver.time_limit, " must not be negative");
}

inline auction_budget budget_of(const auction& solver, auction_budget::clock::time_point begun) {
    auction_budget budget;
    budget.rounds_left = solver.most_rounds == 0 ? std::numeric_limits<index_t>::max() : solver.most_rounds;
    // Limits of more than a century are none: the clock cannot hold them.
    if (solver.time_limit > 0 && solver.time_limit < 3e9) {
        budget.has_deadline = true;
        budget.deadline = begun + std::chrono::duration_cast<auction_budget::clock::duration>(
                                      std::chrono::duration<double>(solver.time_limit));
    }
    return budget;
}

inline auction_goal goal_of(const auction& solver, const auction_scores& facts, index_t tokens, index_t choices) {
    auction_goal goal;
    goal.gap = solver.gap_per_token * facts.deviation * static_cast<double>(tokens);
    // Steps below this would be lost when they are added to prices of the size of scores' differences.
    const double least = std::max(std::ldexp(facts.span(), -46), 1e-300);
    // A tenth is left to rounding.
    goal.last_step = std::max(least, 0.9 * goal.gap / static_cast<double>(std::max(index_t{1}, tokens * choices)));
    return goal;
}

}  // namespace detail

/// An assignment of tokens to experts within the quotas, and close to the best.
template <host_policy Policy, class S>
assignment_result solve(const Policy& policy, const auction& solver, const assignment_problem<S>& problem,
                        const assignment_arrays& out, workspace& scratch) {
    const auto begun = detail::auction_budget::clock::now();
    detail::require_settings(solver);
    const index_t tokens = detail::require_problem(problem, out);
    detail::require_arrays_apart<Policy>(problem.scores, problem.choices, problem.initial_prices, out);
    const quotas& bounds = problem.bounds;
    const index_t choices = problem.choices;
    const detail::score_source<S> scores{problem.scores, problem.goal == objective::minimise};
    const auto scope = scratch.open();
    const detail::auction_scores facts =
        detail::require_auction_scores(policy, scores, problem.mask, tokens, choices, scratch);
    std::fill_n(out.expert_of_token, scores.tokens() * choices, -1);
    if (facts.forbidden) {
        auto* const concerned = scratch.take<std::uint8_t>(bounds.experts);
        const auto made = detail::complete_assignment(scores, bounds, problem.mask, choices, true, out.expert_of_token,
                                                      concerned, scratch);
        if (!made.complete) detail::fail_infeasible(made, bounds.experts, choices, concerned);
    }

    const detail::auction_goal goal = detail::goal_of(solver, facts, tokens, choices);
    detail::auction_budget budget = detail::budget_of(solver, begun);
    detail::auction_phases<Policy, S> phases(policy, scores, problem, facts, tokens, out.expert_of_token, scratch);
    assignment_result result = phases.run(goal, problem.initial_prices, budget);
    result.tolerance = std::max(result.tolerance, goal.gap);
    result.converged = result.gap <= result.tolerance;
    result.iterations = phases.rounds();
    result.steps = phases.phases();
    result.passes = 1 + phases.passes();
    if (scores.are_costs) {
        result.primal = -result.primal;
        result.dual = -result.dual;
    }
    detail::order_choices(scores, choices, out.expert_of_token);
    if (out.prices != nullptr) std::copy_n(phases.prices(), bounds.experts, out.prices);
    return result;
}

}  // namespace SWITCHYARD_TARGET
}  // namespace switchyard
