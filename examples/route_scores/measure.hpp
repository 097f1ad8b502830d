// The part of a run that is the same for every backend: which library router an option stands for, timing, and the
// conversion of a plan in ordinary memory to `routing`.
#pragma once

#include "measured.hpp"
#include "run.hpp"

#include <algorithm>
#include <limits>
#include <type_traits>
#include <utility>
#include <variant>
#include <vector>

namespace study {

inline sy::switch_router switch_router_of(const options& asked) {
    const noise_setting noise = noise_of(asked, router_kind::switch_router);
    return {.capacity = capacity_rule_of(asked, router_kind::switch_router),
            .order = asked.drop_order,
            .sample_temperature = noise.kind == noise_kind::sample ? noise.scale : 0,
            .logit_jitter = noise.kind == noise_kind::logit_jitter ? noise.scale : 0,
            .balance_weight = asked.has_own_balance() ? 0 : asked.balance_weight,
            .z_weight = asked.z_weight};
}

/// The files' numbers in the memory of a policy.
template <class Space>
struct placed_inputs {
    sy::expert_numbers<Space> logit_bias, bias, expert_scale;
    sy::matrix_view<const std::int32_t, Space> choices;  ///< of routers that are given them
    sy::token_mask mask;
    const std::int64_t* offsets = nullptr;  ///< [sequences + 1], where they are given so
    index_t sequences = 1;
};

/// What replay, hash, random and round_robin choose, [T, k]; nothing for others.
inline sy::matrix<std::int32_t> choices_of(const options& asked, router_kind router, const inputs& given,
                                           index_t tokens, index_t experts) {
    if (!is_given_choices(router)) return {};
    const index_t k = router == router_kind::replay ? given.choices.columns()
                      : router == router_kind::hash ? given.table.columns()
                                                    : recipe_of(asked).k;
    sy::require(k <= experts, "--router ", name_of(routers_by_name, router), ": k = ", k,
                " must lie in 1..E = ", experts);
    sy::matrix<std::int32_t> ids(tokens, k);
    if (router == router_kind::replay) {
        std::copy(given.choices.data(), given.choices.data() + tokens * k, ids.data());
    } else if (router == router_kind::hash) {
        sy::table_choices(sy::seq, given.table, given.token_ids, ids);
    } else if (router == router_kind::random) {
        sy::random_choices(sy::seq, experts, {.seed = asked.seed}, ids);
    } else {
        sy::round_robin_choices(sy::seq, experts, 0, ids);
    }
    return ids;
}

/// The router of top_k as it runs. Constant gates are routed without normalisation, and written as they are then; equal
/// gates leave the order of tokens.
template <class Space>
sy::recipe_router<Space> recipe_in(const options& asked, router_kind router, const placed_inputs<Space>& placed) {
    const bool is_given = is_given_choices(router);
    const sy::recipe_router<> r =
        recipe_of(asked, router, is_given ? std::optional(placed.choices.columns) : std::nullopt);
    const bool is_constant = has_constant_gates(r);
    sy::require(
        !is_constant || placed.expert_scale.data == nullptr || r.order == sy::drop_order::position,
        "--drop-order gate with --expert-scale needs gates that differ otherwise: one choice is normalised here");
    return {.k = r.k,
            .logit_multiplier = r.logit_multiplier,
            .logit_bias = placed.logit_bias,
            .softcap = r.softcap,
            .score = r.score,
            .key = r.key,
            .selection_bias = placed.bias,
            .groups = r.groups,
            .normalize = is_constant ? sy::gate_sum::none : r.normalize,
            .norm_power = r.norm_power,
            .epsilon = r.epsilon,
            .scale = is_constant ? 1 : r.scale,
            .expert_scale = is_constant ? sy::expert_numbers<Space>{} : placed.expert_scale,
            .capacity = r.capacity,
            .inference_capacity = r.inference_capacity,
            .order = is_constant ? sy::drop_order::position : r.order,
            .rowless = r.rowless,
            .logit_jitter = r.logit_jitter,
            .balance_weight = r.balance_weight,
            .balance = r.balance,
            .z_weight = r.z_weight,
            .choices = placed.choices};
}

/// The tokens that count, [T] or empty: those of the file, less those whose ids are all none.
inline std::vector<std::uint8_t> mask_of(const inputs& given, const sy::matrix<std::int32_t>& ids, index_t experts) {
    std::vector<std::uint8_t> mask = given.mask;
    for (index_t t = 0; t < ids.rows(); ++t) {
        const std::int32_t* const own = ids.data() + t * ids.columns();
        if (std::any_of(own, own + ids.columns(), [&](std::int32_t id) { return id >= 0 && id < experts; })) continue;
        if (mask.empty()) mask.assign(static_cast<std::size_t>(ids.rows()), 1);
        mask[static_cast<std::size_t>(t)] = 0;
    }
    return mask;
}

/// The bias that sinkhorn or quantile finds by the scores, and how.
struct found_bias {
    std::vector<float> numbers{};  ///< [E]; empty for other routers
    std::optional<index_t> rounds{};
    std::optional<double> residual{};
    double milliseconds = 0;
};

template <sy::host_policy Policy, class S>
found_bias find_bias(const Policy& policy, const options& asked, router_kind router, const sy::matrix<S>& scores,
                     const inputs& given) {
    found_bias found;
    if (!finds_bias(router)) return found;
    const index_t experts = scores.columns();
    const index_t rounds = rounds_of(asked, router);
    const sy::token_mask mask{given.mask.empty() ? nullptr : given.mask.data(),
                              static_cast<index_t>(given.mask.size())};
    std::vector<float> quantiles(static_cast<std::size_t>(experts));
    sy::workspace scratch;
    found.milliseconds = measured(asked.repeat, [&] {
        found.numbers = given.bias.empty() || router == router_kind::sinkhorn ? quantiles : given.bias;
        if (router == router_kind::sinkhorn) {
            std::fill(found.numbers.begin(), found.numbers.end(), 0.0f);
            const auto report = sy::sinkhorn_bias(
                policy, scores,
                {.temperature = temperature_of(asked, router), .rounds = rounds, .tolerance = asked.own.tolerance},
                mask, found.numbers.data(), scratch);
            found.rounds = report.rounds;
            found.residual = report.residual;
            return;
        }
        if (given.bias.empty()) std::fill(found.numbers.begin(), found.numbers.end(), 0.0f);
        for (index_t round = 0; round < rounds; ++round) {
            sy::balancing_quantiles(policy, scores, recipe_of(asked, router).k,
                                    sy::expert_numbers<>{found.numbers.data(), experts}, quantiles, scratch);
            sy::update_bias_by_quantiles(policy, quantiles.data(), experts, asked.own.ema, found.numbers.data());
        }
        found.rounds = rounds;
    });
    return found;
}

/// Scores with the noise of noisy_top_k, and what goes back through it, in the memory of a policy.
template <class Policy, class S>
class noisy_run {
  public:
    using memory = typename Policy::memory;
    using scores_matrix = sy::matrix<S, memory>;
    using scratch_type = sy::basic_workspace<memory>;

