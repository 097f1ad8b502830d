"""The library's side: times from `routing_bench` and `assignment_bench`, results (and times where those are missing)
from `route_scores`."""

import json
import os
import pathlib
import re
import subprocess
import tempfile
from types import SimpleNamespace

import numpy as np

SWITCH = ["--router", "switch"]


def program(path, name, option):
    """The whole path if it can be run, else nothing, with a notice."""
    if os.access(path, os.X_OK) and path.is_file():
        return path.resolve()  # a bare name would be looked for in PATH
    print(f"notice: no {name} at {path}: build it, or say {option} PATH")
    return None


def run(command):
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"peers: {command[0]} exited {done.returncode}: {done.stderr.strip()}")
    return done.stdout


class Library:
    """Any of the programs may be missing."""

    def __init__(self, bench, assignment_bench, router, repeat):
        self.bench = program(bench, "routing_bench", "--bench")
        self.assignment_bench = program(assignment_bench, "assignment_bench", "--assignment-bench")
        self.router = program(router, "route_scores", "--program")
        self.repeat = repeat

    def bench_times(self, row, recorded=None):
        """[(wall, cpu)] in milliseconds, one a repetition; empty where the bench or its row is missing. Rows of
        `recorded` scores are the assignment's."""
        bench = self.assignment_bench if recorded else self.bench
        if not bench:
            return []
        options = ["--recorded", recorded] if recorded else []
        text = run([bench, *options, f"--benchmark_filter=^{row}(/[a-z].*)?$", "--benchmark_format=json",
                    f"--benchmark_repetitions={self.repeat}"])
        rows = json.loads(text)["benchmarks"] if text.strip() else []
        to_ms = {"ns": 1e-6, "us": 1e-3, "ms": 1, "s": 1e3}
        for each in rows:
            if each.get("error_occurred"):
                raise SystemExit(f"peers: {row}: {each['error_message']}")
        return [(each["real_time"] * to_ms[each["time_unit"]], each["cpu_time"] * to_ms[each["time_unit"]])
                for each in rows
                if each["run_type"] == "iteration" and re.fullmatch(f"{row}(/[a-z].*)?", each["name"])]

    def route(self, scores, options):
        """What route_scores writes of a score file, or nothing without the program."""
        if not self.router:
            return None
        with tempfile.TemporaryDirectory() as folder:
            out = pathlib.Path(folder) / "results"
            run([self.router, "--scores", scores, "--repeat", self.repeat, "--out", out, *options])
            summary = json.loads((out / "summary.json").read_text())
            arrays = {name: np.load(out / f"{name}.npy") for name in ("experts", "slots", "gates", "offsets", "order")}
        return SimpleNamespace(**arrays, summary=summary)

    def switch(self, scores, factor):
        """(results in the forms' order of fields, milliseconds)"""
        made = self.route(scores, [*SWITCH, "--capacity-factor", factor])
        if made is None:
            return None, None
        summary = made.summary
        return (made.experts[:, 0], made.gates[:, 0], made.slots[:, 0], made.offsets, made.order,
                np.array(summary["load_before"]), np.array(summary["load_after"]),
                np.array(summary["load_balancing_loss"])), summary["milliseconds"]

    def top_k(self, scores, k):
        """((gate, expert), milliseconds)"""
        made = self.route(scores, ["--router", "top_k", "--k", k])
        return (None, None) if made is None else ((made.gates, made.experts), made.summary["milliseconds"])

    def assign(self, scores):
        """((expert,), milliseconds)"""
        made = self.route(scores, ["--router", "base"])
        return (None, None) if made is None else ((made.experts[:, 0],), made.summary["milliseconds"])
