"""SciPy: see the package's description. Its solver knows pairs only, so an expert stands there once for each token it
takes: T x T scores."""

import numpy as np
import scipy
from scipy.optimize import linear_sum_assignment

from .numpy_forms import array, tensor, wait  # noqa: F401

title = "SciPy"


def version():
    return scipy.__version__


def assign_pairs(scores):
    tokens, experts = scores.shape
    places = tokens // experts
    return linear_sum_assignment(np.repeat(scores, places, axis=1), maximize=True)[1] // places


assign = {"linear_sum_assignment, T x T": assign_pairs}
LARGEST = {"assign": 4096}  # T x T beyond that takes hours
