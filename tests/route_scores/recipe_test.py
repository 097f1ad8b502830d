#!/usr/bin/env python3
"""The parts of router top_k, presets and gradients, against NumPy in double. usage: recipe_test.py PROGRAM"""

import json
import math
import random

import numpy as np

import oracle
from program import Case, arguments, main

DEFAULTS = dict(oracle.DEFAULTS, logit_multiplier=1, softcap=None, score="softmax", bias=None, bias_on="score", groups=1,
                groups_kept=1, group_score="max", group_score_count=None, group_mask="minus_infinity", normalize="none",
                norm_power=1, normalize_epsilon=0, epsilon_kind="add", scale=1, logit_bias=None, expert_scale=None, rowless=0)


def logits_of(scores, o):
    s = scores.astype(np.float64) * o["logit_multiplier"]
    if o["logit_bias"] is not None:
        s = s + o["logit_bias"]
    if o["softcap"] is not None:
        s = np.where(np.isfinite(s), o["softcap"] * np.tanh(s / o["softcap"]), s)
    return s


def values_of(s, score):
    if score == "softmax":
        return oracle.probabilities(s)
    if score == "sigmoid":
        return oracle.sigmoid(s)
    return np.sqrt(np.logaddexp(0, s))


def keys_of(s, v, o):
    """What is compared."""
    bias = 0 if o["bias"] is None else o["bias"]
    grouped = o["groups_kept"] < o["groups"]
    if o["bias"] is None and not grouped:
        return s
    on_logit = o["bias_on"] == "logit" or o["softmax"] == "after"
    keys = np.where(np.isfinite(s), (s if on_logit else v) + bias, -np.inf)
    if not grouped:
        return keys
    parts = keys.reshape(len(keys), o["groups"], -1)
    count = {"max": 1, "top2_sum": 2, "top_n_sum": o["group_score_count"]}[o["group_score"]]
    best = -np.sort(-parts, axis=2)[:, :, :count]
    sums = np.where(np.isfinite(best[:, :, 0]), np.where(np.isfinite(best), best, 0).sum(axis=2), -np.inf)
    ranked = np.argsort(-sums, axis=1, kind="stable")
    keep = np.zeros(sums.shape, bool)
    np.put_along_axis(keep, ranked[:, :o["groups_kept"]], True, axis=1)
    other = 0.0 if o["group_mask"] == "zero" else -np.inf
    return np.where(keep[:, :, None] | ~np.isfinite(parts), parts, other).reshape(keys.shape)


def weights_of(s, v, chosen, o):
    """Gates of chosen experts; `s` and `v` may be of other scores than those that chose."""
    index = chosen.astype(np.int64)
    w = np.take_along_axis(v, index, axis=1)
    epsilon = o["normalize_epsilon"]
    if o["softmax"] == "after":
        w = oracle.probabilities(np.take_along_axis(s, index, axis=1))
    if o["normalize"] == "p_norm":
        d = (w**o["norm_power"]).sum(axis=1, keepdims=True)**(1 / o["norm_power"])
    elif o["normalize"] == "sum" or o["renormalize"]:
        total = w.sum(axis=1, keepdims=True)
        d = total + epsilon if o["epsilon_kind"] == "add" else np.maximum(total, epsilon)
    else:
        d = np.ones((len(w), 1))
    w = np.divide(w, d, out=np.zeros_like(w), where=d > 0) * o["scale"]
    return w if o["expert_scale"] is None else w * o["expert_scale"][index]


def losses_of(s, share, o, live):
    tokens = max(int(live.sum()), 1)
    p = oracle.probabilities(s)[live]
    balance = o["balance_weight"] * len(share) * share @ (p.sum(axis=0)[:len(share)] / tokens)
    return balance, o["z_weight"] * (oracle.log_sums(s[live])**2).sum() / tokens


def route(scores, given, mask=None):
    """A plan as oracle.py has it, and the function whose gradient d_scores is: of scores, for C."""
    o = dict(DEFAULTS, **given)
    scores = scores.astype(np.float64 if scores.dtype == np.float64 else np.float32)
    tokens, experts = scores.shape
    live = np.ones(tokens, bool) if mask is None else mask.astype(bool)
    s = logits_of(scores, o)
    v = values_of(s, o["score"])
    keys = keys_of(s, v, o)
    chosen = oracle.top_choices(keys, o["k"])
    usable = np.isfinite(np.take_along_axis(keys, chosen.astype(np.int64), axis=1)) & live[:, None]
    open_key = np.isfinite(keys)  # what is filled up with has no weight
    gates = np.where(usable, weights_of(np.where(open_key, s, -np.inf), np.where(open_key, v, 0), chosen, o), 0)
    capacity = oracle.capacity_of(o, "top_k", tokens, experts, o["k"])
    real = experts - o["rowless"]
    takes_row = usable & (chosen < real)
    rowless = usable & (chosen >= real)
    placed = oracle.place(chosen, takes_row, gates, real, capacity, o["drop_order"])
    every = o["balance_count"] != "first"
    counted = o["k"] if every else 1
    divided = o["k"] if o["balance_count"] == "all" else 1
    share = np.bincount(chosen[:, :counted][takes_row[:, :counted]], minlength=real) / max(int(live.sum()) * divided, 1)
    balance, z = losses_of(s, share, o, live)
    made = dict(oracle.finished(scores, placed, gates, capacity), load_balancing_loss=balance, z_loss=z,
                rowless=int(rowless.sum()))
    made["gates"] = np.where(rowless, gates, made["gates"])

    def total(at, c):
        """With choices fixed."""
        s = logits_of(at, o)
        v = values_of(s, o["score"])
        w = weights_of(np.where(open_key, s, -np.inf), np.where(open_key, v, 0), chosen, o)
        c = np.take_along_axis(c, chosen.astype(np.int64), axis=1)
        return np.where((placed["slots"] >= 0) | rowless, c * w, 0).sum() + sum(losses_of(s, share, o, live))

    return made, total


