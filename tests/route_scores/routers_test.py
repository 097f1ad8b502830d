#!/usr/bin/env python3
"""route_scores: gshard, sparse_mixer, noisy_top_k, sinkhorn, quantile and one expert of every group, computed again with
NumPy in double from their formulas, gradients by central differences.

usage: routers_test.py PROGRAM
"""

import json
import math
import shutil

import numpy as np

import oracle
from program import Case, arguments, main

SECOND, NOISY, DRAWS, MIDPOINTS = 7, 8, 9, 10


def place(chosen, wanted, order, experts, capacity):
    """Which choices have a slot: all first ones before any second."""
    kept = np.zeros(chosen.shape, bool)
    load = np.zeros(experts, int)
    for c in range(chosen.shape[1]):
        for t in order:
            if wanted[t, c]:
                kept[t, c] = capacity is None or load[chosen[t, c]] < capacity
                load[chosen[t, c]] += 1
    return kept


def losses(scores, chosen, wanted, balance_weight, z_weight):
    """Of first choices."""
    p = oracle.probabilities(scores)
    f = np.bincount(chosen[:, 0][wanted[:, 0]], minlength=scores.shape[1]) / len(scores)
    return balance_weight * scores.shape[1] * f @ p.mean(axis=0) + z_weight * (oracle.log_sums(scores)**2).mean()


def gumbel(tokens, experts, seed, purpose, first=0):
    u = oracle.uniforms(tokens, first + experts, seed, purpose)[:, first:].astype(np.float64)
    return -np.log(-np.log(u))


def gshard(scores, second="random", threshold=0.5, compared="share", pair_sum="before_drops", epsilon=1e-9, kind="add",
           capacity=None, by_gate=False, seed=0, held=None):
    """chosen, kept, gates; `held`: the choices and kept ones of another run, whose gates are computed here."""
    tokens, experts = scores.shape
    p = oracle.probabilities(scores)
    rows = np.arange(tokens)
    if held is None:
        first = oracle.top_choices(scores, 1)[:, 0]
        ranked = scores + (gumbel(tokens, experts, seed, oracle.GUMBEL_PURPOSE) if second == "sampling" else 0)
        ranked[rows, first] = -np.inf
        chosen = np.stack([first, oracle.top_choices(ranked, 1)[:, 0]], axis=1)
    else:
        chosen, kept = held
    pair = np.take_along_axis(p, chosen, axis=1)

    def divisor(total):
        return total + epsilon if kind == "add" else np.maximum(total, epsilon)

    whole = divisor(pair.sum(axis=1))
    if held is None:
        weight = pair[:, 1] / whole if compared == "share" else pair[:, 1]
        u = oracle.uniforms(tokens, 1, seed, SECOND)[:, 0].astype(np.float64)
        keeps = {"all": True, "sampling": True, "none": False, "random": u * threshold < weight,
                 "threshold": weight > threshold}[second]
        wanted = np.isfinite(np.take_along_axis(scores, chosen, axis=1))
        wanted[:, 1] &= keeps
        order = sorted(rows, key=lambda t: (-pair[t, 0], t)) if by_gate else rows
        kept = place(chosen, wanted, order, experts, capacity)
    if pair_sum == "after_drops":
        whole = divisor((pair * kept).sum(axis=1))
    gates = pair.copy()
    if pair_sum != "none":
        gates[:, 0] /= whole
    if pair_sum in ("before_drops", "after_drops"):
        gates[:, 1] /= whole
    return chosen, kept, np.where(kept, gates, 0)


def mixer_shares(row, epsilon, taken):
    """q of one draw, 0 elsewhere."""
    left = row.copy()
    if taken is not None:
        left[taken] = -np.inf
    top = left.max()
    with np.errstate(invalid="ignore", divide="ignore"):
        far = (top - row) / np.maximum(np.abs(row), top) > 2 * epsilon
    left[far] = -np.inf
    e = np.exp(left - top)
    return e / e.sum()


