// From tokens: x[T, D] times w[D, E], noise on the router's own copy, and back to tokens and weights.
#include "reference/numeric.hpp"
#include "support/backends.hpp"
#include "support/rows.hpp"

#include <switchyard/backend/eigen.hpp>
#include <switchyard/router/route.hpp>
#include <switchyard/router/switch.hpp>
#include <switchyard/router/top_k.hpp>

#include <doctest/doctest.h>

#include <cmath>

using namespace switchyard_test;

namespace {

/// Scores from tokens differ from the reference's by rounding: choices may differ where two scores nearly tie. Draws
/// tokens and weights for which none do.
struct tokens_and_weights {
    ref::matrix x, w;
};
tokens_and_weights draw_tokens(index_t tokens, index_t width, index_t experts, std::uint64_t seed) {
    return {gaussian_scores(tokens, width, seed), gaussian_scores(width, experts, seed + 1)};
}

/// The first token whose best experts (of the k + 1 first) are nearer to each other than float can tell.
template <class S>
bool has_near_tie(const ref::matrix& scores, index_t k, const ref::mask_list& mask) {
    for (index_t t = 0; t < scores.rows; ++t) {
        if (!ref::is_token(mask, t)) continue;
        const auto row = ref::row_of(scores, t);
        const auto ranked = ref::ranked_experts(row);
        for (index_t c = 0; c < std::min(k, ranked.length() - 1); ++c) {
            if (row[ranked[c]] - row[ranked[c + 1]] < 200 * tolerance<S>::epsilon) return true;
        }
    }
    return false;
}

/// Forward and backward from tokens against the reference.
template <class S, class Router>
void check_route(const Router& router, index_t k, const tokens_and_weights& in, const ref::mask_list& mask) {
    const auto same = reference_of(router, true);
    const auto scores = ref::project(same.noise, in.x, in.w, mask, training_noise);
    REQUIRE(!has_near_tie<S>(scores, k, mask));
    const auto want = ref::route(same, in.x, in.w, mask, training_noise);
    const auto d_gates = gaussian_scores(in.x.rows, k, 9);
    const auto d_want = ref::route_backward(same, want, in.x, in.w, d_gates, mask, training_noise);

    auto x = in.x;
    for (index_t t = 0; t < x.rows; ++t) {
        if (!ref::is_token(mask, t)) x(t, t % x.columns) = t % 2 == 0 ? NAN : INFINITY;  // never reaches anything
    }
    const auto plan = sy::route(sy::seq, router, stored<S>(x), stored<S>(in.w), training_with(mask));
    CHECK(integer_mismatch(plan.view(), want) == "");
    const double allowed = 100 * tolerance<S>::epsilon;
    CHECK(table_mismatch(gates_of(plan.view()), want.gates, allowed, 1) == "");
    CHECK(is_close(plan.load_balancing_loss(), want.load_balancing_loss, allowed));
    CHECK(is_close(plan.z_loss(), want.z_loss, allowed));
    const auto [d_x, d_w] =
        sy::route_backward(sy::seq, router, plan, stored<S>(x), stored<S>(in.w), stored<S>(d_gates));
    CHECK(table_mismatch(table_of(d_x), d_want.d_x, allowed, 1) == "");
    CHECK(table_mismatch(table_of(d_w), d_want.d_w, allowed, 1) == "");
}

}  // namespace

TEST_CASE("route: worked by hand") {
    // x W = logits of p = [[.75, .25], [.2, .8]] for W the identity.
    const double ln3 = std::log(3.0);
    const double ln4 = std::log(4.0);
    const auto x = stored<double>({{ln3, 0}, {0, ln4}});
    const auto w = stored<double>({{1, 0}, {0, 1}});
    const sy::switch_router router{.capacity = {}, .balance_weight = 0};
    const auto plan = sy::route(sy::seq, router, x, w, training_with());
    CHECK(difference(gates_of(plan.view()), {{0.75}, {0.8}}) < 1e-15);
    CHECK(plan.scores()(0, 0) == ln3);
    // d gate_0 = .75 (1 - .75) = .1875 onto expert 0, -.1875 onto 1; gate 1: .16.
    const auto [d_x, d_w] = sy::route_backward(sy::seq, router, plan, x, w, stored<double>({{1}, {1}}));
    CHECK(difference(table_of(d_x), {{0.1875, -0.1875}, {-0.16, 0.16}}) < 1e-15);
    CHECK(difference(table_of(d_w), {{0.1875 * ln3, -0.1875 * ln3}, {-0.16 * ln4, 0.16 * ln4}}) < 1e-15);
}

