// What every recipe has in common, whatever its parts: tokens do not know of each other, experts have no names, a scale
// is applied once, and gates and gradients add up as documented. Without capacity, noise and ties; in double.
#include "support/property.hpp"
#include "support/routed.hpp"

#include <switchyard/router/recipe.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>
#include <string>
#include <vector>

using namespace switchyard_test;

namespace {

using recipe = sy::recipe_router<>;
using floats = std::vector<float>;
using places = std::vector<index_t>;

std::size_t at(index_t i) { return static_cast<std::size_t>(i); }

/// A router with the numbers that it refers to, scores, a cotangent of the gates by expert, and tokens that count.
struct drawn_case {
    recipe settings;
    floats logit_bias, selection_bias, expert_scale;
    ref::matrix scores, c;
    ref::mask_list mask;

    index_t tokens() const { return scores.rows; }
    index_t experts() const { return scores.columns; }

    recipe router() const {
        const auto numbers = [](const floats& list) {
            return sy::expert_numbers<>{list.empty() ? nullptr : list.data(), static_cast<index_t>(list.size())};
        };
        recipe made = settings;
        made.logit_bias = numbers(logit_bias);
        made.selection_bias = numbers(selection_bias);
        made.expert_scale = numbers(expert_scale);
        return made;
    }
};

floats draw_numbers(index_t experts, double mean, double deviation) {
    std::mt19937_64 random(any_seed());
    std::normal_distribution<double> normal(mean, deviation);
    floats numbers(at(experts));
    for (float& number : numbers) number = static_cast<float>(normal(random));
    return numbers;
}

void draw_parts(drawn_case& drawn) {
    recipe& r = drawn.settings;
    const index_t experts = drawn.experts();
    r.score = one_of(sy::score_function::softmax, sy::score_function::sigmoid, sy::score_function::sqrt_softplus);
    r.key = coin() ? sy::key_source::value : sy::key_source::score;
    if (coin()) drawn.selection_bias = draw_numbers(experts, one_of(0.0, -1.0), 0.3);
    if (coin()) drawn.logit_bias = draw_numbers(experts, 0, 0.5);
    if (coin() && coin()) drawn.expert_scale = draw_numbers(experts, 1, 0.5);
    if (coin() && coin()) r.logit_multiplier = 0.75;
    if (coin() && coin()) r.softcap = 2.5;
    switch (r.k == 1 ? whole(0, 1) : whole(0, 4)) {
        case 0:
            break;
        case 1:
            r.normalize = sy::gate_sum::clamp;
            r.epsilon = 0.3;
            break;
        case 2:
            r.normalize = sy::gate_sum::add;
            r.epsilon = one_of(0.0, 1e-20, 0.25);
            break;
        default:
            r.normalize = sy::gate_sum::norm;
            r.norm_power = one_of(1.0, 2.0, 3.5);
    }
    r.scale = one_of(1.0, 2.5);
}

drawn_case draw_case() {
    const index_t groups = one_of(index_t{1}, index_t{2}, index_t{4});
    const index_t size = whole(1, coin() ? 4 : 20);
    const index_t experts = groups * size;
    const bool is_long = whole(0, 9) == 9;
    const index_t tokens = is_long ? whole(250, 700) : whole(1, 40);
    drawn_case drawn;
    drawn.scores = draw_scores(score_kind::gaussian, tokens, experts, any_seed(), one_of(0, 0, 30));
    drawn.c = gaussian_scores(tokens, experts, any_seed());
    if (coin()) drawn.mask = draw_mask(tokens, any_seed());
    recipe& r = drawn.settings;
    if (groups > 1 && coin()) {
        r.groups = {.count = groups, .kept = whole(1, groups), .summed = std::min<index_t>(size, whole(1, 3))};
    }
    const index_t most = r.groups.count > 1 ? r.groups.kept * size : experts;
    r.k = whole(1, std::min<index_t>(most, 8));
    draw_parts(drawn);
    RC_LOG() << tokens << " x " << experts << ", k " << r.k << ", score " << static_cast<int>(r.score) << ", groups "
             << r.groups.count << " keep " << r.groups.kept << ", normalize " << static_cast<int>(r.normalize) << "\n";
    return drawn;
}

/// What a step gives: choices and gates, the scores' gradient for cotangents c[t, e] of the gates, and both losses.
struct outcome {
    sy::plan<double> plan;
    ref::matrix d_scores;

