// Assignment problems for the tests of this folder, and a way to run properties with a fixed seed and number of cases.
#pragma once

#include <switchyard/assignment/hungarian.hpp>
#include <switchyard/reference/assignment.hpp>

#include <doctest/doctest.h>
#include <rapidcheck.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <ostream>
#include <random>
#include <string>
#include <vector>

namespace assignment_tests {

namespace sy = switchyard;
using sy::index_t;
namespace reference = sy::reference;

constexpr double infinity = std::numeric_limits<double>::infinity();
constexpr double no_number = std::numeric_limits<double>::quiet_NaN();
using bounds_list = reference::list<index_t>;

/// A problem: what the reference takes, from which views for the solver are made.
struct instance {
    reference::matrix scores;
    bounds_list lower;
    bounds_list upper;
    reference::mask_list mask;

    index_t tokens() const { return reference::count_tokens(mask, scores.rows); }
    sy::quotas bounds() const { return sy::bounded_quotas(lower, upper); }
    sy::token_mask padding() const { return {mask.empty() ? nullptr : mask.data(), mask.length()}; }

    /// As a solver takes it, with the scores from elsewhere.
    template <class Scalar>
    sy::assignment_problem<Scalar> posed(const Scalar* values, const double* initial_prices = nullptr) const {
        return {.scores = {values, scores.rows, scores.columns},
                .bounds = bounds(),
                .mask = padding(),
                .initial_prices = initial_prices};
    }
};

inline std::ostream& operator<<(std::ostream& out, const instance& problem) {
    for (index_t t = 0; t < problem.scores.rows; ++t) {
        out << (reference::is_token(problem.mask, t) ? "\n  token   " : "\n  padding ");
        for (index_t e = 0; e < problem.scores.columns; ++e) out << problem.scores(t, e) << " ";
    }
    out << "\n  quotas";
    for (index_t e = 0; e < problem.lower.length(); ++e)
        out << " [" << problem.lower[e] << ", " << problem.upper[e] << "]";
    return out << "\n";
}

/// What a solver returned, with its outputs.
struct solution {
    sy::assignment_result result;
    std::vector<std::int32_t> experts;
    std::vector<double> prices;
};

template <class Scalar, class Solver>
solution solve_as(const Solver& solver, const instance& problem, const double* initial_prices = nullptr) {
    const std::vector<Scalar> scores(problem.scores.values.begin(), problem.scores.values.end());
    solution found;
    found.experts.resize(static_cast<std::size_t>(problem.scores.rows), 12345);
    found.prices.resize(static_cast<std::size_t>(problem.scores.columns), 12345.0);
    sy::workspace scratch;
    found.result = solve(sy::seq, solver, problem.posed(scores.data(), initial_prices),
                         {found.experts.data(), found.prices.data()}, scratch);
    return found;
}

/// The sentence of the error that a call raises, empty if none.
template <class Call>
std::string sentence_of(Call&& call) {
    try {
        call();
    } catch (const sy::error& e) {
        return e.what();
    }
    return "";
}

/// Whether the output is an assignment within the quotas that uses no forbidden pair and scores what it says.
inline bool is_valid(const instance& problem, const solution& found) {
    auto load = reference::filled<index_t>(problem.scores.columns, 0);
    double score = 0;
    double magnitude = 0;
    for (index_t t = 0; t < problem.scores.rows; ++t) {
        const auto e = found.experts[static_cast<std::size_t>(t)];
        if (!reference::is_token(problem.mask, t)) {
            if (e != -1) return false;
            continue;
        }
        if (e < 0 || e >= problem.scores.columns || problem.scores(t, e) == -infinity) return false;
        load[e] += 1;
        score += problem.scores(t, e);
        magnitude += std::abs(problem.scores(t, e));
    }
    for (index_t e = 0; e < problem.scores.columns; ++e) {
        if (load[e] < problem.lower[e] || load[e] > problem.upper[e]) return false;
    }
    return found.result.tokens == problem.tokens() && std::abs(score - found.result.primal) <= 1e-12 * magnitude;
}

/// The ranges of the tokens' scores that are not forbidden, by plain loops: what an auction's exactness is measured by.
inline double sum_of_ranges(const instance& problem) {
    double sum = 0;
    for (index_t t = 0; t < problem.scores.rows; ++t) {
        if (!reference::is_token(problem.mask, t)) continue;
        double low = infinity, high = -infinity;
        for (index_t e = 0; e < problem.scores.columns; ++e) {
            const double score = problem.scores(t, e);
            if (score == -infinity) continue;
            low = std::min(low, score);
            high = std::max(high, score);
        }
        sum += high - low;
    }
    return sum;
}

/// Complementary slackness at the returned prices, by plain loops, up to `slack` for each token and expert.
inline bool is_complementary(const instance& problem, const solution& found, double slack) {
    auto load = reference::filled<index_t>(problem.scores.columns, 0);
    const auto price = [&](index_t e) { return found.prices[static_cast<std::size_t>(e)]; };
    for (index_t t = 0; t < problem.scores.rows; ++t) {
        const index_t chosen = found.experts[static_cast<std::size_t>(t)];
        if (chosen < 0) continue;
        load[chosen] += 1;
        const double margin = problem.scores(t, chosen) - price(chosen);
        for (index_t e = 0; e < problem.scores.columns; ++e) {
            if (problem.scores(t, e) - price(e) > margin + slack) return false;
        }
    }
    for (index_t e = 0; e < problem.scores.columns; ++e) {
        if (price(e) > slack && load[e] != problem.upper[e]) return false;
        if (price(e) < -slack && load[e] != problem.lower[e]) return false;
    }
    return true;
}

/// Scores of a kind: what makes solvers stumble.
enum class score_kind { integers, binary, quarters, gaussian, large_offset, skewed, duplicated_rows, count };

inline double draw_score(score_kind kind, std::mt19937_64& random, index_t expert) {
    const auto whole = [&](int least, int most) { return std::uniform_int_distribution<int>(least, most)(random); };
    std::normal_distribution<double> normal;
    switch (kind) {
        case score_kind::integers:
            return whole(-9, 9);
        case score_kind::binary:
            return whole(0, 1);
        case score_kind::quarters:
            return 0.25 * whole(-3, 3);
        case score_kind::large_offset:
            return 1e6 + 0.25 * whole(0, 8);
        case score_kind::skewed:
            return normal(random) + 3.0 / static_cast<double>(expert + 1);
        default:
            return normal(random);
    }
}

/// Bounds that hold `tokens` tokens: balanced, capacities, fixed loads, or intervals around loads that do.
inline void draw_bounds(instance& problem, std::mt19937_64& random) {
    const index_t experts = problem.scores.columns;
    const index_t tokens = problem.tokens();
    const auto whole = [&](index_t least, index_t most) {
        return std::uniform_int_distribution<index_t>(least, most)(random);
    };
    problem.lower = reference::filled<index_t>(experts, 0);
    problem.upper = reference::filled<index_t>(experts, 0);
    const index_t kind = whole(0, 4);
    if (kind <= 1) {
        const sy::quotas same = kind == 0
                                    ? sy::balanced_quotas(tokens, experts)
                                    : sy::capacity_quotas((tokens + experts - 1) / experts + whole(0, 2), experts);
        for (index_t e = 0; e < experts; ++e) {
            problem.lower[e] = same.lower(e);
            problem.upper[e] = same.upper(e);
        }
        return;
    }
    for (index_t t = 0; t < tokens; ++t) problem.lower[whole(0, experts - 1)] += 1;
    problem.upper = problem.lower;
    if (kind == 2) return;
    for (index_t e = 0; e < experts; ++e) {
        problem.lower[e] -= whole(0, problem.lower[e]);
        problem.upper[e] += kind == 3 ? whole(0, 2) : whole(0, 2 * tokens + 1);
    }
}

/// A random instance; `forbidden` in 256 pairs are forbidden, but never a token's all. Scores are exact in float.
inline instance draw_instance(score_kind kind, index_t rows, index_t experts, int forbidden, bool with_mask,
                              std::mt19937_64& random) {
    instance problem;
    problem.scores = reference::matrix(rows, experts);
    for (index_t t = 0; t < rows; ++t) {
        const bool copy = kind == score_kind::duplicated_rows && t > 0 && random() % 4 != 0;
        for (index_t e = 0; e < experts; ++e) {
            const double score = static_cast<float>(draw_score(kind, random, e));
            problem.scores(t, e) = copy ? problem.scores(t - 1, e) : score;
        }
        const auto spared = static_cast<index_t>(random() % static_cast<std::uint64_t>(experts));
        for (index_t e = 0; e < experts; ++e) {
            if (e != spared && static_cast<int>(random() % 256) < forbidden) problem.scores(t, e) = -infinity;
        }
        if (problem.scores(t, spared) == -infinity) problem.scores(t, spared) = 0;  // copied from a forbidding row
    }
    if (with_mask) {
        problem.mask = reference::filled<std::uint8_t>(rows, 1);
        for (auto& byte : problem.mask) byte = random() % 4 != 0 ? 1 : 0;
    }
    draw_bounds(problem, random);
    return problem;
}

/// Draws an instance of any kind, so that RapidCheck can shrink its size and its features.
inline instance any_instance(index_t most_rows, index_t most_experts) {
    const auto kind = static_cast<score_kind>(
        *rc::gen::resize(rc::kNominalSize, rc::gen::inRange(0, static_cast<int>(score_kind::count))));
    // Full size from the first case on: RapidCheck's own sizes would make most instances trivial.
    const auto rows = *rc::gen::resize(rc::kNominalSize, rc::gen::inRange<index_t>(0, most_rows + 1));
    const auto experts = *rc::gen::resize(rc::kNominalSize, rc::gen::inRange<index_t>(1, most_experts + 1));
    const auto forbidden = *rc::gen::element(0, 0, 40, 150, 230);
    const auto with_mask = *rc::gen::element(false, false, true);
    std::mt19937_64 random(*rc::gen::arbitrary<std::uint32_t>());
    return draw_instance(kind, rows, experts, forbidden, with_mask, random);
}

inline std::vector<float> gaussian_scores(index_t tokens, index_t experts, unsigned seed) {
    std::mt19937_64 random(seed);
    std::normal_distribution<float> normal;
    std::vector<float> scores(static_cast<std::size_t>(tokens * experts));
    for (float& s : scores) s = normal(random);
    return scores;
}

/// The same with balanced bounds: every expert floor or ceil of tokens / experts.
inline instance balanced(instance problem) {
    const sy::quotas same = sy::balanced_quotas(problem.tokens(), problem.scores.columns);
    for (index_t e = 0; e < problem.scores.columns; ++e) {
        problem.lower[e] = same.lower(e);
        problem.upper[e] = same.upper(e);
    }
    return problem;
}

/// What became of scores as they are, [rows, columns] row-major.
struct solved {
    sy::assignment_result result;
    std::vector<std::int32_t> experts;
    std::vector<double> prices;

    index_t load(std::int32_t expert) const { return std::count(experts.begin(), experts.end(), expert); }
};

/// Runs a property on `cases` random inputs, always the same ones; failing inputs are shrunk and printed.
template <class Property>
bool holds(const std::string& name, int cases, Property&& property) {
    rc::detail::TestMetadata metadata;
    metadata.id = metadata.description = name;
    rc::detail::TestParams params;
    params.seed = 20210330;
    params.maxSuccess = cases;
    const auto result = rc::detail::checkTestable(std::forward<Property>(property), metadata, params);
    if (!result.template is<rc::detail::SuccessResult>()) rc::detail::printResultMessage(result, std::cerr);
    return result.template is<rc::detail::SuccessResult>();
}

}  // namespace assignment_tests
