// The auction's first look at all scores: their range, whether any are forbidden, and their standard deviation about
// their tokens' means. A token's scores matter by their differences alone, so the range and the deviation are of these:
// they do not change when all scores of a token are shifted.
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

/// Of the scores that are not forbidden: how many, and the squares of their distances from their tokens' means, in a
/// unit that keeps them within a double's reach.
struct score_moments {
    double count = 0;
    double squares = 0;

    /// In the unit. NaN where something went beyond a double.
    double deviation() const {
        if (!std::isfinite(squares)) return std::numeric_limits<double>::quiet_NaN();
        return count > 0 ? std::sqrt(squares / count) : 0.0;
    }
};

/// A token's part of `squares`, from sums of the distances from any of its scores and of their squares.
SWITCHYARD_HD inline double squares_about_mean(double count, double sum, double squares) {
    const double about_mean = count > 0 ? squares - sum * sum / count : 0.0;
    return about_mean < 0 ? 0.0 : about_mean;  // NaN stays
}

struct score_facts {
    double span = 0;          ///< the widest range of a token's scores that are not forbidden
    double largest_size = 0;  ///< of them all
    score_moments moments;
    index_t bad_token = -1;  ///< the first that require_token may refuse
};

/// Adds up what is to be known of rows, a pack of scores at a time.
class row_looker {
  public:
    explicit row_looker(double unit) : per_unit_(pack_t::all(1.0 / unit)) {}

    /// Returns whether all numbers of the row are scores, `choices` of them not forbidden.
    bool look(const double* row, index_t experts, index_t choices) {
        lowest_ = pack_t::all(infinity);
        highest_ = pack_t::all(-infinity);
        sums_ = squares_ = pack_t::all(0.0);
        allowed_ = 0;
        usable_ = true;
        index_t first = 0;
        while (first + 1 < experts && row[first] == -infinity) ++first;
        origin_ = pack_t::all(row[first] == -infinity ? 0.0 : row[first]);
        index_t e = 0;
        for (; e + width <= experts; e += width) look(pack_t::load(row + e));
        if (e < experts) look(pack_t::load_first(row + e, experts - e, -infinity));
        if (!usable_ || allowed_ < choices) return false;
        const double low = lowest(lowest_);
        const double high = highest(highest_);
        const auto count = static_cast<double>(allowed_);
        facts_.span = std::max(facts_.span, high - low);
        facts_.largest_size = std::max({facts_.largest_size, std::abs(low), std::abs(high)});
        facts_.moments.count += count;
        facts_.moments.squares += squares_about_mean(count, total(sums_), total(squares_));
        return true;
    }

    const score_facts& facts() const { return facts_; }

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

    score_facts facts_;  // of all rows; what follows is of one
    pack_t per_unit_;
    pack_t origin_ = pack_t::all(0.0);
    pack_t lowest_ = pack_t::all(infinity);
    pack_t highest_ = pack_t::all(-infinity);
    pack_t sums_ = pack_t::all(0.0);
    pack_t squares_ = pack_t::all(0.0);
    index_t allowed_ = 0;
    bool usable_ = true;
};

/// Looks at the scores of all tokens in blocks; what is found does not depend on the policy.
template <class Policy, class S>
score_facts look_at_scores(const Policy& policy, const score_source<S>& scores, const token_mask& mask, index_t choices,
                           double unit, workspace& scratch) {
    const auto scope = scratch.open();
    const index_t rows = rows_per_block(scores.tokens());
    const index_t blocks = block_count(scores.tokens());
    const index_t room = (scores.experts() + 7) / 8 * 8;
    auto* const block_rows = scratch.take<double>(blocks * room);
    auto* const found = scratch.take<score_facts>(blocks);
    for_blocks_of_scores(policy, scores.tokens() * scores.experts(), blocks, [&](index_t b) {
        double* const row = block_rows + b * room;
        row_looker looker(unit);
        index_t bad_token = -1;
        for (index_t t = b * rows; t < std::min(scores.tokens(), (b + 1) * rows); ++t) {
            if (!mask(t)) continue;
            scores.read_row(t, row);
            if (!looker.look(row, scores.experts(), choices) && bad_token < 0) bad_token = t;
        }
        found[b] = looker.facts();
        found[b].bad_token = bad_token;
    });
    score_facts all;
    for (index_t b = 0; b < blocks; ++b) {
        all.span = std::max(all.span, found[b].span);
        all.largest_size = std::max(all.largest_size, found[b].largest_size);
        all.moments.count += found[b].moments.count;
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

    double span() const { return facts.span; }
    double largest_size() const { return facts.largest_size; }
};

/// Fails on the first score that no solver can use, and on a token with fewer than k experts it may take.
template <class Policy, class S>
auction_scores require_auction_scores(const Policy& policy, const score_source<S>& scores, const token_mask& mask,
                                      index_t tokens, index_t choices, workspace& scratch) {
    if (tokens == 0) return {};
    const auto scope = scratch.open();
    double* const row = scratch.take<double>(scores.experts());
    score_range range;
    const auto look = [&](double unit) { return look_at_scores(policy, scores, mask, choices, unit, scratch); };
    auction_scores made{.facts = look(1.0)};
    if (made.facts.bad_token >= 0) require_token(scores, made.facts.bad_token, choices, row, range);
    made.deviation = made.facts.moments.deviation();
    const double span = made.span();
    if (!(made.deviation > 0) && span > 0) {  // squares beyond a double's reach, at either end
        const double unit = unit_near(span);
        made.deviation = unit * look(unit).moments.deviation();
    }
    made.forbidden = made.facts.moments.count < static_cast<double>(tokens) * static_cast<double>(scores.experts());
    return made;
}

}  // namespace detail
}  // namespace SWITCHYARD_TARGET
}  // namespace switchyard
