// How long a piece of work takes.
#pragma once

#include <switchyard/switchyard.hpp>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <utility>
#include <vector>

namespace study {

/// The median of at least one number; of an even count, the mean of the middle two.
inline double median_of(std::vector<double> values) {
    std::sort(values.begin(), values.end());
    const std::size_t half = values.size() / 2;
    return values.size() % 2 == 1 ? values[half] : (values[half - 1] + values[half]) / 2;
}

/// Calls `work` once to prepare and `repeat` times against the clock; median milliseconds.
template <class Work>
double measured(switchyard::index_t repeat, const Work& work) {
    using clock = std::chrono::steady_clock;
    work();
    std::vector<double> times;
    for (switchyard::index_t i = 0; i < repeat; ++i) {
        const auto start = clock::now();
        work();
        times.push_back(std::chrono::duration<double, std::milli>(clock::now() - start).count());
    }
    return median_of(std::move(times));
}

}  // namespace study
