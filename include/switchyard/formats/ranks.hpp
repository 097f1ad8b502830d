// Which ranks a token goes to, where each rank has an equal share of the experts: what DeepEP's dispatch takes.
//
//   write_rank_layout(policy, plan, ranks, tokens_per_rank, token_in_rank, scratch);
//   write_counts(policy, plan, plan_counts::kept, tokens_per_expert);     // num_tokens_per_expert (plan/counts.hpp)
//   write_ids(policy, plan, topk_idx);                                    // int64, -1 = none (formats/choices.hpp)
//
//   tokens_per_rank  [R] int32 or int64    tokens with a row on the rank; a token counts once per rank
//   token_in_rank    [T, R] bool or uint8  which
//
// Rank r has experts r E / R .. (r + 1) E / R - 1, so R divides E; which experts a rank really has is a permutation of
// their ids, made before. With R nodes instead of ranks these are num_tokens_per_rdma_rank. Choices without a row,
// dropped or given as -1, go nowhere, and neither does a token without any.
//
// O(T (k + R)), on every policy; scratch from the workspace, nothing is allocated after the first step of a shape,
// nothing synchronises. Outputs must not overlap the plan or each other.
#pragma once

#include <switchyard/backend/policy.hpp>
#include <switchyard/core/config.hpp>
#include <switchyard/core/error.hpp>
#include <switchyard/core/matrix_view.hpp>
#include <switchyard/core/sizes.hpp>
#include <switchyard/core/workspace.hpp>
#include <switchyard/formats/detail/outputs.hpp>
#include <switchyard/plan/counts.hpp>
#include <switchyard/plan/plan.hpp>

#include <bit>
#include <cstdint>
#include <cstring>

