// The recipe router against the reference in plain loops and against what published models answered; settings, traps,
// hostile scores, and the bias that balances.
#include "reference/numeric.hpp"
#include "support/backends.hpp"
#include "support/recorded_models.hpp"
#include "support/routed.hpp"

#include <switchyard/router/bias_update.hpp>
#include <switchyard/router/recipe.hpp>
#include <switchyard/router/top_k.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <string_view>
#include <vector>

using namespace switchyard_test;
using sy::gate_sum;
using sy::group_mask;
using sy::key_source;
using sy::score_function;

namespace {

using recipe = sy::recipe_router<>;
using numbers = std::vector<float>;

constexpr score_function every_function[] = {score_function::softmax, score_function::sigmoid,
                                             score_function::sqrt_softplus};

sy::expert_numbers<> numbers_of(const numbers& list) { return {list.data(), static_cast<index_t>(list.size())}; }

numbers draw_bias(index_t experts, std::uint64_t seed, double shift = 0) {
    std::mt19937_64 random(seed);
    std::normal_distribution<double> normal(shift, 0.3);
    numbers bias(static_cast<std::size_t>(experts));
    for (float& number : bias) number = static_cast<float>(normal(random));
    return bias;
}

/// Whether rounding may decide between two keys.
bool is_near(double a, double b, double scale) {
    return a != b && std::abs(a - b) <= 4e-6 * (scale + std::abs(a) + std::abs(b));
}

/// Whether keys in float may order a token's experts, or its groups, otherwise than keys in double.
bool is_near_tie(const ref::recipe_router& router, const ref::matrix& row) {
    const bool raw = router.selection_bias.empty() && !ref::has_groups(router);
    const bool changed = !router.logit_bias.empty() || router.logit_multiplier != 1 || router.softcap != 0;
    if (raw && !changed) return false;
    const double scale = router.selection_bias.empty() && !changed ? 0 : 0.1;
    auto ungrouped = router;
    ungrouped.groups = {};
    ungrouped.noise = {};
    if (!raw && router.selection_bias.empty()) ungrouped.selection_bias = ref::filled(row.columns, 0.0);
    const ref::matrix logits = ref::biased_logits(ungrouped, row, {});
    auto keys = ref::row_of(ref::choice_keys(ungrouped, logits, {}, {}), 0);
    const auto falls_apart = [&](ref::list<double> list, index_t first, index_t last) {
        std::sort(list.begin(), list.end(), [](double a, double b) { return a > b; });
        for (index_t i = first; i < last && i + 1 < list.length(); ++i) {
            if (list[i + 1] != never && is_near(list[i], list[i + 1], scale)) return true;
        }
        return false;
    };
    if (ref::has_groups(router)) {
        const index_t size = keys.length() / router.groups.count;
        ref::list<double> scores;
        for (index_t g = 0; g < router.groups.count; ++g) {
            ref::list<double> members;
            members.assign(keys.begin() + g * size, keys.begin() + (g + 1) * size);
            scores.push_back(ref::group_score(members, router.groups.summed));
        }
        if (falls_apart(scores, router.groups.kept - 1, router.groups.kept)) return true;
        keys = ref::keep_best_groups(router.groups, keys);
    }
    return falls_apart(keys, 0, router.k);
}

/// Scores without near ties: rows that have one are drawn again.
ref::matrix clear_scores(const recipe& router, score_kind kind, index_t tokens, index_t experts, std::uint64_t seed,
                         int forbidden = 0) {
    const auto same = reference_of(router, true);
    auto scores = draw_scores(kind, tokens, experts, seed, forbidden);
    for (index_t t = 0; t < tokens; ++t) {
        for (std::uint64_t again = 0;; ++again) {
            ref::matrix row(1, experts);
            for (index_t e = 0; e < experts; ++e) row(0, e) = scores(t, e);
            if (!is_near_tie(same, row)) break;
            REQUIRE(again < 200);
            const auto other =
                draw_scores(kind, 1, experts, seed * 1000 + again * 7919 + static_cast<std::uint64_t>(t), forbidden);
            for (index_t e = 0; e < experts; ++e) scores(t, e) = other(0, e);
        }
    }
    return scores;
}

/// Rules of gates by number.
void set_rule(recipe& router, int rule) {
    switch (rule % 9) {
        case 1:
            router.scale = 2.5;
            break;
        case 2:
            router.normalize = gate_sum::add;
            router.epsilon = 1e-20;
            router.scale = 2.5;
            break;
        case 3:
            router.normalize = gate_sum::add;
            router.epsilon = router.k > 1 ? 0 : 0.5;
            break;
        case 4:
            router.normalize = gate_sum::clamp;
            router.epsilon = 0.3;
            break;
        case 5:
            router.normalize = gate_sum::add;
            router.epsilon = 0.25;
            router.scale = 3;
            break;
        case 6:
        case 7:
        case 8:
            if (router.k == 1) break;
            router.normalize = gate_sum::norm;
            router.norm_power = rule % 9 == 6 ? 1 : rule % 9 == 7 ? 2 : 3.5;
            router.scale = rule % 9 == 8 ? 2.5 : 1;
            break;
        default:
            break;
    }
}

/// Groups of E experts of which k can be chosen, all kept where there are none.
sy::expert_groups groups_for(index_t experts, index_t k, int variant) {
    const index_t count = experts == 2 || experts == 5 ? experts : experts == 8 || experts == 16 ? 4 : 8;
    if (experts % count != 0 || variant == 0) return {};
    const index_t size = experts / count;
    const index_t kept = std::max<index_t>((k + size - 1) / size, count / 2);
    const group_mask masked = variant == 1 ? group_mask::forbidden : group_mask::zero;
    return {.count = count, .kept = kept, .summed = 1 + (k + experts) % 3, .masked = masked};
}

template <class S>
void check(const recipe& router, const ref::matrix& scores, const ref::mask_list& mask = {}) {
    CHECK(routing_mismatch<S>(router, scores, mask) == "");
    CHECK(routing_mismatch<S>(router, scores, mask, false) == "");
    CHECK(backward_mismatch<S>(router, scores, gaussian_scores(scores.rows, router.k, 8), mask) == "");
}

/// Every function x source of keys x bias x groups; gates, losses, masks, capacity and noise change from one to the
/// next.
template <class S>
void check_shapes(index_t experts, index_t k) {
    int turn = static_cast<int>(experts + k);
    const auto bias = draw_bias(experts, 3);
    const auto negative = draw_bias(experts, 4, -1);
    for (const auto function : every_function) {
        for (const auto source : {key_source::value, key_source::score}) {
            for (const int biased : {0, 1, 2}) {
                for (const int grouped : {0, 1, 2}) {
                    ++turn;
                    recipe router{.k = k, .score = function, .key = source};
                    router.groups = groups_for(experts, k, grouped);
                    if (grouped > 0 && !router.groups.choose()) continue;
                    if (biased > 0) router.selection_bias = numbers_of(biased == 1 ? bias : negative);
                    set_rule(router, turn);
                    if (turn % 3 == 0) router.capacity = {.factor = 1.0};
                    if (turn % 4 == 0) router.z_weight = 0.01;
                    if (turn % 5 < 2) router.balance_weight = 0.02;
                    if (turn % 2 == 0) router.balance = sy::balance_count::all;
                    if (turn % 7 == 0) router.logit_bias = numbers_of(bias);
                    if (turn % 11 < 2) router.logit_multiplier = 0.7;
                    if (turn % 11 == 1 || turn % 11 == 2) router.softcap = 2.5;
                    if (turn % 13 < 3) router.expert_scale = numbers_of(negative);
                    constexpr index_t counts[] = {1, 3, 50, 37};
                    const index_t tokens = counts[turn % 4];
                    const int forbidden = turn % 3 == 1 && experts > 4 ? 60 : 0;
                    const auto scores = clear_scores(router, score_kind::gaussian, tokens, experts,
                                                     static_cast<std::uint64_t>(turn), forbidden);
                    if (forbidden > 0) router.capacity = {.number = 1 + tokens};
                    router.inference_capacity = router.capacity;
                    CAPTURE(experts);
                    CAPTURE(k);
                    CAPTURE(static_cast<int>(function));
                    CAPTURE(static_cast<int>(source));
                    CAPTURE(biased);
                    CAPTURE(grouped);
                    CAPTURE(turn);
                    check<S>(router, scores, turn % 2 == 0 ? draw_mask(tokens, 5) : ref::mask_list{});
                }
            }
        }
    }
}

/// Every expert of a token is another one, and there is one of that number.
template <class S>
bool has_different_experts(const sy::plan<S>& plan) {
    for (index_t t = 0; t < plan.tokens(); ++t) {
        auto seen = ref::filled<int>(plan.experts(), 0);
        for (index_t c = 0; c < plan.choices(); ++c) {
            const index_t e = plan.expert()(t, c);
            if (e < 0 || e >= plan.experts() || seen[e]++ != 0) return false;
        }
    }
    return true;
}

double gate(const sy::plan<double>& plan, index_t token, index_t c) { return plan.gate()(token, c); }

double sigmoid_of(double s) { return 1 / (1 + std::exp(-s)); }

}  // namespace

