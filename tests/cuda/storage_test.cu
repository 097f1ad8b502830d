// CUDA's 16-bit types as storage: from the same numbers, the decisions are those of float scores on the CPU, and rows
// are copied bit by bit; gradients are what the CPU's are, as far as the type goes. And double, which is computed in.
#include "thrust/device.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>
#include <type_traits>

using namespace switchyard_test;

namespace {

/// Numbers that any of the types holds exactly: eighths between -4 and 4.
double eighth(index_t i, index_t j) {
    return static_cast<double>(sy::noise_words({.seed = 6}, i, j).word[0] >> 26) / 8.0 - 4.0;
}

template <class Storage>
sy::matrix<Storage> eighths(index_t rows, index_t columns) {
    sy::matrix<Storage> m(rows, columns);
    for (index_t i = 0; i < rows; ++i) {
        for (index_t j = 0; j < columns; ++j) {
            m(i, j) = sy::store_scalar<Storage>(static_cast<sy::compute_t<Storage>>(eighth(i, j)));
        }
    }
    return m;
}

/// `Same`: a type of the CPU's that computes as Storage does.
template <class Storage, class Same = float, class Router>
void check_storage(const Router& router, index_t experts) {
    constexpr index_t tokens = 777;
    constexpr index_t width = 72;
    const sy::training step{.seed = 2, .step = 1};
    const auto host = sy::route_scores(sy::seq, router, eighths<Same>(tokens, experts), step);
    const auto scores = sy::copy_to_device(device, eighths<Storage>(tokens, experts));
    const auto made = sy::route_scores(device, router, scores, step);
    sy::check(device, made);
    CHECK(decision_difference(sy::copy_to_host(device, made), host) == "");

    const auto x = eighths<Storage>(tokens, width);
    const auto rows = sy::copy_to_host(device, sy::dispatch(device, made, sy::copy_to_device(device, x)));
    index_t wrong = 0;
    for (index_t r = 0; r < host.kept(); ++r) {
        const Storage* const want = x.data() + host.view().token_of(host.view().order[r]) * width;
        wrong += std::memcmp(rows.data() + r * width, want, sizeof(Storage) * width) == 0 ? 0 : 1;
    }
    CHECK(wrong == 0);
}

/// What a number stored in a type may be off by, of the largest number of its matrix.
template <class Storage>
constexpr double storage_error = std::is_same_v<Storage, double> ? 1e-12 : 0x1p-10;

/// `there` may have more rows.
template <class Got, class Want>
std::string stored_difference(const Got& there, const sy::matrix<Want>& want) {
    using storage = sy::scalar_of<Got>;
    const auto got = sy::copy_to_host(device, there);
    double largest = 0;
    for (index_t i = 0; i < want.rows() * want.columns(); ++i) {
        largest = std::max(largest, std::abs(static_cast<double>(want.data()[i])));
    }
    for (index_t i = 0; i < want.rows() * want.columns(); ++i) {
        const auto x = static_cast<double>(sy::load_scalar(got.data()[i]));
        const auto y = static_cast<double>(want.data()[i]);
        if (!(std::abs(x - y) <= storage_error<storage> * largest)) return said("element ", i, " is ", x, ", not ", y);
    }
    return "";
}

/// Backward of everything, from rows and gradients of the same numbers on both sides.
template <class Storage, class Same = float>
void check_gradients(index_t experts) {
    constexpr index_t tokens = 300;
    constexpr index_t width = 40;
    const sy::top_k_router router{.k = 2, .capacity = {.factor = 1.0}, .z_weight = 1e-3};
    const auto host_scores = eighths<Same>(tokens, experts);
    const auto host = sy::route_scores(sy::seq, router, host_scores, sy::training{});
    const auto scores = sy::copy_to_device(device, eighths<Storage>(tokens, experts));
    const auto made = sy::route_scores(device, router, scores, sy::training{});

    const auto host_d_gates = eighths<Same>(tokens, 2);
    const auto d_gates = sy::copy_to_device(device, eighths<Storage>(tokens, 2));
    sy::matrix<Storage, device_memory> d_scores(tokens, experts);
    device_scratch scratch;
    sy::route_scores_backward(device, router, made, scores, d_gates, d_scores, scratch);
    CHECK(stored_difference(d_scores, sy::route_scores_backward(sy::seq, router, host, host_scores, host_d_gates)) ==
          "");

    const auto host_rows = eighths<Same>(host.kept(), width);
    const auto host_d_y = eighths<Same>(tokens, width);
    const auto rows = sy::copy_to_device(device, eighths<Storage>(2 * tokens, width));  // more than are kept
    const auto d_y = sy::copy_to_device(device, eighths<Storage>(tokens, width));
    CHECK(stored_difference(sy::combine(device, made, rows), sy::combine(sy::seq, host, host_rows)) == "");
    const auto got = sy::combine_backward(device, made, rows, d_y);
    const auto want = sy::combine_backward(sy::seq, host, host_rows, host_d_y);
    CHECK(stored_difference(got.d_rows, want.d_rows) == "");
    sy::matrix<Storage, device_memory> d_x(tokens, width);
    sy::dispatch_backward(device, made, rows, d_x);
    CHECK(stored_difference(d_x, sy::dispatch_backward(sy::seq, host, host_rows)) == "");
}

/// The exact assignment and the one that nobody waits for: as good as the host's from the same numbers.
template <class Storage, class Same = float>
void check_balanced() {
    constexpr index_t tokens = 2000;
    constexpr index_t experts = 8;
    const auto host_scores = eighths<Same>(tokens, experts);
    const auto scores = sy::copy_to_device(device, eighths<Storage>(tokens, experts));
    const auto total = [&](const auto& plan) {
        double sum = 0;
        for (index_t t = 0; t < tokens; ++t) sum += static_cast<double>(host_scores(t, plan.view().expert[t]));
        return sum;
    };
    const double best = total(sy::route_scores(sy::seq, sy::base_router<>{}, host_scores, sy::training{}));
    const auto exact = sy::route_scores(device, sy::base_router<>{}, scores, sy::training{});
    CHECK(total(sy::copy_to_host(device, exact)) == best);
    const auto near = sy::route_scores(device, sy::base_router<sy::async_auction>{}, scores, sy::training{});
    CHECK(total(sy::copy_to_host(device, near)) <= best);
    CHECK(total(sy::copy_to_host(device, near)) >= 0.99 * best);
}

}  // namespace

TEST_CASE_TEMPLATE("16-bit storage decides as float does", Storage, __half, __nv_bfloat16) {
    for (const index_t experts : {8, 60, 256, 1500}) {
        check_storage<Storage>(sy::switch_router{}, experts);
        check_storage<Storage>(sy::top_k_router{.k = 8, .capacity = {.factor = 1.0}}, experts);
    }
    // The kernels of these for bfloat16 are compiled by resources/kernels.cu.
    if constexpr (std::is_same_v<Storage, __half>) {
        check_gradients<Storage>(60);
        check_balanced<Storage>();
    }
}

TEST_CASE("double scores are decided as on the CPU") {
    for (const index_t experts : {8, 60, 1500}) {
        check_storage<double, double>(sy::switch_router{}, experts);
        check_storage<double, double>(sy::top_k_router{.k = 8, .capacity = {.factor = 1.0}}, experts);
    }
    check_gradients<double, double>(60);
    check_balanced<double, double>();
}
