// --backend thrust: Thrust's CPU systems, CPP for policy seq and OMP for policy par. Where Thrust was not found the
// program is built without it, and says so when it is asked for.
#include "losses.hpp"
#include "measure.hpp"

#if defined(SWITCHYARD_EXAMPLE_HAS_THRUST)
#include <switchyard/thrust.hpp>
#if defined(_OPENMP)
#include <thrust/system/omp/execution_policy.h>

#include <omp.h>
#endif
#endif

#include <optional>
#include <span>
#include <variant>

namespace study {
#if defined(SWITCHYARD_EXAMPLE_HAS_THRUST)
namespace {

/// Scores go to the policy's memory, a plan comes back; only what lies between is measured.
template <class Policy, class S>
routing run_on(const Policy& policy, const options& asked, router_kind router, const sy::matrix<S>& scores,
               const inputs& given) {
    const auto logit_bias = sy::copy_to_device(policy, std::span(given.logit_bias));
    const found_bias found = find_bias(sy::seq, asked, router, scores, given);
    const auto bias = sy::copy_to_device(policy, std::span(finds_bias(router) ? found.numbers : given.bias));
    const auto expert_scale = sy::copy_to_device(policy, std::span(given.expert_scale));
    const auto sequences = sy::copy_to_device(policy, std::span(given.offsets));
    const sy::matrix<std::int32_t> ids = choices_of(asked, router, given, scores.rows(), scores.columns());
    const std::vector<std::uint8_t> counted = mask_of(given, ids, scores.columns());
    const auto mask = sy::copy_to_device(policy, std::span(counted));
    const auto device_ids = sy::copy_to_device(
        policy, std::span<const std::int32_t>(ids.data(), static_cast<std::size_t>(ids.rows() * ids.columns())));
    const auto numbers_of = [](const auto& list) {
        return sy::expert_numbers<typename Policy::memory::space>{list.size() == 0 ? nullptr : list.data(),
                                                                  list.size()};
    };
    const placed_inputs<typename Policy::memory::space> placed{
        .logit_bias = numbers_of(logit_bias),
        .bias = numbers_of(bias),
        .expert_scale = numbers_of(expert_scale),
        .choices = {device_ids.data(), ids.rows(), ids.columns()},
        .mask = counted.empty() ? sy::token_mask{} : sy::token_mask_of(mask),
        .offsets = given.offsets.empty() ? nullptr : sequences.data(),
        .sequences = given.sequences()};
    const auto device_scores = sy::copy_to_device(policy, scores);
    sy::basic_plan<S, typename Policy::memory> plan;
    sy::device_workspace<Policy> scratch;
    routing result;
    std::optional<noisy_run<Policy, S>> noise;
    if (router == router_kind::noisy_top_k) {
        noise.emplace(policy, asked, recipe_of(asked, router).k,
                      sy::copy_to_device(policy, converted<S>(*given.noise_scores)), device_scores, placed.mask);
    }
    const auto& routed = noise ? noise->noisy() : device_scores;
    with_router(asked, router, placed, [&](const auto& how, const sy::run_mode& mode) {
        const double milliseconds = measured(asked.repeat, [&] {
            sy::route_scores(policy, how, routed, mode, plan, scratch);
            sy::check(policy, plan);
        });
        sy::plan<S> made = sy::copy_to_host(policy, plan);
        result = routing_of(asked, router, made.view(), scores, given);
        result.milliseconds = milliseconds + found.milliseconds;
        result.bias_rounds = found.rounds;
        result.bias_residual = found.residual;
        if (noise) result.load_loss = noise->load_loss();
        const auto losses = losses_of_run(policy, asked, placed, how, mode, routed, plan, scratch);
        losses.report(result);
        if (given.gradients && mode.is_training) {
            auto d_gates = sy::copy_to_device(policy, gate_gradients_of(asked, router, made.view(), *given.gradients));
            losses.add_gradient_of_gates(result, d_gates);
            sy::matrix<S, typename Policy::memory> d_scores(scores.rows(), scores.columns());
            sy::route_scores_backward(policy, how, plan, routed, d_gates, d_scores, scratch);
            losses.add_gradient(d_scores);
            if (noise) {
                const auto d_noise = sy::copy_to_host(policy, noise->go_back(d_scores));
                result.d_noise_scores.assign(d_noise.data(), d_noise.data() + d_noise.rows() * d_noise.columns());
            }
            const auto back = sy::copy_to_host(policy, d_scores);
            result.d_scores.assign(back.data(), back.data() + back.rows() * back.columns());
        }
        result.formats = format_arrays_of(asked, made);
    });
    return result;
}

}  // namespace

bool has_thrust() { return true; }

routing run_router_on_thrust(const options& asked, router_kind router, const score_table& scores, const inputs& given) {
    return std::visit(
        [&](const auto& table) {
#if defined(_OPENMP)
            if (asked.policy == policy_kind::par) {
                omp_set_num_threads(threads_of(asked));
                return run_on(sy::on_thrust(thrust::omp::par), asked, router, table, given);
            }
#endif
            return run_on(sy::on_thrust(thrust::cpp::par), asked, router, table, given);
        },
        scores);
}
#else
bool has_thrust() { return false; }

routing run_router_on_thrust(const options&, router_kind, const score_table&, const inputs&) {
    sy::fail("--backend thrust is not built into this program");
}
#endif
}  // namespace study