TEST_CASE_TEMPLATE("recipe: every shape and part against the reference, forward and backward", S, float, double) {
    for (const index_t experts : {1, 2, 5, 8, 16, 40, 64, 96, 257}) {
        for (const index_t k : {index_t{1}, index_t{2}, index_t{6}, index_t{8}, index_t{17}, experts}) {
            if (k > experts || (k == experts && experts <= 8 && experts != 5 && experts > 1)) continue;
            check_shapes<S>(experts, k);
        }
    }
    const recipe none{.k = 2, .score = score_function::sigmoid, .groups = {.count = 4, .kept = 2}};
    check<S>(none, ref::matrix(0, 8));
    covers<operation("recipe, forward"), operation("recipe, backward")>(sy::seq);
}

TEST_CASE("recipe: no tokens but padding, and many tokens in blocks") {
    const auto bias = draw_bias(24, 1);
    recipe router{.k = 3,
                  .score = score_function::sigmoid,
                  .selection_bias = numbers_of(bias),
                  .groups = {.count = 6, .kept = 3},
                  .normalize = gate_sum::add,
                  .epsilon = 1e-20,
                  .scale = 2.5,
                  .capacity = {.factor = 0.8},
                  .inference_capacity = {.factor = 0.8},
                  .balance_weight = 0.01,
                  .z_weight = 0.01};
    check<float>(router, gaussian_scores(40, 24, 1), ref::filled<std::uint8_t>(40, 0));
    for (const auto order : {sy::drop_order::position, sy::drop_order::gate}) {
        router.order = order;
        check<float>(router, clear_scores(router, score_kind::gaussian, 1500, 24, 2), draw_mask(1500, 3));
    }
}

TEST_CASE("recipe: hostile scores, masks and both orders") {
    const auto bias = draw_bias(12, 2);
    for (int kind = 0; kind < static_cast<int>(score_kind::count); ++kind) {
        for (const int forbidden : {0, 120}) {
            for (const auto function : every_function) {
                // Keys are the scores: decisions on the highest and the nearest numbers are exact.
                recipe router{.k = 4,
                              .score = function,
                              .capacity = {.factor = 0.8},
                              .order = forbidden == 0 ? sy::drop_order::position : sy::drop_order::gate};
                router.inference_capacity = router.capacity;
                auto scores = draw_scores(static_cast<score_kind>(kind), 60, 12, 5, forbidden);
                if (function == score_function::sqrt_softplus) {
                    // Below, e^s is 0 in float, and its root in double is not.
                    for (double& score : scores.values) score = score < -80 && score != never ? -80 : score;
                }
                CAPTURE(static_cast<score_kind>(kind));
                CAPTURE(static_cast<int>(function));
                CHECK(routing_mismatch<float>(router, scores, draw_mask(60, 6)) == "");
                router.normalize = gate_sum::add;
                CHECK(routing_mismatch<double>(router, scores) == "");
                if (kind != static_cast<int>(score_kind::small_integers) && kind != 0) continue;
                router.selection_bias = numbers_of(bias);
                router.groups = {.count = 3, .kept = 2, .summed = 2, .masked = group_mask::zero};
                check<float>(router, clear_scores(router, static_cast<score_kind>(kind), 60, 12, 5, forbidden),
                             draw_mask(60, 6));
            }
        }
    }
}

