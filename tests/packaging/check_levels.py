#!/usr/bin/env python3
"""Builds a program by every compiler at several levels of optimisation and compares what it prints: the same bits from each,
so that objects compiled differently agree in one program.

usage: check_levels.py BUILD_DIR COMPILER[,COMPILER...] [FLAGS...]
"""

import concurrent.futures
import os
import pathlib
import subprocess
import sys

LEVELS = ["-O1", "-O2", "-O3"]
SOURCE = pathlib.Path(__file__).resolve().parent / "levels" / "main.cpp"


def printed(build, compiler, level, flags):
    program = build / f"{pathlib.Path(compiler).name}{level}"
    subprocess.run([compiler, *flags, level, SOURCE, "-o", program], check=True)
    return subprocess.run([program], capture_output=True, text=True, check=True).stdout.splitlines()


def main():
    build, compilers, flags = pathlib.Path(sys.argv[1]), sys.argv[2].split(","), sys.argv[3:]
    build.mkdir(parents=True, exist_ok=True)
    ways = [(compiler, level) for compiler in compilers for level in LEVELS]
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        lines = [*pool.map(lambda way: printed(build, *way, flags), ways)]
    differing = [each for each in zip(*lines, strict=True) if len(set(each)) > 1]
    for each in differing:
        for way, line in zip(ways, each):
            print(*way, line)
    print(f"{len(lines[0])} steps in {len(ways)} ways: {len(differing)} differ")
    return 1 if differing or not lines[0] else 0


if __name__ == "__main__":
    sys.exit(main())
