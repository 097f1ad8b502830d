// A plan's counts per expert in the formats of other consumers: int32 or int64, written into the caller's memory.
//
//   write_counts(policy, plan, plan_counts::ends, out);      // torch's grouped_mm: inclusive offsets without the 0
//   write_counts(policy, plan, plan_counts::rows, out);      // jax.lax.ragged_dot: rows of each expert
//
//   kind      numbers     number e is
//   asked     E           choices of expert e before capacity                 load_before
//   kept      E           those that have a row                               load_after
//   rows      E           rows of expert e, the padding of its last block included
//   offsets   E + 1       where its rows begin; the last number is the number of rows
//   ends      E           where its rows end, padding included: DeepGEMM's psum as transformers builds it
//   kept_ends E           where its rows end, padding left out: DeepGEMM's psum as DeepGEMM documents it
//
// O(E), on every policy; nothing is allocated, nothing synchronises. Counts that 32 bits may not hold are an error.
#pragma once

#include <switchyard/backend/policy.hpp>
#include <switchyard/core/config.hpp>
#include <switchyard/core/error.hpp>
#include <switchyard/core/matrix_view.hpp>
#include <switchyard/plan/plan.hpp>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <type_traits>

namespace switchyard {

/// Which numbers `write_counts` writes.
enum class plan_counts { asked, kept, rows, offsets, ends, kept_ends };

inline namespace SWITCHYARD_TARGET {

namespace detail {

/// A row or a column of a matrix.
template <class T, class Space>
struct number_list {
    T* data;
    index_t count;
    index_t stride;

    SWITCHYARD_HD T& operator[](index_t i) const { return data[i * stride]; }
};

template <class T, class Space>
number_list<T, Space> number_list_of(const char* name, const matrix_view<T, Space>& m) {
    using number = std::remove_const_t<T>;
    static_assert(std::is_same_v<number, std::int32_t> || std::is_same_v<number, std::int64_t>,
                  "switchyard: counts and ids are written as int32 or int64");
    require(m.rows == 1 || m.columns == 1, name, " is ", m.rows, " x ", m.columns,
            "; it must be one row or one column");
    return {m.data, m.rows * m.columns, m.columns == 1 ? m.row_stride : m.column_stride};
}

template <class S, class Space, class T>
struct write_count {
    plan_view<S, Space> plan;
    plan_counts kind;
    number_list<T, Space> out;

    SWITCHYARD_HD void operator()(index_t e) const {
        out[e] = static_cast<T>(kind == plan_counts::asked       ? plan.load_before[e]
                                : kind == plan_counts::kept      ? plan.load_after[e]
                                : kind == plan_counts::rows      ? plan.offsets[e + 1] - plan.offsets[e]
                                : kind == plan_counts::offsets   ? plan.offsets[e]
                                : kind == plan_counts::kept_ends ? plan.offsets[e] + plan.load_after[e]
                                                                 : plan.offsets[e + 1]);
    }
};

/// Rows that a list must have room for: on the CPU as many as there are, elsewhere the bound.
template <class Policy, class View>
index_t rows_to_write(const View& plan) {
    if constexpr (host_policy<Policy>) {
        return plan.offsets[plan.experts];
    } else {
        return plan.row_bound;
    }
}

/// The last expert whose rows begin at `row` or before; those without rows begin where the next one does.
template <class S, class Space>
SWITCHYARD_HD index_t expert_at(const plan_view<S, Space>& plan, index_t row) {
    index_t low = 0;
    index_t high = plan.experts;
    while (high - low > 1) {
        const index_t middle = low + (high - low) / 2;
        (plan.offsets[middle] <= row ? low : high) = middle;
    }
    return low;
}

}  // namespace detail

/// Writes one kind of counts. `out` is a row or a column of exactly as many int32 or int64 numbers.
template <class Policy, class Plan, matrix_like Out>
void write_counts(const Policy& policy, const Plan& plan, plan_counts kind, Out&& out) {
    const auto& p = view_of_plan(plan);
    using view = std::remove_cvref_t<decltype(p)>;
    using number = scalar_of<Out>;
    require_space<Policy, view, view_type<Out>>();
    require_finished(p);
    const auto list = detail::number_list_of("counts", as_view(out));
    const index_t count = p.experts + (kind == plan_counts::offsets ? 1 : 0);
    require(list.count == count, "counts has room for ", list.count, " numbers; there are ", count);
    const index_t most = std::max(p.row_bound, p.tokens * p.choices);
    require(most <= std::numeric_limits<number>::max(), "the plan may count up to ", most,
            " choices, which int32 cannot hold");
    for_each_index(policy, count,
                   detail::write_count<typename view::scalar, typename view::space, number>{p, kind, list});
}

}  // namespace SWITCHYARD_TARGET
}  // namespace switchyard
