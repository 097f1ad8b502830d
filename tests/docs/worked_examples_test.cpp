// The worked examples of docs/: each page shows one of these, word for word (check_code.py).
#include <switchyard/switchyard.hpp>

#include <doctest/doctest.h>

#include <cmath>
#include <cstdint>
#include <vector>

namespace sy = switchyard;
using doctest::Approx;
using Eigen::MatrixXd;
using integers = std::vector<std::int64_t>;

namespace {

/// All numbers of a matrix, row by row.
template <class T>
integers values(const sy::matrix_view<const T>& m) {
    integers all;
    for (sy::index_t i = 0; i < m.rows; ++i) {
        for (sy::index_t j = 0; j < m.columns; ++j) all.push_back(m(i, j));
    }
    return all;
}
integers values(const std::int64_t* numbers, sy::index_t count) { return {numbers, numbers + count}; }

/// Scores whose softmax is p.
MatrixXd scores_of(const MatrixXd& p) { return p.array().log(); }

}  // namespace

TEST_CASE("switch: four tokens, two experts, capacity 2") {
    const MatrixXd scores = scores_of(MatrixXd{{.7, .3}, {.6, .4}, {.2, .8}, {.9, .1}});
    const sy::switch_router router{.capacity = {.factor = 1.0}};  // floor(4 x 1.0 / 2) = 2
    const auto plan = sy::route_scores(sy::seq, router, scores, sy::training{});

    CHECK(plan.capacity() == 2);
    CHECK(values(plan.expert()) == integers{0, 0, 1, 0});
    CHECK(values(plan.slot()) == integers{0, 1, 0, -1});  // token 3 finds expert 0 full
    CHECK(plan.gate()(0, 0) == Approx(.7));
    CHECK(plan.gate()(1, 0) == Approx(.6));
    CHECK(plan.gate()(2, 0) == Approx(.8));
    CHECK(plan.gate()(3, 0) == 0);
    CHECK(values(plan.view().offsets, 3) == integers{0, 2, 3});
    CHECK(values(plan.view().order, 3) == integers{0, 1, 2});
    CHECK(plan.load_balancing_loss() == Approx(.011));  // before capacity: f = (.75, .25), P = (.6, .4)
}

TEST_CASE("switch: by gate, the least sure token is dropped") {
    const MatrixXd scores = scores_of(MatrixXd{{.7, .3}, {.6, .4}, {.2, .8}, {.9, .1}});
    const sy::switch_router router{.capacity = {.number = 2}, .order = sy::drop_order::gate};
    const auto plan = sy::route_scores(sy::seq, router, scores, sy::training{});

    CHECK(values(plan.slot()) == integers{1, -1, 0, 0});
    CHECK(values(plan.view().order, 3) == integers{3, 0, 2});
}

TEST_CASE("switch: no token left behind") {
    const MatrixXd scores = scores_of(MatrixXd{{.7, .3}, {.6, .4}, {.2, .8}, {.9, .1}});
    const sy::switch_router router{.capacity = {.number = 2}, .no_token_left_behind = 2};
    const auto plan = sy::route_scores(sy::seq, router, scores, sy::training{});

    CHECK(values(plan.expert()) == integers{0, 0, 1, 1});  // token 3 takes its second choice
    CHECK(values(plan.slot()) == integers{0, 1, 0, 1});
    CHECK(plan.gate()(3, 0) == Approx(.1));
}

TEST_CASE("top-k: softmax before and after, choice-major slots") {
    const MatrixXd scores = scores_of(MatrixXd{{.5, .3, .2}, {.2, .6, .2}, {.1, .6, .3}});
    const auto before = sy::route_scores(sy::seq, sy::top_k_router{.k = 2}, scores, sy::training{});

    CHECK(values(before.expert()) == integers{0, 1, 1, 0, 1, 2});  // token 1: experts 0 and 2 tie
    CHECK(before.gate()(0, 0) == Approx(.5));
    CHECK(before.gate()(0, 1) == Approx(.3));
    CHECK(values(before.slot()) == integers{0, 2, 0, 1, 1, 0});  // token 0's second choice comes after all first ones
    CHECK(values(before.view().order, 6) == integers{0, 3, 2, 4, 1, 5});

    const sy::top_k_router after{.k = 2, .softmax = sy::softmax_order::after};
    const auto plan = sy::route_scores(sy::seq, after, scores, sy::training{});
    CHECK(plan.gate()(0, 0) == Approx(.5 / .8));
    CHECK(plan.gate()(0, 1) == Approx(.3 / .8));
}

TEST_CASE("top-k: capacity counts the choices") {
    const MatrixXd scores = scores_of(MatrixXd{{.5, .3, .2}, {.2, .6, .2}, {.1, .6, .3}});
    const sy::top_k_router router{.k = 2, .renormalize = true, .capacity = {.factor = .5}};  // 3 x 2 x 0.5 / 3 = 1
    const auto plan = sy::route_scores(sy::seq, router, scores, sy::training{});

    CHECK(values(plan.slot()) == integers{0, -1, 0, -1, -1, 0});
    CHECK(plan.gate()(0, 0) == Approx(.5 / .8));  // normalised over both choices, kept or not
    CHECK(plan.gate()(0, 1) == 0);
    CHECK(plan.gate()(2, 1) == Approx(.3 / .9));
}

