// How balanced a plan is, and how certain its router: numbers that show whether routing collapses, drops or drifts.
//
//   statistics(plan)                              what follows from its loads, and what it dropped
//   statistics_of_loads(loads)                    the same of any loads: after capacity, summed over layers or ranks
//   load_quantiles(loads, at, out, scratch)       the quartiles, the median, the least and the largest load
//   statistics_of_choices(policy, plan, out)      what each of the k choices asked for, and what it dropped
//   gate_entropy(policy, plan)                    how evenly a token's gates are spread over its experts
//   churn(policy, before, after)                  which share of their experts the same tokens have changed
//
// Of loads l_e, E experts, m = mean load, q_e = l_e / sum of all:
//
//   coefficient_of_variation         sqrt(sum (l_e - m)^2 / E) / m, the population's: 0 (even) .. sqrt(E - 1)
//   sample_coefficient_of_variation  sqrt(sum (l_e - m)^2 / (E - 1)) / m; 0 of one expert
//   max_over_mean                    largest load / m, 1 .. E: the slowdown of a step that waits for its busiest expert
//   max_violation                    max_over_mean - 1 (MaxVio of Wang et al. 2024, arXiv 2408.15664)
//   entropy                          -sum q_e ln q_e, in nats: 0 (one expert has all) .. ln E (even)
//   effective_experts                exp(entropy), 1 .. E: the number of even experts with that entropy
//   dead_share                       experts without a choice / E
//
// Loads 3, 1, 0 and 4: m = 2, variation sqrt(10 / 4) / 2 = 0.791, of the sample sqrt(10 / 3) / 2 = 0.913, max_over_mean
// 2, max_violation 1, entropy 0.974, effective experts 2.649, dead share 0.25; median 2, upper quartile 3.25.
//
// Choices that count are those that `load_before` counts: ids of -1, padding tokens, experts that are forbidden to
// their token and experts without rows, which have a line of their own, do not. If all loads are 0, or there are no
// tokens, all statistics are 0. Empty plans are refused.
//
// Plans must be on the host: `copy_to_host` (plan/device_plan.hpp) first, which waits and allocates. Functions here
// allocate only where they say so. Sums are in double and in a fixed order, whatever the number of threads.
#pragma once

#include <switchyard/backend/policy.hpp>
#include <switchyard/core/config.hpp>
#include <switchyard/core/error.hpp>
#include <switchyard/core/rounding.hpp>
#include <switchyard/core/workspace.hpp>
#include <switchyard/plan/plan.hpp>

#include <algorithm>
#include <cmath>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <limits>
#include <span>
#include <type_traits>

