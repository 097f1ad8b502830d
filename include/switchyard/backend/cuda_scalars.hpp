// CUDA's 16-bit types as storage: stored narrow, computed in float. For .cu files.
#pragma once

#include <switchyard/core/config.hpp>
#include <switchyard/core/scalar_traits.hpp>

#if defined(__CUDACC__)
#include <cuda_bf16.h>
#include <cuda_fp16.h>

namespace switchyard {

template <>
struct scalar_traits<__half> {
    using compute = float;
    SWITCHYARD_HD static float load(__half x) { return __half2float(x); }
    SWITCHYARD_HD static __half store(float x) { return __float2half_rn(x); }
};
template <>
struct scalar_traits<__nv_bfloat16> {
    using compute = float;
    SWITCHYARD_HD static float load(__nv_bfloat16 x) { return __bfloat162float(x); }
    SWITCHYARD_HD static __nv_bfloat16 store(float x) { return __float2bfloat16_rn(x); }
};

}  // namespace switchyard
#endif
