// Moving rows between token order and expert order: the three loops under dispatch, combine and their backward.
//
//   gather_rows   out[r]  = w_r * in[token of r]           for every kept row r (w = 1, or the gate)
//   sum_rows      out[t] (+)= sum_c w_tc * in[row of (t, c)]   choices in order, dropped ones absent
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

inline void prefetch_row([[maybe_unused]] const void* row, [[maybe_unused]] index_t bytes) {
#if SWITCHYARD_DETAIL_VECTORS
    const auto* const line = static_cast<const char*>(row);
    for (index_t b = 0; b < bytes; b += 64) {
        __builtin_prefetch(line + b);
    }
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

/// Fixed order: four partial sums of packs, then halves.
template <class S>
S dot(const S* a, const S* b, index_t n) {
    constexpr int W = native_width<S>;
    using P = pack<S, W>;
    P sum[4] = {P::all(0), P::all(0), P::all(0), P::all(0)};
    index_t j = 0;
    for (; j + 4 * W <= n; j += 4 * W) {
        for (int i = 0; i < 4; ++i) {
            sum[i] = multiply_add(P::load(a + j + i * W), P::load(b + j + i * W), sum[i]);
        }
    }
    for (; j < n; j += W) {
        sum[0] = multiply_add(load_some(a + j, n - j), load_some(b + j, n - j), sum[0]);
    }
    return total((sum[0] + sum[1]) + (sum[2] + sum[3]));
}

/// Both are contiguous rows of the type sums are computed in.
template <class A, class B>
constexpr bool same_compute = std::is_same_v<std::remove_const_t<A>, compute_t<A>>&&
    std::is_same_v<std::remove_const_t<A>, std::remove_const_t<B>>;

}  // namespace detail

/// out[r] = w_r * in[token of r] for the kept rows; `weigh` takes the gate for w, else w = 1. Rows beyond are not
/// touched.
template <host_policy Policy, class S, class In, class Out>
void gather_rows(const Policy& policy, const plan_view<S>& plan, bool weigh, const matrix_view<const In>& in,
                 const matrix_view<Out>& out) {
    const index_t width = in.columns;
    const index_t kept = plan.offsets[plan.experts];
    const index_t row_bytes = width * static_cast<index_t>(sizeof(Out));
    const index_t rows = detail::rows_per_move(row_bytes);
    const bool stream = kept * row_bytes >= detail::streaming_bytes;
    const bool contiguous = in.rows_contiguous() && out.rows_contiguous();
    policy.parallel_for((kept + rows - 1) / rows, [&](index_t b) {
        const index_t last = std::min(kept, (b + 1) * rows);
        for (index_t r = b * rows; r < last; ++r) {
            const index_t token = plan.token_of(plan.order[r]);
            const compute_t<In> weight = weigh ? static_cast<compute_t<In>>(plan.gate[plan.order[r]]) : 1;
            if constexpr (std::is_same_v<In, Out> && std::is_same_v<In, compute_t<In>>) {
                if (contiguous) {
                    if (stream && r + 2 < last) {
                        detail::prefetch_row(in.row(plan.token_of(plan.order[r + 2])), row_bytes);
                    }
                    const In* const source = in.row(token);
                    if (weigh) {
                        using P = pack<In, native_width<In>>;
                        detail::write_row(out.row(r), width, stream, [&](index_t j, index_t n) {
                            return detail::load_some(source + j, n) * P::all(weight);
                        });
                    } else {
                        detail::write_row(out.row(r), width, stream,
                                          [&](index_t j, index_t n) { return detail::load_some(source + j, n); });
                    }
                    continue;
                }
            }
            for (index_t j = 0; j < width; ++j) {
                if constexpr (std::is_same_v<In, Out>) {
                    out(r, j) = weigh ? store_scalar<Out>(weight * load_scalar(in(token, j))) : in(token, j);
                } else {
                    out(r, j) = store_scalar<Out>(static_cast<compute_t<Out>>(weight * load_scalar(in(token, j))));
                }
            }
        }
        if (stream) {
            detail::finish_streaming();
        }
    });
}

