// The kernels of dispatch and combine: a group of lanes has a part of a token's row in registers, and goes through the
// token's choices. So a token's row is read or written once however many choices it has, and a sum over choices has
// their order. dispatch/kernel_rows.hpp launches them.
#pragma once

#include <switchyard/core/scalar_traits.hpp>
#include <switchyard/dispatch/detail/kernel_lanes.hpp>

#include <type_traits>

namespace switchyard {
inline namespace SWITCHYARD_TARGET {
namespace detail {

/// Stores weight * from as a lane's numbers of a row, piece by piece. Rows of one type that are not weighed keep their
/// bits, which a product by 1 may not: whether they are weighed is known to the compiler.
template <bool Weighed, kernel_thread Here, class In, class Out, int V, class S>
SWITCHYARD_DEVICE void store_weighed(Here& here, const lane_numbers<In, V>& from, S weight, Out* row,
                                     index_t column_stride, index_t first, index_t step, index_t columns) {
    const auto by = static_cast<compute_t<In>>(weight);
    for (int p = 0; p < from.most; ++p) {
        number_vector<Out, V> piece;
        for (int j = 0; j < V; ++j) {
            const In number = from.piece[p].at[j];
            if constexpr (Weighed) {
                piece.at[j] = store_scalar<Out>(static_cast<compute_t<Out>>(by * load_scalar(number)));
            } else if constexpr (std::is_same_v<In, Out>) {
                piece.at[j] = number;
            } else {
                piece.at[j] = store_scalar<Out>(static_cast<compute_t<Out>>(load_scalar(number)));
            }
        }
        store_piece(here, row, column_stride, first + p * step, columns, piece);
    }
}

/// out[row of (t, c)] = w_tc * in[t]. A token without rows is not read.
template <class S, class Space, class In, class Out, int V, bool Weighed>
struct gather_kernel {
    static constexpr int threads = row_threads;
    token_lanes share;
    choice_rows<S> plan;
    matrix_view<const In, Space> in;
    matrix_view<Out, Space> out;

    template <kernel_thread Here>
    SWITCHYARD_DEVICE void operator()(Here& here) const {
        const auto at = share.find(here);
        const index_t step = index_t{share.lanes} * V;
        const index_t column = at.part * step * most_pieces<V> + at.lane * V;
        lane_numbers<In, V> numbers{};
        bool is_read = false;
        for (index_t first = 0; first < plan.choices; first += share.lanes) {
            const auto mine = plan.look_up(here, at.token, first + at.lane);
            const bool has_row = (here.ballot(mine.row >= 0) & at.group) != 0;
            if (has_row && !is_read) {
                numbers.load(here, in.row(at.token), in.column_stride, column, step, share.columns);
                is_read = true;
            }
            for (int i = 0; i < plan.in_batch(first, share.lanes); ++i) {
                const auto choice = plan.shared(here, mine, at.first_lane + i);
                if (choice.row >= 0) {
                    store_weighed<Weighed>(here, numbers, choice.weight, out.row(choice.row), out.column_stride, column,
                                           step, share.columns);
                }
            }
        }
    }
};

/// Sums of a lane's pieces, in the type sums are computed in.
template <class Out, int V>
struct piece_sums {
    using compute = compute_t<Out>;
    static constexpr int most = most_pieces<V>;
    compute at[most][V];

    template <class In>
    SWITCHYARD_DEVICE void add(const lane_numbers<In, V>& from, compute weight) {
        for (int p = 0; p < most; ++p) {
            for (int j = 0; j < V; ++j) {
                at[p][j] += weight * static_cast<compute>(load_scalar(from.piece[p].at[j]));
            }
        }
    }

    template <kernel_thread Here>
    SWITCHYARD_DEVICE void store(Here& here, Out* row, index_t column_stride, index_t first, index_t step,
                                 index_t columns) const {
        for (int p = 0; p < most; ++p) {
            number_vector<Out, V> piece;
            for (int j = 0; j < V; ++j) {
                piece.at[j] = store_scalar<Out>(at[p][j]);
            }
            store_piece(here, row, column_stride, first + p * step, columns, piece);
        }
    }
};

/// out[t] (+)= sum_c w_tc * in[row of (t, c)]. A token without rows gets zeros, or keeps what it has, unread.
template <class S, class Space, class In, class Out, int V>
struct sum_kernel {
    static constexpr int threads = row_threads;
    token_lanes share;
    choice_rows<S> plan;
    bool accumulate;
    matrix_view<const In, Space> in;
    matrix_view<Out, Space> out;

    template <kernel_thread Here>
    SWITCHYARD_DEVICE void operator()(Here& here) const {
        using C = compute_t<Out>;
        const auto at = share.find(here);
        const index_t step = index_t{share.lanes} * V;
        const index_t column = at.part * step * most_pieces<V> + at.lane * V;
        piece_sums<Out, V> sum{};
        bool has_rows = false;
        for (index_t first = 0; first < plan.choices; first += share.lanes) {
            const auto mine = plan.look_up(here, at.token, first + at.lane);
            const bool has_row = (here.ballot(mine.row >= 0) & at.group) != 0;
            if (accumulate && has_row && !has_rows) {
                lane_numbers<Out, V> before;
                before.load(here, out.row(at.token), out.column_stride, column, step, share.columns);
                sum.add(before, C(1));
            }
            has_rows = has_rows || has_row;
            for (int i = 0; i < plan.in_batch(first, share.lanes); ++i) {
                const auto choice = plan.shared(here, mine, at.first_lane + i);
                if (choice.row >= 0) {
                    lane_numbers<In, V> row;
                    row.load(here, in.row(choice.row), in.column_stride, column, step, share.columns);
                    sum.add(row, static_cast<C>(choice.weight));
                }
            }
        }
        if (at.token < share.tokens && (has_rows || !accumulate)) {
            sum.store(here, out.row(at.token), out.column_stride, column, step, share.columns);
        }
    }
};

}  // namespace detail
}  // namespace SWITCHYARD_TARGET
}  // namespace switchyard
