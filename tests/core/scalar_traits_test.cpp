#include <switchyard/core/scalar_traits.hpp>

#include <doctest/doctest.h>

#include <cstdint>
#include <type_traits>

namespace sy = switchyard;

namespace {

// A storage type of a user's own: 16-bit fixed point, computed in float.
struct fixed_point {
    std::int16_t thousandths;
    friend bool operator==(const fixed_point&, const fixed_point&) = default;
};

}  // namespace

template <>
struct switchyard::scalar_traits<fixed_point> {
    using compute = float;
    static constexpr float load(fixed_point x) { return static_cast<float>(x.thousandths) / 1000.0f; }
    static constexpr fixed_point store(float x) { return {static_cast<std::int16_t>(x * 1000.0f)}; }
};

static_assert(sy::storage_scalar<float>);
static_assert(sy::storage_scalar<const double>);
static_assert(sy::storage_scalar<fixed_point>);
static_assert(!sy::storage_scalar<int>);
static_assert(!sy::storage_scalar<long double>);
static_assert(std::is_same_v<sy::compute_t<float>, float>);
static_assert(std::is_same_v<sy::compute_t<const double>, double>);
static_assert(std::is_same_v<sy::compute_t<fixed_point>, float>);

TEST_CASE("scalar_traits: float and double pass through, a narrow type goes through float") {
    CHECK(sy::load_scalar(0.1f) == 0.1f);
    CHECK(sy::store_scalar<double>(0.1) == 0.1);
    CHECK(sy::load_scalar(fixed_point{1500}) == 1.5f);
    CHECK(sy::store_scalar<fixed_point>(-0.25f) == fixed_point{-250});
}
