#include "numeric.hpp"

#include <switchyard/reference/recipe.hpp>
#include <switchyard/reference/top_k.hpp>

#include <doctest/doctest.h>

#include <cmath>
#include <cstdint>
#include <limits>
#include <utility>

using namespace switchyard_test;
using indices = ref::list<sy::index_t>;
using numbers = ref::list<double>;
using ref::gate_sum;
using ref::group_mask;
using ref::key_source;
using ref::recipe_router;
using ref::score_function;

namespace {

const double never = -ref::infinity;
const sy::noise_key key{.seed = 7, .stream = 1, .step = 2};
const score_function all_scores[] = {score_function::softmax, score_function::sigmoid, score_function::sqrt_softplus};
const gate_sum all_sums[] = {gate_sum::none, gate_sum::add, gate_sum::clamp, gate_sum::norm};

/// The logits whose sigmoids these are.
ref::matrix logits_of_sigmoids(ref::matrix sigmoids) {
    for (double& number : sigmoids.values) number = std::log(number / (1 - number));
    return sigmoids;
}

/// The logits with these sqrt(log(1 + exp(l))).
ref::matrix logits_of_sqrt_softplus(ref::matrix values) {
    for (double& number : values.values) number = std::log(std::expm1(number * number));
    return values;
}

double total(const ref::plan& made, const ref::matrix& weights) {
    return inner(made.gates, weights) + made.load_balancing_loss + made.z_loss;
}

void check_gradients(const recipe_router& router, const ref::matrix& scores, const ref::mask_list& mask,
                     const ref::maybe_noise& noise) {
    const auto weights = gaussian(scores.rows, router.k, 99);
    const auto made = ref::route_scores(router, scores, mask, noise);
    const auto numeric = numeric_gradient(
        [&](const ref::matrix& at) { return total(ref::route_scores(router, at, mask, noise), weights); }, scores);
    const auto d_scores = ref::route_scores_backward(router, made, scores, weights, mask, noise);
    CHECK(difference(d_scores, numeric) < 1e-8);

    if (router.logit_bias.empty()) return;
    ref::matrix bias(1, scores.columns);
    bias.values = router.logit_bias;
    const auto by_bias = numeric_gradient(
        [&](const ref::matrix& at) {
            recipe_router moved = router;
            moved.logit_bias = at.values;
            return total(ref::route_scores(moved, scores, mask, noise), weights);
        },
        bias);
    ref::matrix d_bias(1, scores.columns);
    d_bias.values = ref::logit_bias_gradient(d_scores, mask, router.logit_multiplier);
    CHECK(difference(d_bias, by_bias) < 1e-8);
}

/// DeepSeek-V3's router, smaller.
recipe_router like_deepseek_v3(numbers selection_bias, sy::index_t k, ref::expert_groups groups) {
    return {.k = k,
            .score = score_function::sigmoid,
            .selection_bias = std::move(selection_bias),
            .groups = groups,
            .normalize = gate_sum::add,
            .epsilon = 1e-20,
            .scale = 2.5};
}

void check_same(const ref::plan& a, const ref::plan& b) {
    CHECK(a.experts == b.experts);
    CHECK(a.slots == b.slots);
    CHECK(a.gates == b.gates);
    CHECK(a.order == b.order);
    CHECK(a.offsets == b.offsets);
    CHECK(a.load_before == b.load_before);
    CHECK(a.load_balancing_loss == b.load_balancing_loss);
    CHECK(a.z_loss == b.z_loss);
}

}  // namespace

TEST_CASE("reference recipe: DeepSeek-V3's rule in numbers") {
    // Keys .9 .1 | .5 .3 | .6 .3 | .7 .6, so that groups 3 (1.3) and 0 (1.0) are kept; unbiased it would be 2 and 0.
    const auto scores = logits_of_sigmoids({{.9, .1, .5, .3, .8, .3, .2, .6}});
    const numbers bias{0, 0, 0, 0, -.2, 0, .5, 0};
    const ref::expert_groups groups{.count = 4, .kept = 2, .summed = 2};
    const auto made = ref::route_scores(like_deepseek_v3(bias, 3, groups), scores);
    CHECK(made.experts == ref::integers{{0, 6, 7}});
    CHECK(difference(made.gates, {{2.5 * .9 / 1.7, 2.5 * .2 / 1.7, 2.5 * .6 / 1.7}}) < 1e-14);

    const auto unbiased = ref::route_scores(like_deepseek_v3({}, 3, groups), scores);
    CHECK(unbiased.experts == ref::integers{{0, 4, 5}});
    const auto ungrouped = ref::route_scores(like_deepseek_v3(bias, 3, {}), scores);
    CHECK(ungrouped.experts(0, 1) == 6);
    auto raw = like_deepseek_v3(bias, 3, groups);
    raw.normalize = gate_sum::none;
    CHECK(difference(ref::route_scores(raw, scores).gates, {{2.5 * .9, 2.5 * .2, 2.5 * .6}}) < 1e-14);
}

