// The lists of what may move next, against looking at every token.
#include <switchyard/assignment/detail/candidate_lists.hpp>

#include "assignment/instances.hpp"

using namespace assignment_tests;

namespace {

/// Tokens that wander between experts, the lists kept up to date as the solver does, and the truth by brute force.
class wandering_tokens {
  public:
    wandering_tokens(index_t tokens, index_t experts, index_t length, int values, unsigned seed)
        : random_(seed), scores_(tokens, experts), lists_(experts, std::min(tokens, experts), length, scratch_) {
        for (double& s : scores_.values) s = static_cast<double>(random_() % static_cast<unsigned>(values));
        owner_ = reference::filled<std::int32_t>(tokens, 0);
        for (auto& e : owner_) e = static_cast<std::int32_t>(random_() % static_cast<unsigned>(experts));
        lists_.reset(std::min(tokens, experts), length, owner_.data(), 1);
    }

    void move_one() {
        const auto t = static_cast<std::int32_t>(random_() % static_cast<unsigned>(scores_.rows));
        const index_t from = owner_[t];
        const auto to = static_cast<std::int32_t>(random_() % static_cast<unsigned>(scores_.columns));
        if (from == to) return;
        owner_[t] = to;
        if (lists_.has_row(from)) load(from) == 0 ? lists_.close_row(from) : lists_.remove(from, t);
        if (lists_.has_row(to)) lists_.offer_all(to, row(t), t);
    }

    void open_one() {
        const auto e = static_cast<index_t>(random_() % static_cast<unsigned>(scores_.columns));
        if (load(e) == 0 || lists_.has_row(e)) return;
        lists_.open_row(e);
        for (std::int32_t t = 0; t < scores_.rows; ++t) {
            if (owner_[t] == e) lists_.offer_all(e, row(t), t);
        }
    }

    void check() {
        for (index_t e = 0; e < scores_.columns; ++e) {
            if (!lists_.has_row(e)) continue;
            for (index_t f = 0; f < scores_.columns; ++f) check(e, f);
        }
    }

    index_t known_pairs = 0, bounded_pairs = 0, equal_tokens = 0;

  private:
    void check(index_t e, index_t f) {
        double least = infinity;
        index_t equal = 0;
        for (std::int32_t t = 0; t < scores_.rows && e != f; ++t) {
            if (owner_[t] != e) continue;
            const double key = scores_(t, e) - scores_(t, f);
            equal = key < least ? 1 : key == least ? equal + 1 : equal;
            least = std::min(least, key);
        }
        const double listed = lists_.best_keys(e)[f];
        if (e == f) {
            REQUIRE(listed == infinity);
        } else if (lists_.known(e, f)) {
            REQUIRE(listed == least);
            REQUIRE(lists_.count_best(e, f) >= 1);
            REQUIRE(lists_.count_best(e, f) <= equal);
            REQUIRE(owner_[lists_.best(e, f)] == e);
            REQUIRE(scores_(lists_.best(e, f), e) - scores_(lists_.best(e, f), f) == least);
            known_pairs += 1;
            equal_tokens += lists_.count_best(e, f) - 1;
        } else {
            REQUIRE(listed <= least);
            bounded_pairs += 1;
        }
    }

    const double* row(index_t t) const { return scores_.values.data() + t * scores_.columns; }
    index_t load(index_t e) const { return std::count(owner_.begin(), owner_.end(), e); }

    std::mt19937 random_;
    sy::workspace scratch_;
    reference::matrix scores_;
    reference::list<std::int32_t> owner_;
    sy::detail::candidate_lists lists_;
};

}  // namespace

TEST_CASE("candidate lists: best tokens and bounds are true whoever comes, leaves and comes back") {
    index_t known = 0, bounded = 0, equal = 0;
    for (unsigned seed = 0; seed < 60; ++seed) {
        const int values = seed % 3 == 0 ? 3 : 1000;  // few values: many equal keys
        wandering_tokens tokens(3 + seed, 2 + seed % 5, 1 + seed % 4, values, seed);
        for (int step = 0; step < 300; ++step) {
            tokens.move_one();
            if (step % 4 == 0) tokens.open_one();
            tokens.check();
        }
        known += tokens.known_pairs;
        bounded += tokens.bounded_pairs;
        equal += tokens.equal_tokens;
    }
    CHECK(known > 10'000);
    CHECK(bounded > 10'000);
    CHECK(equal > 1'000);
}
