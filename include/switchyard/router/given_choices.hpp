// Choices made elsewhere, weighed here: by an earlier step or another engine (replay), by a table of token ids (hash
// layers), at random, or in turn. Gates, losses and gradients come from the current scores.
//
//   recipe_router<> router{.k = 8, .normalize = gate_sum::add, .choices = as_view(ids)};   // ids[T, k], int32
//
//   random_choices(policy, experts, {.seed = 1, .step = 7}, ids);     k different experts, each list equally likely
//   round_robin_choices(policy, experts, 0, ids);                     token t: experts t k, t k + 1, ... modulo E
//   table_choices(policy, table[V, k], tokens[T], ids);               ids of token t: the table's row tokens[t]
//
// Everything else of the recipe applies (router/recipe.hpp). Choices are in the order of the ids. Selection bias and
// groups, which only choose, are ignored. An id outside 0 .. E - 1, such as -1, is no choice: it gets expert -1, slot
// -1 and gate 0, and takes no part in a sum or a norm; the others keep their places. A token whose ids are all none is
// padding; where only its first one is, it has no first choice, and drop order by gate has it at 0. A choice that is
// forbidden to its token (a score of -infinity) has no slot and gate 0. An expert that a token names twice has two
// rows; this is not checked. The router keeps the address of the ids, which are in the policy's memory. On kernel
// policies the generic device code reads the rows, one thread per token.
//
// The choices are constants for backward, as in every router. In reinforcement learning the trainer replays the choices
// of the inference engine, so that both have the same policy. Hash layers: Roller et al. 2021, arXiv 2106.04426.
#pragma once

#include <switchyard/backend/policy.hpp>
#include <switchyard/core/arguments.hpp>
#include <switchyard/core/config.hpp>
#include <switchyard/core/error.hpp>
#include <switchyard/core/matrix_view.hpp>
#include <switchyard/core/simd.hpp>
#include <switchyard/plan/slots.hpp>
#include <switchyard/score/gates.hpp>
#include <switchyard/score/noise.hpp>
#include <switchyard/score/select.hpp>

#include <cstdint>
#include <type_traits>