TEST_CASE("reference recipe: DeepSeek-V4's root of softplus in numbers") {
    const auto scores = logits_of_sqrt_softplus({{1, 2, .5, 1.5}, {3.5, .25, 1, 2}});
    const recipe_router router{.k = 2,
                               .score = score_function::sqrt_softplus,
                               .selection_bias = {0, 0, 2, 0},
                               .normalize = gate_sum::add,
                               .epsilon = 1e-20,
                               .scale = 1.5};
    const auto made = ref::route_scores(router, scores);
    CHECK(made.experts == ref::integers{{2, 1}, {0, 2}});  // keys 1 2 2.5 1.5 and 3.5 .25 3 2
    CHECK(difference(made.gates, {{1.5 * .5 / 2.5, 1.5 * 2 / 2.5}, {1.5 * 3.5 / 4.5, 1.5 * 1 / 4.5}}) < 1e-14);
    // Far out: sqrt(l) above, exp(l / 2) below; nothing overflows.
    const auto far =
        ref::route_scores(recipe_router{.k = 2, .score = score_function::sqrt_softplus}, {{1e4, -200, -900}});
    CHECK(far.gates(0, 0) == 100);
    CHECK(far.gates(0, 1) == doctest::Approx(std::exp(-100.0)).epsilon(1e-14));
}

TEST_CASE("reference recipe: gpt-oss's rule is softmax over the chosen biased logits") {
    const numbers bias{1, -2, .5};
    ref::matrix scores = logarithm({{.5, .3, .2}, {.2, .6, .2}});
    for (sy::index_t t = 0; t < 2; ++t) {
        for (sy::index_t e = 0; e < 3; ++e) scores(t, e) -= bias[e];
    }
    const recipe_router router{.k = 2, .logit_bias = bias, .normalize = gate_sum::add};
    const auto made = ref::route_scores(router, scores);
    CHECK(made.experts(0, 0) == 0);
    CHECK(made.experts(0, 1) == 1);
    CHECK(difference(made.gates, {{.5 / .8, .3 / .8}, {.75, .25}}) < 1e-14);

    const auto many = gaussian(40, 8, 3);
    const auto after = ref::route_scores(
        ref::top_k_router{.k = 3, .softmax = ref::softmax_place::after, .balance_weight = .1, .z_weight = .2}, many);
    const auto recipe = ref::route_scores(
        recipe_router{.k = 3, .normalize = gate_sum::add, .balance_weight = .1, .z_weight = .2}, many);
    CHECK(recipe.experts == after.experts);
    CHECK(recipe.slots == after.slots);
    CHECK(difference(recipe.gates, after.gates) < 1e-15);
    CHECK(recipe.load_balancing_loss == after.load_balancing_loss);
    CHECK(recipe.z_loss == after.z_loss);
}

TEST_CASE("reference recipe: Llama 4's rule is the sigmoid of the largest logit") {
    const auto scores = logits_of_sigmoids({{.2, .7, .4}, {.9, .1, .3}});
    const auto made = ref::route_scores(recipe_router{.k = 1, .score = score_function::sigmoid}, scores);
    CHECK(made.experts == ref::integers{{1}, {0}});
    CHECK(difference(made.gates, {{.7}, {.9}}) < 1e-15);
    // Logits whose sigmoids round to the same 1 still differ as keys.
    const auto large = ref::route_scores(recipe_router{.k = 1, .score = score_function::sigmoid}, {{50, 60, 40}});
    CHECK(large.experts == ref::integers{{1}});
}

TEST_CASE("reference recipe: softmax before, plain and renormalised, is top-k's") {
    auto scores = gaussian(30, 6, 1);
    scores(3, 2) = never;
    for (const bool renormalize : {false, true}) {
        const ref::capacity_rule capacity{.factor = 0.8};
        const auto top_k = ref::route_scores(ref::top_k_router{.k = 3,
                                                               .renormalize = renormalize,
                                                               .capacity = capacity,
                                                               .order = ref::drop_order::gate,
                                                               .z_weight = 1},
                                             scores);
        const auto recipe = ref::route_scores(recipe_router{.k = 3,
                                                            .normalize = renormalize ? gate_sum::add : gate_sum::none,
                                                            .capacity = capacity,
                                                            .order = ref::drop_order::gate,
                                                            .balance_weight = .01,
                                                            .z_weight = 1},
                                              scores);
        check_same(recipe, top_k);
        CHECK(recipe.kept() < 90);
    }
}

