// Philox4x32-10: random numbers from a counter, so that any thread on any device computes the same one without state.
//
// Salmon, Moraes, Dror, Shaw, "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011. Key = seed. The counter holds the
// place the number is for: (token, column / 4, step, stream); the lane is column % 4. `stream` tells apart layers and
// purposes, so that no two of them share noise.
#pragma once

#include <switchyard/core/config.hpp>

#include <cmath>
#include <cstdint>

namespace switchyard {

/// Four 32-bit words: a counter, or the random words made from it.
struct philox_words {
    std::uint32_t word[4];
};

/// What a draw is for. Two draws share numbers only if all fields and the position are equal.
struct noise_key {
    std::uint64_t seed = 0;
    std::uint32_t stream = 0;   ///< layer and worker, chosen by the caller
    std::uint32_t step = 0;     ///< training step
    std::uint32_t purpose = 0;  ///< which of the library's own uses: see score/noise.hpp

    friend constexpr bool operator==(const noise_key&, const noise_key&) = default;
};

inline namespace SWITCHYARD_TARGET {

/// The ten rounds: `counter` under `key`. Matches the published known answers.
SWITCHYARD_HD constexpr philox_words philox4x32(philox_words counter, std::uint64_t key) {
    constexpr std::uint64_t multiplier0 = 0xD2511F53;
    constexpr std::uint64_t multiplier1 = 0xCD9E8D57;
    std::uint32_t key0 = static_cast<std::uint32_t>(key);
    std::uint32_t key1 = static_cast<std::uint32_t>(key >> 32);
    for (int round = 0; round < 10; ++round) {
        const std::uint64_t product0 = multiplier0 * counter.word[0];
        const std::uint64_t product1 = multiplier1 * counter.word[2];
        counter = {{static_cast<std::uint32_t>(product1 >> 32) ^ counter.word[1] ^ key0,
                    static_cast<std::uint32_t>(product1),
                    static_cast<std::uint32_t>(product0 >> 32) ^ counter.word[3] ^ key1,
                    static_cast<std::uint32_t>(product0)}};
        key0 += 0x9E3779B9;
        key1 += 0xBB67AE85;
    }
    return counter;
}

/// The four words for columns 4 * group ... 4 * group + 3 of a token.
SWITCHYARD_HD constexpr philox_words noise_words(const noise_key& key, index_t token, index_t group) {
    // Tokens above 2^32 and the purpose share the stream word's upper part and the group word's upper part, which
    // widths (columns / 4 < 2^24) and streams (< 2^24 layers and workers) leave free.
    const auto token_bits = static_cast<std::uint64_t>(token);
    return philox4x32({{static_cast<std::uint32_t>(token_bits), static_cast<std::uint32_t>(group) ^ (key.purpose << 24),
                        key.step, key.stream ^ static_cast<std::uint32_t>((token_bits >> 32) << 24)}},
                      key.seed);
}

/// One of the words. On a device by comparisons: an index would put all four into memory.
SWITCHYARD_HD constexpr std::uint32_t word_at(const philox_words& words, index_t lane) {
#if defined(__CUDA_ARCH__)
    return lane < 2 ? (lane == 0 ? words.word[0] : words.word[1]) : (lane == 2 ? words.word[2] : words.word[3]);
#else
    return words.word[lane];
#endif
}

/// Uniform in (0, 1), 24 bits: never 0 and never 1.
SWITCHYARD_HD constexpr float uniform(std::uint32_t word) {
    // The upper half has no room for the half and rounds to even, which the last number would do up to 1.
    const float u = (static_cast<float>(word >> 8) + 0.5f) * 0x1p-24f;
    return u < 1.0f ? u : 1.0f - 0x1p-24f;
}

/// The uniform number of (token, column).
SWITCHYARD_HD constexpr float uniform_at(const noise_key& key, index_t token, index_t column) {
    return uniform(word_at(noise_words(key, token, column / 4), column % 4));
}

}  // namespace SWITCHYARD_TARGET
}  // namespace switchyard
