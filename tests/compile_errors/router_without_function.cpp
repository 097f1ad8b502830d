// Settings alone are no router.
// expect: a router needs a function route_scores(policy, router, scores, const run_mode&, plan, workspace) in its own
#include <switchyard/switchyard.hpp>

struct no_router {};

void route(const Eigen::MatrixXf& scores, switchyard::plan<float>& plan, switchyard::workspace& scratch) {
#ifndef WITHOUT_MISTAKE
    const no_router router;
#else
    const switchyard::switch_router router;
#endif
    switchyard::route_scores(switchyard::seq, router, scores, switchyard::training{}, plan, scratch);
}
