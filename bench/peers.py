#!/usr/bin/env python3
"""Times what users of PyTorch, JAX, NumPy, SciPy, POT and OR-Tools write today for the results of this library, and
checks that they agree.

usage: peers.py [--bench routing_bench] [--program route_scores] [--operations ...] [--clock cpu] [--json FILE] ...

One thread, pinned to one core; float32; medians after warm-up; the library is measured before and after its peers.
It installs nothing: frameworks that are missing are left out with a notice. docs/peers.md says what the forms do.
Exit status: 0; 1 where results disagree, or with --require-bars where a bar is missed or cannot be judged; 2 bad usage.
"""

import argparse
import importlib
import json
import os
import pathlib
import platform
import statistics
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).resolve().parent
RELEASE = HERE.parent / "build" / "release"
OPERATIONS = ["switch", "top_k", "dispatch", "combine", "assign"]
PEERS = {"numpy": "numpy", "torch": "torch", "jax": "jax", "scipy": "scipy", "pot": "POT", "ortools": "ortools"}
TOLERANCE = 1e-6  # of gates and rows, absolute; of the loss and the total score, relative
FACTOR = 1.25
K = 8
WIDTH = 512
SLOW = 2000  # ms: forms that take longer are measured less often

# (library's row, peer, its form, how many times faster the library should be). At these sizes only.
BARS = [("switch_route_seq/65536/64", "PyTorch", "index", 8), ("switch_route_seq/65536/64", "PyTorch", "one-hot", 40),
        ("switch_route_seq/65536/256", "PyTorch", "index", 8), ("switch_route_seq/65536/256", "PyTorch", "one-hot", 40),
        ("top_k_route_seq/65536/256/8", "PyTorch", "softmax + topk", 10),
        ("hungarian_seq/4096/64/recorded", "SciPy", "linear_sum_assignment", 2000)]
COMPILED = ", compiled"


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bench", type=pathlib.Path, default=RELEASE / "bench" / "routing_bench")
    parser.add_argument("--assignment-bench", type=pathlib.Path, default=RELEASE / "bench" / "assignment_bench")
    parser.add_argument("--program", type=pathlib.Path, default=RELEASE / "examples" / "route_scores")
    parser.add_argument("--operations", nargs="+", choices=OPERATIONS, default=OPERATIONS)
    parser.add_argument("--peers", nargs="+", choices=list(PEERS), default=list(PEERS))
    parser.add_argument("--tokens", type=int, default=65536)
    parser.add_argument("--experts", type=int, nargs="+", default=[64, 256], help="of switch")
    parser.add_argument("--assign-tokens", type=int, nargs="+", default=[4096, 65536],
                        help="of assign, for 64 experts; multiples of 64")
    parser.add_argument("--repeat", type=int, default=7, help="measured runs")
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall",
                        help="what ratios are of; cpu where others use the machine")
    parser.add_argument("--cpu", type=int, help="the core to run on (the last one allowed)")
    parser.add_argument("--keep-memory", action="store_true",
                        help="glibc keeps what is freed, so that fresh results cost no page faults")
    parser.add_argument("--compile", action="store_true", help="PyTorch's forms also under torch.compile")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=pathlib.Path, help="write everything to this file")
    parser.add_argument("--require-bars", action="store_true")
    args = parser.parse_args()
    if args.repeat < 1 or args.tokens < 1 or min(args.experts) < 1:
        parser.error("--repeat, --tokens and --experts must be at least 1")
    if min(args.assign_tokens) < 64 or any(tokens % 64 for tokens in args.assign_tokens):
        parser.error("--assign-tokens must be multiples of 64: each expert takes as many")
    if args.cpu is not None and args.cpu not in os.sched_getaffinity(0):
        parser.error(f"--cpu {args.cpu} is not one of {sorted(os.sched_getaffinity(0))}")
    return args


