#!/usr/bin/env python3
"""Builds and runs a small consumer of the library in one of the ways that consumers do, and checks what it is compiled with.

usage: check_consumer.py KIND --source DIR --build DIR --prefix DIR --version X.Y.Z [--cmake CMAKE] [--generator G]
           [--thrust 0|1] [--compiler CXX] [--eigen DIR] [--build-type TYPE]
KIND   find_package | add_subdirectory | fetch_content | re_export | pkg_config | without_eigen | subdirectory_without_eigen |
       eigen_versions, which needs --eigen, the folder of Eigen's headers
source the library's source tree; build a scratch folder, emptied first; prefix where the library has been installed
"""

import argparse
import os
import pathlib
import shutil
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent / "consumers"


def tried(*command, **options):
    return subprocess.run([str(part) for part in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options)


def run(*command, **options):
    """Runs a command and returns its output; shows the output and ends if it fails."""
    done = tried(*command, **options)
    if done.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))}\nexited with {done.returncode}:\n{done.stdout}")
    return done.stdout


def configure(args, source, build, *options):
    return tried(args.cmake, "-G", args.generator, "-S", source, "-B", build, f"-DCMAKE_BUILD_TYPE={args.build_type}",
                 f"-DCMAKE_CXX_COMPILER={args.compiler}", f"-DCMAKE_PREFIX_PATH={args.prefix}",
                 f"-DEXPECTED_VERSION={args.version}", f"-DSWITCHYARD_SOURCE={args.source}",
                 f"-DEXPECTS_THRUST={args.thrust}", "-DCMAKE_FIND_PACKAGE_NO_PACKAGE_REGISTRY=ON", *options)


def configure_and_build(args, source, build, *options):
    done = configure(args, source, build, *options)
    if done.returncode != 0:
        sys.exit(f"cmake for {source} exited with {done.returncode}:\n{done.stdout}")
    run(args.cmake, "--build", build)


def check_flags(file, openmp):
    """The main target brings the language level and nothing else; switchyard::openmp brings OpenMP's flag as well. The systems
    of Thrust are the consumer's own choice."""
    flags = dict(line.split("=", 1) for line in file.read_text().splitlines())
    expected = {"COMPILE_OPTIONS": "", "COMPILE_DEFINITIONS": "", "LINK_OPTIONS": "", "COMPILE_FEATURES": "cxx_std_20"}
    if file.stem.endswith("_thrust"):
        expected["COMPILE_DEFINITIONS"] = "THRUST_HOST_SYSTEM=THRUST_HOST_SYSTEM_CPP;THRUST_DEVICE_SYSTEM=THRUST_DEVICE_SYSTEM_CPP"
    if openmp:
        expected["COMPILE_DEFINITIONS"] = "CONSUMER_USES_OPENMP"
        expected["COMPILE_OPTIONS"] = flags["COMPILE_OPTIONS"]
        if "openmp" not in flags["COMPILE_OPTIONS"]:
            sys.exit(f"{file.name}: switchyard::openmp does not turn OpenMP on: {flags}")
    if flags != expected:
        sys.exit(f"{file.name}: a consumer is compiled with\n{flags}\nbut should be with\n{expected}")


def run_consumers(build):
    programs = sorted(build.glob("*.flags"))
    if not programs:
        sys.exit(f"no consumer was built in {build}")
    for flags in programs:
        check_flags(flags, openmp=flags.stem.endswith("_openmp"))
        print(f"{flags.stem}: {run(flags.with_suffix('')).strip()}")


def pkg_config(args, build):
    build.mkdir(parents=True)
    pkg_config_of(args, build, "switchyard", HERE / "main.cpp")
    pkg_config_of(args, build, "switchyard-without-eigen", HERE / "without_eigen.cpp")


