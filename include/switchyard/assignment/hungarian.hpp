// `hungarian`: the exact balanced assignment, in time that grows with T E and not with T^2.
//
// The problem, the result and what certifies it: assignment.hpp; bounds on the loads: quotas.hpp.
//
//   workspace scratch;
//   std::vector<std::int32_t> experts(T);
//   const assignment_problem<float> problem{.scores = scores, .bounds = balanced_quotas(T, E)};
//   const auto found = solve(seq, hungarian{}, problem, {.expert_of_token = experts.data()}, scratch);
//   // found.primal: the score; found.gap <= found.tolerance: nothing better exists
//
// Method: the Hungarian method (Kuhn 1955; successive shortest paths with potentials, Edmonds and Karp 1972) on the
// transportation problem of BASE (Lewis et al., arXiv 2103.16716), with a graph of E experts in place of T x T pairs,
// and with most tokens fixed before it begins:
//   1. prices from samples, and from Newton steps on all tokens        detail/price_search.hpp
//   2. one pass over all tokens fixes those that small changes of prices cannot move     detail/narrowing.hpp
//   3. the few others: shortest paths between experts                  detail/expert_graph.hpp
//   4. the certificate, which needs only the few others, too
// The result is exact whatever the prices of step 1 were. Fixed tokens that prefer another expert at step 3's prices
// join the others, and step 3 continues. If that does not end, it starts again from step 2 with these prices and more
// tokens, and finally with all. Prices of an earlier batch (`initial_prices`) replace the samples.
//
// Scores: any storage type and strides; 1 and 2 compute in the compute type, with safe margins, 3 and 4 in double. -inf
// forbids a pair. NaN, +inf, and numbers beyond 1e290 are errors that name the first (token, expert), row by row; so is
// a token with fewer than k experts it may take. Given prices may be outdated, absurd or not finite: that only costs
// time. Prices returned are those the certificate was made with.
//
// Errors before any work: bounds that cannot hold T k places (require_quotas). If only forbidden pairs make the quotas
// impossible, the error names the experts and counts the tokens, which proves it.
//
// Time: O(T E) and the search for paths: at worst T k rounds of O(E^2). Memory from the workspace: about 50 bytes per
// place, a megabyte (a quarter of the scores if rows are not in the compute type), and 36 to 216 bytes per pair of
// experts. After the first call for a shape nothing is allocated. Passes and sums run on the policy's threads, paths on
// one, with the same result for any number of threads.
//
// `iterations` of the result counts shortest paths, `passes` passes over all scores, `steps` Newton steps.
#pragma once

#include <switchyard/assignment/assignment.hpp>
#include <switchyard/assignment/detail/certificate.hpp>
#include <switchyard/assignment/detail/completion.hpp>
#include <switchyard/assignment/detail/expert_graph.hpp>
#include <switchyard/assignment/detail/expert_paths.hpp>
#include <switchyard/assignment/detail/narrowing.hpp>
#include <switchyard/assignment/detail/price_repair.hpp>
#include <switchyard/assignment/detail/price_search.hpp>
#include <switchyard/assignment/detail/price_start.hpp>
#include <switchyard/assignment/detail/price_steps.hpp>
#include <switchyard/assignment/detail/sample.hpp>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <string>

