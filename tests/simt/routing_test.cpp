// Routing's kernels on the executor, in every order of threads and blocks, against the CPU backend: decisions and
// counts exactly, gates, losses and gradients to what either may be from the truth.
#include "simt/routing_problem.hpp"

#include <limits>

using namespace routing_tests;

TEST_CASE("routing kernels: the CPU backend's plans and gradients, in every order") {
    for (const index_t experts : {8, 60}) {
        CAPTURE(experts);
        const problem in{gaussian_scores(200, experts, 1), draw_mask(200, 2)};
        check_in_every_order<float>(sy::switch_router{.z_weight = 1e-3}, in);
        check_in_every_order<float>(sy::switch_router{.sample_temperature = 1, .logit_jitter = 0.01f}, in);
        for (const index_t k : {2, 8}) {
            check_in_every_order<float>(list_router(k), in);
        }
    }
    // Rows of a whole block of threads.
    check_in_every_order<float>(list_router(3), {gaussian_scores(70, 1030, 1), draw_mask(70, 2)});
}

TEST_CASE("routing kernels: every width of a row, every number of choices") {
    for (const index_t experts :
         sweep({1, 3, 5, 8, 32, 33, 60, 64, 100, 256, 257, 512, 600, 1000, 1024, 1025, 1500, 4096})) {
        for (const index_t choices : sweep({1, 2, 8, 33, 32, experts})) {
            if (choices > experts || choices > 100) continue;
            CAPTURE(experts);
            CAPTURE(choices);
            const index_t tokens = experts > 1024 ? 9 : 70;
            CHECK(difference<float>(next_executor(), list_router(choices),
                                    {gaussian_scores(tokens, experts, 1), {}, choices > 1}) == "");
        }
        CAPTURE(experts);
        const problem in{gaussian_scores(experts > 1024 ? 9 : 70, experts, 2)};
        CHECK(difference<float>(next_executor(), sy::switch_router{.z_weight = 1e-3}, in) == "");
        CHECK(difference<float>(next_executor(), sy::switch_router{.logit_jitter = 0.02f}, in) == "");
        CHECK(difference<float>(next_executor(), sy::switch_router{.sample_temperature = 1}, in) == "");
    }
}

TEST_CASE("routing kernels: any number of tokens") {
    for (const index_t tokens : sweep({0, 1, 2, 31, 32, 33, 127, 128, 129, 255, 256, 257, 600, 1030, 5000})) {
        CAPTURE(tokens);
        for (const bool is_masked : {false, true}) {
            const problem in{gaussian_scores(tokens, 12, 3), is_masked ? draw_mask(tokens, 4) : ref::mask_list{}};
            CHECK(difference<float>(next_executor(), sy::switch_router{.z_weight = 1e-3}, in) == "");
            CHECK(difference<float>(next_executor(), list_router(3), in) == "");
        }
    }
    // All of it padding.
    const problem nothing{gaussian_scores(40, 6, 3), ref::filled<std::uint8_t>(40, 0)};
    CHECK(difference<float>(next_executor(), sy::switch_router{.z_weight = 1e-3}, nothing) == "");
    CHECK(difference<float>(next_executor(), list_router(3), nothing) == "");
}

TEST_CASE("routing kernels: hostile scores") {
    for (int kind = 0; kind < static_cast<int>(score_kind::count); ++kind) {
        for (const index_t per_mille : sweep({40, 0, 230})) {
            const int forbidden = static_cast<int>(per_mille);
            for (const index_t experts : sweep({70, 5, 20, 1100, 300})) {
                CAPTURE(static_cast<score_kind>(kind));
                CAPTURE(forbidden);
                CAPTURE(experts);
                const index_t tokens = experts > 1000 ? 12 : 80;
                problem in{draw_scores(static_cast<score_kind>(kind), tokens, experts, 5, forbidden),
                           draw_mask(tokens, 6)};
                CHECK(difference<float>(next_executor(), sy::switch_router{.z_weight = 1e-3}, in) == "");
                CHECK(difference<float>(next_executor(), list_router(4), in) == "");
                const bool is_huge = kind == static_cast<int>(score_kind::huge);
                const float jitter = is_huge ? 0.0f : 0.03f;  // which would take the largest floats out of range
                sy::top_k_router noisy{
                    .k = 2, .capacity = {.factor = 0.5}, .logit_jitter = jitter, .balance = sy::balance_count::all};
                CHECK(difference<float>(next_executor(), noisy, in) == "");
                in.is_training = false;
                noisy.inference_capacity = noisy.capacity;
                noisy.renormalize = true;
                CHECK(difference<float>(next_executor(), noisy, in) == "");
            }
        }
    }
}

