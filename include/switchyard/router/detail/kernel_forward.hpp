// Routing's first kernel: rows. Each score is read once and stays in registers while its row is chosen from; what is
// summed over rows is summed in a fixed order, by thread, by block, and later over the blocks.
//
// A thread block takes consecutive tokens; a lane group (backend/lane_group.hpp) takes every `groups`-th of them and
// has the next row's scores on their way while it works on one. The row program is softmax_pass::run
// (router/softmax_pass.hpp), to the letter: a row whose sum is not finite is read again and looked at closely.
#pragma once

#include <switchyard/backend/kernel.hpp>
#include <switchyard/backend/lane_group.hpp>
#include <switchyard/balance/z_loss.hpp>
#include <switchyard/core/config.hpp>
#include <switchyard/core/simd.hpp>
#include <switchyard/plan/detail/kernel_counts.hpp>
#include <switchyard/plan/plan.hpp>
#include <switchyard/plan/slots.hpp>
#include <switchyard/router/detail/kernel_best.hpp>
#include <switchyard/router/detail/kernel_choices.hpp>
#include <switchyard/router/detail/kernel_pieces.hpp>
#include <switchyard/router/detail/kernel_totals.hpp>
#include <switchyard/router/routing.hpp>
#include <switchyard/router/softmax_pass.hpp>

#include <cstddef>
#include <cstdint>
#include <limits>

