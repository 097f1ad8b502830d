// The bias that balances, as an object: by the signs of loads, against Megatron-Core's and torchtitan's recorded steps,
// and by quantiles of scores, against the reference in plain loops.
#include "support/backends.hpp"
#include "support/compare.hpp"
#include "support/covers.hpp"
#include "support/recorded_models.hpp"

#include <switchyard/plan/choices.hpp>
#include <switchyard/router/bias_state.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <iterator>
#include <limits>
#include <random>
#include <span>
#include <utility>
#include <vector>

using namespace switchyard_test;
using sy::bias_rule;

namespace {

using numbers = std::vector<float>;

template <class State>
numbers read(const State& bias) {
    const auto view = bias.view();
    return {view.data, view.data + view.columns};
}

template <class State>
void load(State& bias, const numbers& saved) {
    std::copy(saved.begin(), saved.end(), bias.view().data);
}

template <class Short>
std::vector<std::int64_t> loads_of(const Short& recorded) {
    return {std::begin(recorded), std::end(recorded)};
}

ref::list<double> list_from(const numbers& from) {
    ref::list<double> list;
    list.assign(from.begin(), from.end());
    return list;
}

double largest_difference(const numbers& got, const ref::list<double>& want) {
    double largest = got.size() == want.size() ? 0 : 1e300;
    for (std::size_t e = 0; e < got.size() && e < want.size(); ++e) {
        largest = std::max(largest, std::abs(static_cast<double>(got[e]) - want[static_cast<index_t>(e)]));
    }
    return largest;
}

/// Scores of experts that tokens like the better the lower they are.
ref::matrix skewed_scores(index_t tokens, index_t experts, std::uint64_t seed) {
    auto scores = gaussian_scores(tokens, experts, seed);
    for (index_t t = 0; t < tokens; ++t) {
        for (index_t e = 0; e < experts; ++e) scores(t, e) += 3.0 * static_cast<double>(experts - e) / 4;
    }
    return scores;
}

}  // namespace

TEST_CASE("bias_state: a worked example, saved and loaded") {
    sy::bias_state bias(sy::seq, 4, {.rate = .125f});
    CHECK(read(bias) == numbers(4));
    const std::int64_t loads[] = {3, 1, 0, 0};  // mean 1
    bias.update(sy::seq, loads, 4);
    CHECK(read(bias) == numbers{-.125f, 0, .125f, .125f});

    const numbers saved = read(bias);
    sy::bias_state again(sy::seq, 4, {.rule = bias_rule::centred_sign, .rate = .125f});
    load(again, saved);
    CHECK(read(again) == saved);
    again.update(sy::seq, loads, 4);  // signs -1 0 1 1, their mean 1 / 4
    CHECK(read(again) == numbers{-.28125f, -.03125f, .21875f, .21875f});

    // The router sees updates, and the numbers stay where they are when the object moves.
    const auto seen = again.numbers();
    const auto moved = std::move(again);
    CHECK(moved.numbers().data == seen.data);
    CHECK(seen.size == 4);
    CHECK(seen.data[3] == .21875f);
}

TEST_CASE("bias_state: recorded steps of Megatron-Core and torchtitan") {
    const auto check = [](bias_rule rule, std::span<const float> before, const std::vector<std::int64_t>& loads,
                          std::span<const float> after) {
        for_each_policy([&](const auto& policy) {
            sy::bias_state bias(policy, static_cast<index_t>(before.size()), {.rule = rule, .rate = 1e-3f});
            load(bias, numbers(before.begin(), before.end()));
            bias.update(policy, loads.data(), bias.experts());
            for (std::size_t e = 0; e < after.size(); ++e) CHECK(std::abs(read(bias)[e] - after[e]) < 2e-8f);
            covers<operation("update of the bias")>(policy);
        });
    };
    const auto megatron = loads_of(recorded::megatron_update_loads);
    check(bias_rule::sign, recorded::megatron_update_bias, megatron, recorded::megatron_update_updated);
    // Equal loads move nothing.
    check(bias_rule::sign, recorded::megatron_update_bias, std::vector<std::int64_t>(32, 7),
          recorded::megatron_update_bias);
    check(bias_rule::centred_sign, recorded::torchtitan_update_bias, loads_of(recorded::torchtitan_update_loads),
          recorded::torchtitan_update_updated);
}

