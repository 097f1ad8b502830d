// The solvers against LEMON's network simplex: an independent optimum for random problems of every feature, with one
// expert a token, and with several.
#include "assignment/lemon_oracle.hpp"

#include <switchyard/assignment/auction.hpp>

using namespace assignment_tests;

namespace {

/// Integer scores of a kind: where solvers differ, tie, or crawl.
enum class integer_scores {
    few_values,
    binary,
    all_equal,
    wide,             // up to +-2^24: hardly a tie
    one_best_by_far,  // for every token
    large_offset,     // tiny differences on it
    duplicated,       // a few different tokens, in order
    clustered,        // Zipf: most tokens alike, not equal
    product,          // token's weight x expert's weight: everybody agrees on the order of experts
    staircase,        // each token has two experts it likes almost the same, a chain through all
    count
};

/// The integers of a kind, not yet cut to what a storage type holds.
reference::matrix draw_integers(integer_scores kind, index_t rows, index_t experts, std::int64_t largest,
                                std::mt19937_64& random) {
    const auto whole = [&](std::int64_t least, std::int64_t most) {
        return static_cast<double>(std::uniform_int_distribution<std::int64_t>(least, most)(random));
    };
    const auto favourite = static_cast<index_t>(whole(0, experts - 1));
    const auto groups = static_cast<index_t>(whole(1, 6));
    reference::matrix centre(groups, experts), scores(rows, experts);
    for (double& c : centre.values) c = whole(-largest / 2, largest / 2);
    for (index_t t = 0; t < rows; ++t) {
        const index_t group = std::min(groups - 1, static_cast<index_t>(whole(0, 99) * whole(0, 99)) / 1500);
        const double weight = whole(1, 12);
        for (index_t e = 0; e < experts; ++e) {
            double& score = scores(t, e);
            switch (kind) {
                case integer_scores::few_values:
                    score = whole(-9, 9);
                    break;
                case integer_scores::binary:
                    score = whole(0, 1);
                    break;
                case integer_scores::all_equal:
                    score = static_cast<double>(largest / 3);
                    break;
                case integer_scores::one_best_by_far:
                    score = whole(-20, 20) + (e == favourite ? static_cast<double>(largest) - 20 : 0);
                    break;
                case integer_scores::large_offset:
                    score = static_cast<double>(largest) - whole(0, 8);
                    break;
                case integer_scores::duplicated:
                    score = centre(t * groups / rows, e);
                    break;
                case integer_scores::clustered:
                    score = centre(group, e) + whole(-largest / 64 - 1, largest / 64 + 1);
                    break;
                case integer_scores::product:
                    score = weight * static_cast<double>(e % 20 + 1);
                    break;
                case integer_scores::staircase: {
                    const index_t step = (e - t % experts + experts) % experts;
                    score = step == 0 ? 100 : step == 1 ? 99 - whole(0, 1) : whole(0, 20);
                    break;
                }
                default:
                    score = whole(-largest, largest);
            }
            score = std::clamp(score, -static_cast<double>(largest), static_cast<double>(largest));
        }
    }
    return scores;
}

/// Forbids pairs at random, `in_256` of 256, but leaves each token `spared` experts.
void forbid(reference::matrix& scores, int in_256, index_t spared, std::mt19937_64& random) {
    std::vector<index_t> order(static_cast<std::size_t>(scores.columns));
    for (index_t e = 0; e < scores.columns; ++e) order[static_cast<std::size_t>(e)] = e;
    for (index_t t = 0; t < scores.rows; ++t) {
        std::shuffle(order.begin(), order.end(), random);
        for (index_t i = spared; i < scores.columns; ++i) {
            if (static_cast<int>(random() % 256) < in_256) scores(t, order[static_cast<std::size_t>(i)]) = -infinity;
        }
    }
}

enum class quota_kind { balanced, capacity, fixed, near_fixed, wide, count };

/// Quotas that hold T k places, as far as no pair is forbidden.
void draw_quotas(transport& posed, quota_kind kind, std::mt19937_64& random) {
    const auto whole = [&](index_t least, index_t most) {
        return std::uniform_int_distribution<index_t>(least, most)(random);
    };
    instance& problem = posed.problem;
    const index_t experts = posed.experts();
    const index_t places = posed.tokens() * posed.choices;
    problem.lower = reference::filled<index_t>(experts, places / experts);
    problem.upper = reference::filled<index_t>(experts, (places + experts - 1) / experts);
    if (kind == quota_kind::balanced) return;
    if (kind == quota_kind::capacity) {
        const index_t room = whole(0, 2);
        for (index_t e = 0; e < experts; ++e) {
            problem.lower[e] = 0;
            problem.upper[e] += room;
        }
        return;
    }
    problem.lower = reference::filled<index_t>(experts, 0);
    std::vector<index_t> order(static_cast<std::size_t>(experts));
    for (index_t e = 0; e < experts; ++e) order[static_cast<std::size_t>(e)] = e;
    for (index_t t = 0; t < posed.tokens(); ++t) {
        std::shuffle(order.begin(), order.end(), random);
        for (index_t j = 0; j < posed.choices; ++j) problem.lower[order[static_cast<std::size_t>(j)]] += 1;
    }
    problem.upper = problem.lower;
    if (kind == quota_kind::fixed) return;
    for (index_t e = 0; e < experts; ++e) {
        problem.lower[e] -= whole(0, problem.lower[e]);
        problem.upper[e] += kind == quota_kind::near_fixed ? whole(0, 2) : whole(0, 2 * places + 1);
    }
}

/// What a storage type holds exactly, below 2^24.
template <class S>
constexpr std::int64_t largest_integer = std::int64_t{1} << std::min(24, std::numeric_limits<S>::digits);

/// A random problem; sizes from nothing to some hundred tokens, often fewer tokens than experts.
transport draw_transport(std::int64_t largest, bool several_choices, std::mt19937_64& random) {
    const auto whole = [&](index_t least, index_t most) {
        return std::uniform_int_distribution<index_t>(least, most)(random);
    };
    static constexpr index_t most_rows[] = {0, 5, 16, 60, 130, 220};
    static constexpr index_t most_experts[] = {1, 3, 8, 16, 24, 40};
    static constexpr int forbidden[] = {0, 0, 0, 40, 150, 235};
    const index_t rows = whole(0, most_rows[whole(0, 5)]);
    const index_t experts = whole(1, most_experts[whole(0, 5)]);
    transport posed;
    posed.choices = several_choices ? whole(1, std::min<index_t>(experts, 6)) : 1;
    posed.goal = whole(0, 2) == 0 ? sy::objective::minimise : sy::objective::maximise;
    const auto kind = static_cast<integer_scores>(whole(0, static_cast<index_t>(integer_scores::count) - 1));
    posed.problem.scores = draw_integers(kind, rows, experts, largest, random);
    forbid(posed.problem.scores, forbidden[whole(0, 5)], posed.choices, random);
    if (whole(0, 3) == 0) {
        posed.problem.mask = reference::filled<std::uint8_t>(rows, 1);
        for (auto& byte : posed.problem.mask) byte = random() % 4 != 0 ? 1 : 0;
    }
    draw_quotas(posed, static_cast<quota_kind>(whole(0, static_cast<index_t>(quota_kind::count) - 1)), random);
    return posed;
}

/// Prices to start from, made of the right ones.
enum class warm_prices { right, stale, zero, scaled, negated, huge, not_numbers, shifted, count };

std::vector<double> spoil(const std::vector<double>& right, warm_prices how, std::mt19937_64& random) {
    std::normal_distribution<double> normal;
    const double spread =
        right.empty() ? 0.0
                      : *std::max_element(right.begin(), right.end()) - *std::min_element(right.begin(), right.end());
    std::vector<double> prices = right;
    for (double& price : prices) {
        switch (how) {
            case warm_prices::stale:
                price += (0.1 * spread + 1) * normal(random);
                break;
            case warm_prices::zero:
                price = 0;
                break;
            case warm_prices::scaled:
                price *= 1e4;
                break;
            case warm_prices::negated:
                price = -price;
                break;
            case warm_prices::huge:
                price = normal(random) * 1e300;
                break;
            case warm_prices::shifted:
                price += 1e9;
                break;
            case warm_prices::not_numbers: {
                const double odd[] = {std::numeric_limits<double>::quiet_NaN(), infinity, -infinity, 1e-310, price};
                price = odd[random() % 5];
                break;
            }
            default:
                break;
        }
    }
    return prices;
}

/// Draws `cases` problems that S holds exactly and solves each, cold and from prices of one kind, in one layout.
template <class S, class Solver, class Policy>
void against_lemon(const Policy& policy, const Solver& solver, promise promised, bool several_choices, int cases,
                   unsigned seed) {
    std::mt19937_64 random(seed);
    int solved = 0, impossible = 0;
    for (int i = 0; i < cases; ++i) {
        const transport posed = draw_transport(largest_integer<S>, several_choices, random);
        const auto where = static_cast<layout>(i % static_cast<int>(layout::count));
        const auto warm = static_cast<warm_prices>(random() % static_cast<std::uint64_t>(warm_prices::count));
        INFO("case ", i, ", layout ", static_cast<int>(where), ", ", posed);
        const auto optimum = lemon_optimum(posed);
        const auto cold = require_optimum<S>(policy, solver, posed, where, optimum, promised);
        (cold ? solved : impossible) += 1;
        if (!cold) continue;
        INFO("from prices of kind ", static_cast<int>(warm));
        const std::vector<double> prices = spoil(cold->prices, warm, random);
        require_optimum<S>(policy, solver, posed, where, optimum, promised, prices.data());
    }
    // Both kinds of problems were there.
    CHECK(solved >= cases / 2);
    CHECK(impossible >= cases / 100);
}

}  // namespace