    std::int32_t expert(index_t t, index_t choice) const { return plan.expert()(t, choice); }
    double gate(index_t t, index_t choice) const { return plan.gate()(t, choice); }
    bool has_row(index_t t, index_t choice) const { return plan.slot()(t, choice) >= 0; }
};

outcome step(const drawn_case& in, double balance_weight = 0, double z_weight = 0) {
    recipe router = in.router();
    router.balance_weight = balance_weight;
    router.z_weight = z_weight;
    router.bad = sy::bad_scores::error;
    router.capacity = {.number = in.tokens()};  // a token whose experts are all forbidden is dropped
    outcome made{routed<double>(router, in.scores, training_with(in.mask)), {}};
    ref::matrix d_gates(in.tokens(), router.k);
    for (index_t t = 0; t < in.tokens(); ++t) {
        for (index_t choice = 0; choice < router.k; ++choice) {
            if (made.has_row(t, choice)) d_gates(t, choice) = in.c(t, made.expert(t, choice));
        }
    }
    made.d_scores = routed_backward(router, made.plan, in.scores, d_gates);
    return made;
}

bool is_close(double a, double b, double scale = 1) { return std::abs(a - b) <= 1e-11 * (scale + std::abs(a)); }

/// Token `a` of one outcome and `b` of another, bit by bit.
bool same_token(const outcome& one, index_t a, const outcome& other, index_t b) {
    for (index_t choice = 0; choice < one.plan.choices(); ++choice) {
        if (one.has_row(a, choice) != other.has_row(b, choice)) return false;
        if (one.expert(a, choice) != other.expert(b, choice)) return false;
        if (one.gate(a, choice) != other.gate(b, choice)) return false;
    }
    for (index_t e = 0; e < one.d_scores.columns; ++e) {
        if (one.d_scores(a, e) != other.d_scores(b, e)) return false;
    }
    return true;
}

places shuffled(index_t count) {
    places order(at(count));
    std::iota(order.begin(), order.end(), index_t{0});
    std::mt19937_64 random(any_seed());
    std::shuffle(order.begin(), order.end(), random);
    return order;
}

/// The tokens `from[0], from[1], ...` of a case; -1 is a padding token whose scores are NaN.
drawn_case with_tokens(const drawn_case& in, const places& from) {
    drawn_case made = in;
    const auto tokens = static_cast<index_t>(from.size());
    made.scores = made.c = ref::matrix(tokens, in.experts());
    made.mask = ref::filled<std::uint8_t>(tokens, 1);
    for (index_t t = 0; t < tokens; ++t) {
        const index_t source = from[at(t)];
        made.mask[t] = source >= 0 && ref::is_token(in.mask, source) ? 1 : 0;
        for (index_t e = 0; e < in.experts(); ++e) {
            made.scores(t, e) = source < 0 ? NAN : in.scores(source, e);
            made.c(t, e) = source < 0 ? NAN : in.c(source, e);
        }
    }
    return made;
}

/// An order of the experts that keeps groups together.
places shuffled_experts(const drawn_case& in) {
    const index_t groups = in.settings.groups.count;
    const index_t size = in.experts() / groups;
    places order;
    for (const index_t group : shuffled(groups)) {
        for (const index_t member : shuffled(size)) order.push_back(group * size + member);
    }
    return order;
}

/// Expert j is what expert from[j] was.
drawn_case with_experts(const drawn_case& in, const places& from) {
    drawn_case made = in;
    for (index_t j = 0; j < in.experts(); ++j) {
        const index_t e = from[at(j)];
        for (index_t t = 0; t < in.tokens(); ++t) {
            made.scores(t, j) = in.scores(t, e);
            made.c(t, j) = in.c(t, e);
        }
        const auto move = [&](floats& to, const floats& list) {
            if (!list.empty()) to[at(j)] = list[at(e)];
        };
        move(made.logit_bias, in.logit_bias);
        move(made.selection_bias, in.selection_bias);
        move(made.expert_scale, in.expert_scale);
    }
    return made;
}

/// What a token's gates add up to, where its rule says it. Gates are divided by their expert's scale first.
std::string sum_mismatch(const drawn_case& in, const outcome& made, index_t t) {
    const recipe& r = in.settings;
    double sum = 0, power_sum = 0;
    bool is_positive = true;
    for (index_t choice = 0; choice < r.k; ++choice) {
        double gate = made.gate(t, choice) / r.scale;
        if (gate != 0 && !in.expert_scale.empty())
            gate /= static_cast<double>(in.expert_scale[at(made.expert(t, choice))]);
        is_positive = is_positive && gate >= 0;
        sum += gate;
        power_sum += std::pow(gate, r.norm_power);
    }
    if (!is_positive) return "a negative gate";
    if (sum == 0) return "";  // nothing to divide by
    const bool is_sum = r.normalize == sy::gate_sum::add && r.epsilon < 1e-10;
    if (is_sum && !is_close(sum, 1)) return said("gates add up to ", sum);
    if (r.normalize == sy::gate_sum::norm && !is_close(power_sum, 1)) return said("the norm to the p is ", power_sum);
    const bool is_share = r.score == sy::score_function::softmax || r.normalize != sy::gate_sum::none;
    return is_share && r.normalize != sy::gate_sum::norm && sum > 1 + 1e-11 ? said("gates add up to ", sum) : "";
}

/// Ids, forbidden experts and gradients of a token.
std::string token_mismatch(const drawn_case& in, const outcome& made, index_t t) {
    auto seen = ref::filled<int>(in.experts(), 0);
    for (index_t choice = 0; choice < in.settings.k; ++choice) {
        const std::int32_t e = made.expert(t, choice);
        if (!ref::is_token(in.mask, t)) {
            if (e != -1 || made.has_row(t, choice) || made.gate(t, choice) != 0) return "padding has a choice";
            continue;
        }
        if (e < 0 || e >= in.experts()) return said("expert ", e);
        if (seen[e]++ != 0) return said("expert ", e, " twice");
        if (made.has_row(t, choice) != (in.scores(t, e) != never)) return said("the row of expert ", e);
        if (!made.has_row(t, choice) && made.gate(t, choice) != 0) return "a gate without a row";
    }
    double sum = 0, size = 0;
    for (index_t e = 0; e < in.experts(); ++e) {
        const double d = made.d_scores(t, e);
        if (d != 0 && (!ref::is_token(in.mask, t) || in.scores(t, e) == never)) return said("a gradient at ", e);
        sum += d;
        size += std::abs(d);
    }
    // Softmax does not see a shift of a whole row.
    const bool is_shift_free = in.settings.score == sy::score_function::softmax && in.settings.softcap == 0;
    return is_shift_free && std::abs(sum) > 1e-11 * (1 + size) ? said("the gradient adds up to ", sum) : "";
}

}  // namespace

