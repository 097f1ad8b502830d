#!/usr/bin/env python3
"""docs/route_scores.md says what the program does: its sessions are run again, and no option is missing.

usage: docs_test.py PROGRAM
"""

import os
import pathlib
import re
import shlex

from program import Case, main

PAGE = (pathlib.Path(__file__).resolve().parents[2] / "docs" / "route_scores.md").read_text()


def blocks(kind):
    return [text for name, text in re.findall(r"^```(\w*)\n(.*?)^```$", PAGE, re.M | re.S) if name == kind]


def without_time(text):
    """The last column of a comparison differs from run to run."""
    return re.sub(r" +[0-9.e+-]+$", "", text, flags=re.M)


class Docs(Case):

    def session(self, text):
        """Runs the commands after `$` and compares what they print, errors included."""
        for step in re.split(r"^\$ ", text, flags=re.M)[1:]:
            command, _, printed = step.partition("\n")
            name, *line = shlex.split(command)
            with self.subTest(command):
                if name == "ls":
                    self.assertEqual(printed.split(), sorted(os.listdir(self.folder.joinpath(*line))))
                    continue
                self.assertEqual(name, "route_scores")
                done = self.start(*line)
                self.assertEqual(without_time(done.stdout + done.stderr), without_time(printed))

    def test_sessions(self):
        make, read = blocks("python")
        here = os.getcwd()
        try:
            os.chdir(self.folder)
            exec(make, {})
            sessions = [text for text in blocks("") if text.startswith("$ ")]
            self.assertEqual(len(sessions), 2)
            for text in sessions:
                self.session(text)
            found = {}
            exec("import numpy as np\n" + read, found)
            made, summary = self.results("results/switch")
            self.assertEqual(len(found["tokens"]), summary["load_after"][3])
            self.assertTrue((made["experts"][found["tokens"], 0] == 3).all())
        finally:
            os.chdir(here)

    def test_options(self):
        options = set(re.findall(r"(?m)^  (--[a-z-]+) ", self.run_well("--help"))) - {"--version"}
        self.assertEqual(options, set(re.findall(r"(?m)^\| `(--[a-z-]+)` \|", PAGE)))
        usage = next(text for text in blocks("") if text.startswith("route_scores"))
        self.assertEqual(options, set(re.findall(r"--[a-z-]+", usage)))


if __name__ == "__main__":
    main()
