// Losses of scores alone, whatever was chosen: how large the scores are, and how evenly experts are liked.
//
//   z                   mean_t logsumexp(s_t)^2                  keeps scores small
//   entropy             -H(P), P_e = mean_t p_te                 0 .. -ln E: experts are liked evenly over the batch
//   mutual_information  mean_t H(p_t) - H(P)                     0 .. -ln E: and each token is sure of its own
//
// H(p) = -sum_e p_e ln p_e, p the softmax of the scores, or the values of another score function divided by their row's
// sum. z: Zoph et al. 2022, arXiv 2202.08906. entropy: Csordas et al. 2023, arXiv 2310.10837 (sigma-MoE).
// mutual_information: Chen et al. 2022, arXiv 2212.08066; Shen et al. 2023, arXiv 2306.04640 (ModuleFormer): less the
// mutual information of tokens and experts.
//
//   const score_loss_settings settings{.kind = score_loss_kind::mutual_information, .weight = 1e-3};
//   matrix<double> sums(B, score_loss_columns(E));
//   write_score_sums(policy, scores, settings, sequences, sums, scratch);
//   const double loss = score_loss(settings, sums);
//   score_loss_backward(policy, scores, settings, sequences, sums, d_scores, scratch, {.adds = true});
//
// With sequences the loss is the mean over those that have tokens. Sums are [B, E + 2] doubles, of each sequence the
// sums of p of E experts, of the rows' own terms (z^2 or H), and the tokens: ranks and micro-batches add them
// (`add_balance_sums`), and loss and gradient follow.
//
// Padding counts nowhere. A token with every expert forbidden counts as a token and adds nothing. Costs, order of sums,
// bad scores, and what `scores` and `d_scores` may be are those of balance/balance_loss.hpp.
#pragma once

#include <switchyard/backend/policy.hpp>
#include <switchyard/balance/balance_loss.hpp>
#include <switchyard/balance/detail/row_terms.hpp>
#include <switchyard/balance/token_sequences.hpp>
#include <switchyard/core/arguments.hpp>
#include <switchyard/core/config.hpp>
#include <switchyard/core/error.hpp>
#include <switchyard/core/matrix_view.hpp>
#include <switchyard/core/overlap.hpp>
#include <switchyard/core/rounding.hpp>
#include <switchyard/core/workspace.hpp>

#include <cmath>
#include <type_traits>

