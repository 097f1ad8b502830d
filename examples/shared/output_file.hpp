// A file that appears complete or not at all.
#pragma once

#include <string>

namespace study {

/// Written beside its place first, then renamed; one that is not moved in leaves nothing behind.
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
