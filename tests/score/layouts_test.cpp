// Scores of every layout and storage are routed as the same numbers, row-major in the compute type, are: bit for bit.
#include "support/routed.hpp"

#include <switchyard/backend/eigen.hpp>
#include <switchyard/router/switch.hpp>
#include <switchyard/router/top_k.hpp>

#include <doctest/doctest.h>

#include <string>
#include <type_traits>

using namespace switchyard_test;

namespace {

template <class T, int Order>
using eigen_matrix = Eigen::Matrix<T, Eigen::Dynamic, Eigen::Dynamic, Order>;

/// The first thing in which two runs differ.
template <class S>
std::string difference_of(const sy::plan<S>& a, const sy::plan<S>& b) {
    const auto& x = a.view();
    const auto& y = b.view();
    for (index_t i = 0; i < x.tokens * x.choices; ++i) {
        if (x.expert[i] != y.expert[i]) return "expert of choice " + std::to_string(i);
        if (x.slot[i] != y.slot[i]) return "slot of choice " + std::to_string(i);
        if (x.gate[i] != y.gate[i]) return "gate of choice " + std::to_string(i);
    }
    if (a.load_balancing_loss() != b.load_balancing_loss()) return "balance loss";
    if (a.z_loss() != b.z_loss()) return "z-loss";
    return "";
}

/// Forward and backward; gradients, too, are stored as the scores are.
template <class Scores, class Router>
std::string layout_mismatch(const Router& router, const ref::matrix& numbers, const ref::mask_list& mask) {
    using T = typename Scores::Scalar;
    using S = sy::compute_t<T>;
    Scores scores(numbers.rows, numbers.columns);
    eigen_matrix<S, Eigen::RowMajor> same(numbers.rows, numbers.columns);
    for (index_t i = 0; i < numbers.rows; ++i) {
        for (index_t j = 0; j < numbers.columns; ++j) {
            scores(i, j) = static_cast<T>(numbers(i, j));
            same(i, j) = static_cast<S>(scores(i, j));
        }
    }
    sy::workspace scratch;
    for (const bool is_training : {true, false}) {
        auto mode = sy::run_mode(training_with(mask));
        if (!is_training) mode = sy::run_mode(sy::inference{.mask = mask_of(mask)});
        sy::plan<S> plan;
        sy::plan<S> want;
        route_scores(sy::seq, router, scores, mode, plan, scratch);
        route_scores(sy::seq, router, same, mode, want, scratch);
        const auto wrong = difference_of(plan, want);
        if (!wrong.empty()) return wrong + (is_training ? ", training" : ", inference");
        if (!is_training) continue;
        const eigen_matrix<S, Eigen::RowMajor> d_gates =
            eigen_matrix<S, Eigen::RowMajor>::Random(numbers.rows, plan.choices());
        Scores d_scores = Scores::Constant(numbers.rows, numbers.columns, T(9));
        eigen_matrix<S, Eigen::RowMajor> want_d(numbers.rows, numbers.columns);
        route_scores_backward(sy::seq, router, plan, scores, d_gates, d_scores, scratch);
        route_scores_backward(sy::seq, router, want, same, d_gates, want_d, scratch);
        for (index_t i = 0; i < numbers.rows; ++i) {
            for (index_t j = 0; j < numbers.columns; ++j) {
                if (d_scores(i, j) != static_cast<T>(want_d(i, j))) {
                    return "gradient of (" + std::to_string(i) + ", " + std::to_string(j) + ")";
                }
            }
        }
    }
    return "";
}

template <class Scores>
void check_layout() {
    for (const index_t experts : {1, 3, 8, 17, 64, 100, 600, 9000}) {
        for (const index_t tokens : {1, 16, 77, 300}) {
            if (experts > 600 && tokens > 16) continue;
            const auto numbers = draw_scores(score_kind::gaussian, tokens, experts, 5, 20);
            const auto mask = draw_mask(tokens, 6);
            const index_t k = std::min<index_t>(experts, 5);
            // With a limit, since some rows are forbidden and may be dropped then alone.
            const sy::switch_router plain{.inference_capacity = {.factor = 2}, .z_weight = 0.01};
            const sy::switch_router jittered{.inference_capacity = {.factor = 2}, .logit_jitter = 0.1f};
            const sy::top_k_router list{
                .k = k, .capacity = {.factor = 1}, .inference_capacity = {.factor = 1}, .z_weight = 0.01};
            const sy::top_k_router normal{
                .k = k, .renormalize = k > 1, .capacity = {.factor = 1}, .inference_capacity = {.factor = 1}};
            const auto where = std::to_string(tokens) + " x " + std::to_string(experts) + ": ";
            CHECK(where + layout_mismatch<Scores>(plain, numbers, {}) == where);
            CHECK(where + layout_mismatch<Scores>(plain, numbers, mask) == where);
            CHECK(where + layout_mismatch<Scores>(jittered, numbers, mask) == where);
            CHECK(where + layout_mismatch<Scores>(list, numbers, mask) == where);
            CHECK(where + layout_mismatch<Scores>(normal, numbers, {}) == where);
        }
    }
}

}  // namespace

TEST_CASE("layouts: column-major scores") {
    check_layout<eigen_matrix<float, Eigen::ColMajor>>();
    check_layout<eigen_matrix<double, Eigen::ColMajor>>();
}

TEST_CASE("layouts: 16-bit scores, row- and column-major") {
    check_layout<eigen_matrix<Eigen::bfloat16, Eigen::RowMajor>>();
    check_layout<eigen_matrix<Eigen::half, Eigen::RowMajor>>();
    check_layout<eigen_matrix<Eigen::bfloat16, Eigen::ColMajor>>();
    check_layout<eigen_matrix<Eigen::half, Eigen::ColMajor>>();
}

TEST_CASE("layouts: NaN, where it is forbidden, in a column-major matrix") {
    auto numbers = gaussian_scores(70, 20, 3);
    for (index_t t = 0; t < 70; t += 3) numbers(t, t % 20) = NAN;
    const sy::top_k_router router{.k = 3, .capacity = {.factor = 1}, .bad = sy::bad_scores::forbid_nan};
    CHECK(layout_mismatch<eigen_matrix<float, Eigen::ColMajor>>(router, numbers, {}) == "");
    CHECK(sentence_of([&] {
              layout_mismatch<eigen_matrix<float, Eigen::ColMajor>>(sy::top_k_router{.k = 3}, numbers, {});
          }) == "scores[0, 0] is NaN: a score must be finite, or -infinity to forbid an expert");
}
