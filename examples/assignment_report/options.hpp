// What the command line asks for, checked as far as it can be without the scores.
#pragma once

#include <switchyard/switchyard.hpp>

#include <cstdint>
#include <optional>
#include <string>

namespace study {

namespace sy = switchyard;
using sy::index_t;

struct options {
    std::string scores;  ///< a file; empty: generated ones
    index_t tokens = 16384;
    index_t experts = 64;
    std::string kind = "skewed";  ///< bench/assignment_scores.hpp
    std::uint32_t seed = 0;

    double capacity_factor = 1.25;  ///< Switch's
    bool parallel = false;
    int threads = 0;  ///< if parallel; 0: one a core
    index_t repeat = 1;

    std::string csv;     ///< a file to write; empty: none
    std::string prices;  ///< the same
};

/// Reads the command line. Nothing is returned where it asked for help or the version, which are then printed; anything
/// wrong throws switchyard::error with a sentence.
std::optional<options> parse_options(int argc, const char* const* argv);

}  // namespace study
