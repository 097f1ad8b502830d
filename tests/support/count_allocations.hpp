// Counts every allocation of a test program: malloc and its kin, aligned_alloc, posix_memalign, and operator new, which
// goes through them. Include it in one file of a program.
#pragma once

#include <atomic>
#include <cstdlib>
#include <new>

namespace {

std::atomic<long> allocations{0};

}  // namespace

// Under a sanitizer its own hook sees every allocation; elsewhere glibc's functions are put behind counting ones,
// through which operator new goes, too.
#if defined(__SANITIZE_ADDRESS__)
#define COUNTED_BY_SANITIZER 1
#elif defined(__SANITIZE_THREAD__)
#define COUNTED_BY_THREAD_SANITIZER 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define COUNTED_BY_SANITIZER 1
#elif __has_feature(thread_sanitizer)
#define COUNTED_BY_THREAD_SANITIZER 1
#endif
#endif
#if defined(COUNTED_BY_THREAD_SANITIZER)
#define COUNTED_BY_SANITIZER 1
#endif

#if defined(COUNTED_BY_SANITIZER)
extern "C" int __sanitizer_install_malloc_and_free_hooks(void (*)(const volatile void*, std::size_t),
                                                         void (*)(const volatile void*));
namespace {
[[maybe_unused]] const int hooks = __sanitizer_install_malloc_and_free_hooks(
    [](const volatile void*, std::size_t) { ++allocations; }, [](const volatile void*) {});
}
#elif defined(__GLIBC__)
extern "C" {
void* __libc_malloc(std::size_t);
void* __libc_calloc(std::size_t, std::size_t);
void* __libc_realloc(void*, std::size_t);
void* __libc_memalign(std::size_t, std::size_t);

void* malloc(std::size_t size) noexcept {
    ++allocations;
    return __libc_malloc(size);
}
void* calloc(std::size_t count, std::size_t size) noexcept {
    ++allocations;
    return __libc_calloc(count, size);
}
void* realloc(void* old, std::size_t size) noexcept {
    ++allocations;
    return __libc_realloc(old, size);
}
void* memalign(std::size_t alignment, std::size_t size) noexcept {
    ++allocations;
    return __libc_memalign(alignment, size);
}
void* aligned_alloc(std::size_t alignment, std::size_t size) noexcept {
    ++allocations;
    return __libc_memalign(alignment, size);
}
int posix_memalign(void** pointer, std::size_t alignment, std::size_t size) noexcept {
    ++allocations;
    *pointer = __libc_memalign(alignment, size);
    return *pointer != nullptr ? 0 : 12;
}
}
#endif
