// Numbers that the benchmarks run on, and the baseline that they share: softmax and the best expert with Eigen's row
// expressions, as somebody who has Eigen and no routing library writes them.
#pragma once

#include <switchyard/core/config.hpp>

#include <Eigen/Dense>

#include <algorithm>
#include <cstddef>
#include <random>
#include <vector>

namespace bench {

using switchyard::index_t;
using row_major = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

inline row_major gaussian(index_t rows, index_t columns, unsigned seed = 1) {
    row_major numbers(rows, columns);
    std::mt19937_64 engine(seed);
    std::normal_distribution<float> normal;
    std::generate(numbers.data(), numbers.data() + numbers.size(), [&] { return normal(engine); });
    return numbers;
}

/// Writes into prepared arrays.
struct eigen_softmax_argmax {
    row_major probabilities;
    std::vector<Eigen::Index> expert;

    eigen_softmax_argmax(index_t tokens, index_t experts)
        : probabilities(tokens, experts), expert(static_cast<std::size_t>(tokens)) {}

    void operator()(const row_major& scores) {
        for (index_t t = 0; t < scores.rows(); ++t) {
            const float m = scores.row(t).maxCoeff(&expert[static_cast<std::size_t>(t)]);
            probabilities.row(t) = (scores.row(t).array() - m).exp();
            probabilities.row(t) /= probabilities.row(t).sum();
        }
    }
};

}  // namespace bench
