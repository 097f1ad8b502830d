// The executor's errors: a sentence that says which threads did what, where in the source.
#pragma once

#include <cstring>
#include <ostream>
#include <sstream>
#include <stdexcept>
#include <string>

namespace switchyard_test::simt {

/// A kernel that broke a rule of switchyard/backend/kernel.hpp, or a launch that cannot be.
class error : public std::runtime_error {
  public:
    using std::runtime_error::runtime_error;
};

template <class... Parts>
[[noreturn]] void fail(const Parts&... parts) {
    std::ostringstream sentence;
    (sentence << ... << parts);
    throw error(sentence.str());
}

/// What the lanes of a warp do together.
enum class operation { sync_warp, shuffle, shuffle_xor, shuffle_up, ballot, any, match };

inline std::ostream& operator<<(std::ostream& to, operation what) {
    constexpr const char* names[] = {"sync_warp", "shuffle", "shuffle_xor", "shuffle_up", "ballot", "any", "match"};
    return to << names[static_cast<int>(what)];
}

/// A line of a kernel.
struct place {
    const char* file = "";
    int line = 0;

    bool operator==(const place& other) const {
        return line == other.line && (file == other.file || std::strcmp(file, other.file) == 0);
    }
};

inline std::ostream& operator<<(std::ostream& to, const place& where) {
    const char* const slash = std::strrchr(where.file, '/');
    return to << (slash != nullptr ? slash + 1 : where.file) << ':' << where.line;
}

}  // namespace switchyard_test::simt
