// Combine with identity experts: the reference in plain loops, layouts and storage, the bits of plans in which the same
// tokens come from rows, and what is refused.
#include "reference/numeric.hpp"
#include "support/backends.hpp"
#include "support/routed.hpp"

#include <switchyard/dispatch/combine.hpp>
#include <switchyard/dispatch/dispatch.hpp>
#include <switchyard/reference/dispatch.hpp>
#include <switchyard/router/recipe.hpp>

#include <doctest/doctest.h>

#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

using namespace switchyard_test;

namespace {

using recipe = sy::recipe_router<>;

ref::matrix table_of(const sy::matrix<float>& m) { return ref::matrix_from(sy::const_view(m.view())); }
ref::matrix table_of(const sy::matrix<double>& m) { return ref::matrix_from(sy::const_view(m.view())); }

/// A plan in which choices are dropped, forbidden and masked, and some of any of these are of identity experts.
struct problem {
    recipe router;
    ref::matrix scores;
    ref::mask_list mask;

    explicit problem(index_t tokens, index_t k = 4)
        : router{.k = k,
                 .normalize = sy::gate_sum::add,
                 .capacity = {.factor = 0.7},
                 .rowless = {.identity = 5, .zero = 2}},
          scores(draw_scores(score_kind::gaussian, tokens, 16, 3, 80)),
          mask(draw_mask(tokens, 4)) {}
};

index_t added(const sy::plan_view<float>& plan) {
    index_t count = 0;
    for (index_t i = 0; i < plan.tokens * plan.choices; ++i) count += plan.adds_token(i) ? 1 : 0;
    return count;
}

}  // namespace

TEST_CASE("identity experts: combine and its backward against the reference") {
    for (const index_t tokens : {1, 30, 700}) {
        for (const index_t width : {1, 7, 64, 300}) {
            for (const index_t k : {1, 4, 9, 12}) {
                CAPTURE(tokens);
                CAPTURE(width);
                CAPTURE(k);
                problem p(tokens, k);
                if (k == 1) p.router.normalize = sy::gate_sum::none;
                const auto plan = routed<double>(p.router, p.scores, training_with(p.mask));
                const auto want = reference_plan<double>(p.router, p.scores, p.mask);
                const auto x = gaussian_scores(tokens, width, 1);
                const auto rows = gaussian_scores(plan.kept(), width, 2);
                const auto d_y = gaussian_scores(tokens, width, 3);
                const auto input = stored<double>(x);
                const auto output = stored<double>(rows);
                const auto y = sy::combine(sy::seq, plan, output, sy::identity_of{input});
                CHECK(table_mismatch(table_of(y), ref::combine(want, rows, x), 1e-14, 1) == "");
                const auto d = sy::combine_backward(sy::seq, plan, output, sy::identity_of{input}, stored<double>(d_y));
                const auto d_want = ref::combine_backward(want, rows, x, d_y);
                CHECK(table_mismatch(table_of(d.d_rows), d_want.d_expert_output, 1e-14, 1) == "");
                CHECK(table_mismatch(table_of(d.d_gates), d_want.d_gates, 1e-13, 1) == "");
                CHECK(table_mismatch(table_of(d.d_x), d_want.d_x, 1e-14, 1) == "");
                // Onto what is there.
                auto onto = stored<double>(d_y);
                sy::combine(sy::seq, plan, output, sy::identity_of{input}, onto, {.accumulate = true});
                for (index_t i = 0; i < tokens * width; ++i) onto.data()[i] -= y.data()[i];
                CHECK(table_mismatch(table_of(onto), d_y, 1e-14, 1) == "");
            }
        }
    }
}

TEST_CASE("identity experts: choices in order, the bits of the same tokens in rows") {
    // What dispatch gives is the token, so a plan with rows for all, combined with its own rows, adds the same numbers.
    for (const index_t k : {3, 12}) {
        recipe router{.k = k, .normalize = sy::gate_sum::add};
        const auto scores = gaussian_scores(400, 16, 9);
        const auto x = stored<float>(gaussian_scores(400, 50, 1));
        const auto d_y = stored<float>(gaussian_scores(400, 50, 2));
        const auto all = routed<float>(router, scores);
        const auto all_rows = sy::dispatch(sy::seq, all, x);
        const auto want = sy::combine(sy::seq, all, all_rows);
        const auto d_want = sy::combine_backward(sy::seq, all, all_rows, d_y);
        router.rowless = {.identity = 6};
        const auto some = routed<float>(router, scores);
        CHECK(added(some.view()) > 200);
        const auto some_rows = sy::dispatch(sy::seq, some, x);
        CHECK(some_rows.rows() == some.kept());
        const auto got = sy::combine(sy::seq, some, some_rows, sy::identity_of{x});
        CHECK(difference(table_of(got), table_of(want)) == 0);
        const auto d_got = sy::combine_backward(sy::seq, some, some_rows, sy::identity_of{x}, d_y);
        CHECK(difference(table_of(d_got.d_gates), table_of(d_want.d_gates)) == 0);
    }
}

