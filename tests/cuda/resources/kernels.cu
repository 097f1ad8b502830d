// Every kernel of the library, compiled and never run: what each takes of a device is read from ptxas by resources.py.
// Row kernels have one instance a class of widths, so that E in {8, 64, 256, 1024} and any other are all here; k is no
// part of an instance.
#include <switchyard/cuda.hpp>

namespace sy = switchyard;
using sy::index_t;

namespace {

template <class T>
using view = sy::matrix_view<T, sy::cuda_space>;

using device_plan = sy::basic_plan<float, sy::cuda_memory>;
using device_scratch = sy::basic_workspace<sy::cuda_memory>;

template <class Storage, class Router>
void route_both_ways(const sy::cuda& on, const Router& router, view<const Storage> scores, view<const float> d_gates,
                     view<Storage> d_scores, device_plan& plan, device_scratch& scratch) {
    route_scores(on, router, scores, sy::training{}, plan, scratch);
    route_scores_backward(on, router, plan, scores, d_gates, d_scores, scratch);
}

template <class Storage>
void move(const sy::cuda& on, const device_plan& plan, view<const Storage> x, view<Storage> rows, view<Storage> y,
          view<float> d_gates) {
    dispatch(on, plan, x, rows);
    combine(on, plan, rows, y);
    combine_backward(on, plan, rows, y, rows, d_gates);
    dispatch_backward(on, plan, x, rows, y, d_gates);
}

}  // namespace

/// Not in a namespace without a name: somebody might call it.
template <class Storage>
void use_all(const sy::cuda& on, view<const Storage> in, view<Storage> out, view<float> gates, device_plan& plan,
             device_scratch& scratch) {
    const view<const float> d_gates(gates.data, gates.rows, gates.columns);
    route_both_ways(on, sy::switch_router{}, in, d_gates, out, plan, scratch);
    route_both_ways(on, sy::top_k_router{}, in, d_gates, out, plan, scratch);
    route_both_ways(on, sy::recipe_router<sy::cuda_space>{}, in, d_gates, out, plan, scratch);
    route_both_ways(on, sy::base_router<sy::hungarian>{}, in, d_gates, out, plan, scratch);
    route_both_ways(on, sy::base_router<sy::async_auction>{}, in, d_gates, out, plan, scratch);
    move(on, plan, in, out, out, gates);
}
template void use_all<float>(const sy::cuda&, view<const float>, view<float>, view<float>, device_plan&,
                             device_scratch&);
template void use_all<__nv_bfloat16>(const sy::cuda&, view<const __nv_bfloat16>, view<__nv_bfloat16>, view<float>,
                                     device_plan&, device_scratch&);

/// What computes in the scores' own type, whatever they are stored as.
void use_once(const sy::cuda& on, view<const float> x, view<const float> w, view<const float> d_gates, view<float> d_x,
              view<float> d_w, device_plan& plan, device_scratch& scratch) {
    route(on, sy::switch_router{}, x, w, sy::training{}, plan, scratch);
    route_backward(on, sy::switch_router{}, plan, x, w, d_gates, d_x, d_w, scratch);
    const sy::device_assignment_problem<float, sy::cuda_space> problem{
        .scores = x, .bounds = sy::balanced_quotas(x.rows, x.columns)};
    solve(on, sy::auction{}, problem, {}, scratch);
}
