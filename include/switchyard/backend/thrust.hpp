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

#include <switchyard/core/config.hpp>
#include <switchyard/core/error.hpp>
#include <switchyard/core/matrix_view.hpp>
#include <switchyard/core/memory.hpp>
#include <switchyard/core/scalar_traits.hpp>
#include <switchyard/core/workspace.hpp>

#include <thrust/execution_policy.h>
#include <thrust/for_each.h>
#include <thrust/iterator/counting_iterator.h>
#include <thrust/system/cpp/execution_policy.h>

#include <cstddef>
#include <cstring>
#include <span>
#include <type_traits>

#if defined(__NVCC__) && !defined(__CUDACC_RELAXED_CONSTEXPR__)
#error "switchyard calls constexpr functions of the standard library in kernels: nvcc --expt-relaxed-constexpr"
#endif
#if defined(__CUDACC__)
#include <thrust/system/cuda/execution_policy.h>
#include <thrust/system/cuda/memory.h>

#include <cuda_bf16.h>
#include <cuda_fp16.h>
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

#if defined(__CUDACC__)
/// CUDA's 16-bit types: stored narrow, computed in float.
template <>
struct scalar_traits<__half> {
    using compute = float;
    SWITCHYARD_HD static float load(__half x) { return __half2float(x); }
    SWITCHYARD_HD static __half store(float x) { return __float2half_rn(x); }
};
template <>
struct scalar_traits<__nv_bfloat16> {
    using compute = float;
    SWITCHYARD_HD static float load(__nv_bfloat16 x) { return __bfloat162float(x); }
    SWITCHYARD_HD static __nv_bfloat16 store(float x) { return __float2bfloat16_rn(x); }
};
#endif

