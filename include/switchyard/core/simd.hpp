// The only file with vector instructions: `pack<S, W>`, W numbers of type float or double that move together.
//
// Row programs are written over packs. W = 1 is a plain scalar and works everywhere, on a device too (one thread a
// row); W = native_width<S> is a vector register of the CPU the code is compiled for, through GCC and Clang's vector
// extensions, with intrinsics only where these have no equivalent: partial loads, fused multiply-add, comparison to a
// bit mask.
//
// All reductions have a fixed order that depends on W alone, never on addresses.
#pragma once

#include <switchyard/core/bits.hpp>
#include <switchyard/core/config.hpp>
#include <switchyard/core/rounding.hpp>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>
#include <utility>

#if (defined(__GNUC__) || defined(__clang__)) && !defined(__CUDACC__)
#define SWITCHYARD_DETAIL_VECTORS 1
#else
#define SWITCHYARD_DETAIL_VECTORS 0
#endif

#if SWITCHYARD_DETAIL_VECTORS && (defined(__x86_64__) || defined(__i386__))
#include <immintrin.h>
#endif

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wsign-conversion"  // g++'s remark on arrays whose length is an int of the template
#endif

namespace switchyard {
inline namespace SWITCHYARD_TARGET {

/// The integer of the same size, for bits and exponents.
template <class S>
struct float_bits;
template <>
struct float_bits<float> {
    using type = std::int32_t;
    static constexpr int mantissa = 23;
    static constexpr float smallest_exponent = -87.0f;  // exp below is 0: forbidden experts, and nothing is denormal
};
template <>
struct float_bits<double> {
    using type = std::int64_t;
    static constexpr int mantissa = 52;
    static constexpr double smallest_exponent = -708.0;
};

#if !SWITCHYARD_DETAIL_VECTORS
inline constexpr int register_bytes = 0;
#elif defined(__AVX512F__) && defined(__AVX512DQ__) && defined(__AVX512BW__) && defined(__AVX512VL__)
inline constexpr int register_bytes = 64;
#define SWITCHYARD_DETAIL_AVX512 1
#elif defined(__AVX2__) && defined(__FMA__)
inline constexpr int register_bytes = 32;
#define SWITCHYARD_DETAIL_AVX2 1
#else
inline constexpr int register_bytes = 16;
#endif
#ifndef SWITCHYARD_DETAIL_AVX512
#define SWITCHYARD_DETAIL_AVX512 0
#endif
#ifndef SWITCHYARD_DETAIL_AVX2
#define SWITCHYARD_DETAIL_AVX2 0
#endif

/// Numbers of type S a vector register holds; 1 where there is none.
template <class S>
inline constexpr int native_width = register_bytes == 0 ? 1 : register_bytes / static_cast<int>(sizeof(S));

/// Prefetches what is `bytes` beyond p; the address need not be valid.
inline void call_in_beyond([[maybe_unused]] const void* p, [[maybe_unused]] std::uintptr_t bytes) {
#if SWITCHYARD_DETAIL_VECTORS
    // NOLINTNEXTLINE(performance-no-int-to-ptr): the address may lie outside of every array
    __builtin_prefetch(reinterpret_cast<const void*>(reinterpret_cast<std::uintptr_t>(p) + bytes));
#endif
}

/// Prefetches p for writing; p need not be valid.
inline void call_in_to_write([[maybe_unused]] const void* p) {
#if SWITCHYARD_DETAIL_VECTORS
    __builtin_prefetch(p, 1);
#endif
}

/// W numbers. The primary template is a vector register; the scalar follows.
template <class S, int W>
struct pack;

template <class S>
struct pack<S, 1> {
    static constexpr int width = 1;
    using scalar = S;
    using lane_mask = bool;
    S v;

    SWITCHYARD_HD static pack all(S x) { return {x}; }
    SWITCHYARD_HD static pack load(const S* p) { return {*p}; }
    SWITCHYARD_HD static void call_in(const S*) {}
    SWITCHYARD_HD static pack load_first(const S* p, index_t n, S fill) { return {n > 0 ? *p : fill}; }
    SWITCHYARD_HD void store(S* p) const { *p = v; }
    SWITCHYARD_HD void stream(S* p) const { *p = v; }
    SWITCHYARD_HD void store_first(S* p, index_t n) const {
        if (n > 0) {
            *p = v;
        }
    }
    SWITCHYARD_HD friend pack operator+(pack a, pack b) { return {a.v + b.v}; }
    SWITCHYARD_HD friend pack operator-(pack a, pack b) { return {a.v - b.v}; }
    SWITCHYARD_HD friend pack operator*(pack a, pack b) { return {a.v * b.v}; }
    SWITCHYARD_HD friend pack operator/(pack a, pack b) { return {a.v / b.v}; }
    /// Where a > b.
    SWITCHYARD_HD friend lane_mask above(pack a, pack b) { return a.v > b.v; }
    /// x where the mask is set, else y.
    SWITCHYARD_HD friend pack where(lane_mask m, pack x, pack y) { return m ? x : y; }
    SWITCHYARD_HD static void transpose(pack (&)[1]) {}
    template <class T, class Combine>
    SWITCHYARD_HD static void reduce_rows(T (&)[1], const Combine&) {}
    /// a > b ? a : b, so b where either is NaN.
    SWITCHYARD_HD friend pack max(pack a, pack b) { return {a.v > b.v ? a.v : b.v}; }
    SWITCHYARD_HD friend pack min(pack a, pack b) { return {a.v < b.v ? a.v : b.v}; }
    /// a with b in place of every x.
    SWITCHYARD_HD friend pack replaced(pack a, pack x, pack b) { return {a.v == x.v ? b.v : a.v}; }
    /// x where a >= b, else y.
    SWITCHYARD_HD friend pack at_least_or(pack a, pack b, pack x, pack y) { return {a.v >= b.v ? x.v : y.v}; }
    /// a * b + c, fused where the target has the instruction.
    SWITCHYARD_HD friend pack multiply_add(pack a, pack b, pack c) {
#if defined(__FMA__) || defined(__CUDA_ARCH__)
        return {std::fma(a.v, b.v, c.v)};
#else
        return {a.v * b.v + c.v};
#endif
    }
    /// As rounding.hpp has it for a number.
    SWITCHYARD_HD friend pack settled(pack a) { return {switchyard::settled(a.v)}; }
    SWITCHYARD_HD friend pack rounded_times(pack a, pack b) { return {switchyard::rounded_times(a.v, b.v)}; }
    SWITCHYARD_HD friend pack square_root(pack a) { return {std::sqrt(a.v)}; }
    SWITCHYARD_HD friend std::uint32_t equal_bits(pack a, pack b) { return a.v == b.v ? 1u : 0u; }
    SWITCHYARD_HD friend std::uint32_t at_least_bits(pack a, pack b) { return a.v >= b.v ? 1u : 0u; }
    SWITCHYARD_HD friend S highest(pack a) { return a.v; }
    SWITCHYARD_HD friend S lowest(pack a) { return a.v; }
    SWITCHYARD_HD friend S total(pack a) { return a.v; }
    /// 2^n where `shifted` holds n + bias in its low mantissa bits; value where x >= limit, else 0.
    SWITCHYARD_HD friend pack scale_by_power(pack value, pack shifted, pack x, S limit) {
        using bits = typename float_bits<S>::type;
        bits word;
        std::memcpy(&word, &shifted.v, sizeof word);
        word = static_cast<bits>(static_cast<std::make_unsigned_t<bits>>(word) << float_bits<S>::mantissa);
        S power;
        std::memcpy(&power, &word, sizeof power);
        return {x.v < limit ? S(0) : value.v * power};
    }
};

#if SWITCHYARD_DETAIL_VECTORS

#if defined(__clang__)
#pragma clang diagnostic push
#pragma clang diagnostic ignored "-Wpsabi"  // packs wider than a register, in tests: never across a binary boundary
#endif

template <class S, int W>
struct pack {
    static_assert(W > 1 && (W & (W - 1)) == 0);
    static constexpr int width = W;
    using scalar = S;
    using bits = typename float_bits<S>::type;
    typedef S numbers __attribute__((vector_size(W * sizeof(S))));
    typedef bits words __attribute__((vector_size(W * sizeof(S))));
    /// A comparison's outcome, lane by lane.
    struct lane_words {
        words set;
    };
    using lane_mask = std::conditional_t<SWITCHYARD_DETAIL_AVX512 != 0 && W * sizeof(S) == 64,
                                         std::conditional_t<sizeof(S) == 4, std::uint16_t, std::uint8_t>, lane_words>;
    numbers v;

    static pack all(S x) { return {x - numbers{}}; }
    static pack load(const S* p) {
        pack r;
        std::memcpy(&r.v, p, sizeof r.v);
        return r;
    }
    void store(S* p) const { std::memcpy(p, &v, sizeof v); }

    /// Prefetches the numbers at p; p need not be readable.
    static void call_in(const S* p) { __builtin_prefetch(p); }

    /// Non-temporal store to an address that is a multiple of the pack's size. Fence before others read it.
    void stream(S* p) const {
#if SWITCHYARD_DETAIL_AVX512
        if constexpr (sizeof(numbers) == 64) {
            _mm512_stream_si512(reinterpret_cast<__m512i*>(p), reinterpret_cast<__m512i>(v));
            return;
        }
#endif
#if defined(__AVX__)
        if constexpr (sizeof(numbers) == 32) {
            _mm256_stream_si256(reinterpret_cast<__m256i*>(p), reinterpret_cast<__m256i>(v));
            return;
        }
#endif
#if defined(__SSE2__)
        if constexpr (sizeof(numbers) == 16) {
            _mm_stream_si128(reinterpret_cast<__m128i*>(p), reinterpret_cast<__m128i>(v));
            return;
        }
#endif
        store(p);
    }

    /// The first n numbers of p (0 <= n <= W; nothing beyond is read), then `fill`.
    static pack load_first(const S* p, index_t n, S fill) {
#if SWITCHYARD_DETAIL_AVX512
        if constexpr (sizeof(numbers) == 64) {
            if constexpr (sizeof(S) == 4) {
                const auto mask = static_cast<__mmask16>((1u << n) - 1u);
                return {reinterpret_cast<numbers>(_mm512_mask_loadu_ps(_mm512_set1_ps(fill), mask, p))};
            } else {
                const auto mask = static_cast<__mmask8>((1u << n) - 1u);
                return {reinterpret_cast<numbers>(_mm512_mask_loadu_pd(_mm512_set1_pd(fill), mask, p))};
            }
        }
#elif SWITCHYARD_DETAIL_AVX2
        if constexpr (sizeof(numbers) == 32) {
            const words mask = first(n);
            const auto raw = [&] {
                if constexpr (sizeof(S) == 4) {
                    return reinterpret_cast<numbers>(_mm256_maskload_ps(p, reinterpret_cast<__m256i>(mask)));
                } else {
                    return reinterpret_cast<numbers>(_mm256_maskload_pd(p, reinterpret_cast<__m256i>(mask)));
                }
            }();
            return {mask != 0 ? raw : all(fill).v};
        }
#endif
        alignas(numbers) S copy[W];
        for (int i = 0; i < W; ++i) {
            copy[i] = i < n ? p[i] : fill;
        }
        return load(copy);
    }

    /// Writes the first n numbers to p and nothing beyond.
    void store_first(S* p, index_t n) const {
#if SWITCHYARD_DETAIL_AVX512
        if constexpr (sizeof(numbers) == 64) {
            if constexpr (sizeof(S) == 4) {
                _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1u << n) - 1u), reinterpret_cast<__m512>(v));
            } else {
                _mm512_mask_storeu_pd(p, static_cast<__mmask8>((1u << n) - 1u), reinterpret_cast<__m512d>(v));
            }
            return;
        }
#elif SWITCHYARD_DETAIL_AVX2
        if constexpr (sizeof(numbers) == 32) {
            const words mask = first(n);
            if constexpr (sizeof(S) == 4) {
                _mm256_maskstore_ps(p, reinterpret_cast<__m256i>(mask), reinterpret_cast<__m256>(v));
            } else {
                _mm256_maskstore_pd(p, reinterpret_cast<__m256i>(mask), reinterpret_cast<__m256d>(v));
            }
            return;
        }
#endif
        for (int i = 0; i < W && i < n; ++i) {
            p[i] = v[i];
        }
    }

    friend pack operator+(pack a, pack b) { return {a.v + b.v}; }
    friend pack operator-(pack a, pack b) { return {a.v - b.v}; }
    friend pack operator*(pack a, pack b) { return {a.v * b.v}; }
    friend pack operator/(pack a, pack b) { return {a.v / b.v}; }
    /// Where a > b.
    friend lane_mask above(pack a, pack b) {
#if SWITCHYARD_DETAIL_AVX512
        if constexpr (sizeof(numbers) == 64 && sizeof(S) == 4) {
            return _mm512_cmp_ps_mask(reinterpret_cast<__m512>(a.v), reinterpret_cast<__m512>(b.v), _CMP_GT_OQ);
        } else if constexpr (sizeof(numbers) == 64) {
            return _mm512_cmp_pd_mask(reinterpret_cast<__m512d>(a.v), reinterpret_cast<__m512d>(b.v), _CMP_GT_OQ);
        } else
#endif
            return lane_words{a.v > b.v};
    }
    /// x where the mask is set, else y.
    friend pack where(lane_mask m, pack x, pack y) {
#if SWITCHYARD_DETAIL_AVX512
        if constexpr (sizeof(numbers) == 64 && sizeof(S) == 4) {
            return {reinterpret_cast<numbers>(
                _mm512_mask_blend_ps(m, reinterpret_cast<__m512>(y.v), reinterpret_cast<__m512>(x.v)))};
        } else if constexpr (sizeof(numbers) == 64) {
            return {reinterpret_cast<numbers>(
                _mm512_mask_blend_pd(m, reinterpret_cast<__m512d>(y.v), reinterpret_cast<__m512d>(x.v)))};
        } else
#endif
            return {m.set ? x.v : y.v};
    }
    /// Rows become columns: rows[i][j] and rows[j][i] change places.
    static void transpose(pack (&rows)[W]) { exchange<W / 2>(rows); }
    /// Lane r of rows[0] becomes combine(...) of all lanes of rows[r], in pairs, halves first. T is anything that has
    /// `template <class F> static T of(const F& f, const T& a, const T& b)`, which applies f to a's packs and b's.
    template <class T, class Combine>
    static void reduce_rows(T (&rows)[W], const Combine& combine) {
        reduce_blocks<W / 2>(rows, combine);
    }
    /// a > b ? a : b, so b where either is NaN.
    friend pack max(pack a, pack b) { return {a.v > b.v ? a.v : b.v}; }
    friend pack min(pack a, pack b) { return {a.v < b.v ? a.v : b.v}; }
    /// a with b in place of every x.
    friend pack replaced(pack a, pack x, pack b) { return {a.v == x.v ? b.v : a.v}; }
    /// x where a >= b, else y.
    friend pack at_least_or(pack a, pack b, pack x, pack y) { return {a.v >= b.v ? x.v : y.v}; }
    /// a * b + c, fused where the target has the instruction.
    friend pack multiply_add(pack a, pack b, pack c) {
#if SWITCHYARD_DETAIL_AVX512
        if constexpr (sizeof(numbers) == 64 && sizeof(S) == 4) {
            return {reinterpret_cast<numbers>(_mm512_fmadd_ps(
                reinterpret_cast<__m512>(a.v), reinterpret_cast<__m512>(b.v), reinterpret_cast<__m512>(c.v)))};
        } else if constexpr (sizeof(numbers) == 64) {
            return {reinterpret_cast<numbers>(_mm512_fmadd_pd(
                reinterpret_cast<__m512d>(a.v), reinterpret_cast<__m512d>(b.v), reinterpret_cast<__m512d>(c.v)))};
        }
#endif
#if defined(__FMA__)
        if constexpr (sizeof(numbers) == 32 && sizeof(S) == 4) {
            return {reinterpret_cast<numbers>(_mm256_fmadd_ps(
                reinterpret_cast<__m256>(a.v), reinterpret_cast<__m256>(b.v), reinterpret_cast<__m256>(c.v)))};
        } else if constexpr (sizeof(numbers) == 32) {
            return {reinterpret_cast<numbers>(_mm256_fmadd_pd(
                reinterpret_cast<__m256d>(a.v), reinterpret_cast<__m256d>(b.v), reinterpret_cast<__m256d>(c.v)))};
        } else if constexpr (sizeof(numbers) == 16 && sizeof(S) == 4) {
            return {reinterpret_cast<numbers>(_mm_fmadd_ps(reinterpret_cast<__m128>(a.v), reinterpret_cast<__m128>(b.v),
                                                           reinterpret_cast<__m128>(c.v)))};
        } else if constexpr (sizeof(numbers) == 16) {
            return {reinterpret_cast<numbers>(_mm_fmadd_pd(
                reinterpret_cast<__m128d>(a.v), reinterpret_cast<__m128d>(b.v), reinterpret_cast<__m128d>(c.v)))};
        }
#endif
        return {a.v * b.v + c.v};
    }
    /// As rounding.hpp has it for a number.
    friend pack settled(pack a) {
        // clang has no vector register for 8 bytes, either.
        if constexpr (sizeof(numbers) > register_bytes || sizeof(numbers) < 16) {
            asm("" : "+m"(a.v));
        } else {
#if SWITCHYARD_DETAIL_AVX512
            asm("" : "+v"(a.v));
#elif defined(__SSE2__)
            asm("" : "+x"(a.v));
#elif defined(__aarch64__)
            asm("" : "+w"(a.v));
#else
            asm("" : "+m"(a.v));
#endif
        }
        return a;
    }

    friend pack rounded_times(pack a, pack b) { return settled(a * b); }
    friend pack square_root(pack a) {
#if SWITCHYARD_DETAIL_AVX512
        if constexpr (sizeof(numbers) == 64 && sizeof(S) == 4) {
            return {reinterpret_cast<numbers>(_mm512_maskz_sqrt_ps(0xffff, reinterpret_cast<__m512>(a.v)))};
        } else if constexpr (sizeof(numbers) == 64) {
            return {reinterpret_cast<numbers>(_mm512_maskz_sqrt_pd(0xff, reinterpret_cast<__m512d>(a.v)))};
        }
#endif
#if defined(__AVX__)
        if constexpr (sizeof(numbers) == 32 && sizeof(S) == 4) {
            return {reinterpret_cast<numbers>(_mm256_sqrt_ps(reinterpret_cast<__m256>(a.v)))};
        } else if constexpr (sizeof(numbers) == 32) {
            return {reinterpret_cast<numbers>(_mm256_sqrt_pd(reinterpret_cast<__m256d>(a.v)))};
        }
#endif
        for (int i = 0; i < W; ++i) {
            a.v[i] = std::sqrt(a.v[i]);
        }
        return a;
    }

    /// Bit i is set where a[i] == b[i].
    friend std::uint32_t equal_bits(pack a, pack b) {
#if SWITCHYARD_DETAIL_AVX512
        if constexpr (sizeof(numbers) == 64 && sizeof(S) == 4) {
            return _mm512_cmp_ps_mask(reinterpret_cast<__m512>(a.v), reinterpret_cast<__m512>(b.v), _CMP_EQ_OQ);
        } else if constexpr (sizeof(numbers) == 64) {
            return _mm512_cmp_pd_mask(reinterpret_cast<__m512d>(a.v), reinterpret_cast<__m512d>(b.v), _CMP_EQ_OQ);
        }
#endif
        return sign_bits(a.v == b.v);
    }
    /// Bit i is set where a[i] >= b[i].
    friend std::uint32_t at_least_bits(pack a, pack b) {
#if SWITCHYARD_DETAIL_AVX512
        if constexpr (sizeof(numbers) == 64 && sizeof(S) == 4) {
            return _mm512_cmp_ps_mask(reinterpret_cast<__m512>(a.v), reinterpret_cast<__m512>(b.v), _CMP_GE_OQ);
        } else if constexpr (sizeof(numbers) == 64) {
            return _mm512_cmp_pd_mask(reinterpret_cast<__m512d>(a.v), reinterpret_cast<__m512d>(b.v), _CMP_GE_OQ);
        }
#endif
        return sign_bits(a.v >= b.v);
    }

    /// ranks[i] = how many of a come before a[i] when sorted downwards, equal ones in index order.
    static void store_ranks(pack a, std::int32_t* ranks) {
#if SWITCHYARD_DETAIL_AVX512
        if constexpr (W == 16) {
            const __m512 all_numbers = reinterpret_cast<__m512>(a.v);
            alignas(64) S lanes[W];
            a.store(lanes);
            const __m512i one = _mm512_set1_epi32(1);
            __m512i rank = _mm512_setzero_si512();
            std::uint32_t later = 0xfffe;
            for (int i = 0; i < W; ++i, later = later << 1 & 0xffff) {
                const __m512 mine = _mm512_set1_ps(lanes[i]);
                const __mmask16 above = _mm512_cmp_ps_mask(mine, all_numbers, _CMP_GT_OQ);
                const __mmask16 equal =
                    _mm512_mask_cmp_ps_mask(static_cast<__mmask16>(later), mine, all_numbers, _CMP_EQ_OQ);
                rank = _mm512_mask_add_epi32(rank, static_cast<__mmask16>(above | equal), rank, one);
            }
            _mm512_storeu_si512(ranks, rank);
            return;
        }
#endif
        alignas(64) S lanes[W];
        a.store(lanes);
        for (int i = 0; i < W; ++i) {
            // Those not below, minus those equal at or after i.
            const std::uint32_t not_below = at_least_bits(a, all(lanes[i]));
            const std::uint32_t equal = equal_bits(a, all(lanes[i]));
            ranks[i] = count_bits(not_below) - count_bits(equal >> i);
        }
    }

    /// The k-th largest of the numbers, 1 <= k <= W.
    static S kth_largest(pack a, int k) {
#if SWITCHYARD_DETAIL_AVX512
        if constexpr (W == 16) {
            const __m512 all_numbers = reinterpret_cast<__m512>(a.v);
            alignas(64) S lanes[W];
            a.store(lanes);
            const __m512i one = _mm512_set1_epi32(1);
            __m512i reach = _mm512_setzero_si512();  // how many are at least as large
            for (int i = 0; i < W; ++i) {
                const __mmask16 at_least = _mm512_cmp_ps_mask(_mm512_set1_ps(lanes[i]), all_numbers, _CMP_GE_OQ);
                reach = _mm512_mask_add_epi32(reach, at_least, reach, one);
            }
            const __mmask16 eligible = _mm512_cmpge_epi32_mask(reach, _mm512_set1_epi32(k));
            const __m512 lowest = _mm512_set1_ps(-std::numeric_limits<S>::infinity());
            return highest(pack{reinterpret_cast<numbers>(_mm512_mask_mov_ps(lowest, eligible, all_numbers))});
        }
#endif
        alignas(64) S lanes[W];
        a.store(lanes);
        S found = -std::numeric_limits<S>::infinity();
        for (int i = 0; i < W; ++i) {
            const bool eligible = count_bits(at_least_bits(a, all(lanes[i]))) >= k;
            const S candidate = eligible ? lanes[i] : -std::numeric_limits<S>::infinity();
            found = candidate > found ? candidate : found;
        }
        return found;
    }

    /// Whether `store_positions` needs no loop.
    static constexpr bool stores_positions_at_once = SWITCHYARD_DETAIL_AVX512 != 0 && (W == 8 || W == 16);

    /// Writes first + i to `positions` for every set bit i, in order. Up to W entries are overwritten.
    static void store_positions(std::int32_t* positions, std::uint32_t bits, std::int32_t first) {
#if SWITCHYARD_DETAIL_AVX512
        if constexpr (W == 16) {
            const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
            const __m512i all = _mm512_add_epi32(lane, _mm512_set1_epi32(first));
            _mm512_storeu_si512(positions, _mm512_maskz_compress_epi32(static_cast<__mmask16>(bits), all));
            return;
        } else if constexpr (W == 8) {
            const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
            const __m256i all = _mm256_add_epi32(lane, _mm256_set1_epi32(first));
            _mm256_storeu_si256(reinterpret_cast<__m256i*>(positions),
                                _mm256_maskz_compress_epi32(static_cast<__mmask8>(bits), all));
            return;
        }
#endif
        for (; bits != 0; bits &= bits - 1) {
            *positions++ = first + first_bit(bits);
        }
    }

    /// The largest of the numbers.
    friend S highest(pack a) {
        return fold(a, [](auto x, auto y) { return max(x, y); });
    }
    friend S lowest(pack a) {
        return fold(a, [](auto x, auto y) { return min(x, y); });
    }
    /// Their sum, halves first: (a0 + a[W/2]) + ...
    friend S total(pack a) {
        return fold(a, [](auto x, auto y) { return x + y; });
    }

    /// 2^n where `shifted` holds n + bias in its low mantissa bits; value where x >= limit, else 0.
    friend pack scale_by_power(pack value, pack shifted, pack x, S limit) {
        using unsigned_bits = std::make_unsigned_t<bits>;
        typedef unsigned_bits unsigned_words __attribute__((vector_size(W * sizeof(S))));
        const auto power =
            reinterpret_cast<numbers>(reinterpret_cast<unsigned_words>(shifted.v) << float_bits<S>::mantissa);
#if SWITCHYARD_DETAIL_AVX512
        if constexpr (sizeof(numbers) == 64 && sizeof(S) == 4) {
            const auto keep = _mm512_cmp_ps_mask(reinterpret_cast<__m512>(x.v), _mm512_set1_ps(limit), _CMP_NLT_UQ);
            return {reinterpret_cast<numbers>(
                _mm512_maskz_mul_ps(keep, reinterpret_cast<__m512>(value.v), reinterpret_cast<__m512>(power)))};
        }
#endif
        return {x.v < all(limit).v ? numbers{} : value.v * power};
    }

  private:
    /// One step of the transpose: blocks of Step x Step change places across the diagonal of those of twice the size.
    template <int Step>
    static void exchange(pack (&rows)[W]) {
        if constexpr (Step > 0) {
            for (int i = 0; i < W; ++i) {
                if ((i & Step) == 0) {
                    const numbers a = rows[i].v;
                    const numbers b = rows[i + Step].v;
                    rows[i].v = low_blocks<Step>(a, b, std::make_integer_sequence<int, W>{});
                    rows[i + Step].v = high_blocks<Step>(a, b, std::make_integer_sequence<int, W>{});
                }
            }
            exchange<Step / 2>(rows);
        }
    }
    template <int Step, class T, class Combine>
    static void reduce_blocks(T (&rows)[W], const Combine& combine) {
        if constexpr (Step > 0) {
            for (int i = 0; i < Step; ++i) {
                using lanes = std::make_integer_sequence<int, W>;
                const auto low = [](pack a, pack b) { return pack{low_blocks<Step>(a.v, b.v, lanes{})}; };
                const auto high = [](pack a, pack b) { return pack{high_blocks<Step>(a.v, b.v, lanes{})}; };
                rows[i] = combine(T::of(low, rows[i], rows[i + Step]), T::of(high, rows[i], rows[i + Step]));
            }
            reduce_blocks<Step / 2>(rows, combine);
        }
    }
    template <int Step, int... Lane>
    static numbers low_blocks(numbers a, numbers b, std::integer_sequence<int, Lane...>) {
        return __builtin_shufflevector(a, b, ((Lane & Step) == 0 ? Lane : W + Lane - Step)...);
    }
    template <int Step, int... Lane>
    static numbers high_blocks(numbers a, numbers b, std::integer_sequence<int, Lane...>) {
        return __builtin_shufflevector(a, b, ((Lane & Step) == 0 ? Lane + Step : W + Lane)...);
    }

    static words first(index_t n) {
        words lane;
        for (int i = 0; i < W; ++i) {
            lane[i] = static_cast<bits>(i);
        }
        return lane < (static_cast<bits>(n) - words{});
    }

    static std::uint32_t sign_bits(words mask) {
#if defined(__AVX__)
        if constexpr (sizeof(words) == 32 && sizeof(S) == 4) {
            return static_cast<std::uint32_t>(_mm256_movemask_ps(reinterpret_cast<__m256>(mask)));
        } else if constexpr (sizeof(words) == 32) {
            return static_cast<std::uint32_t>(_mm256_movemask_pd(reinterpret_cast<__m256d>(mask)));
        }
#endif
#if defined(__SSE2__)
        if constexpr (sizeof(words) == 16 && sizeof(S) == 4) {
            return static_cast<std::uint32_t>(_mm_movemask_ps(reinterpret_cast<__m128>(mask)));
        } else if constexpr (sizeof(words) == 16) {
            return static_cast<std::uint32_t>(_mm_movemask_pd(reinterpret_cast<__m128d>(mask)));
        }
#endif
        std::uint32_t set = 0;
        for (int i = 0; i < W; ++i) {
            set |= (mask[i] != 0 ? 1u : 0u) << i;
        }
        return set;
    }

    template <class Combine>
    static S fold(pack a, Combine combine) {
        constexpr int half = W / 2;
        pack<S, half> low;
        pack<S, half> high;
        std::memcpy(&low.v, &a.v, sizeof low.v);
        std::memcpy(&high.v, reinterpret_cast<const char*>(&a.v) + sizeof low.v, sizeof high.v);
        const pack<S, half> folded = combine(low, high);
        if constexpr (half == 1) {
            return folded.v;
        } else {
            return pack<S, half>::fold(folded, combine);
        }
    }

    template <class, int>
    friend struct pack;
};

