// Helpers of these tests: random tables, closeness, and gradients by central differences.
#pragma once

#include <switchyard/reference/matrix.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <random>
#include <span>

namespace switchyard_test {

namespace sy = switchyard;
namespace ref = switchyard::reference;

/// Gaussian numbers, the same ones for the same seed.
inline ref::matrix gaussian(sy::index_t rows, sy::index_t columns, unsigned seed) {
    std::mt19937_64 generator(seed);
    std::normal_distribution<double> normal;
    ref::matrix numbers(rows, columns);
    for (double& number : numbers.values) number = normal(generator);
    return numbers;
}

/// The largest difference of two tables of one shape; infinite where shapes differ or a number is NaN.
inline double difference(const ref::matrix& a, const ref::matrix& b) {
    if (a.rows != b.rows || a.columns != b.columns) return INFINITY;
    double largest = 0;
    for (sy::index_t i = 0; i < a.values.length(); ++i) {
        const double d = std::abs(a.values[i] - b.values[i]);
        if (std::isnan(d)) return INFINITY;
        largest = std::max(largest, d);
    }
    return largest;
}

/// A list of recorded numbers as a table.
template <class T = double, class Numbers>
ref::table<T> table_of(const Numbers& numbers, sy::index_t columns) {
    const std::span list(numbers);
    ref::table<T> table(static_cast<sy::index_t>(list.size()) / columns, columns);
    std::transform(list.begin(), list.end(), table.values.begin(), [](auto number) { return static_cast<T>(number); });
    return table;
}

/// d f / d at, by central differences: an error of about 1e-9 for smooth f near 1.
template <class Function>
ref::matrix numeric_gradient(const Function& f, ref::matrix at, double step = 1e-5) {
    ref::matrix gradient(at.rows, at.columns);
    for (sy::index_t i = 0; i < at.values.length(); ++i) {
        const double middle = at.values[i];
        if (std::isinf(middle)) continue;  // a forbidden expert stays forbidden: gradient 0
        at.values[i] = middle + step;
        const double above = f(at);
        at.values[i] = middle - step;
        const double below = f(at);
        at.values[i] = middle;
        gradient.values[i] = (above - below) / (2 * step);
    }
    return gradient;
}

/// sum of a_ij b_ij
inline double inner(const ref::matrix& a, const ref::matrix& b) {
    double sum = 0;
    for (sy::index_t i = 0; i < a.values.length(); ++i) sum += a.values[i] * b.values[i];
    return sum;
}

inline ref::matrix logarithm(ref::matrix m) {
    for (double& number : m.values) number = std::log(number);
    return m;
}

}  // namespace switchyard_test
