// The orders in which threads and blocks have their turns.
//
// A thread that has its turn runs until it waits for others or returns. A kernel whose results depend on the order is
// wrong; each order shows other mistakes:
//
//   forward       all threads of the block, upwards, again and again
//   reverse       the same downwards: what a lane takes from its lower neighbour without waiting is not there yet
//   random        a random warp for a few turns of random lanes, then another
//   greedy        the lowest warp that can run: it runs ahead until it waits for the block, which shows a missing sync
//   greedy_last   the highest warp that can run, lanes downwards
//
// Blocks run one after another, in the order of their numbers, the reverse, or a random one.
#pragma once

#include "simt/sanitizers.hpp"

#include <switchyard/core/config.hpp>

#include <bit>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <string>
#include <utility>
#include <vector>

namespace switchyard_test::simt {

using switchyard::index_t;

enum class lane_order { forward, reverse, random, greedy, greedy_last };
enum class block_order { forward, reverse, random };

struct order {
    lane_order lanes = lane_order::forward;
    block_order blocks = block_order::forward;
    std::uint64_t seed = 1;  ///< of what is random

    std::string name() const {
        constexpr const char* lane_names[] = {"forward", "reverse", "random", "greedy", "greedy_last"};
        constexpr const char* block_names[] = {"forward", "reverse", "random"};
        std::string text = std::string("lanes ") + lane_names[static_cast<int>(lanes)] + ", blocks " +
                           block_names[static_cast<int>(blocks)];
        if (lanes == lane_order::random || blocks == block_order::random) text += ", seed " + std::to_string(seed);
        return text;
    }
};

/// One of each, which every kernel's results must be the same in.
inline constexpr order all_orders[] = {
    {lane_order::forward, block_order::forward},  {lane_order::reverse, block_order::reverse},
    {lane_order::random, block_order::random, 1}, {lane_order::random, block_order::random, 2},
    {lane_order::greedy, block_order::random, 3}, {lane_order::greedy_last, block_order::forward},
};

/// Each of them in turn: tests of many shapes that take an order each run some in every order.
inline const order& next_order() {
    static std::size_t turn = 0;
    return all_orders[turn++ % std::size(all_orders)];
}

/// SplitMix64: the same numbers on every machine.
struct random_numbers {
    std::uint64_t state;

    SWITCHYARD_SIMT_UNSEEN std::uint64_t next() {
        std::uint64_t z = (state += 0x9E3779B97F4A7C15u);
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
        z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
        return z ^ (z >> 31);
    }
};

/// Whose turn it is.
class turns {
  public:
    explicit turns(const order& in) : lanes_(in.lanes), random_{in.seed} {}

    /// Before the first turn in a block.
    SWITCHYARD_SIMT_UNSEEN void begin_block() {
        const bool downwards = lanes_ == lane_order::reverse || lanes_ == lane_order::greedy_last;
        warp_ = downwards ? 31 : 0;
        lane_ = downwards ? 32 : -1;
        left_ = 0;
    }

    /// The next thread, of those that can run: `warps` has a bit for each warp with one, ready[w] those of warp w.
    SWITCHYARD_SIMT_UNSEEN int next(std::uint32_t warps, const std::uint32_t* ready) {
        switch (lanes_) {
            case lane_order::forward:
                upwards(warps, ready);
                break;
            case lane_order::reverse:
                downwards(warps, ready);
                break;
            case lane_order::random:
                random(warps, ready);
                break;
            case lane_order::greedy: {
                const int lowest = std::countr_zero(warps);
                if (lowest != warp_) lane_ = -1;
                warp_ = lowest;
                upwards(1u << lowest, ready);
                break;
            }
            case lane_order::greedy_last: {
                const int highest = 31 - std::countl_zero(warps);
                if (highest != warp_) lane_ = 32;
                warp_ = highest;
                downwards(1u << highest, ready);
                break;
            }
        }
        return warp_ * 32 + lane_;
    }

  private:
    SWITCHYARD_SIMT_UNSEEN static std::uint32_t above(int bit) { return bit >= 31 ? 0 : ~0u << (bit + 1); }
    SWITCHYARD_SIMT_UNSEEN static std::uint32_t below(int bit) { return bit >= 32 ? ~0u : (1u << bit) - 1; }

    SWITCHYARD_SIMT_UNSEEN void upwards(std::uint32_t warps, const std::uint32_t* ready) {
        std::uint32_t lanes = (warps >> warp_ & 1u) != 0 ? ready[warp_] & above(lane_) : 0;
        if (lanes == 0) {
            const std::uint32_t later = warps & above(warp_);
            warp_ = std::countr_zero(later != 0 ? later : warps);
            lanes = ready[warp_];
        }
        lane_ = std::countr_zero(lanes);
    }
    SWITCHYARD_SIMT_UNSEEN void downwards(std::uint32_t warps, const std::uint32_t* ready) {
        std::uint32_t lanes = (warps >> warp_ & 1u) != 0 ? ready[warp_] & below(lane_) : 0;
        if (lanes == 0) {
            const std::uint32_t earlier = warps & below(warp_);
            warp_ = 31 - std::countl_zero(earlier != 0 ? earlier : warps);
            lanes = ready[warp_];
        }
        lane_ = 31 - std::countl_zero(lanes);
    }
    SWITCHYARD_SIMT_UNSEEN void random(std::uint32_t warps, const std::uint32_t* ready) {
        const std::uint64_t drawn = random_.next();
        if (left_ == 0 || (warps >> warp_ & 1u) == 0) {
            warp_ = any_of(warps, static_cast<int>(drawn >> 32 & 31u));
            left_ = 1 << (drawn >> 40 & 7u);  // 1 to 128 turns: from in step to far ahead
        }
        --left_;
        lane_ = any_of(ready[warp_], static_cast<int>(drawn & 31u));
    }
    /// The first set bit at or above `from`, going round.
    SWITCHYARD_SIMT_UNSEEN static int any_of(std::uint32_t bits, int from) {
        return (std::countr_zero(std::rotr(bits, from)) + from) & 31;
    }

    lane_order lanes_;
    random_numbers random_;
    int warp_ = 0;
    int lane_ = -1;
    int left_ = 0;
};

/// The blocks of a launch in their order.
inline std::vector<index_t> blocks_in(const order& in, index_t blocks) {
    std::vector<index_t> sequence(static_cast<std::size_t>(blocks));
    for (index_t i = 0; i < blocks; ++i) {
        sequence[static_cast<std::size_t>(i)] = in.blocks == block_order::reverse ? blocks - 1 - i : i;
    }
    if (in.blocks == block_order::random) {
        random_numbers random{in.seed};
        for (std::size_t i = sequence.size(); i > 1; --i) {
            std::swap(sequence[i - 1], sequence[static_cast<std::size_t>(random.next() % i)]);
        }
    }
    return sequence;
}

}  // namespace switchyard_test::simt
