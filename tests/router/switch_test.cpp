#include "reference/numeric.hpp"
#include "support/routed.hpp"

#include <switchyard/router/switch.hpp>

#include <doctest/doctest.h>

#include <array>
#include <cmath>

using namespace switchyard_test;

namespace {

using numbers = ref::list<index_t>;

/// Logits whose softmax is the worked table of the paper's terms: experts 0, 0, 1, 0.
const ref::matrix worked = logarithm({{0.7, 0.3}, {0.6, 0.4}, {0.2, 0.8}, {0.9, 0.1}});

}  // namespace

TEST_CASE_TEMPLATE("switch: the worked example", S, float, double) {
    const auto plan = routed<S>(sy::switch_router{.capacity = {.factor = 1.0}}, worked);
    CHECK(plan.capacity() == 2);
    CHECK(experts_of(plan.view()) == ref::integers{{0}, {0}, {1}, {0}});
    CHECK(slots_of(plan.view()) == ref::integers{{0}, {1}, {0}, {-1}});
    CHECK(table_mismatch(gates_of(plan.view()), {{0.7}, {0.6}, {0.8}, {0}}, tolerance<S>::gate) == "");
    CHECK(list_of(plan.view().offsets, 3) == numbers{0, 2, 3});
    CHECK(list_of(plan.view().order, 3) == numbers{0, 1, 2});
    CHECK(list_of(plan.view().load_before, 2) == numbers{3, 1});
    CHECK(list_of(plan.view().load_after, 2) == numbers{2, 1});
    CHECK(is_close(plan.load_balancing_loss(), 0.011, tolerance<S>::loss));
    CHECK(plan.z_loss() == 0);
    CHECK(plan.kept() == 3);
    CHECK(plan.totals().counted_tokens == 4);
    CHECK(plan.totals().status == sy::plan_status::good);
}

TEST_CASE("switch: batch priority drops the least sure token") {
    const auto plan =
        routed<float>(sy::switch_router{.capacity = {.number = 2}, .order = sy::drop_order::gate}, worked);
    CHECK(slots_of(plan.view()) == ref::integers{{1}, {-1}, {0}, {0}});
    CHECK(list_of(plan.view().order, 3) == numbers{3, 0, 2});
    CHECK(is_close(plan.load_balancing_loss(), 0.011, tolerance<float>::loss));  // counts before capacity
}

TEST_CASE("switch: no token left behind places the token that had none, or keeps its first choice, dropped") {
    const auto plan = routed<double>(sy::switch_router{.capacity = {.number = 2}, .no_token_left_behind = 2}, worked);
    CHECK(experts_of(plan.view()) == ref::integers{{0}, {0}, {1}, {1}});
    CHECK(slots_of(plan.view()) == ref::integers{{0}, {1}, {0}, {1}});
    CHECK(difference(gates_of(plan.view()), {{0.7}, {0.6}, {0.8}, {0.1}}) < 1e-15);
    CHECK(list_of(plan.view().load_before, 2) == numbers{3, 1});
    CHECK(list_of(plan.view().load_after, 2) == numbers{2, 2});
    CHECK(is_close(plan.load_balancing_loss(), 0.011, 1e-14));
    const auto full = routed<double>(sy::switch_router{.capacity = {.number = 1}, .no_token_left_behind = 2}, worked);
    CHECK(experts_of(full.view()) == ref::integers{{0}, {0}, {1}, {0}});
    CHECK(slots_of(full.view()) == ref::integers{{0}, {-1}, {0}, {-1}});
}

TEST_CASE("switch: no token left behind on random scores, by position and by gate") {
    for (const index_t experts : {1, 2, 5, 8, 33}) {
        for (const index_t rounds : {index_t{1}, (experts + 1) / 2, experts}) {
            const auto scores = gaussian_scores(60, experts, static_cast<std::uint64_t>(experts + rounds));
            const auto mask = draw_mask(60, 4);
            sy::switch_router router{.capacity = {.factor = 0.7}, .no_token_left_behind = rounds};
            CHECK(routing_mismatch<float>(router, scores, mask) == "");
            router.order = sy::drop_order::gate;
            // Gates in double differ by far more than rounding here: the reference may order by its own.
            CHECK(mismatch(routed<double>(router, scores, training_with(mask)),
                           ref::route_scores(reference_of(router, true), scores, mask)) == "");
        }
    }
    covers<operation("no token left behind")>(sy::seq);
}

