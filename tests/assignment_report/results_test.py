#!/usr/bin/env python3
"""What assignment_report says is what NumPy, and SciPy where there is one, find: scores, loads, drops, the optimum.

usage: results_test.py PROGRAM
"""

import unittest

import numpy as np

from program import Case, main

try:
    from scipy.optimize import linear_sum_assignment
except ImportError:
    linear_sum_assignment = None


def loads_of(chosen, experts):
    """(max/mean, standard deviation/mean) of the loads; of nothing, 0."""
    if len(chosen) == 0:
        return 0, 0
    loads = np.bincount(chosen, minlength=experts)
    return loads.max() / loads.mean(), loads.std() / loads.mean()


def greedy(scores):
    return scores.argmax(axis=1)


def keep_within(chosen, capacity):
    """Which tokens an expert takes, in their order."""
    taken = np.zeros(chosen.max(initial=0) + 1, int)
    kept = np.zeros(len(chosen), bool)
    for t, e in enumerate(chosen):
        kept[t] = taken[e] < capacity
        taken[e] += kept[t]
    return kept


def optimum(scores):
    """SciPy's, on T x T: every expert stands there as often as it has places. E divides T."""
    tokens, experts = scores.shape
    table = np.repeat(scores, tokens // experts, axis=1).astype(float)
    rows, columns = linear_sum_assignment(np.where(np.isinf(table), -1e6, table), maximize=True)
    return table[rows, columns].sum()


def bound(scores, prices):
    """No balanced assignment scores more than this; E divides T."""
    return (scores - prices).max(axis=1).sum() + prices.sum() * (scores.shape[0] // scores.shape[1])


class Results(Case):

    def check(self, scores, *line, factor=1.25):
        tokens, experts = scores.shape
        name = self.save(scores)
        head, made = self.report("--scores", name, "--prices", "P.npy", *line)
        exact = scores.astype(float)
        spread = np.std(exact[np.isfinite(exact)])
        chosen = greedy(exact)
        rows = np.arange(tokens)
        kept = keep_within(chosen, int(np.floor(factor * tokens / experts + 1e-9)))
        best = made["exact"]["score"]
        expected = {"greedy": (exact[rows, chosen].sum(), 0, loads_of(chosen, experts)),
                    "switch": (exact[rows, chosen][kept].sum(), tokens - kept.sum(), loads_of(chosen[kept], experts)),
                    "auction": (made["auction"]["score"], 0, (1, 0)),
                    "exact": (best, 0, (1, 0))}
        for method, (score, dropped, (max_over_mean, variation)) in expected.items():
            row = made[method]
            with self.subTest(method=method):
                self.assertEqual((row["tokens"], row["experts"], row["dropped"]), (tokens, experts, dropped))
                np.testing.assert_allclose([row["score"], row["max_over_mean"], row["cv"]],
                                           [score, max_over_mean, variation], rtol=1e-9, atol=1e-9)
                np.testing.assert_allclose(row["below"], (best - score) / (tokens * spread), rtol=1e-6, atol=1e-12)
                if best > 0:
                    np.testing.assert_allclose(row["share"], score / best, rtol=1e-9)
                else:
                    self.assertIsNone(row["share"])
                self.assertGreaterEqual(row["milliseconds"], 0)
        for method in ("greedy", "switch"):
            self.assertIsNone(made[method]["proved"])
        self.assertLessEqual(made["auction"]["proved"], 0.0005 + 1e-12)
        self.assertLessEqual(made["auction"]["below"], made["auction"]["proved"] + 1e-12)
        self.assertGreaterEqual(made["auction"]["below"], -1e-12)
        self.assertLessEqual(made["exact"]["proved"] * tokens * spread, 1e-9 * tokens * np.abs(best) + 1e-9)
        self.assertIn("; proved, nothing better", head)
        # The prices prove it to NumPy, too.
        prices = np.load(self.folder / "P.npy")
        self.assertEqual((prices.shape, prices.dtype), ((experts,), np.float64))
        np.testing.assert_allclose(bound(exact, prices), best, rtol=1e-9, atol=1e-9)
        if linear_sum_assignment is not None:
            np.testing.assert_allclose(best, optimum(exact), rtol=1e-9, atol=1e-9)
        return made

    def test_against_numpy(self):
        rng = np.random.default_rng(1)
        popular = rng.normal(size=8)
        for tokens, experts, kind in ((400, 8, np.float32), (400, 8, np.float64), (400, 8, np.float16), (64, 2, np.float64),
                                      (8, 8, np.float64), (90, 1, np.float64)):
            with self.subTest(tokens=tokens, experts=experts, kind=kind):
                self.check((rng.normal(size=(tokens, experts)) + popular[:experts]).astype(kind))

    def test_negative_scores_have_no_share(self):
        self.check(np.random.default_rng(2).normal(size=(120, 4)) - 10)

    def test_forbidden_pairs(self):
        rng = np.random.default_rng(3)
        scores = rng.normal(size=(200, 4))
        scores[rng.random(size=scores.shape) < 0.2] = -np.inf
        scores[:, 0] = rng.normal(size=200)  # everybody may go somewhere
        self.check(scores)

    def test_capacity_factor(self):
        scores = np.random.default_rng(4).normal(size=(300, 6)) + np.arange(6)
        few = self.check(scores, "--capacity-factor", "1", factor=1)
        many = self.check(scores, "--capacity-factor", "3", factor=3)
        none = self.check(scores, "--capacity-factor", "0", factor=0)
        self.assertLess(many["switch"]["dropped"], few["switch"]["dropped"])
        self.assertEqual((none["switch"]["dropped"], none["switch"]["score"]), (300, 0))

    def test_threads_change_nothing_but_the_time(self):
        self.save(np.random.default_rng(5).normal(size=(3000, 16)) + np.linspace(0, 2, 16))
        results = []
        for line in ((), ("--policy", "par"), ("--policy", "par", "--threads", "3", "--repeat", "2")):
            _, made = self.report("--scores", "S.npy", *line)
            results.append({method: {**row, "milliseconds": None} for method, row in made.items()})
        self.assertEqual(results[0], results[1])
        self.assertEqual(results[0], results[2])

    def test_no_tokens_and_no_balance_to_choose(self):
        self.save(np.zeros((0, 3)))
        head, made = self.report("--scores", "S.npy")
        self.assertIn("0 tokens, 3 experts", head)
        for row in made.values():
            self.assertEqual((row["score"], row["dropped"], row["below"], row["share"]), (0, 0, 0, None))

    def test_equal_scores(self):
        _, made = self.report("--kind", "equal", "--tokens", 1000, "--experts", 10)
        self.assertEqual({row["score"] for row in made.values()}, {1500, 1.5 * made["switch"]["dropped"] * -1 + 1500})
        self.assertEqual(made["switch"]["dropped"], 1000 - 125)  # all take the first expert
        self.assertEqual(made["greedy"]["max_over_mean"], 10)
        self.assertIsNone(made["switch"]["below"])  # scores that do not differ measure nothing
        self.assertEqual((made["greedy"]["below"], made["auction"]["below"]), (0, 0))

    def test_generated_scores(self):
        seen = set()
        for kind in ("gaussian", "skewed", "quantized"):
            for seed in (0, 1):
                line = ("--kind", kind, "--seed", seed, "--tokens", 2048, "--experts", 16)
                head, made = self.report(*line)
                self.assertIn(f"2048 tokens, 16 experts, scores: {kind}, seed {seed} (", head)
                _, again = self.report(*line)
                self.assertEqual(made["exact"]["score"], again["exact"]["score"])
                seen.add(made["exact"]["score"])
                self.assertGreater(made["greedy"]["share"], 1)
                self.assertLessEqual(made["switch"]["share"], made["greedy"]["share"])
        self.assertEqual(len(seen), 6)
        _, plain = self.report()
        self.assertEqual((plain["exact"]["tokens"], plain["exact"]["experts"]), (16384, 64))

    @unittest.skipIf(linear_sum_assignment is None, "no SciPy")
    def test_experts_not_dividing_tokens(self):
        scores = np.random.default_rng(6).normal(size=(50, 7))
        self.save(scores)
        _, made = self.report("--scores", "S.npy")
        # 7 experts with 8 places each, 6 of the 56 taken by dummies: one an expert at most.
        table = np.repeat(scores, 8, axis=1)
        dummies = np.full((6, 56), -1e6)
        dummies[:, 7::8] = 0  # the last place of an expert is the one that may stay empty
        rows, columns = linear_sum_assignment(np.vstack([table, dummies]), maximize=True)
        np.testing.assert_allclose(made["exact"]["score"], np.vstack([table, dummies])[rows, columns].sum(), rtol=1e-12)


if __name__ == "__main__":
    main()
