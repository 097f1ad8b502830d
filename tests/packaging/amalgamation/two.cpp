#include SWITCHYARD_HEADER
#include SWITCHYARD_HEADER

#if defined(EIGEN_WORLD_VERSION) != SWITCHYARD_WITH_EIGEN
#error "Eigen is included where it should not be, or the other way round"
#endif

#include "steps.hpp"

void other_steps() {
    steps::step("switch", switchyard::switch_router{.input_jitter = 0.01f, .z_weight = 1e-3});
#if SWITCHYARD_WITH_EIGEN
    const Eigen::MatrixXf scores = Eigen::MatrixXf::Identity(4, 3);
    if (switchyard::route_scores(switchyard::seq, switchyard::switch_router{}, scores).expert()(2, 0) != 2)
        std::puts("wrong");
#endif
}
