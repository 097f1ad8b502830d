// The whole model's gradient, forward and backward by hand, against central differences in double.
//
// A model of each kind of layer, two layers of it; the loss is the text's and the balance losses of the layers, as in
// training.
#include "../../examples/train_language_model/language_model.hpp"

#include <doctest/doctest.h>

#include <cmath>
#include <string>
#include <vector>

namespace {

using namespace study;

constexpr index_t tokens = 32;
constexpr index_t context = 3;

/// Bytes of a text of few kinds, so that embeddings are shared, and places in it.
struct text_and_batch {
    std::vector<std::uint8_t> text;
    batch places;

    text_and_batch() {
        for (index_t i = 0; i < tokens + context; ++i) {
            text.push_back(static_cast<std::uint8_t>(97 + sy::noise_words({.seed = 5}, i, 0).word[0] % 7));
        }
        places.text = text;
        places.length = context;
        for (index_t t = 0; t < tokens; ++t) {
            places.places.push_back(context + t);
        }
    }
};

const sy::training step{.seed = 3, .stream = 0, .step = 4};

double loss_of(language_model<double>& model, const thread_policy& threads, const batch& places) {
    const double loss = model.forward(threads, places, step);
    return loss + model.balance_loss();
}

/// The experts of every choice of all layers: a difference over a step that changes one is none of the gradient's.
std::vector<std::int32_t> choices_of(const language_model<double>& model) {
    std::vector<std::int32_t> all;
    for (index_t i = 0; i < model.layers(); ++i) {
        if (!model.layer(i).is_routed()) {
            continue;
        }
        const auto& plan = model.layer(i).plan();
        for (index_t p = 0; p < plan.tokens() * plan.choices(); ++p) {
            all.push_back(plan.view().slot[p] < 0 ? -1 : plan.view().expert[p]);
        }
    }
    return all;
}

void check(const layer_settings& layer) {
    const text_and_batch data;
    language_model<double> model({.context = context, .embedding = 4, .width = 6, .layers = {layer, layer}}, 11);
    // Away from the start, where routers are nearly undecided and biases 0.
    for (index_t i = 0; i < model.learned.values.size(); ++i) {
        const auto u = static_cast<double>(sy::uniform_at({.seed = 8}, i, 0));
        model.learned.values[i] += 0.6 * (u - 0.5);
    }
    thread_team team(2);
    const auto threads = sy::par_on(team);
    loss_of(model, threads, data.places);
    const auto choices = choices_of(model);
    model.backward(threads, data.places);
    const column<double> gradient = model.learned.gradients;

    constexpr double h = 1e-6;
    constexpr index_t stride = 3;  // every third number, so that no matrix is left out
    index_t compared = 0;
    index_t passed_over = 0;
    index_t not_zero = 0;
    for (index_t i = 0; i < gradient.size(); i += stride) {
        double& value = model.learned.values[i];
        const double before = value;
        value = before + h;
        const double above = loss_of(model, threads, data.places);
        const bool same_above = choices_of(model) == choices;
        value = before - h;
        const double below = loss_of(model, threads, data.places);
        const bool same_below = choices_of(model) == choices;
        value = before;
        if (!same_above || !same_below) {
            ++passed_over;
            continue;
        }
        ++compared;
        not_zero += gradient[i] != 0 ? 1 : 0;
        const double difference = (above - below) / (2 * h);
        CAPTURE(i);
        CHECK(std::abs(gradient[i] - difference) <= 1e-7 + 1e-5 * std::abs(difference));
    }
    CHECK(passed_over <= compared / 50);
    CHECK(compared >= model.learned.count() / stride * 97 / 100);
    CHECK(not_zero > 150);
}

layer_settings layer_with(const router_settings& router) { return {.router = router, .experts = 4, .hidden = 5}; }

}  // namespace

TEST_CASE("gradient: dense") { check({.experts = 1, .hidden = 5}); }

TEST_CASE("gradient: switch with capacity and balance loss") {
    check(layer_with(sy::switch_router{.capacity = {.factor = 1.0}, .balance_weight = 0.3}));
}

TEST_CASE("gradient: switch with input jitter") {
    check(layer_with(sy::switch_router{.capacity = {.factor = 1.25}, .input_jitter = 0.2f, .balance_weight = 0.1}));
}

TEST_CASE("gradient: top-2, normalised") {
    check(
        layer_with(sy::top_k_router{.k = 2, .renormalize = true, .capacity = {.factor = 1.0}, .balance_weight = 0.3}));
}

TEST_CASE("gradient: BASE") { check(layer_with(sy::base_router<>{})); }

TEST_CASE("gradient: routers whose choice is steered") {
    // A bias moved by loads would change choices from one difference to the next; Sinkhorn's is that of the scores.
    const sy::recipe_router<> two{.k = 2, .score = sy::score_function::sigmoid, .normalize = sy::gate_sum::add};
    check(layer_with(steered_router{two, steering::sinkhorn}));
    check(layer_with(steered_router{{.k = 1}, steering::hash}));
    check(layer_with(steered_router{two, steering::random}));
}

TEST_CASE("steered router: a bias balances from step to step, the table of bytes stays, turns are even") {
    sy::matrix<double> scores(64, 4);
    std::vector<std::uint8_t> bytes(64);
    for (index_t t = 0; t < 64; ++t) {
        bytes[static_cast<std::size_t>(t)] = static_cast<std::uint8_t>(t % 5);
        for (index_t e = 0; e < 4; ++e) {
            scores(t, e) = static_cast<double>(sy::uniform_at({.seed = 4}, t, e)) + (e == 0 ? 0.6 : 0.0);
        }
    }
    sy::workspace scratch;
    const auto spread_after = [&](const steered_router& router, int steps) {
        sy::plan<double> plan;
        for (int i = 0; i < steps; ++i) {
            sy::route_scores(sy::seq, router, scores, sy::training{.stream = 0}, plan, scratch);
        }
        return sy::statistics(plan).coefficient_of_variation;
    };
    const sy::recipe_router<> by_score{.k = 1, .key = sy::key_source::score};
    for (const auto by : {steering::signs, steering::quantiles}) {
        const steered_router router{by_score, by};
        CHECK(spread_after(router, 1) > 1);  // no bias yet
        CHECK(spread_after(router, 400) < 0.3);
    }
    CHECK(spread_after({by_score, steering::sinkhorn}, 1) < 0.3);
    CHECK(spread_after({by_score, steering::in_turn}, 1) == 0);

    steered_router by_bytes{{.k = 1}, steering::hash};
    by_bytes.see(bytes);
    sy::plan<double> plan;
    sy::route_scores(sy::seq, by_bytes, scores, sy::inference{}, plan, scratch);
    for (index_t t = 5; t < 64; ++t) CHECK(plan.expert()(t, 0) == plan.expert()(t - 5, 0));
    by_bytes.see({1, 2});
    CHECK_THROWS_AS(sy::route_scores(sy::seq, by_bytes, scores, sy::inference{}, plan, scratch), sy::error);
}

TEST_CASE("gradient: GShard, both choices kept, with capacity and balance loss") {
    check(layer_with(
        sy::gshard_router{.second = sy::second_choice::all, .capacity = {.factor = 1.0}, .balance_weight = 0.3}));
}
