// Better prices (price_search.hpp): Newton's method on D, the price of all tokens.
//
// Where tokens are nearly tied between two experts, the number of those within a band of margins says how many move
// when the difference of the two prices changes. L, the graph Laplacian on the experts with these numbers for weights,
// is D's second derivative, seen from as far as the band reaches; load - goal is its first, negated. L step = load -
// goal is solved by conjugate gradients, to what accuracy the counts deserve. A step that does not help is halved.
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

/// The band to count nearly tied rows in, 0 if there are none.
template <class S>
double price_search<S>::step_band(index_t torn) const {
    index_t tied = 0;
    for (index_t i = 0; i < count_; ++i) tied += margin_[i] > 0 ? 0 : 1;
    const double band = tied < count_ ? band_for(std::min(count_, tied + torn)) : 0.0;
    return std::isfinite(band) ? band : 0.0;
}

/// Between which experts rows with margins below `band` are nearly tied, and how many a unit of price would move.
template <class S>
index_t price_search<S>::torn_pairs(double band) {
    index_t count = 0;
    const bool tabled = experts_ <= most_tabled;
    const double weight = 1 / (2 * band);
    if (tabled) std::fill_n(table_, experts_ * experts_, 0);
    for (index_t i = 0; i < count_; ++i) {
        const std::int32_t last = expert_[i * choices_ + choices_ - 1];
        if (last < 0 || next_[i] < 0 || last == next_[i] || !(static_cast<double>(margin_[i]) < band)) continue;
        const auto [low, high] = std::minmax(last, next_[i]);
        if (tabled) {
            table_[low * experts_ + high] += 1;
        } else {
            pairs_[count++] = {low, high, weight};
        }
    }
    if (!tabled) return count;
    for (std::int32_t low = 0; low < experts_; ++low) {
        for (std::int32_t high = low + 1; high < experts_; ++high) {
            const std::int32_t torn = table_[low * experts_ + high];
            if (torn > 0) pairs_[count++] = {low, high, weight * torn};
        }
    }
    return count;
}

/// step_: L step = load - goal, by conjugate gradients; 0 where a price of 0 is right as it is.
template <class S>
void price_search<S>::solve_step(const double* price, index_t pair_count) {
    std::fill_n(degree_, experts_, 0.0);
    for (index_t i = 0; i < pair_count; ++i) {
        degree_[pairs_[i].first] += pairs_[i].weight;
        degree_[pairs_[i].second] += pairs_[i].weight;
    }
    double degrees = 0;
    for (index_t e = 0; e < experts_; ++e) degrees += degree_[e];
    const double ridge = 1e-3 * degrees / static_cast<double>(experts_) + std::numeric_limits<double>::min();
    const auto held = [&](index_t e) {
        const auto load = static_cast<double>(load_[e]);
        return !goals_.tied(e) && price[e] == 0 && load == goals_.at(e, 0.0, load);
    };
    double energy = 0;  // residual . residual / degree
    for (index_t e = 0; e < experts_; ++e) {
        degree_[e] += ridge;
        step_[e] = 0;
        const auto load = static_cast<double>(load_[e]);
        residual_[e] = held(e) ? 0.0 : load - goals_.at(e, price[e], load);
        direction_[e] = residual_[e] / degree_[e];
        energy += residual_[e] * direction_[e];
    }
    const double enough = 1e-6 * energy;
    for (index_t round = 0; round < 2 * experts_ && round < 200 && energy > enough; ++round) {
        for (index_t e = 0; e < experts_; ++e) product_[e] = degree_[e] * direction_[e];
        for (index_t i = 0; i < pair_count; ++i) {
            const auto& pair = pairs_[i];
            product_[pair.first] -= pair.weight * direction_[pair.second];
            product_[pair.second] -= pair.weight * direction_[pair.first];
        }
        double curvature = 0;
        for (index_t e = 0; e < experts_; ++e) {
            if (held(e)) product_[e] = 0;
            curvature += direction_[e] * product_[e];
        }
        if (!(curvature > 0)) break;
        const double length = energy / curvature;
        double next_energy = 0;
        for (index_t e = 0; e < experts_; ++e) {
            step_[e] += length * direction_[e];
            residual_[e] -= length * product_[e];
            next_energy += residual_[e] * residual_[e] / degree_[e];
        }
        const double carry = next_energy / energy;
        energy = next_energy;
        for (index_t e = 0; e < experts_; ++e) direction_[e] = residual_[e] / degree_[e] + carry * direction_[e];
    }
}

