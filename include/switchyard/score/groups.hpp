// Groups of experts: a token chooses only among the experts of its best groups.
//
//   experts e of group g: g E / G .. (g + 1) E / G     G groups of neighbours, G divides E
//   score of a group = the sum of its `summed` best keys, in falling order; 1: its highest key (DeepSeek-V2), 2:
//   DeepSeek-V3's. Forbidden experts do not count; a group with only forbidden experts comes last.
//   the `kept` best groups, equal ones by the lower group; the keys of the others become -infinity, or 0
//
// Each device holds a group of experts, so a token is sent to few devices. DeepSeek-AI 2024, "DeepSeek-V3 Technical
// Report", arXiv 2412.19437. With keys of 0 instead of -infinity (`group_mask::zero`, as DeepSeek-V2's and other code
// has it) an expert whose own biased key is negative loses to experts outside its token's groups.
//
// With `one_each` a token takes the best expert of every group instead, in the order of the groups (Pangu's mixture of
// grouped experts: Tang et al. 2025, "Pangu Pro MoE", arXiv 2505.21411): loads of groups, and so of devices, are even.
#pragma once

#include <switchyard/core/bits.hpp>
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
    bool one_each = false;  ///< the best of every group, k = count; what is above but `count` is not read

    SWITCHYARD_HD SWITCHYARD_ALWAYS_INLINE constexpr bool choose() const { return kept < count; }
};

