// All of routing on device policies, whichever they are: what cuda.hpp and thrust.hpp have in common. Includes, nothing
// else.
#pragma once

#include <switchyard/core/macros_off.hpp>

#include <switchyard/backend/device.hpp>
#include <switchyard/backend/measure.hpp>

#include <switchyard/assignment/device_auction.hpp>

#include <switchyard/score/cosine.hpp>
#include <switchyard/score/device_projection.hpp>
#include <switchyard/score/initialisation.hpp>
#include <switchyard/score/noisy_scores.hpp>

#include <switchyard/plan/choices.hpp>
#include <switchyard/plan/counts.hpp>
#include <switchyard/plan/device_plan.hpp>
#include <switchyard/plan/device_slots.hpp>
#include <switchyard/plan/layout.hpp>
#include <switchyard/plan/statistics.hpp>

#include <switchyard/balance/balance_loss.hpp>
#include <switchyard/balance/importance_loss.hpp>
#include <switchyard/balance/load_loss.hpp>
#include <switchyard/balance/score_loss.hpp>
#include <switchyard/balance/token_sequences.hpp>

#include <switchyard/router/base.hpp>
#include <switchyard/router/bias_state.hpp>
#include <switchyard/router/bias_update.hpp>
#include <switchyard/router/device_base.hpp>
#include <switchyard/router/device_quantile.hpp>
#include <switchyard/router/device_routing.hpp>
#include <switchyard/router/gshard.hpp>
#include <switchyard/router/quantile_bias.hpp>
#include <switchyard/router/recipe.hpp>
#include <switchyard/router/route.hpp>
#include <switchyard/router/route_choices.hpp>
#include <switchyard/router/saved_plan.hpp>
#include <switchyard/router/sparse_mixer.hpp>
#include <switchyard/router/switch.hpp>
#include <switchyard/router/top_k.hpp>

#include <switchyard/dispatch/combine.hpp>
#include <switchyard/dispatch/device_rows.hpp>
#include <switchyard/dispatch/dispatch.hpp>
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
