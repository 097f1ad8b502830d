// Bugs that routers elsewhere have had, one test each.
#include "reference/numeric.hpp"
#include "support/routed.hpp"

#include <switchyard/backend/eigen.hpp>
#include <switchyard/dispatch/combine.hpp>
#include <switchyard/dispatch/dispatch.hpp>
#include <switchyard/router/base.hpp>
#include <switchyard/router/route.hpp>
#include <switchyard/router/switch.hpp>
#include <switchyard/router/top_k.hpp>
#include <switchyard/score/sigmoid.hpp>

#include <doctest/doctest.h>

#include <cmath>

using namespace switchyard_test;

namespace {

const ref::matrix worked = logarithm({{0.7, 0.3}, {0.6, 0.4}, {0.2, 0.8}, {0.9, 0.1}});

}  // namespace

TEST_CASE("others' bug: jitter leaks into what experts receive") {
    const auto x = stored<float>(gaussian_scores(50, 8, 1));
    const auto w = stored<float>(gaussian_scores(8, 4, 2));
    const auto copy = stored<float>(gaussian_scores(50, 8, 1));
    const sy::switch_router router{.capacity = {}, .input_jitter = 0.5f, .input_dropout = 0.2f};
    const auto plan = sy::route(sy::seq, router, x, w, training_with());
    const auto rows = sy::dispatch(sy::seq, plan, x);
    index_t same = 0;
    for (index_t r = 0; r < plan.kept(); ++r) {
        const index_t token = plan.view().token_of(plan.view().order[r]);
        for (index_t d = 0; d < 8; ++d) same += rows(r, d) == copy(token, d) ? 1 : 0;
    }
    CHECK(same == 50 * 8);
    // The noise was there: the scores are not those of the tokens as they are.
    const auto plain = sy::route(sy::seq, sy::switch_router{.capacity = {}}, x, w, training_with());
    CHECK(plan.scores()(0, 0) != plain.scores()(0, 0));
}

TEST_CASE("others' bug: a dropped token gets a scaled hidden state instead of zeros") {
    const auto plan = routed<float>(sy::switch_router{.capacity = {.number = 2}}, worked);
    const auto rows = sy::dispatch(sy::seq, plan, stored<float>(ref::matrix(4, 3, 5.0)));
    sy::matrix<float> y(4, 3);
    for (index_t i = 0; i < 12; ++i) y.data()[i] = 99;
    sy::combine(sy::seq, plan, rows, y);
    for (index_t d = 0; d < 3; ++d) {
        CHECK(y(3, d) == 0);
        CHECK(y(0, d) == doctest::Approx(3.5));
    }
}

TEST_CASE("others' bug: the z-loss is fed probabilities") {
    // Of scores: ((1 + ln 2)^2 + (-3 + ln 2)^2) / 2. Probabilities would make both rows equal.
    const auto plan = routed<double>(sy::switch_router{.capacity = {}, .z_weight = 1}, {{1, 1}, {-3, -3}});
    const double ln2 = std::log(2.0);
    CHECK(is_close(plan.z_loss(), (std::pow(1 + ln2, 2) + std::pow(ln2 - 3, 2)) / 2, 1e-14));
}

TEST_CASE("others' bug: cumsum along the wrong axis, so that capacity is never enforced") {
    const auto plan = routed<float>(sy::top_k_router{.k = 2, .capacity = {.number = 3}}, ref::matrix(1000, 2));
    CHECK(plan.kept() == 6);
    CHECK(plan.view().load_after[0] == 3);
    CHECK(plan.view().load_after[1] == 3);
}

TEST_CASE("others' bug: the loss mixes layers") {
    // Two layers with one workspace and plans of their own: each has its own loss, whatever the other did.
    sy::workspace scratch;
    sy::plan<float> first;
    sy::plan<float> second;
    const auto a = gaussian_scores(300, 8, 1);
    const auto b = draw_scores(score_kind::one_expert, 300, 8, 2);
    sy::route_scores(sy::seq, sy::switch_router{}, stored<float>(a), training_with(), first, scratch);
    sy::route_scores(sy::seq, sy::switch_router{}, stored<float>(b), training_with(), second, scratch);
    CHECK(first.load_balancing_loss() == routed<float>(sy::switch_router{}, a).load_balancing_loss());
    CHECK(second.load_balancing_loss() == routed<float>(sy::switch_router{}, b).load_balancing_loss());
}

TEST_CASE("others' bug: a capacity above the number of tokens crashes") {
    const auto plan = routed<float>(sy::switch_router{.capacity = {.number = 1'000'000'000'000}}, worked);
    CHECK(plan.kept() == 4);
    CHECK(plan.row_bound() == 4);
    CHECK(routed<float>(sy::top_k_router{.k = 2, .capacity = {.factor = 64}}, worked).kept() == 8);
}

