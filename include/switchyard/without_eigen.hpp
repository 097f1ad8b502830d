// switchyard for the CPU, but for what touches Eigen: switchyard.hpp without backend/eigen.hpp. Includes, nothing else.
//
// Matrix arguments are then views (core/matrix_view.hpp), switchyard::matrix, or your own types.
#pragma once

#include <switchyard/core/macros_off.hpp>

#include <switchyard/version.hpp>

#include <switchyard/core/config.hpp>
#include <switchyard/core/error.hpp>
#include <switchyard/core/matrix_view.hpp>
#include <switchyard/core/memory.hpp>
#include <switchyard/core/philox.hpp>
#include <switchyard/core/scalar_traits.hpp>
#include <switchyard/core/simd.hpp>
#include <switchyard/core/workspace.hpp>

#include <switchyard/backend/multiply.hpp>
#include <switchyard/backend/policy.hpp>

#include <switchyard/score/cosine.hpp>
#include <switchyard/score/gates.hpp>
#include <switchyard/score/groups.hpp>
#include <switchyard/score/initialisation.hpp>
#include <switchyard/score/keys.hpp>
#include <switchyard/score/noise.hpp>
#include <switchyard/score/noisy_scores.hpp>
#include <switchyard/score/projection.hpp>
#include <switchyard/score/score_function.hpp>
#include <switchyard/score/select.hpp>
#include <switchyard/score/sigmoid.hpp>
#include <switchyard/score/softcap.hpp>
#include <switchyard/score/softmax.hpp>
#include <switchyard/score/sqrt_softplus.hpp>

#include <switchyard/plan/capacity.hpp>
#include <switchyard/plan/choices.hpp>
#include <switchyard/plan/counts.hpp>
#include <switchyard/plan/layout.hpp>
#include <switchyard/plan/plan.hpp>
#include <switchyard/plan/slots.hpp>
#include <switchyard/plan/statistics.hpp>

#include <switchyard/balance/balance_loss.hpp>
#include <switchyard/balance/importance_loss.hpp>
#include <switchyard/balance/load_balancing_loss.hpp>
#include <switchyard/balance/load_loss.hpp>
#include <switchyard/balance/score_loss.hpp>
#include <switchyard/balance/token_sequences.hpp>
#include <switchyard/balance/z_loss.hpp>

#include <switchyard/assignment/assignment.hpp>
#include <switchyard/assignment/auction.hpp>
#include <switchyard/assignment/hungarian.hpp>
#include <switchyard/assignment/quotas.hpp>

#include <switchyard/router/base.hpp>
#include <switchyard/router/bias_state.hpp>
#include <switchyard/router/bias_update.hpp>
#include <switchyard/router/finished_gates.hpp>
#include <switchyard/router/given_choices.hpp>
#include <switchyard/router/gshard.hpp>
#include <switchyard/router/models.hpp>
#include <switchyard/router/quantile_bias.hpp>
#include <switchyard/router/recipe.hpp>
#include <switchyard/router/route.hpp>
#include <switchyard/router/route_choices.hpp>
#include <switchyard/router/routing.hpp>
#include <switchyard/router/rowless.hpp>
#include <switchyard/router/saved_plan.hpp>
#include <switchyard/router/sinkhorn.hpp>
#include <switchyard/router/sparse_mixer.hpp>
#include <switchyard/router/switch.hpp>
#include <switchyard/router/top_k.hpp>

#include <switchyard/dispatch/combine.hpp>
#include <switchyard/dispatch/dispatch.hpp>
#include <switchyard/dispatch/identity_rows.hpp>
#include <switchyard/dispatch/zero_rest.hpp>

#include <switchyard/formats/aligned_blocks.hpp>
#include <switchyard/formats/bins.hpp>
#include <switchyard/formats/by_token.hpp>
#include <switchyard/formats/choices.hpp>
#include <switchyard/formats/masked.hpp>
#include <switchyard/formats/one_hot.hpp>
#include <switchyard/formats/ranks.hpp>
#include <switchyard/formats/routing_map.hpp>
#include <switchyard/formats/rows.hpp>

#include <switchyard/layer/layer_state.hpp>

#include <switchyard/core/macros_on.hpp>
