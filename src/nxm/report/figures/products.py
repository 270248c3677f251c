"""Heat maps of the speed-up of 2:4 over dense products, by the matrix's shape and the number of tokens."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure

from nxm.report import bench, captions, paper, style
from nxm.report.bench import Row
from nxm.report.evidence import Evidence

PANELS_IN_A_ROW = 4


def draw(evidence: Evidence) -> Figure:
    """Return a panel per device and type: the fastest 2:4 kernels, or the masked matrix in dense kernels if none."""
    found = [(file, bench.products(file)) for file in evidence.bench]
    panels = [(file, dtype, ways) for file, ways in found for dtype in dict.fromkeys(key[0] for key in ways)]
    if not panels:
        figure, ((axes,),) = style.canvas(style.TWO_COLUMNS, 2.4)
        style.missing(axes, f"Study {evidence.study} has no product measured yet.")
        return figure
    shapes = list(dict.fromkeys(shape for _, ways in found for _, shape, _ in ways))
    shapes.sort(key=lambda shape: shape[0] * shape[1])
    columns = min(PANELS_IN_A_ROW, len(panels))
    lines = -(-len(panels) // columns)
    height = lines * (0.36 * len(shapes) + 1.0) + 1.4
    figure, grid = style.canvas(style.TWO_COLUMNS, height, lines, columns, sharey=True)
    for axes in grid.flat[len(panels) :]:
        axes.set_visible(False)
    cells = [cell for _, ways in found for own in ways.values() if (cell := bench.best(own)) is not None]
    scale = max(1.0, *(abs(np.log2(cell["speedup"])) for cell in cells))
    for axes, (file, dtype, ways) in zip(grid.flat, panels, strict=False):
        _panel(axes, {key[1:]: own for key, own in ways.items() if key[0] == dtype}, shapes, scale)
        kernels = "2:4" if any(map(bench.is_sparse, _best_of(ways, dtype))) else "masked"
        axes.set_title(f"{bench.DEVICES[file['device']]}, {bench.TYPES[dtype]}: {kernels}")
    for axes in grid[:, 0]:
        axes.set_ylabel("Outputs × inputs")
    _scale_with_the_papers_range(figure, grid)
    shows = "Speed-up of the fastest 2:4 kernel over the fastest dense one; below it the dense one's TFLOP/s. Medians."
    style.footnote(figure, captions.measured(evidence, shows, _marks(cells)))
    return figure


def _best_of(ways: dict[Any, dict[str, Row]], dtype: str) -> list[Row]:
    found = (bench.best(own) for key, own in ways.items() if key[0] == dtype)
    return [cell for cell in found if cell is not None]


def _panel(axes: Axes, ways: dict[Any, dict[str, Row]], shapes: list[tuple[int, int]], scale: float) -> None:
    tokens = sorted({count for _, count in ways})
    cells = [
        [bench.best(ways[shape, count]) if (shape, count) in ways else None for count in tokens] for shape in shapes
    ]
    values = [[np.log2(cell["speedup"]) if cell else np.nan for cell in line] for line in cells]
    texts = [
        [
            _text(cell, bench.reference(ways[shape, count])) if cell else ""
            for cell, count in zip(line, tokens, strict=True)
        ]
        for line, shape in zip(cells, shapes, strict=True)
    ]
    columns = [f"{count:,}" for count in tokens]
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
    axes.grid(visible=False)
    axes.tick_params("x", rotation=45)
    axes.tick_params("y", rotation=0)
    axes.set_xlabel("Tokens")


def _text(cell: Row, dense: Row) -> str:
    marks = f"{'~' if cell['noisy'] else ''}{'†' if _fell_back(cell) else ''}"
    return f"{marks}{cell['speedup']:.2f}\n{_rate(dense['tflops'])}"


def _rate(tflops: float) -> str:
    return f"{tflops:.0f}" if tflops >= 100 else f"{tflops:.2g}"


def _scale_with_the_papers_range(figure: Figure, grid: np.ndarray) -> None:
    """Add the colours' scale, with a bar over the range that the paper cites."""
    low, high = paper.MATMUL_SPEEDUP
    image = grid.flat[0].collections[0]
    label = "Speed-up over dense (bar: the paper's range, for an A100)"
    bar = figure.colorbar(image, ax=grid, location="bottom", aspect=60, pad=0.02, label=label)
    ticks = (0.5, 1.0, low, high, 2.0)
    bar.set_ticks([float(np.log2(tick)) for tick in ticks], labels=[f"{tick:g}×" for tick in ticks])
    bar.ax.plot(np.log2([low, high]), [0.5, 0.5], color=style.INK, linewidth=3, solid_capstyle="butt")


def _fell_back(cell: Row) -> bool:
    return bench.is_sparse(cell) and not cell["sparse_launches"]


def _marks(cells: list[Row]) -> list[str]:
    marks = []
    if not all(map(bench.is_sparse, cells)):
        marks.append("Masked: 2:4 in dense kernels, which gains nothing.")
    if any(cell["noisy"] for cell in cells):
        marks.append("~: the spread of a time is over 10 %.")
    if any(map(_fell_back, cells)):
        marks.append("†: the profiler saw no sparse kernel.")
    return marks