TEST_CASE("reference recipe: ERNIE's clamp divides by the sum or by the least divisor") {
    const auto scores = logarithm({{.4, .3, .2, .1}, {.25, .25, .25, .25}});
    const recipe_router router{.k = 2, .normalize = gate_sum::clamp, .epsilon = .6};
    const auto made = ref::route_scores(router, scores);
    CHECK(difference(made.gates, {{.4 / .7, .3 / .7}, {.25 / .6, .25 / .6}}) < 1e-15);
}

TEST_CASE("reference recipe: biased scores never become weights") {
    const auto scores = logits_of_sigmoids({{.2, .7, .4}});
    for (const auto source : {key_source::score, key_source::logit}) {
        const recipe_router router{
            .k = 2, .score = score_function::sigmoid, .key = source, .selection_bias = {100, 0, 0}};
        const auto made = ref::route_scores(router, scores);
        CHECK(made.experts == ref::integers{{0, 1}});
        CHECK(difference(made.gates, {{.2, .7}}) < 1e-15);
    }
    // A bias that is the same for all moves nothing at all.
    const auto many = gaussian(20, 8, 4);
    const auto router = like_deepseek_v3(ref::filled(8, 0.0), 3, {.count = 4, .kept = 2});
    auto shifted = router;
    shifted.selection_bias = ref::filled(8, -4.0);
    check_same(ref::route_scores(router, many), ref::route_scores(shifted, many));
}

TEST_CASE("reference recipe: a bias on logits chooses otherwise than one on scores") {
    const auto scores = logits_of_sigmoids({{.98, .5, .4}});  // logits 3.9, 0, -.4
    recipe_router router{.k = 1, .score = score_function::sigmoid, .selection_bias = {0, 0, 1}};
    CHECK(ref::route_scores(router, scores).experts == ref::integers{{2}});  // .98, .5, 1.4
    router.key = key_source::logit;
    CHECK(ref::route_scores(router, scores).experts == ref::integers{{0}});  // 3.9, 0, .6
}

TEST_CASE("reference recipe: a zero mask differs from a forbidding one with negative keys alone") {
    const auto scores = gaussian(50, 16, 5);
    auto forbidding = like_deepseek_v3(ref::filled(16, 0.0), 4, {.count = 4, .kept = 2});
    for (sy::index_t e = 0; e < 16; ++e) forbidding.selection_bias[e] = 0.05 * static_cast<double>(e % 5);
    auto zero = forbidding;
    zero.groups.masked = group_mask::zero;
    check_same(ref::route_scores(zero, scores), ref::route_scores(forbidding, scores));

    for (double& bias : forbidding.selection_bias) bias -= 2;
    zero.selection_bias = forbidding.selection_bias;
    const auto made = ref::route_scores(zero, scores);
    CHECK(made.experts != ref::route_scores(forbidding, scores).experts);
    CHECK(made.kept() == 200);  // a choice outside the kept groups is a choice like any other
    // Keys .9 .8 | .3 .2, less 1: group 0 is kept, and its negative keys lose to group 1's zeros.
    const auto small = logits_of_sigmoids({{.9, .8, .3, .2}});
    auto router = like_deepseek_v3(ref::filled(4, -1.0), 2, {.count = 2, .kept = 1});
    CHECK(ref::route_scores(router, small).experts == ref::integers{{0, 1}});
    router.groups.masked = group_mask::zero;
    const auto outside = ref::route_scores(router, small);
    CHECK(outside.experts == ref::integers{{2, 3}});
    CHECK(difference(outside.gates, {{2.5 * .3 / .5, 2.5 * .2 / .5}}) < 1e-14);
}