TEST_CASE("recipe: logit jitter and logit bias feed choices, gates and losses") {
    const auto scores = draw_scores(score_kind::gaussian, 200, 12, 4, 20);
    const auto linear = draw_bias(12, 5);
    const auto bias = draw_bias(12, 6);
    for (const auto function : every_function) {
        recipe router{.k = 3,
                      .logit_bias = numbers_of(linear),
                      .score = function,
                      .selection_bias = numbers_of(bias),
                      .groups = {.count = 4, .kept = 2},
                      .normalize = gate_sum::add,
                      .capacity = {.number = 150},
                      .logit_jitter = 0.3f,
                      .balance_weight = 0.1,
                      .z_weight = 0.1};
        CHECK(routing_mismatch<double>(router, scores) == "");
        CHECK(backward_mismatch<double>(router, scores, gaussian_scores(200, 3, 3)) == "");
        // A bias of the logits is what was added to the scores.
        router.logit_jitter = 0;
        router.capacity.number = 1000;
        auto added = scores;
        for (index_t t = 0; t < 200; ++t) {
            for (index_t e = 0; e < 12; ++e) added(t, e) += static_cast<double>(linear[static_cast<std::size_t>(e)]);
        }
        recipe plain = router;
        plain.logit_bias = {};
        const auto one = routed<double>(router, scores);
        const auto other = routed<double>(plain, added);
        CHECK(experts_of(one.view()) == experts_of(other.view()));
        CHECK(difference(gates_of(one.view()), gates_of(other.view())) == 0);
        CHECK(one.load_balancing_loss() == other.load_balancing_loss());
        CHECK(one.z_loss() == other.z_loss());
        const auto d_gates = gaussian_scores(200, 3, 9);
        CHECK(difference(routed_backward(router, one, scores, d_gates),
                         routed_backward(plain, other, added, d_gates)) == 0);
    }
}

TEST_CASE("recipe: layouts, storage and policies") {
    const auto bias = draw_bias(40, 7);
    const recipe router{.k = 6,
                        .score = score_function::sqrt_softplus,
                        .selection_bias = numbers_of(bias),
                        .groups = {.count = 8, .kept = 4},
                        .normalize = gate_sum::add,
                        .epsilon = 1e-20,
                        .balance_weight = 0.01};
    const auto scores = rounded_to<Eigen::half>(clear_scores(router, score_kind::gaussian, 133, 40, 8));
    for (index_t t = 0; t < scores.rows; ++t) {
        ref::matrix row(1, 40);
        for (index_t e = 0; e < 40; ++e) row(0, e) = scores(t, e);
        REQUIRE(!is_near_tie(reference_of(router, true), row));  // after rounding, too
    }
    const auto d_gates = rounded_to<Eigen::half>(gaussian_scores(133, 6, 9));
    const auto want = routed<float>(router, scores);
    const auto d_want = routed_backward(router, want, scores, d_gates);
    CHECK(mismatch(want, reference_plan<float>(router, scores)) == "");
    sy::workspace scratch;
    const auto agrees = [&](const auto& policy, auto layout, auto d_scores, double allowed) {
        sy::plan<float> plan;
        sy::route_scores(policy, router, layout.view(), training_with(), plan, scratch);
        CHECK(experts_of(plan.view()) == experts_of(want.view()));
        CHECK(slots_of(plan.view()) == slots_of(want.view()));
        CHECK(difference(gates_of(plan.view()), gates_of(want.view())) == 0);
        CHECK(plan.load_balancing_loss() == want.load_balancing_loss());
        sy::route_scores_backward(policy, router, plan, layout.view(), stored<float>(d_gates), d_scores.view(),
                                  scratch);
        CHECK(table_mismatch(table_of_view(d_scores.view()), d_want, allowed, 1) == "");
    };
    const ref::matrix empty(133, 40);
    agrees(sy::seq, column_major::layout<float>(scores), column_major::layout<float>(empty), 0);
    agrees(sy::seq, row_major::layout<Eigen::half>(scores), row_major::layout<Eigen::half>(empty), 0x1p-10);
    agrees(sy::seq, column_major::layout<Eigen::half>(scores), column_major::layout<Eigen::half>(empty), 0x1p-10);
    for_each_policy([&](const auto& policy) {
        agrees(policy, row_major::layout<float>(scores), row_major::layout<float>(empty), 0);
    });
}

TEST_CASE("recipe: with top-k's settings it is top-k, bit by bit") {
    const auto scores = draw_scores(score_kind::gaussian, 300, 60, 3, 20);
    const auto d_gates = gaussian_scores(300, 4, 4);
    for (const bool normalize : {false, true}) {
        const sy::top_k_router other{
            .k = 4, .renormalize = normalize, .capacity = {.factor = 0.9}, .balance_weight = 0.01, .z_weight = 0.01};
        const recipe router{.k = 4,
                            .normalize = normalize ? gate_sum::add : gate_sum::none,
                            .capacity = other.capacity,
                            .balance_weight = 0.01,
                            .z_weight = 0.01};
        const auto one = routed<float>(router, scores);
        const auto two = routed<float>(other, scores);
        CHECK(experts_of(one.view()) == experts_of(two.view()));
        CHECK(slots_of(one.view()) == slots_of(two.view()));
        CHECK(difference(gates_of(one.view()), gates_of(two.view())) == 0);
        CHECK(one.load_balancing_loss() == two.load_balancing_loss());
        CHECK(difference(routed_backward(router, one, scores, d_gates), routed_backward(other, two, scores, d_gates)) ==
              0);
    }
}

