// The executor runs kernels right: every operation in every order, its counters, its memory and its launches.
#include "simt/executor.hpp"

#include "simt/kernels.hpp"
#include "simt/wrong_kernels.hpp"

#include <switchyard/core/matrix_view.hpp>
#include <switchyard/core/memory.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <numeric>
#include <thread>
#include <vector>

using namespace switchyard_test;
using switchyard::index_t;

namespace {

/// Numbers in the executor's device memory, which is the host's.
template <class T>
struct device_numbers {
    switchyard::buffer<T, simt::memory> memory;

    explicit device_numbers(std::vector<T> from) : memory(static_cast<index_t>(from.size())) {
        std::copy(from.begin(), from.end(), memory.begin());
    }
    device_numbers(index_t count, T each) : device_numbers(std::vector<T>(static_cast<std::size_t>(count), each)) {}

    T* data() const { return memory.data(); }
    std::vector<T> all() const { return {memory.begin(), memory.end()}; }
    T operator[](index_t i) const { return memory.data()[i]; }
};

template <class T>
std::vector<T> counted_up(index_t count, T first, T step = 1) {
    std::vector<T> numbers(static_cast<std::size_t>(count));
    for (T& each : numbers) {
        each = first;
        first = static_cast<T>(first + step);
    }
    return numbers;
}

/// A permutation of 0 .. count - 1 without order, count a power of two.
std::vector<std::int32_t> shaken(index_t count) {
    std::vector<std::int32_t> numbers(static_cast<std::size_t>(count));
    for (index_t i = 0; i < count; ++i) {
        numbers[static_cast<std::size_t>(i)] = static_cast<std::int32_t>((i * 2654435769 + 12345) % count);
    }
    return numbers;
}

std::vector<std::int32_t> turns_in(const simt::order& in, index_t blocks, int rounds = 1) {
    const device_numbers<std::int32_t> count(1, 0);
    const device_numbers<std::int32_t> threads(blocks * rounds * 64, -1);
    simt::executor device(in);
    simt::policy{&device}.launch(simt::turn_of_thread{count.data(), threads.data(), rounds}, blocks);
    return threads.all();
}

/// These ranges of threads one after another, downwards where a range begins above its end.
std::vector<std::int32_t> one_after_another(const std::vector<std::pair<int, int>>& ranges) {
    std::vector<std::int32_t> threads;
    for (const auto& [first, last] : ranges) {
        const int step = first <= last ? 1 : -1;
        for (int t = first; t != last + step; t += step) threads.push_back(t);
    }
    return threads;
}

template <class T>
void check_shuffles(int distance) {
    const std::vector<T> x = counted_up<T>(64, 5, 3);
    const device_numbers<T> from(x);
    simt::for_each_order([&](simt::executor& device) {
        CAPTURE(device.order().name());
        const device_numbers<T> to(4 * 64, 0);
        simt::policy{&device}.launch(simt::shuffles<T>{from.data(), to.data(), distance}, 1);
        for (int t = 0; t < 64; ++t) {
            const int lane = t % 32;
            const int warp = t - lane;
            CHECK(to[t] == x[static_cast<std::size_t>(warp + (lane * 7 + 3) % 32)]);
            CHECK(to[64 + t] == x[static_cast<std::size_t>(warp + (lane ^ distance))]);
            CHECK(to[128 + t] == x[static_cast<std::size_t>(lane < distance ? t : t - distance)]);
            CHECK(to[192 + t] == std::accumulate(x.begin() + warp, x.begin() + t + 1, T{0}));
        }
    });
}

}  // namespace

TEST_CASE("every thread of every block runs once, in the order asked for") {
    const auto upwards = one_after_another({{0, 191}});
    const auto downwards = one_after_another({{191, 0}});
    using lanes = simt::lane_order;
    using blocks = simt::block_order;
    CHECK(turns_in({lanes::forward, blocks::forward}, 3) == upwards);
    CHECK(turns_in({lanes::reverse, blocks::reverse}, 3) == downwards);
    CHECK(turns_in({lanes::greedy, blocks::forward}, 3) == upwards);
    CHECK(turns_in({lanes::greedy_last, blocks::reverse}, 3) == downwards);
    CHECK(turns_in({lanes::forward, blocks::reverse}, 3) == one_after_another({{128, 191}, {64, 127}, {0, 63}}));
    CHECK(turns_in({lanes::reverse, blocks::forward}, 3) == one_after_another({{63, 0}, {127, 64}, {191, 128}}));
    const auto random = turns_in({lanes::random, blocks::random, 7}, 3);
    CHECK(random != upwards);
    CHECK(std::is_permutation(random.begin(), random.end(), upwards.begin()));
    CHECK(random == turns_in({lanes::random, blocks::random, 7}, 3));
    CHECK(random != turns_in({lanes::random, blocks::random, 8}, 3));
    std::vector<index_t> first_blocks;
    for (std::uint64_t seed = 1; seed <= 40; ++seed) {
        first_blocks.push_back(turns_in({lanes::forward, blocks::random, seed}, 3)[0] / 64);
    }
    for (index_t b = 0; b < 3; ++b) CHECK(std::count(first_blocks.begin(), first_blocks.end(), b) > 3);
}

