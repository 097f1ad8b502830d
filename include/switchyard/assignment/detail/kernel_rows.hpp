// Rows of scores, each read by a group of lanes, and what such a group finds: a row's two best experts.
//
// A group is a power of two of lanes, at most a warp: as many as there are accesses of 16 bytes in half a row, so that
// most lanes read twice, neighbours next to each other. Every score is read once. Rows that do not begin at multiples
// of 16 bytes, and columns with a stride, are read score by score.
//
// A program of a row has
//
//   row.begin(reference)      the row's first score, or 0 where that is forbidden: the same in all lanes
//   row.take(e, score)        one of the lane's scores, e rising
//
// and gathers afterwards, with shuffles, what its lanes found. All lanes of a warp go through all of it together,
// whether their group has a row or not.
#pragma once

#include <switchyard/assignment/detail/device_auction_market.hpp>
#include <switchyard/assignment/detail/score_rows.hpp>
#include <switchyard/backend/kernel.hpp>
#include <switchyard/backend/lane_group.hpp>
#include <switchyard/core/config.hpp>
#include <switchyard/core/matrix_view.hpp>
#include <switchyard/core/scalar_traits.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>

namespace switchyard {
inline namespace SWITCHYARD_TARGET {
namespace detail {

/// Experts whose prices fit a block's shared memory beside what else a kernel keeps there.
inline constexpr index_t most_priced_experts = 4096;

/// Whether rows can be read in accesses of 16 bytes.
template <class S, class Space>
bool has_aligned_rows(const matrix_view<const S, Space>& scores) {
    const auto address = reinterpret_cast<std::uintptr_t>(scores.data);
    return scores.rows_contiguous() && address % 16 == 0 &&
           (scores.rows <= 1 || scores.row_stride * static_cast<index_t>(sizeof(S)) % 16 == 0);
}

/// How a launch shares rows out among its groups of lanes.
struct row_groups {
    static constexpr int threads = 256;
    index_t rows = 0;
    int lanes = 1;             ///< of a row
    index_t rows_a_block = 1;  ///< a multiple of the groups in a block

    SWITCHYARD_HD index_t groups() const { return threads / lanes; }
    SWITCHYARD_HD index_t blocks() const { return (rows + rows_a_block - 1) / rows_a_block; }

    /// At least 64 rows per block, so that what a block reads of prices and writes of counts is little beside its rows;
    /// at most about 512 blocks. A function of the sizes alone: sums over blocks are the same everywhere.
    static row_groups of(index_t rows, index_t experts, int numbers_an_access) {
        row_groups made{.rows = rows};
        while (made.lanes < warp_lanes && 2 * made.lanes * numbers_an_access < experts) made.lanes *= 2;
        const index_t least = std::max<index_t>({64, made.groups(), (rows + 511) / 512});
        made.rows_a_block = (least + made.groups() - 1) / made.groups() * made.groups();
        return made;
    }
};

/// A thread's place in its group.
struct group_lane {
    int lanes;
    int lane;        ///< in the group
    int first;       ///< the group's first lane in the warp
    index_t group;   ///< in the block
    bool is_leader;  ///< of the group

    template <class Here>
    SWITCHYARD_DEVICE static group_lane of(Here& here, const row_groups& shares) {
        const int thread = here.thread();
        const int lane = thread & (shares.lanes - 1);
        return {shares.lanes, lane, thread % warp_lanes - lane, thread / shares.lanes, lane == 0};
    }

    /// Whether any lane of the group says so.
    template <class Here>
    SWITCHYARD_DEVICE bool any(Here& here, bool condition) const {
        const std::uint32_t all = lanes == warp_lanes ? ~std::uint32_t{0} : (std::uint32_t{1} << lanes) - 1;
        return (here.ballot(condition) >> first & all) != 0;
    }
};

/// Reads rows, V scores an access.
template <class S, class Space, int V>
struct row_reader {
    using compute = compute_t<S>;
    device_scores<S, Space> source;

    SWITCHYARD_DEVICE index_t experts() const { return source.scores.columns; }
    SWITCHYARD_DEVICE compute signed_score(S x) const {
        const compute score = load_scalar(x);
        return source.are_costs ? -score : score;
    }
    /// One score.
    template <class Here>
    SWITCHYARD_DEVICE compute score(Here& here, index_t t, index_t e) const {
        return signed_score(here.load(source.scores.row(t) + e * source.scores.column_stride));
    }

    /// Goes through row t if there `is_row`.
    template <class Here, class Row>
    SWITCHYARD_DEVICE void read(Here& here, const group_lane& mine, bool is_row, index_t t, Row& row) const {
        const S* const from = source.scores.row(is_row ? t : 0);
        for (index_t start = 0; start < experts(); start += mine.lanes * V) {
            const index_t e = start + mine.lane * V;
            number_vector<S, V> scores{};
            const index_t count = !is_row || e >= experts() ? 0 : experts() - e;
            if constexpr (V > 1) {
                if (count >= V) {
                    scores = here.template load_vector<V>(from + e);
                } else {
                    unrolled<V>([&](int j) {
                        if (j < count) scores.at[j] = here.load(from + e + j);
                    });
                }
            } else if (count > 0) {
                scores.at[0] = here.load(from + e * source.scores.column_stride);
            }
            if (start == 0) {
                const compute first = here.shuffle(signed_score(scores.at[0]), mine.first);
                row.begin(first > -std::numeric_limits<compute>::infinity() ? first : compute(0));
            }
            unrolled<V>([&](int j) {
                if (j < count) row.take(e + j, signed_score(scores.at[j]));
            });
        }
    }
};

/// Calls launch(reader) with a reader of 16 bytes an access where rows allow it, else of one score.
template <class S, class Space, class Launch>
void with_row_reader(const device_scores<S, Space>& source, Launch&& launch) {
    if (has_aligned_rows(source.scores)) {
        launch(row_reader<S, Space, widest_vector<S>>{source});
    } else {
        launch(row_reader<S, Space, 1>{source});
    }
}

/// Whether a pair with this score may be used, or is forbidden: no NaN, no +infinity, nothing beyond 1e290.
template <class C>
SWITCHYARD_HD bool is_usable_score(C score) {
    if constexpr (sizeof(C) == 4) {
        return score <= std::numeric_limits<C>::max();
    } else {
        return score <= largest_score && (score >= -largest_score || score == -std::numeric_limits<C>::infinity());
    }
}

/// The two best of the numbers seen, and whose they are: the lower expert of equal ones. -1: none above -infinity.
template <class C>
struct two_best {
    C first = -std::numeric_limits<C>::infinity();
    C second = -std::numeric_limits<C>::infinity();
    std::int32_t expert = -1;
    std::int32_t next = -1;

    SWITCHYARD_HD void see(index_t e, C margin) {
        const auto seen = static_cast<std::int32_t>(e);
        if (!(margin > -std::numeric_limits<C>::infinity())) return;
        if (is_better(margin, seen, first, expert)) {
            second = first;
            next = expert;
            first = margin;
            expert = seen;
        } else if (is_better(margin, seen, second, next)) {
            second = margin;
            next = seen;
        }
    }

    /// The two best of all lanes of a group, in each of them.
    template <class Here>
    SWITCHYARD_DEVICE void gather(Here& here, int lanes) {
        for (int distance = lanes / 2; distance > 0; distance /= 2) {
            two_best other;
            other.first = here.shuffle_xor(first, distance);
            other.second = here.shuffle_xor(second, distance);
            other.expert = here.shuffle_xor(expert, distance);
            other.next = here.shuffle_xor(next, distance);
            const bool theirs = is_better(other.first, other.expert, first, expert);
            // The loser against the winner's second.
            const C lost = theirs ? first : other.first;
            const std::int32_t lost_expert = theirs ? expert : other.expert;
            if (theirs) *this = other;
            if (is_better(lost, lost_expert, second, next)) {
                second = lost;
                next = lost_expert;
            }
        }
    }

  private:
    /// No expert, -1, is the highest number.
    SWITCHYARD_HD static bool is_better(C a, std::int32_t a_expert, C b, std::int32_t b_expert) {
        return a > b || (a == b && static_cast<std::uint32_t>(a_expert) < static_cast<std::uint32_t>(b_expert));
    }
};

}  // namespace detail
}  // namespace SWITCHYARD_TARGET
}  // namespace switchyard
