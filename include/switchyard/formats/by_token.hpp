// A plan compressed by token, where tokens have different numbers of rows: SonicMoE's general form.
//
//   const index_t most = p.tokens * p.choices;       // of the lists; the last offset says how many entries there are
//   write_token_lists(policy, plan, offsets, rows, experts, weights, scratch);
//
//   offsets  [T + 1] int32 or int64   entries offsets[t] .. offsets[t + 1] are token t's kept choices, in choice order
//   rows     [N] int32 or int64       the row of each entry: SonicMoE's s_reverse_scatter_idx
//   experts  [N] int32 or int64       its expert
//   weights  [N], any storage type    its gate
//
// N is at least T k (on the CPU: the kept choices). Beyond the entries rows and experts are -1 and weights 0. Choices
// without a row, dropped or given as -1, have no entry; a token without any has none. Without drops and -1, entry
// t k + c is choice c of token t, and the lists by row of formats/rows.hpp are the other half of that format: the
// tokens of rows are x_gather_idx, the choices of rows s_scatter_idx, and offsets of experts come from `write_counts`.
//
// O(T k), on every policy; scratch from the workspace, nothing is allocated after the first step of a shape, nothing
// synchronises. Outputs lie apart from the plan and from each other.
#pragma once

#include <switchyard/backend/policy.hpp>
#include <switchyard/core/config.hpp>
#include <switchyard/core/error.hpp>
#include <switchyard/core/matrix_view.hpp>
#include <switchyard/core/scalar_traits.hpp>
#include <switchyard/core/sizes.hpp>
#include <switchyard/core/workspace.hpp>
#include <switchyard/formats/detail/outputs.hpp>
#include <switchyard/plan/counts.hpp>
#include <switchyard/plan/plan.hpp>

#include <algorithm>
#include <cstdint>

