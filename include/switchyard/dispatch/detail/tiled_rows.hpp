// Rows whose numbers do not lie side by side, such as those of a column-major matrix: moved in tiles on the stack.
//
// A block of choices in token order is moved G columns at a time. Between the tokens' side and the rows' side lies the
// tile: G numbers of each token or choice, side by side. Tokens are visited in order, and rows in theirs: an expert's
// rows lie together, so that most of a cache line of a column is used in one visit. Either side is read and written in
// boxes of L rows x G columns, L being what a register holds. Where columns are contiguous, a box is G registers, which
// are transposed.
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

#if SWITCHYARD_DETAIL_VECTORS && defined(__has_builtin)
#if __has_builtin(__builtin_shufflevector)
#define SWITCHYARD_DETAIL_SHUFFLES 1
#endif
#endif
#ifndef SWITCHYARD_DETAIL_SHUFFLES
#define SWITCHYARD_DETAIL_SHUFFLES 0
#endif

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wsign-conversion"  // g++'s remark on arrays whose length is an int of the template
#endif

namespace switchyard {
inline namespace SWITCHYARD_TARGET {
namespace detail {

/// Numbers as they are stored, to be moved and nothing else.
template <class T>
struct stored_piece {
    static constexpr int width = 8;
    using scalar = T;
    T v[width];

    SWITCHYARD_HD static stored_piece load(const T* p) { return load_first(p, width, T()); }
    SWITCHYARD_HD static stored_piece load_first(const T* p, index_t n, const T& fill) {
        stored_piece r;
        for (int i = 0; i < width; ++i) {
            r.v[i] = i < n ? p[i] : fill;
        }
        return r;
    }
    SWITCHYARD_HD void store(T* p) const { store_first(p, width); }
    SWITCHYARD_HD void stream(T* p) const { store(p); }
    SWITCHYARD_HD void store_first(T* p, index_t n) const {
        for (int i = 0; i < width && i < n; ++i) {
            p[i] = v[i];
        }
    }
};

/// G registers, counted by an index_t.
template <class P, std::size_t G>
struct registers {
    P each[G];

    SWITCHYARD_ALWAYS_INLINE constexpr P& operator[](index_t i) { return each[i]; }
    SWITCHYARD_ALWAYS_INLINE constexpr const P& operator[](index_t i) const { return each[i]; }
};

/// The registers of a box: `column` has L numbers of a column, and `piece` G numbers of a row. G columns are to have
/// room in the ways of a cache, since their lines share a set where columns are a power of two apart.
template <class Column, int G>
struct box_of {
    using scalar = typename Column::scalar;
    using column = Column;
    using piece = std::conditional_t<G == Column::width, Column, pack<scalar, G>>;
    using columns = registers<Column, G>;
    static constexpr index_t height = Column::width;
    static constexpr index_t width = G;
};
template <class S>
using numbers_box = box_of<wide<S>, (native_width<S> >= 8 ? native_width<S> / 2 : native_width<S>)>;
template <class T>
using stored_box = box_of<stored_piece<T>, stored_piece<T>::width>;

constexpr int logarithm(index_t power_of_two) { return power_of_two == 1 ? 0 : 1 + logarithm(power_of_two / 2); }

#if SWITCHYARD_DETAIL_SHUFFLES
/// As many rounds, each of which interleaves register i with register i + G / 2. log2 G rounds make rows of columns,
/// one after another as they fill the registers. log2 L more rounds make columns of them again.
template <int Rounds, class P, std::size_t G, std::size_t... Pair, std::size_t... Lane>
SWITCHYARD_ALWAYS_INLINE registers<P, G> interleaved(const registers<P, G>& from, std::index_sequence<Pair...> pairs,
                                                     std::index_sequence<Lane...> lanes) {
    constexpr auto L = sizeof...(Lane);
    registers<P, G> to;
    ((to[2 * Pair].v = __builtin_shufflevector(from[Pair].v, from[Pair + G / 2].v, (Lane / 2 + Lane % 2 * L)...),
      to[2 * Pair + 1].v =
          __builtin_shufflevector(from[Pair].v, from[Pair + G / 2].v, (L / 2 + Lane / 2 + Lane % 2 * L)...)),
     ...);
    if constexpr (Rounds > 1) {
        return interleaved<Rounds - 1>(to, pairs, lanes);
    } else {
        return to;
    }
}

template <class P, std::size_t... Lane>
SWITCHYARD_ALWAYS_INLINE wide<typename P::scalar> joined(P a, P b, std::index_sequence<Lane...>) {
    return {__builtin_shufflevector(a.v, b.v, Lane...)};
}
#endif

template <class Box>
inline constexpr bool shuffles =
    SWITCHYARD_DETAIL_SHUFFLES&& Box::width > 1 && std::is_floating_point_v<typename Box::scalar>;

/// Columns become rows, or, with Back, rows columns.
template <class Box, bool Back>
SWITCHYARD_ALWAYS_INLINE void transpose(typename Box::columns& box) {
    constexpr index_t L = Box::height;
    constexpr index_t G = Box::width;
#if SWITCHYARD_DETAIL_SHUFFLES
    if constexpr (shuffles<Box>) {
        box =
            interleaved<logarithm(Back ? L : G)>(box, std::make_index_sequence<G / 2>(), std::make_index_sequence<L>());
        return;
    }
#endif
    typename Box::scalar from[L * G], to[L * G];
    for (index_t g = 0; g < G; ++g) {
        box[g].store(from + g * L);
    }
    for (index_t i = 0; i < L * G; ++i) {
        to[i] = Back ? from[i % L * G + i / L] : from[i % G * L + i / G];
    }
    for (index_t g = 0; g < G; ++g) {
        box[g] = Box::column::load(to + g * L);
    }
}

/// The rows f(0) .. f(L) as a box.
template <class Box, class F>
SWITCHYARD_ALWAYS_INLINE typename Box::columns box_of_rows(const F& f) {
    typename Box::columns box;
    if constexpr (Box::height == Box::width) {
        for (index_t i = 0; i < Box::height; ++i) {
            box[i] = f(i);
        }
#if SWITCHYARD_DETAIL_SHUFFLES
    } else if constexpr (shuffles<Box> && Box::height == 2 * Box::width) {
        for (index_t i = 0; i < Box::width; ++i) {
            box[i] = joined(f(2 * i), f(2 * i + 1), std::make_index_sequence<Box::height>());
        }
#endif
    } else {
        typename Box::scalar numbers[Box::height * Box::width];
        for (index_t i = 0; i < Box::height; ++i) {
            f(i).store(numbers + i * Box::width);
        }
        for (index_t i = 0; i < Box::width; ++i) {
            box[i] = Box::column::load(numbers + i * Box::height);
        }
    }
    return box;
}

/// Rows r .. r + n of a matrix, 1 <= n <= L, and of these the columns j .. j + G, row after row: zeros beyond the last
/// column, anything beyond row n.
template <class Box, class T>
SWITCHYARD_ALWAYS_INLINE void load_box(const matrix_view<const T>& m, index_t r, index_t n, index_t j,
                                       typename Box::scalar* to) {
    constexpr index_t L = Box::height;
    constexpr index_t G = Box::width;
    using column = typename Box::column;
    const index_t columns = std::min(G, m.columns - j);
    const T* const from = m.data + r * m.row_stride + j * m.column_stride;
    if (m.row_stride == 1) {
        typename Box::columns box;
        if (n == L && columns == G) {
            for (index_t g = 0; g < G; ++g) {
                box[g] = load_stored<column>(from + g * m.column_stride);
            }
        } else {
            for (index_t g = 0; g < G; ++g) {
                box[g] = g < columns ? load_first_stored<column>(from + g * m.column_stride, n) : column{};
            }
        }
        transpose<Box, false>(box);
        for (index_t g = 0; g < G; ++g) {
            box[g].store(to + g * L);
        }
        return;
    }
    for (index_t i = 0; i < n; ++i) {
        const T* row = from + i * m.row_stride;
        T numbers[G] = {};
        if (m.column_stride != 1) {
            for (index_t g = 0; g < columns; ++g) {
                numbers[g] = row[g * m.column_stride];
            }
            row = numbers;
        }
        load_first_stored<typename Box::piece>(row, columns).store(to + i * G);
    }
}

/// And back. `stream`: by non-temporal stores where a register is a whole line of it.
template <class Box, class T>
SWITCHYARD_ALWAYS_INLINE void store_box(typename Box::columns box, const matrix_view<T>& m, index_t r, index_t n,
                                        index_t j, bool stream) {
    constexpr index_t L = Box::height;
    constexpr index_t G = Box::width;
    const index_t columns = std::min(G, m.columns - j);
    T* const to = m.data + r * m.row_stride + j * m.column_stride;
    if (m.row_stride == 1) {
        transpose<Box, true>(box);
        if (n < L || columns < G) {
            for (index_t g = 0; g < columns; ++g) {
                store_first_stored(box[g], to + g * m.column_stride, n);
            }
        } else if (L * sizeof(T) == 64 && stream && reinterpret_cast<std::uintptr_t>(to) % 64 == 0 &&
                   m.column_stride % L == 0) {
            for (index_t g = 0; g < G; ++g) {
                stream_stored(box[g], to + g * m.column_stride);
            }
        } else {
            for (index_t g = 0; g < G; ++g) {
                store_stored(box[g], to + g * m.column_stride);
            }
        }
        return;
    }
    typename Box::scalar rows[L * G];
    for (index_t g = 0; g < G; ++g) {
        box[g].store(rows + g * L);
    }
    for (index_t i = 0; i < n; ++i) {
        T* const row = to + i * m.row_stride;
        const auto piece = Box::piece::load(rows + i * G);
        if (m.column_stride == 1) {
            store_first_stored(piece, row, columns);
            continue;
        }
        T numbers[G];
        store_stored(piece, numbers);
        for (index_t g = 0; g < columns; ++g) {
            row[g * m.column_stride] = numbers[g];
        }
    }
}

/// Choices ahead of the group in work whose boxes are called into the second-level cache.
inline constexpr index_t choices_ahead = 64;

/// Calls a box into the cache.
template <class Box, class T>
SWITCHYARD_ALWAYS_INLINE void call_box_in([[maybe_unused]] const matrix_view<T>& m, [[maybe_unused]] index_t r,
                                          [[maybe_unused]] index_t n, [[maybe_unused]] index_t j) {
#if SWITCHYARD_DETAIL_VECTORS
    const bool by_columns = m.row_stride == 1;
    const index_t lines = by_columns ? std::min(Box::width, m.columns - j) : n;
    const index_t step = by_columns ? m.column_stride : m.row_stride;
    const T* const from = m.data + r * m.row_stride + j * m.column_stride;
    for (index_t i = 0; i < lines; ++i) {
        __builtin_prefetch(from + i * step, !std::is_const_v<T>, 2);
    }
#endif
}

/// Rows that follow each other.
struct group_of_rows {
    index_t row;
    index_t first, count;  ///< among the choices of a block
};

/// A block of choices in the order of their rows, dropped ones left out, in groups of at most L rows that follow each
/// other: those of a cache line of a column, where the matrix begins with one.
template <index_t Most, index_t L>
class rows_of_block {
    static_assert(Most <= 32768 && L < 256);

  public:
    template <class S>
    rows_of_block(const plan_view<S>& plan, index_t first, index_t last)
        : first_token(plan.token_of(first)), tokens(plan.token_of(last - 1) + 1 - first_token) {
        std::uint64_t different = 0;
        for (index_t at = first; at < last; ++at) {
            const index_t r = plan.row_of(at);
            if (r >= 0) {
                key_[count] = static_cast<std::uint64_t>(r) << 16 | static_cast<std::uint64_t>(at - first);
                different |= key_[count] ^ key_[0];
                ++count;
            }
        }
        for (int shift = 16; shift < 64; shift += 8) {
            if ((different >> shift & 0xff) != 0) {
                sort_by(shift);
            }
        }
        for (index_t i = count; i-- > 0;) {
            choice[i] = static_cast<std::uint16_t>(key_[i] & 0xffff);
            token[i] = static_cast<std::uint16_t>(plan.token_of(first + choice[i]) - first_token);
            const bool goes_on = i + 1 < count && row(i + 1) == row(i) + 1 && row(i + 1) % L != 0;
            group_[i] = static_cast<std::uint8_t>(goes_on ? group_[i + 1] + 1 : 1);
        }
    }

    index_t first_token, tokens;
    index_t count = 0;
    std::uint16_t choice[Most];          ///< in the block
    std::uint16_t token[Most + L] = {};  ///< from the block's first on; L can be read from each group on

    /// f(group), group after group. Those to come are called into the cache in m's columns j on, but not what is
    /// streamed.
    template <class Box, class T, class F>
    SWITCHYARD_ALWAYS_INLINE void for_each_group(const matrix_view<T>& m, index_t j, bool stream, const F& f) const {
        index_t ahead = 0;
        for (index_t i = 0; i < count; i += group_[i]) {
            for (; ahead < count && ahead - i < choices_ahead; ahead += group_[ahead]) {
                if (!stream || group_[ahead] != L) {
                    call_box_in<Box>(m, row(ahead), group_[ahead], j);
                }
            }
            f(group_of_rows{row(i), i, group_[i]});
        }
    }

  private:
    index_t row(index_t i) const { return static_cast<index_t>(key_[i] >> 16); }

    void sort_by(int shift) {
        std::uint64_t sorted[Most];
        std::int32_t start[256] = {};
        for (index_t i = 0; i < count; ++i) {
            ++start[key_[i] >> shift & 0xff];
        }
        std::int32_t before = 0;
        for (std::int32_t& n : start) {
            before += std::exchange(n, before);
        }
        for (index_t i = 0; i < count; ++i) {
            sorted[start[key_[i] >> shift & 0xff]++] = key_[i];
        }
        std::copy(sorted, sorted + count, key_);
    }

    std::uint64_t key_[Most];  // row, and choice in the low 16 bits
    std::uint8_t group_[Most];
};

/// Choices of a block: what a tile of so many KiB has room for.
template <class Box, index_t KiB = 128>
inline constexpr index_t choices_a_tile =
    std::min<index_t>(8192, KiB * 1024 / (Box::width * static_cast<index_t>(sizeof(typename Box::scalar))));

/// f(first position, rows of the block) for blocks of at most Most choices, which `each` divides.
template <index_t Most, index_t L, class Policy, class S, class F>
void for_each_block_of_choices(const Policy& policy, const plan_view<S>& plan, index_t each, const F& f) {
    const index_t choices = plan.tokens * plan.choices;
    const index_t block = Most / each * each;
    policy.parallel_for((choices + block - 1) / block, [&](index_t b) {
        f(b * block, rows_of_block<Most, L>(plan, b * block, std::min(choices, (b + 1) * block)));
        finish_streaming();
    });
}

/// The block's tokens into the tile.
template <class Box, class Rows, class T>
SWITCHYARD_ALWAYS_INLINE void load_tokens(const matrix_view<const T>& from, const Rows& rows, index_t j,
                                          typename Box::scalar* tile) {
    for (index_t t = 0; t < rows.tokens; t += Box::height) {
        load_box<Box>(from, rows.first_token + t, std::min(Box::height, rows.tokens - t), j, tile + t * Box::width);
    }
}

/// gather_rows, in boxes of numbers or of what they are stored as.
template <class Box, class Policy, class S, class In, class Out>
void gather_tiles(const Policy& policy, const plan_view<S>& plan, bool weigh, bool stream,
                  const matrix_view<const In>& in, const matrix_view<Out>& out) {
    using C = typename Box::scalar;
    using P = typename Box::piece;
    constexpr index_t G = Box::width;
    // An expert's rows of a block begin and end within a line: larger blocks have fewer of these.
    constexpr index_t most = choices_a_tile<Box, 256>;
    constexpr index_t room = (most + Box::height) * G;
    using rows_type = rows_of_block<most, Box::height>;
    for_each_block_of_choices<most, Box::height>(policy, plan, 1, [&](index_t first, const rows_type& rows) {
        alignas(64) C tile[room];
        for (index_t j = 0; j < in.columns; j += G) {
            load_tokens<Box>(in, rows, j, tile);
            rows.template for_each_group<Box>(out, j, stream, [&](const group_of_rows& group) {
                const std::uint16_t* const token = rows.token + group.first;
                if (in.row_stride == 1 && j + G < in.columns) {
                    const index_t t = group.first * rows.tokens / rows.count;
                    call_box_in<Box>(in, rows.first_token + t, 1, j + G);
                }
                const auto row = [&](index_t i) { return P::load(tile + token[i] * G); };
                const auto weighed = [&](index_t i) {
                    if constexpr (std::is_floating_point_v<C>) {
                        const index_t position = first + rows.choice[group.first + std::min(i, group.count - 1)];
                        return row(i) * P::all(static_cast<C>(plan.gate[position]));
                    } else {
                        return row(i);
                    }
                };
                store_box<Box>(weigh ? box_of_rows<Box>(weighed) : box_of_rows<Box>(row), out, group.row, group.count,
                               j, stream);
            });
        }
    });
}

/// sum_rows, of at most choices_a_tile<Box> choices per token.
template <class Box, class Policy, class S, class In, class Out>
void sum_tiles(const Policy& policy, const plan_view<S>& plan, bool weigh, bool accumulate, bool stream,
               const matrix_view<const In>& in, const matrix_view<Out>& out) {
    using C = typename Box::scalar;
    using P = typename Box::piece;
    constexpr index_t G = Box::width;
    constexpr index_t L = Box::height;
    constexpr index_t square = L * G;
    constexpr index_t most = choices_a_tile<Box>;
    constexpr index_t room = (most + Box::height) * G;
    using rows_type = rows_of_block<most, Box::height>;
    for_each_block_of_choices<most, Box::height>(policy, plan, plan.choices, [&](index_t first, const rows_type& rows) {
        // A dropped choice adds -0, which changes no number; it makes a token without rows 0.
        alignas(64) C tile[room];
        C weight[most];
        for (index_t t = 0; t < rows.tokens; ++t) {
            bool none = !accumulate;
            for (index_t i = (t + 1) * plan.choices; i-- > t * plan.choices;) {
                const bool kept = plan.slot[first + i] >= 0;
                none = none && !kept;
                P::all(none && i == t * plan.choices ? C(0) : -C(0)).store(tile + i * G);
                weight[i] = kept && weigh ? static_cast<C>(plan.gate[first + i]) : C(1);
            }
        }
        for (index_t j = 0; j < out.columns; j += G) {
            rows.template for_each_group<Box>(in, j, false, [&](const group_of_rows& group) {
                alignas(64) C box[square];
                load_box<Box>(in, group.row, group.count, j, box);
                for (index_t i = 0; i < group.count; ++i) {
                    P::load(box + i * G).store(tile + rows.choice[group.first + i] * G);
                }
            });
            for (index_t t = 0; t < rows.tokens; t += L) {
                const index_t n = std::min(L, rows.tokens - t);
                alignas(64) C before[square];
                if (accumulate) {
                    load_box<Box>(const_view(out), rows.first_token + t, n, j, before);
                }
                const auto sum = [&](index_t i) {
                    if (i >= n) {
                        return P{};
                    }
                    const C* const number = tile + (t + i) * plan.choices * G;
                    const C* const factor = weight + (t + i) * plan.choices;
                    const P first_number = P::load(number);
                    P total = accumulate ? multiply_add(P::all(*factor), first_number, P::load(before + i * G))
                                         : P::all(*factor) * first_number;
                    for (index_t c = 1; c < plan.choices; ++c) {
                        total = multiply_add(P::all(factor[c]), P::load(number + c * G), total);
                    }
                    return total;
                };
                store_box<Box>(box_of_rows<Box>(sum), out, rows.first_token + t, n, j, stream);
            }
        }
    });
}

/// sum_rows, of any number of choices.
template <class Box, class Policy, class S, class In, class Out>
void sum_pieces(const Policy& policy, const plan_view<S>& plan, bool weigh, bool accumulate,
                const matrix_view<const In>& in, const matrix_view<Out>& out) {
    using C = typename Box::scalar;
    using P = typename Box::piece;
    policy.parallel_for(plan.tokens, [&](index_t token) {
        for (index_t j = 0; j < out.columns; j += Box::width) {
            C box[Box::height * Box::width] = {};
            if (accumulate) {
                load_box<Box>(const_view(out), token, 1, j, box);
            }
            P sum = P::load(box);
            bool started = accumulate;
            for (index_t position = token * plan.choices; position < (token + 1) * plan.choices; ++position) {
                const index_t r = plan.row_of(position);
                if (r >= 0) {
                    const P weight = P::all(weigh ? static_cast<C>(plan.gate[position]) : C(1));
                    load_box<Box>(in, r, 1, j, box);
                    sum = started ? multiply_add(weight, P::load(box), sum) : weight * P::load(box);
                    started = true;
                }
            }
            store_box<Box>(box_of_rows<Box>([=](index_t) { return sum; }), out, token, 1, j, false);
        }
    });
}

/// dot_rows: the four partial sums of `dot`, one after another, and each added to the one before where `dot` does.
template <class Box, class Policy, class S, class A, class B, class D>
void dot_tiles(const Policy& policy, const plan_view<S>& plan, const matrix_view<const A>& a,
               const matrix_view<const B>& tokens, const matrix_view<D>& d_gates) {
    using C = typename Box::scalar;
    using P = typename Box::piece;
    constexpr index_t G = Box::width;
    constexpr index_t L = Box::height;
    constexpr index_t square = L * G;
    constexpr index_t most = choices_a_tile<Box> / 2;
    constexpr index_t room = (most + Box::height) * G;
    using rows_type = rows_of_block<most, Box::height>;
    for_each_block_of_choices<most, Box::height>(policy, plan, 1, [&](index_t first, const rows_type& rows) {
        alignas(64) C tile[room];
        alignas(64) C sums[4][room];
        const auto add = [&](C* sum, index_t j) {
            load_tokens<Box>(tokens, rows, j, tile);
            rows.template for_each_group<Box>(a, j, false, [&](const group_of_rows& group) {
                alignas(64) C box[square];
                load_box<Box>(a, group.row, group.count, j, box);
                for (index_t i = 0; i < group.count; ++i) {
                    C* const at = sum + (group.first + i) * G;
                    const P number = P::load(tile + rows.token[group.first + i] * G);
                    multiply_add(P::load(box + i * G), number, P::load(at)).store(at);
                }
            });
        };
        const auto fold = [&](index_t from) {
            for (index_t i = 0; i < rows.count * G; ++i) {
                sums[from - 1][i] += sums[from][i];
            }
        };
        const index_t whole = tokens.columns / (4 * L) * (4 * L);
        // A register's halves are added first.
        for (index_t lane = 0; lane < L; lane += G) {
            const index_t base = lane / G;
            for (index_t part = 0; part < 4; ++part) {
                C* const sum = sums[base + part - part / 2];
                std::fill(sum, sum + rows.count * G, C(0));
                for (index_t j = lane + part * L; j < whole; j += 4 * L) {
                    add(sum, j);
                }
                for (index_t j = lane + whole; part == 0 && j < tokens.columns; j += L) {
                    add(sum, j);
                }
                if (part % 2 == 1) {
                    fold(base + part - part / 2);
                }
            }
            fold(base + 1);
        }
        if (L > G) {
            fold(1);
        }
        const auto d_gate = [&](index_t position) -> D& {
            return d_gates(position / plan.choices, position % plan.choices);
        };
        const index_t last = std::min(plan.tokens * plan.choices, first + most);
        for (index_t position = first; position < last; ++position) {
            if (plan.slot[position] < 0) {
                d_gate(position) = store_scalar<D>(compute_t<D>(0));
            }
        }
        for (index_t i = 0; i < rows.count; ++i) {
            d_gate(first + rows.choice[i]) = store_as<D>(total(P::load(sums[0] + i * G)));
        }
    });
}

}  // namespace detail
}  // namespace SWITCHYARD_TARGET
}  // namespace switchyard

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic pop
#endif