TEST_CASE("switch: the z-loss of two equal logits is (ln 2)^2") {
    const auto plan = routed<double>(sy::switch_router{.capacity = {}, .balance_weight = 0, .z_weight = 1}, {{0, 0}});
    CHECK(is_close(plan.z_loss(), 0.48045301391820144, 1e-15));
    CHECK(plan.load_balancing_loss() == 0);
    // Its input is scores, not probabilities, which would give log(e^.5 + e^.5)^2 here.
    const auto shifted = routed<double>(sy::switch_router{.capacity = {}, .z_weight = 1}, {{5, 5}});
    CHECK(is_close(shifted.z_loss(), std::pow(5 + std::log(2.0), 2), 1e-14));
}

TEST_CASE("switch: padding takes no slot and counts in nothing, whatever stands there") {
    const ref::mask_list mask{0, 1, 1, 0, 1, 1};
    ref::matrix scores(6, 2);
    index_t token = 0;
    for (index_t t = 0; t < 6; ++t) {
        for (index_t e = 0; e < 2; ++e) scores(t, e) = mask[t] != 0 ? worked(token, e) : e == 0 ? NAN : INFINITY;
        token += mask[t] != 0 ? 1 : 0;
    }
    const sy::switch_router router{.capacity = {.factor = 1.0}, .z_weight = 0.5};
    const auto plan = routed<float>(router, scores, training_with(mask));
    CHECK(plan.capacity() == 3);  // counts all six rows
    CHECK(experts_of(plan.view()) == ref::integers{{-1}, {0}, {0}, {-1}, {1}, {0}});
    CHECK(slots_of(plan.view()) == ref::integers{{-1}, {0}, {1}, {-1}, {0}, {2}});
    CHECK(plan.gate()(0, 0) == 0);
    CHECK(list_of(plan.view().load_before, 2) == numbers{3, 1});
    CHECK(is_close(plan.load_balancing_loss(), 0.011, tolerance<float>::loss));
    CHECK(plan.totals().counted_tokens == 4);
    CHECK(std::abs(plan.z_loss()) < 1e-12);  // log of a sum of probabilities is 0
    const auto d = routed_backward(router, plan, scores, ref::matrix(6, 1, 1.0));
    for (const double number : d.values) CHECK(std::isfinite(number));
    CHECK(d(0, 0) == 0);
    CHECK(d(3, 1) == 0);
}

TEST_CASE("switch: -infinity forbids an expert; a token with none left is dropped where drops are legal") {
    const ref::matrix scores{{never, 2}, {never, never}, {1, 0}};
    const sy::switch_router router{.capacity = {.number = 3}, .balance_weight = 1, .z_weight = 1};
    const auto plan = routed<float>(router, scores);
    CHECK(experts_of(plan.view()) == ref::integers{{1}, {0}, {0}});
    CHECK(slots_of(plan.view()) == ref::integers{{0}, {-1}, {0}});
    CHECK(plan.gate()(0, 0) == 1);
    CHECK(plan.gate()(1, 0) == 0);
    CHECK(mismatch(plan, ref::route_scores(reference_of(router, true), scores)) == "");
    CHECK(plan.totals().counted_tokens == 3);  // dropped, but counted
    CHECK(sentence_of([&] { routed<float>(sy::switch_router{.capacity = {}}, scores); }) ==
          "token 1 has every expert forbidden (-infinity) and may not be dropped");
}

TEST_CASE_TEMPLATE("switch: every shape against the reference, forward and backward", S, float, double) {
    for (const index_t experts : {1, 2, 3, 7, 8, 17, 60, 64, 100}) {
        for (const index_t tokens : {0, 1, 5, 63, 300}) {
            for (const auto kind : {score_kind::gaussian, score_kind::small_integers, score_kind::one_expert}) {
                const auto scores = draw_scores(kind, tokens, experts, static_cast<std::uint64_t>(tokens), 5);
                const sy::switch_router router{.z_weight = 0.01};
                CHECK(routing_mismatch<S>(router, scores) == "");
                CHECK(backward_mismatch<S>(router, scores, gaussian_scores(tokens, 1, 8)) == "");
            }
        }
    }
    covers<operation("Switch, forward"), operation("Switch, backward"),
           operation("load-balancing loss and its gradient"), operation("z-loss and its gradient")>(sy::seq);
}