TEST_CASE("lemon: the oracle agrees with the textbook") {
    std::mt19937_64 random(21);
    int compared = 0, impossible = 0;
    while (compared < 500) {
        transport posed = draw_transport(100, false, random);
        if (posed.problem.scores.rows > 40 || posed.experts() > 10) continue;
        const instance& problem = posed.problem;
        const auto best = reference::best_by_augmenting(problem.scores, problem.lower, problem.upper, problem.mask);
        INFO(posed);
        const auto optimum = lemon_optimum(posed);
        REQUIRE(optimum.has_value() == best.feasible);
        if (optimum) REQUIRE(*optimum == best.total_score);
        impossible += optimum ? 0 : 1;
        compared += 1;
    }
    CHECK(impossible > 5);
}

TEST_CASE("lemon: the audit sees what is wrong") {
    // Two tokens, two experts; the best is 5 + 4, proved by prices (1, 0).
    const transport posed{{{{5, 4}, {5, 4}}, {1, 1}, {1, 1}, {}}};
    const auto given = [](std::vector<std::int32_t> experts, std::vector<double> prices) {
        solution found;
        found.experts = std::move(experts);
        found.prices = std::move(prices);
        return found;
    };
    CHECK(lemon_optimum(posed) == 9.0);
    CHECK(audit_of(posed, given({0, 1}, {1, 0})).wrong == "");
    CHECK(audit_of(posed, given({0, 1}, {1, 0})).gap == 0);
    CHECK(audit_of(posed, given({0, 1}, {1, 0})).dual == 9);
    CHECK(audit_of(posed, given({0, 1}, {3, 0})).gap == 2);
    CHECK(audit_of(posed, given({0, 0}, {1, 0})).wrong == "a load is beyond its quota");
    CHECK(audit_of(posed, given({0, 2}, {1, 0})).wrong == "a token is at no expert, or at a forbidden one");
    CHECK(audit_of(posed, given({0, 1}, {infinity, 0})).wrong == "a price is not finite");
    const transport padded{{{{5, 4}, {5, 4}}, {0, 0}, {1, 1}, {1, 0}}};
    CHECK(audit_of(padded, given({0, 1}, {0, 0})).wrong == "padding is placed");
    const transport both{{{{5, 4}, {5, 4}}, {2, 2}, {2, 2}, {}}, 2};
    CHECK(audit_of(both, given({0, 1, 0, 0}, {0, 0})).wrong == "a token has an expert twice");
    CHECK(audit_of(both, given({0, 1, 0, 1}, {0, 0})).gap == 0);
    CHECK(lemon_optimum(both) == 18.0);
    const transport impossible{{{{5, -infinity}, {5, -infinity}}, {0, 0}, {1, 1}, {}}};
    CHECK(!lemon_optimum(impossible));
}

