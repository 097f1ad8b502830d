// The row pass of routers with a softmax gate: reads every score once and leaves each token's choices and gates, row
// statistics for backward, and the column sums of the probabilities that the load-balancing loss needs.
//
// `softmax_pass` is the row program, written once over packs. What a row *chooses* is its `Select` parameter:
//   Select::needs_best           false if it does not read `best`, the argmax of the row; may be left out
//   select.template choose<W>(token, row, maximum, sum, best, column_maxima, scratch)
//   select.padding(token)        the token is padding
//   select.forbid_all(token)     every expert is forbidden to it
//   select.template scratch_size<W>()   numbers of scratch that it needs beyond 2 (E + 64); may be left out
//   select.is_padding(token)       true for a token that it has no choice for; may be left out
// and, where a selection can take W rows side by side, which all three may be left out:
//   select.template takes_tiles<W>()             whether it pays for these sizes
//   select.needs_row_sum()                       false if a row's sum of exponentials is not read
//   select.template choose_tile<W>(rows, scratch)    what `choose` does to each row, bit for bit
// Backends run it over rows: `run_softmax_pass` below on CPU threads; router/device_routing.hpp, one thread per row.
#pragma once

#include <switchyard/backend/policy.hpp>
#include <switchyard/core/config.hpp>
#include <switchyard/core/rounding.hpp>
#include <switchyard/core/workspace.hpp>
#include <switchyard/plan/slots.hpp>
#include <switchyard/router/routing.hpp>
#include <switchyard/score/gates.hpp>
#include <switchyard/score/keys.hpp>
#include <switchyard/score/select.hpp>
#include <switchyard/score/softmax.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wsign-conversion"  // g++'s remark on arrays whose length is an int of the template
#endif

