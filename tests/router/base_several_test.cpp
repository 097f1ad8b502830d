// BASE with k > 1: the best balanced choice of k experts per token, by trying all; loads, gates and gradients.
#include "reference/numeric.hpp"
#include "support/backends.hpp"
#include "support/routed.hpp"

#include <switchyard/assignment/auction.hpp>
#include <switchyard/router/base.hpp>
#include <switchyard/router/route.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <set>
#include <vector>

using namespace switchyard_test;

namespace {

/// The best total of k different experts per token with loads between lower and upper.
double best_total(const ref::matrix& scores, index_t k, index_t lower, index_t upper) {
    double best = -INFINITY;
    std::vector<index_t> load(static_cast<std::size_t>(scores.columns));
    const std::function<void(index_t, index_t, index_t, double)> choose = [&](index_t t, index_t e, index_t left,
                                                                              double total) {
        if (left == 0) {
            t += 1;
            e = 0;
            left = k;
        }
        if (t == scores.rows) {
            const bool fits = std::all_of(load.begin(), load.end(), [&](index_t l) { return l >= lower; });
            best = fits ? std::max(best, total) : best;
            return;
        }
        for (; e + left <= scores.columns; ++e) {
            auto& here = load[static_cast<std::size_t>(e)];
            if (here == upper || scores(t, e) == never) continue;
            here += 1;
            choose(t, e + 1, left - 1, total + scores(t, e));
            here -= 1;
        }
    };
    choose(0, 0, k, 0);
    return best;
}

double total_of(const ref::matrix& scores, const sy::plan_view<double>& plan) {
    double total = 0;
    for (index_t i = 0; i < plan.tokens * plan.choices; ++i) total += scores(i / plan.choices, plan.expert[i]);
    return total;
}

}  // namespace

TEST_CASE("base, k > 1: balanced and the best of all, each token's experts different and best first") {
    for (unsigned seed = 0; seed < 12; ++seed) {
        const index_t k = 2 + seed % 2;
        const index_t tokens = 4 + seed % 3;
        auto scores = gaussian_scores(tokens, 4, seed);
        if (seed % 4 == 1) scores(0, 1) = never;
        for (index_t t = 0; t < tokens; ++t) scores(t, 2) += 3;
        const auto plan = routed<double>(sy::base_router<>{.k = k}, scores);
        const auto& view = plan.view();
        const index_t lower = tokens * k / 4;
        const index_t upper = (tokens * k + 3) / 4;
        for (index_t e = 0; e < 4; ++e) {
            CHECK(view.load_after[e] >= lower);
            CHECK(view.load_after[e] <= upper);
        }
        CHECK(plan.kept() == tokens * k);
        CHECK(total_of(scores, view) == doctest::Approx(best_total(scores, k, lower, upper)).epsilon(1e-12));
        for (index_t t = 0; t < tokens; ++t) {
            std::set<std::int32_t> different;
            for (index_t c = 0; c < k; ++c) {
                const auto e = view.expert[t * k + c];
                different.insert(e);
                CHECK(view.gate[t * k + c] == doctest::Approx(1 / (1 + std::exp(-scores(t, e)))));
                CHECK((c == 0 || scores(t, view.expert[t * k + c - 1]) >= scores(t, e)));
            }
            CHECK(static_cast<index_t>(different.size()) == k);
        }
    }
}

TEST_CASE("base, k > 1: inference takes the k best, the gradient is that of the gates, k = 1 is what it was") {
    const auto scores = gaussian_scores(9, 6, 4);
    const auto best = routed<double>(sy::base_router<>{.k = 3}, scores, sy::inference{});
    CHECK(experts_of(best.view()) == ref::top_k_experts(scores, 3, {}));
    const sy::base_router<> router{.k = 3};
    const auto plan = routed<double>(router, scores);
    const auto weights = gaussian_scores(9, 3, 5);
    const auto numeric = numeric_gradient(
        [&](const ref::matrix& at) {
            double sum = 0;
            for (index_t i = 0; i < 27; ++i) {
                sum += weights.values[i] / (1 + std::exp(-at(i / 3, plan.view().expert[i])));
            }
            return sum;
        },
        scores);
    CHECK(difference(routed_backward(router, plan, scores, weights), numeric) < 1e-8);
    CHECK(sentence_of([&] { routed<double>(sy::base_router<>{.k = 7}, scores); }) == "k = 7 must lie in 1..E = 6");
    CHECK(sentence_of([&] { routed_backward(sy::base_router<>{.k = 2}, plan, scores, weights); }) ==
          "the plan was made by a router with other settings");
}

TEST_CASE("base, k > 1: padding, the auction, kept prices, every policy") {
    const auto scores = gaussian_scores(320, 8, 6);
    const auto mask = draw_mask(320, 2);
    const auto want = routed<double>(sy::base_router<>{.k = 2}, scores, training_with(mask));
    const auto by_auction = routed<double>(sy::base_router<sy::auction>{.k = 2}, scores, training_with(mask));
    double exact = 0;
    double bid = 0;
    for (index_t t = 0; t < 320; ++t) {
        for (index_t c = 0; c < 2; ++c) {
            const auto e = want.view().expert[t * 2 + c];
            CHECK((e < 0) == !ref::is_token(mask, t));
            if (e < 0) continue;
            exact += scores(t, e);
            bid += scores(t, by_auction.view().expert[t * 2 + c]);
        }
    }
    CHECK(bid <= exact + 1e-9);
    CHECK(bid > 0.99 * exact);
    sy::expert_prices prices;
    const sy::base_router<> warm{.prices = &prices, .k = 2};
    (void)routed<double>(warm, scores, training_with(mask));
    CHECK(prices.of_expert.size() == 8);
    const auto again = routed<double>(warm, scores, training_with(mask));
    for (index_t e = 0; e < 8; ++e) CHECK(again.view().load_after[e] >= want.kept() / 8);
    sy::workspace scratch;
    for_each_policy([&](const auto& policy) {
        sy::plan<double> made;
        sy::route_scores(policy, sy::base_router<>{.k = 2}, stored<double>(scores), training_with(mask), made, scratch);
        CHECK(experts_of(made.view()) == experts_of(want.view()));
    });
}
