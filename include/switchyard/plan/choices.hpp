// A plan for choices that were made elsewhere: by a framework's router, by hash routing, or in a replayed step.
//
//   plan_from_choices(policy, ids, gates, experts, {.capacity = {.factor = 1.25}}, plan, scratch);   // ids, gates [T,
//   k] auto plan = plan_from_choices(policy, ids, experts);                                            // every gate 1
//
// ids[T, k] are int32 or int64, a token's first choice first. An id outside 0 .. experts - 1, such as -1, has no row
// here (padding, an expert of another rank): it keeps its place in the token's list and is expert -1, slot -1, gate 0.
// Gates are kept as they are given; those of choices without a row become 0. They may be stored in any type that
// routing computes in the plan's.
//
// Slots are the library's (plan/slots.hpp): all first choices before any second, by position or by gate, up to
// capacity. Dispatch, combine and their backward take the plan as any other. Backward of a router does not: it has no
// losses, no statistics of rows, and its counted tokens are those whose first id has an expert.
//
// With `rowless` the ids experts .. experts + Z - 1 are of experts without rows (plan/plan.hpp): slot -1, the gate as
// it is given, or 0 of zero experts. A token may name these more than once.
//
// A token that names an expert twice is an error, which device policies record in the plan's status for `check`. With
// `may_repeat` it gets two rows, and nothing is checked.
//
// O(T k) time, and O(T k^2) to look for repeated ids, O(T k) beyond 32 on the CPU. Scratch from the workspace; after
// the first step of a shape nothing is allocated, and nothing synchronises. ids and gates must not overlap the plan.
#pragma once

#include <switchyard/backend/policy.hpp>
#include <switchyard/core/config.hpp>
#include <switchyard/core/error.hpp>
#include <switchyard/core/matrix_view.hpp>
#include <switchyard/core/memory.hpp>
#include <switchyard/core/overlap.hpp>
#include <switchyard/core/scalar_traits.hpp>
#include <switchyard/core/sizes.hpp>
#include <switchyard/core/workspace.hpp>
#include <switchyard/plan/capacity.hpp>
#include <switchyard/plan/plan.hpp>
#include <switchyard/plan/slots.hpp>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <type_traits>

