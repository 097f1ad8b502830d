// The two products a router needs, on the CPU: many rows times a small matrix, and the transpose of many rows times
// many rows.
//
//   multiply_rows   C[m, n] = A[m, k] B[k, n]        scores = x W, d_x = d_scores W^T
//   multiply_tall   C[k, n] = A[m, k]^T B[m, n]      d_W = x^T d_scores
//
// Written here and not taken from a linear algebra library because three promises must hold that none gives: the same
// bits for every thread count and alignment, no allocation, and code that stays within its instruction set's namespace.
// The kernel keeps a tile of C in registers; each element is one chain of multiply-adds in rising k (multiply_tall:
// chains of 256 rows, added in order).
//
// Rows of A come from a functor `row(i, first, count, scratch)` that returns `count` contiguous numbers from column
// `first`, in place or prepared in `scratch`: that is where storage is converted and noise applied. Where rows are
// better prepared many at a time, since their numbers lie far apart, the functor says so (`by_blocks()`) and has
// `block(i, rows, first, count, out, stride)`, which writes `count` numbers of each of `rows` rows; `stride` is a
// multiple of the native width.
#pragma once

#include <switchyard/backend/policy.hpp>
#include <switchyard/core/config.hpp>
#include <switchyard/core/simd.hpp>
#include <switchyard/core/workspace.hpp>

#include <algorithm>
#include <cstdint>

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wsign-conversion"  // g++'s remark on arrays whose length is an int of the template
#endif