namespace switchyard {
inline namespace SWITCHYARD_TARGET {

namespace detail {

/// A block of tokens: which ranks each goes to, and how many go to each rank.
template <class S, class Space, class T>
struct mark_ranks {
    plan_view<S, Space> plan;
    matrix_view<T, Space> in_rank;
    quotient rank_of;
    index_t rows;         ///< tokens of a block
    std::int64_t* count;  ///< [blocks, R]

    /// Dense marks of eights of ranks: eight bytes of a token are a number, and sums of 255 such numbers are eight
    /// sums. `K` choices per token, or as many as there are: without a loop over them, tokens become a vector's lanes.
    template <int K>
    SWITCHYARD_HD void mark_eights(index_t first, index_t last, std::int64_t* counts) const {
        const std::int32_t* const expert = plan.expert;
        const std::int32_t* const slot = plan.slot;
        const index_t k = K > 0 ? K : plan.choices;
        const index_t ranks = in_rank.columns;
        const std::uint64_t factor = rank_of.factor;
        T* const marks = in_rank.data;
        for (index_t start = first; start < last; start += 255) {
            const index_t end = start + 255 < last ? start + 255 : last;
            for (index_t from = 0; from < ranks; from += 8) {
                std::uint64_t sum = 0;
                for (index_t token = start; token < end; ++token) {
                    std::uint64_t bytes = 0;
                    for (index_t c = 0; c < k; ++c) {
                        const std::uint64_t rank = static_cast<std::uint32_t>(expert[token * k + c]) * factor >> 32;
                        const std::uint64_t has_row = slot[token * k + c] >= 0 ? 1 : 0;
                        const std::uint64_t is_here = rank >> 3 == static_cast<std::uint64_t>(from) >> 3 ? has_row : 0;
                        bytes |= is_here << 8 * (rank & 7);
                    }
                    std::memcpy(marks + token * ranks + from, &bytes, sizeof bytes);
                    sum += bytes;
                }
                for (int r = 0; r < 8; ++r) {
                    counts[from + r] += static_cast<std::int64_t>(sum >> 8 * r & 255);
                }
            }
        }
    }
    SWITCHYARD_HD void operator()(index_t block) const {
        // In local variables: bytes that are written could otherwise be these.
        const std::int32_t* const expert = plan.expert;
        const std::int32_t* const slot = plan.slot;
        const matrix_view<T, Space> marks = in_rank;
        const quotient rank_of_expert = rank_of;
        const index_t k = plan.choices;
        std::int64_t* const counts = count + block * marks.columns;
        for (index_t rank = 0; rank < marks.columns; ++rank) {
            counts[rank] = 0;
        }
        const index_t last = (block + 1) * rows < plan.tokens ? (block + 1) * rows : plan.tokens;
        if (std::endian::native == std::endian::little && marks.columns % 8 == 0 && marks.columns <= 64 &&
            marks.column_stride == 1 && marks.row_stride == marks.columns && rank_of_expert.factor != 0) {
            if (k == 2) {
                mark_eights<2>(block * rows, last, counts);
            } else {
                mark_eights<0>(block * rows, last, counts);
            }
            return;
        }
        for (index_t token = block * rows; token < last; ++token) {
            for (index_t rank = 0; rank < marks.columns; ++rank) {
                marks(token, rank) = T(0);
            }
            for (index_t i = token * k; i < (token + 1) * k; ++i) {
                if (slot[i] >= 0) {
                    const index_t rank = rank_of_expert.of(static_cast<std::uint32_t>(expert[i]));
                    T& is_in = marks(token, rank);
                    counts[rank] += is_in != T(0) ? 0 : 1;
                    is_in = T(1);
                }
            }
        }
    }
};

struct add_counts {
    SWITCHYARD_HD std::int64_t operator()(std::int64_t a, std::int64_t b) const { return a + b; }
};

template <class T, class Space>
struct write_rank_count {
    const std::int64_t* counts;
    number_list<T, Space> out;

    SWITCHYARD_HD void operator()(index_t rank) const { out[rank] = static_cast<T>(counts[rank]); }
};

/// The first R counts become those of all blocks.
template <host_policy Policy, class Mark>
const std::int64_t* count_ranks(const Policy& policy, const Mark& mark, index_t blocks, index_t ranks, workspace&) {
    for_each_block(policy, blocks, mark);
    for (index_t i = ranks; i < blocks * ranks; ++i) {
        mark.count[i % ranks] += mark.count[i];
    }
    return mark.count;
}

template <class Policy, class Mark, class Workspace>
const std::int64_t* count_ranks(const Policy& policy, const Mark& mark, index_t blocks, index_t ranks,
                                Workspace& scratch) {
    for_each_block(policy, blocks, mark);
    return fold(policy, mark.count, blocks, ranks, add_counts{}, scratch);
}

}  // namespace detail

/// See above. `ranks` is R, at least 1 and a divisor of E.
template <class Policy, class Plan, matrix_like Counts, matrix_like InRank, class Workspace>
void write_rank_layout(const Policy& policy, const Plan& plan, index_t ranks, Counts&& tokens_per_rank,
                       InRank&& token_in_rank, Workspace& scratch) {
    const auto& p = detail::plan_to_write<Policy, view_type<Counts>, view_type<InRank>>(plan);
    using view = detail::plan_view_of<Plan>;
    using S = typename view::scalar;
    using Space = typename view::space;
    using number = scalar_of<Counts>;
    using mark = scalar_of<InRank>;
    detail::require_bytes<mark>();
    require(ranks >= 1 && p.experts >= ranks && p.experts % ranks == 0, "ranks = ", ranks,
            " must be at least 1 and divide E = ", p.experts);
    const auto list = detail::number_list_of("tokens_per_rank", as_view(tokens_per_rank));
    require(list.count == ranks, "tokens_per_rank has room for ", list.count, " numbers; there are ", ranks, " ranks");
    const auto table = as_view(token_in_rank);
    detail::require_shape("token_in_rank", table, p.tokens, ranks);
    detail::require_holds<number>("tokens_per_rank", p.tokens);
    constexpr index_t rows = host_policy<Policy> ? 1024 : 16;
    const index_t blocks = p.tokens > 0 ? (p.tokens + rows - 1) / rows : 1;
    const auto scope = scratch.open();
    auto* const counts = scratch.template take<std::int64_t>(product_of_sizes("counters", blocks, ranks));
    const detail::mark_ranks<S, Space, mark> go{p, table, detail::quotient::by(p.experts / ranks, p.experts), rows,
                                                counts};
    const std::int64_t* const tokens = detail::count_ranks(policy, go, blocks, ranks, scratch);
    for_each_index(policy, ranks, detail::write_rank_count<number, Space>{tokens, list});
}

}  // namespace SWITCHYARD_TARGET
}  // namespace switchyard
