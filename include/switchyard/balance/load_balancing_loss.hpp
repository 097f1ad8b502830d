// The load-balancing loss: loss = weight * E * sum_e f_e P_e.
//
// f_e is the share of the (unmasked) tokens' counted choices that picked expert e, before capacity: first choices / N,
// or all k choices / (k N). P_e = (1 / N) sum_t p_te is the mean probability from the full softmax. Equal to `weight`
// when both are uniform (which is not a lower bound). The gradient flows through P only: d loss / d p_te = weight * E *
// f_e / N, the same for every token. Shazeer et al. 2017 -> Lepikhin et al. 2020 (arXiv 2006.16668) -> Fedus et al.
// 2021 (arXiv 2101.03961, equations 4 to 6, weight 1e-2). O(E).
//
// Engines differ in f: Switch and GShard count first choices; Mixtral's and Megatron's count all k. `balance_count`
// names the choice.
#pragma once

#include <switchyard/core/config.hpp>

#include <cstdint>

namespace switchyard {
inline namespace SWITCHYARD_TARGET {

/// What the loss is made of: any memory, read by whoever runs there.
struct balance_terms {
    double weight = 0;
    index_t experts = 0;
    index_t counted_choices = 1;                   ///< choices counted for each token: 1, or k
    const std::int64_t* counted_tokens = nullptr;  ///< N
    const std::int64_t* load = nullptr;            ///< [E] counted choices, before capacity

    /// d loss / d p_te for every token t.
    SWITCHYARD_HD double gradient(index_t expert) const {
        const auto tokens = static_cast<double>(*counted_tokens);
        return tokens == 0 ? 0.0
                           : weight * static_cast<double>(experts) * static_cast<double>(load[expert]) /
                                 (tokens * tokens * static_cast<double>(counted_choices));
    }

    /// The loss, from the column sums of the probabilities.
    SWITCHYARD_HD double value(const double* probability_sums) const {
        double loss = 0;
        for (index_t e = 0; e < experts; ++e) {
            loss += gradient(e) * probability_sums[e];
        }
        return loss;
    }
};

}  // namespace SWITCHYARD_TARGET
}  // namespace switchyard
