#if !defined(__AVX2__) || defined(__AVX512F__)
#error "compile this for AVX2, and not for AVX-512"
#endif
#define ROUTE route_avx2
#include "route.inc"
