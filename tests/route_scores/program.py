"""Runs the program under test and reads what it wrote."""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import unittest

import numpy as np

ARRAYS = ("experts", "slots", "gates", "offsets", "order")
FILES = sorted([f"{name}.npy" for name in ARRAYS] + ["summary.json"])
OPTIONS_OF = {
    "switch": ["capacity_factor", "capacity", "capacity_rounding", "capacity_minimum", "capacity_multiple", "drop_order",
               "balance_weight", "z_weight", "noise", "noise_scale", "seed"],
    "base": ["solver"],
    "greedy": [],
}
OPTIONS_OF["top_k"] = ["k", "softmax", "renormalize", "balance_count"] + OPTIONS_OF["switch"]
COMMON_OPTIONS = ["scores", "backend", "policy", "threads", "repeat"]
SUMMARY_KEYS = ["router", "tokens", "experts", "k", "capacity", "kept", "dropped", "load_before", "load_after",
                "load_balancing_loss", "z_loss", "total_score", "milliseconds", "options"]


def arguments(**options):
    """capacity_factor=1.5, renormalize=True -> ["--capacity-factor", "1.5", "--renormalize"]; None is left out."""
    line = []
    for name, value in options.items():
        flag = "--" + name.replace("_", "-")
        if value is True:
            line.append(flag)
        elif value is not None and value is not False:
            line += [flag, str(value)]
    return line


class Case(unittest.TestCase):
    """A test with a folder of its own, in which the program runs."""

    program = None  # set by main

    def setUp(self):
        held = tempfile.TemporaryDirectory()
        self.addCleanup(held.cleanup)
        self.folder = pathlib.Path(held.name)

    def start(self, *line, **options):
        stdout = options.pop("stdout", subprocess.PIPE)
        return subprocess.run([self.program, *map(str, line)], cwd=self.folder, stdout=stdout, stderr=subprocess.PIPE,
                              text=True, timeout=300, **options)

    def save(self, scores, name="S.npy"):
        np.save(self.folder / name, scores)
        return name

    def snapshot(self):
        """Every path below the folder with what it holds."""
        return {str(path.relative_to(self.folder)): path.read_bytes() if path.is_file() else None
                for path in self.folder.rglob("*")}

    def run_well(self, *line, **options):
        done = self.start(*line, **options)
        self.assertEqual((done.returncode, done.stderr), (0, ""), line)
        return done.stdout

    def refuse(self, pattern, *line, **options):
        """The program ends with 2 and one line that matches, and leaves the folder as it was."""
        before = self.snapshot()
        done = self.start(*line, **options)
        self.assertEqual(done.returncode, 2, (line, done.stderr))
        self.assertIn(done.stdout, ("", None), line)
        self.assertRegex(done.stderr, r"\Aroute_scores: [^\n]+\n\Z", line)
        self.assertRegex(done.stderr, pattern, line)
        self.assertEqual(self.snapshot(), before, line)

    def results(self, folder):
        """The arrays and the summary of a run, after checks of files, types and shapes."""
        folder = self.folder / folder
        self.assertEqual(sorted(os.listdir(folder)), FILES)
        made = {name: np.load(folder / f"{name}.npy", allow_pickle=False) for name in ARRAYS}
        summary = json.loads((folder / "summary.json").read_text())
        self.assertEqual(list(summary), SUMMARY_KEYS)
        self.assertEqual(sorted(summary["options"]), sorted(OPTIONS_OF[summary["router"]] + COMMON_OPTIONS))
        tokens, experts, k, kept = (summary[key] for key in ("tokens", "experts", "k", "kept"))
        for name, dtype, shape in (("experts", np.int32, (tokens, k)), ("slots", np.int32, (tokens, k)),
                                   ("gates", np.float32, (tokens, k)), ("offsets", np.int64, (experts + 1,)),
                                   ("order", np.int64, (kept,))):
            self.assertEqual((made[name].dtype, made[name].shape), (np.dtype(dtype), shape), name)
            self.assertTrue(made[name].flags.c_contiguous, name)
        return made, summary

    def compare(self, folder, expected, gate_tolerance=3e-6, loss_tolerance=1e-5):
        """The files in a folder hold the numbers expected: integers exactly."""
        made, summary = self.results(folder)
        for name in ("experts", "slots", "offsets", "order"):
            np.testing.assert_array_equal(made[name], expected[name], name)
        np.testing.assert_allclose(made["gates"], expected["gates"], rtol=gate_tolerance, atol=1e-37, err_msg="gates")
        for key in ("k", "capacity", "kept", "dropped"):
            self.assertEqual(summary[key], expected[key], key)
        for key in ("load_before", "load_after"):
            self.assertEqual(summary[key], expected[key].tolist(), key)
        for key in ("load_balancing_loss", "z_loss"):
            if expected[key] is None:
                self.assertIsNone(summary[key], key)
            else:
                np.testing.assert_allclose(summary[key], expected[key], rtol=loss_tolerance, atol=1e-12, err_msg=key)
        np.testing.assert_allclose(summary["total_score"], expected["total_score"], rtol=1e-12, atol=1e-9)
        self.assertGreaterEqual(summary["milliseconds"], 0)
        return summary


def main():
    reader = argparse.ArgumentParser()
    reader.add_argument("program")
    given, rest = reader.parse_known_args()
    Case.program = os.path.abspath(given.program)
    unittest.main(argv=sys.argv[:1] + rest)