def sparse_mixer(scores, epsilon, off_peak, seed):
    tokens, experts = scores.shape
    wide = (experts + 3) // 4 * 4
    chosen, gates = np.zeros((tokens, 2), int), np.zeros((tokens, 2))
    whole = oracle.uniforms(tokens, 2, seed, MIDPOINTS) > 0.75
    shares = np.zeros((tokens, 2, experts))
    noise = [gumbel(tokens, experts, seed, DRAWS, turn * wide) for turn in range(2)]
    for t in range(tokens):
        taken = None
        for turn in range(2):
            q = mixer_shares(scores[t], epsilon, taken)
            peak = np.argmax(q)
            taken = np.argmax(np.where(q > 0, scores[t] + noise[turn][t], -np.inf))
            chosen[t, turn], shares[t, turn] = taken, q
            gates[t, turn] = q[taken] * (1 if taken == peak or whole[t, turn] else off_peak)
    return chosen, gates, shares


def noisy_scores(scores, noise_scores, least, seed):
    tokens, experts = scores.shape
    u = oracle.uniforms(tokens, (experts + 3) // 4 * 4, seed, NOISY).astype(np.float64)
    radius, angle = np.sqrt(-2 * np.log(u[:, 0::2])), 2 * math.pi * u[:, 1::2]
    normal = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=2).reshape(tokens, -1)[:, :experts]
    return scores + normal * (np.logaddexp(0, noise_scores) + least)


def load_loss(scores, noise_scores, noisy, k, least):
    """CV^2 of the smooth loads."""
    tokens, experts = scores.shape
    best = -np.sort(-noisy, axis=1)
    load = np.zeros(experts)
    for t in range(tokens):
        for e in range(experts):
            if k == experts:
                load[e] += 1
                continue
            level = best[t, k] if noisy[t, e] >= best[t, k - 1] else best[t, k - 1]
            x = (scores[t, e] - level) / (np.logaddexp(0, noise_scores[t, e]) + least)
            load[e] += 0.5 * math.erfc(-x / math.sqrt(2))
    return load.var() / (load.mean()**2 + 1e-10)


def numeric(f, at, step=1e-5):
    gradient = np.zeros_like(at)
    for i in np.ndindex(at.shape):
        moved = at.copy()
        moved[i] += step
        above = f(moved)
        moved[i] -= 2 * step
        gradient[i] = (above - f(moved)) / (2 * step)
    return gradient


