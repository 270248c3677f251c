"""The speed-up of 2:4 over dense by shape of the matrix and size of the batch, as heat maps."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from nxm.report import paper, statistics, style
from nxm.report.evidence import Evidence

Row = dict[str, Any]

DENSE_KERNELS = ("dense", "masked")  # the other ways are 2:4 kernels


def draw(evidence: Evidence) -> Figure:
    """One panel a device and dtype: the fastest 2:4 kernels over dense ones.

    Where there are none: the masked matrix in dense kernels, which must be about 1.
    """
    panels = [
        (measured, dtype)
        for measured in evidence.matrices
        for dtype in dict.fromkeys(row["dtype"] for row in measured["rows"] if "median_ms" in row)
    ]
    if not panels:
        figure, ((axes,),) = style.canvas(style.TWO_COLUMNS, 2.4)
        style.missing(axes, f"Study {evidence.study} has no product measured yet. {' '.join(_absent(evidence))}")
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
        image = _panel(axes, [row for row in measured["rows"] if row["dtype"] == dtype], shapes, scale)
        axes.set_title(f"{measured['device'].upper()}, {dtype}: {_what(measured, dtype)}")
    for axes in grid[:, 0]:
        axes.set_ylabel("Outputs × inputs")
    _scale_with_the_papers_range(figure, image, grid)
    style.footnote(figure, _said(evidence, [measured for measured, _ in panels]))
    return figure


def best(rows: list[Row], shape: tuple[int, int], point: tuple[int, int]) -> Row | None:
    """The fastest 2:4 way of a unit; where there is none the masked matrix in dense kernels."""
    own = [
        row
        for row in rows
        if tuple(row["shape"]) == shape and (row["batch"], row["length"]) == point and "median_ms" in row
    ]
    sparse = [row for row in own if row["way"] not in DENSE_KERNELS]
    masked = [row for row in own if row["way"] == "masked"]
    return max(sparse or masked, key=lambda row: row["speedup_over_dense"], default=None)


def _panel(axes: Axes, rows: list[Row], shapes: list[tuple[int, int]], scale: float) -> AxesImage:
    points = list(dict.fromkeys((row["batch"], row["length"]) for row in rows))
    found = [[best(rows, shape, point) for point in points] for shape in shapes]
    values = np.array([[np.log2(cell["speedup_over_dense"]) if cell else np.nan for cell in line] for line in found])
    image = axes.imshow(values, cmap="RdBu", norm=TwoSlopeNorm(0.0, -scale, scale), aspect="auto")
    for y, line in enumerate(found):
        for x, cell in enumerate(line):
            if cell:
                marks = ("~" if cell["noisy"] else "") + ("†" if _fell_back(cell) else "")
                dark = abs(values[y, x]) > 0.6 * scale
                text = f"{marks}{cell['speedup_over_dense']:.2f}"
                axes.text(x, y, text, ha="center", va="center", fontsize=8, color="white" if dark else style.INK)
    axes.set_xticks(range(len(points)), [f"{batch}×{length}" for batch, length in points], rotation=45)
    axes.set_yticks(range(len(shapes)), [f"{out}×{inside}" for out, inside in shapes])
    axes.set_xlabel("Batch × tokens")
    axes.grid(False)
    return image


def _scale_with_the_papers_range(figure: Figure, image: AxesImage, grid: np.ndarray) -> None:
    """The colours' scale, with the range that the paper cites on it."""
    low, high = paper.MATMUL_SPEEDUP
    bar = figure.colorbar(image, ax=grid, location="bottom", aspect=60, pad=0.02, label="Speed-up over dense")
    ticks = (0.5, 1.0, low, high, 2.0)
    bar.set_ticks([float(np.log2(tick)) for tick in ticks], labels=[f"{tick:g}×" for tick in ticks])
    bar.ax.plot(np.log2([low, high]), [0.5, 0.5], color=style.INK, linewidth=3, solid_capstyle="butt")


def _fell_back(row: Row) -> bool:
    return row["way"] not in DENSE_KERNELS and not row["sparse_kernels"]


def _what(measured: dict[str, Any], dtype: str) -> str:
    sparse = any(
        row["way"] not in DENSE_KERNELS and "median_ms" in row for row in measured["rows"] if row["dtype"] == dtype
    )
    return "2:4 kernels" if sparse else "masked"


def _absent(evidence: Evidence) -> list[str]:
    return [f"{file['device'].upper()}: {file['absent']}." for file in evidence.matrices if "absent" in file]


def _said(evidence: Evidence, measured: list[dict[str, Any]]) -> list[str]:
    rows = [row for file in measured for row in file["rows"] if "median_ms" in row]
    noisy, fell_back = any(row["noisy"] for row in rows), any(_fell_back(row) for row in rows)
    reasons = {row["absent"]: None for file in measured for row in file["rows"] if "absent" in row}
    machines = {statistics.machine_text(file["provenance"]["machine"]): None for file in measured}
    low, high = paper.MATMUL_SPEEDUP
    return [
        f"Study {evidence.study}. Speed-up over the dense product in the same rounds, medians.",
        "Masked: 2:4 in dense kernels, which gains nothing; the fastest 2:4 kernels where there are any.",
        "~: the spread of a time is over 10 %." if noisy else "",
        "†: the profiler saw no sparse kernel." if fell_back else "",
        *(f"Absent: {reason}." for reason in reasons),
        *_absent(evidence),
        f"Machine: {'; '.join(machines)}.",
        f"Bar on the scale: the {low}–{high}× that the paper cites for BERT's matrix products on an A100 (at most 1.8× "
        "in fp16, 1.9× in int8).",
    ]
