// Plans from choices made elsewhere: worked by hand, against plain loops, and with what may go wrong.
#include "support/choices.hpp"
#include "support/backends.hpp"

#include <switchyard/dispatch/combine.hpp>
#include <switchyard/dispatch/dispatch.hpp>
#include <switchyard/plan/choices.hpp>
#include <switchyard/router/switch.hpp>

#include <doctest/doctest.h>

#include <limits>

using namespace switchyard_test;

namespace {

given_choices choices_of(index_t tokens, index_t k, index_t experts, const std::vector<std::int64_t>& ids) {
    given_choices made(tokens, k, experts);
    std::copy(ids.begin(), ids.end(), made.ids.data());
    return made;
}

/// A plan of both kinds of ids on every policy, and what moves rows by it, against plain loops.
void check_plan(const given_choices& from, index_t capacity) {
    CAPTURE(from.tokens);
    CAPTURE(from.k);
    CAPTURE(from.experts);
    CAPTURE(capacity);
    const plain_plan want(from, capacity);
    const auto narrow = from.narrow_ids();
    const sy::choice_settings settings{.capacity = {.number = capacity}};
    const index_t width = 5;
    const auto x = whole_numbers(from.tokens, width, 1);
    const auto outputs = whole_numbers(want.rows(), width, 2);
    const auto d_y = whole_numbers(from.tokens, width, 3);
    const plain_rows moved(want, from.tokens, from.k, want.rows(), x, outputs, d_y);
    for_each_policy([&](const auto& policy) {
        sy::plan<float> plan;
        sy::workspace scratch;
        sy::plan_from_choices(policy, from.ids, from.gates, from.experts, settings, plan, scratch);
        CHECK(plain_difference(plan.view(), want) == "");
        sy::plan_from_choices(policy, narrow, from.gates, from.experts, settings, plan, scratch);
        CHECK(plain_difference(plan.view(), want) == "");
        CHECK(plan.finished());
        CHECK(plan.totals().status == sy::plan_status::good);
        CHECK(plan.load_balancing_loss() == 0);
        CHECK(plan.z_loss() == 0);
        CHECK(number_difference("rows", sy::dispatch(policy, plan, x), moved.dispatched) == "");
        CHECK(number_difference("y", sy::combine(policy, plan, outputs), moved.y) == "");
        CHECK(number_difference("d_x", sy::dispatch_backward(policy, plan, outputs), moved.d_x) == "");
        const auto d = sy::combine_backward(policy, plan, outputs, d_y);
        CHECK(number_difference("d_rows", d.d_rows, moved.d_rows) == "");
        CHECK(number_difference("d_gates", d.d_gates, moved.d_gates) == "");
    });
}

}  // namespace

TEST_CASE("plan_from_choices: ids (0, -1, 1) give two rows, of tokens 0 and 2") {
    for (const std::int64_t absent :
         {std::int64_t{-1}, std::int64_t{2}, std::int64_t{1} << 40, std::int64_t{-1} << 40}) {
        const auto from = choices_of(3, 1, 2, {0, absent, 1});
        const auto plan = sy::plan_from_choices(sy::seq, from.ids, 2);
        CHECK(plan.kept() == 2);
        CHECK(plan.expert()(1, 0) == -1);
        CHECK(plan.slot()(1, 0) == -1);
        CHECK(plan.gate()(1, 0) == 0);
        const auto x = whole_numbers(3, 4, 1);
        const auto rows = sy::dispatch(sy::seq, plan, x);
        REQUIRE(rows.rows() == 2);  // no row in front
        const auto y = sy::combine(sy::seq, plan, rows);
        for (index_t j = 0; j < 4; ++j) {
            CHECK(rows(0, j) == x(0, j));
            CHECK(rows(1, j) == x(2, j));
            CHECK(y(0, j) == x(0, j));
            CHECK(y(1, j) == 0);
            CHECK(y(2, j) == x(2, j));
        }
    }
}

TEST_CASE("plan_from_choices: a replayed step counts equal ids of different tokens") {
    // E = 4, k = 2, choices (0, 1) (2, 3) (0, 1), three times.
    std::vector<std::int64_t> ids;
    for (int i = 0; i < 3; ++i) ids.insert(ids.end(), {0, 1, 2, 3, 0, 1});
    const auto from = choices_of(9, 2, 4, ids);
    const auto plan = sy::plan_from_choices(sy::seq, from.ids, from.gates, 4);
    CHECK(plan.kept() == 18);
    const std::vector<std::int64_t> loads{6, 6, 3, 3};
    CHECK(list_difference("load", plan.view().load_before, loads) == "");
}

