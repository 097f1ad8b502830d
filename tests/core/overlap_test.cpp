#include <switchyard/core/overlap.hpp>

#include <doctest/doctest.h>

#include <cstdint>
#include <random>
#include <string>
#include <vector>

namespace sy = switchyard;
using sy::index_t;
using sy::sharing;

namespace {

template <class T, class Space>
std::vector<bool> bytes_of_view(const sy::matrix_view<T, Space>& view, const std::vector<double>& memory) {
    std::vector<bool> touched(memory.size() * sizeof(double));
    const auto* const start = reinterpret_cast<const char*>(memory.data());
    for (index_t i = 0; i < view.rows; ++i) {
        for (index_t j = 0; j < view.columns; ++j) {
            const auto first = reinterpret_cast<const char*>(&view(i, j)) - start;
            for (std::size_t b = 0; b < sizeof(T); ++b) touched.at(static_cast<std::size_t>(first) + b) = true;
        }
    }
    return touched;
}

struct policy {};
struct measuring {
    static constexpr bool has_addresses = false;
};

}  // namespace

TEST_CASE("overlap: the same view, one shifted by a row, a number or a byte's worth of type") {
    std::vector<float> numbers(40);
    float* const p = numbers.data();
    const sy::matrix_view<float> m(p, 4, 5);
    CHECK(sy::sharing_of(m, sy::const_view(m)) == sharing::everything);
    CHECK(sy::sharing_of(m, sy::matrix_view<float>(p + 5, 4, 5)) == sharing::some);
    CHECK(sy::sharing_of(m, sy::matrix_view<float>(p + 1, 4, 5)) == sharing::some);
    CHECK(sy::sharing_of(m, sy::matrix_view<float>(p, 3, 5)) == sharing::some);
    CHECK(sy::sharing_of(m, sy::transposed(m)) == sharing::some);
    CHECK(sy::sharing_of(m, sy::matrix_view<float>(p + 20, 4, 5)) == sharing::nothing);
    CHECK(sy::sharing_of(m, sy::matrix_view<std::int32_t>(reinterpret_cast<std::int32_t*>(p), 4, 5)) == sharing::some);
    CHECK(sy::sharing_of(m, sy::matrix_view<float>(p, 0, 5)) == sharing::nothing);
    CHECK(sy::sharing_of(m, sy::matrix_view<float>()) == sharing::nothing);
    // The stride of a single row, or of a single column, addresses nothing.
    CHECK(sy::sharing_of(sy::matrix_view<float>(p, 1, 5, 7, 1), sy::matrix_view<float>(p, 1, 5, 5, 1)) ==
          sharing::everything);
    CHECK(sy::sharing_of(sy::matrix_view<float>(p, 5, 1, 2, 9), sy::matrix_view<float>(p, 5, 1, 2, 1)) ==
          sharing::everything);
}

TEST_CASE("overlap: parts of one matrix that lie apart") {
    std::vector<float> numbers(60);
    float* const p = numbers.data();
    const sy::matrix_view<float> left(p, 6, 4, 10, 1);
    CHECK(sy::sharing_of(left, sy::matrix_view<float>(p + 4, 6, 6, 10, 1)) == sharing::nothing);
    CHECK(sy::sharing_of(left, sy::matrix_view<float>(p + 3, 6, 6, 10, 1)) == sharing::some);
    CHECK(sy::sharing_of(left, sy::matrix_view<float>(p + 9, 6, 1, 10, 1)) == sharing::nothing);  // one column
    CHECK(sy::sharing_of(left, sy::matrix_view<float>(p + 24, 1, 6)) == sharing::nothing);        // part of a row
    CHECK(sy::sharing_of(left, sy::matrix_view<float>(p + 23, 1, 6)) == sharing::some);
    // Column-major, its upper and lower rows; even and odd columns; rows from last to first.
    CHECK(sy::sharing_of(sy::matrix_view<float>(p, 3, 6, 1, 10), sy::matrix_view<float>(p + 3, 7, 6, 1, 10)) ==
          sharing::nothing);
    CHECK(sy::sharing_of(sy::matrix_view<float>(p, 6, 5, 10, 2), sy::matrix_view<float>(p + 1, 6, 5, 10, 2)) ==
          sharing::nothing);
    CHECK(sy::sharing_of(sy::matrix_view<float>(p + 50, 6, 4, -10, 1), sy::matrix_view<float>(p + 4, 6, 6, 10, 1)) ==
          sharing::nothing);
    CHECK(sy::sharing_of(sy::matrix_view<float>(p + 50, 6, 4, -10, 1), left) == sharing::some);
}

