"""A Conan 2 recipe of switchyard, for this checkout:

    conan create cmake/conan -s compiler.cppstd=20                                  with Eigen from Conan's packages
    conan create cmake/conan -s compiler.cppstd=20 -o 'switchyard/*:eigen=system'   with the Eigen that CMake finds; no network
    conan create cmake/conan -s compiler.cppstd=20 -o 'switchyard/*:eigen=none'     without: switchyard::without_eigen alone

The package is what `cmake --install` makes, CMake's own package included: find_package(switchyard) and its targets are those of
docs/packages.md.
"""

import pathlib
import re

from conan import ConanFile
from conan.tools.build import check_min_cppstd
from conan.tools.cmake import CMake, CMakeToolchain, cmake_layout
from conan.tools.files import copy


class Switchyard(ConanFile):
    name = "switchyard"
    description = "Routing for mixtures of experts: header-only C++20"
    license = "MIT"
    topics = ("mixture-of-experts", "routing", "header-only")
    package_type = "header-library"
    settings = "os", "arch", "compiler", "build_type"
    options = {"eigen": ["package", "system", "none"]}
    default_options = {"eigen": "package"}
    generators = "CMakeDeps"
    no_copy_source = True

    @property
    def checkout(self):
        return pathlib.Path(self.recipe_folder).parent.parent

    def set_version(self):
        text = (self.checkout / "include" / "switchyard" / "version.hpp").read_text()
        self.version = ".".join(re.findall(r"#define SWITCHYARD_VERSION_(?:MAJOR|MINOR|PATCH) (\d+)", text))

    def export_sources(self):
        for pattern in ("CMakeLists.txt", "LICENSE", "include/*", "cmake/*.cmake", "cmake/*.in"):
            copy(self, pattern, str(self.checkout), self.export_sources_folder)

    def requirements(self):
        if self.options.eigen == "package":
            self.requires("eigen/[>=3.4 <6]", transitive_headers=True)

    def validate(self):
        check_min_cppstd(self, 20)

    def layout(self):
        cmake_layout(self)

    def package_id(self):
        # The same files for every machine; whether Eigen's target is among them differs.
        eigen = self.info.options.eigen
        self.info.clear()
        self.info.options.eigen = eigen

    def generate(self):
        toolchain = CMakeToolchain(self)
        toolchain.cache_variables["SWITCHYARD_EIGEN"] = self.options.eigen != "none"
        toolchain.cache_variables["SWITCHYARD_INSTALL"] = True
        for part in ("TESTS", "BENCHMARKS", "EXAMPLES"):
            toolchain.cache_variables[f"SWITCHYARD_BUILD_{part}"] = False
        toolchain.generate()

    def build(self):
        CMake(self).configure()

    def package(self):
        CMake(self).install()

    def package_info(self):
        # CMake's own package is the interface: Conan writes none beside it.
        self.cpp_info.set_property("cmake_find_mode", "none")
        self.cpp_info.builddirs = ["share/cmake/switchyard"]
        self.cpp_info.bindirs = []
        self.cpp_info.libdirs = []
