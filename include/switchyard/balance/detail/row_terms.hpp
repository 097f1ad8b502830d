// The row program of the losses of scores: what a row adds to sums over the tokens, and its gradient.
//
// p of a row are one of three things (`balance_probability`), each a scale times the values v of a score function:
//
//   softmax      v_e = exp(s_e - max s), scale = 1 / sum v        d s_e = p_e (a_e - sum_i p_i a_i)
//   normalized   v = score(s),           scale = 1 / sum v, or 0  d s_e = slope_e scale (a_e - sum_i p_i a_i)
//   raw          v = score(s),           scale = 1                d s_e = slope_e a_e
//
// where a_e is the gradient of p_e. Rows of padding, and rows with every expert forbidden, have p = 0 and no gradient.
// One source for vectors of the CPU and for single numbers of a device.
#pragma once

#include <switchyard/backend/policy.hpp>
#include <switchyard/balance/token_sequences.hpp>
#include <switchyard/core/config.hpp>
#include <switchyard/core/error.hpp>
#include <switchyard/core/matrix_view.hpp>
#include <switchyard/core/rounding.hpp>
#include <switchyard/core/row_blocks.hpp>
#include <switchyard/core/scalar_traits.hpp>
#include <switchyard/core/simd.hpp>
#include <switchyard/score/score_function.hpp>
#include <switchyard/score/softmax.hpp>

#include <cmath>
#include <cstdint>
#include <limits>
#include <type_traits>

