#include "results.hpp"

#include "measured.hpp"
#include "npy.hpp"
#include "output_file.hpp"
#include "table.hpp"

#include <nlohmann/json.hpp>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <iomanip>
#include <ostream>
#include <sstream>
#include <utility>

namespace study {
namespace {

namespace fs = std::filesystem;
using nlohmann::ordered_json;

void write_file(const fs::path& path, const std::string& text) {
    output_file file(path);
    file.write(text);
    file.move_in();
}

std::string csv_of(const std::vector<run_record>& runs) {
    std::ostringstream out;
    out << "router,precision,seed,step,seconds,training_bits,validation_bits,layer,load_variation,max_over_mean,"
           "dropped_share\n"
        << std::setprecision(9);
    for (const run_record& run : runs) {
        for (const evaluation& at : run.evaluations) {
            const auto line = [&](const std::string& loads) {
                out << name_of(contenders_by_name, run.settings.kind) << ','
                    << name_of(precisions_by_name, run.settings.stored) << ',' << run.settings.seed << ',' << at.step
                    << ',' << at.seconds << ',';
                if (at.step > 0) {
                    out << at.training_bits;
                }
                out << ',' << at.validation_bits << ',' << loads << '\n';
            };
            if (at.load.empty()) {
                line(",,,");
            }
            for (std::size_t i = 0; i < at.load.size(); ++i) {
                std::ostringstream loads;
                loads << std::setprecision(9) << i << ',' << at.load[i].coefficient_of_variation << ','
                      << at.load[i].max_over_mean << ',' << at.load[i].dropped_share;
                line(loads.str());
            }
        }
    }
    return out.str();
}

ordered_json json_of(const load_record& load) {
    return {{"share", load.share},
            {"variation", load.coefficient_of_variation},
            {"max_over_mean", load.max_over_mean},
            {"dropped_share", load.dropped_share}};
}

ordered_json json_of(const std::vector<load_record>& layers) {
    ordered_json all = ordered_json::array();
    for (const load_record& layer : layers) {
        all.push_back(json_of(layer));
    }
    return all;
}

/// Bytes of a text that may be anything, as numbers: JSON's strings are Unicode.
ordered_json json_of_bytes(const std::string& text) {
    ordered_json bytes = ordered_json::array();
    for (const char c : text) {
        bytes.push_back(static_cast<unsigned char>(c));
    }
    return bytes;
}

ordered_json json_of(const layer_record& layer) {
    ordered_json experts = ordered_json::array();
    for (index_t e = 0; e < layer.bytes.rows(); ++e) {
        ordered_json counts = ordered_json::object();
        for (index_t b = 0; b < layer.bytes.cols(); ++b) {
            if (layer.bytes(e, b) > 0) {
                counts[std::to_string(b)] = layer.bytes(e, b);
            }
        }
        ordered_json examples = ordered_json::array();
        for (const example& one : layer.picked[static_cast<std::size_t>(e)]) {
            examples.push_back({{"before", json_of_bytes(one.before)}, {"after", json_of_bytes(one.after)}});
        }
        experts.push_back({{"bytes", counts}, {"examples", examples}});
    }
    return {{"validation_variation", layer.coefficient_of_variation}, {"experts", experts}};
}

std::string scores_file(const run_record& run, std::size_t layer) {
    std::string name = run.settings.name();
    std::replace(name.begin(), name.end(), ' ', '-');
    return name + "-seed" + std::to_string(run.settings.seed) + "-layer" + std::to_string(layer) + ".npy";
}

ordered_json json_of(const run_record& run, const std::optional<crossing>& crossed) {
    ordered_json evaluations = ordered_json::array();
    for (const evaluation& at : run.evaluations) {
        ordered_json one{{"step", at.step}, {"seconds", at.seconds}, {"validation_bits", at.validation_bits}};
        if (at.step > 0) {
            one["training_bits"] = at.training_bits;
        }
        one["load"] = json_of(at.load);
        evaluations.push_back(one);
    }
    ordered_json layers = ordered_json::array();
    for (std::size_t i = 0; i < run.layers.size(); ++i) {
        layers.push_back(json_of(run.layers[i]));
        layers.back()["scores"] = "scores/" + scores_file(run, i);
    }
    ordered_json made{{"name", run.settings.name()},
                      {"router", name_of(contenders_by_name, run.settings.kind)},
                      {"precision", name_of(precisions_by_name, run.settings.stored)},
                      {"seed", run.settings.seed},
                      {"parameters", run.parameters},
                      {"complete", run.is_complete},
                      {"validation_bits", run.final_bits()},
                      {"seconds", run.seconds()},
                      {"routing_share", run.routing_share},
                      {"largest_load_difference", run.largest_load_difference},
                      {"late_load", json_of(run.late_load)},
                      {"steps_to_dense", nullptr},
                      {"seconds_to_dense", nullptr}};
    if (crossed) {
        made["steps_to_dense"] = crossed->steps;
        made["seconds_to_dense"] = crossed->seconds;
    }
    made["evaluations"] = evaluations;
    made["layers"] = layers;
    return made;
}

ordered_json json_of(const options& asked) {
    return {{"text", asked.text},
            {"experts", asked.experts},
            {"hidden", asked.hidden},
            {"width", asked.width},
            {"layers", asked.layers},
            {"context", asked.context},
            {"steps", asked.steps},
            {"tokens", asked.tokens},
            {"rate", asked.rate},
            {"capacity_factor", asked.capacity_factor},
            {"balance_weight", asked.balance_weight},
            {"jitter", asked.jitter},
            {"seed", asked.seed},
            {"seeds", asked.seeds},
            {"threads", asked.threads}};
}

std::string npy_of(const matrix<float>& numbers) {
    const std::array<index_t, 2> shape{numbers.rows(), numbers.cols()};
    return npy_header(npy_type<float>(), shape) + std::string(reinterpret_cast<const char*>(numbers.data()),
                                                              static_cast<std::size_t>(numbers.size()) * sizeof(float));
}

/// Median, and with several numbers the least and the largest.
std::string spread_of(const std::vector<double>& numbers, int digits, double factor = 1) {
    if (numbers.empty()) {
        return "-";
    }
    std::ostringstream out;
    out << std::fixed << std::setprecision(digits) << factor * median_of(numbers);
    if (numbers.size() > 1) {
        const auto [least, most] = std::minmax_element(numbers.begin(), numbers.end());
        out << " [" << factor * *least << ", " << factor * *most << ']';
    }
    return out.str();
}

/// The cells of a kind of run, over its seeds.
std::vector<std::string> cells_of(const std::vector<run_record>& runs, const std::string& name) {
    std::vector<double> bits, steps, seconds, variation, largest, dropped, routing, total;
    index_t parameters = 0;
    std::size_t seeds = 0;
    bool is_complete = true;
    for (const run_record& run : runs) {
        if (run.settings.name() != name) {
            continue;
        }
        ++seeds;
        is_complete = is_complete && run.is_complete;
        parameters = run.parameters;
        bits.push_back(run.final_bits());
        total.push_back(run.seconds());
        if (const auto crossed = crossing_of(runs, run); crossed && run.settings.kind != contender::dense) {
            steps.push_back(crossed->steps);
            seconds.push_back(crossed->seconds);
        }
        for (const load_record& load : run.late_load) {
            variation.push_back(load.coefficient_of_variation);
            largest.push_back(load.max_over_mean);
            dropped.push_back(load.dropped_share);
        }
        if (!run.layers.empty()) {
            routing.push_back(run.routing_share);
        }
    }
    std::string reached = spread_of(steps, 0);
    if (!steps.empty() && steps.size() < seeds) {
        reached += " (" + std::to_string(steps.size()) + " of " + std::to_string(seeds) + ")";
    }
    return {is_complete ? name : name + " (interrupted)",
            std::to_string(parameters),
            spread_of(bits, 3),
            reached,
            spread_of(seconds, 1),
            spread_of(total, 1),
            spread_of(variation, 2),
            spread_of(largest, 2),
            spread_of(dropped, 1, 100),
            spread_of(routing, 1, 100)};
}

}  // namespace

std::optional<crossing> crossing_of(const std::vector<run_record>& runs, const run_record& run) {
    const auto dense = std::find_if(runs.begin(), runs.end(), [&run](const run_record& other) {
        return other.settings.kind == contender::dense && other.settings.stored == run.settings.stored &&
               other.settings.seed == run.settings.seed && other.is_complete;
    });
    // A router in bfloat16 is measured against the dense model of the same activations.
    const auto fallback = std::find_if(runs.begin(), runs.end(), [&run](const run_record& other) {
        return other.settings.kind == contender::dense && other.settings.seed == run.settings.seed && other.is_complete;
    });
    if (dense == runs.end() && fallback == runs.end()) {
        return std::nullopt;
    }
    const double goal = (dense != runs.end() ? dense : fallback)->final_bits();
    if (run.evaluations.front().validation_bits <= goal) {
        return std::nullopt;  // a dense model that learned nothing
    }
    for (std::size_t i = 1; i < run.evaluations.size(); ++i) {
        const evaluation& before = run.evaluations[i - 1];
        const evaluation& at = run.evaluations[i];
        if (at.validation_bits <= goal) {
            const double drop = before.validation_bits - at.validation_bits;
            const double share = drop > 0 ? (before.validation_bits - goal) / drop : 1.0;
            return crossing{static_cast<double>(before.step) + share * static_cast<double>(at.step - before.step),
                            before.seconds + share * (at.seconds - before.seconds)};
        }
    }
    return std::nullopt;
}

void print_table(std::ostream& out, const std::vector<run_record>& runs) {
    table_lines lines{{"router", "parameters", "bits per byte", "steps to dense", "seconds to dense", "seconds",
                       "load CV", "max/mean", "dropped %", "routing %"}};
    std::vector<std::string> names;
    for (const run_record& run : runs) {
        const std::string name = run.settings.name();
        if (std::find(names.begin(), names.end(), name) == names.end()) {
            names.push_back(name);
            lines.push_back(cells_of(runs, name));
        }
    }
    out << markdown_table(std::move(lines));
}

void require_writable(const fs::path& folder) {
    std::error_code problem;
    fs::create_directories(folder / "scores", problem);
    sy::require(!problem, "--out ", folder.native(), " cannot be written: ", problem.message());
    const fs::path probe = folder / ".probe";
    const bool could = std::ofstream(probe).put('x').flush().good();
    const int reason = errno;
    fs::remove(probe, problem);
    sy::require(could, "--out ", folder.native(), " cannot be written: ", std::strerror(reason));
}

void write_results(const fs::path& folder, const options& asked, const corpus& text,
                   const std::vector<run_record>& runs) {
    ordered_json all{{"options", json_of(asked)},
                     {"text_bytes", text.size()},
                     {"held_out_bytes", text.held_out()},
                     {"runs", ordered_json::array()}};
    for (const run_record& run : runs) {
        all["runs"].push_back(json_of(run, crossing_of(runs, run)));
        for (std::size_t i = 0; i < run.layers.size(); ++i) {
            write_file(folder / "scores" / scores_file(run, i), npy_of(run.layers[i].scores));
        }
    }
    write_file(folder / "results.csv", csv_of(runs));
    write_file(folder / "results.json", all.dump(1, ' ', false) + "\n");
}

}  // namespace study
