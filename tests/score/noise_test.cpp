#include "support/scores.hpp"

#include <switchyard/reference/noise.hpp>
#include <switchyard/score/noise.hpp>

#include <doctest/doctest.h>

#include <cmath>
#include <set>
#include <vector>

using namespace switchyard_test;

namespace {

const sy::noise_key key{.seed = 7, .stream = 1, .step = 2};

}  // namespace

TEST_CASE("noise: for_each_uniform gives every column its own number, whatever the width") {
    for (const index_t columns : {0, 1, 3, 4, 5, 60, 257}) {
        index_t next = 0;
        sy::for_each_uniform(key, 9, columns, [&](index_t column, float u) {
            CHECK(column == next++);
            CHECK(u == sy::uniform_at(key, 9, column));
        });
        CHECK(next == columns);
    }
}

TEST_CASE("noise: a part of a row has the numbers of the whole row") {
    for (const index_t first : {0, 4, 32}) {
        index_t calls = 0;
        sy::for_each_uniform(key, 3, first, index_t{7}, [&](index_t i, float u) {
            CHECK(u == sy::uniform_at(key, 3, first + i));
            ++calls;
        });
        CHECK(calls == 7);
    }
}

TEST_CASE("noise: purposes do not share numbers") {
    std::set<float> seen;
    for (const auto purpose :
         {sy::noise_purpose::input_jitter, sy::noise_purpose::input_dropout, sy::noise_purpose::sampling,
          sy::noise_purpose::logit_jitter, sy::noise_purpose::initialisation}) {
        seen.insert(sy::uniform_at(sy::for_purpose(key, purpose), 5, 6));
    }
    CHECK(seen.size() == 5);
    CHECK(sy::for_purpose(key, sy::noise_purpose::sampling).seed == key.seed);
}

TEST_CASE("noise: jitter lies in [1 - eps, 1 + eps] and centres on 1") {
    for (const float epsilon : {0.01f, 0.5f, 0.99f}) {
        double sum = 0;
        constexpr index_t count = 40'000;
        for (index_t i = 0; i < count; ++i) {
            const float factor = sy::jitter_factor<float>(sy::uniform_at(key, i, 0), epsilon);
            CHECK_UNARY(factor >= 1 - epsilon - 1e-7f);
            CHECK_UNARY(factor <= 1 + epsilon + 1e-7f);
            sum += static_cast<double>(factor);
        }
        // Five standard deviations of the mean.
        CHECK(std::abs(sum / count - 1) < 5 * static_cast<double>(epsilon) / std::sqrt(3.0 * count));
    }
    CHECK(sy::jitter_factor<float>(0.25f, 0.0f) == 1.0f);
    CHECK(sy::jitter_factor<double>(0.75f, 0.5f) == 1.25);
}

TEST_CASE("noise: dropout drops its share and keeps the mean") {
    CHECK(sy::dropout_factor<float>(0.1f, 0.25f) == 0.0f);
    CHECK(sy::dropout_factor<float>(0.25f, 0.25f) == 1 / 0.75f);
    CHECK(sy::dropout_factor<double>(0.9f, 0.5f) == 2.0);
    index_t dropped = 0;
    constexpr index_t count = 40'000;
    for (index_t i = 0; i < count; ++i) {
        dropped += sy::dropout_factor<float>(sy::uniform_at(key, i, 0), 0.1f) == 0 ? 1 : 0;
    }
    CHECK(std::abs(static_cast<double>(dropped) / count - 0.1) < 5 * std::sqrt(0.09 / count));
}

TEST_CASE("noise: Gumbel numbers are finite for every word, also the first and the last") {
    for (const std::uint32_t word :
         {0u, 0xffu, 0x100u, 0x7fffffffu, 0x80000000u, 0xfffffe00u, 0xffffff00u, 0xffffffffu}) {
        CHECK(std::isfinite(sy::gumbel<float>(sy::uniform(word))));
        CHECK(std::isfinite(sy::gumbel<double>(sy::uniform(word))));
    }
    // Mean: Euler's constant; variance pi^2 / 6.
    double sum = 0;
    constexpr index_t count = 40'000;
    for (index_t i = 0; i < count; ++i) sum += sy::gumbel<double>(sy::uniform_at(key, i, 1));
    CHECK(std::abs(sum / count - 0.5772156649) < 5 * std::sqrt(1.6449340668 / count));
}

TEST_CASE("noise: input noise is the reference's, jitter and dropout together, whole rows and parts of them") {
    const ref::exploration settings{.input_jitter = 0.3f, .input_dropout = 0.2f};
    const sy::input_noise noise{.jitter = 0.3f, .dropout = 0.2f, .key = key};
    for (index_t token = 0; token < 20; ++token) {
        std::vector<double> row(11, 1.0);
        sy::apply_input_noise(noise, token, 0, row.data(), 11);
        std::vector<double> part(6, 1.0);
        sy::apply_input_noise(noise, token, 4, part.data(), 6);
        for (index_t d = 0; d < 11; ++d) {
            const double want = ref::input_factor(settings, key, token, d);
            CHECK(row[static_cast<std::size_t>(d)] == doctest::Approx(want).epsilon(1e-12));
            if (d >= 4 && d < 10) CHECK(part[static_cast<std::size_t>(d - 4)] == row[static_cast<std::size_t>(d)]);
        }
    }
    CHECK(noise.active());
    CHECK(!sy::input_noise{}.active());
}
