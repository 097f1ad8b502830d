// Softmax over the experts of a token: p_te = exp(s_te - max_t) / sum_t, sum_t = sum_e exp(s_te - max_t).
//
// The row program here serves every router with a softmax gate. It reads R rows side by side (their reductions overlap
// in the processor) and finds each row's maximum, its first position (the argmax, ties to the lower expert) and its sum
// of exponentials. A sum that is not finite means that the row holds NaN, +infinity, or only -infinity: checking the
// scores costs nothing on valid rows.
#pragma once

#include <switchyard/core/bits.hpp>
#include <switchyard/core/config.hpp>
#include <switchyard/core/simd.hpp>

#include <cstdint>
#include <limits>

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wsign-conversion"  // g++'s remark on arrays whose length is an int of the template
#endif

namespace switchyard {
inline namespace SWITCHYARD_TARGET {

/// Columns rounded up to whole packs: the length of a scratch row.
template <int W>
SWITCHYARD_HD constexpr index_t padded(index_t columns) {
    return (columns + W - 1) / W * W;
}

/// What the row program finds out about R rows.
template <class S, int W, int R>
struct softmax_statistics {
    pack<S, W> column_maxima[R];  ///< lane i: maximum over columns i, i + W, ...; reduces to `maximum`
    S maximum[R];
    S sum[R];         ///< of exp(s - maximum)
    index_t best[R];  ///< the first expert with the maximum; 0 where none compares equal (NaN)
};

namespace detail {

/// The first set bits of R rows, gathered 64 columns at a time.
template <int R>
struct first_positions {
    std::uint64_t bits[R] = {};
    int filled = 0;
    index_t start = 0;

    SWITCHYARD_HD void add(int r, std::uint32_t mask) { bits[r] |= static_cast<std::uint64_t>(mask) << filled; }
    SWITCHYARD_HD void advance(int width, index_t (&best)[R]) {
        filled += width;
        if (filled == 64) {
            flush(best);
        }
    }
    SWITCHYARD_HD void flush(index_t (&best)[R]) {
        for (int r = 0; r < R; ++r) {
            const index_t position = start + first_bit(bits[r]);
            best[r] = best[r] < 0 && bits[r] != 0 ? position : best[r];
            bits[r] = 0;
        }
        start += filled;
        filled = 0;
    }
};

/// Rows lie one after another: while R of them are computed, those about 4 KiB further on are called in.
template <int R>
struct next_rows {
    std::uintptr_t distance = 0;

    template <class S>
    SWITCHYARD_HD explicit next_rows(const S* const (&row)[R]) {
        if constexpr (R > 1) {
            const std::uintptr_t tile =
                R * (reinterpret_cast<std::uintptr_t>(row[1]) - reinterpret_cast<std::uintptr_t>(row[0]));
            distance = tile * (tile > 0 && tile < 4096 ? (4096 + tile - 1) / tile : 1);
        }
    }
    /// Integers, since the last rows' address lies beyond the scores.
    template <int W, class S>
    SWITCHYARD_HD void call_in(const S* p) const {
        if constexpr (R > 1) {
            pack<S, W>::call_in(reinterpret_cast<const S*>(reinterpret_cast<std::uintptr_t>(p) + distance));
        }
    }
};

}  // namespace detail

/// Maximum, argmax and sum of exponentials of R contiguous rows. Where `exponentials` is given, row r's exp(s -
/// maximum) is left at exponentials + r * padded<W>(experts), the padding 0.
template <int W, int R, bool FindBest = true, class S>
SWITCHYARD_HD softmax_statistics<S, W, R> softmax_rows(const S* const (&row)[R], index_t experts, S* exponentials) {
    using P = pack<S, W>;
    constexpr S lowest = -std::numeric_limits<S>::infinity();
    const index_t whole = experts / W * W;
    const index_t rest = experts - whole;
    softmax_statistics<S, W, R> found;
    P maximum[R];
    P sum[R];
    for (int r = 0; r < R; ++r) {
        maximum[r] = P::all(lowest);
        sum[r] = P::all(S(0));
    }
    for (index_t j = 0; j < whole; j += W) {
        for (int r = 0; r < R; ++r) {
            maximum[r] = max(maximum[r], P::load(row[r] + j));
        }
    }
    for (int r = 0; r < R; ++r) {
        if (rest != 0) {
            maximum[r] = max(maximum[r], P::load_first(row[r] + whole, rest, lowest));
        }
        found.column_maxima[r] = maximum[r];
        found.maximum[r] = highest(maximum[r]);
        maximum[r] = P::all(found.maximum[r]);
        found.best[r] = -1;
    }

    const detail::next_rows<R> ahead(row);
    detail::first_positions<R> positions;
    const auto visit = [&](int r, index_t j, P scores) {
        ahead.template call_in<W>(row[r] + j);
        const P exponential = exp_nonpositive<S, W>(scores - maximum[r]);
        if (exponentials != nullptr) {
            exponential.store(exponentials + r * padded<W>(experts) + j);
        }
        sum[r] = sum[r] + exponential;
        if constexpr (FindBest) {
            positions.add(r, equal_bits(scores, maximum[r]));
        }
    };
    for (index_t j = 0; j < whole; j += W) {
        for (int r = 0; r < R; ++r) {
            visit(r, j, P::load(row[r] + j));
        }
        if constexpr (FindBest) {
            positions.advance(W, found.best);
        }
    }
    if (rest != 0) {
        for (int r = 0; r < R; ++r) {
            visit(r, whole, P::load_first(row[r] + whole, rest, lowest));
        }
        if constexpr (FindBest) {
            positions.advance(W, found.best);
        }
    }
    positions.flush(found.best);
    for (int r = 0; r < R; ++r) {
        found.sum[r] = total(sum[r]);
        // Beyond the row's end lies only -infinity, which the maximum is where NaN hides all numbers.
        found.best[r] = found.best[r] < 0 || found.best[r] >= experts ? 0 : found.best[r];
    }
    return found;
}

/// The maxima of R contiguous rows, for callers that need no sum: `sum` is 1, or NaN where the row may hold NaN or
/// +infinity, or nothing but -infinity. `best` is not looked for. Calls see(r, j, scores) with the scores of row r from
/// column j on, -infinity beyond the row.
template <int W, int R, class S, class See>
SWITCHYARD_HD softmax_statistics<S, W, R> maxima_of_rows(const S* const (&row)[R], index_t experts, const See& see) {
    using P = pack<S, W>;
    constexpr S lowest = -std::numeric_limits<S>::infinity();
    const index_t whole = experts / W * W;
    softmax_statistics<S, W, R> found;
    P maximum[R];
    P sum[R];  // of the scores themselves: NaN and +infinity stay in it
    for (int r = 0; r < R; ++r) {
        maximum[r] = P::all(lowest);
        sum[r] = P::all(S(0));
    }
    const auto visit = [&](int r, index_t j, P scores) {
        maximum[r] = max(maximum[r], scores);
        sum[r] = sum[r] + scores;
        see(r, j, scores);
    };
    const detail::next_rows<R> ahead(row);
    for (index_t j = 0; j < whole; j += W) {
        for (int r = 0; r < R; ++r) {
            ahead.template call_in<W>(row[r] + j);
            visit(r, j, P::load(row[r] + j));
        }
    }
    for (int r = 0; r < R; ++r) {
        if (whole < experts) {
            visit(r, whole, P::load_first(row[r] + whole, experts - whole, lowest));
        }
        found.column_maxima[r] = maximum[r];
        found.maximum[r] = highest(maximum[r]);
        found.best[r] = 0;
        constexpr std::uint32_t every_lane = W == 32 ? ~0u : (1u << W) - 1u;
        const bool is_good =
            at_least_bits(P::all(std::numeric_limits<S>::max()), sum[r]) == every_lane && found.maximum[r] > lowest;
        found.sum[r] = is_good ? S(1) : std::numeric_limits<S>::quiet_NaN();
    }
    return found;
}

/// column_sums[e] += sum_r exponentials[r][e] * scale[r], rows in order. `column_sums` is padded like the rows.
template <int W, int R, class S>
SWITCHYARD_HD void add_scaled_rows(const S* exponentials, index_t experts, const S (&scale)[R], S* column_sums) {
    using P = pack<S, W>;
    const index_t length = padded<W>(experts);
    for (index_t j = 0; j < length; j += W) {
        P sum = P::load(column_sums + j);
        for (int r = 0; r < R; ++r) {
            sum = multiply_add(P::load(exponentials + r * length + j), P::all(scale[r]), sum);
        }
        sum.store(column_sums + j);
    }
}

/// A probability from what forward kept of its row.
template <class S>
SWITCHYARD_HD S softmax_value(S score, S row_maximum, S row_sum) {
    return exp_nonpositive(score - row_maximum) / row_sum;
}

}  // namespace SWITCHYARD_TARGET
}  // namespace switchyard

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic pop
#endif
