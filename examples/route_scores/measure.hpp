// The part of a run that is the same for every backend: which library router an option stands for, timing, and the
// conversion of a plan in ordinary memory to `routing`.
#pragma once

#include "run.hpp"

#include <algorithm>
#include <chrono>
#include <type_traits>
#include <vector>

namespace study {

/// The median; of an even number, the mean of the middle two.
inline double median(std::vector<double> values) {
    std::sort(values.begin(), values.end());
    const std::size_t half = values.size() / 2;
    return values.size() % 2 == 1 ? values[half] : (values[half - 1] + values[half]) / 2;
}

/// Calls `route` once to prepare and asked.repeat times against the clock; median milliseconds.
template <class Route>
double measured(const options& asked, const Route& route) {
    using clock = std::chrono::steady_clock;
    route();
    std::vector<double> times;
    for (index_t i = 0; i < asked.repeat; ++i) {
        const auto start = clock::now();
        route();
        times.push_back(std::chrono::duration<double, std::milli>(clock::now() - start).count());
    }
    return median(std::move(times));
}

inline sy::switch_router switch_router_of(const options& asked) {
    const noise_setting noise = noise_of(asked, router_kind::switch_router);
    return {.capacity = capacity_rule_of(asked, router_kind::switch_router),
            .order = asked.drop_order,
            .sample_temperature = noise.kind == noise_kind::sample ? noise.scale : 0,
            .logit_jitter = noise.kind == noise_kind::logit_jitter ? noise.scale : 0,
            .balance_weight = asked.balance_weight,
            .z_weight = asked.z_weight};
}

/// One choice with normalised gates: every gate is 1. The library refuses to train that router, which would learn
/// nothing; what it does with scores is clear all the same.
inline bool gates_are_one(const options& asked) {
    return asked.k == 1 && (asked.renormalize || asked.softmax == sy::softmax_order::after);
}

inline sy::top_k_router top_k_router_of(const options& asked) {
    sy::top_k_router router{.k = asked.k,
                            .softmax = asked.softmax,
                            .renormalize = asked.renormalize,
                            .capacity = capacity_rule_of(asked, router_kind::top_k),
                            .order = asked.drop_order,
                            .logit_jitter = noise_of(asked, router_kind::top_k).scale,
                            .balance_weight = asked.balance_weight,
                            .balance = asked.balance_count,
                            .z_weight = asked.z_weight};
    if (gates_are_one(asked)) {  // routed without normalisation; equal gates leave the order of tokens
        router.softmax = sy::softmax_order::before;
        router.renormalize = false;
        router.order = sy::drop_order::position;
    }
    return router;
}

/// Calls f(router, mode) with the library's router. Switch and top-k run as in training, where they have losses.
template <class F>
auto with_router(const options& asked, router_kind router, const F& f) {
    const sy::training training{.seed = asked.seed, .stream = 0};
    switch (router) {
        case router_kind::switch_router:
            return f(switch_router_of(asked), sy::run_mode(training));
        case router_kind::top_k:
            return f(top_k_router_of(asked), sy::run_mode(training));
        case router_kind::base:
            if (asked.solver == solver_kind::auction) return f(sy::base_router<sy::auction>{}, sy::run_mode(training));
            return f(sy::base_router<sy::hungarian>{}, sy::run_mode(training));
        default:
            return f(sy::base_router<sy::hungarian>{}, sy::run_mode(sy::inference{}));
    }
}

/// The sum of the file's scores over kept choices.
template <class S>
double total_score_of(const sy::plan_view<S>& plan, const sy::matrix<S>& scores) {
    double total = 0;
    for (index_t position = 0; position < plan.tokens * plan.choices; ++position) {
        if (plan.slot[position] >= 0) {
            total += static_cast<double>(scores(plan.token_of(position), plan.expert[position]));
        }
    }
    return total;
}

/// Takes down what a plan says. `scores` are the file's.
template <class S>
routing routing_of(const options& asked, router_kind router, const sy::plan_view<S>& plan,
                   const sy::matrix<S>& scores) {
    const index_t positions = plan.tokens * plan.choices;
    const bool has_losses = router == router_kind::switch_router || router == router_kind::top_k;
    routing made{.router = router, .tokens = plan.tokens, .experts = plan.experts, .choices = plan.choices};
    if (plan.capacity != sy::unlimited) {
        made.capacity = plan.capacity;
    }
    made.chosen.assign(plan.expert, plan.expert + positions);
    made.slots.assign(plan.slot, plan.slot + positions);
    made.gates.resize(static_cast<std::size_t>(positions));
    std::transform(plan.gate, plan.gate + positions, made.gates.begin(),
                   [](S gate) { return static_cast<float>(gate); });
    if (router == router_kind::top_k && gates_are_one(asked)) {
        std::transform(made.slots.begin(), made.slots.end(), made.gates.begin(),
                       [](std::int32_t slot) { return slot >= 0 ? 1.0f : 0.0f; });
    }
    made.offsets.assign(plan.offsets, plan.offsets + plan.experts + 1);
    made.order.assign(plan.order, plan.order + plan.totals->kept);
    made.load_before.assign(plan.load_before, plan.load_before + plan.experts);
    made.load_after.assign(plan.load_after, plan.load_after + plan.experts);
    if (has_losses) {
        made.load_balancing_loss = plan.totals->load_balancing_loss;
        made.z_loss = plan.totals->z_loss;
    }
    made.load_variation = sy::statistics(plan).coefficient_of_variation;
    made.total_score = total_score_of(plan, scores);
    return made;
}

}  // namespace study
