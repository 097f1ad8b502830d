#include <switchyard/switchyard.hpp>
namespace sy = switchyard;
using matrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;  // a token's numbers side by side

int main() {
    // 512 tokens x[T, D] and their router w[D, E] for 8 experts; d_y comes from the layer above.
    const matrix x = matrix::Random(512, 64), w = matrix::Random(64, 8), d_y = matrix::Ones(512, 64);
    const sy::top_k_router router{.k = 2, .renormalize = true, .capacity = {.factor = 1.25}};
    const auto plan = sy::route(sy::seq, router, x, w, sy::training{});  // with OpenMP: sy::par
    const auto rows = sy::dispatch(sy::seq, plan, x);  // expert e has the rows plan.offset(e) .. plan.offset(e + 1)
    const auto y = sy::combine(sy::seq, plan, rows);   // of the experts' output; here the experts change nothing
    const auto [d_rows, d_gates] = sy::combine_backward(sy::seq, plan, rows, d_y);  // for the experts, for the router
    const auto d_x_experts = sy::dispatch_backward(sy::seq, plan, d_rows);
    const auto [d_x_router, d_w] = sy::route_backward(sy::seq, router, plan, x, w, d_gates);  // adds the balance loss
}
