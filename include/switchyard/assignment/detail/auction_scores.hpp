// The auction's first look at all scores: their range, whether any are forbidden, and their standard deviation.
#pragma once

#include <switchyard/assignment/assignment.hpp>
#include <switchyard/assignment/detail/pass_threads.hpp>
#include <switchyard/assignment/detail/score_rows.hpp>
#include <switchyard/backend/policy.hpp>
#include <switchyard/core/bits.hpp>
#include <switchyard/core/config.hpp>
#include <switchyard/core/matrix_view.hpp>
#include <switchyard/core/simd.hpp>
#include <switchyard/core/workspace.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

namespace switchyard {
inline namespace SWITCHYARD_TARGET {
namespace detail {

/// A power of two near a positive number, whose inverse a double holds, too.
inline double unit_near(double size) {
    int exponent = 0;
    std::frexp(size, &exponent);
    return std::ldexp(1.0, std::clamp(exponent, -1000, 1000));
}

/// Sums over the scores that are not forbidden, about an origin and in a unit that keep them within a double's reach.
struct score_moments {
    double count = 0;
    double sum = 0;
    double squares = 0;

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

/// Adds up what is to be known of rows, a pack of scores at a time.
class row_looker {
  public:
    row_looker(double origin, double unit) : origin_(pack_t::all(origin)), per_unit_(pack_t::all(1.0 / unit)) {}

    /// Returns whether all numbers of the row are scores, `choices` of them not forbidden.
    bool look(const double* row, index_t experts, index_t choices) {
        allowed_ = 0;
        usable_ = true;
        index_t e = 0;
        for (; e + width <= experts; e += width) look(pack_t::load(row + e));
        if (e < experts) look(pack_t::load_first(row + e, experts - e, -infinity));
        all_allowed_ += allowed_;
        return usable_ && allowed_ >= choices;
    }

    score_range range() const { return {lowest(lowest_), highest(highest_)}; }
    score_moments moments() const { return {static_cast<double>(all_allowed_), total(sums_), total(squares_)}; }

  private:
    static constexpr int width = native_width<double>;
    static constexpr double infinity = std::numeric_limits<double>::infinity();
    using pack_t = pack<double, width>;

    void look(pack_t scores) {
        constexpr std::uint32_t all_lanes = (std::uint32_t{1} << width) - 1;
        const pack_t forbidden = pack_t::all(-infinity);
        const pack_t finite = replaced(scores, forbidden, pack_t::all(infinity));
        lowest_ = min(lowest_, finite);
        highest_ = max(highest_, scores);
        usable_ = usable_ &&
                  at_least_bits(pack_t::all(largest_score), scores) == all_lanes &&  // NaN is at least nothing
                  at_least_bits(finite, pack_t::all(-largest_score)) == all_lanes;
        allowed_ += width - count_bits(equal_bits(scores, forbidden));
        const pack_t distance = (replaced(scores, forbidden, origin_) - origin_) * per_unit_;
        sums_ = sums_ + distance;
        squares_ = multiply_add(distance, distance, squares_);
    }

    pack_t origin_;
    pack_t per_unit_;
    pack_t lowest_ = pack_t::all(infinity);
    pack_t highest_ = pack_t::all(-infinity);
    pack_t sums_ = pack_t::all(0.0);
    pack_t squares_ = pack_t::all(0.0);
    index_t allowed_ = 0;      // of this row
    index_t all_allowed_ = 0;  // of all
    bool usable_ = true;       // this row
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
    for_blocks_of_scores(policy, scores.tokens() * scores.experts(), blocks, [&](index_t b) {
        double* const row = block_rows + b * room;
        row_looker looker(origin, unit);
        index_t bad_token = -1;
        for (index_t t = b * rows; t < std::min(scores.tokens(), (b + 1) * rows); ++t) {
            if (!mask(t)) continue;
            scores.read_row(t, row);
            if (!looker.look(row, scores.experts(), choices) && bad_token < 0) bad_token = t;
        }
        found[b] = {looker.range(), looker.moments(), bad_token};
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
        const double unit = unit_near(span);
        made.deviation = unit * look(made.facts.range.lowest, unit).moments.deviation();
    }
    made.forbidden = made.facts.moments.count < static_cast<double>(tokens) * static_cast<double>(scores.experts());
    return made;
}

}  // namespace detail
}  // namespace SWITCHYARD_TARGET
}  // namespace switchyard
