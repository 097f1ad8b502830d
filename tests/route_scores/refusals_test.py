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
        self.save(np.ones(4), "list.npy")
        (self.folder / "config.json").write_text('{"model_type": "mixtral"}')
        top_k_only = ["--k 1", "--softmax before", "--renormalize", "--balance-count first", "--preset qwen3_moe --k 3",
                      "--config config.json", "--logit-multiplier 2", "--logit-bias list.npy", "--softcap 3",
                      "--score sigmoid", "--bias list.npy", "--bias-on logit --bias list.npy", "--groups 2 --groups-kept 1",
                      "--normalize none", "--normalize p_norm --norm-power 2", "--scale 2", "--expert-scale list.npy",
                      "--rowless 1"]
        softmax_only = ["--capacity-factor 1", "--capacity 3", "--drop-order position", "--balance-weight 0.01",
                        "--z-weight 0", "--noise none", "--noise logit_jitter"]
        from_a_factor = ["--capacity-rounding floor", "--capacity-minimum 0", "--capacity-multiple 1"]
        def without(option):
            return f"{option} is used by nothing chosen"
        for option in top_k_only:
            self.yes("top_k", *(option + (" --k 2" if "--k" not in option else "")).split())
            self.yes("switch,base,top_k", *option.split())
            for router in ("switch", "base", "greedy", "switch,base,greedy"):
                self.no("is used by nothing chosen: it needs router top_k", router, *option.split())
        for option, needs in (("--bias-on logit", "--bias or groups"), ("--group-score max", "--groups"),
                              ("--groups-kept 2", "--groups"), ("--group-mask zero", "--groups"),
                              ("--norm-power 2", "--normalize p_norm"), ("--normalize-epsilon 0.1", "--normalize sum"),
                              ("--epsilon-kind clamp", "--normalize sum"),
                              ("--softmax after --normalize-epsilon 1", "--normalize sum")):
            self.no(f"is used by nothing chosen: it needs {needs}", "top_k", *option.split())
        self.no("--gradients list.npy is used by nothing chosen: it needs a router that trains", "greedy", "--gradients",
                "list.npy")
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
        self.no("'mystery' is unknown; it is one of switch, top_k, base, greedy, gshard, sparse_mixer, noisy_top_k, sinkhorn, "
                "quantile, cosine, replay, hash, random, round_robin", "mystery")
        self.no("'' is unknown", "")
        self.no("'' is unknown", "switch,")
        self.no("'Switch' is unknown", "Switch")
        self.no("' top_k' is unknown", "switch, top_k")
        self.no("names switch twice", "switch,base,switch")
        for option, known in (("--softmax", "before, after"), ("--balance-count", "first, all, all_undivided"),
                              ("--score", "softmax, sigmoid, sqrt_softplus"), ("--bias-on", "score, logit"),
                              ("--group-score", "max, top2_sum, top_n_sum"), ("--group-mask", "minus_infinity, zero"),
                              ("--normalize", "none, sum, p_norm"), ("--epsilon-kind", "add, clamp"),
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

    def test_values_of_top_k(self):
        self.save(np.ones(4), "list.npy")
        for pattern, line in (
                ("--groups 3 .*|groups.count = 3 must lie", "--groups 3 --groups-kept 1"),
                ("--groups 2 needs --groups-kept", "--groups 2"),
                ("groups.kept = 3 must lie in 1..groups.count = 2", "--groups 2 --groups-kept 3"),
                ("k = 3 is more than the 2 experts", "--k 3 --groups 2 --groups-kept 1"),
                ("--group-score top_n_sum needs --group-score-count", "--groups 2 --groups-kept 1 --group-score top_n_sum"),
                ("--group-score-count and", "--groups 2 --groups-kept 1 --group-score max --group-score-count 2"),
                ("--softmax after and a --score other", "--softmax after --score sigmoid"),
                ("--softmax after and --normalize p_norm", "--softmax after --normalize p_norm"),
                ("--softmax after and --bias-on score", "--softmax after --bias list.npy --bias-on score"),
                ("--renormalize and a --normalize other", "--renormalize --normalize none"),
                ("--softmax after needs --score softmax, and the model's is sigmoid", "--preset llama4 --softmax after"),
                ("--softmax after and --normalize p_norm exclude", "--preset dbrx --softmax after"),
                ("--scale 1e[+]39 is beyond float32", "--scale 1e39"),
                ("--softcap 1e-50 is beyond float32", "--softcap 1e-50"),
                ("--preset and --config exclude", "--preset mixtral --config c.json"),
                ("--preset 'mistral' is unknown; it is one of afmoe, ", "--preset mistral"),
                ("--k 8 must lie in 1..E = 4", "--preset deepseek_v3"),
                ("softcap = -1 must be finite and more than 0", "--softcap -1"),
                ("logit_multiplier = 0 must be finite", "--logit-multiplier 0"),
                ("norm_power = -2 must be finite", "--normalize p_norm --norm-power -2"),
                ("epsilon = -1 must be finite and not negative", "--normalize sum --normalize-epsilon -1"),
                ("--scale 'nan' must be finite", "--scale nan"),
                ("--bias '' is no file", ["--bias", ""])):
            self.no(pattern, "top_k", *(line.split() if isinstance(line, str) else line))
        for text, pattern in (("[]", "is no JSON object"), ("{", "is no JSON object"), ("{}", "model_type '' is unknown"),
                              ('{"model_type": "bert"}', "model_type 'bert' is unknown"),
                              ('{"model_type": "mixtral", "num_experts_per_tok": 2.5}', "num_experts_per_tok = 2.5 is no"),
                              ('{"model_type": "qwen3_moe", "norm_topk_prob": 1}', "norm_topk_prob = 1 is neither"),
                              ('{"model_type": "deepseek_v4", "scoring_func": "relu"}', "scoring_func = \"relu\" is unk"),
                              ('{"model_type": "hunyuan_v1_moe", "moe_topk": [1, 2]}', "differs from layer to layer"),
                              ('{"model_type": "deepseek_v2", "topk_method": "noaux_tc"}', "topk_method = 'noaux_tc' is unk"),
                              ('{"model_type": 3}', "model_type = 3 is no text")):
            (self.folder / "c.json").write_text(text)
            self.no(pattern, "top_k", "--config", "c.json")
        self.no("'nowhere.json' cannot be read", "top_k", "--config", "nowhere.json")
        self.no("'.' cannot be read", "top_k", "--config", ".")

    def test_files_beside_the_scores(self):
        for option in ("--bias", "--logit-bias", "--expert-scale"):
            self.no("nowhere.npy: No such file", "top_k", option, "nowhere.npy")
            for numbers, pattern in ((np.ones(3), r"has the shape \(3,\); it needs a number for each expert, \(E,\) = \(4,\)"),
                                     (np.ones((4, 1)), r"has the shape \(4, 1\)"),
                                     (np.array([0, 1, np.nan, 2]), "the number of expert 2 is nan"),
                                     (np.array([0, 1e300, 0, 2]), "the number of expert 1 is 1e.300; it must be finite in f"),
                                     (np.arange(4), "holds numbers of type '<i8'")):
                self.save(numbers, "list.npy")
                self.no(pattern, "top_k", option, "list.npy")
        for numbers, pattern in ((np.ones(9, bool), r"has the shape \(9,\); a mask needs an entry for each token"),
                                 (np.ones(10), "a mask holds booleans or integers"),
                                 (np.ones((10, 1), np.uint8), r"has the shape \(10, 1\)")):
            self.save(numbers, "mask.npy")
            self.no(pattern, "switch", "--mask", "mask.npy")
        for numbers, pattern in ((np.ones((10, 3)), r"has the shape \(10, 3\); it must be that of the scores, \(10, 4\)"),
                                 (np.ones((10, 4), int), "gradients are float16"),
                                 (np.full((10, 4), np.inf), r"the number of \(token 0, expert 0\) is inf")):
            self.save(numbers, "c.npy")
            self.no(pattern, "switch", "--gradients", "c.npy")

    def test_choices(self):
        self.save(np.zeros((10, 2), np.int64), "ids.npy")
        self.save(np.zeros(10, np.int32), "tokens.npy")
        self.yes("replay", "--choices", "ids.npy")
        self.yes("hash,round_robin", "--token-ids", "tokens.npy", "--table", "ids.npy")
        self.yes("random", "--seed", "3", "--k", "4")
        self.no("--router replay needs --choices", "replay")
        self.no("--router hash needs --table", "hash", "--token-ids", "tokens.npy")
        self.no("--router hash needs --token-ids", "hash", "--table", "ids.npy")
        self.no("--choices ids.npy is used by nothing chosen: it needs router replay", "hash", "--choices", "ids.npy",
                "--token-ids", "tokens.npy", "--table", "ids.npy")
        self.no("--seed 3 is used by nothing chosen", "round_robin", "--seed", "3")
        self.no("--k 2 is used by nothing chosen", "replay", "--k", "2", "--choices", "ids.npy")
        self.no("--groups 2 is used by nothing chosen", "random", "--groups", "2", "--groups-kept", "1")
        self.no("--groups-kept 2 is used by nothing chosen", "random", "--preset", "deepseek_v3", "--groups-kept", "2")
        self.no("--router random: k = 5 must lie in 1..E = 4", "random", "--k", "5")
        for ids, pattern in ((np.zeros((9, 2), int), "has 9 rows for T = 10 tokens"), (np.zeros((10, 2)), "ids are int32 or int64"),
                             (np.zeros((10, 0), int), "there must be at least one column"),
                             (np.zeros((10, 5), int), "--router replay: k = 5 must lie in"),
                             (np.full((10, 1), 2**40), r"the id at \(0, 0\) is 1099511627776; ids must fit"),
                             (np.zeros((10, 1, 1), int), "ids have one dimension or two")):
            self.save(ids, "bad.npy")
            self.no(pattern, "replay", "--choices", "bad.npy")
        self.save(np.zeros((10, 2), int), "bad.npy")
        self.no("is 10 x 2; it needs T = 10 token ids", "hash", "--token-ids", "bad.npy", "--table", "ids.npy")

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
