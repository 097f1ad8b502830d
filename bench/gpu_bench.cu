// What each operation takes on a GPU: microseconds by CUDA's events, the bytes that it cannot avoid moving, and the
// share of the device's peak bandwidth that this is.
//
//   gpu_bench [--quick] [--only TEXT]     a table of Markdown on stdout; --quick times every row once, --only those
//                                         whose operation and shape contain TEXT ("top_k_route 65536 x 256")
//
// Medians of 31 runs, after 5 that do not count. Four figures per row, launches included:
//   cold     on a stream, after a buffer of twice the L2 cache was read: the cache holds clean lines of other data
//   graph    the same, captured in a CUDA graph; - where the operation waits for the host
//   dirty    on a stream, after that buffer was written: the cache has to write it back meanwhile
//   warm     on a stream, after a run of the same operation on the same data
// A short wait on the device stands before each timed run, so that the host has enqueued the whole operation when it
// begins.
//
// The share is that of `cold`. Compulsory bytes: each input read once, each output written once (docs/gpu.md). The
// first rows are what to compare with: a copy, and launches of an empty kernel, once, three times and 300 times.
// `memcpy` copies as many bytes as dispatch moves. Rows of `bf16` read and write bfloat16 numbers; arithmetic, gates
// and their gradients are float.
//
// Balanced assignment is compared with reading its scores once, 4 T E bytes, and nothing else: that any solver has to.
// What ours read is many times that (docs/assignment/device.md), and `base_exact` has a copy to the host, the wait for
// it and the host's own solver between its two events; so these shares say how far a balanced step is from a greedy
// one, not how well its kernels use the memory. `cold` in a name begins without prices, `warm` with those of the run
// before on the same scores.
//
// Where the driver does not tell clock and width of the memory, the peak is not known, and the last column is `-`.
//
// Without a GPU it says so and exits with 77.
#include <switchyard/cuda.hpp>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <exception>
#include <initializer_list>
#include <string>
#include <vector>

namespace sy = switchyard;
using sy::index_t;

namespace {

template <class T>
using device_numbers = sy::matrix<T, sy::cuda_memory>;
using device_floats = device_numbers<float>;

/// What the L2 cache holds when an operation begins.
enum class cache { read, written, warm };

constexpr int block_threads = 256;

/// Reads `count` words; the store never happens, and the compiler does not know it.
__global__ void read_all(const unsigned* words, std::size_t count, unsigned* never) {
    unsigned sum = 0;
    for (std::size_t i = blockIdx.x * std::size_t{block_threads} + threadIdx.x; i < count;
         i += std::size_t{gridDim.x} * block_threads) {
        sum |= words[i];
    }
    if (sum == 0x9e3779b9u) *never = sum;
}

__global__ void nothing() {}

/// Keeps a stream busy for about `microseconds`.
__global__ void wait_for(unsigned microseconds) {
    for (unsigned i = 0; i < microseconds; ++i) __nanosleep(1000);
}

/// Times what is enqueued on a stream.
class stopwatch {
  public:
    explicit stopwatch(cudaStream_t stream, int runs) : stream_(stream), runs_(runs) {
        sy::require_cuda(cudaEventCreate(&begin_), "cudaEventCreate");
        sy::require_cuda(cudaEventCreate(&end_), "cudaEventCreate");
        int device = 0;
        int cache_bytes = 0;
        sy::require_cuda(cudaGetDevice(&device), "cudaGetDevice");
        sy::require_cuda(cudaDeviceGetAttribute(&cache_bytes, cudaDevAttrL2CacheSize, device),
                         "cudaDeviceGetAttribute");
        flush_bytes_ = 2 * static_cast<std::size_t>(std::max(cache_bytes, 1 << 20));
        sy::require_cuda(cudaMalloc(&flush_, flush_bytes_), "cudaMalloc");
        sy::require_cuda(cudaMemsetAsync(flush_, 1, flush_bytes_, stream_), "cudaMemsetAsync");
    }
    stopwatch(const stopwatch&) = delete;
    stopwatch& operator=(const stopwatch&) = delete;
    ~stopwatch() {
        cudaFree(flush_);
        cudaEventDestroy(begin_);
        cudaEventDestroy(end_);
    }

