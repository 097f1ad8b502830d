// A mixture-of-experts layer, forward and backward: route, dispatch, experts, combine.
//
//   u[T, D] -> y[T, D],   y_t = sum over the token's experts of gate * expert(u_t), 0 where all were dropped
//
// The residual is the model's. The router is any of the library's; without one the layer is dense: one expert, all
// rows. Routing computes in S whatever u is stored in (Switch's selective precision), unless `router_precision` asks
// for the router of bfloat16_router.hpp.
#pragma once

#include "bfloat16_router.hpp"
#include "experts.hpp"
#include "steered_router.hpp"
#include "stopwatch.hpp"

#include <cstdint>
#include <optional>
#include <variant>
#include <vector>

namespace study {

/// What a layer may route by.
using router_settings = std::variant<sy::switch_router, sy::top_k_router, sy::base_router<>, sy::gshard_router,
                                     sy::sparse_mixer_router, steered_router>;

struct layer_settings {
    std::optional<router_settings> router = {};  ///< none: dense
    index_t experts = 1;
    index_t hidden = 128;  ///< of each expert
    router_precision precision = router_precision::computed;
};

template <class S, class A>
class moe_layer {
  public:
    moe_layer(parameters<S>& all, const layer_settings& settings, index_t width)
        : settings_(settings), all_(all), experts_(all, settings.experts, width, settings.hidden) {
        if (settings.router) {
            w_ = all.add(width, settings.experts);
        }
    }

    // [initialise]
    void initialise(std::uint64_t seed, std::uint32_t stream) {
        experts_.initialise(seed, stream);
        if (!settings_.router) {
            return;
        }
        const sy::noise_key key{.seed = seed, .stream = stream};
        if (std::holds_alternative<sy::base_router<>>(*settings_.router)) {
            sy::initialise(sy::orthogonal{}, key, all_.value(w_));
        } else {
            sy::initialise(sy::truncated_normal{}, key, all_.value(w_));
        }
    }
    // [/initialise]

    // [forward]
    void forward(const thread_policy& threads, const matrix<A>& u, matrix<A>& y, const sy::run_mode& mode) {
        if (!settings_.router) {
            const std::int64_t offsets[] = {0, u.rows()};
            experts_.forward(threads, offsets, u, y);
            return;
        }
        {
            const auto timed = routing_time.measure();
            std::visit([&](const auto& router) { route(threads, router, u, mode); }, *settings_.router);
            rows_in_.resize(plan_.row_bound(), u.cols());  // the bound, not plan_.kept(): the same at every step
            rows_out_.resize(plan_.row_bound(), u.cols());
            sy::dispatch(threads, plan_, u, rows_in_);
        }
        experts_.forward(threads, offsets(), rows_in_, rows_out_);
        const auto timed = routing_time.measure();
        sy::combine(threads, plan_, rows_out_, y);
    }
    // [/forward]

    // [backward]
    /// d_y -> d_u, and the gradients of all weights; u as it was in forward.
    void backward(const thread_policy& threads, const matrix<A>& u, const matrix<S>& d_y, matrix<S>& d_u) {
        if (!settings_.router) {
            const std::int64_t offsets[] = {0, u.rows()};
            experts_.backward(threads, offsets, u, d_y, d_u);
            return;
        }
        {
            const auto timed = routing_time.measure();
            d_rows_in_.resize(plan_.row_bound(), u.cols());
            d_rows_out_.resize(plan_.row_bound(), u.cols());
            d_gates_.resize(u.rows(), plan_.choices());
            sy::combine_backward(threads, plan_, rows_out_, d_y, d_rows_out_, d_gates_);
        }
        experts_.backward(threads, offsets(), rows_in_, d_rows_out_, d_rows_in_);
        const auto timed = routing_time.measure();
        sy::dispatch_backward(threads, plan_, d_rows_in_, d_u);
        d_u_router_.resize(u.rows(), u.cols());
        std::visit([&](const auto& router) { route_backward(threads, router, u); }, *settings_.router);
        d_u += d_u_router_;
    }
    // [/backward]

    /// The bytes of the tokens of the next forward, for routers that choose by them.
    void see(const std::vector<std::uint8_t>& bytes) {
        if (settings_.router && std::holds_alternative<steered_router>(*settings_.router)) {
            std::get<steered_router>(*settings_.router).see(bytes);
        }
    }

    bool is_routed() const { return settings_.router.has_value(); }
    const sy::plan<S>& plan() const { return plan_; }

    stopwatch routing_time;  ///< routing, dispatch and combine with their backward

  private:
    // [route]
    template <class Router>
    void route(const thread_policy& threads, const Router& router, const matrix<A>& u, const sy::run_mode& mode) {
        if (settings_.precision == router_precision::bfloat16) {
            bfloat16_router_.route(threads, router, u, all_.value(w_), mode, plan_, scratch_);
        } else {
            sy::route(threads, router, u, all_.value(w_), mode, plan_, scratch_);
        }
    }

    /// The router's gradients: of its weights, and of its input into d_u_router_. The balance loss is included.
    template <class Router>
    void route_backward(const thread_policy& threads, const Router& router, const matrix<A>& u) {
        auto d_w = all_.gradient(w_);
        if (settings_.precision == router_precision::bfloat16) {
            bfloat16_router_.backward(threads, router, plan_, u, all_.value(w_), d_gates_, d_u_router_, d_w, scratch_);
        } else {
            sy::route_backward(threads, router, plan_, u, all_.value(w_), d_gates_, d_u_router_, d_w, scratch_);
        }
    }
    // [/route]

    // [state]
    /// Expert e owns rows offsets()[e] .. offsets()[e + 1].
    std::span<const std::int64_t> offsets() const {
        return {plan_.view().offsets, static_cast<std::size_t>(plan_.experts()) + 1};
    }

    layer_settings settings_;
    parameters<S>& all_;
    experts<S, A> experts_;
    slice w_;  // [D, E], of the router

    // Made by forward, used by backward, kept from step to step.
    sy::plan<S> plan_;
    sy::workspace scratch_;
    bfloat16_router<S> bfloat16_router_;
    matrix<A> rows_in_, rows_out_;
    matrix<S> d_rows_in_, d_rows_out_, d_gates_, d_u_router_;
    // [/state]
};

}  // namespace study
