// Counts of choices by block of tokens, on a device, and what becomes of them: the first slots of each block.
//
// A block of tokens counts its choices of each expert and level (first choices, second choices, ...) in shared memory.
// `finish_counts_kernel` sums them up over the blocks before, in place, and its last thread block to arrive makes loads
// and offsets of the totals. Integers throughout: which block comes last changes nothing.
#pragma once

#include <switchyard/backend/kernel.hpp>
#include <switchyard/backend/lane_group.hpp>
#include <switchyard/core/config.hpp>
#include <switchyard/core/workspace.hpp>
#include <switchyard/plan/plan.hpp>
#include <switchyard/plan/slots.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>

namespace switchyard {
inline namespace SWITCHYARD_TARGET {
namespace detail {

/// The counts of a plan, all in device memory.
struct block_counts {
    std::int32_t* count = nullptr;    ///< [blocks, k E]: choices, later those of the same kind in earlier blocks
    std::int32_t* total = nullptr;    ///< [k E]: choices of all blocks
    std::int32_t* earlier = nullptr;  ///< [k E]: choices of earlier levels; null for k = 1
    std::int32_t* counted = nullptr;  ///< [blocks]: tokens that are not padding
    std::int32_t* arrived = nullptr;  ///< thread blocks that are done; whoever counts sets it to 0
    index_t blocks = 0;
    index_t block_rows = 0;
    index_t columns = 0;  ///< k E
};

/// Most tokens of a block: their counts fit 16 bits.
inline constexpr index_t most_block_rows = 1024;

/// Tokens a block takes, a multiple of 64: a function of the shape alone. 384 blocks run at the same time on a device
/// of 128 multiprocessors that hold three each. Counts and column sums move `counter_bytes` a block; they stay below a
/// sixteenth of what the rows move, as far as `most` allows, where that leaves 256 blocks: with fewer, part of a device
/// would do nothing (one of 132 multiprocessors took as long for 4,096 tokens in 4 blocks as for 65,536 in 64).
inline index_t kernel_block_rows(index_t tokens, index_t row_bytes, index_t counter_bytes, index_t least,
                                 index_t most) {
    constexpr index_t step = 64;
    constexpr index_t enough_blocks = 256;
    constexpr index_t usual_blocks = 384;
    const index_t usual = (tokens + usual_blocks * step - 1) / (usual_blocks * step) * step;
    index_t rows = std::min(std::max({least, step, usual}), most);
    while (rows < most && rows * row_bytes < 16 * counter_bytes && rows * enough_blocks < tokens) {
        rows = std::min(rows + step, most);
    }
    return rows;
}

template <class S, class Space, class Memory>
block_counts take_block_counts(const plan_view<S, Space>& plan, index_t block_rows, basic_workspace<Memory>& scratch) {
    block_counts counts;
    counts.block_rows = block_rows;
    counts.blocks = std::max<index_t>(1, (plan.tokens + block_rows - 1) / block_rows);
    counts.columns = plan.choices * plan.experts;
    counts.count = scratch.template take<std::int32_t>(counts.blocks * counts.columns);
    counts.total = scratch.template take<std::int32_t>(counts.columns);
    counts.earlier = plan.choices > 1 ? scratch.template take<std::int32_t>(counts.columns) : nullptr;
    counts.counted = scratch.template take<std::int32_t>(counts.blocks);
    counts.arrived = scratch.template take<std::int32_t>(1);
    return counts;
}

/// Counters in shared memory, two a word.
struct choice_histogram {
    static constexpr index_t most_counters = 12288;
    std::uint32_t* words;

    static constexpr index_t words_for(index_t counters) { return (counters + 1) / 2; }

    template <int Threads, class Here>
    SWITCHYARD_DEVICE void clear(Here& here, int counters) const {
        for (int i = here.thread(); i < (counters + 1) / 2; i += Threads) {
            words[i] = 0;
        }
    }
    template <class Here>
    SWITCHYARD_DEVICE void add(Here& here, int counter) const {
        here.atomic_add(words + counter / 2, counter % 2 != 0 ? 0x10000u : 1u);
    }
    template <int Threads, class Here>
    SWITCHYARD_DEVICE void store(Here& here, int counters, std::int32_t* to) const {
        for (int i = here.thread(); i < counters; i += Threads) {
            const std::uint32_t word = words[i / 2];
            here.store(to + i, static_cast<std::int32_t>(i % 2 != 0 ? word >> 16 : word & 0xFFFFu));
        }
    }
};

/// Levels whose counters fit shared memory together.
constexpr index_t histogram_levels(index_t experts, index_t choices) {
    return std::min(choices, choice_histogram::most_counters / experts);
}

/// Counts the choices of one block from device memory, `levels` at a time.
template <int Threads, class Here>
SWITCHYARD_DEVICE void count_block(Here& here, const choice_histogram& histogram, const std::int32_t* expert,
                                   int experts, int choices, int levels, index_t first, int rows, std::int32_t* count) {
    for (int level = 0; level < choices; level += levels) {
        const int these = levels < choices - level ? levels : choices - level;
        here.sync();
        histogram.clear<Threads>(here, these * experts);
        here.sync();
        for (int i = here.thread(); i < rows * these; i += Threads) {
            const int c = i % these;
            const std::int32_t code = here.load(expert + (first + i / these) * choices + level + c);
            if (code >= 0) {
                histogram.add(here, c * experts + code);
            }
        }
        here.sync();
        histogram.store<Threads>(here, these * experts, count + level * experts);
    }
}

/// Counts the choices that a plan holds.
struct count_choices_kernel {
    static constexpr int threads = 256;
    const std::int32_t* expert;
    index_t tokens;
    int experts;
    int choices;
    int levels;
    block_counts counts;

    static std::size_t room(int experts, int levels) {
        return shared_room<std::uint32_t>(choice_histogram::words_for(static_cast<index_t>(experts) * levels)) +
               shared_room<std::int32_t>(threads / warp_lanes);
    }

    template <kernel_thread Here>
    SWITCHYARD_DEVICE void operator()(Here& here) const {
        const choice_histogram histogram{here.template shared<std::uint32_t>((experts * levels + 1) / 2)};
        auto* const warp_counts = here.template shared<std::int32_t>(threads / warp_lanes);
        const index_t first = here.block() * counts.block_rows;
        const int rows = static_cast<int>(tokens - first < counts.block_rows ? tokens - first : counts.block_rows);
        count_block<threads>(here, histogram, expert, experts, choices, levels, first, rows,
                             counts.count + here.block() * counts.columns);
        std::int32_t counted = 0;
        for (int row = here.thread(); row < rows; row += threads) {
            counted += here.load(expert + (first + row) * choices) != padding_choice ? 1 : 0;
        }
        counted = fold_block<threads>(here, counted, warp_counts, add{});
        if (here.thread() == 0) {
            here.store(counts.counted + here.block(), counted);
            if (here.block() == 0) {
                here.store(counts.arrived, 0);
            }
        }
    }
};

/// 32 counters of all blocks of tokens, each made the sum over the blocks before; each warp has some of the blocks.
template <int Threads, class Here>
SWITCHYARD_DEVICE void sum_counts(Here& here, const block_counts& counts, index_t first_column, std::int32_t* room) {
    constexpr int warps = Threads / warp_lanes;
    constexpr int each = 24;  // the usual number of blocks in one round
    const int warp = here.thread() / warp_lanes;
    const int lane = here.thread() % warp_lanes;
    const index_t column = first_column + lane;
    const bool is_column = column < counts.columns;
    std::int32_t before = 0;  // in the blocks that earlier rounds saw
    for (index_t start = 0; start < counts.blocks; start += warps * each) {
        const index_t first = start + warp * each;
        std::int32_t count[each];
        std::int32_t sum = 0;
        unrolled<each>([&](int i) {
            const bool is_mine = is_column && first + i < counts.blocks;
            count[i] = is_mine ? here.load(counts.count + (first + i) * counts.columns + column) : 0;
            sum += count[i];
        });
        room[here.thread()] = sum;
        here.sync();
        std::int32_t running = before;
        for (int w = 0; w < warps; ++w) {
            const std::int32_t other = room[w * warp_lanes + lane];
            running += w < warp ? other : 0;
            before += other;
        }
        unrolled<each>([&](int i) {
            if (is_column && first + i < counts.blocks) {
                here.store(counts.count + (first + i) * counts.columns + column, running);
                running += count[i];
            }
        });
        here.sync();
    }
    if (warp == 0 && is_column) {
        here.store(counts.total + column, before);
    }
}

/// Threads of the blocks that sum up.
inline constexpr int finish_threads = 512;

/// What the last block learns, added up over the blocks of tokens and over the experts.
struct final_facts {
    std::int64_t counted_tokens = 0;
    double terms = 0;  ///< sum over the experts of counted choices times what `Extra` says of the column
    double squares = 0;
    std::int32_t bad = no_column;         ///< the first token with a bad score
    std::int32_t unroutable = no_column;  ///< the first token with every expert forbidden

    /// Of `Lanes` neighbouring lanes.
    template <int Lanes, class Here>
    SWITCHYARD_DEVICE final_facts over_lanes(Here& here) const {
        final_facts all;
        all.counted_tokens = fold_lanes<Lanes>(here, counted_tokens, add{});
        all.terms = fold_lanes<Lanes>(here, terms, add{});
        all.squares = fold_lanes<Lanes>(here, squares, add{});
        all.bad = fold_lanes<Lanes>(here, bad, lower_of{});
        all.unroutable = fold_lanes<Lanes>(here, unroutable, lower_of{});
        return all;
    }
};

/// Sums up the counts; the last thread block to arrive makes loads, offsets and totals of them. `Extra` adds what else
/// can only be known at the end:
///   extra.blocks()                      thread blocks of its own
///   extra.run(here, i, room)            what the i-th of them does; room: a double for each thread
///   extra.run_alone(here)               what all of them do, where there is one block of tokens
///   extra.collect(here, block, facts)   adds what a block of tokens left behind
///   extra.column(here, expert)          what the expert's counted choices are multiplied with
///   extra.end(here, facts)              at the end, by one thread
template <class S, class Space, class Extra>
struct finish_counts_kernel {
    static constexpr int threads = finish_threads;
    static constexpr int warps = threads / warp_lanes;
    plan_view<S, Space> plan;
    block_counts counts;
    balance_count balance;
    Extra extra;

    static index_t blocks_of_counts(index_t columns) { return (columns + warp_lanes - 1) / warp_lanes; }
    static constexpr std::size_t room() {
        return shared_room<double>(threads) + shared_room<std::int64_t>(warps) + shared_room<final_facts>(warps) +
               shared_room<std::int32_t>(1);
    }

    template <kernel_thread Here>
    SWITCHYARD_DEVICE void operator()(Here& here) const {
        double* const numbers = here.template shared<double>(threads);
        auto* const warp_sums = here.template shared<std::int64_t>(warps);
        auto* const warp_facts = here.template shared<final_facts>(warps);
        auto* const is_last = here.template shared<std::int32_t>(1);
        const index_t count_blocks = (counts.columns + warp_lanes - 1) / warp_lanes;
        if (here.block() < count_blocks) {
            sum_counts<threads>(here, counts, here.block() * warp_lanes, reinterpret_cast<std::int32_t*>(numbers));
        } else {
            extra.run(here, here.block() - count_blocks, numbers);
        }
        here.sync();
        if (here.thread() == 0) {
            here.fence();
            is_last[0] = here.atomic_add(counts.arrived, 1) == here.blocks() - 1 ? 1 : 0;
            here.fence();
        }
        here.sync();
        if (is_last[0] != 0) {
            finish(here, warp_sums, warp_facts);
        }
    }

    /// The same by the one block that has counted everything: there is nothing to sum up.
    template <kernel_thread Here>
    SWITCHYARD_DEVICE void run_alone(Here& here) const {
        auto* const warp_sums = here.template shared<std::int64_t>(warps);
        auto* const warp_facts = here.template shared<final_facts>(warps);
        load_ahead<4>(
            here.thread(), counts.columns, threads, [&](index_t column) { return here.load(counts.count + column); },
            [&](index_t column, std::int32_t count) {
                here.store(counts.total + column, count);
                here.store(counts.count + column, 0);
            });
        extra.run_alone(here);
        here.sync();
        finish(here, warp_sums, warp_facts);
    }

  private:
    /// By the last block. Each loop asks for all that it needs of device memory before it waits for any of it.
    template <class Here>
    SWITCHYARD_DEVICE void finish(Here& here, std::int64_t* warp_sums, final_facts* warp_facts) const {
        final_facts facts;
        for (index_t block = here.thread(); block < counts.blocks; block += threads) {
            const std::int32_t counted = here.load(counts.counted + block);
            extra.collect(here, block, facts);
            facts.counted_tokens += counted;
        }
        std::int64_t kept = 0;
        for (index_t first = 0; first < plan.experts; first += threads) {
            const index_t expert = first + here.thread();
            std::int64_t after = 0;
            if (expert < plan.experts) {
                const double column = extra.column(here, expert);
                facts.terms += static_cast<double>(finish_loads(here, expert, after)) * column;
            }
            std::int64_t before = kept;
            kept += sum_before(here, after, warp_sums, before);
            if (expert < plan.experts) {
                here.store(plan.offsets + expert, before);
            }
            here.sync();
        }
        facts = facts.template over_lanes<warp_lanes>(here);
        if (here.thread() % warp_lanes == 0) {
            warp_facts[here.thread() / warp_lanes] = facts;
        }
        here.sync();
        if (here.thread() < warp_lanes) {
            facts = here.thread() < warps ? warp_facts[here.thread()] : final_facts{};
            facts = facts.template over_lanes<warps>(here);
        }
        if (here.thread() == 0) {
            here.store(plan.offsets + plan.experts, kept);
            here.store(&plan.totals->kept, kept);
            here.store(&plan.totals->counted_tokens, facts.counted_tokens);
            extra.end(here, facts);
        }
    }

    /// Loads of an expert; returns what the balance loss counts.
    template <class Here>
    SWITCHYARD_DEVICE std::int64_t finish_loads(Here& here, index_t expert, std::int64_t& after) const {
        std::int32_t load = 0;
        std::int32_t counted = 0;
        load_ahead<8>(
            0, plan.choices, 1, [&](index_t c) { return here.load(counts.total + c * plan.experts + expert); },
            [&](index_t c, std::int32_t chosen) {
                if (counts.earlier != nullptr) {
                    here.store(counts.earlier + c * plan.experts + expert, load);
                }
                load += chosen;
                counted = c == 0 || balance == balance_count::all ? load : counted;
            });
        after = load < plan.capacity ? load : plan.capacity;
        here.store(plan.load_before + expert, load);
        here.store(plan.load_after + expert, after);
        if (plan.origin.training) {
            here.store(plan.balance_load + expert, counted);
        }
        return counted;
    }

    /// before += x of all lower threads; returns x of all.
    template <class Here>
    SWITCHYARD_DEVICE std::int64_t sum_before(Here& here, std::int64_t x, std::int64_t* warp_sums,
                                              std::int64_t& before) const {
        const int lane = here.thread() % warp_lanes;
        std::int64_t up_to = x;
        unrolled<5>([&](int i) {
            const std::int64_t other = here.shuffle_up(up_to, 1 << i);
            up_to += lane >= 1 << i ? other : 0;
        });
        if (lane == warp_lanes - 1) {
            warp_sums[here.thread() / warp_lanes] = up_to;
        }
        here.sync();
        std::int64_t all = 0;
        for (int warp = 0; warp < warps; ++warp) {
            before += warp < here.thread() / warp_lanes ? warp_sums[warp] : 0;
            all += warp_sums[warp];
        }
        before += up_to - x;
        return all;
    }
};

/// Nothing more to find out.
struct no_more_totals {
    static constexpr index_t blocks() { return 0; }
    template <class Here>
    SWITCHYARD_DEVICE void run(Here&, index_t, double*) const {}
    template <class Here>
    SWITCHYARD_DEVICE void run_alone(Here&) const {}
    template <class Here>
    SWITCHYARD_DEVICE void collect(Here&, index_t, final_facts&) const {}
    template <class Here>
    SWITCHYARD_DEVICE double column(Here&, index_t) const {
        return 0;
    }
    template <class Here>
    SWITCHYARD_DEVICE void end(Here&, const final_facts&) const {}
};

}  // namespace detail
}  // namespace SWITCHYARD_TARGET
}  // namespace switchyard
