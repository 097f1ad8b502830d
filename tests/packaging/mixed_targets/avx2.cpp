#if !defined(__AVX2__) || defined(__AVX512F__) || defined(_OPENMP)
#error "compile this for AVX2, not for AVX-512, and without OpenMP"
#endif
#define ROUTE route_avx2
#include "route.inc"
