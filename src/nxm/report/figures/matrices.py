"""Heat maps of the speed-up of 2:4 over dense products, by the matrix's shape and the batch's size."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure

from nxm.report import captions, paper, style
from nxm.report.evidence import Evidence

Row = dict[str, Any]

DENSE_KERNELS = ("dense", "masked")  # the other ways are 2:4 kernels


def draw(evidence: Evidence) -> Figure:
    """Return a panel per device and dtype: the fastest 2:4 kernels, or the masked matrix in dense kernels if none."""
    panels = [
        (measured, dtype)
        for measured in evidence.matrices
        for dtype in dict.fromkeys(row["dtype"] for row in measured["rows"] if "median_ms" in row)
    ]
    if not panels:
        figure, ((axes,),) = style.canvas(style.TWO_COLUMNS, 2.4)
        style.missing(axes, f"Study {evidence.study} has no product measured yet. {' '.join(_absences(evidence))}")
        return figure
    shapes = list(dict.fromkeys(tuple(row["shape"]) for measured, _ in panels for row in measured["rows"]))
    rows_of_panels = -(-len(panels) // 3)
    figure, grid = style.canvas(
        style.TWO_COLUMNS, rows_of_panels * (0.22 * len(shapes) + 1.0) + 1.4, rows_of_panels, 3, sharey=True
    )
    for axes in grid.flat[len(panels) :]:
        axes.set_visible(False)
    timed = [row for measured, _ in panels for row in measured["rows"] if "median_ms" in row]
    scale = max(1.0, *(abs(np.log2(row["speedup_over_dense"])) for row in timed))
    for axes, (measured, dtype) in zip(grid.flat, panels, strict=False):
        rows = [row for row in measured["rows"] if row["dtype"] == dtype]
        _panel(axes, rows, shapes, scale)
        axes.set_title(f"{measured['device'].upper()}, {dtype}: {_kernels(rows)}")
    for axes in grid[:, 0]:
        axes.set_ylabel("Outputs × inputs")
    _scale_with_the_papers_range(figure, grid)
    style.footnote(figure, captions.measured(evidence, "Medians.", [*_marks(timed), *_absences(evidence)]))
    return figure


def best(rows: list[Row], shape: tuple[int, int], point: tuple[int, int]) -> Row | None:
    """Return the fastest row of 2:4 kernels at a shape and point, or the masked matrix in dense kernels if none."""
    own = [
        row
        for row in rows
        if tuple(row["shape"]) == shape and (row["batch"], row["length"]) == point and "median_ms" in row
    ]
    sparse = [row for row in own if row["way"] not in DENSE_KERNELS]
    masked = [row for row in own if row["way"] == "masked"]
    return max(sparse or masked, key=lambda row: row["speedup_over_dense"], default=None)


def _panel(axes: Axes, rows: list[Row], shapes: list[tuple[int, int]], scale: float) -> None:
    points = list(dict.fromkeys((row["batch"], row["length"]) for row in rows))
    found = [[best(rows, shape, point) for point in points] for shape in shapes]
    values = [[np.log2(cell["speedup_over_dense"]) if cell else np.nan for cell in line] for line in found]
    texts = [[_text(cell) if cell else "" for cell in line] for line in found]
    columns = [f"{batch}×{length}" for batch, length in points]
    index = [f"{out}×{inside}" for out, inside in shapes]
    sns.heatmap(
        pd.DataFrame(values, index, columns),
        annot=pd.DataFrame(texts, index, columns),
        fmt="",
        annot_kws={"fontsize": 8},
        cmap="RdBu",
        norm=TwoSlopeNorm(0.0, -scale, scale),
        cbar=False,
        linewidths=0.5,
        ax=axes,
    )
    axes.tick_params("x", rotation=45)
    axes.tick_params("y", rotation=0)
    axes.set_xlabel("Batch × tokens")


def _text(row: Row) -> str:
    return f"{'~' if row['noisy'] else ''}{'†' if _fell_back(row) else ''}{row['speedup_over_dense']:.2f}"


def _scale_with_the_papers_range(figure: Figure, grid: np.ndarray) -> None:
    """Add the colours' scale, with a bar over the range that the paper cites."""
    low, high = paper.MATMUL_SPEEDUP
    image = grid.flat[0].collections[0]
    label = "Speed-up over dense (bar: the paper's range, for an A100)"
    bar = figure.colorbar(image, ax=grid, location="bottom", aspect=60, pad=0.02, label=label)
    ticks = (0.5, 1.0, low, high, 2.0)
    bar.set_ticks([float(np.log2(tick)) for tick in ticks], labels=[f"{tick:g}×" for tick in ticks])
    bar.ax.plot(np.log2([low, high]), [0.5, 0.5], color=style.INK, linewidth=3, solid_capstyle="butt")


def _fell_back(row: Row) -> bool:
    return row["way"] not in DENSE_KERNELS and not row["sparse_kernels"]


def _kernels(rows: list[Row]) -> str:
    sparse = any(row["way"] not in DENSE_KERNELS and "median_ms" in row for row in rows)
    return "2:4 kernels" if sparse else "masked"


def _absences(evidence: Evidence) -> list[str]:
    devices = [f"{file['device'].upper()}: {file['absent']}" for file in evidence.matrices if "absent" in file]
    rows = [row["absent"].rstrip(".") for file in evidence.matrices for row in file["rows"] if "absent" in row]
    return [f"Absent: {reason.rstrip('.')}." for reason in dict.fromkeys([*devices, *rows])]


def _marks(rows: list[Row]) -> list[str]:
    marks = []
    if any(_kernels([row]) == "masked" for row in rows):
        marks.append("Masked: 2:4 in dense kernels, which gains nothing.")
    if any(row["noisy"] for row in rows):
        marks.append("~: the spread of a time is over 10 %.")
    if any(_fell_back(row) for row in rows):
        marks.append("†: the profiler saw no sparse kernel.")
    return marks
