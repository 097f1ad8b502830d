// Which rows of a batch are tokens, and which sequence each of them belongs to.
//
//   token_sequences<>{}                                     one sequence: the batch
//   token_sequences<>{.mask = mask}                         the same without padding
//   token_sequences<>{.length = 4096}                       B = T / 4096 sequences, one behind the other
//   token_sequences<>{.offsets = packed.data(), .count = B} sequence b is rows offsets[b] .. offsets[b + 1]
//
// Offsets are int64 [B + 1], rising from 0 to T; equal neighbours are an empty sequence. They lie in the memory of the
// policy that runs, like the mask. CPU policies refuse offsets that are not so; on a device, where nothing is read
// back, they are kept within the batch, and what they mean beyond that is not promised.
#pragma once

#include <switchyard/backend/policy.hpp>
#include <switchyard/core/config.hpp>
#include <switchyard/core/error.hpp>
#include <switchyard/core/matrix_view.hpp>

#include <cstdint>

namespace switchyard {

template <class Space = host_space>
struct token_sequences {
    token_mask mask{};                      ///< [T], 0 marks padding; null: every row is a token
    const std::int64_t* offsets = nullptr;  ///< [count + 1], or null
    index_t count = 1;                      ///< B >= 1, with offsets
    index_t length = 0;                     ///< without offsets: of each sequence, a divisor of T; 0 is the whole batch
};

inline namespace SWITCHYARD_TARGET {

namespace detail {

/// The sequences of T rows, in slots of at most 64 rows of one sequence: sums within a slot come first, then those over
/// the slots of a sequence. The order depends on the sequence's length alone, not on where it stands.
template <class Space>
struct sequence_slots {
    static constexpr index_t slot_rows = 64;

    const std::int64_t* offsets = nullptr;
    index_t count = 1;
    index_t length = 0;
    index_t tokens = 0;

    /// The first row of a sequence; that of the one behind the last is T.
    SWITCHYARD_HD index_t first(index_t sequence) const {
        const index_t row = offsets != nullptr ? offsets[sequence] : sequence * length;
        return row < 0 ? 0 : row > tokens ? tokens : row;
    }
    /// Slots before those of a sequence. Some stay empty: this needs no sum over the sequences.
    SWITCHYARD_HD index_t first_slot(index_t sequence) const { return first(sequence) / slot_rows + sequence; }
    SWITCHYARD_HD index_t slots_of(index_t sequence) const {
        const index_t rows = first(sequence + 1) - first(sequence);
        return rows > 0 ? (rows + slot_rows - 1) / slot_rows : 0;
    }
    SWITCHYARD_HD index_t slots() const { return tokens / slot_rows + count; }
    SWITCHYARD_HD index_t sequence_of_slot(index_t slot) const {
        index_t low = 0;
        index_t high = count;  // the last one whose slots begin at or before this one lies in low .. high - 1
        while (high - low > 1) {
            const index_t middle = low + (high - low) / 2;
            (first_slot(middle) <= slot ? low : high) = middle;
        }
        return low;
    }
    /// The rows of a slot.
    SWITCHYARD_HD void rows_of_slot(index_t slot, index_t sequence, index_t& begin, index_t& end) const {
        const index_t last = first(sequence + 1);
        const index_t place = slot - first_slot(sequence);
        begin = place < 0 ? last : first(sequence) + place * slot_rows;
        begin = begin < last ? begin : last;
        end = begin + slot_rows < last ? begin + slot_rows : last;
    }
};

}  // namespace detail

/// Fails with an error message where the sequences are not those of T rows.
template <class Policy, class Space>
void require_sequences(const token_sequences<Space>& sequences, index_t tokens) {
    static_assert(std::is_same_v<Space, typename Policy::memory::space>,
                  "switchyard: the sequences' offsets do not lie in the memory this policy works in");
    require_mask<Policy>(sequences.mask, tokens);
    require(sequences.length >= 0, "length = ", sequences.length, " of a sequence must not be negative");
    if (sequences.offsets == nullptr) {
        require(sequences.count == 1, "count = ", sequences.count, " sequences need offsets, or a length");
        require(sequences.length == 0 || tokens % sequences.length == 0, "length = ", sequences.length,
                " of a sequence does not divide T = ", tokens);
        return;
    }
    require(sequences.length == 0, "sequences have offsets or a length = ", sequences.length, ", not both");
    require(sequences.count >= 1, "count = ", sequences.count, " sequences: there must be at least one");
    if constexpr (host_policy<Policy>) {
        const std::int64_t* const offsets = sequences.offsets;
        require(offsets[0] == 0, "offsets[0] = ", offsets[0], " must be 0");
        for (index_t b = 0; b < sequences.count; ++b) {
            require(offsets[b] <= offsets[b + 1], "offsets[", b + 1, "] = ", offsets[b + 1], " is less than offsets[",
                    b, "] = ", offsets[b]);
        }
        require(offsets[sequences.count] == tokens, "offsets[", sequences.count, "] = ", offsets[sequences.count],
                " must be T = ", tokens);
    }
}

/// B of T rows.
template <class Space>
constexpr index_t sequence_count(const token_sequences<Space>& sequences, index_t tokens) {
    if (sequences.offsets != nullptr) return sequences.count;
    return sequences.length == 0 || tokens == 0 ? 1 : tokens / sequences.length;
}

namespace detail {

template <class Space>
sequence_slots<Space> slots_of_sequences(const token_sequences<Space>& sequences, index_t tokens) {
    return {sequences.offsets, sequence_count(sequences, tokens), sequences.length == 0 ? tokens : sequences.length,
            tokens};
}

/// Calls f(i) for i in 0 .. count, each a good piece of work.
template <class Policy, class F>
void for_each_slot(const Policy& policy, index_t count, const F& f) {
    if constexpr (host_policy<Policy>) {
        policy.parallel_for(count, f);
    } else {
        for_each_index(policy, count, f);
    }
}

}  // namespace detail

}  // namespace SWITCHYARD_TARGET
}  // namespace switchyard
