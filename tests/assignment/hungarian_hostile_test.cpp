// Scores and quotas that make solvers stumble: every size of numbers, ties by the thousand, strange prices, bad input.
#include "assignment/instances.hpp"
#include "support/address_space.hpp"

#include <algorithm>
#include <cmath>

using namespace assignment_tests;

namespace {

solved solve_balanced(const std::vector<float>& scores, index_t tokens, index_t experts,
                      const sy::hungarian& solver = {}, const double* initial_prices = nullptr) {
    solved found;
    found.experts.resize(static_cast<std::size_t>(tokens));
    found.prices.resize(static_cast<std::size_t>(experts));
    sy::workspace scratch;
    const sy::assignment_problem<float> problem{.scores = {scores.data(), tokens, experts},
                                                .bounds = sy::balanced_quotas(tokens, experts),
                                                .initial_prices = initial_prices};
    found.result = solve(sy::seq, solver, problem, {found.experts.data(), found.prices.data()}, scratch);
    REQUIRE(found.result.converged);
    REQUIRE(found.result.repairs == 0);
    for (std::int32_t e = 0; e < experts; ++e) {
        REQUIRE(found.load(e) >= tokens / experts);
        REQUIRE(found.load(e) <= (tokens + experts - 1) / experts);
    }
    return found;
}

/// The sentence with which `scores` are refused.
std::string refusal(reference::matrix scores, bounds_list lower, bounds_list upper, reference::mask_list mask = {}) {
    const instance problem{std::move(scores), std::move(lower), std::move(upper), std::move(mask)};
    return sentence_of([&] { solve_as<double>(sy::hungarian{}, problem); });
}

}  // namespace

TEST_CASE("hungarian: smallest shapes") {
    const auto solve_shape = [](index_t rows, index_t columns, bounds_list lower, bounds_list upper) {
        return solve_as<float>(sy::hungarian{}, {reference::matrix(rows, columns, 0.5), lower, upper, {}});
    };
    CHECK(solve_shape(0, 3, {0, 0, 0}, {1, 1, 1}).result.converged);
    CHECK(solve_shape(0, 0, {}, {}).result.converged);
    CHECK(solve_shape(0, 0, {}, {}).result.primal == 0);
    CHECK(solve_shape(1, 1, {1}, {1}).experts == std::vector<std::int32_t>{0});
    CHECK(solve_shape(5, 1, {0}, {9}).experts == std::vector<std::int32_t>(5, 0));
    CHECK(solve_shape(5, 1, {5}, {5}).result.primal == 2.5);
    CHECK(solve_shape(2, 5, {0, 0, 0, 0, 0}, {0, 1, 0, 0, 1}).result.primal == 1.0);
}

TEST_CASE("hungarian: fewer tokens than experts") {
    const instance problem{{{1, 5, 2, 0}, {1, 5, 4, 0}}, {0, 0, 0, 0}, {1, 1, 1, 1}, {}};
    const solution found = solve_as<float>(sy::hungarian{}, problem);
    CHECK(found.experts == std::vector<std::int32_t>{1, 2});
    CHECK(found.result.primal == 9);
    CHECK(found.result.converged);
}

TEST_CASE("hungarian: padding gets no expert and its scores are not read") {
    const instance problem{
        {{1, 0}, {no_number, infinity}, {2, 0}, {-infinity, -infinity}}, {1, 1}, {1, 1}, {1, 0, 1, 0}};
    const solution found = solve_as<double>(sy::hungarian{}, problem);
    CHECK(found.experts[1] == -1);
    CHECK(found.experts[3] == -1);
    CHECK(found.result.tokens == 2);
    CHECK(found.result.primal == 2);
    const instance nothing{{{no_number, 1}, {1, no_number}}, {0, 0}, {4, 4}, {0, 0}};
    CHECK(solve_as<double>(sy::hungarian{}, nothing).experts == std::vector<std::int32_t>{-1, -1});
}

TEST_CASE("hungarian: bad scores are refused by the first token and expert, row by row") {
    const bounds_list none{0, 0, 0}, all{9, 9, 9};
    CHECK(refusal({{1, 2, 3}, {1, 2, no_number}, {infinity, 0, 0}}, none, all) == "scores[1, 2] is NaN");
    CHECK(refusal({{1, 2, 3}, {1, infinity, no_number}}, none, all) == "scores[1, 1] is +infinity");
    CHECK(refusal({{1, -1e300, 3}}, none, all) ==
          "scores[0, 1] = -1e+300 is beyond 1e290 in size; -infinity forbids a pair");
    CHECK(refusal({{1, 2, 3}, {-infinity, -infinity, -infinity}}, none, all) ==
          "token 1 has every expert forbidden: all its scores are -infinity");
    CHECK(refusal({{-infinity, no_number, -infinity}}, none, all) == "scores[0, 1] is NaN");
    CHECK(refusal({{no_number, no_number, no_number}, {0, no_number, 0}}, none, all, {0, 1}) == "scores[1, 1] is NaN");
}

