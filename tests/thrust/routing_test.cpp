// Switch, top-k and BASE on a Thrust policy, forward and backward from scores: decisions are the CPU backend's, gates
// and losses the reference's, and what a CPU policy throws is a status.
#include "support/property.hpp"
#include "thrust/device.hpp"
#include "thrust/recipes.hpp"

#include <switchyard/reference/switch_router.hpp>
#include <switchyard/reference/top_k.hpp>

#include <doctest/doctest.h>

using namespace switchyard_test;

namespace {

constexpr float not_a_number = std::numeric_limits<float>::quiet_NaN();
constexpr float infinity = std::numeric_limits<float>::infinity();

/// Scores and mask on both sides.
struct input {
    ref::matrix table;
    sy::matrix<float> scores;
    ref::mask_list mask;
    sy::matrix<float, device_memory> device_scores;
    device_mask device_padding;

    explicit input(const ref::matrix& numbers, const ref::mask_list& padding = {})
        : table(numbers),
          scores(stored<float>(numbers)),
          mask(padding),
          device_scores(sy::copy_to_device(device, scores)),
          device_padding(padding) {}

    sy::training host_step() const { return {.seed = 5, .stream = 1, .step = 9, .mask = mask_of(mask)}; }
    sy::training device_step() const { return {.seed = 5, .stream = 1, .step = 9, .mask = device_padding.get()}; }
};

struct both_plans {
    sy::plan<float> host;
    device_plan<float> made;
    sy::plan<float> copy;
};

template <class Router>
both_plans route_both(const Router& router, const input& in, bool is_training, device_scratch& scratch) {
    both_plans plans;
    sy::workspace host_scratch;
    const sy::run_mode host_mode =
        is_training ? sy::run_mode(in.host_step()) : sy::run_mode(sy::inference{mask_of(in.mask)});
    const sy::run_mode device_mode =
        is_training ? sy::run_mode(in.device_step()) : sy::run_mode(sy::inference{in.device_padding.get()});
    sy::route_scores(sy::seq, router, in.scores, host_mode, plans.host, host_scratch);
    sy::route_scores(device, router, in.device_scores, device_mode, plans.made, scratch);
    sy::check(device, plans.made);
    plans.copy = sy::copy_to_host(device, plans.made);
    return plans;
}

/// Gates and losses of both backends, to what either may be from the truth.
std::string number_difference(const sy::plan<float>& got, const sy::plan<float>& want) {
    for (index_t i = 0; i < want.tokens() * want.choices(); ++i) {
        const double x = got.view().gate[i];
        const double y = want.view().gate[i];
        if (!is_gate<float>(x, y)) return said("gate ", i, " is ", x, ", on the CPU ", y);
    }
    if (!is_close(got.load_balancing_loss(), want.load_balancing_loss(), 2 * tolerance<float>::loss)) {
        return said("balance loss ", got.load_balancing_loss(), ", on the CPU ", want.load_balancing_loss());
    }
    const double z = want.z_loss();
    if (std::abs(got.z_loss() - z) > 2 * tolerance<float>::loss * (std::abs(z) + std::sqrt(std::abs(z)))) {
        return said("z-loss ", got.z_loss(), ", on the CPU ", z);
    }
    return "";
}

/// d_scores of both backends from the same gradients of the gates.
template <class Router>
std::string backward_difference(const Router& router, const input& in, const both_plans& plans,
                                device_scratch& scratch) {
    const auto d_gates = gaussian<float>(plans.host.tokens(), plans.host.choices(), 3);
    const auto device_d_gates = sy::copy_to_device(device, d_gates);
    const auto want = sy::route_scores_backward(sy::seq, router, plans.host, in.scores, d_gates, {.loss_scale = 3});
    sy::matrix<float, device_memory> d_scores(plans.host.tokens(), plans.host.experts());
    sy::route_scores_backward(device, router, plans.made, in.device_scores, device_d_gates, d_scores, scratch,
                              {.loss_scale = 3});
    const auto got = sy::copy_to_host(device, d_scores);
    auto in_place = sy::copy_to_device(device, in.scores);
    sy::route_scores_backward(device, router, plans.made, in_place, device_d_gates, in_place, scratch,
                              {.loss_scale = 3});
    const auto sentence = matrix_difference(sy::copy_to_host(device, in_place), got, 0);
    if (!sentence.empty()) return "in place of the scores: " + sentence;
    // Terms of the size of d_gates cancel.
    return matrix_difference(got, want, tolerance<float>::gradient, 1);
}

template <class Router>
std::string difference(const Router& router, const input& in, bool is_training, device_scratch& scratch) {
    const auto plans = route_both(router, in, is_training, scratch);
    auto sentence = decision_difference(plans.copy, plans.host);
    if (sentence.empty()) sentence = number_difference(plans.copy, plans.host);
    if constexpr (requires { router.balance_weight; }) {
        if (sentence.empty() && is_training) {
            sentence = array_difference("row_maximum", plans.copy.view().row_maximum, plans.host.view().row_maximum,
                                        in.scores.rows());
        }
    }
    if (sentence.empty() && is_training) sentence = backward_difference(router, in, plans, scratch);
    return sentence;
}

sy::capacity_rule any_capacity() {
    if (coin()) return {};
    return {.factor = one_of(0.0, 0.5, 1.0, 1.25, 4.0), .minimum = whole(0, 2)};
}

/// Everything that scores may look like. Without a capacity a token must have an expert, so nothing is forbidden there;
/// jitter would take the largest floats out of their range.
input any_input(bool may_forbid, bool may_be_huge) {
    const auto seed = any_seed();
    auto kind = static_cast<score_kind>(whole(0, static_cast<long>(score_kind::count) - 1));
    if (!may_be_huge && kind == score_kind::huge) kind = score_kind::wide;
    const index_t tokens = whole(0, 300);
    const int forbidden = may_forbid ? one_of(0, 0, 40, 230) : 0;
    return input(draw_scores(kind, tokens, whole(1, 70), seed, forbidden),
                 coin() ? draw_mask(tokens, seed) : ref::mask_list{});
}

/// What decisions rest on, computed where the policy runs.
struct probed {
    std::int32_t set_of_32, set_of_64, first_of_32, first_of_64;
    float u, jitter;
    friend bool operator==(const probed&, const probed&) = default;
};
struct probe_numbers {
    probed* to;

