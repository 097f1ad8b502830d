#include "support/backends.hpp"
#include "support/choices.hpp"
#include "support/compare.hpp"
#include "support/covers.hpp"

#include <switchyard/plan/choices.hpp>
#include <switchyard/plan/statistics.hpp>
#include <switchyard/reference/statistics.hpp>
#include <switchyard/router/top_k.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <span>
#include <string>
#include <vector>

using namespace switchyard_test;

namespace {

sy::plan<double> routed(const sy::top_k_router& router, const ref::matrix& scores, const ref::mask_list& mask = {}) {
    sy::plan<double> plan;
    sy::workspace scratch;
    sy::route_scores(sy::seq, router, stored<double>(scores), sy::training{.mask = mask_of(mask)}, plan, scratch);
    return plan;
}

/// What the reference's functions read of a plan.
template <class S>
ref::plan read(const sy::plan<S>& plan) {
    const auto& made = plan.view();
    return {.experts_count = made.experts,
            .capacity = made.capacity,
            .experts = experts_of(made),
            .slots = slots_of(made),
            .gates = gates_of(made),
            .load_before = list_of(made.load_before, made.experts),
            .load_after = list_of(made.load_after, made.experts)};
}

std::string load_difference(const sy::load_statistics& got, const ref::load_statistics& want) {
    const struct {
        const char* name;
        double got, want;
    } all[] = {
        {"coefficient_of_variation", got.coefficient_of_variation, want.coefficient_of_variation},
        {"sample_coefficient_of_variation", got.sample_coefficient_of_variation, want.sample_coefficient_of_variation},
        {"max_over_mean", got.max_over_mean, want.max_over_mean},
        {"max_violation", got.max_violation, want.max_violation},
        {"entropy", got.entropy, want.entropy},
        {"effective_experts", got.effective_experts, want.effective_experts},
        {"dead_share", got.dead_share, want.dead_share}};
    for (const auto& one : all) {
        if (!(std::abs(one.got - one.want) <= 1e-13 * (1 + std::abs(one.want)))) {
            return said(one.name, " is ", one.got, ", not ", one.want);
        }
    }
    return "";
}

/// Everything that is asked of a plan, as plain numbers: equal on all policies, bit by bit.
template <class Policy, class Plan>
std::vector<double> everything(const Policy& policy, const Plan& plan, const Plan& other) {
    std::vector<sy::choice_statistics> choices(static_cast<std::size_t>(plan.choices()));
    sy::statistics_of_choices(policy, plan, choices);
    std::vector<double> all{sy::gate_entropy(policy, plan), sy::churn(policy, plan, other)};
    for (const auto& s : choices) {
        all.push_back(static_cast<double>(s.asked));
        all.push_back(static_cast<double>(s.dropped));
        all.push_back(s.dropped_share);
    }
    return all;
}

/// The same from the reference.
std::vector<double> everything(const ref::plan& plan, const ref::plan& other) {
    std::vector<double> all{ref::gate_entropy(plan), ref::churn(plan, other)};
    for (index_t c = 0; c < plan.choices(); ++c) {
        const auto s = ref::statistics_of_choice(plan, c);
        all.push_back(static_cast<double>(s.asked));
        all.push_back(static_cast<double>(s.dropped));
        all.push_back(s.asked == 0 ? 0 : static_cast<double>(s.dropped) / static_cast<double>(s.asked));
    }
    return all;
}

std::string difference(const std::vector<double>& got, const std::vector<double>& want) {
    for (std::size_t i = 0; i < want.size(); ++i) {
        if (!(std::abs(got[i] - want[i]) <= 1e-13 * (1 + std::abs(want[i])))) {
            return said("number ", i, " is ", got[i], ", not ", want[i]);
        }
    }
    return got.size() == want.size() ? "" : "other numbers";
}

/// A plan of ids [T, k] and gates.
sy::plan<float> plan_of(index_t tokens, index_t k, index_t experts, const std::vector<std::int64_t>& ids,
                        const std::vector<float>& gates, const sy::choice_settings& settings = {}) {
    return sy::plan_from_choices(sy::seq, sy::view_of(std::span(ids), tokens, k),
                                 sy::view_of(std::span(gates), tokens, k), experts, settings);
}

}  // namespace

