// What a consumer of switchyard::thrust builds: a few tokens routed on a system of Thrust's.
#include <switchyard/thrust.hpp>

#include <cstdio>

namespace sy = switchyard;

int main() {
    const auto device = sy::on_thrust(thrust::cpp::par);
    const float scores[] = {1, 2, 3, 6, 5, 4, 7, 9, 8, 0, 0, 1};
    const sy::matrix_view<const float, decltype(device)::memory::space> view(scores, 4, 3);
    const auto plan = sy::copy_to_host(device, sy::route_scores(device, sy::top_k_router{.k = 2}, view));
    std::printf("on Thrust token 1 goes to expert %d\n", plan.expert()(1, 0));
    return plan.expert()(1, 0) == 0 && plan.kept() == 8 ? 0 : 1;
}
