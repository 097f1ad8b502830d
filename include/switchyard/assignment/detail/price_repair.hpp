// Prices anew from the assignment alone, for scores whose sizes differ by more digits than a double has.
//
// A token with scores of 1e30 and 1 makes prices of 1e30, beside which other tokens' small differences vanish: draining
// may then choose wrongly among them, and prices may be rounded to the wrong side. The certificate notices. `repair`
// looks at the assignment without its prices: Bellman and Ford's algorithm on the score lost along each edge finds a
// cycle that gains, which is sent round, until there is none; the distances are then prices, each rounded to the side
// on which no token prefers another expert. On ordinary scores nobody calls this.
#pragma once

#include <switchyard/assignment/detail/expert_graph.hpp>
#include <switchyard/assignment/detail/expert_paths.hpp>
#include <switchyard/core/rounding.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>

namespace switchyard {
inline namespace SWITCHYARD_TARGET {
namespace detail {

/// Passes over the pairs of experts that a repair may take.
inline constexpr int most_repair_passes = 500;

/// a + b, rounded down.
inline double sum_below(double a, double b) {
    const double sum = settled(a + b);
    const double b_seen = settled(sum - a);
    const double rounding = settled(a - settled(sum - b_seen)) + settled(b - b_seen);
    return rounding < 0 ? std::nextafter(sum, -std::numeric_limits<double>::infinity()) : sum;
}

/// Improves the assignment where a cycle of moves gains, then prices it. Gives up after a bounded effort: the
/// assignment stays within the quotas all the same.
template <class S>
void expert_graph<S>::repair() {
    for (index_t e = 0; e < experts_; ++e) price_[e] = upper_[e] == 0 ? infinity : price_[e];
    cancel_cycles();
    // How far above the market's price each price must at least be ...
    const int most_passes = static_cast<int>(std::min<index_t>(experts_ + 1, most_repair_passes));
    std::fill_n(distance_, experts_ + 1, infinity);
    distance_[experts_] = 0;
    for (int pass = 0; pass < most_passes && shorten_all(); ++pass) continue;
    // ... and then all of them as near to it as the others let them.
    for (index_t v = 0; v <= experts_; ++v) {
        if (price_[v] < infinity) price_[v] = std::max(0.0, 0.0 - distance_[v]);
    }
    for (int pass = 0; pass < most_passes && lower_all(); ++pass) continue;
}

template <class S>
void expert_graph<S>::cancel_cycles() {
    bool from_scratch = true;
    for (int pass = 0; pass < most_repair_passes; ++pass) {
        if (from_scratch) {
            know_all();
            std::fill_n(distance_, experts_ + 1, 0.0);
            std::fill_n(from_, experts_ + 1, nobody);
        }
        const bool shortened = shorten_all();
        const std::int32_t on_cycle = find_cycle();
        if (on_cycle == nobody && !shortened) return;
        if (on_cycle != nobody && !send_round(on_cycle)) return;
        from_scratch = on_cycle != nobody;
    }
}

/// Every list that a cycle may use shows its best token.
template <class S>
void expert_graph<S>::know_all() {
    for (index_t e = 0; e < experts_; ++e) {
        if (load_[e] == 0) continue;
        if (!lists_.has_row(e)) open_row(e);
        for (index_t f = 0; f < experts_; ++f) {
            if (f != e && !lists_.known(e, f)) refill(e, f);
        }
    }
}

/// The score lost by a unit from u to v, rounded down: no price takes part.
template <class S>
double expert_graph<S>::length(index_t u, index_t v) const {
    if (u == v || price_[v] == infinity || price_[u] == infinity) return infinity;
    if (is_market(v)) return reserved_[u] < upper_[u] ? 0.0 : infinity;
    if (is_market(u)) return reserved_[v] > lower_[v] ? 0.0 : infinity;
    if (load_[u] == 0 || lists_.best(u, v) == nobody) return infinity;
    const std::int32_t t = lists_.best(u, v);
    return sum_below(score(t, u), -score(t, v));
}

/// One pass over all edges; whether any node came nearer.
template <class S>
bool expert_graph<S>::shorten_all() {
    bool shortened = false;
    for (index_t u = 0; u <= experts_; ++u) {
        if (distance_[u] == infinity) continue;
        for (index_t v = 0; v <= experts_; ++v) {
            const double step = length(u, v);
            const double there = step < infinity ? sum_below(distance_[u], step) : infinity;
            if (there < distance_[v]) {
                distance_[v] = there;
                from_[v] = static_cast<std::int32_t>(u);
                shortened = true;
            }
        }
    }
    return shortened;
}

/// One pass over all edges that lowers prices too high for an edge from there; whether there were any.
template <class S>
bool expert_graph<S>::lower_all() {
    bool lowered = false;
    for (index_t u = 0; u < experts_; ++u) {
        for (index_t v = 0; v <= experts_; ++v) {
            const double step = length(u, v);
            const double most = step < infinity ? sum_below(price_[v], step) : infinity;
            if (most < price_[u]) {
                price_[u] = most;
                lowered = true;
            }
        }
    }
    return lowered;
}

/// A node on a cycle of the paths found so far, or nobody.
template <class S>
std::int32_t expert_graph<S>::find_cycle() {
    std::int32_t* const walk = visited_;  // which walk has been at a node
    std::fill_n(walk, experts_ + 1, nobody);
    for (std::int32_t start = 0; start <= experts_; ++start) {
        std::int32_t v = start;
        while (v != nobody && walk[v] == nobody) {
            walk[v] = start;
            v = from_[v];
        }
        if (v != nobody && walk[v] == start) return v;
    }
    return nobody;
}

/// Sends a unit round the cycle through v. False if it gains nothing: rounding alone made it.
template <class S>
bool expert_graph<S>::send_round(index_t v) {
    accurate_sum lost;
    index_t node = v;
    do {
        const index_t before = from_[node];
        if (!is_market(node) && !is_market(before)) {
            // Which token moves is settled before any moves; `visited_` keeps it.
            visited_[node] = lists_.best(before, node);
            lost.add(score(visited_[node], before));
            lost.add(-score(visited_[node], node));
        }
        node = before;
    } while (node != v);
    if (lost.value() >= 0) return false;
    do {
        const index_t before = from_[node];
        if (is_market(node)) {
            reserved_[before] += 1;
        } else if (is_market(before)) {
            reserved_[node] -= 1;
        } else {
            move(visited_[node], before, node);
        }
        node = before;
    } while (node != v);
    rounds_ += 1;
    return true;
}

}  // namespace detail
}  // namespace SWITCHYARD_TARGET
}  // namespace switchyard
