// How evenly a plan loads its experts, and how much it drops.
//
//   coefficient of variation   sqrt(mean_e (load_e - m)^2) / m, m = mean load (population variance); 0: even
//   max over mean              max_e load_e / m; 1: even, E: all on one expert
//   sample variation           the same with E - 1 in place of E below the root; 0 of one expert
//   max violation              max over mean - 1
//   entropy                    -sum_e q_e ln q_e in nats, q_e = load_e / sum; ln E: even, 0: all on one expert
//   effective experts          exp(entropy)
//   dead share                 experts without load / E
//   quantile at u              of the sorted loads, the number at place u (E - 1), in between on the line between two
//   dropped share              dropped choices / choices before capacity (padding and forbidden ones are none)
//   gate entropy               mean of -sum_c g_c ln g_c, g_c = gate of a kept choice / sum of the token's
//   churn                      mean of 1 - |A and B| / max(|A|, |B|), A and B a token's experts in two plans
// All are 0 when there is no load at all.
#pragma once

#include <switchyard/reference/plan.hpp>

#include <algorithm>
#include <cmath>
#include <set>

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

inline double dead_share(const list<index_t>& load) {
    if (mean_load(load) == 0) return 0;
    const auto dead = std::count(load.begin(), load.end(), 0);
    return static_cast<double>(dead) / static_cast<double>(load.length());
}

/// The variance of a sample is E / (E - 1) that of a population.
inline double sample_coefficient_of_variation(const list<index_t>& load) {
    const auto experts = static_cast<double>(load.length());
    return experts < 2 ? 0 : coefficient_of_variation(load) * std::sqrt(experts / (experts - 1));
}

struct load_statistics {
    double coefficient_of_variation = 0;
    double sample_coefficient_of_variation = 0;
    double max_over_mean = 0;
    double max_violation = 0;
    double entropy = 0;
    double effective_experts = 0;
    double dead_share = 0;
};

inline load_statistics statistics_of(const list<index_t>& load) {
    if (mean_load(load) == 0) return {};
    const double entropy = load_entropy(load);
    return {coefficient_of_variation(load),
            sample_coefficient_of_variation(load),
            max_over_mean(load),
            max_over_mean(load) - 1,
            entropy,
            std::exp(entropy),
            dead_share(load)};
}

inline double load_quantile(list<index_t> load, double at) {
    std::sort(load.begin(), load.end());
    const double place = at * static_cast<double>(load.length() - 1);
    const auto low = static_cast<index_t>(std::floor(place));
    const auto high = static_cast<index_t>(std::ceil(place));
    const double weight = place - std::floor(place);
    return (1 - weight) * static_cast<double>(load[low]) + weight * static_cast<double>(load[high]);
}

struct plan_statistics {
    index_t kept = 0;
    index_t dropped = 0;
    double dropped_share = 0;
    load_statistics before;
    load_statistics after;
};

/// Before capacity: whether a choice asks for a row. A choice without one, of an expert that dropped none, names an
/// expert that was forbidden.
inline bool asks(const plan& made, index_t token, index_t choice) {
    const index_t e = made.experts(token, choice);
    return made.keeps(token, choice) || (e >= 0 && made.load_after[e] < made.load_before[e]);
}

inline plan_statistics statistics(const plan& made) {
    plan_statistics result;
    index_t asked = 0;
    for (const index_t load : made.load_before) asked += load;
    for (const index_t load : made.load_after) result.kept += load;
    result.dropped = asked - result.kept;
    if (asked > 0) result.dropped_share = static_cast<double>(result.dropped) / static_cast<double>(asked);
    result.before = statistics_of(made.load_before);
    result.after = statistics_of(made.load_after);
    return result;
}

struct choice_statistics {
    index_t asked = 0;
    index_t dropped = 0;
};

inline choice_statistics statistics_of_choice(const plan& made, index_t choice) {
    choice_statistics result;
    for (index_t t = 0; t < made.tokens(); ++t) {
        if (!asks(made, t, choice)) continue;
        result.asked += 1;
        result.dropped += made.keeps(t, choice) ? 0 : 1;
    }
    return result;
}

inline double gate_entropy(const plan& made) {
    double sum = 0;
    index_t counted = 0;
    for (index_t t = 0; t < made.tokens(); ++t) {
        double gates = 0;
        for (index_t c = 0; c < made.choices(); ++c) {
            if (made.keeps(t, c) && made.gates(t, c) > 0) gates += made.gates(t, c);
        }
        if (gates == 0) continue;
        counted += 1;
        for (index_t c = 0; c < made.choices(); ++c) {
            if (!made.keeps(t, c) || made.gates(t, c) <= 0) continue;
            sum -= made.gates(t, c) / gates * std::log(made.gates(t, c) / gates);
        }
    }
    return counted == 0 ? 0 : sum / static_cast<double>(counted);
}

inline std::set<index_t> experts_of_token(const plan& made, index_t token) {
    std::set<index_t> experts;
    for (index_t c = 0; c < made.choices(); ++c) {
        if (made.experts(token, c) >= 0) experts.insert(made.experts(token, c));
    }
    return experts;
}

inline double churn(const plan& before, const plan& after) {
    double sum = 0;
    index_t counted = 0;
    for (index_t t = 0; t < before.tokens(); ++t) {
        const auto was = experts_of_token(before, t);
        const auto is = experts_of_token(after, t);
        if (was.empty() && is.empty()) continue;
        counted += 1;
        index_t shared = 0;
        for (const index_t e : was) shared += is.contains(e) ? 1 : 0;
        sum += 1 - static_cast<double>(shared) / static_cast<double>(std::max(was.size(), is.size()));
    }
    return counted == 0 ? 0 : sum / static_cast<double>(counted);
}

}  // namespace switchyard::reference::inline SWITCHYARD_TARGET
