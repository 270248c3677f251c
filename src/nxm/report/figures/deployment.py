"""Latency, size and score of models in the forms in which they are deployed."""

from __future__ import annotations

from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from nxm.report import captions, labels, paper, statistics, style
from nxm.report.evidence import Evidence
from nxm.report.forms import Row, absences, form, is_plain


def draw(evidence: Evidence) -> Figure:
    """Return per device the score over latency, with the size of the weights as area, and the latency by batch."""
    files = [file for file in evidence.deployment if any("median_ms" in row for row in file["rows"])]
    if not files:
        figure, ((axes,),) = style.canvas(style.TWO_COLUMNS, 2.4)
        style.missing(
            axes, f"Study {evidence.study} has no form measured yet. {' '.join(absences(evidence.deployment))}"
        )
        return figure
    figure, grid = style.canvas(style.TWO_COLUMNS, 3.2 * len(files) + 1.3, len(files), 2)
    for (left, right), file in zip(grid, files, strict=True):
        rows = [row for row in file["rows"] if "median_ms" in row]
        name = file["device"].upper()
        largest = _largest(rows)
        _trade_off(left, rows, file["scores"], largest, name)
        _by_batch(right, rows, largest[1], name)
    _legend(figure, [row for file in files for row in file["rows"] if "median_ms" in row])
    style.footnote(
        figure,
        captions.measured(
            evidence, "Medians; area: size of the weights; open: 2:4 kernels.", _remarks(evidence, files)
        ),
    )
    return figure


def _largest(rows: list[Row]) -> tuple[int, int]:
    return max((row["batch"], row["length"]) for row in rows)


def _look(row: Row) -> dict[str, Any]:
    color, marker = labels.look(row["model"]).color, form(row)[1]
    face = color if row["kernel"] == "dense" else "white"
    return {"marker": marker, "markerfacecolor": face, "markeredgecolor": color, "color": color}


def _trade_off(axes: Axes, rows: list[Row], scores: list[Row], point: tuple[int, int], device: str) -> None:
    axes.set(title=f"{device}: score and latency", xlabel=f"Latency of {point[0]} × {point[1]} tokens (ms)")
    key = ("model", "way", "dtype", "kernel")
    found = {tuple(row[name] for name in key): row for row in scores}
    shown = [
        (row, found[tuple(row[name] for name in key)])
        for row in rows
        if (row["batch"], row["length"]) == point and tuple(row[name] for name in key) in found
    ]
    if not shown:
        style.missing(axes, "No score was measured.")
        return
    if (row := _reference(rows, point)) is not None:
        low, high = paper.MATMUL_SPEEDUP
        axes.axvspan(row["median_ms"] / high, row["median_ms"] / low, color=style.PALE, zorder=0)
    for row, score in shown:
        size = max(0.9 * row["size_mib"] ** 0.5, 2.5)  # points; so the area goes with the weights' size
        axes.plot(row["median_ms"], score["score"], linestyle="", markersize=size, **_look(row))
    metric = shown[0][1]["metric"]
    axes.set_ylabel(f"Dev score ({statistics.METRICS.get(metric, metric)} × 100)")
    style.log_scale(axes, "x")
    axes.margins(0.12)


def _reference(rows: list[Row], point: tuple[int, int]) -> Row | None:
    """Return the dense model with dense kernels, in the precision of the 2:4 kernels where there are any."""
    dtype = next((row["dtype"] for row in rows if row["kernel"] != "dense"), "fp32")
    return next(
        (
            row
            for row in rows
            if row["model"] == "dense" and is_plain(row, dtype) and (row["batch"], row["length"]) == point
        ),
        None,
    )


def _by_batch(axes: Axes, rows: list[Row], length: int, device: str) -> None:
    axes.set(title=f"{device}: latency by batch", xlabel=f"Batch size ({length} tokens each)", ylabel="Latency (ms)")
    kinds = dict.fromkeys((row["model"], row["way"], row["dtype"], row["kernel"]) for row in rows)
    for kind in kinds:
        own = [
            row
            for row in rows
            if (row["model"], row["way"], row["dtype"], row["kernel"]) == kind and row["length"] == length
        ]
        own.sort(key=lambda row: row["batch"])
        axes.plot([r["batch"] for r in own], [r["median_ms"] for r in own], linewidth=0.8, **_look(own[0]))
    for which in ("x", "y"):
        style.log_scale(axes, which)
    batches = sorted({row["batch"] for row in rows})
    axes.set_xticks(batches, [str(batch) for batch in batches])


def _legend(figure: Figure, rows: list[Row]) -> None:
    models = statistics.in_order((row["model"] for row in rows), labels.RUNS)
    marks = [(labels.run_label(model), "o", labels.look(model).color) for model in models]
    marks += [(*look, style.GREY) for look in dict.fromkeys(form(row) for row in rows)]
    handles = [
        Line2D([], [], linestyle="", marker=marker, color=color, label=label, markersize=6)
        for label, marker, color in marks
    ]
    figure.legend(handles=handles, loc="outside upper left", ncols=5, columnspacing=1.0, handletextpad=0.2)


def _remarks(evidence: Evidence, files: list[dict[str, Any]]) -> list[str]:
    by_device = [[row for row in file["rows"] if "median_ms" in row] for file in files]
    band = any(_reference(rows, _largest(rows)) for rows in by_device)
    timed = [row for rows in by_device for row in rows]
    fell_back = [row for row in timed if row["kernel"] != "dense" and not row["sparse_kernels"]]
    noisy = sum(row["noisy"] for row in timed)
    low, high = paper.MATMUL_SPEEDUP
    return [
        f"Band: the {low}–{high}× of the paper (A100) over dense." if band else "",
        f"{noisy} of {len(timed)} times have a spread over 10 %." if noisy else "",
        f"In {len(fell_back)} rows of 2:4 kernels the profiler saw no sparse kernel." if fell_back else "",
        *absences(evidence.deployment),
    ]
