// What a layer keeps from step to step: plan, workspace, and the rows that go to the experts and come back. Optional:
// callers may keep these themselves.
//
//   layer_state<float> layer;                                      one for each layer
//   layer.forward(par, router, x, w, training{...});               routes and dispatches: rows_in() [R, D]
//   ... the experts: expert e reads rows offset(e) .. offset(e + 1) of rows_in() and writes those of rows_out()
//   layer.combine(par, y);
//   layer.combine_backward(par, d_y);                              rows_out() becomes its own gradient
//   ... the experts' backward: reads rows_out(), writes d_rows_in()
//   layer.backward(par, router, x, w, d_x, d_w);                   d_x through experts and router, losses included
//
// R is plan().row_bound(): the same at every step of a shape. Rows without a kept choice are not touched; `zero_rest`
// zeroes them. Where gates are applied to the experts' input (Llama 4), `gates_on_input` says so for all four steps.
// `output_width` is that of the rows that come back, D unless set.
//
// Nothing is allocated after the first step of a shape, and nothing waits. Movable, not copyable. Errors are those of
// route, dispatch and combine, which it calls.
//
// Not for routers with identity or shared experts, whose combine takes the tokens (router/rowless.hpp).
#pragma once

#include <switchyard/core/arguments.hpp>
#include <switchyard/core/config.hpp>
#include <switchyard/core/error.hpp>
#include <switchyard/core/matrix_view.hpp>
#include <switchyard/core/memory.hpp>
#include <switchyard/core/workspace.hpp>
#include <switchyard/dispatch/combine.hpp>
#include <switchyard/dispatch/dispatch.hpp>
#include <switchyard/dispatch/rows.hpp>
#include <switchyard/plan/plan.hpp>
#include <switchyard/router/route.hpp>

namespace switchyard {

struct layer_settings {
    bool gates_on_input = false;  ///< weigh the experts' input instead of their output
    index_t output_width = 0;     ///< numbers of a row that comes back; 0: as many as a token has
};

inline namespace SWITCHYARD_TARGET {

namespace detail {

/// to[i] += from[i], in the compute type of what is stored. Here, since nvcc takes no private class to a kernel.
template <class S, class View>
struct add_number {
    const S* from;
    View to;

    SWITCHYARD_HD void operator()(index_t i) const {
        using out = typename View::value_type;
        auto& number = to(i / to.columns, i % to.columns);
        number =
            store_scalar<out>(static_cast<compute_t<out>>(load_scalar(number)) + static_cast<compute_t<out>>(from[i]));
    }
};

}  // namespace detail

/// Rows are stored as `Storage`, gates and their gradients in its compute type.
template <class Storage, class Memory = host_memory>
class layer_state {
  public:
    using compute = compute_t<Storage>;
    using plan_type = basic_plan<compute, Memory>;
    using rows_type = matrix<Storage, Memory>;

    explicit layer_state(const layer_settings& settings = {}, const Memory& memory = {})
        : settings_(settings),
          plan_(memory),
          scratch_(memory),
          rows_in_(0, 0, memory),
          rows_out_(0, 0, memory),
          d_rows_in_(0, 0, memory),
          d_gates_(0, 0, memory) {}

    const plan_type& plan() const { return plan_; }
    plan_type& plan() { return plan_; }
    basic_workspace<Memory>& scratch() { return scratch_; }
    rows_type& rows_in() { return rows_in_; }                            ///< [R, D]
    rows_type& rows_out() { return rows_out_; }                          ///< [R, output_width]
    rows_type& d_rows_in() { return d_rows_in_; }                        ///< [R, D]
    const matrix<compute, Memory>& d_gates() const { return d_gates_; }  ///< [T, k]

    /// x[T, D], w[D, E] -> rows_in().
    template <class Policy, class Router, class X, class W>
    void forward(const Policy& policy, const Router& router, const X& x, const W& w, const run_mode& mode = {}) {
        route(policy, router, x, w, mode, plan_, scratch_);
        take_rows(detail::input_view(x).columns);
        dispatch(policy, plan_, x, rows_in_, {.apply_gates = settings_.gates_on_input});
    }

    /// rows_out() -> y[T, output_width].
    template <class Policy, class Tokens>
    void combine(const Policy& policy, Tokens&& y) {
        switchyard::combine(policy, plan_, rows_out_, y, combining());
    }

    /// d_y[T, output_width] -> rows_out(), which becomes its own gradient.
    template <class Policy, class Tokens>
    void combine_backward(const Policy& policy, const Tokens& d_y) {
        const auto& made = plan_.view();
        d_gates_.resize(made.tokens, made.choices);
        d_rows_in_.resize(rows_in_.rows(), rows_in_.columns());
        switchyard::combine_backward(policy, plan_, rows_out_, d_y, rows_out_, d_gates_, combining());
    }

    /// d_rows_in() -> d_x[T, D], d_w[D, E], from the same x and w as `forward`.
    template <class Policy, class Router, class X, class W, class DX, class DW>
    void backward(const Policy& policy, const Router& router, const X& x, const W& w, DX&& d_x, DW&& d_w,
                  const backward_settings& settings = {}) {
        const auto to_x = detail::output_view(d_x);
        if (settings_.gates_on_input) {
            const auto scope = scratch_.open();
            const matrix_view<compute, typename Memory::space> through_experts(
                scratch_.template take<compute>(to_x.rows * to_x.columns), to_x.rows, to_x.columns);
            dispatch_backward(policy, plan_, x, d_rows_in_, through_experts, d_gates_);
            route_backward(policy, router, plan_, x, w, d_gates_, d_x, d_w, scratch_, settings);
            for_each_index(
                policy, to_x.rows * to_x.columns,
                detail::add_number<compute, std::remove_const_t<decltype(to_x)>>{through_experts.data, to_x});
        } else {
            route_backward(policy, router, plan_, x, w, d_gates_, d_x, d_w, scratch_, settings);
            sum_rows(policy, plan_.view(), false, true, const_view(d_rows_in_.view()), to_x);
        }
    }

  private:
    combine_settings combining() const { return {.apply_gates = !settings_.gates_on_input}; }
    void take_rows(index_t width) {
        rows_in_.resize(plan_.row_bound(), width);
        rows_out_.resize(plan_.row_bound(), settings_.output_width != 0 ? settings_.output_width : width);
    }

    layer_settings settings_;
    plan_type plan_;
    basic_workspace<Memory> scratch_;
    rows_type rows_in_;
    rows_type rows_out_;
    rows_type d_rows_in_;
    matrix<compute, Memory> d_gates_;
};

}  // namespace SWITCHYARD_TARGET
}  // namespace switchyard
