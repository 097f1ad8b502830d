"""A stand-in for the Eigen of Conan's packages, with the names that these have: the headers in SWITCHYARD_TEST_EIGEN. It serves
check_conan.py, which has no network."""

import os

from conan import ConanFile
from conan.tools.files import copy


class Eigen(ConanFile):
    name = "eigen"
    package_type = "header-library"

    def package(self):
        copy(self, "*", os.environ["SWITCHYARD_TEST_EIGEN"], os.path.join(self.package_folder, "include", "eigen3"))

    def package_info(self):
        self.cpp_info.set_property("cmake_file_name", "Eigen3")
        self.cpp_info.set_property("cmake_target_name", "Eigen3::Eigen")
        self.cpp_info.includedirs = ["include/eigen3"]
        self.cpp_info.bindirs = []
        self.cpp_info.libdirs = []
