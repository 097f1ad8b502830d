// Storage types and the type routing computes in: Switch's *selective precision*.
//
// Routing arithmetic is float32 or wider whatever the numbers are stored as. float computes in float, double in double;
// Eigen's half and bfloat16 (backend/eigen.hpp) and CUDA's (backend/cuda_scalars.hpp) are stored narrow and computed in
// float. To add a storage type, specialise `scalar_traits`.
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
