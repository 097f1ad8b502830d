// Views: where numbers lie, without owning them. Trivially copyable, 64-bit, any row and column stride.
//
// `matrix_view<T, Space>` is rows x columns of T; element (i, j) lies at data[i * row_stride + j * column_stride].
// Row-major, column-major, blocks and broadcast (stride 0) rows are all cases. `Space` says which memory the pointer
// belongs to: a view of device memory has a type of its own, so handing it to a CPU policy does not compile.
#pragma once

#include <switchyard/core/config.hpp>
#include <switchyard/core/error.hpp>
#include <switchyard/core/sizes.hpp>

#include <concepts>
#include <span>
#include <type_traits>
#include <utility>

namespace switchyard {

/// Ordinary memory, readable by the CPU.
struct host_space {};

template <class T, class Space = host_space>
struct matrix_view {
    using value_type = std::remove_const_t<T>;
    using space = Space;

    T* data = nullptr;
    index_t rows = 0;
    index_t columns = 0;
    index_t row_stride = 0;     ///< elements from a row to the next
    index_t column_stride = 1;  ///< elements from a column to the next

    constexpr matrix_view() = default;

    /// Dense row-major numbers.
    SWITCHYARD_HD SWITCHYARD_ALWAYS_INLINE constexpr matrix_view(T* numbers, index_t row_count, index_t column_count)
        : data(numbers), rows(row_count), columns(column_count), row_stride(column_count) {}

    /// Strided numbers.
    SWITCHYARD_HD SWITCHYARD_ALWAYS_INLINE constexpr matrix_view(T* numbers, index_t row_count, index_t column_count,
                                                                 index_t stride_of_rows, index_t stride_of_columns)
        : data(numbers),
          rows(row_count),
          columns(column_count),
          row_stride(stride_of_rows),
          column_stride(stride_of_columns) {}

    /// A view of mutable numbers is a view of constant ones.
    template <class U>
    requires(std::is_const_v<T>&& std::same_as<U, value_type>) SWITCHYARD_HD SWITCHYARD_ALWAYS_INLINE
        constexpr matrix_view(const matrix_view<U, Space>& other)  // NOLINT(google-explicit-constructor)
        : data(other.data),
          rows(other.rows),
          columns(other.columns),
          row_stride(other.row_stride),
          column_stride(other.column_stride) {}

    SWITCHYARD_HD SWITCHYARD_ALWAYS_INLINE constexpr T& operator()(index_t row, index_t column) const {
        return data[row * row_stride + column * column_stride];
    }
    SWITCHYARD_HD SWITCHYARD_ALWAYS_INLINE constexpr T* row(index_t i) const { return data + i * row_stride; }
    SWITCHYARD_HD SWITCHYARD_ALWAYS_INLINE constexpr index_t size() const { return rows * columns; }
    SWITCHYARD_HD SWITCHYARD_ALWAYS_INLINE constexpr bool empty() const { return rows == 0 || columns == 0; }
    /// Each row is contiguous (a row program may use vector loads).
    SWITCHYARD_HD SWITCHYARD_ALWAYS_INLINE constexpr bool rows_contiguous() const {
        return column_stride == 1 || columns <= 1;
    }
};

/// The same view, columns as rows.
template <class T, class Space>
SWITCHYARD_HD SWITCHYARD_ALWAYS_INLINE constexpr matrix_view<T, Space> transposed(matrix_view<T, Space> m) {
    return {m.data, m.columns, m.rows, m.column_stride, m.row_stride};
}

/// Which rows are real tokens: one byte per token, 0 for padding. Null means that every row is a token. The bytes lie
/// in the memory of the policy that runs. Settings name it, which have no type to say so: a mask that says otherwise is
/// refused.
struct token_mask {
    const std::uint8_t* data = nullptr;
    index_t size = 0;
    bool on_device = false;  ///< in the memory of a device policy

    SWITCHYARD_HD SWITCHYARD_ALWAYS_INLINE constexpr bool operator()(index_t token) const {
        return data == nullptr || data[token] != 0;
    }
};

/// How a container can be viewed as a matrix: `view_access<Container>::view(container)` returns a matrix_view.
/// Specialise it to pass your own matrix type to every function here; backend/eigen.hpp does so for Eigen. A
/// specialisation for all types that satisfy a concept must be inside `namespace switchyard { }`: g++ 12 does not find
/// names of the namespace in `template <my_concept M> struct switchyard::view_access<M>`.
///
/// `static constexpr bool is_column = true` says that the type always has one column: it is then refused where rows are
/// tokens.
template <class M>
struct view_access;

template <class T, class Space>
struct view_access<matrix_view<T, Space>> {
    SWITCHYARD_HD SWITCHYARD_ALWAYS_INLINE static constexpr matrix_view<T, Space> view(const matrix_view<T, Space>& m) {
        return m;
    }
};

/// Anything that can be viewed as a matrix: views, switchyard::matrix, Eigen's matrices, maps and blocks.
template <class M>
concept matrix_like = requires(M&& m) {
    view_access<std::remove_cvref_t<M>>::view(m);
};

/// The view through which every public function reads or writes its matrix arguments.
template <matrix_like M>
SWITCHYARD_ALWAYS_INLINE constexpr auto as_view(M&& m) {
    return view_access<std::remove_cvref_t<M>>::view(m);
}

/// The view type, the scalar and the memory of a matrix argument.
template <matrix_like M>
using view_type = decltype(as_view(std::declval<M>()));
template <matrix_like M>
using scalar_of = typename view_type<M>::value_type;
template <matrix_like M>
using space_of = typename view_type<M>::space;

/// The same numbers, read only.
template <class T, class Space>
SWITCHYARD_HD SWITCHYARD_ALWAYS_INLINE constexpr matrix_view<const T, Space> const_view(
    const matrix_view<T, Space>& m) {
    return m;
}
template <class T, class Space>
SWITCHYARD_HD SWITCHYARD_ALWAYS_INLINE constexpr matrix_view<const T, Space> const_view(
    const matrix_view<const T, Space>& m) {
    return m;
}

inline namespace SWITCHYARD_TARGET {

/// Fails unless two matrices have the same shape; the message names both.
template <class A, class B>
void require_same_shape(const char* name_a, const A& a, const char* name_b, const B& b) {
    require(a.rows == b.rows && a.columns == b.columns, name_a, " is ", a.rows, " x ", a.columns, "; ", name_b, " is ",
            b.rows, " x ", b.columns);
}

/// Dense row-major numbers held by a span, which must hold rows x columns of them.
template <class T, std::size_t N>
matrix_view<T> view_of(std::span<T, N> numbers, index_t rows, index_t columns) {
    require(rows >= 0 && columns >= 0, "rows = ", rows, " and columns = ", columns, " must not be negative");
    require(static_cast<index_t>(numbers.size()) == product_of_sizes("numbers", rows, columns), "a span of ",
            numbers.size(), " numbers cannot be viewed as ", rows, " x ", columns);
    return {numbers.data(), rows, columns};
}

}  // namespace SWITCHYARD_TARGET
}  // namespace switchyard
