// The library's pool and its adapter for pools of tasks: the contract of backend/policy.hpp.
#include <switchyard/backend/threads.hpp>

#include <doctest/doctest.h>

#include <atomic>
#include <functional>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

namespace sy = switchyard;

namespace {

/// Starts a thread for every task, at once or when asked; joins all of them at its end.
struct thread_a_task {
    bool waits = false;
    std::vector<std::function<void()>> kept;
    std::vector<std::thread> threads;
    std::mutex mutex;

    void schedule(std::function<void()> task) {
        const std::lock_guard lock(mutex);
        if (waits) {
            kept.push_back(std::move(task));
        } else {
            threads.emplace_back(std::move(task));
        }
    }
    ~thread_a_task() {
        for (auto& thread : threads) thread.join();
    }
};

template <class Policy>
std::vector<int> visits(const Policy& policy, sy::index_t blocks) {
    std::vector<int> count(static_cast<std::size_t>(blocks), 0);
    policy.parallel_for(blocks, [&](sy::index_t b) { ++count[static_cast<std::size_t>(b)]; });
    return count;
}

std::vector<int> once(sy::index_t blocks) { return std::vector<int>(static_cast<std::size_t>(blocks), 1); }

}  // namespace

static_assert(sy::thread_pool<sy::worker_pool>);
static_assert(sy::schedules_tasks<thread_a_task>);
static_assert(sy::thread_pool<sy::task_pool<thread_a_task>>);
static_assert(!sy::schedules_tasks<int>);

TEST_CASE("worker_pool: every block once, for any number of threads, blocks and callers") {
    for (const int threads : {1, 2, 5}) {
        sy::worker_pool pool(threads);
        for (const sy::index_t blocks : {0, 1, 2, 3, 100}) CHECK(visits(sy::par_on(pool), blocks) == once(blocks));
        std::vector<std::vector<int>> of_callers(3);
        std::vector<std::thread> callers;
        for (auto& mine : of_callers) {
            callers.emplace_back([&mine, &pool] {
                for (int i = 0; i < 20; ++i) mine = visits(sy::par_on(pool), 17);
            });
        }
        for (auto& caller : callers) caller.join();
        for (const auto& mine : of_callers) CHECK(mine == once(17));
        // From within a block.
        std::vector<std::vector<int>> inner(4);
        sy::par_on(pool).parallel_for(
            4, [&](sy::index_t b) { inner[static_cast<std::size_t>(b)] = visits(sy::par_on(pool), 9); });
        for (const auto& counts : inner) CHECK(counts == once(9));
    }
    CHECK_THROWS_WITH_AS(sy::worker_pool(0), "a pool of 0 threads: there must be at least the caller's", sy::error);
}

TEST_CASE("worker_pool: as many threads as asked for") {
    std::atomic<int> running = 0;
    sy::worker_pool pool(3);
    sy::par_on(pool).parallel_for(3, [&](sy::index_t) {  // ends only where three threads run
        ++running;
        while (running.load() < 3) std::this_thread::yield();
    });
    CHECK(running == 3);
}

TEST_CASE("task_pool: every block once, on the pool's threads and the caller's") {
    thread_a_task pool;
    sy::task_pool tasks(pool, 3);
    for (const sy::index_t blocks : {2, 3, 50}) CHECK(visits(sy::par_on(tasks), blocks) == once(blocks));
    CHECK(pool.threads.size() == 1 + 2 + 2);  // no more than blocks can use
    CHECK(visits(sy::par_on(tasks), 1) == once(1));
    CHECK(pool.threads.size() == 5);
    std::atomic<int> running = 0;
    sy::par_on(tasks).parallel_for(3, [&](sy::index_t) {
        ++running;
        while (running.load() < 3) std::this_thread::yield();
    });
    CHECK(running == 3);
    CHECK_THROWS_WITH_AS((sy::task_pool<thread_a_task>(pool, 0)),
                         "a pool of 0 threads: there must be at least the caller's", sy::error);
}

TEST_CASE("task_pool: a call does not wait for tasks that have not begun, and these then do nothing") {
    thread_a_task pool{.waits = true, .kept = {}, .threads = {}, .mutex = {}};
    {
        sy::task_pool tasks(pool, 4);
        CHECK(visits(sy::par_on(tasks), 10) == once(10));
    }
    CHECK(pool.kept.size() == 3);
    for (const auto& late : pool.kept) late();  // the call, its function and the adapter are gone
}
