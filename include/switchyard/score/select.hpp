// Which experts a row picks: the k largest scores, best first, equal scores by the lower expert index.
//
// Decisions use raw scores, so every backend takes the same decisions from the same scores. A score of -infinity
// forbids its expert; when fewer than k experts are allowed, the forbidden ones follow in index order.
//
// `select_top_k` takes one row. `select_tile` takes W rows, one per lane, and leaves rare rows to it. Both work on any
// rows of keys: raw scores, or what a router makes of them.
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
index_t collect_at_least(const S* row, index_t columns, S threshold, std::int32_t* found, index_t room) {
    using P = pack<S, W>;
    const P level = P::all(threshold);
    index_t count = 0;
    // The bits of 64 columns, where positions are stored one by one: one loop ends for all of them.
    std::uint64_t bits = 0;
    const auto store = [&](index_t first) {
        for (index_t at = std::min(count, room); bits != 0 && at < room; bits &= bits - 1) {
            found[at++] = static_cast<std::int32_t>(first) + first_bit(bits);
        }
    };
    const auto visit = [&](index_t j, P scores) {
        const std::uint32_t here = at_least_bits(scores, level);
        if constexpr (P::stores_positions_at_once) {
            P::store_positions(found + std::min(count, room), here, static_cast<std::int32_t>(j));
            count += count_bits(here);
        } else {
            bits |= static_cast<std::uint64_t>(here) << j % 64;
            if ((j + W) % 64 == 0 || j + W >= columns) {
                const int set = count_bits(bits);
                store(j / 64 * 64);
                bits = 0;
                count += set;
            }
        }
    };
    index_t j = 0;
    for (; j + W <= columns; j += W) {
        visit(j, P::load(row + j));
    }
    if (j < columns) {
        visit(j, P::load_first(row + j, columns - j, std::numeric_limits<S>::quiet_NaN()));
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

/// The k best of W rows, one row per lane: the c-th best key of row r is key[c][r], and its column column[c][r].
template <class S, int W>
struct tile_choices {
    static constexpr int most = 16;  ///< the largest k
    alignas(64) S key[most][W];
    alignas(64) std::int32_t column[most][W];
};

namespace detail {

/// The K best keys of every lane so far, best first, and their columns, held as numbers: exact below 2^24.
template <class S, int W, int K>
struct lists_of_lanes {
    using P = pack<S, W>;
    P key[K];
    P column[K];

    lists_of_lanes() {
        for (int c = 0; c < K; ++c) {
            key[c] = P::all(lowest<S>());
            column[c] = P::all(S(0));
        }
    }

    /// Columns come in rising order, so that of equal keys the earlier stays ahead. NaN and -infinity never enter.
    void insert(P candidate, P index) {
        typename P::lane_mask enters[K];
        for (int c = 0; c < K; ++c) {
            enters[c] = above(candidate, key[c]);
        }
        for (int c = K - 1; c > 0; --c) {
            key[c] = max(min(key[c - 1], candidate), key[c]);  // in this order, NaN leaves key[c]
            column[c] = where(enters[c], where(enters[c - 1], column[c - 1], index), column[c]);
        }
        key[0] = max(candidate, key[0]);
        column[0] = where(enters[0], index, column[0]);
    }

    void store(index_t k, tile_choices<S, W>& best) const {
        for (int c = 0; c < K && c < k; ++c) {
            key[c].store(best.key[c]);
            for (int r = 0; r < W; ++r) {
                best.column[c][r] = static_cast<std::int32_t>(column[c].v[r]);
            }
        }
    }
};

/// The K largest of each lane's candidates, by insertion of keys alone.
template <class S, int W, int K>
struct levels_of_lanes {
    using P = pack<S, W>;
    P key[K];

    levels_of_lanes() {
        for (P& level : key) {
            level = P::all(lowest<S>());
        }
    }
    void insert(P candidate) {
        for (int c = K - 1; c > 0; --c) {
            key[c] = max(min(key[c - 1], candidate), key[c]);
        }
        key[0] = max(candidate, key[0]);
    }
};

/// Every column of W rows, through tiles of W x W numbers.
template <int K, int W, class S>
void select_by_columns(const S* const (&row)[W], index_t columns, index_t k, tile_choices<S, W>& best) {
    using P = pack<S, W>;
    lists_of_lanes<S, W, K> lanes;
    P index = P::all(S(0));
    P tile[W];
    index_t j = 0;
    for (; j + W <= columns; j += W) {
        for (int r = 0; r < W; ++r) {
            tile[r] = P::load(row[r] + j);
        }
        P::transpose(tile);
        for (int i = 0; i < W; ++i) {
            lanes.insert(tile[i], index);
            index = index + P::all(S(1));
        }
    }
    if (j < columns) {
        for (int r = 0; r < W; ++r) {
            tile[r] = P::load_first(row[r] + j, columns - j, lowest<S>());
        }
        P::transpose(tile);
        for (int i = 0; i < columns - j; ++i) {
            lanes.insert(tile[i], index);
            index = index + P::all(S(1));
        }
    }
    lanes.store(k, best);
}

/// Into how many packs of groups a row's columns are dealt, one by one, before the K-th largest of the groups' maxima
/// is a useful threshold: of fewer than 4 K / 3 groups it lets too much pass.
template <int W, int K>
inline constexpr int packs_of_groups = 4 * K <= 3 * W    ? 1
                                       : 4 * K <= 6 * W  ? 2
                                       : 4 * K <= 12 * W ? 4
                                                         : 8;

/// The k-th largest maximum of each row's groups: at least k of its keys reach that.
template <int K, int W, class S>
pack<S, W> thresholds_of(const S* const (&row)[W], index_t columns, index_t k, const pack<S, W> (&column_maxima)[W]) {
    using P = pack<S, W>;
    constexpr int packs = packs_of_groups<W, K>;
    P maxima[packs][W];
    for (int r = 0; r < W; ++r) {
        if constexpr (packs == 1) {
            maxima[0][r] = column_maxima[r];
        } else {
            P group[packs];
            for (int g = 0; g < packs; ++g) {
                group[g] = P::load(row[r] + g * W);
            }
            index_t j = packs * W;
            for (; j + packs * W <= columns; j += packs * W) {
                for (int g = 0; g < packs; ++g) {
                    group[g] = max(group[g], P::load(row[r] + j + g * W));
                }
            }
            for (int g = 0; j < columns; ++g, j += W) {
                group[g] = max(group[g], P::load_first(row[r] + j, columns - j < W ? columns - j : W, lowest<S>()));
            }
            for (int g = 0; g < packs; ++g) {
                maxima[g][r] = group[g];
            }
        }
    }
    levels_of_lanes<S, W, K> levels;
    for (auto& square : maxima) {
        P::transpose(square);
        for (const P& group : square) {
            levels.insert(group);
        }
    }
    P threshold = levels.key[K - 1];
    for (int c = 0; c + 1 < K; ++c) {
        threshold = c + 1 == k ? levels.key[c] : threshold;
    }
    return threshold;
}

/// Of each row only what reaches its threshold. Rows with more of that than there is room for are left as if nothing
/// were allowed.
template <int K, int W, class S>
void select_by_threshold(const S* const (&row)[W], index_t columns, index_t k, const pack<S, W> (&column_maxima)[W],
                         tile_choices<S, W>& best) {
    using P = pack<S, W>;
    constexpr index_t room = 64;
    alignas(64) S threshold[W];
    thresholds_of<K, W>(row, columns, k, column_maxima).store(threshold);
    alignas(64) std::int32_t found[W][room + W];
    alignas(64) S counts[W];
    index_t most = 0;
    for (int r = 0; r < W; ++r) {
        std::fill(found[r], found[r] + room, 0);  // beyond a row's own lies what longer ones have
        index_t count = collect_at_least<S, W>(row[r], columns, threshold[r], found[r], room);
        count = count <= room ? count : 0;
        counts[r] = static_cast<S>(count);
        most = std::max(most, count);
    }
    lists_of_lanes<S, W, K> lanes;
    const P count = P::load(counts);
    for (index_t i = 0; i < most; ++i) {
        alignas(64) S key[W];
        alignas(64) S index[W];
        for (int r = 0; r < W; ++r) {
            key[r] = row[r][found[r][i]];
            index[r] = static_cast<S>(found[r][i]);
        }
        const P candidate = where(above(count, P::all(static_cast<S>(i))), P::load(key), P::all(lowest<S>()));
        lanes.insert(candidate, P::load(index));
    }
    lanes.store(k, best);
}

/// Calls f.template operator()<K>() with the least K that is at least k and has code of its own.
template <class F>
void with_room_for(index_t k, const F& f) {
    if (k <= 2) {
        f.template operator()<2>();
    } else if (k <= 4) {
        f.template operator()<4>();
    } else if (k <= 6) {
        f.template operator()<6>();
    } else if (k <= 8) {
        f.template operator()<8>();
    } else if (k <= 10) {
        f.template operator()<10>();
    } else {
        f.template operator()<16>();
    }
}

}  // namespace detail

/// Whether `select_tile` takes such rows: it is the faster way to their k best.
template <int W>
constexpr bool tile_pays(index_t columns, index_t k) {
    return W > 1 && k <= 16 && columns <= 4096;
}

/// The k best of W rows of keys, one row per lane, where `tile_pays`. `column_maxima` is that of `select_top_k`, row by
/// row. Returns the rows, one bit each, that are left to `select_top_k`: those with fewer than k keys above -infinity,
/// and those with too many near the k-th.
template <int W, class S>
std::uint32_t select_tile(const S* const (&row)[W], index_t columns, index_t k, const pack<S, W> (&column_maxima)[W],
                          tile_choices<S, W>& best) {
    detail::with_room_for(k, [&]<int K>() {
        // Few experts, or few choices of some more: to insert every column takes no longer than to look for thresholds
        // (8/2 to 64/4 with AVX-512, to 64/6 and 128/4 with AVX2).
        constexpr index_t few = pack<S, W>::stores_positions_at_once ? 256 : 512;
        if (columns * k <= few || columns <= W * detail::packs_of_groups<W, K>) {
            detail::select_by_columns<K, W>(row, columns, k, best);
        } else {
            detail::select_by_threshold<K, W>(row, columns, k, column_maxima, best);
        }
    });
    return equal_bits(pack<S, W>::load(best.key[k - 1]), pack<S, W>::all(detail::lowest<S>()));
}

}  // namespace SWITCHYARD_TARGET
}  // namespace switchyard

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic pop
#endif
