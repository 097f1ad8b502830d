// Plans from choices in plain loops, and what dispatch, combine and their backward make of them. Numbers are small
// multiples of powers of two, so that every sum is exact and its order says nothing.
#pragma once

#include "support/compare.hpp"

#include <switchyard/core/memory.hpp>
#include <switchyard/plan/plan.hpp>

#include <algorithm>
#include <cstdint>
#include <random>
#include <string>
#include <vector>

namespace switchyard_test {

/// Choices as a framework has them: ids [T, k], some of them outside 0 .. E - 1, and gates.
struct given_choices {
    index_t tokens, k, experts;
    sy::matrix<std::int64_t> ids;
    sy::matrix<float> gates;

    given_choices(index_t t, index_t c, index_t e) : tokens(t), k(c), experts(e), ids(t, c), gates(t, c) {
        std::fill_n(gates.data(), t * c, 1.0f);
    }

    sy::matrix<std::int32_t> narrow_ids() const {
        sy::matrix<std::int32_t> narrow(tokens, k);
        std::transform(ids.data(), ids.data() + tokens * k, narrow.data(),
                       [](std::int64_t id) { return static_cast<std::int32_t>(id); });
        return narrow;
    }
};

/// k <= E different experts for each token, of which `absent_in_8` of 8 are not here.
inline given_choices random_given(index_t tokens, index_t k, index_t experts, std::uint64_t seed,
                                  std::uint64_t absent_in_8 = 1) {
    given_choices made(tokens, k, experts);
    std::mt19937_64 random(seed);
    std::vector<std::int64_t> all(static_cast<std::size_t>(experts));
    for (index_t t = 0; t < tokens; ++t) {
        for (index_t e = 0; e < experts; ++e) all[static_cast<std::size_t>(e)] = e;
        for (index_t c = 0; c < k; ++c) {
            const auto rest = static_cast<std::uint64_t>(experts - c);
            std::swap(all[static_cast<std::size_t>(c)], all[static_cast<std::size_t>(c) + random() % rest]);
            const std::int64_t outside[] = {-1, experts, -7, std::int64_t{1} << 30};
            made.ids(t, c) = random() % 8 < absent_in_8 ? outside[random() % 4] : all[static_cast<std::size_t>(c)];
            made.gates(t, c) = static_cast<float>(random() % 5) / 4;
        }
    }
    return made;
}

/// The plan of such choices, each array by a loop over its definition.
struct plain_plan {
    std::vector<std::int32_t> expert, slot;
    std::vector<float> gate;
    std::vector<std::int64_t> asked, kept, offsets, order;
    index_t kept_choices = 0;

    plain_plan(const given_choices& from, index_t capacity, index_t row_block = 1)
        : expert(static_cast<std::size_t>(from.tokens * from.k), -1),
          slot(expert.size(), -1),
          gate(expert.size(), 0.0f),
          asked(static_cast<std::size_t>(from.experts), 0),
          kept(asked),
          offsets(1, 0) {
        for (index_t c = 0; c < from.k; ++c) {
            for (index_t t = 0; t < from.tokens; ++t) {
                const auto id = from.ids(t, c);
                const auto at = static_cast<std::size_t>(t * from.k + c);
                if (id < 0 || id >= from.experts) continue;
                const auto e = static_cast<std::size_t>(id);
                expert[at] = static_cast<std::int32_t>(id);
                if (asked[e]++ < capacity) {
                    slot[at] = static_cast<std::int32_t>(kept[e]++);
                    gate[at] = from.gates(t, c);
                    ++kept_choices;
                }
            }
        }
        for (const auto load : kept) {
            index_t rows = load;
            while (rows % row_block != 0) ++rows;
            offsets.push_back(offsets.back() + rows);
        }
        order.assign(static_cast<std::size_t>(offsets.back()), -1);
        for (std::size_t at = 0; at < expert.size(); ++at) {
            if (slot[at] >= 0) order[static_cast<std::size_t>(row(at))] = static_cast<std::int64_t>(at);
        }
    }

