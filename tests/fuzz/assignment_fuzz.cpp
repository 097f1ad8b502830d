// libFuzzer's target for the assignment solvers. Of every problem, however wrong, one of two things is true: it is
// refused with switchyard::error and a sentence, or the answer is an assignment within the quotas, its gap is what
// plain loops compute of its prices, it is certified if the scores are tame, it is the same bits in a used workspace
// and under a policy that runs blocks in another order, and no other solver knows a better one.
#include "problem_from_bytes.hpp"

#include <switchyard/assignment/auction.hpp>
#include <switchyard/assignment/hungarian.hpp>
#include <switchyard/reference/assignment.hpp>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <optional>
#include <string>

namespace {

using fuzz::problem;
using switchyard::index_t;
namespace sy = switchyard;

constexpr double infinity = std::numeric_limits<double>::infinity();

const problem* current = nullptr;

void print_current() {
    const problem& given = *current;
    std::fprintf(stderr, "%td tokens and padding, %td experts, k = %td, %s, %s, settings %d\n", given.rows,
                 given.experts, given.choices, given.goal == sy::objective::minimise ? "costs" : "scores",
                 given.in_float ? "float" : "double", given.settings);
    for (index_t e = 0; e < given.experts; ++e) {
        std::fprintf(stderr, "  quota [%td, %td]", given.bounds.lower(e), given.bounds.upper(e));
        if (!given.initial_prices.empty()) {
            std::fprintf(stderr, " from price %.17g", given.initial_prices[static_cast<std::size_t>(e)]);
        }
        std::fprintf(stderr, "\n");
    }
    for (index_t t = 0; t < std::min<index_t>(given.rows, 64); ++t) {
        std::fprintf(stderr, given.is_token(t) ? "  token  " : "  padding");
        for (index_t e = 0; e < given.experts; ++e) std::fprintf(stderr, " %.17g", given.score(t, e));
        std::fprintf(stderr, "\n");
    }
}

void require(bool rule, const char* what) {
    if (rule) return;
    std::fprintf(stderr, "assignment_fuzz: not so: %s\n", what);
    print_current();
    std::abort();
}

struct answer {
    sy::assignment_result result;
    std::vector<std::int32_t> experts;
    std::vector<double> prices;
};

/// Runs blocks from the last to the first: a policy of which nothing may be noticed.
struct backwards {
    template <class F>
    void parallel_for(index_t blocks, F&& f) {
        for (index_t b = blocks; b > 0; --b) f(b - 1);
    }
};

template <class S, class Policy, class Solver>
answer run(const Policy& policy, const Solver& solver, const problem& given, sy::workspace& scratch) {
    std::vector<S> stored(given.scores.size());
    for (index_t t = 0; t < given.rows; ++t) {
        for (index_t e = 0; e < given.experts; ++e) {
            const index_t at = given.by_columns ? e * given.rows + t : t * given.experts + e;
            stored[static_cast<std::size_t>(at)] = static_cast<S>(given.score(t, e));
        }
    }
    sy::matrix_view<const S> view(stored.data(), given.rows, given.experts);
    if (given.by_columns) view = {stored.data(), given.rows, given.experts, 1, given.rows};
    answer found;
    found.experts.assign(static_cast<std::size_t>(given.rows * std::max<index_t>(given.choices, 1)), 12345);
    found.prices.assign(static_cast<std::size_t>(given.experts), 12345.0);
    const sy::assignment_problem<S> posed{
        .scores = view,
        .bounds = given.bounds,
        .mask = {given.mask.empty() ? nullptr : given.mask.data(), static_cast<index_t>(given.mask.size())},
        .choices = given.choices,
        .goal = given.goal,
        .initial_prices = given.initial_prices.empty() ? nullptr : given.initial_prices.data()};
    found.result = solve(policy, solver, posed, {found.experts.data(), found.prices.data()}, scratch);
    return found;
}

/// What plain loops make of an answer, scores to be maximised.
struct certificate {
    long double score = 0;
    long double gap = 0;
    long double rounding = 0;  ///< what computing it in double may get wrong
};

double gain(const problem& given, index_t t, index_t e) {
    return given.goal == sy::objective::minimise ? -given.score(t, e) : given.score(t, e);
}

/// Adds a token's part, and checks that its experts are ones it may have.
void certify_token(const problem& given, const answer& found, index_t t, certificate& made) {
    const auto price = [&](index_t e) -> long double { return found.prices[static_cast<std::size_t>(e)]; };
    const std::int32_t* const chosen = found.experts.data() + t * given.choices;
    std::vector<long double> margins;
    for (index_t e = 0; e < given.experts; ++e) {
        if (gain(given, t, e) == -infinity) continue;
        margins.push_back(gain(given, t, e) - price(e));
        made.rounding += std::abs(gain(given, t, e)) + std::abs(price(e));
    }
    std::sort(margins.rbegin(), margins.rend());
    for (index_t j = 0; j < given.choices; ++j) {
        require(chosen[j] >= 0 && chosen[j] < given.experts, "a token has an expert");
        require(std::count(chosen, chosen + given.choices, chosen[j]) == 1, "a token's experts are different");
        require(gain(given, t, chosen[j]) > -infinity, "no token is at a forbidden expert");
        require(j == 0 || gain(given, t, chosen[j]) <= gain(given, t, chosen[j - 1]), "a token's best expert is first");
        made.score += gain(given, t, chosen[j]);
        made.gap += margins[static_cast<std::size_t>(j)] - (gain(given, t, chosen[j]) - price(chosen[j]));
    }
}

certificate certify(const problem& given, const answer& found) {
    certificate made;
    std::vector<index_t> load(static_cast<std::size_t>(given.experts));
    index_t tokens = 0;
    for (const double price : found.prices) require(std::isfinite(price), "prices are finite");
    for (index_t t = 0; t < given.rows; ++t) {
        const std::int32_t* const chosen = found.experts.data() + t * given.choices;
        if (!given.is_token(t)) {
            require(std::count(chosen, chosen + given.choices, -1) == given.choices, "padding has no expert");
            continue;
        }
        tokens += 1;
        certify_token(given, found, t, made);
        for (index_t j = 0; j < given.choices; ++j) load[static_cast<std::size_t>(chosen[j])] += 1;
    }
    for (index_t e = 0; e < given.experts; ++e) {
        const index_t taken = load[static_cast<std::size_t>(e)];
        require(taken >= given.bounds.lower(e) && taken <= given.bounds.upper(e), "loads are within the quotas");
        const long double price = found.prices[static_cast<std::size_t>(e)];
        const index_t bound = price > 0 ? std::min(given.bounds.upper(e), tokens) : given.bounds.lower(e);
        made.gap += price * static_cast<long double>(bound - taken);
        made.rounding += std::abs(price) * static_cast<long double>(bound + taken);
    }
    made.rounding *= 1e-14L;
    require(found.result.tokens == tokens, "tokens are counted");
    return made;
}

bool same(const answer& a, const answer& b) {
    return a.experts == b.experts && a.prices == b.prices && a.result.gap == b.result.gap;
}

/// The answer of a solver, checked; nothing where it refuses the problem, with the sentence.
template <class S, class Solver>
std::optional<answer> checked(const Solver& solver, const problem& given, std::string& refusal) {
    sy::workspace scratch;
    answer found;
    try {
        found = run<S>(sy::seq, solver, given, scratch);
    } catch (const sy::error& e) {
        refusal = e.what();
        require(refusal.size() > 10, "an error is a sentence");
        return std::nullopt;
    }
    const certificate made = certify(given, found);
    const double sign = given.goal == sy::objective::minimise ? -1 : 1;
    const auto& result = found.result;
    require(result.gap >= 0, "a gap is not negative");
    require(std::abs(result.gap - made.gap) <= made.rounding + 1e-300L, "the gap is that of the prices");
    require(std::abs(sign * result.primal - made.score) <= made.rounding, "primal is the assignment's score");
    require(std::abs(sign * (result.dual - result.primal) - made.gap) <= 4 * made.rounding + 1e-300L,
            "dual is primal and gap");
    require(result.converged == (result.gap <= result.tolerance), "converged is what it says");
    require(same(found, run<S>(sy::seq, solver, given, scratch)), "a used workspace changes nothing");
    backwards pool;
    require(same(found, run<S>(sy::par_on(pool), solver, given, scratch)), "the order of blocks changes nothing");
    return found;
}

/// Against the textbook, where that takes no time.
void compare_with_textbook(const problem& given, const std::optional<answer>& found, const std::string& refusal) {
    if (given.choices != 1 || given.rows > 24 || given.experts > 8 || given.experts < 1 || !given.tame) return;
    if (!found && refusal.find("the quotas cannot be met") != 0) return;
    namespace reference = sy::reference;
    reference::matrix scores(given.rows, given.experts);
    auto lower = reference::filled<index_t>(given.experts, 0), upper = lower;
    for (index_t e = 0; e < given.experts; ++e) {
        lower[e] = given.bounds.lower(e);
        upper[e] = given.bounds.upper(e);
        for (index_t t = 0; t < given.rows; ++t) scores(t, e) = gain(given, t, e);
    }
    const reference::mask_list mask(given.mask.begin(), given.mask.end());
    const auto best = reference::best_by_augmenting(scores, lower, upper, mask);
    require(best.feasible == found.has_value(), "what cannot be met is what the textbook cannot meet");
    if (!found) return;
    const double sign = given.goal == sy::objective::minimise ? -1 : 1;
    const double score = sign * found->result.primal, slack = 1e-9 * std::abs(best.total_score) + 1e-9;
    require(score <= best.total_score + slack, "no score is above the best");
    require(best.total_score <= score + found->result.gap + slack, "the gap holds");
}

template <class S>
void check(const problem& given) {
    std::string refusal;
    sy::hungarian exact;
    if ((given.settings & 1) != 0) {
        exact.candidates = 1 + (given.settings >> 1) % 4;
        exact.sampling = given.settings >> 5;
    }
    const bool limited = given.settings % 8 == 6;
    if (limited) exact.most_iterations = 1 + given.settings / 8;
    const auto best = checked<S>(exact, given, refusal);
    if (best && given.tame && !limited) require(best->result.converged, "hungarian certifies scores that are tame");
    compare_with_textbook(given, best, refusal);
    std::string refusal_of_auction;
    // On scores of many sizes a bid may gain next to nothing: the limit is what keeps each input short.
    const auto bid = checked<S>(sy::auction{.most_rounds = 2000}, given, refusal_of_auction);
    const bool setting = refusal.find("hungarian::") == 0;
    require(setting || best.has_value() == bid.has_value(), "both solvers refuse the same");
    if (!best || !bid) return;
    const double sign = given.goal == sy::objective::minimise ? -1 : 1;
    const double rounding = 1e-9 * (std::abs(best->result.primal) + std::abs(best->result.dual) +
                                    std::abs(bid->result.primal) + std::abs(bid->result.dual)) +
                            1e-12;
    const double ahead = sign * (best->result.primal - bid->result.primal);
    require(ahead <= bid->result.gap + rounding, "hungarian is not above what auction says is possible");
    require(-ahead <= best->result.gap + rounding, "auction is not above what hungarian says is possible");
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* bytes, std::size_t size) {
    const problem given = fuzz::read_problem(bytes, size);
    current = &given;
    if (given.in_float) {
        check<float>(given);
    } else {
        check<double>(given);
    }
    return 0;
}