namespace switchyard {
inline namespace SWITCHYARD_TARGET {

namespace detail {

/// Tile of the kernel: rows x packs held in registers (32 registers with AVX-512, 16 else).
inline constexpr int tile_rows = register_bytes == 64 ? 6 : 4;
inline constexpr int tile_packs = register_bytes == 64 ? 4 : 2;

/// c[r][v] += sum_p a[r][p * a_step] * b[p * b_stride + v * W] for p in 0 .. depth; `lanes` numbers of the last pack
/// count.
template <int R, int V, class S>
void multiply_tile(const S* const (&a)[R], index_t a_step, const S* b, index_t b_stride, index_t depth, index_t lanes,
                   pack<S, native_width<S>> (&c)[R][V]) {
    using P = pack<S, native_width<S>>;
    const bool partial = lanes < P::width;
    for (index_t p = 0; p < depth; ++p) {
        P column[V];
        for (int v = 0; v + 1 < V; ++v) {
            column[v] = P::load(b + p * b_stride + v * P::width);
        }
        const S* const last = b + p * b_stride + (V - 1) * P::width;
        column[V - 1] = partial ? P::load_first(last, lanes, S(0)) : P::load(last);
        for (int r = 0; r < R; ++r) {
            const P x = P::all(a[r][p * a_step]);
            for (int v = 0; v < V; ++v) {
                c[r][v] = multiply_add(x, column[v], c[r][v]);
            }
        }
    }
}

/// Calls f.template operator()<V>(first column, lanes of the last pack) for panels that cover n columns.
template <class S, class F>
void for_each_panel(index_t n, const F& f) {
    constexpr index_t W = native_width<S>;
    index_t j = 0;
    for (; j + W * tile_packs <= n; j += W * tile_packs) {
        f.template operator()<tile_packs>(j, W);
    }
    for (; j < n; j += W) {
        f.template operator()<1>(j, std::min(W, n - j));
    }
}

/// c[r][0 .. n) = a[r] B for R rows; or, where a product's depth is cut in pieces, the sums go on from what c holds.
template <int R, class S>
void multiply_row_tile(const S* const (&a)[R], const S* b, index_t b_stride, index_t depth, index_t n, S* const (&c)[R],
                       bool goes_on = false) {
    using P = pack<S, native_width<S>>;
    for_each_panel<S>(n, [&]<int V>(index_t j, index_t lanes) {
        P sum[R][V];
        for (int r = 0; r < R; ++r) {
            for (int v = 0; v < V; ++v) {
                const S* const from = c[r] + j + v * P::width;
                sum[r][v] = !goes_on ? P::all(S(0)) : v + 1 < V ? P::load(from) : P::load_first(from, lanes, S(0));
            }
        }
        multiply_tile<R, V>(a, 1, b + j, b_stride, depth, lanes, sum);
        for (int r = 0; r < R; ++r) {
            for (int v = 0; v + 1 < V; ++v) {
                sum[r][v].store(c[r] + j + v * P::width);
            }
            sum[r][V - 1].store_first(c[r] + j + (V - 1) * P::width, lanes);
        }
    });
}

/// Rows of a piece: whole tiles, and whole cache lines of a column; and its depth.
inline constexpr index_t row_piece_rows = 48;
inline constexpr index_t row_piece_depth = 128;
inline constexpr index_t row_piece_size = row_piece_rows * row_piece_depth;
static_assert(row_piece_rows % tile_rows == 0);

/// multiply_rows by blocks: pieces of A that stay in cache, each used by all of B's columns.
template <class Policy, class S, class Row, class Out, class Finish>
void multiply_row_blocks(const Policy& policy, index_t m, index_t k, index_t n, const Row& row, const S* b,
                         index_t b_stride, const Out& out, const Finish& finish, workspace& scratch) {
    constexpr int R = tile_rows;
    constexpr index_t most_rows = row_piece_rows;
    constexpr index_t most_depth = row_piece_depth;
    const auto scope = scratch.open();
    const index_t rows = std::min<index_t>(rows_per_block(m), most_rows);
    const index_t blocks = (m + rows - 1) / rows;
    S* const results = m > 0 && out(0) == nullptr ? scratch.take<S>(m * n) : nullptr;
    policy.parallel_for(blocks, [&](index_t block) {
        alignas(64) S piece[row_piece_size];
        const index_t first = block * rows;
        const index_t count = std::min(rows, m - first);
        const auto result = [&](index_t i) { return results != nullptr ? results + i * n : out(i); };
        for (index_t start = 0; start < k; start += most_depth) {
            const index_t depth = std::min(most_depth, k - start);
            row.block(first, count, start, depth, piece, most_depth);
            const auto run = [&]<int Rows>(index_t i) {
                const S* a[Rows];
                S* c[Rows];
                for (int r = 0; r < Rows; ++r) {
                    a[r] = piece + (i + r) * most_depth;
                    c[r] = result(first + i + r);
                }
                S* const(&targets)[Rows] = c;
                multiply_row_tile<Rows, S>(a, b + start * b_stride, b_stride, depth, n, targets, start > 0);
            };
            index_t i = 0;
            for (; i + R <= count; i += R) {
                run.template operator()<R>(i);
            }
            for (; i < count; ++i) {
                run.template operator()<1>(i);
            }
        }
        for (index_t i = 0; i < count; ++i) {
            finish(first + i, result(first + i));
        }
    });
}

}  // namespace detail

/// C = A B. `b` is dense, k x n with the given stride. `finish(i, c)` receives each finished row of n numbers; c points
/// to out(i) if that is not null, else to scratch.
template <host_policy Policy, class S, class Row, class Out, class Finish>
void multiply_rows(const Policy& policy, index_t m, index_t k, index_t n, const Row& row, const S* b, index_t b_stride,
                   const Out& out, const Finish& finish, workspace& scratch) {
    if constexpr (requires { row.by_blocks(); }) {
        if (row.by_blocks()) {
            detail::multiply_row_blocks(policy, m, k, n, row, b, b_stride, out, finish, scratch);
            return;
        }
    }
    constexpr int R = detail::tile_rows;
    constexpr index_t W = native_width<S>;
    const auto scope = scratch.open();
    const index_t rows = std::min<index_t>(rows_per_block(m), 60);
    const index_t blocks = (m + rows - 1) / rows;
    const index_t a_room = (k + W - 1) / W * W;
    const index_t room = R * (a_room + (n + W - 1) / W * W);
    // One stretch of scratch a group of blocks would tie scratch to threads; a block's worth is small.
    S* const block_scratch = scratch.take<S>(blocks * room);
    policy.parallel_for(blocks, [&](index_t block) {
        S* const a_scratch = block_scratch + block * room;
        S* const c_scratch = a_scratch + R * a_room;
        const auto run = [&]<int Rows>(index_t i) {
            const S* a[Rows];
            S* c[Rows];
            for (int r = 0; r < Rows; ++r) {
                a[r] = row(i + r, index_t{0}, k, a_scratch + r * a_room);
                S* const target = out(i + r);
                c[r] = target != nullptr ? target : c_scratch + r * (room / R - a_room);
            }
            S* const(&targets)[Rows] = c;
            detail::multiply_row_tile<Rows, S>(a, b, b_stride, k, n, targets);
            for (int r = 0; r < Rows; ++r) {
                finish(i + r, c[r]);
            }
        };
        const index_t last = std::min(m, (block + 1) * rows);
        index_t i = block * rows;
        for (; i + R <= last; i += R) {
            run.template operator()<R>(i);
        }
        for (; i < last; ++i) {
            run.template operator()<1>(i);
        }
    });
}

/// C[k, n] = A^T B with B dense m x n; `finish(p, c)` receives each finished row p of C.
template <host_policy Policy, class S, class Row, class Finish>
void multiply_tall(const Policy& policy, index_t m, index_t k, index_t n, const Row& row, const S* b, index_t b_stride,
                   const Finish& finish, workspace& scratch) {
    using P = pack<S, native_width<S>>;
    constexpr int R = detail::tile_rows;
    constexpr index_t width = 4 * R;  // columns of A a block handles: a multiple of 4, as noise comes in fours
    constexpr index_t stride = (width + P::width - 1) / P::width * P::width;
    constexpr index_t chunk = 256;  // rows of A whose products stay in one chain
    const auto scope = scratch.open();
    const index_t blocks = (k + width - 1) / width;
    const index_t c_stride = (n + P::width - 1) / P::width * P::width;
    const index_t room = chunk * stride + width * c_stride;
    S* const block_scratch = scratch.take<S>(blocks * room);
    policy.parallel_for(blocks, [&](index_t block) {
        S* const a = block_scratch + block * room;
        S* const c = a + chunk * stride;
        const index_t first = block * width;
        const index_t columns = std::min(width, k - first);
        std::fill(c, c + width * c_stride, S(0));
        for (index_t start = 0; start < m; start += chunk) {
            const index_t depth = std::min(chunk, m - start);
            bool is_prepared = false;
            if constexpr (requires { row.by_blocks(); }) {
                is_prepared = row.by_blocks();
                if (is_prepared) {
                    row.block(start, depth, first, columns, a, stride);
                }
            }
            for (index_t i = 0; i < depth; ++i) {
                S* const to = a + i * stride;
                if (!is_prepared) {
                    const S* const from = row(start + i, first, columns, to);
                    if (from != to) {
                        std::copy(from, from + columns, to);
                    }
                }
                std::fill(to + columns, to + width, S(0));
            }
            detail::for_each_panel<S>(n, [&]<int V>(index_t j, index_t lanes) {
                for (index_t p = 0; p < width; p += R) {
                    const S* tile[R];
                    P sum[R][V];
                    for (int r = 0; r < R; ++r) {
                        tile[r] = a + p + r;
                        for (int v = 0; v < V; ++v) {
                            sum[r][v] = P::all(S(0));
                        }
                    }
                    detail::multiply_tile<R, V>(tile, stride, b + start * b_stride + j, b_stride, depth, lanes, sum);
                    for (int r = 0; r < R; ++r) {
                        S* const target = c + (p + r) * c_stride + j;
                        for (int v = 0; v < V; ++v) {
                            (P::load(target + v * P::width) + sum[r][v]).store(target + v * P::width);
                        }
                    }
                }
            });
        }
        for (index_t p = 0; p < columns; ++p) {
            finish(first + p, c + p * c_stride);
        }
    });
}

}  // namespace SWITCHYARD_TARGET
}  // namespace switchyard

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic pop
#endif