TEST_CASE("recipe: gradients by central differences, every function and rule of gates") {
    const auto bias = draw_bias(8, 11);
    const auto linear = draw_bias(8, 12);
    const auto own_scale = draw_bias(8, 15, 1);
    auto scores = gaussian(12, 8, 13);
    scores(3, 1) = scores(3, 2) = never;
    const auto weights = gaussian(12, 3, 14);
    const ref::mask_list mask{1, 1, 0, 1, 1, 1, 1, 0, 1, 1, 1, 1};
    for (const auto function : every_function) {
        for (int rule = 0; rule < 18; ++rule) {
            recipe router{.k = 3,
                          .logit_bias = numbers_of(linear),
                          .score = function,
                          .selection_bias = numbers_of(bias),
                          .groups = {.count = 4, .kept = 3},
                          .capacity = {.number = 4}};
            set_rule(router, rule);
            if (rule % 2 == 1) {
                router.logit_multiplier = 1.25;
                router.softcap = 3;
                router.expert_scale = numbers_of(own_scale);
            }
            if (rule >= 9) {
                router.balance_weight = 0.7;
                router.z_weight = 0.3;
                router.logit_jitter = 0.2f;
            }
            const auto plan = routed<double>(router, scores, training_with(mask));
            const auto found = routed_backward(router, plan, scores, weights);
            const auto total = [&](const sy::plan<double>& of) {
                return inner(gates_of(of.view()), weights) + of.load_balancing_loss() + of.z_loss();
            };
            const auto numeric = numeric_gradient(
                [&](const ref::matrix& at) {
                    const auto there = routed<double>(router, at, training_with(mask));
                    REQUIRE(experts_of(there.view()) == experts_of(plan.view()));
                    return total(there);
                },
                scores);
            CAPTURE(static_cast<int>(function));
            CAPTURE(rule);
            CHECK(difference(found, numeric) < 1e-8);
            // The gradient of the logits' bias is the sum over the tokens, less the multiplier.
            if (rule != 3) continue;
            for (index_t e = 0; e < 8; ++e) {
                double sum = 0;
                for (index_t t = 0; t < 12; ++t) sum += found(t, e) / router.logit_multiplier;
                auto moved = linear;
                recipe there = router;
                there.logit_bias = numbers_of(moved);
                float& number = moved[static_cast<std::size_t>(e)];
                const float middle = number;
                number = middle + 0x1p-10f;
                const double step_up = static_cast<double>(number) - static_cast<double>(middle);
                const double above = total(routed<double>(there, scores, training_with(mask)));
                number = middle - 0x1p-10f;
                const double step = step_up + static_cast<double>(middle) - static_cast<double>(number);
                const double below = total(routed<double>(there, scores, training_with(mask)));
                CHECK(sum == doctest::Approx((above - below) / step).epsilon(1e-4));
            }
        }
    }
}

TEST_CASE("recipe: the experts, weights and gradients of the models' own code") {
    for (const recorded_case& model : recorded_models()) {
        CAPTURE(model.name);
        const auto& from = model.router;
        const numbers bias(from.selection_bias.begin(), from.selection_bias.end());
        const numbers own_scale(from.expert_scale.begin(), from.expert_scale.end());
        const recipe router{.k = from.k,
                            .logit_multiplier = from.logit_multiplier,
                            .softcap = from.softcap,
                            .score = static_cast<score_function>(from.score),
                            .key = static_cast<key_source>(from.key),
                            .selection_bias = bias.empty() ? sy::expert_numbers<>{} : numbers_of(bias),
                            .groups = {.count = from.groups.count,
                                       .kept = from.groups.kept,
                                       .summed = from.groups.summed,
                                       .masked = static_cast<group_mask>(from.groups.masked)},
                            .normalize = static_cast<gate_sum>(from.normalize),
                            .norm_power = from.norm_power,
                            .epsilon = from.epsilon,
                            .scale = from.scale,
                            .expert_scale = own_scale.empty() ? sy::expert_numbers<>{} : numbers_of(own_scale),
                            .rowless = {.identity = from.identity_experts}};
        const auto logits = recorded_table<double>(model.answers.logits, model.experts);
        const auto weights = recorded_by_expert(model, model.answers.weights);
        const auto d_weights = recorded_by_expert(model, model.answers.d_weights);
        const auto choices = recorded_table<index_t>(model.answers.choices, from.k);
        const auto plan = routed<float>(router, logits);
        ref::matrix d_gates(logits.rows, from.k);
        for (index_t t = 0; t < logits.rows; ++t) {
            ref::list<index_t> made;
            ref::list<index_t> recorded;
            for (index_t c = 0; c < from.k; ++c) {
                const index_t e = plan.expert()(t, c);
                if (plan.slot()(t, c) >= 0 || plan.view().adds_token(t * from.k + c)) made.push_back(e);
                if (logits(t, choices(t, c)) != never) recorded.push_back(choices(t, c));
                CHECK(is_close(static_cast<double>(plan.gate()(t, c)), weights(t, e), 1e-6));
                d_gates(t, c) = d_weights(t, e);
            }
            std::sort(made.begin(), made.end());
            CHECK(made == recorded);
        }
        CHECK(table_mismatch(routed_backward(router, plan, logits, d_gates),
                             recorded_table<double>(model.answers.d_logits, model.experts), 1e-6, 1) == "");
    }
}

TEST_CASE("recipe: forbidden experts follow in index order, those of other groups never do") {
    const numbers bias{0, 0, 0, 9, 0, 0};
    const ref::matrix scores{{5, never, 1, never, -2, -1}, {never, never, never, never, never, never}};
    recipe router{.k = 4,
                  .score = score_function::sigmoid,
                  .selection_bias = numbers_of(bias),
                  .groups = {.count = 3, .kept = 2, .summed = 1},
                  .capacity = {.number = 9},
                  .inference_capacity = {.number = 9}};
    const auto plan = routed<float>(router, scores);
    // Groups {0, 1} and {2, 3}: the bias of 9 is of an expert that is forbidden.
    CHECK(experts_of(plan.view()) == ref::integers{{0, 2, 1, 3}, {0, 1, 2, 3}});
    CHECK(slots_of(plan.view()) == ref::integers{{0, 0, -1, -1}, {-1, -1, -1, -1}});
    CHECK(plan.gate()(0, 2) == 0);
    router.groups.masked = group_mask::zero;
    check<float>(router, scores);
    CHECK(experts_of(routed<float>(router, scores).view()) == ref::integers{{0, 2, 4, 5}, {0, 1, 2, 3}});
    router.capacity = {};
    CHECK(sentence_of([&] { routed<float>(router, scores); }) ==
          "token 1 has every expert forbidden (-infinity) and may not be dropped");
    // Few experts allowed, by tiles (k <= 16) and one by one.
    for (const index_t k : {5, 17}) {
        const auto biases = draw_bias(48, 3);
        recipe some{.k = k,
                    .score = score_function::sqrt_softplus,
                    .selection_bias = numbers_of(biases),
                    .groups = {.count = 8, .kept = 4},
                    .normalize = gate_sum::add,
                    .capacity = {.number = 70}};
        some.inference_capacity = some.capacity;
        for (const auto masked : {group_mask::forbidden, group_mask::zero}) {
            some.groups.masked = masked;
            check<float>(some, clear_scores(some, score_kind::gaussian, 70, 48, 4, 210));
        }
    }
}

