// A layer that keeps its own state: the numbers of the calls that it stands for, gradients by differences, no
// allocation after the first step.
#include "support/backends.hpp"
#include "support/count_allocations.hpp"
#include "support/rows.hpp"

#include <switchyard/layer/layer_state.hpp>
#include <switchyard/router/recipe.hpp>

#include <doctest/doctest.h>

#include <cmath>

using namespace switchyard_test;

namespace {

constexpr index_t tokens = 40;
constexpr index_t width = 6;
constexpr index_t experts = 5;

sy::recipe_router<> router_of(bool gates_on_input) {
    sy::recipe_router<> router{.k = 2, .capacity = {.factor = 1.1}, .balance_weight = 0.1, .z_weight = 0.01};
    if (gates_on_input) router.score = sy::score_function::sigmoid;
    return router;
}

/// Experts that square each number and multiply it by their own: what a layer's gradients have to go through.
template <class S>
struct squares {
    static S factor(index_t expert) { return S(0.5) + S(0.25) * static_cast<S>(expert); }

    static void forward(sy::layer_state<S>& layer) {
        each(layer, [](S in, S& out, S&, S f) { out = f * in * in; });
    }
    static void backward(sy::layer_state<S>& layer) {
        each(layer, [](S in, S& d_out, S& d_in, S f) { d_in = 2 * f * in * d_out; });
    }

  private:
    template <class F>
    static void each(sy::layer_state<S>& layer, const F& f) {
        for (index_t e = 0; e < experts; ++e) {
            for (index_t row = layer.plan().offset(e); row < layer.plan().offset(e + 1); ++row) {
                for (index_t d = 0; d < width; ++d) {
                    S unused{};
                    S& d_in = layer.d_rows_in().rows() > 0 ? layer.d_rows_in()(row, d) : unused;
                    f(layer.rows_in()(row, d), layer.rows_out()(row, d), d_in, factor(e));
                }
            }
        }
    }
};

}  // namespace

TEST_CASE_TEMPLATE("layer: what route, dispatch and combine give, and nothing allocated after the first step", S, float,
                   double) {
    for (const bool gates_on_input : {false, true}) {
        CAPTURE(gates_on_input);
        const auto router = router_of(gates_on_input);
        const auto x = stored<S>(gaussian_scores(tokens, width, 1));
        const auto w = stored<S>(gaussian_scores(width, experts, 2));
        const auto d_y = stored<S>(gaussian_scores(tokens, width, 3));
        const sy::training mode{.seed = 3, .stream = 1};

        sy::layer_state<S> layer({.gates_on_input = gates_on_input});
        sy::matrix<S> y(tokens, width), d_x(tokens, width), d_w(width, experts);
        const auto step = [&] {
            layer.forward(sy::seq, router, x, w, mode);
            squares<S>::forward(layer);
            layer.combine(sy::seq, y);
            layer.combine_backward(sy::seq, d_y);
            squares<S>::backward(layer);
            layer.backward(sy::seq, router, x, w, d_x, d_w);
        };
        step();
        const long before = allocations;
        step();
        CHECK(allocations == before);

        const auto plan = sy::route(sy::seq, router, x, w, mode);
        auto rows = sy::dispatch(sy::seq, plan, x, {.apply_gates = gates_on_input});
        for (index_t row = 0; row < plan.kept(); ++row) {
            CHECK(rows(row, 0) == layer.rows_in()(row, 0));
            const index_t expert = plan.view().expert[plan.view().order[row]];
            for (index_t d = 0; d < width; ++d) rows(row, d) = squares<S>::factor(expert) * rows(row, d) * rows(row, d);
        }
        sy::matrix<S> want(tokens, width);
        sy::combine(sy::seq, plan, rows, want, {.apply_gates = !gates_on_input});
        CHECK(table_of(y) == table_of(want));

        auto moved = std::move(layer);
        CHECK(moved.plan().finished());
    }
}

TEST_CASE("layer: gradients by differences, losses included") {
    for (const bool gates_on_input : {false, true}) {
        CAPTURE(gates_on_input);
        const auto router = router_of(gates_on_input);
        auto x = stored<double>(gaussian_scores(tokens, width, 1));
        auto w = stored<double>(gaussian_scores(width, experts, 2));
        const auto d_y = stored<double>(gaussian_scores(tokens, width, 3));
        sy::layer_state<double> layer({.gates_on_input = gates_on_input});
        sy::matrix<double> y(tokens, width), d_x(tokens, width), d_w(width, experts);
        const auto total = [&] {
            layer.forward(sy::seq, router, x, w, sy::training{});
            squares<double>::forward(layer);
            layer.combine(sy::seq, y);
            double sum = layer.plan().load_balancing_loss() + layer.plan().z_loss();
            for (index_t t = 0; t < tokens; ++t) {
                for (index_t d = 0; d < width; ++d) sum += y(t, d) * d_y(t, d);
            }
            return sum;
        };
        (void)total();
        layer.combine_backward(sy::seq, d_y);
        squares<double>::backward(layer);
        layer.backward(sy::seq, router, x, w, d_x, d_w);
        const auto differ = [&](double& number, double gradient) {
            const double kept = number;
            number = kept + 1e-6;
            const double above = total();
            number = kept - 1e-6;
            const double below = total();
            number = kept;
            CHECK(std::abs((above - below) / 2e-6 - gradient) <= 1e-6 * (1 + std::abs(gradient)));
        };
        for (const index_t t : {0, 7, 39}) {
            for (index_t d = 0; d < width; ++d) differ(x(t, d), d_x(t, d));
        }
        for (index_t d = 0; d < width; ++d) {
            for (index_t e = 0; e < experts; ++e) differ(w(d, e), d_w(d, e));
        }
    }
}
