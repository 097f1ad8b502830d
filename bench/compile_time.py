#!/usr/bin/env python3
"""How long the umbrella header takes to compile: the median of several runs of g++ -O2, in seconds.

usage: compile_time.py [--compiler CXX] [--repeat N] [--limit SECONDS]      exit 1 above the limit
"""

import argparse
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

INCLUDE = pathlib.Path(__file__).resolve().parent.parent / "include"


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--compiler", default="g++")
    parser.add_argument("--header", default="switchyard/switchyard.hpp")
    parser.add_argument("--eigen", default="/usr/include/eigen3")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--limit", type=float, default=3.0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        source = pathlib.Path(folder) / "umbrella.cpp"
        source.write_text(f"#include <{args.header}>\n")
        command = [args.compiler, "-std=c++20", "-O2", f"-I{INCLUDE}", "-isystem", args.eigen, "-c", source, "-o",
                   source.with_suffix(".o")]
        seconds = []
        for _ in range(args.repeat):
            began = time.perf_counter()
            subprocess.run(command, check=True)
            seconds.append(time.perf_counter() - began)
    median = statistics.median(seconds)
    print(f"{args.header}: {median:.2f} s with {args.compiler} -O2 (median of {args.repeat}; limit {args.limit:g} s)")
    return 1 if median > args.limit else 0


if __name__ == "__main__":
    sys.exit(main())
