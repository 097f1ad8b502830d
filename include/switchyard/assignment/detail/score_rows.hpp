// One token's scores as E doubles in a row, and the little that a solver asks of such a row.
//
// Every pass over the scores reads a token's row into a buffer first: storage type and strides matter only there, and
// the loops over the buffer are ones that compilers turn into vector instructions.
#pragma once

#include <switchyard/core/config.hpp>
#include <switchyard/core/matrix_view.hpp>
#include <switchyard/core/scalar_traits.hpp>

#include <limits>

namespace switchyard {
inline namespace SWITCHYARD_TARGET {
namespace detail {

/// The scores as a solver sees them, in double: to be maximised, -inf forbids. Costs, which are to be minimised, are
/// negated on the way; that is exact.
template <class S>
struct score_source {
    matrix_view<const S> scores;  // [T, E], the caller's
    bool are_costs = false;

    index_t tokens() const { return scores.rows; }
    index_t experts() const { return scores.columns; }

    double operator()(index_t token, index_t expert) const {
        const auto score = static_cast<double>(load_scalar(scores(token, expert)));
        return are_costs ? -score : score;
    }

    /// row[e] = s[token, e]
    void read_row(index_t token, double* row) const {
        const S* const from = scores.row(token);
        const double sign = are_costs ? -1.0 : 1.0;
        if (scores.column_stride == 1) {
            for (index_t e = 0; e < scores.columns; ++e) row[e] = sign * static_cast<double>(load_scalar(from[e]));
        } else {
            for (index_t e = 0; e < scores.columns; ++e) {
                row[e] = sign * static_cast<double>(load_scalar(from[e * scores.column_stride]));
            }
        }
    }
};

/// The largest of `count` numbers, -inf for none. Several running maxima, since one alone would not be vectorised.
inline double largest_of(const double* numbers, index_t count) {
    constexpr index_t lanes = 8;
    double largest[lanes];
    for (double& lane : largest) lane = -std::numeric_limits<double>::infinity();
    index_t i = 0;
    for (; i + lanes <= count; i += lanes) {
        for (index_t lane = 0; lane < lanes; ++lane) {
            largest[lane] = numbers[i + lane] > largest[lane] ? numbers[i + lane] : largest[lane];
        }
    }
    for (; i < count; ++i) largest[0] = numbers[i] > largest[0] ? numbers[i] : largest[0];
    for (const double lane : largest) largest[0] = lane > largest[0] ? lane : largest[0];
    return largest[0];
}

/// Scores beyond this in size leave no room for sums of them in double.
inline constexpr double largest_score = 1e290;

/// The finite numbers of a row: their range, and whether anything else than them and -inf is there.
struct row_facts {
    double lowest = std::numeric_limits<double>::infinity();
    double highest = -std::numeric_limits<double>::infinity();
    bool usable = true;
};

inline row_facts facts_of(const double* row, index_t count) {
    constexpr double infinity = std::numeric_limits<double>::infinity();
    constexpr index_t lanes = 8;
    double lowest[lanes], highest[lanes], unusable[lanes];
    for (index_t lane = 0; lane < lanes; ++lane) {
        lowest[lane] = infinity;
        highest[lane] = -infinity;
        unusable[lane] = 0;
    }
    const auto look = [&](double score, index_t lane) {
        const double finite = score == -infinity ? infinity : score;
        lowest[lane] = finite < lowest[lane] ? finite : lowest[lane];
        highest[lane] = score > highest[lane] ? score : highest[lane];
        unusable[lane] += score <= largest_score ? 0.0 : 1.0;  // NaN is not
    };
    index_t i = 0;
    for (; i + lanes <= count; i += lanes) {
        for (index_t lane = 0; lane < lanes; ++lane) look(row[i + lane], lane);
    }
    for (; i < count; ++i) look(row[i], 0);
    row_facts facts;
    for (index_t lane = 0; lane < lanes; ++lane) {
        facts.lowest = lowest[lane] < facts.lowest ? lowest[lane] : facts.lowest;
        facts.highest = highest[lane] > facts.highest ? highest[lane] : facts.highest;
        facts.usable &= unusable[lane] == 0.0;
    }
    facts.usable &= facts.lowest >= -largest_score;
    return facts;
}

/// row[e] -= origin; what forbids still does.
inline void subtract(double* row, index_t count, double origin) {
    for (index_t e = 0; e < count; ++e) row[e] -= origin;
}

}  // namespace detail
}  // namespace SWITCHYARD_TARGET
}  // namespace switchyard
