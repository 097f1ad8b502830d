// The optimum of an assignment problem by somebody else's code: LEMON's network simplex. And what every solver's answer
// is held against, given that optimum.
//
// The flow: each token sends k units, at most one along each arc to an expert; from each expert an arc with its lower
// and upper quota leads to a sink. A forbidden pair has no arc. Scores are integers below 2^24 in size, so every sum of
// them, LEMON's and the solver's, is exact: an optimum is equal to it, or it is none.
#pragma once

#include "assignment/instances.hpp"

#include <switchyard/backend/eigen.hpp>

#include <lemon/network_simplex.h>
#include <lemon/smart_graph.h>

#include <algorithm>
#include <optional>
#include <set>

namespace assignment_tests {

/// An instance, scores to be maximised, with what else a solver is told.
struct transport {
    instance problem;
    index_t choices = 1;
    sy::objective goal = sy::objective::maximise;  ///< minimise: the solver is given the scores negated, as costs

    index_t tokens() const { return problem.tokens(); }
    index_t experts() const { return problem.scores.columns; }
};

inline std::ostream& operator<<(std::ostream& out, const transport& posed) {
    return out << "k = " << posed.choices << (posed.goal == sy::objective::minimise ? ", given as costs" : "")
               << posed.problem;
}

/// The largest sum of scores, or nothing where the quotas cannot be met.
inline std::optional<double> lemon_optimum(const transport& posed) {
    using amount = std::int64_t;
    using digraph = lemon::SmartDigraph;
    const instance& problem = posed.problem;
    digraph graph;
    graph.reserveNode(static_cast<int>(problem.scores.rows + posed.experts() + 1));
    const auto sink = graph.addNode();
    std::vector<digraph::Node> expert(static_cast<std::size_t>(posed.experts()));
    for (auto& node : expert) node = graph.addNode();

    digraph::ArcMap<amount> lower(graph, 0), upper(graph, 1), cost(graph, 0);
    digraph::NodeMap<amount> supply(graph, 0);
    for (index_t e = 0; e < posed.experts(); ++e) {
        const auto arc = graph.addArc(expert[static_cast<std::size_t>(e)], sink);
        lower[arc] = problem.lower[e];
        upper[arc] = problem.upper[e];
    }
    for (index_t t = 0; t < problem.scores.rows; ++t) {
        if (!reference::is_token(problem.mask, t)) continue;
        const auto token = graph.addNode();
        supply[token] = posed.choices;
        for (index_t e = 0; e < posed.experts(); ++e) {
            if (problem.scores(t, e) == -infinity) continue;
            const auto arc = graph.addArc(token, expert[static_cast<std::size_t>(e)]);
            upper[arc] = 1;
            cost[arc] = -static_cast<amount>(problem.scores(t, e));
        }
    }
    supply[sink] = -posed.tokens() * posed.choices;

    lemon::NetworkSimplex<digraph, amount, amount> simplex(graph);
    simplex.lowerMap(lower).upperMap(upper).costMap(cost).supplyMap(supply);
    if (simplex.run() != decltype(simplex)::OPTIMAL) return std::nullopt;
    return -static_cast<double>(simplex.totalCost());
}

/// How scores lie in memory.
enum class layout { dense, by_columns, gaps_between_rows, gaps_between_columns, last_row_first, count };

/// A problem's scores in a storage type and layout; NaN wherever a solver must not look, padding's rows included.
template <class S>
struct stored_scores {
    std::vector<S> memory;
    sy::matrix_view<const S> view;

