// Adam: each number moves by its gradient's running mean over the root of its running square.
//
//   m = b1 m + (1 - b1) g,  v = b2 v + (1 - b2) g^2,  x -= rate m / (1 - b1^n) / (sqrt(v / (1 - b2^n)) + tiny)
//
// Kingma, Ba 2014, "Adam: A Method for Stochastic Optimization", arXiv 1412.6980.
#pragma once

#include "parameters.hpp"
#include "threads.hpp"

#include <cmath>

namespace study {

template <class S>
class adam {
  public:
    double first_decay = 0.9;
    double second_decay = 0.98;
    double tiny = 1e-8;

    void step(const thread_policy& threads, double rate, parameters<S>& learned) {
        if (mean_.size() == 0) {
            mean_.setZero(learned.values.size());
            square_.setZero(learned.values.size());
        }
        ++steps_;
        // Both corrections as one factor: tiny is then that of the paper's section 2, last sentence.
        const double correction = std::sqrt(1 - std::pow(second_decay, steps_)) / (1 - std::pow(first_decay, steps_));
        const auto factor = static_cast<S>(rate * correction);
        const auto b1 = static_cast<S>(first_decay);
        const auto b2 = static_cast<S>(second_decay);
        const auto least = static_cast<S>(tiny);
        for_each_piece(threads, learned.values.size(), piece, [&](index_t first, index_t count) {
            const auto g = learned.gradients.segment(first, count).array();
            auto m = mean_.segment(first, count).array();
            auto v = square_.segment(first, count).array();
            m = b1 * m + (S(1) - b1) * g;
            v = b2 * v + (S(1) - b2) * g.square();
            learned.values.segment(first, count).array() -= factor * m / (v.sqrt() + least);
        });
    }

  private:
    static constexpr index_t piece = 1 << 13;

    column<S> mean_, square_;
    int steps_ = 0;
};

}  // namespace study
