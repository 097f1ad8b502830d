// What the compiler is, in six facts. The only macros of the library that other headers use are defined here.
//
//   SWITCHYARD_TARGET
//     an identifier that encodes the instruction set, whether OpenMP is on and whether nvcc compiles, for example
//     `avx512_omp` or `nvcc_sse2_serial`. Code whose instructions depend on those lives in
//     `namespace switchyard::inline SWITCHYARD_TARGET`, so that an engine may link objects built for AVX2 and for
//     AVX-512: each object keeps its own copy of every function, where one shared copy would bring AVX-512
//     instructions to a machine without them.
//   SWITCHYARD_HD
//     `__host__ __device__` under nvcc, nothing elsewhere.
//   SWITCHYARD_DEVICE
//     `__device__` under nvcc, nothing elsewhere: kernels (backend/kernel.hpp).
//   SWITCHYARD_ALWAYS_INLINE
//     for members of types outside that namespace (views, settings): never emitted on their own.
//   SWITCHYARD_EXCEPTIONS
//     1 when exceptions are on.
//
// What may cross a boundary between objects built for different instruction sets: trivially copyable types (views,
// settings, results without buffers) and `switchyard::error`. Owning types (plan, matrix, workspace) and all functions
// are per target; passing an owner across such a boundary is a link error, not a crash.
#pragma once

#include <cstdint>

#if (defined(_MSVC_LANG) ? _MSVC_LANG : __cplusplus) < 202002L
#error "switchyard needs C++20: compile with -std=c++20 (CMake: target_compile_features(<target> PUBLIC cxx_std_20))"
#include <switchyard needs C++20>  // no such file: compilers stop here, and what is above is not lost among errors
#endif

#if defined(__FINITE_MATH_ONLY__) && __FINITE_MATH_ONLY__
#error \
    "switchyard needs NaN and infinities: compile without -ffinite-math-only, part of -ffast-math and -Ofast, or add \
-fno-finite-math-only after it. -infinity forbids an expert, and NaN is refused by a comparison that the flag removes"
#endif

#if defined(__CUDACC__)
#define SWITCHYARD_HD __host__ __device__
#define SWITCHYARD_DEVICE __device__
#else
#define SWITCHYARD_HD
#define SWITCHYARD_DEVICE
#endif

#if defined(__GNUC__) || defined(__clang__)
#define SWITCHYARD_ALWAYS_INLINE __attribute__((always_inline)) inline
#else
#define SWITCHYARD_ALWAYS_INLINE __forceinline
#endif

// On a device a call costs registers and memory, however rare it is.
#if (defined(__GNUC__) || defined(__clang__)) && !defined(__CUDA_ARCH__)
#define SWITCHYARD_COLD __attribute__((cold, noinline))
#else
#define SWITCHYARD_COLD
#endif

#if defined(__cpp_exceptions) || defined(__EXCEPTIONS) || defined(_CPPUNWIND)
#define SWITCHYARD_EXCEPTIONS 1
#else
#define SWITCHYARD_EXCEPTIONS 0
#endif

#if defined(__AVX512F__) && defined(__AVX512DQ__) && defined(__AVX512BW__) && defined(__AVX512VL__)
#define SWITCHYARD_DETAIL_ISA avx512
#elif defined(__AVX2__) && defined(__FMA__)
#define SWITCHYARD_DETAIL_ISA avx2
#elif defined(__AVX__)
#define SWITCHYARD_DETAIL_ISA avx
#elif defined(__SSE4_1__)
#define SWITCHYARD_DETAIL_ISA sse4
#elif defined(__SSE2__) || defined(_M_X64)
#define SWITCHYARD_DETAIL_ISA sse2
#elif defined(__ARM_FEATURE_SVE)
#define SWITCHYARD_DETAIL_ISA sve
#elif defined(__ARM_NEON) || defined(_M_ARM64)
#define SWITCHYARD_DETAIL_ISA neon
#else
#define SWITCHYARD_DETAIL_ISA generic
#endif
#if defined(_OPENMP)
#define SWITCHYARD_DETAIL_OMP _omp
#else
#define SWITCHYARD_DETAIL_OMP _serial
#endif
#define SWITCHYARD_DETAIL_JOIN2(a, b) a##b
#define SWITCHYARD_DETAIL_JOIN(a, b) SWITCHYARD_DETAIL_JOIN2(a, b)
// nvcc compiles the host functions of .cu files without vectors (core/simd.hpp): they are not those of the .cpp files.
#if defined(__CUDACC__)
#define SWITCHYARD_TARGET \
    SWITCHYARD_DETAIL_JOIN(nvcc_, SWITCHYARD_DETAIL_JOIN(SWITCHYARD_DETAIL_ISA, SWITCHYARD_DETAIL_OMP))
#else
#define SWITCHYARD_TARGET SWITCHYARD_DETAIL_JOIN(SWITCHYARD_DETAIL_ISA, SWITCHYARD_DETAIL_OMP)
#endif

namespace switchyard {

/// Sizes, positions and counts: 64-bit everywhere, so that tokens x experts may exceed 2^31.
using index_t = std::int64_t;

}  // namespace switchyard