inline namespace SWITCHYARD_TARGET {

namespace detail {

/// Systems whose memory is the CPU's own.
template <class System>
inline constexpr bool is_cpu_system = std::is_base_of_v<thrust::cpp::execution_policy<System>, System>;

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
    using space = device_space<system>;

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
    Exec exec;
};

/// The policy of an execution policy.
template <thrust_execution Exec>
constexpr thrust_policy<Exec> on_thrust(const Exec& exec) {
    return {exec};
}

/// A dense matrix, an array and a workspace in a policy's memory.
template <class Policy, class T>
using device_matrix = matrix<T, typename std::remove_cvref_t<Policy>::memory>;
template <class Policy, class T>
using device_buffer = buffer<T, typename std::remove_cvref_t<Policy>::memory>;
template <class Policy>
using device_workspace = basic_workspace<typename std::remove_cvref_t<Policy>::memory>;

/// Calls f(i) for i in 0 .. count, in any order. f is a named function object with a `__host__ __device__` operator().
template <class Exec, class Memory, class F>
void for_each_index(const thrust_policy<Exec, Memory>& policy, index_t count, const F& f) {
    if (count > 0) {
        thrust::for_each_n(policy.exec, thrust::counting_iterator<index_t>(0), count, f);
    }
}

namespace detail {

/// Rows a thread folds at each level of a sum.
inline constexpr index_t fold_rows = 64;
SWITCHYARD_HD constexpr index_t folded(index_t count) { return (count + fold_rows - 1) / fold_rows; }

/// One level: to[b, j] = the rows 64 b .. 64 b + 63 of from[., j], combined in order.
template <class T, class Combine>
struct fold_level {
    const T* from;
    T* to;
    index_t count;
    index_t width;
    Combine combine;

    SWITCHYARD_HD void operator()(index_t i) const {
        const index_t first = i / width * fold_rows;
        const index_t last = first + fold_rows < count ? first + fold_rows : count;
        const T* const column = from + i % width;
        T all = column[first * width];
        for (index_t row = first + 1; row < last; ++row) {
            all = combine(all, column[row * width]);
        }
        to[i] = all;
    }
};

struct plus {
    template <class T>
    SWITCHYARD_HD T operator()(T a, T b) const {
        return a + b;
    }
};

/// values[count, width], count >= 1, combined over the rows in a fixed order: the `width` results, in the policy's
/// memory. Valid as long as the caller's scope of `scratch`.
template <class Exec, class Memory, class T, class Combine>
T* fold(const thrust_policy<Exec, Memory>& policy, T* values, index_t count, index_t width, const Combine& combine,
        basic_workspace<Memory>& scratch) {
    while (count > 1) {
        T* const next = scratch.template take<T>(folded(count) * width);
        for_each_index(policy, folded(count) * width, fold_level<T, Combine>{values, next, count, width, combine});
        values = next;
        count = folded(count);
    }
    return values;
}

/// Work that keeps scratch for every thread runs in this many threads at most: enough for a GPU, and few enough on a
/// CPU that the scratch stays in cache. Results do not depend on it.
template <class Memory>
constexpr index_t most_lanes() {
    if constexpr (requires { typename Memory::system; }) {
        return is_cpu_system<typename Memory::system> ? 256 : 32768;
    } else {
        return 32768;
    }
}

/// Consecutive rows for each thread.
struct lanes {
    index_t rows;
    index_t rows_per_lane;
    index_t count;

    SWITCHYARD_HD index_t first(index_t lane) const { return lane * rows_per_lane; }
    SWITCHYARD_HD index_t last(index_t lane) const {
        return (lane + 1) * rows_per_lane < rows ? (lane + 1) * rows_per_lane : rows;
    }
};

template <class Memory>
constexpr lanes lanes_of(index_t rows) {
    const index_t each = rows <= most_lanes<Memory>() ? 1 : (rows + most_lanes<Memory>() - 1) / most_lanes<Memory>();
    return {rows, each, (rows + each - 1) / each};
}

/// A matrix with strides, made dense.
template <class T, class Space>
struct pack_elements {
    matrix_view<const T, Space> from;
    T* to;

    SWITCHYARD_HD void operator()(index_t i) const { to[i] = from(i / from.columns, i % from.columns); }
};

/// And back.
template <class T, class Space>
struct unpack_elements {
    const T* from;
    matrix_view<T, Space> to;

    SWITCHYARD_HD void operator()(index_t i) const { to(i / to.columns, i % to.columns) = from[i]; }
};

template <class View>
constexpr bool is_dense(const View& m) {
    return m.empty() || ((m.column_stride == 1 || m.columns == 1) && (m.row_stride == m.columns || m.rows == 1));
}

template <class T>
std::size_t bytes_of(index_t count) {
    return static_cast<std::size_t>(count) * sizeof(T);
}

}  // namespace detail

/// Host numbers into a device matrix of the same shape and type. Waits for the copy.
template <class Exec, class Memory, matrix_like From, matrix_like To>
void copy_to_device(const thrust_policy<Exec, Memory>& policy, const From& from, To&& to) {
    using T = scalar_of<From>;
    using space = typename Memory::space;
    static_assert(std::is_same_v<space_of<From>, host_space>, "switchyard: copy_to_device copies from host memory");
    static_assert(std::is_same_v<space_of<To>, space>, "switchyard: copy_to_device copies to the policy's memory");
    static_assert(std::is_same_v<T, scalar_of<To>>, "switchyard: copies do not convert");
    const auto in = const_view(as_view(from));
    const auto out = as_view(to);
    require_same_shape("the host matrix", in, "the device matrix", out);
    if (in.empty()) {
        return;
    }
    const T* numbers = in.data;
    buffer<T> packed;
    if (!detail::is_dense(in)) {
        packed.resize(in.size());
        const detail::pack_elements<T, host_space> pack_one{in, packed.data()};
        for (index_t i = 0; i < in.size(); ++i) {
            pack_one(i);
        }
        numbers = packed.data();
    }
    if (detail::is_dense(out)) {
        Memory::copy_to_device(policy.exec, out.data, numbers, detail::bytes_of<T>(in.size()));
        return;
    }
    buffer<T, Memory> staged(in.size());
    Memory::copy_to_device(policy.exec, staged.data(), numbers, detail::bytes_of<T>(in.size()));
    for_each_index(policy, in.size(), detail::unpack_elements<T, space>{staged.data(), out});
}

/// Allocates the device matrix.
template <class Exec, class Memory, matrix_like From>
matrix<scalar_of<From>, Memory> copy_to_device(const thrust_policy<Exec, Memory>& policy, const From& from) {
    matrix<scalar_of<From>, Memory> to(as_view(from).rows, as_view(from).columns);
    copy_to_device(policy, from, to);
    return to;
}

/// An array, such as a token mask.
template <class Exec, class Memory, class T, std::size_t N>
buffer<std::remove_const_t<T>, Memory> copy_to_device(const thrust_policy<Exec, Memory>& policy, std::span<T, N> from) {
    buffer<std::remove_const_t<T>, Memory> to(static_cast<index_t>(from.size()));
    if (!from.empty()) {
        Memory::copy_to_device(policy.exec, to.data(), from.data(), from.size_bytes());
    }
    return to;
}

/// Device numbers into a host matrix of the same shape and type. Waits for everything enqueued before.
template <class Exec, class Memory, matrix_like From, matrix_like To>
void copy_to_host(const thrust_policy<Exec, Memory>& policy, const From& from, To&& to) {
    using T = scalar_of<From>;
    using space = typename Memory::space;
    static_assert(std::is_same_v<space_of<From>, space>, "switchyard: copy_to_host copies from the policy's memory");
    static_assert(std::is_same_v<space_of<To>, host_space>, "switchyard: copy_to_host copies to host memory");
    static_assert(std::is_same_v<T, scalar_of<To>>, "switchyard: copies do not convert");
    const auto in = const_view(as_view(from));
    const auto out = as_view(to);
    require_same_shape("the device matrix", in, "the host matrix", out);
    if (in.empty()) {
        return;
    }
    const T* numbers = in.data;
    buffer<T, Memory> packed;
    if (!detail::is_dense(in)) {
        packed.resize(in.size());
        for_each_index(policy, in.size(), detail::pack_elements<T, space>{in, packed.data()});
        numbers = packed.data();
    }
    if (detail::is_dense(out)) {
        Memory::copy_to_host(policy.exec, out.data, numbers, detail::bytes_of<T>(in.size()));
        return;
    }
    buffer<T> staged(in.size());
    Memory::copy_to_host(policy.exec, staged.data(), numbers, detail::bytes_of<T>(in.size()));
    const detail::unpack_elements<T, host_space> unpack_one{staged.data(), out};
    for (index_t i = 0; i < in.size(); ++i) {
        unpack_one(i);
    }
}

/// Allocates the host matrix.
template <class Exec, class Memory, matrix_like From>
matrix<scalar_of<From>> copy_to_host(const thrust_policy<Exec, Memory>& policy, const From& from) {
    matrix<scalar_of<From>> to(as_view(from).rows, as_view(from).columns);
    copy_to_host(policy, from, to);
    return to;
}

}  // namespace SWITCHYARD_TARGET
}  // namespace switchyard
