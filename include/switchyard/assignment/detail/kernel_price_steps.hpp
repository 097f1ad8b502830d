// Good prices on a device, without a look at anything on the host: Newton's method on D (assignment.hpp), whose steps
// price_steps.hpp explains, in a number of launches that is settled beforehand.
//
//   begin_price_steps      1 launch, 3 with a mask (kernel_price_state.hpp)
//   run_price_steps(n)     4 launches per step and 2 at the end:
//     price_pass             all rows, or one of so many: loads, and which are nearly tied between which experts
//     measure_prices         one block: are these prices better than the best so far? Else back, and half the step
//     count_torn             all rows: tokens nearly tied between two experts, within a band of margins
//     solve_step             one block: L step = load - goal by conjugate gradients, and the next prices to try
//
// Once loads are near enough to the goals, the launches left over do nothing. The best prices so far are kept; nothing
// decides anything, so solvers are as exact as without. Above 512 experts L is its diagonal alone.
//
// Integers are counted with atomics, all other sums run in the order of blocks, rows and experts.
#pragma once

#include <switchyard/assignment/detail/kernel_price_pass.hpp>
#include <switchyard/assignment/detail/kernel_price_state.hpp>
#include <switchyard/assignment/detail/kernel_rows.hpp>
#include <switchyard/backend/device.hpp>
#include <switchyard/backend/kernel.hpp>
#include <switchyard/backend/lane_group.hpp>
#include <switchyard/core/config.hpp>
#include <switchyard/core/workspace.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>