TEST_CASE("overlap: random strided views against a map of bytes") {
    std::mt19937_64 random(5);
    const auto draw = [&](index_t low, index_t high) {
        return std::uniform_int_distribution<index_t>(low, high)(random);
    };
    std::vector<double> memory(400);
    const auto draw_view = [&]<class T>(T*, index_t common) {
        sy::matrix_view<T> view;
        view.rows = draw(1, 5);
        view.columns = draw(1, 4);
        view.row_stride = draw(0, 2) == 0 ? draw(0, 20) : common;
        view.column_stride = draw(0, 2) == 0 ? draw(0, 20) : draw(1, 3);
        if (draw(0, 1) == 0) std::swap(view.row_stride, view.column_stride);
        if (draw(0, 3) == 0) view.row_stride = -view.row_stride;
        if (draw(0, 3) == 0) view.column_stride = -view.column_stride;
        view.data = reinterpret_cast<T*>(memory.data() + 200) + draw(0, 24);
        return view;
    };
    index_t apart = 0, overlapping = 0, refused = 0;
    const auto compare = [&](const auto& a, const auto& b) {
        const auto of_a = bytes_of_view(a, memory);
        const auto of_b = bytes_of_view(b, memory);
        bool meet = false;
        for (std::size_t i = 0; i < of_a.size(); ++i) meet = meet || (of_a[i] && of_b[i]);
        const sharing found = sy::sharing_of(a, b);
        CHECK(found == sy::sharing_of(b, a));
        if (meet) CHECK(found != sharing::nothing);  // never missed
        overlapping += meet ? 1 : 0;
        apart += found == sharing::nothing ? 1 : 0;
        refused += !meet && found != sharing::nothing ? 1 : 0;
    };
    for (int i = 0; i < 20'000; ++i) {
        const index_t common = draw(1, 24);
        const auto a = draw_view(static_cast<float*>(nullptr), common);
        compare(a, draw_view(static_cast<float*>(nullptr), common));
        compare(a, draw_view(static_cast<std::uint16_t*>(nullptr), 2 * common));
    }
    CHECK(overlapping > 5'000);
    CHECK(apart > 5'000);
    CHECK(refused < 12'000);  // strides that do not fit each other
}

TEST_CASE("overlap: what is refused names both") {
    std::vector<float> numbers(40);
    const sy::matrix_view<float> m(numbers.data(), 4, 5);
    const sy::matrix_view<float> shifted(numbers.data() + 5, 4, 5);
    const sy::matrix_view<float> other(numbers.data() + 20, 4, 5);
    CHECK_NOTHROW(sy::require_apart<policy>("y", m, "rows", other));
    CHECK_THROWS_WITH_AS((sy::require_apart<policy>("y", m, "x", other, "rows", m)),
                         "y shares memory with rows: it must lie apart", sy::error);
    CHECK_NOTHROW(sy::require_apart_or_same<policy>("d", m, "s", m));
    CHECK_THROWS_WITH_AS((sy::require_apart_or_same<policy>("d", m, "s", shifted)),
                         "d shares memory with s and is another view: it must be the same view, or lie apart",
                         sy::error);
    // Where there are no addresses there is nothing to compare.
    CHECK_NOTHROW(sy::require_apart<measuring>("y", m, "rows", m));
    CHECK_NOTHROW(sy::require_apart_or_same<measuring>("y", m, "rows", shifted));
}
