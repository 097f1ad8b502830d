#include "reference/numeric.hpp"
#include "support/routed.hpp"

#include <switchyard/router/switch.hpp>
#include <switchyard/router/top_k.hpp>

#include <doctest/doctest.h>

#include <cmath>

using namespace switchyard_test;

namespace {

using numbers = ref::list<index_t>;

/// p = [[.5, .3, .2], [.1, .6, .3], [.5, .1, .4]]
const ref::matrix worked = logarithm({{0.5, 0.3, 0.2}, {0.1, 0.6, 0.3}, {0.5, 0.1, 0.4}});

constexpr auto before = sy::softmax_order::before;
constexpr auto after = sy::softmax_order::after;

}  // namespace

TEST_CASE_TEMPLATE("top-k: worked by hand", S, float, double) {
    const auto plan = routed<S>(sy::top_k_router{.k = 2, .capacity = {.number = 1}}, worked);
    CHECK(experts_of(plan.view()) == ref::integers{{0, 1}, {1, 2}, {0, 2}});
    // First choices: t0 takes expert 0, t1 expert 1, t2 finds 0 full. Then second ones: t0 finds 1 taken by t1, t1
    // takes 2, t2 finds it taken.
    CHECK(slots_of(plan.view()) == ref::integers{{0, -1}, {0, 0}, {-1, -1}});
    CHECK(table_mismatch(gates_of(plan.view()), {{0.5, 0}, {0.6, 0.3}, {0, 0}}, tolerance<S>::gate) == "");
    CHECK(list_of(plan.view().order, 3) == numbers{0, 2, 3});
    CHECK(list_of(plan.view().offsets, 4) == numbers{0, 1, 2, 3});
    CHECK(list_of(plan.view().load_before, 3) == numbers{2, 2, 2});
    CHECK(list_of(plan.view().load_after, 3) == numbers{1, 1, 1});
    // f = (2, 1, 0) / 3, P = (1.1, 1.0, 0.9) / 3.
    CHECK(is_close(plan.load_balancing_loss(), 0.01 * 3 * (2.2 + 1.0) / 9, tolerance<S>::loss));
    const auto all = routed<S>(sy::top_k_router{.k = 2, .balance = sy::balance_count::all}, worked);
    CHECK(is_close(all.load_balancing_loss(), 0.01 * 3 * (2.2 + 2.0 + 1.8) / 18, tolerance<S>::loss));
    CHECK(all.kept() == 6);  // nothing is dropped without a capacity
}

TEST_CASE("top-k: softmax before, renormalised, after") {
    const auto plain = routed<double>(sy::top_k_router{.k = 2}, worked);
    CHECK(difference(gates_of(plain.view()), {{0.5, 0.3}, {0.6, 0.3}, {0.5, 0.4}}) < 1e-15);
    const ref::matrix normalised{{0.625, 0.375}, {2.0 / 3, 1.0 / 3}, {5.0 / 9, 4.0 / 9}};
    const auto renormalised = routed<double>(sy::top_k_router{.k = 2, .renormalize = true}, worked);
    CHECK(difference(gates_of(renormalised.view()), normalised) < 1e-15);
    const auto later = routed<double>(sy::top_k_router{.k = 2, .softmax = after}, worked);
    CHECK(difference(gates_of(later.view()), normalised) < 1e-15);
    // Gates are normalised over all k choices, also where capacity keeps fewer.
    const auto dropped =
        routed<double>(sy::top_k_router{.k = 2, .renormalize = true, .capacity = {.number = 1}}, worked);
    CHECK(difference(gates_of(dropped.view()), {{0.625, 0}, {2.0 / 3, 1.0 / 3}, {0, 0}}) < 1e-15);
}

TEST_CASE("top-k: k = 1 without normalising is Switch") {
    const auto scores = gaussian_scores(300, 17, 3);
    const auto one = routed<float>(sy::top_k_router{.k = 1, .capacity = {.factor = 1.1}}, scores);
    const auto other = routed<float>(sy::switch_router{.capacity = {.factor = 1.1}}, scores);
    CHECK(experts_of(one.view()) == experts_of(other.view()));
    CHECK(slots_of(one.view()) == slots_of(other.view()));
    CHECK(one.load_balancing_loss() == other.load_balancing_loss());
    for (index_t t = 0; t < 300; ++t) {
        CHECK(is_gate<float>(static_cast<double>(one.gate()(t, 0)), static_cast<double>(other.gate()(t, 0))));
    }
}

