// Dispatch, combine and their backward against the reference on random plans and rows.
#include "support/rows.hpp"
#include "support/property.hpp"

#include <switchyard/dispatch/combine.hpp>
#include <switchyard/dispatch/dispatch.hpp>

#include <doctest/doctest.h>

using namespace switchyard_test;

namespace {

/// Everything the two directions give, with gates on the experts' output or input.
template <class S>
std::string rows_mismatch(const plan_pair<S>& pair, index_t width, bool on_input, std::uint64_t seed) {
    const auto& [plan, want] = pair;
    const auto weighed = on_input ? ref::gates_weigh::input : ref::gates_weigh::output;
    const auto x = gaussian_scores(want.tokens(), width, seed);
    const auto outputs = gaussian_scores(want.kept(), width, seed + 1);
    const auto d_y = gaussian_scores(want.tokens(), width, seed + 2);
    const sy::combine_settings settings{.apply_gates = !on_input};
    constexpr double allowed = tolerance<S>::gradient;

    const auto rows = sy::dispatch(sy::seq, plan, stored<S>(x), {.apply_gates = on_input});
    auto sentence = table_mismatch(table_of(rows), ref::dispatch(want, x, weighed), allowed);
    if (!sentence.empty()) return "dispatch: " + sentence;

    auto y = filled_matrix<S>(want.tokens(), width, 0.5);
    ref::matrix onto(want.tokens(), width, 0.5);
    sy::combine(sy::seq, plan, stored<S>(outputs), y, {.apply_gates = !on_input, .accumulate = true});
    ref::combine_onto(want, outputs, weighed, onto);
    // Sums may be much smaller than their terms, whose sizes are about 1: so is what rounding is measured by.
    sentence = table_mismatch(table_of(y), onto, allowed, 1);
    if (!sentence.empty()) return "combine: " + sentence;

    sy::matrix<S> d_rows(want.kept(), width);
    auto d_gates = filled_matrix<S>(want.tokens(), want.choices(), 0);
    sy::combine_backward(sy::seq, plan, stored<S>(outputs), stored<S>(d_y), d_rows, d_gates, settings);
    const auto of_combine = ref::combine_backward(want, outputs, d_y, weighed);
    sentence = table_mismatch(table_of(d_rows), of_combine.d_expert_output, allowed);
    if (!sentence.empty()) return "combine_backward, d_rows: " + sentence;
    sentence = table_mismatch(table_of(d_gates), of_combine.d_gates, allowed, 10);
    if (!sentence.empty()) return "combine_backward, d_gates: " + sentence;

    sy::matrix<S> d_x(want.tokens(), width);
    const auto of_dispatch = ref::dispatch_backward(want, x, outputs, weighed);
    if (on_input) {
        sy::dispatch_backward(sy::seq, plan, stored<S>(x), stored<S>(outputs), d_x, d_gates);
        sentence = table_mismatch(table_of(d_gates), of_dispatch.d_gates, allowed, 10);
        if (!sentence.empty()) return "dispatch_backward, d_gates: " + sentence;
    } else {
        sy::dispatch_backward(sy::seq, plan, stored<S>(outputs), d_x);
    }
    sentence = table_mismatch(table_of(d_x), of_dispatch.d_x, allowed, 1);
    return sentence.empty() ? "" : "dispatch_backward: " + sentence;
}

}  // namespace

TEST_CASE("property: dispatch, combine and their backward agree with the reference") {
    const auto property = [] {
        const index_t tokens = whole(0, 40);
        const index_t experts = whole(1, 24);
        const index_t k = whole(1, experts);
        const index_t width = whole(1, 70);
        const auto factor = coin() ? std::optional<double>(static_cast<double>(whole(0, 20)) / 10) : std::nullopt;
        const bool on_input = coin();
        const auto seed = any_seed();
        RC_LOG() << tokens << " tokens, " << experts << " experts, k " << k << ", width " << width
                 << ", capacity factor " << factor.value_or(-1) << ", seed " << seed << "\n";
        const auto mask = coin() && tokens > 0 ? draw_mask(tokens, seed) : ref::mask_list{};
        RC_ASSERT(
            (coin() ? rows_mismatch(random_plan<float>(tokens, experts, k, factor, seed, mask), width, on_input, seed)
                    : rows_mismatch(random_plan<double>(tokens, experts, k, factor, seed, mask), width, on_input,
                                    seed)) == "");
    };
    CHECK(holds("dispatch, combine and their backward agree with the reference", 2000, property));
}
