// The experts' side of the auction: who holds which place at what level, and what the next bid must beat.
//
// Expert e has upper_e places. lower_e of them must go to tokens; the others may also be left to *dummies*, D = sum
// upper - T k of them, which stand for the places that stay empty. Each token's place is held at a *level*, the bid
// that won it; each dummy sits at the *water level*, one for all. An expert's price is the cheapest of its places:
//
//   load < lower            its ask, which is where its prices began
//   lower <= load < upper   the lowest level of its tokens or max(water, ask), whichever is less
//   load = upper            the lowest level of its tokens
//
// Dummies are indifferent between experts, so they need no bids one by one: they sit in the D cheapest places that are
// theirs to take. Where tokens left them too few at the water level, the water rises: to the next ask, which lets them
// in there, or to the lowest level of a token beyond its expert's lower bound, which is outbid and bids again. No price
// ever falls, so what a bid was compared with when it was made stays true.
//
// Once every token is placed, all D dummies are, and every place is taken: an expert with room then costs the water
// level or, at its lower bound, less, and one above the water level is full. With prices counted from the water level
// that is complementary slackness on the experts' side, exactly, wherever the prices began and however large D is.
#pragma once

#include <switchyard/assignment/quotas.hpp>
#include <switchyard/core/config.hpp>
#include <switchyard/core/workspace.hpp>

#include <algorithm>
#include <cstdint>
#include <limits>

