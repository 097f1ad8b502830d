// The library's pool of threads, an engine's own pool of tasks under it, and the proof that results are the same bits
// whichever threads made them.
#include <switchyard/backend/threads.hpp>
#include <switchyard/switchyard.hpp>

#include <algorithm>
#include <condition_variable>
#include <cstdio>
#include <deque>
#include <functional>
#include <mutex>
#include <random>
#include <thread>
#include <utility>
#include <vector>

namespace sy = switchyard;
using sy::index_t;

namespace engine {

/// A pool as many engines have one: it runs tasks, and cannot be waited for.
class task_queue {
  public:
    explicit task_queue(int threads) {
        for (int i = 0; i < threads; ++i) {
            workers_.emplace_back([this] { run(); });
        }
    }
    task_queue(const task_queue&) = delete;
    task_queue& operator=(const task_queue&) = delete;
    ~task_queue() {
        {
            const std::lock_guard lock(mutex_);
            ends_ = true;
        }
        wake_.notify_all();
        for (std::thread& worker : workers_) {
            worker.join();
        }
    }

    void schedule(std::function<void()> task) {
        {
            const std::lock_guard lock(mutex_);
            tasks_.push_back(std::move(task));
        }
        wake_.notify_one();
    }

  private:
    void run() {
        std::unique_lock lock(mutex_);
        while (true) {
            wake_.wait(lock, [this] { return ends_ || !tasks_.empty(); });
            if (tasks_.empty()) {
                return;
            }
            const std::function<void()> task = std::move(tasks_.front());
            tasks_.pop_front();
            lock.unlock();
            task();
            lock.lock();
        }
    }

    std::mutex mutex_;
    std::condition_variable wake_;
    std::deque<std::function<void()>> tasks_;
    std::vector<std::thread> workers_;
    bool ends_ = false;
};

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
        sy::worker_pool pool(threads);
        const auto plan = sy::route_scores(sy::par_on(pool), router, scores, sy::training{});
        // [/use]
        // [tasks]
        engine::task_queue queue(2);
        sy::task_pool tasks(queue, threads);  // queue.schedule(f) is all that is asked for
        const auto other = sy::route_scores(sy::par_on(tasks), router, scores, sy::training{});
        // [/tasks]
        const bool is_same = same_plan(plan, expected) && same_plan(other, expected);
        std::printf("%d threads: %lld of %lld choices kept, %s\n", threads, static_cast<long long>(plan.kept()),
                    static_cast<long long>(plan.expert().size()), is_same ? "the same bits as seq" : "OTHER BITS");
        all_same = all_same && is_same;
    }

    // From within the pool's own tasks: four layers routed at once, each with the pool that runs them.
    sy::worker_pool pool(2);
    sy::plan<float> plans[4];
    pool.parallel_for(
        4, [&](index_t layer) { plans[layer] = sy::route_scores(sy::par_on(pool), router, scores, sy::training{}); });
    for (const sy::plan<float>& plan : plans) {
        all_same = all_same && same_plan(plan, expected);
    }
    std::printf("four layers from within the pool: %s\n", all_same ? "the same bits" : "OTHER BITS");
    return all_same ? 0 : 1;
}