namespace detail {

/// out[0 .. n) (+)= sum_c weight[c] * row[c][0 .. n) for `count` choices: at most 8 at a time stay in registers.
template <class S>
void sum_contiguous(S* out, index_t n, bool accumulate, bool stream, const S* const* row, const S* weight,
                    index_t count) {
    using P = pack<S, native_width<S>>;
    const auto sum_onto = [&](auto first) {
        write_row(out, n, stream, [&](index_t j, index_t lanes) {
            P sum = first(j, lanes);
            for (index_t c = 0; c < count; ++c) {
                sum = multiply_add(P::all(weight[c]), load_some(row[c] + j, lanes), sum);
            }
            return sum;
        });
    };
    if (accumulate) {
        sum_onto([&](index_t j, index_t lanes) { return load_some(out + j, lanes); });
    } else if (count == 1) {
        write_row(out, n, stream,
                  [&](index_t j, index_t lanes) { return P::all(weight[0]) * load_some(row[0] + j, lanes); });
    } else {
        sum_onto([](index_t, index_t) { return P::all(S(0)); });
    }
}

}  // namespace detail

/// out[t] (+)= sum_c w_tc * in[row of (t, c)], choices in order; a token without rows gets zeros (or keeps what it
/// has).
template <host_policy Policy, class S, class In, class Out>
void sum_rows(const Policy& policy, const plan_view<S>& plan, bool weigh, bool accumulate,
              const matrix_view<const In>& in, const matrix_view<Out>& out) {
    using C = compute_t<Out>;
    constexpr index_t group = 8;
    const index_t width = out.columns;
    const index_t row_bytes = width * static_cast<index_t>(sizeof(Out));
    const index_t rows = detail::rows_per_move(row_bytes);
    const bool stream = !accumulate && plan.choices <= group && plan.tokens * row_bytes >= detail::streaming_bytes;
    const bool contiguous = in.rows_contiguous() && out.rows_contiguous();
    const auto sum_token = [&](index_t token, [[maybe_unused]] bool prefetch) {
        const index_t start = token * plan.choices;
        if constexpr (detail::same_compute<In, Out>) {
            if (contiguous) {
                const In* row[group];
                In weight[group];
                index_t count = 0;
                bool onto = accumulate;
                for (index_t c = 0; c < plan.choices; ++c) {
                    const index_t r = plan.row_of(start + c);
                    if (r < 0) {
                        continue;
                    }
                    row[count] = in.row(r);
                    weight[count++] = weigh ? static_cast<In>(plan.gate[start + c]) : In(1);
                    if (count == group) {
                        detail::sum_contiguous(out.row(token), width, onto, stream, row, weight, count);
                        onto = true;
                        count = 0;
                    }
                }
                if (count > 0 || !onto) {
                    detail::sum_contiguous(out.row(token), width, onto, stream, row, weight, count);
                }
                return;
            }
        }
        for (index_t j = 0; j < width; ++j) {
            C sum = accumulate ? load_scalar(out(token, j)) : C(0);
            for (index_t c = 0; c < plan.choices; ++c) {
                const index_t r = plan.row_of(start + c);
                if (r >= 0) {
                    sum +=
                        (weigh ? static_cast<C>(plan.gate[start + c]) : C(1)) * static_cast<C>(load_scalar(in(r, j)));
                }
            }
            out(token, j) = store_scalar<Out>(sum);
        }
    };
    policy.parallel_for((plan.tokens + rows - 1) / rows, [&](index_t b) {
        const index_t last = std::min(plan.tokens, (b + 1) * rows);
        for (index_t token = b * rows; token < last; ++token) {
            if (stream && contiguous && token + 2 < last) {
                for (index_t c = 0; c < plan.choices; ++c) {
                    const index_t r = plan.row_of((token + 2) * plan.choices + c);
                    if (r >= 0) {
                        detail::prefetch_row(in.row(r), width * static_cast<index_t>(sizeof(In)));
                    }
                }
            }
            sum_token(token, stream);
        }
        if (stream) {
            detail::finish_streaming();
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

}  // namespace SWITCHYARD_TARGET
}  // namespace switchyard
