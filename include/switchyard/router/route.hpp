// Routing from tokens, forward and backward, and the allocating forms. Written once for every router: a router provides
// route_scores and route_scores_backward (see router/switch.hpp), and this header provides the rest.
//
//   auto plan = route(par, router, x, w, training{.seed = 7, .step = n});         // x[T, D], w[D, E]
//   auto plan = route_scores(par, router, scores, inference{});                    // scores[T, E]
//   auto [d_x, d_w] = route_backward(par, router, plan, x, w, d_gates);           // d_gates[T, k]
//
// The forms with `plan` and `workspace` arguments write into those and allocate nothing after the first step of a
// shape. Gradients include the router's losses, times backward_settings::loss_scale.
#pragma once

#include <switchyard/backend/policy.hpp>
#include <switchyard/core/arguments.hpp>
#include <switchyard/core/config.hpp>
#include <switchyard/core/matrix_view.hpp>
#include <switchyard/core/memory.hpp>
#include <switchyard/core/overlap.hpp>
#include <switchyard/core/sizes.hpp>
#include <switchyard/core/workspace.hpp>
#include <switchyard/plan/plan.hpp>
#include <switchyard/router/routing.hpp>
#include <switchyard/router/softmax_routing.hpp>
#include <switchyard/score/projection.hpp>

#include <concepts>