TEST_CASE("recipe: bad scores") {
    const auto bias = draw_bias(20, 1);
    for (const auto function : every_function) {
        for (const bool biased : {false, true}) {
            recipe router{.k = 3, .score = function, .capacity = {.factor = 1}};
            if (biased) {
                router.selection_bias = numbers_of(bias);
                router.groups = {.count = 5, .kept = 3};
            }
            auto scores = clear_scores(router, score_kind::gaussian, 40, 20, 3);
            scores(11, 17) = NAN;
            CHECK(sentence_of([&] { routed<float>(router, scores); }) ==
                  "scores[11, 17] is NaN: a score must be finite, or -infinity to forbid an expert");
            CHECK(sentence_of([&] { routed<float>(router, scores, sy::inference{}); }).find("scores[11, 17]") == 0);
            auto read = scores;
            read(11, 17) = never;
            router.bad = sy::bad_scores::forbid_nan;
            const auto plan = routed<double>(router, scores);
            const auto want = ref::route_scores(reference_of(router, true), read);
            CHECK(mismatch(plan, want) == "");
            const auto weights = gaussian_scores(40, 3, 4);
            CHECK(table_mismatch(routed_backward(router, plan, scores, weights),
                                 ref::route_scores_backward(reference_of(router, true), want, read, weights), 1e-14,
                                 1) == "");
            scores(5, 2) = INFINITY;
            CHECK(sentence_of([&] { routed<float>(router, scores); }).find("scores[5, 2] is +infinity") == 0);
            for (index_t e = 0; e < 20; ++e) scores(2, e) = never;
            router.capacity = {};
            CHECK(sentence_of([&] { routed<float>(router, scores); }) ==
                  "token 2 has every expert forbidden (-infinity) and may not be dropped");
            // Padding may hold anything.
            auto mask = ref::filled<std::uint8_t>(40, 1);
            mask[2] = mask[5] = 0;
            CHECK(sentence_of([&] { routed<float>(router, scores, training_with(mask)); }) == "");
        }
    }
}

TEST_CASE_TEMPLATE("recipe: unchecked scores and biases out of range still give k different experts", S, float,
                   double) {
    const double bad[] = {NAN, INFINITY, never, 1.0, -3e38};
    for (const index_t experts : {1, 4, 8, 24, 40}) {
        std::mt19937 random(static_cast<unsigned>(experts));
        ref::matrix scores(50, experts);
        for (double& score : scores.values) score = bad[random() % 5];
        const auto good = gaussian_scores(50, experts, 3);
        const auto bias = draw_bias(experts, 2);
        numbers broken(static_cast<std::size_t>(experts), std::numeric_limits<float>::quiet_NaN());
        numbers lowest(static_cast<std::size_t>(experts), -std::numeric_limits<float>::infinity());
        for (std::size_t e = 1; e < broken.size(); e += 3) broken[e] = lowest[e] = 0.5f;
        for (const auto function : every_function) {
            for (const auto source : {key_source::value, key_source::score}) {
                for (const index_t k : {index_t{1}, (experts + 1) / 2}) {
                    for (const int grouped : {0, 1, 2}) {
                        recipe router{.k = k, .score = function, .key = source, .capacity = {.number = 7}};
                        router.groups = groups_for(experts, k, grouped);
                        router.bad = sy::bad_scores::unchecked;
                        router.selection_bias = numbers_of(bias);
                        CHECK(has_different_experts(routed<S>(router, scores)));
                        for (const auto& wrong : {broken, lowest}) {
                            router.selection_bias = numbers_of(wrong);
                            const auto plan = routed<S>(router, good);
                            CHECK(has_different_experts(plan));
                            CHECK(sentence_of([&] { routed_backward(router, plan, good, ref::matrix(50, k)); }) == "");
                        }
                    }
                }
            }
        }
    }
}

TEST_CASE("recipe: keys out of the range of float forbid nobody") {
    constexpr float huge = std::numeric_limits<float>::max();
    const numbers bias{-huge, -huge, huge, 0, 0, 0};
    ref::matrix scores(20, 6);
    for (double& score : scores.values) score = -static_cast<double>(huge);
    const recipe router{.k = 6, .key = key_source::score, .selection_bias = numbers_of(bias)};
    const auto plan = routed<float>(router, scores);
    CHECK(has_different_experts(plan));
    CHECK(plan.kept() == 20 * 6);
    CHECK(plan.expert()(0, 0) == 2);
}

// What goes wrong elsewhere (docs/router/recipe.md).

TEST_CASE("recipe: the bias steers choices and is in no gate") {
    const numbers bias{0, 0, 5};
    const recipe router{.k = 2, .score = score_function::sigmoid, .selection_bias = numbers_of(bias), .scale = 2.5};
    const auto plan = routed<double>(router, {{1, 2, -3}});
    CHECK(experts_of(plan.view()) == ref::integers{{2, 1}});
    CHECK(gate(plan, 0, 0) == doctest::Approx(2.5 * sigmoid_of(-3)).epsilon(1e-14));
    CHECK(gate(plan, 0, 1) == doctest::Approx(2.5 * sigmoid_of(2)).epsilon(1e-14));
}

TEST_CASE("recipe: masks of groups differ where keys are negative") {
    const numbers bias{-2, -2, -2, -2};
    recipe router{.k = 2,
                  .score = score_function::sigmoid,
                  .selection_bias = numbers_of(bias),
                  .groups = {.count = 2, .kept = 1, .summed = 1}};
    CHECK(experts_of(routed<double>(router, {{0, 1, 5, 2}}).view()) == ref::integers{{2, 3}});
    router.groups.masked = group_mask::zero;
    CHECK(experts_of(routed<double>(router, {{0, 1, 5, 2}}).view()) == ref::integers{{0, 1}});
    // More than the kept group has.
    router.k = 3;
    CHECK(experts_of(routed<double>(router, {{0, 1, 5, 2}}).view()) == ref::integers{{0, 1, 2}});
    const auto biases = draw_bias(48, 3);
    for (const index_t k : {7, 16, 30, 48}) {
        recipe some{.k = k,
                    .score = score_function::sigmoid,
                    .selection_bias = numbers_of(biases),
                    .groups = {.count = 8, .kept = 1, .masked = group_mask::zero},
                    .normalize = gate_sum::add,
                    .capacity = {.number = 70}};
        some.inference_capacity = some.capacity;
        check<float>(some, clear_scores(some, score_kind::gaussian, 70, 48, 4, 210));
    }
}

