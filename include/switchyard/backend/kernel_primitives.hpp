// What generic device code asks of a policy (backend/device.hpp), by kernels: a call per index, a stable sort, a sum.
//
//   run_for_each(policy, count, f)                          1 launch
//   run_sort_by_key(policy, keys, values, count, scratch)   stable, rising; 3 launches for each 8 bits of the key
//   run_inclusive_sum(policy, values, count, scratch)       int64, in place; 1 launch up to 4,096 numbers, 3 beyond
//
// What a call per index reads and writes is not counted by the tests' executor: f knows no `here` (backend/kernel.hpp).
//
// The sort is the textbook's: counts of each digit by block, their running sum, and then each number's place: its
// block's first place of that digit plus its rank in the block. Ranks come from votes of the warp, in order, so that
// nothing depends on which thread came first. Scratch from the workspace: keys and values once more, and 256 counts for
// each 2,048 keys. Nothing allocates beyond that, and nothing is read on the host.
#pragma once

#include <switchyard/backend/kernel.hpp>
#include <switchyard/core/bits.hpp>
#include <switchyard/core/config.hpp>
#include <switchyard/core/workspace.hpp>

#include <cstddef>
#include <cstdint>
#include <type_traits>
#include <utility>

namespace switchyard {
inline namespace SWITCHYARD_TARGET {
namespace detail {

/// f(i), one thread each.
template <class F>
struct for_each_kernel {
    static constexpr int threads = 256;
    index_t count;
    F f;

    template <kernel_thread Here>
    SWITCHYARD_DEVICE void operator()(Here& here) const {
        const index_t i = here.block() * threads + here.thread();
        if (i < count) {
            f(i);
        }
    }
};

inline constexpr int digit_bits = 8;
inline constexpr index_t digit_values = index_t{1} << digit_bits;
inline constexpr index_t keys_a_block = 2048;

template <class Key>
SWITCHYARD_HD std::int32_t digit_of(Key key, int shift) {
    using bits = std::make_unsigned_t<Key>;
    return static_cast<std::int32_t>((static_cast<bits>(key) >> shift) & static_cast<bits>(digit_values - 1));
}

/// count[digit, block] = keys of the block with that digit.
template <class Key>
struct count_digits {
    static constexpr int threads = 256;
    const Key* keys;
    index_t count;
    int shift;
    std::int64_t* counts;

    template <kernel_thread Here>
    SWITCHYARD_DEVICE void operator()(Here& here) const {
        std::int32_t* const found = here.template shared<std::int32_t>(digit_values);
        found[here.thread()] = 0;
        here.sync();
        for (index_t j = here.thread(); j < keys_a_block; j += threads) {
            const index_t i = here.block() * keys_a_block + j;
            if (i < count) {
                here.atomic_add(found + digit_of(here.load(keys + i), shift), std::int32_t{1});
            }
        }
        here.sync();
        here.store(counts + here.thread() * here.blocks() + here.block(),
                   static_cast<std::int64_t>(found[here.thread()]));
    }
};

/// Each key and its value to their place: one warp goes through a block's keys in order, 32 at a time.
template <class Key>
struct scatter_digits {
    static constexpr int threads = 32;
    const Key* keys;
    const std::int64_t* values;
    index_t count;
    int shift;
    const std::int64_t* counts;  ///< summed up, this digit's included
    Key* sorted_keys;
    std::int64_t* sorted_values;

    template <kernel_thread Here>
    SWITCHYARD_DEVICE void operator()(Here& here) const {
        std::int64_t* const next = here.template shared<std::int64_t>(digit_values);
        for (index_t digit = here.thread(); digit < digit_values; digit += threads) {
            const index_t at = digit * here.blocks() + here.block();
            next[digit] = at > 0 ? here.load(counts + at - 1) : 0;
        }
        here.sync_warp();
        const index_t first = here.block() * keys_a_block;
        const index_t last = first + keys_a_block < count ? first + keys_a_block : count;
        for (index_t start = first; start < last; start += warp_lanes) {
            const index_t i = start + here.thread();
            const bool is_key = i < last;
            const Key key = is_key ? here.load(keys + i) : Key{};
            const std::int32_t digit = is_key ? digit_of(key, shift) : -1;
            const std::uint32_t same = here.match(digit);
            const int rank = count_bits(same & ((std::uint32_t{1} << here.thread()) - 1));
            if (is_key) {
                const std::int64_t place = next[digit] + rank;
                here.store(sorted_keys + place, key);
                here.store(sorted_values + place, here.load(values + i));
            }
            here.sync_warp();
            if (is_key && rank == 0) {
                next[digit] += count_bits(same);
            }
            here.sync_warp();
        }
    }
};

/// Running sums of a part of the numbers, in place; `totals` receives each part's sum.
struct sum_parts {
    static constexpr int threads = 256;
    static constexpr index_t each = 16;
    static constexpr index_t part = threads * each;
    std::int64_t* values;
    index_t count;
    std::int64_t* totals;  ///< [blocks], or null

    template <kernel_thread Here>
    SWITCHYARD_DEVICE void operator()(Here& here) const {
        std::int64_t* const warp_sums = here.template shared<std::int64_t>(threads / warp_lanes);
        std::int64_t mine[each];
        const index_t first = here.block() * part + here.thread() * each;
        std::int64_t sum = 0;
        for (index_t j = 0; j < each; ++j) {
            sum += first + j < count ? here.load(values + first + j) : 0;
            mine[j] = sum;
        }
        const int lane = here.thread() % warp_lanes;
        std::int64_t before = sum;  // summed over the lanes up to this one
        for (int distance = 1; distance < warp_lanes; distance *= 2) {
            const std::int64_t other = here.shuffle_up(before, distance);
            before += lane >= distance ? other : 0;
        }
        if (lane == warp_lanes - 1) {
            warp_sums[here.thread() / warp_lanes] = before;
        }
        here.sync();
        before -= sum;
        for (int warp = 0; warp < here.thread() / warp_lanes; ++warp) {
            before += warp_sums[warp];
        }
        for (index_t j = 0; j < each; ++j) {
            if (first + j < count) {
                here.store(values + first + j, before + mine[j]);
            }
        }
        if (totals != nullptr && here.thread() == threads - 1) {
            here.store(totals + here.block(), before + sum);
        }
    }
};

/// The sums of all parts before it, added to every number of a part.
struct add_earlier_parts {
    static constexpr int threads = 256;
    std::int64_t* values;
    index_t count;
    const std::int64_t* totals;  ///< summed up

    template <kernel_thread Here>
    SWITCHYARD_DEVICE void operator()(Here& here) const {
        const index_t i = here.block() * threads + here.thread();
        const index_t part = i / sum_parts::part;
        if (i < count && part > 0) {
            here.store(values + i, here.load(values + i) + here.load(totals + part - 1));
        }
    }
};

}  // namespace detail

template <kernel_policy Policy, class F>
void run_for_each(const Policy& policy, index_t count, const F& f) {
    using kernel = detail::for_each_kernel<F>;
    policy.launch(kernel{count, f}, (count + kernel::threads - 1) / kernel::threads);
}

template <kernel_policy Policy>
void run_inclusive_sum(const Policy& policy, std::int64_t* values, index_t count, device_workspace<Policy>& scratch) {
    using detail::sum_parts;
    const auto scope = scratch.open();
    const index_t parts = (count + sum_parts::part - 1) / sum_parts::part;
    constexpr std::size_t room = sum_parts::threads / warp_lanes * sizeof(std::int64_t);
    std::int64_t* const totals = parts > 1 ? scratch.template take<std::int64_t>(parts) : nullptr;
    policy.launch(sum_parts{values, count, totals}, parts, room);
    if (parts > 1) {
        run_inclusive_sum(policy, totals, parts, scratch);
        using detail::add_earlier_parts;
        policy.launch(add_earlier_parts{values, count, totals},
                      (count + add_earlier_parts::threads - 1) / add_earlier_parts::threads);
    }
}

template <kernel_policy Policy, class Key>
void run_sort_by_key(const Policy& policy, Key* keys, std::int64_t* values, index_t count,
                     device_workspace<Policy>& scratch) {
    constexpr int passes = static_cast<int>(sizeof(Key)) * 8 / detail::digit_bits;
    static_assert(passes % 2 == 0, "switchyard: after an even number of passes the sorted keys are where they were");
    if (count <= 1) {
        return;
    }
    const auto scope = scratch.open();
    const index_t blocks = (count + detail::keys_a_block - 1) / detail::keys_a_block;
    auto* const counts = scratch.template take<std::int64_t>(blocks * detail::digit_values);
    Key* from = keys;
    Key* to = scratch.template take<Key>(count);
    std::int64_t* values_from = values;
    std::int64_t* values_to = scratch.template take<std::int64_t>(count);
    for (int pass = 0; pass < passes; ++pass) {
        const int shift = pass * detail::digit_bits;
        policy.launch(detail::count_digits<Key>{from, count, shift, counts}, blocks,
                      detail::digit_values * sizeof(std::int32_t));
        run_inclusive_sum(policy, counts, blocks * detail::digit_values, scratch);
        policy.launch(detail::scatter_digits<Key>{from, values_from, count, shift, counts, to, values_to}, blocks,
                      detail::digit_values * sizeof(std::int64_t));
        std::swap(from, to);
        std::swap(values_from, values_to);
    }
}

}  // namespace SWITCHYARD_TARGET
}  // namespace switchyard
