# Install rules: headers, the CMake package and the pkg-config file. Everything is independent of the architecture.
include(GNUInstallDirs)
include(CMakePackageConfigHelpers)

set(switchyard_package_dir "${CMAKE_INSTALL_DATADIR}/cmake/switchyard")

install(DIRECTORY include/switchyard DESTINATION "${CMAKE_INSTALL_INCLUDEDIR}" FILES_MATCHING PATTERN "*.hpp" PATTERN "*.cuh")
install(FILES LICENSE DESTINATION "${CMAKE_INSTALL_DOCDIR}")
install(TARGETS switchyard_without_eigen EXPORT switchyard-targets INCLUDES DESTINATION "${CMAKE_INSTALL_INCLUDEDIR}")
install(EXPORT switchyard-targets NAMESPACE switchyard:: DESTINATION "${switchyard_package_dir}")
if(SWITCHYARD_EIGEN)
    install(TARGETS switchyard EXPORT switchyard-eigen-targets)
    install(EXPORT switchyard-eigen-targets NAMESPACE switchyard:: DESTINATION "${switchyard_package_dir}")
endif()

configure_package_config_file(
    cmake/switchyard-config.cmake.in "${CMAKE_CURRENT_BINARY_DIR}/switchyard-config.cmake"
    INSTALL_DESTINATION "${switchyard_package_dir}"
    NO_SET_AND_CHECK_MACRO)
# Before 1.0 a minor version may change the interface.
write_basic_package_version_file("${CMAKE_CURRENT_BINARY_DIR}/switchyard-config-version.cmake"
    COMPATIBILITY SameMinorVersion
    ARCH_INDEPENDENT)
install(FILES
    "${CMAKE_CURRENT_BINARY_DIR}/switchyard-config.cmake"
    "${CMAKE_CURRENT_BINARY_DIR}/switchyard-config-version.cmake"
    cmake/switchyard-components.cmake
    cmake/switchyard-eigen.cmake
    DESTINATION "${switchyard_package_dir}")

# The .pc files find their prefix from their own place, so that an install tree may be moved.
set(switchyard_pc_dir "${CMAKE_INSTALL_DATADIR}/pkgconfig")
cmake_path(RELATIVE_PATH CMAKE_INSTALL_FULL_INCLUDEDIR BASE_DIRECTORY "${CMAKE_INSTALL_PREFIX}/${switchyard_pc_dir}"
    OUTPUT_VARIABLE switchyard_pc_include)
set(switchyard_pc_names switchyard-without-eigen)
if(SWITCHYARD_EIGEN)
    list(APPEND switchyard_pc_names switchyard)
endif()
foreach(switchyard_pc_name IN LISTS switchyard_pc_names)
    set(switchyard_pc_requires "")
    if(switchyard_pc_name STREQUAL "switchyard")
        set(switchyard_pc_requires "eigen3 >= 3.4")
    endif()
    configure_file(cmake/switchyard.pc.in "${CMAKE_CURRENT_BINARY_DIR}/${switchyard_pc_name}.pc" @ONLY)
    install(FILES "${CMAKE_CURRENT_BINARY_DIR}/${switchyard_pc_name}.pc" DESTINATION "${switchyard_pc_dir}")
endforeach()
