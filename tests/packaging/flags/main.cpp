// Numbers that must not depend on how a compiler is allowed to rearrange arithmetic, compared with plain loops in long
// double. check_flags.py builds it with every set of flags that docs/including_in_an_engine.md allows; it prints what
// is wrong and exits 1.
#include <switchyard/assignment/assignment.hpp>
#include <switchyard/assignment/detail/device_auction_sums.hpp>
#include <switchyard/assignment/detail/price_repair.hpp>
#include <switchyard/backend/policy.hpp>
#include <switchyard/core/simd.hpp>
#include <switchyard/router/route.hpp>
#include <switchyard/router/switch.hpp>
#include <switchyard/router/top_k.hpp>
#include <switchyard/score/sigmoid.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <limits>
#include <string>
#include <vector>

namespace sy = switchyard;
using sy::index_t;

namespace {

int wrong = 0;

void expect_near(const std::string& what, long double value, long double right, long double tolerance) {
    if (!(std::abs(value - right) <= tolerance)) {
        std::printf("%s is %.9Lg, not %.9Lg\n", what.c_str(), value, right);
        ++wrong;
    }
}

void expect(const std::string& what, bool holds) {
    if (!holds) {
        std::printf("%s does not hold\n", what.c_str());
        ++wrong;
    }
}

/// Relative error of exp_nonpositive in units in the last place of 1, over the whole range, and its special values.
template <class S, int W>
void check_exp(const char* name, long double most_units) {
    constexpr S infinity = std::numeric_limits<S>::infinity();
    constexpr S lowest = sy::float_bits<S>::smallest_exponent;
    constexpr int steps = 20000;
    long double worst = 0;
    alignas(64) S numbers[W];
    const auto look = [&](S x) {
        std::fill(numbers, numbers + W, x);
        sy::exp_nonpositive(sy::pack<S, W>::load(numbers)).store(numbers);
        return numbers[W - 1];
    };
    for (int i = 0; i <= steps; ++i) {
        const S x = lowest * static_cast<S>(i) / static_cast<S>(steps);
        const long double right = std::exp(static_cast<long double>(x));
        worst = std::max(worst, std::abs(look(x) - right) / right);
    }
    expect_near(std::string("largest error of ") + name + ", in units", worst / std::numeric_limits<S>::epsilon(), 0,
                most_units);
    expect(std::string(name) + "(0) = 1", look(S(0)) == S(1));
    expect(std::string(name) + "(-infinity) = 0", look(-infinity) == S(0));
    expect(std::string(name) + "(NaN) is NaN", std::isnan(look(std::numeric_limits<S>::quiet_NaN())));
}

float noise(std::uint64_t i) {
    return sy::uniform(sy::noise_words({.seed = 5}, 0, static_cast<index_t>(i)).word[0]) - 0.5f;
}

template <class S>
void check_routing(const char* scalar) {
    constexpr index_t tokens = 37;
    constexpr index_t experts = 19;
    constexpr index_t k = 3;
    const std::string of = std::string(" (") + scalar + ")";
    sy::matrix<S> scores(tokens, experts);
    for (index_t t = 0; t < tokens; ++t) {
        for (index_t e = 0; e < experts; ++e) {
            scores(t, e) = static_cast<S>(8 * noise(static_cast<std::uint64_t>(t * experts + e)));
        }
    }
    const long double small = std::is_same_v<S, float> ? 4e-6L : 1e-13L;
    std::vector<long double> p(tokens * experts);
    long double squares = 0;
    for (index_t t = 0; t < tokens; ++t) {
        long double sum = 0;
        for (index_t e = 0; e < experts; ++e) sum += std::exp(static_cast<long double>(scores(t, e)));
        for (index_t e = 0; e < experts; ++e) {
            p[t * experts + e] = std::exp(static_cast<long double>(scores(t, e))) / sum;
        }
        squares += std::log(sum) * std::log(sum);
    }

    const sy::top_k_router router{.k = k, .z_weight = 1e-3};
    const auto plan = sy::route_scores(sy::seq, router, scores, sy::training{.seed = 1});
    const auto view = plan.view();
    std::vector<long double> load(experts);
    for (index_t t = 0; t < tokens; ++t) {
        for (index_t c = 0; c < k; ++c) {
            const index_t e = view.expert[t * k + c];
            expect_near("gate" + of, view.gate[t * k + c], p[t * experts + e], small);
            load[e] += 1;
        }
    }
    expect_near("z-loss" + of, view.totals->z_loss, 1e-3L * squares / tokens, 1e-3L * small * 30);
    sy::matrix<S> d_gates(tokens, k);
    for (index_t t = 0; t < tokens; ++t) {
        for (index_t c = 0; c < k; ++c) d_gates(t, c) = static_cast<S>(noise(static_cast<std::uint64_t>(7 * t + c)));
    }
    const sy::matrix<S> d_scores = sy::route_scores_backward(sy::seq, router, plan, scores, d_gates);
    for (index_t t = 0; t < tokens; ++t) {
        const long double z = [&] {
            long double sum = 0;
            for (index_t e = 0; e < experts; ++e) sum += std::exp(static_cast<long double>(scores(t, e)));
            return 1e-3L * 2 * std::log(sum) / tokens;
        }();
        std::vector<long double> d_p(experts);
        for (index_t e = 0; e < experts; ++e) {
            d_p[e] = static_cast<long double>(router.balance_weight) * experts *
                     static_cast<long double>(view.balance_load[e]) /
                     (static_cast<long double>(tokens) * tokens * (router.balance == sy::balance_count::all ? k : 1));
        }
        for (index_t c = 0; c < k; ++c) d_p[view.expert[t * k + c]] += static_cast<long double>(d_gates(t, c));
        long double dot = 0;
        for (index_t e = 0; e < experts; ++e) dot += d_p[e] * p[t * experts + e];
        for (index_t e = 0; e < experts; ++e) {
            expect_near("d_scores" + of, d_scores(t, e), p[t * experts + e] * (d_p[e] - dot + z), small);
        }
    }

    const auto normalized = sy::route_scores(sy::seq, sy::top_k_router{.k = k, .renormalize = true}, scores);
    for (index_t t = 0; t < tokens; ++t) {
        long double chosen = 0;
        for (index_t c = 0; c < k; ++c) chosen += p[t * experts + normalized.view().expert[t * k + c]];
        for (index_t c = 0; c < k; ++c) {
            expect_near("normalised gate" + of, normalized.view().gate[t * k + c],
                        p[t * experts + normalized.view().expert[t * k + c]] / chosen, small);
        }
        const S score = scores(t, 0);
        const long double right = 1 / (1 + std::exp(-static_cast<long double>(score)));
        expect_near("sigmoid" + of, sy::sigmoid(score), right, small);
        expect_near("its derivative" + of, sy::sigmoid_derivative(score), right * (1 - right), small);
    }
}

/// Scores (0, -0.34): the larger gate is 1 / (1 + e^-0.34).
template <class S>
void check_two_experts(const char* scalar) {
    sy::matrix<S> scores(1, 2);
    scores(0, 0) = S(0);
    scores(0, 1) = S(-0.34);
    const sy::switch_router router{.inference_capacity = {.factor = {}}};
    const auto plan = sy::route_scores(sy::seq, router, scores);
    expect_near(std::string("gate of scores 0, -0.34 (") + scalar + ")", plan.view().gate[0], 0.5841905229354074L,
                1e-6L);
}

void check_refusals() {
    constexpr float infinity = std::numeric_limits<float>::infinity();
    sy::matrix<float> scores(1, 3);
    scores(0, 0) = -infinity;
    scores(0, 1) = -2.0f;
    scores(0, 2) = -3.0f;
    const sy::switch_router router{.inference_capacity = {.factor = {}}};
    expect("-infinity forbids an expert", sy::route_scores(sy::seq, router, scores).view().expert[0] == 1);
    for (const float bad : {std::numeric_limits<float>::quiet_NaN(), infinity}) {
        scores(0, 2) = bad;
        bool is_refused = false;
        try {
            static_cast<void>(sy::route_scores(sy::seq, router, scores));
        } catch (const sy::error&) {
            is_refused = true;
        }
        expect("NaN and +infinity are refused", is_refused);
    }
}

/// Sums that keep what an addition loses: the certificate of an assignment rests on them.
void check_exact_sums() {
    expect("a sum is rounded down", sy::detail::sum_below(1.0, -1e-17) < 1.0);
    expect("an exact sum stays", sy::detail::sum_below(1.0, 0.5) == 1.5);
    expect("a difference of differences keeps its digits",
           sy::detail::exact_difference(1e16, 1.0, 1e16, 2.0) == 1.0 &&
               sy::detail::exact_difference(1.0, 1e-17, 1.0, 0.0) == -1e-17);
    sy::detail::accurate_sum sum;
    for (const double term : {1.0, 1e100, 1.0, -1e100}) sum.add(term);
    expect("a sum keeps what it lost", sum.value() == 2.0);
}

}  // namespace

int main() {
    check_exp<float, 1>("exp of a float", 2.5L);
    check_exp<double, 1>("exp of a double", 2.0L);
    check_exp<float, sy::native_width<float>>("exp of floats", 2.5L);
    check_exp<double, sy::native_width<double>>("exp of doubles", 2.0L);
    check_two_experts<float>("float");
    check_two_experts<double>("double");
    check_routing<float>("float");
    check_routing<double>("double");
    check_refusals();
    check_exact_sums();
    return wrong == 0 ? 0 : 1;
}
