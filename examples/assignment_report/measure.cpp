#include "measure.hpp"

#include "assignment_scores.hpp"
#include "measured.hpp"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <variant>

namespace study {
namespace {

/// Scores, loads and drops of an assignment: expert_of_token[T], negative where a token was dropped.
template <class S>
outcome outcome_of(std::string method, const sy::matrix<S>& scores, const std::vector<std::int32_t>& expert_of_token) {
    outcome made{.method = std::move(method)};
    std::vector<double> loads(static_cast<std::size_t>(scores.columns()));
    for (index_t t = 0; t < scores.rows(); ++t) {
        const std::int32_t e = expert_of_token[static_cast<std::size_t>(t)];
        if (e < 0) {
            made.dropped += 1;
            continue;
        }
        made.score += static_cast<double>(scores(t, e));
        loads[static_cast<std::size_t>(e)] += 1;
    }
    const auto placed = static_cast<double>(scores.rows() - made.dropped);
    if (placed == 0) return made;
    const double mean = placed / static_cast<double>(loads.size());
    double squares = 0;
    for (const double load : loads) squares += (load - mean) * (load - mean);
    made.max_over_mean = *std::max_element(loads.begin(), loads.end()) / mean;
    made.variation = std::sqrt(squares / static_cast<double>(loads.size())) / mean;
    return made;
}

/// One way after another, all on the same scores and with the same memory.
template <class Policy, class S>
class assigning {
  public:
    assigning(const Policy& policy, const options& asked, const sy::matrix<S>& scores)
        : policy_(policy), asked_(asked), scores_(scores), expert_(static_cast<std::size_t>(scores.rows())) {}

    template <class Router>
    outcome by_router(const char* method, const Router& router, const sy::run_mode& mode) {
        const double milliseconds =
            measured(asked_.repeat, [&] { sy::route_scores(policy_, router, scores_, mode, plan_, scratch_); });
        for (index_t t = 0; t < scores_.rows(); ++t) {
            const bool kept = plan_.view().slot[t] >= 0;
            expert_[static_cast<std::size_t>(t)] = kept ? plan_.view().expert[t] : -1;
        }
        outcome made = outcome_of(method, scores_, expert_);
        made.milliseconds = milliseconds;
        return made;
    }

    /// Balanced; prices are written where there is room for them.
    template <class Solver>
    outcome by_solver(const char* method, const Solver& solver, double* prices, bool& is_proved) {
        const sy::assignment_problem<S> problem{.scores = sy::as_view(scores_),
                                                .bounds = sy::balanced_quotas(scores_.rows(), scores_.columns())};
        sy::assignment_result found;
        const double milliseconds = measured(asked_.repeat, [&] {
            found = solve(policy_, solver, problem, {expert_.data(), prices}, scratch_);
        });
        outcome made = outcome_of(method, scores_, expert_);
        made.score = found.primal;  // the same sum, more digits
        made.gap = found.gap;
        made.milliseconds = milliseconds;
        is_proved = found.converged;
        return made;
    }

    index_t capacity() const { return plan_.capacity(); }

  private:
    const Policy& policy_;
    const options& asked_;
    const sy::matrix<S>& scores_;
    std::vector<std::int32_t> expert_;  // [T]
    sy::plan<S> plan_;
    sy::workspace scratch_;
};

/// The standard deviation of all scores that are finite.
template <class S>
double deviation_of(const sy::matrix<S>& scores) {
    double mean = 0, squares = 0, count = 0;
    for (index_t i = 0; i < scores.rows() * scores.columns(); ++i) {
        const auto score = static_cast<double>(scores.data()[i]);
        if (!std::isfinite(score)) continue;
        count += 1;
        const double before = score - mean;
        mean += before / count;
        squares += before * (score - mean);
    }
    return count > 0 ? std::sqrt(squares / count) : 0.0;
}

template <class Policy, class S>
report measure_on(const Policy& policy, const options& asked, const sy::matrix<S>& scores) {
    report made{.tokens = scores.rows(), .experts = scores.columns(), .deviation = deviation_of(scores)};
    made.prices.resize(static_cast<std::size_t>(scores.columns()));
    assigning<Policy, S> assign(policy, asked, scores);
    bool is_proved = false;
    // First, so that scores which allow no balanced assignment end the program before any other work.
    outcome exact = assign.by_solver("exact", sy::hungarian{}, made.prices.data(), made.is_proved);
    made.outcomes.push_back(assign.by_router("greedy", sy::base_router{}, sy::inference{}));
    const sy::switch_router dropping{.capacity = {.factor = asked.capacity_factor}};
    made.outcomes.push_back(assign.by_router("switch", dropping, sy::training{}));
    made.capacity = assign.capacity();
    made.outcomes.push_back(assign.by_solver("auction", sy::auction{}, nullptr, is_proved));
    made.outcomes.push_back(std::move(exact));
    return made;
}

bench::row_major generated(const options& asked) {
    if (asked.kind == score_kind::gaussian) return bench::gaussian(asked.tokens, asked.experts, asked.seed + 1);
    if (asked.kind == score_kind::equal) return bench::equal_scores(asked.tokens, asked.experts);
    auto scores = bench::skewed_scores(asked.tokens, asked.experts, asked.seed);
    return asked.kind == score_kind::quantized ? bench::quantized_scores(std::move(scores)) : scores;
}

score_table scores_of(const options& asked) {
    if (!asked.scores.empty()) return read_scores(asked.scores);
    const bench::row_major numbers = generated(asked);
    sy::matrix<float> table(numbers.rows(), numbers.cols());
    std::copy_n(numbers.data(), numbers.size(), table.data());
    return table;
}

}  // namespace

report measure(const options& asked) {
    const score_table scores = scores_of(asked);
    report made = std::visit(
        [&](const auto& table) {
#if defined(_OPENMP)
            if (asked.parallel) return measure_on(sy::par_on(sy::openmp{.threads = asked.threads}), asked, table);
#endif
            return measure_on(sy::seq, asked, table);
        },
        scores);
    const std::string seed = asked.kind == score_kind::equal ? "" : ", seed " + std::to_string(asked.seed);
    made.scores = asked.scores.empty() ? name_of(kinds_by_name, asked.kind) + seed : asked.scores;
    return made;
}

}  // namespace study
