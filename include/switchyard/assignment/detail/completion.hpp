// Completes a partial assignment to one within the quotas, or proves that none exists.
//
//   std::uint8_t* concerned = scratch.take<std::uint8_t>(E);
//   const auto made = complete_assignment(scores, bounds, mask, k, forbidden, experts, concerned, scratch);
//   if (!made.complete) fail_infeasible(made, E, k, concerned);
//
// `expert_of_token` [T, k] holds experts and -1 where a place is open; padding is not touched. Scores count only where
// they forbid a pair (-inf); where nothing is forbidden (`forbidden` false) they are not read at all. A token's k
// experts stay different. What is already placed moves only where something open cannot be placed otherwise, or a lower
// bound not met; places beyond an upper bound are opened first, the last tokens'.
//
// Method: open places fill experts below their lower bounds, then those with room. What that leaves is a flow on a
// graph of the experts, with an edge e -> f where some token at e may go to f and is not there: augmenting paths from
// open places to experts with room, then from experts above their lower bounds to those below; those of one length
// together (Dinic 1970; Hopcroft and Karp 1973). Where no path is left, the experts reached are the proof.
//
// Time: O(T k + E) to fill where nothing is forbidden, else O(T E) a round of paths and one round a length of path, at
// most E; of order sqrt(T) rounds at worst, usually none. Memory from the workspace: 4 bytes per place, 40 per expert.
#pragma once

#include <switchyard/assignment/detail/score_rows.hpp>
#include <switchyard/assignment/quotas.hpp>
#include <switchyard/core/config.hpp>
#include <switchyard/core/error.hpp>
#include <switchyard/core/matrix_view.hpp>
#include <switchyard/core/workspace.hpp>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <string>

