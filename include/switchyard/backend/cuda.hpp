// CUDA: routing on a stream of the caller's, by kernels (backend/kernel.hpp).
//
//   const cuda on{.stream = stream};                                    // and .resource, where memory shall come from
//   basic_plan<float, cuda_memory> plan(memory_of(on));
//   basic_workspace<cuda_memory> scratch(memory_of(on));
//   route_scores(on, top_k_router{.k = 8}, scores, training{.seed = 7, .step = n}, plan, scratch);    // only enqueues
//   check(on, plan);                                                    // waits, and throws what the plan notes
//
// `scores` is a view of device memory, matrix_view<const float, cuda_space>, or a device_matrix<cuda, float>.
//
// What waits: `copy_to_host`, `copy_to_device`, `totals_of` and `check` wait for the stream; balanced assignment says
// in assignment/ what it reads back. All else only enqueues.
// What allocates: growing a plan, a matrix or a workspace, from the resource. `workspace_size` (backend/measure.hpp)
// says before the first call how much a workspace needs. With both at size nothing allocates, nothing waits and nothing
// is read on the host, so that route, dispatch, combine and their backward can be captured in a CUDA graph.
//
// CUDA's own errors are `error`s, thrown by the launch or copy that notices them. For .cu files, compiled by nvcc with
// -std=c++20 --expt-relaxed-constexpr.
#pragma once

#include <switchyard/backend/cuda_memory.hpp>
#include <switchyard/backend/cuda_scalars.hpp>
#include <switchyard/backend/device.hpp>
#include <switchyard/backend/kernel.hpp>
#include <switchyard/backend/kernel_primitives.hpp>
#include <switchyard/core/config.hpp>
#include <switchyard/core/error.hpp>
#include <switchyard/core/workspace.hpp>

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <limits>
#include <type_traits>

#if !defined(__CUDACC__)
#error "switchyard/cuda.hpp is for files that nvcc compiles; cuda_memory.hpp alone is for any compiler"
#endif
#if !defined(__CUDACC_RELAXED_CONSTEXPR__)
#error "switchyard calls constexpr functions of the standard library in kernels: nvcc --expt-relaxed-constexpr"
#endif

