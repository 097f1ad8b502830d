#include "support/scores.hpp"

#include <switchyard/core/simd.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

using namespace switchyard_test;

namespace {

template <class S>
constexpr S infinite = std::numeric_limits<S>::infinity();
template <class S>
constexpr S not_a_number = std::numeric_limits<S>::quiet_NaN();

template <class S>
using word_of = std::make_unsigned_t<typename sy::float_bits<S>::type>;

/// Equal bits; any two NaN are the same.
template <class S>
bool same(S a, S b) {
    return std::bit_cast<word_of<S>>(a) == std::bit_cast<word_of<S>>(b) || (std::isnan(a) && std::isnan(b));
}

/// How many representable numbers lie between two positive ones.
template <class S>
double steps_between(S a, S b) {
    // Subtracted as integers: a double has too few digits for the words of doubles.
    const auto one = std::bit_cast<word_of<S>>(a);
    const auto other = std::bit_cast<word_of<S>>(b);
    return static_cast<double>(one > other ? one - other : other - one);
}

/// exp with every product rounded.
template <class S>
S rounded_exp(S x) {
    return sy::exp_nonpositive_rounded(sy::pack<S, 1>{x}).v;
}

/// The error of exp in units of the last place of the exact result.
template <class S>
double exp_error(S x, S found) {
    const long double exact = std::exp(static_cast<long double>(x));
    const S rounded = static_cast<S>(exact);
    const S unit = std::nextafter(rounded, infinite<S>) - rounded;
    return static_cast<double>(std::abs((static_cast<long double>(found) - exact) / static_cast<long double>(unit)));
}

/// Numbers that comparisons and sums stumble over.
template <class S>
std::vector<S> hostile_numbers() {
    const S huge = std::numeric_limits<S>::max();
    return {S(0),
            -S(0),
            S(1),
            S(-1),
            huge,
            -huge,
            std::numeric_limits<S>::min(),
            infinite<S>,
            -infinite<S>,
            not_a_number<S>,
            S(0.5),
            S(-0.5),
            S(1e-3),
            S(-87),
            S(-86.9),
            S(-3)};
}

/// Rows of W numbers, hostile and random ones mixed.
template <class S, int W>
std::array<S, W> draw_row(std::mt19937& random, bool hostile) {
    const auto numbers = hostile_numbers<S>();
    std::normal_distribution<double> normal;
    std::array<S, W> row;
    for (S& number : row) {
        number = hostile && random() % 3 == 0 ? numbers[random() % numbers.size()] : static_cast<S>(normal(random));
    }
    return row;
}

template <class S, int Width>
struct pack_of {
    using scalar = S;
    static constexpr int width = Width;
};

}  // namespace

#define EVERY_PACK                                                                                  \
    pack_of<float, 1>, pack_of<float, 2>, pack_of<float, 4>, pack_of<float, 8>, pack_of<float, 16>, \
        pack_of<double, 1>, pack_of<double, 2>, pack_of<double, 4>, pack_of<double, 8>