    /// The median of the runs, in microseconds.
    template <class F>
    double operator()(cache before, const F& enqueue) const {
        const int warming = runs_ > 1 ? 5 : 1;
        std::vector<float> times;
        for (int run = 0; run < warming + runs_; ++run) {
            prepare(before, run, enqueue);
            sy::require_cuda(cudaEventRecord(begin_, stream_), "cudaEventRecord");
            enqueue();
            sy::require_cuda(cudaEventRecord(end_, stream_), "cudaEventRecord");
            sy::require_cuda(cudaEventSynchronize(end_), "cudaEventSynchronize");
            float milliseconds = 0;
            sy::require_cuda(cudaEventElapsedTime(&milliseconds, begin_, end_), "cudaEventElapsedTime");
            if (run >= warming) times.push_back(1000 * milliseconds);
        }
        std::nth_element(times.begin(), times.begin() + times.size() / 2, times.end());
        return times[times.size() / 2];
    }

    /// The same of a graph of what `enqueue` enqueues.
    template <class F>
    double in_graph(cache before, const F& enqueue) const {
        cudaGraph_t graph = nullptr;
        cudaGraphExec_t ready = nullptr;
        enqueue();
        sy::require_cuda(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal), "cudaStreamBeginCapture");
        enqueue();
        sy::require_cuda(cudaStreamEndCapture(stream_, &graph), "cudaStreamEndCapture");
        sy::require_cuda(cudaGraphInstantiate(&ready, graph, 0), "cudaGraphInstantiate");
        const double time =
            (*this)(before, [&] { sy::require_cuda(cudaGraphLaunch(ready, stream_), "cudaGraphLaunch"); });
        cudaGraphExecDestroy(ready);
        cudaGraphDestroy(graph);
        return time;
    }

  private:
    template <class F>
    void prepare(cache before, int run, const F& enqueue) const {
        if (before == cache::read) {
            read_all<<<1024, block_threads, 0, stream_>>>(
                static_cast<const unsigned*>(flush_), flush_bytes_ / sizeof(unsigned), static_cast<unsigned*>(flush_));
        } else if (before == cache::written) {
            sy::require_cuda(cudaMemsetAsync(flush_, run % 2, flush_bytes_, stream_), "cudaMemsetAsync");
        } else {
            enqueue();
        }
        wait_for<<<1, 1, 0, stream_>>>(100);
        sy::require_cuda(cudaGetLastError(), "a launch");
    }

    cudaStream_t stream_;
    int runs_;
    cudaEvent_t begin_ = nullptr;
    cudaEvent_t end_ = nullptr;
    void* flush_ = nullptr;
    std::size_t flush_bytes_ = 0;
};

/// Bytes a second that the memory could move, by its clock and width; 0 where the driver does not say.
double peak_bandwidth() {
    int device = 0;
    int kilohertz = 0;
    int bits = 0;
    sy::require_cuda(cudaGetDevice(&device), "cudaGetDevice");
    if (cudaDeviceGetAttribute(&kilohertz, cudaDevAttrMemoryClockRate, device) != cudaSuccess ||
        cudaDeviceGetAttribute(&bits, cudaDevAttrGlobalMemoryBusWidth, device) != cudaSuccess) {
        return 0;
    }
    return 2.0 * 1000.0 * kilohertz * bits / 8;
}