TEST_CASE("statistics: worked by hand") {
    // Loads 3 and 1 before a capacity of 2.
    const ref::matrix scores{{1, 0}, {1, 0}, {0, 1}, {1, 0}};
    const auto s = sy::statistics(routed({.k = 1, .capacity = {.number = 2}}, scores));
    CHECK(s.asked == 4);
    CHECK(s.kept == 3);
    CHECK(s.dropped == 1);
    CHECK(s.dropped_share == 0.25);
    CHECK(s.coefficient_of_variation == 0.5);  // deviations of 1 from a mean of 2
    CHECK(s.max_over_mean == 1.5);
    CHECK(s.max_violation == 0.5);
    CHECK(s.dead_share == 0);
    CHECK(s.entropy == doctest::Approx(-0.75 * std::log(0.75) - 0.25 * std::log(0.25)).epsilon(1e-14));
}

TEST_CASE("statistics: balanced, collapsed and empty plans") {
    const auto balanced = sy::statistics(routed({.k = 1}, {{1, 0}, {0, 1}, {1, 0}, {0, 1}}));
    CHECK(balanced.coefficient_of_variation == 0);
    CHECK(balanced.max_over_mean == 1);
    CHECK(balanced.entropy == doctest::Approx(std::log(2.0)).epsilon(1e-14));
    const auto collapsed = sy::statistics(routed({.k = 1}, ref::matrix(8, 4)));
    CHECK(collapsed.max_over_mean == 4);
    CHECK(collapsed.entropy == 0);
    CHECK(collapsed.coefficient_of_variation == doctest::Approx(std::sqrt(3.0)).epsilon(1e-14));
    const auto empty = sy::statistics(routed({.k = 1}, ref::matrix(0, 4)));
    CHECK(empty.asked == 0);
    CHECK(empty.dropped_share == 0);
    CHECK(empty.entropy == 0);
    CHECK(empty.max_over_mean == 0);
    CHECK(empty.max_violation == 0);
    CHECK(empty.effective_experts == 0);
    CHECK(empty.dead_share == 0);
}

TEST_CASE("statistics: padding and forbidden choices ask for nothing") {
    const auto s = sy::statistics(
        routed({.k = 2, .capacity = {.number = 5}}, {{1, never}, {0, 1}, {never, never}, {5, 5}}, {1, 1, 1, 0}));
    CHECK(s.asked == 3);
    CHECK(s.kept == 3);
    CHECK(s.dropped == 0);
}

TEST_CASE("statistics: the same as the reference on random plans, from a plan or its view") {
    for (const index_t experts : {2, 7, 60}) {
        const sy::top_k_router router{.k = 2, .capacity = {.factor = 0.8}};
        const auto scores = gaussian_scores(500, experts, 5);
        const auto plan = routed(router, scores);
        const auto s = sy::statistics(plan.view());
        const auto want = ref::statistics(ref::route_scores(reference_of(router, true), scores));
        CHECK(s.kept == want.kept);
        CHECK(s.dropped == want.dropped);
        CHECK(s.dropped > 0);
        CHECK(s.dropped_share == doctest::Approx(want.dropped_share).epsilon(1e-14));
        CHECK(load_difference(s, want.before) == "");
        const std::span after(plan.view().load_after, static_cast<std::size_t>(experts));
        CHECK(load_difference(sy::statistics_of_loads(after), want.after) == "");
        CHECK(sy::statistics(plan).kept == s.kept);
    }
    covers<operation("statistics")>(sy::seq);
}

