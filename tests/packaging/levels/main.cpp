// Prints a hash of every array of a training step, for check_levels.py, which compares what builds at different levels
// of optimisation print. Inputs are multiples of 2^-12, so that no compiler can make them differently.
#include <switchyard/switchyard.hpp>

#include <cstdint>
#include <cstdio>
#include <random>
#include <vector>

namespace sy = switchyard;
using sy::index_t;

namespace {

constexpr index_t tokens = 300, experts = 40, width = 37;

template <class S>
using rows_of = Eigen::Matrix<S, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
template <class S>
using columns_of = Eigen::Matrix<S, Eigen::Dynamic, Eigen::Dynamic>;

template <class T>
unsigned long long hash(const T* numbers, index_t count) {
    unsigned long long found = 0xcbf29ce484222325u;
    const auto* const bytes = reinterpret_cast<const unsigned char*>(numbers);
    for (index_t i = 0; i < count * static_cast<index_t>(sizeof(T)); ++i) found = (found ^ bytes[i]) * 0x100000001b3u;
    return found;
}

template <class M>
M drawn(index_t rows, index_t columns, std::uint32_t seed) {
    std::mt19937 random(seed);
    M made(rows, columns);
    for (index_t r = 0; r < rows; ++r) {
        for (index_t c = 0; c < columns; ++c) {
            made(r, c) = static_cast<typename M::Scalar>(static_cast<double>(random() % 20001) - 10000) / 4096;
        }
    }
    return made;
}

template <class M, class Router>
void step(const char* name, const Router& router, index_t k) {
    using S = typename M::Scalar;
    const M x = drawn<M>(tokens, width, 1), w = drawn<M>(width, experts, 2), d_y = drawn<M>(tokens, width, 3);
    const sy::training mode{.seed = 5, .stream = 1, .step = 2};
    sy::plan<S> plan;
    sy::workspace scratch;
    sy::route(sy::seq, router, x, w, mode, plan, scratch);
    M rows = M::Zero(tokens * k, width), d_rows = rows, y(tokens, width), d_x(tokens, width), d_w(width, experts);
    M d_gates(tokens, k);
    sy::dispatch(sy::seq, plan, x, rows);
    sy::combine(sy::seq, plan, rows, y);
    sy::combine_backward(sy::seq, plan, rows, d_y, d_rows, d_gates);
    sy::dispatch_backward(sy::seq, plan, d_rows, d_x);
    std::printf("%s: d_x %llx", name, hash(d_x.data(), d_x.size()));
    sy::route_backward(sy::seq, router, plan, x, w, d_gates, d_x, d_w, scratch);
    const auto made = plan.view();
    const double losses[] = {made.totals->load_balancing_loss, made.totals->z_loss};
    std::printf(" expert %llx slot %llx gate %llx losses %llx y %llx d_gates %llx d_x %llx d_w %llx\n",
                hash(made.expert, tokens * k), hash(made.slot, tokens * k), hash(made.gate, tokens * k),
                hash(losses, 2), hash(y.data(), y.size()), hash(d_gates.data(), d_gates.size()),
                hash(d_x.data(), d_x.size()), hash(d_w.data(), d_w.size()));
}

/// Losses of scores and choices.
template <class M>
void losses() {
    using S = typename M::Scalar;
    const M scores = drawn<M>(tokens, experts, 4);
    const auto plan = sy::route_scores(sy::seq, sy::top_k_router{.k = 3}, scores, sy::training{});
    const sy::token_sequences<> sequences{.length = tokens / 2};
    sy::workspace scratch;
    for (const sy::score_function score :
         {sy::score_function::softmax, sy::score_function::sigmoid, sy::score_function::sqrt_softplus}) {
        const sy::balance_loss_settings settings{
            .count = sy::choice_count::all, .score = score, .probability = sy::balance_probability::normalized};
        const sy::score_loss_settings sure{.kind = sy::score_loss_kind::mutual_information, .score = score};
        sy::matrix<double> sums(2, sy::balance_columns(experts)), entropies(2, sy::score_loss_columns(experts));
        M d(tokens, experts);
        sy::write_balance_sums(sy::seq, scores, plan, settings, sequences, sums, scratch);
        sy::balance_loss_backward(sy::seq, scores, settings, sequences, sums, d, scratch);
        sy::write_score_sums(sy::seq, scores, sure, sequences, entropies, scratch);
        sy::score_loss_backward(sy::seq, scores, sure, sequences, entropies, d, scratch, {.adds = true});
        std::vector<double> gates(2 * experts);
        sy::write_importance(sy::seq, plan, experts, gates.data(), scratch);
        const double found[] = {sy::balance_loss(settings, sums), sy::score_loss(sure, entropies),
                                sy::squared_variation(0.1, gates.data(), experts, gates.data() + experts)};
        std::printf("losses of %d bytes: values %llx sums %llx %llx importance %llx d_scores %llx\n",
                    static_cast<int>(sizeof(S)), hash(found, 3), hash(sums.data(), 4 * experts + 4),
                    hash(entropies.data(), 2 * experts + 4), hash(gates.data(), 2 * experts), hash(d.data(), d.size()));
    }
}

template <class M>
void routers() {
    const std::vector<float> bias(experts, 0.125f);
    const sy::expert_numbers<> every{bias.data(), experts};
    step<M>("switch", sy::switch_router{.input_jitter = 0.01f, .logit_jitter = 0.01f, .z_weight = 1e-3}, 1);
    step<M>("switch, sampled", sy::switch_router{.sample_temperature = 0.7f}, 1);
    step<M>("top-k", sy::top_k_router{.k = 3, .renormalize = true, .z_weight = 1e-3}, 3);
    step<M>("base", sy::base_router<>{}, 1);
    step<M>("base, auction", sy::base_router<sy::auction>{}, 1);
    for (const sy::score_function score :
         {sy::score_function::softmax, sy::score_function::sigmoid, sy::score_function::sqrt_softplus}) {
        for (const sy::gate_sum sum : {sy::gate_sum::add, sy::gate_sum::clamp}) {
            step<M>("recipe",
                    sy::recipe_router<>{.k = 5,
                                        .score = score,
                                        .selection_bias = every,
                                        .groups = {.count = 4, .kept = 2},
                                        .normalize = sum,
                                        .epsilon = 0.3,
                                        .scale = 2.5,
                                        .balance_weight = 1e-2},
                    5);
        }
        step<M>("recipe, changed and finished",
                sy::recipe_router<>{.k = 5,
                                    .logit_multiplier = 0.7,
                                    .logit_bias = every,
                                    .softcap = 2,
                                    .score = score,
                                    .normalize = sy::gate_sum::norm,
                                    .norm_power = 2,
                                    .scale = 2.5,
                                    .expert_scale = every,
                                    .logit_jitter = 0.01f,
                                    .balance_weight = 1e-2},
                5);
    }
}

}  // namespace

int main() {
    routers<rows_of<float>>();
    routers<rows_of<double>>();
    routers<columns_of<float>>();
    losses<rows_of<float>>();
    losses<rows_of<double>>();
}
