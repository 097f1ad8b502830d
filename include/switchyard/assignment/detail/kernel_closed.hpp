// Prices of closed experts on a device: an expert whose upper quota is 0 has no tokens that could set its price, and
// needs one at which no token prefers it, or the certificate's D (assignment.hpp) would be more than it says.
//
//   price_e = max(0, next number above max_t [s_te - (s_ta - p_a)])      a: the token's expert
//
// as the host has it (price_closed_experts in hungarian.hpp), bit by bit. 4 launches, of which one reads every token's
// score of its own expert and of the closed ones, and nothing else: few where few experts are closed.
//
// The largest of numbers does not depend on their order, so blocks find it with atomics on keys that rise with them.
#pragma once

#include <switchyard/assignment/detail/device_auction_market.hpp>
#include <switchyard/assignment/detail/kernel_bids.hpp>
#include <switchyard/assignment/detail/kernel_numbers.hpp>
#include <switchyard/assignment/detail/kernel_rows.hpp>
#include <switchyard/assignment/quotas.hpp>
#include <switchyard/backend/device.hpp>
#include <switchyard/backend/kernel.hpp>
#include <switchyard/backend/lane_group.hpp>
#include <switchyard/core/config.hpp>
#include <switchyard/core/workspace.hpp>

#include <bit>
#include <cstdint>
#include <limits>

namespace switchyard {
inline namespace SWITCHYARD_TARGET {
namespace detail {

/// The closed experts, and what tokens would give for them.
struct closed_experts {
    const std::int32_t* expert;  ///< [count], rising
    std::uint64_t* lowest_key;   ///< [count]: falls with what the keenest token would give; all ones: nobody looked
    index_t count;
};

/// The next number above, for what is neither infinite nor NaN.
SWITCHYARD_HD inline double next_above(double x) {
    if (x == 0) return std::numeric_limits<double>::denorm_min();
    const auto bits = std::bit_cast<std::uint64_t>(x);
    return std::bit_cast<double>(x > 0 ? bits + 1 : bits - 1);
}

struct begin_closed_prices {
    static constexpr int threads = 256;
    closed_experts closed;

    template <kernel_thread Here>
    SWITCHYARD_DEVICE void operator()(Here& here) const {
        for (index_t i = here.thread(); i < closed.count; i += threads) {
            here.store(closed.lowest_key + i, ~std::uint64_t{0});
        }
    }
};

/// What the tokens would give, one token per thread; then their scores, neighbouring threads at neighbouring closed
/// experts.
template <class S, class Space>
struct ask_for_closed {
    static constexpr int threads = 256;
    row_reader<S, Space, 1> reader;
    closed_experts closed;
    int abreast;  ///< closed experts at a time: a power of two, `threads` at most
    const std::int32_t* expert_of_token;
    const double* price;  ///< [E]

    static std::size_t shared_bytes() { return shared_room<double>(threads); }

    template <kernel_thread Here>
    SWITCHYARD_DEVICE void operator()(Here& here) const {
        constexpr double infinity = std::numeric_limits<double>::infinity();
        double* const margin = here.template shared<double>(threads);
        const index_t first = here.block() * threads;
        const index_t t = first + here.thread();
        const std::int32_t own = t < reader.source.scores.rows ? here.load(expert_of_token + t) : -1;
        margin[here.thread()] = infinity;  // nothing is worth leaving padding for
        if (own >= 0) margin[here.thread()] = static_cast<double>(reader.score(here, t, own)) - here.load(price + own);
        here.sync();
        for (index_t i = here.thread() & (abreast - 1); i < closed.count; i += abreast) {
            const index_t e = here.load(closed.expert + i);
            double most = -infinity;
            for (int j = here.thread() / abreast; j < threads; j += threads / abreast) {
                if (margin[j] == infinity) continue;
                const double given = static_cast<double>(reader.score(here, first + j, e)) - margin[j];
                most = given > most ? given : most;
            }
            if (most > -infinity) here.atomic_min(closed.lowest_key + i, ~rising_key(most));
        }
    }
};

struct write_closed_prices {
    static constexpr int threads = 256;
    closed_experts closed;
    double* price;  ///< [E]

    template <kernel_thread Here>
    SWITCHYARD_DEVICE void operator()(Here& here) const {
        for (index_t i = here.thread(); i < closed.count; i += threads) {
            const std::uint64_t key = here.load(closed.lowest_key + i);
            const double least = key == ~std::uint64_t{0} ? 0.0 : next_above(level_of_key(~key));
            here.store(price + here.load(closed.expert + i), least > 0 ? least : 0.0);
        }
    }
};

/// Prices of the closed experts among [E] prices, from those of the others and every token's expert. Launches nothing
/// where no expert is closed. `host_scratch` keeps the list of them.
template <kernel_policy Policy, class S>
void price_closed_experts(const Policy& policy, const device_scores<S, policy_space<Policy>>& source,
                          const quotas& bounds, const std::int32_t* expert_of_token, double* price,
                          device_workspace<Policy>& scratch, workspace& host_scratch) {
    const auto host_scope = host_scratch.open();
    auto* const found = host_scratch.take<std::int32_t>(bounds.experts);
    index_t count = 0;
    for (index_t e = 0; e < bounds.experts; ++e) {
        if (bounds.upper(e) == 0) found[count++] = static_cast<std::int32_t>(e);
    }
    if (count == 0) return;
    const auto scope = scratch.open();
    auto* const expert = scratch.template take<std::int32_t>(count);
    const closed_experts closed{expert, scratch.template take<std::uint64_t>(count), count};
    send_to_device(policy, expert, found, count);
    policy.launch(begin_closed_prices{closed}, 1);
    using kernel = ask_for_closed<S, policy_space<Policy>>;
    int abreast = 1;
    while (abreast < count && abreast < kernel::threads) abreast *= 2;
    policy.launch(kernel{{source}, closed, abreast, expert_of_token, price},
                  (source.scores.rows + kernel::threads - 1) / kernel::threads, kernel::shared_bytes());
    policy.launch(write_closed_prices{closed, price}, 1);
}

}  // namespace detail
}  // namespace SWITCHYARD_TARGET
}  // namespace switchyard
