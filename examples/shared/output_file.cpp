#include "output_file.hpp"

#include <switchyard/switchyard.hpp>

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>

#include <sys/stat.h>
#include <unistd.h>

namespace study {

namespace sy = switchyard;

output_file::output_file(const std::string& path) : path_(path) {
    if (path.empty()) return;
    std::error_code problem;
    sy::require(!std::filesystem::is_directory(path, problem), path, ": is a folder");
    std::string scratch = path + ".XXXXXX";
    file_ = ::mkstemp(scratch.data());
    sy::require(file_ >= 0, path, ": cannot be written: ", std::strerror(errno));
    scratch_ = scratch;
}

output_file::~output_file() {
    if (file_ >= 0) ::close(file_);
    if (!scratch_.empty()) ::unlink(scratch_.c_str());
}

void output_file::write(const std::string& bytes) {
    for (std::size_t done = 0; file_ >= 0 && done < bytes.size();) {
        const ssize_t now = ::write(file_, bytes.data() + done, bytes.size() - done);
        sy::require(now > 0 || errno == EINTR, path_, ": cannot be written: ", std::strerror(errno));
        done += static_cast<std::size_t>(now > 0 ? now : 0);
    }
}

void output_file::move_in() {
    if (file_ < 0) return;
    const mode_t mask = ::umask(0);  // mkstemp's files are for their owner alone; this one is like any other
    ::umask(mask);
    const bool moved = ::fchmod(file_, 0666 & ~mask) == 0 && std::rename(scratch_.c_str(), path_.c_str()) == 0;
    sy::require(moved, path_, ": cannot be written: ", std::strerror(errno));
    scratch_.clear();
}

}  // namespace study
