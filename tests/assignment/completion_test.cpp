// Partial assignments completed, against trying everything; and what is said where they cannot be.
#include <switchyard/assignment/detail/completion.hpp>

#include "assignment/instances.hpp"

#include <bit>
#include <chrono>
#include <iostream>
#include <numeric>

using namespace assignment_tests;

namespace {

/// k experts per token, some placed already.
struct partial {
    instance problem;
    index_t choices = 1;
    bool forbidden = false;
    std::vector<std::int32_t> experts;  // [T, k]

    std::int32_t& expert(index_t token, index_t j) { return experts[static_cast<std::size_t>(token * choices + j)]; }
    std::int32_t expert(index_t token, index_t j) const {
        return experts[static_cast<std::size_t>(token * choices + j)];
    }
    bool may(index_t token, index_t e) const { return problem.scores(token, e) != -infinity; }
};

/// Whether tokens `t` and after can be placed, by trying every set of k experts for each.
bool feasible_from(const partial& given, index_t t, std::vector<index_t>& load) {
    const instance& problem = given.problem;
    const index_t experts = problem.scores.columns;
    if (t == problem.scores.rows) {
        for (index_t e = 0; e < experts; ++e) {
            const index_t here = load[static_cast<std::size_t>(e)];
            if (here < problem.lower[e] || here > problem.upper[e]) return false;
        }
        return true;
    }
    if (!reference::is_token(problem.mask, t)) return feasible_from(given, t + 1, load);
    for (std::uint32_t set = 0; set < 1u << experts; ++set) {
        if (std::popcount(set) != given.choices) continue;
        bool allowed = true;
        for (index_t e = 0; e < experts; ++e) allowed &= (set >> e & 1) == 0 || given.may(t, e);
        if (!allowed) continue;
        for (index_t e = 0; e < experts; ++e) load[static_cast<std::size_t>(e)] += set >> e & 1;
        const bool found = feasible_from(given, t + 1, load);
        for (index_t e = 0; e < experts; ++e) load[static_cast<std::size_t>(e)] -= set >> e & 1;
        if (found) return true;
    }
    return false;
}

bool is_feasible(const partial& given) {
    std::vector<index_t> load(static_cast<std::size_t>(given.problem.scores.columns), 0);
    return feasible_from(given, 0, load);
}

/// Tiny: each token may take k experts at least; bounds that hold T k places, none below above T.
partial draw_partial(std::mt19937_64& random, index_t most_tokens, index_t most_experts) {
    const auto whole = [&](index_t least, index_t most) {
        return std::uniform_int_distribution<index_t>(least, most)(random);
    };
    partial given;
    instance& problem = given.problem;
    const index_t rows = whole(0, most_tokens);
    const index_t experts = whole(1, most_experts);
    given.choices = whole(1, std::min<index_t>(experts, 3));
    problem.scores = reference::matrix(rows, experts);
    const index_t forbidding = whole(0, 3);  // in 4 pairs
    given.forbidden = forbidding > 0;
    std::vector<index_t> order(static_cast<std::size_t>(experts));
    for (index_t t = 0; t < rows; ++t) {
        std::iota(order.begin(), order.end(), index_t{0});
        std::shuffle(order.begin(), order.end(), random);
        for (index_t i = given.choices; i < experts; ++i) {
            if (whole(1, 4) <= forbidding) problem.scores(t, order[static_cast<std::size_t>(i)]) = -infinity;
        }
    }
    if (whole(0, 2) == 0) {
        problem.mask = reference::filled<std::uint8_t>(rows, 1);
        for (auto& byte : problem.mask) byte = whole(0, 3) != 0 ? 1 : 0;
    }
    const index_t tokens = problem.tokens();
    // Loads that hold the places, not knowing what is forbidden, and bounds around them.
    problem.lower = reference::filled<index_t>(experts, 0);
    for (index_t placed = 0; placed < tokens * given.choices;) {
        const index_t e = whole(0, experts - 1);
        if (problem.lower[e] == tokens) continue;
        problem.lower[e] += 1;
        placed += 1;
    }
    problem.upper = problem.lower;
    const index_t slack = whole(0, 2);
    for (index_t e = 0; e < experts; ++e) {
        problem.lower[e] -= std::min(problem.lower[e], whole(0, slack));
        problem.upper[e] += whole(0, slack);
    }
    // Some places taken, upper bounds or not.
    given.experts.assign(static_cast<std::size_t>(rows * given.choices), -1);
    const index_t taken = whole(0, 4);
    for (index_t t = 0; t < rows; ++t) {
        if (!reference::is_token(problem.mask, t)) continue;
        for (index_t j = 0; j < given.choices; ++j) {
            const index_t e = whole(0, experts - 1);
            bool free = given.may(t, e);
            for (index_t i = 0; i < j; ++i) free &= given.expert(t, i) != e;
            if (free && whole(1, 4) <= taken) given.expert(t, j) = static_cast<std::int32_t>(e);
        }
    }
    return given;
}

struct completed {
    partial made;
    sy::detail::completion_result result;
    std::vector<std::uint8_t> concerned;
};

completed complete(const partial& given) {
    completed c{given, {}, {}};
    const instance& problem = given.problem;
    c.concerned.resize(static_cast<std::size_t>(problem.scores.columns));
    sy::workspace scratch;
    const sy::detail::score_source<double> scores{
        {problem.scores.values.data(), problem.scores.rows, problem.scores.columns}};
    c.result = sy::detail::complete_assignment(scores, problem.bounds(), problem.padding(), given.choices,
                                               given.forbidden, c.made.experts.data(), c.concerned.data(), scratch);
    return c;
}

bool is_complete(const partial& made) {
    const instance& problem = made.problem;
    std::vector<index_t> load(static_cast<std::size_t>(problem.scores.columns), 0);
    for (index_t t = 0; t < problem.scores.rows; ++t) {
        for (index_t j = 0; j < made.choices; ++j) {
            const std::int32_t e = made.expert(t, j);
            if (!reference::is_token(problem.mask, t)) {
                if (e != -1) return false;
                continue;
            }
            if (e < 0 || e >= problem.scores.columns || !made.may(t, e)) return false;
            for (index_t i = 0; i < j; ++i) {
                if (made.expert(t, i) == e) return false;
            }
            load[static_cast<std::size_t>(e)] += 1;
        }
    }
    for (index_t e = 0; e < problem.scores.columns; ++e) {
        const index_t here = load[static_cast<std::size_t>(e)];
        if (here < problem.lower[e] || here > problem.upper[e]) return false;
    }
    return true;
}

/// The proof: what the experts concerned must or can hold at least or at most, counted from the scores alone.
bool is_proof(const completed& c) {
    const instance& problem = c.made.problem;
    index_t places = 0, bound = 0, first = -1;
    for (index_t t = 0; t < problem.scores.rows; ++t) {
        if (!reference::is_token(problem.mask, t)) continue;
        index_t inside = 0, outside = 0;
        for (index_t e = 0; e < problem.scores.columns; ++e) {
            if (c.made.may(t, e)) (c.concerned[static_cast<std::size_t>(e)] != 0 ? inside : outside) += 1;
        }
        const index_t confined = std::max(index_t{0}, c.made.choices - outside);
        places += c.result.starving ? std::min(inside, c.made.choices) : confined;
        if (confined > 0 && first < 0) first = t;
    }
    const index_t tokens = problem.tokens();
    for (index_t e = 0; e < problem.scores.columns; ++e) {
        if (c.concerned[static_cast<std::size_t>(e)] == 0) continue;
        bound += c.result.starving ? problem.lower[e] : std::min(problem.upper[e], tokens);
    }
    return places == c.result.places && bound == c.result.bound &&
           (c.result.starving ? places < bound : places > bound && first == c.result.first_token);
}

std::string reason(const completed& c) {
    return sentence_of([&] {
        sy::detail::fail_infeasible(c.result, c.made.problem.scores.columns, c.made.choices, c.concerned.data());
    });
}

partial open_problem(reference::matrix scores, bounds_list lower, bounds_list upper, index_t choices = 1) {
    partial given;
    given.experts.assign(static_cast<std::size_t>(scores.rows * choices), -1);
    given.problem = {std::move(scores), std::move(lower), std::move(upper), {}};
    given.choices = choices;
    given.forbidden = true;
    return given;
}

}  // namespace

