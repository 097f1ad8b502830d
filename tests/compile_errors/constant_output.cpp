// What is written must not be constant.
// expect: an output is constant: it cannot be written
#include <switchyard/switchyard.hpp>

#ifndef WITHOUT_MISTAKE
using output = const Eigen::MatrixXf;
#else
using output = Eigen::MatrixXf;
#endif

void sum(const switchyard::plan<float>& plan, const Eigen::MatrixXf& rows, output& y) {
    switchyard::combine(switchyard::seq, plan, rows, y);
}