TEST_CASE_TEMPLATE("pack: every operation does what scalars do", K, EVERY_PACK) {
    using S = typename K::scalar;
    constexpr int W = K::width;
    using P = sy::pack<S, W>;
    using one = sy::pack<S, 1>;
    std::mt19937 random(5);
    bool all_same = true;
    for (int round = 0; round < 2000; ++round) {
        const auto a = draw_row<S, W>(random, true);
        const auto b = draw_row<S, W>(random, true);
        const auto c = draw_row<S, W>(random, false);
        std::array<S, W> sum, difference, product, quotient, chosen, larger, fused, exponential;
        const P x = P::load(a.data());
        const P y = P::load(b.data());
        (x + y).store(sum.data());
        (x - y).store(difference.data());
        (x * y).store(product.data());
        (x / y).store(quotient.data());
        where(above(x, y), P::load(c.data()), y).store(chosen.data());
        max(x, y).store(larger.data());
        multiply_add(x, P::load(c.data()), y).store(fused.data());
        std::array<S, W> below;
        for (int i = 0; i < W; ++i) {
            const auto at = static_cast<std::size_t>(i);
            below[at] = a[at] > 0 ? -a[at] : a[at];
        }
        sy::exp_nonpositive(P::load(below.data())).store(exponential.data());
        for (int i = 0; i < W; ++i) {
            const auto at = static_cast<std::size_t>(i);
            all_same = all_same && same(sum[at], a[at] + b[at]) && same(difference[at], a[at] - b[at]) &&
                       same(product[at], a[at] * b[at]) && same(larger[at], a[at] > b[at] ? a[at] : b[at]);
            // Fused or not, and never a third thing.
            const S rounded_twice = a[at] * c[at] + b[at];
            all_same = all_same && (same(fused[at], std::fma(a[at], c[at], b[at])) || same(fused[at], rounded_twice) ||
                                    std::abs(fused[at] - rounded_twice) <=
                                        std::abs(a[at] * c[at]) * std::numeric_limits<S>::epsilon());
            const S alone = sy::exp_nonpositive(one{below[at]}).v;
            all_same = all_same && (same(exponential[at], alone) || steps_between(exponential[at], alone) <= 1);
            all_same = all_same && ((equal_bits(x, y) >> i & 1u) != 0) == (a[at] == b[at]);
            all_same = all_same && ((at_least_bits(x, y) >> i & 1u) != 0) == (a[at] >= b[at]);
            all_same = all_same && same(quotient[at], a[at] / b[at]) && same(chosen[at], a[at] > b[at] ? c[at] : b[at]);
        }
        all_same = all_same && (static_cast<std::uint64_t>(equal_bits(x, x) | at_least_bits(x, y)) >> W) == 0;
    }
    CHECK(all_same);
}

TEST_CASE_TEMPLATE("pack: reductions", K, EVERY_PACK) {
    using S = typename K::scalar;
    constexpr int W = K::width;
    using P = sy::pack<S, W>;
    std::mt19937 random(6);
    for (int round = 0; round < 200; ++round) {
        const auto row = draw_row<S, W>(random, false);
        const P x = P::load(row.data());
        CHECK(highest(x) == *std::max_element(row.begin(), row.end()));
        // Halves first: the documented order, to the bit.
        auto halves = row;
        for (int half = W / 2; half >= 1; half /= 2) {
            for (int i = 0; i < half; ++i) {
                halves[static_cast<std::size_t>(i)] += halves[static_cast<std::size_t>(i + half)];
            }
        }
        CHECK(same(total(x), halves[0]));
    }
    CHECK(same(highest(P::all(-infinite<S>)), -infinite<S>));
    CHECK(std::isnan(total(P::all(not_a_number<S>))));
}

TEST_CASE_TEMPLATE("pack: transpose", K, EVERY_PACK) {
    using S = typename K::scalar;
    constexpr int W = K::width;
    using P = sy::pack<S, W>;
    P rows[W];
    for (int i = 0; i < W; ++i) {
        std::array<S, W> row;
        for (int j = 0; j < W; ++j) row[static_cast<std::size_t>(j)] = static_cast<S>(100 * i + j);
        rows[i] = P::load(row.data());
    }
    P::transpose(rows);
    for (int i = 0; i < W; ++i) {
        std::array<S, W> column;
        rows[i].store(column.data());
        for (int j = 0; j < W; ++j) CHECK(column[static_cast<std::size_t>(j)] == static_cast<S>(100 * j + i));
    }
}

TEST_CASE_TEMPLATE("pack: partial loads and stores touch nothing beyond", K, EVERY_PACK) {
    using S = typename K::scalar;
    constexpr int W = K::width;
    using P = sy::pack<S, W>;
    for (index_t n = 0; n <= W; ++n) {
        // On the heap and exactly as long as what may be read: the address sanitizer sees any other access.
        std::vector<S> source(static_cast<std::size_t>(n));
        for (index_t i = 0; i < n; ++i) source[static_cast<std::size_t>(i)] = static_cast<S>(i + 1);
        std::array<S, W> all;
        const P loaded = P::load_first(source.data(), n, S(-5));
        loaded.store(all.data());
        for (index_t i = 0; i < W; ++i)
            CHECK(all[static_cast<std::size_t>(i)] == (i < n ? static_cast<S>(i + 1) : S(-5)));
        std::vector<S> target(static_cast<std::size_t>(n));
        loaded.store_first(target.data(), n);
        CHECK(target == source);
        std::array<S, W + 1> guarded;
        guarded.fill(S(7));
        loaded.store_first(guarded.data(), n);
        for (index_t i = n; i <= W; ++i) CHECK(guarded[static_cast<std::size_t>(i)] == S(7));
        // The fill may be NaN or infinite.
        P::load_first(source.data(), n, not_a_number<S>).store(all.data());
        for (index_t i = n; i < W; ++i) CHECK(std::isnan(all[static_cast<std::size_t>(i)]));
    }
}

