#!/usr/bin/env python3
"""--format against NumPy, from the arrays that the program writes beside. usage: formats_test.py PROGRAM"""

import json
import pathlib
import re

import numpy as np

from program import Case, arguments, main

FORMATS = "rows,grouped_mm,vllm,deepgemm,megatron,te,deepep,megablocks,sonic,scatter,llama_cpp,flashinfer,one_hot"


def expected(experts, slots, gates, count, capacity, vllm_block, deepgemm_block, ranks):
    """Every array by plain loops: a token's choices in order, within an expert by rising token."""
    tokens, k = experts.shape
    kept = slots >= 0
    order = sorted((t * k + c for t in range(tokens) for c in range(k) if kept[t, c]),
                   key=lambda i: (experts.flat[i], i))
    loads = np.bincount(experts[kept], minlength=count)
    ends = np.cumsum(loads)
    offsets = np.concatenate([[0], ends])
    row_of = np.full((tokens, k), -1, np.int32)
    for row, i in enumerate(order):
        row_of.flat[i] = row
    made = {"rows_order": order, "rows_tokens": [i // k for i in order], "rows_counts": loads, "rows_offsets": offsets,
            "rows_row_of_choice": row_of, "grouped_mm_offs": ends, "megablocks_bins": ends,
            "megablocks_padded_bins": np.cumsum(-(-loads // deepgemm_block) * deepgemm_block),
            "megablocks_indices": order, "megablocks_bin_ids": experts.flat[order] if order else [],
            "sonic_expert_frequency_offset": offsets, "sonic_x_gather_idx": [i // k for i in order],
            "sonic_s_scatter_idx": order, "sonic_s_reverse_scatter_idx": row_of, "scatter_expert_offsets": ends,
            "scatter_sorted_expert_idxs": experts.flat[order] if order else [], "scatter_sorted_scattered_idxs": order}

    def padded(block):
        """The choice of each padded row, and where experts end."""
        rows, owners, limits = [], [], []
        for e in range(count):
            mine = [i for i in order if experts.flat[i] == e]
            limits.append(len(rows) + len(mine))
            mine += [-1] * (-len(mine) % block)
            rows += mine
            owners += [e] * (len(mine) // block)
        return np.array(rows, np.int64), owners, limits

    rows, owners, _ = padded(vllm_block)
    length = tokens * k + count * (vllm_block - 1) if tokens * k >= count else tokens * k * vllm_block
    ids = np.full(length, tokens * k)
    ids[:len(rows)] = np.where(rows >= 0, rows, tokens * k)
    blocks = np.zeros(-(-length // vllm_block), int)
    blocks[:len(owners)] = owners
    made.update(vllm_sorted_token_ids=ids, vllm_expert_ids=blocks, vllm_num_tokens_post_pad=[len(rows)])
    rows, owners, limits = padded(deepgemm_block)
    made.update(deepgemm_m_indices=np.where(rows >= 0, np.repeat(owners, deepgemm_block), -1), deepgemm_psum_actual=limits,
                deepgemm_psum_aligned=np.cumsum(-(-loads // deepgemm_block) * deepgemm_block),
                deepgemm_row_of_sorted=np.flatnonzero(rows >= 0))
    routing_map, probs = np.zeros((tokens, count), np.uint8), np.zeros((tokens, count), np.float32)
    row_map = np.full((tokens, 2 * count + 1), -1)
    in_rank = np.zeros((tokens, ranks), np.uint8)
    dispatch, combine = np.zeros((tokens, count, capacity), np.uint8), np.zeros((tokens, count, capacity), np.float32)
    for t in range(tokens):
        mine = sorted((e, c) for c, e in enumerate(experts[t]) if kept[t, c])
        for e, c in mine:
            routing_map[t, e], probs[t, e] = 1, gates[t, c]
            in_rank[t, e * ranks // count] = 1
            dispatch[t, e, slots[t, c]], combine[t, e, slots[t, c]] = 1, gates[t, c]
        for place, (e, c) in enumerate(reversed(mine)):
            row_map[t, place], row_map[t, count + place] = row_of[t, c], e
        row_map[t, 2 * count] = len(mine)
    bits = np.packbits(routing_map, axis=1, bitorder="little")
    weights = np.where(kept, gates, 0).astype(np.float32)
    none = np.where(kept, experts, -1)
    half = (weights.view(np.uint32) + 0x7FFF + ((weights.view(np.uint32) >> 16) & 1)) >> 16
    packed = ((none.astype(np.int64) << 16) | half).astype(np.uint32).view(np.int32)
    made.update(megatron_routing_map=routing_map, megatron_probs=probs, megatron_sorted_indices=[i // k for i in order],
                megatron_permuted_probs=gates.flat[order] if order else np.zeros(0, np.float32), te_row_id_map=row_map,
                te_router_bitmap=bits, deepep_topk_idx=none.astype(np.int64), deepep_topk_weights=weights,
                deepep_is_token_in_rank=in_rank, deepep_num_tokens_per_rank=in_rank.sum(axis=0),
                deepep_num_tokens_per_expert=loads, llama_cpp_ids=np.where(kept, experts, 0), llama_cpp_weights=weights,
                flashinfer_packed=packed, one_hot_dispatch=dispatch, one_hot_combine=combine)
    return made


def recorded(case):
    """The packages' arrays for the fixed ids of a case, by name (tests/recorded/formats.inc)."""
    text = (pathlib.Path(__file__).resolve().parents[1] / "recorded/formats.inc").read_text()
    found = re.findall(rf"constexpr (\w+) formats_{case}_(\w+)\[\] = {{(.*?)}};", text, re.DOTALL)
    return {name: np.array([float(x.rstrip("f")) for x in numbers.replace("\n", "").split(",") if x.strip()]) for _, name, numbers in found}


class Formats(Case):

    def check(self, folder, count, vllm_block, deepgemm_block, ranks):
        folder = self.folder / folder
        summary = json.loads((folder / "summary.json").read_text())
        plan = {name: np.load(folder / f"{name}.npy") for name in ("experts", "slots", "gates")}
        tokens = len(plan["experts"])
        capacity = tokens if summary["capacity"] is None else min(summary["capacity"], tokens)
        made = {path.stem: np.load(path) for path in folder.glob("*_*.npy")}
        want = expected(plan["experts"], plan["slots"], plan["gates"], count, capacity, vllm_block, deepgemm_block, ranks)
        self.assertEqual(set(made), set(want))
        for name, numbers in want.items():
            with self.subTest(array=name):
                np.testing.assert_array_equal(made[name], numbers)
                kind = np.asarray(numbers).dtype
                wide = name == "deepep_topk_idx"
                self.assertEqual(made[name].dtype, np.int64 if wide else kind if kind in (np.uint8, np.float32) else np.int32)

    def test_arrays(self):
        for case, (tokens, experts, k, router, options) in enumerate((
                (50, 8, 4, "top_k", dict(capacity_factor=0.8)), (37, 6, 2, "top_k", {}), (5, 16, 2, "top_k", {}),
                (0, 4, 2, "top_k", {}), (40, 8, 1, "switch", {}), (1, 1, 1, "top_k", {}), (24, 8, 1, "base", {}),
                (60, 8, 3, "round_robin", {}), (50, 12, 4, "top_k", dict(rowless=4, capacity_factor=0.8)),
                (30, 9, 5, "top_k", dict(rowless=1)), (30, 4, 3, "top_k", dict(rowless=2)))):
            with self.subTest(case=case):
                numbers = np.random.default_rng(case)
                ranks = 2 if experts % 2 == 0 else 1
                count = experts - options.get("rowless", 0)
                self.save(numbers.normal(size=(tokens, experts)).astype(np.float32))
                given = dict(options, k=k if router in ("top_k", "round_robin") else None)
                self.run_well("--scores", "S.npy", "--router", router, "--out", f"out{case}", "--format", FORMATS, "--ranks",
                              ranks, *arguments(**given))
                self.check(f"out{case}", count, 16, 128, ranks)
                self.run_well("--scores", "S.npy", "--router", router, "--out", f"block{case}", "--format", FORMATS,
                              "--ranks", ranks, "--block", 8, *arguments(**given))
                self.check(f"block{case}", count, 8, 8, ranks)

    def test_recorded_ids_with_none_among_them(self):
        """The packages' arrays, where -1 stands anywhere among a token's ids: replayed, with sigmoids for their weights."""
        for case, (tokens, k, experts) in dict(a=(50, 4, 8), b=(37, 2, 6)).items():
            want = recorded(case)
            ids, weights = want["topk_ids"].reshape(tokens, k).astype(int), want["topk_weights"].reshape(tokens, k)
            self.assertTrue(((ids[:, 0] < 0) & (ids.max(axis=1) >= 0)).any())
            scores = np.zeros((tokens, experts))
            t, c = np.nonzero(ids >= 0)
            scores[t, ids[t, c]] = np.log(weights[t, c] / (1 - weights[t, c]))
            self.save(scores)
            self.save(ids, "ids.npy")
            seen = set()
            for runs, (block, ranks) in dict(vllm16=(None, 2), vllm64=(64, 4)).items():
                if experts % ranks != 0:
                    ranks = 2
                self.run_well("--scores", "S.npy", "--router", "replay", "--choices", "ids.npy", "--score", "sigmoid", "--format",
                              FORMATS, "--ranks", ranks, "--out", f"{case}{runs}", *arguments(block=block))
                for path in (self.folder / f"{case}{runs}").glob("*_*.npy"):
                    kind, name = path.stem.split("_", 1)
                    kind, name = ("grouped_mm", "offs") if kind == "grouped" else (kind, name)
                    own = dict(vllm=runs, deepep=f"deepep{ranks}").get(kind, kind if block is None else "")
                    if f"{own}_{name}" not in want:
                        continue
                    seen.add(f"{own}_{name}")
                    with self.subTest(case=case, array=f"{own}_{name}"):
                        np.testing.assert_allclose(np.load(path).ravel(), want[f"{own}_{name}"], rtol=2e-7)
            unseen = set(want) - seen - {"topk_ids", "topk_weights", "deepep4_num_tokens_per_rdma_rank_2_per_node"}
            self.assertEqual(unseen, set())
            self.assertGreater(len(seen), 20)

    def test_refusals(self):
        self.save(np.zeros((4, 6)))
        for pattern, line in (("--format deepep needs --ranks", "--format deepep"),
                              ("--ranks 2 is used by nothing chosen: it needs --format deepep", "--format vllm --ranks 2"),
                              ("--block 2 is used by nothing chosen: it needs --format vllm", "--format rows --block 2"),
                              ("--format 'x' is unknown; it is one of rows, grouped_mm", "--format x"),
                              ("names rows twice", "--format rows,rows"),
                              ("--block '0' must lie in 1..16777216", "--format vllm --block 0"),
                              ("4 .*ranks|ranks.* 4", "--format deepep --ranks 4")):
            self.refuse(pattern, "--scores", "S.npy", "--router", "top_k", "--out", "out", *line.split())
        self.save(np.zeros((3000, 600), np.float32))
        self.refuse("--format one_hot needs 3000 x 600 x 3000 numbers", "--scores", "S.npy", "--router", "top_k", "--out",
                    "out", "--format", "one_hot")


if __name__ == "__main__":
    main()