    index_t row(std::size_t at) const {
        return slot[at] < 0 ? -1 : offsets[static_cast<std::size_t>(expert[at])] + slot[at];
    }
    index_t rows() const { return offsets.back(); }
};

template <class A, class B>
std::string list_difference(const char* name, const A* got, const std::vector<B>& want) {
    for (std::size_t i = 0; i < want.size(); ++i) {
        if (!(got[i] == want[i])) return said(name, "[", i, "] is ", got[i], ", not ", want[i]);
    }
    return "";
}

/// The first number in which a plan differs.
template <class S>
std::string plain_difference(const sy::plan_view<S>& got, const plain_plan& want) {
    if (got.totals->kept != want.kept_choices) return said("kept ", got.totals->kept, ", not ", want.kept_choices);
    for (const auto& sentence :
         {list_difference("expert", got.expert, want.expert), list_difference("slot", got.slot, want.slot),
          list_difference("gate", got.gate, want.gate), list_difference("load_before", got.load_before, want.asked),
          list_difference("load_after", got.load_after, want.kept),
          list_difference("offsets", got.offsets, want.offsets), list_difference("order", got.order, want.order)}) {
        if (!sentence.empty()) return sentence;
    }
    if (got.row_bound < want.rows()) return said("row_bound ", got.row_bound, " is below ", want.rows(), " rows");
    return "";
}

/// A matrix of small whole numbers; `seed` tells one from another.
inline sy::matrix<float> whole_numbers(index_t rows, index_t columns, index_t seed) {
    sy::matrix<float> made(rows, columns);
    for (index_t i = 0; i < rows * columns; ++i) made.data()[i] = static_cast<float>((i * 7 + seed * 3) % 11 - 5);
    return made;
}

/// Dispatch, combine and their backward in plain loops, for rows of D numbers. Rows without a choice are 0.
struct plain_rows {
    sy::matrix<float> dispatched, y, d_rows, d_gates, d_x;

    plain_rows(const plain_plan& plan, index_t tokens, index_t k, index_t rows, const sy::matrix<float>& x,
               const sy::matrix<float>& outputs, const sy::matrix<float>& d_y)
        : dispatched(rows, x.columns()),
          y(tokens, x.columns()),
          d_rows(rows, x.columns()),
          d_gates(tokens, k),
          d_x(tokens, x.columns()) {
        for (auto* const m : {&dispatched, &y, &d_rows, &d_gates, &d_x}) {
            std::fill_n(m->data(), m->rows() * m->columns(), 0.0f);
        }
        for (std::size_t at = 0; at < plan.expert.size(); ++at) {
            const auto t = static_cast<index_t>(at) / k;
            const auto c = static_cast<index_t>(at) % k;
            const index_t r = plan.row(at);
            for (index_t j = 0; r >= 0 && j < x.columns(); ++j) {
                dispatched(r, j) = x(t, j);
                y(t, j) += plan.gate[at] * outputs(r, j);
                d_rows(r, j) = plan.gate[at] * d_y(t, j);
                d_gates(t, c) += outputs(r, j) * d_y(t, j);
                d_x(t, j) += outputs(r, j);
            }
        }
    }
};

/// The first number in which two matrices differ; NaN differs from everything.
inline std::string number_difference(const char* name, const sy::matrix<float>& got, const sy::matrix<float>& want) {
    if (got.rows() != want.rows() || got.columns() != want.columns()) {
        return said(name, " is ", got.rows(), " x ", got.columns(), ", not ", want.rows(), " x ", want.columns());
    }
    for (index_t i = 0; i < want.rows() * want.columns(); ++i) {
        if (!(got.data()[i] == want.data()[i])) {
            return said(name, "[", i, "] is ", got.data()[i], ", not ", want.data()[i]);
        }
    }
    return "";
}

}  // namespace switchyard_test
