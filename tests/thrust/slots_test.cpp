// Slots on a Thrust policy against plain loops on the CPU, from the same choices and gates: integers, exactly.
#include "support/property.hpp"
#include "thrust/device.hpp"

#include <doctest/doctest.h>

#include <algorithm>

using namespace switchyard_test;

namespace {

/// Random choices of every kind: usable, forbidden, padding; gates full of ties, below 0 too, and now and then NaN.
struct problem {
    index_t tokens, experts, choices, capacity;
    std::vector<std::int32_t> code;  // [T, width]
    std::vector<float> gate;
    index_t width;

    problem(index_t t, index_t e, index_t k, index_t limit, index_t list, std::uint64_t seed)
        : tokens(t), experts(e), choices(k), capacity(limit), width(list) {
        std::mt19937_64 random(seed);
        for (index_t i = 0; i < tokens; ++i) {
            const bool padding = random() % 8 == 0;
            for (index_t c = 0; c < width; ++c) {
                const auto expert = static_cast<index_t>(random() % static_cast<std::uint64_t>(experts));
                const bool forbidden = random() % 8 == 0;
                code.push_back(padding     ? sy::padding_choice
                               : forbidden ? sy::forbidden_choice(expert)
                                           : static_cast<std::int32_t>(expert));
                const bool nan = random() % 64 == 0;
                const float size = static_cast<float>(random() % 5) / 4.0f;
                gate.push_back(nan ? std::numeric_limits<float>::quiet_NaN() : random() % 3 == 0 ? -size : size);
            }
        }
    }
};

template <class Plan>
void shape(Plan& plan, const problem& p) {
    plan.resize(p.tokens, p.experts, p.choices, p.capacity);
    plan.made_by({.training = true});
}

void fill_choices(const sy::plan<float>& plan, const problem& p) {
    std::copy(p.code.begin(), p.code.end(), plan.view().expert);
    std::copy(p.gate.begin(), p.gate.end(), plan.view().gate);
}

void fill_choices(const device_plan<float>& plan, const problem& p) {
    if (p.code.empty()) return;
    device.copy_to_device(plan.view().expert, p.code.data(), p.code.size() * sizeof(p.code[0]));
    device.copy_to_device(plan.view().gate, p.gate.data(), p.gate.size() * sizeof(p.gate[0]));
}

/// Kept gates pass through unchanged, dropped ones are 0.
std::string difference(const sy::plan<float>& got, const sy::plan<float>& want) {
    for (index_t i = 0; i < want.tokens() * want.choices(); ++i) {
        const float x = got.view().gate[i];
        const float y = want.view().gate[i];
        if (x != y && !(std::isnan(x) && std::isnan(y))) return said("gate ", i, " is ", x, ", on the CPU ", y);
    }
    return decision_difference(got, want);
}

std::string place(const problem& p, const sy::slot_settings& settings, device_scratch& scratch) {
    sy::plan<float> want;
    shape(want, p);
    fill_choices(want, p);
    sy::workspace host_scratch;
    sy::place_choices(sy::seq, want.view(), settings, host_scratch);
    device_plan<float> made;
    shape(made, p);
    fill_choices(made, p);
    sy::place_choices(device, made.view(), settings, scratch);
    return difference(sy::copy_to_host(device, made), want);
}

std::string place_in_rounds(const problem& p, const sy::slot_settings& settings, device_scratch& scratch) {
    sy::plan<float> want;
    shape(want, p);
    sy::workspace host_scratch;
    sy::place_choices_in_rounds(sy::seq, want.view(), p.code.data(), p.gate.data(), p.width, settings, host_scratch);
    device_plan<float> made;
    shape(made, p);
    const auto code = sy::copy_to_device(device, std::span(p.code));
    const auto gate = sy::copy_to_device(device, std::span(p.gate));
    sy::place_choices_in_rounds(device, made.view(), code.data(), gate.data(), p.width, settings, scratch);
    return difference(sy::copy_to_host(device, made), want);
}

sy::slot_settings any_settings() {
    return {one_of(sy::drop_order::position, sy::drop_order::gate),
            one_of(sy::balance_count::first, sy::balance_count::all)};
}

index_t any_capacity(index_t tokens) { return coin() ? sy::unlimited : whole(0, tokens / 2 + 1); }

}  // namespace

