#include "output.hpp"

#include "npy.hpp"
#include "table.hpp"

#include <array>
#include <span>
#include <utility>
#include <vector>

namespace study {
namespace {

std::vector<std::string> table_row(const report& made, const outcome& one) {
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
    text += "switch: at most " + std::to_string(made.capacity) + " tokens per expert\n\n";
    table_lines lines = {{"", "score", "of the best", "below", "proved", "max/mean", "cv", "dropped", "milliseconds"}};
    for (const outcome& one : made.outcomes) lines.push_back(table_row(made, one));
    text += plain_table(std::move(lines));
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

}  // namespace study
