// Losses of scores alone: worked numbers, recorded z-losses, the reference, gradients by differences, policies, errors.
#include "reference/numeric.hpp"
#include "support/backends.hpp"
#include "support/compare.hpp"

#include <switchyard/balance/score_loss.hpp>
#include <switchyard/reference/losses.hpp>
#include <switchyard/reference/score_loss.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <span>
#include <vector>

using namespace switchyard_test;
using sy::score_loss_kind;

namespace {

namespace recorded {
#include "../recorded/megatron_losses.inc"
#include "../recorded/transformers_losses.inc"
}  // namespace recorded

using offset_list = std::vector<std::int64_t>;

constexpr double infinite = std::numeric_limits<double>::infinity();
constexpr score_loss_kind every_kind[] = {score_loss_kind::z, score_loss_kind::entropy,
                                          score_loss_kind::mutual_information};

struct answer {
    double loss = 0;
    ref::matrix d_scores;
    sy::matrix<double> sums;
};

template <class S, class Policy = sy::seq_policy>
answer loss_of(const ref::matrix& scores, const sy::score_loss_settings& settings,
               const sy::token_sequences<>& sequences = {}, const Policy& policy = {}) {
    sy::workspace scratch;
    const auto s = stored<S>(scores);
    answer got;
    got.sums.resize(sy::sequence_count(sequences, scores.rows), sy::score_loss_columns(scores.columns));
    sy::write_score_sums(policy, s, settings, sequences, got.sums, scratch);
    got.loss = sy::score_loss(settings, got.sums);
    sy::matrix<S> d(scores.rows, scores.columns);
    sy::score_loss_backward(policy, s, settings, sequences, got.sums, d, scratch);
    got.d_scores = ref::matrix_from(d.view());
    return got;
}

constexpr double recorded_tolerance = 2e-6;

void check_loss(double got, float want) {
    CHECK(std::abs(got - static_cast<double>(want)) <= recorded_tolerance * std::max(1.0, std::abs(got)));
}

/// Scores with padding, an expert that is forbidden to a token, and a token with none left.
struct hard_batch {
    ref::matrix scores = gaussian_scores(9, 6, 1);
    ref::mask_list mask{1, 1, 1, 0, 1, 1, 1, 1, 1};
    offset_list offsets{0, 4, 4, 9};

    hard_batch() {
        scores(2, 1) = -infinite;
        for (index_t e = 0; e < 6; ++e) scores(5, e) = -infinite;
    }
    sy::token_sequences<> sequences() const { return {.mask = mask_of(mask), .offsets = offsets.data(), .count = 3}; }
    ref::list<index_t> list() const { return {0, 4, 4, 9}; }
};

}  // namespace

TEST_CASE("score loss: worked numbers") {
    const double ln2 = std::log(2.0);
    // Two sure tokens at one expert, at two, and two tokens that do not mind.
    const ref::matrix same{{0, -infinite}, {0, -infinite}};
    const ref::matrix apart{{0, -infinite}, {-infinite, 0}};
    const ref::matrix even{{0, 0}, {0, 0}};
    CHECK(loss_of<double>(same, {.kind = score_loss_kind::entropy}).loss == 0);
    CHECK(loss_of<double>(apart, {.kind = score_loss_kind::entropy}).loss == doctest::Approx(-ln2));
    CHECK(loss_of<double>(even, {.kind = score_loss_kind::entropy}).loss == doctest::Approx(-ln2));
    CHECK(loss_of<double>(same, {.kind = score_loss_kind::mutual_information}).loss == 0);
    CHECK(loss_of<double>(apart, {.kind = score_loss_kind::mutual_information}).loss == doctest::Approx(-ln2));
    CHECK(std::abs(loss_of<double>(even, {.kind = score_loss_kind::mutual_information}).loss) < 1e-15);
    CHECK(loss_of<double>(even, {.weight = 3}).loss == doctest::Approx(3 * .480453));
    // Of each sequence of one token, the mean.
    CHECK(loss_of<double>(apart, {.kind = score_loss_kind::entropy}, {.length = 1}).loss == 0);
}

