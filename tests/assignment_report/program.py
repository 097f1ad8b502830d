"""Runs the program under test and reads what it wrote."""

import argparse
import csv
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import unittest

import numpy as np

METHODS = ["greedy", "switch", "auction", "exact"]
COLUMNS = ["scores", "tokens", "experts", "method", "score", "share", "below", "proved", "max_over_mean", "cv", "dropped",
           "milliseconds"]


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
        self.assertRegex(done.stderr, r"\Aassignment_report: [^\n]+\n\Z", line)
        self.assertRegex(done.stderr, pattern, line)
        self.assertEqual(self.snapshot(), before, line)

    def report(self, *line):
        """What the program says: the lines before the table, and a dictionary for each method of what the CSV holds;
        empty fields are None. The table on stdout says the same in fewer digits."""
        text = self.run_well(*line, "--csv", "made.csv")
        with open(self.folder / "made.csv", newline="") as file:
            rows = list(csv.DictReader(file))
        self.assertEqual(list(rows[0]), COLUMNS)
        self.assertEqual([row["method"] for row in rows], METHODS)
        made = {}
        for row in rows:
            made[row["method"]] = {name: None if text == "" else float(text)
                                   for name, text in row.items() if name not in ("scores", "method")}
        head, table, _ = text.split("\n\n")
        self.compare_table(table, made)
        return head, made

    def compare_table(self, table, made):
        lines = [re.split(r" {2,}", line.replace(" %", "")) for line in table.splitlines()]
        self.assertEqual(lines[0], ["", "score", "of the best", "below", "proved", "max/mean", "cv", "dropped",
                                    "milliseconds"])
        self.assertEqual([line[0] for line in lines[1:]], METHODS)
        for line in lines[1:]:
            row = made[line[0]]
            wanted = [row["score"], None if row["share"] is None else 100 * row["share"], row["below"], row["proved"],
                      row["max_over_mean"], row["cv"], row["dropped"], row["milliseconds"]]
            for text, number in zip(line[1:], wanted, strict=True):
                if number is None:
                    self.assertEqual(text, "-", line)
                else:
                    np.testing.assert_allclose(float(text), number, rtol=0.06, atol=0.0005, err_msg=str(line))


def main():
    reader = argparse.ArgumentParser()
    reader.add_argument("program")
    given, rest = reader.parse_known_args()
    Case.program = os.path.abspath(given.program)
    unittest.main(argv=sys.argv[:1] + rest)
