// What the command line asks for, checked as far as it can be without the text.
#pragma once

#include "values.hpp"

#include <switchyard/switchyard.hpp>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace study {

enum class contender {
    dense,
    switch_unbalanced,
    switch_balanced,
    switch_jitter,
    top_2,
    base,
    gshard,
    sparse_mixer,
    deepseek_v3,
    deepseek_v4,
    quantile,
    sinkhorn,
    hash,
    random,
    round_robin
};
enum class precision { float32, bfloat16, pure_bfloat16 };

inline constexpr named<contender> contenders_by_name[] = {{"dense", contender::dense},
                                                          {"switch_unbalanced", contender::switch_unbalanced},
                                                          {"switch", contender::switch_balanced},
                                                          {"switch_jitter", contender::switch_jitter},
                                                          {"top_2", contender::top_2},
                                                          {"base", contender::base},
                                                          {"gshard", contender::gshard},
                                                          {"sparse_mixer", contender::sparse_mixer},
                                                          {"deepseek_v3", contender::deepseek_v3},
                                                          {"deepseek_v4", contender::deepseek_v4},
                                                          {"quantile", contender::quantile},
                                                          {"sinkhorn", contender::sinkhorn},
                                                          {"hash", contender::hash},
                                                          {"random", contender::random},
                                                          {"round_robin", contender::round_robin}};
/// Those that run unless told otherwise come first.
inline constexpr std::size_t usual_contenders = 6;
inline constexpr named<precision> precisions_by_name[] = {
    {"float32", precision::float32}, {"bfloat16", precision::bfloat16}, {"pure_bfloat16", precision::pure_bfloat16}};

struct options {
    std::vector<std::string> text;  ///< files and folders
    std::string out = "study-results";
    std::vector<contender> contenders;  ///< in the order given, each once
    std::vector<precision> precisions;

    index_t experts = 16;
    index_t hidden = 256;  ///< of the dense model and of each expert; of two experts per token each has half
    index_t width = 64;
    index_t layers = 1;
    index_t context = 16;

    index_t steps = 2000;
    index_t tokens = 1024;  ///< a step
    double rate = 2e-2;
    double capacity_factor = 1.25;
    double balance_weight = 5e-2;
    double jitter = 1e-2;

    std::uint64_t seed = 1;  ///< the first
    index_t seeds = 1;
    int threads = 0;  ///< 0: one per core
    bool report = true;
};

/// Whether a contender's router can work in bfloat16 throughout: bfloat16_router.hpp knows those of the papers alone.
inline bool has_bfloat16_router(contender kind) { return kind > contender::dense && kind <= contender::base; }

/// Reads the command line. Nothing is returned where it asked for help or the version, which are then printed; anything
/// wrong throws switchyard::error with an error message.
std::optional<options> parse_options(int argc, const char* const* argv);

}  // namespace study
