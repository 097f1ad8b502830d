// Projection: scores = noise(x) W, without bias, and its backward.
//
//   x[T, D] tokens, W[D, E] router weights (for BASE the centroids as columns)   ->  scores[T, E], computed in float or
//   double whatever x and W are stored in. Noise acts on the router's copy of x, row by row in scratch: what experts
//   receive is never touched.
//
//   backward:  d_W = noise(x)^T d_scores,   d_x = (d_scores W^T) * noise factors
//
// O(T D E). Scratch from the workspace; nothing is allocated after the first step of a shape; nothing synchronises.
#pragma once

#include <switchyard/backend/multiply.hpp>
#include <switchyard/backend/policy.hpp>
#include <switchyard/core/config.hpp>
#include <switchyard/core/error.hpp>
#include <switchyard/core/matrix_view.hpp>
#include <switchyard/core/row_blocks.hpp>
#include <switchyard/core/scalar_traits.hpp>
#include <switchyard/core/simd.hpp>
#include <switchyard/core/stored.hpp>
#include <switchyard/core/workspace.hpp>
#include <switchyard/score/noise.hpp>

#include <algorithm>
#include <cstdint>

namespace switchyard {
inline namespace SWITCHYARD_TARGET {

namespace detail {

/// Rows of tokens as the router sees them: converted, contiguous, with noise; padding as zeros, whatever it holds.
template <class Storage, class S, class IsToken>
struct token_rows {
    matrix_view<const Storage> x;
    input_noise noise;
    IsToken is_token;

    const S* operator()(index_t token, index_t first, index_t count, S* scratch) const {
        if (!is_token(token)) {
            std::fill(scratch, scratch + count, S(0));
            return scratch;
        }
        if constexpr (std::is_same_v<Storage, S>) {
            if (!noise.active() && x.rows_contiguous()) {
                return x.row(token) + first;
            }
        }
        index_t j = 0;
        if (x.rows_contiguous()) {
            using P = pack<S, native_width<S>>;
            for (; j + P::width <= count; j += P::width) {
                load_stored<P>(x.row(token) + first + j).store(scratch + j);
            }
        }
        for (; j < count; ++j) {
            scratch[j] = static_cast<S>(load_scalar(x(token, first + j)));
        }
        apply_input_noise(noise, token, first, scratch, count);
        return scratch;
    }

    bool by_blocks() const { return !x.rows_contiguous(); }
    void block(index_t token, index_t rows, index_t first, index_t count, S* out, index_t stride) const {
        const matrix_view<const Storage> columns(x.data + first * x.column_stride, x.rows, count, x.row_stride,
                                                 x.column_stride);
        load_rows<native_width<S>>(columns, token, rows, out, stride);
        for (index_t i = 0; i < rows; ++i) {
            if (!is_token(token + i)) {
                std::fill(out + i * stride, out + i * stride + count, S(0));
            } else if (noise.active()) {
                apply_input_noise(noise, token + i, first, out + i * stride, count);
            }
        }
    }
};

template <class S, class Storage, class IsToken>
token_rows<Storage, S, IsToken> rows_of(const matrix_view<const Storage>& x, const input_noise& noise,
                                        const IsToken& is_token) {
    return {x, noise, is_token};
}

/// Numbers of a matrix, dense and in S: in place where they already are, else copied to the workspace.
template <class S>
struct dense_numbers {
    const S* data;
    index_t stride;
};

template <class S, class Storage>
dense_numbers<S> dense(const matrix_view<const Storage>& m, workspace& scratch) {
    if constexpr (std::is_same_v<S, Storage>) {
        if (m.rows_contiguous()) {
            return {m.data, m.row_stride};
        }
    }
    S* const copy = scratch.take<S>(m.rows * m.columns);
    for (index_t i = 0; i < m.rows; ++i) {
        for (index_t j = 0; j < m.columns; ++j) {
            copy[i * m.columns + j] = static_cast<S>(load_scalar(m(i, j)));
        }
    }
    return {copy, m.columns};
}

/// Copies finished numbers to a row of any storage, unless they are there already.
template <class S, class Storage>
void write_row_to(const matrix_view<Storage>& m, index_t i, const S* numbers) {
    if constexpr (std::is_same_v<S, Storage>) {
        if (m.row(i) == numbers) {
            return;
        }
    }
    for (index_t j = 0; j < m.columns; ++j) {
        m(i, j) = store_scalar<Storage>(static_cast<compute_t<Storage>>(numbers[j]));
    }
}

template <class S, class Storage>
S* row_in_place([[maybe_unused]] const matrix_view<Storage>& m, [[maybe_unused]] index_t i) {
    if constexpr (std::is_same_v<S, Storage>) {
        if (m.rows_contiguous()) {
            return m.row(i);
        }
    }
    return nullptr;
}

}  // namespace detail

/// What route and projection require of tokens and weights.
template <class X, class W>
void require_projection(const X& x, const W& w) {
    require(x.rows >= 0 && x.columns >= 1, "x is ", x.rows, " x ", x.columns, ": tokens need a width of at least 1");
    require(w.rows == x.columns, "w is ", w.rows, " x ", w.columns, ": it must have D = ", x.columns,
            " rows, the width of x");
}

/// scores[T, E] = noise(x) W; S is the scores' type. Rows for which is_token(t) is false count as zeros.
template <host_policy Policy, class X, class W, class S, class IsToken>
void project(const Policy& policy, const matrix_view<const X>& x, const matrix_view<const W>& w,
             const input_noise& noise, const IsToken& is_token, const matrix_view<S>& scores, workspace& scratch) {
    const auto scope = scratch.open();
    const auto weights = detail::dense<S>(w, scratch);
    multiply_rows(
        policy, x.rows, x.columns, w.columns, detail::rows_of<S>(x, noise, is_token), weights.data, weights.stride,
        [&](index_t i) { return detail::row_in_place<S>(scores, i); },
        [&](index_t i, const S* row) { detail::write_row_to(scores, i, row); }, scratch);
}

/// d_x[T, D] and d_w[D, E] from d_scores[T, E], whose padding rows are 0.
template <host_policy Policy, class X, class W, class S, class DX, class DW, class IsToken>
void project_backward(const Policy& policy, const matrix_view<const X>& x, const matrix_view<const W>& w,
                      const input_noise& noise, const IsToken& is_token, const matrix_view<const S>& d_scores,
                      const matrix_view<DX>& d_x, const matrix_view<DW>& d_w, workspace& scratch) {
    const auto scope = scratch.open();
    const auto gradient = detail::dense<S>(d_scores, scratch);
    multiply_tall(
        policy, x.rows, x.columns, w.columns, detail::rows_of<S>(x, noise, is_token), gradient.data, gradient.stride,
        [&](index_t i, const S* row) { detail::write_row_to(d_w, i, row); }, scratch);

    // W^T, dense: the same kernel then makes d_x.
    const index_t width = x.columns;
    const index_t experts = w.columns;
    S* const weights = scratch.take<S>(experts * width);
    for (index_t e = 0; e < experts; ++e) {
        for (index_t j = 0; j < width; ++j) {
            weights[e * width + j] = static_cast<S>(load_scalar(w(j, e)));
        }
    }
    const auto gradient_row = [&](index_t i, index_t first, index_t, S*) {
        return gradient.data + i * gradient.stride + first;
    };
    multiply_rows(
        policy, x.rows, experts, width, gradient_row, weights, width,
        [&](index_t i) { return detail::row_in_place<S>(d_x, i); },
        [&](index_t i, S* row) {
            apply_input_noise(noise, i, index_t{0}, row, width);
            detail::write_row_to(d_x, i, row);
        },
        scratch);
}

}  // namespace SWITCHYARD_TARGET
}  // namespace switchyard