TEST_CASE("score loss: the z-losses of Megatron-Core and transformers") {
    const auto logits = table_of(recorded::megatron_loss_logits, 32);
    ref::mask_list mask;
    for (const short is_padding : recorded::megatron_loss_padding) mask.push_back(is_padding == 0 ? 1 : 0);
    const auto every_third = [](const ref::matrix& d) {
        ref::matrix rows(16, 32);
        for (index_t t = 0; t < 16; ++t) {
            for (index_t e = 0; e < 32; ++e) rows(t, e) = d(3 * t, e);
        }
        return rows;
    };
    const auto whole = loss_of<float>(logits, {.weight = 1e-3});
    const auto padded = loss_of<float>(logits, {.weight = 1e-3}, {.mask = mask_of(mask)});
    check_loss(whole.loss, recorded::megatron_z_loss);
    check_loss(padded.loss, recorded::megatron_z_loss_padded);
    CHECK(difference(every_third(whole.d_scores), table_of(recorded::megatron_d_z_loss, 32)) < recorded_tolerance);
    CHECK(difference(every_third(padded.d_scores), table_of(recorded::megatron_d_z_loss_padded, 32)) <
          recorded_tolerance);
    const auto switched = loss_of<float>(table_of(recorded::switch_loss_logits, 8), {});
    check_loss(switched.loss, recorded::switch_z_loss);
    CHECK(difference(switched.d_scores, table_of(recorded::switch_grad_z_loss, 8)) < recorded_tolerance);
}

TEST_CASE("score loss: the reference's loss and gradient") {
    const hard_batch small;
    const auto want_mask = draw_mask(150, 5);
    const offset_list offsets{0, 70, 70, 71, 150};
    for (const index_t experts : {1, 6, 40}) {
        auto scores = draw_scores(score_kind::gaussian, 150, experts, 4, 20);
        for (index_t e = 0; e < experts; ++e) scores(149, e) = -infinite;
        for (const auto score :
             {sy::score_function::softmax, sy::score_function::sigmoid, sy::score_function::sqrt_softplus}) {
            for (const bool with_rows : {false, true}) {
                CAPTURE(experts);
                CAPTURE(with_rows);
                const sy::score_loss_settings settings{
                    .kind = with_rows ? score_loss_kind::mutual_information : score_loss_kind::entropy,
                    .weight = 0.7,
                    .score = score};
                const auto function = static_cast<ref::score_function>(score);
                const ref::list<index_t> list{0, 70, 70, 71, 150};
                const sy::token_sequences<> sequences{
                    .mask = mask_of(want_mask), .offsets = offsets.data(), .count = 4};
                const double loss = ref::entropy_loss(0.7, scores, function, with_rows, list, want_mask);
                const auto d = ref::entropy_loss_backward(0.7, scores, function, with_rows, list, want_mask);
                const auto exact = loss_of<double>(scores, settings, sequences);
                CHECK(std::abs(exact.loss - loss) < 1e-14);
                CHECK(difference(exact.d_scores, d) < 1e-14);
                const auto single = loss_of<float>(scores, settings, sequences);
                CHECK(std::abs(single.loss - loss) < 2e-6);
                CHECK(difference(single.d_scores, d) < 2e-6);
            }
        }
    }
    const auto z = loss_of<double>(small.scores, {.weight = 0.3}, {.mask = mask_of(small.mask)});
    CHECK(is_close(z.loss, ref::z_loss(0.3, small.scores, small.mask), 1e-14));
    CHECK(difference(z.d_scores, ref::z_loss_backward(0.3, small.scores, small.mask)) < 1e-15);
}

TEST_CASE("score loss: gradients by central differences in double") {
    const hard_batch batch;
    for (const auto kind : every_kind) {
        for (const auto score :
             {sy::score_function::softmax, sy::score_function::sigmoid, sy::score_function::sqrt_softplus}) {
            if (kind == score_loss_kind::z && score != sy::score_function::softmax) continue;
            const sy::score_loss_settings settings{.kind = kind, .weight = 0.4, .score = score};
            const auto got = loss_of<double>(batch.scores, settings, batch.sequences());
            ref::matrix numeric(9, 6);
            for (index_t i = 0; i < 54; ++i) {
                if (std::isinf(batch.scores.values[i])) continue;
                auto moved = batch.scores;
                moved.values[i] += 1e-5;
                const double above = loss_of<double>(moved, settings, batch.sequences()).loss;
                moved.values[i] -= 2e-5;
                numeric.values[i] = (above - loss_of<double>(moved, settings, batch.sequences()).loss) / 2e-5;
            }
            CHECK(difference(got.d_scores, numeric) < 1e-9);
        }
    }
}

