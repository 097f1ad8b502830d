// Host numbers handed to a Thrust policy: refused by type, even where they would happen to be readable.
// expect: the scores do not lie in the memory this policy works in
#include <switchyard/thrust.hpp>

namespace sy = switchyard;

void route(const sy::matrix<float>& scores) {
    const auto policy = sy::on_thrust(thrust::cpp::par);
#ifndef WITHOUT_MISTAKE
    static_cast<void>(sy::route_scores(policy, sy::switch_router{}, scores));
#else
    static_cast<void>(sy::route_scores(policy, sy::switch_router{}, sy::copy_to_device(policy, scores)));
#endif
}