TEST_CASE("others' bug: slot C when all tokens pick one expert") {
    for (const index_t tokens : {5, 300, 1000}) {
        const auto plan = routed<float>(sy::switch_router{.capacity = {.number = 4}}, ref::matrix(tokens, 3));
        std::int32_t largest = -1;
        for (index_t t = 0; t < tokens; ++t) largest = std::max(largest, plan.slot()(t, 0));
        CHECK(largest == 3);
        CHECK(plan.kept() == 4);
    }
}

TEST_CASE("others' bug: forbidden experts set to 0 instead of -infinity") {
    // All allowed scores are below 0: an expert masked with 0 would win.
    const ref::matrix scores{{-5, never, -6}, {never, -9, -8}};
    const auto plan = routed<float>(sy::top_k_router{.k = 2}, scores);
    CHECK(experts_of(plan.view()) == ref::integers{{0, 2}, {2, 1}});
    CHECK(plan.gate()(0, 0) + plan.gate()(0, 1) == doctest::Approx(1));
}

TEST_CASE("others' bug: perturbed scores used as weights") {
    // Sampling chooses by s + Gumbel; the gate must be the softmax of s at that expert.
    const auto scores = gaussian_scores(500, 6, 5);
    const auto plan = routed<double>(sy::switch_router{.capacity = {}, .sample_temperature = 3}, scores);
    const auto p = ref::softmax_rows(scores);
    double worst = 0;
    for (index_t t = 0; t < 500; ++t) worst = std::max(worst, std::abs(plan.gate()(t, 0) - p(t, plan.expert()(t, 0))));
    CHECK(worst < 1e-14);
}

TEST_CASE("others' bug: k = 1 with softmax after top-k has no gradient, and nobody says so") {
    for (const auto& router : {sy::top_k_router{.k = 1, .softmax = sy::softmax_order::after},
                               sy::top_k_router{.k = 1, .renormalize = true}}) {
        CHECK(sentence_of([&] { routed<float>(router, worked); }).find("no gradient") != std::string::npos);
    }
    // Switch's own gate has one.
    const auto plan = routed<double>(sy::switch_router{.balance_weight = 0}, worked);
    const auto d = routed_backward(sy::switch_router{.balance_weight = 0}, plan, worked, ref::matrix(4, 1, 1.0));
    CHECK(std::abs(d(0, 0)) > 0.1);
}

TEST_CASE("others' bug: saturated sigmoids become ties") {
    // In float both gates are 1; the choice is by score.
    const ref::matrix scores{{18, 25, 20}, {17, 17.5, 30}};
    CHECK(sy::sigmoid(18.0f) == sy::sigmoid(25.0f));
    const auto greedy = routed<float>(sy::base_router<>{}, scores, sy::inference{});
    CHECK(experts_of(greedy.view()) == ref::integers{{1}, {2}});
}

TEST_CASE("others' bug: the permutation's gradient is permuted the wrong way") {
    // d_x[t] must be what came back for t's rows, and order o inverse must be the identity.
    const auto plan = routed<double>(sy::top_k_router{.k = 2}, gaussian_scores(40, 5, 6));
    sy::matrix<double> d_rows(plan.kept(), 1);
    for (index_t r = 0; r < plan.kept(); ++r)
        d_rows(r, 0) = static_cast<double>(plan.view().token_of(plan.view().order[r]));
    sy::matrix<double> d_x(40, 1);
    sy::dispatch_backward(sy::seq, plan, d_rows, d_x);
    for (index_t t = 0; t < 40; ++t) CHECK(d_x(t, 0) == 2.0 * static_cast<double>(t));
    for (index_t r = 0; r < plan.kept(); ++r) CHECK(plan.view().row_of(plan.view().order[r]) == r);
}

TEST_CASE("others' bug: the order inside an expert changes from run to run") {
    const auto scores = draw_scores(score_kind::small_integers, 3000, 6, 7);
    const sy::top_k_router router{.k = 2, .capacity = {.factor = 0.9}};
    const auto first = routed<float>(router, scores);
    const auto want = list_of(first.view().order, first.kept());
    for (int run = 0; run < 5; ++run) {
        const auto again = routed<float>(router, scores);
        CHECK(list_of(again.view().order, again.kept()) == want);
    }
    // And is token order: rows of an expert rise within a choice.
    for (index_t e = 0; e < 6; ++e) {
        index_t falls = 0;
        for (index_t r = first.offset(e) + 1; r < first.offset(e + 1); ++r) {
            falls += want[r] / 2 < want[r - 1] / 2 ? 1 : 0;
        }
        CHECK(falls <= 1);  // once, from first to second choices
    }
}

