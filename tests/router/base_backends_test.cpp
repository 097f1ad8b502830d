// BASE on every CPU backend: the same numbers in another layout, type of storage or on another thread are the same
// plan.
#include "support/backends.hpp"
#include "support/routed.hpp"

#include <switchyard/backend/eigen.hpp>
#include <switchyard/reference/base.hpp>
#include <switchyard/router/base.hpp>
#include <switchyard/router/route.hpp>

#include <doctest/doctest.h>

using namespace switchyard_test;

namespace {

/// One policy, on views alone, so that nothing here is compiled once a layout.
template <class Policy, class S>
void check_base(const Policy& policy, sy::matrix_view<S> scores, sy::matrix_view<S> d_gates,
                sy::matrix_view<S> d_scores, const ref::mask_list& mask, const ref::list<index_t>& experts,
                const ref::plan& want) {
    sy::plan<sy::compute_t<S>> plan;
    sy::workspace scratch;
    route_scores(policy, sy::base_router<>{}, scores, training_with(mask), plan, scratch);
    CHECK(experts_of(plan.view()).values == experts);
    CHECK(mismatch(plan, want) == "");
    route_scores_backward(policy, sy::base_router<>{}, plan, scores, d_gates, d_scores, scratch);
}

}  // namespace

TEST_CASE_TEMPLATE_DEFINE("base: every layout, storage and policy gives the plan of doubles side by side", B, base_on) {
    using storage = typename B::storage;
    using layout = typename B::template layout<storage>;
    const auto rounded = rounded_to<storage>(draw_scores(score_kind::gaussian, 530, 11, 1, 20));
    const auto mask = draw_mask(530, 1);
    const auto plain = routed<double>(sy::base_router<>{}, rounded, training_with(mask));
    const auto experts = experts_of(plain.view()).values;
    const auto want = ref::route_scores(ref::base_router{.assignment = experts}, rounded, mask);
    layout scores(rounded);
    layout d_gates(ref::matrix(530, 1, 1.0));
    B::each_policy([&](const auto& policy) {
        layout d_scores(ref::matrix(530, 11, 3.0));
        check_base(policy, scores.view(), d_gates.view(), d_scores.view(), mask, experts, want);
        const auto table = table_of_view(d_scores.view());
        for (index_t t = 0; t < 530; ++t) {
            for (index_t e = 0; e < 11; ++e) {
                // Of a token's scores, that of its expert alone has a gradient: the sigmoid's, at most a quarter.
                const bool is_chosen = experts[t] == e;
                if ((table(t, e) != 0) != is_chosen || table(t, e) > 0.25)
                    FAIL_CHECK("token " << t << ", expert " << e);
            }
        }
        CHECK(d_scores.gaps_intact());
    });
    CHECK(scores.gaps_intact());
}
TEST_CASE_TEMPLATE_APPLY(base_on, every_backend);
