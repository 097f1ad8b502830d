// Keys within groups, and gates, of rows by themselves and of rows side by side, against plain loops.
#include "support/compare.hpp"

#include <switchyard/reference/recipe.hpp>
#include <switchyard/score/gates.hpp>
#include <switchyard/score/groups.hpp>
#include <switchyard/score/keys.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <random>
#include <string>
#include <vector>

using namespace switchyard_test;

namespace {

template <class S>
constexpr S forbidden = -std::numeric_limits<S>::infinity();

/// Keys that are exact in every sum of 8, many of them equal, some forbidden.
template <class S>
std::vector<S> draw_keys(index_t experts, int kind, std::mt19937_64& random) {
    std::vector<S> keys(static_cast<std::size_t>(experts));
    for (S& key : keys) {
        key = static_cast<S>(static_cast<double>(random() % 2001) - 1000) / 256;
        if (kind == 1) key = static_cast<S>(random() % 3) - S(1);
        if (kind == 2 && random() % 3 == 0) key = forbidden<S>;
        if (kind == 3) key = random() % 8 == 0 ? S(-0.5) : forbidden<S>;
        if (kind == 4) key = forbidden<S>;
    }
    return keys;
}
constexpr int kinds_of_keys = 5;

/// What the reference leaves of a row's keys.
template <class S>
std::vector<S> kept_keys(const sy::expert_groups& groups, const std::vector<S>& keys) {
    ref::list<double> copy;
    copy.assign(keys.begin(), keys.end());
    const auto kept = ref::keep_best_groups({.count = groups.count,
                                             .kept = groups.kept,
                                             .summed = groups.summed,
                                             .masked = static_cast<ref::group_mask>(groups.masked)},
                                            copy);
    std::vector<S> want;
    for (const double key : kept) want.push_back(static_cast<S>(key));
    return want;
}

template <int W, class S>
void keep(const sy::expert_groups& groups, index_t experts, S* const (&row)[W]) {
    alignas(64) S scores[W * sy::expert_groups::most];
    sy::keep_groups<W>(groups, experts, row, scores);
}

/// What gather_groups leaves, put back where it was, is what keep_groups leaves of the kept groups.
template <int W, class S>
std::string gathering_mismatch(const sy::expert_groups& groups, const std::vector<std::vector<S>>& rows,
                               const std::vector<std::vector<S>>& want) {
    const auto experts = static_cast<index_t>(rows[0].size());
    const index_t size = experts / groups.count;
    const auto left = static_cast<std::size_t>(groups.kept * size);
    std::vector<std::vector<S>> padded = rows;
    S* row[W];
    for (std::size_t r = 0; r < W; ++r) {
        padded[r].resize((rows[r].size() + W - 1) / W * W, S(7));
        row[r] = padded[r].data();
    }
    alignas(64) S scores[W * sy::expert_groups::most];
    std::int32_t shift[W][sy::expert_groups::most];
    sy::gather_groups<W>(groups, experts, row, scores, shift);
    for (std::size_t r = 0; r < W; ++r) {
        std::vector<S> back(rows[r].size(), forbidden<S>);
        for (std::size_t c = 0; c < left; ++c) {
            back[c + static_cast<std::size_t>(shift[r][c / static_cast<std::size_t>(size)])] = padded[r][c];
        }
        for (std::size_t c = left; c < (left + W - 1) / W * W; ++c) {
            if (padded[r][c] != forbidden<S>) return said("key ", c, " beyond the gathered ones is ", padded[r][c]);
        }
        for (std::size_t e = 0; e < back.size(); ++e) {
            // NaN stays in kept groups and counts as forbidden.
            if (back[e] != want[r][e] && back[e] == back[e]) {
                return said("gathered key of ", e, " in row ", r, " is ", back[e], ", not ", want[r][e]);
            }
        }
    }
    return "";
}

/// W rows at once against the reference's, each exactly as long as what may be read and written.
template <int W, class S>
std::string groups_mismatch(const sy::expert_groups& groups, std::vector<std::vector<S>> rows) {
    std::vector<std::vector<S>> want;
    S* row[W];
    for (std::size_t r = 0; r < W; ++r) {
        want.push_back(kept_keys(groups, rows[r]));
        row[r] = rows[r].data();
    }
    if (groups.masked == sy::group_mask::forbidden && groups.choose()) {
        const std::string sentence = gathering_mismatch<W>(groups, rows, want);
        if (!sentence.empty()) return sentence;
    }
    keep<W>(groups, static_cast<index_t>(rows[0].size()), row);
    for (std::size_t r = 0; r < W; ++r) {
        for (std::size_t e = 0; e < want[r].size(); ++e) {
            if (rows[r][e] != want[r][e]) {
                return said("W = ", W, ", E = ", want[r].size(), ", ", groups.kept, " of ", groups.count, " groups by ",
                            groups.summed, ": key ", e, " of row ", r, " is ", rows[r][e], ", not ", want[r][e]);
            }
        }
    }
    return "";
}

template <int W, class S>
void check_groups(std::uint64_t seed) {
    std::mt19937_64 random(seed);
    std::string first;
    for (const index_t size : {1, 2, 3, 5, 8, 15, 16, 33}) {
        for (const index_t count : {1, 2, 3, 8, 64}) {
            for (const index_t summed : {1, 2, 3, 8}) {
                for (int kind = 0; kind <= kinds_of_keys; ++kind) {
                    std::vector<std::vector<S>> rows;
                    for (int r = 0; r < W; ++r) {
                        rows.push_back(
                            draw_keys<S>(size * count, kind < kinds_of_keys ? kind : r % kinds_of_keys, random));
                    }
                    const index_t kept = 1 + static_cast<index_t>(random() % static_cast<unsigned>(count));
                    for (const auto masked : {sy::group_mask::forbidden, sy::group_mask::zero}) {
                        const auto found = groups_mismatch<W, S>(
                            {.count = count, .kept = kept, .summed = summed, .masked = masked}, rows);
                        if (first.empty()) first = found;
                    }
                }
            }
        }
    }
    CHECK(first == "");
}

/// Equal bits.
template <class S>
bool same(S a, S b) {
    using word = std::make_unsigned_t<typename sy::float_bits<S>::type>;
    return std::bit_cast<word>(a) == std::bit_cast<word>(b);
}

constexpr sy::score_function every_function[] = {sy::score_function::softmax, sy::score_function::sigmoid,
                                                 sy::score_function::sqrt_softplus};

/// Every rule of gates that is of another kind.
std::vector<sy::gate_settings> every_rule() {
    std::vector<sy::gate_settings> rules;
    for (const auto function : every_function) {
        rules.push_back({.function = function});
        rules.push_back({.function = function, .scale = 2.5});
        rules.push_back({.function = function, .sum = sy::gate_sum::add});
        rules.push_back({.function = function, .sum = sy::gate_sum::add, .epsilon = 1e-20, .scale = 2.5});
        rules.push_back({.function = function, .sum = sy::gate_sum::add, .epsilon = 0.5});
        rules.push_back({.function = function, .sum = sy::gate_sum::clamp, .scale = 3});
        rules.push_back({.function = function, .sum = sy::gate_sum::clamp, .epsilon = 0.25});
        rules.push_back({.function = function, .sum = sy::gate_sum::clamp, .epsilon = 50, .scale = -2});
    }
    return rules;
}

std::string name_of(const sy::gate_settings& rule) {
    return said("function ", static_cast<int>(rule.function), ", sum ", static_cast<int>(rule.sum), ", epsilon ",
                rule.epsilon, ", scale ", rule.scale);
}

/// Chosen scores of one row of a softmax over more scores, and that row's statistics.
template <class S>
struct chosen_row {
    std::vector<S> scores;
    S maximum = S(0);
    S sum = S(1);

