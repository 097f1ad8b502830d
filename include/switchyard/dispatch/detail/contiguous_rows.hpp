// Rows whose numbers lie side by side, stored as anything: a row is read, weighed, summed and multiplied in packs of
// the type that is computed in (core/stored.hpp). Sums have a fixed order whatever the address.
#pragma once

#include <switchyard/core/config.hpp>
#include <switchyard/core/matrix_view.hpp>
#include <switchyard/core/scalar_traits.hpp>
#include <switchyard/core/simd.hpp>
#include <switchyard/core/stored.hpp>
#include <switchyard/plan/plan.hpp>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wsign-conversion"  // g++'s remark on arrays whose length is an int of the template
#endif

namespace switchyard {
inline namespace SWITCHYARD_TARGET {
namespace detail {

template <class S>
using wide = pack<S, native_width<S>>;

/// Rows ahead of the one in work that are called into the second-level cache: rows are read in random order, and
/// nothing else would. Measured on 2 KiB rows; nearer or farther, or into the first level, is slower.
inline constexpr index_t rows_ahead = 4;

inline void prefetch([[maybe_unused]] const void* address) {
#if SWITCHYARD_DETAIL_VECTORS
    __builtin_prefetch(address, 0, 2);
#endif
}

inline void finish_streaming() {
#if SWITCHYARD_DETAIL_VECTORS && defined(__SSE2__)
    _mm_sfence();
#endif
}

template <class S, class T>
wide<S> load_some(const T* p, index_t n) {
    using P = wide<S>;
    return n >= P::width ? load_stored<P>(p) : load_first_stored<P>(p, n);
}

/// Whether packs of S can be streamed to `out` one after another.
template <class S, class T>
bool can_stream(const T* out) {
    return reinterpret_cast<std::uintptr_t>(out) % (wide<S>::width * sizeof(T)) == 0;
}

/// out[0 .. n) = f(j, lanes), f giving packs of S; by non-temporal stores where `stream` and the address allows it.
template <class S, class T, class F>
void write_row(T* out, index_t n, bool stream, const F& f) {
    constexpr index_t W = native_width<S>;
    const index_t whole = n / W * W;
    if (stream && can_stream<S>(out)) {
        for (index_t j = 0; j < whole; j += W) {
            stream_stored(f(j, W), out + j);
        }
    } else {
        for (index_t j = 0; j < whole; j += W) {
            store_stored(f(j, W), out + j);
        }
    }
    if (whole < n) {
        store_first_stored(f(whole, n - whole), out + whole, n - whole);
    }
}

/// out = in, converted where the types differ: else bit for bit.
template <class In, class Out>
void copy_row(Out* out, const In* in, const In* ahead, index_t n, bool stream) {
    if constexpr (std::is_same_v<In, Out>) {
        using P = wide<float>;
        constexpr index_t W = sizeof(P) / sizeof(In);
        index_t j = 0;
        if (stream && reinterpret_cast<std::uintptr_t>(out) % sizeof(P) == 0) {
            for (; j + W <= n; j += W) {
                prefetch(ahead + j);
                P bits;
                std::memcpy(&bits, in + j, sizeof bits);
                bits.stream(reinterpret_cast<float*>(out + j));
            }
        } else if (ahead != in) {
            for (index_t i = 0; i < n; i += 64 / sizeof(In)) {
                prefetch(ahead + i);
            }
        }
        std::copy(in + j, in + n, out + j);  // not memcpy: D = 0 may lie at null
    } else {
        using S = compute_t<In>;
        write_row<S>(out, n, stream, [=](index_t j, index_t lanes) {
            prefetch(ahead + j);
            return load_some<S>(in + j, lanes);
        });
    }
}

/// a . b in a fixed order: four partial sums of packs in turn, then halves. `visit(j, pack of b)` sees every pack.
template <class S, class A, class B, class Visit>
S dot(const A* a, const B* b, index_t n, const Visit& visit) {
    using P = wide<S>;
    constexpr index_t W = P::width;
    P sum[4] = {P::all(0), P::all(0), P::all(0), P::all(0)};
    index_t j = 0;
    for (; j + 4 * W <= n; j += 4 * W) {
        for (index_t i = 0; i < 4; ++i) {
            const P numbers = load_stored<P>(b + j + i * W);
            sum[i] = multiply_add(load_stored<P>(a + j + i * W), numbers, sum[i]);
            visit(j + i * W, numbers);
        }
    }
    for (; j < n; j += W) {
        const P numbers = load_some<S>(b + j, n - j);
        sum[0] = multiply_add(load_some<S>(a + j, n - j), numbers, sum[0]);
        visit(j, numbers);
    }
    return total((sum[0] + sum[1]) + (sum[2] + sum[3]));
}

template <class S, class A, class B>
S dot(const A* a, const B* b, index_t n) {
    return dot<S>(a, b, n, [](index_t, wide<S>) {});
}

/// out = gate * b and returns a . b, in one pass.
template <class S, class Out, class A, class B>
S scale_and_dot(Out* out, S gate, const A* a, const B* b, const B* ahead, index_t n, bool stream) {
    using P = wide<S>;
    const P weight = P::all(gate);
    if (stream && can_stream<S>(out) && n % P::width == 0) {
        return dot<S>(a, b, n, [=](index_t j, P numbers) {
            prefetch(ahead + j);
            stream_stored(numbers * weight, out + j);
        });
    }
    return dot<S>(a, b, n, [=](index_t j, P numbers) {
        if (n - j >= P::width) {
            store_stored(numbers * weight, out + j);
        } else {
            store_first_stored(numbers * weight, out + j, n - j);
        }
    });
}

/// Up to 8 rows and their weights: what is summed into one row at a time.
template <class S, class In>
struct weighted_rows {
    static constexpr index_t most = 8;
    const In* row[most];
    const In* ahead[most];  ///< a row soon to be read, to call into the cache
    S weight[most];
    index_t count = 0;
};

/// out[0 .. n) (+)= sum_c weight[c] * row[c][0 .. n).
template <class S, class In, class Out>
void sum_weighted(Out* out, index_t n, bool accumulate, bool stream, const weighted_rows<S, In>& from) {
    using P = wide<S>;
    const auto sum_onto = [&](auto start, index_t first_row) {
        write_row<S>(out, n, stream, [&](index_t j, index_t lanes) {
            P sum = start(j, lanes);
            for (index_t c = first_row; c < from.count; ++c) {
                prefetch(from.ahead[c] + j);
                sum = multiply_add(P::all(from.weight[c]), load_some<S>(from.row[c] + j, lanes), sum);
            }
            return sum;
        });
    };
    if (accumulate) {
        sum_onto([&](index_t j, index_t lanes) { return load_some<S>(out + j, lanes); }, 0);
    } else if (from.count == 0) {
        sum_onto([](index_t, index_t) { return P::all(S(0)); }, 0);
    } else if (from.count > 1) {
        sum_onto(
            [&](index_t j, index_t lanes) {
                prefetch(from.ahead[0] + j);
                return P::all(from.weight[0]) * load_some<S>(from.row[0] + j, lanes);
            },
            1);
    } else {
        const P weight = P::all(from.weight[0]);
        const In* const row = from.row[0];
        const In* const ahead = from.ahead[0];
        if (ahead != row) {
            write_row<S>(out, n, stream, [=](index_t j, index_t lanes) {
                prefetch(ahead + j);
                return weight * load_some<S>(row + j, lanes);
            });
        } else {
            write_row<S>(out, n, stream,
                         [=](index_t j, index_t lanes) { return weight * load_some<S>(row + j, lanes); });
        }
    }
}

/// What is summed into the rows of tokens.
template <class S, class In>
struct choice_sum {
    const plan_view<S>& plan;
    bool weigh;
    matrix_view<const In> in;
    matrix_view<const In> tokens{};  ///< what identity experts give back; null: nothing
};

/// Columns first .. first + n of a token's sum into out[0 .. n), 8 choices at a time. The rows of the token `ahead` of
/// this one are called into the cache.
template <class C, class S, class In, class Out>
void sum_choices(const choice_sum<S, In>& from, index_t token, index_t ahead, index_t first, index_t n, bool accumulate,
                 bool stream, Out* out) {
    const plan_view<S>& plan = from.plan;
    weighted_rows<C, In> rows;
    const index_t later = ahead * plan.choices;
    for (index_t position = token * plan.choices; position < (token + 1) * plan.choices; ++position) {
        const index_t r = plan.row_of(position);
        if (r >= 0) {
            const index_t soon = plan.row_of(position + later);
            rows.row[rows.count] = from.in.row(r) + first;
            rows.ahead[rows.count] = from.in.row(soon < 0 ? r : soon) + first;
        } else if (from.tokens.data != nullptr && plan.adds_token(position)) {
            rows.row[rows.count] = from.tokens.row(token) + first;
            rows.ahead[rows.count] = rows.row[rows.count];
        } else {
            continue;
        }
        rows.weight[rows.count++] = from.weigh ? static_cast<C>(plan.gate[position]) : C(1);
        if (rows.count == rows.most) {
            sum_weighted(out, n, accumulate, stream, rows);
            accumulate = true;
            rows.count = 0;
        }
    }
    if (rows.count > 0 || !accumulate) {
        sum_weighted(out, n, accumulate, stream, rows);
    }
}

/// A token's sum into its row. What is stored narrower than it is computed is rounded once, after the last choice.
template <class S, class In, class Out>
void sum_token(const choice_sum<S, In>& from, index_t token, index_t ahead, bool accumulate, bool stream,
               const matrix_view<Out>& out) {
    using C = compute_t<Out>;
    Out* const row = out.row(token);
    if (std::is_same_v<C, Out> || from.plan.choices <= weighted_rows<C, In>::most) {
        sum_choices<C>(from, token, ahead, 0, out.columns, accumulate, stream, row);
        return;
    }
    constexpr index_t piece = 256;
    alignas(64) C sums[piece];
    for (index_t first = 0; first < out.columns; first += piece) {
        const index_t n = std::min(piece, out.columns - first);
        if (accumulate) {
            write_row<C>(sums, n, false,
                         [&](index_t j, index_t lanes) { return load_some<C>(row + first + j, lanes); });
        }
        sum_choices<C>(from, token, ahead, first, n, accumulate, false, sums);
        write_row<C>(row + first, n, stream, [&](index_t j, index_t lanes) { return load_some<C>(sums + j, lanes); });
    }
}

}  // namespace detail
}  // namespace SWITCHYARD_TARGET
}  // namespace switchyard

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic pop
#endif
