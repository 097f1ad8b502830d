// Losses of scores and choices on the device and on the CPU: sums, values and gradients compared.
#pragma once

#include "thrust/device.hpp"

#include <switchyard/balance/balance_loss.hpp>
#include <switchyard/balance/importance_loss.hpp>
#include <switchyard/balance/score_loss.hpp>
#include <switchyard/router/top_k.hpp>

#include <cmath>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace switchyard_test {

/// Scores, padding and packed sequences on both sides.
struct loss_batch {
    sy::matrix<float> scores;
    sy::matrix<float, device_memory> scores_there;
    ref::mask_list mask;
    device_mask mask_there;
    std::vector<std::int64_t> offsets;
    sy::buffer<std::int64_t, device_memory> offsets_there;

    loss_batch(const ref::matrix& table, const ref::mask_list& padding, const std::vector<std::int64_t>& begins)
        : scores(stored<float>(table)),
          scores_there(sy::copy_to_device(device, scores)),
          mask(padding),
          mask_there(padding),
          offsets(begins),
          offsets_there(sy::copy_to_device(device, std::span<const std::int64_t>(offsets))) {}

    index_t sequence_count() const { return offsets.empty() ? 1 : static_cast<index_t>(offsets.size()) - 1; }
    sy::token_sequences<> here() const {
        return {
            .mask = mask_of(mask), .offsets = offsets.empty() ? nullptr : offsets.data(), .count = sequence_count()};
    }
    sy::token_sequences<device_space> there() const {
        return {.mask = mask_there.get(),
                .offsets = offsets.empty() ? nullptr : offsets_there.data(),
                .count = sequence_count()};
    }
};

/// Numbers of losses, which are near 1, and whether the device wrote the value that its sums have.
template <class Policy, class Loss, class Write>
std::string sums_difference(const Policy& on, const sy::matrix<double, device_memory>& sums,
                            const sy::matrix<double>& want, const Loss& loss, const Write& write) {
    const auto got = sy::copy_to_host(on, sums);
    const auto sentence = matrix_difference(got, want, 1e-6, 1);
    if (!sentence.empty()) return "sums: " + sentence;
    sy::matrix<double, device_memory> value(1, 1);
    write(value.data());
    const double there = sy::copy_to_host(on, value)(0, 0);
    const auto is_near = [](double a, double b, double allowed) {
        return std::abs(a - b) <= allowed * std::max(1.0, std::abs(b));
    };
    if (!is_near(there, loss(got), 1e-14)) return said("the loss is ", there, ", of the same sums here ", loss(got));
    return is_near(there, loss(want), 2e-6) ? "" : said("the loss is ", there, ", on the CPU ", loss(want));
}

/// A backward written, added, and in place of the scores, against the CPU's.
template <class Policy, class Backward, class HostBackward>
std::string backward_difference(const Policy& on, const loss_batch& batch, const Backward& backward,
                                const HostBackward& host_backward) {
    const index_t tokens = batch.scores.rows();
    const index_t experts = batch.scores.columns();
    sy::matrix<float> want(tokens, experts);
    host_backward(want, sy::loss_gradient{.scale = 3});
    sy::matrix<float, device_memory> d(tokens, experts);
    backward(batch.scores_there, d, sy::loss_gradient{.scale = 3});
    const auto written = sy::copy_to_host(on, d);
    // Terms of the size of scale times logarithms over the tokens cancel.
    const auto sentence = matrix_difference(written, want, 2e-6, 10.0 / static_cast<double>(1 + tokens));
    if (!sentence.empty()) return "d_scores: " + sentence;
    auto added = sy::copy_to_device(on, batch.scores);
    backward(batch.scores_there, added, sy::loss_gradient{.scale = 3, .adds = true});
    sy::matrix<float> sum(tokens, experts);
    for (index_t i = 0; i < tokens * experts; ++i) sum.data()[i] = written.data()[i] + batch.scores.data()[i];
    const auto of_sum = array_difference("added", sy::copy_to_host(on, added).data(), sum.data(), tokens * experts);
    if (!of_sum.empty()) return of_sum;
    auto in_place = sy::copy_to_device(on, batch.scores);
    backward(in_place, in_place, sy::loss_gradient{.scale = 3});
    return array_difference("in place", sy::copy_to_host(on, in_place).data(), written.data(), tokens * experts);
}

