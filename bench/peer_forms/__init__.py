"""What users of NumPy, PyTorch and JAX write for routing, and of SciPy, POT and OR-Tools for the balanced assignment,
one module a framework, for ../peers.py.

Every module has the same names:
    title, version()             what it is
    tensor(array), array(tensor) from and to NumPy
    wait(result)                 returns when the result has been computed
    switch, top_k, dispatch, combine, assign    forms by name: {form: function}; those operations that it has
    LARGEST                      {operation: most tokens}, where there is a limit

    switch[form](scores[T, E], capacity) -> Routed        weight 0.01 of the balance loss
    top_k[form](scores[T, E], k) -> (gate[T, k], expert[T, k])
    dispatch[form](x[T, D], order[T]) -> rows[T, D]
    combine[form](rows[T, D], gate[T], order[T], row[T]) -> y[T, D]      row is the inverse of order
    assign[form](scores[T, E]) -> expert[T]        the balanced assignment of the largest sum of scores; E divides T

Forms are written as a careful user of the framework would: nothing is prepared outside of them but their inputs, and
the results are fresh tensors. Where two ways of writing a step were measured, the faster one stands here.
"""

from typing import Any, NamedTuple

BALANCE_WEIGHT = 0.01


class Routed(NamedTuple):
    """Where every token goes. Slots are -1 and gates 0 where the token was dropped."""

    expert: Any  # [T]
    gate: Any  # [T]
    slot: Any  # [T]
    offsets: Any  # [E + 1], over kept tokens
    order: Any  # tokens by expert, then slot; what follows offsets[E] is padding (JAX: shapes are fixed)
    load_before: Any  # [E]
    load_after: Any  # [E]
    loss: Any  # load balancing, weight included
