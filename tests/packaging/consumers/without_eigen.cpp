// What a consumer of switchyard::without_eigen builds: a training step on numbers of its own.
#include <switchyard/without_eigen.hpp>

#if defined(EIGEN_WORLD_VERSION)
#error "switchyard/without_eigen.hpp includes Eigen"
#endif

#include <cstdio>
#include <span>
#include <vector>

namespace sy = switchyard;

int main() {
#if defined(CONSUMER_USES_OPENMP)
    const auto& policy = sy::par;
#else
    const auto& policy = sy::seq;
#endif
    const std::vector<float> x{1, 2, 3, 6, 5, 4, 7, 9, 8, 0, 0, 1}, w{1, 0, 0, 0, 1, 0, 0, 0, 1};
    const auto tokens = sy::view_of(std::span(x), 4, 3), weights = sy::view_of(std::span(w), 3, 3);
    const sy::top_k_router router{.k = 2};
    const auto plan = sy::route(policy, router, tokens, weights, sy::training{.stream = 0});
    const auto rows = sy::dispatch(policy, plan, tokens);
    const auto y = sy::combine(policy, plan, rows);
    const auto [d_rows, d_gates] = sy::combine_backward(policy, plan, rows, tokens);
    const auto [d_x, d_w] = sy::route_backward(policy, router, plan, tokens, weights, d_gates);
    std::printf("switchyard %d.%d: token 1 goes to expert %d, %lld rows\n", sy::version.major, sy::version.minor,
                plan.expert()(1, 0), static_cast<long long>(rows.rows()));
    return plan.expert()(1, 0) == 0 && plan.kept() > 0 && y.rows() == 4 && d_x.rows() == 4 && d_w.rows() == 3 ? 0 : 1;
}
