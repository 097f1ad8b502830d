#include "support/scores.hpp"

#include <switchyard/score/select.hpp>
#include <switchyard/score/softmax.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <random>
#include <string>
#include <vector>

using namespace switchyard_test;

namespace {

/// The k best of a row, by sorting all of them: NaN counts as forbidden, equal scores by index.
template <class S>
std::vector<std::int32_t> sorted_choices(const std::vector<S>& row, index_t k) {
    std::vector<std::int32_t> order(row.size());
    for (std::size_t e = 0; e < row.size(); ++e) order[e] = static_cast<std::int32_t>(e);
    const auto score = [&](std::int32_t e) {
        const S s = row[static_cast<std::size_t>(e)];
        return std::isnan(s) ? -std::numeric_limits<S>::infinity() : s;
    };
    std::stable_sort(order.begin(), order.end(), [&](auto a, auto b) { return score(a) > score(b); });
    order.resize(static_cast<std::size_t>(k));
    return order;
}

/// What the library selects with packs of width W; the row is exactly as long as what may be read.
template <int W, class S>
std::string selection_mismatch(const std::vector<S>& row, index_t k) {
    const auto experts = static_cast<index_t>(row.size());
    const S* const one[1] = {row.data()};
    const auto found = sy::softmax_rows<W, 1>(one, experts, static_cast<S*>(nullptr));
    std::vector<S> scores(static_cast<std::size_t>(k), S(-77));
    std::vector<std::int32_t> choices(static_cast<std::size_t>(k), -77);
    std::vector<S> scratch(static_cast<std::size_t>(sy::selection_scratch<S>(experts)));
    sy::select_top_k<W>(row.data(), experts, k, found.column_maxima[0], scores.data(), choices.data(), scratch.data());
    const auto want = sorted_choices(row, k);
    for (std::size_t c = 0; c < want.size(); ++c) {
        const S score = row[static_cast<std::size_t>(want[c])];
        const S usable = std::isnan(score) ? -std::numeric_limits<S>::infinity() : score;
        if (choices[c] != want[c] || !(scores[c] == usable)) {
            return "E = " + std::to_string(experts) + ", k = " + std::to_string(k) + ", W = " + std::to_string(W) +
                   ": choice " + std::to_string(c) + " is " + std::to_string(choices[c]) + ", not " +
                   std::to_string(want[c]);
        }
    }
    return "";
}

/// What it selects of W rows at once; the rows are apart from each other, and each exactly as long as what may be read.
/// A row that is left to select_top_k must have a reason: fewer than k keys above -infinity, or (seldom) many
/// candidates.
template <int W, class S>
std::string tile_mismatch(const std::vector<std::vector<S>>& rows, index_t k, index_t& left_over) {
    const auto experts = static_cast<index_t>(rows[0].size());
    const S* row[W];
    sy::pack<S, W> column_maxima[W];
    for (int r = 0; r < W; ++r) {
        row[r] = rows[static_cast<std::size_t>(r)].data();
        const S* const one[1] = {row[r]};
        column_maxima[r] = sy::maxima_of_rows<W, 1>(one, experts, [](int, index_t, sy::pack<S, W>) {}).column_maxima[0];
    }
    sy::tile_choices<S, W> best;
    const std::uint32_t left = sy::select_tile<W>(row, experts, k, column_maxima, best);
    if (static_cast<std::uint64_t>(left) >> W != 0) return "rows beyond the tile";
    for (std::size_t r = 0; r < W; ++r) {
        const auto want = sorted_choices(rows[r], k);
        if ((left >> r & 1u) != 0) {
            const S last = rows[r][static_cast<std::size_t>(want.back())];
            left_over += last > -std::numeric_limits<S>::infinity() ? 1 : 0;
            continue;
        }
        for (std::size_t c = 0; c < want.size(); ++c) {
            const S score = rows[r][static_cast<std::size_t>(want[c])];
            if (best.column[c][r] != want[c] || !(best.key[c][r] == score)) {
                return "E = " + std::to_string(experts) + ", k = " + std::to_string(k) + ", W = " + std::to_string(W) +
                       ": choice " + std::to_string(c) + " of row " + std::to_string(r) + " is " +
                       std::to_string(best.column[c][r]) + ", not " + std::to_string(want[c]);
            }
        }
    }
    return "";
}

/// Rows that defeat shortcuts: ties, long equal runs, the best all in one lane, sorted either way, forbidden, NaN.
template <class S>
std::vector<S> hostile_row(int kind, index_t experts, std::mt19937& random) {
    constexpr S forbidden = -std::numeric_limits<S>::infinity();
    std::normal_distribution<double> normal;
    std::vector<S> row(static_cast<std::size_t>(experts));
    for (index_t e = 0; e < experts; ++e) {
        S& score = row[static_cast<std::size_t>(e)];
        switch (kind) {
            case 0:
                score = static_cast<S>(normal(random));
                break;
            case 1:
                score = static_cast<S>(random() % 3);
                break;
            case 2:
                score = S(1);
                break;
            case 3:
                score = static_cast<S>(e);
                break;
            case 4:
                score = static_cast<S>(-e);
                break;
            case 5:
                score = e % 16 == 5 ? static_cast<S>(100 + e) : static_cast<S>(normal(random));
                break;
            case 6:
                score = random() % 4 != 0 ? forbidden : static_cast<S>(normal(random));
                break;
            case 7:
                score = forbidden;
                break;
            case 8:
                score = random() % 5 == 0 ? std::numeric_limits<S>::quiet_NaN() : static_cast<S>(random() % 4);
                break;
            case 9:
                score = random() % 2 == 0 ? S(0) : -S(0);
                break;
            case 10:
                score = e < 64 ? S(2) : static_cast<S>(normal(random));
                break;
            case 11:
                score = random() % 3 == 0 ? std::numeric_limits<S>::max() : -std::numeric_limits<S>::max();
                break;
            default:
                score = std::numeric_limits<S>::quiet_NaN();
                break;
        }
    }
    return row;
}
constexpr int kinds = 13;

template <int W, class S>
void check_selection(unsigned seed) {
    std::mt19937 random(seed);
    std::string first;
    for (const index_t experts : {1, 2, 3, 5, 7, 8, 15, 16, 17, 31, 32, 33, 60, 64, 65, 100, 127, 128, 129, 256, 300}) {
        for (int kind = 0; kind < kinds; ++kind) {
            const auto row = hostile_row<S>(kind, experts, random);
            for (const index_t k : {index_t{1}, index_t{2}, index_t{3}, index_t{4}, index_t{8}, index_t{9}, index_t{16},
                                    index_t{17}, experts / 2, experts - 1, experts}) {
                if (k < 1 || k > experts) continue;
                const auto mismatch = selection_mismatch<W>(row, k);
                first = first.empty() && !mismatch.empty() ? mismatch + ", kind " + std::to_string(kind) : first;
            }
        }
    }
    CHECK(first == "");
}

/// Tiles of rows of one kind, and of all kinds mixed.
template <int W, class S>
void check_tiles(unsigned seed) {
    std::mt19937 random(seed);
    std::string first;
    index_t gaussian_left = 0;
    index_t pays = 0;
    for (const index_t experts : {1, 2, 3, 5, 8, 15, 16, 17, 31, 33, 60, 64, 100, 127, 128, 129, 255, 300, 511, 600}) {
        for (int kind = 0; kind <= kinds; ++kind) {
            std::vector<std::vector<S>> rows;
            for (int r = 0; r < W; ++r)
                rows.push_back(hostile_row<S>(kind < kinds ? kind : r % kinds, experts, random));
            for (index_t k = 1; k <= std::min<index_t>(experts, 20); ++k) {
                if (!sy::tile_pays<W>(experts, k)) continue;
                ++pays;
                index_t left = 0;
                const auto mismatch = tile_mismatch<W>(rows, k, left);
                first = first.empty() && !mismatch.empty() ? mismatch + ", kind " + std::to_string(kind) : first;
                // Gaussian rows hardly ever have more near the k-th than there is room for, where k is not near W.
                gaussian_left += kind == 0 && 2 * k <= W ? left : 0;
            }
        }
    }
    CHECK(first == "");
    CHECK(pays > 0);
    CHECK(gaussian_left <= W);
}

}  // namespace

