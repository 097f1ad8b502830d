// The auction's first look at all scores: their range, whether any are forbidden, and their standard deviation.
#pragma once

#include <switchyard/assignment/assignment.hpp>
#include <switchyard/assignment/detail/score_rows.hpp>
#include <switchyard/backend/policy.hpp>
#include <switchyard/core/config.hpp>
#include <switchyard/core/matrix_view.hpp>
#include <switchyard/core/workspace.hpp>

#include <algorithm>
#include <cmath>
#include <limits>

namespace switchyard {
inline namespace SWITCHYARD_TARGET {
namespace detail {

/// Sums over the scores that are not forbidden, about an origin and in a unit that keep them within a double's reach.
struct score_moments {
    double count = 0;
    double sum = 0;
    double squares = 0;

    void add_row(const double* row, index_t experts, double origin, double unit) {
        constexpr index_t lanes = 8;
        double counts[lanes] = {}, sums[lanes] = {}, squared[lanes] = {};
        const auto look = [&](double score, index_t lane) {
            const bool allowed = score > -std::numeric_limits<double>::infinity();
            const double distance = allowed ? (score - origin) / unit : 0.0;
            counts[lane] += allowed ? 1.0 : 0.0;
            sums[lane] += distance;
            squared[lane] += distance * distance;
        };
        index_t e = 0;
        for (; e + lanes <= experts; e += lanes) {
            for (index_t lane = 0; lane < lanes; ++lane) look(row[e + lane], lane);
        }
        for (; e < experts; ++e) look(row[e], 0);
        for (index_t lane = 0; lane < lanes; ++lane) {
            count += counts[lane];
            sum += sums[lane];
            squares += squared[lane];
        }
    }

    /// In the unit. NaN where something went beyond a double.
    double deviation() const {
        const double mean = count > 0 ? sum / count : 0.0;
        const double variance = count > 0 ? squares / count - mean * mean : 0.0;
        return std::isfinite(squares) ? std::sqrt(std::max(0.0, variance)) : std::numeric_limits<double>::quiet_NaN();
    }
};

struct score_facts {
    score_range range;
    score_moments moments;
    index_t bad_token = -1;  ///< the first that require_token may refuse

    /// 0 with no scores.
    double span() const { return std::max(0.0, range.highest - range.lowest); }
    double largest_size() const {
        return range.highest < range.lowest ? 0.0 : std::max(std::abs(range.highest), std::abs(range.lowest));
    }
};

/// Looks at the scores of all tokens in blocks; what is found does not depend on the policy.
template <class Policy, class S>
score_facts look_at_scores(const Policy& policy, const score_source<S>& scores, const token_mask& mask, index_t choices,
                           double origin, double unit, workspace& scratch) {
    const auto scope = scratch.open();
    const index_t rows = rows_per_block(scores.tokens());
    const index_t blocks = block_count(scores.tokens());
    const index_t room = (scores.experts() + 7) / 8 * 8;
    auto* const block_rows = scratch.take<double>(blocks * room);
    auto* const found = scratch.take<score_facts>(blocks);
    policy.parallel_for(blocks, [&](index_t b) {
        double* const row = block_rows + b * room;
        score_facts facts;
        for (index_t t = b * rows; t < std::min(scores.tokens(), (b + 1) * rows); ++t) {
            if (!mask(t)) continue;
            scores.read_row(t, row);
            const row_facts here = facts_of(row, scores.experts());
            facts.range.lowest = std::min(facts.range.lowest, here.lowest);
            facts.range.highest = std::max(facts.range.highest, here.highest);
            const double before = facts.moments.count;
            facts.moments.add_row(row, scores.experts(), origin, unit);
            const bool enough = facts.moments.count - before >= static_cast<double>(choices);
            if ((!here.usable || !enough) && facts.bad_token < 0) facts.bad_token = t;
        }
        found[b] = facts;
    });
    score_facts all;
    for (index_t b = 0; b < blocks; ++b) {
        all.range.lowest = std::min(all.range.lowest, found[b].range.lowest);
        all.range.highest = std::max(all.range.highest, found[b].range.highest);
        all.moments.count += found[b].moments.count;
        all.moments.sum += found[b].moments.sum;
        all.moments.squares += found[b].moments.squares;
        if (all.bad_token < 0) all.bad_token = found[b].bad_token;
    }
    return all;
}

/// What an auction must know of the scores: see score_facts; and their standard deviation.
struct auction_scores {
    score_facts facts;
    double deviation = 0;
    bool forbidden = false;  ///< some pair is

    double span() const { return facts.span(); }
    double largest_size() const { return facts.largest_size(); }
};

/// Fails on the first score that no solver can use, and on a token with fewer than k experts it may take.
template <class Policy, class S>
auction_scores require_auction_scores(const Policy& policy, const score_source<S>& scores, const token_mask& mask,
                                      index_t tokens, index_t choices, workspace& scratch) {
    if (tokens == 0) return {};
    const auto scope = scratch.open();
    double* const row = scratch.take<double>(scores.experts());
    index_t first = 0;
    while (!mask(first)) ++first;
    score_range range;
    require_token(scores, first, choices, row, range);
    const auto look = [&](double origin, double unit) {
        return look_at_scores(policy, scores, mask, choices, origin, unit, scratch);
    };
    auction_scores made{.facts = look(range.lowest, 1.0)};
    if (made.facts.bad_token >= 0) require_token(scores, made.facts.bad_token, choices, row, range);
    made.deviation = made.facts.moments.deviation();
    const double span = made.span();
    if (!(made.deviation > 0) && span > 0) {  // squares beyond a double's reach, at either end
        made.deviation = span * look(made.facts.range.lowest, span).moments.deviation();
    }
    made.forbidden = made.facts.moments.count < static_cast<double>(tokens) * static_cast<double>(scores.experts());
    return made;
}

}  // namespace detail
}  // namespace SWITCHYARD_TARGET
}  // namespace switchyard