namespace switchyard {
inline namespace SWITCHYARD_TARGET {

namespace detail {

/// ends[t] = kept choices of token t.
template <class S, class Space>
struct count_kept_of_token {
    plan_view<S, Space> plan;
    std::int64_t* ends;

    SWITCHYARD_HD void operator()(index_t token) const {
        const std::int32_t* const slot = plan.slot + token * plan.choices;
        index_t kept = 0;
        for (index_t c = 0; c < plan.choices; ++c) {
            kept += slot[c] >= 0 ? 1 : 0;
        }
        ends[token] = kept;
    }
};

/// Running sums in place, on the CPU.
template <host_policy Policy>
void sum_up(const Policy& policy, std::int64_t* values, index_t count, workspace& scratch) {
    constexpr index_t grain = 4096;
    const index_t blocks = (count + grain - 1) / grain;
    auto* const totals = scratch.take<std::int64_t>(blocks);
    policy.parallel_for(blocks, [&](index_t b) {
        std::int64_t sum = 0;
        for (index_t i = b * grain; i < std::min(count, (b + 1) * grain); ++i) {
            sum += values[i];
            values[i] = sum;
        }
        totals[b] = sum;
    });
    std::int64_t before = 0;
    for (index_t b = 0; b < blocks; ++b) {
        const std::int64_t own = totals[b];
        totals[b] = before;
        before += own;
    }
    policy.parallel_for(blocks, [&](index_t b) {
        for (index_t i = b * grain; b > 0 && i < std::min(count, (b + 1) * grain); ++i) {
            values[i] += totals[b];
        }
    });
}

/// On a device.
template <class Policy, class Workspace>
void sum_up(const Policy& policy, std::int64_t* values, index_t count, Workspace& scratch) {
    if (count > 0) {
        policy.inclusive_sum(values, count, scratch);
    }
}

/// A token's entries, and where they begin.
template <class S, class Space, class Offset, class Row, class Expert, class Weight>
struct write_token_entries {
    plan_view<S, Space> plan;
    const std::int64_t* ends;
    number_list<Offset, Space> offsets;
    number_list<Row, Space> rows;
    number_list<Expert, Space> experts;
    number_list<Weight, Space> weights;

    SWITCHYARD_HD void operator()(index_t token) const {
        index_t entry = token > 0 ? ends[token - 1] : 0;
        offsets[token] = static_cast<Offset>(entry);
        if (token + 1 == plan.tokens) {
            offsets[plan.tokens] = static_cast<Offset>(ends[token]);
        }
        for (index_t i = token * plan.choices; i < (token + 1) * plan.choices; ++i) {
            if (plan.slot[i] >= 0) {
                const std::int32_t expert = plan.expert[i];
                rows[entry] = static_cast<Row>(plan.offsets[expert] + plan.slot[i]);
                experts[entry] = static_cast<Expert>(expert);
                weights[entry] = store_scalar<Weight>(static_cast<compute_t<Weight>>(plan.gate[i]));
                ++entry;
            }
        }
    }
};

/// The offset of a plan without tokens.
template <class T, class Space>
struct write_zero {
    number_list<T, Space> out;

    SWITCHYARD_HD void operator()(index_t i) const { out[i] = T(0); }
};

/// What lists have beyond all entries.
template <class Space, class Row, class Expert, class Weight>
struct end_token_lists {
    const std::int64_t* kept;  ///< null where there are no tokens
    number_list<Row, Space> rows;
    number_list<Expert, Space> experts;
    number_list<Weight, Space> weights;

    SWITCHYARD_HD void operator()(index_t first, index_t last) const {
        const index_t entries = kept != nullptr ? *kept : 0;
        for (index_t i = first > entries ? first : entries; i < last; ++i) {
            rows[i] = Row(-1);
            experts[i] = Expert(-1);
            weights[i] = store_scalar<Weight>(compute_t<Weight>(0));
        }
    }
};

/// Weights as a list: any storage type.
template <class T, class Space>
number_list<T, Space> weight_list_of(const matrix_view<T, Space>& m) {
    static_assert(storage_scalar<T>, "switchyard: weights are numbers that routing stores");
    require(m.rows == 1 || m.columns == 1, "weights is ", m.rows, " x ", m.columns,
            "; it must be one row or one column");
    return {m.data, m.rows * m.columns, m.columns == 1 ? m.row_stride : m.column_stride};
}

}  // namespace detail

/// See above.
template <class Policy, class Plan, matrix_like Offsets, matrix_like Rows, matrix_like Experts, matrix_like Weights,
          class Workspace>
void write_token_lists(const Policy& policy, const Plan& plan, Offsets&& offsets, Rows&& rows, Experts&& experts,
                       Weights&& weights, Workspace& scratch) {
    const auto& p =
        detail::plan_to_write<Policy, view_type<Offsets>, view_type<Rows>, view_type<Experts>, view_type<Weights>>(
            plan);
    using view = detail::plan_view_of<Plan>;
    using S = typename view::scalar;
    using Space = typename view::space;
    using offset = scalar_of<Offsets>;
    using row = scalar_of<Rows>;
    using expert = scalar_of<Experts>;
    using weight = scalar_of<Weights>;
    const auto begin = detail::number_list_of("offsets", as_view(offsets));
    const auto row_list = detail::number_list_of("rows", as_view(rows));
    const auto expert_list = detail::number_list_of("experts", as_view(experts));
    const auto weight_list = detail::weight_list_of(as_view(weights));
    require(begin.count == p.tokens + 1, "offsets has room for ", begin.count, " numbers; there are ", p.tokens + 1);
    index_t entries = p.tokens * p.choices;
    if constexpr (host_policy<Policy>) {
        entries = p.totals->kept;
    }
    require(row_list.count >= entries, "rows has room for ", row_list.count, " entries; the plan has ", entries);
    require(expert_list.count == row_list.count, "experts has room for ", expert_list.count, " entries; rows for ",
            row_list.count);
    require(weight_list.count == row_list.count, "weights has room for ", weight_list.count, " entries; rows for ",
            row_list.count);
    detail::require_holds<offset>("offsets", p.tokens * p.choices);
    detail::require_holds<row>("rows", p.row_bound);
    const auto scope = scratch.open();
    auto* const ends = scratch.template take<std::int64_t>(p.tokens);
    for_each_index(policy, p.tokens, detail::count_kept_of_token<S, Space>{p, ends});
    detail::sum_up(policy, ends, p.tokens, scratch);
    for_each_index(policy, p.tokens,
                   detail::write_token_entries<S, Space, offset, row, expert, weight>{p, ends, begin, row_list,
                                                                                      expert_list, weight_list});
    detail::for_each_range(policy, row_list.count,
                           detail::end_token_lists<Space, row, expert, weight>{
                               p.tokens > 0 ? ends + p.tokens - 1 : nullptr, row_list, expert_list, weight_list});
    if (p.tokens == 0) {
        for_each_index(policy, 1, detail::write_zero<offset, Space>{begin});
    }
}

}  // namespace SWITCHYARD_TARGET
}  // namespace switchyard
