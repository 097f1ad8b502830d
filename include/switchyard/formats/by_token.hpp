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
// synchronises. On Thrust its scans take memory of their own from the execution policy, and may wait, as they do for
// slots (backend/thrust.hpp). Outputs must not overlap the plan or each other.
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

/// Tokens whose entries one thread writes: many on a CPU, where their number alone is kept.
template <class Policy>
inline constexpr index_t tokens_of_list = host_policy<Policy> ? 1024 : 1;

/// ends[b] = kept choices of a block of tokens.
template <class S, class Space>
struct count_kept_of_block {
    plan_view<S, Space> plan;
    index_t rows;
    std::int64_t* ends;

    SWITCHYARD_HD void operator()(index_t block) const {
        const index_t end = (block + 1) * rows < plan.tokens ? (block + 1) * rows : plan.tokens;
        std::int32_t kept = 0;
        for (index_t i = block * rows * plan.choices; i < end * plan.choices; ++i) {
            kept += plan.slot[i] >= 0 ? 1 : 0;
        }
        ends[block] = kept;
    }
};

/// Running sums in place.
template <class Policy, class Workspace>
void sum_up(const Policy& policy, std::int64_t* values, index_t count, Workspace& scratch) {
    if constexpr (host_policy<Policy>) {
        for (index_t i = 1; i < count; ++i) {
            values[i] += values[i - 1];
        }
    } else if (count > 0) {
        policy.inclusive_sum(values, count, scratch);
    }
}

/// The entries of a block of tokens, and where each token's begin.
template <class S, class Space, class Offset, class Row, class Expert, class Weight>
struct write_token_entries {
    plan_view<S, Space> plan;
    index_t rows_of_block;
    const std::int64_t* ends;
    number_list<Offset, Space> offsets;
    number_list<Row, Space> rows;
    number_list<Expert, Space> experts;
    number_list<Weight, Space> weights;

    /// Where every choice has a row: nothing to look at.
    SWITCHYARD_HD void write_all(index_t first, index_t end, index_t entry) const {
        for (index_t token = first; token < end + (end == plan.tokens ? 1 : 0); ++token) {
            offsets[token] = static_cast<Offset>(entry + (token - first) * plan.choices);
        }
        const index_t start = first * plan.choices;
        const index_t count = (end - first) * plan.choices;
        for (index_t i = 0; i < count; ++i) {
            rows[entry + i] = static_cast<Row>(row_or_none(plan, start + i));
        }
        for (index_t i = 0; i < count; ++i) {
            experts[entry + i] = static_cast<Expert>(plan.expert[start + i]);
        }
        for (index_t i = 0; i < count; ++i) {
            weights[entry + i] = store_scalar<Weight>(static_cast<compute_t<Weight>>(plan.gate[start + i]));
        }
    }
    SWITCHYARD_HD void operator()(index_t block) const {
        index_t entry = block > 0 ? ends[block - 1] : 0;
        const index_t first = block * rows_of_block;
        const index_t end = first + rows_of_block < plan.tokens ? first + rows_of_block : plan.tokens;
        if (ends[block] - entry == (end - first) * plan.choices) {
            write_all(first, end, entry);
            return;
        }
        for (index_t token = first; token < end; ++token) {
            offsets[token] = static_cast<Offset>(entry);
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
        if (end == plan.tokens) {
            offsets[plan.tokens] = static_cast<Offset>(entry);
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
    constexpr index_t of_block = detail::tokens_of_list<Policy>;
    const index_t blocks = (p.tokens + of_block - 1) / of_block;
    auto* const ends = scratch.template take<std::int64_t>(blocks);
    detail::for_each_block(policy, blocks, detail::count_kept_of_block<S, Space>{p, of_block, ends});
    detail::sum_up(policy, ends, blocks, scratch);
    detail::for_each_block(policy, blocks,
                           detail::write_token_entries<S, Space, offset, row, expert, weight>{
                               p, of_block, ends, begin, row_list, expert_list, weight_list});
    detail::for_each_range(policy, row_list.count,
                           detail::end_token_lists<Space, row, expert, weight>{blocks > 0 ? ends + blocks - 1 : nullptr,
                                                                               row_list, expert_list, weight_list});
    if (p.tokens == 0) {
        for_each_index(policy, 1, detail::write_zero<offset, Space>{begin});
    }
}

}  // namespace SWITCHYARD_TARGET
}  // namespace switchyard
