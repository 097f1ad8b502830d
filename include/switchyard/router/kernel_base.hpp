// Balanced assignment by kernels, for BASE in training (router/base.hpp).
//
//   hungarian       exact; waits once for the device (assignment/kernel_hungarian.hpp). Bad scores are errors here and
//                   now. What the host needs is allocated at every call.
//   async_auction   never waits, and a step can be captured in a CUDA graph; bad scores are noted in the plan's
//                   status (assignment/kernel_auction.hpp). Prices from step to step lie on the device:
//                   async_auction::prices, not base_router::prices.
//
// Tokens are counted on the device, so a mask costs no wait.
#pragma once

#include <switchyard/assignment/kernel_auction.hpp>
#include <switchyard/assignment/kernel_hungarian.hpp>
#include <switchyard/backend/device.hpp>
#include <switchyard/backend/kernel.hpp>
#include <switchyard/core/config.hpp>
#include <switchyard/core/error.hpp>
#include <switchyard/core/matrix_view.hpp>
#include <switchyard/core/workspace.hpp>
#include <switchyard/plan/plan.hpp>
#include <switchyard/router/base.hpp>
#include <switchyard/router/device_base.hpp>

namespace switchyard {
inline namespace SWITCHYARD_TARGET {

/// Balanced assignment by the exact solver: the plan's experts, -1 for padding.
template <kernel_policy Policy, class Storage, class S>
void assign_balanced(const Policy& policy, const base_router<hungarian>& router,
                     const matrix_view<const Storage, policy_space<Policy>>& scores, const token_mask& mask,
                     const plan_view<S, policy_space<Policy>>& plan, device_workspace<Policy>& scratch) {
    detail::require_settings(router.solver);
    const auto scope = scratch.open();
    step_prices known(router.prices, plan.experts);
    double* const prices = known.is_warm() ? scratch.template take<double>(plan.experts) : nullptr;
    if (known.is_warm()) detail::send_to_device(policy, prices, known.data(), plan.experts);
    const device_assignment_problem<Storage, policy_space<Policy>> problem{
        .scores = scores, .bounds = {.experts = plan.experts}, .mask = mask, .initial_prices = prices};
    workspace host_scratch;
    detail::device_effort effort;
    detail::exact_on_device<Policy, Storage>(policy, router.solver, problem, true, {.expert_of_token = plan.expert},
                                             scratch, host_scratch, effort)
        .run(known.data());
    known.keep();
    for_each_index(policy, 1, detail::note_events{plan.totals, nullptr, false});
}

/// Balanced assignment without waiting: the plan's experts, -1 for padding, and its status.
template <kernel_policy Policy, class Storage, class S>
void assign_balanced(const Policy& policy, const base_router<async_auction>& router,
                     const matrix_view<const Storage, policy_space<Policy>>& scores, const token_mask& mask,
                     const plan_view<S, policy_space<Policy>>& plan, device_workspace<Policy>& scratch) {
    require(router.prices == nullptr,
            "base_router::prices lie on the host, where async_auction reads nothing: give it async_auction::prices");
    const device_assignment_problem<Storage, policy_space<Policy>> problem{
        .scores = scores, .bounds = {.experts = plan.experts}, .mask = mask, .initial_prices = router.solver.prices};
    detail::enqueue_auction(policy, router.solver, problem, true,
                            {.expert_of_token = plan.expert, .prices = router.solver.prices}, plan.totals, scratch);
}

}  // namespace SWITCHYARD_TARGET
}  // namespace switchyard
