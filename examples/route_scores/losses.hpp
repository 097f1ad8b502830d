// Losses that routers do not compute while they route: of sequences, of other probabilities, and values that are asked
// for without a weight. On any backend; what they come to is read back.
#pragma once

#include "measure.hpp"
#include "run.hpp"

#include <algorithm>
#include <cstddef>
#include <vector>

namespace study {

/// A matrix of the policy's memory in ordinary memory.
template <class Policy, class T, class Memory>
sy::matrix<T> read_back(const Policy& policy, const sy::matrix<T, Memory>& numbers) {
    if constexpr (sy::host_policy<Policy>) {
        sy::matrix<T> copy(numbers.rows(), numbers.columns());
        std::copy(numbers.data(), numbers.data() + numbers.rows() * numbers.columns(), copy.data());
        return copy;
    } else {
        return copy_to_host(policy, numbers);  // of backend/device.hpp, where there are devices
    }
}

/// The other way.
template <class Policy, class T>
sy::matrix<T, typename Policy::memory> sent_there(const Policy& policy, const sy::matrix<T>& numbers) {
    if constexpr (sy::host_policy<Policy>) {
        return read_back(policy, numbers);
    } else {
        return copy_to_device(policy, numbers);
    }
}

/// Of one run: a router, its scores, and the plan that it made of them.
template <class Policy, class Placed, class Router, class Scores, class Plan, class Workspace>
class run_losses {
    using memory = typename Policy::memory;
    using space = typename memory::space;
    static constexpr bool has_weights = requires(const Router& router) { router.balance_weight; };

  public:
    run_losses(const Policy& policy, const options& asked, const Placed& placed, const Router& router,
               const sy::run_mode& mode, const Scores& scores, const Plan& plan, Workspace& scratch)
        : policy_(policy),
          asked_(asked),
          placed_(placed),
          router_(router),
          mode_(mode),
          scores_(scores),
          plan_(plan),
          scratch_(scratch) {}

    /// The balance loss where it is not the router's own, and the values asked for.
    void report(routing& made) const {
        if (has_weights && asked_.has_own_balance()) {
            made.load_balancing_loss = asked_.balance_weight * balance(sy::balance_unit::expert);
        }
        for (const loss_kind loss : asked_.losses) {
            if (has_loss(asked_, made.router, loss)) made.losses.emplace_back(loss, value(loss, made));
        }
        if (made.router == router_kind::noisy_top_k) {
            made.importance_loss = importance(made, asked_.own.importance_weight, nullptr);
        }
    }

    /// Adds the gradient of noisy_top_k's importance loss to that of the gates; constant ones have none.
    template <class Gates>
    void add_gradient_of_gates(const routing& made, Gates& d_gates) const {
        if (made.router != router_kind::noisy_top_k || asked_.own.importance_weight == 0 ||
            has_constant_gates(asked_, made.router, made.choices)) {
            return;
        }
        sy::matrix<double> d_sums(1, made.experts);
        (void)importance(made, asked_.own.importance_weight, d_sums.data());
        const auto there = sent_there(policy_, d_sums);
        sy::importance_loss_backward(policy_, plan_, made.experts, there.data(), d_gates, {.adds = true});
    }

    /// Adds the gradient of the balance loss to d_scores where it is not the router's own.
    void add_gradient(sy::matrix<typename Plan::scalar, memory>& d_scores) const {
        if constexpr (has_weights) {
            if (!asked_.has_own_balance()) return;
            const auto settings = settings_of(sy::balance_unit::expert, asked_.balance_weight);
            const auto sums = balance_sums(settings);
            const auto scope = scratch_.open();
            sy::balance_loss_backward(policy_, rows(), settings, sequences(), sums, d_scores, scratch_, {.adds = true});
        }
    }

  private:
    auto rows() const { return sy::rows_of_router(policy_, router_, scores_, mode_, scratch_); }

    sy::token_sequences<space> batch() const { return {.mask = placed_.mask}; }
    sy::token_sequences<space> sequences() const {
        if (asked_.balance_scope == scope_kind::batch) return batch();
        const index_t length = asked_.sequence_length.value_or(0);
        return {.mask = placed_.mask, .offsets = placed_.offsets, .count = placed_.sequences, .length = length};
    }

    /// What weighs experts: a sigmoid in base and greedy.
    sy::score_function score() const {
        if constexpr (requires { router_.score; }) {
            return router_.score;
        } else {
            return has_weights ? sy::score_function::softmax : sy::score_function::sigmoid;
        }
    }
    sy::expert_groups groups() const {
        if constexpr (requires { router_.groups; }) {
            return router_.groups;
        } else {
            return {};
        }
    }

