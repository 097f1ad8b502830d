#include <switchyard/backend/policy.hpp>

#include <doctest/doctest.h>

#include <atomic>
#include <mutex>
#include <set>
#include <thread>
#include <vector>

namespace sy = switchyard;

namespace {

// A pool that keeps the contract in the hardest way: a new thread for every block, in falling order of blocks.
struct thread_a_block {
    int calls = 0;

    template <class F>
    void parallel_for(sy::index_t blocks, F&& f) {
        ++calls;
        std::vector<std::thread> threads;
        for (sy::index_t b = blocks - 1; b >= 0; --b) {
            threads.emplace_back([&f, b] { f(b); });
        }
        for (auto& thread : threads) {
            thread.join();
        }
    }
};

template <class Policy>
std::vector<int> visits(const Policy& policy, sy::index_t blocks) {
    std::vector<int> count(static_cast<std::size_t>(blocks), 0);
    policy.parallel_for(blocks, [&](sy::index_t b) { ++count[static_cast<std::size_t>(b)]; });
    return count;
}

}  // namespace

static_assert(sy::host_policy<sy::seq_policy>);
static_assert(sy::host_policy<decltype(sy::par)>);
static_assert(sy::thread_pool<thread_a_block>);
static_assert(!sy::thread_pool<int>);

TEST_CASE("seq: every block once, in order, in the calling thread") {
    std::vector<sy::index_t> order;
    sy::seq.parallel_for(5, [&](sy::index_t b) {
        order.push_back(b);
        CHECK(b >= 0);
    });
    CHECK(order == std::vector<sy::index_t>{0, 1, 2, 3, 4});
    CHECK(visits(sy::seq, 0).empty());
}

TEST_CASE("par_on(pool): every block once, and what blocks wrote is visible afterwards") {
    thread_a_block pool;
    for (const sy::index_t blocks : {2, 3, 17}) {
        CHECK(visits(sy::par_on(pool), blocks) == std::vector<int>(static_cast<std::size_t>(blocks), 1));
    }
    CHECK(pool.calls == 3);
}

TEST_CASE("par_on(pool): one block or none wakes no thread") {
    thread_a_block pool;
    std::thread::id ran_in;
    sy::par_on(pool).parallel_for(1, [&](sy::index_t) { ran_in = std::this_thread::get_id(); });
    CHECK(ran_in == std::this_thread::get_id());
    CHECK(visits(sy::par_on(pool), 0).empty());
    CHECK(pool.calls == 0);
}

#if defined(_OPENMP)
TEST_CASE("par: every block once, for any number of threads") {
    CHECK(visits(sy::par, 100) == std::vector<int>(100, 1));
    for (const int threads : {1, 2, 3, 8}) {
        CHECK(visits(sy::par_on(sy::openmp{.threads = threads}), 50) == std::vector<int>(50, 1));
    }
}

TEST_CASE("par_on(openmp{n}): as many threads as asked for, where blocks wait for each other") {
    // Each block waits until all three are running: this ends only if three threads exist.
    std::atomic<int> running = 0;
    sy::par_on(sy::openmp{.threads = 3}).parallel_for(3, [&](sy::index_t) {
        ++running;
        while (running.load() < 3) {
            std::this_thread::yield();
        }
    });
    CHECK(running == 3);
}

TEST_CASE("par: within a task of its own it still runs every block") {
    std::vector<std::vector<int>> inner(4);
    sy::par_on(sy::openmp{.threads = 2}).parallel_for(4, [&](sy::index_t b) {
        inner[static_cast<std::size_t>(b)] = visits(sy::par, 7);
    });
    for (const auto& counts : inner) {
        CHECK(counts == std::vector<int>(7, 1));
    }
}
#endif

TEST_CASE("rows_per_block, block_count: blocks cover the rows, and depend on the size alone") {
    CHECK(sy::block_count(0) == 0);
    CHECK(sy::block_count(1) == 1);
    CHECK(sy::block_count(256) == 1);
    CHECK(sy::block_count(257) == 2);
    for (const sy::index_t rows : {1LL, 255LL, 256LL, 1000LL, 65'536LL, 131'073LL, 1'000'003LL, 5'000'000'000LL}) {
        const sy::index_t per = sy::rows_per_block(rows);
        const sy::index_t blocks = sy::block_count(rows);
        CHECK(per >= 256);
        CHECK(blocks <= 512);
        CHECK(blocks * per >= rows);
        CHECK((blocks - 1) * per < rows);
    }
}
