// Noisy top-k: noisy scores and the load loss, against plain loops and central differences, and routed as a whole.
#include "reference/numeric.hpp"
#include "support/backends.hpp"
#include "support/routed.hpp"

#include <switchyard/balance/load_loss.hpp>
#include <switchyard/reference/noisy_top_k.hpp>
#include <switchyard/router/route.hpp>
#include <switchyard/router/top_k.hpp>
#include <switchyard/score/noisy_scores.hpp>

#include <doctest/doctest.h>

#include <cmath>
#include <vector>

using namespace switchyard_test;

namespace {

constexpr sy::noise_key key{.seed = 5, .stream = 3, .step = 9};
constexpr double least = 0.05;

template <class S>
sy::matrix<S> noisy_of(const ref::matrix& scores, const ref::matrix& noise_scores) {
    sy::matrix<S> noisy(scores.rows, scores.columns);
    sy::noisy_scores(sy::seq, stored<S>(scores), stored<S>(noise_scores), {key, least}, noisy);
    return noisy;
}

/// The losses and gradients of the library, of all but the router.
template <class S>
struct load_answer {
    std::vector<double> load;
    double loss = 0;
    sy::matrix<S> d_scores, d_noise_scores;
};

template <class S>
load_answer<S> load_of(const ref::matrix& scores, const ref::matrix& noise_scores, index_t k, double weight,
                       const ref::mask_list& mask = {}) {
    load_answer<S> answer{std::vector<double>(static_cast<std::size_t>(scores.columns)), 0,
                          sy::matrix<S>(scores.rows, scores.columns), sy::matrix<S>(scores.rows, scores.columns)};
    const auto s = stored<S>(scores);
    const auto n = stored<S>(noise_scores);
    const auto h = noisy_of<S>(scores, noise_scores);
    const sy::load_loss_settings settings{.k = k, .weight = weight, .noisy = {key, least}, .mask = mask_of(mask)};
    sy::workspace scratch;
    sy::load_loss(sy::seq, s, n, h, settings, answer.load.data(), &answer.loss, scratch);
    for (index_t t = 0; t < scores.rows; ++t) {
        for (index_t e = 0; e < scores.columns; ++e) answer.d_scores(t, e) = answer.d_noise_scores(t, e) = S(0);
    }
    sy::load_loss_backward(sy::seq, s, n, h, settings, answer.load.data(), answer.d_scores, answer.d_noise_scores,
                           scratch);
    return answer;
}

template <class M>
ref::matrix table_of(const M& numbers) {
    return ref::matrix_from(sy::const_view(sy::as_view(numbers)));
}

}  // namespace

TEST_CASE_TEMPLATE("noisy scores: against plain loops, forward and backward", S, float, double) {
    const double allowed = sizeof(S) == 4 ? 2e-6 : 1e-14;
    for (const index_t experts : {1, 3, 4, 17, 64}) {
        const auto scores = draw_scores(score_kind::gaussian, 50, experts, 3, 200);
        auto noise_scores = gaussian_scores(50, experts, 4);
        noise_scores(0, 0) = never;
        const auto noisy = noisy_of<S>(scores, noise_scores);
        const auto want = ref::noisy_scores({key, least}, scores, noise_scores);
        for (index_t t = 0; t < 50; ++t) {
            for (index_t e = 0; e < experts; ++e) {
                if (scores(t, e) == never) {
                    CHECK(static_cast<double>(noisy(t, e)) == never);
                } else {
                    CHECK(std::abs(static_cast<double>(noisy(t, e)) - want(t, e)) < allowed * 4);
                }
            }
        }
        const auto d_noisy = gaussian_scores(50, experts, 6);
        sy::matrix<S> d_scores(50, experts);
        sy::matrix<S> d_noise(50, experts);
        sy::noisy_scores_backward(sy::seq, stored<S>(noise_scores), {key, least}, stored<S>(d_noisy), d_scores,
                                  d_noise);
        const auto backward = ref::noisy_scores_backward({key, least}, noise_scores, d_noisy);
        CHECK(difference(table_of(d_scores), backward.d_scores) < allowed * 2);
        CHECK(difference(table_of(d_noise), backward.d_noise_scores) < allowed * 8);
    }
}

