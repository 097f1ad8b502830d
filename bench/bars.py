#!/usr/bin/env python3
"""What a run of routing_bench, formats_bench or models_bench says of the library's own bars: a table, and whether each bar is met.

usage: bars.py RUN.json [--write PAGE]

RUN.json is what the benchmark wrote with --benchmark_out=RUN.json and --benchmark_repetitions: medians are compared, and only
those of one run. --write puts the table between the marks `figures:BENCHMARK` of a page: docs/benchmarks.md has those of
routing_bench. Exit 1 if a bar is missed or a row is not in the run.
"""

import argparse
import json
import pathlib
import re
import sys

UNITS = {"ns": 1e-6, "us": 1e-3, "ms": 1.0, "s": 1e3}
MARKS = r"(<!-- figures:{0} -->\n\n).*?(\n\n<!-- /figures:{0} -->)"

# Row, what it is compared with, how much more work the row does than that, and the most its ratio may be.
BARS = [
    ("switch_route_seq/65536/64", "eigen_softmax_argmax_seq/65536/64", 1, 0.33),
    ("switch_route_seq/65536/64", "exp_sum_seq/65536/64", 1, 2.2),
    ("switch_route_seq/65536/256", "eigen_softmax_argmax_seq/65536/256", 1, 0.33),
    ("switch_route_seq/65536/256", "exp_sum_seq/65536/256", 1, 2.2),
    ("switch_route_par/65536/64", "switch_route_seq/65536/64", 1, 0.59),
    ("switch_route_par/65536/256", "switch_route_seq/65536/256", 1, 0.59),
    ("switch_route_seq/65536/60", "switch_route_seq/65536/64", 60 / 64, 1.3),
    ("switch_route_seq/65536/100", "switch_route_seq/65536/128", 100 / 128, 1.3),
    ("top_k_route_seq/1/256/8", "top_k_route_seq/65536/256/8", 1 / 65536, 2.0),
    ("top_k_route_seq/32/256/8", "top_k_route_seq/65536/256/8", 32 / 65536, 2.0),
    ("dispatch_seq/65536/64", "copy_rows_seq/65536/64", 1, 1.2),
    ("combine_seq/65536/64", "copy_rows_seq/65536/64", 1, 1.2),
    ("dispatch_par/65536/64", "copy_rows_par/65536/64", 1, 1.25),
    ("combine_par/65536/64", "copy_rows_par/65536/64", 1, 1.25),
    ("dispatch_seq/512/64", "memcpy_rows_seq/512/64", 1, 1.0),
    ("combine_seq/512/64", "memcpy_rows_seq/512/64", 1, 1.0),
    ("switch_route_columns_seq/65536/64", "switch_route_seq/65536/64", 1, 2.5),
    ("switch_route_backward_columns_seq/65536/64", "switch_route_backward_seq/65536/64", 1, 2.5),
    ("top_k_route_columns_seq/65536/64/6", "top_k_route_seq/65536/64/6", 1, 2.5),
    ("route_tokens_columns_seq/16384/64", "route_tokens_seq/16384/64", 1, 2.5),
    ("groups_route_seq/65536/256/8", "top_k_route_seq/65536/256/8", 1, 1.6),
    ("switch_route_bfloat16_seq/65536/64", "switch_route_seq/65536/64", 1, 1.2),
    ("switch_route_half_seq/65536/64", "switch_route_seq/65536/64", 1, 1.2),
    ("route_tokens_bfloat16_seq/16384/64", "route_tokens_seq/16384/64", 1, 1.2),
    ("route_tokens_half_seq/16384/64", "route_tokens_seq/16384/64", 1, 1.2),
]
# Column-major rows against row-major ones, and 16-bit rows against float's.
MOVES = ("dispatch", "combine", "dispatch_backward", "gated_dispatch_backward", "combine_backward")
BARS += [
    (f"{move}_by_columns_seq/{size}", f"{move}_seq/{size}", 1, 2.5)
    for size in ("65536/64/1/256", "65600/64/1/256")
    for move in MOVES
]
BARS += [
    (f"{move}_{storage}_seq/4096/64/2/512", f"{move}_seq/4096/64/2/512", 1, 0.8)
    for storage in ("bfloat16", "half")
    for move in MOVES
]

