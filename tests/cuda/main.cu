// The tests' main() for a GPU: exits with 77, which CTest counts as skipped, where there is none. What the program
// covers is compiled all the same, and claims.hpp's file says so.
#define DOCTEST_CONFIG_IMPLEMENT
#include <doctest/doctest.h>

#include "support/claims_listener.hpp"

#include <cuda_runtime_api.h>

#include <cstdio>

int main(int argc, char** argv) {
    int devices = 0;
    const cudaError_t status = cudaGetDeviceCount(&devices);
    if (status != cudaSuccess || devices == 0) {
        switchyard_test::claims_file().line("end", "skipped");
        std::printf("skipped: %s\n", status != cudaSuccess ? cudaGetErrorString(status) : "no CUDA device");
        return 77;
    }
    cudaDeviceProp properties{};
    if (cudaGetDeviceProperties(&properties, 0) == cudaSuccess) {
        std::printf("on %s, sm_%d%d\n", properties.name, properties.major, properties.minor);
        switchyard_test::device_name() = properties.name;
    }
    return doctest::Context(argc, argv).run();
}
