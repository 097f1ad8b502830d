// The gradient of a router's scores beside central differences.
#pragma once

#include "reference/numeric.hpp"
#include "support/routed.hpp"

#include <doctest/doctest.h>

namespace switchyard_test {

/// How far a training step's gradient of the scores is from central differences, for the weights `d_gates` of the gates
/// and the losses. Choices are held fixed: a step across a tie would be no derivative.
template <class Router>
double score_gradient_error(const Router& router, const ref::matrix& scores, const ref::matrix& d_gates,
                            const ref::mask_list& mask = {}) {
    const auto plan = routed<double>(router, scores, training_with(mask));
    const auto numeric = numeric_gradient(
        [&](const ref::matrix& at) {
            const auto there = routed<double>(router, at, training_with(mask));
            REQUIRE(experts_of(there.view()) == experts_of(plan.view()));
            REQUIRE(slots_of(there.view()) == slots_of(plan.view()));
            return inner(gates_of(there.view()), d_gates) + there.load_balancing_loss() + there.z_loss();
        },
        scores);
    return difference(routed_backward(router, plan, scores, d_gates), numeric);
}

}  // namespace switchyard_test
