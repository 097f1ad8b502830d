// The recipe router on the executor, in every order of threads and blocks, against the CPU backend: decisions bit by
// bit, gates, losses and gradients to what either may be from the truth. Keys are such as have the same bits
// everywhere: scores, sigmoid and sqrt-softplus.
#include "simt/routing_problem.hpp"
#include "thrust/recipes.hpp"

#include <limits>

using namespace routing_tests;

namespace {

constexpr sy::score_function every_function[] = {sy::score_function::softmax, sy::score_function::sigmoid,
                                                 sy::score_function::sqrt_softplus};

std::string difference_in_next_order(const both_recipes& routers, const ref::matrix& table,
                                     const ref::mask_list& mask = {}, bool is_training = true) {
    return recipe_difference(simt::policy{&next_executor()}, routers, table, mask, is_training);
}

}  // namespace

TEST_CASE("recipe kernels: keys of sigmoid with bias and groups, in every order") {
    const both_recipes routers(
        [](auto& router) {
            router.k = 8;
            router.score = sy::score_function::sigmoid;
            router.groups = {.count = 8, .kept = 4};
            router.normalize = sy::gate_sum::add;
            router.epsilon = 1e-20;
            router.scale = 2.5;
            router.capacity = {.factor = 1.1};
            router.balance_weight = 0.01;
            router.z_weight = 1e-3;
        },
        {.selection = spread_bias(64, 11)});
    const auto scores = gaussian_scores(130, 64, 1);
    simt::for_each_order([&](simt::executor& executor) {
        CAPTURE(executor.order().name());
        CHECK(recipe_difference(simt::policy{&executor}, routers, scores, draw_mask(130, 2), true) == "");
    });
    covers<operation("recipe, forward"), operation("recipe, backward"), operation("update of the bias")>(
        simt::policy{});
}

TEST_CASE("recipe kernels: keys with bias and groups, every width of a row, every number of choices") {
    for (const index_t experts : sweep({64, 8, 1, 16, 40, 96, 257, 300, 1100})) {
        for (const index_t k : sweep({1, 2, 8, 17, 40})) {
            for (const bool grouped : {false, true}) {
                if (k > experts || (grouped && (experts % 4 != 0 || k > experts / 2))) continue;
                CAPTURE(experts);
                CAPTURE(k);
                CAPTURE(grouped);
                const both_recipes routers(
                    [&](auto& router) {
                        router.k = k;
                        router.score = k % 2 == 0 ? sy::score_function::sigmoid : sy::score_function::sqrt_softplus;
                        if (grouped) {
                            router.groups = {.count = 4,
                                             .kept = 2,
                                             .summed = 1 + k % 3,
                                             .masked = k == 8 ? sy::group_mask::zero : sy::group_mask::forbidden};
                        }
                        router.capacity = {.number = 1000};  // where all is forbidden, tokens are dropped
                        if (k == 17) router.balance_weight = 0.01;
                    },
                    {.selection = spread_bias(experts, 7)});
                const index_t tokens = experts > 1000 ? 5 : 33;
                CHECK(difference_in_next_order(routers, draw_scores(score_kind::gaussian, tokens, experts, 3, 60),
                                               draw_mask(tokens, 4)) == "");
            }
        }
    }
}

TEST_CASE("recipe kernels: groups of every shape, of ties and of what is forbidden") {
    struct shape {
        index_t experts, groups;
    };
    // Groups in neighbours, in pieces of one thread, in both, in what is no power of two; rows that fill their threads
    // and such as do not.
    for (const shape& of : {shape{256, 8}, shape{256, 2}, shape{256, 64}, shape{512, 2}, shape{512, 16}, shape{384, 3},
                            shape{64, 8}, shape{64, 2}, shape{48, 6}, shape{160, 8}, shape{250, 5}}) {
        for (const index_t summed : sweep({2, 1, 3})) {
            for (const auto kind : {score_kind::gaussian, score_kind::small_integers, score_kind::signed_zeros}) {
                CAPTURE(of.experts);
                CAPTURE(of.groups);
                CAPTURE(summed);
                CAPTURE(kind);
                const index_t kept = (of.groups + 1) / 2;
                const both_recipes routers(
                    [&](auto& router) {
                        router.k = std::min<index_t>(of.experts / of.groups * kept, summed == 1 ? 4 : 8);
                        router.score = sy::score_function::sigmoid;
                        router.groups.count = of.groups;
                        router.groups.kept = kept;
                        router.groups.summed = summed;
                        router.groups.masked = summed == 1 ? sy::group_mask::zero : sy::group_mask::forbidden;
                        router.capacity.number = 1000;
                    },
                    {.selection = kind == score_kind::gaussian ? spread_bias(of.experts, 7) : std::vector<float>{}});
                for (const int forbidden : {0, 700}) {
                    CHECK(difference_in_next_order(routers, draw_scores(kind, 37, of.experts, 3, forbidden),
                                                   draw_mask(37, 4)) == "");
                }
            }
        }
    }
}

