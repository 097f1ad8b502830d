// The arrays of switchyard/formats/ by plain loops over a plan made by plain loops, and all functions that write them
// beside these, on any policy.
#pragma once

#include "support/choices.hpp"

#include <switchyard/backend/device.hpp>
#include <switchyard/formats/aligned_blocks.hpp>
#include <switchyard/formats/bins.hpp>
#include <switchyard/formats/by_token.hpp>
#include <switchyard/formats/choices.hpp>
#include <switchyard/formats/masked.hpp>
#include <switchyard/formats/one_hot.hpp>
#include <switchyard/formats/ranks.hpp>
#include <switchyard/formats/routing_map.hpp>
#include <switchyard/formats/rows.hpp>
#include <switchyard/plan/choices.hpp>
#include <switchyard/plan/counts.hpp>
#include <switchyard/plan/device_plan.hpp>
#include <switchyard/plan/layout.hpp>

#include <bit>
#include <set>

namespace switchyard_test {

using int_list = std::vector<std::int64_t>;
using float_list = std::vector<float>;

template <class T>
constexpr std::size_t at(T i) {
    return static_cast<std::size_t>(i);
}

/// A plan whose experts have their rows in the order of their tokens.
inline plain_plan sorted_by_token(plain_plan plan) {
    int_list next(plan.kept.size(), 0);
    for (std::size_t i = 0; i < plan.slot.size(); ++i) {
        if (plan.slot[i] >= 0) plan.slot[i] = static_cast<std::int32_t>(next[at(plan.expert[i])]++);
    }
    for (std::size_t i = 0; i < plan.slot.size(); ++i) {
        if (plan.slot[i] >= 0) plan.order[at(plan.row(i))] = static_cast<std::int64_t>(i);
    }
    return plan;
}

/// Each array by a loop over its definition, from experts, slots, gates and offsets alone.
struct plain_formats {
    const plain_plan& plan;
    index_t tokens, k, experts, block;

