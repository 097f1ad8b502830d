// Fixed and freed tokens, against looking at every token: what narrowing leaves out of the exact part must be right
// where it is, at whatever prices that part ends with.
#include <switchyard/switchyard.hpp>

#include "assignment/instances.hpp"

using namespace assignment_tests;

namespace {

namespace detail = sy::detail;

/// A problem narrowed down by one or two looks, and the truth by brute force.
class narrowed {
  public:
    narrowed(index_t tokens, index_t experts, index_t choices, bool rounded, unsigned seed)
        : random_(seed),
          choices_(choices),
          values_(gaussian_scores(tokens, experts, seed)),
          scores_{{values_.data(), tokens, experts}, false},
          rows_(static_cast<std::size_t>(tokens)),
          chosen_(static_cast<std::size_t>(tokens * choices)),
          price_(static_cast<std::size_t>(experts)),
          bounds_(sy::balanced_quotas(tokens * choices, experts)),
          all_(scores_, rows_.data(), tokens, choices, chosen_.data(), scratch_),
          search_(scores_, bounds_, tokens, choices, tokens, scratch_) {
        if (rounded) {
            for (float& s : values_) s = std::round(2 * s) / 2;
        }
        for (index_t t = 0; t < tokens; ++t) rows_[static_cast<std::size_t>(t)] = static_cast<std::int32_t>(t);
        move_prices(0.5);
        all_.begin();
        search_.take_all(rows_.data());
        search_.look(sy::seq, price_.data());
    }

    /// Prices that float holds, as looks see them.
    void move_prices(double size) {
        std::normal_distribution<float> normal;
        for (double& p : price_)
            p = static_cast<double>(static_cast<float>(p) + static_cast<float>(size) * normal(random_));
    }
    void fix(double band) { all_.fix(search_, band, price_.data()); }
    void look_again(double band) {
        search_.keep_below(sy::seq, band, all_.candidates(), all_.fixed_loads());
        search_.look(sy::seq, price_.data());
    }
    index_t free() { return all_.free(price_.data()); }
    index_t free_crowded() { return all_.free_crowded(bounds_); }

    std::vector<bool> candidates() const {
        std::vector<bool> is_candidate(rows_.size());
        for (index_t i = 0; i < all_.candidate_count(); ++i) {
            const auto t = static_cast<std::size_t>(all_.candidates()[i]);
            CHECK(!is_candidate[t]);  // once only
            is_candidate[t] = true;
        }
        return is_candidate;
    }
    double regret(index_t t) const {
        std::vector<double> margins;
        for (index_t e = 0; e < scores_.experts(); ++e) {
            margins.push_back(scores_(t, e) - price_[static_cast<std::size_t>(e)]);
        }
        double held = 0;
        for (index_t c = 0; c < choices_; ++c) {
            held += margins[static_cast<std::size_t>(chosen_[static_cast<std::size_t>(t * choices_ + c)])];
        }
        std::sort(margins.begin(), margins.end(), std::greater<>());
        return std::accumulate(margins.begin(), margins.begin() + choices_, 0.0) - held;
    }
    std::vector<index_t> fixed_loads() const {
        const std::vector<bool> is_candidate = candidates();
        std::vector<index_t> loads(price_.size());
        for (std::size_t i = 0; i < chosen_.size(); ++i) {
            if (!is_candidate[i / static_cast<std::size_t>(choices_)]) loads[static_cast<std::size_t>(chosen_[i])] += 1;
        }
        return loads;
    }

    /// No fixed token would rather be elsewhere, and the certificate is that of a look at every token.
    void check() {
        const std::vector<bool> is_candidate = candidates();
        for (index_t t = 0; t < scores_.tokens(); ++t) {
            if (!is_candidate[static_cast<std::size_t>(t)]) CHECK(regret(t) <= 1e-12);
        }
        const std::vector<index_t> loads = fixed_loads();
        CHECK(std::equal(loads.begin(), loads.end(), all_.fixed_loads()));
        const auto quick = all_.certify(sy::seq, bounds_, price_.data());
        const auto full =
            detail::certify(sy::seq, scores_, bounds_, choices_, chosen_.data(), price_.data(), certificate_scratch_);
        CHECK(quick.tokens == full.tokens);
        CHECK(std::abs(quick.primal - full.primal) <= 1e-9);
        CHECK(std::abs(quick.gap - full.gap) <= 1e-9);
        CHECK(std::abs(quick.tolerance - full.tolerance) <= 1e-12);
    }

    index_t crowded_experts() const {
        index_t crowded = 0;
        for (index_t e = 0; e < scores_.experts(); ++e) crowded += all_.fixed_loads()[e] > bounds_.upper(e) ? 1 : 0;
        return crowded;
    }
    index_t candidate_count() const { return all_.candidate_count(); }

  private:
    std::mt19937_64 random_;
    index_t choices_;
    std::vector<float> values_;
    detail::score_source<float> scores_;
    std::vector<std::int32_t> rows_;
    std::vector<std::int32_t> chosen_;
    std::vector<double> price_;
    sy::quotas bounds_;
    sy::workspace scratch_;
    sy::workspace::scope scope_ = scratch_.open();
    sy::workspace certificate_scratch_;
    detail::narrowing<float> all_;
    detail::price_search<float> search_;
};

}  // namespace

TEST_CASE("narrowing: fixed tokens stay right at any prices, or are freed") {
    index_t freed_after_one = 0, freed_after_two = 0, kept = 0;
    for (unsigned seed = 0; seed < 60; ++seed) {
        const index_t tokens = 200 + 7 * seed;
        narrowed some(tokens, 5 + seed % 30, 1 + seed % 3, seed % 4 == 3, seed);
        some.fix(0.3);
        some.check();
        const index_t candidates = some.candidate_count();
        CHECK(some.free() == 0);  // nothing has moved
        CHECK(some.candidate_count() == candidates);

        some.look_again(0.3);
        some.move_prices(0.05 * (seed % 5));
        some.look_again(0.3);
        freed_after_one += some.free();  // before the second look's tokens are fixed: they stay candidates
        some.check();
        some.fix(0.1);
        some.check();
        some.move_prices(0.05 * (seed % 7));
        freed_after_two += some.free();
        some.check();
        kept += tokens - some.candidate_count();
    }
    CHECK(freed_after_one > 100);
    CHECK(freed_after_two > 100);
    CHECK(kept > 1000);
}

TEST_CASE("narrowing: experts that fixed tokens overfill are relieved of them") {
    index_t crowded = 0;
    for (unsigned seed = 0; seed < 20; ++seed) {
        narrowed some(300, 10, 1 + seed % 2, false, seed);
        some.fix(0.01 * (seed % 4));
        crowded += some.crowded_experts();
        const index_t before = some.candidate_count();
        const bool is_crowded = some.crowded_experts() > 0;
        CHECK((some.free_crowded() > 0) == is_crowded);
        CHECK((some.candidate_count() > before) == is_crowded);
        CHECK(some.crowded_experts() == 0);
        CHECK(some.free_crowded() == 0);
        some.check();
    }
    CHECK(crowded > 20);
}
