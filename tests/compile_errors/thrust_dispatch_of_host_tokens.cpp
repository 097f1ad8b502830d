// A device plan, and tokens that lie on the host.
// expect: an argument does not lie in the memory this policy works in
#include <switchyard/thrust.hpp>

namespace sy = switchyard;

void move(const sy::basic_plan<float, sy::thrust_memory<thrust::cpp::tag>>& plan, const sy::matrix<float>& x) {
    const auto policy = sy::on_thrust(thrust::cpp::par);
#ifndef WITHOUT_MISTAKE
    static_cast<void>(sy::dispatch(policy, plan, x));
#else
    static_cast<void>(sy::dispatch(policy, plan, sy::copy_to_device(policy, x)));
#endif
}
