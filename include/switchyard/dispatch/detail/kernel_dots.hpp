// The kernels of the gates' gradients: d_gate[t, c] = rows[row of (t, c)] . tokens[t], and in the same pass over the
// rows what else backward makes of them. dispatch/kernel_rows.hpp launches them.
//
// A group of lanes has a whole token: it goes through the row in rounds, each round's numbers of the token in
// registers, and in each round through the choices. Lane i keeps the dot product of choice i: each round's parts are
// added over the lanes by halves, in an order that depends on the shape alone, and then to what earlier rounds gave.
// More choices than lanes (more than 32) take several batches, each of which reads the token's row again.
#pragma once

#include <switchyard/core/scalar_traits.hpp>
#include <switchyard/dispatch/detail/kernel_lanes.hpp>
#include <switchyard/dispatch/detail/kernel_moves.hpp>

#include <cstdint>
#include <type_traits>

namespace switchyard {
inline namespace SWITCHYARD_TARGET {
namespace detail {

/// What a kernel of dot products also writes.
enum class beside_dots {
    nothing,
    weighed_tokens,  ///< out[row of (t, c)] = gate * tokens[t]: combine's backward. `out` may be `rows`
    summed_rows,     ///< out[t] = sum_c gate * rows[row of (t, c)]: dispatch's backward; one batch of choices
};

/// A lane's part of a . b.
template <class A, class B, int V>
SWITCHYARD_DEVICE compute_t<A> dot_pieces(const lane_numbers<A, V>& a, const lane_numbers<B, V>& b) {
    using C = compute_t<A>;
    C sum = 0;
    for (int p = 0; p < a.most; ++p) {
        for (int j = 0; j < V; ++j) {
            sum += load_scalar(a.piece[p].at[j]) * static_cast<C>(load_scalar(b.piece[p].at[j]));
        }
    }
    return sum;
}

template <class S, class Space, class A, class B, class Out, class G, int V, beside_dots beside>
struct dot_kernel {
    static constexpr int threads = row_threads;
    token_lanes share;
    choice_rows<S> plan;
    matrix_view<const A, Space> rows;
    matrix_view<const B, Space> tokens;
    matrix_view<Out, Space> out;
    matrix_view<G, Space> d_gates;

    template <kernel_thread Here>
    SWITCHYARD_DEVICE void operator()(Here& here) const {
        const auto at = share.find(here);
        const index_t step = index_t{share.lanes} * V;
        for (index_t first = 0; first < plan.choices; first += share.lanes) {
            const auto mine = plan.look_up(here, at.token, first + at.lane);
            const bool has_row = (here.ballot(mine.row >= 0) & at.group) != 0;
            compute_t<A> product = 0;
            for (index_t start = 0; start < share.columns; start += step * most_pieces<V>) {
                const auto parts =
                    one_round(here, at, start + at.lane * V, step, mine, has_row, plan.in_batch(first, share.lanes));
                product += parts;
            }
            if (at.token < plan.tokens && first + at.lane < plan.choices) {
                here.store(&d_gates(at.token, first + at.lane), store_scalar<G>(static_cast<compute_t<G>>(product)));
            }
        }
    }

  private:
    /// All choices of a batch, over the columns that the group's lanes have at once: this lane's choice's dot product
    /// there.
    template <kernel_thread Here>
    SWITCHYARD_DEVICE compute_t<A> one_round(Here& here, const token_lanes::place& at, index_t column, index_t step,
                                             const typename choice_rows<S>::found& mine, bool has_row,
                                             int choices) const {
        lane_numbers<B, V> token{};
        if (has_row) {
            token.load(here, tokens.row(at.token), tokens.column_stride, column, step, share.columns);
        }
        compute_t<A> product = 0;
        piece_sums<Out, V> sum{};
        for (int i = 0; i < choices; ++i) {
            const auto choice = plan.shared(here, mine, at.first_lane + i);
            compute_t<A> part = 0;
            if (choice.row >= 0) {
                lane_numbers<A, V> row;
                row.load(here, rows.row(choice.row), rows.column_stride, column, step, share.columns);
                part = dot_pieces(row, token);
                if constexpr (beside == beside_dots::weighed_tokens) {
                    store_weighed<true>(here, token, choice.weight, out.row(choice.row), out.column_stride, column,
                                        step, share.columns);
                } else if constexpr (beside == beside_dots::summed_rows) {
                    sum.add(row, static_cast<compute_t<Out>>(choice.weight));
                }
            }
            for (int distance = 1; distance < share.lanes; distance *= 2) {
                part += here.shuffle_xor(part, distance);
            }
            product = at.lane == i ? part : product;
        }
        if constexpr (beside == beside_dots::summed_rows) {
            if (at.token < share.tokens) {
                sum.store(here, out.row(at.token), out.column_stride, column, step, share.columns);
            }
        }
        return product;
    }
};

}  // namespace detail
}  // namespace SWITCHYARD_TARGET
}  // namespace switchyard
