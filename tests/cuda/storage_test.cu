// CUDA's 16-bit types as storage: from the same numbers, the decisions are those of float scores on the CPU, and rows
// are copied bit by bit. And double, which is computed in.
#include "thrust/device.hpp"

#include <doctest/doctest.h>

#include <cstring>

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

}  // namespace

TEST_CASE_TEMPLATE("16-bit storage decides as float does", Storage, __half, __nv_bfloat16) {
    for (const index_t experts : {8, 60, 256, 1500}) {
        check_storage<Storage>(sy::switch_router{}, experts);
        check_storage<Storage>(sy::top_k_router{.k = 8, .capacity = {.factor = 1.0}}, experts);
    }
}

TEST_CASE("double scores are decided as on the CPU") {
    for (const index_t experts : {8, 60, 1500}) {
        check_storage<double, double>(sy::switch_router{}, experts);
        check_storage<double, double>(sy::top_k_router{.k = 8, .capacity = {.factor = 1.0}}, experts);
    }
}
