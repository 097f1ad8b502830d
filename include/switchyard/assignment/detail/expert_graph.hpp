// The exact part of `hungarian`: shortest augmenting paths on a graph whose nodes are the experts.
//
// Nodes: the E experts, and one more, the *market* M, that stands for the freedom lower_e < upper_e. Expert e reserves
// `reserved_e` places, lower_e <= reserved_e <= upper_e; the reservations of all experts must sum to the number of
// tokens, and expert e must hold as many tokens as it reserved. The excess of a node is
//
//   excess_e = load_e - reserved_e,   excess_M = sum reserved - tokens,   and all of them sum to 0.
//
// Edges, and the cost of a unit sent along them, which is never negative while the prices are right:
//
//   e -> f   a token t of e moves to f      min_t (s_te - s_tf) + p_f - p_e
//   e -> M   e reserves one place more      p_M - p_e             if reserved_e < upper_e
//   M -> e   e gives up a reserved place    p_e - p_M             if reserved_e > lower_e
//
// *Settling*: every token goes to an expert that is best for it at the prices, and every reservation to the bound that
// its price requires. Then no edge has a negative cost. *Draining*: while a node has excess, Dijkstra finds the
// cheapest path to a node with too few units. The price of each node nearer than that node rises by the difference of
// their distances, which makes the path cost 0 and leaves no edge negative. Then as many units as all its edges allow
// at that cost move along it. Each round places at least one unit, whatever the prices were, so T rounds are the worst
// case, and good prices leave few. When no node lacks units, the assignment is optimal and the prices prove it.
//
// An expert whose upper quota is 0 is closed: its price is infinite, and nothing leads to it.
//
// With k experts per token, each token has k *places*, numbered token * k + choice; settling gives it its k best
// experts, and an edge e -> f takes only places of tokens that are not at f already. For k = 1 places and tokens are
// the same. No path asks for two places of a token where one would hinder the other: that would need the token at an
// expert and not at it.
//
// Ties. A token that several experts suit equally goes, in settling, to the one with the most room; a path moves all
// tokens that its lists show to be equally good at once; and filling a list stops as soon as it is full of tokens that
// cannot be beaten. So equal scores or thousands of copies of a token cost no more than other scores.
//
// Cost: settling O(T E); a round O(E) for each expert Dijkstra visits, O(E) for each token moved, and now and then a
// scan of one expert's tokens to refill a list. Memory O(T) and the lists.
#pragma once

#include <switchyard/assignment/assignment.hpp>
#include <switchyard/assignment/detail/candidate_lists.hpp>
#include <switchyard/core/bits.hpp>
#include <switchyard/core/simd.hpp>

#include <algorithm>
#include <cstdint>
#include <functional>
#include <limits>

