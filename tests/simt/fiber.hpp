// Fibers: flows of control with stacks of their own, which hand over to each other by name.
//
// On x86-64 a switch is fifteen instructions that keep the registers a call must keep; elsewhere, and where
// SWITCHYARD_SIMT_UCONTEXT is defined, it is swapcontext, which also asks the kernel for the signal mask. Stacks come
// from mmap with a page below that may not be touched, so that a stack that overflows ends the program at once.
#pragma once

#include "simt/sanitizers.hpp"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstring>
#include <memory>
#include <new>
#include <vector>

#if defined(SWITCHYARD_SIMT_UCONTEXT) || !defined(__x86_64__) || (defined(__CET__) && (__CET__ & 2))
#define SWITCHYARD_SIMT_SWAPCONTEXT 1
#include <ucontext.h>
#endif

namespace switchyard_test::simt {

/// Where a flow of control stands while another runs: a fiber, or the caller of all fibers.
struct context {
#if defined(SWITCHYARD_SIMT_SWAPCONTEXT)
    ucontext_t registers{};
#else
    void* stack_pointer = nullptr;
#endif
    sanitizer::flow known;
};

namespace detail {

/// The switch that is on its way, read by the flow where it arrives.
struct passage {
    context* from = nullptr;
    context* to = nullptr;
};
inline constinit thread_local passage on_the_way{};

#if !defined(SWITCHYARD_SIMT_SWAPCONTEXT)
// g++ must not look into it to learn which registers it spares: another flow runs before it returns.
#if defined(__clang__)
#define SWITCHYARD_SIMT_OPAQUE __attribute__((naked, noinline))
#else
#define SWITCHYARD_SIMT_OPAQUE __attribute__((naked, noipa))
#endif
SWITCHYARD_SIMT_OPAQUE inline void swap_stacks(void** /*saved in*/, void* /*resumed*/) {
    asm("pushq %rbp\n\t"
        "pushq %rbx\n\t"
        "pushq %r12\n\t"
        "pushq %r13\n\t"
        "pushq %r14\n\t"
        "pushq %r15\n\t"
        "movq %rsp, (%rdi)\n\t"
        "movq %rsi, %rsp\n\t"
        "popq %r15\n\t"
        "popq %r14\n\t"
        "popq %r13\n\t"
        "popq %r12\n\t"
        "popq %rbx\n\t"
        "popq %rbp\n\t"
        "retq");
}
#undef SWITCHYARD_SIMT_OPAQUE
#endif

}  // namespace detail

/// Stops `from`, which is running, and runs `to` on; returns when something switches to `from` again.
SWITCHYARD_SIMT_UNSEEN inline void switch_context(context& from, context& to, bool for_good = false) {
    detail::on_the_way = {&from, &to};
    sanitizer::leave(from.known, to.known, for_good);
#if defined(SWITCHYARD_SIMT_SWAPCONTEXT)
    swapcontext(&from.registers, &to.registers);
#else
    detail::swap_stacks(&from.stack_pointer, to.stack_pointer);
#endif
    sanitizer::arrive(detail::on_the_way.from->known, from.known);
}

/// A stack on which `body(fiber)` runs when it is first switched to. It is parked, never ended, until the fiber dies:
/// then it is told so by `job == nullptr`, and returns.
class fiber : public context {
  public:
    using body_of = void (*)(fiber&);

    /// Stacks begin on pages: `shift` bytes, another number for each fiber, keep their tops from sharing cache lines'
    /// sets.
    fiber(body_of runs, std::size_t shift) : body_(runs) {
        const auto page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
        mapped_bytes_ = stack_bytes + page;
        mapped_ = mmap(nullptr, mapped_bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (mapped_ == MAP_FAILED || mprotect(mapped_, page, PROT_NONE) != 0) throw std::bad_alloc();
        auto* const lowest = static_cast<std::byte*>(mapped_) + page;
        known.stack = lowest;
        known.stack_bytes = stack_bytes;
        sanitizer::create(known);
#if defined(SWITCHYARD_SIMT_SWAPCONTEXT)
        getcontext(&registers);
        registers.uc_stack.ss_sp = lowest;
        registers.uc_stack.ss_size = stack_bytes - shift;
        makecontext(&registers, &begin, 0);
#else
        // As swap_stacks leaves a stack: six registers, then where to return to. 0 is begin's caller.
        void* const frame[] = {nullptr, nullptr, nullptr, nullptr, nullptr, nullptr, reinterpret_cast<void*>(&begin),
                               nullptr};
        stack_pointer = lowest + stack_bytes - shift - sizeof frame;
        std::memcpy(stack_pointer, frame, sizeof frame);
#endif
    }
    fiber(const fiber&) = delete;
    fiber& operator=(const fiber&) = delete;
    ~fiber() {
        if (begun_) {
            context here;
            job = nullptr;
            switch_context(here, *this);
        }
        sanitizer::destroy(known);
        munmap(mapped_, mapped_bytes_);
    }

    void* job = nullptr;  ///< what the body works for
    int thread = 0;       ///< and which thread of it

  private:
#if defined(SWITCHYARD_SIMT_ASAN) || defined(SWITCHYARD_SIMT_TSAN)
    static constexpr std::size_t stack_bytes = 256 * 1024;
#else
    static constexpr std::size_t stack_bytes = 64 * 1024;
#endif

    SWITCHYARD_SIMT_UNSEEN static void begin() {
        auto& self = static_cast<fiber&>(*detail::on_the_way.to);
        sanitizer::arrive(detail::on_the_way.from->known, self.known);
        self.begun_ = true;
        self.body_(self);
        switch_context(self, *detail::on_the_way.from, true);
    }

    body_of body_;
    void* mapped_ = nullptr;
    std::size_t mapped_bytes_ = 0;
    bool begun_ = false;
};

/// The fibers of one thread of the program, kept from launch to launch.
class fiber_pool {
  public:
    static fiber_pool& of_this_thread() {
        thread_local fiber_pool pool;
        return pool;
    }

    /// At least `count` fibers, all of which run `body`.
    void grow(int count, fiber::body_of body) {
        while (owned_.size() < static_cast<std::size_t>(count)) {
            owned_.push_back(std::make_unique<fiber>(body, owned_.size() % 64 * 64));
            fibers_.push_back(owned_.back().get());
        }
        first_ = fibers_.data();
    }
    SWITCHYARD_SIMT_UNSEEN fiber* at(int i) const { return first_[i]; }

    bool busy = false;  ///< a launch is under way

  private:
    std::vector<std::unique_ptr<fiber>> owned_;
    std::vector<fiber*> fibers_;
    fiber* const* first_ = nullptr;
};

}  // namespace switchyard_test::simt