def use_one_thread(args):
    """Before any framework is loaded, since they read this once. The core is what binds all of them, JAX included."""
    os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "NPROC": "1",
                   "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false"}
    kept = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 40), "MALLOC_TOP_PAD_": str(1 << 26)}
    if args.keep_memory and os.environ.get("MALLOC_MMAP_MAX_") != "0":  # read by the C library at start only
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | kept)
    args.cpu = max(os.sched_getaffinity(0)) if args.cpu is None else args.cpu
    os.sched_setaffinity(0, {args.cpu})


def load_peers(names):
    peers = []
    for name in names:
        try:
            peers.append(importlib.import_module(f"peer_forms.{name}_forms"))
        except (ImportError, OSError) as problem:  # OSError: shared libraries that are not there
            print(f"notice: no {name} ({problem}): pip install {PEERS[name]}; see docs/peers.md")
    return peers


def processor():
    for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor()


# --- inputs -----------------------------------------------------------------------------------------------------------

def gaussian_scores(np, generator, tokens, experts):
    """Standard normal numbers. Rows of which two of the best K + 1 are within 1e-5 are drawn again: rounding in a
    softmax could swap those, and a comparison of integers would then mean nothing."""
    scores = generator.standard_normal((tokens, experts), dtype=np.float32)
    best = min(experts, K + 1)
    close = np.arange(tokens)
    while len(close):
        top = np.sort(np.partition(scores[close], experts - best, 1)[:, experts - best:], 1)
        close = close[(np.diff(top, axis=1) < 1e-5).any(1)]
        scores[close] = generator.standard_normal((len(close), experts), dtype=np.float32)
    return scores


def balanced_scores(np, generator, tokens, experts):
    """Every expert is the best of as many tokens, at random places."""
    scores = np.zeros((tokens, experts), np.float32)
    scores[np.arange(tokens), generator.permutation(np.arange(tokens) % experts)] = 1
    return scores


def skewed_scores(np, generator, tokens, experts):
    """What assignment_bench calls skewed: clusters of tokens, Zipf's law, and random experts."""
    centres = generator.standard_normal((4 * experts, 64), dtype=np.float32)
    weights = generator.standard_normal((experts, 64), dtype=np.float32) * np.float32(2 / 8)
    share = 1 / np.arange(1, 4 * experts + 1)
    cluster = generator.choice(4 * experts, size=tokens, p=share / share.sum())
    x = centres[cluster] + np.float32(0.7) * generator.standard_normal((tokens, 64), dtype=np.float32)
    return x @ weights.T


# --- measurement ------------------------------------------------------------------------------------------------------

def measure(call, repeat):
    """(median wall, median cpu) in milliseconds, two calls to warm up (JAX compiles in the first). A call that takes
    seconds is warmed up by the check before, and measured three times at most."""
    times = []
    while len(times) < repeat + 2:
        wall, cpu = time.perf_counter(), time.process_time()
        result = call()
        times.append((1e3 * (time.perf_counter() - wall), 1e3 * (time.process_time() - cpu)))
        del result  # its memory goes before the next call, as in a loop
        if min(times)[0] > SLOW and len(times) >= min(3, repeat):
            return tuple(statistics.median(each) for each in zip(*times))
    return tuple(statistics.median(each) for each in zip(*times[2:]))


def disagreement(np, names, expected, result):
    """The largest difference of real numbers and, if any, a sentence on what disagrees."""
    worst = 0.0
    for name, e, r in zip(names, expected, result):
        e, r = np.asarray(e), np.asarray(r)
        if name == "order":  # JAX pads
            r = r[:len(e)] if (r[len(e):] == -1).all() else r
        if e.shape != r.shape:
            return worst, f"{name}: shape {r.shape}, not {e.shape}"
        if np.issubdtype(e.dtype, np.integer):
            wrong = np.argwhere(e != r)
            if len(wrong):
                at = tuple(wrong[0])
                return worst, f"{name}{list(map(int, at))} = {r[at]}, not {e[at]} ({len(wrong)} differ)"
        elif e.size:
            difference = np.abs(e.astype(np.float64) - r).max() / (abs(e) if name in ("loss", "score") else 1)
            worst = max(worst, float(difference))
            if not difference <= TOLERANCE:
                return worst, f"{name} differs by {difference:.1e}"
    return worst, None