TEST_CASE("reference recipe: -infinity forbids before any bias, with gradient 0") {
    const ref::matrix scores{{0, never, -1, never, .5, -2}, {1, 2, 3, 4, 5, 6}};
    for (const auto score : all_scores) {
        for (const auto sum : all_sums) {
            for (const auto mask : {group_mask::forbidden, group_mask::zero}) {
                for (const sy::index_t kept : {2, 3}) {
                    const recipe_router router{.k = 4,
                                               .score = score,
                                               .selection_bias = {-9, 1000, -9, 1000, -9, -9},
                                               .groups = {.count = 3, .kept = kept, .masked = mask},
                                               .normalize = sum,
                                               .epsilon = sum == gate_sum::norm ? 0 : 1e-20,
                                               .balance_weight = 1,
                                               .z_weight = 1};
                    const auto made = ref::route_scores(router, scores);
                    const auto d = ref::route_scores_backward(router, made, scores, ref::matrix(2, 4, 1.0));
                    CHECK(d(0, 1) == 0);
                    CHECK(d(0, 3) == 0);
                    for (const double number : d.values) CHECK(std::isfinite(number));
                    for (sy::index_t c = 0; c < 4; ++c) {
                        const bool forbidden = scores(0, made.experts(0, c)) == never;
                        if (forbidden) CHECK(made.gates(0, c) == 0);
                        if (forbidden) CHECK(!made.keeps(0, c));
                    }
                    if (kept == 3) {
                        CHECK(made.keeps(0, 3));  // four allowed experts, four choices
                        CHECK(made.load_before[1] == 1);
                        CHECK(made.load_before[3] == 1);
                    }
                }
            }
        }
    }
}

TEST_CASE("reference recipe: fewer than k allowed, the rest in index order without gate, slot or load") {
    const ref::matrix scores{{never, 1, never, 0, never, never}};
    for (const auto score : all_scores) {
        for (const numbers& bias : {numbers{}, numbers{5, 0, 4, 0, 3, 2}}) {
            const recipe_router router{.k = 4, .score = score, .selection_bias = bias, .normalize = gate_sum::add};
            const auto made = ref::route_scores(router, scores);
            CHECK(made.experts == ref::integers{{1, 3, 0, 2}});
            CHECK(made.slots == ref::integers{{0, 0, -1, -1}});
            CHECK(made.gates(0, 0) + made.gates(0, 1) == doctest::Approx(1).epsilon(1e-15));
            CHECK(made.gates(0, 2) == 0);
            CHECK(made.load_before == indices{0, 1, 0, 1, 0, 0});
        }
    }
    // The kept group has one allowed expert. Forbidden ones fill up, wherever they are, and the other group's never.
    const recipe_router grouped{
        .k = 2, .score = score_function::sigmoid, .groups = {.count = 2, .kept = 1}, .normalize = gate_sum::add};
    const auto made = ref::route_scores(grouped, {{3, never, -9, -9}});
    CHECK(made.experts == ref::integers{{0, 1}});
    CHECK(made.gates(0, 0) == 1);
    const auto masked = ref::route_scores(grouped, {{-9, -9, never, 3}});
    CHECK(masked.experts == ref::integers{{3, 2}});
    CHECK(masked.slots == ref::integers{{0, -1}});
    CHECK(masked.gates == ref::matrix{{1, 0}});
    CHECK(masked.load_before == indices{0, 0, 0, 1});
    const recipe_router three{.k = 3, .groups = {.count = 2, .kept = 1}};
    const auto elsewhere = ref::route_scores(three, {{never, -1, -2, never, never, 1}});
    CHECK(elsewhere.experts == ref::integers{{5, 0, 3}});  // keys of group 0: .11 + .04, of group 1: .84
    const auto d = ref::route_scores_backward(grouped, masked, {{-9, -9, never, 3}}, ref::matrix(1, 2, 1.0));
    CHECK(d == ref::matrix(1, 4));
}

TEST_CASE("reference recipe: a token forbidden everywhere is dropped, or an error without a capacity") {
    const ref::matrix scores{{never, never, never, never}, {2, 1, 0, -1}};
    for (const auto score : all_scores) {
        for (const auto sum : all_sums) {
            recipe_router router{.k = 2,
                                 .score = score,
                                 .selection_bias = {1, 2, 3, 4},
                                 .groups = {.count = 2, .kept = 1, .masked = group_mask::zero},
                                 .normalize = sum,
                                 .capacity = {.number = 2},
                                 .balance_weight = 1,
                                 .z_weight = 1};
            const auto made = ref::route_scores(router, scores);
            CHECK(made.experts(0, 0) == 0);
            CHECK(made.experts(0, 1) == 1);
            CHECK(made.slots(0, 0) == -1);
            CHECK(made.gates(0, 0) == 0);
            CHECK(made.kept() == 2);
            const auto d = ref::route_scores_backward(router, made, scores, ref::matrix(2, 2, 1.0));
            for (const double number : d.values) CHECK(std::isfinite(number));
            for (sy::index_t e = 0; e < 4; ++e) CHECK(d(0, e) == 0);
            router.capacity = {};
            CHECK_THROWS_AS(ref::route_scores(router, scores), sy::error);
        }
    }
}

