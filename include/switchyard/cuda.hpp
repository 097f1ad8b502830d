// switchyard on CUDA: the umbrella for .cu files. Includes, nothing else. See backend/cuda.hpp for the policy, memory,
// what waits and what allocates; docs/gpu.md for what each call launches and moves.
#pragma once

#include <switchyard/core/macros_off.hpp>

#include <switchyard/version.hpp>

#include <switchyard/backend/cuda.hpp>
#include <switchyard/kernels.hpp>

#include <switchyard/core/macros_on.hpp>
