#include "support/compare.hpp"

#include <switchyard/reference/softmax.hpp>
#include <switchyard/score/softmax.hpp>

#include <doctest/doctest.h>

#include <array>
#include <bit>
#include <cmath>
#include <cstring>
#include <vector>

using namespace switchyard_test;

namespace {

constexpr auto see_nothing = [](auto...) {};

template <class S, int Width>
struct pack_of {
    using scalar = S;
    static constexpr int width = Width;
};

/// Rows on the heap, each exactly E numbers long.
template <class S>
std::vector<std::vector<S>> heap_rows(const ref::matrix& scores) {
    std::vector<std::vector<S>> rows(static_cast<std::size_t>(scores.rows));
    for (index_t t = 0; t < scores.rows; ++t) {
        for (index_t e = 0; e < scores.columns; ++e)
            rows[static_cast<std::size_t>(t)].push_back(static_cast<S>(scores(t, e)));
    }
    return rows;
}

}  // namespace

#define EVERY_PACK                                                                                   \
    pack_of<float, 1>, pack_of<float, 4>, pack_of<float, 8>, pack_of<float, 16>, pack_of<double, 1>, \
        pack_of<double, 2>, pack_of<double, 4>, pack_of<double, 8>

TEST_CASE_TEMPLATE("softmax rows: maximum, first argmax, sum and exponentials, packs of every width", K, EVERY_PACK) {
    using S = typename K::scalar;
    constexpr int W = K::width;
    for (const auto kind : {score_kind::gaussian, score_kind::small_integers, score_kind::equal,
                            score_kind::signed_zeros, score_kind::huge, score_kind::close, score_kind::wide}) {
        for (const index_t experts : {1, 2, 3, 7, 8, 16, 17, 60, 64, 65, 100, 128, 129, 200}) {
            const auto scores = draw_scores(kind, 4, experts, 3, 20);
            const auto rows = heap_rows<S>(scores);
            const S* const four[4] = {rows[0].data(), rows[1].data(), rows[2].data(), rows[3].data()};
            const index_t length = sy::padded<W>(experts);
            std::vector<S> exponentials(static_cast<std::size_t>(4 * length), S(-1));
            const auto found = sy::softmax_rows<W, 4>(four, experts, exponentials.data());
            for (int r = 0; r < 4; ++r) {
                const auto row = ref::row_of(scores, r);
                const double largest = ref::maximum(row);
                if (largest == never) {
                    CHECK(std::isnan(found.sum[r]));  // told from good rows
                    CHECK(std::isnan(sy::maxima_of_rows<W, 4>(four, experts, see_nothing).sum[r]));
                    continue;
                }
                const auto at = static_cast<std::size_t>(r);
                index_t best = 0;
                while (row[best] != largest) ++best;
                const auto want = ref::softmax(row);
                CHECK(static_cast<double>(found.maximum[r]) == largest);
                CHECK(found.best[r] == best);
                CHECK(highest(found.column_maxima[r]) == found.maximum[r]);
                CHECK(is_gate<S>(1.0 / static_cast<double>(found.sum[r]), want[best]));
                for (index_t e = 0; e < length; ++e) {
                    const auto exponential = exponentials[static_cast<std::size_t>(r * length + e)];
                    if (e >= experts) {
                        CHECK(exponential == S(0));
                    } else if (!is_gate<S>(static_cast<double>(exponential / found.sum[r]), want[e])) {
                        FAIL_CHECK("E " << experts << " e " << e << ": " << exponential / found.sum[r] << " not "
                                        << want[e]);
                    }
                }
                // A row alone gives the bits it gives among others, and does not need its exponentials kept.
                const S* const one[1] = {rows[at].data()};
                const auto alone = sy::softmax_rows<W, 1>(one, experts, static_cast<S*>(nullptr));
                CHECK(std::memcmp(&alone.sum[0], &found.sum[r], sizeof(S)) == 0);
                CHECK(alone.best[0] == best);
                // Maxima alone are the same maxima.
                const auto maxima = sy::maxima_of_rows<W, 1>(one, experts, see_nothing);
                CHECK(maxima.maximum[0] == found.maximum[r]);
                if (kind != score_kind::huge) CHECK(maxima.sum[0] == S(1));  // huge sums may overflow, and be looked at
                CHECK(equal_bits(maxima.column_maxima[0], found.column_maxima[r]) == (1u << W) - 1u);
            }
        }
    }
}

