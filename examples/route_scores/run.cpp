#include "losses.hpp"
#include "measure.hpp"

#include <type_traits>
#include <variant>

#if defined(_OPENMP)
#include <omp.h>
#endif

namespace study {
namespace {

sy::expert_numbers<> numbers_of(const std::vector<float>& list) {
    return {list.empty() ? nullptr : list.data(), static_cast<index_t>(list.size())};
}

template <class Policy, class S>
routing run_on_cpu(const Policy& policy, const options& asked, router_kind router, const sy::matrix<S>& scores,
                   const inputs& given) {
    const sy::matrix<std::int32_t> ids = choices_of(asked, router, given, scores.rows(), scores.columns());
    const placed_inputs<sy::host_space> placed{
        .logit_bias = numbers_of(given.logit_bias),
        .bias = numbers_of(given.bias),
        .expert_scale = numbers_of(given.expert_scale),
        .choices = ids.view(),
        .mask = {given.mask.empty() ? nullptr : given.mask.data(), static_cast<index_t>(given.mask.size())},
        .offsets = given.offsets.empty() ? nullptr : given.offsets.data(),
        .sequences = given.sequences()};
    sy::plan<S> plan;
    sy::workspace scratch;
    routing made;
    with_router(asked, router, placed, [&](const auto& how, const sy::run_mode& mode) {
        const double milliseconds =
            measured(asked.repeat, [&] { sy::route_scores(policy, how, scores, mode, plan, scratch); });
        made = routing_of(asked, router, plan.view(), scores, given);
        made.milliseconds = milliseconds;
        const auto losses = losses_of_run(policy, asked, placed, how, mode, scores, plan, scratch);
        losses.report(made);
        if (given.gradients && mode.is_training) {
            const auto d_gates = gate_gradients_of(asked, router, plan.view(), *given.gradients);
            sy::matrix<S> d_scores(scores.rows(), scores.columns());
            sy::route_scores_backward(policy, how, plan, scores, d_gates, d_scores, scratch);
            losses.add_gradient(d_scores);
            made.d_scores.assign(d_scores.data(), d_scores.data() + d_scores.rows() * d_scores.columns());
        }
    });
    made.formats = format_arrays_of(asked, plan);
    return made;
}

}  // namespace

int threads_of(const options& asked) {
    if (asked.policy == policy_kind::seq) {
        return 1;
    }
#if defined(_OPENMP)
    return asked.threads > 0 ? asked.threads : omp_get_max_threads();
#else
    return 1;
#endif
}

void require_built_in(const options& asked) {
    sy::require(asked.backend != backend_kind::thrust || has_thrust(),
                "--backend thrust is not built into this program: Thrust was not found when it was built");
#if !defined(_OPENMP)
    sy::require(asked.policy != policy_kind::par, "--policy par is not built into this program: it needs OpenMP");
#endif
}

inputs read_inputs(const options& asked) {
    inputs given{.scores = read_scores(asked.scores)};
    const auto [tokens, experts] =
        std::visit([](const auto& table) { return std::pair(table.rows(), table.columns()); }, given.scores);
    const auto read = [experts = experts](const std::string& path, std::vector<float>& numbers) {
        if (!path.empty()) numbers = read_expert_numbers(path, experts);
    };
    read(asked.top_k.logit_bias, given.logit_bias);
    read(asked.top_k.bias, given.bias);
    read(asked.top_k.expert_scale, given.expert_scale);
    if (!asked.choices.empty()) given.choices = read_ids(asked.choices);
    sy::require(asked.choices.empty() || given.choices.rows() == tokens, asked.choices, ": has ", given.choices.rows(),
                " rows for T = ", tokens, " tokens");
    if (!asked.table.empty()) given.table = read_ids(asked.table);
    if (!asked.token_ids.empty()) given.token_ids = read_ids(asked.token_ids);
    sy::require(asked.token_ids.empty() || (given.token_ids.rows() == tokens && given.token_ids.columns() == 1),
                asked.token_ids, ": is ", given.token_ids.rows(), " x ", given.token_ids.columns(),
                "; it needs T = ", tokens, " token ids");
    if (!asked.mask.empty()) given.mask = read_mask(asked.mask, tokens);
    if (!asked.sequences.empty()) given.offsets = read_offsets(asked.sequences, tokens);
    sy::require(!asked.sequence_length || tokens % *asked.sequence_length == 0, "--sequence-length ",
                asked.sequence_length.value_or(0), " does not divide T = ", tokens);
    if (!asked.gradients.empty()) given.gradients = read_table_beside(asked.gradients, tokens, experts);
    return given;
}

routing run_router(const options& asked, router_kind router, const inputs& given) {
    if (asked.backend == backend_kind::thrust) {
        return run_router_on_thrust(asked, router, given);
    }
    return std::visit(
        [&](const auto& table) {
#if defined(_OPENMP)
            if (asked.policy == policy_kind::par) {
                return run_on_cpu(sy::par_on(sy::openmp{.threads = asked.threads}), asked, router, table, given);
            }
#endif
            return run_on_cpu(sy::seq, asked, router, table, given);
        },
        given.scores);
}

}  // namespace study
