// Thrust policies and their memory: types that keep memories apart, copies of any layout, a memory of one's own, and
// how often a training loop asks for it.
#include "thrust/device.hpp"

#include <switchyard/switchyard.hpp>

#include <thrust/system/omp/execution_policy.h>

#include <doctest/doctest.h>

using namespace switchyard_test;

namespace {

/// Counts what is asked of it.
struct counting_memory : device_memory {
    static inline int allocations = 0;
    static void* allocate(std::size_t bytes) {
        ++allocations;
        return device_memory::allocate(bytes);
    }
};

/// An allocator for the temporary memory of Thrust's own algorithms.
struct counting_allocator {
    using value_type = char;
    int* allocations;

    char* allocate(std::ptrdiff_t bytes) const {
        ++*allocations;
        return static_cast<char*>(::operator new(static_cast<std::size_t>(bytes)));
    }
    void deallocate(char* pointer, std::size_t) const { ::operator delete(pointer); }
};

using omp_memory = sy::thrust_memory<thrust::omp::tag>;
using cpp_memory = sy::thrust_memory<thrust::cpp::tag>;

}  // namespace

// Each system's memory is its own, the CPU's is another.
static_assert(!std::is_same_v<device_space, sy::host_space>);
static_assert(!std::is_same_v<omp_memory::space, cpp_memory::space>);
static_assert(std::is_same_v<decltype(sy::on_thrust(thrust::cpp::par))::memory, cpp_memory>);
static_assert(std::is_same_v<decltype(sy::on_thrust(thrust::omp::par))::memory, omp_memory>);
static_assert(!sy::host_policy<device_policy>);
static_assert(sy::thrust_execution<std::remove_const_t<decltype(thrust::cpp::par)>>);
static_assert(!sy::thrust_execution<sy::seq_policy>);
static_assert(!std::is_convertible_v<sy::matrix_view<float, device_space>, sy::matrix_view<float>>);
// Views of device memory may cross between objects built for different instruction sets.
static_assert(std::is_trivially_copyable_v<sy::matrix_view<float, device_space>>);

TEST_CASE("Thrust memory: what is copied to the device comes back") {
    const auto numbers = gaussian<float>(5, 7, 1);
    const auto there = sy::copy_to_device(device, numbers);
    CHECK(there.rows() == 5);
    CHECK(there.columns() == 7);
    CHECK(reinterpret_cast<std::uintptr_t>(there.data()) % 64 == 0);
    CHECK(matrix_difference(sy::copy_to_host(device, there), numbers, 0) == "");
    const sy::matrix<double> none(0, 3);
    CHECK(sy::copy_to_host(device, sy::copy_to_device(device, none)).columns() == 3);
}

TEST_CASE("Thrust memory: copies with strides on either side touch nothing between") {
    Eigen::MatrixXf columns_first(5, 4);
    for (index_t i = 0; i < 20; ++i) columns_first.data()[i] = static_cast<float>(i);
    const auto there = sy::copy_to_device(device, columns_first);
    const auto back = sy::copy_to_host(device, there);
    CHECK(back(3, 2) == columns_first(3, 2));

    // Into every second column of a device matrix, and out of it again.
    sy::matrix<float> background(5, 8);
    for (index_t i = 0; i < 40; ++i) background.data()[i] = -1;
    auto wide = sy::copy_to_device(device, background);
    const sy::matrix_view<float, device_space> every_second(wide.data() + 1, 5, 4, 8, 2);
    sy::copy_to_device(device, columns_first, every_second);
    const auto all = sy::copy_to_host(device, wide);
    CHECK(all(2, 0) == -1);
    CHECK(all(2, 1) == columns_first(2, 0));
    CHECK(all(4, 7) == columns_first(4, 3));
    Eigen::MatrixXf returned(5, 4);
    sy::copy_to_host(device, every_second, returned);
    CHECK(returned == columns_first);

    CHECK(sentence_of([&] { sy::copy_to_host(device, every_second, background); }) ==
          "the device matrix is 5 x 4; the host matrix is 5 x 8");
}

TEST_CASE("Thrust: a training loop asks for memory in its first step only") {
    using policy_type = sy::thrust_policy<decltype(device.exec), counting_memory>;
    const policy_type policy{device.exec};
    const auto scores = sy::copy_to_device(policy, gaussian<float>(300, 12, 1));
    const auto x = sy::copy_to_device(policy, gaussian<float>(300, 20, 2));
    const auto w = sy::copy_to_device(policy, gaussian<float>(20, 12, 3));
    sy::basic_plan<float, counting_memory> plan;
    sy::basic_workspace<counting_memory> scratch;
    sy::device_matrix<policy_type, float> d_gates(300, 2), d_x(300, 20), d_w(20, 12), y(300, 20), rows(600, 20);
    const auto step = [&](const sy::top_k_router& router) {
        sy::route(policy, router, x, w, sy::training{.stream = 0}, plan, scratch);
        sy::dispatch(policy, plan, x, rows);
        sy::combine(policy, plan, rows, y);
        sy::combine_backward(policy, plan, rows, y, rows, d_gates);
        sy::route_backward(policy, router, plan, x, w, d_gates, d_x, d_w, scratch);
    };
    const sy::top_k_router router{
        .capacity = {.factor = 1}, .order = sy::drop_order::gate, .input_jitter = 0.01f, .z_weight = 1e-3};
    step(router);
    CHECK(counting_memory::allocations > 0);
    counting_memory::allocations = 0;
    step(router);
    step(router);
    CHECK(counting_memory::allocations == 0);
}

TEST_CASE("Thrust: temporary memory of its sorts comes from the execution policy's allocator") {
    int allocations = 0;
    const counting_allocator allocator{&allocations};
    const auto policy = sy::on_thrust(thrust::cpp::par(allocator));
    static_assert(std::is_same_v<decltype(policy)::memory, cpp_memory>);
    const auto scores = gaussian<float>(300, 12, 1);
    const auto made = sy::route_scores(policy, sy::switch_router{}, sy::copy_to_device(policy, scores));
    CHECK(allocations > 0);
    CHECK(decision_difference(sy::copy_to_host(policy, made), sy::route_scores(sy::seq, sy::switch_router{}, scores)) ==
          "");
}
