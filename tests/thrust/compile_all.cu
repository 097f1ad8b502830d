// Everything the Thrust backend does, compiled by nvcc for a CUDA policy: each router forward and backward, from scores
// and from tokens, dispatch, combine and their backward, for the storage types a GPU knows. Compiling it needs no GPU,
// and shows that no host function is called from a kernel. What host code makes of settings is compared everywhere. Run
// on a GPU, it compares what was decided with the CPU backend; without one it exits with 77, which CTest counts as
// skipped.
#include <switchyard/router/models.hpp>
#include <switchyard/thrust.hpp>

#include <cmath>
#include <cstdio>

namespace sy = switchyard;
using sy::index_t;

namespace {

using cuda_policy = decltype(sy::on_thrust(thrust::cuda::par_nosync.on(cudaStream_t{})));
using device_plan = sy::basic_plan<float, cuda_policy::memory>;

int failures = 0;

void expect(bool holds, const char* what) {
    if (!holds) {
        std::printf("differs from the CPU backend: %s\n", what);
        ++failures;
    }
}

/// Numbers that both backends hold exactly in any storage: eighths between -4 and 4.
template <class Storage>
sy::matrix<Storage> numbers(index_t rows, index_t columns) {
    sy::matrix<Storage> m(rows, columns);
    std::uint32_t state = 12345;
    for (index_t i = 0; i < rows * columns; ++i) {
        state = state * 1664525u + 1013904223u;
        m.data()[i] = sy::store_scalar<Storage>(static_cast<float>(state >> 26) / 8.0f - 4.0f);
    }
    return m;
}

template <class T>
bool equal(const T* a, const T* b, index_t count) {
    for (index_t i = 0; i < count; ++i) {
        if (!(a[i] == b[i])) return false;
    }
    return true;
}

template <class A, class B>
bool close(const sy::matrix<A>& a, const sy::matrix<B>& b, float allowed) {
    for (index_t i = 0; i < a.rows() * a.columns(); ++i) {
        const float x = sy::load_scalar(a.data()[i]);
        const float y = sy::load_scalar(b.data()[i]);
        if (!(std::abs(x - y) <= allowed * (1.0f + std::abs(y)))) return false;
    }
    return true;
}

void compare(const sy::plan<float>& made, const sy::plan<float>& want) {
    const auto& a = made.view();
    const auto& b = want.view();
    const index_t positions = b.tokens * b.choices;
    expect(a.totals->kept == b.totals->kept, "kept");
    expect(equal(a.expert, b.expert, positions), "experts");
    expect(equal(a.slot, b.slot, positions), "slots");
    expect(equal(a.offsets, b.offsets, b.experts + 1), "offsets");
    expect(a.totals->kept == b.totals->kept && equal(a.order, b.order, b.totals->kept), "order");
    for (index_t i = 0; i < positions; ++i) {
        if (!(std::abs(a.gate[i] - b.gate[i]) <= 1e-5f)) {
            expect(false, "gates");
            break;
        }
    }
    expect(std::abs(a.totals->load_balancing_loss - b.totals->load_balancing_loss) <= 1e-5, "balance loss");
    expect(std::abs(a.totals->z_loss - b.totals->z_loss) <= 1e-5 * (1 + b.totals->z_loss), "z-loss");
}

/// From scores of any storage, on a stream.
template <class Storage, class Router>
void route_scores_and_back(const cuda_policy& on, const Router& router) {
    const auto host_scores = numbers<Storage>(1000, 24);
    const auto scores = sy::copy_to_device(on, host_scores);
    device_plan plan;
    sy::device_workspace<cuda_policy> scratch;
    sy::route_scores(on, router, scores, sy::training{}, plan, scratch);
    sy::check(on, plan);
    const auto want = sy::route_scores(sy::seq, router, host_scores, sy::training{});
    compare(sy::copy_to_host(on, plan), want);

    const auto host_d_gates = numbers<Storage>(plan.tokens(), plan.choices());
    const auto d_gates = sy::copy_to_device(on, host_d_gates);
    sy::device_matrix<cuda_policy, Storage> d_scores(plan.tokens(), plan.experts());
    sy::route_scores_backward(on, router, plan, scores, d_gates, d_scores, scratch);
    const float allowed = sizeof(Storage) == 2 ? 1e-2f : 1e-4f;
    expect(close(sy::copy_to_host(on, d_scores),
                 sy::route_scores_backward(sy::seq, router, want, host_scores, host_d_gates), allowed),
           "d_scores");
}

/// Rows to experts and back, gates on the output or on the input.
template <class Storage>
void move_rows(const cuda_policy& on, const device_plan& plan, const sy::plan<float>& want) {
    const auto host_x = numbers<Storage>(plan.tokens(), 33);
    const auto x = sy::copy_to_device(on, host_x);
    const auto rows = sy::dispatch(on, plan, x);
    const auto y = sy::combine(on, plan, rows);
    const float allowed = sizeof(Storage) == 2 ? 1e-2f : 1e-5f;
    expect(close(sy::copy_to_host(on, y), sy::combine(sy::seq, want, sy::dispatch(sy::seq, want, host_x)), allowed),
           "combine");
    const auto gradients = sy::combine_backward(on, plan, rows, y);
    sy::device_matrix<cuda_policy, Storage> d_x(x.rows(), x.columns());
    sy::dispatch_backward(on, plan, gradients.d_rows, d_x);
    sy::device_matrix<cuda_policy, float> d_gates(plan.tokens(), plan.choices());
    sy::dispatch_backward(on, plan, x, gradients.d_rows, d_x, d_gates);
    static_cast<void>(sy::copy_to_host(on, d_gates));
}

/// Identity experts: the tokens come back in combine, and its gradients go through it.
void add_tokens(const cuda_policy& on) {
    const auto host_scores = numbers<float>(500, 24);
    const auto host_x = numbers<float>(500, 33);
    const auto scores = sy::copy_to_device(on, host_scores);
    const auto x = sy::copy_to_device(on, host_x);
    const auto set = [](auto router) {
        router.k = 4;
        router.normalize = sy::gate_sum::add;
        router.capacity = sy::capacity_rule{.factor = 0.9};
        router.balance_weight = 0.01;
        router.rowless = sy::rowless_experts{.identity = 6, .zero = 2};
        return router;
    };
    const auto router = set(sy::recipe_router<typename cuda_policy::memory::space>{});
    const auto plan = sy::route_scores(on, router, scores, sy::training{});
    const auto want = sy::route_scores(sy::seq, set(sy::recipe_router<>{}), host_scores, sy::training{});
    compare(sy::copy_to_host(on, plan), want);
    const auto rows = sy::dispatch(on, plan, x);
    const auto host_rows = sy::dispatch(sy::seq, want, host_x);
    const auto y = sy::combine(on, plan, rows, sy::identity_of{x});
    expect(close(sy::copy_to_host(on, y), sy::combine(sy::seq, want, host_rows, sy::identity_of{host_x}), 1e-5f),
           "combine with identity experts");
    const auto got = sy::combine_backward(on, plan, rows, sy::identity_of{x}, x);
    const auto gradients = sy::combine_backward(sy::seq, want, host_rows, sy::identity_of{host_x}, host_x);
    expect(close(sy::copy_to_host(on, got.d_x), gradients.d_x, 1e-5f), "d_x of identity experts");
    expect(close(sy::copy_to_host(on, got.d_gates), gradients.d_gates, 1e-4f), "d_gates of identity experts");
    const auto d_scores = sy::route_scores_backward(on, router, plan, scores, got.d_gates);
    expect(close(sy::copy_to_host(on, d_scores),
                 sy::route_scores_backward(sy::seq, set(sy::recipe_router<>{}), want, host_scores, gradients.d_gates),
                 1e-4f),
           "d_scores with identity experts");
}

// [step]
void step(cudaStream_t stream, const sy::matrix<float>& host_scores, const sy::matrix<float>& host_x) {
    const auto policy = sy::on_thrust(thrust::cuda::par_nosync.on(stream));
    const auto scores = sy::copy_to_device(policy, host_scores);  // waits for the copy
    const auto x = sy::copy_to_device(policy, host_x);
    const auto plan = sy::route_scores(policy, sy::top_k_router{.k = 2}, scores);  // reads nothing back
    const auto rows = sy::dispatch(policy, plan, x);                               // nor does this
    const auto y = sy::combine(policy, plan, rows);
    sy::check(policy, plan);  // waits; throws on bad scores
}
// [/step]

void run_all(cudaStream_t stream) {
    step(stream, numbers<float>(100, 8), numbers<float>(100, 16));
    const cuda_policy on = sy::on_thrust(thrust::cuda::par_nosync.on(stream));
    const sy::top_k_router lists{.k = 3, .capacity = {.factor = 0.9}, .z_weight = 1e-3};
    route_scores_and_back<float>(on, sy::switch_router{.order = sy::drop_order::position, .z_weight = 1e-3});
    route_scores_and_back<float>(on, sy::switch_router{.no_token_left_behind = 3});
    route_scores_and_back<float>(on, lists);
    route_scores_and_back<__half>(on, lists);
    route_scores_and_back<__nv_bfloat16>(on, sy::switch_router{});
    route_scores_and_back<float>(on, sy::base_router{});
    add_tokens(on);

    const auto host_x = numbers<float>(200, 32);
    const auto host_w = numbers<float>(32, 8);
    const auto x = sy::copy_to_device(on, host_x);
    const auto w = sy::copy_to_device(on, host_w);
    // Products of eighths are exact, so scores are the same on both sides, and so is what is decided from them.
    const sy::top_k_router router{.k = 2};
    const auto plan = sy::route(on, router, x, w, sy::training{});
    const auto want = sy::route(sy::seq, router, host_x, host_w, sy::training{});
    compare(sy::copy_to_host(on, plan), want);
    move_rows<float>(on, plan, want);
    move_rows<__half>(on, plan, want);
    move_rows<__nv_bfloat16>(on, plan, want);
    const auto host_d_gates = numbers<float>(plan.tokens(), plan.choices());
    const auto got = sy::route_backward(on, router, plan, x, w, sy::copy_to_device(on, host_d_gates));
    const auto gradients = sy::route_backward(sy::seq, router, want, host_x, host_w, host_d_gates);
    expect(close(sy::copy_to_host(on, got.d_x), gradients.d_x, 1e-4f), "d_x");
    expect(close(sy::copy_to_host(on, got.d_w), gradients.d_w, 1e-3f), "d_w");
}

/// What needs no GPU: settings that the host code of nvcc makes, whose front end forgets which members are named where
/// a braced list without a type is assigned in a template.
void check_host_code() {
    const auto rowless = [](const auto& model, const sy::rowless_experts& want) {
        return sy::router_of(model).rowless == want;
    };
    expect(rowless(sy::models::longcat_flash{}, {.identity = 256}), "experts without rows of LongCat");
    expect(rowless(sy::models::zaya{}, {.zero = 1}), "experts without rows of Zaya");
    expect(rowless(sy::models::inkling{}, {.shared = sy::models::inkling{}.n_shared_experts}),
           "shared experts of Inkling");
    const auto groups = sy::router_of(sy::models::deepseek_v3{}).groups;
    expect(groups.count == 8 && groups.kept == 4 && groups.summed == 2, "groups of DeepSeek-V3");
    sy::plan<float> plan;
    plan.resize(3, 4, 2, 5);
    expect(!plan.view().origin.finished, "a plan that nobody made");
}

}  // namespace

int main() {
    check_host_code();
    if (failures != 0) {
        return 1;
    }
    int devices = 0;
    if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
        std::printf("no GPU here: nothing was run\n");
        return 77;
    }
    cudaStream_t stream = nullptr;
    if (cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking) != cudaSuccess) {
        std::printf("no stream\n");
        return 1;
    }
    run_all(stream);
    cudaStreamDestroy(stream);
    std::printf("%d differences\n", failures);
    return failures == 0 ? 0 : 1;
}