TEST_CASE("hungarian: quotas that do not hold the tokens are refused before the scores are read") {
    CHECK(refusal({{no_number, no_number}}, {0, 0}, {0, 0}) ==
          "the upper quotas of the 2 experts add up to 0: too few for 1 tokens");
    CHECK(refusal({{no_number, no_number}}, {1, 1}, {1, 1}) ==
          "the lower quotas of experts 0..1 add up to more than the 1 tokens there are");
    CHECK(refusal({{1, 2}}, {-1, 0}, {1, 1}) == "the lower quota of expert 0 is -1: it must not be negative");
    CHECK(refusal({{1, 2}}, {0, 2}, {1, 1}) == "the lower quota of expert 1, 2, is above its upper quota, 1");
    CHECK(refusal({{1, 2}}, {0}, {1}) == "quotas for 1 experts do not fit scores for 2");
    CHECK(refusal({{1, 2}}, {0, 0}, {1, 1}, {1, 1}) == "a mask of 2 bytes does not fit 1 tokens");
    // Padding does not count.
    CHECK(refusal({{1, 2}, {1, 2}}, {1, 1}, {1, 1}, {1, 0}) ==
          "the lower quotas of experts 0..1 add up to more than the 1 tokens there are");
}

TEST_CASE("hungarian: forbidden pairs that leave no assignment are refused with the experts that prove it") {
    const double x = -infinity;
    // Tokens 1, 2 and 4 are allowed on experts 0 and 2 only, which take two.
    CHECK(refusal({{1, 1, 1}, {1, x, 1}, {x, x, 1}, {x, 1, x}, {1, x, x}}, {0, 0, 0}, {1, 3, 1}) ==
          "the quotas cannot be met: 3 tokens (the first is 1) are allowed only on experts 0, 2, which may take at "
          "most 2");
    // Only one token may go to experts 1 and 2, which need two.
    CHECK(refusal({{1, x, x}, {1, 1, 1}, {1, x, x}}, {0, 1, 1}, {3, 3, 3}) ==
          "the quotas cannot be met: experts 1, 2 must take at least 2 tokens, and only 1 tokens are allowed there");
    CHECK(refusal({{1, x}, {1, x}}, {0, 0}, {1, 1}) ==
          "the quotas cannot be met: 2 tokens (the first is 0) are allowed only on expert 0, which may take at most 1");
    // A closed expert is no expert.
    CHECK(refusal({{1, 1}, {1, x}}, {0, 0}, {0, 2}) ==
          "the quotas cannot be met: token 1 is allowed only on experts whose upper quota is 0");
    // Many experts are not all named.
    reference::matrix many(30, 30, x);
    for (index_t t = 0; t < 30; ++t) {
        for (index_t e = 0; e < 12; ++e) many(t, e) = 1;
    }
    const std::string sentence = refusal(many, reference::filled<index_t>(30, 1), reference::filled<index_t>(30, 1));
    CHECK(
        sentence ==
        "the quotas cannot be met: 30 tokens (the first is 0) are allowed only on experts 0, 1, 2, 3, 4, 5, 6, 7 and 4 "
        "more, which may take at most 12");
}

TEST_CASE("hungarian: bad settings and pointers are refused") {
    sy::workspace scratch;
    const float score = 1;
    std::int32_t expert = 7;
    const sy::assignment_problem<float> one{.scores = {&score, 1, 1}, .bounds = sy::balanced_quotas(1, 1)};
    const auto refused = [&](const sy::hungarian& solver, std::int32_t* out) {
        return sentence_of([&] { solve(sy::seq, solver, one, {.expert_of_token = out}, scratch); });
    };
    CHECK(refused({.candidates = 0}, &expert) == "hungarian::candidates = 0 must be at least 1");
    CHECK(refused({.sampling = 1}, &expert) == "hungarian::sampling = 1 must be 0, or 2 to a million");
    CHECK(refused({}, nullptr) == "expert_of_token is null: there is nowhere to write 1 experts");
    CHECK(expert == 7);
    CHECK(refused({}, &expert) == "");
    CHECK(expert == 0);
}