def pkg_config_of(args, build, name, source):
    environment = dict(os.environ, PKG_CONFIG_PATH=f"{args.prefix}/share/pkgconfig")
    version = run("pkg-config", "--modversion", name, env=environment).strip()
    if version != args.version:
        sys.exit(f"{name}.pc says version {version}, not {args.version}")
    flags = run("pkg-config", "--cflags", "--libs", name, env=environment).split()
    stray = [flag for flag in flags if not flag.startswith("-I")]
    if stray:
        sys.exit(f"{name}.pc brings {stray} along")
    if ("eigen" in " ".join(flags)) != (name == "switchyard"):
        sys.exit(f"{name}.pc has Eigen, or not, as it should not: {flags}")
    run(args.compiler, "-std=c++20", source, "-o", build / name, *flags)
    print(f"{' '.join(flags)}: {run(build / name).strip()}")


def without_eigen(args, build):
    """From the package that has both targets, and from one that was itself installed without Eigen."""
    configure_and_build(args, HERE / "without_eigen", build)
    run_consumers(build)
    parts = [f"-DSWITCHYARD_BUILD_{part}=OFF" for part in ("TESTS", "BENCHMARKS", "EXAMPLES")]
    run(args.cmake, "-G", args.generator, "-S", args.source, "-B", build / "library", f"-DCMAKE_CXX_COMPILER={args.compiler}",
        "-DSWITCHYARD_EIGEN=OFF", "-DCMAKE_DISABLE_FIND_PACKAGE_Eigen3=ON", *parts)
    run(args.cmake, "--install", build / "library", "--prefix", build / "prefix")
    args.prefix = build / "prefix"
    configure_and_build(args, HERE / "without_eigen", build / "other", "-DINSTALLED_WITHOUT_EIGEN=ON")


def eigen_versions(args, build):
    """Eigen 3.4 and every later one are taken, by the source tree and by the package, if CMake finds them first; older ones are
    refused in a sentence. The packages are made here, in front of the one that the machine may have."""
    for version, good in {"3.3.9": False, "3.4.0": True, "3.4.1": True, "5.0.1": True}.items():
        folder = build / version / "eigen"
        run(args.cmake, f"-DVERSION={version}", f"-DFOLDER={folder}", f"-DHEADERS={args.eigen}", "-P",
            HERE / "eigen_versions" / "package.cmake")
        for origin in ("source", "package"):
            options = [f"-DEigen3_DIR={folder}", f"-DEXPECTED_EIGEN={version}", f"-DFROM_PACKAGE={int(origin == 'package')}"]
            done = configure(args, HERE / "eigen_versions", build / version / origin, *options)
            words = " ".join(done.stdout.split())
            sentence = "needs Eigen 3.4 or newer, and the one that CMake finds first"
            if (done.returncode == 0) != good or (sentence in words) == good:
                sys.exit(f"Eigen {version}, {origin}:\n{done.stdout}")
            print(f"Eigen {version}, {origin}: {'taken' if good else 'refused'}")
    run(args.cmake, "--build", build / "5.0.1" / "package")
    print(f"built with what that package names: {run(build / '5.0.1' / 'package' / 'consumer').strip()}")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("kind")
    parser.add_argument("--source", required=True)
    parser.add_argument("--build", required=True, type=pathlib.Path)
    parser.add_argument("--prefix", required=True)
    parser.add_argument("--version", required=True)
    parser.add_argument("--thrust", default="0", help="1: the library was built with Thrust")
    parser.add_argument("--cmake", default="cmake")
    parser.add_argument("--generator", default="Unix Makefiles")
    parser.add_argument("--compiler", default="c++")
    parser.add_argument("--eigen")
    parser.add_argument("--build-type", default="Release")
    args = parser.parse_args()
    shutil.rmtree(args.build, ignore_errors=True)
    if args.kind == "pkg_config":
        pkg_config(args, args.build)
    elif args.kind == "without_eigen":
        without_eigen(args, args.build)
    elif args.kind == "eigen_versions":
        eigen_versions(args, args.build)
    elif args.kind == "re_export":
        engine = args.build / "engine"
        configure_and_build(args, HERE / "re_export" / "engine", engine)
        run(args.cmake, "--install", engine, "--prefix", args.build / "prefix")
        args.prefix = f"{args.prefix};{args.build / 'prefix'}"
        configure_and_build(args, HERE / "re_export" / "app", args.build / "app")
        run_consumers(args.build / "app")
    else:
        configure_and_build(args, HERE / args.kind, args.build)
        run_consumers(args.build)


if __name__ == "__main__":
    main()