TEST_CASE("plan_from_choices: first choices take slots before second ones, whoever has a place in the list") {
    // Expert 1 has one row: the second choice of token 0 comes behind the first one of token 1. Token 2's first choice
    // is elsewhere, its second stays second.
    const auto from = choices_of(3, 2, 2, {0, 1, 1, -1, -1, 0});
    const auto plan = sy::plan_from_choices(sy::seq, from.ids, from.gates, 2, {.capacity = {.number = 1}});
    const std::vector<std::int32_t> slots{0, -1, 0, -1, -1, -1};
    CHECK(list_difference("slot", plan.view().slot, slots) == "");
    // By gate, token 1 is first in line, and 2 last: its first choice is not here.
    auto weighed = choices_of(3, 2, 2, {0, 1, 0, 1, -1, 0});
    weighed.gates(0, 0) = 0.25f;
    weighed.gates(1, 0) = 0.5f;
    const auto by_gate = sy::plan_from_choices(sy::seq, weighed.ids, weighed.gates, 2,
                                               {.capacity = {.number = 2}, .order = sy::drop_order::gate});
    const std::vector<std::int32_t> gate_slots{1, 1, 0, 0, -1, -1};
    CHECK(list_difference("slot", by_gate.view().slot, gate_slots) == "");
}

TEST_CASE("plan_from_choices: random choices against plain loops") {
    for (const index_t tokens : {0, 1, 7, 256, 257, 900}) {
        for (const auto& [k, experts] :
             {std::pair<index_t, index_t>{1, 1}, {1, 8}, {2, 8}, {6, 64}, {5, 5}, {40, 70}}) {
            for (const index_t capacity : {index_t{0}, index_t{1}, tokens / 3 + 1, sy::unlimited}) {
                check_plan(random_given(tokens, k, experts, static_cast<std::uint64_t>(tokens + k)), capacity);
            }
        }
    }
}

TEST_CASE("plan_from_choices: nobody here, everybody at one expert, every expert for everybody") {
    check_plan(random_given(300, 3, 5, 1, 8), 4);                                     // all -1 and the like
    check_plan(choices_of(0, 2, 4, {}), 4);                                           // no tokens
    check_plan(choices_of(600, 1, 6, std::vector<std::int64_t>(600, 5)), 100);        // one expert, with a limit
    check_plan(choices_of(600, 1, 6, std::vector<std::int64_t>(600, 5)), 1'000'000);  // and without
    check_plan(random_given(300, 12, 12, 2, 0), sy::unlimited);                       // k = E
    // k above E: most of the list is not here.
    auto long_list = choices_of(2, 5, 2, {-1, 1, 9, 0, -1, 0, -1, 2, 1, 2});
    check_plan(long_list, 1);
}

TEST_CASE("plan_from_choices: capacity by a factor, gates in 16 bits and in double, strides") {
    const auto from = random_given(100, 2, 5, 4);
    // floor(2 x 100 x 0.5 / 5) = 20
    const auto plan = sy::plan_from_choices(sy::seq, from.ids, from.gates, 5, {.capacity = {.factor = 0.5}});
    CHECK(plan.capacity() == 20);
    CHECK(plain_difference(plan.view(), plain_plan(from, 20)) == "");
    using Eigen::Dynamic;
    const auto gates = sy::as_eigen(from.gates);
    const Eigen::Matrix<Eigen::bfloat16, Dynamic, Dynamic> narrow = gates.cast<Eigen::bfloat16>();
    const Eigen::MatrixXd wide = gates.cast<double>();
    const Eigen::Matrix<std::int32_t, Dynamic, Dynamic> columns = sy::as_eigen(from.narrow_ids());
    const sy::plan<float> from_narrow = sy::plan_from_choices(sy::seq, columns, narrow, 5);
    CHECK(plain_difference(from_narrow.view(), plain_plan(from, sy::unlimited)) == "");
    const sy::plan<double> from_wide = sy::plan_from_choices(sy::seq, columns, wide, 5);
    CHECK(plain_difference(from_wide.view(), plain_plan(from, sy::unlimited)) == "");
}

TEST_CASE("plan_from_choices: a token that names an expert twice, refused or given two rows") {
    for (const index_t k : {2, 33, 40}) {  // by pairs, and by marks
        for (const index_t token : {0, 699, 299}) {
            auto from = random_given(700, k, 64, 5);
            from.ids(token, 0) = 63;
            from.ids(token, k - 1) = 63;
            for (index_t c = 1; c + 1 < k; ++c) from.ids(token, c) = -1;  // equal, and of no account
            const std::string sentence =
                said("ids of token ", token,
                     " name an expert twice: without choice_settings::may_repeat each may be named once");
            for_each_policy([&](const auto& policy) {
                sy::plan<float> plan;
                sy::workspace scratch;
                CHECK_THROWS_WITH_AS(sy::plan_from_choices(policy, from.ids, from.gates, 64, {}, plan, scratch),
                                     sentence.c_str(), sy::error);
                CHECK(!plan.finished());
                sy::plan_from_choices(policy, from.ids, from.gates, 64, {.may_repeat = true}, plan, scratch);
                CHECK(plain_difference(plan.view(), plain_plan(from, sy::unlimited)) == "");
            });
        }
    }
}

