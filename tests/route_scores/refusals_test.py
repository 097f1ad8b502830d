#!/usr/bin/env python3
"""What route_scores refuses: status 2, one line on stderr that names the value, nothing written.

usage: refusals_test.py PROGRAM
"""

import numpy as np

from program import Case, main

SCORES = np.random.default_rng(0).normal(size=(10, 4))


class Refusals(Case):

    def setUp(self):
        super().setUp()
        self.save(SCORES)

    def no(self, pattern, router, *line):
        with self.subTest(router=router, line=line):
            self.refuse(pattern, "--scores", "S.npy", "--router", router, "--out", "out", *line)

    def yes(self, router, *line):
        with self.subTest(router=router, line=line):
            self.run_well("--scores", "S.npy", "--router", router, "--out", "out", *line)

    def test_option_that_nothing_uses(self):
        top_k_only = ["--k 1", "--softmax before", "--renormalize", "--balance-count first"]
        softmax_only = ["--capacity-factor 1", "--capacity 3", "--drop-order position", "--balance-weight 0.01",
                        "--z-weight 0", "--noise none", "--noise logit_jitter"]
        from_a_factor = ["--capacity-rounding floor", "--capacity-minimum 0", "--capacity-multiple 1"]
        def without(option):
            return f"{option} is used by nothing chosen"
        for option in top_k_only:
            self.yes("top_k", *(option + (" --k 2" if "--k" not in option else "")).split())
            self.yes("switch,base,top_k", *option.split())
            for router in ("switch", "base", "greedy", "switch,base,greedy"):
                self.no(without(option), router, *option.split())
        for option in softmax_only:
            for router in ("switch", "top_k", "base,top_k"):
                self.yes(router, *option.split())
            for router in ("base", "greedy", "base,greedy"):
                self.no(without(option), router, *option.split())
        for option in from_a_factor:
            self.yes("switch", *option.split())
            self.yes("top_k", *option.split(), "--capacity-factor", "1")
            self.yes("top_k,switch", *option.split())
            self.no(without(option), "top_k", *option.split())
            self.no(without(option), "top_k,switch", *option.split(), "--capacity", "3")
            self.no(without(option), "base", *option.split())
        self.yes("switch", "--noise", "sample")
        self.yes("switch,top_k", "--noise", "sample")
        self.no("--noise sample is used by nothing chosen: it needs router switch", "top_k", "--noise", "sample")
        for option in ("--seed 1", "--noise-scale 0.5"):
            self.yes("switch", "--noise", "sample", *option.split())
            self.yes("top_k", "--noise", "logit_jitter", *option.split())
            self.no(without(option), "switch", *option.split())
            self.no(without(option), "switch", "--noise", "none", *option.split())
            self.no(without(option), "base", *option.split())
        self.yes("base", "--solver", "hungarian")
        self.yes("base", "--solver", "auction")
        self.yes("base,switch", "--solver", "hungarian")
        for router in ("switch", "top_k", "greedy"):
            self.no(without("--solver hungarian"), router, "--solver", "hungarian")
            self.no(without("--solver auction"), router, "--solver", "auction")
        self.yes("greedy", "--policy", "par", "--threads", "2")
        self.no(without("--threads 2"), "greedy", "--threads", "2")
        self.no(without("--threads 2"), "greedy", "--policy", "seq", "--threads", "2")

    def test_values(self):
        self.no("'hash' is unknown; it is one of switch, top_k, base, greedy", "hash")
        self.no("'' is unknown", "")
        self.no("'' is unknown", "switch,")
        self.no("'Switch' is unknown", "Switch")
        self.no("' top_k' is unknown", "switch, top_k")
        self.no("names switch twice", "switch,base,switch")
        for option, known in (("--softmax", "before, after"), ("--balance-count", "first, all"),
                              ("--drop-order", "position, gate"), ("--capacity-rounding", "floor, round, ceil"),
                              ("--noise", "none, logit_jitter, sample"), ("--solver", "hungarian, auction"),
                              ("--backend", "eigen, thrust"), ("--policy", "seq, par")):
            self.no(f"{option} 'no' is unknown; it is one of {known}", "top_k,base", option, "no")
        for k in ("0", "-1"):
            self.no(f"'{k}' must be at least 1", "top_k", "--k", k)
        self.no(r"--k 5 must lie in 1\.\.E = 4", "top_k", "--k", "5")
        self.no(r"--k 9223372036854775807 must lie", "top_k", "--k", str(2**63 - 1))
        for k in ("two", "2.0", "", " 2", "2 ", "0x2", "1e0", "+2", "2,3"):
            self.no(f"--k '{k}' is not a whole number".replace("+", r"\+"), "top_k", "--k", k)
        self.no(f"'{2**63}' is beyond", "top_k", "--k", str(2**63))
        for factor in ("-1", "-0.5", "-1e-300"):
            self.no(f"--capacity-factor '{factor}' must not be negative", "switch", "--capacity-factor", factor)
        for factor in ("nan", "inf", "-inf", "-nan"):
            self.no(f"--capacity-factor '{factor}' must be finite", "switch", "--capacity-factor", factor)
        for factor in ("1e999", "many", "1.2.3", "1,25", "--out"):
            self.no(f"--capacity-factor '{factor}' is", "switch", "--capacity-factor", factor)
        self.no("--capacity '-1' must be at least 0", "switch", "--capacity", "-1")
        self.no("--capacity 3 and --capacity-factor 1.5 exclude each other", "switch", "--capacity", "3",
                "--capacity-factor", "1.5")
        self.no("--capacity-minimum '-1'", "switch", "--capacity-minimum", "-1")
        self.no("--capacity-multiple '0' must be at least 1", "switch", "--capacity-multiple", "0")
        for weight in ("nan", "inf", "x"):
            self.no(f"--balance-weight '{weight}'", "switch", "--balance-weight", weight)
            self.no(f"--z-weight '{weight}'", "top_k", "--z-weight", weight)
        for scale in ("1", "1.5", "0.99999999999"):
            self.no(r"--noise-scale .* must lie in \[0, 1\)", "switch", "--noise", "logit_jitter", "--noise-scale", scale)
        self.no("--noise-scale '-0.1' must not be negative", "switch", "--noise", "sample", "--noise-scale", "-0.1")
        self.no("--noise-scale 1e[+]300 is beyond float32", "switch", "--noise", "sample", "--noise-scale", "1e300")
        for seed in ("-1", str(2**64), "1.5"):
            self.no(f"--seed '{seed}'", "switch", "--noise", "sample", "--seed", seed)
        for threads in ("0", "-2", "100000"):
            self.no(f"--threads '{threads}'", "switch", "--policy", "par", "--threads", threads)
        for repeat in ("0", "-2", "often"):
            self.no(f"--repeat '{repeat}'", "switch", "--repeat", repeat)

    def test_command_line(self):
        self.refuse("--scores is required")
        self.refuse("--router is required", "--scores", "S.npy")
        self.refuse("--out is required", "--scores", "S.npy", "--router", "switch")
        self.refuse("--out '' is no folder", "--scores", "S.npy", "--router", "switch", "--out", "")
        self.no("--topk", "switch", "--topk", "3")
        self.no("surplus", "switch", "surplus")
        self.no("--seed", "switch", "--seed")
        self.no("--router", "switch", "--router", "base")
        self.no("renormalize was given", "top_k", "--renormalize=maybe")
        self.no("renormalize was given", "top_k", "--renormalize=3")

    def test_scores_that_cannot_be_routed(self):
        forbidden = SCORES.copy()
        forbidden[6] = forbidden[8] = -np.inf
        self.save(forbidden)
        for router in ("base", "greedy", "top_k"):
            self.no("token 6 .*every expert forbidden", router)
        self.yes("switch")
        self.yes("top_k", "--capacity", "100")
        self.yes("top_k", "--capacity-factor", "2")
        lonely = SCORES.copy()
        lonely[:, 2] = -np.inf  # BASE owes every expert two tokens
        self.save(lonely)
        self.no("expert 2 must take at least 2 tokens", "base")
        self.yes("greedy")
        self.save(np.full((4, 2), 1e200))
        self.no("z_loss = inf", "switch", "--z-weight", "1")
        self.yes("switch")
        self.save(np.full((4, 2), 1e308))
        self.no("total_score = inf", "switch")

    def test_several_routers_are_refused_together(self):
        """One router that cannot run leaves none of the others' results."""
        forbidden = SCORES.copy()
        forbidden[6] = -np.inf
        self.save(forbidden)
        self.no("token 6", "switch,greedy")
        self.save(SCORES)
        self.no("--k 9 must lie in 1..E = 4", "switch,base,top_k", "--k", "9")

    def test_help(self):
        for flag in ("--help", "-h"):
            text = self.run_well(flag)
            for option in ("--scores", "--router", "--k", "--softmax", "--renormalize", "--balance-count", "--capacity-factor",
                           "--capacity", "--capacity-rounding", "--capacity-minimum", "--capacity-multiple", "--drop-order",
                           "--balance-weight", "--z-weight", "--noise", "--noise-scale", "--seed", "--solver", "--backend",
                           "--policy", "--threads", "--repeat", "--out"):
                self.assertRegex(text, rf"(?m)^  {option} ")
        self.assertRegex(self.run_well("--version"), r"\Aroute_scores \d+\.\d+\.\d+\n\Z")


if __name__ == "__main__":
    main()