TEST_CASE("completion: succeeds where anything can, and proves that nothing can where it does not") {
    std::mt19937_64 random(20210331);
    index_t feasible = 0, starving = 0, full = 0;
    for (int i = 0; i < 20000; ++i) {
        const partial given = draw_partial(random, 6, 5);
        const completed c = complete(given);
        CAPTURE(given.problem);
        CAPTURE(given.choices);
        REQUIRE(c.result.complete == is_feasible(given));
        if (c.result.complete) {
            REQUIRE(is_complete(c.made));
            feasible += 1;
        } else {
            REQUIRE(is_proof(c));
            (c.result.starving ? starving : full) += 1;
        }
    }
    CHECK(feasible > 5000);  // every outcome was met
    CHECK(starving > 100);
    CHECK(full > 1000);
}

TEST_CASE("completion: long paths, on larger problems that can be met by construction") {
    std::mt19937_64 random(7);
    for (int i = 0; i < 60; ++i) {
        // Token t may take expert t mod E and the one after: open places at one end move tokens along all experts.
        const index_t experts = 3 + static_cast<index_t>(random() % 40);
        const index_t rows = experts * (1 + static_cast<index_t>(random() % 4));
        partial given = open_problem(reference::matrix(rows, experts), {}, {});
        given.problem.lower = given.problem.upper = reference::filled<index_t>(experts, rows / experts);
        for (index_t t = 0; t < rows; ++t) {
            for (index_t e = 0; e < experts; ++e) {
                const bool may = e == t % experts || e == (t + 1) % experts;
                if (!may) given.problem.scores(t, e) = -infinity;
            }
            if (random() % 4 != 0)
                given.expert(t, 0) =
                    static_cast<std::int32_t>((t + random() % 2) % static_cast<std::uint64_t>(experts));
        }
        const completed c = complete(given);
        REQUIRE(c.result.complete);
        REQUIRE(is_complete(c.made));
    }
}

