#include "support/backends.hpp"
#include "support/compare.hpp"

#include <switchyard/plan/slots.hpp>

#include <doctest/doctest.h>

#include <limits>
#include <random>

using namespace switchyard_test;

namespace {

using numbers = ref::list<index_t>;

/// Choices as the library encodes them, and what they are.
struct encoded_choices {
    ref::integers code;     ///< e, forbidden_choice(e) or padding_choice
    ref::integers wanted;   ///< e, or -1 where no slot is asked for
    ref::integers experts;  ///< e, or -1 in padding
    ref::matrix gates;
};

encoded_choices encoded(const ref::integers& code, const ref::matrix& gates) {
    encoded_choices choices{code, code, code, gates};
    for (index_t i = 0; i < code.values.length(); ++i) {
        const auto c = static_cast<std::int32_t>(code.values[i]);
        choices.experts.values[i] = sy::decoded_choice(c);
        choices.wanted.values[i] = c >= 0 ? c : -1;
    }
    return choices;
}

encoded_choices random_choices(index_t tokens, index_t experts, index_t k, std::uint64_t seed) {
    std::mt19937_64 random(seed);
    ref::integers code(tokens, k);
    ref::matrix gates(tokens, k);
    for (index_t t = 0; t < tokens; ++t) {
        const bool padding = random() % 6 == 0;
        for (index_t c = 0; c < k; ++c) {
            const auto e = static_cast<index_t>(random() % static_cast<std::uint64_t>(experts));
            code(t, c) = padding ? sy::padding_choice : random() % 8 == 0 ? sy::forbidden_choice(e) : e;
            gates(t, c) = padding ? 0 : (random() % 2 == 0 ? 1 : -1) * static_cast<double>(random() % 5) / 8;  // ties
        }
    }
    return encoded(code, gates);
}

void put(sy::plan<double>& plan, const encoded_choices& choices, index_t experts, index_t capacity) {
    plan.resize(choices.code.rows, experts, choices.code.columns, capacity);
    plan.made_by({.training = true});  // balance_load is counted for backward
    for (index_t i = 0; i < choices.code.values.length(); ++i) {
        plan.view().expert[i] = static_cast<std::int32_t>(choices.code.values[i]);
        plan.view().gate[i] = choices.gates.values[i];
    }
}

ref::plan reference_plan(const encoded_choices& choices, index_t experts, index_t capacity, sy::drop_order order) {
    ref::plan want{.experts_count = experts, .capacity = capacity};
    auto top = ref::filled(choices.code.rows, 0.0);
    for (index_t t = 0; t < top.length(); ++t) top[t] = choices.gates(t, 0);
    want.experts = choices.experts;
    want.gates = choices.gates;
    want.slots =
        ref::take_slots(choices.wanted, experts, capacity, ref::token_order(static_cast<ref::drop_order>(order), top));
    want.load_before = ref::count_experts(choices.wanted, experts);
    ref::index_kept_choices(want);
    return want;
}

sy::plan<double> placed(const encoded_choices& choices, index_t experts, index_t capacity,
                        const sy::slot_settings& settings) {
    sy::plan<double> plan;
    sy::workspace scratch;
    put(plan, choices, experts, capacity);
    sy::place_choices(sy::seq, plan.view(), settings, scratch);
    plan.view().totals->load_balancing_loss = plan.view().totals->z_loss = 0;
    return plan;
}

}  // namespace

