// Where experts end in expert order, with any padding: MegaBlocks' bins and padded_bins, torch's grouped_mm.
//
//   write_bins(policy, plan, 128, padded_bins);      // running sums of loads, each rounded up to a multiple of 128
//   write_bins(policy, plan, 1, bins);               // running sums of the loads themselves
//
//   out  [E] int32 or int64   number e: the sum over experts 0 .. e of load_after, each rounded up to `block`
//
// The plan's own row_block does not matter: a plan in blocks of 128 has the same bins and padded bins. For the plan's
// own layout, `write_counts` has ends, kept ends and offsets (plan/counts.hpp); `ends` is the same as `write_bins` with
// the plan's row_block. An expert without choices takes no block; torchao gives it one.
//
// O(E) on a CPU, a thread for each expert with O(E) work on a device; nothing is allocated, nothing synchronises.
#pragma once

#include <switchyard/backend/policy.hpp>
#include <switchyard/core/config.hpp>
#include <switchyard/core/error.hpp>
#include <switchyard/core/matrix_view.hpp>
#include <switchyard/formats/detail/outputs.hpp>
#include <switchyard/plan/counts.hpp>
#include <switchyard/plan/plan.hpp>

#include <algorithm>
#include <cstdint>

namespace switchyard {
inline namespace SWITCHYARD_TARGET {

namespace detail {

template <class S, class Space, class T>
struct write_bin {
    plan_view<S, Space> plan;
    index_t block;
    number_list<T, Space> out;

    SWITCHYARD_HD index_t padded(index_t expert) const { return (plan.load_after[expert] + block - 1) / block * block; }
    SWITCHYARD_HD void operator()(index_t first, index_t last) const {
        index_t end = 0;
        for (index_t e = 0; e < first; ++e) {
            end += padded(e);
        }
        for (index_t e = first; e < last; ++e) {
            end += padded(e);
            out[e] = static_cast<T>(end);
        }
    }
};

}  // namespace detail

/// See above; `block` is at least 1.
template <class Policy, class Plan, matrix_like Out>
void write_bins(const Policy& policy, const Plan& plan, index_t block, Out&& out) {
    const auto& p = detail::plan_to_write<Policy, view_type<Out>>(plan);
    using view = detail::plan_view_of<Plan>;
    using number = scalar_of<Out>;
    require(block >= 1, "block = ", block, " must be at least 1");
    const auto list = detail::number_list_of("bins", as_view(out));
    require(list.count == p.experts, "bins has room for ", list.count, " numbers; there are ", p.experts);
    detail::require_holds<number>("bins", row_bound(p.tokens, p.choices, p.experts, p.capacity, block));
    detail::for_each_range(policy, p.experts,
                           detail::write_bin<typename view::scalar, typename view::space, number>{p, block, list});
}

}  // namespace SWITCHYARD_TARGET
}  // namespace switchyard
