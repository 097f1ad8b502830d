// Choices alone: ids and gates are those of the plan, for every router, and nothing else is written.
#include "support/backends.hpp"
#include "support/choices.hpp"

#include <switchyard/router/base.hpp>
#include <switchyard/router/route.hpp>
#include <switchyard/router/route_choices.hpp>
#include <switchyard/router/switch.hpp>
#include <switchyard/router/top_k.hpp>

#include <doctest/doctest.h>

#include <cmath>
#include <cstdint>
#include <limits>

using namespace switchyard_test;

namespace {

template <class Router, class S>
void check_choices(const Router& router, const sy::matrix<S>& scores, const sy::inference& mode = {}) {
    const auto plan = sy::route_scores(sy::seq, router, scores, mode);
    const auto& want = plan.view();
    const index_t k = plan.choices();
    for_each_policy([&](const auto& policy) {
        sy::matrix<std::int32_t> ids(scores.rows(), k);
        sy::matrix<S> gates(scores.rows(), k);
        sy::workspace scratch;
        sy::route_choices(policy, router, scores, mode, ids, gates, scratch);
        const auto allocated = sy::route_choices(policy, router, scores, mode);
        REQUIRE(allocated.ids.rows() == scores.rows());
        REQUIRE(allocated.ids.columns() == k);
        for (index_t i = 0; i < scores.rows() * k; ++i) {
            CHECK(ids.data()[i] == want.expert[i]);
            CHECK(gates.data()[i] == want.gate[i]);
            CHECK(allocated.ids.data()[i] == want.expert[i]);
            CHECK(allocated.gates.data()[i] == want.gate[i]);
        }
    });
}

}  // namespace

TEST_CASE("route_choices: the worked example, logits (ln 3, 0, ln 4), k = 2") {
    const auto scores = stored<float>(ref::matrix{{std::log(3.0), 0, std::log(4.0)}});
    const auto before = sy::route_choices(sy::seq, sy::top_k_router{.k = 2}, scores);
    CHECK(before.ids(0, 0) == 2);
    CHECK(before.ids(0, 1) == 0);
    CHECK(before.gates(0, 0) == doctest::Approx(.5));
    CHECK(before.gates(0, 1) == doctest::Approx(.375));
    const auto after = sy::route_choices(sy::seq, sy::top_k_router{.k = 2, .renormalize = true}, scores);
    CHECK(after.gates(0, 0) == doctest::Approx(.5714).epsilon(1e-4));
    CHECK(after.gates(0, 1) == doctest::Approx(.4286).epsilon(1e-4));
}

TEST_CASE("route_choices: ids and gates of the plan, for every router, mask and number of tokens") {
    for (const index_t tokens : {0, 1, 200, 700}) {
        auto scores = stored<float>(gaussian_scores(tokens, 12, static_cast<std::uint64_t>(tokens)));
        check_choices(sy::switch_router{}, scores);
        check_choices(sy::base_router<>{}, scores);
        check_choices(sy::top_k_router{.k = 3}, scores);
        check_choices(sy::top_k_router{.k = 12, .renormalize = true}, scores);
        check_choices(sy::top_k_router{.k = 2, .order = sy::drop_order::gate}, scores);
        const auto mask = draw_mask(tokens, 1);
        check_choices(sy::top_k_router{.k = 3}, scores, {.mask = mask_of(mask)});
        // Forbidden experts among the chosen ones keep their places, without weight.
        for (index_t t = 0; t < tokens; ++t) {
            for (index_t e = 0; e < 10; ++e) scores(t, e) = -std::numeric_limits<float>::infinity();
        }
        check_choices(sy::top_k_router{.k = 4}, scores, {.mask = mask_of(mask)});
        check_choices(sy::switch_router{}, stored<double>(gaussian_scores(tokens, 1, 3)));
    }
}

TEST_CASE("route_choices: what is refused, in a sentence") {
    const auto scores = stored<float>(gaussian_scores(8, 4, 1));
    sy::matrix<std::int32_t> ids(8, 2);
    sy::matrix<float> gates(8, 2);
    sy::workspace scratch;
    const auto refuses = [&](const auto& router, const auto& from, const auto& to_ids, const auto& to_gates,
                             const char* sentence) {
        CHECK_THROWS_WITH_AS(sy::route_choices(sy::seq, router, from, {}, to_ids, to_gates, scratch), sentence,
                             sy::error);
    };
    const sy::top_k_router two{.k = 2};
    sy::matrix<std::int32_t> wide_ids(8, 4);
    const sy::matrix_view<std::int32_t> strided(wide_ids.data(), 8, 2, 4, 1);
    refuses(sy::top_k_router{.k = 3}, scores, ids.view(), gates.view(), "ids is 8 x 2; the router makes 8 x 3 choices");
    refuses(two, stored<float>(gaussian_scores(7, 4, 1)), ids.view(), gates.view(),
            "ids is 8 x 2; the router makes 7 x 2 choices");
    refuses(two, scores, ids.view(), sy::matrix<float>(8, 1).view(), "gates is 8 x 1; ids is 8 x 2");
    refuses(two, scores, strided, gates.view(), "ids must be dense and row-major");
    refuses(sy::top_k_router{.k = 2, .inference_capacity = {.number = 3}}, scores, ids.view(), gates.view(),
            "choices alone have no slots, and the router's settings limit an expert to 3 of them");
    refuses(sy::switch_router{.no_token_left_behind = 2}, scores, sy::matrix<std::int32_t>(8, 1).view(),
            sy::matrix<float>(8, 1).view(), "no token is left behind by giving out slots, and choices alone have none");
    auto overlapping = stored<float>(gaussian_scores(8, 4, 1));
    refuses(two, overlapping, ids.view(), sy::matrix_view<float>(overlapping.data(), 8, 2),
            "gates shares memory with scores: it must lie apart");
    overlapping(5, 2) = std::numeric_limits<float>::quiet_NaN();
    refuses(two, overlapping, ids.view(), gates.view(),
            "scores[5, 2] is NaN: a score must be finite, or -infinity to forbid an expert");
}
