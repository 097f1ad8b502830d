// One line on the terminal: how far, how long still, and the loss. (No C++ library for this is among Debian 12's
// packages.)
//
// Where standard error is no terminal, a line is printed at the end of each run instead.
#pragma once

#include <switchyard/switchyard.hpp>

#include <chrono>
#include <string>

namespace study {

class progress_line {
  public:
    /// `total` steps in all runs.
    explicit progress_line(switchyard::index_t total);
    progress_line(const progress_line&) = delete;
    progress_line& operator=(const progress_line&) = delete;
    ~progress_line() { clear(); }

    /// `steps` done in all runs; `bits` per byte is the current loss.
    void show(switchyard::index_t steps, const std::string& what, double bits);
    /// Prints a line that stays.
    void say(const std::string& line);

  private:
    using clock = std::chrono::steady_clock;

    void clear();

    switchyard::index_t total_;
    bool is_terminal_;
    bool is_shown_ = false;
    double smooth_ = 0;  ///< the loss, averaged over recent steps
    clock::time_point began_ = clock::now();
    clock::time_point shown_at_{};
};

}  // namespace study
