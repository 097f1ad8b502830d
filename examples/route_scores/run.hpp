// Runs one router over the scores and takes down what it did, whatever backend did it.
#pragma once

#include "formats.hpp"
#include "npy.hpp"
#include "options.hpp"

#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

namespace study {

/// What a router did, in ordinary memory.
struct routing {
    router_kind router = router_kind::switch_router;
    index_t tokens = 0;
    index_t experts = 0;  ///< E, those with rows
    index_t columns = 0;  ///< of the scores: and those without
    index_t choices = 1;  ///< k
    std::optional<index_t> capacity{};

    std::vector<std::int32_t> chosen{};       ///< [T, k] the expert, kept or dropped
    std::vector<std::int32_t> slots{};        ///< [T, k] -1 where dropped
    std::vector<float> gates{};               ///< [T, k] 0 where dropped, kept of experts without rows
    std::vector<std::int64_t> offsets{};      ///< [E + 1]
    std::vector<std::int64_t> order{};        ///< [kept]
    std::vector<std::int64_t> load_before{};  ///< [E]
    std::vector<std::int64_t> load_after{};   ///< [E]

    std::optional<double> load_balancing_loss{};  ///< weight included; base and greedy have none
    std::optional<double> z_loss{};
    std::vector<std::pair<loss_kind, double>> losses{};  ///< those asked for, in their order, without weights
    double load_variation = 0;                           ///< coefficient of variation of load_before
    double total_score = 0;                              ///< the file's scores over kept choices
    double milliseconds = 0;                             ///< median of the measured runs

    index_t asked = 0;               ///< choices that name an expert with rows
    index_t rowless = 0;             ///< choices of experts without rows
    std::vector<double> d_scores{};  ///< [T, E] where asked for
    bool is_double = false;          ///< scores are float64

    std::vector<double> d_noise_scores{};   ///< [T, E] of noisy_top_k, where asked for
    std::vector<double> d_tokens{};         ///< [T, width] of cosine, where asked for
    std::vector<double> d_embeddings{};     ///< [E, width], the same
    std::optional<double> d_temperature{};  ///< the same
    index_t width = 0;
    std::optional<double> importance_loss{};  ///< of noisy_top_k, weight included
    std::optional<double> load_loss{};        ///< the same
    std::optional<index_t> bias_rounds{};     ///< of sinkhorn and quantile
    std::optional<double> bias_residual{};    ///< of sinkhorn

    std::vector<format_array> formats{};

    index_t kept() const { return static_cast<index_t>(order.size()); }
    index_t dropped() const { return asked - kept(); }
};

/// The files beside the scores, as far as they are asked for.
struct inputs {
    score_table scores;
    std::vector<float> logit_bias{}, bias{}, expert_scale{};  ///< [E] or empty
    std::vector<std::uint8_t> mask{};                         ///< [T] or empty
    std::vector<std::int64_t> offsets{};                      ///< [B + 1] of sequences, or empty
    std::optional<score_table> gradients{};                   ///< [T, E]
    std::optional<score_table> noise_scores{};                ///< [T, E] of noisy_top_k
    std::optional<score_table> tokens{}, embeddings{};        ///< [T, D] and [E, D] of cosine
    std::optional<score_table> cosines{};                     ///< [T, E] of these, unless they are the scores
    sy::matrix<std::int32_t> choices{};                       ///< [T, k] of replay
    sy::matrix<std::int32_t> token_ids{}, table{};            ///< [T, 1] and [V, k] of hash

    /// Of the offsets; 1 without.
    index_t sequences() const { return offsets.empty() ? 1 : static_cast<index_t>(offsets.size()) - 1; }
};

inputs read_inputs(const options& asked);

/// Routes the scores, first once unmeasured, which makes plan and workspace as large as they need to be, then
/// `asked.repeat` times measured. Bad input throws switchyard::error.
routing run_router(const options& asked, router_kind router, const inputs& given);

/// Fails with an error message where the backend or the policy asked for is not built in.
void require_built_in(const options& asked);

/// The part of it that runs on Thrust, in run_thrust.cpp, and whether this program has it.
routing run_router_on_thrust(const options& asked, router_kind router, const score_table& scores, const inputs& given);
bool has_thrust();

/// Threads that the policy uses.
int threads_of(const options& asked);

}  // namespace study
