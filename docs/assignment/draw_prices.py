#!/usr/bin/env python3
"""Draws prices.svg: how prices move loads, on tokens and experts in the plane.

Needs NumPy and matplotlib. The prices are those that examples/assignment_report finds and proves; from the root of the
repository, after a build:

    /usr/bin/python3 docs/assignment/draw_prices.py build/release/examples/assignment_report docs/assignment/prices.svg

usage: draw_prices.py ASSIGNMENT_REPORT OUT.svg
"""

import io
import pathlib
import re
import subprocess
import sys
import tempfile

import matplotlib

matplotlib.use("svg")
matplotlib.rcParams.update({"svg.hashsalt": "prices", "svg.fonttype": "none", "font.size": 9, "font.family": "sans-serif"})
import matplotlib.pyplot as plt
import numpy as np

TOKENS, EXPERTS = 160, 8


def make_tokens():
    """Tokens in two clouds, a large and a small one, and experts anywhere. A score is minus the squared distance."""
    rng = np.random.default_rng(3)
    large = rng.normal([0.33, 0.38], 0.14, size=(TOKENS * 3 // 4, 2))
    small = rng.normal([0.75, 0.72], 0.12, size=(TOKENS // 4, 2))
    tokens = np.clip(np.vstack([large, small]), 0.02, 0.98)
    experts = rng.uniform(0.08, 0.92, size=(EXPERTS, 2))
    scores = -((tokens[:, None, :] - experts[None, :, :]) ** 2).sum(axis=2)
    return tokens, experts, scores


def solve(program, scores):
    """The experts' prices at the best balanced assignment."""
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        np.save(folder / "S.npy", scores)
        subprocess.run([program, "--scores", folder / "S.npy", "--prices", folder / "P.npy"], check=True,
                       stdout=subprocess.DEVNULL)
        return np.load(folder / "P.npy")


def cell(experts, prices, e):
    """The polygon of points that expert e suits best: the unit square, cut by a line for every other expert."""
    corners = [np.array(c, float) for c in ((0, 0), (1, 0), (1, 1), (0, 1))]
    for f in range(len(experts)):
        if f == e or not corners:
            continue
        # |x - c_e|^2 + p_e <= |x - c_f|^2 + p_f, linear in x: normal . x <= offset
        normal = 2 * (experts[f] - experts[e])
        offset = experts[f] @ experts[f] - experts[e] @ experts[e] + prices[f] - prices[e]
        kept = []
        for a, b in zip(corners, corners[1:] + corners[:1]):
            over_a, over_b = normal @ a - offset, normal @ b - offset
            if over_a <= 0:
                kept.append(a)
            if over_a * over_b < 0:
                kept.append(a + (b - a) * over_a / (over_a - over_b))
        corners = kept
    return np.array(corners)


def draw_cells(axes, tokens, experts, scores, prices, colours, title):
    margins = np.sort(scores - prices, axis=1)
    torn = margins[:, -1] - margins[:, -2] < 1e-9
    best = (scores - prices).argmax(axis=1)
    for e, colour in enumerate(colours):
        corners = cell(experts, prices, e)
        if len(corners):
            axes.fill(*corners.T, facecolor=colour, alpha=0.25, edgecolor="0.35", linewidth=0.8)
        axes.plot(*experts[e], marker="s", markersize=6, color=colour, markeredgecolor="black")
        axes.annotate(f"{e}", experts[e], xytext=(4, 4), textcoords="offset points", fontweight="bold")
    axes.scatter(*tokens[~torn].T, s=9, c=[colours[e] for e in best[~torn]], edgecolors="none")
    if torn.any():
        axes.scatter(*tokens[torn].T, s=22, c="white", edgecolors="black", linewidths=1)
    axes.set(xlim=(0, 1), ylim=(0, 1), xticks=[], yticks=[], aspect="equal", title=title)
    return torn.sum()


def draw_loads(axes, scores, prices, colours):
    parts = np.linspace(0, 1, 101)
    loads = np.array([np.bincount((scores - part * prices).argmax(axis=1), minlength=EXPERTS) for part in parts])
    for e, colour in enumerate(colours):
        axes.plot(parts, loads[:, e], color=colour, linewidth=1.6)
        beside = np.flatnonzero(loads[0, :e] == loads[0, e]).size  # others that begin where this one does
        axes.annotate(f"{e}", (0, loads[0, e]), xytext=(-9 - 8 * beside, -3), textcoords="offset points",
                      fontweight="bold", color=colour)
    axes.axhline(TOKENS / EXPERTS, color="black", linewidth=0.8, linestyle="--")
    axes.set(xlim=(0, 1), xticks=[0, 0.5, 1], xticklabels=["no prices", "half of them", "the prices"],
             title="loads on the way")
    axes.tick_params(axis="y", labelleft=False, left=False, labelright=True, right=True)
    axes.get_xticklabels()[-1].set_horizontalalignment("right")
    return loads


def main(program, out):
    tokens, experts, scores = make_tokens()
    prices = solve(program, scores)
    colours = plt.get_cmap("Dark2").colors[:EXPERTS]
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(10.4, 3.6), layout="constrained")
    draw_cells(left, tokens, experts, scores, np.zeros(EXPERTS), colours, "no prices: every token to its best expert")
    torn = draw_cells(middle, tokens, experts, scores, prices, colours, "the prices that balance")
    loads = draw_loads(right, scores, prices, colours)
    drawn = io.StringIO()
    figure.savefig(drawn, format="svg", metadata={"Date": None})
    lines = re.sub(r"\d+\.\d{3,}", lambda number: f"{float(number[0]):.2f}", drawn.getvalue())
    pathlib.Path(out).write_text("\n".join(line.rstrip() for line in lines.splitlines()) + "\n")
    print(f"loads without prices: {loads[0].tolist()}")
    print(f"prices: {np.round(prices, 4).tolist()}")
    print(f"tokens on a border: {torn}")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(pathlib.Path(sys.argv[1]).resolve(), sys.argv[2])