TEST_CASE("slots: worked by hand") {
    // Three experts of two rows; choices (1 0) (1 2) (1 0) (0 1).
    problem p(4, 3, 2, 2, 2, 0);
    p.code = {1, 0, 1, 2, 1, 0, 0, 1};
    p.gate = {.6f, .4f, .7f, .3f, .9f, .1f, .8f, .2f};
    device_plan<float> plan;
    shape(plan, p);
    fill_choices(plan, p);
    device_scratch scratch;
    sy::place_choices(device, plan.view(), {}, scratch);
    const auto made = sy::copy_to_host(device, plan);
    // First choices: tokens 0 and 1 fill expert 1, token 2 finds no row there; token 3 takes expert 0's first row.
    // Second choices: token 0 takes expert 0's second, token 1 expert 2's first, tokens 2 and 3 find none.
    const std::vector<std::int32_t> slots{0, 1, 1, 0, -1, -1, 0, -1};
    CHECK(std::equal(slots.begin(), slots.end(), made.view().slot));
    const std::vector<std::int64_t> order{6, 1, 0, 2, 3};
    CHECK(made.kept() == 5);
    CHECK(std::equal(order.begin(), order.end(), made.view().order));
    CHECK(made.offset(1) == 2);
    CHECK(made.offset(2) == 4);
    CHECK(made.view().load_before[1] == 4);

    // By gate, token 2 comes before 3, 1 and 0.
    fill_choices(plan, p);
    sy::place_choices(device, plan.view(), {.order = sy::drop_order::gate}, scratch);
    const auto by_gate = sy::copy_to_host(device, plan);
    const std::vector<std::int32_t> gate_slots{-1, -1, 1, 0, 0, 1, 0, -1};
    CHECK(std::equal(gate_slots.begin(), gate_slots.end(), by_gate.view().slot));
}

TEST_CASE("slots: the CPU backend's, for any choices, gates, orders and capacities") {
    device_scratch scratch;
    CHECK(holds("slots on Thrust are the CPU's", 600, [&] {
        const index_t tokens = whole(0, 300);
        const index_t experts = whole(1, 20);
        const index_t choices = whole(1, 4);
        const problem p(tokens, experts, choices, any_capacity(tokens), choices, any_seed());
        const auto sentence = place(p, any_settings(), scratch);
        if (!sentence.empty()) RC_FAIL(sentence);
    }));
    covers<operation("capacity and slots, drops by position"), operation("drops by gate")>(device);
}

TEST_CASE("slots: no token left behind, the CPU backend's") {
    device_scratch scratch;
    CHECK(holds("slots in rounds on Thrust are the CPU's", 600, [&] {
        const index_t tokens = whole(0, 300);
        const index_t experts = whole(1, 12);
        const problem p(tokens, experts, 1, any_capacity(tokens), whole(1, 5), any_seed());
        const auto sentence = place_in_rounds(p, any_settings(), scratch);
        if (!sentence.empty()) RC_FAIL(sentence);
    }));
    covers<operation("no token left behind")>(device);
}

TEST_CASE("slots: many tokens, several levels of every sum") {
    device_scratch scratch;
    CHECK(place(problem(10000, 7, 2, 1200, 2, 1), {}, scratch) == "");
    CHECK(place(problem(10000, 700, 2, 20, 2, 2), {.order = sy::drop_order::gate}, scratch) == "");
    CHECK(place_in_rounds(problem(10000, 7, 1, 1200, 3, 3), {.order = sy::drop_order::gate}, scratch) == "");
}