/// A look at these prices, which it rounds to the compute type.
template <class S>
template <class Policy>
typename price_search<S>::outcome price_search<S>::try_prices(const Policy& policy, double* price) {
    outcome found;
    found.value = look(policy, price);
    for (index_t e = 0; e < experts_; ++e) price[e] = static_cast<double>(rounded_[e]);
    found.excess = excess(price);
    return found;
}

/// price = from_ + part of the step, no further than the counts that made it can be trusted.
template <class S>
void price_search<S>::move(double part, double furthest, double* price) const {
    for (index_t e = 0; e < experts_; ++e) {
        const double moved = from_[e] + part * std::clamp(step_[e], -furthest, furthest);
        const bool crosses = !goals_.tied(e) && from_[e] * moved < 0;
        price[e] = crosses ? 0.0 : moved;
    }
}

/// Tries the step in step_, and shorter ones while they are better, by as many places as a look is worth. Returns
/// whether it got anywhere; `now` and the last look are then of the prices it leaves.
template <class S>
template <class Policy>
bool price_search<S>::search_line(const Policy& policy, double furthest, double worth, double* price, outcome& now,
                                  index_t& looks) {
    constexpr double good = 0.7;     // an excess so much smaller is worth no further search
    constexpr double little = 0.95;  // one no smaller than that is not worth a step, unless D says so
    outcome best;
    double best_part = 0;
    const double first_part = part_;
    for (int tries = 0; tries < 6; ++tries, part_ /= 2) {
        move(part_, furthest, price);
        const outcome next = try_prices(policy, price);
        looks += 1;
        const bool better = best_part == 0 || next.excess < best.excess;
        const bool little_better = better && best_part > 0 && best.excess - next.excess < worth;
        if (better) {
            best = next;
            best_part = part_;
        }
        if (next.excess < good * now.excess || (little_better && next.excess < now.excess)) break;
        if (!better) {  // the one before, twice as long, it is
            part_ = best_part;
            move(part_, furthest, price);
            try_prices(policy, price);
            looks += 1;
            break;
        }
    }
    const bool helped = best_part > 0 && (best.excess < little * now.excess ||
                                          (best.value < now.value && best.excess < 1.5 * now.excess));
    if (helped) {
        now = best;
        part_ = best_part < first_part ? best_part : std::min(1.0, 2 * best_part);
    } else {
        std::copy_n(from_, experts_, price);
        try_prices(policy, price);
        looks += 1;
        part_ = 1;
    }
    return helped;
}

/// Moves the prices until few enough places are taken beyond the goals, or no step helps. The last look of the set is
/// one at the prices that it leaves, which are rounded to the compute type.
template <class S>
template <class Policy>
refined price_search<S>::refine(const Policy& policy, double* price, const refinement& wanted) {
    refined made;
    outcome now = wanted.looked ? outcome{value_at(price), excess(price)} : try_prices(policy, price);
    made.looks = wanted.looked ? 0 : 1;
    // A look and its part of a step take as long as about so many shortest paths, each of which places a token.
    const double worth = wanted.until_paths_pay ? static_cast<double>(count_ + 8 * experts_) / 256 : 0.0;
    if (!wanted.looked) part_ = 1;
    while (made.steps < wanted.most_steps && now.excess > std::max(wanted.enough, 2 * worth)) {
        const double band = step_band(static_cast<index_t>(4 * now.excess) + experts_);
        if (!(band > 0)) break;
        solve_step(price, torn_pairs(band));
        std::copy_n(price, experts_, from_);
        const double before = now.excess;
        const index_t looks_before = made.looks;
        // Far from the goals, many tokens wait at few experts, and paths are long: every step counts.
        const auto near = [&] { return now.excess < static_cast<double>(16 * experts_); };
        if (!search_line(policy, 3 * band, near() ? worth : 0.0, price, now, made.looks)) break;
        made.steps += 1;
        const double least = std::max(0.1 * before, worth * static_cast<double>(made.looks - looks_before));
        if (near() && before - now.excess < least) break;  // the paths do it faster
    }
    return made;
}

}  // namespace detail
}  // namespace SWITCHYARD_TARGET
}  // namespace switchyard
