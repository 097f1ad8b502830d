// The version of the library, for `#if` and for programs that print it.
#pragma once

#define SWITCHYARD_VERSION_MAJOR 0
#define SWITCHYARD_VERSION_MINOR 1
#define SWITCHYARD_VERSION_PATCH 0

namespace switchyard {

struct version_t {
    int major;
    int minor;
    int patch;
};

inline constexpr version_t version{SWITCHYARD_VERSION_MAJOR, SWITCHYARD_VERSION_MINOR, SWITCHYARD_VERSION_PATCH};

}  // namespace switchyard
