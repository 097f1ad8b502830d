// Dense dispatch and combine tensors, as GShard's and Switch's einsums take them. For small sizes: T E C numbers.
//
//   write_one_hot(policy, plan, dispatch);               // [T, E C]: 1 at column e C + slot of a kept choice
//   write_combine_weights(policy, plan, combine);        // [T, E C]: its gate there
//
// C is any number that no load exceeds, and columns are E times it: the capacity of a plan that has one, or
// `masked_rows` (formats/masked.hpp); device policies require that bound, CPU policies check the loads. Numbers of
// `dispatch` are bool, uint8 or any storage type, those of `combine` any storage type. Choices without a row, dropped
// or given as -1, are nowhere, and a token's own row is 0 without any.
//
// O(T (E C + k)), on every policy, in two launches; nothing is allocated, nothing synchronises. Outputs must not
// overlap the plan.
#pragma once

#include <switchyard/backend/policy.hpp>
#include <switchyard/core/config.hpp>
#include <switchyard/core/error.hpp>
#include <switchyard/core/matrix_view.hpp>
#include <switchyard/core/scalar_traits.hpp>
#include <switchyard/formats/detail/outputs.hpp>
#include <switchyard/formats/masked.hpp>
#include <switchyard/plan/plan.hpp>

#include <cstdint>
#include <type_traits>

namespace switchyard {
inline namespace SWITCHYARD_TARGET {

namespace detail {

/// A mark as it is stored.
template <class T, class S>
SWITCHYARD_HD T stored_mark(S number) {
    if constexpr (std::is_integral_v<T>) {
        return static_cast<T>(number);
    } else {
        return store_scalar<T>(static_cast<compute_t<T>>(number));
    }
}

template <class S, class Space, class T, bool AsWeight>
struct mark_slots {
    plan_view<S, Space> plan;
    matrix_view<T, Space> out;
    index_t most;

    SWITCHYARD_HD void operator()(index_t token) const {
        for (index_t i = token * plan.choices; i < (token + 1) * plan.choices; ++i) {
            if (plan.slot[i] >= 0 && plan.slot[i] < most) {
                out(token, plan.expert[i] * most + plan.slot[i]) = stored_mark<T>(AsWeight ? plan.gate[i] : S(1));
            }
        }
    }
};

template <bool AsWeight, class Policy, class View, class T, class Space>
void write_slots(const Policy& policy, const char* name, const View& p, const matrix_view<T, Space>& out) {
    require(p.experts > 0 ? out.columns % p.experts == 0 : out.columns == 0, name, " has ", out.columns,
            " columns; they must be a multiple of E = ", p.experts);
    require_shape(name, out, p.tokens, out.columns);
    const index_t most = p.experts > 0 ? out.columns / p.experts : 0;
    require_room_for_loads<Policy>(name, p, most);
    fill_and_place(policy, out, stored_mark<T>(typename View::scalar(0)),
                   mark_slots<typename View::scalar, Space, T, AsWeight>{p, out, most});
}

}  // namespace detail

/// dispatch[token, e C + slot] = 1 for each kept choice, 0 elsewhere.
template <class Policy, class Plan, matrix_like Out>
void write_one_hot(const Policy& policy, const Plan& plan, Out&& dispatch) {
    const auto& p = detail::plan_to_write<Policy, view_type<Out>>(plan);
    using number = scalar_of<Out>;
    if constexpr (std::is_integral_v<number>) {
        detail::require_bytes<number>();
    }
    detail::write_slots<false>(policy, "dispatch", p, as_view(dispatch));
}

/// combine[token, e C + slot] = the gate of each kept choice, 0 elsewhere.
template <class Policy, class Plan, matrix_like Out>
void write_combine_weights(const Policy& policy, const Plan& plan, Out&& combine) {
    const auto& p = detail::plan_to_write<Policy, view_type<Out>>(plan);
    static_assert(storage_scalar<scalar_of<Out>>, "switchyard: weights are numbers that routing stores");
    detail::write_slots<true>(policy, "combine", p, as_view(combine));
}

}  // namespace SWITCHYARD_TARGET
}  // namespace switchyard
