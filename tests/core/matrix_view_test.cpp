#include <switchyard/core/matrix_view.hpp>

#include <doctest/doctest.h>

#include <array>
#include <cstdint>
#include <numeric>
#include <span>
#include <type_traits>
#include <vector>

namespace sy = switchyard;

// What crosses between objects built for different instruction sets must be plain data.
static_assert(std::is_trivially_copyable_v<sy::matrix_view<float>>);
static_assert(std::is_trivially_copyable_v<sy::matrix_view<const double>>);
static_assert(std::is_trivially_copyable_v<sy::token_mask>);

// A constant view may come from a mutable one, never the other way, and never from another memory or scalar.
static_assert(std::is_convertible_v<sy::matrix_view<float>, sy::matrix_view<const float>>);
static_assert(!std::is_convertible_v<sy::matrix_view<const float>, sy::matrix_view<float>>);
static_assert(!std::is_convertible_v<sy::matrix_view<float>, sy::matrix_view<const double>>);
namespace {
struct other_space {};
struct not_a_matrix {};
}  // namespace
static_assert(!std::is_convertible_v<sy::matrix_view<float, other_space>, sy::matrix_view<const float>>);

static_assert(sy::matrix_like<sy::matrix_view<float>>);
static_assert(sy::matrix_like<const sy::matrix_view<const float>&>);
static_assert(!sy::matrix_like<not_a_matrix>);
static_assert(std::is_same_v<sy::scalar_of<sy::matrix_view<const double>>, double>);
static_assert(std::is_same_v<sy::space_of<sy::matrix_view<float, other_space>>, other_space>);

TEST_CASE("matrix_view: row-major, column-major, block and broadcast are strides") {
    std::vector<int> numbers(12);
    std::iota(numbers.begin(), numbers.end(), 0);

    SUBCASE("row-major") {
        const sy::matrix_view<int> m(numbers.data(), 3, 4);
        CHECK(m(0, 0) == 0);
        CHECK(m(1, 0) == 4);
        CHECK(m(2, 3) == 11);
        CHECK(m.row(2) == numbers.data() + 8);
        CHECK(m.size() == 12);
        CHECK(m.rows_contiguous());
        CHECK_FALSE(m.empty());
    }
    SUBCASE("column-major") {
        const sy::matrix_view<int> m(numbers.data(), 3, 4, 1, 3);
        CHECK(m(1, 0) == 1);
        CHECK(m(0, 1) == 3);
        CHECK(m(2, 3) == 11);
        CHECK_FALSE(m.rows_contiguous());
    }
    SUBCASE("a block of a larger matrix") {
        const sy::matrix_view<int> m(numbers.data() + 5, 2, 2, 4, 1);
        CHECK(m(0, 0) == 5);
        CHECK(m(1, 1) == 10);
        CHECK(m.rows_contiguous());
    }
    SUBCASE("one row for all") {
        const sy::matrix_view<int> m(numbers.data(), 1000, 4, 0, 1);
        CHECK(m(999, 3) == 3);
    }
    SUBCASE("one column is contiguous whatever its stride") {
        CHECK(sy::matrix_view<int>(numbers.data(), 3, 1, 4, 7).rows_contiguous());
    }
    SUBCASE("writes go through") {
        const sy::matrix_view<int> m(numbers.data(), 3, 4);
        m(1, 2) = -1;
        CHECK(numbers[6] == -1);
    }
}

TEST_CASE("matrix_view: empty ones") {
    CHECK(sy::matrix_view<float>().empty());
    CHECK(sy::matrix_view<float>(nullptr, 0, 8).empty());
    CHECK(sy::matrix_view<float>(nullptr, 8, 0).empty());
    CHECK(sy::matrix_view<float>(nullptr, 0, 8).size() == 0);
}

TEST_CASE("matrix_view: positions beyond 2^31 elements, by strides over little memory") {
    // Rows overlap (stride 1), so that row 3 * 10^9 of a matrix as wide as that needs no such memory to be addressed.
    constexpr sy::index_t huge = 3'000'000'000;
    const sy::matrix_view<const float> m(nullptr, huge, huge, 1, 1);
    CHECK(m.size() == huge * huge);
    CHECK(m.size() > 0);

    std::array<std::uint8_t, 8> bytes{1, 2, 3, 4, 5, 6, 7, 8};
    const sy::matrix_view<const std::uint8_t> rows(bytes.data(), huge, 8, 0, 1);
    CHECK(rows(huge - 1, 7) == 8);
    // Row and column offsets above 2^31 that cancel: 32-bit arithmetic anywhere would land elsewhere.
    const sy::matrix_view<const std::uint8_t> cancel(bytes.data(), huge, huge, 1, -1);
    CHECK(cancel(huge - 1, huge - 4) == 4);
}

TEST_CASE("transposed: columns as rows, and back again") {
    std::vector<int> numbers(6);
    std::iota(numbers.begin(), numbers.end(), 0);
    const sy::matrix_view<int> m(numbers.data(), 2, 3);
    const auto t = sy::transposed(m);
    CHECK(t.rows == 3);
    CHECK(t.columns == 2);
    for (sy::index_t i = 0; i < 2; ++i) {
        for (sy::index_t j = 0; j < 3; ++j) {
            CHECK(t(j, i) == m(i, j));
        }
    }
    CHECK(sy::transposed(t).row_stride == m.row_stride);
}

TEST_CASE("view_of: a span with exactly the right count") {
    std::vector<float> numbers(6, 1.0f);
    const auto m = sy::view_of(std::span(numbers), 2, 3);
    CHECK(m.data == numbers.data());
    CHECK(m.row_stride == 3);
    std::array<const double, 2> fixed{1, 2};
    CHECK(sy::view_of(std::span(fixed), 1, 2)(0, 1) == 2);
    CHECK(sy::view_of(std::span<float>(), 0, 5).empty());
    CHECK_THROWS_WITH_AS(sy::view_of(std::span(numbers), 2, 4), "a span of 6 numbers cannot be viewed as 2 x 4",
                         sy::error);
    CHECK_THROWS_AS(sy::view_of(std::span(numbers), -2, -3), sy::error);
}

TEST_CASE("token_mask: null means that every row is a token") {
    const std::array<std::uint8_t, 3> bytes{1, 0, 255};
    const sy::token_mask mask{bytes.data(), 3};
    CHECK(mask(0));
    CHECK_FALSE(mask(1));
    CHECK(mask(2));
    CHECK(sy::token_mask{}(1'000'000));
}
