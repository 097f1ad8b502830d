// Quantile balancing on a device: the verb of router/quantile_bias.hpp, with the same numbers.
//
// A number's bits, put in order, are found from the highest one down: a bit is set where enough numbers are at least as
// large. So each of the 32 bits of a float (64 of a double) takes a pass over the scores, whose counts are integers and
// have no order. A bit takes 2 launches for up to 64 tokens, and one more for each factor of 64 beyond. Scratch of
// about 3 T + T E / 64 numbers; nothing waits. Where a score is not finite, all quantiles are NaN, which
// `update_bias_by_quantiles` leaves alone there.
#pragma once

#include <switchyard/backend/device.hpp>
#include <switchyard/core/config.hpp>
#include <switchyard/core/matrix_view.hpp>
#include <switchyard/core/simd.hpp>
#include <switchyard/core/sizes.hpp>
#include <switchyard/core/stored.hpp>
#include <switchyard/core/workspace.hpp>
#include <switchyard/router/quantile_bias.hpp>

#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

namespace switchyard {
inline namespace SWITCHYARD_TARGET {

namespace detail {

/// Bits that rise with the number. NaN is outside of the numbers, above or below.
template <class S>
struct ordered_bits {
    using bits = std::make_unsigned_t<typename float_bits<S>::type>;
    static constexpr int count = 8 * sizeof(S);
    static constexpr bits sign = bits(1) << (count - 1);

    SWITCHYARD_HD static bits of(S x) {
        bits word;
        std::memcpy(&word, &x, sizeof word);
        return (word & sign) != 0 ? ~word : word | sign;
    }
    SWITCHYARD_HD static S number(bits ordered) {
        const bits word = (ordered & sign) != 0 ? ordered & ~sign : ~ordered;
        S x;
        std::memcpy(&x, &word, sizeof x);
        return x;
    }
};

/// alpha[t], and whether the token has a score that is not finite.
template <class S, class Storage, class Space>
struct find_threshold {
    matrix_view<const Storage, Space> scores;
    index_t k;
    const float* bias;
    S* alpha;
    std::int64_t* bad;

    SWITCHYARD_HD void operator()(index_t t) const {
        using order = ordered_bits<S>;
        typename order::bits found = 0;
        std::int64_t is_bad = 0;
        for (index_t e = 0; e < scores.columns; ++e) {
            const S score = load_as<S>(scores(t, e));
            const S size = score < S(0) ? -score : score;
            is_bad |= size <= std::numeric_limits<S>::max() ? 0 : 1;
        }
        for (int bit = order::count - 1; bit >= 0; --bit) {
            const auto candidate = found | (typename order::bits(1) << bit);
            index_t above = 0;
            for (index_t e = 0; e < scores.columns; ++e) {
                above += order::of(load_as<S>(scores(t, e)) + static_cast<S>(bias[e])) >= candidate ? 1 : 0;
            }
            found = above > k ? candidate : found;
        }
        alpha[t] = order::number(found);
        bad[t] = is_bad;
    }
};

/// counts[b, e]: the tokens of 64 whose s - alpha is at least found[e] with one more bit.
template <class S, class Storage, class Space>
struct count_above {
    matrix_view<const Storage, Space> scores;
    const S* alpha;
    const typename ordered_bits<S>::bits* found;
    int bit;
    std::int64_t* counts;

    SWITCHYARD_HD void operator()(index_t i) const {
        const index_t e = i % scores.columns;
        const index_t first = i / scores.columns * fold_rows;
        const index_t last = first + fold_rows < scores.rows ? first + fold_rows : scores.rows;
        const auto candidate = found[e] | (typename ordered_bits<S>::bits(1) << bit);
        std::int64_t above = 0;
        for (index_t t = first; t < last; ++t) {
            above += ordered_bits<S>::of(load_as<S>(scores(t, e)) - alpha[t]) >= candidate ? 1 : 0;
        }
        counts[i] = above;
    }
};

template <class S>
struct set_bit {
    const std::int64_t* above;
    index_t rank;
    int bit;
    typename ordered_bits<S>::bits* found;

    SWITCHYARD_HD void operator()(index_t e) const {
        found[e] |= above[e] > rank ? typename ordered_bits<S>::bits(1) << bit : 0;
    }
};

template <class S>
struct clear_bits {
    typename ordered_bits<S>::bits* found;

    SWITCHYARD_HD void operator()(index_t e) const { found[e] = 0; }
};

template <class S>
struct write_quantile {
    const typename ordered_bits<S>::bits* found;
    const std::int64_t* bad;
    float* q;

    SWITCHYARD_HD void operator()(index_t e) const {
        q[e] = *bad != 0 ? std::numeric_limits<float>::quiet_NaN() : quantile_of(ordered_bits<S>::number(found[e]));
    }
};

}  // namespace detail

/// The overload for devices.
template <device_policy Policy, class Storage>
void find_quantiles(const Policy& policy, const matrix_view<const Storage, policy_space<Policy>>& scores, index_t k,
                    const float* bias, float* q, device_workspace<Policy>& scratch) {
    using S = compute_t<Storage>;
    using space = policy_space<Policy>;
    using bits = typename detail::ordered_bits<S>::bits;
    const index_t experts = scores.columns;
    const index_t rank = scores.rows * k / experts;
    S* const alpha = scratch.template take<S>(scores.rows);
    std::int64_t* const bad = scratch.template take<std::int64_t>(scores.rows);
    bits* const found = scratch.template take<bits>(experts);
    for_each_index(policy, scores.rows, detail::find_threshold<S, Storage, space>{scores, k, bias, alpha, bad});
    const std::int64_t* const any_bad = detail::fold(policy, bad, scores.rows, 1, detail::plus{}, scratch);
    for_each_index(policy, experts, detail::clear_bits<S>{found});
    const index_t blocks = detail::folded(scores.rows);
    for (int bit = detail::ordered_bits<S>::count - 1; bit >= 0; --bit) {
        const auto scope = scratch.open();
        auto* const counts = scratch.template take<std::int64_t>(product_of_sizes("counts", blocks, experts));
        for_each_index(policy, blocks * experts,
                       detail::count_above<S, Storage, space>{scores, alpha, found, bit, counts});
        const std::int64_t* const above = detail::fold(policy, counts, blocks, experts, detail::plus{}, scratch);
        for_each_index(policy, experts, detail::set_bit<S>{above, rank, bit, found});
    }
    for_each_index(policy, experts, detail::write_quantile<S>{found, any_bad, q});
}

}  // namespace SWITCHYARD_TARGET
}  // namespace switchyard