namespace switchyard {

/// What a loss takes as the probability of an expert.
enum class balance_probability {
    softmax,     ///< of the scores, whatever the router weighs by: Switch, transformers
    normalized,  ///< the value of the score function divided by the row's sum, 0 where that is 0: Megatron-Core
    raw,         ///< the value itself: DeepSeek-VL2, AutoModel without norm_topk_prob
};

inline namespace SWITCHYARD_TARGET {

namespace detail {

/// What else a row adds to a sum.
enum class row_term { none, entropy, squared_logsumexp };

struct row_values {
    score_function function = score_function::softmax;
    bool divides = true;  ///< by the row's sum

    SWITCHYARD_HD SWITCHYARD_ALWAYS_INLINE constexpr bool is_softmax() const {
        return function == score_function::softmax;
    }
};

constexpr row_values values_of(score_function function, balance_probability probability) {
    const bool is_softmax = probability == balance_probability::softmax || function == score_function::softmax;
    return {is_softmax ? score_function::softmax : function, is_softmax || probability != balance_probability::raw};
}

/// Scores as they are given. A router's `score_rows` is another such source: scores as that router changes them.
template <class Storage, class Space>
struct plain_rows {
    using compute = compute_t<Storage>;
    matrix_view<const Storage, Space> scores;

    SWITCHYARD_HD const compute* row(index_t token, compute* scratch) const {
        if constexpr (std::is_same_v<Storage, compute>) {
            if (scores.rows_contiguous()) return scores.row(token);
        }
        for (index_t e = 0; e < scores.columns; ++e) scratch[e] = load_scalar(scores(token, e));
        return scratch;
    }
    SWITCHYARD_HD void pull_back(index_t, const compute*, compute*) const {}
};

template <class S>
struct found_values {
    S maximum;
    S sum;
    S scale;      ///< of the values; 0 where the row counts nowhere
    bool is_bad;  ///< NaN or +infinity
};

/// values[padded E] of a row, zeros behind it.
template <int W, class S>
SWITCHYARD_HD found_values<S> find_values(const row_values& kind, const S* row, index_t experts, S* values) {
    using P = pack<S, W>;
    constexpr S lowest = -std::numeric_limits<S>::infinity();
    constexpr std::uint32_t every_lane = W == 32 ? ~0u : (1u << (W & 31)) - 1u;
    const auto scores_at = [&](index_t j) {
        return j + W <= experts ? P::load(row + j) : P::load_first(row + j, experts - j, lowest);
    };
    P maximum = P::all(lowest);
    bool is_bad = false;
    for (index_t j = 0; j < experts; j += W) {
        const P score = scores_at(j);
        maximum = max(score, maximum);
        is_bad |= at_least_bits(P::all(std::numeric_limits<S>::max()), score) != every_lane;
    }
    found_values<S> found{highest(maximum), S(0), S(0), is_bad};
    if (is_bad) found.maximum = found.sum = found.scale = std::numeric_limits<S>::quiet_NaN();
    const bool is_empty = !(found.maximum > lowest);  // NaN, too
    P sum = P::all(S(0));
    for (index_t j = 0; j < experts; j += W) {
        const P value = is_empty ? P::all(found.scale) : value_of(kind.function, scores_at(j), P::all(found.maximum));
        value.store(values + j);
        sum = sum + value;
    }
    if (!is_empty) {
        found.sum = total(sum);
        found.scale = !kind.divides ? S(1) : found.sum > S(0) ? S(1) / found.sum : S(0);
    }
    return found;
}

/// -sum_e p_e ln p_e
template <class S>
SWITCHYARD_HD double entropy_of(const S* values, index_t experts, S scale) {
    double sum = 0;
    for (index_t e = 0; e < experts; ++e) {
        const auto p = rounded_times(static_cast<double>(values[e]), static_cast<double>(scale));
        sum -= p == 0 ? 0.0 : rounded_times(p, std::log(p));
    }
    return sum;
}

/// Which experts a token chose.
template <class Space>
struct chosen_experts {
    matrix_view<const std::int32_t, Space> expert{};  ///< [T, k]; -1 is none. Null: nothing is counted
    const std::int32_t* slot = nullptr;  ///< [T, k], or null: all choices count, not those with slots alone
    index_t counted = 0;                 ///< the first so many choices
    index_t with_rows = std::numeric_limits<index_t>::max();  ///< experts from here on do not count
    index_t group_size = 1;      ///< > 1: counted at the first expert of the group of so many that the choice lies in
    bool once_in_group = false;  ///< however many choices of the token lie there
};

/// A slot's rows, added up. Each slot has arrays of its own.
template <int W, class Source, class Space>
struct sum_slot {
    using S = typename Source::compute;
    Source source;
    row_values kind;
    row_term term;
    chosen_experts<Space> chosen;
    sequence_slots<Space> sequences;
    token_mask mask;
    index_t experts;
    index_t length;        ///< padded E
    S* scratch;            ///< [slots, 2 length]
    S* probabilities;      ///< [slots, length]
    double* terms;         ///< [slots]
    std::int32_t* counts;  ///< [slots, E], or null without choices
    std::int64_t* tokens;  ///< [slots]
    std::int64_t* bad;     ///< [slots] the first token whose scores are bad, or -1

    SWITCHYARD_HD void operator()(index_t slot) const {
        using P = pack<S, W>;
        S* const values = scratch + slot * 2 * length;
        S* const sums = probabilities + slot * length;
        std::int32_t* const count = counts != nullptr ? counts + slot * experts : nullptr;
        for (index_t j = 0; j < length; j += W) P::all(S(0)).store(sums + j);
        for (index_t e = 0; e < experts && count != nullptr; ++e) count[e] = 0;
        double added = 0;
        std::int64_t counted = 0;
        std::int64_t first_bad = -1;
        index_t begin = 0;
        index_t end = 0;
        sequences.rows_of_slot(slot, sequences.sequence_of_slot(slot), begin, end);
        for (index_t token = begin; token < end; ++token) {
            if (!mask(token)) continue;
            ++counted;
            const S* const row = source.row(token, values + length);
            const found_values<S> found = find_values<W>(kind, row, experts, values);
            if (found.is_bad && first_bad < 0) first_bad = token;
            for (index_t j = 0; j < experts; j += W) {
                multiply_add(P::load(values + j), P::all(found.scale), P::load(sums + j)).store(sums + j);
            }
            added += term_of(found, values);
            if (count != nullptr) count_choices_of(token, row, count);
        }
        terms[slot] = added;
        tokens[slot] = counted;
        bad[slot] = first_bad;
    }

  private:
    SWITCHYARD_HD double term_of(const found_values<S>& found, const S* values) const {
        if (term == row_term::none || found.scale == S(0)) return 0;
        if (term == row_term::entropy) return entropy_of(values, experts, found.scale);
        const double logsumexp = static_cast<double>(found.maximum) + std::log(static_cast<double>(found.sum));
        return rounded_times(logsumexp, logsumexp);
    }
    /// Whether a choice counts: its expert is one, is not forbidden to the token, and has a slot where that is asked.
    SWITCHYARD_HD bool counts_choice(index_t token, index_t c, const S* row) const {
        const std::int32_t e = chosen.expert(token, c);
        return e >= 0 && e < experts && e < chosen.with_rows && row[e] > -std::numeric_limits<S>::infinity() &&
               (chosen.slot == nullptr || chosen.slot[token * chosen.expert.columns + c] >= 0);
    }
    SWITCHYARD_HD index_t place_of(index_t token, index_t c) const {
        return chosen.expert(token, c) / chosen.group_size * chosen.group_size;
    }
    SWITCHYARD_HD void count_choices_of(index_t token, const S* row, std::int32_t* count) const {
        for (index_t c = 0; c < chosen.counted; ++c) {
            if (!counts_choice(token, c, row)) continue;
            bool is_first = true;
            for (index_t before = 0; before < c && chosen.once_in_group && is_first; ++before) {
                is_first = !counts_choice(token, before, row) || place_of(token, before) != place_of(token, c);
            }
            count[place_of(token, c)] += is_first ? 1 : 0;
        }
    }
};

/// What the slots' arrays hold, from the workspace.
template <class S>
struct slot_sums {
    index_t slots;
    index_t length;
    S* probabilities;
    double* terms;
    std::int32_t* counts;
    std::int64_t* tokens;
};

template <class Policy, class S>
inline constexpr int slot_width = host_policy<Policy> ? native_width<S> : 1;

/// Adds up the rows of all slots. CPU policies refuse bad scores; where work is asynchronous they make sums NaN.
template <class Policy, class Source, class Space, class Workspace>
auto sum_slots(const Policy& policy, const Source& source, const row_values& kind, row_term term,
               const chosen_experts<Space>& chosen, const sequence_slots<Space>& sequences, const token_mask& mask,
               Workspace& scratch) {
    using S = typename Source::compute;
    constexpr int W = slot_width<Policy, S>;
    const index_t experts = source.scores.columns;
    const index_t length = padded<16>(experts);
    const index_t slots = sequences.slots();
    const bool counts = chosen.expert.data != nullptr;
    const slot_sums<S> sums{slots,
                            length,
                            scratch.template take<S>(product_of_sizes("sums", slots, length)),
                            scratch.template take<double>(slots),
                            counts ? scratch.template take<std::int32_t>(slots * experts) : nullptr,
                            scratch.template take<std::int64_t>(slots)};
    auto* const bad = scratch.template take<std::int64_t>(slots);
    auto* const rows = scratch.template take<S>(product_of_sizes("numbers of rows", 2 * slots, length));
    for_each_slot(policy, slots,
                  sum_slot<W, Source, Space>{source, kind, term, chosen, sequences, mask, experts, length, rows,
                                             sums.probabilities, sums.terms, sums.counts, sums.tokens, bad});
    if constexpr (host_policy<Policy>) {
        for (index_t slot = 0; slot < slots; ++slot) {
            if (bad[slot] < 0) continue;
            for (index_t e = 0; e < experts; ++e) {
                const auto score = static_cast<double>(load_scalar(source.scores(bad[slot], e)));
                require(score <= std::numeric_limits<double>::max(), "scores[", bad[slot], ", ", e, "] is ",
                        std::isnan(score) ? "NaN" : "+infinity",
                        ": a score must be finite, or -infinity to forbid an expert");
            }
            fail("scores of token ", bad[slot], " leave the range of their type after the router's changes");
        }
    }
    return sums;
}

/// to[i] = the sum over the slots of sequence b.
template <class T, class Space>
SWITCHYARD_HD double sum_of_slots(const sequence_slots<Space>& sequences, index_t b, const T* values, index_t stride) {
    double sum = 0;
    const index_t first = sequences.first_slot(b);
    for (index_t i = 0; i < sequences.slots_of(b); ++i) sum += static_cast<double>(values[(first + i) * stride]);
    return sum;
}

/// The gradient of the scores of a slot's rows.
template <int W, class Source, class Space, class OutStorage>
struct differentiate_slot {
    using S = typename Source::compute;
    using P = pack<S, W>;
    Source source;
    row_values kind;
    sequence_slots<Space> sequences;
    token_mask mask;
    index_t experts;
    index_t length;
    const S* gradient;        ///< [B, length] a_e; zeros behind E
    const double* row_scale;  ///< [B] of the row term's gradient
    row_term term;
    bool adds;
    S* scratch;  ///< [slots, 3 length]
    matrix_view<OutStorage, Space> out;

    SWITCHYARD_HD void operator()(index_t slot) const {
        S* const values = scratch + slot * 3 * length;
        index_t begin = 0;
        index_t end = 0;
        const index_t b = sequences.sequence_of_slot(slot);
        sequences.rows_of_slot(slot, b, begin, end);
        for (index_t token = begin; token < end; ++token) {
            if (!mask(token)) {
                for (index_t e = 0; e < experts && !adds; ++e) out(token, e) = store_scalar<OutStorage>(0);
                continue;
            }
            const S* const row = source.row(token, values + length);
            differentiate(row, gradient + b * length, row_scale != nullptr ? row_scale[b] : 0.0, values,
                          values + 2 * length);
            source.pull_back(token, row, values);
            write(token, values, values + 2 * length);
        }
    }

  private:
    SWITCHYARD_HD void write(index_t token, S* values, [[maybe_unused]] S* before) const {
        if constexpr (W > 1 && std::is_same_v<compute_t<OutStorage>, S>) {
            if (out.rows_contiguous()) {
                if (adds) {
                    load_rows<W>(const_view(out), token, 1, before, length);
                    for (index_t j = 0; j < experts; j += W) {
                        (P::load(values + j) + P::load(before + j)).store(values + j);
                    }
                }
                store_rows<W>(values, length, out, token, 1);
                return;
            }
        }
        for (index_t e = 0; e < experts; ++e) {
            auto d = static_cast<compute_t<OutStorage>>(values[e]);
            if (adds) d += load_scalar(out(token, e));
            out(token, e) = store_scalar<OutStorage>(d);
        }
    }
    /// `values` becomes the gradient of the scores.
    SWITCHYARD_HD void differentiate(const S* row, const S* a, double scale_of_term, S* values, S* own) const {
        constexpr S lowest = -std::numeric_limits<S>::infinity();
        const found_values<S> found = find_values<W>(kind, row, experts, values);
        const P scale = P::all(found.scale);
        S shift = 0;
        if (term == row_term::entropy) {  // a_e less d(p ln p) / d p
            for (index_t e = 0; e < experts; ++e) {
                const auto p = rounded_times(static_cast<double>(values[e]), static_cast<double>(found.scale));
                own[e] = a[e] - static_cast<S>(rounded_times(scale_of_term, p > 0 ? std::log(p) + 1 : 0.0));
            }
            for (index_t e = experts; e < length; ++e) own[e] = 0;
            a = own;
        } else if (term == row_term::squared_logsumexp && found.scale != S(0)) {
            const double z = static_cast<double>(found.maximum) + std::log(static_cast<double>(found.sum));
            shift = static_cast<S>(rounded_times(2 * scale_of_term, z));
        }
        P weighted = P::all(S(0));
        for (index_t j = 0; j < experts; j += W) {
            const P p = rounded_times(P::load(values + j), scale);
            weighted = multiply_add(p, P::load(a + j), weighted);
        }
        const P dot = P::all(kind.divides ? total(weighted) - shift : S(0));
        for (index_t j = 0; j < experts; j += W) {
            const P factor = (P::load(a + j) - dot) * scale;
            const P score = j + W <= experts ? P::load(row + j) : P::load_first(row + j, experts - j, lowest);
            const P slope = kind.is_softmax() ? P::load(values + j) : slope_of(kind.function, score);
            rounded_times(factor, slope).store(values + j);
        }
    }
};

/// d_scores of the rows of all slots, from gradient[B, length] and row_scale[B].
template <class Policy, class Source, class Space, class S, class OutStorage, class Workspace>
void differentiate_slots(const Policy& policy, const Source& source, const row_values& kind,
                         const sequence_slots<Space>& sequences, const token_mask& mask, const S* gradient,
                         const double* row_scale, row_term term, bool adds, const matrix_view<OutStorage, Space>& out,
                         Workspace& scratch) {
    constexpr int W = slot_width<Policy, S>;
    const index_t experts = source.scores.columns;
    const index_t length = padded<16>(experts);
    const index_t slots = sequences.slots();
    auto* const rows = scratch.template take<S>(product_of_sizes("numbers of rows", 3 * slots, length));
    for_each_slot(policy, slots,
                  differentiate_slot<W, Source, Space, OutStorage>{source, kind, sequences, mask, experts, length,
                                                                   gradient, row_scale, term, adds, rows, out});
}

}  // namespace detail

}  // namespace SWITCHYARD_TARGET
}  // namespace switchyard
