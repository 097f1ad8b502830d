// Gates: how the values v of a token's k choices become the weights of their experts' outputs.
//
//   g_c = scale v_c / D     D = 1, sum_j v_j + epsilon, or max(sum_j v_j, epsilon), j over the k choices, kept or not
//
// The scale is applied here and nowhere else, whatever D is. D = 0 gives gates 0 and no gradient. With softmax and
// D = sum the gates are a softmax over the chosen scores.
//
// Backward, with h_c the gradient of gate c and D' = 1 where D moves with the sum, else 0:
//
//   d v_c = scale / D (h_c - D' m),  m = sum_j h_j v_j / D,      d s_c = d v_c  d v_c / d s_c
//
// and for softmax, whose values depend on all scores, - p_e sum_c d s_c for every expert e besides.
//
// The two programs are written over `choices`, a row's k numbers wherever they lie: side by side in memory
// (choices_of_row), a pack for each choice of W rows (choices_of_tile), or one in each of a kernel's threads.
// Choices::number is what they are read as; map(f) replaces each score by f(score, gradient), sum_of(f) sums f(score,
// gradient) and sum() what stands in the scores' place, both in a fixed order.
#pragma once

#include <switchyard/core/config.hpp>
#include <switchyard/core/simd.hpp>
#include <switchyard/score/score_function.hpp>

#include <limits>

namespace switchyard {

/// What gates are divided by.
enum class gate_sum {
    none,   ///< 1
    add,    ///< the sum of the chosen values + epsilon
    clamp,  ///< max(the sum of the chosen values, epsilon)
};

/// The settings of gates, as routers' settings come down to them.
struct gate_settings {
    score_function function = score_function::softmax;
    gate_sum sum = gate_sum::none;
    double epsilon = 0;  ///< >= 0
    double scale = 1;    ///< finite