TEST_CASE("reference recipe: the scale is applied once, normalised or not") {
    const auto scores = gaussian(20, 6, 8);
    for (const auto score : all_scores) {
        for (const auto sum : all_sums) {
            for (const sy::index_t k : {1, 3}) {
                recipe_router router{
                    .k = k, .score = score, .normalize = sum, .epsilon = sum == gate_sum::norm ? 0 : 1e-20};
                const auto plain = ref::route_scores(router, scores);
                const auto d_plain = ref::route_scores_backward(router, plain, scores, ref::matrix(20, k, 1.0));
                router.scale = 4;
                const auto scaled = ref::route_scores(router, scores);
                const auto d_scaled = ref::route_scores_backward(router, scaled, scores, ref::matrix(20, k, 1.0));
                CHECK(scaled.experts == plain.experts);
                for (sy::index_t i = 0; i < plain.gates.values.length(); ++i) {
                    CHECK(scaled.gates.values[i] == 4 * plain.gates.values[i]);
                }
                for (sy::index_t i = 0; i < d_plain.values.length(); ++i) {
                    CHECK(d_scaled.values[i] == 4 * d_plain.values[i]);
                }
                if (sum == gate_sum::none) continue;
                for (sy::index_t t = 0; t < 20; ++t) {
                    CHECK(ref::sum_of(ref::row_of(scaled.gates, t)) == doctest::Approx(4).epsilon(1e-14));
                }
            }
        }
    }
}

TEST_CASE("reference recipe: a sum of 0 gives gates 0 and gradients 0, not NaN") {
    // The bias sends the token where its scores are exactly 0.
    const ref::matrix scores{{0, -2000, -3000, 0}};
    for (const auto score : all_scores) {
        for (const auto sum : {gate_sum::add, gate_sum::clamp}) {
            const recipe_router router{
                .k = 2, .score = score, .selection_bias = {0, 5, 5, 0}, .normalize = sum, .epsilon = 0, .scale = 2.5};
            const auto made = ref::route_scores(router, scores);
            CHECK(made.experts == ref::integers{{1, 2}});
            CHECK(made.gates == ref::matrix(1, 2));
            CHECK(made.slots == ref::integers{{0, 0}});
            CHECK(ref::route_scores_backward(router, made, scores, {{1, -3}}) == ref::matrix(1, 4));
        }
    }
}

TEST_CASE("reference recipe: one group, or all kept, is no groups") {
    const auto scores = gaussian(25, 12, 9);
    for (const numbers& bias : {numbers{}, gaussian(1, 12, 10).values}) {
        for (const auto mask : {group_mask::forbidden, group_mask::zero}) {
            auto router = like_deepseek_v3(bias, 5, {});
            const auto none = ref::route_scores(router, scores);
            for (const sy::index_t count : {1, 3, 12}) {
                router.groups = {.count = count, .kept = count, .summed = 1, .masked = mask};
                check_same(ref::route_scores(router, scores), none);
            }
        }
    }
}

TEST_CASE("reference recipe: a group's score is the sum of its best keys") {
    // Sigmoids .9 .1 .1 | .6 .6 .1 | .5 .5 .5: the best group by 1, 2 and 3 keys is 0, 1 and 2.
    const auto scores = logits_of_sigmoids({{.9, .1, .1, .6, .6, .1, .5, .5, .5}});
    recipe_router router{.k = 1, .score = score_function::sigmoid, .groups = {.count = 3, .kept = 1}};
    for (const sy::index_t summed : {1, 2, 3, 4, 100}) {
        router.groups.summed = summed;
        const sy::index_t group = summed < 3 ? summed - 1 : 2;  // above the group's size: what there is
        CHECK(ref::route_scores(router, scores).experts(0, 0) == 3 * group);
    }
    // Equal group scores: the lower group.
    router.groups = {.count = 3, .kept = 2, .summed = 2};
    router.k = 6;
    CHECK(ref::route_scores(router, ref::matrix(1, 9)).experts == ref::integers{{0, 1, 2, 3, 4, 5}});
    // A forbidden expert is not counted: group 1's only expert beats both of group 2's together; group 0 has none.
    router = {.k = 2, .score = score_function::sigmoid, .groups = {.count = 3, .kept = 1}};
    const auto lone = logits_of_sigmoids({{.5, .5, .9, .5, .3, .4}});
    ref::matrix forbidden = lone;
    forbidden(0, 0) = forbidden(0, 1) = forbidden(0, 3) = never;
    CHECK(ref::route_scores(router, forbidden).experts == ref::integers{{2, 0}});
    // Groups of logits, as of any other keys.
    router = {.k = 1, .score = score_function::sigmoid, .key = key_source::logit, .groups = {.count = 2, .kept = 1}};
    CHECK(ref::route_scores(router, {{4, -9, 1, 0}}).experts == ref::integers{{2}});  // -5 and 1
    router.key = key_source::score;
    CHECK(ref::route_scores(router, {{4, -9, -1, -2}}).experts == ref::integers{{0}});
}