TEST_CASE("only greedy orders let one warp run ahead of the others") {
    const auto turns = [](simt::lane_order lanes) { return turns_in({lanes, simt::block_order::forward}, 1, 2); };
    CHECK(turns(simt::lane_order::forward) == one_after_another({{0, 63}, {0, 63}}));
    CHECK(turns(simt::lane_order::reverse) == one_after_another({{63, 0}, {63, 0}}));
    CHECK(turns(simt::lane_order::greedy) == one_after_another({{0, 31}, {0, 31}, {32, 63}, {32, 63}}));
    CHECK(turns(simt::lane_order::greedy_last) == one_after_another({{63, 32}, {63, 32}, {31, 0}, {31, 0}}));
}

TEST_CASE("shuffles move numbers between the lanes of a warp") {
    for (const int distance : {0, 1, 2, 5, 16, 31}) {
        CAPTURE(distance);
        check_shuffles<float>(distance);
        check_shuffles<double>(distance);
        check_shuffles<std::int32_t>(distance);
        check_shuffles<std::int64_t>(distance);
    }
}

TEST_CASE("ballot, match and any see the lanes of a warp") {
    std::vector<std::int32_t> keys(96);
    for (int t = 0; t < 96; ++t) keys[static_cast<std::size_t>(t)] = t < 32 ? t * t % 7 - 3 : t < 64 ? t : 11;
    const device_numbers<std::int32_t> key(keys);
    simt::for_each_order([&](simt::executor& device) {
        CAPTURE(device.order().name());
        const device_numbers<std::uint32_t> odd(96, 0);
        const device_numbers<std::uint32_t> equal(96, 0);
        const device_numbers<std::int32_t> found(96, -1);
        simt::policy{&device}.launch(simt::votes{key.data(), odd.data(), equal.data(), found.data(), 40}, 1);
        for (int t = 0; t < 96; ++t) {
            std::uint32_t odds = 0;
            std::uint32_t equals = 0;
            for (int lane = 0; lane < 32; ++lane) {
                const std::int32_t other = keys[static_cast<std::size_t>(t / 32 * 32 + lane)];
                odds |= (other % 2 != 0 ? 1u : 0u) << lane;
                equals |= (other == keys[static_cast<std::size_t>(t)] ? 1u : 0u) << lane;
            }
            CHECK(odd[t] == odds);
            CHECK(equal[t] == equals);
            CHECK(found[t] == (t / 32 == 1 ? 1 : 0));
        }
    });
}

TEST_CASE_TEMPLATE("barriers: blocks sort their numbers", Size, std::integral_constant<int, 32>,
                   std::integral_constant<int, 256>, std::integral_constant<int, 1024>) {
    constexpr int threads = Size::value;
    const std::vector<std::int32_t> numbers = shaken(4 * threads);
    simt::for_each_order([&](simt::executor& device) {
        CAPTURE(device.order().name());
        const device_numbers<std::int32_t> sorted(numbers);
        simt::policy{&device}.launch(simt::block_sort<threads>{sorted.data()}, 4, threads * sizeof(std::int32_t));
        for (int b = 0; b < 4; ++b) {
            auto want = numbers;
            std::sort(want.begin() + b * threads, want.begin() + (b + 1) * threads);
            for (int t = b * threads; t < (b + 1) * threads; ++t) {
                if (sorted[t] != want[static_cast<std::size_t>(t)]) FAIL("block ", b, " is not sorted");
            }
        }
    });
}

TEST_CASE("sync_warp: each warp turns its numbers over") {
    const device_numbers<float> from(counted_up<float>(3 * 2048, 0.0f));
    simt::for_each_order([&](simt::executor& device) {
        CAPTURE(device.order().name());
        const device_numbers<float> to(3 * 2048, 0.0f);
        simt::policy{&device}.launch(simt::warp_transpose{from.data(), to.data()}, 3, 2048 * sizeof(float));
        bool right = true;
        for (int i = 0; i < 3 * 2048; ++i) right = right && to[i] == from[i / 1024 * 1024 + i % 32 * 32 + i / 32 % 32];
        CHECK(right);
    });
}

