// Recorded arrays of packages that take a routing, for fixed ids: those of five plans, and two examples from the
// packages' own documentation. -1 in ids is a choice without an expert; k different experts per token otherwise.
//
//   set   T, k, E
//   a     50, 4, 8      some -1
//   b     37, 2, 6      expert 4 has no token, and a token is -1 throughout
//   c     300, 8, 16    no -1; without weights and the larger tables
//   d     5, 2, 16      fewer choices than experts
//   e     8, 1, 4       all tokens at expert 2
//
// Names are those of packages, and arrays theirs (tests/recorded/formats.inc says from which code each came). Within an
// expert they list choices by rising token * k + choice. Where a package leaves memory as it was, -1 stands; beyond
// num_tokens_post_pad, expert_ids are 0. Arrays that a set does not have are empty.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace switchyard_test {

namespace recorded {

#include "../recorded/formats.inc"

}  // namespace recorded

struct recorded_format {
    using shorts = std::span<const short>;
    using floats = std::span<const float>;

    const char* name;
    std::int64_t tokens, k, experts;
    shorts ids;
    shorts offs;                                      ///< torch._grouped_mm
    shorts bits;                                      ///< Transformer Engine, Megatron
    shorts vllm16_ids, vllm16_experts, vllm16_count;  ///< blocks of 16
    shorts psum_aligned, psum_actual;                 ///< DeepGEMM, 128
    shorts per_rank_2, per_expert;                    ///< DeepEP, 2 ranks
    shorts bins, padded_bins;                         ///< MegaBlocks, 128
    shorts per_rank_4 = {}, per_node_2 = {};          ///< DeepEP, 4 ranks of 2 nodes
    floats weights = {};
    shorts order = {}, offsets = {}, rows = {};  ///< of choices by expert, and where each choice went
    shorts sorted_indices = {};                  ///< Megatron: the token of each row
    floats permuted_probs = {};                  ///< Megatron: the weight of each row
    shorts row_map = {};                         ///< Transformer Engine
    shorts m_indices = {}, row_of_sorted = {};   ///< DeepGEMM
    shorts in_rank_2 = {}, in_rank_4 = {};       ///< DeepEP
    shorts routing_map = {};                     ///< Megatron
    floats probs = {};                           ///< Megatron
    shorts vllm64_ids = {}, vllm64_experts = {}, vllm64_count = {};
    shorts sorted_experts = {}, sorted_choices = {};  ///< torch.sort, for ScatterMoE
};

