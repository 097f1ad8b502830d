// A launch: its blocks one after another, the threads of the block that runs, where each of them stands, and what they
// exchange. The kernel's side of it is thread.hpp.
//
// A thread gets a fiber when its turn comes first. Where a thread must wait, its fiber switches straight to that of the
// thread whose turn is next; where one returns, its fiber runs the next thread that has not begun, so that a kernel
// that never waits never switches. What is wrong is thrown as simt::error in the thread that did it; the others are
// then unwound by an exception of their own, and the launch throws the error on.
#pragma once

#include "simt/fiber.hpp"
#include "simt/memory.hpp"
#include "simt/order.hpp"
#include "simt/words.hpp"

#include <switchyard/backend/kernel.hpp>

#include <algorithm>
#include <cstring>
#include <exception>
#include <memory>
#include <sstream>
#include <string>
#include <vector>

namespace switchyard_test::simt {

/// Launches, and bytes of device memory that kernels read and wrote through load, store, their vectors and atomics.
struct traffic {
    std::int64_t launches = 0;
    std::int64_t loaded = 0;
    std::int64_t stored = 0;

    bool operator==(const traffic&) const = default;
};

/// What is launched, without its type.
struct job {
    const void* kernel = nullptr;
    void (*run)(const void* kernel, class block& in, int thread) = nullptr;
    int threads = 0;
    index_t blocks = 0;
    std::size_t shared_bytes = 0;
};

class block {
  public:
    block(const job& what, const order& in, traffic& counted, fiber_pool& fibers)
        : what_(what), turns_(in), counted_(counted), fibers_(fibers), warps_(what.threads / 32) {
        fibers_.grow(what.threads * fiber_sets, &work);
    }

    /// Runs the blocks in this sequence, all threads of each to their ends.
    SWITCHYARD_SIMT_UNSEEN void run(const std::vector<index_t>& sequence) {
        for (const index_t number : sequence) {
            number_ = number;
            begin();
            switch_context(home_, *fiber_for(turns_.next(runnable_, ready_)));
            if (has_failed_) unwind();
        }
        sanitizer::acquire(&ends_);
    }

    index_t number() const { return number_; }
    index_t blocks() const { return what_.blocks; }
    std::size_t peak_shared_bytes() const { return peak_shared_bytes_; }

    // What a thread may ask for, here for thread t.

    SWITCHYARD_SIMT_UNSEEN void count_load(std::size_t bytes) { counted_.loaded += static_cast<std::int64_t>(bytes); }
    SWITCHYARD_SIMT_UNSEEN void count_store(std::size_t bytes) { counted_.stored += static_cast<std::int64_t>(bytes); }

    SWITCHYARD_SIMT_UNSEEN bool is_shared(const void* at) const {
        for (int i = 0; i < pieces_; ++i) {
            const auto offset = reinterpret_cast<std::uintptr_t>(at) - reinterpret_cast<std::uintptr_t>(piece_[i].at);
            if (offset < piece_[i].bytes) return true;
        }
        return false;
    }

    /// The i-th piece of shared memory that thread t asks for.
    SWITCHYARD_SIMT_UNSEEN void* shared(int t, int i, std::size_t bytes) {
        if (i == pieces_) {
            add_piece(t, bytes);
        } else if (piece_[i].bytes != bytes) {
            fail("thread ", t, " of block ", number_, " asks for ", bytes, " bytes of shared memory where thread ",
                 piece_[i].thread, " asked for ", piece_[i].bytes);
        }
        sanitizer::acquire(&begins_);
        return piece_[i].at;
    }