/// Gaussian-like scores: a sum of uniform numbers.
template <class Storage = float>
device_numbers<Storage> random_numbers(const sy::cuda& on, index_t rows, index_t columns, std::uint64_t seed) {
    sy::matrix<Storage> host(rows, columns);
    for (index_t i = 0; i < rows; ++i) {
        for (index_t j = 0; j < columns; ++j) {
            const sy::philox_words words = sy::noise_words({.seed = seed}, i, j);
            host(i, j) = sy::store_scalar<Storage>(sy::uniform(words.word[0]) + sy::uniform(words.word[1]) +
                                                   sy::uniform(words.word[2]) - 1.5f);
        }
    }
    return copy_to_device(on, host);
}

/// Memory by cudaMalloc, which profilers know in every version.
class plain_memory final : public sy::cuda_resource {
  public:
    void* allocate(std::size_t bytes, cudaStream_t) override {
        void* made = nullptr;
        sy::require_cuda(cudaMalloc(&made, bytes), "cudaMalloc");
        return made;
    }
    void deallocate(void* pointer, std::size_t, cudaStream_t) noexcept override { cudaFree(pointer); }
};

struct shape {
    index_t tokens, experts, choices, width;
};

/// Whether an operation can be captured in a graph: it waits for nothing.
enum class capture { yes, no };

class table {
  public:
    table(const stopwatch& watch, double peak, std::string only) : watch_(watch), peak_(peak), only_(std::move(only)) {
        std::printf("| operation | tokens x experts, k, width | cold | graph | dirty | warm | MB | GB/s | of peak |\n");
        std::printf("|---|---|---:|---:|---:|---:|---:|---:|---:|\n");
    }

    /// Whether any of these operations is asked for: their numbers need not be drawn otherwise.
    bool wants(const shape& s, std::initializer_list<std::string> operations) const {
        return std::any_of(operations.begin(), operations.end(), [&](const std::string& operation) {
            return (operation + " " + sizes_of(s)).find(only_) != std::string::npos;
        });
    }

    template <class F>
    void row(const std::string& operation, const shape& s, double bytes, const F& enqueue,
             capture captured = capture::yes) const {
        if (!wants(s, {operation})) return;
        const double cold = watch_(cache::read, enqueue);
        const double dirty = watch_(cache::written, enqueue);
        const double warm = watch_(cache::warm, enqueue);
        char graph[32] = "-";
        if (captured == capture::yes) {
            std::snprintf(graph, sizeof graph, "%.1f", watch_.in_graph(cache::read, enqueue));
        }
        std::printf("| %s | %s | %.1f | %s | %.1f | %.1f | %.2f | %.0f | %s |\n", operation.c_str(),
                    sizes_of(s).c_str(), cold, graph, dirty, warm, bytes / 1e6, bytes / cold / 1e3,
                    share_of_peak(bytes / (1e-6 * cold)).c_str());
        std::fflush(stdout);
    }

  private:
    static std::string sizes_of(const shape& s) {
        return std::to_string(s.tokens) + " x " + std::to_string(s.experts) + ", " + std::to_string(s.choices) + ", " +
               std::to_string(s.width);
    }

    /// In words: a share of what is not known is none.
    std::string share_of_peak(double bytes_a_second) const {
        if (peak_ <= 0) return "-";
        char share[32];
        std::snprintf(share, sizeof share, "%.0f %%", 100 * bytes_a_second / peak_);
        return share;
    }

    const stopwatch& watch_;
    double peak_;
    std::string only_;
};

/// What any operation is compared with: moving bytes, and launching nothing.
void time_ceilings(const sy::cuda& on, const table& rows) {
    constexpr index_t numbers = index_t{1} << 28;
    if (!rows.wants({1, 0, 0, numbers}, {"copy"})) return;
    const device_numbers<float> from(1, numbers, memory_of(on));
    device_numbers<float> to(1, numbers, memory_of(on));
    sy::require_cuda(cudaMemsetAsync(const_cast<float*>(from.data()), 0, sizeof(float) * numbers, on.stream), "memset");
    rows.row("copy", {1, 0, 0, numbers}, 8.0 * static_cast<double>(numbers), [&] {
        sy::require_cuda(
            cudaMemcpyAsync(to.data(), from.data(), sizeof(float) * numbers, cudaMemcpyDeviceToDevice, on.stream),
            "cudaMemcpyAsync");
    });
    for (const index_t launches : {1, 2, 3, 300}) {
        rows.row("launches", {launches, 0, 0, 0}, 0, [&] {
            for (index_t i = 0; i < launches; ++i) nothing<<<132, block_threads, 0, on.stream>>>();
            sy::require_cuda(cudaGetLastError(), "a launch");
        });
    }
}