inline std::vector<recorded_format> recorded_formats() {
    using namespace recorded;
    std::vector<recorded_format> sets;
    sets.push_back({.name = "a",
                    .tokens = 50,
                    .k = 4,
                    .experts = 8,
                    .ids = formats_a_topk_ids,
                    .offs = formats_a_grouped_mm_offs,
                    .bits = formats_a_te_router_bitmap,
                    .vllm16_ids = formats_a_vllm16_sorted_token_ids,
                    .vllm16_experts = formats_a_vllm16_expert_ids,
                    .vllm16_count = formats_a_vllm16_num_tokens_post_pad,
                    .psum_aligned = formats_a_deepgemm_psum_aligned,
                    .psum_actual = formats_a_deepgemm_psum_actual,
                    .per_rank_2 = formats_a_deepep2_num_tokens_per_rank,
                    .per_expert = formats_a_deepep2_num_tokens_per_expert,
                    .bins = formats_a_megablocks_bins,
                    .padded_bins = formats_a_megablocks_padded_bins,
                    .per_rank_4 = formats_a_deepep4_num_tokens_per_rank,
                    .per_node_2 = formats_a_deepep4_num_tokens_per_rdma_rank_2_per_node,
                    .weights = formats_a_topk_weights,
                    .order = formats_a_rows_order,
                    .offsets = formats_a_rows_offsets,
                    .rows = formats_a_rows_row_of_choice,
                    .sorted_indices = formats_a_megatron_sorted_indices,
                    .permuted_probs = formats_a_megatron_permuted_probs,
                    .row_map = formats_a_te_row_id_map,
                    .m_indices = formats_a_deepgemm_m_indices,
                    .row_of_sorted = formats_a_deepgemm_row_of_sorted,
                    .in_rank_2 = formats_a_deepep2_is_token_in_rank,
                    .in_rank_4 = formats_a_deepep4_is_token_in_rank,
                    .routing_map = formats_a_megatron_routing_map,
                    .probs = formats_a_megatron_probs});
    sets.push_back({.name = "b",
                    .tokens = 37,
                    .k = 2,
                    .experts = 6,
                    .ids = formats_b_topk_ids,
                    .offs = formats_b_grouped_mm_offs,
                    .bits = formats_b_te_router_bitmap,
                    .vllm16_ids = formats_b_vllm16_sorted_token_ids,
                    .vllm16_experts = formats_b_vllm16_expert_ids,
                    .vllm16_count = formats_b_vllm16_num_tokens_post_pad,
                    .psum_aligned = formats_b_deepgemm_psum_aligned,
                    .psum_actual = formats_b_deepgemm_psum_actual,
                    .per_rank_2 = formats_b_deepep2_num_tokens_per_rank,
                    .per_expert = formats_b_deepep2_num_tokens_per_expert,
                    .bins = formats_b_megablocks_bins,
                    .padded_bins = formats_b_megablocks_padded_bins,
                    .weights = formats_b_topk_weights,
                    .order = formats_b_rows_order,
                    .offsets = formats_b_rows_offsets,
                    .rows = formats_b_rows_row_of_choice,
                    .sorted_indices = formats_b_megatron_sorted_indices,
                    .permuted_probs = formats_b_megatron_permuted_probs,
                    .row_map = formats_b_te_row_id_map,
                    .m_indices = formats_b_deepgemm_m_indices,
                    .row_of_sorted = formats_b_deepgemm_row_of_sorted,
                    .in_rank_2 = formats_b_deepep2_is_token_in_rank,
                    .routing_map = formats_b_megatron_routing_map,
                    .probs = formats_b_megatron_probs,
                    .vllm64_ids = formats_b_vllm64_sorted_token_ids,
                    .vllm64_experts = formats_b_vllm64_expert_ids,
                    .vllm64_count = formats_b_vllm64_num_tokens_post_pad});
    sets.push_back({.name = "c",
                    .tokens = 300,
                    .k = 8,
                    .experts = 16,
                    .ids = formats_c_topk_ids,
                    .offs = formats_c_grouped_mm_offs,
                    .bits = formats_c_te_router_bitmap,
                    .vllm16_ids = formats_c_vllm16_sorted_token_ids,
                    .vllm16_experts = formats_c_vllm16_expert_ids,
                    .vllm16_count = formats_c_vllm16_num_tokens_post_pad,
                    .psum_aligned = formats_c_deepgemm_psum_aligned,
                    .psum_actual = formats_c_deepgemm_psum_actual,
                    .per_rank_2 = formats_c_deepep2_num_tokens_per_rank,
                    .per_expert = formats_c_deepep2_num_tokens_per_expert,
                    .bins = formats_c_megablocks_bins,
                    .padded_bins = formats_c_megablocks_padded_bins,
                    .per_rank_4 = formats_c_deepep4_num_tokens_per_rank,
                    .per_node_2 = formats_c_deepep4_num_tokens_per_rdma_rank_2_per_node});
    sets.push_back({.name = "d",
                    .tokens = 5,
                    .k = 2,
                    .experts = 16,
                    .ids = formats_d_topk_ids,
                    .offs = formats_d_grouped_mm_offs,
                    .bits = formats_d_te_router_bitmap,
                    .vllm16_ids = formats_d_vllm16_sorted_token_ids,
                    .vllm16_experts = formats_d_vllm16_expert_ids,
                    .vllm16_count = formats_d_vllm16_num_tokens_post_pad,
                    .psum_aligned = formats_d_deepgemm_psum_aligned,
                    .psum_actual = formats_d_deepgemm_psum_actual,
                    .per_rank_2 = formats_d_deepep2_num_tokens_per_rank,
                    .per_expert = formats_d_deepep2_num_tokens_per_expert,
                    .bins = formats_d_megablocks_bins,
                    .padded_bins = formats_d_megablocks_padded_bins,
                    .per_rank_4 = formats_d_deepep4_num_tokens_per_rank,
                    .per_node_2 = formats_d_deepep4_num_tokens_per_rdma_rank_2_per_node,
                    .weights = formats_d_topk_weights,
                    .order = formats_d_rows_order,
                    .offsets = formats_d_rows_offsets,
                    .rows = formats_d_rows_row_of_choice,
                    .sorted_indices = formats_d_megatron_sorted_indices,
                    .permuted_probs = formats_d_megatron_permuted_probs,
                    .row_map = formats_d_te_row_id_map,
                    .m_indices = formats_d_deepgemm_m_indices,
                    .row_of_sorted = formats_d_deepgemm_row_of_sorted,
                    .in_rank_2 = formats_d_deepep2_is_token_in_rank,
                    .in_rank_4 = formats_d_deepep4_is_token_in_rank,
                    .routing_map = formats_d_megatron_routing_map,
                    .probs = formats_d_megatron_probs,
                    .vllm64_ids = formats_d_vllm64_sorted_token_ids,
                    .vllm64_experts = formats_d_vllm64_expert_ids,
                    .vllm64_count = formats_d_vllm64_num_tokens_post_pad,
                    .sorted_experts = formats_d_sorted_expert_ids,
                    .sorted_choices = formats_d_sorted_perm});
    sets.push_back({.name = "e",
                    .tokens = 8,
                    .k = 1,
                    .experts = 4,
                    .ids = formats_e_topk_ids,
                    .offs = formats_e_grouped_mm_offs,
                    .bits = formats_e_te_router_bitmap,
                    .vllm16_ids = formats_e_vllm16_sorted_token_ids,
                    .vllm16_experts = formats_e_vllm16_expert_ids,
                    .vllm16_count = formats_e_vllm16_num_tokens_post_pad,
                    .psum_aligned = formats_e_deepgemm_psum_aligned,
                    .psum_actual = formats_e_deepgemm_psum_actual,
                    .per_rank_2 = formats_e_deepep2_num_tokens_per_rank,
                    .per_expert = formats_e_deepep2_num_tokens_per_expert,
                    .bins = formats_e_megablocks_bins,
                    .padded_bins = formats_e_megablocks_padded_bins,
                    .per_rank_4 = formats_e_deepep4_num_tokens_per_rank,
                    .per_node_2 = formats_e_deepep4_num_tokens_per_rdma_rank_2_per_node,
                    .weights = formats_e_topk_weights,
                    .order = formats_e_rows_order,
                    .offsets = formats_e_rows_offsets,
                    .rows = formats_e_rows_row_of_choice,
                    .sorted_indices = formats_e_megatron_sorted_indices,
                    .permuted_probs = formats_e_megatron_permuted_probs,
                    .row_map = formats_e_te_row_id_map,
                    .m_indices = formats_e_deepgemm_m_indices,
                    .row_of_sorted = formats_e_deepgemm_row_of_sorted,
                    .in_rank_2 = formats_e_deepep2_is_token_in_rank,
                    .in_rank_4 = formats_e_deepep4_is_token_in_rank,
                    .vllm64_ids = formats_e_vllm64_sorted_token_ids,
                    .vllm64_experts = formats_e_vllm64_expert_ids,
                    .vllm64_count = formats_e_vllm64_num_tokens_post_pad,
                    .sorted_experts = formats_e_sorted_expert_ids,
                    .sorted_choices = formats_e_sorted_perm});
    return sets;
}

}  // namespace switchyard_test
