#!/usr/bin/env python3
"""Makes a Conan package of this checkout by the recipe in cmake/conan, with every source of Eigen that the recipe knows, and builds
and runs its consumer. Conan's home is a scratch folder, and no remote is asked. Exit 77 where there is no Conan 2.

usage: check_conan.py SOURCE BUILD_DIR EIGEN COMPILER
"""

import os
import pathlib
import shutil
import subprocess
import sys

SKIPPED = 77


def run(command, environment):
    done = subprocess.run([str(part) for part in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                          env=environment)
    if done.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))}\nexited with {done.returncode}:\n{done.stdout}")
    return done.stdout


def main():
    source, build, eigen, compiler = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), sys.argv[3], sys.argv[4]
    conan = shutil.which("conan")
    if not conan or "version 2." not in run([conan, "--version"], None):
        print("skipped: no Conan 2 here")
        return SKIPPED
    shutil.rmtree(build, ignore_errors=True)
    build.mkdir(parents=True)
    environment = {**os.environ, "CONAN_HOME": str(build / "home"), "SWITCHYARD_TEST_EIGEN": eigen, "CXX": compiler,
                   "PYTHONDONTWRITEBYTECODE": "1"}
    run([conan, "profile", "detect"], environment)
    for version in ("3.4.0", "5.0.1"):
        run([conan, "create", pathlib.Path(__file__).resolve().parent / "conan_eigen", "--version", version, "--no-remote"],
            environment)
    for option in ("package", "system", "none"):
        said = run([conan, "create", source / "cmake" / "conan", "--no-remote", "-s", "compiler.cppstd=20",
                    "-o", f"switchyard/*:eigen={option}", "-c", f"tools.cmake.cmake_layout:test_folder={build / option}"],
                   environment)
        consumer = [line for line in said.splitlines() if line.startswith("switchyard ") and "token 1 goes to expert 0" in line]
        if len(consumer) != 1 or ("eigen/5.0.1" in said) != (option == "package"):
            sys.exit(f"Eigen from {option}: the consumer does not say what it should\n{said}")
        print(f"Eigen from {option}: {consumer[0]}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