/// Forward and backward of a softmax router. `name` ends in what the scores are stored as, where that is not float.
template <class Storage, class Router>
void time_routing(const sy::cuda& on, const table& rows, const shape& s, const std::string& name,
                  const Router& router) {
    if (!rows.wants(s, {name + "_route", name + "_route_backward"})) return;
    const auto scores = random_numbers<Storage>(on, s.tokens, s.experts, 1);
    const auto d_gates = random_numbers(on, s.tokens, s.choices, 2);
    device_numbers<Storage> d_scores(s.tokens, s.experts, memory_of(on));
    sy::basic_plan<float, sy::cuda_memory> plan(memory_of(on));
    sy::basic_workspace<sy::cuda_memory> scratch(memory_of(on));
    const double t = static_cast<double>(s.tokens);
    const double score_bytes = sizeof(Storage) * t * static_cast<double>(s.experts);
    const double choice_bytes = t * static_cast<double>(s.choices);
    route_scores(on, router, scores, sy::training{.seed = 1}, plan, scratch);  // backward may be all that is asked for
    // A choice's expert, slot, gate and place in the order; a row's maximum and sum.
    rows.row(name + "_route", s, score_bytes + 20 * choice_bytes + 8 * t,
             [&] { route_scores(on, router, scores, sy::training{.seed = 1}, plan, scratch); });
    rows.row(name + "_route_backward", s, 2 * score_bytes + 12 * choice_bytes + 8 * t,
             [&] { route_scores_backward(on, router, plan, scores, d_gates, d_scores, scratch); });
    check(on, plan);
}

/// BASE: greedy at inference, and in training by each of the solvers that are kernels.
void time_base(const sy::cuda& on, const table& rows, const shape& s) {
    if (!rows.wants(s, {"base_greedy_route", "base_route_backward", "base_exact_cold", "base_exact_warm",
                        "base_async_cold", "base_async_warm"})) {
        return;
    }
    const auto scores = random_numbers(on, s.tokens, s.experts, 1);
    const auto d_gates = random_numbers(on, s.tokens, 1, 2);
    device_floats d_scores(s.tokens, s.experts, memory_of(on));
    sy::basic_plan<float, sy::cuda_memory> plan(memory_of(on));
    sy::basic_workspace<sy::cuda_memory> scratch(memory_of(on));
    const double t = static_cast<double>(s.tokens);
    const double score_bytes = 4.0 * t * static_cast<double>(s.experts);
    const auto train = [&](const char* name, const auto& router, capture captured) {
        if (!rows.wants(s, {name})) return;
        rows.row(
            name, s, score_bytes, [&] { route_scores(on, router, scores, sy::training{}, plan, scratch); }, captured);
        check(on, plan);
    };
    rows.row("base_greedy_route", s, score_bytes + 20 * t,
             [&] { route_scores(on, sy::base_router<>{}, scores, sy::inference{}, plan, scratch); });
    route_scores(on, sy::base_router<>{}, scores, sy::training{}, plan, scratch);
    check(on, plan);

    train("base_exact_cold", sy::base_router<>{}, capture::no);
    // Expert, slot and gradient of a choice, the one score of it, and d_scores, most of them zeros.
    rows.row("base_route_backward", s, score_bytes + 16 * t,
             [&] { route_scores_backward(on, sy::base_router<>{}, plan, scores, d_gates, d_scores, scratch); });
    sy::expert_prices prices;
    train("base_exact_warm", sy::base_router<>{.prices = &prices}, capture::no);

    train("base_async_cold", sy::base_router<sy::async_auction>{}, capture::yes);
    sy::buffer<double, sy::cuda_memory> prices_there(s.experts, memory_of(on));
    sy::require_cuda(cudaMemsetAsync(prices_there.data(), 0, sizeof(double) * s.experts, on.stream), "cudaMemsetAsync");
    train("base_async_warm", sy::base_router<sy::async_auction>{.solver = {.prices = prices_there.data()}},
          capture::yes);
}