namespace switchyard {
inline namespace SWITCHYARD_TARGET {
namespace detail {

/// The smallest bin with at least `wanted` margins up to and including it; the last finite one if there are too few.
/// `room` is shared memory for 257 numbers: a thread's bins together, and what is found. One block of 256 threads.
template <class Here>
SWITCHYARD_DEVICE index_t find_bin(Here& here, const std::int32_t* bins, index_t wanted, std::int32_t* room) {
    constexpr index_t each = margin_bins / 256;
    const index_t first = here.thread() * each;
    std::int32_t mine = 0;
    for (index_t b = first; b < first + each; ++b) mine += here.load(bins + b);
    here.sync();
    room[here.thread()] = mine;
    if (here.thread() == 0) room[256] = static_cast<std::int32_t>(last_finite_bin);
    here.sync();
    index_t below = 0;
    for (int other = 0; other < here.thread(); ++other) below += room[other];
    if (below < wanted || here.thread() == 0) {
        for (index_t b = first; b < first + each && b < last_finite_bin; ++b) {
            below += here.load(bins + b);
            if (below >= wanted) {
                here.atomic_min(room + 256, static_cast<std::int32_t>(b));
                break;
            }
        }
    }
    here.sync();
    return room[256];
}

/// Whether the prices looked at are better than the best so far, and the band in which to count nearly tied tokens. One
/// block.
template <class C>
struct measure_prices {
    static constexpr int threads = price_search_on_device<C>::threads;
    price_search_on_device<C> on;
    index_t blocks;  ///< partial sums of the pass
    bool is_first;   ///< there is nothing to compare with
    double enough;   ///< excess that is as good as none

    static std::size_t shared_bytes() {
        return shared_room<double>(threads / warp_lanes) + shared_room<std::int32_t>(threads + 1);
    }

    template <kernel_thread Here>
    SWITCHYARD_DEVICE void operator()(Here& here) const {
        double* const room = here.template shared<double>(threads / warp_lanes);
        std::int32_t* const bin_room = here.template shared<std::int32_t>(threads + 1);
        search_state& state = *on.state;
        const bool was_done = !is_first && here.load(&state.is_done) != 0;
        if (was_done) return;  // nobody has looked
        const double best_value = here.load(&state.value);
        const double best_excess = here.load(&state.excess);
        const double part = here.load(&state.part);
        double looked_at = 0;
        for (index_t e = here.thread(); e < on.experts; e += threads) {
            looked_at += static_cast<double>(here.load(on.looked.load + e));
        }
        looked_at = fold_block_again<threads>(here, looked_at, room, add{});
        const auto tokens = static_cast<double>(here.load(&state.tokens));
        const expert_goals goals{tokens > 0 ? looked_at / tokens : 0.0, here.load(&state.open_part)};
        double excess = 0;
        double value = 0;
        for (index_t e = here.thread(); e < on.experts; e += threads) add_expert(here, goals, e, excess, value);
        for (index_t b = here.thread(); b < blocks; b += threads) value += here.load(on.looked.value + b);
        excess = fold_block_again<threads>(here, excess, room, add{}) / 2;
        value = fold_block_again<threads>(here, value, room, add{});
        const bool is_better =
            is_first || excess < 0.95 * best_excess || (value < best_value && excess < 1.5 * best_excess);

        const auto tied = static_cast<index_t>(here.load(on.looked.bins));
        const index_t wanted = tied + static_cast<index_t>(4 * excess) + on.experts;
        const index_t most = static_cast<index_t>(looked_at);
        const index_t bin = find_bin(here, on.looked.bins, wanted < most ? wanted : most, bin_room);
        const double edge = bin < last_finite_bin && tied < most ? edge_of(bin) : 0.0;
        here.sync();
        for (index_t b = here.thread(); b < margin_bins; b += threads) here.store(on.looked.bins + b, 0);
        if (is_better) {
            for (index_t e = here.thread(); e < on.experts; e += threads) {
                here.store(on.best + e, here.load(on.price + e));
                take_residual(here, goals, e);
            }
        } else {
            set_prices(here, on, room, [&](index_t e) { return here.load(on.best + e); });
        }
        for (index_t e = here.thread(); e < on.experts; e += threads) here.store(on.looked.load + e, 0);
        if (here.thread() == 0) {
            here.store(&state.is_back, is_better ? 0 : 1);
            here.store(&state.part, is_first ? 1.0 : is_better ? (part < 0.5 ? 2 * part : 1.0) : part / 2);
            if (is_better) {
                here.store(&state.value, value);
                here.store(&state.excess, excess);
                here.store(&state.band, edge);
            }
            const bool is_good = is_better && excess <= enough;
            here.store(&state.is_done, is_good || (is_better && edge == 0) ? 1 : 0);
            here.store(&state.looked_at, static_cast<std::int32_t>(looked_at));
        }
    }

  private:
    template <class Here>
    SWITCHYARD_DEVICE void add_expert(Here& here, const expert_goals& goals, index_t e, double& excess,
                                      double& value) const {
        const index_t lower = here.load(on.lower + e);
        const index_t upper = here.load(on.upper + e);
        const double price = here.load(on.price + e);
        const auto load = static_cast<double>(here.load(on.looked.load + e));
        const double missed = load - goals.at(lower, upper, price, load);
        excess += missed < 0 ? -missed : missed;
        if (upper > 0) value += price * goals.at(lower, upper, price, 0.0);
    }
    /// What the load is beyond its goal; 0 where a price of 0 is right as it is.
    template <class Here>
    SWITCHYARD_DEVICE void take_residual(Here& here, const expert_goals& goals, index_t e) const {
        const index_t lower = here.load(on.lower + e);
        const index_t upper = here.load(on.upper + e);
        const auto load = static_cast<double>(here.load(on.looked.load + e));
        here.store(on.residual + e, upper > 0 ? load - goals.at(lower, upper, here.load(on.price + e), load) : 0.0);
    }
};

/// Tokens whose margin is within the band, by the two experts they are nearly tied between.
template <class C>
struct count_torn {
    static constexpr int threads = 256;
    price_search_on_device<C> on;
    index_t rows;  ///< looked at

    template <kernel_thread Here>
    SWITCHYARD_DEVICE void operator()(Here& here) const {
        const search_state& state = *on.state;
        const index_t i = here.block() * threads + here.thread();
        const bool is_wanted = here.load(&state.is_done) == 0 && here.load(&state.is_back) == 0;
        if (is_wanted && i < rows && static_cast<double>(here.load(on.looked.margin + i)) < here.load(&state.band)) {
            count(here, here.load(on.looked.expert + i), here.load(on.looked.next + i));
        }
    }

  private:
    template <class Here>
    SWITCHYARD_DEVICE void count(Here& here, index_t a, index_t b) const {
        if (a >= 0 && b >= 0) {
            here.atomic_add(on.torn + (on.is_tabled() ? a * on.experts + b : a), 1);
            here.atomic_add(on.torn + (on.is_tabled() ? b * on.experts + a : b), 1);
        }
    }
};

/// The next prices to try: along a new step, or less far along the last one. One block.
template <class C>
struct solve_step {
    static constexpr int threads = price_search_on_device<C>::threads;
    static constexpr int most_rounds = 24;
    price_search_on_device<C> on;

    static std::size_t shared_bytes(index_t experts) {
        return shared_room<double>(threads / warp_lanes) + shared_room<double>(experts);
    }

    template <kernel_thread Here>
    SWITCHYARD_DEVICE void operator()(Here& here) const {
        double* const room = here.template shared<double>(threads / warp_lanes);
        double* const direction = here.template shared<double>(on.experts);
        search_state& state = *on.state;
        if (here.load(&state.is_done) != 0) return;
        const double band = here.load(&state.band);
        const double part = here.load(&state.part);
        if (here.load(&state.is_back) == 0) conjugate_gradients(here, 1 / (2 * band), direction, room);
        const double furthest = 3 * band;
        set_prices(here, on, room, [&](index_t e) {
            const double from = here.load(on.best + e);
            const double step = here.load(on.step + e);
            const double to = from + part * (step > furthest ? furthest : step < -furthest ? -furthest : step);
            const bool is_tied = expert_goals::is_tied(here.load(on.lower + e), here.load(on.upper + e));
            return !is_tied && from * to < 0 ? 0.0 : to;
        });
    }

  private:
    /// step: L step = residual, as far as the rounds go. Clears the counts.
    template <class Here>
    SWITCHYARD_DEVICE void conjugate_gradients(Here& here, double weight, double* direction, double* room) const {
        double degrees = 0;
        for (index_t e = here.thread(); e < on.experts; e += threads) {
            const double degree = weight * static_cast<double>(torn_of(here, e));
            here.store(on.degree + e, degree);
            degrees += degree;
        }
        degrees = fold_block_again<threads>(here, degrees, room, add{});
        const double ridge = 1e-3 * degrees / static_cast<double>(on.experts) + std::numeric_limits<double>::min();
        double energy = 0;
        for (index_t e = here.thread(); e < on.experts; e += threads) {
            const double degree = here.load(on.degree + e) + ridge;
            const double residual = here.load(on.residual + e);
            here.store(on.degree + e, degree);
            here.store(on.step + e, 0.0);
            direction[e] = residual / degree;
            energy += residual * direction[e];
        }
        energy = fold_block_again<threads>(here, energy, room, add{});
        const double enough = 1e-6 * energy;
        for (int round = 0; round < most_rounds && energy > enough; ++round) {
            const double curvature = fold_block_again<threads>(here, multiply(here, weight, direction), room, add{});
            if (!(curvature > 0)) break;
            const double length = energy / curvature;
            double next_energy = 0;
            for (index_t e = here.thread(); e < on.experts; e += threads) {
                here.store(on.step + e, here.load(on.step + e) + length * direction[e]);
                const double residual = here.load(on.residual + e) - length * here.load(on.product + e);
                here.store(on.residual + e, residual);
                next_energy += residual * residual / here.load(on.degree + e);
            }
            next_energy = fold_block_again<threads>(here, next_energy, room, add{});
            const double carry = next_energy / energy;
            energy = next_energy;
            for (index_t e = here.thread(); e < on.experts; e += threads) {
                direction[e] = here.load(on.residual + e) / here.load(on.degree + e) + carry * direction[e];
            }
        }
        here.sync();
        for (index_t i = here.thread(); i < on.torn_size(); i += threads) here.store(on.torn + i, 0);
    }

    /// Tokens nearly tied between an expert and others.
    template <class Here>
    SWITCHYARD_DEVICE index_t torn_of(Here& here, index_t e) const {
        if (!on.is_tabled()) return here.load(on.torn + e);
        index_t torn = 0;
        for (index_t f = 0; f < on.experts; ++f) torn += here.load(on.torn + f * on.experts + e);
        return torn;
    }

    /// product = L direction; returns this thread's share of direction . product.
    template <class Here>
    SWITCHYARD_DEVICE double multiply(Here& here, double weight, const double* direction) const {
        here.sync();
        double curvature = 0;
        for (index_t e = here.thread(); e < on.experts; e += threads) {
            double others = 0;
            for (index_t f = 0; on.is_tabled() && f < on.experts; ++f) {
                others += static_cast<double>(here.load(on.torn + f * on.experts + e)) * direction[f];
            }
            const double product = here.load(on.degree + e) * direction[e] - weight * others;
            here.store(on.product + e, product);
            curvature += direction[e] * product;
        }
        return curvature;
    }
};

/// At most so many steps on one of each `stride` rows, from the prices there are to the best ones found. The last
/// prices tried are looked at, too.
template <kernel_policy Policy, class S, class C>
void run_price_steps(const Policy& policy, const price_search_on_device<C>& on,
                     const device_scores<S, policy_space<Policy>>& source, const token_mask& mask, index_t stride,
                     index_t steps, double enough) {
    const index_t rows = sampled_rows(on.rows, stride);
    for (index_t step = 0; step <= steps; ++step) {
        const index_t blocks = run_price_pass<Policy, S>(policy, source, mask, stride, on.passed, on.looked,
                                                         step > 0 ? &on.state->is_done : nullptr);
        policy.launch(measure_prices<C>{on, blocks, step == 0, enough}, 1, measure_prices<C>::shared_bytes());
        if (step == steps) break;
        policy.launch(count_torn<C>{on, rows}, (rows + count_torn<C>::threads - 1) / count_torn<C>::threads);
        policy.launch(solve_step<C>{on}, 1, solve_step<C>::shared_bytes(on.experts));
    }
}

}  // namespace detail
}  // namespace SWITCHYARD_TARGET
}  // namespace switchyard
