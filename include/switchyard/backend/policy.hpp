// Where and how the work runs: `seq`, `par`, or an engine's own threads.
//
//   seq                  the calling thread.
//   par                  OpenMP; needs -fopenmp, and says so at compile time where it is missing.
//   openmp{.threads = n} with par_on: OpenMP with at most n threads.
//   par_on(pool)         any object with   pool.parallel_for(index_t blocks, f)   that keeps this contract:
//     - f(b) is called exactly once for each b in 0 .. blocks-1, in any order, on any threads, the caller's included;
//     - the call blocks until all have returned, and what they wrote is then visible to the caller;
//     - the block index is the only identity: nothing depends on which thread runs a block or how many there are;
//     - f never throws (bad input is found before or noted by the block and raised by the caller afterwards);
//     - f never calls parallel_for itself. A pool that is called from within one of its own tasks must run the blocks
//       anyway, in the caller if it has no free thread.
//   The pool is referred to, not copied; it must outlive the call.
//
// Work is cut into blocks by its size alone, so results are bitwise identical for every policy here and any number of
// threads. One block (decoding sizes) runs in the caller: no thread is woken.
// Policies of devices: backend/device.hpp.
#pragma once

#include <switchyard/core/config.hpp>
#include <switchyard/core/error.hpp>
#include <switchyard/core/matrix_view.hpp>
#include <switchyard/core/memory.hpp>

#include <atomic>
#include <concepts>
#include <type_traits>
#include <utility>

#if defined(_OPENMP)
#include <omp.h>
#endif

namespace switchyard {

/// What `par_on` takes: see the contract above.
template <class Pool>
concept thread_pool = requires(Pool& pool, void (*f)(index_t)) {
    pool.parallel_for(index_t{1}, f);
};

inline namespace SWITCHYARD_TARGET {

/// One thread: the caller's.
struct seq_policy {
    using memory = host_memory;

    template <class F>
    void parallel_for(index_t blocks, F&& f) const {
        for (index_t b = 0; b < blocks; ++b) {
            f(b);
        }
    }
};

/// OpenMP as a pool. `threads` 0 means OpenMP's own default.
struct openmp {
    int threads = 0;

    template <class F>
    void parallel_for([[maybe_unused]] index_t blocks, [[maybe_unused]] F&& f) const {
#if defined(_OPENMP)
        const int team = threads > 0 ? threads : omp_get_max_threads();
        if (team == 1) {  // a team of one would be allocated for every call
            seq_policy{}.parallel_for(blocks, f);
            return;
        }
        // Neighbouring blocks write neighbouring rows of an expert: long runs of blocks keep threads off each other's
        // cache lines, and the short ones at the end keep them equally busy. What `schedule(guided)` does, by hand:
        // LLVM's runtime allocates for every run it hands out.
        std::atomic<index_t> next = 0;
#pragma omp parallel num_threads(team)
        for (index_t first = next.load(std::memory_order_relaxed); first < blocks;) {
            const index_t last = first + (blocks - first + team - 1) / team;
            if (next.compare_exchange_weak(first, last, std::memory_order_relaxed)) {
                for (index_t b = first; b < last; ++b) {
                    f(b);
                }
                first = next.load(std::memory_order_relaxed);
            }
        }
#else
        static_assert(!std::is_same_v<F, F>,
                      "switchyard::par needs OpenMP: compile with -fopenmp (CMake: link switchyard::openmp), "
                      "or pass your own threads with switchyard::par_on(pool)");
#endif
    }
};

/// Several threads, from OpenMP or a pool of the caller's.
template <class Pool>
struct par_policy {
    using memory = host_memory;
    Pool pool{};

    template <class F>
    void parallel_for(index_t blocks, F&& f) const {
        if (blocks <= 1) {
            seq_policy{}.parallel_for(blocks, f);
        } else {
            pool.parallel_for(blocks, f);
        }
    }
};

namespace detail {

/// Refers to a caller's pool.
template <class Pool>
struct pool_reference {
    Pool* pool;

    template <class F>
    void parallel_for(index_t blocks, F&& f) const {
        pool->parallel_for(blocks, f);
    }
};

}  // namespace detail

inline constexpr seq_policy seq{};
inline constexpr par_policy<openmp> par{};

/// OpenMP with settings: `par_on(openmp{.threads = 2})`.
constexpr par_policy<openmp> par_on(openmp settings) { return {settings}; }

/// The caller's own threads.
template <thread_pool Pool>
requires(!std::same_as<std::remove_const_t<Pool>, openmp>) constexpr par_policy<detail::pool_reference<Pool>> par_on(
    Pool& pool) {
    return {{&pool}};
}

/// A policy of the CPU backend: it cuts work into blocks and calls a host function for each.
template <class Policy>
concept host_policy = std::same_as<typename Policy::memory::space, host_space> &&
    requires(const Policy& policy, void (*f)(index_t)) {
    policy.parallel_for(index_t{1}, f);
};

/// Fails, with a message, unless the views of a call are in the memory that its policy works in.
template <class Policy, class... Views>
constexpr void require_space() {
    static_assert((std::is_same_v<typename Policy::memory::space, typename Views::space> && ...),
                  "switchyard: an argument does not lie in the memory this policy works in (host views for CPU "
                  "policies, device views for device policies)");
}

/// A mask lies in the memory its policy works in, as far as it says.
template <class Policy>
void require_mask_memory(const token_mask& mask) {
    constexpr bool on_device = !std::same_as<typename Policy::memory::space, host_space>;
    require(mask.data == nullptr || mask.on_device == on_device, "the mask says that it lies in ",
            mask.on_device ? "a device's" : "the host's", " memory, and this policy works in ",
            on_device ? "a device's: set on_device, and give the address there" : "the host's");
}

/// A mask has an entry for every row, in the memory that the policy works in.
template <class Policy>
void require_mask(const token_mask& mask, index_t rows) {
    require_mask_memory<Policy>(mask);
    require(mask.data == nullptr || mask.size == rows, "the mask has ", mask.size, " entries for T = ", rows,
            " tokens");
}

/// How many rows a block of work takes: a function of the size alone. At least 256 rows, so that what a block sets up
/// is small beside its rows; at most about 512 blocks, so that what is kept per block is small beside the scores.
constexpr index_t rows_per_block(index_t rows) {
    const index_t shared = (rows + 511) / 512;
    return shared > 256 ? shared : 256;
}
constexpr index_t block_count(index_t rows) { return (rows + rows_per_block(rows) - 1) / rows_per_block(rows); }

/// Calls f(i) for i in 0 .. count, in any order, wherever the policy's work runs. On a device, f is a named function
/// object with a `__host__ __device__` operator().
template <class Policy, class F>
void for_each_index(const Policy& policy, index_t count, const F& f) {
    if constexpr (host_policy<Policy>) {
        constexpr index_t grain = 4096;
        policy.parallel_for((count + grain - 1) / grain, [&](index_t b) {
            const index_t last = count < (b + 1) * grain ? count : (b + 1) * grain;
            for (index_t i = b * grain; i < last; ++i) {
                f(i);
            }
        });
    } else if (count > 0) {
        policy.for_each(count, f);
    }
}

}  // namespace SWITCHYARD_TARGET
}  // namespace switchyard
