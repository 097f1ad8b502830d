// switchyard: Mixture-of-Experts routing. The CPU umbrella: includes, nothing else.
#pragma once

#include <switchyard/core/macros_off.hpp>

#include <switchyard/backend/eigen.hpp>
#include <switchyard/without_eigen.hpp>

#include <switchyard/core/macros_on.hpp>
