// Everything the Thrust backend does, compiled by nvcc for a CUDA policy: each router forward and backward, from scores
// and from tokens, dispatch, combine and their backward, for the storage types a GPU knows. It runs where there is a
// GPU; compiling it needs none, and is what shows that no host function is called from a kernel.
#include <switchyard/thrust.hpp>

namespace sy = switchyard;

namespace {

using policy = decltype(sy::on_thrust(thrust::cuda::par_nosync.on(cudaStream_t{})));

/// From scores of any storage, on a stream.
template <class Storage, class Router>
void route_scores_and_back(const policy& on, const Router& router, const sy::matrix<Storage>& host_scores) {
    using S = sy::compute_t<Storage>;
    const auto scores = sy::copy_to_device(on, host_scores);
    sy::basic_plan<S, policy::memory> plan;
    sy::device_workspace<policy> scratch;
    sy::route_scores(on, router, scores, sy::training{}, plan, scratch);
    sy::check(on, plan);
    const sy::device_matrix<policy, Storage> d_gates(plan.tokens(), plan.choices());
    sy::device_matrix<policy, Storage> d_scores(plan.tokens(), plan.experts());
    sy::route_scores_backward(on, router, plan, scores, d_gates, d_scores, scratch);
    static_cast<void>(sy::copy_to_host(on, plan));
    static_cast<void>(sy::copy_to_host(on, d_scores));
}

/// Rows to experts and back, gates on the output or on the input.
template <class Storage>
void move_rows(const policy& on, const sy::basic_plan<float, policy::memory>& plan, const sy::matrix<Storage>& host_x) {
    const auto x = sy::copy_to_device(on, host_x);
    const auto rows = sy::dispatch(on, plan, x);
    const auto y = sy::combine(on, plan, rows);
    const auto gradients = sy::combine_backward(on, plan, rows, y);
    sy::device_matrix<policy, Storage> d_x(x.rows(), x.columns());
    sy::dispatch_backward(on, plan, gradients.d_rows, d_x);
    sy::device_matrix<policy, float> d_gates(plan.tokens(), plan.choices());
    sy::dispatch_backward(on, plan, x, gradients.d_rows, d_x, d_gates);
}

}  // namespace

void run_all(cudaStream_t stream) {
    const policy on = sy::on_thrust(thrust::cuda::par_nosync.on(stream));
    route_scores_and_back(on, sy::switch_router{}, sy::matrix<float>(64, 8));
    route_scores_and_back(on, sy::top_k_router{}, sy::matrix<float>(64, 8));
    route_scores_and_back(on, sy::top_k_router{}, sy::matrix<__half>(64, 8));
    route_scores_and_back(on, sy::switch_router{}, sy::matrix<__nv_bfloat16>(64, 8));
    route_scores_and_back(on, sy::base_router{}, sy::matrix<float>(64, 8));

    const auto x = sy::copy_to_device(on, sy::matrix<float>(64, 32));
    const auto w = sy::copy_to_device(on, sy::matrix<float>(32, 8));
    const sy::top_k_router router{.input_jitter = 1e-2f};
    const auto plan = sy::route(on, router, x, w, sy::training{});
    move_rows(on, plan, sy::matrix<float>(64, 32));
    move_rows(on, plan, sy::matrix<__half>(64, 32));
    move_rows(on, plan, sy::matrix<__nv_bfloat16>(64, 32));
    const sy::device_matrix<policy, float> d_gates(plan.tokens(), plan.choices());
    static_cast<void>(sy::route_backward(on, router, plan, x, w, d_gates));
}