namespace switchyard {

/// Settings of the exact solver. They change its time, never its result's score, unless a limit stops it.
struct hungarian {
    /// Tokens kept for each pair of experts as next to move, at most; fewer where an expert has few tokens.
    index_t candidates = 16;
    /// How many times fewer tokens each sample for the prices has; 0: no samples, and no narrowing either.
    index_t sampling = 8;
    /// Stops after so many shortest paths; 0: never. The result is the same at every call.
    index_t most_iterations = 0;
    /// Stops after so many seconds; 0: never.
    double time_limit = 0;
};

inline namespace SWITCHYARD_TARGET {
namespace detail {

/// Prices to start from: those given, as far as scores like these can make sense of them; else 0.
inline void start_prices(const double* initial_prices, const score_range& range, index_t experts, double* prices) {
    // Beyond a few times the spread of the scores a price says no more than "dear" or "cheap", and costs digits.
    const double furthest = 4 * std::max(0.0, range.highest - range.lowest);
    for (index_t e = 0; e < experts; ++e) {
        const double price = initial_prices == nullptr ? 0.0 : initial_prices[e];
        prices[e] = std::isnan(price) ? 0.0 : std::clamp(price, -furthest, furthest);
    }
    prices[experts] = 0;  // the market's: prices are counted from it
}

/// The market's price that suits the others best: experts above it take their upper bounds, those below their lower
/// ones, and together these are as near as can be to the number of places.
inline double market_price(const quotas& bounds, index_t tokens, index_t places, const double* prices,
                           std::int32_t* order) {
    index_t open = 0;  // places beyond the lower bounds
    index_t freedom = 0;
    index_t closed = 0;
    for (index_t e = 0; e < bounds.experts; ++e) {
        open -= bounds.lower(e);
        freedom += std::min(bounds.upper(e), tokens) - bounds.lower(e);
        if (prices[e] < std::numeric_limits<double>::infinity()) order[e - closed] = static_cast<std::int32_t>(e);
        closed += prices[e] < std::numeric_limits<double>::infinity() ? 0 : 1;
    }
    open += places;
    if (freedom == 0) return 0;
    std::int32_t* const last = order + (bounds.experts - closed);
    std::sort(order, last, [&](std::int32_t a, std::int32_t b) {
        return prices[a] > prices[b] || (prices[a] == prices[b] && a < b);
    });
    for (const std::int32_t* e = order; e != last; ++e) {
        open -= std::min(bounds.upper(*e), tokens) - bounds.lower(*e);
        if (open < 0 || e + 1 == last) return prices[*e];
    }
    return 0;
}

/// Gives closed experts the lowest prices at which no token prefers them.
template <class S>
void price_closed_experts(const score_source<S>& scores, const std::int32_t* rows, index_t tokens, index_t choices,
                          const std::int32_t* expert_of_token, double* prices) {
    constexpr double infinity = std::numeric_limits<double>::infinity();
    for (index_t e = 0; e < scores.experts(); ++e) {
        if (prices[e] < infinity) continue;
        double price = 0;
        for (index_t i = 0; i < tokens * choices; ++i) {
            const index_t t = rows[i / choices];
            const index_t here = expert_of_token[t * choices + i % choices];
            const double margin = scores(t, here) - prices[here];
            price = std::max(price, std::nextafter(scores(t, e) - margin, infinity));
        }
        prices[e] = price;
    }
}

/// One call of the solver.
template <class Policy, class S>
class exact_assignment {
  public:
    exact_assignment(const Policy& policy, const hungarian& solver, const assignment_problem<S>& problem,
                     const assignment_arrays& out, index_t tokens, workspace& scratch)
        : policy_(policy),
          solver_(solver),
          problem_(problem),
          scores_{problem.scores, problem.goal == objective::minimise},
          bounds_(problem.bounds),
          out_(out),
          scratch_(scratch),
          began_(std::chrono::steady_clock::now()),
          tokens_(tokens),
          experts_(scores_.experts()),
          rows_(scratch.take<std::int32_t>(tokens)),
          order_(scratch.take<std::int32_t>(experts_)),
          before_(scratch.take<double>(experts_)),
          row_(scratch.take<double>(experts_)),
          graph_(scores_, tokens, problem.choices, solver.candidates, scratch) {
        index_t seen = 0;
        for (index_t t = 0; t < scores_.tokens(); ++t) {
            std::fill_n(out.expert_of_token + t * problem.choices, problem.choices, -1);
            if (problem.mask(t)) rows_[seen++] = static_cast<std::int32_t>(t);
        }
    }

    assignment_result run() {
        // Where there is little to read, narrowing it down costs more than it saves.
        const bool narrow = solver_.sampling != 0 && tokens_ * experts_ > 8192 && experts_ > problem_.choices;
        start_prices(problem_.initial_prices, narrow ? sampled_range() : checked_range(), experts_, graph_.prices());
        for (index_t e = 0; e < experts_; ++e) {
            if (std::min(bounds_.upper(e), tokens_) == 0) {
                graph_.prices()[e] = std::numeric_limits<double>::infinity();
            }
        }
        if (!narrow || !solve_narrowed()) {
            if (narrow) checked_range();
            solve_whole();
        }
        order_choices(scores_, choices(), out_.expert_of_token);
        result_.iterations = graph_.rounds();
        result_.passes = passes_;
        result_.steps = steps_;
        if (scores_.are_costs) {
            result_.primal = -result_.primal;
            result_.dual = -result_.dual;
        }
        if (out_.prices != nullptr) std::copy_n(graph_.prices(), experts_, out_.prices);
        return result_;
    }

  private:
    index_t choices() const { return problem_.choices; }
    index_t smallest_sample() const { return std::min(tokens_, 8 * experts_); }
    bool stop(index_t rounds) const {
        if (solver_.most_iterations > 0 && rounds >= solver_.most_iterations) return true;
        if (!(solver_.time_limit > 0)) return false;
        return std::chrono::duration<double>(std::chrono::steady_clock::now() - began_).count() > solver_.time_limit;
    }
    score_range checked_range() {
        passes_ += 1;
        return require_scores(scores_, problem_.mask, choices(), row_);
    }
    score_range sampled_range() const;
    bool solve_narrowed();
    void find_prices(price_search<S>& search, std::int32_t* sample);
    drained solve_candidates(narrowing<S>& all);
    bool certify_as_it_is(const price_search<S>& search, narrowing<S>& all);
    void solve_whole();
    void place_market() {
        double* const prices = graph_.prices();
        prices[experts_] = market_price(bounds_, tokens_, tokens_ * choices(), prices, order_);
    }
    void write(const std::int32_t* rows, index_t count);
    void stop_here();
    void certify_all();

    const Policy& policy_;
    const hungarian& solver_;
    const assignment_problem<S>& problem_;
    score_source<S> scores_;
    const quotas& bounds_;
    assignment_arrays out_;
    workspace& scratch_;
    std::chrono::steady_clock::time_point began_;
    index_t tokens_;
    index_t experts_;
    std::int32_t* rows_;   // [tokens]: the rows that are tokens
    std::int32_t* order_;  // [E] scratch
    double* before_;       // [E]: prices before a certificate was tried
    double* row_;          // [E] scratch
    expert_graph<S> graph_;
    assignment_result result_;
    index_t passes_ = 0;
    index_t steps_ = 0;
};

/// The range of the scores, from some of them: good enough to bound absurd prices.
template <class Policy, class S>
score_range exact_assignment<Policy, S>::sampled_range() const {
    score_range range;
    const index_t stride = std::max<index_t>(1, tokens_ / 256);
    for (index_t i = 0; i < tokens_; i += stride) {
        scores_.read_row(rows_[i], row_);
        const row_facts facts = facts_of(row_, experts_);
        if (!facts.usable) continue;
        range.lowest = std::min(range.lowest, facts.lowest);
        range.highest = std::max(range.highest, facts.highest);
    }
    return range;
}

/// Prices from nothing: from a small sample, then from larger ones.
template <class Policy, class S>
void exact_assignment<Policy, S>::find_prices(price_search<S>& search, std::int32_t* sample) {
    double* const prices = graph_.prices();
    const index_t smallest = smallest_sample();
    for (index_t e = 0; e < experts_; ++e) {
        if (prices[e] < std::numeric_limits<double>::infinity()) prices[e] = 0;
    }
    const auto take = [&](index_t stride) {
        const index_t size = sample_rows(rows_, tokens_, stride, sample);
        search.take_sample(policy_, sample, size);
        return static_cast<double>(size);
    };
    take((tokens_ + smallest - 1) / smallest);
    search.start(prices);
    index_t stride = solver_.sampling;
    while (tokens_ / stride / solver_.sampling >= 2 * smallest) stride *= solver_.sampling;
    for (; stride > 1 && tokens_ / stride > smallest; stride /= solver_.sampling) {
        const double size = take(stride);
        // A sample's own loads are no surer than this.
        const double noise = 0.1 * std::sqrt(size * static_cast<double>(choices() * experts_));
        steps_ += search.refine(policy_, prices, {.enough = noise, .most_steps = 12}).steps;
    }
}

/// Makes a pass over all tokens at good prices, and solves for those that are nearly tied. False: that did not do.
template <class Policy, class S>
bool exact_assignment<Policy, S>::solve_narrowed() {
    const auto scope = scratch_.open();
    // Sets that must be copied are kept smaller than those that are looked at where they lie.
    const index_t part = compute_rows<S>{scores_}.direct() ? 2 : 4;
    const index_t most_rows = std::max(tokens_ / std::min(part, solver_.sampling), smallest_sample());
    narrowing<S> all(scores_, rows_, tokens_, choices(), out_.expert_of_token, scratch_);
    price_search<S> search(scores_, bounds_, tokens_, choices(), most_rows, scratch_);
    auto* const sample = scratch_.take<std::int32_t>(most_rows);
    double* const prices = graph_.prices();
    // So few places too many that it is better to go on with the tokens nearly tied because of them than with all.
    const double few = static_cast<double>(
        std::clamp((tokens_ / 4 - 32 * experts_) / 12, experts_, std::max(16 * experts_, tokens_ / 64)));
    bool searched = problem_.initial_prices == nullptr;
    if (searched) find_prices(search, sample);
    index_t widened = 1;  // how many times as many candidates as usual
    // Leaves as many candidates as so much excess may need: some for each place, some for each expert, a part of all.
    const auto narrow_to = [&](double excess, index_t spare, index_t most) {
        index_t wanted = static_cast<index_t>(12 * excess) + spare * experts_;
        if (excess < static_cast<double>(tokens_ * choices()) / 16) wanted = std::min(most, wanted);
        const double band = search.band_for(widened * std::max(wanted, tokens_ / (4 * spare)));
        all.fix(search, band, prices);
        return band;
    };
    for (int attempt = 0; attempt < 6; ++attempt, widened *= 4) {
        all.begin();
        search.take_all(rows_);
        // One step at all tokens: the next ones are cheaper on the candidates alone.
        const auto refined = search.refine(policy_, prices, {.enough = few, .until_paths_pay = true, .most_steps = 1});
        passes_ += refined.looks;
        steps_ += refined.steps;
        if (search.suspect() >= 0) return false;
        double excess = search.excess(prices);
        if (!searched && excess > static_cast<double>(tokens_ * choices()) / 8) {  // the prices given are of no use
            searched = true;
            find_prices(search, sample);
            continue;
        }
        if (excess == 0 && certify_as_it_is(search, all)) return true;
        const double band = narrow_to(excess, 32, most_rows - most_rows / 8);
        if (all.candidate_count() <= most_rows) {
            search.keep_below(policy_, band, all.candidates(), all.fixed_loads());
            steps_ += search.refine(policy_, prices, {.looked = true, .until_paths_pay = true, .most_steps = 8}).steps;
            all.free(prices);  // prices may have moved far for some experts
            narrow_to(search.excess(prices), 24, tokens_ / 4);
        }
        drained end = solve_candidates(all);
        for (int again = 0; end != drained::stopped && again < 16; ++again) {
            const index_t freed = end == drained::all ? all.free(prices) : all.free_crowded(bounds_);
            if (freed == 0 && end == drained::stuck) break;
            if (freed == 0) {
                price_closed_experts(scores_, rows_, tokens_, choices(), out_.expert_of_token, prices);
                result_ = all.certify(policy_, bounds_, prices);
                return result_.converged;
            }
            end = solve_candidates(all);
        }
        if (end == drained::stopped) {
            stop_here();
            return true;
        }
        if (all.candidate_count() == tokens_) return false;
    }
    return false;
}

/// The last pass over all tokens left nothing to move, so the assignment may be the best already. Where many tokens are
/// tied, it usually is.
template <class Policy, class S>
bool exact_assignment<Policy, S>::certify_as_it_is(const price_search<S>& search, narrowing<S>& all) {
    double* const prices = graph_.prices();
    for (index_t e = 0; e < experts_; ++e) {
        const index_t load = search.loads()[e];
        if (load < bounds_.lower(e) || load > bounds_.upper(e)) return false;
    }
    all.fix(search, std::numeric_limits<double>::min(), prices);
    std::copy_n(prices, experts_, before_);
    place_market();
    graph_.count_prices_from_market();
    price_closed_experts(scores_, rows_, tokens_, choices(), out_.expert_of_token, prices);
    result_ = all.certify(policy_, bounds_, prices);
    if (result_.converged) return true;
    std::copy_n(before_, experts_, prices);
    all.begin();
    return false;
}

/// The exact part, for the candidates alone.
template <class Policy, class S>
drained exact_assignment<Policy, S>::solve_candidates(narrowing<S>& all) {
    place_market();
    const index_t count = all.candidate_count();
    const bool fits = graph_.pose(all.candidates(), count, bounds_, tokens_, all.fixed_loads());
    if (!fits) return drained::stuck;
    graph_.settle();
    const drained end = graph_.drain([&](index_t rounds) { return stop(rounds); });
    graph_.count_prices_from_market();
    write(all.candidates(), count);
    return end;
}

/// All tokens at once, from the prices there are.
template <class Policy, class S>
void exact_assignment<Policy, S>::solve_whole() {
    double* const prices = graph_.prices();
    for (index_t e = 0; e < experts_; ++e) {
        if (!std::isfinite(prices[e])) prices[e] = 0;  // closed experts are closed again below
    }
    place_market();
    graph_.pose(rows_, tokens_, bounds_, tokens_, nullptr);
    graph_.settle();
    const drained end = graph_.drain([&](index_t rounds) { return stop(rounds); });
    const auto take_over = [&] {
        graph_.count_prices_from_market();
        write(rows_, tokens_);
    };
    take_over();
    if (end != drained::all) {
        stop_here();
        return;
    }
    passes_ += 1;
    certify_all();
    if (!result_.converged) {
        graph_.repair();
        take_over();
        passes_ += 1;
        certify_all();
        result_.repairs = 1;
    }
}

/// The experts of the tokens in the graph.
template <class Policy, class S>
void exact_assignment<Policy, S>::write(const std::int32_t* rows, index_t count) {
    const std::int32_t* const found = graph_.experts_of_tokens();
    for (index_t i = 0; i < count; ++i) {
        std::copy_n(found + i * choices(), choices(), out_.expert_of_token + rows[i] * choices());
    }
}

/// A limit was hit, or nothing can be moved any more: what is too many somewhere goes where there is room, and the
/// certificate says how far that is from the best. Where there is no room at all, that is the error.
template <class Policy, class S>
void exact_assignment<Policy, S>::stop_here() {
    const auto scope = scratch_.open();
    auto* const concerned = scratch_.take<std::uint8_t>(experts_);
    const auto made = complete_assignment(scores_, bounds_, problem_.mask, choices(), true, out_.expert_of_token,
                                          concerned, scratch_);
    if (!made.complete) fail_infeasible(made, experts_, choices(), concerned);
    certify_all();
}

/// The certificate of what is written, by a pass over all scores.
template <class Policy, class S>
void exact_assignment<Policy, S>::certify_all() {
    double* const prices = graph_.prices();
    price_closed_experts(scores_, rows_, tokens_, choices(), out_.expert_of_token, prices);
    result_ =
        certify<exactness::of_scores>(policy_, scores_, bounds_, choices(), out_.expert_of_token, prices, scratch_);
    passes_ += 1;
}

}  // namespace detail

/// The best assignment of tokens to experts within the quotas.
template <host_policy Policy, class S>
assignment_result solve(const Policy& policy, const hungarian& solver, const assignment_problem<S>& problem,
                        const assignment_arrays& out, workspace& scratch) {
    require(solver.candidates >= 1, "hungarian::candidates = ", solver.candidates, " must be at least 1");
    require(solver.sampling == 0 || (solver.sampling >= 2 && solver.sampling <= 1'000'000),
            "hungarian::sampling = ", solver.sampling, " must be 0, or 2 to a million");
    require(solver.most_iterations >= 0, "hungarian::most_iterations = ", solver.most_iterations,
            " must not be negative");
    require(solver.time_limit >= 0, "hungarian::time_limit = ", solver.time_limit, " s must not be negative");
    const index_t tokens = detail::require_problem(problem, out);
    detail::require_arrays_apart<Policy>(problem.scores, problem.choices, problem.initial_prices, out);
    const auto scope = scratch.open();
    return detail::exact_assignment<Policy, S>(policy, solver, problem, out, tokens, scratch).run();
}

}  // namespace SWITCHYARD_TARGET
}  // namespace switchyard
