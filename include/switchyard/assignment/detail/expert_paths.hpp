// Draining the graph of experts (expert_graph.hpp): Dijkstra's algorithm, and sending units along the path it finds.
//
// Dijkstra starts at one node with excess and stops at the nearest that lacks, so it mostly visits a few experts. An
// edge whose list has run empty takes part with its bound, which is never above its true cost; only when a node is
// about to be visited by way of such an edge is the list refilled and the node's distance found again.
#pragma once

#include <switchyard/assignment/detail/expert_graph.hpp>
#include <switchyard/core/bits.hpp>
#include <switchyard/core/simd.hpp>

#include <algorithm>
#include <cstdint>

namespace switchyard {
inline namespace SWITCHYARD_TARGET {
namespace detail {

/// Moves all excess to where it lacks, unless it is stuck or stop(rounds) says so.
template <class S>
template <class Stop>
drained expert_graph<S>::drain(const Stop& stop) {
    for (index_t source = 0; source <= experts_; ++source) {
        while (excess_[source] > 0) {
            if (stop(rounds_)) return drained::stopped;
            const std::int32_t target = find_path(source);
            if (target == nobody) return drained::stuck;
            raise_prices(target);
            send(source, target, width(source, target));
            rounds_ += 1;
        }
    }
    return drained::all;
}

/// What a unit from u to v costs, or no more than it costs where the list of (u, v) only has a bound.
template <class S>
double expert_graph<S>::cost(index_t u, index_t v) const {
    const double price_step = price_[v] - price_[u];
    if (is_market(v)) return reserved_[u] < upper_[u] ? std::max(0.0, price_step) : infinity;
    if (is_market(u)) return reserved_[v] > lower_[v] ? std::max(0.0, price_step) : infinity;
    return load_[u] > 0 ? std::max(0.0, lists_.best_keys(u)[v] + price_step) : infinity;
}

/// The nearest node that lacks units, or nobody.
template <class S>
std::int32_t expert_graph<S>::find_path(index_t source) {
    std::fill_n(distance_, experts_ + 1, infinity);
    std::fill_n(nearest_, experts_ + 1, infinity);
    visited_count_ = 0;
    distance_[source] = nearest_[source] = 0;
    from_[source] = nobody;
    for (;;) {
        const std::int32_t v = nearest_node();
        if (v == nobody) return nobody;
        const std::int32_t u = from_[v];
        if (u != nobody && !is_market(u) && !is_market(v) && !lists_.known(u, v)) {
            const double bound = lists_.best_keys(u)[v];
            refill(u, v);
            if (lists_.best_keys(u)[v] != bound) {
                approach(v);
                continue;
            }
        }
        if (excess_[v] < 0) return v;
        visit(v);
    }
}

/// The unvisited node with the least distance, the first of equal ones but rather one that lacks units; or nobody.
template <class S>
std::int32_t expert_graph<S>::nearest_node() const {
    using P = pack<double, native_width<double>>;
    const index_t nodes = experts_ + 1;
    const auto nearest_at = [&](index_t v) { return P::load_first(nearest_ + v, nodes - v, infinity); };
    const index_t whole = nodes / P::width * P::width;
    P least = P::all(infinity);
    for (index_t v = 0; v < whole; v += P::width) least = min(least, P::load(nearest_ + v));
    if (whole < nodes) least = min(least, nearest_at(whole));
    const double distance = lowest(least);
    if (distance == infinity) return nobody;
    std::int32_t found = nobody;
    const auto among = [&](index_t v, P here) {
        for (std::uint32_t bits = equal_bits(here, P::all(distance)); bits != 0; bits &= bits - 1) {
            const index_t node = v + first_bit(bits);
            if (found == nobody || (excess_[node] < 0 && excess_[found] >= 0)) found = static_cast<std::int32_t>(node);
        }
    };
    for (index_t v = 0; v < whole; v += P::width) among(v, P::load(nearest_ + v));
    if (whole < nodes) among(whole, nearest_at(whole));
    return found;
}

/// Node u has its final distance: its neighbours may be nearer through it.
template <class S>
void expert_graph<S>::visit(index_t u) {
    nearest_[u] = infinity;
    visited_[visited_count_++] = static_cast<std::int32_t>(u);
    if (!is_market(u) && load_[u] > 0) {
        if (!lists_.has_row(u)) open_row(u);
        relax(u, lists_.best_keys(u));
    }
    const auto reach = [&](index_t v) {
        const double there = distance_[u] + cost(u, v);
        if (there < distance_[v]) {
            distance_[v] = nearest_[v] = there;
            from_[v] = static_cast<std::int32_t>(u);
        }
    };
    if (is_market(u)) {
        for (index_t v = 0; v < experts_; ++v) reach(v);
    } else {
        reach(experts_);
    }
}

/// The neighbours of expert u, whose tokens lose `keys` [E] at least on the way to each.
template <class S>
void expert_graph<S>::relax(index_t u, const double* keys) {
    using P = pack<double, native_width<double>>;
    const P here = P::all(distance_[u]);
    const P price_here = P::all(price_[u]);
    const auto shorten = [&](index_t v, P key, P price, P before) {
        const P there = here + max(P::all(0.0), key + (price - price_here));
        std::uint32_t bits = at_least_bits(before, there) & ~equal_bits(before, there);
        if (bits == 0) return;
        double distances[P::width];
        there.store(distances);
        for (; bits != 0; bits &= bits - 1) {
            const int i = first_bit(bits);
            distance_[v + i] = nearest_[v + i] = distances[i];
            from_[v + i] = static_cast<std::int32_t>(u);
        }
    };
    const index_t whole = experts_ / P::width * P::width;
    for (index_t v = 0; v < whole; v += P::width) {
        shorten(v, P::load(keys + v), P::load(price_ + v), P::load(distance_ + v));
    }
    if (whole < experts_) {
        const index_t rest = experts_ - whole;
        shorten(whole, P::load_first(keys + whole, rest, infinity), P::load_first(price_ + whole, rest, 0.0),
                P::load_first(distance_ + whole, rest, -infinity));
    }
}

/// The distance of v once more from all visited nodes, after an edge to it turned out longer than its bound.
template <class S>
void expert_graph<S>::approach(index_t v) {
    distance_[v] = infinity;
    from_[v] = nobody;
    for (index_t i = 0; i < visited_count_; ++i) {
        const std::int32_t u = visited_[i];
        const double there = distance_[u] + cost(u, v);
        if (there < distance_[v]) {
            distance_[v] = there;
            from_[v] = u;
        }
    }
    nearest_[v] = distance_[v];
}

template <class S>
void expert_graph<S>::raise_prices(std::int32_t target) {
    for (index_t i = 0; i < visited_count_; ++i) {
        price_[visited_[i]] += distance_[target] - distance_[visited_[i]];
    }
}

/// How many units the path takes: no more than there are, than the target lacks, and than move at its cost.
template <class S>
index_t expert_graph<S>::width(index_t source, index_t target) const {
    index_t units = choices_ == 1 ? std::min(excess_[source], -excess_[target]) : 1;
    for (index_t v = target; v != source; v = from_[v]) {
        const index_t u = from_[v];
        const index_t here = is_market(v)   ? upper_[u] - reserved_[u]
                             : is_market(u) ? reserved_[v] - lower_[v]
                                            : equally_good(u, v, units);
        units = std::min(units, here);
    }
    return units;
}

/// How many tokens of e lose no more than the best on the way to f, `most` being enough.
template <class S>
index_t expert_graph<S>::equally_good(index_t e, index_t f, index_t most) const {
    const double key = lists_.best_keys(e)[f];
    const index_t listed = lists_.count_best(e, f);
    if (listed >= most || !lists_.full_of(e, f, key)) return listed;
    index_t count = 0;
    for (std::int32_t t = first_[e]; t != nobody && count < most; t = next_[t]) {
        count += score(t, e) - score(t, f) == key && lists_.may_move(t, e, f) ? 1 : 0;
    }
    return count;
}

/// Sends units along the path, last edge first: what arrives at a node does not take part in what leaves it.
template <class S>
void expert_graph<S>::send(index_t source, index_t target, index_t units) {
    for (index_t v = target; v != source; v = from_[v]) {
        const index_t u = from_[v];
        if (is_market(v)) {
            reserved_[u] += units;
        } else if (is_market(u)) {
            reserved_[v] -= units;
        } else {
            for (index_t i = 0; i < units; ++i) {
                if (!lists_.known(u, v)) refill(u, v);
                move(lists_.best(u, v), u, v);
            }
        }
    }
    excess_[source] -= units;
    excess_[target] += units;
}

template <class S>
void expert_graph<S>::move(std::int32_t t, index_t e, index_t f) {
    const std::int32_t before = previous_[t];
    const std::int32_t after = next_[t];
    (before != nobody ? next_[before] : first_[e]) = after;
    if (after != nobody) previous_[after] = before;
    load_[e] -= 1;
    place(t, f);
    if (load_[e] == 0) {
        lists_.close_row(e);
    } else {
        lists_.remove(e, t);
    }
    if (lists_.has_row(f)) {
        read_moves(t);
        lists_.offer_all(f, row_, t);
    }
    if (choices_ > 1) let_siblings_move(t, e, f);
}

/// A token went from e to f: its other places may now move to e, and no more to f.
template <class S>
void expert_graph<S>::let_siblings_move(std::int32_t t, index_t e, index_t f) {
    const auto first = static_cast<std::int32_t>(token_of(t) * choices_);
    for (std::int32_t other = first; other < first + choices_; ++other) {
        const index_t here = owner_[other];
        if (other == t || !lists_.has_row(here)) continue;
        lists_.remove(here, f, other);
        lists_.offer(here, e, score(other, here) - score(other, e), other);
    }
}

}  // namespace detail
}  // namespace SWITCHYARD_TARGET
}  // namespace switchyard
