// The report as a table for people, as CSV for programs, and the prices as a .npy file.
#pragma once

#include "measure.hpp"

#include <string>

namespace study {

std::string text_of(const report& made);
std::string csv_of(const report& made);
std::string prices_npy(const report& made);

}  // namespace study
