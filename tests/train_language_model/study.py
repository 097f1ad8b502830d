"""Runs the study's program with a small model and reads what it wrote."""

import argparse
import csv
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import unittest

import numpy as np

SMALL = {"--experts": 4, "--hidden": 16, "--width": 16, "--tokens": 64, "--steps": 20, "--threads": 2}
ROUTERS = ["dense", "switch_unbalanced", "switch", "switch_jitter", "top_2", "base"]
# A text that a small model can learn in few steps.
TEXT = b"".join(b"int value_%d = %d * (left + right);\n" % (i % 7, i % 10) for i in range(1300))


def small(*line):
    """A command line of a small model, but for what `line` says otherwise."""
    return [str(part) for option, value in SMALL.items() if option not in line for part in (option, value)] + [
        str(part) for part in line]


class Case(unittest.TestCase):
    """A test with a folder of its own, in which the program runs."""

    program = None  # set by main

    def setUp(self):
        held = tempfile.TemporaryDirectory()
        self.addCleanup(held.cleanup)
        self.folder = pathlib.Path(held.name)
        (self.folder / "text").write_bytes(TEXT)

    def start(self, *line, **options):
        return subprocess.run([self.program, *small(*line)], cwd=self.folder, stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE, text=True, timeout=500, **options)

    def study(self, *line, text="text", out="out", report=False):
        """A small study that must end well: its results and what it printed."""
        done = self.start("--text", text, "--out", out, *([] if report else ["--no-report"]), *line)
        self.assertEqual(done.returncode, 0, done.stderr)
        return self.results(out), done.stdout

    def results(self, out="out"):
        """results.json, after a check that every file is whole and says the same."""
        folder = self.folder / out
        results = json.loads((folder / "results.json").read_text())
        self.assertEqual([path.name for path in folder.rglob("*.partial")], [])
        with open(folder / "results.csv", newline="") as file:
            rows = list(csv.DictReader(file))
        expected = []
        for run in results["runs"]:
            for at in run["evaluations"]:
                for layer in at["load"] or [None]:
                    expected.append((run["router"], run["precision"], run["seed"], at["step"], at["validation_bits"],
                                     layer and layer["variation"]))
        self.assertEqual(len(rows), len(expected))
        for row, (router, precision, seed, step, bits, variation) in zip(rows, expected):
            self.assertEqual((row["router"], row["precision"], int(row["seed"]), int(row["step"])),
                             (router, precision, seed, step))
            self.assertAlmostEqual(float(row["validation_bits"]), bits, places=6)
            if variation is None:
                self.assertEqual(row["load_variation"], "")
            else:
                self.assertAlmostEqual(float(row["load_variation"]), variation, places=6)
        for run in results["runs"]:
            for layer in run["layers"]:
                scores = np.load(folder / layer["scores"], allow_pickle=False)
                self.assertEqual(scores.dtype, np.float32)
                self.assertEqual(scores.shape[1], results["options"]["experts"])
                self.assertTrue(np.isfinite(scores).all())
        return results


def main():
    reader = argparse.ArgumentParser()
    reader.add_argument("program")
    given, rest = reader.parse_known_args()
    Case.program = os.path.abspath(given.program)
    unittest.main(argv=sys.argv[:1] + rest)
