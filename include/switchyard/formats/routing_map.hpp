// Tokens by experts: Transformer Engine's row map, and Megatron-Core's masks, bitmaps and dense probabilities.
//
//   write_routing_map(policy, plan, map);            // [T, E] bool or uint8: 1 where the token has a row of the expert
//   write_routing_bits(policy, plan, bits);          // [T, ceil(E / 8)] uint8: bit e % 8 of byte e / 8, lowest first
//   write_routing_weights(policy, plan, weights);    // [T, E], any storage type: the gate, 0 where there is no row
//   write_row_map(policy, plan, map);                // [T, 2 E + 1] int32 or int64: Transformer Engine's row_id_map
//
// A row of the row map with n kept choices holds their rows in columns 0 .. n - 1, their experts in E .. E + n - 1,
// from the highest expert down, and n in the last column. What Transformer Engine leaves as it was is -1. Rows are
// those of dispatch, padding counted where the plan has it; Transformer Engine numbers an expert's rows by token, as
// the plan does after `sort_rows_by_token` (plan/layout.hpp). k is at most E.
//
// Choices without a row, dropped or given as -1, are in none of these: the last bits of the last byte are 0, too. A
// token that names an expert twice has 1, one bit, the sum of its gates in choice order, and two rows.
//
// O(size of the table + T k^2), on every policy, in two launches, bits in one; nothing is allocated, nothing
// synchronises. Outputs must not overlap the plan.
#pragma once

#include <switchyard/backend/policy.hpp>
#include <switchyard/core/config.hpp>
#include <switchyard/core/error.hpp>
#include <switchyard/core/matrix_view.hpp>
#include <switchyard/core/scalar_traits.hpp>
#include <switchyard/formats/detail/outputs.hpp>
#include <switchyard/plan/plan.hpp>

#include <algorithm>
#include <bit>
#include <cstdint>
#include <cstring>
#include <type_traits>

