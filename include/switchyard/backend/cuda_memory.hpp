// Device memory of CUDA: a type of its own, from a resource of the caller's, in the order of a stream.
//
//   cuda_memory{}                                  cudaMalloc and cudaFree; the latter waits for the device
//   cuda_memory{.stream = s}                       cudaMallocAsync and cudaFreeAsync on the stream, from its pool
//   cuda_memory{.resource = &mine, .stream = s}    a resource of the caller's
//
// `views` of it have the space cuda_space: handing them to a CPU policy, or a CPU's to a policy of CUDA, does not
// compile. What is allocated on a stream is used on that stream, or after waiting for it.
#pragma once

#include <switchyard/backend/device.hpp>
#include <switchyard/core/config.hpp>
#include <switchyard/core/error.hpp>

#include <cuda_runtime_api.h>

#include <cstddef>

namespace switchyard {

/// A CUDA error as an exception, with the call that reported it.
inline void require_cuda(cudaError_t status, const char* call) {
    require(status == cudaSuccess, call, ": ", cudaGetErrorString(status));
}

/// Where device memory comes from. Memory is 64-byte aligned at least; what is given back may still be in use by work
/// that was enqueued on the stream before.
class cuda_resource {
  public:
    virtual void* allocate(std::size_t bytes, cudaStream_t stream) = 0;
    virtual void deallocate(void* pointer, std::size_t bytes, cudaStream_t stream) noexcept = 0;

  protected:
    ~cuda_resource() = default;
};

/// An allocator of bytes, such as Thrust's, as a resource: allocate(n) returns something that can be made a pointer to
/// bytes. It must be one whose memory may be used on any stream at once, and given back while in use.
template <class Allocator>
class allocator_resource final : public cuda_resource {
  public:
    explicit allocator_resource(Allocator& allocator) : allocator_(allocator) {}

    void* allocate(std::size_t bytes, cudaStream_t) override {
        return static_cast<void*>(static_cast<char*>(raw(allocator_.allocate(bytes))));
    }
    void deallocate(void* pointer, std::size_t bytes, cudaStream_t) noexcept override {
        using pointer_type = decltype(allocator_.allocate(bytes));
        allocator_.deallocate(pointer_type(static_cast<char*>(pointer)), bytes);
    }

  private:
    template <class Pointer>
    static auto raw(Pointer pointer) {
        if constexpr (requires { pointer.get(); }) {
            return pointer.get();
        } else {
            return pointer;
        }
    }
    Allocator& allocator_;
};

inline namespace SWITCHYARD_TARGET {

/// See above.
struct cuda_memory {
    using space = cuda_space;

    cuda_resource* resource = nullptr;
    cudaStream_t stream = nullptr;

    void* allocate(std::size_t bytes) const {
        void* pointer = nullptr;
        if (resource != nullptr) {
            return resource->allocate(bytes, stream);
        }
        if (stream != nullptr) {
            require_cuda(cudaMallocAsync(&pointer, bytes, stream), "cudaMallocAsync");
        } else {
            require_cuda(cudaMalloc(&pointer, bytes), "cudaMalloc");
        }
        return pointer;
    }
    /// An error here is one of the device's, which every later call reports, too.
    void deallocate(void* pointer, std::size_t bytes) const noexcept {
        if (resource != nullptr) {
            resource->deallocate(pointer, bytes, stream);
        } else if (stream != nullptr) {
            static_cast<void>(cudaFreeAsync(pointer, stream));
        } else {
            static_cast<void>(cudaFree(pointer));
        }
    }
};

}  // namespace SWITCHYARD_TARGET
}  // namespace switchyard
