#!/usr/bin/env python3
"""Makes report.html from a study's results.json: pictures of what train_language_model saw, in one file that opens offline.

usage: report.py FOLDER                  reads FOLDER/results.json, writes FOLDER/report.html
       report.py FOLDER --picture FILE   writes only the loss by step, as a picture in FILE's format (svg, png)
"""

import base64
import html
import io
import json
import pathlib
import statistics
import sys

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt  # noqa: E402
import numpy as np  # noqa: E402

# Okabe and Ito's colours, told apart by everyone.
COLOURS = ["#000000", "#d55e00", "#0072b2", "#56b4e9", "#009e73", "#cc79a7", "#e69f00", "#f0e442"]
STYLES = [{"color": colour, "linestyle": line} for line in ("-", "--", "-.", ":") for colour in COLOURS]
SIZE = (4.2, 3.0)  # inches: 400 pixels wide, so that letters keep their size on a telephone

STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 1240px; padding: 12px; color: #111; background: #fff; }
h1 { font-size: 1.6em; } h2 { font-size: 1.25em; margin-top: 2em; } h3 { font-size: 1.05em; }
.pictures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 370px), 1fr)); gap: 16px; }
figure { margin: 0; } figure img { width: 100%; max-width: 560px; height: auto; } figcaption { font-size: .9em; color: #333; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9em; } th, td { padding: 4px 10px; border-bottom: 1px solid #ccc; text-align: right; }
th:first-child, td:first-child { text-align: left; }
details { margin: 8px 0; } summary { cursor: pointer; padding: 4px 0; }
.expert { margin: 10px 0; border-left: 3px solid #0072b2; padding-left: 10px; overflow-wrap: anywhere; }
code { font: 13px/1.5 ui-monospace, monospace; white-space: pre-wrap; display: block; }
mark { background: #ffd54d; }
"""


def byte_name(byte):
    """A byte as a person reads it."""
    named = {9: "\\t", 10: "\\n", 13: "\\r", 32: "space"}
    return named.get(byte) or (chr(byte) if 32 < byte < 127 else f"0x{byte:02x}")


def text_of(numbers):
    """Bytes as text on one line."""
    return "".join({10: "\u23ce", 13: "", 9: "\u21e5"}.get(b) or (chr(b) if 32 <= b < 127 else "\u00b7") for b in numbers)


def picture(figure, caption):
    """A figure as HTML."""
    drawn = io.BytesIO()
    figure.savefig(drawn, format="svg", metadata={"Date": None})
    plt.close(figure)
    data = base64.b64encode(drawn.getvalue()).decode()
    return (f'<figure><img alt="{html.escape(caption)}" src="data:image/svg+xml;base64,{data}">'
            f"<figcaption>{html.escape(caption)}</figcaption></figure>")


def axes(x, y, title):
    figure, ax = plt.subplots(figsize=SIZE, layout="constrained")
    ax.set_xlabel(x)
    ax.set_ylabel(y)
    ax.set_title(title)
    ax.grid(alpha=0.3)
    return figure, ax


def by_name(runs):
    """Runs of each name, in the order of the results."""
    groups = {}
    for run in runs:
        groups.setdefault(run["name"], []).append(run)
    return groups


def curve(runs, of):
    """x, median, least, most of of(evaluation) over seeds; None is left out."""
    rows = {}
    for run in runs:
        for at in run["evaluations"]:
            value = of(at)
            if value is not None:
                rows.setdefault(at["step"], []).append((value, at["seconds"]))
    steps = sorted(rows)
    values = [[value for value, _ in rows[step]] for step in steps]
    seconds = [statistics.median(s for _, s in rows[step]) for step in steps]
    return (np.array(steps), np.array(seconds), np.array([statistics.median(v) for v in values]),
            np.array([min(v) for v in values]), np.array([max(v) for v in values]))


def loss_figure(groups, by_second):
    goals = [statistics.median(run["validation_bits"] for run in runs)
             for runs in groups.values() if runs[0]["router"] == "dense"]
    ends = [run["validation_bits"] for runs in groups.values() for run in runs]
    starts = [at["validation_bits"] for runs in groups.values() for run in runs for at in run["evaluations"]]
    unit = "second of training" if by_second else "step"
    figure, ax = axes(unit, "bits per byte, held-out text", f"Loss by {'second' if by_second else 'step'}")
    for style, (name, runs) in zip(STYLES * 9, groups.items()):
        steps, seconds, middle, least, most = curve(runs, lambda at: at["validation_bits"])
        x = seconds if by_second else steps
        ax.plot(x, middle, **style, label=name, linewidth=1.5)
        ax.fill_between(x, least, most, color=style["color"], alpha=0.15, linewidth=0)
    if goals:
        ax.axhline(goals[0], color=COLOURS[0], linewidth=0.8, linestyle=":")
    ax.set_ylim(min(ends) - 0.1, min(max(starts), max(ends) + 1.5))
    ax.legend(fontsize=8)
    return figure


def loss_pictures(groups):
    return [picture(loss_figure(groups, by_second),
                    f"Loss on held-out text by {'second of training' if by_second else 'step'}; dotted: the dense model's "
                    "last. Lines are medians over seeds, bands least to most.") for by_second in (False, True)]


def layer_mean(at, key):
    return statistics.mean(layer[key] for layer in at["load"]) if at["load"] else None


def load_pictures(groups):
    """Balance over time: how uneven, how many dropped, and each expert's share."""
    made = []
    for key, label, factor, title in (("dropped_share", "dropped choices, %", 100, "Dropped by capacity"),
                                      ("variation", "coefficient of variation", 1, "How uneven the experts' loads are")):
        figure, ax = axes("step", label, title)
        for style, (name, runs) in zip(STYLES * 9, groups.items()):
            steps, _, middle, least, most = curve(runs, lambda at: layer_mean(at, key))
            if len(steps):
                ax.plot(steps, factor * middle, **style, label=name, linewidth=1.5)
                ax.fill_between(steps, factor * least, factor * most, color=style["color"], alpha=0.15, linewidth=0)
        ax.set_ylim(bottom=0)
        ax.legend(fontsize=8)
        made.append(picture(figure, f"{title}, in training, by step."))
    for name, runs in groups.items():
        seen = [at for at in runs[0]["evaluations"] if at["load"]]
        for layer in range(len(seen[0]["load"]) if seen else 0):
            share = np.array([at["load"][layer]["share"] for at in seen]).T
            share = share[np.argsort(-share[:, -1], kind="stable")]
            figure, ax = axes("step", "expert, busiest first", f"{name}: load of each expert" +
                              (f", layer {layer}" if len(seen[0]["load"]) > 1 else ""))
            ax.grid(False)
            image = ax.imshow(share * len(share), aspect="auto", cmap="viridis", vmin=0, vmax=4, interpolation="nearest",
                              extent=(0, seen[-1]["step"], len(share) - 0.5, -0.5))
            figure.colorbar(image, ax=ax, label="load / mean load", extend="max")
            made.append(picture(figure, f"{name}, seed {runs[0]['seed']}: tokens that chose each expert in training, "
                                        "before capacity, over the mean."))
    return made


def byte_counts(layer):
    counts = np.zeros((len(layer["experts"]), 256))
    for e, expert in enumerate(layer["experts"]):
        for byte, count in expert["bytes"].items():
            counts[e, int(byte)] = count
    return counts


def bytes_picture(name, number, layer, many_layers):
    counts = byte_counts(layer)
    common = np.argsort(-counts.sum(0), kind="stable")[:24]
    common = [b for b in common if counts[:, b].sum() > 0]
    share = counts[:, common] / counts[:, common].sum(0)
    # Experts in the order of the byte they take most of.
    order = np.argsort(share.argmax(1), kind="stable")
    figure, ax = axes("byte just before the one to be told", "expert",
                      f"{name}: who takes which bytes" + (f", layer {number}" if many_layers else ""))
    ax.grid(False)
    image = ax.imshow(share[order], aspect="auto", cmap="magma_r", vmin=0, vmax=1)
    ax.set_xticks(range(len(common)), [byte_name(b).replace("$", "\\$") for b in common], fontsize=7,
                  rotation=90 if any(len(byte_name(b)) > 2 for b in common) else 0)
    ax.set_yticks(range(len(order)), order, fontsize=7)
    figure.colorbar(image, ax=ax, label="share of the byte's tokens")
    return picture(figure, f"{name}: of the tokens of each of the most common bytes, the share that each expert takes, on "
                           "held-out text.")


def expert_text(number, expert, counts, total):
    mine = counts[number]
    share = mine.sum() / max(1, total)
    top = [b for b in np.argsort(-mine, kind="stable")[:8] if mine[b] > 0]
    bytes_ = ", ".join(f"{html.escape(byte_name(b))} {100 * mine[b] / mine.sum():.0f} %" for b in top)
    lines = [f'<div class="expert"><b>Expert {number}</b>, {100 * share:.1f} % of the tokens'
             + (f". Most often after: {bytes_}" if top else ", none")]
    for one in expert["examples"]:
        before = text_of(one["before"])
        lines.append(f"<code>{html.escape(before[:-1])}<mark>{html.escape(before[-1:])}</mark>"
                     f"{html.escape(text_of(one['after']))}</code>")
    return "".join(lines) + "</div>"


def experts_section(groups):
    pictures, texts = [], []
    for name, runs in groups.items():
        run = runs[0]
        for number, layer in enumerate(run["layers"]):
            many = len(run["layers"]) > 1
            pictures.append(bytes_picture(name, number, layer, many))
            counts = byte_counts(layer)
            experts = "".join(expert_text(e, expert, counts, counts.sum()) for e, expert in enumerate(layer["experts"]))
            texts.append(f"<details><summary>{html.escape(name)}{f', layer {number}' if many else ''}: examples of what "
                         f"each expert takes</summary>{experts}</details>")
    if not pictures:
        return ""
    return ('<h2>Which expert takes which bytes</h2><p>The router sees all the context; the pictures show only the byte just '
            "before. In the examples that byte is marked; \u23ce is a line's end.</p>"
            f'<div class="pictures">{"".join(pictures)}</div>{"".join(texts)}')


def spread(numbers, digits, factor=1):
    """Median, and least and most where there are several."""
    numbers = [factor * n for n in numbers if n is not None]
    if not numbers:
        return "-"
    text = f"{statistics.median(numbers):.{digits}f}"
    return text + (f" [{min(numbers):.{digits}f}, {max(numbers):.{digits}f}]" if len(numbers) > 1 else "")


def table(groups):
    heads = ["router", "parameters", "bits per byte", "steps to dense", "seconds to dense", "load CV", "max / mean",
             "dropped %", "routing %"]
    rows = []
    for name, runs in groups.items():
        def late(key, factor=1, digits=2):
            return spread([layer[key] for run in runs for layer in run["late_load"]], digits, factor)
        is_dense = runs[0]["router"] == "dense"
        rows.append([name, f"{runs[0]['parameters']:,}", spread([run["validation_bits"] for run in runs], 3),
                     "-" if is_dense else spread([run["steps_to_dense"] for run in runs], 0),
                     "-" if is_dense else spread([run["seconds_to_dense"] for run in runs], 1), late("variation"),
                     late("max_over_mean"), late("dropped_share", 100, 1),
                     "-" if is_dense else spread([run["routing_share"] for run in runs], 1, 100)])
    cells = "".join("<tr>" + "".join(f"<td>{html.escape(str(cell))}</td>" for cell in row) + "</tr>" for row in rows)
    return (f'<div class="wide"><table><thead><tr>{"".join(f"<th>{head}</th>" for head in heads)}</tr></thead>'
            f"<tbody>{cells}</tbody></table></div>")


def page(results):
    groups = by_name(results["runs"])
    asked = results["options"]
    seeds = max(len(runs) for runs in groups.values())
    unfinished = [run["name"] for run in results["runs"] if not run["complete"]]
    note = f"<p><b>Interrupted:</b> {html.escape(', '.join(unfinished))} did not end.</p>" if unfinished else ""
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>switchyard: a language model with every router</title><style>{STYLE}</style></head><body>
<h1>A language model over bytes, trained with every router</h1>
<p>{results["text_bytes"]:,} bytes of text, of which {results["held_out_bytes"]:,} are held out; {asked["experts"]} experts
of hidden width {asked["hidden"]} (half in top_2), {asked["layers"]} layer{"s" if asked["layers"] > 1 else ""} of them,
{asked["width"]} numbers per token, {asked["context"]} bytes of context; {asked["steps"]:,} steps of {asked["tokens"]:,}
tokens; {seeds} seed{"s" if seeds > 1 else ""}. Every kind of run does the same work per token.</p>{note}
{table(groups)}
<p>Steps and seconds to dense: when the run was first as good as the dense model is at its end. Loads, before capacity, and
dropped choices are means over the second half of training. Routing: the share of training's time that routing, dispatch and
combine take with their backward.</p>
<h2>Loss</h2><div class="pictures">{"".join(loss_pictures(groups))}</div>
<h2>Balance</h2><div class="pictures">{"".join(load_pictures(groups))}</div>
{experts_section(groups)}
</body></html>
"""


def main(arguments):
    draws_one = len(arguments) == 3 and arguments[1] == "--picture"
    if len(arguments) != 1 and not draws_one:
        print(__doc__.strip(), file=sys.stderr)
        return 2
    folder = pathlib.Path(arguments[0])
    plt.rcParams.update({"font.size": 9, "axes.titlesize": 10, "svg.hashsalt": "switchyard", "svg.fonttype": "path",
                         "axes.spines.top": False, "axes.spines.right": False})
    results = json.loads((folder / "results.json").read_text())
    if draws_one:
        loss_figure(by_name(results["runs"]), by_second=False).savefig(arguments[2], metadata={"Date": None} if
                                                                       arguments[2].endswith(".svg") else None)
        return 0
    partial = folder / "report.html.partial"
    partial.write_text(page(results), encoding="utf-8")
    partial.rename(folder / "report.html")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