TEST_CASE("bias_state: loads of a plan before or after capacity, and experts without rows") {
    // Loads 3, 1, 0 before a capacity of 1, and 1, 1, 0 after it.
    const std::vector<std::int64_t> chosen{0, 0, 1, 0};
    const auto plan =
        sy::plan_from_choices(sy::seq, sy::view_of(std::span(chosen), 4, 1), 3, {.capacity = {.number = 1}});
    sy::bias_state asked(sy::seq, 3, {.rate = 1});
    asked.update(sy::seq, plan);
    CHECK(read(asked) == numbers{-1, 1, 1});
    sy::bias_state kept(sy::seq, 3, {.rate = 1, .loads = sy::plan_counts::kept});
    kept.update(sy::seq, plan);
    CHECK(read(kept) == numbers{-1, -1, 1});

    sy::bias_state with_rowless(sy::seq, 5, {.rule = bias_rule::centred_sign, .rate = 1, .rowless = 2});
    load(with_rowless, {0, 0, 0, .5f, -.5f});
    with_rowless.update(sy::seq, plan);
    CHECK(read(with_rowless) == numbers{-1 - 1.0f / 3, 1 - 1.0f / 3, 1 - 1.0f / 3, .5f, -.5f});
    CHECK(with_rowless.numbers().size == 5);
}

TEST_CASE("quantile balancing: worked by hand") {
    // The numbers of quantile_bias.hpp's contract.
    const ref::matrix scores{{3, 0}, {2, 0}, {1, 0}, {0, 1}};
    sy::workspace scratch;
    numbers q(2);
    const numbers zero(2);
    sy::balancing_quantiles(sy::seq, stored<float>(scores), 1, sy::expert_numbers<>{zero.data(), 2}, q, scratch);
    CHECK(q == numbers{1, 0});
    sy::bias_state bias(sy::seq, 2, {.rule = bias_rule::quantile});
    bias.update(sy::seq, stored<float>(scores), 1, scratch);
    CHECK(read(bias) == numbers{-.5f, .5f});
    // A quarter of the old bias stays.
    sy::bias_state slow(sy::seq, 2, {.rule = bias_rule::quantile, .ema = .25});
    load(slow, {-1, 1});
    slow.update_by_quantiles(sy::seq, numbers{2, 0});
    CHECK(read(slow) == numbers{-1, 1});  // -.25 - 1.5 and .25, less the mean of -.75
}

TEST_CASE_TEMPLATE("quantile balancing: the same as the reference, with the same bits on every policy", S, float,
                   double) {
    struct shape {
        index_t tokens, experts, k;
    };
    std::uint64_t seed = 0;
    for (const shape size : {shape{600, 8, 2}, shape{1000, 20, 3}, shape{40, 2, 1}, shape{6, 6, 5}, shape{2, 2, 1},
                             shape{4, 8, 2}, shape{513, 19, 1}}) {
        const index_t tokens = size.tokens * size.k % size.experts == 0 ? size.tokens : size.experts * 27;
        CAPTURE(tokens);
        CAPTURE(size.experts);
        const auto scores = skewed_scores(tokens, size.experts, ++seed);
        sy::bias_state bias(sy::seq, size.experts, {.rule = bias_rule::quantile, .ema = .3});
        numbers start(static_cast<std::size_t>(size.experts));
        for (std::size_t e = 0; e < start.size(); ++e) start[e] = static_cast<float>(e % 3) / 4 - .25f;
        load(bias, start);
        const auto q = ref::balancing_quantiles(scores, size.k, list_from(start));
        const auto want = ref::quantile_bias(list_from(start), q, .3);
        sy::workspace scratch;
        bias.update(sy::seq, stored<S>(scores), size.k, scratch);
        CHECK(largest_difference(read(bias), want) < 4e-6);
        for_each_policy([&](const auto& policy) {
            sy::bias_state same(policy, size.experts, {.rule = bias_rule::quantile, .ema = .3});
            load(same, start);
            same.update(policy, stored<S>(scores), size.k, scratch);
            CHECK(read(same) == read(bias));
        });
    }
}