    chosen_row(index_t k, int kind, std::mt19937_64& random) {
        for (index_t c = 0; c < k; ++c) {
            const S score = static_cast<S>(static_cast<double>(random() % 4096) / 512 - 6);
            scores.push_back(kind == 1 && c > 0 ? forbidden<S> : kind == 2 ? S(-60) - score : score);
        }
        maximum = S(2.5);
        sum = S(3.25);
    }
    /// The values in double, as the formulas have them.
    std::vector<double> values(sy::score_function function) const {
        std::vector<double> made;
        for (const S score : scores) {
            const auto s = static_cast<double>(score);
            made.push_back(function == sy::score_function::sigmoid ? ref::sigmoid(s)
                           : function == sy::score_function::sqrt_softplus
                               ? std::sqrt(ref::softplus(s))
                               : std::exp(s - static_cast<double>(maximum)) / static_cast<double>(sum));
        }
        return made;
    }
};

double divisor_of(const sy::gate_settings& rule, const std::vector<double>& values) {
    double sum = 0;
    for (const double value : values) sum += value;
    return rule.sum == sy::gate_sum::none  ? 1
           : rule.sum == sy::gate_sum::add ? sum + rule.epsilon
                                           : std::max(sum, rule.epsilon);
}

/// Gates of one row, with packs of W.
template <int W, class S>
std::vector<S> gates_of_row(const sy::gate_settings& rule, const chosen_row<S>& row) {
    using P = sy::pack<S, W>;
    std::vector<S> gates = row.scores;
    sy::gate_rule<S>(rule).weigh(sy::choices_of_row<S, W>{gates.data(), nullptr, static_cast<index_t>(gates.size())},
                                 P::all(row.maximum), P::all(row.sum));
    return gates;
}

/// The same where the row's maximum may be none of them.
template <int W, class S>
std::vector<S> gates_of_any(const sy::gate_settings& rule, const chosen_row<S>& row) {
    using P = sy::pack<S, W>;
    std::vector<S> gates = row.scores;
    const sy::choices_of_row<S, W> choices{gates.data(), nullptr, static_cast<index_t>(gates.size())};
    sy::gate_rule<S>(rule).weigh_any(choices, P::all(row.maximum), P::all(row.sum));
    return gates;
}

/// Chosen scores at a distance below the row's maximum, by themselves and in a tile of W rows.
template <int W, class S>
void check_distances(S distance) {
    CAPTURE(W);
    CAPTURE(distance);
    std::mt19937_64 random(1);
    for (const index_t k : {1, 2, 5, 16}) {
        chosen_row<S> row(k, 0, random);
        for (S& score : row.scores) score += row.maximum - S(4) - distance;
        if (k == 5) row.scores[1] = row.scores[4] = forbidden<S>;
        double highest_score = -1e300;
        for (const S score : row.scores) highest_score = std::max(highest_score, static_cast<double>(score));
        std::vector<double> want;
        double sum = 0;
        for (const S score : row.scores) sum += std::exp(static_cast<double>(score) - highest_score);
        for (const S score : row.scores) want.push_back(3 * std::exp(static_cast<double>(score) - highest_score) / sum);
        for (const auto kind : {sy::gate_sum::add, sy::gate_sum::clamp}) {
            const sy::gate_settings rule{.sum = kind, .scale = 3};
            const auto gates = gates_of_any<W>(rule, row);
            alignas(64) S score[16][W];
            for (index_t c = 0; c < k; ++c) {
                for (int r = 0; r < W; ++r) score[c][r] = row.scores[static_cast<std::size_t>(c)] + S(r);
            }
            alignas(64) S maximum[W];
            for (int r = 0; r < W; ++r) maximum[r] = row.maximum + S(2 * r);
            sy::gate_rule<S>(rule).weigh_any(sy::choices_of_tile<S, W>{score, k}, sy::pack<S, W>::load(maximum),
                                             sy::pack<S, W>::all(row.sum));
            for (std::size_t c = 0; c < want.size(); ++c) {
                CHECK(static_cast<double>(gates[c]) == doctest::Approx(want[c]).epsilon(1e-6));
                // Rows have distances, and origins, of their own.
                for (int r = 0; r < W; ++r) {
                    CHECK(static_cast<double>(score[c][r]) == doctest::Approx(want[c]).epsilon(1e-4));
                }
            }
            if (distance < S(60)) CHECK((gates == gates_of_row<W>(rule, row)));
        }
    }
}

/// What differentiate leaves of a row, and the share of a softmax's other scores.
template <int W, class S>
std::vector<S> derivatives_of_row(const sy::gate_settings& rule, const std::vector<S>& from,
                                  const std::vector<S>& gradients, S& shared) {
    std::vector<S> made = from;
    const sy::choices_of_row<S, W> choices{made.data(), gradients.data(), static_cast<index_t>(made.size()),
                                           rule.is_softmax() ? S(0) : forbidden<S>};
    shared = highest(sy::gate_rule<S>(rule).differentiate(choices));
    return made;
}

template <int W, class S>
void check_tiles_of_gates(std::uint64_t seed) {
    std::mt19937_64 random(seed);
    std::string first;
    for (const auto& rule : every_rule()) {
        for (index_t k = 1; k <= 16; ++k) {
            for (const int kind : {0, 1, 2}) {
                alignas(64) S score[16][W];
                std::vector<chosen_row<S>> rows;
                alignas(64) S maximum[W];
                alignas(64) S sum[W];
                for (std::size_t r = 0; r < W; ++r) {
                    rows.emplace_back(k, kind, random);
                    maximum[r] = rows[r].maximum = S(2.5) + static_cast<S>(r) / 8;
                    sum[r] = rows[r].sum = S(1) + static_cast<S>(r) / 4;
                    for (index_t c = 0; c < k; ++c) score[c][r] = rows[r].scores[static_cast<std::size_t>(c)];
                }
                sy::gate_rule<S>(rule).weigh(sy::choices_of_tile<S, W>{score, k}, sy::pack<S, W>::load(maximum),
                                             sy::pack<S, W>::load(sum));
                for (std::size_t r = 0; r < W; ++r) {
                    const auto want = gates_of_row<W>(rule, rows[r]);
                    for (std::size_t c = 0; c < want.size(); ++c) {
                        if (!same(score[c][r], want[c]) && first.empty()) {
                            first = said(name_of(rule), ", k = ", k, ": ", score[c][r], ", by itself ", want[c]);
                        }
                    }
                }
            }
        }
    }
    CHECK(first == "");
}

/// Gates and derivatives against the formulas.
template <int W, class S>
void check_formulas(std::uint64_t seed) {
    std::mt19937_64 random(seed);
    std::string first;
    const auto note = [&](const sy::gate_settings& rule, const char* what, double got, double want, double size) {
        if (std::abs(got - want) <= 32 * std::numeric_limits<S>::epsilon() * size) return;
        if (first.empty()) first = said(name_of(rule), ", ", what, " is ", got, ", not ", want);
    };
    for (const auto& rule : every_rule()) {
        for (const index_t k : {1, 2, 7, 16, 17, 40}) {
            for (const int kind : {0, 1, 2}) {
                const chosen_row<S> row(k, kind, random);
                const auto values = row.values(rule.function);
                const double divisor = divisor_of(rule, values);
                const auto gates = gates_of_row<W>(rule, row);
                double sum = 0;
                for (const double value : values) sum += value;

                std::vector<S> gradients;
                for (index_t c = 0; c < k; ++c) {
                    gradients.push_back(static_cast<S>(static_cast<double>(random() % 64) / 16 - 2));
                }
                std::vector<S> from = row.scores;
                for (std::size_t c = 0; c < from.size() && rule.is_softmax(); ++c) from[c] = static_cast<S>(values[c]);
                S shared = S(0);
                const auto derivatives = derivatives_of_row<W>(rule, from, gradients, shared);
                const bool moves =
                    rule.sum == sy::gate_sum::add || (rule.sum == sy::gate_sum::clamp && sum >= rule.epsilon);
                double mean = 0;
                for (std::size_t c = 0; c < values.size() && moves; ++c) {
                    mean += static_cast<double>(gradients[c]) * values[c] / divisor;
                }
                double want_shared = 0;
                for (std::size_t c = 0; c < values.size(); ++c) {
                    const double gate = rule.scale * values[c] / divisor;
                    note(rule, "a gate", static_cast<double>(gates[c]), gate, std::abs(gate));
                    const auto s = static_cast<double>(row.scores[c]);
                    const double slope = rule.function == sy::score_function::sigmoid ? values[c] * (1 - values[c])
                                         : rule.function == sy::score_function::sqrt_softplus
                                             ? (values[c] > 0 ? ref::sigmoid(s) / (2 * values[c]) : 0)
                                             : values[c];
                    const double want = rule.scale / divisor * (static_cast<double>(gradients[c]) - mean) * slope;
                    note(rule, "a derivative", static_cast<double>(derivatives[c]), want,
                         std::abs(rule.scale) / divisor * slope * 4);
                    want_shared += want;
                }
                // A sum of as many terms as there are choices; 0 where it cancels.
                note(rule, "the share of others", static_cast<double>(shared), rule.is_softmax() ? want_shared : 0,
                     40 * std::abs(rule.scale));
            }
        }
    }
    CHECK(first == "");
}

}  // namespace

