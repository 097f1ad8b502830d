// Routing by rows, forward and backward, for any backend: the part that Switch, top-k, BASE and recipes share.
//
// Forward: row pass -> slots -> losses. Backward: with a_e = d balance / d p_te, z_t = d z-loss / d s_te / p_te, p the
// softmax over all experts, and u_c what choice c adds to its own score's gradient (score/gates.hpp),
//
//   d s_te = p_te (a_e + z_t - dot_t) + [e chosen] u_c       dot_t = sum_e p_te a_e + sum_c u_c
//
// where the second sum of dot_t is left out unless gates are probabilities, and dropped choices have gates without a
// gradient. Where no loss asks for p and the values are no softmax, only chosen experts' scores have a gradient. The
// verbs used, `route_rows`, `finish_losses` and `run_rows`, have one overload a backend.
#pragma once

#include <switchyard/backend/policy.hpp>
#include <switchyard/balance/load_balancing_loss.hpp>
#include <switchyard/balance/z_loss.hpp>
#include <switchyard/core/config.hpp>
#include <switchyard/core/overlap.hpp>
#include <switchyard/core/workspace.hpp>
#include <switchyard/plan/capacity.hpp>
#include <switchyard/plan/slots.hpp>
#include <switchyard/router/finished_gates.hpp>
#include <switchyard/router/routing.hpp>
#include <switchyard/router/rowless.hpp>
#include <switchyard/router/softmax_pass.hpp>
#include <switchyard/score/gates.hpp>

#include <algorithm>
#include <cstdint>

namespace switchyard {

/// What a softmax router's settings come down to.
struct softmax_settings {
    slot_settings slots{};
    double balance_weight = 0;
    double z_weight = 0;
    bad_scores bad = bad_scores::error;
    bool may_drop = true;  ///< a token with every expert forbidden is dropped, not an error
    gate_settings gates{};
    gate_finish finish{};
    index_t rounds = 0;       ///< of no-token-left-behind; 0 is off
    index_t rowless = 0;      ///< the last experts, which have no rows (router/rowless.hpp)
    index_t shared = 0;       ///< the last choices of each token, which are no choices
    bool may_repeat = false;  ///< a token's choices may name an expert twice

