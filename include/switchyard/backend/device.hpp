// What every device backend has, and what the generic device code of the other rooms is written on: Thrust's policies
// (backend/thrust.hpp), CUDA's (backend/cuda.hpp), and the tests' executor of kernels.
//
// A device policy has a `memory` whose space is not the host's, and says how work runs there:
//
//   policy.for_each(count, f)                         f(i) for i in 0 .. count, in any order, f callable on the device
//   policy.sort_by_key(keys, values, count, scratch)  stable, rising unsigned or non-negative keys, int64 values
//   policy.inclusive_sum(values, count, scratch)      of int64, in place
//   policy.copy_to_host(to, from, bytes)              these two wait for everything enqueued before, and for the copy
//   policy.copy_to_device(to, from, bytes)
//   Policy::most_lanes                                threads that work with scratch of their own is spread over
//   policy.memory_resource()                          optional: where the allocating forms get their memory
//
// The rest only enqueues. With that, every router, dispatch, combine and the auction run on a device: the files named
// device_*.hpp, one per room, are generic, and a backend overrides what it does better (kernel_*.hpp: kernels).
//
// `copy_to_host` and `copy_to_device` here are the same for matrices and arrays with strides and shapes.
#pragma once

#include <switchyard/backend/policy.hpp>
#include <switchyard/core/config.hpp>
#include <switchyard/core/error.hpp>
#include <switchyard/core/matrix_view.hpp>
#include <switchyard/core/memory.hpp>
#include <switchyard/core/sizes.hpp>
#include <switchyard/core/workspace.hpp>

#include <concepts>
#include <cstddef>
#include <span>
#include <type_traits>

namespace switchyard {

/// The memory of CUDA's devices, told apart from the host's by type alone.
struct cuda_space {};

/// A policy whose work runs on a device: see above.
template <class Policy>
concept device_policy = !std::same_as<typename Policy::memory::space, host_space> &&
                        requires(const Policy& policy, void* to, const void* from) {
    policy.copy_to_host(to, from, std::size_t{1});
    policy.copy_to_device(to, from, std::size_t{1});
};

inline namespace SWITCHYARD_TARGET {

template <class Policy>
using policy_space = typename std::remove_cvref_t<Policy>::memory::space;

/// A dense matrix, an array and a workspace in a policy's memory.
template <class Policy, class T>
using device_matrix = matrix<T, typename std::remove_cvref_t<Policy>::memory>;
template <class Policy, class T>
using device_buffer = buffer<T, typename std::remove_cvref_t<Policy>::memory>;
template <class Policy>
using device_workspace = basic_workspace<typename std::remove_cvref_t<Policy>::memory>;

/// A mask of an array in any memory.
template <class Memory>
token_mask token_mask_of(const buffer<std::uint8_t, Memory>& bytes) {
    return {bytes.data(), bytes.size(), !host_readable<Memory>};
}
template <class Memory>
token_mask token_mask_of(buffer<std::uint8_t, Memory>&& bytes) = delete;  // a mask keeps the address alone

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
template <device_policy Policy, class T, class Combine>
T* fold(const Policy& policy, T* values, index_t count, index_t width, const Combine& combine,
        device_workspace<Policy>& scratch) {
    while (count > 1) {
        T* const next = scratch.template take<T>(folded(count) * width);
        for_each_index(policy, folded(count) * width, fold_level<T, Combine>{values, next, count, width, combine});
        values = next;
        count = folded(count);
    }
    return values;
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

/// At most Policy::most_lanes threads, for work that keeps scratch for every thread.
template <device_policy Policy>
constexpr lanes lanes_of(index_t rows) {
    constexpr index_t most = Policy::most_lanes;
    const index_t each = rows <= most ? 1 : (rows + most - 1) / most;
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

}  // namespace detail

/// Host numbers into a device matrix of the same shape and type. Waits for the copy.
template <device_policy Policy, matrix_like From, matrix_like To>
void copy_to_device(const Policy& policy, const From& from, To&& to) {
    using T = scalar_of<From>;
    using space = policy_space<Policy>;
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
        policy.copy_to_device(out.data, numbers, bytes_of<T>(in.size()));
        return;
    }
    device_buffer<Policy, T> staged(in.size(), memory_of(policy));
    policy.copy_to_device(staged.data(), numbers, bytes_of<T>(in.size()));
    for_each_index(policy, in.size(), detail::unpack_elements<T, space>{staged.data(), out});
}

/// Allocates the device matrix.
template <device_policy Policy, matrix_like From>
device_matrix<Policy, scalar_of<From>> copy_to_device(const Policy& policy, const From& from) {
    device_matrix<Policy, scalar_of<From>> to(as_view(from).rows, as_view(from).columns, memory_of(policy));
    copy_to_device(policy, from, to);
    return to;
}

/// An array, such as a token mask.
template <device_policy Policy, class T, std::size_t N>
device_buffer<Policy, std::remove_const_t<T>> copy_to_device(const Policy& policy, std::span<T, N> from) {
    device_buffer<Policy, std::remove_const_t<T>> to(static_cast<index_t>(from.size()), memory_of(policy));
    if (!from.empty()) {
        policy.copy_to_device(to.data(), from.data(), from.size_bytes());
    }
    return to;
}

/// Device numbers into a host matrix of the same shape and type. Waits for everything enqueued before.
template <device_policy Policy, matrix_like From, matrix_like To>
void copy_to_host(const Policy& policy, const From& from, To&& to) {
    using T = scalar_of<From>;
    using space = policy_space<Policy>;
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
    device_buffer<Policy, T> packed(0, memory_of(policy));
    if (!detail::is_dense(in)) {
        packed.resize(in.size());
        for_each_index(policy, in.size(), detail::pack_elements<T, space>{in, packed.data()});
        numbers = packed.data();
    }
    if (detail::is_dense(out)) {
        policy.copy_to_host(out.data, numbers, bytes_of<T>(in.size()));
        return;
    }
    buffer<T> staged(in.size());
    policy.copy_to_host(staged.data(), numbers, bytes_of<T>(in.size()));
    const detail::unpack_elements<T, host_space> unpack_one{staged.data(), out};
    for (index_t i = 0; i < in.size(); ++i) {
        unpack_one(i);
    }
}

/// Allocates the host matrix.
template <device_policy Policy, matrix_like From>
matrix<scalar_of<From>> copy_to_host(const Policy& policy, const From& from) {
    matrix<scalar_of<From>> to(as_view(from).rows, as_view(from).columns);
    copy_to_host(policy, from, to);
    return to;
}

}  // namespace SWITCHYARD_TARGET
}  // namespace switchyard