TEST_CASE("property: an order of tokens orders results, and padding changes none") {
    const auto property = [] {
        const auto in = draw_case();
        places from = shuffled(in.tokens());
        if (coin()) {
            for (long i = whole(1, 20); i > 0; --i)
                from.insert(from.begin() + whole(0, static_cast<long>(from.size())), -1);
        }
        const auto other = with_tokens(in, from);
        const auto before = step(in);
        const auto after = step(other);
        for (std::size_t t = 0; t < from.size(); ++t) {
            if (from[t] >= 0) RC_ASSERT(same_token(before, from[t], after, static_cast<index_t>(t)));
        }
        for (index_t e = 0; e < in.experts(); ++e)
            RC_ASSERT(before.plan.view().load_before[e] == after.plan.view().load_before[e]);
        const auto losses = step(in, 0.5, 0.25);
        const auto moved = step(other, 0.5, 0.25);
        RC_ASSERT(is_close(losses.plan.totals().load_balancing_loss, moved.plan.totals().load_balancing_loss));
        RC_ASSERT(is_close(losses.plan.totals().z_loss, moved.plan.totals().z_loss));
        for (std::size_t t = 0; t < from.size(); ++t) {
            for (index_t e = 0; from[t] >= 0 && e < in.experts(); ++e) {
                RC_ASSERT(is_close(losses.d_scores(from[t], e), moved.d_scores(static_cast<index_t>(t), e)));
            }
        }
    };
    CHECK(holds("an order of tokens orders results, and padding changes none", 600, property));
}

TEST_CASE("property: an order of experts with their numbers orders results") {
    const auto property = [] {
        const auto in = draw_case();
        const places from = shuffled_experts(in);
        const auto before = step(in, 0.5, 0.25);
        const auto after = step(with_experts(in, from), 0.5, 0.25);
        for (index_t t = 0; t < in.tokens(); ++t) {
            for (index_t choice = 0; choice < in.settings.k; ++choice) {
                RC_ASSERT(before.has_row(t, choice) == after.has_row(t, choice));
                if (!before.has_row(t, choice)) continue;
                RC_ASSERT(before.expert(t, choice) == from[at(after.expert(t, choice))]);
                RC_ASSERT(is_close(before.gate(t, choice), after.gate(t, choice)));
            }
            for (index_t j = 0; j < in.experts(); ++j) {
                RC_ASSERT(is_close(before.d_scores(t, from[at(j)]), after.d_scores(t, j)));
            }
        }
        RC_ASSERT(is_close(before.plan.totals().load_balancing_loss, after.plan.totals().load_balancing_loss));
        RC_ASSERT(is_close(before.plan.totals().z_loss, after.plan.totals().z_loss));
    };
    CHECK(holds("an order of experts with their numbers orders results", 600, property));
}

TEST_CASE("property: a scale is applied once") {
    const auto property = [] {
        auto in = draw_case();
        const auto before = step(in);
        in.settings.scale *= 2;
        const auto after = step(in);
        for (index_t t = 0; t < in.tokens(); ++t) {
            for (index_t choice = 0; choice < in.settings.k; ++choice) {
                RC_ASSERT(after.expert(t, choice) == before.expert(t, choice));
                RC_ASSERT(after.gate(t, choice) == 2 * before.gate(t, choice));
            }
            for (index_t e = 0; e < in.experts(); ++e) {
                RC_ASSERT(is_close(after.d_scores(t, e), 2 * before.d_scores(t, e)));
            }
        }
    };
    CHECK(holds("a scale is applied once", 400, property));
}

TEST_CASE("property: choices differ, gates add up, and what is forbidden has nothing") {
    const auto property = [] {
        const auto in = draw_case();
        const auto made = step(in);
        for (index_t t = 0; t < in.tokens(); ++t) {
            RC_ASSERT(token_mismatch(in, made, t) == "");
            if (in.expert_scale.empty() || *std::min_element(in.expert_scale.begin(), in.expert_scale.end()) > 0.1f) {
                RC_ASSERT(sum_mismatch(in, made, t) == "");
            }
        }
    };
    CHECK(holds("choices differ, gates add up, and what is forbidden has nothing", 800, property));
}
