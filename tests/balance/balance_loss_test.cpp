// Balance losses as functions of their own: worked numbers, recorded losses of Megatron-Core and transformers, the
// reference in plain loops, gradients by differences, properties, hostile input, policies and settings.
#include "reference/numeric.hpp"
#include "support/backends.hpp"
#include "support/compare.hpp"

#include <switchyard/balance/balance_loss.hpp>
#include <switchyard/reference/balance_loss.hpp>
#include <switchyard/router/route.hpp>
#include <switchyard/router/top_k.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <span>
#include <string>
#include <vector>

using namespace switchyard_test;

namespace {

namespace recorded {
#include "../recorded/megatron_losses.inc"
#include "../recorded/transformers_losses.inc"
}  // namespace recorded

using choice_ids = sy::matrix<std::int32_t>;
using offset_list = std::vector<std::int64_t>;

constexpr double infinite = std::numeric_limits<double>::infinity();

choice_ids ids_of(const ref::integers& choices) {
    choice_ids ids(choices.rows, choices.columns);
    for (index_t i = 0; i < choices.values.length(); ++i) ids.data()[i] = static_cast<std::int32_t>(choices.values[i]);
    return ids;
}

/// The k best of each row, ties to the lower expert.
ref::integers best_of(const ref::matrix& scores, index_t k) {
    ref::integers best(scores.rows, k);
    for (index_t t = 0; t < scores.rows; ++t) {
        std::vector<index_t> order(static_cast<std::size_t>(scores.columns));
        for (std::size_t e = 0; e < order.size(); ++e) order[e] = static_cast<index_t>(e);
        std::stable_sort(order.begin(), order.end(), [&](index_t a, index_t b) { return scores(t, a) > scores(t, b); });
        for (index_t c = 0; c < k; ++c) best(t, c) = order[static_cast<std::size_t>(c)];
    }
    return best;
}

/// A view of both, which outlive it.
sy::token_sequences<> sequences_of(const offset_list& offsets, const ref::mask_list& mask) {
    if (offsets.empty()) return {.mask = mask_of(mask)};
    return {.mask = mask_of(mask), .offsets = offsets.data(), .count = static_cast<index_t>(offsets.size()) - 1};
}

ref::list<index_t> list_of_offsets(const offset_list& offsets) {
    ref::list<index_t> list;
    list.assign(offsets.begin(), offsets.end());
    return list;
}

/// Loss and gradient of one batch.
struct answer {
    double loss = 0;
    ref::matrix d_scores;
    sy::matrix<double> sums;
};

template <class S, class Choices, class Policy = sy::seq_policy>
answer balance(const ref::matrix& scores, const Choices& choices, const sy::balance_loss_settings& settings,
               const sy::token_sequences<>& sequences = {}, const Policy& policy = {}) {
    sy::workspace scratch;
    const auto s = stored<S>(scores);
    answer got;
    got.sums.resize(sy::sequence_count(sequences, scores.rows), sy::balance_columns(scores.columns));
    sy::write_balance_sums(policy, s, choices, settings, sequences, got.sums, scratch);
    got.loss = sy::balance_loss(settings, got.sums);
    sy::matrix<S> d(scores.rows, scores.columns);
    sy::balance_loss_backward(policy, s, settings, sequences, got.sums, d, scratch);
    got.d_scores = ref::matrix_from(d.view());
    return got;
}

ref::balance_loss_settings reference_of_loss(const sy::balance_loss_settings& s) {
    return {.weight = s.weight,
            .count = static_cast<ref::choice_count>(s.count),
            .score = static_cast<ref::score_function>(s.score),
            .probability = static_cast<ref::balance_probability>(s.probability),
            .unit = static_cast<ref::balance_unit>(s.unit),
            .devices = s.devices,
            .devices_per_token = s.devices_per_token,
            .divides_by_mean_tokens = s.tokens == sy::sequence_tokens::mean};
}

template <class Short>
ref::mask_list mask_from(const Short& shorts, bool is_padding) {
    ref::mask_list mask;
    for (const short bit : shorts) mask.push_back((bit != 0) != is_padding ? 1 : 0);
    return mask;
}

/// Every setting but weights and devices.
template <class F>
void for_each_setting(const F& f) {
    for (const auto count : {sy::choice_count::first, sy::choice_count::all, sy::choice_count::all_undivided}) {
        for (const auto score :
             {sy::score_function::softmax, sy::score_function::sigmoid, sy::score_function::sqrt_softplus}) {
            for (const auto probability : {sy::balance_probability::softmax, sy::balance_probability::normalized,
                                           sy::balance_probability::raw}) {
                f(sy::balance_loss_settings{.weight = 0.7, .count = count, .score = score, .probability = probability});
            }
        }
    }
}

const sy::balance_loss_settings megatron_softmax{.count = sy::choice_count::all};
const sy::balance_loss_settings megatron_sigmoid{.count = sy::choice_count::all,
                                                 .score = sy::score_function::sigmoid,
                                                 .probability = sy::balance_probability::normalized};

/// Token t = 4 s + b of Megatron-Core as row 12 b + s of four sequences, and back.
index_t row_of_token(index_t t) { return t % 4 * 12 + t / 4; }

template <class T>
ref::table<T> by_sequence(const ref::table<T>& by_place) {
    ref::table<T> rows(by_place.rows, by_place.columns);
    for (index_t t = 0; t < by_place.rows; ++t) {
        for (index_t e = 0; e < by_place.columns; ++e) rows(row_of_token(t), e) = by_place(t, e);
    }
    return rows;
}

struct megatron_batch {
    ref::matrix logits = by_sequence(table_of(recorded::megatron_loss_logits, 32));
    ref::mask_list mask;