    noisy_run(const Policy& policy, const options& asked, index_t k, scores_matrix noise_scores,
              const scores_matrix& scores, const sy::token_mask& mask)
        : policy_(policy),
          scores_(scores),
          noise_scores_(std::move(noise_scores)),
          noisy_(scores.rows(), scores.columns()),
          settings_{.k = k,
                    .weight = asked.own.load_weight,
                    .noisy = {.noise = {.seed = asked.seed}, .least_deviation = asked.own.least_deviation},
                    .mask = mask} {
        load_.resize(scores.columns() + 1);
        sy::noisy_scores(policy_, scores_, noise_scores_, settings_.noisy, noisy_);
    }
    const scores_matrix& noisy() const { return noisy_; }

    double load_loss() {
        const index_t experts = scores_.columns();
        sy::load_loss(policy_, scores_, noise_scores_, noisy_, settings_, load_.data(), load_.data() + experts,
                      scratch_);
        double loss = 0;
        if constexpr (sy::host_policy<Policy>) {
            loss = load_.data()[experts];
        } else {
            policy_.copy_to_host(&loss, load_.data() + experts, sizeof loss);
        }
        return loss;
    }
    /// Gradients of the noisy scores become those of the scores, the load loss's added; returns the noise scores'.
    scores_matrix go_back(scores_matrix& d_scores) {
        scores_matrix d_noise(scores_.rows(), scores_.columns());
        sy::noisy_scores_backward(policy_, noise_scores_, settings_.noisy, d_scores, d_scores, d_noise);
        if (settings_.weight != 0) {
            sy::load_loss_backward(policy_, scores_, noise_scores_, noisy_, settings_, load_.data(), d_scores, d_noise,
                                   scratch_);
        }
        return d_noise;
    }

