#include "measure.hpp"

#include <type_traits>
#include <variant>

#if defined(_OPENMP)
#include <omp.h>
#endif

namespace study {
namespace {

template <class Policy, class S>
routing run_on_cpu(const Policy& policy, const options& asked, router_kind router, const sy::matrix<S>& scores) {
    sy::plan<S> plan;
    sy::workspace scratch;
    const double milliseconds = with_router(asked, router, [&](const auto& how, const sy::run_mode& mode) {
        return measured(asked, [&] { sy::route_scores(policy, how, scores, mode, plan, scratch); });
    });
    routing made = routing_of(asked, router, plan.view(), scores);
    made.milliseconds = milliseconds;
    return made;
}

}  // namespace

int threads_of(const options& asked) {
    if (asked.policy == policy_kind::seq) {
        return 1;
    }
#if defined(_OPENMP)
    return asked.threads > 0 ? asked.threads : omp_get_max_threads();
#else
    return 1;
#endif
}

void require_built_in(const options& asked) {
    sy::require(asked.backend != backend_kind::thrust || has_thrust(),
                "--backend thrust is not built into this program: Thrust was not found when it was built");
#if !defined(_OPENMP)
    sy::require(asked.policy != policy_kind::par, "--policy par is not built into this program: it needs OpenMP");
#endif
}

routing run_router(const options& asked, router_kind router, const score_table& scores) {
    if (asked.backend == backend_kind::thrust) {
        return run_router_on_thrust(asked, router, scores);
    }
    return std::visit(
        [&](const auto& table) {
#if defined(_OPENMP)
            if (asked.policy == policy_kind::par) {
                return run_on_cpu(sy::par_on(sy::openmp{.threads = asked.threads}), asked, router, table);
            }
#endif
            return run_on_cpu(sy::seq, asked, router, table);
        },
        scores);
}

}  // namespace study
