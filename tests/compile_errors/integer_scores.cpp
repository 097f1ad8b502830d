// Routing computes in float or double.
// expect: an argument's numbers must be float, double, half, bfloat16 or another type with scalar_traits
#include <switchyard/switchyard.hpp>

void route(const Eigen::MatrixXi& counts) {
#ifndef WITHOUT_MISTAKE
    static_cast<void>(switchyard::route_scores(switchyard::seq, switchyard::switch_router{}, counts));
#else
    static_cast<void>(
        switchyard::route_scores(switchyard::seq, switchyard::switch_router{}, counts.cast<float>().eval()));
#endif
}