TEST_CASE("score loss: nothing to count, one expert, ranks, policies") {
    for (const auto kind : every_kind) {
        const sy::score_loss_settings settings{.kind = kind};
        CHECK(loss_of<float>(ref::matrix(0, 4), settings).loss == 0);
        const auto forbidden = loss_of<float>(ref::matrix(3, 4, -infinite), settings);
        CHECK(forbidden.loss == 0);
        CHECK(forbidden.d_scores == ref::matrix(3, 4));
        const auto masked = loss_of<float>(ref::matrix(3, 4, std::nan("")), settings,
                                           {.mask = mask_of(ref::filled<std::uint8_t>(3, 0))});
        CHECK(masked.loss == 0);
        CHECK(masked.d_scores == ref::matrix(3, 4));
        CHECK(loss_of<float>(ref::matrix(5, 1, 2), settings).loss == (kind == score_loss_kind::z ? 4 : 0));

        const auto scores = gaussian_scores(5000, 24, 3);
        const auto mask = draw_mask(5000, 4);
        const auto want = loss_of<float>(scores, settings, {.mask = mask_of(mask)});
        for_each_policy([&](const auto& policy) {
            const auto got = loss_of<float>(scores, settings, {.mask = mask_of(mask)}, policy);
            CHECK(got.loss == want.loss);
            CHECK(got.d_scores == want.d_scores);
        });

        ref::matrix halves[2] = {ref::matrix(2500, 24), ref::matrix(2500, 24)};
        for (index_t i = 0; i < 60000; ++i) {
            halves[0].values[i] = scores.values[i];
            halves[1].values[i] = scores.values[i + 60000];
        }
        auto sums = loss_of<float>(halves[0], settings).sums;
        sy::add_balance_sums(sy::seq, loss_of<float>(halves[1], settings).sums, sums);
        CHECK(is_close(sy::score_loss(settings, sums), loss_of<float>(scores, settings).loss, 1e-6));
    }
}

TEST_CASE("score loss: added, and errors") {
    sy::workspace scratch;
    const auto scores = gaussian_scores(6, 4, 1);
    const auto s = stored<double>(scores);
    const sy::score_loss_settings settings{.kind = score_loss_kind::mutual_information};
    const auto want = loss_of<double>(scores, settings);
    auto d = stored<double>(ref::matrix(6, 4, 5));
    sy::score_loss_backward(sy::seq, s, settings, sy::token_sequences<>{}, want.sums, d, scratch,
                            {.scale = 2, .adds = true});
    for (index_t i = 0; i < 24; ++i) CHECK(d.data()[i] == doctest::Approx(5 + 2 * want.d_scores.values[i]));
    const auto refused = [&](const sy::score_loss_settings& wrong) {
        return sentence_of([&] {
            sy::matrix<double> sums(1, 6);
            sy::write_score_sums(sy::seq, s, wrong, sy::token_sequences<>{}, sums, scratch);
        });
    };
    CHECK(refused({.weight = infinite}) == "weight = inf must be finite");
    CHECK(refused({.score = sy::score_function::sigmoid}) ==
          "the z-loss is that of the softmax: score must be score_function::softmax");
    sy::matrix<double> wrong(1, 5);
    CHECK(sentence_of([&] { sy::write_score_sums(sy::seq, s, settings, sy::token_sequences<>{}, wrong, scratch); }) ==
          "sums are 1 x 5; B = 1 sequences of E = 4 experts have 1 x 6");
}

TEST_CASE("score loss: the page's example") {
    const auto scores = stored<float>(gaussian_scores(64, 8, 12));
    const sy::index_t experts = 8;
    sy::matrix<float> d_scores = stored<float>(ref::matrix(64, 8));
    // [score_loss]
    const sy::score_loss_settings settings{.kind = sy::score_loss_kind::mutual_information, .weight = 1e-3};
    sy::workspace scratch;
    sy::matrix<double> sums(1, sy::score_loss_columns(experts));
    sy::write_score_sums(sy::seq, scores, settings, sy::token_sequences<>{}, sums, scratch);
    const double loss = sy::score_loss(settings, sums);
    sy::score_loss_backward(sy::seq, scores, settings, sy::token_sequences<>{}, sums, d_scores, scratch,
                            {.adds = true});
    // [/score_loss]
    CHECK(loss < 0);
    CHECK(d_scores(0, 0) != 0);
}
