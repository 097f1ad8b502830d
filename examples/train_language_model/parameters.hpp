// All numbers a model learns, in one array, and their gradients in another: an optimiser is then one loop, and a
// gradient check can look at every number by its index.
//
// A model asks for its matrices once, when it is made, and gets slices: places in both arrays.
#pragma once

#include <switchyard/switchyard.hpp>

#include <Eigen/Core>

namespace study {

namespace sy = switchyard;
using sy::index_t;

template <class Scalar>
using matrix = Eigen::Matrix<Scalar, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
template <class Scalar>
using column = Eigen::Matrix<Scalar, Eigen::Dynamic, 1>;
template <class Scalar>
using row = Eigen::Matrix<Scalar, 1, Eigen::Dynamic>;

/// Where a matrix lies among the parameters.
struct slice {
    index_t first = 0;
    index_t rows = 0;
    index_t columns = 0;

    index_t size() const { return rows * columns; }
};

template <class S>
class parameters {
  public:
    using map = Eigen::Map<matrix<S>, Eigen::AlignedMax>;
    using const_map = Eigen::Map<const matrix<S>, Eigen::AlignedMax>;

    /// A new matrix of zeros; maps made before are void.
    slice add(index_t rows, index_t columns) {
        const slice made{values.size(), rows, columns};
        const index_t size = (made.size() + lane - 1) / lane * lane;  // the next one is aligned, too
        values.conservativeResizeLike(column<S>::Zero(values.size() + size));
        gradients.conservativeResizeLike(column<S>::Zero(values.size()));
        count_ += made.size();
        return made;
    }

    map value(const slice& s) { return {values.data() + s.first, s.rows, s.columns}; }
    const_map value(const slice& s) const { return {values.data() + s.first, s.rows, s.columns}; }
    map gradient(const slice& s) { return {gradients.data() + s.first, s.rows, s.columns}; }

    /// How many numbers are learned.
    index_t count() const { return count_; }

    // Between slices there may be a few numbers that are nobody's; they are and stay 0.
    column<S> values;
    column<S> gradients;

  private:
    static constexpr index_t lane = 64 / static_cast<index_t>(sizeof(S));
    index_t count_ = 0;
};

/// Normal numbers from counters, the same on every machine and thread count: the library's initialisation with
/// variance `gain` / rows, cut at two deviations.
template <class Map>
void initialise(Map&& values, double gain, std::uint64_t seed, std::uint32_t stream) {
    sy::initialise(sy::truncated_normal{.scale = gain}, sy::noise_key{.seed = seed, .stream = stream}, values);
}

}  // namespace study
