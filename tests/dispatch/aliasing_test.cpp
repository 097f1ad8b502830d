// Outputs that are inputs: right where the contract says so, in every layout and storage, and refused elsewhere.
#include "support/backends.hpp"
#include "support/rows.hpp"

#include <switchyard/dispatch/combine.hpp>

#include <doctest/doctest.h>

using namespace switchyard_test;

namespace {

/// Two tokens, each at both experts, with gates of 1/2.
sy::plan<float> two_by_two() {
    auto plan = routed<float>(sy::top_k_router{.k = 2}, ref::matrix{{1, 0}, {1, 0}});
    for (index_t i = 0; i < 4; ++i) plan.view().gate[i] = 0.5f;
    return plan;
}

}  // namespace

TEST_CASE_TEMPLATE_DEFINE("aliasing: combine's backward with d_rows = rows", B, combine_in_place) {
    using storage = typename B::storage;
    using compute = typename B::compute;
    using layout = typename B::template layout<storage>;
    if constexpr (std::is_same_v<compute, float>) {
        // By hand: expert 0's rows are 1, expert 1's 3; each d_gate is a row times d_y = 2 in two columns.
        const auto plan = two_by_two();
        B::each_policy([&](const auto& policy) {
            layout rows(ref::matrix{{1, 1}, {1, 1}, {3, 3}, {3, 3}});
            layout d_y(ref::matrix(2, 2, 2.0));
            layout d_gates(ref::matrix(2, 2));
            sy::combine_backward(policy, plan, rows.argument(), d_y.argument(), rows.argument(), d_gates.argument());
            CHECK(table_of_view(d_gates.view()) == ref::matrix{{4, 12}, {4, 12}});
            CHECK(table_of_view(rows.view()) == ref::matrix(4, 2, 1.0));
        });
    }
    // At random, with dropped choices: the bits of the call that writes elsewhere.
    const auto drawn = random_plan<compute>(150, 7, 3, 0.8, 3, draw_mask(150, 2));
    const auto& plan = drawn.plan;
    const auto kept = drawn.want.kept();
    const auto numbers = gaussian_scores(kept, 21, 4);
    layout d_y(gaussian_scores(150, 21, 5));
    layout given(numbers);
    B::each_policy([&](const auto& policy) {
        layout elsewhere(ref::matrix(kept, 21)), d_gates(ref::matrix(150, 3));
        sy::combine_backward(policy, plan, given.argument(), d_y.argument(), elsewhere.argument(), d_gates.argument());
        layout rows(numbers), again(ref::matrix(150, 3));
        sy::combine_backward(policy, plan, rows.argument(), d_y.argument(), rows.argument(), again.argument());
        CHECK(table_of_view(rows.view()) == table_of_view(elsewhere.view()));
        CHECK(table_of_view(again.view()) == table_of_view(d_gates.view()));
        CHECK(rows.gaps_intact());
    });
}
TEST_CASE_TEMPLATE_APPLY(combine_in_place, every_backend);

TEST_CASE("aliasing: combine's backward with d_rows = rows, written past the cache") {
    const auto [plan, want] = random_plan<float>(4300, 16, 2, 0.9, 6);
    auto rows = stored<float>(gaussian_scores(want.kept(), 513, 7));
    const auto d_y = stored<float>(gaussian_scores(4300, 513, 8));
    const auto [d_rows, d_gates] = sy::combine_backward(sy::seq, plan, rows, d_y);
    sy::matrix<float> again(4300, 2);
    sy::combine_backward(sy::seq, plan, rows, d_y, rows, again);
    CHECK(table_of(rows) == table_of(d_rows));
    CHECK(table_of(again) == table_of(d_gates));
}