TEST_CASE("base: balanced in training, greedy at inference") {
    const MatrixXd scores{{1, 0}, {.9, .3}, {.8, .6}, {.7, .05}};
    const auto plan = sy::route_scores(sy::seq, sy::base_router{}, scores, sy::training{});

    // Of the six balanced assignments the best scores 1 + .3 + .6 + .7 = 2.6.
    CHECK(values(plan.expert()) == integers{0, 1, 1, 0});
    CHECK(values(plan.slot()) == integers{0, 0, 1, 1});
    CHECK(plan.gate()(1, 0) == Approx(1 / (1 + std::exp(-.3))));
    CHECK(plan.kept() == 4);

    const auto greedy = sy::route_scores(sy::seq, sy::base_router{}, scores, sy::inference{});
    CHECK(values(greedy.expert()) == integers{0, 0, 0, 0});
    CHECK(greedy.gate()(1, 0) == Approx(1 / (1 + std::exp(-.9))));
}

TEST_CASE("base: the solver alone, with its certificate") {
    const MatrixXd scores{{1, 0}, {.9, .3}, {.8, .6}, {.7, .05}};
    std::int32_t expert[4];
    double prices[2];
    sy::workspace scratch;
    const sy::assignment_problem<double> problem{.scores = sy::as_view(scores), .bounds = sy::balanced_quotas(4, 2)};
    const sy::assignment_result found = sy::solve(sy::seq, sy::hungarian{}, problem, {expert, prices}, scratch);

    CHECK(found.primal == Approx(2.6));
    CHECK(found.converged);
    CHECK(found.gap <= found.tolerance);  // no assignment within the quotas scores more than 2.6 + gap
}

TEST_CASE("balance loss: shares of first choices times mean probabilities") {
    const MatrixXd p{{.7, .3}, {.6, .4}, {.2, .8}, {.9, .1}};
    const sy::switch_router router{.balance_weight = 1};
    const auto plan = sy::route_scores(sy::seq, router, scores_of(p), sy::training{});
    CHECK(plan.load_balancing_loss() == Approx(1.1));  // 2 x (.75 x .6 + .25 x .4)

    // Gradient, by differences at one score; the gates are given none.
    const MatrixXd no_gates = MatrixXd::Zero(4, 1);
    const auto d_scores = sy::route_scores_backward(sy::seq, router, plan, scores_of(p), no_gates);
    MatrixXd above = scores_of(p);
    above(0, 1) += 1e-6;
    const double more = sy::route_scores(sy::seq, router, above, sy::training{}).load_balancing_loss();
    CHECK(d_scores(0, 1) == Approx((more - plan.load_balancing_loss()) / 1e-6).epsilon(1e-4));
}

TEST_CASE("balance loss: all k choices divided by k") {
    // P = (.8, 1.5, .7) / 3.
    const MatrixXd scores = scores_of(MatrixXd{{.5, .3, .2}, {.2, .6, .2}, {.1, .6, .3}});
    sy::top_k_router router{.k = 2, .balance_weight = 1};
    const auto first = sy::route_scores(sy::seq, router, scores, sy::training{});
    CHECK(first.load_balancing_loss() == Approx(3 * (1 * .8 + 2 * 1.5 + 0 * .7) / 9));

    router.balance = sy::balance_count::all;
    const auto all = sy::route_scores(sy::seq, router, scores, sy::training{});
    CHECK(all.load_balancing_loss() == Approx(3 * (2 * .8 + 3 * 1.5 + 1 * .7) / 18));
}

TEST_CASE("z-loss: the squared log-sum-exp of the scores") {
    const MatrixXd scores{{0, 0}};
    const sy::switch_router router{.balance_weight = 0, .z_weight = 1};
    const auto plan = sy::route_scores(sy::seq, router, scores, sy::training{});
    CHECK(plan.z_loss() == Approx(.480453));  // (ln 2)^2

    // Scores that are log-probabilities have log-sum-exp 0.
    const MatrixXd p{{.7, .3}, {.6, .4}};
    CHECK(std::abs(sy::route_scores(sy::seq, router, scores_of(p), sy::training{}).z_loss()) < 1e-15);
}

TEST_CASE("dispatch and combine: a dropped token gets zeros, or what was in y") {
    const MatrixXd scores = scores_of(MatrixXd{{.75, .25}, {.5, .5}, {.2, .8}});
    const sy::switch_router router{.capacity = {.number = 1}};
    const auto plan = sy::route_scores(sy::seq, router, scores, sy::training{});  // token 1 is dropped
    const MatrixXd x{{1, 2}, {3, 4}, {5, 6}};

    const auto rows = sy::dispatch(sy::seq, plan, x);
    CHECK(sy::as_eigen(rows) == MatrixXd{{1, 2}, {5, 6}});

    const MatrixXd expert_output{{4, 8}, {10, 20}};
    const auto y = sy::combine(sy::seq, plan, expert_output);
    CHECK(sy::as_eigen(y).isApprox(MatrixXd{{3, 6}, {0, 0}, {8, 16}}));

    MatrixXd residual = x;
    sy::combine(sy::seq, plan, expert_output, residual, {.accumulate = true});
    CHECK(residual.isApprox(MatrixXd{{4, 8}, {3, 4}, {13, 22}}));
}

TEST_CASE("statistics: three tokens to one expert, one to the other") {
    const MatrixXd scores = scores_of(MatrixXd{{.7, .3}, {.6, .4}, {.2, .8}, {.9, .1}});
    const sy::switch_router router{.capacity = {.number = 2}};
    const sy::plan_statistics load = sy::statistics(sy::route_scores(sy::seq, router, scores, sy::training{}));

    CHECK(load.asked == 4);
    CHECK(load.dropped_share == Approx(.25));
    CHECK(load.coefficient_of_variation == Approx(.5));  // loads 3 and 1: deviation 1, mean 2
    CHECK(load.max_over_mean == Approx(1.5));
    CHECK(load.entropy == Approx(.562335));  // log 2 = .693147 when uniform
}