    stored_scores(const transport& posed, layout where) {
        const reference::matrix& scores = posed.problem.scores;
        const index_t rows = scores.rows, columns = scores.columns;
        memory.assign(static_cast<std::size_t>(2 * rows * columns + 3 * rows + 1),
                      sy::store_scalar<S>(std::numeric_limits<sy::compute_t<S>>::quiet_NaN()));
        sy::matrix_view<S> place(memory.data(), rows, columns);
        if (where == layout::by_columns) place = {memory.data(), rows, columns, 1, std::max<index_t>(rows, 1)};
        if (where == layout::gaps_between_rows) place = {memory.data() + 1, rows, columns, columns + 3, 1};
        if (where == layout::gaps_between_columns) place = {memory.data(), rows, columns, 2 * columns, 2};
        if (where == layout::last_row_first && rows > 0) {
            place = {memory.data() + (rows - 1) * columns, rows, columns, -columns, 1};
        }
        const double sign = posed.goal == sy::objective::minimise ? -1 : 1;
        for (index_t t = 0; t < rows; ++t) {
            if (!reference::is_token(posed.problem.mask, t)) continue;
            for (index_t e = 0; e < columns; ++e) {
                const double score = sign * scores(t, e);
                place(t, e) = sy::store_scalar<S>(static_cast<sy::compute_t<S>>(score));
                REQUIRE(static_cast<double>(sy::load_scalar(place(t, e))) == score);  // the instance is exact in S
            }
        }
        view = place;
    }
};

/// Runs a solver. Every output is filled with nonsense before.
template <class S, class Solver, class Policy>
solution solve_transport(const Policy& policy, const Solver& solver, const transport& posed, layout where,
                         const double* initial_prices = nullptr) {
    const stored_scores<S> scores(posed, where);
    solution found;
    found.experts.assign(static_cast<std::size_t>(posed.problem.scores.rows * posed.choices), 12345);
    found.prices.assign(static_cast<std::size_t>(posed.experts()), 12345.0);
    sy::workspace scratch;
    const sy::assignment_problem<S> problem{.scores = scores.view,
                                            .bounds = posed.problem.bounds(),
                                            .mask = posed.problem.padding(),
                                            .choices = posed.choices,
                                            .goal = posed.goal,
                                            .initial_prices = initial_prices};
    found.result = solve(policy, solver, problem, {found.experts.data(), found.prices.data()}, scratch);
    return found;
}

/// The certificate by plain loops, and whether the assignment is one at all.
struct audit {
    std::string wrong;         ///< the first rule that is broken, empty if none is
    double total_score = 0;    ///< of scores, to be maximised
    double magnitude = 0;      ///< sum of |score|
    double prices_paid = 0;    ///< sum of |price| times load or bound: what cancels in the dual
    long double dual = 0;      ///< D(prices)
    long double gap = 0;       ///< sum of what tokens and experts fall short of complementary slackness
    double largest_slack = 0;  ///< the largest single term of it
};

/// What the k largest margins of a token have over the k it got.
inline long double regret_of(const transport& posed, index_t token, const std::int32_t* chosen,
                             const std::vector<double>& prices, long double& best) {
    std::vector<long double> margins;
    const auto margin = [&](index_t e) -> long double {
        return static_cast<long double>(posed.problem.scores(token, e)) - prices[static_cast<std::size_t>(e)];
    };
    for (index_t e = 0; e < posed.experts(); ++e) {
        if (posed.problem.scores(token, e) > -infinity) margins.push_back(margin(e));
    }
    std::sort(margins.rbegin(), margins.rend());
    best = 0;
    long double got = 0;
    for (index_t j = 0; j < posed.choices; ++j) {
        best += margins[static_cast<std::size_t>(j)];
        got += margin(chosen[j]);
    }
    return best - got;
}

inline audit audit_of(const transport& posed, const solution& found) {
    audit seen;
    const index_t k = posed.choices;
    auto load = reference::filled<index_t>(posed.experts(), 0);
    const auto broken = [&](const std::string& rule) {
        if (seen.wrong.empty()) seen.wrong = rule;
    };
    for (const double price : found.prices) {
        if (!std::isfinite(price)) broken("a price is not finite");
    }
    for (index_t t = 0; t < posed.problem.scores.rows; ++t) {
        const std::int32_t* const chosen = found.experts.data() + t * k;
        if (!reference::is_token(posed.problem.mask, t)) {
            if (std::any_of(chosen, chosen + k, [](std::int32_t e) { return e != -1; })) broken("padding is placed");
            continue;
        }
        const std::set<std::int32_t> different(chosen, chosen + k);
        if (static_cast<index_t>(different.size()) != k) broken("a token has an expert twice");
        for (index_t j = 0; j < k; ++j) {
            const bool there = chosen[j] >= 0 && chosen[j] < posed.experts();
            if (!there || posed.problem.scores(t, chosen[j]) == -infinity) {
                broken("a token is at no expert, or at a forbidden one");
                return seen;
            }
            load[chosen[j]] += 1;
            const double score = posed.problem.scores(t, chosen[j]);
            seen.total_score += score;
            seen.magnitude += std::abs(score);
            if (j > 0 && score > posed.problem.scores(t, chosen[j - 1])) broken("a token's best expert is not first");
        }
        long double best = 0;
        const long double regret = regret_of(posed, t, chosen, found.prices, best);
        seen.dual += best;
        seen.gap += regret;
        seen.largest_slack = std::max(seen.largest_slack, static_cast<double>(regret));
    }
    for (index_t e = 0; e < posed.experts(); ++e) {
        if (load[e] < posed.problem.lower[e] || load[e] > posed.problem.upper[e]) broken("a load is beyond its quota");
        const long double price = found.prices[static_cast<std::size_t>(e)];
        const index_t bound = price > 0 ? std::min(posed.problem.upper[e], posed.tokens()) : posed.problem.lower[e];
        const long double idle = price * static_cast<long double>(bound - load[e]);
        seen.prices_paid += static_cast<double>(std::abs(price)) * static_cast<double>(bound + load[e]);
        seen.dual += price * static_cast<long double>(bound);
        seen.gap += idle;
        seen.largest_slack = std::max(seen.largest_slack, static_cast<double>(idle));
    }
    return seen;
}

/// Whether a solver has to find the very best, or may stop at a tolerance of its own, which it states.
enum class promise { exact, bounded };

/// Everything that holds of a solver's answer, given the optimum.
inline void require_right(const transport& posed, const solution& found, double optimum, promise promised) {
    const audit seen = audit_of(posed, found);
    const auto& result = found.result;
    const double sign = posed.goal == sy::objective::minimise ? -1 : 1;
    const double rounding = 1e-15 * (seen.magnitude + seen.prices_paid + 1);

    REQUIRE(seen.wrong == "");
    REQUIRE(result.tokens == posed.tokens());
    REQUIRE(sign * result.primal == seen.total_score);  // integers
    // The exact solver goes by the scores, auctions by their ranges.
    const double size =
        promised == promise::exact ? seen.magnitude : static_cast<double>(posed.choices) * sum_of_ranges(posed.problem);
    const double exact = 1e-9 * size + 1e-12;
    REQUIRE(result.tolerance >= exact * (1 - 1e-12));
    if (promised == promise::exact) REQUIRE(result.tolerance <= exact * (1 + 1e-12));

    // The certificate is what it says it is.
    REQUIRE(result.gap >= 0);
    REQUIRE(std::abs(result.gap - static_cast<double>(seen.gap)) <= rounding);
    REQUIRE(std::abs(sign * result.dual - static_cast<double>(seen.dual)) <= rounding);
    REQUIRE(result.converged == (result.gap <= result.tolerance));

    // And it holds.
    REQUIRE(seen.total_score <= optimum);
    REQUIRE(optimum <= seen.total_score + result.gap + rounding);
    REQUIRE(result.converged);
    if (promised == promise::exact) {
        REQUIRE(optimum - seen.total_score <= result.tolerance);
        REQUIRE(seen.largest_slack <= result.tolerance + rounding);  // complementary slackness
    }
}

/// Runs a solver on a problem whose optimum is known, or known not to exist. Nothing, where there is none.
template <class S, class Solver, class Policy>
std::optional<solution> require_optimum(const Policy& policy, const Solver& solver, const transport& posed,
                                        layout where, const std::optional<double>& optimum, promise promised,
                                        const double* initial_prices = nullptr) {
    solution found;
    const std::string sentence =
        sentence_of([&] { found = solve_transport<S>(policy, solver, posed, where, initial_prices); });
    if (!optimum) {
        REQUIRE(sentence.substr(0, 26) == "the quotas cannot be met: ");
        return std::nullopt;
    }
    REQUIRE(sentence == "");
    require_right(posed, found, *optimum, promised);
    return found;
}

}  // namespace assignment_tests
