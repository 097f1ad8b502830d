// The load loss of noisy top-k gating: even loads, by a smooth estimate of them that has a gradient.
//
//   load_e = sum_t Phi((s_te - r_te) / sigma_te)     the chance that e is in the top k were its noise drawn again
//   r_te   = the (k+1)-th largest of h_t where e is in its top k, else the k-th; -infinity where there is none
//   loss   = weight CV^2(load),   CV^2(v) = variance / (mean^2 + 1e-10), the population's
//
// s scores, n noise scores, sigma = log(1 + exp(n)) + least_deviation and h = s + N sigma as in score/noisy_scores.hpp;
// Phi is the normal distribution. Shazeer's importance loss is the same CV^2 of the sums of gates
// (balance/importance_loss.hpp).
//
// Backward is the gradient of all that, the thresholds r included: they move with the scores and noise scores of the
// experts that hold them. With a_e = d loss / d load_e and x = (s - r) / sigma, phi the density,
//
//   d s_te += a_e phi(x) / sigma;   d n_te -= a_e phi(x) x / sigma sigmoid(n_te);   the holder h of r_te gets
//   d s_th -= a_e phi(x) / sigma;   d n_th -= a_e phi(x) / sigma N_th sigmoid(n_th)
//
// Padding and forbidden experts (-infinity) count nowhere. load[E] and loss[1] are doubles in the policy's memory. Sums
// have an order that depends on the shape alone: they are bitwise identical for any number of threads. O(T E + T k), T
// (k + 1) lists and 512 E sums of scratch at most; nothing waits. Ties: the lower expert.
//
// Shazeer et al. 2017, arXiv 1701.06538, appendix A; weight 0.1.
#pragma once

#include <switchyard/backend/policy.hpp>
#include <switchyard/balance/importance_loss.hpp>
#include <switchyard/core/arguments.hpp>
#include <switchyard/core/config.hpp>
#include <switchyard/core/error.hpp>
#include <switchyard/core/matrix_view.hpp>
#include <switchyard/core/overlap.hpp>
#include <switchyard/core/rounding.hpp>
#include <switchyard/core/scalar_traits.hpp>
#include <switchyard/core/sizes.hpp>
#include <switchyard/core/stored.hpp>
#include <switchyard/core/workspace.hpp>
#include <switchyard/score/noisy_scores.hpp>
#include <switchyard/score/select.hpp>

#include <cmath>
#include <cstdint>
#include <limits>
#include <type_traits>