TEST_CASE_TEMPLATE("top-k: every shape against the reference, forward and backward", S, float, double) {
    for (const index_t experts : {1, 2, 3, 7, 8, 17, 60, 100}) {
        for (const index_t k : {index_t{1}, index_t{2}, index_t{3}, index_t{8}, index_t{9}, index_t{17}, experts}) {
            if (k > experts) continue;
            for (const index_t tokens : {0, 1, 3, 270}) {
                for (const auto kind : {score_kind::gaussian, score_kind::small_integers}) {
                    const auto scores = draw_scores(kind, tokens, experts, static_cast<std::uint64_t>(tokens + k));
                    const bool normalize = k > 1 && tokens % 2 == 1;
                    const sy::top_k_router router{
                        .k = k,
                        .softmax = normalize ? after : before,
                        .capacity = {.factor = 1.0},
                        .balance = tokens == 3 ? sy::balance_count::all : sy::balance_count::first,
                        .z_weight = 0.01};
                    CHECK(routing_mismatch<S>(router, scores) == "");
                    CHECK(backward_mismatch<S>(router, scores, gaussian_scores(tokens, k, 8)) == "");
                }
            }
        }
    }
    covers<operation("top-k, forward"), operation("top-k, backward"), operation("load-balancing loss and its gradient"),
           operation("z-loss and its gradient")>(sy::seq);
}

TEST_CASE("top-k: hostile scores, masks and both orders") {
    for (int kind = 0; kind < static_cast<int>(score_kind::count); ++kind) {
        for (const int forbidden : {0, 150, 256}) {
            for (const index_t k : {1, 2, 5, 11}) {
                const auto scores = draw_scores(static_cast<score_kind>(kind), 60, 11, 5, forbidden);
                const auto mask = draw_mask(60, 6);
                for (const auto order : {sy::drop_order::position, sy::drop_order::gate}) {
                    const sy::top_k_router router{
                        .k = k, .renormalize = k > 1 && forbidden > 0, .capacity = {.factor = 0.8}, .order = order};
                    CHECK(routing_mismatch<float>(router, scores, mask) == "");
                    CHECK(routing_mismatch<double>(router, scores) == "");
                }
            }
        }
    }
}

TEST_CASE("top-k: forbidden experts follow in index order and get no slot") {
    const ref::matrix scores{{never, 2, never, 1}, {never, never, never, never}};
    const auto plan = routed<float>(sy::top_k_router{.k = 4, .capacity = {.number = 9}}, scores);
    CHECK(experts_of(plan.view()) == ref::integers{{1, 3, 0, 2}, {0, 1, 2, 3}});
    CHECK(slots_of(plan.view()) == ref::integers{{0, 0, -1, -1}, {-1, -1, -1, -1}});
    CHECK(plan.gate()(0, 2) == 0);
    CHECK(list_of(plan.view().load_before, 4) == numbers{0, 1, 0, 1});
    CHECK(sentence_of([&] { routed<float>(sy::top_k_router{.k = 4}, scores); }) ==
          "token 1 has every expert forbidden (-infinity) and may not be dropped");
    // Too few allowed experts are no error where the token has one.
    CHECK(routed<float>(sy::top_k_router{.k = 4}, {{never, 2, never, 1}}).kept() == 2);
    for (const bool renormalize : {false, true}) {
        const auto some = draw_scores(score_kind::gaussian, 50, 6, 2, 120);
        const sy::top_k_router router{.k = 5, .renormalize = renormalize, .capacity = {.number = 7}};
        CHECK(routing_mismatch<float>(router, some) == "");
        CHECK(backward_mismatch<double>(router, some, gaussian_scores(50, 5, 3)) == "");
    }
}

TEST_CASE("top-k: bad scores") {
    auto scores = gaussian_scores(40, 20, 3);
    scores(11, 17) = NAN;
    sy::top_k_router router{.k = 3, .capacity = {.factor = 1}};
    CHECK(sentence_of([&] { routed<float>(router, scores); }) ==
          "scores[11, 17] is NaN: a score must be finite, or -infinity to forbid an expert");
    auto read = scores;
    read(11, 17) = never;
    for (const bool renormalize : {false, true}) {
        router = {.k = 20, .renormalize = renormalize, .capacity = {.factor = 1}, .bad = sy::bad_scores::forbid_nan};
        const auto plan = routed<double>(router, scores);
        const auto want = ref::route_scores(reference_of(router, true), read);
        CHECK(mismatch(plan, want) == "");
        const auto weights = gaussian_scores(40, 20, 4);
        CHECK(table_mismatch(routed_backward(router, plan, scores, weights),
                             ref::route_scores_backward(reference_of(router, true), want, read, weights), 1e-14,
                             1) == "");
    }
}

