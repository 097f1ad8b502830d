// What is written about a run: five arrays and a summary for each router, and a table that compares them.
#pragma once

#include "options.hpp"
#include "output.hpp"
#include "run.hpp"

#include <filesystem>
#include <string>
#include <vector>

namespace study {

/// Writes experts, slots, gates, offsets and order as .npy, and summary.json, to a subfolder ("" for none).
void write_results(output_folder& out, const std::filesystem::path& subfolder, const options& asked,
                   const routing& made);

/// summary.json's text. Fails where a number is not finite: JSON has none of those.
std::string summary_of(const options& asked, const routing& made);

/// One line a router.
std::string comparison_of(const std::vector<routing>& all);

}  // namespace study
