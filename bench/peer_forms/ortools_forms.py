"""OR-Tools: see the package's description. `SimpleMinCostFlow` scales costs, which are integers: scores in units of
2^-24 of the largest."""

import numpy as np
import ortools
from ortools.graph.python import min_cost_flow

from .numpy_forms import array, tensor, wait  # noqa: F401

title = "OR-Tools"


def version():
    return ortools.__version__


def assign_flow(scores):
    tokens, experts = scores.shape
    units = 2.0**24 / max(np.abs(scores).max(), 1e-30)
    flow = min_cost_flow.SimpleMinCostFlow()
    arcs = flow.add_arcs_with_capacity_and_unit_cost(
        np.repeat(np.arange(tokens, dtype=np.int32), experts),
        np.tile(np.arange(tokens, tokens + experts, dtype=np.int32), tokens),
        np.ones(tokens * experts, np.int64), np.rint(-units * scores.ravel().astype(np.float64)).astype(np.int64))
    supplies = np.concatenate([np.ones(tokens, np.int64), np.full(experts, -(tokens // experts))])
    flow.set_nodes_supplies(np.arange(tokens + experts, dtype=np.int32), supplies)
    if flow.solve() != flow.OPTIMAL:
        raise RuntimeError("OR-Tools found no optimum")
    return flow.flows(arcs).reshape(tokens, experts).argmax(1)


assign = {"SimpleMinCostFlow": assign_flow}
