// A row in the registers of a lane group (backend/lane_group.hpp).
//
// A thread holds V numbers of the row: V / piece pieces of neighbouring columns, each piece `Size` pieces after the one
// before, so that a group reads neighbouring pieces together. Its numbers rise in column. Columns beyond the row count
// as -infinity. Rows are read 16 bytes at a time where they lie so, number by number elsewhere; each number once.
//
// The size of the group is a constant, and so is each number's distance from the thread's first column: what depends on
// the thread is one addition. Rows that fill their group, E = V Size, need no test for their end.
//
// Noise takes registers even where it is off, so kernels that may change scores on the way, by noise or by a bias, and
// kernels that do not are two (`IsNoisy`).
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
#include <limits>

namespace switchyard {
inline namespace SWITCHYARD_TARGET {
namespace detail {

/// The columns of a row of E numbers, stored as `Storage`, that one of the `Size` threads of its group holds.
template <class Storage, int V, int Size>
struct row_pieces {
    static constexpr int threads = Size;
    static constexpr int vector = widest_vector<Storage> < V ? widest_vector<Storage> : V;  ///< numbers of an access
    static constexpr int piece = vector < 4 ? 4 : vector;  ///< whole groups of four columns: they share noise words
    static_assert(V % piece == 0 && V <= 32);

    int rank;
    int columns;  ///< E

    /// Where the j-th number lies behind a thread's first column.
    SWITCHYARD_HD static constexpr int distance(int j) { return j / piece * (Size * piece) + j % piece; }
    SWITCHYARD_HD int first_column() const { return rank * piece; }
    SWITCHYARD_HD int column(int j) const { return first_column() + distance(j); }
    SWITCHYARD_HD bool holds(int j) const { return column(j) < columns; }
    /// Every thread holds V numbers.
    SWITCHYARD_HD bool is_whole() const { return columns == V * Size; }

    /// The bit of a column, 0 where another thread has it.
    SWITCHYARD_HD std::uint32_t bit_of(std::int32_t at) const {
        const int whole = at / piece;
        return whole % Size == rank ? 1u << (whole / Size * piece + at % piece) : 0u;
    }
};

/// Rows that can be read, or written, N numbers at a time.
template <int N, class T, class Space>
bool has_vectors(const matrix_view<T, Space>& m) {
    return m.column_stride == 1 && m.columns % N == 0 && m.row_stride % N == 0 &&
           reinterpret_cast<std::uintptr_t>(m.data) % (N * sizeof(T)) == 0;
}

/// A thread's numbers of a row.
template <class Storage, int V, int Size, class Here, class Space>
SWITCHYARD_DEVICE void load_pieces(Here& here, const matrix_view<const Storage, Space>& from, bool in_vectors,
                                   index_t row, const row_pieces<Storage, V, Size>& mine, Storage (&numbers)[V]) {
    constexpr int N = row_pieces<Storage, V, Size>::vector;
    using pieces = row_pieces<Storage, V, Size>;
    const Storage* const start = from.row(row) + mine.first_column() * (in_vectors ? 1 : from.column_stride);
    const auto load_together = [&](int i) {
        const auto together = here.template load_vector<N>(start + pieces::distance(i * N));
        unrolled<N>([&](int m) { numbers[i * N + m] = together.at[m]; });
    };
    if (in_vectors && mine.is_whole()) {
        unrolled<V / N>(load_together);
    } else if (in_vectors) {
        unrolled<V / N>([&](int i) {
            if (mine.holds(i * N)) {
                load_together(i);
            }
        });
    } else {
        unrolled<V>([&](int j) {
            if (mine.holds(j)) {
                numbers[j] = here.load(start + pieces::distance(j) * from.column_stride);
            }
        });
    }
}

/// Numbers of an access that writes a piece stored as `Out`.
template <class Out, class Pieces>
inline constexpr int out_vector = widest_vector<Out> < Pieces::piece ? widest_vector<Out> : Pieces::piece;

template <class Storage, int V, int Size, class Here, class Out, class Space>
SWITCHYARD_DEVICE void store_pieces(Here& here, const matrix_view<Out, Space>& to, bool in_vectors, index_t row,
                                    const row_pieces<Storage, V, Size>& mine, const compute_t<Storage> (&numbers)[V]) {
    using pieces = row_pieces<Storage, V, Size>;
    constexpr int N = out_vector<Out, pieces>;
    const auto stored = [&](int j) { return store_scalar<Out>(static_cast<compute_t<Out>>(numbers[j])); };
    Out* const start = to.row(row) + mine.first_column() * (in_vectors ? 1 : to.column_stride);
    if (in_vectors) {
        const bool is_whole = mine.is_whole();
        unrolled<V / N>([&](int i) {
            if (is_whole || mine.holds(i * N)) {
                number_vector<Out, N> together;
                unrolled<N>([&](int m) { together.at[m] = stored(i * N + m); });
                here.store_vector(start + pieces::distance(i * N), together);
            }
        });
    } else {
        unrolled<V>([&](int j) {
            if (mine.holds(j)) {
                here.store(start + pieces::distance(j) * to.column_stride, stored(j));
            }
        });
    }
}

/// Calls f(m, u) with the uniform numbers of a thread's columns first .. first + 3, if the row has them.
template <class Storage, int V, int Size, class F>
SWITCHYARD_DEVICE void for_held_uniform(const noise_key& key, index_t token, const row_pieces<Storage, V, Size>& mine,
                                        int first, const F& f) {
    if (mine.holds(first)) {
        const philox_words words = noise_words(key, token, mine.column(first) / 4);
        unrolled<4>([&](int m) { f(m, uniform(words.word[m])); });
    }
}

/// Calls f(m, factor) with the jitter of those scores.
template <class Storage, int V, int Size, class Source, class F>
SWITCHYARD_DEVICE void for_held_jitter(const Source& source, index_t token, const row_pieces<Storage, V, Size>& mine,
                                       int first, const F& f) {
    for_held_uniform(for_purpose(source.noise, noise_purpose::logit_jitter), token, mine, first,
                     [&](int m, float u) { f(m, jitter_factor<typename Source::compute>(u, source.logit_jitter)); });
}

/// Stored numbers as scores before their jitter, -infinity beyond the row.
template <bool IsNoisy, class Here, class Storage, int V, int Size, class Source>
SWITCHYARD_DEVICE void quiet_scores_of_pieces(Here& here, const Source& source,
                                              const row_pieces<Storage, V, Size>& mine, const Storage (&numbers)[V],
                                              compute_t<Storage> (&scores)[V]) {
    using S = compute_t<Storage>;
    unrolled<V>([&](int j) { scores[j] = load_scalar(numbers[j]); });
    if (!mine.is_whole()) {
        unrolled<V>([&](int j) { scores[j] = mine.holds(j) ? scores[j] : lowest<S>(); });
    }
    if constexpr (IsNoisy) {
        if (source.changes_scores()) {
            by_fours(scores, [&](int first, S(&four)[4]) {
                unrolled<4>([&](int m) {
                    const bool is_biased = source.bias != nullptr && mine.holds(first + m);
                    const S added = is_biased ? here.load(source.bias + mine.column(first + m)) : S(0);
                    four[m] = source.before_jitter(pack<S, 1>{four[m]}, pack<S, 1>{added}).v;
                });
            });
        }
    }
}

/// Stored numbers as scores: computed, changed where that may be, -infinity beyond the row.
template <bool IsNoisy, class Here, class Storage, int V, int Size, class Source>
SWITCHYARD_DEVICE void scores_of_pieces(Here& here, const Source& source, index_t token,
                                        const row_pieces<Storage, V, Size>& mine, const Storage (&numbers)[V],
                                        compute_t<Storage> (&scores)[V]) {
    quiet_scores_of_pieces<IsNoisy>(here, source, mine, numbers, scores);
    if constexpr (IsNoisy) {
        if (source.logit_jitter != 0) {
            by_fours(scores, [&](int first, compute_t<Storage>(&four)[4]) {
                for_held_jitter(source, token, mine, first, [&](int m, auto factor) { four[m] *= factor; });
            });
        }
    }
}

/// Gradients of scores become those of the stored numbers: what score_rows::pull_back does to a whole row.
template <class Here, class Storage, int V, int Size, class Source>
SWITCHYARD_DEVICE void pull_back_pieces(Here& here, const Source& source, index_t token,
                                        const row_pieces<Storage, V, Size>& mine, const Storage (&numbers)[V],
                                        compute_t<Storage> (&gradient)[V]) {
    using S = compute_t<Storage>;
    const bool is_capped = source.cap != S(0);
    S score[V];
    if (is_capped) {
        quiet_scores_of_pieces<true>(here, source, mine, numbers, score);
    } else {
        unrolled<V>([&](int j) { score[j] = S(0); });
    }
    if (source.logit_jitter != 0) {
        unrolled<V / 4>([&](int i) {
            for_held_jitter(source, token, mine, 4 * i, [&](int m, S factor) {
                gradient[4 * i + m] *= factor;
                score[4 * i + m] = score[4 * i + m] * factor / factor;  // as where the score alone is known
            });
        });
    }
    if (is_capped || source.multiplier != S(1)) {
        unrolled<V>([&](int j) { gradient[j] = source.pulled_back(gradient[j], score[j]); });
    }
}

/// The highest of a thread's scores; NaN counts as -infinity.
template <class S, int V>
SWITCHYARD_DEVICE S highest_of_pieces(const S (&scores)[V]) {
    S highest_score = lowest<S>();
    unrolled<V>([&](int j) { highest_score = higher_score{}(highest_score, scores[j]); });
    return highest_score;
}

/// The first of a thread's columns with this score, or `no_column`.
template <class S, class Storage, int V, int Size>
SWITCHYARD_DEVICE std::int32_t column_in_pieces(const S (&scores)[V], S score,
                                                const row_pieces<Storage, V, Size>& mine) {
    std::int32_t distance = no_column;
    unrolled<V>([&](int i) {
        constexpr int last = V - 1;
        distance = scores[last - i] == score ? mine.distance(last - i) : distance;
    });
    return distance == no_column ? no_column : mine.first_column() + distance;
}

/// The best of a row's scores, equal ones by the lower column, to every thread of the group.
template <class Here, class Group, class S, class Storage, int V, int Size>
SWITCHYARD_DEVICE scored_column<S> best_of_row(Here& here, Group& group, const S (&scores)[V],
                                               const row_pieces<Storage, V, Size>& mine) {
    const S score = group.highest(here, highest_of_pieces(scores));
    return {score, group.lowest(here, column_in_pieces(scores, score, mine))};
}

}  // namespace detail
}  // namespace SWITCHYARD_TARGET
}  // namespace switchyard