def is_clear(scores, given):
    """No two keys so near, at the edge of a choice, that float32 may take the other."""
    o = dict(DEFAULTS, **given)
    s = logits_of(scores.astype(np.float32), o)
    keys = -np.sort(-keys_of(s, values_of(s, o["score"]), o), axis=1)
    with np.errstate(invalid="ignore"):  # forbidden ones are -inf
        steps = np.abs(np.diff(keys[:, :o["k"] + 1], axis=1))
    steps = steps[np.isfinite(steps)]
    return steps.size == 0 or steps.min() > 2e-5


def random_options(choose, numbers, experts):
    o = dict(k=choose.randint(1, min(experts, 5)), score=choose.choice(["softmax", "sigmoid", "sqrt_softplus"]))
    if choose.random() < 0.3:
        o.update(softmax="after", score="softmax")
    after = o.get("softmax") == "after"
    for name, value in (("logit_multiplier", 0.5), ("softcap", 2.0), ("scale", choose.choice([2.5, -1.0]))):
        if choose.random() < 0.4:
            o[name] = value
    for name in ("bias", "logit_bias", "expert_scale"):
        if choose.random() < 0.4:
            o[name] = numbers.normal(size=experts).astype(np.float32)
    if experts % 4 == 0 and choose.random() < 0.5:
        kept = choose.randint(-(-o["k"] * 4 // experts), 4)
        o.update(groups=4, groups_kept=kept)
        o["group_score"] = choose.choice(["max", "top2_sum", "top_n_sum"])
        if o["group_score"] == "top_n_sum":
            o["group_score_count"] = 3
        o["group_mask"] = choose.choice(["minus_infinity", "zero"])
    if "bias" in o and not after and choose.random() < 0.5:
        o["bias_on"] = choose.choice(["score", "logit"])
    rule = choose.choice(["none", "sum", "renormalize", "epsilon", "clamp"] + ([] if after else ["p_norm"]))
    if rule == "renormalize":
        o["renormalize"] = True
    elif rule == "p_norm":
        o.update(normalize="p_norm", norm_power=choose.choice([1, 2, 3.5]))
    elif rule in ("epsilon", "clamp"):
        o.update(normalize="sum", normalize_epsilon=choose.choice([0.25, 1e-20]))
        if rule == "clamp":
            o["epsilon_kind"] = "clamp"
    elif rule == "sum":
        o["normalize"] = "sum"
    o["balance_count"] = choose.choice(["first", "all", "all_undivided"])
    if choose.random() < 0.5:
        o["capacity_factor"] = choose.choice([0.5, 1.0])
    if choose.random() < 0.5:
        o["z_weight"] = 0.01
    if experts >= 3 and choose.random() < 0.4:
        o["rowless"] = choose.randint(1, experts - 1)
    return o


class Recipe(Case):

    def line_of(self, options):
        """The options, with arrays as files."""
        as_given = {}
        for name, value in options.items():
            as_given[name] = self.save(value, f"{name}.npy") if isinstance(value, np.ndarray) else value
        return arguments(**as_given)

    def run_case(self, scores, options, c=None, mask=None, more=()):
        line = ["--scores", self.save(scores), "--router", "top_k", "--out", "out", *self.line_of(options), *more]
        if c is not None:
            line += ["--gradients", self.save(c, "c.npy")]
        if mask is not None:
            line += ["--mask", self.save(mask, "mask.npy")]
        self.run_well(*line)

    def test_random_options(self):
        done = 0
        for case in range(260):
            choose, numbers = random.Random(case), np.random.default_rng(case)
            tokens, experts = choose.choice([1, 7, 40]), choose.choice([1, 3, 8, 16])
            options = random_options(choose, numbers, experts)
            scores = numbers.normal(size=(tokens, experts)).astype(choose.choice([np.float32, np.float64]))
            if options.get("capacity_factor") and choose.random() < 0.5:
                scores[numbers.random(scores.shape) < 0.2] = -np.inf
            if not is_clear(scores, options):
                continue
            done += 1
            mask = (numbers.random(tokens) < 0.8).astype(np.uint8) if choose.random() < 0.3 else None
            c = np.round(numbers.normal(size=scores.shape) * 4) / 4
            with self.subTest(case=case, shape=scores.shape, dtype=str(scores.dtype), **options):
                self.run_case(scores, options, c, mask)
                expected, total = route(scores, options, mask)
                self.check_plan(expected, mask)
                self.check_gradient(scores, total, c)
        self.assertGreater(done, 200)

    def check_plan(self, expected, mask):
        made, summary = self.results("out")
        live = np.ones(summary["tokens"], bool) if mask is None else mask.astype(bool)
        kept = expected["slots"] >= 0
        for name in ("experts", "slots"):  # forbidden choices may be any forbidden expert
            np.testing.assert_array_equal(made[name][kept], expected[name][kept], name)
        self.assertTrue((made["slots"][~kept] == -1).all())
        self.assertTrue((made["experts"][~live] == -1).all())
        for name in ("offsets", "order"):
            np.testing.assert_array_equal(made[name], expected[name], name)
        np.testing.assert_allclose(made["gates"], expected["gates"], rtol=6e-6, atol=1e-30)
        self.assertEqual(summary["load_before"], expected["load_before"].tolist())
        named = (made["experts"] >= 0) & (made["experts"] < summary["experts"])
        self.assertEqual(summary["dropped"], int(named.sum()) - summary["kept"])
        self.assertEqual(int((made["experts"] >= 0).sum()), int(live.sum()) * made["experts"].shape[1])
        self.assertEqual(summary.get("rowless", 0), expected["rowless"])
        for key in ("load_balancing_loss", "z_loss"):
            np.testing.assert_allclose(summary[key], expected[key], rtol=2e-5, atol=1e-9, err_msg=key)

    def check_gradient(self, scores, total, c):
        found = np.load(self.folder / "out/d_scores.npy")
        self.assertEqual((found.dtype, found.shape), (scores.dtype, scores.shape))
        at = scores.astype(np.float64)
        numeric = np.zeros(at.shape)
        for i in zip(*np.nonzero(np.isfinite(at))):
            step = np.zeros(at.shape)
            step[i] = 1e-5
            numeric[i] = (total(at + step, c) - total(at - step, c)) / 2e-5
        size = max(1, np.abs(numeric).max(initial=0))
        np.testing.assert_allclose(found, numeric, rtol=0, atol=(3e-6 if scores.dtype == np.float32 else 2e-9) * size)

    def test_rowless(self):
        """Worked: columns 2 and 3 are identity experts; probabilities are eighths."""
        two, four = math.log(2), math.log(4)
        self.save(np.array([[0, two, four, 0], [four, 0, two, 0], [two, 0, 0, four], [four, two, 0, 0]]))
        self.run_well("--scores", "S.npy", "--router", "top_k", "--rowless", "2", "--capacity", "1", "--out", "out")
        made, summary = self.results("out")
        np.testing.assert_array_equal(made["experts"], [[2, 1], [0, 2], [3, 0], [0, 1]])
        np.testing.assert_array_equal(made["slots"], [[-1, 0], [0, -1], [-1, -1], [-1, -1]])
        np.testing.assert_allclose(made["gates"], [[0.5, 0.25], [0.5, 0.25], [0.5, 0], [0, 0]], rtol=1e-6)
        self.assertEqual((summary["experts"], summary["kept"], summary["dropped"], summary["rowless"]), (2, 2, 3, 3))
        self.assertEqual((summary["load_before"], summary["load_after"]), ([3, 2], [1, 1]))
        # One choice divided by itself; masked tokens and forbidden choices have none.
        scores = np.full((3, 3), -np.inf)
        scores[:, 2] = 0
        scores[2, 0] = 1
        self.save(scores)
        self.save(np.array([1, 0, 1], np.uint8), "mask.npy")
        self.run_well("--scores", "S.npy", "--router", "top_k", "--k", "1", "--normalize", "sum", "--scale", "3", "--rowless",
                      "1", "--mask", "mask.npy", "--out", "one")
        made, summary = self.results("one")
        np.testing.assert_array_equal(made["experts"], [[2], [-1], [0]])
        np.testing.assert_array_equal(made["gates"], [[3], [0], [3]])
        self.assertEqual((summary["kept"], summary["dropped"], summary["rowless"]), (1, 0, 1))
        self.refuse("at least one expert must have rows", "--scores", "S.npy", "--router", "top_k", "--rowless", "3", "--out",
                    "no")
        self.refuse("--rowless 1 is used by nothing chosen: it needs router top_k", "--scores", "S.npy", "--router", "switch",
                    "--rowless", "1", "--out", "no")

    def test_softmax_after_of_scores_far_below(self):
        """A bias has experts chosen whose exponentials, beside the row's highest, are 0: weights are a softmax over the chosen."""
        numbers = np.random.default_rng(11)
        low = np.arange(8) >= 3
        bias = np.where(low, 2048, 0).astype(np.float32)  # keys are exact
        for dtype in (np.float32, np.float64):
            for distance in (60, 90, 200, 2000):
                scores = (np.round(numbers.normal(size=(20, 8)) * 64) / 64 - distance * low).astype(dtype)
                c = np.round(numbers.normal(size=(20, 8)) * 4) / 4
                for options in (dict(k=3, softmax="after", bias=bias, scale=2, capacity=6),
                                dict(k=2, softmax="after", bias=bias, groups=8, groups_kept=4)):
                    with self.subTest(dtype=dtype.__name__, distance=distance):
                        self.run_case(scores, options, c)
                        expected, total = route(scores, options)
                        self.assertTrue((expected["experts"] >= 3).all())
                        made, _ = self.results("out")
                        np.testing.assert_array_equal(made["slots"], expected["slots"])
                        np.testing.assert_allclose(made["gates"], expected["gates"], rtol=2e-6)
                        if distance < 500:  # beyond, scores are too coarse for differences
                            self.check_gradient(scores, total, c)
                        # Without a loss it is that of scores side by side.
                        self.run_case(scores, dict(options, balance_weight=0), c)
                        near = (scores + distance * low).astype(dtype)
                        _, total = route(near, dict(options, balance_weight=0))
                        self.check_gradient(near, total, c)
                ids = np.argsort(numbers.random((20, 5)), axis=1)[:, :3] + 3
                self.save(ids, "ids.npy")
                self.run_well("--scores", "S.npy", "--router", "replay", "--choices", "ids.npy", "--softmax", "after", "--out",
                              "replay")
                np.testing.assert_allclose(self.results("replay")[0]["gates"],
                                           oracle.probabilities(np.take_along_axis(scores.astype(float), ids, axis=1)), rtol=2e-6)

    def test_drop_order_by_negative_gates(self):
        """By their values: what a negative scale turns around."""
        scores = np.random.default_rng(12).normal(size=(40, 4))
        for backend in ("eigen", "thrust"):
            self.run_case(scores, dict(scale=-2, drop_order="gate", capacity=8, backend=backend))
            expected, _ = route(scores, dict(scale=-2, drop_order="gate", capacity=8))
            made, _ = self.results("out")
            np.testing.assert_array_equal(made["slots"], expected["slots"])
            self.assertLess(made["gates"].min(), -0.5)

    def test_gradients_of_other_routers(self):
        numbers = np.random.default_rng(1)
        scores, c = numbers.normal(size=(30, 5)), np.round(numbers.normal(size=(30, 5)) * 4) / 4
        options = dict(capacity_factor=0.8, z_weight=0.1)
        self.run_well("--scores", self.save(scores), "--router", "switch,base,greedy,top_k", "--k", "1", "--gradients",
                      self.save(c, "c.npy"), "--out", "out", *arguments(**options))
        _, total = route(scores, dict(options, k=1))
        for router in ("switch", "top_k"):
            made, _ = self.results(f"out/{router}")
            numeric = np.array([[(total(scores + d, c) - total(scores - d, c)) / 2e-5 for d in
                                 (1e-5 * np.outer(np.arange(30) == t, np.arange(5) == e) for e in range(5))]
                                for t in range(30)])
            np.testing.assert_allclose(np.load(self.folder / f"out/{router}/d_scores.npy"), numeric, rtol=0, atol=1e-9)
        self.results("out/greedy")
        made, _ = self.results("out/base")
        chosen = made["experts"][:, 0]
        gate = oracle.sigmoid(scores[np.arange(30), chosen])
        expected = np.zeros((30, 5))
        expected[np.arange(30), chosen] = c[np.arange(30), chosen] * gate * (1 - gate)
        np.testing.assert_allclose(np.load(self.folder / "out/base/d_scores.npy"), expected, atol=1e-12)

    def test_backends_and_threads(self):
        numbers = np.random.default_rng(2)
        scores = numbers.normal(size=(300, 16)).astype(np.float32)
        options = dict(k=4, score="sigmoid", bias=numbers.normal(size=16).astype(np.float32), groups=4, groups_kept=2,
                       group_score="top2_sum", normalize="p_norm", norm_power=2, scale=2.5, softcap=2.0,
                       expert_scale=numbers.normal(size=16).astype(np.float32), capacity_factor=0.9)
        c = numbers.normal(size=scores.shape)
        mask = (numbers.random(300) < 0.9)
        self.run_case(scores, options, c, mask)
        want, _ = self.results("out")
        d_want = np.load(self.folder / "out/d_scores.npy")
        runs = [["--policy", "par", "--threads", "3"]]
        if "not built into" not in self.start("--scores", "S.npy", "--router", "greedy", "--backend", "thrust", "--out",
                                              "probe").stderr:
            runs += [["--backend", "thrust"], ["--backend", "thrust", "--policy", "par", "--threads", "2"]]
        for run in runs:
            with self.subTest(run=run):
                self.run_case(scores, options, c, mask, run)
                made, _ = self.results("out")
                for name in ("experts", "slots", "offsets", "order"):
                    np.testing.assert_array_equal(made[name], want[name], name)
                np.testing.assert_allclose(made["gates"], want["gates"], rtol=2e-6)
                np.testing.assert_allclose(np.load(self.folder / "out/d_scores.npy"), d_want, atol=3e-6)

    def test_presets(self):
        """What a preset says, where no option says otherwise."""
        self.save(np.zeros((3, 64)))
        for preset, given, told in (
                ("mixtral", {}, dict(k=2, normalize="sum", score="softmax", scale=1)),
                ("deepseek_v3", {}, dict(k=8, score="sigmoid", groups=8, groups_kept=4, group_score_count=2,
                                         group_mask="minus_infinity", normalize="sum", normalize_epsilon=1e-20, scale=2.5)),
                ("deepseek_v3", dict(k=4, scale=1, normalize="none"), dict(k=4, groups=8, normalize="none", scale=1)),
                ("laguna", dict(softcap=30), dict(k=8, score="sigmoid", softcap=30, normalize="sum", normalize_epsilon=0)),
                ("muse_spark", {}, dict(logit_multiplier=0.1767766952966369, normalize_epsilon=1e-15)),
                ("ernie4_5_moe", dict(normalize_epsilon=0.5), dict(k=6, epsilon_kind="clamp", normalize_epsilon=0.5)),
                ("llama4", {}, dict(k=1, score="sigmoid", normalize="none")),
                ("gpt_oss", {}, dict(k=4, score="softmax", softmax="after", bias_on="logit", normalize="none")),
                ("gpt_oss", dict(softmax="before"), dict(softmax="before", normalize="none")),
                ("cohere2_moe", dict(score="sigmoid"), dict(score="sigmoid", softmax="before", normalize="none")),
                ("llama4", {}, dict(k=1, score="sigmoid", bias_on="logit")),
                ("aria", {}, dict(k=2, softmax="after")),
                ("deepseek_v3", dict(groups=4, groups_kept=2), dict(groups=4, groups_kept=2, group_score_count=2)),
                ("deepseek_v3", dict(groups=16), dict(groups=16, groups_kept=4)),
                ("deepseek_v3", dict(groups=1), dict(groups=1, groups_kept=1)),
                ("mistral4", dict(groups=8, groups_kept=4), dict(group_score_count=2, group_mask="zero")),
                ("axk2", dict(groups=8, groups_kept=4, group_score="max", group_mask="minus_infinity"),
                 dict(group_score_count=1, group_mask="minus_infinity")),
                ("dbrx", dict(k=4, norm_power=2), dict(k=4, normalize="p_norm", norm_power=2)),
                ("kolibri1", {}, dict(k=6, bias_on="logit", score="sigmoid")),
                ("glm4_moe_lite", {}, dict(k=4, scale=1.8, groups=1)),
                ("jetmoe", {}, dict(k=2, softmax="after")),
                ("longcat_flash", dict(rowless=16), dict(k=12, scale=6, normalize="none", rowless=16)),
                ("longcat_flash", {}, dict(rowless=0)),
                ("zaya", {}, dict(k=1, normalize="none", score="softmax", rowless=1)),
                ("inkling", {}, dict(k=6, score="sigmoid", normalize="sum", normalize_epsilon=0, scale=8, rowless=2)),
                ("inkling", dict(k=3, scale=2), dict(k=3, scale=2, rowless=2)),
                ("olmoe", dict(renormalize=True), dict(k=8, normalize="sum"))):
            with self.subTest(preset=preset, **given):
                self.run_well("--scores", "S.npy", "--router", "top_k", "--preset", preset, "--out", "out", *arguments(**given))
                options = self.results("out")[1]["options"]
                self.assertEqual({name: options[name] for name in told}, told)
                self.assertEqual(options["preset"], preset)

    def test_inkling(self):
        """The last two columns are in every token's sum, and in no choice: as its own code has it."""
        numbers = np.random.default_rng(4)
        scores, bias, c = (numbers.normal(size=shape) for shape in ((40, 14), (12,), (40, 14)))
        scores[5, 3], scores[7, :12] = -np.inf, -np.inf
        self.save(bias.astype(np.float32), "bias.npy")
        line = ["--scores", self.save(scores), "--preset", "inkling", "--k", "3", "--bias", "bias.npy", "--out", "out"]
        options = dict(scale=2, capacity=20, z_weight=0.1, gradients=self.save(c, "c.npy"), balance_count="all",
                       losses="balance,importance")
        self.run_well(*line, "--router", "top_k", *arguments(**options))
        made = {name: np.load(self.folder / f"out/{name}.npy") for name in ("experts", "slots", "gates", "d_scores")}
        summary = json.loads((self.folder / "out/summary.json").read_text())

        def sigmoid(x):
            return np.where(np.isfinite(x), 1 / (1 + np.exp(-np.where(np.isfinite(x), x, 0))), 0)

        key = np.where(np.isfinite(scores[:, :12]), sigmoid(scores[:, :12]) + bias.astype(np.float32), -np.inf)
        own = np.argsort(-key, axis=1, kind="stable")[:, :3]
        chosen = np.hstack([own, np.tile([12, 13], (40, 1))])
        rows = np.arange(40)[:, None]
        allowed = np.isfinite(scores[rows, chosen])
        taken, slots = np.zeros(12, int), np.full(chosen.shape, -1)
        for i in range(3):
            for t in range(40):
                if allowed[t, i] and taken[own[t, i]] < 20:
                    slots[t, i] = taken[own[t, i]]
                    taken[own[t, i]] += 1
        weighed = allowed & ((slots >= 0) | (chosen >= 12))

        def gates_of(at):
            values = np.where(allowed, sigmoid(at)[rows, chosen], 0)
            return np.where(weighed, 2 * values / values.sum(axis=1, keepdims=True), 0)

        counts = np.bincount(own[allowed[:, :3]], minlength=12)
        balance = lambda at: 12 * (counts / (40 * 3) * oracle.probabilities(at)[:, :12].mean(axis=0)).sum()  # noqa: E731
        z = lambda at: (np.log(np.exp(at).sum(axis=1)) ** 2).mean()  # noqa: E731
        np.testing.assert_array_equal(made["experts"], chosen)
        np.testing.assert_array_equal(made["slots"], slots)
        np.testing.assert_allclose(made["gates"], gates_of(scores), rtol=1e-6)
        self.assertEqual((summary["experts"], summary["k"], summary["rowless"], summary["kept"]), (12, 5, 80, taken.sum()))
        self.assertTrue(summary["dropped"] > 0)
        self.assertAlmostEqual(summary["losses"]["balance"], balance(scores), places=9)
        self.assertAlmostEqual(summary["load_balancing_loss"], 0.01 * balance(scores), places=9)

        def total(at, c):
            return (c[rows, chosen] * gates_of(at)).sum() + 0.01 * balance(at) + 0.1 * z(at)

        self.check_gradient(scores, total, c)
        self.save(np.zeros(14, np.float32), "bias.npy")
        self.refuse("12", *line, "--router", "top_k")
        self.save(np.zeros(12, np.float32), "bias.npy")
        self.refuse("--k 13 must lie in 1..E = 12", *line[:4], "--router", "top_k", "--k", "13", "--out", "no")
        self.refuse("the model's shared experts are of router top_k, and not of random", *line[:4], "--router", "random",
                    "--out", "no")
        # By the logits, identity experts of one's own stand where the model's shared ones do.
        self.run_well(*line[:4], "--k", "3", "--rowless", "1", "--router", "top_k", "--out", "identity")
        self.assertEqual(json.loads((self.folder / "identity/summary.json").read_text())["experts"], 13)

    def test_config(self):
        self.save(np.zeros((3, 64)))
        for config, told in (
                (dict(model_type="deepseek_v3", n_group=4, topk_group=2, num_experts_per_tok=6, routed_scaling_factor=3,
                      norm_topk_prob=False, scoring_func="sigmoid", n_routed_experts=999),
                 dict(k=6, groups=4, groups_kept=2, scale=3, normalize="none", score="sigmoid")),
                (dict(model_type="deepseek_v2", topk_method="greedy", n_group=8, topk_group=3), dict(groups=1)),
                (dict(model_type="kimi_linear", num_experts_per_token=4, moe_renormalize=False),
                 dict(k=4, normalize="none", scale=2.446)),
                (dict(model_type="axk2", n_group=None), dict(groups=1)),
                (dict(model_type="longcat_flash", zero_expert_num=16, moe_topk=5), dict(k=5, rowless=16)),
                (dict(model_type="longcat_flash", zero_expert_num=None), dict(rowless=0)),
                (dict(model_type="inkling", text_config=dict(model_type="inkling_text", n_shared_experts=3, route_scale=4.0)),
                 dict(k=6, scale=4, rowless=3)),
                (dict(model_type="deepseek_v2", n_group=8, topk_group=3), dict(groups=1)),
                (dict(model_type="deepseek_v2", topk_method="group_limited_greedy", n_group=8, topk_group=3),
                 dict(groups=8, groups_kept=3, group_score_count=1, group_mask="zero")),
                (dict(model_type="hunyuan_v1_moe", moe_topk=[3, 3, 3]), dict(k=3)),
                (dict(model_type="mixtral", num_experts_per_tok=3.0), dict(k=3)),
                (dict(model_type="step3p7", text_config=dict(model_type="step3p5", moe_top_k=4, moe_router_scaling_factor=3.0)),
                 dict(k=4, scale=3)),
                (dict(model_type="llama4", text_config=dict(num_experts_per_tok=3)), dict(k=3)),
                (dict(model_type="llama4", text_config=dict(model_type="unheard_of", num_experts_per_tok=3)), dict(k=3)),
                (dict(model_type="dbrx", ffn_config=dict(moe_top_k=4, moe_normalize_expert_weights=None)),
                 dict(k=4, normalize="none")),
                (dict(model_type="dbrx", ffn_config=dict(moe_top_k=4, moe_normalize_expert_weights=2)),
                 dict(k=4, normalize="p_norm", norm_power=2)),
                (dict(model_type="llama4", text_config=dict(model_type="llama4_text", num_experts_per_tok=2)), dict(k=2)),
                (dict(model_type="glm4v_moe", text_config=dict(model_type="glm4v_moe_text", num_experts_per_tok=3)),
                 dict(k=3, score="sigmoid")),
                (dict(model_type="deepseek_v4", scoring_func="sigmoid"), dict(k=6, score="sigmoid", scale=1.5)),
                (dict(model_type="cohere2_moe", expert_selection_fn="sigmoid", norm_topk_prob=False),
                 dict(score="sigmoid", normalize="none"))):
            with self.subTest(**config):
                (self.folder / "config.json").write_text(json.dumps(config))
                self.run_well("--scores", "S.npy", "--router", "top_k", "--config", "config.json", "--out", "out")
                options = self.results("out")[1]["options"]
                self.assertEqual({name: options[name] for name in told}, told)

    def test_given_choices(self):
        """Top-k's own experts, replayed, have its plan; others their own gates."""
        numbers = np.random.default_rng(5)
        scores, c = numbers.normal(size=(60, 8)), numbers.normal(size=(60, 8))
        options = dict(score="sigmoid", normalize="sum", scale=2.5, capacity_factor=0.9, balance_count="all")
        self.run_well("--scores", self.save(scores), "--router", "top_k", "--k", "3", "--gradients", self.save(c, "c.npy"),
                      "--out", "top_k", *arguments(**options))
        want, told = self.results("top_k")
        self.save(want["experts"], "ids.npy")
        line = ["--scores", "S.npy", "--gradients", "c.npy", *arguments(**options)]
        self.run_well(*line, "--router", "replay", "--choices", "ids.npy", "--out", "replay")
        made, tells = self.results("replay")
        for name in ("experts", "slots", "offsets", "order"):
            np.testing.assert_array_equal(made[name], want[name])
        np.testing.assert_allclose(made["gates"], want["gates"], rtol=1e-6)
        np.testing.assert_allclose(np.load(self.folder / "replay/d_scores.npy"), np.load(self.folder / "top_k/d_scores.npy"),
                                   atol=1e-12)
        self.assertEqual((tells["k"], tells["load_balancing_loss"]), (3, told["load_balancing_loss"]))

        table = np.stack([(np.arange(5) * 3 + j) % 8 for j in range(2)], axis=1)
        tokens = numbers.integers(-1, 6, size=60)
        self.save(table, "table.npy")
        self.save(tokens, "tokens.npy")
        self.run_well(*line, "--router", "hash,random,round_robin", "--token-ids", "tokens.npy", "--table", "table.npy",
                      "--k", "3", "--seed", "4", "--out", "others")
        made, _ = self.results("others/hash")
        known = (tokens >= 0) & (tokens < 5)
        np.testing.assert_array_equal(made["experts"], np.where(known[:, None], table[np.clip(tokens, 0, 4)], -1))
        made, told = self.results("others/round_robin")
        np.testing.assert_array_equal(made["experts"], (np.arange(60)[:, None] * 3 + np.arange(3)) % 8)
        self.assertLessEqual(max(told["load_before"]) - min(told["load_before"]), 1)
        w = oracle.sigmoid(np.take_along_axis(scores, made["experts"].astype(int), axis=1))
        w = 2.5 * w / w.sum(axis=1, keepdims=True)
        np.testing.assert_allclose(made["gates"], np.where(made["slots"] >= 0, w, 0), rtol=1e-6)
        drawn, _ = self.results("others/random")
        self.assertTrue(all(len(set(row)) == 3 for row in drawn["experts"].tolist()))

    def test_presets_choose_by_their_own_keys(self):
        scores = np.array([[3, 2.9, 0, -1]])
        bias = np.array([0, 0, .5, 0], np.float32)
        for preset in ("gpt_oss", "aria", "llama4"):
            self.run_case(scores, dict(preset=preset, k=2, bias=bias))
            self.assertEqual(self.results("out")[0]["experts"].tolist(), [[0, 1]], preset)
        self.run_case(scores, dict(preset="mixtral", k=2, bias=bias))
        self.assertEqual(self.results("out")[0]["experts"].tolist(), [[2, 0]])

    def test_tokens_without_a_choice(self):
        """A token without an id is padding: losses are those of the others."""
        numbers = np.random.default_rng(7)
        scores, c = numbers.normal(size=(6, 4)), numbers.normal(size=(6, 4))
        ids = np.array([[-1, -1], [1, 0], [-1, 9], [9, -2], [3, -1], [0, 2]])
        mask = np.array([0, 1, 0, 0, 1, 1], np.uint8)
        line = ["--scores", self.save(scores), "--router", "replay", "--z-weight", "1", "--balance-weight", "1", "--gradients",
                self.save(c, "c.npy"), "--choices"]
        self.run_well(*line, self.save(ids, "ids.npy"), "--out", "bare")
        self.run_well(*line, "ids.npy", "--mask", self.save(mask, "mask.npy"), "--out", "masked")
        bare, told = self.results("bare")
        masked, tells = self.results("masked")
        for name in bare:
            np.testing.assert_array_equal(bare[name], masked[name], name)
        for key in ("load_balancing_loss", "z_loss", "kept", "dropped"):
            self.assertEqual(told[key], tells[key], key)
        self.assertEqual((told["kept"], told["dropped"]), (5, 0))
        self.assertEqual(bare["experts"][0].tolist() + bare["experts"][2].tolist() + bare["experts"][3].tolist(), [-1] * 6)
        np.testing.assert_array_equal(np.load(self.folder / "bare/d_scores.npy"), np.load(self.folder / "masked/d_scores.npy"))
        live = mask.astype(bool)
        p = oracle.probabilities(scores[live])
        share = np.bincount([1, 3, 0], minlength=4) / 3
        self.assertAlmostEqual(told["load_balancing_loss"], 4 * share @ p.mean(axis=0), places=12)
        self.assertAlmostEqual(told["z_loss"], (oracle.log_sums(scores[live])**2).mean(), places=12)

    def test_ids_of_none_keep_their_places(self):
        """Not the last ones alone: weights are those of the others, and first choices those that are first."""
        numbers = np.random.default_rng(9)
        scores, c = numbers.normal(size=(60, 7)), numbers.normal(size=(60, 7))
        ids = np.argsort(numbers.normal(size=(60, 7)), axis=1)[:, :3].astype(np.int64)
        ids[numbers.random(ids.shape) < 0.4] = -1
        self.assertTrue(((ids[:, 0] < 0) & (ids.max(axis=1) >= 0)).any() and (ids.max(axis=1) < 0).any())
        self.run_well("--scores", self.save(scores), "--router", "replay", "--choices", self.save(ids, "ids.npy"), "--score",
                      "sigmoid", "--renormalize", "--gradients", self.save(c, "c.npy"), "--balance-weight", "1", "--capacity",
                      "14", "--out", "out")
        made, summary = self.results("out")
        np.testing.assert_array_equal(made["experts"], ids)
        taken, slots = np.zeros(7, int), np.full(ids.shape, -1)
        for i in range(3):
            for t in range(60):
                if ids[t, i] >= 0 and taken[ids[t, i]] < 14:
                    slots[t, i] = taken[ids[t, i]]
                    taken[ids[t, i]] += 1
        np.testing.assert_array_equal(made["slots"], slots)
        live = ids.max(axis=1) >= 0
        share = np.bincount(ids[ids[:, 0] >= 0, 0], minlength=7) / live.sum()

        def gates(at):
            v = np.where(ids >= 0, oracle.sigmoid(np.take_along_axis(at, np.maximum(ids, 0), axis=1)), 0)
            total = v.sum(axis=1, keepdims=True)
            return np.where(slots >= 0, v / np.where(total > 0, total, 1), 0)

        def total(at, c):
            return ((np.take_along_axis(c, np.maximum(ids, 0), axis=1) * gates(at)).sum() +
                    7 * share @ oracle.probabilities(at)[live].mean(axis=0))

        np.testing.assert_allclose(made["gates"], gates(scores), rtol=1e-6)
        self.assertAlmostEqual(summary["load_balancing_loss"], total(scores, 0 * c), places=9)
        self.assertEqual((summary["kept"], summary["dropped"]), (taken.sum(), (ids >= 0).sum() - taken.sum()))
        self.check_gradient(scores, total, c)

    def test_undivided_count_of_given_choices(self):
        numbers = np.random.default_rng(8)
        self.save(numbers.normal(size=(20, 8)))
        self.save(np.argsort(numbers.normal(size=(20, 8)), axis=1)[:, :3], "ids.npy")
        losses = []
        for count in ("all", "all_undivided"):
            self.run_well("--scores", "S.npy", "--router", "replay", "--choices", "ids.npy", "--balance-count", count, "--out",
                          "out")
            losses.append(self.results("out")[1]["load_balancing_loss"])
        self.assertAlmostEqual(losses[1] / losses[0], 3, places=10)

    def test_one_choice_normalised(self):
        """Its gate is the scale, its gradient that of the losses alone."""
        numbers = np.random.default_rng(4)
        scores, c = numbers.normal(size=(20, 4)), numbers.normal(size=(20, 4))
        own = numbers.normal(size=4).astype(np.float32)
        for options in (dict(normalize="sum"), dict(softmax="after"), dict(normalize="p_norm", norm_power=3),
                        dict(renormalize=True, score="sigmoid")):
            options.update(k=1, scale=2.5, expert_scale=own)
            self.run_case(scores, options, c)
            made, _ = self.results("out")
            np.testing.assert_allclose(made["gates"], 2.5 * own[made["experts"]], rtol=1e-6)
            _, total = route(scores, options)
            self.check_gradient(scores, total, c)
        self.refuse("--drop-order gate with --expert-scale", "--scores", "S.npy", "--router", "top_k", "--k", "1",
                    "--renormalize", "--expert-scale", "expert_scale.npy", "--drop-order", "gate", "--out", "bad")

    def test_forbidden_stays_forbidden(self):
        scores = np.array([[-np.inf, 3.0, 1.0, -np.inf]])
        bias = np.array([9, 0, 0, 9], np.float32)
        self.run_case(scores, dict(k=3, score="sigmoid", bias=bias, softcap=1.5, capacity=9), np.ones((1, 4)))
        made, summary = self.results("out")
        self.assertEqual(made["experts"][0, :2].tolist(), [1, 2])
        self.assertEqual((made["slots"][0, 2], made["gates"][0, 2]), (-1, 0))
        d = np.load(self.folder / "out/d_scores.npy")
        self.assertEqual((d[0, 0], d[0, 3]), (0, 0))
        self.assertTrue(math.isfinite(summary["load_balancing_loss"]))


if __name__ == "__main__":
    main()
