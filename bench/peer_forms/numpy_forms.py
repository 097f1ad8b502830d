"""NumPy: see the package's description."""

import numpy as np

from . import BALANCE_WEIGHT, Routed

title = "NumPy"


def version():
    return np.__version__


def tensor(array):
    return array


def array(tensor):
    return np.asarray(tensor)


def wait(result):
    return result


def softmax(scores):
    p = np.exp(scores - scores.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    return p


def offsets_of(load):
    offsets = np.zeros(len(load) + 1, np.int64)
    np.cumsum(load, out=offsets[1:])
    return offsets


def balance_loss(load, p):
    tokens, experts = p.shape
    return BALANCE_WEIGHT * experts * np.sum(load / tokens * p.mean(0, dtype=np.float64))


def switch_index(scores, capacity):
    tokens, experts = scores.shape
    p = softmax(scores)
    expert = scores.argmax(1)
    gate = np.take_along_axis(p, expert[:, None], 1)[:, 0]
    by_expert = np.argsort(expert.astype(np.uint16), kind="stable")  # 16 bits: a radix sort
    load = np.bincount(expert, minlength=experts)
    slot_by_expert = np.arange(tokens) - np.repeat(np.cumsum(load) - load, load)
    fits = slot_by_expert < capacity
    slot = np.empty(tokens, np.int64)
    slot[by_expert] = np.where(fits, slot_by_expert, -1)
    kept = np.minimum(load, capacity)
    return Routed(expert, np.where(slot >= 0, gate, np.float32(0)), slot, offsets_of(kept), by_expert[fits], load, kept,
                  balance_loss(load, p))


def switch_one_hot(scores, capacity):
    tokens, experts = scores.shape
    p = softmax(scores)
    expert = scores.argmax(1)
    choice = (expert[:, None] == np.arange(experts)).astype(np.int32)
    position = (np.cumsum(choice, 0, dtype=np.int32) - 1) * choice
    kept = choice * (position < capacity)
    is_kept = kept.sum(1)
    gate = np.einsum("te,te->t", p, kept.astype(np.float32))
    slot = (position * kept).sum(1) + is_kept - 1
    load_after = kept.sum(0)
    offsets = offsets_of(load_after)
    token = np.flatnonzero(is_kept)
    order = np.empty(len(token), np.int64)
    order[offsets[expert[token]] + slot[token]] = token
    load = choice.sum(0)
    return Routed(expert, gate, slot, offsets, order, load, load_after, balance_loss(load, p))


def top_k_softmax(scores, k):
    p = softmax(scores)
    best = np.argpartition(p, -k, 1)[:, -k:]
    gate = np.take_along_axis(p, best, 1)
    falling = np.argsort(-gate, 1)
    return np.take_along_axis(gate, falling, 1), np.take_along_axis(best, falling, 1)


def combine_scatter(rows, gate, order, row):
    y = np.zeros_like(rows)
    y[order] = rows * gate[order, None]  # k = 1: no token twice, so no np.add.at
    return y


def combine_gather(rows, gate, order, row):
    y = rows[row]
    y *= gate[:, None]
    return y


switch = {"index": switch_index, "one-hot": switch_one_hot}
top_k = {"softmax + argpartition": top_k_softmax}
dispatch = {"x[order]": lambda x, order: x[order]}
combine = {"scatter": combine_scatter, "gather": combine_gather}
