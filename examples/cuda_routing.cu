// A mixture-of-experts layer on a GPU, as an engine would run it: route, dispatch, the experts' products by cuBLAS,
// combine, all on one stream and captured in one CUDA graph. Nothing is read back in between: how many tokens an expert
// got is known to the device alone.
//
//   scores[T, E] -> plan;  x[T, D] -> rows in expert order;  rows of expert e times W_e;  y = sum of gate * output
//
// cuBLAS's batched product wants one shape for all products: the plan's rows come in blocks, each of one expert, and
// every block is a product. How many blocks there may be is known beforehand; which expert's weights each has, the
// device finds out. Padding and blocks that nobody uses are computed for nothing, and combine does not read them.
//
// The result is compared with the CPU's. Without a GPU it says so and exits with 77.
#include <switchyard/cuda.hpp>

#include <cublas_v2.h>

#include <cmath>
#include <cstdio>
#include <exception>

namespace sy = switchyard;
using sy::index_t;

namespace {

constexpr index_t tokens = 4096;
constexpr index_t experts = 16;
constexpr index_t width = 256;
constexpr index_t block = 64;  // rows
constexpr sy::top_k_router router{.k = 2, .inference_capacity = {.factor = 1.25}};

void require_cublas(cublasStatus_t status, const char* call) {
    sy::require(status == CUBLAS_STATUS_SUCCESS, call, ": ", cublasGetStatusString(status));
}

/// Where each block's rows, weights and results lie.
struct point_at_blocks {
    const std::int32_t* expert;  ///< -1 for blocks that nobody uses, which get some expert's weights
    float* rows;
    float* weights;
    float* results;
    const float** rows_of;
    const float** weights_of;
    float** results_of;

    SWITCHYARD_HD void operator()(index_t i) const {
        rows_of[i] = rows + i * block * width;
        weights_of[i] = weights + (expert[i] < 0 ? 0 : expert[i]) * width * width;
        results_of[i] = results + i * block * width;
    }
};

/// The layer and the memory it works in, all of it taken before the first step.
class layer {
  public:
    explicit layer(const sy::cuda& on, cublasHandle_t blas)
        : on_(on),
          blas_(blas),
          blocks_(sy::row_bound(tokens, router.k, experts,
                                capacity_of(router.inference_capacity, tokens, router.k, experts), block) /
                  block),
          plan_(memory_of(on)),
          scratch_(memory_of(on)),
          rows_(blocks_ * block, width, memory_of(on)),
          results_(blocks_ * block, width, memory_of(on)),
          expert_of_(1, blocks_, memory_of(on)),
          rows_of_(blocks_, memory_of(on)),
          weights_of_(blocks_, memory_of(on)),
          results_of_(blocks_, memory_of(on)) {
        plan_.set_row_block(block);
    }

    /// What a first step would need, so that the first one may be captured.
    template <class Scores>
    void make_room(const Scores& scores) {
        scratch_.reserve(sy::workspace_size<sy::cuda>([&](const auto& policy, auto& room) {
            route_scores(policy, router, scores, sy::inference{}, plan_, room);
        }));
    }

    /// Enqueues a step.
    template <class Scores, class Tokens, class Weights, class Out>
    void forward(const Scores& scores, const Tokens& x, const Weights& weights, Out& y) {
        route_scores(on_, router, scores, sy::inference{}, plan_, scratch_);
        dispatch(on_, plan_, x, rows_);
        zero_rest(on_, plan_, rows_);
        write_block_experts(on_, plan_, expert_of_);
        for_each_index(on_, blocks_,
                       point_at_blocks{expert_of_.data(), rows_.data(), weights.data(), results_.data(),
                                       rows_of_.data(), weights_of_.data(), results_of_.data()});
        // cuBLAS counts by columns, where row-major matrices are their own transposes: W' rows' = (rows W)'.
        const float one = 1;
        const float zero = 0;
        const int d = static_cast<int>(width);
        require_cublas(
            cublasSgemmBatched(blas_, CUBLAS_OP_N, CUBLAS_OP_N, d, static_cast<int>(block), d, &one, weights_of_.data(),
                               d, rows_of_.data(), d, &zero, results_of_.data(), d, static_cast<int>(blocks_)),
            "cublasSgemmBatched");
        combine(on_, plan_, results_, y);
    }

    const sy::basic_plan<float, sy::cuda_memory>& plan() const { return plan_; }

