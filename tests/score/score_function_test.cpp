// Sigmoid and sqrt-softplus: accuracy, special values, and the same bits at every width and on every target.
#include "support/compare.hpp"

#include <switchyard/reference/recipe.hpp>
#include <switchyard/reference/softmax.hpp>
#include <switchyard/score/score_function.hpp>

#include <doctest/doctest.h>

#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <vector>

using namespace switchyard_test;

namespace {

template <class S>
constexpr S infinite = std::numeric_limits<S>::infinity();

template <class S>
using word_of = std::make_unsigned_t<typename sy::float_bits<S>::type>;

/// Scores of every size and sign, and the special ones. A multiple of 16.
template <class S>
std::vector<S> many_scores() {
    std::mt19937_64 random(1);
    std::vector<S> scores{S(0),
                          -S(0),
                          infinite<S>,
                          -infinite<S>,
                          std::numeric_limits<S>::max(),
                          std::numeric_limits<S>::lowest(),
                          std::numeric_limits<S>::min(),
                          -std::numeric_limits<S>::denorm_min()};
    for (const double width : {0.01, 1.0, 20.0, 100.0, 800.0}) {
        for (int i = 0; i < 8000; ++i) {
            // Without a distribution, whose numbers are each library's own.
            const double unit = static_cast<double>(random() >> 11) * 0x1p-53;
            scores.push_back(static_cast<S>(width * (2 * unit - 1)));
        }
    }
    scores.resize(scores.size() / 16 * 16);
    return scores;
}

/// What the four functions make of every score with packs of W numbers, as words.
template <int W, class S>
std::vector<word_of<S>> words_of(const std::vector<S>& scores) {
    using P = sy::pack<S, W>;
    std::vector<word_of<S>> words;
    const auto add = [&](P made) {
        S lanes[W];
        made.store(lanes);
        for (const S lane : lanes) words.push_back(std::bit_cast<word_of<S>>(lane));
    };
    // By function, so that the order is the same for every W.
    const auto all = [&](const auto& f) {
        for (std::size_t i = 0; i < scores.size(); i += W) add(f(P::load(scores.data() + i)));
    };
    all([](P s) { return sy::sigmoid(s); });
    all([](P s) { return sy::sigmoid_derivative(s); });
    all([](P s) { return sy::sqrt_softplus(s); });
    all([](P s) { return sy::sqrt_softplus_derivative(s); });
    return words;
}

/// FNV-1a of words.
template <class Word>
std::uint64_t hash_of(const std::vector<Word>& words) {
    std::uint64_t hash = 0xcbf29ce484222325u;
    for (const Word word : words) hash = (hash ^ word) * 0x100000001b3u;
    return hash;
}

/// The largest relative error over the line where the wanted number is a normal one.
template <class S, class Got, class Want>
double worst_error(const Got& got, const Want& want) {
    double worst = 0;
    for (double x = -80; x <= 80; x += 0.0137) {
        const S score = static_cast<S>(x);
        const double right = want(static_cast<double>(score));
        worst = std::max(worst, std::abs(static_cast<double>(got(score)) - right) / right);
    }
    return worst;
}

}  // namespace

TEST_CASE_TEMPLATE("sigmoid: a few ulp over the whole line, and its derivative keeps its digits near 1", S, float,
                   double) {
    const double worst = worst_error<S>([](S s) { return sy::sigmoid(s); }, [](double s) { return ref::sigmoid(s); });
    const double worst_derivative = worst_error<S>([](S s) { return sy::sigmoid_derivative(s); },
                                                   [](double s) {
                                                       const double e = std::exp(-std::abs(s));
                                                       return e / ((1 + e) * (1 + e));
                                                   });
    CHECK(worst < 4 * std::numeric_limits<S>::epsilon());
    CHECK(worst_derivative < 6 * std::numeric_limits<S>::epsilon());
}

TEST_CASE_TEMPLATE("sigmoid: special values", S, float, double) {
    CHECK(sy::sigmoid(S(0)) == S(0.5));
    CHECK(sy::sigmoid(-S(0)) == S(0.5));
    CHECK(sy::sigmoid(infinite<S>) == S(1));
    CHECK(sy::sigmoid(-infinite<S>) == S(0));
    CHECK(sy::sigmoid(std::numeric_limits<S>::max()) == S(1));
    CHECK(std::isnan(sy::sigmoid(std::numeric_limits<S>::quiet_NaN())));
    CHECK(sy::sigmoid_derivative(S(0)) == S(0.25));
    CHECK(sy::sigmoid_derivative(infinite<S>) == S(0));
    CHECK(sy::sigmoid_derivative(-infinite<S>) == S(0));
}

