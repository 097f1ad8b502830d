// What generic device code asks of kernels (backend/kernel_primitives.hpp): a call per index, the stable sort and the
// running sum, in every order of threads; and the size of a workspace before the first call (backend/measure.hpp).
#include "simt/arrays.hpp"
#include "simt/executor.hpp"

#include <switchyard/kernels.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <limits>
#include <numeric>
#include <vector>

namespace sy = switchyard;
using namespace switchyard_test;
using sy::index_t;

namespace {

using scratch_space = sy::basic_workspace<simt::memory>;

using simt::on_device;
using simt::on_host;

/// Keys of a narrow range, so that many are equal, or of all there are.
template <class Key>
std::vector<Key> draw_keys(index_t count, std::uint64_t range, std::uint64_t seed) {
    std::vector<Key> keys(static_cast<std::size_t>(count));
    for (index_t i = 0; i < count; ++i) {
        const sy::philox_words words = sy::noise_words({.seed = seed}, i, 0);
        const std::uint64_t any = static_cast<std::uint64_t>(words.word[0]) << 32 | words.word[1];
        keys[static_cast<std::size_t>(i)] = static_cast<Key>(any % range);
    }
    return keys;
}

template <class Key>
void check_sort(const std::vector<Key>& keys) {
    std::vector<std::int64_t> places(keys.size());
    std::iota(places.begin(), places.end(), 0);
    std::vector<std::int64_t> want = places;
    std::stable_sort(want.begin(), want.end(), [&](std::int64_t a, std::int64_t b) {
        return keys[static_cast<std::size_t>(a)] < keys[static_cast<std::size_t>(b)];
    });
    simt::for_each_order([&](simt::executor& device) {
        const auto there = on_device(keys);
        const auto values = on_device(places);
        scratch_space scratch;
        simt::policy{&device}.sort_by_key(there.data(), values.data(), there.size(), scratch);
        CHECK(on_host(values) == want);
        CHECK(std::is_sorted(there.begin(), there.end()));
    });
}

struct square {
    std::int64_t* to;
    void operator()(index_t i) const { to[i] = i * i; }
};

}  // namespace

TEST_CASE("a call per index reaches each of them once") {
    for (const index_t count : {1, 255, 256, 257, 1000}) {
        simt::for_each_order([&](simt::executor& device) {
            const auto to = on_device(std::vector<std::int64_t>(static_cast<std::size_t>(count), -1));
            sy::for_each_index(simt::policy{&device}, count, square{to.data()});
            bool all = true;
            for (index_t i = 0; i < count; ++i) all = all && to.data()[i] == i * i;
            CHECK(all);
            CHECK(device.counted().launches == 1);
        });
    }
}

TEST_CASE("keys are sorted, and equal ones keep their order") {
    for (const index_t count : {0, 1, 2, 31, 32, 33, 2048, 2049, 5000}) {
        check_sort(draw_keys<std::int32_t>(count, 7, 1));
        check_sort(draw_keys<std::int32_t>(count, std::uint64_t{1} << 31, 2));
    }
    check_sort(draw_keys<std::uint64_t>(3000, 5, 3));
    check_sort(draw_keys<std::uint64_t>(3000, std::numeric_limits<std::uint64_t>::max(), 4));
    check_sort(std::vector<std::int32_t>(2500, 3));
    check_sort(std::vector<std::uint64_t>{~std::uint64_t{0}, 0, ~std::uint64_t{0}, 1, 0});
}

TEST_CASE("running sums, of one part of the numbers and of several") {
    for (const index_t count : {1, 2, 31, 4095, 4096, 4097, 20000}) {
        std::vector<std::int64_t> numbers(static_cast<std::size_t>(count));
        for (index_t i = 0; i < count; ++i) numbers[static_cast<std::size_t>(i)] = (i * 37 % 101 - 40) * (1LL << 33);
        std::vector<std::int64_t> want(numbers.size());
        std::partial_sum(numbers.begin(), numbers.end(), want.begin());
        simt::for_each_order([&](simt::executor& device) {
            const auto there = on_device(numbers);
            scratch_space scratch;
            simt::policy{&device}.inclusive_sum(there.data(), count, scratch);
            CHECK(on_host(there) == want);
            CHECK(device.counted().launches == (count <= 4096 ? 1 : 3));
        });
    }
}

namespace {

/// `call(policy, workspace)` takes exactly what `workspace_size` says: a workspace with that much does not grow, and
/// one with less does. Returns the bytes, none for a call that takes nothing.
template <class Call>
index_t check_size(simt::executor& device, const Call& call) {
    const simt::policy on{&device};
    const simt::traffic before = device.counted();
    const index_t bytes = sy::workspace_size<simt::policy>(call);
    CHECK(device.counted() == before);
    scratch_space enough;
    enough.reserve(bytes);
    const index_t given = enough.size();
    CHECK(given == bytes);
    call(on, enough);
    CHECK(enough.size() == given);
    CHECK(enough.most_used() == bytes);
    if (bytes > 0) {
        scratch_space too_small;
        too_small.reserve(std::max<index_t>(1, bytes - 4096));
        const index_t small = too_small.size();
        call(on, too_small);
        CHECK(too_small.size() > small);
    }
    return bytes;
}

/// Bytes of a step from scores, forward and backward.
struct step_bytes {
    index_t forward, backward;
};

template <class Router>
step_bytes check_step_from_scores(const Router& router, index_t tokens, index_t experts, index_t choices) {
    simt::executor device;
    const simt::policy on{&device};
    const auto scores = sy::copy_to_device(on, sy::matrix<float>(tokens, experts));
    std::fill_n(scores.data(), tokens * experts, 0.5f);
    const auto d_gates = sy::copy_to_device(on, sy::matrix<float>(tokens, choices));
    std::fill_n(d_gates.data(), tokens * choices, 1.0f);
    sy::matrix<float, simt::memory> d_scores(tokens, experts);
    sy::basic_plan<float, simt::memory> plan;
    const index_t forward = check_size(device, [&](const auto& policy, auto& room) {
        route_scores(policy, router, scores, sy::training{.stream = 0}, plan, room);
    });
    sy::check(on, plan);
    const index_t backward = check_size(device, [&](const auto& policy, auto& room) {
        route_scores_backward(policy, router, plan, scores, d_gates, d_scores, room);
    });
    return {forward, backward};
}

}  // namespace

