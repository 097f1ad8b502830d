// Choices alone: ids and gates, without slots, rows and counts, for consumers that order tokens themselves.
//
//   route_choices(policy, router, scores[T, E], inference{}, ids[T, k], gates[T, k], scratch);
//   auto [ids, gates] = route_choices(policy, router, scores);
//
// ids are int32, best choice first, and gates their weights, as a plan has them: -1 in all choices of a padding token,
// gate 0 for it and for an expert that is forbidden to its token. That is what ggml's mul_mat_id and the fused layers
// of other engines take. Any router works, including a user's own. There are no slots, so nothing can be dropped: a
// router whose settings limit experts is refused, and so is training, whose losses and backward need a plan.
//
// On the CPU choices are neither counted nor placed. By kernels there are three launches, as for a plan, of which the
// last reads ids alone. Bad scores are errors on the CPU. Where work is asynchronous they become a status in `totals`,
// if the caller passes any: copied to the host, `raise_status` (plan/device_plan.hpp) throws what it says. The other
// totals are not those of a plan.
#pragma once

#include <switchyard/backend/policy.hpp>
#include <switchyard/core/config.hpp>
#include <switchyard/core/error.hpp>
#include <switchyard/core/matrix_view.hpp>
#include <switchyard/core/memory.hpp>
#include <switchyard/core/overlap.hpp>
#include <switchyard/core/scalar_traits.hpp>
#include <switchyard/core/workspace.hpp>
#include <switchyard/plan/capacity.hpp>
#include <switchyard/plan/plan.hpp>
#include <switchyard/router/routing.hpp>

#include <cstdint>
#include <type_traits>

namespace switchyard {

/// Choices of all tokens.
template <class S, class Memory = host_memory>
struct routed_choices {
    matrix<std::int32_t, Memory> ids;  ///< [T, k]
    matrix<S, Memory> gates;           ///< [T, k]
};

inline namespace SWITCHYARD_TARGET {

namespace detail {

/// What routers take for a plan; `Room` says where ids and gates of T x k choices go.
template <class S, class Space, class Room>
class choices_in {
  public:
    using scalar = S;
    using space = Space;

    choices_in(const Room& room, plan_totals* totals) : room_(room) { view_.totals = totals; }

    void resize(index_t tokens, index_t experts, index_t choices, index_t capacity) {
        require(capacity == unlimited, "choices alone have no slots, and the router's settings limit an expert to ",
                capacity, " of them");
        room_(tokens, choices, view_.expert, view_.gate);
        view_.tokens = tokens;
        view_.experts = experts;
        view_.choices = choices;
    }
    void made_by(const plan_origin& origin) { view_.origin = origin; }
    const plan_view<S, Space>& view() const { return view_; }

  private:
    Room room_;
    plan_view<S, Space> view_;
};

template <class Policy, class Router, class Scores, class S, class Room, class Workspace>
void route_choices_into(const Policy& policy, const Router& router, const Scores& scores, const inference& mode,
                        const Room& room, plan_totals* totals, Workspace& scratch) {
    const auto scope = scratch.open();
    choices_in<S, typename Policy::memory::space, Room> choices(
        room, totals != nullptr ? totals : scratch.template take<plan_totals>(1));
    route_scores(policy, router, scores, run_mode(mode), choices, scratch);
}

template <class View>
void require_dense(const char* name, const View& m) {
    require((m.columns == 1 || m.column_stride == 1) && (m.rows <= 1 || m.row_stride == m.columns), name,
            " must be dense and row-major");
}

}  // namespace detail

/// scores[T, E] -> ids[T, k], gates[T, k]: dense and row-major, int32 and the compute type of the scores.
template <class Policy, class Router, matrix_like Scores, matrix_like Ids, matrix_like Gates, class Workspace>
void route_choices(const Policy& policy, const Router& router, const Scores& scores, const inference& mode, Ids&& ids,
                   Gates&& gates, Workspace& scratch, plan_totals* totals = nullptr) {
    using S = compute_t<scalar_of<Scores>>;
    const auto input = const_view(as_view(scores));
    const auto to_ids = as_view(ids);
    const auto to_gates = as_view(gates);
    require_space<Policy, decltype(input), decltype(to_ids), decltype(to_gates)>();
    static_assert(std::is_same_v<scalar_of<Ids>, std::int32_t>, "switchyard: ids of experts are written as int32");
    static_assert(std::is_same_v<scalar_of<Gates>, S>,
                  "switchyard: gates are in the compute type of the scores: float for float, half and bfloat16, double "
                  "for double");
    require_same_shape("gates", to_gates, "ids", to_ids);
    detail::require_dense("ids", to_ids);
    detail::require_dense("gates", to_gates);
    require_apart<Policy>("ids", to_ids, "scores", input, "gates", to_gates);
    require_apart<Policy>("gates", to_gates, "scores", input);
    const auto room = [&](index_t tokens, index_t choices, std::int32_t*& expert, S*& gate) {
        require(to_ids.rows == tokens && to_ids.columns == choices, "ids is ", to_ids.rows, " x ", to_ids.columns,
                "; the router makes ", tokens, " x ", choices, " choices");
        expert = to_ids.data;
        gate = to_gates.data;
    };
    detail::route_choices_into<Policy, Router, Scores, S>(policy, router, scores, mode, room, totals, scratch);
}

/// Allocates ids and gates.
template <class Policy, class Router, matrix_like Scores>
auto route_choices(const Policy& policy, const Router& router, const Scores& scores, const inference& mode = {}) {
    using memory = typename Policy::memory;
    using S = compute_t<scalar_of<Scores>>;
    routed_choices<S, memory> made{matrix<std::int32_t, memory>(memory_of(policy)),
                                   matrix<S, memory>(memory_of(policy))};
    basic_workspace<memory> scratch(memory_of(policy));
    const auto room = [&](index_t tokens, index_t choices, std::int32_t*& expert, S*& gate) {
        made.ids.resize(tokens, choices);
        made.gates.resize(tokens, choices);
        expert = made.ids.data();
        gate = made.gates.data();
    };
    detail::route_choices_into<Policy, Router, Scores, S>(policy, router, scores, mode, room, nullptr, scratch);
    return made;
}

}  // namespace SWITCHYARD_TARGET
}  // namespace switchyard
