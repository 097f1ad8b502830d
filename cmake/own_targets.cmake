# How switchyard's own tests, benchmarks and examples are compiled. None of it reaches a consumer.
include_guard(DIRECTORY)

set(CMAKE_CXX_EXTENSIONS OFF)

# With OpenMP where there is one.
set(switchyard_best switchyard::switchyard)
if(TARGET switchyard::openmp)
    set(switchyard_best switchyard::openmp)
endif()

# The warnings that our own code is free of.
set(switchyard_warnings -Wall -Wextra -Wpedantic -Wshadow -Wconversion)
if(CMAKE_CXX_COMPILER_ID MATCHES "Clang")
    # Part of -Wconversion there, and not in g++. The public headers are free of it; tests and benchmarks need not be.
    list(APPEND switchyard_warnings -Wno-sign-conversion)
endif()
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU" AND CMAKE_CXX_COMPILER_VERSION VERSION_LESS 13)
    # GCC 12 warns of its own headers: std::string's operator+ (GCC bug 105651), and AVX-512 intrinsics, which read
    # registers whose contents do not matter (GCC bug 105593). With sanitizers it also warns of loop counters.
    list(APPEND switchyard_warnings -Wno-restrict -Wno-maybe-uninitialized -Wno-uninitialized)
endif()
if(SWITCHYARD_WERROR)
    list(APPEND switchyard_warnings -Werror)
endif()

add_library(switchyard_own INTERFACE)
target_link_libraries(switchyard_own INTERFACE ${switchyard_best})
target_compile_options(switchyard_own INTERFACE "$<$<COMPILE_LANGUAGE:CXX>:${switchyard_warnings}>")
if(SWITCHYARD_NATIVE)
    target_compile_options(switchyard_own INTERFACE "$<$<COMPILE_LANGUAGE:CXX>:-march=native>")
endif()

if(NOT CMAKE_BUILD_TYPE AND NOT CMAKE_CONFIGURATION_TYPES AND PROJECT_IS_TOP_LEVEL)
    message(STATUS "No CMAKE_BUILD_TYPE given: switchyard's own executables are built as Release")
    set(CMAKE_BUILD_TYPE Release CACHE STRING "Build type" FORCE)
endif()

if(PROJECT_IS_TOP_LEVEL)
    set(CMAKE_EXPORT_COMPILE_COMMANDS ON)
endif()
