#!/usr/bin/env python3
"""Runs everything that waits for a GPU, and writes what came of it: the tests of the label gpu, then gpu_bench.

usage: gpu_report.py [BUILD_DIR] [--out FILE] [--record FILE]        default: build/release, gpu-report.md

--record keeps what the tests showed, for tests/docs/support_matrix.py --recorded.

The build is that of the preset release on a machine with nvcc, for the device's own architecture:
    cmake --preset release -DCMAKE_CUDA_ARCHITECTURES=90 && cmake --build --preset release
The report names the device and the driver. Exit 0 if every test passed, 1 if one failed, 77 if there is no device.
"""

import argparse
import pathlib
import re
import subprocess
import sys


def run(command, **settings):
    """The command's status and its output; a command that is not there is status 127."""
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **settings)
        return done.returncode, done.stdout
    except FileNotFoundError:
        return 127, f"{command[0]} is not here\n"


def record_of(build, device):
    """Every operation that a test case showed and passed, and which programs had cases that failed."""
    _, commit = run(["git", "rev-parse", "--short", "HEAD"])
    claims, failed = set(), []
    for path in sorted((build / "covers").glob("gpu.*.txt")):
        lines = path.read_text().splitlines()
        claims |= {line for line in lines if line.startswith(("device\t", "CUDA run\t"))}
        if not lines or lines[-1] != "end\tpassed":
            failed.append(path.stem.replace(".", "/"))
    head = [f"# What passing test cases showed on a GPU at commit {commit.strip()} (bench/gpu_report.py --record).",
            f"# {device}", *(f"# {name} had cases that failed." for name in failed)]
    return "\n".join(head + sorted(claims, key=lambda line: (not line.startswith("device"), line))) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("build", nargs="?", type=pathlib.Path, default=pathlib.Path("build/release"))
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("gpu-report.md"))
    parser.add_argument("--record", type=pathlib.Path)
    options = parser.parse_args()
    bench = options.build / "bench" / "gpu_bench"
    if not bench.exists():
        print(f"gpu_report.py: there is no {bench}; build it where nvcc is", file=sys.stderr)
        return 2

    status, table = run([str(bench)])
    if status == 77:
        print(table.strip())
        return 77
    tests_status, tests = run(["ctest", "-L", "gpu", "--output-on-failure"], cwd=options.build)
    results = re.findall(r"Test +#\d+: (\S+) [.*]*\s*(Passed|Skipped|\*\*\*\w+|Not Run)", tests)
    _, driver = run(["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"])
    _, compiler = run(["nvcc", "--version"])

    lines = ["# switchyard on a GPU", "", f"Device and driver: {driver.strip()}", "",
             f"Compiler: {compiler.strip().splitlines()[-1]}", "", "## Tests", "", "| test | result |", "|---|---|"]
    lines += [f"| {name} | {result.strip('*')} |" for name, result in results]
    lines += ["", "## Times", "", table.strip() if status == 0 else f"gpu_bench failed:\n\n```\n{table.strip()}\n```"]
    if tests_status != 0:
        lines += ["", "## What ctest said", "", "```", tests.strip(), "```"]
    options.out.write_text("\n".join(lines) + "\n")
    if options.record:
        options.record.write_text(record_of(options.build, driver.strip()))
    print(f"{sum(result == 'Passed' for _, result in results)} of {len(results)} tests passed; the report is {options.out}")
    return 0 if status == 0 and tests_status == 0 and results else 1


if __name__ == "__main__":
    sys.exit(main())
