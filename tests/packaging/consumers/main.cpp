// What each consumer builds: a program that routes a few tokens, Eigen's as well as the library's own, and catches an
// error.
#include <switchyard/switchyard.hpp>

#include <cstdio>

namespace sy = switchyard;

int main() {
#if defined(CONSUMER_USES_OPENMP)
    const auto& policy = sy::par;
#else
    const auto& policy = sy::seq;
#endif
    Eigen::MatrixXf scores(4, 3);
    scores << 1, 2, 3, 6, 5, 4, 7, 9, 8, 0, 0, 1;
    const auto plan = sy::route_scores(policy, sy::top_k_router{.k = 2}, scores);
    const auto rows = sy::dispatch(policy, plan, scores);
    const auto y = sy::combine(policy, plan, rows);
    try {
        sy::route_scores(policy, sy::top_k_router{.k = 4}, scores);
    } catch (const sy::error& e) {
        std::printf("switchyard %d.%d: token 1 goes to expert %d, %lld rows, then %s\n", sy::version.major,
                    sy::version.minor, plan.expert()(1, 0), static_cast<long long>(rows.rows()), e.what());
        return plan.expert()(1, 0) == 0 && plan.kept() == 8 && y.rows() == 4 ? 0 : 1;
    }
    return 1;
}