TEST_CASE("recipe: forbidden experts are not counted in their group, and a group of them alone comes last") {
    const recipe router{.k = 1,
                        .score = score_function::sigmoid,
                        .groups = {.count = 3, .kept = 1, .summed = 2},
                        .capacity = {.number = 9}};
    // The sum of the first group is the key of its one allowed expert.
    CHECK(experts_of(routed<double>(router, {{3, never, -2, -2, never, never}}).view()) == ref::integers{{0}});
    CHECK(experts_of(routed<double>(router, {{never, never, never, never, never, -40}}).view()) == ref::integers{{5}});
}

TEST_CASE("recipe: saturated values tie, scores do not") {
    recipe router{.k = 2, .score = score_function::sigmoid};
    const ref::matrix scores{{18, 25, 30}};
    CHECK(experts_of(routed<float>(router, scores).view()) == ref::integers{{2, 1}});
    const numbers bias{0, 0, 0};
    router.selection_bias = numbers_of(bias);
    CHECK(experts_of(routed<float>(router, scores).view()) == ref::integers{{0, 1}});
    // The root does not saturate.
    router.score = score_function::sqrt_softplus;
    CHECK(experts_of(routed<float>(router, scores).view()) == ref::integers{{2, 1}});
}

TEST_CASE("recipe: the order of multiplier, bias and softcap, and what none of them may change") {
    const numbers linear{1, -1, 0, 0};
    const recipe router{.k = 2,
                        .logit_multiplier = 0.5,
                        .logit_bias = numbers_of(linear),
                        .softcap = 2,
                        .score = score_function::sigmoid,
                        .capacity = {.number = 9}};
    const ref::matrix scores{{2, 6, 3, never}};  // 2, 2, 1.5 before the cap
    const auto plan = routed<double>(router, scores);
    CHECK(experts_of(plan.view()) == ref::integers{{0, 1}});
    CHECK(gate(plan, 0, 0) == doctest::Approx(sigmoid_of(2 * std::tanh(1))).epsilon(1e-14));
    // -infinity forbids under a cap, too; what is refused without one is refused with it.
    CHECK(experts_of(routed<double>(router, {{never, never, -1e30, never}}).view())(0, 0) == 2);
    CHECK(sentence_of([&] { routed<double>(router, {{1, 2, INFINITY, 0}}); }).find("scores[0, 2] is +infinity") == 0);
    CHECK(sentence_of([&] { routed<double>(router, {{1, 2, NAN, 0}}); }).find("scores[0, 2] is NaN") == 0);
    // A token whose experts all saturate has no gradient, and no NaN.
    const ref::matrix wide{{1e30, -1e30, 1e30, 1e30}};
    CHECK(difference(routed_backward(router, routed<double>(router, wide), wide, {{1, 2}}), ref::matrix(1, 4)) == 0);
}

TEST_CASE("softcap: tanh to a few units in the last place, in both types, on both sides of its seam") {
    const auto worst = []<class S>(S) {
        double found = 0;
        for (int i = -4000; i <= 4000; ++i) {
            const S x = static_cast<S>(i) * S(1.0 / 256) * (i % 3 == 0 ? S(1e-4) : S(1));
            const double want = 3 * std::tanh(static_cast<double>(x / S(3)));
            const double got = static_cast<double>(sy::softcap(sy::pack<S, 1>{x}, S(3)).v);
            const double unit = std::abs(want) * static_cast<double>(std::numeric_limits<S>::epsilon());
            found = std::max(found, want == got ? 0 : std::abs(got - want) / unit);
        }
        return found;
    };
    CHECK(worst(1.0f) < 5);
    CHECK(worst(1.0) < 5);
}

TEST_CASE("recipe: the scale of an expert is in its gates alone, a p-norm of 0 gives 0") {
    const numbers own{1, -2, 0.5f};
    recipe router{
        .k = 2, .score = score_function::sigmoid, .normalize = gate_sum::add, .expert_scale = numbers_of(own)};
    const auto plan = routed<double>(router, {{0, 0, -3}});
    CHECK(experts_of(plan.view()) == ref::integers{{0, 1}});
    CHECK(difference(gates_of(plan.view()), {{0.5, -1}}) < 1e-15);
    router = {.k = 2, .score = score_function::sigmoid, .normalize = gate_sum::norm, .norm_power = 2, .scale = 10};
    CHECK(difference(gates_of(routed<double>(router, {{0, 0, -3}}).view()), {{std::sqrt(50), std::sqrt(50)}}) < 1e-14);
    const ref::matrix low{{-900, -900, -901}};
    const auto none = routed<double>(router, low);
    CHECK(difference(gates_of(none.view()), ref::matrix(1, 2)) == 0);
    CHECK(difference(routed_backward(router, none, low, {{1, 2}}), ref::matrix(1, 3)) == 0);
    // Small values are not lost in their powers.
    CHECK(difference(gates_of(routed<float>(router, {{-50, -50, -60}}).view()), {{std::sqrt(50), std::sqrt(50)}}) <
          1e-5);
    // Drops by gate compare finished gates: the second token's first choice is worth more.
    const numbers steps{4, 1, 1};
    router = {.k = 1,
              .score = score_function::sigmoid,
              .expert_scale = numbers_of(steps),
              .capacity = {.number = 1},
              .order = sy::drop_order::gate};
    const auto dropped = routed<double>(router, {{0, -1, -1}, {0.5, -1, -1}, {-1, 0.7, -1}});
    CHECK(slots_of(dropped.view()) == ref::integers{{-1}, {0}, {0}});
}

TEST_CASE("recipe: a sum of 0, a small sum, dropped choices and k = 1") {
    recipe router{.k = 2, .score = score_function::sigmoid, .normalize = gate_sum::add, .scale = 2};
    const ref::matrix low{{-900, -900, -901}};
    auto plan = routed<double>(router, low);
    CHECK(gate(plan, 0, 0) == 0);
    CHECK(difference(routed_backward(router, plan, low, {{1, 2}}), ref::matrix(1, 3)) == 0);
    router.epsilon = 1e-20;
    plan = routed<double>(router, {{-50, -50, -60}});  // far below the epsilon
    CHECK(gate(plan, 0, 0) == doctest::Approx(2 * std::exp(-50.0) / (2 * std::exp(-50.0) + 1e-20)).epsilon(1e-12));
    router = {.k = 2, .score = score_function::sigmoid, .normalize = gate_sum::clamp, .epsilon = 0.5};
    plan = routed<double>(router, {{-3, -3, -4}});
    CHECK(gate(plan, 0, 0) == doctest::Approx(2 * sigmoid_of(-3)).epsilon(1e-14));
    // A dropped choice still counts in the sum.
    router = {.k = 2, .normalize = gate_sum::add, .capacity = {.number = 1}};
    plan = routed<double>(router, {{1, 1, never}, {1, 1, never}});
    CHECK(difference(gates_of(plan.view()), {{0.5, 0.5}, {0, 0}}) < 1e-15);
    // The scale is there for k = 1, normalised or not.
    router = {.score = score_function::sigmoid, .scale = 3};
    CHECK(gate(routed<double>(router, {{0, -1}}), 0, 0) == 1.5);
    router.normalize = gate_sum::add;
    CHECK(gate(routed<double>(router, {{0, -1}}, sy::inference{}), 0, 0) == 3);
    // A negative scale is one.
    router = {.k = 2, .normalize = gate_sum::add, .scale = -2};
    CHECK(gate(routed<double>(router, {{0, 0}}), 0, 1) == -1);
}