TEST_CASE("select: tiles of rows against a sort, packs of every width") {
    check_tiles<4, float>(11);
    check_tiles<8, float>(12);
    check_tiles<16, float>(13);
    check_tiles<2, double>(14);
    check_tiles<4, double>(15);
    check_tiles<8, double>(16);
    CHECK(!sy::tile_pays<1>(64, 2));
    CHECK(!sy::tile_pays<16>(64, 17));
}

TEST_CASE("select: against a sort, packs of every width, float") {
    check_selection<1, float>(1);
    check_selection<4, float>(2);
    check_selection<8, float>(3);
    check_selection<16, float>(4);
}

TEST_CASE("select: against a sort, packs of every width, double") {
    check_selection<1, double>(5);
    check_selection<2, double>(6);
    check_selection<4, double>(7);
    check_selection<8, double>(8);
}

TEST_CASE("select: equal scores go to the lower expert, forbidden experts come last in index order") {
    std::mt19937 random(9);
    CHECK(sorted_choices<float>({1, 2, 2, 1}, 3) == std::vector<std::int32_t>{1, 2, 0});
    const float forbidden = -std::numeric_limits<float>::infinity();
    const std::vector<float> row{forbidden, 3, forbidden, 3, forbidden, 5};
    CHECK(sorted_choices(row, 6) == std::vector<std::int32_t>{5, 1, 3, 0, 2, 4});
    CHECK(selection_mismatch<sy::native_width<float>>(row, 6) == "");
    CHECK(selection_mismatch<1>(row, 6) == "");
}

TEST_CASE("select: every width selects the same on random rows") {
    std::mt19937 random(10);
    for (int round = 0; round < 300; ++round) {
        const auto experts = static_cast<index_t>(1 + random() % 200);
        const auto k = static_cast<index_t>(1 + random() % static_cast<unsigned>(experts));
        const auto row = hostile_row<float>(static_cast<int>(random() % kinds), experts, random);
        const auto first = selection_mismatch<1>(row, k) + selection_mismatch<4>(row, k) +
                           selection_mismatch<8>(row, k) + selection_mismatch<16>(row, k);
        CHECK(first == "");
    }
}