TEST_CASE("groups: against plain loops, one row and packs of every width") {
    check_groups<1, float>(1);
    check_groups<4, float>(2);
    check_groups<sy::native_width<float>, float>(3);
    check_groups<1, double>(4);
    check_groups<sy::native_width<double>, double>(5);
}

TEST_CASE("groups: NaN counts as forbidden, and the same bits at every width") {
    constexpr float nan = std::numeric_limits<float>::quiet_NaN();
    const sy::expert_groups groups{.count = 4, .kept = 2, .summed = 2};
    std::vector<float> row{nan, nan, nan, 1, 2, nan, nan, 0.5f, nan, nan, nan, 3};
    float* const one[1] = {row.data()};
    keep<1>(groups, 12, one);
    // Groups' scores: none, 1 + 2, 0.5, 3. The lower of the two equal ones comes first, and both stay.
    CHECK(row[3] == 1.0f);
    CHECK(row[4] == 2.0f);
    CHECK(row[7] == forbidden<float>);
    CHECK(row[11] == 3.0f);
    // Sums that rounding decides: by falling order, at any width.
    std::mt19937_64 random(7);
    constexpr int W = sy::native_width<float>;
    for (int round = 0; round < 200; ++round) {
        std::vector<float> wide[W];
        std::vector<float> narrow[W];
        float* rows[W];
        for (int r = 0; r < W; ++r) {
            for (int e = 0; e < 40; ++e) wide[r].push_back(static_cast<float>(random() % 1000003) / 1000003.0f);
            narrow[r] = wide[r];
            rows[r] = wide[r].data();
        }
        const sy::expert_groups some{.count = 8, .kept = 3, .summed = 1 + round % 8};
        keep<W>(some, 40, rows);
        for (int r = 0; r < W; ++r) {
            float* const single[1] = {narrow[r].data()};
            keep<1>(some, 40, single);
            CHECK((wide[r] == narrow[r]));
        }
    }
}

