#!/usr/bin/env python3
"""What the study refuses: status 2, one line on stderr that names the value, nothing written.

usage: refusals_test.py PROGRAM
"""

from study import TEXT, Case, main


class Refusals(Case):

    def no(self, pattern, *line):
        with self.subTest(line=line):
            self.refuse(pattern, *line)

    def test_text(self):
        self.no("--text nowhere is not there", "--text", "nowhere")
        (self.folder / "short").write_bytes(TEXT[:40_000])
        self.no("the text has 40000 bytes; at least 40960 are needed", "--text", "short")
        (self.folder / "nothing").mkdir()
        self.no("the text has 0 bytes", "--text", "nothing")

    def test_sizes(self):
        for option, value, rule in (("--experts", 1, "must lie in 2..1024"), ("--experts", "x", "not a whole number"),
                                    ("--hidden", 1, "must lie in 2.."), ("--width", 0, "must lie in 1.."),
                                    ("--layers", 0, "must lie in 1..64"), ("--context", 513, "must lie in 1..512"),
                                    ("--steps", 0, "must lie in 1.."), ("--tokens", 0, "must lie in 1.."),
                                    ("--tokens", 3, "at least --experts 4"), ("--tokens", "1e3", "not a whole number"),
                                    ("--steps", "99999999999999999999", "must lie in 1.."),
                                    ("--rate", "nan", "must lie in"), ("--capacity-factor", -1, "must lie in"),
                                    ("--balance-weight", "inf", "must lie in"), ("--jitter", 1, "must lie in"),
                                    ("--seed", -1, "not a whole number"), ("--seeds", 0, "must lie in 1.."),
                                    ("--threads", 0, "must lie in 1..1024")):
            self.no(f"{option}.*{rule}", "--text", "text", option, value)
        self.no("too large", "--text", "text", "--experts", 1024, "--tokens", 1024, "--hidden", 65536, "--width",
                4096)

    def test_names(self):
        self.no("--router 'cosine' is unknown; it is one of dense, switch_unbalanced", "--router", "cosine")
        self.no("--precision pure_bfloat16: there is no such router of hash", "--text", "text", "--router", "hash",
                "--precision", "float32,pure_bfloat16")
        self.no("--router quantile: --tokens 66 must be a multiple of --experts 4", "--text", "text", "--router",
                "quantile", "--tokens", 66)
        self.no("names base twice", "--router", "base,switch,base")
        self.no("--router '' is unknown", "--router", "")
        self.no("--precision 'half' is unknown", "--precision", "half")
        self.no("--colour", "--colour", "red")

    def test_folder(self):
        (self.folder / "file").write_text("")
        self.no("--out file/.* cannot be written|--out file cannot be written", "--text", "text", "--out", "file")
        self.no("cannot be written", "--text", "text", "--out", "file/below")
        self.no("cannot be written", "--text", "text", "--out", "/proc/study")
        self.no("--out '' is no folder", "--text", "text", "--out", "")


if __name__ == "__main__":
    main()