TEST_CASE("completion: what is placed stays where nothing compels it to move") {
    std::mt19937_64 random(8);
    for (int i = 0; i < 1000; ++i) {
        partial given = draw_partial(random, 30, 6);
        for (auto& s : given.problem.scores.values) s = 0;
        given.forbidden = false;
        given.choices = 1;
        given.experts.assign(static_cast<std::size_t>(given.problem.scores.rows), -1);
        const index_t tokens = given.problem.tokens();
        const index_t experts = given.problem.scores.columns;
        given.problem.lower = reference::filled<index_t>(experts, 0);
        given.problem.upper = reference::filled<index_t>(experts, tokens);
        for (index_t t = 0; t < given.problem.scores.rows; ++t) {
            if (reference::is_token(given.problem.mask, t) && random() % 2 == 0) {
                given.expert(t, 0) = static_cast<std::int32_t>(random() % static_cast<std::uint64_t>(experts));
            }
        }
        const completed c = complete(given);
        REQUIRE(c.result.complete);
        REQUIRE(is_complete(c.made));
        for (index_t t = 0; t < given.problem.scores.rows; ++t) {
            if (given.expert(t, 0) >= 0) REQUIRE(c.made.expert(t, 0) == given.expert(t, 0));
        }
    }
}

TEST_CASE("completion: the sentences of what cannot be met") {
    const double no = -infinity;
    CHECK(reason(complete(open_problem({{1, no}, {1, no}, {1, no}, {1, 1}}, {0, 0}, {2, 2}))) ==
          "the quotas cannot be met: 3 tokens (the first is 0) are allowed only on expert 0, which may take at most 2");
    CHECK(reason(complete(open_problem({{1, no}, {1, no}, {1, no}, {1, 1}}, {0, 2}, {4, 4}))) ==
          "the quotas cannot be met: expert 1 must take at least 2 tokens, and only 1 tokens are allowed there");
    // Experts 0 and 1 are full, too; but it is expert 2 that nobody may take.
    CHECK(reason(complete(open_problem({{1, 1, no}, {1, 1, no}, {1, 1, no}}, {1, 1, 1}, {1, 1, 1}))) ==
          "the quotas cannot be met: expert 2 must take at least 1 tokens, and only 0 tokens are allowed there");
    CHECK(reason(complete(open_problem({{1, 1, no}, {1, 1, no}, {1, 1, 1}}, {0, 0, 0}, {1, 2, 3}, 2))) ==
          "the quotas cannot be met: tokens with 2 different experts each (the first is token 0) need at least 5 "
          "places on experts 0, 1, which may take at most 3");
    CHECK(reason(complete(open_problem({{1, 1, no}, {1, 1, no}, {1, 1, 1}}, {0, 0, 2}, {3, 3, 3}, 2))) ==
          "the quotas cannot be met: expert 2 must take at least 2 places, and tokens with 2 different experts each "
          "can fill only 1 there");
}

TEST_CASE("completion: a large problem with nothing forbidden takes no time to speak of") {
    const index_t rows = 65536, experts = 4096;
    std::vector<std::int32_t> found(static_cast<std::size_t>(rows), -1);
    std::vector<std::uint8_t> concerned(static_cast<std::size_t>(experts));
    sy::workspace scratch;
    const double zero = 0;
    const sy::detail::score_source<double> scores{{&zero, rows, experts, 0, 0}};
    const auto begun = std::chrono::steady_clock::now();
    const auto result = sy::detail::complete_assignment(scores, sy::balanced_quotas(rows, experts), sy::token_mask{}, 1,
                                                        false, found.data(), concerned.data(), scratch);
    const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - begun;
    CHECK(result.complete);
    CHECK(taken.count() < 1.0);  // T E steps would be several
    std::vector<index_t> load(static_cast<std::size_t>(experts), 0);
    for (const auto e : found) load[static_cast<std::size_t>(e)] += 1;
    CHECK(load == std::vector<index_t>(static_cast<std::size_t>(experts), rows / experts));
}