TEST_CASE("groups: every setting out of range is named") {
    const auto sentence = [](const sy::expert_groups& groups, index_t experts, index_t k) {
        return sentence_of([&] { sy::require_groups(groups, experts, k); });
    };
    CHECK(sentence({.count = 0}, 8, 1) == "groups.count = 0 must lie in 1..64 and divide E = 8");
    CHECK(sentence({.count = 3}, 8, 1) == "groups.count = 3 must lie in 1..64 and divide E = 8");
    CHECK(sentence({.count = 128}, 128, 1) == "groups.count = 128 must lie in 1..64 and divide E = 128");
    CHECK(sentence({.count = 4, .kept = 0}, 8, 1) == "groups.kept = 0 must lie in 1..groups.count = 4");
    CHECK(sentence({.count = 4, .kept = 5}, 8, 1) == "groups.kept = 5 must lie in 1..groups.count = 4");
    CHECK(sentence({.count = 4, .kept = 2, .summed = 0}, 8, 1) == "groups.summed = 0 must lie in 1..8");
    CHECK(sentence({.count = 4, .kept = 2, .summed = 9}, 8, 1) == "groups.summed = 9 must lie in 1..8");
    CHECK(sentence({.count = 4, .kept = 2}, 8, 5) ==
          "k = 5 is more than the 4 experts of the groups that a token keeps");
    CHECK(sentence({.count = 4, .kept = 2}, 8, 4) == "");
    CHECK(sentence({.count = 4, .kept = 2, .masked = sy::group_mask::zero}, 8, 5) == "");
    CHECK(sentence({}, 8, 8) == "");
}