TEST_CASE("statistics of loads: worked by hand") {
    // The numbers of statistics.hpp's contract.
    const std::vector<std::int64_t> loads{3, 1, 0, 4};
    const auto s = sy::statistics_of_loads(loads);
    CHECK(s.coefficient_of_variation == doctest::Approx(std::sqrt(10 / 4.0) / 2).epsilon(1e-14));
    CHECK(s.sample_coefficient_of_variation == doctest::Approx(std::sqrt(10 / 3.0) / 2).epsilon(1e-14));
    CHECK(s.max_over_mean == 2);
    CHECK(s.max_violation == 1);
    CHECK(s.entropy == doctest::Approx(.9743147528693494).epsilon(1e-14));
    CHECK(s.effective_experts == doctest::Approx(2.649351128562104).epsilon(1e-14));
    CHECK(s.dead_share == .25);
    CHECK(sy::load_quantile(loads, 0) == 0);
    CHECK(sy::load_quantile(loads, .25) == .75);
    CHECK(sy::load_quantile(loads, .5) == 2);
    CHECK(sy::load_quantile(loads, .75) == 3.25);
    CHECK(sy::load_quantile(loads, 1) == 4);
    // Other lists of the same.
    CHECK(load_difference(sy::statistics_of_loads(std::array<std::int32_t, 4>{3, 1, 0, 4}),
                          ref::statistics_of({3, 1, 0, 4})) == "");
    const std::int32_t plain[] = {3, 1, 0, 4};
    CHECK(sy::load_quantile(plain, .75) == 3.25);
}

TEST_CASE("statistics of loads: the same as the reference on random and hostile lists") {
    std::mt19937_64 random(1);
    sy::workspace scratch;
    const std::vector<double> at{0, .01, .25, .5, 2.0 / 3, .75, .999, 1};
    for (index_t trial = 0; trial < 200; ++trial) {
        const auto experts = static_cast<std::size_t>(1 + random() % 70);
        const auto most = std::uint64_t{1} << (random() % 50);
        std::vector<std::int64_t> loads(experts);
        for (auto& load : loads) load = static_cast<std::int64_t>(random() % most);
        if (trial % 10 == 0) std::fill(loads.begin() + 1, loads.end(), 0);  // all to one expert
        const auto list = list_of(loads.data(), static_cast<index_t>(experts));
        CHECK(load_difference(sy::statistics_of_loads(loads), ref::statistics_of(list)) == "");
        std::vector<double> found(at.size());
        sy::load_quantiles(loads, at, found, scratch);
        for (std::size_t i = 0; i < at.size(); ++i) {
            const double want = ref::load_quantile(list, at[i]);
            CHECK(found[i] == doctest::Approx(want).epsilon(1e-13));
        }
    }
    const auto none = sy::statistics_of_loads(std::vector<std::int64_t>{});
    CHECK(none.max_over_mean == 0);
    const auto zeros = sy::statistics_of_loads(std::vector<std::int64_t>{0, 0});
    CHECK(zeros.max_violation == 0);
    CHECK(zeros.effective_experts == 0);
    CHECK(zeros.dead_share == 0);
    const auto one = sy::statistics_of_loads(std::vector<std::int64_t>{7});
    CHECK(one.sample_coefficient_of_variation == 0);
    CHECK(one.effective_experts == 1);
    CHECK(sy::load_quantile(std::vector<std::int64_t>{7}, .3) == 7);
}

