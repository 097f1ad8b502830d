// Prices from nothing (price_search.hpp): a coarse auction on a small sample.
//
// Each expert has its share of places. A row without a place bids for its best expert what makes it as good as the next
// one, and a step more; a full expert drops its lowest bid, which is its price from then on. With a step of a quarter
// of the scores' standard deviation, then a sixteenth, then a sixty-fourth, beginning with the prices found before.
// Bids are limited: prices that are only roughly right do.
#pragma once

#include <switchyard/assignment/detail/margins.hpp>
#include <switchyard/assignment/detail/price_search.hpp>
#include <switchyard/core/config.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

namespace switchyard {
inline namespace SWITCHYARD_TARGET {
namespace detail {

/// Standard deviation of a token's scores, over some of the set: it is a unit for steps, no more.
template <class S>
double price_search<S>::spread() const {
    double sum = 0;
    index_t counted = 0;
    for (index_t i = 0; i < count_; i += (count_ + 511) / 512) {
        const compute* const scores = row(i, block_row_);
        const double reference = static_cast<double>(reference_of(scores));
        double row_sum = 0;
        double row_squares = 0;
        index_t row_count = 0;
        for (index_t e = 0; e < experts_; ++e) {
            if (!(std::abs(scores[e]) <= largest_usable<compute>())) continue;
            const double d = static_cast<double>(scores[e]) - reference;
            row_sum += d;
            row_squares += d * d;
            row_count += 1;
        }
        if (row_count == 0) continue;
        sum += row_squares - row_sum * row_sum / static_cast<double>(row_count);
        counted += row_count;
    }
    return counted > 0 && sum > 0 && std::isfinite(sum) ? std::sqrt(sum / static_cast<double>(counted)) : 0.0;
}

/// One row bids for its best expert as much as makes it as good as the next one, and `step` more.
template <class S>
void price_search<S>::bid_once(std::int32_t i, compute step, const rounded_prices<compute>& prices,
                               index_t& open_count) {
    const auto wish = wish_of<width, false>(row(i, block_row_), prices, experts_);
    if (!wish.usable) return;
    const index_t e = wish.expert;
    const compute ahead = std::max(compute(0), std::min(wish.margin, 1000 * step));
    const index_t room = first_bid_[e + 1] - first_bid_[e];
    bid* const heap = bids_ + first_bid_[e];
    index_t& held = bid_count_[e];
    if (room == 0) {
        rounded_[e] += ahead + step;
        open_[open_count++] = i;
        return;
    }
    if (held == room) {
        std::pop_heap(heap, heap + held);
        open_[open_count++] = heap[--held].row;
    }
    heap[held++] = {rounded_[e] + ahead + step, i};
    std::push_heap(heap, heap + held);
    if (held == room) rounded_[e] = std::max(rounded_[e], heap[0].level);
}

/// Prices from nothing, by a coarse auction.
template <class S>
void price_search<S>::start(double* price) {
    const double unit = spread();
    if (unit == 0) return;
    // Places in all: no fewer than there are rows, shared out as the goals say.
    first_bid_[0] = 0;
    double passed = 0;
    for (index_t e = 0; e < experts_; ++e) {
        passed += goals_.upper[e] / static_cast<double>(choices_);  // only a row's best place is bid for
        first_bid_[e + 1] = std::min<index_t>(count_ + experts_, static_cast<index_t>(std::ceil(passed)));
    }
    auto prices = rounded(price);
    const double last = first_bid_[experts_] > count_ + experts_ ? 0.0 : 1.0;  // any room to spare?
    for (const double part : {0.25, 0.06, 0.015}) {
        std::fill_n(bid_count_, experts_, index_t{0});
        index_t open_count = 0;
        for (index_t i = count_ - 1; i >= 0; --i) open_[open_count++] = static_cast<std::int32_t>(i);
        for (index_t bids = 64 * count_; open_count > 0 && bids > 0; --bids) {
            bid_once(open_[--open_count], static_cast<compute>(part * unit), prices, open_count);
        }
        if (last == 0.0) {
            for (index_t e = 0; e < experts_; ++e) {
                if (bid_count_[e] < first_bid_[e + 1] - first_bid_[e]) rounded_[e] = 0;
            }
        }
    }
    for (index_t e = 0; e < experts_; ++e) {
        if (std::isfinite(price[e])) price[e] = std::isfinite(rounded_[e]) ? static_cast<double>(rounded_[e]) : 0.0;
    }
}

}  // namespace detail
}  // namespace SWITCHYARD_TARGET
}  // namespace switchyard
