"""PyTorch on the CPU, one thread: see the package's description."""

import torch
import torch.nn.functional as F

from . import BALANCE_WEIGHT, Routed

title = "PyTorch"
torch.set_num_threads(1)
torch.set_grad_enabled(False)


def version():
    return torch.__version__


def tensor(array):
    return torch.from_numpy(array)


def array(tensor):
    return tensor.numpy()


def wait(result):
    return result


def offsets_of(load):
    return F.pad(load.cumsum(0), (1, 0))


def balance_loss(load, p):
    tokens, experts = p.shape
    return BALANCE_WEIGHT * experts * (load / tokens * p.mean(0)).sum()


def switch_index(scores, capacity):
    tokens, experts = scores.shape
    p = torch.softmax(scores, 1)
    expert = scores.max(1).indices  # faster than argmax
    gate = p.gather(1, expert[:, None])[:, 0]
    by_expert = torch.argsort(expert.to(torch.int32), stable=True)
    load = torch.bincount(expert, minlength=experts)
    slot_by_expert = torch.arange(tokens) - torch.repeat_interleave(load.cumsum(0) - load, load)
    fits = slot_by_expert < capacity
    slot = torch.empty(tokens, dtype=torch.int64)
    slot[by_expert] = torch.where(fits, slot_by_expert, -1)
    kept = load.clamp(max=capacity)
    return Routed(expert, torch.where(slot >= 0, gate, 0.0), slot, offsets_of(kept), by_expert[fits], load, kept,
                  balance_loss(load, p))


def route_one_hot(choice, expert, p, capacity):
    """From choice[T, E], 1 at every token's expert and 0 elsewhere."""
    position = (choice.cumsum(0) - 1) * choice
    kept = choice * (position < capacity)
    is_kept = kept.sum(1).to(torch.int64)
    gate = (p * kept).sum(1)
    slot = (position * kept).sum(1).to(torch.int64) + is_kept - 1
    load, load_after = choice.sum(0).to(torch.int64), kept.sum(0).to(torch.int64)
    offsets = offsets_of(load_after)
    token = is_kept.nonzero()[:, 0]
    order = torch.empty(len(token), dtype=torch.int64)
    order[offsets[expert[token]] + slot[token]] = token
    return Routed(expert, gate, slot, offsets, order, load, load_after, balance_loss(load, p))


def switch_one_hot_int64(scores, capacity):
    """Masks as F.one_hot makes them."""
    p = torch.softmax(scores, 1)
    expert = scores.max(1).indices
    return route_one_hot(F.one_hot(expert, scores.shape[1]), expert, p, capacity)


def switch_one_hot_float32(scores, capacity):
    """Masks in the type of the scores, by comparison; counts are exact up to 2^24 tokens."""
    p = torch.softmax(scores, 1)
    expert = scores.max(1).indices
    choice = (expert[:, None] == torch.arange(scores.shape[1])).to(scores.dtype)
    return route_one_hot(choice, expert, p, capacity)


def top_k_softmax(scores, k):
    return tuple(torch.softmax(scores, 1).topk(k, 1))


def combine_index_add(rows, gate, order, row):
    return torch.zeros_like(rows).index_add_(0, order, rows * gate[order, None])


def combine_gather(rows, gate, order, row):
    return rows.index_select(0, row).mul_(gate[:, None])


switch = {"index": switch_index, "one-hot int64": switch_one_hot_int64, "one-hot float32": switch_one_hot_float32}
top_k = {"softmax + topk": top_k_softmax}
dispatch = {"index_select": lambda x, order: x.index_select(0, order)}
combine = {"index_add": combine_index_add, "gather": combine_gather}
