// The report as a table for people, as CSV for programs, and the prices as a .npy file.
#pragma once

#include "measure.hpp"

#include <string>

namespace study {

std::string text_of(const report& made);
std::string csv_of(const report& made);
std::string prices_npy(const report& made);

/// A file that appears complete or not at all: written beside its place first, then renamed.
class output_file {
  public:
    /// Fails if nothing can be written there. An empty path asks for nothing.
    explicit output_file(const std::string& path);
    output_file(const output_file&) = delete;
    output_file& operator=(const output_file&) = delete;
    ~output_file();

    void write(const std::string& bytes);
    void move_in();

  private:
    std::string path_;
    std::string scratch_;
    int file_ = -1;
};

}  // namespace study