TEST_CASE("recipe kernels: keys are scores, with every function and rule of gates, and a bias of the logits") {
    struct rule {
        sy::gate_sum sum;
        double epsilon, scale;
    };
    for (const auto function : every_function) {
        for (const rule& gates : {rule{sy::gate_sum::none, 0, 2.5}, rule{sy::gate_sum::add, 0, 1},
                                  rule{sy::gate_sum::add, 0.25, 3}, rule{sy::gate_sum::clamp, 0.5, 1}}) {
            for (const index_t k : {1, 4, 8, 33}) {
                if (k == 1 && gates.sum == sy::gate_sum::add && gates.epsilon == 0) continue;
                for (const bool biased : {false, true}) {
                    CAPTURE(static_cast<int>(function));
                    CAPTURE(static_cast<int>(gates.sum));
                    CAPTURE(k);
                    CAPTURE(biased);
                    const both_recipes routers(
                        [&](auto& router) {
                            router.k = k;
                            router.score = function;
                            router.normalize = gates.sum;
                            router.epsilon = gates.epsilon;
                            router.scale = gates.scale;
                            router.capacity = {.factor = 1.1};
                            if (k > 4) router.z_weight = 1e-3;
                            if (biased && k == 4) router.logit_jitter = 0.02f;
                        },
                        {.logit = biased ? spread_bias(60, 7) : std::vector<float>{}});
                    const index_t tokens = k == 33 ? 3 : 70;  // a block of threads a row takes its time
                    const auto scores = draw_scores(score_kind::gaussian, tokens, 60, 5, 20);
                    CHECK(difference_in_next_order(routers, scores, draw_mask(tokens, 6)) == "");
                    CHECK(difference_in_next_order(routers, scores, {}, false) == "");
                }
            }
        }
    }
}

TEST_CASE("recipe kernels: multiplier, softcap, jitter, p-norms and scales of experts, forward and backward") {
    for (const auto function : every_function) {
        for (const index_t k : {2, 8, 33}) {
            for (const int turn : {0, 1, 2, 3}) {
                CAPTURE(static_cast<int>(function));
                CAPTURE(k);
                CAPTURE(turn);
                const both_recipes routers(
                    [&](auto& router) {
                        router.k = k;
                        router.score = function;
                        router.logit_multiplier = turn == 0 ? 1 : 0.75;
                        router.softcap = turn == 1 ? 0 : 2.5;
                        if (turn == 2) router.logit_jitter = 0.02f;
                        if (turn >= 2) router.balance_weight = 0.01;
                        router.normalize = turn == 1 ? sy::gate_sum::norm : sy::gate_sum::none;
                        router.norm_power = 2;
                        router.scale = 1.5;
                        router.capacity = {.factor = 1.1};
                        if (turn == 3) router.order = sy::drop_order::gate;
                    },
                    {.logit = turn == 0 ? std::vector<float>{} : spread_bias(60, 7),
                     .scale = turn == 1 ? std::vector<float>{} : spread_bias(60, 13)});
                const index_t tokens = k == 33 ? 3 : 70;
                const auto scores = draw_scores(score_kind::gaussian, tokens, 60, 5, 20);
                CHECK(difference_in_next_order(routers, scores, draw_mask(tokens, 6)) == "");
                CHECK(difference_in_next_order(routers, scores, {}, false) == "");
            }
        }
    }
}