    SWITCHYARD_HD constexpr bool normalizes() const { return sum != gate_sum::none; }
    SWITCHYARD_HD constexpr bool is_softmax() const { return function == score_function::softmax; }
    /// Whether the sum over all experts is read.
    SWITCHYARD_HD constexpr bool needs_row_sum() const { return is_softmax() && (!normalizes() || epsilon != 0); }
};

inline namespace SWITCHYARD_TARGET {

/// One row's choices side by side in memory, in packs of W.
template <class S, int W>
struct choices_of_row {
    using number = pack<S, W>;
    S* score;
    const S* gradient;  ///< or null
    index_t k;

    template <class F>
    SWITCHYARD_HD void map(const F& f) const {
        for (index_t c = 0; c < k; c += W) {
            f(scores(c), gradients(c)).store_first(score + c, lanes(c));
        }
    }
    template <class F>
    SWITCHYARD_HD number sum_of(const F& f) const {
        number sum = number::all(S(0));
        for (index_t c = 0; c < k; c += W) {
            sum = sum + f(scores(c), gradients(c));
        }
        return number::all(total(sum));
    }
    SWITCHYARD_HD number sum() const {
        number all = number::all(S(0));
        for (index_t c = 0; c < k; c += W) {
            all = all + number::load_first(score + c, lanes(c), S(0));
        }
        return number::all(total(all));
    }

  private:
    SWITCHYARD_HD index_t lanes(index_t c) const { return k - c < W ? k - c : W; }
    /// Beyond the last choice lie scores that are forbidden: their values are 0.
    SWITCHYARD_HD number scores(index_t c) const {
        return number::load_first(score + c, lanes(c), -std::numeric_limits<S>::infinity());
    }
    SWITCHYARD_HD number gradients(index_t c) const {
        return gradient != nullptr ? number::load_first(gradient + c, lanes(c), S(0)) : number::all(S(0));
    }
};

/// A choice in each of k packs of W rows: the sums are those of choices_of_row with the same W, row by row.
template <class S, int W>
struct choices_of_tile {
    using number = pack<S, W>;
    S (*score)[W];
    index_t k;

    template <class F>
    void map(const F& f) const {
        for (index_t c = 0; c < k; ++c) {
            f(number::load(score[c]), number::all(S(0))).store(score[c]);
        }
    }
    number sum() const {
        number part[W];
        for (index_t c = 0; c < k; ++c) {
            const number score_of_rows = number::load(score[c]);
            part[c % W] = c < W ? score_of_rows : part[c % W] + score_of_rows;
        }
        index_t used = k < W ? k : W;
        for (index_t half = W / 2; half > 0; half /= 2) {
            for (index_t c = 0; c + half < used; ++c) {
                part[c] = part[c] + part[c + half];
            }
            used = used < half ? used : half;
        }
        return part[0];
    }
};

/// The two programs, in the numbers of a machine.
template <class S>
struct gate_rule {
    gate_settings settings;

    /// Scores become gates.
    template <class Choices, class N>
    SWITCHYARD_HD void weigh(const Choices& choices, N row_maximum, N row_sum) const {
        choices.map([&](N score, N) { return value_of(settings.function, score, row_maximum); });
        N sum = N::all(S(0));
        if (settings.normalizes()) {
            sum = choices.sum();
        }
        const N factor = N::all(static_cast<S>(settings.scale)) * inverse(sum, row_sum);
        choices.map([&](N value, N) { return value * factor; });
    }

    /// The gate of a single choice, the row's maximum.
    SWITCHYARD_HD S of_best(S score, S row_sum) const {
        using N = pack<S, 1>;
        const N value = settings.is_softmax() ? N::all(S(1)) : value_of(settings.function, N{score}, N{score});
        return (value * (N::all(static_cast<S>(settings.scale)) * inverse(value, N{row_sum}))).v;
    }

    /// Scores, with the gradients of their gates beside them, become what each choice adds to its score's gradient.
    /// Returns what a softmax's other scores share of that, 0 for other functions.
    template <class Choices, class N>
    SWITCHYARD_HD N differentiate(const Choices& choices, N row_maximum, N row_sum) const {
        const score_function f = settings.function;
        N sum = N::all(S(0));
        N mean = N::all(S(0));
        if (settings.normalizes()) {
            sum = choices.sum_of([&](N score, N) { return value_of(f, score, row_maximum); });
            mean = choices.sum_of([&](N score, N gradient) { return value_of(f, score, row_maximum) * gradient; });
        }
        const N over = inverse(sum, row_sum);
        mean = mean * over;
        if (settings.sum == gate_sum::clamp) {
            mean = where(above(sum, epsilon_in(row_sum)), mean, N::all(S(0)));
        }
        const N factor = N::all(static_cast<S>(settings.scale)) * over;
        choices.map([&](N score, N gradient) { return slope_of(f, score, row_maximum) * factor * (gradient - mean); });
        // Gates that are divided by their sum alone do not feel what all values have in common.
        const bool is_shared = settings.needs_row_sum();
        return is_shared ? choices.sum() : N::all(S(0));
    }

  private:
    /// epsilon in the units of the values.
    template <class N>
    SWITCHYARD_HD N epsilon_in(N row_sum) const {
        const N epsilon = N::all(static_cast<S>(settings.epsilon));
        return settings.is_softmax() ? epsilon * row_sum : epsilon;
    }

    /// 1 / D.
    template <class N>
    SWITCHYARD_HD N inverse(N sum, N row_sum) const {
        const N zero = N::all(S(0));
        const N one = N::all(S(1));
        N divisor = settings.is_softmax() ? row_sum : one;
        if (settings.sum == gate_sum::add) {
            divisor = settings.epsilon != 0 ? sum + epsilon_in(row_sum) : sum;
        } else if (settings.sum == gate_sum::clamp) {
            divisor = max(sum, epsilon_in(row_sum));
        }
        return where(above(divisor, zero), one / divisor, zero);
    }
};

}  // namespace SWITCHYARD_TARGET
}  // namespace switchyard
