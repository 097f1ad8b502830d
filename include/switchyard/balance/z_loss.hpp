// The router z-loss: loss = weight * (1 / N) sum_t logsumexp(s_t)^2 over the N unmasked tokens.
//
// It keeps logits small, so that low-precision experts see small numbers. Its input is the scores, not the
// probabilities. Gradient: d loss / d s_te = weight * 2 / N * logsumexp(s_t) * p_te. A token with every expert
// forbidden contributes 0. Zoph et al. 2022, "ST-MoE", arXiv 2202.08906, equation 5; weight 1e-3.
#pragma once

#include <switchyard/core/config.hpp>
#include <switchyard/core/rounding.hpp>

#include <cmath>

namespace switchyard {
inline namespace SWITCHYARD_TARGET {

/// logsumexp of a row from its statistics; 0 for rows that count nowhere (their sum is 0).
template <class S>
SWITCHYARD_HD double row_logsumexp(S row_maximum, S row_sum) {
    return row_sum > S(0) ? static_cast<double>(row_maximum) + std::log(static_cast<double>(row_sum)) : 0.0;
}

/// A row's term of the sum that `z_loss` takes.
template <class S>
SWITCHYARD_HD double squared_logsumexp(S row_maximum, S row_sum) {
    const double logsumexp = row_logsumexp(row_maximum, row_sum);
    return rounded_times(logsumexp, logsumexp);  // and not fused with the sum that it goes into
}

SWITCHYARD_HD inline double z_loss(double weight, double squares, index_t counted_tokens) {
    return counted_tokens == 0 ? 0.0 : weight * squares / static_cast<double>(counted_tokens);
}

/// d loss / d s_te divided by p_te.
SWITCHYARD_HD inline double z_loss_gradient(double weight, double logsumexp, index_t counted_tokens) {
    return counted_tokens == 0 ? 0.0 : weight * 2.0 * logsumexp / static_cast<double>(counted_tokens);
}

}  // namespace SWITCHYARD_TARGET
}  // namespace switchyard
