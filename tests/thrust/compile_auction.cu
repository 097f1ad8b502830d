// The auction's row programs, compiled by nvcc for a CUDA policy: on scores of a device, and within base_router. Not
// run: see compile_all.cu for what is.
#include <switchyard/thrust.hpp>

namespace sy = switchyard;
using sy::index_t;
using cuda_policy = decltype(sy::on_thrust(thrust::cuda::par_nosync.on(cudaStream_t{})));

template <class Storage>
sy::assignment_result assign_on_device(const cuda_policy& on, const sy::matrix<Storage>& host_scores,
                                       std::int32_t* experts, double* prices) {
    const auto scores = sy::copy_to_device(on, host_scores);
    sy::device_workspace<cuda_policy> scratch;
    const sy::device_assignment_problem<Storage, cuda_policy::memory::space> problem{
        .scores = sy::const_view(scores.view()),
        .bounds = sy::balanced_quotas(scores.rows(), scores.columns()),
        .initial_prices = prices};
    return solve(on, sy::auction{}, problem, {.expert_of_token = experts, .prices = prices}, scratch);
}

template sy::assignment_result assign_on_device(const cuda_policy&, const sy::matrix<float>&, std::int32_t*, double*);
template sy::assignment_result assign_on_device(const cuda_policy&, const sy::matrix<__nv_bfloat16>&, std::int32_t*,
                                                double*);

/// BASE in training, balanced by the auction.
void train_by_auction(const cuda_policy& on, const sy::device_matrix<cuda_policy, float>& scores,
                      sy::basic_plan<float, cuda_policy::memory>& plan, sy::device_workspace<cuda_policy>& scratch) {
    sy::route_scores(on, sy::base_router<sy::auction>{}, scores, sy::training{}, plan, scratch);
}
