// Good prices on a device, without a look at anything on the host: Newton's method on D (assignment.hpp), whose steps
// price_steps.hpp explains, in a number of launches that is settled beforehand.
//
//   begin_price_steps      1 launch, 2 with a mask
//   run_price_steps(n)     4 launches a step and 2 at the end:
//     price_pass             all rows, or one of so many: loads, and who is torn between whom
//     measure_prices         one block: are these prices better than the best so far? Else back, and half the step
//     count_torn             all rows: tokens torn between two experts, within a band of margins
//     solve_step             one block: L step = load - goal by conjugate gradients, and the next prices to try
//
// Once loads are near enough to the goals, the launches left over do nothing. The best prices so far are kept; nothing
// decides anything, so solvers are as exact as without. Above 512 experts L is its diagonal alone.
//
// Integers are counted with atomics, all other sums run in the order of blocks, rows and experts.
#pragma once

#include <switchyard/assignment/detail/kernel_price_pass.hpp>
#include <switchyard/assignment/detail/kernel_rows.hpp>
#include <switchyard/assignment/quotas.hpp>
#include <switchyard/backend/device.hpp>
#include <switchyard/backend/kernel.hpp>
#include <switchyard/core/config.hpp>
#include <switchyard/core/workspace.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>

namespace switchyard {
inline namespace SWITCHYARD_TARGET {
namespace detail {

/// Experts up to which torn tokens are counted for each pair.
inline constexpr index_t most_tabled_experts = 512;

/// Bounds as kernels read them: arrays on the device, one pair for all, or floor and ceiling of tokens / experts.
struct kernel_bounds {
    const index_t* lower_given = nullptr;
    const index_t* upper_given = nullptr;
    index_t lower_of_all = 0;
    index_t upper_of_all = 0;
    bool is_balanced = false;
};

/// What there is once of a search for prices, on the device.
struct search_state {
    double value;          ///< D at the best prices so far, up to a constant
    double excess;         ///< places taken beyond the goals there
    double band;           ///< of margins within which torn tokens are counted
    double part;           ///< of a step, to be tried
    double open_part;      ///< how much of what bounds leave open tokens need: 0 to 1
    std::int32_t tokens;   ///< rows that are not padding
    std::int32_t bad_row;  ///< the lowest row that cannot be used; none_bad
    std::int32_t is_done;  ///< no more steps are wanted
    std::int32_t is_back;  ///< the last prices tried were no better
    std::int32_t looked_at;
    std::int32_t fits;  ///< tokens fit the bounds
};
inline constexpr std::int32_t none_bad = std::numeric_limits<std::int32_t>::max();

/// Everything the kernels below work on, in the device's memory.
template <class C>
struct price_search_on_device {
    static constexpr int threads = 256;

    index_t rows;
    index_t experts;
    index_t* lower;         ///< [E]
    index_t* upper;         ///< [E], at most all tokens
    double* price;          ///< [E]: to be looked at
    double* best;           ///< [E]: the best so far
    double* step;           ///< [E]
    double* residual;       ///< [E]
    double* product;        ///< [E]
    double* degree;         ///< [E]
    std::int32_t* torn;     ///< [E, E] tokens torn between two experts; [E] above most_tabled_experts
    pass_prices<C> passed;  ///< the prices to be looked at, rounded
    pass_results<C> looked;
    search_state* state;

    SWITCHYARD_HD bool is_tabled() const { return experts <= most_tabled_experts; }
    SWITCHYARD_HD index_t torn_size() const { return is_tabled() ? experts * experts : experts; }

    template <class Memory>
    static price_search_on_device take(index_t rows, index_t experts, index_t blocks,
                                       basic_workspace<Memory>& scratch) {
        price_search_on_device made{};
        made.rows = rows;
        made.experts = experts;
        made.lower = scratch.template take<index_t>(experts);
        made.upper = scratch.template take<index_t>(experts);
        double* const numbers = scratch.template take<double>(6 * experts);
        made.price = numbers;
        made.best = numbers + experts;
        made.step = numbers + 2 * experts;
        made.residual = numbers + 3 * experts;
        made.product = numbers + 4 * experts;
        made.degree = numbers + 5 * experts;
        made.torn = scratch.template take<std::int32_t>(made.torn_size());
        made.passed = {scratch.template take<C>(experts), scratch.template take<C>(1)};
        made.state = scratch.template take<search_state>(1);
        made.looked = {scratch.template take<std::int32_t>(rows),
                       scratch.template take<std::int32_t>(rows),
                       scratch.template take<C>(rows),
                       scratch.template take<std::int32_t>(experts),
                       scratch.template take<std::int32_t>(margin_bins),
                       scratch.template take<double>(blocks),
                       &made.state->bad_row};
        return made;
    }
};

/// Loads and goals of experts, when so many of the tokens have been looked at.
struct expert_goals {
    double share;      ///< of all tokens
    double open_part;  ///< see search_state

    /// Bounds that are (nearly) equal leave no room for the sign of a price to say anything: then the goal is one
    /// number.
    SWITCHYARD_HD static bool is_tied(index_t lower, index_t upper) {
        const auto freedom = static_cast<double>(upper - lower);
        return freedom <= 1.0 || freedom <= 0.02 * static_cast<double>(upper);
    }
    /// Where the load should be, given the price and what it is.
    SWITCHYARD_HD double at(index_t lower, index_t upper, double price, double load) const {
        const auto least = static_cast<double>(lower);
        const auto most = static_cast<double>(upper);
        if (is_tied(lower, upper)) return share * (least + open_part * (most - least));
        if (price > 0) return share * most;
        if (price < 0) return share * least;
        return load < share * least ? share * least : load > share * most ? share * most : load;
    }
};

struct clear_number {
    static constexpr int threads = warp_lanes;
    std::int32_t* number;

    template <kernel_thread Here>
    SWITCHYARD_DEVICE void operator()(Here& here) const {
        if (here.thread() == 0) here.store(number, 0);
    }
};

/// Rows that are not padding, added to a count that is 0.
struct count_tokens_kernel {
    static constexpr int threads = 256;
    static constexpr index_t rows_a_block = 4096;
    token_mask mask;
    index_t rows;
    std::int32_t* tokens;

    template <kernel_thread Here>
    SWITCHYARD_DEVICE void operator()(Here& here) const {
        std::int32_t* const room = here.template shared<std::int32_t>(threads / warp_lanes);
        std::int32_t mine = 0;
        for (index_t j = here.thread(); j < rows_a_block; j += threads) {
            const index_t t = here.block() * rows_a_block + j;
            if (t < rows && here.load(mask.data + t) != 0) mine += 1;
        }
        const std::int32_t all = block_sum(here, mine, room, threads);
        if (here.thread() == 0) here.atomic_add(tokens, all);
    }
};

/// The smallest bin with at least `wanted` margins up to and including it; the last finite one if there are too few.
/// `room` is shared memory for margin_bins + 1 numbers. One block of 256 threads.
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

/// The largest of the block's numbers, as block_sum.
template <class Here, class T>
SWITCHYARD_DEVICE T block_largest(Here& here, T mine, T* room, int threads) {
    const auto larger = [](T a, T b) { return b > a ? b : a; };
    for (int distance = warp_lanes / 2; distance > 0; distance /= 2) {
        mine = larger(mine, here.shuffle_xor(mine, distance));
    }
    here.sync();
    if (here.thread() % warp_lanes == 0) room[here.thread() / warp_lanes] = mine;
    here.sync();
    T all = room[0];
    for (int warp = 1; warp < threads / warp_lanes; ++warp) all = larger(all, room[warp]);
    return all;
}

/// The next prices to look at: price(e), rounded to the compute type. One block.
template <class Here, class C, class PriceOf>
SWITCHYARD_DEVICE void set_prices(Here& here, const price_search_on_device<C>& on, double* room,
                                  const PriceOf& price_of) {
    constexpr int threads = price_search_on_device<C>::threads;
    double largest = 0;
    for (index_t e = here.thread(); e < on.experts; e += threads) {
        const bool is_closed = here.load(on.upper + e) == 0;
        const C price = is_closed ? std::numeric_limits<C>::infinity() : round_price<C>(price_of(e));
        here.store(on.passed.price + e, price);
        here.store(on.price + e, static_cast<double>(price));
        if (!is_closed && static_cast<double>(size_of(price)) > largest) largest = static_cast<double>(size_of(price));
    }
    largest = block_largest(here, largest, room, threads);
    if (here.thread() == 0) here.store(on.passed.largest_size, static_cast<C>(largest));
}

/// Bounds, prices to begin with, and counts of nothing. One block.
template <class C>
struct begin_search {
    static constexpr int threads = price_search_on_device<C>::threads;
    price_search_on_device<C> on;
    kernel_bounds bounds;
    const double* initial_prices;  ///< [E]; null: 0
    bool is_counted;               ///< state->tokens is what a mask leaves; else every row is a token

    template <kernel_thread Here>
    SWITCHYARD_DEVICE void operator()(Here& here) const {
        double* const room = here.template shared<double>(threads / warp_lanes);
        const index_t tokens = is_counted ? here.load(&on.state->tokens) : on.rows;
        double lower_sum = 0;
        double upper_sum = 0;
        for (index_t e = here.thread(); e < on.experts; e += threads) {
            index_t lower = bounds.lower_of_all;
            index_t upper = bounds.upper_of_all;
            if (bounds.lower_given != nullptr) {
                lower = here.load(bounds.lower_given + e);
                upper = here.load(bounds.upper_given + e);
            } else if (bounds.is_balanced) {
                lower = tokens / on.experts;
                upper = lower + (tokens % on.experts != 0 ? 1 : 0);
            }
            upper = upper < tokens ? upper : tokens;
            here.store(on.lower + e, lower);
            here.store(on.upper + e, upper);
            lower_sum += static_cast<double>(lower);
            upper_sum += static_cast<double>(upper);
            here.store(on.looked.load + e, 0);
            here.store(on.step + e, 0.0);
        }
        for (index_t b = here.thread(); b < margin_bins; b += threads) here.store(on.looked.bins + b, 0);
        for (index_t i = here.thread(); i < on.torn_size(); i += threads) here.store(on.torn + i, 0);
        lower_sum = block_sum(here, lower_sum, room, threads);
        upper_sum = block_sum(here, upper_sum, room, threads);
        const auto places = static_cast<double>(tokens);
        if (here.thread() == 0) {
            search_state& state = *on.state;
            here.store(&state.open_part, upper_sum > lower_sum ? (places - lower_sum) / (upper_sum - lower_sum) : 0.0);
            here.store(&state.fits, lower_sum <= places && places <= upper_sum ? 1 : 0);
            here.store(&state.tokens, static_cast<std::int32_t>(tokens));
            here.store(&state.bad_row, none_bad);
            here.store(&state.is_done, 0);
        }
        here.sync();
        set_prices(here, on, room,
                   [&](index_t e) { return initial_prices != nullptr ? here.load(initial_prices + e) : 0.0; });
    }
};

/// Prices from elsewhere, in on.price, to be looked at. One block.
template <class C>
struct set_given_prices {
    static constexpr int threads = price_search_on_device<C>::threads;
    price_search_on_device<C> on;

    template <kernel_thread Here>
    SWITCHYARD_DEVICE void operator()(Here& here) const {
        double* const room = here.template shared<double>(threads / warp_lanes);
        set_prices(here, on, room, [&](index_t e) { return here.load(on.price + e); });
    }
};

/// Counts of a pass, of nothing. One block.
template <class C>
struct clear_counts {
    static constexpr int threads = price_search_on_device<C>::threads;
    price_search_on_device<C> on;

    template <kernel_thread Here>
    SWITCHYARD_DEVICE void operator()(Here& here) const {
        for (index_t e = here.thread(); e < on.experts; e += threads) here.store(on.looked.load + e, 0);
        for (index_t b = here.thread(); b < margin_bins; b += threads) here.store(on.looked.bins + b, 0);
    }
};

/// Whether the prices looked at are better than the best so far, and the band in which to count torn tokens. One block.
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
        looked_at = block_sum(here, looked_at, room, threads);
        const auto tokens = static_cast<double>(here.load(&state.tokens));
        const expert_goals goals{tokens > 0 ? looked_at / tokens : 0.0, here.load(&state.open_part)};
        double excess = 0;
        double value = 0;
        for (index_t e = here.thread(); e < on.experts; e += threads) add_expert(here, goals, e, excess, value);
        for (index_t b = here.thread(); b < blocks; b += threads) value += here.load(on.looked.value + b);
        excess = block_sum(here, excess, room, threads) / 2;
        value = block_sum(here, value, room, threads);
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

/// Tokens whose margin is within the band, by the two experts they are torn between.
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
        degrees = block_sum(here, degrees, room, threads);
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
        energy = block_sum(here, energy, room, threads);
        const double enough = 1e-6 * energy;
        for (int round = 0; round < most_rounds && energy > enough; ++round) {
            const double curvature = block_sum(here, multiply(here, weight, direction), room, threads);
            if (!(curvature > 0)) break;
            const double length = energy / curvature;
            double next_energy = 0;
            for (index_t e = here.thread(); e < on.experts; e += threads) {
                here.store(on.step + e, here.load(on.step + e) + length * direction[e]);
                const double residual = here.load(on.residual + e) - length * here.load(on.product + e);
                here.store(on.residual + e, residual);
                next_energy += residual * residual / here.load(on.degree + e);
            }
            next_energy = block_sum(here, next_energy, room, threads);
            const double carry = next_energy / energy;
            energy = next_energy;
            for (index_t e = here.thread(); e < on.experts; e += threads) {
                direction[e] = here.load(on.residual + e) / here.load(on.degree + e) + carry * direction[e];
            }
        }
        here.sync();
        for (index_t i = here.thread(); i < on.torn_size(); i += threads) here.store(on.torn + i, 0);
    }

    /// Tokens torn between an expert and others.
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

/// Bounds, and prices to begin with.
template <kernel_policy Policy, class C>
void begin_price_steps(const Policy& policy, const price_search_on_device<C>& on, const kernel_bounds& bounds,
                       const token_mask& mask, const double* initial_prices) {
    const bool is_counted = mask.data != nullptr;
    if (is_counted) {
        policy.launch(clear_number{&on.state->tokens}, 1);
        policy.launch(count_tokens_kernel{mask, on.rows, &on.state->tokens},
                      (on.rows + count_tokens_kernel::rows_a_block - 1) / count_tokens_kernel::rows_a_block,
                      shared_room<std::int32_t>(count_tokens_kernel::threads / warp_lanes));
    }
    policy.launch(begin_search<C>{on, bounds, initial_prices, is_counted}, 1,
                  shared_room<double>(begin_search<C>::threads / warp_lanes));
}

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