    explicit megatron_batch(bool is_padded) {
        if (!is_padded) return;
        const auto tokens = mask_from(recorded::megatron_loss_padding, true);
        mask = tokens;
        for (index_t t = 0; t < 48; ++t) mask[row_of_token(t)] = tokens[t];
    }
    choice_ids best(index_t k) const { return ids_of(best_of(logits, k)); }
    sy::token_sequences<> one() const { return {.mask = mask_of(mask)}; }
    sy::token_sequences<> four() const { return {.mask = mask_of(mask), .length = 12}; }
    /// The logits of the second micro-batch.
    megatron_batch second() const {
        megatron_batch next = *this;
        for (index_t t = 0; t < 48; ++t) {
            for (index_t e = 0; e < 32; ++e) next.logits(t, (e + 3) % 32) = logits(t, e);
        }
        return next;
    }
};

/// A gradient of every third token, by the coefficient 1e-2.
template <class Numbers>
double gradient_difference(const ref::matrix& d_scores, const Numbers& numbers) {
    const auto want = table_of(numbers, d_scores.columns);
    double largest = 0;
    for (index_t i = 0; i < want.rows; ++i) {
        for (index_t e = 0; e < want.columns; ++e) {
            largest = std::max(largest, std::abs(0.01 * d_scores(row_of_token(3 * i), e) - want(i, e)));
        }
    }
    return largest;
}

constexpr double recorded_tolerance = 2e-6;

void check_loss(double got, float want) {
    CHECK(std::abs(got - static_cast<double>(want)) <= recorded_tolerance * std::max(1.0, std::abs(got)));
}

/// P[t, e] as scores of a softmax.
ref::matrix logs(ref::matrix p) {
    for (double& x : p.values) x = x == 0 ? -infinite : std::log(x);
    return p;
}

}  // namespace

TEST_CASE("balance loss: worked numbers, per sequence 2 and over the batch 1") {
    const auto scores = logs({{1, 0}, {1, 0}, {0, 1}, {0, 1}});
    const auto ids = ids_of({{0}, {0}, {1}, {1}});
    CHECK(balance<float>(scores, ids, {}, {.length = 2}).loss == doctest::Approx(2));
    CHECK(balance<float>(scores, ids, {}).loss == doctest::Approx(1));
    const offset_list offsets{0, 2, 4};
    CHECK(balance<double>(scores, ids, {.weight = 0.5}, sequences_of(offsets, {})).loss == doctest::Approx(1));
    // The page of the built-in loss: f = (3/4, 1/4), P = (.6, .4).
    const auto p = logs({{.7, .3}, {.6, .4}, {.2, .8}, {.9, .1}});
    CHECK(balance<double>(p, ids_of({{0}, {0}, {1}, {0}}), {}).loss == doctest::Approx(1.1));
}

TEST_CASE("balance loss: two ranks, the mean of local losses 2 and the loss of global sums 1") {
    const auto rank = [](double p) { return logs({{p, 1 - p}, {p, 1 - p}}); };
    const auto a = balance<float>(rank(1), ids_of({{0}, {0}}), {});
    const auto b = balance<float>(rank(0), ids_of({{1}, {1}}), {});
    CHECK((a.loss + b.loss) / 2 == doctest::Approx(2));
    sy::matrix<double> both(1, sy::balance_columns(2));
    std::fill(both.data(), both.data() + 6, 0.0);
    sy::add_balance_sums(sy::seq, a.sums, both);
    sy::add_balance_sums(sy::seq, b.sums, both);
    CHECK(sy::balance_loss(sy::balance_loss_settings{}, both) == doctest::Approx(1));
}

TEST_CASE("balance loss: sums of ranks give the loss and the gradient of the whole batch, bit by bit") {
    const auto scores = gaussian_scores(256, 8, 3);
    const auto choices = best_of(scores, 2);
    const sy::balance_loss_settings settings{.weight = 0.1, .count = sy::choice_count::all};
    const auto whole = balance<float>(scores, ids_of(choices), settings);
    sy::matrix<double> sums(1, sy::balance_columns(8));
    std::fill(sums.data(), sums.data() + sums.columns(), 0.0);
    sy::workspace scratch;
    sy::matrix<float> d(256, 8);
    for (const bool is_forward : {true, false}) {
        for (index_t rank = 0; rank < 4; ++rank) {
            const auto s = stored<float>(scores);
            const auto ids = ids_of(choices);
            const sy::matrix_view<const float> mine(s.data() + rank * 64 * 8, 64, 8);
            const sy::matrix_view<const std::int32_t> chosen(ids.data() + rank * 64 * 2, 64, 2);
            const sy::matrix_view<float> out(d.data() + rank * 64 * 8, 64, 8);
            if (is_forward) {
                sy::matrix<double> local(1, sy::balance_columns(8));
                sy::write_balance_sums(sy::seq, mine, chosen, settings, sy::token_sequences<>{}, local, scratch);
                sy::add_balance_sums(sy::seq, local, sums);
            } else {
                sy::balance_loss_backward(sy::seq, mine, settings, sy::token_sequences<>{}, sums, out, scratch);
            }
        }
    }
    CHECK(sy::balance_loss(settings, sums) == whole.loss);
    CHECK(ref::matrix_from(d.view()) == whole.d_scores);
}

