#!/usr/bin/env python3
"""What the flags of a compiler are worth: builds routing_bench once for each set of flags, runs some of its rows from all of
these programs in turns, and prints the least processor time of each as a multiple of the first set's: what others use of a
machine only adds.

    python3 bench/flags.py                                  the table in docs/packages.md, about five minutes on two cores
    python3 bench/flags.py --flags=-O2 --flags="-O2 -mavx2 -mfma" --compiler clang++ --rows '^switch_route_seq/65536/64$'

usage: flags.py [--flags FLAGS]... [--rows REGEX] [--rounds N] [--compiler CXX] [--eigen DIR] [--build DIR]
"""

import argparse
import concurrent.futures
import json
import os
import pathlib
import re
import shlex
import subprocess
import sys
import tempfile

HERE = pathlib.Path(__file__).resolve().parent
FLAGS = ["-O2", "-O0", "-Og", "-O3", "-O2 -march=native", "-O3 -march=native"]
ROWS = (r"^(switch_route_seq/65536/64|top_k_route_seq/65536/64/6|project_seq/65536/64|dispatch_seq/65536/64|combine_seq/65536/64"
        r"|switch_route_columns_seq/65536/64|switch_route_bfloat16_seq/65536/64)(/real_time)?$")


def build(options, folder, number):
    program = folder / f"routing_bench_{number}"
    command = [options.compiler, "-std=c++20", *shlex.split(options.flags[number]), f"-I{HERE.parent / 'include'}", f"-I{HERE}",
               "-isystem", options.eigen, str(HERE / "routing_bench.cpp"), "-o", str(program), "-lbenchmark", "-lpthread"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{shlex.join(command)}\nexited with {done.returncode}:\n{done.stderr}")
    return program


def times_of(program, options):
    """Row -> nanoseconds of the processor, of one run: other processes take less of those than of the wall's."""
    command = [program, f"--benchmark_filter={options.rows}", "--benchmark_min_time=0.02", "--benchmark_format=json"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0 or not done.stdout.strip():
        sys.exit(f"{program}: no row is {options.rows}\n{done.stderr}")
    unit = {"ns": 1, "us": 1e3, "ms": 1e6, "s": 1e9}
    found = {}
    for row in json.loads(done.stdout)["benchmarks"]:
        if row.get("error_occurred"):
            sys.exit(f"{program}: {row['name']}: {row['error_message']}")
        found[row["name"].removesuffix("/real_time")] = row["cpu_time"] * unit[row["time_unit"]]
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--flags", action="append")
    parser.add_argument("--rows", default=ROWS)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--compiler", default="g++")
    parser.add_argument("--eigen", default="/usr/include/eigen3")
    parser.add_argument("--build", type=pathlib.Path, help="where the programs go and stay; a temporary folder if not given")
    options = parser.parse_args()
    options.flags = options.flags or FLAGS
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.build or pathlib.Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
            programs = list(pool.map(lambda number: build(options, folder, number), range(len(options.flags))))
        rounds = [[times_of(program, options) for program in programs] for _ in range(options.rounds)]

    version = subprocess.run([options.compiler, "--version"], capture_output=True, text=True).stdout.splitlines()[0]
    processor = re.search(r"model name\s*: (.+)", pathlib.Path("/proc/cpuinfo").read_text())
    print(f"{version}; {processor[1] if processor else 'unknown processor'}; least processor time of {options.rounds} rounds\n")
    print("| row | " + " | ".join(f"`{flags}`" for flags in options.flags) + " |")
    print("|---|" + "---:|" * len(options.flags))
    for row in rounds[0][0]:
        least = [min(times[number][row] for times in rounds) for number in range(len(programs))]
        factors = "".join(f" {time / least[0]:.2g} |" for time in least[1:])
        print(f"| `{row}` | {least[0] / 1e6:.3g} ms |{factors}")


if __name__ == "__main__":
    main()
