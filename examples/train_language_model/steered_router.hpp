// A recipe whose choice goes by more than its scores: by a bias that balances without a loss, or by ids made elsewhere.
//
//   steering     what changes from step to step                          the choice
//   signs        a bias, by the signs of a step's loads                  of score + bias (DeepSeek-V3)
//   quantiles    a bias, by exact quantiles of a step's scores           of score + bias
//   sinkhorn     a bias of this step's scores, in training alone         of score + bias (S-BASE)
//   hash         nothing: experts of each byte, by chance, once          the token's byte (Hash layers)
//   random       experts by chance                                       as they are
//   in_turn      experts in turn                                         as they are
//
// It is a router of the study's own: sy::route and sy::route_backward find the two functions below. What a layer learns
// from step to step lies in the router, so that a layer has one of its own.
#pragma once

#include <switchyard/switchyard.hpp>

#include <cstdint>
#include <span>
#include <utility>
#include <vector>

namespace study {

namespace sy = switchyard;
using sy::index_t;

enum class steering { signs, quantiles, sinkhorn, hash, random, in_turn };

class steered_router {
  public:
    steered_router(const sy::recipe_router<>& recipe, steering by) : by_(by), state_{.recipe = recipe} {}

    /// The bytes of the tokens that are routed next, which `hash` chooses by.
    void see(const std::vector<std::uint8_t>& bytes) { state_.bytes.assign(bytes.begin(), bytes.end()); }

    /// The recipe as it routed last.
    const sy::recipe_router<>& recipe() const { return state_.recipe; }

    template <class Policy, class Scores, class Plan, class Workspace>
    void route(const Policy& policy, const Scores& scores, const sy::run_mode& mode, Plan& plan,
               Workspace& scratch) const {
        const auto [tokens, experts] = shape_of(scores);
        sy::recipe_router<>& recipe = state_.recipe;
        std::vector<float>& bias = state_.bias;
        bias.resize(static_cast<std::size_t>(experts));
        if (by_ == steering::hash || by_ == steering::random || by_ == steering::in_turn) {
            give_choices(policy, tokens, experts, mode.noise);
        } else if (by_ == steering::sinkhorn && !mode.is_training) {
            recipe.selection_bias = {};  // greedy
        } else {
            recipe.selection_bias = {bias.data(), experts};
        }
        if (by_ == steering::sinkhorn && mode.is_training) {
            sy::sinkhorn_bias(policy, scores, {}, mode.mask, bias.data(), scratch);
        }
        sy::route_scores(policy, recipe, scores, mode, plan, scratch);
        if (by_ == steering::signs && mode.is_training) {
            sy::update_bias(policy, plan, rate, bias.data());
        } else if (by_ == steering::quantiles && mode.is_training) {
            std::vector<float> quantiles(bias.size());
            sy::balancing_quantiles(policy, scores, recipe.k, recipe.selection_bias, std::span(quantiles), scratch);
            sy::update_bias_by_quantiles(policy, quantiles.data(), experts, 0.0, bias.data());
        }
    }

  private:
    static constexpr float rate = 1e-3f;  // DeepSeek-V3's

    template <class Scores>
    static std::pair<index_t, index_t> shape_of(const Scores& scores) {
        const auto s = sy::as_view(scores);
        return {s.rows, s.columns};
    }

    template <class Policy>
    void give_choices(const Policy& policy, index_t tokens, index_t experts, const sy::noise_key& noise) const {
        const index_t k = state_.recipe.k;
        const auto numbers = [k](std::vector<std::int32_t>& list, index_t rows) {
            list.resize(static_cast<std::size_t>(rows * k));
            return sy::matrix_view<std::int32_t>(list.data(), rows, k);
        };
        const auto ids = numbers(state_.ids, tokens);
        if (by_ == steering::random) {
            sy::random_choices(policy, experts, noise, ids);
        } else if (by_ == steering::in_turn) {
            sy::round_robin_choices(policy, experts, 0, ids);
        } else {
            sy::require(static_cast<index_t>(state_.bytes.size()) == tokens, "the router by bytes has seen ",
                        state_.bytes.size(), " bytes for ", tokens, " tokens");
            const auto table = numbers(state_.table, 256);
            sy::random_choices(policy, experts, {.seed = 1}, table);
            const sy::matrix_view<const std::int32_t> bytes(state_.bytes.data(), tokens, 1);
            sy::table_choices(policy, sy::const_view(table), bytes, ids);
        }
        state_.recipe.choices = sy::const_view(ids);
    }

    /// What changes from step to step. Routing takes routers as they are, const.
    struct changing {
        sy::recipe_router<> recipe;
        std::vector<float> bias = {};
        std::vector<std::int32_t> bytes = {}, table = {}, ids = {};
    };

    steering by_;
    mutable changing state_;
};

template <class Policy, class Scores, class Plan, class Workspace>
void route_scores(const Policy& policy, const steered_router& router, const Scores& scores, const sy::run_mode& mode,
                  Plan& plan, Workspace& scratch) {
    router.route(policy, scores, mode, plan, scratch);
}

template <class Policy, class Plan, class Scores, class Gates, class Out, class Workspace>
void route_scores_backward(const Policy& policy, const steered_router& router, const Plan& plan, const Scores& scores,
                           const Gates& d_gates, Out&& d_scores, Workspace& scratch,
                           const sy::backward_settings& backward) {
    sy::route_scores_backward(policy, router.recipe(), plan, scores, d_gates, d_scores, scratch, backward);
}

}  // namespace study
