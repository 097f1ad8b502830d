// The containers of the reference: a list and a table of numbers, nothing more.
//
// Everything in `switchyard::reference` computes in double with plain loops, so that a reader can follow each algorithm
// line by line and a test can compare the fast code with it. Nothing here is fast, and nothing shares code with the
// fast code except the counter-based random numbers and the error type.
//
//   list<T>    std::vector<T> indexed by index_t
//   table<T>   rows x columns of T, row-major; `matrix` is table<double>, `integers` is table<index_t>
#pragma once

#include <switchyard/core/config.hpp>
#include <switchyard/core/error.hpp>
#include <switchyard/core/matrix_view.hpp>
#include <switchyard/core/sizes.hpp>

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <vector>

namespace switchyard::reference::inline SWITCHYARD_TARGET {

/// A std::vector whose positions are index_t, as all positions of the library are.
template <class T>
struct list : std::vector<T> {
    using std::vector<T>::vector;

    T& operator[](index_t i) { return this->data()[i]; }
    const T& operator[](index_t i) const { return this->data()[i]; }
    index_t length() const { return static_cast<index_t>(this->size()); }
};

/// `length` copies of one value. (`list<T>{3, 0}` would be the list of the two values 3 and 0.)
template <class T>
list<T> filled(index_t length, T value) {
    list<T> values;
    values.assign(static_cast<std::size_t>(length), value);
    return values;
}

/// Which rows are tokens: 1, or 0 for padding. Empty: every row is a token.
using mask_list = list<std::uint8_t>;

/// Rows x columns of T.
template <class T>
struct table {
    index_t rows = 0;
    index_t columns = 0;
    list<T> values;

    table() = default;
    table(index_t row_count, index_t column_count, T value = T{})
        : rows(row_count),
          columns(column_count),
          values(filled(product_of_sizes("numbers", row_count, column_count), value)) {}
    /// Written out row by row: matrix{{1, 2}, {3, 4}}.
    table(std::initializer_list<std::initializer_list<T>> written_rows)
        : rows(static_cast<index_t>(written_rows.size())) {
        for (const auto& row : written_rows) {
            columns = static_cast<index_t>(row.size());
            values.insert(values.end(), row.begin(), row.end());
        }
        require(values.length() == rows * columns, "the rows of a table must have the same length");
    }

    T& operator()(index_t row, index_t column) { return values[row * columns + column]; }
    const T& operator()(index_t row, index_t column) const { return values[row * columns + column]; }

    friend bool operator==(const table&, const table&) = default;
};

using matrix = table<double>;
using integers = table<index_t>;

/// The numbers of a view in host memory, as doubles.
template <class T>
matrix matrix_from(matrix_view<T> view) {
    matrix copy(view.rows, view.columns);
    for (index_t i = 0; i < view.rows; ++i) {
        for (index_t j = 0; j < view.columns; ++j) copy(i, j) = static_cast<double>(view(i, j));
    }
    return copy;
}

/// a[n, m] times b[m, p].
inline matrix matmul(const matrix& a, const matrix& b) {
    require(a.columns == b.rows, "a product of ", a.rows, " x ", a.columns, " and ", b.rows, " x ", b.columns,
            " needs equal inner sizes");
    matrix product(a.rows, b.columns);
    for (index_t i = 0; i < a.rows; ++i) {
        for (index_t j = 0; j < b.columns; ++j) {
            double sum = 0;
            for (index_t inner = 0; inner < a.columns; ++inner) sum += a(i, inner) * b(inner, j);
            product(i, j) = sum;
        }
    }
    return product;
}

/// Rows as columns.
inline matrix transpose(const matrix& a) {
    matrix turned(a.columns, a.rows);
    for (index_t i = 0; i < a.rows; ++i) {
        for (index_t j = 0; j < a.columns; ++j) turned(j, i) = a(i, j);
    }
    return turned;
}

/// Whether a row is a token.
inline bool is_token(const mask_list& mask, index_t row) { return mask.empty() || mask[row] != 0; }

/// N: how many of the rows are tokens.
inline index_t count_tokens(const mask_list& mask, index_t rows) {
    index_t tokens = 0;
    for (index_t row = 0; row < rows; ++row) tokens += is_token(mask, row) ? 1 : 0;
    return tokens;
}

/// Fails unless the mask is empty or has one byte a row.
inline void require_mask(const mask_list& mask, index_t rows) {
    require(mask.empty() || mask.length() == rows, "a mask of ", mask.length(), " bytes does not fit ", rows, " rows");
}

}  // namespace switchyard::reference::inline SWITCHYARD_TARGET