TEST_CASE("statistics of loads: bad arguments") {
    const std::vector<std::int64_t> loads{3, -1};
    CHECK(sentence_of([&] { sy::statistics_of_loads(loads); }) == "load 1 is -1: a load must not be negative");
    const auto most = std::numeric_limits<std::int64_t>::max();
    CHECK(sentence_of([&] {
              sy::statistics_of_loads(std::vector<std::int64_t>{most, 1});
          }) == "the loads are more choices than a size can count, which is 2^63 - 1");
    CHECK(sy::statistics_of_loads(std::vector<std::int64_t>{most, 0}).max_over_mean == 2);
    CHECK(sentence_of([&] { sy::load_quantile(std::vector<std::int64_t>{}, .5); }) == "no loads have no quantiles");
    CHECK(sentence_of([&] { sy::load_quantile(std::vector<int>{1}, 1.5); }) == "quantile 1.5 must lie in 0..1");
    CHECK(sentence_of([&] { sy::load_quantile(std::vector<int>{1}, std::nan("")); }).find("must lie in 0..1") !=
          std::string::npos);
    CHECK(sentence_of([&] { sy::load_quantile(std::vector<int>{-1}, .5); }) ==
          "load 0 is -1: a load must not be negative");
    sy::workspace scratch;
    std::array<double, 2> out{};
    CHECK(sentence_of([&] { sy::load_quantiles(std::vector<int>{1}, std::array{.5}, out, scratch); }) ==
          "out has room for 2 quantiles; there are 1");
}

TEST_CASE("statistics of choices, gates and changes: worked by hand") {
    // Two choices per token, capacity 2. Token 3 is padding; token 2 has one choice here.
    const auto before =
        plan_of(4, 2, 3, {0, 1, 0, 2, 0, -1, -1, -1}, {.5f, .5f, .75f, .25f, 1, 0, 0, 0}, {.capacity = {.number = 2}});
    std::array<sy::choice_statistics, 2> choices{};
    sy::statistics_of_choices(sy::seq, before, choices);
    CHECK(choices[0].asked == 3);
    CHECK(choices[0].dropped == 1);
    CHECK(choices[0].dropped_share == doctest::Approx(1.0 / 3).epsilon(1e-15));
    CHECK(choices[1].asked == 2);
    CHECK(choices[1].dropped == 0);
    CHECK(choices[1].dropped_share == 0);
    // Token 2 lost its only choice: two tokens count.
    const double quarter = -.75 * std::log(.75) - .25 * std::log(.25);
    CHECK(sy::gate_entropy(sy::seq, before) == doctest::Approx((std::log(2.0) + quarter) / 2).epsilon(1e-14));

    CHECK(sy::churn(sy::seq, before, before) == 0);
    // The same set, one of two, all of them; padding does not count.
    const auto after = plan_of(4, 2, 3, {1, 0, 1, 2, 2, -1, -1, -1}, std::vector<float>(8, 1.0f));
    CHECK(sy::churn(sy::seq, before, after) == doctest::Approx(.5).epsilon(1e-15));
    // Three choices where there were two: one of three is new. And a token that had none.
    const auto wider = plan_of(4, 3, 3, {0, 1, 2, 0, 2, -1, 0, -1, -1, 1, -1, -1}, std::vector<float>(12, 1.0f));
    CHECK(sy::churn(sy::seq, before, wider) == doctest::Approx((1.0 / 3 + 0 + 0 + 1) / 4).epsilon(1e-15));
    CHECK(sy::churn(sy::seq, wider, before) == sy::churn(sy::seq, before, wider));
}

TEST_CASE("statistics of choices: forbidden choices ask for nothing, if their expert dropped none") {
    const auto plan = routed({.k = 2, .capacity = {.number = 5}}, {{1, never}, {0, 1}, {5, 5}}, {1, 1, 0});
    std::array<sy::choice_statistics, 2> choices{};
    sy::statistics_of_choices(sy::seq, plan, choices);
    CHECK(choices[0].asked == 2);
    CHECK(choices[1].asked == 1);
    CHECK(choices[1].dropped == 0);
}

TEST_CASE("gate entropy: negative gates, zeros and gates that are no numbers") {
    const float nan = std::numeric_limits<float>::quiet_NaN();
    const float infinite = std::numeric_limits<float>::infinity();
    const auto entropy = [](const std::vector<float>& gates) {
        return sy::gate_entropy(sy::seq, plan_of(2, 2, 2, {0, 1, 0, 1}, gates));
    };
    CHECK(entropy({1, 0, 1, -1}) == 0);
    CHECK(entropy({0, 0, -1, -1}) == 0);  // nobody counts
    CHECK(entropy({0, 0, 2, 2}) == doctest::Approx(std::log(2.0)).epsilon(1e-15));
    CHECK(std::isnan(entropy({nan, 1, 1, 1})));
    CHECK(std::isnan(entropy({1, infinite, 1, 1})));
}

