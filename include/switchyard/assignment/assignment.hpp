// What every assignment solver promises: the problem, the result and its certificate.
//
//   maximise   sum_t s[t, a(t)]      over assignments a of each token to one expert, or to k different ones
//   subject to lower_e <= load_e <= upper_e                    (quotas.hpp), and a(t) not forbidden (s = -inf)
//
// Prices p[E] prove how good an assignment is. For any prices p, no assignment within the quotas can score more than
//
//   D(p) = sum_t max_e (s_te - p_e) + sum_e (upper_e max(p_e, 0) + lower_e min(p_e, 0))
//
// so D(p) - (the assignment's score), the *gap*, bounds how far it is from the best. It is a sum of terms that are
// never negative:
//
//   sum_t [max_e (s_te - p_e) - (s_ta - p_a)] + sum_e [p_e > 0 ? p_e (upper_e - load_e) : -p_e (load_e - lower_e)]
//
// and is computed as that sum, in double, from the original scores: D minus the score would lose all its digits to
// cancellation. It is 0 exactly where complementary slackness holds: every token at an expert that is best for it at
// these prices, and experts with positive (negative) prices filled to the upper (lower) quota.
//
// With k experts per token, max_e becomes the sum of the k largest, and a token's regret what its k best have over the
// k it got. Costs to be minimised are scores negated: prices then add to costs, primal and dual are costs, primal >=
// dual.
//
// A solver is a type of settings with a function found by its name,
//
//   assignment_result solve(policy, solver, assignment_problem, assignment_arrays, workspace);
//
// Padding (mask 0) gets expert -1 and counts nowhere; its scores are not read. Among equal optima any may be returned:
// always the same one, for every CPU policy and number of threads.
#pragma once

#include <switchyard/assignment/detail/score_rows.hpp>
#include <switchyard/assignment/quotas.hpp>
#include <switchyard/backend/policy.hpp>
#include <switchyard/core/config.hpp>
#include <switchyard/core/error.hpp>
#include <switchyard/core/matrix_view.hpp>
#include <switchyard/core/overlap.hpp>
#include <switchyard/core/rounding.hpp>
#include <switchyard/core/scalar_traits.hpp>
#include <switchyard/core/simd.hpp>
#include <switchyard/core/workspace.hpp>

#include <algorithm>
#include <cmath>
#include <concepts>
#include <cstdint>
#include <limits>

