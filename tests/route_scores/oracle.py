"""What route_scores must write, computed with NumPy from the definitions and in double: no part of it is the library's.

The numbers of a routing come back as a dictionary with the keys of summary.json and the arrays' names.
"""

import math

import numpy as np

DEFAULTS = dict(k=2, softmax="before", renormalize=False, balance_count="first", capacity_factor=None, capacity=None,
                capacity_rounding="floor", capacity_minimum=0, capacity_multiple=1, drop_order="position",
                balance_weight=0.01, z_weight=0.0, noise="none", noise_scale=None, seed=0)

GUMBEL_PURPOSE, JITTER_PURPOSE = 3, 4


def philox_words(tokens, groups, key, purpose):
    """Philox4x32-10 (Salmon et al. 2011) for every (token, group of four columns): uint64 [tokens, groups, 4]."""
    mask = np.uint64(0xFFFFFFFF)
    shape = (tokens, groups)
    word = [np.broadcast_to(np.arange(tokens, dtype=np.uint64)[:, None], shape),
            np.broadcast_to(np.arange(groups, dtype=np.uint64)[None, :] ^ np.uint64(purpose << 24), shape),
            np.zeros(shape, np.uint64), np.zeros(shape, np.uint64)]
    low, high = key & 0xFFFFFFFF, key >> 32
    for _ in range(10):
        first = word[0] * np.uint64(0xD2511F53)
        second = word[2] * np.uint64(0xCD9E8D57)
        word = [(second >> np.uint64(32)) ^ word[1] ^ np.uint64(low), second & mask,
                (first >> np.uint64(32)) ^ word[3] ^ np.uint64(high), first & mask]
        low, high = (low + 0x9E3779B9) & 0xFFFFFFFF, (high + 0xBB67AE85) & 0xFFFFFFFF
    return np.stack(word, axis=-1)


def uniforms(tokens, experts, key, purpose):
    """float32 [tokens, experts] in (0, 1)."""
    groups = (experts + 3) // 4
    words = philox_words(tokens, groups, key, purpose).reshape(tokens, groups * 4)[:, :experts]
    u = ((words >> np.uint64(8)).astype(np.float32) + np.float32(0.5)) * np.float32(2.0**-24)
    return np.minimum(u, np.float32(1 - 2.0**-24))


def jittered(scores, scale, key):
    u = uniforms(*scores.shape, key, JITTER_PURPOSE)
    eps = np.float32(scale)
    factor = np.float32(1) - eps + np.float32(2) * eps * u
    return scores * factor.astype(scores.dtype)


def probabilities(scores):
    """The softmax of every row; rows with every expert forbidden are 0."""
    top = scores.max(axis=1, keepdims=True) if scores.size else np.zeros((len(scores), 1))
    top = np.where(np.isfinite(top), top, 0.0)
    e = np.exp(scores - top)
    total = e.sum(axis=1, keepdims=True)
    return np.divide(e, total, out=np.zeros_like(e), where=total > 0)


def log_sums(scores):
    top = scores.max(axis=1)
    open_row = np.isfinite(top)
    total = np.exp(scores - np.where(open_row, top, 0.0)[:, None]).sum(axis=1)
    return np.where(open_row, top + np.log(np.where(open_row, total, 1.0)), 0.0)


def sigmoid(s):
    return np.where(s >= 0, 1 / (1 + np.exp(-np.abs(s))), np.exp(-np.abs(s)) / (1 + np.exp(-np.abs(s))))


