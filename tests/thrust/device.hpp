// What the tests of device policies share: the policy they are compiled for, and the comparison of a plan it made with
// the CPU backend's. The policy is Thrust's device system, unless SWITCHYARD_TEST_DEVICE names a header that defines
// another `device`.
//
// Integers must be equal. Gates and losses are compared with the double-precision reference, with the same tolerances
// as the CPU backend's (tests/support/compare.hpp): the two differ from each other in the order of their sums alone.
#pragma once

#include "support/address_space.hpp"
#include "support/compare.hpp"
#include "support/covers.hpp"
#include "support/scores.hpp"

#if defined(SWITCHYARD_TEST_DEVICE)
#include SWITCHYARD_TEST_DEVICE
#else
#include <switchyard/thrust.hpp>

namespace switchyard_test {
inline const auto device = switchyard::on_thrust(thrust::device);

template <>
inline constexpr matrix_column column_of<std::remove_const_t<decltype(device)>> =
#if THRUST_DEVICE_SYSTEM == THRUST_DEVICE_SYSTEM_TBB
    matrix_column::thrust_tbb;
#elif THRUST_DEVICE_SYSTEM == THRUST_DEVICE_SYSTEM_OMP
    matrix_column::thrust_omp;
#else
    matrix_column::thrust_cpp;
#endif
}  // namespace switchyard_test
#endif

#include <cmath>
#include <string>
#include <vector>

namespace switchyard_test {

using device_policy = std::remove_cvref_t<decltype(device)>;
using device_memory = device_policy::memory;
using device_space = device_memory::space;
template <class S>
using device_plan = sy::basic_plan<S, device_memory>;
using device_scratch = sy::basic_workspace<device_memory>;

/// A mask in device memory, and the one to pass.
struct device_mask {
    sy::buffer<std::uint8_t, device_memory> bytes;

    explicit device_mask(const ref::mask_list& mask) {
        if (!mask.empty()) {
            bytes = sy::copy_to_device(device, std::span(mask.data(), static_cast<std::size_t>(mask.length())));
        }
    }
    sy::token_mask get() const { return sy::token_mask_of(bytes); }
};

/// The first array in which two plans of equal shape differ.
template <class T>
std::string array_difference(const char* name, const T* got, const T* want, index_t count) {
    for (index_t i = 0; i < count; ++i) {
        if (!(got[i] == want[i])) return said(name, "[", i, "] is ", got[i], ", on the CPU ", want[i]);
    }
    return "";
}

/// Everything decided, counted and copied: exact.
template <class S>
std::string decision_difference(const sy::plan<S>& got, const sy::plan<S>& want) {
    const auto& a = got.view();
    const auto& b = want.view();
    if (a.tokens != b.tokens || a.experts != b.experts || a.choices != b.choices || a.capacity != b.capacity ||
        a.row_bound != b.row_bound || !(a.origin == b.origin)) {
        return "shape, capacity or origin differ";
    }
    const index_t positions = a.tokens * a.choices;
    if (a.totals->kept != b.totals->kept) return said("kept ", a.totals->kept, ", on the CPU ", b.totals->kept);
    if (a.totals->counted_tokens != b.totals->counted_tokens) return said("counted ", a.totals->counted_tokens);
    for (const auto& sentence : {array_difference("expert", a.expert, b.expert, positions),
                                 array_difference("slot", a.slot, b.slot, positions),
                                 array_difference("offsets", a.offsets, b.offsets, a.experts + 1),
                                 array_difference("order", a.order, b.order, b.totals->kept),
                                 array_difference("load_before", a.load_before, b.load_before, a.experts),
                                 array_difference("load_after", a.load_after, b.load_after, a.experts)}) {
        if (!sentence.empty()) return sentence;
    }
    return b.origin.training ? array_difference("balance_load", a.balance_load, b.balance_load, a.experts) : "";
}

/// Tables of numbers, to `allowed` times the largest of them (at least `scale`).
template <class S>
std::string matrix_difference(const sy::matrix<S>& got, const sy::matrix<S>& want, double allowed, double scale = 0) {
    double largest = scale;
    for (index_t i = 0; i < want.rows() * want.columns(); ++i) {
        largest = std::max(largest, std::abs(static_cast<double>(sy::load_scalar(want.data()[i]))));
    }
    for (index_t i = 0; i < want.rows() * want.columns(); ++i) {
        const auto x = static_cast<double>(sy::load_scalar(got.data()[i]));
        const auto y = static_cast<double>(sy::load_scalar(want.data()[i]));
        if (!(std::abs(x - y) <= allowed * largest)) return said("element ", i, " is ", x, ", on the CPU ", y);
    }
    return "";
}

/// A matrix of Gaussian numbers.
template <class S>
sy::matrix<S> gaussian(index_t rows, index_t columns, std::uint64_t seed) {
    return stored<S>(gaussian_scores(rows, columns, seed));
}

}  // namespace switchyard_test