TEST_CASE("quantile balancing: other layouts and 16 bits give the quantiles of their own numbers") {
    const index_t experts = 6;
    ref::matrix scores(90, experts);
    std::mt19937_64 random(3);
    for (double& s : scores.values)
        s = static_cast<double>(static_cast<int>(random() % 64)) / 8 - 4;  // exact in bfloat16
    const numbers start{0, .25f, -.25f, 0, .5f, -.5f};
    const auto q = ref::balancing_quantiles(scores, 2, list_from(start));
    sy::workspace scratch;
    numbers found(6);
    const sy::expert_numbers<> bias{start.data(), experts};
    const Eigen::MatrixXf columns = sy::as_eigen(stored<float>(scores));
    sy::balancing_quantiles(sy::seq, columns, 2, bias, found, scratch);
    CHECK(largest_difference(found, q) == 0);
    const Eigen::Matrix<Eigen::bfloat16, -1, -1> narrow = columns.cast<Eigen::bfloat16>();
    std::fill(found.begin(), found.end(), 9.0f);
    sy::balancing_quantiles(sy::par, narrow, 2, bias, found, scratch);
    CHECK(largest_difference(found, q) == 0);
}

TEST_CASE("quantile balancing: a few updates even out skewed scores, up to ties") {
    constexpr index_t experts = 8;
    constexpr index_t share = 500;
    const auto scores = skewed_scores(share * experts / 2, experts, 5);
    sy::workspace scratch;
    sy::bias_state bias(sy::seq, experts, {.rule = bias_rule::quantile});
    // The two largest of score + bias, in float as a router has them.
    const auto largest_excess = [&] {
        std::vector<index_t> loads(experts);
        for (index_t t = 0; t < scores.rows; ++t) {
            ref::list<double> keys;
            for (index_t e = 0; e < experts; ++e) keys.push_back(static_cast<float>(scores(t, e)) + bias.view()(0, e));
            const auto ranked = ref::ranked_experts(keys);
            for (index_t c = 0; c < 2; ++c) ++loads[static_cast<std::size_t>(ranked[c])];
        }
        index_t largest = 0;
        for (const index_t load : loads) largest = std::max(largest, std::abs(load - share));
        return largest;
    };
    CHECK(largest_excess() > 2 * share);
    for (int step = 0; step < 5; ++step) bias.update(sy::seq, stored<float>(scores), 2, scratch);
    CHECK(largest_excess() < share / 10);
    double sum = 0;
    for (const float b : read(bias)) sum += static_cast<double>(b);
    CHECK(std::abs(sum) < 1e-5);

    bool moves = true;
    for (int step = 0; step < 200 && moves; ++step) {
        const numbers before = read(bias);
        bias.update(sy::seq, stored<float>(scores), 2, scratch);
        moves = read(bias) != before;
    }
    CHECK(!moves);
    CHECK(largest_excess() <= experts - 1);
}

