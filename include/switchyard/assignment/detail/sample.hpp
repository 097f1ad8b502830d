// Some of the tokens, from which solvers learn prices for all.
#pragma once

#include <switchyard/core/config.hpp>
#include <switchyard/core/philox.hpp>

#include <cstdint>

namespace switchyard {
inline namespace SWITCHYARD_TARGET {
namespace detail {

/// Every stride-th token, from a place within its stride that no period in the data can follow. Returns how many.
inline index_t sample_rows(const std::int32_t* rows, index_t tokens, index_t stride, std::int32_t* sample) {
    const index_t size = tokens / stride;
    for (index_t i = 0; i < size; ++i) {
        const auto offset = noise_words(noise_key{}, i, stride).word[0] % static_cast<std::uint64_t>(stride);
        sample[i] = rows[i * stride + static_cast<index_t>(offset)];
    }
    return size;
}

}  // namespace detail
}  // namespace SWITCHYARD_TARGET
}  // namespace switchyard
