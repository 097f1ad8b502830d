// What a router decided about every token: the result of all of them.
//
//   experts[T, k]   the choices, best first, kept or not; -1 in padding rows
//   slots[T, k]     the row the choice has in its expert, -1 where it was dropped
//   gates[T, k]     the weight of that expert's output, 0 where the choice was dropped
//   offsets[E + 1]  the kept choices of expert e are entries offsets[e] .. offsets[e + 1] of `order`
//   order[kept]     token * k + choice, expert by expert, by rising slot
//   load_before[E]  choices of an expert before capacity (forbidden and padding ones are none)
//   load_after[E]   choices it keeps
//
// Choices of experts without rows, E and above, have slot -1 and keep their gate; 0: they were forbidden.
//
// The losses include their weights.
#pragma once

#include <switchyard/reference/capacity.hpp>
#include <switchyard/reference/matrix.hpp>

namespace switchyard::reference::inline SWITCHYARD_TARGET {

struct plan {
    index_t experts_count = 0;     ///< E
    index_t identity_experts = 0;  ///< without rows, E .. E + identity_experts - 1
    index_t zero_experts = 0;      ///< and those behind them
    index_t shared_experts = 0;    ///< and those behind these
    index_t capacity = unlimited;
    integers experts = {};
    integers slots = {};
    matrix gates = {};
    list<index_t> offsets = {};
    list<index_t> order = {};
    list<index_t> load_before = {};
    list<index_t> load_after = {};
    double load_balancing_loss = 0;
    double z_loss = 0;

    index_t tokens() const { return experts.rows; }
    index_t choices() const { return experts.columns; }
    index_t kept() const { return order.length(); }
    bool keeps(index_t token, index_t choice) const { return slots(token, choice) >= 0; }
    /// Whether a choice needs no row.
    bool is_rowless(index_t token, index_t choice) const {
        return experts(token, choice) >= experts_count && gates(token, choice) != 0;
    }
    /// Whether it adds the token itself.
    bool adds_token(index_t token, index_t choice) const {
        return is_rowless(token, choice) && experts(token, choice) < experts_count + identity_experts;
    }
    /// The row of a kept choice among the rows in expert order.
    index_t row(index_t token, index_t choice) const { return offsets[experts(token, choice)] + slots(token, choice); }
};

/// The gradients of the gates that count: those of kept choices and of those without rows. What stands at a dropped
/// choice is not read.
inline matrix kept_gradients(const plan& made, const matrix& d_gates) {
    require(d_gates.rows == made.tokens() && d_gates.columns == made.choices(), "d_gates is ", d_gates.rows, " x ",
            d_gates.columns, "; the plan has ", made.tokens(), " tokens of ", made.choices(), " choices");
    matrix kept(d_gates.rows, d_gates.columns);
    for (index_t t = 0; t < made.tokens(); ++t) {
        for (index_t c = 0; c < made.choices(); ++c) {
            if (made.keeps(t, c) || made.is_rowless(t, c)) kept(t, c) = d_gates(t, c);
        }
    }
    return kept;
}

/// Fails unless scores have the shape the plan was made from.
inline void require_plan_of(const plan& made, const matrix& scores) {
    const index_t columns = made.experts_count + made.identity_experts + made.zero_experts + made.shared_experts;
    require(scores.rows == made.tokens() && scores.columns == columns, "scores are ", scores.rows, " x ",
            scores.columns, "; the plan was made from ", made.tokens(), " x ", columns);
}

}  // namespace switchyard::reference::inline SWITCHYARD_TARGET
