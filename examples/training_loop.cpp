// A whole mixture-of-experts layer learning, forward and backward by hand, with nothing of switchyard's allocated after
// the first step: one plan, one workspace, and row buffers of `row_bound` rows are used again and again.
//
// (Eigen's lazyProduct, too, allocates nothing; an engine would call its grouped GEMM there.)
//
// The data: tokens of eight kinds, each kind with a linear map of its own to the target. Eight linear experts can fit
// that only if the router learns which kind goes where.
#include <switchyard/switchyard.hpp>

#include <cstdio>
#include <random>
#include <vector>

namespace sy = switchyard;
using sy::index_t;

using matrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

namespace {

constexpr index_t tokens = 1024;
constexpr index_t width = 16;
constexpr index_t experts = 8;
constexpr int steps = 400;

matrix gaussian(index_t rows, index_t columns, float deviation, std::mt19937& random) {
    std::normal_distribution<float> normal(0.0f, deviation);
    return matrix::NullaryExpr(rows, columns, [&] { return normal(random); });
}

/// The tokens and what the layer should make of them.
struct problem {
    matrix centres;            // [kinds, D]
    std::vector<matrix> maps;  // [kinds] of [D, D]

    explicit problem(std::mt19937& random) : centres(gaussian(experts, width, 1.0f, random)) {
        for (index_t kind = 0; kind < experts; ++kind) {
            maps.push_back(gaussian(width, width, 0.25f, random));
        }
    }

    void draw(matrix& x, matrix& target, std::mt19937& random) const {
        std::uniform_int_distribution<index_t> kinds(0, experts - 1);
        x = gaussian(tokens, width, 0.3f, random);
        for (index_t t = 0; t < tokens; ++t) {
            const index_t kind = kinds(random);
            x.row(t) += centres.row(kind);
            target.row(t) = x.row(t).lazyProduct(maps[static_cast<std::size_t>(kind)]);
        }
    }
};

// [layer]
/// y = sum over a token's experts of gate * (x * expert's matrix).
struct layer {
    sy::top_k_router router{.k = 2, .renormalize = true, .capacity = {.factor = 1.5}, .input_jitter = 1e-2f};
    matrix w = matrix::Zero(width, experts);  // of the router
    std::vector<matrix> expert;               // [E] of [D, D]

    // Made by forward, used by backward, kept from step to step.
    sy::plan<float> plan;
    sy::workspace scratch;
    matrix rows_in, rows_out;

    void forward(const matrix& x, matrix& y, const sy::training& step) {
        sy::route(sy::seq, router, x, w, step, plan, scratch);
        rows_in.resize(plan.row_bound(), width);  // the bound, not plan.kept(): the same at every step
        rows_out.resize(plan.row_bound(), width);
        sy::dispatch(sy::seq, plan, x, rows_in);
        for (index_t e = 0; e < experts; ++e) {
            const index_t first = plan.offset(e);
            const index_t count = plan.offset(e + 1) - first;
            rows_out.middleRows(first, count) =
                rows_in.middleRows(first, count).lazyProduct(expert[static_cast<std::size_t>(e)]);
        }
        sy::combine(sy::seq, plan, rows_out, y);
    }

    struct gradients {
        matrix x{tokens, width};
        matrix w{width, experts};
        std::vector<matrix> expert = std::vector<matrix>(experts, matrix(width, width));
        matrix x_through_experts{tokens, width};
        matrix gates{tokens, 2};
        matrix rows_in, rows_out;
    };

    void backward(const matrix& x, const matrix& d_y, gradients& d) {
        d.rows_in.resize(plan.row_bound(), width);
        d.rows_out.resize(plan.row_bound(), width);
        sy::combine_backward(sy::seq, plan, rows_out, d_y, d.rows_out, d.gates);
        for (index_t e = 0; e < experts; ++e) {
            const index_t first = plan.offset(e);
            const index_t count = plan.offset(e + 1) - first;
            const auto d_out = d.rows_out.middleRows(first, count);
            d.expert[static_cast<std::size_t>(e)] = rows_in.middleRows(first, count).transpose().lazyProduct(d_out);
            d.rows_in.middleRows(first, count) = d_out.lazyProduct(expert[static_cast<std::size_t>(e)].transpose());
        }
        sy::dispatch_backward(sy::seq, plan, d.rows_in, d.x_through_experts);
        sy::route_backward(sy::seq, router, plan, x, w, d.gates, d.x, d.w, scratch);  // the balance loss included
        d.x += d.x_through_experts;                                                   // what the layer below would get
    }
};
// [/layer]

}  // namespace

int main() {
    std::mt19937 random(1);
    const problem data(random);
    layer moe;
    sy::initialise(sy::truncated_normal{}, sy::noise_key{.seed = 1}, moe.w);
    for (index_t e = 0; e < experts; ++e) {
        moe.expert.push_back(gaussian(width, width, 0.1f, random));
    }

    matrix x(tokens, width), target(tokens, width), y(tokens, width), d_y(tokens, width);
    layer::gradients d;
    float first_loss = 0;
    float loss = 0;
    for (int step = 0; step < steps; ++step) {
        data.draw(x, target, random);
        moe.forward(x, y, sy::training{.seed = 1, .stream = 0, .step = static_cast<std::uint32_t>(step)});
        d_y = (y - target) / static_cast<float>(tokens);
        loss = 0.5f * d_y.cwiseProduct(y - target).sum();
        first_loss = step == 0 ? loss : first_loss;
        moe.backward(x, d_y, d);

        constexpr float rate = 0.5f;
        moe.w -= rate * d.w;
        for (std::size_t e = 0; e < d.expert.size(); ++e) {
            moe.expert[e] -= rate * d.expert[e];
        }
        if (step % 50 == 0 || step == steps - 1) {
            const sy::plan_statistics load = sy::statistics(moe.plan);
            std::printf("step %3d  loss %.4f  balance loss %.5f  dropped %4.1f %%  busiest expert %.2f x mean\n", step,
                        static_cast<double>(loss), moe.plan.load_balancing_loss(), 100 * load.dropped_share,
                        load.max_over_mean);
        }
    }
    const bool learned = loss < 0.2f * first_loss;
    std::printf("loss %.4f -> %.4f: %s\n", static_cast<double>(first_loss), static_cast<double>(loss),
                learned ? "learned" : "NOT LEARNED");
    return learned ? 0 : 1;
}
