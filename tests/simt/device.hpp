// The device of tests/thrust/*_test.cpp when they run on the executor: set `executor_of_tests` to the order to run in.
#pragma once

#include "simt/executor.hpp"

#include <switchyard/device.hpp>

namespace switchyard_test {

inline simt::executor executor_of_tests;
inline const simt::policy device{&executor_of_tests};

}  // namespace switchyard_test