TEST_CASE("atomics count and take minima, in shared and in device memory") {
    constexpr index_t count = 300;
    std::vector<std::int32_t> keys(count);
    for (std::size_t i = 0; i < count; ++i) keys[i] = static_cast<std::int32_t>(i * i % 11 % simt::histogram::keys);
    const device_numbers<std::int32_t> key(keys);
    simt::for_each_order([&](simt::executor& device) {
        CAPTURE(device.order().name());
        const device_numbers<std::uint32_t> often(8, 0);
        const device_numbers<std::int64_t> first(8, 1'000'000);
        simt::policy{&device}.launch(simt::histogram{key.data(), often.data(), first.data(), count}, 5, 32);
        for (std::int32_t k = 0; k < 8; ++k) {
            const auto at = std::find(keys.begin(), keys.end(), k);
            CHECK(often[k] == std::count(keys.begin(), keys.end(), k));
            CHECK(first[k] == (at == keys.end() ? 1'000'000 : at - keys.begin()));
        }
        // 300 keys; 300 minima of 8 bytes; 8 numbers of 4 bytes a block. Atomics of shared memory are no traffic.
        CHECK(device.counted() == simt::traffic{1, 300 * 4 + 300 * 8 + 5 * 8 * 4, 300 * 8 + 5 * 8 * 4});
    });
}

TEST_CASE("vectors move as many numbers as fit an access") {
    simt::for_each_order([&](simt::executor& device) {
        CAPTURE(device.order().name());
        const simt::policy on{&device};
        const device_numbers<float> floats(counted_up<float>(400, 1.0f));
        const device_numbers<float> to_floats(400, 0.0f);
        on.launch(simt::copy_vectors<float, 4>{floats.data(), to_floats.data(), 100}, 1);
        CHECK(to_floats.all() == floats.all());
        const device_numbers<double> doubles(counted_up<double>(100, 1.0));
        const device_numbers<double> to_doubles(100, 0.0);
        on.launch(simt::copy_vectors<double, 2>{doubles.data(), to_doubles.data(), 50}, 1);
        CHECK(to_doubles.all() == doubles.all());
        const device_numbers<std::uint16_t> halves(counted_up<std::uint16_t>(80, 1));
        const device_numbers<std::uint16_t> to_halves(80, 0);
        on.launch(simt::copy_vectors<std::uint16_t, 8>{halves.data(), to_halves.data(), 10}, 1);
        CHECK(to_halves.all() == halves.all());
        CHECK(device.counted() == simt::traffic{3, 1600 + 800 + 160, 1600 + 800 + 160});
    });
}

TEST_CASE("traffic is what was loaded and stored since the last reset") {
    simt::executor device;
    const simt::policy on{&device};
    const device_numbers<float> from(2048, 1.0f);
    const device_numbers<float> to(2048, 0.0f);
    CHECK(device.counted() == simt::traffic{});
    on.launch(simt::warp_transpose{from.data(), to.data()}, 1, 8192);
    on.launch(simt::warp_transpose{from.data(), to.data()}, 1, 9000);
    CHECK(device.counted() == simt::traffic{2, 2 * 8192, 2 * 8192});
    CHECK(device.peak_shared_bytes() == 8192);
    device.reset();
    CHECK(device.counted() == simt::traffic{});
    CHECK(device.peak_shared_bytes() == 0);
    on.launch(simt::warp_transpose{from.data(), to.data()}, 0, 8192);
    CHECK(device.counted() == simt::traffic{});
    const device_numbers<std::int32_t> junk(2 * 32, 0);
    on.launch(simt::read_shared_junk{junk.data()}, 1, 48 + 128);
    CHECK(device.peak_shared_bytes() == 48 + 128);  // 33 bytes, then at the next multiple of 16
}

TEST_CASE("memory that nobody wrote holds junk, and shared memory does again in every block") {
    simt::for_each_order([&](simt::executor& device) {
        CAPTURE(device.order().name());
        const device_numbers<std::int32_t> found(3 * 64, 0);
        simt::policy{&device}.launch(simt::read_shared_junk{found.data()}, 3, 48 + 128);
        bool right = true;
        for (int i = 0; i < 3 * 32; ++i) {
            right = right && found[2 * i] == 0xCD && found[2 * i + 1] == static_cast<std::int32_t>(0xCDCDCDCD);
        }
        CHECK(right);
    });
    const switchyard::buffer<std::uint8_t, simt::memory> fresh(5);
    CHECK(std::all_of(fresh.begin(), fresh.end(), [](std::uint8_t each) { return each == simt::junk; }));
    static_assert(!switchyard::host_readable<simt::memory>);
    static_assert(
        !std::is_convertible_v<switchyard::matrix_view<float, simt::device_space>, switchyard::matrix_view<float>>);
}

