// Adds up the seconds of stretches of code.
#pragma once

#include <chrono>

namespace study {

class stopwatch {
  public:
    using clock = std::chrono::steady_clock;

    /// Measures until it is destroyed.
    class stretch {
      public:
        explicit stretch(double& seconds) : seconds_(seconds) {}
        stretch(const stretch&) = delete;
        stretch& operator=(const stretch&) = delete;
        ~stretch() { seconds_ += std::chrono::duration<double>(clock::now() - began_).count(); }

      private:
        double& seconds_;
        clock::time_point began_ = clock::now();
    };

    [[nodiscard]] stretch measure() { return stretch(seconds_); }
    double seconds() const { return seconds_; }

  private:
    double seconds_ = 0;
};

}  // namespace study
