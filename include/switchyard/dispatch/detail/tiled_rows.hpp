// Rows whose numbers do not lie side by side, such as those of a column-major matrix: moved in tiles on the stack.
//
// A block of choices in token order is moved G columns at a time. On the tokens' side it reads or writes columns from
// end to end. On the rows' side it goes through the choices in the order of their rows: an expert's rows lie together
// there, so a cache line of a column is used up in one visit whatever the distance of two experts' rows. Between the
// two lies the tile, a piece of G numbers for each choice or token. Squares of G x G numbers are transposed in
// registers.
//
// Any stride works. Sums are those of contiguous rows, number for number: choices in order, and products in the same
// partial sums.
#pragma once

#include <switchyard/core/config.hpp>
#include <switchyard/core/matrix_view.hpp>
#include <switchyard/core/scalar_traits.hpp>
#include <switchyard/core/simd.hpp>
#include <switchyard/core/stored.hpp>
#include <switchyard/dispatch/detail/contiguous_rows.hpp>
#include <switchyard/plan/plan.hpp>

#include <algorithm>
#include <cstdint>
#include <utility>

namespace switchyard {
inline namespace SWITCHYARD_TARGET {
namespace detail {

/// G numbers of a row: four, where a register holds as many.
template <class S>
using row_piece = pack<S, (native_width<S> < 4 ? native_width<S> : 4)>;

/// Four numbers as they are stored, to be moved and nothing else.
template <class T>
struct stored_piece {
    static constexpr int width = 4;
    using scalar = T;
    T v[width];

    SWITCHYARD_HD static stored_piece load(const T* p) {
        stored_piece r;
        for (int i = 0; i < width; ++i) {
            r.v[i] = p[i];
        }
        return r;
    }
    SWITCHYARD_HD void store(T* p) const {
        for (int i = 0; i < width; ++i) {
            p[i] = v[i];
        }
    }
    SWITCHYARD_HD void stream(T* p) const { store(p); }
};

/// G pieces of G numbers: rows become columns.
template <class P>
struct square {
    static constexpr int width = P::width;
    P piece[width];

    void transpose() {
        if constexpr (width == 1) {
            return;  // as it is
        }
#if SWITCHYARD_DETAIL_VECTORS && defined(__has_builtin)
#if __has_builtin(__builtin_shufflevector)
        else if constexpr (std::is_arithmetic_v<typename P::scalar> && width == 2) {
            const auto a = piece[0].v;
            const auto b = piece[1].v;
            piece[0].v = __builtin_shufflevector(a, b, 0, 2);
            piece[1].v = __builtin_shufflevector(a, b, 1, 3);
        } else if constexpr (std::is_arithmetic_v<typename P::scalar>) {
            const auto low01 = __builtin_shufflevector(piece[0].v, piece[1].v, 0, 4, 1, 5);
            const auto low23 = __builtin_shufflevector(piece[2].v, piece[3].v, 0, 4, 1, 5);
            const auto high01 = __builtin_shufflevector(piece[0].v, piece[1].v, 2, 6, 3, 7);
            const auto high23 = __builtin_shufflevector(piece[2].v, piece[3].v, 2, 6, 3, 7);
            piece[0].v = __builtin_shufflevector(low01, low23, 0, 1, 4, 5);
            piece[1].v = __builtin_shufflevector(low01, low23, 2, 3, 6, 7);
            piece[2].v = __builtin_shufflevector(high01, high23, 0, 1, 4, 5);
            piece[3].v = __builtin_shufflevector(high01, high23, 2, 3, 6, 7);
        }
#endif
#endif
        else {
            typename P::scalar numbers[width][width];
            for (int i = 0; i < width; ++i) {
                piece[i].store(numbers[i]);
            }
            for (int i = 0; i < width; ++i) {
                for (int j = i + 1; j < width; ++j) {
                    std::swap(numbers[i][j], numbers[j][i]);
                }
            }
            for (int i = 0; i < width; ++i) {
                piece[i] = P::load(numbers[i]);
            }
        }
    }
};

/// G columns of a matrix, the first of them j, as pieces of its rows. Columns beyond the last are zeros, and not
/// written.
template <class P, class T>
class column_group {
  public:
    static constexpr index_t G = P::width;
    using S = typename P::scalar;

    column_group(const matrix_view<T>& m, index_t j)
        : first_(m.data + std::min(j, m.columns) * m.column_stride),
          row_stride_(m.row_stride),
          column_stride_(m.column_stride),
          count_(std::clamp<index_t>(m.columns - j, 0, G)) {}

    /// Rows r .. r + n: n is 1 or G.
    square<P> load(index_t r, index_t n) const {
        square<P> rows;
        if (n == G && row_stride_ == 1 && count_ == G) {
            for (index_t g = 0; g < G; ++g) {
                rows.piece[g] = load_stored<P>(first_ + r + g * column_stride_);
            }
            rows.transpose();
        } else {
            for (index_t g = 0; g < n; ++g) {
                rows.piece[g] = load_row(r + g);
            }
        }
        return rows;
    }

    P load_row(index_t r) const {
        const T* const from = first_ + r * row_stride_;
        if (column_stride_ == 1 && count_ == G) {
            return load_stored<P>(from);
        }
        S numbers[G] = {};
        for (index_t g = 0; g < count_; ++g) {
            numbers[g] = load_number(from[g * column_stride_]);
        }
        return P::load(numbers);
    }

    void store(index_t r, index_t n, square<P>& rows) const {
        if (n == G && row_stride_ == 1 && count_ == G) {
            rows.transpose();
            for (index_t g = 0; g < G; ++g) {
                store_stored(rows.piece[g], first_ + r + g * column_stride_);
            }
        } else {
            for (index_t g = 0; g < n; ++g) {
                store_row(r + g, rows.piece[g]);
            }
        }
    }

    void store_row(index_t r, P piece) const {
        T* const to = first_ + r * row_stride_;
        if (column_stride_ == 1 && count_ == G) {
            store_stored(piece, to);
            return;
        }
        S numbers[G];
        piece.store(numbers);
        for (index_t g = 0; g < count_; ++g) {
            to[g * column_stride_] = store_number(numbers[g]);
        }
    }

    /// Rows that make a cache line of a column.
    static constexpr index_t line = std::max<index_t>(G, 64 / static_cast<index_t>(sizeof(T)));

    /// Whether lines of these columns can be streamed from row r on.
    bool can_stream(index_t r) const {
        const auto bytes = column_stride_ * static_cast<index_t>(sizeof(T));
        return std::is_same_v<S, T> && row_stride_ == 1 && count_ == G && bytes % 64 == 0 &&
               reinterpret_cast<std::uintptr_t>(first_ + r) % 64 == 0;
    }

    /// Rows r .. r + line, column after column past the cache.
    void stream_line(index_t r, square<P>* squares) const {
        for (index_t i = 0; i < line / G; ++i) {
            squares[i].transpose();
        }
        for (index_t g = 0; g < G; ++g) {
            for (index_t i = 0; i < line / G; ++i) {
                stream_stored(squares[i].piece[g], first_ + r + i * G + g * column_stride_);
            }
        }
    }

    /// Calls rows r .. r + n into the cache of this level, 1 or 2. Inlined, since GCC leaves out a call of a function
    /// that does nothing else.
    template <int Level>
    SWITCHYARD_ALWAYS_INLINE void call_in(index_t r, index_t n) const {
#if SWITCHYARD_DETAIL_VECTORS
        const index_t step = row_stride_ == 1 ? line : 1;
        const index_t columns = column_stride_ == 1 ? std::min<index_t>(count_, 1) : count_;
        for (index_t g = 0; g < columns; ++g) {
            const T* const column = first_ + g * column_stride_;
            // The last line is met at n - 1 or a step further.
            for (index_t i = 0; i < n + step - 1; i += step) {
                __builtin_prefetch(column + (r + i) * row_stride_, !std::is_const_v<T>, 4 - Level);
            }
        }
#else
        static_cast<void>(r);
        static_cast<void>(n);
#endif
    }

  private:
    static S load_number(const T& x) {
        if constexpr (std::is_same_v<S, std::remove_const_t<T>>) {
            return x;
        } else {
            return load_as<S>(x);
        }
    }
    static T store_number(S x) {
        if constexpr (std::is_same_v<S, T>) {
            return x;
        } else {
            return store_as<T>(x);
        }
    }

    T* first_;
    index_t row_stride_;
    index_t column_stride_;
    index_t count_;
};

/// f(i, n) for i from `first` to below `last`, n = G at a time and then 1: a constant.
template <index_t G, class F>
SWITCHYARD_ALWAYS_INLINE void for_groups(index_t first, index_t last, const F& f) {
    for (; first + G <= last; first += G) {
        f(first, std::integral_constant<index_t, G>());
    }
    for (; first < last; ++first) {
        f(first, std::integral_constant<index_t, 1>());
    }
}

/// A block of choices, in the order of their rows; dropped ones are left out. At most Most of them.
template <index_t Most>
class rows_of_block {
    static_assert(Most <= 65536);

  public:
    template <class S>
    rows_of_block(const plan_view<S>& plan, index_t first, index_t last) : first_(first) {
        const index_t token = plan.token_of(first);
        std::uint64_t different = 0;
        for (index_t at = first; at < last; ++at) {
            const index_t r = plan.row_of(at);
            if (r >= 0) {
                key_[count_] = static_cast<std::uint64_t>(r) << 16 | static_cast<std::uint64_t>(at - first);
                different |= key_[count_] ^ key_[0];
                ++count_;
            }
        }
        for (int shift = 16; shift < 64; shift += 8) {
            if ((different >> shift & 0xff) != 0) {
                sort_by(shift);
            }
        }
        for (index_t i = 0; i < count_; ++i) {
            choice_[i] = static_cast<std::uint16_t>(key_[i] & 0xffff);
            token_[i] = static_cast<std::uint16_t>(plan.token_of(position(i)) - token);
        }
        for (index_t i = count_; i > 0; --i) {
            const bool goes_on = i < count_ && row(i) == row(i - 1) + 1;
            run_[i - 1] = static_cast<std::uint16_t>(goes_on ? run_[i] + 1 : 1);
        }
    }

    index_t count() const { return count_; }
    index_t row(index_t i) const { return static_cast<index_t>(key_[i] >> 16); }
    /// In the block.
    index_t choice(index_t i) const { return choice_[i]; }
    index_t position(index_t i) const { return first_ + choice(i); }
    /// From the block's first token on.
    index_t token(index_t i) const { return token_[i]; }

    /// f(i, r, n) for choices i .. i + n, whose rows r .. r + n lie one after another: n is a constant, G or 1. Rows
    /// two runs ahead are called into the cache, in each of `columns`.
    template <index_t G, class F, class... Columns>
    void for_each_group(const F& f, const Columns&... columns) const {
        index_t ahead = 0;
        for (index_t i = 0; i < count_;) {
            for (; ahead < count_ && ahead - i < 64; ahead += run_[ahead]) {
                (columns.template call_in<1>(row(ahead), run_[ahead]), ...);
            }
            const index_t last = i + run_[i];
            const index_t behind = row(i) - i;
            for_groups<G>(i, last, [&](index_t first, auto n) { f(first, behind + first, n); });
            i = last;
        }
    }

  private:
    void sort_by(int shift) {
        std::uint64_t sorted[Most];
        std::int32_t start[256] = {};
        for (index_t i = 0; i < count_; ++i) {
            ++start[key_[i] >> shift & 0xff];
        }
        std::int32_t before = 0;
        for (std::int32_t& n : start) {
            before += std::exchange(n, before);
        }
        for (index_t i = 0; i < count_; ++i) {
            sorted[start[key_[i] >> shift & 0xff]++] = key_[i];
        }
        std::copy(sorted, sorted + count_, key_);
    }

    index_t first_;
    index_t count_ = 0;
    std::uint64_t key_[Most];  // row, and choice in the low 16 bits
    std::uint16_t choice_[Most];
    std::uint16_t token_[Most];
    std::uint16_t run_[Most];  // choices from here on whose rows lie one after another
};

/// Choices of a block: what a tile on the stack has room for.
template <class P>
inline constexpr index_t tile_choices = std::min<index_t>(2048, 32768 / static_cast<index_t>(sizeof(P)));

/// f(first, last) for blocks of at most `most` of all choices.
template <class Policy, class S, class F>
void for_each_block_of_choices(const Policy& policy, const plan_view<S>& plan, index_t most, const F& f) {
    const index_t choices = plan.tokens * plan.choices;
    policy.parallel_for((choices + most - 1) / most,
                        [&](index_t b) { f(b * most, std::min(choices, (b + 1) * most)); });
}

/// Tokens first .. first + n as pieces, `next` being called into the cache meanwhile.
template <class P, class T>
void load_tokens(const column_group<P, T>& from, const column_group<P, T>& next, index_t first, index_t n, P* tile) {
    for_groups<P::width>(0, n, [&](index_t t, auto rows) {
        if (t % column_group<P, T>::line == 0) {
            next.template call_in<2>(first + t, 1);
        }
        const square<P> loaded = from.load(first + t, rows);
        for (index_t g = 0; g < rows; ++g) {
            tile[t + g] = loaded.piece[g];
        }
    });
}

/// gather_rows, in pieces P.
template <class P, class Policy, class S, class In, class Out>
void gather_tiles(const Policy& policy, const plan_view<S>& plan, bool weigh, const matrix_view<const In>& in,
                  const matrix_view<Out>& out) {
    constexpr index_t most = tile_choices<P>;
    for_each_block_of_choices(policy, plan, most, [&](index_t first, index_t last) {
        const rows_of_block<most> rows(plan, first, last);
        const index_t token = plan.token_of(first);
        const index_t tokens = plan.token_of(last - 1) + 1 - token;
        alignas(64) P tile[most];
        for (index_t j = 0; j < in.columns; j += P::width) {
            load_tokens<P, const In>({in, j}, {in, j + P::width}, token, tokens, tile);
            const column_group<P, Out> to(out, j);
            rows.template for_each_group<P::width>(
                [&](index_t i, index_t r, auto n) {
                    square<P> moved;
                    for (index_t g = 0; g < n; ++g) {
                        moved.piece[g] = tile[rows.token(i + g)];
                        if constexpr (std::is_floating_point_v<typename P::scalar>) {
                            if (weigh) {
                                const auto gate = static_cast<typename P::scalar>(plan.gate[rows.position(i + g)]);
                                moved.piece[g] = moved.piece[g] * P::all(gate);
                            }
                        }
                    }
                    to.store(r, n, moved);
                },
                to);
        }
    });
}

/// sum_rows.
template <class Policy, class S, class In, class Out>
void sum_tiles(const Policy& policy, const plan_view<S>& plan, bool weigh, bool accumulate, bool stream,
               const matrix_view<const In>& in, const matrix_view<Out>& out) {
    using C = compute_t<Out>;
    using P = row_piece<C>;
    using group = column_group<P, Out>;
    constexpr index_t most = tile_choices<P>;
    for_each_block_of_choices(policy, plan, most / plan.choices * plan.choices, [&](index_t first, index_t last) {
        const rows_of_block<most> rows(plan, first, last);
        const index_t token = plan.token_of(first);
        const index_t choices = plan.choices;
        const index_t tokens = (last - first) / choices;
        // A dropped choice adds -0, which changes no number; it makes a token without rows 0.
        alignas(64) P tile[most];
        C weight[most];
        for (index_t t = 0; t < tokens; ++t) {
            bool none = !accumulate;
            for (index_t i = (t + 1) * plan.choices; i-- > t * plan.choices;) {
                const bool kept = plan.slot[first + i] >= 0;
                none = none && !kept;
                tile[i] = P::all(none && i == t * plan.choices ? C(0) : -C(0));
                weight[i] = kept && weigh ? static_cast<C>(plan.gate[first + i]) : C(1);
            }
        }
        for (index_t j = 0; j < out.columns; j += P::width) {
            const column_group<P, const In> from(in, j);
            rows.template for_each_group<P::width>(
                [&](index_t i, index_t r, auto n) {
                    const square<P> loaded = from.load(r, n);
                    for (index_t g = 0; g < n; ++g) {
                        tile[rows.choice(i + g)] = loaded.piece[g];
                    }
                },
                from);
            const group to(out, j);
            const auto sum_tokens = [&](index_t t, auto n, square<P>& sum) {
                if (accumulate) {
                    sum = to.load(token + t, n);
                }
                for (index_t g = 0; g < n; ++g) {
                    const P* const number = tile + (t + g) * choices;
                    const C* const factor = weight + (t + g) * choices;
                    P of_token = P::all(*factor) * *number;
                    if (accumulate) {
                        of_token = multiply_add(P::all(*factor), *number, sum.piece[g]);
                    }
                    for (index_t c = 1; c < choices; ++c) {
                        of_token = multiply_add(P::all(factor[c]), number[c], of_token);
                    }
                    sum.piece[g] = of_token;
                }
            };
            index_t t = 0;
            for (; stream && t + group::line <= tokens && to.can_stream(token + t); t += group::line) {
                square<P> line[group::line / P::width];  // filled in place: a copy would wait for its parts
                for (index_t i = 0; i < group::line / P::width; ++i) {
                    sum_tokens(t + i * P::width, std::integral_constant<index_t, P::width>(), line[i]);
                }
                to.stream_line(token + t, line);
            }
            for_groups<P::width>(t, tokens, [&](index_t i, auto n) {
                square<P> sum;
                sum_tokens(i, n, sum);
                to.store(token + i, n, sum);
            });
        }
        if (stream) {
            finish_streaming();
        }
    });
}

/// sum_rows for more choices than a tile has room for.
template <class Policy, class S, class In, class Out>
void sum_elements(const Policy& policy, const plan_view<S>& plan, bool weigh, bool accumulate,
                  const matrix_view<const In>& in, const matrix_view<Out>& out) {
    using C = compute_t<Out>;
    using P = pack<C, 1>;
    policy.parallel_for(plan.tokens, [&](index_t token) {
        for (index_t j = 0; j < out.columns; ++j) {
            P sum = accumulate ? P::all(load_scalar(out(token, j))) : P::all(C(0));
            bool started = accumulate;
            for (index_t position = token * plan.choices; position < (token + 1) * plan.choices; ++position) {
                const index_t r = plan.row_of(position);
                if (r >= 0) {
                    const P weight = P::all(weigh ? static_cast<C>(plan.gate[position]) : C(1));
                    const P number = P::all(load_as<C>(in(r, j)));
                    sum = started ? multiply_add(weight, number, sum) : weight * number;
                    started = true;
                }
            }
            out(token, j) = store_scalar<Out>(sum.v);
        }
    });
}

/// Sums of products whose columns come in any order, in the order of `dot`: that is a binary tree over 4 W / G leaves,
/// a leaf being G lanes of one of four partial sums. Leaves come from left to right, so that few sums wait for their
/// other half: those of one level of the tree each.
template <class C>
struct dot_tree {
    using P = row_piece<C>;
    static constexpr index_t G = P::width;
    static constexpr index_t W = native_width<C>;
    static constexpr index_t parts = W / G;  ///< pieces of a pack
    static constexpr index_t leaves = 4 * parts;
    static constexpr index_t most_waiting = leaves == 16 ? 5 : leaves == 8 ? 4 : 3;
    static_assert(parts == 1 || parts == 2 || parts == 4);

    /// f(j) for the columns j .. j + G of a leaf. Those of a last pack that is not full may lie beyond the last column.
    template <class F>
    static void for_each_column(index_t leaf, index_t columns, const F& f) {
        // Packs are folded in halves: piece 2 is added to 0, and 3 to 1, before the rest.
        const index_t part = leaf / 4;
        const index_t first = (parts == 4 ? part % 2 * 2 + part / 2 : part) * G;
        const index_t whole = columns / (4 * W) * (4 * W);
        for (index_t j = leaf % 4 * W; j < whole; j += 4 * W) {
            f(j + first);
        }
        for (index_t j = whole; leaf % 4 == 0 && j < columns; j += W) {
            f(j + first);
        }
    }
};

/// d_gate[t, c] = rows[row of (t, c)] . tokens[t], and 0 for dropped choices. With `out`, out[r] = gate * tokens[token
/// of r] as well: each number of `rows` is read before the one of `out` in its place is written.
template <class Policy, class S, class A, class B, class Out, class D>
void dot_tiles(const Policy& policy, const plan_view<S>& plan, const matrix_view<const A>& rows,
               const matrix_view<const B>& tokens, const matrix_view<Out>* out, const matrix_view<D>& d_gates) {
    using C = compute_t<A>;
    using P = row_piece<C>;
    using tree = dot_tree<C>;
    constexpr index_t most = tile_choices<P> / 4;
    for_each_block_of_choices(policy, plan, most, [&](index_t first, index_t last) {
        const rows_of_block<most> kept(plan, first, last);
        const index_t token = plan.token_of(first);
        const index_t token_count = plan.token_of(last - 1) + 1 - token;
        alignas(64) P tile[most];
        alignas(64) P sums[tree::most_waiting][most];
        index_t waiting = 0;
        for (index_t leaf = 0; leaf < tree::leaves; ++leaf, ++waiting) {
            P* const sum = sums[waiting];
            std::fill(sum, sum + kept.count(), P::all(C(0)));
            tree::for_each_column(leaf, tokens.columns, [&](index_t j) {
                load_tokens<P, const B>({tokens, j}, {tokens, j + 4 * tree::W}, token, token_count, tile);
                const column_group<P, const A> from(rows, j);
                const column_group<P, Out> to(out != nullptr ? *out : matrix_view<Out>(), j);
                kept.template for_each_group<P::width>(
                    [&](index_t i, index_t r, auto n) {
                        const square<P> row = from.load(r, n);
                        square<P> scaled;
                        for (index_t g = 0; g < n; ++g) {
                            const P number = tile[kept.token(i + g)];
                            sum[i + g] = multiply_add(row.piece[g], number, sum[i + g]);
                            if (out != nullptr) {
                                scaled.piece[g] = number * P::all(static_cast<C>(plan.gate[kept.position(i + g)]));
                            }
                        }
                        if (out != nullptr) {
                            to.store(r, n, scaled);
                        }
                    },
                    from, to);
            });
            for (index_t pair = leaf; pair % 2 == 1; pair /= 2, --waiting) {
                for (index_t i = 0; i < kept.count(); ++i) {
                    sums[waiting - 1][i] = sums[waiting - 1][i] + sums[waiting][i];
                }
            }
        }
        for (index_t position = first; position < last; ++position) {
            if (plan.slot[position] < 0) {
                d_gates(position / plan.choices, position % plan.choices) = store_scalar<D>(compute_t<D>(0));
            }
        }
        for (index_t i = 0; i < kept.count(); ++i) {
            const index_t position = kept.position(i);
            d_gates(position / plan.choices, position % plan.choices) = store_as<D>(total(sums[0][i]));
        }
    });
}

}  // namespace detail
}  // namespace SWITCHYARD_TARGET
}  // namespace switchyard
