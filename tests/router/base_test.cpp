#include "reference/numeric.hpp"
#include "support/backends.hpp"
#include "support/rows.hpp"

#include <switchyard/assignment/auction.hpp>
#include <switchyard/dispatch/combine.hpp>
#include <switchyard/dispatch/dispatch.hpp>
#include <switchyard/reference/assignment.hpp>
#include <switchyard/reference/base.hpp>
#include <switchyard/router/base.hpp>
#include <switchyard/router/route.hpp>

#include <doctest/doctest.h>

#include <cmath>

using namespace switchyard_test;

namespace {

using numbers = ref::list<index_t>;

/// The plan's experts as the reference's router takes them.
template <class S>
ref::list<index_t> assignment_of(const sy::plan<S>& plan) {
    return experts_of(plan.view()).values;
}

double total_score(const ref::matrix& scores, const numbers& experts) {
    double total = 0;
    for (index_t t = 0; t < scores.rows; ++t) total += experts[t] >= 0 ? scores(t, experts[t]) : 0;
    return total;
}

/// floor and ceil of the even share.
struct balanced {
    numbers lower, upper;

    balanced(index_t tokens, index_t experts)
        : lower(ref::filled(experts, tokens / experts)),
          upper(ref::filled(experts, tokens / experts + (tokens % experts != 0 ? 1 : 0))) {}
};

/// Balanced, as good as the reference's, and everything else as the reference has it for the same assignment.
template <class S>
void check_training(const ref::matrix& scores, const ref::mask_list& mask = {}) {
    const auto plan = routed<S>(sy::base_router<>{}, scores, training_with(mask));
    const auto made = assignment_of(plan);
    CHECK(mismatch(plan, ref::route_scores(ref::base_router{.assignment = made}, scores, mask)) == "");
    const balanced quota(ref::count_tokens(mask, scores.rows), scores.columns);
    for (index_t e = 0; e < scores.columns; ++e) {
        CHECK(plan.view().load_after[e] >= quota.lower[e]);
        CHECK(plan.view().load_after[e] <= quota.upper[e]);
    }
    const auto best = ref::best_by_augmenting(scores, quota.lower, quota.upper, mask);
    REQUIRE(best.feasible);
    CHECK(total_score(scores, made) == doctest::Approx(best.total_score).epsilon(1e-9));
}

}  // namespace

TEST_CASE_TEMPLATE("base: the worked example", S, float, double) {
    const ref::matrix scores{{1, 0}, {0.9, 0.3}, {0.8, 0.6}, {0.7, 0.05}};
    const auto plan = routed<S>(sy::base_router<>{}, scores);
    CHECK(experts_of(plan.view()) == ref::integers{{0}, {1}, {1}, {0}});
    CHECK(slots_of(plan.view()) == ref::integers{{0}, {0}, {1}, {1}});
    CHECK(list_of(plan.view().order, 4) == numbers{0, 3, 1, 2});
    CHECK(total_score(scores, assignment_of(plan)) == doctest::Approx(2.6).epsilon(1e-12));
    CHECK(is_gate<S>(static_cast<double>(plan.gate()(0, 0)), 1 / (1 + std::exp(-1.0))));
    CHECK(plan.capacity() == sy::unlimited);
    CHECK(plan.load_balancing_loss() == 0);
    // At inference all four go to expert 0.
    const auto greedy = routed<S>(sy::base_router<>{}, scores, sy::inference{});
    CHECK(experts_of(greedy.view()) == ref::integers{{0}, {0}, {0}, {0}});
    CHECK(greedy.kept() == 4);
}

TEST_CASE_TEMPLATE("base: training is balanced and optimal, any T and E", S, float, double) {
    for (const index_t experts : {1, 2, 3, 7, 16}) {
        for (const index_t tokens : {0, 1, 2, 5, 16, 33, 64}) {
            for (const auto kind :
                 {score_kind::gaussian, score_kind::small_integers, score_kind::one_expert, score_kind::equal_rows}) {
                check_training<S>(draw_scores(kind, tokens, experts, static_cast<std::uint64_t>(tokens)));
            }
        }
    }
    covers<operation("BASE, training by the exact solver")>(sy::seq);
}

TEST_CASE("base: padding is assigned to nobody and counts in no quota") {
    auto scores = gaussian_scores(50, 6, 3);
    const auto mask = draw_mask(50, 3);
    for (index_t t = 0; t < 50; ++t) {
        if (mask[t] == 0) scores(t, 2) = NAN;
    }
    const auto plan = routed<float>(sy::base_router<>{}, scores, training_with(mask));
    const auto made = assignment_of(plan);
    for (index_t t = 0; t < 50; ++t) CHECK((made[t] == -1) == (mask[t] == 0));
    CHECK(plan.totals().counted_tokens == ref::count_tokens(mask, 50));
    auto clean = scores;
    for (double& score : clean.values) score = std::isnan(score) ? 0 : score;
    check_training<double>(clean, mask);
    const auto greedy = routed<float>(sy::base_router<>{}, scores, sy::inference{.mask = mask_of(mask)});
    CHECK(mismatch(greedy, ref::route_scores(ref::base_router{}, scores, mask)) == "");
}

