// The threads that the whole program works with: the library's policy over a team of the program's own, used also for
// what is not the library's. Work is cut by sizes alone and sums have a fixed order, so results are the same bits for
// every number of threads.
//
// A step is a hundred short pieces of parallel work. A thread without work therefore looks out for some a while before
// it sleeps, and lets others on the machine run meanwhile: where cores are shared, waiting at full speed, as OpenMP's
// runtimes do, takes a step from milliseconds to tens of them.
#pragma once

#include <switchyard/switchyard.hpp>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <thread>
#include <type_traits>
#include <vector>

namespace study {

namespace sy = switchyard;
using sy::index_t;

/// A pool for sy::par_on: one caller, whose blocks are taken by any thread that is free, its own first of all.
class thread_team {
  public:
    explicit thread_team(int threads) {
        for (int i = 1; i < threads; ++i) {
            workers_.emplace_back([this] { wait_for_work(); });
        }
    }
    thread_team(const thread_team&) = delete;
    thread_team& operator=(const thread_team&) = delete;
    ~thread_team() {
        {
            const std::lock_guard lock(mutex_);
            ends_ = true;
            ++epoch_;
        }
        wake_.notify_all();
        for (std::thread& worker : workers_) {
            worker.join();
        }
    }

    /// f(b) for every b in 0 .. blocks-1; f must not throw, nor call parallel_for.
    template <class F>
    void parallel_for(index_t blocks, F&& f) {
        using function = std::remove_reference_t<F>;
        if (workers_.empty() || blocks <= 1) {
            sy::seq.parallel_for(blocks, f);
            return;
        }
        std::unique_lock lock(mutex_);
        call_ = [](const void* context, index_t block) { (*static_cast<const function*>(context))(block); };
        context_ = std::addressof(f);
        next_ = 0;
        blocks_ = blocks;
        ++epoch_;
        if (sleepers_ > 0) {
            wake_.notify_all();
        }
        take_blocks(lock);
        lock.unlock();
        while (running_.load(std::memory_order_acquire) > 0) {
            std::this_thread::yield();
        }
    }

  private:
    static constexpr int looks = 200;  ///< for work, before a thread sleeps

    void wait_for_work() {
        std::uint64_t seen = 0;
        while (true) {
            for (int i = 0; i < looks && epoch_.load(std::memory_order_relaxed) == seen; ++i) {
                std::this_thread::yield();
            }
            std::unique_lock lock(mutex_);
            ++sleepers_;
            wake_.wait(lock, [this, seen] { return epoch_.load(std::memory_order_relaxed) != seen; });
            --sleepers_;
            seen = epoch_;
            if (ends_) {
                return;
            }
            take_blocks(lock);
        }
    }

    /// Runs blocks until there are none to take; the lock is open while one runs.
    void take_blocks(std::unique_lock<std::mutex>& lock) {
        while (next_ < blocks_) {
            const index_t block = next_++;
            running_.fetch_add(1, std::memory_order_relaxed);
            lock.unlock();
            call_(context_, block);
            running_.fetch_sub(1, std::memory_order_release);
            lock.lock();
        }
    }

    std::mutex mutex_;
    std::condition_variable wake_;
    std::vector<std::thread> workers_;
    std::atomic<std::uint64_t> epoch_ = 0;  ///< counts the calls
    std::atomic<int> running_ = 0;          ///< blocks taken and not yet finished
    // Under the mutex:
    void (*call_)(const void* context, index_t block) = nullptr;
    const void* context_ = nullptr;
    index_t next_ = 0;
    index_t blocks_ = 0;
    int sleepers_ = 0;
    bool ends_ = false;
};

using thread_policy = decltype(sy::par_on(std::declval<thread_team&>()));

/// f(first, count) for pieces of at most `size` of 0 .. total-1.
template <class F>
void for_each_piece(const thread_policy& threads, index_t total, index_t size, const F& f) {
    threads.parallel_for((total + size - 1) / size,
                         [&](index_t piece) { f(piece * size, std::min(size, total - piece * size)); });
}

}  // namespace study