TEST_CASE("plan_from_choices: what is refused, in a sentence, leaves the plan empty") {
    const auto from = random_given(6, 2, 4, 1);
    sy::plan<float> plan;
    sy::workspace scratch;
    const auto refuses = [&](const auto& call, const char* sentence) {
        sy::plan_from_choices(sy::seq, from.ids, from.gates, 4, {}, plan, scratch);
        REQUIRE(plan.finished());
        CHECK_THROWS_WITH_AS(call(), sentence, sy::error);
        CHECK(!plan.finished());
    };
    const auto with = [&](const auto& ids, const auto& gates, index_t experts, const sy::choice_settings& settings) {
        return [&, experts, settings] { sy::plan_from_choices(sy::seq, ids, gates, experts, settings, plan, scratch); };
    };
    const sy::matrix<float> short_gates(5, 2);
    const sy::matrix<std::int64_t> nothing(6, 0);
    const sy::matrix_view<const std::int64_t> nowhere(nullptr, 6, 2);
    refuses(with(from.ids, short_gates, 4, {}), "gates is 5 x 2; ids is 6 x 2");
    refuses(with(nothing, sy::matrix<float>(6, 0), 4, {}), "ids is 6 x 0; it must be T x k with k at least 1");
    refuses(with(nowhere, from.gates, 4, {}), "ids is a null pointer");
    refuses(with(from.ids, from.gates, 0, {}), "E = 0 experts: there must be at least one, and fewer than 1073741823");
    refuses(with(from.ids, from.gates, index_t{1} << 31, {}),
            "E = 2147483648 experts: there must be at least one, and fewer than 1073741823");
    refuses(with(from.ids, from.gates, 4, {.capacity = {.number = -1}}), "capacity = -1 must not be negative");
    refuses(with(sy::matrix_view<const std::int64_t>(from.ids.data(), index_t{1} << 31, 1, 0, 1),
                 sy::matrix_view<const float>(from.gates.data(), index_t{1} << 31, 1, 0, 1), 4, {}),
            "T = 2147483648 tokens: a plan numbers slots in 32 bits, split the batch");
    // A plan's own arrays would be overwritten while they are read.
    sy::plan_from_choices(sy::seq, from.ids, from.gates, 4, {}, plan, scratch);
    CHECK_THROWS_WITH_AS(sy::plan_from_choices(sy::seq, plan.expert(), from.gates, 4, {}, plan, scratch),
                         "the plan's experts shares memory with ids: it must lie apart", sy::error);
    sy::plan_from_choices(sy::seq, from.ids, from.gates, 4, {}, plan, scratch);
    CHECK_THROWS_WITH_AS(sy::plan_from_choices(sy::seq, from.ids, plan.gate(), 4, {}, plan, scratch),
                         "the plan's gates shares memory with gates: it must lie apart", sy::error);
    // Backward of a router is not for plans that none made.
    sy::plan_from_choices(sy::seq, from.ids, from.gates, 4, {}, plan, scratch);
    const sy::matrix<float> scores(6, 4);
    sy::matrix<float> d_scores(6, 4);
    CHECK_THROWS_AS(
        sy::route_scores_backward(sy::seq, sy::switch_router{}, plan, scores, from.gates, d_scores, scratch),
        sy::error);
}

TEST_CASE("plan_from_choices: a smaller batch in the same plan and buffers sees nothing of the larger one") {
    sy::plan<float> plan;
    sy::workspace scratch;
    const auto five = random_given(5, 1, 3, 1, 0);
    const auto two = random_given(2, 1, 3, 2, 0);
    sy::matrix<float> rows(5, 4);
    sy::plan_from_choices(sy::seq, five.ids, five.gates, 3, {}, plan, scratch);
    sy::dispatch(sy::seq, plan, whole_numbers(5, 4, 1), rows);
    sy::plan_from_choices(sy::seq, two.ids, two.gates, 3, {}, plan, scratch);
    CHECK(plain_difference(plan.view(), plain_plan(two, sy::unlimited)) == "");
    std::fill_n(rows.data(), 20, std::numeric_limits<float>::quiet_NaN());
    sy::dispatch(sy::seq, plan, whole_numbers(2, 4, 2), rows);
    sy::zero_rest(sy::seq, plan, rows);
    const plain_rows want(plain_plan(two, sy::unlimited), 2, 1, 5, whole_numbers(2, 4, 2), rows,
                          whole_numbers(2, 4, 2));
    CHECK(number_difference("rows", rows, want.dispatched) == "");
}
