// Moving rows between token order and expert order: the loops under dispatch, combine and their backward.
//
//   gather_rows   out[r]  = w_r * in[token of r]           for every kept row r (w = 1, or the gate)
//   sum_rows      out[t] (+)= sum_c w_tc * in[row of (t, c)]   choices in order, dropped ones absent
//   gather_and_dot_rows   both backward halves of combine in one pass
//   sum_and_dot_rows      both backward halves of dispatch with gates
//   dot_rows      d_gate[t, c] = rows[row of (t, c)] . tokens[t]   0 for dropped choices
//
// Contiguous rows move one by one, as vectors (detail/contiguous_rows.hpp); large outputs are written with non-temporal
// stores (they do not fit the cache, and their lines are not read first). Any other stride moves in tiles on the
// stack, which with its lists takes up to 448 KiB (detail/tiled_rows.hpp). Storage is converted on the way
// (core/stored.hpp). Sums have a fixed order whatever the strides, the thread count and the alignment.
#pragma once

#include <switchyard/backend/policy.hpp>
#include <switchyard/core/config.hpp>
#include <switchyard/core/matrix_view.hpp>
#include <switchyard/core/scalar_traits.hpp>
#include <switchyard/dispatch/detail/contiguous_rows.hpp>
#include <switchyard/dispatch/detail/tiled_rows.hpp>
#include <switchyard/plan/plan.hpp>

#include <algorithm>
#include <type_traits>

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wsign-conversion"  // g++'s remark on arrays whose length is an int of the template
#endif