def ms(value):
    return " " * 9 + "-" if value is None else f"{value:10.3f}"


class Session:
    """The peers, the library, and the rows measured so far."""

    def __init__(self, args, folder):
        import numpy

        from peer_forms import numpy_forms
        from peer_forms.library import Library

        self.np, self.args, self.folder, self.by_numpy = numpy, args, folder, numpy_forms
        self.peers = load_peers(args.peers)
        self.library = Library(args.bench, args.assignment_bench, args.program, args.repeat)
        self.generator = numpy.random.default_rng(args.seed)
        self.rows = []

    def save(self, name, scores):
        path = self.folder / f"{name}.npy"
        self.np.save(path, scores)
        return path

    def forms(self, peer, operation):
        forms = dict(getattr(peer, operation, {}))
        if self.args.compile and peer.title == "PyTorch":
            import torch

            forms |= {form + COMPILED: torch.compile(call, dynamic=False) for form, call in forms.items()}
        return forms

    def compare(self, operation, row, inputs, checks, program_ms=None, recorded=None, derive=None):
        """Times every form on `inputs` between two runs of the library's bench row, and checks it.

        checks: [(inputs, names of results, expected results)], of what `derive` makes of a form's results
        """
        print(f"\n{row.replace('_seq', '')}", flush=True)
        times = self.library.bench_times(row, recorded)
        measured = []
        for peer in self.peers:
            if len(inputs[0]) > getattr(peer, "LARGEST", {}).get(operation, len(inputs[0])):
                continue
            tensors = [peer.tensor(i) if isinstance(i, self.np.ndarray) else i for i in inputs]
            for form, call in self.forms(peer, operation).items():
                worst, problem = self.check(peer, call, checks, derive)
                wall, cpu = measure(lambda: peer.wait(call(*tensors)), self.args.repeat)
                measured.append({"operation": operation, "row": row, "peer": peer.title, "form": form, "wall_ms": wall,
                                 "cpu_ms": cpu, "largest_difference": worst, "disagreement": problem})
        times += self.library.bench_times(row, recorded)
        source = "assignment_bench" if recorded else "routing_bench"
        library = [statistics.median(each) for each in zip(*times)]
        if not library and program_ms is not None:
            source, library = "route_scores", [program_ms, None]
        self.report(source, library, measured)

    def check(self, peer, call, checks, derive):
        worst = 0.0
        for inputs, names, expected in checks:
            tensors = [peer.tensor(i) if isinstance(i, self.np.ndarray) else i for i in inputs]
            result = peer.wait(call(*tensors))
            result = [peer.array(r) if hasattr(r, "shape") else r for r in
                      (result if isinstance(result, tuple) else (result,))]
            result = derive(*result) if derive else result
            difference, problem = disagreement(self.np, names, expected, result)
            worst = max(worst, difference)
            if problem:
                return worst, problem
        return worst, None

    def report(self, source, library, measured):
        clock = 0 if self.args.clock == "wall" else 1
        own = library[clock] if library else None
        print(f"  {'':10} {'form':28}{'wall ms':>10}{'cpu ms':>10}{'x library':>11}  agrees")
        if library:
            print(f"  {'switchyard':10} {source:28}{ms(library[0])}{ms(library[1])}{1 if own else '-':>11}")
        for row in measured:
            row["library_ms"], row["library_source"] = own, source if library else None
            row["ratio"] = row[f"{self.args.clock}_ms"] / own if own else None
            agrees = row["disagreement"] or f"yes ({row['largest_difference']:.0e})"
            ratio = f"{row['ratio']:.1f}" if own else "-"
            print(f"  {row['peer']:10} {row['form']:28}{ms(row['wall_ms'])}{ms(row['cpu_ms'])}{ratio:>11}  {agrees}")
        self.rows += measured

    # --- operations ---------------------------------------------------------------------------------------------------

    def switch(self):
        names = ("expert", "gate", "slot", "offsets", "order", "load_before", "load_after", "loss")
        for experts in self.args.experts:
            tokens = self.args.tokens
            scores = gaussian_scores(self.np, self.generator, tokens, experts)
            path = self.save(f"switch_{experts}", scores)
            checks = []
            for factor in (1.0, FACTOR):  # the first drops tokens; the second is the one timed
                capacity = int(tokens * factor / experts)
                expected, program_ms = self.library.switch(path, factor)
                checks.append(((scores, capacity), names, expected or self.by_numpy.switch_index(scores, capacity)))
            self.compare("switch", f"switch_route_seq/{tokens}/{experts}", (scores, capacity), checks, program_ms)

    def top_k(self):
        tokens, experts = self.args.tokens, 256
        scores = gaussian_scores(self.np, self.generator, tokens, experts)
        path = self.save("top_k", scores)
        expected, program_ms = self.library.top_k(path, K)
        checks = [((scores, K), ("gate", "expert"), expected or self.by_numpy.top_k_softmax(scores, K))]
        self.compare("top_k", f"top_k_route_seq/{tokens}/{experts}/{K}", (scores, K), checks, program_ms)
        if any(self.forms(peer, "top_k_plan") for peer in self.peers):
            self.top_k_plan(scores, path)

    def top_k_plan(self, scores, path):
        """The whole plan of top-k. Its slots go by token in the peers' forms and by choice in the library, so of slots and order
        only that they name the same rows is compared."""
        np = self.np
        made = self.library.route(path, ["--router", "top_k", "--k", K, "--balance-count", "all"])
        if made is None:
            print("\nnotice: the plans of top-k are left out: only route_scores knows what is right")
            return
        summary = made.summary

        def parts(expert, gate, slot, offsets, order, load_before, load_after, loss):
            rows = np.ravel(np.asarray(offsets)[expert] + slot)
            return expert, gate, offsets, load_before, load_after, loss, np.asarray(order)[rows]

        names = ("expert", "gate", "offsets", "load_before", "load_after", "loss", "choice of each row")
        own = parts(made.experts, made.gates, made.slots, made.offsets, made.order, np.array(summary["load_before"]),
                    np.array(summary["load_after"]), np.array(summary["load_balancing_loss"]))
        self.compare("top_k_plan", f"top_k_route_seq/{len(scores)}/{scores.shape[1]}/{K}", (scores, K),
                     [((scores, K), names, own)], summary["milliseconds"], derive=parts)

    def movement(self):
        """What dispatch and combine move: tokens, outputs of experts, and the library's plan for a balanced choice."""
        np, tokens, experts = self.np, self.args.tokens, 64
        scores = balanced_scores(np, self.generator, tokens, experts)
        capacity = int(tokens * FACTOR / experts)
        plan = self.library.switch(self.save("balanced", scores), FACTOR)[0]
        plan = plan or self.by_numpy.switch_index(scores, capacity)
        order, gate = np.ascontiguousarray(plan[4], np.int64), np.ascontiguousarray(plan[1])
        if len(order) != tokens:
            raise SystemExit(f"peers: --tokens {tokens} over {experts} experts drops {tokens - len(order)} tokens; "
                             "dispatch and combine are compared without drops")
        row = np.empty_like(order)
        row[order] = np.arange(tokens)
        return self.generator.standard_normal((tokens, WIDTH), dtype=np.float32), order, gate, row

    def dispatch(self):
        x, order, _, _ = self.movement()
        self.compare("dispatch", f"dispatch_seq/{len(x)}/64", (x, order), [((x, order), ("rows",), (x[order],))])

    def combine(self):
        rows, order, gate, row = self.movement()
        expected = rows[row].astype(self.np.float64) * gate[:, None]
        inputs = (rows, gate, order, row)
        self.compare("combine", f"combine_seq/{len(rows)}/64", inputs, [(inputs, ("y",), (expected,))])

    def assign(self):
        """Optima need not be the same assignment: what agrees is the total score, and that the loads are equal."""
        np, experts = self.np, 64
        for tokens in self.args.assign_tokens:
            scores = skewed_scores(np, self.generator, tokens, experts)
            path = self.save(f"assign_{tokens}", scores)

            def outcome(expert):
                total = scores[np.arange(tokens), expert].sum(dtype=np.float64)
                return total, np.bincount(expert, minlength=experts)

            expected, program_ms = self.library.assign(path)
            if expected is None:
                print(f"\nnotice: assign at {tokens} tokens is left out: only route_scores knows what is right")
                continue
            checks = [((scores,), ("score", "load"), outcome(*expected))]
            self.compare("assign", f"hungarian_seq/{tokens}/{experts}/recorded", (scores,), checks, program_ms, path,
                         outcome)


