// How evenly a plan loads its experts, and how much it drops.
//
//   coefficient of variation   sqrt(mean_e (load_e - m)^2) / m, m = mean load (population variance); 0: even
//   max over mean              max_e load_e / m; 1: even, E: all on one expert
//   entropy                    -sum_e q_e ln q_e in nats, q_e = load_e / sum; ln E: even, 0: all on one expert
//   dropped share              dropped choices / listed choices (padding lists none)
// All are 0 when there is no load at all.
#pragma once

#include <switchyard/reference/plan.hpp>

#include <cmath>

namespace switchyard::reference::inline SWITCHYARD_TARGET {

inline double mean_load(const list<index_t>& load) {
    double sum = 0;
    for (const index_t count : load) sum += static_cast<double>(count);
    return load.empty() ? 0 : sum / static_cast<double>(load.length());
}

inline double coefficient_of_variation(const list<index_t>& load) {
    const double mean = mean_load(load);
    if (mean == 0) return 0;
    double squares = 0;
    for (const index_t count : load) {
        const double difference = static_cast<double>(count) - mean;
        squares += difference * difference;
    }
    return std::sqrt(squares / static_cast<double>(load.length())) / mean;
}

inline double max_over_mean(const list<index_t>& load) {
    const double mean = mean_load(load);
    if (mean == 0) return 0;
    index_t largest = 0;
    for (const index_t count : load) largest = count > largest ? count : largest;
    return static_cast<double>(largest) / mean;
}

inline double load_entropy(const list<index_t>& load) {
    const double total = mean_load(load) * static_cast<double>(load.length());
    double entropy = 0;
    for (const index_t count : load) {
        if (count == 0) continue;  // the limit of q ln q
        const double share = static_cast<double>(count) / total;
        entropy -= share * std::log(share);
    }
    return entropy;
}

struct load_statistics {
    double coefficient_of_variation = 0;
    double max_over_mean = 0;
    double entropy = 0;
};

inline load_statistics statistics_of(const list<index_t>& load) {
    return {coefficient_of_variation(load), max_over_mean(load), load_entropy(load)};
}

struct plan_statistics {
    index_t kept = 0;
    index_t dropped = 0;
    double dropped_share = 0;
    load_statistics before;
    load_statistics after;
};

inline plan_statistics statistics(const plan& made) {
    plan_statistics result;
    for (index_t t = 0; t < made.tokens(); ++t) {
        for (index_t c = 0; c < made.choices(); ++c) {
            if (made.keeps(t, c)) {
                result.kept += 1;
            } else if (made.experts(t, c) >= 0) {
                result.dropped += 1;
            }
        }
    }
    const index_t listed = result.kept + result.dropped;
    if (listed > 0) result.dropped_share = static_cast<double>(result.dropped) / static_cast<double>(listed);
    result.before = statistics_of(made.load_before);
    result.after = statistics_of(made.load_after);
    return result;
}

}  // namespace switchyard::reference::inline SWITCHYARD_TARGET