TEST_CASE_TEMPLATE("recipe: gates that are a softmax over the chosen do not feel how far these lie below the others", S,
                   float, double) {
    // Half of the experts are lowered, and a bias has them chosen all the same. Keys are exact.
    const auto bias_of = [](const auto& is_low) {
        numbers bias;
        for (index_t e = 0; e < 12; ++e) bias.push_back(is_low(e) ? 2048 : 0);
        return bias;
    };
    const auto upper = [](index_t e) { return e >= 6; };
    const auto scattered = [](index_t e) { return e % 4 >= 2; };
    const numbers upper_bias = bias_of(upper);
    const numbers scattered_bias = bias_of(scattered);
    const recipe plain{.k = 3,
                       .key = key_source::score,
                       .selection_bias = numbers_of(scattered_bias),
                       .normalize = gate_sum::add,
                       .scale = 2};
    recipe grouped = plain;
    grouped.selection_bias = numbers_of(upper_bias);
    grouped.groups = {.count = 2, .kept = 1, .summed = 2};
    recipe each = plain;
    each.groups = {.count = 3, .one_each = true};
    recipe clamped = plain;
    clamped.normalize = gate_sum::clamp;
    clamped.capacity = clamped.inference_capacity = {.factor = 0.8};
    recipe with_losses = plain;
    with_losses.balance_weight = 0.02;
    with_losses.z_weight = 0.01;
    const auto d_gates = gaussian_scores(70, 3, 9);
    for (recipe router : {plain, grouped, each, clamped, with_losses}) {
        if (router.groups.one_each) router.balance = sy::balance_count::all;
        for (const double distance : {0, 50, 64, 80, 87, 104, 300, 600}) {
            CAPTURE(distance);
            auto scores = gaussian_scores(70, 12, 8);
            for (index_t t = 0; t < 70; ++t) {
                for (index_t e = 0; e < 12; ++e) {
                    const bool is_low = router.groups.choose() && !router.groups.one_each ? upper(e) : scattered(e);
                    scores(t, e) = std::round(scores(t, e) * 64) / 64 - (is_low && t % 5 != 0 ? distance : 0);
                }
            }
            check<S>(router, scores, draw_mask(70, 5));
            // Replayed, they have the same gates and gradients.
            const auto made = routed<S>(router, scores);
            recipe again = router;
            again.groups = {};
            again.selection_bias = {};
            again.choices = made.expert();
            const auto replayed = routed<S>(again, scores);
            CHECK(difference(gates_of(replayed.view()), gates_of(made.view())) == 0);
            CHECK(difference(routed_backward(again, replayed, scores, d_gates),
                             routed_backward(router, made, scores, d_gates)) == 0);
        }
    }
    // By hand, where nothing is left in any type.
    const ref::matrix low{{3000, 1, 0, -1}};
    const numbers away{-10000, 0, 0, 0};
    const recipe router{
        .k = 2, .key = key_source::score, .selection_bias = numbers_of(away), .normalize = gate_sum::add};
    const auto plan = routed<S>(router, low);
    const double p = sigmoid_of(1);
    CHECK(experts_of(plan.view()) == ref::integers{{1, 2}});
    CHECK(difference(gates_of(plan.view()), {{p, 1 - p}}) < 1e-6);
    CHECK(difference(routed_backward(router, plan, low, {{1, -1}}), {{0, 2 * p * (1 - p), -2 * p * (1 - p), 0}}) <
          1e-6);
}

