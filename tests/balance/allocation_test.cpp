// Losses allocate nothing after the first call of a shape.
#include "support/count_allocations.hpp"
#include "support/scores.hpp"

#include <switchyard/balance/balance_loss.hpp>
#include <switchyard/balance/importance_loss.hpp>
#include <switchyard/balance/score_loss.hpp>
#include <switchyard/router/route.hpp>
#include <switchyard/router/top_k.hpp>

#include <doctest/doctest.h>

#include <vector>

using namespace switchyard_test;

TEST_CASE("losses: nothing is allocated after the first call, on one thread") {
    const auto scores = stored<float>(gaussian_scores(3000, 24, 1));
    const auto plan = sy::route_scores(sy::seq, sy::top_k_router{.k = 2}, scores, sy::training{});
    const sy::token_sequences<> sequences{.length = 1500};
    sy::matrix<double> sums(2, sy::balance_columns(24)), own(2, sy::score_loss_columns(24));
    sy::matrix<float> d_scores(3000, 24), d_gates(3000, 2);
    std::vector<double> importance(48);
    sy::workspace scratch;
    double total = 0;
    const auto every_loss = [&] {
        const sy::balance_loss_settings balance{.count = sy::choice_count::all};
        const sy::score_loss_settings sure{.kind = sy::score_loss_kind::mutual_information};
        sy::write_balance_sums(sy::seq, scores, plan, balance, sequences, sums, scratch);
        sy::balance_loss_backward(sy::seq, scores, balance, sequences, sums, d_scores, scratch);
        sy::write_score_sums(sy::seq, scores, sure, sequences, own, scratch);
        sy::score_loss_backward(sy::seq, scores, sure, sequences, own, d_scores, scratch, {.adds = true});
        sy::write_importance(sy::seq, plan, 24, importance.data(), scratch);
        total += sy::balance_loss(balance, sums) + sy::score_loss(sure, own) +
                 sy::squared_variation(0.1, importance.data(), 24, importance.data() + 24);
        sy::importance_loss_backward(sy::seq, plan, 24, importance.data() + 24, d_gates);
    };
    every_loss();
    const long before = allocations;
    every_loss();
    CHECK(allocations - before == 0);
    CHECK(total != 0);
}
