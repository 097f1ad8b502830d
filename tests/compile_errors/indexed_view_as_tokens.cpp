// A view by indices claims direct access and has none.
// expect: Expressions and indexed views have no memory to point at: evaluate them first, as in
#include <switchyard/switchyard.hpp>

void move(const switchyard::plan<float>& plan, const Eigen::MatrixXf& x) {
    const auto rows = x(Eigen::seqN(0, 5, 2), Eigen::all);
#ifndef WITHOUT_MISTAKE
    static_cast<void>(switchyard::dispatch(switchyard::seq, plan, rows));
#else
    static_cast<void>(switchyard::dispatch(switchyard::seq, plan, rows.eval()));
#endif
}