  private:
    sy::cuda on_;
    cublasHandle_t blas_;
    index_t blocks_;
    sy::basic_plan<float, sy::cuda_memory> plan_;
    sy::basic_workspace<sy::cuda_memory> scratch_;
    sy::matrix<float, sy::cuda_memory> rows_, results_;
    sy::matrix<std::int32_t, sy::cuda_memory> expert_of_;
    sy::buffer<const float*, sy::cuda_memory> rows_of_, weights_of_;
    sy::buffer<float*, sy::cuda_memory> results_of_;
};

/// Reproducible numbers between -0.5 and 0.5.
sy::matrix<float> numbers(index_t rows, index_t columns, std::uint64_t seed) {
    sy::matrix<float> m(rows, columns);
    for (index_t i = 0; i < rows; ++i) {
        for (index_t j = 0; j < columns; ++j) {
            m(i, j) = sy::uniform_at({.seed = seed}, i, j) - 0.5f;
        }
    }
    return m;
}

/// The same layer in plain loops on the CPU: the largest difference, relative to the largest number.
double difference(const sy::matrix<float>& scores, const sy::matrix<float>& x, const sy::matrix<float>& weights,
                  const sy::matrix<float>& y) {
    const auto plan = route_scores(sy::seq, router, scores);
    const auto rows = dispatch(sy::seq, plan, x);
    sy::matrix<float> results(rows.rows(), width);
    for (index_t e = 0; e < experts; ++e) {
        for (index_t r = plan.offset(e); r < plan.offset(e + 1); ++r) {
            for (index_t j = 0; j < width; ++j) {
                double sum = 0;
                for (index_t i = 0; i < width; ++i) {
                    sum += static_cast<double>(rows(r, i)) * static_cast<double>(weights(e * width + i, j));
                }
                results(r, j) = static_cast<float>(sum);
            }
        }
    }
    const auto want = combine(sy::seq, plan, results);
    double largest = 0;
    double apart = 0;
    for (index_t i = 0; i < tokens * width; ++i) {
        largest = std::fmax(largest, std::fabs(static_cast<double>(want.data()[i])));
        apart = std::fmax(apart, std::fabs(static_cast<double>(want.data()[i]) - static_cast<double>(y.data()[i])));
    }
    return apart / largest;
}

int run() {
    cudaStream_t stream = nullptr;
    sy::require_cuda(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "cudaStreamCreateWithFlags");
    cublasHandle_t blas = nullptr;
    require_cublas(cublasCreate(&blas), "cublasCreate");
    require_cublas(cublasSetStream(blas, stream), "cublasSetStream");
    require_cublas(cublasSetMathMode(blas, CUBLAS_PEDANTIC_MATH), "cublasSetMathMode");
    // A capture must not allocate: cuBLAS gets its workspace now.
    void* blas_room = nullptr;
    constexpr std::size_t blas_bytes = std::size_t{32} << 20;
    sy::require_cuda(cudaMalloc(&blas_room, blas_bytes), "cudaMalloc");
    require_cublas(cublasSetWorkspace(blas, blas_room, blas_bytes), "cublasSetWorkspace");

    const sy::cuda on{.stream = stream};
    const auto scores = numbers(tokens, experts, 1);
    const auto x = numbers(tokens, width, 2);
    const auto weights = numbers(experts * width, width, 3);
    const auto device_scores = copy_to_device(on, scores);
    const auto device_x = copy_to_device(on, x);
    const auto device_weights = copy_to_device(on, weights);
    sy::matrix<float, sy::cuda_memory> y(tokens, width, memory_of(on));
    layer moe(on, blas);
    moe.make_room(device_scores);

    cudaGraph_t graph = nullptr;
    cudaGraphExec_t runnable = nullptr;
    sy::require_cuda(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "cudaStreamBeginCapture");
    moe.forward(device_scores, device_x, device_weights, y);
    sy::require_cuda(cudaStreamEndCapture(stream, &graph), "cudaStreamEndCapture");
    sy::require_cuda(cudaGraphInstantiate(&runnable, graph, 0), "cudaGraphInstantiate");
    sy::require_cuda(cudaGraphLaunch(runnable, stream), "cudaGraphLaunch");
    check(on, moe.plan());

    const double apart = difference(scores, x, weights, copy_to_host(on, y));
    std::printf("%lld tokens, %lld experts, one graph: %g from the CPU's result\n", static_cast<long long>(tokens),
                static_cast<long long>(experts), apart);
    return apart < 1e-4 ? 0 : 1;
}

}  // namespace

int main() {
    int devices = 0;
    const cudaError_t status = cudaGetDeviceCount(&devices);
    if (status != cudaSuccess || devices == 0) {
        std::printf("cuda_routing needs a GPU: %s\n",
                    status != cudaSuccess ? cudaGetErrorString(status) : "there is no CUDA device");
        return 77;
    }
    try {
        return run();
    } catch (const std::exception& problem) {
        std::fprintf(stderr, "cuda_routing: %s\n", problem.what());
        return 2;
    }
}
