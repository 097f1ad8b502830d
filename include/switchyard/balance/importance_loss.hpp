// Importance loss: the squared coefficient of variation of how much weight each expert is given.
//
//   importance_e = sum of the gates of the choices that name e
//   loss = weight CV^2,  CV^2(x) = var(x) / (mean(x)^2 + 1e-10),  var the population's
//
// 0 when even; E - 1 where one expert has all. Shazeer et al. 2017, arXiv 1701.06538, weight 0.1, who take the same of
// a smooth estimate of loads (`load`): `squared_variation` is that function of any E numbers, with its gradient.
//
//   std::vector<double> importance(E);
//   write_importance(policy, plan, E, importance.data(), scratch);
//   const double loss = squared_variation(weight, importance.data(), E, d_importance.data());
//   importance_loss_backward(policy, plan, E, d_importance.data(), d_gates, {.adds = true});
//
// Gates are the plan's: 0 of a dropped choice, of a forbidden one, and of padding. Ranks and micro-batches add
// importances. d_gates [T, k] goes to the router's backward, which leaves dropped choices out.
//
// Sums run over 64 tokens first, so results are bitwise identical for any number of threads. O(T k + T E / 64), scratch
// of T E / 64 doubles; nothing waits.
#pragma once

#include <switchyard/backend/policy.hpp>
#include <switchyard/balance/balance_loss.hpp>
#include <switchyard/balance/token_sequences.hpp>
#include <switchyard/core/arguments.hpp>
#include <switchyard/core/config.hpp>
#include <switchyard/core/error.hpp>
#include <switchyard/core/matrix_view.hpp>
#include <switchyard/core/rounding.hpp>
#include <switchyard/core/scalar_traits.hpp>
#include <switchyard/core/sizes.hpp>
#include <switchyard/core/workspace.hpp>
#include <switchyard/plan/plan.hpp>

#include <cmath>
#include <cstdint>

