"""Runs the program under test and reads what it wrote."""

import json
import os
import pathlib
import sys

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "support"))
from program_case import ProgramCase, main  # noqa: E402

ARRAYS = ("experts", "slots", "gates", "offsets", "order")
FILES = sorted([f"{name}.npy" for name in ARRAYS] + ["summary.json"])
OPTIONS_OF = {
    "switch": ["capacity_factor", "capacity", "capacity_rounding", "capacity_minimum", "capacity_multiple", "drop_order",
               "balance_weight", "z_weight", "noise", "noise_scale", "seed"],
    "base": ["solver"],
    "greedy": [],
}
OPTIONS_OF["top_k"] = ["preset", "config", "k", "logit_multiplier", "logit_bias", "softcap", "score", "softmax", "bias", "bias_on",
                      "groups", "groups_kept", "group_score_count", "one_each", "group_mask", "normalize", "norm_power",
                      "normalize_epsilon", "epsilon_kind", "renormalize", "scale", "expert_scale", "rowless",
                      "balance_count"] + OPTIONS_OF["switch"]
SELECTION = ["bias", "bias_on", "groups", "groups_kept", "group_score_count", "one_each", "group_mask"]
OPTIONS_OF["random"] = OPTIONS_OF["round_robin"] = [name for name in OPTIONS_OF["top_k"] if name not in SELECTION]
OPTIONS_OF["replay"] = [name for name in OPTIONS_OF["random"] if name != "k"] + ["choices"]
OPTIONS_OF["hash"] = [name for name in OPTIONS_OF["random"] if name != "k"] + ["token_ids", "table"]
PAIR = ["preset", "config", "balance_count"] + OPTIONS_OF["switch"]
OPTIONS_OF["gshard"] = PAIR + ["second", "second_threshold", "second_compared", "pair_sum", "normalize_epsilon", "epsilon_kind"]
OPTIONS_OF["sparse_mixer"] = PAIR + ["mixer_epsilon", "off_peak"]
OPTIONS_OF["noisy_top_k"] = OPTIONS_OF["top_k"] + ["noise_scores", "least_deviation", "importance_weight", "load_weight"]
OPTIONS_OF["sinkhorn"] = OPTIONS_OF["top_k"] + ["temperature", "tolerance", "rounds"]
OPTIONS_OF["quantile"] = OPTIONS_OF["top_k"] + ["rounds", "ema"]
OPTIONS_OF["cosine"] = OPTIONS_OF["top_k"] + ["tokens", "embeddings", "temperature"]
COMMON_OPTIONS = ["scores", "mask", "gradients", "balance_scope", "balance_probability", "sequences", "sequence_length", "losses",
                  "format", "block", "ranks", "backend", "policy", "threads", "repeat"]
MORE_FILES = {"noisy_top_k": ["d_noise_scores.npy"], "cosine": ["d_embeddings.npy", "d_tokens.npy"]}  # with gradients
MORE_KEYS = {"noisy_top_k": ["importance_loss", "load_loss"], "sinkhorn": ["bias_rounds", "bias_residual"], "quantile": ["bias_rounds"]}
SUMMARY_KEYS = ["router", "tokens", "experts", "k", "capacity", "kept", "dropped", "load_before", "load_after",
                "load_balancing_loss", "z_loss", "total_score", "milliseconds", "options"]


def arguments(**options):
    """capacity_factor=1.5, renormalize=True -> ["--capacity-factor", "1.5", "--renormalize"]; None is left out."""
    line = []
    for name, value in options.items():
        flag = "--" + name.replace("_", "-")
        if value is True:
            line.append(flag)
        elif value is not None and value is not False:
            line += [flag, str(value)]
    return line


class Case(ProgramCase):
    """A test of route_scores in a folder of its own."""

    def results(self, folder):
        """The arrays and the summary of a run, after checks of files, types and shapes."""
        folder = self.folder / folder
        told = json.loads((folder / "summary.json").read_text())
        has_gradients = told["options"]["gradients"] is not None
        gradients = ["d_scores.npy"] + MORE_FILES.get(told["router"], [])
        self.assertEqual(sorted(os.listdir(folder)), sorted(FILES + gradients * has_gradients))
        made = {name: np.load(folder / f"{name}.npy", allow_pickle=False) for name in ARRAYS}
        summary = json.loads((folder / "summary.json").read_text())
        has_rowless = bool(summary["options"].get("rowless"))
        keys = ["d_temperature"] * (has_gradients and told["router"] == "cosine") + MORE_KEYS.get(told["router"], [])
        self.assertEqual([key for key in summary if key != "losses"], SUMMARY_KEYS + ["rowless"] * has_rowless + keys)
        if "losses" in summary:
            self.assertEqual(list(summary["losses"]), summary["options"]["losses"])
        self.assertEqual(sorted(summary["options"]), sorted(OPTIONS_OF[summary["router"]] + COMMON_OPTIONS))
        tokens, experts, k, kept = (summary[key] for key in ("tokens", "experts", "k", "kept"))
        for name, dtype, shape in (("experts", np.int32, (tokens, k)), ("slots", np.int32, (tokens, k)),
                                   ("gates", np.float32, (tokens, k)), ("offsets", np.int64, (experts + 1,)),
                                   ("order", np.int64, (kept,))):
            self.assertEqual((made[name].dtype, made[name].shape), (np.dtype(dtype), shape), name)
            self.assertTrue(made[name].flags.c_contiguous, name)
        return made, summary

    def compare(self, folder, expected, gate_tolerance=3e-6, loss_tolerance=1e-5):
        """The files in a folder hold the numbers expected: integers exactly."""
        made, summary = self.results(folder)
        for name in ("experts", "slots", "offsets", "order"):
            np.testing.assert_array_equal(made[name], expected[name], name)
        np.testing.assert_allclose(made["gates"], expected["gates"], rtol=gate_tolerance, atol=1e-37, err_msg="gates")
        for key in ("k", "capacity", "kept", "dropped"):
            self.assertEqual(summary[key], expected[key], key)
        for key in ("load_before", "load_after"):
            self.assertEqual(summary[key], expected[key].tolist(), key)
        for key in ("load_balancing_loss", "z_loss"):
            if expected[key] is None:
                self.assertIsNone(summary[key], key)
            else:
                np.testing.assert_allclose(summary[key], expected[key], rtol=loss_tolerance, atol=1e-12, err_msg=key)
        np.testing.assert_allclose(summary["total_score"], expected["total_score"], rtol=1e-12, atol=1e-9)
        self.assertGreaterEqual(summary["milliseconds"], 0)
        return summary
