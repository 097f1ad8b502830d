"""The losses of route_scores against NumPy in double: scopes, probabilities, counts, masks, values without weights, gradients."""

import itertools

import numpy as np

import oracle
from program import Case, arguments, main

LOSSES = ["balance", "z", "entropy", "mutual_information", "importance"]


def values_of(scores, score, probability):
    """p [T, E]; rows with every expert forbidden are 0."""
    if probability == "softmax" or score == "softmax":
        return oracle.probabilities(scores)
    finite = np.where(np.isfinite(scores), scores, -750.0)
    v = oracle.sigmoid(finite) if score == "sigmoid" else np.sqrt(np.logaddexp(0, finite))
    v = np.where(np.isfinite(scores), v, 0.0)
    if probability == "raw":
        return v
    total = v.sum(axis=1, keepdims=True)
    return np.divide(v, total, out=np.zeros_like(v), where=total > 0)


def sequences_of(tokens, offsets):
    return [range(tokens)] if offsets is None else [range(a, b) for a, b in itertools.pairwise(offsets)]


def balance(scores, chosen, count, score="softmax", probability="softmax", offsets=None, live=None, devices=None, per_device=None):
    """The mean over sequences with tokens. `devices`: DeepSeek-V2's loss of groups, with `per_device` that of communication."""
    tokens, experts = scores.shape
    live = np.ones(tokens, bool) if live is None else live
    p = values_of(scores, score, probability)
    k = chosen.shape[1]
    losses = []
    for rows in sequences_of(tokens, offsets):
        rows = [t for t in rows if live[t]]
        if not rows:
            continue
        n = len(rows)
        counts = np.zeros(experts)
        for t in rows:
            named = [e for e in chosen[t, :1 if count == "first" else k] if e >= 0 and scores[t, e] > -np.inf]
            if per_device is not None:
                for group in {e * devices // experts for e in named}:
                    counts[group * experts // devices] += 1
            else:
                np.add.at(counts, named, 1)
        mean = p[rows].mean(axis=0)
        if devices is None:
            losses.append(experts * (counts / (n * (k if count == "all" else 1)) * mean).sum())
            continue
        of_group = counts.reshape(devices, -1).sum(axis=1)
        f = devices / (per_device * n) * of_group if per_device is not None else devices / (k * n) * of_group
        losses.append((f * mean.reshape(devices, -1).sum(axis=1)).sum())
    return float(np.mean(losses)) if losses else 0.0


def entropy(p):
    return -np.where(p > 0, p * np.log(np.where(p > 0, p, 1)), 0).sum(axis=-1)


def of_scores(scores, live):
    p = oracle.probabilities(scores)[live]
    means = p.mean(axis=0) if live.any() else np.zeros(scores.shape[1])
    return {"z": (oracle.log_sums(scores[live])**2).mean() if live.any() else 0.0,
            "entropy": -entropy(means),
            "mutual_information": (entropy(p).mean() if live.any() else 0.0) - entropy(means)}


def importance(made):
    experts = len(made["offsets"]) - 1
    sums = np.zeros(experts)
    kept = made["slots"] >= 0
    np.add.at(sums, made["experts"][kept], made["gates"][kept].astype(float))
    return sums.var() / (sums.mean()**2 + 1e-10)


class Losses(Case):
    def routed(self, scores, router="top_k", out="out", **options):
        """The arrays and the summary; arrays among the options are saved first."""
        for name, value in options.items():
            if isinstance(value, np.ndarray):
                options[name] = self.save(value, f"{name}.npy")
        self.run_well(*arguments(scores=self.save(scores), router=router, out=out, **options))
        return self.results(out)

    def gradient(self, f, scores, made_from=1e-6):
        """Central differences where scores are finite."""
        d = np.zeros_like(scores)
        for at in zip(*np.nonzero(np.isfinite(scores))):
            moved = scores.copy()
            moved[at] += made_from
            above = f(moved)
            moved[at] -= 2 * made_from
            d[at] = (above - f(moved)) / (2 * made_from)
        return d

    def test_rowless(self):
        """Experts without rows count nowhere, and the factor is the others'."""
        scores = np.random.default_rng(8).normal(size=(30, 8))
        for count in ("first", "all"):
            made, told = self.routed(scores, k=3, rowless=3, balance_weight=2, balance_count=count, losses="balance",
                                     balance_scope="sequence", sequence_length=10)
            with_rows = np.where(made["experts"] < 5, made["experts"], -1)
            self.assertGreater((with_rows < 0).sum(), 9)
            wanted = balance(scores, with_rows, count, offsets=[0, 10, 20, 30]) * 5 / 8
            np.testing.assert_allclose(told["losses"]["balance"], wanted, rtol=1e-12)
            np.testing.assert_allclose(told["load_balancing_loss"], 2 * wanted, rtol=1e-12)
            _, whole = self.routed(scores, k=3, rowless=3, balance_weight=2, balance_count=count, losses="balance")
            np.testing.assert_allclose(whole["load_balancing_loss"], 2 * whole["losses"]["balance"], rtol=1e-12)

    def test_worked_numbers(self):
        """Two sequences of two tokens: 2 for each, 1 for the batch."""
        scores = np.log(np.array([[1, 0], [1, 0], [0, 1], [0, 1.0]]) + 1e-300)
        options = dict(k=1, balance_weight=0.5, losses="balance", capacity=9)
        _, whole = self.routed(scores, **options)
        self.assertAlmostEqual(whole["load_balancing_loss"], 0.5)
        self.assertAlmostEqual(whole["losses"]["balance"], 1)
        for sequences in (dict(sequence_length=2), dict(sequences=np.array([0, 2, 4])), dict(sequences=np.array([0, 2, 2, 4]))):
            _, told = self.routed(scores, balance_scope="sequence", **sequences, **options)
            self.assertAlmostEqual(told["load_balancing_loss"], 1)
            self.assertEqual(list(told["losses"]), ["balance"])
            self.assertAlmostEqual(told["losses"]["balance"], 2)

    def test_values_and_gradients(self):
        """Every scope, probability, count and score function, with padding, forbidden experts and drops."""
        numbers = np.random.default_rng(1)
        scores = numbers.normal(size=(12, 6))
        scores[3, 2] = scores[7, 0] = -np.inf
        scores[8] = -np.inf
        mask = np.array([1] * 5 + [0] + [1] * 6, np.uint8)
        live = mask.astype(bool)
        offsets = np.array([0, 5, 6, 6, 12])
        zero = np.zeros((12, 6))
        for scope, probability, count, score in itertools.product(
                ("batch", "offsets", "length"), ("softmax", "normalized", "raw"), ("first", "all", "all_undivided"),
                ("softmax", "sigmoid", "sqrt_softplus")):
            if scope != "offsets" and count == "all_undivided" and score == "softmax":
                continue  # enough
            spans = {"batch": {}, "offsets": dict(sequences=offsets), "length": dict(sequence_length=4)}[scope]
            at = {"batch": None, "offsets": offsets, "length": np.arange(0, 13, 4)}[scope]
            made, told = self.routed(scores, k=2, score=score, capacity=3, mask=mask, balance_count=count,
                                     balance_probability=probability, balance_scope="sequence" if spans else "batch",
                                     balance_weight=0.3, losses=",".join(LOSSES), gradients=zero, **spans)
            settings = dict(count=count, score=score, probability=probability, offsets=at, live=live)
            wanted = balance(scores, made["experts"], **settings)
            note = str((scope, probability, count, score))
            np.testing.assert_allclose(told["losses"]["balance"], wanted, rtol=1e-12, err_msg=note)
            np.testing.assert_allclose(told["load_balancing_loss"], 0.3 * wanted, rtol=1e-12, err_msg=note)
            for name, value in dict(of_scores(scores, live), importance=importance(made)).items():
                np.testing.assert_allclose(told["losses"][name], value, rtol=1e-6, atol=1e-12, err_msg=name)
            self.assertEqual(list(told["losses"]), LOSSES)
            d = np.load(self.folder / "out/d_scores.npy")
            self.assertEqual(d.dtype, np.float64)
            numeric = self.gradient(lambda s: 0.3 * balance(s, made["experts"], **settings), scores)
            np.testing.assert_allclose(d, numeric, atol=2e-9, err_msg=note)

    def test_beside_gates_and_z(self):
        """d_scores of another balance loss is that without one, plus its own."""
        numbers = np.random.default_rng(2)
        scores, c = numbers.normal(size=(40, 8)).astype(np.float32), numbers.normal(size=(40, 8)).astype(np.float32)
        options = dict(k=3, score="sigmoid", renormalize=True, scale=2.5, z_weight=0.1, gradients=c)
        self.routed(scores, balance_weight=0, **options)
        alone = np.load(self.folder / "out/d_scores.npy")
        own = dict(balance_probability="normalized", balance_scope="sequence", sequence_length=10, balance_count="all")
        made, told = self.routed(scores, balance_weight=0.7, **own, **options)
        d = np.load(self.folder / "out/d_scores.npy")
        at = np.arange(0, 41, 10)
        numeric = self.gradient(lambda s: 0.7 * balance(s, made["experts"], "all", "sigmoid", "normalized", at),
                                scores.astype(float))
        np.testing.assert_allclose(d - alone, numeric, atol=2e-6)
        self.assertEqual(told["options"]["balance_weight"], 0.7)
        for other in (dict(backend="thrust"), dict(policy="par", threads=3)):
            again, tells = self.routed(scores, balance_weight=0.7, out="other", losses="balance,z,importance", **other, **own,
                                       **options)
            np.testing.assert_allclose(np.load(self.folder / "other/d_scores.npy"), d, atol=1e-6)
            np.testing.assert_allclose(tells["load_balancing_loss"], told["load_balancing_loss"], rtol=1e-6)
            np.testing.assert_allclose(tells["losses"]["importance"], importance(again), rtol=1e-6)
        np.testing.assert_array_equal(np.load(self.folder / "other/d_scores.npy"), d)  # of any number of threads

    def test_scores_as_the_router_changes_them(self):
        numbers = np.random.default_rng(3)
        scores = numbers.normal(size=(9, 6))
        bias = numbers.normal(size=6).astype(np.float32)
        made, told = self.routed(scores, k=2, logit_multiplier=0.5, logit_bias=bias, softcap=1.5, balance_scope="sequence",
                                 sequence_length=3, losses="balance,z", gradients=np.zeros((9, 6)), balance_weight=1,
                                 noise="logit_jitter", noise_scale=0.3, seed=5)

        def loss(s):
            changed = oracle.jittered(1.5 * np.tanh((0.5 * s + bias) / 1.5), 0.3, 5)
            return balance(changed, made["experts"], "first", offsets=np.arange(0, 10, 3)), changed

        value, changed = loss(scores)
        np.testing.assert_allclose(told["losses"]["balance"], value, rtol=1e-6)
        np.testing.assert_allclose(told["losses"]["z"], (oracle.log_sums(changed)**2).mean(), rtol=1e-6)
        np.testing.assert_allclose(np.load(self.folder / "out/d_scores.npy"), self.gradient(lambda s: loss(s)[0], scores),
                                   atol=1e-7)

    def test_devices(self):
        """DeepSeek-V2's groups, of which a token keeps 2 of 4."""
        numbers = np.random.default_rng(4)
        scores = numbers.normal(size=(30, 8))
        for options in (dict(), dict(balance_scope="sequence", sequence_length=6), dict(balance_probability="raw",
                                                                                      score="sigmoid")):
            made, told = self.routed(scores, k=3, groups=4, groups_kept=2, losses="device_balance,communication_balance,balance",
                                     **options)
            settings = dict(score=options.get("score", "softmax"), probability=options.get("balance_probability", "softmax"),
                            offsets=np.arange(0, 31, 6) if "sequence_length" in options else None, devices=4)
            np.testing.assert_allclose(told["losses"]["device_balance"], balance(scores, made["experts"], "all", **settings),
                                       rtol=1e-12)
            np.testing.assert_allclose(told["losses"]["communication_balance"],
                                       balance(scores, made["experts"], "all", per_device=2, **settings), rtol=1e-12)

    def test_devices_of_some_routers(self):
        """Others run without the losses of devices."""
        self.save(np.random.default_rng(4).normal(size=(30, 8)))
        self.run_well(*arguments(scores="S.npy", router="switch,top_k,random", k=3, groups=4, groups_kept=2,
                                 losses="z,device_balance", out="several"))
        for router in ("switch", "top_k", "random"):
            _, told = self.results(f"several/{router}")
            self.assertEqual(list(told["losses"]), ["z", "device_balance"] if router == "top_k" else ["z"])

    def test_given_choices(self):
        """Replay, one choice normalised, and every router with and without losses."""
        numbers = np.random.default_rng(5)
        scores = numbers.normal(size=(20, 8))
        ids = np.argsort(numbers.normal(size=(20, 8)), axis=1)[:, :3].astype(np.int32)
        ids[4, 1] = -1
        made, told = self.routed(scores, "replay", choices=ids, balance_count="all", balance_probability="raw", score="sigmoid",
                                 losses="balance,importance")
        np.testing.assert_allclose(told["losses"]["balance"], balance(scores, ids, "all", "sigmoid", "raw"), rtol=1e-12)
        np.testing.assert_allclose(told["losses"]["importance"], importance(made), rtol=1e-6)
        made, told = self.routed(scores, k=1, renormalize=True, scale=2.5, losses="importance")
        np.testing.assert_allclose(told["losses"]["importance"], importance(made), rtol=1e-6)
        self.run_well(*arguments(scores="S.npy", router="switch,top_k,base,random", losses="z", out="several"))
        for router in ("switch", "top_k", "base", "random"):
            _, told = self.results(f"several/{router}")
            np.testing.assert_allclose(told["losses"]["z"], (oracle.log_sums(scores)**2).mean(), rtol=1e-6)

    def test_of_every_router(self):
        """Values of the plan's choices and the file's scores; the balance loss of routers that have one takes every setting."""
        numbers = np.random.default_rng(9)
        scores, c = numbers.normal(size=(24, 6)), numbers.normal(size=(24, 6))
        at = np.arange(0, 25, 8)
        scoped = dict(balance_scope="sequence", sequence_length=8)
        for router, score, options in (("switch", "softmax", {}), ("switch", "softmax", dict(scoped, noise="sample")),
                                       ("gshard", "softmax", dict(scoped, capacity=5)), ("gshard", "softmax", {}),
                                       ("sparse_mixer", "softmax", dict(scoped, balance_count="all", mixer_epsilon=0.5)),
                                       ("base", "sigmoid", dict(scoped, balance_probability="raw")), ("base", "sigmoid", {}),
                                       ("greedy", "sigmoid", dict(balance_probability="normalized"))):
            for more in ({}, dict(backend="thrust")):
                with self.subTest(router=router, **options, **more):
                    run = dict(options, **more, losses=",".join(LOSSES))
                    if router not in ("base", "greedy"):
                        run.update(gradients=c, balance_weight=0.7)
                    out = "values" if router in ("base", "greedy") else "out"
                    made, told = self.routed(scores, router, out, **run)
                    settings = dict(count=options.get("balance_count", "first"), score=score,
                                    probability=options.get("balance_probability", "softmax"),
                                    offsets=at if "sequence_length" in options else None)
                    wanted = balance(scores, made["experts"], **settings)
                    np.testing.assert_allclose(told["losses"]["balance"], wanted, rtol=1e-9)
                    for name, value in dict(of_scores(scores, np.ones(24, bool)), importance=importance(made)).items():
                        np.testing.assert_allclose(told["losses"][name], value, rtol=1e-6, atol=1e-12, err_msg=name)
                    if router in ("base", "greedy"):
                        self.assertIsNone(told["load_balancing_loss"])
                        continue
                    np.testing.assert_allclose(told["load_balancing_loss"], 0.7 * wanted, rtol=1e-9)
                    d = np.load(self.folder / "out/d_scores.npy")
                    self.routed(scores, router, "none", **dict(run, balance_weight=0))
                    numeric = self.gradient(lambda s: 0.7 * balance(s, made["experts"], **settings), scores)
                    np.testing.assert_allclose(d - np.load(self.folder / "none/d_scores.npy"), numeric, atol=2e-9)
        for line in (("--losses", "balance"), ("--balance-probability", "raw")):
            self.refuse("--balance-count all of router gshard is of the second choices that its policy keeps", "--scores", "S.npy",
                        "--router", "gshard", "--balance-count", "all", "--out", "bad", *line)
        self.run_well("--scores", "S.npy", "--router", "gshard", "--balance-count", "all", "--losses", "z", "--out", "good")

    def test_ids_of_none_are_padding(self):
        """A token without an id counts in no loss, as one that the mask leaves out."""
        scores = np.random.default_rng(5).normal(size=(12, 4))
        ids = np.random.default_rng(6).integers(0, 4, (12, 1))
        padding = np.arange(12) % 3 == 1
        run = dict(losses="balance,z,entropy", balance_weight=1, gradients=np.zeros((12, 4)), balance_scope="sequence",
                   sequence_length=4)
        _, none = self.routed(scores, "replay", "none", choices=np.where(padding[:, None], -1, ids), **run)
        _, masked = self.routed(scores, "replay", "masked", choices=ids, mask=~padding, **run)
        self.assertEqual(none["losses"], masked["losses"])
        np.testing.assert_array_equal(*(np.load(self.folder / out / "d_scores.npy") for out in ("none", "masked")))

    def test_one_expert_of_every_group(self):
        """First choices are those of the first group: all count, and every token goes to every device."""
        self.save(np.random.default_rng(7).normal(size=(40, 16)))
        self.run_well("--scores", "S.npy", "--router", "top_k", "--groups", "4", "--one-each", "--losses",
                      "balance,communication_balance", "--balance-weight", "1", "--out", "each")
        _, told = self.results("each")
        self.assertAlmostEqual(told["losses"]["balance"], told["load_balancing_loss"], places=6)
        self.assertAlmostEqual(told["losses"]["communication_balance"], 1, places=6)

    def test_nothing_to_count(self):
        for scores, mask in ((np.zeros((0, 4)), None), (np.zeros((3, 4)), np.zeros(3, np.uint8))):
            _, told = self.routed(scores, mask=mask, balance_probability="raw", losses=",".join(LOSSES))
            self.assertEqual(told["losses"], {name: 0 for name in LOSSES})
        _, told = self.routed(np.zeros((6, 1)), k=1, losses="balance,entropy", balance_scope="sequence", sequence_length=2)
        self.assertEqual(told["losses"], {"balance": 1, "entropy": 0})

    def test_refusals(self):
        self.save(np.zeros((6, 4)))

        def no(pattern, *line, router="top_k"):
            self.refuse(pattern, "--scores", "S.npy", "--router", router, "--out", "bad", *line)

        for option in ("--balance-scope sequence --sequence-length 3", "--balance-probability raw"):
            for router in ("base", "greedy", "base,greedy"):
                no(f"{option.split(' --')[0]} is used by nothing chosen: it needs a router with a balance loss, or --losses "
                   "balance", *option.split(), router=router)
                no("is used by nothing chosen", *option.split(), "--losses", "z", router=router)
        self.save(np.array([0, 3, 6]), "O.npy")
        for option in ("--sequences O.npy", "--sequence-length 3"):
            no(f"{option} is used by nothing chosen: it needs --balance-scope sequence", *option.split())
        scope = ("--balance-scope", "sequence")
        no("--balance-scope sequence needs --sequences or --sequence-length", *scope)
        no("--sequences and --sequence-length 3 exclude each other", *scope, "--sequences", "O.npy", "--sequence-length", "3")
        no("--sequence-length 4 does not divide T = 6", *scope, "--sequence-length", "4")
        no("--sequence-length '0' must be at least 1", *scope, "--sequence-length", "0")
        no("--losses 'x' is unknown; it is one of balance, device_balance", "--losses", "balance,x")
        no("--losses 'z,z' names z twice", "--losses", "z,z")
        for loss in ("device_balance", "communication_balance"):
            for router in ("top_k", "switch", "base", "top_k,switch"):
                no(f"--losses {loss} needs router top_k with groups", "--losses", loss, router=router)
        for numbers, why in (([1, 6], "the first offset is 1 and must be 0"), ([0, 5], r"the last offset is 5 and must be T = 6"),
                             ([0, 4, 2, 6], "offset 2 is 2, less than the 4 before it"), ([0], "a list of at least two numbers"),
                             ([[0, 6]], "a list of at least two numbers"), ([0.0, 6.0], "ids are int32 or int64")):
            self.save(np.array(numbers), "wrong.npy")
            no(f"wrong.npy: .*{why}", *scope, "--sequences", "wrong.npy")
        no("missing.npy", *scope, "--sequences", "missing.npy")


if __name__ == "__main__":
    main()