#if defined(__clang__)
#pragma clang diagnostic pop
#endif

#endif  // SWITCHYARD_DETAIL_VECTORS

namespace detail {

/// a * b + c as exponentials are made of: in one rounding where the target has the instruction, or in two everywhere.
struct fused_steps {
    template <class P>
    SWITCHYARD_HD static P add_product(P a, P b, P c) {
        return multiply_add(a, b, c);
    }
};
struct rounded_steps {
    template <class P>
    SWITCHYARD_HD static P add_product(P a, P b, P c) {
        return rounded_times(a, b) + c;
    }
};

template <class Steps, class S, int W>
SWITCHYARD_HD pack<S, W> exponential(pack<S, W> x) {
    using P = pack<S, W>;
    using facts = float_bits<S>;
    // Adding 1.5 * 2^mantissa + bias leaves round(x / ln 2) + bias in the low bits of the sum. The sum and the first
    // difference are settled, since a compiler that may rearrange would take `shifted - magic` for x / ln 2.
    constexpr S magic = sizeof(S) == 4 ? S(12582912.0 + 127.0) : S(6755399441055744.0 + 1023.0);
    constexpr S log2_e = S(1.44269504088896340736);
    constexpr S ln2_high = sizeof(S) == 4 ? S(0.693145751953125) : S(6.93147180369123816490e-01);
    constexpr S ln2_low = sizeof(S) == 4 ? S(1.42860682030941723212e-6) : S(1.90821492927058770002e-10);
    const P shifted = settled(Steps::add_product(x, P::all(log2_e), P::all(magic)));
    const P n = shifted - P::all(magic);
    P r = settled(Steps::add_product(n, P::all(-ln2_high), x));
    r = Steps::add_product(n, P::all(-ln2_low), r);
    P y;
    if constexpr (sizeof(S) == 4) {
        y = P::all(S(0.008312501320796986));
        y = Steps::add_product(y, r, P::all(S(0.04189033181356822)));
        y = Steps::add_product(y, r, P::all(S(0.16667115389462486)));
        y = Steps::add_product(y, r, P::all(S(0.49999230307606046)));
    } else {
        y = P::all(S(1.0 / 6227020800.0));
        constexpr double factorials[] = {479001600.0, 39916800.0, 3628800.0, 362880.0, 40320.0, 5040.0,
                                         720.0,       120.0,      24.0,      6.0,      2.0};
        for (const double factorial : factorials) {
            y = Steps::add_product(y, r, P::all(S(1.0 / factorial)));
        }
    }
    y = Steps::add_product(y, r, P::all(S(1)));
    y = Steps::add_product(y, r, P::all(S(1)));
    return scale_by_power(y, shifted, x, facts::smallest_exponent);
}

}  // namespace detail

/// e^x for x <= 0, exactly 1 at 0, exactly 0 below smallest_exponent and at -infinity, NaN at NaN. Error below 2.5 ulp
/// in float (a minimax polynomial of degree 5 after reduction by ln 2; over all floats at most 2.2 with fused
/// multiply-add and 2.42 without) and below 2 ulp in double (degree 13).
template <class S, int W>
SWITCHYARD_HD pack<S, W> exp_nonpositive(pack<S, W> x) {
    return detail::exponential<detail::fused_steps>(x);
}

/// The same with every product rounded: bitwise identical on every target and at every width.
template <class S, int W>
SWITCHYARD_HD pack<S, W> exp_nonpositive_rounded(pack<S, W> x) {
    return detail::exponential<detail::rounded_steps>(x);
}

/// The same for one number.
template <class S>
SWITCHYARD_HD S exp_nonpositive(S x) {
    return exp_nonpositive(pack<S, 1>{x}).v;
}

}  // namespace SWITCHYARD_TARGET
}  // namespace switchyard

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic pop
#endif
