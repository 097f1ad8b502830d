// A plan from arrays that were saved, and the router that made it: backward across a framework's boundary, where
// forward and backward are calls of their own and only arrays pass between them.
//
//   forward     route_scores(policy, router, scores, training{.seed = 7, .step = n}, plan, scratch);
//               save plan.view()'s arrays below, and plan.view().origin.settings, a number
//   backward    const plan_view<float> plan = plan_from_saved(router, training{.seed = 7, .step = n}, saved);
//               route_scores_backward(policy, router, plan, scores, d_gates, d_scores, scratch);
//
//   array                     read by
//   expert, slot [T, k]       everything
//   gate [T, k]               dispatch and combine with gates, and their backward; BASE's backward, and that of
//                             routers with experts without rows
//   offsets [E + 1]           dispatch, combine and their backward
//   order [row_bound]         dispatch, combine_backward, zero_rest
//   row_maximum, row_sum [T]  route_scores_backward of Switch and top-k
//   balance_load [E]          route_scores_backward where balance_weight is not 0
//   totals                    48 bytes: counted tokens, for the gradients of the losses
//
// Nothing is computed, copied or allocated, and the arrays are only read, so they may be a framework's constant inputs.
// An array that nothing reads may be left out (null). Backward finds a plan of other settings, or of inference, as it
// does any plan: by the fingerprint. Plans of `route` and of plan_from_choices have the same arrays; the former's
// scores, which route_backward reads, are not among them (project_backward, score/projection.hpp, takes d_scores
// further).
#pragma once

#include <switchyard/core/config.hpp>
#include <switchyard/core/error.hpp>
#include <switchyard/core/matrix_view.hpp>
#include <switchyard/plan/capacity.hpp>
#include <switchyard/plan/plan.hpp>
#include <switchyard/router/routing.hpp>
#include <switchyard/router/rowless.hpp>

#include <cstdint>
#include <type_traits>

namespace switchyard {

/// What was saved of a plan: see above.
template <class S, class Space = host_space>
struct saved_plan {
    index_t tokens = 0;            ///< T
    index_t experts = 0;           ///< E, those with rows
    index_t choices = 1;           ///< k
    index_t capacity = unlimited;  ///< rows per expert
    index_t row_block = 1;
    std::uint64_t settings = 0;  ///< plan.view().origin.settings; 0: the router given is taken at its word

    const std::int32_t* expert = nullptr;
    const std::int32_t* slot = nullptr;
    const S* gate = nullptr;
    const std::int64_t* offsets = nullptr;
    const std::int64_t* order = nullptr;
    const S* row_maximum = nullptr;
    const S* row_sum = nullptr;
    const std::int64_t* balance_load = nullptr;
    const plan_totals* totals = nullptr;
};

inline namespace SWITCHYARD_TARGET {

/// What to save of a plan: its arrays where they lie, valid as long as they are.
template <class Plan>
auto saved_arrays_of(const Plan& plan) {
    const auto& p = view_of_plan(plan);
    using view = std::remove_cvref_t<decltype(p)>;
    require_finished(p);
    return saved_plan<typename view::scalar, typename view::space>{.tokens = p.tokens,
                                                                   .experts = p.experts,
                                                                   .choices = p.choices,
                                                                   .capacity = p.capacity,
                                                                   .row_block = p.row_block,
                                                                   .settings = p.origin.settings,
                                                                   .expert = p.expert,
                                                                   .slot = p.slot,
                                                                   .gate = p.gate,
                                                                   .offsets = p.offsets,
                                                                   .order = p.order,
                                                                   .row_maximum = p.row_maximum,
                                                                   .row_sum = p.row_sum,
                                                                   .balance_load = p.balance_load,
                                                                   .totals = p.totals};
}

/// The plan that `router` made in `mode`, for functions that read plans. It must not be routed into.
template <class Router, class S, class Space>
plan_view<S, Space> plan_from_saved(const Router& router, const run_mode& mode, const saved_plan<S, Space>& saved) {
    const std::uint64_t settings = fingerprint_of(router);
    require(saved.settings == 0 || saved.settings == settings,
            "the saved plan was made by a router with other settings");
    require(saved.tokens >= 0 && saved.experts >= 1 && saved.choices >= 1, "a saved plan cannot have ", saved.tokens,
            " tokens, ", saved.experts, " experts and ", saved.choices, " choices");
    require(saved.expert != nullptr || saved.tokens == 0, "the saved plan has no array expert");
    require(saved.slot != nullptr || saved.tokens == 0, "the saved plan has no array slot");
    require(saved.offsets != nullptr, "the saved plan has no array offsets");
    require(saved.gate != nullptr || saved.tokens == 0 || rowless_of(router).count() == 0,
            "the saved plan has no array gate, which says what choices without rows are worth");
    plan_view<S, Space> plan;
    plan.tokens = saved.tokens;
    plan.experts = saved.experts;
    plan.choices = saved.choices;
    plan.capacity = saved.capacity;
    plan.row_block = saved.row_block;
    plan.row_bound = row_bound(saved.tokens, saved.choices, saved.experts, saved.capacity, saved.row_block);
    // A plan_view is what routers write to as well; nothing that reads a plan writes to its arrays.
    const auto read_only = []<class T>(const T* array) { return const_cast<T*>(array); };
    plan.expert = read_only(saved.expert);
    plan.slot = read_only(saved.slot);
    plan.gate = read_only(saved.gate);
    plan.offsets = read_only(saved.offsets);
    plan.order = read_only(saved.order);
    plan.row_maximum = read_only(saved.row_maximum);
    plan.row_sum = read_only(saved.row_sum);
    plan.balance_load = read_only(saved.balance_load);
    plan.totals = read_only(saved.totals);
    plan.origin = origin_of(mode, settings);
    plan.origin.rowless = rowless_of(router);
    return plan;
}

}  // namespace SWITCHYARD_TARGET
}  // namespace switchyard
