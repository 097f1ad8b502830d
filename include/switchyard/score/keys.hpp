// Keys: what a selection compares. The k experts with the largest keys are chosen, equal keys by the lower expert.
//
//   raw_keys      the scores themselves. Without bias and groups, order by any of the score functions is order by score
//   biased_keys   value or score of an expert + bias[e], within a token's best groups of experts (score/groups.hpp)
//
// A bias steers the choice and nothing else: gates come from the values without it. A score of -infinity forbids its
// expert before any bias. Keys are computed in the compute type. Those of sigmoid and sqrt-softplus are bitwise
// identical on every target. A softmax's keys contain a sum over the row and may differ in the last bit between CPUs,
// generic devices and kernels, so keys that are closer than that may change places.
//
// Your own keys are a type with
//
//   template <int W>                                         the keys of the W experts from `first` on, from their
//   pack<S, W> operator()(index_t token, index_t first,      scores; experts at E and beyond have -infinity, and what
//       pack<S, W> score, S row_maximum, S row_sum) const    is returned for them, and for forbidden ones, is not used
//   bool needs_row_sum() const                               whether row_sum is read
//
// and may have a member `expert_groups groups`. `token` is one of the batch; a kernel also asks for keys that nothing
// uses, of padding as well. Keys that are NaN or -infinity count as the lowest finite number, so
// that only a score forbids an expert. DeepSeek-V3: arXiv 2412.19437. Balancing by bias: Wang et al. 2024, arXiv
// 2408.15664.
#pragma once

#include <switchyard/core/config.hpp>
#include <switchyard/core/simd.hpp>
#include <switchyard/score/groups.hpp>
#include <switchyard/score/score_function.hpp>
#include <switchyard/score/select.hpp>

#include <cstdint>
#include <limits>
#include <type_traits>

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wsign-conversion"  // g++'s remark on arrays whose length is an int of the template
#endif

namespace switchyard {

/// What a bias is added to, and groups are formed of.
enum class key_source {
    value,  ///< the score function's
    score,  ///< the scores themselves
};

inline namespace SWITCHYARD_TARGET {

struct raw_keys {
    SWITCHYARD_HD static constexpr bool needs_row_sum() { return false; }
};

template <class S>
struct biased_keys {
    score_function function = score_function::softmax;
    key_source source = key_source::value;
    const S* bias = nullptr;  ///< [E], on CPUs padded to 16 numbers, or null
    expert_groups groups{};

    SWITCHYARD_HD bool needs_row_sum() const {
        return source == key_source::value && function == score_function::softmax;
    }

    template <int W>
    SWITCHYARD_HD SWITCHYARD_ALWAYS_INLINE pack<S, W> operator()(index_t, index_t first, pack<S, W> score,
                                                                 S row_maximum, S row_sum) const {
        using P = pack<S, W>;
        P key = score;
        if (source == key_source::value) {
            key = value_of(function, score, P::all(row_maximum));
            if (function == score_function::softmax) {
                key = rounded_times(key, P::all(S(1) / row_sum));
            }
        }
        return bias != nullptr ? key + P::load(bias + first) : key;
    }
};

namespace detail {

template <class Keys>
inline constexpr bool are_raw = std::is_same_v<Keys, raw_keys>;

/// Groups of keys, one where they have none.
template <class Keys>
SWITCHYARD_HD expert_groups groups_of(const Keys& keys) {
    if constexpr (requires { keys.groups; }) {
        return keys.groups;
    } else {
        return {};
    }
}

/// A key, forbidden where its score is and nowhere else: that of an allowed expert is at least the lowest finite
/// number, also where it is NaN or out of range, so that there are always k experts to choose.
template <class P>
SWITCHYARD_HD P allowed_key(P score, P key) {
    const P forbidden = P::all(lowest<typename P::scalar>());
    const P least = P::all(std::numeric_limits<typename P::scalar>::lowest());
    return where(above(score, forbidden), max(key, least), forbidden);
}

/// Calls f(keys), with settings that are the same for all numbers as constants where the keys are the library's own: a
/// loop then holds no more than it needs.
template <class Keys, class F>
SWITCHYARD_HD void with_constant_settings(const Keys& keys, const F& f) {
    f(keys);
}
template <class S, class F>
SWITCHYARD_HD void with_constant_settings(const biased_keys<S>& keys, const F& f) {
    biased_keys<S> constant = keys;
    if (keys.source == key_source::score) {
        constant.source = key_source::score;
        f(constant);
    } else if (keys.function == score_function::sigmoid) {
        constant.source = key_source::value;
        constant.function = score_function::sigmoid;
        f(constant);
    } else if (keys.function == score_function::sqrt_softplus) {
        constant.source = key_source::value;
        constant.function = score_function::sqrt_softplus;
        f(constant);
    } else {
        f(keys);
    }
}

/// The keys of a row to `to` [E padded to W].
template <int W, class Keys, class S>
SWITCHYARD_HD void write_keys(const Keys& keys, index_t token, const S* row, index_t experts, S row_maximum, S row_sum,
                              S* to) {
    using P = pack<S, W>;
    with_constant_settings(keys, [&](const auto& constant) {
        const auto write = [&](index_t j, P score) {
            allowed_key(score, constant.template operator()<W>(token, j, score, row_maximum, row_sum)).store(to + j);
        };
        index_t j = 0;
        for (; j + W <= experts; j += W) {
            write(j, P::load(row + j));
        }
        if (j < experts) {
            write(j, P::load_first(row + j, experts - j, lowest<S>()));
        }
    });
}

/// Lane by lane, the maxima of the columns j, j + W, ... of a row that is padded with -infinity.
template <int W, class S>
SWITCHYARD_HD pack<S, W> column_maxima_of(const S* row, index_t experts) {
    using P = pack<S, W>;
    P highest_keys = P::all(lowest<S>());
    for (index_t j = 0; j < experts; j += W) {
        highest_keys = max(highest_keys, P::load(row + j));
    }
    return highest_keys;
}

}  // namespace detail
}  // namespace SWITCHYARD_TARGET
}  // namespace switchyard

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic pop
#endif
