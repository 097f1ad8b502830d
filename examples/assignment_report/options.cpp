#include "options.hpp"

#include "command_line.hpp"

#include <charconv>
#include <cmath>
#include <iostream>
#include <limits>
#include <type_traits>

namespace study {
namespace {

constexpr const char* about =
    "Assigns tokens to experts in four ways and shows how far each is from the best balanced assignment.";

constexpr const char* examples =
    "Rows of the table:\n"
    "  greedy   every token to its best expert, whatever the loads\n"
    "  switch   the same, but an expert takes no more than its capacity and drops the rest\n"
    "  auction  balanced, within a bound of the best that is proved\n"
    "  exact    balanced, the best, and proved to be\n"
    "\n"
    "Examples:\n"
    "  assignment_report --scores S.npy --repeat 9\n"
    "  assignment_report --tokens 65536 --experts 64 --kind quantized --csv report.csv\n"
    "\n"
    "Exit status: 0 done; 2 bad input, with one line on stderr and nothing written.";

// Generated scores stay below 4 GiB.
constexpr index_t most_generated = index_t{1} << 30;

/// Reads a whole text as one decimal number, nothing before or after it.
template <class Number>
Number number_in(const char* option, const std::string& text, Number least, Number most) {
    Number number{};
    const char* const end = text.data() + text.size();
    const auto [stop, problem] = std::from_chars(text.data(), end, number);
    const bool is_number = problem != std::errc::invalid_argument && stop == end && !text.empty();
    sy::require(is_number, option, " '", text, "' is not a ", std::is_integral_v<Number> ? "whole " : "", "number");
    const bool fits = problem == std::errc{} && number >= least && number <= most;  // NaN does not
    sy::require(fits, option, " '", text, "' must lie in ", least, "..", most);
    return number;
}

class grammar : public command_line {
  public:
    explicit grammar(options& asked) : command_line("assignment_report", about, examples, 38), asked_(asked) {
        add_scores();
        add_methods();
        add_output();
    }

    bool given(const char* name) const { return app_.get_option(name)->count() > 0; }

  private:
    template <class Number>
    void add_number(const char* name, const char* type, Number& number, Number least, Number most, const char* what) {
        add(name, type, what, [&number, least, most](const char* option, const std::string& text) {
            number = number_in<Number>(option, text, least, most);
        });
    }
    void add_file(const char* name, const char* type, std::string& path, const char* what) {
        add(name, type, what, [&path](const char* option, const std::string& text) {
            sy::require(!text.empty(), option, " '' is no file");
            path = text;
        });
    }

    void add_scores() {
        group_ = "Scores: of a file, or generated";
        add_file("--scores", "S.npy", asked_.scores,
                 "Scores [T,E]: NumPy format 1.0 to 3.0, float16, 32 or 64; -inf forbids an expert");
        add_number<index_t>("--tokens", "T", asked_.tokens, 1, std::numeric_limits<std::int32_t>::max(),
                            "Generated tokens (16384)");
        add_number<index_t>("--experts", "E", asked_.experts, 1, 65536, "Generated experts (64)");
        add("--kind", "{gaussian,skewed,quantized,equal}",
            "Of generated scores: see docs/assignment/report.md (skewed)",
            [this](const char* option, const std::string& text) {
                const bool known = text == "gaussian" || text == "skewed" || text == "quantized" || text == "equal";
                sy::require(known, option, " '", text, "' is unknown; it is one of gaussian, skewed, quantized, equal");
                asked_.kind = text;
            });
        add_number<std::uint32_t>("--seed", "N", asked_.seed, 0, 1'000'000'000,
                                  "Of generated scores; 0 gives the benchmark's (0)");
    }

    void add_methods() {
        group_ = "How they are assigned";
        add_number<double>("--capacity-factor", "F", asked_.capacity_factor, 0, 1e9,
                           "Of switch: an expert takes floor(F T / E) tokens (1.25)");
        add("--policy", "{seq,par}", "One thread or several (seq)",
            [this](const char* option, const std::string& text) {
                sy::require(text == "seq" || text == "par", option, " '", text, "' is unknown; it is one of seq, par");
                asked_.parallel = text == "par";
            });
        add_number<int>("--threads", "N", asked_.threads, 1, 1024, "Of policy par (one a core)");
        add_number<index_t>("--repeat", "N", asked_.repeat, 1, 1'000'000,
                            "Measured runs; the time is their median (1)");
    }

    void add_output() {
        group_ = "Files to write besides the table";
        add_file("--csv", "FILE", asked_.csv, "The table, all digits");
        add_file("--prices", "P.npy", asked_.prices,
                 "The experts' prices that prove the exact assignment, float64 [E]");
    }

    options& asked_;
};

void require_possible(const options& asked, const grammar& line) {
    for (const char* const option : {"--tokens", "--experts", "--kind", "--seed"}) {
        sy::require(asked.scores.empty() || !line.given(option), option, " is of generated scores, and --scores ",
                    asked.scores, " gives a file's");
    }
    sy::require(asked.tokens <= most_generated / asked.experts, "--tokens ", asked.tokens, " times --experts ",
                asked.experts, " must be at most ", most_generated);
    sy::require(asked.parallel || !line.given("--threads"), "--threads ", asked.threads, " needs --policy par");
    sy::require(asked.csv.empty() || asked.csv != asked.prices, "--csv and --prices name the same file, ", asked.csv);
#if !defined(_OPENMP)
    sy::require(!asked.parallel, "--policy par is not built into this program: it needs OpenMP");
#endif
}

}  // namespace

std::optional<options> parse_options(int argc, const char* const* argv) {
    options asked;
    grammar line(asked);
    if (!line.parse(argc, argv)) return std::nullopt;
    require_possible(asked, line);
    return asked;
}

}  // namespace study
