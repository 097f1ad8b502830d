// Thrust policies: routing on whatever Thrust runs on. CUDA where nvcc compiles; OpenMP, TBB or one thread with any
// compiler, so that the same source is tested without a GPU.
//
//   const auto policy = on_thrust(thrust::cuda::par_nosync.on(stream));      // or thrust::omp::par, thrust::cpp::par
//   device_matrix<decltype(policy), float> scores = copy_to_device(policy, host_scores);
//   auto plan = route_scores(policy, top_k_router{.k = 8}, scores);          // <switchyard/thrust.hpp> has it all
//   check(policy, plan);                                                     // waits, and throws what the plan notes
//
// Memory. Each Thrust system has a memory type, `thrust_memory<System>`, whose space is a type of its own, the CPU
// systems' included: views of one space passed to a policy of another do not compile.
//
// What waits. `copy_to_host`, `copy_to_device` and `check` wait for the policy's stream. Growing a buffer, a plan or a
// workspace allocates with cudaMalloc and frees with cudaFree, which waits for the device: shapes seen before do not
// grow. All else only enqueues (with thrust::cuda::par_nosync; thrust::cuda::par waits after every algorithm, as it
// does everywhere), and reads nothing on the host: what a policy finds wrong with scores is noted in the plan.
//
// What allocates. Slots are made by Thrust's stable sort and scan, which take temporary memory from the execution
// policy: Thrust 3 asks cudaMallocAsync for it on par_nosync's stream, older ones and thrust::cuda::par ask cudaMalloc.
// thrust::cuda::par_nosync(allocator).on(stream) takes it from a pool of your own. Everything else works in the
// workspace.
//
// CUDA's own errors are thrust::system_error, thrown by the call that notices them.
#pragma once

#include <switchyard/backend/cuda_scalars.hpp>
#include <switchyard/backend/device.hpp>
#include <switchyard/core/config.hpp>
#include <switchyard/core/error.hpp>
#include <switchyard/core/matrix_view.hpp>
#include <switchyard/core/memory.hpp>
#include <switchyard/core/scalar_traits.hpp>
#include <switchyard/core/workspace.hpp>

#include <thrust/execution_policy.h>
#include <thrust/for_each.h>
#include <thrust/iterator/counting_iterator.h>
#include <thrust/scan.h>
#include <thrust/sort.h>
#include <thrust/system/cpp/execution_policy.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

#if defined(__NVCC__) && !defined(__CUDACC_RELAXED_CONSTEXPR__)
#error "switchyard calls constexpr functions of the standard library in kernels: nvcc --expt-relaxed-constexpr"
#endif
#if defined(__CUDACC__)
#include <thrust/system/cuda/execution_policy.h>
#include <thrust/system/cuda/memory.h>
#endif

