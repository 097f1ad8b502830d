// Sinkhorn: a number per expert that, added to the scores, makes all experts equally probable. S-BASE's softly balanced
// choice is the k best of score + bias. The recipe takes it as a selection bias, with backward and kernels.
//
//   std::vector<float> bias(E);
//   const auto [rounds, residual] = sinkhorn_bias(policy, scores, {.temperature = 1}, {}, bias.data(), scratch);
//   recipe_router<> router{.k = 1, .score = score_function::sigmoid, .key = key_source::score,
//                          .selection_bias = {bias.data(), E}};
//
// The plan of transport that is nearest to exp(s / temperature), with mass 1 for each token and T / E for each expert,
// is pi_te = exp(s_te / temperature + f_t + g_e). Within a token f_t is the same for all experts, so that only g
// matters to the choice: bias_e = temperature g_e. A round takes pi as the softmax of s / temperature + g over each
// token's experts, and then
//
//   g_e += log(T / (E C_e)),   C_e = sum_t pi_te       until  residual = max_e |E C_e / T - 1| <= tolerance
//
// Everything is in the log domain, so that no temperature overflows. The sums are those of the load-balancing loss, in
// the same fixed order, so results are bitwise identical for any number of threads. Stopping at `rounds` is not an
// error: `residual`, of the last sums, says how even they were. Padding, and tokens with every expert forbidden, have
// no mass. An expert without mass keeps its number. The bias has the mean 0 over the experts that have mass.
//
// Probabilities are balanced, and loads only follow them: capacity still drops choices. Gates come from the scores
// without the bias: sigmoid for k = 1 and softmax otherwise are usual. At inference, choose without the bias: S-BASE is
// greedy there.
//
// Clark et al. 2022, arXiv 2202.01169. A round reads every score once, O(T E), by the row pass of the
// routers. Scratch from the workspace; nothing is allocated after the first call of a shape. CPU policies.
#pragma once

#include <switchyard/backend/policy.hpp>
#include <switchyard/core/arguments.hpp>
#include <switchyard/core/config.hpp>
#include <switchyard/core/error.hpp>
#include <switchyard/core/matrix_view.hpp>
#include <switchyard/core/simd.hpp>
#include <switchyard/core/workspace.hpp>
#include <switchyard/router/routing.hpp>
#include <switchyard/router/softmax_pass.hpp>
#include <switchyard/router/softmax_routing.hpp>

#include <algorithm>
#include <cmath>

namespace switchyard {

struct sinkhorn_settings {
    double temperature = 1;    ///< > 0; near 0 the plan is that of balanced assignment, and takes many rounds
    index_t rounds = 30;       ///< at most, >= 1
    double tolerance = 1e-2;   ///< >= 0, of the residual
    bool starts_warm = false;  ///< from what `bias` holds: the bias of the step before
    bad_scores bad = bad_scores::error;
};

struct sinkhorn_report {
    index_t rounds = 0;   ///< that were taken
    double residual = 0;  ///< max_e |E C_e / T - 1| over experts with mass, of the last round's sums
};

inline namespace SWITCHYARD_TARGET {

namespace detail {

/// A row pass for its column sums alone.
struct select_nothing {
    static constexpr bool needs_best = false;

    template <int W, class S>
    void choose(index_t, const S*, S, S, index_t, pack<S, W>, S*) const {}
    void padding(index_t) const {}
    void forbid_all(index_t) const {}
};

/// g moves by the logs of the mean over the sums; the residual of these sums.
template <class S>
double move_by_sums(const double* sums, index_t experts, S* g) {
    double mass = 0;
    double most = 0;
    for (index_t e = 0; e < experts; ++e) mass += sums[e];
    const double share = mass / static_cast<double>(experts);
    double mean = 0;
    index_t open = 0;
    for (index_t e = 0; e < experts; ++e) {
        if (!(sums[e] > 0)) continue;
        most = std::max(most, std::abs(sums[e] / share - 1));
        g[e] += static_cast<S>(std::log(share / sums[e]));
        mean += static_cast<double>(g[e]);
        ++open;
    }
    for (index_t e = 0; e < experts && open > 0; ++e) {
        if (sums[e] > 0) g[e] -= static_cast<S>(mean / static_cast<double>(open));
    }
    return most;
}

}  // namespace detail

/// bias[E] from scores[T, E].
template <host_policy Policy, class Scores>
sinkhorn_report sinkhorn_bias(const Policy& policy, const Scores& scores, const sinkhorn_settings& settings,
                              const token_mask& mask, float* bias, workspace& scratch) {
    const auto input = detail::token_view(scores);
    require_scores<Policy>(input, mask);
    require(settings.temperature > 0 && std::isfinite(settings.temperature), "temperature = ", settings.temperature,
            " must be finite and more than 0");
    require(settings.rounds >= 1, "rounds = ", settings.rounds, " must be at least 1");
    require(settings.tolerance >= 0, "tolerance = ", settings.tolerance, " must not be negative");
    require(bias != nullptr, "the bias is a null pointer");
    using storage = typename decltype(input)::value_type;
    using S = compute_t<storage>;
    constexpr index_t widest = 16;
    const auto scope = scratch.open();
    const index_t experts = input.columns;
    S* const g = scratch.take<S>(padded<widest>(experts));
    double* const sums = scratch.take<double>(experts);
    for (index_t e = 0; e < padded<widest>(experts); ++e) {
        g[e] = settings.starts_warm && e < experts ? static_cast<S>(static_cast<double>(bias[e]) / settings.temperature)
                                                   : S(0);
    }
    score_rows<storage, host_space> rows = score_rows_of(input, 0, {});
    rows.multiplier = static_cast<S>(1 / settings.temperature);
    require(std::isfinite(rows.multiplier) && rows.multiplier > 0, "temperature = ", settings.temperature,
            ": its inverse is beyond the type of the scores");
    rows.bias = g;
    const softmax_pass<decltype(rows), detail::select_nothing> pass{rows, mask, settings.bad, {}};
    sinkhorn_report report;
    do {
        const row_events events = run_softmax_pass(policy, pass, sums, scratch, [](index_t) {});
        raise_row_events(rows, events, true, settings.bad);
        report.residual = detail::move_by_sums(sums, experts, g);
        ++report.rounds;
    } while (report.residual > settings.tolerance && report.rounds < settings.rounds);
    for (index_t e = 0; e < experts; ++e) {
        bias[e] = static_cast<float>(static_cast<double>(g[e]) * settings.temperature);
    }
    return report;
}

}  // namespace SWITCHYARD_TARGET
}  // namespace switchyard
