// Which experts a row picks: the k largest scores, best first, equal scores by the lower expert index.
//
// Decisions are taken on raw scores, so every backend takes the same ones from the same scores. A score of -infinity
// forbids its expert; when fewer than k experts are allowed, the forbidden ones follow in index order.
#pragma once

#include <switchyard/core/config.hpp>
#include <switchyard/core/simd.hpp>

#include <algorithm>
#include <bit>
#include <cstdint>
#include <limits>

namespace switchyard {
inline namespace SWITCHYARD_TARGET {

/// Numbers of scratch `select_top_k` needs for a row.
template <class S>
constexpr index_t selection_scratch(index_t experts) {
    return 2 * (experts + 64);
}

namespace detail {

template <class S>
SWITCHYARD_HD S lowest() {
    return -std::numeric_limits<S>::infinity();
}

/// NaN counts as forbidden; only rows that were not checked hold any.
template <class S>
SWITCHYARD_HD S usable(S score) {
    return score == score ? score : lowest<S>();
}

/// Insertion into a sorted list of k: no scratch, works on a device, O(E k) at worst.
template <class S>
SWITCHYARD_HD void select_by_insertion(const S* row, index_t experts, index_t k, S* scores, std::int32_t* choices) {
    index_t held = 0;
    for (index_t e = 0; e < experts; ++e) {
        const S score = usable(row[e]);
        if (held == k && !(score > scores[k - 1])) {
            continue;
        }
        index_t at = held < k ? held : k - 1;
        for (; at > 0 && scores[at - 1] < score; --at) {
            scores[at] = scores[at - 1];
            choices[at] = choices[at - 1];
        }
        scores[at] = score;
        choices[at] = static_cast<std::int32_t>(e);
        held = held < k ? held + 1 : k;
    }
}

/// Sorts indices: O(E log k), for a large k or a row full of ties.
template <class S>
void select_by_sorting(const S* row, index_t experts, index_t k, S* scores, std::int32_t* choices, S* scratch) {
    static_assert(sizeof(S) >= sizeof(std::int32_t));
    auto* const order = reinterpret_cast<std::int32_t*>(scratch);
    for (index_t e = 0; e < experts; ++e) {
        order[e] = static_cast<std::int32_t>(e);
    }
    std::partial_sort(order, order + k, order + experts, [row](std::int32_t a, std::int32_t b) {
        const S x = usable(row[a]);
        const S y = usable(row[b]);
        return x > y || (x == y && a < b);
    });
    for (index_t c = 0; c < k; ++c) {
        choices[c] = order[c];
        scores[c] = usable(row[order[c]]);
    }
}

/// The k-th largest of the W column maxima of a row: at least k scores reach it.
template <class S, int W>
S reached_by_k(pack<S, W> column_maxima, index_t k) {
    alignas(64) S lanes[W];
    column_maxima.store(lanes);
    S threshold = lowest<S>();
    for (int i = 0; i < W; ++i) {
        const int at_least = std::popcount(at_least_bits(column_maxima, pack<S, W>::all(lanes[i])));
        const S candidate = at_least >= k ? lanes[i] : lowest<S>();
        threshold = candidate > threshold ? candidate : threshold;
    }
    return threshold;
}

/// Indices of the scores >= threshold, in index order; returns how many. At most `room` are written.
template <class S, int W>
index_t collect_at_least(const S* row, index_t experts, S threshold, std::int32_t* found, index_t room) {
    constexpr index_t group = 64;  // scores tested before the bits are looked at
    using P = pack<S, W>;
    const P level = P::all(threshold);
    index_t count = 0;
    for (index_t start = 0; start < experts; start += group) {
        std::uint64_t bits = 0;
        const index_t end = start + group < experts ? group : experts - start;
        index_t j = 0;
        for (; j + W <= end; j += W) {
            bits |= static_cast<std::uint64_t>(at_least_bits(P::load(row + start + j), level)) << j;
        }
        if (j < end) {
            const P rest = P::load_first(row + start + j, end - j, std::numeric_limits<S>::quiet_NaN());
            bits |= static_cast<std::uint64_t>(at_least_bits(rest, level)) << j;
        }
        for (; bits != 0; bits &= bits - 1) {
            if (count == room) {
                return count + 1;
            }
            found[count++] = static_cast<std::int32_t>(start + std::countr_zero(bits));
        }
    }
    return count;
}

}  // namespace detail

/// Writes the k best scores of a row and their experts, best first. `column_maxima` holds, lane by lane, the maxima of
/// the columns j, j + W, ...; it gives the threshold that most scores are refused by. O(E + k) on typical rows.
template <int W, class S>
SWITCHYARD_HD void select_top_k(const S* row, index_t experts, index_t k, pack<S, W> column_maxima, S* scores,
                                std::int32_t* choices, [[maybe_unused]] S* scratch) {
    if constexpr (W == 1) {
        detail::select_by_insertion(row, experts, k, scores, choices);
    } else {
        using P = pack<S, W>;
        // Candidates are ranked against each other within this many lanes; more of them means ties or a large k.
        constexpr index_t room = 2 * W;
        alignas(64) std::int32_t found[room];
        index_t count = room + 1;
        if (experts <= room) {
            for (count = 0; count < experts; ++count) {
                found[count] = static_cast<std::int32_t>(count);
            }
        } else if (k <= W) {
            const S threshold = detail::reached_by_k<S, W>(column_maxima, k);
            count = detail::collect_at_least<S, W>(row, experts, threshold, found, room);
        }
        if (count > room || count < k) {
            detail::select_by_sorting(row, experts, k, scores, choices, scratch);
            return;
        }
        alignas(64) S value[room];
        for (index_t i = 0; i < room; ++i) {
            value[i] = i < count ? detail::usable(row[found[i]]) : detail::lowest<S>();
        }
        const P first = P::load(value);
        const P second = P::load(value + W);
        for (index_t i = 0; i < count; ++i) {
            // Rank: those not below, minus those equal at or after i. Found in index order, so ties keep that order.
            const P mine = P::all(value[i]);
            const std::uint64_t not_below =
                at_least_bits(first, mine) | static_cast<std::uint64_t>(at_least_bits(second, mine)) << W;
            const std::uint64_t equal = equal_bits(first, mine) | static_cast<std::uint64_t>(equal_bits(second, mine))
                                                                      << W;
            const int rank = std::popcount(not_below) - std::popcount(equal >> i);
            if (rank < k) {
                scores[rank] = value[i];
                choices[rank] = found[i];
            }
        }
    }
}

}  // namespace SWITCHYARD_TARGET
}  // namespace switchyard
