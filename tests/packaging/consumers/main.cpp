// What each consumer builds: a program that routes a few numbers through the library's functions and its one error.
#include <switchyard/backend/policy.hpp>
#include <switchyard/core/philox.hpp>
#include <switchyard/core/workspace.hpp>
#include <switchyard/version.hpp>

#include <Eigen/Core>

#include <cstdio>

namespace sy = switchyard;

int main() {
    sy::matrix<float> scores(5, 3);
#if defined(CONSUMER_USES_OPENMP)
    const auto& policy = sy::par;
#else
    const auto& policy = sy::seq;
#endif
    policy.parallel_for(5, [&](sy::index_t t) {
        for (sy::index_t e = 0; e < 3; ++e) {
            scores(t, e) = sy::uniform_at({.seed = 7}, t, e);
        }
    });
    const Eigen::Map<const Eigen::MatrixXf> same(scores.data(), 3, 5);
    try {
        sy::require(false, "the maximum is ", same.maxCoeff());
    } catch (const sy::error& e) {
        std::printf("switchyard %d.%d: %s\n", sy::version.major, sy::version.minor, e.what());
        return 0;
    }
    return 1;
}
