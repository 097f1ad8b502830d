// The library against the reference on random settings and inputs. What the cases are made of is printed where one
// fails.
#include "support/property.hpp"
#include "support/routed.hpp"

#include <switchyard/router/switch.hpp>
#include <switchyard/router/top_k.hpp>

#include <doctest/doctest.h>

using namespace switchyard_test;

namespace {

/// Scores and a mask.
struct input {
    ref::matrix scores;
    ref::mask_list mask;
};

input draw_input(score_kind last_kind = score_kind::count) {
    const auto kind = static_cast<score_kind>(whole(0, static_cast<long>(last_kind) - 1));
    // One batch in eight is longer than a block: its slots are found another way.
    const bool is_long = whole(0, 7) == 7;
    const index_t tokens = is_long ? whole(250, 1300) : whole(0, coin() ? 12 : 60);
    const index_t experts = whole(1, is_long || coin() ? 9 : 70);
    const int forbidden = one_of(0, 0, 0, 30, 128, 250);
    const auto seed = any_seed();
    const bool masked = coin() && coin();
    RC_LOG() << "scores: " << kind << ", " << tokens << " x " << experts << ", forbidden " << forbidden << ", seed "
             << seed << (masked ? ", masked" : "") << "\n";
    input drawn{draw_scores(kind, tokens, experts, seed, forbidden), {}};
    if (masked && tokens > 0) drawn.mask = draw_mask(tokens, seed);
    return drawn;
}

sy::capacity_rule draw_capacity(index_t tokens) {
    sy::capacity_rule rule;
    switch (whole(0, 5)) {
        case 0:
            rule.number = whole(0, tokens + 3);
            break;
        case 1:
            rule.number = tokens;  // everything has room
            break;
        default:
            rule.factor = static_cast<double>(whole(0, 30)) / 10;
            rule.rounding =
                one_of(sy::capacity_rounding::floor, sy::capacity_rounding::round, sy::capacity_rounding::ceil);
            rule.minimum = whole(0, 3);
            rule.multiple = whole(1, 4);
            rule.counts_choices = coin();
    }
    RC_LOG() << "capacity: " << (rule.number ? static_cast<double>(*rule.number) : rule.factor.value_or(-1))
             << (rule.number ? "" : " as factor") << "\n";
    return rule;
}

sy::switch_router draw_switch(const input& in) {
    sy::switch_router router{.capacity = draw_capacity(in.scores.rows),
                             .inference_capacity = draw_capacity(in.scores.rows)};
    router.order = coin() ? sy::drop_order::position : sy::drop_order::gate;
    router.balance_weight = one_of(0.0, 0.01, 1.0);
    router.z_weight = one_of(0.0, 0.001, 1.0);
    // By gate order rounds would need the reference to order by the library's gates: left to switch_test.
    if (router.order == sy::drop_order::position && coin()) router.no_token_left_behind = whole(0, in.scores.columns);
    RC_LOG() << "switch: order " << static_cast<int>(router.order) << ", rounds " << router.no_token_left_behind
             << "\n";
    return router;
}

sy::top_k_router draw_top_k(const input& in) {
    sy::top_k_router router{.k = whole(1, in.scores.columns)};
    if (coin()) router.k = std::min<index_t>(router.k, 8);
    router.softmax = router.k > 1 && coin() ? sy::softmax_order::after : sy::softmax_order::before;
    router.renormalize = router.k > 1 && coin();
    router.capacity = draw_capacity(in.scores.rows);
    router.inference_capacity = draw_capacity(in.scores.rows);
    router.order = coin() ? sy::drop_order::position : sy::drop_order::gate;
    router.balance = coin() ? sy::balance_count::first : sy::balance_count::all;
    router.balance_weight = one_of(0.0, 0.01, 1.0);
    router.z_weight = one_of(0.0, 0.001, 1.0);
    RC_LOG() << "top-k: k " << router.k << ", softmax " << static_cast<int>(router.softmax) << ", renormalize "
             << router.renormalize << ", order " << static_cast<int>(router.order) << "\n";
    return router;
}

}  // namespace

TEST_CASE("property: Switch routes as the reference does") {
    const auto property = [] {
        const auto in = draw_input();
        const auto router = draw_switch(in);
        const bool is_training = coin() || coin();
        RC_ASSERT((coin() ? routing_mismatch<float>(router, in.scores, in.mask, is_training)
                          : routing_mismatch<double>(router, in.scores, in.mask, is_training)) == "");
    };
    CHECK(holds("Switch routes as the reference does", 4000, property));
}

TEST_CASE("property: top-k routes as the reference does") {
    const auto property = [] {
        const auto in = draw_input();
        const auto router = draw_top_k(in);
        const bool is_training = coin() || coin();
        RC_ASSERT((coin() ? routing_mismatch<float>(router, in.scores, in.mask, is_training)
                          : routing_mismatch<double>(router, in.scores, in.mask, is_training)) == "");
    };
    CHECK(holds("top-k routes as the reference does", 4000, property));
}

TEST_CASE("property: backward agrees with the reference") {
    const auto property = [] {
        // Without huge scores, whose z-loss has gradients of 1e38.
        auto in = draw_input();
        for (double& score : in.scores.values) score = std::abs(score) > 1e9 && score != never ? 1 : score;
        const bool is_top_k = coin();
        auto top_k = draw_top_k(in);
        auto one = draw_switch(in);
        top_k.order = one.order = sy::drop_order::position;
        if (coin() && coin()) top_k.logit_jitter = one.logit_jitter = 0.25f;
        const auto d_gates = gaussian_scores(in.scores.rows, is_top_k ? top_k.k : 1, any_seed());
        // Jitter in float may move choices at near-ties.
        const bool in_double = coin() || one.logit_jitter != 0;
        const auto sentence = [&](const auto& router) {
            return in_double ? backward_mismatch<double>(router, in.scores, d_gates, in.mask)
                             : backward_mismatch<float>(router, in.scores, d_gates, in.mask);
        };
        RC_ASSERT((is_top_k ? sentence(top_k) : sentence(one)) == "");
    };
    CHECK(holds("backward agrees with the reference", 2000, property));
}

TEST_CASE("property: the first bad score in row order is the one named") {
    const auto property = [] {
        auto in = draw_input();
        RC_PRE(in.scores.values.length() > 0);
        for (double& score : in.scores.values) score = score == never ? 0 : score;
        const auto bad = whole(1, 4);
        for (long i = 0; i < bad; ++i) {
            in.scores.values[whole(0, static_cast<long>(in.scores.values.length()) - 1)] = coin() ? NAN : INFINITY;
        }
        std::string want;
        for (index_t i = 0; i < in.scores.values.length() && want.empty(); ++i) {
            const index_t t = i / in.scores.columns;
            if (!ref::is_token(in.mask, t) || std::isfinite(in.scores.values[i])) continue;
            want = said("scores[", t, ", ", i % in.scores.columns, "] is ",
                        std::isnan(in.scores.values[i]) ? "NaN" : "+infinity",
                        ": a score must be finite, or -infinity to forbid an expert");
        }
        const auto router = draw_top_k(in);
        RC_ASSERT(sentence_of([&] { routed<float>(router, in.scores, training_with(in.mask)); }) == want);
    };
    CHECK(holds("the first bad score in row order is the one named", 500, property));
}
