#!/usr/bin/env python3
"""A short study from end to end: files, loads, determinism, precisions, interruption.

usage: run_test.py PROGRAM
"""

import re
import signal
import subprocess
import time

import numpy as np

from study import ROUTERS, MORE, TEXT, TWO, Case, main, small


def without_time(value):
    """Results without what a clock says, or how many threads there were."""
    if isinstance(value, dict):
        return {key: without_time(held) for key, held in value.items()
                if key not in ("seconds", "seconds_to_dense", "routing_share", "threads")}
    return [without_time(held) for held in value] if isinstance(value, list) else value


class Run(Case):

    def test_usual_routers(self):
        results, printed = self.study("--seeds", 2, "--layers", 2, "--steps", 50)
        self.assertEqual([(run["router"], run["seed"]) for run in results["runs"]],
                         [(router, seed) for seed in (1, 2) for router in ROUTERS])
        self.assertEqual(results["text_bytes"], len(TEXT))
        names = re.findall(r"^\| (\w+) ", printed, re.MULTILINE)
        self.assertEqual(names, ["router"] + ROUTERS)
        for run in results["runs"]:
            with self.subTest(run=run["name"], seed=run["seed"]):
                self.check_run(results, run)

    def test_all_routers(self):
        results, _ = self.study("--router", "all", "--steps", 50)
        self.assertEqual([run["router"] for run in results["runs"]], ROUTERS + MORE)
        loads = {}
        for run in results["runs"][len(ROUTERS):]:
            with self.subTest(run=run["name"]):
                seen = run["evaluations"]
                self.assertEqual([at["step"] for at in seen], list(range(51)))
                self.assertLess(seen[-1]["validation_bits"], 5)
                loads[run["router"]] = run["late_load"][0]["variation"]
                # What was chosen is in the results; scores alone do not say it.
                k = 2 if run["router"] in TWO else 1
                counted = sum(sum(expert["bytes"].values()) for expert in run["layers"][0]["experts"])
                self.assertEqual(counted, k * np.load(self.folder / "out" / run["layers"][0]["scores"]).shape[0])
        self.assertEqual(loads["round_robin"], 0)
        self.assertLess(loads["quantile"], 0.5)
        # A byte has one expert.
        hashed = [run for run in results["runs"] if run["router"] == "hash"][0]["layers"][0]["experts"]
        owners = [byte for expert in hashed for byte in expert["bytes"]]
        self.assertEqual(len(owners), len(set(owners)))

    def check_run(self, results, run):
        seen = run["evaluations"]
        self.assertTrue(run["complete"])
        self.assertEqual([at["step"] for at in seen], list(range(51)))
        self.assertEqual(run["validation_bits"], seen[-1]["validation_bits"])
        self.assertLess(abs(seen[0]["validation_bits"] - 8), 1)
        self.assertLess(seen[-1]["validation_bits"], 4.5)
        dense = [other for other in results["runs"] if other["router"] == "dense" and other["seed"] == run["seed"]][0]
        self.check_crossing(run, dense["validation_bits"])
        self.assertEqual(len(run["layers"]), 0 if run["router"] == "dense" else 2)
        self.assertEqual(run["largest_load_difference"] == 0, run["router"] in ("dense", "base"))
        for at in seen[1:]:
            for load in at["load"]:
                self.assertAlmostEqual(sum(load["share"]), 1)
                if run["router"] == "base":
                    self.assertEqual((load["variation"], load["max_over_mean"], load["dropped_share"]), (0, 1, 0))
        for layer in run["layers"]:
            scores = np.load(self.folder / "out" / layer["scores"])
            counted = [sum(expert["bytes"].values()) for expert in layer["experts"]]
            k = 2 if run["router"] == "top_2" else 1
            best = np.argsort(-scores, axis=1, kind="stable")[:, :k]
            np.testing.assert_array_equal(counted, np.bincount(best.ravel(), minlength=4))
            for expert, count in zip(layer["experts"], counted):
                self.assertLessEqual(len(expert["examples"]), 8)
                self.assertTrue(k == 2 or len(expert["examples"]) >= min(count, 4))
                for example in expert["examples"]:
                    self.assertIn(bytes(example["before"] + example["after"]), TEXT)
                    self.assertIn(str(example["before"][-1]), expert["bytes"])

    def check_crossing(self, run, goal):
        """By a line between the two evaluations around the goal."""
        below = [i for i, at in enumerate(run["evaluations"]) if at["validation_bits"] <= goal]
        if not below or below[0] == 0:
            self.assertIsNone(run["steps_to_dense"])
            return
        a, b = run["evaluations"][below[0] - 1], run["evaluations"][below[0]]
        share = (a["validation_bits"] - goal) / (a["validation_bits"] - b["validation_bits"])
        self.assertAlmostEqual(run["steps_to_dense"], a["step"] + share * (b["step"] - a["step"]), places=6)
        self.assertAlmostEqual(run["seconds_to_dense"], a["seconds"] + share * (b["seconds"] - a["seconds"]), places=6)

    def test_same_for_any_thread_count(self):
        for routers, precision in ((ROUTERS + MORE, "float32"), (ROUTERS, "bfloat16,pure_bfloat16")):
            line = ["--router", ",".join(routers), "--tokens", 300, "--steps", 12]
            one, _ = self.study(*line, "--precision", precision, "--threads", 1, out="one")
            three, _ = self.study(*line, "--precision", precision, "--threads", 3, out="three")
            self.assertEqual(without_time(one), without_time(three))
            for run in one["runs"]:
                for layer in run["layers"]:
                    self.assertEqual((self.folder / "one" / layer["scores"]).read_bytes(),
                                     (self.folder / "three" / layer["scores"]).read_bytes())

    def test_seeds_differ_and_repeat(self):
        both, _ = self.study("--router", "switch", "--seeds", 2)
        second, _ = self.study("--router", "switch", "--seed", 2)
        self.assertEqual(without_time(both["runs"][1]), without_time(second["runs"][0]))
        self.assertNotEqual(both["runs"][0]["validation_bits"], both["runs"][1]["validation_bits"])

    def test_precisions(self):
        results, _ = self.study("--router", "dense,switch,top_2,base", "--precision", "float32,bfloat16,pure_bfloat16",
                                "--steps", 40)
        bits = {run["name"]: run["validation_bits"] for run in results["runs"]}
        self.assertEqual(list(bits), ["dense", "switch", "top_2", "base", "dense bfloat16", "switch bfloat16",
                                      "top_2 bfloat16", "base bfloat16", "switch pure_bfloat16", "top_2 pure_bfloat16",
                                      "base pure_bfloat16"])
        self.assertEqual(len(set(bits.values())), len(bits))
        for name, value in bits.items():
            self.assertLess(abs(value - bits[name.split()[0]]), 0.5, name)
        for run in results["runs"]:
            for layer in run["layers"]:
                scores = np.load(self.folder / "out" / layer["scores"])
                fits = (scores.view(np.uint32) & 0xFFFF == 0).all()
                self.assertEqual(fits, run["precision"] == "pure_bfloat16", run["name"])

    def test_default_text_is_eigens(self):
        done = self.start("--router", "dense", "--steps", 2, "--no-report")
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertGreater(self.results("study-results")["text_bytes"], 1_000_000)

    def test_any_bytes(self):
        noise = np.random.default_rng(3).integers(0, 256, 60_000, dtype=np.uint8).tobytes()
        (self.folder / "some").mkdir()
        (self.folder / "some" / "a").write_bytes(noise[:50_000])
        (self.folder / "some" / "b").write_bytes(noise[50_000:])
        results, _ = self.study("--router", "switch", text="some")
        self.assertEqual(results["text_bytes"], 60_000)
        self.assertGreater(results["runs"][0]["validation_bits"], 7.5)  # noise cannot be learned

    def test_interrupted(self):
        line = [self.program, *small("--text", "text", "--no-report", "--steps", 1_000_000, "--out", "out")]
        with subprocess.Popen(line, cwd=self.folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as run:
            time.sleep(3)
            run.send_signal(signal.SIGINT)
            printed, complaints = run.communicate(timeout=100)
            self.assertEqual(run.returncode, 130, complaints)
        results = self.results()
        self.assertEqual([(run["router"], run["complete"]) for run in results["runs"]], [("dense", False)])
        self.assertIn("| dense (interrupted) |", printed)

    def test_interrupted_early(self):
        """Loads of the second half of the steps are not known; nothing stands for them."""
        line = [self.program, *small("--text", "text", "--no-report", "--router", "switch", "--steps", 1_000_000,
                                     "--out", "out")]
        with subprocess.Popen(line, cwd=self.folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as run:
            time.sleep(2)
            run.send_signal(signal.SIGINT)
            printed, complaints = run.communicate(timeout=100)
            self.assertEqual(run.returncode, 130, complaints)
        (run,) = self.results()["runs"]
        self.assertEqual(run["late_load"], [])
        self.assertRegex(printed, r"(?m)^\| switch \(interrupted\) +\|.*\| +- \| +- \| +- \| +[\d.]+ \|$")

    def test_dense_model_that_learned_nothing(self):
        results, _ = self.study("--router", "dense,switch", "--rate", 10, "--steps", 100)
        for run in results["runs"]:
            self.check_crossing(run, results["runs"][0]["validation_bits"])
            self.assertGreater(results["runs"][0]["validation_bits"], run["evaluations"][0]["validation_bits"])

    def test_one_step(self):
        results, _ = self.study("--router", "switch", "--steps", 1)
        self.assertEqual(len(results["runs"][0]["late_load"]), 1)

    def test_says_where_results_are(self):
        _, printed = self.study("--router", "dense", "--steps", 2)
        self.assertIn(f"Results: results.csv, results.json and scores/ in {self.folder / 'out'}\n", printed)
        self.assertNotIn("report.html", printed)


if __name__ == "__main__":
    main()
