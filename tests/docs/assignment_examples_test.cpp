// The code and the numbers of docs/assignment/: pages show parts of this file word for word (check_code.py).
#include <switchyard/switchyard.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <random>
#include <vector>

namespace sy = switchyard;
using doctest::Approx;

namespace {

/// The chapter's six tokens and three experts with two places each.
const Eigen::Matrix<double, 6, 3, Eigen::RowMajor> example{{9, 2, 1}, {8, 4, 2}, {7, 6, 3},
                                                           {7, 5, 2}, {1, 5, 4}, {2, 6, 4}};
using prices = std::array<double, 3>;
using loads = std::array<int, 3>;

/// D(p): what the tokens' best margins and the places' prices add up to.
double dual(const prices& p) {
    double sum = 0;
    for (int t = 0; t < 6; ++t) sum += std::max({example(t, 0) - p[0], example(t, 1) - p[1], example(t, 2) - p[2]});
    return sum + 2 * (p[0] + p[1] + p[2]);
}

/// How many tokens each expert suits best; and how many have no one best expert.
loads loads_at(const prices& p, int* tied = nullptr) {
    loads load{};
    int several = 0;
    for (int t = 0; t < 6; ++t) {
        int best = 0;
        int equal = 1;
        for (int e = 1; e < 3; ++e) {
            const double ahead = (example(t, e) - p[e]) - (example(t, best) - p[best]);
            equal = ahead > 0 ? 1 : equal + (ahead == 0 ? 1 : 0);
            if (ahead > 0) best = e;
        }
        load[best] += 1;
        several += equal > 1 ? 1 : 0;
    }
    if (tied != nullptr) *tied = several;
    return load;
}

}  // namespace

TEST_CASE("mathematics: two shortest paths") {
    // No prices: experts 0 and 1 are liked, nobody likes expert 2 best.
    CHECK(loads_at({0, 0, 0}) == loads{4, 2, 0});
    CHECK(dual({0, 0, 0}) == 42);

    // Token 2 moves 0 -> 1 and loses 1, token 4 moves 1 -> 2 and loses 1: prices rise by 2, 1, 0.
    CHECK(dual({2, 1, 0}) == 38);
    // Token 3 moves 0 -> 1 and token 5 moves 1 -> 2; each loses 1 beyond the prices. They rise by 2, 1, 0 again.
    CHECK(dual({4, 2, 0}) == 36);
    int tied = 0;
    loads_at({4, 2, 0}, &tied);
    CHECK(tied == 2);  // tokens 3 and 5: E - 1

    std::array<std::int32_t, 6> expert;
    prices p;
    sy::workspace scratch;
    const sy::assignment_problem<double> problem{.scores = sy::as_view(example), .bounds = sy::balanced_quotas(6, 3)};
    const auto found = solve(sy::seq, sy::hungarian{}, problem, {expert.data(), p.data()}, scratch);
    CHECK(expert == std::array<std::int32_t, 6>{0, 0, 1, 1, 2, 2});
    CHECK(found.primal == 36);  // 9 + 8 + 6 + 5 + 4 + 4
    CHECK(found.dual == 36);
    CHECK(p == prices{4, 2, 0});
    CHECK(found.iterations == 2);
}

TEST_CASE("mathematics: one Newton step") {
    // From no prices, with a band of 2.5: tokens 2 and 3 are nearly tied between experts 0 and 1, tokens 4 and 5
    // between 1 and
    // 2. Each counts 1 / (2 x 2.5) = 0.2.
    const Eigen::Matrix3d laplacian{{.4, -.4, 0}, {-.4, .8, -.4}, {0, -.4, .4}};
    const Eigen::Vector3d excess(4 - 2, 2 - 2, 0 - 2);
    const Eigen::Vector3d step(10, 5, 0);
    CHECK((laplacian * step - excess).norm() == Approx(0));

    CHECK(loads_at({10, 5, 0}) == loads{0, 0, 6});  // too far: worse than before
    int tied = 0;
    CHECK(loads_at({5, 2.5, 0}, &tied) == loads{2, 2, 2});  // half of it: done
    CHECK(tied == 0);
    CHECK(dual({5, 2.5, 0}) == 36);

    // With these prices to start from, no path is needed.
    std::array<std::int32_t, 6> expert;
    const prices start{5, 2.5, 0};
    sy::workspace scratch;
    const sy::assignment_problem<double> problem{
        .scores = sy::as_view(example), .bounds = sy::balanced_quotas(6, 3), .initial_prices = start.data()};
    const auto found = solve(sy::seq, sy::hungarian{}, problem, {expert.data(), nullptr}, scratch);
    CHECK(found.primal == 36);
    CHECK(found.iterations == 0);
}

