// Storage types and the type routing computes in: Switch's *selective precision*.
//
// Routing arithmetic is float32 or wider whatever the numbers are stored as. float computes in float, double in double;
// Eigen's half and bfloat16 (backend/eigen.hpp) and CUDA's (backend/cuda_scalars.hpp) are stored narrow and computed in
// float. To add a storage type, specialise `scalar_traits`.
//
// A specialisation whose numbers are 16 bits of a known format may say so: `static constexpr auto format =
// stored_format::bfloat16;`. Packs of such numbers are then converted together (core/stored.hpp); all others one by
// one.
#pragma once

#include <switchyard/core/config.hpp>

#include <concepts>
#include <type_traits>

namespace switchyard {

template <class Scalar>
struct scalar_traits;  // not defined: the type is not one routing knows

template <>
struct scalar_traits<float> {
    using compute = float;
    SWITCHYARD_HD SWITCHYARD_ALWAYS_INLINE static constexpr float load(float x) { return x; }
    SWITCHYARD_HD SWITCHYARD_ALWAYS_INLINE static constexpr float store(float x) { return x; }
};

template <>
struct scalar_traits<double> {
    using compute = double;
    SWITCHYARD_HD SWITCHYARD_ALWAYS_INLINE static constexpr double load(double x) { return x; }
    SWITCHYARD_HD SWITCHYARD_ALWAYS_INLINE static constexpr double store(double x) { return x; }
};

/// A type numbers can be stored in: it names its compute type and converts both ways.
template <class T>
concept storage_scalar = requires(T x, typename scalar_traits<std::remove_const_t<T>>::compute y) {
    { scalar_traits<std::remove_const_t<T>>::load(x) } -> std::same_as<decltype(y)>;
    { scalar_traits<std::remove_const_t<T>>::store(y) } -> std::same_as<std::remove_const_t<T>>;
};

/// What 16 bits of a stored number mean. load and store have to agree bit for bit: to the nearest number, halves to
/// even. Any NaN is stored in bfloat16 as 0x7fc0 with its sign. In half NaNs are as x86's F16C has them: quiet, with
/// their sign and the high bits of their payload.
enum class stored_format { unknown, bfloat16, half };

template <storage_scalar T>
inline constexpr stored_format format_of = [] {
    using traits = scalar_traits<std::remove_const_t<T>>;
    if constexpr (requires { traits::format; }) {
        static_assert(sizeof(T) == 2 && std::is_trivially_copyable_v<T>, "a stored_format is one of 16-bit numbers");
        static_assert(std::is_same_v<typename traits::compute, float>, "16-bit numbers are computed in float");
        return traits::format;
    } else {
        return stored_format::unknown;
    }
}();

/// float or double: what is computed when T is stored.
template <storage_scalar T>
using compute_t = typename scalar_traits<std::remove_const_t<T>>::compute;

/// Stored to computed and back.
template <storage_scalar T>
SWITCHYARD_HD SWITCHYARD_ALWAYS_INLINE constexpr compute_t<T> load_scalar(T x) {
    return scalar_traits<std::remove_const_t<T>>::load(x);
}
template <storage_scalar T>
SWITCHYARD_HD SWITCHYARD_ALWAYS_INLINE constexpr T store_scalar(compute_t<T> x) {
    return scalar_traits<T>::store(x);
}

}  // namespace switchyard
