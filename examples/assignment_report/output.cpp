#include "output.hpp"

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <span>

#include <sys/stat.h>
#include <unistd.h>

namespace study {
namespace {

std::string formatted(const char* format, double number) {
    std::array<char, 64> text{};
    std::snprintf(text.data(), text.size(), format, number);
    return text.data();
}
std::string formatted(const char* format, const std::optional<double>& number, const char* nothing) {
    return number ? formatted(format, *number) : nothing;
}

constexpr std::size_t columns = 9;
using row = std::array<std::string, columns>;

row table_row(const report& made, const outcome& one) {
    const auto share = made.share(one);
    const auto proved = one.gap ? made.per_token(*one.gap) : std::nullopt;
    return {one.method,
            formatted("%.10g", one.score),
            share ? formatted("%.4f %%", 100 * *share) : "-",
            formatted("%.3g", made.below(one), "-"),
            formatted("%.2g", proved, "-"),
            formatted("%.3f", one.max_over_mean),
            formatted("%.3f", one.variation),
            std::to_string(one.dropped),
            formatted("%.4g", one.milliseconds)};
}

/// The first column to the left, all others to the right.
std::string aligned(const std::vector<row>& rows) {
    std::array<std::size_t, columns> width{};
    for (const row& line : rows) {
        for (std::size_t c = 0; c < columns; ++c) width[c] = std::max(width[c], line[c].size());
    }
    std::string text;
    for (const row& line : rows) {
        for (std::size_t c = 0; c < columns; ++c) {
            const std::string gap(width[c] - line[c].size(), ' ');
            text += c == 0 ? line[c] + gap : "  " + gap + line[c];
        }
        text += '\n';
    }
    return text;
}

/// A text as a CSV field.
std::string quoted(const std::string& text) {
    std::string field = "\"";
    for (const char c : text) {
        field += c;
        if (c == '"') field += c;
    }
    return field + '"';
}

}  // namespace

std::string text_of(const report& made) {
    const double gap = made.outcomes.back().gap.value_or(0);
    std::string text = std::to_string(made.tokens) + " tokens, " + std::to_string(made.experts) +
                       " experts, scores: " + made.scores + " (standard deviation " +
                       formatted("%.4g", made.deviation) + ")\n";
    text += "best balanced assignment: " + formatted("%.10g", made.optimum()) +
            (made.is_proved ? "; proved, nothing better by more than " : "; not proved: it may be better by ") +
            formatted("%.2g", gap) + "\n";
    text += "switch: at most " + std::to_string(made.capacity) + " tokens an expert\n\n";
    std::vector<row> rows = {
        {"", "score", "of the best", "below", "proved", "max/mean", "cv", "dropped", "milliseconds"}};
    for (const outcome& one : made.outcomes) rows.push_back(table_row(made, one));
    text += aligned(rows);
    text += "\nbelow, proved: of the best, in standard deviations per token. max/mean, cv: loads of the experts.\n";
    return text;
}

std::string csv_of(const report& made) {
    std::string text = "scores,tokens,experts,method,score,share,below,proved,max_over_mean,cv,dropped,milliseconds\n";
    for (const outcome& one : made.outcomes) {
        text += quoted(made.scores) + ',' + std::to_string(made.tokens) + ',' + std::to_string(made.experts) + ',' +
                one.method + ',' + formatted("%.17g", one.score) + ',' + formatted("%.17g", made.share(one), "") + ',' +
                formatted("%.17g", made.below(one), "") + ',' +
                formatted("%.17g", one.gap ? made.per_token(*one.gap) : std::nullopt, "") + ',' +
                formatted("%.17g", one.max_over_mean) + ',' + formatted("%.17g", one.variation) + ',' +
                std::to_string(one.dropped) + ',' + formatted("%.6g", one.milliseconds) + '\n';
    }
    return text;
}

std::string prices_npy(const report& made) {
    const std::array shape{made.experts};
    const auto bytes = std::as_bytes(std::span(made.prices));
    return npy_header(npy_type<double>(), shape) +
           std::string(reinterpret_cast<const char*>(bytes.data()), bytes.size());
}

output_file::output_file(const std::string& path) : path_(path) {
    if (path.empty()) return;
    std::error_code problem;
    sy::require(!std::filesystem::is_directory(path, problem), path, ": is a folder");
    std::string scratch = path + ".XXXXXX";
    file_ = ::mkstemp(scratch.data());
    sy::require(file_ >= 0, path, ": cannot be written: ", std::strerror(errno));
    scratch_ = scratch;
}

output_file::~output_file() {
    if (file_ >= 0) ::close(file_);
    if (!scratch_.empty()) ::unlink(scratch_.c_str());
}

void output_file::write(const std::string& bytes) {
    for (std::size_t done = 0; file_ >= 0 && done < bytes.size();) {
        const ssize_t now = ::write(file_, bytes.data() + done, bytes.size() - done);
        sy::require(now > 0 || errno == EINTR, path_, ": cannot be written: ", std::strerror(errno));
        done += static_cast<std::size_t>(now > 0 ? now : 0);
    }
}

void output_file::move_in() {
    if (file_ < 0) return;
    const mode_t mask = ::umask(0);  // mkstemp's files are for their owner alone; this one is like any other
    ::umask(mask);
    const bool moved = ::fchmod(file_, 0666 & ~mask) == 0 && std::rename(scratch_.c_str(), path_.c_str()) == 0;
    sy::require(moved, path_, ": cannot be written: ", std::strerror(errno));
    scratch_.clear();
}

}  // namespace study
