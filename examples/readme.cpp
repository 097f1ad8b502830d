#include <switchyard/switchyard.hpp>
namespace sy = switchyard;

int main() {
    const Eigen::MatrixXf x = Eigen::MatrixXf::Random(512, 64), w = Eigen::MatrixXf::Random(64, 8);  // tokens, router
    const sy::switch_router router{.capacity = {.factor = 1.25}, .input_jitter = 1e-2f};
    const auto plan = sy::route(sy::seq, router, x, w, sy::training{.stream = 0, .step = 0});  // sy::par: OpenMP
    const auto rows = sy::dispatch(sy::seq, plan, x);        // [kept, 64]; expert e owns offset(e) .. offset(e + 1)
    const auto y = sy::combine(sy::seq, plan, rows);         // the experts' output goes in: here they change nothing
    const auto d_y = Eigen::MatrixXf::Ones(512, 64).eval();  // from the layer above
    const auto [d_rows, d_gates] = sy::combine_backward(sy::seq, plan, rows, d_y);  // to the experts, to the router
    const auto d_x = sy::dispatch_backward(sy::seq, plan, d_rows);
    const auto [d_x_router, d_w] = sy::route_backward(sy::seq, router, plan, x, w, d_gates);  // with both losses
}
