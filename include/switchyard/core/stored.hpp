// Packs of stored numbers: what load_scalar and store_scalar do with one number, for a pack of them, with the same
// bits.
//
//   load_stored<P>(p)             P::width numbers at p, in the type of P
//   load_first_stored<P>(p, n)    the first n of them, then 0; nothing beyond is read
//   store_stored(x, p)            and back
//   store_first_stored(x, p, n)
//   stream_stored(x, p)           non-temporal; p is a multiple of the stored pack's size
//
// Numbers of the pack's own type move as they are. bfloat16 and half (scalar_traits' `format`) are converted together:
// by integer instructions, half by the processor's own conversion where the target has it. Numbers of any other type
// are converted one by one.
#pragma once

#include <switchyard/core/config.hpp>
#include <switchyard/core/scalar_traits.hpp>
#include <switchyard/core/simd.hpp>

#include <cstdint>
#include <cstring>
#include <type_traits>

namespace switchyard {
inline namespace SWITCHYARD_TARGET {

namespace detail {

/// Numbers of type T as numbers of type S, one by one.
template <class S, class T>
SWITCHYARD_HD constexpr S load_as(T x) {
    return static_cast<S>(load_scalar(x));
}
template <class T, class S>
SWITCHYARD_HD constexpr T store_as(S x) {
    return store_scalar<T>(static_cast<compute_t<T>>(x));
}

#if SWITCHYARD_DETAIL_VECTORS

template <class T, int W>
struct vector_of {
    typedef T type __attribute__((vector_size(W * sizeof(T))));
};

/// W floats and the 16-bit numbers they are stored as.
template <int W>
struct stored_pack {
    using numbers = typename pack<float, W>::numbers;
    using narrow = typename vector_of<std::uint16_t, W>::type;
    using words = typename vector_of<std::uint32_t, W>::type;
    using integers = typename vector_of<std::int32_t, W>::type;

    static words bits_of(numbers x) { return reinterpret_cast<words>(x); }
    static numbers of_bits(words x) { return reinterpret_cast<numbers>(x); }
    static words widen_bits(narrow x) {
#if SWITCHYARD_DETAIL_AVX512
        if constexpr (W == 16) {
            return reinterpret_cast<words>(_mm512_maskz_cvtepu16_epi32(0xffff, reinterpret_cast<__m256i>(x)));
        }
#endif
#if defined(__AVX2__)
        if constexpr (W == 8) {
            return reinterpret_cast<words>(_mm256_cvtepu16_epi32(reinterpret_cast<__m128i>(x)));
        }
#endif
        return __builtin_convertvector(x, words);
    }

    static numbers widen_bfloat16(narrow x) { return of_bits(widen_bits(x) << 16); }

    static narrow round_to_bfloat16(numbers x) {
        const words bits = bits_of(x);
        const words rounded = bits + 0x7fffu + (bits >> 16 & 1u);
        const integers nan = reinterpret_cast<integers>(bits & 0x7fffffffu) > 0x7f800000;
        const words quiet = (bits & 0x80000000u) | 0x7fc00000u;
        return __builtin_convertvector((nan ? quiet : rounded) >> 16, narrow);
    }

    /// Moves the exponent by integers; a multiplication-free renormalisation of denormals by one subtraction of floats.
    static numbers widen_half(narrow x) {
#if defined(__F16C__)
        if constexpr (W == 4) {
            __m128i low{};
            std::memcpy(&low, &x, sizeof x);
            return reinterpret_cast<numbers>(_mm_cvtph_ps(low));
        } else if constexpr (W == 8) {
            return reinterpret_cast<numbers>(_mm256_cvtph_ps(reinterpret_cast<__m128i>(x)));
        }
#if SWITCHYARD_DETAIL_AVX512
        if constexpr (W == 16) {
            return reinterpret_cast<numbers>(_mm512_maskz_cvtph_ps(0xffff, reinterpret_cast<__m256i>(x)));
        }
#endif
#endif
        const words wide = widen_bits(x);
        const words shifted = (wide & 0x7fffu) << 13;
        const words exponent = shifted & 0x0f800000u;
        const words normal = shifted + (112u << 23);
        const words smallest = words{} + (113u << 23);
        const words denormal = bits_of(of_bits(shifted + (113u << 23)) - of_bits(smallest));
        const words quiet = (shifted & 0x007fe000u) != 0u ? words{} + 0x00400000u : words{};
        const words infinite = (normal + (112u << 23)) | quiet;
        const words finite = exponent == 0u ? denormal : normal;
        const words magnitude = exponent == 0x0f800000u ? infinite : finite;
        return of_bits(magnitude | (wide & 0x8000u) << 16);
    }

    static narrow round_to_half(numbers x) {
#if defined(__F16C__)
        if constexpr (W == 4) {
            const __m128i low = _mm_cvtps_ph(reinterpret_cast<__m128>(x), _MM_FROUND_TO_NEAREST_INT);
            narrow r;
            std::memcpy(&r, &low, sizeof r);
            return r;
        } else if constexpr (W == 8) {
            return reinterpret_cast<narrow>(_mm256_cvtps_ph(reinterpret_cast<__m256>(x), _MM_FROUND_TO_NEAREST_INT));
        }
#if SWITCHYARD_DETAIL_AVX512
        if constexpr (W == 16) {
            return reinterpret_cast<narrow>(
                _mm512_maskz_cvtps_ph(0xffff, reinterpret_cast<__m512>(x), _MM_FROUND_TO_NEAREST_INT));
        }
#endif
#endif
        const words bits = bits_of(x);
        const words magnitude = bits & 0x7fffffffu;
        // Adding 0.5 rounds a half's denormals to their unit, 2^-24, in the low bits of the sum.
        const words one_half = words{} + (126u << 23);
        const words denormal = bits_of(of_bits(magnitude) + of_bits(one_half)) - one_half;
        const words normal = (magnitude - (112u << 23) + 0xfffu + (magnitude >> 13 & 1u)) >> 13;
        const words beyond = magnitude > 0x7f800000u ? 0x7e00u | (magnitude >> 13 & 0x3ffu) : words{} + 0x7c00u;
        const words finite = magnitude < (113u << 23) ? denormal : normal;
        const words rounded = magnitude >= (143u << 23) ? beyond : finite;
        return __builtin_convertvector(rounded | (bits >> 16 & 0x8000u), narrow);
    }

    template <stored_format Format>
    static numbers widen(narrow x) {
        return Format == stored_format::half ? widen_half(x) : widen_bfloat16(x);
    }
    template <stored_format Format>
    static narrow round(numbers x) {
        return Format == stored_format::half ? round_to_half(x) : round_to_bfloat16(x);
    }
};

/// Whether packs P of numbers stored as T are converted together.
template <class P, class T>
inline constexpr bool converts_packs =
    P::width > 1 && std::is_same_v<typename P::scalar, float>&& format_of<T> != stored_format::unknown;

#else

template <class P, class T>
inline constexpr bool converts_packs = false;

#endif

}  // namespace detail

template <class P, class T>
SWITCHYARD_HD P load_stored(const T* p) {
    using S = typename P::scalar;
    if constexpr (std::is_same_v<S, T>) {
        return P::load(p);
    } else if constexpr (detail::converts_packs<P, T>) {
#if SWITCHYARD_DETAIL_VECTORS
        using stored = detail::stored_pack<P::width>;
        typename stored::narrow bits;
        std::memcpy(&bits, p, sizeof bits);
        return {stored::template widen<format_of<T>>(bits)};
#endif
    } else {
        alignas(P) S numbers[P::width];
        for (int i = 0; i < P::width; ++i) {
            numbers[i] = detail::load_as<S>(p[i]);
        }
        return P::load(numbers);
    }
}

template <class P, class T>
SWITCHYARD_HD P load_first_stored(const T* p, index_t n) {
    using S = typename P::scalar;
    if constexpr (std::is_same_v<S, T>) {
        return P::load_first(p, n, S{});
    } else {
        alignas(P) S numbers[P::width] = {};
        for (index_t i = 0; i < n; ++i) {
            numbers[i] = detail::load_as<S>(p[i]);
        }
        return P::load(numbers);
    }
}

template <class P, class T>
SWITCHYARD_HD void store_stored(P x, T* p) {
    using S = typename P::scalar;
    if constexpr (std::is_same_v<S, T>) {
        x.store(p);
    } else if constexpr (detail::converts_packs<P, T>) {
#if SWITCHYARD_DETAIL_VECTORS
        const auto bits = detail::stored_pack<P::width>::template round<format_of<T>>(x.v);
        std::memcpy(static_cast<void*>(p), &bits, sizeof bits);
#endif
    } else {
        alignas(P) S numbers[P::width];
        x.store(numbers);
        for (int i = 0; i < P::width; ++i) {
            p[i] = detail::store_as<T>(numbers[i]);
        }
    }
}

template <class P, class T>
SWITCHYARD_HD void store_first_stored(P x, T* p, index_t n) {
    using S = typename P::scalar;
    if constexpr (std::is_same_v<S, T>) {
        x.store_first(p, n);
    } else {
        alignas(P) S numbers[P::width];
        x.store(numbers);
        for (index_t i = 0; i < n; ++i) {
            p[i] = detail::store_as<T>(numbers[i]);
        }
    }
}

/// Fence before others read what was streamed.
template <class P, class T>
SWITCHYARD_HD void stream_stored(P x, T* p) {
    if constexpr (std::is_same_v<typename P::scalar, T>) {
        x.stream(p);
    } else if constexpr (detail::converts_packs<P, T> && P::width >= 8) {
#if SWITCHYARD_DETAIL_VECTORS
        // As many bytes as half as many floats.
        using half_pack = pack<float, P::width / 2>;
        const auto bits = detail::stored_pack<P::width>::template round<format_of<T>>(x.v);
        half_pack{reinterpret_cast<typename half_pack::numbers>(bits)}.stream(reinterpret_cast<float*>(p));
#endif
    } else {
        store_stored(x, p);
    }
}

}  // namespace SWITCHYARD_TARGET
}  // namespace switchyard