TEST_CASE("others' bug: dropping by position with an unstable top-k") {
    // Every score the same: the first C tokens are kept, not any C of them.
    const auto plan = routed<float>(sy::switch_router{.capacity = {.number = 100}}, ref::matrix(5000, 1));
    for (index_t t = 0; t < 5000; ++t) {
        if ((plan.slot()(t, 0) >= 0) != (t < 100)) FAIL_CHECK("token " << t);
    }
    // Batch priority with equal gates is the same.
    const auto by_gate = routed<float>(sy::switch_router{.capacity = {.number = 100}, .order = sy::drop_order::gate},
                                       ref::matrix(5000, 1));
    CHECK(slots_of(by_gate.view()) == slots_of(plan.view()));
}

TEST_CASE("others' bug: equal rows get unequal gates, and priority turns on rounding") {
    // Rows are computed four together and the rest alone: the same row must have the same bits either way.
    for (const index_t experts : {1, 3, 7, 8, 16, 23, 60, 64, 100}) {
        const auto one = gaussian_scores(1, experts, static_cast<std::uint64_t>(experts));
        ref::matrix scores(11, experts);
        for (index_t t = 0; t < 11; ++t) {
            for (index_t e = 0; e < experts; ++e) scores(t, e) = one(0, e);
        }
        const auto mask = ref::mask_list{1, 1, 0, 1, 1, 1, 1, 0, 1, 1, 1};
        const auto single = routed<float>(sy::switch_router{.capacity = {}}, scores, training_with(mask));
        const index_t k = std::min<index_t>(experts, 2);
        const auto several = routed<double>(sy::top_k_router{.k = k}, scores, training_with(mask));
        for (index_t t = 0; t < 11; ++t) {
            if (mask[t] == 0) continue;
            CHECK(single.gate()(t, 0) == single.gate()(0, 0));
            CHECK(several.gate()(t, k - 1) == several.gate()(0, k - 1));
        }
    }
}

TEST_CASE("others' bug: duplicate or out-of-range experts on NaN rows") {
    ref::matrix scores = gaussian_scores(10, 7, 1);
    for (index_t e = 0; e < 7; ++e) scores(4, e) = NAN;
    scores(6, 0) = scores(6, 3) = scores(6, 6) = NAN;
    for (const auto bad : {sy::bad_scores::unchecked, sy::bad_scores::forbid_nan}) {
        const auto plan = routed<float>(sy::top_k_router{.k = 7, .capacity = {.number = 10}, .bad = bad}, scores);
        for (index_t t = 0; t < 10; ++t) {
            auto seen = ref::filled<int>(7, 0);
            for (index_t c = 0; c < 7; ++c) {
                REQUIRE(plan.expert()(t, c) >= 0);
                REQUIRE(plan.expert()(t, c) < 7);
                CHECK(seen[plan.expert()(t, c)]++ == 0);
            }
        }
    }
}

TEST_CASE("others' bug: counts and sums in the storage type") {
    // bfloat16 counts are exact to 256: 1000 tokens on one expert must have slots 0 .. 999.
    sy::matrix<Eigen::bfloat16> scores(1000, 2);
    for (index_t t = 0; t < 1000; ++t) {
        scores(t, 0) = Eigen::bfloat16(1.0f);
        scores(t, 1) = Eigen::bfloat16(0.0f);
    }
    const auto plan = sy::route_scores(sy::seq, sy::switch_router{.capacity = {}}, scores, training_with());
    for (index_t t = 0; t < 1000; ++t) {
        if (plan.slot()(t, 0) != t) FAIL_CHECK("token " << t << " has slot " << plan.slot()(t, 0));
    }
    // f = (1, 0), P_0 = 1 / (1 + e^-1): a sum over tokens in bfloat16 would be far off.
    CHECK(is_close(plan.load_balancing_loss(), 0.02 / (1 + std::exp(-1.0)), 256 * tolerance<float>::epsilon));
}

TEST_CASE("others' bug: softmax overflows") {
    const auto plan = routed<float>(sy::top_k_router{.k = 2, .z_weight = 1e-3}, {{1e4, 9e3}, {-1e4, -1e4}, {300, 300}});
    CHECK(plan.gate()(0, 0) == 1);
    CHECK(plan.gate()(1, 0) == 0.5f);
    CHECK(plan.gate()(2, 1) == 0.5f);
    CHECK(std::isfinite(plan.z_loss()));
}
