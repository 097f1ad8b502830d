// Moving rows between token order and expert order: the three loops under dispatch, combine and their backward.
//
//   gather_rows   out[r]  = w_r * in[token of r]           for every kept row r (w = 1, or the gate)
//   sum_rows      out[t] (+)= sum_c w_tc * in[row of (t, c)]   choices in order, dropped ones absent
//   gather_and_dot_rows   both backward halves of combine in one pass
//   sum_and_dot_rows      both backward halves of dispatch with gates
//   dot_rows      d_gate[t, c] = rows[row of (t, c)] . tokens[t]   0 for dropped choices
//
// Rows of compute scalars that are contiguous move as vectors; large outputs are written past the cache (they do not
// fit it, and the row that would be read first is skipped). Any other storage or stride takes the plain loop. Sums have
// a fixed order whatever the thread count and alignment.
#pragma once

#include <switchyard/backend/policy.hpp>
#include <switchyard/core/config.hpp>
#include <switchyard/core/matrix_view.hpp>
#include <switchyard/core/scalar_traits.hpp>
#include <switchyard/core/simd.hpp>
#include <switchyard/plan/plan.hpp>

#include <algorithm>
#include <cstdint>

namespace switchyard {
inline namespace SWITCHYARD_TARGET {

namespace detail {

/// Outputs of this many bytes and more are streamed.
inline constexpr index_t streaming_bytes = index_t{1} << 23;

/// Rows a block of work moves: about 256 KiB, so that small batches stay on the calling thread.
constexpr index_t rows_per_move(index_t row_bytes) {
    const index_t rows = (index_t{1} << 18) / (row_bytes > 0 ? row_bytes : 1);
    return rows > 1 ? rows : 1;
}

/// Rows ahead of the one in work that are called into the second-level cache: rows are read in random order, and
/// nothing else would. Measured on 2 KiB rows; nearer or farther, or into the first level, is slower.
inline constexpr index_t rows_ahead = 4;

inline void prefetch([[maybe_unused]] const void* address) {
#if SWITCHYARD_DETAIL_VECTORS
    __builtin_prefetch(address, 0, 2);
#endif
}

inline void finish_streaming() {
#if SWITCHYARD_DETAIL_VECTORS && defined(__SSE2__)
    _mm_sfence();
#endif
}

/// out[0 .. n) = f(j), f giving packs; past the cache where `stream` and the address allows it.
template <class S, class F>
void write_row(S* out, index_t n, bool stream, const F& f) {
    constexpr int W = native_width<S>;
    const index_t whole = n / W * W;
    if (stream && reinterpret_cast<std::uintptr_t>(out) % (W * sizeof(S)) == 0) {
        for (index_t j = 0; j < whole; j += W) {
            f(j, index_t{W}).stream(out + j);
        }
    } else {
        for (index_t j = 0; j < whole; j += W) {
            f(j, index_t{W}).store(out + j);
        }
    }
    if (whole < n) {
        f(whole, n - whole).store_first(out + whole, n - whole);
    }
}

template <class S>
pack<S, native_width<S>> load_some(const S* p, index_t n) {
    using P = pack<S, native_width<S>>;
    return n >= P::width ? P::load(p) : P::load_first(p, n, S(0));
}

/// a . b in a fixed order: four partial sums of packs in turn, then halves. `visit(j, pack of b)` sees every pack.
template <class S, class Visit>
S dot(const S* a, const S* b, index_t n, const Visit& visit) {
    constexpr index_t W = native_width<S>;
    using P = pack<S, native_width<S>>;
    P sum[4] = {P::all(0), P::all(0), P::all(0), P::all(0)};
    index_t j = 0;
    for (; j + 4 * W <= n; j += 4 * W) {
        for (index_t i = 0; i < 4; ++i) {
            const P numbers = P::load(b + j + i * W);
            sum[i] = multiply_add(P::load(a + j + i * W), numbers, sum[i]);
            visit(j + i * W, numbers);
        }
    }
    for (; j < n; j += W) {
        const P numbers = load_some(b + j, n - j);
        sum[0] = multiply_add(load_some(a + j, n - j), numbers, sum[0]);
        visit(j, numbers);
    }
    return total((sum[0] + sum[1]) + (sum[2] + sum[3]));
}

template <class S>
S dot(const S* a, const S* b, index_t n) {
    return dot(a, b, n, [](index_t, pack<S, native_width<S>>) {});
}

/// out = gate * b and returns a . b, in one pass.
template <class S>
S scale_and_dot(S* out, S gate, const S* a, const S* b, const S* ahead, index_t n, bool stream) {
    using P = pack<S, native_width<S>>;
    const P weight = P::all(gate);
    if (stream && reinterpret_cast<std::uintptr_t>(out) % sizeof(P) == 0 && n % P::width == 0) {
        return dot(a, b, n, [=](index_t j, P numbers) {
            prefetch(ahead + j);
            (numbers * weight).stream(out + j);
        });
    }
    return dot(a, b, n, [=](index_t j, P numbers) {
        if (n - j >= P::width) {
            (numbers * weight).store(out + j);
        } else {
            (numbers * weight).store_first(out + j, n - j);
        }
    });
}

/// Both are contiguous rows of the type sums are computed in.
template <class A, class B>
constexpr bool same_compute = std::is_same_v<std::remove_const_t<A>, compute_t<A>>&&
    std::is_same_v<std::remove_const_t<A>, std::remove_const_t<B>>;

/// The kept rows in blocks: f(first, last, stream) for each, with a fence after what was streamed.
template <class Policy, class F>
void for_each_block_of_rows(const Policy& policy, index_t rows, index_t row_bytes, bool may_stream, const F& f) {
    const index_t grain = rows_per_move(row_bytes);
    const bool stream = may_stream && rows * row_bytes >= streaming_bytes;
    policy.parallel_for((rows + grain - 1) / grain, [&](index_t b) {
        f(b * grain, std::min(rows, (b + 1) * grain), stream);
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

/// One row of gather_rows, whatever the storage and strides.
template <class In, class Out, class S>
void gather_elements(const matrix_view<const In>& in, index_t token, const matrix_view<Out>& out, index_t r, bool weigh,
                     S gate) {
    if constexpr (std::is_same_v<In, Out>) {
        if (!weigh && in.rows_contiguous() && out.rows_contiguous()) {
            std::copy(in.row(token), in.row(token) + in.columns, out.row(r));
            return;
        }
    }
    for (index_t j = 0; j < in.columns; ++j) {
        const compute_t<In> number = load_scalar(in(token, j));
        const compute_t<In> weighted = weigh ? static_cast<compute_t<In>>(gate) * number : number;
        out(r, j) = store_scalar<Out>(static_cast<compute_t<Out>>(weighted));
    }
}

}  // namespace detail

/// out[r] = w_r * in[token of r] for the kept rows; `weigh` takes the gate for w, else w = 1. Rows beyond are not
/// touched.
template <host_policy Policy, class S, class In, class Out>
void gather_rows(const Policy& policy, const plan_view<S>& plan, bool weigh, const matrix_view<const In>& in,
                 const matrix_view<Out>& out) {
    const index_t width = in.columns;
    const bool contiguous = in.rows_contiguous() && out.rows_contiguous();
    const auto token_of = [&](index_t r) { return plan.token_of(plan.order[r]); };
    detail::for_each_block_of_kept_rows(
        policy, plan, width * static_cast<index_t>(sizeof(Out)), contiguous,
        [&](index_t first, index_t last, bool stream) {
            for (index_t r = first; r < last; ++r) {
                if constexpr (detail::same_compute<In, Out>) {
                    if (contiguous) {
                        using P = pack<In, native_width<In>>;
                        const In* const source = in.row(token_of(r));
                        const bool more = stream && r + detail::rows_ahead < last;
                        const In* const ahead = more ? in.row(token_of(r + detail::rows_ahead)) : source;
                        if (!weigh && !stream) {
                            std::copy(source, source + width, out.row(r));  // not memcpy: D = 0 may lie at null
                            continue;
                        }
                        if (!weigh) {
                            detail::write_row(out.row(r), width, stream, [=](index_t j, index_t n) {
                                detail::prefetch(ahead + j);
                                return detail::load_some(source + j, n);
                            });
                            continue;
                        }
                        detail::prefetch_gate(plan, r, last);
                        const P weight = P::all(static_cast<In>(plan.gate[plan.order[r]]));
                        detail::write_row(out.row(r), width, stream, [=](index_t j, index_t n) {
                            detail::prefetch(ahead + j);
                            return detail::load_some(source + j, n) * weight;
                        });
                        continue;
                    }
                }
                detail::gather_elements(in, token_of(r), out, r, weigh, plan.gate[plan.order[r]]);
            }
        });
}

/// d_gate[t, c] = rows[row of (t, c)] . tokens[t], and 0 for dropped choices.
template <host_policy Policy, class S, class A, class B, class G>
void dot_rows(const Policy& policy, const plan_view<S>& plan, const matrix_view<const A>& rows,
              const matrix_view<const B>& tokens, const matrix_view<G>& d_gates) {
    const index_t width = tokens.columns;
    const index_t grain = detail::rows_per_move(width * static_cast<index_t>(sizeof(B)));
    const bool contiguous = rows.rows_contiguous() && tokens.rows_contiguous();
    policy.parallel_for((plan.tokens + grain - 1) / grain, [&](index_t b) {
        for (index_t token = b * grain; token < std::min(plan.tokens, (b + 1) * grain); ++token) {
            for (index_t c = 0; c < plan.choices; ++c) {
                const index_t r = plan.row_of(token * plan.choices + c);
                compute_t<A> sum = 0;
                if constexpr (detail::same_compute<A, B>) {
                    if (r >= 0 && contiguous) {
                        sum = detail::dot(rows.row(r), tokens.row(token), width);
                        d_gates(token, c) = store_scalar<G>(static_cast<compute_t<G>>(sum));
                        continue;
                    }
                }
                for (index_t j = 0; r >= 0 && j < width; ++j) {
                    sum += load_scalar(rows(r, j)) * static_cast<compute_t<A>>(load_scalar(tokens(token, j)));
                }
                d_gates(token, c) = store_scalar<G>(static_cast<compute_t<G>>(sum));
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
    if constexpr (detail::same_compute<A, B> && detail::same_compute<B, Out>) {
        if (rows.rows_contiguous() && tokens.rows_contiguous() && out.rows_contiguous()) {
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
                [&](index_t first, index_t last, bool stream) {
                    for (index_t r = first; r < last; ++r) {
                        const index_t position = plan.order[r];
                        const B* const token = tokens.row(plan.token_of(position));
                        const A* const row = rows.row(r);
                        const bool more = stream && r + detail::rows_ahead < last;
                        const B* const ahead =
                            more ? tokens.row(plan.token_of(plan.order[r + detail::rows_ahead])) : token;
                        detail::prefetch_gate(plan, r, last);
                        const A product = detail::scale_and_dot(out.row(r), static_cast<A>(plan.gate[position]), row,
                                                                token, ahead, width, stream);
                        d_gates(position / plan.choices, position % plan.choices) =
                            store_scalar<G>(static_cast<compute_t<G>>(product));
                    }
                });
            return;
        }
    }
    dot_rows(policy, plan, rows, tokens, d_gates);  // first: `out` may be `rows`
    gather_rows(policy, plan, true, tokens, out);
}

namespace detail {

/// Up to 8 rows and their weights: what is summed into one row at a time.
template <class In>
struct weighted_rows {
    static constexpr index_t most = 8;
    const In* row[most];
    const In* ahead[most];  ///< a row soon to be read, to call into the cache
    In weight[most];
    index_t count = 0;
};

/// out[0 .. n) (+)= sum_c weight[c] * row[c][0 .. n).
template <class S>
void sum_contiguous(S* out, index_t n, bool accumulate, bool stream, const weighted_rows<S>& from) {
    using P = pack<S, native_width<S>>;
    const auto sum_onto = [&](auto start, index_t first_row) {
        write_row(out, n, stream, [&](index_t j, index_t lanes) {
            P sum = start(j, lanes);
            for (index_t c = first_row; c < from.count; ++c) {
                prefetch(from.ahead[c] + j);
                sum = multiply_add(P::all(from.weight[c]), load_some(from.row[c] + j, lanes), sum);
            }
            return sum;
        });
    };
    if (accumulate) {
        sum_onto([&](index_t j, index_t lanes) { return load_some(out + j, lanes); }, 0);
    } else if (from.count == 0) {
        sum_onto([](index_t, index_t) { return P::all(S(0)); }, 0);
    } else if (from.count > 1) {
        sum_onto(
            [&](index_t j, index_t lanes) {
                prefetch(from.ahead[0] + j);
                return P::all(from.weight[0]) * load_some(from.row[0] + j, lanes);
            },
            1);
    } else {
        const P weight = P::all(from.weight[0]);
        const S* const row = from.row[0];
        const S* const ahead = from.ahead[0];
        if (stream) {
            write_row(out, n, stream, [=](index_t j, index_t lanes) {
                prefetch(ahead + j);
                return weight * load_some(row + j, lanes);
            });
        } else {
            write_row(out, n, stream, [=](index_t j, index_t lanes) { return weight * load_some(row + j, lanes); });
        }
    }
}

/// One row of sum_rows, whatever the storage and strides.
template <class In, class Out, class S>
void sum_elements(const plan_view<S>& plan, index_t token, bool weigh, bool accumulate, const matrix_view<const In>& in,
                  const matrix_view<Out>& out) {
    using C = compute_t<Out>;
    for (index_t j = 0; j < out.columns; ++j) {
        C sum = accumulate ? load_scalar(out(token, j)) : C(0);
        for (index_t position = token * plan.choices; position < (token + 1) * plan.choices; ++position) {
            const index_t r = plan.row_of(position);
            if (r >= 0) {
                const C weight = weigh ? static_cast<C>(plan.gate[position]) : C(1);
                sum += weight * static_cast<C>(load_scalar(in(r, j)));
            }
        }
        out(token, j) = store_scalar<Out>(sum);
    }
}

/// One row of sum_rows where all is contiguous: 8 choices at a time.
template <class S, class In>
void sum_token(const plan_view<S>& plan, index_t token, bool weigh, bool accumulate, bool stream,
               const matrix_view<const In>& in, const matrix_view<In>& out) {
    weighted_rows<In> from;
    const index_t later = stream && token + rows_ahead < plan.tokens ? rows_ahead * plan.choices : 0;
    for (index_t position = token * plan.choices; position < (token + 1) * plan.choices; ++position) {
        const index_t r = plan.row_of(position);
        if (r < 0) {
            continue;
        }
        const index_t soon = plan.row_of(position + later);
        from.row[from.count] = in.row(r);
        from.ahead[from.count] = in.row(soon < 0 ? r : soon);
        from.weight[from.count++] = weigh ? static_cast<In>(plan.gate[position]) : In(1);
        if (from.count == weighted_rows<In>::most) {
            sum_contiguous(out.row(token), out.columns, accumulate, stream, from);
            accumulate = true;
            from.count = 0;
        }
    }
    if (from.count > 0 || !accumulate) {
        sum_contiguous(out.row(token), out.columns, accumulate, stream, from);
    }
}

}  // namespace detail

/// out[t] (+)= sum_c w_tc * in[row of (t, c)], choices in order; a token without rows gets zeros (or keeps what it
/// has).
template <host_policy Policy, class S, class In, class Out>
void sum_rows(const Policy& policy, const plan_view<S>& plan, bool weigh, bool accumulate,
              const matrix_view<const In>& in, const matrix_view<Out>& out) {
    const bool contiguous = in.rows_contiguous() && out.rows_contiguous();
    const bool may_stream = contiguous && !accumulate && plan.choices <= detail::weighted_rows<In>::most;
    detail::for_each_block_of_rows(policy, plan.tokens, out.columns * static_cast<index_t>(sizeof(Out)), may_stream,
                                   [&](index_t first, index_t last, bool stream) {
                                       for (index_t token = first; token < last; ++token) {
                                           if constexpr (detail::same_compute<In, Out>) {
                                               if (contiguous) {
                                                   detail::sum_token(plan, token, weigh, accumulate, stream, in, out);
                                                   continue;
                                               }
                                           }
                                           detail::sum_elements(plan, token, weigh, accumulate, in, out);
                                       }
                                   });
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