namespace switchyard {

enum class objective { maximise, minimise };

/// What a solver is given.
template <class S>
struct assignment_problem {
    matrix_view<const S> scores;             ///< [T, E]: any storage type and strides
    quotas bounds{};                         ///< on the experts' loads
    token_mask mask{};                       ///< [T]: rows that are tokens
    index_t choices = 1;                     ///< k: how many experts a token gets, all different
    objective goal = objective::maximise;    ///< minimise: the scores are costs, and +inf forbids
    const double* initial_prices = nullptr;  ///< [E]: a warm start, of an earlier batch; or null
};

/// Where a solver writes. After an error the contents are unspecified. `prices` may be the initial ones; otherwise the
/// two arrays must not overlap each other or the solver's inputs.
struct assignment_arrays {
    std::int32_t* expert_of_token = nullptr;  ///< [T, k], a token's best expert first; -1 for padding
    double* prices = nullptr;                 ///< [E], those of the certificate; or null
};

/// A solver's result and its certificate.
struct assignment_result {
    index_t tokens = 0;      ///< placed: rows that are not padding
    double primal = 0;       ///< sum_t s[t, a(t)]
    double dual = 0;         ///< D(prices) >= the score of any assignment
    double gap = 0;          ///< dual - primal, summed without cancellation: how far the optimum can be above primal
    double tolerance = 0;    ///< 1e-9 sum_t |s[t, a(t)]| + 1e-12; of auctions: see auction.hpp
    bool converged = false;  ///< gap <= tolerance: the assignment counts as optimal
    index_t iterations = 0;  ///< the solver's own unit of work: see there
    index_t passes = 0;      ///< passes over all scores
    index_t steps = 0;       ///< steps that changed all prices at once
    index_t repairs = 0;     ///< how often the certificate failed at first and prices were found in another way
};

inline namespace SWITCHYARD_TARGET {

/// A solver of the balanced assignment: see the top of this file.
template <class Solver>
concept assignment_solver = requires(const Solver& solver, const assignment_problem<float>& problem,
                                     const assignment_arrays& out, workspace& scratch) {
    { solve(seq, solver, problem, out, scratch) } -> std::same_as<assignment_result>;
};

namespace detail {

/// What one pass over all scores of a problem finds.
struct score_range {
    double lowest = std::numeric_limits<double>::infinity();    ///< of the finite ones
    double highest = -std::numeric_limits<double>::infinity();  ///< of the finite ones
};

/// A sum that loses next to nothing to rounding (Neumaier 1974).
class accurate_sum {
  public:
    void add(double term) {
        const double next = settled(sum_ + term);
        lost_ += std::abs(sum_) >= std::abs(term) ? settled(sum_ - next) + term : settled(term - next) + sum_;
        sum_ = next;
    }
    double value() const { return sum_ + lost_; }

  private:
    double sum_ = 0;
    double lost_ = 0;
};

/// a - b - (c - d), each difference exact: what is left of it is rounded once. Of numbers or packs of them.
template <class T>
T difference_of_differences(T a, T b, T c, T d) {
    const auto rounding = [](T x, T y, T difference) {
        const T y_seen = x - difference;
        return (x - (difference + y_seen)) + (y_seen - y);
    };
    const T first = a - b;
    const T second = c - d;
    return (first - second) + (rounding(a, b, first) - rounding(c, d, second));
}

[[noreturn]] inline void fail_score(double score, bool is_cost, index_t token, index_t expert) {
    if (std::isnan(score)) fail("scores[", token, ", ", expert, "] is NaN");
    if (std::isinf(score)) fail("scores[", token, ", ", expert, "] is ", is_cost ? "-infinity" : "+infinity");
    fail("scores[", token, ", ", expert, "] = ", is_cost ? -score : score, " is beyond 1e290 in size; ",
         is_cost ? "+" : "-", "infinity forbids a pair");
}

/// Fails on the first score of a token that no solver can use, and on a token with fewer than k experts it may take.
/// `row` is scratch for E numbers.
template <class S>
void require_token(const score_source<S>& scores, index_t token, index_t choices, double* row, score_range& range) {
    constexpr double infinity = std::numeric_limits<double>::infinity();
    scores.read_row(token, row);
    const row_facts facts = facts_of(row, scores.experts());
    if (!facts.usable) [[unlikely]] {
        for (index_t e = 0;; ++e) {
            if (row[e] != -infinity && !(std::abs(row[e]) <= largest_score)) {
                fail_score(row[e], scores.are_costs, token, e);
            }
        }
    }
    require(facts.highest >= facts.lowest, "token ", token, " has every expert forbidden: all its scores are ",
            scores.are_costs ? "+" : "-", "infinity");
    if (choices > 1) {
        const index_t allowed = std::count_if(row, row + scores.experts(), [](double s) { return s > -infinity; });
        require(allowed >= choices, "token ", token, " is to have ", choices, " different experts and may take only ",
                allowed);
    }
    range.lowest = std::min(range.lowest, facts.lowest);
    range.highest = std::max(range.highest, facts.highest);
}

/// Reads every token's scores: see require_token.
template <class S>
score_range require_scores(const score_source<S>& scores, const token_mask& mask, index_t choices, double* row) {
    score_range range;
    for (index_t t = 0; t < scores.tokens(); ++t) {
        if (mask(t)) require_token(scores, t, choices, row, range);
    }
    return range;
}

/// Fails if a solver's outputs overlap its inputs; prices may be the initial ones.
template <class Policy, class S, class Space>
void require_arrays_apart(const matrix_view<const S, Space>& scores, index_t choices, const double* initial_prices,
                          const assignment_arrays& out) {
    const matrix_view<std::int32_t, Space> experts(out.expert_of_token, scores.rows, choices);
    const matrix_view<double, Space> prices(out.prices, 1, scores.columns);
    const matrix_view<const double, Space> initial(initial_prices, 1, scores.columns);
    require_apart<Policy>("expert_of_token", experts, "scores", scores, "initial_prices", initial, "prices", prices);
    require_apart<Policy>("the array of prices", prices, "scores", scores);
    require_apart_or_same<Policy>("the array of prices", prices, "initial_prices", initial);
}

/// The shapes and pointers that every solver is given. Returns how many tokens there are.
template <class S>
index_t require_problem(const assignment_problem<S>& problem, const assignment_arrays& out) {
    const auto& scores = problem.scores;
    const quotas& bounds = problem.bounds;
    require(scores.rows >= 0 && scores.columns >= 0, "scores cannot be ", scores.rows, " x ", scores.columns);
    require(scores.rows <= std::numeric_limits<std::int32_t>::max() &&
                scores.columns < std::numeric_limits<std::int32_t>::max(),
            "an assignment of ", scores.rows, " tokens to ", scores.columns, " experts: both must be below 2^31");
    require(bounds.experts == scores.columns, "quotas for ", bounds.experts, " experts do not fit scores for ",
            scores.columns);
    require((bounds.lower_bounds == nullptr) == (bounds.upper_bounds == nullptr),
            "quotas need both arrays of bounds or none");
    require_mask_memory<seq_policy>(problem.mask);
    require(problem.mask.data == nullptr || problem.mask.size == scores.rows, "a mask of ", problem.mask.size,
            " bytes does not fit ", scores.rows, " tokens");
    require(scores.rows == 0 || out.expert_of_token != nullptr, "expert_of_token is null: there is nowhere to write ",
            scores.rows, " experts");
    require(problem.choices >= 1 && (problem.choices <= scores.columns || scores.rows == 0),
            "choices = ", problem.choices, " must be in 1..", scores.columns, ", the number of experts");
    const index_t tokens = count_tokens(problem.mask, scores.rows);
    require(tokens * problem.choices <= std::numeric_limits<std::int32_t>::max(), "an assignment of ", tokens,
            " tokens to ", problem.choices, " experts each: together they must be below 2^31");
    require_quotas(bounds, tokens, problem.choices);
    return tokens;
}

/// Each token's experts, best score first, the lower expert of equal ones.
template <class S>
void order_choices(const score_source<S>& scores, index_t choices, std::int32_t* expert_of_token) {
    for (index_t t = 0; choices > 1 && t < scores.tokens(); ++t) {
        std::int32_t* const experts = expert_of_token + t * choices;
        if (experts[0] < 0) continue;
        std::sort(experts, experts + choices, [&](std::int32_t a, std::int32_t b) {
            const double score_a = scores(t, a), score_b = scores(t, b);
            return score_a > score_b || (score_a == score_b && a < b);
        });
    }
}

/// By how much another expert suits a token better than `chosen` at these prices; 0 if none does. `margins` is scratch.
inline double regret(const double* row, index_t experts, index_t chosen, const double* prices, double* margins) {
    for (index_t e = 0; e < experts; ++e) margins[e] = row[e] - prices[e];
    const double margin = margins[chosen];
    margins[chosen] = -std::numeric_limits<double>::infinity();
    // Rounding keeps the order: a margin that is less once rounded is less. Equal ones may hide a difference.
    if (largest_of(margins, experts) < margin) return 0.0;
    using P = pack<double, native_width<double>>;
    const P chosen_score = P::all(row[chosen]);
    const P chosen_price = P::all(prices[chosen]);
    P most = P::all(0.0);
    for (index_t e = 0; e < experts; e += P::width) {
        const index_t count = std::min<index_t>(P::width, experts - e);
        const P here = P::load_first(margins + e, count, -std::numeric_limits<double>::infinity());
        if (at_least_bits(here, P::all(margin)) == 0) continue;
        const P ahead =
            difference_of_differences(P::load_first(row + e, count, -std::numeric_limits<double>::infinity()),
                                      P::load_first(prices + e, count, 0.0), chosen_score, chosen_price);
        most = max(ahead, most);  // NaN, which forbidden experts make, changes nothing
    }
    return highest(most);
}

/// The same for a token with several experts: what its k best have over the `choices` it got. The best expert it has
/// not takes the place of the worst it has, the second best that of the second worst, as long as something is gained.
inline double regret(const double* row, index_t experts, const std::int32_t* chosen, index_t choices,
                     const double* prices, double* margins) {
    if (choices == 1) return regret(row, experts, chosen[0], prices, margins);
    constexpr double infinity = std::numeric_limits<double>::infinity();
    constexpr double taken = std::numeric_limits<double>::quiet_NaN();  // neither above nor below anything
    for (index_t e = 0; e < experts; ++e) margins[e] = row[e] - prices[e];
    for (index_t c = 0; c < choices; ++c) margins[chosen[c]] = taken;
    double sum = 0;
    double floor = -infinity;  // the held experts' margins up to here, in rising order, have been looked at
    index_t floor_expert = -1;
    for (index_t c = 0; c < choices; ++c) {
        index_t worst = -1;
        double worst_margin = infinity;
        for (index_t i = 0; i < choices; ++i) {
            const index_t e = chosen[i];
            const double margin = row[e] - prices[e];
            const bool later = margin > floor || (margin == floor && e > floor_expert);
            if (later && (worst < 0 || margin < worst_margin || (margin == worst_margin && e < worst))) {
                worst = e;
                worst_margin = margin;
            }
        }
        index_t best = -1;
        for (index_t e = 0; e < experts; ++e) {
            if (margins[e] > (best < 0 ? -infinity : margins[best])) best = e;
        }
        if (worst < 0 || best < 0) break;
        const double gained = difference_of_differences(row[best], prices[best], row[worst], prices[worst]);
        if (gained <= 0) break;
        sum += gained;
        margins[best] = taken;
        floor = worst_margin;
        floor_expert = worst;
    }
    return sum;
}

}  // namespace detail
}  // namespace SWITCHYARD_TARGET
}  // namespace switchyard
