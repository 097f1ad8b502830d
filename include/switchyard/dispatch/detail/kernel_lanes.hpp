// What the kernels of dispatch and combine share: which lanes have which token, where a token's choices went, and a
// lane's pieces of a row.
//
// Lanes. A group of 1, 2, .. 32 lanes of a warp has a token. Its row is cut in *pieces* of V numbers, V so many as move
// in one access of 16 bytes where pointers, strides and the types allow it (the widest of the types decides), else one.
// A lane has `most` pieces at a time, `lanes` pieces apart, so that the lanes of a group read one line of memory
// together and several reads are under way at once. A row with more pieces than a group holds is cut in parts, one a
// group, or a group goes through it in several rounds.
//
// Choices. Lane i of the group looks up choice i of a batch of `lanes`: expert, slot and gate of neighbours lie next to
// each other, each number is read by one lane, and all learn it by a shuffle. Every lane of a warp goes through the
// same number of batches and choices, so that shuffles always find all 32.
#pragma once

#include <switchyard/backend/kernel.hpp>
#include <switchyard/core/config.hpp>
#include <switchyard/core/matrix_view.hpp>
#include <switchyard/plan/plan.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>

namespace switchyard {
inline namespace SWITCHYARD_TARGET {
namespace detail {

/// Threads of a block: few, since groups share nothing and a small batch should reach many multiprocessors.
inline constexpr int row_threads = 128;

/// Pieces that a lane has at a time: enough reads under way, and few enough numbers (16, as floats) for the registers.
template <int V>
inline constexpr int most_pieces = V >= 8 ? 2 : 4;

/// Numbers of a piece for these types, where strides allow it.
template <class... Ts>
inline constexpr int widest_piece = 16 / static_cast<int>(std::max({sizeof(Ts)...}));

/// Whether every row of a view is made of pieces of V numbers.
template <int V, class T, class Space>
bool has_pieces(const matrix_view<T, Space>& m) {
    const auto bytes = static_cast<std::uintptr_t>(V) * sizeof(T);
    return m.column_stride == 1 && m.columns % V == 0 && reinterpret_cast<std::uintptr_t>(m.data) % bytes == 0 &&
           (m.rows <= 1 || m.row_stride % V == 0);
}

/// Which lanes have which token.
struct token_lanes {
    index_t tokens;
    index_t columns;
    index_t parts;  ///< of a row
    int lanes;      ///< of a group

    /// One thread's: token (which may lie beyond the last one), the group's lanes, and its own.
    struct place {
        index_t token;
        index_t part;
        int first_lane;
        int lane;
        std::uint32_t group;  ///< bits of the group's lanes
    };

    template <kernel_thread Here>
    SWITCHYARD_DEVICE place find(Here& here) const {
        const index_t group = here.block() * (row_threads / lanes) + here.thread() / lanes;
        const int lane = here.thread() % lanes;
        const int first_lane = here.thread() % warp_lanes - lane;
        const std::uint32_t all = ~std::uint32_t{0};
        const std::uint32_t bits = lanes == warp_lanes ? all : ~(all << lanes) << first_lane;
        const index_t token = parts == 1 ? group : group / parts;
        return {token, group - token * parts, first_lane, lane, bits};
    }

    index_t blocks() const {
        const index_t groups_a_block = row_threads / lanes;
        return (tokens * parts + groups_a_block - 1) / groups_a_block;
    }
};

/// Groups as wide as a line of memory or a row, `least` lanes at least, wider only where a row has more pieces than
/// their lanes have room for. `cut`: rows that are wider still are cut in parts.
template <int V>
token_lanes share_lanes(index_t tokens, index_t columns, std::size_t number_bytes, index_t least, bool cut) {
    constexpr index_t line = 128;
    constexpr index_t most = most_pieces<V>;
    const index_t pieces = (columns + V - 1) / V;
    const index_t piece_bytes = V * static_cast<index_t>(number_bytes);
    index_t lanes = 1;
    while (lanes < warp_lanes &&
           (lanes < least || (lanes < pieces && (lanes * piece_bytes < line || lanes * most < pieces)))) {
        lanes *= 2;
    }
    const index_t parts = cut ? std::max<index_t>(1, (pieces + lanes * most - 1) / (lanes * most)) : 1;
    return {tokens, columns, parts, static_cast<int>(lanes)};
}

/// Where choices went.
template <class S>
struct choice_rows {
    index_t tokens;
    index_t choices;
    const std::int32_t* expert;
    const std::int32_t* slot;
    const std::int64_t* offsets;
    const S* gate;  ///< null: every choice weighs 1

    /// A choice's row, -1 if it has none, and its weight.
    struct found {
        std::int64_t row = -1;
        S weight = S(1);
    };

    template <kernel_thread Here>
    SWITCHYARD_DEVICE found look_up(Here& here, index_t token, index_t choice) const {
        found f;
        if (token < tokens && choice < choices) {
            const index_t position = token * choices + choice;
            const std::int32_t at = here.load(slot + position);
            const std::int32_t of = here.load(expert + position);
            f.weight = gate != nullptr ? here.load(gate + position) : S(1);
            f.row = at >= 0 ? here.load(offsets + of) + at : -1;
        }
        return f;
    }

    /// The same of another lane.
    template <kernel_thread Here>
    SWITCHYARD_DEVICE found shared(Here& here, const found& mine, int lane) const {
        return {here.shuffle(mine.row, lane), gate != nullptr ? here.shuffle(mine.weight, lane) : S(1)};
    }

    /// Choices of the batch that begins with `first`.
    SWITCHYARD_DEVICE int in_batch(index_t first, int lanes) const {
        return choices - first < lanes ? static_cast<int>(choices - first) : lanes;
    }
};

template <class S, class Space>
choice_rows<S> choice_rows_of(const plan_view<S, Space>& plan, bool weigh) {
    return {plan.tokens, plan.choices, plan.expert, plan.slot, plan.offsets, weigh ? plan.gate : nullptr};
}

/// A piece of a row that begins with column `at`; beyond the row's end it is 0.
template <int V, kernel_thread Here, class T>
SWITCHYARD_DEVICE number_vector<T, V> load_piece(Here& here, const T* row, index_t column_stride, index_t at,
                                                 index_t columns) {
    number_vector<T, V> piece{};
    if (at < columns) {
        if constexpr (V == 1) {
            piece.at[0] = here.load(row + at * column_stride);
        } else {
            piece = here.template load_vector<V>(row + at);
        }
    }
    return piece;
}
template <kernel_thread Here, class T, int V>
SWITCHYARD_DEVICE void store_piece(Here& here, T* row, index_t column_stride, index_t at, index_t columns,
                                   const number_vector<T, V>& piece) {
    if (at < columns) {
        if constexpr (V == 1) {
            here.store(row + at * column_stride, piece.at[0]);
        } else {
            here.store_vector(row + at, piece);
        }
    }
}

/// A lane's numbers of a row, `most` pieces of V.
template <class T, int V>
struct lane_numbers {
    static constexpr int most = most_pieces<V>;
    number_vector<T, V> piece[most];

    /// From the row at `row`; `first` is the first column of the lane's first piece, `step` leads to its next one.
    template <kernel_thread Here>
    SWITCHYARD_DEVICE void load(Here& here, const T* row, index_t column_stride, index_t first, index_t step,
                                index_t columns) {
        for (int p = 0; p < most; ++p) {
            piece[p] = load_piece<V>(here, row, column_stride, first + p * step, columns);
        }
    }
};

}  // namespace detail
}  // namespace SWITCHYARD_TARGET
}  // namespace switchyard
