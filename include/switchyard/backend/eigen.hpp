// Eigen's matrices, maps, blocks and references as matrix arguments, and Eigen's half and bfloat16 as storage.
//
// Anything with direct access works without a copy: row- or column-major, with inner and outer strides. Vectors are
// matrices with one column or row. Expressions without storage (A + B) do not compile: evaluate them first.
//
//   Eigen::MatrixXf x;  route(seq, router, x, w, training{});     combine(seq, plan, rows, y.topRows(n));
//
// `as_eigen(m)` goes the other way: an Eigen::Map over any host matrix or view of the library.
#pragma once

#include <switchyard/core/config.hpp>
#include <switchyard/core/matrix_view.hpp>
#include <switchyard/core/scalar_traits.hpp>

#include <Eigen/Core>

#include <bit>
#include <cstdint>
#include <type_traits>

namespace switchyard {

inline namespace SWITCHYARD_TARGET {
namespace detail {

template <class T>
concept eigen_matrix = std::is_base_of_v<Eigen::DenseBase<T>, T>;

template <class T>
concept eigen_storage = eigen_matrix<T> &&
                        (static_cast<int>(Eigen::internal::traits<T>::Flags) & Eigen::DirectAccessBit) != 0;

}  // namespace detail
}  // namespace SWITCHYARD_TARGET

template <detail::eigen_storage M>
struct view_access<M> {
    template <class Reference>
    SWITCHYARD_ALWAYS_INLINE static auto view(Reference& m) {
        using pointer = decltype(m.data());
        using element = std::remove_pointer_t<pointer>;
        using scalar = std::conditional_t<std::is_const_v<Reference>, const element, element>;
        constexpr bool row_major = M::IsRowMajor;
        return matrix_view<scalar>(m.data(), m.rows(), m.cols(), row_major ? m.outerStride() : m.innerStride(),
                                   row_major ? m.innerStride() : m.outerStride());
    }
};

/// 16-bit storage, float arithmetic. What Eigen makes of a half that is NaN depends on its version and the compiler.
template <>
struct scalar_traits<Eigen::half> {
    using compute = float;
    static constexpr stored_format format = stored_format::half;
    SWITCHYARD_ALWAYS_INLINE static float load(Eigen::half x) {
        const float number = static_cast<float>(x);
        const auto bits = std::bit_cast<std::uint32_t>(number);
        return number == number ? number : std::bit_cast<float>(bits | 0x400000u);
    }
    SWITCHYARD_ALWAYS_INLINE static Eigen::half store(float x) {
        const auto bits = std::bit_cast<std::uint32_t>(x);
        const auto nan = static_cast<std::uint16_t>((bits >> 16 & 0x8000u) | 0x7e00u | (bits >> 13 & 0x3ffu));
        return x == x ? static_cast<Eigen::half>(x) : Eigen::half_impl::raw_uint16_to_half(nan);
    }
};
template <>
struct scalar_traits<Eigen::bfloat16> {
    using compute = float;
    static constexpr stored_format format = stored_format::bfloat16;
    SWITCHYARD_ALWAYS_INLINE static float load(Eigen::bfloat16 x) { return static_cast<float>(x); }
    SWITCHYARD_ALWAYS_INLINE static Eigen::bfloat16 store(float x) { return static_cast<Eigen::bfloat16>(x); }
};

inline namespace SWITCHYARD_TARGET {

/// An Eigen map over a host matrix or view, without a copy.
template <matrix_like M>
requires std::is_same_v<space_of<M>, host_space>
auto as_eigen(M&& m) {
    const auto view = as_view(m);
    using element = std::remove_pointer_t<decltype(view.data)>;
    using plain = Eigen::Matrix<std::remove_const_t<element>, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
    using matrix_type = std::conditional_t<std::is_const_v<element>, const plain, plain>;
    using strides = Eigen::Stride<Eigen::Dynamic, Eigen::Dynamic>;
    return Eigen::Map<matrix_type, Eigen::Unaligned, strides>(view.data, view.rows, view.columns,
                                                              strides(view.row_stride, view.column_stride));
}

}  // namespace SWITCHYARD_TARGET
}  // namespace switchyard
