# A port of the checkout that this file stands in, for `vcpkg install switchyard --overlay-ports=cmake/vcpkg/ports`.
# No test runs it: written after vcpkg's documentation, never executed by this project.
set(VCPKG_BUILD_TYPE release)  # headers only
get_filename_component(SOURCE_PATH "${CMAKE_CURRENT_LIST_DIR}/../../../.." ABSOLUTE)

vcpkg_check_features(OUT_FEATURE_OPTIONS features FEATURES eigen SWITCHYARD_EIGEN)
vcpkg_cmake_configure(
    SOURCE_PATH "${SOURCE_PATH}"
    OPTIONS
        ${features}
        -DSWITCHYARD_INSTALL=ON
        -DSWITCHYARD_BUILD_TESTS=OFF
        -DSWITCHYARD_BUILD_BENCHMARKS=OFF
        -DSWITCHYARD_BUILD_EXAMPLES=OFF
)
vcpkg_cmake_install()
vcpkg_cmake_config_fixup(CONFIG_PATH share/cmake/switchyard)
vcpkg_fixup_pkgconfig()

file(REMOVE_RECURSE "${CURRENT_PACKAGES_DIR}/share/doc")
vcpkg_install_copyright(FILE_LIST "${SOURCE_PATH}/LICENSE")
