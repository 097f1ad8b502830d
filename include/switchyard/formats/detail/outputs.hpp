// What the headers of this room share: lists and tables that are written, and the two ways to go through them that an
// index at a time is too slow for on a CPU.
#pragma once

#include <switchyard/backend/policy.hpp>
#include <switchyard/core/config.hpp>
#include <switchyard/core/error.hpp>
#include <switchyard/core/matrix_view.hpp>
#include <switchyard/core/sizes.hpp>
#include <switchyard/plan/counts.hpp>
#include <switchyard/plan/plan.hpp>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <type_traits>
#include <utility>

namespace switchyard {
inline namespace SWITCHYARD_TARGET {
namespace detail {

/// The type of a plan's view.
template <class Plan>
using plan_view_of = std::remove_cvref_t<decltype(view_of_plan(std::declval<const Plan&>()))>;

/// A finished plan in the memory of the policy, as are the outputs.
template <class Policy, class... Views, class Plan>
const plan_view_of<Plan>& plan_to_write(const Plan& plan) {
    const auto& p = view_of_plan(plan);
    require_space<Policy, plan_view_of<Plan>, Views...>();
    require_finished(p);
    return p;
}

template <class T>
constexpr void require_integers() {
    static_assert(std::is_same_v<T, std::int32_t> || std::is_same_v<T, std::int64_t>,
                  "switchyard: counts, rows and ids are written as int32 or int64");
}

/// Masks are bytes: 0 or 1.
template <class T>
constexpr void require_bytes() {
    static_assert(std::is_same_v<T, std::uint8_t> || std::is_same_v<T, bool>,
                  "switchyard: masks are written as bool or uint8");
}

/// A number that a format holds fits its type.
template <class T>
void require_holds(const char* name, index_t most) {
    require(most <= static_cast<index_t>(std::numeric_limits<T>::max()), name, " may hold ", most,
            ", which int32 cannot");
}

template <class View>
void require_shape(const char* name, const View& out, index_t rows, index_t columns) {
    require(out.rows == rows && out.columns == columns, name, " is ", out.rows, " x ", out.columns, "; it must be ",
            rows, " x ", columns);
}

/// T x k numbers, one for each choice: by position where they lie evenly, which needs no division.
template <class T, class Space>
struct choice_table {
    matrix_view<T, Space> table;
    bool is_even;
    index_t stride;

    SWITCHYARD_HD T& operator[](index_t position) const {
        return is_even ? table.data[position * stride] : table(position / table.columns, position % table.columns);
    }
};

template <class View, class T, class Space>
choice_table<T, Space> choice_table_of(const char* name, const View& plan, const matrix_view<T, Space>& out) {
    require_shape(name, out, plan.tokens, plan.choices);
    const bool is_column = out.columns == 1;
    const bool is_even = is_column || out.rows <= 1 || out.row_stride == out.columns * out.column_stride;
    return {out, is_even, is_column ? out.row_stride : out.column_stride};
}

/// n / divisor for n in 0 .. most, by a product: a division takes ten times as long. Where most * divisor exceeds 32
/// bits it is one all the same.
struct quotient {
    std::uint64_t divisor;
    std::uint64_t factor;  ///< 2^32 / divisor, rounded up; 0 to divide

    /// n factor / 2^32 = n / divisor + n r / (divisor 2^32) with r < divisor: the same floor while n divisor < 2^32.
    static quotient by(index_t divisor, index_t most) {
        const auto d = static_cast<std::uint64_t>(divisor);
        constexpr auto bits_32 = std::uint64_t{1} << 32;
        const auto n = static_cast<std::uint64_t>(most);
        return n < bits_32 && d < bits_32 && n * d < bits_32 ? quotient{d, (bits_32 + d - 1) / d} : quotient{d, 0};
    }
    SWITCHYARD_HD index_t of(std::uint64_t n) const {
        return static_cast<index_t>(factor != 0 ? n * factor >> 32 : n / divisor);
    }
};

/// plan_view::row_of without a condition around what it reads, so that it can be a vector's lanes.
template <class S, class Space>
SWITCHYARD_HD index_t row_or_none(const plan_view<S, Space>& plan, index_t position) {
    const std::int32_t slot = plan.slot[position];
    const std::int32_t expert = plan.expert[position];
    const index_t row = plan.offsets[slot < 0 ? 0 : expert] + slot;
    return slot < 0 ? -1 : row;
}

template <class F>
struct ranges_of_one {
    F f;

    SWITCHYARD_HD void operator()(index_t i) const { f(i, i + 1); }
};

/// Calls f(first, last) for ranges that make up 0 .. count: long ones on a CPU, of one on a device.
template <class Policy, class F>
void for_each_range(const Policy& policy, index_t count, const F& f) {
    if constexpr (host_policy<Policy>) {
        constexpr index_t grain = 4096;
        policy.parallel_for((count + grain - 1) / grain,
                            [&](index_t b) { f(b * grain, std::min(count, (b + 1) * grain)); });
    } else {
        for_each_index(policy, count, ranges_of_one<F>{f});
    }
}

/// One number of the plan's, for a list of one.
template <class T, class Space>
struct write_number {
    const std::int64_t* number;
    number_list<T, Space> out;

    SWITCHYARD_HD void operator()(index_t) const { out[0] = static_cast<T>(*number); }
};

/// Calls f(b) for blocks each of which is work enough for a thread.
template <class Policy, class F>
void for_each_block(const Policy& policy, index_t blocks, const F& f) {
    if constexpr (host_policy<Policy>) {
        policy.parallel_for(blocks, f);
    } else {
        for_each_index(policy, blocks, f);
    }
}

template <class T, class Space>
struct fill_number {
    matrix_view<T, Space> out;
    T number;

    SWITCHYARD_HD void operator()(index_t i) const { out(i / out.columns, i % out.columns) = number; }
};

/// Fills a table and calls place(row) for each row: on a CPU row by row, so that a row is written while it is in cache.
template <class Policy, class T, class Space, class Place>
void fill_and_place(const Policy& policy, const matrix_view<T, Space>& out, T number, const Place& place) {
    if constexpr (host_policy<Policy>) {
        constexpr index_t grain = 64;
        policy.parallel_for((out.rows + grain - 1) / grain, [&](index_t b) {
            const index_t first = b * grain;
            const index_t last = std::min(out.rows, first + grain);
            if (out.rows_contiguous() && (out.row_stride == out.columns || out.rows == 1)) {
                std::fill(out.row(first), out.row(first) + (last - first) * out.columns, number);
            } else {
                for (index_t i = first; i < last; ++i) {
                    for (index_t j = 0; j < out.columns; ++j) {
                        out(i, j) = number;
                    }
                }
            }
            for (index_t i = first; i < last; ++i) {
                place(i);
            }
        });
    } else {
        for_each_index(policy, product_of_sizes("numbers", out.rows, out.columns), fill_number<T, Space>{out, number});
        for_each_index(policy, out.rows, place);
    }
}

}  // namespace detail
}  // namespace SWITCHYARD_TARGET
}  // namespace switchyard