# Top-k against Switch of the same mode: experts, k, and the most it may cost.
for experts, k, most in [
    (8, 2, 2), (32, 4, 2.5), (64, 1, 1.1), (64, 6, 3), (128, 4, 2.5), (128, 8, 3.3), (160, 6, 3.3), (256, 8, 2.4), (384, 8, 2.2), (512, 10, 2.2),
]:
    BARS += [
        (f"top_k_train_seq/65536/{experts}/{k}", f"switch_route_seq/65536/{experts}", 1, most),
        (f"top_k_route_seq/65536/{experts}/{k}", f"switch_infer_seq/65536/{experts}", 1, most),
    ]

# Formats against memcpy of as many bytes as they write.
FORMATS = (
    "row_experts", "row_choices", "row_tokens", "choice_rows", "aligned_blocks", "masked", "ids", "ids_int32", "weights", "packed_choices",
    "routing_map", "routing_bits", "routing_weights", "row_map", "rank_layout", "token_lists",
)
FORMAT_BARS = [(f"{name}_seq/65536/64/2", f"{name}_memcpy/65536/64/2", 1, 2) for name in FORMATS]

# Routers of models against plain top-k of the same experts and k.
MODELS = [
    ("mixtral_8x7b", 8, 2), ("jamba", 16, 2), ("dbrx", 16, 4), ("ernie4_5", 64, 6), ("llama4_maverick", 128, 1), ("gpt_oss_120b", 128, 4),
    ("qwen3_235b", 128, 8), ("gemma4", 128, 8), ("deepseek_v2", 160, 6), ("deepseek_v3", 256, 8), ("minimax_m2", 256, 8),
    ("deepseek_v4", 384, 6), ("kimi_k2", 384, 8), ("qwen3_next", 512, 10), ("longcat_flash", 768, 12),
]
MODEL_BARS = [
    (f"{name}_{what}_seq/65536/{experts}/{k}", f"top_k_{what}_seq/65536/{experts}/{k}", 1, 1.6)
    for what in ("route", "backward")
    for name, experts, k in MODELS
]

BENCHMARKS = {"routing_bench": BARS, "formats_bench": FORMAT_BARS, "models_bench": MODEL_BARS}


def benchmark_of(run):
    """Which benchmark's run it is."""
    name = pathlib.Path(run["context"]["executable"]).name
    if name not in BENCHMARKS:
        sys.exit(f"the run is one of {name}; there are bars for {', '.join(BENCHMARKS)}")
    return name


def medians(run):
    """Row -> milliseconds."""
    found = {}
    for row in run["benchmarks"]:
        if row.get("aggregate_name") == "median":
            found[row["run_name"].removesuffix("/real_time")] = row["real_time"] * UNITS[row["time_unit"]]
    return found


def shown(milliseconds):
    return f"{milliseconds:.2f} ms" if milliseconds >= 1 else f"{1000 * milliseconds:.3g} us"


def judge(times, bars):
    """The table's lines, and the bars that are missed."""
    lines = ["| row | | against | | ratio | bar |", "|---|---:|---|---:|---:|---:|"]
    missed = []
    for row, against, work, bar in bars:
        if row not in times or against not in times:
            missed.append(f"{row} against {against}: not in this run")
            continue
        ratio = times[row] / times[against] / work
        per = "" if work == 1 else (", a token" if work < 0.01 else ", a score")
        lines.append(f"| `{row}` | {shown(times[row])} | `{against}`{per} | {shown(times[against])} | {ratio:.3g} | {bar:g} |")
        if ratio > bar:
            missed.append(f"{row} against {against}: {ratio:.3f}, and the bar is {bar:g}")
    return lines, missed


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=pathlib.Path)
    parser.add_argument("--write", type=pathlib.Path)
    args = parser.parse_args()
    run = json.loads(args.run.read_text())
    benchmark = benchmark_of(run)
    lines, missed = judge(medians(run), BENCHMARKS[benchmark])
    print("\n".join(lines))
    for line in missed:
        print(f"missed: {line}", file=sys.stderr)
    if args.write:
        text = args.write.read_text()
        marks = re.compile(MARKS.format(benchmark), re.DOTALL)
        if not marks.search(text):
            sys.exit(f"{args.write} has no marks figures:{benchmark}")
        args.write.write_text(marks.sub(lambda found: found[1] + "\n".join(lines) + found[2], text))
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
