// Device numbers handed to a CPU policy.
// expect: the scores do not lie in the memory this policy works in
#include <switchyard/switchyard.hpp>
#include <switchyard/thrust.hpp>

namespace sy = switchyard;

void route(const sy::matrix<float>& scores) {
    const auto policy = sy::on_thrust(thrust::cpp::par);
#ifndef WITHOUT_MISTAKE
    static_cast<void>(sy::route_scores(sy::seq, sy::switch_router{}, sy::copy_to_device(policy, scores)));
#else
    static_cast<void>(policy);
    static_cast<void>(sy::route_scores(sy::seq, sy::switch_router{}, scores));
#endif
}