namespace switchyard {

enum class score_loss_kind { z, entropy, mutual_information };

struct score_loss_settings {
    score_loss_kind kind = score_loss_kind::z;
    double weight = 1;
    score_function score = score_function::softmax;  ///< what p is made of; softmax for z
};

inline namespace SWITCHYARD_TARGET {

/// Columns of the sums of E experts.
constexpr index_t score_loss_columns(index_t experts) { return experts + 2; }

namespace detail {

constexpr row_term term_of(score_loss_kind kind) {
    return kind == score_loss_kind::z                    ? row_term::squared_logsumexp
           : kind == score_loss_kind::mutual_information ? row_term::entropy
                                                         : row_term::none;
}

inline void require_settings_of(const score_loss_settings& settings) {
    require(std::isfinite(settings.weight), "weight = ", settings.weight, " must be finite");
    require(settings.kind != score_loss_kind::z || settings.score == score_function::softmax,
            "the z-loss is that of the softmax: score must be score_function::softmax");
}

template <class Sums>
void require_score_sums(const Sums& sums, index_t sequences, index_t experts) {
    require(sums.rows == sequences && sums.columns == score_loss_columns(experts), "sums are ", sums.rows, " x ",
            sums.columns, "; B = ", sequences, " sequences of E = ", experts, " experts have ", sequences, " x ",
            score_loss_columns(experts));
}

/// sums(b, column) from the slots' arrays.
template <class S, class Space>
struct merge_score_slots {
    slot_sums<S> from;
    sequence_slots<Space> sequences;
    matrix_view<double, Space> sums;

    SWITCHYARD_HD void operator()(index_t i) const {
        const index_t b = i / sums.columns;
        const index_t column = i % sums.columns;
        const index_t experts = sums.columns - 2;
        sums(b, column) = column < experts    ? sum_of_slots(sequences, b, from.probabilities + column, from.length)
                          : column == experts ? sum_of_slots(sequences, b, from.terms, 1)
                                              : sum_of_slots(sequences, b, from.tokens, 1);
    }
};

template <class Space>
struct score_loss_of_sums {
    matrix_view<const double, Space> sums;
    score_loss_kind kind;
    double weight;

    SWITCHYARD_HD index_t experts() const { return sums.columns - 2; }
    SWITCHYARD_HD double tokens(index_t b) const { return sums(b, sums.columns - 1); }
    SWITCHYARD_HD double mean(index_t b, index_t e) const { return sums(b, e) / tokens(b); }
    /// weight / (sequences with tokens)
    SWITCHYARD_HD double scale() const {
        double sequences = 0;
        for (index_t b = 0; b < sums.rows; ++b) sequences += tokens(b) > 0 ? 1.0 : 0.0;
        return sequences > 0 ? weight / sequences : 0.0;
    }
    SWITCHYARD_HD double value() const {
        double all = 0;
        for (index_t b = 0; b < sums.rows; ++b) {
            if (!(tokens(b) > 0)) continue;
            double sum = kind == score_loss_kind::entropy ? 0.0 : sums(b, experts()) / tokens(b);
            for (index_t e = 0; e < experts() && kind != score_loss_kind::z; ++e) {
                sum += mean(b, e) > 0 ? rounded_times(mean(b, e), std::log(mean(b, e))) : 0.0;
            }
            all += sum;
        }
        return rounded_times(scale(), all);
    }
    /// d(-H(P)) / d P_e of sequence b; 0 for z.
    SWITCHYARD_HD double gradient(index_t b, index_t e) const {
        const bool counts = kind != score_loss_kind::z && tokens(b) > 0 && sums(b, e) > 0;
        return counts ? std::log(mean(b, e)) + 1 : 0.0;
    }
};

/// row_scale[b]: what a row's own term weighs.
template <class Space>
struct write_row_scales {
    score_loss_of_sums<Space> loss;
    double scale;
    double* row_scale;

    SWITCHYARD_HD void operator()(index_t) const {
        const double each = rounded_times(scale, loss.scale());
        for (index_t b = 0; b < loss.sums.rows; ++b) row_scale[b] = loss.tokens(b) > 0 ? each / loss.tokens(b) : 0.0;
    }
};

template <class S, class Space>
struct write_score_gradient {
    score_loss_of_sums<Space> loss;
    const double* row_scale;
    index_t length;
    S* gradient;

    SWITCHYARD_HD void operator()(index_t i) const {
        const index_t b = i / length;
        const index_t e = i % length;
        gradient[i] = e < loss.experts() ? static_cast<S>(rounded_times(row_scale[b], loss.gradient(b, e))) : S(0);
    }
};

template <class Space, class Sums>
score_loss_of_sums<Space> loss_of_sums(const score_loss_settings& settings, const Sums& sums) {
    require(sums.columns >= 3, "sums have ", sums.columns, " columns; those of E experts have E + 2");
    require_settings_of(settings);
    return {sums, settings.kind, settings.weight};
}

}  // namespace detail

/// The sums of scores[T, E] into `sums`, [B, E + 2] doubles, all in the policy's memory.
template <class Policy, class Scores, class Space, class Sums, class Workspace>
void write_score_sums(const Policy& policy, const Scores& scores, const score_loss_settings& settings,
                      const token_sequences<Space>& sequences, Sums&& sums, Workspace& scratch) {
    const auto source = detail::rows_of_loss(scores);
    const auto out = as_view(sums);
    using S = typename decltype(detail::rows_of_loss(scores))::compute;
    static_assert(std::is_same_v<std::remove_pointer_t<decltype(out.data)>, double>,
                  "switchyard: sums of a loss are doubles");
    require_space<Policy, decltype(as_view(sums))>();
    detail::require_rows<Policy>(source);
    const index_t tokens = source.scores.rows;
    require_sequences<Policy>(sequences, tokens);
    detail::require_settings_of(settings);
    detail::require_score_sums(out, sequence_count(sequences, tokens), source.scores.columns);
    require_apart<Policy>("sums", out, "scores", source.scores);
    const auto scope = scratch.open();
    const auto slots = detail::slots_of_sequences(sequences, tokens);
    const auto found = detail::sum_slots(
        policy, source, detail::values_of(settings.score, balance_probability::normalized),
        detail::term_of(settings.kind), detail::chosen_experts<Space>{}, slots, sequences.mask, scratch);
    for_each_index(policy, out.rows * out.columns, detail::merge_score_slots<S, Space>{found, slots, out});
}

/// The loss, weight included, of sums on the host.
template <class Sums>
double score_loss(const score_loss_settings& settings, const Sums& sums) {
    const auto view = const_view(as_view(sums));
    static_assert(std::is_same_v<typename decltype(const_view(as_view(sums)))::space, host_space>,
                  "switchyard: sums on a device give a loss there: write_score_loss");
    return detail::loss_of_sums<host_space>(settings, view).value();
}

/// The same where the sums lie, to `out`. O(B E) by one thread, once.
template <class Policy, class Sums>
void write_score_loss(const Policy& policy, const score_loss_settings& settings, const Sums& sums, double* out) {
    const auto view = const_view(as_view(sums));
    using space = typename decltype(const_view(as_view(sums)))::space;
    require_space<Policy, decltype(const_view(as_view(sums)))>();
    require(out != nullptr, "the loss has nowhere to go: out is a null pointer");
    for_each_index(
        policy, 1,
        detail::write_loss_value<detail::score_loss_of_sums<space>>{detail::loss_of_sums<space>(settings, view), out});
}

/// The gradient of scores[T, E], from the sums of this batch or of all of which it is a part.
template <class Policy, class Scores, class Space, class Sums, class Out, class Workspace>
void score_loss_backward(const Policy& policy, const Scores& scores, const score_loss_settings& settings,
                         const token_sequences<Space>& sequences, const Sums& sums, Out&& d_scores, Workspace& scratch,
                         const loss_gradient& gradient = {}) {
    const auto source = detail::rows_of_loss(scores);
    const auto out = detail::output_view(d_scores);
    const auto given = const_view(as_view(sums));
    using S = typename decltype(detail::rows_of_loss(scores))::compute;
    detail::require_backward<Policy>(source, sequences, given, out, gradient);
    const index_t experts = source.scores.columns;
    detail::require_score_sums(given, sequence_count(sequences, source.scores.rows), experts);
    const auto scope = scratch.open();
    const auto slots = detail::slots_of_sequences(sequences, source.scores.rows);
    const index_t length = padded<16>(experts);
    auto* const a = scratch.template take<S>(product_of_sizes("gradients", given.rows, length));
    auto* const row_scale = scratch.template take<double>(given.rows);
    const auto loss = detail::loss_of_sums<Space>(settings, given);
    for_each_index(policy, 1, detail::write_row_scales<Space>{loss, gradient.scale, row_scale});
    for_each_index(policy, given.rows * length, detail::write_score_gradient<S, Space>{loss, row_scale, length, a});
    detail::differentiate_slots(policy, source, detail::values_of(settings.score, balance_probability::normalized),
                                slots, sequences.mask, a, row_scale, detail::term_of(settings.kind), gradient.adds, out,
                                scratch);
}

}  // namespace SWITCHYARD_TARGET
}  // namespace switchyard