  private:
    const Policy& policy_;
    const scores_matrix& scores_;
    scores_matrix noise_scores_;
    scores_matrix noisy_;
    sy::load_loss_settings settings_;
    sy::buffer<double, memory> load_;
    scratch_type scratch_;
};

/// A file's numbers as those of the scores.
template <class S>
sy::matrix<S> converted(const score_table& table) {
    return std::visit(
        [](const auto& numbers) {
            sy::matrix<S> same(numbers.rows(), numbers.columns());
            for (index_t i = 0; i < numbers.rows() * numbers.columns(); ++i) {
                same.data()[i] = static_cast<S>(numbers.data()[i]);
            }
            return same;
        },
        table);
}

/// Calls f(router, mode) with the library's router. Switch and top-k run as in training, where they have losses.
template <class Space, class F>
void with_router(const options& asked, router_kind router, const placed_inputs<Space>& placed, const F& f) {
    const sy::training training{.seed = asked.seed, .stream = 0, .mask = placed.mask};
    switch (router) {
        case router_kind::switch_router:
            return f(switch_router_of(asked), sy::run_mode(training));
        case router_kind::base:
            if (asked.solver == solver_kind::auction) return f(sy::base_router<sy::auction>{}, sy::run_mode(training));
            return f(sy::base_router<sy::hungarian>{}, sy::run_mode(training));
        case router_kind::gshard:
            return f(gshard_of(asked), sy::run_mode(training));
        case router_kind::sparse_mixer:
            return f(sparse_mixer_of(asked), sy::run_mode(training));
        case router_kind::greedy:
            return f(sy::base_router<sy::hungarian>{}, sy::run_mode(sy::inference{placed.mask}));
        default:
            return f(recipe_in(asked, router, placed), sy::run_mode(training));
    }
}

/// Whether a plan's gates do not depend on scores.
inline bool has_constant_gates(const options& asked, router_kind router, index_t k) {
    return is_recipe(router) && has_constant_gates(recipe_of(asked, router, k));
}

/// C at the experts of a plan's choices, which stands for the gradient of their gates; constant ones have none.
template <class S>
sy::matrix<S> gate_gradients_of(const options& asked, router_kind router, const sy::plan_view<S>& plan,
                                const score_table& table) {
    sy::matrix<S> d_gates(plan.tokens, plan.choices);
    const bool is_constant = has_constant_gates(asked, router, plan.choices);
    std::visit(
        [&](const auto& numbers) {
            for (index_t i = 0; i < plan.tokens * plan.choices; ++i) {
                const std::int32_t expert = plan.expert[i];
                const bool counts = expert >= 0 && !is_constant;
                d_gates.data()[i] = counts ? static_cast<S>(numbers(i / plan.choices, expert)) : S(0);
            }
        },
        table);
    return d_gates;
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
routing routing_of(const options& asked, router_kind router, const sy::plan_view<S>& plan, const sy::matrix<S>& scores,
                   const inputs& given) {
    constexpr double never = -std::numeric_limits<double>::infinity();
    const index_t positions = plan.tokens * plan.choices;
    const bool has_losses = router == router_kind::switch_router || is_recipe(router) || is_pair(router);
    routing made{.router = router,
                 .tokens = plan.tokens,
                 .experts = plan.experts,
                 .columns = scores.columns(),
                 .choices = plan.choices};
    // A choice that takes no row, and is not forbidden either.
    const auto is_rowless = [&](index_t position) {
        const std::int32_t id = plan.expert[position];
        return id >= plan.experts && static_cast<double>(scores(plan.token_of(position), id)) > never;
    };
    if (plan.capacity != sy::unlimited) {
        made.capacity = plan.capacity;
    }
    made.chosen.assign(plan.expert, plan.expert + positions);
    made.slots.assign(plan.slot, plan.slot + positions);
    made.gates.resize(static_cast<std::size_t>(positions));
    std::transform(plan.gate, plan.gate + positions, made.gates.begin(),
                   [](S gate) { return static_cast<float>(gate); });
    if (has_constant_gates(asked, router, plan.choices)) {
        const sy::recipe_router<> recipe = recipe_of(asked, router);
        const bool is_softmax = recipe.score == sy::score_function::softmax && weighs_after(asked, router);
        for (std::size_t t = 0; t < made.gates.size(); ++t) {
            // A value of 0 has the gate 0; a softmax over the one chosen is 1 however small its probability is.
            const bool is_weighed = made.slots[t] >= 0 || is_rowless(static_cast<index_t>(t));
            const bool has_gate = is_weighed && (is_softmax || plan.gate[t] > S(0));
            const bool is_scaled = has_gate && !given.expert_scale.empty();
            const double own = is_scaled ? given.expert_scale[static_cast<std::size_t>(made.chosen[t])] : 1;
            made.gates[t] = has_gate ? static_cast<float>(recipe.scale * own) : 0;
        }
    }
    made.is_double = sizeof(S) == sizeof(double);
    made.asked = std::count_if(made.chosen.begin(), made.chosen.end(),
                               [&](std::int32_t e) { return e >= 0 && e < plan.experts; });
    for (index_t position = 0; position < positions; ++position) made.rowless += is_rowless(position) ? 1 : 0;
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