TEST_CASE("copies between host and device memory") {
    const simt::policy on{};
    const device_numbers<float> numbers(3, 0.0f);
    const float from[] = {1.0f, 2.0f, 3.0f};
    float to[3] = {};
    on.copy_to_device(numbers.data(), from, sizeof from);
    on.copy_to_host(to, numbers.data(), sizeof to);
    CHECK(std::equal(from, from + 3, to));
    on.copy_to_host(nullptr, nullptr, 0);
}

TEST_CASE("fences order what blocks stored before the block that ends last") {
    simt::for_each_order([&](simt::executor& device) {
        CAPTURE(device.order().name());
        const device_numbers<std::int32_t> of_thread(4 * 64, 0);
        const device_numbers<std::int32_t> sums(2, 0);
        simt::policy{&device}.launch(simt::last_block_sums<true>{of_thread.data(), sums.data(), sums.data() + 1}, 4,
                                     16);
        CHECK(sums[1] == 64 * (1 + 2 + 3 + 4));
    });
}

namespace {

/// Keeps many numbers a thread over a barrier, as registers: 8 KiB of its stack.
struct keep_numbers {
    static constexpr int threads = 256;
    double* to;

    template <switchyard::kernel_thread Here>
    void operator()(Here& here) const {
        double numbers[1024];
        for (int i = 0; i < 1024; ++i) numbers[i] = here.thread() + i;
        here.sync();
        double sum = 0;
        for (int i = 0; i < 1024; ++i) sum += numbers[i] * here.shuffle(1.0, i % 32);
        here.store(to + here.block() * threads + here.thread(), sum);
    }
};

/// Fails in one thread, while others wait: some for the block, some for their warp.
struct fail_in_one {
    static constexpr int threads = 96;
    int failing;
    int* alive;

    struct counted {
        int* alive;
        explicit counted(int* count) : alive(count) { __atomic_fetch_add(alive, 1, __ATOMIC_RELAXED); }
        counted(const counted&) = delete;
        counted& operator=(const counted&) = delete;
        ~counted() { __atomic_fetch_sub(alive, 1, __ATOMIC_RELAXED); }
    };

    template <switchyard::kernel_thread Here>
    void operator()(Here& here) const {
        const counted self(alive);
        here.sync();
        if (here.thread() == failing) throw std::out_of_range("a kernel's own");
        if (here.thread() / 32 == 1) here.shuffle(1, 0);
        here.sync();
    }
};

}  // namespace

TEST_CASE("threads keep their numbers while others run") {
    simt::for_each_order([&](simt::executor& device) {
        const device_numbers<double> sums(2 * 256, 0.0);
        simt::policy{&device}.launch(keep_numbers{sums.data()}, 2);
        bool right = true;
        for (int t = 0; t < 512; ++t) right = right && sums[t] == 1024.0 * (t % 256) + 1023.0 * 512.0;
        CHECK(right);
    });
}

TEST_CASE("what a kernel throws ends the launch, with all threads unwound") {
    simt::for_each_order([&](simt::executor& device) {
        CAPTURE(device.order().name());
        const simt::policy on{&device};
        for (const int failing : {0, 40, 95}) {
            int alive = 0;
            CHECK_THROWS_WITH_AS(on.launch(fail_in_one{failing, &alive}, 3), "a kernel's own", std::out_of_range);
            CHECK(alive == 0);
        }
        const device_numbers<std::int32_t> sorted(shaken(256));
        on.launch(simt::block_sort<256>{sorted.data()}, 1, 1024);
        CHECK(sorted.all() == counted_up<std::int32_t>(256, 0));
    });
}

TEST_CASE("threads of the program have fibers of their own") {
    const auto sorts = [](std::vector<std::int32_t>& result) {
        const device_numbers<std::int32_t> sorted(shaken(256));
        simt::executor device({simt::lane_order::random});
        simt::policy{&device}.launch(simt::block_sort<256>{sorted.data()}, 1, 1024);
        result = sorted.all();
    };
    std::vector<std::int32_t> results[2];
    std::thread first(sorts, std::ref(results[0]));
    std::thread second(sorts, std::ref(results[1]));
    first.join();
    second.join();
    for (const auto& each : results) CHECK(each == counted_up<std::int32_t>(256, 0));
}
