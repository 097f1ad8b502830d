// Balance losses as functions of their own, for any router's choices: loss = weight E mean_b sum_e f_be P_be.
//
//   f_be  counted choices of sequence b that name expert e, over (counted choices per token) N_b
//   P_be  the mean over the N_b tokens of sequence b of p_te
//
// What counts, what p is, and what a sequence is are settings; docs/balance/losses.md lists who uses which.
//
//   workspace scratch;
//   const balance_loss_settings settings{.weight = 1e-3, .count = choice_count::all, .score = score_function::sigmoid,
//                                        .probability = balance_probability::normalized};
//   matrix<double> sums(B, balance_columns(E));
//   write_balance_sums(policy, scores, plan, settings, sequences, sums, scratch);
//   const double loss = balance_loss(settings, sums);
//   balance_loss_backward(policy, scores, settings, sequences, sums, d_scores, scratch, {.adds = true});
//
// Sums are plain numbers, [B, 2 E + 2] doubles: of each sequence the counts of E experts and what f divides them by,
// then the sums of p of E experts and the tokens that P divides them by. Ranks, layers and micro-batches add such
// arrays: loss and gradient follow from what was added, as if it were one batch. Counts alone may be added (their E + 1
// columns), as Megatron-Core does for its global loss.
//
// Choices are a plan's, or any int32 [T, k]: the k best of the scores without bias and groups, say (`route_choices`),
// which is what Megatron-Core, ERNIE and transformers count. -1, ids that are no expert, and experts that are forbidden
// to their token (-infinity) do not count. Nor do experts without rows of a plan (router/rowless.hpp), though E is the
// number of columns here: a weight times those with rows over all gives the router's own loss. A second choice that
// GShard's policy left out counts here, where choices are all, and not in the router's own loss. Choices have no
// gradient: d loss / d p_te = weight E f_be / (N_b B).
//
// Padding counts nowhere. A token with every expert forbidden counts in N and adds nothing to f and P. Sequences
// without tokens are left out of the mean, unless N is the mean of all (`sequence_tokens::mean`), which has them in B;
// no tokens at all give 0.
//
// p is in the compute type of the scores, sums in double. Their order depends on sizes alone, so results are bitwise
// identical for any number of threads. O(T E), and O(B E) for the loss; scratch from the workspace, of about 4 E (T /
// 64
// + B) numbers; nothing waits. NaN and +infinity are errors on CPUs; on a device they make sums NaN.
#pragma once

#include <switchyard/backend/policy.hpp>
#include <switchyard/balance/detail/row_terms.hpp>
#include <switchyard/balance/token_sequences.hpp>
#include <switchyard/core/arguments.hpp>
#include <switchyard/core/config.hpp>
#include <switchyard/core/error.hpp>
#include <switchyard/core/matrix_view.hpp>
#include <switchyard/core/overlap.hpp>
#include <switchyard/core/rounding.hpp>
#include <switchyard/core/workspace.hpp>
#include <switchyard/plan/plan.hpp>

#include <cmath>
#include <cstdint>
#include <limits>
#include <type_traits>