namespace switchyard {
inline namespace SWITCHYARD_TARGET {
namespace detail {

/// One choice per token, that of the maximum.
template <class Select>
inline constexpr bool is_single = false;
template <class S>
inline constexpr bool is_single<select_best<S>> = true;

/// The rows' best go through shared memory (kernel_best.hpp).
template <class Select, class Pieces>
inline constexpr bool sorts_candidates = false;
template <class S, class Keys, class Pieces>
inline constexpr bool sorts_candidates<select_list<S, Keys>, Pieces> = Pieces::threads >= least_sorting_threads;

/// What a block keeps of a row in shared memory.
template <class S>
struct row_record {
    S maximum;
    S sum;
    S gate;             ///< of the first choice
    std::int32_t code;  ///< of the first choice; padding_choice from the start where there is no token
};

template <class Storage, class Space, class Select, int V, class Group, bool IsNoisy,
          int Threads = Group::is_block ? 512 : 256>
struct forward_kernel {
    static constexpr bool by_keys = selects_by_keys<Select>;
    static constexpr bool is_lean = (!IsNoisy || by_keys) && !Group::is_block;
    static constexpr int threads = Threads;
    /// That a multiprocessor shall have registers for.
    static constexpr int least_blocks = !is_lean || V > 16 || threads > 256         ? 1
                                        : is_single<Select> && sizeof(Storage) >= 4 ? 3  // conversions need the room
                                                                                    : 2;
    static constexpr int warps = threads / warp_lanes;
    using S = compute_t<Storage>;
    using pieces = row_pieces<Storage, V, group_threads<Group, threads>>;
    /// That pass through shared memory at once.
    static constexpr int candidates = sorts_candidates<Select, pieces> && !Group::is_block ? threads : 0;

    score_rows<Storage, Space> source;
    token_mask mask;
    bad_scores bad;
    Select select;
    plan_view<S, Space> plan;
    block_counts counts;
    block_facts<S> facts;
    int levels;  ///< of choices that are counted at once
    bool in_vectors;
    Group group;

    /// Columns whose sums, one for each warp, lie in shared memory together.
    SWITCHYARD_HD static constexpr index_t columns_at_once(index_t experts) {
        constexpr index_t most = 2048 / static_cast<index_t>(sizeof(S));
        return experts < most ? experts : most;
    }

    static constexpr std::size_t room(index_t experts, index_t levels, index_t rows) {
        return Group::room(threads) + shared_room<best_candidate<S>>(candidates) + shared_room<row_record<S>>(rows) +
               shared_room<double>(warps) + shared_room<std::int32_t>(warps) + shared_room<std::int32_t>(2) +
               shared_room<S>(Group::is_block ? 0 : warps * columns_at_once(experts)) +
               shared_room<std::uint32_t>(choice_histogram::words_for(experts * levels));
    }

    template <kernel_thread Here>
    SWITCHYARD_DEVICE void operator()(Here& here) const {
        block_state in;
        in.group = group;
        in.group.begin(here, threads);
        in.warp_sums = here.template shared<double>(warps);
        in.warp_counts = here.template shared<std::int32_t>(warps);
        in.events = here.template shared<std::int32_t>(2);
        in.candidates = here.template shared<best_candidate<S>>(candidates);
        in.records = here.template shared<row_record<S>>(counts.block_rows);
        in.column_sums = here.template shared<S>(Group::is_block ? 0 : warps * columns_at_once(plan.experts));
        in.histogram.words = here.template shared<std::uint32_t>(choice_histogram::words_for(plan.experts * levels));
        in.first = here.block() * counts.block_rows;
        in.rows =
            static_cast<int>(plan.tokens - in.first < counts.block_rows ? plan.tokens - in.first : counts.block_rows);
        begin(here, in);
        here.sync();
        const pieces mine{in.group.rank(here), static_cast<int>(plan.experts)};
        S probabilities[V];
        unrolled<V>([&](int j) { probabilities[j] = S(0); });
        run_rows(here, in, mine, probabilities);
        here.sync();
        finish_rows(here, in);
        finish_counts(here, in);
        finish_probabilities(here, in, mine, probabilities);
    }

  private:
    struct block_state {
        Group group;
        best_candidate<S>* candidates;
        row_record<S>* records;
        double* warp_sums;
        std::int32_t* warp_counts;
        std::int32_t* events;  ///< the first bad and the first unroutable token
        S* column_sums;
        choice_histogram histogram;
        index_t first;
        int rows;
    };

    SWITCHYARD_HD bool counts_at_once() const { return levels >= plan.choices; }
    SWITCHYARD_HD int choices() const { return static_cast<int>(plan.choices); }
    SWITCHYARD_HD int experts() const { return static_cast<int>(plan.experts); }

    template <class Here>
    SWITCHYARD_DEVICE void begin(Here& here, block_state& in) const {
        for (int row = here.thread(); row < in.rows; row += threads) {
            const bool is_live = mask.data == nullptr || here.load(mask.data + in.first + row) != 0;
            in.records[row].code = is_live ? 0 : padding_choice;
        }
        if (counts_at_once()) {
            in.histogram.template clear<threads>(here, experts() * choices());
        }
        if (here.thread() < 2) {
            in.events[here.thread()] = no_column;
        }
        if (here.thread() == 0 && here.block() == 0) {
            here.store(counts.arrived, 0);
        }
    }

    template <class Here>
    SWITCHYARD_DEVICE void run_rows(Here& here, block_state& in, const pieces& mine, S (&probabilities)[V]) const {
        const int groups = in.group.count(threads);
        const int number = in.group.number(here);
        Storage coming[V];
        unrolled<V>([&](int j) { coming[j] = Storage{}; });
        const auto call_in = [&](int row) {
            const bool is_live = row < in.rows && in.records[row].code != padding_choice;
            if (is_live) {
                load_pieces(here, source.scores, in_vectors, in.first + row, mine, coming);
            }
            return is_live;
        };
        bool is_live = call_in(number);
        for (int start = 0; start < in.rows; start += groups) {
            const int row = start + number;
            S scores[V];
            scores_of(here, in.first + row, is_live, mine, coming, scores);
            const bool is_next_live = call_in(row + groups);
            here.sync_warp();  // its record, which this row's first lane writes later, has been read
            run_row(here, in, row, is_live, mine, scores, probabilities);
            is_live = is_next_live;
        }
    }

    /// Scores, and zeros for groups without a token.
    template <class Here>
    SWITCHYARD_DEVICE void scores_of(Here& here, index_t token, bool is_live, const pieces& mine,
                                     const Storage (&numbers)[V], S (&scores)[V]) const {
        if (is_live) {
            scores_of_pieces<IsNoisy>(here, source, token, mine, numbers, scores);
        } else {
            unrolled<V>([&](int j) { scores[j] = S(0); });
        }
    }

    /// One row of each group. `is_live` says which groups have a token.
    template <class Here>
    SWITCHYARD_DEVICE void run_row(Here& here, block_state& in, int row, bool is_live, const pieces& mine,
                                   S (&scores)[V], S (&probabilities)[V]) const {
        const index_t token = in.first + row;
        const best_room<S> room{in.candidates + here.thread() / pieces::threads * pieces::threads, is_live};
        bool is_used = is_live;
        scored_column<S> picked{lowest<S>(), 0};
        S raw[by_keys ? V : 1];
        S maximum = S(0);
        S sum = S(0);
        for (bool is_clean = false;; is_clean = true) {
            if constexpr (by_keys) {
                maximum = in.group.highest(here, highest_of_pieces(scores));
                unrolled<V>([&](int j) { raw[j] = scores[j]; });
            } else {
                picked = pick(here, in.group, select, token, scores, mine, room, maximum);
            }
            sum = S(0);
            unrolled<V>([&](int j) {
                scores[j] = exp_nonpositive(scores[j] - maximum);
                sum += scores[j];
            });
            sum = in.group.sum(here, sum);
            const bool is_odd = is_live && !(sum < std::numeric_limits<S>::infinity());
            if (is_clean || !in.group.any_nearby(here, is_odd)) {
                break;
            }
            is_used = clean(here, in, token, is_live, mine, scores);
        }
        const S scale = is_used ? S(1) / sum : S(0);
        unrolled<V>([&](int j) { probabilities[j] += scores[j] * scale; });
        scored_column<S> weighed = picked;
        if constexpr (by_keys) {
            // Keys of one's own may read what belongs to the token: groups without one ask for the block's first.
            picked = pick_by_keys(here, in.group, select, is_live ? token : in.first, raw, mine, room, maximum, sum);
            weighed = picked;
            if (is_used && mine.rank < choices() && picked.score > lowest<S>()) {
                weighed.score = usable(
                    source.changed(token, picked.column, load_scalar(here.load(&source.scores(token, picked.column)))));
            }
        }
        const S gate = gate_of(here, in.group, select, weighed, maximum, sum);
        if (row < in.rows) {
            keep(here, in, row, is_live, is_used, mine.rank, picked, is_used ? gate : S(0), is_used ? maximum : S(0),
                 is_used ? sum : S(0));
        }
    }

    /// The scores once more, in all groups that run together: NaN may be forgiven; a row with other bad scores, or
    /// without an expert, is noted and not used. Its scores become zeros. softmax_pass::run_bad_row.
    template <class Here>
    SWITCHYARD_DEVICE bool clean(Here& here, block_state& in, index_t token, bool is_live, const pieces& mine,
                                 S (&scores)[V]) const {
        constexpr S infinity = std::numeric_limits<S>::infinity();
        Storage numbers[V];
        unrolled<V>([&](int j) { numbers[j] = Storage{}; });
        if (is_live) {
            load_pieces(here, source.scores, in_vectors, token, mine, numbers);
        }
        scores_of(here, token, is_live, mine, numbers, scores);
        bool is_bad = false;
        bool is_open = false;
        unrolled<V>([&](int j) {
            scores[j] = scores[j] == scores[j] || bad != bad_scores::forbid_nan ? scores[j] : -infinity;
            is_bad = is_bad || !(scores[j] < infinity);
            is_open = is_open || scores[j] > -infinity;
        });
        is_bad = in.group.any(here, is_bad) && bad != bad_scores::unchecked;
        is_open = in.group.any(here, is_open);
        const bool is_used = is_live && is_open && !is_bad;
        if (!is_used) {
            unrolled<V>([&](int j) { scores[j] = S(0); });
        }
        if (is_live && !is_used && mine.rank == 0) {
            here.atomic_min(in.events + (is_bad ? 0 : 1), static_cast<std::int32_t>(token));
        }
        return is_used;
    }

    /// What is kept of a row: first choices and statistics in shared memory, lists of choices where they belong.
    template <class Here>
    SWITCHYARD_DEVICE void keep(Here& here, block_state& in, int row, bool is_live, bool is_used, int rank,
                                const scored_column<S>& picked, S gate, S maximum, S sum) const {
        const bool is_forbidden = !is_used || picked.score == lowest<S>();
        const std::int32_t expert = is_used ? picked.column : rank;
        const std::int32_t code = !is_live ? padding_choice : is_forbidden ? forbidden_choice(expert) : expert;
        if (choices() > 1 && rank < choices()) {
            const index_t position = (in.first + row) * plan.choices + rank;
            here.store(plan.expert + position, code);
            here.store(plan.gate + position, gate);
            if (code >= 0 && counts_at_once()) {
                in.histogram.add(here, rank * experts() + code);
            }
        }
        if (rank == 0) {
            in.records[row] = {maximum, sum, gate, code};
        }
    }

    /// What was kept in shared memory, one thread per row; and what is summed over the rows.
    template <class Here>
    SWITCHYARD_DEVICE void finish_rows(Here& here, block_state& in) const {
        double squares = 0;
        std::int32_t counted = 0;
        for (int row = here.thread(); row < in.rows; row += threads) {
            const index_t token = in.first + row;
            const row_record<S> kept = in.records[row];
            const std::int32_t code = kept.code;
            counted += code != padding_choice ? 1 : 0;
            if (choices() == 1) {
                here.store(plan.expert + token, code);
                if constexpr (is_single<Select>) {
                    here.store(plan.gate + token, code >= 0 ? select.rule.of_best(kept.maximum, kept.sum) : S(0));
                } else {
                    here.store(plan.gate + token, kept.gate);
                }
                if (code >= 0) {
                    in.histogram.add(here, code);
                }
            }
            if (plan.origin.training) {
                here.store(plan.row_maximum + token, kept.maximum);
                here.store(plan.row_sum + token, kept.sum);
            }
            if (facts.squares != nullptr) {
                squares += squared_logsumexp(kept.maximum, kept.sum);
            }
        }
        counted = fold_block<threads>(here, counted, in.warp_counts, add{});
        if (facts.squares != nullptr) {
            squares = fold_block<threads>(here, squares, in.warp_sums, add{});
        }
        if (here.thread() == 0) {
            here.store(counts.counted + here.block(), counted);
            here.store(facts.bad + here.block(), in.events[0]);
            here.store(facts.unroutable + here.block(), in.events[1]);
            if (facts.squares != nullptr) {
                here.store(facts.squares + here.block(), squares);
            }
        }
    }

    template <class Here>
    SWITCHYARD_DEVICE void finish_counts(Here& here, block_state& in) const {
        std::int32_t* const count = counts.count + here.block() * counts.columns;
        if (counts_at_once()) {
            in.histogram.template store<threads>(here, experts() * choices(), count);
        } else {
            count_block<threads>(here, in.histogram, plan.expert, experts(), choices(), levels, in.first, in.rows,
                                 count);
        }
    }

    /// Column sums of the block: over the groups of a warp in pairs, then warp after warp.
    template <class Here>
    SWITCHYARD_DEVICE void finish_probabilities(Here& here, block_state& in, const pieces& mine,
                                                S (&probabilities)[V]) const {
        if (facts.probabilities == nullptr) {
            return;
        }
        S* const to = facts.probabilities + here.block() * plan.experts;
        if constexpr (Group::is_block) {
            unrolled<V>([&](int j) {
                if (mine.holds(j)) {
                    here.store(to + mine.column(j), probabilities[j]);
                }
            });
        } else {
            unrolled<V>([&](int j) { probabilities[j] = sum_of_groups<Group::lanes>(here, probabilities[j]); });
            const auto at_once = static_cast<int>(columns_at_once(experts()));
            S* const own = in.column_sums + here.thread() / warp_lanes * at_once;
            for (int first = 0; first < experts(); first += at_once) {
                if (first != 0) {
                    here.sync();
                }
                if (here.thread() % warp_lanes < Group::lanes) {
                    unrolled<V>([&](int j) {
                        const int at = mine.column(j) - first;
                        if (mine.holds(j) && at >= 0 && at < at_once) {
                            own[at] = probabilities[j];
                        }
                    });
                }
                here.sync();
                for (int at = here.thread(); at < at_once && first + at < experts(); at += threads) {
                    double sum = 0;
                    for (int warp = 0; warp < warps; ++warp) {
                        sum += static_cast<double>(in.column_sums[warp * at_once + at]);
                    }
                    here.store(to + first + at, static_cast<S>(sum));
                }
            }
        }
    }

    /// x of this lane in all groups of the warp.
    template <int Distance, class Here>
    SWITCHYARD_DEVICE S sum_of_groups(Here& here, S x) const {
        if constexpr (Distance < warp_lanes) {
            return sum_of_groups<2 * Distance>(here, x + here.shuffle_xor(x, Distance));
        } else {
            return x;
        }
    }
};

}  // namespace detail
}  // namespace SWITCHYARD_TARGET
}  // namespace switchyard