TEST_CASE_TEMPLATE_DEFINE("aliasing: every other output that is an input is refused", B, refuse_shared_rows) {
    using storage = typename B::storage;
    using layout = typename B::template layout<storage>;
    // k = 1 and one expert: rows and tokens have one shape, and a copy in place would even look right.
    const auto plan = routed<typename B::compute>(sy::top_k_router{.k = 1}, ref::matrix(4, 1), sy::inference{});
    layout a(ref::matrix(4, 3, 1.0)), b(ref::matrix(4, 3, 1.0)), c(ref::matrix(4, 3, 1.0));
    layout one(ref::matrix(4, 1, 1.0));
    const auto refused = [](const char* output, const char* input, const auto& call) {
        return sentence_of(call) == said(output, " shares memory with ", input, ": it must lie apart");
    };
    B::each_policy([&](const auto& on) {
        CHECK(refused("rows", "x", [&] { sy::dispatch(on, plan, a.argument(), a.argument()); }));
        CHECK(refused("rows", "x", [&] { sy::dispatch(on, plan, a.argument(), a.argument(), {.apply_gates = true}); }));
        CHECK(refused("y", "rows", [&] { sy::combine(on, plan, a.argument(), a.argument()); }));
        CHECK(refused("y", "rows", [&] { sy::combine(on, plan, a.argument(), a.argument(), {.accumulate = true}); }));
        CHECK(refused("d_x", "d_rows", [&] { sy::dispatch_backward(on, plan, a.argument(), a.argument()); }));
        CHECK(refused("d_x", "x", [&] {
            sy::dispatch_backward(on, plan, a.argument(), b.argument(), a.argument(), one.argument());
        }));
        CHECK(refused("d_x", "d_rows", [&] {
            sy::dispatch_backward(on, plan, a.argument(), b.argument(), b.argument(), one.argument());
        }));
        CHECK(refused("d_rows", "d_y", [&] {
            sy::combine_backward(on, plan, a.argument(), b.argument(), b.argument(), one.argument());
        }));
        CHECK(refused("d_rows", "d_y", [&] {
            sy::combine_backward(on, plan, a.argument(), b.argument(), b.argument(), one.argument(),
                                 {.apply_gates = false});
        }));
    });
    // d_gates: a column of one of the others.
    const auto column = [](layout& m) {
        auto view = m.view();
        view.columns = 1;
        return view;
    };
    CHECK(refused("d_gates", "rows",
                  [&] { sy::combine_backward(sy::seq, plan, a.argument(), b.argument(), c.argument(), column(a)); }));
    CHECK(refused("d_gates", "d_y",
                  [&] { sy::combine_backward(sy::seq, plan, a.argument(), b.argument(), c.argument(), column(b)); }));
    CHECK(refused("d_gates", "d_rows",
                  [&] { sy::combine_backward(sy::seq, plan, a.argument(), b.argument(), c.argument(), column(c)); }));
    CHECK(refused("d_gates", "x",
                  [&] { sy::dispatch_backward(sy::seq, plan, a.argument(), b.argument(), c.argument(), column(a)); }));
    CHECK(refused("d_gates", "d_rows",
                  [&] { sy::dispatch_backward(sy::seq, plan, a.argument(), b.argument(), c.argument(), column(b)); }));
    CHECK(refused("d_gates", "d_x",
                  [&] { sy::dispatch_backward(sy::seq, plan, a.argument(), b.argument(), c.argument(), column(c)); }));
    const sy::matrix_view<typename B::compute> gates(plan.view().gate, 4, 1);
    CHECK(refused("d_gates", "the plan's gates",
                  [&] { sy::combine_backward(sy::seq, plan, a.argument(), b.argument(), c.argument(), gates); }));
    CHECK(refused("d_gates", "the plan's gates",
                  [&] { sy::dispatch_backward(sy::seq, plan, a.argument(), b.argument(), c.argument(), gates); }));
    // Not one number was written.
    for (layout* const m : {&a, &b, &c}) CHECK(table_of_view(m->view()) == ref::matrix(4, 3, 1.0));
}
TEST_CASE_TEMPLATE_APPLY(refuse_shared_rows, every_backend);

TEST_CASE("aliasing: a shifted or a transposed view of an input is refused even where the input itself is not") {
    const auto plan = routed<float>(sy::top_k_router{.k = 1}, ref::matrix(4, 1), sy::inference{});
    sy::matrix<float> numbers(8, 4);
    const sy::matrix_view<float> rows(numbers.data(), 4, 4);
    sy::matrix<float> d_y(4, 4), d_gates(4, 1);
    const auto sentence = "d_rows shares memory with rows and is another view: it must be the same view, or lie apart";
    for (const auto& d_rows :
         {sy::matrix_view<float>(numbers.data() + 4, 4, 4), sy::matrix_view<float>(numbers.data() + 1, 4, 4),
          sy::matrix_view<float>(numbers.data(), 5, 4), sy::transposed(rows)}) {
        CHECK(sentence_of([&] { sy::combine_backward(sy::seq, plan, rows, d_y, d_rows, d_gates); }) == sentence);
    }
    // The same memory as another type.
    const sy::matrix_view<Eigen::bfloat16> narrow(reinterpret_cast<Eigen::bfloat16*>(numbers.data()), 4, 4);
    CHECK(sentence_of([&] { sy::combine_backward(sy::seq, plan, rows, d_y, narrow, d_gates); }) == sentence);
}

TEST_CASE("aliasing: columns of one matrix lie apart, however their addresses interleave") {
    const auto [plan, want] = random_plan<float>(40, 1, 1, {}, 8);
    const auto x = gaussian_scores(40, 5, 9);
    sy::matrix<float> table(40, 16);
    const auto columns = [&](index_t first, index_t count) {
        return sy::matrix_view<float>(table.data() + first, 40, count, 16, 1);
    };
    fill_view(columns(0, 5), x);
    sy::dispatch(sy::seq, plan, columns(0, 5), columns(5, 5));
    CHECK(table_of_view(columns(5, 5)) == ref::dispatch(want, rounded_to<float>(x)));
    sy::combine(sy::seq, plan, columns(5, 5), columns(10, 5));
    sy::combine_backward(sy::seq, plan, columns(5, 5), columns(10, 5), columns(5, 5), columns(15, 1));
    CHECK(table_of_view(columns(0, 5)) == rounded_to<float>(x));
    CHECK(table_of_view(columns(5, 5)) == table_of_view(columns(10, 5)));  // with one expert each gate is 1
}
