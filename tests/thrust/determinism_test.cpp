// The same bits on a Thrust policy for 1, 2, 3 and 8 threads, wherever the buffers begin, and at every call.
//
// On OpenMP's system the threads are those of omp_set_num_threads; on the calling thread's system that number must not
// matter either. TBB's has as many of the machine's cores as it is allowed.
#include "thrust/device.hpp"

#include <thrust/system/omp/execution_policy.h>

#include <doctest/doctest.h>

#include <set>
#include <string>

#if defined(_OPENMP)
#include <omp.h>
#endif
#if THRUST_DEVICE_SYSTEM == THRUST_DEVICE_SYSTEM_TBB
#include <tbb/global_control.h>
#endif

using namespace switchyard_test;

namespace {

constexpr bool is_openmp = std::is_same_v<device_memory::system, thrust::omp::tag>;

/// Bytes in the order they were added.
struct bytes {
    std::string all;

    template <class T>
    void add(const T* numbers, index_t count) {
        if (count > 0) all.append(reinterpret_cast<const char*>(numbers), static_cast<std::size_t>(count) * sizeof(T));
    }
    template <class T>
    void add_device(const T* numbers, index_t count) {
        std::string copy(static_cast<std::size_t>(count) * sizeof(T), '\0');
        if (count > 0) device_memory::copy_to_host(device.exec, copy.data(), numbers, copy.size());
        all += copy;
    }
    template <class S>
    void add(const sy::plan<S>& made) {
        const auto& plan = made.view();
        const index_t positions = plan.tokens * plan.choices;
        add(plan.expert, positions);
        add(plan.slot, positions);
        add(plan.gate, positions);
        add(plan.offsets, plan.experts + 1);
        add(plan.order, plan.totals->kept);
        add(plan.load_before, plan.experts);
        add(plan.load_after, plan.experts);
        add(plan.balance_load, plan.experts);
        add(&plan.totals->kept, 1);
        add(&plan.totals->load_balancing_loss, 1);
        add(&plan.totals->z_loss, 1);
    }
};

/// Gaussian numbers in device memory that begin `offset` elements after a multiple of 64 bytes.
struct shifted {
    sy::buffer<float, device_memory> memory;
    sy::matrix_view<float, device_space> view;

    shifted(index_t rows, index_t columns, index_t offset, std::uint64_t seed = 0)
        : memory(rows * columns + offset), view(memory.data() + offset, rows, columns) {
        const auto numbers = gaussian<float>(rows, columns, seed);
        device_memory::copy_to_device(device.exec, view.data, numbers.data(),
                                      static_cast<std::size_t>(rows * columns) * sizeof(float));
    }
};

struct shape {
    index_t tokens, experts, choices, width;
};

/// A training step from scores: everything it leaves behind, as bytes. All matrices begin `offset` elements beside a
/// cache line.
template <class Router>
std::string step(const Router& router, const shape& size, const ref::mask_list& mask, index_t offset) {
    const auto [tokens, experts, k, width] = size;
    const shifted scores(tokens, experts, offset, 1);
    const shifted x(tokens, width, offset, 2);
    const shifted d_y(tokens, width, offset, 3);
    const shifted d_gates(tokens, k, offset);
    const shifted d_scores(tokens, experts, offset);
    const shifted rows(tokens * k, width, offset);
    const shifted d_rows(tokens * k, width, offset);
    const shifted y(tokens, width, offset);
    const shifted d_x(tokens, width, offset);
    const device_mask padding(mask);
    device_plan<float> plan;
    device_scratch scratch;
    const sy::training mode{.seed = 7, .stream = 1, .step = 2, .mask = padding.get()};
    sy::route_scores(device, router, scores.view, mode, plan, scratch);
    sy::check(device, plan);
    sy::dispatch(device, plan, x.view, rows.view);
    sy::combine(device, plan, rows.view, y.view);
    sy::combine_backward(device, plan, rows.view, d_y.view, d_rows.view, d_gates.view);
    sy::dispatch_backward(device, plan, d_rows.view, d_x.view);
    sy::route_scores_backward(device, router, plan, scores.view, d_gates.view, d_scores.view, scratch);
    const auto made = sy::copy_to_host(device, plan);
    bytes result;
    result.add(made);
    result.add_device(rows.view.data, made.kept() * width);
    result.add_device(y.view.data, tokens * width);
    result.add_device(d_rows.view.data, made.kept() * width);
    result.add_device(d_gates.view.data, tokens * k);
    result.add_device(d_x.view.data, tokens * width);
    result.add_device(d_scores.view.data, tokens * experts);
    return result.all;
}

/// A training step from tokens: the projection with its noise, and the gradients of tokens and weights.
std::string step_from_tokens(index_t offset) {
    constexpr index_t tokens = 1300, width = 37, experts = 20;
    const shifted x(tokens, width, offset, 1);
    const shifted w(width, experts, offset, 2);
    const shifted d_gates(tokens, 1, offset, 3);
    const shifted d_x(tokens, width, offset);
    const shifted d_w(width, experts, offset);
    const sy::switch_router router{.input_jitter = 0.1f, .input_dropout = 0.1f, .z_weight = 0.01};
    const sy::training mode{.seed = 7, .stream = 0};
    device_plan<float> plan;
    device_scratch scratch;
    sy::route(device, router, x.view, w.view, mode, plan, scratch);
    sy::route_backward(device, router, plan, x.view, w.view, d_gates.view, d_x.view, d_w.view, scratch);
    bytes result;
    result.add(sy::copy_to_host(device, plan));
    result.add_device(plan.scores().data(), tokens * experts);
    result.add_device(d_x.view.data, tokens * width);
    result.add_device(d_w.view.data, width * experts);
    return result.all;
}

/// Threads of every region to come; the number before comes back at the end.
class thread_count {
#if THRUST_DEVICE_SYSTEM == THRUST_DEVICE_SYSTEM_TBB
  public:
    explicit thread_count(int threads)
        : limit_(tbb::global_control::max_allowed_parallelism, static_cast<std::size_t>(threads)) {}

