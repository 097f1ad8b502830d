// The body of `train`, for the files that instantiate it.
#pragma once

#include "adam.hpp"
#include "language_model.hpp"
#include "train.hpp"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace study {

/// The routers whose choice a bias or a table steers, with capacities like all others. Those that balance by a bias
/// have no balance loss, and neither have those whose choice no loss can move.
inline steered_router steered_router_of(contender kind, index_t experts, const sy::capacity_rule& capacity,
                                        const sy::capacity_rule& inference_capacity) {
    sy::recipe_router<> recipe{.capacity = capacity, .inference_capacity = inference_capacity};
    switch (kind) {
        case contender::deepseek_v3:
        case contender::deepseek_v4:
            recipe.k = 2;
            recipe.score = sy::score_function::sigmoid;
            if (kind == contender::deepseek_v4) {
                recipe.score = sy::score_function::sqrt_softplus;
            } else if (experts % 4 == 0) {
                recipe.groups = {.count = 4, .kept = 2, .summed = std::min<index_t>(2, experts / 4)};
            }
            recipe.normalize = sy::gate_sum::add;
            recipe.epsilon = 1e-20;
            return {recipe, steering::signs};
        case contender::quantile:
            recipe.key = sy::key_source::score;
            return {recipe, steering::quantiles};
        case contender::sinkhorn:
            recipe.score = sy::score_function::sigmoid;
            recipe.key = sy::key_source::score;
            return {recipe, steering::sinkhorn};
        case contender::hash:
            return {recipe, steering::hash};
        case contender::random:
            return {recipe, steering::random};
        default:
            return {recipe, steering::in_turn};
    }
}

/// The routers that are compared, and how wide their experts are: every kind does the same work per token.
inline layer_settings layer_of(const options& asked, const run_settings& run) {
    layer_settings layer{.experts = asked.experts, .hidden = asked.hidden};
    const sy::capacity_rule capacity{.factor = asked.capacity_factor};
    const sy::capacity_rule inference_capacity{.factor = 2.0};  // the paper's, for every kind
    switch (run.kind) {
        case contender::dense:
            layer.experts = 1;
            return layer;
        case contender::switch_unbalanced:
            layer.router =
                sy::switch_router{.capacity = capacity, .inference_capacity = inference_capacity, .balance_weight = 0};
            break;
        // [switch]
        case contender::switch_balanced:
            layer.router = sy::switch_router{
                .capacity = capacity, .inference_capacity = inference_capacity, .balance_weight = asked.balance_weight};
            break;
        case contender::switch_jitter:
            layer.router = sy::switch_router{.capacity = capacity,
                                             .inference_capacity = inference_capacity,
                                             .input_jitter = static_cast<float>(asked.jitter),
                                             .balance_weight = asked.balance_weight};
            break;
        // [/switch]
        case contender::top_2:
            layer.hidden = asked.hidden / 2;
            layer.router = sy::top_k_router{.k = 2,
                                            .renormalize = true,
                                            .capacity = capacity,
                                            .inference_capacity = inference_capacity,
                                            .balance_weight = asked.balance_weight};
            break;
        case contender::base:
            // [base]
            layer.router = sy::base_router<>{};
            // [/base]
            break;
        case contender::gshard:
            layer.hidden = asked.hidden / 2;
            layer.router = sy::gshard_router{
                .capacity = capacity, .inference_capacity = inference_capacity, .balance_weight = asked.balance_weight};
            break;
        case contender::sparse_mixer:
            layer.hidden = asked.hidden / 2;
            layer.router = sy::sparse_mixer_router{
                .capacity = capacity, .inference_capacity = inference_capacity, .balance_weight = asked.balance_weight};
            break;
        default:
            layer.router = steered_router_of(run.kind, asked.experts, capacity, inference_capacity);
            if (std::get<steered_router>(*layer.router).recipe().k == 2) layer.hidden = asked.hidden / 2;
    }
    layer.precision = run.stored == precision::pure_bfloat16 ? router_precision::bfloat16 : router_precision::computed;
    return layer;
}

/// Means of loads over steps.
class load_mean {
  public:
    template <class Plan>
    void add(const Plan& plan) {
        const sy::plan_statistics load = sy::statistics(plan);
        const auto& made = plan.view();
        share_.resize(static_cast<std::size_t>(made.experts));
        for (std::size_t e = 0; e < share_.size(); ++e) {
            share_[e] += static_cast<double>(made.load_before[e]) / static_cast<double>(load.asked);
        }
        variation_ += load.coefficient_of_variation;
        max_ += load.max_over_mean;
        dropped_ += load.dropped_share;
        ++steps_;
    }

    /// The means so far; starts anew.
    load_record take() {
        const double n = std::max(1, steps_);
        load_record mean{std::move(share_), variation_ / n, max_ / n, dropped_ / n};
        for (double& share : mean.share) {
            share /= n;
        }
        *this = {};
        return mean;
    }

  private:
    std::vector<double> share_;
    double variation_ = 0;
    double max_ = 0;
    double dropped_ = 0;
    int steps_ = 0;
};

/// What watches a run's layers as it goes.
class load_watch {
  public:
    explicit load_watch(index_t layers) : recent_(static_cast<std::size_t>(layers)), late_(recent_) {}

