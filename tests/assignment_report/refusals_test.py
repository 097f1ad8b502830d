#!/usr/bin/env python3
"""What assignment_report refuses: status 2, one line on stderr that names the value, nothing written.

usage: refusals_test.py PROGRAM
"""

import os

import numpy as np

from program import Case, main

SCORES = np.random.default_rng(0).normal(size=(12, 4))


class Refusals(Case):

    def setUp(self):
        super().setUp()
        self.save(SCORES)

    def no(self, pattern, *line):
        with self.subTest(line=line):
            self.refuse(pattern, *line)

    def test_numbers(self):
        for option in ("--tokens", "--experts", "--repeat"):
            for text in ("0", "-1", str(2**63), "99999999999999999999"):
                self.no(f"{option} '{text}' must lie in 1..", option, text)
            for text in ("two", "2.0", "", " 2", "2 ", "0x2", "1e3", "+2"):
                self.no(f"{option} '{text}' is not a whole number".replace("+", r"\+"), option, text)
        self.no(r"--experts '65537' must lie in 1\.\.65536", "--experts", 65537)
        self.no(r"--tokens 1000000 times --experts 65536 must be at most 1073741824", "--tokens", 10**6, "--experts", 65536)
        for seed in ("-1", "1.5", str(2**32)):
            self.no(f"--seed '{seed}'", "--seed", seed)
        for factor in ("-1", "nan", "inf", "1e999"):
            self.no(f"--capacity-factor '{factor}' must lie in 0..1e.09", "--capacity-factor", factor)
        for factor in ("many", "1,25", ""):
            self.no(f"--capacity-factor '{factor}' is not a number", "--capacity-factor", factor)
        for threads in ("0", "-2", "100000"):
            self.no(f"--threads '{threads}'", "--policy", "par", "--threads", threads)

    def test_names(self):
        self.no("--kind 'drifted' is unknown; it is one of gaussian, skewed, quantized, equal", "--kind", "drifted")
        self.no("--policy 'omp' is unknown; it is one of seq, par", "--policy", "omp")
        self.no("--threads 2 needs --policy par", "--threads", 2)
        self.no("S.npy", "S.npy")
        self.no("--scorse", "--scorse", "S.npy")

    def test_generated_or_read(self):
        for line in (("--tokens", 5), ("--experts", 5), ("--kind", "equal"), ("--seed", 5)):
            self.no(f"{line[0]} is of generated scores, and --scores S.npy gives a file's", "--scores", "S.npy", *line)

    def test_files(self):
        self.no("--scores '' is no file", "--scores", "")
        self.no("nothing.npy: No such file or directory", "--scores", "nothing.npy")
        (self.folder / "text.npy").write_text("these are no scores, but long enough")
        self.no("text.npy: is not a .npy file", "--scores", "text.npy")
        whole = (self.folder / "S.npy").read_bytes()
        (self.folder / "short.npy").write_bytes(whole[:-8])
        self.no("short.npy: is truncated", "--scores", "short.npy")
        self.save(SCORES[0], "row.npy")
        self.no(r"row.npy: has the shape \(4,\)", "--scores", "row.npy")
        self.no("--csv and --prices name the same file, x", "--csv", "x", "--prices", "x")
        os.mkdir(self.folder / "folder")
        for option in ("--csv", "--prices"):
            self.no(f"{option} '' is no file", option, "")
            self.no("folder: is a folder", "--scores", "S.npy", option, "folder")
            self.no("nowhere/x: cannot be written: No such file", "--scores", "S.npy", option, "nowhere/x")

    def test_scores(self):
        for value, name in ((np.nan, "NaN"), (np.inf, r"\+infinity")):
            scores = SCORES.copy()
            scores[5, 2] = value
            self.save(scores, "bad.npy")
            self.no(rf"bad.npy: the score of \(token 5, expert 2\) is {name}", "--scores", "bad.npy", "--csv", "out.csv")
        scores = SCORES.copy()
        scores[7] = -np.inf
        self.save(scores, "bad.npy")
        self.no("token 7 has every expert forbidden", "--scores", "bad.npy", "--prices", "P.npy")
        scores = SCORES.copy()
        scores[:5, 1:] = -np.inf  # five tokens for three places
        self.save(scores, "bad.npy")
        self.no("the quotas cannot be met: 5 tokens .* only on expert 0, which may take at most 3", "--scores", "bad.npy")
        self.save(np.full((4, 2), 1e300), "bad.npy")
        self.no("beyond 1e290", "--scores", "bad.npy")

    def test_earlier_files_are_replaced_or_stay(self):
        (self.folder / "out.csv").write_text("earlier")
        self.no("nothing.npy", "--scores", "nothing.npy", "--csv", "out.csv")
        self.run_well("--scores", "S.npy", "--csv", "out.csv")
        self.assertEqual(sorted(os.listdir(self.folder)), ["S.npy", "out.csv"])
        self.assertTrue((self.folder / "out.csv").read_text().startswith("scores,tokens,"))
        (self.folder / "plain").write_text("")
        self.assertEqual((self.folder / "out.csv").stat().st_mode, (self.folder / "plain").stat().st_mode)

    def test_full_disk(self):
        if not os.path.exists("/dev/full"):
            self.skipTest("no /dev/full")
        with open("/dev/full", "w") as full:
            self.refuse("the table cannot be written", "--scores", "S.npy", "--csv", "out.csv", stdout=full)

    def test_help_and_version(self):
        self.assertRegex(self.run_well("--version"), r"\Aassignment_report \d+\.\d+\.\d+\n\Z")
        text = self.run_well("--help")
        for option in ("--scores", "--tokens", "--experts", "--kind", "--seed", "--capacity-factor", "--policy", "--threads",
                       "--repeat", "--csv", "--prices"):
            self.assertIn(f"  {option} ", text)

    def test_scores_named_with_quotes(self):
        name = self.save(SCORES, 'a "b", c.npy')
        self.run_well("--scores", name, "--csv", "out.csv")
        self.assertIn('"a ""b"", c.npy",12,4,greedy,', (self.folder / "out.csv").read_text())


if __name__ == "__main__":
    main()