TEST_CASE("noisy scores: the numbers are standard normal, and other ones in another step") {
    const index_t tokens = 4000;
    const ref::matrix scores(tokens, 10);
    ref::matrix noise_scores(tokens, 10);
    for (double& n : noise_scores.values) n = std::log(std::exp(2.0) - 1);  // deviation 2
    sy::matrix<double> noisy(tokens, 10);
    sy::noisy_scores(sy::seq, stored<double>(scores), stored<double>(noise_scores), {key, 0}, noisy);
    double sum = 0;
    double squares = 0;
    double within = 0;
    for (index_t t = 0; t < tokens; ++t) {
        for (index_t e = 0; e < 10; ++e) {
            sum += noisy(t, e);
            squares += noisy(t, e) * noisy(t, e);
            within += std::abs(noisy(t, e)) < 2 ? 1 : 0;
        }
    }
    const double count = 10. * static_cast<double>(tokens);
    CHECK(std::abs(sum / count) < 0.05);
    CHECK(std::abs(squares / count - 4) < 0.1);
    CHECK(std::abs(within / count - 0.6827) < 0.01);
    sy::matrix<double> next(tokens, 10);
    sy::noisy_scores(sy::seq, stored<double>(scores), stored<double>(noise_scores), {{5, 3, 10}, 0}, next);
    CHECK(next(7, 7) != noisy(7, 7));
}

TEST_CASE_TEMPLATE("load loss: against plain loops, with forbidden experts, padding, k = 1 .. E", S, float, double) {
    const auto mask = draw_mask(60, 3);
    const double allowed = sizeof(S) == 4 ? 2e-4 : 1e-12;
    for (const index_t k : {1, 2, 4, 5}) {
        for (const int forbidden : {0, 200, 700}) {
            CAPTURE(k);
            CAPTURE(forbidden);
            const auto scores = draw_scores(score_kind::gaussian, 60, 5, 7, forbidden);
            const auto noise_scores = gaussian_scores(60, 5, 8);
            const auto made = load_of<S>(scores, noise_scores, k, 0.3, mask);
            const ref::score_noise noise{key, least};
            const auto noisy = ref::noisy_scores(noise, scores, noise_scores);
            const auto loads = ref::smooth_loads(noise, scores, noise_scores, noisy, k, mask);
            for (index_t e = 0; e < 5; ++e) {
                CHECK(std::abs(made.load[static_cast<std::size_t>(e)] - loads[e]) < allowed);
            }
            CHECK(std::abs(made.loss - ref::load_loss(noise, scores, noise_scores, noisy, k, 0.3, mask)) < allowed);
            const auto backward = ref::load_loss_backward(noise, scores, noise_scores, noisy, k, 0.3, mask);
            CHECK(difference(table_of(made.d_scores), backward.d_scores) < allowed);
            CHECK(difference(table_of(made.d_noise_scores), backward.d_noise_scores) < allowed);
        }
    }
}

TEST_CASE("load loss: worked by hand") {
    // One token; noise of next to no size: h is s, in the order of the experts. k = 1.
    // Expert 0 is in the top 1: threshold h_1; experts 1 and 2: h_0.
    const ref::matrix scores{{3, 1, 0}};
    const ref::matrix noise_scores{{-1000, -1000, -1000}};
    sy::workspace scratch;
    std::vector<double> load(3);
    double loss = 0;
    sy::load_loss(sy::seq, stored<double>(scores), stored<double>(noise_scores), stored<double>(scores),
                  {.k = 1, .weight = 1, .noisy = {key, 2.0}}, load.data(), &loss, scratch);
    CHECK(load[0] == doctest::Approx(0.8413447).epsilon(1e-6));  // Phi((3 - 1) / 2)
    CHECK(load[1] == doctest::Approx(0.1586553).epsilon(1e-6));
    CHECK(load[2] == doctest::Approx(0.0668072).epsilon(1e-6));  // Phi(-1.5)
    const double mean = (load[0] + load[1] + load[2]) / 3;
    double variance = 0;
    for (const double l : load) variance += (l - mean) * (l - mean) / 3;
    CHECK(loss == doctest::Approx(variance / mean / mean));
}