TEST_CASE_TEMPLATE("softmax rows: NaN and infinities anywhere leave a sum that is not finite", S, float, double) {
    constexpr int W = sy::native_width<S>;
    for (const index_t experts : {1, 3, 16, 17, 64, 100}) {
        for (index_t at = 0; at < experts; ++at) {
            for (const double bad : {static_cast<double>(NAN), static_cast<double>(INFINITY)}) {
                auto scores = gaussian_scores(1, experts, 7);
                scores(0, at) = bad;
                const auto rows = heap_rows<S>(scores);
                const S* const one[1] = {rows[0].data()};
                const auto found = sy::softmax_rows<W, 1>(one, experts, static_cast<S*>(nullptr));
                if (std::isfinite(found.sum[0])) FAIL_CHECK("E " << experts << ", " << bad << " at " << at);
                if (std::isfinite(sy::maxima_of_rows<W, 1>(one, experts, see_nothing).sum[0])) {
                    FAIL_CHECK("maxima, E " << experts << ", " << bad << " at " << at);
                }
                CHECK(found.best[0] >= 0);
                CHECK(found.best[0] < experts);
            }
        }
    }
}

TEST_CASE_TEMPLATE("softmax rows: the argmax is an expert even where NaN hides every number", K, EVERY_PACK) {
    using S = typename K::scalar;
    for (index_t experts = 1; experts <= 40; ++experts) {
        ref::matrix scores(1, experts, NAN);
        scores(0, 0) = 5;
        const auto rows = heap_rows<S>(scores);
        const S* const one[1] = {rows[0].data()};
        const auto found = sy::softmax_rows<K::width, 1>(one, experts, static_cast<S*>(nullptr));
        CHECK(found.best[0] >= 0);
        CHECK(found.best[0] < experts);
    }
}

TEST_CASE_TEMPLATE("add_scaled_rows: column sums of the rows, in order", S, float, double) {
    constexpr int W = sy::native_width<S>;
    for (const index_t experts : {1, 5, 16, 33, 100}) {
        const index_t length = sy::padded<W>(experts);
        std::vector<S> rows(static_cast<std::size_t>(4 * length));
        std::vector<S> sums(static_cast<std::size_t>(length), S(0.5));
        for (std::size_t i = 0; i < rows.size(); ++i) rows[i] = static_cast<S>(i % 17) / S(8);
        const S scale[4] = {S(1), S(0.5), S(0.25), S(0)};
        sy::add_scaled_rows<W, 4>(rows.data(), experts, scale, sums.data());
        for (index_t e = 0; e < length; ++e) {
            double want = 0.5;
            for (index_t r = 0; r < 4; ++r) {
                want +=
                    static_cast<double>(rows[static_cast<std::size_t>(r * length + e)]) * static_cast<double>(scale[r]);
            }
            CHECK(static_cast<double>(sums[static_cast<std::size_t>(e)]) == want);  // all of them eighths: exact
        }
    }
}

TEST_CASE_TEMPLATE("softmax_value: a probability from what was kept of the row", S, float, double) {
    const auto scores = gaussian_scores(1, 9, 2);
    const auto rows = heap_rows<S>(scores);
    const S* const one[1] = {rows[0].data()};
    const auto found = sy::softmax_rows<sy::native_width<S>, 1>(one, 9, static_cast<S*>(nullptr));
    const auto want = ref::softmax(ref::row_of(scores, 0));
    for (index_t e = 0; e < 9; ++e) {
        const S p = sy::softmax_value(rows[0][static_cast<std::size_t>(e)], found.maximum[0], found.sum[0]);
        CHECK(is_gate<S>(static_cast<double>(p), want[e]));
    }
}