TEST_CASE("slots: codes of forbidden choices and padding") {
    CHECK(sy::decoded_choice(5) == 5);
    CHECK(sy::decoded_choice(sy::padding_choice) == -1);
    for (const index_t e : {0, 1, 7, 100'000}) {
        CHECK(sy::forbidden_choice(e) < sy::padding_choice);
        CHECK(sy::decoded_choice(sy::forbidden_choice(e)) == e);
    }
}

TEST_CASE("slots: by position, the worked example") {
    const auto choices = encoded({{0}, {0}, {1}, {0}}, {{0.7}, {0.6}, {0.8}, {0.9}});
    const auto plan = placed(choices, 2, 2, {});
    CHECK(slots_of(plan.view()) == ref::integers{{0}, {1}, {0}, {-1}});
    CHECK(plan.gate()(3, 0) == 0);
    CHECK(list_of(plan.view().order, 3) == numbers{0, 1, 2});
    CHECK(list_of(plan.view().offsets, 3) == numbers{0, 2, 3});
    CHECK(list_of(plan.view().load_before, 2) == numbers{3, 1});
    CHECK(list_of(plan.view().load_after, 2) == numbers{2, 1});
    CHECK(plan.kept() == 3);
}

TEST_CASE("slots: by gate, the worked example; equal gates by token") {
    const auto choices = encoded({{0}, {0}, {1}, {0}}, {{0.7}, {0.6}, {0.8}, {0.9}});
    const auto plan = placed(choices, 2, 2, {.order = sy::drop_order::gate});
    CHECK(slots_of(plan.view()) == ref::integers{{1}, {-1}, {0}, {0}});
    CHECK(list_of(plan.view().order, 3) == numbers{3, 0, 2});
    const auto equal =
        placed(encoded({{0}, {0}, {0}, {0}}, {{0.5}, {0.6}, {0.5}, {0.5}}), 1, 3, {.order = sy::drop_order::gate});
    CHECK(slots_of(equal.view()) == ref::integers{{1}, {0}, {2}, {-1}});
}

TEST_CASE("slots: by gate, those below 0 by their values, both zeros as one, NaN last") {
    constexpr double nan = std::numeric_limits<double>::quiet_NaN();
    const ref::matrix gates{{-0.5}, {-0.0}, {nan}, {-0.25}, {0.0}, {-0.5}, {-1e30}, {1e-300}, {-0.0}, {-1e-300}};
    const auto plan = placed(encoded(ref::integers(10, 1, 0), gates), 1, 9, {.order = sy::drop_order::gate});
    CHECK(slots_of(plan.view()) == ref::integers{{6}, {1}, {-1}, {5}, {2}, {7}, {8}, {0}, {3}, {4}});
}

TEST_CASE("slots: all first choices take places before any second") {
    // Token 0's second choice is expert 1, but token 1's first comes before it.
    const auto plan = placed(encoded({{0, 1}, {1, 0}}, {{0.9, 0.1}, {0.6, 0.4}}), 2, 1, {});
    CHECK(slots_of(plan.view()) == ref::integers{{0, -1}, {0, -1}});
    // By gate the tokens go in falling order of their first gate, and still all first choices first.
    const auto by_gate = placed(encoded({{0, 1}, {0, 1}, {1, 0}}, {{0.6, 0.4}, {0.9, 0.1}, {0.5, 0.5}}), 2, 2,
                                {.order = sy::drop_order::gate});
    CHECK(slots_of(by_gate.view()) == ref::integers{{1, -1}, {0, 1}, {0, -1}});
}

TEST_CASE("slots: the balance loss counts first choices or all, before capacity, and no forbidden one") {
    const auto choices = encoded({{0, 1}, {0, 2}, {1, sy::forbidden_choice(0)}, {-1, -1}}, ref::matrix(4, 2, 0.5));
    const auto first = placed(choices, 3, 1, {});
    CHECK(list_of(first.view().balance_load, 3) == numbers{2, 1, 0});
    CHECK(list_of(first.view().load_before, 3) == numbers{2, 2, 1});
    CHECK(first.totals().counted_tokens == 3);
    const auto all = placed(choices, 3, 1, {.balance = sy::balance_count::all});
    CHECK(list_of(all.view().balance_load, 3) == numbers{2, 2, 1});
    CHECK(all.gate()(2, 1) == 0);
    CHECK(all.expert()(2, 1) == 0);
    CHECK(all.expert()(3, 0) == -1);
}

TEST_CASE("slots: random choices against the reference, every order, capacity and policy") {
    for (const index_t tokens : {0, 1, 5, 255, 256, 257, 1100}) {
        for (const index_t experts : {1, 3, 8, 60}) {
            const index_t k = experts == 1 ? 1 : 1 + tokens % 3;
            const auto choices = random_choices(tokens, experts, k, static_cast<std::uint64_t>(tokens + experts));
            for (const index_t capacity : {index_t{0}, index_t{1}, tokens / experts, tokens + 5, sy::unlimited}) {
                for (const auto order : {sy::drop_order::position, sy::drop_order::gate}) {
                    const auto want = reference_plan(choices, experts, capacity, order);
                    for_each_policy([&](const auto& policy) {
                        sy::plan<double> plan;
                        sy::workspace scratch;
                        put(plan, choices, experts, capacity);
                        sy::place_choices(policy, plan.view(), {.order = order}, scratch);
                        plan.view().totals->load_balancing_loss = plan.view().totals->z_loss = 0;
                        CHECK(mismatch(plan, want) == "");
                        covers<operation("capacity and slots, drops by position"), operation("drops by gate")>(policy);
                    });
                }
            }
        }
    }
}

TEST_CASE("slots: more experts than tokens in a block") {
    // Counters of a block must not outweigh its choices: blocks grow with E.
    CHECK(sy::rows_per_block(100, 64) == 256);
    CHECK(sy::rows_per_block(100, 4096) == 1024);
    const auto choices = random_choices(3000, 5000, 2, 9);
    CHECK(mismatch(placed(choices, 5000, 1, {}), reference_plan(choices, 5000, 1, sy::drop_order::position)) == "");
}

TEST_CASE("slots in rounds: no token is left behind while an expert has room") {
    const ref::integers code{{0, 1}, {0, 1}, {1, 0}, {0, 1}};
    const ref::matrix gates{{0.7, 0.3}, {0.6, 0.4}, {0.8, 0.2}, {0.9, 0.1}};
    const auto candidates = [&] {
        std::vector<std::int32_t> list;
        for (const index_t c : code.values) list.push_back(static_cast<std::int32_t>(c));
        return list;
    }();
    sy::plan<double> plan;
    sy::workspace scratch;
    plan.resize(4, 2, 1, 2);
    plan.made_by({.training = true});
    SUBCASE("by position") {
        sy::place_choices_in_rounds(sy::seq, plan.view(), candidates.data(), gates.values.data(), 2, {}, scratch);
        CHECK(experts_of(plan.view()) == ref::integers{{0}, {0}, {1}, {1}});
        CHECK(slots_of(plan.view()) == ref::integers{{0}, {1}, {0}, {1}});
        CHECK(gates_of(plan.view()) == ref::matrix{{0.7}, {0.6}, {0.8}, {0.1}});
        CHECK(list_of(plan.view().order, 4) == numbers{0, 1, 2, 3});
    }
    SUBCASE("by gate") {
        sy::place_choices_in_rounds(sy::seq, plan.view(), candidates.data(), gates.values.data(), 2,
                                    {.order = sy::drop_order::gate}, scratch);
        CHECK(experts_of(plan.view()) == ref::integers{{0}, {1}, {1}, {0}});
        CHECK(slots_of(plan.view()) == ref::integers{{1}, {1}, {0}, {0}});
        CHECK(gates_of(plan.view()) == ref::matrix{{0.7}, {0.4}, {0.8}, {0.9}});
        CHECK(list_of(plan.view().order, 4) == numbers{3, 0, 2, 1});
    }
    SUBCASE("no room anywhere: the first choice, dropped") {
        plan.resize(4, 2, 1, 1);
        plan.made_by({.training = true});
        sy::place_choices_in_rounds(sy::seq, plan.view(), candidates.data(), gates.values.data(), 2, {}, scratch);
        CHECK(experts_of(plan.view()) == ref::integers{{0}, {0}, {1}, {0}});
        CHECK(slots_of(plan.view()) == ref::integers{{0}, {-1}, {0}, {-1}});
        CHECK(gates_of(plan.view()) == ref::matrix{{0.7}, {0}, {0.8}, {0}});
    }
    // Loads before capacity and what the loss counts are first choices.
    CHECK(list_of(plan.view().load_before, 2) == numbers{3, 1});
    CHECK(list_of(plan.view().balance_load, 2) == numbers{3, 1});
    CHECK(plan.totals().counted_tokens == 4);
}
