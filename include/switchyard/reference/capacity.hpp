// Capacity: how many rows an expert may take.
//
//   C = rounding(T k F / E), then at least `minimum`, then up to the next multiple of `multiple`
//
// T counts all rows, padding included. Computed in double; a value within 1e-9 (relative) of an integer is that integer
// first, because 100 x 1.1 / 5 is 22.000000000000004 in double and must be 22 under `ceil`, too. C above T is legal,
// and so is C = 0, which drops everything.
//
// Switch (arXiv 2101.03961) has T F / E. Engines differ: floor and at least 4 (Mesh TensorFlow), half to even and at
// least 4 (Flaxformer), ceil and a multiple of 4 (V-MoE), ceil with the factor k (Megatron).
#pragma once

#include <switchyard/reference/matrix.hpp>

#include <cmath>
#include <limits>
#include <optional>

namespace switchyard::reference::inline SWITCHYARD_TARGET {

enum class rounding {
    floor,
    round,  ///< half to even
    ceil,
};

/// A capacity that no load reaches.
constexpr index_t unlimited = std::numeric_limits<index_t>::max();

/// How a router finds its capacity: by factor, by number (taken as it is), or, with neither, unlimited.
struct capacity_rule {
    std::optional<double> factor = std::nullopt;
    std::optional<index_t> number = std::nullopt;
    reference::rounding rounding = reference::rounding::floor;
    index_t minimum = 0;
    index_t multiple = 1;
    bool count_choices = true;  ///< whether k is a factor of it
};

/// `value` as an integer.
inline double rounded(double value, rounding how) {
    const double below = std::floor(value);
    const double nearest = value - below < 0.5 ? below : below + 1;
    if (std::abs(value - nearest) <= 1e-9 * value) return nearest;
    if (how == rounding::floor) return below;
    if (how == rounding::ceil) return below + 1;  // value is no integer here
    if (value - below == 0.5) return std::fmod(below, 2) == 0 ? below : below + 1;
    return nearest;
}

/// The capacity for `tokens` rows of `choices` choices each among `experts` experts.
inline index_t capacity_for(const capacity_rule& rule, index_t tokens, index_t experts, index_t choices) {
    require(experts >= 1, "experts = ", experts, " must be at least 1");
    require(!(rule.factor && rule.number), "a capacity has a factor or a number, not both");
    if (rule.number) {
        require(*rule.number >= 0, "capacity = ", *rule.number, " must not be negative");
        return *rule.number;
    }
    if (!rule.factor) return unlimited;
    require(std::isfinite(*rule.factor) && *rule.factor >= 0, "capacity_factor = ", *rule.factor,
            " must be finite and not negative");
    require(rule.minimum >= 0, "capacity_minimum = ", rule.minimum, " must not be negative");
    require(rule.multiple >= 1, "capacity_multiple = ", rule.multiple, " must be at least 1");

    const double rows = static_cast<double>(tokens) * static_cast<double>(rule.count_choices ? choices : 1);
    const double wanted = rounded(rows * *rule.factor / static_cast<double>(experts), rule.rounding);
    if (wanted >= 9e18) return unlimited;  // beyond 64 bits, and no load gets there
    auto capacity = static_cast<index_t>(wanted);
    if (capacity < rule.minimum) capacity = rule.minimum;
    const index_t above = capacity % rule.multiple;
    if (above == 0) return capacity;
    const index_t missing = rule.multiple - above;
    return missing <= unlimited - capacity ? capacity + missing : unlimited;
}

}  // namespace switchyard::reference::inline SWITCHYARD_TARGET
