// D numbers of one token in a vector.
// expect: One token is a row: pass v.transpose()
#include <switchyard/switchyard.hpp>

void route(const Eigen::VectorXf& x, const Eigen::MatrixXf& w) {
#ifndef WITHOUT_MISTAKE
    static_cast<void>(switchyard::route(switchyard::seq, switchyard::switch_router{}, x, w));
#else
    static_cast<void>(switchyard::route(switchyard::seq, switchyard::switch_router{}, x.transpose(), w));
#endif
}