namespace switchyard {

/// The first tokens that could not be routed, -1 where there is none.
struct row_events {
    index_t bad = -1;
    index_t unroutable = -1;
};

/// How a row pass went, and the first token that says so.
struct row_outcome {
    plan_status status = plan_status::good;
    index_t token = -1;
};

inline namespace SWITCHYARD_TARGET {

/// The first events of two runs of rows, one behind the other.
SWITCHYARD_HD constexpr row_events earlier(const row_events& a, const row_events& b) {
    return {a.bad < 0 ? b.bad : a.bad, a.unroutable < 0 ? b.unroutable : a.unroutable};
}

/// What events mean: CPU policies throw it, others note it in the plan. Tokens that may be dropped are no trouble.
SWITCHYARD_HD constexpr row_outcome outcome_of(const row_events& events, bool may_drop) {
    const bool unroutable_first = events.unroutable >= 0 && (events.bad < 0 || events.unroutable < events.bad);
    if (!may_drop && unroutable_first) {
        return {plan_status::unroutable, events.unroutable};
    }
    return events.bad >= 0 ? row_outcome{plan_status::bad_score, events.bad} : row_outcome{};
}

/// Whether a selection reads the argmax: true unless it says otherwise.
template <class Select>
constexpr bool needs_best = [] {
    if constexpr (requires { Select::needs_best; }) {
        return Select::needs_best;
    } else {
        return true;
    }
}();

/// Whether a selection can take rows side by side, a pack's lane each.
template <class Select>
concept selects_tiles = requires(const Select& select) {
    select.template takes_tiles<2>();
};

/// Whether it compares keys that are not the scores (score/keys.hpp).
template <class Select>
constexpr bool selects_by_keys = [] {
    if constexpr (requires { Select::is_raw; }) {
        return !Select::is_raw;
    } else {
        return false;
    }
}();

/// W rows and what is known of them, for a selection that takes them side by side.
template <class S, int W>
struct selected_rows {
    index_t token[W];
    const S* row[W];  ///< null where the row was bad, and is done with
    S maximum[W];
    S sum[W];
    pack<S, W> column_maxima[W];
    bool have_keys;  ///< rows' keys lie in the selection's scratch, `padded<W>(experts)` apart
};

template <class Source, class Select>
struct softmax_pass {
    using compute = typename Source::compute;

    Source source;
    token_mask mask{};
    bad_scores bad = bad_scores::error;
    Select select;
    compute* row_maximum = nullptr;  ///< [T] or null
    compute* row_sum = nullptr;      ///< [T] or null
    bool keeps_sums = true;          ///< false: where sums are not needed, row_sum is 1 in rows that are routed

    SWITCHYARD_HD index_t experts() const { return source.scores.columns; }

    /// Numbers of scratch for one block of rows.
    template <int W, int R>
    SWITCHYARD_HD index_t scratch_size() const {
        // Selection one by one needs none.
        const index_t rows =
            W == 1 ? 2 * R * experts() : (2 * R + 1) * padded<W>(experts()) + selection_scratch<compute>(experts());
        return rows + more_scratch<W>();
    }

    /// Rows first .. last. `column_sums` [padded E] is added to where given.
    template <int W, int R>
    SWITCHYARD_HD void run(index_t first, index_t last, compute* scratch, compute* column_sums,
                           row_events& events) const {
        const index_t length = padded<W>(experts());
        compute* const exponentials = scratch + R * length;
        compute* const clean = W == 1 ? scratch : exponentials + R * length;
        compute* const selection = W == 1 ? exponentials + R * length : clean + length;
        places at{scratch, column_sums != nullptr ? exponentials : nullptr, clean, selection, column_sums};
        if constexpr (W > 1) {
            if (!source.direct()) {
                alignas(64) compute block[block_bytes / sizeof(compute)];
                // Rows too long for that are read one by one.
                const index_t rows = rows_of_block<W, compute>(source.scores, length, block_bytes);
                for (index_t start = first; start < last && rows > 0; start += rows) {
                    const index_t end = std::min(last, start + rows);
                    source.template rows<W>(start, end - start, block, length);
                    at.block = block;
                    at.block_first = start;
                    run_span<W, R>(start, end, at, events);
                }
                if (rows > 0) {
                    return;
                }
            }
        }
        run_span<W, R>(first, last, at, events);
    }

  private:
    /// Rows that cannot be read in place are prepared in blocks of this size, which stay in cache.
    static constexpr index_t block_bytes = 32768;

    /// Where a block of rows finds room.
    struct places {
        compute* rows;          ///< of scores, where they cannot be read in place
        compute* exponentials;  ///< of R rows, or null
        compute* clean;         ///< a row without NaN
        compute* selection;
        compute* column_sums;            ///< or null
        const compute* block = nullptr;  ///< rows that were prepared, or null
        index_t block_first = 0;         ///< the token of the first of them
    };

    template <int W>
    SWITCHYARD_HD const compute* row_of(index_t token, int r, const places& at) const {
        const index_t length = padded<W>(experts());
        return at.block != nullptr ? at.block + (token - at.block_first) * length
                                   : source.row(token, at.rows + r * length);
    }

    template <int W>
    SWITCHYARD_HD index_t more_scratch() const {
        if constexpr (requires(const Select& s) { s.template scratch_size<W>(); }) {
            return select.template scratch_size<W>();
        } else {
            return 0;
        }
    }

    /// Whether rows are selected W at a time.
    template <int W>
    SWITCHYARD_HD bool takes_tiles() const {
        if constexpr (selects_tiles<Select> && W > 1) {
            return select.template takes_tiles<W>();
        } else {
            return false;
        }
    }

    /// Whether the selection itself has no choice for a token.
    SWITCHYARD_HD bool is_padding([[maybe_unused]] index_t token) const {
        if constexpr (requires { select.is_padding(token); }) {
            return select.is_padding(token);
        } else {
            return false;
        }
    }

    template <int W, int R>
    SWITCHYARD_HD void run_span(index_t first, index_t last, const places& at, row_events& events) const {
        const bool by_tiles = takes_tiles<W>();
        const int together = by_tiles ? W : R;
        index_t tile[W > R ? W : R];
        int filled = 0;
        for (index_t token = first; token < last; ++token) {
            if (!mask(token) || is_padding(token)) {
                select.padding(token);
                keep_statistics(token, compute(0), compute(0));
                continue;
            }
            tile[filled++] = token;
            if (filled == together) {
                filled = 0;
                if constexpr (selects_tiles<Select> && W > 1) {
                    if (by_tiles) {
                        run_tile<W, R>(tile, at, events);
                        continue;
                    }
                }
                run_rows<W, R>(tile, at, events);
            }
        }
        int i = 0;
        for (; i + R <= filled; i += R) {
            run_rows<W, R>(tile + i, at, events);
        }
        for (; i < filled; ++i) {
            run_rows<W, 1>(tile + i, at, events);
        }
    }

    SWITCHYARD_HD void keep_statistics(index_t token, compute maximum, compute sum) const {
        if (row_maximum != nullptr) {
            row_maximum[token] = maximum;
            row_sum[token] = sum;
        }
    }

    /// Whether the sums of exponentials are not needed.
    SWITCHYARD_HD bool needs_no_sums(const places& at) const {
        if constexpr (selects_tiles<Select>) {
            return !(row_maximum != nullptr && keeps_sums) && at.column_sums == nullptr && !select.needs_row_sum();
        } else {
            return false;
        }
    }

    /// Statistics of R rows; calls good(r, row, found) for those that can be routed. Where maxima suffice, `keys` gets
    /// the rows' keys, unless null.
    template <int W, int R, class Good>
    SWITCHYARD_HD void read_rows(const index_t* token, const places& at, bool maxima_suffice, compute* keys,
                                 row_events& events, const Good& good) const {
        const index_t length = padded<W>(experts());
        const compute* row[R];
        for (int r = 0; r < R; ++r) {
            row[r] = row_of<W>(token[r], r, at);
        }
        softmax_statistics<compute, W, R> found =
            maxima_suffice ? read_maxima<W, R>(token, row, keys)
                           : softmax_rows<W, R, needs_best<Select>>(row, experts(), at.exponentials);
        compute scale[R];
        for (int r = 0; r < R; ++r) {
            scale[r] = compute(1) / found.sum[r];
            if (!(found.sum[r] < std::numeric_limits<compute>::infinity())) [[unlikely]] {
                scale[r] = run_bad_row<W, R>(token[r], r, row[r], W == 1 ? at.rows + r * length : at.clean,
                                             at.exponentials != nullptr ? at.exponentials + r * length : nullptr,
                                             at.selection, found, events);
            } else {
                good(r, row[r], found);
            }
            keep_statistics(token[r], found.maximum[r], found.sum[r]);
        }
        if (at.column_sums != nullptr) {
            add_scaled_rows<W, R>(at.exponentials, experts(), scale, at.column_sums);
        }
    }

    /// Maxima of R rows; `keys` gets the rows' keys, unless null.
    template <int W, int R>
    SWITCHYARD_HD softmax_statistics<compute, W, R> read_maxima([[maybe_unused]] const index_t* token,
                                                                const compute* const (&row)[R],
                                                                [[maybe_unused]] compute* keys) const {
        if constexpr (selects_by_keys<Select> && W > 1) {
            if (keys != nullptr) {
                softmax_statistics<compute, W, R> found{};
                detail::with_constant_settings(select.keys, [&](const auto& its) {
                    found = maxima_of_rows<W, R>(row, experts(), [&](int r, index_t j, pack<compute, W> score) {
                        const auto key = its.template operator()<W>(token[r], j, score, compute(0), compute(1));
                        detail::allowed_key(score, key).store(keys + r * padded<W>(experts()) + j);
                    });
                });
                return found;
            }
        }
        return maxima_of_rows<W, R>(row, experts(), [](int, index_t, pack<compute, W>) {});
    }

    /// R rows, each selected by itself.
    template <int W, int R>
    SWITCHYARD_HD void run_rows(const index_t* token, const places& at, row_events& events) const {
        read_rows<W, R>(token, at, false, nullptr, events,
                        [&](int r, const compute* row, const softmax_statistics<compute, W, R>& found) {
                            select.template choose<W>(token[r], row, found.maximum[r], found.sum[r], found.best[r],
                                                      found.column_maxima[r], at.selection);
                        });
    }

    /// W rows, selected side by side; those that are not left to it one by one.
    template <int W, int R>
    void run_tile(const index_t (&token)[W > R ? W : R], const places& at, row_events& events) const {
        constexpr int step = W < R ? W : R;
        const bool maxima_suffice = needs_no_sums(at);
        selected_rows<compute, W> rows;
        rows.have_keys = maxima_suffice && selects_by_keys<Select>;
        for (int first = 0; first < W; first += step) {
            for (int r = 0; r < step; ++r) {
                rows.row[first + r] = nullptr;
                rows.maximum[first + r] = compute(0);
                rows.sum[first + r] = compute(1);
            }
            compute* const keys = rows.have_keys ? at.selection + first * padded<W>(experts()) : nullptr;
            read_rows<W, step>(token + first, at, maxima_suffice, keys, events,
                               [&](int r, const compute* row, const softmax_statistics<compute, W, step>& found) {
                                   rows.token[first + r] = token[first + r];
                                   rows.row[first + r] = row;
                                   rows.maximum[first + r] = found.maximum[r];
                                   rows.sum[first + r] = found.sum[r];
                                   rows.column_maxima[first + r] = found.column_maxima[r];
                               });
        }
        select.template choose_tile<W>(rows, at.selection);
    }

    /// A row with NaN, +infinity or only -infinity. Returns the scale of its exponentials, which are cleared where the
    /// row is not used.
    template <int W, int R>
    SWITCHYARD_HD compute run_bad_row(index_t token, int r, const compute* row, compute* clean, compute* exponentials,
                                      compute* more, softmax_statistics<compute, W, R>& found,
                                      row_events& events) const {
        constexpr compute infinity = std::numeric_limits<compute>::infinity();
        bool is_bad = false;
        bool is_open = false;
        for (index_t e = 0; e < experts(); ++e) {
            const compute score = row[e] == row[e] || bad != bad_scores::forbid_nan ? row[e] : -infinity;
            is_bad = is_bad || !(score < infinity);
            is_open = is_open || score > -infinity;
            clean[e] = score;
        }
        if (is_open && (!is_bad || bad == bad_scores::unchecked)) {
            const compute* const one[1] = {clean};
            const softmax_statistics<compute, W, 1> again =
                softmax_rows<W, 1, needs_best<Select>>(one, experts(), exponentials);
            found.maximum[r] = again.maximum[0];
            found.sum[r] = again.sum[0];
            select.template choose<W>(token, clean, again.maximum[0], again.sum[0], again.best[0],
                                      again.column_maxima[0], more);
            return compute(1) / again.sum[0];
        }
        select.forbid_all(token);
        if (is_bad && bad != bad_scores::unchecked) {
            events.bad = events.bad < 0 ? token : events.bad;
        } else {
            events.unroutable = events.unroutable < 0 ? token : events.unroutable;
        }
        found.maximum[r] = 0;
        found.sum[r] = 0;
        if (exponentials != nullptr) {
            for (index_t j = 0; j < padded<W>(experts()); ++j) {
                exponentials[j] = 0;
            }
        }
        return compute(0);
    }
};

/// Chooses the best expert: Switch.
template <class S>
struct select_best {
    std::int32_t* expert;
    S* gate;
    gate_rule<S> rule{};

    template <int W>
    SWITCHYARD_HD void choose(index_t token, const S*, S maximum, S sum, index_t best, pack<S, W>, S*) const {
        expert[token] = static_cast<std::int32_t>(best);
        gate[token] = rule.of_best(maximum, sum);
    }
    SWITCHYARD_HD void padding(index_t token) const {
        expert[token] = padding_choice;
        gate[token] = S(0);
    }
    SWITCHYARD_HD void forbid_all(index_t token) const {
        expert[token] = forbidden_choice(0);
        gate[token] = S(0);
    }
};

/// Chooses argmax(s + temperature * Gumbel); the gate is the unperturbed probability.
template <class S>
struct select_sampled {
    static constexpr bool needs_best = false;
    select_best<S> best;
    index_t experts;
    float temperature;
    noise_key noise;

    template <int W>
    SWITCHYARD_HD void choose(index_t token, const S* row, S maximum, S sum, index_t, pack<S, W>, S*) const {
        index_t chosen = -1;
        S highest_score = 0;
        for_each_uniform(for_purpose(noise, noise_purpose::sampling), token, experts, [&](index_t e, float u) {
            const S score = perturbed(row[e], u);
            if (row[e] > -std::numeric_limits<S>::infinity() && (chosen < 0 || score > highest_score)) {
                highest_score = score;
                chosen = e;
            }
        });
        chosen = chosen < 0 ? 0 : chosen;
        best.expert[token] = static_cast<std::int32_t>(chosen);
        best.gate[token] = softmax_value(row[chosen], maximum, sum);
    }
    SWITCHYARD_HD void padding(index_t token) const { best.padding(token); }
    SWITCHYARD_HD void forbid_all(index_t token) const { best.forbid_all(token); }

    SWITCHYARD_HD S perturbed(S score, float u) const {
        return score + rounded_times(static_cast<S>(temperature), gumbel<S>(u));
    }
};

/// Chooses the experts with the k best keys; `rule` makes gates of their scores.
template <class S, class Keys = raw_keys>
struct select_list {
    static constexpr bool needs_best = false;
    static constexpr bool is_raw = detail::are_raw<Keys>;
    std::int32_t* expert;  ///< [T, k]
    S* gate;               ///< [T, k]
    index_t experts;
    index_t k;
    gate_rule<S> rule{};
    Keys keys{};

    template <int W>
    SWITCHYARD_HD index_t scratch_size() const {
        return is_raw ? 0 : (single_slot<W> + 1) * padded<W>(experts) + W * expert_groups::most;
    }
    SWITCHYARD_HD bool needs_row_sum() const { return rule.settings.needs_row_sum() || keys.needs_row_sum(); }

    template <int W>
    SWITCHYARD_HD void choose(index_t token, const S* row, S maximum, S sum, index_t, pack<S, W> column_maxima,
                              S* scratch) const {
        S* const weight = gate + token * k;
        std::int32_t* const choice = expert + token * k;
        if constexpr (is_raw) {
            select_top_k<W>(row, experts, k, column_maxima, weight, choice, scratch);
            for (index_t c = k - 1; c >= 0 && weight[c] == detail::lowest<S>(); --c) {
                choice[c] = forbidden_choice(choice[c]);
            }
        } else {
            S* const key = scratch + single_slot<W> * padded<W>(experts);
            detail::write_keys<W>(keys, token, row, experts, maximum, sum, key);
            if (detail::groups_of(keys).choose()) {
                S* const one[1] = {key};
                keep_groups<1>(detail::groups_of(keys), experts, one, group_scores<W>(scratch));
            }
            select_top_k<W>(key, experts, k, detail::column_maxima_of<W>(key, experts), weight, choice,
                            scratch + scratch_size<W>());
            take_scores(row, weight, choice);
        }
        weigh(choices_of_row<S, W>{weight, nullptr, k}, pack<S, W>::all(maximum), pack<S, W>::all(sum));
    }

    /// Chosen scores become gates: the first is the row's maximum, unless keys decide.
    template <class Choices, class N>
    SWITCHYARD_HD SWITCHYARD_ALWAYS_INLINE void weigh(const Choices& choices, N maximum, N sum) const {
        if constexpr (is_raw) {
            rule.weigh(choices, maximum, sum);
        } else {
            rule.weigh_any(choices, maximum, sum);
        }
    }

    /// Tiles of W rows, one per lane.
    template <int W>
    bool takes_tiles() const {
        return tile_pays<W>(experts, k);
    }

    /// What `choose` does to each row, bit for bit. Rows that are null are passed over.
    template <int W>
    void choose_tile(const selected_rows<S, W>& rows, S* scratch) const {
        int any = 0;
        while (any < W && rows.row[any] == nullptr) {
            ++any;
        }
        if (any == W) {
            return;
        }
        tile_choices<S, W> best;
        std::uint32_t left = 0;
        if constexpr (is_raw) {
            const S* key[W];
            for (int r = 0; r < W; ++r) {
                key[r] = rows.row[rows.row[r] != nullptr ? r : any];
            }
            left = select_tile<W>(key, experts, k, rows.column_maxima, best);
        } else {
            left = select_by_keys<W>(rows, any, scratch, best);
        }
        weigh(choices_of_tile<S, W>{best.key, k}, pack<S, W>::load(rows.maximum), pack<S, W>::load(rows.sum));
        for (int r = 0; r < W; ++r) {
            if (rows.row[r] == nullptr) {
                continue;
            }
            if ((left >> r & 1u) != 0) [[unlikely]] {
                choose<W>(rows.token[r], rows.row[r], rows.maximum[r], rows.sum[r], 0, rows.column_maxima[r], scratch);
                continue;
            }
            S* const weight = gate + rows.token[r] * k;
            std::int32_t* const choice = expert + rows.token[r] * k;
            for (index_t c = 0; c < k; ++c) {
                weight[c] = best.key[c][r];
                choice[c] = best.column[c][r];
            }
        }
    }

    SWITCHYARD_HD void padding(index_t token) const {
        for (index_t c = 0; c < k; ++c) {
            expert[token * k + c] = padding_choice;
            gate[token * k + c] = S(0);
        }
    }
    SWITCHYARD_HD void forbid_all(index_t token) const {
        for (index_t c = 0; c < k; ++c) {
            expert[token * k + c] = forbidden_choice(c);
            gate[token * k + c] = S(0);
        }
    }

  private:
    /// Where in the scratch the keys of a row lie that is chosen from by itself: behind those of a tile.
    template <int W>
    static constexpr index_t single_slot = W == 1 ? 0 : W;
    /// Behind all keys.
    template <int W>
    SWITCHYARD_HD S* group_scores(S* scratch) const {
        return scratch + (single_slot<W> + 1) * padded<W>(experts);
    }

    /// The scores of what was chosen by its keys. Where fewer than k experts are allowed, forbidden ones follow in
    /// index order: allowed ones that lie outside a token's groups are not among them.
    SWITCHYARD_HD void take_scores(const S* row, S* weight, std::int32_t* choice) const {
        index_t next_forbidden = 0;
        for (index_t c = 0; c < k; ++c) {
            if (weight[c] > detail::lowest<S>()) {
                weight[c] = row[choice[c]];
                continue;
            }
            while (next_forbidden + 1 < experts && row[next_forbidden] > detail::lowest<S>()) {
                ++next_forbidden;
            }
            weight[c] = detail::lowest<S>();
            choice[c] = forbidden_choice(static_cast<std::int32_t>(next_forbidden));
            ++next_forbidden;
        }
    }

    /// The k best of W rows by their keys; best.key becomes their scores. The rows that are left to `choose`, as bits.
    template <int W>
    std::uint32_t select_by_keys(const selected_rows<S, W>& rows, int any, S* scratch, tile_choices<S, W>& best) const {
        const index_t length = padded<W>(experts);
        S* own[W];
        const S* key[W];
        pack<S, W> maxima[W];
        for (int r = 0; r < W; ++r) {
            own[r] = scratch + (rows.row[r] != nullptr ? r : any) * length;
            key[r] = own[r];
            if (rows.row[r] != nullptr && !rows.have_keys) {
                detail::write_keys<W>(keys, rows.token[r], rows.row[r], experts, rows.maximum[r], rows.sum[r], own[r]);
            }
        }
        const expert_groups groups = detail::groups_of(keys);
        const index_t in_kept = groups.kept * (experts / groups.count);
        const bool gathers = groups.choose() && k <= in_kept;
        index_t columns = experts;
        std::int32_t shift[W][expert_groups::most];
        if (gathers) {
            // A row that stands in for another is gathered once.
            S* each[W];
            for (int r = 0; r < W; ++r) {
                each[r] = rows.row[r] != nullptr ? own[r] : scratch + r * length;
            }
            gather_groups<W>(groups, experts, each, group_scores<W>(scratch), shift);
            columns = in_kept;
        } else if (groups.choose()) {
            keep_groups<W>(groups, experts, own, group_scores<W>(scratch));
        }
        for (int r = 0; r < W; ++r) {
            maxima[r] = detail::column_maxima_of<W>(key[r], columns);
        }
        std::uint32_t left = select_tile<W>(key, columns, k, maxima, best);
        if (gathers && groups.masked == group_mask::zero) {
            // Keys above 0 come before those of other groups. Rows with others are chosen from as a whole.
            left |= at_least_bits(pack<S, W>::all(S(0)), pack<S, W>::load(best.key[k - 1]));
        }
        const auto size = static_cast<std::int32_t>(experts / groups.count);
        for (int r = 0; r < W; ++r) {
            const S* const row = rows.row[rows.row[r] != nullptr ? r : any];
            for (index_t c = 0; c < k; ++c) {
                std::int32_t& column = best.column[c][r];
                column += gathers ? shift[r][column / size] : 0;
                best.key[c][r] = row[column];
            }
        }
        return left;
    }
};

/// Chooses the expert with the best key of each of k equal groups, in the order of the groups.
template <class S>
struct select_one_each {
    static constexpr bool needs_best = false;
    std::int32_t* expert;  ///< [T, k]
    S* gate;               ///< [T, k]
    index_t experts;
    index_t k;  ///< groups
    gate_rule<S> rule{};
    biased_keys<S> keys{};

    template <int W>
    SWITCHYARD_HD index_t scratch_size() const {
        return padded<W>(experts);
    }
    template <int W>
    SWITCHYARD_HD void choose(index_t token, const S* row, S maximum, S sum, index_t, pack<S, W>, S* scratch) const {
        detail::write_keys<W>(keys, token, row, experts, maximum, sum, scratch);
        const index_t size = experts / k;
        S* const weight = gate + token * k;
        for (index_t c = 0; c < k; ++c) {
            const index_t best = c * size + first_of_highest<W>(scratch + c * size, size);
            const bool is_allowed = scratch[best] > detail::lowest<S>();
            weight[c] = is_allowed ? row[best] : detail::lowest<S>();
            expert[token * k + c] = is_allowed ? static_cast<std::int32_t>(best) : forbidden_choice(best);
        }
        rule.weigh_any(choices_of_row<S, W>{weight, nullptr, k}, pack<S, W>::all(maximum), pack<S, W>::all(sum));
    }
    SWITCHYARD_HD void padding(index_t token) const {
        for (index_t c = 0; c < k; ++c) {
            expert[token * k + c] = padding_choice;
            gate[token * k + c] = S(0);
        }
    }
    SWITCHYARD_HD void forbid_all(index_t token) const {
        for (index_t c = 0; c < k; ++c) {
            expert[token * k + c] = forbidden_choice(c * (experts / k));
            gate[token * k + c] = S(0);
        }
    }

  private:
    /// Where the highest of some keys stands, the first of equal ones.
    template <int W>
    SWITCHYARD_HD static index_t first_of_highest(const S* key, index_t count) {
        using P = pack<S, W>;
        const auto keys = [&](index_t j) {
            return P::load_first(key + j, count - j < W ? count - j : W, detail::lowest<S>());
        };
        P highest_keys = keys(0);
        for (index_t j = W; j < count; j += W) {
            highest_keys = max(highest_keys, keys(j));
        }
        const P level = P::all(highest(highest_keys));
        for (index_t j = 0; j < count; j += W) {
            const std::uint32_t found = equal_bits(keys(j), level);
            if (found != 0) return j + first_bit(found);
        }
        return 0;
    }
};

/// Runs the pass over all rows on the CPU. `column_sums` [E] receives the sum over tokens of the probabilities, in a
/// fixed order, unless null. `after_block(b)` runs when the rows of block b are done, while they are in cache. Blocks
/// are those of `take_choice_counts`.
template <host_policy Policy, class Pass, class AfterBlock>
row_events run_softmax_pass(const Policy& policy, const Pass& pass, double* column_sums, workspace& scratch,
                            AfterBlock&& after_block) {
    using S = typename Pass::compute;
    constexpr int W = native_width<S>;
    constexpr int R = W == 1 ? 1 : 4;
    constexpr index_t part_rows = 256;  // whose probabilities are summed in S: more would lose digits
    const auto add_sums = [](const auto* part, index_t count, bool is_first, double* sums) {
        for (index_t e = 0; e < count; ++e) {
            sums[e] = (is_first ? 0.0 : sums[e]) + static_cast<double>(part[e]);
        }
    };
    const auto scope = scratch.open();
    const index_t tokens = pass.source.scores.rows;
    const index_t experts = pass.experts();
    const index_t block_rows = rows_per_block(tokens, experts);
    const index_t blocks = (tokens + block_rows - 1) / block_rows;
    const index_t length = padded<W>(experts);
    const index_t room = padded<64 / static_cast<int>(sizeof(S))>(pass.template scratch_size<W, R>());
    S* const block_scratch = scratch.take<S>(blocks * room);
    S* const part_sums = column_sums != nullptr ? scratch.take<S>(blocks * length) : nullptr;
    double* const block_sums = column_sums != nullptr ? scratch.take<double>(blocks * experts) : nullptr;
    row_events* const block_events = scratch.take<row_events>(blocks);
    policy.parallel_for(blocks, [&](index_t b) {
        block_events[b] = {};
        const index_t last = std::min(tokens, (b + 1) * block_rows);
        for (index_t first = b * block_rows; first < last; first += part_rows) {
            S* const sums = part_sums != nullptr ? part_sums + b * length : nullptr;
            if (sums != nullptr) {
                std::fill(sums, sums + length, S(0));
            }
            pass.template run<W, R>(first, std::min(last, first + part_rows), block_scratch + b * room, sums,
                                    block_events[b]);
            if (sums != nullptr) {
                add_sums(sums, experts, first == b * block_rows, block_sums + b * experts);
            }
        }
        after_block(b);
    });
    row_events events;
    for (index_t b = 0; b < blocks; ++b) {
        events = earlier(events, block_events[b]);
    }
    if (column_sums != nullptr) {
        if (blocks == 0) {
            std::fill(column_sums, column_sums + experts, 0.0);
        }
        for (index_t b = 0; b < blocks; ++b) {
            add_sums(block_sums + b * experts, experts, b == 0, column_sums);
        }
    }
    return events;
}

}  // namespace SWITCHYARD_TARGET
}  // namespace switchyard

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic pop
#endif
