// The reference beside the code of published models: the same experts, weights and gradients to float32's precision.
#include "numeric.hpp"

#include <switchyard/reference/recipe.hpp>

#include <support/recorded_models.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <iterator>
#include <string_view>

using namespace switchyard_test;
using indices = ref::list<sy::index_t>;

namespace {

/// The largest number of a table.
double largest(const ref::matrix& numbers) {
    double found = 0;
    for (const double number : numbers.values) found = std::max(found, std::abs(number));
    return found;
}

/// d_weights in the order of the plan's choices; 0 at a choice the model did not make.
ref::matrix d_gates_of(const recorded_case& model, const ref::plan& made) {
    const ref::matrix by_expert = recorded_by_expert(model, model.answers.d_weights);
    ref::matrix d_gates(made.tokens(), made.choices());
    for (sy::index_t t = 0; t < made.tokens(); ++t) {
        for (sy::index_t c = 0; c < made.choices(); ++c) d_gates(t, c) = by_expert(t, made.experts(t, c));
    }
    return d_gates;
}

/// The gates as [T, E].
ref::matrix gates_by_expert(const ref::plan& made) {
    ref::matrix gates(made.tokens(), made.experts_count + made.identity_experts);
    for (sy::index_t t = 0; t < made.tokens(); ++t) {
        for (sy::index_t c = 0; c < made.choices(); ++c) gates(t, made.experts(t, c)) += made.gates(t, c);
    }
    return gates;
}

/// The choices of a token that are kept, or need no row, by rising index.
indices kept_choices(const ref::plan& made, sy::index_t t) {
    indices kept;
    for (sy::index_t c = 0; c < made.choices(); ++c) {
        if (made.keeps(t, c) || made.is_rowless(t, c)) kept.push_back(made.experts(t, c));
    }
    std::sort(kept.begin(), kept.end());
    return kept;
}

/// The model's choices of a token, without forbidden ones.
indices recorded_choices(const recorded_case& model, const ref::matrix& logits, sy::index_t t) {
    const auto choices = recorded_table<sy::index_t>(model.answers.choices, model.router.k);
    indices allowed;
    for (sy::index_t c = 0; c < model.router.k; ++c) {
        if (logits(t, choices(t, c)) != -ref::infinity) allowed.push_back(choices(t, c));
    }
    return allowed;
}

}  // namespace

TEST_CASE("recorded: the models' own experts, weights and gradients") {
    for (const recorded_case& model : recorded_models()) {
        CAPTURE(model.name);
        const auto logits = recorded_table<double>(model.answers.logits, model.experts);
        REQUIRE(logits.rows >= 4);
        const auto made = ref::route_scores(model.router, logits);
        for (sy::index_t t = 0; t < logits.rows; ++t) {
            CHECK(kept_choices(made, t) == recorded_choices(model, logits, t));
        }
        const auto weights = recorded_by_expert(model, model.answers.weights);
        CHECK(difference(gates_by_expert(made), weights) < 4e-7 * std::max(1.0, largest(weights)));

        const auto recorded = recorded_table<double>(model.answers.d_logits, model.experts);
        const auto d_logits = ref::route_scores_backward(model.router, made, logits, d_gates_of(model, made));
        CHECK(difference(d_logits, recorded) < 4e-7 * std::max(1.0, largest(recorded)));
        CHECK(largest(recorded) > 0.01);
    }
}

TEST_CASE("recorded: gpt-oss's linear bias as logit_bias") {
    for (const recorded_case& model : recorded_models()) {
        if (std::string_view(model.name) != "gpt-oss") continue;
        auto router = model.router;
        router.logit_bias = recorded_list(recorded::gpt_oss_default_gate_bias);
        auto scores = recorded_table<double>(model.answers.logits, model.experts);
        for (sy::index_t t = 0; t < scores.rows; ++t) {
            for (sy::index_t e = 0; e < scores.columns; ++e) scores(t, e) -= router.logit_bias[e];
        }
        const auto made = ref::route_scores(router, scores);
        CHECK(difference(gates_by_expert(made), recorded_by_expert(model, model.answers.weights)) < 4e-7);
        const auto d_scores = ref::route_scores_backward(router, made, scores, d_gates_of(model, made));
        CHECK(difference(d_scores, recorded_table<double>(model.answers.d_logits, model.experts)) < 4e-7);
    }
}

TEST_CASE("recorded: a zero mask disagrees with DeepSeek-V3's code where keys are negative") {
    for (const recorded_case& model : recorded_models()) {
        if (std::string_view(model.name) != "DeepSeek-V3, negative keys") continue;
        auto router = model.router;
        router.groups.masked = ref::group_mask::zero;
        const auto logits = recorded_table<double>(model.answers.logits, model.experts);
        const auto made = ref::route_scores(router, logits);
        sy::index_t equal = 0;
        for (sy::index_t t = 0; t < logits.rows; ++t) {
            equal += kept_choices(made, t) == recorded_choices(model, logits, t) ? 1 : 0;
        }
        CHECK(equal == 0);
    }
}

TEST_CASE("recorded: transformers' balance loss of Mixtral is k times that of all choices") {
    const auto logits = recorded_table<double>(std::span<const float>(recorded::mixtral_default_logits), 8);
    const ref::recipe_router router{
        .k = 2, .normalize = ref::gate_sum::add, .balance_weight = 2, .count = ref::balance_count::all};
    const auto made = ref::route_scores(router, logits);
    CHECK(made.load_balancing_loss == doctest::Approx(recorded::mixtral_default_balance[0]).epsilon(4e-7));
    const auto recorded = recorded_table<double>(std::span<const float>(recorded::mixtral_default_d_balance), 8);
    const auto d_logits = ref::route_scores_backward(router, made, logits, ref::matrix(logits.rows, 2));
    CHECK(difference(d_logits, recorded) < 4e-8);
    CHECK(largest(recorded) > 1e-3);
}

TEST_CASE("recorded: torchtitan's centred bias update") {
    const auto bias = recorded_list(recorded::torchtitan_update_bias);
    indices loads;
    loads.assign(std::begin(recorded::torchtitan_update_loads), std::end(recorded::torchtitan_update_loads));
    const auto updated = ref::updated_bias(bias, loads, 1e-3, ref::bias_rule::centred_sign);
    const auto recorded = recorded_list(recorded::torchtitan_update_updated);
    for (sy::index_t e = 0; e < bias.length(); ++e) CHECK(std::abs(updated[e] - recorded[e]) < 2e-8);
}