TEST_CASE_TEMPLATE("route: every shape against the reference, forward and backward", S, float, double) {
    for (const index_t tokens : {1, 5, 61, 300}) {
        for (const index_t width : {1, 3, 16, 37, 64}) {
            for (const index_t experts : {2, 7, 16, 33, 65}) {
                std::uint64_t seed = static_cast<std::uint64_t>(1000 * tokens + 10 * width + experts);
                auto in = draw_tokens(tokens, width, experts, seed);
                // With one column experts' scores are multiples of each other, and x near 0 ties them all.
                while (has_near_tie<S>(ref::matmul(in.x, in.w), 2, {}))
                    in = draw_tokens(tokens, width, experts, ++seed);
                check_route<S>(sy::switch_router{.z_weight = 0.01}, 1, in, {});
                check_route<S>(sy::top_k_router{.k = 2, .renormalize = true, .capacity = {.factor = 0.9}}, 2, in, {});
            }
        }
    }
    covers<operation("projection"), operation("projection, backward")>(sy::seq);
}

TEST_CASE_TEMPLATE("route: mask and input noise against the reference; NaN in padding reaches nothing", S, float,
                   double) {
    const auto mask = draw_mask(200, 3);
    const auto in = draw_tokens(200, 24, 9, 5);
    check_route<S>(sy::switch_router{.z_weight = 0.01}, 1, in, mask);
    check_route<S>(sy::switch_router{.input_jitter = 0.2f, .z_weight = 0.01}, 1, in, mask);
    check_route<S>(sy::switch_router{.input_jitter = 0.2f, .input_dropout = 0.3f}, 1, in, mask);
    check_route<S>(sy::top_k_router{.k = 3, .capacity = {.factor = 1}, .input_dropout = 0.1f}, 3, in, mask);
    covers<operation("input jitter and dropout")>(sy::seq);
}

TEST_CASE("route: no tokens, and padding alone") {
    const auto none = sy::route(sy::seq, sy::switch_router{}, sy::matrix<float>(0, 8),
                                stored<float>(gaussian_scores(8, 4, 1)), training_with());
    CHECK(none.kept() == 0);
    const auto [d_x, d_w] = sy::route_backward(sy::seq, sy::switch_router{}, none, sy::matrix<float>(0, 8),
                                               stored<float>(gaussian_scores(8, 4, 1)), sy::matrix<float>(0, 1));
    CHECK(table_of(d_w) == ref::matrix(8, 4));
    const auto x = stored<float>(ref::matrix(3, 8, NAN));
    const auto w = stored<float>(gaussian_scores(8, 4, 1));
    const ref::mask_list mask{0, 0, 0};
    const auto padding = sy::route(sy::seq, sy::switch_router{}, x, w, training_with(mask));
    const auto [e_x, e_w] =
        sy::route_backward(sy::seq, sy::switch_router{}, padding, x, w, filled_matrix<float>(3, 1, NAN));
    CHECK(table_of(e_x) == ref::matrix(3, 8));
    CHECK(table_of(e_w) == ref::matrix(8, 4));
}

TEST_CASE("route: layouts, storage and policies") {
    const auto in = draw_tokens(330, 19, 11, 4);
    const auto want = ref::route(reference_of(sy::switch_router{}, true), in.x, in.w);
    const auto check = [&](const auto& policy, const auto& x, const auto& w) {
        const auto plan = sy::route(policy, sy::switch_router{}, x, w, training_with());
        CHECK(integer_mismatch(plan.view(), want) == "");
        const auto [d_x, d_w] =
            sy::route_backward(policy, sy::switch_router{}, plan, x, w, stored<double>(ref::matrix(330, 1, 1.0)));
        const auto d =
            ref::route_backward(reference_of(sy::switch_router{}, true), want, in.x, in.w, ref::matrix(330, 1, 1.0));
        CHECK(table_mismatch(table_of(d_x), d.d_x, 1e-4, 1) == "");
        CHECK(table_mismatch(table_of(d_w), d.d_w, 1e-4, 1) == "");
    };
    row_major::layout<float> rows(in.x);
    column_major::layout<float> columns(in.x);
    block::layout<float> inside(in.x);
    map::layout<float> strided(in.x);
    row_major::layout<float> w(in.w);
    column_major::layout<double> w_columns(in.w);
    for_each_policy([&](const auto& policy) {
        check(policy, rows.argument(), w.argument());
        check(policy, columns.argument(), w_columns.argument());
        check(policy, inside.argument(), w.argument());
        check(policy, strided.argument(), w_columns.argument());
        covers<operation("projection"), operation("projection, backward")>(policy);
    });
}