TEST_CASE("balance loss: Megatron-Core's losses, of the batch, per sequence and over micro-batches") {
    const auto with = [](const sy::balance_loss_settings& settings, index_t k, const float(&whole)[2],
                         const float(&sequence)[2], const float(&global)[2][2]) {
        for (const bool is_padded : {false, true}) {
            CAPTURE(k);
            CAPTURE(is_padded);
            const megatron_batch batch(is_padded);
            const auto first = balance<float>(batch.logits, batch.best(k), settings, batch.one());
            check_loss(first.loss, whole[is_padded]);
            check_loss(first.loss, global[is_padded][0]);
            auto per_sequence = settings;
            per_sequence.tokens = sy::sequence_tokens::mean;
            check_loss(balance<float>(batch.logits, batch.best(k), per_sequence, batch.four()).loss,
                       sequence[is_padded]);
            // Counts of both micro-batches, probabilities of the second.
            const megatron_batch next = batch.second();
            auto second = balance<float>(next.logits, next.best(k), settings, next.one());
            for (index_t column = 0; column < 33; ++column) second.sums(0, column) += first.sums(0, column);
            check_loss(sy::balance_loss(settings, second.sums), global[is_padded][1]);
        }
    };
    using namespace recorded;
    with(megatron_softmax, 2, {megatron_aux_loss_softmax_k2, megatron_aux_loss_softmax_k2_padded},
         {megatron_seq_aux_loss_softmax_k2, megatron_seq_aux_loss_softmax_k2_padded},
         {{megatron_global_aux_loss_softmax_k2, megatron_global_aux_loss_softmax_k2_second},
          {megatron_global_aux_loss_softmax_k2_padded, megatron_global_aux_loss_softmax_k2_padded_second}});
    with(megatron_softmax, 8, {megatron_aux_loss_softmax_k8, megatron_aux_loss_softmax_k8_padded},
         {megatron_seq_aux_loss_softmax_k8, megatron_seq_aux_loss_softmax_k8_padded},
         {{megatron_global_aux_loss_softmax_k8, megatron_global_aux_loss_softmax_k8_second},
          {megatron_global_aux_loss_softmax_k8_padded, megatron_global_aux_loss_softmax_k8_padded_second}});
    with(megatron_sigmoid, 2, {megatron_aux_loss_sigmoid_k2, megatron_aux_loss_sigmoid_k2_padded},
         {megatron_seq_aux_loss_sigmoid_k2, megatron_seq_aux_loss_sigmoid_k2_padded},
         {{megatron_global_aux_loss_sigmoid_k2, megatron_global_aux_loss_sigmoid_k2_second},
          {megatron_global_aux_loss_sigmoid_k2_padded, megatron_global_aux_loss_sigmoid_k2_padded_second}});
    with(megatron_sigmoid, 8, {megatron_aux_loss_sigmoid_k8, megatron_aux_loss_sigmoid_k8_padded},
         {megatron_seq_aux_loss_sigmoid_k8, megatron_seq_aux_loss_sigmoid_k8_padded},
         {{megatron_global_aux_loss_sigmoid_k8, megatron_global_aux_loss_sigmoid_k8_second},
          {megatron_global_aux_loss_sigmoid_k8_padded, megatron_global_aux_loss_sigmoid_k8_padded_second}});
    const megatron_batch batch(false);
    check_loss(balance<float>(batch.logits, batch.best(1), megatron_softmax).loss, megatron_aux_softmax_k1);
    check_loss(balance<float>(batch.logits, batch.best(1), megatron_sigmoid).loss, megatron_aux_sigmoid_k1);
}

TEST_CASE("balance loss: Megatron-Core's gradients") {
    const megatron_batch whole(false);
    const megatron_batch padded(true);
    auto softmax_mean = megatron_softmax;
    auto sigmoid_mean = megatron_sigmoid;
    softmax_mean.tokens = sigmoid_mean.tokens = sy::sequence_tokens::mean;
    CHECK(gradient_difference(balance<float>(padded.logits, padded.best(8), megatron_softmax, padded.one()).d_scores,
                              recorded::megatron_d_aux_loss_softmax_k8_padded) < recorded_tolerance);
    CHECK(gradient_difference(balance<float>(whole.logits, whole.best(2), megatron_sigmoid).d_scores,
                              recorded::megatron_d_aux_loss_sigmoid_k2) < recorded_tolerance);
    CHECK(gradient_difference(balance<float>(padded.logits, padded.best(2), sigmoid_mean, padded.four()).d_scores,
                              recorded::megatron_d_seq_aux_loss_sigmoid_k2_padded) < recorded_tolerance);
    CHECK(gradient_difference(balance<float>(whole.logits, whole.best(8), softmax_mean, whole.four()).d_scores,
                              recorded::megatron_d_seq_aux_loss_softmax_k8) < recorded_tolerance);

    const megatron_batch next = padded.second();
    const auto first = balance<float>(padded.logits, padded.best(8), megatron_sigmoid, padded.one());
    auto second = balance<float>(next.logits, next.best(8), megatron_sigmoid, next.one());
    for (index_t column = 0; column < 33; ++column) second.sums(0, column) += first.sums(0, column);
    sy::workspace scratch;
    sy::matrix<float> d(48, 32);
    sy::balance_loss_backward(sy::seq, stored<float>(next.logits), megatron_sigmoid, next.one(), second.sums, d,
                              scratch);
    CHECK(gradient_difference(ref::matrix_from(d.view()),
                              recorded::megatron_d_global_aux_loss_sigmoid_k8_padded_second) < recorded_tolerance);
}

