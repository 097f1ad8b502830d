// The executor's device memory: ordinary memory with a space of its own, so that mixing it with host memory does not
// compile, filled with junk, and exactly as large as was asked for, so that AddressSanitizer sees the first byte
// beyond.
#pragma once

#include <cstddef>
#include <cstring>
#include <new>

namespace switchyard_test::simt {

/// The space of the executor's device memory.
struct device_space {};

/// What memory holds that nobody has written: as floats -4.3e8, as 32-bit integers -842150451.
inline constexpr int junk = 0xCD;

/// A Memory as in switchyard/core/memory.hpp, aligned as cudaMalloc's.
struct memory {
    using space = device_space;
    static constexpr std::size_t alignment = 256;

    static void* allocate(std::size_t bytes) {
        void* const made = ::operator new (bytes, std::align_val_t{alignment});
        std::memset(made, junk, bytes);
        return made;
    }
    static void deallocate(void* pointer, std::size_t /*bytes*/) noexcept {
        ::operator delete (pointer, std::align_val_t{alignment});
    }
};

}  // namespace switchyard_test::simt
