// Capacity: how many rows an expert may take.
//
// C = rounding(k T factor / E), then at least `minimum`, then up to a multiple of `multiple`. Computed in double. A
// value within 1e-9 (relative) of an integer becomes that integer, so that 100 x 1.1 / 5 is 22 under every rounding. T
// counts all rows, padding included. C = 0 drops everything, and C above T is legal.
//
// Engines differ: Mesh TensorFlow floors with a minimum of 4, Flaxformer rounds half to even with a minimum of 4, V-MoE
// takes the ceiling to a multiple of 4, Megatron the ceiling with the factor k. The defaults are the Switch paper's
// formula (Fedus et al. 2021, arXiv 2101.03961, equation 3).
#pragma once

#include <switchyard/core/config.hpp>
#include <switchyard/core/error.hpp>

#include <cmath>
#include <limits>
#include <optional>

namespace switchyard {

/// The capacity of a plan in which no expert is limited.
inline constexpr index_t unlimited = std::numeric_limits<index_t>::max();

enum class capacity_rounding {
    floor,
    round,  ///< half to even
    ceil,
};

/// How a capacity is found. Without a factor and a number there is no limit.
struct capacity_rule {
    std::optional<double> factor{};   ///< of the even share; finite and >= 0
    std::optional<index_t> number{};  ///< rows per expert, as given; >= 0; excludes `factor`
    capacity_rounding rounding = capacity_rounding::floor;
    index_t minimum = 0;
    index_t multiple = 1;
    bool counts_choices = true;  ///< whether k multiplies the even share (GShard, Megatron) or not
};

inline namespace SWITCHYARD_TARGET {

/// The rows each of `experts` may take when `tokens` tokens make `choices` choices each; `unlimited` without a limit.
inline index_t capacity_of(const capacity_rule& rule, index_t tokens, index_t choices, index_t experts) {
    require(!(rule.factor && rule.number), "a capacity has a factor or a number, not both");
    require(rule.minimum >= 0, "capacity minimum = ", rule.minimum, " must not be negative");
    require(rule.multiple >= 1, "capacity multiple = ", rule.multiple, " must be at least 1");
    if (rule.number) {
        require(*rule.number >= 0, "capacity = ", *rule.number, " must not be negative");
        return *rule.number;
    }
    if (!rule.factor) {
        return unlimited;
    }
    const double factor = *rule.factor;
    require(std::isfinite(factor) && factor >= 0, "capacity factor = ", factor, " must be finite and not negative");
    const double share = static_cast<double>(tokens) * static_cast<double>(rule.counts_choices ? choices : 1) * factor /
                         static_cast<double>(experts);
    const double nearest = std::nearbyint(share);
    double rows = nearest;
    if (std::abs(share - nearest) > 1e-9 * share) {
        rows = rule.rounding == capacity_rounding::floor  ? std::floor(share)
               : rule.rounding == capacity_rounding::ceil ? std::ceil(share)
                                                          : nearest;
    }
    rows = std::fmax(rows, static_cast<double>(rule.minimum));
    const auto multiple = static_cast<double>(rule.multiple);
    rows = std::ceil(rows / multiple) * multiple;
    // No expert can be given more than every choice, so a larger number is the same limit.
    return rows >= 9e18 ? unlimited : static_cast<index_t>(rows);
}

}  // namespace SWITCHYARD_TARGET
}  // namespace switchyard