TEST_CASE("switch: hostile scores") {
    for (int kind = 0; kind < static_cast<int>(score_kind::count); ++kind) {
        for (const int forbidden : {0, 100, 256}) {
            const auto scores = draw_scores(static_cast<score_kind>(kind), 70, 9, 5, forbidden);
            const auto mask = draw_mask(70, 5);
            for (const auto order : {sy::drop_order::position, sy::drop_order::gate}) {
                const sy::switch_router router{.capacity = {.factor = 0.9}, .order = order};
                CHECK(routing_mismatch<float>(router, scores, mask) == "");
                CHECK(routing_mismatch<double>(router, scores) == "");
            }
        }
    }
}

TEST_CASE("switch: hostile shapes and capacities") {
    SUBCASE("no tokens") {
        const auto plan = routed<float>(sy::switch_router{.z_weight = 1}, ref::matrix(0, 3));
        CHECK(list_of(plan.view().offsets, 4) == numbers{0, 0, 0, 0});
        CHECK(plan.kept() == 0);
        CHECK(plan.load_balancing_loss() == 0);
        CHECK(plan.z_loss() == 0);
        CHECK(routed_backward(sy::switch_router{.z_weight = 1}, plan, ref::matrix(0, 3), ref::matrix(0, 1)).rows == 0);
    }
    SUBCASE("one expert") {
        const auto plan = routed<float>(sy::switch_router{.capacity = {.factor = 1}}, gaussian_scores(5, 1, 1));
        CHECK(plan.kept() == 5);
        for (index_t t = 0; t < 5; ++t) CHECK(plan.gate()(t, 0) == 1);
        CHECK(is_close(plan.load_balancing_loss(), 0.01, 1e-15));
    }
    SUBCASE("all tokens to one expert") {
        ref::matrix scores(900, 4);
        for (index_t t = 0; t < 900; ++t) scores(t, 2) = 1;
        const auto plan = routed<float>(sy::switch_router{.capacity = {.number = 5}}, scores);
        CHECK(list_of(plan.view().order, 5) == numbers{0, 1, 2, 3, 4});
        CHECK(plan.slot()(5, 0) == -1);
        CHECK(plan.slot()(899, 0) == -1);
        CHECK(list_of(plan.view().offsets, 5) == numbers{0, 0, 0, 5, 5});
        CHECK(list_of(plan.view().load_before, 4) == numbers{0, 0, 900, 0});
    }
    SUBCASE("capacity above T, 0 and none") {
        CHECK(routed<float>(sy::switch_router{.capacity = {.factor = 100}}, worked).kept() == 4);
        CHECK(routed<float>(sy::switch_router{.capacity = {}}, worked).kept() == 4);
        const auto nothing = routed<float>(sy::switch_router{.capacity = {.number = 0}}, worked);
        CHECK(nothing.kept() == 0);
        CHECK(nothing.row_bound() == 0);
        CHECK(gates_of(nothing.view()) == ref::matrix(4, 1));
        CHECK(is_close(nothing.load_balancing_loss(), 0.011, tolerance<float>::loss));
    }
    SUBCASE("padding alone") {
        const auto plan = routed<float>(sy::switch_router{.z_weight = 1}, {{NAN, 0}, {0, NAN}}, training_with({0, 0}));
        CHECK(plan.kept() == 0);
        CHECK(plan.load_balancing_loss() == 0);
        CHECK(plan.z_loss() == 0);
        CHECK(experts_of(plan.view()) == ref::integers{{-1}, {-1}});
    }
    SUBCASE("more experts than tokens") {
        CHECK(routing_mismatch<float>(sy::switch_router{}, gaussian_scores(3, 100, 3)) == "");
        CHECK(routing_mismatch<float>(sy::switch_router{}, gaussian_scores(5, 3000, 3)) == "");
    }
}

