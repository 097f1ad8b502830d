// vLLM's and SGLang's moe_align_block_size: choices by expert, each expert's padded to whole blocks of a fused kernel.
//
//   lay_out(policy, plan, 16, scratch);                      // the kernel's block, if the plan has another one
//   const auto sizes = aligned_block_sizes(T, k, E, 16);     // as vLLM allocates them
//   write_aligned_blocks(policy, plan, sorted_ids, block_experts, padded_count);
//   write_aligned_blocks(policy, plan, sorted_ids, block_experts, padded_count, expert_map);
//
//   sorted_ids     [sizes.ids] int32       token * k + choice, expert by expert; T k in padding and beyond all rows
//   block_experts  [sizes.blocks] int32    the expert of each block; 0 beyond all rows
//   padded_count   [1] int32               rows, padding included: num_tokens_post_pad
//   expert_map     [E] int32, read         local id of each expert, -1 elsewhere; block_experts goes through it, also
//                                          beyond all rows, where it is expert 0's
//
// The block is the plan's row_block. Choices without a row, dropped or -1, are in no block; vLLM leaves -1 out where it
// is asked to ignore invalid experts. Within an expert ids are in the order of the plan's slots, which does not matter
// to such kernels; after `sort_rows_by_token` (plan/layout.hpp) they rise.
//
// All three may also be int64, and longer. O(their lengths), on every policy, in three launches; nothing is allocated,
// nothing synchronises. Outputs must not overlap the plan or each other.
#pragma once

#include <switchyard/backend/policy.hpp>
#include <switchyard/core/config.hpp>
#include <switchyard/core/error.hpp>
#include <switchyard/core/matrix_view.hpp>
#include <switchyard/core/sizes.hpp>
#include <switchyard/formats/detail/outputs.hpp>
#include <switchyard/formats/rows.hpp>
#include <switchyard/plan/counts.hpp>
#include <switchyard/plan/plan.hpp>

#include <cstdint>

namespace switchyard {

struct aligned_block_lengths {
    index_t ids = 0;     ///< T k + E (block - 1), or T k block where T k < E
    index_t blocks = 0;  ///< ids / block, rounded up
};

inline namespace SWITCHYARD_TARGET {

/// The lengths that vLLM allocates, which hold any plan of T tokens with k choices of E experts.
constexpr aligned_block_lengths aligned_block_sizes(index_t tokens, index_t choices, index_t experts, index_t block) {
    if (block < 1) {
        fail("block = ", block, " must be at least 1");
    }
    const index_t all = product_of_sizes("choices", tokens, choices);
    const index_t ids = all < experts ? product_of_sizes("padded choices", all, block)
                                      : all + product_of_sizes("padding", experts, block - 1);
    return {ids, ids / block + (ids % block != 0 ? 1 : 0)};
}

namespace detail {

/// No expert map: every expert is here.
struct every_expert {
    SWITCHYARD_HD index_t operator[](index_t expert) const { return expert; }
};

template <class S, class Space, class T, class Map>
struct write_aligned_expert {
    plan_view<S, Space> plan;
    number_list<T, Space> out;
    Map map;

    SWITCHYARD_HD void operator()(index_t first, index_t last) const {
        index_t block = first;
        for (index_t expert = expert_at(plan, first * plan.row_block); block < last && expert < plan.experts;
             ++expert) {
            const index_t end = plan.offsets[expert + 1] / plan.row_block;
            const T here = static_cast<T>(map[expert]);
            for (; block < last && block < end; ++block) {
                out[block] = here;
            }
        }
        for (; block < last; ++block) {
            out[block] = static_cast<T>(map[0]);
        }
    }
};

template <class Policy, class View, class Ids, class Experts, class Count, class Map>
void write_aligned(const Policy& policy, const View& p, const Ids& ids, const Experts& experts, const Count& count,
                   const Map& map) {
    using S = typename View::scalar;
    using Space = typename View::space;
    using id = std::remove_cvref_t<decltype(ids[0])>;
    using expert = std::remove_cvref_t<decltype(experts[0])>;
    using number = std::remove_cvref_t<decltype(count[0])>;
    const index_t rows = rows_to_write<Policy>(p);
    require(experts.count * p.row_block >= rows, "block_experts has room for ", experts.count, " blocks of ",
            p.row_block, " rows; the plan has ", rows, " rows");
    require(count.count == 1, "padded_count has ", count.count, " numbers; it must have 1");
    require(p.experts > 0 || experts.count == 0, "the plan has no experts, and blocks need one");
    require_holds<number>("padded_count", p.row_bound);
    require_holds<id>("sorted_ids", std::max(p.row_bound, p.tokens * p.choices));
    write_rows<false>(policy, "sorted_ids", p, ids, static_cast<id>(p.tokens * p.choices));
    for_each_range(policy, experts.count, write_aligned_expert<S, Space, expert, Map>{p, experts, map});
    for_each_index(policy, 1, write_number<number, Space>{p.offsets + p.experts, count});
}

}  // namespace detail

/// See above.
template <class Policy, class Plan, matrix_like Ids, matrix_like Experts, matrix_like Count>
void write_aligned_blocks(const Policy& policy, const Plan& plan, Ids&& sorted_ids, Experts&& block_experts,
                          Count&& padded_count) {
    const auto& p = detail::plan_to_write<Policy, view_type<Ids>, view_type<Experts>, view_type<Count>>(plan);
    detail::write_aligned(policy, p, detail::number_list_of("sorted_ids", as_view(sorted_ids)),
                          detail::number_list_of("block_experts", as_view(block_experts)),
                          detail::number_list_of("padded_count", as_view(padded_count)), detail::every_expert{});
}

/// With the experts that are here.
template <class Policy, class Plan, matrix_like Ids, matrix_like Experts, matrix_like Count, matrix_like Map>
void write_aligned_blocks(const Policy& policy, const Plan& plan, Ids&& sorted_ids, Experts&& block_experts,
                          Count&& padded_count, const Map& expert_map) {
    const auto& p =
        detail::plan_to_write<Policy, view_type<Ids>, view_type<Experts>, view_type<Count>, view_type<const Map&>>(
            plan);
    const auto map = detail::number_list_of("expert_map", const_view(as_view(expert_map)));
    require(map.count == p.experts, "expert_map has ", map.count, " numbers; there are ", p.experts, " experts");
    detail::write_aligned(policy, p, detail::number_list_of("sorted_ids", as_view(sorted_ids)),
                          detail::number_list_of("block_experts", as_view(block_experts)),
                          detail::number_list_of("padded_count", as_view(padded_count)), map);
}

}  // namespace SWITCHYARD_TARGET
}  // namespace switchyard
