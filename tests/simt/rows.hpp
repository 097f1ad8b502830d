// What the tests of dispatch and combine by kernels share: plans in the executor's memory, and matrices there of any
// layout, whose gaps must stay as they were.
#pragma once

#include "simt/executor.hpp"
#include "support/rows.hpp"

#include <switchyard/backend/device.hpp>
#include <switchyard/backend/eigen.hpp>
#include <switchyard/dispatch/combine.hpp>
#include <switchyard/dispatch/kernel_rows.hpp>

#include <algorithm>
#include <cstring>
#include <vector>

namespace switchyard_test {

template <class S>
using simt_plan = sy::basic_plan<S, simt::memory>;

/// A plan of the CPU backend in device memory. It has no `order`: the kernels here go by the other arrays.
template <class S>
simt_plan<S> on_device(const sy::plan<S>& from) {
    simt_plan<S> to;
    to.resize(from.tokens(), from.experts(), from.choices(), from.capacity());
    const auto& a = from.view();
    const auto& b = to.view();
    const index_t positions = a.tokens * a.choices;
    std::copy_n(a.expert, positions, b.expert);
    std::copy_n(a.slot, positions, b.slot);
    std::copy_n(a.gate, positions, b.gate);
    std::copy_n(a.offsets, a.experts + 1, b.offsets);
    *b.totals = *a.totals;
    to.made_by(a.origin);
    return to;
}

/// How a matrix lies in memory.
enum class layout {
    dense,
    padded,      ///< rows a multiple of 16 bytes apart, with a gap between
    odd_rows,    ///< rows an odd number of numbers apart
    misaligned,  ///< dense, one number beyond an aligned address
    columns,     ///< column by column
    spaced,      ///< every third number of a row
    count
};

/// A matrix in device memory, gaps around it.
template <class T>
class laid_out {
  public:
    laid_out(layout how, index_t rows, index_t columns) {
        const index_t wide = (columns + 15) / 16 * 16 + 16;
        index_t offset = 0;
        index_t row_stride = columns;
        index_t column_stride = 1;
        if (how == layout::padded) row_stride = wide;
        if (how == layout::odd_rows) row_stride = wide + 1;
        if (how == layout::misaligned) offset = 1;
        if (how == layout::columns) {
            row_stride = 1;
            column_stride = rows + 1;
        }
        if (how == layout::spaced) {
            row_stride = 3 * columns;
            column_stride = 3;
        }
        const index_t last = rows == 0 || columns == 0 ? 0 : (rows - 1) * row_stride + (columns - 1) * column_stride;
        numbers_.resize(offset + last + 1);
        view_ = {numbers_.data() + offset, rows, columns, row_stride, column_stride};
    }

    const sy::matrix_view<T, simt::device_space>& view() const { return view_; }
    void fill(const ref::matrix& from) const {
        for (index_t i = 0; i < from.rows; ++i) {
            for (index_t j = 0; j < from.columns; ++j) {
                view_(i, j) = sy::store_scalar<T>(static_cast<sy::compute_t<T>>(from(i, j)));
            }
        }
    }

    /// The bytes of the first `rows` rows.
    std::vector<std::byte> bytes(index_t rows) const {
        std::vector<std::byte> all(static_cast<std::size_t>(rows * view_.columns) * sizeof(T));
        for (index_t i = 0; i < rows * view_.columns; ++i) {
            std::memcpy(all.data() + static_cast<std::size_t>(i) * sizeof(T),
                        &view_(i / view_.columns, i % view_.columns), sizeof(T));
        }
        return all;
    }

    /// Whether all but the first `rows` rows is still the junk that new memory holds.
    bool is_untouched_beyond(index_t rows) const {
        std::vector<bool> written(static_cast<std::size_t>(numbers_.size()));
        for (index_t i = 0; i < rows; ++i) {
            for (index_t j = 0; j < view_.columns; ++j) {
                written[static_cast<std::size_t>(&view_(i, j) - numbers_.data())] = true;
            }
        }
        T junk;
        std::memset(static_cast<void*>(&junk), simt::junk, sizeof junk);
        for (index_t i = 0; i < numbers_.size(); ++i) {
            if (!written[static_cast<std::size_t>(i)] && std::memcmp(numbers_.data() + i, &junk, sizeof junk) != 0) {
                return false;
            }
        }
        return true;
    }

  private:
    sy::buffer<T, simt::memory> numbers_;
    sy::matrix_view<T, simt::device_space> view_;
};

/// The bytes of a dense host matrix.
template <class T>
std::vector<std::byte> bytes_of(const sy::matrix<T>& m, index_t rows) {
    std::vector<std::byte> all(static_cast<std::size_t>(rows * m.columns()) * sizeof(T));
    if (!all.empty()) std::memcpy(all.data(), m.data(), all.size());
    return all;
}

/// The first element by which the first `rows` rows are farther apart than `allowed` of the largest.
template <class T>
std::string rows_difference(const laid_out<T>& got, const sy::matrix<T>& want, index_t rows, double allowed,
                            double scale = 0) {
    double largest = scale;
    for (index_t i = 0; i < rows * want.columns(); ++i) {
        largest = std::max(largest, std::abs(static_cast<double>(sy::load_scalar(want.data()[i]))));
    }
    for (index_t i = 0; i < rows; ++i) {
        for (index_t j = 0; j < want.columns(); ++j) {
            const auto a = static_cast<double>(sy::load_scalar(got.view()(i, j)));
            const auto b = static_cast<double>(sy::load_scalar(want(i, j)));
            if (!(std::abs(a - b) <= allowed * largest)) {
                return said("(", i, ", ", j, ") is ", a, ", on the CPU ", b);
            }
        }
    }
    return "";
}

}  // namespace switchyard_test
