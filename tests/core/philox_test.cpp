#include <switchyard/core/philox.hpp>

#include <doctest/doctest.h>

#include <cmath>
#include <cstdint>
#include <set>
#include <utility>
#include <vector>

namespace sy = switchyard;

namespace {

std::vector<std::uint32_t> words(const sy::philox_words& w) { return {w.word, w.word + 4}; }

}  // namespace

// The published known answers of Random123 (kat_vectors, philox4x32, 10 rounds). The key words there are low word
// first.
TEST_CASE("philox4x32: the published known answers") {
    SUBCASE("zeros") {
        CHECK(words(sy::philox4x32({{0, 0, 0, 0}}, 0)) ==
              std::vector<std::uint32_t>{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8});
    }
    SUBCASE("ones") {
        CHECK(words(sy::philox4x32({{0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff}}, 0xffffffffffffffff)) ==
              std::vector<std::uint32_t>{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd});
    }
    SUBCASE("digits of pi") {
        CHECK(words(sy::philox4x32({{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}}, 0x299f31d0a4093822)) ==
              std::vector<std::uint32_t>{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1});
    }
    SUBCASE("at compile time") { static_assert(sy::philox4x32({{0, 0, 0, 0}}, 0).word[0] == 0x6627e8d5); }
}

TEST_CASE("noise_words: the counter is (token, column group, step, stream), the key the seed") {
    const sy::noise_key key{.seed = 0x299f31d0a4093822, .stream = 0x03707344, .step = 0x13198a2e};
    CHECK(words(sy::noise_words(key, 0x243f6a88, 0x85a308d3)) ==
          std::vector<std::uint32_t>{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1});
}

TEST_CASE("noise_words: every field of the key and of the place changes the numbers") {
    const sy::noise_key base{.seed = 1, .stream = 2, .step = 3, .purpose = 4};
    std::set<std::vector<std::uint32_t>> seen{words(sy::noise_words(base, 5, 6))};
    const auto is_new = [&](sy::noise_key key, sy::index_t token, sy::index_t group) {
        return seen.insert(words(sy::noise_words(key, token, group))).second;
    };
    auto key = base;
    key.seed = 2;
    CHECK(is_new(key, 5, 6));
    key = base;
    key.seed = 1 + (std::uint64_t{1} << 32);  // the seed's upper half counts
    CHECK(is_new(key, 5, 6));
    key = base;
    key.stream = 3;
    CHECK(is_new(key, 5, 6));
    key = base;
    key.step = 4;
    CHECK(is_new(key, 5, 6));
    key = base;
    key.purpose = 5;
    CHECK(is_new(key, 5, 6));
    CHECK(is_new(base, 6, 6));
    CHECK(is_new(base, 5, 7));
    CHECK(is_new(base, 5 + (sy::index_t{1} << 32), 6));  // tokens beyond 2^32 do not repeat
}

TEST_CASE("noise_words: purposes, streams and tokens never meet over a whole small box") {
    std::set<std::vector<std::uint32_t>> seen;
    std::size_t drawn = 0;
    for (std::uint32_t purpose = 0; purpose < 4; ++purpose) {
        for (std::uint32_t stream = 0; stream < 4; ++stream) {
            for (sy::index_t token = 0; token < 16; ++token) {
                for (sy::index_t group = 0; group < 16; ++group) {
                    seen.insert(
                        words(sy::noise_words({.seed = 9, .stream = stream, .purpose = purpose}, token, group)));
                    ++drawn;
                }
            }
        }
    }
    CHECK(seen.size() == drawn);
}

TEST_CASE("uniform: 24 bits, never 0 and never 1") {
    // ((u >> 8) + 0.5) / 2^24 needs 25 bits at the upper end, where float would round up to 1.
    CHECK(sy::uniform(0) > 0.0f);
    CHECK(sy::uniform(0) == 0x1p-25f);
    CHECK(sy::uniform(0x000000ff) == sy::uniform(0));
    CHECK(sy::uniform(0x00000100) == 1.5f * 0x1p-24f);
    CHECK(sy::uniform(0x80000000) == doctest::Approx(0.5));
    CHECK(sy::uniform(0xffffffff) == 1.0f - 0x1p-24f);
}

TEST_CASE("uniform_at: column c is lane c % 4 of group c / 4") {
    const sy::noise_key key{.seed = 11, .stream = 1, .step = 2, .purpose = 3};
    for (sy::index_t column = 0; column < 23; ++column) {
        CHECK(sy::uniform_at(key, 77, column) == sy::uniform(sy::noise_words(key, 77, column / 4).word[column % 4]));
    }
}

TEST_CASE("uniform_at: mean 1/2, variance 1/12, and neighbours uncorrelated") {
    const sy::noise_key key{.seed = 2026};
    constexpr sy::index_t tokens = 1000;
    constexpr sy::index_t columns = 100;
    constexpr double n = double{tokens} * columns;
    double sum = 0;
    double squares = 0;
    double products = 0;
    for (sy::index_t t = 0; t < tokens; ++t) {
        for (sy::index_t c = 0; c < columns; ++c) {
            const double here = double{sy::uniform_at(key, t, c)} - 0.5;
            sum += here;
            squares += here * here;
            products += here * (double{sy::uniform_at(key, t, c + 1)} - 0.5);
        }
    }
    // Five standard deviations of each estimate; the draws are fixed, so this either always passes or never does.
    CHECK(std::abs(sum / n) < 5 * std::sqrt(1.0 / 12 / n));
    CHECK(std::abs(squares / n - 1.0 / 12) < 5 * std::sqrt(1.0 / 180 / n));
    CHECK(std::abs(products / n) < 5 * (1.0 / 12) / std::sqrt(n));
}
