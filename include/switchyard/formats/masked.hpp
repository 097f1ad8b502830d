// DeepGEMM's masked layout: a table of `most` rows for each expert, of which the first load_after[e] are used.
//
//   const index_t most = masked_rows(plan);
//   write_masked(policy, plan, choices, counts);
//
//   choices  [E, most] int32 or int64   the token * k + choice of row m of expert e, -1 beyond its load
//   counts   [E] int32 or int64         masked_m: the expert's load after capacity
//
// Row m of expert e is the choice with slot m, whatever the plan's layout. Choices without a row are nowhere. `most` is
// any number that no load exceeds: min(C, T) for tokens that name an expert once, which masked_rows returns and device
// policies require; CPU policies check the loads. A plan with `may_repeat` may give an expert up to T k rows: on a
// device, those beyond `most` are left out of both arrays.
//
// O(E most), on every policy, in two launches; nothing is allocated, nothing synchronises. Outputs must not overlap the
// plan or each other.
#pragma once

#include <switchyard/backend/policy.hpp>
#include <switchyard/core/config.hpp>
#include <switchyard/core/error.hpp>
#include <switchyard/core/matrix_view.hpp>
#include <switchyard/core/sizes.hpp>
#include <switchyard/formats/detail/outputs.hpp>
#include <switchyard/plan/counts.hpp>
#include <switchyard/plan/plan.hpp>

#include <algorithm>
#include <cstdint>

namespace switchyard {
inline namespace SWITCHYARD_TARGET {

/// The most rows an expert has in any plan of this shape, where no token names it twice: min(C, T).
template <class Plan>
index_t masked_rows(const Plan& plan) {
    const auto& p = view_of_plan(plan);
    return std::min(p.capacity, p.tokens);
}

namespace detail {

/// Rows of an expert that a table of `most` rows has to hold.
template <class Policy, class View>
void require_room_for_loads(const char* name, const View& p, index_t most) {
    index_t load = masked_rows(p);
    if constexpr (host_policy<Policy>) {
        load = p.experts > 0 ? *std::max_element(p.load_after, p.load_after + p.experts) : 0;
    }
    require(most >= load, name, " has room for ", most, " rows per expert; the plan has up to ", load);
}

template <class S, class Space, class T>
struct write_masked_row {
    plan_view<S, Space> plan;
    matrix_view<T, Space> out;

    SWITCHYARD_HD void operator()(index_t first, index_t last) const {
        index_t expert = first / out.columns;
        index_t slot = first % out.columns;
        for (index_t i = first; i < last; ++expert, slot = 0) {
            const index_t load = plan.load_after[expert];
            const index_t end = slot + last - i < out.columns ? slot + last - i : out.columns;
            const index_t kept_end = load < slot ? slot : load < end ? load : end;
            const std::int64_t* const order = plan.order + plan.offsets[expert];
            T* const row = out.row(expert);
            i += end - slot;
            for (; slot < kept_end; ++slot) {
                row[slot * out.column_stride] = static_cast<T>(order[slot]);
            }
            for (; slot < end; ++slot) {
                row[slot * out.column_stride] = T(-1);
            }
        }
    }
};

template <class S, class Space, class T>
struct write_masked_count {
    plan_view<S, Space> plan;
    number_list<T, Space> out;
    index_t most;

    SWITCHYARD_HD void operator()(index_t e) const {
        out[e] = static_cast<T>(plan.load_after[e] < most ? plan.load_after[e] : most);
    }
};

}  // namespace detail

/// See above.
template <class Policy, class Plan, matrix_like Choices, matrix_like Counts>
void write_masked(const Policy& policy, const Plan& plan, Choices&& choices, Counts&& counts) {
    const auto& p = detail::plan_to_write<Policy, view_type<Choices>, view_type<Counts>>(plan);
    using view = detail::plan_view_of<Plan>;
    using S = typename view::scalar;
    using Space = typename view::space;
    using choice = scalar_of<Choices>;
    using number = scalar_of<Counts>;
    const auto table = as_view(choices);
    const auto list = detail::number_list_of("counts", as_view(counts));
    detail::require_integers<choice>();
    detail::require_shape("choices", table, p.experts, table.columns);
    require(list.count == p.experts, "counts has room for ", list.count, " numbers; there are ", p.experts);
    detail::require_room_for_loads<Policy>("choices", p, table.columns);
    detail::require_holds<choice>("choices", p.tokens * p.choices);
    detail::require_holds<number>("counts", std::min(table.columns, p.tokens * p.choices));
    detail::for_each_range(policy, product_of_sizes("rows", table.rows, table.columns),
                           detail::write_masked_row<S, Space, choice>{p, table});
    for_each_index(policy, p.experts, detail::write_masked_count<S, Space, number>{p, list, table.columns});
}

}  // namespace SWITCHYARD_TARGET
}  // namespace switchyard