namespace switchyard {

/// What follows from loads alone.
struct load_statistics {
    double coefficient_of_variation = 0;
    double sample_coefficient_of_variation = 0;
    double max_over_mean = 0;
    double max_violation = 0;
    double entropy = 0;
    double effective_experts = 0;
    double dead_share = 0;
};

/// Of a plan: its loads are those before capacity.
struct plan_statistics : load_statistics {
    index_t asked = 0;  ///< choices before capacity
    index_t kept = 0;
    index_t dropped = 0;       ///< asked - kept
    double dropped_share = 0;  ///< of those asked for
};

/// Of the first, the second, ... choices of all tokens.
struct choice_statistics {
    index_t asked = 0;
    index_t dropped = 0;
    double dropped_share = 0;  ///< of those asked for
    index_t rowless = 0;       ///< of experts without rows, which are not asked for rows
};

inline namespace SWITCHYARD_TARGET {

namespace detail {

template <class Loads>
auto span_of_loads(const Loads& loads) {
    const std::span numbers(std::data(loads), std::size(loads));
    static_assert(std::signed_integral<typename decltype(numbers)::value_type>,
                  "switchyard: loads are counts, in signed integers");
    return numbers;
}

/// Their sum, which an index_t must hold.
template <class Loads>
index_t sum_of_loads(const Loads& loads) {
    index_t sum = 0;
    for (std::size_t e = 0; e < loads.size(); ++e) {
        const auto load = static_cast<index_t>(loads[e]);
        require(load >= 0, "load ", e, " is ", load, ": a load must not be negative");
        require(load <= std::numeric_limits<index_t>::max() - sum,
                "the loads are more choices than a size can count, which is 2^63 - 1");
        sum += load;
    }
    return sum;
}

/// The plan's view, if it is one on the host.
template <class Plan>
const auto& host_plan(const Plan& plan) {
    const auto& p = view_of_plan(plan);
    static_assert(std::is_same_v<typename std::remove_cvref_t<decltype(p)>::space, host_space>,
                  "switchyard: statistics are of plans on the host: copy_to_host first");
    require_finished(p);
    return p;
}

/// Adds f(token, sum, count) over all tokens, block by block: sum / count, 0 where nothing counts.
template <class Policy, class F>
double mean_over_tokens(const Policy& policy, index_t tokens, const F& f) {
    static_assert(host_policy<Policy>, "switchyard: statistics are of plans on the host, by a CPU policy");
    constexpr index_t most_blocks = 512;  // of rows_per_block
    double sums[most_blocks];
    index_t counts[most_blocks];
    const index_t rows = rows_per_block(tokens);
    const index_t blocks = block_count(tokens);
    policy.parallel_for(blocks, [&](index_t b) {
        double sum = 0;
        index_t count = 0;
        for (index_t t = b * rows; t < std::min(tokens, (b + 1) * rows); ++t) {
            f(t, sum, count);
        }
        sums[b] = sum;
        counts[b] = count;
    });
    double sum = 0;
    index_t count = 0;
    for (index_t b = 0; b < blocks; ++b) {
        sum += sums[b];
        count += counts[b];
    }
    return count > 0 ? sum / static_cast<double>(count) : 0.0;
}

/// A token's experts as a set.
struct expert_set {
    const std::int32_t* experts;
    index_t choices;

    /// Whether a choice is the first that names its expert.
    bool is_member(index_t c) const {
        return experts[c] >= 0 && std::find(experts, experts + c, experts[c]) == experts + c;
    }
    index_t size() const {
        index_t members = 0;
        for (index_t c = 0; c < choices; ++c) {
            members += is_member(c) ? 1 : 0;
        }
        return members;
    }
    index_t shared_with(const expert_set& other) const {
        index_t shared = 0;
        for (index_t c = 0; c < choices; ++c) {
            const auto* const end = other.experts + other.choices;
            shared += is_member(c) && std::find(other.experts, end, experts[c]) != end ? 1 : 0;
        }
        return shared;
    }
};

}  // namespace detail

/// Of a vector, an array or a span of int32 or int64 loads, one per expert. O(E).
template <class Loads>
load_statistics statistics_of_loads(const Loads& loads) {
    const auto numbers = detail::span_of_loads(loads);
    load_statistics s;
    const auto total = static_cast<double>(detail::sum_of_loads(numbers));
    if (total == 0) {
        return s;
    }
    const auto experts = static_cast<double>(numbers.size());
    const double mean = total / experts;
    double largest = 0;
    double squares = 0;
    double dead = 0;
    for (const auto number : numbers) {
        const auto load = static_cast<double>(number);
        largest = std::max(largest, load);
        squares += rounded_times(load - mean, load - mean);
        s.entropy -= load > 0 ? rounded_times(load / total, std::log(load / total)) : 0.0;
        dead += load > 0 ? 0.0 : 1.0;
    }
    s.coefficient_of_variation = std::sqrt(squares / experts) / mean;
    s.sample_coefficient_of_variation = experts > 1 ? std::sqrt(squares / (experts - 1)) / mean : 0.0;
    s.max_over_mean = largest / mean;
    s.max_violation = s.max_over_mean - 1;
    s.effective_experts = std::exp(s.entropy);
    s.dead_share = dead / experts;
    return s;
}

/// O(E).
template <class Plan>
plan_statistics statistics(const Plan& plan) {
    const auto& p = detail::host_plan(plan);
    const std::span before(p.load_before, static_cast<std::size_t>(p.experts));
    plan_statistics s{statistics_of_loads(before)};
    for (index_t e = 0; e < p.experts; ++e) {
        s.asked += p.load_before[e];
        s.kept += p.load_after[e];
    }
    s.dropped = s.asked - s.kept;
    s.dropped_share = s.asked > 0 ? static_cast<double>(s.dropped) / static_cast<double>(s.asked) : 0.0;
    return s;
}

/// out[i] = the quantile `at[i]` (0 .. 1) of at least one load: of the sorted loads the number at place (E - 1) at[i],
/// interpolated linearly between two places, as NumPy and PyTorch do by default. O(E log E), with E numbers of scratch.
template <class Loads>
void load_quantiles(const Loads& loads, std::span<const double> at, std::span<double> out, workspace& scratch) {
    const auto numbers = detail::span_of_loads(loads);
    require(!numbers.empty(), "no loads have no quantiles");
    require(out.size() == at.size(), "out has room for ", out.size(), " quantiles; there are ", at.size());
    detail::sum_of_loads(numbers);
    const auto scope = scratch.open();
    auto* const sorted = scratch.take<index_t>(static_cast<index_t>(numbers.size()));
    std::copy(numbers.begin(), numbers.end(), sorted);
    std::sort(sorted, sorted + numbers.size());
    for (std::size_t i = 0; i < at.size(); ++i) {
        require(at[i] >= 0 && at[i] <= 1, "quantile ", at[i], " must lie in 0..1");
        const double place = rounded_times(at[i], static_cast<double>(numbers.size() - 1));
        const double below = std::floor(place);
        const auto* const load = sorted + static_cast<index_t>(below);
        // The last place has no number behind it.
        const double step = place > below ? static_cast<double>(load[1] - load[0]) : 0.0;
        out[i] = static_cast<double>(load[0]) + rounded_times(place - below, step);
    }
}

/// One of them. Allocates E numbers.
template <class Loads>
double load_quantile(const Loads& loads, double at) {
    workspace scratch;
    double found = 0;
    load_quantiles(loads, {&at, 1}, {&found, 1}, scratch);
    return found;
}

/// out[c] is of choice c of all tokens; k of them. O(T k), integers.
///
/// A choice without a row counts as dropped if its expert dropped any. So the sums are those of `statistics`, unless a
/// token with fewer than k allowed experts lists a forbidden one that is over its capacity: a plan does not distinguish
/// the two. Nor does it tell a forbidden choice of a zero expert from others, or a second choice that a policy left out
/// (router/gshard.hpp) from one over capacity.
template <class Policy, class Plan>
void statistics_of_choices(const Policy& policy, const Plan& plan, std::span<choice_statistics> out) {
    static_assert(host_policy<Policy>, "switchyard: statistics are of plans on the host, by a CPU policy");
    const auto& p = detail::host_plan(plan);
    require(static_cast<index_t>(out.size()) == p.choices, "out has room for ", out.size(), " choices; the plan has ",
            p.choices);
    policy.parallel_for(p.choices, [&](index_t c) {
        choice_statistics s;
        for (index_t position = c; position < p.tokens * p.choices; position += p.choices) {
            const index_t e = p.expert[position];
            const bool kept = p.slot[position] >= 0;
            const bool dropped = !kept && e >= 0 && e < p.experts && p.load_after[e] < p.load_before[e];
            s.asked += kept || dropped ? 1 : 0;
            s.dropped += dropped ? 1 : 0;
            s.rowless += p.is_rowless(e) && (p.gate[position] != 0 || p.origin.rowless.is_zero(e - p.experts)) ? 1 : 0;
        }
        s.dropped_share = s.asked > 0 ? static_cast<double>(s.dropped) / static_cast<double>(s.asked) : 0.0;
        out[static_cast<std::size_t>(c)] = s;
    });
}

/// The mean over tokens of -sum_c g_c ln g_c, in nats, where g are the gates of the token's kept choices divided by
/// their sum: 0 (each token goes to one expert) .. ln k (even gates). Tokens without a kept choice do not count, nor do
/// gates of 0 or below; a gate that is NaN or infinite makes the mean NaN. O(T k).
template <class Policy, class Plan>
double gate_entropy(const Policy& policy, const Plan& plan) {
    const auto& p = detail::host_plan(plan);
    const auto gate_of = [&p](index_t position) {
        const auto gate = static_cast<double>(p.gate[position]);
        return p.slot[position] < 0 || gate <= 0 ? 0.0 : gate;
    };
    return detail::mean_over_tokens(policy, p.tokens, [&](index_t t, double& sum, index_t& count) {
        double total = 0;
        for (index_t c = 0; c < p.choices; ++c) {
            total += gate_of(t * p.choices + c);
        }
        if (total == 0) {
            return;
        }
        for (index_t c = 0; c < p.choices; ++c) {
            const double share = gate_of(t * p.choices + c) / total;
            sum -= share == 0 ? 0.0 : rounded_times(share, std::log(share));
        }
        ++count;
    });
}

/// The mean over tokens of 1 - |A and B| / max(|A|, |B|), where A and B are the sets of experts that two plans of the
/// same tokens and experts list for a token, dropped choices included: 0 (no token moved) .. 1. A token with no expert
/// in both plans, such as padding, does not count; with none in one of them it has changed all of them. The plans may
/// have different k. O(T k^2).
template <class Policy, class Before, class After>
double churn(const Policy& policy, const Before& before, const After& after) {
    const auto& a = detail::host_plan(before);
    const auto& b = detail::host_plan(after);
    require(a.tokens == b.tokens && a.experts == b.experts, "the plans have ", a.tokens, " and ", b.tokens,
            " tokens, and ", a.experts, " and ", b.experts, " experts; they must be of the same");
    return detail::mean_over_tokens(policy, a.tokens, [&](index_t t, double& sum, index_t& count) {
        const detail::expert_set was{a.expert + t * a.choices, a.choices};
        const detail::expert_set is{b.expert + t * b.choices, b.choices};
        const index_t most = std::max(was.size(), is.size());
        if (most > 0) {
            sum += static_cast<double>(most - was.shared_with(is)) / static_cast<double>(most);
            ++count;
        }
    });
}

}  // namespace SWITCHYARD_TARGET
}  // namespace switchyard