namespace switchyard {

/// The memory of a Thrust system, told apart from the CPU's and from every other system's by type alone.
template <class System>
struct device_space {};

/// An execution policy of Thrust that says which system it belongs to: thrust::cpp::par, thrust::omp::par,
/// thrust::tbb::par, thrust::cuda::par, par_nosync, each also with an allocator or on a stream.
template <class Exec>
concept thrust_execution = requires {
    typename Exec::tag_type;
};

inline namespace SWITCHYARD_TARGET {

namespace detail {

/// Systems whose memory is the CPU's own.
template <class System>
inline constexpr bool is_cpu_system = std::is_base_of_v<thrust::cpp::execution_policy<System>, System>;

template <class Memory>
inline constexpr bool on_cpu = [] {
    if constexpr (requires { typename Memory::system; }) {
        return is_cpu_system<typename Memory::system>;
    } else {
        return false;
    }
}();

}  // namespace detail

/// Memory of a Thrust system. For CPU systems that is ordinary memory under another name.
template <class System>
struct thrust_memory {
    using system = System;
    using space = device_space<System>;
    static_assert(detail::is_cpu_system<System>, "switchyard: this system of Thrust has its memory only under nvcc");

    static void* allocate(std::size_t bytes) { return host_memory::allocate(bytes); }
    static void deallocate(void* pointer, std::size_t bytes) noexcept { host_memory::deallocate(pointer, bytes); }

    /// Copies between the two memories; both wait until it is done.
    template <class Exec>
    static void copy_to_device(const Exec&, void* to, const void* from, std::size_t bytes) {
        std::memcpy(to, from, bytes);
    }
    template <class Exec>
    static void copy_to_host(const Exec&, void* to, const void* from, std::size_t bytes) {
        std::memcpy(to, from, bytes);
    }
};

#if defined(__CUDACC__)
/// Memory of the current CUDA device, from cudaMalloc. cudaFree waits for the device, so that memory still in use is
/// not handed out again.
template <>
struct thrust_memory<thrust::cuda::tag> {
    using system = thrust::cuda::tag;
    using space = cuda_space;

    static void* allocate(std::size_t bytes) {
        void* pointer = nullptr;
        require_success(cudaMalloc(&pointer, bytes), "cudaMalloc");
        return pointer;
    }
    /// An error here is one of the device's, which every later call reports, too.
    static void deallocate(void* pointer, std::size_t /*bytes*/) noexcept { static_cast<void>(cudaFree(pointer)); }

    template <class Exec>
    static void copy_to_device(const Exec& exec, void* to, const void* from, std::size_t bytes) {
        copy(exec, to, from, bytes, cudaMemcpyHostToDevice);
    }
    template <class Exec>
    static void copy_to_host(const Exec& exec, void* to, const void* from, std::size_t bytes) {
        copy(exec, to, from, bytes, cudaMemcpyDeviceToHost);
    }

  private:
    static void require_success(cudaError_t status, const char* call) {
        require(status == cudaSuccess, call, ": ", cudaGetErrorString(status));
    }
    template <class Exec>
    static void copy(Exec exec, void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind) {
        const cudaStream_t stream = thrust::cuda_cub::stream(exec);
        require_success(cudaMemcpyAsync(to, from, bytes, kind, stream), "cudaMemcpyAsync");
        require_success(cudaStreamSynchronize(stream), "cudaStreamSynchronize");
    }
};
#endif

/// Where and how the work runs: an execution policy of Thrust, and the memory it works in. `Memory` may be an engine's
/// own (see core/memory.hpp), with the two copies above.
template <thrust_execution Exec, class Memory = thrust_memory<typename Exec::tag_type>>
struct thrust_policy {
    using memory = Memory;
    /// Enough for a GPU, and few enough on a CPU that the scratch stays in cache. Results do not depend on it.
    static constexpr index_t most_lanes = detail::on_cpu<Memory> ? 256 : 32768;

    Exec exec;

    template <class F>
    void for_each(index_t count, const F& f) const {
        thrust::for_each_n(exec, thrust::counting_iterator<index_t>(0), count, f);
    }
    template <class Key>
    void sort_by_key(Key* keys, std::int64_t* values, index_t count, basic_workspace<Memory>&) const {
        if (count > 0) {
            thrust::stable_sort_by_key(exec, keys, keys + count, values);
        }
    }
    void inclusive_sum(std::int64_t* values, index_t count, basic_workspace<Memory>&) const {
        thrust::inclusive_scan(exec, values, values + count, values);
    }
    void copy_to_host(void* to, const void* from, std::size_t bytes) const {
        Memory::copy_to_host(exec, to, from, bytes);
    }
    void copy_to_device(void* to, const void* from, std::size_t bytes) const {
        Memory::copy_to_device(exec, to, from, bytes);
    }
};

/// The policy of an execution policy.
template <thrust_execution Exec>
constexpr thrust_policy<Exec> on_thrust(const Exec& exec) {
    return {exec};
}

}  // namespace SWITCHYARD_TARGET
}  // namespace switchyard