TEST_CASE("recipe: every rule broken is named") {
    const auto scores = gaussian_scores(3, 6, 1);
    const auto sentence = [&](const recipe& router, const sy::run_mode& mode = sy::training{.stream = 0}) {
        return sentence_of([&] { routed<float>(router, scores, mode); });
    };
    const numbers five(5);
    CHECK(sentence({.k = 0}) == "k = 0 must lie in 1..E = 6");
    CHECK(sentence({.k = 7}) == "k = 7 must lie in 1..E = 6");
    CHECK(sentence({.groups = {.count = 4, .kept = 2}}) == "groups.count = 4 must lie in 1..64 and divide E = 6");
    CHECK(sentence({.groups = {.count = 3, .kept = 4}}) == "groups.kept = 4 must lie in 1..groups.count = 3");
    CHECK(sentence({.groups = {.count = 3, .kept = 2, .summed = 9}}) == "groups.summed = 9 must lie in 1..8");
    CHECK(sentence({.k = 5, .groups = {.count = 3, .kept = 2}}) ==
          "k = 5 is more than the 4 experts of the groups that a token keeps");
    CHECK(sentence({.logit_bias = numbers_of(five)}) == "logit_bias has 5 numbers for E = 6 experts");
    CHECK(sentence({.selection_bias = numbers_of(five)}) == "selection_bias has 5 numbers for E = 6 experts");
    CHECK(sentence({.expert_scale = numbers_of(five)}) == "expert_scale has 5 numbers for E = 6 experts");
    CHECK(sentence({.logit_multiplier = 0}) == "logit_multiplier = 0 must be finite and more than 0");
    CHECK(sentence({.logit_multiplier = NAN}).find("logit_multiplier = ") == 0);
    CHECK(sentence({.softcap = -1}) == "softcap = -1 must be finite and more than 0");
    CHECK(sentence({.softcap = INFINITY}) == "softcap = inf must be finite and more than 0");
    CHECK(sentence({.softcap = NAN}).find("softcap = ") == 0);
    CHECK(sentence({.norm_power = 0}) == "norm_power = 0 must be finite and more than 0");
    CHECK(sentence({.k = 2, .normalize = gate_sum::norm, .epsilon = 1e-9}) ==
          "epsilon = 1e-09 must be 0 with gate_sum::norm, which divides by the norm alone");
    CHECK(sentence({.epsilon = -1}) == "epsilon = -1 must be finite and not negative");
    CHECK(sentence({.epsilon = NAN}).find("epsilon = ") == 0);
    CHECK(sentence({.epsilon = INFINITY}) == "epsilon = inf must be finite and not negative");
    CHECK(sentence({.scale = NAN}).find("scale = ") == 0);
    CHECK(sentence({.scale = INFINITY}).find("scale = inf") == 0);
    CHECK(sentence({.balance_weight = NAN}).find("balance_weight = ") == 0);
    CHECK(sentence({.z_weight = INFINITY}).find("z_weight = inf") == 0);
    CHECK(sentence({.logit_jitter = 1.5f}) == "logit_jitter = 1.5 must lie in [0, 1)");
    CHECK(sentence({.input_jitter = 0.1f}).find("only scores were given") != std::string::npos);
    CHECK(sentence({.logit_jitter = 0.1f}, sy::training{}).find("stream") != std::string::npos);
    CHECK(sentence({.capacity = {.factor = INFINITY}}).find("capacity factor = inf") == 0);
    CHECK(sentence({.normalize = gate_sum::norm}).find("k = 1 with normalised gates") == 0);
    for (const auto sum : {gate_sum::add, gate_sum::clamp}) {
        CHECK(sentence({.normalize = sum}).find("k = 1 with normalised gates makes every gate the scale") == 0);
        CHECK(sentence({.normalize = sum}, sy::inference{}) == "");
        CHECK(sentence({.normalize = sum, .epsilon = 1e-3}) == "");
    }

    const recipe router{.k = 2, .score = score_function::sigmoid};
    const auto plan = routed<float>(router, scores);
    recipe other = router;
    other.score = score_function::sqrt_softplus;
    CHECK(sentence_of([&] { routed_backward(other, plan, scores, ref::matrix(3, 2)); }) ==
          "the plan was made by a router with other settings");
    other = router;
    other.scale = 2;
    CHECK(sentence_of([&] { routed_backward(other, plan, scores, ref::matrix(3, 2)); }) ==
          "the plan was made by a router with other settings");
    CHECK(sentence_of([&] { routed_backward(router, plan, scores, ref::matrix(3, 1)); }) ==
          "d_gates is 3 x 1; the plan has 3 tokens x 2 choices");
}

TEST_CASE("update_bias: signs, centred signs, ties and bad arguments") {
    const std::int64_t load[] = {4, 9, 5, 5, 2};  // mean 5
    numbers bias{0.5f, 0, 0.25f, 0, 0};
    sy::update_bias(sy::seq, load, 5, 0.125f, bias.data());
    CHECK((bias == numbers{0.625f, -0.125f, 0.25f, 0, 0.125f}));
    sy::update_bias(sy::seq, load, 5, 0.625f, bias.data(), sy::bias_rule::centred_sign);
    CHECK((bias == numbers{1.125f, -0.875f, 0.125f, -0.125f, 0.625f}));  // the mean of the signs is 1 / 5
    for_each_policy([&](const auto& policy) {
        numbers again(5);
        std::int64_t many[] = {std::int64_t{1} << 40, (std::int64_t{1} << 40) + 1, 0, 0, 0};
        sy::update_bias(policy, many, 5, 1.0f, again.data());
        CHECK((again == numbers{-1, -1, 1, 1, 1}));
        covers<operation("update of the bias")>(policy);
    });
    // Against the reference, the recorded step of torchtitan among them.
    ref::list<index_t> loads;
    loads.assign(std::begin(recorded::torchtitan_update_loads), std::end(recorded::torchtitan_update_loads));
    const std::vector<std::int64_t> recorded_loads(loads.begin(), loads.end());
    numbers moved(std::begin(recorded::torchtitan_update_bias), std::end(recorded::torchtitan_update_bias));
    const auto experts = static_cast<index_t>(moved.size());
    sy::update_bias(sy::seq, recorded_loads.data(), experts, 1e-3f, moved.data(), sy::bias_rule::centred_sign);
    for (std::size_t e = 0; e < moved.size(); ++e) {
        CHECK(std::abs(moved[e] - recorded::torchtitan_update_updated[e]) < 2e-8f);
    }

    CHECK(sentence_of([&] { sy::update_bias(sy::seq, load, 5, NAN, bias.data()); }).find("rate = ") == 0);
    CHECK(sentence_of([&] { sy::update_bias(sy::seq, load, 0, 1.0f, bias.data()); }) == "E = 0 experts have no biases");
    CHECK(sentence_of([&] { sy::update_bias(sy::seq, load, 5, 1.0f, nullptr); }) == "load and bias must not be null");
    CHECK(sentence_of([&] { sy::update_bias(sy::seq, sy::plan<float>{}, 1.0f, bias.data()); }) != "");
}

TEST_CASE("update_bias: a run of steps balances skewed scores") {
    constexpr index_t experts = 16;
    constexpr index_t tokens = 2000;
    numbers bias(experts);
    recipe router{.k = 2,
                  .score = score_function::sigmoid,
                  .selection_bias = numbers_of(bias),
                  .groups = {.count = 4, .kept = 2},
                  .normalize = gate_sum::add,
                  .epsilon = 1e-20,
                  .capacity = {.factor = 0.5}};  // loads are those before capacity
    const auto imbalance = [&](std::uint64_t seed) {
        auto scores = gaussian_scores(tokens, experts, seed);
        for (index_t t = 0; t < tokens; ++t) {
            for (index_t e = 0; e < experts; ++e) scores(t, e) += e < 3 ? 1.0 : 0.0;
        }
        const auto plan = routed<float>(router, scores);
        sy::update_bias(sy::seq, plan, 0.01f, bias.data());
        const auto* const load = plan.view().load_before;
        return static_cast<double>(*std::max_element(load, load + experts)) * experts / (2.0 * tokens);
    };
    const double before = imbalance(1);
    double after = 0;
    for (std::uint64_t step = 2; step < 80; ++step) after = imbalance(step);
    CHECK(before > 2);
    CHECK(after < 1.2);
    covers<operation("update of the bias")>(sy::seq);
}
