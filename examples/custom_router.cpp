// A router of one's own: tokens stay with the expert that they had, and a bias balances without a loss (Wang et al.
// 2024, arXiv 2408.15664). Experts that stay need not be loaded again.
//
//   key     = s_te + b_e + stay [e = previous_t]     steers the choice and nothing else
//   experts = the k largest keys
//   gate_c  = softmax(s_t)[expert_c]                 from the scores as they are, so backward never sees the keys
//   after each step:  b_e += rate * sign(mean load - load_e)
#include <switchyard/switchyard.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <random>
#include <span>
#include <vector>

namespace engine {

namespace sy = switchyard;
using sy::index_t;

// 1. The settings: an aggregate. Bias and previous experts are state between steps; the router only looks at them.
struct sticky_router {
    index_t k = 1;
    std::span<const float> bias{};             ///< [E], in the memory of the policy that routes
    std::span<const std::int32_t> previous{};  ///< [T], -1 for none, in the same memory; or empty
    float stay = 0;
    sy::capacity_rule capacity{};  ///< none: nothing is dropped
    double z_weight = 0;
};

// 2. The keys of W experts from `first` on. The library calls this where it reads the scores: on vectors of W numbers
// on a CPU, with W = 1 on a device and in its kernels. What is returned for forbidden experts is not used.
template <class S>
struct sticky_keys {
    const float* bias;
    const std::int32_t* previous;  ///< or null
    S stay;
    index_t experts;

    SWITCHYARD_HD static bool needs_row_sum() { return false; }  // of the exponentials

    template <int W>
    SWITCHYARD_HD sy::pack<S, W> operator()(index_t token, index_t first, sy::pack<S, W> score, S, S) const {
        const index_t stays = previous != nullptr ? previous[token] : -1;
        S added[W];
        for (int i = 0; i < W; ++i) {
            const index_t expert = first + i;
            added[i] = expert < experts ? static_cast<S>(bias[expert]) + (expert == stays ? stay : S(0)) : S(0);
        }
        return score + sy::pack<S, W>::load(added);
    }
};

// 3. What the settings come down to, a fingerprint of those that backward depends on, and what they must be.
inline sy::softmax_settings softmax_settings_of(const sticky_router& router, index_t capacity) {
    return {.z_weight = router.z_weight, .may_drop = capacity != sy::unlimited};
}
inline std::uint64_t fingerprint_of(const sticky_router& router) {
    return sy::fingerprint('S', router.k, router.z_weight);
}
inline void require_settings(const sticky_router& router, index_t experts, const sy::run_mode&) {
    sy::require(router.k >= 1 && router.k <= experts, "k = ", router.k, " must lie in 1..E = ", experts);
    sy::require(static_cast<index_t>(router.bias.size()) == experts, "bias has ", router.bias.size(),
                " numbers for E = ", experts, " experts");
}

// 4. Forward: scores[T, E] -> plan. The library's route(), its allocating forms, dispatch and combine find it by name.
template <class Policy, sy::matrix_like Scores, class Plan, class Workspace>
void route_scores(const Policy& policy, const sticky_router& router, const Scores& scores, const sy::run_mode& mode,
                  Plan& plan, Workspace& scratch) {
    using S = typename Plan::scalar;
    const auto choose = [&](const auto& source, const sy::softmax_settings& settings, const auto& made) {
        sy::require(router.previous.empty() || static_cast<index_t>(router.previous.size()) == made.tokens,
                    "previous has ", router.previous.size(), " experts for T = ", made.tokens, " tokens");
        const sticky_keys<S> keys{router.bias.data(), router.previous.empty() ? nullptr : router.previous.data(),
                                  static_cast<S>(router.stay), made.experts};
        sy::route_softmax(
            policy, source, mode, made, settings, scratch,
            sy::select_list<S, sticky_keys<S>>{made.expert, made.gate, made.experts, router.k, {settings.gates}, keys});
    };
    sy::route_by_rows(policy, router, router.k, scores, mode, plan, scratch, choose);
}

// 5. Backward, d_gates[T, k] -> d_scores[T, E], is the library's: it is that of every router which has the two
// functions of step 3. Other score functions and normalised gates are `softmax_settings::gates`.

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
    std::vector<std::int32_t> previous(tokens, -1);
    const engine::sticky_router router{.bias = bias, .previous = previous, .stay = 0.1f, .z_weight = 1e-3};
    sy::plan<double> plan;
    sy::workspace scratch;
    for (std::uint32_t step = 0; step <= 400; ++step) {
        route_scores(sy::seq, router, scores, sy::training{.step = step}, plan, scratch);
        if (step % 100 == 0) {
            std::printf("step %3u: busiest expert %.2f x mean\n", step, sy::statistics(plan).max_over_mean);
        }
        sy::update_bias(sy::seq, plan, 0.01f, bias.data());
        std::copy(plan.view().expert, plan.view().expert + tokens, previous.begin());
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