void time_rows(const sy::cuda& on, const table& rows, const shape& s) {
    if (!rows.wants(s, {"dispatch", "memcpy", "combine", "combine_accumulating", "combine_backward",
                        "dispatch_backward", "dispatch_backward_gates"})) {
        return;
    }
    const auto scores = random_numbers(on, s.tokens, s.experts, 1);
    const auto x = random_numbers(on, s.tokens, s.width, 2);
    const auto plan = route_scores(on, sy::top_k_router{.k = s.choices}, scores);
    const index_t kept = s.tokens * s.choices;
    device_floats moved(kept, s.width, memory_of(on));
    device_floats d_moved(kept, s.width, memory_of(on));
    device_floats y(s.tokens, s.width, memory_of(on));
    device_floats d_gates(s.tokens, s.choices, memory_of(on));
    const double token_bytes = 4.0 * static_cast<double>(s.tokens * s.width);
    const double row_bytes = 4.0 * static_cast<double>(kept * s.width);
    const double one = static_cast<double>(kept);
    rows.row("dispatch", s, token_bytes + row_bytes + 8 * one, [&] { dispatch(on, plan, x, moved); });
    // A byte copied is read and written.
    const index_t copied = (s.tokens + kept) / 2 * s.width;
    rows.row("memcpy", s, 8.0 * static_cast<double>(copied), [&] {
        sy::require_cuda(
            cudaMemcpyAsync(d_moved.data(), moved.data(), sizeof(float) * copied, cudaMemcpyDeviceToDevice, on.stream),
            "cudaMemcpyAsync");
    });
    rows.row("combine", s, row_bytes + token_bytes + 12 * one, [&] { combine(on, plan, moved, y); });
    rows.row("combine_accumulating", s, row_bytes + 2 * token_bytes + 12 * one,
             [&] { combine(on, plan, moved, y, {.accumulate = true}); });
    rows.row("combine_backward", s, token_bytes + 2 * row_bytes + 16 * one,
             [&] { combine_backward(on, plan, moved, x, d_moved, d_gates); });
    rows.row("dispatch_backward", s, row_bytes + token_bytes + 8 * one,
             [&] { dispatch_backward(on, plan, d_moved, y); });
    rows.row("dispatch_backward_gates", s, row_bytes + 2 * token_bytes + 16 * one,
             [&] { dispatch_backward(on, plan, x, d_moved, y, d_gates); });
}

