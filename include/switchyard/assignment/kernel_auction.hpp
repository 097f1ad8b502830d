// The auction by kernels: `auction` with the bids of groups of lanes, and `async_auction`, which never waits.
//
//   assignment_result* const found = ...;                    // device memory, to be read later; or null
//   const async_auction solver{.rounds = 32, .found = found};
//   solve(policy, solver, problem, {.expert_of_token = experts.data()}, scratch);       // only enqueues
//
//   const base_router<async_auction> router{{.prices = prices}};   // prices: [E] on the device, 0 to begin with
//
// `async_auction` enqueues a number of launches that its settings and the shape settle, reads nothing on the host, and
// can be captured in a CUDA graph. Its assignment is always within the quotas and the gap is always certified;
// there is no bound on its size. It is the exact optimum's price, found as `hungarian` finds it, and a few rounds of an
// auction for the tokens that are nearly tied:
//
//   prices     at most `sample_steps` Newton steps on one token of eight, and `price_steps` on all
//                                                                                 detail/kernel_price_steps.hpp
//   quotas     what experts have at these prices, within the bounds               detail/kernel_finish.hpp
//   rounds     tokens without a place bid at least `step` above what their next best expert is worth to them; each
//              expert keeps its best bids                                         detail/kernel_bids.hpp
//   rest       two rounds in which tokens ask for free places only; who is left then takes the free places in order
//   the end    certificate: primal, dual, gap and tolerance, as in assignment.hpp
//
// Where all have places, the rounds left over do nothing. Ended by bids alone, the gap is at most the sum of the
// tokens' last steps, and what quotas chosen beforehand cost: none where bounds are fixed. Most tokens bid in the first
// rounds, with `step`; it doubles every four rounds, so that ties end.
//
// Bad scores (NaN, +infinity, tokens that may take no expert) are noted in `found` (gap infinite, not converged) and in
// the router's plan (its status), and the assignment is within the quotas all the same: a row that cannot be used gets
// a place that is free. Forbidden pairs are avoided by bids; a token that is left with a forbidden place only has it,
// and is noted as unroutable. Bounds that a mask leaves unmet are noted in `found`, too: no expert has more than its
// upper bound, and tokens without a place have expert -1. (A router's own bounds always fit.) Wrong shapes are errors
// here and now, and so are bounds below 0 or in the wrong order, and without a mask all that cannot be met.
//
// k = 1, at most 4,096 experts. Launches: 4 (sample_steps + price_steps) + 5 rounds, and about 30 more.
// docs/assignment/device.md counts bytes. Memory from the workspace: about 60 bytes per token, 4 per pair of experts.
#pragma once

#include <switchyard/assignment/detail/kernel_bids.hpp>
#include <switchyard/assignment/detail/kernel_certificate.hpp>
#include <switchyard/assignment/detail/kernel_finish.hpp>
#include <switchyard/assignment/detail/kernel_numbers.hpp>
#include <switchyard/assignment/detail/kernel_price_steps.hpp>
#include <switchyard/assignment/device_auction.hpp>
#include <switchyard/backend/device.hpp>
#include <switchyard/backend/kernel.hpp>
#include <switchyard/core/config.hpp>
#include <switchyard/core/workspace.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>

