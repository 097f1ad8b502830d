// From tokens to scores: s = x' W, and back.
//
//   forward    x' = x with input noise (a copy: experts receive x itself), s[T, E] = x'[T, D] W[D, E], no bias
//   backward   dW = x'^T ds,   dx = (ds W^T) times the noise factors
//
// Rows of padding are not read: they count as zeros.
#pragma once

#include <switchyard/reference/noise.hpp>

namespace switchyard::reference::inline SWITCHYARD_TARGET {

/// The scores of tokens x[T, D] under the router's weights w[D, E].
inline matrix project(const exploration& settings, const matrix& x, const matrix& w, const mask_list& mask,
                      const maybe_noise& noise) {
    require_valid(settings);
    require_mask(mask, x.rows);
    require(x.columns == w.rows, "x has ", x.columns, " columns; w has ", w.rows, " rows, which must be as many");
    return matmul(noisy_input(settings, x, mask, noise), w);
}

struct projection_gradients {
    matrix d_x;
    matrix d_w;
};

inline projection_gradients project_backward(const exploration& settings, const matrix& x, const matrix& w,
                                             const mask_list& mask, const maybe_noise& noise, const matrix& d_scores) {
    const matrix d_copy = matmul(d_scores, transpose(w));
    return {noisy_input_backward(settings, d_copy, noise),
            matmul(transpose(noisy_input(settings, x, mask, noise)), d_scores)};
}

}  // namespace switchyard::reference::inline SWITCHYARD_TARGET
