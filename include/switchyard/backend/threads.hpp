// Threads for `par_on`: a pool, and an adapter for pools that only take tasks.
//
//   worker_pool pool(8);                                     // eight threads, the caller's one of them
//   auto plan = route_scores(par_on(pool), router, scores, training{});
//
//   task_pool tasks(engine_pool, 8);                         // engine_pool.schedule(f) runs f() on some thread, some
//   time auto plan = route_scores(par_on(tasks), router, scores, training{});
//
// Which to use: a call with `par` ends at a barrier of OpenMP's whole team. If another process occupies a core, the
// team's thread on that core waits for a scheduler quantum, and all others wait for it. A call that takes 50 us on idle
// cores took 16 ms at the 90th percentile beside two busy processes. These two pools never wait for a thread that has
// not started, and took 72 us there. `par` is for machines that do nothing else.
//
// Both are for any number of callers at the same time and for calls from within their own blocks and tasks.
#pragma once

#include <switchyard/backend/policy.hpp>
#include <switchyard/core/config.hpp>
#include <switchyard/core/error.hpp>

#include <algorithm>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <thread>
#include <type_traits>
#include <vector>

namespace switchyard {

/// A pool that runs tasks on threads of its own: `schedule(f)` returns at once, and f() runs later, or never.
template <class Pool>
concept schedules_tasks = requires(Pool& pool, void (*f)()) {
    pool.schedule(f);
};

inline namespace SWITCHYARD_TARGET {

/// Threads that wait for work. A call's blocks are taken by any thread that is free, the caller's first of all. Since a
/// caller works on its own blocks and then waits only for those already running, calls from several threads and calls
/// from within a block never wait for each other in a ring.
class worker_pool {
  public:
    /// `threads` counts the caller's: n - 1 are started.
    explicit worker_pool(int threads) {
        require(threads >= 1, "a pool of ", threads, " threads: there must be at least the caller's");
        for (int i = 1; i < threads; ++i) {
            workers_.emplace_back([this] { wait_for_work(); });
        }
    }
    worker_pool(const worker_pool&) = delete;
    worker_pool& operator=(const worker_pool&) = delete;
    ~worker_pool() {
        {
            const std::lock_guard lock(mutex_);
            ends_ = true;
        }
        wake_.notify_all();
        for (std::thread& worker : workers_) {
            worker.join();
        }
    }

    /// Calls f(b) once for every b in 0 .. blocks-1 and returns when all have returned. f must not throw. The mutex
    /// that each block's end passes through makes what it wrote visible to the caller.
    template <class F>
    void parallel_for(index_t blocks, F&& f) {
        using function = std::remove_reference_t<F>;
        if (blocks <= 0) {
            return;
        }
        job mine{.call = [](const void* context, index_t block) { (*static_cast<const function*>(context))(block); },
                 .context = std::addressof(f),
                 .blocks = blocks};
        std::unique_lock lock(mutex_);
        mine.following = open_jobs_;
        open_jobs_ = &mine;
        wake_.notify_all();
        work_on(mine, lock);
        finished_.wait(lock, [&mine] { return mine.running == 0; });
    }

  private:
    /// A call of parallel_for. It lies on its caller's stack: nothing is allocated.
    struct job {
        void (*call)(const void* context, index_t block);
        const void* context;
        index_t blocks;
        index_t next = 0;          ///< the first block that no thread has taken
        index_t running = 0;       ///< blocks taken and not yet finished
        job* following = nullptr;  ///< of the list of jobs with blocks to take
    };

    void wait_for_work() {
        std::unique_lock lock(mutex_);
        while (true) {
            wake_.wait(lock, [this] { return ends_ || open_jobs_ != nullptr; });
            if (ends_) {
                return;
            }
            work_on(*open_jobs_, lock);
        }
    }

    /// Takes blocks until there are none; the lock is open while a block runs.
    void work_on(job& mine, std::unique_lock<std::mutex>& lock) {
        while (mine.next < mine.blocks) {
            const index_t block = mine.next++;
            if (mine.next == mine.blocks) {
                close(mine);
            }
            ++mine.running;
            lock.unlock();
            mine.call(mine.context, block);
            lock.lock();
            if (--mine.running == 0) {
                finished_.notify_all();
            }
        }
    }

    /// Takes a job out of the list.
    void close(job& mine) {
        job** link = &open_jobs_;
        while (*link != &mine) {
            link = &(*link)->following;
        }
        *link = mine.following;
    }

    std::mutex mutex_;
    std::condition_variable wake_;
    std::condition_variable finished_;
    std::vector<std::thread> workers_;
    job* open_jobs_ = nullptr;
    bool ends_ = false;
};

/// A pool of tasks as threads for `par_on`. Refers to the pool, which outlives it and may be shared. A call schedules a
/// task for each other thread it could use, takes blocks itself, and waits only for blocks that are running: tasks that
/// start when all blocks are taken do nothing. Allocates a few words per call, which the tasks share. Tasks are
/// copyable, as std::function asks.
template <schedules_tasks Pool>
class task_pool {
  public:
    /// At most `threads` threads, the caller's among them, work on a call.
    task_pool(Pool& pool, int threads) : pool_(&pool), threads_(threads) {
        require(threads >= 1, "a pool of ", threads, " threads: there must be at least the caller's");
    }

    /// Calls f(b) once for every b in 0 .. blocks-1 and returns when all have returned. f must not throw.
    template <class F>
    void parallel_for(index_t blocks, F&& f) {
        using function = std::remove_reference_t<F>;
        if (blocks <= 0) {
            return;
        }
        const auto mine = std::make_shared<job>();
        mine->call = [](const void* context, index_t block) { (*static_cast<const function*>(context))(block); };
        mine->context = std::addressof(f);
        mine->blocks = blocks;
        for (index_t i = std::min<index_t>(threads_, blocks); i > 1; --i) {
            pool_->schedule([mine] { mine->work(); });
        }
        mine->work();
        std::unique_lock lock(mine->mutex);
        mine->finished.wait(lock, [&mine] { return mine->running == 0; });
    }

  private:
    /// Outlives the call where tasks start late; these read no more than `next`.
    struct job {
        void (*call)(const void* context, index_t block) = nullptr;
        const void* context = nullptr;
        index_t blocks = 0;
        index_t next = 0;
        index_t running = 0;
        std::mutex mutex;
        std::condition_variable finished;

        void work() {
            std::unique_lock lock(mutex);
            while (next < blocks) {
                const index_t block = next++;
                ++running;
                lock.unlock();
                call(context, block);
                lock.lock();
                if (--running == 0) {
                    finished.notify_all();
                }
            }
        }
    };

    Pool* pool_;
    index_t threads_;
};

}  // namespace SWITCHYARD_TARGET
}  // namespace switchyard