    /// Waits for every thread of the block.
    SWITCHYARD_SIMT_UNSEEN void sync(int t, place where) {
        if (at_sync_ == 0) {
            sync_place_ = where;
        } else if (sync_place_ != where) {
            fail("divergent barrier in block ", number_, ": thread ", t, " is at sync (", where, "), ", at_sync_,
                 " other thread", at_sync_ == 1 ? "" : "s", " at sync (", sync_place_, ")");
        }
        char& ordering = sync_order_[begun_ % fiber_sets][sync_parity_];
        sanitizer::release(&ordering);
        const int w = t / 32;
        synced_[w] |= bit_of(t);
        stop(t);
        if (++at_sync_ == what_.threads) {
            at_sync_ = 0;
            sync_parity_ ^= 1;
            for (int i = 0; i < warps_; ++i) {
                synced_[i] = 0;
                resume(i);
            }
        }
        wait(t);
        sanitizer::acquire(&ordering);
    }

    /// Waits for the warp, and returns what the operation gives this lane of what each lane `gives`; `from` is the lane
    /// that a shuffle reads.
    SWITCHYARD_SIMT_UNSEEN std::uint64_t exchange(int t, operation what, place where, std::uint64_t gives = 0,
                                                  int from = 0) {
        warp& mine = warp_[t / 32];
        const int lane = t % 32;
        if (mine.waiting == 0) {
            mine.what = what;
            mine.where = where;
        } else if (mine.what != what || mine.where != where) {
            fail("lane ", lane, " of warp ", t / 32, " of block ", number_, " is at ", what, " (", where, "), lane ",
                 std::countr_zero(mine.waiting), " at ", mine.what, " (", mine.where, ")");
        }
        char* const ordering = what == operation::sync_warp ? &mine.order[begun_ % fiber_sets][mine.parity] : nullptr;
        if (ordering != nullptr) sanitizer::release(ordering);
        mine.given[lane] = gives;
        mine.from[lane] = from;
        mine.waiting |= bit_of(t);
        stop(t);
        if (mine.waiting == ~0u) {
            mine.complete();
            resume(t / 32);
        }
        wait(t);
        if (ordering != nullptr) sanitizer::acquire(ordering);
        return mine.result[lane];
    }

  private:
    static constexpr int fiber_sets = sanitizer::thread ? 4 : 1;
    struct unwound {};  ///< thrown in threads that wait when another has failed

    /// The lanes of a warp at an operation, and what they exchange.
    struct warp {
        std::uint32_t waiting = 0;
        operation what{};
        place where{};
        int parity = 0;
        char order[fiber_sets][2] = {};  ///< addresses for sanitizer::release, used in turn
        std::uint64_t given[32];
        std::uint64_t result[32];
        int from[32];

        SWITCHYARD_SIMT_UNSEEN void complete() {
            switch (what) {
                case operation::sync_warp:
                    parity ^= 1;
                    break;
                case operation::shuffle:
                case operation::shuffle_xor:
                case operation::shuffle_up:
                    for (int lane = 0; lane < 32; ++lane) result[lane] = given[from[lane]];
                    break;
                case operation::ballot:
                case operation::any: {
                    std::uint32_t lanes = 0;
                    for (int lane = 0; lane < 32; ++lane) lanes |= static_cast<std::uint32_t>(given[lane]) << lane;
                    for (std::uint64_t& each : result) each = lanes;
                    break;
                }
                case operation::match:
                    for (std::uint32_t left = ~0u; left != 0;) {
                        const std::uint64_t key = given[std::countr_zero(left)];
                        std::uint32_t equal = 0;
                        for (int lane = 0; lane < 32; ++lane) equal |= (given[lane] == key ? 1u : 0u) << lane;
                        for (int lane = 0; lane < 32; ++lane) {
                            if ((equal >> lane & 1u) != 0) result[lane] = equal;
                        }
                        left &= ~equal;
                    }
                    break;
            }
            waiting = 0;
        }
    };

    /// A piece of shared memory: exactly as large as was asked for.
    struct piece {
        void* at = nullptr;
        std::size_t bytes = 0;
        int thread = 0;  ///< that asked first
    };
    static constexpr int most_pieces = 32;

    static std::uint32_t bit_of(int t) { return 1u << (t % 32); }