    /// Whether probabilities over all experts are asked for in training.
    SWITCHYARD_HD SWITCHYARD_ALWAYS_INLINE constexpr bool needs_probabilities() const {
        return gates.is_softmax() || balance_weight != 0 || z_weight != 0;
    }
};

inline namespace SWITCHYARD_TARGET {

/// A router's rowless experts, the last of `columns`. Values of zero experts are 0: they have no part in what gates are
/// divided by, which is then found when gates are finished.
inline void mark_rowless(softmax_settings& settings, const rowless_experts& rowless, index_t columns) {
    settings.rowless = rowless.count();
    settings.shared = rowless.shared;
    if (rowless.zero == 0) return;
    settings.finish.first_zero = columns - rowless.zero;
    if (settings.gates.normalizes()) {
        settings.finish.sum = settings.gates.sum;
        settings.finish.epsilon = settings.gates.epsilon;
        settings.finish.scale = settings.gates.scale;
        settings.gates = gate_settings{.function = settings.gates.function};
    }
}

/// Raises what a CPU row pass found.
template <class Source>
void raise_row_events(const Source& source, const row_events& events, bool may_drop, bad_scores bad) {
    const row_outcome outcome = outcome_of(events, may_drop);
    if (outcome.status != plan_status::good) {
        fail_bad_row(source, outcome.token, outcome.status, bad);
    }
}

/// Row pass and slots on the CPU: choices are counted while a block's rows are in cache.
template <host_policy Policy, class Pass, class S>
void route_rows(const Policy& policy, const Pass& pass, const plan_view<S>& plan, const softmax_settings& settings,
                double* column_sums, workspace& scratch) {
    const auto scope = scratch.open();
    // Counting pays where there are several blocks, and in token order.
    const bool count = plan.tokens > few_tokens && settings.slots.order == drop_order::position && plan.has_rows();
    const choice_counts counts = count ? take_choice_counts(plan, scratch) : choice_counts{};
    const row_events events = run_softmax_pass(policy, pass, column_sums, scratch, [&](index_t block) {
        if (count) {
            count_choices(plan, counts, block, nullptr);
        }
    });
    raise_row_events(pass.source, events, settings.may_drop, settings.bad);
    finish_gates(policy, plan, settings.finish);
    detail::place_beside_rowless(policy, plan, settings.rowless, scratch, [&] {
        place_choices(policy, plan, settings.slots, scratch, count ? &counts : nullptr);
    });
}

/// Row pass that lists candidates, and slots in rounds, on the CPU.
template <host_policy Policy, class Pass, class S>
void route_rows_in_rounds(const Policy& policy, const Pass& pass, const plan_view<S>& plan,
                          const softmax_settings& settings, double* column_sums, workspace& scratch) {
    const row_events events = run_softmax_pass(policy, pass, column_sums, scratch, [](index_t) {});
    raise_row_events(pass.source, events, settings.may_drop, settings.bad);
    place_choices_in_rounds(policy, plan, pass.select.expert, pass.select.gate, settings.rounds, settings.slots,
                            scratch);
}

/// sum_i f(i) for i in 0 .. count, in blocks of fixed size and fixed order.
template <host_policy Policy, class F>
double sum_over(const Policy& policy, index_t count, const F& f, workspace& scratch) {
    const auto scope = scratch.open();
    const index_t rows = rows_per_block(count);
    const index_t blocks = block_count(count);
    double* const partial = scratch.take<double>(blocks);
    policy.parallel_for(blocks, [&](index_t b) {
        double sum = 0;
        for (index_t i = b * rows; i < std::min(count, (b + 1) * rows); ++i) {
            sum += f(i);
        }
        partial[b] = sum;
    });
    double sum = 0;
    for (index_t b = 0; b < blocks; ++b) {
        sum += partial[b];
    }
    return sum;
}

/// Terms of the load-balancing loss of a plan of all columns: those of its experts with rows.
template <class S, class Space>
SWITCHYARD_HD balance_terms balance_of(const plan_view<S, Space>& plan, const softmax_settings& settings) {
    return {settings.balance_weight, plan.experts - settings.rowless,
            settings.slots.balance == balance_count::all && settings.rounds == 0 ? plan.choices - settings.shared : 1,
            &plan.totals->counted_tokens, plan.balance_load};
}

namespace detail {

/// Both losses into a plan's totals, from what was summed over its rows; null where a loss is not asked for.
template <class S, class Space>
struct write_losses {
    plan_view<S, Space> plan;
    softmax_settings settings;
    const double* column_sums;
    const double* squares;

    SWITCHYARD_HD void operator()(index_t) const {
        plan_totals& totals = *plan.totals;
        totals.load_balancing_loss = column_sums != nullptr ? balance_of(plan, settings).value(column_sums) : 0.0;
        totals.z_loss = squares != nullptr ? z_loss(settings.z_weight, *squares, totals.counted_tokens) : 0.0;
    }
};

}  // namespace detail

/// Both losses, on the CPU.
template <host_policy Policy, class S>
void finish_losses(const Policy& policy, const plan_view<S>& plan, const softmax_settings& settings,
                   const double* column_sums, workspace& scratch) {
    const bool has_squares = plan.origin.training && settings.z_weight != 0;
    double squares = 0;
    if (has_squares) {
        squares = sum_over(
            policy, plan.tokens, [&](index_t t) { return squared_logsumexp(plan.row_maximum[t], plan.row_sum[t]); },
            scratch);
    }
    detail::write_losses<S, host_space>{plan, settings, column_sums, has_squares ? &squares : nullptr}(0);
    plan.totals->status = plan_status::good;
    plan.totals->status_token = -1;
}

/// Forward: `select` writes choices and gates to the plan.
template <class Policy, class Source, class S, class Space, class Workspace, class Select>
void route_softmax(const Policy& policy, const Source& source, const run_mode& mode, const plan_view<S, Space>& plan,
                   const softmax_settings& settings, Workspace& scratch, const Select& select) {
    const auto scope = scratch.open();
    const bool balance = mode.is_training && settings.balance_weight != 0;
    double* const column_sums = balance ? scratch.template take<double>(plan.experts) : nullptr;
    const softmax_pass<Source, Select> pass{source,
                                            mode.mask,
                                            settings.bad,
                                            select,
                                            mode.is_training ? plan.row_maximum : nullptr,
                                            plan.row_sum,
                                            settings.needs_probabilities()};
    route_rows(policy, pass, plan, settings, column_sums, scratch);
    finish_losses(policy, plan, settings, column_sums, scratch);
}

/// Forward with no token left behind: the row pass lists `settings.rounds` candidates per token.
template <class Policy, class Source, class S, class Space, class Workspace>
void route_softmax_in_rounds(const Policy& policy, const Source& source, const run_mode& mode,
                             const plan_view<S, Space>& plan, const softmax_settings& settings, Workspace& scratch) {
    require(plan.has_rows(), "no token is left behind by giving out slots, and choices alone have none");
    const auto scope = scratch.open();
    const bool balance = mode.is_training && settings.balance_weight != 0;
    double* const column_sums = balance ? scratch.template take<double>(plan.experts) : nullptr;
    const select_list<S> candidates{scratch.template take<std::int32_t>(plan.tokens * settings.rounds),
                                    scratch.template take<S>(plan.tokens * settings.rounds), plan.experts,
                                    settings.rounds};
    const softmax_pass<Source, select_list<S>> pass{
        source, mode.mask, settings.bad, candidates, mode.is_training ? plan.row_maximum : nullptr, plan.row_sum};
    route_rows_in_rounds(policy, pass, plan, settings, column_sums, scratch);
    finish_losses(policy, plan, settings, column_sums, scratch);
}

/// The row program of backward: d_scores from d_gates and the losses.
template <class Source, class S, class Space, class GateStorage, class ScoreStorage>
struct softmax_backward_pass {
    Source source;
    plan_view<S, Space> plan;
    matrix_view<const GateStorage, Space> d_gates;
    matrix_view<ScoreStorage, Space> d_scores;
    softmax_settings settings;
    const S* balance_gradient;  ///< [padded E] a_e, or null
    double z_weight;            ///< loss scale included

    template <int W>
    SWITCHYARD_HD index_t scratch_size() const {
        return 2 * padded<W>(plan.experts) + 2 * padded<W>(plan.choices);
    }

    template <int W>
    SWITCHYARD_HD void run(index_t first, index_t last, S* scratch) const {
        const index_t length = padded<W>(plan.experts);
        S* const chosen = scratch + 2 * length;
        if constexpr (W > 1) {
            if (!source.direct() || !writes_in_place()) {
                alignas(64) S block[block_bytes / sizeof(S)];
                alignas(64) S gradients[block_bytes / sizeof(S)];
                // Rows too long for these are read and written one by one.
                const index_t rows = std::max(rows_of_block<W, S>(source.scores, length, block_bytes),
                                              rows_of_block<W, S>(d_scores, length, block_bytes));
                for (index_t start = first; start < last && rows > 0; start += rows) {
                    const index_t count = std::min(rows, last - start);
                    if (!source.direct()) {
                        source.template rows<W>(start, count, block, length);
                    }
                    for (index_t i = 0; i < count; ++i) {
                        const S* const row = source.direct() ? source.row(start + i, scratch) : block + i * length;
                        differentiate<W>(start + i, row, gradients + i * length, chosen);
                        source.pull_back(start + i, row, gradients + i * length);
                    }
                    store_rows<W>(gradients, length, d_scores, start, count);
                }
                if (rows > 0) {
                    return;
                }
            }
        }
        for (index_t token = first; token < last; ++token) {
            const S* const row = source.row(token, scratch + length);
            differentiate<W>(token, row, scratch, chosen);
            write<W>(token, row, scratch);
        }
    }

  private:
    /// Rows that cannot be read or written in place go through blocks of this size, which stay in cache.
    static constexpr index_t block_bytes = 16384;

    SWITCHYARD_HD bool writes_in_place() const { return std::is_same_v<ScoreStorage, S> && d_scores.rows_contiguous(); }

    SWITCHYARD_HD S gate_gradient(index_t token, index_t c) const {
        return plan.slot[token * plan.choices + c] >= 0 ? static_cast<S>(load_scalar(d_gates(token, c))) : S(0);
    }

    /// A row's gradient with respect to what was routed; `probability` becomes it.
    template <int W>
    SWITCHYARD_HD void differentiate(index_t token, const S* row, S* probability, S* chosen) const {
        using P = pack<S, W>;
        const index_t experts = plan.experts;
        constexpr S lowest = -std::numeric_limits<S>::infinity();
        if (!settings.needs_probabilities()) {
            fill_zeros<W>(probability);
            (void)differentiate_gates<W>(token, row, row, chosen);
            add_chosen(token, chosen, probability);
            return;
        }
        const S sum = plan.row_sum[token];
        // Padding, and tokens with every expert forbidden, count nowhere.
        const S scale = sum > S(0) ? S(1) / sum : S(0);
        if (scale == S(0)) {
            fill_zeros<W>(probability);
            return;
        }
        const P maximum = P::all(plan.row_maximum[token]);
        P weighted = P::all(S(0));
        for (index_t j = 0; j < padded<W>(experts); j += W) {
            const index_t rest = experts - j;
            // NaN, where forward took it for -infinity, is that here, too.
            const P score = max(rest >= W ? P::load(row + j) : P::load_first(row + j, rest, lowest), P::all(lowest));
            const P p = exp_nonpositive<S, W>(score - maximum) * P::all(scale);
            p.store(probability + j);
            if (balance_gradient != nullptr) {
                weighted = multiply_add(p, P::load(balance_gradient + j), weighted);
            }
        }
        const S dot = total(weighted) +
                      differentiate_gates<W>(token, settings.gates.is_softmax() ? probability : row, row, chosen);
        const double z = z_weight != 0 ? z_loss_gradient(z_weight, row_logsumexp(plan.row_maximum[token], sum),
                                                         plan.totals->counted_tokens)
                                       : 0.0;
        const P shift = P::all(static_cast<S>(z) - dot);
        for (index_t j = 0; j < padded<W>(experts); j += W) {
            const P a = balance_gradient != nullptr ? P::load(balance_gradient + j) + shift : shift;
            (P::load(probability + j) * a).store(probability + j);
        }
        add_chosen(token, chosen, probability);
    }

    template <int W>
    SWITCHYARD_HD void fill_zeros(S* gradient) const {
        for (index_t j = 0; j < padded<W>(plan.experts); j += W) {
            pack<S, W>::all(S(0)).store(gradient + j);
        }
    }

    /// chosen[c] = what choice c adds to its score's gradient, from probabilities for a softmax and from scores
    /// otherwise. Returns what all scores share of that.
    template <int W>
    SWITCHYARD_HD S differentiate_gates(index_t token, const S* from, const S* row, S* chosen) const {
        const std::int32_t* const expert = plan.expert + token * plan.choices;
        const S beyond = settings.gates.is_softmax() ? S(0) : detail::lowest<S>();
        S* const gradient = chosen + padded<W>(plan.choices);
        bool are_low = true;
        for (index_t c = 0; c < plan.choices; ++c) {
            const S number = expert[c] >= 0 ? detail::usable(from[expert[c]]) : beyond;
            are_low = are_low && number < gate_rule<S>::least_value();
            chosen[c] = number;
            gradient[c] = gate_gradient(token, c);
        }
        const gate_rule<S> rule(settings.gates);
        if (settings.gates.is_softmax()) {
            if (are_low && settings.gates.is_softmax_of_chosen()) [[unlikely]] {
                lift_values(expert, row, chosen);
            }
            // Without an exponential per choice, packs would wait longer for their numbers than they work.
            return rule.differentiate(choices_of_row<S, 1>{chosen, gradient, plan.choices, beyond}).v;
        }
        (void)rule.differentiate(choices_of_row<S, W>{chosen, gradient, plan.choices, beyond});
        return S(0);
    }

    /// Probabilities of choices that all lie far below the row's maximum become values relative to the highest of them.
    SWITCHYARD_HD SWITCHYARD_COLD void lift_values(const std::int32_t* expert, const S* row, S* value) const {
        S highest_score = std::numeric_limits<S>::lowest();
        for (index_t c = 0; c < plan.choices; ++c) {
            value[c] = expert[c] >= 0 ? detail::usable(row[expert[c]]) : detail::lowest<S>();
            highest_score = value[c] > highest_score ? value[c] : highest_score;
        }
        for (index_t c = 0; c < plan.choices; ++c) {
            value[c] = exp_nonpositive(value[c] - highest_score);
        }
    }

    SWITCHYARD_HD void add_chosen(index_t token, const S* chosen, S* gradient) const {
        for (index_t c = 0; c < plan.choices; ++c) {
            const std::int32_t expert = plan.expert[token * plan.choices + c];
            if (expert >= 0) {
                gradient[expert] += chosen[c];
            }
        }
    }

    template <int W>
    SWITCHYARD_HD void write(index_t token, const S* row, S* gradient) const {
        source.pull_back(token, row, gradient);
        if constexpr (std::is_same_v<ScoreStorage, S>) {
            if (d_scores.rows_contiguous()) {
                using P = pack<S, W>;
                S* const out = d_scores.row(token);
                index_t j = 0;
                for (; j + W <= plan.experts; j += W) {
                    P::load(gradient + j).store(out + j);
                }
                P::load(gradient + j).store_first(out + j, plan.experts - j);
                return;
            }
        }
        for (index_t e = 0; e < plan.experts; ++e) {
            d_scores(token, e) = store_scalar<ScoreStorage>(static_cast<compute_t<ScoreStorage>>(gradient[e]));
        }
    }
};

/// Runs a row program without reductions over all rows, on the CPU.
template <host_policy Policy, class Pass, class S>
void run_rows(const Policy& policy, const Pass& pass, index_t tokens, S*, workspace& scratch) {
    constexpr int W = native_width<S>;
    const auto scope = scratch.open();
    const index_t rows = rows_per_block(tokens);
    const index_t blocks = block_count(tokens);
    const index_t room = padded<64 / static_cast<int>(sizeof(S))>(pass.template scratch_size<W>());
    S* const block_scratch = scratch.take<S>(blocks * room);
    policy.parallel_for(blocks, [&](index_t b) {
        pass.template run<W>(b * rows, std::min(tokens, (b + 1) * rows), block_scratch + b * room);
    });
}

namespace detail {

/// gradient[e] = a_e, 0 in the padding.
template <class S>
struct fill_balance_gradient {
    balance_terms terms;
    double scale;
    S* gradient;

    SWITCHYARD_HD void operator()(index_t e) const {
        gradient[e] = e < terms.experts ? static_cast<S>(scale * terms.gradient(e)) : S(0);
    }
};

/// a_e [padded E] from the workspace, or null where there is no balance loss.
template <class Policy, class S, class Space, class Workspace>
S* take_balance_gradient(const Policy& policy, const plan_view<S, Space>& plan, const softmax_settings& settings,
                         const backward_settings& backward, Workspace& scratch) {
    constexpr index_t widest = 16;
    if (settings.balance_weight == 0) return nullptr;
    const index_t length = padded<widest>(plan.experts);
    S* const gradient = scratch.template take<S>(length);
    for_each_index(policy, length, fill_balance_gradient<S>{balance_of(plan, settings), backward.loss_scale, gradient});
    return gradient;
}

}  // namespace detail

/// Where scores can be read here and now: do they have the maxima that the plan kept? Three rows are looked at. A
/// router whose plans keep something else overloads this.
template <class Router, class Source, class S>
void require_scores_of_plan(const Router&, const Source& source, const plan_view<S>& plan, workspace& scratch) {
    const auto scope = scratch.open();
    S* const copy = scratch.take<S>(plan.experts);
    for (const index_t token : {index_t{0}, plan.tokens / 2, plan.tokens - 1}) {
        if (plan.tokens == 0 || !(plan.row_sum[token] > S(0))) {
            continue;
        }
        const S* const row = source.row(token, copy);
        S highest_score = detail::lowest<S>();
        for (index_t e = 0; e < plan.experts; ++e) {
            highest_score = row[e] > highest_score ? row[e] : highest_score;
        }
        require(highest_score == plan.row_maximum[token], "the plan was not made from these scores: token ", token,
                " had the maximum ", plan.row_maximum[token], " and now has ", highest_score);
    }
}

/// What every backward checks about the plan it is given.
template <class S, class Space, class Gates>
void require_plan_for_backward(const plan_view<S, Space>& plan, const Gates& d_gates, index_t tokens, index_t experts,
                               std::uint64_t settings) {
    require_finished(plan);
    const index_t columns = plan.experts + plan.origin.rowless.count();
    require(plan.origin.training, "the plan was made by inference; backward needs one made with training{}");
    require(plan.origin.settings == settings, "the plan was made by a router with other settings");
    require(plan.tokens == tokens && columns == experts, "the plan was made for ", plan.tokens, " tokens x ", columns,
            " experts, not for ", tokens, " x ", experts);
    require_gate_shape(plan, d_gates);
}

/// Backward of `route_softmax`: d_scores from d_gates, the balance loss and the z-loss.
template <class Policy, class Source, class S, class Space, class Gates, class Scores, class Workspace>
void route_softmax_backward(const Policy& policy, const Source& source, const plan_view<S, Space>& plan,
                            const Gates& d_gates, const Scores& d_scores, const softmax_settings& settings,
                            const backward_settings& backward, Workspace& scratch) {
    using pass = softmax_backward_pass<Source, S, Space, typename Gates::value_type, typename Scores::value_type>;
    const auto scope = scratch.open();
    S* const balance_gradient = detail::take_balance_gradient(policy, plan, settings, backward, scratch);
    run_rows(policy,
             pass{source, plan, d_gates, d_scores, settings, balance_gradient, settings.z_weight * backward.loss_scale},
             plan.tokens, balance_gradient, scratch);
}

/// A router whose gate is a softmax: it says what its settings come down to, and what their fingerprint is.
template <class Router>
concept softmax_router = requires(const Router& router) {
    softmax_settings_of(router, index_t{});
    fingerprint_of(router);
};

/// A router's jitter on scores; 0 for routers without that setting.
template <class Router>
float logit_jitter_of(const Router& router) {
    if constexpr (requires { router.logit_jitter; }) {
        return router.logit_jitter;
    } else {
        return 0;
    }
}

/// A number for each expert, [E], in the memory of `Space`.
template <class Space = host_space>
struct expert_numbers {
    const float* data = nullptr;  ///< or null: none
    index_t size = 0;
};

namespace detail {

/// numbers[e], and 0 beyond.
template <class S>
struct pad_numbers {
    const float* from;
    index_t count;
    S* to;

    SWITCHYARD_HD void operator()(index_t e) const { to[e] = e < count ? static_cast<S>(from[e]) : S(0); }
};

/// A copy in the compute type, padded to whole packs, from the workspace; null stays null. Device code reads number by
/// number, and what is in the compute type as it is.
template <class S, class Policy, class Space, class Workspace>
const S* padded_numbers(const Policy& policy, const expert_numbers<Space>& numbers, Workspace& scratch) {
    static_assert(std::is_same_v<Space, typename Policy::memory::space>,
                  "switchyard: the router's numbers of experts do not lie in the memory this policy works in");
    if (numbers.data == nullptr) {
        return nullptr;
    }
    if constexpr (std::is_same_v<S, float> && !std::is_same_v<Space, host_space>) {
        return numbers.data;
    }
    constexpr index_t widest = 16;
    S* const to = scratch.template take<S>(padded<widest>(numbers.size));
    for_each_index(policy, padded<widest>(numbers.size), pad_numbers<S>{numbers.data, numbers.size, to});
    return to;
}

/// What a router's rows are: scores with its bias and, in training, its jitter. The bias is taken from the workspace.
template <class Policy, class Router, class Storage, class Space, class Workspace>
score_rows<Storage, Space> rows_of_router(const Policy& policy, const Router& router,
                                          const matrix_view<const Storage, Space>& scores, bool is_training,
                                          const noise_key& noise, Workspace& scratch) {
    auto rows = score_rows_of(scores, is_training ? logit_jitter_of(router) : 0.0f, noise);
    if constexpr (requires { router.logit_bias; }) {
        using S = compute_t<Storage>;
        rows.bias = padded_numbers<S>(policy, router.logit_bias, scratch);
        rows.multiplier = static_cast<S>(router.logit_multiplier);
        rows.cap = static_cast<S>(router.softcap);
    }
    return rows;
}

}  // namespace detail

/// Scores as a router changes them before they choose and weigh, in a run of its own noise: for losses of them
/// (balance/balance_loss.hpp). What it needs is taken from the workspace's open scope.
template <class Policy, class Router, class Scores, class Workspace>
auto rows_of_router(const Policy& policy, const Router& router, const Scores& scores, const run_mode& mode,
                    Workspace& scratch) {
    const auto input = detail::token_view(scores);
    require_space<Policy, std::remove_const_t<decltype(input)>>();
    if constexpr (requires { router.logit_bias; }) {
        require(router.logit_bias.data == nullptr || router.logit_bias.size == input.columns, "logit_bias has ",
                router.logit_bias.size, " numbers for E = ", input.columns, " experts");
    }
    return detail::rows_of_router(policy, router, input, mode.is_training, mode.noise, scratch);
}

namespace detail {

/// The plan as if nothing had been dropped: gradients of values are those of all choices, since dropped ones count in
/// what gates are divided by. A forbidden one's value does not move.
template <class S, class Space>
plan_view<S, Space> with_dropped_choices(plan_view<S, Space> plan) {
    plan.slot = plan.expert;
    return plan;
}

/// The gradients of the gates that were finished, [T, k] from the workspace.
template <class Policy, class Source, class S, class Space, class GateStorage, class Workspace>
matrix_view<const S, Space> gradients_before_finish(const Policy& policy, const Source& source,
                                                    const plan_view<S, Space>& plan,
                                                    const matrix_view<const GateStorage, Space>& d_gates,
                                                    const softmax_settings& settings, Workspace& scratch) {
    const index_t k = plan.choices;
    S* const out = scratch.template take<S>(plan.tokens * k);
    S* const values = settings.finish.sum != gate_sum::none ? scratch.template take<S>(plan.tokens * k) : nullptr;
    for_each_index(policy, plan.tokens,
                   unfinish_token<Source, S, Space, GateStorage>{source, plan, d_gates, settings.finish,
                                                                 settings.gates.function, out, values});
    return {out, plan.tokens, k, k, 1};
}

}  // namespace detail

/// The capacity that a router's settings come to; none where they have no such setting.
template <class Router>
index_t capacity_of_router(const Router& router, const run_mode& mode, index_t tokens, index_t choices,
                           index_t experts) {
    if constexpr (requires { router.inference_capacity; }) {
        return capacity_of(mode.is_training ? router.capacity : router.inference_capacity, tokens, choices, experts);
    } else if constexpr (requires { router.capacity; }) {
        return capacity_of(router.capacity, tokens, choices, experts);
    } else {
        return unlimited;
    }
}

/// scores[T, E] -> plan with k choices, for routers that are a selection and settings: everything around the selection.
/// Checks the arguments, and with `require_settings(router, E, mode)` the settings; shapes the plan; calls
/// choose(source, settings, plan_view), which routes (`route_softmax`, say).
template <class Policy, softmax_router Router, class Scores, class Plan, class Workspace, class Choose>
void route_by_rows(const Policy& policy, const Router& router, index_t k, const Scores& scores, const run_mode& mode,
                   Plan& plan, Workspace& scratch, const Choose& choose) {
    require_memory<Policy, Scores, Plan>();
    begin_plan(plan);  // empty until finish_plan: what throws in between leaves it so
    const auto input = detail::token_view(scores);
    require_scores<Policy>(input, mode.mask);
    require_settings(router, input.columns, mode);
    const rowless_experts rowless = rowless_of(router);
    require_rowless(rowless, input.columns);
    const index_t capacity =
        capacity_of_router(router, mode, input.rows, k - rowless.shared, input.columns - rowless.shared);
    plan.resize(input.rows, input.columns - rowless.count(), k, capacity);
    plan_origin origin = origin_of(mode, fingerprint_of(router));
    origin.rowless = rowless;
    continue_plan(plan, origin);
    require_apart<Policy>("the plan's gates", detail::gates_of(plan.view()), "scores", input);
    const auto scope = scratch.open();
    const auto rows = detail::rows_of_router(policy, router, input, mode.is_training, mode.noise, scratch);
    softmax_settings settings = softmax_settings_of(router, capacity);
    mark_rowless(settings, rowless, input.columns);
    if (rowless.count() > 0) {
        const auto wide = detail::widened(plan.view(), scratch);
        choose(rows, settings, wide);
        detail::narrow(policy, wide, plan.view());
    } else {
        choose(rows, settings, plan.view());
    }
    finish_plan(plan);
}

/// Backward behind its checks. Routers whose gates are finished in a way of their own overload this.
template <class Policy, class Router, class Source, class S, class Space, class Gates, class Scores, class Workspace>
void differentiate_router(const Policy& policy, const Router&, const Source& source, const plan_view<S, Space>& plan,
                          const Gates& d_gates, const Scores& d_scores, const softmax_settings& settings,
                          const backward_settings& backward, Workspace& scratch) {
    if (settings.finish.is_needed()) {
        const auto before = detail::gradients_before_finish(policy, source, plan, d_gates, settings, scratch);
        route_softmax_backward(policy, source, detail::with_dropped_choices(plan), before, d_scores, settings, backward,
                               scratch);
        return;
    }
    route_softmax_backward(policy, source, plan, d_gates, d_scores, settings, backward, scratch);
}

/// d_gates[T, k] and the losses -> d_scores[T, E]. Gates of dropped choices get no gradient, those of experts without
/// rows do (router/rowless.hpp); padding rows are 0. `plan` was made in training by the same router from the same
/// scores. d_scores may be the scores, the same view of the same numbers; otherwise it lies apart from them, and always
/// from d_gates.
template <class Policy, softmax_router Router, class Plan, class Scores, class Gates, class Out, class Workspace>
void route_scores_backward(const Policy& policy, const Router& router, const Plan& plan, const Scores& scores,
                           const Gates& d_gates, Out&& d_scores, Workspace& scratch,
                           const backward_settings& backward = {}) {
    const auto input = detail::token_view(scores);
    const auto gates = detail::input_view(d_gates);
    const auto out = detail::output_view(d_scores);
    const auto& given = view_of_plan(plan);
    require_space<Policy, decltype(input), std::remove_cvref_t<decltype(given)>, decltype(gates), decltype(out)>();
    require_plan_for_backward(given, gates, input.rows, input.columns, fingerprint_of(router));
    require_settings(backward);
    require_same_shape("d_scores", out, "scores", input);
    require_apart_or_same<Policy>("d_scores", out, "scores", input);
    require_apart<Policy>("d_scores", out, "d_gates", gates);
    const auto scope = scratch.open();
    const auto source = detail::rows_of_router(policy, router, input, true, given.origin.noise, scratch);
    softmax_settings settings = softmax_settings_of(router, given.capacity);
    mark_rowless(settings, given.origin.rowless, input.columns);
    const auto made = detail::widened_for_backward(policy, given, settings.balance_weight != 0, scratch);
    if constexpr (host_policy<Policy>) {
        require_scores_of_plan(router, source, made, scratch);
    }
    differentiate_router(policy, router, source, made, gates, out, settings, backward, scratch);
}

}  // namespace SWITCHYARD_TARGET
}  // namespace switchyard