TEST_CASE_TEMPLATE("top-k: unchecked scores still give k different experts in range", S, float, double) {
    const double bad[] = {NAN, INFINITY, never, 1.0};
    for (index_t experts = 1; experts <= 40; ++experts) {
        std::mt19937 random(static_cast<unsigned>(experts));
        ref::matrix scores(50, experts);
        for (double& score : scores.values) score = bad[random() % 4];
        for (const index_t k : {index_t{1}, (experts + 1) / 2, experts}) {
            const auto plan = routed<S>(
                sy::top_k_router{.k = k, .capacity = {.number = 7}, .bad = sy::bad_scores::unchecked}, scores);
            index_t good = 0;
            for (index_t t = 0; t < 50; ++t) {
                auto seen = ref::filled<int>(experts, 0);
                for (index_t c = 0; c < k; ++c) {
                    const index_t e = plan.expert()(t, c);
                    good += e >= 0 && e < experts && seen[e]++ == 0 ? 1 : 0;
                }
            }
            CHECK(good == 50 * k);
        }
    }
}

TEST_CASE("top-k: logit jitter feeds choices, gates and losses") {
    const auto scores = draw_scores(score_kind::gaussian, 300, 12, 4, 20);
    const sy::top_k_router router{.k = 3, .capacity = {.number = 70}, .logit_jitter = 0.3f, .z_weight = 0.1};
    CHECK(routing_mismatch<double>(router, scores) == "");
    CHECK(backward_mismatch<double>(router, scores, gaussian_scores(300, 3, 3)) == "");
    sy::top_k_router plain = router;
    plain.logit_jitter = 0;
    CHECK(experts_of(routed<double>(router, scores).view()) != experts_of(routed<double>(plain, scores).view()));
}

TEST_CASE("top-k: inference has its own capacity and no losses") {
    const sy::top_k_router router{.k = 1,
                                  .renormalize = true,  // no gradient, and none is wanted here
                                  .capacity = {.number = 1},
                                  .inference_capacity = {.number = 2},
                                  .z_weight = 1};
    const auto plan = routed<float>(router, worked, sy::inference{});
    CHECK(plan.capacity() == 2);
    CHECK(plan.load_balancing_loss() == 0);
    CHECK(plan.gate()(0, 0) == 1);
}

TEST_CASE("top-k: every rule broken is named") {
    const auto sentence = [](const sy::top_k_router& router, const sy::run_mode& mode = sy::training{.stream = 0}) {
        return sentence_of([&] { routed<float>(router, worked, mode); });
    };
    CHECK(sentence({.k = 0}) == "k = 0 must lie in 1..E = 3");
    CHECK(sentence({.k = 4}) == "k = 4 must lie in 1..E = 3");
    CHECK(sentence({.k = -1}, sy::inference{}) == "k = -1 must lie in 1..E = 3");
    CHECK(sentence({.k = 1, .renormalize = true}).find("k = 1 with normalised gates") == 0);
    CHECK(sentence({.k = 1, .softmax = after}).find("k = 1 with normalised gates") == 0);
    CHECK(sentence({.k = 1, .softmax = after}, sy::inference{}) == "");
    CHECK(sentence({.logit_jitter = 1.5f}) == "logit_jitter = 1.5 must lie in [0, 1)");
    CHECK(sentence({.input_dropout = 0.1f}).find("only scores were given") != std::string::npos);
    CHECK(sentence({.z_weight = NAN}).find("z_weight") == 0);
    CHECK(sentence({.capacity = {.factor = INFINITY}}).find("capacity factor = inf") == 0);

    const sy::top_k_router router;
    const auto plan = routed<float>(router, worked);
    CHECK(sentence_of([&] { routed_backward(router, plan, worked, ref::matrix(3, 1)); }) ==
          "d_gates is 3 x 1; the plan has 3 tokens x 2 choices");
    CHECK(sentence_of([&] { routed_backward(sy::top_k_router{.k = 3}, plan, worked, ref::matrix(3, 2)); }) ==
          "the plan was made by a router with other settings");
    CHECK(sentence_of([&] { routed_backward(sy::switch_router{}, plan, worked, ref::matrix(3, 2)); }) ==
          "the plan was made by a router with other settings");
    // Softmax after is before + renormalize: the same settings in other words.
    const auto same = routed<float>(sy::top_k_router{.softmax = after}, worked);
    CHECK_NOTHROW(routed_backward(sy::top_k_router{.renormalize = true}, same, worked, ref::matrix(3, 2)));
}
