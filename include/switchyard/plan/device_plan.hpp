// A plan in device memory, seen from the host: its totals, its status as an exception, and a copy of all of it.
//
//   check(policy, plan);                    throws what a CPU policy would have thrown while routing
//   const auto t = totals_of(policy, plan);       kept, counted tokens, losses, status
//   const plan<float> p = copy_to_host(policy, plan);
//
// All three wait for everything enqueued on the policy's stream before them. The first two copy 48 bytes.
#pragma once

#include <switchyard/backend/device.hpp>
#include <switchyard/core/config.hpp>
#include <switchyard/core/error.hpp>
#include <switchyard/plan/choices.hpp>
#include <switchyard/plan/plan.hpp>

#include <type_traits>

namespace switchyard {
inline namespace SWITCHYARD_TARGET {

/// What a plan counts, read back.
template <device_policy Policy, class Plan>
plan_totals totals_of(const Policy& policy, const Plan& plan) {
    const auto& view = view_of_plan(plan);
    static_assert(std::is_same_v<typename std::remove_cvref_t<decltype(view)>::space, policy_space<Policy>>,
                  "switchyard: the plan does not lie in the memory this policy works in");
    require_finished(view);
    plan_totals totals;
    policy.copy_to_host(&totals, view.totals, sizeof totals);
    return totals;
}

/// Throws `error` where totals, copied to the host, say that scores could not be routed: NaN or +infinity, every expert
/// forbidden to a token that may not be dropped, or, of choices made elsewhere, an expert named twice. The message
/// names the first such token.
inline void raise_status(const plan_totals& totals) {
    if (totals.status == plan_status::bad_score) {
        fail("a score of token ", totals.status_token,
             " is NaN or +infinity: a score must be finite, or -infinity to forbid an expert");
    }
    if (totals.status == plan_status::unroutable) {
        fail("token ", totals.status_token, " has every expert forbidden (-infinity) and may not be dropped");
    }
    if (totals.status == plan_status::repeated) {
        detail::fail_repeated(totals.status_token);
    }
}

/// The same of a plan.
template <device_policy Policy, class Plan>
void check(const Policy& policy, const Plan& plan) {
    raise_status(totals_of(policy, plan));
}

/// The whole plan on the host, the scores it keeps for backward excepted. An empty plan is refused.
template <device_policy Policy, class S>
plan<S> copy_to_host(const Policy& policy, const plan_view<S, policy_space<Policy>>& from) {
    require_finished(from);
    plan<S> copy;
    copy.set_row_block(from.row_block);
    copy.resize(from.tokens, from.experts, from.choices, from.capacity);
    copy.made_by(from.origin);
    const auto fetch = [&]<class T>(T* to, const T* source, index_t count) {
        if (count > 0) {
            policy.copy_to_host(to, source, bytes_of<T>(count));
        }
    };
    const auto& to = copy.view();
    const index_t positions = from.tokens * from.choices;
    fetch(to.totals, from.totals, 1);
    fetch(to.expert, from.expert, positions);
    fetch(to.slot, from.slot, positions);
    fetch(to.gate, from.gate, positions);
    fetch(to.offsets, from.offsets, from.experts + 1);
    fetch(to.load_before, from.load_before, from.experts);
    fetch(to.load_after, from.load_after, from.experts);
    fetch(to.balance_load, from.balance_load, from.experts);
    fetch(to.order, from.order, to.offsets[from.experts]);
    if (from.origin.training) {
        fetch(to.row_maximum, from.row_maximum, from.tokens);
        fetch(to.row_sum, from.row_sum, from.tokens);
    }
    return copy;
}
template <device_policy Policy, class S>
plan<S> copy_to_host(const Policy& policy, const basic_plan<S, typename Policy::memory>& from) {
    return copy_to_host(policy, from.view());
}

}  // namespace SWITCHYARD_TARGET
}  // namespace switchyard
