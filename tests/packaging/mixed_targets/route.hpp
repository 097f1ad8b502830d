// One function, compiled several times: for AVX2 with and without OpenMP, and for AVX-512. Only views, plain data and
// errors cross between the objects.
#pragma once

#include <switchyard/core/matrix_view.hpp>

#include <cstdint>

using switchyard::index_t;
using switchyard::matrix_view;

/// What every object must compute alike. `chosen` is [tokens, 4]: the experts of Switch, top-k (two choices) and BASE.
struct routed {
    index_t kept;
    bool error_caught;
    double output;  ///< sum of the combined rows
};

routed route_avx2(matrix_view<const float> x, matrix_view<const float> w, matrix_view<std::int32_t> chosen);
routed route_avx2_openmp(matrix_view<const float> x, matrix_view<const float> w, matrix_view<std::int32_t> chosen);
routed route_avx512(matrix_view<const float> x, matrix_view<const float> w, matrix_view<std::int32_t> chosen);
