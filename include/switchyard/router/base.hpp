// The BASE router: balanced assignment in training, the best expert at inference.
//
//   training    maximise sum_t s[t, a(t)] with every expert receiving T / E tokens; where E does not divide T, the
//               optimum decides who gets floor or ceil of it. No capacity, no auxiliary loss, no dropped token. The
//               assignment has no gradient.
//   inference   a(t) = argmax s_t, ties to the lower expert, no balance, no drops.
//   gate        sigmoid(s[t, a(t)]): the expert embeddings (centroids) learn through it alone.
//
// With k > 1 every token goes to k different experts, every expert receiving T k / E of them (floor or ceil), by the
// best total; at inference to its k best. Each choice has the sigmoid of its own score. Needs k <= E. The solver then
// runs on the host, whatever the policy.
//
// The layer's output is y = x + gate * f(x) for a residual expert f: combine with `accumulate` onto x.
// T counts tokens that are not padding. A token with every expert forbidden is an error: nothing may be dropped. NaN
// and +infinity are errors in training whatever `bad` says.
//
// `Solver` is any type of settings with a `solve` (assignment/assignment.hpp): `hungarian` is exact, `auction` is
// within a bound that it states. On Thrust's policies the auction runs on the device, and the call waits for it; for
// another solver the scores go to the host and the experts back. By kernels (`sy::cuda`) `hungarian` runs on the
// device, too, with one wait, and `async_auction` with none (kernel_base.hpp). Time is the solver's, O(T E) at
// inference.
//
// Warm start: with `prices`, a step begins with the experts' prices at the end of the step before. Scores change little
// between steps, so the solver has little left to do. The result is as good as from a cold start, but among equally
// good assignments it may be a different one.
//
//   expert_prices prices;                                   // one for each layer, kept as long as training goes on
//   const base_router<> router{.prices = &prices};
//
// Lewis, Bhosale, Dettmers, Goyal, Zettlemoyer 2021, "BASE Layers", arXiv 2103.16716.
#pragma once

#include <switchyard/assignment/hungarian.hpp>
#include <switchyard/backend/policy.hpp>
#include <switchyard/core/config.hpp>
#include <switchyard/core/error.hpp>
#include <switchyard/core/matrix_view.hpp>
#include <switchyard/core/overlap.hpp>
#include <switchyard/core/sizes.hpp>
#include <switchyard/core/workspace.hpp>
#include <switchyard/plan/plan.hpp>
#include <switchyard/plan/slots.hpp>
#include <switchyard/router/routing.hpp>
#include <switchyard/router/softmax_routing.hpp>
#include <switchyard/score/sigmoid.hpp>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <utility>
#include <vector>