TEST_CASE("gates: rows side by side have the bits of each row by itself") {
    check_tiles_of_gates<4, float>(1);
    check_tiles_of_gates<8, float>(2);
    check_tiles_of_gates<16, float>(3);
    check_tiles_of_gates<2, double>(4);
    check_tiles_of_gates<8, double>(5);
}

TEST_CASE("gates: every rule against its formula, gates and derivatives") {
    check_formulas<1, float>(1);
    check_formulas<sy::native_width<float>, float>(2);
    check_formulas<1, double>(3);
    check_formulas<sy::native_width<double>, double>(4);
}

TEST_CASE_TEMPLATE("gates: a sum of 0 gives gates and gradients of 0", S, float, double) {
    for (const auto function : every_function) {
        for (const auto sum : {sy::gate_sum::add, sy::gate_sum::clamp}) {
            const sy::gate_settings rule{.function = function, .sum = sum, .scale = 3};
            std::mt19937_64 random(1);
            chosen_row<S> row(3, 0, random);
            row.scores = {forbidden<S>, forbidden<S>, S(-2000)};
            for (const S gate : gates_of_row<4>(rule, row)) CHECK(gate == S(0));
            std::vector<S> from = row.scores;
            if (rule.is_softmax()) from = {S(0), S(0), S(0)};
            S shared = S(1);
            for (const S d : derivatives_of_row<4>(rule, from, std::vector<S>{S(1), S(2), S(3)}, shared)) {
                CHECK(d == S(0));
            }
            CHECK(shared == S(0));
        }
    }
}