TEST_CASE("balance loss: transformers' losses, with a mask and over layers together") {
    const sy::balance_loss_settings transformers{.count = sy::choice_count::all_undivided};
    const auto logits = table_of(recorded::mixtral_loss_logits, 8);
    const auto mask = mask_from(recorded::mixtral_loss_mask, false);
    const auto ids = ids_of(best_of(logits, 2));
    const auto plain = balance<float>(logits, ids, transformers);
    check_loss(plain.loss, recorded::mixtral_aux);
    CHECK(difference(plain.d_scores, table_of(recorded::mixtral_grad_aux, 8)) < recorded_tolerance);
    const auto masked = balance<float>(logits, ids, transformers, {.mask = mask_of(mask)});
    check_loss(masked.loss, recorded::mixtral_aux_masked);
    CHECK(difference(masked.d_scores, table_of(recorded::mixtral_grad_aux_masked, 8)) < recorded_tolerance);

    auto rolled = logits;
    for (index_t t = 0; t < 48; ++t) {
        for (index_t e = 0; e < 8; ++e) rolled(t, (e + 1) % 8) = logits(t, e);
    }
    auto layers = balance<float>(rolled, ids_of(best_of(rolled, 2)), transformers);
    sy::add_balance_sums(sy::seq, plain.sums, layers.sums);
    check_loss(sy::balance_loss(transformers, layers.sums), recorded::mixtral_aux_two_layers);

    const auto sequences = table_of(recorded::switch_loss_logits, 8);
    const auto per_sequence = balance<float>(sequences, ids_of(best_of(sequences, 1)), {}, {.length = 12});
    check_loss(per_sequence.loss, recorded::switch_aux);
    CHECK(difference(per_sequence.d_scores, table_of(recorded::switch_grad_aux, 8)) < recorded_tolerance);
}

TEST_CASE("balance loss: transformers balances DeepSeek-V4 by a softmax that its router does not use") {
    const sy::balance_loss_settings transformers{.count = sy::choice_count::all_undivided,
                                                 .score = sy::score_function::sqrt_softplus};
    const auto logits = table_of(recorded::deepseek_v4_loss_logits, 32);
    const auto mask = mask_from(recorded::mixtral_loss_mask, false);
    const auto ids = ids_of(best_of(logits, 6));
    const auto plain = balance<float>(logits, ids, transformers);
    check_loss(plain.loss, recorded::deepseek_v4_aux);
    const auto masked = balance<float>(logits, ids, transformers, {.mask = mask_of(mask)});
    check_loss(masked.loss, recorded::deepseek_v4_aux_masked);
    ref::matrix every_third(16, 32);
    auto rolled = logits;
    for (index_t t = 0; t < 48; ++t) {
        for (index_t e = 0; e < 32; ++e) {
            rolled(t, (e + 1) % 32) = logits(t, e);
            if (t % 3 == 0) every_third(t / 3, e) = masked.d_scores(t, e);
        }
    }
    CHECK(difference(every_third, table_of(recorded::deepseek_v4_grad_aux_masked, 32)) < recorded_tolerance);
    auto layers = balance<float>(rolled, ids_of(best_of(rolled, 6)), transformers);
    sy::add_balance_sums(sy::seq, plain.sums, layers.sums);
    check_loss(sy::balance_loss(transformers, layers.sums), recorded::deepseek_v4_aux_two_layers);
}