TEST_CASE("base: forbidden pairs are not used") {
    const ref::matrix scores{{5, never}, {4, 1}, {never, 0}, {9, 3}};
    const auto plan = routed<double>(sy::base_router<>{}, scores);
    CHECK(experts_of(plan.view()) == ref::integers{{0}, {1}, {1}, {0}});
    check_training<double>(scores);
    // No balanced assignment exists: three tokens can go to expert 0 alone.
    CHECK(sentence_of([] { routed<double>(sy::base_router<>{}, {{5, never}, {4, never}, {3, never}, {9, 3}}); }) != "");
}

TEST_CASE_TEMPLATE("base: inference is greedy, ties to the lower expert, nothing dropped", S, float, double) {
    for (int kind = 0; kind < static_cast<int>(score_kind::count); ++kind) {
        for (const index_t experts : {1, 2, 7, 60}) {
            const auto scores = draw_scores(static_cast<score_kind>(kind), 300, experts, 3);
            const auto plan = routed<S>(sy::base_router<>{}, scores, sy::inference{});
            CHECK(mismatch(plan, ref::route_scores(ref::base_router{}, scores)) == "");
            CHECK(plan.kept() == 300);
        }
    }
    covers<operation("BASE, inference")>(sy::seq);
}

TEST_CASE("base: gradient of the gates, by central differences and against the reference") {
    const auto scores = gaussian(20, 4, 5);
    const auto weights = gaussian(20, 1, 6);
    const auto plan = routed<double>(sy::base_router<>{}, scores);
    const auto want = ref::route_scores(ref::base_router{.assignment = assignment_of(plan)}, scores);
    const auto found = routed_backward(sy::base_router<>{}, plan, scores, weights);
    CHECK(difference(found, ref::route_scores_backward(want, scores, weights)) < 1e-15);
    const auto numeric = numeric_gradient(
        [&](const ref::matrix& at) { return inner(gates_of(routed<double>(sy::base_router<>{}, at).view()), weights); },
        scores, 1e-6);
    CHECK(difference(found, numeric) < 1e-8);
    covers<operation("BASE, backward")>(sy::seq);
}

TEST_CASE("base: gradient of a saturated gate keeps its digits in float") {
    // g (1 - g) from a gate that rounded to 1 would be 0.
    const auto plan = routed<float>(sy::base_router<>{}, {{20}});
    const auto found = routed_backward(sy::base_router<>{}, plan, {{20}}, {{1}});
    CHECK(found(0, 0) == doctest::Approx(std::exp(-20.0)).epsilon(1e-5));
}

TEST_CASE("base: from tokens, forward and backward to centroids, with padding that holds NaN") {
    const auto mask = draw_mask(40, 8);
    auto x = gaussian(40, 6, 7);
    const auto w = gaussian(6, 5, 8);
    const auto clean = x;
    for (index_t t = 0; t < 40; ++t) {
        if (mask[t] == 0) x(t, 0) = NAN;
    }
    const auto weights = gaussian(40, 1, 9);
    const auto plan =
        sy::route(sy::seq, sy::base_router<>{}, stored<double>(x), stored<double>(w), training_with(mask));
    const auto scores = ref::matmul(clean, w);
    const auto want = ref::route_scores(ref::base_router{.assignment = assignment_of(plan)}, scores, mask);
    CHECK(integer_mismatch(plan.view(), want) == "");
    const auto [d_x, d_w] = sy::route_backward(sy::seq, sy::base_router<>{}, plan, stored<double>(x), stored<double>(w),
                                               stored<double>(weights));
    const auto d = ref::route_backward(want, clean, ref::transpose(w), weights, mask);
    CHECK(difference(table_of(d_x), d.d_x) < 1e-13);
    CHECK(difference(table_of(d_w), ref::transpose(d.d_w)) < 1e-13);
}

TEST_CASE("base: the layer's output is x + gate f(x)") {
    const auto scores = gaussian_scores(12, 3, 2);
    const auto plan = routed<double>(sy::base_router<>{}, scores);
    const auto x = gaussian_scores(12, 4, 3);
    auto y = stored<double>(x);
    const auto rows = sy::dispatch(sy::seq, plan, stored<double>(x));
    sy::combine(sy::seq, plan, rows, y, {.accumulate = true});  // f the identity
    for (index_t t = 0; t < 12; ++t) {
        for (index_t d = 0; d < 4; ++d) CHECK(y(t, d) == doctest::Approx(x(t, d) * (1 + plan.gate()(t, 0))));
    }
}

TEST_CASE("base: the same plan for every policy") {
    const auto scores = stored<float>(gaussian_scores(1200, 12, 4));
    const auto want = sy::route_scores(sy::seq, sy::base_router<>{}, scores, training_with());
    for_each_policy([&](const auto& policy) {
        const auto plan = sy::route_scores(policy, sy::base_router<>{}, scores, training_with());
        CHECK(experts_of(plan.view()) == experts_of(want.view()));
        CHECK(gates_of(plan.view()) == gates_of(want.view()));
        const auto greedy = sy::route_scores(policy, sy::base_router<>{}, scores, sy::inference{});
        CHECK(list_of(greedy.view().order, 1200) ==
              list_of(sy::route_scores(sy::seq, sy::base_router<>{}, scores, sy::inference{}).view().order, 1200));
        covers<operation("BASE, inference")>(policy);
    });
}