TEST_CASE_TEMPLATE("identity experts: layouts, storage and policies have the same bits", Storage, float, double,
                   Eigen::half, Eigen::bfloat16) {
    using C = sy::compute_t<Storage>;
    const problem p(200);
    const auto plan = routed<C>(p.router, p.scores, training_with(p.mask));
    const auto x = gaussian_scores(200, 37, 1);
    const auto rows = gaussian_scores(plan.kept() + 3, 37, 2);
    const auto d_y = gaussian_scores(200, 37, 3);
    ref::matrix y, d_rows, d_x, d_gates;
    const auto once = [&](auto&& in, auto&& input, auto&& out, auto&& gradient, auto&& to_rows, auto&& to_x,
                          const auto& policy) {
        sy::matrix<C> gates(200, 4);
        sy::combine(policy, plan, in.argument(), sy::identity_of{input.view()}, out.argument());
        sy::combine_backward(policy, plan, in.argument(), sy::identity_of{input.view()}, gradient.argument(),
                             to_rows.argument(), gates, to_x.argument());
        CHECK(out.gaps_intact());
        CHECK(to_rows.gaps_intact());
        CHECK(to_x.gaps_intact());
        const auto table = ref::matrix_from(sy::const_view(gates.view()));
        if (y.rows == 0) {
            y = table_of_view(out.view());
            d_rows = table_of_view(to_rows.view());
            d_x = table_of_view(to_x.view());
            d_gates = table;
            return;
        }
        CHECK(difference(table_of_view(out.view()), y) == 0);
        CHECK(difference(table_of_view(to_rows.view()), d_rows) == 0);
        CHECK(difference(table_of_view(to_x.view()), d_x) == 0);
        CHECK(difference(table, d_gates) == 0);
    };
    const auto with = [&]<class Layout, class Other>(Layout, Other, const auto& policy) {
        using layout = typename Layout::template layout<Storage>;
        using other = typename Other::template layout<Storage>;
        once(layout(rows), other(x), layout(ref::matrix(200, 37)), layout(d_y), layout(ref::matrix(rows.rows, 37)),
             other(ref::matrix(200, 37)), policy);
    };
    for_each_policy([&](const auto& policy) {
        with(row_major{}, row_major{}, policy);
        covers<operation("identity experts")>(policy);
    });
    with(row_major{}, column_major{}, sy::seq);
    with(column_major{}, row_major{}, sy::seq);
    with(column_major{}, column_major{}, sy::par);
    with(map{}, raw_pointer{}, sy::seq);
    with(block{}, map{}, sy::seq);
    // To the reference as near as storage lets it be.
    const auto want = reference_plan<C>(p.router, p.scores, p.mask);
    ref::matrix kept(plan.kept(), 37);
    ref::matrix kept_d(plan.kept(), 37);
    for (index_t i = 0; i < kept.values.length(); ++i) {
        kept.values[i] = rows.values[i];
        kept_d.values[i] = d_rows.values[i];
    }
    const double allowed = sizeof(Storage) == 2 ? 0.02 : sizeof(Storage) == 4 ? 1e-5 : 1e-13;
    CHECK(table_mismatch(y, ref::combine(want, kept, x), allowed) == "");
    const auto d = ref::combine_backward(want, kept, x, d_y);
    CHECK(table_mismatch(d_x, d.d_x, allowed) == "");
    CHECK(table_mismatch(d_gates, d.d_gates, allowed) == "");
    CHECK(table_mismatch(kept_d, d.d_expert_output, allowed) == "");
}

TEST_CASE("identity experts: x of another type than the rows") {
    const problem p(60);
    const auto plan = routed<float>(p.router, p.scores, training_with(p.mask));
    const auto x = gaussian_scores(60, 20, 1);
    const row_major::layout<Eigen::bfloat16> narrow(x);
    auto copy = narrow;
    const auto rows = stored<float>(gaussian_scores(plan.kept(), 20, 2));
    const auto wide = stored<float>(table_of_view(copy.view()));
    const auto got = sy::combine(sy::seq, plan, rows, sy::identity_of{copy.view()});
    CHECK(difference(table_of(got), table_of(sy::combine(sy::seq, plan, rows, sy::identity_of{wide}))) == 0);
    const auto d_y = stored<float>(gaussian_scores(60, 20, 3));
    const auto one = sy::combine_backward(sy::seq, plan, rows, sy::identity_of{copy.view()}, d_y);
    const auto other = sy::combine_backward(sy::seq, plan, rows, sy::identity_of{wide}, d_y);
    CHECK(difference(table_of(one.d_gates), table_of(other.d_gates)) == 0);
    CHECK(difference(table_of(one.d_x), table_of(other.d_x)) == 0);
}

