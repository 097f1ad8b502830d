#include "progress.hpp"

#include <algorithm>
#include <cstdio>

#include <unistd.h>

namespace study {

progress_line::progress_line(switchyard::index_t total) : total_(total), is_terminal_(isatty(STDERR_FILENO) == 1) {}

void progress_line::show(switchyard::index_t steps, const std::string& what, double bits) {
    smooth_ = smooth_ == 0 ? bits : 0.95 * smooth_ + 0.05 * bits;
    const auto now = clock::now();
    if (!is_terminal_ || now - shown_at_ < std::chrono::milliseconds(100)) {
        return;
    }
    shown_at_ = now;
    const double share = static_cast<double>(steps) / static_cast<double>(total_);
    const double passed = std::chrono::duration<double>(now - began_).count();
    const int left = static_cast<int>(passed / share * (1 - share) + 0.5);
    constexpr int cells = 24;
    const auto full = static_cast<std::size_t>(share * cells);
    const std::string bar = std::string(full, '#') + std::string(cells - full, '.');
    std::fprintf(stderr, "\r\033[K[%s] %3.0f %%  %d:%02d left  %s: %.3f bits per byte", bar.c_str(), 100 * share,
                 left / 60, left % 60, what.c_str(), smooth_);
    std::fflush(stderr);
    is_shown_ = true;
}

void progress_line::say(const std::string& line) {
    clear();
    std::fprintf(stderr, "%s\n", line.c_str());
    smooth_ = 0;
}

void progress_line::clear() {
    if (is_shown_) {
        std::fputs("\r\033[K", stderr);
        is_shown_ = false;
    }
}

}  // namespace study