    /// Devices are the router's groups; their losses count all choices, as DeepSeek-V2 does.
    sy::balance_loss_settings settings_of(sy::balance_unit unit, double weight) const {
        const bool is_of_devices = unit != sy::balance_unit::expert;
        const bool one_each = groups().one_each;  // where first choices are those of the first group
        const sy::choice_count count =
            asked_.balance_count == count_kind::all_undivided        ? sy::choice_count::all_undivided
            : asked_.balance_count == count_kind::first && !one_each ? sy::choice_count::first
                                                                     : sy::choice_count::all;
        // The factor of the loss is the experts with rows.
        const double share =
            static_cast<double>(sy::view_of_plan(plan_).experts) / static_cast<double>(scores_.columns());
        return {.weight = is_of_devices ? weight : weight * share,
                .count = is_of_devices ? sy::choice_count::all : count,
                .score = score(),
                .probability = asked_.balance_probability,
                .unit = unit,
                .devices = groups().count,
                .devices_per_token = one_each ? groups().count : groups().kept};
    }
    sy::matrix<double, memory> balance_sums(const sy::balance_loss_settings& settings) const {
        const auto scope = scratch_.open();
        const index_t experts = scores_.columns();
        sy::matrix<double, memory> sums(sy::sequence_count(sequences(), scores_.rows()), sy::balance_columns(experts),
                                        sy::memory_of(policy_));
        sy::write_balance_sums(policy_, rows(), plan_, settings, sequences(), sums, scratch_);
        return sums;
    }
    double balance(sy::balance_unit unit) const {
        const auto settings = settings_of(unit, 1);
        return sy::balance_loss(settings, read_back(policy_, balance_sums(settings)));
    }
    double of_scores(sy::score_loss_kind kind) const {
        const auto scope = scratch_.open();
        const sy::score_loss_settings settings{.kind = kind};
        sy::matrix<double, memory> sums(1, sy::score_loss_columns(scores_.columns()), sy::memory_of(policy_));
        sy::write_score_sums(policy_, rows(), settings, batch(), sums, scratch_);
        return sy::score_loss(settings, read_back(policy_, sums));
    }
    /// Of the gates that are written: those of one normalised choice are not the plan's. With the gradient of their
    /// sums [E], unless null.
    double importance(const routing& made, double weight, double* d_sums) const {
        std::vector<double> sums(static_cast<std::size_t>(made.experts));
        if (has_constant_gates(asked_, made.router, made.choices)) {
            for (std::size_t i = 0; i < made.gates.size(); ++i) {
                if (made.slots[i] >= 0) sums[static_cast<std::size_t>(made.chosen[i])] += made.gates[i];
            }
        } else {
            sy::matrix<double, memory> there(1, made.experts, sy::memory_of(policy_));
            sy::write_importance(policy_, plan_, made.experts, there.data(), scratch_);
            const auto here = read_back(policy_, there);
            sums.assign(here.data(), here.data() + made.experts);
        }
        return sy::squared_variation(weight, sums.data(), made.experts, d_sums);
    }
    double value(loss_kind loss, const routing& made) const {
        switch (loss) {
            case loss_kind::balance:
                return balance(sy::balance_unit::expert);
            case loss_kind::device_balance:
                return balance(sy::balance_unit::device);
            case loss_kind::communication_balance:
                return balance(sy::balance_unit::communication);
            case loss_kind::z:
                return of_scores(sy::score_loss_kind::z);
            case loss_kind::entropy:
                return of_scores(sy::score_loss_kind::entropy);
            case loss_kind::mutual_information:
                return of_scores(sy::score_loss_kind::mutual_information);
            default:
                return importance(made, 1, nullptr);
        }
    }

    const Policy& policy_;
    const options& asked_;
    const Placed& placed_;
    const Router& router_;
    const sy::run_mode& mode_;
    const Scores& scores_;
    const Plan& plan_;
    Workspace& scratch_;
};

template <class Policy, class Placed, class Router, class Scores, class Plan, class Workspace>
run_losses<Policy, Placed, Router, Scores, Plan, Workspace> losses_of_run(const Policy& policy, const options& asked,
                                                                          const Placed& placed, const Router& router,
                                                                          const sy::run_mode& mode,
                                                                          const Scores& scores, const Plan& plan,
                                                                          Workspace& scratch) {
    return {policy, asked, placed, router, mode, scores, plan, scratch};
}

}  // namespace study
