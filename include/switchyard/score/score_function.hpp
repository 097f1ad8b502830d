// The values v of a token's scores s, which choices and weights are made from.
//
//   softmax         v_e = exp(s_e - max s) / sum_i exp(s_i - max s)     Switch, Mixtral, Qwen, DeepSeek-V2, ...
//   sigmoid         v_e = 1 / (1 + exp(-s_e))                           DeepSeek-V3, GLM-4.5, Kimi K2, Llama 4, BASE
//   sqrt_softplus   v_e = sqrt(log(1 + exp(s_e)))                       DeepSeek-V4
//
// Values of softmax are handled as exp(s - max), in units of the row's sum. A score of -infinity has the value 0 and
// the derivative 0. To add a function of one score: a header like score/sigmoid.hpp, its two lines here, its formula in
// reference/recipe.hpp.
#pragma once

#include <switchyard/core/config.hpp>
#include <switchyard/core/simd.hpp>
#include <switchyard/score/sigmoid.hpp>
#include <switchyard/score/sqrt_softplus.hpp>

namespace switchyard {

enum class score_function { softmax, sigmoid, sqrt_softplus };

inline namespace SWITCHYARD_TARGET {

/// v, for softmax in units of the row's sum.
template <class S, int W>
SWITCHYARD_HD SWITCHYARD_ALWAYS_INLINE pack<S, W> value_of(score_function f, pack<S, W> score, pack<S, W> row_maximum) {
    switch (f) {
        case score_function::sigmoid:
            return sigmoid(score);
        case score_function::sqrt_softplus:
            return sqrt_softplus(score);
        default:
            return exp_nonpositive(score - row_maximum);
    }
}

/// d v / d s of a function of one score.
template <class S, int W>
SWITCHYARD_HD pack<S, W> slope_of(score_function f, pack<S, W> score) {
    return f == score_function::sigmoid ? sigmoid_derivative(score) : sqrt_softplus_derivative(score);
}

}  // namespace SWITCHYARD_TARGET
}  // namespace switchyard
