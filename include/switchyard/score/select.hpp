// Which experts a row picks: the k largest scores, best first, equal scores by the lower expert index.
//
// Decisions are taken on raw scores, so every backend takes the same ones from the same scores. A score of -infinity
// forbids its expert; when fewer than k experts are allowed, the forbidden ones follow in index order.
#pragma once

#include <switchyard/core/bits.hpp>
#include <switchyard/core/config.hpp>
#include <switchyard/core/simd.hpp>

#include <algorithm>
#include <cstdint>
#include <limits>

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wsign-conversion"  // g++'s remark on arrays whose length is an int of the template
#endif

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

/// Indices of the scores >= threshold, in index order, to found[0 .. room + W); returns how many there are, which may
/// be more than `room`: the first `room` are kept.
template <class S, int W>
index_t collect_at_least(const S* row, index_t experts, S threshold, std::int32_t* found, index_t room) {
    using P = pack<S, W>;
    const P level = P::all(threshold);
    index_t count = 0;
    const auto visit = [&](index_t j, P scores) {
        const std::uint32_t bits = at_least_bits(scores, level);
        P::store_positions(found + std::min(count, room), bits, static_cast<std::int32_t>(j));
        count += count_bits(bits);
    };
    index_t j = 0;
    for (; j + W <= experts; j += W) {
        visit(j, P::load(row + j));
    }
    if (j < experts) {
        visit(j, P::load_first(row + j, experts - j, std::numeric_limits<S>::quiet_NaN()));
    }
    return count;
}

/// Orders `count` candidates, which stand in index order, by counting for each how many come before it, and writes the
/// first k. count <= 4 W.
template <class S, int W>
void rank_candidates(const S* row, const std::int32_t* found, index_t count, index_t k, S* scores,
                     std::int32_t* choices) {
    using P = pack<S, W>;
    constexpr index_t room = 4 * W;
    alignas(64) S value[room];
    alignas(64) S ranked_score[room];
    alignas(64) std::int32_t ranked[room];
    const index_t used = (count + W - 1) / W * W;
    for (index_t i = 0; i < room; i += W) {
        P::all(lowest<S>()).store(value + i);
    }
    for (index_t i = 0; i < count; ++i) {
        value[i] = usable(row[found[i]]);
    }
    if (used == W) {
        alignas(64) std::int32_t rank[W];
        P::store_ranks(P::load(value), rank);
        for (index_t i = 0; i < count; ++i) {
            ranked_score[rank[i]] = value[i];
            ranked[rank[i]] = found[i];
        }
    }
    for (index_t i = 0; used > W && i < count; ++i) {
        // Those not below, minus those equal at or after i: ties keep index order.
        const P mine = P::all(value[i]);
        std::uint64_t not_below = 0;
        std::uint64_t equal = 0;
        for (index_t j = 0; j < used; j += W) {
            const P others = P::load(value + j);
            not_below |= static_cast<std::uint64_t>(at_least_bits(others, mine)) << j;
            equal |= static_cast<std::uint64_t>(equal_bits(others, mine)) << j;
        }
        const int rank = count_bits(not_below) - count_bits(equal >> i);
        ranked_score[rank] = value[i];
        ranked[rank] = found[i];
    }
    for (index_t c = 0; c < k; ++c) {
        scores[c] = ranked_score[c];
        choices[c] = ranked[c];
    }
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
        // Candidates are ranked against each other within four packs; more of them means ties or a large k.
        constexpr index_t room = 4 * W;
        alignas(64) std::int32_t found[room + W];
        index_t count = room + 1;
        if (k <= W && experts > W) {
            // At least k scores reach the k-th largest of the W column maxima.
            const S threshold = pack<S, W>::kth_largest(column_maxima, static_cast<int>(k));
            count = detail::collect_at_least<S, W>(row, experts, threshold, found, room);
        }
        if (experts <= room && (count > room || count < k)) {
            for (count = 0; count < experts; ++count) {
                found[count] = static_cast<std::int32_t>(count);
            }
        }
        if (count > room || count < k) {
            detail::select_by_sorting(row, experts, k, scores, choices, scratch);
        } else {
            detail::rank_candidates<S, W>(row, found, count, k, scores, choices);
        }
    }
}

}  // namespace SWITCHYARD_TARGET
}  // namespace switchyard

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic pop
#endif
