#!/usr/bin/env python3
"""Every number that route_scores writes, against NumPy (oracle.py). usage: results_test.py PROGRAM"""

import random
import re

import numpy as np

import oracle
from program import Case, arguments, main


def random_scores(numbers, tokens, experts, kind, dtype):
    """Gaussian scores; `tied` has few distinct values, `forbidden` many -inf, `large` a wide range."""
    scores = numbers.normal(size=(tokens, experts))
    if kind == "tied":
        scores = np.round(scores * 2) / 2
    elif kind == "large":
        scores *= 30
    scores = scores.astype(dtype)
    if kind == "forbidden":
        scores[numbers.random(scores.shape) < 0.4] = -np.inf
    return scores


def random_options(choose, router, tokens, experts):
    """Options of switch or top_k that the router uses; None is not given."""
    o = {}
    if router == "top_k":
        o["k"] = choose.choice([None, 1, experts, choose.randint(1, experts)])
        if o["k"] is None and experts < 2:
            o["k"] = 1
        o["softmax"] = choose.choice([None, "before", "after"])
        o["renormalize"] = choose.choice([False, True])
        o["balance_count"] = choose.choice([None, "first", "all"])
    limit = choose.choice(["factor", "factor", "number", "none"])
    if limit == "number":
        o["capacity"] = choose.choice([0, 1, 3, tokens, tokens + 5, 2**40])
    elif limit == "factor":
        o["capacity_factor"] = choose.choice([0, 0.3, 0.5, 1, 1.1, 1.25, 2, 7.5])
    if limit == "factor" or (limit == "none" and router == "switch"):
        o["capacity_rounding"] = choose.choice([None, "floor", "round", "ceil"])
        o["capacity_minimum"] = choose.choice([None, 0, 4])
        o["capacity_multiple"] = choose.choice([None, 1, 8])
    o["balance_weight"] = choose.choice([None, 0, 0.5, -1])
    o["z_weight"] = choose.choice([None, 0, 1e-3])
    o["noise"] = choose.choice([None, "none", "logit_jitter"] + (["sample"] if router == "switch" else []))
    if o["noise"] not in (None, "none"):
        o["noise_scale"] = choose.choice([None, 0.25, 0])
        o["seed"] = choose.choice([None, 7, 2**64 - 1])
    return o


def given(options):
    return {name: value for name, value in options.items() if value is not None}


