"""Runs the program under test and reads what it wrote."""

import csv
import pathlib
import re
import sys

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "support"))
from program_case import ProgramCase, main  # noqa: E402

METHODS = ["greedy", "switch", "auction", "exact"]
COLUMNS = ["scores", "tokens", "experts", "method", "score", "share", "below", "proved", "max_over_mean", "cv", "dropped",
           "milliseconds"]


class Case(ProgramCase):
    """A test of assignment_report in a folder of its own."""

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