TEST_CASE("lemon: hungarian has the network simplex's optimum") {
    against_lemon<float>(sy::seq, sy::hungarian{}, promise::exact, false, 6000, 22);
    against_lemon<double>(sy::seq, sy::hungarian{}, promise::exact, false, 1500, 23);
    against_lemon<Eigen::half>(sy::seq, sy::hungarian{}, promise::exact, false, 1500, 24);
    against_lemon<Eigen::bfloat16>(sy::seq, sy::hungarian{}, promise::exact, false, 1500, 25);
    against_lemon<float>(sy::seq, sy::hungarian{.candidates = 1, .sampling = 0}, promise::exact, false, 1500, 26);
    against_lemon<float>(sy::seq, sy::hungarian{.candidates = 2, .sampling = 2}, promise::exact, false, 1500, 27);
}

TEST_CASE("lemon: hungarian has the network simplex's optimum for several experts per token") {
    against_lemon<float>(sy::seq, sy::hungarian{}, promise::exact, true, 4000, 28);
    against_lemon<double>(sy::seq, sy::hungarian{}, promise::exact, true, 1000, 29);
    against_lemon<float>(sy::seq, sy::hungarian{.candidates = 1, .sampling = 0}, promise::exact, true, 1000, 30);
}

TEST_CASE("lemon: auction is as near to the network simplex's optimum as it says") {
    against_lemon<float>(sy::seq, sy::auction{}, promise::bounded, false, 2000, 31);
    against_lemon<double>(sy::seq, sy::auction{}, promise::bounded, false, 500, 32);
    against_lemon<Eigen::bfloat16>(sy::seq, sy::auction{}, promise::bounded, false, 500, 34);
    against_lemon<float>(sy::seq, sy::auction{}, promise::bounded, true, 1500, 35);
}