namespace switchyard {
inline namespace SWITCHYARD_TARGET {
namespace detail {

/// Whether a partial assignment was completed; else why no assignment is within the quotas. Which experts are concerned
/// is written to an array of the caller's.
struct completion_result {
    bool complete = true;
    bool starving = false;    ///< the experts concerned cannot get what they must; else they lack room
    index_t places = 0;       ///< what they can get at most, or what can go nowhere else: tokens, if k = 1
    index_t bound = 0;        ///< the sum of their lower bounds, or of their upper bounds
    index_t first_token = 0;  ///< not starving: the first of the tokens that can go nowhere else
};

/// "expert 3" or "experts 0, 2, 5 and 9 more", of those that `chosen` marks.
inline std::string list_experts(index_t experts, const std::uint8_t* chosen) {
    constexpr index_t most_named = 8;
    std::string names;
    index_t count = 0;
    for (index_t e = 0; e < experts; ++e) {
        if (chosen[e] == 0) continue;
        if (count < most_named) names += (count > 0 ? ", " : "") + std::to_string(e);
        count += 1;
    }
    if (count > most_named) names += " and " + std::to_string(count - most_named) + " more";
    return (count == 1 ? "expert " : "experts ") + names;
}

/// Says why an assignment could not be completed.
[[noreturn]] inline void fail_infeasible(const completion_result& why, index_t experts, index_t choices,
                                         const std::uint8_t* concerned) {
    const std::string names = list_experts(experts, concerned);
    if (choices == 1 && why.starving) {
        fail("the quotas cannot be met: ", names, " must take at least ", why.bound, " tokens, and only ", why.places,
             " tokens are allowed there");
    }
    if (choices == 1) {
        fail("the quotas cannot be met: ", why.places, " tokens (the first is ", why.first_token,
             ") are allowed only on ", names, ", which may take at most ", why.bound);
    }
    if (why.starving) {
        fail("the quotas cannot be met: ", names, " must take at least ", why.bound, " places, and tokens with ",
             choices, " different experts each can fill only ", why.places, " there");
    }
    fail("the quotas cannot be met: tokens with ", choices, " different experts each (the first is token ",
         why.first_token, ") need at least ", why.places, " places on ", names, ", which may take at most ", why.bound);
}

template <class S>
class assignment_completer {
  public:
    assignment_completer(const score_source<S>& scores, const quotas& bounds, const token_mask& mask, index_t choices,
                         bool forbidden, std::int32_t* expert_of_token, workspace& scratch)
        : scores_(scores),
          bounds_(bounds),
          mask_(mask),
          choices_(choices),
          forbidden_(forbidden),
          expert_of_(expert_of_token) {
        const index_t experts = bounds.experts;
        load_ = scratch.take<index_t>(experts);
        level_ = scratch.take<std::int32_t>(experts);
        start_ = scratch.take<index_t>(experts + 1);
        at_ = scratch.take<index_t>(experts);
        next_expert_ = scratch.take<std::int32_t>(experts);
        path_ = scratch.take<std::int32_t>(experts);
        queue_ = scratch.take<std::int32_t>(experts);
        unseen_ = scratch.take<std::int32_t>(experts);
        places_ = scratch.take<std::int32_t>(scores.tokens() * choices);
    }

    completion_result run(std::uint8_t* concerned) {
        count();
        fill();
        while (open_ > 0 && find_levels(goal::room)) {
            for_each_place([&](index_t place, index_t token) {
                if (expert_of_[place] < 0) place_by_path(place, token);
            });
        }
        if (open_ > 0) return no_room(concerned);
        while (starved() && find_levels(goal::supply)) {
            for (index_t e = 0; e < bounds_.experts; ++e) {
                while (load_[e] > bounds_.lower(e) && augment(e, goal::supply)) load_[e] -= 1;
            }
        }
        return starved() ? starving(concerned) : completion_result{};
    }

  private:
    /// What paths are looked for: from open places to room below an upper bound, or from experts above their lower
    /// bounds to those below.
    enum class goal { room, supply };

    index_t upper(index_t e) const { return std::min(bounds_.upper(e), tokens_); }

    bool is_sink(index_t e, goal wanted) const {
        return load_[e] < (wanted == goal::room ? upper(e) : bounds_.lower(e));
    }

    bool may_take(index_t token, index_t e) const {
        for (index_t j = 0; j < choices_; ++j) {
            if (expert_of_[token * choices_ + j] == e) return false;
        }
        return !forbidden_ || scores_(token, e) != -std::numeric_limits<double>::infinity();
    }

    /// f(place, token) for each place of each token.
    template <class F>
    void for_each_place(F&& f) const {
        for (index_t t = 0; t < scores_.tokens(); ++t) {
            if (!mask_(t)) continue;
            for (index_t j = 0; j < choices_; ++j) f(t * choices_ + j, t);
        }
    }

    void count() {
        tokens_ = count_tokens(mask_, scores_.tokens());
        open_ = 0;
        std::fill_n(load_, bounds_.experts, index_t{0});
        for_each_place([&](index_t place, index_t) {
            std::int32_t& e = expert_of_[place];
            if (e >= 0 && load_[e] >= upper(e)) e = -1;
            if (e >= 0) {
                load_[e] += 1;
            } else {
                open_ += 1;
            }
        });
    }

    /// Places what is open at the first expert that needs it, or else has room, without moving anything.
    void fill() {
        index_t needing = 0;  // no expert before needs a token; none before `roomy` has room
        index_t roomy = 0;
        for_each_place([&](index_t place, index_t token) {
            if (expert_of_[place] >= 0) return;
            const auto first_of = [&](index_t& from, goal wanted) {
                while (from < bounds_.experts && !is_sink(from, wanted)) ++from;
                index_t e = from;
                while (e < bounds_.experts && !(is_sink(e, wanted) && may_take(token, e))) ++e;
                return e;
            };
            index_t e = first_of(needing, goal::supply);
            if (e == bounds_.experts) e = first_of(roomy, goal::room);
            if (e == bounds_.experts) return;
            expert_of_[place] = static_cast<std::int32_t>(e);
            load_[e] += 1;
            open_ -= 1;
        });
    }

    bool starved() const {
        for (index_t e = 0; e < bounds_.experts; ++e) {
            if (load_[e] < bounds_.lower(e)) return true;
        }
        return false;
    }

    /// Each expert's places, in order.
    void list_places() {
        start_[0] = 0;
        for (index_t e = 0; e < bounds_.experts; ++e) start_[e + 1] = start_[e] + load_[e];
        std::copy_n(start_, bounds_.experts, at_);
        for_each_place([&](index_t place, index_t) {
            if (expert_of_[place] >= 0) places_[at_[expert_of_[place]]++] = static_cast<std::int32_t>(place);
        });
        std::copy_n(start_, bounds_.experts, at_);
        std::fill_n(next_expert_, bounds_.experts, 0);
    }

    /// How many edges each expert is from where paths begin, -1 beyond the nearest goal or out of reach. Returns
    /// whether a goal is in reach; if none is, all in reach have levels.
    bool find_levels(goal wanted) {
        list_places();
        index_t queued = 0;
        index_t unseen = bounds_.experts;
        for (index_t e = 0; e < unseen; ++e) {
            unseen_[e] = static_cast<std::int32_t>(e);
            level_[e] = -1;
        }
        std::int32_t goal_level = -1;
        // Those of the unseen that `reached` holds for are seen now.
        const auto see = [&](std::int32_t level, auto&& reached) {
            index_t left = 0;
            for (index_t i = 0; i < unseen; ++i) {
                const std::int32_t f = unseen_[i];
                if (!reached(f)) {
                    unseen_[left++] = f;
                    continue;
                }
                level_[f] = level;
                queue_[queued++] = f;
                if (goal_level < 0 && is_sink(f, wanted)) goal_level = level;
            }
            unseen = left;
        };
        if (wanted == goal::supply) {
            see(0, [&](index_t e) { return load_[e] > bounds_.lower(e); });
        } else {
            for_each_place([&](index_t place, index_t token) {
                if (expert_of_[place] < 0 && unseen > 0) see(0, [&](index_t e) { return may_take(token, e); });
            });
        }
        for (index_t i = 0; i < queued; ++i) {
            const std::int32_t e = queue_[i];
            if (goal_level >= 0 && level_[e] >= goal_level) break;
            for (index_t p = start_[e]; p < start_[e + 1] && unseen > 0; ++p) {
                const index_t token = places_[p] / choices_;
                see(level_[e] + 1, [&](index_t f) { return may_take(token, f); });
            }
        }
        return goal_level >= 0;
    }

    void place_by_path(index_t place, index_t token) {
        for (index_t e = 0; e < bounds_.experts; ++e) {
            if (level_[e] != 0 || !may_take(token, e) || !augment(e, goal::room)) continue;
            expert_of_[place] = static_cast<std::int32_t>(e);
            open_ -= 1;
            return;
        }
    }

    /// Moves one place along each edge of a path from `first` to a goal, through rising levels; each place is tried
    /// once between two findings of levels. Experts that lead nowhere lose their level. Loads: the goal's rises.
    bool augment(index_t first, goal wanted) {
        index_t length = 0;
        path_[0] = static_cast<std::int32_t>(first);
        while (level_[first] >= 0) {
            const std::int32_t e = path_[length];
            if (is_sink(e, wanted)) {
                load_[e] += 1;
                for (index_t i = 0; i < length; ++i) {
                    const std::int32_t from = path_[i];
                    expert_of_[places_[at_[from]]] = path_[i + 1];
                    at_[from] += 1;
                    next_expert_[from] = 0;
                }
                return true;
            }
            if (find_edge(e)) {
                path_[++length] = next_expert_[e];
            } else {
                level_[e] = -1;
                if (length > 0) length -= 1;
            }
        }
        return false;
    }

    /// Sets at_[e] and next_expert_[e] to the next place and where it may go, one level on.
    bool find_edge(index_t e) {
        for (; at_[e] < start_[e + 1]; ++at_[e], next_expert_[e] = 0) {
            const index_t token = places_[at_[e]] / choices_;
            for (std::int32_t& f = next_expert_[e]; f < bounds_.experts; ++f) {
                if (level_[f] == level_[e] + 1 && may_take(token, f)) return true;
            }
        }
        return false;
    }

    /// All that open places can reach is full, and nothing there can go elsewhere. Then the other experts get only the
    /// rest: if that is below their lower bounds and they are fewer, it is said of them.
    completion_result no_room(std::uint8_t* concerned) const {
        completion_result why{.complete = false, .places = open_, .first_token = -1};
        index_t reached = 0, lower_of_others = 0;
        for (index_t e = 0; e < bounds_.experts; ++e) {
            concerned[e] = static_cast<std::uint8_t>(level_[e] >= 0 ? 1 : 0);
            reached += concerned[e];
            if (concerned[e] != 0) {
                why.places += load_[e];
                why.bound += upper(e);
            } else {
                lower_of_others += bounds_.lower(e);
            }
        }
        const index_t left = tokens_ * choices_ - why.places;
        if (bounds_.experts - reached < reached && lower_of_others > left) {
            for (index_t e = 0; e < bounds_.experts; ++e) concerned[e] ^= 1;
            return {.complete = false, .starving = true, .places = left, .bound = lower_of_others};
        }
        for_each_place([&](index_t place, index_t token) {
            const std::int32_t e = expert_of_[place];
            if (why.first_token < 0 && (e < 0 || concerned[e] != 0)) why.first_token = token;
        });
        return why;
    }

    /// Nothing at experts that could spare a place, or that these could fill up again, may go to the others.
    completion_result starving(std::uint8_t* concerned) const {
        completion_result why{.complete = false, .starving = true};
        for (index_t e = 0; e < bounds_.experts; ++e) {
            concerned[e] = static_cast<std::uint8_t>(level_[e] < 0 ? 1 : 0);
            if (concerned[e] == 0) continue;
            why.places += load_[e];
            why.bound += bounds_.lower(e);
        }
        return why;
    }

    score_source<S> scores_;
    quotas bounds_;
    token_mask mask_;
    index_t choices_;
    bool forbidden_;
    std::int32_t* expert_of_;  // [T, k], the caller's
    index_t tokens_ = 0;
    index_t open_ = 0;           // places
    index_t* load_;              // [E]
    std::int32_t* level_;        // [E]
    std::int32_t* places_;       // [T k]: token * k + j, by expert
    index_t* start_;             // [E + 1]: where an expert's places begin
    index_t* at_;                // [E]: the next place of each to be tried
    std::int32_t* next_expert_;  // [E]: where to, the next to be tried
    std::int32_t* path_;         // [E]
    std::int32_t* queue_;        // [E]
    std::int32_t* unseen_;       // [E]
};

/// See the top of this file. Precondition: require_quotas, and each token may take k experts at least.
template <class S>
completion_result complete_assignment(const score_source<S>& scores, const quotas& bounds, const token_mask& mask,
                                      index_t choices, bool forbidden, std::int32_t* expert_of_token,
                                      std::uint8_t* concerned, workspace& scratch) {
    const auto scope = scratch.open();
    assignment_completer<S> completer(scores, bounds, mask, choices, forbidden, expert_of_token, scratch);
    return completer.run(concerned);
}

}  // namespace detail
}  // namespace SWITCHYARD_TARGET
}  // namespace switchyard
