// switchyard on Thrust: the umbrella for CUDA, OpenMP and TBB through Thrust. Includes, nothing else, and no Eigen: it
// is meant for .cu files, too. See backend/thrust.hpp for policies, memory, what waits and what allocates.
#pragma once

#include <switchyard/core/macros_off.hpp>

#include <switchyard/version.hpp>

#include <switchyard/backend/thrust.hpp>
#include <switchyard/device.hpp>

#include <switchyard/core/macros_on.hpp>