TEST_CASE("statistics of plans: random ones as in the reference, with the same bits on every policy") {
    std::uint64_t seed = 1;
    // Many tokens, more experts than tokens, all choices, one token, one expert, nothing.
    struct shape {
        index_t tokens, k, experts, capacity;
    };
    for (const shape size : {shape{3000, 2, 8, 500}, shape{700, 4, 16, 100}, shape{5, 3, 40, 1}, shape{300, 6, 6, 299},
                             shape{1, 2, 3, 1}, shape{400, 1, 1, 100}, shape{600, 2, 8, 0}, shape{0, 2, 8, 4}}) {
        CAPTURE(size.tokens);
        CAPTURE(size.k);
        const auto first = random_given(size.tokens, size.k, size.experts, ++seed);
        const auto second = random_given(size.tokens, size.k, size.experts, ++seed);
        const auto made = [&](const given_choices& from) {
            return sy::plan_from_choices(sy::seq, from.ids, from.gates, size.experts,
                                         {.capacity = {.number = size.capacity}});
        };
        const auto plan = made(first);
        const auto other = made(second);
        const auto want = everything(read(plan), read(other));
        const auto found = everything(sy::seq, plan, other);
        CHECK(difference(found, want) == "");
        const auto whole = ref::statistics(read(plan));
        CHECK(sy::statistics(plan).dropped == whole.dropped);
        CHECK(load_difference(sy::statistics(plan), whole.before) == "");
        double dropped = 0;
        for (std::size_t i = 3; i < found.size(); i += 3) dropped += found[i];
        CHECK(dropped == static_cast<double>(whole.dropped));
        for_each_policy([&](const auto& policy) {
            CHECK(everything(policy, plan, other) == found);
            covers<operation("statistics")>(policy);
        });
    }
}

TEST_CASE("statistics of plans: all to one expert, and all dropped") {
    const auto plan = routed({.k = 1, .capacity = {.number = 0}}, ref::matrix(50, 4));
    const auto s = sy::statistics(plan);
    CHECK(s.dropped_share == 1);
    CHECK(s.max_violation == 3);
    CHECK(s.effective_experts == 1);
    CHECK(s.dead_share == .75);
    CHECK(sy::gate_entropy(sy::seq, plan) == 0);
    CHECK(sy::churn(sy::seq, plan, plan) == 0);
    std::array<sy::choice_statistics, 1> choices{};
    sy::statistics_of_choices(sy::seq, plan, choices);
    CHECK(choices[0].dropped == 50);
    CHECK(choices[0].dropped_share == 1);
}

TEST_CASE("statistics of plans: bad arguments") {
    const auto plan = routed({.k = 1}, ref::matrix(3, 4));
    const sy::plan<double> empty;
    std::array<sy::choice_statistics, 2> choices{};
    CHECK(sentence_of([&] { sy::statistics_of_choices(sy::seq, plan, choices); }) ==
          "out has room for 2 choices; the plan has 1");
    CHECK(sentence_of([&] { sy::statistics_of_choices(sy::seq, empty, choices); }).find("the plan is empty") == 0);
    CHECK(sentence_of([&] { sy::gate_entropy(sy::seq, empty); }).find("the plan is empty") == 0);
    CHECK(sentence_of([&] { sy::churn(sy::seq, plan, empty); }).find("the plan is empty") == 0);
    CHECK(sentence_of([&] { sy::churn(sy::seq, plan, routed({.k = 1}, ref::matrix(2, 4))); }) ==
          "the plans have 3 and 2 tokens, and 4 and 4 experts; they must be of the same");
    CHECK(sentence_of([&] { sy::churn(sy::seq, plan, routed({.k = 1}, ref::matrix(3, 5))); }) != "");
}
