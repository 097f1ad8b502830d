// An expression has no numbers of its own to point at.
// expect: an argument cannot be viewed as a matrix
// expect: Expressions and indexed views have no memory to point at: evaluate them first, as in
#include <switchyard/switchyard.hpp>

void route(const Eigen::MatrixXf& scores) {
#ifndef WITHOUT_MISTAKE
    static_cast<void>(switchyard::route_scores(switchyard::seq, switchyard::switch_router{}, scores + scores));
#else
    static_cast<void>(switchyard::route_scores(switchyard::seq, switchyard::switch_router{}, (scores + scores).eval()));
#endif
}