    SWITCHYARD_HD void operator()(index_t i) const {
        const sy::philox_words words = sy::noise_words({.seed = 3}, i, i);
        const std::uint64_t wide = (std::uint64_t{words.word[0]} << 32 | words.word[1])
                                   << i % 65 / 2 << (i % 65 + 1) / 2;
        const auto narrow = static_cast<std::uint32_t>(wide >> 32);
        const float u = sy::uniform(words.word[2]);
        to[i] = {sy::count_bits(narrow),
                 sy::count_bits(wide),
                 sy::first_bit(narrow),
                 sy::first_bit(wide),
                 u,
                 sy::jitter_factor<float>(u, 0.02f)};
    }
};

template <class Plan>
sy::plan_totals noted(const Plan& plan) {
    return sy::totals_of(device, plan);
}

}  // namespace

TEST_CASE("a mask in the host's memory is refused") {
    input in(ref::matrix{{0, 1}, {2, 1}});
    in.mask = ref::filled<std::uint8_t>(2, 1);
    device_plan<float> plan;
    device_scratch scratch;
    CHECK_THROWS_WITH_AS(sy::route_scores(device, sy::switch_router{}, in.device_scores, in.host_step(), plan, scratch),
                         "the mask says that it lies in the host's memory, and this policy works in a device's: set "
                         "on_device, and give the address there",
                         sy::error);
}