TEST_CASE("balance loss: the reference's loss and gradient, for every setting, mask and sequence") {
    const offset_list offsets{0, 70, 70, 71, 150, 150};
    for_each_setting([&](sy::balance_loss_settings settings) {
        for (const bool is_packed : {false, true}) {
            for (const index_t experts : {1, 5, 12, 40}) {
                for (const auto unit :
                     {sy::balance_unit::expert, sy::balance_unit::device, sy::balance_unit::communication}) {
                    if (unit != sy::balance_unit::expert && experts % 4 != 0) continue;
                    settings.unit = unit;
                    settings.devices = unit == sy::balance_unit::expert ? 1 : 4;
                    settings.devices_per_token = unit == sy::balance_unit::communication ? 2 : 1;
                    settings.tokens = experts == 12 ? sy::sequence_tokens::mean : sy::sequence_tokens::own;
                    CAPTURE(is_packed);
                    CAPTURE(experts);
                    CAPTURE(static_cast<int>(unit));
                    CAPTURE(static_cast<int>(settings.count));
                    CAPTURE(static_cast<int>(settings.score));
                    CAPTURE(static_cast<int>(settings.probability));
                    auto scores = draw_scores(score_kind::gaussian, 150, experts, 4, 20);
                    for (index_t e = 0; e < experts; ++e) scores(149, e) = -infinite;
                    const auto choices = best_of(scores, std::min<index_t>(3, experts));
                    const auto mask = draw_mask(150, 5);
                    const auto list = is_packed ? list_of_offsets(offsets) : ref::list<index_t>{};
                    const auto want = reference_of_loss(settings);
                    const double loss = ref::balance_loss(scores, choices, want, list, mask);
                    const auto d = ref::balance_loss_backward(scores, choices, want, list, mask);
                    const auto packed = is_packed ? offsets : offset_list{};
                    const auto sequences = sequences_of(packed, mask);
                    const auto exact = balance<double>(scores, ids_of(choices), settings, sequences);
                    CHECK(is_close(exact.loss, loss, 1e-13));
                    CHECK(difference(exact.d_scores, d) < 1e-15);
                    const auto single = balance<float>(rounded_to<float>(scores), ids_of(choices), settings, sequences);
                    CHECK(is_close(single.loss, loss, 2e-6));
                    CHECK(difference(single.d_scores, d) < 1e-6);
                }
            }
        }
    });
}

TEST_CASE("balance loss: gradients by central differences in double") {
    const offset_list offsets{0, 4, 4, 9};
    auto scores = gaussian_scores(9, 6, 1);
    scores(2, 1) = -infinite;
    for (index_t e = 0; e < 6; ++e) scores(5, e) = -infinite;
    const ref::mask_list mask{1, 1, 1, 0, 1, 1, 1, 1, 1};
    const auto ids = ids_of(best_of(scores, 2));
    for_each_setting([&](const sy::balance_loss_settings& settings) {
        const auto sequences = sequences_of(offsets, mask);
        const auto got = balance<double>(scores, ids, settings, sequences);
        ref::matrix numeric(9, 6);
        for (index_t i = 0; i < 54; ++i) {
            if (std::isinf(scores.values[i])) continue;
            auto moved = scores;
            moved.values[i] += 1e-5;
            const double above = balance<double>(moved, ids, settings, sequences).loss;
            moved.values[i] -= 2e-5;
            numeric.values[i] = (above - balance<double>(moved, ids, settings, sequences).loss) / 2e-5;
        }
        CHECK(difference(got.d_scores, numeric) < 1e-9);
    });
}

TEST_CASE("balance loss: a plan's choices, before and after drops, and the router's own loss") {
    const auto scores = gaussian_scores(200, 8, 2);
    const auto s = stored<float>(scores);
    sy::top_k_router router{.k = 2, .capacity = {.factor = 0.6}, .balance_weight = 0.3};
    for (const auto count : {sy::balance_count::first, sy::balance_count::all}) {
        router.balance = count;
        const auto plan = sy::route_scores(sy::seq, router, s, sy::training{});
        REQUIRE(plan.kept() < 400);
        const sy::balance_loss_settings settings{
            .weight = 0.3,
            .count = count == sy::balance_count::first ? sy::choice_count::first : sy::choice_count::all};
        const auto got = balance<float>(scores, plan, settings);
        CHECK(is_close(got.loss, plan.load_balancing_loss(), 1e-6));
        const sy::matrix<float> no_gates = stored<float>(ref::matrix(200, 2));
        const auto d = sy::route_scores_backward(sy::seq, router, plan, s, no_gates);
        CHECK(difference(got.d_scores, ref::matrix_from(d.view())) < 1e-8);

        auto after = settings;
        after.after_drops = true;
        ref::integers kept(200, 2);
        for (index_t i = 0; i < 400; ++i) kept.values[i] = plan.view().slot[i] < 0 ? -1 : plan.view().expert[i];
        CHECK(is_close(balance<float>(scores, plan, after).loss,
                       ref::balance_loss(scores, kept, reference_of_loss(settings)), 2e-6));
    }
}

TEST_CASE("balance loss: scores as a router changes them") {
    const auto scores = gaussian_scores(100, 8, 6);
    const auto s = stored<double>(scores);
    auto rows = sy::score_rows_of(sy::matrix_view<const double>(s.view()), 0.0f, {});
    rows.multiplier = 0.5;
    rows.cap = 0.8;
    sy::workspace scratch;
    const auto ids = ids_of(best_of(scores, 2));
    const sy::balance_loss_settings settings{.count = sy::choice_count::all};
    sy::matrix<double> sums(1, sy::balance_columns(8));
    sy::write_balance_sums(sy::seq, rows, ids, settings, sy::token_sequences<>{}, sums, scratch);
    auto changed = scores;
    for (double& x : changed.values) x = 0.8 * std::tanh(0.5 * x / 0.8);
    const auto want = balance<double>(changed, ids, settings);
    CHECK(is_close(sy::balance_loss(settings, sums), want.loss, 1e-13));
    sy::matrix<double> d(100, 8);
    sy::balance_loss_backward(sy::seq, rows, settings, sy::token_sequences<>{}, sums, d, scratch);
    auto through = want.d_scores;
    for (index_t i = 0; i < 800; ++i) {
        through.values[i] *= 0.5 * (1 - changed.values[i] * changed.values[i] / 0.64);
    }
    CHECK(difference(ref::matrix_from(d.view()), through) < 1e-15);
}