    SWITCHYARD_SIMT_UNSEEN void begin() {
        ++begun_;
        turns_.begin_block();
        for (int w = 0; w < warps_; ++w) {
            warp_[w].waiting = 0;
            synced_[w] = returned_[w] = 0;
            resume(w);
        }
        for (int t = 0; t < what_.threads; ++t) {
            fiber_of_[t] = nullptr;
            idle_[t] = fibers_.at(what_.threads - 1 - t);
        }
        idle_count_ = what_.threads;
        left_ = what_.threads;
        at_sync_ = 0;
        pieces_ = 0;
        shared_bytes_ = 0;
        sanitizer::release(&begins_);
    }

    // Turns.

    SWITCHYARD_SIMT_UNSEEN void stop(int t) {
        if ((ready_[t / 32] &= ~bit_of(t)) == 0) runnable_ &= ~(1u << (t / 32));
    }
    SWITCHYARD_SIMT_UNSEEN void resume(int w) {
        ready_[w] = ~0u;
        runnable_ |= 1u << w;
    }

    /// The fiber of a thread whose turn it is: one that begins gets one that is idle. To ThreadSanitizer a fiber is a
    /// thread, so there each has its own, and blocks have those of other sets: nothing orders a block and the next one.
    SWITCHYARD_SIMT_UNSEEN fiber* fiber_for(int t) {
        fiber*& mine = fiber_of_[t];
        if (mine == nullptr) {
            const auto own = static_cast<int>(begun_ % fiber_sets * what_.threads + (t + begun_) % what_.threads);
            mine = sanitizer::thread ? fibers_.at(own) : idle_[--idle_count_];
            mine->job = this;
            mine->thread = t;
        }
        return mine;
    }

    /// Lets others run until t has its turn again.
    SWITCHYARD_SIMT_UNSEEN void wait(int t) {
        if (runnable_ == 0) fail(stuck());
        const int next = turns_.next(runnable_, ready_);
        if (next != t) {
            fiber* const own = fiber_of_[t];
            switch_context(*own, *fiber_for(next));
            if (has_failed_) throw unwound{};
        }
    }

    /// What each fiber does: the threads it is given, until it has no job.
    SWITCHYARD_SIMT_UNSEEN static void work(fiber& self) {
        while (self.job != nullptr) {
            context* const next = static_cast<block*>(self.job)->run_thread(self);
            if (next != &self) switch_context(self, *next);
        }
    }

    /// Runs a thread to its end; returns what runs next.
    SWITCHYARD_SIMT_UNSEEN context* run_thread(fiber& self) {
        const int t = self.thread;
        sanitizer::acquire(&begins_);
        try {
            what_.run(what_.kernel, *this, t);
            stop(t);
            returned_[t / 32] |= bit_of(t);
            --left_;
            if (left_ > 0 && runnable_ == 0) fail(stuck());
        } catch (const unwound&) {
        } catch (...) {
            failed_ = std::current_exception();
            has_failed_ = true;
        }
        sanitizer::release(&ends_);
        fiber_of_[t] = nullptr;
        if (has_failed_ || left_ == 0) return &home_;
        if (!sanitizer::thread) idle_[idle_count_++] = &self;
        return fiber_for(turns_.next(runnable_, ready_));
    }

    /// Unwinds the threads that wait, one after another, and throws what stopped the launch.
    SWITCHYARD_SIMT_UNSEEN void unwind() {
        for (int t = 0; t < what_.threads; ++t) {
            if (fiber_of_[t] != nullptr) switch_context(home_, *fiber_of_[t]);
        }
        sanitizer::acquire(&ends_);
        std::rethrow_exception(failed_);
    }