TEST_CASE("bias_state: bad arguments") {
    const auto nan = std::numeric_limits<float>::quiet_NaN();
    const std::int64_t loads[] = {1, 2, 3};
    sy::workspace scratch;
    using settings = sy::bias_settings;
    const auto made = [](index_t experts, const settings& given) {
        return sentence_of([&] { sy::bias_state(sy::seq, experts, given); });
    };
    CHECK(made(0, {}) == "E = 0 experts have no biases");
    CHECK(made(3, {.rate = nan}).find("rate = ") == 0);
    CHECK(made(3, {.ema = 1}) == "ema = 1 must lie in [0, 1)");
    CHECK(made(3, {.ema = -.5}) == "ema = -0.5 must lie in [0, 1)");
    CHECK(made(3, {.loads = sy::plan_counts::rows}) == "loads must be plan_counts::asked or plan_counts::kept");
    CHECK(made(3, {.rowless = 3}) == "rowless = 3 must lie in 0..E - 1 = 2");
    CHECK(made(3, {.rule = bias_rule::quantile, .rowless = 1}) ==
          "rowless = 1 experts have no quantiles: it must be 0 with bias_rule::quantile");

    sy::bias_state sign(sy::seq, 3);
    CHECK(sentence_of([&] { sign.update(sy::seq, loads, 2); }) == "there are 2 loads for 3 experts with rows");
    CHECK(sentence_of([&] { sign.update(sy::seq, nullptr, 3); }) == "load and bias must not be null");
    CHECK(sentence_of([&] { sign.update(sy::seq, sy::plan<float>()); }).find("the plan is empty") == 0);
    CHECK(sentence_of([&] { sign.update_by_quantiles(sy::seq, numbers(3)); }) ==
          "only bias_rule::quantile moves by quantiles of scores");
    CHECK(sentence_of([&] { sign.update(sy::seq, sy::matrix<float>(3, 3), 1, scratch); }) ==
          "only bias_rule::quantile moves by quantiles of scores");

    sy::bias_state quantile(sy::seq, 3, {.rule = bias_rule::quantile});
    CHECK(sentence_of([&] { quantile.update(sy::seq, loads, 3); }) ==
          "bias_rule::quantile moves by quantiles of scores, not by loads");
    CHECK(sentence_of([&] {
              quantile.update_by_quantiles(sy::seq, numbers{0, nan, 0});
          }).find("q of expert 1 is ") == 0);
    // A bias may be loaded from anywhere.
    quantile.view().data[2] = nan;
    CHECK(sentence_of([&] { quantile.update_by_quantiles(sy::seq, numbers(3)); }).find("the bias of expert 2 is ") ==
          0);
    quantile.view().data[2] = 0;
    CHECK(sentence_of([&] { quantile.update_by_quantiles(sy::seq, numbers(2)); }) ==
          "there are 2 quantiles for E = 3 experts");
    const auto updated = [&](ref::matrix scores, index_t k) {
        return sentence_of([&] { quantile.update(sy::seq, stored<float>(scores), k, scratch); });
    };
    CHECK(updated(ref::matrix(4, 3), 1) ==
          "T k = 4 choices cannot be shared evenly by E = 3 experts, as quantile balancing asks");
    CHECK(updated(ref::matrix(3, 3), 3) == "k = 3 must lie in 1..E - 1 = 2 for quantile balancing");
    CHECK(updated(ref::matrix(3, 3), 0) == "k = 0 must lie in 1..E - 1 = 2 for quantile balancing");
    CHECK(updated(ref::matrix(0, 3), 1) == "no tokens have no quantiles");
    CHECK(updated(ref::matrix(2, 2), 1) == "bias has 3 numbers for E = 2 experts");
    CHECK(updated({{0, 1, 2}, {0, never, 2}, {0, 1, never}}, 1) ==
          "a score of token 1 is not finite: quantile balancing knows neither forbidden experts nor padding");
    CHECK(read(quantile) == numbers(3));
    CHECK(sentence_of([&] { sy::update_bias(sy::seq, loads, 3, 1, quantile.view().data, bias_rule::quantile); }) ==
          "bias_rule::quantile moves by quantiles of scores, not by loads");
}