TEST_CASE("mathematics: the duality gap of any prices bounds any assignment") {
    // Tokens 0 and 3 at expert 0, as well balanced: 9 + 7 + 4 + 6 + 4 + 4 = 34.
    const std::array<std::int32_t, 6> other{0, 1, 1, 0, 2, 2};
    double score = 0;
    for (int t = 0; t < 6; ++t) score += example(t, other[static_cast<std::size_t>(t)]);
    CHECK(score == 34);
    for (const prices& p : {prices{0, 0, 0}, prices{2, 1, 0}, prices{4, 2, 0}, prices{-3, 7, 1}}) {
        CHECK(dual(p) >= 36);
    }
}

TEST_CASE("docs: the assignment's variants") {
    constexpr sy::index_t T = 600;
    constexpr sy::index_t E = 8;
    const Eigen::Matrix<float, -1, -1, Eigen::RowMajor> table = Eigen::MatrixXf::Random(T, E);
    const Eigen::Matrix<float, -1, -1, Eigen::RowMajor> next_table = table + 0.05F * Eigen::MatrixXf::Random(T, E);
    const sy::matrix_view<const float> scores = sy::as_view(table);
    const sy::matrix_view<const float> next_scores = sy::as_view(next_table);
    sy::workspace scratch;

    // [choices]
    std::vector<std::int32_t> experts(static_cast<std::size_t>(T * 2));  // [T, 2], a token's best expert first
    const sy::assignment_problem<float> two_each{
        .scores = scores, .bounds = sy::balanced_quotas(T * 2, E), .choices = 2};
    const auto both = solve(sy::seq, sy::hungarian{}, two_each, {experts.data()}, scratch);
    // [/choices]
    CHECK(both.converged);
    for (std::size_t t = 0; t < T; ++t) CHECK(experts[2 * t] != experts[2 * t + 1]);

    // [costs]
    const sy::assignment_problem<float> of_costs{
        .scores = scores, .bounds = sy::capacity_quotas(100, E), .goal = sy::objective::minimise};
    const auto cheapest = solve(sy::seq, sy::hungarian{}, of_costs, {experts.data()}, scratch);
    // cheapest.primal  the sum of costs; no assignment costs less than cheapest.dual
    // [/costs]
    CHECK(cheapest.converged);
    CHECK(cheapest.primal < 0);
    CHECK(cheapest.primal >= cheapest.dual);

    // [warm]
    std::vector<double> prices(static_cast<std::size_t>(E));
    sy::assignment_problem<float> problem{.scores = scores, .bounds = sy::balanced_quotas(T, E)};
    solve(sy::seq, sy::hungarian{}, problem, {experts.data(), prices.data()}, scratch);
    problem.scores = next_scores;  // the next batch
    problem.initial_prices = prices.data();
    const auto warm = solve(sy::seq, sy::hungarian{}, problem, {experts.data(), prices.data()}, scratch);
    // [/warm]
    CHECK(warm.converged);
    problem.initial_prices = nullptr;
    CHECK(solve(sy::seq, sy::hungarian{}, problem, {experts.data()}, scratch).primal == Approx(warm.primal));

    // [limits]
    const auto cut = solve(sy::seq, sy::hungarian{.most_iterations = 3, .time_limit = 0.5}, problem,
                           {experts.data(), prices.data()}, scratch);
    // every token has an expert, every load is within its bounds, and nothing scores more than cut.primal + cut.gap
    // [/limits]
    CHECK(cut.primal <= warm.primal + 1e-6);
    CHECK(cut.primal + cut.gap >= warm.primal - 1e-6);
}

TEST_CASE("docs: BASE with prices from step to step") {
    Eigen::MatrixXf scores = Eigen::MatrixXf::Random(300, 6);
    const int steps = 3;
    sy::workspace scratch;
    sy::plan<float> plan;
    // [steps]
    sy::expert_prices prices;  // of this layer, kept as long as training goes on
    const sy::base_router<> router{.prices = &prices};
    for (int step = 0; step < steps; ++step) {
        route_scores(sy::seq, router, scores, sy::training{}, plan, scratch);
        // ... the layer's step, which moves the scores a little ...
    }
    // [/steps]
    CHECK(prices.of_expert.size() == 6);
    for (int e = 0; e < 6; ++e) CHECK(plan.view().load_after[e] == 50);
}
