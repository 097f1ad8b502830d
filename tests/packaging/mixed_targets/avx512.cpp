#if !defined(__AVX512F__)
#error "compile this for AVX-512"
#endif
#define ROUTE route_avx512
#include "route.inc"
