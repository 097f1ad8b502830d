// Ids and weights by token, for consumers that order choices themselves.
//
//   write_ids(policy, plan, ids);                 DeepEP's topk_idx: int64 [T, k], -1 = none
//   write_ids(policy, plan, ids, {.none = 0});    llama.cpp's mul_mat_id: int32 [T, k], all ids valid
//   write_weights(policy, plan, weights);         [T, k], in any storage type
//   write_packed_choices(policy, plan, packed);   FlashInfer's trtllm kernels: int32 [T, k], id << 16 | bfloat16
//
// A choice without a row, dropped or given as -1, has the weight 0 and the id `none`: -1 unless settings say otherwise.
// Kernels that index by every id, as llama.cpp's do, need a valid one: with `none = 0` expert 0 runs for such a choice
// and adds 0 times its output. The plan's own `expert` array names dropped choices' experts.
//
// Packed: the id's low 16 bits are the high half, so at most 32,768 experts fit; -1 is 0xffff0000. The weight is
// rounded to the nearest bfloat16, halves to even; a double is rounded to float first.
//
// O(T k), on every policy, in one launch each; nothing is allocated, nothing synchronises. Outputs must not overlap the
// plan.
#pragma once

#include <switchyard/backend/policy.hpp>
#include <switchyard/core/config.hpp>
#include <switchyard/core/error.hpp>
#include <switchyard/core/matrix_view.hpp>
#include <switchyard/core/scalar_traits.hpp>
#include <switchyard/formats/detail/outputs.hpp>
#include <switchyard/plan/counts.hpp>
#include <switchyard/plan/plan.hpp>

#include <algorithm>
#include <bit>
#include <cstdint>
#include <limits>
#include <type_traits>

namespace switchyard {

struct id_settings {
    std::int32_t none = -1;  ///< the id of a choice without a row
};

inline namespace SWITCHYARD_TARGET {

namespace detail {

/// The 16 bits of the nearest bfloat16.
SWITCHYARD_HD inline std::uint32_t bfloat16_bits(float x) {
    const auto bits = std::bit_cast<std::uint32_t>(x);
    return x == x ? (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16 : (bits >> 16 & 0x8000u) | 0x7fc0u;
}

template <class S, class Space, class T>
struct write_id {
    plan_view<S, Space> plan;
    choice_table<T, Space> out;
    T none;

    SWITCHYARD_HD void operator()(index_t position) const {
        const std::int32_t expert = plan.expert[position];  // read in any case: a load that depends is no vector's
        out[position] = plan.slot[position] < 0 ? none : static_cast<T>(expert);
    }
};

template <class S, class Space, class T>
struct write_weight {
    plan_view<S, Space> plan;
    choice_table<T, Space> out;

    SWITCHYARD_HD void operator()(index_t position) const {
        const S gate = plan.gate[position];
        out[position] = store_scalar<T>(static_cast<compute_t<T>>(plan.slot[position] < 0 ? S(0) : gate));
    }
};

template <class S, class Space>
struct write_packed_choice {
    plan_view<S, Space> plan;
    choice_table<std::int32_t, Space> out;
    std::int32_t none;

    SWITCHYARD_HD void operator()(index_t position) const {
        const bool has_row = plan.slot[position] >= 0;
        const std::int32_t expert = plan.expert[position];
        const auto gate = static_cast<float>(plan.gate[position]);
        const auto id = static_cast<std::uint32_t>(has_row ? expert : none);
        out[position] = static_cast<std::int32_t>(id << 16 | bfloat16_bits(has_row ? gate : 0.0f));
    }
};

/// `none` is -1, or an expert that there is.
template <class View>
void require_none(const View& p, const id_settings& settings) {
    require(settings.none >= -1 && settings.none < std::max<index_t>(p.experts, 0), "none = ", settings.none,
            " must be -1 or an expert of the plan's ", p.experts);
}

}  // namespace detail

/// ids[token, choice] = the expert, or `none` where the choice has no row. int32 or int64.
template <class Policy, class Plan, matrix_like Ids>
void write_ids(const Policy& policy, const Plan& plan, Ids&& ids, const id_settings& settings = {}) {
    const auto& p = detail::plan_to_write<Policy, view_type<Ids>>(plan);
    using view = detail::plan_view_of<Plan>;
    using number = scalar_of<Ids>;
    detail::require_integers<number>();
    detail::require_none(p, settings);
    const auto table = detail::choice_table_of("ids", p, as_view(ids));
    for_each_index(
        policy, p.tokens * p.choices,
        detail::write_id<typename view::scalar, typename view::space, number>{p, table, number{settings.none}});
}

/// weights[token, choice] = the gate, 0 where the choice has no row; rounded to the type they are stored in.
template <class Policy, class Plan, matrix_like Weights>
void write_weights(const Policy& policy, const Plan& plan, Weights&& weights) {
    const auto& p = detail::plan_to_write<Policy, view_type<Weights>>(plan);
    using view = detail::plan_view_of<Plan>;
    static_assert(storage_scalar<scalar_of<Weights>>, "switchyard: weights are numbers that routing stores");
    const auto table = detail::choice_table_of("weights", p, as_view(weights));
    for_each_index(policy, p.tokens * p.choices,
                   detail::write_weight<typename view::scalar, typename view::space, scalar_of<Weights>>{p, table});
}

/// packed[token, choice] = id << 16 | the weight's bfloat16.
template <class Policy, class Plan, matrix_like Packed>
void write_packed_choices(const Policy& policy, const Plan& plan, Packed&& packed, const id_settings& settings = {}) {
    const auto& p = detail::plan_to_write<Policy, view_type<Packed>>(plan);
    using view = detail::plan_view_of<Plan>;
    static_assert(std::is_same_v<scalar_of<Packed>, std::int32_t>, "switchyard: packed choices are int32");
    constexpr index_t most = index_t{1} << 15;
    require(p.experts <= most, "the plan has ", p.experts, " experts; 16 bits of a packed choice name ", most,
            " at most");
    detail::require_none(p, settings);
    const auto table = detail::choice_table_of("packed", p, as_view(packed));
    for_each_index(policy, p.tokens * p.choices,
                   detail::write_packed_choice<typename view::scalar, typename view::space>{p, table, settings.none});
}

}  // namespace SWITCHYARD_TARGET
}  // namespace switchyard
