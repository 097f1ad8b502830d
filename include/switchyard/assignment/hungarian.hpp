// `hungarian`: the exact balanced assignment, in time that grows with T E and not with T^2.
//
// The problem, the result and what certifies it: assignment.hpp; bounds on the loads: quotas.hpp.
//
//   workspace scratch;
//   std::vector<std::int32_t> experts(T);
//   const assignment_problem<float> problem{.scores = scores, .bounds = balanced_quotas(T, E)};
//   const auto found = solve(seq, hungarian{}, problem, {.expert_of_token = experts.data()}, scratch);
//   // found.primal: the score; found.gap <= found.tolerance: nothing better exists
//
// Method: the Hungarian method (Kuhn 1955; successive shortest paths with potentials, Edmonds and Karp 1972) on the
// transportation problem of BASE (Lewis et al., arXiv 2103.16716) with a graph of E experts in place of T x T pairs:
// detail/expert_graph.hpp. At any prices each token goes to its best expert; the tokens above the quotas, few when the
// prices are good, are then moved by shortest paths, which is exact whatever the prices were. Good prices come from the
// same method on a sample of the tokens, and theirs from a smaller sample still; or from the caller (`initial_prices`,
// of an earlier batch).
//
// Scores: any storage type and strides; computed in double. -inf forbids a pair. NaN, +inf, and numbers beyond 1e290
// are errors that name the first (token, expert), row by row; so is a token with every expert forbidden. Prices given
// may be stale, absurd or not finite: that costs time only. Prices returned are those the certificate was made with.
//
// Errors before any work: bounds that cannot hold T tokens (require_quotas). Quotas that only forbidden pairs make
// impossible: an error that names the experts and counts the tokens, which is its proof.
//
// Time: O(T E) and the search for paths: at worst T rounds of O(E^2). Memory from the workspace: about 16 T bytes, and
// 36 to 216 bytes a pair of experts. After the first call for a shape nothing is allocated. One thread.
//
// `iterations` of the result counts shortest paths, those on samples included.
#pragma once

#include <switchyard/assignment/assignment.hpp>
#include <switchyard/assignment/detail/expert_graph.hpp>
#include <switchyard/assignment/detail/expert_paths.hpp>
#include <switchyard/assignment/detail/price_repair.hpp>
#include <switchyard/core/philox.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <string>

