#!/usr/bin/env python3
"""Runs bench/bars.py on made-up runs: one that meets every bar, one that misses one, and one in which a row is not there. And each
row that a bar names is one of its benchmark's.

usage: check_bars.py BARS BENCHMARK...
"""

import importlib.util
import json
import pathlib
import subprocess
import sys
import tempfile

PAGE = "before\n<!-- figures:{0} -->\n\nold\n\n<!-- /figures:{0} -->\nafter\n"


def load(path):
    sys.dont_write_bytecode = True
    spec = importlib.util.spec_from_file_location("bars", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main():
    benchmarks = {pathlib.Path(path).name: path for path in sys.argv[2:]}
    known = load(sys.argv[1]).BENCHMARKS
    if set(benchmarks) != set(known):
        sys.exit(f"there are bars for {sorted(known)}, and the benchmarks {sorted(benchmarks)}")
    for name, bench in benchmarks.items():
        check(sys.argv[1], name, bench, known[name])


def check(script, benchmark, bench, bars):
    rows = {name for bar in bars for name in bar[:2]}
    listed = subprocess.run([bench, "--benchmark_list_tests"], capture_output=True, text=True, check=True).stdout.split()
    unknown = rows - {name.removesuffix("/real_time") for name in listed}
    if not any("_par/" in name for name in listed):  # a build without OpenMP
        unknown = {name for name in unknown if "_par/" not in name}
    if unknown:
        sys.exit(f"bars name rows that {benchmark} has not: {sorted(unknown)}")

    def judged(times):
        with tempfile.TemporaryDirectory() as folder:
            run, page = pathlib.Path(folder) / "run.json", pathlib.Path(folder) / "page.md"
            run.write_text(json.dumps({"context": {"executable": f"./bench/{benchmark}"}, "benchmarks": [
                {"run_name": f"{name}/real_time", "aggregate_name": "median", "real_time": time, "time_unit": "us"}
                for name, time in times.items()]}))
            page.write_text(PAGE.format(benchmark))
            done = subprocess.run([sys.executable, script, run, "--write", page], capture_output=True, text=True)
            return done.returncode, done.stderr, page.read_text()

    times = met(bars, rows)
    status, words, page = judged(times)
    if status != 0 or words or "old" in page or not page.startswith("before\n") or page.count("\n| `") != len(bars):
        sys.exit(f"a run that meets every bar: exit {status}, {words}\n{page}")
    row, against, work, bar = bars[0]
    status, words, _ = judged({**times, row: times[against] * work * bar * 1.01})
    if status != 1 or f"missed: {row} against {against}" not in words:
        sys.exit(f"a run that misses a bar: exit {status}, {words}")
    status, words, _ = judged({name: time for name, time in times.items() if name != row})
    if status != 1 or f"{row} against {against}: not in this run" not in words:
        sys.exit(f"a run without a row: exit {status}, {words}")
    print(f"{len(bars)} bars, {len(rows)} rows of {benchmark}")


def met(bars, rows):
    """Times that meet every bar: shorter and shorter, until none is missed."""
    times = dict.fromkeys(rows, 1e6)
    for _ in range(100):
        missed = [bar for bar in bars if times[bar[0]] > times[bar[1]] * bar[2] * bar[3]]
        if not missed:
            return times
        for row, against, work, bar in missed:
            times[row] = min(times[row], 0.99 * times[against] * work * bar)
    sys.exit("no times meet every bar")


if __name__ == "__main__":
    main()