  private:
    tbb::global_control limit_;
};
#else
  public:
#if defined(_OPENMP)
    explicit thread_count(int threads) : before_(omp_get_max_threads()) {
        omp_set_dynamic(0);
        omp_set_num_threads(threads);
    }
    ~thread_count() { omp_set_num_threads(before_); }

  private:
    int before_;
#else
    explicit thread_count(int) {}
#endif
};
#endif

/// The bits of `run(offset)` with one thread and aligned buffers, again, with every other number of threads, and at
/// every other place.
template <class Run>
void check_same_bits(const Run& run) {
    std::string want;
    {
        const thread_count one(1);
        want = run(0);
        REQUIRE(!want.empty());
        for (const index_t offset : {0, 1, 2, 3, 4, 7, 8, 13, 15}) {
            if (run(offset) != want) FAIL_CHECK("buffers " << offset << " elements beside a cache line");
        }
    }
    for (const int threads : {2, 3, 8}) {
        const thread_count some(threads);
        if (run(0) != want) FAIL_CHECK(threads << " threads");
    }
}

#if defined(_OPENMP)
/// Notes which thread came.
struct note_thread {
    int* of_index;
    void operator()(index_t i) const { of_index[i] = omp_get_thread_num(); }
};
#endif

}  // namespace

#if defined(_OPENMP)
TEST_CASE("determinism on Thrust: the number of threads is what the tests set") {
    for (const int threads : {1, 2, 3, 8}) {
        const thread_count some(threads);
        std::vector<int> of_index(800);
        sy::for_each_index(device, 800, note_thread{of_index.data()});
        const auto seen = std::set<int>(of_index.begin(), of_index.end()).size();
        CHECK(seen == static_cast<std::size_t>(is_openmp ? threads : 1));
    }
}
#endif

TEST_CASE("determinism on Thrust: Switch with every noise and loss, drops by gate, padding") {
    const sy::switch_router router{
        .order = sy::drop_order::gate, .sample_temperature = 1, .logit_jitter = 0.1f, .z_weight = 0.01};
    const auto mask = draw_mask(601, 5);
    check_same_bits([&](index_t offset) { return step(router, {601, 20, 1, 33}, mask, offset); });
    // No token left behind sorts once a round.
    const sy::switch_router rounds{.capacity = {.factor = 0.9}, .no_token_left_behind = 3};
    check_same_bits([&](index_t offset) { return step(rounds, {300, 9, 1, 5}, {}, offset); });
}

TEST_CASE("determinism on Thrust: top-k, drops by position") {
    const sy::top_k_router router{.k = 3,
                                  .renormalize = true,
                                  .capacity = {.factor = 0.8},
                                  .logit_jitter = 0.1f,
                                  .balance = sy::balance_count::all,
                                  .z_weight = 0.01};
    const auto mask = draw_mask(500, 6);
    check_same_bits([&](index_t offset) { return step(router, {500, 33, 3, 17}, mask, offset); });
}

TEST_CASE("determinism on Thrust: BASE by the auction") {
    const auto mask = draw_mask(140, 7);
    check_same_bits([&](index_t offset) {
        sy::expert_prices prices;
        const sy::base_router<sy::auction> router{.solver = {.gap_per_token = 0.02}, .prices = &prices};
        bytes result;
        result.all = step(router, {140, 8, 1, 9}, mask, offset);
        result.add(prices.of_expert.data(), 8);
        return result.all;
    });
}

TEST_CASE("determinism on Thrust: projection from tokens and its gradients") {
    check_same_bits([](index_t offset) { return step_from_tokens(offset); });
}