TEST_CASE_TEMPLATE("gates: a softmax over the chosen, however far they lie below the row's maximum", S, float, double) {
    for (const S distance : {S(0), S(20), S(55), S(63), S(64), S(65), S(87), S(104), S(500), S(745), S(2000)}) {
        check_distances<1, S>(distance);
        check_distances<4, S>(distance);
        check_distances<sy::native_width<S>, S>(distance);
    }
    std::mt19937_64 random(1);
    chosen_row<S> row(3, 0, random);
    row.scores = {forbidden<S>, forbidden<S>, forbidden<S>};
    for (const S gate : gates_of_any<4>({.sum = sy::gate_sum::add, .scale = 3}, row)) CHECK(gate == S(0));
    // Probabilities, and probabilities with an epsilon beside them, are what they are.
    row.scores = {S(-500), S(-2000), S(-2001)};
    for (const S gate : gates_of_any<4>({.scale = 3}, row)) CHECK(static_cast<double>(gate) < 1e-200);
    for (const S gate : gates_of_any<4>({.sum = sy::gate_sum::add, .epsilon = 1e-20}, row)) {
        CHECK(static_cast<double>(gate) < 1e-180);
    }
}

TEST_CASE_TEMPLATE("gates: chosen values as small as numbers get still divide", S, float, double) {
    // 1 / sum and the scale each fit, and their product does not.
    const S least = sy::float_bits<S>::smallest_exponent + S(0.5);
    const sy::gate_settings rule{.function = sy::score_function::sigmoid, .sum = sy::gate_sum::add, .scale = 64};
    std::mt19937_64 random(1);
    chosen_row<S> row(2, 0, random);
    row.scores = {least, least};
    for (const S gate : gates_of_row<4>(rule, row)) CHECK(gate == doctest::Approx(32));
    CHECK(sy::gate_rule<S>(rule).of_best(least, S(1)) == doctest::Approx(64));
    S shared = S(0);
    const auto d = derivatives_of_row<4>(rule, row.scores, std::vector<S>{S(1), S(-1)}, shared);
    CHECK(d[0] == doctest::Approx(32));
    CHECK(d[1] == doctest::Approx(-32));
}

TEST_CASE("keys: value or score, and the bias, forbidden before any of it") {
    const std::vector<float> row{0.5f, -1, forbidden<float>, 2, 0.25f};
    alignas(64) float bias[16] = {1, 2, 100, -1, 0.5f};
    const auto keys_of = [&](const sy::biased_keys<float>& keys) {
        std::vector<float> made(8, -77.0f);
        sy::detail::write_keys<4>(keys, 0, row.data(), 5, 2.0f, 4.0f, made.data());
        return made;
    };
    for (const auto function : every_function) {
        const auto values = keys_of({.function = function});
        const auto biased = keys_of({.function = function, .bias = bias});
        const auto scores = keys_of({.function = function, .source = sy::key_source::score, .bias = bias});
        for (std::size_t e = 0; e < 5; ++e) {
            if (e == 2) continue;
            const auto s = static_cast<double>(row[e]);
            const double want = function == sy::score_function::sigmoid         ? ref::sigmoid(s)
                                : function == sy::score_function::sqrt_softplus ? std::sqrt(ref::softplus(s))
                                                                                : std::exp(s - 2) / 4;
            CHECK(static_cast<double>(values[e]) == doctest::Approx(want).epsilon(1e-6));
            CHECK(biased[e] == values[e] + bias[e]);
            CHECK(scores[e] == row[e] + bias[e]);
        }
        for (const auto& made : {values, biased, scores}) {
            for (const std::size_t e : {2u, 5u, 6u, 7u}) CHECK(made[e] == forbidden<float>);
        }
    }
}
