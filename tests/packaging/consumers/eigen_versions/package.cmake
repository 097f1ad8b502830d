# Writes a package of Eigen in version VERSION to FOLDER, for the headers in HEADERS: what Eigen's own build installs, whose
# version file is CMake's for SameMajorVersion in Eigen 3.4 and in Eigen 5.
cmake_minimum_required(VERSION 3.24)
include(CMakePackageConfigHelpers)
write_basic_package_version_file("${FOLDER}/Eigen3ConfigVersion.cmake" VERSION "${VERSION}" COMPATIBILITY SameMajorVersion)
file(CONFIGURE OUTPUT "${FOLDER}/Eigen3Config.cmake" @ONLY CONTENT [[
if(NOT TARGET Eigen3::Eigen)
    add_library(Eigen3::Eigen INTERFACE IMPORTED)
    set_target_properties(Eigen3::Eigen PROPERTIES
        INTERFACE_INCLUDE_DIRECTORIES "@HEADERS@" EIGEN_VERSION_OF_TEST "@VERSION@")
endif()
]])
