#include <switchyard/reference/slots.hpp>

#include <doctest/doctest.h>

#include <random>
#include <set>
#include <utility>

namespace ref = switchyard::reference;
using switchyard::index_t;

TEST_CASE("reference slots: by position, the earlier tokens stay") {
    const ref::integers wanted{{0}, {0}, {1}, {0}};
    CHECK(ref::take_slots(wanted, 2, 2, {0, 1, 2, 3}) == ref::integers{{0}, {1}, {0}, {-1}});
    CHECK(ref::take_slots(wanted, 2, ref::unlimited, {0, 1, 2, 3}) == ref::integers{{0}, {1}, {0}, {2}});
    CHECK(ref::take_slots(wanted, 2, 0, {0, 1, 2, 3}) == ref::integers{{-1}, {-1}, {-1}, {-1}});
}

TEST_CASE("reference slots: by gate, the surest tokens stay; equal gates by position") {
    const auto order = ref::token_order(ref::drop_order::gate, {0.7, 0.6, 0.8, 0.9, 0.7});
    CHECK(order == ref::list<index_t>{3, 2, 0, 4, 1});
    CHECK(ref::token_order(ref::drop_order::position, {0.7, 0.6, 0.8}) == ref::list<index_t>{0, 1, 2});
    // Long enough for an unstable sort to show: 40 gates of two values in turn.
    auto gates = ref::filled(40, 0.5);
    for (index_t t = 0; t < 40; t += 2) gates[t] = 0.25;
    const auto long_order = ref::token_order(ref::drop_order::gate, gates);
    for (index_t i = 0; i < 20; ++i) {
        CHECK(long_order[i] == 2 * i + 1);
        CHECK(long_order[20 + i] == 2 * i);
    }
    const ref::integers wanted{{0}, {0}, {1}, {0}};
    CHECK(ref::take_slots(wanted, 2, 2, {3, 2, 0, 1}) == ref::integers{{1}, {-1}, {0}, {0}});
}

TEST_CASE("reference slots: all first choices come before any second") {
    const ref::integers wanted{{0, 1}, {1, 0}, {1, 0}};
    CHECK(ref::take_slots(wanted, 2, 2, {0, 1, 2}) == ref::integers{{0, -1}, {0, 1}, {1, -1}});
}

TEST_CASE("reference slots: choices of -1 take no room") {
    const ref::integers wanted{{-1, 0}, {0, -1}, {0, 1}};
    CHECK(ref::take_slots(wanted, 2, 1, {0, 1, 2}) == ref::integers{{-1, -1}, {0, -1}, {-1, 0}});
    CHECK(ref::count_experts(wanted, 3) == ref::list<index_t>{3, 1, 0});
}

TEST_CASE("reference slots: no token left behind") {
    // Expert 0 has room for one, so tokens 1 and 2 try expert 1, which has room for one more.
    const ref::integers wanted{{0, 1}, {0, 1}, {0, 1}};
    const auto placed = ref::leave_no_token_behind(wanted, 2, 1, {0, 1, 2});
    CHECK(placed.choice == ref::list<index_t>{0, 1, -1});
    CHECK(placed.slot == ref::list<index_t>{0, 0, -1});
    // All first choices are tried before any second: token 1 owns expert 1 although token 0 could use it.
    const auto fair = ref::leave_no_token_behind({{0, 1}, {0, 1}, {1, 0}}, 2, 1, {0, 1, 2});
    CHECK(fair.choice == ref::list<index_t>{0, -1, 0});
}

TEST_CASE("reference slots: offsets, order and loads of a plan") {
    ref::plan made{.experts_count = 3};
    made.experts = {{2, 0}, {0, 2}, {-1, -1}, {2, 0}};
    made.slots = {{0, -1}, {0, 2}, {-1, -1}, {1, 1}};
    made.gates = {{0.9, 0.1}, {0.6, 0.4}, {0, 0}, {0.7, 0.3}};
    ref::index_kept_choices(made);
    CHECK(made.load_after == ref::list<index_t>{2, 0, 3});
    CHECK(made.offsets == ref::list<index_t>{0, 2, 2, 5});
    CHECK(made.order == ref::list<index_t>{2, 7, 0, 6, 3});
    CHECK(made.gates == ref::matrix{{0.9, 0}, {0.6, 0.4}, {0, 0}, {0.7, 0.3}});
    CHECK(made.row(3, 1) == 1);
}

TEST_CASE("reference slots: against counting, on random choices") {
    std::mt19937 random(9);
    const auto below = [&](index_t bound) { return std::uniform_int_distribution<index_t>(0, bound - 1)(random); };
    for (int round = 0; round < 200; ++round) {
        const index_t tokens = below(20);
        const index_t experts = 1 + below(5);
        const index_t choices = 1 + below(3);
        const index_t capacity = below(8);
        ref::integers wanted(tokens, choices);
        for (index_t& e : wanted.values) e = below(experts + 1) - 1;
        const auto by_position = ref::token_order(ref::drop_order::position, ref::filled(tokens, 0.0));
        const auto slots = ref::take_slots(wanted, experts, capacity, by_position);
        std::set<std::pair<index_t, index_t>> seen;
        for (index_t c = 0; c < choices; ++c) {
            for (index_t t = 0; t < tokens; ++t) {
                // The slot is the number of entries before it in choice-major order that name the same expert.
                index_t before = 0;
                for (index_t other_c = 0; other_c <= c; ++other_c) {
                    for (index_t other_t = 0; other_t < (other_c < c ? tokens : t); ++other_t) {
                        before += wanted(other_t, other_c) == wanted(t, c) ? 1 : 0;
                    }
                }
                const bool kept = wanted(t, c) >= 0 && before < capacity;
                CHECK(slots(t, c) == (kept ? before : -1));
                if (kept) CHECK(seen.insert({wanted(t, c), slots(t, c)}).second);
            }
        }
    }
}
