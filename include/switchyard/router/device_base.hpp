// Balanced assignment on a device, for BASE in training (router/base.hpp).
//
// `auction` runs where the scores are (assignment/device_auction.hpp says what waits, and when scores are copied all
// the same). Any other solver runs on the host: scores and mask go there, and experts come back; that waits for the
// device and allocates at every call. Either way the error of bad scores is thrown here and now, not noted in the plan.
#pragma once

#include <switchyard/assignment/auction.hpp>
#include <switchyard/assignment/device_auction.hpp>
#include <switchyard/assignment/quotas.hpp>
#include <switchyard/backend/device.hpp>
#include <switchyard/backend/policy.hpp>
#include <switchyard/core/config.hpp>
#include <switchyard/core/matrix_view.hpp>
#include <switchyard/core/memory.hpp>
#include <switchyard/core/workspace.hpp>
#include <switchyard/plan/plan.hpp>
#include <switchyard/router/base.hpp>
#include <switchyard/router/device_routing.hpp>

#include <cstdint>

namespace switchyard {
inline namespace SWITCHYARD_TARGET {

/// Balanced assignment by a solver of the host's: the plan's experts, -1 for padding.
template <device_policy Policy, class Solver, class Storage, class S>
void assign_several(const Policy& policy, const base_router<Solver>& router,
                    const matrix_view<const Storage, policy_space<Policy>>& scores, const token_mask& mask,
                    [[maybe_unused]] const plan_view<S, policy_space<Policy>>& plan, device_workspace<Policy>&) {
    if constexpr (assignment_solver<Solver>) {
        const matrix<Storage> host_scores = copy_to_host(policy, scores);
        buffer<std::uint8_t> host_mask(mask.data != nullptr ? plan.tokens : 0);
        if (host_mask.size() > 0) {
            policy.copy_to_host(host_mask.data(), mask.data, bytes_of<std::uint8_t>(plan.tokens));
        }
        const token_mask tokens{host_mask.data(), host_mask.size()};
        buffer<std::int32_t> expert(plan.tokens * plan.choices);
        workspace host_scratch;
        const matrix_view<const Storage> host_view = host_scores.view();
        solve_balanced(seq, router, host_view, tokens, expert.data(), host_scratch);
        if (plan.tokens > 0) {
            policy.copy_to_device(plan.expert, expert.data(), bytes_of<std::int32_t>(plan.tokens * plan.choices));
        }
    } else {
        fail("k = ", router.k, " of base_router needs a solver of the host's, hungarian or auction");
    }
    for_each_index(policy, 1, detail::note_events{plan.totals, nullptr, false});
}

/// The same with k = 1.
template <device_policy Policy, class Solver, class Storage, class S>
void assign_balanced(const Policy& policy, const base_router<Solver>& router,
                     const matrix_view<const Storage, policy_space<Policy>>& scores, const token_mask& mask,
                     const plan_view<S, policy_space<Policy>>& plan, device_workspace<Policy>& scratch) {
    assign_several(policy, router, scores, mask, plan, scratch);
}

/// Balanced assignment by the device's auction: the plan's experts, -1 for padding.
template <device_policy Policy, class Storage, class S>
void assign_balanced(const Policy& policy, const base_router<auction>& router,
                     const matrix_view<const Storage, policy_space<Policy>>& scores, const token_mask& mask,
                     const plan_view<S, policy_space<Policy>>& plan, device_workspace<Policy>& scratch) {
    const index_t tokens = detail::count_device_tokens(policy, mask, plan.tokens, scratch);
    const auto scope = scratch.open();
    double* const prices = router.prices != nullptr ? scratch.template take<double>(plan.experts) : nullptr;
    const auto bytes = bytes_of<double>(plan.experts);
    step_prices known(router.prices, plan.experts);
    if (known.is_warm()) policy.copy_to_device(prices, known.data(), bytes);
    const device_assignment_problem<Storage, policy_space<Policy>> problem{
        .scores = scores,
        .bounds = balanced_quotas(tokens, plan.experts),
        .mask = mask,
        .initial_prices = known.is_warm() ? prices : nullptr};
    solve(policy, router.solver, problem, {.expert_of_token = plan.expert, .prices = prices}, scratch);
    if (router.prices != nullptr) policy.copy_to_host(known.data(), prices, bytes);
    known.keep();
    for_each_index(policy, 1, detail::note_events{plan.totals, nullptr, false});
}

}  // namespace SWITCHYARD_TARGET
}  // namespace switchyard