TEST_CASE("routing kernels: strides and addresses of the scores") {
    for (const lie how : every_lie) {
        CAPTURE(static_cast<int>(how));
        for (const index_t experts : sweep({64, 3, 300, 1200, 16})) {
            CAPTURE(experts);
            const index_t tokens = experts > 1000 ? 9 : 70;
            // What narrow types can hold, so that both backends see the same numbers.
            const ref::matrix table = rounded_to<Eigen::bfloat16>(gaussian_scores(tokens, experts, 7));
            const problem in{table, draw_mask(tokens, 8), true, how};
            const sy::switch_router single{.z_weight = 1e-3};
            CHECK(difference<float>(next_executor(), single, in) == "");
            CHECK(difference<float>(next_executor(), list_router(3), in) == "");
        }
    }
}

TEST_CASE("routing kernels: bad scores are a status, and the other tokens are routed") {
    constexpr double not_a_number = std::numeric_limits<double>::quiet_NaN();
    constexpr double infinity = std::numeric_limits<double>::infinity();
    for (const index_t experts : {6, 64, 1100}) {
        CAPTURE(experts);
        const index_t tokens = 150;
        const auto routed = [&](const auto& router, const ref::matrix& scores) {
            const simt::policy on{&next_executor()};
            sy::basic_plan<float, simt::memory> plan;
            sy::basic_workspace<simt::memory> scratch;
            sy::route_scores(on, router, sy::const_view(placed<float>(scores, lie::dense).view()), sy::training{}, plan,
                             scratch);
            return sy::copy_to_host(on, plan);
        };
        ref::matrix scores = gaussian_scores(tokens, experts, 9);
        scores(120, 2) = not_a_number;
        scores(121, 0) = infinity;
        const auto bad = routed(sy::switch_router{}, scores);
        CHECK(bad.totals().status == sy::plan_status::bad_score);
        CHECK(bad.totals().status_token == 120);
        CHECK(bad.totals().counted_tokens == tokens);
        // The bad tokens have no row; everything else is as if they had been forbidden everything.
        ref::matrix closed = scores;
        for (index_t e = 0; e < experts; ++e) closed(120, e) = closed(121, e) = never;
        const sy::switch_router drops{.capacity = {.factor = 1.25, .minimum = 1}};  // the default
        CHECK(decision_difference(bad, routed(drops, closed)) == "");
        sy::workspace scratch;
        sy::plan<float> want;
        sy::route_scores(sy::seq, drops, stored<float>(closed), sy::training{}, want, scratch);
        CHECK(decision_difference(bad, want) == "");

        // NaN may be forgiven, +infinity may not.
        const auto forgiven = routed(sy::top_k_router{.k = 3, .bad = sy::bad_scores::forbid_nan}, scores);
        CHECK(forgiven.totals().status == sy::plan_status::bad_score);
        CHECK(forgiven.totals().status_token == 121);
        CHECK(forgiven.slot()(120, 0) >= 0);

        // Nobody checks: experts are in range all the same.
        scores(3, 1) = not_a_number;
        for (index_t e = 0; e < experts; ++e) scores(4, e) = not_a_number;
        for (const auto& plan : {routed(sy::top_k_router{.k = 5, .bad = sy::bad_scores::unchecked}, scores),
                                 routed(sy::top_k_router{.k = 1, .bad = sy::bad_scores::unchecked}, scores)}) {
            for (index_t i = 0; i < tokens * plan.choices(); ++i) {
                REQUIRE(plan.view().expert[i] >= 0);
                REQUIRE(plan.view().expert[i] < experts);
            }
        }

        // A token without experts: an error where nothing may be dropped, and found before a later bad score.
        for (index_t e = 0; e < experts; ++e) scores(2, e) = never;
        const auto unroutable = routed(sy::top_k_router{}, scores);
        CHECK(unroutable.totals().status == sy::plan_status::unroutable);
        CHECK(unroutable.totals().status_token == 2);
        CHECK(routed(sy::top_k_router{.capacity = {.factor = 2}}, scores).totals().status_token == 3);
    }
}

TEST_CASE("routing kernels: forgiven NaN is -infinity") {
    ref::matrix scores = gaussian_scores(100, 20, 10);
    ref::matrix forbidden = scores;
    for (index_t t = 0; t < 100; t += 3) {
        for (index_t e = t % 5; e < 20; e += 1 + t % 4) {
            scores(t, e) = std::numeric_limits<double>::quiet_NaN();
            forbidden(t, e) = never;
        }
    }
    for (const index_t k : {1, 4}) {
        sy::top_k_router router{.k = k, .capacity = {.factor = 1}, .z_weight = 1e-3, .bad = sy::bad_scores::forbid_nan};
        simt::for_each_order([&](simt::executor& executor) {
            CHECK(difference<float>(executor, router, {scores}) == "");
            CHECK(difference<float>(executor, router, {forbidden}) == "");
        });
    }
}

