// The load-balancing loss: loss = weight * E * sum_e f_e P_e.
//
// f_e is the share of the (unmasked) tokens' counted choices that picked expert e, before capacity: first choices / N,
// or all k choices / (k N). P_e = (1 / N) sum_t p_te is the mean probability from the full softmax. Equal to `weight`
// when both are uniform (which is not a lower bound). The gradient flows through P only: d loss / d p_te = weight * E *
// f_e / N, the same for every token. Shazeer et al. 2017 -> Lepikhin et al. 2020 (arXiv 2006.16668) -> Fedus et al.
// 2021 (arXiv 2101.03961, equations 4 to 6, weight 1e-2). O(E).
//
// Engines differ in f: Switch and GShard count first choices, Megatron-Core all k divided by k, and transformers for
// Mixtral all k without dividing. `balance_count` selects first choices, or all k divided by k.
#pragma once

#include <switchyard/core/config.hpp>
#include <switchyard/core/rounding.hpp>

#include <cstdint>

namespace switchyard {
inline namespace SWITCHYARD_TARGET {

/// d loss / d p_te = balance_scale(...) * load[e], for every token t.
SWITCHYARD_HD inline double balance_scale(double weight, index_t experts, index_t counted_choices,
                                          index_t counted_tokens) {
    const auto tokens = static_cast<double>(counted_tokens);
    return tokens == 0
               ? 0.0
               : weight * static_cast<double>(experts) / (tokens * tokens * static_cast<double>(counted_choices));
}

/// What the loss is made of: in any memory, read where the code runs.
struct balance_terms {
    double weight = 0;
    index_t experts = 0;
    index_t counted_choices = 1;                   ///< choices counted for each token: 1, or k
    const std::int64_t* counted_tokens = nullptr;  ///< N
    const std::int64_t* load = nullptr;            ///< [E] counted choices, before capacity

    SWITCHYARD_HD double scale() const { return balance_scale(weight, experts, counted_choices, *counted_tokens); }
    SWITCHYARD_HD double gradient(index_t expert) const { return scale() * static_cast<double>(load[expert]); }

    /// The loss, from the column sums of the probabilities.
    SWITCHYARD_HD double value(const double* probability_sums) const {
        // Eight chains of additions, so that the sum does not wait for each one.
        double part[8] = {};
        for (index_t e = 0; e + 8 <= experts; e += 8) {
            for (int i = 0; i < 8; ++i) {
                part[i] += rounded_times(static_cast<double>(load[e + i]), probability_sums[e + i]);
            }
        }
        for (index_t e = experts / 8 * 8; e < experts; ++e) {
            part[0] += rounded_times(static_cast<double>(load[e]), probability_sums[e]);
        }
        const double sum = ((part[0] + part[4]) + (part[1] + part[5])) + ((part[2] + part[6]) + (part[3] + part[7]));
        return scale() * sum;
    }
};

}  // namespace SWITCHYARD_TARGET
}  // namespace switchyard
