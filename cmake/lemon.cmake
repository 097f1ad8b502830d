# switchyard_lemon: LEMON's network simplex, an independent solver that tests and benchmarks of assignments compare with.
include_guard(GLOBAL)

find_path(SWITCHYARD_LEMON_INCLUDE_DIR lemon/network_simplex.h DOC "Where LEMON's headers are")
find_library(SWITCHYARD_LEMON_LIBRARY NAMES lemon emon DOC "LEMON's library")
mark_as_advanced(SWITCHYARD_LEMON_INCLUDE_DIR SWITCHYARD_LEMON_LIBRARY)
if(NOT SWITCHYARD_LEMON_INCLUDE_DIR OR NOT SWITCHYARD_LEMON_LIBRARY)
    message(FATAL_ERROR "switchyard's tests and benchmarks of assignments need LEMON (Debian: liblemon-dev). "
        "Without it, configure with -DSWITCHYARD_BUILD_TESTS=OFF -DSWITCHYARD_BUILD_BENCHMARKS=OFF")
endif()
add_library(switchyard_lemon INTERFACE)
target_include_directories(switchyard_lemon SYSTEM INTERFACE "${SWITCHYARD_LEMON_INCLUDE_DIR}")
target_link_libraries(switchyard_lemon INTERFACE "${SWITCHYARD_LEMON_LIBRARY}")
