"""Figure 1: the layers that are made sparse, and the pattern on a patch of a trained matrix."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from nxm.report import captions, statistics, style
from nxm.report.evidence import Evidence
from nxm.study.results import Result

SPARSE = "#0072B2"


def draw(evidence: Evidence) -> Figure:
    """Return the block (left) and |w| of a patch before and after (right), from the study's first NxM run."""
    figure = Figure(figsize=(style.TWO_COLUMNS, 3.9), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(1.0, 1.9))
    run = next((r for r in statistics.whole_runs(evidence.results) if r.name == "nxm" and r.admm is not None), None)
    _block(left.subplots(), run)
    if run is None:
        style.missing(right.subplots(), f"Study {evidence.study} has no result of NxM yet: no trained matrix to show.")
    else:
        _patches(right, run)
    style.footnote(
        figure,
        captions.caption(
            evidence,
            "(a) Blue: matrices in the set. (b), (c) |w| before and after.",
            [run.task] if run else None,
            seeds=[run.seed] if run else None,
        ),
    )
    return figure


def _block(axes: Axes, run: Result | None) -> None:
    axes.set(xlim=(0, 10), ylim=(-0.1, 16.2), xticks=[], yticks=[], title="(a) Layers made sparse")
    axes.axis("off")

    def box(x: float, y: float, width: float, height: float, text: str, sparse: bool) -> None:
        axes.add_patch(
            FancyBboxPatch(
                (x, y),
                width,
                height,
                boxstyle="round,pad=0,rounding_size=0.25",
                linewidth=0.9,
                facecolor=SPARSE if sparse else "white",
                edgecolor=SPARSE if sparse else style.GREY,
            )
        )
        axes.text(
            x + width / 2,
            y + height / 2,
            text,
            ha="center",
            va="center",
            fontsize=8,
            color="white" if sparse else style.INK,
        )

    def arrow(x0: float, y0: float, x1: float, y1: float) -> None:
        axes.annotate(
            "",
            (x1, y1),
            (x0, y0),
            arrowprops={
                "arrowstyle": "-|>",
                "color": style.GREY,
                "linewidth": 0.8,
                "shrinkA": 0,
                "shrinkB": 0,
                "mutation_scale": 6,
            },
        )

    axes.add_patch(
        FancyBboxPatch(
            (0.2, 1.65),
            9.6,
            11.9,
            boxstyle="round,pad=0,rounding_size=0.35",
            linewidth=0.8,
            facecolor="#f5f5f5",
            edgecolor=style.PALE,
        )
    )
    box(2.2, 0.0, 5.6, 1.1, "Embeddings", False)
    for x, name in ((0.8, "Q"), (3.8, "K"), (6.8, "V")):
        box(x, 2.4, 2.4, 1.15, name, True)
        arrow(5.0, 1.1, x + 1.2, 2.4)
        arrow(x + 1.2, 3.55, 5.0 + (x - 3.8) * 0.5, 4.3)
    stack = (
        (4.3, "Self-attention", False),
        (6.05, "Attention output", True),
        (7.6, "Add & norm", False),
        (9.15, "FFN1", True),
        (10.7, "FFN2", True),
        (12.25, "Add & norm", False),
        (14.6, "Pooler, classifier", False),
    )
    for y, text, sparse in stack:
        box(2.0, y, 6.0, 1.1, text, sparse)
    for (below, _, _), (above, _, _) in pairwise(stack):
        arrow(5.0, below + 1.1, 5.0, above)
    axes.text(
        9.95,
        13.75,
        f"× {run.model.layers} blocks" if run else "× blocks",
        ha="right",
        va="bottom",
        fontsize=8,
        color=style.GREY,
    )


def _patches(area: Figure, run: Result) -> None:
    example = run.admm.example
    before, after = (np.abs(np.array(patch)) for patch in (example.before, example.after))
    pattern = run.sparsity.pattern or ""
    kept, group = (int(n) for n in pattern.split(":")) if pattern.count(":") == 1 else (None, before.shape[1])
    axes = area.subplots(2, 1)
    top = max(before.max(), after.max())
    meaning = f"{kept} of each {group} survive" if kept else pattern
    for place, values, title in zip(
        axes,
        (before, after),
        ("(b) A patch of weights, pretrained", f"(c) The same after NxM {pattern}: {meaning}"),
        strict=True,
    ):
        edges = range(0, values.shape[1] + 1, group)
        sns.heatmap(values, cmap="Blues", vmin=0, vmax=top, linewidths=0.8, cbar=False, yticklabels=False, ax=place)
        zero_rows, zero_columns = np.nonzero(values == 0)
        place.plot(
            zero_columns + 0.5,
            zero_rows + 0.5,
            linestyle="",
            marker="x",
            color="#9a9a9a",
            markersize=3.2,
            markeredgewidth=0.7,
        )
        for edge in edges:
            place.axvline(edge, color=style.INK, linewidth=1.0, clip_on=False)
        place.set_xticks(edges, edges, rotation=0)
        place.set(title=title, ylabel="Outputs")
        place.tick_params(length=0)
    axes[0].tick_params(labelbottom=False)
    axes[1].set_xlabel(f"Inputs, in groups of {group}   (× pruned)\n{_short(example.matrix)}")
    area.colorbar(
        axes[0].collections[0], ax=list(axes), label="|w|", shrink=0.7, aspect=25, pad=0.02
    ).outline.set_visible(False)


def _short(name: str) -> str:
    """Return a parameter's name without the prefix common to all: `layer.0.intermediate.dense.weight`."""
    return name[name.find("layer.") :] if "layer." in name else name