    template <class F>
    void each_kept(const F& f) const {  // f(token, position, expert, slot, row)
        for (std::size_t i = 0; i < plan.slot.size(); ++i) {
            if (plan.slot[i] >= 0) f(static_cast<index_t>(i) / k, i, plan.expert[i], plan.slot[i], plan.row(i));
        }
    }
    int_list row_experts(index_t length) const {
        int_list made(at(length), -1);
        each_kept([&](auto, auto, auto e, auto, auto row) { made[at(row)] = e; });
        return made;
    }
    int_list row_choices(index_t length, std::int64_t none = -1) const {
        int_list made(at(length), none);
        each_kept([&](auto, auto i, auto, auto, auto row) { made[at(row)] = static_cast<std::int64_t>(i); });
        return made;
    }
    int_list row_tokens(index_t length) const {
        int_list made(at(length), -1);
        each_kept([&](auto t, auto, auto, auto, auto row) { made[at(row)] = t; });
        return made;
    }
    int_list choice_rows() const {
        int_list made(plan.slot.size(), -1);
        each_kept([&](auto, auto i, auto, auto, auto row) { made[i] = row; });
        return made;
    }
    int_list block_experts(index_t length, const int_list& map) const {
        int_list made(at(length), map[0]);
        each_kept([&](auto, auto, auto e, auto, auto row) { made[at(row / block)] = map[at(e)]; });
        return made;
    }
    int_list kept_ends() const {
        int_list made;
        for (index_t e = 0; e < experts; ++e) made.push_back(plan.offsets[at(e)] + plan.kept[at(e)]);
        return made;
    }
    int_list bins(index_t multiple) const {
        int_list made;
        index_t end = 0;
        for (const auto load : plan.kept) {
            end += load;
            while (end % multiple != 0) ++end;
            made.push_back(end);
        }
        return made;
    }
    int_list masked(index_t most) const {
        int_list made(at(experts * most), -1);
        each_kept(
            [&](auto, auto i, auto e, auto slot, auto) { made[at(e * most + slot)] = static_cast<std::int64_t>(i); });
        return made;
    }
    int_list ids(std::int64_t none) const {
        int_list made(plan.slot.size(), none);
        each_kept([&](auto, auto i, auto e, auto, auto) { made[i] = e; });
        return made;
    }
    /// Of gates that are bfloat16 numbers.
    int_list packed(std::int64_t none) const {
        int_list made;
        for (std::size_t i = 0; i < plan.slot.size(); ++i) {
            const auto id =
                plan.slot[i] < 0 ? static_cast<std::uint32_t>(none) : static_cast<std::uint32_t>(plan.expert[i]);
            made.push_back(static_cast<std::int32_t>((id << 16) + (std::bit_cast<std::uint32_t>(plan.gate[i]) >> 16)));
        }
        return made;
    }
    int_list map() const {
        int_list made(at(tokens * experts), 0);
        each_kept([&](auto t, auto, auto e, auto, auto) { made[at(t * experts + e)] = 1; });
        return made;
    }
    int_list bits() const {
        const index_t bytes = (experts + 7) / 8;
        int_list made(at(tokens * bytes), 0);
        const int_list marks = map();
        for (index_t t = 0; t < tokens; ++t) {
            for (index_t e = 0; e < experts; ++e) {
                made[at(t * bytes + e / 8)] += marks[at(t * experts + e)] << (e % 8);
            }
        }
        return made;
    }
    float_list dense_weights() const {
        float_list made(at(tokens * experts), 0.0f);
        each_kept([&](auto t, auto i, auto e, auto, auto) { made[at(t * experts + e)] += plan.gate[i]; });
        return made;
    }
    int_list row_map() const {
        const index_t columns = 2 * experts + 1;
        int_list made(at(tokens * columns), -1);
        for (index_t t = 0; t < tokens; ++t) {
            index_t kept = 0;
            for (index_t e = experts - 1; e >= 0; --e) {
                for (index_t i = t * k; i < (t + 1) * k; ++i) {
                    if (plan.slot[at(i)] < 0 || plan.expert[at(i)] != e) continue;
                    made[at(t * columns + kept)] = plan.row(at(i));
                    made[at(t * columns + experts + kept)] = e;
                    ++kept;
                }
            }
            made[at(t * columns + 2 * experts)] = kept;
        }
        return made;
    }
    int_list in_rank(index_t ranks) const {
        int_list made(at(tokens * ranks), 0);
        each_kept([&](auto t, auto, auto e, auto, auto) { made[at(t * ranks + e / (experts / ranks))] = 1; });
        return made;
    }
    int_list per_rank(index_t ranks) const {
        int_list made(at(ranks), 0);
        const int_list marks = in_rank(ranks);
        for (std::size_t i = 0; i < marks.size(); ++i) made[i % at(ranks)] += marks[i];
        return made;
    }
    struct entries {
        int_list offsets{0}, rows, experts;
        float_list gates;
    };
    entries by_token(index_t length) const {
        entries made;
        for (index_t i = 0; i < tokens * k; ++i) {
            if (plan.slot[at(i)] >= 0) {
                made.rows.push_back(plan.row(at(i)));
                made.experts.push_back(plan.expert[at(i)]);
                made.gates.push_back(plan.gate[at(i)]);
            }
            if ((i + 1) % k == 0) made.offsets.push_back(static_cast<std::int64_t>(made.rows.size()));
        }
        made.rows.resize(at(length), -1);
        made.experts.resize(at(length), -1);
        made.gates.resize(at(length), 0.0f);
        return made;
    }
    float_list slots(index_t most, bool as_weight) const {
        float_list made(at(tokens * experts * most), 0.0f);
        each_kept([&](auto t, auto i, auto e, auto slot, auto) {
            made[at((t * experts + e) * most + slot)] = as_weight ? plan.gate[i] : 1.0f;
        });
        return made;
    }
};

/// A table in the memory of a policy, full of a number that no format writes.
template <class T, class Policy>
sy::matrix<T, typename Policy::memory> blank(const Policy& policy, index_t rows, index_t columns) {
    sy::matrix<T> made(rows, columns);
    std::fill_n(made.data(), rows * columns, static_cast<T>(77));
    if constexpr (sy::host_policy<Policy>) {
        return made;
    } else {
        return sy::copy_to_device(policy, made);
    }
}

/// The first number of a table in the memory of a policy that is not the one wanted.
template <class Policy, class T, class W>
std::string table_difference(const char* name, const Policy& policy, const sy::matrix<T, typename Policy::memory>& got,
                             const std::vector<W>& want) {
    if (got.rows() * got.columns() != static_cast<index_t>(want.size())) {
        return said(name, " has ", got.rows(), " x ", got.columns(), " numbers, not ", want.size());
    }
    const auto differ = [&](const T* numbers_of) {
        for (std::size_t i = 0; i < want.size(); ++i) {
            if (!(static_cast<W>(numbers_of[i]) == want[i])) {
                return said(name, "[", i, "] is ", static_cast<W>(numbers_of[i]), ", not ", want[i]);
            }
        }
        return std::string();
    };
    if constexpr (sy::host_policy<Policy>) {
        return differ(got.data());
    } else {
        return differ(sy::copy_to_host(policy, got).data());
    }
}

/// Comparisons one after the other, up to the first difference.
template <class Policy>
class compared {
  public:
    explicit compared(const Policy& policy) : policy_(policy) {}