    SWITCHYARD_SIMT_UNSEEN void add_piece(int t, std::size_t bytes) {
        if (pieces_ == most_pieces) fail("a block cannot have more than ", most_pieces, " pieces of shared memory");
        const std::size_t end = (shared_bytes_ + 15) / 16 * 16 + bytes;
        if (end > what_.shared_bytes) {
            fail("thread ", t, " of block ", number_, " asks for ", bytes, " bytes of shared memory, ", end,
                 " in all: the "
                 "block was launched with ",
                 what_.shared_bytes);
        }
        const sanitizer::unseen records;
        piece& made = piece_[pieces_];
        if (made.at == nullptr || made.bytes != bytes || sanitizer::thread) {
            kept_.push_back(std::make_unique<std::byte[]>(bytes));
            made.at = kept_.back().get();
            made.bytes = bytes;
        }
        made.thread = t;
        std::memset(made.at, junk, bytes);
        ++pieces_;
        shared_bytes_ = end;
        peak_shared_bytes_ = std::max(peak_shared_bytes_, end);
    }

    /// Says why no thread can run: where each stands.
    std::string stuck() const;

    const job what_;
    turns turns_;
    traffic& counted_;
    fiber_pool& fibers_;
    const int warps_;
    context home_;
    index_t number_ = 0;
    index_t begun_ = 0;  ///< blocks
    bool has_failed_ = false;
    std::exception_ptr failed_;
    char begins_ = 0;  ///< addresses for sanitizer::release
    char ends_ = 0;

    std::uint32_t runnable_ = 0;  ///< warps with a thread that can run
    std::uint32_t ready_[32]{};   ///< and which
    std::uint32_t synced_[32]{};  ///< lanes that wait for the block
    std::uint32_t returned_[32]{};
    warp warp_[32];
    int at_sync_ = 0;
    place sync_place_{};
    int sync_parity_ = 0;
    char sync_order_[fiber_sets][2]{};
    int left_ = 0;             ///< threads that have not returned
    fiber* fiber_of_[1024]{};  ///< null before the first turn, and at the end
    fiber* idle_[1024]{};
    int idle_count_ = 0;

    piece piece_[most_pieces];
    int pieces_ = 0;
    std::vector<std::unique_ptr<std::byte[]>> kept_;  ///< the memory of all pieces, until the launch ends
    std::size_t shared_bytes_ = 0;
    std::size_t peak_shared_bytes_ = 0;
};

inline std::string block::stuck() const {
    enum class stands { at_sync, at_warp, nowhere };
    const auto where = [&](int t) {
        if ((warp_[t / 32].waiting & bit_of(t)) != 0) return stands::at_warp;
        return (synced_[t / 32] & bit_of(t)) != 0 ? stands::at_sync : stands::nowhere;
    };
    std::ostringstream text;
    text << "deadlock in block " << number_ << ": ";
    int said = 0;
    for (int first = 0, end = 0; first < what_.threads; first = end) {
        const stands at = where(first);
        const warp& in = warp_[first / 32];
        const auto stands_there = [&](int t) {
            const warp& other = warp_[t / 32];
            return where(t) == at && (at != stands::at_warp || (other.what == in.what && other.where == in.where));
        };
        while (end < what_.threads && stands_there(end)) ++end;
        if (said++ > 0) text << ", ";
        if (said > 8) {
            text << "and so on";
            break;
        }
        const bool one = end - first == 1;
        text << (one ? "thread " : "threads ") << first;
        if (!one) text << ".." << end - 1;
        if (at == stands::nowhere) {
            text << (one ? " has returned" : " have returned");
        } else if (at == stands::at_sync) {
            text << (one ? " waits" : " wait") << " at sync (" << sync_place_ << ')';
        } else {
            text << (one ? " waits" : " wait") << " at " << in.what << " (" << in.where << ')';
        }
    }
    for (int w = 0; w < warps_; ++w) {
        if (warp_[w].waiting == 0) continue;
        text << "; warp " << w << " (threads " << w * 32 << ".." << w * 32 + 31 << ") waits for lane "
             << std::countr_one(warp_[w].waiting);
        return text.str();
    }
    text << "; sync waits for every thread of the block";
    return text.str();
}

}  // namespace switchyard_test::simt
