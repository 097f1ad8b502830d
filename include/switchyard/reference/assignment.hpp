// Balanced assignment (BASE, Lewis et al., arXiv 2103.16716), twice, each as simple as it can be.
//
//   maximise   sum_t s[t, a(t)]   subject to   lower_e <= load_e <= upper_e,   s[t, a(t)] > -inf
//
// best_of_all            tries every assignment: E^T of them. For a handful of tokens; nothing to get wrong.
// best_by_augmenting     the textbook's way: tokens come one after the other; each takes the path of best gain, on
// which
//                        it may push another token out of its expert, that one another, and so on, until the last one
//                        finds room. O(T^2 E^2) and more.
//
// Why the second is right (successive shortest paths; Edmonds and Karp 1972). Think of a flow from tokens through
// experts to a sink, expert e having lower_e places worth a bonus larger than any score, and upper_e - lower_e places
// worth nothing. The tokens placed so far are placed in the best way there is for them; adding one token by the path of
// greatest gain keeps it so. Loads never fall on the way, so a place with a bonus, once filled, stays filled. Bonus and
// score are compared as a pair, bonus first: no large number eats the digits of the scores. At the end the bonus was
// paid sum lower_e times if that is possible at all.
#pragma once

#include <switchyard/reference/matrix.hpp>

#include <limits>

namespace switchyard::reference::inline SWITCHYARD_TARGET {

/// The best assignment, expert -1 for padding. `feasible` false: there is none.
struct assignment {
    bool feasible = false;
    double total_score = 0;
    list<index_t> experts;
};

/// Every assignment in turn: token `t` tries each expert, then the tokens after it.
class every_assignment {
  public:
    every_assignment(const matrix& scores, const list<index_t>& lower, const list<index_t>& upper,
                     const mask_list& mask)
        : scores_(scores), lower_(lower), upper_(upper), mask_(mask), load_(filled<index_t>(scores.columns, 0)) {
        experts_ = filled<index_t>(scores.rows, -1);
        place_from(0, 0.0);
    }
    const assignment& best() const { return best_; }

  private:
    void place_from(index_t t, double score_so_far) {
        if (t == scores_.rows) {
            for (index_t e = 0; e < scores_.columns; ++e) {
                if (load_[e] < lower_[e] || load_[e] > upper_[e]) return;
            }
            if (!best_.feasible || score_so_far > best_.total_score) best_ = {true, score_so_far, experts_};
            return;
        }
        if (!is_token(mask_, t)) return place_from(t + 1, score_so_far);
        for (index_t e = 0; e < scores_.columns; ++e) {
            if (scores_(t, e) == -std::numeric_limits<double>::infinity()) continue;
            experts_[t] = e;
            load_[e] += 1;
            place_from(t + 1, score_so_far + scores_(t, e));
            load_[e] -= 1;
            experts_[t] = -1;
        }
    }

    const matrix& scores_;
    const list<index_t>& lower_;
    const list<index_t>& upper_;
    const mask_list& mask_;
    list<index_t> load_;
    list<index_t> experts_;
    assignment best_;
};

inline assignment best_of_all(const matrix& scores, const list<index_t>& lower, const list<index_t>& upper,
                              const mask_list& mask = {}) {
    require_mask(mask, scores.rows);
    return every_assignment(scores, lower, upper, mask).best();
}

inline assignment best_by_augmenting(const matrix& scores, const list<index_t>& lower, const list<index_t>& upper,
                                     const mask_list& mask = {}) {
    require_mask(mask, scores.rows);
    const double forbidden = -std::numeric_limits<double>::infinity();
    assignment found{false, 0.0, filled<index_t>(scores.rows, -1)};
    auto load = filled<index_t>(scores.columns, 0);

    for (index_t arriving = 0; arriving < scores.rows; ++arriving) {
        if (!is_token(mask, arriving)) continue;

        // gain[e]: the best change of the total score by which a token more can be brought to expert e;
        // mover[e]: the token that moves there last, `arriving` itself or one that is pushed out of another expert.
        auto gain = filled(scores.columns, forbidden);
        auto mover = filled<index_t>(scores.columns, -1);
        for (index_t e = 0; e < scores.columns; ++e) {
            gain[e] = scores(arriving, e);
            if (gain[e] > forbidden) mover[e] = arriving;
        }
        // Bellman and Ford: the best paths have at most E experts.
        for (index_t round = 0; round < scores.columns; ++round) {
            for (index_t t = 0; t < arriving; ++t) {
                const index_t here = found.experts[t];
                if (here < 0 || gain[here] == forbidden) continue;
                for (index_t e = 0; e < scores.columns; ++e) {
                    const double by_way_of_t = gain[here] + (scores(t, e) - scores(t, here));
                    // Rounding must not turn a cycle worth nothing into one worth taking.
                    const double visible = 1e-12 * (std::abs(gain[e]) + std::abs(scores(t, e)));
                    if (by_way_of_t > gain[e] + (gain[e] > forbidden ? visible : 0.0)) {
                        gain[e] = by_way_of_t;
                        mover[e] = t;
                    }
                }
            }
        }

        // The path ends where there is room: first where a lower bound is not met, then by gain.
        index_t last = -1;
        for (index_t e = 0; e < scores.columns; ++e) {
            if (gain[e] == forbidden || load[e] == upper[e]) continue;
            const auto bonus = [&](index_t expert) { return load[expert] < lower[expert] ? 1 : 0; };
            if (last < 0 || bonus(e) > bonus(last) || (bonus(e) == bonus(last) && gain[e] > gain[last])) last = e;
        }
        if (last < 0) return {};
        load[last] += 1;
        for (index_t e = last;;) {
            const index_t t = mover[e];
            const index_t before = found.experts[t];
            found.experts[t] = e;
            if (t == arriving) break;
            e = before;
        }
    }

    for (index_t e = 0; e < scores.columns; ++e) {
        if (load[e] < lower[e]) return {};
    }
    for (index_t t = 0; t < scores.rows; ++t) {
        if (found.experts[t] >= 0) found.total_score += scores(t, found.experts[t]);
    }
    found.feasible = true;
    return found;
}

}  // namespace switchyard::reference::inline SWITCHYARD_TARGET