TEST_CASE("hungarian: scores of every size at once, against brute force") {
    std::mt19937_64 random(5);
    int certified = 0, feasible = 0;
    for (int i = 0; i < 6000; ++i) {
        const auto rows = static_cast<index_t>(1 + random() % 6);
        const auto experts = static_cast<index_t>(1 + random() % 4);
        instance problem = draw_instance(score_kind::gaussian, rows, experts, i % 3 == 0 ? 100 : 0, false, random);
        std::uniform_real_distribution<double> digits(-30, 30);
        for (double& score : problem.scores.values) {
            if (score > -infinity) score = (score > 0 ? 1 : -1) * std::pow(10.0, digits(random));
        }
        const auto best = reference::best_of_all(problem.scores, problem.lower, problem.upper);
        INFO(problem);
        solution found;
        const std::string sentence = sentence_of([&] { found = solve_as<double>(sy::hungarian{}, problem); });
        REQUIRE((sentence == "") == best.feasible);
        if (!best.feasible) continue;
        feasible += 1;
        certified += found.result.converged ? 1 : 0;
        REQUIRE(is_valid(problem, found));
        REQUIRE(std::abs(found.result.primal - best.total_score) <= found.result.tolerance);
        REQUIRE(best.total_score <= found.result.primal + found.result.gap + found.result.tolerance);
    }
    // Prices in double cannot prove every optimum whose scores span 60 digits; nearly all they can.
    CHECK(certified >= feasible - feasible / 500);
}

TEST_CASE("hungarian: finite scores at the limits of float stand for soft prohibitions") {
    const float never = std::numeric_limits<float>::lowest();
    const instance problem{{{1, never}, {2, never}, {never, 3}, {9, 4}}, {2, 2}, {2, 2}, {}};
    const solution found = solve_as<float>(sy::hungarian{}, problem);
    CHECK(found.result.converged);
    CHECK(is_valid(problem, found));
    CHECK(found.result.primal == 10);
}

TEST_CASE("hungarian: ties are spread, not moved one by one") {
    const index_t experts = 16;
    for (const index_t tokens : {index_t{4'000}, index_t{64'000}}) {
        INFO("tokens ", tokens);
        const auto size = static_cast<std::size_t>(tokens * experts);
        CHECK(solve_balanced(std::vector<float>(size, 1.5f), tokens, experts).result.iterations == 0);
        std::vector<float> rows(size), copies(size), steps(size);
        for (std::size_t i = 0; i < size; ++i) {
            const auto t = static_cast<double>(i / static_cast<std::size_t>(experts));
            const auto e = static_cast<double>(i % static_cast<std::size_t>(experts));
            rows[i] = static_cast<float>(std::sin(1.7 * e));                             // every token the same
            copies[i] = static_cast<float>(std::sin(3.1 * std::fmod(t, 37) * (1 + e)));  // thousands of copies of 37
            steps[i] = static_cast<float>(std::round(3 * std::sin(0.7 * t * (1 + e))));  // few values
        }
        for (const sy::hungarian& solver : {sy::hungarian{}, sy::hungarian{.sampling = 0}}) {
            // A path moves as many equal tokens as a list holds, 16 here; with samples few are left to move.
            const index_t most = solver.sampling == 0 ? tokens / 16 + 100 * experts : 100 * experts;
            CHECK(solve_balanced(rows, tokens, experts, solver).result.iterations <= most);
            CHECK(solve_balanced(copies, tokens, experts, solver).result.iterations <= most);
            CHECK(solve_balanced(steps, tokens, experts, solver).result.iterations <= most);
        }
    }
}

TEST_CASE("hungarian: one expert best for all by a wide margin") {
    const index_t tokens = 5'000, experts = 24;
    auto scores = gaussian_scores(tokens, experts, 1);
    for (index_t t = 0; t < tokens; ++t) scores[static_cast<std::size_t>(t * experts + 5)] += 1000;
    solve_balanced(scores, tokens, experts);
    solve_balanced(scores, tokens, experts, {.sampling = 0});
}

TEST_CASE("hungarian: warm prices of any kind give the same score") {
    const index_t tokens = 3'001, experts = 20;
    const auto scores = gaussian_scores(tokens, experts, 2);
    const solved cold = solve_balanced(scores, tokens, experts);
    const solved warm = solve_balanced(scores, tokens, experts, {}, cold.prices.data());
    CHECK(warm.result.passes == 1);
    CHECK(warm.result.steps == 0);
    CHECK(cold.result.steps > 0);
    const auto start_from = [&](auto&& price) {
        std::vector<double> prices(static_cast<std::size_t>(experts));
        for (int e = 0; e < experts; ++e) prices[static_cast<std::size_t>(e)] = price(e);
        const solved found = solve_balanced(scores, tokens, experts, {}, prices.data());
        CHECK(std::abs(found.result.primal - cold.result.primal) <= cold.result.tolerance);
    };
    start_from([&](int e) { return 1e4 * cold.prices[static_cast<std::size_t>(e)]; });
    start_from([&](int e) { return -cold.prices[static_cast<std::size_t>(e)]; });
    start_from([&](int e) { return 1e300 * (e % 3 - 1); });
    start_from([&](int e) { return e % 2 == 0 ? no_number : infinity; });
    start_from([&](int) { return -infinity; });
    start_from([&](int e) { return 1e-310 * e; });
    start_from([&](int e) { return 1e6 + 0.1 * e; });
    CHECK(std::abs(warm.result.primal - cold.result.primal) <= cold.result.tolerance);
}

