#include "losses.hpp"
#include "measure.hpp"

#include <algorithm>
#include <type_traits>
#include <utility>
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
    const std::vector<std::uint8_t> mask = mask_of(given, ids, scores.columns());
    const found_bias found = find_bias(policy, asked, router, scores, given);
    const placed_inputs<sy::host_space> placed{
        .logit_bias = numbers_of(given.logit_bias),
        .bias = numbers_of(finds_bias(router) ? found.numbers : given.bias),
        .expert_scale = numbers_of(given.expert_scale),
        .choices = ids.view(),
        .mask = {mask.empty() ? nullptr : mask.data(), static_cast<index_t>(mask.size())},
        .offsets = given.offsets.empty() ? nullptr : given.offsets.data(),
        .sequences = given.sequences()};
    sy::plan<S> plan;
    sy::workspace scratch;
    routing made;
    std::optional<noisy_run<Policy, S>> noise;
    if (router == router_kind::noisy_top_k) {
        noise.emplace(policy, asked, recipe_of(asked, router).k, converted<S>(*given.noise_scores), scores,
                      placed.mask);
    }
    const sy::matrix<S>& routed = noise ? noise->noisy() : scores;
    with_router(asked, router, placed, [&](const auto& how, const sy::run_mode& mode) {
        const double milliseconds =
            measured(asked.repeat, [&] { sy::route_scores(policy, how, routed, mode, plan, scratch); });
        made = routing_of(asked, router, plan.view(), scores, given);
        made.milliseconds = milliseconds + found.milliseconds;
        made.bias_rounds = found.rounds;
        made.bias_residual = found.residual;
        if (noise) made.load_loss = noise->load_loss();
        const auto losses = losses_of_run(policy, asked, placed, how, mode, routed, plan, scratch);
        losses.report(made);
        if (given.gradients && mode.is_training) {
            auto d_gates = gate_gradients_of(asked, router, plan.view(), *given.gradients);
            losses.add_gradient_of_gates(made, d_gates);
            sy::matrix<S> d_scores(scores.rows(), scores.columns());
            sy::route_scores_backward(policy, how, plan, routed, d_gates, d_scores, scratch);
            losses.add_gradient(d_scores);
            if (noise) {
                const sy::matrix<S> d_noise = noise->go_back(d_scores);
                made.d_noise_scores.assign(d_noise.data(), d_noise.data() + d_noise.rows() * d_noise.columns());
            }
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

namespace {

std::pair<index_t, index_t> shape_of(const score_table& table) {
    return std::visit([](const auto& numbers) { return std::pair(numbers.rows(), numbers.columns()); }, table);
}

sy::cosine_settings cosine_of(const options& asked, const inputs& given) {
    return {.temperature = temperature_of(asked, router_kind::cosine),
            .mask = {given.mask.empty() ? nullptr : given.mask.data(), static_cast<index_t>(given.mask.size())}};
}

/// The scores of router cosine, in the type of its tokens.
void find_cosines(const options& asked, inputs& given) {
    std::visit(
        [&](const auto& tokens) {
            using S = std::remove_cvref_t<decltype(tokens(0, 0))>;
            const sy::matrix<S> embeddings = converted<S>(*given.embeddings);
            sy::matrix<S> scores(tokens.rows(), embeddings.rows());
            sy::workspace scratch;
            sy::cosine_scores(sy::seq, tokens, embeddings, cosine_of(asked, given), scores, scratch);
            given.cosines = std::move(scores);
        },
        *given.tokens);
}

/// Gradients of the cosine scores go on to tokens, embeddings and temperature.
void differentiate_cosines(const options& asked, const inputs& given, routing& made) {
    std::visit(
        [&](const auto& tokens) {
            using S = std::remove_cvref_t<decltype(tokens(0, 0))>;
            const sy::matrix<S> embeddings = converted<S>(*given.embeddings);
            sy::matrix<S> d_scores(made.tokens, made.experts);
            std::transform(made.d_scores.begin(), made.d_scores.end(), d_scores.data(),
                           [](double d) { return static_cast<S>(d); });
            sy::matrix<S> d_tokens(tokens.rows(), tokens.columns());
            sy::matrix<S> d_embeddings(embeddings.rows(), embeddings.columns());
            sy::workspace scratch;
            double d_temperature = 0;
            sy::cosine_scores_backward(sy::seq, tokens, embeddings, cosine_of(asked, given), d_scores, d_tokens,
                                       d_embeddings, &d_temperature, scratch);
            made.d_tokens.assign(d_tokens.data(), d_tokens.data() + d_tokens.rows() * d_tokens.columns());
            made.d_embeddings.assign(d_embeddings.data(),
                                     d_embeddings.data() + d_embeddings.rows() * d_embeddings.columns());
            made.d_temperature = d_temperature;
        },
        *given.tokens);
}

/// One router over some scores.
routing run_scores(const options& asked, router_kind router, const score_table& scores, const inputs& given) {
    if (asked.backend == backend_kind::thrust) {
        return run_router_on_thrust(asked, router, scores, given);
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
        scores);
}

/// Tokens and embeddings of one width, and of the shape of the scores where there are any.
void read_cosine(const options& asked, inputs& given) {
    given.tokens = read_scores(asked.own.tokens);
    given.embeddings = read_scores(asked.own.embeddings);
    const auto [tokens, width] = shape_of(*given.tokens);
    const auto [experts, own_width] = shape_of(*given.embeddings);
    sy::require(width == own_width, asked.own.embeddings, ": is ", experts, " x ", own_width, "; it needs D = ", width,
                " columns, as the tokens have");
    if (asked.scores.empty()) return;
    const auto [rows, columns] = shape_of(given.scores);
    sy::require(tokens == rows && experts == columns, "the scores are ", rows, " x ", columns, " for T = ", tokens,
                " tokens and E = ", experts, " embeddings");
}

}  // namespace

inputs read_inputs(const options& asked) {
    inputs given;
    if (!asked.scores.empty()) given.scores = read_scores(asked.scores);
    if (asked.chooses(router_kind::cosine)) read_cosine(asked, given);
    const auto [tokens, experts] = asked.scores.empty()
                                       ? std::pair(shape_of(*given.tokens).first, shape_of(*given.embeddings).first)
                                       : shape_of(given.scores);
    const auto read = [](const std::string& path, index_t count, std::vector<float>& numbers) {
        if (!path.empty()) numbers = read_expert_numbers(path, count);
    };
    read(asked.top_k.logit_bias, experts, given.logit_bias);
    read(asked.top_k.bias, experts - shared_experts_of(asked), given.bias);
    read(asked.top_k.expert_scale, experts, given.expert_scale);
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
    if (asked.chooses(router_kind::cosine)) find_cosines(asked, given);
    if (asked.scores.empty()) {
        given.scores = std::move(*given.cosines);
        given.cosines.reset();
    }
    if (!asked.own.noise_scores.empty()) {
        given.noise_scores = read_table_beside(asked.own.noise_scores, tokens, experts);
    }
    if (!asked.gradients.empty()) given.gradients = read_table_beside(asked.gradients, tokens, experts);
    return given;
}

routing run_router(const options& asked, router_kind router, const inputs& given) {
    if (router == router_kind::cosine) {
        routing made = run_scores(asked, router, given.cosines ? *given.cosines : given.scores, given);
        made.width = shape_of(*given.tokens).second;
        if (given.gradients) differentiate_cosines(asked, given, made);
        return made;
    }
    return run_scores(asked, router, given.scores, given);
}

}  // namespace study
