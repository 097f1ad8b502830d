// The auction's first look at the scores and its certificate on a device: one thread per row, and sums in the fixed
// order of `fold`, in double.
#pragma once

#include <switchyard/assignment/detail/auction_scores.hpp>
#include <switchyard/assignment/detail/device_auction_market.hpp>
#include <switchyard/backend/device.hpp>
#include <switchyard/core/config.hpp>
#include <switchyard/core/matrix_view.hpp>
#include <switchyard/core/rounding.hpp>
#include <switchyard/core/workspace.hpp>

#include <cstdint>
#include <limits>

namespace switchyard {
inline namespace SWITCHYARD_TARGET {
namespace detail {

/// A value of the device's, read on the host. Waits for the policy's stream.
template <device_policy Policy, class T>
T read_from(const Policy& policy, const T* value) {
    T copy;
    policy.copy_to_host(&copy, value, sizeof copy);
    return copy;
}

struct count_row {
    token_mask mask;
    std::int64_t* count;

    SWITCHYARD_HD void operator()(index_t t) const { count[t] = mask(t) ? 1 : 0; }
};

/// As count_tokens. Waits where there is a mask.
template <device_policy Policy>
index_t count_device_tokens(const Policy& policy, const token_mask& mask, index_t rows,
                            device_workspace<Policy>& scratch) {
    if (mask.data == nullptr || rows == 0) return rows;
    const auto scope = scratch.open();
    auto* const count = scratch.template take<std::int64_t>(rows);
    for_each_index(policy, rows, count_row{mask, count});
    return read_from(policy, fold(policy, count, rows, index_t{1}, plus{}, scratch));
}

/// The widest range of a token's scores, and what makes scores of no use.
struct device_range {
    double span = 0;
    index_t tokens = 0;
    index_t allowed = 0;  ///< scores that are not forbidden
    index_t bad = 0;      ///< tokens with a score that is none, or with all of them forbidden

    SWITCHYARD_HD friend device_range operator+(const device_range& a, const device_range& b) {
        return {a.span > b.span ? a.span : b.span, a.tokens + b.tokens, a.allowed + b.allowed, a.bad + b.bad};
    }
};

template <class S, class Space>
struct range_of_row {
    device_scores<S, Space> scores;
    token_mask mask;
    device_range* found;
    double* highest;  ///< [T]

    SWITCHYARD_HD void operator()(index_t t) const {
        device_range here;
        double low = std::numeric_limits<double>::infinity();
        double high = -low;
        if (mask(t)) {
            here.tokens = 1;
            for (index_t e = 0; e < scores.scores.columns; ++e) {
                const double score = scores(t, e);
                if (score == -std::numeric_limits<double>::infinity()) continue;
                if (!(score <= largest_score && score >= -largest_score)) {
                    here.bad = 1;
                    continue;
                }
                here.allowed += 1;
                low = score < low ? score : low;
                high = score > high ? score : high;
            }
            if (here.allowed == 0) here.bad = 1;
        }
        here.span = here.allowed > 0 ? high - low : 0.0;
        found[t] = here;
        highest[t] = high;
    }
};

template <class S, class Space>
struct moments_of_row {
    device_scores<S, Space> scores;
    token_mask mask;
    double per_unit;
    double* found;  ///< [T]: see squares_about_mean

    SWITCHYARD_HD void operator()(index_t t) const {
        double count = 0;
        double sum = 0;
        double squares = 0;
        for (index_t e = 0; mask(t) && e < scores.scores.columns; ++e) {
            const double score = scores(t, e);
            if (score == -std::numeric_limits<double>::infinity()) continue;
            const double distance = (score - scores.highest[t]) * per_unit;
            count += 1;
            sum += distance;
            squares += distance * distance;
        }
        found[t] = squares_about_mean(count, sum, squares);
    }
};

/// What an auction must know of the scores (auction_scores.hpp), `highest` [T] among it. `bad` tokens: nothing else is
/// found. Waits twice.
template <device_policy Policy, class S>
device_range look_at_device_scores(const Policy& policy, const device_scores<S, policy_space<Policy>>& scores,
                                   const token_mask& mask, double* highest, auction_scores& facts,
                                   device_workspace<Policy>& scratch) {
    using space = policy_space<Policy>;
    const auto scope = scratch.open();
    const index_t rows = scores.scores.rows;
    if (rows == 0) return {};
    auto* const ranges = scratch.template take<device_range>(rows);
    for_each_index(policy, rows, range_of_row<S, space>{scores, mask, ranges, highest});
    const device_range range = read_from(policy, fold(policy, ranges, rows, index_t{1}, plus{}, scratch));
    if (range.bad > 0 || range.tokens == 0) return range;
    facts.facts.span = range.span;
    facts.forbidden = range.allowed < range.tokens * scores.scores.columns;
    const double span = facts.span();
    if (span > 0) {
        const double unit = unit_near(span);
        auto* const squares = scratch.template take<double>(rows);
        for_each_index(policy, rows,
                       moments_of_row<S, space>{{scores.scores, scores.are_costs, highest}, mask, 1.0 / unit, squares});
        const score_moments sums{static_cast<double>(range.allowed),
                                 read_from(policy, fold(policy, squares, rows, index_t{1}, plus{}, scratch))};
        facts.deviation = unit * sums.deviation();
    }
    return range;
}

/// The terms of a certificate (assignment.hpp).
struct device_certificate {
    double primal = 0;
    double magnitude = 0;
    double gap = 0;

    SWITCHYARD_HD friend device_certificate operator+(const device_certificate& a, const device_certificate& b) {
        return {a.primal + b.primal, a.magnitude + b.magnitude, a.gap + b.gap};
    }
};

/// The prices for the certificate: counted from the water level or, where all places are taken, from the lowest price;
/// an expert without places costs more than any token would pay. One thread.
struct count_prices {
    device_market market;
    double span;
    double* certified;  ///< [E]

    SWITCHYARD_HD void operator()(index_t) const {
        double zero = market.state->water;
        if (market.dummies == 0) {
            zero = device_market::infinity;
            for (index_t e = 0; e < market.experts; ++e) zero = market.price[e] < zero ? market.price[e] : zero;
        }
        const bool finite = zero > -device_market::infinity && zero < device_market::infinity;
        double dearest = 0;
        for (index_t e = 0; e < market.experts; ++e) {
            const double price = finite ? market.price[e] - zero : market.price[e];
            certified[e] = price;
            dearest = price > dearest && price < device_market::infinity ? price : dearest;
        }
        for (index_t e = 0; e < market.experts; ++e) {
            if (!(certified[e] < device_market::infinity)) certified[e] = dearest + span;
        }
    }
};

/// a - b - (c - d), each difference exact: what is left of it is rounded once.
SWITCHYARD_HD inline double exact_difference(double a, double b, double c, double d) {
    const double first = settled(a - b);
    const double second = settled(c - d);
    const double seen_first = settled(a - first);
    const double seen_second = settled(c - second);
    const double lost_first = settled(a - settled(first + seen_first)) + settled(seen_first - b);
    const double lost_second = settled(c - settled(second + seen_second)) + settled(seen_second - d);
    return settled(first - second) + settled(lost_first - lost_second);
}

/// A token's score, and by how much it would rather be elsewhere.
template <class S, class Space>
struct certify_row {
    device_market market;
    device_scores<S, Space> scores;
    const double* price;
    device_certificate* terms;

    SWITCHYARD_HD void operator()(index_t t) const {
        device_certificate here;
        const std::int32_t own = market.expert[t];
        if (own >= 0) {
            const double score = scores(t, own);
            double low = score;
            double high = score;
            here.primal = score;
            for (index_t e = 0; e < market.experts; ++e) {
                const double other = scores(t, e);
                if (other == -device_market::infinity) continue;
                low = other < low ? other : low;
                high = other > high ? other : high;
                const double ahead = exact_difference(other, price[e], score, price[own]);
                here.gap = ahead > here.gap ? ahead : here.gap;
            }
            here.magnitude = high - low;  // see exactness::of_ranges
        }
        terms[t] = here;
    }
};

/// What an expert's load at its price is short of.
struct certify_expert {
    device_market market;
    const double* price;
    device_certificate* terms;

    SWITCHYARD_HD void operator()(index_t e) const {
        const index_t bound = price[e] > 0 ? market.upper[e] : market.lower[e];
        terms[e] = {0, 0, price[e] * static_cast<double>(bound - market.load[e])};
    }
};

struct copy_prices {
    const double* from;
    double* to;

    SWITCHYARD_HD void operator()(index_t e) const { to[e] = from[e]; }
};

/// Experts of the rows, for the caller.
struct hand_out_experts {
    device_market market;
    std::int32_t* expert_of_token;

    SWITCHYARD_HD void operator()(index_t t) const {
        expert_of_token[t] = market.expert[t] >= 0 ? market.expert[t] : -1;
    }
};

}  // namespace detail
}  // namespace SWITCHYARD_TARGET
}  // namespace switchyard
