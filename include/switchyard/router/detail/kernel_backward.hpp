// Backward of routing through a softmax: d_scores from d_gates and the losses, every number read or written once.
//
// A row lies in the registers of a lane group, as in the forward kernel, and each choice in one of its threads. The
// formulas are those of router/softmax_routing.hpp, element by element: with u_e what the choice of expert e adds to
// its own score's gradient (score/gates.hpp), d s_e = p_e (a_e + z - dot) + [e chosen] u_e, dot = sum_e p_e a_e + sum_e
// u_e.
#pragma once

#include <switchyard/backend/kernel.hpp>
#include <switchyard/backend/lane_group.hpp>
#include <switchyard/balance/load_balancing_loss.hpp>
#include <switchyard/balance/z_loss.hpp>
#include <switchyard/core/config.hpp>
#include <switchyard/core/simd.hpp>
#include <switchyard/plan/plan.hpp>
#include <switchyard/router/detail/kernel_choices.hpp>
#include <switchyard/router/detail/kernel_pieces.hpp>
#include <switchyard/router/routing.hpp>
#include <switchyard/score/gates.hpp>

#include <cstddef>
#include <cstdint>

namespace switchyard {
inline namespace SWITCHYARD_TARGET {
namespace detail {

/// The choices of a row, one per thread, read by all threads of its group: through shuffles, or through shared memory.
template <class S, class Group>
struct shown_choices {
    std::int32_t expert;
    S gradient;

    static constexpr std::size_t room(index_t) { return 0; }
    template <class Here>
    SWITCHYARD_DEVICE void take(Here&, int) {}
    template <class Here>
    SWITCHYARD_DEVICE void show(Here&, int, int, std::int32_t chosen, S its_gradient) {
        expert = chosen;
        gradient = its_gradient;
    }
    template <class Here>
    SWITCHYARD_DEVICE void see(Here& here, const Group& group, int c, std::int32_t& chosen, S& its_gradient) const {
        const int lane = (here.thread() % warp_lanes & ~(group.size() - 1)) + c;
        chosen = here.shuffle(expert, lane);
        its_gradient = here.shuffle(gradient, lane);
    }
};

template <class S>
struct shown_choices<S, block_group<S>> {
    std::int32_t* expert;
    S* gradient;
    int place = 0;  ///< two rows' in turn

    static constexpr std::size_t room(index_t choices) {
        return shared_room<std::int32_t>(2 * choices) + shared_room<S>(2 * choices);
    }
    template <class Here>
    SWITCHYARD_DEVICE void take(Here& here, int choices) {
        expert = here.template shared<std::int32_t>(2 * choices);
        gradient = here.template shared<S>(2 * choices);
    }
    template <class Here>
    SWITCHYARD_DEVICE void show(Here& here, int choices, int rank, std::int32_t chosen, S its_gradient) {
        place = place == 0 ? choices : 0;
        if (rank < choices) {
            expert[place + rank] = chosen;
            gradient[place + rank] = its_gradient;
        }
        here.sync();
    }
    template <class Here>
    SWITCHYARD_DEVICE void see(Here&, const block_group<S>&, int c, std::int32_t& chosen, S& its_gradient) const {
        chosen = expert[place + c];
        its_gradient = gradient[place + c];
    }
};

template <class Storage, class Space, class GateStorage, class Out, int V, class Group, bool IsNoisy>
struct backward_kernel {
    static constexpr int threads = Group::is_block ? 512 : 256;
    using S = compute_t<Storage>;
    using pieces = row_pieces<Storage, V, group_threads<Group, threads>>;

    score_rows<Storage, Space> source;
    plan_view<S, Space> plan;
    matrix_view<const GateStorage, Space> d_gates;
    matrix_view<Out, Space> d_scores;
    gate_rule<S> rule;
    bool needs_probabilities;
    double balance_weight;  ///< 0: no such loss
    index_t counted_choices;
    double loss_scale;
    double z_weight;  ///< loss scale included
    index_t block_rows;
    bool in_vectors;
    bool out_vectors;
    Group group;

    static constexpr std::size_t room(index_t experts, index_t choices, index_t rows) {
        return Group::room(threads) + shown_choices<S, Group>::room(choices) + 3 * shared_room<S>(rows) +
               shared_room<S>(experts);
    }

    template <kernel_thread Here>
    SWITCHYARD_DEVICE void operator()(Here& here) const {
        block_state in;
        in.group = group;
        in.group.begin(here, threads);
        in.choices.take(here, choices());
        in.maximum = here.template shared<S>(block_rows);
        in.scale = here.template shared<S>(block_rows);
        in.shift = here.template shared<S>(block_rows);
        in.balance = here.template shared<S>(plan.experts);
        in.first = here.block() * block_rows;
        in.rows = static_cast<int>(plan.tokens - in.first < block_rows ? plan.tokens - in.first : block_rows);
        begin(here, in);
        here.sync();
        const pieces mine{in.group.rank(here), static_cast<int>(plan.experts)};
        const int groups = in.group.count(threads);
        const int number = in.group.number(here);
        incoming coming = call_in(here, in, number, mine);
        for (int start = 0; start < in.rows; start += groups) {
            const int row = start + number;
            const incoming now = coming;
            coming = call_in(here, in, row + groups, mine);
            run_row(here, in, row, mine, now);
        }
    }

  private:
    struct block_state {
        Group group;
        shown_choices<S, Group> choices;
        S* maximum;
        S* scale;    ///< 1 / sum, 0 where a row counts nowhere
        S* shift;    ///< d z-loss / d score / p
        S* balance;  ///< a_e
        index_t first;
        int rows;
    };

    /// What a thread has of a row.
    struct incoming {
        bool is_live;
        std::int32_t expert;  ///< of its choice, -1 where it has none
        S gradient;           ///< of its gate
        Storage score;        ///< of its choice
        Storage numbers[V];
    };

    SWITCHYARD_HD int choices() const { return static_cast<int>(plan.choices); }

    template <class Here>
    SWITCHYARD_DEVICE void begin(Here& here, block_state& in) const {
        const bool is_first = here.thread() % warp_lanes == 0;
        const std::int64_t counted = here.shuffle(is_first ? here.load(&plan.totals->counted_tokens) : 0, 0);
        if (balance_weight != 0) {
            const double scale = balance_scale(balance_weight, plan.experts, counted_choices, counted);
            for (index_t expert = here.thread(); expert < plan.experts; expert += threads) {
                const auto load = static_cast<double>(here.load(plan.balance_load + expert));
                in.balance[expert] = static_cast<S>(loss_scale * (scale * load));
            }
        }
        for (int row = here.thread(); row < in.rows; row += threads) {
            const S maximum = needs_probabilities ? here.load(plan.row_maximum + in.first + row) : S(0);
            const S sum = needs_probabilities ? here.load(plan.row_sum + in.first + row) : S(1);
            in.maximum[row] = maximum;
            in.scale[row] = sum > S(0) ? S(1) / sum : S(0);
            in.shift[row] =
                z_weight != 0 ? static_cast<S>(z_loss_gradient(z_weight, row_logsumexp(maximum, sum), counted)) : S(0);
        }
    }

    template <class Here>
    SWITCHYARD_DEVICE incoming call_in(Here& here, const block_state& in, int row, const pieces& mine) const {
        incoming coming;
        coming.is_live = row < in.rows && in.scale[row] != S(0);
        coming.expert = -1;
        coming.gradient = S(0);
        coming.score = Storage{};
        unrolled<V>([&](int j) { coming.numbers[j] = Storage{}; });
        if (coming.is_live) {
            const index_t token = in.first + row;
            if (needs_probabilities || (IsNoisy && source.cap != S(0))) {
                load_pieces(here, source.scores, in_vectors, token, mine, coming.numbers);
            }
            if (mine.rank < choices()) {
                const index_t position = token * plan.choices + mine.rank;
                coming.expert = here.load(plan.expert + position);
                if (coming.expert >= 0 && !rule.settings.is_softmax()) {
                    coming.score = here.load(&source.scores(token, coming.expert));
                }
                // A dropped choice's gate is a constant.
                if (here.load(plan.slot + position) >= 0) {
                    coming.gradient = static_cast<S>(load_scalar(here.load(&d_gates(token, mine.rank))));
                }
            }
        }
        return coming;
    }

    template <class Here>
    SWITCHYARD_DEVICE void run_row(Here& here, block_state& in, int row, const pieces& mine,
                                   const incoming& now) const {
        const index_t token = in.first + row;
        const S maximum = now.is_live ? in.maximum[row] : S(0);
        const S scale = now.is_live ? in.scale[row] : S(0);
        const bool balances = balance_weight != 0;
        const auto weight = [&](int j) { return balances && mine.holds(j) ? in.balance[mine.column(j)] : S(0); };
        S probability[V];
        S gradient[V];
        S weighted = S(0);
        if (now.is_live && needs_probabilities) {
            scores_of_pieces<IsNoisy>(here, source, token, mine, now.numbers, probability);
            // NaN, where forward took it for -infinity, is that here, too.
            unrolled<V>([&](int j) {
                probability[j] = exp_nonpositive(usable(probability[j]) - maximum) * scale;
                weighted += probability[j] * weight(j);
            });
        } else {
            unrolled<V>([&](int j) { probability[j] = S(0); });
        }
        S shared;
        if (rule.settings.is_softmax()) {
            const std::uint32_t chosen = gather_gradients(here, in, mine, now, gradient);
            const bool is_lifted =
                rule.settings.is_softmax_of_chosen() && lift_values(here, in, token, mine, now, chosen, probability);
            shared =
                rule.differentiate(choices_of_columns<Here, Group, S, V>{here, in.group, chosen, probability, gradient})
                    .v;
            if (is_lifted) {
                unrolled<V>([&](int j) { probability[j] = (chosen >> j & 1u) != 0 ? S(0) : probability[j]; });
            }
        } else {
            shared = differentiate_choices(here, in, token, mine, now, gradient);
            // d_scores may be the scores: other lanes have loaded their choices' before this one stores there.
            if constexpr (!Group::is_block) here.sync_warp();
        }
        if (needs_probabilities) {
            weighted = in.group.sum(here, weighted + shared);
        }
        const S shift = (now.is_live ? in.shift[row] : S(0)) - weighted;
        unrolled<V>([&](int j) { gradient[j] += probability[j] * (weight(j) + shift); });
        if constexpr (IsNoisy) {
            pull_back_pieces(here, source, token, mine, now.numbers, gradient);
        }
        if (row < in.rows) {
            store_pieces(here, d_scores, out_vectors, token, mine, gradient);
        }
    }

    /// gradient[j] = that of the gate of the choice of this column, 0 for others; which columns are chosen, as bits.
    template <class Here>
    SWITCHYARD_DEVICE std::uint32_t gather_gradients(Here& here, block_state& in, const pieces& mine,
                                                     const incoming& now, S (&gradient)[V]) const {
        unrolled<V>([&](int j) { gradient[j] = S(0); });
        in.choices.show(here, choices(), mine.rank, now.expert, now.gradient);
        std::uint32_t chosen = 0;
        for (int c = 0; c < choices(); ++c) {
            std::int32_t expert = -1;
            S its_gradient = 0;
            in.choices.see(here, in.group, c, expert, its_gradient);
            chosen |= expert >= 0 ? mine.bit_of(expert) : 0u;
            const int distance = expert - mine.first_column();
            unrolled<V>([&](int j) { gradient[j] = distance == mine.distance(j) ? its_gradient : gradient[j]; });
        }
        return chosen;
    }

    /// Where all choices of a row lie so far below its maximum that their probabilities come to nothing, these become
    /// values relative to the highest of them. Whether this row's have.
    template <class Here>
    SWITCHYARD_DEVICE bool lift_values(Here& here, block_state& in, index_t token, const pieces& mine,
                                       const incoming& now, std::uint32_t chosen, S (&probability)[V]) const {
        bool counts = false;
        unrolled<V>([&](int j) {
            counts = counts || ((chosen >> j & 1u) != 0 && !(probability[j] < gate_rule<S>::least_value()));
        });
        counts = in.group.any(here, counts);
        const bool is_lifted = now.is_live && !counts;
        if (!in.group.any_nearby(here, is_lifted)) {
            return false;
        }
        const bool has_choice = is_lifted && now.expert >= 0;
        S value = lowest<S>();
        if (has_choice) {
            const S score = load_scalar(here.load(&source.scores(token, now.expert)));
            value = usable(IsNoisy ? source.changed(token, now.expert, score) : score);
        }
        const S highest_score = in.group.highest(here, value);
        value = value > lowest<S>() ? exp_nonpositive(value - highest_score) : S(0);
        in.choices.show(here, choices(), mine.rank, now.expert, value);
        for (int c = 0; c < choices(); ++c) {
            std::int32_t expert = -1;
            S its_value = 0;
            in.choices.see(here, in.group, c, expert, its_value);
            const int distance = expert - mine.first_column();
            unrolled<V>([&](int j) {
                probability[j] = is_lifted && distance == mine.distance(j) ? its_value : probability[j];
            });
        }
        // d_scores may be the scores.
        if constexpr (!Group::is_block) here.sync_warp();
        return is_lifted;
    }

    /// gradient[j] = what the choice of this column adds to its score's gradient, for functions of one score. Each
    /// choice is computed by one thread.
    template <class Here>
    SWITCHYARD_DEVICE S differentiate_choices(Here& here, block_state& in, index_t token, const pieces& mine,
                                              const incoming& now, S (&gradient)[V]) const {
        const bool has_choice = now.is_live && now.expert >= 0;
        S own = lowest<S>();
        if (has_choice) {
            const S score = load_scalar(now.score);
            own = usable(IsNoisy ? source.changed(token, now.expert, score) : score);
        }
        const S shared =
            rule.differentiate(choices_of_lanes<Here, Group, S>{here, in.group, has_choice, own, now.gradient}).v;
        unrolled<V>([&](int j) { gradient[j] = S(0); });
        in.choices.show(here, choices(), mine.rank, now.expert, own);
        for (int c = 0; c < choices(); ++c) {
            std::int32_t expert = -1;
            S added = 0;
            in.choices.see(here, in.group, c, expert, added);
            const int distance = expert - mine.first_column();
            unrolled<V>([&](int j) { gradient[j] = distance == mine.distance(j) ? gradient[j] + added : gradient[j]; });
        }
        return shared;
    }
};

}  // namespace detail
}  // namespace SWITCHYARD_TARGET
}  // namespace switchyard
