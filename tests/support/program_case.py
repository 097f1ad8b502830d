"""Runs the program under test, whose path is the first argument, in a folder of its own."""

import argparse
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import unittest

import numpy as np


class ProgramCase(unittest.TestCase):
    """A test with a folder of its own, in which the program runs."""

    program = None  # set by main

    def setUp(self):
        held = tempfile.TemporaryDirectory()
        self.addCleanup(held.cleanup)
        self.folder = pathlib.Path(held.name)

    def start(self, *line, **options):
        settings = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "timeout": 300} | options
        return subprocess.run([self.program, *map(str, line)], cwd=self.folder, **settings)

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
        name = re.escape(os.path.basename(self.program))
        self.assertRegex(done.stderr, rf"\A{name}: [^\n]+\n\Z", line)
        self.assertRegex(done.stderr, pattern, line)
        self.assertEqual(self.snapshot(), before, line)


def main():
    reader = argparse.ArgumentParser()
    reader.add_argument("program")
    given, rest = reader.parse_known_args()
    ProgramCase.program = os.path.abspath(given.program)
    unittest.main(argv=sys.argv[:1] + rest)
