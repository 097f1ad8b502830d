// Routing by kernels: device.hpp, and what kernel policies do better than one thread per index. Includes, nothing else.
#pragma once

#include <switchyard/core/macros_off.hpp>

#include <switchyard/backend/kernel.hpp>
#include <switchyard/backend/kernel_primitives.hpp>
#include <switchyard/device.hpp>

#include <switchyard/assignment/kernel_auction.hpp>
#include <switchyard/assignment/kernel_hungarian.hpp>

#include <switchyard/plan/kernel_slots.hpp>

#include <switchyard/router/kernel_base.hpp>
#include <switchyard/router/kernel_routing.hpp>

#include <switchyard/dispatch/kernel_rows.hpp>

#include <switchyard/core/macros_on.hpp>
