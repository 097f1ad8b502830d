// switchyard on Thrust: the umbrella for CUDA, OpenMP and TBB through Thrust. Includes, nothing else, and no Eigen: it
// is meant for .cu files, too. See backend/thrust.hpp for policies, memory, what waits and what allocates.
#pragma once

#include <switchyard/version.hpp>

#include <switchyard/backend/thrust.hpp>

#include <switchyard/assignment/device_auction.hpp>

#include <switchyard/score/device_projection.hpp>
#include <switchyard/score/initialisation.hpp>

#include <switchyard/plan/device_plan.hpp>
#include <switchyard/plan/device_slots.hpp>
#include <switchyard/plan/statistics.hpp>

#include <switchyard/router/base.hpp>
#include <switchyard/router/device_base.hpp>
#include <switchyard/router/device_routing.hpp>
#include <switchyard/router/route.hpp>
#include <switchyard/router/switch.hpp>
#include <switchyard/router/top_k.hpp>

#include <switchyard/dispatch/combine.hpp>
#include <switchyard/dispatch/device_rows.hpp>
#include <switchyard/dispatch/dispatch.hpp>
