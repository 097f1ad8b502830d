// One function, compiled twice: for AVX2 and for AVX-512. The views that carry its arguments cross between the objects.
#pragma once

#include <switchyard/core/matrix_view.hpp>

using switchyard::index_t;
using switchyard::matrix_view;

/// Draws scores, takes each row's best expert, and writes it and its score. Returns what the error says where the two
/// outputs do not fit each other, which is caught inside.
struct routed {
    index_t tokens;
    bool error_caught;
};

routed route_avx2(matrix_view<float> scores, matrix_view<std::int32_t> experts);
routed route_avx512(matrix_view<float> scores, matrix_view<std::int32_t> experts);
