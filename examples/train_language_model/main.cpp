// train_language_model: what the papers claim of routing, on real text, in minutes.
//
// Every kind of run trains the same small model with another router, at equal work per token; what was seen is printed
// as a table and written to a folder.
#include "complain.hpp"
#include "options.hpp"
#include "progress.hpp"
#include "results.hpp"
#include "train.hpp"

#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <iomanip>
#include <iostream>
#include <sstream>
#include <string>
#include <vector>

namespace {

using namespace study;

volatile std::sig_atomic_t is_interrupted = 0;

/// The first Ctrl-C ends the training, a second one the program.
void interrupt(int number) {
    is_interrupted = 1;
    std::signal(number, SIG_DFL);
}

std::vector<run_settings> runs_of(const options& asked) {
    std::vector<run_settings> runs;
    for (index_t s = 0; s < asked.seeds; ++s) {
        for (const precision stored : asked.precisions) {
            for (const contender kind : asked.contenders) {
                // A dense model has no router to be in bfloat16.
                if (kind != contender::dense || stored != precision::pure_bfloat16) {
                    runs.push_back({kind, stored, asked.seed + static_cast<std::uint64_t>(s)});
                }
            }
        }
    }
    return runs;
}

std::string line_of(const run_record& run) {
    std::ostringstream line;
    line << std::left << std::setw(24) << run.settings.name() << " seed " << run.settings.seed << "  " << std::fixed
         << std::setprecision(3) << run.final_bits() << " bits per byte after " << run.evaluations.back().step
         << " steps, " << std::setprecision(1) << run.seconds() << " s";
    return line.str();
}

std::vector<run_record> train_all(const options& asked, const corpus& text) {
    const std::vector<run_settings> runs = runs_of(asked);
    thread_team team(asked.threads);
    progress_line progress(static_cast<index_t>(runs.size()) * asked.steps);
    std::vector<run_record> done;
    for (const run_settings& run : runs) {
        const index_t before = static_cast<index_t>(done.size()) * asked.steps;
        const watcher watch = [&](index_t steps, double bits) {
            progress.show(before + steps, run.name(), bits);
            return is_interrupted == 0;
        };
        done.push_back(run.stored == precision::float32 ? train<float>(asked, run, text, team, watch)
                                                        : train<Eigen::bfloat16>(asked, run, text, team, watch));
        progress.say(line_of(done.back()));
        if (is_interrupted != 0) {
            break;
        }
    }
    return done;
}

std::string quoted(const std::string& text) {
    std::string made = "'";
    for (const char c : text) {
        made += c == '\'' ? "'\\''" : std::string(1, c);
    }
    return made + "'";
}

/// The pictures are made by a script, with the Python that was found when this program was built. Whether they were.
bool make_report(const options& asked) {
    const std::string command = quoted(STUDY_PYTHON) + " " + quoted(STUDY_REPORT_SCRIPT) + " " + quoted(asked.out);
    if (std::system(command.c_str()) == 0) {
        return true;
    }
    std::cerr << "There is no report.html: it needs Python 3 with Matplotlib (Debian: python3-matplotlib). To make it "
                 "from these results:\n  "
              << command << std::endl;
    return false;
}

int run(options asked) {
    if (asked.text.empty()) {
        asked.text = {STUDY_EIGEN_FOLDER};
    }
    const corpus text(asked.text, asked.context);
    require_writable(asked.out);  // before the work, not after it
    std::cerr << "Learning from " << text.size() - text.held_out() << " bytes of " << asked.text.front()
              << (asked.text.size() > 1 ? " and more" : "") << "; " << text.held_out() << " are held out. "
              << asked.threads << (asked.threads == 1 ? " thread" : " threads") << std::endl;
    std::signal(SIGINT, interrupt);
    std::signal(SIGTERM, interrupt);
    const std::vector<run_record> runs = train_all(asked, text);
    write_results(asked.out, asked, text, runs);
    std::cout << '\n';
    print_table(std::cout, runs);
    const bool has_report = asked.report && make_report(asked);
    const std::string folder = std::filesystem::absolute(asked.out).lexically_normal().native();
    std::cout << "\nResults: results.csv, results.json and scores/ in " << folder << std::endl;
    if (has_report) {
        std::cout << "Report:  " << (std::filesystem::path(folder) / "report.html").native() << std::endl;
    }
    return is_interrupted != 0 ? 130 : 0;
}

}  // namespace

int main(int argc, char** argv) {
    Eigen::setNbThreads(1);  // the threads are ours
    return study::run_or_complain("train_language_model", "not enough memory for a model of these sizes", [&] {
        const auto asked = parse_options(argc, argv);
        return asked ? run(*asked) : 0;
    });
}
