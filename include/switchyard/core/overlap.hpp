// Which memory two views share, and so whether an output may be written while an input is still read.
//
// Only addresses are compared, so views of device memory are compared like those of the host. Shapes and strides count:
// the left and the right columns of one row-major matrix do not overlap, and neither do its even and its odd columns.
// Views whose address ranges meet and whose strides do not allow such an answer count as overlapping.
//
//   require_apart<Policy>("y", y, "rows", rows)                  fails if y and rows share a byte
//   require_apart_or_same<Policy>("d_rows", d_rows, "rows", rows)   the same view is right, too
#pragma once

#include <switchyard/core/config.hpp>
#include <switchyard/core/error.hpp>
#include <switchyard/core/matrix_view.hpp>

#include <cstdint>
#include <type_traits>
#include <utility>

namespace switchyard {

/// What two views have in common.
enum class sharing {
    nothing,
    everything,  ///< the same numbers: type, address, shape and strides
    some,        ///< other numbers, some of whose bytes are the same
};

inline namespace SWITCHYARD_TARGET {
namespace detail {

/// The bytes of a view: outer_count groups, outer_step apart, of inner_count elements, inner_step apart. Steps are not
/// negative, the inner one is not above the outer one, and a count of 1 has the step 0.
struct footprint {
    std::uintptr_t first = 0;
    index_t size = 0;  ///< of an element; 0 for a view of nothing
    index_t outer_count = 1, outer_step = 0;
    index_t inner_count = 1, inner_step = 0;

    index_t inner_width() const { return (inner_count - 1) * inner_step + size; }
    std::uintptr_t last() const {
        return first + static_cast<std::uintptr_t>((outer_count - 1) * outer_step + inner_width());
    }
};

template <class T, class Space>
footprint footprint_of(const matrix_view<T, Space>& view) {
    footprint bytes;
    if (view.data == nullptr || view.empty()) {
        return bytes;
    }
    bytes.first = reinterpret_cast<std::uintptr_t>(view.data);
    bytes.size = static_cast<index_t>(sizeof(T));
    const auto add = [&](index_t count, index_t stride, index_t& its_count, index_t& its_step) {
        if (count > 1 && stride != 0) {
            its_step = (stride < 0 ? -stride : stride) * bytes.size;
            its_count = count;
            bytes.first -= stride < 0 ? static_cast<std::uintptr_t>((count - 1) * its_step) : 0;
        }
    };
    add(view.rows, view.row_stride, bytes.outer_count, bytes.outer_step);
    add(view.columns, view.column_stride, bytes.inner_count, bytes.inner_step);
    if (bytes.inner_step > bytes.outer_step) {
        std::swap(bytes.inner_step, bytes.outer_step);
        std::swap(bytes.inner_count, bytes.outer_count);
    }
    return bytes;
}

/// Whether intervals of widths a and b, the second one `ahead` behind the first one's start, meet where both repeat
/// every `period`.
constexpr bool meet_in_period(index_t a, index_t b, index_t ahead, index_t period) {
    return ahead < a || ahead + b > period;
}

/// A footprint as groups that are `period` apart; false where it is no such thing.
inline bool group_by(footprint& bytes, index_t period) {
    if (bytes.outer_step != period) {
        if (bytes.inner_count > 1) {
            return false;
        }
        bytes.inner_count = bytes.outer_count;
        bytes.inner_step = bytes.outer_step;
        bytes.outer_count = 1;
        bytes.outer_step = 0;
    }
    return bytes.inner_width() <= period;
}

/// Whether footprints whose ranges of addresses meet share no byte all the same: their groups alternate, or the
/// elements within their groups do.
inline bool alternate(footprint a, footprint b) {
    const index_t period = a.outer_step > b.outer_step ? a.outer_step : b.outer_step;
    if (period == 0 || !group_by(a, period) || !group_by(b, period)) {
        return false;
    }
    const auto modulo = [](index_t distance, index_t step) { return ((distance % step) + step) % step; };
    const auto distance = static_cast<index_t>(b.first - a.first);
    if (!meet_in_period(a.inner_width(), b.inner_width(), modulo(distance, period), period)) {
        return true;
    }
    const index_t step = a.inner_step > b.inner_step ? a.inner_step : b.inner_step;
    const bool same_steps =
        (a.inner_count == 1 || a.inner_step == step) && (b.inner_count == 1 || b.inner_step == step);
    // Elements keep their places within a step from group to group where a period is a number of whole steps.
    return step > 0 && same_steps && period % step == 0 &&
           !meet_in_period(a.size, b.size, modulo(distance, step), step);
}

/// See sharing_of. Out of line: reached by views whose ranges meet, and those are rare.
SWITCHYARD_COLD inline bool share_bytes(const footprint& a, const footprint& b) { return !alternate(a, b); }

}  // namespace detail

/// What two views have in common.
template <class A, class B, class Space>
sharing sharing_of(const matrix_view<A, Space>& a, const matrix_view<B, Space>& b) {
    const detail::footprint of_a = detail::footprint_of(a);
    const detail::footprint of_b = detail::footprint_of(b);
    if (of_a.size == 0 || of_b.size == 0 || of_a.last() <= of_b.first || of_b.last() <= of_a.first ||
        !detail::share_bytes(of_a, of_b)) {
        return sharing::nothing;
    }
    const bool same = std::is_same_v<std::remove_const_t<A>, std::remove_const_t<B>> && of_a.first == of_b.first &&
                      a.rows == b.rows && a.columns == b.columns && (a.rows == 1 || a.row_stride == b.row_stride) &&
                      (a.columns == 1 || a.column_stride == b.column_stride);
    return same ? sharing::everything : sharing::some;
}

/// A policy that hands out addresses at which nothing lies (backend/measure.hpp) has none to compare.
template <class Policy>
constexpr bool has_addresses() {
    if constexpr (requires { Policy::has_addresses; }) {
        return Policy::has_addresses;
    } else {
        return true;
    }
}

/// Fails if an output shares memory with any of the views after it, each given as name and view.
template <class Policy, class Out, class In, class... More>
void require_apart(const char* name, const Out& out, const char* other_name, const In& other, const More&... more) {
    if constexpr (has_addresses<Policy>()) {
        require(sharing_of(out, other) == sharing::nothing, name, " shares memory with ", other_name,
                ": it must lie apart");
        if constexpr (sizeof...(More) > 0) {
            require_apart<Policy>(name, out, more...);
        }
    }
}

/// Fails if an output shares memory with an input and is not the same view of the same numbers.
template <class Policy, class Out, class In>
void require_apart_or_same(const char* name, const Out& out, const char* other_name, const In& other) {
    if constexpr (has_addresses<Policy>()) {
        require(sharing_of(out, other) != sharing::some, name, " shares memory with ", other_name,
                " and is another view: it must be the same view, or lie apart");
    }
}

}  // namespace SWITCHYARD_TARGET
}  // namespace switchyard