TEST_CASE("balance loss: padding rows change nothing, whatever they hold") {
    const auto scores = gaussian_scores(90, 8, 7);
    const auto choices = best_of(scores, 2);
    const offset_list offsets{0, 40, 90};
    const offset_list with_padding{0, 43, 100, 104};
    ref::matrix padded(104, 8, std::numeric_limits<double>::quiet_NaN());
    ref::integers ids(104, 2, 3);
    ref::mask_list mask = ref::filled<std::uint8_t>(104, 0);
    for (index_t t = 0; t < 90; ++t) {
        const index_t row = t < 40 ? t : t + 5;
        mask[row] = 1;
        for (index_t e = 0; e < 8; ++e) padded(row, e) = scores(t, e);
        for (index_t c = 0; c < 2; ++c) ids(row, c) = choices(t, c);
    }
    const sy::balance_loss_settings settings{.count = sy::choice_count::all};
    const auto plain = balance<float>(scores, ids_of(choices), settings, sequences_of(offsets, {}));
    const auto more = balance<float>(padded, ids_of(ids), settings, sequences_of(with_padding, mask));
    CHECK(more.loss == plain.loss);
    for (index_t t = 0; t < 104; ++t) {
        for (index_t e = 0; e < 8; ++e) {
            const index_t token = t < 40 ? t : t - 5;
            CHECK(more.d_scores(t, e) == (mask[t] != 0 ? plain.d_scores(token, e) : 0.0));
        }
    }
}

TEST_CASE("balance loss: permuting tokens and experts permutes the gradient") {
    const auto scores = gaussian_scores(60, 8, 8);
    const auto choices = best_of(scores, 2);
    const sy::balance_loss_settings settings{.count = sy::choice_count::all};
    ref::matrix turned(60, 8);
    ref::integers turned_choices(60, 2);
    const auto token = [](index_t t) { return (t * 7 + 3) % 60; };
    const auto expert = [](index_t e) { return (e * 3 + 1) % 8; };
    for (index_t t = 0; t < 60; ++t) {
        for (index_t e = 0; e < 8; ++e) turned(token(t), expert(e)) = scores(t, e);
        for (index_t c = 0; c < 2; ++c) turned_choices(token(t), c) = expert(choices(t, c));
    }
    const auto got = balance<double>(scores, ids_of(choices), settings);
    const auto other = balance<double>(turned, ids_of(turned_choices), settings);
    CHECK(is_close(other.loss, got.loss, 1e-14));
    for (index_t t = 0; t < 60; ++t) {
        for (index_t e = 0; e < 8; ++e) {
            CHECK(other.d_scores(token(t), expert(e)) == doctest::Approx(got.d_scores(t, e)).epsilon(1e-12));
        }
    }
}

TEST_CASE("balance loss: even loads and probabilities give the weight, or k times it") {
    ref::matrix even(8, 4, 0.3);
    ref::integers choices(8, 2);
    for (index_t t = 0; t < 8; ++t) {
        choices(t, 0) = t % 4;
        choices(t, 1) = (t + 1) % 4;
    }
    const auto ids = ids_of(choices);
    for (const auto unit : {sy::balance_unit::expert, sy::balance_unit::device}) {
        sy::balance_loss_settings settings{.weight = 3, .count = sy::choice_count::all, .unit = unit, .devices = 2};
        CHECK(balance<double>(even, ids, settings).loss == doctest::Approx(3));
        settings.count = sy::choice_count::all_undivided;
        CHECK(balance<double>(even, ids, settings).loss == doctest::Approx(6));
    }
    // Experts t and t + 1 of groups of 2: half of the tokens go to one group, the others to both.
    CHECK(balance<double>(even, ids,
                          {.count = sy::choice_count::all,
                           .unit = sy::balance_unit::communication,
                           .devices = 2,
                           .devices_per_token = 2})
              .loss == doctest::Approx(0.75));
}

TEST_CASE("balance loss: nothing to count") {
    const auto nothing = balance<float>(ref::matrix(0, 4), choice_ids(0, 2), {});
    CHECK(nothing.loss == 0);
    const auto scores = gaussian_scores(5, 4, 1);
    const auto masked =
        balance<float>(scores, ids_of(best_of(scores, 2)), {}, {.mask = mask_of(ref::filled<std::uint8_t>(5, 0))});
    CHECK(masked.loss == 0);
    CHECK(masked.d_scores == ref::matrix(5, 4));
    const ref::matrix forbidden(3, 4, -infinite);
    const auto all_forbidden = balance<float>(forbidden, ids_of(ref::integers(3, 2, 1)), megatron_sigmoid);
    CHECK(all_forbidden.loss == 0);
    CHECK(all_forbidden.d_scores == ref::matrix(3, 4));
    const auto none_chosen = balance<float>(scores, ids_of(ref::integers(5, 2, -1)), {});
    CHECK(none_chosen.loss == 0);
    const auto no_expert = balance<float>(scores, ids_of(ref::integers(5, 2, 4)), {});
    CHECK(no_expert.loss == 0);
    CHECK(balance<float>(ref::matrix(6, 1, 2.5), ids_of(ref::integers(6, 1, 0)), {}).loss == 1);
    // A sigmoid that is 0 in the type: p is 0, not NaN.
    const auto tiny = balance<float>(ref::matrix(2, 3, -200), ids_of(ref::integers(2, 1, 0)), megatron_sigmoid);
    CHECK(tiny.loss == 0);
    CHECK(tiny.d_scores == ref::matrix(2, 3));
}

