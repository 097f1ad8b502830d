// --backend thrust: Thrust's CPU systems, CPP for policy seq and OMP for policy par. Where Thrust was not found the
// program is built without it, and says so when it is asked for.
#include "measure.hpp"

#if defined(SWITCHYARD_EXAMPLE_HAS_THRUST)
#include <switchyard/thrust.hpp>
#if defined(_OPENMP)
#include <thrust/system/omp/execution_policy.h>

#include <omp.h>
#endif
#endif

#include <variant>

namespace study {
#if defined(SWITCHYARD_EXAMPLE_HAS_THRUST)
namespace {

/// Scores go to the policy's memory, a plan comes back; only what lies between is measured.
template <class Policy, class S>
routing run_on(const Policy& policy, const options& asked, router_kind router, const sy::matrix<S>& scores) {
    const auto device_scores = sy::copy_to_device(policy, scores);
    sy::basic_plan<S, typename Policy::memory> plan;
    sy::device_workspace<Policy> scratch;
    const double milliseconds = with_router(asked, router, [&](const auto& how, const sy::run_mode& mode) {
        return measured(asked, [&] {
            sy::route_scores(policy, how, device_scores, mode, plan, scratch);
            sy::check(policy, plan);
        });
    });
    const sy::plan<S> made = sy::copy_to_host(policy, plan);
    routing result = routing_of(asked, router, made.view(), scores);
    result.milliseconds = milliseconds;
    return result;
}

}  // namespace

bool has_thrust() { return true; }

routing run_router_on_thrust(const options& asked, router_kind router, const score_table& scores) {
    return std::visit(
        [&](const auto& table) {
#if defined(_OPENMP)
            if (asked.policy == policy_kind::par) {
                omp_set_num_threads(threads_of(asked));
                return run_on(sy::on_thrust(thrust::omp::par), asked, router, table);
            }
#endif
            return run_on(sy::on_thrust(thrust::cpp::par), asked, router, table);
        },
        scores);
}
#else
bool has_thrust() { return false; }

routing run_router_on_thrust(const options&, router_kind, const score_table&) {
    sy::fail("--backend thrust is not built into this program");
}
#endif
}  // namespace study