def capacity_of(o, router, tokens, experts, k):
    """None where there is no limit."""
    if o["capacity"] is not None:
        return o["capacity"]
    factor = o["capacity_factor"]
    if factor is None:
        if router != "switch":
            return None
        factor = 1.25
    share = k * tokens * factor / experts
    nearest = round(share)  # half to even
    if abs(share - nearest) <= 1e-9 * share:
        rows = nearest
    else:
        rows = {"floor": math.floor, "round": round, "ceil": math.ceil}[o["capacity_rounding"]](share)
    rows = max(rows, o["capacity_minimum"])
    return -(-rows // o["capacity_multiple"]) * o["capacity_multiple"]


def top_choices(ranked_by, k):
    """The k best columns of every row, best first, equal ones by column."""
    return np.argsort(-ranked_by, axis=1, kind="stable")[:, :k].astype(np.int32)


def require_clear_order(gates):
    """Falling gates are compared across implementations only where rounding cannot swap any two of them."""
    distinct = np.unique(gates)
    if len(distinct) > 1:
        gap = np.diff(distinct).min()
        assert gap > 1e-6, f"the test's scores have gates only {gap} apart: choose another seed"


def place(chosen, usable, gates, experts, capacity, drop_order):
    """Slots, offsets and order of choices, one after another: all first choices before any second."""
    tokens, k = chosen.shape
    slots = np.full((tokens, k), -1, np.int32)
    load = np.zeros(experts, np.int64)
    line = range(tokens)
    if drop_order == "gate" and tokens:
        require_clear_order(gates[:, 0])
        line = sorted(line, key=lambda t: (-gates[t, 0], t))
    for c in range(k):
        for t in line:
            if usable[t, c]:
                e = chosen[t, c]
                if capacity is None or load[e] < capacity:
                    slots[t, c] = load[e]
                load[e] += 1
    after = load if capacity is None else np.minimum(load, capacity)
    offsets = np.concatenate([[0], np.cumsum(after)]).astype(np.int64)
    order = np.full(offsets[-1], -1, np.int64)
    for t in range(tokens):
        for c in range(k):
            if slots[t, c] >= 0:
                order[offsets[chosen[t, c]] + slots[t, c]] = t * k + c
    return dict(experts=chosen, slots=slots, offsets=offsets, order=order, load_before=load, load_after=after)


def finished(scores, placed, gates, capacity):
    """What follows from slots and gates."""
    chosen, slots = placed["experts"], placed["slots"]
    kept = slots >= 0
    taken = np.take_along_axis(scores, chosen.astype(np.int64), axis=1).astype(np.float64)
    return dict(placed, gates=np.where(kept, gates, 0.0), kept=int(kept.sum()), dropped=int((~kept).sum()),
                total_score=math.fsum(taken[kept]), capacity=capacity, k=chosen.shape[1])


def route(scores, router, **given):
    """Routes by switch, top_k or greedy. `scores` are the file's."""
    o = dict(DEFAULTS, **given)
    scores = scores.astype(np.float64 if scores.dtype == np.float64 else np.float32)
    tokens, experts = scores.shape
    if router == "greedy":
        chosen = top_choices(scores, 1)
        picked = np.take_along_axis(scores, chosen.astype(np.int64), axis=1).astype(np.float64)
        placed = place(chosen, np.isfinite(picked), None, experts, None, "position")
        return dict(finished(scores, placed, sigmoid(picked), None), load_balancing_loss=None, z_loss=None)

    k = o["k"] if router == "top_k" else 1
    seen = scores
    if o["noise"] == "logit_jitter":
        seen = jittered(scores, 0.01 if o["noise_scale"] is None else o["noise_scale"], o["seed"])
    seen = seen.astype(np.float64)
    ranked_by = seen
    if o["noise"] == "sample" and router == "switch":
        u = uniforms(tokens, experts, o["seed"], GUMBEL_PURPOSE).astype(np.float64)
        ranked_by = seen + (1.0 if o["noise_scale"] is None else o["noise_scale"]) * -np.log(-np.log(u))
    chosen = top_choices(ranked_by, k)
    index = chosen.astype(np.int64)
    usable = np.isfinite(np.take_along_axis(seen, index, axis=1))
    p = probabilities(seen)
    gates = np.take_along_axis(p, index, axis=1)
    if router == "top_k" and o["softmax"] == "after":
        gates = probabilities(np.take_along_axis(seen, index, axis=1))
    if router == "top_k" and o["renormalize"]:
        total = gates.sum(axis=1, keepdims=True)
        gates = np.divide(gates, total, out=np.zeros_like(gates), where=total > 0)
    capacity = capacity_of(o, router, tokens, experts, k)
    placed = place(chosen, usable, gates, experts, capacity, o["drop_order"])

    counted = k if router == "top_k" and o["balance_count"] == "all" else 1
    f = np.bincount(chosen[:, :counted][usable[:, :counted]], minlength=experts) / max(tokens * counted, 1)
    mean_p = p.sum(axis=0) / max(tokens, 1)
    z = (log_sums(seen)**2).sum() / max(tokens, 1)
    return dict(finished(scores, placed, gates, capacity), load_balancing_loss=o["balance_weight"] * experts * f @ mean_p,
                z_loss=o["z_weight"] * z)


def best_assignment(cost):
    """The least total of a square cost matrix, one column a row: the Hungarian method, one augmenting path a row."""
    n = len(cost)
    u, v = np.zeros(n + 1), np.zeros(n + 1)
    row_of = np.zeros(n + 1, int)  # of each column, 1-based, 0: none
    for row in range(1, n + 1):
        row_of[0] = row
        least, came_from = np.full(n + 1, np.inf), np.zeros(n + 1, int)
        done = np.zeros(n + 1, bool)
        column = 0
        while row_of[column] != 0:
            done[column] = True
            i = row_of[column]
            reduced = cost[i - 1] - u[i] - v[1:]
            better = ~done[1:] & (reduced < least[1:])
            least[1:][better] = reduced[better]
            came_from[1:][better] = column
            nearest = int(np.argmin(np.where(done, np.inf, least)))
            step = least[nearest]
            u[row_of[done]] += step
            v[done] -= step
            least[~done] -= step
            column = nearest
        while column:
            row_of[column] = row_of[came_from[column]]
            column = came_from[column]
    return sum(cost[row_of[j] - 1, j - 1] for j in range(1, n + 1))


def best_balanced_total(scores):
    """The largest total of an assignment with floor(T/E) or ceil(T/E) tokens per expert; -inf where there is none."""
    tokens, experts = scores.shape
    low, high = tokens // experts, -(-tokens // experts)
    if tokens == 0:
        return 0.0
    never = 1e7  # dwarfs every score of the tests, and leaves digits for them
    copies = np.repeat(np.where(np.isfinite(scores), -scores.astype(np.float64), never), high, axis=1)
    extra = np.tile(np.arange(high) >= low, experts)  # the places of an expert that may stay empty
    empty = np.where(extra, 0.0, never)
    cost = np.vstack([copies, np.tile(empty, (experts * high - tokens, 1))])
    total = best_assignment(cost)
    return -total if total < never / 2 else -math.inf


def plan_of_assignment(scores, chosen):
    """What `base` must write around an assignment, whichever of the best ones it found."""
    picked = np.take_along_axis(scores, chosen.astype(np.int64), axis=1).astype(np.float64)
    placed = place(chosen, np.ones_like(chosen, bool), None, scores.shape[1], None, "position")
    return dict(finished(scores, placed, sigmoid(picked), None), load_balancing_loss=None, z_loss=None)