namespace switchyard {
inline namespace SWITCHYARD_TARGET {

namespace detail {

/// Outputs of this many bytes and more are streamed, and from the second figure on, rows are called into the cache
/// ahead.
inline constexpr index_t streaming_bytes = index_t{1} << 23;
inline constexpr index_t calling_bytes = index_t{1} << 21;

/// Rows a block of work moves: about 256 KiB, so that small batches stay on the calling thread.
constexpr index_t rows_per_move(index_t row_bytes) {
    const index_t rows = (index_t{1} << 18) / (row_bytes > 0 ? row_bytes : 1);
    return rows > 1 ? rows : 1;
}

/// The kept rows in blocks: f(first, last, stream, rows ahead that are called in) for each, with a fence after what was
/// streamed.
template <class Policy, class F>
void for_each_block_of_rows(const Policy& policy, index_t rows, index_t row_bytes, bool may_stream, const F& f) {
    const index_t grain = rows_per_move(row_bytes);
    const index_t bytes = rows * row_bytes;
    const bool stream = may_stream && bytes >= streaming_bytes;
    const index_t ahead = bytes >= calling_bytes ? rows_ahead : 0;
    policy.parallel_for((rows + grain - 1) / grain, [&](index_t b) {
        f(b * grain, std::min(rows, (b + 1) * grain), stream, ahead);
        if (stream) {
            finish_streaming();
        }
    });
}

/// The same for the rows of a plan, in runs that have no padding in between.
template <class Policy, class S, class F>
void for_each_block_of_kept_rows(const Policy& policy, const plan_view<S>& plan, index_t row_bytes, bool may_stream,
                                 const F& f) {
    for_each_block_of_rows(policy, plan.offsets[plan.experts], row_bytes, may_stream,
                           [&](index_t first, index_t last, auto... how) {
                               if (plan.row_block == 1) {
                                   f(first, last, how...);
                                   return;
                               }
                               for (index_t start = first; start < last;) {
                                   index_t end = start;
                                   while (end < last && plan.order[end] >= 0) {
                                       ++end;
                                   }
                                   if (start < end) {
                                       f(start, end, how...);
                                   }
                                   start = end + 1;
                               }
                           });
}

/// Gates are read in random order too, and a row waits for its gate.
template <class S>
void prefetch_gate(const plan_view<S>& plan, index_t r, index_t last) {
    if (r + rows_ahead < last) {
        prefetch(plan.gate + plan.order[r + rows_ahead]);
    }
}

/// The sums of all tokens, from rows that lie contiguously.
template <class Policy, class S, class In, class Out>
void sum_contiguous_rows(const Policy& policy, const choice_sum<S, In>& sum, bool accumulate,
                         const matrix_view<Out>& out) {
    const index_t tokens = sum.plan.tokens;
    const index_t row_bytes = out.columns * static_cast<index_t>(sizeof(Out));
    const bool may_stream = !accumulate && sum.plan.choices <= 8;
    for_each_block_of_rows(policy, tokens, row_bytes, may_stream,
                           [&](index_t first, index_t last, bool stream, index_t later) {
                               for (index_t token = first; token < last; ++token) {
                                   const index_t ahead = token + later < tokens ? later : 0;
                                   sum_token(sum, token, ahead, accumulate, stream, out);
                               }
                           });
}

}  // namespace detail

/// out[r] = w_r * in[token of r] for the kept rows; `weigh` takes the gate for w, else w = 1. Rows beyond are not
/// touched. Without weights and conversion, numbers keep their bits.
template <host_policy Policy, class S, class In, class Out>
void gather_rows(const Policy& policy, const plan_view<S>& plan, bool weigh, const matrix_view<const In>& in,
                 const matrix_view<Out>& out) {
    using C = compute_t<In>;
    if (!in.rows_contiguous() || !out.rows_contiguous()) {
        const bool stream =
            plan.offsets[plan.experts] * out.columns * static_cast<index_t>(sizeof(Out)) >= detail::streaming_bytes;
        if constexpr (std::is_same_v<In, Out> && !std::is_same_v<In, C>) {
            if (!weigh) {
                detail::gather_tiles<detail::stored_box<In>>(policy, plan, weigh, stream, in, out);
                return;
            }
        }
        detail::gather_tiles<detail::numbers_box<C>>(policy, plan, weigh, stream, in, out);
        return;
    }
    const index_t width = in.columns;
    const auto token_of = [&](index_t r) { return plan.token_of(plan.order[r]); };
    detail::for_each_block_of_kept_rows(
        policy, plan, width * static_cast<index_t>(sizeof(Out)), true,
        [&](index_t first, index_t last, bool stream, index_t later) {
            for (index_t r = first; r < last; ++r) {
                const In* const source = in.row(token_of(r));
                const In* const ahead = r + later < last ? in.row(token_of(r + later)) : source;
                if (!weigh) {
                    detail::copy_row(out.row(r), source, ahead, width, stream);
                    continue;
                }
                detail::prefetch_gate(plan, r, last);
                const auto weight = detail::wide<C>::all(static_cast<C>(plan.gate[plan.order[r]]));
                detail::write_row<C>(out.row(r), width, stream, [=](index_t j, index_t lanes) {
                    detail::prefetch(ahead + j);
                    return detail::load_some<C>(source + j, lanes) * weight;
                });
            }
        });
}

/// d_gate[t, c] = rows[row of (t, c)] . tokens[t], and 0 for dropped choices.
template <host_policy Policy, class S, class A, class B, class G>
void dot_rows(const Policy& policy, const plan_view<S>& plan, const matrix_view<const A>& rows,
              const matrix_view<const B>& tokens, const matrix_view<G>& d_gates) {
    using C = compute_t<A>;
    if (!rows.rows_contiguous() || !tokens.rows_contiguous()) {
        detail::dot_tiles<detail::numbers_box<C>>(policy, plan, rows, tokens, d_gates);
        return;
    }
    const index_t width = tokens.columns;
    const index_t grain = detail::rows_per_move(width * static_cast<index_t>(sizeof(B)));
    policy.parallel_for((plan.tokens + grain - 1) / grain, [&](index_t b) {
        for (index_t token = b * grain; token < std::min(plan.tokens, (b + 1) * grain); ++token) {
            for (index_t c = 0; c < plan.choices; ++c) {
                const index_t r = plan.row_of(token * plan.choices + c);
                d_gates(token, c) =
                    detail::store_as<G>(r < 0 ? C(0) : detail::dot<C>(rows.row(r), tokens.row(token), width));
            }
        }
    });
}

/// gather_rows with gates and dot_rows in one pass: out[r] = gate * tokens[token of r], d_gate = rows[r] . tokens[token
/// of r], 0 for dropped choices. `out` may be `rows`.
template <host_policy Policy, class S, class A, class B, class Out, class G>
void gather_and_dot_rows(const Policy& policy, const plan_view<S>& plan, const matrix_view<const A>& rows,
                         const matrix_view<const B>& tokens, const matrix_view<Out>& out,
                         const matrix_view<G>& d_gates) {
    using C = compute_t<A>;
    if (!std::is_same_v<C, compute_t<B>> || !rows.rows_contiguous() || !tokens.rows_contiguous() ||
        !out.rows_contiguous()) {
        dot_rows(policy, plan, rows, tokens, d_gates);  // first: `out` may be `rows`
        gather_rows(policy, plan, true, tokens, out);
    } else if constexpr (std::is_same_v<C, compute_t<B>>) {
        for (index_t token = 0; token < plan.tokens; ++token) {
            for (index_t c = 0; c < plan.choices; ++c) {
                if (plan.slot[token * plan.choices + c] < 0) {
                    d_gates(token, c) = store_scalar<G>(compute_t<G>(0));
                }
            }
        }
        const index_t width = tokens.columns;
        detail::for_each_block_of_kept_rows(
            policy, plan, width * static_cast<index_t>(sizeof(Out)), true,
            [&](index_t first, index_t last, bool stream, index_t later) {
                for (index_t r = first; r < last; ++r) {
                    const index_t position = plan.order[r];
                    const B* const token = tokens.row(plan.token_of(position));
                    const B* const ahead = r + later < last ? tokens.row(plan.token_of(plan.order[r + later])) : token;
                    detail::prefetch_gate(plan, r, last);
                    const C product = detail::scale_and_dot(out.row(r), static_cast<C>(plan.gate[position]),
                                                            rows.row(r), token, ahead, width, stream);
                    d_gates(position / plan.choices, position % plan.choices) = detail::store_as<G>(product);
                }
            });
    }
}

/// out[t] (+)= sum_c w_tc * in[row of (t, c)], choices in order; a token without rows gets zeros (or keeps what it
/// has).
template <host_policy Policy, class S, class In, class Out>
void sum_rows(const Policy& policy, const plan_view<S>& plan, bool weigh, bool accumulate,
              const matrix_view<const In>& in, const matrix_view<Out>& out) {
    using box = detail::numbers_box<compute_t<Out>>;
    const index_t row_bytes = out.columns * static_cast<index_t>(sizeof(Out));
    if (in.rows_contiguous() && out.rows_contiguous()) {
        detail::sum_contiguous_rows(policy, detail::choice_sum<S, In>{plan, weigh, in}, accumulate, out);
    } else if (plan.choices <= detail::choices_a_tile<box>) {
        const bool stream = !accumulate && plan.tokens * row_bytes >= detail::streaming_bytes;
        detail::sum_tiles<box>(policy, plan, weigh, accumulate, stream, in, out);
    } else {
        detail::sum_pieces<box>(policy, plan, weigh, accumulate, in, out);
    }
}

/// Both backward halves of dispatch with gates: out[t] = sum_c gate * rows[row of (t, c)], and d_gate[t, c] = rows[row
/// of (t, c)] . tokens[t].
template <host_policy Policy, class S, class A, class B, class Out, class G>
void sum_and_dot_rows(const Policy& policy, const plan_view<S>& plan, const matrix_view<const A>& rows,
                      const matrix_view<const B>& tokens, const matrix_view<Out>& out, const matrix_view<G>& d_gates) {
    sum_rows(policy, plan, true, false, rows, out);
    dot_rows(policy, plan, rows, tokens, d_gates);
}

}  // namespace SWITCHYARD_TARGET
}  // namespace switchyard

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic pop
#endif
