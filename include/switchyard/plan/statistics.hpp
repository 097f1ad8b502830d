// How balanced a plan is: what one looks at to see routing collapse.
//
//   dropped_share            dropped choices / choices asked for (padding and forbidden choices ask for nothing)
//   coefficient_of_variation population standard deviation / mean of the load before capacity
//   max_over_mean            largest load / mean load: the slowdown of a step that waits for its busiest expert
//   entropy                  of the load's distribution, in nats; log E when uniform, 0 when one expert has all
//
// Host plans. O(E), nothing allocated. A plan of no tokens has 0 in all of them; an empty one is refused.
#pragma once

#include <switchyard/core/config.hpp>
#include <switchyard/plan/plan.hpp>

#include <cmath>
#include <type_traits>

namespace switchyard {

struct plan_statistics {
    index_t asked = 0;  ///< choices before capacity
    index_t kept = 0;
    index_t dropped = 0;  ///< asked - kept
    double dropped_share = 0;
    double coefficient_of_variation = 0;
    double max_over_mean = 0;
    double entropy = 0;
};

inline namespace SWITCHYARD_TARGET {

template <class Plan>
plan_statistics statistics(const Plan& plan) {
    const auto& p = view_of_plan(plan);
    static_assert(std::is_same_v<typename std::remove_cvref_t<decltype(p)>::space, host_space>,
                  "switchyard: statistics are of plans on the host: copy_to_host first");
    require_finished(p);
    plan_statistics s;
    index_t largest = 0;
    double squares = 0;
    for (index_t e = 0; e < p.experts; ++e) {
        const index_t load = p.load_before[e];
        s.asked += load;
        s.kept += p.load_after[e];
        largest = load > largest ? load : largest;
    }
    if (s.asked == 0) {
        return s;
    }
    const auto asked = static_cast<double>(s.asked);
    const double mean = asked / static_cast<double>(p.experts);
    for (index_t e = 0; e < p.experts; ++e) {
        const auto load = static_cast<double>(p.load_before[e]);
        squares += (load - mean) * (load - mean);
        s.entropy -= load > 0 ? load / asked * std::log(load / asked) : 0.0;
    }
    s.dropped = s.asked - s.kept;
    s.dropped_share = static_cast<double>(s.dropped) / asked;
    s.coefficient_of_variation = std::sqrt(squares / static_cast<double>(p.experts)) / mean;
    s.max_over_mean = static_cast<double>(largest) / mean;
    return s;
}

}  // namespace SWITCHYARD_TARGET
}  // namespace switchyard
