// How much workspace a call on a device takes, without making the call.
//
//   const index_t bytes = workspace_size<cuda>([&](const auto& policy, auto& scratch) {
//       route_scores(policy, router, scores, training{}, plan, scratch);
//   });
//   scratch.reserve(bytes);
//
// The call is made with a policy that launches nothing, and a workspace that hands out addresses of nothing: shapes and
// settings are checked and the plan takes its shape, but no memory is read or written. It only works for calls that
// read nothing back, which is what the rest of the library is on a device.
#pragma once

#include <switchyard/backend/device.hpp>
#include <switchyard/backend/kernel.hpp>
#include <switchyard/backend/kernel_primitives.hpp>
#include <switchyard/core/config.hpp>
#include <switchyard/core/error.hpp>
#include <switchyard/core/workspace.hpp>

#include <cstddef>
#include <cstdint>

namespace switchyard {
inline namespace SWITCHYARD_TARGET {
namespace detail {

/// Addresses in a device's space that nothing lies at.
template <class Space>
struct no_memory {
    using space = Space;

    // NOLINTNEXTLINE(performance-no-int-to-ptr): nobody follows it
    static void* allocate(std::size_t) { return reinterpret_cast<void*>(std::uintptr_t{1} << 20); }
    static void deallocate(void*, std::size_t) noexcept {}
};

/// A policy that takes what the other one takes, and does nothing.
template <device_policy Policy>
struct measuring_policy {
    using memory = no_memory<policy_space<Policy>>;
    static constexpr bool runs_kernels = kernel_policy<Policy>;
    static constexpr bool has_addresses = false;
    static constexpr index_t most_lanes = Policy::most_lanes;

    template <class Kernel>
    void launch(const Kernel&, index_t, std::size_t = 0) const {}
    template <class F>
    void for_each(index_t, const F&) const {}
    template <class Key>
    void sort_by_key(Key* keys, std::int64_t* values, index_t count, basic_workspace<memory>& scratch) const {
        if constexpr (runs_kernels) {
            run_sort_by_key(*this, keys, values, count, scratch);
        }
    }
    void inclusive_sum(std::int64_t* values, index_t count, basic_workspace<memory>& scratch) const {
        if constexpr (runs_kernels) {
            run_inclusive_sum(*this, values, count, scratch);
        }
    }
    void copy_to_host(void*, const void*, std::size_t) const {
        fail("workspace_size was given a call that reads numbers back from the device: it cannot know which");
    }
    void copy_to_device(void*, const void*, std::size_t) const {}
};

}  // namespace detail

/// Bytes of workspace that `call(policy, workspace)` takes on a device of this policy.
template <device_policy Policy, class Call>
index_t workspace_size(const Call& call) {
    using policy = detail::measuring_policy<Policy>;
    basic_workspace<typename policy::memory> scratch;
    scratch.reserve(index_t{1} << 60);
    call(policy{}, scratch);
    return scratch.most_used();
}

}  // namespace SWITCHYARD_TARGET
}  // namespace switchyard
