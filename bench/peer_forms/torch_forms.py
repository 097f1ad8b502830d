"""PyTorch, on the CPU with one thread or on the device of what it is given: see the package's description."""

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
    slot_by_expert = torch.arange(tokens, device=scores.device) - torch.repeat_interleave(load.cumsum(0) - load, load)
    fits = slot_by_expert < capacity
    slot = torch.empty_like(by_expert)
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
    order = torch.empty_like(token)
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
    choice = (expert[:, None] == torch.arange(scores.shape[1], device=scores.device)).to(scores.dtype)
    return route_one_hot(choice, expert, p, capacity)


def route_static(expert, gate, p, capacity):
    """A plan of choices [T, k] in shapes that no number decides, so that a GPU need not be waited for: `order` has T k
    places, those behind offsets[E] are padding."""
    tokens, k = expert.shape
    experts = p.shape[1]
    flat = expert.flatten()
    by_expert = torch.argsort(flat.to(torch.int32), stable=True)
    load = torch.zeros(experts, dtype=torch.int64, device=p.device).scatter_add_(0, flat, torch.ones_like(flat))
    kept = load.clamp(max=capacity)
    offsets = offsets_of(kept)
    of_row = flat[by_expert]
    slot_of_row = torch.arange(tokens * k, device=p.device) - (load.cumsum(0) - load)[of_row]
    fits = slot_of_row < capacity
    slot = torch.empty_like(by_expert).scatter_(0, by_expert, torch.where(fits, slot_of_row, -1)).view(tokens, k)
    place = torch.where(fits, offsets[of_row] + slot_of_row, tokens * k)
    order = torch.full((tokens * k + 1,), -1, device=p.device).scatter_(0, place, by_expert)[:-1]
    return Routed(expert, torch.where(slot >= 0, gate, 0.0), slot, offsets, order, load, kept,
                  balance_loss(load / k, p))


def switch_static(scores, capacity):
    p = torch.softmax(scores, 1)
    gate, expert = p.max(1, keepdim=True)
    made = route_static(expert, gate, p, capacity)
    return made._replace(expert=made.expert[:, 0], gate=made.gate[:, 0], slot=made.slot[:, 0])


def top_k_static(scores, k):
    """Without drops."""
    p = torch.softmax(scores, 1)
    gate, expert = p.topk(k, 1)
    return route_static(expert, gate, p, scores.shape[0])


def top_k_softmax(scores, k):
    return tuple(torch.softmax(scores, 1).topk(k, 1))


def combine_index_add(rows, gate, order, row):
    return torch.zeros_like(rows).index_add_(0, order, rows * gate[order, None])


def combine_gather(rows, gate, order, row):
    return rows.index_select(0, row).mul_(gate[:, None])


def combine_k_index_add(rows, gate, choice, row):
    """For k choices per token: gate[T, k], choice[T k] that each row is of, and its inverse."""
    y = torch.zeros(len(gate), rows.shape[1], dtype=rows.dtype, device=rows.device)
    return y.index_add_(0, choice // gate.shape[1], rows * gate.flatten()[choice, None])


def combine_k_gather(rows, gate, choice, row):
    tokens, k = gate.shape
    return torch.einsum("tkd,tk->td", rows.index_select(0, row).view(tokens, k, -1), gate)


switch = {"index": switch_index, "one-hot int64": switch_one_hot_int64, "one-hot float32": switch_one_hot_float32,
          "static shapes": switch_static}
top_k = {"softmax + topk": top_k_softmax}
top_k_plan = {"static shapes": top_k_static}  # with slots, offsets, order, loads and the loss; no drops
dispatch = {"index_select": lambda x, order: x.index_select(0, order)}
combine = {"index_add": combine_index_add, "gather": combine_gather}
combine_k = {"index_add": combine_k_index_add, "gather": combine_k_gather}
