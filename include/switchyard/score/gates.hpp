// Gates: how the values v of a token's k choices become the weights of their experts' outputs.
//
//   g_c = scale v_c / D     D = 1, sum_j v_j + epsilon, or max(sum_j v_j, epsilon), j over the k choices, kept or not
//
// The scale is applied here and nowhere else, whatever D is. D = 0 gives gates 0 and no gradient. With softmax and
// D = sum the gates are a softmax over the chosen scores, however far these lie below the row's highest: values that
// would be 0 all together are taken relative to the highest of the chosen.
//
// Backward, with h_c the gradient of gate c and D' = 1 where D moves with the sum, else 0:
//
//   d v_c = scale / D (h_c - D' m),  m = sum_j h_j v_j / D,      d s_c = d v_c  d v_c / d s_c
//
// and for softmax, whose values depend on all scores, - p_e sum_c d s_c for every expert e besides.
//
// The two programs are written over `choices`, a row's k numbers wherever they are: adjacent in memory
// (choices_of_row), a pack for each choice of W rows (choices_of_tile), or one in each of a kernel's threads.
// Choices::number is what they are read as; map(f) replaces each score by f(score, gradient) and returns the sum of
// what this thread replaced, sum_of(f) sums f(score, gradient), sum() what stands in the scores' place, all in a fixed
// order, and largest() is the largest of that. `are_values` says that a softmax's values are all it ever holds.
#pragma once

#include <switchyard/core/config.hpp>
#include <switchyard/core/simd.hpp>
#include <switchyard/score/score_function.hpp>

#include <limits>

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wsign-conversion"  // g++'s remark on arrays whose length is an int of the template
#endif

namespace switchyard {

/// What gates are divided by.
enum class gate_sum {
    none,   ///< 1
    add,    ///< the sum of the chosen values + epsilon
    clamp,  ///< max(the sum of the chosen values, epsilon)
    norm,   ///< a p-norm of the chosen values: not here, but when the gates are finished (router/finished_gates.hpp)
};

/// The settings of gates, which routers' settings are translated to.
struct gate_settings {
    score_function function = score_function::softmax;
    gate_sum sum = gate_sum::none;
    double epsilon = 0;  ///< >= 0
    double scale = 1;    ///< finite

