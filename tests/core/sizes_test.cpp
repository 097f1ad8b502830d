#include <switchyard/assignment/quotas.hpp>
#include <switchyard/core/memory.hpp>
#include <switchyard/core/sizes.hpp>
#include <switchyard/core/workspace.hpp>
#include <switchyard/plan/plan.hpp>
#include <switchyard/reference/matrix.hpp>
#include <switchyard/router/route.hpp>
#include <switchyard/router/switch.hpp>

#include <doctest/doctest.h>

#include <cstdint>
#include <limits>
#include <span>

namespace sy = switchyard;
using sy::index_t;

namespace {

constexpr index_t power(int exponent) { return index_t{1} << exponent; }
constexpr index_t most = std::numeric_limits<index_t>::max();

}  // namespace

static_assert(sy::product_of_sizes("", 6, 7) == 42 && sy::product_of_sizes("", 0, most) == 0);
static_assert(sy::product_of_sizes("", power(31), power(31)) == power(62));
static_assert(sy::product_of_sizes("", most, 1) == most && sy::product_of_sizes("", 1, most) == most);
static_assert(sy::bytes_of<double>(3) == 24);

TEST_CASE("sizes: a product that no index_t holds is an error that names both factors") {
    CHECK_THROWS_WITH_AS(sy::product_of_sizes("numbers", power(32), power(31)),
                         "4294967296 x 2147483648 numbers are more than a size can count, which is 2^63 - 1",
                         sy::error);
    CHECK_THROWS_WITH_AS(sy::product_of_sizes("rows", -1, 2), "-1 x 2 rows: a size must not be negative", sy::error);
    CHECK_THROWS_AS(sy::product_of_sizes("", most, 2), sy::error);
    CHECK_THROWS_AS(sy::product_of_sizes("", most / 3 + 1, 3), sy::error);
    CHECK(sy::product_of_sizes("", most / 3, 3) == most / 3 * 3);
    CHECK_THROWS_AS(sy::bytes_of<float>(power(61)), sy::error);
    CHECK_THROWS_AS(sy::bytes_of<float>(-1), sy::error);
}

TEST_CASE("sizes: matrices and buffers whose elements or bytes wrap to a small number are refused") {
    // Elements wrap to 0.
    CHECK_THROWS_WITH_AS((sy::matrix<float>(power(32), power(32))),
                         "4294967296 x 4294967296 numbers are more than a size can count, which is 2^63 - 1",
                         sy::error);
    // Elements do not wrap, their bytes do, to 0.
    CHECK_THROWS_WITH_AS((sy::matrix<float>(power(31), power(31))),
                         "4611686018427387904 x 4 bytes are more than a size can count, which is 2^63 - 1", sy::error);
    CHECK_THROWS_AS(sy::buffer<double>(power(61)), sy::error);
    CHECK_THROWS_AS(sy::buffer<float>(-1), sy::error);
    CHECK_THROWS_AS((switchyard::reference::matrix(power(32), power(32))), sy::error);
    CHECK_THROWS_AS(switchyard::reference::matrix(-1, 2), sy::error);
}

TEST_CASE("sizes: what was asked for too much keeps what it had, or is empty") {
    sy::matrix<float> m(2, 3);
    const float* const numbers = m.data();
    CHECK_THROWS_AS(m.resize(power(32), power(32)), sy::error);
    CHECK((m.rows() == 2 && m.columns() == 3 && m.data() == numbers));
    CHECK_THROWS_AS(m.resize(power(31), power(31)), sy::error);
    CHECK((m.rows() == 0 && m.columns() == 0));
    m.resize(2, 3);
    CHECK(m.data() == numbers);
}

TEST_CASE("sizes: a span is not viewed as more than it holds") {
    CHECK_THROWS_AS(sy::view_of(std::span<float>(), power(32), power(32)), sy::error);
    CHECK_THROWS_AS(sy::view_of(std::span<float>(), power(33), power(31)), sy::error);
    CHECK(sy::view_of(std::span<float>(), 0, power(40)).empty());
}

TEST_CASE("sizes: a workspace takes no array whose bytes wrap, and goes on working") {
    sy::workspace scratch;
    const auto scope = scratch.open();
    CHECK_THROWS_AS(scratch.take<double>(power(61)), sy::error);  // 2^64 bytes
    CHECK_THROWS_AS(scratch.take<double>(power(60)), sy::error);  // 2^63
    CHECK_THROWS_AS(scratch.take<std::uint8_t>(most), sy::error);
    CHECK_THROWS_AS(scratch.take<float>(-1), sy::error);
    auto* const one = scratch.take<float>(1);
    *one = 2;
    CHECK(*one == 2);
}

TEST_CASE("sizes: plans and quotas count choices without wrapping") {
    sy::plan<float> plan;
    plan.resize(3, 4, 2, 5);
    CHECK_THROWS_WITH_AS(plan.resize(power(32), 4, power(32), 5),
                         "4294967296 x 4294967296 choices are more than a size can count, which is 2^63 - 1",
                         sy::error);
    CHECK_THROWS_AS(plan.resize(1, power(61), 1, 5), sy::error);
    CHECK_THROWS_AS(plan.resize(power(62), 1, 1, 5), sy::error);
    CHECK((plan.tokens() == 3 && plan.experts() == 4 && plan.choices() == 2));
    CHECK_THROWS_AS(sy::row_bound(power(32), power(32), 4, 5), sy::error);
    CHECK(sy::row_bound(power(31), power(31), power(31), most) == power(62));
    CHECK_THROWS_AS(sy::require_quotas({.experts = 1, .upper_of_all = 1}, power(32), power(32)), sy::error);
}

TEST_CASE("sizes: shapes of tokens and weights that nothing can count are refused before any work") {
    const float number = 1;
    const auto repeated = [&](index_t rows, index_t columns) {
        return sy::matrix_view<const float>(&number, rows, columns, 0, 0);
    };
    const sy::switch_router router;
    CHECK_THROWS_AS(sy::route(sy::seq, router, repeated(power(61), 2), repeated(2, 4), sy::training{}), sy::error);
    CHECK_THROWS_AS(sy::route(sy::seq, router, repeated(power(32), power(32)), repeated(power(32), 1), sy::training{}),
                    sy::error);
}
