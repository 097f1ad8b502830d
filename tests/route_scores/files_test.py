#!/usr/bin/env python3
"""Score files: every form that NumPy writes, and files that are wrong or hostile. usage: files_test.py PROGRAM"""

import random
import struct

import numpy as np

from program import ARRAYS, Case, main

SCORES = np.random.default_rng(0).normal(size=(6, 4))


def npy(header, data=b"", version=(1, 0), length=None, pad=True):
    """A file from its parts; `header` is a dictionary, or the shape of '<f8' numbers."""
    if header.startswith("("):
        header = f"{{'descr': '<f8', 'fortran_order': False, 'shape': {header}, }}"
    text = header.encode("latin-1")
    length_bytes = 2 if version[0] == 1 else 4
    if pad:
        text += b" " * (63 - (8 + length_bytes + len(text)) % 64) + b"\n"
    length = len(text) if length is None else length
    return b"\x93NUMPY" + bytes(version) + length.to_bytes(length_bytes, "little") + text + data


class Files(Case):

    def setUp(self):
        super().setUp()
        self.save(SCORES)
        self.plain = (self.folder / "S.npy").read_bytes()
        self.run_well("--scores", "S.npy", "--router", "switch", "--out", "expected")
        self.expected = self.arrays("expected")

    def arrays(self, folder):
        return {name: (self.folder / folder / f"{name}.npy").read_bytes() for name in ARRAYS}

    def accept(self, contents, what):
        (self.folder / "F.npy").write_bytes(contents)
        with self.subTest(what):
            self.run_well("--scores", "F.npy", "--router", "switch", "--out", "out")
            self.assertEqual(self.arrays("out"), self.expected)

    def reject(self, contents, pattern, router="switch"):
        (self.folder / "F.npy").write_bytes(contents)
        with self.subTest(pattern):
            self.refuse(r"F\.npy: .*" + pattern, "--scores", "F.npy", "--router", router, "--out", "out")

    def test_forms(self):
        data = SCORES.astype("<f8").tobytes()
        shape = "(6, 4)"
        self.accept(npy(shape, data), "1.0")
        self.accept(npy(shape, data, (2, 0)), "2.0")
        self.accept(npy(shape, data, (3, 0)), "3.0")
        self.accept(npy(shape, data, pad=False), "no padding")
        self.accept(npy("{'shape':(6,4),'fortran_order':False,'descr':'<f8'}", data), "no spaces, another order")
        self.accept(npy('{"descr" : "<f8" , "fortran_order" : False , "shape" : ( 6L , 4L , ) , }', data), "Python 2")
        self.accept(npy("{'descr': '=f8', 'fortran_order': False, 'shape': (6, 4)}", data), "this machine's order")
        self.accept(npy("{'descr': '>f8', 'fortran_order': False, 'shape': (6, 4)}", SCORES.astype(">f8").tobytes()), ">f8")
        self.accept(npy("{'descr': '<f8', 'fortran_order': True, 'shape': (6, 4)}", SCORES.T.astype("<f8").tobytes()),
                    "Fortran")
        self.accept(npy(shape + " " * 70000, data, (2, 0)), "a long header")

    def test_types_orders_and_bytes(self):
        for dtype in ("f2", "f4", "f8"):
            for order in "<>":
                for layout in (np.ascontiguousarray, np.asfortranarray):
                    narrow = np.random.default_rng(1).normal(size=(1000, 37)).astype(order + dtype)
                    # float16 widens to float32: the results are those of the same numbers in float32.
                    wide = narrow.astype("f8" if dtype == "f8" else "f4")
                    self.save(layout(narrow), "N.npy")
                    self.save(wide, "W.npy")
                    for router in ("switch", "base"):
                        with self.subTest(dtype=order + dtype, layout=layout.__name__, router=router):
                            self.run_well("--scores", "N.npy", "--router", router, "--out", "narrow")
                            self.run_well("--scores", "W.npy", "--router", router, "--out", "wide")
                            self.assertEqual(self.arrays("narrow"), self.arrays("wide"))

    def test_every_half(self):
        """All finite float16 numbers widen as NumPy widens them: each row's best is the number itself."""
        halves = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
        halves = halves[np.isfinite(halves)]
        self.save(halves[:, None])
        self.run_well("--scores", "S.npy", "--router", "greedy", "--out", "out")
        made, summary = self.results("out")
        wide = halves.astype(np.float64)
        np.testing.assert_allclose(made["gates"][:, 0], 1 / (1 + np.exp(-np.clip(wide, -80, 80))), rtol=1e-6, atol=1e-34)
        self.assertAlmostEqual(summary["total_score"], wide.sum(), places=6)

    def test_results_are_files_that_numpy_would_write(self):
        for name in ARRAYS:
            path = self.folder / "expected" / f"{name}.npy"
            np.save(self.folder / "again.npy", np.load(path))
            self.assertEqual(path.read_bytes(), (self.folder / "again.npy").read_bytes(), name)

    def test_empty_and_single(self):
        for shape in ((0, 3), (1, 1), (1, 5)):
            for dtype in (np.float16, np.float32, np.float64):
                self.save(np.zeros(shape, dtype))
                with self.subTest(shape=shape):
                    self.run_well("--scores", "S.npy", "--router", "switch,base,greedy,top_k", "--k", "1",
                                  "--capacity", "1", "--out", "out")
                    for router in ("switch", "base", "greedy", "top_k"):
                        made, summary = self.results(f"out/{router}")
                        self.assertEqual(made["offsets"][-1], shape[0])
                        self.assertEqual(summary["tokens"], shape[0])

    def test_truncated_anywhere(self):
        for length in range(len(self.plain)):
            self.reject(self.plain[:length], "is empty|not a .npy file|is truncated")

    def test_not_what_is_asked_for(self):
        eight = SCORES.tobytes()
        self.reject(b"router,expert\n1,2\n", "is not a .npy file")
        self.reject(b"PK\x03\x04" + bytes(100), "is not a .npy file")
        self.reject(self.plain + b"\0", "1 bytes after its array of 192")
        for version in ((0, 0), (1, 1), (4, 0), (255, 255)):
            self.reject(npy("(6, 4)", eight, version if version[0] != 1 else (1, 1)), r"NumPy format \d+\.\d+")
        for shape, pattern in (("()", "shape \\(\\)"), ("(24,)", r"shape \(24,\)"), ("(2, 3, 4)", r"shape \(2, 3, 4\)"),
                               ("(24, 0)", "at least one expert"), ("(0, 0)", "at least one expert")):
            self.reject(npy(shape, b"" if "0" in shape else eight), pattern)
        for dtype in ("<i4", "|b1", "<c8", "<f16", "|O", "<U3", "<f3", "f8", "|f8", "<f8x", ""):
            self.reject(npy(f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': (6, 4), }}", eight),
                        "holds numbers of type")
        self.reject(npy("{'descr': [('a', '<f8')], 'fortran_order': False, 'shape': (6, 4), }", eight), "no single number type")

    def test_hostile_headers(self):
        eight = SCORES.tobytes()
        self.reject(npy("(6, 4)", eight, (2, 0), length=2**32 - 1), "is truncated: its header takes 4294967295")
        self.reject(npy("(6, 4)", b"", (1, 0), length=65535), "is truncated")
        self.reject(npy("(6, 4)", eight, (1, 0), length=0), "header that cannot be read")
        for shape in ("(-6, 4)", "(6, -4)", "(6, )4", "(6, x)", "(6 4)", "(6, 4", "()6, 4", "(6.0, 4)", "(,6, 4)", "(6,, 4)",
                      "(" + "1, " * 40 + ")", f"({2**63}, 1)", "(0x6, 4)", "(1e1, 4)"):
            self.reject(npy(shape, eight), "header that cannot be read")
        for shape in (f"({2**62}, 4)", f"({2**63 - 1}, {2**24})", "(1000000000000, 4)", "(7, 4)"):
            self.reject(npy(shape, eight), "is truncated|which no file can hold")
        for shape in (f"(0, {2**31})", f"(0, {2**62})", f"({2**62}, {2**62})"):
            self.reject(npy(shape), "more than 16777216 experts")
        for header in ("", "{}", "{'descr': '<f8'}", "{'descr': '<f8', 'fortran_order': False, 'shape': (6, 4)} x", "[1, 2]",
                       "{'descr': '<f8', 'fortran_order': 0, 'shape': (6, 4)}", "{'descr': '<f8", "{'descr", "{'descr' '<f8'}",
                       "{'descr': '<f8', 'descr': '<f8', 'fortran_order': False, 'shape': (6, 4)}", "{,}",
                       "{'descr': '<f8', 'fortran_order': False, 'shape': (6, 4), 'more': 1}", "\0" * 60, "{" * 5000):
            self.reject(npy(header, eight), "header that cannot be read")

    def test_mutations_never_crash(self):
        """Some bytes of the header changed at random: read or refused, never anything else."""
        for case in range(250):
            choose = random.Random(case)
            changed = bytearray(self.plain)
            for _ in range(choose.randint(1, 4)):
                changed[choose.randrange(128)] = choose.choice([0, 32, 39, 255, 48, 57, choose.randrange(256)])
            (self.folder / "F.npy").write_bytes(changed)
            done = self.start("--scores", "F.npy", "--router", "switch", "--out", "mutated")
            with self.subTest(bytes(changed[:128])):
                self.assertIn(done.returncode, (0, 2), done.stderr)
                self.assertEqual(done.stderr.count("\n"), done.returncode // 2)

    def test_bad_numbers_are_named(self):
        for dtype in (np.float16, np.float32, np.float64):
            for layout in (np.ascontiguousarray, np.asfortranarray):
                for bad, name in ((np.nan, "NaN"), (-np.nan, "NaN"), (np.inf, r"\+infinity")):
                    scores = SCORES.astype(dtype)
                    scores[4, 1] = scores[5, 0] = bad  # row by row, (4, 1) comes first
                    scores[2, 2] = -np.inf
                    self.save(layout(scores))
                    for router in ("switch", "top_k", "base", "greedy"):
                        with self.subTest(dtype=dtype, bad=bad, router=router):
                            self.refuse(rf"S\.npy: the score of \(token 4, expert 1\) is {name}", "--scores", "S.npy",
                                        "--router", router, "--out", "out")
        signalling = bytearray(self.plain)
        signalling[128 + 8 * 9:128 + 8 * 10] = struct.pack("<Q", 0x7FF0000000000001)
        self.reject(bytes(signalling), r"\(token 2, expert 1\) is NaN")

    def test_no_file(self):
        line = ["--router", "switch", "--out", "out", "--scores"]
        self.refuse(r"none\.npy: No such file", *line, "none.npy")
        self.refuse("is a folder", *line, ".")
        self.refuse("is not a regular file", *line, "/dev/null")
        self.refuse("No such file|Not a directory|not found", *line, "S.npy/S.npy")
        self.refuse("--scores .. is no file", *line, "")
        self.refuse("No such file|too long", *line, "n" * 5000)
        self.refuse(r"a b\.npy: No such file", *line, "a\nb.npy")


if __name__ == "__main__":
    main()