TEST_CASE_TEMPLATE("base: prices kept between steps leave each step as good as one from nothing", Solver, sy::hungarian,
                   sy::auction) {
    sy::expert_prices prices;
    const sy::base_router<Solver> warm{.prices = &prices};
    sy::plan<float> plan;
    sy::workspace scratch;
    auto scores = gaussian_scores(3000, 20, 8);
    const auto noise = gaussian_scores(3000, 20, 9);
    for (int step = 0; step < 5; ++step) {
        for (index_t t = 0; t < 3000; ++t) {
            for (index_t e = 0; e < 20; ++e) scores(t, e) += 0.05 * noise((t + 37 * step) % 3000, e);
        }
        if (step == 3) prices.of_expert.assign(7, 1e300);  // another model's: not used
        const auto stored_scores = stored<float>(scores);
        sy::route_scores(sy::seq, warm, stored_scores, training_with(), plan, scratch);
        CHECK(prices.of_expert.size() == 20);
        const auto cold = sy::route_scores(sy::seq, sy::base_router<>{}, stored_scores, training_with());
        double warm_total = 0, cold_total = 0;
        for (index_t t = 0; t < 3000; ++t) {
            warm_total += stored_scores(t, plan.view().expert[t]);
            cold_total += stored_scores(t, cold.view().expert[t]);
        }
        const double promise =
            std::is_same_v<Solver, sy::hungarian> ? 1e-9 * std::abs(cold_total) : 0.0005 * 3000 * 1.1;
        CHECK(std::abs(warm_total - cold_total) <= promise);
        for (index_t e = 0; e < 20; ++e) CHECK(plan.view().load_after[e] == 150);
    }
    // A step that fails leaves them as they were.
    auto bad = scores;
    bad(2999, 3) = std::numeric_limits<double>::quiet_NaN();
    for (const std::size_t size : {std::size_t{4}, std::size_t{20}}) {
        prices.of_expert.assign(size, 0.25);
        CHECK(sentence_of([&] {
                  sy::route_scores(sy::seq, warm, stored<float>(bad), training_with(), plan, scratch);
              }).find("scores[2999, 3] is NaN") == 0);
        CHECK((prices.of_expert == std::vector<double>(size, 0.25)));
    }
    prices.of_expert.assign(20, std::numeric_limits<double>::quiet_NaN());  // of no use, and no harm
    sy::route_scores(sy::seq, warm, stored<float>(scores), training_with(), plan, scratch);
    for (const double price : prices.of_expert) CHECK(std::isfinite(price));
    if constexpr (std::is_same_v<Solver, sy::auction>) {
        covers<operation("BASE, training by the auction")>(sy::seq);
    }
}

TEST_CASE("base: bad scores and every rule broken") {
    auto scores = gaussian_scores(600, 5, 3);
    scores(400, 3) = NAN;
    CHECK(sentence_of([&] { routed<float>(sy::base_router<>{}, scores, sy::inference{}); }) ==
          "scores[400, 3] is NaN: a score must be finite, or -infinity to forbid an expert");
    CHECK(sentence_of([&] { routed<float>(sy::base_router<>{}, scores); }).find("400") != std::string::npos);
    auto read = scores;
    read(400, 3) = never;
    CHECK(mismatch(routed<float>(sy::base_router<>{.bad = sy::bad_scores::forbid_nan}, scores, sy::inference{}),
                   ref::route_scores(ref::base_router{}, read)) == "");
    for (index_t e = 0; e < 5; ++e) scores(400, e) = never;
    CHECK(sentence_of([&] { routed<float>(sy::base_router<>{}, scores, sy::inference{}); }) ==
          "token 400 has every expert forbidden (-infinity) and may not be dropped");
    CHECK(sentence_of([&] { routed<float>(sy::base_router<>{}, scores); }).find("400") != std::string::npos);

    const auto plan = routed<float>(sy::base_router<>{}, {{1, 2}, {3, 4}});
    CHECK(sentence_of([&] {
              routed_backward(sy::base_router<>{}, plan, {{1, 2}}, ref::matrix(2, 1));
          }) == "the plan was made for 2 tokens x 2 experts, not for 1 x 2");
    const auto greedy = routed<float>(sy::base_router<>{}, {{1, 2}, {3, 4}}, sy::inference{});
    CHECK(sentence_of([&] {
              routed_backward(sy::base_router<>{}, greedy, {{1, 2}, {3, 4}}, ref::matrix(2, 1));
          }) == "the plan was made by inference; backward needs one made with training{}");
    CHECK(sentence_of([&] {
              routed_backward(sy::base_router<>{}, plan, {{3, 4}, {1, 2}}, ref::matrix(2, 1));
          }).find("the plan was not made from these scores: token 0 had the gate 0.") == 0);
}
