// A SIMT executor for tests: runs the kernels of switchyard/backend/kernel.hpp, from their own sources, on a CPU.
//
//   simt::for_each_order([&](simt::executor& device) {
//       const simt::policy on{&device};
//       on.launch(kernel{...}, blocks, shared_bytes);
//       CHECK(device.counted() == simt::traffic{.launches = 1, .loaded = ..., .stored = ...});
//   });
//
// Each thread of a block is a fiber (fiber.hpp); the threads have their turns in one of several orders (order.hpp),
// which a kernel's results must not depend on. A broken rule is a simt::error in words, thrown from `launch` after all
// threads are unwound; an exception that a kernel throws passes through. README.md says what is modelled and what is
// not.
#pragma once

#include "simt/thread.hpp"

// All of them, in every file of a program: a router that is compiled in one file with kernels and in another without
// would be two functions of one name.
#include <switchyard/kernels.hpp>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <new>
#include <type_traits>

namespace switchyard_test::simt {

/// What every device since sm_80 gives a block that asks for it (sm_86, sm_89 and sm_120 give no more).
inline constexpr std::size_t most_shared_bytes = 99 * 1024;

class executor {
  public:
    executor() = default;
    explicit executor(const simt::order& in) : order_(in) {}

    const simt::order& order() const { return order_; }

    /// Since it was made, or reset.
    const traffic& counted() const { return counted_; }
    /// The most shared memory that any block took.
    std::size_t peak_shared_bytes() const { return peak_shared_bytes_; }
    void reset() {
        counted_ = {};
        peak_shared_bytes_ = 0;
    }

    /// Runs a copy of the kernel's bytes, as CUDA does, and returns when it is done; no blocks are no launch.
    template <class Kernel>
    void launch(const Kernel& kernel, index_t blocks, std::size_t shared_bytes = 0) {
        static_assert(std::is_trivially_copyable_v<Kernel>, "a kernel travels as bytes: its members are plain numbers");
        static_assert(sizeof(Kernel) <= 4096, "a kernel has at most 4096 bytes");
        alignas(Kernel) std::byte bytes[sizeof(Kernel)];
        std::memcpy(bytes, &kernel, sizeof bytes);
        run({.kernel = bytes,
             .run =
                 [](const void* copy, block& in, int thread) {
                     here self(in, thread);
                     (*std::launder(static_cast<const Kernel*>(copy)))(self);
                 },
             .threads = Kernel::threads,
             .blocks = blocks,
             .shared_bytes = shared_bytes});
    }

  private:
    void run(const job& what) {
        if (what.threads < 32 || what.threads > 1024 || what.threads % 32 != 0) {
            fail("a block has whole warps of 32 threads, 1024 threads at most, not ", what.threads);
        }
        if (what.blocks < 0 || what.blocks > 0x7FFFFFFF) fail("a launch cannot have ", what.blocks, " blocks");
        if (what.shared_bytes > most_shared_bytes) {
            fail("a launch with ", what.shared_bytes, " bytes of shared memory a block: devices give ",
                 most_shared_bytes, " at most");
        }
        if (what.blocks == 0) return;
        fiber_pool& fibers = fiber_pool::of_this_thread();
        if (fibers.busy) fail("a kernel cannot launch a kernel");
        struct use {
            fiber_pool& of;
            explicit use(fiber_pool& fibers_in_use) : of(fibers_in_use) { of.busy = true; }
            ~use() { of.busy = false; }
        };
        const use claimed(fibers);
        ++counted_.launches;
        block all(what, order_, counted_, fibers);
        all.run(blocks_in(order_, what.blocks));
        peak_shared_bytes_ = std::max(peak_shared_bytes_, all.peak_shared_bytes());
    }

    simt::order order_;
    traffic counted_;
    std::size_t peak_shared_bytes_ = 0;
};

/// The executor as a kernel policy.
struct policy {
    using memory = simt::memory;
    static constexpr bool runs_kernels = true;
    static constexpr index_t most_lanes = 256;  // as Thrust's CPU systems: scratch stays in cache

    executor* device = nullptr;

    template <class Kernel>
    void launch(const Kernel& kernel, index_t blocks, std::size_t shared_bytes = 0) const {
        device->launch(kernel, blocks, shared_bytes);
    }
    template <class F>
    void for_each(index_t count, const F& f) const {
        switchyard::run_for_each(*this, count, f);
    }
    template <class Key>
    void sort_by_key(Key* keys, std::int64_t* values, index_t count,
                     switchyard::device_workspace<policy>& scratch) const {
        switchyard::run_sort_by_key(*this, keys, values, count, scratch);
    }
    void inclusive_sum(std::int64_t* values, index_t count, switchyard::device_workspace<policy>& scratch) const {
        switchyard::run_inclusive_sum(*this, values, count, scratch);
    }
    void copy_to_host(void* to, const void* from, std::size_t bytes) const { copy(to, from, bytes); }
    void copy_to_device(void* to, const void* from, std::size_t bytes) const { copy(to, from, bytes); }

  private:
    static void copy(void* to, const void* from, std::size_t bytes) {
        if (bytes > 0) std::memcpy(to, from, bytes);
    }
};

static_assert(switchyard::kernel_policy<policy>);

/// f(executor&) for an executor in each order.
template <class F>
void for_each_order(F&& f) {
    for (const order& in : all_orders) {
        executor device(in);
        f(device);
    }
}

}  // namespace switchyard_test::simt