TEST_CASE_TEMPLATE("pack: all, load and store at any address, stream at multiples of its size", K, EVERY_PACK) {
    using S = typename K::scalar;
    constexpr int W = K::width;
    using P = sy::pack<S, W>;
    std::array<S, 2 * W> numbers;
    for (std::size_t i = 0; i < numbers.size(); ++i) numbers[i] = static_cast<S>(i);
    for (std::size_t offset = 0; offset <= W; ++offset) {
        std::array<S, 2 * W> target{};
        P::load(numbers.data() + offset).store(target.data() + offset);
        for (std::size_t i = 0; i < numbers.size(); ++i) {
            CHECK(target[i] == (i >= offset && i < offset + W ? numbers[i] : S(0)));
        }
    }
    alignas(64) std::array<S, 2 * W> streamed{};
    P::load(numbers.data()).stream(streamed.data());
    P::all(S(3)).stream(streamed.data() + W);
    for (std::size_t i = 0; i < W; ++i) {
        CHECK(streamed[i] == numbers[i]);
        CHECK(streamed[W + i] == S(3));
    }
    std::array<S, W> everywhere;
    for (const S number : {-infinite<S>, infinite<S>, -S(0), S(0.1)}) {
        P::all(number).store(everywhere.data());
        for (const S lane : everywhere) CHECK(lane == number);
    }
}

TEST_CASE("exp: below 2.5 ulp in float over its whole range") {
    // Every 977th float from -0 down to -87.
    double worst = 0;
    double worst_rounded = 0;
    const auto first = std::bit_cast<std::uint32_t>(-0.0f);
    const auto last = std::bit_cast<std::uint32_t>(-86.999f);
    for (std::uint32_t word = first; word <= last; word += 977) {
        const auto x = std::bit_cast<float>(word);
        worst = std::max(worst, exp_error(x, sy::exp_nonpositive(x)));
        worst_rounded = std::max(worst_rounded, exp_error(x, rounded_exp(x)));
    }
    CHECK(worst < 2.5);
    CHECK(worst_rounded < 2.5);
    CHECK(worst > 0.4);  // it was measured at all
}

TEST_CASE("exp: below 2 ulp in double over its whole range") {
    double worst = 0;
    std::mt19937_64 random(8);
    std::uniform_real_distribution<double> wide(-707.9, 0);
    std::uniform_real_distribution<double> narrow(-1, 0);
    for (int i = 0; i < 300'000; ++i) {
        for (const double x : {wide(random), narrow(random)}) {
            worst = std::max({worst, exp_error(x, sy::exp_nonpositive(x)), exp_error(x, rounded_exp(x))});
        }
    }
    CHECK(worst < 2);
}

TEST_CASE_TEMPLATE("exp: exactly 1 at 0, exactly 0 far below, NaN at NaN, never above 1, never negative", S, float,
                   double) {
    CHECK(sy::exp_nonpositive(S(0)) == S(1));
    CHECK(sy::exp_nonpositive(-S(0)) == S(1));
    CHECK(sy::exp_nonpositive(-infinite<S>) == S(0));
    CHECK(sy::exp_nonpositive(-std::numeric_limits<S>::max()) == S(0));
    CHECK(sy::exp_nonpositive(std::nextafter(sy::float_bits<S>::smallest_exponent, -infinite<S>)) == S(0));
    CHECK(sy::exp_nonpositive(sy::float_bits<S>::smallest_exponent) >= std::numeric_limits<S>::min());
    CHECK(std::isnan(sy::exp_nonpositive(not_a_number<S>)));
    CHECK(sy::exp_nonpositive(-std::numeric_limits<S>::denorm_min()) == S(1));
    CHECK(rounded_exp(S(0)) == S(1));
    CHECK(rounded_exp(-infinite<S>) == S(0));
    CHECK(std::isnan(rounded_exp(not_a_number<S>)));
    S x = S(0);
    for (int i = 0; i < 100'000; ++i, x -= S(1e-3)) {
        const S e = sy::exp_nonpositive(x);
        if (!(e >= 0 && e <= 1)) FAIL_CHECK("exp(" << x << ") = " << e);
    }
}