def verdict_of(rows, bar):
    """(ratio, verdict) of the rows of one form's variants."""
    if any(row["disagreement"] for row in rows):
        return None, "not judged: results disagree"
    ratios = [row["ratio"] for row in rows if row["library_source"] != "route_scores" and row["ratio"] is not None]
    if not ratios:
        return None, "not measured"
    return min(ratios), "met" if min(ratios) >= bar else "missed"


def judge(session):
    """Each bar's verdict, printed: against the fastest variant of the form, PyTorch's without its compiler."""
    clock = session.args.clock
    print(f"\nBars (the library against a peer's form, its fastest variant that is not compiled; {clock} time):")
    verdicts = []
    for name, peer, form, bar in BARS:
        ratio, verdict = verdict_of([row for row in session.rows if row["row"] == name and row["peer"] == peer
                                     and row["form"].startswith(form) and not row["form"].endswith(COMPILED)], bar)
        shown = "" if ratio is None else f"{ratio:.1f} x, "
        print(f"  {name:30} {peer:8} {form:21} >= {bar:4} x: {shown}{verdict}")
        verdicts.append({"row": name, "peer": peer, "form": form, "bar": bar, "ratio": ratio, "verdict": verdict})
    return verdicts


def main():
    args = arguments()
    use_one_thread(args)
    try:
        import numpy
    except ImportError:
        print("peers: NumPy is needed: pip install numpy, or apt-get install python3-numpy", file=sys.stderr)
        return 2
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        session = Session(args, pathlib.Path(folder))
        machine = {"cpu": processor(), "core": args.cpu, "threads": 1, "python": platform.python_version(),
                   "numpy": numpy.__version__, "load_average": load, "clock": args.clock, "repeat": args.repeat,
                   "keep_memory": args.keep_memory,
                   "peers": {peer.title: peer.version() for peer in session.peers}}
        print(f"{machine['cpu']}, core {args.cpu}, 1 thread; Python {machine['python']}; "
              + ", ".join(f"{title} {version}" for title, version in machine["peers"].items())
              + f"; medians of {args.repeat}; ratios of {args.clock} time"
              + ("; freed memory kept" if args.keep_memory else ""))
        if load > 0.3:
            print(f"notice: load average {load:.1f}: others use the machine, so these figures are provisional")
        if not session.library.router:
            print("notice: without route_scores the peers are checked against NumPy's index form, not the library")
        for operation in args.operations:
            getattr(session, operation)()
    verdicts = judge(session)
    if args.json:
        args.json.write_text(json.dumps({"machine": machine, "rows": session.rows, "bars": verdicts}, indent=1) + "\n")
    if any(row["disagreement"] for row in session.rows):
        print("peers: results disagree", file=sys.stderr)
        return 1
    return 1 if args.require_bars and any(verdict["verdict"] != "met" for verdict in verdicts) else 0


if __name__ == "__main__":
    sys.exit(main())