namespace switchyard {

struct choice_settings {
    capacity_rule capacity{};  ///< none by default
    drop_order order = drop_order::position;
    bool may_repeat = false;    ///< a token may name an expert twice, and gets two rows
    rowless_experts rowless{};  ///< with ids above those of experts with rows
};

inline namespace SWITCHYARD_TARGET {

namespace detail {

/// Gates of choices that have none.
struct all_ones {};

[[noreturn]] inline void fail_repeated(index_t token) {
    fail("ids of token ", token, " name an expert twice: without choice_settings::may_repeat each may be named once");
}

/// A token's choices, encoded for place_choices, and their gates.
template <class S, class Space, class Id, class Gates>
struct take_choices {
    plan_view<S, Space> plan;
    matrix_view<const Id, Space> ids;
    Gates gates;
    S* kept;  ///< [T, k] gates of choices that need no slot, 0 elsewhere; or null

    SWITCHYARD_HD void operator()(index_t position) const {
        const index_t token = position / plan.choices;
        const index_t c = position % plan.choices;
        const Id id = ids(token, c);
        const bool is_here = id >= 0 && static_cast<index_t>(id) < plan.experts;
        const rowless_experts& rowless = plan.origin.rowless;
        const bool is_rowless = !is_here && id >= 0 && static_cast<index_t>(id) - plan.experts < rowless.count();
        plan.expert[position] = is_here      ? static_cast<std::int32_t>(id)
                                : is_rowless ? forbidden_choice(static_cast<index_t>(id))
                                             : padding_choice;
        if constexpr (std::is_same_v<Gates, all_ones>) {
            plan.gate[position] = S(1);
        } else {
            plan.gate[position] = load_scalar(gates(token, c));
        }
        if (kept != nullptr) {
            const bool has_gate = is_rowless && !rowless.is_zero(static_cast<index_t>(id) - plan.experts);
            kept[position] = has_gate ? plan.gate[position] : S(0);
        }
    }
};

/// The first of a block's `rows` tokens that names an expert twice; `tokens` where there is none.
struct find_repeated {
    const std::int32_t* expert;  ///< encoded
    index_t tokens;
    index_t choices;
    index_t rows;
    std::int64_t* found;  ///< [blocks]

    SWITCHYARD_HD void operator()(index_t block) const {
        index_t first = tokens;
        for (index_t token = block * rows; token < (block + 1) * rows && token < tokens && first == tokens; ++token) {
            const std::int32_t* const list = expert + token * choices;
            for (index_t c = 1; c < choices; ++c) {
                for (index_t before = 0; before < c; ++before) {
                    first = list[c] >= 0 && list[c] == list[before] ? token : first;
                }
            }
        }
        found[block] = first;
    }
};

/// The same with a mark for each expert, for lists so long that looking at all pairs takes longer.
struct find_repeated_by_marks {
    find_repeated small;
    index_t experts;
    std::int32_t* marks;  ///< [blocks, E]

    void operator()(index_t block) const {
        std::int32_t* const mark = marks + block * experts;
        std::fill(mark, mark + experts, -1);
        small.found[block] = small.tokens;
        for (index_t token = block * small.rows; token < std::min(small.tokens, (block + 1) * small.rows); ++token) {
            for (index_t c = 0; c < small.choices; ++c) {
                const std::int32_t e = small.expert[token * small.choices + c];
                if (e >= 0 && mark[e] == token) {
                    small.found[block] = token;
                    return;
                }
                if (e >= 0) {
                    mark[e] = static_cast<std::int32_t>(token);
                }
            }
        }
    }
};

struct lower_number {
    SWITCHYARD_HD std::int64_t operator()(std::int64_t a, std::int64_t b) const { return b < a ? b : a; }
};

/// The status, and what is not known of a plan without a router.
struct note_choices {
    plan_totals* totals;
    const std::int64_t* repeated;  ///< a token, or all of them for none; null: not checked
    index_t tokens;

    SWITCHYARD_HD void operator()(index_t) const {
        const bool is_good = repeated == nullptr || *repeated == tokens;
        totals->load_balancing_loss = 0;
        totals->z_loss = 0;
        totals->status = is_good ? plan_status::good : plan_status::repeated;
        totals->status_token = is_good ? -1 : *repeated;
    }
};

/// Looks at every token's list: the error, on the CPU.
template <host_policy Policy, class S>
void check_choices(const Policy& policy, const plan_view<S>& plan, bool may_repeat, workspace& scratch) {
    constexpr index_t most_pairs = 32;
    const auto scope = scratch.open();
    note_choices{plan.totals, nullptr, plan.tokens}(0);
    const index_t blocks = may_repeat || plan.choices == 1 ? 0 : block_count(plan.tokens);
    const find_repeated look{plan.expert, plan.tokens, plan.choices, rows_per_block(plan.tokens),
                             scratch.take<std::int64_t>(blocks)};
    if (plan.choices <= most_pairs) {
        policy.parallel_for(blocks, look);
    } else {
        auto* const marks = scratch.take<std::int32_t>(product_of_sizes("marks of experts", blocks, plan.experts));
        policy.parallel_for(blocks, find_repeated_by_marks{look, plan.experts, marks});
    }
    for (index_t b = 0; b < blocks; ++b) {
        if (look.found[b] < plan.tokens) {
            fail_repeated(look.found[b]);
        }
    }
}

/// The status, on a device: one thread per token.
template <class Policy, class S, class Space, class Workspace>
void check_choices(const Policy& policy, const plan_view<S, Space>& plan, bool may_repeat, Workspace& scratch) {
    const auto scope = scratch.open();
    const std::int64_t* repeated = nullptr;
    if (!may_repeat && plan.choices > 1 && plan.tokens > 0) {
        auto* const found = scratch.template take<std::int64_t>(plan.tokens);
        for_each_index(policy, plan.tokens, find_repeated{plan.expert, plan.tokens, plan.choices, 1, found});
        repeated = fold(policy, found, plan.tokens, index_t{1}, lower_number{}, scratch);
    }
    for_each_index(policy, 1, note_choices{plan.totals, repeated, plan.tokens});
}

/// What ids must be, whatever they say.
template <class Ids>
void require_ids(const Ids& ids, index_t experts, bool may_repeat) {
    constexpr index_t most = std::numeric_limits<std::int32_t>::max();
    static_assert(std::is_same_v<typename Ids::value_type, std::int32_t> ||
                      std::is_same_v<typename Ids::value_type, std::int64_t>,
                  "switchyard: ids of experts are int32 or int64");
    require(ids.rows >= 0 && ids.columns >= 1, "ids is ", ids.rows, " x ", ids.columns,
            "; it must be T x k with k at least 1");
    require(ids.data != nullptr || ids.rows == 0, "ids is a null pointer");
    require(experts >= 1 && experts < most / 2, "E = ", experts,
            " experts: there must be at least one, and fewer than ", most / 2);
    require(ids.rows < most / (may_repeat ? ids.columns : 1), "T = ", ids.rows,
            " tokens: a plan numbers slots in 32 bits, split the batch");
}

template <class Policy, class Ids, class Gates, class Plan, class Workspace>
void make_plan_from_choices(const Policy& policy, const Ids& ids, const Gates& gates, index_t experts,
                            const choice_settings& settings, Plan& plan, Workspace& scratch) {
    constexpr bool is_weighed = !std::is_same_v<Gates, all_ones>;
    using S = typename Plan::scalar;
    begin_plan(plan);
    require_ids(ids, experts, settings.may_repeat);
    const rowless_experts& rowless = settings.rowless;
    require(rowless.identity >= 0 && rowless.zero >= 0 && rowless.shared >= 0, "rowless experts are ", rowless.identity,
            " identity, ", rowless.zero, " zero and ", rowless.shared, " shared ones: none may be negative");
    constexpr index_t most = index_t{1} << 30;
    require(rowless.identity < most && rowless.zero < most && rowless.shared < most && experts + rowless.count() < most,
            "there are ", experts, " experts and ", rowless.identity, " identity, ", rowless.zero, " zero and ",
            rowless.shared, " shared ones: fewer than ", most, " together have ids");
    require(rowless.shared < ids.columns, "ids have k = ", ids.columns, " columns, and every token has ",
            rowless.shared, " shared experts beside its own");
    const auto lie_apart = [&] {
        const auto& p = plan.view();
        const matrix_view<const std::int32_t, typename Plan::space> chosen(p.expert, p.tokens, p.choices);
        require_apart<Policy>("the plan's experts", chosen, "ids", ids);
        if constexpr (is_weighed) {
            require_apart<Policy>("the plan's gates", gates_of(p), "gates", gates);
        }
    };
    if constexpr (is_weighed) {
        static_assert(std::is_same_v<compute_t<typename Gates::value_type>, S>,
                      "switchyard: a plan holds gates in the compute type of those it is given: float for float, half "
                      "and bfloat16, double for double");
        require_same_shape("gates", gates, "ids", ids);
    }
    lie_apart();  // before the plan takes its shape, which may free what it had
    plan.resize(ids.rows, experts, ids.columns,
                capacity_of(settings.capacity, ids.rows, ids.columns - rowless.shared,
                            experts + rowless.identity + rowless.zero));
    continue_plan(plan, {.rowless = settings.rowless});
    lie_apart();
    const auto& made = plan.view();
    const auto scope = scratch.open();
    const index_t positions = ids.rows * ids.columns;
    S* const kept = settings.rowless.count() > 0 ? scratch.template take<S>(positions) : nullptr;
    for_each_index(policy, positions,
                   take_choices<S, typename Plan::space, typename Ids::value_type, Gates>{made, ids, gates, kept});
    check_choices(policy, made, settings.may_repeat, scratch);
    place_choices(policy, made, slot_settings{.order = settings.order}, scratch);
    if (kept != nullptr) {
        for_each_index(policy, positions, give_gate_back<S>{made.expert, kept, made.experts, made.gate});
    }
    finish_plan(plan);
}

}  // namespace detail

/// ids[T, k] and gates[T, k] -> plan. `experts` is E.
template <class Policy, matrix_like Ids, matrix_like Gates, class Plan, class Workspace>
void plan_from_choices(const Policy& policy, const Ids& ids, const Gates& gates, index_t experts,
                       const choice_settings& settings, Plan& plan, Workspace& scratch) {
    const auto list = const_view(as_view(ids));
    const auto weights = const_view(as_view(gates));
    require_space<Policy, Plan, decltype(list), decltype(weights)>();
    detail::make_plan_from_choices(policy, list, weights, experts, settings, plan, scratch);
}

/// ids[T, k] -> plan, every gate 1.
template <class Policy, matrix_like Ids, class Plan, class Workspace>
void plan_from_choices(const Policy& policy, const Ids& ids, index_t experts, const choice_settings& settings,
                       Plan& plan, Workspace& scratch) {
    const auto list = const_view(as_view(ids));
    require_space<Policy, Plan, decltype(list)>();
    detail::make_plan_from_choices(policy, list, detail::all_ones{}, experts, settings, plan, scratch);
}

/// Allocates the plan.
template <class Policy, matrix_like Ids, matrix_like Gates>
auto plan_from_choices(const Policy& policy, const Ids& ids, const Gates& gates, index_t experts,
                       const choice_settings& settings = {}) {
    basic_plan<compute_t<scalar_of<Gates>>, typename Policy::memory> plan(memory_of(policy));
    basic_workspace<typename Policy::memory> scratch(memory_of(policy));
    plan_from_choices(policy, ids, gates, experts, settings, plan, scratch);
    return plan;
}

/// Allocates the plan, in float.
template <class Policy, matrix_like Ids>
auto plan_from_choices(const Policy& policy, const Ids& ids, index_t experts, const choice_settings& settings = {}) {
    basic_plan<float, typename Policy::memory> plan(memory_of(policy));
    basic_workspace<typename Policy::memory> scratch(memory_of(policy));
    plan_from_choices(policy, ids, experts, settings, plan, scratch);
    return plan;
}

}  // namespace SWITCHYARD_TARGET
}  // namespace switchyard