TEST_CASE("recipe kernels: choices made elsewhere") {
    for (const auto function : every_function) {
        for (const index_t tokens : {0, 70}) {
            both_recipes routers(
                [&](auto& router) {
                    router.k = 3;
                    router.score = function;
                    router.normalize = sy::gate_sum::add;
                    router.capacity = {.factor = 0.9};
                    router.balance_weight = 0.01;
                },
                {.logit = spread_bias(24, 7)});
            routers.give_choices(tokens, 24);
            CHECK(difference_in_next_order(routers, draw_scores(score_kind::gaussian, tokens, 24, 5, 20),
                                           draw_mask(tokens, 6)) == "");
        }
    }
    covers<operation("choices made elsewhere")>(simt::policy{});
}

TEST_CASE("recipe kernels: a softmax over chosen scores far below the row's maximum") {
    for (const index_t experts : {8, 16, 40, 100, 260, 600}) {
        for (const index_t k : {2, 3, 17, 40}) {
            if (4 * k > 3 * experts || (k == 40 && experts > 100)) continue;
            CAPTURE(experts);
            CAPTURE(k);
            for_each_far_choice(experts, k,
                                [](const both_recipes& routers, const ref::matrix& table, const auto& mask) {
                                    CHECK(difference_in_next_order(routers, table, mask) == "");
                                });
        }
    }
}

TEST_CASE("recipe kernels: hostile scores") {
    for (const auto kind : {score_kind::small_integers, score_kind::equal, score_kind::one_expert, score_kind::wide,
                            score_kind::equal_rows}) {
        for (const bool with_keys : {false, true}) {
            CAPTURE(kind);
            CAPTURE(with_keys);
            const both_recipes routers(
                [&](auto& router) {
                    router.k = 6;
                    router.score = sy::score_function::sigmoid;
                    if (with_keys) router.groups = {.count = 4, .kept = 2};
                    router.normalize = sy::gate_sum::add;
                    router.epsilon = 1e-20;
                    router.capacity = {.number = 20};
                },
                {.selection = with_keys ? spread_bias(24, 5) : std::vector<float>{}});
            CHECK(difference_in_next_order(routers, draw_scores(kind, 60, 24, 7, 100), draw_mask(60, 8)) == "");
        }
    }
    // Nobody checks scores, or biases: experts are different ones, in range, all the same.
    auto scores = gaussian_scores(50, 24, 9);
    for (index_t t = 0; t < 50; ++t) {
        scores(t, t % 24) = std::numeric_limits<double>::infinity();
        scores(t, t % 7) = std::numeric_limits<double>::quiet_NaN();
    }
    std::vector<float> broken(24, std::numeric_limits<float>::quiet_NaN());
    broken[3] = 1;
    for (const auto function : every_function) {
        const both_recipes routers(
            [&](auto& router) {
                router.k = 6;
                router.score = function;
                router.groups = {.count = 4, .kept = 2};
                router.bad = sy::bad_scores::unchecked;
            },
            {.selection = broken});
        const simt::policy on{&next_executor()};
        device_plan<float> made;
        device_scratch scratch;
        sy::route_scores(on, routers.there, sy::copy_to_device(on, stored<float>(scores)), sy::training{}, made,
                         scratch);
        const auto plan = sy::copy_to_host(on, made);
        for (index_t t = 0; t < 50; ++t) {
            std::vector<int> seen(24, 0);
            for (index_t c = 0; c < 6; ++c) {
                const index_t e = plan.expert()(t, c);
                REQUIRE(e >= 0);
                REQUIRE(e < 24);
                CHECK(seen[static_cast<std::size_t>(e)]++ == 0);
            }
        }
    }
}

TEST_CASE("recipe kernels: experts without rows, and combine with their tokens") {
    for_each_rowless_recipe([](const both_recipes& routers) {
        const bool drops = routers.host.capacity.factor || routers.host.capacity.number;
        for (const index_t tokens : {5, 130}) {
            const auto table = draw_scores(score_kind::gaussian, tokens, 24, 3, drops ? 60 : 0);
            const auto mask = draw_mask(tokens, 4);
            CHECK(difference_in_next_order(routers, table, mask) == "");
            CHECK(difference_in_next_order(routers, table, {}, false) == "");
            CHECK(identity_difference(simt::policy{&next_executor()}, routers, table, mask, 37) == "");
        }
    });
    covers<operation("identity experts")>(simt::policy{});
}
