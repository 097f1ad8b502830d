// A router of one's own: balancing without a loss (Wang et al. 2024, arXiv 2408.15664), one choice a token.
//
//   expert = argmax_e (s_te + b_e)       the bias b steers the choice and nothing else
//   gate   = softmax(s_t)[expert]        from the scores as they are, so backward never sees the bias
//   after each step:  b_e += rate * sign(mean load - load_e)
#include <switchyard/switchyard.hpp>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <limits>
#include <random>
#include <span>
#include <vector>

namespace engine {

namespace sy = switchyard;
using sy::index_t;

// 1. The settings: an aggregate. The bias is state between steps; the router only looks at it.
struct bias_router {
    std::span<const float> bias{};  ///< [E], in the memory of the policy that routes
    sy::capacity_rule capacity{};   ///< none: nothing is dropped
    double z_weight = 0;
};

// 2. What a row chooses. The library's row pass has found the row's maximum and its sum of exponentials; it calls this
// with both, on vectors of W numbers on a CPU and with W = 1 on a device.
template <class S>
struct select_biased {
    static constexpr bool needs_best = false;  // the row's own argmax is not read, so it need not be found

    sy::select_best<S> best;  // where choices and gates are written, and what padding and forbidden rows get
    const float* bias;
    index_t experts;

    template <int W>
    SWITCHYARD_HD void choose(index_t token, const S* row, S maximum, S sum, index_t, sy::pack<S, W>, S*) const {
        index_t chosen = -1;
        S highest = 0;
        for (index_t e = 0; e < experts; ++e) {
            const S score = row[e] + static_cast<S>(bias[e]);
            const bool allowed = row[e] > -std::numeric_limits<S>::infinity();
            if (allowed && (chosen < 0 || score > highest)) {  // ties: the lower expert
                highest = score;
                chosen = e;
            }
        }
        best.expert[token] = static_cast<std::int32_t>(chosen);
        best.gate[token] = sy::softmax_value(row[chosen], maximum, sum);
    }
    SWITCHYARD_HD void padding(index_t token) const { best.padding(token); }
    SWITCHYARD_HD void forbid_all(index_t token) const { best.forbid_all(token); }
};

// 3. What the settings come down to, and a fingerprint of those that backward depends on.
inline sy::softmax_settings softmax_settings_of(const bias_router& router, index_t capacity) {
    return {.z_weight = router.z_weight, .may_drop = capacity != sy::unlimited};
}
inline std::uint64_t fingerprint_of(const bias_router& router) { return sy::fingerprint('B', router.z_weight); }

// 4. Forward: scores[T, E] -> plan. The library's route(), its allocating forms, dispatch and combine find it by name.
template <class Policy, sy::matrix_like Scores, class Plan, class Workspace>
void route_scores(const Policy& policy, const bias_router& router, const Scores& scores, const sy::run_mode& mode,
                  Plan& plan, Workspace& scratch) {
    using S = typename Plan::scalar;
    sy::require_memory<Policy, Scores, Plan>();
    sy::begin_plan(plan);  // empty until finish_plan: what throws in between leaves it so
    const auto input = sy::const_view(sy::as_view(scores));
    sy::require_scores(input, mode.mask);
    sy::require(static_cast<index_t>(router.bias.size()) == input.columns, "bias has ", router.bias.size(),
                " numbers for E = ", input.columns, " experts");
    const index_t capacity = sy::capacity_of(router.capacity, input.rows, 1, input.columns);
    plan.resize(input.rows, input.columns, 1, capacity);
    sy::continue_plan(plan, sy::origin_of(mode, fingerprint_of(router)));
    const select_biased<S> select{{plan.view().expert, plan.view().gate}, router.bias.data(), input.columns};
    sy::route_softmax(policy, sy::score_rows_of(input, 0.0f, mode.noise), mode, plan.view(),
                      softmax_settings_of(router, capacity), scratch, select);
    sy::finish_plan(plan);
}

// 5. Backward, d_gates[T, 1] -> d_scores[T, E], is the library's: it is that of every router which has the two
// functions of step 3. A gate that is no softmax brings its own route_scores_backward (see router/base.hpp).

// 6. The state between steps, moved by what the plan counted.
template <class Plan>
void update_bias(const Plan& plan, float rate, std::span<float> bias) {
    const auto& made = sy::view_of_plan(plan);
    const double mean = static_cast<double>(made.totals->counted_tokens) / static_cast<double>(made.experts);
    for (std::size_t e = 0; e < bias.size(); ++e) {
        const double missing = mean - static_cast<double>(made.load_before[e]);
        bias[e] += missing > 0 ? rate : missing < 0 ? -rate : 0.0f;
    }
}

}  // namespace engine

namespace sy = switchyard;

int main() {
    constexpr sy::index_t tokens = 2000;
    constexpr sy::index_t experts = 8;
    std::mt19937 random(3);
    std::normal_distribution<double> normal;
    // Scores that prefer the first experts: without balance expert 0 takes most tokens.
    Eigen::MatrixXd scores = Eigen::MatrixXd::NullaryExpr(
        tokens, experts, [&](Eigen::Index, Eigen::Index e) { return normal(random) - 0.5 * static_cast<double>(e); });

    std::vector<float> bias(experts, 0.0f);
    const engine::bias_router router{.bias = bias, .z_weight = 1e-3};
    sy::plan<double> plan;
    sy::workspace scratch;
    for (std::uint32_t step = 0; step <= 400; ++step) {
        route_scores(sy::seq, router, scores, sy::training{.step = step}, plan, scratch);
        if (step % 100 == 0) {
            std::printf("step %3u: busiest expert %.2f x mean\n", step, sy::statistics(plan).max_over_mean);
        }
        engine::update_bias(plan, 0.01f, bias);
    }
    const bool balanced = sy::statistics(plan).max_over_mean < 1.1;

    // The gradient of sum of gates + z-loss, by central differences at one score.
    const auto total = [&] {
        const auto made = sy::route_scores(sy::seq, router, scores, sy::training{});
        const auto gate = sy::as_eigen(made.gate());
        return gate.sum() + made.z_loss();
    };
    const auto made = sy::route_scores(sy::seq, router, scores, sy::training{});
    const Eigen::MatrixXd d_gates = Eigen::MatrixXd::Ones(tokens, 1);
    const auto d_scores = sy::route_scores_backward(sy::seq, router, made, scores, d_gates);
    scores(5, 2) += 1e-6;
    const double above = total();
    scores(5, 2) -= 2e-6;
    const double below = total();
    const double numeric = (above - below) / 2e-6;
    std::printf("d total / d score: %.8f, by differences %.8f\n", d_scores(5, 2), numeric);
    return balanced && std::abs(d_scores(5, 2) - numeric) < 1e-6 ? 0 : 1;
}
