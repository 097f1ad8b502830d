// Losses of scores and choices on a device policy against the CPU's, whose values balance/*_test.cpp checks.
#include "thrust/losses.hpp"

#include <doctest/doctest.h>

#include <limits>

using namespace switchyard_test;

TEST_CASE("losses: sums, values and gradients on a device, for every probability, unit and kind") {
    auto table = gaussian_scores(300, 12, 1);
    for (index_t e = 0; e < 12; ++e) table(120, e) = -std::numeric_limits<double>::infinity();
    table(7, 3) = -std::numeric_limits<double>::infinity();
    const loss_batch packed(table, draw_mask(300, 2), {0, 70, 70, 71, 300});
    const loss_batch whole(gaussian_scores(200, 12, 3), {}, {});
    const struct {
        sy::balance_loss_settings balance;
        sy::score_loss_settings of_scores;
    } settings[] = {
        {{}, {}},
        {{.count = sy::choice_count::all,
          .after_drops = true,
          .score = sy::score_function::sigmoid,
          .probability = sy::balance_probability::normalized,
          .tokens = sy::sequence_tokens::mean},
         {.kind = sy::score_loss_kind::entropy, .score = sy::score_function::sigmoid}},
        {{.count = sy::choice_count::all_undivided,
          .score = sy::score_function::sqrt_softplus,
          .probability = sy::balance_probability::raw,
          .unit = sy::balance_unit::device,
          .devices = 4},
         {.kind = sy::score_loss_kind::mutual_information}},
        {{.count = sy::choice_count::all,
          .unit = sy::balance_unit::communication,
          .devices = 3,
          .devices_per_token = 2},
         {.kind = sy::score_loss_kind::mutual_information, .score = sy::score_function::sqrt_softplus}},
    };
    for (const auto& pair : settings) {
        CAPTURE(static_cast<int>(pair.balance.unit));
        CAPTURE(static_cast<int>(pair.balance.probability));
        CHECK(loss_difference(device, packed, pair.balance, pair.of_scores) == "");
        CHECK(loss_difference(device, whole, pair.balance, pair.of_scores) == "");
    }
    covers<operation("losses of any choices")>(device);
}

TEST_CASE("losses: no tokens, one expert, and a score that is no number") {
    CHECK(loss_difference(device, loss_batch(ref::matrix(0, 4), {}, {}), {}, {}) == "");
    CHECK(loss_difference(device, loss_batch(ref::matrix(70, 1, 2), {}, {}), {}, {}) == "");
    auto bad = gaussian_scores(5, 4, 1);
    bad(2, 1) = std::numeric_limits<double>::quiet_NaN();
    const auto scores = sy::copy_to_device(device, stored<float>(bad));
    sy::matrix<double, device_memory> sums(1, sy::score_loss_columns(4));
    device_scratch scratch;
    sy::write_score_sums(device, scores, sy::score_loss_settings{}, sy::token_sequences<device_space>{}, sums, scratch);
    CHECK(std::isnan(sy::score_loss(sy::score_loss_settings{}, sy::copy_to_host(device, sums))));
}

TEST_CASE("losses: offsets that are wrong on a device reach nothing outside of the batch") {
    const auto scores = sy::copy_to_device(device, stored<float>(gaussian_scores(100, 4, 1)));
    const std::int64_t wrong[] = {70, 3, 1000, -5};
    const auto offsets = sy::copy_to_device(device, std::span<const std::int64_t>(wrong));
    const sy::token_sequences<device_space> sequences{.offsets = offsets.data(), .count = 3};
    sy::matrix<double, device_memory> sums(3, sy::score_loss_columns(4));
    device_scratch scratch;
    sy::write_score_sums(device, scores, sy::score_loss_settings{}, sequences, sums, scratch);
    sy::matrix<float, device_memory> d(100, 4);
    sy::score_loss_backward(device, scores, sy::score_loss_settings{}, sequences, sums, d, scratch);
    CHECK(sy::copy_to_host(device, sums).rows() == 3);
}
