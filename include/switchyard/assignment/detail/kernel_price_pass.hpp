// The price pass on a device: every token's best expert at given prices, by how much it prefers it, and how many
// tokens each expert would get. One launch, which reads every score once.
//
//   d_e = (s_te - r_t) - p_e     in the scores' compute type; r_t: the token's first score (margins.hpp)
//   expert, next                 the best d's expert and the second best's, the lower one of equal ones
//   margin                       how much better, less all that rounding may have added: safe, as in margins.hpp
//
// Where no two prices have moved apart by more than h since, a token with a margin of h is still at its best expert.
// Tokens are counted by expert, and by the size of their margins: eight bins to a power of two, bin 0 for those that
// may be tied. Counts are integers, so the order of blocks does not show.
#pragma once

#include <switchyard/assignment/detail/kernel_rows.hpp>
#include <switchyard/backend/device.hpp>
#include <switchyard/backend/kernel.hpp>
#include <switchyard/core/config.hpp>
#include <switchyard/core/matrix_view.hpp>
#include <switchyard/core/scalar_traits.hpp>
#include <switchyard/core/workspace.hpp>

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <limits>

namespace switchyard {
inline namespace SWITCHYARD_TARGET {
namespace detail {

/// Bins of margins, by the leading bits of a float.
inline constexpr index_t margin_bins = 2048;
inline constexpr index_t last_finite_bin = 2039;

SWITCHYARD_HD inline index_t bin_of(float margin) {
    return margin > 0 ? static_cast<index_t>(std::bit_cast<std::uint32_t>(margin) >> 20) : 0;
}
/// What margins up to and including a bin stay below: infinity after the last finite one.
SWITCHYARD_HD inline double edge_of(index_t bin) {
    return static_cast<double>(std::bit_cast<float>(static_cast<std::uint32_t>(bin + 1) << 20));
}

/// Prices as a pass reads them.
template <class C>
struct pass_prices {
    C* price;         ///< [E], rounded to the compute type; infinity closes an expert
    C* largest_size;  ///< one number: of the finite ones
};

/// What a pass writes, on the device. Counts are added to.
template <class C>
struct pass_results {
    std::int32_t* expert;    ///< [rows]: the best, not_a_token for padding, open_token for rows that cannot be used
    std::int32_t* next;      ///< [rows]: the second best, -1 for none
    C* margin;               ///< [rows]: safe
    std::int32_t* load;      ///< [E]
    std::int32_t* bins;      ///< [margin_bins]
    double* value;           ///< [blocks]: sum of the best d
    std::int32_t* bad_rows;  ///< one number: the lowest row that cannot be used, if lower than what stands there
};

/// A price, rounded as margins.hpp rounds them.
template <class C>
SWITCHYARD_HD C round_price(double price) {
    constexpr double most = static_cast<double>(std::numeric_limits<C>::max() / 16);
    if (price == std::numeric_limits<double>::infinity()) return std::numeric_limits<C>::infinity();
    if (!(price == price)) return C(0);
    return static_cast<C>(price > most ? most : price < -most ? -most : price);
}

template <class C>
SWITCHYARD_HD C size_of(C x) {
    return x < 0 ? -x : x;
}

/// As safe_margin in margins.hpp.
template <class C>
SWITCHYARD_HD C safe_difference(C value, C next, C largest_price) {
    constexpr C infinity = std::numeric_limits<C>::infinity();
    constexpr C rounding = 2 * std::numeric_limits<C>::epsilon();
    if (next == -infinity) {
        return size_of(value) + largest_price < std::numeric_limits<C>::max() / 16 ? infinity : C(0);
    }
    return (value - next) - rounding * (size_of(value) + size_of(next) + largest_price);
}

/// What a lane finds in its part of a row.
template <class C>
struct wish_in_row {
    const C* price;
    C reference = C(0);
    two_best<C> found{};
    bool usable = true;

    SWITCHYARD_DEVICE void begin(C first) { reference = first; }
    SWITCHYARD_DEVICE void take(index_t e, C score) {
        usable = usable && is_usable_score(score);
        found.see(e, (score - reference) - price[e]);
    }
};

/// The row of a sample: one of each `stride`, at a place within them that no period in the data can follow.
SWITCHYARD_HD inline index_t sampled_row(index_t i, index_t stride) {
    if (stride == 1) return i;
    const std::uint64_t mixed = (static_cast<std::uint64_t>(i) + 1) * 0x9e3779b97f4a7c15u;
    return i * stride + static_cast<index_t>((mixed >> 33) % static_cast<std::uint64_t>(stride));
}
SWITCHYARD_HD inline index_t sampled_rows(index_t rows, index_t stride) { return rows / stride; }

template <class S, class Space, int V>
struct price_pass {
    static constexpr int threads = row_groups::threads;
    using C = compute_t<S>;

    row_reader<S, Space, V> reader;
    token_mask mask;
    row_groups shares;  ///< of the rows looked at
    index_t stride;     ///< one of so many rows is looked at: results are at its number among these
    pass_prices<C> prices;
    pass_results<C> out;
    const std::int32_t* skip;  ///< one number: if it is not 0, this pass is not wanted. Or null

    static std::size_t shared_bytes(index_t experts) {
        return shared_room<C>(experts) + shared_room<std::int32_t>(experts) + shared_room<std::int32_t>(margin_bins) +
               shared_room<double>(threads);
    }

    template <kernel_thread Here>
    SWITCHYARD_DEVICE void operator()(Here& here) const {
        const index_t experts = reader.experts();
        C* const price = here.template shared<C>(experts);
        std::int32_t* const load = here.template shared<std::int32_t>(experts);
        std::int32_t* const bins = here.template shared<std::int32_t>(margin_bins);
        double* const sums = here.template shared<double>(threads);
        const bool is_wanted = skip == nullptr || here.load(skip) == 0;
        if (!is_wanted) return;  // no thread goes on

        for (index_t e = here.thread(); e < experts; e += threads) {
            price[e] = here.load(prices.price + e);
            load[e] = 0;
        }
        for (index_t b = here.thread(); b < margin_bins; b += threads) bins[b] = 0;
        const C largest = here.load(prices.largest_size);
        here.sync();
        double sum = 0;
        const group_lane mine = group_lane::of(here, shares);
        const index_t first = here.block() * shares.rows_a_block;
        for (index_t offset = 0; offset < shares.rows_a_block; offset += shares.groups()) {
            const index_t i = first + offset + mine.group;
            const bool is_seen = i < shares.rows;
            const index_t t = is_seen ? sampled_row(i, stride) : 0;
            const bool is_token = is_seen && (mask.data == nullptr || here.load(mask.data + t) != 0);
            wish_in_row<C> row{price};
            reader.read(here, mine, is_token, t, row);
            row.found.gather(here, mine.lanes);
            const bool is_usable = !mine.any(here, !row.usable) && row.found.expert >= 0;
            if (!mine.is_leader || !is_seen) continue;
            const C margin = safe_difference(row.found.first, row.found.second, largest);
            write(here, i, t, is_token, is_usable, row.found, margin, load, bins);
            if (is_token && is_usable) sum += static_cast<double>(row.found.first);
        }
        here.sync();
        sums[here.thread()] = sum;
        here.sync();
        add_counts(here, load, bins);
        if (here.thread() == 0) {
            double all = 0;
            for (index_t g = 0; g < shares.groups(); ++g) all += sums[g * shares.lanes];
            here.store(out.value + here.block(), all);
        }
    }

  private:
    template <class Here>
    SWITCHYARD_DEVICE void write(Here& here, index_t i, index_t t, bool is_token, bool is_usable,
                                 const two_best<C>& found, C margin, std::int32_t* load, std::int32_t* bins) const {
        here.store(out.expert + i, !is_token ? not_a_token : is_usable ? found.expert : open_token);
        here.store(out.next + i, is_token && is_usable ? found.next : -1);
        here.store(out.margin + i, is_token && is_usable ? margin : std::numeric_limits<C>::infinity());
        if (!is_token) return;
        if (is_usable) {
            here.atomic_add(load + found.expert, 1);
            here.atomic_add(bins + bin_of(static_cast<float>(margin)), 1);
        } else {
            here.atomic_min(out.bad_rows, static_cast<std::int32_t>(t));
        }
    }

    template <class Here>
    SWITCHYARD_DEVICE void add_counts(Here& here, const std::int32_t* load, const std::int32_t* bins) const {
        for (index_t e = here.thread(); e < reader.experts(); e += threads) {
            if (load[e] != 0) here.atomic_add(out.load + e, load[e]);
        }
        for (index_t b = here.thread(); b < margin_bins; b += threads) {
            if (bins[b] != 0) here.atomic_add(out.bins + b, bins[b]);
        }
    }
};

/// Blocks that a pass over so many rows has: as many partial sums.
template <class S>
index_t pass_blocks(index_t rows, index_t experts) {
    return std::max(row_groups::of(rows, experts, widest_vector<S>).blocks(),
                    row_groups::of(rows, experts, 1).blocks());
}

/// One of each `stride` rows. Returns how many partial sums it writes.
template <kernel_policy Policy, class S>
index_t run_price_pass(const Policy& policy, const device_scores<S, policy_space<Policy>>& source,
                       const token_mask& mask, index_t stride, const pass_prices<compute_t<S>>& prices,
                       const pass_results<compute_t<S>>& out, const std::int32_t* skip = nullptr) {
    const index_t experts = source.scores.columns;
    const index_t rows = sampled_rows(source.scores.rows, stride);
    index_t blocks = 0;
    with_row_reader(source, [&]<int V>(const row_reader<S, policy_space<Policy>, V>& reader) {
        using kernel = price_pass<S, policy_space<Policy>, V>;
        const row_groups shares = row_groups::of(rows, experts, V);
        blocks = shares.blocks();
        policy.launch(kernel{reader, mask, shares, stride, prices, out, skip}, blocks, kernel::shared_bytes(experts));
    });
    return blocks;
}

}  // namespace detail
}  // namespace SWITCHYARD_TARGET
}  // namespace switchyard