namespace switchyard {
inline namespace SWITCHYARD_TARGET {
namespace detail {

/// How draining ended.
enum class drained {
    all,      ///< nothing is in excess
    stuck,    ///< what is left cannot get anywhere: the quotas cannot be met
    stopped,  ///< the caller wanted no more
};

template <class S>
class expert_graph {
  public:
    static constexpr std::int32_t nobody = candidate_lists::nobody;
    static constexpr double infinity = std::numeric_limits<double>::infinity();

    /// Memory for up to `most_tokens` tokens.
    expert_graph(const score_source<S>& scores, index_t most_tokens, index_t choices, index_t candidates,
                 workspace& scratch)
        : scores_(scores),
          experts_(scores.experts()),
          choices_(choices),
          candidates_(candidates),
          lists_(experts_, std::min(most_tokens * choices, experts_), list_length(most_tokens * choices), scratch),
          owner_(scratch.take<std::int32_t>(most_tokens * choices)),
          next_(scratch.take<std::int32_t>(most_tokens * choices)),
          previous_(scratch.take<std::int32_t>(most_tokens * choices)),
          first_(scratch.take<std::int32_t>(experts_)),
          load_(scratch.take<index_t>(experts_)),
          lower_(scratch.take<index_t>(experts_)),
          upper_(scratch.take<index_t>(experts_)),
          reserved_(scratch.take<index_t>(experts_)),
          excess_(scratch.take<index_t>(experts_ + 1)),
          price_(scratch.take<double>(experts_ + 1)),
          distance_(scratch.take<double>(experts_ + 1)),
          nearest_(scratch.take<double>(experts_ + 1)),
          from_(scratch.take<std::int32_t>(experts_ + 1)),
          visited_(scratch.take<std::int32_t>(experts_ + 1)),
          row_(scratch.take<double>(experts_)),
          sorted_(scratch.take<double>(choices > 1 ? experts_ : 0)) {}

    /// The tokens to place, rows of the scores, of `all_tokens` that the bounds are for; the others make `fixed` loads
    /// [E] already, or null. Prices stay as they are. False: the others alone are too many somewhere.
    bool pose(const std::int32_t* rows, index_t tokens, const quotas& bounds, index_t all_tokens,
              const index_t* fixed) {
        rows_ = rows;
        tokens_ = tokens;
        bool fits = true;
        for (index_t e = 0; e < experts_; ++e) {
            const index_t others = fixed == nullptr ? 0 : fixed[e];
            const index_t upper = std::min(bounds.upper(e), all_tokens);
            fits = fits && others <= upper;
            lower_[e] = std::max<index_t>(0, bounds.lower(e) - others);
            upper_[e] = std::max<index_t>(0, upper - others);
            if (upper == 0) price_[e] = infinity;
        }
        return fits;
    }

    /// [E], and the market's price after them. Those of closed experts are infinite, all others finite.
    double* prices() const { return price_; }
    /// [tokens, k]
    const std::int32_t* experts_of_tokens() const { return owner_; }
    index_t rounds() const { return rounds_; }
    index_t load(index_t e) const { return load_[e]; }
    index_t lower(index_t e) const { return lower_[e]; }
    index_t upper(index_t e) const { return upper_[e]; }

    index_t settle();
    template <class Stop>
    drained drain(const Stop& stop);
    void repair();
    void count_prices_from_market();

  private:
    index_t list_length(index_t tokens) const {
        const index_t holders = std::max<index_t>(1, std::min(tokens, experts_));
        return std::clamp<index_t>(tokens / (8 * holders), 1, std::max<index_t>(1, candidates_));
    }
    index_t token_of(std::int32_t place) const { return choices_ == 1 ? place : place / choices_; }
    std::int32_t row_of(std::int32_t place) const { return rows_[token_of(place)]; }
    double score(std::int32_t place, index_t e) const { return scores_(row_of(place), e); }
    bool is_market(index_t node) const { return node == experts_; }

    void place(std::int32_t t, index_t e);
    void settle_tied();
    index_t roomiest(double margin) const;
    double read_margins(index_t token);
    void read_moves(std::int32_t place);
    template <class F>
    void each_at_least(double margin, F&& f) const;
    index_t settle_reservations();
    void open_row(index_t e);
    void refill(index_t e, index_t f);
    double cost(index_t u, index_t v) const;
    std::int32_t find_path(index_t source);
    std::int32_t nearest_node() const;
    void visit(index_t u);
    void relax(index_t u, const double* keys);
    void approach(index_t v);
    void raise_prices(std::int32_t target);
    index_t width(index_t source, index_t target) const;
    index_t equally_good(index_t e, index_t f, index_t most) const;
    void send(index_t source, index_t target, index_t units);
    void move(std::int32_t t, index_t e, index_t f);
    void let_siblings_move(std::int32_t t, index_t e, index_t f);
    void know_all();
    double length(index_t u, index_t v) const;
    void cancel_cycles();
    bool shorten_all();
    bool lower_all();
    std::int32_t find_cycle();
    bool send_round(index_t v);

    score_source<S> scores_;
    index_t experts_;
    index_t choices_;
    index_t candidates_;
    candidate_lists lists_;
    const std::int32_t* rows_ = nullptr;  // [tokens]: which row of the scores each token is
    index_t tokens_ = 0;
    index_t rounds_ = 0;
    index_t visited_count_ = 0;
    std::int32_t* owner_;     // [tokens, k]: their experts
    std::int32_t* next_;      // [tokens, k]: the places of an expert, linked
    std::int32_t* previous_;  // [tokens, k]
    std::int32_t* first_;     // [E]
    index_t* load_;           // [E]
    index_t* lower_;          // [E]
    index_t* upper_;          // [E]
    index_t* reserved_;       // [E]
    index_t* excess_;         // [E + 1]
    double* price_;           // [E + 1]
    double* distance_;        // [E + 1]: from the source, tentative until visited
    double* nearest_;         // [E + 1]: the same, infinity once visited
    std::int32_t* from_;      // [E + 1]: the node before on the path
    std::int32_t* visited_;   // [E + 1]: nodes in the order of their distance
    double* row_;             // [E]: scores of one token, or its margins
    double* sorted_;          // [E] scratch, if k > 1
};

// ---- settling ----

template <class S>
void expert_graph<S>::place(std::int32_t t, index_t e) {
    owner_[t] = static_cast<std::int32_t>(e);
    next_[t] = first_[e];
    previous_[t] = nobody;
    if (first_[e] != nobody) previous_[first_[e]] = t;
    first_[e] = t;
    load_[e] += 1;
}

/// row_[e] = s_te - p_e; returns the k-th largest.
template <class S>
double expert_graph<S>::read_margins(index_t token) {
    scores_.read_row(rows_[token], row_);
    for (index_t e = 0; e < experts_; ++e) row_[e] -= price_[e];
    if (choices_ == 1) return largest_of(row_, experts_);
    std::copy_n(row_, experts_, sorted_);
    std::nth_element(sorted_, sorted_ + (choices_ - 1), sorted_ + experts_, std::greater<>());
    return sorted_[choices_ - 1];
}

/// Calls f(e) for every expert with row_[e] >= margin, in order.
template <class S>
template <class F>
void expert_graph<S>::each_at_least(double margin, F&& f) const {
    using P = pack<double, native_width<double>>;
    for (index_t e = 0; e < experts_; e += P::width) {
        const P here = e + P::width <= experts_ ? P::load(row_ + e) : P::load_first(row_ + e, experts_ - e, -infinity);
        for (std::uint32_t bits = at_least_bits(here, P::all(margin)); bits != 0; bits &= bits - 1) {
            f(e + first_bit(bits));
        }
    }
}

/// row_[e] = s_te for a place of token t, and -infinity where the token's other places are.
template <class S>
void expert_graph<S>::read_moves(std::int32_t place) {
    scores_.read_row(row_of(place), row_);
    if (choices_ == 1) return;
    const std::int32_t* const places = owner_ + token_of(place) * choices_;
    const index_t here = owner_[place];
    for (index_t c = 0; c < choices_; ++c) {
        if (places[c] != here) row_[places[c]] = -infinity;
    }
}

/// Every token to its best experts, every reservation to its bound, for the present prices. Returns the excess in all.
template <class S>
index_t expert_graph<S>::settle() {
    std::fill_n(first_, experts_, nobody);
    std::fill_n(load_, experts_, index_t{0});
    for (index_t token = 0; token < tokens_; ++token) {
        const double margin = read_margins(token);
        require(margin > -infinity, "the quotas cannot be met: token ", rows_[token],
                " is allowed only on experts whose upper quota is 0");
        auto place_number = static_cast<std::int32_t>(token * choices_);
        const auto last = static_cast<std::int32_t>(place_number + choices_);
        index_t equal = 0;
        std::int32_t one_equal = nobody;
        each_at_least(margin, [&](index_t e) {
            if (row_[e] > margin) {
                place(place_number++, e);
            } else {
                one_equal = static_cast<std::int32_t>(e);
                equal += 1;
            }
        });
        if (equal == 1) place(place_number++, one_equal);
        for (; place_number < last; ++place_number) owner_[place_number] = nobody;
    }
    settle_tied();
    const index_t excess = settle_reservations();
    const index_t places = tokens_ * choices_;
    lists_.reset(std::min(places, experts_), std::min(list_length(places), 1 + excess / std::max<index_t>(1, experts_)),
                 owner_, choices_);
    return excess;
}

/// Tokens that more experts suit equally than they have places left, once all others are placed.
template <class S>
void expert_graph<S>::settle_tied() {
    for (index_t token = 0; token < tokens_; ++token) {
        const auto first = static_cast<std::int32_t>(token * choices_);
        const auto last = static_cast<std::int32_t>(first + choices_);
        if (owner_[last - 1] != nobody) continue;
        const double margin = read_margins(token);
        for (std::int32_t place_number = first; place_number < last; ++place_number) {
            if (owner_[place_number] == nobody) place(place_number, roomiest(margin));
            row_[owner_[place_number]] = -infinity;
        }
    }
}

/// Of the experts that give the token in row_ this margin: the one that lacks most of its lower bound, else of its
/// upper bound.
template <class S>
index_t expert_graph<S>::roomiest(double margin) const {
    index_t roomiest = nobody;
    index_t most_lacking = 0;
    index_t most_room = 0;
    for (index_t e = 0; e < experts_; ++e) {
        if (row_[e] != margin) continue;
        // A positive price asks for a full expert, a negative one for one at its lower bound.
        const index_t lacking = std::max<index_t>(0, (price_[e] > price_[experts_] ? upper_[e] : lower_[e]) - load_[e]);
        const index_t room = upper_[e] - load_[e];
        if (roomiest == nobody || lacking > most_lacking || (lacking == most_lacking && room > most_room)) {
            roomiest = e;
            most_lacking = lacking;
            most_room = room;
        }
    }
    return roomiest;
}

template <class S>
index_t expert_graph<S>::settle_reservations() {
    const double market_price = price_[experts_];
    index_t all_excess = 0;
    index_t reserved = 0;
    for (index_t e = 0; e < experts_; ++e) {
        if (price_[e] > market_price) {
            reserved_[e] = upper_[e];
        } else if (price_[e] < market_price) {
            reserved_[e] = lower_[e];
        } else {
            reserved_[e] = std::clamp(load_[e], lower_[e], upper_[e]);
        }
        reserved += reserved_[e];
        excess_[e] = load_[e] - reserved_[e];
        all_excess += std::max<index_t>(0, excess_[e]);
    }
    excess_[experts_] = reserved - tokens_ * choices_;
    return all_excess + std::max<index_t>(0, excess_[experts_]);
}

/// Only differences of prices matter to the paths; to the certificate, those to the market's.
template <class S>
void expert_graph<S>::count_prices_from_market() {
    for (index_t e = 0; e <= experts_; ++e) price_[e] -= price_[experts_];
}

// ---- the lists of what may move ----

template <class S>
void expert_graph<S>::open_row(index_t e) {
    lists_.open_row(e);
    for (std::int32_t t = first_[e]; t != nobody; t = next_[t]) {
        read_moves(t);
        lists_.bound_all(e, row_);
    }
}

template <class S>
void expert_graph<S>::refill(index_t e, index_t f) {
    const double least = lists_.bound(e, f);
    lists_.clear(e, f);
    for (std::int32_t t = first_[e]; t != nobody; t = next_[t]) {
        if (!lists_.may_move(t, e, f)) continue;
        lists_.offer(e, f, score(t, e) - score(t, f), t);
        if (lists_.full_of(e, f, least)) {  // no token can be better than these
            lists_.lower_bound_to(e, f, least);
            return;
        }
    }
}

}  // namespace detail
}  // namespace SWITCHYARD_TARGET
}  // namespace switchyard