TEST_CASE("switch: inference has its own capacity, no noise, no losses, and a plan that backward refuses") {
    const sy::switch_router router{.capacity = {.number = 1},
                                   .inference_capacity = {.number = 3},
                                   .sample_temperature = 5,
                                   .logit_jitter = 0.5f,
                                   .balance_weight = 1,
                                   .z_weight = 1};
    const auto plan = routed<float>(router, worked, sy::inference{});
    CHECK(plan.capacity() == 3);
    CHECK(experts_of(plan.view()) == ref::integers{{0}, {0}, {1}, {0}});
    CHECK(plan.load_balancing_loss() == 0);
    CHECK(plan.z_loss() == 0);
    CHECK(sentence_of([&] { routed_backward(router, plan, worked, ref::matrix(4, 1)); }) ==
          "the plan was made by inference; backward needs one made with training{}");
    CHECK(routing_mismatch<float>(router, gaussian_scores(100, 7, 3), draw_mask(100, 2), false) == "");
    CHECK(routed<float>(sy::switch_router{}, worked, sy::inference{}).capacity() == sy::unlimited);
    CHECK(routed<float>(sy::switch_router{.inference_capacity = {.factor = 2}}, worked, sy::inference{}).capacity() ==
          4);
}

TEST_CASE("switch: by default one token among many experts is routed, in decoding and in training") {
    for (const index_t tokens : {1, 2, 31}) {
        const auto scores = gaussian_scores(tokens, 64, 3);
        const auto best = ref::route_scores(ref::switch_router{.capacity = {}}, scores);
        // Decoding: every token at its best expert.
        const auto decoded = routed<float>(sy::switch_router{}, scores, sy::inference{});
        CHECK(decoded.kept() == tokens);
        CHECK(experts_of(decoded.view()) == best.experts);
        CHECK(decoded.gate()(0, 0) > 0);
        // Training: an expert has room for one.
        const auto trained = routed<float>(sy::switch_router{}, scores);
        CHECK(trained.capacity() == 1);
        CHECK(trained.slot()(0, 0) == 0);
        CHECK(routing_mismatch<float>(sy::switch_router{}, scores) == "");
        CHECK(routing_mismatch<float>(sy::switch_router{}, scores, {}, false) == "");
    }
    // The paper's factor alone drops it: a choice of the caller's.
    const sy::switch_router paper{.inference_capacity = {.factor = 2.0}};
    CHECK(routed<float>(paper, gaussian_scores(31, 64, 3), sy::inference{}).kept() == 0);
    // Above a minimum the factor decides, as before.
    CHECK(routed<float>(sy::switch_router{}, gaussian_scores(640, 8, 3)).capacity() == 100);
}

TEST_CASE_TEMPLATE("switch: sampling chooses by the reference's noise; the gate is the unperturbed probability", S,
                   float, double) {
    const auto scores = draw_scores(score_kind::gaussian, 600, 9, 4, 20);
    const sy::switch_router router{.capacity = {.number = 600}, .sample_temperature = 2, .z_weight = 0.1};
    const auto plan = routed<S>(router, scores);
    const auto same = reference_of(router, true);
    const auto want = ref::route_scores(same, scores, {}, training_noise);
    const auto perturbed = ref::selection_scores(same.noise, scores, training_noise);
    const auto p = ref::softmax_rows(scores);
    index_t near_ties = 0;
    index_t moved = 0;
    for (index_t t = 0; t < 600; ++t) {
        const index_t expert = plan.expert()(t, 0);
        near_ties += is_near_tie(perturbed, t, 1e-5) ? 1 : 0;
        if (!is_near_tie(perturbed, t, 1e-5)) CHECK(expert == want.experts(t, 0));
        CHECK(is_gate<S>(static_cast<double>(plan.gate()(t, 0)), p(t, expert)));
        moved += expert != ref::ranked_experts(ref::row_of(scores, t))[0] ? 1 : 0;
    }
    CHECK(moved > 100);
    CHECK(near_ties < 5);
    CHECK(is_close(plan.z_loss(), want.z_loss, tolerance<S>::loss));  // the noise feeds the choice only
    covers<operation("sampling")>(sy::seq);
    // Another step, stream or seed is other noise; the same one is the same plan.
    auto mode = training_with();
    CHECK(experts_of(routed<S>(router, scores, mode).view()) == experts_of(plan.view()));
    mode.step = 3;
    CHECK(experts_of(routed<S>(router, scores, mode).view()) != experts_of(plan.view()));
    mode = training_with();
    mode.stream = 9;
    CHECK(experts_of(routed<S>(router, scores, mode).view()) != experts_of(plan.view()));
    mode = training_with();
    mode.seed = 8;
    CHECK(experts_of(routed<S>(router, scores, mode).view()) != experts_of(plan.view()));
}