namespace switchyard {
inline namespace SWITCHYARD_TARGET {

/// The selection that takes them, for softmax_pass.
template <class S, class Space>
struct select_given {
    static constexpr bool needs_best = false;
    std::int32_t* expert;  ///< [T, k]
    S* gate;               ///< [T, k]
    matrix_view<const std::int32_t, Space> ids;
    index_t experts;
    gate_rule<S> rule{};

    template <int W>
    SWITCHYARD_HD void choose(index_t token, const S* row, S maximum, S sum, index_t, pack<S, W>, S*) const {
        const index_t k = ids.columns;
        S* const weight = gate + token * k;
        for (index_t c = 0; c < k; ++c) {
            const std::int32_t id = ids(token, c);
            weight[c] = is_expert(id) ? detail::usable(row[id]) : detail::lowest<S>();
            expert[token * k + c] = weight[c] > detail::lowest<S>() ? id : no_choice(id);
        }
        rule.weigh_any(choices_of_row<S, W>{weight, nullptr, k}, pack<S, W>::all(maximum), pack<S, W>::all(sum));
    }
    SWITCHYARD_HD bool is_padding(index_t token) const {
        index_t c = 0;
        while (c < ids.columns && !is_expert(ids(token, c))) {
            ++c;
        }
        return c == ids.columns;
    }
    SWITCHYARD_HD void padding(index_t token) const {
        give_none(token, [](index_t) { return padding_choice; });
    }
    SWITCHYARD_HD void forbid_all(index_t token) const {
        give_none(token, [this, token](index_t c) { return no_choice(ids(token, c)); });
    }

  private:
    SWITCHYARD_HD bool is_expert(std::int32_t id) const { return id >= 0 && id < experts; }
    SWITCHYARD_HD std::int32_t no_choice(std::int32_t id) const {
        return is_expert(id) ? forbidden_choice(id) : absent_choice;
    }
    template <class Code>
    SWITCHYARD_HD void give_none(index_t token, const Code& code) const {
        for (index_t c = 0; c < ids.columns; ++c) {
            expert[token * ids.columns + c] = code(c);
            gate[token * ids.columns + c] = S(0);
        }
    }
};

namespace detail {

template <class Space>
struct draw_choices {
    matrix_view<std::int32_t, Space> ids;
    index_t experts;
    noise_key noise;

    /// Floyd's: the c-th draws from one more expert than the one before, and takes the new one where it drew a taken
    /// one; then it changes places with a drawn one of those before. Every list is equally likely, up to the 2^-24 that
    /// a draw is rounded to.
    SWITCHYARD_HD void operator()(index_t token) const {
        const index_t k = ids.columns;
        for (index_t c = 0; c < k; ++c) {
            const index_t last = experts - k + c;
            const auto u = static_cast<double>(uniform_at(noise, token, c));
            const auto drawn = static_cast<std::int32_t>(u * static_cast<double>(last + 1));
            bool is_taken = false;
            for (index_t before = 0; before < c; ++before) {
                is_taken = is_taken || ids(token, before) == drawn;
            }
            const auto place =
                static_cast<index_t>(static_cast<double>(uniform_at(noise, token, k + c)) * static_cast<double>(c + 1));
            ids(token, c) = ids(token, place);
            ids(token, place) = is_taken ? static_cast<std::int32_t>(last) : drawn;
        }
    }
};

template <class Space>
struct deal_choices {
    matrix_view<std::int32_t, Space> ids;
    index_t experts;
    index_t first_token;

    SWITCHYARD_HD void operator()(index_t token) const {
        for (index_t c = 0; c < ids.columns; ++c) {
            ids(token, c) = static_cast<std::int32_t>(((first_token + token) % experts * ids.columns + c) % experts);
        }
    }
};

template <class Space, class Id>
struct look_up_choices {
    matrix_view<const std::int32_t, Space> table;
    matrix_view<const Id, Space> tokens;
    matrix_view<std::int32_t, Space> ids;

    SWITCHYARD_HD void operator()(index_t t) const {
        const Id token = tokens.rows == ids.rows ? tokens(t, 0) : tokens(0, t);
        const bool is_known = token >= 0 && static_cast<index_t>(token) < table.rows;
        for (index_t c = 0; c < ids.columns; ++c) {
            ids(t, c) = is_known ? table(static_cast<index_t>(token), c) : -1;
        }
    }
};

/// ids that can hold k different experts of E.
template <class Policy, class Ids>
auto choices_to_fill(Ids&& ids, index_t experts) {
    const auto out = as_view(ids);
    require_space<Policy, decltype(out)>();
    static_assert(std::is_same_v<typename decltype(out)::value_type, std::int32_t>,
                  "switchyard: ids of experts are int32 here");
    require(experts >= 1, "E = ", experts, " experts: there must be at least one");
    require(out.columns >= 1 && out.columns <= experts, "k = ", out.columns, " must lie in 1..E = ", experts);
    return out;
}

}  // namespace detail

/// k different experts for each token, by chance: the same for the same key, whatever the policy. O(T k^2).
template <class Policy, class Ids>
void random_choices(const Policy& policy, index_t experts, const noise_key& noise, Ids&& ids) {
    const auto out = detail::choices_to_fill<Policy>(ids, experts);
    for_each_index(
        policy, out.rows,
        detail::draw_choices<typename decltype(out)::space>{out, experts, for_purpose(noise, noise_purpose::choices)});
}

/// Experts in turn: k neighbours for each token, so that loads differ by at most one for any number of tokens. Token 0
/// has the number `first_token` >= 0, where a batch goes on from another.
template <class Policy, class Ids>
void round_robin_choices(const Policy& policy, index_t experts, index_t first_token, Ids&& ids) {
    const auto out = detail::choices_to_fill<Policy>(ids, experts);
    require(first_token >= 0, "first_token = ", first_token, " must not be negative");
    for_each_index(policy, out.rows, detail::deal_choices<typename decltype(out)::space>{out, experts, first_token});
}

/// ids[t] = table[tokens[t]]; -1 for a token outside the table. `tokens`, int32 or int64, is a row or a column.
template <class Policy, class Table, class Tokens, class Ids>
void table_choices(const Policy& policy, const Table& table, const Tokens& tokens, Ids&& ids) {
    const auto rows = as_view(table);
    const auto list = as_view(tokens);
    const auto out = as_view(ids);
    require_space<Policy, decltype(rows), decltype(list), decltype(out)>();
    using id = typename decltype(list)::value_type;
    static_assert(std::is_same_v<id, std::int32_t> || std::is_same_v<id, std::int64_t>,
                  "switchyard: tokens of a table of choices are int32 or int64");
    static_assert(std::is_same_v<typename decltype(rows)::value_type, std::int32_t> &&
                      std::is_same_v<typename decltype(out)::value_type, std::int32_t>,
                  "switchyard: ids of experts are int32 here");
    require(rows.columns == out.columns, "the table has k = ", rows.columns, " experts per token, ids have ",
            out.columns);
    require((list.columns == 1 && list.rows == out.rows) || (list.rows == 1 && list.columns == out.rows), "tokens are ",
            list.rows, " x ", list.columns, " for T = ", out.rows, " tokens");
    for_each_index(policy, out.rows, detail::look_up_choices<typename decltype(out)::space, id>{rows, list, out});
}

}  // namespace SWITCHYARD_TARGET
}  // namespace switchyard
