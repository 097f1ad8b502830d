// `hungarian` on a device that runs kernels: exact, with one synchronisation of the host in the common case.
//
//   device_workspace<Policy> scratch;
//   const device_assignment_problem<float, Policy::memory::space> problem{
//       .scores = scores.view(), .bounds = balanced_quotas(T, E)};
//   const auto found = solve(policy, hungarian{}, problem, {.expert_of_token = experts.data()}, scratch);
//
// The problem, its certificate and what counts as exact: assignment.hpp; the method: hungarian.hpp, shared out so:
//
//   device   prices: Newton steps, on one of eight tokens first where none are given, then on all
//                                                                                       detail/kernel_price_steps.hpp
//   device   a pass over all tokens fixes those that small changes of prices cannot move; the few others, the
//            candidates, are lined up with their scores                                 detail/kernel_narrowing.hpp
//   copy     candidates, and what the fixed tokens leave of the quotas: the one wait
//   host     the exact solver for the candidates (hungarian.hpp, one thread), and the certificate: with prices that
//            have not moved apart by more than the band, the fixed tokens have no regret
//   device   the candidates' experts, and the prices; those of closed experts (upper quota 0) from all tokens
//                                                                                       detail/kernel_closed.hpp
//
// Synchronisations. In the common case exactly one, with prices to begin with and without: the copy of the parcel of
// candidates. What goes back travels as arguments of kernels (detail/kernel_numbers.hpp), so the call returns with the
// last of its kernels enqueued: as after every other verb, what reads the experts comes behind them on the stream.
// Further ones, each counted in `device_looks`:
//
//   another parcel     prices were still too far off when the first came, or moved further than the band; the prices
//                      found, more Newton steps, and four times the room for the next one: two more parcels at most
//   all scores         where that does not do, or rounding left more tokens tied than there is room for; with k > 1,
//                      above 4,096 experts, and for scores that are bad (for the error message). One copy each
//                      for scores, mask and prices, and what is found is copied back
//   a certificate      where a limit of the settings stopped the solver: the device makes one more pass over all tokens
//   bounds, experts    arrays of bounds are copied to the device, and so are more than 28,672 experts found
//
// Memory: about 16 bytes per token, the parcel (32 E + 1024 rows of scores, or all), and 4 bytes per pair of experts
// from the device workspace; on the host, the parcel's copy and what hungarian.hpp needs for the candidates, from a
// workspace of the caller's, or allocated in every call. Launches: about 105 without prices, 40 with; of those, many do
// nothing once prices are good; 4 more where experts are closed. docs/assignment/device.md counts bytes.
//
// Limits: of the call, all parcels together; looked at by the host alone, so kernels that run are never cut short.
//
// Ties and errors: as on the host. The result is the same at every call, on every machine of equal arithmetic; among
// equal optima it may be another one than the host's.
#pragma once

#include <switchyard/assignment/detail/kernel_candidates.hpp>
#include <switchyard/assignment/detail/kernel_certificate.hpp>
#include <switchyard/assignment/detail/kernel_closed.hpp>
#include <switchyard/assignment/detail/kernel_narrowing.hpp>
#include <switchyard/assignment/detail/kernel_numbers.hpp>
#include <switchyard/assignment/detail/kernel_price_steps.hpp>
#include <switchyard/assignment/device_auction.hpp>
#include <switchyard/assignment/hungarian.hpp>
#include <switchyard/backend/device.hpp>
#include <switchyard/backend/kernel.hpp>
#include <switchyard/core/config.hpp>
#include <switchyard/core/workspace.hpp>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>