TEST_CASE("balance loss: written, added, in place, and in any layout") {
    const auto scores = gaussian_scores(130, 20, 9);
    const auto ids = ids_of(best_of(scores, 2));
    const auto want = balance<float>(scores, ids, megatron_sigmoid, {.length = 65});
    sy::workspace scratch;
    auto s = stored<float>(scores);
    auto d = stored<float>(ref::matrix(130, 20, 2));
    sy::balance_loss_backward(sy::seq, s, megatron_sigmoid, sy::token_sequences<>{.length = 65}, want.sums, d, scratch,
                              {.scale = -3, .adds = true});
    for (index_t i = 0; i < 2600; ++i) {
        CHECK(static_cast<double>(d.data()[i]) == doctest::Approx(2 - 3 * want.d_scores.values[i]).epsilon(1e-6));
    }
    sy::balance_loss_backward(sy::seq, s, megatron_sigmoid, sy::token_sequences<>{.length = 65}, want.sums, s, scratch);
    CHECK(ref::matrix_from(s.view()) == want.d_scores);

    const auto in_layout = [&](auto layout) {
        sy::matrix<double> sums(2, sy::balance_columns(20));
        sy::write_balance_sums(sy::seq, layout.argument(), ids, megatron_sigmoid, sy::token_sequences<>{.length = 65},
                               sums, scratch);
        CHECK(ref::matrix_from(sums.view()) == ref::matrix_from(want.sums.view()));
        sy::balance_loss_backward(sy::seq, layout.argument(), megatron_sigmoid, sy::token_sequences<>{.length = 65},
                                  sums, layout.argument(), scratch);
        CHECK(table_of_view(layout.view()) == want.d_scores);
        CHECK(layout.gaps_intact());
    };
    in_layout(column_major::layout<float>(scores));
    in_layout(block::layout<float>(scores));
}

TEST_CASE("balance loss: scores and gradients of 16 bits, and gradients wider than the scores") {
    const auto scores = gaussian_scores(130, 20, 9);
    const auto ids = ids_of(best_of(scores, 2));
    sy::workspace scratch;
    const auto half_scores = stored<Eigen::half>(scores);
    const auto of_half = balance<float>(rounded_to<Eigen::half>(scores), ids, megatron_sigmoid, {.length = 65});
    sy::matrix<double> sums(2, sy::balance_columns(20));
    sy::write_balance_sums(sy::seq, half_scores, ids, megatron_sigmoid, sy::token_sequences<>{.length = 65}, sums,
                           scratch);
    CHECK(sy::balance_loss(megatron_sigmoid, sums) == of_half.loss);
    auto half_d = stored<Eigen::half>(ref::matrix(130, 20, 1));
    auto wide_d = stored<double>(ref::matrix(130, 20, 1));
    for (const bool adds : {false, true}) {
        sy::balance_loss_backward(sy::seq, half_scores, megatron_sigmoid, sy::token_sequences<>{.length = 65}, sums,
                                  half_d, scratch, {.scale = 64, .adds = adds});
        sy::balance_loss_backward(sy::seq, half_scores, megatron_sigmoid, sy::token_sequences<>{.length = 65}, sums,
                                  wide_d, scratch, {.scale = 64, .adds = adds});
        for (index_t i = 0; i < 2600; ++i) {
            const double want = 64 * (adds ? 2 : 1) * of_half.d_scores.values[i];
            CHECK(wide_d.data()[i] == doctest::Approx(want).epsilon(1e-6));
            CHECK(std::abs(static_cast<double>(static_cast<float>(half_d.data()[i])) - want) <=
                  1e-3 * std::abs(want) + 1e-7);
        }
    }
}

TEST_CASE("balance loss: the same bits on every policy") {
    const auto scores = gaussian_scores(5000, 40, 10);
    const auto ids = ids_of(best_of(scores, 3));
    const offset_list offsets{0, 1, 2000, 2300, 5000};
    const auto mask = draw_mask(5000, 6);
    const auto want = balance<float>(scores, ids, megatron_sigmoid, sequences_of(offsets, mask));
    for_each_policy([&](const auto& policy) {
        const auto got = balance<float>(scores, ids, megatron_sigmoid, sequences_of(offsets, mask), policy);
        CHECK(got.loss == want.loss);
        CHECK(got.d_scores == want.d_scores);
        covers<operation("losses of any choices")>(policy);
    });
}

