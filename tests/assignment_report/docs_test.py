#!/usr/bin/env python3
"""docs/assignment/report.md says what the program does: its sessions are run again, and no option is missing.

usage: docs_test.py PROGRAM
"""

import os
import pathlib
import re
import shlex

import numpy as np

from program import Case, main

PAGE = (pathlib.Path(__file__).resolve().parents[2] / "docs" / "assignment" / "report.md").read_text()


def blocks(kind):
    return [text for name, text in re.findall(r"^```(\w*)\n(.*?)^```$", PAGE, re.M | re.S) if name == kind]


def number_in(word):
    try:
        return float(word)
    except ValueError:
        return None


class Docs(Case):

    def compare(self, printed, wanted):
        """The same words, and numbers as good as the same; times, which end the rows of methods, may be any."""
        for line, wanted_line in zip(printed.splitlines(), wanted.splitlines(), strict=True):
            words, wanted_words = line.split(), wanted_line.split()
            if words and words[0] in ("greedy", "switch", "auction", "exact"):
                words, wanted_words = words[:-1], wanted_words[:-1]
            for word, wanted_word in zip(words, wanted_words, strict=True):
                number = number_in(wanted_word)
                if number is None:
                    self.assertEqual(word, wanted_word, line)
                else:
                    np.testing.assert_allclose(float(word), number, rtol=1e-5, atol=3e-5, err_msg=line)

    def test_sessions(self):
        make, prove = blocks("python")
        here = os.getcwd()
        try:
            os.chdir(self.folder)
            found = {}
            exec(make, found)
            sessions = [text for text in blocks("") if text.startswith("$ ")]
            self.assertEqual(len(sessions), 2)
            for text in sessions:
                command, _, wanted = text.removeprefix("$ ").partition("\n")
                name, *line = shlex.split(command)
                self.assertEqual(name, "assignment_report")
                done = self.start(*line)
                self.compare(done.stdout + done.stderr, wanted)
            exec(prove, found)
            best = float(re.search(r"best balanced assignment: ([0-9.]+);", sessions[0])[1])
            np.testing.assert_allclose(found["bound"], best, rtol=1e-9)
        finally:
            os.chdir(here)

    def test_options(self):
        options = set(re.findall(r"(?m)^  (--[a-z-]+) ", self.run_well("--help"))) - {"--version"}
        described = set()
        for cell in re.findall(r"(?m)^\| (`--[^|]+) \|", PAGE):
            described |= set(re.findall(r"`(--[a-z-]+)`", cell))
        self.assertEqual(options, described)
        usage = next(text for text in blocks("") if text.startswith("assignment_report"))
        self.assertEqual(options, set(re.findall(r"--[a-z-]+", usage)))


if __name__ == "__main__":
    main()