TEST_CASE("Switch on Thrust: the CPU backend's decisions, gates, losses and gradients") {
    device_scratch scratch;
    CHECK(holds("Switch on Thrust", 300, [&] {
        sy::switch_router router{.capacity = any_capacity(),
                                 .logit_jitter = one_of(0.0f, 0.0f, 0.02f),
                                 .balance_weight = one_of(0.0, 0.01),
                                 .z_weight = one_of(0.0, 0.001)};
        router.inference_capacity = router.capacity;
        const bool drops = router.capacity.factor.has_value();
        const input in = any_input(drops, router.logit_jitter == 0);
        if (coin()) router.no_token_left_behind = whole(1, in.scores.columns());
        const auto sentence = difference(router, in, coin(), scratch);
        if (!sentence.empty()) RC_FAIL(sentence);
    }));
    covers<operation("Switch, forward"), operation("Switch, backward"), operation("logit jitter"),
           operation("load-balancing loss and its gradient"), operation("z-loss and its gradient"),
           operation("capacity and slots, drops by position"), operation("no token left behind")>(device);
}

TEST_CASE("top-k on Thrust: the CPU backend's decisions, gates, losses and gradients") {
    device_scratch scratch;
    CHECK(holds("top-k on Thrust", 300, [&] {
        sy::top_k_router router{.softmax = one_of(sy::softmax_order::before, sy::softmax_order::after),
                                .renormalize = coin(),
                                .capacity = any_capacity(),
                                .logit_jitter = one_of(0.0f, 0.0f, 0.02f),
                                .balance_weight = one_of(0.0, 0.01),
                                .balance = one_of(sy::balance_count::first, sy::balance_count::all),
                                .z_weight = one_of(0.0, 0.001)};
        router.inference_capacity = router.capacity;
        const input in = any_input(router.capacity.factor.has_value(), router.logit_jitter == 0);
        router.k = whole(1, std::min<index_t>(in.scores.columns(), 9));
        const bool training = coin() && !(router.k == 1 && sy::normalizes(router));
        const auto sentence = difference(router, in, training, scratch);
        if (!sentence.empty()) RC_FAIL(sentence);
    }));
    covers<operation("top-k, forward"), operation("top-k, backward"), operation("logit jitter"),
           operation("load-balancing loss and its gradient"), operation("z-loss and its gradient"),
           operation("capacity and slots, drops by position")>(device);
}

TEST_CASE("recipes on Thrust: the CPU backend's decisions, gates, losses, gradients and biases") {
    const ref::matrix table = draw_scores(score_kind::gaussian, 150, 48, 5, 20);
    const auto mask = draw_mask(150, 6);
    const auto checks = [&](const both_recipes& routers) {
        CHECK(recipe_difference(device, routers, table, mask, true) == "");
        CHECK(recipe_difference(device, routers, table, {}, false) == "");
    };
    // DeepSeek-V3's, with all there is; then its relatives.
    checks({[](auto& router) {
                router.k = 8;
                router.score = sy::score_function::sigmoid;
                router.groups = sy::expert_groups{.count = 8, .kept = 4};
                router.normalize = sy::gate_sum::add;
                router.epsilon = 1e-20;
                router.scale = 2.5;
                router.capacity = router.inference_capacity = sy::capacity_rule{.factor = 0.9};
                router.balance_weight = 0.01;
                router.z_weight = 0.001;
            },
            {.logit = spread_bias(48, 5), .selection = spread_bias(48, 7)}});
    for (const index_t k : {20, 30}) {  // of the 24 experts in a token's groups, and of all
        checks({[&](auto& router) {
                    router.k = k;
                    router.score = sy::score_function::sqrt_softplus;
                    router.groups =
                        sy::expert_groups{.count = 4, .kept = 2, .summed = 3, .masked = sy::group_mask::zero};
                    router.normalize = sy::gate_sum::clamp;
                    router.epsilon = 0.25;
                    router.logit_jitter = 0.02f;
                    router.capacity = router.inference_capacity = sy::capacity_rule{.number = 200};
                },
                {.selection = spread_bias(48, 11)}});
    }
    checks({[](auto& router) {
                router.k = 3;
                router.key = sy::key_source::score;
                router.capacity = router.inference_capacity = sy::capacity_rule{.number = 200};
            },
            {.selection = spread_bias(48, 11)}});
    checks({[](auto& router) {
        router.score = sy::score_function::sigmoid;
        router.scale = 2;
        router.capacity = router.inference_capacity = sy::capacity_rule{.number = 200};
    }});
    both_recipes given(
        [](auto& router) {
            router.k = 3;
            router.score = sy::score_function::sigmoid;
            router.normalize = sy::gate_sum::add;
            router.capacity = router.inference_capacity = sy::capacity_rule{.factor = 0.9};
        },
        {.logit = spread_bias(48, 5)});
    given.give_choices(150, 48);
    checks(given);
    for_each_far_choice(24, 3, [](const both_recipes& routers, const ref::matrix& scores, const ref::mask_list& live) {
        CHECK(recipe_difference(device, routers, scores, live, true) == "");
    });
    covers<operation("recipe, forward"), operation("recipe, backward"), operation("update of the bias"),
           operation("choices made elsewhere")>(device);
}