TEST_CASE("route: half and bfloat16 tokens and weights, float arithmetic") {
    auto in = draw_tokens(150, 20, 8, 7);
    in = {rounded_to<Eigen::bfloat16>(in.x), rounded_to<Eigen::half>(in.w)};
    const auto want = ref::route(reference_of(sy::switch_router{}, true), in.x, in.w);
    REQUIRE(!has_near_tie<float>(ref::matmul(in.x, in.w), 1, {}));
    const auto x = stored<Eigen::bfloat16>(in.x);
    const auto w = stored<Eigen::half>(in.w);
    const auto plan = sy::route(sy::seq, sy::switch_router{}, x, w, training_with());
    CHECK(integer_mismatch(plan.view(), want) == "");
    CHECK(table_mismatch(gates_of(plan.view()), want.gates, 1e-5) == "");
    sy::workspace scratch;
    sy::matrix<float> d_x(150, 20);
    sy::matrix<float> d_w(20, 8);
    sy::route_backward(sy::seq, sy::switch_router{}, plan, x, w, filled_matrix<float>(150, 1, 1), d_x, d_w, scratch);
    const auto d =
        ref::route_backward(reference_of(sy::switch_router{}, true), want, in.x, in.w, ref::matrix(150, 1, 1.0));
    CHECK(table_mismatch(table_of(d_x), d.d_x, 1e-5, 1) == "");
    CHECK(table_mismatch(table_of(d_w), d.d_w, 1e-5, 1) == "");
}

TEST_CASE("route: allocating forms give what the others give") {
    const auto scores = gaussian_scores(90, 6, 2);
    const sy::top_k_router router{.k = 2};
    const auto plan = sy::route_scores(sy::seq, router, stored<float>(scores), training_with());
    CHECK(mismatch(plan, ref::route_scores(reference_of(router, true), scores)) == "");
    const auto weights = gaussian_scores(90, 2, 3);
    const auto d = sy::route_scores_backward(sy::seq, router, plan, stored<float>(scores), stored<float>(weights));
    CHECK(table_of(d) == routed_backward(router, plan, scores, weights));
    // Without a mode: inference.
    CHECK(sy::route_scores(sy::seq, router, stored<float>(scores)).load_balancing_loss() == 0);
}

TEST_CASE("route: every rule broken is named") {
    const auto x = stored<float>(gaussian_scores(6, 4, 1));
    const auto w = stored<float>(gaussian_scores(4, 3, 2));
    const sy::switch_router router;
    const auto plan = sy::route(sy::seq, router, x, w, training_with());
    const auto one = sy::matrix<float>(6, 1);
    CHECK(sentence_of([&] { sy::route(sy::seq, router, x, stored<float>(gaussian_scores(5, 3, 1))); }) != "");
    CHECK(sentence_of([&] {
              sy::route(sy::seq, router, x, w, training_with({1, 1}));
          }) == "the mask has 2 entries for T = 6 tokens");
    CHECK(sentence_of([&] { sy::route_backward(sy::seq, router, plan, x, w, sy::matrix<float>(5, 1)); }) ==
          "d_gates is 5 x 1; the plan has 6 tokens x 1 choices");
    const auto from_scores = routed<float>(router, gaussian_scores(6, 3, 1));
    CHECK(sentence_of([&] {
              sy::route_backward(sy::seq, router, from_scores, x, w, one);
          }).find("the plan was made from scores") == 0);
    CHECK(sentence_of([&] { sy::route_backward(sy::seq, sy::switch_router{.input_jitter = 0.1f}, plan, x, w, one); }) ==
          "the plan was made by a router with other settings");
    sy::workspace scratch;
    sy::matrix<float> d_x(6, 4);
    sy::matrix<float> d_w(4, 3);
    CHECK(sentence_of([&] { sy::route_backward(sy::seq, router, plan, x, w, one, d_w, d_w, scratch); }) ==
          "d_x is 4 x 3; x is 6 x 4");
    CHECK(sentence_of([&] { sy::route_backward(sy::seq, router, plan, x, w, one, d_x, d_x, scratch); }) ==
          "d_w is 6 x 4; w is 4 x 3");
    const auto inferred = sy::route(sy::seq, router, x, w, sy::inference{});
    CHECK(sentence_of([&] { sy::route_backward(sy::seq, router, inferred, x, w, one); }) ==
          "the plan was made by inference; backward needs one made with training{}");
}