TEST_CASE("noisy top-k as a whole: gradients of gates and load loss by central differences, both tables") {
    const index_t k = 2;
    const auto scores = gaussian_scores(6, 5, 2);
    const auto noise_scores = gaussian_scores(6, 5, 3);
    const auto weights = gaussian_scores(6, k, 4);
    const sy::top_k_router router{.k = k, .softmax = sy::softmax_order::after, .balance_weight = 0.2};
    const auto total = [&](const ref::matrix& s, const ref::matrix& n) {
        const auto h = table_of(noisy_of<double>(s, n));
        const auto plan = routed<double>(router, h);
        return inner(gates_of(plan.view()), weights) + plan.load_balancing_loss() + load_of<double>(s, n, k, 0.5).loss;
    };
    const auto h = table_of(noisy_of<double>(scores, noise_scores));
    const auto plan = routed<double>(router, h);
    sy::matrix<double> d_scores = stored<double>(routed_backward(router, plan, h, weights));
    sy::matrix<double> d_noise(6, 5);
    sy::noisy_scores_backward(sy::seq, stored<double>(noise_scores), {key, least}, d_scores, d_scores, d_noise);
    const auto losses = load_of<double>(scores, noise_scores, k, 0.5);
    auto got_scores = table_of(d_scores);
    auto got_noise = table_of(d_noise);
    for (index_t i = 0; i < 30; ++i) {
        got_scores.values[i] += table_of(losses.d_scores).values[i];
        got_noise.values[i] += table_of(losses.d_noise_scores).values[i];
    }
    CHECK(difference(got_scores, numeric_gradient([&](const auto& at) { return total(at, noise_scores); }, scores)) <
          1e-8);
    CHECK(difference(got_noise, numeric_gradient([&](const auto& at) { return total(scores, at); }, noise_scores)) <
          1e-8);
}

TEST_CASE("noisy scores and load loss: policies agree, bit by bit") {
    const auto scores = stored<float>(gaussian_scores(700, 24, 5));
    const auto noise_scores = stored<float>(gaussian_scores(700, 24, 6));
    const auto run = [&](const auto& policy) {
        std::vector<double> load(25);
        sy::matrix<float> h(700, 24);
        sy::matrix<float> d_s(700, 24);
        sy::matrix<float> d_n(700, 24);
        sy::workspace scratch;
        sy::noisy_scores(policy, scores, noise_scores, {key}, h);
        const sy::load_loss_settings settings{.k = 3, .noisy = {key}};
        sy::load_loss(policy, scores, noise_scores, h, settings, load.data(), &load[24], scratch);
        sy::noisy_scores_backward(policy, noise_scores, {key}, h, d_s, d_n);
        sy::load_loss_backward(policy, scores, noise_scores, h, settings, load.data(), d_s, d_n, scratch);
        ref::matrix all = table_of(h);
        for (const auto* m : {&d_s, &d_n}) {
            const auto more = table_of(*m);
            all.values.insert(all.values.end(), more.values.begin(), more.values.end());
        }
        all.values.insert(all.values.end(), load.begin(), load.end());
        return all.values;
    };
    const auto want = run(sy::seq);
    for_each_policy([&](const auto& policy) {
        CHECK(run(policy) == want);
        covers<operation("noisy scores and load loss")>(policy);
    });
}

TEST_CASE("noisy scores and load loss: sentences") {
    const auto scores = stored<float>(gaussian_scores(4, 3, 1));
    const auto narrow = stored<float>(gaussian_scores(4, 2, 1));
    sy::matrix<float> h(4, 3);
    CHECK(sentence_of([&] {
              sy::noisy_scores(sy::seq, scores, scores, {key, -1}, h);
          }) == "least_deviation = -1 must be finite and not negative");
    CHECK(sentence_of([&] { sy::noisy_scores(sy::seq, scores, narrow, {key}, h); }) != "");
    CHECK(sentence_of([&] { sy::noisy_scores(sy::seq, scores, h, {key}, h); }) ==
          "noisy shares memory with noise_scores: it must lie apart");
    std::vector<double> load(3);
    double loss = 0;
    sy::workspace scratch;
    CHECK(sentence_of([&] { sy::load_loss(sy::seq, scores, scores, scores, {.k = 4}, load.data(), &loss, scratch); }) ==
          "k = 4 must lie in 1..E = 3");
}