namespace switchyard {
inline namespace SWITCHYARD_TARGET {
namespace detail {

/// A thread of CUDA's, as kernels see it: see backend/kernel.hpp.
class cuda_thread {
  public:
    __device__ explicit cuda_thread(unsigned char* shared) : shared_(shared) {}

    __device__ int thread() const { return static_cast<int>(threadIdx.x); }
    __device__ index_t block() const { return static_cast<index_t>(blockIdx.x); }
    __device__ index_t blocks() const { return static_cast<index_t>(gridDim.x); }
    __device__ void sync() const { __syncthreads(); }
    __device__ void sync_warp() const { __syncwarp(); }

    template <class T>
    __device__ T shuffle(T x, int lane) const {
        return __shfl_sync(all, x, lane);
    }
    template <class T>
    __device__ T shuffle_xor(T x, int distance) const {
        return __shfl_xor_sync(all, x, distance);
    }
    template <class T>
    __device__ T shuffle_up(T x, int distance) const {
        return __shfl_up_sync(all, x, static_cast<unsigned>(distance));
    }
    __device__ std::uint32_t ballot(bool condition) const { return __ballot_sync(all, condition); }
    __device__ bool any(bool condition) const { return __any_sync(all, condition) != 0; }
    __device__ std::uint32_t match(std::int32_t key) const { return __match_any_sync(all, key); }
    __device__ std::int32_t highest_of_warp(std::int32_t key) const {
#if __CUDA_ARCH__ >= 800
        return __reduce_max_sync(all, key);
#else
        for (int distance = 16; distance > 0; distance /= 2) {
            const std::int32_t other = shuffle_xor(key, distance);
            key = other > key ? other : key;
        }
        return key;
#endif
    }
    __device__ std::int32_t lowest_of_warp(std::int32_t key) const { return ~highest_of_warp(~key); }

    template <class T>
    __device__ T* shared(index_t count) {
        T* const taken = reinterpret_cast<T*>(shared_);
        shared_ += (static_cast<std::size_t>(count) * sizeof(T) + 15) / 16 * 16;
        return taken;
    }

    template <class T>
    __device__ std::remove_const_t<T> load(T* from) const {
        return *from;
    }
    template <class T>
    __device__ void store(T* to, std::type_identity_t<T> x) const {
        *to = x;
    }
    template <int N, class T>
    __device__ number_vector<std::remove_const_t<T>, N> load_vector(T* from) const {
        return *reinterpret_cast<const number_vector<std::remove_const_t<T>, N>*>(from);
    }
    template <int N, class T>
    __device__ void store_vector(T* to, const number_vector<T, N>& x) const {
        *reinterpret_cast<number_vector<T, N>*>(to) = x;
    }

    template <class T>
    __device__ T atomic_add(T* to, std::type_identity_t<T> n) const {
        using word = word_of<T>;
        using unsigned_word = std::conditional_t<sizeof(T) == 8, unsigned long long, unsigned>;
        static_assert(sizeof(word) == sizeof(T));
        return static_cast<T>(
            atomicAdd(reinterpret_cast<unsigned_word*>(to), static_cast<unsigned_word>(static_cast<word>(n))));
    }
    template <class T>
    __device__ T atomic_min(T* to, std::type_identity_t<T> n) const {
        return static_cast<T>(atomicMin(reinterpret_cast<word_of<T>*>(to), static_cast<word_of<T>>(n)));
    }
    __device__ void fence() const { __threadfence(); }

  private:
    static constexpr unsigned all = 0xffffffffu;

    /// CUDA's name of an integer type.
    template <class T>
    using word_of =
        std::conditional_t<sizeof(T) == 8, std::conditional_t<std::is_signed_v<T>, long long, unsigned long long>,
                           std::conditional_t<std::is_signed_v<T>, int, unsigned>>;

    unsigned char* shared_;
};

/// Blocks that a multiprocessor shall have registers for: what a kernel says, or one. Without any number, ptxas spills
/// a few registers to fit more of them.
template <class Kernel>
inline constexpr int least_blocks = [] {
    if constexpr (requires { Kernel::least_blocks; }) {
        return Kernel::least_blocks;
    } else {
        return 1;
    }
}();

/// Kernels are launched while the one before them still runs, and wait for its end in their first instruction: what a
/// launch costs is hidden so. Only where all code is for devices that know how to wait, sm_90 and later.
#if defined(__CUDA_ARCH_LIST__)
inline constexpr bool overlaps_launches = [] {
    constexpr int architectures[] = {__CUDA_ARCH_LIST__};
    for (const int architecture : architectures) {
        if (architecture < 900) {
            return false;
        }
    }
    return true;
}();
#else
inline constexpr bool overlaps_launches = false;
#endif

template <class Kernel>
__global__ void __launch_bounds__(Kernel::threads, least_blocks<Kernel>)
    run_kernel(const __grid_constant__ Kernel kernel) {
    extern __shared__ __align__(16) unsigned char switchyard_shared_memory[];
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    if constexpr (overlaps_launches) {
        asm volatile("griddepcontrol.wait;" ::: "memory");
        asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
    }
#endif
    cuda_thread here(switchyard_shared_memory);
    kernel(here);
}

}  // namespace detail

/// Work on a stream: see above. The stream and the resource are referred to and must outlive what they were used for.
struct cuda {
    using memory = cuda_memory;
    static constexpr bool runs_kernels = true;
    static constexpr index_t most_lanes = 32768;

    cudaStream_t stream = nullptr;
    cuda_resource* resource = nullptr;

    memory memory_resource() const { return {.resource = resource, .stream = stream}; }

    /// Enqueues a kernel.
    template <class Kernel>
    void launch(const Kernel& kernel, index_t blocks, std::size_t shared_bytes = 0) const {
        constexpr std::size_t without_asking = 48 * 1024;
        if (blocks == 0) {
            return;
        }
        require(blocks <= std::numeric_limits<std::int32_t>::max(), "a launch of ", blocks,
                " blocks is more than a device takes: split the batch");
        if (shared_bytes > without_asking) {
            require_cuda(cudaFuncSetAttribute(detail::run_kernel<Kernel>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                              static_cast<int>(shared_bytes)),
                         "cudaFuncSetAttribute");
        }
        cudaLaunchConfig_t shape{};
        shape.gridDim = dim3(static_cast<unsigned>(blocks));
        shape.blockDim = dim3(Kernel::threads);
        shape.dynamicSmemBytes = shared_bytes;
        shape.stream = stream;
        cudaLaunchAttribute overlap{};
        if constexpr (detail::overlaps_launches) {
            overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
            overlap.val.programmaticStreamSerializationAllowed = 1;
            shape.attrs = &overlap;
            shape.numAttrs = 1;
        }
        require_cuda(cudaLaunchKernelEx(&shape, detail::run_kernel<Kernel>, kernel), "cudaLaunchKernelEx");
    }

    template <class F>
    void for_each(index_t count, const F& f) const {
        run_for_each(*this, count, f);
    }
    template <class Key>
    void sort_by_key(Key* keys, std::int64_t* values, index_t count, basic_workspace<memory>& scratch) const {
        run_sort_by_key(*this, keys, values, count, scratch);
    }
    void inclusive_sum(std::int64_t* values, index_t count, basic_workspace<memory>& scratch) const {
        run_inclusive_sum(*this, values, count, scratch);
    }
    void copy_to_host(void* to, const void* from, std::size_t bytes) const {
        copy(to, from, bytes, cudaMemcpyDeviceToHost);
    }
    void copy_to_device(void* to, const void* from, std::size_t bytes) const {
        copy(to, from, bytes, cudaMemcpyHostToDevice);
    }

  private:
    void copy(void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind) const {
        require_cuda(cudaMemcpyAsync(to, from, bytes, kind, stream), "cudaMemcpyAsync");
        require_cuda(cudaStreamSynchronize(stream), "cudaStreamSynchronize");
    }
};

}  // namespace SWITCHYARD_TARGET
}  // namespace switchyard
