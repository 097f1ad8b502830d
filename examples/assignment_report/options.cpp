#include "options.hpp"

#include "command_line.hpp"

#include <limits>

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

class grammar : public command_line {
  public:
    explicit grammar(options& asked) : command_line("assignment_report", about, examples, 38), asked_(asked) {
        add_scores();
        add_methods();
        add_output();
    }

  private:
    void add_scores() {
        group_ = "Scores: of a file, or generated";
        add_path("--scores", "S.npy",
                 "Scores [T,E]: NumPy format 1.0 to 3.0, float16, 32 or 64; -inf forbids an expert", asked_.scores);
        add_number<index_t>("--tokens", "T", "Generated tokens (16384)", asked_.tokens, 1,
                            std::numeric_limits<std::int32_t>::max());
        add_number<index_t>("--experts", "E", "Generated experts (64)", asked_.experts, 1, 65536);
        add_named("--kind", kinds_by_name, asked_.kind, "Of generated scores: see docs/assignment/report.md (skewed)");
        add_number<std::uint32_t>("--seed", "N", "Of generated scores; 0 gives the benchmark's (0)", asked_.seed, 0,
                                  1'000'000'000);
    }

    void add_methods() {
        group_ = "How they are assigned";
        add_number<double>("--capacity-factor", "F", "Of switch: an expert takes floor(F T / E) tokens (1.25)",
                           asked_.capacity_factor, 0, 1e9);
        add_named("--policy", policies_by_name, asked_.parallel, "One thread or several (seq)");
        add_number<int>("--threads", "N", "Of policy par (one per core)", asked_.threads, 1, 1024);
        add_number<index_t>("--repeat", "N", "Measured runs; the time is their median (1)", asked_.repeat, 1,
                            1'000'000);
    }

    void add_output() {
        group_ = "Files to write besides the table";
        add_path("--csv", "FILE", "The table, all digits", asked_.csv);
        add_path("--prices", "P.npy", "The experts' prices that prove the exact assignment, float64 [E]",
                 asked_.prices);
    }

    options& asked_;
};

void require_possible(const options& asked, const grammar& line) {
    for (const char* const option : {"--tokens", "--experts", "--kind", "--seed"}) {
        sy::require(asked.scores.empty() || line.given(option) == nullptr, option,
                    " is of generated scores, and --scores ", asked.scores, " gives a file's");
    }
    sy::require(asked.tokens <= most_generated / asked.experts, "--tokens ", asked.tokens, " times --experts ",
                asked.experts, " must be at most ", most_generated);
    sy::require(asked.parallel || line.given("--threads") == nullptr, "--threads ", asked.threads,
                " needs --policy par");
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