TEST_CASE("balance loss: a sequence's sums do not depend on where it stands") {
    const auto scores = gaussian_scores(300, 8, 11);
    const auto ids = ids_of(best_of(scores, 2));
    const offset_list offsets{0, 37, 300};
    const auto both = balance<float>(scores, ids, {}, sequences_of(offsets, {}));
    ref::matrix later(263, 8);
    choice_ids later_ids(263, 2);
    for (index_t t = 0; t < 263; ++t) {
        for (index_t e = 0; e < 8; ++e) later(t, e) = scores(t + 37, e);
        for (index_t c = 0; c < 2; ++c) later_ids(t, c) = ids(t + 37, c);
    }
    const auto alone = balance<float>(later, later_ids, {});
    for (index_t column = 0; column < 18; ++column) CHECK(both.sums(1, column) == alone.sums(0, column));
}

TEST_CASE("balance loss: errors name the argument and the rule") {
    sy::workspace scratch;
    const auto scores = stored<float>(gaussian_scores(6, 4, 1));
    const choice_ids ids = ids_of(ref::integers(6, 2, 1));
    sy::matrix<double> sums(1, sy::balance_columns(4));
    const auto sums_with = [&](const sy::balance_loss_settings& settings, const sy::token_sequences<>& sequences) {
        return sentence_of([&] { sy::write_balance_sums(sy::seq, scores, ids, settings, sequences, sums, scratch); });
    };
    CHECK(sums_with({}, {}) == "");
    CHECK(sums_with({.weight = std::nan("")}, {}) == "weight = nan must be finite");
    CHECK(sums_with({.after_drops = true}, {}) == "after_drops needs a plan: choices alone have no slots");
    CHECK(sums_with({.unit = sy::balance_unit::device, .devices = 3}, {}) == "devices = 3 must divide E = 4");
    CHECK(sums_with({.unit = sy::balance_unit::communication, .devices = 2, .devices_per_token = 3}, {}) ==
          "devices_per_token = 3 must lie in 1..devices = 2");
    CHECK(sums_with({}, {.length = 4}) == "length = 4 of a sequence does not divide T = 6");
    CHECK(sums_with({}, {.count = 2}) == "count = 2 sequences need offsets, or a length");
    const std::uint8_t short_mask[2] = {1, 1};
    CHECK(sums_with({}, {.mask = {short_mask, 2}}) == "the mask has 2 entries for T = 6 tokens");
    const auto offsets_of = [&](const offset_list& offsets) { return sums_with({}, sequences_of(offsets, {})); };
    CHECK(offsets_of({0, 4}) == "offsets[1] = 4 must be T = 6");
    CHECK(offsets_of({1, 6}) == "offsets[0] = 1 must be 0");
    CHECK(offsets_of({0, 4, 3, 6}) == "offsets[2] = 3 is less than offsets[1] = 4");
    CHECK(offsets_of({0, 3, 6}) == "sums are 1 x 10; B = 2 sequences of E = 4 experts have 2 x 10");

    auto bad = stored<float>(gaussian_scores(6, 4, 1));
    bad(3, 2) = std::numeric_limits<float>::quiet_NaN();
    const auto refused = [&] {
        return sentence_of([&] {
            sy::write_balance_sums(sy::seq, bad, ids, megatron_sigmoid, sy::token_sequences<>{}, sums, scratch);
        });
    };
    CHECK(refused() == "scores[3, 2] is NaN: a score must be finite, or -infinity to forbid an expert");
    bad(3, 2) = std::numeric_limits<float>::infinity();
    CHECK(refused() == "scores[3, 2] is +infinity: a score must be finite, or -infinity to forbid an expert");

    sy::matrix<float> d(6, 4);
    const auto backward = [&](auto& out, const sy::loss_gradient& gradient) {
        return sentence_of([&] {
            sy::balance_loss_backward(sy::seq, d, sy::balance_loss_settings{}, sy::token_sequences<>{}, sums, out,
                                      scratch, gradient);
        });
    };
    CHECK(backward(d, {.adds = true}) == "d_scores, which is added to, shares memory with scores: it must lie apart");
    CHECK(backward(d, {.scale = infinite}) == "scale = inf of a gradient must be finite");
    sy::matrix<float> wrong(6, 3);
    CHECK(backward(wrong, {}) == "d_scores is 6 x 3; scores is 6 x 4");
}

TEST_CASE("balance loss: the page's example") {
    const auto scores = stored<float>(gaussian_scores(64, 8, 12));
    const sy::index_t experts = 8;
    sy::matrix<float> d_scores = stored<float>(ref::matrix(64, 8));
    const auto plan = sy::route_scores(sy::seq, sy::top_k_router{.k = 2}, scores, sy::training{});
    // [balance]
    const sy::balance_loss_settings settings{.weight = 1e-3,
                                             .count = sy::choice_count::all,
                                             .score = sy::score_function::sigmoid,
                                             .probability = sy::balance_probability::normalized};
    const sy::token_sequences<> sequences{.length = 16};  // B = T / 16
    sy::workspace scratch;
    sy::matrix<double> sums(4, sy::balance_columns(experts));
    sy::write_balance_sums(sy::seq, scores, plan, settings, sequences, sums, scratch);
    // Ranks, layers and micro-batches would add their sums here.
    const double loss = sy::balance_loss(settings, sums);
    sy::balance_loss_backward(sy::seq, scores, settings, sequences, sums, d_scores, scratch, {.adds = true});
    // [/balance]
    CHECK(loss > 0.9e-3);
    CHECK(d_scores(0, 0) != 0);
}
