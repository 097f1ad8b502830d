// What the command line asks for, checked as far as it can be without the scores.
#pragma once

#include "values.hpp"

#include <switchyard/switchyard.hpp>

#include <cstdint>
#include <optional>
#include <string>

namespace study {

/// Of generated scores: bench/assignment_scores.hpp.
enum class score_kind { gaussian, skewed, quantized, equal };

inline constexpr named<score_kind> kinds_by_name[] = {{"gaussian", score_kind::gaussian},
                                                      {"skewed", score_kind::skewed},
                                                      {"quantized", score_kind::quantized},
                                                      {"equal", score_kind::equal}};
inline constexpr named<bool> policies_by_name[] = {{"seq", false}, {"par", true}};

struct options {
    std::string scores;  ///< a file; empty: generated ones
    index_t tokens = 16384;
    index_t experts = 64;
    score_kind kind = score_kind::skewed;
    std::uint32_t seed = 0;

    double capacity_factor = 1.25;  ///< Switch's
    bool parallel = false;
    int threads = 0;  ///< if parallel; 0: one per core
    index_t repeat = 1;

    std::string csv;     ///< a file to write; empty: none
    std::string prices;  ///< the same
};

/// Reads the command line. Nothing is returned where it asked for help or the version, which are then printed; anything
/// wrong throws switchyard::error with an error message.
std::optional<options> parse_options(int argc, const char* const* argv);

}  // namespace study
