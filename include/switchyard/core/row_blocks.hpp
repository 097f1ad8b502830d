// Blocks of rows: a few rows of any matrix as dense numbers of the compute type, and back.
//
// Contiguous rows are converted pack by pack. If columns are contiguous (Eigen's default layout), a block is read
// column by column, so that a cache line is used completely in one visit whatever the distance of two columns, and
// squares of W x W numbers are transposed in registers. Any other strides are followed number by number.
#pragma once

#include <switchyard/core/config.hpp>
#include <switchyard/core/matrix_view.hpp>
#include <switchyard/core/simd.hpp>
#include <switchyard/core/stored.hpp>

#include <algorithm>
#include <cstdint>

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wsign-conversion"  // g++'s remark on arrays whose length is an int of the template
#endif

namespace switchyard {
inline namespace SWITCHYARD_TARGET {

namespace detail {

/// Rows of a column-major matrix that are moved together: four cache lines of each column.
template <int W>
inline constexpr index_t strip_rows = 4 * W;

/// How far ahead columns are prefetched: as many as a cache set has lines, since columns often are a power of two
/// apart.
inline constexpr std::uintptr_t columns_ahead = 8;

/// Calls f(j, columns) for strips of W columns.
template <int W, class F>
void for_each_strip(index_t columns, const F& f) {
    for (index_t j = 0; j < columns; j += W) {
        f(j, std::min<index_t>(W, columns - j));
    }
}

/// The square of W x W numbers at `from`, whose rows lie `from_stride` apart, transposed.
template <int W, class S>
void transpose_square(const S* from, index_t from_stride, S* to, index_t to_stride, index_t rows) {
    using P = pack<S, W>;
    P square[W];
    for (int i = 0; i < W; ++i) {
        square[i] = P::load(from + i * from_stride);
    }
    P::transpose(square);
    for (int i = 0; i < W && i < rows; ++i) {
        square[i].store(to + i * to_stride);
    }
}

}  // namespace detail

/// How many rows of m go through a block of `bytes` at once, `stride` numbers apart: four cache lines of each column
/// where columns are contiguous, else one register's worth. 0 where not one row fits.
template <int W, class S, class T>
index_t rows_of_block(const matrix_view<T>& m, index_t stride, index_t bytes) {
    return std::min<index_t>(m.rows_contiguous() ? W : detail::strip_rows<W>,
                             bytes / static_cast<index_t>(sizeof(S)) / stride);
}

/// Copies rows first .. first + count of m to `out`, `stride` numbers apart, which is a multiple of W and no less than
/// m.columns. What lies beyond a row's last column is overwritten with any numbers up to that multiple.
template <int W, class S, class Storage>
void load_rows(const matrix_view<const Storage>& m, index_t first, index_t count, S* out, index_t stride) {
    using P = pack<S, W>;
    if (m.rows_contiguous()) {
        // Prefetches the next block meanwhile.
        const std::uintptr_t ahead = static_cast<std::uintptr_t>(count * m.row_stride) * sizeof(Storage);
        const bool is_dense = m.row_stride == m.columns && stride == m.columns;
        const index_t columns = is_dense ? count * m.columns : m.columns;
        for (index_t i = 0; i < (is_dense ? 1 : count); ++i) {
            const Storage* const from = m.row(first + i);
            S* const to = out + i * stride;
            index_t j = 0;
            for (; j + W <= columns; j += W) {
                call_in_beyond(from + j, ahead);
                load_stored<P>(from + j).store(to + j);
            }
            if (j < columns) {
                load_first_stored<P>(from + j, columns - j).store(to + j);
            }
        }
        return;
    }
    if (m.row_stride != 1 || W == 1) {
        for (index_t i = 0; i < count; ++i) {
            for (index_t j = 0; j < m.columns; ++j) {
                out[i * stride + j] = detail::load_as<S>(m(first + i, j));
            }
        }
        return;
    }
    constexpr index_t strip_rows = detail::strip_rows<W>;
    const std::uintptr_t column_bytes = static_cast<std::uintptr_t>(m.column_stride) * sizeof(Storage);
    alignas(64) S strip[W * strip_rows] = {};
    for (index_t start = 0; start < count; start += strip_rows) {
        const index_t rows = std::min(strip_rows, count - start);
        detail::for_each_strip<W>(m.columns, [&](index_t j, index_t columns) {
            for (index_t c = 0; c < columns; ++c) {
                const Storage* const from = m.data + first + start + (j + c) * m.column_stride;
                S* const to = strip + c * strip_rows;
                index_t i = 0;
                for (; i + W <= rows; i += W) {
                    call_in_beyond(from + i, column_bytes * detail::columns_ahead);
                    load_stored<P>(from + i).store(to + i);
                }
                if (i < rows) {
                    load_first_stored<P>(from + i, rows - i).store(to + i);
                }
            }
            for (index_t i = 0; i < rows; i += W) {
                detail::transpose_square<W>(strip + i, strip_rows, out + (start + i) * stride + j, stride, rows - i);
            }
        });
    }
}

/// Copies `count` dense rows, `stride` numbers apart, to rows first .. first + count of m. The rows must be readable up
/// to a multiple of W.
template <int W, class S, class Storage>
void store_rows(const S* in, index_t stride, const matrix_view<Storage>& m, index_t first, index_t count) {
    using P = pack<S, W>;
    if (m.rows_contiguous()) {
        for (index_t i = 0; i < count; ++i) {
            const S* const from = in + i * stride;
            Storage* const to = m.row(first + i);
            index_t j = 0;
            for (; j + W <= m.columns; j += W) {
                store_stored(P::load(from + j), to + j);
            }
            if (j < m.columns) {
                store_first_stored(P::load(from + j), to + j, m.columns - j);
            }
        }
        return;
    }
    if (m.row_stride != 1 || W == 1) {
        for (index_t i = 0; i < count; ++i) {
            for (index_t j = 0; j < m.columns; ++j) {
                m(first + i, j) = detail::store_as<Storage>(in[i * stride + j]);
            }
        }
        return;
    }
    constexpr index_t strip_rows = detail::strip_rows<W>;
    alignas(64) S strip[W * strip_rows];
    for (index_t start = 0; start < count; start += strip_rows) {
        const index_t rows = std::min(strip_rows, count - start);
        detail::for_each_strip<W>(m.columns, [&](index_t j, index_t columns) {
            for (index_t i = 0; i < rows; i += W) {
                const S* const from = in + (start + i) * stride + j;
                P square[W];
                for (int r = 0; r < W; ++r) {
                    square[r] = i + r < rows ? P::load(from + r * stride) : P::all(S(0));
                }
                P::transpose(square);
                for (int c = 0; c < W; ++c) {
                    square[c].store(strip + c * strip_rows + i);
                }
            }
            for (index_t c = 0; c < columns; ++c) {
                const S* const from = strip + c * strip_rows;
                Storage* const to = m.data + first + start + (j + c) * m.column_stride;
                index_t i = 0;
                for (; i + W <= rows; i += W) {
                    store_stored(P::load(from + i), to + i);
                }
                if (i < rows) {
                    store_first_stored(P::load(from + i), to + i, rows - i);
                }
            }
        });
    }
}

}  // namespace SWITCHYARD_TARGET
}  // namespace switchyard

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic pop
#endif
