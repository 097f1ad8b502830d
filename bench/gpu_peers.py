#!/usr/bin/env python3
"""Times what users of PyTorch write for routing on a GPU beside gpu_bench's rows, on the same device in the same run.

usage: gpu_peers.py [--bench gpu_bench | --rows FILE] [--no-compile] [--json FILE]

Every form runs as it is written, under torch.compile, and, where it waits for nothing, captured in a CUDA graph. Times
are gpu_bench's `cold`: between two CUDA events, medians of 31 runs after 5, a buffer of twice the L2 cache read before
each. A form that reads a number back waits between the events, as it does for its users. float32 scores, gaussian; the
forms are those of peers.py (docs/peers.md). That script compares their results with the library's, except those of
combining several choices per token.
--rows reads what gpu_bench printed in an earlier run on the same device.
Exit status: 0; 2 bad usage; 77 where there is no GPU or no PyTorch.
"""

import argparse
import json
import pathlib
import re
import statistics
import subprocess
import sys

RELEASE = pathlib.Path(__file__).resolve().parent.parent / "build" / "release"
FACTOR = 1.25
RUNS, WARMING = 31, 5
DEVICE = "cuda"


def library_rows(table):
    """{(operation, tokens, experts, k, width): microseconds} of gpu_bench's output, and the line that names the device."""
    rows = {}
    for line in table.splitlines():
        match = re.match(r"\| (\w+) \| (\d+) x (\d+), (\d+), (\d+) \| ([\d.]+) \|", line)  # cold
        if match:
            rows[match[1], *map(int, match.groups()[1:5])] = float(match[6])
    return table.splitlines()[0], rows


class Stopwatch:
    """Microseconds of a call on the current stream, as gpu_bench takes them."""

    def __init__(self, torch):
        self.torch = torch
        cache = torch.cuda.get_device_properties(0).L2_cache_size
        self.flush = torch.ones(2 * cache // 4, dtype=torch.int32, device=DEVICE)

    def __call__(self, call):
        times = []
        for run in range(WARMING + RUNS):
            begin, end = (self.torch.cuda.Event(enable_timing=True) for _ in range(2))
            self.flush.max()
            self.torch.cuda._sleep(200_000)  # cycles: the host has enqueued the call when it begins
            begin.record()
            result = call()
            end.record()
            end.synchronize()
            del result
            times.append(1000 * begin.elapsed_time(end))
        return statistics.median(times[WARMING:])


def graph_of(torch, call):
    """The call captured in a CUDA graph, or None where it cannot be: it waits, or its shapes depend on numbers."""
    side = torch.cuda.Stream()
    try:
        with torch.cuda.stream(side):
            for _ in range(3):
                call()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            call()
    except RuntimeError:
        torch.cuda.synchronize()
        return None
    return graph.replay


def cases(torch, forms):
    """(operation of gpu_bench, its shape, {form: call}) on fresh numbers."""
    torch.manual_seed(1)
    for tokens, experts in ((65536, 8), (65536, 64), (65536, 256), (4096, 64)):
        scores = torch.randn(tokens, experts, device=DEVICE)
        capacity = int(tokens * FACTOR / experts)
        yield "switch_route", (tokens, experts, 1, 0), {
            name: lambda call=call: call(scores, capacity) for name, call in forms.switch.items()}
    for tokens, experts, k in ((65536, 8, 2), (65536, 256, 8), (4096, 256, 8), (32, 256, 8)):
        scores = torch.randn(tokens, experts, device=DEVICE)
        yield "top_k_route", (tokens, experts, k, 0), {
            name: lambda call=call: call(scores, k) for name, call in (forms.top_k | forms.top_k_plan).items()}
    for tokens, experts, k, width in ((16384, 64, 1, 2048), (16384, 256, 8, 2048), (4096, 64, 2, 4096)):
        x = torch.randn(tokens, width, device=DEVICE)
        expert = torch.randn(tokens, experts, device=DEVICE).topk(k, 1).indices
        gate = torch.rand(tokens, k, device=DEVICE)
        by_expert = torch.argsort(expert.flatten(), stable=True)
        row = torch.empty_like(by_expert)
        row[by_expert] = torch.arange(len(by_expert), device=DEVICE)
        token = by_expert // k
        rows = x.index_select(0, token)
        yield "dispatch", (tokens, experts, k, width), {
            name: lambda call=call: call(x, token) for name, call in forms.dispatch.items()}
        yield "combine", (tokens, experts, k, width), {
            name: lambda call=call: call(rows, gate, by_expert, row) for name, call in forms.combine_k.items()}


def measured(torch, watch, name, call, compiles):
    """(how, microseconds) of each way of running a form."""
    yield name, watch(call)
    graph = graph_of(torch, call)
    if graph:
        yield f"{name}, CUDA graph", watch(graph)
    if compiles:
        compiled = torch.compile(call, dynamic=False)
        yield f"{name}, compiled", watch(compiled)
        graph = graph_of(torch, compiled)
        if graph:
            yield f"{name}, compiled, CUDA graph", watch(graph)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bench", type=pathlib.Path, default=RELEASE / "bench" / "gpu_bench")
    parser.add_argument("--rows", type=pathlib.Path, help="what gpu_bench printed, instead of running it")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out: it takes minutes")
    parser.add_argument("--json", type=pathlib.Path, help="write every time to this file")
    args = parser.parse_args()
    if not (args.rows or args.bench).exists():
        print(f"gpu_peers.py: there is no {args.rows or args.bench}; gpu_bench is built where nvcc is", file=sys.stderr)
        return 2
    try:
        import torch

        from peer_forms import torch_forms
    except ImportError as problem:
        print(f"skipped: {problem}")
        return 77
    if not torch.cuda.is_available():
        print("skipped: PyTorch sees no GPU")
        return 77

    if args.rows:
        table = args.rows.read_text()
    else:
        table = subprocess.run([str(args.bench)], capture_output=True, text=True, check=True).stdout
    device, library = library_rows(table)
    print(f"{device}; PyTorch {torch.__version__}\n")
    print("| operation | tokens x experts, k, width | library, us | form | us | ratio |\n|---|---|---:|---|---:|---:|")
    watch, times = Stopwatch(torch), []
    for operation, shape, forms in cases(torch, torch_forms):
        own = library[operation, *shape]
        for name, call in forms.items():
            for how, time in measured(torch, watch, name, call, not args.no_compile):
                times.append({"operation": operation, "shape": shape, "library": own, "form": how, "microseconds": time})
                tokens, experts, k, width = shape
                print(f"| `{operation}` | {tokens} x {experts}, {k}, {width} | {own:.1f} | {how} | {time:.1f} | "
                      f"{time / own:.1f} |", flush=True)
        torch._dynamo.reset()
    if args.json:
        args.json.write_text(json.dumps({"device": device, "torch": torch.__version__, "rows": times}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