namespace switchyard {

/// What one training step leaves for the next: the experts' prices, none to begin with. They may be saved with a model,
/// changed or cleared: that costs time only.
struct expert_prices {
    std::vector<double> of_expert;  ///< [E]; of another size: not used, and replaced
};

template <class Solver = hungarian>
struct base_router {
    Solver solver{};
    bad_scores bad = bad_scores::error;  ///< at inference; training always checks
    expert_prices* prices = nullptr;     ///< a warm start for training, the caller's; or null
    index_t k = 1;                       ///< 1..E experts per token
};

template <class Solver>
inline constexpr bool is_library_router<base_router<Solver>> = true;

inline namespace SWITCHYARD_TARGET {

template <class Solver>
constexpr std::uint64_t fingerprint_of(const base_router<Solver>& router) {
    return fingerprint('b', router.k);
}

template <class Solver>
void require_settings(const base_router<Solver>& router, index_t experts, const run_mode&) {
    require(router.k >= 1 && router.k <= experts, "k = ", router.k, " must lie in 1..E = ", experts);
}

template <class Solver>
softmax_settings softmax_settings_of(const base_router<Solver>& router, index_t) {
    return {.bad = router.bad, .may_drop = false, .gates = {.function = score_function::sigmoid}};
}

/// Gates of experts that are chosen already; padding has none.
template <class Source, class S>
struct gates_of_assigned {
    Source source;
    gate_rule<S> rule;
    const std::int32_t* expert;  ///< [T, k]
    S* gate;                     ///< [T, k]
    index_t k;

    SWITCHYARD_HD void operator()(index_t i) const {
        gate[i] = expert[i] < 0 ? S(0) : rule.of_best(source.at(i / k, expert[i]), S(1));
    }
};

/// A step's prices: the router's own where there are as many, else new ones, which become its own at `keep`. A step
/// that fails leaves the old ones.
class step_prices {
  public:
    step_prices(expert_prices* kept, index_t experts)
        : kept_(kept), is_warm_(kept != nullptr && kept->of_expert.size() == static_cast<std::size_t>(experts)) {
        if (kept != nullptr && !is_warm_) first_.resize(static_cast<std::size_t>(experts));
    }
    /// Whether there are prices to begin with.
    bool is_warm() const { return is_warm_; }
    /// [E]; null where the router keeps none.
    double* data() { return kept_ == nullptr ? nullptr : is_warm_ ? kept_->of_expert.data() : first_.data(); }
    void keep() {
        if (kept_ != nullptr && !is_warm_) kept_->of_expert = std::move(first_);
    }

  private:
    expert_prices* kept_;
    bool is_warm_;
    std::vector<double> first_;
};

/// Solves for T k / E tokens per expert, from the last step's prices where there are any.
template <host_policy Policy, class Solver, class Storage>
void solve_balanced(const Policy& policy, const base_router<Solver>& router, const matrix_view<const Storage>& scores,
                    const token_mask& mask, std::int32_t* expert_of_token, workspace& scratch) {
    step_prices prices(router.prices, scores.columns);
    const assignment_problem<Storage> problem{
        .scores = scores,
        .bounds =
            balanced_quotas(product_of_sizes("choices", count_tokens(mask, scores.rows), router.k), scores.columns),
        .mask = mask,
        .choices = router.k,
        .initial_prices = prices.is_warm() ? prices.data() : nullptr};
    solve(policy, router.solver, problem, {.expert_of_token = expert_of_token, .prices = prices.data()}, scratch);
    prices.keep();
}

/// Balanced assignment: the plan's experts, -1 for padding.
template <host_policy Policy, class Solver, class Storage, class S>
void assign_balanced(const Policy& policy, const base_router<Solver>& router, const matrix_view<const Storage>& scores,
                     const token_mask& mask, const plan_view<S>& plan, workspace& scratch) {
    solve_balanced(policy, router, scores, mask, plan.expert, scratch);
}

/// The same with k > 1: [T, k].
template <host_policy Policy, class Solver, class Storage, class S>
void assign_several(const Policy& policy, const base_router<Solver>& router, const matrix_view<const Storage>& scores,
                    const token_mask& mask, const plan_view<S>& plan, workspace& scratch) {
    solve_balanced(policy, router, scores, mask, plan.expert, scratch);
}

/// scores[T, E] -> plan with k choices, without capacity. The plan's arrays must not overlap the scores.
template <class Policy, class Solver, class Scores, class Plan, class Workspace>
void route_scores(const Policy& policy, const base_router<Solver>& router, const Scores& scores, const run_mode& mode,
                  Plan& plan, Workspace& scratch) {
    using S = typename Plan::scalar;
    const auto choose = [&](const auto& source, const softmax_settings& settings, const auto& made) {
        if (!mode.is_training && router.k == 1) {
            route_softmax(policy, source, mode, made, settings, scratch,
                          select_best<S>{made.expert, made.gate, {settings.gates}});
            return;
        }
        if (!mode.is_training) {
            route_softmax(policy, source, mode, made, settings, scratch,
                          select_list<S>{made.expert, made.gate, made.experts, router.k, {settings.gates}});
            return;
        }
        if (router.k == 1) {
            assign_balanced(policy, router, source.scores, mode.mask, made, scratch);
        } else {
            assign_several(policy, router, source.scores, mode.mask, made, scratch);
        }
        for_each_index(policy, made.tokens * router.k,
                       gates_of_assigned<std::remove_cvref_t<decltype(source)>, S>{
                           source, {settings.gates}, made.expert, made.gate, router.k});
        place_choices(policy, made, settings.slots, scratch);
        finish_losses(policy, made, settings, nullptr, scratch);
    };
    route_by_rows(policy, router, router.k, scores, mode, plan, scratch, choose);
}

/// Whether scores have the gates that the plan kept, if they can be read on the host. Compares three tokens, to a
/// hundredth, because a caller may have rounded the gates to a narrow type.
template <class Solver, class Source, class S>
void require_scores_of_plan(const base_router<Solver>&, const Source& source, const plan_view<S>& plan, workspace&) {
    for (const index_t token : {index_t{0}, plan.tokens / 2, plan.tokens - 1}) {
        const index_t first = token * plan.choices;
        if (plan.tokens == 0 || plan.expert[first] < 0) continue;
        const S gate = sigmoid(load_scalar(source.scores(token, plan.expert[first])));
        require(std::abs(gate - plan.gate[first]) <= S(0.01), "the plan was not made from these scores: token ", token,
                " had the gate ", plan.gate[first], " and now has ", gate);
    }
}

}  // namespace SWITCHYARD_TARGET
}  // namespace switchyard
