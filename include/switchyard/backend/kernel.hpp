// Kernels: programs of blocks of threads, written once for CUDA and for whatever else can run them.
//
// A kernel is an aggregate of numbers, views and pointers into device memory with
//
//   static constexpr int threads = 256;         threads of a block, whole warps
//   static constexpr int least_blocks = 2;      optional: blocks that a multiprocessor shall have registers for
//   template <kernel_thread Here> SWITCHYARD_DEVICE void operator()(Here& here) const;
//
// and a kernel policy runs it with `policy.launch(kernel, blocks, shared_bytes)`: on a stream of CUDA's
// (backend/cuda.hpp), or on the tests' executor, which runs the same source on a CPU, in several orders of threads, and
// counts bytes and launches. `here` is all a kernel knows of the machine:
//
//   here.thread()                     0 .. threads - 1; the warp is thread / 32, the lane thread % 32
//   here.block(), here.blocks()
//   here.sync()                       every thread of the block waits for every other (__syncthreads)
//   here.sync_warp()                  all 32 lanes wait for each other; what they wrote before is visible after
//   here.shuffle(x, lane), shuffle_xor(x, distance), shuffle_up(x, distance)    numbers of 4 or 8 bytes
//   here.ballot(condition), any(condition)
//   here.match(key)                   the lanes with an equal int32 key, as bits
//   here.highest_of_warp(key), lowest_of_warp(key)           an int32 of all lanes, to every lane
//   here.template shared<T>(count)    the next `count` numbers of the block's shared memory, 16-byte aligned
//   here.load(p), store(p, x)         one number of device memory
//   here.template load_vector<N>(p), store_vector(p, v)      N of them in one access of at most 16 bytes, aligned to it
//   here.atomic_add(p, n), atomic_min(p, n)                  integers alone, in shared or device memory
//   here.fence()                      what this thread stored to device memory comes before its later atomics; a
//                                     reader has its fence between its atomic and its loads (__threadfence)
//
// Rules, which keep results the same on every machine and order of threads:
// - All 32 lanes of a warp take part in every warp operation, and all threads in every sync. No thread returns
//   early unless its whole block does.
// - Shuffles and votes order nothing in memory: what one lane writes to shared memory and another reads has a sync_warp
//   or a sync in between.
// - Device memory is read and written through `here` alone, so that traffic can be counted. One kernel does not, the
//   call per index of generic device code (run_for_each, backend/kernel_primitives.hpp): what it calls knows no `here`
//   and dereferences pointers, so its launches are counted and its bytes are not. BASE's gates in training are such
//   calls.
// - No number may depend on which thread came first: atomics count and take minima, they hand out no places.
#pragma once

#include <switchyard/backend/device.hpp>
#include <switchyard/core/config.hpp>

#include <concepts>
#include <cstddef>
#include <cstdint>

namespace switchyard {

inline constexpr int warp_lanes = 32;

/// N numbers that move in one access to memory.
template <class T, int N>
struct alignas(sizeof(T) * N) number_vector {
    static_assert(sizeof(T) * N <= 16 && (N & (N - 1)) == 0, "switchyard: a vector access has at most 16 bytes");
    T at[N];
};

/// Numbers of T in an access of 16 bytes.
template <class T>
inline constexpr int widest_vector = 16 / static_cast<int>(sizeof(T));

/// One thread of a kernel, as the kernel sees it: see above.
template <class Here>
concept kernel_thread = requires(Here& here, const float* from, float* to, std::int32_t* count) {
    { here.thread() } -> std::same_as<int>;
    { here.block() } -> std::same_as<index_t>;
    { here.blocks() } -> std::same_as<index_t>;
    here.sync();
    here.sync_warp();
    { here.shuffle(1.0f, 0) } -> std::same_as<float>;
    { here.shuffle_xor(1.0f, 1) } -> std::same_as<float>;
    { here.shuffle_up(1.0f, 1) } -> std::same_as<float>;
    { here.ballot(true) } -> std::same_as<std::uint32_t>;
    { here.any(true) } -> std::same_as<bool>;
    { here.match(std::int32_t{0}) } -> std::same_as<std::uint32_t>;
    { here.highest_of_warp(std::int32_t{0}) } -> std::same_as<std::int32_t>;
    { here.lowest_of_warp(std::int32_t{0}) } -> std::same_as<std::int32_t>;
    { here.template shared<float>(index_t{1}) } -> std::same_as<float*>;
    { here.load(from) } -> std::same_as<float>;
    here.store(to, 1.0f);
    { here.template load_vector<4>(from) } -> std::same_as<number_vector<float, 4>>;
    here.store_vector(to, number_vector<float, 4>{});
    { here.atomic_add(count, 1) } -> std::same_as<std::int32_t>;
    { here.atomic_min(count, 1) } -> std::same_as<std::int32_t>;
    here.fence();
};

/// A device policy that runs kernels, on one stream: each launch sees what the one before it wrote.
template <class Policy>
concept kernel_policy = device_policy<Policy> && requires {
    Policy::runs_kernels;
} && Policy::runs_kernels;

inline namespace SWITCHYARD_TARGET {

/// The same policy for the generic device code: what a kernel does not cover, it does.
template <class Policy>
struct without_kernels : Policy {
    static constexpr bool runs_kernels = false;

    explicit constexpr without_kernels(const Policy& all) : Policy(all) {}
};

}  // namespace SWITCHYARD_TARGET
}  // namespace switchyard