inline namespace SWITCHYARD_TARGET {

/// Fails, with a message, where groups and experts do not match.
inline void require_groups(const expert_groups& groups, index_t experts, index_t k) {
    require(groups.count >= 1 && groups.count <= expert_groups::most && experts % groups.count == 0,
            "groups.count = ", groups.count, " must lie in 1..", expert_groups::most, " and divide E = ", experts);
    if (groups.one_each) {
        require(k == groups.count, "k = ", k, " must be groups.count = ", groups.count,
                ", since a token takes one expert of each group");
        return;
    }
    require(groups.kept >= 1 && groups.kept <= groups.count, "groups.kept = ", groups.kept,
            " must lie in 1..groups.count = ", groups.count);
    require(groups.summed >= 1 && groups.summed <= expert_groups::most_summed, "groups.summed = ", groups.summed,
            " must lie in 1..", expert_groups::most_summed);
    // With keys of 0, experts outside are choices, too.
    require(groups.masked == group_mask::zero || k <= groups.kept * (experts / groups.count), "k = ", k,
            " is more than the ", groups.kept * (experts / groups.count), " experts of the groups that a token keeps");
}

namespace detail {

/// The K best of some keys, lane by lane, best first.
template <class P, int K>
struct best_keys {
    P key[K];

    SWITCHYARD_HD static best_keys none() {
        best_keys made;
        for (P& level : made.key) {
            level = P::all(lowest<typename P::scalar>());
        }
        return made;
    }
    /// NaN never enters.
    SWITCHYARD_HD void insert(P candidate) {
        for (int c = K - 1; c > 0; --c) {
            key[c] = max(min(key[c - 1], candidate), key[c]);
        }
        key[0] = max(candidate, key[0]);
    }
    template <class F>
    SWITCHYARD_HD static best_keys of(const F& f, const best_keys& a, const best_keys& b) {
        best_keys made;
        for (int c = 0; c < K; ++c) {
            made.key[c] = f(a.key[c], b.key[c]);
        }
        return made;
    }
    SWITCHYARD_HD friend best_keys both(best_keys a, const best_keys& b) {
        if constexpr (K == 2) {
            return {max(a.key[0], b.key[0]), max(min(a.key[0], b.key[0]), max(a.key[1], b.key[1]))};
        } else {
            for (const P& level : b.key) {
                a.insert(level);
            }
            return a;
        }
    }
    /// The sum of the first `count`, in falling order; what is forbidden is not counted.
    SWITCHYARD_HD P sum(index_t count) const {
        const P forbidden = P::all(lowest<typename P::scalar>());
        P total_key = key[0];
        for (int c = 1; c < K; ++c) {
            if (c < count) {
                total_key = where(above(key[c], forbidden), total_key + key[c], total_key);
            }
        }
        return total_key;
    }
};

/// Group scores of W rows of keys, a row in a lane.
template <int K, int W, class S>
SWITCHYARD_HD void score_groups(const expert_groups& groups, S* const (&row)[W], index_t size, S* scores) {
    using P = pack<S, W>;
    using best = best_keys<P, K>;
    for (index_t g = 0; g < groups.count; ++g) {
        best of_row[W];
        for (int r = 0; r < W; ++r) {
            const S* const from = row[r] + g * size;
            of_row[r] = best::none();
            index_t j = 0;
            for (; j + W <= size; j += W) {
                of_row[r].insert(P::load(from + j));
            }
            if (j < size) {
                of_row[r].insert(P::load_first(from + j, size - j, lowest<S>()));
            }
        }
        P::reduce_rows(of_row, [](const best& a, const best& b) { return both(a, b); });
        of_row[0].sum(groups.summed).store(scores + g * W);
    }
}

/// The keys of a group that a row does not keep.
template <int W, class S>
SWITCHYARD_HD void mask_keys(const expert_groups& groups, S* key, index_t size) {
    using P = pack<S, W>;
    const P forbidden = P::all(lowest<S>());
    for (index_t j = 0; j < size; j += W) {
        const index_t count = size - j < W ? size - j : W;
        P left = forbidden;
        if (groups.masked == group_mask::zero) {
            left = where(above(P::load_first(key + j, count, lowest<S>()), forbidden), P::all(S(0)), forbidden);
        }
        if (count == W) {
            left.store(key + j);
        } else {
            left.store_first(key + j, count);
        }
    }
}

/// The groups that each of W rows keeps, as bits. `scores` has room for W numbers per group.
template <int W, class S>
SWITCHYARD_HD void find_groups(const expert_groups& groups, index_t size, S* const (&row)[W], S* scores,
                               std::uint64_t (&kept)[W]) {
    using P = pack<S, W>;
    if (groups.summed == 1) {
        score_groups<1, W>(groups, row, size, scores);
    } else if (groups.summed == 2) {
        score_groups<2, W>(groups, row, size, scores);
    } else {
        score_groups<expert_groups::most_summed, W>(groups, row, size, scores);
    }
    const P one = P::all(S(1));
    const P last = P::all(static_cast<S>(groups.kept - 1));
    for (std::uint64_t& bits : kept) {
        bits = 0;
    }
    for (index_t g = 0; g < groups.count; ++g) {
        // How many groups come before this one: those above, and equal ones before it.
        P rank = P::all(S(0));
        const P own = P::load(scores + g * W);
        for (index_t other = 0; other < g; ++other) {
            rank = where(above(own, P::load(scores + other * W)), rank, rank + one);
        }
        for (index_t other = g + 1; other < groups.count; ++other) {
            rank = where(above(P::load(scores + other * W), own), rank + one, rank);
        }
        const std::uint32_t keeping = at_least_bits(last, rank);
        for (int r = 0; r < W; ++r) {
            kept[r] |= static_cast<std::uint64_t>(keeping >> r & 1u) << g;
        }
    }
}

}  // namespace detail

/// Masks the keys [E] of W rows outside each row's kept groups. `scores` has room for W numbers per group.
template <int W, class S>
SWITCHYARD_HD void keep_groups(const expert_groups& groups, index_t experts, S* const (&row)[W], S* scores) {
    const index_t size = experts / groups.count;
    std::uint64_t kept[W];
    detail::find_groups<W>(groups, size, row, scores, kept);
    for (int r = 0; r < W; ++r) {
        for (index_t g = 0; g < groups.count; ++g) {
            if ((kept[r] >> g & 1u) == 0) {
                detail::mask_keys<W>(groups, row[r] + g * size, size);
            }
        }
    }
}

/// Moves the keys of each row's kept groups together, in order: what is left is kept * E / count columns, and -infinity
/// up to the next multiple of W. A column then was shift[r][column / size] further right. `scores` has room for W
/// numbers per group.
template <int W, class S>
void gather_groups(const expert_groups& groups, index_t experts, S* const (&row)[W], S* scores,
                   std::int32_t (&shift)[W][expert_groups::most]) {
    using P = pack<S, W>;
    const index_t size = experts / groups.count;
    std::uint64_t kept[W];
    detail::find_groups<W>(groups, size, row, scores, kept);
    for (int r = 0; r < W; ++r) {
        S* to = row[r];
        for (index_t i = 0; i < groups.kept; ++i, kept[r] &= kept[r] - 1, to += size) {
            const S* const from = row[r] + first_bit(kept[r]) * size;
            shift[r][i] = static_cast<std::int32_t>(from - to);
            for (index_t j = 0; j < size; j += W) {
                const index_t count = size - j < W ? size - j : W;
                P::load_first(from + j, count, detail::lowest<S>()).store_first(to + j, count);
            }
        }
        const index_t left = groups.kept * size;
        P::all(detail::lowest<S>()).store_first(to, (left + W - 1) / W * W - left);
    }
}

}  // namespace SWITCHYARD_TARGET
}  // namespace switchyard

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic pop
#endif