TEST_CASE("switch: sampling never lifts a ban, and draws from the softmax") {
    // P(expert) = softmax(s / temperature); 40,000 draws of one row.
    const double p[] = {0.1, 0.6, 0.3};
    ref::matrix scores(40'000, 4, never);
    for (index_t t = 0; t < scores.rows; ++t) {
        for (index_t e = 0; e < 3; ++e) scores(t, e) = std::log(p[e]);
    }
    const auto plan = routed<float>(sy::switch_router{.capacity = {}, .sample_temperature = 1}, scores);
    CHECK(plan.view().load_before[3] == 0);
    for (index_t e = 0; e < 3; ++e) {
        const double deviation = std::sqrt(p[e] * (1 - p[e]) / 40'000);
        CHECK(std::abs(static_cast<double>(plan.view().load_before[e]) / 40'000 - p[e]) < 5 * deviation);
    }
}

TEST_CASE("switch: logit jitter feeds choice, gates and losses, in training only") {
    const auto scores = draw_scores(score_kind::gaussian, 400, 9, 4, 20);
    const sy::switch_router router{.capacity = {.number = 40}, .logit_jitter = 0.5f, .z_weight = 0.1};
    const auto plan = routed<double>(router, scores);
    CHECK(mismatch(plan, ref::route_scores(reference_of(router, true), scores, {}, training_noise)) == "");
    sy::switch_router plain = router;
    plain.logit_jitter = 0;
    CHECK(plan.z_loss() != routed<double>(plain, scores).z_loss());
    CHECK(experts_of(plan.view()) != experts_of(routed<double>(plain, scores).view()));
    CHECK(backward_mismatch<double>(router, scores, gaussian_scores(400, 1, 3)) == "");
    CHECK(backward_mismatch<float>(router, scores, gaussian_scores(400, 1, 3)) == "");
    covers<operation("logit jitter")>(sy::seq);
}

TEST_CASE("switch: NaN and +infinity are errors that name the first (token, expert)") {
    auto scores = gaussian_scores(600, 5, 3);
    const sy::switch_router router;
    scores(300, 2) = NAN;
    scores(300, 4) = INFINITY;
    scores(550, 1) = INFINITY;
    const auto sentence = [&] { return sentence_of([&] { routed<float>(router, scores); }); };
    CHECK(sentence() == "scores[300, 2] is NaN: a score must be finite, or -infinity to forbid an expert");
    scores(300, 2) = 0;
    CHECK(sentence() == "scores[300, 4] is +infinity: a score must be finite, or -infinity to forbid an expert");
    scores(300, 4) = never;
    CHECK(sentence() == "scores[550, 1] is +infinity: a score must be finite, or -infinity to forbid an expert");
    scores(550, 1) = 0;
    CHECK(sentence() == "");
    // In a masked row nobody looks.
    scores(7, 0) = NAN;
    CHECK(sentence() != "");
    auto mask = ref::filled<std::uint8_t>(600, 1);
    mask[7] = 0;
    CHECK(sentence_of([&] { routed<float>(router, scores, training_with(mask)); }) == "");
    // A plan and a workspace survive the error.
    sy::plan<float> plan;
    sy::workspace scratch;
    CHECK_THROWS_AS(sy::route_scores(sy::seq, router, stored<float>(scores), training_with(), plan, scratch),
                    sy::error);
    scores(7, 0) = 0;
    sy::route_scores(sy::seq, router, stored<float>(scores), training_with(), plan, scratch);
    CHECK(mismatch(plan, ref::route_scores(reference_of(router, true), scores)) == "");
}

TEST_CASE("switch: bad_scores::forbid_nan reads NaN as -infinity, forward and backward") {
    auto scores = draw_scores(score_kind::gaussian, 80, 6, 3, 10);
    auto read = scores;
    std::mt19937 random(3);
    for (index_t i = 0; i < scores.values.length(); ++i) {
        if (random() % 5 == 0) {
            scores.values[i] = NAN;
            read.values[i] = never;
        }
    }
    for (index_t e = 0; e < 6; ++e) scores(9, e) = NAN, read(9, e) = never;
    const sy::switch_router router{.capacity = {.factor = 2}, .z_weight = 0.1, .bad = sy::bad_scores::forbid_nan};
    const auto plan = routed<double>(router, scores);
    const auto want = ref::route_scores(reference_of(router, true), read);
    CHECK(mismatch(plan, want) == "");
    CHECK(plan.slot()(9, 0) == -1);
    const auto weights = gaussian_scores(80, 1, 4);
    CHECK(table_mismatch(routed_backward(router, plan, scores, weights),
                         ref::route_scores_backward(reference_of(router, true), want, read, weights), 1e-14, 1) == "");
    scores(40, 3) = INFINITY;
    CHECK(sentence_of([&] { routed<double>(router, scores); }).find("scores[40, 3] is +infinity") == 0);
    // Nothing to drop to: an error.
    scores(40, 3) = 0;
    CHECK(sentence_of([&] {
              routed<double>(sy::switch_router{.capacity = {}, .bad = sy::bad_scores::forbid_nan}, scores);
          }) == "token 9 has every expert forbidden (-infinity) and may not be dropped");
}

TEST_CASE_TEMPLATE("switch: unchecked scores still give experts in range", S, float, double) {
    const double bad[] = {NAN, INFINITY, never, 1.0};
    for (index_t experts = 1; experts <= 40; ++experts) {
        std::mt19937 random(static_cast<unsigned>(experts));
        ref::matrix scores(90, experts);
        for (double& score : scores.values) score = bad[random() % 4];
        for (index_t e = 0; e < experts; ++e) scores(0, e) = e == 0 ? 5 : static_cast<double>(NAN);
        for (const float temperature : {0.0f, 1.0f}) {
            const sy::switch_router router{
                .capacity = {.number = 3}, .sample_temperature = temperature, .bad = sy::bad_scores::unchecked};
            const auto plan = routed<S>(router, scores);
            index_t in_range = 0;
            for (index_t t = 0; t < 90; ++t) {
                in_range += plan.expert()(t, 0) >= 0 && plan.expert()(t, 0) < experts ? 1 : 0;
            }
            CHECK(in_range == 90);
            CHECK(plan.kept() <= plan.row_bound());
        }
    }
}

TEST_CASE("switch: every rule broken is named") {
    const auto sentence = [](const sy::switch_router& router, const sy::run_mode& mode = sy::training{.stream = 0}) {
        return sentence_of([&] { routed<float>(router, worked, mode); });
    };
    CHECK(sentence({.logit_jitter = 1}) == "logit_jitter = 1 must lie in [0, 1)");
    CHECK(sentence({.logit_jitter = -0.5f}) == "logit_jitter = -0.5 must lie in [0, 1)");
    CHECK(sentence({.logit_jitter = NAN}).find("must lie in [0, 1)") != std::string::npos);
    CHECK(sentence({.sample_temperature = -1}) == "sample_temperature = -1 must be finite and not negative");
    CHECK(sentence({.sample_temperature = INFINITY}) == "sample_temperature = inf must be finite and not negative");
    CHECK(sentence({.balance_weight = NAN}).find("balance_weight") == 0);
    CHECK(sentence({.z_weight = INFINITY}) == "z_weight = inf must be finite");
    CHECK(sentence({.no_token_left_behind = 3}) == "no_token_left_behind = 3 must lie in 0..E = 2");
    CHECK(sentence({.no_token_left_behind = -1}) == "no_token_left_behind = -1 must lie in 0..E = 2");
    CHECK(sentence({.sample_temperature = 1, .no_token_left_behind = 2}).find("exclude each other") !=
          std::string::npos);
    CHECK(sentence({.input_jitter = 0.01f}).find("only scores were given") != std::string::npos);
    CHECK(sentence({.input_dropout = 0.1f}).find("only scores were given") != std::string::npos);
    CHECK(sentence({.input_jitter = 0.01f}, sy::inference{}) == "");
    CHECK(sentence({.input_jitter = 2}).find("input_jitter = 2 must lie in [0, 1)") == 0);
    CHECK(sentence({.capacity = {.factor = -1.0}}) == "capacity factor = -1 must be finite and not negative");
    CHECK(sentence({.capacity = {.factor = 1.0, .number = 1}}) == "a capacity has a factor or a number, not both");
    const std::array<std::uint8_t, 3> three{1, 1, 1};
    CHECK(sentence({}, sy::training{.mask = {three.data(), 3}}) == "the mask has 3 entries for T = 4 tokens");
    CHECK(sentence({}, sy::training{.mask = {three.data(), 4, true}}) ==
          "the mask says that it lies in a device's memory, and this policy works in the host's");
    CHECK(sentence_of([] { routed<float>(sy::switch_router{}, ref::matrix(4, 0)); }) ==
          "scores have E = 0 experts: there must be at least one");
    sy::plan<float> plan;
    sy::workspace scratch;
    CHECK(sentence_of([&] {
              sy::route_scores(sy::seq, sy::switch_router{}, sy::matrix_view<float>(nullptr, 3, 2), sy::training{},
                               plan, scratch);
          }) == "scores are a null pointer");
    CHECK(sentence_of([&] {
              float number = 0;
              const sy::matrix_view<float> view(&number, index_t{1} << 31, 2, 0, 0);
              sy::route_scores(sy::seq, sy::switch_router{}, view, sy::training{}, plan, scratch);
          }) == "T = 2147483648 tokens: a plan numbers slots in 32 bits, split the batch");
}

TEST_CASE("switch backward: every rule broken is named") {
    const sy::switch_router router;
    const auto plan = routed<float>(router, worked);
    const auto sentence = [&](const sy::switch_router& other, const ref::matrix& scores, const ref::matrix& d_gates) {
        return sentence_of([&] { routed_backward(other, plan, scores, d_gates); });
    };
    CHECK(sentence(router, worked, ref::matrix(4, 1)) == "");
    CHECK(sentence(router, worked, ref::matrix(4, 2)) == "d_gates is 4 x 2; the plan has 4 tokens x 1 choices");
    CHECK(sentence(router, ref::matrix(3, 2), ref::matrix(4, 1)) ==
          "the plan was made for 4 tokens x 2 experts, not for 3 x 2");
    CHECK(sentence({.balance_weight = 0.5}, worked, ref::matrix(4, 1)) ==
          "the plan was made by a router with other settings");
    CHECK(sentence({.z_weight = 0.5}, worked, ref::matrix(4, 1)) ==
          "the plan was made by a router with other settings");
    auto other = worked;
    other(0, 0) += 1;
    CHECK(sentence(router, other, ref::matrix(4, 1)).find("the plan was not made from these scores: token 0") == 0);
    sy::workspace scratch;
    sy::matrix<float> small(4, 1);
    CHECK(sentence_of([&] {
              sy::route_scores_backward(sy::seq, router, plan, stored<float>(worked), stored<float>(ref::matrix(4, 1)),
                                        small, scratch);
          }) == "d_scores is 4 x 1; scores is 4 x 2");
    // A top-k plan of the same shape is another router's.
}

TEST_CASE("switch backward: loss_scale scales the losses' gradient alone") {
    const auto scores = gaussian_scores(40, 5, 1);
    const sy::switch_router router{.balance_weight = 0.7, .z_weight = 0.3};
    const auto plan = routed<double>(router, scores);
    const auto zero = ref::matrix(40, 1);
    const auto weights = gaussian_scores(40, 1, 2);
    const auto losses = routed_backward(router, plan, scores, zero);
    auto twice = losses;
    for (double& number : twice.values) number *= 2;
    CHECK(table_mismatch(routed_backward(router, plan, scores, zero, {.loss_scale = 2}), twice, 1e-14) == "");
    CHECK(table_mismatch(routed_backward(router, plan, scores, zero, {.loss_scale = 0}), ref::matrix(40, 5), 0) == "");
    auto both = routed_backward(router, plan, scores, weights, {.loss_scale = 0});
    for (index_t i = 0; i < both.values.length(); ++i) both.values[i] += losses.values[i];
    CHECK(table_mismatch(routed_backward(router, plan, scores, weights), both, 1e-14) == "");
}
