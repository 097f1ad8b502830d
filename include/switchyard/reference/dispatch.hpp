// Dispatch and combine: rows to the experts, and their outputs back, with gradients.
//
//   dispatch            rows[r] = x[t]                        for kept choice r = (t, c), in expert order
//   combine             y[t] = sum_c gate(t, c) out[r(t, c)]  over kept choices; a token without any gets zeros
//   combine_backward    d_out[r] = gate(t, c) d_y[t]          d_gate(t, c) = out[r] . d_y[t]
//   dispatch_backward   d_x[t] = sum_c d_rows[r(t, c)]
//
// Gates may weigh the experts' input instead: then rows[r] = gate x[t], y[t] = sum_c out[r], and the gate gradient is
// x[t] . d_rows[r], found by dispatch_backward.
//
// Identity experts give back the token: with x, combine adds gate x[t] for their choices, and backward gives
// d_gate(t, c) = x[t] . d_y[t] and d_x[t], the sum of gate d_y[t] over them.
//
// A dropped choice adds nothing to y, and its gate's gradient is 0: the residual connection around the layer carries
// the token (Switch, arXiv 2101.03961).
#pragma once

#include <switchyard/reference/plan.hpp>

namespace switchyard::reference::inline SWITCHYARD_TARGET {

/// What gates multiply.
enum class gates_weigh { output, input };

inline void require_rows(const plan& made, const matrix& rows, const char* name) {
    require(rows.rows == made.kept(), name, " has ", rows.rows, " rows; the plan keeps ", made.kept(), " choices");
}

inline void require_tokens(const plan& made, const matrix& x, const char* name) {
    require(x.rows == made.tokens(), name, " has ", x.rows, " rows; the plan has ", made.tokens(), " tokens");
}

/// The tokens' rows in expert order: [kept, D].
inline matrix dispatch(const plan& made, const matrix& x, gates_weigh weighed = gates_weigh::output) {
    require_tokens(made, x, "x");
    matrix rows(made.kept(), x.columns);
    for (index_t r = 0; r < made.kept(); ++r) {
        const index_t t = made.order[r] / made.choices();
        const index_t c = made.order[r] % made.choices();
        const double weight = weighed == gates_weigh::input ? made.gates(t, c) : 1.0;
        for (index_t d = 0; d < x.columns; ++d) rows(r, d) = weight * x(t, d);
    }
    return rows;
}

/// Adds the experts' outputs to y: [T, D].
inline void combine_onto(const plan& made, const matrix& expert_output, gates_weigh weighed, matrix& y) {
    require_rows(made, expert_output, "expert_output");
    require_tokens(made, y, "y");
    require(y.columns == expert_output.columns, "y has ", y.columns, " columns; expert_output has ",
            expert_output.columns);
    for (index_t t = 0; t < made.tokens(); ++t) {
        for (index_t c = 0; c < made.choices(); ++c) {
            if (!made.keeps(t, c)) continue;
            const double weight = weighed == gates_weigh::output ? made.gates(t, c) : 1.0;
            for (index_t d = 0; d < y.columns; ++d) y(t, d) += weight * expert_output(made.row(t, c), d);
        }
    }
}

/// The experts' outputs back at their tokens, weighed and summed: [T, D]. Zeros where nothing was kept.
inline matrix combine(const plan& made, const matrix& expert_output, gates_weigh weighed = gates_weigh::output) {
    matrix y(made.tokens(), expert_output.columns);
    combine_onto(made, expert_output, weighed, y);
    return y;
}

/// The same with the tokens x[T, D] that identity experts give back.
inline matrix combine(const plan& made, const matrix& expert_output, const matrix& x) {
    matrix y = combine(made, expert_output);
    require_tokens(made, x, "x");
    require(x.columns == y.columns, "x has ", x.columns, " columns; expert_output has ", y.columns);
    for (index_t t = 0; t < made.tokens(); ++t) {
        for (index_t c = 0; c < made.choices(); ++c) {
            if (!made.adds_token(t, c)) continue;
            for (index_t d = 0; d < y.columns; ++d) y(t, d) += made.gates(t, c) * x(t, d);
        }
    }
    return y;
}

struct combine_gradients {
    matrix d_expert_output;  ///< [kept, D]
    matrix d_gates;          ///< [T, k]; zeros where gates weigh the input
    matrix d_x = {};         ///< [T, D]; empty without x
};

inline combine_gradients combine_backward(const plan& made, const matrix& expert_output, const matrix& d_y,
                                          gates_weigh weighed = gates_weigh::output) {
    require_rows(made, expert_output, "expert_output");
    require_tokens(made, d_y, "d_y");
    require(d_y.columns == expert_output.columns, "d_y has ", d_y.columns, " columns; expert_output has ",
            expert_output.columns);
    combine_gradients d{matrix(made.kept(), d_y.columns), matrix(made.tokens(), made.choices())};
    for (index_t t = 0; t < made.tokens(); ++t) {
        for (index_t c = 0; c < made.choices(); ++c) {
            if (!made.keeps(t, c)) continue;
            const index_t r = made.row(t, c);
            const double weight = weighed == gates_weigh::output ? made.gates(t, c) : 1.0;
            for (index_t i = 0; i < d_y.columns; ++i) {
                d.d_expert_output(r, i) = weight * d_y(t, i);
                if (weighed == gates_weigh::output) d.d_gates(t, c) += expert_output(r, i) * d_y(t, i);
            }
        }
    }
    return d;
}

inline combine_gradients combine_backward(const plan& made, const matrix& expert_output, const matrix& x,
                                          const matrix& d_y) {
    combine_gradients d = combine_backward(made, expert_output, d_y);
    require_tokens(made, x, "x");
    require(x.columns == d_y.columns, "x has ", x.columns, " columns; d_y has ", d_y.columns);
    d.d_x = matrix(made.tokens(), x.columns);
    for (index_t t = 0; t < made.tokens(); ++t) {
        for (index_t c = 0; c < made.choices(); ++c) {
            if (!made.adds_token(t, c)) continue;
            for (index_t i = 0; i < x.columns; ++i) {
                d.d_gates(t, c) += x(t, i) * d_y(t, i);
                d.d_x(t, i) += made.gates(t, c) * d_y(t, i);
            }
        }
    }
    return d;
}

struct dispatch_gradients {
    matrix d_x;      ///< [T, D]
    matrix d_gates;  ///< [T, k]; zeros where gates weigh the output
};

inline dispatch_gradients dispatch_backward(const plan& made, const matrix& x, const matrix& d_rows,
                                            gates_weigh weighed = gates_weigh::output) {
    require_tokens(made, x, "x");
    require_rows(made, d_rows, "d_rows");
    require(d_rows.columns == x.columns, "d_rows has ", d_rows.columns, " columns; x has ", x.columns);
    dispatch_gradients d{matrix(made.tokens(), x.columns), matrix(made.tokens(), made.choices())};
    for (index_t t = 0; t < made.tokens(); ++t) {
        for (index_t c = 0; c < made.choices(); ++c) {
            if (!made.keeps(t, c)) continue;
            const index_t r = made.row(t, c);
            const double weight = weighed == gates_weigh::input ? made.gates(t, c) : 1.0;
            for (index_t i = 0; i < x.columns; ++i) {
                d.d_x(t, i) += weight * d_rows(r, i);
                if (weighed == gates_weigh::input) d.d_gates(t, c) += x(t, i) * d_rows(r, i);
            }
        }
    }
    return d;
}

}  // namespace switchyard::reference::inline SWITCHYARD_TARGET