class Results(Case):

    def check(self, scores, router, what, **options):
        with self.subTest(what=what, router=router, shape=scores.shape, dtype=str(scores.dtype), **options):
            line = ["--scores", self.save(scores), "--router", router, "--out", "out", *arguments(**options)]
            self.assertEqual(self.run_well(*line), "")
            expected = oracle.route(scores, router, **given(options))
            # A jittered score may differ in its last bit, which exp multiplies by the size of the score.
            jitter = 0.0
            if options.get("noise") == "logit_jitter":
                jitter = 3e-7 * np.abs(scores[np.isfinite(scores)]).astype(float).max(initial=0)
            summary = self.compare("out", expected, gate_tolerance=3e-6 + jitter)
            self.assertEqual((summary["router"], summary["tokens"], summary["experts"]), (router, *scores.shape))

    def test_random_options(self):
        for case in range(320):
            choose, numbers = random.Random(case), np.random.default_rng(case)
            router = choose.choice(["switch", "top_k"])
            tokens = choose.choice([0, 1, 2, 7, 64, 300, 700])
            experts = choose.choice([1, 2, 3, 8, 33, 100])
            options = random_options(choose, router, tokens, experts)
            kind = choose.choice(["gauss", "tied", "large", "forbidden"])
            # A token with every expert forbidden needs a capacity to be dropped by.
            unlimited = router == "top_k" and options.get("capacity") is None and options.get("capacity_factor") is None
            if kind == "forbidden" and unlimited:
                kind = "gauss"
            # Ties are for exact numbers: noise would break them at the mercy of one rounding.
            if kind == "tied" and options["noise"] not in (None, "none"):
                kind = "gauss"
            dtype = choose.choice([np.float16, np.float32, np.float64])
            self.check(random_scores(numbers, tokens, experts, kind, dtype), router, f"case {case} {kind}", **options)

    def test_drop_order_by_gate(self):
        for case, (router, options) in enumerate([("switch", {}), ("switch", dict(capacity_factor=0.5)),
                                                  ("switch", dict(capacity=3)), ("top_k", dict(k=3, capacity_factor=0.5)),
                                                  ("top_k", dict(k=3, capacity=5, softmax="after")),
                                                  ("top_k", dict(k=2, capacity=4, renormalize=True)), ("top_k", dict(k=2)),
                                                  ("top_k", dict(k=1, capacity=4, softmax="after"))]):
            for dtype in (np.float32, np.float64):
                scores = np.random.default_rng(100 + case).normal(size=(90, 6)).astype(dtype)
                self.check(scores, router, "distinct gates", drop_order="gate", **options)
                # Repeated rows have equal gates: the lower token goes first.
                self.check(np.tile(scores[:30], (3, 1)), router, "equal gates", drop_order="gate", **options)

    def test_greedy(self):
        numbers = np.random.default_rng(5)
        for shape in [(0, 3), (1, 1), (50, 1), (300, 7), (600, 100)]:
            for dtype in (np.float16, np.float32, np.float64):
                for kind in ("gauss", "tied", "large"):
                    self.check(random_scores(numbers, *shape, kind, dtype), "greedy", kind)
        some_forbidden = random_scores(numbers, 200, 9, "forbidden", np.float32)
        some_forbidden[:, 4] = 0
        self.check(some_forbidden, "greedy", "some forbidden")

    def test_base(self):
        for case in range(60):
            choose, numbers = random.Random(case), np.random.default_rng(case)
            tokens, experts = choose.choice([0, 1, 3, 12, 37, 48]), choose.choice([1, 2, 3, 5, 8, 60])
            kind = choose.choice(["gauss", "tied", "large", "forbidden"])
            dtype = choose.choice([np.float16, np.float32, np.float64])
            scores = random_scores(numbers, tokens, experts, kind, dtype)
            best = oracle.best_balanced_total(scores.astype(np.float64))
            line = ["--scores", self.save(scores), "--router", "base", "--out", f"out{case}"]
            with self.subTest(case=case, kind=kind, shape=scores.shape, dtype=str(scores.dtype), best=best):
                if not np.isfinite(best):
                    self.refuse("forbidden|quotas cannot be met", *line)
                    self.refuse("forbidden|quotas cannot be met", *line, "--solver", "auction")
                    continue
                self.run_well(*line, "--solver", "hungarian")
                made, _ = self.results(f"out{case}")
                summary = self.compare(f"out{case}", oracle.plan_of_assignment(scores, made["experts"]))
                self.assertAlmostEqual(summary["total_score"], best, delta=1e-5 * max(1, abs(best)))
                loads = np.array(summary["load_after"])
                self.assertTrue(np.isin(loads, [tokens // experts, -(-tokens // experts)]).all(), loads)

                self.run_well(*line, "--solver", "auction")
                made, _ = self.results(f"out{case}")
                summary = self.compare(f"out{case}", oracle.plan_of_assignment(scores, made["experts"]))
                self.assertEqual(summary["options"]["solver"], "auction")
                allowed = scores.astype(np.float64)[np.isfinite(scores)]
                bound = 0.0005 * tokens * (allowed.std() if allowed.size else 0) + 1e-5 * max(1, abs(best))
                self.assertLessEqual(summary["total_score"], best + 1e-5 * max(1, abs(best)))
                self.assertGreaterEqual(summary["total_score"], best - bound)
                loads = np.array(summary["load_after"])
                self.assertTrue(np.isin(loads, [tokens // experts, -(-tokens // experts)]).all(), loads)

    def test_worked_numbers(self):
        """By hand: what the routers' papers' formulas give for four tokens and two experts."""
        p = np.array([[.7, .3], [.6, .4], [.2, .8], [.9, .1]])
        self.save(np.log(p))
        self.run_well("--scores", "S.npy", "--router", "switch", "--capacity", "2", "--out", "switch")
        made, summary = self.results("switch")
        self.assertEqual(made["experts"].ravel().tolist(), [0, 0, 1, 0])
        self.assertEqual(made["slots"].ravel().tolist(), [0, 1, 0, -1])
        np.testing.assert_allclose(made["gates"].ravel(), [.7, .6, .8, 0], rtol=1e-6)
        self.assertEqual((made["offsets"].tolist(), made["order"].tolist()), ([0, 2, 3], [0, 1, 2]))
        self.assertAlmostEqual(summary["load_balancing_loss"], 0.011, places=12)
        self.run_well("--scores", "S.npy", "--router", "switch", "--capacity", "2", "--drop-order", "gate", "--out", "gate")
        made, _ = self.results("gate")
        self.assertEqual(made["slots"].ravel().tolist(), [1, -1, 0, 0])
        self.save(np.array([[1, 0], [.9, .3], [.8, .6], [.7, .05]]))
        self.run_well("--scores", "S.npy", "--router", "base,greedy", "--out", "both")
        made, summary = self.results("both/base")
        self.assertEqual(made["experts"].ravel().tolist(), [0, 1, 1, 0])
        self.assertAlmostEqual(summary["total_score"], 2.6, places=12)
        made, _ = self.results("both/greedy")
        self.assertEqual(made["experts"].ravel().tolist(), [0, 0, 0, 0])
        self.save(np.zeros((3, 2)))
        self.run_well("--scores", "S.npy", "--router", "switch", "--z-weight", "1", "--out", "z")
        self.assertAlmostEqual(self.results("z")[1]["z_loss"], 0.480453, places=6)

    def test_capacity_is_snapped_to_integers(self):
        """100 x 1.1 / 5 is 22.000000000000004 in double."""
        scores = np.zeros((100, 5))
        for rounding in ("floor", "round", "ceil"):
            self.check(scores, "switch", "snap", capacity_factor=1.1, capacity_rounding=rounding)
            self.assertEqual(self.results("out")[1]["capacity"], 22)
        for factor, rounding, capacity in ((0.5, "round", 2), (0.7, "round", 4), (0.5, "ceil", 3), (0.5, "floor", 2)):
            self.check(np.zeros((5, 1)), "switch", "half to even", capacity_factor=factor, capacity_rounding=rounding)
            self.assertEqual(self.results("out")[1]["capacity"], capacity)

    def test_float64_decides_in_double(self):
        scores = np.array([[1, 1 + 1e-12, 0]])
        for router, options in (("switch", []), ("top_k", ["--k", "2"]), ("greedy", [])):
            self.save(scores)
            self.run_well("--scores", "S.npy", "--router", router, "--out", "out", *options)
            self.assertEqual(self.results("out")[0]["experts"][0, 0], 1, router)
            self.save(scores.astype(np.float32))
            self.run_well("--scores", "S.npy", "--router", router, "--out", "out", *options)
            self.assertEqual(self.results("out")[0]["experts"][0, 0], 0, router)

    def test_noise_is_what_it_says(self):
        scores = np.random.default_rng(3).normal(size=(400, 8))
        self.check(scores, "switch", "seeds differ", noise="sample", seed=1)
        first = self.results("out")[0]["experts"]
        self.check(scores, "switch", "seeds differ", noise="sample", seed=2)
        self.assertTrue((self.results("out")[0]["experts"] != first).any())
        self.check(scores, "switch", "no noise at scale 0", noise="sample", noise_scale=0)
        self.assertTrue((self.results("out")[0]["experts"][:, 0] == scores.argmax(axis=1)).all())

    def test_threads_and_backends_write_the_same(self):
        scores = np.random.default_rng(4).normal(size=(5000, 24)).astype(np.float32)
        self.save(scores)
        line = ["--scores", "S.npy", "--router", "switch,top_k,base,greedy", "--k", 3, "--capacity-factor", "0.9",
                "--z-weight", "0.001", "--noise", "logit_jitter"]
        self.run_well(*line, "--out", "seq")
        runs = [["--policy", "par"]] + [["--policy", "par", "--threads", n] for n in (1, 2, 3, 8)]
        for number, policy in enumerate(runs):
            self.run_well(*line, *policy, "--out", f"par{number}")
            for router in ("switch", "top_k", "base", "greedy"):
                expected, told = self.results(f"seq/{router}")
                made, tells = self.results(f"par{number}/{router}")
                for name in made:
                    self.assertEqual(made[name].tobytes(), expected[name].tobytes(), (router, policy, name))
                for key in set(told) - {"milliseconds", "options"}:
                    self.assertEqual(told[key], tells[key], (router, policy, key))
                self.assertEqual(tells["options"]["policy"], "par")
                if len(policy) == 4:
                    self.assertEqual(tells["options"]["threads"], policy[3])

    def test_thrust(self):
        """From scores without noise and by position, Thrust's systems choose and place as Eigen's backend does."""
        self.save(np.zeros((1, 1)))
        if "not built into" in self.start("--scores", "S.npy", "--router", "greedy", "--backend", "thrust",
                                          "--out", "out").stderr:
            self.refuse("--backend thrust is not built into this program", "--scores", "S.npy", "--router", "greedy",
                        "--backend", "thrust", "--out", "out")
            self.skipTest("this program is built without Thrust")
        numbers = np.random.default_rng(8)
        for policy in (["--policy", "seq"], ["--policy", "par", "--threads", "3"]):
            for shape in ((0, 4), (1, 1), (500, 33)):
                for dtype in (np.float16, np.float32, np.float64):
                    scores = random_scores(numbers, *shape, "tied", dtype)
                    options = dict(capacity_factor=0.8, z_weight=0.1)
                    more = dict(k=min(3, shape[1]), softmax="after", balance_count="all")
                    with self.subTest(policy=policy, shape=shape, dtype=dtype):
                        self.run_well("--scores", self.save(scores), "--router", "switch,top_k,base,greedy", "--backend",
                                      "thrust", *policy, *arguments(**options, **more), "--out", "all")
                        self.compare("all/switch", oracle.route(scores, "switch", **options))
                        self.compare("all/top_k", oracle.route(scores, "top_k", **options, **more))
                        self.compare("all/greedy", oracle.route(scores, "greedy"))
                        assigned = self.results("all/base")[0]["experts"]
                        told = self.compare("all/base", oracle.plan_of_assignment(scores, assigned))["options"]
                        self.assertEqual((told["backend"], told["policy"]), ("thrust", policy[1]))
        self.save(np.full((3, 2), -np.inf))
        self.refuse("token 0 has every expert forbidden", "--scores", "S.npy", "--router", "greedy", "--backend", "thrust",
                    "--out", "bad")

    def test_options_as_run(self):
        self.save(np.zeros((8, 4)))
        self.run_well("--scores", "S.npy", "--router", "switch,top_k,base", "--noise", "sample", "--out", "out",
                      "--repeat", "3")
        switch, top_k, base = (self.results(f"out/{router}")[1]["options"] for router in ("switch", "top_k", "base"))
        self.assertEqual((switch["capacity_factor"], switch["noise"], switch["noise_scale"]), (1.25, "sample", 1.0))
        self.assertEqual((top_k["capacity_factor"], top_k["noise"], top_k["noise_scale"]), (None, "none", None))
        self.assertEqual((top_k["k"], top_k["softmax"], top_k["renormalize"], top_k["balance_count"]),
                         (2, "before", False, "first"))
        self.assertEqual((base["solver"], base["backend"], base["policy"], base["threads"], base["repeat"]),
                         ("hungarian", "eigen", "seq", 1, 3))

    def test_comparison(self):
        scores = np.random.default_rng(6).normal(size=(1000, 10))
        self.save(scores)
        table = self.run_well("--scores", "S.npy", "--router", "top_k,base,switch,greedy", "--capacity-factor", "1",
                              "--z-weight", "0.01", "--out", "out").splitlines()
        self.assertEqual(re.split(r"  +", table[0]), ["router", "total score", "kept", "load variation", "balance loss",
                                                      "z-loss", "milliseconds"])
        self.assertEqual([line.split()[0] for line in table[1:]], ["top_k", "base", "switch", "greedy"])
        for line in table[1:]:
            router, total, kept, variation, balance, z, milliseconds = re.split(r"  +", line)
            summary = self.results(f"out/{router}")[1]
            self.assertEqual(kept, f"{summary['kept']} of {summary['kept'] + summary['dropped']}")
            load = np.array(summary["load_before"])
            for text, value in ((total, summary["total_score"]), (variation, load.std() / load.mean()),
                                (balance, summary["load_balancing_loss"]), (z, summary["z_loss"]),
                                (milliseconds, summary["milliseconds"])):
                if value is None:
                    self.assertEqual(text, "-", line)
                else:
                    np.testing.assert_allclose(float(text), value, rtol=1e-3, err_msg=line)


if __name__ == "__main__":
    main()