namespace switchyard {

struct load_loss_settings {
    index_t k = 1;  ///< 1..E: that of the router
    double weight = 0.1;
    noisy_score_settings noisy{};  ///< those that made the noisy scores
    token_mask mask{};
};

inline namespace SWITCHYARD_TARGET {

namespace detail {

/// What both directions read of a token.
template <class S, class ScoreStorage, class NoiseStorage, class NoisyStorage, class Space>
struct smooth_load_rows {
    matrix_view<const ScoreStorage, Space> scores;
    matrix_view<const NoiseStorage, Space> noise_scores;
    matrix_view<const NoisyStorage, Space> noisy;
    index_t k;
    S least;
    noise_key noise;
    token_mask mask;
    S* best;               ///< [T, k + 1], falling
    std::int32_t* chosen;  ///< [T, k + 1] their experts

    /// The k + 1 largest noisy scores of a token; where there are no more experts than k, the last is -infinity.
    SWITCHYARD_HD void list(index_t token) const {
        S* const value = best + token * (k + 1);
        std::int32_t* const expert = chosen + token * (k + 1);
        index_t held = 0;
        for (index_t e = 0; e < noisy.columns; ++e) {
            const S h = usable(load_as<S>(noisy(token, e)));
            if (held == k + 1 && !(h > value[k])) continue;
            index_t at = held <= k ? held : k;
            for (; at > 0 && value[at - 1] < h; --at) {
                value[at] = value[at - 1];
                expert[at] = expert[at - 1];
            }
            value[at] = h;
            expert[at] = static_cast<std::int32_t>(e);
            held = held <= k ? held + 1 : held;
        }
        for (; held <= k; ++held) {
            value[held] = lowest<S>();
            expert[held] = 0;
        }
    }
    /// Where in its token's list the threshold of e stands.
    SWITCHYARD_HD index_t threshold_of(index_t token, index_t e) const {
        const S last = best[token * (k + 1) + k - 1];
        const S h = usable(load_as<S>(noisy(token, e)));
        return h > last || (h == last && e <= chosen[token * (k + 1) + k - 1]) ? k : k - 1;
    }
    SWITCHYARD_HD bool counts(index_t token, index_t e) const {
        return mask(token) && load_as<S>(scores(token, e)) > lowest<S>();
    }
    SWITCHYARD_HD S deviation(index_t token, index_t e) const {
        return softplus(load_as<S>(noise_scores(token, e))) + least;
    }
    /// (s - r) / sigma; infinite where there is no threshold.
    SWITCHYARD_HD S distance(index_t token, index_t e) const {
        constexpr S infinity = std::numeric_limits<S>::infinity();
        const S level = best[token * (k + 1) + threshold_of(token, e)];
        if (!(level > lowest<S>())) return infinity;
        const S above = load_as<S>(scores(token, e)) - level;
        const S sigma = deviation(token, e);
        return sigma > S(0) ? above / sigma : above >= S(0) ? infinity : -infinity;
    }
};

template <class Rows>
struct list_best {
    Rows rows;
    SWITCHYARD_HD void operator()(index_t token) const { rows.list(token); }
};

/// partial[b, e]: the load of e by the tokens of block b.
template <class Rows>
struct sum_load_block {
    Rows rows;
    index_t block;
    double* partial;

    SWITCHYARD_HD void operator()(index_t i) const {
        const index_t experts = rows.scores.columns;
        const index_t e = i % experts;
        const index_t first = i / experts * block;
        double sum = 0;
        for (index_t t = first; t < first + block && t < rows.scores.rows; ++t) {
            if (rows.counts(t, e)) {
                const auto x = rows.distance(t, e);
                using S = std::remove_const_t<decltype(x)>;
                sum += settled(0.5 * static_cast<double>(std::erfc(S(-0.7071067811865476) * x)));
            }
        }
        partial[i] = sum;
    }
};

struct sum_blocks {
    const double* partial;
    index_t blocks;
    index_t experts;
    double* to;

    SWITCHYARD_HD void operator()(index_t e) const {
        double sum = 0;
        for (index_t b = 0; b < blocks; ++b) sum += partial[b * experts + e];
        to[e] = sum;
    }
};

/// Adds a token's gradients.
template <class Rows, class S, class ScoreStorage, class NoiseStorage, class Space>
struct add_load_gradient {
    Rows rows;
    const double* d_load;  ///< a_e
    matrix_view<ScoreStorage, Space> d_scores;
    matrix_view<NoiseStorage, Space> d_noise_scores;

    SWITCHYARD_HD void operator()(index_t token) const {
        double d_threshold[2] = {0, 0};  // of the k-th and the (k + 1)-th
        for (index_t e = 0; e < rows.scores.columns; ++e) {
            if (!rows.counts(token, e)) continue;
            const auto x = static_cast<double>(rows.distance(token, e));
            const double density = 0.3989422804014327 * std::exp(-0.5 * x * x);
            if (!(density > 0)) continue;
            const double by_sigma = d_load[e] * density / static_cast<double>(rows.deviation(token, e));
            d_threshold[rows.threshold_of(token, e) == rows.k ? 1 : 0] -= settled(by_sigma);
            add(d_scores, token, e, by_sigma);
            add(d_noise_scores, token, e, -by_sigma * x * slope(token, e));
        }
        for (index_t i = 0; i < 2; ++i) {
            const index_t holder = rows.chosen[token * (rows.k + 1) + rows.k - 1 + i];
            if (d_threshold[i] == 0) continue;
            const auto normal = static_cast<double>(normal_of<S>(rows.noise, token, holder));
            add(d_scores, token, holder, d_threshold[i]);
            add(d_noise_scores, token, holder, d_threshold[i] * normal * slope(token, holder));
        }
    }

  private:
    SWITCHYARD_HD double slope(index_t token, index_t e) const {
        return static_cast<double>(sigmoid(load_as<S>(rows.noise_scores(token, e))));
    }
    template <class Storage>
    SWITCHYARD_HD static void add(const matrix_view<Storage, Space>& to, index_t token, index_t e, double term) {
        using C = compute_t<Storage>;
        const C sum = load_scalar(to(token, e)) + settled(static_cast<C>(term));
        to(token, e) = store_scalar<Storage>(sum);
    }
};

/// Checks what both directions are given; their rows, with lists from the workspace.
template <class Policy, class Scores, class NoiseScores, class Noisy, class Workspace>
auto smooth_load_rows_of(const Policy& policy, const Scores& scores, const NoiseScores& noise_scores,
                         const Noisy& noisy, const load_loss_settings& settings, Workspace& scratch) {
    const auto s = token_view(scores);
    const auto n = token_view(noise_scores);
    const auto h = token_view(noisy);
    using s_view = std::remove_const_t<decltype(s)>;
    using n_view = std::remove_const_t<decltype(n)>;
    using h_view = std::remove_const_t<decltype(h)>;
    using S = compute_t<typename s_view::value_type>;
    require_space<Policy, s_view, n_view, h_view>();
    require_mask<Policy>(settings.mask, s.rows);
    require_settings(settings.noisy);
    require(settings.k >= 1 && settings.k <= s.columns, "k = ", settings.k, " must lie in 1..E = ", s.columns);
    require(std::isfinite(settings.weight), "weight = ", settings.weight, " must be finite");
    require((s.data != nullptr && n.data != nullptr && h.data != nullptr) || s.size() == 0,
            "scores, noise_scores and noisy scores must not be null");
    require_same_shape("noise_scores", n, "scores", s);
    require_same_shape("noisy", h, "scores", s);
    const index_t count = product_of_sizes("list entries", s.rows, settings.k + 1);
    const smooth_load_rows<S, typename s_view::value_type, typename n_view::value_type, typename h_view::value_type,
                           typename s_view::space>
        rows{s,
             n,
             h,
             settings.k,
             static_cast<S>(settings.noisy.least_deviation),
             settings.noisy.noise,
             settings.mask,
             scratch.template take<S>(count),
             scratch.template take<std::int32_t>(count)};
    for_each_index(policy, s.rows, list_best<decltype(rows)>{rows});
    return rows;
}

}  // namespace detail

/// scores, noise_scores and noisy scores [T, E] -> load[E], loss[1].
template <class Policy, class Scores, class NoiseScores, class Noisy, class Workspace>
void load_loss(const Policy& policy, const Scores& scores, const NoiseScores& noise_scores, const Noisy& noisy,
               const load_loss_settings& settings, double* load, double* loss, Workspace& scratch) {
    require(load != nullptr && loss != nullptr, "load and loss must not be null");
    const auto scope = scratch.open();
    const auto rows = detail::smooth_load_rows_of(policy, scores, noise_scores, noisy, settings, scratch);
    const index_t experts = rows.scores.columns;
    const index_t block = rows_per_block(rows.scores.rows);
    const index_t blocks = block_count(rows.scores.rows);
    const index_t count = product_of_sizes("sums", blocks, experts);
    double* const partial = scratch.template take<double>(count);
    for_each_index(policy, count, detail::sum_load_block<std::remove_const_t<decltype(rows)>>{rows, block, partial});
    for_each_index(policy, experts, detail::sum_blocks{partial, blocks, experts, load});
    write_squared_variation(policy, settings.weight, load, experts, loss, nullptr);
}

/// Adds the gradients of the loss, times loss_scale, to d_scores[T, E] and d_noise_scores[T, E]. `load` is what forward
/// wrote.
template <class Policy, class Scores, class NoiseScores, class Noisy, class OutScores, class OutNoise, class Workspace>
void load_loss_backward(const Policy& policy, const Scores& scores, const NoiseScores& noise_scores, const Noisy& noisy,
                        const load_loss_settings& settings, const double* load, OutScores&& d_scores,
                        OutNoise&& d_noise_scores, Workspace& scratch, double loss_scale = 1) {
    require(load != nullptr, "load must not be null");
    require(std::isfinite(loss_scale), "loss_scale = ", loss_scale, " must be finite");
    const auto scope = scratch.open();
    const auto rows = detail::smooth_load_rows_of(policy, scores, noise_scores, noisy, settings, scratch);
    const auto out = detail::output_view(d_scores);
    const auto out_noise = detail::output_view(d_noise_scores);
    using rows_type = std::remove_const_t<decltype(rows)>;
    using out_view = std::remove_const_t<decltype(out)>;
    using noise_view = std::remove_const_t<decltype(out_noise)>;
    require_space<Policy, out_view, noise_view>();
    require_same_shape("d_scores", out, "scores", rows.scores);
    require_same_shape("d_noise_scores", out_noise, "scores", rows.scores);
    require_apart<Policy>("d_scores", out, "scores", rows.scores, "noise_scores", rows.noise_scores, "noisy",
                          rows.noisy, "d_noise_scores", out_noise);
    require_apart<Policy>("d_noise_scores", out_noise, "scores", rows.scores, "noise_scores", rows.noise_scores,
                          "noisy", rows.noisy);
    using S = std::remove_pointer_t<decltype(rows.best)>;
    double* const d_load = scratch.template take<double>(rows.scores.columns);
    write_squared_variation(policy, settings.weight * loss_scale, load, rows.scores.columns, nullptr, d_load);
    for_each_index(
        policy, rows.scores.rows,
        detail::add_load_gradient<rows_type, S, typename out_view::value_type, typename noise_view::value_type,
                                  typename out_view::space>{rows, d_load, out, out_noise});
}

}  // namespace SWITCHYARD_TARGET
}  // namespace switchyard