namespace switchyard {
inline namespace SWITCHYARD_TARGET {

namespace detail {

template <class S, class Space, class T>
struct mark_experts {
    plan_view<S, Space> plan;
    matrix_view<T, Space> map;

    SWITCHYARD_HD void operator()(index_t token) const {
        T* const row = map.row(token);
        const std::int32_t* const expert = plan.expert;
        const std::int32_t* const slot = plan.slot;
        const index_t stride = map.column_stride;
        const index_t end = (token + 1) * plan.choices;
        for (index_t i = token * plan.choices; i < end; ++i) {
            if (slot[i] >= 0) {
                row[expert[i] * stride] = T(1);
            }
        }
    }
};

/// The bytes of a range of tokens.
template <class S, class Space>
struct write_expert_bits {
    plan_view<S, Space> plan;
    matrix_view<std::uint8_t, Space> bits;

    /// Eight dense bytes per token are a number; `K` choices per token, or as many as there are. Without a loop over
    /// them, tokens become a vector's lanes.
    template <int K>
    SWITCHYARD_HD void write_words(index_t first, index_t last) const {
        const std::int32_t* const expert = plan.expert;
        const std::int32_t* const slot = plan.slot;
        const index_t k = K > 0 ? K : plan.choices;
        std::uint8_t* const out = bits.data;
        for (index_t token = first; token < last; ++token) {
            std::uint64_t word = 0;
            for (index_t c = 0; c < k; ++c) {
                const std::uint64_t has_row = slot[token * k + c] >= 0 ? 1 : 0;
                word |= has_row << (static_cast<std::uint64_t>(expert[token * k + c]) & 63u);
            }
            std::memcpy(out + 8 * token, &word, sizeof word);
        }
    }
    SWITCHYARD_HD void operator()(index_t first, index_t last) const {
        // In local variables: bytes that are written could otherwise be these.
        const std::int32_t* const expert = plan.expert;
        const std::int32_t* const slot = plan.slot;
        const index_t k = plan.choices;
        const matrix_view<std::uint8_t, Space> out = bits;
        if (std::endian::native == std::endian::little && out.columns == 8 && out.row_stride == 8 &&
            out.column_stride == 1) {
            k == 2 ? write_words<2>(first, last) : write_words<0>(first, last);
            return;
        }
        for (index_t token = first; token < last; ++token) {
            for (index_t byte = 0; byte < out.columns; ++byte) {
                out(token, byte) = 0;
            }
            for (index_t i = token * k; i < (token + 1) * k; ++i) {
                if (slot[i] >= 0) {
                    std::uint8_t& byte = out(token, expert[i] >> 3);
                    byte = static_cast<std::uint8_t>(byte | 1u << (expert[i] & 7));
                }
            }
        }
    }
};

template <class S, class Space, class T>
struct add_weights {
    plan_view<S, Space> plan;
    matrix_view<T, Space> weights;

    SWITCHYARD_HD void operator()(index_t token) const {
        const index_t start = token * plan.choices;
        for (index_t c = 0; c < plan.choices; ++c) {
            if (plan.slot[start + c] < 0) {
                continue;
            }
            const std::int32_t expert = plan.expert[start + c];
            S sum = S(0);  // of every choice of this expert, and rounded once
            for (index_t other = 0; other <= c; ++other) {
                if (plan.expert[start + other] == expert && plan.slot[start + other] >= 0) {
                    sum += plan.gate[start + other];
                }
            }
            weights(token, expert) = store_scalar<T>(static_cast<compute_t<T>>(sum));
        }
    }
};

template <class S, class Space, class T>
struct place_rows {
    plan_view<S, Space> plan;
    matrix_view<T, Space> map;

    SWITCHYARD_HD void operator()(index_t token) const {
        T* const rows = map.row(token);
        T* const experts = rows + plan.experts * map.column_stride;
        index_t kept = 0;
        for (index_t i = token * plan.choices; i < (token + 1) * plan.choices; ++i) {
            if (plan.slot[i] < 0 || kept == plan.experts) {
                continue;
            }
            const std::int32_t expert = plan.expert[i];
            index_t place = kept;  // behind those of higher experts, which are few: no sort is faster
            for (; place > 0 && experts[(place - 1) * map.column_stride] < expert; --place) {
                rows[place * map.column_stride] = rows[(place - 1) * map.column_stride];
                experts[place * map.column_stride] = experts[(place - 1) * map.column_stride];
            }
            rows[place * map.column_stride] = static_cast<T>(plan.offsets[expert] + plan.slot[i]);
            experts[place * map.column_stride] = static_cast<T>(expert);
            ++kept;
        }
        map(token, 2 * plan.experts) = static_cast<T>(kept);
    }
};

}  // namespace detail

/// map[token, expert] = whether the token has a row of the expert.
template <class Policy, class Plan, matrix_like Map>
void write_routing_map(const Policy& policy, const Plan& plan, Map&& map) {
    const auto& p = detail::plan_to_write<Policy, view_type<Map>>(plan);
    using view = detail::plan_view_of<Plan>;
    using number = scalar_of<Map>;
    detail::require_bytes<number>();
    const auto out = as_view(map);
    detail::require_shape("the routing map", out, p.tokens, p.experts);
    detail::fill_and_place(policy, out, number(0),
                           detail::mark_experts<typename view::scalar, typename view::space, number>{p, out});
}

/// Bit expert % 8 of bits[token, expert / 8] = whether the token has a row of the expert.
template <class Policy, class Plan, matrix_like Bits>
void write_routing_bits(const Policy& policy, const Plan& plan, Bits&& bits) {
    const auto& p = detail::plan_to_write<Policy, view_type<Bits>>(plan);
    using view = detail::plan_view_of<Plan>;
    static_assert(std::is_same_v<scalar_of<Bits>, std::uint8_t>, "switchyard: bitmaps are bytes, uint8");
    const auto out = as_view(bits);
    detail::require_shape("the routing bits", out, p.tokens, (p.experts + 7) / 8);
    detail::for_each_range(policy, p.tokens,
                           detail::write_expert_bits<typename view::scalar, typename view::space>{p, out});
}

/// weights[token, expert] = the gate of the token's row of the expert, 0 where it has none.
template <class Policy, class Plan, matrix_like Weights>
void write_routing_weights(const Policy& policy, const Plan& plan, Weights&& weights) {
    const auto& p = detail::plan_to_write<Policy, view_type<Weights>>(plan);
    using view = detail::plan_view_of<Plan>;
    using number = scalar_of<Weights>;
    static_assert(storage_scalar<number>, "switchyard: weights are numbers that routing stores");
    const auto out = as_view(weights);
    detail::require_shape("the routing weights", out, p.tokens, p.experts);
    detail::fill_and_place(policy, out, store_scalar<number>(compute_t<number>(0)),
                           detail::add_weights<typename view::scalar, typename view::space, number>{p, out});
}

/// The rows of each token, their experts, and how many they are.
template <class Policy, class Plan, matrix_like Map>
void write_row_map(const Policy& policy, const Plan& plan, Map&& map) {
    const auto& p = detail::plan_to_write<Policy, view_type<Map>>(plan);
    using view = detail::plan_view_of<Plan>;
    using number = scalar_of<Map>;
    detail::require_integers<number>();
    const auto out = as_view(map);
    detail::require_shape("the row map", out, p.tokens, 2 * p.experts + 1);
    require(p.choices <= p.experts + p.origin.rowless.count(), "the row map has room for ", p.experts,
            " rows per token; the plan has ", p.choices, " choices");
    detail::require_holds<number>("the row map", std::max(p.row_bound, p.experts));
    detail::fill_and_place(policy, out, number(-1),
                           detail::place_rows<typename view::scalar, typename view::space, number>{p, out});
}

}  // namespace SWITCHYARD_TARGET
}  // namespace switchyard