TEST_CASE_TEMPLATE("quantile balancing on Thrust: the CPU's bits", S, float, double) {
    struct shape {
        index_t tokens, experts, k;
    };
    device_scratch scratch;
    sy::workspace host_scratch;
    std::uint64_t seed = 0;
    for (const shape size : {shape{200, 8, 2}, shape{130, 13, 5}, shape{4, 8, 2}, shape{2, 2, 1}, shape{64, 32, 31}}) {
        CAPTURE(size.tokens);
        const auto table = draw_scores(size.tokens == 130 ? score_kind::small_integers : score_kind::gaussian,
                                       size.tokens, size.experts, ++seed);
        const auto saved = spread_bias(size.experts, 5);
        const sy::bias_settings settings{.rule = sy::bias_rule::quantile, .ema = 0.25};
        sy::bias_state host(sy::seq, size.experts, settings);
        sy::bias_state there(device, size.experts, settings);
        std::copy(saved.begin(), saved.end(), host.view().data);
        sy::copy_to_device(device, host.view(), there.view());
        host.update(sy::seq, stored<S>(table), size.k, host_scratch);
        there.update(device, sy::copy_to_device(device, stored<S>(table)), size.k, scratch);
        const auto moved = sy::copy_to_host(device, there.view());
        CHECK(array_difference("bias", moved.data(), host.view().data, size.experts) == "");

        // Scores that are not finite, which a CPU refuses, move nothing.
        auto bad = table;
        bad(1, 1) = size.k % 2 == 0 ? -ref::infinity : std::numeric_limits<double>::quiet_NaN();
        there.update(device, sy::copy_to_device(device, stored<S>(bad)), size.k, scratch);
        const auto same = sy::copy_to_host(device, there.view());
        CHECK(array_difference("bias", same.data(), moved.data(), size.experts) == "");
    }
    covers<operation("update of the bias")>(device);
}

TEST_CASE("BASE on Thrust: greedy at inference, the solver's assignment in training") {
    device_scratch scratch;
    for (std::uint64_t seed = 0; seed < 20; ++seed) {
        CAPTURE(seed);
        const index_t tokens = static_cast<index_t>(seed) * 7 % 60;
        const auto kind = static_cast<score_kind>(seed % 3);
        const input in(draw_scores(kind, tokens, 6, seed), seed % 2 == 0 ? draw_mask(tokens, seed) : ref::mask_list{});
        CHECK(difference(sy::base_router{}, in, false, scratch) == "");
        CHECK(difference(sy::base_router{}, in, true, scratch) == "");
    }
    covers<operation("BASE, training by the exact solver"), operation("BASE, inference"), operation("BASE, backward")>(
        device);
}

