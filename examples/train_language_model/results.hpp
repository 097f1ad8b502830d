// What the runs come to: the table that is printed, and the files.
#pragma once

#include "train.hpp"

#include <filesystem>
#include <iosfwd>
#include <optional>
#include <vector>

namespace study {

/// When a run first was as good as the dense model at its end: by a line between two evaluations.
struct crossing {
    double steps = 0;
    double seconds = 0;
};

/// Nothing where the run never was, or there is no dense run of its precision and seed.
std::optional<crossing> crossing_of(const std::vector<run_record>& runs, const run_record& run);

/// The comparison, a line a kind of run; with several seeds medians, and least and largest in brackets.
void print_table(std::ostream& out, const std::vector<run_record>& runs);

/// A folder made for the results; fails with an error message where nothing can be written there.
void require_writable(const std::filesystem::path& folder);

/// results.csv, results.json and scores/*.npy, each put in place when it is whole.
void write_results(const std::filesystem::path& folder, const options& asked, const corpus& text,
                   const std::vector<run_record>& runs);

}  // namespace study