namespace switchyard {
inline namespace SWITCHYARD_TARGET {
namespace detail {

class auction_market {
  public:
    /// Room for `places` places of tokens, T k at most.
    auction_market(index_t experts, index_t places, workspace& scratch) : experts_(experts) {
        level_ = scratch.take<double>(places);
        child_ = scratch.take<std::int32_t>(places);
        sibling_ = scratch.take<std::int32_t>(places);
        lowest_ = scratch.take<std::int32_t>(experts);
        load_ = scratch.take<index_t>(experts);
        lower_ = scratch.take<index_t>(experts);
        upper_ = scratch.take<index_t>(experts);
        ask_ = scratch.take<double>(experts);
        price_ = scratch.take<double>(experts);
        event_ = scratch.take<double>(experts);
    }

    /// Opens with no token placed, at the present prices. bounds(e) gives the pair of bounds.
    template <class Bounds>
    void open(index_t places, Bounds&& bounds) {
        index_t room = 0;
        for (index_t e = 0; e < experts_; ++e) {
            bounds(e, lower_[e], upper_[e]);
            room += upper_[e];
            load_[e] = 0;
            lowest_[e] = none;
            ask_[e] = price_[e];
        }
        dummies_ = room - places;
        seats_ = 0;
        water_ = -infinity;
        for (index_t e = 0; e < experts_; ++e) update(e);
        raise_water([](std::int32_t) {});
    }

    /// A bid of `place` for expert e. Calls outbid(place) for the place that is left without an expert, if any: the
    /// bidder's own, or another. Precondition: upper_e > 0.
    template <class Outbid>
    void bid(std::int32_t place, index_t e, double level, Outbid&& outbid) {
        level_[place] = level;
        if (load_[e] == upper_[e] && before(place, lowest_[e])) {
            outbid(place);
            return;
        }
        child_[place] = sibling_[place] = none;
        lowest_[e] = join(lowest_[e], place);
        load_[e] += 1;
        const bool flooded = load_[e] > lower_[e] && level_[lowest_[e]] < water_;
        if (load_[e] > lower_[e]) seats_ -= ask_[e] <= water_ ? 1 : 0;
        if (load_[e] > upper_[e] || flooded) outbid(remove_lowest(e));
        update(e);
    }

    /// Lets the dummies find the places they need: see above. Calls outbid(place) for tokens' places that they take.
    template <class Outbid>
    void raise_water(Outbid&& outbid) {
        if (seats_ >= dummies_) return;
        while (seats_ < dummies_) {
            const double next = *std::min_element(event_, event_ + experts_);
            water_ = next;
            // Asks first: they cost nobody a place.
            for (index_t e = 0; e < experts_; ++e) {
                if (event_[e] != next || ask_[e] != next) continue;
                seats_ += seats_at(e);
                update(e);
            }
            for (index_t e = 0; e < experts_ && seats_ < dummies_; ++e) {
                if (event_[e] != next) continue;
                outbid(remove_lowest(e));
                update(e);
            }
        }
        for (index_t e = 0; e < experts_; ++e) update(e);
    }

    double* prices() { return price_; }
    double water() const { return water_; }
    index_t load(index_t e) const { return load_[e]; }
    bool has_dummies() const { return dummies_ > 0; }

  private:
    static constexpr std::int32_t none = -1;
    static constexpr double infinity = std::numeric_limits<double>::infinity();

    /// Whether place a loses to place b: a lower level, or the same and a later token.
    bool before(std::int32_t a, std::int32_t b) const {
        return level_[a] < level_[b] || (level_[a] == level_[b] && a > b);
    }

    index_t seats_at(index_t e) const { return upper_[e] - std::max(load_[e], lower_[e]); }

    /// The price, and the water level at which something happens at this expert.
    void update(index_t e) {
        const double lowest = lowest_[e] == none ? infinity : level_[lowest_[e]];
        const bool shut = seats_at(e) > 0 && ask_[e] > water_;  // places that dummies do not want yet
        event_[e] = shut ? ask_[e] : load_[e] > lower_[e] ? lowest : infinity;
        if (load_[e] == upper_[e]) {
            price_[e] = lowest;  // infinite if there is no place
        } else if (load_[e] < lower_[e]) {
            price_[e] = ask_[e];
        } else {
            price_[e] = std::min(lowest, std::max(water_, ask_[e]));
        }
    }

    std::int32_t remove_lowest(index_t e) {
        const std::int32_t removed = lowest_[e];
        lowest_[e] = join_children(removed);
        if (load_[e] > lower_[e]) seats_ += ask_[e] <= water_ ? 1 : 0;
        load_[e] -= 1;
        return removed;
    }

    // Each expert's places are a pairing heap (Fredman, Sedgewick, Sleator and Tarjan 1986), the lowest on top.
    std::int32_t join(std::int32_t a, std::int32_t b) {
        if (a == none) return b;
        if (before(b, a)) std::swap(a, b);
        sibling_[b] = child_[a];
        child_[a] = b;
        return a;
    }

    std::int32_t join_children(std::int32_t parent) {
        std::int32_t pairs = none;
        for (std::int32_t c = child_[parent]; c != none;) {
            const std::int32_t a = c;
            const std::int32_t b = sibling_[a];
            c = b == none ? none : sibling_[b];
            sibling_[a] = none;
            const std::int32_t pair = b == none ? a : (sibling_[b] = none, join(a, b));
            sibling_[pair] = pairs;
            pairs = pair;
        }
        std::int32_t root = none;
        while (pairs != none) {
            const std::int32_t next = sibling_[pairs];
            sibling_[pairs] = none;
            root = join(root, pairs);
            pairs = next;
        }
        return root;
    }

    index_t experts_;
    index_t dummies_ = 0;
    index_t seats_ = 0;  // places open to dummies at the water level
    double water_ = -infinity;
    double* level_;          // [T k]
    std::int32_t* child_;    // [T k]
    std::int32_t* sibling_;  // [T k]
    std::int32_t* lowest_;   // [E]: the place of each that is outbid next
    index_t* load_;          // [E]
    index_t* lower_;         // [E]
    index_t* upper_;         // [E]
    double* ask_;            // [E]: where prices began
    double* price_;          // [E]
    double* event_;          // [E]: see update
};

}  // namespace detail
}  // namespace SWITCHYARD_TARGET
}  // namespace switchyard
