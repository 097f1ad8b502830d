// A small thread pool as an engine has one: threads that wait, a blocking parallel_for, nothing allocated per call.
#pragma once

#include <switchyard/core/config.hpp>

#include <condition_variable>
#include <memory>
#include <mutex>
#include <thread>
#include <type_traits>
#include <vector>

namespace switchyard_test {

class thread_pool {
  public:
    explicit thread_pool(int threads) {
        for (int i = 1; i < threads; ++i) workers_.emplace_back([this] { wait_for_work(); });
    }
    thread_pool(const thread_pool&) = delete;
    thread_pool& operator=(const thread_pool&) = delete;
    ~thread_pool() {
        {
            const std::lock_guard lock(mutex_);
            ends_ = true;
        }
        wake_.notify_all();
        for (auto& worker : workers_) worker.join();
    }

    template <class F>
    void parallel_for(switchyard::index_t blocks, F&& f) {
        using function = std::remove_reference_t<F>;
        std::unique_lock lock(mutex_);
        context_ = const_cast<void*>(static_cast<const void*>(std::addressof(f)));
        call_ = [](void* context, switchyard::index_t block) { (*static_cast<function*>(context))(block); };
        blocks_ = blocks;
        next_ = 0;
        wake_.notify_all();
        work(lock);
        done_.wait(lock, [this] { return running_ == 0; });
        blocks_ = 0;
        next_ = 0;
    }

  private:
    void wait_for_work() {
        std::unique_lock lock(mutex_);
        while (true) {
            wake_.wait(lock, [this] { return ends_ || next_ < blocks_; });
            if (ends_) return;
            work(lock);
        }
    }

    /// Takes blocks until there are none.
    void work(std::unique_lock<std::mutex>& lock) {
        while (next_ < blocks_) {
            const switchyard::index_t block = next_++;
            ++running_;
            lock.unlock();
            call_(context_, block);
            lock.lock();
            if (--running_ == 0) done_.notify_all();
        }
    }

    std::mutex mutex_;
    std::condition_variable wake_;
    std::condition_variable done_;
    std::vector<std::thread> workers_;
    void* context_ = nullptr;
    void (*call_)(void*, switchyard::index_t) = nullptr;
    switchyard::index_t blocks_ = 0;
    switchyard::index_t next_ = 0;
    int running_ = 0;
    bool ends_ = false;
};

}  // namespace switchyard_test