TEST_CASE("identity experts: NaN in tokens that no choice adds goes nowhere") {
    const problem p(50);
    const auto plan = routed<float>(p.router, p.scores, training_with(p.mask));
    const auto x = gaussian_scores(50, 8, 1);
    auto holes = x;
    index_t without = 0;
    for (index_t t = 0; t < 50; ++t) {
        bool adds = false;
        for (index_t c = 0; c < 4; ++c) adds = adds || plan.view().adds_token(t * 4 + c);
        without += adds ? 0 : 1;
        for (index_t j = 0; j < 8 && !adds; ++j) holes(t, j) = std::numeric_limits<double>::quiet_NaN();
    }
    CHECK(without > 5);
    CHECK(without < 45);
    const auto rows = stored<float>(gaussian_scores(plan.kept(), 8, 2));
    const auto whole = stored<float>(x);
    const auto holed = stored<float>(holes);
    CHECK(difference(table_of(sy::combine(sy::seq, plan, rows, sy::identity_of{holed})),
                     table_of(sy::combine(sy::seq, plan, rows, sy::identity_of{whole}))) == 0);
    const auto d = sy::combine_backward(sy::seq, plan, rows, sy::identity_of{holed}, whole);
    for (index_t i = 0; i < 200; ++i) CHECK(std::isfinite(d.d_gates.data()[i]));
}

TEST_CASE("identity experts: a plan that has them is refused without x; zero experts need none") {
    const problem p(10);
    auto router = p.router;
    const auto plan = routed<float>(router, p.scores);
    const auto x = stored<float>(gaussian_scores(10, 4, 1));
    const auto rows = stored<float>(gaussian_scores(plan.kept(), 4, 1));
    CHECK(sentence_of([&] { sy::combine(sy::seq, plan, rows); }) ==
          "the plan has 5 identity experts, which give back their tokens: pass identity_of{x}, or call them zero "
          "experts");
    CHECK(sentence_of([&] { sy::combine_backward(sy::seq, plan, rows, x); }) ==
          "the plan has 5 identity experts, which give back their tokens: pass identity_of{x}, or call them zero "
          "experts");
    sy::matrix<float> y(10, 4);
    CHECK(sentence_of([&] { sy::combine(sy::seq, plan, rows, sy::identity_of{x}, y, {.apply_gates = false}); }) ==
          "apply_gates = false has no place for identity experts, whose gates are applied here");
    router.rowless = {.zero = 7};
    const auto zero = routed<float>(router, p.scores);
    const auto bare = sy::combine(sy::seq, zero, rows);
    CHECK(difference(table_of(bare), table_of(sy::combine(sy::seq, zero, rows, sy::identity_of{x}))) == 0);
    const auto d = sy::combine_backward(sy::seq, zero, rows, sy::identity_of{x}, x);
    for (index_t i = 0; i < 40; ++i) CHECK(d.d_x.data()[i] == 0);
    for (index_t i = 0; i < 40; ++i) {
        if (zero.view().expert[i] >= 9) CHECK(d.d_gates.data()[i] == 0);
    }
}

TEST_CASE("identity experts: shapes and memory that do not fit") {
    const problem p(10);
    const auto plan = routed<float>(p.router, p.scores);
    auto x = stored<float>(gaussian_scores(10, 4, 1));
    sy::matrix<float> y(10, 4);
    sy::matrix<float> d_x(10, 4);
    auto rows = stored<float>(gaussian_scores(plan.kept(), 4, 1));
    sy::matrix<float> d_rows(plan.kept(), 4);
    sy::matrix<float> gates(10, 4);
    const auto narrow = stored<float>(gaussian_scores(10, 3, 1));
    const auto few = stored<float>(gaussian_scores(9, 4, 1));
    CHECK(sentence_of([&] { sy::combine(sy::seq, plan, rows, sy::identity_of{narrow}, y); }) ==
          "y is 10 x 4; x is 10 x 3");
    CHECK(sentence_of([&] { sy::combine(sy::seq, plan, rows, sy::identity_of{few}, y); }) ==
          "x has 9 rows; the plan was made for 10 tokens");
    CHECK(sentence_of([&] { sy::combine(sy::seq, plan, rows, sy::identity_of{x}, x); }) ==
          "y shares memory with x: it must lie apart");
    const auto backward = [&](auto& to_rows, auto& to_x) {
        return sentence_of(
            [&] { sy::combine_backward(sy::seq, plan, rows, sy::identity_of{x}, y, to_rows, gates, to_x); });
    };
    CHECK(backward(rows, d_x).empty());
    CHECK(backward(d_rows, x) == "d_x shares memory with x: it must lie apart");
    CHECK(backward(d_rows, y) == "d_x shares memory with d_y: it must lie apart");
    CHECK(backward(d_rows, d_rows).substr(0, 4) == "d_x ");
    sy::matrix<float> wrong(9, 4);
    CHECK(backward(d_rows, wrong) == "d_x has 9 rows; the plan was made for 10 tokens");
}