class Routers(Case):

    def run_router(self, router, scores, c=None, **options):
        line = ["--scores", self.save(scores), "--router", router, "--out", "out", *arguments(**options)]
        if c is not None:
            line += ["--gradients", self.save(c, "c.npy")]
        self.run_well(*line)
        return self.fresh_results()

    def fresh_results(self):
        """Those of a folder that is then gone, since files of other routers would stay in it."""
        made = self.results("out")
        shutil.rmtree(self.folder / "last", ignore_errors=True)
        (self.folder / "out").rename(self.folder / "last")
        return made

    def gradient(self, name="d_scores"):
        return np.load(self.folder / f"last/{name}.npy")

    def test_gshard(self):
        numbers = np.random.default_rng(1)
        scores, c = numbers.normal(size=(40, 6)), numbers.normal(size=(40, 6))
        rows = np.arange(40)[:, None]
        for own, told in (({}, {}),
                          (dict(second="all"), dict(second="all", second_threshold=0.5)),
                          (dict(second="none", pair_sum="none"), dict(second="none", pair_sum="none")),
                          (dict(second="threshold", threshold=0.3, pair_sum="after_drops", capacity=9),
                           dict(second="threshold", second_threshold=0.3, pair_sum="after_drops", capacity=9)),
                          (dict(second="random", compared="probability", pair_sum="first_before_drops", seed=3),
                           dict(second="random", second_compared="probability", pair_sum="first_before_drops", seed=3)),
                          (dict(second="sampling", epsilon=0.5, kind="clamp", capacity=8, by_gate=True, seed=7),
                           dict(second="sampling", normalize_epsilon=0.5, epsilon_kind="clamp", capacity=8,
                                drop_order="gate", seed=7))):
            with self.subTest(**told):
                made, summary = self.run_router("gshard", scores, c, z_weight=0.1, **told)
                chosen, kept, gates = gshard(scores, **own)
                np.testing.assert_array_equal(made["experts"], chosen)
                np.testing.assert_array_equal(made["slots"] >= 0, kept)
                np.testing.assert_allclose(made["gates"], gates, rtol=1e-6, atol=1e-12)
                wanted = np.ones_like(kept)
                loss = losses(scores, chosen, wanted, 0.01, 0.1)
                self.assertAlmostEqual(summary["load_balancing_loss"] + summary["z_loss"], loss, places=10)

                def total(at):
                    weights = gshard(at, held=(chosen, kept), **own)[2]
                    return (c[rows, chosen] * weights).sum() + losses(at, chosen, wanted, 0.01, 0.1)

                np.testing.assert_allclose(self.gradient(), numeric(total, scores), atol=1e-8)

    def test_gshard_of_nllb(self):
        scores = np.random.default_rng(2).normal(size=(300, 8))
        made, summary = self.run_router("gshard", scores, preset="nllb_moe")
        chosen, kept, gates = gshard(scores, second="all", compared="probability", pair_sum="after_drops",
                                     epsilon=2.0**-23, kind="clamp", capacity=64)
        np.testing.assert_array_equal(made["slots"] >= 0, kept)
        np.testing.assert_allclose(made["gates"], gates, rtol=1e-6)
        self.assertEqual(summary["capacity"], 64)
        config = dict(model_type="nllb-moe", second_expert_policy="random", expert_capacity=50,
                      normalize_router_prob_before_dropping=True, batch_prioritized_routing=True)
        (self.folder / "config.json").write_text(json.dumps(config))
        made, summary = self.run_router("gshard", scores, config="config.json", seed=5)
        options = {name: summary["options"][name] for name in ("second", "pair_sum", "drop_order", "capacity")}
        self.assertEqual(options, dict(second="random", pair_sum="first_before_drops", drop_order="gate", capacity=50))
        chosen, kept, gates = gshard(scores, compared="probability", pair_sum="first_before_drops", epsilon=2.0**-23,
                                     kind="clamp", capacity=50, by_gate=True, seed=5)
        np.testing.assert_array_equal(made["slots"] >= 0, kept)
        np.testing.assert_allclose(made["gates"], gates, rtol=1e-6)
        # A capacity of null is that of the model's code: 2 ceil(T / E).
        scores = scores[:203] + np.where(np.arange(8) == 3, 1.5, 0)
        config = dict(model_type="nllb-moe", expert_capacity=None)
        (self.folder / "config.json").write_text(json.dumps(config))
        made, summary = self.run_router("gshard", scores, config="config.json")
        self.assertEqual(summary["capacity"], 2 * 26)
        chosen, kept, gates = gshard(scores, second="all", compared="probability", pair_sum="after_drops",
                                     epsilon=2.0**-23, kind="clamp", capacity=2 * 26)
        self.assertFalse(kept.all())
        np.testing.assert_array_equal(made["slots"] >= 0, kept)
        np.testing.assert_allclose(made["gates"], gates, rtol=1e-6)
        self.refuse("the model's router is --router gshard, and not top_k", "--scores", "S.npy", "--router", "top_k",
                    "--preset", "nllb_moe", "--out", "bad")
        self.refuse("the model's router is not --router gshard", "--scores", "S.npy", "--router", "gshard", "--preset",
                    "mixtral", "--out", "bad")

    def test_sparse_mixer(self):
        numbers = np.random.default_rng(3)
        scores, c = numbers.normal(size=(60, 6)), numbers.normal(size=(60, 6))
        for told in (dict(mixer_epsilon=0.4, seed=2), dict(preset="phimoe", seed=4),
                     dict(mixer_epsilon=1e6, off_peak=0.5, capacity=15)):
            with self.subTest(**told):
                made, summary = self.run_router("sparse_mixer", scores, c, z_weight=0.1, **told)
                epsilon = told.get("mixer_epsilon", 0.01)
                off_peak = told.get("off_peak", 0.3333 if "preset" in told else 1 / 3)
                chosen, gates, shares = sparse_mixer(scores, epsilon, off_peak, told.get("seed", 0))
                kept = place(chosen, np.ones_like(chosen, bool), range(60), 6, told.get("capacity"))
                np.testing.assert_array_equal(made["experts"], chosen)
                np.testing.assert_array_equal(made["slots"] >= 0, kept)
                np.testing.assert_allclose(made["gates"], np.where(kept, gates, 0), rtol=1e-6)
                wanted = np.ones_like(kept)
                want = numeric(lambda at: losses(at, chosen, wanted, 0.01, 0.1), scores)
                for t in range(60):
                    for turn in range(2):
                        if kept[t, turn]:
                            e, q = chosen[t, turn], shares[t, turn]
                            want[t] += c[t, e] * q[e] * ((np.arange(6) == e) - q)
                np.testing.assert_allclose(self.gradient(), want, atol=1e-8)

    def test_noisy_top_k(self):
        numbers = np.random.default_rng(4)
        scores, noise, c = (numbers.normal(size=(20, 5)) for _ in range(3))
        self.save(noise, "noise.npy")
        rows = np.arange(20)[:, None]
        for k, told in ((2, dict(load_weight=0.3)), (3, dict(load_weight=0.3, least_deviation=0.2, seed=9)), (1, {}),
                        (2, dict(importance_weight=0.4, load_weight=0.3, capacity=7)), (1, dict(importance_weight=0.4)),
                        (2, dict(importance_weight=0.4, backend="thrust")),
                        (2, dict(score="sigmoid", normalize="sum", importance_weight=0.2))):
            with self.subTest(k=k, **told):
                made, summary = self.run_router("noisy_top_k", scores, c, k=k, noise_scores="noise.npy", **told)
                least, seed = told.get("least_deviation", 0.01), told.get("seed", 0)
                h = noisy_scores(scores, noise, least, seed)
                chosen = oracle.top_choices(h, k)
                np.testing.assert_array_equal(made["experts"], chosen)

                def gates(at):
                    picked = np.take_along_axis(at, chosen, axis=1)
                    v = oracle.sigmoid(picked) if "score" in told else np.exp(picked)
                    return np.where(kept, v / v.sum(axis=1, keepdims=True), 0)

                kept = place(chosen, np.ones_like(chosen, bool), range(20), 5, told.get("capacity"))

                def importance_loss(at):
                    sums = np.zeros(5)
                    np.add.at(sums, chosen, gates(at))
                    return told.get("importance_weight", 0) * sums.var() / (sums.mean()**2 + 1e-10)

                np.testing.assert_allclose(made["gates"], gates(h), rtol=1e-6)
                weight = told.get("load_weight", 0)
                self.assertAlmostEqual(summary["importance_loss"], importance_loss(h), places=9)
                self.assertAlmostEqual(summary["load_loss"], weight * load_loss(scores, noise, h, k, least), places=9)
                wanted = np.ones_like(chosen, bool)

                def total(s, n):
                    at = noisy_scores(s, n, least, seed)
                    return ((c[rows, chosen] * gates(at)).sum() + losses(at, chosen, wanted, 0.01, 0) +
                            importance_loss(at) + weight * load_loss(s, n, at, k, least))

                np.testing.assert_allclose(self.gradient(), numeric(lambda s: total(s, noise), scores), atol=1e-7)
                np.testing.assert_allclose(self.gradient("d_noise_scores"), numeric(lambda n: total(scores, n), noise),
                                           atol=1e-7)
        self.refuse("--router noisy_top_k needs --noise-scores", "--scores", "S.npy", "--router", "noisy_top_k", "--out",
                    "bad")

    def test_sinkhorn(self):
        numbers = np.random.default_rng(5)
        scores = numbers.normal(size=(200, 8)) + 2 * numbers.normal(size=8)
        made, summary = self.run_router("sinkhorn", scores, k=1, score="sigmoid", temperature=0.5, rounds=7, tolerance=0)
        g = np.zeros(8)
        for _ in range(7):
            mass = oracle.probabilities(scores / 0.5 + g).sum(axis=0)
            residual = np.abs(8 * mass / 200 - 1).max()
            g += np.log(200 / 8 / mass)
        np.testing.assert_array_equal(made["experts"], oracle.top_choices(scores + 0.5 * g, 1))
        picked = np.take_along_axis(scores, made["experts"].astype(int), axis=1)
        np.testing.assert_allclose(made["gates"], oracle.sigmoid(picked), rtol=1e-6)
        self.assertEqual(summary["bias_rounds"], 7)
        self.assertAlmostEqual(summary["bias_residual"], residual, places=6)
        _, plain = self.run_router("top_k", scores, k=1)
        self.assertLess(max(summary["load_before"]), max(plain["load_before"]))
        self.refuse("find a bias for the file's scores", "--scores", "S.npy", "--router", "sinkhorn", "--softcap", "2",
                    "--out", "bad")

    def test_quantile(self):
        numbers = np.random.default_rng(6)
        scores = numbers.normal(size=(200, 8)) + 2 * numbers.normal(size=8)
        start = numbers.normal(size=8).astype(np.float32)
        self.save(start, "bias.npy")
        for told in (dict(k=2), dict(k=2, rounds=3, ema=0.25, bias="bias.npy")):
            with self.subTest(**told):
                made, summary = self.run_router("quantile", scores, **told)
                b = start.copy() if "bias" in told else np.zeros(8, np.float32)
                ema = told.get("ema", 0)
                for _ in range(told.get("rounds", 1)):
                    alpha = -np.sort(-(scores + b), axis=1)[:, 2]
                    q = (-np.sort(-(scores - alpha[:, None]), axis=0)[50]).astype(np.float32)
                    moved = ema * b.astype(float) - (1 - ema) * q.astype(float)
                    b = (moved - moved.mean()).astype(np.float32)
                chosen = oracle.top_choices(scores + b, 2)
                np.testing.assert_array_equal(made["experts"], chosen)
                p = np.take_along_axis(oracle.probabilities(scores), chosen, axis=1)
                np.testing.assert_allclose(made["gates"], p, rtol=1e-6)
                self.assertEqual(summary["bias_rounds"], told.get("rounds", 1))
        self.refuse("--router quantile and --mask exclude each other", "--scores", "S.npy", "--router", "quantile",
                    "--mask", self.save(np.ones(200, np.uint8), "mask.npy"), "--out", "bad")

    def test_cosine(self):
        """Without scores, and beside another router."""
        numbers = np.random.default_rng(10)
        x, w, c = numbers.normal(size=(30, 7)), numbers.normal(size=(5, 7)), numbers.normal(size=(30, 5))
        self.save(x, "x.npy")
        self.save(w, "w.npy")
        rows = np.arange(30)[:, None]

        def cosines(x, w, temperature):
            return (x / np.linalg.norm(x, axis=1, keepdims=True)) @ (w / np.linalg.norm(w, axis=1, keepdims=True)).T / temperature

        line = ["--tokens", "x.npy", "--embeddings", "w.npy", "--k", "2", "--gradients", self.save(c, "c.npy"), "--out", "out"]
        for temperature in (0.07, 0.5):
            self.run_well("--router", "cosine", *line, "--temperature", temperature)
            made, summary = self.fresh_results()
            scores = cosines(x, w, temperature)
            chosen = oracle.top_choices(scores, 2)
            np.testing.assert_array_equal(made["experts"], chosen)
            np.testing.assert_allclose(made["gates"], np.take_along_axis(oracle.probabilities(scores), chosen, axis=1), rtol=1e-6)
            self.assertAlmostEqual(summary["total_score"], np.take_along_axis(scores, chosen, axis=1).sum(), places=9)
            wanted = np.ones_like(chosen, bool)

            def total(x, w, temperature):
                s = cosines(x, w, temperature)
                return (c[rows, chosen] * oracle.probabilities(s)[rows, chosen]).sum() + losses(s, chosen, wanted, 0.01, 0)

            np.testing.assert_allclose(self.gradient("d_tokens"), numeric(lambda at: total(at, w, temperature), x), atol=1e-6)
            np.testing.assert_allclose(self.gradient("d_embeddings"), numeric(lambda at: total(x, at, temperature), w), atol=1e-6)
            moved = numeric(lambda at: total(x, w, at[0]), np.array([temperature]))
            self.assertAlmostEqual(summary["d_temperature"], moved[0], places=5)
        self.run_well("--scores", self.save(numbers.normal(size=(30, 5))), "--router", "cosine,top_k", *line)
        self.assertEqual(self.results("out/cosine")[1]["options"]["temperature"], 0.07)
        self.refuse("--router cosine needs --tokens", "--router", "cosine", "--out", "bad")
        self.refuse("--scores is required", "--router", "cosine,switch", *line[:4], "--out", "bad")
        self.refuse("the scores are 3 x 5 for T = 30 tokens and E = 5 embeddings", "--scores", self.save(np.zeros((3, 5))),
                    "--router", "cosine", *line[:4], "--out", "bad")
        self.refuse("x.npy: is 30 x 7; it needs D = 5", "--router", "cosine", "--tokens",
                    self.save(numbers.normal(size=(30, 5)), "narrow.npy"), "--embeddings", "x.npy", "--out", "bad")

    def test_options_that_nothing_uses(self):
        self.save(np.zeros((3, 4)))
        for option, needs in (("--second all", "router gshard"), ("--pair-sum none", "router gshard"),
                              ("--mixer-epsilon 1", "router sparse_mixer"), ("--off-peak 1", "router sparse_mixer"),
                              ("--noise-scores S.npy", "router noisy_top_k"), ("--load-weight 1", "router noisy_top_k"),
                              ("--temperature 2", "router sinkhorn or cosine"), ("--tolerance 1", "router sinkhorn"),
                              ("--rounds 2", "router sinkhorn or quantile"), ("--ema 0.5", "router quantile"),
                              ("--tokens S.npy", "router cosine"), ("--embeddings S.npy", "router cosine")):
            self.refuse(f"is used by nothing chosen: it needs {needs}", "--scores", "S.npy", "--router", "top_k,switch",
                        *option.split(), "--out", "bad")
        for router, option in (("gshard", "--k 2"), ("sparse_mixer", "--scale 2"), ("switch", "--one-each"),
                               ("gshard", "--groups 2 --groups-kept 1"), ("sparse_mixer", "--normalize-epsilon 1")):
            self.refuse("is used by nothing chosen", "--scores", "S.npy", "--router", router, *option.split(), "--out", "bad")

    def test_one_of_each_group(self):
        scores = np.random.default_rng(7).normal(size=(50, 12))
        made, summary = self.run_router("top_k", scores, groups=4, one_each=True)
        want = np.stack([3 * g + scores[:, 3 * g:3 * g + 3].argmax(axis=1) for g in range(4)], axis=1)
        np.testing.assert_array_equal(made["experts"], want)
        np.testing.assert_allclose(made["gates"], np.take_along_axis(oracle.probabilities(scores), want, axis=1), rtol=1e-6)
        self.assertEqual((summary["k"], summary["options"]["balance_count"]), (4, "all"))
        scores = np.random.default_rng(8).normal(size=(50, 64))
        made, summary = self.run_router("top_k", scores, preset="pangu_pro_moe")
        self.assertEqual((summary["k"], summary["options"]["one_each"]), (8, True))
        np.testing.assert_array_equal(made["experts"] // 8, np.tile(np.arange(8), (50, 1)))

    def test_backends_agree(self):
        """Where Thrust is built in."""
        numbers = np.random.default_rng(9)
        scores, c = numbers.normal(size=(40, 6)), numbers.normal(size=(40, 6))
        self.save(scores, "noise.npy")
        for router, told in (("gshard", {}), ("sparse_mixer", dict(mixer_epsilon=0.4)), ("sinkhorn", dict(k=2)),
                             ("noisy_top_k", dict(noise_scores="noise.npy", load_weight=0.1))):
            found = []
            for backend in ("eigen", "thrust"):
                done = self.start("--scores", self.save(scores), "--router", router, "--gradients",
                                  self.save(c, "c.npy"), "--backend", backend, "--out", "out", *arguments(**told))
                if "not built into this program" in done.stderr:
                    return
                self.assertEqual(done.returncode, 0, done.stderr)
                found.append((self.fresh_results()[0]["experts"], self.gradient()))
            np.testing.assert_array_equal(found[0][0], found[1][0])
            np.testing.assert_allclose(found[0][1], found[1][1], atol=1e-12)


if __name__ == "__main__":
    main()
