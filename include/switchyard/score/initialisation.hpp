// Router weights at the start of training, from counters: the same numbers on every machine and thread count.
//
//   truncated_normal   Switch's reduced initialisation: N(0, scale / fan_in) cut at two standard deviations, with
//                      scale = 0.1, fan_in = D (Fedus et al. 2021, arXiv 2101.03961, section 2.4)
//   orthogonal         BASE's centroids: gain times a matrix with orthonormal columns (rows where E > D), gain = 0.1
//                      (Lewis et al. 2021, arXiv 2103.16716; Saxe et al. 2014, arXiv 1312.6120)
//
// Host memory. `w` is [D, E], any storage and stride. Computed in double. truncated_normal is O(D E) and allocates
// nothing; orthogonal is O(D E min(D, E)) and allocates one copy.
#pragma once

#include <switchyard/core/config.hpp>
#include <switchyard/core/error.hpp>
#include <switchyard/core/matrix_view.hpp>
#include <switchyard/core/memory.hpp>
#include <switchyard/core/philox.hpp>
#include <switchyard/core/scalar_traits.hpp>
#include <switchyard/score/noise.hpp>

#include <algorithm>
#include <cmath>

namespace switchyard {

struct truncated_normal {
    double scale = 0.1;
};

struct orthogonal {
    double gain = 0.1;
};

inline namespace SWITCHYARD_TARGET {
namespace detail {

/// Standard normal number of (row, column), attempt 0, 1, ...: Box-Muller on two words of one Philox call.
inline double normal_at(const noise_key& key, index_t row, index_t column, std::uint32_t attempt) {
    noise_key mine = for_purpose(key, noise_purpose::initialisation);
    mine.step = attempt;
    const philox_words words = noise_words(mine, row, column);
    const double radius = std::sqrt(-2.0 * std::log(static_cast<double>(uniform(words.word[0]))));
    return radius * std::cos(6.283185307179586 * static_cast<double>(uniform(words.word[1])));
}

}  // namespace detail

/// Fills w[D, E]. `key.step` is not used.
template <matrix_like W>
void initialise(const truncated_normal& settings, const noise_key& key, W&& w) {
    const auto out = as_view(w);
    require(settings.scale >= 0 && std::isfinite(settings.scale), "scale = ", settings.scale,
            " must be finite and not negative");
    const double deviation = std::sqrt(settings.scale / static_cast<double>(std::max<index_t>(1, out.rows)));
    for (index_t i = 0; i < out.rows; ++i) {
        for (index_t j = 0; j < out.columns; ++j) {
            double x = detail::normal_at(key, i, j, 0);
            for (std::uint32_t attempt = 1; std::abs(x) > 2; ++attempt) {
                x = detail::normal_at(key, i, j, attempt);
            }
            out(i, j) = store_scalar<scalar_of<W>>(static_cast<compute_t<scalar_of<W>>>(deviation * x));
        }
    }
}

/// Fills w[D, E]. `key.step` is not used.
template <matrix_like W>
void initialise(const orthogonal& settings, const noise_key& key, W&& w) {
    const auto out = as_view(w);
    require(std::isfinite(settings.gain), "gain = ", settings.gain, " must be finite");
    // Vectors to orthonormalise: columns of w, or rows where there are more columns than rows.
    const bool by_columns = out.rows >= out.columns;
    const index_t count = by_columns ? out.columns : out.rows;
    const index_t length = by_columns ? out.rows : out.columns;
    matrix<double> vectors(count, length);
    for (index_t v = 0; v < count; ++v) {
        double* const mine = &vectors(v, 0);
        for (std::uint32_t attempt = 0;; ++attempt) {
            for (index_t i = 0; i < length; ++i) {
                mine[i] = detail::normal_at(key, v, i, attempt);
            }
            // Twice: the second pass removes what rounding left in the first.
            for (int pass = 0; pass < 2; ++pass) {
                for (index_t u = 0; u < v; ++u) {
                    double product = 0;
                    for (index_t i = 0; i < length; ++i) {
                        product += vectors(u, i) * mine[i];
                    }
                    for (index_t i = 0; i < length; ++i) {
                        mine[i] -= product * vectors(u, i);
                    }
                }
            }
            double square = 0;
            for (index_t i = 0; i < length; ++i) {
                square += mine[i] * mine[i];
            }
            if (square > 1e-12) {  // else the draw lay in the span of the others: draw again
                for (index_t i = 0; i < length; ++i) {
                    mine[i] /= std::sqrt(square);
                }
                break;
            }
        }
    }
    for (index_t i = 0; i < out.rows; ++i) {
        for (index_t j = 0; j < out.columns; ++j) {
            const double x = settings.gain * (by_columns ? vectors(j, i) : vectors(i, j));
            out(i, j) = store_scalar<scalar_of<W>>(static_cast<compute_t<scalar_of<W>>>(x));
        }
    }
}

}  // namespace SWITCHYARD_TARGET
}  // namespace switchyard