namespace switchyard {

/// Gradients of routing from tokens.
template <class DX, class DW>
struct route_gradients {
    DX d_x;  ///< [T, D]
    DW d_w;  ///< [D, E]
};

inline namespace SWITCHYARD_TARGET {

namespace detail {

/// Which rows of a plan are tokens: padding has no choice.
struct tokens_of_plan {
    const std::int32_t* expert;
    index_t choices;

    SWITCHYARD_HD bool operator()(index_t token) const {
        index_t c = 0;
        while (c < choices && expert[token * choices + c] < 0) {
            ++c;
        }
        return c < choices;
    }
};

}  // namespace detail

namespace detail {

/// What a router's own functions are called with. The forms below, which call them, do not take it.
struct mode_for_router : run_mode {};
struct backward_for_router : backward_settings {};

}  // namespace detail

/// scores[T, E] -> plan, for routers of other namespaces: calls the router's own route_scores, so that
/// switchyard::route_scores is the name of every form for every router.
template <class Policy, class Router, class Scores, class Mode, class Plan, class Workspace>
requires(!is_library_router<Router> && !std::same_as<Mode, detail::mode_for_router> &&
         std::convertible_to<Mode, run_mode>) void route_scores(const Policy& policy, const Router& router,
                                                                const Scores& scores, const Mode& mode, Plan& plan,
                                                                Workspace& scratch) {
    const detail::mode_for_router given{run_mode(mode)};
    constexpr bool is_router = requires { route_scores(policy, router, scores, given, plan, scratch); };
    static_assert(is_router,
                  "switchyard: a router needs a function route_scores(policy, router, scores, const run_mode&, plan, "
                  "workspace) in its own namespace, and this one has none that takes these arguments");
    if constexpr (is_router) route_scores(policy, router, scores, given, plan, scratch);
}

/// The same of backward, for routers that have their own.
template <class Policy, class Router, class Plan, class Scores, class Gates, class Out, class Workspace,
          class Backward = backward_settings>
requires(!is_library_router<Router> && !softmax_router<Router> &&
         !std::same_as<Backward, detail::backward_for_router> &&
         std::same_as<Backward, backward_settings>) void route_scores_backward(const Policy& policy,
                                                                               const Router& router, const Plan& plan,
                                                                               const Scores& scores,
                                                                               const Gates& d_gates, Out&& d_scores,
                                                                               Workspace& scratch,
                                                                               const Backward& backward = Backward()) {
    const detail::backward_for_router given{backward};
    constexpr bool is_router = requires {
        route_scores_backward(policy, router, plan, scores, d_gates, d_scores, scratch, given);
    };
    static_assert(is_router,
                  "switchyard: backward needs a function route_scores_backward(policy, router, plan, scores, d_gates, "
                  "d_scores, workspace, const backward_settings&) in the router's own namespace");
    if constexpr (is_router) route_scores_backward(policy, router, plan, scores, d_gates, d_scores, scratch, given);
}

/// The plan a policy makes from scores stored as Storage.
template <class Policy, class Storage>
using plan_for = basic_plan<compute_t<Storage>, typename Policy::memory>;

namespace detail {

/// Checks that x[T, D] and w[D, E] match, and that the sizes of the results can be counted.
template <class X, class W>
void require_tokens_and_weights(const X& tokens, const W& weights) {
    require_projection(tokens, weights);
    (void)product_of_sizes("numbers of x", tokens.rows, tokens.columns);
    (void)product_of_sizes("numbers of w", weights.rows, weights.columns);
    (void)product_of_sizes("scores", tokens.rows, weights.columns);
}

}  // namespace detail

/// The router's noise on its copy of the tokens; none for routers that have no such settings.
template <class Router>
input_noise input_noise_of(const Router& router, const noise_key& key, bool is_training) {
    if constexpr (requires {
                      router.input_jitter;
                      router.input_dropout;
                  }) {
        if (is_training) {
            return {router.input_jitter, router.input_dropout, key};
        }
    }
    return {};
}

namespace detail {

/// A plan that keeps the scores it was made from, as the library's do. An engine's own may not.
template <class Plan>
concept keeps_scores = requires(Plan& plan) {
    plan.scores().view();
};

template <class Plan, class Workspace>
auto take_scores(index_t tokens, index_t experts, Workspace& scratch) {
    using S = typename Plan::scalar;
    return matrix_view<S, typename Plan::space>(scratch.template take<S>(tokens * experts), tokens, experts);
}

}  // namespace detail

/// x[T, D], w[D, E] -> plan, whose scores() keep the projection for backward: x and w must not overlap them. A plan
/// without scores() is also accepted, and backward then projects again.
template <class Policy, class Router, class X, class W, class Plan, class Workspace>
void route(const Policy& policy, const Router& router, const X& x, const W& w, run_mode mode, Plan& plan,
           Workspace& scratch) {
    const auto tokens = detail::token_view(x);
    const auto weights = detail::input_view(w);
    require_space<Policy, Plan, decltype(tokens), decltype(weights)>();
    begin_plan(plan);
    detail::require_tokens_and_weights(tokens, weights);
    require_mask<Policy>(mode.mask, tokens.rows);
    const input_noise noise = input_noise_of(router, mode.noise, mode.is_training);
    mode.width = tokens.columns;
    if constexpr (detail::keeps_scores<Plan>) {
        // Before they take their shape: that may free them.
        require_apart<Policy>("plan.scores()", plan.scores().view(), "x", tokens, "w", weights);
        plan.scores().resize(tokens.rows, weights.columns);
        project(policy, tokens, weights, noise, mode.mask, plan.scores().view(), scratch);
        route_scores(policy, router, plan.scores(), mode, plan, scratch);
    } else {
        const auto scope = scratch.open();
        const auto scores = detail::take_scores<Plan>(tokens.rows, weights.columns, scratch);
        project(policy, tokens, weights, noise, mode.mask, scores, scratch);
        route_scores(policy, router, scores, mode, plan, scratch);
    }
}

/// d_gates[T, k] and the losses -> d_x[T, D], d_w[D, E]. `plan` was made by `route` in training from the same x and w:
/// shapes and settings are compared, the numbers themselves are not. d_x may be x, the same view of the same numbers.
/// Otherwise d_x and d_w must not overlap x, w, d_gates, the plan's scores or each other.
template <class Policy, class Router, class Plan, class X, class W, class Gates, class DX, class DW, class Workspace>
void route_backward(const Policy& policy, const Router& router, const Plan& plan, const X& x, const W& w,
                    const Gates& d_gates, DX&& d_x, DW&& d_w, Workspace& scratch,
                    const backward_settings& backward = {}) {
    using S = typename Plan::scalar;
    const auto tokens = detail::token_view(x);
    const auto weights = detail::input_view(w);
    const auto to_x = detail::output_view(d_x);
    const auto to_w = detail::output_view(d_w);
    const auto& made = plan.view();
    require_space<Policy, Plan, decltype(tokens), decltype(weights), decltype(to_x), decltype(to_w)>();
    detail::require_tokens_and_weights(tokens, weights);
    require_finished(made);
    require(made.origin.width == tokens.columns, "the plan was made from ",
            made.origin.width == 0 ? "scores" : "tokens of another width", "; backward was given tokens of width ",
            tokens.columns);
    require_same_shape("d_x", to_x, "x", tokens);
    require_same_shape("d_w", to_w, "w", weights);
    require_apart_or_same<Policy>("d_x", to_x, "x", tokens);
    require_apart<Policy>("d_x", to_x, "w", weights, "d_gates", detail::input_view(d_gates));
    require_apart<Policy>("d_w", to_w, "x", tokens, "w", weights, "d_gates", detail::input_view(d_gates), "d_x", to_x);
    if constexpr (detail::keeps_scores<const Plan>) {
        require_apart<Policy>("d_x", to_x, "plan.scores()", plan.scores().view());
        require_apart<Policy>("d_w", to_w, "plan.scores()", plan.scores().view());
    }
    const auto scope = scratch.open();
    const matrix_view<S, typename Plan::space> d_scores(scratch.template take<S>(tokens.rows * weights.columns),
                                                        tokens.rows, weights.columns);
    if constexpr (detail::keeps_scores<const Plan>) {
        route_scores_backward(policy, router, plan, plan.scores(), d_gates, d_scores, scratch, backward);
    } else {
        // In place: routers take their scores' gradient where the scores lie.
        project(policy, tokens, weights, input_noise_of(router, made.origin.noise, true), token_mask{}, d_scores,
                scratch);
        route_scores_backward(policy, router, made, d_scores, d_gates, d_scores, scratch, backward);
    }
    project_backward(policy, tokens, weights, input_noise_of(router, made.origin.noise, true),
                     detail::tokens_of_plan{made.expert, made.choices}, const_view(d_scores), to_x, to_w, scratch);
}

/// Allocates the plan.
template <class Policy, class Router, class Scores>
auto route_scores(const Policy& policy, const Router& router, const Scores& scores, const run_mode& mode = {}) {
    plan_for<Policy, detail::number_of<Scores>> plan(memory_of(policy));
    basic_workspace<typename Policy::memory> scratch(memory_of(policy));
    route_scores(policy, router, scores, mode, plan, scratch);
    return plan;
}

/// Allocates the plan.
template <class Policy, class Router, class X, class W>
auto route(const Policy& policy, const Router& router, const X& x, const W& w, const run_mode& mode = {}) {
    plan_for<Policy, detail::number_of<X>> plan(memory_of(policy));
    basic_workspace<typename Policy::memory> scratch(memory_of(policy));
    route(policy, router, x, w, mode, plan, scratch);
    return plan;
}

/// Allocates d_scores[T, E] in the compute type: narrow numbers would lose most of a gradient divided by T.
template <class Policy, class Router, class Plan, class Scores, class Gates>
auto route_scores_backward(const Policy& policy, const Router& router, const Plan& plan, const Scores& scores,
                           const Gates& d_gates, const backward_settings& backward = {}) {
    using memory = typename Policy::memory;
    const auto input = detail::token_view(scores);
    matrix<compute_t<detail::number_of<Scores>>, memory> d_scores(input.rows, input.columns, memory_of(policy));
    basic_workspace<memory> scratch(memory_of(policy));
    route_scores_backward(policy, router, plan, scores, d_gates, d_scores, scratch, backward);
    return d_scores;
}

/// Allocates d_x[T, D] and d_w[D, E] in the compute types of x and w.
template <class Policy, class Router, class Plan, class X, class W, class Gates>
auto route_backward(const Policy& policy, const Router& router, const Plan& plan, const X& x, const W& w,
                    const Gates& d_gates, const backward_settings& backward = {}) {
    using memory = typename Policy::memory;
    const auto tokens = detail::token_view(x);
    const auto weights = detail::input_view(w);
    route_gradients<matrix<compute_t<detail::number_of<X>>, memory>, matrix<compute_t<detail::number_of<W>>, memory>>
        gradients{{tokens.rows, tokens.columns, memory_of(policy)}, {weights.rows, weights.columns, memory_of(policy)}};
    basic_workspace<memory> scratch(memory_of(policy));
    route_backward(policy, router, plan, x, w, d_gates, gradients.d_x, gradients.d_w, scratch, backward);
    return gradients;
}

}  // namespace SWITCHYARD_TARGET
}  // namespace switchyard