    template <class T, class W>
    void operator()(const char* name, const sy::matrix<T, typename Policy::memory>& got, const std::vector<W>& want) {
        if (difference_.empty()) difference_ = table_difference(name, policy_, got, want);
    }
    const std::string& difference() const { return difference_; }

  private:
    const Policy& policy_;
    std::string difference_;
};

/// Every function of switchyard/formats/, with lists that are `more` longer than they need be.
template <class Policy, class Plan, class Scratch>
std::string formats_difference(const Policy& policy, const Plan& plan, const plain_formats& want, Scratch& scratch,
                               index_t more) {
    using narrow = std::int32_t;
    using wide = std::int64_t;
    compared<Policy> compare(policy);
    const index_t tokens = want.tokens, k = want.k, experts = want.experts;
    const index_t rows = plan.row_bound() + more;

    auto list = blank<narrow>(policy, 1, rows);
    sy::write_row_experts(policy, plan, list);
    compare("row_experts", list, want.row_experts(rows));
    sy::write_row_choices(policy, plan, list);
    compare("row_choices", list, want.row_choices(rows));
    sy::write_row_tokens(policy, plan, list);
    compare("row_tokens", list, want.row_tokens(rows));
    auto choices = blank<wide>(policy, tokens, k);
    sy::write_choice_rows(policy, plan, choices);
    compare("choice_rows", choices, want.choice_rows());

    const auto sizes = sy::aligned_block_sizes(tokens, k, experts, want.block);
    auto ids = blank<narrow>(policy, sizes.ids + more, 1);
    auto block_experts = blank<narrow>(policy, 1, sizes.blocks + more);
    auto count = blank<narrow>(policy, 1, 1);
    sy::write_aligned_blocks(policy, plan, ids, block_experts, count);
    int_list map;
    for (index_t e = 0; e < experts; ++e) map.push_back(e);
    compare("sorted_ids", ids, want.row_choices(sizes.ids + more, tokens * k));
    compare("block_experts", block_experts, want.block_experts(sizes.blocks + more, map));
    compare("padded_count", count, int_list{want.plan.rows()});
    auto local = blank<narrow>(policy, 1, experts);
    auto dense_ids = blank<wide>(policy, 1, experts);
    sy::write_bins(policy, plan, 1, dense_ids);
    compare("bins", dense_ids, want.bins(1));
    sy::write_bins(policy, plan, 16, local);
    compare("padded_bins", local, want.bins(16));
    // Any list of E numbers will do for a map: here these.
    sy::write_aligned_blocks(policy, plan, ids, block_experts, count, local);
    compare("block_experts by a map", block_experts, want.block_experts(sizes.blocks + more, want.bins(16)));
    sy::write_counts(policy, plan, sy::plan_counts::kept_ends, local);
    compare("kept_ends", local, want.kept_ends());

    const index_t most = sy::masked_rows(plan) + more;
    auto masked = blank<narrow>(policy, experts, most);
    sy::write_masked(policy, plan, masked, local);
    compare("masked", masked, want.masked(most));
    compare("masked counts", local, want.plan.kept);

    sy::write_ids(policy, plan, choices);
    compare("ids", choices, want.ids(-1));
    auto narrow_choices = blank<narrow>(policy, tokens, k);
    sy::write_ids(policy, plan, narrow_choices, {.none = 0});
    compare("ids with none = 0", narrow_choices, want.ids(0));
    sy::write_packed_choices(policy, plan, narrow_choices);
    compare("packed", narrow_choices, want.packed(-1));
    auto gates = blank<float>(policy, tokens, k);
    sy::write_weights(policy, plan, gates);
    compare("weights", gates, want.plan.gate);

    auto bytes = blank<std::uint8_t>(policy, tokens, experts);
    sy::write_routing_map(policy, plan, bytes);
    compare("routing_map", bytes, want.map());
    auto bits = blank<std::uint8_t>(policy, tokens, (experts + 7) / 8);
    sy::write_routing_bits(policy, plan, bits);
    compare("routing_bits", bits, want.bits());
    auto dense = blank<float>(policy, tokens, experts);
    sy::write_routing_weights(policy, plan, dense);
    compare("routing_weights", dense, want.dense_weights());
    if (k <= experts) {
        auto row_map = blank<narrow>(policy, tokens, 2 * experts + 1);
        sy::write_row_map(policy, plan, row_map);
        compare("row_map", row_map, want.row_map());
    }

    for (const index_t ranks : {index_t{1}, experts % 2 == 0 ? experts / 2 : index_t{1}, experts}) {
        auto per_rank = blank<narrow>(policy, 1, ranks);
        auto in_rank = blank<std::uint8_t>(policy, tokens, ranks);
        sy::write_rank_layout(policy, plan, ranks, per_rank, in_rank, scratch);
        compare("tokens_per_rank", per_rank, want.per_rank(ranks));
        compare("token_in_rank", in_rank, want.in_rank(ranks));
    }

    const index_t entries = tokens * k + more;
    const auto by_token = want.by_token(entries);
    auto offsets = blank<narrow>(policy, 1, tokens + 1);
    auto entry_rows = blank<narrow>(policy, 1, entries);
    auto entry_experts = blank<narrow>(policy, 1, entries);
    auto entry_weights = blank<float>(policy, 1, entries);
    sy::write_token_lists(policy, plan, offsets, entry_rows, entry_experts, entry_weights, scratch);
    compare("offsets by token", offsets, by_token.offsets);
    compare("rows by token", entry_rows, by_token.rows);
    compare("experts by token", entry_experts, by_token.experts);
    compare("weights by token", entry_weights, by_token.gates);

    if (tokens <= 64) {
        auto one_hot = blank<std::uint8_t>(policy, tokens, experts * most);
        sy::write_one_hot(policy, plan, one_hot);
        compare("one_hot", one_hot, want.slots(most, false));
        auto combine = blank<float>(policy, tokens, experts * most);
        sy::write_combine_weights(policy, plan, combine);
        compare("combine", combine, want.slots(most, true));
    }
    return compare.difference();
}

/// A plan of choices in blocks, as slots were taken and by token, and every format of both.
template <class Policy, class Scratch>
std::string all_formats_difference(const Policy& policy, const given_choices& from, index_t capacity, index_t block,
                                   Scratch& scratch, index_t more = 0) {
    sy::basic_plan<float, typename Policy::memory> plan;
    plan.set_row_block(block);
    const sy::choice_settings settings{.capacity = {.number = capacity}};
    if constexpr (sy::host_policy<Policy>) {
        sy::plan_from_choices(policy, from.ids, from.gates, from.experts, settings, plan, scratch);
    } else {
        const auto ids = sy::copy_to_device(policy, from.ids);
        const auto gates = sy::copy_to_device(policy, from.gates);
        sy::plan_from_choices(policy, ids, gates, from.experts, settings, plan, scratch);
    }
    const auto plan_difference = [&](const plain_plan& want) {
        if constexpr (sy::host_policy<Policy>) {
            return plain_difference(plan.view(), want);
        } else {
            return plain_difference(sy::copy_to_host(policy, plan).view(), want);
        }
    };
    const plain_plan as_taken(from, capacity, block);
    std::string sentence =
        formats_difference(policy, plan, {as_taken, from.tokens, from.k, from.experts, block}, scratch, more);
    sy::sort_rows_by_token(policy, plan, scratch);
    const plain_plan by_token = sorted_by_token(as_taken);
    if (sentence.empty()) sentence = plan_difference(by_token);
    if (sentence.empty()) {
        sentence =
            formats_difference(policy, plan, {by_token, from.tokens, from.k, from.experts, block}, scratch, more);
    }
    return sentence;
}

}  // namespace switchyard_test