TEST_CASE("reference recipe: losses are of the softmax, whatever the score") {
    const auto scores = gaussian(30, 6, 11);
    const ref::top_k_router top_k{.k = 2, .count = ref::balance_count::all, .balance_weight = .7, .z_weight = .3};
    const auto expected = ref::route_scores(top_k, scores);
    const auto d_expected = ref::route_scores_backward(top_k, expected, scores, ref::matrix(30, 2));
    for (const auto score : all_scores) {
        const recipe_router router{.k = 2,
                                   .score = score,
                                   .normalize = gate_sum::add,
                                   .balance_weight = .7,
                                   .count = ref::balance_count::all,
                                   .z_weight = .3};
        const auto made = ref::route_scores(router, scores);
        CHECK(made.experts == expected.experts);
        CHECK(made.load_balancing_loss == expected.load_balancing_loss);
        CHECK(made.z_loss == expected.z_loss);
        const auto d_scores = ref::route_scores_backward(router, made, scores, ref::matrix(30, 2));
        CHECK(difference(d_scores, d_expected) < 1e-16);
    }
    // The choices that the loss counts are the biased ones.
    const recipe_router biased{.k = 1, .selection_bias = {0, 0, 9}, .balance_weight = 1};
    const auto made = ref::route_scores(biased, logarithm({{.5, .3, .2}, {.2, .6, .2}}));
    CHECK(made.load_balancing_loss == doctest::Approx(3 * .2).epsilon(1e-14));
}

TEST_CASE("reference recipe: the bias comes before the jitter") {
    const auto scores = gaussian(20, 5, 12);
    const numbers bias{1, -1, 2, 0, .5};
    ref::matrix sums = scores;
    for (sy::index_t t = 0; t < 20; ++t) {
        for (sy::index_t e = 0; e < 5; ++e) sums(t, e) += bias[e];
    }
    const recipe_router biased{.k = 2, .logit_bias = bias, .noise = {.logit_jitter = .3f}, .z_weight = 1};
    const recipe_router plain{.k = 2, .noise = {.logit_jitter = .3f}, .z_weight = 1};
    check_same(ref::route_scores(biased, scores, {}, key), ref::route_scores(plain, sums, {}, key));
    const auto made = ref::route_scores(biased, scores, {}, key);
    CHECK(made.gates != ref::route_scores(biased, scores).gates);
}

TEST_CASE("reference recipe: capacity, padding and sampling") {
    auto scores = gaussian(40, 8, 13);
    const ref::mask_list mask = [] {
        ref::mask_list tokens = ref::filled<std::uint8_t>(40, 1);
        tokens[3] = tokens[39] = 0;
        return tokens;
    }();
    for (sy::index_t e = 0; e < 8; ++e) scores(3, e) = std::numeric_limits<double>::quiet_NaN();
    auto router = like_deepseek_v3(gaussian(1, 8, 14).values, 3, {.count = 4, .kept = 2});
    const auto roomy = ref::route_scores(router, scores, mask);
    router.capacity = {.factor = .6};
    const auto made = ref::route_scores(router, scores, mask);
    CHECK(made.experts == roomy.experts);
    CHECK(made.load_before == roomy.load_before);
    CHECK(made.capacity == 9);  // 40 x 3 x 0.6 / 8
    CHECK(made.kept() < roomy.kept());
    for (sy::index_t t = 0; t < 40; ++t) {
        for (sy::index_t c = 0; c < 3; ++c) {
            if (mask[t] == 0) CHECK(made.experts(t, c) == -1);
            CHECK(made.gates(t, c) == (made.keeps(t, c) ? roomy.gates(t, c) : 0));  // divided by all k, kept or not
        }
    }
    // What stands at a dropped choice's gradient is not read.
    ref::matrix d_gates(40, 3, std::numeric_limits<double>::quiet_NaN());
    for (sy::index_t t = 0; t < 40; ++t) {
        for (sy::index_t c = 0; c < 3; ++c) {
            if (made.keeps(t, c)) d_gates(t, c) = 1;
        }
    }
    const auto d = ref::route_scores_backward(router, made, scores, d_gates, mask);
    for (sy::index_t e = 0; e < 8; ++e) CHECK(d(3, e) == 0);
    for (const double number : d.values) CHECK(std::isfinite(number));

    // Sampling moves choices, gates stay scores, and no noise lifts a ban or leaves the kept groups.
    recipe_router sampling{.k = 2,
                           .score = score_function::sigmoid,
                           .groups = {.count = 2, .kept = 1},
                           .noise = {.sample_temperature = 5}};
    ref::matrix banned = gaussian(40, 8, 15);
    for (sy::index_t t = 0; t < 40; ++t) banned(t, 2) = never;
    const auto sampled = ref::route_scores(sampling, banned, {}, key);
    CHECK(sampled.experts != ref::route_scores(sampling, banned).experts);
    for (sy::index_t t = 0; t < 40; ++t) {
        CHECK(sampled.experts(t, 0) / 4 == sampled.experts(t, 1) / 4);
        for (sy::index_t c = 0; c < 2; ++c) {
            CHECK(sampled.experts(t, c) != 2);
            CHECK(sampled.gates(t, c) == ref::sigmoid(banned(t, sampled.experts(t, c))));
        }
    }
}

