// Groups of experts: a token chooses among the experts of its best groups alone.
//
//   experts e of group g: g E / G .. (g + 1) E / G     G groups of neighbours, G divides E
//   score of a group = the sum of its `summed` best keys, in falling order; 1: its highest key (DeepSeek-V2), 2:
//   DeepSeek-V3's. Experts that are forbidden are not counted; a group of them alone comes last.
//   the `kept` best groups, equal ones by the lower group; the keys of the others become -infinity, or 0
//
// Devices hold groups of experts, so that a token is sent to few of them. DeepSeek-AI 2024, "DeepSeek-V3 Technical
// Report", arXiv 2412.19437. With keys of 0 instead of -infinity (`group_mask::zero`, as DeepSeek-V2's and other code
// has it) an expert whose own biased key is negative loses to experts outside its token's groups.
#pragma once

#include <switchyard/core/config.hpp>
#include <switchyard/core/error.hpp>
#include <switchyard/core/simd.hpp>
#include <switchyard/score/select.hpp>

#include <algorithm>
#include <cstdint>

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wsign-conversion"  // g++'s remark on arrays whose length is an int of the template
#endif

namespace switchyard {

/// What the keys of experts outside the kept groups become.
enum class group_mask {
    forbidden,  ///< -infinity
    zero,       ///< 0
};

struct expert_groups {
    static constexpr index_t most = 64;        ///< groups
    static constexpr index_t most_summed = 8;  ///< keys

    index_t count = 1;   ///< 1..64, divides E
    index_t kept = 1;    ///< 1..count
    index_t summed = 2;  ///< 1..8; a smaller group's keys are all summed
    group_mask masked = group_mask::forbidden;

    SWITCHYARD_HD constexpr bool choose() const { return kept < count; }
};

inline namespace SWITCHYARD_TARGET {

/// Fails with a sentence where groups and experts do not fit together.
inline void require_groups(const expert_groups& groups, index_t experts, index_t k) {
    require(groups.count >= 1 && groups.count <= expert_groups::most && experts % groups.count == 0,
            "groups.count = ", groups.count, " must lie in 1..", expert_groups::most, " and divide E = ", experts);
    require(groups.kept >= 1 && groups.kept <= groups.count, "groups.kept = ", groups.kept,
            " must lie in 1..groups.count = ", groups.count);
    require(groups.summed >= 1 && groups.summed <= expert_groups::most_summed, "groups.summed = ", groups.summed,
            " must lie in 1..", expert_groups::most_summed);
    require(k <= groups.kept * (experts / groups.count), "k = ", k, " is more than the ",
            groups.kept * (experts / groups.count), " experts of the groups that a token keeps");
}

/// What a group outside the kept ones leaves of a key.
template <class S>
SWITCHYARD_HD S masked_key(const expert_groups& groups, S key) {
    return groups.masked == group_mask::zero && key > detail::lowest<S>() ? S(0) : detail::lowest<S>();
}

/// A group's score, from its K best keys, best first, of which the first `summed` count.
template <int K, class N>
SWITCHYARD_HD N group_score(const N (&best)[K], index_t summed) {
    using S = typename N::scalar;
    const N lowest_key = N::all(detail::lowest<S>());
    N sum = best[0];
    for (int i = 1; i < K; ++i) {
        if (i < summed) {
            sum = where(above(best[i], lowest_key), sum + best[i], sum);
        }
    }
    return sum;
}

namespace detail {

/// Group scores of W rows of keys, a row in a lane.
template <int K, int W, class S>
SWITCHYARD_HD void score_groups(const expert_groups& groups, const S* const (&row)[W], index_t size,
                                pack<S, W>* scores) {
    using P = pack<S, W>;
    for (index_t g = 0; g < groups.count; ++g) {
        levels_of_lanes<S, W, K> best;
        P tile[W];
        for (index_t j = 0; j < size; j += W) {
            const index_t columns = size - j < W ? size - j : W;
            for (int r = 0; r < W; ++r) {
                const S* const from = row[r] + g * size + j;
                tile[r] = columns == W ? P::load(from) : P::load_first(from, columns, lowest<S>());
            }
            P::transpose(tile);
            for (int i = 0; i < W && i < columns; ++i) {
                best.insert(tile[i]);
            }
        }
        scores[g] = group_score(best.key, groups.summed);
    }
}

}  // namespace detail

/// Masks the keys [E] of W rows outside each row's kept groups.
template <int W, class S>
SWITCHYARD_HD void keep_groups(const expert_groups& groups, index_t experts, S* const (&row)[W]) {
    using P = pack<S, W>;
    const index_t size = experts / groups.count;
    const S* keys[W];
    for (int r = 0; r < W; ++r) {
        keys[r] = row[r];
    }
    P scores[expert_groups::most];
    if (groups.summed == 1) {
        detail::score_groups<1, W>(groups, keys, size, scores);
    } else if (groups.summed == 2) {
        detail::score_groups<2, W>(groups, keys, size, scores);
    } else {
        detail::score_groups<expert_groups::most_summed, W>(groups, keys, size, scores);
    }
    const P one = P::all(S(1));
    for (index_t g = 0; g < groups.count; ++g) {
        // How many groups come before this one: those above, and equal ones before it.
        P rank = P::all(S(0));
        for (index_t other = 0; other < groups.count; ++other) {
            if (other < g) {
                rank = where(above(scores[g], scores[other]), rank, rank + one);
            } else if (other > g) {
                rank = where(above(scores[other], scores[g]), rank + one, rank);
            }
        }
        const std::uint32_t masked = at_least_bits(rank, P::all(static_cast<S>(groups.kept)));
        for (int r = 0; r < W; ++r) {
            if ((masked >> r & 1u) == 0) {
                continue;
            }
            S* const key = row[r] + g * size;
            if (groups.masked == group_mask::forbidden) {
                for (index_t j = 0; j < size; ++j) {
                    key[j] = detail::lowest<S>();
                }
            } else {
                for (index_t j = 0; j < size; ++j) {
                    key[j] = masked_key(groups, key[j]);
                }
            }
        }
    }
}

}  // namespace SWITCHYARD_TARGET
}  // namespace switchyard

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic pop
#endif