TEST_CASE("hungarian: any stride, the same assignment") {
    const index_t tokens = 200, experts = 12;
    const auto scores = gaussian_scores(tokens, experts, 3);
    const solved expected = solve_balanced(scores, tokens, experts);
    std::vector<double> memory(static_cast<std::size_t>(3 * tokens * experts), no_number);
    const auto check_strides = [&](index_t row_stride, index_t column_stride, index_t origin) {
        sy::matrix_view<double> view(memory.data() + origin, tokens, experts, row_stride, column_stride);
        for (index_t t = 0; t < tokens; ++t) {
            for (index_t e = 0; e < experts; ++e) {
                view(t, e) = static_cast<double>(scores[static_cast<std::size_t>(t * experts + e)]);
            }
        }
        std::vector<std::int32_t> found(static_cast<std::size_t>(tokens));
        sy::workspace scratch;
        const sy::assignment_problem<double> problem{.scores = view, .bounds = sy::balanced_quotas(tokens, experts)};
        solve(sy::seq, sy::hungarian{}, problem, {.expert_of_token = found.data()}, scratch);
        CHECK(found == expected.experts);
    };
    check_strides(experts, 1, 0);
    check_strides(1, tokens, 0);
    check_strides(experts + 5, 1, 3);
    check_strides(2 * experts, 2, 1);
    check_strides(-experts, 1, (tokens - 1) * experts);
}

TEST_CASE("hungarian: rows further apart than 2^31 numbers") {
    const index_t row_stride = (index_t{1} << 31) + 1024;
    const switchyard_test::address_space<sy::seq_policy> memory(static_cast<std::size_t>(3 * row_stride) *
                                                                sizeof(float));
    REQUIRE(memory.data() != nullptr);
    sy::matrix_view<float> view(static_cast<float*>(memory.data()), 3, 3, row_stride, 1);
    const reference::matrix scores{{3, 2, 1}, {3, 1, 0}, {2, 0, 0}};
    for (index_t t = 0; t < 3; ++t) {
        for (index_t e = 0; e < 3; ++e) view(t, e) = static_cast<float>(scores(t, e));
    }
    std::vector<std::int32_t> experts(3);
    sy::workspace scratch;
    const sy::assignment_problem<float> problem{.scores = view, .bounds = sy::balanced_quotas(3, 3)};
    const auto found = solve(sy::seq, sy::hungarian{}, problem, {.expert_of_token = experts.data()}, scratch);
    CHECK(found.primal == 5);
}

TEST_CASE("hungarian: problems made to let methods with prices crawl are solved all the same") {
    const index_t tokens = 3'000, experts = 24;
    const auto solve_of = [&](const char* name, auto&& score) {
        INFO(name);
        std::vector<float> scores(static_cast<std::size_t>(tokens * experts));
        for (index_t t = 0; t < tokens; ++t) {
            for (index_t e = 0; e < experts; ++e) {
                scores[static_cast<std::size_t>(t * experts + e)] = static_cast<float>(score(t, e));
            }
        }
        for (const sy::hungarian& solver : {sy::hungarian{}, sy::hungarian{.sampling = 0}}) {
            solve_balanced(scores, tokens, experts, solver);  // requires a certificate
        }
    };
    const auto number = [](index_t t, index_t e) {
        return std::fmod(0.754877666 * static_cast<double>(t * 31 + e), 1.0);
    };
    // Too many at one end of a chain of experts, too few at the other: every path goes through all of it.
    solve_of("chain", [&](index_t t, index_t e) {
        const index_t own = t * 2 * experts / (3 * tokens);
        return e == own ? 1.0 : e == own + 1 ? 1.0 - 0.001 * number(t, 0) : -1.0;
    });
    // Differences of every size: prices of one expert are noise beside another's.
    solve_of("geometric",
             [&](index_t t, index_t e) { return std::ldexp(1 + 0.01 * number(t, e), -static_cast<int>(e)); });
    // All tokens agree on the order of the experts, and differ in how much they care.
    solve_of("ladder", [](index_t t, index_t e) { return static_cast<double>(e * (t % 97)) / 97; });
    solve_of("product", [](index_t t, index_t e) { return static_cast<double>((t * 7919 % 3000) * e); });
}
