#!/usr/bin/env bash
# Compiles all kernels, Thrust on CUDA, the benchmark and the example for every major architecture that this nvcc knows,
# warnings as errors, and runs nothing. Ten minutes or more. .ci/run compiles the kernels of resources/kernels.cu for
# sm_80, sm_90 and sm_120, and all else, the GPU's tests as well, for sm_80.
#
#   bash tests/cuda/all_major.sh [NVCC]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
nvcc="${1:-nvcc}"
for source in tests/cuda/resources/kernels.cu tests/thrust/*.cu bench/gpu_bench.cu examples/cuda_*.cu; do
    echo "$source"
    "$nvcc" -std=c++20 -arch=all-major --extended-lambda --expt-relaxed-constexpr -Werror all-warnings \
        -Xcompiler -Wall,-Wextra,-Werror -Iinclude -c "$source" -o /dev/null
done
