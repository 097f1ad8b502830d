"""POT, Python Optimal Transport: see the package's description. `ot.emd` is a network simplex on the transport problem;
the plan of an optimum at a vertex has whole tokens only."""

import numpy as np
import ot

from .numpy_forms import array, tensor, wait  # noqa: F401

title = "POT"


def version():
    return ot.__version__


def assign_emd(scores):
    tokens, experts = scores.shape
    plan = ot.emd(np.ones(tokens), np.full(experts, tokens / experts), -scores.astype(np.float64), numItermax=10**9)
    return plan.argmax(1)


assign = {"emd": assign_emd}