/// Importances, their variation, and the gradient of the gates.
template <class Policy, class Plan>
std::string importance_difference(const Policy& on, const Plan& made, const sy::plan<float>& want) {
    const index_t experts = want.experts();
    sy::workspace scratch;
    device_scratch scratch_there;
    sy::matrix<double> here(4, experts);  // importance, its gradient, the loss
    sy::matrix<double, device_memory> there(4, experts);
    sy::write_importance(sy::seq, want, experts, here.data(), scratch);
    sy::write_importance(on, made, experts, there.data(), scratch_there);
    here(2, 0) = sy::squared_variation(0.1, here.data(), experts, &here(1, 0));
    sy::write_squared_variation(on, 0.1, there.data(), experts, there.data() + 2 * experts, there.data() + experts);
    const auto got = sy::copy_to_host(on, there);
    for (index_t i = 0; i < 2 * experts + 1; ++i) {
        if (!(std::abs(got.data()[i] - here.data()[i]) <= 1e-5 * std::max(1.0, std::abs(here.data()[i])))) {
            return said("importance ", i, " is ", got.data()[i], ", on the CPU ", here.data()[i]);
        }
    }
    sy::matrix<float> d_gates(want.tokens(), want.choices());
    sy::matrix<float, device_memory> d_gates_there(want.tokens(), want.choices());
    sy::importance_loss_backward(sy::seq, want, experts, &got(1, 0), d_gates);
    sy::importance_loss_backward(on, made, experts, there.data() + experts, d_gates_there);
    return array_difference("d_gates", sy::copy_to_host(on, d_gates_there).data(), d_gates.data(),
                            want.tokens() * want.choices());
}

/// Every loss of a batch, choices made by a plan with drops; a sentence about the first difference.
template <class Policy>
std::string loss_difference(const Policy& on, const loss_batch& batch, const sy::balance_loss_settings& settings,
                            const sy::score_loss_settings& of_scores) {
    const index_t experts = batch.scores.columns();
    const sy::top_k_router router{.k = std::min<index_t>(3, experts), .capacity = {.factor = 0.8}};
    sy::workspace scratch;
    device_scratch scratch_there;
    sy::plan<float> plan;
    device_plan<float> plan_there;
    sy::route_scores(sy::seq, router, batch.scores, sy::training{.mask = mask_of(batch.mask)}, plan, scratch);
    sy::route_scores(on, router, batch.scores_there, sy::training{.mask = batch.mask_there.get()}, plan_there,
                     scratch_there);

    sy::matrix<double> sums(batch.sequence_count(), sy::balance_columns(experts));
    sy::matrix<double, device_memory> sums_there(sums.rows(), sums.columns());
    sy::write_balance_sums(sy::seq, batch.scores, plan, settings, batch.here(), sums, scratch);
    sy::write_balance_sums(on, batch.scores_there, plan_there, settings, batch.there(), sums_there, scratch_there);
    auto sentence = sums_difference(
        on, sums_there, sums, [&](const auto& of) { return sy::balance_loss(settings, of); },
        [&](double* out) { sy::write_balance_loss(on, settings, sums_there, out); });
    if (!sentence.empty()) return "balance: " + sentence;
    sentence = backward_difference(
        on, batch,
        [&](const auto& scores, auto& d, const sy::loss_gradient& gradient) {
            sy::balance_loss_backward(on, scores, settings, batch.there(), sums_there, d, scratch_there, gradient);
        },
        [&](auto& d, const sy::loss_gradient& gradient) {
            sy::balance_loss_backward(sy::seq, batch.scores, settings, batch.here(), sums, d, scratch, gradient);
        });
    if (!sentence.empty()) return "balance: " + sentence;

    sums.resize(batch.sequence_count(), sy::score_loss_columns(experts));
    sums_there.resize(sums.rows(), sums.columns());
    sy::write_score_sums(sy::seq, batch.scores, of_scores, batch.here(), sums, scratch);
    sy::write_score_sums(on, batch.scores_there, of_scores, batch.there(), sums_there, scratch_there);
    sentence = sums_difference(
        on, sums_there, sums, [&](const auto& of) { return sy::score_loss(of_scores, of); },
        [&](double* out) { sy::write_score_loss(on, of_scores, sums_there, out); });
    if (!sentence.empty()) return "score loss: " + sentence;
    sentence = backward_difference(
        on, batch,
        [&](const auto& scores, auto& d, const sy::loss_gradient& gradient) {
            sy::score_loss_backward(on, scores, of_scores, batch.there(), sums_there, d, scratch_there, gradient);
        },
        [&](auto& d, const sy::loss_gradient& gradient) {
            sy::score_loss_backward(sy::seq, batch.scores, of_scores, batch.here(), sums, d, scratch, gradient);
        });
    if (!sentence.empty()) return "score loss: " + sentence;
    return importance_difference(on, plan_there, plan);
}

}  // namespace switchyard_test
