// An engine's own threads under switchyard: a small pool whose `parallel_for` keeps the contract of backend/policy.hpp,
// and the proof that results are the same bits whichever threads made them.
#include <switchyard/switchyard.hpp>

#include <algorithm>
#include <condition_variable>
#include <cstdio>
#include <memory>
#include <mutex>
#include <random>
#include <thread>
#include <type_traits>
#include <vector>

namespace sy = switchyard;
using sy::index_t;

namespace engine {

// [pool]
/// Threads that wait for work. A call's blocks are taken by any thread that is free, the caller's first of all. Since a
/// caller works on its own blocks and then waits only for those already running, calls from several threads and calls
/// from within a block never wait for each other in a ring.
class thread_pool {
  public:
    explicit thread_pool(int threads) {
        for (int i = 1; i < threads; ++i) {
            workers_.emplace_back([this] { wait_for_work(); });
        }
    }
    thread_pool(const thread_pool&) = delete;
    thread_pool& operator=(const thread_pool&) = delete;
    ~thread_pool() {
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
        index_t next = 0;          ///< the first block that nobody has taken
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
// [/pool]

}  // namespace engine

namespace {

template <class T>
bool same(const sy::matrix_view<const T>& a, const sy::matrix_view<const T>& b) {
    return a.size() == b.size() && std::equal(a.data, a.data + a.size(), b.data);
}

bool same_plan(const sy::plan<float>& a, const sy::plan<float>& b) {
    return same(a.expert(), b.expert()) && same(a.slot(), b.slot()) && same(a.gate(), b.gate()) &&
           a.load_balancing_loss() == b.load_balancing_loss();
}

}  // namespace

int main() {
    std::mt19937 random(7);
    std::normal_distribution<float> gaussian;
    const Eigen::MatrixXf scores = Eigen::MatrixXf::NullaryExpr(20000, 64, [&] { return gaussian(random); });
    const sy::top_k_router router{.k = 2, .capacity = {.factor = 1.25}};
    const sy::plan<float> expected = sy::route_scores(sy::seq, router, scores, sy::training{});

    bool all_same = true;
    for (const int threads : {1, 2, 3, 8}) {
        // [use]
        engine::thread_pool pool(threads);
        const auto plan = sy::route_scores(sy::par_on(pool), router, scores, sy::training{});
        // [/use]
        const bool is_same = same_plan(plan, expected);
        std::printf("%d threads: %lld of %lld choices kept, %s\n", threads, static_cast<long long>(plan.kept()),
                    static_cast<long long>(plan.expert().size()), is_same ? "the same bits as seq" : "OTHER BITS");
        all_same = all_same && is_same;
    }

    // From within the pool's own tasks: four layers routed at once, each with the pool that runs them.
    engine::thread_pool pool(2);
    sy::plan<float> plans[4];
    pool.parallel_for(
        4, [&](index_t layer) { plans[layer] = sy::route_scores(sy::par_on(pool), router, scores, sy::training{}); });
    for (const sy::plan<float>& plan : plans) {
        all_same = all_same && same_plan(plan, expected);
    }
    std::printf("four layers from within the pool: %s\n", all_same ? "the same bits" : "OTHER BITS");
    return all_same ? 0 : 1;
}
