// The scores on which assignment solvers are compared. Always the same ones: every kind has a fixed seed. Programs that
// want others of a kind give a seed of their own; 0 is the fixed one.
//
//   gaussian    standard normal numbers: every expert is as good as another, and the loads nearly balanced
//   skewed      what gates see of text: 4 E clusters of tokens, cluster c with probability proportional to
//               1 / (c + 1), which is Zipf's law; mu_c ~ N(0, I64), token x = mu_c + 0.7 N(0, I64),
//               expert w_e ~ 2 N(0, I64) / 8, s = x w^T
//   quantized   skewed, rounded to bfloat16: many ties
//   equal       nothing but ties
//   drifted     skewed, plus 0.05 std(s) N(0, 1): the same batch a training step later, so to say
//   recorded    a file's
#pragma once

#include "eigen_baseline.hpp"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>

namespace bench {

/// The standard deviation of all scores that are finite.
inline double standard_deviation(const row_major& scores) {
    double sum = 0, squares = 0, count = 0;
    for (index_t i = 0; i < scores.size(); ++i) {
        const auto s = static_cast<double>(scores.data()[i]);
        if (!std::isfinite(s)) continue;
        sum += s;
        squares += s * s;
        count += 1;
    }
    if (count == 0) return 0;
    const double mean = sum / count;
    return std::sqrt(std::max(0.0, squares / count - mean * mean));
}

inline row_major skewed_scores(index_t tokens, index_t experts, unsigned seed = 0) {
    constexpr index_t width = 64;
    const index_t clusters = 4 * experts;
    const row_major centres = gaussian(clusters, width, 3 * seed + 1);
    const row_major weights = gaussian(experts, width, 3 * seed + 2) * (2.0F / 8.0F);
    std::vector<double> share(static_cast<std::size_t>(clusters));
    for (index_t c = 0; c < clusters; ++c) share[static_cast<std::size_t>(c)] = 1.0 / static_cast<double>(c + 1);
    std::mt19937_64 engine(3 * seed + 3);
    std::discrete_distribution<index_t> cluster(share.begin(), share.end());
    std::normal_distribution<float> normal;

    row_major scores(tokens, experts);
    constexpr index_t rows_at_once = 4096;
    for (index_t first = 0; first < tokens; first += rows_at_once) {
        const index_t rows = std::min(rows_at_once, tokens - first);
        row_major x(rows, width);
        for (index_t i = 0; i < rows; ++i) {
            const index_t c = cluster(engine);
            for (index_t j = 0; j < width; ++j) x(i, j) = centres(c, j) + 0.7F * normal(engine);
        }
        scores.middleRows(first, rows).noalias() = x * weights.transpose();
    }
    return scores;
}

inline row_major quantized_scores(row_major scores) {
    for (index_t i = 0; i < scores.size(); ++i) {
        scores.data()[i] = static_cast<float>(static_cast<Eigen::bfloat16>(scores.data()[i]));
    }
    return scores;
}

inline row_major equal_scores(index_t tokens, index_t experts) { return row_major::Constant(tokens, experts, 1.5F); }

inline row_major drifted_scores(row_major scores) {
    const auto drift = static_cast<float>(0.05 * standard_deviation(scores));
    std::mt19937_64 engine(4);
    std::normal_distribution<float> normal;
    for (index_t i = 0; i < scores.size(); ++i) scores.data()[i] += drift * normal(engine);
    return scores;
}

/// Which scores: a row's name after the solver.
struct score_key {
    index_t tokens = 0;
    index_t experts = 0;
    std::string kind;

    std::string name() const { return "/" + std::to_string(tokens) + "/" + std::to_string(experts) + "/" + kind; }
    friend auto operator<=>(const score_key&, const score_key&) = default;
};

struct score_set {
    row_major scores;
    double deviation = 0;
};

/// Makes scores when they are first asked for and keeps the latest, up to some GiB: most rows share theirs.
class score_store {
  public:
    void set_recorded(row_major scores) { recorded_ = std::move(scores); }

    std::shared_ptr<const score_set> get(const score_key& key) {
        auto& kept = kept_[key];
        if (kept == nullptr) {
            auto made = std::make_shared<score_set>();
            made->scores = make(key);
            made->deviation = standard_deviation(made->scores);
            held_ += made->scores.size() * static_cast<index_t>(sizeof(float));
            if (held_ > most_held) {  // those in use stay with their users
                kept_.clear();
                held_ = made->scores.size() * static_cast<index_t>(sizeof(float));
            }
            return kept_[key] = std::move(made);
        }
        return kept;
    }

  private:
    static constexpr index_t most_held = index_t{1} << 30;

    row_major make(const score_key& key) const {
        if (key.kind == "gaussian") return gaussian(key.tokens, key.experts);
        if (key.kind == "skewed") return skewed_scores(key.tokens, key.experts);
        if (key.kind == "quantized") return quantized_scores(skewed_scores(key.tokens, key.experts));
        if (key.kind == "drifted") return drifted_scores(skewed_scores(key.tokens, key.experts));
        if (key.kind == "equal") return equal_scores(key.tokens, key.experts);
        if (key.kind == "recorded") return recorded_;
        throw std::logic_error("no scores are called " + key.kind);
    }

    row_major recorded_;
    std::map<score_key, std::shared_ptr<const score_set>> kept_;
    index_t held_ = 0;
};

}  // namespace bench
