// The device of tests/thrust/*_test.cpp when nvcc compiles them: the present CUDA device, on a stream of its own.
#pragma once

#include "support/address_space.hpp"

#include <switchyard/cuda.hpp>

namespace switchyard_test {

/// Made with the first test, and never destroyed: the runtime is gone before statics are.
inline cudaStream_t stream_of_tests() {
    static const cudaStream_t stream = [] {
        cudaStream_t made = nullptr;
        switchyard::require_cuda(cudaStreamCreateWithFlags(&made, cudaStreamNonBlocking), "cudaStreamCreateWithFlags");
        return made;
    }();
    return stream;
}

/// A policy, as the tests name it. Without a device there is no stream, and main() ends before any test asks for it.
inline const switchyard::cuda device = [] {
    int devices = 0;
    const bool is_there = cudaGetDeviceCount(&devices) == cudaSuccess && devices > 0;
    return switchyard::cuda{.stream = is_there ? stream_of_tests() : nullptr};
}();

/// A device has no addresses without memory, short of the driver's own interface: this takes all of it, and has no room
/// on a device that has less.
template <>
class address_space<switchyard::cuda> {
  public:
    explicit address_space(std::size_t bytes) {
        if (cudaMalloc(&data_, bytes) != cudaSuccess) {
            static_cast<void>(cudaGetLastError());
            data_ = nullptr;
        }
    }
    address_space(const address_space&) = delete;
    address_space& operator=(const address_space&) = delete;
    ~address_space() { cudaFree(data_); }
    void* data() const { return data_; }

  private:
    void* data_ = nullptr;
};

}  // namespace switchyard_test
