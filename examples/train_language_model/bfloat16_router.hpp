// What Switch's selective precision avoids: a router that works in bfloat16 throughout. Weights have no float32 copy,
// and scores, exponentials, their sum (every addition rounded), gates and gradients are rounded to bfloat16's 8 bits.
//
// The library routes in float32 or wider only; this header rounds around it, so that the study can show the difference.
#pragma once

#include "parameters.hpp"
#include "threads.hpp"

#include <cmath>
#include <type_traits>

namespace study {

/// What a layer's router computes in.
enum class router_precision {
    computed,  ///< float32 (or double), whatever activations are stored in
    bfloat16,
};

/// x rounded to bfloat16, half to even.
inline float rounded(float x) { return static_cast<float>(static_cast<Eigen::bfloat16>(x)); }

template <class S>
class bfloat16_router {
  public:
    /// sy::route in bfloat16: u[T, D], w[D, E] -> plan. Rounds w itself.
    template <class Router, class U, class W>
    void route(const thread_policy& threads, const Router& router, const U& u, W&& w, sy::run_mode mode,
               sy::plan<S>& plan, sy::workspace& scratch) {
        round(w);
        plan.scores().resize(u.rows(), w.cols());
        sy::project(threads, sy::const_view(sy::as_view(u)), sy::const_view(sy::as_view(w)),
                    sy::input_noise_of(router, mode.noise, mode.is_training), mode.mask, plan.scores().view(), scratch);
        round(sy::as_eigen(plan.scores()));
        mode.width = u.cols();
        sy::route_scores(threads, router, plan.scores(), mode, plan, scratch);
        round_gates(router, plan);
    }

    /// sy::route_backward in bfloat16.
    template <class Router, class U, class W, class DW>
    void backward(const thread_policy& threads, const Router& router, const sy::plan<S>& plan, const U& u, const W& w,
                  const matrix<S>& d_gates, matrix<S>& d_u, DW&& d_w, sy::workspace& scratch) {
        d_scores_.resize(u.rows(), w.cols());
        sy::route_scores_backward(threads, router, plan, plan.scores(), d_gates, d_scores_, scratch);
        round(d_scores_);
        sy::project_backward(threads, sy::const_view(sy::as_view(u)), sy::const_view(sy::as_view(w)),
                             sy::input_noise_of(router, plan.view().origin.noise, true), sy::token_mask{},
                             sy::const_view(sy::as_view(d_scores_)), sy::as_view(d_u), sy::as_view(d_w), scratch);
        round(d_u);
        round(d_w);
    }

  private:
    template <class Matrix>
    static void round(Matrix&& numbers) {
        if constexpr (std::is_same_v<S, float>) {
            numbers = numbers.unaryExpr([](float x) { return rounded(x); });
        } else {
            sy::fail("routing in bfloat16 is for models in float32");
        }
    }

    /// The gates anew, from the rounded scores, every step of the softmax or sigmoid rounded.
    template <class Router>
    static void round_gates(const Router& router, sy::plan<S>& plan) {
        const auto& made = plan.view();
        const auto scores = sy::as_eigen(plan.scores());
        for (index_t t = 0; t < made.tokens; ++t) {
            float chosen = 0;
            for (index_t c = 0; c < made.choices; ++c) {
                const index_t position = t * made.choices + c;
                made.gate[position] =
                    made.slot[position] < 0 ? S(0) : S(gate(router, scores.row(t), made.expert[position]));
                chosen = rounded(chosen + static_cast<float>(made.gate[position]));
            }
            if constexpr (std::is_same_v<Router, sy::top_k_router>) {
                for (index_t c = 0; sy::normalizes(router) && chosen > 0 && c < made.choices; ++c) {
                    S& mine = made.gate[t * made.choices + c];
                    mine = S(rounded(static_cast<float>(mine) / chosen));
                }
            }
        }
    }

    template <class Router, class Row>
    static float gate(const Router&, const Row& scores, index_t expert) {
        if constexpr (requires(Router r) { r.solver; }) {
            return rounded(1 / rounded(1 + rounded(std::exp(-static_cast<float>(scores[expert])))));
        } else {
            const auto largest = static_cast<float>(scores.maxCoeff());
            const auto exponential = [&](index_t e) {
                return rounded(std::exp(rounded(static_cast<float>(scores[e]) - largest)));
            };
            float sum = 0;
            for (index_t e = 0; e < scores.size(); ++e) {
                sum = rounded(sum + exponential(e));
            }
            return rounded(exponential(expert) / sum);
        }
    }

    matrix<S> d_scores_;
};

}  // namespace study
