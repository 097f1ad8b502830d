// The selection bias of a router as an object that a layer keeps from step to step.
//
//   bias_state bias(policy, E, {.rule = bias_rule::centred_sign, .rate = 1e-3f});   E zeros in the policy's memory
//   router.selection_bias = bias.numbers();                 the router sees each update
//   ... a step: route, then
//   bias.update(policy, plan);                              by the plan's loads, or
//   bias.update(policy, loads, E);                          by loads summed over micro-batches or ranks
//
// rule                 moves by                    see
//   sign, centred_sign   loads: int64 [E]            router/bias_update.hpp
//   quantile             quantiles: float32 [E]      router/quantile_bias.hpp
//
//   bias.update(policy, scores, k, scratch);                quantile: one batch of scores[T, E]
//   bias.update_by_quantiles(policy, q);                    by those of `balancing_quantiles`, averaged by the caller
//
// The bias is float32 whatever the type of the scores is: a rate of 1e-3 is lost in 16 bits. To save and load it, use
// the plain array [1, E] that `view()` shows. It is read and written on the host, and copied by `copy_to_host` and
// `copy_to_device` on a device. There is no other state.
//
// `loads` says which loads of a plan count: `plan_counts::asked`, before capacity, which is what a router chose; or
// `plan_counts::kept`, after it, as in Megatron-Core. The latter changes nothing where capacity fills every expert and
// so makes all loads equal. Experts without rows (identity and zero experts, the last `rowless`) have a bias that the
// router reads and no update changes; no load counts them.
//
// Nothing is allocated after the constructor, except scratch for quantiles, and nothing waits. Movable, not copyable;
// the numbers stay at their address when the object moves.
#pragma once

#include <switchyard/backend/policy.hpp>
#include <switchyard/core/config.hpp>
#include <switchyard/core/error.hpp>
#include <switchyard/core/matrix_view.hpp>
#include <switchyard/core/memory.hpp>
#include <switchyard/plan/counts.hpp>
#include <switchyard/plan/plan.hpp>
#include <switchyard/router/bias_update.hpp>
#include <switchyard/router/quantile_bias.hpp>
#include <switchyard/router/softmax_routing.hpp>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <span>
#include <type_traits>

namespace switchyard {

struct bias_settings {
    bias_rule rule = bias_rule::sign;
    float rate = 1e-3f;                      ///< of the signs; finite
    double ema = 0;                          ///< of quantiles: the share of the old bias that stays, in [0, 1)
    plan_counts loads = plan_counts::asked;  ///< which loads of a plan move the bias: asked or kept
    index_t rowless = 0;                     ///< the last experts, which have no rows; 0..E - 1. None with quantiles
};

inline namespace SWITCHYARD_TARGET {

namespace detail {

struct set_to_zero {
    float* numbers;

    SWITCHYARD_HD void operator()(index_t e) const { numbers[e] = 0; }
};

}  // namespace detail

template <class Memory = host_memory>
class bias_state {
  public:
    using space = typename Memory::space;

    /// `experts` zeros, at least 1, the rowless ones included.
    template <class Policy>
    bias_state(const Policy& policy, index_t experts, const bias_settings& settings = {})
        : settings_(settings), numbers_(0, memory_of(policy)), quantiles_(0, memory_of(policy)) {
        require(experts >= 1, "E = ", experts, " experts have no biases");
        require(std::isfinite(settings.rate), "rate = ", settings.rate, " must be finite");
        require(settings.ema >= 0 && settings.ema < 1, "ema = ", settings.ema, " must lie in [0, 1)");
        require(settings.loads == plan_counts::asked || settings.loads == plan_counts::kept,
                "loads must be plan_counts::asked or plan_counts::kept");
        require(settings.rowless >= 0 && settings.rowless < experts, "rowless = ", settings.rowless,
                " must lie in 0..E - 1 = ", experts - 1);
        require(settings.rule != bias_rule::quantile || settings.rowless == 0, "rowless = ", settings.rowless,
                " experts have no quantiles: it must be 0 with bias_rule::quantile");
        numbers_.resize(experts);
        quantiles_.resize(settings.rule == bias_rule::quantile ? experts : 0);
        for_each_index(policy, experts, detail::set_to_zero{numbers_.data()});
    }

    index_t experts() const { return numbers_.size(); }
    const bias_settings& settings() const { return settings_; }
    /// For `selection_bias` of a router.
    expert_numbers<space> numbers() const { return {numbers_.data(), numbers_.size()}; }
    /// [1, E], to be saved and loaded.
    matrix_view<float, space> view() { return {numbers_.data(), 1, numbers_.size()}; }
    matrix_view<const float, space> view() const { return {numbers_.data(), 1, numbers_.size()}; }

    /// By the loads of all experts with rows, in the policy's memory.
    template <class Policy>
    void update(const Policy& policy, const std::int64_t* loads, index_t count) {
        require_space<Policy, matrix_view<float, space>>();
        require(settings_.rule != bias_rule::quantile,
                "bias_rule::quantile moves by quantiles of scores, not by loads");
        require(count == experts() - settings_.rowless, "there are ", count, " loads for ",
                experts() - settings_.rowless, " experts with rows");
        update_bias(policy, loads, count, settings_.rate, numbers_.data(), settings_.rule);
    }

    /// By those of a plan.
    template <class Policy, class Plan>
    void update(const Policy& policy, const Plan& plan) {
        const auto& made = view_of_plan(plan);
        require_space<Policy, std::remove_cvref_t<decltype(made)>, matrix_view<float, space>>();
        require_finished(made);
        update(policy, settings_.loads == plan_counts::asked ? made.load_before : made.load_after, made.experts);
    }

    /// By quantiles q[E] in the policy's memory.
    template <class Policy>
    void update_by_quantiles(const Policy& policy, std::span<const float> q) {
        require_space<Policy, matrix_view<float, space>>();
        require_quantile_rule();
        require(static_cast<index_t>(q.size()) == experts(), "there are ", q.size(), " quantiles for E = ", experts(),
                " experts");
        update_bias_by_quantiles(policy, q.data(), experts(), settings_.ema, numbers_.data());
    }

    /// By those of one batch: scores[T, E] as they were routed, k choices per token.
    template <class Policy, class Scores, class Workspace>
    void update(const Policy& policy, const Scores& scores, index_t k, Workspace& scratch) {
        require_quantile_rule();
        const std::span<float> q(quantiles_.data(), static_cast<std::size_t>(experts()));
        balancing_quantiles(policy, scores, k, numbers(), q, scratch);
        update_by_quantiles(policy, q);
    }

  private:
    void require_quantile_rule() const {
        require(settings_.rule == bias_rule::quantile, "only bias_rule::quantile moves by quantiles of scores");
    }

    bias_settings settings_;
    buffer<float, Memory> numbers_;
    buffer<float, Memory> quantiles_;
};

template <class Policy>
bias_state(const Policy&, index_t) -> bias_state<typename Policy::memory>;
template <class Policy>
bias_state(const Policy&, index_t, const bias_settings&) -> bias_state<typename Policy::memory>;

}  // namespace SWITCHYARD_TARGET
}  // namespace switchyard
