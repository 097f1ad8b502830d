// Assigns the same scores in four ways and takes down what became of them.
#pragma once

#include "options.hpp"

#include "npy.hpp"

#include <optional>
#include <string>
#include <vector>

namespace study {

/// What one way of assigning did.
struct outcome {
    std::string method;
    double score = 0;             ///< sum of the scores of tokens that were placed
    std::optional<double> gap{};  ///< certified: nothing balanced scores more than score + gap
    index_t dropped = 0;
    double max_over_mean = 0;  ///< largest load / mean load, of placed tokens
    double variation = 0;      ///< standard deviation / mean of the loads
    double milliseconds = 0;   ///< median of the measured runs
};

/// All of them on the same scores.
struct report {
    std::string scores{};  ///< what they are, for people
    index_t tokens = 0;
    index_t experts = 0;
    index_t capacity = 0;             ///< Switch's
    double deviation = 0;             ///< standard deviation of the scores that forbid nothing
    bool is_proved = false;           ///< the exact assignment's certificate is within its tolerance
    std::vector<outcome> outcomes{};  ///< greedy, switch, auction, exact
    std::vector<double> prices{};     ///< of the exact one's certificate

    double optimum() const { return outcomes.back().score; }
    /// By how much an outcome is below the optimum, in standard deviations per token; negative: above, as only those
    /// can be that are not balanced. Nothing where neither says anything.
    std::optional<double> below(const outcome& made) const { return per_token(optimum() - made.score); }
    /// A gap in the same measure.
    std::optional<double> per_token(double difference) const {
        const double unit = deviation * static_cast<double>(tokens);
        if (unit > 0) return difference / unit;
        return difference == 0 ? std::optional(0.0) : std::nullopt;
    }
    /// Score as a share of the optimum, where that is positive.
    std::optional<double> share(const outcome& made) const {
        return optimum() > 0 ? std::optional(made.score / optimum()) : std::nullopt;
    }
};

/// Reads or generates the scores and assigns them. Throws switchyard::error for scores or bounds that do not do.
report measure(const options& asked);

}  // namespace study
