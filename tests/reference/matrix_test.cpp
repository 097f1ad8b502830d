#include <switchyard/reference/matrix.hpp>

#include <doctest/doctest.h>

namespace ref = switchyard::reference;

TEST_CASE("reference matrix: product and transpose") {
    const ref::matrix a{{1, 2, 3}, {4, 5, 6}};
    const ref::matrix b{{1, 0}, {0, 1}, {2, -1}};
    CHECK(ref::matmul(a, b) == ref::matrix{{7, -1}, {16, -1}});
    CHECK(ref::transpose(a) == ref::matrix{{1, 4}, {2, 5}, {3, 6}});
    CHECK_THROWS_WITH_AS(ref::matmul(a, a), "a product of 2 x 3 and 2 x 3 needs equal inner sizes", switchyard::error);
    CHECK(ref::matmul(ref::matrix(0, 3), b) == ref::matrix(0, 2));
    CHECK(ref::matmul(ref::matrix(2, 0), ref::matrix(0, 2)) == ref::matrix(2, 2));
    CHECK_THROWS_AS((ref::matrix{{1, 2}, {3}}), switchyard::error);
}

TEST_CASE("reference matrix: copies strided views of any scalar") {
    float numbers[] = {1, 2, 3, 4, 5, 6};
    const switchyard::matrix_view<float> columns_first(numbers, 2, 3, 1, 2);
    CHECK(ref::matrix_from(columns_first) == ref::matrix{{1, 3, 5}, {2, 4, 6}});
}

TEST_CASE("reference mask: empty means that every row is a token") {
    CHECK(ref::count_tokens({}, 3) == 3);
    CHECK(ref::count_tokens({1, 0, 2}, 3) == 2);
    CHECK_THROWS_AS(ref::require_mask({1, 0}, 3), switchyard::error);
}
