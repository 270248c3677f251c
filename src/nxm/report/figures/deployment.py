"""What a model costs and what is left of its score, in every form that it is deployed in."""

from __future__ import annotations

from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from nxm.report import labels, paper, statistics, style
from nxm.report.evidence import Evidence

Row = dict[str, Any]

FORMS = {  # (way, dtype): how it is called, and its marker
    ("eager", "fp32"): ("PyTorch fp32", "o"),
    ("eager", "bf16"): ("PyTorch bf16", "s"),
    ("eager", "fp16"): ("PyTorch fp16", "D"),
    ("compiled", "fp32"): ("compiled fp32", "v"),
    ("compiled", "bf16"): ("compiled bf16", "v"),
    ("onnx", "fp32"): ("ONNX fp32", "^"),
    ("onnx", "int8"): ("ONNX INT8", "P"),
    ("pt2e", "int8"): ("PyTorch INT8", "X"),
    ("compiled", "int8"): ("compiled INT8", "<"),
}


def draw(evidence: Evidence) -> Figure:
    """For each device: (a) score against latency, the area of a mark the size of the weights; (b) latency by batch."""
    files = [file for file in evidence.deployment if any("median_ms" in row for row in file["rows"])]
    if not files:
        figure, ((axes,),) = style.canvas(style.TWO_COLUMNS, 2.4)
        style.missing(axes, f"Study {evidence.study} has no form measured yet. {' '.join(_absent_devices(evidence))}")
        return figure
    figure, grid = style.canvas(style.TWO_COLUMNS, 3.2 * len(files) + 1.3, len(files), 2)
    for (left, right), file in zip(grid, files, strict=True):
        rows = [row for row in file["rows"] if "median_ms" in row]
        name = file["device"].upper()
        largest = max((row["batch"], row["length"]) for row in rows)
        _trade_off(left, rows, file["scores"], largest, name)
        _by_batch(right, rows, largest[1], name)
    _legend(figure, [row for file in files for row in file["rows"] if "median_ms" in row])
    style.footnote(figure, _said(evidence, files))
    return figure


def is_plain(row: Row, dtype: str = "fp32") -> bool:
    """Whether it is what a user has without doing anything: eager PyTorch in dense kernels."""
    return (row["way"], row["dtype"], row["kernel"]) == ("eager", dtype, "dense")


def described(row: Row) -> str:
    """A form as people call it: `PyTorch fp32`, `PyTorch bf16, 2:4`."""
    name = FORMS.get((row["way"], row["dtype"]), (f"{row['way']} {row['dtype']}", "*"))[0]
    return name if row["kernel"] == "dense" else f"{name}, {row['kernel']}"


def _look(row: Row) -> dict[str, Any]:
    color, marker = labels.look(row["model"]).color, FORMS.get((row["way"], row["dtype"]), ("", "*"))[1]
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
    """The dense model in dense kernels, in the precision that 2:4 kernels are measured in where there are any."""
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
    axes.set(title=f"{device}: latency by batch", xlabel=f"Batch, of {length} tokens", ylabel="Latency (ms)")
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
    handles = [
        Line2D([], [], linestyle="", marker="o", color=labels.look(model).color, label=labels.run_label(model))
        for model in models
    ]
    forms = dict.fromkeys((row["way"], row["dtype"]) for row in rows)
    for form in forms:
        label, marker = FORMS.get(form, (" ".join(form), "*"))
        handles.append(Line2D([], [], linestyle="", marker=marker, color=style.GREY, label=label))
    figure.legend(handles=handles, loc="outside upper left", ncols=5, columnspacing=1.0, handletextpad=0.2)


def _absent_devices(evidence: Evidence) -> list[str]:
    return [f"{file['device'].upper()}: {file['absent']}." for file in evidence.deployment if "absent" in file]


def _said(evidence: Evidence, files: list[dict[str, Any]]) -> list[str]:
    rows = [row for file in files for row in file["rows"]]
    by_device = [[row for row in file["rows"] if "median_ms" in row] for file in files]
    timed = [row for own in by_device for row in own]
    fell_back = [row for row in timed if row["kernel"] != "dense" and not row["sparse_kernels"]]
    reasons: dict[str, dict[str, None]] = {}
    for row in rows:
        if "absent" in row:
            form = described(row) if "way" in row else "every form"
            reasons.setdefault(row["absent"], {})[f"{labels.run_label(row['model'])} ({form})"] = None
    machines = {statistics.machine_text(file["provenance"]["machine"]): None for file in files}
    noisy = sum(row["noisy"] for row in timed)
    low, high = paper.MATMUL_SPEEDUP
    references = [_reference(own, max((row["batch"], row["length"]) for row in own)) for own in by_device]
    forms = dict.fromkeys(described(row) for row in references if row is not None)
    return [
        f"Study {evidence.study}. Medians; a mark's area is the size of the weights. Open marks: 2:4 kernels.",
        f"{noisy} of {len(timed)} times have a spread over 10 %." if noisy else "",
        f"In {len(fell_back)} rows of 2:4 kernels the profiler saw no sparse kernel." if fell_back else "",
        *(f"Absent: {statistics.listed(names)}: {reason.rstrip('.')}." for reason, names in reasons.items()),
        *_absent_devices(evidence),
        f"Machine: {'; '.join(machines)}.",
        f"Band: dense {statistics.listed(forms)}, had it the {low}–{high}× that the paper cites for products on an A100."
        if forms
        else "",
    ]