    SWITCHYARD_HD SWITCHYARD_ALWAYS_INLINE constexpr bool normalizes() const { return sum != gate_sum::none; }
    SWITCHYARD_HD SWITCHYARD_ALWAYS_INLINE constexpr bool is_softmax() const {
        return function == score_function::softmax;
    }
    /// Whether the sum over all experts is read.
    SWITCHYARD_HD SWITCHYARD_ALWAYS_INLINE constexpr bool needs_row_sum() const {
        return is_softmax() && (!normalizes() || epsilon != 0);
    }
    /// Whether the gates are a softmax over the chosen scores.
    SWITCHYARD_HD SWITCHYARD_ALWAYS_INLINE constexpr bool is_softmax_of_chosen() const {
        return is_softmax() && !needs_row_sum();
    }
};

inline namespace SWITCHYARD_TARGET {

/// One row's choices adjacent in memory, in packs of W. Products are rounded before they are summed: results do not
/// depend on what a compiler inlines.
template <class S, int W>
struct choices_of_row {
    using number = pack<S, W>;
    static constexpr bool are_values = false;
    S* score;
    const S* gradient;  ///< or null
    index_t k;
    S beyond = -std::numeric_limits<S>::infinity();  ///< what stands beyond the last choice: its value is 0

    template <class F>
    SWITCHYARD_HD number map(const F& f) const {
        number part = number::all(S(0));
        for (index_t c = 0; c < k; c += W) {
            const number made = settled(f(scores(c), gradients(c)));
            made.store_first(score + c, lanes(c));
            part = part + made;
        }
        return number::all(total(part));
    }
    template <class F>
    SWITCHYARD_HD number sum_of(const F& f) const {
        number sum = number::all(S(0));
        for (index_t c = 0; c < k; c += W) {
            sum = sum + settled(f(scores(c), gradients(c)));
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
    SWITCHYARD_HD number largest() const {
        number all = number::all(-std::numeric_limits<S>::infinity());
        for (index_t c = 0; c < k; c += W) {
            all = max(all, number::load_first(score + c, lanes(c), -std::numeric_limits<S>::infinity()));
        }
        return number::all(highest(all));
    }

  private:
    SWITCHYARD_HD index_t lanes(index_t c) const { return k - c < W ? k - c : W; }
    SWITCHYARD_HD number scores(index_t c) const { return number::load_first(score + c, lanes(c), beyond); }
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
        part[0] = number::all(S(0));
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
    number largest() const {
        number all = number::load(score[0]);
        for (index_t c = 1; c < k; ++c) {
            all = max(all, number::load(score[c]));
        }
        return all;
    }
};

/// The two programs, in the numbers of a machine.
template <class S>
struct gate_rule {
    gate_settings settings{};
    S scale = S(1);
    S epsilon = S(0);

    constexpr gate_rule() = default;
    // Implicit, so that selections are aggregates of what they are made of.
    // NOLINTNEXTLINE(google-explicit-constructor)
    SWITCHYARD_HD constexpr gate_rule(const gate_settings& s)
        : settings(s), scale(static_cast<S>(s.scale)), epsilon(static_cast<S>(s.epsilon)) {}

    /// A softmax's chosen values that are all less are taken relative to the highest of them instead.
    SWITCHYARD_HD static constexpr S least_value() {
        return std::numeric_limits<S>::min() / std::numeric_limits<S>::epsilon();
    }

    /// Scores become gates, where the row's maximum is among them. Values of a softmax are handled in units of the
    /// row's sum.
    template <class Choices, class N>
    SWITCHYARD_HD void weigh(const Choices& choices, N row_maximum, N row_sum) const {
        choices.map([&](N score, N) { return value_of(settings.function, score, row_maximum); });
        const N sum = settings.normalizes() ? choices.sum() : N::all(S(0));
        const N over = inverse(sum, settings.is_softmax() ? row_sum : N::all(S(1)));
        const N factor = N::all(scale);
        choices.map([&](N value, N) { return value * over * factor; });
    }

    /// The same where the row's maximum may be none of them.
    template <class Choices, class N>
    SWITCHYARD_HD void weigh_any(const Choices& choices, N row_maximum, N row_sum) const {
        N maximum = row_maximum;
        if (settings.is_softmax_of_chosen()) {
            // Forbidden scores, where there are no others, have the value 0.
            const N chosen = max(choices.largest(), N::all(std::numeric_limits<S>::lowest()));
            maximum = where(above(row_maximum, chosen + N::all(farthest)), chosen, row_maximum);
        }
        weigh(choices, maximum, row_sum);
    }

    /// The gate of a single choice, the row's maximum.
    SWITCHYARD_HD S of_best(S score, S row_sum) const {
        if (settings.is_softmax() && !settings.normalizes()) {
            return scale / row_sum;
        }
        using N = pack<S, 1>;
        const N value = settings.is_softmax() ? N{S(1)} : value_of(settings.function, N{score}, N{score});
        return value.v * inverse(value, N{settings.is_softmax() ? row_sum : S(1)}).v * scale;
    }

    /// Values, with the gradients of their gates beside them, become what each choice adds to its score's gradient.
    /// A softmax's values are given as they are, those of other functions as their scores. Returns what a softmax's
    /// other scores share of this thread's, 0 for other functions.
    template <class Choices>
    SWITCHYARD_HD SWITCHYARD_ALWAYS_INLINE typename Choices::number differentiate(const Choices& choices) const {
        using N = typename Choices::number;
        const N zero = N::all(S(0));
        const N one = N::all(S(1));
        const bool is_softmax = settings.is_softmax();
        const auto value = [&](N x) {
            if constexpr (Choices::are_values) {
                return x;
            } else {
                return is_softmax ? x : value_of(settings.function, x, x);
            }
        };
        const auto slope = [&](N x) {
            if constexpr (Choices::are_values) {
                return x;
            } else {
                return is_softmax ? x : slope_of(settings.function, x);
            }
        };
        N over = one;
        N mean = zero;
        if (settings.normalizes()) {
            const N sum = choices.sum_of([&](N x, N) { return value(x); });
            over = inverse(sum, one);
            mean = choices.sum_of([&](N x, N gradient) { return value(x) * gradient; }) * over;
            if (settings.sum == gate_sum::clamp) {
                mean = where(above(N::all(epsilon), sum), zero, mean);
            }
        }
        const N factor = N::all(scale);
        const N part = choices.map([&](N x, N gradient) { return slope(x) * over * (gradient - mean) * factor; });
        // Gates that are divided by their sum alone do not feel what all values have in common.
        return settings.needs_row_sum() ? part : zero;
    }

  private:
    /// How far below the row's maximum the highest of the chosen may lie and values be relative to the former. Its own
    /// is 1.6e-28 then, and those which count beside it are in float's range, too.
    static constexpr S farthest = S(64);

    /// 1 / D, in the unit of the values. It may be near the largest number: times the scale it would be infinite, so
    /// values are multiplied by it before they are by the scale.
    template <class N>
    SWITCHYARD_HD N inverse(N sum, N unit) const {
        const N zero = N::all(S(0));
        N divisor = unit;
        if (settings.sum == gate_sum::add) {
            divisor = epsilon != S(0) ? multiply_add(N::all(epsilon), unit, sum) : sum;
        } else if (settings.sum == gate_sum::clamp) {
            divisor = max(sum, N::all(epsilon) * unit);
        }
        return where(above(divisor, zero), N::all(S(1)) / divisor, zero);
    }
};

}  // namespace SWITCHYARD_TARGET
}  // namespace switchyard

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic pop
#endif