namespace switchyard {
inline namespace SWITCHYARD_TARGET {

namespace detail {

/// The mean, the variance, and what CV^2 divides by.
struct variation_terms {
    double mean = 0;
    double variance = 0;
    double divisor = 1;
};

SWITCHYARD_HD inline variation_terms variation_of(const double* x, index_t count) {
    variation_terms found;
    for (index_t e = 0; e < count; ++e) found.mean += x[e];
    found.mean /= static_cast<double>(count);
    for (index_t e = 0; e < count; ++e) found.variance += rounded_times(x[e] - found.mean, x[e] - found.mean);
    found.variance /= static_cast<double>(count);
    found.divisor = rounded_times(found.mean, found.mean) + 1e-10;
    return found;
}

struct write_variation {
    double weight;
    const double* x;
    index_t count;
    double* loss;  ///< or null
    double* d_x;   ///< or null

    SWITCHYARD_HD void operator()(index_t) const {
        const variation_terms found = variation_of(x, count);
        const double value = found.variance / found.divisor;
        if (loss != nullptr) *loss = rounded_times(weight, value);
        const double each = 2 * weight / static_cast<double>(count) / found.divisor;
        const double shared = rounded_times(value, found.mean);
        for (index_t e = 0; e < count && d_x != nullptr; ++e) {
            d_x[e] = rounded_times(each, (x[e] - found.mean) - shared);
        }
    }
};

template <class S, class Space>
struct sum_gates {
    static constexpr index_t rows = sequence_slots<Space>::slot_rows;
    plan_view<S, Space> plan;
    index_t experts;
    double* partial;  ///< [slots, E]

    SWITCHYARD_HD void operator()(index_t slot) const {
        double* const sums = partial + slot * experts;
        for (index_t e = 0; e < experts; ++e) sums[e] = 0;
        const index_t last = (slot + 1) * rows < plan.tokens ? (slot + 1) * rows : plan.tokens;
        for (index_t i = slot * rows * plan.choices; i < last * plan.choices; ++i) {
            const std::int32_t e = plan.expert[i];
            if (e >= 0 && e < experts) sums[e] += static_cast<double>(plan.gate[i]);
        }
    }
};

struct merge_gates {
    const double* partial;
    index_t slots;
    index_t experts;
    double* importance;

    SWITCHYARD_HD void operator()(index_t e) const {
        double sum = 0;
        for (index_t slot = 0; slot < slots; ++slot) sum += partial[slot * experts + e];
        importance[e] = sum;
    }
};

template <class S, class Space, class Storage>
struct spread_importance {
    plan_view<S, Space> plan;
    index_t experts;
    const double* d_importance;
    double scale;
    bool adds;
    matrix_view<Storage, Space> d_gates;

    SWITCHYARD_HD void operator()(index_t i) const {
        const std::int32_t e = plan.expert[i];
        auto& out = d_gates(i / plan.choices, i % plan.choices);
        const bool counts = e >= 0 && e < experts;
        auto d = static_cast<compute_t<Storage>>(counts ? rounded_times(scale, d_importance[e]) : 0.0);
        if (adds) d += load_scalar(out);
        out = store_scalar<Storage>(d);
    }
};

inline void require_variation(double weight, const double* x, index_t count) {
    require(std::isfinite(weight), "weight = ", weight, " must be finite");
    require(count >= 1, "E = ", count, " numbers do not vary");
    require(x != nullptr, "the numbers are a null pointer");
}

}  // namespace detail

/// weight CV^2 of x[count] on the host, and its gradient to d_x[count] unless that is null.
inline double squared_variation(double weight, const double* x, index_t count, double* d_x = nullptr) {
    detail::require_variation(weight, x, count);
    double loss = 0;
    detail::write_variation{weight, x, count, &loss, d_x}(0);
    return loss;
}

/// The same in any policy's memory; loss and d_x may be null. O(E) by one thread.
template <class Policy>
void write_squared_variation(const Policy& policy, double weight, const double* x, index_t count, double* loss,
                             double* d_x) {
    detail::require_variation(weight, x, count);
    for_each_index(policy, 1, detail::write_variation{weight, x, count, loss, d_x});
}

/// importance[E] of a plan, in the policy's memory.
template <class Policy, class Plan, class Workspace>
void write_importance(const Policy& policy, const Plan& plan, index_t experts, double* importance, Workspace& scratch) {
    const auto& made = view_of_plan(plan);
    using view = std::remove_cvref_t<decltype(view_of_plan(plan))>;
    require_space<Policy, view>();
    require_finished(made);
    require(experts >= 1, "E = ", experts, ": there must be at least one expert");
    require(importance != nullptr, "the importances have nowhere to go: a null pointer");
    const auto scope = scratch.open();
    constexpr index_t rows = detail::sequence_slots<typename view::space>::slot_rows;
    const index_t slots = (made.tokens + rows - 1) / rows;
    auto* const partial = scratch.template take<double>(product_of_sizes("sums", slots, experts));
    detail::for_each_slot(policy, slots,
                          detail::sum_gates<typename view::scalar, typename view::space>{made, experts, partial});
    for_each_index(policy, experts, detail::merge_gates{partial, slots, experts, importance});
}

/// d_gates[T, k] from d_importance[E]: written or added to. Choices of no expert have 0.
template <class Policy, class Plan, class Gates>
void importance_loss_backward(const Policy& policy, const Plan& plan, index_t experts, const double* d_importance,
                              Gates&& d_gates, const loss_gradient& gradient = {}) {
    const auto& made = view_of_plan(plan);
    using view = std::remove_cvref_t<decltype(view_of_plan(plan))>;
    const auto out = detail::output_view(d_gates);
    using storage = typename decltype(detail::output_view(d_gates))::value_type;
    require_space<Policy, view, decltype(detail::output_view(d_gates))>();
    require_finished(made);
    require_gate_shape(made, out);
    require(experts >= 1, "E = ", experts, ": there must be at least one expert");
    require(d_importance != nullptr, "the gradients of importances are a null pointer");
    require(std::isfinite(gradient.scale), "scale = ", gradient.scale, " of a gradient must be finite");
    for_each_index(policy, made.tokens * made.choices,
                   detail::spread_importance<typename view::scalar, typename view::space, storage>{
                       made, experts, d_importance, gradient.scale, gradient.adds, out});
}

}  // namespace SWITCHYARD_TARGET
}  // namespace switchyard
