// E scores in a vector are one token, and a vector is a column.
// expect: One token is a row: pass v.transpose()
#include <switchyard/switchyard.hpp>

void route(const Eigen::VectorXf& scores) {
#ifndef WITHOUT_MISTAKE
    static_cast<void>(switchyard::route_scores(switchyard::seq, switchyard::switch_router{}, scores));
#else
    static_cast<void>(switchyard::route_scores(switchyard::seq, switchyard::switch_router{}, scores.transpose()));
#endif
}
