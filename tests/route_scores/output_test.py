#!/usr/bin/env python3
"""The folder of results: complete or as it was before, whatever goes wrong. usage: output_test.py PROGRAM"""

import os
import resource
import signal
import subprocess
import time
import unittest

import numpy as np

from program import FILES, Case, main

SCORES = np.random.default_rng(0).normal(size=(3000, 8))


def small_files_only():
    """Stands for a full disk: a write beyond 20 kB fails."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))


def signals_end_it():
    """Whatever the test was started from ignores."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


class Output(Case):

    def setUp(self):
        super().setUp()
        self.save(SCORES)
        self.line = ["--scores", "S.npy", "--router", "switch", "--out"]
        self.several = ["--scores", "S.npy", "--router", "switch,base", "--out"]

    def test_folder_is_made(self):
        self.run_well(*self.line, "out")
        self.assertEqual(sorted(os.listdir(self.folder)), ["S.npy", "out"])
        self.assertEqual(sorted(os.listdir(self.folder / "out")), FILES)
        other = self.folder / "other"
        other.mkdir()
        self.assertEqual((self.folder / "out").stat().st_mode, other.stat().st_mode)
        for spelling in ("slash/", "./dot", "other/../up", str(self.folder / "absolute")):
            self.run_well(*self.line, spelling)
            self.assertEqual(sorted(os.listdir(self.folder / spelling)), FILES)

    def test_here(self):
        here = self.folder / "here"
        here.mkdir()
        done = subprocess.run([self.program, "--scores", "../S.npy", "--router", "switch", "--out", "."], cwd=here)
        self.assertEqual(done.returncode, 0)
        self.assertEqual(sorted(os.listdir(here)), FILES)

    def test_earlier_results_are_replaced_and_other_files_stay(self):
        self.run_well(*self.line, "out")
        (self.folder / "out" / "notes.txt").write_text("mine")
        before = self.snapshot()
        self.save(SCORES[:50])
        self.run_well(*self.line, "out")
        self.assertEqual(sorted(os.listdir(self.folder / "out")), sorted(FILES + ["notes.txt"]))
        after = self.snapshot()
        for name in FILES:
            self.assertNotEqual(after[f"out/{name}"], before[f"out/{name}"], name)
        self.assertEqual(after["out/notes.txt"], b"mine")
        self.assertEqual(np.load(self.folder / "out" / "slots.npy").shape, (50, 1))
        self.assertEqual(sorted(os.listdir(self.folder)), ["S.npy", "out"])

    def test_subfolders(self):
        self.run_well(*self.several, "out")
        self.assertEqual(sorted(os.listdir(self.folder / "out")), ["base", "switch"])
        (self.folder / "out" / "base" / "slots.npy").write_bytes(b"stale")
        self.run_well("--scores", "S.npy", "--router", "top_k,base", "--out", "out")
        self.assertEqual(sorted(os.listdir(self.folder / "out")), ["base", "switch", "top_k"])
        for router in ("base", "switch", "top_k"):
            self.results(f"out/{router}")

    def test_link_to_a_folder(self):
        (self.folder / "real").mkdir()
        (self.folder / "link").symlink_to("real")
        self.run_well(*self.line, "link")
        self.assertTrue((self.folder / "link").is_symlink())
        self.assertEqual(sorted(os.listdir(self.folder / "real")), FILES)

    def test_no_place_for_results(self):
        (self.folder / "file").write_text("x")
        self.refuse("file is not a folder", *self.line, "file")
        self.refuse("cannot be written|not a folder|Not a directory", *self.line, "file/out")
        self.refuse("cannot be written: No such file", *self.line, "none/out")
        self.refuse("cannot be written", *self.line, "/proc/out")
        self.refuse("cannot be written", *self.line, "/dev/null/out")
        self.refuse("cannot be written|too long", *self.line, "n" * 300)
        (self.folder / "dangling").symlink_to("nowhere")
        self.refuse("cannot be written", *self.line, "dangling")

    @unittest.skipIf(os.geteuid() == 0, "root may write anywhere")
    def test_no_permission(self):
        (self.folder / "locked").mkdir(mode=0o555)
        self.refuse("cannot be written: Permission denied", *self.line, "locked/out")
        self.refuse("cannot be written: .*Permission denied", *self.line, "locked")
        (self.folder / "S.npy").chmod(0)
        self.assertEqual(self.start(*self.line, "out").returncode, 2)

    def test_failure_on_the_way_in_is_undone(self):
        """A folder stands where the last of the files has to go: the others come back, and nothing new is left."""
        self.run_well(*self.several, "out")
        for blocked in ("out/switch/summary.json", "out/base/order.npy"):
            (self.folder / blocked).unlink()
            (self.folder / blocked).mkdir()
            self.save(SCORES[:70])
            self.refuse("is a folder where a result has to go", *self.several, "out")
            (self.folder / blocked).rmdir()
        (self.folder / "fresh").mkdir()
        (self.folder / "fresh" / "base").write_text("a file where a subfolder has to go")
        self.refuse("cannot be made", *self.several, "fresh")

    def test_full_disk(self):
        for out in ("out", "kept"):
            if out == "kept":
                self.run_well(*self.line, out)
                self.save(SCORES * 2)
            self.refuse("cannot be written: File too large", *self.line, out, preexec_fn=small_files_only)
            self.refuse("cannot be written: File too large", *self.several, out, preexec_fn=small_files_only)

    def test_table_that_cannot_be_printed(self):
        for out in ("out", "kept"):
            if out == "kept":
                self.run_well(*self.several, out)
                self.save(SCORES * 2)
            with open("/dev/full", "w") as full:
                self.refuse("standard output", *self.several, out, stdout=full)

    def interrupted(self, number, delay, out):
        process = subprocess.Popen([self.program, *self.line, out], cwd=self.folder, stdout=subprocess.PIPE,
                                   stderr=subprocess.PIPE, text=True, preexec_fn=signals_end_it)
        time.sleep(delay)
        process.send_signal(number)
        _, told = process.communicate(timeout=300)
        return process.returncode, told

    def test_signals(self):
        """At any moment: ended by the signal with nothing changed, or done with everything in place."""
        self.save(np.random.default_rng(1).normal(size=(400000, 4)).astype(np.float32))
        (self.folder / "kept").mkdir()
        (self.folder / "kept" / "experts.npy").write_bytes(b"old")
        ended = 0
        for attempt in range(24):
            number = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)[attempt % 3]
            out = ("out", "kept")[attempt % 2]
            before = self.snapshot()
            status, told = self.interrupted(number, 0.004 * attempt, out)
            if status == -number:
                ended += 1
                self.assertEqual(self.snapshot(), before, attempt)
                self.assertEqual(told.count("\n"), 0)
                continue
            self.assertEqual((status, told), (0, ""), attempt)
            self.assertLessEqual(set(os.listdir(self.folder)), {"S.npy", "kept", "out"})
            self.assertEqual(sorted(os.listdir(self.folder / out)), FILES)
            if out == "out":
                for name in FILES:
                    (self.folder / out / name).unlink()
                (self.folder / out).rmdir()
        self.assertGreater(ended, 2, "no attempt was early enough to say anything")


if __name__ == "__main__":
    main()
