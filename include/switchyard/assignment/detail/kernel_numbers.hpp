// Few numbers from the host to the device without waiting: they travel as arguments of kernels.
//
// A copy waits for the stream, and the caller's array must not change before it is done; a kernel's arguments are
// copied when it is enqueued. 448 doubles, or 1,792 numbers of 16 bits, go in one launch.
#pragma once

#include <switchyard/assignment/detail/kernel_rows.hpp>
#include <switchyard/backend/device.hpp>
#include <switchyard/backend/kernel.hpp>
#include <switchyard/core/config.hpp>
#include <switchyard/core/workspace.hpp>

#include <algorithm>
#include <cstdint>
#include <limits>

namespace switchyard {
inline namespace SWITCHYARD_TARGET {
namespace detail {

template <class T>
inline constexpr index_t numbers_a_launch = 3584 / static_cast<index_t>(sizeof(T));

/// to[i] = number[i]
template <class T>
struct send_numbers {
    static constexpr int threads = 256;
    T number[numbers_a_launch<T>];
    T* to;
    index_t count;

    template <kernel_thread Here>
    SWITCHYARD_DEVICE void operator()(Here& here) const {
        for (index_t i = here.thread(); i < count; i += threads) here.store(to + i, number[i]);
    }
};

/// `count` numbers to the device, by as many launches as they need.
template <kernel_policy Policy, class T>
void send_to_device(const Policy& policy, T* to, const T* from, index_t count) {
    for (index_t first = 0; first < count; first += numbers_a_launch<T>) {
        send_numbers<T> part{};
        part.count = std::min(numbers_a_launch<T>, count - first);
        std::copy_n(from + first, part.count, part.number);
        part.to = to + first;
        policy.launch(part, 1);
    }
}

/// expert_of_token[row[i]] = expert[i]
struct send_experts {
    static constexpr int threads = 256;
    std::int16_t expert[numbers_a_launch<std::int16_t>];
    const std::int32_t* row;
    std::int32_t* expert_of_token;
    index_t count;

    template <kernel_thread Here>
    SWITCHYARD_DEVICE void operator()(Here& here) const {
        for (index_t i = here.thread(); i < count; i += threads) {
            here.store(expert_of_token + here.load(row + i), static_cast<std::int32_t>(expert[i]));
        }
    }
};

/// The same, from an array on the device.
struct scatter_experts {
    static constexpr int threads = 256;
    const std::int32_t* expert;
    const std::int32_t* row;
    std::int32_t* expert_of_token;
    index_t count;

    template <kernel_thread Here>
    SWITCHYARD_DEVICE void operator()(Here& here) const {
        const index_t i = here.block() * threads + here.thread();
        if (i < count) here.store(expert_of_token + here.load(row + i), here.load(expert + i));
    }
};

/// Launches of experts before a copy, which waits, is the better way.
inline constexpr index_t most_expert_launches = 16;

/// Experts of some rows; `row` lies on the device, `expert` on the host.
template <kernel_policy Policy>
void send_experts_of(const Policy& policy, const std::int32_t* row, const std::int32_t* expert, index_t count,
                     std::int32_t* expert_of_token, device_workspace<Policy>& scratch) {
    constexpr index_t each = numbers_a_launch<std::int16_t>;
    static_assert(most_priced_experts <= std::numeric_limits<std::int16_t>::max());
    if (count > most_expert_launches * each) {
        const auto scope = scratch.open();
        auto* const copy = scratch.template take<std::int32_t>(count);
        policy.copy_to_device(copy, expert, bytes_of<std::int32_t>(count));
        policy.launch(scatter_experts{copy, row, expert_of_token, count},
                      (count + scatter_experts::threads - 1) / scatter_experts::threads);
        return;
    }
    for (index_t first = 0; first < count; first += each) {
        send_experts part{};
        part.count = std::min(each, count - first);
        for (index_t i = 0; i < part.count; ++i) part.expert[i] = static_cast<std::int16_t>(expert[first + i]);
        part.row = row + first;
        part.expert_of_token = expert_of_token;
        policy.launch(part, 1);
    }
}

}  // namespace detail
}  // namespace SWITCHYARD_TARGET
}  // namespace switchyard
