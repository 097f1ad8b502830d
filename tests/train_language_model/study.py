"""Runs the study's program with a small model and reads what it wrote."""

import csv
import json
import pathlib
import sys

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "support"))
from program_case import ProgramCase, main  # noqa: E402

SMALL = {"--experts": 4, "--hidden": 16, "--width": 16, "--tokens": 64, "--steps": 20, "--threads": 2}
ROUTERS = ["dense", "switch_unbalanced", "switch", "switch_jitter", "top_2", "base"]
# Those of an option.
MORE = ["gshard", "sparse_mixer", "deepseek_v3", "deepseek_v4", "quantile", "sinkhorn", "hash", "random",
        "round_robin"]
TWO = ["top_2", "gshard", "sparse_mixer", "deepseek_v3", "deepseek_v4"]  # experts per token
# A text that a small model can learn in few steps.
TEXT = b"".join(b"int value_%d = %d * (left + right);\n" % (i % 7, i % 10) for i in range(1300))


def small(*line):
    """A command line of a small model, but for what `line` says otherwise."""
    return [str(part) for option, value in SMALL.items() if option not in line for part in (option, value)] + [
        str(part) for part in line]


class Case(ProgramCase):
    """A test with a folder of its own, in which the program runs on a small model and a small text."""

    def setUp(self):
        super().setUp()
        (self.folder / "text").write_bytes(TEXT)

    def start(self, *line, **options):
        return super().start(*small(*line), **({"timeout": 500} | options))

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
