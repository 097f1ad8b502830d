// What a search for prices keeps on the device: bounds, prices, counts of a price pass, and how good the best prices
// are. And its beginning: tokens are counted, bounds written out, prices made numbers that a pass can use.
#pragma once

#include <switchyard/assignment/detail/kernel_price_pass.hpp>
#include <switchyard/assignment/detail/kernel_rows.hpp>
#include <switchyard/assignment/quotas.hpp>
#include <switchyard/backend/device.hpp>
#include <switchyard/backend/kernel.hpp>
#include <switchyard/backend/lane_group.hpp>
#include <switchyard/core/config.hpp>
#include <switchyard/core/matrix_view.hpp>
#include <switchyard/core/workspace.hpp>

#include <cstddef>
#include <cstdint>
#include <limits>

namespace switchyard {
inline namespace SWITCHYARD_TARGET {
namespace detail {

/// Experts up to which nearly tied tokens are counted for each pair.
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
    double band;           ///< of margins within which nearly tied tokens are counted
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
    index_t* lower;         ///< [E], at most all tokens
    index_t* upper;         ///< [E], at most all tokens
    double* price;          ///< [E]: to be looked at
    double* best;           ///< [E]: the best so far
    double* step;           ///< [E]
    double* residual;       ///< [E]
    double* product;        ///< [E]
    double* degree;         ///< [E]
    std::int32_t* torn;     ///< [E, E] tokens nearly tied between two experts; [E] above most_tabled_experts
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
        const std::int32_t all = fold_block_again<threads>(here, mine, room, add{});
        if (here.thread() == 0) here.atomic_add(tokens, all);
    }
};

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
    largest = fold_block_again<threads>(here, largest, room, higher_of{});
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
        double needed = 0;  // by the lower bounds as they are given
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
            const index_t least = lower < tokens ? lower : tokens;
            here.store(on.lower + e, least);
            here.store(on.upper + e, upper);
            needed += static_cast<double>(lower);
            lower_sum += static_cast<double>(least);
            upper_sum += static_cast<double>(upper);
            here.store(on.looked.load + e, 0);
            here.store(on.step + e, 0.0);
        }
        for (index_t b = here.thread(); b < margin_bins; b += threads) here.store(on.looked.bins + b, 0);
        for (index_t i = here.thread(); i < on.torn_size(); i += threads) here.store(on.torn + i, 0);
        needed = fold_block_again<threads>(here, needed, room, add{});
        lower_sum = fold_block_again<threads>(here, lower_sum, room, add{});
        upper_sum = fold_block_again<threads>(here, upper_sum, room, add{});
        const auto places = static_cast<double>(tokens);
        if (here.thread() == 0) {
            search_state& state = *on.state;
            const double part = upper_sum > lower_sum ? (places - lower_sum) / (upper_sum - lower_sum) : 0.0;
            here.store(&state.open_part, part < 0 ? 0.0 : part > 1 ? 1.0 : part);
            here.store(&state.fits, needed <= places && places <= upper_sum ? 1 : 0);
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

}  // namespace detail
}  // namespace SWITCHYARD_TARGET
}  // namespace switchyard
