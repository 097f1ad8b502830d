// A row in the registers of a lane group (backend/lane_group.hpp).
//
// A thread holds V numbers of the row: V / piece pieces of neighbouring columns, each piece `size` pieces after the one
// before, so that a group reads neighbouring pieces together. Its numbers rise in column. Columns beyond the row count
// as -infinity. Rows are read 16 bytes at a time where they lie so, number by number elsewhere; each number once.
//
// Noise takes registers even where it is off, so kernels with and without it (`IsNoisy`) are two.
#pragma once

#include <switchyard/backend/kernel.hpp>
#include <switchyard/backend/lane_group.hpp>
#include <switchyard/core/config.hpp>
#include <switchyard/core/matrix_view.hpp>
#include <switchyard/core/scalar_traits.hpp>
#include <switchyard/router/routing.hpp>
#include <switchyard/score/noise.hpp>
#include <switchyard/score/select.hpp>

#include <cstdint>

namespace switchyard {
inline namespace SWITCHYARD_TARGET {
namespace detail {

/// The columns of a row of E numbers, stored as `Storage`, that one thread of its group holds.
template <class Storage, int V>
struct row_pieces {
    static constexpr int vector = widest_vector<Storage> < V ? widest_vector<Storage> : V;  ///< numbers of an access
    static constexpr int piece = vector < 4 ? 4 : vector;  ///< whole groups of four columns: they share noise words
    static_assert(V % piece == 0 && V <= 32);

    int rank;
    int size_bits;  ///< log2 of the group's size
    int columns;    ///< E

    SWITCHYARD_HD int column(int j) const { return (((j / piece) << size_bits) + rank) * piece + j % piece; }
    SWITCHYARD_HD bool holds(int j) const { return column(j) < columns; }

    /// Bit j is set where the j-th number lies within the row.
    SWITCHYARD_DEVICE std::uint32_t held() const {
        std::uint32_t bits = 0;
        unrolled<V>([&](int j) { bits |= holds(j) ? 1u << j : 0u; });
        return bits;
    }
    /// The bit of a column, 0 where another thread has it.
    SWITCHYARD_HD std::uint32_t bit_of(std::int32_t at) const {
        const int whole = at / piece;
        const int owner = whole & ((1 << size_bits) - 1);
        return owner == rank ? 1u << ((whole >> size_bits) * piece + at % piece) : 0u;
    }
};

/// Rows that can be read, or written, N numbers at a time.
template <int N, class T, class Space>
bool has_vectors(const matrix_view<T, Space>& m) {
    return m.column_stride == 1 && m.columns % N == 0 && m.row_stride % N == 0 &&
           reinterpret_cast<std::uintptr_t>(m.data) % (N * sizeof(T)) == 0;
}

/// A thread's numbers of a row.
template <class Storage, int V, class Here, class Space>
SWITCHYARD_DEVICE void load_pieces(Here& here, const matrix_view<const Storage, Space>& from, bool in_vectors,
                                   index_t row, const row_pieces<Storage, V>& mine, Storage (&numbers)[V]) {
    constexpr int N = row_pieces<Storage, V>::vector;
    const Storage* const start = from.row(row);
    unrolled<V / N>([&](int i) {
        const int first = mine.column(i * N);
        if (in_vectors) {
            if (first < mine.columns) {
                const auto together = here.template load_vector<N>(start + first);
                unrolled<N>([&](int m) { numbers[i * N + m] = together.at[m]; });
            }
        } else {
            const Storage* number = start + first * from.column_stride;
            unrolled<N>([&](int m) {
                if (first + m < mine.columns) {
                    numbers[i * N + m] = here.load(number);
                }
                number += from.column_stride;
            });
        }
    });
}

/// Numbers of an access that writes a piece stored as `Out`.
template <class Out, class Storage, int V>
inline constexpr int out_vector =
    widest_vector<Out> < row_pieces<Storage, V>::piece ? widest_vector<Out> : row_pieces<Storage, V>::piece;

template <class Storage, int V, class Here, class Out, class Space>
SWITCHYARD_DEVICE void store_pieces(Here& here, const matrix_view<Out, Space>& to, bool in_vectors, index_t row,
                                    const row_pieces<Storage, V>& mine, const compute_t<Storage> (&numbers)[V]) {
    constexpr int N = out_vector<Out, Storage, V>;
    const auto stored = [&](int j) { return store_scalar<Out>(static_cast<compute_t<Out>>(numbers[j])); };
    Out* const start = to.row(row);
    unrolled<V / N>([&](int i) {
        const int first = mine.column(i * N);
        if (in_vectors) {
            if (first < mine.columns) {
                number_vector<Out, N> together;
                unrolled<N>([&](int m) { together.at[m] = stored(i * N + m); });
                here.store_vector(start + first, together);
            }
        } else {
            Out* number = start + first * to.column_stride;
            unrolled<N>([&](int m) {
                if (first + m < mine.columns) {
                    here.store(number, stored(i * N + m));
                }
                number += to.column_stride;
            });
        }
    });
}

/// Calls f(j, u) with the uniform number of each of a thread's columns, as for_each_uniform does for a whole row.
template <class Storage, int V, class F>
SWITCHYARD_DEVICE void for_each_held_uniform(const noise_key& key, index_t token, const row_pieces<Storage, V>& mine,
                                             const F& f) {
    unrolled<V / 4>([&](int i) {
        if (mine.holds(4 * i)) {
            const philox_words words = noise_words(key, token, mine.column(4 * i) / 4);
            unrolled<4>([&](int m) { f(4 * i + m, uniform(words.word[m])); });
        }
    });
}

/// values *= the jitter of the scores: what score_rows::apply_jitter does to a whole row.
template <class Storage, int V, class Source>
SWITCHYARD_DEVICE void jitter_pieces(const Source& source, index_t token, const row_pieces<Storage, V>& mine,
                                     typename Source::compute (&values)[V]) {
    if (source.logit_jitter != 0) {
        for_each_held_uniform(for_purpose(source.noise, noise_purpose::logit_jitter), token, mine, [&](int j, float u) {
            values[j] *= jitter_factor<typename Source::compute>(u, source.logit_jitter);
        });
    }
}

/// Stored numbers as scores: computed, jittered where there may be jitter, -infinity beyond the row.
template <bool IsNoisy, class Storage, int V, class Source>
SWITCHYARD_DEVICE void scores_of_pieces(const Source& source, index_t token, const row_pieces<Storage, V>& mine,
                                        const Storage (&numbers)[V], compute_t<Storage> (&scores)[V]) {
    unrolled<V>([&](int j) { scores[j] = mine.holds(j) ? load_scalar(numbers[j]) : lowest<compute_t<Storage>>(); });
    if constexpr (IsNoisy) {
        jitter_pieces(source, token, mine, scores);
    }
}

/// The best of a thread's scores that are still open, the first of equal ones; NaN counts as -infinity.
template <class S, class Storage, int V>
SWITCHYARD_DEVICE scored_column<S> best_of_pieces(const S (&scores)[V], std::uint32_t open,
                                                  const row_pieces<Storage, V>& mine) {
    scored_column<S> best{lowest<S>(), no_column};
    unrolled<V>([&](int j) {
        const S score = usable(scores[j]);
        const bool is_better = score > best.score || best.column == no_column;
        if (is_better && (open >> j & 1u) != 0) {
            best = {score, mine.column(j)};
        }
    });
    return best;
}

/// Threads of a lane group for rows of E numbers, V of them a thread, and k choices, one a thread.
constexpr int group_size(index_t experts, index_t choices, int numbers) {
    int size = 1;
    while (size < 32 && (static_cast<index_t>(size) * numbers < experts || size < choices)) {
        size *= 2;
    }
    return size;
}
SWITCHYARD_HD constexpr int bits_of_size(int size) {
    int bits = 0;
    for (; size > 1; size /= 2) {
        ++bits;
    }
    return bits;
}

}  // namespace detail
}  // namespace SWITCHYARD_TARGET
}  // namespace switchyard