TEST_CASE("routing kernels: the same bits in every order, whatever the workspace was used for") {
    const problem in{draw_scores(score_kind::wide, 900, 48, 11, 30), draw_mask(900, 12)};
    const placed<float> scores(in.scores, lie::dense);
    const device_mask padding(in.mask);
    std::vector<sy::plan<float>> plans;
    sy::basic_workspace<simt::memory> scratch;
    simt::for_each_order([&](simt::executor& executor) {
        const simt::policy on{&executor};
        sy::basic_plan<float, simt::memory> plan;
        sy::route_scores(on, list_router(4), sy::const_view(scores.view()), sy::training{.mask = padding.get()}, plan,
                         scratch);
        plans.push_back(sy::copy_to_host(on, plan));
        sy::route_scores(on, sy::switch_router{}, sy::const_view(scores.view()), sy::training{}, plan, scratch);
    });
    const auto& first = plans.front();
    for (const auto& plan : plans) {
        CHECK(decision_difference(plan, first) == "");
        CHECK(array_difference("gate", plan.view().gate, first.view().gate, 900 * 4) == "");
        CHECK(array_difference("row_sum", plan.view().row_sum, first.view().row_sum, 900) == "");
        CHECK(plan.load_balancing_loss() == first.load_balancing_loss());
        CHECK(plan.z_loss() == first.z_loss());
    }
}

TEST_CASE("routing kernels: greedy choice of BASE at inference, in every order") {
    constexpr double infinity = std::numeric_limits<double>::infinity();
    const sy::base_router<> router{};
    const auto routed = [&](simt::executor& executor, const problem& in, const sy::base_router<>& of) {
        const simt::policy on{&executor};
        const placed<float> scores(in.scores, in.how);
        const device_mask padding(in.mask);
        sy::basic_plan<float, simt::memory> made;
        sy::basic_workspace<simt::memory> scratch;
        executor.reset();
        sy::route_scores(on, of, sy::const_view(scores.view()), sy::inference{padding.get()}, made, scratch);
        CHECK(executor.counted().launches == 3);
        return sy::copy_to_host(on, made);
    };
    for (const index_t experts : {1, 7, 64, 1100}) {
        for (const lie how : every_lie) {
            const problem in{draw_scores(score_kind::small_integers, 150, experts, 13), draw_mask(150, 14), false, how};
            sy::workspace scratch;
            sy::plan<float> want;
            sy::route_scores(sy::seq, router, stored<float>(in.scores), sy::inference{mask_of(in.mask)}, want, scratch);
            simt::for_each_order([&](simt::executor& executor) {
                const auto got = routed(executor, in, router);
                CHECK(decision_difference(got, want) == "");
                CHECK(close_numbers(got, want) == "");
                CHECK(got.totals().status == sy::plan_status::good);
            });
        }
    }
    problem in{gaussian_scores(150, 9, 15), {}, false};
    in.scores(70, 2) = std::numeric_limits<double>::quiet_NaN();
    in.scores(71, 3) = infinity;
    CHECK(routed(next_executor(), in, router).totals().status_token == 70);
    CHECK(routed(next_executor(), in, {.bad = sy::bad_scores::forbid_nan}).totals().status_token == 71);
    for (index_t e = 0; e < 9; ++e) in.scores(31, e) = -infinity;
    const auto closed = routed(next_executor(), in, router);
    CHECK(closed.totals().status == sy::plan_status::unroutable);
    CHECK(closed.totals().status_token == 31);
    CHECK(closed.slot()(31, 0) == -1);
}

TEST_CASE("routing kernels: what they do not cover, generic device code does") {
    const auto agrees = [](const auto& router, const ref::matrix& scores) {
        const simt::policy on{&next_executor()};
        sy::basic_plan<float, simt::memory> made;
        sy::basic_workspace<simt::memory> scratch;
        sy::route_scores(on, router, sy::const_view(placed<float>(scores, lie::dense).view()), sy::training{}, made,
                         scratch);
        sy::workspace host_scratch;
        sy::plan<float> want;
        sy::route_scores(sy::seq, router, stored<float>(scores), sy::training{}, want, host_scratch);
        return decision_difference(sy::copy_to_host(on, made), want);
    };
    CHECK(agrees(sy::switch_router{.no_token_left_behind = 3}, gaussian_scores(60, 6, 1)) == "");
    CHECK(agrees(sy::switch_router{}, gaussian_scores(5, 4097, 1)) == "");
    CHECK(agrees(sy::top_k_router{.k = 600}, gaussian_scores(4, 700, 1)) == "");
    ref::matrix apart(40, 5);
    for (index_t t = 0; t < 40; ++t) apart(t, t % 5) = 1 + static_cast<double>((t * 37) % 40) / 16;
    CHECK(agrees(sy::switch_router{.capacity = {.factor = 0.5}, .order = sy::drop_order::gate}, apart) == "");
}