TEST_CASE("Switch on Thrust: drop order by gate, and sampling, away from near-ties") {
    // Gates differ by an ulp between backends, and so may an order by gates; these scores have gates far apart.
    device_scratch scratch;
    ref::matrix table(90, 5);
    for (index_t t = 0; t < table.rows; ++t) table(t, t % 5) = 1 + static_cast<double>((t * 37) % 90) / 16;
    const input in(table);
    CHECK(difference(sy::switch_router{.capacity = {.factor = 0.5}, .order = sy::drop_order::gate}, in, true,
                     scratch) == "");
    const input random(gaussian_scores(200, 16, 8));
    CHECK(difference(sy::switch_router{.sample_temperature = 1}, random, true, scratch) == "");
    covers<operation("drops by gate"), operation("sampling")>(device);
}

TEST_CASE("routing on Thrust: counts of bits, random numbers and jitter are the host's, bit by bit") {
    constexpr index_t count = 1000;
    sy::buffer<probed, device_memory> made(count, sy::memory_of(device));
    sy::for_each_index(device, count, probe_numbers{made.data()});
    std::vector<probed> got(count);
    std::vector<probed> want(count);
    device.copy_to_host(got.data(), made.data(), count * sizeof(probed));
    for (index_t i = 0; i < count; ++i) probe_numbers{want.data()}(i);
    CHECK(got == want);
}

TEST_CASE("routing on Thrust: against the reference") {
    device_scratch scratch;
    for (const index_t tokens : {1, 5, 64, 65, 700}) {
        CAPTURE(tokens);
        const input in(gaussian_scores(tokens, 12, 40));
        const sy::switch_router switches{.z_weight = 1e-3};
        const auto one = route_both(switches, in, true, scratch);
        CHECK(mismatch(one.copy, ref::route_scores(reference_of(switches, true), in.table)) == "");
        const sy::top_k_router lists{.k = 3, .renormalize = true, .capacity = {.factor = 0.7}, .z_weight = 1e-3};
        const auto three = route_both(lists, in, true, scratch);
        CHECK(mismatch(three.copy, ref::route_scores(reference_of(lists, true), in.table)) == "");
    }
}

TEST_CASE("routing on Thrust: bad scores are a status, which check throws") {
    device_scratch scratch;
    const auto route = [&](const auto& router, const sy::matrix<float>& scores) {
        device_plan<float> plan;
        sy::route_scores(device, router, sy::copy_to_device(device, scores), sy::training{}, plan, scratch);
        return plan;
    };
    auto scores = gaussian<float>(400, 6, 1);
    scores(320, 2) = not_a_number;
    scores(321, 0) = infinity;
    const auto bad = route(sy::switch_router{}, scores);
    CHECK(noted(bad).status == sy::plan_status::bad_score);
    CHECK(noted(bad).status_token == 320);
    CHECK(sentence_of([&] { sy::check(device, bad); }) ==
          "a score of token 320 is NaN or +infinity: a score must be finite, or -infinity to forbid an expert");
    // The rest of the plan can be used: that token alone has no row.
    const auto copy = sy::copy_to_host(device, bad);
    CHECK(copy.view().slot[320] == -1);
    CHECK(copy.view().slot[319] >= 0);

    // NaN may be forgiven, +infinity may not.
    const auto forgiven = route(sy::switch_router{.bad = sy::bad_scores::forbid_nan}, scores);
    CHECK(noted(forgiven).status_token == 321);

    // A token without experts: an error where nothing may be dropped, and then found before a later bad score.
    for (index_t e = 0; e < 6; ++e) scores(17, e) = -infinity;
    const auto closed = route(sy::top_k_router{}, scores);
    CHECK(noted(closed).status == sy::plan_status::unroutable);
    CHECK(noted(closed).status_token == 17);
    CHECK(sentence_of([&] { sy::check(device, closed); }) ==
          "token 17 has every expert forbidden (-infinity) and may not be dropped");
    CHECK(noted(route(sy::top_k_router{.capacity = {.factor = 2}}, scores)).status_token == 320);

    // The next plan of good scores is good.
    const auto good = route(sy::switch_router{}, gaussian<float>(400, 6, 2));
    CHECK(noted(good).status == sy::plan_status::good);
    CHECK(noted(good).status_token == -1);

    sy::matrix<float> greedy(3, 2);
    for (index_t i = 0; i < 6; ++i) greedy.data()[i] = i == 3 ? not_a_number : 1.0f;
    device_plan<float> plan;
    sy::route_scores(device, sy::base_router{}, sy::copy_to_device(device, greedy), sy::inference{}, plan, scratch);
    CHECK(noted(plan).status_token == 1);
}

