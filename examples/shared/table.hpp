// Tables of a report: lines of cells, the first line being the heads of the columns.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdio>
#include <optional>
#include <string>
#include <vector>

namespace study {

using table_lines = std::vector<std::vector<std::string>>;

/// A number as printf writes it.
inline std::string formatted(const char* format, double number) {
    char text[64] = {};
    std::snprintf(text, sizeof text, format, number);
    return text;
}
inline std::string formatted(const char* format, const std::optional<double>& number, const char* nothing) {
    return number ? formatted(format, *number) : nothing;
}

/// Columns as wide as their widest cell: the first to the left, all others to the right.
inline std::vector<std::size_t> pad_cells(table_lines& lines) {
    std::vector<std::size_t> widths(lines.empty() ? 0 : lines.front().size());
    for (const auto& line : lines) {
        for (std::size_t c = 0; c < widths.size(); ++c) widths[c] = std::max(widths[c], line[c].size());
    }
    for (auto& line : lines) {
        for (std::size_t c = 0; c < widths.size(); ++c) {
            const std::string gap(widths[c] - line[c].size(), ' ');
            line[c] = c == 0 ? line[c] + gap : gap + line[c];
        }
    }
    return widths;
}

/// Columns with two spaces between.
inline std::string plain_table(table_lines lines) {
    pad_cells(lines);
    std::string text;
    for (const auto& line : lines) {
        for (std::size_t c = 0; c < line.size(); ++c) text += (c == 0 ? "" : "  ") + line[c];
        text += '\n';
    }
    return text;
}

/// A table of Markdown.
inline std::string markdown_table(table_lines lines) {
    const std::vector<std::size_t> widths = pad_cells(lines);
    std::string text;
    for (std::size_t i = 0; i < lines.size(); ++i) {
        for (const std::string& cell : lines[i]) text += "| " + cell + ' ';
        text += "|\n";
        for (std::size_t c = 0; i == 0 && c < widths.size(); ++c) {
            text += '|' + std::string(widths[c] + 1, '-') + (c == 0 ? '-' : ':');
        }
        text += i == 0 ? "|\n" : "";
    }
    return text;
}

}  // namespace study
