// What blocks of rows leave behind, and the losses and the status that become of it once all blocks are done.
#pragma once

#include <switchyard/backend/kernel.hpp>
#include <switchyard/backend/lane_group.hpp>
#include <switchyard/balance/load_balancing_loss.hpp>
#include <switchyard/core/config.hpp>
#include <switchyard/plan/detail/kernel_counts.hpp>
#include <switchyard/plan/plan.hpp>
#include <switchyard/router/softmax_pass.hpp>

#include <cstdint>

namespace switchyard {
inline namespace SWITCHYARD_TARGET {
namespace detail {

/// What each block of rows leaves for the totals, in device memory.
template <class S>
struct block_facts {
    std::int32_t* bad = nullptr;         ///< [blocks] the first token with a bad score, or no_column
    std::int32_t* unroutable = nullptr;  ///< [blocks] the first token with every expert forbidden, or no_column
    double* squares = nullptr;           ///< [blocks] sum of squared logsumexp; null if not needed
    S* probabilities = nullptr;          ///< [blocks, E] column sums of the probabilities; null if not needed
};

/// The losses and the status, from what the blocks of rows left: what `finish_counts_kernel` is given to add.
template <class S>
struct softmax_totals {
    block_facts<S> facts;
    index_t row_blocks;
    index_t experts;
    double* column_sums;  ///< [E]
    plan_totals* totals;
    double balance_weight;
    index_t counted_choices;
    double z_weight;
    bool may_drop;

    static constexpr int threads = finish_threads;
    static constexpr int warps = threads / warp_lanes;

    /// A thread block for 32 columns of the probabilities.
    index_t blocks() const { return facts.probabilities != nullptr ? (experts + warp_lanes - 1) / warp_lanes : 0; }

    template <class Here>
    SWITCHYARD_DEVICE void run(Here& here, index_t i, double* room) const {
        const index_t expert = i * warp_lanes + here.thread() % warp_lanes;
        double sum = 0;
        constexpr int each = 24;  // loads under way at a time
        for (index_t block = here.thread() / warp_lanes; block < row_blocks; block += warps * each) {
            S part[each];
            unrolled<each>([&](int j) {
                const index_t its = block + j * warps;
                part[j] = expert < experts && its < row_blocks ? here.load(facts.probabilities + its * experts + expert)
                                                               : S(0);
            });
            unrolled<each>([&](int j) { sum += static_cast<double>(part[j]); });
        }
        room[here.thread()] = sum;
        here.sync();
        if (here.thread() < warp_lanes && expert < experts) {
            for (int warp = 1; warp < warps; ++warp) {
                sum += room[warp * warp_lanes + here.thread()];
            }
            here.store(column_sums + expert, sum);
        }
    }

    template <class Here>
    SWITCHYARD_DEVICE void run_alone(Here& here) const {
        for (index_t expert = here.thread(); facts.probabilities != nullptr && expert < experts; expert += threads) {
            here.store(column_sums + expert, static_cast<double>(here.load(facts.probabilities + expert)));
        }
    }

    template <class Here>
    SWITCHYARD_DEVICE void collect(Here& here, index_t block, final_facts& found) const {
        const std::int32_t bad = here.load(facts.bad + block);
        const std::int32_t unroutable = here.load(facts.unroutable + block);
        found.squares += facts.squares != nullptr ? here.load(facts.squares + block) : 0.0;
        found.bad = lower_of{}(found.bad, bad);
        found.unroutable = lower_of{}(found.unroutable, unroutable);
    }

    template <class Here>
    SWITCHYARD_DEVICE double column(Here& here, index_t expert) const {
        return facts.probabilities != nullptr ? here.load(column_sums + expert) : 0.0;
    }

    template <class Here>
    SWITCHYARD_DEVICE void end(Here& here, const final_facts& found) const {
        const index_t counted = found.counted_tokens;
        const double scale = balance_scale(balance_weight, experts, counted_choices, counted);
        here.store(&totals->load_balancing_loss, facts.probabilities != nullptr ? scale * found.terms : 0.0);
        here.store(&totals->z_loss, facts.squares != nullptr ? z_loss(z_weight, found.squares, counted) : 0.0);
        const row_events events{found.bad == no_column ? -1 : found.bad,
                                found.unroutable == no_column ? -1 : found.unroutable};
        const row_outcome outcome = outcome_of(events, may_drop);
        here.store(&totals->status, outcome.status);
        here.store(&totals->status_token, outcome.token);
    }
};

}  // namespace detail
}  // namespace SWITCHYARD_TARGET
}  // namespace switchyard