TEST_CASE("routing on Thrust: settings and shapes are checked at once, by exceptions") {
    const auto scores = sy::copy_to_device(device, gaussian<float>(8, 4, 1));
    CHECK(sentence_of([&] { sy::route_scores(device, sy::top_k_router{.k = 5}, scores); }) ==
          "k = 5 must lie in 1..E = 4");
    const auto plan = sy::route_scores(device, sy::top_k_router{}, scores, sy::inference{});
    const sy::matrix<float, device_memory> d_gates(8, 2);
    CHECK(sentence_of([&] { sy::route_scores_backward(device, sy::top_k_router{}, plan, scores, d_gates); }) ==
          "the plan was made by inference; backward needs one made with training{}");
}

TEST_CASE("routing on Thrust: strided scores, and rows 2^32 elements apart") {
    device_scratch scratch;
    const auto table = gaussian_scores(30, 8, 4);
    const input in(table);
    // Columns first: the transpose of a dense device matrix.
    sy::matrix<float> turned(8, 30);
    for (index_t t = 0; t < 30; ++t) {
        for (index_t e = 0; e < 8; ++e) turned(e, t) = in.scores(t, e);
    }
    const auto device_turned = sy::copy_to_device(device, turned);
    const auto want = sy::copy_to_host(device, sy::route_scores(device, sy::switch_router{}, in.device_scores));
    const auto got = sy::route_scores(device, sy::switch_router{}, sy::transposed(sy::as_view(device_turned)));
    CHECK(decision_difference(sy::copy_to_host(device, got), want) == "");

    // Three rows, 2^32 elements apart: 48 GiB, of which three pages are used.
    constexpr index_t apart = index_t{1} << 32;
    const address_space<device_policy> space(3 * apart * sizeof(float));
    if (space.data() == nullptr) {
        MESSAGE("no room for rows 2^32 elements apart");
        return;
    }
    const sy::matrix_view<float, device_space> far(static_cast<float*>(space.data()), 3, 8, apart, 1);
    for (index_t t = 0; t < 3; ++t) device.copy_to_device(&far(t, 0), &in.scores(t, 0), 8 * sizeof(float));
    const auto three = sy::copy_to_host(device, sy::route_scores(device, sy::top_k_router{}, far, sy::training{}));
    const sy::matrix_view<const float> first_rows(in.scores.data(), 3, 8);
    CHECK(decision_difference(three, sy::route_scores(sy::seq, sy::top_k_router{}, first_rows, sy::training{})) == "");
}

TEST_CASE("recipes on Thrust: experts without rows, and combine with their tokens") {
    for_each_rowless_recipe([](const both_recipes& routers) {
        for (const index_t tokens : {5, 700}) {
            const index_t forbidden = routers.host.capacity.factor || routers.host.capacity.number ? 60 : 0;
            const auto table = draw_scores(score_kind::gaussian, tokens, 24, 3, static_cast<int>(forbidden));
            const auto mask = draw_mask(tokens, 4);
            CHECK(recipe_difference(device, routers, table, mask, true) == "");
            CHECK(recipe_difference(device, routers, table, {}, false) == "");
            CHECK(identity_difference(device, routers, table, mask, 37) == "");
        }
    });
    covers<operation("identity experts")>(device);
}
