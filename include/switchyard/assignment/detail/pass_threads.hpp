// When a pass over scores is worth a second thread.
//
// Most rounds of an auction are the last few tokens' bids, over before another thread has woken; and where other
// programs keep the cores busy, a thread that is called for a moment's work may come milliseconds later, and the caller
// waits. So little work stays on the calling thread: by its size alone, and with the same blocks, which keeps results
// the same.
#pragma once

#include <switchyard/backend/policy.hpp>
#include <switchyard/core/config.hpp>

namespace switchyard {
inline namespace SWITCHYARD_TARGET {
namespace detail {

/// Fewer scores are looked at in a quarter of a millisecond.
inline constexpr index_t scores_worth_threads = 512 * 1024;

/// f(b) for every block of a pass over so many scores.
template <class Policy, class F>
void for_blocks_of_scores(const Policy& policy, index_t scores, index_t blocks, F&& f) {
    if (scores >= scores_worth_threads) {
        policy.parallel_for(blocks, f);
    } else {
        seq.parallel_for(blocks, f);
    }
}

}  // namespace detail
}  // namespace SWITCHYARD_TARGET
}  // namespace switchyard