namespace switchyard {

/// Which of a token's choices f counts.
enum class choice_count {
    first,          ///< the first: Switch, GShard
    all,            ///< all k, divided by k: Megatron-Core, OLMo-core
    all_undivided,  ///< all k: transformers, ERNIE; k times the loss of `all`
};

/// What is to be balanced.
enum class balance_unit {
    expert,
    device,         ///< groups of experts: f is the mean over a group's experts (DeepSeek-V2)
    communication,  ///< groups again: f counts a token once in each group that it is sent to (DeepSeek-V2)
};

/// The N that a sequence's f and P are divided by.
enum class sequence_tokens {
    own,   ///< its own tokens
    mean,  ///< the mean over all sequences: Megatron-Core with padding
};

struct balance_loss_settings {
    double weight = 1;
    choice_count count = choice_count::first;
    bool after_drops = false;  ///< only choices with a slot count; f is still divided by all. Needs a plan
    score_function score = score_function::softmax;  ///< what p is made of, where it is not softmax
    balance_probability probability = balance_probability::softmax;
    balance_unit unit = balance_unit::expert;
    index_t devices = 1;            ///< groups of E / devices neighbouring experts; of `device` and `communication`
    index_t devices_per_token = 1;  ///< that a token is sent to at most; of `communication`
    sequence_tokens tokens = sequence_tokens::own;
};

/// How a loss's gradient is handed out.
struct loss_gradient {
    double scale = 1;   ///< the gradient of the total with respect to the loss; finite
    bool adds = false;  ///< to what `d_scores` holds; otherwise it is overwritten, zeros in padding rows
};

inline namespace SWITCHYARD_TARGET {

/// Columns of the sums of E experts.
constexpr index_t balance_columns(index_t experts) { return 2 * experts + 2; }

namespace detail {

/// A matrix as the rows of a loss; what is a source of rows already stays one.
template <class Scores>
auto rows_of_loss(const Scores& scores) {
    if constexpr (requires { scores.pull_back(index_t{}, scores.row(index_t{}, nullptr), nullptr); }) {
        return scores;
    } else {
        const auto view = token_view(scores);
        return plain_rows<typename decltype(token_view(scores))::value_type,
                          typename decltype(token_view(scores))::space>{view};
    }
}

template <class Policy, class Source>
void require_rows(const Source& source) {
    require_space<Policy, decltype(source.scores)>();
    require(source.scores.columns >= 1, "scores have E = 0 experts: there must be at least one");
    require(source.scores.data != nullptr || source.scores.rows == 0, "scores are a null pointer");
}

/// A plan's choices, or those of a matrix of ids.
template <class Policy, class Choices>
auto chosen_of(const Choices& choices, index_t tokens, bool after_drops) {
    const auto checked = [&](const auto& ids, const std::int32_t* slot) {
        using view = std::remove_cvref_t<decltype(ids)>;
        require_space<Policy, view>();
        require(ids.rows == tokens, "there are choices of ", ids.rows, " tokens for T = ", tokens);
        require(ids.data != nullptr || ids.rows == 0, "choices are a null pointer");
        require(ids.columns >= 1, "choices have k = ", ids.columns, ": there must be at least one");
        require(!after_drops || slot != nullptr, "after_drops needs a plan: choices alone have no slots");
        chosen_experts<typename view::space> chosen;
        chosen.expert = ids;
        chosen.slot = after_drops ? slot : nullptr;
        return chosen;
    };
    if constexpr (plan_like<Choices>) {
        const auto& plan = view_of_plan(choices);
        require_finished(plan);
        using space = typename std::remove_cvref_t<decltype(plan)>::space;
        auto chosen =
            checked(matrix_view<const std::int32_t, space>{plan.expert, plan.tokens, plan.choices}, plan.slot);
        chosen.with_rows = plan.experts;
        return chosen;
    } else {
        const auto ids = const_view(as_view(choices));
        static_assert(std::is_same_v<typename decltype(const_view(as_view(choices)))::value_type, std::int32_t>,
                      "switchyard: choices are a plan, or int32 ids [T, k]");
        return checked(ids, nullptr);
    }
}

inline void require_settings_of(const balance_loss_settings& settings, index_t experts) {
    require(std::isfinite(settings.weight), "weight = ", settings.weight, " must be finite");
    if (settings.unit == balance_unit::expert) return;
    require(settings.devices >= 1 && experts % settings.devices == 0, "devices = ", settings.devices,
            " must divide E = ", experts);
    require(settings.devices_per_token >= 1 && settings.devices_per_token <= settings.devices,
            "devices_per_token = ", settings.devices_per_token, " must lie in 1..devices = ", settings.devices);
}

/// What the backward of every loss checks.
template <class Policy, class Source, class Space, class Sums, class Out>
void require_backward(const Source& source, const token_sequences<Space>& sequences, const Sums& sums, const Out& out,
                      const loss_gradient& gradient) {
    require_space<Policy, Sums, Out>();
    require_rows<Policy>(source);
    require_sequences<Policy>(sequences, source.scores.rows);
    require(std::isfinite(gradient.scale), "scale = ", gradient.scale, " of a gradient must be finite");
    require_same_shape("d_scores", out, "scores", source.scores);
    if (gradient.adds) {
        require_apart<Policy>("d_scores, which is added to,", out, "scores", source.scores);
    } else {
        require_apart_or_same<Policy>("d_scores", out, "scores", source.scores);
    }
    require_apart<Policy>("d_scores", out, "sums", sums);
}

/// sums(b, column) from the slots' arrays.
template <class S, class Space>
struct merge_slots {
    slot_sums<S> from;
    sequence_slots<Space> sequences;
    index_t experts;
    index_t group_size;        ///< counts lie at the first expert of a group of so many
    double group_share;        ///< what each of its experts is given of them
    double counted_per_token;  ///< what f is divided by, per token
    matrix_view<double, Space> sums;

    SWITCHYARD_HD void operator()(index_t i) const {
        const index_t b = i / sums.columns;
        const index_t column = i % sums.columns;
        if (column < experts) {
            const std::int32_t* const count = from.counts + column / group_size * group_size;
            sums(b, column) = rounded_times(group_share, sum_of_slots(sequences, b, count, experts));
        } else if (column == experts) {
            sums(b, column) = rounded_times(counted_per_token, sum_of_slots(sequences, b, from.tokens, 1));
        } else if (column <= 2 * experts) {
            sums(b, column) = sum_of_slots(sequences, b, from.probabilities + (column - experts - 1), from.length);
        } else {
            sums(b, column) = sum_of_slots(sequences, b, from.tokens, 1);
        }
    }
};

/// What a loss needs of all sequences before it reads one.
struct sequence_totals {
    double scale = 0;  ///< weight E / (sequences that are not left out)
    double mean_counted = 0;
    double mean_tokens = 0;
};

/// The loss and its gradient, from the sums.
template <class Space>
struct balance_of_sums {
    matrix_view<const double, Space> sums;
    double weight;
    sequence_tokens tokens;

    SWITCHYARD_HD index_t experts() const { return sums.columns / 2 - 1; }
    /// What f and P of a sequence are divided by.
    SWITCHYARD_HD double counted_of(index_t b, const sequence_totals& all) const {
        return tokens == sequence_tokens::own ? sums(b, experts()) : all.mean_counted;
    }
    SWITCHYARD_HD double tokens_of(index_t b, const sequence_totals& all) const {
        return tokens == sequence_tokens::own ? sums(b, 2 * experts() + 1) : all.mean_tokens;
    }
    SWITCHYARD_HD bool is_left_out(index_t b, const sequence_totals& all) const {
        return !(counted_of(b, all) > 0) || !(tokens_of(b, all) > 0);
    }
    SWITCHYARD_HD sequence_totals totals() const {
        sequence_totals all;
        for (index_t b = 0; b < sums.rows; ++b) {
            all.mean_counted += sums(b, experts());
            all.mean_tokens += sums(b, 2 * experts() + 1);
        }
        all.mean_counted /= static_cast<double>(sums.rows);
        all.mean_tokens /= static_cast<double>(sums.rows);
        double sequences = 0;
        for (index_t b = 0; b < sums.rows; ++b) sequences += is_left_out(b, all) ? 0.0 : 1.0;
        all.scale = sequences > 0 ? weight * static_cast<double>(experts()) / sequences : 0.0;
        return all;
    }
    SWITCHYARD_HD double value() const {
        const sequence_totals all = totals();
        double mean = 0;
        for (index_t b = 0; b < sums.rows; ++b) {
            if (is_left_out(b, all)) continue;
            double sum = 0;
            for (index_t e = 0; e < experts(); ++e) sum += rounded_times(sums(b, e), sums(b, experts() + 1 + e));
            mean += sum / counted_of(b, all) / tokens_of(b, all);
        }
        return rounded_times(all.scale, mean);
    }
    /// d loss / d p of expert e, of any token of sequence b.
    SWITCHYARD_HD double gradient(index_t b, index_t e, const sequence_totals& all) const {
        if (is_left_out(b, all)) return 0;
        return rounded_times(all.scale, sums(b, e) / counted_of(b, all) / tokens_of(b, all));
    }
};

/// The value of a loss of sums, whatever it is.
template <class Loss>
struct write_loss_value {
    Loss loss;
    double* out;

    SWITCHYARD_HD void operator()(index_t) const { *out = loss.value(); }
};

template <class Space>
struct write_sequence_totals {
    balance_of_sums<Space> loss;
    sequence_totals* out;

    SWITCHYARD_HD void operator()(index_t) const { *out = loss.totals(); }
};

/// gradient[b, e], 0 behind E.
template <class S, class Space>
struct write_balance_gradient {
    balance_of_sums<Space> loss;
    const sequence_totals* totals;
    double scale;
    index_t length;
    S* gradient;

    SWITCHYARD_HD void operator()(index_t i) const {
        const index_t b = i / length;
        const index_t e = i % length;
        gradient[i] = e < loss.experts() ? static_cast<S>(rounded_times(scale, loss.gradient(b, e, *totals))) : S(0);
    }
};

/// to[i] += from[i]
template <class Space>
struct add_numbers {
    matrix_view<const double, Space> from;
    matrix_view<double, Space> to;

    SWITCHYARD_HD void operator()(index_t i) const {
        to(i / to.columns, i % to.columns) += from(i / to.columns, i % to.columns);
    }
};

template <class Space, class Sums>
balance_of_sums<Space> loss_of_sums(const balance_loss_settings& settings, const Sums& sums) {
    require(sums.columns >= 4 && sums.columns % 2 == 0, "sums have ", sums.columns,
            " columns; those of E experts have 2 E + 2");
    require_settings_of(settings, sums.columns / 2 - 1);
    return {sums, settings.weight, settings.tokens};
}

template <class Sums>
void require_sums(const Sums& sums, index_t sequences, index_t experts) {
    require(sums.rows == sequences && sums.columns == balance_columns(experts), "sums are ", sums.rows, " x ",
            sums.columns, "; B = ", sequences, " sequences of E = ", experts, " experts have ", sequences, " x ",
            balance_columns(experts));
}

}  // namespace detail

/// The sums of scores[T, E] and choices, a plan's or int32 [T, k], into `sums`, [B, 2 E + 2] doubles, all in the
/// policy's memory. `scores` may also be a router's `score_rows`: scores as it changes them.
template <class Policy, class Scores, class Choices, class Space, class Sums, class Workspace>
void write_balance_sums(const Policy& policy, const Scores& scores, const Choices& choices,
                        const balance_loss_settings& settings, const token_sequences<Space>& sequences, Sums&& sums,
                        Workspace& scratch) {
    const auto source = detail::rows_of_loss(scores);
    const auto out = as_view(sums);
    using S = typename decltype(detail::rows_of_loss(scores))::compute;
    static_assert(std::is_same_v<std::remove_pointer_t<decltype(out.data)>, double>,
                  "switchyard: sums of a loss are doubles");
    require_space<Policy, decltype(as_view(sums))>();
    detail::require_rows<Policy>(source);
    const index_t tokens = source.scores.rows;
    const index_t experts = source.scores.columns;
    require_sequences<Policy>(sequences, tokens);
    detail::require_settings_of(settings, experts);
    detail::require_sums(out, sequence_count(sequences, tokens), experts);
    require_apart<Policy>("sums", out, "scores", source.scores);

    auto chosen = detail::chosen_of<Policy>(choices, tokens, settings.after_drops);
    index_t k = chosen.expert.columns;
    if constexpr (plan_like<Choices>) {
        k -= view_of_plan(choices).origin.rowless.shared;  // every token's last, which was not chosen
    }
    chosen.counted = settings.count == choice_count::first ? 1 : k;
    chosen.once_in_group = settings.unit == balance_unit::communication;
    chosen.group_size = settings.unit == balance_unit::expert ? 1 : experts / settings.devices;
    const auto size = static_cast<double>(chosen.group_size);
    const double per_token = settings.unit == balance_unit::communication
                                 ? size * static_cast<double>(settings.devices_per_token)
                             : settings.count == choice_count::all ? static_cast<double>(k)
                                                                   : 1.0;
    const auto scope = scratch.open();
    const auto slots = detail::slots_of_sequences(sequences, tokens);
    const auto found = detail::sum_slots(policy, source, detail::values_of(settings.score, settings.probability),
                                         detail::row_term::none, chosen, slots, sequences.mask, scratch);
    for_each_index(
        policy, out.rows * out.columns,
        detail::merge_slots<S, Space>{found, slots, experts, chosen.group_size,
                                      settings.unit == balance_unit::device ? 1 / size : 1.0, per_token, out});
}

/// to += from: of ranks, layers or micro-batches.
template <class Policy, class From, class To>
void add_balance_sums(const Policy& policy, const From& from, To&& to) {
    const auto added = const_view(as_view(from));
    const auto out = as_view(to);
    using space = typename decltype(as_view(to))::space;
    require_space<Policy, decltype(const_view(as_view(from))), decltype(as_view(to))>();
    require_same_shape("the sums to add", added, "the sums", out);
    for_each_index(policy, out.rows * out.columns, detail::add_numbers<space>{added, out});
}

/// The loss, weight included, of sums on the host.
template <class Sums>
double balance_loss(const balance_loss_settings& settings, const Sums& sums) {
    const auto view = const_view(as_view(sums));
    static_assert(std::is_same_v<typename decltype(const_view(as_view(sums)))::space, host_space>,
                  "switchyard: sums on a device give a loss there: write_balance_loss");
    return detail::loss_of_sums<host_space>(settings, view).value();
}

/// The same where the sums lie, to `out`. O(B E) by one thread, once.
template <class Policy, class Sums>
void write_balance_loss(const Policy& policy, const balance_loss_settings& settings, const Sums& sums, double* out) {
    const auto view = const_view(as_view(sums));
    using space = typename decltype(const_view(as_view(sums)))::space;
    require_space<Policy, decltype(const_view(as_view(sums)))>();
    require(out != nullptr, "the loss has nowhere to go: out is a null pointer");
    for_each_index(
        policy, 1,
        detail::write_loss_value<detail::balance_of_sums<space>>{detail::loss_of_sums<space>(settings, view), out});
}

/// The gradient of scores[T, E], from the sums of this batch or of all of which it is a part: for each sequence of this
/// batch the row of `sums`. d_scores is written or added to; written, it may be the scores, the same view of the same
/// numbers, and otherwise lies apart.
template <class Policy, class Scores, class Space, class Sums, class Out, class Workspace>
void balance_loss_backward(const Policy& policy, const Scores& scores, const balance_loss_settings& settings,
                           const token_sequences<Space>& sequences, const Sums& sums, Out&& d_scores,
                           Workspace& scratch, const loss_gradient& gradient = {}) {
    const auto source = detail::rows_of_loss(scores);
    const auto out = detail::output_view(d_scores);
    const auto given = const_view(as_view(sums));
    using S = typename decltype(detail::rows_of_loss(scores))::compute;
    detail::require_backward<Policy>(source, sequences, given, out, gradient);
    const index_t tokens = source.scores.rows;
    const index_t experts = source.scores.columns;
    detail::require_sums(given, sequence_count(sequences, tokens), experts);
    const auto scope = scratch.open();
    const auto slots = detail::slots_of_sequences(sequences, tokens);
    const index_t length = padded<16>(experts);
    auto* const a = scratch.template take<S>(product_of_sizes("gradients", given.rows, length));
    auto* const totals = scratch.template take<detail::sequence_totals>(1);
    const auto loss = detail::loss_of_sums<Space>(settings, given);
    for_each_index(policy, 1, detail::write_sequence_totals<Space>{loss, totals});
    for_each_index(policy, given.rows * length,
                   detail::write_balance_gradient<S, Space>{loss, totals, gradient.scale, length, a});
    detail::differentiate_slots(policy, source, detail::values_of(settings.score, settings.probability), slots,
                                sequences.mask, a, nullptr, detail::row_term::none, gradient.adds, out, scratch);
}

}  // namespace SWITCHYARD_TARGET
}  // namespace switchyard