namespace switchyard {
inline namespace SWITCHYARD_TARGET {
namespace detail {

/// What a caller of the device's exact solver may know of it.
struct device_effort {
    index_t looks = 0;  ///< times that the host waited for the device
};

/// One call of the solver.
template <kernel_policy Policy, class S>
class exact_on_device {
  public:
    using space = policy_space<Policy>;
    using C = compute_t<S>;

    /// `is_balanced`: the bounds are those of balanced_quotas for as many tokens as the mask leaves.
    exact_on_device(const Policy& policy, const hungarian& solver, const device_assignment_problem<S, space>& problem,
                    bool is_balanced, const assignment_arrays& out, device_workspace<Policy>& scratch,
                    workspace& host_scratch, device_effort& effort)
        : policy_(policy),
          solver_(solver),
          problem_(problem),
          is_balanced_(is_balanced),
          out_(out),
          scratch_(scratch),
          host_scratch_(host_scratch),
          effort_(effort),
          rows_(problem.scores.rows),
          experts_(problem.scores.columns),
          source_{problem.scores, problem.goal == objective::minimise} {}

    /// `host_prices` [E]: where prices go on the host, too, for bounds that close no expert; or null.
    assignment_result run(double* host_prices) {
        host_prices_ = host_prices;
        const bool fits = rows_ > 0 && experts_ >= 1 && experts_ <= most_priced_experts && problem_.choices == 1 &&
                          solver_.sampling != 0;
        return fits ? run_narrowed() : run_on_host();
    }

  private:
    static constexpr int most_parcels = 3;

    assignment_result run_narrowed() {
        const auto scope = scratch_.open();
        const auto on = price_search_on_device<C>::take(rows_, experts_, pass_blocks<S>(rows_, experts_), scratch_);
        begin_price_steps(policy_, on, device_bounds(), problem_.mask, problem_.initial_prices);
        index_t room = std::min(rows_, 32 * experts_ + 1024);
        for (int attempt = 0; attempt < most_parcels; ++attempt, room = std::min(rows_, 4 * room)) {
            const auto parcel_scope = scratch_.open();
            const auto host_scope = host_scratch_.open();
            const bool takes_all = room == rows_;
            if (!takes_all) find_prices(on, attempt);
            const index_t bytes = parcel<S>::bytes(experts_, room);
            const auto there = parcel<S>::at(scratch_.template take<std::byte>(bytes), experts_, room);
            look(on);
            fill_parcel<Policy, S, C>(policy_, on, source_, there, attempt == 0 ? 24 : 32 * (attempt + 1), takes_all,
                                      out_.expert_of_token, scratch_);
            const auto here = parcel<S>::at(host_scratch_.template take<std::byte>(bytes), experts_, room);
            policy_.copy_to_host(here.header, there.header, static_cast<std::size_t>(bytes));
            effort_.looks += 1;

            const parcel_header& header = *here.header;
            const quotas bounds = is_balanced_ ? balanced_quotas(header.tokens, experts_) : problem_.bounds;
            require_quotas(bounds, header.tokens);
            if (header.bad_row != none_bad) break;
            if (header.candidates > room) continue;
            const hungarian rest = what_is_left();
            candidates_on_host<S> candidates(rest, bounds, problem_.goal, here, host_scratch_);
            host_outcome outcome = candidates.run();
            iterations_ += outcome.result.iterations;
            if (outcome.made != host_outcome::kind::too_narrow) {
                const bool is_stopped = outcome.made == host_outcome::kind::stopped;
                double* const prices = out_.prices != nullptr ? out_.prices : on.best;
                hand_out(there, candidates, header.candidates, bounds, prices, is_stopped);
                if (is_stopped) outcome.result = certify(bounds, header.tokens, candidates.prices(), prices, on);
                outcome.result.iterations = iterations_;
                outcome.result.passes = passes_;
                return as_asked(outcome.result);
            }
            if (takes_all) break;
            send_to_device(policy_, on.price, candidates.prices(), experts_);
            policy_.launch(set_given_prices<C>{on}, 1,
                           shared_room<double>(price_search_on_device<C>::threads / warp_lanes));
        }
        return run_on_host();
    }

    kernel_bounds device_bounds() {
        const quotas& bounds = problem_.bounds;
        if (is_balanced_ || bounds.lower_bounds == nullptr) {
            return {nullptr, nullptr, bounds.lower_of_all, bounds.upper_of_all, is_balanced_};
        }
        auto* const both = scratch_.template take<index_t>(2 * experts_);
        send_to_device(policy_, both, bounds.lower_bounds, experts_);
        send_to_device(policy_, both + experts_, bounds.upper_bounds, experts_);
        return {both, both + experts_, 0, 0, false};
    }

    /// The settings, with what the parcels before have left of the limits: a limit used up leaves next to nothing.
    hungarian what_is_left() const {
        hungarian rest = solver_;
        if (rest.most_iterations > 0) rest.most_iterations = std::max<index_t>(1, rest.most_iterations - iterations_);
        if (rest.time_limit > 0) {
            const std::chrono::duration<double> spent = std::chrono::steady_clock::now() - began_;
            rest.time_limit = std::max(1e-9, rest.time_limit - spent.count());
        }
        return rest;
    }

    /// Prices at which few tokens are beyond the quotas. The pass of the parcel before has left its counts.
    void find_prices(const price_search_on_device<C>& on, int attempt) {
        if (attempt > 0) policy_.launch(clear_counts<C>{on}, 1);
        const index_t stride = std::clamp<index_t>(rows_ / (8 * experts_), 1, 8);
        if (attempt == 0 && problem_.initial_prices == nullptr && stride > 1) {
            const auto sampled = static_cast<double>(sampled_rows(rows_, stride));
            steps(on, stride, 16, 0.2 * std::sqrt(sampled * static_cast<double>(experts_)));
        }
        steps(on, 1, attempt == 0 ? 6 : 16, static_cast<double>(experts_) / 2);
    }
    void steps(const price_search_on_device<C>& on, index_t stride, index_t most, double enough) {
        run_price_steps<Policy, S, C>(policy_, on, source_, problem_.mask, stride, most, enough);
        passes_ += stride == 1 ? most + 1 : 0;
    }
    void look(const price_search_on_device<C>& on) {
        policy_.launch(clear_counts<C>{on}, 1);
        run_price_pass<Policy, S>(policy_, source_, problem_.mask, 1, on.passed, on.looked);
        passes_ += 1;
    }

    /// The candidates' experts, and to `prices` [E] on the device the prices, if somebody wants them there.
    void hand_out(const parcel<S>& there, const candidates_on_host<S>& candidates, index_t count, const quotas& bounds,
                  double* prices, bool is_certified_there) {
        send_experts_of(policy_, there.row, candidates.experts(), count, out_.expert_of_token, scratch_);
        if (out_.prices != nullptr || is_certified_there) {
            send_to_device(policy_, prices, candidates.prices(), experts_);
            price_closed_experts(policy_, source_, bounds, out_.expert_of_token, prices, scratch_, host_scratch_);
        }
        if (host_prices_ != nullptr) std::copy_n(candidates.prices(), experts_, host_prices_);
    }

    /// The certificate of what is written, by a pass over all scores, at prices on the host and on the device. Those of
    /// closed experts may differ: no load, no place, no term.
    assignment_result certify(const quotas& bounds, index_t tokens, const double* prices, const double* prices_there,
                              const price_search_on_device<C>& on) {
        const auto scope = scratch_.open();
        auto* const sums = scratch_.template take<certified_sums>(1);
        certify_rows<exactness::of_scores, Policy, S>(policy_, source_, out_.expert_of_token, prices_there, sums,
                                                      on.looked.load, scratch_);
        certified_sums found;
        policy_.copy_to_host(&found, sums, sizeof found);
        const auto host_scope = host_scratch_.open();
        auto* const counted = host_scratch_.template take<std::int32_t>(experts_);
        policy_.copy_to_host(counted, on.looked.load, bytes_of<std::int32_t>(experts_));
        effort_.looks += 2;
        passes_ += 1;
        auto* const load = host_scratch_.template take<index_t>(experts_);
        std::copy_n(counted, experts_, load);
        accurate_sum gap;
        gap.add(found.regretted);
        return finish_certificate(bounds, tokens, load, prices, found.primal, found.magnitude, gap);
    }

    /// All scores on the host.
    assignment_result run_on_host() {
        device_assignment_problem<S, space> whole = problem_;
        if (rows_ == 0) whole.mask = {};
        const problem_on_host<S> copy(policy_, whole, problem_.initial_prices);
        effort_.looks += 1 + (whole.mask.data != nullptr ? 1 : 0) + (problem_.initial_prices != nullptr ? 1 : 0);
        assignment_problem<S> posed = copy.problem;
        if (is_balanced_) posed.bounds = balanced_quotas(count_tokens(posed.mask, rows_), experts_);
        assignment_result result =
            solve(seq, what_is_left(), posed, {.expert_of_token = copy.experts.data(), .prices = copy.prices.data()},
                  host_scratch_);
        if (copy.experts.size() > 0) {
            policy_.copy_to_device(out_.expert_of_token, copy.experts.data(),
                                   bytes_of<std::int32_t>(copy.experts.size()));
        }
        if (out_.prices != nullptr && experts_ > 0) {
            policy_.copy_to_device(out_.prices, copy.prices.data(), bytes_of<double>(experts_));
        }
        if (host_prices_ != nullptr) std::copy_n(copy.prices.data(), experts_, host_prices_);
        result.passes += passes_;
        result.iterations += iterations_;
        return result;
    }

    assignment_result as_asked(assignment_result result) const {
        if (source_.are_costs) {
            result.primal = -result.primal;
            result.dual = -result.dual;
        }
        return result;
    }

    const Policy& policy_;
    const hungarian& solver_;
    const device_assignment_problem<S, space>& problem_;
    bool is_balanced_;
    assignment_arrays out_;
    device_workspace<Policy>& scratch_;
    workspace& host_scratch_;
    device_effort& effort_;
    index_t rows_;
    index_t experts_;
    device_scores<S, space> source_;
    double* host_prices_ = nullptr;
    std::chrono::steady_clock::time_point began_ = std::chrono::steady_clock::now();
    index_t passes_ = 0;
    index_t iterations_ = 0;  ///< of all parcels
};

inline void require_settings(const hungarian& solver) {
    require(solver.candidates >= 1, "hungarian::candidates = ", solver.candidates, " must be at least 1");
    require(solver.sampling == 0 || (solver.sampling >= 2 && solver.sampling <= 1'000'000),
            "hungarian::sampling = ", solver.sampling, " must be 0, or 2 to a million");
    require(solver.most_iterations >= 0, "hungarian::most_iterations = ", solver.most_iterations,
            " must not be negative");
    require(solver.time_limit >= 0, "hungarian::time_limit = ", solver.time_limit, " s must not be negative");
}

}  // namespace detail

/// The best assignment of tokens to experts within the quotas. `host_scratch` keeps the host's part from allocating.
template <kernel_policy Policy, class S>
assignment_result solve(const Policy& policy, const hungarian& solver,
                        const device_assignment_problem<S, policy_space<Policy>>& problem, const assignment_arrays& out,
                        device_workspace<Policy>& scratch, workspace& host_scratch) {
    detail::require_settings(solver);
    detail::require_device_problem<Policy>(problem, out);
    if (problem.mask.data == nullptr) require_quotas(problem.bounds, problem.scores.rows, problem.choices);
    detail::device_effort effort;
    return detail::exact_on_device<Policy, S>(policy, solver, problem, false, out, scratch, host_scratch, effort)
        .run(nullptr);
}

/// The same, with memory of its own on the host.
template <kernel_policy Policy, class S>
assignment_result solve(const Policy& policy, const hungarian& solver,
                        const device_assignment_problem<S, policy_space<Policy>>& problem, const assignment_arrays& out,
                        device_workspace<Policy>& scratch) {
    workspace host_scratch;
    return solve(policy, solver, problem, out, scratch, host_scratch);
}

}  // namespace SWITCHYARD_TARGET
}  // namespace switchyard