TEST_CASE_TEMPLATE("sqrt-softplus: a few ulp over the whole line, value and derivative", S, float, double) {
    const auto value = [](double s) { return std::sqrt(ref::softplus(s)); };
    CHECK(worst_error<S>([](S s) { return sy::sqrt_softplus(s); }, value) < 4 * std::numeric_limits<S>::epsilon());
    CHECK(worst_error<S>([](S s) { return sy::sqrt_softplus_derivative(s); },
                         [&](double s) { return ref::sigmoid(s) / (2 * value(s)); }) <
          6 * std::numeric_limits<S>::epsilon());
    // And the derivative is that of the value.
    for (const double s : {-9.0, -1.0, 0.0, 0.5, 3.0, 40.0}) {
        const double step = 1e-5;
        const double slope = (value(s + step) - value(s - step)) / (2 * step);
        CHECK(static_cast<double>(sy::sqrt_softplus_derivative(static_cast<S>(s))) ==
              doctest::Approx(slope).epsilon(1e-5));
    }
}

TEST_CASE_TEMPLATE("sqrt-softplus: special values", S, float, double) {
    constexpr S nan = std::numeric_limits<S>::quiet_NaN();
    CHECK(sy::sqrt_softplus(-infinite<S>) == S(0));
    CHECK(sy::sqrt_softplus(std::numeric_limits<S>::lowest()) == S(0));
    CHECK(sy::sqrt_softplus(infinite<S>) == infinite<S>);
    CHECK(std::isnan(sy::sqrt_softplus(nan)));
    // Far out it is the root of the score: there is no saturation.
    CHECK(sy::sqrt_softplus(S(400)) == S(20));
    CHECK(sy::sqrt_softplus(std::numeric_limits<S>::max()) == std::sqrt(std::numeric_limits<S>::max()));
    CHECK(sy::sqrt_softplus_derivative(-infinite<S>) == S(0));
    CHECK(sy::sqrt_softplus_derivative(std::numeric_limits<S>::lowest()) == S(0));
    CHECK(sy::sqrt_softplus_derivative(infinite<S>) == S(0));
    CHECK(sy::sqrt_softplus_derivative(S(400)) == S(0.025));
}

TEST_CASE_TEMPLATE("score functions: rising scores have values that do not fall by more than rounding", S, float,
                   double) {
    S score = S(-120);
    S highest_value[2] = {S(0), S(0)};
    for (int i = 0; i < 24000; ++i, score += S(0.01)) {
        const S value[2] = {sy::sigmoid(score), sy::sqrt_softplus(score)};
        for (int f = 0; f < 2; ++f) {
            if (!(value[f] >= highest_value[f] * (1 - 4 * std::numeric_limits<S>::epsilon()))) FAIL_CHECK(score);
            highest_value[f] = std::max(highest_value[f], value[f]);
        }
    }
}

TEST_CASE("score functions: the same bits at every width and on every target") {
    const auto floats = many_scores<float>();
    const auto want = words_of<1>(floats);
    CHECK(words_of<2>(floats) == want);
    CHECK(words_of<4>(floats) == want);
    CHECK(words_of<8>(floats) == want);
    CHECK(words_of<16>(floats) == want);
    const auto doubles = many_scores<double>();
    const auto wide = words_of<1>(doubles);
    CHECK(words_of<2>(doubles) == wide);
    CHECK(words_of<4>(doubles) == wide);
    CHECK(words_of<8>(doubles) == wide);
    // This file is compiled for several instruction sets, and by several compilers.
    CHECK(hash_of(want) == 18308095258595693681u);
    CHECK(hash_of(wide) == 1048083545643769407u);
}

TEST_CASE_TEMPLATE("score functions: value_of and slope_of are theirs", S, float, double) {
    using P = sy::pack<S, 1>;
    for (const S s : {S(-3), S(0), S(1.25), S(7)}) {
        CHECK(sy::value_of(sy::score_function::sigmoid, P{s}, P{S(7)}).v == sy::sigmoid(s));
        CHECK(sy::value_of(sy::score_function::sqrt_softplus, P{s}, P{S(7)}).v == sy::sqrt_softplus(s));
        CHECK(sy::value_of(sy::score_function::softmax, P{s}, P{S(7)}).v == sy::exp_nonpositive(s - 7));
        CHECK(sy::slope_of(sy::score_function::sigmoid, P{s}).v == sy::sigmoid_derivative(s));
        CHECK(sy::slope_of(sy::score_function::sqrt_softplus, P{s}).v == sy::sqrt_softplus_derivative(s));
    }
}
