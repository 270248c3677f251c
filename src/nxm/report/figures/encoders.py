"""Whole encoders, dense and 2:4, in each type, compared with the strongest dense rival."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from nxm.report import bench, captions, style
from nxm.report.bench import Row
from nxm.report.evidence import Evidence

MARKS = {"dense": "o", "2:4": "s", "2:4 FFN": "D", "auto": "^"}
COLORS = {"fp32": "#777777", "bf16": "#0072b2", "fp16": "#56b4e9", "fp8": "#d55e00", "int8": "#009e73"}
PANELS_IN_A_ROW = 3


def draw(evidence: Evidence) -> Figure:
    """Return a panel per encoder, batch and length: the speed-up of each compiled form over the reference."""
    found = [row for file in evidence.bench for row in bench.timed(file, "encoders") if row["way"] == "compiled"]
    points = sorted({(row["model"], row["batch"] * row["length"], row["batch"], row["length"]) for row in found})
    if not points:
        figure, ((axes,),) = style.canvas(style.TWO_COLUMNS, 2.4)
        style.missing(axes, f"Study {evidence.study} has no encoder measured yet.")
        return figure
    types = [dtype for dtype in bench.TYPES if any(row["dtype"] == dtype for row in found)]
    columns = min(PANELS_IN_A_ROW, len(points))
    lines = -(-len(points) // columns)
    figure, grid = style.canvas(
        style.TWO_COLUMNS, lines * (0.28 * len(types) + 1.1) + 1.0, lines, columns, sharex=True, sharey=True
    )
    for axes in grid.flat[len(points) :]:
        axes.set_visible(False)
    for axes in grid.flat[: len(points)]:  # a panel without one below it
        axes.xaxis.set_tick_params(labelbottom=True)
    for axes, (model, _, batch, length) in zip(grid.flat, points, strict=False):
        own = [row for row in found if (row["model"], row["batch"], row["length"]) == (model, batch, length)]
        _panel(axes, own, types)
        rival = next((row for row in own if (row["dtype"], row["form"]) == ("bf16", "dense")), None)
        time = "" if rival is None else f"\nBF16 dense: {rival['median_ms']:.2f} ms"
        axes.set_title(f"{model}, {batch} × {length} tokens{time}", fontsize=8)
    _legend(figure, [form for form in MARKS if any(row["form"] == form for row in found)])
    graphs = any(row.get("captured") for row in found)
    run = f"compiled{' and captured in a CUDA graph' if graphs else ''}"
    shows = f"Random weights, no padding; {run}. Medians within rounds."
    style.footnote(figure, captions.measured(evidence, shows))
    return figure


def _panel(axes: Axes, rows: list[Row], types: list[str]) -> None:
    axes.axvline(1.0, color=style.INK, linewidth=0.8)
    offsets = {form: 0.18 * (index - 1.5) for index, form in enumerate(MARKS)}
    for row in rows:
        y = types.index(row["dtype"]) + offsets[row["form"]]
        color = COLORS[row["dtype"]]
        face = color if row["form"] == "dense" else "white"
        axes.plot(row["speedup"], y, MARKS[row["form"]], color=color, markerfacecolor=face, markersize=5)
    axes.set_yticks(range(len(types)), [bench.TYPES[dtype] for dtype in types])
    axes.set_ylim(len(types) - 0.5, -0.5)
    references = dict.fromkeys(bench.named_reference(row) for row in rows)
    usual = list(references) == ["BF16 dense, compiled"]  # as all that is drawn
    axes.set_xlabel(f"Speed-up over {'BF16 dense' if usual else ' or '.join(references)}")
    axes.grid(axis="x", color=style.PALE, linewidth=0.5)


def _legend(figure: Figure, forms: list[str]) -> None:
    handles = [
        Line2D(
            [],
            [],
            linestyle="",
            marker=MARKS[form],
            color=style.INK,
            markerfacecolor=style.INK if form == "dense" else "white",
            label=bench.FORMS[form][0].upper() + bench.FORMS[form][1:],
        )
        for form in forms
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=len(handles), frameon=False)
