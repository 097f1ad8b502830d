"""JAX on the CPU, compiled by jit: see the package's description. Shapes are fixed, so `order` is padded to T."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from . import BALANCE_WEIGHT, Routed

title = "JAX"
jax.config.update("jax_platforms", "cpu")


def version():
    return jax.__version__


def tensor(array):
    return jnp.asarray(array)


def array(tensor):
    return np.asarray(tensor)


def wait(result):
    return jax.block_until_ready(result)


def offsets_of(load):
    return jnp.pad(jnp.cumsum(load), (1, 0))


def balance_loss(load, p):
    tokens, experts = p.shape
    return BALANCE_WEIGHT * experts * jnp.sum(load / tokens * p.mean(0))


def tokens_by_row(row, is_kept):
    """Tokens in the order of their rows; those that are not kept are written nowhere."""
    tokens = row.shape[0]
    return jnp.full(tokens, -1).at[jnp.where(is_kept, row, tokens)].set(jnp.arange(tokens), mode="drop")


@partial(jax.jit, static_argnames="capacity")
def switch_index(scores, capacity):
    tokens, experts = scores.shape
    p = jax.nn.softmax(scores, 1)
    expert = scores.argmax(1)
    gate = jnp.take_along_axis(p, expert[:, None], 1)[:, 0]
    by_expert = jnp.argsort(expert, stable=True)
    load = jnp.bincount(expert, length=experts)
    slot_by_expert = jnp.arange(tokens) - (jnp.cumsum(load) - load)[expert[by_expert]]
    slot = jnp.zeros(tokens, jnp.int32).at[by_expert].set(slot_by_expert, unique_indices=True)
    is_kept = slot < capacity
    kept = jnp.minimum(load, capacity)
    offsets = offsets_of(kept)
    return Routed(expert, jnp.where(is_kept, gate, 0), jnp.where(is_kept, slot, -1), offsets,
                  tokens_by_row(offsets[expert] + slot, is_kept), load, kept, balance_loss(load, p))


@partial(jax.jit, static_argnames="capacity")
def switch_one_hot(scores, capacity):
    experts = scores.shape[1]
    p = jax.nn.softmax(scores, 1)
    expert = scores.argmax(1)
    choice = jax.nn.one_hot(expert, experts, dtype=jnp.int32)
    position = (jnp.cumsum(choice, 0) - 1) * choice
    kept = choice * (position < capacity)
    is_kept = kept.sum(1)
    gate = jnp.einsum("te,te->t", p, kept.astype(p.dtype))
    slot = (position * kept).sum(1) + is_kept - 1
    load_after = kept.sum(0)
    offsets = offsets_of(load_after)
    load = choice.sum(0)
    return Routed(expert, gate, slot, offsets, tokens_by_row(offsets[expert] + slot, is_kept > 0), load, load_after,
                  balance_loss(load, p))


@partial(jax.jit, static_argnames="k")
def top_k_softmax(scores, k):
    return tuple(jax.lax.top_k(jax.nn.softmax(scores, 1), k))


@jax.jit
def dispatch_take(x, order):
    return x[order]


@jax.jit
def combine_add(rows, gate, order, row):
    return jnp.zeros_like(rows).at[order].add(rows * gate[order, None])


@jax.jit
def combine_gather(rows, gate, order, row):
    return rows[row] * gate[:, None]


switch = {"index": switch_index, "one-hot": switch_one_hot}
top_k = {"softmax + top_k": top_k_softmax}
dispatch = {"x[order]": dispatch_take}
combine = {"at[].add": combine_add, "gather": combine_gather}
