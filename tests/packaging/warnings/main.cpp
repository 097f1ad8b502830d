// The library under strict warnings, its templates in use: included with -I, unlike Eigen.
#include <switchyard/backend/threads.hpp>
#include <switchyard/switchyard.hpp>

#include <vector>

namespace {

namespace sy = switchyard;

template <class S, class Router>
void use(const Router& router, sy::index_t choices) {
    using matrix = Eigen::Matrix<S, Eigen::Dynamic, Eigen::Dynamic>;
    const matrix x = matrix::Zero(20, 6);
    const matrix w = matrix::Zero(6, 8);
    const auto plan = sy::route(sy::seq, router, x, w, sy::training{.stream = 1});
    const auto rows = sy::dispatch(sy::seq, plan, x);
    const auto y = sy::combine(sy::seq, plan, rows);
    const auto gradients = sy::combine_backward(sy::seq, plan, rows, y);
    static_cast<void>(sy::dispatch_backward(sy::seq, plan, gradients.d_rows));
    const matrix d_gates = matrix::Zero(20, choices);
    static_cast<void>(sy::route_backward(sy::seq, router, plan, x, w, d_gates));
    static_cast<void>(sy::statistics(plan));
}

}  // namespace

int main() {
    use<float>(sy::switch_router{.capacity = {.factor = 1.0}, .input_jitter = 1e-2f, .logit_jitter = 1e-2f}, 1);
    use<float>(sy::switch_router{.capacity = {.factor = 1.0}, .no_token_left_behind = 2}, 1);
    use<float>(sy::switch_router{.sample_temperature = 1}, 1);
    use<double>(sy::top_k_router{.k = 3}, 3);
    use<Eigen::bfloat16>(sy::top_k_router{.k = 2}, 2);
    use<float>(sy::base_router{}, 1);
    use<double>(sy::base_router<sy::auction>{}, 1);
    sy::worker_pool pool(2);
    sy::par_on(pool).parallel_for(4, [](sy::index_t) {});
    sy::matrix<float> weights(8, 4);
    sy::initialise(sy::truncated_normal{}, sy::noise_key{}, weights);
    sy::initialise(sy::orthogonal{}, sy::noise_key{}, weights);
    return 0;
}