namespace switchyard {

/// Settings of the auction without waiting. All pointers are to device memory.
struct async_auction {
    index_t sample_steps = 16;  ///< Newton steps on one token of eight, at most; 0 with good prices to begin with
    index_t price_steps = 12;   ///< and on all tokens
    index_t rounds = 32;        ///< of bids
    double step = 0.0005;       ///< of the first bids, in standard deviations of a token's scores
    double* prices = nullptr;   ///< [E]: the router begins with them and leaves its own; 0 to begin with
    assignment_result* found = nullptr;  ///< where the certificate goes; iterations, passes and steps stay 0
};

inline namespace SWITCHYARD_TARGET {
namespace detail {

inline void require_settings(const async_auction& solver) {
    require(solver.sample_steps >= 0 && solver.sample_steps <= 1000,
            "async_auction::sample_steps = ", solver.sample_steps, " must be in 0..1000");
    require(solver.price_steps >= 0 && solver.price_steps <= 1000, "async_auction::price_steps = ", solver.price_steps,
            " must be in 0..1000");
    require(solver.rounds >= 1 && solver.rounds <= 100'000, "async_auction::rounds = ", solver.rounds,
            " must be in 1..100000");
    require(solver.step >= 0 && std::isfinite(solver.step), "async_auction::step = ", solver.step,
            " must be a number from 0 on");
}

/// What can be asked of bounds before tokens are counted, with the error messages of require_quotas.
inline void require_order_of_bounds(const quotas& bounds) {
    for (index_t e = 0; e < bounds.experts; ++e) {
        const index_t lower = bounds.lower(e);
        const index_t upper = bounds.upper(e);
        require(lower >= 0, "the lower quota of expert ", e, " is ", lower, ": it must not be negative");
        require(lower <= upper, "the lower quota of expert ", e, ", ", lower, ", is above its upper quota, ", upper);
    }
}

/// One call of the auction without waiting.
template <kernel_policy Policy, class S>
class auction_on_device {
  public:
    using space = policy_space<Policy>;
    using C = compute_t<S>;

    auction_on_device(const Policy& policy, const async_auction& solver,
                      const device_assignment_problem<S, space>& problem, bool is_balanced,
                      const assignment_arrays& out, plan_totals* totals, device_workspace<Policy>& scratch)
        : policy_(policy),
          solver_(solver),
          problem_(problem),
          is_balanced_(is_balanced),
          out_(out),
          totals_(totals),
          scratch_(scratch),
          rows_(problem.scores.rows),
          experts_(problem.scores.columns),
          source_{problem.scores, problem.goal == objective::minimise},
          on_(price_search_on_device<C>::take(rows_, experts_, pass_blocks<S>(rows_, experts_), scratch)),
          market_(kernel_market<space>::take(rows_, experts_, solver.rounds + fill_rounds, problem.mask, scratch)),
          unroutable_(scratch.template take<std::int32_t>(1)) {}

    void run() {
        find_prices();
        open();
        for (index_t round = 1; round <= solver_.rounds + fill_rounds; ++round) {
            run_bids<Policy, S>(policy_, source_, market_, round, round > solver_.rounds, scratch_, [&] {
                if (round > 1) return;
                using kernel = choose_quotas<C, space>;
                policy_.launch(kernel{market_, on_}, 1, kernel::shared_bytes(experts_));
            });
        }
        place_the_rest();
        certify();
    }

  private:
    static constexpr index_t fill_rounds = 2;

    void find_prices() {
        const quotas& bounds = problem_.bounds;
        kernel_bounds there{nullptr, nullptr, bounds.lower_of_all, bounds.upper_of_all, is_balanced_};
        if (!is_balanced_ && bounds.lower_bounds != nullptr) {
            auto* const both = scratch_.template take<index_t>(2 * experts_);
            send_to_device(policy_, both, bounds.lower_bounds, experts_);
            send_to_device(policy_, both + experts_, bounds.upper_bounds, experts_);
            there.lower_given = both;
            there.upper_given = both + experts_;
        }
        begin_price_steps(policy_, on_, there, problem_.mask, problem_.initial_prices);
        const index_t stride = std::clamp<index_t>(rows_ / (8 * experts_), 1, 8);
        if (stride > 1 && solver_.sample_steps > 0) {
            const auto sampled = static_cast<double>(sampled_rows(rows_, stride));
            run_price_steps<Policy, S, C>(policy_, on_, source_, problem_.mask, stride, solver_.sample_steps,
                                          0.2 * std::sqrt(sampled * static_cast<double>(experts_)));
        }
        run_price_steps<Policy, S, C>(policy_, on_, source_, problem_.mask, 1, solver_.price_steps,
                                      static_cast<double>(experts_) / 16);
    }

    void open() {
        const auto scope = scratch_.open();
        const index_t stride = std::max<index_t>(1, rows_ / 1024);
        const index_t looked_at = sampled_rows(rows_, stride);
        auto* const spread = scratch_.template take<certified_sums>(1);
        with_row_reader(source_, [&]<int V>(const row_reader<S, space, V>& reader) {
            using kernel = spread_of_rows<S, space, V>;
            constexpr auto room = shared_room<double>(kernel::threads / warp_lanes);
            const row_groups shares = row_groups::of(looked_at, experts_, V);
            auto* const partial = scratch_.template take<certified_sums>(shares.blocks());
            policy_.launch(kernel{reader, problem_.mask, shares, stride, partial}, shares.blocks(), room);
            policy_.launch(add_certified{partial, shares.blocks(), spread}, 1, room);
        });
        using kernel = open_market<C, space>;
        policy_.launch(kernel{market_, on_, spread, solver_.step, solver_.rounds + fill_rounds, unroutable_},
                       std::max<index_t>(1, (rows_ + kernel::threads - 1) / kernel::threads));
    }

    void place_the_rest() {
        const auto scope = scratch_.open();
        const index_t blocks = (rows_ + rows_a_warp - 1) / rows_a_warp;
        auto* const open_rows = scratch_.template take<std::int64_t>(blocks);
        auto* const free_places = scratch_.template take<std::int64_t>(experts_);
        policy_.launch(count_left_over<space>{market_, open_rows}, blocks);
        policy_.launch(count_free_places{market_.quota, market_.load, free_places, experts_},
                       (experts_ + count_free_places::threads - 1) / count_free_places::threads);
        policy_.inclusive_sum(open_rows, blocks, scratch_);
        policy_.inclusive_sum(free_places, experts_, scratch_);
        policy_.launch(
            place_left_over<S, space>{market_, source_, open_rows, free_places, unroutable_, out_.expert_of_token},
            blocks);
    }

    void certify() {
        const auto scope = scratch_.open();
        auto* const sums = scratch_.template take<certified_sums>(1);
        certify_rows<exactness::of_ranges, Policy, S>(policy_, source_, out_.expert_of_token, market_.price, sums,
                                                      on_.looked.load, scratch_);
        using kernel = write_result<S, space>;
        policy_.launch(
            kernel{market_, on_, source_, sums, on_.looked.load, unroutable_, out_.prices, solver_.found, totals_}, 1,
            kernel::shared_bytes(experts_));
    }

    const Policy& policy_;
    const async_auction& solver_;
    const device_assignment_problem<S, space>& problem_;
    bool is_balanced_;
    assignment_arrays out_;
    plan_totals* totals_;
    device_workspace<Policy>& scratch_;
    index_t rows_;
    index_t experts_;
    device_scores<S, space> source_;
    price_search_on_device<C> on_;
    kernel_market<space> market_;
    std::int32_t* unroutable_;
};

/// Enqueues an auction. `is_balanced`: the bounds are those of balanced_quotas for as many tokens as the mask leaves.
template <kernel_policy Policy, class S>
void enqueue_auction(const Policy& policy, const async_auction& solver,
                     const device_assignment_problem<S, policy_space<Policy>>& problem, bool is_balanced,
                     const assignment_arrays& out, plan_totals* totals, device_workspace<Policy>& scratch) {
    require_settings(solver);
    require_device_problem<Policy>(problem, out);
    require(problem.choices == 1, "async_auction gives tokens one expert each, not choices = ", problem.choices);
    require(problem.scores.columns >= 1 && problem.scores.columns <= most_priced_experts, "async_auction is for 1 to ",
            most_priced_experts, " experts, not ", problem.scores.columns);
    if (!is_balanced) {
        if (problem.mask.data == nullptr) {
            require_quotas(problem.bounds, problem.scores.rows);
        } else {
            require_order_of_bounds(problem.bounds);
        }
    }
    const auto scope = scratch.open();
    auction_on_device<Policy, S>(policy, solver, problem, is_balanced, out, totals, scratch).run();
}

/// The bids of `auction`'s rounds (device_auction.hpp), by groups of lanes: found before the generic one.
template <class S, class Space, int V>
struct bid_rows_of_market {
    static constexpr int threads = row_groups::threads;
    using C = compute_t<S>;
    row_reader<S, Space, V> reader;
    row_groups shares;
    device_market market;
    double span;
    double step;

    template <kernel_thread Here>
    SWITCHYARD_DEVICE void operator()(Here& here) const {
        double* const price = here.template shared<double>(market.experts);
        for (index_t e = here.thread(); e < market.experts; e += threads) price[e] = here.load(market.price + e);
        here.sync();
        const group_lane mine = group_lane::of(here, shares);
        const index_t begin = here.block() * shares.rows_a_block;
        for (index_t offset = 0; offset < shares.rows_a_block; offset += shares.groups()) {
            const index_t t = begin + offset + mine.group;
            const std::int32_t wants =
                mine.is_leader && t < shares.rows && here.load(market.expert + t) == open_token ? 1 : 0;
            const bool is_open = here.shuffle(wants, mine.first) != 0;
            if (!here.any(is_open)) continue;
            const double origin = is_open ? here.load(reader.source.highest + t) : 0.0;
            bid_in_row<C> row{price, nullptr, market.experts, t % market.experts, origin};
            reader.read(here, mine, is_open, t, row);
            row.found.gather(here, mine.lanes);
            if (mine.is_leader && is_open && row.found.expert >= 0) bid(here, t, row, price);
        }
    }

  private:
    /// As bid_of_row: the same expert and level, bit by bit.
    template <class Here>
    SWITCHYARD_DEVICE void bid(Here& here, index_t t, const bid_in_row<C>& row, const double* price) const {
        const index_t e = row.expert();
        const double most = price[e] + span;
        const double fair = static_cast<double>(reader.score(here, t, e)) - row.origin - row.found.second;
        double level = fair < most ? fair : most;
        level = (level > price[e] ? level : price[e]) + step;
        if (!(level > price[e])) level = price[e] + (price[e] < 0 ? -price[e] : price[e]) * 4.5e-16;
        here.store(market.expert + t, static_cast<std::int32_t>(e));
        here.store(market.level + t, level);
    }
};

/// The bids of all rows, by groups of lanes where the prices fit a block's shared memory.
template <kernel_policy Policy, class S, class Space>
void make_bids(const Policy& policy, index_t rows, const bid_of_row<S, Space>& bids) {
    if (bids.market.experts > most_priced_experts) {
        for_each_index(policy, rows, bids);
        return;
    }
    with_row_reader(bids.scores, [&]<int V>(const row_reader<S, Space, V>& reader) {
        const row_groups shares = row_groups::of(rows, bids.market.experts, V);
        policy.launch(bid_rows_of_market<S, Space, V>{reader, shares, bids.market, bids.span, bids.step},
                      shares.blocks(), shared_room<double>(bids.market.experts));
    });
}

}  // namespace detail

/// Enqueues an assignment of tokens to experts within the quotas, and its certificate.
template <kernel_policy Policy, class S>
void solve(const Policy& policy, const async_auction& solver,
           const device_assignment_problem<S, policy_space<Policy>>& problem, const assignment_arrays& out,
           device_workspace<Policy>& scratch) {
    detail::enqueue_auction(policy, solver, problem, false, out, nullptr, scratch);
}

}  // namespace SWITCHYARD_TARGET
}  // namespace switchyard