TEST_CASE("reference recipe: hostile settings and shapes") {
    const auto scores = gaussian(4, 6, 16);
    const double nan = std::numeric_limits<double>::quiet_NaN();
    const recipe_router wrong[] = {{.k = 0},
                                   {.k = 7},
                                   {.logit_bias = {1, 2}},
                                   {.logit_bias = {1, 2, 3, 4, 5, never}},
                                   {.selection_bias = {1, 2, 3, 4, 5, 6, 7}},
                                   {.selection_bias = {1, 2, 3, 4, 5, nan}},
                                   {.groups = {.count = 0}},
                                   {.groups = {.count = 4}},
                                   {.groups = {.count = 3, .kept = 0}},
                                   {.groups = {.count = 3, .kept = 4}},
                                   {.groups = {.count = 3, .kept = 1, .summed = 0}},
                                   {.k = 3, .groups = {.count = 3, .kept = 1}},
                                   {.epsilon = -1},
                                   {.epsilon = nan},
                                   {.scale = ref::infinity},
                                   {.noise = {.logit_jitter = 2}}};
    for (const auto& router : wrong) CHECK_THROWS_AS(ref::route_scores(router, scores), sy::error);
    CHECK_THROWS_AS(ref::route_scores(recipe_router{}, ref::matrix(2, 0)), sy::error);
    CHECK_THROWS_AS(ref::route_scores(recipe_router{}, {{0, nan}}), sy::error);
    CHECK_THROWS_AS(ref::route_scores(recipe_router{}, {{0, ref::infinity}}), sy::error);
    CHECK(ref::route_scores(recipe_router{.k = 2}, ref::matrix(0, 3)).offsets == indices{0, 0, 0, 0});
    // A key that overflows is very low, not forbidden.
    const double huge = std::numeric_limits<double>::max();
    const recipe_router low{.k = 2, .key = key_source::logit, .selection_bias = {0, -huge}};
    CHECK(ref::route_scores(low, {{0, -huge}}).kept() == 2);
}

TEST_CASE("reference recipe: gradients by central differences") {
    auto scores = gaussian(9, 6, 21);
    scores(4, 1) = never;
    const ref::mask_list mask{1, 1, 0, 1, 1, 1, 1, 0, 1};
    for (const auto score : all_scores) {
        for (const auto sum : all_sums) {
            for (const sy::index_t k : {1, 2, 4}) {
                CAPTURE(k);
                CAPTURE(static_cast<int>(score));
                CAPTURE(static_cast<int>(sum));
                // Sums above and below the clamp.
                const double epsilon = sum == gate_sum::norm    ? 0
                                       : sum == gate_sum::clamp ? 0.22 * static_cast<double>(k)
                                                                : 0.3;
                recipe_router router{
                    .k = k, .score = score, .normalize = sum, .norm_power = 2.5, .epsilon = epsilon, .scale = 2.5};
                check_gradients(router, scores, mask, {});
                router.selection_bias = gaussian(1, 6, 5).values;
                router.logit_bias = gaussian(1, 6, 6).values;
                router.groups = {.count = 3, .kept = 2};
                router.balance_weight = .7;
                router.z_weight = .3;
                check_gradients(router, scores, mask, {});
                router.logit_multiplier = 1.5;
                router.softcap = 2;
                router.expert_scale = gaussian(1, 6, 7).values;
                check_gradients(router, scores, mask, {});
                router.key = key_source::logit;
                router.groups.masked = group_mask::zero;
                router.capacity.factor = .7;
                router.order = ref::drop_order::gate;
                router.noise = {.logit_jitter = .4f, .sample_temperature = .5f};
                router.count = ref::balance_count::all;
                check_gradients(router, scores, mask, key);
            }
        }
    }
}

