// Blocks of rows of every layout and storage, against element by element.
#include "support/scores.hpp"

#include <switchyard/backend/eigen.hpp>
#include <switchyard/core/row_blocks.hpp>

#include <doctest/doctest.h>

#include <bit>
#include <cmath>
#include <random>
#include <string>
#include <vector>

using namespace switchyard_test;

namespace {

/// Where the numbers of a matrix lie.
struct layout {
    const char* name;
    index_t row_stride, column_stride;
};

std::vector<layout> layouts_of(index_t rows, index_t columns) {
    return {{"row-major", columns, 1},        {"row-major with gaps", columns + 3, 1},
            {"column-major", 1, rows},        {"column-major with gaps", 1, rows + 5},
            {"two strides", 2, 2 * rows + 1}, {"rows backwards", -columns, 1}};
}

/// Numbers of T in exactly as much memory as the layout needs.
template <class T>
struct laid_out {
    std::vector<T> memory;
    sy::matrix_view<T> view;

    laid_out(const layout& where, index_t rows, index_t columns) {
        const index_t reach = std::abs(where.row_stride) * (rows - 1) + where.column_stride * (columns - 1) + 1;
        memory.assign(static_cast<std::size_t>(rows > 0 && columns > 0 ? reach : 0), T(-77));
        T* const first = memory.data() + (where.row_stride < 0 ? -where.row_stride * (rows - 1) : 0);
        view = {first, rows, columns, where.row_stride, where.column_stride};
    }
};

template <int W, class S, class T>
std::string block_mismatch(index_t rows, index_t columns, std::mt19937& random) {
    std::normal_distribution<float> normal;
    const index_t stride = (columns + W - 1) / W * W + (random() % 2 == 0 ? W : 0);
    for (const layout& where : layouts_of(rows, columns)) {
        laid_out<T> from(where, rows, columns);
        for (index_t i = 0; i < rows; ++i) {
            for (index_t j = 0; j < columns; ++j) {
                from.view(i, j) = random() % 50 == 0 ? T(-INFINITY) : static_cast<T>(100 * normal(random));
            }
        }
        const index_t first = rows / 3;
        const index_t count = rows - first - (rows > 40 ? 2 : 0);
        std::vector<S> block(static_cast<std::size_t>(count * stride), S(5));
        sy::load_rows<W>(sy::const_view(from.view), first, count, block.data(), stride);
        laid_out<T> to(where, rows, columns);
        std::vector<T> want = to.memory;
        for (index_t i = 0; i < count; ++i) {
            for (index_t j = 0; j < columns; ++j) {
                const T stored = from.view(first + i, j);
                if (block[static_cast<std::size_t>(i * stride + j)] != static_cast<S>(sy::load_scalar(stored))) {
                    return std::string("load, ") + where.name + ", row " + std::to_string(i) + " of " +
                           std::to_string(rows) + " x " + std::to_string(columns);
                }
                // Not a stored number: it is rounded on the way back.
                S& number = block[static_cast<std::size_t>(i * stride + j)];
                number *= S(1.00390625) / S(1.1);
                want[static_cast<std::size_t>(&to.view(first + i, j) - to.memory.data())] =
                    sy::store_scalar<T>(static_cast<sy::compute_t<T>>(number));
            }
        }
        sy::store_rows<W>(block.data(), stride, to.view, first, count);
        for (std::size_t i = 0; i < want.size(); ++i) {
            if (sy::load_scalar(to.memory[i]) != sy::load_scalar(want[i])) {
                return std::string("store, ") + where.name + ", " + std::to_string(rows) + " x " +
                       std::to_string(columns);
            }
        }
    }
    return "";
}

template <int W, class S, class T>
void check_blocks() {
    std::mt19937 random(3);
    for (const index_t rows : {1, 2, 15, 16, 17, 63, 64, 65, 130}) {
        for (const index_t columns : {1, 2, 7, 8, 15, 16, 17, 33, 64, 70}) {
            CHECK(block_mismatch<W, S, T>(rows, columns, random) == "");
        }
    }
}

}  // namespace

TEST_CASE("row blocks: every layout, stored as they are computed") {
    check_blocks<sy::native_width<float>, float, float>();
    check_blocks<sy::native_width<double>, double, double>();
    check_blocks<1, float, float>();
    check_blocks<4, float, float>();
}

TEST_CASE("row blocks: every layout, 16-bit storage") {
    check_blocks<sy::native_width<float>, float, Eigen::bfloat16>();
    check_blocks<sy::native_width<float>, float, Eigen::half>();
    check_blocks<1, float, Eigen::half>();
}
