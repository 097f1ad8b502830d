// The cheapest tokens to move from one expert to another, for every pair of experts.
//
// Moving token t from expert e to f loses  key = s_te - s_tf  of score, whatever the prices are. Each pair (e, f) keeps
// the few tokens of e with the smallest keys, best last, and a `bound`: every token of e that is not in the list has a
// key of at least that. A list that has run empty still gives the bound, and is refilled from e's tokens only when
// someone needs to know better. A row (e, all f) exists only for experts that hold tokens and were asked for.
//
// A token that leaves e stays in the lists of e until it comes up as their best (`owner` tells); coming back, it finds
// itself there. Equal keys: the lower token first.
//
// With k experts per token, what moves is one of its k *places*, numbered token * k + choice; it may not move to where
// the token is already. For k = 1 places are tokens, and are called so here.
//
// Memory: rows x E x (24 + 12 length) bytes.
#pragma once

#include <switchyard/core/config.hpp>
#include <switchyard/core/simd.hpp>
#include <switchyard/core/workspace.hpp>

#include <algorithm>
#include <cstdint>
#include <limits>

namespace switchyard {
inline namespace SWITCHYARD_TARGET {
namespace detail {

class candidate_lists {
  public:
    static constexpr std::int32_t nobody = -1;

    /// Memory for at most `rows` experts that hold tokens at the same time.
    candidate_lists(index_t experts, index_t rows, index_t length, workspace& scratch)
        : experts_(experts),
          longest_(length),
          rows_(rows),
          row_of_(scratch.take<std::int32_t>(experts)),
          free_rows_(scratch.take<std::int32_t>(rows)),
          best_key_(scratch.take<double>(rows * experts)),
          bound_(scratch.take<double>(rows * experts)),
          best_(scratch.take<std::int32_t>(rows * experts)),
          count_(scratch.take<std::int32_t>(rows * experts)),
          keys_(scratch.take<double>(rows * experts * length)),
          tokens_(scratch.take<std::int32_t>(rows * experts * length)) {}

    /// Forgets everything. `owner[t]` is the expert that holds token t, kept up to date by the caller.
    void reset(index_t rows, index_t length, const std::int32_t* owner, index_t choices) {
        owner_ = owner;
        choices_ = choices;
        length_ = std::min(length, longest_);
        std::fill_n(row_of_, experts_, nobody);
        free_count_ = std::min(rows, rows_);
        for (index_t r = 0; r < free_count_; ++r) free_rows_[r] = static_cast<std::int32_t>(free_count_ - 1 - r);
    }

    bool has_row(index_t e) const { return row_of_[e] != nobody; }
    /// A row with empty lists that claim to be complete: offer every token of e to it, or let it bound them.
    void open_row(index_t e) {
        row_of_[e] = free_rows_[--free_count_];
        for (index_t f = 0; f < experts_; ++f) clear(e, f);
        bound_[at(e, e)] = -std::numeric_limits<double>::infinity();  // takes no token
    }
    void close_row(index_t e) {
        free_rows_[free_count_++] = row_of_[e];
        row_of_[e] = nobody;
    }

    /// For all f: the smallest key of e's tokens, or a lower bound of it where `known` is false; infinity: no token of
    /// e may go to f. The key of (e, e) is infinity.
    const double* best_keys(index_t e) const { return best_key_ + at(e, 0); }
    double bound(index_t e, index_t f) const { return bound_[at(e, f)]; }
    /// Whether the smallest key is known, and not only bounded.
    bool known(index_t e, index_t f) const {
        const index_t pair = at(e, f);
        return best_[pair] != nobody || bound_[pair] == std::numeric_limits<double>::infinity();
    }

    /// An empty list that claims to be complete.
    void clear(index_t e, index_t f) {
        const index_t pair = at(e, f);
        count_[pair] = 0;
        best_[pair] = nobody;
        bound_[pair] = best_key_[pair] = std::numeric_limits<double>::infinity();
    }

    /// Token t of e could move to f and lose `key`: keeps it if it is among the best.
    void offer(index_t e, index_t f, double key, std::int32_t t) {
        if (key < bound_[at(e, f)]) insert(e, f, key, t);
    }

    /// Token t of e, whose scores are row[E], to every f.
    void offer_all(index_t e, const double* row, std::int32_t t) {
        const double* const bounds = bound_ + at(e, 0);
        for (index_t f = 0; f < experts_; ++f) {
            const double key = row[e] - row[f];
            if (key < bounds[f]) insert(e, f, key, t);
        }
    }

    /// Token t of e, whose scores are row[E], is one of those that no list of e holds, not even if it were best.
    void bound_all(index_t e, const double* row) {
        using P = pack<double, native_width<double>>;
        double* const bounds = bound_ + at(e, 0);
        double* const keys = best_key_ + at(e, 0);
        const P here = P::all(row[e]);
        const index_t whole = experts_ / P::width * P::width;
        for (index_t f = 0; f < whole; f += P::width) {
            const P bound = min(here - P::load(row + f), P::load(bounds + f));
            bound.store(bounds + f);
            bound.store(keys + f);
        }
        for (index_t f = whole; f < experts_; ++f) bounds[f] = keys[f] = std::min(row[e] - row[f], bounds[f]);
        keys[e] = std::numeric_limits<double>::infinity();
    }

    /// The list holds nothing but keys of `key` and is full: no token that loses at least as much can enter.
    bool full_of(index_t e, index_t f, double key) const {
        const index_t pair = at(e, f);
        return count_[pair] == length_ && keys_[pair * longest_] == key;
    }
    /// Tokens not offered have keys of at least `least`.
    void lower_bound_to(index_t e, index_t f, double least) {
        const index_t pair = at(e, f);
        bound_[pair] = std::min(bound_[pair], least);
    }

    /// How many tokens are known to have the smallest key: at least 1 where the list is not empty.
    index_t count_best(index_t e, index_t f) const {
        const index_t pair = at(e, f);
        const double* const keys = keys_ + pair * longest_;
        const std::int32_t* const tokens = tokens_ + pair * longest_;
        index_t equal = 0;
        for (index_t i = count_[pair] - 1; i >= 0 && keys[i] == best_key_[pair]; --i) {
            equal += may_move(tokens[i], e, f) ? 1 : 0;
        }
        return equal;
    }
    /// The token with the smallest key.
    std::int32_t best(index_t e, index_t f) const { return best_[at(e, f)]; }

    /// Token t, no longer e's, is nobody's best any more.
    void remove(index_t e, std::int32_t t) {
        const index_t row = at(e, 0);
        for (index_t f = 0; f < experts_; ++f) {
            if (best_[row + f] == t) find_best(e, f);
        }
    }
    /// Place t of e may not move to f any more: its token got there.
    void remove(index_t e, index_t f, std::int32_t t) {
        if (best_[at(e, f)] == t) find_best(e, f);
    }
    /// Whether place t is e's, and its token not at f.
    bool may_move(std::int32_t t, index_t e, index_t f) const {
        if (owner_[t] != e) return false;
        if (choices_ == 1) return true;
        const std::int32_t* const places = owner_ + t / choices_ * choices_;
        return std::find(places, places + choices_, static_cast<std::int32_t>(f)) == places + choices_;
    }

  private:
    index_t at(index_t e, index_t f) const { return row_of_[e] * experts_ + f; }

    void insert(index_t e, index_t f, double key, std::int32_t t) {
        const index_t pair = at(e, f);
        double* const keys = keys_ + pair * longest_;
        std::int32_t* const tokens = tokens_ + pair * longest_;
        index_t count = count_[pair];
        index_t place = count;  // of the new token: everything before it is worse
        while (place > 0 && (keys[place - 1] < key || (keys[place - 1] == key && tokens[place - 1] < t))) --place;
        if (place > 0 && keys[place - 1] == key && tokens[place - 1] == t) return;  // it had left and was still here
        if (count == length_) {
            bound_[pair] = place == 0 ? key : keys[0];
            if (place == 0) return;
            std::copy(keys + 1, keys + place, keys);
            std::copy(tokens + 1, tokens + place, tokens);
            --place;
        } else {
            std::copy_backward(keys + place, keys + count, keys + count + 1);
            std::copy_backward(tokens + place, tokens + count, tokens + count + 1);
            count_[pair] = static_cast<std::int32_t>(++count);
        }
        keys[place] = key;
        tokens[place] = t;
        if (place == count - 1) {
            best_key_[pair] = key;
            best_[pair] = t;
        }
    }

    // Drops tokens that have left from the end of the list.
    void find_best(index_t e, index_t f) {
        const index_t pair = at(e, f);
        const std::int32_t* const tokens = tokens_ + pair * longest_;
        std::int32_t& count = count_[pair];
        while (count > 0 && !may_move(tokens[count - 1], e, f)) --count;
        best_[pair] = count > 0 ? tokens[count - 1] : nobody;
        best_key_[pair] = count > 0 ? keys_[pair * longest_ + count - 1] : bound_[pair];
    }

    index_t experts_;
    index_t longest_;
    index_t rows_;
    index_t length_ = 0;
    index_t choices_ = 1;
    index_t free_count_ = 0;
    const std::int32_t* owner_ = nullptr;
    std::int32_t* row_of_;     // [E], nobody where there is none
    std::int32_t* free_rows_;  // the first free_count_
    double* best_key_;         // [rows, E]
    double* bound_;            // [rows, E]
    std::int32_t* best_;       // [rows, E]
    std::int32_t* count_;      // [rows, E]
    double* keys_;             // [rows, E, length], best last
    std::int32_t* tokens_;     // [rows, E, length]
};

}  // namespace detail
}  // namespace SWITCHYARD_TARGET
}  // namespace switchyard