    template <class Model>
    void add(const Model& model, bool is_late) {
        for (std::size_t i = 0; i < recent_.size(); ++i) {
            const auto& plan = model.layer(static_cast<index_t>(i)).plan();
            recent_[i].add(plan);
            if (is_late) {
                late_[i].add(plan);
                has_late_ = true;
            }
            const auto* const load = plan.view().load_before;
            const auto [least, most] = std::minmax_element(load, load + plan.experts());
            largest_difference = std::max<index_t>(largest_difference, *most - *least);
        }
    }
    std::vector<load_record> recent() { return taken(recent_); }
    /// Empty where there were no late steps.
    std::vector<load_record> late() { return has_late_ ? taken(late_) : std::vector<load_record>{}; }

    index_t largest_difference = 0;

  private:
    static std::vector<load_record> taken(std::vector<load_mean>& means) {
        std::vector<load_record> records;
        for (load_mean& mean : means) {
            records.push_back(mean.take());
        }
        return records;
    }

    std::vector<load_mean> recent_, late_;
    bool has_late_ = false;
};

/// What a trained layer did with the tokens of the last forward.
template <class Layer>
layer_record record_of(const Layer& layer, const batch& tokens) {
    constexpr index_t examples = 8;
    constexpr index_t before = 28;
    constexpr index_t after = 8;
    const auto& plan = layer.plan();
    const auto& made = plan.view();
    layer_record record;
    record.scores = sy::as_eigen(plan.scores());
    record.bytes.setZero(plan.experts(), 256);
    record.picked.resize(static_cast<std::size_t>(plan.experts()));
    record.coefficient_of_variation = sy::statistics(plan).coefficient_of_variation;
    std::vector<index_t> seen(record.picked.size(), 0);
    for (index_t t = 0; t < made.tokens; ++t) {
        for (index_t c = 0; c < made.choices; ++c) {
            const index_t e = made.expert[t * made.choices + c];
            ++record.bytes(e, tokens.context(t, tokens.length - 1));
            auto& picked = record.picked[static_cast<std::size_t>(e)];
            // Evenly spread over the text, whatever the expert's load.
            if (c == 0 && static_cast<index_t>(picked.size()) < examples &&
                seen[static_cast<std::size_t>(e)]++ % std::max<index_t>(1, made.load_before[e] / examples) == 0) {
                const index_t place = tokens.places[static_cast<std::size_t>(t)];
                const auto text = [&](index_t first, index_t last) {
                    const auto from = tokens.text.begin();
                    last = std::min(last, static_cast<index_t>(tokens.text.size()));
                    return std::string(from + std::max<index_t>(0, first), from + last);
                };
                picked.push_back({text(place - before, place), text(place, place + after)});
            }
        }
    }
    return record;
}

/// After steps of warming up, the rate stays as it is: the losses of two runs can then be compared at every step.
inline double rate_at(const options& asked, index_t step) {
    constexpr double warm_up = 100;
    return asked.rate * std::min(1.0, static_cast<double>(step + 1) / warm_up);
}

template <class A>
run_record train(const options& asked, const run_settings& settings, const corpus& text, thread_team& team,
                 const watcher& watch) {
    constexpr index_t evaluations = 50;
    const auto threads = sy::par_on(team);
    const layer_settings layer = layer_of(asked, settings);
    language_model<float, A> model(
        {.context = asked.context, .width = asked.width, .layers{static_cast<std::size_t>(asked.layers), layer}},
        settings.seed);
    adam<float> optimiser;
    run_record record{.settings = settings, .parameters = model.learned.count()};
    const batch held_out = text.validation(8 * asked.tokens);
    batch tokens;
    stopwatch trained;
    load_watch loads(layer.router ? asked.layers : 0);
    double routing_seconds = 0;  // of training alone
    double nats = 0;
    index_t nats_of = 0;

    const auto evaluate = [&](index_t step) {
        evaluation seen{.step = step, .seconds = trained.seconds()};
        if (step > 0) {
            seen.load = loads.recent();
        }
        seen.training_bits = nats_of > 0 ? nats / static_cast<double>(nats_of) * std::numbers::log2e : 0;
        seen.validation_bits = model.forward(threads, held_out, sy::inference{}) * std::numbers::log2e;
        record.evaluations.push_back(std::move(seen));
        nats = 0;
        nats_of = 0;
    };

    const index_t every = std::max<index_t>(1, asked.steps / evaluations);
    evaluate(0);
    index_t step = 0;
    for (; step < asked.steps; ++step) {
        double loss = 0;
        {
            // [step]
            const auto timed = trained.measure();
            routing_seconds -= model.routing_seconds();
            text.draw(settings.seed, static_cast<std::uint32_t>(step), asked.tokens, tokens);
            loss = model.forward(
                threads, tokens,
                sy::training{.seed = settings.seed, .stream = 0, .step = static_cast<std::uint32_t>(step)});
            model.backward(threads, tokens);
            optimiser.step(threads, rate_at(asked, step), model.learned);
            routing_seconds += model.routing_seconds();
            // [/step]
        }
        sy::require(std::isfinite(loss), settings.name(), ", seed ", settings.seed, ": the loss of step ", step,
                    " is not finite; a lower --rate may help");
        loads.add(model, 2 * (step + 1) > asked.steps);
        nats += loss;
        ++nats_of;
        if (!watch(step + 1, loss * std::numbers::log2e)) {
            ++step;
            break;
        }
        if ((step + 1) % every == 0 && step + 1 < asked.steps) {
            evaluate(step + 1);
        }
    }
    evaluate(step);
    record.is_complete = step == asked.steps;
    record.late_load = loads.late();
    record.largest_load_difference = loads.largest_difference;
    record.routing_share = routing_seconds / std::max(1e-9, trained.seconds());
    for (index_t i = 0; layer.router && i < asked.layers; ++i) {
        record.layers.push_back(record_of(model.layer(i), held_out));
    }
    return record;
}

}  // namespace study