namespace switchyard {

/// Settings of the exact solver. They change its time, never its result's score.
struct hungarian {
    /// Tokens kept for each pair of experts as next to move, at most; fewer where an expert has few tokens.
    index_t candidates = 16;
    /// How many times fewer tokens each sample for the prices has; 0: no samples.
    index_t sampling = 8;
};

inline namespace SWITCHYARD_TARGET {
namespace detail {

/// Prices to start from: those given, as far as scores like these can make sense of them; else 0.
inline void start_prices(const double* initial_prices, const score_range& range, index_t experts, double* prices) {
    // Beyond a few times the spread of the scores a price says no more than "dear" or "cheap", and costs digits.
    const double furthest = 4 * std::max(0.0, range.highest - range.lowest);
    for (index_t e = 0; e < experts; ++e) {
        const double price = initial_prices == nullptr ? 0.0 : initial_prices[e];
        prices[e] = std::isnan(price) ? 0.0 : std::clamp(price, -furthest, furthest);
    }
    prices[experts] = 0;  // the market's: prices are counted from it
}

/// Every stride-th token, from a place within its stride that no period in the data can follow.
inline index_t sample_rows(const std::int32_t* rows, index_t tokens, index_t stride, std::int32_t* sample) {
    const index_t size = tokens / stride;
    for (index_t i = 0; i < size; ++i) {
        const auto offset = noise_words(noise_key{}, i, stride).word[0] % static_cast<std::uint64_t>(stride);
        sample[i] = rows[i * stride + static_cast<index_t>(offset)];
    }
    return size;
}

/// Prices from the optimum of samples, the smallest first.
template <class S>
void price_by_samples(expert_graph<S>& graph, const hungarian& solver, const quotas& bounds, const std::int32_t* rows,
                      index_t tokens, std::int32_t* sample) {
    index_t stride = solver.sampling;
    while (tokens / stride / solver.sampling >= 4 * bounds.experts) stride *= solver.sampling;
    for (; stride > 1; stride /= solver.sampling) {
        const index_t size = sample_rows(rows, tokens, stride, sample);
        if (size < bounds.experts) continue;
        graph.pose(sample, size, bounds, tokens);
        graph.settle();
        graph.drain();  // a sample may be infeasible where the whole is not: its prices serve all the same
        graph.count_prices_from_market();
    }
}

/// Writes the assignment and certifies it.
template <class S>
assignment_result read_out(expert_graph<S>& graph, const score_source<S>& scores, const quotas& bounds,
                           const std::int32_t* rows, index_t tokens, std::int32_t* expert_of_token,
                           workspace& scratch) {
    for (index_t i = 0; i < tokens; ++i) expert_of_token[rows[i]] = graph.experts_of_tokens()[i];
    graph.count_prices_from_market();
    graph.price_closed_experts();
    return certify(scores, bounds, 1, expert_of_token, graph.prices(), scratch);
}

/// "expert 3" or "experts 0, 2, 5 and 9 more", of those that `chosen` names.
template <class Chosen>
std::string name_experts(index_t experts, Chosen&& chosen) {
    constexpr index_t most_named = 8;
    std::string names;
    index_t count = 0;
    for (index_t e = 0; e < experts; ++e) {
        if (!chosen(e)) continue;
        if (count < most_named) names += (count > 0 ? ", " : "") + std::to_string(e);
        count += 1;
    }
    if (count > most_named) names += " and " + std::to_string(count - most_named) + " more";
    return (count == 1 ? "expert " : "experts ") + names;
}

/// Why the quotas cannot be met: the experts that the excess can reach are full, and nothing leads out of them.
template <class S>
[[noreturn]] void fail_infeasible(const expert_graph<S>& graph, index_t experts) {
    // With the market among them every other expert is at its lower bound: then it is those that starve.
    const bool starving = graph.market_reached();
    const auto concerned = [&](index_t e) { return graph.reached(e) != starving; };
    index_t tokens = 0, bound = 0;
    std::int32_t first = std::numeric_limits<std::int32_t>::max();
    for (index_t e = 0; e < experts; ++e) {
        if (!concerned(e)) continue;
        tokens += graph.load(e);
        bound += starving ? graph.lower(e) : graph.upper(e);
        first = std::min(first, graph.first_row(e));
    }
    if (starving) {
        fail("the quotas cannot be met: ", name_experts(experts, concerned), " must take at least ", bound,
             " tokens, and only ", tokens, " tokens are allowed there");
    }
    fail("the quotas cannot be met: ", tokens, " tokens (the first is ", first, ") are allowed only on ",
         name_experts(experts, concerned), ", which may take at most ", bound);
}

}  // namespace detail

/// The best assignment of tokens to experts within the quotas.
template <host_policy Policy, class S>
assignment_result solve(const Policy&, const hungarian& solver, const assignment_problem<S>& problem,
                        const assignment_arrays& out, workspace& scratch) {
    require(solver.candidates >= 1, "hungarian::candidates = ", solver.candidates, " must be at least 1");
    require(solver.sampling == 0 || (solver.sampling >= 2 && solver.sampling <= 1'000'000),
            "hungarian::sampling = ", solver.sampling, " must be 0, or 2 to a million");
    const index_t tokens = detail::require_problem(problem, out);
    const quotas& bounds = problem.bounds;
    const detail::score_source<S> scores{problem.scores, problem.goal == objective::minimise};
    const auto scope = scratch.open();
    const detail::score_range range =
        detail::require_scores(scores, problem.mask, problem.choices, scratch.take<double>(scores.experts()));
    auto* const rows = scratch.take<std::int32_t>(tokens);
    auto* const sample = scratch.take<std::int32_t>(solver.sampling == 0 ? 0 : tokens / solver.sampling);
    index_t seen = 0;
    for (index_t t = 0; t < scores.tokens(); ++t) {
        out.expert_of_token[t] = -1;
        if (problem.mask(t)) rows[seen++] = static_cast<std::int32_t>(t);
    }

    detail::expert_graph<S> graph(scores, tokens, solver.candidates, scratch);
    detail::start_prices(problem.initial_prices, range, bounds.experts, graph.prices());
    graph.pose(rows, tokens, bounds, tokens);
    // The first look decides: prices that leave this little to move need no better ones.
    const index_t little = std::max(bounds.experts, tokens / 32);
    if (graph.settle() > little && solver.sampling != 0) {
        detail::price_by_samples(graph, solver, bounds, rows, tokens, sample);
        graph.pose(rows, tokens, bounds, tokens);
        graph.settle();
    }
    if (!graph.drain()) detail::fail_infeasible(graph, bounds.experts);

    const auto read_out = [&] {
        return detail::read_out(graph, scores, bounds, rows, tokens, out.expert_of_token, scratch);
    };
    assignment_result result = read_out();
    const index_t repairs = result.converged ? 0 : 1;
    if (repairs > 0) {
        graph.repair();
        result = read_out();
    }
    result.iterations = graph.rounds();
    result.repairs = repairs;
    if (scores.are_costs) {
        result.primal = -result.primal;
        result.dual = -result.dual;
    }
    if (out.prices != nullptr) std::copy_n(graph.prices(), bounds.experts, out.prices);
    return result;
}

}  // namespace SWITCHYARD_TARGET
}  // namespace switchyard