int run(bool quick, const std::string& only) {
    cudaStream_t stream = nullptr;
    sy::require_cuda(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "cudaStreamCreateWithFlags");
    plain_memory memory;
    const sy::cuda on{.stream = stream, .resource = &memory};
    cudaDeviceProp device{};
    sy::require_cuda(cudaGetDeviceProperties(&device, 0), "cudaGetDeviceProperties");
    const double peak = peak_bandwidth();
    std::printf("%s, sm_%d%d, ", device.name, device.major, device.minor);
    if (peak > 0) {
        std::printf("%.0f GB/s at most\n\n", peak / 1e9);
    } else {
        std::printf("peak bandwidth not known\n\n");
    }
    const stopwatch watch(stream, quick ? 1 : 31);
    const table rows(watch, peak, only);
    time_ceilings(on, rows);
    for (const shape& s : {shape{65536, 8, 1, 0}, {65536, 64, 1, 0}, {65536, 256, 1, 0}, {4096, 64, 1, 0}}) {
        time_routing<float>(on, rows, s, "switch", sy::switch_router{});
        time_routing<__nv_bfloat16>(on, rows, s, "switch_bf16", sy::switch_router{});
    }
    for (const shape& s : {shape{65536, 8, 2, 0},
                           {65536, 128, 8, 0},
                           {65536, 128, 4, 0},
                           {65536, 256, 8, 0},
                           {65536, 512, 10, 0},
                           {4096, 256, 8, 0},
                           {512, 256, 8, 0},
                           {32, 256, 8, 0},
                           {1, 256, 8, 0}}) {
        time_routing<float>(on, rows, s, "top_k", sy::top_k_router{.k = s.choices});
        time_routing<__nv_bfloat16>(on, rows, s, "top_k_bf16", sy::top_k_router{.k = s.choices});
    }
    // Sigmoid and a selection bias: DeepSeek-V3's router, with the best 4 of 8 groups of experts, and Kimi K2's,
    // without.
    const auto bias = random_numbers(on, 1, 384, 7);
    for (const shape& s : {shape{65536, 384, 8, 0}, {4096, 384, 8, 0}}) {
        time_routing<float>(on, rows, s, "bias",
                            sy::recipe_router<sy::cuda_space>{.k = s.choices,
                                                              .score = sy::score_function::sigmoid,
                                                              .selection_bias = {bias.data(), 384},
                                                              .normalize = sy::gate_sum::add,
                                                              .scale = 2.827});
    }
    for (const shape& s : {shape{65536, 256, 8, 0}, {4096, 256, 8, 0}, {32, 256, 8, 0}}) {
        time_routing<float>(on, rows, s, "groups",
                            sy::recipe_router<sy::cuda_space>{.k = s.choices,
                                                              .score = sy::score_function::sigmoid,
                                                              .selection_bias = {bias.data(), 256},
                                                              .groups = {.count = 8, .kept = 4},
                                                              .normalize = sy::gate_sum::add,
                                                              .epsilon = 1e-20,
                                                              .scale = 2.5});
    }
    for (const shape& s : {shape{4096, 64, 1, 0}, {16384, 64, 1, 0}, {65536, 16, 1, 0}, {65536, 64, 1, 0}}) {
        time_base(on, rows, s);
    }
    for (const shape& s : {shape{16384, 64, 1, 2048}, {16384, 256, 8, 2048}, {4096, 64, 2, 4096}}) {
        time_rows(on, rows, s);
    }
    return 0;
}

}  // namespace

int main(int argc, char** argv) {
    bool quick = false;
    std::string only;
    for (int i = 1; i < argc; ++i) {
        if (std::strcmp(argv[i], "--quick") == 0) {
            quick = true;
        } else if (std::strcmp(argv[i], "--only") == 0 && i + 1 < argc) {
            only = argv[++i];
        } else {
            std::fprintf(stderr, "gpu_bench: %s is no option; there are --quick and --only TEXT\n", argv[i]);
            return 2;
        }
    }
    int devices = 0;
    const cudaError_t status = cudaGetDeviceCount(&devices);
    if (status != cudaSuccess || devices == 0) {
        std::printf("gpu_bench needs a GPU: %s\n",
                    status != cudaSuccess ? cudaGetErrorString(status) : "there is no CUDA device");
        return 77;
    }
#if defined(SWITCHYARD_ONLY_COMPILED)
    constexpr bool optimised = false;
#else
    constexpr bool optimised = true;
#endif
    if (!optimised) {
        std::fprintf(stderr, "gpu_bench was built without optimisation: configure with -DCMAKE_CUDA_ARCHITECTURES\n");
        return 2;
    }
    try {
        return run(quick, only);
    } catch (const std::exception& problem) {
        std::fprintf(stderr, "gpu_bench: %s\n", problem.what());
        return 1;
    }
}
