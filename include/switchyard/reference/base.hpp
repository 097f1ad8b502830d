// BASE: every expert gets the same number of tokens. Lewis, Bhosale, Dettmers, Goyal, Zettlemoyer, "BASE Layers:
// Simplifying Training of Large, Sparse Models", arXiv 2103.16716.
//
//   s = x w^T             w[E, D]: one embedding (centroid) an expert
//   training              a = the balanced assignment: maximise sum_t s[t, a(t)], every expert T / E tokens
//   inference             a(t) = argmax_e s_te, without balance
//   gate_t = sigmoid(s[t, a(t)])
//
// Nothing is dropped, there is no capacity and no auxiliary loss. Slots go by token position. The assignment is found
// elsewhere (assignment.hpp beside this file) and given to this router as a list of experts; it has no gradient, so the
// centroids learn through the gate alone:
//   ds[t, a(t)] = d_gate_t g (1 - g),   dx = ds w,   dw = ds^T x
#pragma once

#include <switchyard/reference/choices.hpp>
#include <switchyard/reference/projection.hpp>
#include <switchyard/reference/slots.hpp>

#include <optional>

namespace switchyard::reference::inline SWITCHYARD_TARGET {

struct base_router {
    /// Training: the expert of every token, from a balanced assignment (padding rows: anything). Inference: nothing.
    std::optional<list<index_t>> assignment = std::nullopt;
};

/// The assignment as a table of one choice per token, padding rows -1; fails if it is no assignment of these scores.
inline integers assigned_experts(const list<index_t>& assignment, const matrix& scores, const mask_list& mask) {
    require(assignment.length() == scores.rows, "the assignment has ", assignment.length(), " entries for ",
            scores.rows, " tokens");
    integers experts(scores.rows, 1, -1);
    for (index_t t = 0; t < scores.rows; ++t) {
        if (!is_token(mask, t)) continue;
        const index_t e = assignment[t];
        require(e >= 0 && e < scores.columns, "token ", t, " is assigned to expert ", e, ", which must lie in 0..",
                scores.columns - 1);
        require(scores(t, e) != -infinity, "token ", t, " is assigned to expert ", e, ", which its scores forbid");
        experts(t, 0) = e;
    }
    return experts;
}

/// Routes by scores s[T, E].
inline plan route_scores(const base_router& router, const matrix& scores, const mask_list& mask = {}) {
    require_scores(scores, mask, unroutable::refused);
    plan made{.experts_count = scores.columns};
    made.experts =
        router.assignment ? assigned_experts(*router.assignment, scores, mask) : top_k_experts(scores, 1, mask);
    made.gates = matrix(scores.rows, 1);
    for (index_t t = 0; t < scores.rows; ++t) {
        if (is_token(mask, t)) made.gates(t, 0) = sigmoid(scores(t, made.experts(t, 0)));
    }
    const auto by_position = token_order(drop_order::position, made.gates.values);
    made.slots = take_slots(made.experts, scores.columns, unlimited, by_position);
    made.load_before = count_experts(made.experts, scores.columns);
    index_kept_choices(made);
    return made;
}

/// The gradient of the scores from that of the gates.
inline matrix route_scores_backward(const plan& made, const matrix& scores, const matrix& d_gates) {
    require_plan_of(made, scores);
    const matrix d_kept = kept_gradients(made, d_gates);
    matrix d_scores(scores.rows, scores.columns);
    for (index_t t = 0; t < scores.rows; ++t) {
        if (!made.keeps(t, 0)) continue;
        d_scores(t, made.experts(t, 0)) = sigmoid_backward(made.gates(t, 0), d_kept(t, 0));
    }
    return d_scores;
}

/// The scores of tokens x[T, D] under the centroids w[E, D]: what the assignment is found from. No noise.
inline matrix base_scores(const matrix& x, const matrix& w, const mask_list& mask = {}) {
    return reference::project({}, x, transpose(w), mask, {});
}

/// Routes tokens x[T, D] by the centroids w[E, D].
inline plan route(const base_router& router, const matrix& x, const matrix& w, const mask_list& mask = {}) {
    return reference::route_scores(router, base_scores(x, w, mask), mask);
}

/// The gradients of x and w from that of the gates.
inline projection_gradients route_backward(const plan& made, const matrix& x, const matrix& w, const matrix& d_gates,
                                           const mask_list& mask = {}) {
    const matrix d_scores = reference::route_scores_backward(made, base_scores(x, w, mask), d_gates);
    auto gradients = reference::project_backward({}, x, transpose(w), mask, {}, d_scores);
    gradients.d_w = transpose(gradients.d_w);
    return gradients;
}

}  // namespace switchyard::reference::inline SWITCHYARD_TARGET
