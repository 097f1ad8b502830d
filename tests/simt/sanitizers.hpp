// What AddressSanitizer and ThreadSanitizer are told of fibers. Without them, nothing: every function here is empty.
//
// To ThreadSanitizer each thread of a block is a thread of its own, and only what the kernel may rely on orders two of
// them: barriers, sync_warp, fences around atomics, the beginning and the end of a launch. The executor's own records
// are written by all of them in turn, so the functions that do are not looked at: SWITCHYARD_SIMT_UNSEEN.
#pragma once

#include <cstddef>

#if defined(__SANITIZE_ADDRESS__)
#define SWITCHYARD_SIMT_ASAN 1
#elif defined(__SANITIZE_THREAD__)
#define SWITCHYARD_SIMT_TSAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define SWITCHYARD_SIMT_ASAN 1
#elif __has_feature(thread_sanitizer)
#define SWITCHYARD_SIMT_TSAN 1
#endif
#endif

#if defined(SWITCHYARD_SIMT_ASAN)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#elif defined(SWITCHYARD_SIMT_TSAN)
#include <sanitizer/tsan_interface.h>
extern "C" {  // of ThreadSanitizer's library, in no header of its own
void AnnotateIgnoreReadsBegin(const char* file, int line);
void AnnotateIgnoreReadsEnd(const char* file, int line);
void AnnotateIgnoreWritesBegin(const char* file, int line);
void AnnotateIgnoreWritesEnd(const char* file, int line);
}
#endif

#if defined(SWITCHYARD_SIMT_TSAN)
#define SWITCHYARD_SIMT_UNSEEN __attribute__((no_sanitize("thread")))
#else
#define SWITCHYARD_SIMT_UNSEEN
#endif

namespace switchyard_test::simt::sanitizer {

#if defined(SWITCHYARD_SIMT_ASAN)
inline constexpr bool address = true;
#else
inline constexpr bool address = false;
#endif
#if defined(SWITCHYARD_SIMT_TSAN)
inline constexpr bool thread = true;
#else
inline constexpr bool thread = false;
#endif

/// What a sanitizer knows of one flow of control.
struct flow {
    const void* stack = nullptr;  ///< lowest address
    std::size_t stack_bytes = 0;
    void* fake_stack = nullptr;  ///< AddressSanitizer's, of a flow that does not run
    void* thread = nullptr;      ///< ThreadSanitizer's
};

inline void create([[maybe_unused]] flow& created) {
#if defined(SWITCHYARD_SIMT_TSAN)
    created.thread = __tsan_create_fiber(0);
#endif
}

inline void destroy([[maybe_unused]] flow& destroyed) {
#if defined(SWITCHYARD_SIMT_TSAN)
    __tsan_destroy_fiber(destroyed.thread);
#elif defined(SWITCHYARD_SIMT_ASAN)
    ASAN_UNPOISON_MEMORY_REGION(destroyed.stack, destroyed.stack_bytes);
#endif
}

/// Before `from` stops, and `to` runs on. A flow that stops `for_good` is never run again.
SWITCHYARD_SIMT_UNSEEN inline void leave([[maybe_unused]] flow& from, [[maybe_unused]] flow& to,
                                         [[maybe_unused]] bool for_good) {
#if defined(SWITCHYARD_SIMT_ASAN)
    __sanitizer_start_switch_fiber(for_good ? nullptr : &from.fake_stack, to.stack, to.stack_bytes);
#elif defined(SWITCHYARD_SIMT_TSAN)
    from.thread = __tsan_get_current_fiber();
    __tsan_switch_to_fiber(to.thread, __tsan_switch_to_fiber_no_sync);
#endif
}

/// The first thing that `to` does when it runs, again or for the first time, after `from`.
inline void arrive([[maybe_unused]] flow& from, [[maybe_unused]] flow& to) {
#if defined(SWITCHYARD_SIMT_ASAN)
    __sanitizer_finish_switch_fiber(to.fake_stack, &from.stack, &from.stack_bytes);
#endif
}

/// All that came before a release at an address comes before what follows an acquire there.
SWITCHYARD_SIMT_UNSEEN inline void release([[maybe_unused]] void* at) {
#if defined(SWITCHYARD_SIMT_TSAN)
    __tsan_release(at);
#endif
}
SWITCHYARD_SIMT_UNSEEN inline void acquire([[maybe_unused]] void* at) {
#if defined(SWITCHYARD_SIMT_TSAN)
    __tsan_acquire(at);
#endif
}

/// While it lives, ThreadSanitizer does not look at what the running thread does, in functions of others too: the
/// executor's own records are not the kernel's business.
class unseen {
  public:
    SWITCHYARD_SIMT_UNSEEN unseen() {
#if defined(SWITCHYARD_SIMT_TSAN)
        AnnotateIgnoreReadsBegin(__FILE__, __LINE__);
        AnnotateIgnoreWritesBegin(__FILE__, __LINE__);
#endif
    }
    unseen(const unseen&) = delete;
    unseen& operator=(const unseen&) = delete;
    SWITCHYARD_SIMT_UNSEEN ~unseen() {
#if defined(SWITCHYARD_SIMT_TSAN)
        AnnotateIgnoreWritesEnd(__FILE__, __LINE__);
        AnnotateIgnoreReadsEnd(__FILE__, __LINE__);
#endif
    }
};

}  // namespace switchyard_test::simt::sanitizer