TEST_CASE("reference recipe: from tokens, gradients of x and w by central differences") {
    const auto x = gaussian(9, 5, 1);
    const auto w = gaussian(5, 4, 2);
    const auto weights = gaussian(9, 2, 3);
    const recipe_router router{.k = 2,
                               .score = score_function::sqrt_softplus,
                               .logit_bias = {.1, .2, -.3, 0},
                               .selection_bias = {.5, 0, 0, -.5},
                               .normalize = gate_sum::add,
                               .capacity = {.factor = 1.0},
                               .noise = {.input_jitter = .3f},
                               .balance_weight = .7,
                               .z_weight = .3};
    const auto made = ref::route(router, x, w, {}, key);
    const auto gradients = ref::route_backward(router, made, x, w, weights, {}, key);
    const auto by_x =
        numeric_gradient([&](const ref::matrix& at) { return total(ref::route(router, at, w, {}, key), weights); }, x);
    const auto by_w =
        numeric_gradient([&](const ref::matrix& at) { return total(ref::route(router, x, at, {}, key), weights); }, w);
    CHECK(difference(gradients.d_x, by_x) < 1e-8);
    CHECK(difference(gradients.d_w, by_w) < 1e-8);
}

TEST_CASE("reference recipe: the selection bias follows the loads") {
    const numbers bias{0, 1, 2, 3};
    // Mean 2.5: one load is above, three are below.
    CHECK(ref::updated_bias(bias, {7, 1, 0, 2}, .5, ref::bias_rule::sign) == numbers{-.5, 1.5, 2.5, 3.5});
    // Less the mean of the steps, which is .25.
    CHECK(ref::updated_bias(bias, {7, 1, 0, 2}, .5, ref::bias_rule::centred_sign) == numbers{-.75, 1.25, 2.25, 3.25});
    // At the mean, nothing moves.
    CHECK(ref::updated_bias(bias, {3, 3, 3, 3}, .5, ref::bias_rule::sign) == bias);
    CHECK(ref::updated_bias(bias, {4, 3, 2, 3}, .5, ref::bias_rule::sign) == numbers{-.5, 1, 2.5, 3});
    CHECK(ref::updated_bias(bias, {0, 0, 0, 0}, .5, ref::bias_rule::centred_sign) == bias);
    CHECK_THROWS_AS(ref::updated_bias(bias, {1, 2}, .5, ref::bias_rule::sign), sy::error);
    CHECK_THROWS_AS(ref::updated_bias(bias, {1, 2, 3, 4}, ref::infinity, ref::bias_rule::sign), sy::error);
    CHECK_THROWS_AS(ref::updated_bias(bias, {1, 2, 3, -4}, .5, ref::bias_rule::sign), sy::error);

    // It balances: after enough steps all experts have about the same load.
    auto scores = gaussian(400, 8, 30);
    for (sy::index_t t = 0; t < 400; ++t) scores(t, 0) += 2;
    auto router = like_deepseek_v3(ref::filled(8, 0.0), 2, {});
    const auto before = ref::route_scores(router, scores).load_before;
    CHECK(before[0] > 250);
    for (int step = 0; step < 500; ++step) {
        const auto loads = ref::route_scores(router, scores).load_before;
        router.selection_bias = ref::updated_bias(router.selection_bias, loads, .002, ref::bias_rule::sign);
    }
    for (const sy::index_t load : ref::route_scores(router, scores).load_before) {
        CHECK(load > 85);
        CHECK(load < 115);
    }
}

TEST_CASE("reference recipe: quantile balancing, worked by hand") {
    const ref::matrix scores{{3, 0}, {2, 0}, {1, 0}, {0, 1}};
    const auto q = ref::balancing_quantiles(scores, 1, {0, 0});
    CHECK(q == numbers{1, 0});
    CHECK(ref::quantile_bias({0, 0}, q, 0) == numbers{-.5, .5});
    CHECK(ref::quantile_bias({-1, 1}, {2, 0}, .25) == numbers{-1, 1});
    // The bias counts in what a token asks for: alpha = 1, 0, -1 and -2 with expert 1 at -2.
    CHECK(ref::balancing_quantiles({{3, 3}, {2, 2}, {1, 1}, {0, 0}}, 1, {0, -2}) == numbers{2, 2});
}
