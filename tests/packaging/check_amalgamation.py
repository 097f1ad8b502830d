#!/usr/bin/env python3
"""Makes single headers of the library (cmake/amalgamate.py) and builds a program of two translation units from them, with Eigen
and without: warnings are errors, and each program prints what the one from the header tree prints. The same headers make the same
bytes each time.

usage: check_amalgamation.py SOURCE BUILD_DIR EIGEN COMPILER [FLAGS...]     FLAGS without include paths
"""

import concurrent.futures
import os
import pathlib
import re
import shutil
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent / "amalgamation"


def run(command, **options):
    done = subprocess.run([str(part) for part in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options)
    if done.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))}\nexited with {done.returncode}:\n{done.stdout}")
    return done.stdout


def amalgamate(source, output, *headers):
    """The same bytes whatever the order of Python's sets, and from anywhere."""
    script = source / "cmake" / "amalgamate.py"
    run([sys.executable, script, *headers, "--output", output], env={**os.environ, "PYTHONHASHSEED": "1"})
    again = run([sys.executable, script, *headers], env={**os.environ, "PYTHONHASHSEED": "2"}, cwd=output.parent)
    text = output.read_text()
    if text != again:
        sys.exit(f"{output} is made differently each time")
    left = re.search(r"^\s*#\s*(pragma\s+once|include\s*[<\"]switchyard/).*", text, re.MULTILINE)
    if left:
        sys.exit(f"{output} has {left[0].strip()}")


def conditions(source, folder, compiler):
    """What is first included under a condition that does not hold is there afterwards all the same, and once only."""
    sys.dont_write_bytecode = True
    sys.path.insert(0, str(source / "cmake"))
    import amalgamate as script

    headers = {
        "version": "#pragma once\n#define SWITCHYARD_VERSION_MAJOR 1\n",
        "part": "#pragma once\n#include <cstddef>\nstruct part {};\n",
        "first": "#pragma once\n#if 0\n#include <switchyard/part.hpp>\n#else\n#include <switchyard/other.hpp>\n#endif\n",
        "other": "#pragma once\n#if 1\n#include <switchyard/part.hpp>\n#endif\n#include <switchyard/part.hpp>\n",
        "last": "#pragma once\n#include <switchyard/part.hpp>\n#include <switchyard/other.hpp>\ninline part made; inline std::size_t size;\n",
    }
    (folder / "switchyard").mkdir()
    for name, text in headers.items():
        (folder / "switchyard" / f"{name}.hpp").write_text(text)
    text = script.amalgamate(["first.hpp", "last.hpp"], folder)
    run([compiler, "-std=c++20", "-fsyntax-only", "-x", "c++", "-"], input=text)
    if text.count("struct part") != 4 or text.count("#include <cstddef>") != 4:
        sys.exit(f"under conditions, headers are put in too often or too rarely:\n{text}")


def build(command, folder, eigen, header, with_eigen):
    folder.mkdir()
    flags = [f"-DSWITCHYARD_HEADER={header}", f"-DSWITCHYARD_WITH_EIGEN={int(with_eigen)}"]
    if with_eigen:
        flags += ["-isystem", eigen]
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(lambda name: compiled([*command, *flags], HERE / f"{name}.cpp", folder / f"{name}.o"), ("one", "two")))
    run([command[0], *objects, "-o", folder / "program"])
    return run([folder / "program"])


def compiled(command, source, target):
    run([*command, "-c", source, "-o", target])
    return target


def main():
    source, build_dir, eigen, command = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), sys.argv[3], sys.argv[4:]
    shutil.rmtree(build_dir, ignore_errors=True)
    build_dir.mkdir(parents=True)
    conditions(source, build_dir, command[0])
    amalgamate(source, build_dir / "with.hpp", "switchyard.hpp")
    amalgamate(source, build_dir / "without.hpp", "without_eigen.hpp")
    # Kernels need nvcc, Thrust's headers Thrust: here these are only written.
    amalgamate(source, build_dir / "everything.hpp", "switchyard.hpp", "backend/threads.hpp", "thrust.hpp", "cuda.hpp")

    tree = build([*command, f"-I{source / 'include'}"], build_dir / "tree", eigen, "<switchyard/switchyard.hpp>", True)
    print(tree, end="")
    for name in ("with", "without"):
        said = build(command, build_dir / name, eigen, f'"{build_dir / name}.hpp"', name == "with")
        if said != tree:
            sys.exit(f"the program from {name}.hpp says\n{said}")
    # Two of them in one translation unit.
    both = f'#include "{build_dir}/without.hpp"\n#include "{build_dir}/with.hpp"\nint main() {{}}\n'
    run([*command, "-isystem", eigen, "-fsyntax-only", "-x", "c++", "-"], input=both)
    lines = {name: len((build_dir / f"{name}.hpp").read_text().splitlines()) for name in ("with", "without", "everything")}
    print(f"the same from single headers, of {lines} lines")


if __name__ == "__main__":
    main()