TEST_CASE("the size of a workspace, before the first call") {
    for (const step_bytes& found :
         {check_step_from_scores(sy::switch_router{}, 3000, 64, 1),
          check_step_from_scores(sy::top_k_router{.k = 4, .z_weight = 1e-3}, 1000, 100, 4),
          check_step_from_scores(sy::switch_router{.order = sy::drop_order::gate}, 2500, 8, 1),  // sorts
          check_step_from_scores(sy::base_router<sy::async_auction>{}, 600, 8, 1)}) {
        CHECK(found.forward > 0);
        CHECK(found.backward == 0);
    }
    // More experts than kernels take: the generic code keeps a row for each of its threads, backward as well.
    const step_bytes generic = check_step_from_scores(sy::switch_router{}, 20, 5000, 1);
    CHECK(generic.forward > 0);
    CHECK(generic.backward > 0);
}

TEST_CASE("the size of a workspace for a step from tokens, and for assignment that nobody waits for") {
    simt::executor device;
    const simt::policy on{&device};
    constexpr index_t tokens = 400, experts = 12, width = 20;
    const auto filled = [&](index_t rows, index_t columns) {
        auto numbers = sy::copy_to_device(on, sy::matrix<float>(rows, columns));
        std::fill_n(numbers.data(), rows * columns, 0.25f);
        return numbers;
    };
    const auto x = filled(tokens, width), w = filled(width, experts), d_gates = filled(tokens, 1);
    sy::matrix<float, simt::memory> d_x(tokens, width), d_w(width, experts);
    sy::basic_plan<float, simt::memory> plan;
    const sy::switch_router router{.input_jitter = 0.01f};
    CHECK(check_size(device, [&](const auto& policy, auto& room) {
              route(policy, router, x, w, sy::training{.stream = 0}, plan, room);
          }) > 0);
    CHECK(check_size(device, [&](const auto& policy, auto& room) {
              route_backward(policy, router, plan, x, w, d_gates, d_x, d_w, room);
          }) > 0);

    const auto scores = filled(tokens, experts);
    const auto expert = on_device(std::vector<std::int32_t>(tokens));
    const sy::device_assignment_problem<float, simt::device_space> problem{
        .scores = sy::const_view(scores.view()), .bounds = sy::balanced_quotas(tokens, experts)};
    CHECK(check_size(device, [&](const auto& policy, auto& room) {
              solve(policy, sy::async_auction{}, problem, {.expert_of_token = expert.data()}, room);
          }) > 0);
}

TEST_CASE("a call that reads numbers back has no size that could be known") {
    simt::executor device;
    const auto scores = sy::copy_to_device(simt::policy{&device}, sy::matrix<float>(64, 4));
    sy::basic_plan<float, simt::memory> plan;
    CHECK_THROWS_WITH_AS(
        sy::workspace_size<simt::policy>([&](const auto& policy, auto& room) {
            route_scores(policy, sy::base_router<sy::auction>{}, scores, sy::training{.stream = 0}, plan, room);
        }),
        "workspace_size was given a call that reads numbers back from the device: it cannot know which", sy::error);
}

namespace {

/// Counts what is asked of it: a memory with a resource of its own.
struct counting_memory {
    using space = simt::device_space;
    int* held = nullptr;

    void* allocate(std::size_t bytes) const {
        ++*held;
        return simt::memory::allocate(bytes);
    }
    void deallocate(void* pointer, std::size_t bytes) const noexcept {
        --*held;
        simt::memory::deallocate(pointer, bytes);
    }
};

/// The executor with such a resource.
struct resourceful : simt::policy {
    using memory = counting_memory;
    int* held = nullptr;

    memory memory_resource() const { return {held}; }
    template <class Key>
    void sort_by_key(Key* keys, std::int64_t* values, index_t count, sy::basic_workspace<memory>& scratch) const {
        sy::run_sort_by_key(*this, keys, values, count, scratch);
    }
    void inclusive_sum(std::int64_t* values, index_t count, sy::basic_workspace<memory>& scratch) const {
        sy::run_inclusive_sum(*this, values, count, scratch);
    }
};

}  // namespace

TEST_CASE("all device memory comes from the policy's resource, and goes back there") {
    simt::executor device;
    int held = 0;
    const resourceful on{{&device}, &held};
    {
        const auto scores = sy::copy_to_device(on, sy::matrix<float>(300, 8));
        std::fill_n(scores.data(), 300 * 8, 1.0f);
        auto plan = sy::route_scores(on, sy::switch_router{}, scores);
        const auto rows = sy::dispatch(on, plan, scores);
        const auto y = sy::combine(on, plan, rows);
        CHECK(y.rows() == 300);
        CHECK(held >= 8);
        const int before = held;
        sy::basic_workspace<counting_memory> scratch(sy::memory_of(on));
        scratch.reserve(1 << 20);
        CHECK(held == before + 1);
        route_scores(on, sy::switch_router{}, scores, sy::inference{}, plan, scratch);
        CHECK(held == before + 1);
    }
    CHECK(held == 0);
}
